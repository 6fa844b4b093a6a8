"""Submits that are sent again, on their own or by the user's word, and those in doubt."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from fakes import (
    ACCEPTED,
    LOST_CHARGED,
    LOST_FREE,
    UNSENT,
    FakeService,
    Fate,
    is_bounded,
    lost,
    raw,
    refusal,
    track,
)
from kie_wav_async import (
    OnUnknown,
    RateLimit,
    RetryPolicy,
    events,
)
from kie_wav_async.errors import (
    AlreadyExistsError,
    AuthenticationError,
    ChargeLimitError,
    InvalidRequestError,
    MaintenanceError,
    RateLimitedError,
    SubmitUnknownError,
    TransportError,
)
from kie_wav_async.testing import FakeClock, answer, refused, submitted_track, succeeded


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock) -> FakeService:
    """Return a service that means well until it is told otherwise."""
    return FakeService(clock)


# --- repeated on its own: unsent, 429, 455 ------------------------------------------------


async def test_unsent_submit_is_tried_again_with_full_jitter(clock, service) -> None:
    """A submit that never left is tried again after a chance share of a growing back-off."""
    service.fates += [UNSENT] * 3
    policy = RetryPolicy(attempts=4, base_s=2.0, cap_s=5.0)
    async with service.session(retry=policy) as session:
        session._context.random = iter([0.5, 0.25, 1.0]).__next__
        started = clock.monotonic()
        await clock.run(session.submit(track()))
        assert [0.0, 1.0, 2.0, 7.0] == [at - started for at in service.submitted_at]
        assert (4, 1) == (session.statistics().submitted, session.statistics().accepted)
        assert 4 == len(set(service.attempts))


async def test_unsent_submit_ends_after_its_attempts(clock, service) -> None:
    """A submit that could not be sent in so many attempts ends with that error."""
    service.fates += [UNSENT] * 9
    async with service.session(retry=RetryPolicy(attempts=2)) as session:
        with pytest.raises(TransportError) as caught:
            await clock.run(session.submit(track()))
        assert not caught.value.maybe_sent
        assert track() == caught.value.track
        assert 2 == len(service.submitted_at)
        assert () == session.unknown_submits()


async def test_backing_off_holds_nobody_else(clock, service) -> None:
    """A submit that waits for its next try lets the others pass."""
    service.fates.append(UNSENT)
    async with service.session(retry=RetryPolicy(base_s=50.0, cap_s=50.0)) as session:
        session._context.random = lambda: 0.9
        slow = asyncio.create_task(session.submit(track(1)))
        await clock.run_pending()
        assert track(2) == (await clock.run(session.submit(track(2)))).track
        assert not slow.done()
        await clock.run(slow)


@pytest.mark.parametrize(
    ("retry_after", "delay_s"), [(None, 10.0), ("3", 3.0), ("5000", 300.0), ("soon", 10.0)]
)
async def test_429_rests_all_submits(clock, service, retry_after, delay_s) -> None:
    """A 429 rests every submit as long as it asks, 300 s at most, else for one window."""
    service.fates.append(refusal(429, retry_after=retry_after))
    async with service.session() as session:
        first = asyncio.create_task(session.submit(track(1)))
        await clock.advance(1.0)
        started = service.submitted_at[0]
        second = asyncio.create_task(session.submit(track(2)))
        await clock.advance(delay_s - 1.1)
        assert 1 == len(service.submitted_at)
        await clock.run(asyncio.gather(first, second))
        assert [delay_s] * 2 == pytest.approx([at - started for at in service.submitted_at[1:]])
        assert 1 == session.statistics().rejected_429
        assert "task0001" == first.result().task_id


async def test_held_submit_keeps_its_turn(clock, service) -> None:
    """A submit that was refused for the time being goes before those behind it."""
    service.fates += [refusal(429), refusal(455)]
    async with service.session(rate_limit=RateLimit(1, per_s=10.0)) as session:
        waits = asyncio.gather(*(session.submit(track(n)) for n in range(3)))
        conversions = await clock.run(waits)
        assert [f"task000{n + 1}" for n in range(3)] == [c.task_id for c in conversions]


async def test_429_ends_a_submit_after_its_attempts(clock, service) -> None:
    """A submit refused with 429 time and again ends with RateLimitedError, uncharged."""
    service.fates += [refusal(429)] * 3
    async with service.session() as session:
        with pytest.raises(RateLimitedError):
            await clock.run(session.submit(track()))
        assert 3 == session.statistics().rejected_429
        assert 3 == len(service.submitted_at)


async def test_maintenance_sends_one_probe_a_minute(clock, service) -> None:
    """Under 455 one submit a minute goes out, and those without patience end after three."""
    service.fates += [refusal(455)] * 50
    async with service.session() as session:
        started = clock.monotonic()
        waits = [asyncio.create_task(session.submit(track(n))) for n in range(5)]
        await clock.advance(600.0)
        assert all(isinstance(wait.exception(), MaintenanceError) for wait in waits)
        sent = [at - started for at in service.submitted_at]
        assert [0.0] * 5 + [60.0, 120.0] == sent


async def test_maintenance_is_one_news_for_the_queue(clock, service) -> None:
    """Submits refused with 455 together count once for those that wait behind them."""
    service.fates += [refusal(455)] * 5
    service.latency_s = 1.0
    async with service.session(rate_limit=RateLimit(5, per_s=10.0)) as session:
        waits = [asyncio.create_task(session.submit(track(n))) for n in range(8)]
        await clock.advance(59.0)
        assert not any(wait.done() for wait in waits)
        assert 8 == len(await clock.run(asyncio.gather(*waits)))


async def test_maintenance_over_lets_all_go(clock, service) -> None:
    """The first probe that is taken ends the maintenance for all."""
    service.fates += [refusal(455)] * 2
    async with service.session() as session:
        started = clock.monotonic()
        waits = asyncio.gather(*(session.submit(track(n)) for n in range(2)))
        await clock.run(waits)
        assert [0.0, 0.0, 60.0, 60.0] == [at - started for at in service.submitted_at]


async def test_only_a_probe_ends_the_maintenance(clock, service) -> None:
    """A yes to a submit that was on the wire before the maintenance does not end it."""
    service.fates += [refusal(455), ACCEPTED, refusal(455)]
    async with service.session() as session:
        started = clock.monotonic()
        waits = asyncio.gather(*(session.submit(track(n)) for n in range(2)))
        await clock.run(waits)
        assert [0.0, 0.0, 60.0, 120.0] == [at - started for at in service.submitted_at]


async def test_maintenance_is_sat_out_by_a_batch(clock, service) -> None:
    """A batch holds its tracks until the maintenance is over, however long."""
    service.fates += [refusal(455)] * 30
    async with service.session() as session, session.convert_all([track(1), track(2)]) as batch:

        async def consume():
            return [outcome.ok async for outcome in batch]

        assert [True, True] == await clock.run(consume())


async def test_maintenance_costs_a_batch_no_attempts(clock, service) -> None:
    """After a long maintenance a batch's track has all its attempts at being sent."""
    service.fates += [refusal(455)] * 5 + [UNSENT, UNSENT]
    async with service.session() as session, session.convert_all([track()]) as batch:
        outcome = await clock.run(anext(batch))
        assert outcome.ok


async def test_batch_lends_its_patience_to_a_joined_submit(clock, service) -> None:
    """A track that a batch joined in the queue is held under 455 like the batch's own."""
    service.fates += [refusal(455)] * 8
    async with service.session() as session:
        asker = asyncio.create_task(session.submit(track()))
        await clock.advance(1.0)
        async with session.convert_all([track()]) as batch:
            outcome = await clock.run(anext(batch))
            assert outcome.ok
        assert "task0001" == asker.result().task_id


async def test_lost_probe_is_a_probe(clock, service) -> None:
    """A probe that is lost, or cannot be sent, is not followed by another within the minute."""
    service.fates += [refusal(455), LOST_FREE, UNSENT, ACCEPTED]
    async with service.session() as session:
        started = clock.monotonic()
        waits = [asyncio.create_task(session.submit(track(1)))]
        await clock.advance(1.0)
        waits += [asyncio.create_task(session.submit(track(n))) for n in range(2, 5)]
        await clock.advance(600.0)
        sent = [at - started for at in service.submitted_at]
        assert [0.0, 60.0, 120.0, 180.0] == sent[:4]
        assert isinstance(waits[0].exception(), SubmitUnknownError)
        assert [None] * 3 == [wait.exception() for wait in waits[1:]]


# --- submits of unknown fate --------------------------------------------------------------


async def test_unknown_submit_is_raised_at_once_and_again(clock, service) -> None:
    """A lost submit raises at once, and again for whoever asks, with nothing sent."""
    service.fates.append(LOST_CHARGED)
    async with service.session() as session:
        started = clock.monotonic()
        waits = [asyncio.create_task(session.convert(track())) for _ in range(2)]
        await clock.run_pending()
        await asyncio.wait(waits)
        assert started == clock.monotonic()
        seen = [wait.exception() for wait in waits]
        for ask in (session.submit, session.convert):
            with pytest.raises(SubmitUnknownError) as caught:
                await ask(track())
            seen.append(caught.value)
        (unknown,) = session.unknown_submits()
        assert 4 == len({id(error) for error in seen})
        for error in seen:
            assert isinstance(error, SubmitUnknownError)
            assert (unknown.attempt_id, track()) == (error.attempt_id, error.track)
        assert service.attempts == [unknown.attempt_id]
        assert clock.time() == unknown.at.timestamp()
        assert 1 == len(service.submitted_at)
        assert isinstance(seen[0].__cause__, TransportError)


async def test_unknown_error_names_the_ways_out(clock, service) -> None:
    """The error of a lost submit names the callback, resolve_unknown and again=True."""
    service.fates.append(LOST_CHARGED)
    async with service.session() as session:
        with pytest.raises(SubmitUnknownError) as caught:
            await clock.run(session.submit(track()))
    text = caught.value.advice
    assert "callback" in text
    assert f"resolve_unknown({caught.value.attempt_id!r}" in text
    assert "again=True" in text


async def test_resolved_as_a_task(clock, service) -> None:
    """An unknown submit that the user gives a task is followed and joined from then on."""
    service.fates.append(LOST_CHARGED)
    seen = []
    async with service.session(on_event=seen.append) as session:
        with pytest.raises(SubmitUnknownError) as caught:
            await clock.run(session.submit(track()))
        attempt_id = caught.value.attempt_id
        await session.resolve_unknown(attempt_id, task_id="task0001")
        assert () == session.unknown_submits()
        counted = session.statistics()
        assert (1, 1, 0) == (counted.accepted, counted.adopted, counted.unknown)
        wav = await clock.run(session.convert(track()))
        assert ("task0001", None) == (wav.task_id, wav.expires_at)
        assert 1 == len(service.submitted_at)
        assert is_bounded(service, session)
    (told,) = [event for event in seen if isinstance(event, events.SubmitAccepted)]
    assert ("task0001", track(), attempt_id, True) == (
        told.task_id,
        told.track,
        told.attempt_id,
        told.adopted,
    )


async def test_resolved_after_the_track_went_on(clock, service) -> None:
    """A doubt resolved while another attempt is in flight is followed under its own attempt."""
    service.knows_repeats = False
    service.fates += [LOST_CHARGED, ACCEPTED]
    seen = []
    async with service.session(on_event=seen.append) as session:
        with pytest.raises(SubmitUnknownError) as caught:
            await clock.run(session.submit(track()))
        await clock.run(session.submit(track(), again=True))
        await session.resolve_unknown(caught.value.attempt_id, task_id="task0001")
        assert {"task0001", "task0002"} == {c.task_id for c in session.conversions()}
        told = [e.attempt_id for e in seen if isinstance(e, events.SubmitAccepted)]
        assert told == service.attempts[::-1]
        await clock.advance(200.0)
        assert 2 == session.statistics().settled_by_poll


async def test_resolved_as_not_charged(clock, service) -> None:
    """An unknown submit that was not charged can be submitted again like a new one."""
    service.fates.append(LOST_FREE)
    async with service.session() as session:
        with pytest.raises(SubmitUnknownError) as caught:
            await clock.run(session.submit(track()))
        await session.resolve_unknown(caught.value.attempt_id, not_charged=True)
        assert () == session.unknown_submits()
        assert "task0001" == (await clock.run(session.submit(track()))).task_id
        assert 0 == session.statistics().possible_double_charges
        assert is_bounded(service, session)


async def test_resolving_wants_one_answer(clock, service) -> None:
    """resolve_unknown refuses unknown attempts and anything but exactly one verdict."""
    service.fates.append(LOST_FREE)
    async with service.session() as session:
        with pytest.raises(SubmitUnknownError) as caught:
            await clock.run(session.submit(track()))
        attempt_id = caught.value.attempt_id
        for bad in ({}, {"task_id": "t", "not_charged": True}, {"task_id": "a b"}, {"task_id": ""}):
            with pytest.raises(ValueError, match=r"task_id"):
                await session.resolve_unknown(attempt_id, **bad)
        with pytest.raises(ValueError, match="no unknown submit"):
            await session.resolve_unknown("0" * 32, not_charged=True)
        for _ in range(2):  # Said again it changes nothing.
            await session.resolve_unknown(attempt_id, not_charged=True)


async def test_resolved_as_a_task_attached_before(clock, service) -> None:
    """A doubt resolved as a task that is followed already is followed once, and is ours."""
    service.knows_repeats = False
    service.latency_s = 3.0
    service.fates.append(LOST_CHARGED)
    async with service.session() as session:
        with pytest.raises(SubmitUnknownError) as caught:
            await clock.run(session.submit(track()))
        attached = session.attach("task0001")
        again = asyncio.create_task(session.submit(track(), again=True))
        await clock.advance(1.0)
        await session.resolve_unknown(caught.value.attempt_id, task_id="task0001")
        assert (attached,) == session.conversions()
        assert track() == attached.track
        await clock.advance(5.0)
        assert (attached, again.result()) == session.conversions()
        assert 2 == session.statistics().in_flight
        assert 2 == session._core.registry.used_slots
        assert is_bounded(service, session)
        await clock.advance(100.0)
        counted = session.statistics()
        assert (2, 0) == (counted.settled_by_poll, counted.duplicate_results)
        assert 0 == session._core.registry.used_slots
        times = [at for at, task_id in service.polled_at if task_id == "task0001"]
        assert all(later - earlier >= 8.0 for earlier, later in itertools.pairwise(times))


async def test_resolved_while_another_submit_is_queued(clock, service) -> None:
    """A doubt resolved as a task while a second submit waits for its turn saves that submit."""
    service.fates.append(LOST_CHARGED)
    async with service.session(rate_limit=RateLimit(1, per_s=50.0)) as session:
        with pytest.raises(SubmitUnknownError) as caught:
            await clock.run(session.submit(track()))
        waits = [asyncio.create_task(session.submit(track(), again=True))]
        await clock.run_pending()
        waits.append(asyncio.create_task(session.convert(track())))
        await clock.run_pending()
        await session.resolve_unknown(caught.value.attempt_id, task_id="task0001")
        await clock.run_pending()
        assert "task0001" == waits[0].result().task_id
        assert "task0001" == (await clock.run(waits[1])).task_id
        await clock.advance(100.0)
        assert 1 == len(service.submitted_at)
        assert is_bounded(service, session)


async def test_resolved_as_another_tracks_task_is_misuse(clock, service) -> None:
    """A task that is followed for another track cannot be what a doubt has created."""
    service.fates += [ACCEPTED, LOST_FREE]
    async with service.session() as session:
        await clock.run(session.submit(track(1)))
        with pytest.raises(SubmitUnknownError) as caught:
            await clock.run(session.submit(track(2)))
        with pytest.raises(ValueError, match="another track"):
            await session.resolve_unknown(caught.value.attempt_id, task_id="task0001")
        assert 1 == session.statistics().unknown


async def test_second_submit_withdrawn_leaves_the_doubt(clock, service) -> None:
    """A second submit of an unknown track that is withdrawn from the queue leaves it unknown."""
    service.fates.append(LOST_FREE)
    async with service.session(rate_limit=RateLimit(1, per_s=50.0)) as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track()))
        asker = asyncio.create_task(session.submit(track(), again=True))
        await clock.run_pending()
        asker.cancel()
        await clock.advance(100.0)
        assert 1 == len(service.submitted_at)
        with pytest.raises(SubmitUnknownError):
            await session.submit(track())
        await clock.run(session.submit(track(), again=True))
        assert is_bounded(service, session)


async def test_again_has_all_its_attempts(clock, service) -> None:
    """A second submit of an unknown track has all attempts, however many the first one took."""
    service.fates += [UNSENT, UNSENT, LOST_FREE, UNSENT, UNSENT, ACCEPTED]
    async with service.session() as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track()))
        assert "task0001" == (await clock.run(session.submit(track(), again=True))).task_id


async def test_one_of_two_doubts_resolved(clock, service) -> None:
    """A track with two doubts stays unknown until both are resolved."""
    service.fates += [LOST_FREE, LOST_FREE]
    async with service.session() as session:
        attempts = []
        for again in (False, True):
            with pytest.raises(SubmitUnknownError) as caught:
                await clock.run(session.submit(track(), again=again))
            attempts.append(caught.value.attempt_id)
        await session.resolve_unknown(attempts[1], not_charged=True)
        with pytest.raises(SubmitUnknownError) as caught:
            await session.submit(track())
        assert attempts[0] == caught.value.attempt_id
        await session.resolve_unknown(attempts[0], not_charged=True)
        assert "task0001" == (await clock.run(session.submit(track()))).task_id


# --- RESUBMIT -----------------------------------------------------------------------------


async def test_repeat_comes_a_minute_later(clock, service) -> None:
    """Under RESUBMIT a lost submit is sent again 60 s later, its waiters waiting on."""
    service.fates += [LOST_FREE, ACCEPTED]
    async with service.session(on_unknown=OnUnknown.RESUBMIT) as session:
        first = asyncio.create_task(session.convert(track()))
        await clock.advance(59.0)
        joined = asyncio.create_task(session.submit(track()))
        await clock.run_pending()
        assert 1 == len(service.submitted_at)
        await clock.advance(2.0)
        assert "task0001" == joined.result().task_id
        assert "task0001" == (await clock.run(first)).task_id
        lost_at, sent_at = service.submitted_at
        assert 60.0 == sent_at - lost_at
        assert 2 == len(set(service.attempts))
        counted = session.statistics()
        assert (2, 1, 1, 1) == (
            counted.submitted,
            counted.accepted,
            counted.unknown,
            counted.possible_double_charges,
        )
        assert is_bounded(service, session)


async def test_repeat_takes_a_turn_in_the_window(clock, service) -> None:
    """The repeat of a lost submit waits for a place in the window like any other."""
    service.fates += [LOST_FREE]
    async with service.session(
        on_unknown=OnUnknown.RESUBMIT, rate_limit=RateLimit(1, per_s=50.0)
    ) as session:
        waits = asyncio.gather(session.submit(track(1)), session.submit(track(2)))
        await clock.run(waits)
        started = service.submitted_at[0]
        assert [0.0, 50.0, 100.0] == [at - started for at in service.submitted_at]


async def test_repeat_explained_by_a_409(clock, service) -> None:
    """A repeat that is answered with the first one's task is an adoption, without a risk."""
    service.fates.append(LOST_CHARGED)
    async with service.session(on_unknown=OnUnknown.RESUBMIT) as session:
        wav = await clock.run(session.convert(track()))
        assert ("task0001", None) == (wav.task_id, wav.expires_at)
        counted = session.statistics()
        assert (1, 0, 1, 0) == (
            counted.accepted,
            counted.unknown,
            counted.adopted,
            counted.possible_double_charges,
        )
        assert 1 == service.charged


async def test_repeat_of_unknown_fate_raises(clock, service) -> None:
    """A repeat that is lost as well is not repeated: both attempts stay unknown."""
    service.knows_repeats = False
    service.fates += [LOST_CHARGED, LOST_CHARGED]
    async with service.session(on_unknown=OnUnknown.RESUBMIT) as session:
        with pytest.raises(SubmitUnknownError) as caught:
            await clock.run(session.convert(track()))
        assert service.attempts[1] == caught.value.attempt_id
        assert service.attempts == [unknown.attempt_id for unknown in session.unknown_submits()]
        await clock.advance(1_000.0)
        assert 2 == service.charged
        assert is_bounded(service, session)


async def test_repeat_is_once_per_life(clock, service) -> None:
    """A track is repeated once in a session's life; its next lost submit raises at once."""
    service.fates += [LOST_FREE, refusal(422), LOST_FREE]
    async with service.session(on_unknown=OnUnknown.RESUBMIT) as session:
        with pytest.raises(SubmitUnknownError) as caught:
            await clock.run(session.submit(track()))
        assert isinstance(caught.value.__cause__, InvalidRequestError)
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track(), again=True))
        await clock.advance(1_000.0)
        assert 3 == len(service.submitted_at)


async def test_again_does_not_wait_for_the_repeat(clock, service) -> None:
    """again=True sends at once what waits for its repeat, and there is no other repeat."""
    service.fates += [LOST_FREE]
    async with service.session(on_unknown=OnUnknown.RESUBMIT) as session:
        first = asyncio.create_task(session.submit(track()))
        await clock.advance(5.0)
        second = await clock.run(session.submit(track(), again=True))
        await clock.run_pending()
        assert first.result() is second
        await clock.advance(200.0)
        assert 2 == len(service.submitted_at)


async def test_resolved_while_waiting_for_the_repeat(clock, service) -> None:
    """A doubt resolved within the minute is not repeated, and its waiters get the file."""
    service.fates.append(LOST_CHARGED)
    async with service.session(on_unknown=OnUnknown.RESUBMIT) as session:
        waiter = asyncio.create_task(session.convert(track()))
        await clock.advance(5.0)
        (unknown,) = session.unknown_submits()
        await session.resolve_unknown(unknown.attempt_id, task_id="task0001")
        assert "task0001" == (await clock.run(waiter)).task_id
        await clock.advance(100.0)
        assert 1 == len(service.submitted_at)


async def test_absolved_while_waiting_for_the_repeat(clock, service) -> None:
    """A doubt found uncharged within the minute is sent again at once, without a risk."""
    service.fates.append(LOST_FREE)
    async with service.session(on_unknown=OnUnknown.RESUBMIT) as session:
        waiter = asyncio.create_task(session.submit(track()))
        await clock.advance(5.0)
        (unknown,) = session.unknown_submits()
        await session.resolve_unknown(unknown.attempt_id, not_charged=True)
        await clock.run_pending()
        assert "task0001" == waiter.result().task_id
        assert 0 == session.statistics().possible_double_charges
        assert is_bounded(service, session)


async def test_repeat_nobody_waits_for_is_not_sent(clock, service) -> None:
    """A lost submit whose waiters went away is repeated when somebody asks again, not before."""
    service.fates.append(LOST_CHARGED)
    async with service.session(on_unknown=OnUnknown.RESUBMIT) as session:
        asker = asyncio.create_task(session.convert(track()))
        await clock.advance(5.0)
        asker.cancel()
        await clock.advance(500.0)
        assert 1 == len(service.submitted_at)
        assert 1 == session.statistics().unknown
        conversion = await session.submit(track())
        assert 2 == len(service.submitted_at)
        assert "task0001" == conversion.task_id
        assert 0 == session.statistics().unknown
        assert is_bounded(service, session)


async def test_repeat_is_not_sent_for_a_batch_that_was_left(clock, service) -> None:
    """After a break out of a batch, what it lost is not sent again."""
    service.conversion_s = 20.0
    service.fates += [ACCEPTED, LOST_CHARGED]
    async with service.session(on_unknown=OnUnknown.RESUBMIT) as session:
        async with session.convert_all([track(1), track(2)]) as batch:
            await clock.advance(5.0)
            outcome = await clock.run(anext(batch))
            assert outcome.ok
            assert 1 == session.statistics().unknown
        await clock.advance(500.0)
        assert 2 == len(service.submitted_at)


async def test_repeat_found_needless_for_nobody(clock, service) -> None:
    """A doubt found uncharged within the minute is not sent again if nobody waits."""
    service.fates.append(LOST_FREE)
    async with service.session(on_unknown=OnUnknown.RESUBMIT) as session:
        asker = asyncio.create_task(session.submit(track()))
        await clock.advance(5.0)
        asker.cancel()
        await clock.run_pending()
        (unknown,) = session.unknown_submits()
        await session.resolve_unknown(unknown.attempt_id, not_charged=True)
        await clock.advance(500.0)
        assert 1 == len(service.submitted_at)
        assert "task0001" == (await clock.run(session.submit(track()))).task_id


# --- 409 ----------------------------------------------------------------------------------


async def test_existing_task_is_adopted(clock, service) -> None:
    """A 409 that names a task of our track gives that task, which no charge was made for."""
    service.create("old", track())
    async with service.session() as session:
        conversion = await clock.run(session.submit(track()))
        assert "old" == conversion.task_id
        counted = session.statistics()
        assert (1, 0, 1, 1) == (
            counted.submitted,
            counted.accepted,
            counted.adopted,
            counted.in_flight,
        )
        wav = await clock.run(conversion.wait())
        assert (track(), None) == (wav.track, wav.expires_at)


async def test_finished_existing_task_settles_at_once(clock, service) -> None:
    """A 409 that names a finished task settles without waiting for a poll's turn."""
    service.create("old", track())
    service.tasks["old"].ends_at = 0.0
    async with service.session() as session:
        started = clock.monotonic()
        wav = await clock.run(session.convert(track()))
        assert ("old", started) == (wav.task_id, clock.monotonic())


@pytest.mark.parametrize(
    "reply",
    [lambda _: refused(500), lambda _: lost(), lambda _: refused(429), lambda _: raw(b"<html>")],
    ids=["500", "reset", "429", "html"],
)
async def test_existing_task_is_adopted_without_its_record(clock, service, reply) -> None:
    """A 409 with an id is an adoption even if its record cannot be had just now."""
    service.create("old", track())
    service.poll_replies.append(reply)
    async with service.session() as session:
        assert "old" == (await clock.run(session.convert(track()))).task_id


async def test_existing_task_of_another_track_is_not_ours(clock, service) -> None:
    """A 409 that names a task whose record shows another audio id is a refusal."""
    service.create("old", track(2))
    exists = Fate("409", is_charged=False, reply=lambda _: refused(409, data={"taskId": "old"}))
    service.fates.append(exists)
    async with service.session() as session:
        with pytest.raises(AlreadyExistsError) as caught:
            await clock.run(session.submit(track(1)))
        assert ("old", track(1)) == (caught.value.task_id, caught.value.track)
        assert () == session.conversions()
        assert 0 == session.statistics().adopted


async def test_adopted_task_turns_out_to_be_another_tracks(clock, service) -> None:
    """An adopted task whose later record shows another audio id ends as not ours."""
    service.create("old", track(2))
    service.poll_replies.append(lambda _: refused(500))
    exists = Fate("409", is_charged=False, reply=lambda _: refused(409, data={"taskId": "old"}))
    service.fates.append(exists)
    async with service.session() as session:
        with pytest.raises(AlreadyExistsError):
            await clock.run(session.convert(track(1)))


async def test_conflict_without_id(clock, service) -> None:
    """A 409 that names no task is AlreadyExistsError, and the track may be asked for again."""
    service.fates.append(refusal(409))
    async with service.session() as session:
        with pytest.raises(AlreadyExistsError) as caught:
            await clock.run(session.submit(track()))
        assert (None, track()) == (caught.value.task_id, caught.value.track)
        assert () == session.unknown_submits()
        await clock.run(session.submit(track()))


async def test_task_of_another_track_is_no_answer(clock, service) -> None:
    """A yes that names a task in flight for another track leaves the submit unknown."""
    repeated = Fate("old id", is_charged=True, reply=lambda _: answer(ONE))
    service.fates += [ACCEPTED, repeated]
    async with service.session() as session:
        await clock.run(session.submit(track(1)))
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track(2)))
        assert is_bounded(service, session)


ONE = {"code": 200, "msg": "success", "data": {"taskId": "task0001"}}


# --- whose task a 409 names ---------------------------------------------------------------


def conflict(task_id: str) -> Fate:
    """Return the fate of a submit whose track has a task already."""
    return Fate("409", is_charged=False, reply=lambda _: refused(409, data={"taskId": task_id}))


async def test_conflict_explains_only_the_attempt_its_record_names(service) -> None:
    """Of two doubts a 409 ends the one that its task's record names; the other stays."""
    service.knows_repeats = False
    service.fates += [LOST_CHARGED, LOST_CHARGED]
    async with service.session() as session:
        for again in (False, True):
            with pytest.raises(SubmitUnknownError):
                await session.submit(track(), again=again)
        first, second = session.unknown_submits()
        newest = list(service.tasks)[-1]
        service.fates.append(conflict(newest))
        await session.submit(track(), again=True)

        assert service.tasks[newest].attempt_id == second.attempt_id
        assert (first,) == session.unknown_submits()
        assert is_bounded(service, session)


async def test_conflict_with_a_task_of_others_leaves_the_doubt(service) -> None:
    """A 409 that names somebody else's task does not make our lost submit a charge."""
    service.create("task9999", track(), "https://other.example/hook")
    service.fates += [LOST_FREE, conflict("task9999")]
    async with service.session() as session:
        with pytest.raises(SubmitUnknownError):
            await session.submit(track())
        await session.submit(track(), again=True)

        assert 0 == service.charged
        assert 1 == session.statistics().unknown
        assert is_bounded(service, session)


async def test_doubt_is_explained_by_the_first_record_that_can_be_read(clock, service) -> None:
    """If the record of a 409's task cannot be read, the next one that can ends the doubt."""
    service.fates.append(LOST_CHARGED)
    service.poll_replies.append(lambda _: raw(b"<html>", 502))
    async with service.session() as session:
        with pytest.raises(SubmitUnknownError):
            await session.submit(track())
        conversion = await session.submit(track(), again=True)
        assert 1 == session.statistics().unknown
        await clock.run(conversion.wait())

        assert (1, 0) == (session.statistics().accepted, session.statistics().unknown)
        assert is_bounded(service, session)


async def test_submits_refused_together_keep_their_order(clock, service) -> None:
    """Submits that met a 429 at the same time go again in the order they came."""
    service.latency_s = 1.0
    service.fates += [refusal(429)] * 4
    async with service.session(rate_limit=RateLimit(4, per_s=10.0)) as session:
        waiters = [asyncio.create_task(session.submit(track(n))) for n in range(6)]
        await clock.run(asyncio.gather(*waiters))

    order = [submitted_track(request).audio_id for request in service.transport.submits]
    assert ["e0", "e1", "e2", "e3", "e0", "e1", "e2", "e3", "e4", "e5"] == order


async def test_resolved_as_the_task_a_409_named(service) -> None:
    """A doubt resolved as the task that a 409 named, of unread record, is one charge."""
    service.fates.append(LOST_CHARGED)
    service.poll_replies.append(lambda _: raw(b"<html>", 502))
    async with service.session() as session:
        with pytest.raises(SubmitUnknownError):
            await session.submit(track())
        await session.submit(track(), again=True)
        (unknown,) = session.unknown_submits()
        await session.resolve_unknown(unknown.attempt_id, task_id="task0001")

        assert (1, 0) == (session.statistics().accepted, session.statistics().unknown)
        assert is_bounded(service, session)


async def test_late_record_of_another_track_explains_no_doubt(clock, service) -> None:
    """A 409's task whose record turns out to be another track's leaves our doubt."""
    service.create("task9999", track(5))
    service.fates += [LOST_FREE, conflict("task9999")]
    foreign = succeeded("task9999", musicId="e5")
    service.poll_replies += [lambda _: raw(b"<html>", 502), lambda _: foreign]
    async with service.session() as session:
        with pytest.raises(SubmitUnknownError):
            await session.submit(track())
        conversion = await session.submit(track(), again=True)
        with pytest.raises(AlreadyExistsError):
            await clock.run(conversion.wait())

        assert (0, 1) == (session.statistics().accepted, session.statistics().unknown)
        assert is_bounded(service, session)


# --- a repeat that nobody waited for, asked for later ---------------------------------------


async def overdue(clock, session) -> None:
    """Lose a submit under RESUBMIT, and let the time of its repeat go by with nobody there."""
    asker = asyncio.create_task(session.convert(track()))
    await clock.advance(5.0)
    asker.cancel()
    await clock.advance(100.0)


async def test_overdue_repeat_keeps_to_the_charge_limit(clock, service) -> None:
    """A repeat that is overdue is refused at the charge limit, and nobody waits for ever."""
    service.fates.append(LOST_FREE)
    async with service.session(on_unknown=OnUnknown.RESUBMIT, max_charges=1) as session:
        await overdue(clock, session)
        with pytest.raises(ChargeLimitError):
            await clock.run(session.convert(track()))


async def test_overdue_repeat_of_a_batch_sits_out_maintenance(clock, service) -> None:
    """A batch that takes up an overdue repeat waits for the end of a maintenance."""
    service.fates += [LOST_FREE, *[refusal(455)] * 5]
    async with service.session(on_unknown=OnUnknown.RESUBMIT) as session:
        await overdue(clock, session)
        outcome = await clock.run(anext(session.convert_all([track()])))

        assert outcome.ok
        assert 7 == len(service.submitted_at)


async def test_repeat_is_not_sent_before_its_time(clock, service) -> None:
    """A doubt younger than a minute is repeated at its minute, although its timer is gone."""
    service.fates.append(ACCEPTED)
    async with service.session(on_unknown=OnUnknown.RESUBMIT) as session:
        followed = asyncio.create_task(session.convert(track(2)))
        await clock.advance(9.0)
        service.fates.append(LOST_FREE)
        lost_one = asyncio.create_task(session.convert(track()))
        await clock.advance(1.0)
        service.is_key_good = False
        for waiter in (followed, lost_one):
            with pytest.raises((AuthenticationError, SubmitUnknownError)):
                await clock.run(waiter)
        service.is_key_good = True

        lost_at = service.submitted_at[-1]
        assert clock.monotonic() - lost_at < 60.0
        await clock.run(session.convert(track()))
        assert 60.0 == pytest.approx(service.submitted_at[2] - lost_at, abs=0.1)


async def test_repeat_that_created_nothing_is_not_used_up(clock, service) -> None:
    """A repeat that met a 429, and was left, is sent when somebody asks again."""
    service.fates += [LOST_FREE, refusal(429)]
    async with service.session(on_unknown=OnUnknown.RESUBMIT) as session:
        asker = asyncio.create_task(session.convert(track()))
        await clock.advance(60.0)
        asker.cancel()
        await clock.advance(100.0)
        assert 2 == len(service.submitted_at)

        assert "task0001" == (await clock.run(session.convert(track()))).task_id
