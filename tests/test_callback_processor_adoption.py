"""A callback may tell what became of a submit whose answer was lost; its record must agree."""

from __future__ import annotations

import asyncio
import itertools
import logging

import attrs
import pytest
from yarl import URL

from fakes import (
    ACCEPTED,
    LISTENING_AT,
    LOST_CHARGED,
    LOST_FREE,
    Delivery,
    FakeService,
    counted,
    is_bounded,
    lost,
    make_healthy,
    raw,
    refusal,
    told,
    track,
)
from kie_wav_async import (
    CallbackResult,
    CallbackTrust,
    OnUnknown,
    PollSchedule,
    RateLimit,
    UnknownSubmit,
    WavSession,
    events,
)
from kie_wav_async.errors import (
    AlreadyExistsError,
    ChargeLimitError,
    ConversionFailedError,
    SessionClosedError,
    SubmitUnknownError,
)
from kie_wav_async.testing import FakeClock, failed, missing, pending, refused, succeeded

SETTLED, POLLING = CallbackResult.SETTLED, CallbackResult.POLLING
DUPLICATE, UNKNOWN_TASK = CallbackResult.DUPLICATE, CallbackResult.UNKNOWN_TASK

STEADY = PollSchedule(first_s=15.0, interval_s=10.0, jitter=0.0)


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock) -> FakeService:
    """Return a service that charges every submit, and has finished its first task at once."""
    return FakeService(clock, conversion_s=0.0, knows_repeats=False)


def listening(service: FakeService, **settings: object) -> WavSession:
    """Return a session that is called back and polls without chance."""
    return service.listening(**{"poll": STEADY, **settings})


async def lose(
    clock: FakeClock, service: FakeService, session: WavSession, number: int = 1
) -> UnknownSubmit:
    """Submit a track, charged, whose answer is lost; return the doubt."""
    service.fates.append(LOST_CHARGED)
    with pytest.raises(SubmitUnknownError) as caught:
        await clock.run(session.submit(track(number)))
    return next(d for d in session.unknown_submits() if d.attempt_id == caught.value.attempt_id)


def since(start: float, moments: list[float]) -> list[float]:
    """Return *moments* as seconds after *start*."""
    return [round(at - start, 6) for at in moments]


# --- it made the task ---------------------------------------------------------------------


@pytest.mark.parametrize("trust", CallbackTrust)
async def test_answer_lost_then_callback(clock, service, trust) -> None:
    """A callback that names a lost submit has its task adopted, once the record agrees."""
    seen: list[events.Event] = []
    async with listening(service, on_event=seen.append, callback_trust=trust) as session:
        unknown = await lose(clock, service, session)
        await clock.advance(42.0)
        asked_at = clock.monotonic()
        assert POLLING is await service.callback("task0001").to(session)
        assert (unknown,) == session.unknown_submits()
        assert is_bounded(service, session)
        await clock.advance(0.0)

        assert () == session.unknown_submits() == session.conversions()
        assert {
            "submitted": 1,
            "accepted": 1,
            "adopted": 1,
            "settled_by_poll": 1,
            "polls": 1,
            "unknown_task_callbacks": 1,
        } == counted(session)
        assert is_bounded(service, session)
        assert [asked_at] == service.polled_at_moments
        wav = (await session.submit(track())).result()
        assert ("task0001", track(), "poll", None) == (
            wav.task_id,
            wav.track,
            wav.settled_by,
            wav.expires_at,
        )
        assert 1 == len(service.submitted_at)
        assert DUPLICATE is await service.callback("task0001").to(session)
        await clock.advance(1_000.0)
        assert 1 == len(service.polled_at)
        assert 0 == len(session._core._callbacks._early)
    assert [
        (events.SubmitUnknown, None),
        (events.CallbackReceived, ("task0001", POLLING, True)),
        (events.SubmitAccepted, "task0001"),
        (events.ConversionSucceeded, wav),
        (events.CallbackReceived, ("task0001", DUPLICATE, True)),
    ] == [told(event) for event in seen]
    adoption = next(event for event in seen if isinstance(event, events.SubmitAccepted))
    assert (True, unknown.attempt_id) == (adoption.adopted, unknown.attempt_id)


async def test_callback_then_answer_lost(clock, service) -> None:
    """A callback that came while its submit was on the wire explains it when the answer is lost."""
    service.latency_s = 10.0
    service.fates.append(LOST_CHARGED)
    async with listening(service) as session:
        waiting = asyncio.create_task(session.submit(track()))
        await clock.advance(7.0)
        assert UNKNOWN_TASK is await service.callback("task0001").to(session)
        await clock.advance(2.9)
        assert [] == service.polled_at
        await clock.advance(0.1)
        with pytest.raises(SubmitUnknownError):
            await waiting
        asked_at = clock.monotonic()
        assert is_bounded(service, session)
        await clock.advance(10.0)

        assert [asked_at] == service.polled_at_moments
        assert () == session.unknown_submits()
        assert "task0001" == (await session.submit(track())).result().task_id
        assert (1, 1, 0) == tuple(
            getattr(session.statistics(), name) for name in ("accepted", "adopted", "unknown")
        )
        assert is_bounded(service, session)


async def test_only_tasks_that_name_the_lost_submit_are_asked_about(clock, service) -> None:
    """When an answer is lost, kept callbacks that name other attempts, or none, cause nothing."""
    service.latency_s = 10.0
    service.fates.append(LOST_CHARGED)
    async with listening(service) as session:
        waiting = asyncio.create_task(session.submit(track()))
        await clock.advance(7.0)
        for task_id, query in [("a", ""), ("b", f"attempt={'b' * 32}"), ("c", "attempt=c")]:
            assert UNKNOWN_TASK is await service.callback(task_id, query=query).to(session)
        await clock.advance(3.0)
        with pytest.raises(SubmitUnknownError):
            await waiting
        await clock.advance(100.0)
        assert [] == service.polled_at


async def test_attempt_that_a_later_early_callback_names(clock, service) -> None:
    """A lost submit is explained by the second of two early callbacks if only that one names it."""
    service.latency_s = 10.0
    service.fates.append(LOST_CHARGED)
    async with listening(service) as session:
        waiting = asyncio.create_task(session.submit(track()))
        await clock.advance(7.0)
        assert UNKNOWN_TASK is await service.callback("task0001", query="").to(session)
        assert UNKNOWN_TASK is await service.callback("task0001").to(session)
        await clock.advance(3.0)
        with pytest.raises(SubmitUnknownError):
            await waiting
        await clock.advance(11.0)
        assert () == session.unknown_submits()


async def test_callback_of_15_minutes_ago_explains_nothing(clock, service) -> None:
    """A callback kept for 15 minutes is forgotten when its submit's answer is lost at last."""
    service.latency_s = 4_000.0
    service.fates.append(LOST_CHARGED)
    async with listening(service) as session:
        waiting = asyncio.create_task(session.submit(track()))
        await clock.advance(3_000.0)
        await service.callback("task0001").to(session)
        await clock.advance(1_000.0)
        with pytest.raises(SubmitUnknownError):
            await waiting
        await clock.advance(100.0)
        assert [] == service.polled_at
        assert 1 == len(session.unknown_submits())


async def test_adopted_task_is_followed_to_its_end(clock, service) -> None:
    """A task whose record is pending is adopted, polled and settled like any other."""
    service.conversion_s = 33.0
    async with listening(service) as session:
        await lose(clock, service, session)
        start = clock.monotonic()
        await service.callback("task0001").to(session)
        await clock.advance(0.0)
        (conversion,) = session.conversions()
        assert ("task0001", track()) == (conversion.task_id, conversion.track)
        assert conversion is await session.submit(track())
        wav = await clock.run(conversion.wait())
        assert ("poll", None) == (wav.settled_by, wav.expires_at)
        assert [0.0, 10.0, 20.0, 30.0, 40.0] == since(start, service.polled_at_moments)
        assert (1, 1) == (len(service.submitted_at), session.statistics().adopted)


async def test_adopted_task_that_failed(clock, service) -> None:
    """A task that is found to have failed is adopted and over; the track may be submitted again."""
    service.poll_replies.append(
        lambda task_id: failed(
            task_id,
            musicId=track().audio_id,
            callbackUrl=service.tasks[task_id].callback_url,
        )
    )
    seen: list[events.Event] = []
    async with listening(service, on_event=seen.append) as session:
        await lose(clock, service, session)
        await service.callback("task0001", None, code=500).to(session)
        await clock.advance(0.0)
        ended = seen[-1]
        assert isinstance(ended, events.ConversionEnded)
        assert isinstance(ended.error, ConversionFailedError)
        assert ("task0001", track()) == (ended.task_id, ended.track)
        assert is_bounded(service, session)
        assert "task0002" == (await clock.run(session.submit(track()))).task_id
        assert (2, 2, 0) == (service.charged, session.statistics().accepted, 0)


async def test_callback_that_names_no_attempt_explains_nothing(clock, service) -> None:
    """Without the attempt in its query a callback of an unknown task is an orphan, and kept."""
    async with listening(service) as session:
        unknown = await lose(clock, service, session)
        for query in ("", "shop=7", f"attempt={unknown.attempt_id}&attempt={unknown.attempt_id}"):
            assert UNKNOWN_TASK is await service.callback("task0001", query=query).to(session)
        assert UNKNOWN_TASK is await service.callback("task0001", attempt_id="f" * 32).to(session)
        await clock.advance(100.0)
        assert [] == service.polled_at
        assert (unknown,) == session.unknown_submits()
        assert POLLING is await service.callback("task0001").to(session)
        await clock.advance(0.0)
        assert () == session.unknown_submits()


async def test_without_keys_nothing_is_adopted(clock, service) -> None:
    """Without keys a callback that names a lost submit causes nothing."""
    async with listening(service, webhook_keys=()) as session:
        unknown = await lose(clock, service, session)
        assert UNKNOWN_TASK is await service.callback("task0001").to(session)
        await clock.advance(100.0)
        assert [] == service.polled_at
        assert (unknown,) == session.unknown_submits()


async def test_adoption_takes_its_place_over_the_limit(clock, service) -> None:
    """A lost submit gave its place back; adopted, it takes one over the limit if need be."""
    service.conversion_s = 50.0
    async with listening(service, max_in_flight=1) as session:
        await lose(clock, service, session, 1)
        await clock.run(session.submit(track(2)))
        await service.callback("task0001").to(session)
        await clock.advance(0.0)
        assert 2 == session.statistics().in_flight
        third = asyncio.create_task(session.submit(track(3)))
        await clock.run_pending()
        assert SETTLED is await service.callback("task0002").to(session)
        await clock.run_pending()
        assert (2, False) == (len(service.submitted_at), third.done())
        await clock.advance(60.0)
        assert 3 == len(service.submitted_at)
        assert "task0003" == (await third).task_id


# --- it did not ---------------------------------------------------------------------------

RECORDS = {
    "another track's": {"musicId": "e2"},
    "another host": {"callbackUrl": "https://other.example/kie/callback?shop=7&attempt={attempt}"},
    "another path": {"callbackUrl": "https://app.example/callback?shop=7&attempt={attempt}"},
    "another scheme": {"callbackUrl": "http://app.example/kie/callback?shop=7&attempt={attempt}"},
    "another attempt": {"callbackUrl": f"{LISTENING_AT}&attempt={'f' * 32}"},
    "two attempts": {"callbackUrl": f"{LISTENING_AT}&attempt={{attempt}}&attempt={{attempt}}"},
    "no attempt": {"callbackUrl": LISTENING_AT},
}
UNSAID = {
    "no track named": {"musicId": None},
    "no callback url": {"callbackUrl": None},
    "no url": {"callbackUrl": "attempt={attempt}"},
}


@pytest.mark.parametrize("changes", RECORDS.values(), ids=RECORDS)
async def test_record_that_does_not_agree(clock, service, caplog, changes) -> None:
    """A task is not adopted unless its record shows our track, our address and our attempt."""
    async with listening(service) as session:
        unknown = await lose(clock, service, session)
        task = service.tasks["task0001"]
        shown = {"musicId": track().audio_id, "callbackUrl": task.callback_url, **changes}
        if shown["callbackUrl"]:
            shown["callbackUrl"] = shown["callbackUrl"].format(attempt=unknown.attempt_id)
        service.poll_replies += [lambda task_id: succeeded(task_id, **shown)] * 3
        before = session.statistics()
        assert POLLING is await service.callback("task0001").to(session)
        caplog.clear()
        await clock.advance(1_000.0)

        assert (unknown,) == session.unknown_submits()
        assert () == session.conversions()
        assert 1 == len(service.polled_at)
        assert attrs.evolve(before, unknown_task_callbacks=1, polls=1) == session.statistics()
        assert is_bounded(service, session)
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track()))
    (line, _) = caplog.records
    assert logging.WARNING == line.levelno
    assert unknown.attempt_id in line.getMessage()
    assert "not adopted" in line.getMessage()


@pytest.mark.parametrize("changes", UNSAID.values(), ids=UNSAID)
async def test_record_that_does_not_say_yet(clock, service, changes) -> None:
    """A record that names no track or address yet is asked for again until it does."""
    service.conversion_s = 200.0
    async with listening(service) as session:
        unknown = await lose(clock, service, session)
        task = service.tasks["task0001"]
        shown = {"musicId": task.track.audio_id, "callbackUrl": task.callback_url, **changes}
        service.poll_replies += [lambda task_id: pending(task_id, **shown)] * 2
        start = clock.monotonic()
        assert POLLING is await service.callback("task0001").to(session)
        await clock.advance(15.0)
        assert (unknown,) == session.unknown_submits()
        await clock.advance(10.0)
        assert [0.0, 10.0, 20.0] == since(start, service.polled_at_moments)
        assert () == session.unknown_submits()
        assert ("task0001",) == tuple(c.task_id for c in session.conversions())


@pytest.mark.parametrize("code", [400, 402, 429, 455])
@pytest.mark.parametrize("on_unknown", OnUnknown)
@pytest.mark.parametrize("conversion_s", [0.0, 600.0])
async def test_repeat_that_is_refused_joins_what_was_found(
    clock, service, code, on_unknown, conversion_s
) -> None:
    """A repeat on the wire while the first attempt is found joins its task if it is refused."""
    service.latency_s = 8.0
    service.conversion_s = conversion_s
    service.knows_repeats = False
    service.fates += [LOST_CHARGED, refusal(code)]
    async with listening(service, on_unknown=on_unknown) as session:
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(10.0)
        if on_unknown is OnUnknown.RAISE:
            with pytest.raises(SubmitUnknownError):
                await waiting
            waiting = asyncio.create_task(session.convert(track(), again=True))
            await clock.run_pending()
        else:
            await clock.advance(59.0)
        assert 2 == len(service.submitted_at)
        service.latency_s = 0.0
        await service.callback("task0001").to(session)
        await clock.advance(4.0)
        assert () == session.unknown_submits()
        wav = await clock.run(waiting)
        assert "task0001" == wav.task_id
        assert wav is (await session.submit(track())).result()
        assert (2, 1) == (len(service.submitted_at), service.charged)
        assert is_bounded(service, session)


async def test_strangers_tasks_fill_no_log(clock, service, caplog) -> None:
    """However many foreign tasks are said to be a lost submit's, one warning tells of it."""
    async with listening(service) as session:
        unknown = await lose(clock, service, session)
        query = f"attempt={unknown.attempt_id}"
        caplog.clear()
        for number in range(5):
            service.create(f"foreign{number}", track(9))
            foreign = attrs.evolve(service.callback(f"foreign{number}"), query=query)
            assert POLLING is await foreign.to(session)
            await clock.advance(5.0)
        assert 5 == len(service.polled_at)
        lines = [line for line in caplog.records if line.levelno >= logging.WARNING]
        assert ["not adopted"] == [line.getMessage()[-11:] for line in lines]


async def test_task_that_was_not_adopted_may_be_attached(clock, service) -> None:
    """A callback whose task was not adopted stays kept, for attach()."""
    async with listening(service) as session:
        await lose(clock, service, session)
        service.tasks["task0001"].callback_url = LISTENING_AT
        query = f"attempt={session.unknown_submits()[0].attempt_id}"
        assert POLLING is await service.callback("task0001", query=query).to(session)
        await clock.advance(10.0)
        attached_at = clock.monotonic()
        await clock.run(session.attach("task0001").wait())
        assert attached_at == clock.monotonic()
        assert 1 == len(session.unknown_submits())


async def test_address_given_without_path_is_shown_with_one(clock, service) -> None:
    """An address is the same whether the service shows it with the root path or without."""
    async with listening(service, callback_url="https://app.example") as session:
        unknown = await lose(clock, service, session)
        shown = f"https://app.example/?attempt={unknown.attempt_id}"
        service.tasks["task0001"].callback_url = shown
        await service.callback("task0001").to(session)
        await clock.advance(0.0)
        assert () == session.unknown_submits()


@pytest.mark.parametrize(
    "callback_url",
    [
        "https://app.example",
        "https://app.example/",
        "https://app.example/kie?",
        "https://app.example/kie?a=%7E&b=+&c=%2f",
        "https://app.example/k%C3%AFe/~/%7E/a%2fb/",
        "https://app.example:8443/kie",
        "http://127.0.0.1:8080/kie",
        "http://[::1]:8080/kie",
        "https://app.example/schl\u00fcssel?x=\u00fc",
        "https://b\u00fccher.example/kie",
        "https://app.example/a;b=c/d,e",
        "https://app.example/a/../b",
        "https://app.example//kie",
        "https://app.example:443/kie",
        "https://APP.example/kie",
        "HTTPS://app.example/kie",
    ],
)
async def test_address_that_the_record_repeats(clock, service, callback_url) -> None:
    """However the user spelled the address, a record that repeats it as sent agrees."""
    async with listening(service, callback_url=callback_url) as session:
        await lose(clock, service, session)
        await service.callback("task0001").to(session)
        await clock.advance(0.0)
        assert () == session.unknown_submits()


# --- no news of it ------------------------------------------------------------------------

NO_NEWS = {
    "no record yet": lambda _: missing(),
    "code 500": lambda _: refused(500),
    "502": lambda _: raw(b"<html>", 502),
    "reset": lambda _: lost(),
    "429": lambda _: refused(429),
    "another task's record": lambda _: succeeded("another"),
    "a transport's own bug": lambda _: ZeroDivisionError("oops"),
}


@pytest.mark.parametrize("reply", NO_NEWS.values(), ids=NO_NEWS)
async def test_no_news_is_asked_for_again(clock, service, reply) -> None:
    """While the record cannot be had it is asked for every interval, and then adopted."""
    service.poll_replies += [reply] * 5
    async with listening(service) as session:
        await lose(clock, service, session)
        start = clock.monotonic()
        await service.callback("task0001").to(session)
        await clock.advance(49.9)
        assert 1 == len(session.unknown_submits())
        await clock.advance(0.1)
        assert [0.0, 10.0, 20.0, 30.0, 40.0, 50.0] == since(start, service.polled_at_moments)
        assert () == session.unknown_submits()
        await clock.advance(1_000.0)
        assert 6 == session.statistics().polls == len(service.polled_at)


async def test_no_news_for_15_minutes(clock, service) -> None:
    """After 15 minutes without a record nothing is asked any more, until a callback comes again."""
    service.poll_replies += [lambda _: missing()] * 90
    async with listening(service) as session:
        await lose(clock, service, session)
        start = clock.monotonic()
        await service.callback("task0001").to(session)
        await clock.advance(2_000.0)
        assert [10.0 * n for n in range(90)] == since(start, service.polled_at_moments)
        assert 1 == len(session.unknown_submits())
        assert not session._core._polls._lookups

        await service.callback("task0001").to(session)
        await clock.advance(0.0)
        assert () == session.unknown_submits()


async def test_callback_again_while_it_is_asked_about(clock, service) -> None:
    """Callbacks that come again while their task is asked about cause one poll per 2 s."""
    service.poll_replies += [lambda _: missing()] * 3
    async with listening(service) as session:
        await lose(clock, service, session)
        start = clock.monotonic()
        for _ in range(35):
            verdict = await service.callback("task0001").to(session)
            await clock.advance(1.0)
        assert CallbackResult.DUPLICATE is verdict
        assert [0.0, 2.0, 4.0, 6.0] == since(start, service.polled_at_moments)


async def test_key_in_doubt_while_it_is_asked_about(clock, service) -> None:
    """A 401 to such a poll makes polling rest like any other."""
    service.poll_replies.append(lambda _: refused(401))
    async with listening(service) as session:
        await lose(clock, service, session)
        start = clock.monotonic()
        await service.callback("task0001").to(session)
        await clock.advance(60.0)
        assert [0.0, 10.0] == since(start, service.polled_at_moments)
        assert () == session.unknown_submits()


# --- meanwhile ----------------------------------------------------------------------------


async def test_user_says_it_was_that_task_meanwhile(clock, service) -> None:
    """A doubt that the user resolves with the task itself is counted once."""
    service.poll_replies += [lambda _: missing()] * 2
    async with listening(service) as session:
        unknown = await lose(clock, service, session)
        await service.callback("task0001").to(session)
        await clock.advance(5.0)
        await session.resolve_unknown(unknown.attempt_id, task_id="task0001")
        (conversion,) = session.conversions()
        wav = await clock.run(conversion.wait())
        await clock.advance(100.0)
        assert "task0001" == wav.task_id
        assert (1, 1) == (session.statistics().accepted, session.statistics().adopted)
        assert not session._core._polls._lookups


async def test_user_says_it_was_another_task_meanwhile(clock, service) -> None:
    """A doubt that the user resolves with another task is closed: the callback adopts nothing."""
    service.poll_replies.append(lambda _: missing())
    service.create("mine", track())
    async with listening(service) as session:
        unknown = await lose(clock, service, session)
        task_id = doubt_task(service, unknown)
        await service.callback(task_id).to(session)
        await clock.advance(5.0)
        await session.resolve_unknown(unknown.attempt_id, task_id="mine")
        (conversion,) = session.conversions()
        await clock.run(conversion.wait())
        await clock.advance(100.0)
        assert 1 == session.statistics().adopted
        assert () == session.conversions()
        # Once by the callback, and once more to find that there is no doubt left.
        assert 2 >= len(service.polls_of(task_id))


def doubt_task(service: FakeService, unknown: UnknownSubmit) -> str:
    """Return the task that a lost submit made."""
    return next(t.task_id for t in service.tasks.values() if unknown.attempt_id in t.callback_url)


async def test_user_says_it_was_not_charged_meanwhile(clock, service) -> None:
    """A doubt that the user calls not charged is closed, even if a callback names it."""
    service.poll_replies.append(lambda _: missing())
    async with listening(service) as session:
        unknown = await lose(clock, service, session)
        await service.callback("task0001").to(session)
        await clock.advance(5.0)
        await session.resolve_unknown(unknown.attempt_id, not_charged=True)
        await clock.advance(100.0)
        assert () == session.conversions() == session.unknown_submits()
        assert 0 == session.statistics().adopted
        assert 2 >= len(service.polled_at)
        # A later callback is an orphan's.
        assert UNKNOWN_TASK is await service.callback("task0001").to(session)


async def test_task_attached_meanwhile_without_a_track(clock, service) -> None:
    """A task that the user attaches while it is asked about explains the doubt all the same."""
    async with listening(service) as session:
        await lose(clock, service, session)
        await service.callback("task0001").to(session)
        wav = await clock.run(session.attach("task0001").wait())
        await clock.advance(1_000.0)
        assert "task0001" == wav.task_id
        assert () == session.unknown_submits() == session.conversions()
        assert is_bounded(service, session)


async def test_waiters_for_a_repeat_get_the_record_of_an_attached_task(clock, service) -> None:
    """Who waits for a repeat gets the file as soon as its record is there, attached or not."""
    service.fates.append(LOST_CHARGED)
    async with listening(service, on_unknown=OnUnknown.RESUBMIT) as session:
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(20.0)
        await service.callback("task0001").to(session)
        session.attach("task0001")
        await clock.advance(5.0)
        assert waiting.done()
        assert "task0001" == (await waiting).task_id


async def test_task_attached_meanwhile_for_another_track(clock, service, caplog) -> None:
    """A task that the user meanwhile follows for another track is not adopted."""
    service.conversion_s = 30.0
    async with listening(service) as session:
        unknown = await lose(clock, service, session)
        await service.callback("task0001").to(session)
        conversion = session.attach("task0001", track=track(9))
        await clock.run(conversion.wait())
        await clock.advance(100.0)
        assert (unknown,) == session.unknown_submits()
        assert track(9) == conversion.result().track
        assert is_bounded(service, session)
    assert "not adopted" in caplog.text


async def test_task_followed_for_another_track(clock, service) -> None:
    """A callback that names a lost submit, of a task followed for another track, is a hint."""
    async with listening(service) as session:
        unknown = await lose(clock, service, session)
        conversion = session.attach("task0001", track=track(9))
        assert POLLING is await service.callback("task0001").to(session)
        await clock.run(conversion.wait())
        await clock.advance(100.0)
        assert (unknown,) == session.unknown_submits()
        assert 0 == session.statistics().adopted


async def test_track_in_flight_under_another_attempt(clock, service) -> None:
    """A task found for a track that was submitted again is followed beside the other."""
    service.conversion_s = 20.0
    async with listening(service) as session:
        await lose(clock, service, session)
        again = await clock.run(session.submit(track(), again=True))
        assert 1 == session.statistics().possible_double_charges
        assert is_bounded(service, session)
        assert POLLING is await service.callback("task0001").to(session)
        await clock.advance(0.0)
        assert {"task0001", "task0002"} == {c.task_id for c in session.conversions()}
        assert again is await session.submit(track())
        assert (2, 2, 0) == (
            service.charged,
            session.statistics().accepted,
            session.statistics().unknown,
        )
        assert SETTLED is await service.callback("task0002").to(session)
        await clock.advance(100.0)
        assert () == session.conversions()
        figures = counted(session)
        assert (1, 1, 1) == (
            figures["settled_by_callback"],
            figures["settled_by_poll"],
            figures["possible_double_charges"],
        )


async def test_track_that_succeeded_under_another_attempt(clock, service) -> None:
    """A task found for a track that has its file already is adopted, and counts as charged."""
    async with listening(service) as session:
        await lose(clock, service, session)
        wav = await clock.run(session.convert(track(), again=True))
        assert "task0002" == wav.task_id
        await clock.advance(1.0)
        await service.callback("task0001").to(session)
        await clock.advance(0.0)
        assert () == session.unknown_submits()
        assert (2, 2) == (service.charged, session.statistics().accepted)


async def test_two_tasks_for_one_attempt(clock, service) -> None:
    """Of two callbacks that name one lost submit the one whose record agrees is adopted."""
    service.create("stranger", track(2))
    service.finish("stranger")
    async with listening(service) as session:
        unknown = await lose(clock, service, session)
        mine = doubt_task(service, unknown)
        for task_id in ("stranger", mine):
            callback = service.callback(task_id, attempt_id=unknown.attempt_id)
            assert POLLING is await callback.to(session)
        await clock.advance(1.0)
        assert (1, 0) == (session.statistics().adopted, session.statistics().unknown)
        assert mine == (await session.submit(track())).result().task_id
        assert DUPLICATE is await service.callback(mine).to(session)
        assert UNKNOWN_TASK is await service.callback("stranger", attempt_id=unknown.attempt_id).to(
            session
        )
        await clock.advance(100.0)
        assert (1, 1) == (len(service.polls_of(mine)), len(service.polls_of("stranger")))


async def test_two_tasks_that_both_agree(clock, service) -> None:
    """One lost submit explains one task, even if two records show it."""
    async with listening(service) as session:
        unknown = await lose(clock, service, session)
        service.create("twin", track(), service.tasks["task0001"].callback_url)
        for task_id in ("twin", "task0001"):
            assert POLLING is await service.callback(task_id).to(session)
        await clock.advance(100.0)
        assert (1, 1, ()) == (
            session.statistics().adopted,
            session.statistics().accepted,
            session.unknown_submits(),
        )
        assert "twin" == (await session.submit(track())).result().task_id
        assert unknown.track == track()


async def test_each_of_two_doubts_has_its_own_task(clock, service) -> None:
    """Two lost submits of one track are each explained by the callback of its own task."""
    async with listening(service) as session:
        await lose(clock, service, session)
        service.fates.append(LOST_CHARGED)
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track(), again=True))
        first, second = session.unknown_submits()
        assert is_bounded(service, session)
        await service.callback("task0002").to(session)
        await clock.advance(1.0)
        assert (first,) == session.unknown_submits()
        await service.callback("task0001").to(session)
        await clock.advance(1.0)
        assert () == session.unknown_submits()
        assert (2, 2, 2) == (
            service.charged,
            session.statistics().accepted,
            session.statistics().adopted,
        )
        assert second.attempt_id in service.tasks["task0002"].callback_url


# --- OnUnknown.RESUBMIT -------------------------------------------------------------------


async def test_repeat_does_not_go_out_after_an_adoption(clock, service) -> None:
    """Who waits for the repeat of a lost submit gets the task that a callback has named."""
    service.fates.append(LOST_CHARGED)
    async with listening(service, on_unknown=OnUnknown.RESUBMIT) as session:
        waiters = [asyncio.create_task(session.convert(track())) for _ in range(3)]
        await clock.advance(30.0)
        assert (1, False) == (session.statistics().unknown, waiters[0].done())
        assert POLLING is await service.callback("task0001").to(session)
        await clock.advance(0.0)
        assert {"task0001"} == {waiter.result().task_id for waiter in waiters}
        await clock.advance(200.0)
        assert 1 == len(service.submitted_at) == service.charged
        assert 0 == session.statistics().possible_double_charges
        assert is_bounded(service, session)


async def test_callback_before_the_lost_answer_spares_the_repeat(clock, service) -> None:
    """A callback kept while the submit was on the wire spares the repeat altogether."""
    service.latency_s = 10.0
    service.fates.append(LOST_CHARGED)
    async with listening(service, on_unknown=OnUnknown.RESUBMIT) as session:
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(7.0)
        assert UNKNOWN_TASK is await service.callback("task0001").to(session)
        await clock.advance(3.0)
        assert not waiting.done()
        await clock.advance(10.0)
        assert "task0001" == waiting.result().task_id
        await clock.advance(200.0)
        assert 1 == len(service.submitted_at)


async def test_task_that_is_not_ours_spares_no_repeat(clock, service) -> None:
    """A callback whose record does not agree leaves the repeat to its time."""
    service.fates.append(LOST_CHARGED)
    async with listening(service, on_unknown=OnUnknown.RESUBMIT) as session:
        waiting = asyncio.create_task(session.submit(track()))
        await clock.advance(30.0)
        service.tasks["task0001"].callback_url = "https://elsewhere.example/"
        query = f"attempt={service.attempts[0]}"
        assert POLLING is await service.callback("task0001", query=query).to(session)
        await clock.advance(29.9)
        assert 1 == len(service.submitted_at)
        await clock.advance(0.1)
        assert 2 == len(service.submitted_at)
        assert "task0002" == (await waiting).task_id
        assert 1 == session.statistics().possible_double_charges
        assert is_bounded(service, session)


async def test_adoption_while_the_repeat_waits_in_the_queue(clock, service) -> None:
    """A repeat that waits for the window when its task is found is not sent."""
    service.fates += [LOST_CHARGED, ACCEPTED]
    async with listening(
        service, on_unknown=OnUnknown.RESUBMIT, rate_limit=RateLimit(1, per_s=55.0)
    ) as session:
        waiting = asyncio.create_task(session.convert(track(1)))
        await clock.advance(1.0)
        other = asyncio.create_task(session.submit(track(2)))
        await clock.advance(60.0)
        # The window opened for the other at 55 s, and opens for the repeat at 110 s.
        assert 2 == len(service.submitted_at)
        assert not waiting.done()
        await service.callback("task0001").to(session)
        await clock.advance(0.0)
        assert "task0001" == waiting.result().task_id
        await clock.advance(300.0)
        assert 2 == len(service.submitted_at)
        assert "task0002" == (await other).task_id
        assert is_bounded(service, session)


async def confirm_at_once(clock: FakeClock, service: FakeService, session: WavSession) -> None:
    """Deliver the callback of task0001, whose poll is back while other requests are out."""
    latency_s, service.latency_s = service.latency_s, 0.0
    assert POLLING is await service.callback("task0001").to(session)
    await clock.advance(1.0)
    service.latency_s = latency_s


@pytest.mark.parametrize("knows_repeats", [True, False])
async def test_adoption_while_the_repeat_is_on_the_wire(clock, service, knows_repeats) -> None:
    """A task found while the repeat is on the wire is followed, whatever the repeat comes to."""
    service.knows_repeats = knows_repeats
    service.latency_s = 10.0
    service.fates.append(LOST_CHARGED)
    async with listening(service, on_unknown=OnUnknown.RESUBMIT) as session:
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(72.0)
        assert 2 == len(service.submitted_at)
        await confirm_at_once(clock, service, session)
        assert () == session.unknown_submits()
        await clock.run(waiting)
        await clock.advance(100.0)
        charged = 1 if knows_repeats else 2
        assert (charged, charged) == (service.charged, session.statistics().accepted)
        assert () == session.unknown_submits() == session.conversions()
        assert is_bounded(service, session)


async def test_repeat_that_was_charged_after_all_is_counted(clock, service) -> None:
    """A repeat that was sent in doubt and gets a task of its own is a possible double charge."""
    service.latency_s = 10.0
    service.fates.append(LOST_CHARGED)
    async with listening(service, on_unknown=OnUnknown.RESUBMIT) as session:
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(72.0)
        await confirm_at_once(clock, service, session)
        await clock.run(waiting)
        await clock.advance(100.0)
        assert 2 == service.charged
        assert 1 == session.statistics().possible_double_charges


async def test_repeat_named_by_a_409_for_another_track(clock, service) -> None:
    """A repeat refused by a 409 about a stranger's task leaves the doubt to its callback."""
    service.conversion_s = 200.0
    service.fates.append(LOST_CHARGED)
    service.create("stranger", track(2))
    async with listening(service, on_unknown=OnUnknown.RESUBMIT) as session:
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(59.0)
        service.fates.append(refusal(409, data={"taskId": "stranger"}))
        await clock.advance(2.0)
        with pytest.raises(SubmitUnknownError) as caught:
            await waiting
        assert isinstance(caught.value.__cause__, AlreadyExistsError)
        mine = doubt_task(service, session.unknown_submits()[0])
        service.finish(mine)
        await service.callback(mine).to(session)
        await clock.advance(1.0)
        assert mine == (await session.submit(track())).result().task_id
        assert is_bounded(service, session)


# --- what it costs ------------------------------------------------------------------------


async def test_bill_is_bounded_all_along(clock, service) -> None:
    """Through losses, repeats, callbacks and adoptions the bill bounds what was charged."""
    service.latency_s = 4.0
    service.fates += [LOST_CHARGED, ACCEPTED, LOST_FREE, LOST_CHARGED, LOST_CHARGED, ACCEPTED] * 2

    def look(_: events.Event) -> None:
        figures = session.statistics()
        sending = session._core.registry.sending
        assert figures.accepted <= service.charged
        assert service.charged <= figures.accepted + figures.unknown + sending
        looked.append(figures)

    looked: list[object] = []
    async with listening(service, on_event=look, on_unknown=OnUnknown.RESUBMIT) as session:
        waiting = [asyncio.create_task(session.convert(track(n))) for n in range(1, 13)]
        for at in range(300):
            await clock.advance(1.0)
            # Every third moment the service calls back for one of its tasks.
            tasks = [*service.tasks]
            if at % 3 == 0 and tasks:
                await service.callback(tasks[at // 3 % len(tasks)]).to(session)
        assert 30 < len(looked)
        assert all(waiter.done() for waiter in waiting)
        assert is_bounded(service, session)
        assert service.charged == session.statistics().accepted
        _ = [waiter.exception() for waiter in waiting]


async def test_adoption_changes_no_charge_limit(clock, service) -> None:
    """What is adopted counts under max_charges as the doubt did."""
    async with listening(service, max_charges=2) as session:
        await lose(clock, service, session, 1)
        await service.callback("task0001").to(session)
        await clock.advance(0.0)
        assert 1 == session.statistics().accepted
        await clock.run(session.submit(track(2)))
        with pytest.raises(ChargeLimitError):
            await clock.run(session.submit(track(3)))
        assert 2 == service.charged


async def test_adoption_is_possible_at_the_charge_limit(clock, service) -> None:
    """At max_charges nothing more is submitted, and what is lost can still be adopted."""
    async with listening(service, max_charges=1, on_unknown=OnUnknown.RESUBMIT) as session:
        service.fates.append(LOST_CHARGED)
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(20.0)
        await service.callback("task0001").to(session)
        await clock.advance(0.0)
        assert "task0001" == waiting.result().task_id
        with pytest.raises(ChargeLimitError):
            await clock.run(session.submit(track(2)))
        assert (1, 1) == (service.charged, session.statistics().accepted)


async def test_flood_of_callbacks_for_one_doubt_is_slow(clock, service) -> None:
    """However many tasks claim one lost submit, 10 polls a second are sent, and one is adopted."""
    async with listening(service) as session:
        unknown = await lose(clock, service, session)
        start = clock.monotonic()
        for number in range(300):
            callback = service.callback(f"claims{number}", attempt_id=unknown.attempt_id)
            assert POLLING is await callback.to(session)
        await service.callback("task0001").to(session)
        await clock.advance(9.95)
        assert 100 == len(service.polled_at)
        await clock.advance(20.1)
        assert () == session.unknown_submits()
        gaps = [b - a for a, b in itertools.pairwise(service.polled_at_moments)]
        assert 0.1 - 1e-6 <= min(gaps)
        (found_at,) = service.polls_of("task0001")
        # In its turn, though those before are asked about again each 10 s.
        assert 30.0 == pytest.approx(found_at - start)


# --- closing ------------------------------------------------------------------------------


async def test_submit_lost_while_closing_is_not_asked_about(clock, service) -> None:
    """A submit that is lost while the session closes stays in doubt, whatever callback is kept."""
    service.latency_s = 10.0
    service.fates.append(LOST_CHARGED)
    async with listening(service) as session:
        waiting = asyncio.create_task(session.submit(track()))
        await clock.advance(7.0)
        await service.callback("task0001").to(session)
        await clock.run(session.aclose())
        with pytest.raises(SessionClosedError):
            await waiting
        assert 1 == len(session.unknown_submits())
        await clock.advance(100.0)
        assert [] == service.polled_at


async def test_closing_while_it_is_asked_about(clock, service) -> None:
    """A doubt that is being looked into when the session closes stays one."""
    service.latency_s = 10.0
    async with listening(service) as session:
        unknown = await lose(clock, service, session)
        await service.callback("task0001").to(session)
        await clock.advance(1.0)
        assert 1 == session.statistics().polls
        await clock.run(session.aclose())
        await clock.advance(100.0)
        assert (unknown,) == session.unknown_submits()
        assert () == session.conversions()
        assert 1 == session.statistics().polls


# --- while callbacks flow -----------------------------------------------------------------


async def test_adopted_task_that_is_pending_is_polled_at_the_interval(clock, service) -> None:
    """A task whose callback has come, and whose record is pending still, waits no backstop."""
    service.conversion_s = 40.0
    async with listening(service) as session:
        make_healthy(session)
        await lose(clock, service, session, 1)
        await service.callback("task0001").to(session)
        await clock.advance(50.0)
        assert () == session.conversions()


async def test_attached_task_waits_for_no_callback(clock, service) -> None:
    """A task that somebody else submitted is polled soon, however well our callbacks flow."""
    async with listening(service) as session:
        make_healthy(session)
        service.create("old", track(2))
        conversion = session.attach("old")
        await clock.advance(16.0)
        assert conversion.done()


# --- who attaches what he hears of --------------------------------------------------------


def attaching(seen: list[WavSession]):
    """Return a handler that attaches every orphan, in the session put into *seen*."""

    def on_event(event: events.Event) -> None:
        if isinstance(event, events.CallbackReceived) and event.result is UNKNOWN_TASK:
            seen[0].attach(event.task_id)

    return on_event


async def test_submit_whose_task_was_attached_before_the_answer(clock, service) -> None:
    """A submit settles by its callback also if somebody attached its task before the answer."""
    service.latency_s = 10.0
    seen: list[WavSession] = []
    async with listening(service, on_event=attaching(seen)) as session:
        seen.append(session)
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(7.0)
        assert UNKNOWN_TASK is await service.callback("task0001").to(session)
        await clock.advance(3.0)
        _ = await service.callback("task0001").to(session)
        await clock.advance(60.0)
        assert waiting.done()


@pytest.mark.parametrize("comes_again", [True, False])
async def test_repeat_is_spared_though_the_task_was_attached(clock, service, comes_again) -> None:
    """A callback that names a lost submit spares the repeat, whoever follows its task."""
    service.latency_s = 10.0
    service.fates.append(LOST_CHARGED)
    seen: list[WavSession] = []
    async with listening(
        service, on_event=attaching(seen), on_unknown=OnUnknown.RESUBMIT
    ) as session:
        seen.append(session)
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(7.0)
        assert UNKNOWN_TASK is await service.callback("task0001").to(session)
        if comes_again:
            await clock.advance(20.0)
            _ = await service.callback("task0001").to(session)
        await clock.run(waiting)
        assert 1 == service.charged


def test_deliveries_bring_back_the_attempt(service) -> None:
    """The callbacks of this file name the attempt that made their task, as the service would."""
    service.create("t1", track(), f"{LISTENING_AT}&attempt={'a' * 32}")
    delivery: Delivery = service.callback("t1")
    assert f"shop=7&attempt={'a' * 32}" == delivery.query
    assert "a" * 32 == URL(f"https://h/?{delivery.query}").query["attempt"]
