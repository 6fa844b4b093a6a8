"""Whether a session is open, and in which event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from kie_wav_async.errors import SessionClosedError


class SessionState:
    """
    What all conversions of a session share: its loop, and whether it is open.

    Attributes:
        loop: The loop the session was entered in; `None` before.

        closed: What a wait ends with once the session closes; `None` before.

        close_listeners: Called when the session closes.
    """

    __slots__ = ("close_listeners", "closed", "loop")

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.closed: SessionClosedError | None = None
        self.close_listeners: set[Callable[[], None]] = set()

    def verify_loop(self) -> asyncio.AbstractEventLoop:
        """
        Return the session's loop if the caller runs on it.

        Raises:
            RuntimeError: The session was not entered, or in another loop.
        """
        if self.loop is None:
            msg = "the session is not open: use it inside `async with WavSession(...) as session:`"
            raise RuntimeError(msg)
        try:
            is_ours = asyncio.get_running_loop() is self.loop
        except RuntimeError:  # There is none here: another thread.
            is_ours = False
        if not is_ours:
            msg = (
                "the session belongs to another event loop: open one session per loop, "
                "with `async with WavSession(...) as session:`"
            )
            raise RuntimeError(msg)
        return self.loop

    def verify_open(self) -> asyncio.AbstractEventLoop:
        """
        Return the session's loop if it is open and the caller runs on it.

        Raises:
            RuntimeError: The session was not entered, or in another loop.

            SessionClosedError: The session was closed.
        """
        loop = self.verify_loop()
        if self.closed is not None:
            raise self.closed.about()
        return loop
