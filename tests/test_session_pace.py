"""How fast a session is with its defaults: the window used, and ends seen."""

from __future__ import annotations

import asyncio
import random
import statistics

import pytest

from fakes import FakeService, track
from kie_wav_async import events
from kie_wav_async.testing import FakeClock

TRACKS = 1_000


@pytest.fixture(scope="module")
def run() -> Run:
    """Convert a catalog with all defaults, once for the tests of this file."""
    return Run()


class Run:
    """A catalog converted with defaults: median conversion 90 s, log-normal, no latency."""

    def __init__(self) -> None:
        chance = random.Random(7)  # noqa: S311 - a script, not a secret
        self.clock = FakeClock()
        self.service = FakeService(
            self.clock, conversion_s=lambda: 90.0 * chance.lognormvariate(0.0, 0.4)
        )
        self.seen: dict[str, float] = {}
        asyncio.run(self.convert())

    def note(self, event: events.Event) -> None:
        if isinstance(event, events.ConversionSucceeded):
            self.seen[event.wav.task_id] = self.clock.monotonic()

    async def convert(self) -> None:
        async def collect():
            return [outcome.ok async for outcome in session.convert_all(map(track, range(TRACKS)))]

        async with self.service.session(on_event=self.note) as session:
            assert [True] * TRACKS == await self.clock.run(collect())

    @property
    def lags(self) -> list[float]:
        return sorted(at - self.service.tasks[task_id].ends_at for task_id, at in self.seen.items())


def test_window_is_used(run) -> None:
    """A batch with defaults sends at least 97 % of what the window allows."""
    times = run.service.submitted_at
    assert TRACKS == len(times)
    # The first 20 go out at once; from then on the window sets the pace.
    windows = (times[-1] - times[0]) / 10.0
    assert 0.97 * 20 * windows <= TRACKS - 20


def test_window_is_never_exceeded(run) -> None:
    """No span of 10 s sees more than 20 submits."""
    times = run.service.submitted_at
    assert all(times[n + 20] - times[n] >= 10.0 for n in range(len(times) - 20))


def test_ends_are_seen_soon(run) -> None:
    """A finished conversion is seen 6 s later at the median, 12 s at the 99th percentile."""
    assert TRACKS == len(run.lags)
    assert statistics.median(run.lags) <= 6.0
    assert run.lags[int(0.99 * TRACKS)] <= 12.0


def test_polls_stay_within_their_budget(run) -> None:
    """No second sees more than 30 polls."""
    times = [at for at, _ in run.service.polled_at]
    assert all(times[n + 30] - times[n] > 1.0 - 1e-6 for n in range(len(times) - 30))


def test_no_task_is_polled_three_times_a_second(run) -> None:
    """The polls of one task are at least 8 s apart, far below the service's limit."""
    last: dict[str, float] = {}
    for at, task_id in run.service.polled_at:
        assert at - last.get(task_id, 0.0) >= 8.0 - 1e-6
        last[task_id] = at
