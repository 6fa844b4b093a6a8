"""The benchmarks run, and what they count holds at any size."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kie_wav_async import CallbackTrust, PollSchedule, RateLimit, Track, WavSession
from kie_wav_async.testing import (
    FakeClock,
    accepted,
    pending,
    polled_task_id,
    signed_callback,
    submitted_callback_query,
    succeeded,
)

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPTS = sorted(BENCHMARKS.glob("bench_*.py"))
SLOW = {"bench_callbacks", "bench_client_cpu", "bench_memory"}


def run(script, *options):
    """Run a benchmark as its README says."""
    return subprocess.run(  # noqa: S603 - a file of this repository
        [sys.executable, str(script), *options],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """Run a benchmark and save its figures, once; return its table and the file."""
    saved = tmp_path_factory.mktemp("saved")

    @functools.cache
    def run_first(script):
        figures = saved / f"{script.stem}.json"
        return run(script, "--quick", "--save", str(figures)), figures

    return run_first


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_runs_and_saves(script, first_run):
    """Every benchmark runs at a tiny size, and saves the figures it shows."""
    table, saved = first_run(script)
    figures = json.loads(saved.read_text())
    assert figures
    assert all(isinstance(value, float | int) for value in figures.values())
    assert all(name in table for name in figures)


# They compare by the same few lines, which those that take seconds need not be run again for.
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(script, marks=[pytest.mark.campaign] if script.stem in SLOW else [])
        for script in SCRIPTS
    ],
    ids=lambda path: path.stem,
)
def test_a_benchmark_compares(script, first_run):
    """A later run of a benchmark is compared with a saved one, figure by figure."""
    _, saved = first_run(script)
    figures = json.loads(saved.read_text())
    table = run(script, "--quick", "--compare", str(saved))
    assert all(name in table for name in figures)
    assert table.count("%") >= sum(value > 0 for value in figures.values())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_answers_a_question(script):
    """A benchmark begins with the question it answers and the decision that hangs on it."""
    question, _, rest = script.read_text(encoding="utf-8").removeprefix('"""\n').partition("\n")
    assert question.endswith("?")
    assert "Decides" in rest.partition('"""')[0]


def test_the_table_runs_every_benchmark():
    """No benchmark is left out of the table of all."""
    everything = (BENCHMARKS / "run.py").read_text(encoding="utf-8")
    assert [] == [path.stem for path in SCRIPTS if f"{path.stem}.measure" not in everything]


class Service:
    """Accepts every submit; a task is done from its n-th poll on."""

    def __init__(self, *, done_at_poll):
        self.serials = itertools.count(1)
        self.done_at_poll = done_at_poll
        self.polls = {}
        self.tasks_seen = []
        self.queries = {}

    async def send(self, request):
        self.tasks_seen.append(len(asyncio.all_tasks()))
        if request.is_submit:
            task_id = f"t{next(self.serials)}"
            self.queries[task_id] = submitted_callback_query(request)
            return accepted(task_id)
        task_id = polled_task_id(request)
        self.polls[task_id] = self.polls.get(task_id, 0) + 1
        if self.polls[task_id] < self.done_at_poll:
            return pending(task_id)
        return succeeded(task_id)

    async def aclose(self):
        pass


async def test_a_conversion_in_flight_has_no_task():
    """However many conversions are in flight, between two polls the session runs no task."""
    clock = FakeClock()
    async with WavSession(
        "key",
        transport=Service(done_at_poll=10**9),
        clock=clock,
        rate_limit=RateLimit(1_000, per_s=1.0),
        max_in_flight=1_000,
    ) as session:
        for number in range(300):
            await session.submit(Track("m", f"a{number}"))
        await clock.run_pending()
        assert 300 == len(session.conversions())
        assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_a_queued_submit_has_no_task():
    """Of the tasks waiting for queued submits, all are the callers' own."""
    clock = FakeClock()
    async with WavSession(
        "key", transport=Service(done_at_poll=1), clock=clock, max_in_flight=1
    ) as session:
        waits = [asyncio.create_task(session.convert(Track("m", f"a{n}"))) for n in range(300)]
        await clock.run_pending()
        assert {asyncio.current_task(), *waits} == asyncio.all_tasks()
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)


async def test_a_task_exists_only_while_a_request_is_on_the_wire():
    """A request is sent from one task of its own beside the callers'."""
    clock, service = FakeClock(), Service(done_at_poll=3)
    async with WavSession("key", transport=service, clock=clock) as session:
        await clock.run(session.convert(Track("m", "a")))
    # This test, the waiting call, and the request.
    assert {3} == set(service.tasks_seen)


async def test_a_conversion_makes_no_needless_exchange():
    """One submit and the polls until it is done are all that a conversion sends."""
    clock, service = FakeClock(), Service(done_at_poll=3)
    async with WavSession("key", transport=service, clock=clock) as session:
        await clock.run(session.convert(Track("m", "a")))
        await clock.advance(3_600.0)
        assert 3 == session.statistics().polls
    assert 4 == len(service.tasks_seen)


async def call_back(trust, *, count):
    """Call back *count* conversions in flight; return what was seen on the way."""
    clock, service, seen = FakeClock(), Service(done_at_poll=1), []
    key = "benchmark-webhook-key"
    async with WavSession(
        "key",
        transport=service,
        clock=clock,
        callback_url="https://example.com/kie/callback",
        webhook_keys=key,
        callback_trust=trust,
        rate_limit=RateLimit(1_000, per_s=1.0),
        max_in_flight=1_000,
        poll=PollSchedule(first_s=50_000.0, interval_s=50_000.0, backstop_s=50_000.0),
        timeout_s=None,
    ) as session:
        session._core._hosts.restore(["media.invalid:443"])
        for number in range(count):
            await session.submit(Track("m", f"a{number}"))
        await clock.run_pending()
        for conversion in session.conversions():
            callback = signed_callback(conversion.task_id, key=key, now_unix_s=clock.time())
            await session.handle_callback(*callback, query=service.queries[conversion.task_id])
            seen.append((conversion.done(), len(asyncio.all_tasks())))
        await clock.advance(count)
        return seen, session.statistics()


async def test_a_callback_that_settles_needs_neither_a_task_nor_a_poll():
    """A callback that is believed settles its conversion before the call returns, and alone."""
    seen, counted = await call_back(CallbackTrust.PAYLOAD, count=300)
    assert [(True, 1)] * 300 == seen
    assert (300, 0) == (counted.settled_by_callback, counted.polls)


async def test_a_hint_costs_one_poll():
    """A conversion whose callback is only a hint is settled by one poll."""
    seen, counted = await call_back(CallbackTrust.CONFIRM, count=30)
    assert {False} == {is_done for is_done, _ in seen}
    assert (30, 30) == (counted.settled_by_poll, counted.polls)
