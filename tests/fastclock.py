"""A clock for tests over real sockets, whose seconds are shorter than the machine's."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from kie_wav_async._support.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable


class FastClock(SystemClock):
    """
    The system's clock, *speed* times as fast.

    Sockets keep the machine's time: only what a session waits for by itself, its
    windows, polls, back-offs and timeouts, passes faster.
    """

    __slots__ = ("_speed",)

    def __init__(self, speed: float) -> None:
        self._speed = speed

    def monotonic(self) -> float:
        return time.monotonic() * self._speed

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s / self._speed)

    def call_at(self, when_mono_s: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        delay_s = (when_mono_s - self.monotonic()) / self._speed
        return asyncio.get_running_loop().call_later(max(0.0, delay_s), callback)
