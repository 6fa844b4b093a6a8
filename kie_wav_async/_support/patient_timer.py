"""
Timers that are not believed before the loop has looked at what has arrived.

A program may hold the loop, for a minute say. All timers that ran out meanwhile are
due at once then, and asyncio runs them before the tasks whose answers have been
waiting in a socket all the time. A timer of this module that fires gives the loop some
more turns first, and the later it fires, the more time.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

# A turn reads what has arrived, the next one wakes the task that waits for it; a long
# answer, TLS or a thread that has to write something down take some more.
_TURNS: Final = 10
# The turns take as long as the timer is late, and this many seconds at most.
_MOST_S: Final = 1.0

# How often is looked whether the loop is held up.
_BEAT_S: Final = 1.0
# Timers of a busy loop are some milliseconds late.
_BUSY_S: Final = 0.1


class PatientTimer:
    """
    Calls *callback* once, *delay_s* seconds from now, by the running loop.

    If the loop was held up beyond that moment, it is not called before the loop has
    made ten more turns, over as long as it was late, or one second if that is less.
    """

    __slots__ = ("_callback", "_delay_s", "_due", "_handle", "_left", "_loop", "_step_s")

    def __init__(self, delay_s: float, callback: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._callback = callback
        self._delay_s = delay_s
        self._handle = self._set()

    def _set(self) -> asyncio.TimerHandle:
        # What is due already, no answer was waited for.
        self._left = _TURNS if self._delay_s > 0 else 0
        self._step_s = 0.0
        self._due = self._loop.time() + self._delay_s
        return self._loop.call_at(self._due, self._fire)

    def restart(self, delay_s: float) -> None:
        """Count *delay_s* seconds from now; for a timer that has not called *callback* yet."""
        self._handle.cancel()
        self._delay_s = delay_s
        self._handle = self._set()

    def cancel(self) -> None:
        """Call it off; nothing happens if it was called already."""
        self._handle.cancel()

    def _fire(self) -> None:
        self._step_s = min(self._loop.time() - self._due, _MOST_S) / _TURNS
        self._turn()

    def _turn(self) -> None:
        if not self._left:
            self._callback()
            return
        self._left -= 1
        self._handle = self._loop.call_later(self._step_s, self._turn)


@contextlib.asynccontextmanager
async def patient_timeout(delay_s: float | None) -> AsyncGenerator[PatientTimer | None]:
    """
    End the block with `TimeoutError` after *delay_s* seconds, as a `PatientTimer` counts them.

    Args:
        delay_s: `None`: never.

    Yields:
        The timer; cancelled, it ends nothing. `None` if there is none.
    """
    async with asyncio.timeout(None) as timeout:
        if delay_s is None:
            yield None
            return
        loop = asyncio.get_running_loop()
        timer = PatientTimer(delay_s, lambda: timeout.reschedule(loop.time()))
        try:
            yield timer
        finally:
            timer.cancel()


class LoopDelayMeter:
    """
    Measures how long the running loop is held up, until it is closed.

    Attributes:
        delayed_s: How long in all so far, in seconds; what is shorter than a second at a
            time may be left out.
    """

    __slots__ = ("_handle", "_loop", "delayed_s")

    def __init__(self) -> None:
        self.delayed_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._handle = self._set()

    def _set(self) -> asyncio.TimerHandle:
        due = self._loop.time() + _BEAT_S
        return self._loop.call_at(due, self._note, due)

    def _note(self, due: float) -> None:
        late_s = self._loop.time() - due
        if late_s > _BUSY_S:
            self.delayed_s += late_s
        self._handle = self._set()

    def close(self) -> None:
        """Measure no more."""
        self._handle.cancel()
