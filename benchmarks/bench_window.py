"""
Do the default schedule, limits and poll interval fit a conversion of 90 s?

Decides the defaults of `PollSchedule`, ``max_in_flight`` and the limiter: a
catalog should run as fast as the service's window lets it, and a finished file
should be seen soon. `convert_all` with defaults, conversions log-normal around
90 s, a fake clock and a service that answers at once: what is lost here is lost
by our own arithmetic. Neither figure depends on the machine.

Window use is the submits sent per submits the window has room for, first to last.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import statistics
from typing import TYPE_CHECKING, Final

from _figures import Figure, main

from kie_wav_async import Track, WavSession
from kie_wav_async.testing import FakeClock, accepted, pending, polled_task_id, succeeded

if TYPE_CHECKING:
    from kie_wav_async.protocol.http_messages import WireRequest, WireResponse

MEDIAN_S: Final = 90.0
SPREAD: Final = 0.4

#: The service's window: docs.kie.ai, "Getting Started with KIE API".
COUNT: Final = 20
PER_S: Final = 10.0


class _Service:
    """Finishes each task after a time drawn from a log-normal law."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._chance = random.Random(1)  # noqa: S311 - repeatable, not secret
        self._serials = itertools.count(1)
        self.submitted_at: list[float] = []
        self.done_at: dict[str, float] = {}
        self.seen_at: dict[str, float] = {}
        self.polls = 0

    async def send(self, request: WireRequest) -> WireResponse:
        now = self._clock.monotonic()
        if request.is_submit:
            task_id = f"{next(self._serials):032x}"
            self.submitted_at.append(now)
            self.done_at[task_id] = now + self._chance.lognormvariate(math.log(MEDIAN_S), SPREAD)
            return accepted(task_id)
        self.polls += 1
        task_id = polled_task_id(request)
        if now < self.done_at[task_id]:
            return pending(task_id)
        self.seen_at[task_id] = now
        return succeeded(task_id)

    async def aclose(self) -> None:
        pass


async def _run(count: int) -> _Service:
    clock = FakeClock()
    service = _Service(clock)
    tracks = [Track(f"{n:032x}", "e231") for n in range(count)]
    async with WavSession("benchmark-key", transport=service, clock=clock) as session:

        async def convert_all() -> int:
            async with session.convert_all(tracks) as batch:
                return sum([outcome.ok async for outcome in batch])

        assert await clock.run(convert_all()) == count
    return service


def measure(*, quick: bool) -> list[Figure]:
    """Return the window's use and how late a finished conversion is seen."""
    count = 60 if quick else 2_000
    service = asyncio.run(_run(count))
    elapsed_s = service.submitted_at[-1] - service.submitted_at[0]
    room = COUNT * (math.floor(elapsed_s / PER_S) + 1)
    lags = [service.seen_at[task_id] - done for task_id, done in service.done_at.items()]
    cuts = statistics.quantiles(lags, n=100)
    return [
        Figure("window use", 100 * count / room, "%", at_least=97),
        Figure("detection lag, median", cuts[49], "s", at_most=6),
        Figure("detection lag, 99th percentile", cuts[98], "s", at_most=12),
        Figure("polls per conversion", service.polls / count, "polls"),
    ]


if __name__ == "__main__":
    main(measure)
