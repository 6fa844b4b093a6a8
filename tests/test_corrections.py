"""The user's word on an unknown submit, taken back: by another one, in session and ledger."""

from __future__ import annotations

import asyncio

import pytest

from fakes import LOST_CHARGED, LOST_FREE, FakeService, counted, is_bounded, track
from kie_wav_async.errors import AlreadyExistsError, ChargeLimitError, SubmitUnknownError
from kie_wav_async.events import SubmitAccepted
from kie_wav_async.ledger import TrackState
from kie_wav_async.testing import FakeClock, MemoryLedger
from ledger_steps import bill


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock) -> FakeService:
    """Return a service that has lost the answer to a submit that it charged."""
    service = FakeService(clock, knows_repeats=False)
    service.fates.append(LOST_CHARGED)
    return service


async def lose(clock, session, number: int = 1) -> str:
    """Submit a track whose answer is lost; return the attempt."""
    with pytest.raises(SubmitUnknownError) as caught:
        await clock.run(session.submit(track(number)))
    return caught.value.attempt_id


async def state_of(ledger: MemoryLedger) -> TrackState:
    """Return where the track stands in a ledger that is open."""
    entry = await ledger.get(track())
    assert entry is not None
    return entry.state


@pytest.mark.parametrize("is_kept", [False, True])
async def test_a_wrong_task_is_replaced_in_flight(clock, service, is_kept) -> None:
    """Who waits for the wrong task gets the file of the right one."""
    service.create("stranger", track(1))
    ledger = MemoryLedger() if is_kept else None
    async with service.session(ledger=ledger) as session:
        attempt_id = await lose(clock, session)
        await session.resolve_unknown(attempt_id, task_id="stranger")
        wait = asyncio.create_task(session.convert(track()))
        await clock.advance(1.0)
        await session.resolve_unknown(attempt_id, task_id="task0002")
        wav = await clock.run(wait)
        assert ("task0002", track()) == (wav.task_id, wav.track)
        assert {"submitted": 1, "accepted": 1, "adopted": 1, "settled_by_poll": 1} == {
            name: n
            for name, n in counted(session).items()
            if name not in {"polls", "duplicate_results"}
        }
        assert wav is await session.convert(track())
        assert is_bounded(service, session)
        assert () == session.conversions()
        assert ledger is None or (1, 0) == bill(ledger)


async def test_a_task_of_another_track_is_found_out_and_replaced(clock, service) -> None:
    """A task whose record names another track ends the wait, and can be replaced then."""
    service.create("stranger", track(7))
    async with service.session(ledger=MemoryLedger()) as session:
        attempt_id = await lose(clock, session)
        await session.resolve_unknown(attempt_id, task_id="stranger")
        with pytest.raises(AlreadyExistsError, match="converts another track"):
            await clock.run(session.convert(track()))
        await session.resolve_unknown(attempt_id, task_id="task0002")
        assert "task0002" == (await clock.run(session.convert(track()))).task_id
        assert (1, 0) == (session.statistics().accepted, session.statistics().unknown)


@pytest.mark.parametrize("is_kept", [False, True])
async def test_a_result_of_the_wrong_task_is_forgotten(clock, service, is_kept) -> None:
    """A task that was settled before the word was replaced is not this track's result."""
    service.create("stranger", track(1))
    ledger = MemoryLedger() if is_kept else None
    async with service.session(ledger=ledger) as session:
        attempt_id = await lose(clock, session)
        await session.resolve_unknown(attempt_id, task_id="stranger")
        assert "stranger" == (await clock.run(session.convert(track()))).task_id
        await session.resolve_unknown(attempt_id, task_id="task0002")
        assert "task0002" == (await clock.run(session.convert(track()))).task_id
        assert 1 == len(service.submitted_at)
        assert 1 == session.statistics().accepted


async def test_a_task_becomes_not_charged(clock) -> None:
    """Replaced by not_charged, a word frees the track, and its waiters get a new submit."""
    service = FakeService(clock)
    service.fates.append(LOST_FREE)
    service.create("stranger", track(1))
    service.knows_repeats = False
    async with service.session(ledger=(ledger := MemoryLedger()), max_charges=1) as session:
        attempt_id = await lose(clock, session)
        await session.resolve_unknown(attempt_id, task_id="stranger")
        with pytest.raises(ChargeLimitError):
            await clock.run(session.submit(track(2)))
        wait = asyncio.create_task(session.convert(track()))
        await clock.advance(1.0)
        await session.resolve_unknown(attempt_id, not_charged=True)
        assert "task0002" == (await clock.run(wait)).task_id
        assert (1, 0) == (session.statistics().accepted, session.statistics().unknown)
        assert (1, 1) == (service.charged, len(bill(ledger)) - 1)


async def test_not_charged_becomes_a_task(clock, service) -> None:
    """A track that was said to be free is followed under the task that turned up."""
    async with service.session(ledger=(ledger := MemoryLedger())) as session:
        attempt_id = await lose(clock, session)
        await session.resolve_unknown(attempt_id, not_charged=True)
        assert TrackState.PLANNED is await state_of(ledger)
        await session.resolve_unknown(attempt_id, task_id="task0001")
        assert TrackState.ACCEPTED is await state_of(ledger)
        assert "task0001" == (await clock.run(session.convert(track()))).task_id
        assert (1, 1) == (service.charged, session.statistics().accepted)


async def test_not_charged_becomes_a_task_while_the_repeat_goes_on(clock, service) -> None:
    """A repeat on its way is not undone: both are counted, and both are followed."""
    async with service.session() as session:
        attempt_id = await lose(clock, session)
        await session.resolve_unknown(attempt_id, not_charged=True)
        await clock.run(session.submit(track()))
        await session.resolve_unknown(attempt_id, task_id="task0001")
        assert {"task0001", "task0002"} == {one.task_id for one in session.conversions()}
        assert (2, 2) == (service.charged, session.statistics().accepted)
        # And back again: the task goes on, and is not the track's.
        await session.resolve_unknown(attempt_id, not_charged=True)
        assert 1 == session.statistics().accepted
        assert "task0002" == (await clock.run(session.convert(track()))).task_id
        await clock.run(asyncio.gather(*(one.wait() for one in session.conversions())))


@pytest.mark.parametrize("is_claimed", [False, True])
async def test_a_task_that_was_attached_stays_attached(clock, service, is_claimed) -> None:
    """Taken back, a word leaves a task to whoever follows it."""
    ledger = MemoryLedger()
    service.create("stranger", track(7))
    async with service.session(ledger=ledger) as session:
        attempt_id = await lose(clock, session)
        if not is_claimed:
            await correct_attached(clock, session, attempt_id)
    if is_claimed:  # In the next run nothing of the track is in the session yet.
        async with service.session(ledger=ledger) as session:
            await correct_attached(clock, session, attempt_id)


async def correct_attached(clock, session, attempt_id: str) -> None:
    """Take a task that is attached for that of an attempt, and take that back."""
    attached = session.attach("stranger")
    await session.resolve_unknown(attempt_id, task_id="stranger")
    await session.resolve_unknown(attempt_id, task_id="task0002")
    assert attached.track is None
    assert "task0002" == (await clock.run(session.convert(track()))).task_id
    assert "stranger" == (await clock.run(attached.wait())).task_id
    assert 1 == session.statistics().accepted
    assert () == session.conversions()


async def test_the_clock_of_a_corrected_conversion_starts_anew(clock, service) -> None:
    """The timeout of others is kept, and the corrected one has its own from the correction."""
    service.conversion_s = 1e6
    async with service.session(timeout_s=100.0) as session:
        attempt_id = await lose(clock, session)
        await session.resolve_unknown(attempt_id, task_id="stranger")
        corrected = asyncio.create_task(session.convert(track()))
        await clock.advance(10.0)
        other = asyncio.create_task(session.convert(track(2)))
        await clock.advance(40.0)
        await session.resolve_unknown(attempt_id, task_id="task0001")
        await clock.advance(65.0)
        assert (True, False) == (other.done(), corrected.done())
        await clock.advance(40.0)
        assert corrected.done()
        assert other.exception() is not None
        assert corrected.exception() is not None


async def test_what_the_service_said_is_no_word(clock, service) -> None:
    """A task that a callback has named is not replaced."""
    async with service.listening() as session:
        attempt_id = await lose(clock, session)
        await service.callback("task0001").to(session)
        await clock.advance(1.0)
        assert () == session.unknown_submits()
        with pytest.raises(ValueError, match="no unknown submit"):
            await session.resolve_unknown(attempt_id, not_charged=True)


async def test_the_word_of_an_attempt_that_was_answered_meanwhile(clock, service) -> None:
    """Where the ledger knows better by now, a word changes nothing."""
    async with service.session(ledger=(ledger := MemoryLedger())) as session:
        attempt_id = await lose(clock, session)
        await ledger.finish_attempt(attempt_id, "accepted", clock.time(), task_id="task0001")
        await session.resolve_unknown(attempt_id, not_charged=True)
        assert TrackState.ACCEPTED is await state_of(ledger)


async def test_an_attached_task_that_a_word_names_is_told_of(clock, service) -> None:
    """Who stores the tasks by their events learns which attached one a lost submit had made."""
    told: list[SubmitAccepted] = []
    async with service.session(on_event=told.append) as session:
        attempt_id = await lose(clock, session)
        await clock.run(session.submit(track(), again=True))
        conversion = session.attach("task0001")
        await session.resolve_unknown(attempt_id, task_id="task0001")
        _, event = [event for event in told if isinstance(event, SubmitAccepted)]

    assert ("task0001", track(), attempt_id, True) == (
        event.task_id,
        event.track,
        event.attempt_id,
        event.adopted,
    )
    assert track() == conversion.track
