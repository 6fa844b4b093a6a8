"""What a callback does to a session: what it settles, and what it only hints at."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import json

import pytest

from fakes import (
    LISTENING_AT,
    LOST_CHARGED,
    Delivery,
    FakeService,
    counted,
    raw,
    refusal,
    told,
    track,
)
from kie_wav_async import (
    CallbackResult,
    CallbackTrust,
    PollSchedule,
    RateLimit,
    WavSession,
    events,
)
from kie_wav_async.errors import (
    ConversionFailedError,
    ConversionTimeoutError,
    SignatureError,
    SubmitUnknownError,
)
from kie_wav_async.testing import FakeClock, failed

STEADY = PollSchedule(first_s=15.0, interval_s=10.0, jitter=0.0)

SETTLED, POLLING = CallbackResult.SETTLED, CallbackResult.POLLING
DUPLICATE, UNKNOWN_TASK = CallbackResult.DUPLICATE, CallbackResult.UNKNOWN_TASK

CALLED_BACK_URL = "https://cdn.example/called-back.wav"
RECORDED_URL = "https://media.invalid/task0001.wav"


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock) -> FakeService:
    """Return a service that means well until it is told otherwise."""
    return FakeService(clock)


# --- what settles -------------------------------------------------------------------------

ATTEMPTS = {
    "right": "shop=7&attempt={right}",
    "another": f"shop=7&attempt={'f' * 32}",
    "none": "shop=7",
    "twice": "attempt={right}&attempt={right}",
    "upper case": "shop=7&attempt={RIGHT}",
}
CODES = {"200": 200, "text": "200", "500": 500, "missing": None}
LINKS = {
    "https": {"audioWavUrl": CALLED_BACK_URL},
    "http": {"audioWavUrl": "http://cdn.example/called-back.wav"},
    "http to an insecure host": {"audioWavUrl": "http://MIRROR.example/called-back.wav"},
    "none": {},
    "relative": {"audioWavUrl": "/called-back.wav"},
    "the other spelling": {"audio_wav_url": CALLED_BACK_URL},
    "both spellings": {"audioWavUrl": CALLED_BACK_URL, "audio_wav_url": CALLED_BACK_URL},
}
#: What else there may be, tried where all else is in order.
MORE_ATTEMPTS = {
    "alone": "attempt={right}",
    "no query": "",
    "empty": "shop=7&attempt=",
    "two": f"attempt={{right}}&attempt={'f' * 32}",
    "a digit short": "attempt={short}",
    "a digit long": "attempt={right}0",
    "another name": "Attempt={right}",
}
MORE_CODES = {"501": 501, "0": 0, "true": True, "201": 201, "-200": -200}
MORE_LINKS = {
    "nested": {"response": {"audioWavUrl": CALLED_BACK_URL}},
    "null": {"audioWavUrl": None, "audio_wav_url": None},
    "http to loopback": {"audioWavUrl": "http://127.0.0.1/called-back.wav"},
    "no scheme": {"audioWavUrl": "//cdn.example/called-back.wav"},
    "ftp": {"audioWavUrl": "ftp://cdn.example/called-back.wav"},
    "no host": {"audioWavUrl": "https:///called-back.wav"},
    "no text": {"audioWavUrl": [CALLED_BACK_URL]},
}

Cell = tuple[str, str, str]

CELLS: tuple[Cell, ...] = (
    *itertools.product(ATTEMPTS, CODES, LINKS),
    *((attempt, "200", "https") for attempt in MORE_ATTEMPTS),
    *(("right", code, "https") for code in MORE_CODES),
    *(("right", "200", link) for link in MORE_LINKS),
)
#: Every cell that settles; all others are hints.
SETTLING = {
    *(
        ("right", code, link)
        for code in ("200", "text")
        for link in ("https", "http to an insecure host", "the other spelling", "both spellings")
    ),
    ("alone", "200", "https"),
    ("right", "200", "nested"),
    ("right", "200", "no text"),
}


def said(service: FakeService, cell: Cell, task_id: str, right: str) -> Delivery:
    """Return the callback that *cell* describes."""
    attempt, code, link = cell
    query = {**ATTEMPTS, **MORE_ATTEMPTS}[attempt]
    return service.callback(
        task_id, query=query.format(right=right, RIGHT=right.upper(), short=right[:-1])
    ).saying(
        code={**CODES, **MORE_CODES}[code],
        data={"task_id": task_id, **{**LINKS, **MORE_LINKS}[link]},
    )


async def begin(
    origin: str, clock: FakeClock, service: FakeService, session: WavSession, number: int
) -> str:
    """Have a task in flight that came from *origin*, and return the attempt it is known by."""
    right = f"{number:06d}{'abcdef' * 5}"[:32]
    session._context.attempt_id = lambda: right
    task_id = f"task{number:04d}"
    if origin == "attached":
        service.create(task_id, track(number), f"{LISTENING_AT}&attempt={right}")
        session.attach(task_id, track=track(number))
    elif origin == "found":
        service.fates.append(LOST_CHARGED)
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track(number)))
        await session.resolve_unknown(right, task_id=task_id)
    else:
        if origin == "named by a 409":
            service.create(task_id, track(number), f"{LISTENING_AT}&attempt={'f' * 32}")
        await clock.run(session.submit(track(number)))
    return right


@pytest.mark.parametrize("trust", CallbackTrust)
@pytest.mark.parametrize("origin", ["submitted", "attached", "named by a 409", "found"])
async def test_what_settles_and_what_is_a_hint(clock, service, origin, trust) -> None:
    """A callback settles if all that must hold of it does, and else causes one poll at once."""
    is_believed = origin == "submitted" and trust is CallbackTrust.PAYLOAD
    settled = (SETTLED, True, 0, "callback", "called-back.wav")
    expected, seen = {}, {}
    async with service.listening(
        callback_trust=trust,
        insecure_hosts=["mirror.EXAMPLE"],
        rate_limit=RateLimit(1_000, per_s=1.0),
        poll=PollSchedule(first_s=600.0, max_per_s=1_000.0),
    ) as session:
        for number, cell in enumerate(CELLS, 1):
            right = await begin(origin, clock, service, session, number)
            (conversion,) = session.conversions()
            task_id = conversion.task_id
            service.finish(task_id)
            before = len(service.polled_at)
            verdict = await said(service, cell, task_id, right).to(session)
            is_done = conversion.done()
            await clock.advance(0.0)
            at_once = len(service.polled_at) - before
            wav = conversion.result()
            seen[cell] = (verdict, is_done, at_once, wav.settled_by, wav.url.name)
            confirmed = (POLLING, False, 1, "poll", f"{task_id}.wav")
            expected[cell] = settled if is_believed and cell in SETTLING else confirmed
            await clock.advance(0.1)  # For the next one's hint to be free.
        polls = len(service.polled_at)
        await clock.advance(1_000.0)
        assert polls == len(service.polled_at)

    assert expected == seen


async def test_settled_by_a_callback(clock, service) -> None:
    """A conversion that a callback settles has its file, and nothing is ever asked about it."""
    seen: list[object] = []
    async with service.listening(on_event=seen.append) as session:
        conversion = await clock.run(session.submit(track()))
        submitted_at = clock.time()
        await clock.advance(7.0)
        callback = service.callback("task0001")
        assert SETTLED is await callback.to(session)
        wav = conversion.result()
        await clock.advance(2_000.0)

        assert ("task0001", track(), "callback") == (wav.task_id, wav.track, wav.settled_by)
        assert CALLED_BACK_URL == str(wav.url)
        expires_at = dt.datetime.fromtimestamp(submitted_at, dt.UTC) + dt.timedelta(days=14)
        assert expires_at == wav.expires_at
        assert {"submitted": 1, "accepted": 1, "settled_by_callback": 1} == counted(session)
        assert [] == service.polled_at
        assert () == session.conversions()
        assert wav is (await session.submit(track())).result()
    assert [
        (events.SubmitAccepted, "task0001"),
        (events.ConversionSucceeded, wav),
        (events.CallbackReceived, ("task0001", SETTLED, True)),
    ] == [told(event) for event in seen]
    assert {submitted_at, submitted_at + 7.0} == {event.at.timestamp() for event in seen}


async def test_confirmed_by_a_poll(clock, service) -> None:
    """A conversion that a callback hints at has the file its record names."""
    seen: list[object] = []
    async with service.listening(
        on_event=seen.append, callback_trust=CallbackTrust.CONFIRM
    ) as session:
        conversion = await clock.run(session.submit(track()))
        await clock.advance(7.0)
        service.finish("task0001")
        assert POLLING is await service.callback("task0001").to(session)
        assert not conversion.done()
        wav = await clock.run(conversion.wait())

        assert (RECORDED_URL, "poll") == (str(wav.url), wav.settled_by)
        assert [clock.monotonic()] == service.polls_of("task0001")
        assert {"submitted": 1, "accepted": 1, "settled_by_poll": 1, "polls": 1} == counted(session)
    assert [
        (events.SubmitAccepted, "task0001"),
        (events.CallbackReceived, ("task0001", POLLING, True)),
        (events.ConversionSucceeded, wav),
    ] == [told(event) for event in seen]


async def test_failure_is_believed_of_the_record_only(clock, service) -> None:
    """A callback that says failed ends nothing; the record that says so does."""
    service.poll_replies += [lambda t: failed(t, "as the record tells")]
    async with service.listening(poll=STEADY) as session:
        conversion = await clock.run(session.submit(track()))
        callback = service.callback("task0001", None, code=501, message="as the callback tells")
        assert POLLING is await callback.to(session)
        assert not conversion.done()
        with pytest.raises(ConversionFailedError, match="as the record tells") as caught:
            await clock.run(conversion.wait())
        assert ("task0001", track()) == (caught.value.task_id, caught.value.track)
        assert {"submitted": 1, "accepted": 1, "failed": 1, "polls": 1} == counted(session)


async def test_failure_that_the_record_does_not_show_changes_nothing(clock, service) -> None:
    """A callback that says failed leaves a conversion alone whose record is pending."""
    async with service.listening(poll=STEADY) as session:
        conversion = await clock.run(session.submit(track()))
        accepted_at = clock.monotonic()
        assert POLLING is await service.callback("task0001", None, code=500).to(session)
        wav = await clock.run(conversion.wait())

        assert (RECORDED_URL, 60.0) == (str(wav.url), clock.monotonic() - accepted_at)
        assert {"submitted": 1, "accepted": 1, "settled_by_poll": 1, "polls": 7} == counted(session)


async def test_the_attempt_that_made_the_task_counts(clock, service) -> None:
    """Of a submit that was sent twice, only the attempt that was accepted settles its task."""
    service.fates.append(refusal(429))
    async with service.listening() as session:
        conversion = await clock.run(session.submit(track()))
        first, second = service.attempts
        assert POLLING is await service.callback("task0001", attempt_id=first).to(session)
        assert SETTLED is await service.callback("task0001", attempt_id=second).to(session)
        assert conversion.done()


async def test_a_track_submitted_again_has_an_attempt_of_its_own(clock, service) -> None:
    """An attempt that settled one task settles no other task of the same track."""
    service.knows_repeats = False
    async with service.listening() as session:
        await clock.run(session.submit(track()))
        assert SETTLED is await service.callback("task0001").to(session)
        again = await clock.run(session.submit(track(), again=True))
        old = service.attempts[0]
        assert POLLING is await service.callback("task0002", attempt_id=old).to(session)
        assert not again.done()
        assert SETTLED is await service.callback("task0002").to(session)
        assert "task0002" == again.result().task_id


@pytest.mark.parametrize("key", ["whk-old-0123456789", "whk-new-0123456789"])
async def test_while_one_key_replaces_another(clock, service, key) -> None:
    """A callback signed with any of the keys settles."""
    keys = ["whk-old-0123456789", "whk-new-0123456789"]
    async with service.listening(webhook_keys=keys) as session:
        await clock.run(session.submit(track()))
        assert SETTLED is await service.callback("task0001", key=key).to(session)


# --- who hears of it ----------------------------------------------------------------------


async def test_every_waiter_hears(clock, service) -> None:
    """A callback ends the waits of all that wait, and of none that has gone."""
    async with service.listening() as session:
        conversion = await clock.run(session.submit(track()))
        waiters = [asyncio.create_task(session.convert(track())) for _ in range(3)]
        waiters += [asyncio.create_task(conversion.wait()) for _ in range(3)]
        await clock.run_pending()
        waiters[0].cancel()
        await clock.run_pending()
        await service.callback("task0001").to(session)
        assert not any(waiter.done() for waiter in waiters[1:])
        await clock.run_pending()

        wav = conversion.result()
        assert waiters[0].cancelled()
        assert all(waiter.result() is wav for waiter in waiters[1:])
        assert wav is await conversion


async def test_batch_yields_what_a_callback_settled(clock, service) -> None:
    """A batch yields its tracks as callbacks settle them."""
    async with (
        service.listening() as session,
        session.convert_all([track(1), track(2), track(3)]) as batch,
    ):
        reading = asyncio.create_task(anext(batch))
        await clock.advance(1.0)
        for number in (2, 3, 1):
            assert SETTLED is await service.callback(f"task000{number}").to(session)
        outcomes = [await reading, *[outcome async for outcome in batch]]

        assert [(1, track(2)), (2, track(3)), (0, track(1))] == [
            (outcome.index, outcome.track) for outcome in outcomes
        ]
        assert {"callback"} == {outcome.unwrap().settled_by for outcome in outcomes}
        assert [] == service.polled_at


async def test_callback_frees_a_place(clock, service) -> None:
    """The moment a callback settles a conversion, the next submit goes out."""
    async with service.listening(max_in_flight=1) as session:
        await clock.run(session.submit(track(1)))
        waiting = asyncio.create_task(session.submit(track(2)))
        await clock.advance(3.0)
        assert 1 == len(service.submitted_at)
        await service.callback("task0001").to(session)
        await clock.run_pending()

        assert [0.0, 3.0] == [at - service.submitted_at[0] for at in service.submitted_at]
        assert "task0002" == (await waiting).task_id


async def test_settled_conversion_does_not_time_out(clock, service) -> None:
    """Once a callback has settled a conversion, its timeout is over."""
    async with service.listening(timeout_s=100.0) as session:
        first = await clock.run(session.submit(track(1)))
        await clock.advance(50.0)
        second = await clock.run(session.submit(track(2)))
        await service.callback("task0001").to(session)
        service.tasks["task0002"].ends_at = 1e9
        await clock.advance(99.0)
        assert not second.done()
        await clock.advance(1.0)

        assert "callback" == first.result().settled_by
        with pytest.raises(ConversionTimeoutError):
            second.result()
        assert 1 == session.statistics().timed_out


# --- more than one ------------------------------------------------------------------------


async def test_callback_again_is_a_duplicate(clock, service) -> None:
    """Whatever a later callback says, the first one's file stays."""
    seen: list[object] = []
    async with service.listening(on_event=seen.append) as session:
        conversion = await clock.run(session.submit(track()))
        assert SETTLED is await service.callback("task0001").to(session)
        seen.clear()
        again = [
            service.callback("task0001"),
            service.callback("task0001", "https://evil.example/other.wav"),
            service.callback("task0001", None, code=500),
            service.callback("task0001", query=""),
        ]
        for callback in again:
            assert DUPLICATE is await callback.to(session)
        await clock.advance(100.0)

        assert CALLED_BACK_URL == str(conversion.result().url)
        figures = {"submitted": 1, "accepted": 1, "settled_by_callback": 1, "duplicate_results": 4}
        assert figures == counted(session)
        assert 0 == len(session._core._callbacks._early)
    received = (events.CallbackReceived, ("task0001", DUPLICATE, True))
    assert [received] * 4 == [told(event) for event in seen]


async def test_callback_after_the_poll_is_a_duplicate(clock, service) -> None:
    """A callback of a conversion that a poll has settled changes nothing."""
    async with service.listening() as session:
        wav = await clock.run(session.convert(track()))
        assert DUPLICATE is await service.callback("task0001").to(session)

        assert (RECORDED_URL, "poll") == (str(wav.url), wav.settled_by)
        assert 1 == session.statistics().duplicate_results
        assert wav is (await session.submit(track())).result()


async def test_callback_after_a_failure_is_a_duplicate(clock, service) -> None:
    """A callback cannot make good what failed; the track is submitted anew if asked for."""
    service.poll_replies.append(failed)
    service.knows_repeats = False
    async with service.listening() as session:
        with pytest.raises(ConversionFailedError):
            await clock.run(session.convert(track()))
        assert DUPLICATE is await service.callback("task0001").to(session)
        again = await clock.run(session.submit(track()))

        assert "task0002" == again.task_id
        assert SETTLED is await service.callback("task0002").to(session)
        assert (1, 1) == (session.statistics().failed, session.statistics().duplicate_results)


async def test_poll_under_way_is_a_duplicate(clock, service) -> None:
    """A poll that was on the wire when the callback settled is counted, and changes nothing."""
    service.latency_s = 2.0
    async with service.listening(poll=STEADY) as session:
        conversion = await clock.run(session.submit(track()))
        service.finish("task0001")
        await clock.advance(16.0)
        assert (1, False) == (session.statistics().polls, conversion.done())
        assert SETTLED is await service.callback("task0001").to(session)
        await clock.advance(60.0)

        assert CALLED_BACK_URL == str(conversion.result().url)
        assert 1 == len(service.polled_at)
        assert 1 == session.statistics().duplicate_results


async def test_callback_after_a_timeout_settles_the_task(clock, service) -> None:
    """A callback of a conversion that timed out is taken, for whoever asks for the track again."""
    service.conversion_s = 1e9
    async with service.listening(timeout_s=100.0) as session:
        conversion = await clock.run(session.submit(track()))
        await clock.advance(100.0)
        polls = session.statistics().polls
        assert SETTLED is await service.callback("task0001").to(session)
        with pytest.raises(ConversionTimeoutError):
            conversion.result()
        wav = await clock.run(session.convert(track()))

        assert ("callback", "called-back.wav") == (wav.settled_by, wav.url.name)
        assert wav.expires_at is not None
        assert (polls, 1) == (session.statistics().polls, service.charged)


# --- before the answer --------------------------------------------------------------------


async def test_callback_before_the_answer_settles_with_it(clock, service) -> None:
    """A callback that overtakes the answer to its submit settles when the answer comes."""
    service.latency_s = 10.0
    seen: list[object] = []
    async with service.listening(on_event=seen.append) as session:
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(7.0)
        assert UNKNOWN_TASK is await service.callback("task0001").to(session)
        assert (1, 1) == (
            session.statistics().unknown_task_callbacks,
            len(session._core._callbacks._early),
        )
        await clock.advance(2.9)
        assert not waiting.done()
        await clock.advance(0.1)
        wav = waiting.result()

        assert (CALLED_BACK_URL, "callback") == (str(wav.url), wav.settled_by)
        assert wav.expires_at is not None
        await clock.advance(1_000.0)
        assert [] == service.polled_at
        figures = {
            "submitted": 1,
            "accepted": 1,
            "settled_by_callback": 1,
            "unknown_task_callbacks": 1,
        }
        assert figures == counted(session)
        assert 0 == len(session._core._callbacks._early)
        assert DUPLICATE is await service.callback("task0001").to(session)
    assert [
        (events.CallbackReceived, ("task0001", UNKNOWN_TASK, True)),
        (events.SubmitAccepted, "task0001"),
        (events.ConversionSucceeded, wav),
        (events.CallbackReceived, ("task0001", DUPLICATE, True)),
    ] == [told(event) for event in seen]


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {"callback_trust": CallbackTrust.CONFIRM}),
        ({"attempt_id": "f" * 32}, {}),
        ({"query": ""}, {}),
        ({"url": None}, {}),
        ({"url": "http://cdn.example/called-back.wav"}, {}),
        ({"code": 500, "url": None}, {}),
        ({"code": 500}, {}),
    ],
)
async def test_hint_before_the_answer_asks_with_it(clock, service, changes, settings) -> None:
    """A hint that overtakes the answer to its submit causes one poll when the answer comes."""
    service.latency_s = 10.0
    async with service.listening(**settings) as session:
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(7.0)
        service.finish("task0001")
        assert UNKNOWN_TASK is await service.callback("task0001", **changes).to(session)
        await clock.advance(3.0)
        assert [clock.monotonic()] == service.polls_of("task0001")
        assert not waiting.done()
        await clock.advance(10.0)

        assert (RECORDED_URL, "poll") == (str(waiting.result().url), waiting.result().settled_by)
        assert 1 == session.statistics().polls


@pytest.mark.parametrize(("age_s", "is_kept"), [(899.9, True), (900.0, False), (1_500.0, False)])
async def test_early_callback_is_kept_for_15_minutes(clock, service, age_s, is_kept) -> None:
    """A callback 15 minutes older than the answer to its submit is forgotten."""
    service.latency_s = 4_000.0
    async with service.listening(poll=STEADY, timeout_s=None) as session:
        waiting = asyncio.create_task(session.submit(track()))
        await clock.advance(4_000.0 - age_s)
        assert UNKNOWN_TASK is await service.callback("task0001").to(session)
        await clock.advance(age_s)
        assert is_kept is (await waiting).done()


@pytest.mark.parametrize(("others", "is_kept"), [(9_999, True), (10_000, False)])
async def test_ten_thousand_early_callbacks_are_kept(clock, service, others, is_kept) -> None:
    """The 10,001st callback of an unknown task pushes out the oldest."""
    service.latency_s = 60.0
    async with service.listening() as session:
        waiting = asyncio.create_task(session.submit(track()))
        await clock.advance(40.0)
        assert UNKNOWN_TASK is await service.callback("task0001").to(session)
        for number in range(others):
            assert UNKNOWN_TASK is await service.callback(f"other{number}").to(session)
        assert 10_000 == len(session._core._callbacks._early)
        await clock.advance(20.0)

        assert is_kept is (await waiting).done()
        assert others + 1 == session.statistics().unknown_task_callbacks


async def test_the_first_of_early_callbacks_stays(clock, service) -> None:
    """A later callback with another body does not take the place of one that is kept."""
    service.latency_s = 10.0
    async with service.listening() as session:
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(7.0)
        for url in (CALLED_BACK_URL, "https://evil.example/other.wav"):
            assert UNKNOWN_TASK is await service.callback("task0001", url).to(session)
        await clock.advance(3.0)

        assert CALLED_BACK_URL == str(waiting.result().url)
        assert (2, 0) == (
            session.statistics().unknown_task_callbacks,
            session.statistics().duplicate_results,
        )


async def test_early_callback_that_is_too_old_makes_room_for_a_new_one(clock, service) -> None:
    """Once an early callback is forgotten, the next one of its task is kept in its stead."""
    service.latency_s = 4_000.0
    async with service.listening(poll=STEADY, timeout_s=None) as session:
        waiting = asyncio.create_task(session.submit(track()))
        await clock.advance(2_500.0)
        for wait_s in (1_000.0, 500.0):
            assert UNKNOWN_TASK is await service.callback("task0001").to(session)
            await clock.advance(wait_s)
        assert (await waiting).done()


async def test_early_callback_without_an_attempt_learns_it_from_a_later_one(clock, service) -> None:
    """A later callback that names the attempt makes no kept one without it settle, but hint."""
    service.latency_s = 10.0
    service.conversion_s = 1.0
    async with service.listening() as session:
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(7.0)
        assert UNKNOWN_TASK is await service.callback("task0001", query="").to(session)
        assert UNKNOWN_TASK is await service.callback("task0001").to(session)
        await clock.advance(3.0)
        assert [clock.monotonic()] == service.polls_of("task0001")
        assert "poll" == (await clock.run(waiting)).settled_by


async def test_attached_task_that_is_submitted_as_well(clock, service) -> None:
    """A callback settles the submit that made the task, and hints at who has attached it."""
    service.latency_s = 10.0
    async with service.listening(poll=STEADY) as session:
        waiting = asyncio.create_task(session.submit(track()))
        await clock.advance(7.0)
        attached = session.attach("task0001")
        await clock.advance(3.0)
        submitted = await waiting
        assert attached is not submitted
        service.finish("task0001")
        service.latency_s = 0.0
        assert SETTLED is await service.callback("task0001").to(session)
        assert ("callback", False) == (submitted.result().settled_by, attached.done())
        await clock.advance(0.0)
        assert "poll" == attached.result().settled_by
        assert 1 == len(service.polled_at)
        assert DUPLICATE is await service.callback("task0001").to(session)


async def test_orphans_create_nothing(clock, service) -> None:
    """A callback of a task that is not ours is counted and kept, and nothing is sent for it."""
    seen: list[object] = []
    async with service.listening(on_event=seen.append) as session:
        for task_id in ("of-another-product", "of-another-program"):
            assert UNKNOWN_TASK is await service.callback(task_id).to(session)
        await clock.advance(1_000.0)

        assert {"unknown_task_callbacks": 2} == counted(session)
        assert [] == service.transport.requests
        assert () == session.conversions() == session.unknown_submits()
        assert [UNKNOWN_TASK, UNKNOWN_TASK] == [event.result for event in seen]


async def test_attach_looks_among_early_callbacks(clock, service) -> None:
    """attach() of a task that has called back already asks about it at once, and once."""
    service.create("old", track())
    service.finish("old")
    async with service.listening(poll=STEADY) as session:
        assert UNKNOWN_TASK is await service.callback("old").to(session)
        await clock.advance(800.0)
        attached_at = clock.monotonic()
        conversion = session.attach("old")
        assert conversion is session.attach("old", track=track())
        wav = await clock.run(conversion.wait())

        assert [attached_at] == service.polls_of("old")
        assert ("poll", track()) == (wav.settled_by, wav.track)


async def test_early_callback_is_there_for_all_who_attach(clock, service) -> None:
    """A kept callback stays: who attaches the task again has it asked about again."""
    service.create("old", track())
    async with service.listening(poll=STEADY, timeout_s=5.0) as session:
        await service.callback("old").to(session)
        begun_at = clock.monotonic()
        for _ in range(2):
            with pytest.raises(ConversionTimeoutError):
                await clock.run(session.attach("old").wait())
        assert [begun_at, begun_at + 5.0] == service.polls_of("old")


async def test_adopted_task_looks_among_early_callbacks(clock, service) -> None:
    """A task that a 409 names and that has called back already is asked about once more."""
    service.create("old", track())
    async with service.listening(poll=STEADY) as session:
        await service.callback("old").to(session)
        await clock.run(session.submit(track()))
        await clock.advance(1.0)
        # Once for the 409, once for the callback.
        assert 2 == len(service.polls_of("old"))


async def test_handler_may_attach_an_orphan(clock, service) -> None:
    """Somebody who attaches every orphan as he is told of it has it asked about at once."""
    service.create("old", track())
    service.finish("old")

    def on_event(event: events.Event) -> None:
        if isinstance(event, events.CallbackReceived) and event.result is UNKNOWN_TASK:
            session.attach(event.task_id)

    async with service.listening(on_event=on_event) as session:
        assert UNKNOWN_TASK is await service.callback("old").to(session)
        (conversion,) = session.conversions()
        await clock.advance(0.0)
        assert "old" == conversion.result().task_id


# --- other things that hold ---------------------------------------------------------------


async def test_conversion_outside_the_wait_settles_after_a_refused_key(clock, service) -> None:
    """When the API key is refused and all waits have ended, a callback still settles."""
    async with service.listening(poll=STEADY) as session:
        conversion = await clock.run(session.submit(track()))
        service.is_key_good = False
        await clock.advance(60.0)
        assert (2, False) == (session.statistics().polls, conversion.done())
        assert SETTLED is await service.callback("task0001").to(session)
        assert "callback" == conversion.result().settled_by


async def test_handler_that_raises_harms_no_callback(clock, service, caplog) -> None:
    """Whatever on_event raises, a callback is taken or refused as if it had not."""

    def on_event(event: events.Event) -> None:
        raise (
            asyncio.CancelledError
            if isinstance(event, events.ConversionSucceeded)
            else KeyError("oops")
        )

    async with service.listening(on_event=on_event) as session:
        conversion = await clock.run(session.submit(track()))
        with pytest.raises(SignatureError):
            await session.handle_callback({}, b"{}")
        assert SETTLED is await service.callback("task0001").to(session)
        assert conversion.done()
    assert 4 == sum("on_event raised" in record.getMessage() for record in caplog.records)


async def test_unreadable_record_leaves_a_hint_without_effect(clock, service) -> None:
    """A hint whose poll brings no news leaves the conversion to the next poll."""
    service.poll_replies += [lambda _: raw(b"<html>", 502)]
    async with service.listening(poll=STEADY) as session:
        conversion = await clock.run(session.submit(track()))
        service.finish("task0001")
        asked_at = clock.monotonic()
        await service.callback("task0001", query="").to(session)
        await clock.run(conversion.wait())
        assert [0.0, 10.0] == [at - asked_at for at in service.polls_of("task0001")]


def test_the_tables_of_this_file_can_tell(service) -> None:
    """The table of cells holds every kind of cell once, and eleven of them settle."""
    assert 5 * 4 * 7 + 7 + 5 + 7 == len(set(CELLS)) == len(CELLS)
    assert 11 == len(SETTLING & set(CELLS)) == len(SETTLING)
    body = json.loads(said(service, ("right", "missing", "none"), "t1", "a").body)
    assert {"msg": "success", "data": {"task_id": "t1"}} == body
