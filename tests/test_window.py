"""
The window: never more submits than the service allows, and hardly fewer.

The service runs in a process of its own, logs when each submit arrived, and keeps
it waiting on its way; only that log is judged. The default run is 20 times
faster than life. At life's own pace, with the figures printed::

    python -m pytest -m campaign tests/test_window.py
"""

from __future__ import annotations

import asyncio
import statistics
import time

import attrs
import pytest

from kie_wav_async import AiohttpTransport, PollSchedule, RateLimit, Track, WavSession
from kie_wav_async.simulator import Fault, SimulatorProcess, SimulatorState

# What no test waits for; it only ends a hang.
PATIENCE_S = 300.0

COUNT = 20
LIFE_PER_S = 10.0
# Longer than any answer of the service took that was ever recorded.
LIFE_DELAY_S = (0.0, 3.3)


class TimedTransport(AiohttpTransport):
    """Notes how long each submit took from sending to its answer."""

    def __init__(self):
        super().__init__()
        self.round_trips_s = []

    async def send(self, request):
        began = time.monotonic()
        response = await super().send(request)
        if request.is_submit:
            self.round_trips_s.append(time.monotonic() - began)
        return response


@attrs.frozen
class Run:
    """What there is to judge: the service's log, and the session's own books and times."""

    state: SimulatorState
    statistics: object
    round_trip_s: float

    def usage(self, count, per_s):
        """Return which share of *count* per (*per_s* + median round trip) was used."""
        times = sorted(arrival.at for arrival in self.state.arrivals)
        bursts = len(times) // count - 1
        # From each arrival of the first burst to the same one of the last.
        spans = [times[n + bursts * count] - times[n] for n in range(count)]
        return bursts * (per_s + self.round_trip_s) / statistics.mean(spans)


async def submit_all(number, limit, *, own_limit=None, **settings):
    """Submit so many tracks at once to a service that allows *limit*."""
    transport = TimedTransport()
    async with (
        asyncio.timeout(PATIENCE_S),
        SimulatorProcess(window=limit, median_s=1e9, **settings) as kie,
    ):
        async with WavSession(
            kie.api_key,
            base_url=kie.base_url,
            rate_limit=own_limit or RateLimit(limit[0], per_s=limit[1]),
            max_in_flight=number,
            poll=PollSchedule(first_s=1e6),
            timeout_s=None,
            transport=transport,
        ) as session:
            await asyncio.gather(*(session.submit(Track("5c79", f"e{n}")) for n in range(number)))
        return Run(
            await kie.state(), session.statistics(), statistics.median(transport.round_trips_s)
        )


def judge_limit(run, number, count, per_s):
    """Fail if the service saw too many submits in any window, or refused or lost one."""
    assert run.state.most_arrivals_in(per_s) == count  # As many as it allows, and never more.
    assert 0 == run.state.rejected_429 == run.statistics.rejected_429
    assert number == run.state.charges == run.statistics.accepted == len(run.state.arrivals)


async def test_limit_holds_whatever_the_latency():
    """However long each submit is on its way, no window ever holds more than the limit."""
    per_s, number = LIFE_PER_S / 20, 6 * COUNT
    delay_s = tuple(s / 20 for s in LIFE_DELAY_S)
    # Both at once: they wait most of their time.
    runs = await asyncio.gather(
        *(submit_all(number, (COUNT, per_s), arrival_delay_s=delay_s, seed=seed) for seed in (1, 2))
    )

    for run in runs:
        judge_limit(run, number, COUNT, per_s)


async def test_limit_is_used_up():
    """With a constant latency, a window later the next submit is under way."""
    per_s, number = LIFE_PER_S / 20, 6 * COUNT
    run = await submit_all(
        number, (COUNT, per_s), arrival_delay_s=0.05, answer_delay_s=0.05, gzip=False
    )

    judge_limit(run, number, COUNT, per_s)
    # A busy machine takes its share; the figure at life's pace is the campaign's.
    assert 0.8 < run.usage(COUNT, per_s) <= 1.0 + 0.05


@pytest.mark.campaign
async def test_limit_at_the_pace_of_life(capsys):
    """At 20 per 10 s and 0 to 3.3 s latency the limit holds; at constant latency 98 % is used."""
    asyncio.get_running_loop().set_debug(False)
    number = 7 * COUNT
    limit = (COUNT, LIFE_PER_S)
    varied, constant = await asyncio.gather(
        submit_all(number, limit, arrival_delay_s=LIFE_DELAY_S, seed=1),
        submit_all(number, limit, arrival_delay_s=0.25, answer_delay_s=0.25),
    )
    lines = [
        f"{name}: {number} submits, at most {run.state.most_arrivals_in(LIFE_PER_S)} in any 10 s, "
        f"{run.state.rejected_429} refused, median round trip {run.round_trip_s:.3f} s, "
        f"{run.usage(*limit):.1%} of 20 per (10 s + median round trip) used"
        for name, run in (("latency 0 to 3.3 s", varied), ("latency 0.5 s", constant))
    ]
    with capsys.disabled():
        print("", *lines, sep="\n")  # noqa: T201 - the figures are what the campaign is run for

    judge_limit(varied, number, *limit)
    judge_limit(constant, number, *limit)
    assert 0.98 <= constant.usage(*limit)


@pytest.mark.parametrize(("retry_after", "rest_s"), [("1", 1.0), (None, 0.4)])
async def test_429_that_comes_anyway_is_obeyed(retry_after, rest_s):
    """After a 429 no submit leaves for as long as the service asks, else for one window."""
    run = await submit_all(
        12,
        (1000, 1.0),
        own_limit=RateLimit(4, per_s=0.4 if retry_after is None else 0.01),
        faults=[
            Fault(kind="code", at=6, code=429, http_status=429, retry_after=retry_after),
        ],
    )
    times = sorted(arrival.at for arrival in run.state.arrivals)
    [refused] = [a.at for a in run.state.arrivals if a.verdict == "scripted"]
    later = [at for at in times if at > refused]

    assert 12 == run.state.charges == run.statistics.accepted
    assert 1 == run.state.rejected_429 == run.statistics.rejected_429
    # Three may have been on the wire with it; the next one came after the rest.
    assert later[3] - refused >= rest_s


async def test_account_shared_with_another_program_comes_to_its_end():
    """Where another program uses half of the window, all submits are accepted in the end."""
    run = await submit_all(30, (10, 0.3), own_limit=RateLimit(20, per_s=0.3))

    assert 30 == run.state.charges == run.statistics.accepted
    assert 0 < run.state.rejected_429 == run.statistics.rejected_429
