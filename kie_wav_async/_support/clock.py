"""The only place that reads a clock or sleeps, the transport's timeouts aside."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from kie_wav_async._support.patient_timer import PatientTimer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Clock", "SystemClock", "TimerHandle"]


class TimerHandle(Protocol):
    """What `Clock.call_at` returns."""

    def cancel(self) -> None:
        """Call the callback off; nothing happens if it ran or was called off."""


@runtime_checkable
class Clock(Protocol):
    """The source of time and waiting for everything but the transport."""

    def monotonic(self) -> float:
        """Return seconds since some fixed moment; never goes back."""
        ...

    def time(self) -> float:
        """Return Unix time in seconds; may jump."""
        ...

    async def sleep(self, delay_s: float, /) -> None:
        """Return after *delay_s* seconds; at the loop's next turn if 0 or less."""
        ...

    def call_at(self, when_mono_s: float, callback: Callable[[], object], /) -> TimerHandle:
        """Call *callback* from the running loop once `monotonic` reaches *when_mono_s*."""
        ...


class SystemClock:
    """The machine's clocks and the running loop's timers."""

    __slots__ = ()

    def monotonic(self) -> float:
        """Return `time.monotonic`."""
        return time.monotonic()

    def time(self) -> float:
        """Return `time.time`."""
        return time.time()

    async def sleep(self, delay_s: float) -> None:
        """Sleep on the running loop."""
        await asyncio.sleep(delay_s)

    def call_at(self, when_mono_s: float, callback: Callable[[], object]) -> TimerHandle:
        """
        Set a timer on the running loop.

        After the loop was held up beyond that time, what has arrived meanwhile is
        read before *callback* is called.
        """
        # A loop may count from another moment than time.monotonic does.
        return PatientTimer(max(0.0, when_mono_s - time.monotonic()), callback)
