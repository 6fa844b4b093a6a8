"""Callbacks over HTTP: the same answers from every server, and what is decided when."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import socket

import aiohttp
import attrs
import pytest
from aiohttp import web

from fakes import KEY, FakeService, counted, track
from kie_wav_async import WavSession
from kie_wav_async.errors import CallbackFormatError, SessionClosedError, SignatureError
from kie_wav_async.testing import FakeClock, ScriptedTransport
from kie_wav_async.webhook import (
    CallbackServer,
    add_callback_route,
    asgi_app,
    capped_server,
    request_handler,
)
from receivers import (
    PARSERS,
    RECEIVERS,
    Served,
    Wire,
    embedded,
    own_server,
    run_aiohttp,
    until,
)

RECEIVED = b'{"status":"received"}'
LIMIT = 65_536


def make_service() -> FakeService:
    """Return a service that converts nothing before the test is over."""
    return FakeService(FakeClock(), conversion_s=3_600.0)


@attrs.frozen
class Seen:
    """What a client makes of an answer."""

    status: int
    body: bytes
    kind: str | None = None
    allow: str | None = None


OK = Seen(200, RECEIVED, "application/json")


async def ask(http: aiohttp.ClientSession, served: Served, *, query: str = "", **how) -> Seen:
    """Send a request with a real client."""
    method = how.pop("method", "POST")
    url = f"{served.url}?{query}" if query else served.url
    async with http.request(method, url, allow_redirects=False, **how) as answer:
        headers = answer.headers
        return Seen(
            answer.status, await answer.read(), headers.get("Content-Type"), headers.get("Allow")
        )


# --- the table ------------------------------------------------------------------------------


@pytest.mark.parametrize("receiver", RECEIVERS.values(), ids=RECEIVERS)
async def test_every_server_gives_these_answers(receiver) -> None:
    """Each kind of delivery gets the same answer from each server."""
    service = make_service()
    async with (
        service.listening() as session,
        receiver(session) as served,
        aiohttp.ClientSession() as http,
    ):
        await session.submit(track(1))
        await session.submit(track(2))
        first, second = service.callback("task0001"), service.callback("task0002")
        stranger = service.callback("nobody")
        broken = {name: value for name, value in stranger.headers.items() if "Time" not in name}
        long = json.dumps({"taskId": "nobody", "pad": "x" * LIMIT}).encode()[:LIMIT]

        def of(delivery, **how):
            given = {"headers": delivery.headers, "data": delivery.body, "query": delivery.query}
            return ask(http, served, **{**given, **how})

        answers = {
            "settles": await of(first),
            "duplicate": await of(first),
            "failure": await of(second.saying(code=501)),
            "no attempt": await of(second, query=""),
            "unknown task": await of(stranger),
            "no headers": await of(stranger, headers={}),
            "one header": await of(stranger, headers=broken),
            "another key": await of(service.callback("nobody", key="another-key-of-whom")),
            "stale": await of(service.callback("nobody", at_s=-301)),
            "ahead": await of(service.callback("nobody", at_s=301)),
            "another task": await of(stranger, data=second.body),
            "no body": await of(stranger, data=b""),
            "no JSON": await of(stranger, data=b"taskId=nobody"),
            "no task": await of(stranger, data=b"{}"),
            "the longest": await of(stranger, data=long),
            "GET": await of(stranger, method="GET", data=None),
            "HEAD": await of(stranger, method="HEAD", data=None),
            "PUT": await of(stranger, method="PUT"),
            "OPTIONS": await of(stranger, method="OPTIONS", data=None),
            "gzip": await of(
                stranger,
                data=gzip.compress(stranger.body),
                headers={**stranger.headers, "Content-Encoding": "gzip"},
            ),
            "identity": await of(
                stranger, headers={**stranger.headers, "content-encoding": "identity"}
            ),
        }
        figures = counted(session)
        service.finish("task0002")  # For the poll that the hints have caused.

    taken = ("settles", "duplicate", "failure", "no attempt", "unknown task", "identity")
    assert dict.fromkeys(taken, OK) == {name: answers.pop(name) for name in taken}
    empty = {name: (seen.status, seen.body, seen.allow) for name, seen in answers.items()}
    assert {
        **dict.fromkeys(
            ["no headers", "one header", "another key", "stale", "ahead", "another task"],
            (401, b"", None),
        ),
        **dict.fromkeys(["no body", "no JSON", "no task", "the longest"], (400, b"", None)),
        **dict.fromkeys(["GET", "HEAD", "PUT", "OPTIONS"], (405, b"", "POST")),
        "gzip": (415, b"", None),
    } == empty
    assert figures["settled_by_callback"] == 1
    assert (
        figures["duplicate_results"],
        figures["unknown_task_callbacks"],
        figures["rejected_callbacks"],
    ) == (1, 2, 10)


@pytest.mark.parametrize("receiver", RECEIVERS.values(), ids=RECEIVERS)
async def test_a_closed_session_is_unavailable(receiver) -> None:
    """A delivery to a session that has been closed is answered 503, genuine or not."""
    service = make_service()
    session = service.listening()
    async with receiver(session) as served, aiohttp.ClientSession() as http:
        async with session:
            pass
        genuine = service.callback("nobody")

        answers = [
            await ask(http, served, headers=genuine.headers, data=genuine.body),
            await ask(http, served, data=b"nonsense"),
        ]

    assert [(503, b"")] * 2 == [(seen.status, seen.body) for seen in answers]


@pytest.mark.parametrize("receiver", PARSERS.values(), ids=PARSERS)
async def test_the_answer_does_not_tell_whether_keys_are_set(receiver) -> None:
    """Without a key every readable callback is answered as an authentic one is."""
    service = make_service()
    async with (
        service.session(callback_url="https://e.example/c", webhook_keys=()) as session,
        receiver(session) as served,
        aiohttp.ClientSession() as http,
    ):
        signed = service.callback("nobody")

        assert OK == await ask(http, served, headers=signed.headers, data=signed.body)
        assert OK == await ask(http, served, data=signed.body)
        assert 400 == (await ask(http, served, data=b"{}")).status


@pytest.mark.parametrize("receiver", PARSERS.values(), ids=PARSERS)
async def test_all_that_is_authentic_looks_the_same(receiver) -> None:
    """The answers to a settling, a hinting, a doubled and an unknown callback differ in no byte."""
    service = make_service()
    async with service.listening() as session, receiver(session) as served:
        await session.submit(track(1))
        await session.submit(track(2))
        deliveries = [
            service.callback("task0001"),
            service.callback("task0001"),
            service.callback("task0002", None),
            service.callback("nobody"),
        ]
        answers = []
        async with Wire(served) as wire:
            for delivery in deliveries:
                await wire.post(delivery.headers, delivery.body, query=delivery.query)
                answers.append(await wire.answer())
        service.finish("task0002")

    for answer in answers:
        assert answer.headers.pop("date")
    assert 200 == answers[0].status
    assert [answers[0]] * 4 == answers


@pytest.mark.parametrize("receiver", PARSERS.values(), ids=PARSERS)
async def test_all_that_is_not_authentic_looks_the_same(receiver) -> None:
    """The answers to each reason for a refusal differ in no byte."""
    service = make_service()
    async with service.listening() as session, receiver(session) as served:
        genuine = service.callback("nobody")
        tampered = [
            {},
            {**genuine.headers, "X-Webhook-Timestamp": "yesterday"},
            {**genuine.headers, "X-Webhook-Signature": "short"},
            {**genuine.headers, "X-Webhook-Signature": "A" * 44},
            service.callback("nobody", at_s=-400).headers,
        ]
        answers = []
        for headers in tampered:
            async with Wire(served) as wire:
                await wire.post(headers, genuine.body)
                answers.append(await wire.answer())

    for answer in answers:
        assert answer.headers.pop("date")
    assert 401 == answers[0].status
    assert [answers[0]] * len(tampered) == answers


# --- what reaches the session ---------------------------------------------------------------


class Ear(WavSession):
    """A session that keeps what it is given, and does what it is told."""

    def __init__(self, act=None) -> None:
        super().__init__(KEY)
        self.given: list[tuple[object, bytes, object]] = []
        self._act = act

    async def handle_callback(self, headers, body, *, query="") -> None:
        self.given.append((headers, body, query))
        if self._act is not None:
            await self._act(body)


@pytest.mark.parametrize("receiver", RECEIVERS.values(), ids=RECEIVERS)
async def test_the_query_arrives_byte_for_byte(receiver) -> None:
    """The session is given the query as it was sent, in whatever spelling."""
    queries = [
        "attempt=" + "0" * 32,
        "%61ttempt=%30&x=%2F%2f+%20&&=&a=b=c?d",
        "a=%ff%C3%A4&sig=a+b/c==&b[]=1;c",
        "",
    ]
    session = Ear()
    async with receiver(session) as served:
        for query in queries:
            async with Wire(served) as wire:
                await wire.post({}, b"{}", query=query)
                assert 200 == (await wire.answer()).status

    heard = [query.encode() if isinstance(query, str) else query for _, _, query in session.given]
    assert [query.encode() for query in queries] == heard


@pytest.mark.parametrize("receiver", RECEIVERS.values(), ids=RECEIVERS)
async def test_the_headers_arrive_one_by_one(receiver) -> None:
    """The session sees a header that was sent twice as two, and the body as it was sent."""
    session = Ear()
    body = b'\x00\xff{"a": 1}\r\n\r\n'
    async with receiver(session) as served, Wire(served) as wire:
        await wire.post([("X-Twice", "1"), ("x-tWICE", b"\xff")], body)
        assert 200 == (await wire.answer()).status

    ((headers, given, _),) = session.given
    assert [b"1", b"\xff"] == [value for name, value in headers if name.lower() == b"x-twice"]
    assert body == given


# --- when something goes wrong inside -------------------------------------------------------


async def forever(_: bytes) -> None:
    """Wait for what never comes."""
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("receiver", PARSERS.values(), ids=PARSERS)
async def test_an_unforeseen_error_tells_nothing(receiver, caplog) -> None:
    """An error nobody foresaw is answered 500 without a word, and logged without the request."""

    async def fail(body: bytes) -> None:
        raise LookupError(body)

    async with receiver(Ear(fail)) as served, Wire(served) as wire:
        await wire.post({"X-Planted": "PLANTED"}, b"PLANTED", query="PLANTED")
        answer = await wire.answer()

    assert (500, b"") == (answer.status, answer.body)
    (record,) = [record for record in caplog.records if record.name == "kie_wav_async"]
    assert logging.ERROR == record.levelno
    assert "LookupError" in record.getMessage()
    assert "in fail" in record.getMessage()
    assert "PLANTED" not in caplog.text


async def test_a_session_not_entered_is_named(caplog) -> None:
    """A route to a session that was never entered answers 500, and the log says what to do."""
    service = make_service()
    callback = service.callback("nobody")
    async with embedded(service.listening()) as served, Wire(served) as wire:
        await wire.post(callback.headers, callback.body)
        answer = await wire.answer()

    assert 500 == answer.status
    assert "async with" in caplog.text


async def busily(_: bytes) -> None:
    """Let others have their turns for long, and wait for nothing."""
    for _ in range(10_000):
        await asyncio.sleep(0)


@pytest.mark.parametrize("act", [forever, busily])
@pytest.mark.parametrize("receiver", PARSERS.values(), ids=PARSERS)
async def test_a_slow_session_does_not_hold_up_the_answer(
    receiver, act, monkeypatch, caplog
) -> None:
    """A session that takes too long is cancelled, and the peer told to come again."""
    monkeypatch.setattr(request_handler, "HANDLE_TIMEOUT_S", 0.0)

    async with receiver(Ear(act)) as served, Wire(served) as wire:
        await wire.post({}, b"PLANTED", query="PLANTED")
        answer = await wire.answer()

    assert (503, b"") == (answer.status, answer.body)
    assert "took too long" in caplog.text
    assert "PLANTED" not in caplog.text


async def test_a_session_that_waits_a_little_is_waited_for() -> None:
    """A delivery that is not done at once is answered once it is, and by what became of it."""
    outcomes = [None, SignatureError(reason="stale"), CallbackFormatError("x"), None]

    async def wait(_: bytes) -> None:
        await asyncio.sleep(0)
        soon = asyncio.get_running_loop().create_future()
        soon.get_loop().call_soon(soon.set_result, None)
        await soon
        failed = asyncio.get_running_loop().create_future()
        failed.set_exception(KeyError("x"))
        with contextlib.suppress(KeyError):
            await asyncio.shield(failed)
        if (error := outcomes.pop(0)) is not None:
            raise error

    async with own_server(Ear(wait)) as served:
        statuses = []
        for _ in range(4):
            async with Wire(served) as wire:
                await wire.post({}, b"{}")
                statuses.append((await wire.answer()).status)

    assert [200, 401, 400, 200] == statuses


async def test_the_session_is_told_when_its_server_is_stopped(monkeypatch) -> None:
    """A delivery that waits when the server stops is cancelled, and not forgotten."""
    monkeypatch.setattr(capped_server, "SHUTDOWN_TIMEOUT_S", 0.01)
    told = []

    async def wait(_: bytes) -> None:
        try:
            await forever(b"")
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    session = Ear(wait)
    async with contextlib.AsyncExitStack() as stack:
        async with own_server(session) as served:
            wire = await stack.enter_async_context(Wire(served))
            await wire.post({}, b"{}")
            await until(lambda: session.given)
        assert await wire.is_closed()
        await until(lambda: told)

    assert ["cancelled"] == told


def test_the_limits() -> None:
    """A body may take 10 s and an answer 12 s, and 64 bodies are read at a time."""
    assert (10.0, 12.0) == (
        request_handler.READ_TIMEOUT_S,
        request_handler.READ_TIMEOUT_S + request_handler.HANDLE_TIMEOUT_S,
    )
    assert 64 == request_handler.MAX_READS


# --- setting up -----------------------------------------------------------------------------


WRONG = {
    "session": lambda: add_callback_route(web.Application(), "session"),
    "class": lambda: add_callback_route(web.Application(), WavSession),
    "app": lambda: add_callback_route("app", WavSession(KEY)),
    "path": lambda: add_callback_route(web.Application(), WavSession(KEY), 7),
    "asgi": lambda: asgi_app(None),
    "server": lambda: CallbackServer(None),
    "port": lambda: CallbackServer(WavSession(KEY), port="8080"),
    "host": lambda: CallbackServer(WavSession(KEY), host=None),
    "sock": lambda: CallbackServer(WavSession(KEY), sock=8080),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_refused_at_once(make) -> None:
    """What cannot work is a ``TypeError`` when it is set up, not at the first callback."""
    with pytest.raises(TypeError):
        make()


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_port_has_bounds(port: int) -> None:
    """A port that is none is refused by name."""
    with pytest.raises(ValueError, match=str(port)):
        CallbackServer(WavSession(KEY), port=port)


def test_a_path_begins_with_a_slash() -> None:
    """A route whose path is none is refused."""
    with pytest.raises(ValueError, match="/"):
        add_callback_route(web.Application(), WavSession(KEY), "kie/callback")


async def test_a_route_may_be_anywhere() -> None:
    """The route answers at the path it was given and nowhere else."""
    app = web.Application()
    session = Ear()
    add_callback_route(app, session, "/hooks/kie")
    async with run_aiohttp(app) as served, aiohttp.ClientSession() as http:
        assert 404 == (await ask(http, served, data=b"{}")).status
        assert 200 == (await ask(http, Served(served.port, "/hooks/kie"), data=b"{}")).status

    assert 1 == len(session.given)


async def test_other_routes_are_left_alone() -> None:
    """An application goes on answering everything else as before."""

    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    add_callback_route(app, Ear())
    async with run_aiohttp(app) as served, aiohttp.ClientSession() as http:
        seen = await ask(http, Served(served.port, "/"), method="GET")

    assert (200, b"hello") == (seen.status, seen.body)


# --- a server of our own --------------------------------------------------------------------


async def test_a_server_has_a_port_while_it_runs() -> None:
    """``port`` is the one that is listened on, and asking a server that does not run is refused."""
    server = CallbackServer(Ear())
    with pytest.raises(RuntimeError, match="async with"):
        _ = server.port
    async with server, Wire(Served(server.port)) as wire:
        await wire.post({}, b"{}")
        assert 200 == (await wire.answer()).status
    with pytest.raises(RuntimeError, match="async with"):
        _ = server.port


async def test_a_server_listens_on_a_socket_it_is_given() -> None:
    """A socket of one's own is listened on, and closed with the server."""
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    async with CallbackServer(Ear(), sock=sock) as server, Wire(Served(port)) as wire:
        assert port == server.port
        await wire.post({}, b"{}")
        assert 200 == (await wire.answer()).status

    assert -1 == sock.fileno()


async def test_a_server_serves_once() -> None:
    """Entering a server a second time is refused, and leaving it twice does nothing."""
    server = CallbackServer(Ear())
    async with server:
        with pytest.raises(RuntimeError, match="once"):
            await server.__aenter__()
        assert server.port
    await server.aclose()
    with pytest.raises(RuntimeError, match="once"):
        await server.__aenter__()


async def test_a_port_that_is_taken() -> None:
    """A server that cannot listen says so on entering, and leaves nothing open."""
    async with CallbackServer(Ear()) as server:
        with pytest.raises(OSError, match=str(server.port)):
            async with CallbackServer(Ear(), port=server.port):
                pass


async def test_a_port_is_free_again() -> None:
    """Once a server is left nobody listens on its port."""
    async with CallbackServer(Ear()) as server:
        served = Served(server.port)
    with pytest.raises(ConnectionRefusedError):
        async with Wire(served):
            pass


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PATCH", "PROPFIND"])
async def test_a_server_takes_posts_only(method: str) -> None:
    """Our own server answers whatever is not a POST with 405, on any path."""
    session = Ear()
    async with own_server(session) as served, aiohttp.ClientSession() as http:
        for path in ("/", "/a/b", served.path):
            seen = await ask(http, Served(served.port, path), method=method)
            assert (405, b"", "POST") == (seen.status, seen.body, seen.allow)

    assert [] == session.given


async def test_a_closing_session_is_unavailable() -> None:
    """While a session waits for its last submits, callbacks are answered 503."""
    service = make_service()
    service.latency_s = 5.0
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(service.listening())
        served = await stack.enter_async_context(own_server(session))
        submit = asyncio.create_task(session.submit(track()))
        await until(lambda: service.on_wire)
        closing = asyncio.create_task(session.aclose())
        callback = service.callback("nobody")
        with pytest.raises(SessionClosedError):
            await submit

        async with Wire(served) as wire:
            await wire.post(callback.headers, callback.body)
            answer = await wire.answer()

        assert not closing.done()
        await service.clock.run(closing)

    assert 503 == answer.status


@pytest.mark.parametrize("step", range(8))
async def test_a_start_that_is_cancelled_leaves_nothing_open(step: int) -> None:
    """Whenever entering is cancelled, nothing listens and nothing is left to warn of."""
    async with WavSession("key", transport=ScriptedTransport([])) as session:
        starting = asyncio.ensure_future(CallbackServer(session).__aenter__())
        for _ in range(step):
            await asyncio.sleep(0)
        starting.cancel()
        try:
            server = await starting
        except asyncio.CancelledError:
            return
        await server.aclose()
