"""Callbacks by bare socket: what no well-behaved client sends, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import random
import socket
import time

import pytest
from aiohttp import web
from aiohttp.http_exceptions import TransferEncodingError

from fakes import FakeService, counted
from kie_wav_async import webhook
from kie_wav_async.testing import FakeClock
from kie_wav_async.webhook import capped_server, request_handler
from receivers import (
    PARSERS,
    PATH,
    Served,
    Wire,
    chunk,
    embedded,
    own_server,
    request,
    run_aiohttp,
)

LIMIT = 65_536

#: Ends a chunked body.
LAST = b"0\r\n\r\n"

every_parser = pytest.mark.parametrize("receiver", PARSERS.values(), ids=PARSERS)


@contextlib.asynccontextmanager
async def serving(receiver):
    """Serve an open session that knows no task."""
    service = FakeService(FakeClock())
    async with service.listening() as session, receiver(session) as served:
        yield service, session, served


async def is_served(service: FakeService, served: Served) -> bool:
    """Return whether a genuine callback is answered as ever."""
    genuine = service.callback("genuine")
    async with Wire(served) as wire:
        await wire.post(genuine.headers, genuine.body)
        return 200 == (await wire.answer()).status


def long_body(length: int) -> bytes:
    """Return a body of a task, of so many bytes."""
    body = json.dumps({"taskId": "genuine", "pad": ""}).encode()
    return body[:-2] + b"x" * (length - len(body)) + body[-2:]


# --- headers --------------------------------------------------------------------------------


def without(headers, name: str) -> list[tuple[str, str]]:
    """Return the pairs of *headers* but one."""
    return [pair for pair in headers.items() if pair[0] != name]


TIMESTAMP, SIGNATURE = "X-Webhook-Timestamp", "X-Webhook-Signature"
FORGED = "A" * 44

#: What is made of the genuine headers, and with what status it may be answered.
HEADERS = {
    "as they are": (lambda h: list(h.items()), {200}),
    "in lower case": (lambda h: [(name.lower(), value) for name, value in h.items()], {200}),
    "in upper case": (lambda h: [(name.upper(), value) for name, value in h.items()], {200}),
    "blanks before": (lambda h: [(name, f" \t {value}") for name, value in h.items()], {200}),
    "forged after": (lambda h: [*h.items(), (SIGNATURE, FORGED)], {401}),
    "forged before": (lambda h: [(SIGNATURE, FORGED), *h.items()], {401}),
    "forged after, other case": (lambda h: [*h.items(), (SIGNATURE.upper(), FORGED)], {401}),
    "forged before, other case": (lambda h: [(SIGNATURE.lower(), FORGED), *h.items()], {401}),
    "twice the same": (lambda h: [*h.items(), (SIGNATURE.lower(), h[SIGNATURE])], {401}),
    "two timestamps": (lambda h: [(TIMESTAMP.upper(), "1"), *h.items()], {401}),
    "the timestamp twice": (lambda h: [*h.items(), (TIMESTAMP, h[TIMESTAMP])], {401}),
    "empty beside it": (lambda h: [*h.items(), (SIGNATURE, "")], {401}),
    "joined by a comma": (
        lambda h: [*without(h, SIGNATURE), (SIGNATURE, f"{h[SIGNATURE]}, {FORGED}")],
        {401},
    ),
    "0xFF in the signature": (
        lambda h: [*without(h, SIGNATURE), (SIGNATURE, h[SIGNATURE].encode()[:-1] + b"\xff")],
        {401},
    ),
    "all 0xFF": (lambda h: [*without(h, SIGNATURE), (SIGNATURE, b"\xff" * 44)], {401}),
    "0xFF in the timestamp": (
        lambda h: [*without(h, TIMESTAMP), (TIMESTAMP, b"\xff" * 10)],
        {401},
    ),
    "0xFF elsewhere": (lambda h: [*h.items(), ("X-Other", b"\xff\xfe")], {200}),
    # From here on servers may differ: some refuse by themselves, or pass on more.
    "blanks behind": (
        lambda h: [(name, f"{value} \t ") for name, value in h.items()],
        {200, 401},
    ),
    "a folded signature": (
        lambda h: [*without(h, SIGNATURE), (SIGNATURE, f"{h[SIGNATURE][:20]}\r\n {FORGED[20:]}")],
        {400, 401},
    ),
    "a signature folded at its end": (
        lambda h: [*without(h, SIGNATURE), (SIGNATURE, f"{h[SIGNATURE]}\r\n {FORGED}")],
        {400, 401},
    ),
    "NUL in the signature": (
        lambda h: [*without(h, SIGNATURE), (SIGNATURE, h[SIGNATURE][:-1] + "\0")],
        {400, 401},
    ),
    "a blank before the colon": (
        lambda h: [*without(h, SIGNATURE), (f"{SIGNATURE} ", h[SIGNATURE])],
        {400, 401},
    ),
    "a header of 9 kB": (lambda h: [("X-Long", "x" * 9_000), *h.items()], {200, 400}),
    "a signature of 9 kB": (
        lambda h: [*without(h, SIGNATURE), (SIGNATURE, h[SIGNATURE] * 205)],
        {400, 401},
    ),
    "200 headers": (
        lambda h: [*((f"X-{number}", "x") for number in range(200)), *h.items()],
        {200, 400},
    ),
}


@every_parser
async def test_headers_are_taken_strictly(receiver) -> None:
    """However the two headers are spelt or doubled, only exactly one of each can be genuine."""
    answered = {}
    async with serving(receiver) as (service, session, served):
        for name, (change, _) in HEADERS.items():
            genuine = service.callback("genuine")
            async with Wire(served) as wire:
                await wire.post(change(genuine.headers), genuine.body)
                answered[name] = (await wire.answer()).status
        assert await is_served(service, served)
        figures = counted(session)

    wrong = {name: status for name, status in answered.items() if status not in HEADERS[name][1]}
    assert {} == wrong
    assert list(answered.values()).count(200) + 1 == figures["unknown_task_callbacks"]


# --- bodies ---------------------------------------------------------------------------------


@every_parser
@pytest.mark.parametrize("in_chunks", [False, True], ids=["with a length", "in chunks"])
async def test_the_longest_body(receiver, in_chunks) -> None:
    """65,536 bytes are taken, and one more is refused, however they are sent."""
    statuses = []
    async with serving(receiver) as (service, _, served):
        for length in (LIMIT, LIMIT + 1):
            headers = dict(service.callback("genuine").headers)
            body = long_body(length)
            assert length == len(body)
            async with Wire(served) as wire:
                if in_chunks:
                    headers["Transfer-Encoding"] = "chunked"
                    await wire.post(headers, length=-1)
                    for start in range(0, length, 1_000):
                        await wire.send(chunk(body[start : start + 1_000]))
                    await wire.send(LAST)
                else:
                    await wire.post(headers, body)
                statuses.append((await wire.answer()).status)

    assert [200, 413] == statuses


@every_parser
async def test_a_long_body_that_is_there_at_once(receiver) -> None:
    """A chunked body of one byte too many is refused also if it came in one piece."""
    async with serving(receiver) as (service, _, served), Wire(served) as wire:
        headers = {**service.callback("genuine").headers, "Transfer-Encoding": "chunked"}
        head = request(served.path, headers, length=-1)
        await wire.send(head + chunk(long_body(LIMIT + 1)) + LAST)

        assert 413 == (await wire.answer()).status


@every_parser
async def test_an_endless_body(receiver) -> None:
    """Whoever sends chunks without end is refused, and cannot go on sending."""
    async with serving(receiver) as (service, session, served), Wire(served) as wire:
        headers = {**service.callback("genuine").headers, "Transfer-Encoding": "chunked"}
        await wire.post(headers, length=-1)
        sent = 0
        while await wire.send(chunk(b"x" * 10_000)):
            sent += 1
            await asyncio.sleep(0)
        answer = await wire.answer()

        assert 413 == answer.status
        assert "close" == answer.headers["connection"]
        assert await wire.is_closed()
        assert await is_served(service, served)
        assert {"unknown_task_callbacks": 1} == counted(session)


@every_parser
@pytest.mark.parametrize("encoding", ["", "identity", " Identity ,identity"])
async def test_an_encoding_that_changes_nothing_is_none(receiver, encoding) -> None:
    """A callback whose ``Content-Encoding`` changes no byte is taken like any other."""
    async with serving(receiver) as (service, session, served), Wire(served) as wire:
        genuine = service.callback("genuine")
        headers = {**genuine.headers, "Content-Encoding": encoding}
        await wire.post(headers, genuine.body, length=len(genuine.body))
        assert 200 == (await wire.answer()).status
        assert {"unknown_task_callbacks": 1} == counted(session)


#: Heads of requests that are refused without a look at the body, which never comes.
REFUSED_BY_HEAD = {
    "one byte too long": ({}, {"length": LIMIT + 1}, {413}),
    "1 GB": ({}, {"length": 10**9}, {413}),
    # More than a 64-bit number: parsers written in C refuse by themselves.
    "absurdly long": ({}, {"length": 10**30}, {400, 413}),
    "gzip": ({"Content-Encoding": "gzip"}, {"length": 1_000}, {415}),
    # aiohttp refuses by itself what it cannot decompress here.
    "br": ({"content-ENCODING": "br"}, {"length": 1_000}, {400, 415}),
    "two encodings": ({"Content-Encoding": "identity, gzip"}, {"length": 1_000}, {400, 415}),
    "gzip in chunks": (
        {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"},
        {"length": -1},
        {415},
    ),
    "PUT": ({}, {"length": 1_000, "method": "PUT"}, {405}),
    "GET": ({}, {"length": 1_000, "method": "GET"}, {405}),
}


@every_parser
async def test_a_refusal_waits_for_no_body(receiver) -> None:
    """What is refused by its head is refused at once, and its connection closed."""
    answered, left_open = {}, []
    async with serving(receiver) as (service, session, served):
        for name, (headers, how, _) in REFUSED_BY_HEAD.items():
            async with Wire(served) as wire:
                await wire.post({**service.callback("genuine").headers, **headers}, **how)
                answer = await wire.answer()
                answered[name] = answer.status
                if not await wire.is_closed():
                    left_open.append(name)
        assert {} == counted(session)
        assert await is_served(service, served)

    right = {name: statuses for name, (_, _, statuses) in REFUSED_BY_HEAD.items()}
    assert {} == {name: got for name, got in answered.items() if got not in right[name]}
    assert [] == left_open


@every_parser
async def test_every_rejection_closes_the_connection(receiver) -> None:
    """What is rejected costs the peer its connection, also if the whole of it was read."""
    async with serving(receiver) as (service, _, served):
        genuine, forged = service.callback("genuine"), service.callback("x", key="z" * 20)
        for status, delivery, how in (
            (405, genuine, {"method": "GET"}),
            (405, genuine, {"method": "PUT", "body": b"x"}),
            (401, forged, {"body": forged.body}),
            (400, genuine, {"body": b"x"}),
        ):
            async with Wire(served) as wire:
                await wire.post(delivery.headers, **how)
                answer = await wire.answer()
                assert (status, "close") == (answer.status, answer.headers["connection"])
                assert await wire.is_closed()


@every_parser
async def test_half_a_body_and_silence(receiver, monkeypatch) -> None:
    """A body that stops coming is given up after its time, and the connection closed."""
    monkeypatch.setattr(request_handler, "READ_TIMEOUT_S", 0.0)
    async with serving(receiver) as (service, session, served):
        genuine = service.callback("genuine")
        for how in ({"length": len(genuine.body)}, {"length": -1}):
            headers = {**genuine.headers}
            if how["length"] < 0:
                headers["Transfer-Encoding"] = "chunked"
            async with Wire(served) as wire:
                half = genuine.body[:20] if how["length"] > 0 else chunk(genuine.body[:20])
                await wire.post(headers, half, **how)

                answer = await wire.answer()
                assert (408, b"") == (answer.status, answer.body)
                assert await wire.is_closed()
        assert {} == counted(session)


@every_parser
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
async def test_a_body_of_nonsense_chunks(receiver, at_once, monkeypatch) -> None:
    """A body whose framing breaks off is refused, and the connection closed."""
    # Of what comes later aiohttp's parser in C tells nobody: there the time runs out.
    monkeypatch.setattr(request_handler, "READ_TIMEOUT_S", 0.05)
    async with serving(receiver) as (service, session, served), Wire(served) as wire:
        headers = {**service.callback("genuine").headers, "Transfer-Encoding": "chunked"}
        good, nonsense = chunk(b"{"), b"nonsense\r\n\r\n"
        await wire.post(headers, good + nonsense if at_once else good, length=-1)
        if not at_once:
            for _ in range(50):  # Until it is being read; nothing is to be seen of that.
                await asyncio.sleep(0)
            await wire.send(nonsense)

        assert (await wire.answer()).status in {400, 408}
        assert await wire.is_closed()
        assert "unknown_task_callbacks" not in counted(session)
        assert await is_served(service, served)


@pytest.mark.parametrize(
    "error",
    [
        web.RequestPayloadError("broken"),
        TransferEncodingError("broken"),
        RuntimeError("Connection closed."),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("length", [10, 0], ids=["before its end", "after its end"])
async def test_a_body_that_aiohttp_gives_up(error, length, caplog) -> None:
    """Whatever aiohttp says is wrong with a body is the peer's fault, and no line in the log."""

    @web.middleware
    async def spoil(call: web.Request, handler) -> web.StreamResponse:
        call.content.set_exception(error)
        return await handler(call)

    app = web.Application(middlewares=[spoil])
    service = FakeService(FakeClock())
    async with service.listening() as session:
        webhook.add_callback_route(app, session)
        async with run_aiohttp(app) as served, Wire(served) as wire:
            await wire.post(
                {"Transfer-Encoding": "chunked"}, LAST if not length else b"", length=-1
            )
            assert 400 == (await wire.answer()).status

    assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_client_that_leaves_before_its_turn(caplog) -> None:
    """A client that is gone before the route is asked causes no error and is not taken."""
    left, begun = asyncio.Event(), asyncio.Event()

    @web.middleware
    async def hold(call: web.Request, handler) -> web.StreamResponse:
        begun.set()
        await left.wait()
        return await handler(call)

    app = web.Application(middlewares=[hold])
    service = FakeService(FakeClock())
    async with service.listening() as session:
        webhook.add_callback_route(app, session)
        async with run_aiohttp(app) as served:
            genuine = service.callback("genuine")
            async with Wire(served) as wire:
                await wire.post(genuine.headers, genuine.body)
                await begun.wait()
            for _ in range(50):  # Until aiohttp has seen it; nothing is to be seen of that.
                await asyncio.sleep(0)
            left.set()
            assert await is_served(service, served)
        assert {"unknown_task_callbacks": 1} == counted(session)

    assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]


@every_parser
async def test_a_client_that_leaves_half_way(receiver, caplog) -> None:
    """Clients that go away with half a body sent leave nothing behind, and no line in the log."""
    async with serving(receiver) as (service, session, served):
        genuine = service.callback("genuine")
        for _ in range(request_handler.MAX_READS):
            async with Wire(served) as wire:
                await asking(wire, genuine)
                await wire.send(genuine.body[:20])
        # Each of them was read from; the next would be refused if one still were.
        async with asyncio.timeout(20.0):
            while not await is_served(service, served):
                pass
        figures = counted(session)

    assert {"unknown_task_callbacks"} == set(figures)
    assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]


async def asking(wire: Wire, delivery, **headers: str) -> None:
    """Send a head that asks before the body is sent, and wait until it is being read."""
    given = {**delivery.headers, "Expect": "100-continue", **headers}
    await wire.post(given, length=len(delivery.body))
    answer = await wire.answer()
    assert 100 == answer.status, answer


# --- many at a time -------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving_slow_readers(receiver, count: int = 64):
    """Serve *count* bodies that do not go on, and yield their connections too, the oldest first."""
    async with contextlib.AsyncExitStack() as stack:
        service, session, served = await stack.enter_async_context(serving(receiver))
        readers = []
        for _ in range(count):
            wire = await stack.enter_async_context(Wire(served))
            await asking(wire, service.callback("genuine"))
            readers.append(wire)
        yield service, session, served, readers


async def finishes(wire: Wire, service: FakeService) -> bool:
    """Send the body that a connection owes; return whether it is taken."""
    await wire.send(service.callback("genuine").body)
    return 200 == (await wire.answer()).status


@every_parser
async def test_a_complete_body_needs_no_place(receiver) -> None:
    """While 64 bodies are waited for complete callbacks are taken, and none of the 64 dropped."""
    async with serving_slow_readers(receiver) as (service, session, served, readers):
        for _ in range(70):
            assert await is_served(service, served)
        async with Wire(served) as wire:
            await wire.post(service.callback("genuine").headers, method="GET")
            assert 405 == (await wire.answer()).status

        assert all([await finishes(wire, service) for wire in readers])
        assert {"unknown_task_callbacks": 134} == counted(session)


@every_parser
async def test_the_65th_reader(receiver) -> None:
    """A body that is waited for takes the place of the oldest, which is answered 408."""
    async with serving_slow_readers(receiver) as (service, session, served, readers):
        async with Wire(served) as newcomer:
            await asking(newcomer, service.callback("genuine"))
            answer = await readers[0].answer()
            assert (408, b"") == (answer.status, answer.body)
            assert await readers[0].is_closed()
            assert await finishes(newcomer, service)

        # The place of the newcomer is free again.
        assert await is_served(service, served)
        assert all([await finishes(wire, service) for wire in readers[1:]])
        assert {"unknown_task_callbacks": 65} == counted(session)


@every_parser
async def test_many_slow_readers_lock_out_nobody(receiver) -> None:
    """However many bodies do not go on, a callback in two pieces is taken, again and again."""
    async with contextlib.AsyncExitStack() as stack:
        service, _, served = await stack.enter_async_context(serving(receiver))
        for _ in range(4):
            for _ in range(50):
                wire = await stack.enter_async_context(Wire(served))
                await asking(wire, service.callback("genuine"))
            async with Wire(served) as wire:
                genuine = service.callback("genuine")
                await wire.post(genuine.headers, genuine.body[:1], length=len(genuine.body))
                for _ in range(50):  # Until it is waited for; nothing is to be seen of that.
                    await asyncio.sleep(0)
                await wire.send(genuine.body[1:])
                assert 200 == (await wire.answer()).status


@pytest.mark.parametrize("rest", [[b"b", None], [b"b"]], ids=["whole", "not whole"])
@pytest.mark.parametrize("dropped_first", [True, False])
async def test_a_body_that_ends_as_it_is_dropped(dropped_first, rest) -> None:
    """A body whose rest has come before its reader knows that its time is over is taken."""
    async with FakeService(FakeClock()).listening() as session:
        gate, parts = request_handler.CallbackRequestHandler(session), asyncio.Queue[bytes | None]()
        parts.put_nowait(b"a")
        reading = asyncio.create_task(gate.read(parts.get))
        await asyncio.sleep(0)

        if dropped_first:
            assert gate.drop_oldest()
        for part in rest:
            parts.put_nowait(part)
        if not dropped_first:
            assert gate.drop_oldest()

        read = await reading
        assert (b"ab" if None in rest else request_handler.Answer(408)) == read
        assert not gate.drop_oldest()


@every_parser
async def test_a_loop_that_was_held_up(receiver, monkeypatch) -> None:
    """A body that came while the loop was held up is taken, although its time is over by then."""
    loop = asyncio.get_running_loop()
    async with serving(receiver) as (service, session, served), Wire(served) as wire:
        genuine = service.callback("genuine")
        await asking(wire, genuine)
        for _ in range(50):  # Until it is being read; nothing is to be seen of that.
            await asyncio.sleep(0)
        wire._socket.send(genuine.body)
        late = 10 * request_handler.READ_TIMEOUT_S
        monkeypatch.setattr(loop, "time", lambda: time.monotonic() + late)

        assert 200 == (await wire.answer()).status
        assert {"unknown_task_callbacks": 1} == counted(session)


# --- asking first, one after the other ------------------------------------------------------


@every_parser
async def test_a_body_is_asked_for_only_if_it_is_wanted(receiver) -> None:
    """Who asks before sending the body is told to go on, unless the head is refused already."""
    async with serving(receiver) as (service, _, served):
        genuine = service.callback("genuine")
        async with Wire(served) as wire:
            await asking(wire, genuine)
            await wire.send(genuine.body)
            assert 200 == (await wire.answer()).status
        for headers, how, status in (
            ({}, {"length": LIMIT + 1}, 413),
            ({"Content-Encoding": "gzip"}, {"length": 10}, 415),
            ({}, {"length": 10, "method": "PUT"}, 405),
        ):
            async with Wire(served) as wire:
                await wire.post(
                    {**genuine.headers, **headers, "Expect": "100-continue"}, b"", **how
                )
                assert status == (await wire.answer()).status
                assert await wire.is_closed()


@every_parser
async def test_an_expectation_nobody_knows(receiver) -> None:
    """Any other expectation is passed over."""
    async with serving(receiver) as (service, _, served), Wire(served) as wire:
        genuine = service.callback("genuine")
        await wire.post({**genuine.headers, "Expect": "the unexpected"}, genuine.body)
        assert 200 == (await wire.answer()).status


@pytest.mark.parametrize("receiver", [embedded, own_server])
async def test_an_old_client_asks_nothing(receiver) -> None:
    """HTTP/1.0 has no interim answers: its client gets the one it understands."""
    async with serving(receiver) as (service, _, served), Wire(served) as wire:
        genuine = service.callback("genuine")
        sent = request(
            served.path, {**genuine.headers, "Expect": "100-continue"}, length=len(genuine.body)
        )
        await wire.send(sent.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        for _ in range(50):  # Until it is being read; nothing is to be seen of that.
            await asyncio.sleep(0)
        await wire.send(genuine.body)

        assert 200 == (await wire.answer()).status


@every_parser
async def test_one_after_the_other(receiver) -> None:
    """Requests sent in one piece are answered in order, up to one that is rejected."""
    async with serving(receiver) as (service, session, served), Wire(served) as wire:
        genuine, forged = service.callback("genuine"), service.callback("x", key="z" * 20)
        pieces = [
            request(served.path, delivery.headers, delivery.body)
            for delivery in (genuine, genuine, genuine, forged, genuine)
        ]
        await wire.send(b"".join(pieces))

        assert [200, 200, 200, 401] == [(await wire.answer()).status for _ in range(4)]
        assert await wire.is_closed()
        assert {"unknown_task_callbacks": 3, "rejected_callbacks": 1} == counted(session)


@every_parser
async def test_nothing_is_taken_after_a_refusal(receiver) -> None:
    """What follows a request whose body was refused is not taken for another request."""
    async with serving(receiver) as (service, session, served), Wire(served) as wire:
        genuine = service.callback("genuine")
        inner = request(served.path, genuine.headers, genuine.body)
        # All but the last byte of the refused body has the shape of a request.
        await wire.post({"Content-Encoding": "gzip"}, inner, length=len(inner) + 1, method="POST")
        assert 415 == (await wire.answer()).status
        assert await wire.is_closed()
        assert {} == counted(session)


# --- closing half way -----------------------------------------------------------------------


@every_parser
async def test_a_session_that_closes_half_way(receiver) -> None:
    """A body that ends after the session was closed is answered 503."""
    service = FakeService(FakeClock())
    session = service.listening()
    genuine = service.callback("genuine")
    async with receiver(session) as served, Wire(served) as wire:
        async with session:
            await asking(wire, genuine)
            await wire.send(genuine.body[:20])
        await wire.send(genuine.body[20:])

        assert 503 == (await wire.answer()).status

    assert {} == counted(session)


async def test_a_server_that_stops_half_way(monkeypatch) -> None:
    """Our own server stops although a body is still to come, and drops its connection."""
    monkeypatch.setattr(capped_server, "SHUTDOWN_TIMEOUT_S", 0.01)
    async with contextlib.AsyncExitStack() as stack:
        async with serving(own_server) as (service, session, served):
            genuine = service.callback("genuine")
            wire = await stack.enter_async_context(Wire(served))
            await asking(wire, genuine)
            await wire.send(genuine.body[:20])
            idle = await stack.enter_async_context(Wire(served))
            await idle.post(genuine.headers, genuine.body)
            assert 200 == (await idle.answer()).status

        assert await wire.is_closed()
        assert await idle.is_closed()
        assert {"unknown_task_callbacks": 1} == counted(session)


async def test_headers_that_never_end(monkeypatch) -> None:
    """Our own server drops who holds back the end of the headers, or says nothing at all."""
    monkeypatch.setattr(capped_server, "IDLE_TIMEOUT_S", 0.01)
    async with serving(own_server) as (_, _, served):
        for sent in (b"", b"POST / HTTP/1.1\r\nHost: h\r\nX-Slow: "):
            async with Wire(served) as wire:
                await wire.send(sent)
                assert await wire.is_closed()


# --- what is logged -------------------------------------------------------------------------


@every_parser
async def test_nothing_of_a_request_is_logged(receiver, caplog) -> None:
    """Neither query nor headers nor body of any request reach a line of our log."""
    caplog.set_level(logging.DEBUG)
    planted = "PLANTED-IN-A-REQUEST"
    async with serving(receiver) as (service, _, served):
        genuine = service.callback("genuine")
        for headers, body, how in (
            ({"X-Planted": planted}, genuine.body, {}),
            ({**genuine.headers, "X-Planted": planted}, genuine.body, {}),
            ({**genuine.headers, SIGNATURE: planted}, genuine.body, {}),
            ({**genuine.headers, TIMESTAMP: planted}, genuine.body, {}),
            (genuine.headers, planted.encode(), {}),
            (genuine.headers, b'{"taskId": "PLANTED-IN-A-REQUEST"}', {}),
            ({"Content-Encoding": planted}, planted.encode(), {}),
            ({}, planted.encode(), {"method": "PUT"}),
            ({}, planted.encode(), {"length": LIMIT + 1}),
            ({}, planted.encode(), {"method": planted}),
            ({"X-Planted": planted * 500}, b"", {}),
            ({"X-Planted": f"{planted}\0"}, b"", {}),
            ({"X-Planted": f"x\r\n {planted}"}, b"", {}),
            ({f"{planted} ": "x"}, b"", {}),
            ({"Transfer-Encoding": "chunked"}, f"{planted}\r\n".encode(), {"length": -1}),
        ):
            async with Wire(served) as wire:
                await wire.post(headers, body, query=f"attempt={planted}", **how)
                with contextlib.suppress(AssertionError):
                    await wire.answer()

    # What another server's own loggers say is that server's affair.
    ours = None if receiver is own_server else "kie_wav_async"
    records = [record for record in caplog.records if ours in {None, record.name}]
    assert records
    formatter = logging.Formatter()
    assert [] == [text for text in map(formatter.format, records) if planted in text]


# --- a bomb ---------------------------------------------------------------------------------

#: 64 kB that become 12.8 MB.
NOISE = random.Random(1).randbytes(51_000)  # noqa: S311 - nothing is secret about noise
BOMB = gzip.compress(NOISE + bytes(12_800_000), mtime=0)


def throw(served: Served) -> None:
    """Send the bomb and wait for the answer."""
    with socket.create_connection(("127.0.0.1", served.port)) as sock:
        sock.settimeout(20.0)
        sock.sendall(request(served.path, {"Content-Encoding": "gzip"}, BOMB))
        with contextlib.suppress(ConnectionError):
            sock.recv(1_000)


async def longest_stall(served: Served) -> float:
    """Return for how long the loop stood still while a bomb arrived: the best of five, in s."""
    best = float("inf")
    for _ in range(5):
        thrown = asyncio.create_task(asyncio.to_thread(throw, served))
        worst, before = 0.0, time.perf_counter()
        while not thrown.done():
            await asyncio.sleep(0)
            now = time.perf_counter()
            worst, before = max(worst, now - before), now
        await thrown
        best = min(best, worst)
    return best


async def test_a_bomb_goes_off_nowhere() -> None:
    """A body of 200 times its size stalls our server a fifth as long at most as one that reads."""

    async def read(call: web.Request) -> web.Response:
        return web.Response(text=str(len(await call.read())))

    assert len(BOMB) * 200 < len(NOISE) + 12_800_000
    app = web.Application(client_max_size=2**30)
    app.router.add_post(PATH, read)
    async with (
        serving(own_server) as (service, _, served),
        run_aiohttp(app) as reading,
    ):
        # The loop of the tests is in debug mode, which measures each turn.
        asyncio.get_running_loop().set_debug(False)
        ours, theirs = await longest_stall(served), await longest_stall(reading)

        assert await is_served(service, served)

    assert ours * 5 < theirs, f"stalled for {ours * 1e3:.2f} ms and {theirs * 1e3:.2f} ms"


async def test_an_application_of_ones_own_may_leave_bodies_as_they_are() -> None:
    """The route works in an application that was told not to decompress."""
    service = FakeService(FakeClock())
    app = web.Application()
    async with service.listening() as session:
        webhook.add_callback_route(app, session)
        async with run_aiohttp(app, auto_decompress=False) as served:
            assert await is_served(service, served)
            async with Wire(served) as wire:
                await wire.post({"Content-Encoding": "gzip"}, b"no gzip")
                assert 415 == (await wire.answer()).status


async def test_our_own_server_does_not_look_into_a_body() -> None:
    """What claims to be compressed and is not is refused like any other, and breaks nothing."""
    async with serving(own_server) as (service, _, served):
        for encoding in ("gzip", "deflate", "br", "zstd", "nonsense"):
            async with Wire(served) as wire:
                await wire.post({"Content-Encoding": encoding}, b"not compressed at all")
                assert 415 == (await wire.answer()).status
        assert await is_served(service, served)


async def test_a_broken_encoding_is_refused_as_such() -> None:
    """A body that is not what its encoding says is answered 415 all the same."""
    async with serving(embedded) as (service, _, served):
        async with Wire(served) as wire:
            await wire.post({"Content-Encoding": "gzip"}, b"no gzip")
            assert 415 == (await wire.answer()).status
        assert await is_served(service, served)


async def test_readers_are_counted_per_route() -> None:
    """Two routes of one session each have their 64 readers."""
    async with serving_slow_readers(own_server) as (service, session, _, readers):
        async with own_server(session) as other, Wire(other) as wire:
            await asking(wire, service.callback("genuine"))
            assert await finishes(wire, service)

        assert all([await finishes(reader, service) for reader in readers])
