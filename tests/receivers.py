"""
Everything that answers callbacks, as real servers on loopback, and a client on a bare socket.

All serve a session in the loop of the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import types
from typing import TYPE_CHECKING, Any, Self

import attrs
import uvicorn.server
from aiohttp import web
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from kie_wav_async.webhook import CallbackServer, add_callback_route, asgi_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from kie_wav_async import WavSession

#: For what must not hang a test that fails.
PATIENCE_S = 20.0

#: Half of what aiohttp takes by default to close a connection whose body it was spared.
CLOSED_WITHIN_S = 5.0

PATH = "/kie/callback"


@attrs.frozen
class Served:
    """Where callbacks are answered."""

    port: int
    path: str = PATH

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until something is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the servers offer no event for this
            await asyncio.sleep(0)


# --- servers --------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def run_aiohttp(
    app: web.Application,
    path: str = PATH,
    *,
    sock: socket.socket | None = None,
    **settings: Any,
):
    """Run an aiohttp application, on a socket of its own or on *sock*."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05, **settings)
    await runner.setup()
    try:
        sock = socket.create_server(("127.0.0.1", 0)) if sock is None else sock
        await web.SockSite(runner, sock).start()
        yield Served(runner.addresses[0][1], path)
    finally:
        await runner.cleanup()


async def _nap(delay: float) -> None:
    await asyncio.sleep(delay / 20)


# Uvicorn looks ten times a second whether it shall stop, and as long again whether it can.
uvicorn.server.asyncio = types.SimpleNamespace(**{**vars(asyncio), "sleep": _nap})


class Uvicorn(uvicorn.Server):
    """Uvicorn that leaves the signals to pytest."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield


@contextlib.asynccontextmanager
async def run_asgi(
    app: Any, path: str = PATH, *, http: str = "h11", sock: socket.socket | None = None
):
    """Run an ASGI application under uvicorn, on a socket of its own or on *sock*."""
    with socket.create_server(("127.0.0.1", 0)) if sock is None else sock as listener:
        port = listener.getsockname()[1]
        config = uvicorn.Config(app, http=http, lifespan="on", log_config=None, access_log=False)
        server = Uvicorn(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await until(lambda: server.started or serving.done())
            yield Served(port, path)
        finally:
            server.should_exit = True
            await serving


def embedded(session: WavSession) -> AbstractAsyncContextManager[Served]:
    """Serve by a route in an aiohttp application."""
    app = web.Application()
    add_callback_route(app, session)
    return run_aiohttp(app)


@contextlib.asynccontextmanager
async def own_server(session: WavSession) -> AsyncIterator[Served]:
    """Serve by our own server."""
    async with CallbackServer(session) as server:
        yield Served(server.port, "/any/path/will/do")


def alone(session: WavSession) -> AbstractAsyncContextManager[Served]:
    """Serve by uvicorn with nothing else in it."""
    return run_asgi(asgi_app(session))


def alone_in_c(session: WavSession) -> AbstractAsyncContextManager[Served]:
    """Serve by uvicorn with the parser most of its installations have."""
    return run_asgi(asgi_app(session), http="httptools")


def in_fastapi(session: WavSession) -> AbstractAsyncContextManager[Served]:
    """Serve by a route of FastAPI's."""
    app = FastAPI()
    app.add_route(PATH, asgi_app(session))
    return run_asgi(app)


def under_fastapi(session: WavSession) -> AbstractAsyncContextManager[Served]:
    """Serve mounted in FastAPI."""
    app = FastAPI()
    app.mount(PATH, asgi_app(session))
    return run_asgi(app, f"{PATH}/")


def in_starlette(session: WavSession) -> AbstractAsyncContextManager[Served]:
    """Serve by a route of Starlette's."""
    return run_asgi(Starlette(routes=[Route(PATH, asgi_app(session))]))


def under_starlette(session: WavSession) -> AbstractAsyncContextManager[Served]:
    """Serve mounted in Starlette."""
    return run_asgi(Starlette(routes=[Mount(PATH, asgi_app(session))]), f"{PATH}/")


#: Those that parse HTTP each in their own way.
PARSERS = {
    "aiohttp": embedded,
    "CallbackServer": own_server,
    "uvicorn": alone,
    "uvicorn with httptools": alone_in_c,
}
RECEIVERS = {
    **PARSERS,
    "FastAPI route": in_fastapi,
    "FastAPI mount": under_fastapi,
    "Starlette route": in_starlette,
    "Starlette mount": under_starlette,
}


# --- a client -------------------------------------------------------------------------------


@attrs.frozen
class Answer:
    """One answer as it was sent."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """
    A client that sends bytes and sees what comes back, whatever the order.

    It reads from the socket itself: asyncio's streams forget what was received
    once the connection is reset.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._socket = socket.socket()
        self._buffer = b""

    async def __aenter__(self) -> Self:
        self._socket.setblocking(False)  # noqa: FBT003 - the name of the parameter is "flag"
        address = ("127.0.0.1", self._served.port)
        try:
            await asyncio.get_running_loop().sock_connect(self._socket, address)
        except OSError:
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def reset(self) -> None:
        """Close it by a reset, with whatever the peer has not read yet."""
        linger = struct.pack("ii", 1, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close()

    def end(self) -> None:
        """Send no more; what comes back is still read."""
        self._socket.shutdown(socket.SHUT_WR)

    async def send(self, data: bytes) -> bool:
        """Send *data*; return whether it could be sent."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.get_running_loop().sock_sendall(self._socket, data)
        except ConnectionError:
            return False
        return True

    async def post(self, headers: object = (), body: bytes = b"", **how: Any) -> bool:
        """Send a request; see `request`."""
        return await self.send(request(self._served.path, headers, body, **how))

    async def answer(self) -> Answer:
        """Return the next answer, also one that only says to go on."""
        while b"\r\n\r\n" not in self._buffer:
            assert await self._receive(), f"closed after {self._buffer!r}"
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        code = int(status.split()[1])
        if code < 200 or "content-length" in headers:
            length = int(headers.get("content-length", "0"))
            while len(self._buffer) < length:
                assert await self._receive(), f"closed after {self._buffer!r}"
        else:  # It lasts as long as the connection.
            while await self._receive():
                pass
            length = len(self._buffer)
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Answer(code, headers, body)

    async def is_closed(self) -> bool:
        """Wait for the end of the connection; return false if more comes, or nothing for long."""
        try:
            return not self._buffer and not await self._receive(CLOSED_WITHIN_S)
        except TimeoutError:
            return False

    async def _receive(self, patience_s: float = PATIENCE_S) -> bytes:
        try:
            async with asyncio.timeout(patience_s):
                got = await asyncio.get_running_loop().sock_recv(self._socket, 65_536)
        except ConnectionError:
            return b""
        self._buffer += got
        return got


def request(
    path: str,
    headers: object = (),
    body: bytes = b"",
    *,
    method: str = "POST",
    query: str = "",
    length: int | None = None,
) -> bytes:
    """
    Return the bytes of a request.

    Args:
        path: Where to.

        headers: Pairs or a mapping, of text or bytes, sent as they are.

        body: What is sent of the body.

        method: The method.

        query: Sent as it is.

        length: What ``Content-Length`` says, if not the truth; negative: no such header.
    """
    items = headers.items() if hasattr(headers, "items") else headers
    lines = [f"{method} {path}{'?' if query else ''}{query} HTTP/1.1".encode(), b"Host: h"]
    lines += [_bytes(name) + b": " + _bytes(value) for name, value in items]
    length = len(body) if length is None else length
    if length >= 0:
        lines.append(b"Content-Length: %d" % length)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
