"""What polls bring, and when they are sent."""

from __future__ import annotations

import asyncio
import itertools
import logging

import pytest

from fakes import LOST_CHARGED, LOST_FREE, UNSENT, FakeService, counted, lost, raw, track
from kie_wav_async import OnUnknown, PollSchedule, RetryPolicy, events
from kie_wav_async.errors import (
    AuthenticationError,
    ConversionFailedError,
    ConversionTimeoutError,
    NotFoundError,
    SubmitUnknownError,
    TransportError,
    TransportTimeoutError,
)
from kie_wav_async.testing import (
    FakeClock,
    answer,
    failed,
    missing,
    pending,
    refused,
    succeeded,
)

STEADY = PollSchedule(first_s=15.0, interval_s=10.0, jitter=0.0)


def raising(error: BaseException):
    """Answer a poll with an error."""
    return lambda _: error


# --- no news ------------------------------------------------------------------------------

NO_NEWS = {
    "another task's record": lambda _: succeeded("another"),
    "html with 200": lambda _: raw(b"<html></html>"),
    "html with 502": lambda _: raw(b"<html></html>", 502),
    "code 500": lambda _: refused(500),
    "code 503 as status": lambda _: raw(b"", 503),
    "code 408": lambda _: refused(408),
    "code 429": lambda _: refused(429),
    "status 429": lambda _: raw(b"slow down", 429),
    "code 451": lambda _: refused(451),
    "code 455": lambda _: refused(455),
    "code 402": lambda _: refused(402),
    "status 403": lambda _: raw(b"error 1010", 403),
    "a redirect": lambda _: raw(b"", 307),
    "reset": raising(lost()),
    "timeout": raising(TransportTimeoutError("slow")),
    "unsent": raising(TransportError("no route", maybe_sent=False)),
    "a transport's own bug": raising(ZeroDivisionError("oops")),
    "cut off": lambda _: raw(b'{"code":200,"data":{"taskId":"task'),
    "nothing": lambda _: raw(b""),
    "pending": pending,
    "an empty status": lambda task_id: pending(task_id, successFlag=""),
    "no status": lambda task_id: answer({"code": 200, "data": {"taskId": task_id}}),
    "callback exception without url": lambda task_id: pending(
        task_id, successFlag="CALLBACK_EXCEPTION"
    ),
}


@pytest.mark.parametrize("reply", NO_NEWS.values(), ids=NO_NEWS)
async def test_no_news_changes_nothing(reply) -> None:
    """Whatever says nothing about the task leaves its wait alone, ten times over."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=0.0)
    service.poll_replies += [reply] * 10
    async with service.session(poll=STEADY) as session:
        conversion = await clock.run(session.submit(track()))
        started = clock.monotonic()
        wav = await clock.run(conversion.wait())
        assert "task0001" == wav.task_id
        assert 15.0 + 10 * 10.0 == pytest.approx(clock.monotonic() - started, abs=1e-6)
        assert 11 == session.statistics().polls
        assert 1 == session.statistics().settled_by_poll


@pytest.mark.parametrize("code", [400, 404, 422, 500, 501])
async def test_failure_told_under_an_error_code_ends_the_wait(code) -> None:
    """An error code beside a record of our task that failed is that record, at once."""
    clock = FakeClock()
    service = FakeService(clock)
    why = {"successFlag": "GENERATE_WAV_FAILED", "errorCode": 501, "errorMessage": "x"}
    service.poll_replies.append(
        lambda task_id: answer({"code": code, "msg": "no", "data": {"taskId": task_id, **why}})
    )
    async with service.session(poll=STEADY) as session:
        with pytest.raises(ConversionFailedError, match=r"failed \(x\)") as caught:
            await clock.run(session.convert(track()))
        assert 501 == caught.value.record.error_code
        assert 1 == session.statistics().polls


# --- data: null ---------------------------------------------------------------------------


async def test_missing_record_is_no_news_for_a_minute() -> None:
    """A task without a record is waited for until 60 s after its acceptance, then not found."""
    clock = FakeClock()
    service = FakeService(clock)
    async with service.session(poll=STEADY) as session:
        conversion = await clock.run(session.submit(track()))
        service.tasks.clear()
        waiter = asyncio.create_task(conversion.wait())
        await clock.advance(59.0)
        assert not waiter.done()
        assert 5 == session.statistics().polls
        await clock.advance(6.0)
        with pytest.raises(NotFoundError) as caught:
            await waiter
        assert ("task0001", track()) == (caught.value.task_id, caught.value.track)
        assert () == session.conversions()
        assert 1 == session.statistics().failed


async def test_missing_record_comes_back() -> None:
    """A task whose record shows up within the minute settles like any other."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=0.0)
    service.poll_replies += [lambda _: missing()] * 5
    async with service.session(poll=STEADY) as session:
        wav = await clock.run(session.convert(track()))
        assert "task0001" == wav.task_id
        assert 6 == session.statistics().polls


async def test_adopted_task_has_its_minute_from_adoption() -> None:
    """The minute of a task named by a 409 counts from the answer that named it."""
    clock = FakeClock()
    service = FakeService(clock)
    service.create("old", track())
    async with service.session(poll=STEADY) as session:
        conversion = await clock.run(session.submit(track()))
        assert "old" == conversion.task_id
        service.tasks.clear()
        waiter = asyncio.create_task(conversion.wait())
        await clock.advance(59.0)
        assert not waiter.done()
        await clock.advance(6.0)
        with pytest.raises(NotFoundError):
            await waiter


async def test_attached_task_without_record_is_missed_three_times() -> None:
    """An attached task is not found at the third poll in a row without a record."""
    clock = FakeClock()
    service = FakeService(clock)
    nothing = [lambda _: missing()] * 2
    service.poll_replies += [*nothing, pending, *nothing, lambda _: refused(500)]
    async with service.session(poll=STEADY) as session:
        with pytest.raises(NotFoundError) as caught:
            await clock.run(session.attach("gone").wait())
        assert ("gone", None) == (caught.value.task_id, caught.value.track)
        assert 7 == session.statistics().polls


# --- endings ------------------------------------------------------------------------------


def bare(task_id, **fields):
    """Return the record of a success that names no file."""
    return pending(task_id, successFlag="SUCCESS", **fields)


async def test_success_without_url_is_no_news_until_the_timeout(caplog) -> None:
    """It is polled on, logged once, and the error then shows the answer and does not say pay."""
    clock = FakeClock()
    service = FakeService(clock)
    service.poll_replies += [
        lambda task_id: bare(task_id, response={"x": "https://h/y"}, callbackUrl="https://s/?t=0")
    ] * 100
    async with service.session(poll=STEADY, timeout_s=200.0) as session:
        with pytest.raises(ConversionTimeoutError) as caught:
            await clock.run(session.convert(track()))
        assert 19 == session.statistics().polls
        assert {"submitted": 1, "accepted": 1, "timed_out": 1, "polls": 19} == counted(session)
    assert '"response": {"x": "https://h/y"}' in caught.value.answer
    assert '"callbackUrl": "[hidden]"' in caught.value.answer
    assert caught.value.answer in str(caught.value)
    assert "do not convert the track again" in caught.value.advice
    assert "attach('task0001')" in caught.value.advice
    assert 1 == sum("names no file" in record.getMessage() for record in caplog.records)


async def test_the_answer_is_shown_only_if_it_is_the_last_word() -> None:
    """A task that is pending again is one that may still finish."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=1e9)
    service.poll_replies += [bare, bare]
    async with service.session(poll=STEADY, timeout_s=200.0) as session:
        with pytest.raises(ConversionTimeoutError, match="may still finish") as caught:
            await clock.run(session.convert(track()))
    assert "" == caught.value.answer


@pytest.mark.parametrize("polls", [1, 3, 4, 10, 80])
async def test_success_names_its_file_when_it_likes(polls) -> None:
    """However many successes came without a file, the one that names it settles."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=0.0)
    service.poll_replies += [bare] * polls
    async with service.session(poll=STEADY) as session:
        wav = await clock.run(session.convert(track()))
        assert "https://media.invalid/task0001.wav" == str(wav.url)
        assert polls + 1 == session.statistics().polls


async def test_callback_exception_with_url_is_success() -> None:
    """A task whose callback failed has succeeded if it names a file."""
    clock = FakeClock()
    service = FakeService(clock)
    service.poll_replies.append(
        lambda task_id: succeeded(task_id, "https://h/x.wav", successFlag="CALLBACK_EXCEPTION")
    )
    async with service.session() as session:
        wav = await clock.run(session.convert(track()))
        assert "https://h/x.wav" == str(wav.url)


@pytest.mark.parametrize(
    "word",
    [
        "GENERATE_WAV_FAILED",
        "CREATE_TASK_FAILED",
        "2",
        "FAILED",
        "upload_failure",
        "SENSITIVE_WORD_ERROR",
    ],
)
async def test_failure_words_end_the_wait(word) -> None:
    """A status that is, or contains, a word of failure ends the wait with the record."""
    clock = FakeClock()
    service = FakeService(clock)
    service.poll_replies.append(lambda task_id: failed(task_id, "too loud", successFlag=word))
    async with service.session() as session:
        with pytest.raises(ConversionFailedError, match="too loud") as caught:
            await clock.run(session.convert(track()))
        assert word == caught.value.record.status
        assert ("task0001", track()) == (caught.value.task_id, caught.value.track)
        assert () == session.conversions()
        assert (1, 0) == (session.statistics().failed, session.statistics().in_flight)


async def test_unknown_word_is_pending_and_logged_once(caplog) -> None:
    """A status nobody knows is pending, and warned of once however many tasks show it."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=0.0)
    odd = lambda task_id: pending(task_id, successFlag="REMIXING")  # noqa: E731 - a row's reply
    service.poll_replies += [odd] * 5
    with caplog.at_level(logging.WARNING, "kie_wav_async"):
        async with service.session(poll=STEADY) as session:
            both = asyncio.gather(session.convert(track(1)), session.convert(track(2)))
            assert 2 == len(await clock.run(both))
    assert 1 == len(caplog.records)
    assert "'REMIXING'" in caplog.text


async def test_terminal_once() -> None:
    """A conversion that ended stays so, though the news that comes later is kept."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=0.0, latency_s=4.0)
    async with service.session(poll=STEADY, timeout_s=17.0) as session:
        conversion = await clock.run(session.submit(track()))
        with pytest.raises(ConversionTimeoutError):
            await clock.run(conversion.wait())
        await clock.advance(5.0)  # The poll on the wire comes back with the file.
        counted = session.statistics()
        assert (0, 1, 1) == (counted.duplicate_results, counted.timed_out, counted.settled_by_poll)
        with pytest.raises(ConversionTimeoutError):
            conversion.result()


async def test_late_pending_news_is_not_counted() -> None:
    """A late answer that is not terminal is no duplicate."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=999.0, latency_s=4.0)
    async with service.session(poll=STEADY, timeout_s=17.0) as session:
        with pytest.raises(ConversionTimeoutError):
            await clock.run(session.convert(track()))
        await clock.advance(5.0)
        assert 0 == session.statistics().duplicate_results


# --- our timeout --------------------------------------------------------------------------


async def test_timeout_counts_from_acceptance() -> None:
    """The wait ends timeout_s after the answer to the submit, not after the call."""
    clock = FakeClock()
    service = FakeService(clock, latency_s=2.0, conversion_s=999.0)
    async with service.session(timeout_s=30.0) as session:
        called = clock.monotonic()
        with pytest.raises(ConversionTimeoutError) as caught:
            await clock.run(session.convert(track()))
        assert 32.0 == clock.monotonic() - called
        assert isinstance(caught.value, TimeoutError)
        assert ("task0001", track()) == (caught.value.task_id, caught.value.track)


async def test_timeouts_end_in_order() -> None:
    """Each of several conversions ends at its own deadline."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=999.0)
    ended: list[tuple[float, object]] = []

    def note(event):
        if isinstance(event, events.ConversionEnded):
            ended.append((clock.monotonic(), event.task_id))

    async with service.session(timeout_s=30.0, on_event=note) as session:
        started = clock.monotonic()
        for number in (1, 2, 3):
            await clock.run(session.submit(track(number)))
            await clock.advance(5.0)
        await clock.advance(60.0)
        due = [(started + 30.0 + 5.0 * number, f"task000{number + 1}") for number in range(3)]
        assert due == ended


async def test_no_timeout_if_asked_for() -> None:
    """timeout_s=None waits for as long as it takes."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=50_000.0)
    slow = PollSchedule(interval_s=5_000.0)
    async with service.session(timeout_s=None, poll=slow) as session:
        wav = await clock.run(session.convert(track()))
        assert "task0001" == wav.task_id


# --- 401 ----------------------------------------------------------------------------------


async def test_first_401_pauses_and_asks_once() -> None:
    """After a 401 no poll goes out for 5 s, then one, and if that is answered all go on."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=300.0)
    service.poll_replies.append(lambda _: refused(401))
    async with service.session(poll=STEADY) as session:
        waiters = [asyncio.create_task(session.convert(track(n))) for n in range(5)]
        await clock.advance(15.0)
        assert 1 == len(service.polled_at)
        started, _ = service.polled_at[0]
        service.latency_s = 1.0
        await clock.advance(4.9)
        assert 1 == len(service.polled_at)
        await clock.advance(1.0)
        assert 2 == len(service.polled_at)
        assert started + 5.0 == service.polled_at[1][0]
        await clock.advance(2.0)
        assert {f"task000{n}" for n in range(1, 6)} == {name for _, name in service.polled_at}
        assert 5 == len(await clock.run(asyncio.gather(*waiters)))


async def test_second_401_ends_all_waits() -> None:
    """A second 401 ends every wait with an error of its own, and the tasks stay open."""
    clock = FakeClock()
    service = FakeService(clock)
    async with service.session() as session:
        conversions = [await clock.run(session.submit(track(n))) for n in range(3)]
        waiters = [asyncio.create_task(c.wait()) for c in (*conversions, conversions[0])]
        service.is_key_good = False
        await clock.advance(30.0)
        assert all(waiter.done() for waiter in waiters)
        errors = [waiter.exception() for waiter in waiters]
        assert all(isinstance(error, AuthenticationError) for error in errors)
        assert 4 == len({id(error) for error in errors})
        assert [f"task000{n}" for n in (1, 2, 3, 1)] == [error.task_id for error in errors]
        assert conversions == list(session.conversions())
        assert 3 == session.statistics().in_flight
        assert 2 == session.statistics().polls
        await clock.advance(10_000.0)
        assert 2 == session.statistics().polls


@pytest.mark.parametrize("fate", [None, UNSENT], ids=["queued", "backing off"])
async def test_second_401_ends_submits_not_sent(fate) -> None:
    """A second 401 ends submits that wait for their turn or for their next try."""
    clock = FakeClock()
    service = FakeService(clock)
    patient = RetryPolicy(base_s=100.0, cap_s=100.0)
    async with service.session(max_in_flight=2 if fate is None else 3, retry=patient) as session:
        session._context.random = lambda: 0.9
        followed = [asyncio.create_task(session.convert(track(n))) for n in (1, 2)]
        await clock.advance(14.0)
        service.fates.extend([] if fate is None else [fate])
        waiting = asyncio.create_task(session.convert(track(3)))
        await clock.advance(0.5)
        service.is_key_good = False
        await clock.advance(20.0)
        assert [True] * 3 == [waiter.done() for waiter in (*followed, waiting)]
        errors = [waiter.exception() for waiter in (*followed, waiting)]
        assert [AuthenticationError] * 3 == [type(error) for error in errors]
        assert (None, track(3)) == (errors[2].task_id, errors[2].track)
        await clock.advance(500.0)
        assert 2 == service.charged


async def test_second_401_ends_the_wait_for_a_repeat() -> None:
    """A second 401 ends the wait for a repeat as unknown, since the first may be charged."""
    clock = FakeClock()
    service = FakeService(clock)
    async with service.session(on_unknown=OnUnknown.RESUBMIT) as session:
        followed = asyncio.create_task(session.convert(track(1)))
        await clock.advance(14.0)
        service.fates.append(LOST_CHARGED)
        waiting = asyncio.create_task(session.convert(track(2)))
        await clock.advance(0.5)
        service.is_key_good = False
        await clock.advance(20.0)
        assert isinstance(followed.exception(), AuthenticationError)
        assert isinstance(waiting.exception(), SubmitUnknownError)
        assert isinstance(waiting.exception().__cause__, AuthenticationError)
        await clock.advance(500.0)
        assert 2 == len(service.submitted_at)
        assert [track(2)] == [unknown.track for unknown in session.unknown_submits()]


async def test_401s_under_way_are_one() -> None:
    """The 401s of polls that were on the wire together count as one."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=0.0, latency_s=3.0)
    service.poll_replies += [lambda _: refused(401)] * 4
    seen: list[object] = []
    async with service.session(poll=STEADY, on_event=seen.append) as session:
        waiters = asyncio.gather(*(session.convert(track(n)) for n in range(4)))
        files = await clock.run(waiters)
        assert 4 == len(files)
        assert 8 == session.statistics().polls
    assert 1 == sum(isinstance(event, events.PollingPaused) for event in seen)


async def test_new_wait_revives_polling() -> None:
    """After the key was refused, the next wait asks again and gets the file."""
    clock = FakeClock()
    service = FakeService(clock)
    async with service.session() as session:
        conversion = await clock.run(session.submit(track()))
        service.is_key_good = False
        with pytest.raises(AuthenticationError):
            await clock.run(conversion.wait())
        with pytest.raises(AuthenticationError):
            await clock.run(conversion.wait())
        service.is_key_good = True
        wav = await clock.run(conversion.wait())
        assert "task0001" == wav.task_id


async def test_new_submit_revives_polling() -> None:
    """After the key was refused, a submit that is accepted is followed."""
    clock = FakeClock()
    service = FakeService(clock)
    async with service.session() as session:
        service.is_key_good = True
        conversion = await clock.run(session.submit(track(1)))
        service.is_key_good = False
        with pytest.raises(AuthenticationError):
            await clock.run(conversion.wait())
        service.is_key_good = True
        wav = await clock.run(session.convert(track(2)))
        assert "task0002" == wav.task_id
        await clock.advance(20.0)
        assert conversion.done()


async def test_batch_revives_polling() -> None:
    """After the key was refused, a batch with a track in flight asks again."""
    clock = FakeClock()
    service = FakeService(clock)
    async with service.session() as session:
        conversion = await clock.run(session.submit(track()))
        service.is_key_good = False
        with pytest.raises(AuthenticationError):
            await clock.run(conversion.wait())
        service.is_key_good = True
        async with session.convert_all([track()]) as batch:
            outcome = await clock.run(anext(batch))
            assert outcome.ok


async def test_refused_key_is_told() -> None:
    """Both pauses are events: the first with its length, the second without."""
    clock = FakeClock()
    service = FakeService(clock)
    seen: list[object] = []
    async with service.session(on_event=seen.append) as session:
        conversion = await clock.run(session.submit(track()))
        service.is_key_good = False
        with pytest.raises(AuthenticationError):
            await clock.run(conversion.wait())
    pauses = [event for event in seen if isinstance(event, events.PollingPaused)]
    assert [("authentication", 5.0), ("authentication", None)] == [
        (event.reason, event.delay_s) for event in pauses
    ]


# --- when polls go out --------------------------------------------------------------------


async def test_poll_times_follow_the_schedule() -> None:
    """Polls go out first_s after acceptance and interval_s after each poll's start."""
    clock = FakeClock()
    service = FakeService(clock, latency_s=0.7)
    async with service.session(
        poll=PollSchedule(first_s=4.0, interval_s=7.0, jitter=0.0)
    ) as session:
        conversion = await clock.run(session.submit(track()))
        accepted_at = clock.monotonic()
        await clock.run(conversion.wait())
        due = [accepted_at + 4.0 + 7.0 * n for n in range(len(service.polled_at))]
        assert due == pytest.approx([at for at, _ in service.polled_at])


async def test_jitter_spreads_polls() -> None:
    """Poll intervals lie within the jitter around interval_s, and use its width."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=800.0)
    async with service.session() as session:
        await clock.run(session.convert(track()))
    times = [at for at, _ in service.polled_at]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 60 < len(gaps)
    assert 8.0 <= min(gaps) < 9.0
    assert 11.0 < max(gaps) <= 12.0


async def test_failed_poll_is_not_repeated_at_once() -> None:
    """After a poll that failed, the next one comes an interval later: it is the retry."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=0.0)
    service.poll_replies += [raising(lost()), lambda _: refused(500)]
    async with service.session(poll=STEADY) as session:
        await clock.run(session.convert(track()))
    times = [at for at, _ in service.polled_at]
    assert [10.0, 10.0] == pytest.approx([times[1] - times[0], times[2] - times[1]])


async def test_poll_budget_is_never_exceeded() -> None:
    """However much is due, no second sees more than max_per_s polls."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=40.0)
    schedule = PollSchedule(first_s=1.0, interval_s=2.0, max_per_s=5.0)
    async with service.session(poll=schedule) as session:
        for number in range(60):
            session.attach(f"t{number}")
        await clock.advance(30.0)
    times = [at for at, _ in service.polled_at]
    assert 140 < len(times)
    assert all(times[n + 5] - times[n] > 1.0 - 1e-6 for n in range(len(times) - 5))


async def test_earliest_due_is_polled_first() -> None:
    """When the budget is short, whoever is due longest goes first."""
    clock = FakeClock()
    service = FakeService(clock)
    schedule = PollSchedule(first_s=10.0, interval_s=100.0, jitter=0.0, max_per_s=0.5)
    async with service.session(poll=schedule) as session:
        for number in range(5):
            session.attach(f"t{number}")
            await clock.advance(0.1)
        await clock.advance(30.0)
    assert [f"t{number}" for number in range(5)] == [task_id for _, task_id in service.polled_at]


async def test_retry_after_of_a_poll_rests_all_polling() -> None:
    """A poll refused with 429 and Retry-After lets all polls rest that long, 300 s at most."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=0.0)
    seen: list[object] = []
    service.poll_replies.append(lambda _: refused(429, retry_after="1000"))
    async with service.session(poll=STEADY, on_event=seen.append) as session:
        await clock.run(asyncio.gather(session.convert(track(1)), session.convert(track(2))))
        assert 1 == session.statistics().rejected_429
    times = [at for at, _ in service.polled_at]
    assert times[0] + 300.0 == times[1]
    pauses = [event for event in seen if isinstance(event, events.PollingPaused)]
    assert [("rate-limit", 300.0)] == [(event.reason, event.delay_s) for event in pauses]


async def test_settled_conversions_are_not_polled() -> None:
    """Nothing is asked about a conversion that is terminal."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=0.0)
    async with service.session() as session:
        await clock.run(session.convert(track()))
        await clock.advance(1_000.0)
        assert 1 == len(service.polled_at)


async def test_lost_submits_are_not_polled() -> None:
    """A submit of unknown fate has no task to ask about."""
    clock = FakeClock()
    service = FakeService(clock)
    service.fates.append(LOST_FREE)
    async with service.session() as session:
        with pytest.raises(Exception, match="may have been charged"):
            await clock.run(session.convert(track()))
        await clock.advance(1_000.0)
        assert [] == service.polled_at


async def test_submit_without_a_place_asks_again_after_a_refused_key() -> None:
    """A submit that waits for a place has the refused key tried again, and gets its turn."""
    clock = FakeClock()
    service = FakeService(clock)
    async with service.session(max_in_flight=1) as session:
        first = asyncio.create_task(session.convert(track(1)))
        await clock.run_pending()
        service.is_key_good = False
        with pytest.raises(AuthenticationError):
            await clock.run(first)
        service.is_key_good = True

        wav = await clock.run(session.convert(track(2)))
        assert track(2) == wav.track
