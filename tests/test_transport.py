from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import importlib.metadata
import itertools
import json
import os
import pickle
import random
import re
import socket
import ssl
import traceback
import tracemalloc
from collections import Counter

import aiohttp
import pytest
from yarl import URL

from certificates import SERVER_PEM, TRUSTED_PEM
from kie_wav_async import AiohttpTransport, Track, WavSession
from kie_wav_async._support.secret import Secret
from kie_wav_async.errors import (
    KieWavError,
    TransportError,
    TransportTimeoutError,
    WireFormatError,
)
from kie_wav_async.protocol.requests import RequestBuilder
from kie_wav_async.protocol.responses import parse_submit
from proxy import Plan, Proxy, end_with_reset, http

KEY = "sk-not-to-be-seen-4711"
CALLBACK = "https://kie-wav-async.invalid/callback?attempt=00ff"
MIB = 1 << 20
# What no test waits for; it only ends a hang.
PATIENCE_S = 60.0

OK = http("200 OK", '{"code":200,"msg":"success","data":{"taskId":"t1"}}')
REDIRECTS = ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]


def submit_to(base_url):
    """Return a submit as the session would send it."""
    return RequestBuilder(URL(base_url), Secret(KEY)).submit(Track("5c79", "e231"), CALLBACK)


def read_from(base_url):
    """Return a request that costs nothing."""
    return RequestBuilder(URL(base_url), Secret(KEY)).poll("t1")


REQUESTS = pytest.mark.parametrize("request_to", [submit_to, read_from])


@pytest.fixture(autouse=True)
async def patience():
    """End a test that hangs."""
    loop = asyncio.get_running_loop()

    def give_up():
        for task in asyncio.all_tasks(loop):
            task.cancel()

    end = loop.call_later(PATIENCE_S, give_up)
    yield
    end.cancel()


@contextlib.asynccontextmanager
async def transporting(**settings):
    """Make a transport, and close it."""
    transport = AiohttpTransport(**settings)
    try:
        yield transport
    finally:
        await transport.aclose()


@pytest.fixture
async def transport():
    """Make a transport with the defaults."""
    async with transporting() as made:
        yield made


def answering(answer, **plan):
    """Return a server that answers every request alike."""
    return Proxy(plan=lambda _: Plan(answer=answer, **plan))


def head_of(request):
    """Return the request line and the headers of a request as sent."""
    line, *fields = request.split(b"\r\n\r\n")[0].decode().split("\r\n")
    headers = [tuple(field.split(": ", 1)) for field in fields]
    return line, {name.lower(): value for name, value in headers}


class Tap:
    """A TCP server that keeps every byte and, once it has *after* of them, ends the connection."""

    def __init__(self, after=0, end="fin", context=None):
        self.after = after
        self.end = end
        self.received = 0
        self.connections = 0
        self._peers = set()
        self._context = context
        self._tasks = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def port(self):
        return self._server.sockets[0].getsockname()[1]

    async def settle(self):
        """Wait until every connection so far has been taken and has ended."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        name = writer.get_extra_info("sockname")
        writer.close()
        while name not in self._peers:  # noqa: ASYNC110 - soon, and only here
            await asyncio.sleep(0)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, reader, writer):
        self.connections += 1
        self._peers.add(writer.get_extra_info("peername"))
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader, writer):
        got = 0
        try:
            if self._context is not None:
                await writer.start_tls(self._context)
            while got < self.after or self.end == "stall":
                chunk = await reader.read(max(self.after - got, 1))
                if not chunk:
                    break
                got += len(chunk)
                self.received += len(chunk)
            if self.end == "rst":
                end_with_reset(writer)
        except OSError:
            pass  # The client was first, or did not like us.
        finally:
            writer.close()


def server_context():
    """Return what a server for localhost needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(SERVER_PEM)
    return context


def client_context():
    """Return what a client that trusts it needs."""
    return ssl.create_default_context(cafile=TRUSTED_PEM)


# Requests on the wire


@pytest.mark.parametrize(
    ("call", "line", "body"),
    [
        (
            lambda session: session.get_task("t1&2/ü"),
            "GET /api/v1/wav/record-info?taskId=t1%262%2F%C3%BC HTTP/1.1",
            None,
        ),
        (
            lambda session: session.list_tracks("m1"),
            "GET /api/v1/generate/record-info?taskId=m1 HTTP/1.1",
            None,
        ),
        (lambda session: session.get_credits(), "GET /api/v1/chat/credit HTTP/1.1", None),
        (
            lambda session: session.create_download_url("https://x.invalid/a.wav?b=%2F"),
            "POST /api/v1/common/download-url HTTP/1.1",
            {"url": "https://x.invalid/a.wav?b=%2F"},
        ),
    ],
    ids=["get_task", "list_tracks", "get_credits", "create_download_url"],
)
async def test_read_is_sent_as_documented(call, line, body):
    """A read goes out with the documented method, path, body and headers."""
    async with (
        answering(http("200 OK", '{"code":401,"msg":"no","data":null}')) as server,
        WavSession(KEY, base_url=server.base_url) as session,
    ):
        with contextlib.suppress(KieWavError, ValueError):
            await call(session)

    [request] = server.requests
    sent_line, headers = head_of(request)
    sent_body = request.split(b"\r\n\r\n", 1)[1]
    assert line == sent_line
    assert body == (json.loads(sent_body) if sent_body else None)
    assert f"Bearer {KEY}" == headers["authorization"]
    assert "application/json" == headers["content-type"]


async def test_submit_is_sent_as_documented():
    """A submit goes out with the documented method, path, body and headers, and nothing else."""
    async with (
        answering(OK) as server,
        WavSession(KEY, base_url=server.base_url + "/kie/") as session,
    ):
        await session.submit(Track("5c79", "e231", title="no title is sent"))

    [request] = server.requests
    line, headers = head_of(request)
    body = json.loads(request.split(b"\r\n\r\n", 1)[1])
    assert "POST /kie/api/v1/wav/generate HTTP/1.1" == line
    assert {"taskId": "5c79", "audioId": "e231"} == {
        name: body[name] for name in body.keys() - {"callBackUrl"}
    }
    assert re.fullmatch(
        r"https://[a-z.-]+\.invalid/\S+[?&]attempt=[0-9a-f]{32}", body["callBackUrl"]
    )
    assert {
        "host": server.base_url.removeprefix("http://"),
        "authorization": f"Bearer {KEY}",
        "content-type": "application/json",
        "accept": "application/json",
        "connection": "close",
        "content-length": str(len(request.split(b"\r\n\r\n", 1)[1])),
        "user-agent": f"kie-wav-async/{importlib.metadata.version('kie-wav-async')}",
    } == {name: value for name, value in headers.items() if name != "accept-encoding"}
    assert {"gzip", "deflate"} <= set(headers["accept-encoding"].split(", "))


async def test_submits_share_no_connection_and_reads_share_one(transport):
    """Every submit opens a connection of its own; reads keep theirs."""
    keep = OK.replace(b"Connection: close\r\n", b"")
    async with answering(keep, keeps_open=True) as server:
        for number in range(5):
            await transport.send(submit_to(server.base_url))
            assert number + 1 == server.connections
        for _ in range(5):
            await transport.send(read_from(server.base_url))
            assert 6 == server.connections


async def test_cookies_are_neither_kept_nor_sent(transport):
    """A cookie that the service sets never comes back to it."""
    answer = OK.replace(b"\r\n", b"\r\nSet-Cookie: JSESSIONID=1; Path=/\r\n", 1)
    async with answering(answer) as server:
        for request_to in [submit_to, read_from] * 2:
            await transport.send(request_to(server.base_url))

    assert 4 == len(server.requests)
    assert not any(b"cookie" in request.lower() for request in server.requests)


# Answers


async def test_answer_is_handed_on_as_it_came(transport):
    """Status, body, Retry-After and cf-ray of an answer come through; the body uncompressed."""
    body = gzip.compress(b'{"code":429}')
    headers = ["Content-Encoding: gzip", "Retry-After: 7", "CF-RAY: 9f36107cb8b75f2f-SIN"]
    async with answering(http("429 Too Many", body, *headers)) as server:
        response = await transport.send(submit_to(server.base_url))

    assert 429 == response.status
    assert b'{"code":429}' == response.body
    assert "7" == response.retry_after
    assert "9f36107cb8b75f2f-SIN" == response.request_id


async def test_answer_without_the_headers_has_none(transport):
    """An answer that names no Retry-After and no cf-ray is handed on without."""
    async with answering(OK) as server:
        response = await transport.send(read_from(server.base_url))

    assert (None, None) == (response.retry_after, response.request_id)


@pytest.mark.parametrize(
    ("headers", "date"),
    [
        ((), None),
        (("Date: Wed, 15 Jan 2025 12:00:00 GMT",), "Wed, 15 Jan 2025 12:00:00 GMT"),
        (("date: x",), "x"),
        (("Date: Wed, 15 Jan 2025 12:00:00 GMT", "Date: Wed, 01 Jan 2025 12:00:00 GMT"), None),
    ],
    ids=["none", "one", "another", "two"],
)
async def test_date_is_handed_on_if_there_is_one(transport, headers, date):
    """The Date header comes through as sent; two of them are none."""
    async with answering(http("200 OK", b"{}", *headers)) as server:
        response = await transport.send(submit_to(server.base_url))

    assert date == response.date


@pytest.mark.parametrize("status", REDIRECTS)
@REQUESTS
async def test_redirect_is_not_followed(transport, request_to, status):
    """A redirect is an answer like any other: neither body nor key go where it points."""
    async with Tap() as trap:
        location = f"Location: http://127.0.0.1:{trap.port}/api/v1/wav/generate"
        async with answering(http(status, "", location)) as server:
            response = await transport.send(request_to(server.base_url))

        assert int(status[:3]) == response.status
        assert 1 == len(server.requests)
        assert 0 == trap.connections


class Flood:
    """Writes more and more until the client has had enough, and knows how much that was."""

    def __init__(self, head, chunk, limit=1 << 34):
        self.head = head
        self.chunk = chunk
        self.limit = limit
        self.written = 0

    async def __call__(self, writer):
        writer.write(self.head)
        while self.written < self.limit:
            writer.write(self.chunk)
            await writer.drain()
            self.written += len(self.chunk)


def bomb(size):
    """Return *size* zeros, compressed."""
    return gzip.compress(bytes(size), compresslevel=9)


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNK = b"10000\r\n" + bytes(0x10000) + b"\r\n"
FLOODS = {
    "endless chunks": lambda: Flood(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", CHUNK),
    "no length": lambda: Flood(HEAD + b"\r\n", bytes(0x10000)),
    "great length": lambda: Flood(HEAD + b"Content-Length: 17179869184\r\n\r\n", bytes(0x10000)),
    "500": lambda: Flood(b"HTTP/1.1 500 No\r\nConnection: close\r\n\r\n", bytes(0x10000)),
}


@pytest.mark.parametrize("name", FLOODS)
@REQUESTS
async def test_endless_answer_is_cut_off(transport, request_to, name):
    """Of an answer that does not end little more than 1 MiB is read, and the line is cut."""
    flood = FLOODS[name]()
    async with answering(flood) as server:
        with pytest.raises(WireFormatError, match="1 MiB") as caught:
            await transport.send(request_to(server.base_url))
        # The flood stops because nobody takes it.
        await transport.aclose()
        await server.ended()

    assert caught.value.http_status in {200, 500}
    # What the two ends of a loopback connection buffer comes on top.
    assert flood.written < 32 * MIB


@REQUESTS
async def test_gzip_bomb_is_defused(transport, request_to):
    """A small answer that unpacks to a great one takes no memory to speak of."""
    packed = bomb(256 * MIB)
    answer = http("200 OK", packed, "Content-Encoding: gzip")
    async with answering(answer) as server:
        tracemalloc.start()
        try:
            with pytest.raises(WireFormatError, match="1 MiB"):
                await transport.send(request_to(server.base_url))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert len(packed) < MIB < 256 * MIB
    assert peak < 16 * MIB


@pytest.mark.parametrize("chunked", [False, True])
async def test_answer_of_one_mebibyte_is_read(transport, chunked):
    """An answer of exactly 1 MiB is read whole; one byte more is one too many."""
    for size in (MIB, MIB + 1):
        body = b"x" * size
        if chunked:
            answer = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
            for start in range(0, size, 1 << 14):
                part = body[start : start + (1 << 14)]
                answer += b"%x\r\n%s\r\n" % (len(part), part)
            answer += b"0\r\n\r\n"
        else:
            answer = http("200 OK", body)
        async with answering(answer) as server:
            if size == MIB:
                assert body == (await transport.send(read_from(server.base_url))).body
            else:
                with pytest.raises(WireFormatError):
                    await transport.send(read_from(server.base_url))


async def test_connection_with_an_overlong_answer_is_not_used_again(transport):
    """What is left of an answer that was too long is not taken for the next one."""
    answers = [HEAD + b"Content-Length: 2097152\r\n\r\n" + bytes(2 * MIB), OK]
    async with Proxy(plan=lambda _: Plan(answer=answers.pop(0), keeps_open=True)) as server:
        with pytest.raises(WireFormatError):
            await transport.send(read_from(server.base_url))
        response = await transport.send(read_from(server.base_url))

    assert 200 == response.status
    assert 2 == server.connections


GZIPPED = http("200 OK", gzip.compress(b'{"code":200}' * 9), "Content-Encoding: gzip")


async def test_hostile_answers_are_answers_or_errors_of_ours(transport):
    """Whatever bytes come back, the transport returns a response or raises one of our errors."""
    chance = random.Random(4711)  # noqa: S311 - repeatable, guards nothing
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"
    answers = [
        b"",
        b"\x00" * 99,
        b"HTTP/1.1 200" + b"a" * 99_999,
        HEAD * 999,
        HEAD + b"A: b\r\n" * 999,
    ]
    answers += [
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 100 Go\r\n\r\n" * 9,
        b"HTTP/1.1 204 No\r\n\r\n",
    ]
    answers += [
        http("200 OK", "x", f"Content-Encoding: {name}") for name in ("br", "zstd", "x", "gzip")
    ]
    for _ in range(300):
        answer = bytearray(chance.choice([OK, GZIPPED, chunked]))
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(answer))
            answer[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        answers.append(bytes(answer))
    left = iter(answers)
    ends = 0
    async with Proxy(plan=lambda _: Plan(answer=next(left, OK))) as server:
        for request_to in itertools.islice(itertools.cycle([submit_to, read_from]), len(answers)):
            with contextlib.suppress(TransportError, WireFormatError):
                assert 100 <= (await transport.send(request_to(server.base_url))).status
            ends += 1

    assert len(answers) == ends


# May it have been sent?


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("after", [1, 17, 300])
async def test_submit_received_in_part_may_have_been_sent(transport, end, after):
    """Once the service has a byte of a submit, the submit may have been sent."""
    async with Tap(after, end) as tap:
        with pytest.raises(TransportError) as caught:
            await transport.send(submit_to(f"http://127.0.0.1:{tap.port}"))

        assert after == tap.received
        assert caught.value.maybe_sent
        assert "may have been received" in str(caught.value)


async def test_submit_that_was_read_but_not_answered_may_have_been_sent(monkeypatch):
    """A submit that timed out in silence may have been sent; the error is a TimeoutError too."""
    monkeypatch.setattr(
        "kie_wav_async.http.transport.SUBMIT_TIMEOUT", aiohttp.ClientTimeout(total=0.05)
    )
    async with Tap(end="stall") as tap, transporting() as transport:
        with pytest.raises(TimeoutError) as caught:
            await transport.send(submit_to(f"http://127.0.0.1:{tap.port}"))

        assert 0 < tap.received
    assert isinstance(caught.value, TransportTimeoutError)
    assert caught.value.maybe_sent


def closed_port():
    """Return a port nobody listens at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


async def test_refused_connection_has_sent_nothing(transport):
    """A submit whose connection is refused was provably not sent."""
    with pytest.raises(TransportError, match="no byte") as caught:
        await transport.send(submit_to(f"http://127.0.0.1:{closed_port()}"))

    assert not caught.value.maybe_sent


async def test_name_without_address_has_sent_nothing(transport, monkeypatch):
    """A submit to a name that has no address was provably not sent."""

    def find_nothing(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", find_nothing)
    with pytest.raises(TransportError, match="no byte") as caught:
        await transport.send(submit_to("https://api.nowhere.invalid"))

    assert not caught.value.maybe_sent


async def test_connection_that_takes_too_long_has_sent_nothing(monkeypatch):
    """A submit that timed out before its connection stood was provably not sent."""
    monkeypatch.setattr(
        "kie_wav_async.http.transport.SUBMIT_TIMEOUT", aiohttp.ClientTimeout(total=60, connect=0.05)
    )
    # It takes the TLS client's greeting, and never answers it.
    async with Tap(end="stall") as tap, transporting() as transport:
        with pytest.raises(TransportTimeoutError, match="no byte") as caught:
            await transport.send(submit_to(f"https://127.0.0.1:{tap.port}"))

        assert 1 == tap.connections
    assert not caught.value.maybe_sent


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, KEY), os.strerror(errno.ECONNREFUSED)),
        (OSError(errno.ENETUNREACH, KEY), os.strerror(errno.ENETUNREACH)),
        (OSError(KEY), "ClientConnectorError"),
    ],
    ids=["refused", "unreachable", "unnumbered"],
)
async def test_failed_connection_has_the_words_of_the_system(transport, monkeypatch, error, words):
    """A connection that was not made says why, in the system's words."""

    async def fail(*_, **__):
        raise error

    monkeypatch.setattr("aiohttp.connector.aiohappyeyeballs.start_connection", fail)
    for request_to in (submit_to, read_from):
        with pytest.raises(TransportError) as caught:
            await transport.send(request_to("http://127.0.0.1:1"))

        assert words in str(caught.value)
        assert KEY not in str(caught.value)


async def test_name_without_address_says_so(transport, monkeypatch):
    """A name that has no address is told as that."""

    def find_nothing(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", find_nothing)
    with pytest.raises(TransportError, match="Name or service not known"):
        await transport.send(read_from("https://api.nowhere.invalid"))


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n"])
async def test_read_without_an_answer_says_what_to_do(transport, answer):
    """A read may be repeated, so its error advises that and tells nothing of bytes that left."""
    async with answering(answer) as server:
        with pytest.raises(TransportError) as caught:
            await transport.send(read_from(server.base_url))

    assert answer == b"" or "(cannot be read as HTTP)" in str(caught.value)
    assert "check the network and ask again" == caught.value.advice
    assert "received" not in str(caught.value)
    assert caught.value.maybe_sent


@pytest.mark.parametrize("server_tls", [True, False])
async def test_failed_handshake_has_sent_nothing(transport, server_tls):
    """A submit to a stranger, or to one who speaks no TLS, was provably not sent."""
    async with Tap(0, "fin", server_context() if server_tls else None) as tap:
        with pytest.raises(TransportError, match="no byte") as caught:
            await transport.send(submit_to(f"https://localhost:{tap.port}"))

        assert 0 == tap.received
    assert not caught.value.maybe_sent
    assert server_tls == ("certificate" in str(caught.value))


async def test_certificate_of_ones_own_is_taken():
    """With a context that trusts it, a service with a certificate of its own is used."""
    async with transporting(ssl=client_context()) as transport:

        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            writer.close()

        async with await asyncio.start_server(
            serve, "127.0.0.1", 0, ssl=server_context()
        ) as server:
            port = server.sockets[0].getsockname()[1]
            response = await transport.send(submit_to(f"https://localhost:{port}"))

    assert 200 == response.status


@contextlib.asynccontextmanager
async def wire_cut(target, bytes_up, end):
    """Forward TCP to *target*, and cut the line when the client has sent *bytes_up* bytes."""
    tasks = set()

    async def pump(reader, writer, left):
        while left and (chunk := await reader.read(min(left, 1 << 16))):
            writer.write(chunk)
            left -= len(chunk)

    async def serve(reader, writer):
        up = await asyncio.open_connection("127.0.0.1", target)
        down = asyncio.get_running_loop().create_task(pump(up[0], writer, 1 << 30))
        try:
            with contextlib.suppress(ConnectionError):
                await pump(reader, up[1], bytes_up)
        finally:
            down.cancel()
            await asyncio.gather(down, return_exceptions=True)
            for one in (writer, up[1]):
                if end == "rst":
                    end_with_reset(one)
                one.close()

    def accept(reader, writer):
        task = asyncio.get_running_loop().create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_cut_of_tls_is_never_taken_for_unsent_wrongly(end):
    """Wherever a TLS connection is cut, a submit of which a byte arrived may have been sent."""
    fates = set()
    async with transporting(ssl=client_context()) as transport:
        for bytes_up in range(0, 1400, 37):
            async with (
                Tap(300, "fin", server_context()) as tap,
                wire_cut(tap.port, bytes_up, end) as port,
            ):
                with pytest.raises(TransportError) as caught:
                    await transport.send(submit_to(f"https://localhost:{port}"))
            # The tap has read all that it will.
            assert caught.value.maybe_sent or not tap.received, bytes_up
            fates.add((caught.value.maybe_sent, bool(tap.received)))

    assert (False, False) in fates


async def test_no_submit_of_which_a_byte_arrived_counts_as_unsent():
    """Over many random cuts and cancellations: where a byte arrived, no error says otherwise."""
    chance = random.Random(4711)  # noqa: S311 - repeatable, guards nothing
    fates = Counter()
    async with Tap() as tap, transporting() as transport:
        for _ in range(300):
            tap.received = 0
            tap.after = chance.choice([0, 1, chance.randrange(300)])
            tap.end = chance.choice(["fin", "rst"])
            port = tap.port if chance.random() < 0.9 else closed_port()
            send = asyncio.ensure_future(transport.send(submit_to(f"http://127.0.0.1:{port}")))
            if chance.random() < 0.5:
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
                send.cancel()
            [error] = await asyncio.gather(send, return_exceptions=True)
            await tap.settle()
            assert isinstance(error, TransportError | asyncio.CancelledError)
            fates[getattr(error, "maybe_sent", None), tap.received > 0] += 1

    assert 0 == fates[False, True]
    # All the others were met.
    assert {(False, False), (True, True), (True, False), (None, True), (None, False)} <= set(fates)


# Settings


@pytest.mark.parametrize("value", [False, None, 0, 1, "yes", aiohttp.Fingerprint(bytes(32))])
def test_check_of_certificates_cannot_be_switched_off(value):
    """For `ssl` there are True and a context of one's own, and nothing else."""
    with pytest.raises(TypeError, match="ssl"):
        AiohttpTransport(ssl=value)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "proxy",
        "proxy:3128",
        "socks5://127.0.0.1:1080",
        "http://",
        "http://a:b@:1",
        "http://x:99999",
    ],
)
def test_proxy_that_cannot_be_one_is_refused_at_once(value):
    """A proxy is an absolute http(s) URL, or the constructor says so; its password stays unsaid."""
    with pytest.raises(ValueError, match="proxy") as caught:
        AiohttpTransport(proxy=value)

    assert "a:b" not in str(caught.value)


def test_proxy_of_another_type_is_refused_at_once():
    """A proxy is a str or a URL."""
    with pytest.raises(TypeError, match="proxy"):
        AiohttpTransport(proxy=3128)


# Proxies


async def test_proxy_is_asked_for_everything():
    """With a proxy all requests go there, in the form for proxies, with the proxy's password."""
    async with answering(OK) as server:
        address = URL(server.base_url).with_user("me").with_password("hush")
        async with transporting(proxy=address) as transport:
            for request_to in (submit_to, read_from):
                response = await transport.send(request_to("http://api.invalid"))
                assert 200 == response.status

    lines = [head_of(request) for request in server.requests]
    assert "POST http://api.invalid/api/v1/wav/generate HTTP/1.1" == lines[0][0]
    assert "GET http://api.invalid/api/v1/wav/record-info?taskId=t1 HTTP/1.1" == lines[1][0]
    for _, headers in lines:
        assert "Basic bWU6aHVzaA==" == headers["proxy-authorization"]
        assert f"Bearer {KEY}" == headers["authorization"]


@contextlib.asynccontextmanager
async def tunnel(target):
    """Run a forward proxy that connects everybody to *target*; yield its address and its log."""
    log = []

    async def pump(reader, writer):
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(1 << 16):
                writer.write(chunk)
        writer.close()

    async def serve(reader, writer):
        log.append(await reader.readuntil(b"\r\n\r\n"))
        up = await asyncio.open_connection("127.0.0.1", target)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(reader, up[1]), pump(up[0], writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", log
    finally:
        server.close()
        await server.wait_closed()


async def test_tls_goes_through_a_proxy_unread():
    """Through a proxy, https is a tunnel: the proxy learns the host and nothing of the key."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context()) as server:
        port = server.sockets[0].getsockname()[1]
        async with (
            tunnel(port) as (address, log),
            transporting(proxy=address, ssl=client_context()) as transport,
        ):
            response = await transport.send(submit_to(f"https://localhost:{port}"))

    assert 200 == response.status
    assert 1 == len(log)
    assert log[0].startswith(f"CONNECT localhost:{port} HTTP/1.1\r\n".encode())
    assert KEY.encode() not in log[0]


@pytest.mark.parametrize(
    "answer", [http("407 Who are you"), http("502 No"), b"", b"\x00\x01\r\n\r\n"]
)
async def test_proxy_that_makes_no_tunnel_has_sent_nothing(answer):
    """A submit whose tunnel the proxy did not make was provably not sent."""
    async with answering(answer) as server, transporting(proxy=server.base_url) as transport:
        with pytest.raises(TransportError, match="no byte") as caught:
            await transport.send(submit_to("https://api.invalid"))

    assert not caught.value.maybe_sent
    assert f"the proxy {server.base_url}" in str(caught.value)
    assert answer[:10] != b"HTTP/1.1 5" or "HTTP 502" in str(caught.value)
    assert KEY.encode() not in b"".join(server.requests)


@REQUESTS
async def test_proxy_that_does_not_know_us(request_to):
    """A 407 is the proxy's answer, not the service's, and is told as such."""
    async with answering(http("407 Who are you")) as server:
        address = URL(server.base_url).with_user("me").with_password("hush")
        async with transporting(proxy=address) as transport:
            with pytest.raises(TransportError, match="answered HTTP 407: its user") as caught:
                await transport.send(request_to("http://api.invalid"))

    assert "hush" not in str(caught.value)
    assert str(server.base_url) in str(caught.value)


@REQUESTS
@pytest.mark.parametrize("answer", [b"", http("407 Who are you"), http("502 No"), OK])
async def test_password_of_the_proxy_is_in_no_frame(request_to, answer):
    """What an error tracker sees of the frames of a failed request has no proxy's password."""
    async with answering(answer) as server:
        address = URL(server.base_url).with_user("me").with_password("hush")
        async with transporting(proxy=address) as transport:
            with pytest.raises(TransportError) as caught:
                await transport.send(request_to("https://api.invalid"))

    frames = [entry.frame.f_locals for entry in caught.traceback if "tests" not in str(entry.path)]
    assert frames
    assert not [values for values in frames if "hush" in repr(values)]


async def test_proxy_that_hangs_up():
    """An answer that does not come is told with the proxy that it was asked for through."""
    async with answering(b"") as server:
        address = URL(server.base_url).with_user("me").with_password("hush")
        async with transporting(proxy=address) as transport:
            with pytest.raises(TransportError, match="through the proxy") as caught:
                await transport.send(read_from("http://api.invalid"))

    assert "hush" not in str(caught.value)


async def test_certificate_of_the_proxy_itself():
    """A certificate that does not hold is told as that of whom it is: the proxy's."""
    async with Tap(0, "fin", server_context()) as tap:
        address = f"https://localhost:{tap.port}"
        async with transporting(proxy=address) as transport:
            with pytest.raises(TransportError) as caught:
                await transport.send(submit_to("https://api.invalid"))

    assert f"the certificate of the proxy {address} does not hold" in str(caught.value)
    assert not caught.value.maybe_sent


async def test_environment_is_trusted_only_if_told(monkeypatch, tmp_path):
    """Proxies of the environment are used with `trust_env=True` only, whatever .netrc says."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login other password other\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with answering(OK) as server, answering(OK) as proxy:
        monkeypatch.setenv("http_proxy", proxy.base_url)
        for trust_env in (False, True):
            async with transporting(trust_env=trust_env) as transport:
                await transport.send(submit_to(server.base_url))

    assert (1, 1) == (len(server.requests), len(proxy.requests))
    assert f"Bearer {KEY}" == head_of(proxy.requests[0])[1]["authorization"]


@pytest.mark.parametrize(
    ("no_proxy", "direct"),
    [
        ("*", True),
        ("localhost", True),
        ("kie.ai, .localhost", True),
        ("LOCALHOST", True),
        ("localhost:{port}", True),
        ("localhost:1", False),
        ("host", False),
        ("a.localhost", False),
        (" , .", False),
        ("", False),
    ],
)
async def test_environment_may_except_hosts_from_its_proxy(monkeypatch, no_proxy, direct):
    """A host in no_proxy, or below one, is asked directly; all others through the proxy."""
    async with answering(OK) as server, answering(OK) as proxy:
        base_url = URL(server.base_url).with_host("localhost")
        monkeypatch.setenv("http_proxy", proxy.base_url.removeprefix("http://"))
        monkeypatch.setenv("no_proxy", no_proxy.format(port=base_url.port))
        async with transporting(trust_env=True) as transport:
            await transport.send(submit_to(base_url))

    assert (direct, not direct) == (bool(server.requests), bool(proxy.requests))


def test_proxy_of_the_environment_that_cannot_be_one_is_refused_at_once(monkeypatch):
    """A proxy of the environment that is no URL is named when the transport is made."""
    monkeypatch.setenv("https_proxy", "socks5://me:hush@127.0.0.1")
    with pytest.raises(ValueError, match="https_proxy") as caught:
        AiohttpTransport(trust_env=True)

    assert "hush" not in str(caught.value)
    AiohttpTransport(trust_env=True, proxy="http://127.0.0.1:3128")


# Secrets


def everything_said(error):
    """Return all the text that an error, its causes and their parts can be made to show."""
    said = []
    todo = [error]
    while todo:
        one = todo.pop()
        said += [str(one), repr(one), repr(one.args), repr(vars(one))]
        said += traceback.format_exception(one)
        todo += [other for other in (one.__cause__, one.__context__) if other is not None]
    return "\n".join(said)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\x01\x02\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"a" * 99_999 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        http("200 OK", "no gzip", "Content-Encoding: gzip"),
        http("407 Who are you"),
        http(f"407 {KEY} hush-hush"),
        *(
            line.replace(b"KEY", f"{KEY} hush-hush".encode())
            for line in (
                b"HTTP/1.1 abc KEY\r\n\r\n",
                b"KEY\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: KEY\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nA KEY: b\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nA: \x00KEY\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nKEY\r\n",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\naKEY\r\n",
                b"HTTP/1.1 100 KEY\r\n\r\nKEY",
                b"HTTP/1.1 200 KEY\r\nContent-Length: 99\r\nA: KEY\r\n\r\nKEY",
            )
        ),
        http("200 OK", f"{KEY} hush-hush", "Content-Encoding: gzip"),
    ],
    ids=itertools.count(),
)
@pytest.mark.parametrize("through", [None, "http", "https"])
@REQUESTS
async def test_errors_do_not_carry_the_key(request_to, answer, through):
    """Neither an error nor any cause of it shows the API key or the proxy's password."""
    async with answering(answer) as server:
        proxy = None
        if through is not None:
            proxy = URL(server.base_url).with_user("me").with_password("hush-hush")
        base_url = server.base_url if through is None else f"{through}://api.invalid"
        async with transporting(proxy=proxy) as transport:
            with pytest.raises(KieWavError) as caught:
                parse_submit(await transport.send(request_to(base_url)))
            said = everything_said(caught.value)
            for secret in (KEY, "hush-hush"):
                assert secret not in said
                assert secret.encode() not in pickle.dumps(caught.value)


async def test_proxy_that_is_not_there_keeps_its_password():
    """The error for a proxy that cannot be reached does not show its password."""
    proxy = f"http://me:hush-hush@127.0.0.1:{closed_port()}"
    async with transporting(proxy=proxy) as transport:
        with pytest.raises(TransportError, match="no byte") as caught:
            await transport.send(submit_to("https://api.invalid"))

        assert "hush-hush" not in everything_said(caught.value)
        assert "hush-hush" not in repr(transport)


# Closing


async def test_closing_twice_is_closing_once():
    """A transport may be closed again, and before it ever sent anything."""
    transport = AiohttpTransport()
    await transport.aclose()
    await transport.aclose()


@REQUESTS
async def test_closed_transport_sends_nothing(transport, request_to):
    """What is sent after closing is not sent, and nothing is opened for it."""
    async with answering(OK) as server:
        await transport.send(read_from(server.base_url))
        await transport.aclose()
        with pytest.raises(TransportError, match="closed") as caught:
            await transport.send(request_to(server.base_url))

        assert 1 == len(server.requests)
    assert request_to is read_from or not caught.value.maybe_sent


@pytest.mark.parametrize("number", range(12))
async def test_closing_ends_requests_under_way(number):
    """Requests under way when the transport closes end with a TransportError, wherever they are."""
    async with Tap(end="stall") as tap:
        transport = AiohttpTransport()
        base_url = f"http://127.0.0.1:{tap.port}"
        sends = [
            asyncio.ensure_future(transport.send(request_to(base_url)))
            for request_to in (submit_to, read_from)
        ]
        for _ in range(number):
            await asyncio.sleep(0)
        await transport.aclose()
        ends = await asyncio.gather(*sends, return_exceptions=True)

    assert [TransportError] * 2 == [type(end) for end in ends]


async def test_closing_while_a_name_is_looked_up_cancels_nobody(monkeypatch):
    """A request that still looks up a name when the transport closes fails, not cancelled."""
    asked = asyncio.Event()

    async def never(*_, **__):
        asked.set()
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    transport = AiohttpTransport()
    sends = [
        asyncio.ensure_future(transport.send(request_to("https://api.invalid")))
        for request_to in (submit_to, read_from, submit_to)
    ]
    await asked.wait()
    await asyncio.sleep(0)
    await transport.aclose()
    ends = await asyncio.gather(*sends, return_exceptions=True)

    assert [TransportError] * 3 == [type(end) for end in ends]
    assert not ends[0].maybe_sent
