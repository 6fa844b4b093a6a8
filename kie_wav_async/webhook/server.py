"""A server for callbacks alone."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, Self

from kie_wav_async._support.validation import verify_type
from kie_wav_async.webhook.aiohttp_route import AiohttpHandler
from kie_wav_async.webhook.capped_server import CappedServer
from kie_wav_async.webhook.request_handler import CallbackRequestHandler

if TYPE_CHECKING:
    from types import TracebackType

    from kie_wav_async.session.session import WavSession

_MAX_PORT: Final = 65_535


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
        handler = CallbackRequestHandler(session)
        self._server = CappedServer(AiohttpHandler(handler).handle, handler.drop_oldest)
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
