"""A session with a ledger: what is written before what, and what the next one finds."""

from __future__ import annotations

import asyncio

import pytest

from fakes import ACCEPTED, LOST_CHARGED, FakeService, is_bounded, refusal, track
from kie_wav_async import OnUnknown, Outcome, RateLimit
from kie_wav_async.errors import (
    AlreadyExistsError,
    ChargeLimitError,
    InsufficientCreditsError,
    LedgerError,
    ServiceError,
    SubmitUnknownError,
)
from kie_wav_async.ledger import TrackState
from kie_wav_async.testing import FakeClock, MemoryLedger

BROKEN = LedgerError("no space left on device: free some")


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock: FakeClock) -> FakeService:
    """Return a service that takes half a second to answer."""
    return FakeService(clock, latency_s=0.5)


@pytest.fixture
def ledger() -> MemoryLedger:
    """Return an empty ledger."""
    return MemoryLedger()


def written(ledger: MemoryLedger) -> list[str]:
    """Return the names of the calls that write, in order."""
    return [
        name for name, _ in ledger.calls if name not in {"open", "get", "list_entries", "aclose"}
    ]


async def states(ledger: MemoryLedger) -> dict[str, int]:
    """Return how many tracks stand where, without the states that hold none."""
    if not ledger.is_open:
        ledger = ledger.die()
        await ledger.open(0.0)
    return {str(state): n for state, n in (await ledger.count_by_state()).items() if n}


# --- the order of things ----------------------------------------------------------------------


async def test_the_intent_is_written_before_the_submit_goes_out(clock, service, ledger) -> None:
    """While the intent is on its way to the disk, not a byte is sent."""
    ledger.hold = {"begin_attempt": asyncio.Event()}
    async with service.session(ledger=ledger) as session:
        submit = asyncio.create_task(session.submit(track()))
        await clock.advance(100.0)
        assert ["begin_attempt"] == written(ledger)
        assert [] == service.submitted_at

        ledger.hold["begin_attempt"].set()
        assert "task0001" == (await clock.run(submit)).task_id


async def test_the_task_is_written_before_its_submit_returns(clock, service, ledger) -> None:
    """Whoever submits hears of the task once it is on the disk, and nobody polls it before."""
    ledger.hold = {"finish_attempt": asyncio.Event()}
    async with service.session(ledger=ledger) as session:
        submit = asyncio.create_task(session.submit(track()))
        await clock.advance(100.0)
        assert ["begin_attempt", "finish_attempt"] == written(ledger)
        assert 1 == service.charged
        assert not submit.done()
        assert [] == service.polled_at

        ledger.hold["finish_attempt"].set()
        assert "task0001" == (await clock.run(submit)).task_id


async def test_the_result_is_written_before_its_waiter_wakes(clock, service, ledger) -> None:
    """Whoever waits for the file has it once it is on the disk."""
    ledger.hold = {"finish_task": asyncio.Event()}
    async with service.session(ledger=ledger) as session:
        conversion = await clock.run(session.submit(track()))
        waiter = asyncio.create_task(conversion.wait())
        await clock.advance(200.0)
        assert ["begin_attempt", "finish_attempt", "finish_task"] == written(ledger)
        assert not conversion.done()
        assert not waiter.done()

        ledger.hold["finish_task"].set()
        assert track() == (await clock.run(waiter)).track
        assert conversion.done()


# --- the next one -------------------------------------------------------------------------------


async def test_a_killed_submit_is_unknown_to_the_next_session(clock, service, ledger) -> None:
    """A submit that was on the wire when its process died is never sent again by itself."""
    async with service.session(ledger=ledger) as session:
        submit = asyncio.create_task(session.submit(track()))
        await clock.advance(0.4)
        assert not submit.done()
        left = ledger.die()
        await clock.advance(10.0)
    assert 1 == service.charged

    async with service.session(ledger=left) as session:
        (unknown,) = session.unknown_submits()
        with pytest.raises(SubmitUnknownError, match=unknown.attempt_id):
            await clock.run(session.convert(track()))
        assert track() == unknown.track
        assert is_bounded(service, session)

    assert 1 == service.charged


async def test_a_killed_wait_is_gone_on_with(clock, service, ledger) -> None:
    """A track that was accepted by a process that died is followed, and not paid again."""
    async with service.session(ledger=ledger) as session:
        conversion = await clock.run(session.submit(track()))
        left = ledger.die()

    async with service.session(ledger=left) as session:
        wav = await clock.run(session.convert(track()))

    assert (conversion.task_id, 1) == (wav.task_id, service.charged)
    assert wav.expires_at is not None
    assert {"succeeded": 1} == await states(left)


async def test_recover_follows_what_was_left_open(clock, service, ledger) -> None:
    """What earlier runs left open is asked about again, spread over one interval."""
    tracks = [track(n) for n in range(12)]
    async with service.session(ledger=ledger) as session:
        for each in tracks:
            await clock.run(session.submit(each))
        left = ledger.die()
    service.polled_at.clear()

    async with service.session(ledger=left) as session:
        began = clock.monotonic()
        conversions = await session.recover()
        again = await session.recover()
        wavs = [await clock.run(conversion.wait()) for conversion in conversions]

    assert conversions == again
    assert tracks == [wav.track for wav in wavs]
    assert 12 == service.charged
    first_polls = [at - began for at, _ in service.polled_at[:12]]
    assert 5.0 < max(first_polls) - min(first_polls)
    assert max(first_polls) < 11.0


async def test_recover_needs_a_ledger(service) -> None:
    """Without a ledger there is nothing to recover from, which is a mistake to ask for."""
    async with service.session() as session:
        with pytest.raises(RuntimeError, match="ledger"):
            await session.recover()


async def test_a_success_is_never_paid_again(clock, service, ledger) -> None:
    """A track that any run converted is returned settled, with nothing sent."""
    async with service.session(ledger=ledger) as session:
        first = await clock.run(session.convert(track()))
        async with session.convert_all([track()]) as batch:
            assert [first] == [outcome.wav async for outcome in batch]

    async with service.session(ledger=ledger.die()) as session:
        second = await clock.run(session.convert(track()))
        assert second.url == first.url
        assert (second.task_id, second.expires_at) == (first.task_id, first.expires_at)

        third = await clock.run(session.convert(track(), again=True))

    assert (2, first.task_id) == (len(service.submitted_at), third.task_id)


async def test_the_window_outlives_the_process(clock, service, ledger) -> None:
    """A restart does not send a second burst into the same window."""
    settings = {"rate_limit": RateLimit(3, per_s=10.0)}
    async with service.session(ledger=ledger, **settings) as session:
        for n in range(3):
            await clock.run(session.submit(track(n)))
        left = ledger.die()
    async with service.session(ledger=left, **settings) as session:
        await clock.run(session.submit(track(9)))

    assert 10.0 <= service.submitted_at[3] - service.submitted_at[0]


async def test_the_limit_of_charges_outlives_the_process(clock, service, ledger) -> None:
    """``max_charges`` counts what all runs were charged, or may have been."""
    service.fates += [ACCEPTED, LOST_CHARGED]
    async with service.session(ledger=ledger) as session:
        await clock.run(session.submit(track(1)))
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track(2)))
        left = ledger.die()

    async with service.session(ledger=left, max_charges=3) as session:
        await clock.run(session.submit(track(3)))
        with pytest.raises(ChargeLimitError):
            await clock.run(session.submit(track(4)))

    assert 3 == service.charged


async def test_an_unknown_submit_is_repeated_once_by_the_next_session(
    clock, service, ledger
) -> None:
    """Where repeats are wanted, one of an earlier run's is sent a minute after it was lost."""
    async with service.session(ledger=ledger) as session:
        submit = asyncio.create_task(session.submit(track()))
        await clock.advance(0.4)
        assert not submit.done()
        left = ledger.die()
        await clock.advance(5.0)

    async with service.session(ledger=left, on_unknown=OnUnknown.RESUBMIT) as session:
        opened_at = clock.monotonic()
        wav = await clock.run(session.convert(track()))

    assert ("task0001", 1) == (wav.task_id, service.charged)
    assert 59.0 < service.submitted_at[1] - opened_at < 61.0


# --- a ledger that fails ------------------------------------------------------------------------


async def test_nothing_is_sent_that_cannot_be_written(clock, service, ledger) -> None:
    """Where the intent cannot be written the submit fails, and nothing was sent."""
    ledger.fail_with = {"begin_attempt": BROKEN}
    async with service.session(ledger=ledger) as session:
        with pytest.raises(LedgerError, match="no space left") as caught:
            await clock.run(session.submit(track()))
        assert 0 == session.statistics().submitted

        ledger.fail_with = None
        assert "task0001" == (await clock.run(session.submit(track()))).task_id

    assert (None, track()) == (caught.value.task_id, caught.value.track)
    assert 1 == len(service.submitted_at)


async def test_a_task_that_cannot_be_written_is_told(clock, service, ledger, caplog) -> None:
    """Where an accepted task cannot be written its id is in the error, the log and the books."""
    ledger.fail_with = {"finish_attempt": BROKEN}
    async with service.session(ledger=ledger) as session:
        with pytest.raises(LedgerError, match="task0001") as caught:
            await clock.run(session.submit(track()))

        assert "task0001" == caught.value.task_id
        (conversion,) = session.conversions()
        assert "task0001" == conversion.task_id
        assert any("task0001" in text for text in caplog.messages)


async def test_a_result_that_cannot_be_written_stays_open(clock, service, ledger) -> None:
    """Where an end cannot be written the wait fails, and asking again costs nothing."""
    ledger.fail_with = {"finish_task": BROKEN}
    async with service.session(ledger=ledger) as session:
        with pytest.raises(LedgerError, match="costs nothing"):
            await clock.run(session.convert(track()))
        assert {"accepted": 1} == await states(ledger)

        ledger.fail_with = None
        wav = await clock.run(session.convert(track()))

    assert ("task0001", 1) == (wav.task_id, service.charged)
    assert {"succeeded": 1} == await states(ledger)


async def test_a_batch_stops_at_a_ledger_that_fails(clock, service, ledger) -> None:
    """A catalog is read no further once nothing can be written."""
    read: list[int] = []

    def source():
        for n in range(500):
            read.append(n)
            yield track(n)

    ledger.fail_with = {"begin_attempt": BROKEN}
    outcomes: list[Outcome] = []
    async with service.session(ledger=ledger) as session, session.convert_all(source()) as batch:

        async def consume() -> None:
            async for outcome in batch:
                outcomes.append(outcome)  # noqa: PERF401 - the batch raises in the end

        with pytest.raises(LedgerError):
            await clock.run(consume())

    assert len(read) == len(outcomes) < 50
    assert all(isinstance(outcome.error, LedgerError) for outcome in outcomes)
    assert [] == service.submitted_at


async def test_a_ledger_that_cannot_be_opened_ends_the_session_before_it_begins(
    service, ledger
) -> None:
    """``async with`` raises what the ledger says."""
    ledger.fail_with = BROKEN
    with pytest.raises(LedgerError):
        async with service.session(ledger=ledger):
            pytest.fail("it was entered")


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (401, "planned"),
        (402, "planned"),
        (409, "exists_without_id"),
        (422, "rejected"),
        (451, "rejected"),
    ],
)
async def test_a_refusal_is_written_down(clock, service, ledger, code: int, state: str) -> None:
    """What is about the track ends it; what is about the account leaves it planned."""
    service.fates.append(refusal(code))
    async with service.session(ledger=ledger) as session:
        with pytest.raises(ServiceError):
            await clock.run(session.submit(track()))
        await clock.advance(0.0)
        found = await ledger.get(track())

    assert found is not None
    assert state == found.state


async def test_a_track_that_exists_is_not_submitted_again(clock, service, ledger) -> None:
    """The service has its WAV under an id it did not tell: no later run asks for another."""
    service.fates.append(refusal(409))
    async with service.session(ledger=ledger) as session:
        with pytest.raises(AlreadyExistsError):
            await clock.run(session.submit(track()))

    async with service.session(ledger=ledger.die()) as session:
        with pytest.raises(AlreadyExistsError):
            await clock.run(session.submit(track()))

    assert 1 == len(service.submitted_at)


async def test_credits_that_run_out_leave_the_rest_planned(clock, service, ledger) -> None:
    """After 402 the tracks not taken are as they were."""
    service.fates += [ACCEPTED, refusal(402), refusal(402)]
    await ledger.open(0.0)
    await ledger.add_tracks(track(n) for n in range(3))
    async with (
        service.session(ledger=ledger) as session,
        session.convert_all([track(n) for n in range(3)]) as batch,
    ):

        async def consume() -> None:
            async for _ in batch:
                pass

        with pytest.raises(InsufficientCreditsError):
            await clock.run(consume())

    assert {"planned": 2, "succeeded": 1} == await states(ledger)
    await ledger.aclose()


async def test_the_ledger_is_closed_with_the_session(clock, service, ledger) -> None:
    """A ledger opened by the session is closed with it, and one that was open stays open."""
    async with service.session(ledger=ledger):
        assert ledger.is_open
    assert not ledger.is_open

    await ledger.open(clock.time())
    async with service.session(ledger=ledger):
        pass
    assert ledger.is_open
    assert TrackState.PLANNED in await ledger.count_by_state()
    await ledger.aclose()
