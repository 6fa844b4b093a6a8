"""A ledger that fails at any call: no task is lost, nothing is paid twice, and it may recover."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools

import pytest

from fakes import ACCEPTED, LOST_CHARGED, FakeService, refusal, track
from kie_wav_async import OnUnknown, RateLimit, RetryPolicy, events
from kie_wav_async.errors import KieWavError, LedgerError, SubmitUnknownError
from kie_wav_async.ledger import TrackState
from kie_wav_async.testing import FakeClock, MemoryLedger
from ledger_steps import bill, is_in_bill

BROKEN = LedgerError("no space left on device: free some")
TRACKS = [track(n) for n in (1, 2, 3)]


class FailingLedger(MemoryLedger):
    """Fails from the n-th call of the names given, or of any, so many times."""

    def __init__(self, first: int, often: int, *, is_late: bool, names: tuple[str, ...]) -> None:
        super().__init__()
        self.first, self.often, self.is_late, self.names = first, often, is_late, names
        self.seen = 0
        self.is_due: dict[asyncio.Task[object] | None, bool] = {}

    @property
    def has_failed(self) -> bool:
        return self.seen >= self.first

    def _next_fails(self, name: str) -> bool:
        if self.names and name not in self.names:
            return False
        self.seen += 1
        return self.first <= self.seen < self.first + self.often

    async def _call(self, name: str, *args: object, is_open: bool = True) -> None:
        await super()._call(name, *args, is_open=is_open)
        fails = self._next_fails(name)
        if fails and not self.is_late:
            raise BROKEN.about()
        self.is_due[asyncio.current_task()] = fails

    async def _return(self, name: str) -> None:
        if self.is_due.pop(asyncio.current_task()):
            raise BROKEN.about()
        await super()._return(name)


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock: FakeClock) -> FakeService:
    """Return a service that takes half a second to answer, and knows no repeats."""
    return FakeService(clock, latency_s=0.5, conversion_s=16.0, knows_repeats=False)


async def outcomes_of(clock, batch) -> tuple[list[object], list[KieWavError]]:
    """Return the outcomes of a batch, and what it raised."""
    outcomes, raised = [], []
    while True:
        try:
            outcomes.append(await clock.run(anext(batch)))
        except StopAsyncIteration:
            return outcomes, raised
        except KieWavError as error:
            raised.append(error)


@pytest.mark.parametrize(
    "names", [(), ("begin_attempt",), ("finish_attempt",), ("finish_task",), ("get",)], ids=str
)
@pytest.mark.parametrize("often", [1, 1_000])
@pytest.mark.parametrize("is_late", [False, True], ids=["early", "late"])
async def test_any_call_may_fail(clock, names, often, is_late) -> None:
    """From whichever call on, early or late: once or for good, no task is lost or paid twice."""
    for first in itertools.count(1):
        ledger = FailingLedger(first, often, is_late=is_late, names=names)
        world = FakeService(clock, latency_s=0.5, conversion_s=16.0, knows_repeats=False)
        world.fates += [ACCEPTED, refusal(429), LOST_CHARGED]
        told: list[object] = []
        await live(clock, world, ledger, told)
        lost = {task.task_id for task in world.tasks.values()}
        lost -= {getattr(event, "task_id", None) for event in told}
        assert len(lost) <= 1, "only the one whose answer was lost"
        charges = collections.Counter(task.track for task in world.tasks.values())
        assert set(charges.values()) <= {1}
        if not ledger.has_failed:
            break
    assert first > 2


async def live(clock, world, ledger, told) -> None:
    """Convert the tracks over a ledger that fails, then mends, in one session and another."""
    with contextlib.suppress(LedgerError):
        async with world.session(ledger=ledger, on_event=told.append) as session:
            batch = session.convert_all(TRACKS)
            outcomes, raised = await outcomes_of(clock, batch)
            assert is_in_bill(world, ledger)
            assert {each.audio_id for each in TRACKS} >= {o.track.audio_id for o in outcomes}
            errors = [o.error for o in outcomes if isinstance(o.error, LedgerError)]
            assert len(raised) == bool(errors)
            assert all(isinstance(error, LedgerError) for error in raised)
            ids = {error.task_id for error in errors if error.task_id}
            assert ids <= set(world.tasks)
            assert all(each.done() or each.task_id for each in session.conversions())

            ledger.often = 0
            for each in TRACKS:
                with contextlib.suppress(SubmitUnknownError):
                    wav = await clock.run(session.convert(each))
                    assert each == wav.track
            await clock.run_pending()
            assert is_in_bill(world, ledger)
            counted = session.statistics()
            assert bill(ledger) == (counted.accepted, counted.unknown)
            states = collections.Counter(row.state() for row in ledger._tables.rows.values())
            assert {TrackState.SUCCEEDED: 2, TrackState.UNKNOWN: 1} == states
    ledger.often = 0
    async with world.session(ledger=ledger, on_event=told.append) as session:
        for each in TRACKS:
            with contextlib.suppress(SubmitUnknownError):
                await clock.run(session.convert(each))
        assert is_in_bill(world, ledger)


# --- what came of a submit ----------------------------------------------------------------------


async def test_a_submit_that_was_held_goes_on_once_that_is_written(clock, service) -> None:
    """A 429 that could not be written keeps its track from leaving until it can be."""
    ledger = MemoryLedger()
    service.fates.append(refusal(429))
    async with service.session(ledger=ledger) as session:
        ledger.fail_with = {"finish_attempt": BROKEN}
        with pytest.raises(LedgerError, match="no space left"):
            await clock.run(session.submit(track()))
        assert 1 == len(service.submitted_at)
        assert () == session.unknown_submits()

        ledger.fail_with = None
        assert "task0001" == (await clock.run(session.submit(track()))).task_id
        assert (1, 0) == bill(ledger)


async def test_a_repeat_goes_out_once_its_doubt_is_written(clock, service) -> None:
    """A submit that was lost while the ledger failed is repeated when it works again."""
    ledger = MemoryLedger()
    service.fates.append(LOST_CHARGED)
    async with service.session(ledger=ledger, on_unknown=OnUnknown.RESUBMIT) as session:
        ledger.fail_with = {"finish_attempt": BROKEN}
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(30.0)
        ledger.fail_with = None
        await clock.run(waiting)
        assert (1, 1) == bill(ledger)
        assert 1 == session.statistics().possible_double_charges


async def test_a_task_that_was_not_written_is_before_its_end_is(clock, service) -> None:
    """The WAV of a task that could not be written is in the ledger, once it works again."""
    ledger = MemoryLedger()
    async with service.session(ledger=ledger) as session:
        ledger.fail_with = {"finish_attempt": BROKEN}
        with pytest.raises(LedgerError) as caught:
            await clock.run(session.submit(track()))
        assert "task0001" == caught.value.task_id
        ledger.fail_with = None
        (conversion,) = session.conversions()
        wav = await clock.run(conversion.wait())
        found = await ledger.get(track())
        assert (TrackState.SUCCEEDED, wav.url) == (found.state, found.wav_url)
        assert (1, 0) == bill(ledger)


async def test_a_broken_ledger_is_not_asked_ever_more(clock, service) -> None:
    """However many submits are tried over a ledger that fails, what is owed to it stays small."""
    ledger = MemoryLedger()
    async with service.session(ledger=ledger, rate_limit=RateLimit(1_000, per_s=1.0)) as session:
        ledger.fail_with = {"begin_attempt": BROKEN, "finish_attempt": BROKEN}
        for n in range(200):
            with pytest.raises(LedgerError):
                await clock.run(session.submit(track(n)))
        ledger.fail_with = None
        calls = len(ledger.calls)
        await clock.run(session.submit(track()))
        assert len(ledger.calls) - calls < 10
    assert 1 == len(service.submitted_at)


async def test_waiters_end_with_errors_of_their_own(clock, service) -> None:
    """Each waiter for an end that could not be written is told, by an object of its own."""
    ledger = MemoryLedger()
    async with service.session(ledger=ledger) as session:
        ledger.fail_with = {"finish_task": BROKEN}
        waits = [asyncio.create_task(session.convert(track())) for _ in range(3)]
        await clock.run(asyncio.wait(waits))
        errors = [wait.exception() for wait in waits]
        assert [LedgerError] * 3 == [type(error) for error in errors]
        assert 3 == len({id(error) for error in errors})
        assert {("task0001", track())} == {(error.task_id, error.track) for error in errors}


async def test_a_track_that_cannot_be_looked_up_is_named(clock, service) -> None:
    """Who asks for a track that the ledger cannot be read for gets an error that names it."""
    ledger = MemoryLedger()
    async with service.session(ledger=ledger) as session:
        ledger.fail_with = {"get": BROKEN}
        for call in (session.submit(track()), session.convert(track())):
            with pytest.raises(LedgerError, match="no space left") as caught:
                await clock.run(call)
            assert track() == caught.value.track
        assert [] == service.submitted_at


async def test_no_event_of_an_end_that_was_not_written(clock, service) -> None:
    """A success that could not be written is told as the end of a wait, not as a success."""
    ledger = MemoryLedger()
    told: list[object] = []
    ledger.fail_with = {"finish_task": BROKEN}
    async with service.session(ledger=ledger, on_event=told.append) as session:
        with pytest.raises(LedgerError):
            await clock.run(session.convert(track()))
    assert [events.SubmitAccepted, events.ConversionEnded] == [type(event) for event in told]
    assert isinstance(told[1].error, LedgerError)


async def test_a_ledger_that_fails_at_a_refusal_leaves_its_error(clock, service) -> None:
    """Who was refused is told of the refusal, although the ledger was not."""
    ledger = MemoryLedger()
    service.fates.append(refusal(422, message="no such audio"))
    ledger.fail_with = {"finish_attempt": BROKEN}
    async with service.session(ledger=ledger, retry=RetryPolicy(attempts=1)) as session:
        with pytest.raises(KieWavError, match="no such audio"):
            await clock.run(session.submit(track()))
        ledger.fail_with = None
        await clock.run(session.submit(track(2)))
        assert TrackState.REJECTED is (await ledger.get(track())).state
