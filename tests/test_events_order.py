"""What on_event hears, when, and what it may do."""

from __future__ import annotations

import asyncio
import logging

import attrs
import pytest

from fakes import ACCEPTED, LOST_CHARGED, LOST_FREE, UNSENT, FakeService, refusal, track
from kie_wav_async import OnUnknown, RetryPolicy, events
from kie_wav_async.errors import (
    ConversionFailedError,
    ConversionTimeoutError,
    InvalidRequestError,
    KieWavError,
    SubmitUnknownError,
)
from kie_wav_async.testing import FakeClock, failed


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock) -> FakeService:
    """Return a service that means well until it is told otherwise."""
    return FakeService(clock)


async def test_submitted_comes_before_submit_returns(clock, service) -> None:
    """SubmitAccepted names the task before submit() returns to its caller."""
    seen = []
    async with service.session(on_event=seen.append) as session:

        async def submit():
            conversion = await session.submit(track())
            seen.append(conversion)

        await clock.run(submit())
        told, conversion = seen
        assert events.SubmitAccepted is type(told)
        assert (conversion.task_id, track(), service.attempts[0], False) == (
            told.task_id,
            told.track,
            told.attempt_id,
            told.adopted,
        )


async def test_submitted_comes_before_the_end(clock, service) -> None:
    """A task adopted when it is finished is told as submitted, then as settled, then awaited."""
    service.create("old", track())
    service.tasks["old"].ends_at = 0.0
    seen = []
    async with service.session(on_event=seen.append) as session:

        async def convert():
            seen.append(await session.convert(track()))

        await clock.run(convert())
    submitted, settled, wav = seen
    assert [events.SubmitAccepted, events.ConversionSucceeded] == [type(submitted), type(settled)]
    assert ("old", True) == (submitted.task_id, submitted.adopted)
    assert wav is settled.wav


async def test_end_is_told_before_waiters_hear(clock, service) -> None:
    """ConversionSucceeded and ConversionEnded come before any waiter goes on."""
    service.poll_replies.append(failed)
    seen = []
    async with service.session(on_event=seen.append) as session:

        async def convert(number):
            try:
                seen.append(await session.convert(track(number)))
            except KieWavError as error:
                seen.append(error)

        await clock.run(convert(1))
        await clock.run(convert(2))
    kinds = [type(entry).__name__ for entry in seen]
    assert ["SubmitAccepted", "ConversionEnded", "ConversionFailedError"] == kinds[:3]
    assert ["SubmitAccepted", "ConversionSucceeded", "WavFile"] == kinds[3:]
    ended = seen[1]
    assert ("task0001", track(1)) == (ended.task_id, ended.track)
    assert isinstance(ended.error, ConversionFailedError)
    assert ended.error is not seen[2]


async def test_books_are_up_to_date_when_told(clock, service) -> None:
    """When an event comes, the session's books hold what it tells."""
    looked = []

    def look(event):
        counted = session.statistics()
        looked.append((type(event).__name__, counted.in_flight, counted.unknown))
        if isinstance(event, events.SubmitAccepted):
            assert event.task_id in {c.task_id for c in session.conversions()}
        if isinstance(event, events.SubmitUnknown):
            assert event.attempt_id in {d.attempt_id for d in session.unknown_submits()}
        if isinstance(event, events.ConversionSucceeded):
            assert event.wav.task_id not in {c.task_id for c in session.conversions()}

    service.fates += [LOST_FREE, ACCEPTED]
    async with service.session(on_event=look) as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track(1)))
        await clock.run(session.convert(track(2)))
    assert [
        ("SubmitUnknown", 0, 1),
        ("SubmitAccepted", 1, 1),
        ("ConversionSucceeded", 0, 1),
    ] == looked


async def test_kinds_of_a_varied_run(clock, service) -> None:
    """Each thing that happens is one event, in order, with its moment."""
    seen = []
    service.fates += [UNSENT, refusal(429), refusal(455), LOST_CHARGED, refusal(422)]
    retry = RetryPolicy(attempts=9)
    async with service.session(
        on_event=seen.append, on_unknown=OnUnknown.RESUBMIT, retry=retry
    ) as session:
        session._context.random = lambda: 0.5
        started = clock.time()
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track(1)))
        service.fates.append(refusal(402))
        with pytest.raises(KieWavError):
            await clock.run(session.submit(track(2)))
        service.conversion_s = 9_999.0
        with pytest.raises(ConversionTimeoutError):
            await clock.run(session.convert(track(3)))
    held = events.SubmitRetryScheduled
    assert [held, held, held] == [type(event) for event in seen[:3]]
    assert [0.5, 10.0, 60.0] == [event.delay_s for event in seen[:3]]
    assert [track(1)] * 3 == [event.track for event in seen[:3]]
    lost, refused, submitted, ended = seen[3:]
    assert isinstance(lost, events.SubmitUnknown)
    assert (track(1), service.attempts[3]) == (lost.track, lost.attempt_id)
    assert isinstance(refused, events.SubmitRejected)
    assert (track(2), 402) == (refused.track, refused.error.code)
    assert isinstance(submitted, events.SubmitAccepted)
    assert isinstance(ended, events.ConversionEnded)
    assert isinstance(ended.error, ConversionTimeoutError)
    moments = [event.at.timestamp() - started for event in seen]
    assert [0.0, 0.5, 10.5, 70.5] == moments[:4]
    assert sorted(moments) == moments
    assert all(event.at.utcoffset().total_seconds() == 0 for event in seen)


async def test_errors_in_events_name_the_track(clock, service) -> None:
    """The error an event carries knows the track it is about."""
    seen = []
    service.fates += [UNSENT, refusal(429), refusal(455), LOST_FREE, refusal(422)]
    retry = RetryPolicy(attempts=9)
    async with service.session(on_event=seen.append, retry=retry) as session:
        for number in (1, 2):
            with pytest.raises(KieWavError):
                await clock.run(session.submit(track(number)))
    assert [*[track(1)] * 4, track(2)] == [event.error.track for event in seen]


async def test_event_values_are_frozen(clock, service) -> None:
    """An event cannot be changed by whoever hears of it."""
    seen = []
    async with service.session(on_event=seen.append) as session:
        await clock.run(session.convert(track()))
    for event in seen:
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            event.at = None
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        seen[0].task_id = "other"


async def test_errors_of_on_event_are_logged_and_swallowed(clock, service, caplog) -> None:
    """What on_event raises is logged with its traceback and disturbs nothing."""

    def fail(event):
        raise InvalidRequestError(code=1, message=type(event).__name__)

    async with service.session(on_event=fail) as session:
        with caplog.at_level(logging.ERROR, "kie_wav_async"):
            wav = await clock.run(session.convert(track()))
        assert "task0001" == wav.task_id
    assert ["SubmitAccepted", "ConversionSucceeded"] == [
        name
        for record in caplog.records
        for name in ("SubmitAccepted", "ConversionSucceeded")
        if name in record.message
    ]
    assert all(record.exc_info is not None for record in caplog.records)


async def test_on_event_may_use_the_session(clock, service) -> None:
    """on_event may attach, count, list and start calls on the session it hears from."""
    tasks = []
    service.create("second", track(2))
    service.fates.append(UNSENT)

    def use(event):
        session.statistics()
        session.unknown_submits()
        assert all(conversion.task_id for conversion in session.conversions())
        if isinstance(event, events.SubmitAccepted) and event.task_id == "task0002":
            assert event.track == session.attach(event.task_id).track
            tasks.append(asyncio.create_task(session.attach("second").wait()))
            tasks.append(asyncio.create_task(session.convert(track(3))))
        if isinstance(event, events.ConversionSucceeded) and event.wav.task_id == "task0002":
            tasks.append(asyncio.create_task(session.convert(event.wav.track)))

    async with service.session(on_event=use) as session:
        wav = await clock.run(session.convert(track(1)))
        files = await clock.run(asyncio.gather(*tasks))
        await clock.run_pending()
        assert 3 == len(tasks)
        assert {"second", "task0003", "task0002"} == {*(f.task_id for f in files), wav.task_id} | {
            tasks[2].result().task_id
        }


async def test_on_event_may_close_the_session(clock, service) -> None:
    """on_event may start the closing of the session it hears from."""
    closings = []

    def close(_):
        closings.append(asyncio.create_task(session.aclose()))

    async with service.session(on_event=close) as session:
        with pytest.raises(KieWavError, match="closed"):
            await clock.run(session.convert(track()))
        await asyncio.gather(*closings)
        assert ["task0001"] == [conversion.task_id for conversion in session.conversions()]


async def test_cancelled_error_of_the_handler_stops_nothing(clock, service) -> None:
    """A handler that raises CancelledError is mistaken, and the conversion goes on."""

    def handle(_: events.Event) -> None:
        raise asyncio.CancelledError

    async with service.session(on_event=handle) as session:
        assert "task0001" == (await clock.run(session.convert(track()))).task_id
