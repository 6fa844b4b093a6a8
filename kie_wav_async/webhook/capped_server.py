"""
The HTTP server behind `CallbackServer`: few connections, and descriptors left for the work.

Connections are accepted here and not by asyncio, which accepts without a limit, and
logs a traceback for each one that it cannot accept for want of descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING, Final

from aiohttp import web

from kie_wav_async._support.tasks import start
from kie_wav_async.webhook.bounded_log import BoundedLog

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: Most connections at a time, if the process may have 1,024 descriptors or more; of
#: fewer descriptors a quarter.
MAX_CONNECTIONS: Final = 256

#: As many connections are accepted however few descriptors are left.
MIN_CONNECTIONS: Final = 8

#: How long a connection may stay idle, or hold back its headers.
IDLE_TIMEOUT_S = 30.0

#: Most headers of a request, and the most bytes of one: KIE sends a few short ones, and
#: a proxy adds some. Those of all incomplete requests together are 64 MiB at most.
MAX_HEADERS: Final = 64
MAX_HEADER_LENGTH: Final = 4_096

#: How long requests in progress may take when the server stops; twice.
SHUTDOWN_TIMEOUT_S = 0.5

#: How long nothing is accepted after the system could not.
ACCEPT_PAUSE_S = 0.1

_BACKLOG: Final = 128
#: These addresses of a host are passed over if it has others.
_NOT_HERE: Final = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


class CappedServer:
    """
    Serves HTTP with at most `MAX_CONNECTIONS` connections.

    When there are too many, the one that has been idle longest is closed for a new
    one, or else the one whose body has been waited for longest; a request whose
    body is there is not disturbed. The same is done while less than a quarter of the
    descriptors that the process may have is left.

    Args:
        handle: Answers a request.

        drop_reader: Ends the wait for the body that has been waited for longest;
            returns whether there was one.
    """

    def __init__(
        self,
        handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        drop_reader: Callable[[], bool],
    ) -> None:
        self._handle = handle
        self._drop_reader = drop_reader
        self._log = BoundedLog()
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._server: _Server | None = None
        self._runner: web.ServerRunner | None = None

    @property
    def port(self) -> int:
        """The port of the first address."""
        return int(self._sockets[0].getsockname()[1])

    async def start(self, host: str, port: int, sock: socket.socket | None) -> None:
        """
        Listen on *sock*, or else on every address of *host*.

        Raises:
            OSError: That is not possible.
        """
        self._sockets = await _listen(host, port) if sock is None else [sock]
        try:
            if sock is not None:
                sock.listen(_BACKLOG)
            self._limit = _descriptor_limit()
            self._cap = max(MIN_CONNECTIONS, min(MAX_CONNECTIONS, self._limit // 4))
            self._server = _Server(self._handle)
            self._runner = web.ServerRunner(self._server, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
            await self._runner.setup()
        except BaseException:
            self._close_sockets()
            raise
        for listener in self._sockets:
            listener.setblocking(False)  # noqa: FBT003 - the name of the parameter is "flag"
            self._accepting.append(start(self._accept(self._server, listener)))

    async def stop(self) -> None:
        """Stop listening, and close every connection after a moment."""
        for task in self._accepting:
            task.cancel()
        try:
            await asyncio.wait(self._accepting)
        finally:
            self._close_sockets()
        if self._runner is not None:
            await self._runner.cleanup()

    def _close_sockets(self) -> None:
        for listener in self._sockets:
            listener.close()

    # --- accepting --------------------------------------------------------------------------

    async def _accept(self, server: _Server, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection = await _accept(listener)
            except (BlockingIOError, ConnectionError):
                continue  # The peer has left already.
            except OSError as error:
                # New connections wait in the system's queue meanwhile.
                self._make_room(server)
                text = f"cannot accept connections of callbacks: {os.strerror(error.errno or 0)}"
                self._log.error("accept", text)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            if not self._has_room(server, connection):
                connection.close()
                await asyncio.sleep(0)
                continue
            with contextlib.suppress(OSError):
                await loop.connect_accepted_socket(server, connection)

    def _has_room(self, server: _Server, connection: socket.socket) -> bool:
        """Return whether to keep *connection*; others may have been closed for it."""
        count = len(server.opened)
        # The system gives the lowest number that is free.
        is_short = connection.fileno() >= self._limit - self._limit // 4
        if count < self._cap and not (is_short and count >= MIN_CONNECTIONS):
            return True
        return self._make_room(server)

    def _make_room(self, server: _Server) -> bool:
        """Close the connection that is worth least; return whether there was one."""
        return server.drop_idle() or self._drop_reader()


class _Server(web.Server):
    """Knows which connections are open, the oldest first, and which of them have a request."""

    def __init__(self, handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(
            self._serve,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=IDLE_TIMEOUT_S,
            logger=_silent_logger(),
            max_headers=MAX_HEADERS,
            max_field_size=MAX_HEADER_LENGTH,
        )
        self._handle = handle
        self.opened: dict[web.RequestHandler, asyncio.Transport] = {}
        self._busy: set[web.RequestHandler] = set()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        self._busy.add(connection)
        try:
            return await self._handle(request)
        finally:
            self._busy.discard(connection)
            if connection in self.opened:  # Now it is the one that was idle for the least time.
                self.opened[connection] = self.opened.pop(connection)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self.opened[handler] = transport

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        super().connection_lost(handler, exc)
        self.opened.pop(handler, None)

    def drop_idle(self) -> bool:
        """Close the oldest connection without a request; return whether there was one."""
        for handler, transport in self.opened.items():
            # One that is closing makes room by itself, for whom it was told to go.
            if handler not in self._busy and not transport.is_closing():
                del self.opened[handler]
                transport.abort()
                return True
        return False


async def _accept(listener: socket.socket) -> socket.socket:
    """
    Return the next connection; a cancelled call leaves it in the system's queue.

    Raises:
        OSError: There is none after all, or none can be accepted.
    """
    loop = asyncio.get_running_loop()
    if sys.platform == "win32":  # Whose loop watches no sockets.
        connection, _ = await loop.sock_accept(listener)
        return connection
    # Not sock_accept: cancelled in the very turn in which it has one, it drops it unclosed.
    ready = asyncio.Event()
    loop.add_reader(listener, ready.set)
    try:
        _ = await ready.wait()
    finally:
        loop.remove_reader(listener)
    connection, _ = listener.accept()
    connection.setblocking(False)  # noqa: FBT003 - the name of the parameter is "flag"
    return connection


async def _listen(host: str, port: int) -> list[socket.socket]:
    """
    Listen on every address of *host* that this machine has.

    Raises:
        OSError: There is none, or one cannot be listened on.
    """
    found = await asyncio.get_running_loop().getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    missing = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    with contextlib.ExitStack() as stack:
        sockets: list[socket.socket] = []
        for family, address in dict.fromkeys((family, address) for family, *_, address in found):
            try:
                listener = socket.create_server(address, family=family, backlog=_BACKLOG)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                missing = error
            else:
                sockets.append(stack.enter_context(listener))
        if sockets:
            stack.pop_all()
            return sockets
    raise missing


def _descriptor_limit() -> int:
    """Return how many descriptors this process may have."""
    if sys.platform == "win32":
        return 4 * MAX_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def _silent_logger() -> logging.Logger:
    """Return a logger that says nothing: aiohttp quotes what it cannot parse."""
    logger = logging.Logger("kie_wav_async.webhook")  # noqa: LOG001 - nobody shall configure it
    logger.addHandler(logging.NullHandler())
    return logger
