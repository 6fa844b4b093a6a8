"""Our own server: how many connections it has, which ones it closes, and what it leaves alone."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import socket
from pathlib import Path

import pytest
from aiohttp import web

from fakes import FakeService
from kie_wav_async import WavSession
from kie_wav_async.testing import FakeClock
from kie_wav_async.webhook import CallbackServer, asgi, capped_server, request_handler
from receivers import Served, Wire, own_server, request, until

CAP = 12


@contextlib.asynccontextmanager
async def serving():
    """Serve an open session that knows no task; yield too what opens connections and keeps them."""
    service = FakeService(FakeClock())
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(service.listening())
        served = await stack.enter_async_context(own_server(session))

        async def connect(*sent: bytes) -> Wire:
            wire = await stack.enter_async_context(Wire(served))
            for data in sent:
                await wire.send(data)
            return wire

        yield service, served, connect


async def answer(_: web.BaseRequest) -> web.Response:
    """Answer 200."""
    return web.Response()


@contextlib.asynccontextmanager
async def running(handle):
    """Run the server without a session, which waits for no body; yield what it knows of it."""
    server = capped_server.CappedServer(handle, lambda: False)
    await server.start("127.0.0.1", 0, None)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.stop)

        async def connect(*sent: bytes) -> Wire:
            wire = await stack.enter_async_context(Wire(Served(server.port)))
            for data in sent:
                await wire.send(data)
            return wire

        yield server._server, connect


async def is_served(service: FakeService, wire: Wire) -> bool:
    """Return whether a genuine callback is taken on this connection."""
    genuine = service.callback("genuine")
    await wire.post(genuine.headers, genuine.body)
    return 200 == (await wire.answer()).status


@pytest.fixture
def small(monkeypatch) -> None:
    """Allow 12 connections."""
    monkeypatch.setattr(capped_server, "MAX_CONNECTIONS", CAP)


def head_of(service: FakeService, body_length: int = 50) -> bytes:
    """Return a head whose body is asked for and does not come."""
    headers = {**service.callback("genuine").headers, "Expect": "100-continue"}
    return request("/", headers, length=body_length)


SLOW = {
    "nothing": b"",
    "half a head": b"POST / HTTP/1.1\r\nHost: h\r\nX-Slow: ",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW)
async def test_idle_connections_lock_out_nobody(sent) -> None:
    """However many connections bring no request, a callback on a new one is taken."""
    async with serving() as (service, _, connect):
        for _ in range(10):
            for _ in range(CAP):
                await connect(sent)
            assert await is_served(service, await connect())


@pytest.mark.usefixtures("small")
async def test_slow_bodies_lock_out_nobody() -> None:
    """Where all connections wait for a body the oldest of them gives way, with a 408."""
    async with serving() as (service, _, connect):
        slow = []
        for _ in range(CAP):
            slow.append(await connect(head_of(service)))
            assert 100 == (await slow[-1].answer()).status

        assert await is_served(service, await connect())
        assert 408 == (await slow[0].answer()).status
        assert await slow[0].is_closed()
        for wire in slow[1:]:
            await wire.send(b"x" * 50)
            assert 400 == (await wire.answer()).status


@pytest.mark.usefixtures("small")
async def test_slow_bodies_do_not_lift_the_cap(monkeypatch) -> None:
    """A connection that is being closed makes room for one other, and not for two."""
    made, most = capped_server._Server.connection_made, []

    def count(server, handler, transport) -> None:
        made(server, handler, transport)
        most.append(len(server.opened))

    monkeypatch.setattr(capped_server._Server, "connection_made", count)
    async with serving() as (service, _, connect):
        for _ in range(5 * CAP):
            await connect(request("/", service.callback("genuine").headers, length=50), b"x")
        assert await is_served(service, await connect())
    assert max(most) <= CAP + 1  # One was told to go, and is not gone yet.


@pytest.mark.usefixtures("small")
async def test_the_connection_that_was_idle_longest_goes() -> None:
    """A connection that has just had a callback outlives those that are idle, however old it is."""
    async with serving() as (service, _, connect):
        first = await connect()
        assert await is_served(service, first)
        idle = [await connect() for _ in range(CAP - 1)]
        assert await is_served(service, idle[-1])  # By now all of them were accepted.
        assert await is_served(service, first)

        assert await is_served(service, await connect())
        assert await idle[0].is_closed()
        assert await is_served(service, first)


@pytest.mark.usefixtures("small")
async def test_a_request_in_progress_is_not_disturbed() -> None:
    """While all connections have requests whose bodies are there a new one is closed."""
    begun, over = [], asyncio.Event()

    async def handle(_: web.BaseRequest) -> web.Response:
        begun.append(1)
        await over.wait()
        return web.Response()

    async with running(handle) as (_, connect):
        wires = [await connect(request("/")) for _ in range(CAP)]
        await until(lambda: len(begun) == CAP)
        assert await (await connect(request("/"))).is_closed()
        over.set()
        assert [200] * CAP == [(await wire.answer()).status for wire in wires]


@pytest.mark.parametrize("limit", [0, 16])
async def test_few_descriptors_leave_eight_connections(monkeypatch, limit) -> None:
    """However few descriptors there are eight connections are open, and newcomers are taken."""
    monkeypatch.setattr(capped_server, "_descriptor_limit", lambda: limit)
    async with serving() as (service, _, connect):
        wires = [await connect() for _ in range(20)]
        assert await is_served(service, await connect())
        assert all([await wire.is_closed() for wire in wires[:-7]])
        assert all([await is_served(service, wire) for wire in wires[-7:]])


async def test_a_quarter_of_the_descriptors_is_left(monkeypatch) -> None:
    """Once the process has three quarters of its descriptors a new connection costs an old one."""
    with socket.socket() as lowest:
        limit = (lowest.fileno() + 30) * 4 // 3
    monkeypatch.setattr(capped_server, "_descriptor_limit", lambda: limit)
    async with running(answer) as (server, connect):
        for _ in range(60):
            await connect()
        last = await connect(request("/"))
        assert 200 == (await last.answer()).status
        # Each connection has two descriptors here: the client's is in the same process.
        assert 8 <= len(server.opened) < 20


async def test_no_descriptor_is_left(caplog) -> None:
    """Where the system has none left nothing spins, one line is logged, and it goes on after."""
    caplog.set_level(logging.DEBUG)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving() as (service, served, connect):
        assert await is_served(service, await connect())
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.socket()) for _ in range(50)]
            # What is free below the highest is used up.
            filled = []
            top = clients[-1].fileno()
            while not filled or filled[-1] < top:
                filled.append(os.dup(0))
            stack.callback(lambda: [os.close(fd) for fd in filled])
            caplog.clear()
            resource.setrlimit(resource.RLIMIT_NOFILE, (filled[-1] + 1, hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                os.dup(0)
            for client in clients:
                client.connect(("127.0.0.1", served.port))
            await until(lambda: caplog.records)
            for _ in range(200):
                await asyncio.sleep(0)

        (record,) = caplog.records
        assert ("kie_wav_async", logging.ERROR) == (record.name, record.levelno)
        assert os.strerror(errno.EMFILE) in record.getMessage()
        assert await is_served(service, await connect())


async def test_a_connection_that_was_aborted_is_passed_over(monkeypatch) -> None:
    """A peer that is gone before it is accepted ends nothing, and is no line in the log."""
    accept, aborted = socket.socket.accept, []

    def abort_first(listener: socket.socket):
        if not aborted:
            aborted.append(1)
            raise ConnectionAbortedError(errno.ECONNABORTED, "aborted")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", abort_first)
    async with serving() as (service, _, connect):
        assert await is_served(service, await connect())
    assert aborted


async def test_a_server_that_stops_as_it_accepts_leaves_no_socket_open(monkeypatch) -> None:
    """A server that is stopped in the turn of the loop in which it accepts closes what it has."""
    accept, accepted = socket.socket.accept, asyncio.Event()

    def accept_and_report(listener: socket.socket):
        connection = accept(listener)
        accepted.set()
        return connection

    monkeypatch.setattr(socket.socket, "accept", accept_and_report)
    service = FakeService(FakeClock())
    async with service.listening() as session:
        server = CallbackServer(session)
        async with server, Wire(Served(server.port)) as first:
            assert await is_served(service, first)  # So that the next one is waited for.
            accepted.clear()
            peer = socket.create_connection(("127.0.0.1", server.port))
            await accepted.wait()
        peer.close()
        gc.collect()  # An unclosed socket is a warning, and so an error.


async def test_a_socket_that_cannot_listen_is_closed() -> None:
    """A socket that was given belongs to the server, also if it cannot be listened on."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        server = CallbackServer(WavSession("key"), sock=sock)
        with pytest.raises(OSError, match="not supported"):
            await server.__aenter__()
        assert sock.fileno() == -1
        await server.aclose()


async def test_an_address_that_is_not_here_is_passed_over(monkeypatch) -> None:
    """A host of several addresses is listened on at those that this machine has."""

    async def resolve(_host, port, **_: object):
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("192.0.2.1", "127.0.0.1", "127.0.0.1")
        ]

    service = FakeService(FakeClock())
    async with service.listening() as session:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
        server = CallbackServer(session, "some.host")
        async with server, contextlib.AsyncExitStack() as stack:
            wire = await stack.enter_async_context(Wire(Served(server.port)))
            assert await is_served(service, wire)


def test_the_page_on_callbacks_names_the_limits() -> None:
    """The numbers of docs/callbacks.md are those of the code."""
    page = (Path(__file__).resolve().parent.parent / "docs" / "callbacks.md").read_text("utf-8")
    limits = page[page.index("## Limits") :]

    assert f"at most {capped_server.MAX_CONNECTIONS} connections" in limits
    assert f"at least {capped_server.MIN_CONNECTIONS}." in limits
    assert f"{capped_server.IDLE_TIMEOUT_S:g} s for the headers" in limits
    assert f"{capped_server.MAX_HEADERS} headers of at most" in limits
    assert f"at most {capped_server.MAX_HEADER_LENGTH // 1024} KiB each" in limits
    assert f"wait for {request_handler.MAX_READS} incomplete bodies" in limits
    assert 8 == asgi._MAX_REQUESTS
    assert "with its eighth callback" in limits
