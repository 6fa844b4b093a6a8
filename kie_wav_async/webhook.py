"""
Where callbacks arrive: a route for aiohttp, an ASGI application, a server of our own.

All three answer alike. 200 and a small JSON for everything authentic, duplicates
and unknown tasks too, so that the answer tells a peer nothing; 401 with an empty
body for whatever is not authentic, 400 for what cannot be read; 405 for all but
POST, 413 over 64 KiB, 415 for a ``Content-Encoding`` that changes bytes, 503 while the session is
closing and when its ledger cannot be written. 408 if a body takes more than 10 s,
or if 64 bodies are incomplete, another one comes, and it is the oldest; a complete
body waits for nothing. Every answer but 200 closes the connection, and nothing is
drained.

The session has to be entered in the loop that serves; for WSGI programs there is
`kie_wav_async.parse_callback`. TLS, and peers that take their time over headers,
are the reverse proxy's. Nothing of a request is logged here, and what anybody can
cause to be logged is logged once a minute at most; the access logs of your own
server are yours.

Source: docs.kie.ai, "Convert to WAV Callbacks".
"""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.log import server_logger

from kie_wav_async._bounded_log import MalformedRequestFilter
from kie_wav_async._capped_server import CappedServer
from kie_wav_async._gate import UNREADABLE, Answer, Gate, GoneError, changes_bytes
from kie_wav_async._models import verify_type

if TYPE_CHECKING:
    from types import TracebackType

    from kie_wav_async._session import WavSession

__all__ = ["CallbackServer", "add_callback_route", "asgi_app"]

_MAX_PORT: Final = 65_535

#: A connection to an ASGI server is closed after so many callbacks. Some servers (uvicorn
#: with httptools) go on reading requests while earlier ones are answered, without a limit.
_MAX_REQUESTS: Final = 8

#: As many connections to an ASGI server are counted.
_MAX_COUNTED: Final = 1_000

#: One for the process, as its logger is.
_FILTER: Final = MalformedRequestFilter()

_Scope: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]


# --- aiohttp --------------------------------------------------------------------------------


def add_callback_route(
    app: web.Application, session: WavSession, path: str = "/kie/callback"
) -> None:
    """
    Add the route that answers callbacks to an aiohttp application.

    aiohttp decompresses before any handler runs. The refusal of
    ``Content-Encoding`` thus comes after the work, unless the application is run
    by ``web.AppRunner(app, auto_decompress=False)``, or the reverse proxy refuses
    such requests; `CallbackServer` does not decompress.

    aiohttp logs a traceback for every request that is not HTTP. Its logger
    ``aiohttp.server`` gets a filter that leaves one line of them a minute.

    Args:
        app: Not started yet.

        session: It has to be entered in the loop that serves *app*.

        path: The path of ``callback_url``.

    Raises:
        TypeError: An argument has the wrong type.

        ValueError: *path* does not begin with ``/``.

        RuntimeError: *app* has been started, or has that path.
    """
    verify_type(app, web.Application, "app")
    verify_type(path, str, "path")
    # All methods, so that the refusal of the others is ours too.
    handler = _AiohttpHandler(Gate(session))
    app.router.add_route("*", path, handler.handle, expect_handler=_expect_nothing)
    server_logger.addFilter(_FILTER)


async def _expect_nothing(request: web.Request) -> None:
    """Leave ``Expect`` to the handler, which may not want the body."""


class _AiohttpHandler:
    __slots__ = ("_gate",)

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        gate, content = self._gate, request.content
        # The usual case: nothing to wait for. With an error the peer is gone already.
        is_there = content.is_eof() and content.exception() is None
        refusal = gate.judge(
            request.method,
            is_encoded=changes_bytes(request.headers.getall(hdrs.CONTENT_ENCODING, ())),
            length=content.total_bytes if is_there else request.content_length,
        )
        if refusal is not None:
            return await _refuse(request, refusal)
        if is_there:
            body = content.read_nowait()
        else:
            try:
                await _continue(request)
                read = await gate.read(_parts_of(request))
            except GoneError:
                read = UNREADABLE
            if isinstance(read, Answer):
                return await _refuse(request, read)
            body = read
        # The raw target: what yarl makes of a query may be another spelling of it.
        query = request.raw_path.partition("?")[2]
        return _respond(await gate.take(request.raw_headers, body, query))


def _parts_of(request: web.BaseRequest) -> Callable[[], Awaitable[bytes | None]]:
    async def next_part() -> bytes | None:
        try:
            return await request.content.readany() or None
        except Exception as error:
            # Each parser of aiohttp's raises its own.
            raise GoneError from error

    return next_part


async def _continue(request: web.BaseRequest) -> None:
    """
    Tell a client that asks first to send its body; HTTP/1.0 knows no such question.

    Raises:
        GoneError: It has left.
    """
    asks = request.headers.get(hdrs.EXPECT, "").lower() == "100-continue"
    if asks and request.version >= HttpVersion11:
        try:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        except ConnectionError as error:  # aiohttp would log a traceback of it.
            raise GoneError from error


def _respond(answer: Answer) -> web.Response:
    response = web.Response(status=answer.status, body=answer.body, headers=answer.headers)
    if answer.is_rejection:
        response.force_close()
    return response


async def _refuse(request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    """Send a refusal, and drop the connection if a body is still to come."""
    response = _respond(answer)
    if request.content.is_eof():
        return response
    # The peer may be gone; aiohttp finds that out for itself, and says nothing.
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await response.write_eof()
    # Without this aiohttp would go on reading the body for a while.
    request.protocol.force_close()
    return response


# --- ASGI -----------------------------------------------------------------------------------


def asgi_app(session: WavSession) -> _AsgiApp:
    """
    Return an ASGI application that answers callbacks, on whatever path it is given.

    For Starlette's ``Route(path, app)``, for FastAPI's ``add_route(path, app)``,
    to be mounted, or to be run alone. Mounted at ``/kie/callback`` it is reached
    at ``/kie/callback/``: the path without the slash is answered with a redirect,
    which no sender of callbacks can be expected to follow.

    A connection is closed with the eighth callback: there are servers that keep
    reading requests while earlier ones are answered, however many there are.

    Args:
        session: It has to be entered in the loop that serves.

    Raises:
        TypeError: *session* is no `WavSession`.
    """
    return _AsgiApp(session)


class _AsgiApp:
    """An instance and not a function, which Starlette would call with a request."""

    __slots__ = ("_counts", "_gate")

    def __init__(self, session: WavSession) -> None:
        self._gate = Gate(session)
        self._counts: Counter[str] = Counter()

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        match scope["type"]:
            case "http":
                await self._answer(scope, receive, send)
            case "lifespan":
                await _live(receive, send)
            case "websocket":
                await receive()
                await send({"type": "websocket.close"})
            case other:
                msg = f"cannot serve the ASGI scope {other!r}"
                raise ValueError(msg)

    async def _answer(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        is_encoded, length = _read_head(headers)
        answer: bytes | Answer | None = self._gate.judge(
            scope["method"], is_encoded=is_encoded, length=length
        )
        if answer is None:
            try:
                answer = await self._gate.read(_parts_from(receive))
            except GoneError:
                return
        if isinstance(answer, bytes):
            answer = await self._gate.take(headers, answer, scope["query_string"])
        sent = [(name.lower().encode(), value.encode()) for name, value in answer.headers]
        sent.append((b"content-length", b"%d" % len(answer.body)))
        # Later versions of HTTP have no such header, and no connection to lose.
        is_last = self._is_last(scope.get("client")) or answer.is_rejection
        if is_last and scope["http_version"].startswith("1"):
            sent.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": answer.status, "headers": sent})
        await send({"type": "http.response.body", "body": answer.body})

    def _is_last(self, client: object) -> bool:
        """Count a request of *client*'s, and return whether it has had enough of them."""
        counts = self._counts
        if len(counts) >= _MAX_COUNTED:
            counts.clear()
        # A list in some servers and a tuple in others; `None` on a Unix socket.
        name = str(client)
        counts[name] += 1
        if counts[name] < _MAX_REQUESTS:
            return False
        del counts[name]
        return True


def _read_head(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bool, int | None]:
    encodings: list[str] = []
    length: int | None = None
    for name, value in headers:
        if name == b"content-encoding":
            encodings.append(value.decode("latin-1"))
        elif name == b"content-length" and value.isdigit():
            # Digits enough to be too many are not worth reading.
            length = int(value[:20])
    return changes_bytes(encodings), length


def _parts_from(receive: _Receive) -> Callable[[], Awaitable[bytes | None]]:
    is_over = False

    async def next_part() -> bytes | None:
        nonlocal is_over
        if is_over:
            return None
        message = await receive()
        if message["type"] != "http.request":
            raise GoneError
        is_over = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    return next_part


async def _live(receive: _Receive, send: _Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


# --- a server of our own --------------------------------------------------------------------


class CallbackServer:
    """
    A server for callbacks alone, for scripts that have none; any path will do.

    ::

        from kie_wav_async.webhook import CallbackServer

        async with CallbackServer(session) as server:
            print("POST anything to port", server.port)
            wav = await session.convert(Track("5c79", "e231"))

    It speaks plain HTTP: let a reverse proxy or a tunnel bring the callbacks
    here. It decompresses nothing, writes no access log, and drops connections
    that stay idle or hold back their headers for 30 s. It has at most 256
    connections (a quarter of the file descriptors that the process may have, if
    that is less) and closes idle ones for new ones.

    Args:
        session: It has to be entered in the same loop.

        host: Where to listen.

        port: 0 for any free one; see `port`.

        sock: A bound socket to listen on, in place of *host* and *port*; it
            belongs to the server and is closed with it.

    Raises:
        TypeError: An argument has the wrong type.

        ValueError: *port* is out of range.

        OSError: On entering: the address cannot be listened on.

        RuntimeError: It was entered before.
    """

    def __init__(
        self,
        session: WavSession,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        sock: socket.socket | None = None,
    ) -> None:
        """Check everything; nothing is opened yet."""
        verify_type(host, str, "host")
        verify_type(port, int, "port")
        if sock is not None:
            verify_type(sock, socket.socket, "sock")
        if not 0 <= port <= _MAX_PORT:
            msg = f"port must be 0 to {_MAX_PORT}, not {port}"
            raise ValueError(msg)
        gate = Gate(session)
        self._server = CappedServer(_AiohttpHandler(gate).handle, gate.drop_oldest)
        self._host = host
        self._port = port
        self._sock = sock
        self._is_entered = False
        self._is_running = False

    @property
    def port(self) -> int:
        """
        The port that is listened on.

        Raises:
            RuntimeError: The server does not run.
        """
        if not self._is_running:
            msg = "the server does not run: use `async with`"
            raise RuntimeError(msg)
        return self._server.port

    async def __aenter__(self) -> Self:
        """Listen."""
        if self._is_entered:
            msg = "a CallbackServer is entered once: make a new one"
            raise RuntimeError(msg)
        self._is_entered = True
        await self._server.start(self._host, self._port, self._sock)
        self._is_running = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, whatever the reason for leaving."""
        await self.aclose()

    async def aclose(self) -> None:
        """
        Stop listening; requests under way get a moment, and no more.

        Closing twice, or a server never entered, does nothing.
        """
        if self._is_running:
            self._is_running = False
            await self._server.stop()
