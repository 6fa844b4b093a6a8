"""Catalogs over a ledger: each track once, whatever the ledger has of it and however slow it is."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from yarl import URL

from fakes import FakeService, track
from kie_wav_async import OnUnknown, RateLimit
from kie_wav_async.errors import (
    AlreadyExistsError,
    ChargeLimitError,
    KieWavError,
    LedgerError,
    SessionClosedError,
    SubmitUnknownError,
)
from kie_wav_async.ledger import AttemptOutcome, TrackState
from kie_wav_async.testing import FakeClock, MemoryLedger, submitted_track
from ledger_steps import bill

BROKEN = LedgerError("no space left on device: free some")
WAV = URL("https://media.invalid/old.wav")


class SlowLedger(MemoryLedger):
    """Takes its time over every read."""

    def __init__(self, clock: FakeClock, delay_s: float) -> None:
        super().__init__()
        self.clock = clock
        self.delay_s = delay_s

    async def _return(self, name: str) -> None:
        await super()._return(name)
        if name == "get":
            await self.clock.sleep(self.delay_s)


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock: FakeClock) -> FakeService:
    """Return a service that takes half a second to answer, and knows no repeats."""
    return FakeService(clock, latency_s=0.5, conversion_s=16.0, knows_repeats=False)


@pytest.fixture
def ledger() -> MemoryLedger:
    """Return an empty ledger."""
    return MemoryLedger()


async def collect(batch) -> list[object]:
    """Return the outcomes of a batch, in their order."""
    return [outcome async for outcome in batch]


async def outcomes_of(clock, batch) -> list[object]:
    """Return the outcomes of a batch, in fake time."""
    return await clock.run(collect(batch))


async def stopped(batch) -> tuple[list[object], KieWavError]:
    """Return the outcomes of a batch that is stopped, and by what."""
    outcomes = []
    while True:
        try:
            outcomes.append(await anext(batch))
        except KieWavError as error:
            return outcomes, error


async def bring_to(ledger: MemoryLedger, n: int, state: TrackState, service, clock) -> None:
    """Bring a track to where it should stand; its task, if any, is ``old`` and its number."""
    await ledger.add_tracks([track(n)])
    if state is TrackState.PLANNED:
        return
    attempt_id, task_id = f"{n:032}", f"old{n}"
    await ledger.begin_attempt(track(n), attempt_id, clock.time())
    ends = {
        TrackState.UNKNOWN: AttemptOutcome.UNKNOWN,
        TrackState.EXISTS_WITHOUT_ID: AttemptOutcome.EXISTS_WITHOUT_ID,
        TrackState.REJECTED: AttemptOutcome.REJECTED,
    }
    if state in ends:
        await ledger.finish_attempt(attempt_id, ends[state], clock.time())
    elif state is not TrackState.SUBMITTING:
        service.create(task_id, track(n))
        await ledger.finish_attempt(
            attempt_id, AttemptOutcome.ACCEPTED, clock.time(), task_id=task_id
        )
    if state is TrackState.FAILED:
        await ledger.finish_task(task_id, clock.time(), error="it broke")
    elif state in {TrackState.SUCCEEDED, TrackState.SAVED, TrackState.EXPIRED}:
        await ledger.finish_task(task_id, clock.time(), wav_url=WAV)


@pytest.mark.parametrize("on_unknown", OnUnknown)
async def test_tracks_in_all_states(clock, service, ledger, on_unknown) -> None:
    """Of a catalog in all states only what is not paid is sent, and each track is yielded once."""
    states = [state for state in TrackState for _ in range(3)]
    await ledger.open(clock.time())
    for n, state in enumerate(states):
        await bring_to(ledger, n, state, service, clock)
    left = ledger.die()
    tracks = [track(n) for n in range(len(states))]
    async with service.session(ledger=left, on_unknown=on_unknown) as session:
        batch = session.convert_all([*tracks, *tracks])
        outcomes = await outcomes_of(clock, batch)
        await batch.aclose()

    assert list(range(2 * len(states))) == sorted(outcome.index for outcome in outcomes)
    sent = {TrackState.PLANNED, TrackState.REJECTED, TrackState.FAILED}
    if on_unknown is OnUnknown.RESUBMIT:
        sent |= {TrackState.UNKNOWN, TrackState.SUBMITTING}
    for outcome in outcomes:
        state = states[outcome.index % len(states)]
        if state in sent:
            assert outcome.wav.task_id.startswith("task")
        elif state is TrackState.EXISTS_WITHOUT_ID:
            assert isinstance(outcome.error, AlreadyExistsError)
        elif state in {TrackState.UNKNOWN, TrackState.SUBMITTING}:
            assert isinstance(outcome.error, SubmitUnknownError)
        else:
            assert f"old{outcome.index % len(states)}" == outcome.wav.task_id
    assert 3 * len(sent) == len(service.submitted_at) == service.charged


async def test_what_is_converted_is_not_throttled(clock, service, ledger) -> None:
    """A catalog longer than the window that is converted already is yielded without waiting."""
    await ledger.open(clock.time())
    for n in range(300):
        await bring_to(ledger, n, TrackState.SUCCEEDED, service, clock)
    left = ledger.die()
    limits = {"rate_limit": RateLimit(2, per_s=10.0), "max_in_flight": 5}
    async with service.session(ledger=left, **limits) as session:
        began = clock.monotonic()
        batch = session.convert_all(track(n) for n in range(300))
        outcomes = [outcome async for outcome in batch]
        assert began == clock.monotonic()
    assert list(range(300)) == [outcome.index for outcome in outcomes]
    assert all(outcome.ok for outcome in outcomes)
    assert [] == service.submitted_at


async def test_what_is_accepted_is_not_throttled(clock, service, ledger) -> None:
    """Tasks of an earlier run are followed at once, as many as may be in flight."""
    await ledger.open(clock.time())
    for n in range(40):
        await bring_to(ledger, n, TrackState.ACCEPTED, service, clock)
    left = ledger.die()
    limits = {"rate_limit": RateLimit(1, per_s=1_000.0), "max_in_flight": 10}
    async with service.session(ledger=left, **limits) as session:
        batch = session.convert_all(track(n) for n in range(40))
        waiting = asyncio.create_task(collect(batch))
        for _ in range(3):
            await clock.run_pending()
        assert 10 == session.statistics().in_flight
        outcomes = await clock.run(waiting)
        assert 40 == len(outcomes)
        assert all(outcome.ok for outcome in outcomes)
        assert clock.monotonic() < 1_000.0 + 400.0
    assert [] == service.submitted_at


async def test_slow_reads_lose_nothing(clock, service) -> None:
    """However long the ledger takes to tell, each track is submitted once and in order."""
    ledger = SlowLedger(clock, 3.0)
    async with service.session(ledger=ledger, rate_limit=RateLimit(3, per_s=1.0)) as session:
        outcomes = await outcomes_of(clock, session.convert_all(track(n) for n in range(9)))
    assert list(range(9)) == sorted(outcome.index for outcome in outcomes)
    assert [track(n) for n in range(9)] == [submitted_track(r) for r in service.transport.submits]


async def test_one_read_at_a_time_and_no_further(clock, service) -> None:
    """While the ledger is being asked about a track, the next is not."""
    ledger = SlowLedger(clock, 3.0)
    async with service.session(ledger=ledger) as session:
        batch = session.convert_all(track(n) for n in range(9))
        waiting = asyncio.create_task(anext(batch))
        await clock.advance(1.0)
        assert ["get"] == [name for name, _ in ledger.calls if name == "get"]
        waiting.cancel()
        await clock.advance(100.0)
        assert 1 == len([name for name, _ in ledger.calls if name == "get"])
        assert [] == service.submitted_at

        outcomes = await outcomes_of(clock, batch)
        assert list(range(9)) == sorted(outcome.index for outcome in outcomes)


async def test_closing_a_batch_while_a_track_is_looked_up(clock, service) -> None:
    """A batch that is closed while the ledger is asked submits nothing, and does not wait."""
    ledger = SlowLedger(clock, 1_000.0)
    async with service.session(ledger=ledger) as session:
        batch = session.convert_all(track(n) for n in range(9))
        waiting = asyncio.create_task(anext(batch))
        await clock.advance(1.0)
        began = clock.monotonic()
        await batch.aclose()
        assert began == clock.monotonic()
        await asyncio.wait([waiting])
        assert isinstance(waiting.exception(), StopAsyncIteration)
        await clock.advance(2_000.0)
    assert [] == service.submitted_at


async def test_leaving_a_loop_while_a_track_is_looked_up(clock, service) -> None:
    """A track that was being looked up when the loop was left is yielded to the next one."""
    ledger = SlowLedger(clock, 5.0)
    async with service.session(ledger=ledger) as session:
        batch = session.convert_all(track(n) for n in range(4))
        first = await clock.run(first_of(batch))
        sent = len(service.submitted_at)
        await clock.advance(300.0)
        assert sent == len(service.submitted_at)
        rest = await outcomes_of(clock, batch)
        assert [0, 1, 2, 3] == sorted([first.index, *(outcome.index for outcome in rest)])


async def first_of(batch) -> object:
    """Return the first outcome, and leave."""
    found = None
    async for outcome in batch:
        found = outcome
        break
    return found


async def test_closing_the_session_while_a_track_is_looked_up(clock, service) -> None:
    """A session that is closed while a batch asks the ledger ends the batch at once."""
    ledger = MemoryLedger()
    async with service.session(ledger=ledger) as session:
        ledger.hold = {"get": asyncio.Event()}
        batch = session.convert_all(track(n) for n in range(4))
        stopping = asyncio.create_task(stopped(batch))
        await clock.run_pending()
        await session.aclose()
        await clock.run_pending()
        outcomes, error = stopping.result()
        assert isinstance(error, SessionClosedError)
        assert [0] == [outcome.index for outcome in outcomes]


async def test_reads_that_fail_stop_a_batch_once(clock, service, ledger) -> None:
    """A ledger that cannot be read stops a catalog, with one error in the end."""
    ledger.fail_with = {"get": BROKEN}
    async with service.session(ledger=ledger) as session:
        batch = session.convert_all(track(n) for n in itertools.count())
        outcomes, error = await clock.run(stopped(batch))
        assert isinstance(error, LedgerError)
        with pytest.raises(StopAsyncIteration):
            await clock.run(anext(batch))
    assert 1 <= len(outcomes) < 30
    assert {LedgerError} == {type(outcome.error) for outcome in outcomes}


async def test_unknown_tracks_do_not_hide_a_ledger_that_fails(clock, service, ledger) -> None:
    """Repeats that cannot be written stop a catalog of unknown tracks."""
    await ledger.open(clock.time())
    for n in range(300):
        await bring_to(ledger, n, TrackState.UNKNOWN, service, clock)
    left = ledger.die()
    left.fail_with = {"begin_attempt": BROKEN}
    async with service.session(ledger=left, on_unknown=OnUnknown.RESUBMIT) as session:
        batch = session.convert_all(track(n) for n in range(300))
        outcomes, error = await clock.run(stopped(batch))
        assert isinstance(error, LedgerError)
    assert {LedgerError} == {type(outcome.error) for outcome in outcomes}
    assert [] == service.submitted_at


async def test_an_earlier_run_counts_for_a_batch(clock, service, ledger) -> None:
    """``max_charges`` of all runs stops a catalog, but what is converted is yielded."""
    async with service.session(ledger=ledger) as session:
        await outcomes_of(clock, session.convert_all(track(n) for n in range(3)))
        left = ledger.die()
    async with service.session(ledger=left, max_charges=4) as session:
        batch = session.convert_all(track(n) for n in range(9))
        outcomes, error = await clock.run(stopped(batch))
        assert isinstance(error, ChargeLimitError)
    assert [0, 1, 2, 3] == sorted(outcome.index for outcome in outcomes if outcome.ok)
    assert (4, 0) == bill(left)
