"""A loop that a program holds up, and a peer in a thread that answers all the same."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Self

from kie_wav_async import SystemClock

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

#: What no test waits for; it only ends a hang.
PATIENCE_S = 20.0


class Hold:
    """
    Holds the running loop, for as long as a test says, without taking that long.

    The loop's time, and that of `clock`, move on while nothing of the loop runs.
    """

    def __init__(self) -> None:
        self.held_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self.clock = HeldClock(self)

    def __enter__(self) -> Self:
        self._loop.time = lambda: self._time() + self.held_s
        return self

    def __exit__(self, *_: object) -> None:
        del self._loop.time

    def hold(self, seconds: float, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Do *meanwhile*, which does not return before it is done; then *seconds* have passed."""
        meanwhile()
        self.held_s += seconds


class HeldClock(SystemClock):
    """The system's clock, which a `Hold` moves on."""

    __slots__ = ("_hold",)

    def __init__(self, hold: Hold) -> None:
        self._hold = hold

    def monotonic(self) -> float:
        return time.monotonic() + self._hold.held_s

    def call_at(self, when_mono_s: float, callback: Callable[[], object]) -> object:
        return super().call_at(when_mono_s - self._hold.held_s, callback)


class Peer:
    """
    A server in a thread that answers a request when told, whatever our loop does.

    Args:
        answers: What is sent, one after the other, each when told.

        context: For TLS.

        is_shy: Whether even TLS begins only when told.
    """

    def __init__(
        self, *answers: bytes, context: ssl.SSLContext | None = None, is_shy: bool = False
    ) -> None:
        self.is_connected = self.is_asked = False
        self._answers = answers
        self._context = context
        self._is_shy = is_shy
        self._may_go = threading.Semaphore(0)
        self._has_gone = threading.Semaphore(0)
        self._is_over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    @property
    def base_url(self) -> str:
        scheme = "http" if self._context is None else "https"
        return f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for _ in range(len(self._answers) + 1):
            self._may_go.release()
        self._listener.close()
        self._thread.join(PATIENCE_S)

    def go(self) -> None:
        """Send the next answer; return once it is in the other's socket."""
        self._may_go.release()
        assert self._has_gone.acquire(timeout=PATIENCE_S)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            with connection:
                self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        self.is_connected = True
        if self._is_shy:
            assert self._may_go.acquire(timeout=PATIENCE_S)
            self._has_gone.release()
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True)
        with connection:
            request = b""
            while not is_whole(request):
                piece = connection.recv(65_536)
                if not piece:
                    return
                request += piece
            self.is_asked = True
            for answer in self._answers:
                assert self._may_go.acquire(timeout=PATIENCE_S)
                connection.sendall(answer)
                self._has_gone.release()
            assert self._is_over.wait(PATIENCE_S)


def is_whole(request: bytes) -> bool:
    """Return whether *request* has come to its end."""
    head, _, body = request.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return b"\r\n\r\n" in request and len(body) >= length


async def until(condition: Callable[[], object]) -> None:
    """Return once something is so that another thread does."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - a thread makes it so
            await asyncio.sleep(0.001)
