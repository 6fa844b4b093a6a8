"""A timer on a clock that can be moved."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from kie_wav_async._support.clock import Clock, TimerHandle


class Timer:
    """One timer on the clock that can be moved."""

    __slots__ = ("_callback", "_clock", "_handle", "_when")

    def __init__(self, clock: Clock, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._callback = callback
        self._handle: TimerHandle | None = None
        self._when = math.inf

    def set(self, when_mono_s: float) -> None:
        """
        Fire at *when_mono_s* at the latest.

        A timer set for an earlier moment stays: whoever it wakes early looks at
        the time and sets it again.
        """
        if when_mono_s >= self._when:
            return
        self.cancel()
        self._when = when_mono_s
        self._handle = self._clock.call_at(when_mono_s, self._fire)

    def cancel(self) -> None:
        """Unset the timer."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
        self._when = math.inf

    def _fire(self) -> None:
        self._handle = None
        self._when = math.inf
        self._callback()
