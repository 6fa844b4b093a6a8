"""When callbacks make the poller ask, how often at most, and when it may rest for them."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import pytest

from fakes import LOST_CHARGED, FakeService, lost, make_healthy, raw, track
from kie_wav_async import CallbackResult, CallbackTrust, PollSchedule, RateLimit
from kie_wav_async.core import polls
from kie_wav_async.errors import (
    AuthenticationError,
    ConversionFailedError,
    ConversionTimeoutError,
    NotFoundError,
    SubmitUnknownError,
)
from kie_wav_async.testing import FakeClock, failed, missing, pending, refused

if TYPE_CHECKING:
    from kie_wav_async import Conversion, WavSession

POLLING, SETTLED = CallbackResult.POLLING, CallbackResult.SETTLED

STEADY = PollSchedule(first_s=15.0, interval_s=10.0, jitter=0.0)

#: Nobody is asked about unless a callback says so.
QUIET = PollSchedule(first_s=100_000.0, interval_s=100_000.0, jitter=0.0)


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock) -> FakeService:
    """Return a service whose conversions end when the test says so."""
    return FakeService(clock, conversion_s=1e9)


def hinting(service: FakeService, **settings: object) -> WavSession:
    """Return a session to which every callback is a hint, and that submits at once."""
    return service.listening(
        **{
            "callback_trust": CallbackTrust.CONFIRM,
            "poll": QUIET,
            "timeout_s": None,
            "rate_limit": RateLimit(10_000, per_s=1.0),
            "max_in_flight": 10_000,
            **settings,
        }
    )


async def in_flight(
    clock: FakeClock, session: WavSession, count: int = 1
) -> tuple[Conversion, ...]:
    """Submit so many tracks."""
    for number in range(1, count + 1):
        await clock.run(session.submit(track(number)))
    return session.conversions()


async def hint(service: FakeService, session: WavSession, task_id: str = "task0001") -> None:
    """Deliver a callback that is a hint."""
    assert POLLING is await service.callback(task_id).to(session)


def since(start: float, moments: list[float]) -> list[float]:
    """Return *moments* as seconds after *start*."""
    return [round(at - start, 6) for at in moments]


# --- how often ----------------------------------------------------------------------------


async def test_hints_of_one_moment_are_one_poll(clock, service) -> None:
    """Fifty callbacks of one task in one moment cause one poll."""
    async with hinting(service) as session:
        await in_flight(clock, session)
        for _ in range(50):
            await hint(service, session)
        await clock.advance(100.0)
        assert 1 == len(service.polled_at) == session.statistics().polls


async def test_task_is_asked_about_every_2_s_at_most(clock, service) -> None:
    """Callbacks of one task every 0.1 s cause one poll every 2 s."""
    async with hinting(service) as session:
        await in_flight(clock, session)
        start = clock.monotonic()
        for _ in range(101):
            await hint(service, session)
            await clock.advance(0.1)
        await clock.advance(60.0)
        # The one at 10 s is the last callback's, and the one at 12 s that of those between.
        assert [0.0, 2.0, 4.0, 6.0, 8.0, 10.0] == since(start, service.polls_of("task0001"))[:6]
        assert 7 >= len(service.polled_at)


async def test_replay_storm_on_one_task(clock, service) -> None:
    """The same callback thousands of times costs the allowed polls, and no memory."""
    async with hinting(service) as session:
        await in_flight(clock, session)
        callback = service.callback("task0001")
        start = clock.monotonic()
        for _ in range(30):
            for _ in range(200):
                await callback.to(session)
            await clock.advance(0.5)
        assert [2.0 * n for n in range(8)] == since(start, service.polled_at_moments)
        poller = session._core._polls
        assert 2 >= len(poller._requested) + len(poller._requested_tasks) + len(poller._asking)
        assert 8 + 1 >= len(poller._due)
        service.finish("task0001")
        await clock.advance(2.0)
        assert 1 == session.statistics().settled_by_poll
        assert CallbackResult.DUPLICATE is await callback.to(session)


async def test_ten_polls_a_second_in_all(clock, service) -> None:
    """Callbacks of fifty tasks in one moment cause ten polls a second, in the order they came."""
    async with hinting(service) as session:
        await in_flight(clock, session, 50)
        start = clock.monotonic()
        order = [f"task{number:04d}" for number in (*range(50, 0, -2), *range(1, 50, 2))]
        for task_id in order:
            await hint(service, session, task_id)
        await clock.advance(60.0)
        assert order == [task_id for _, task_id in service.polled_at]
        assert [round(0.1 * n, 6) for n in range(50)] == since(start, service.polled_at_moments)


@pytest.mark.parametrize(
    ("max_per_s", "gap_s"), [(30.0, 0.1), (20.0, 0.1), (10.0, 0.2), (1.0, 2.0), (0.1, 20.0)]
)
async def test_hints_take_half_of_the_budget_at_most(clock, service, max_per_s, gap_s) -> None:
    """However small the budget of polls is, callbacks cause no more than half of it."""
    poll = PollSchedule(first_s=1e6, interval_s=1e6, max_per_s=max_per_s)
    async with hinting(service, poll=poll) as session:
        await in_flight(clock, session, 8)
        start = clock.monotonic()
        for number in range(1, 9):
            await hint(service, session, f"task{number:04d}")
        await clock.advance(200.0)
        assert [round(gap_s * n, 6) for n in range(8)] == since(start, service.polled_at_moments)


async def test_flood_of_hints_leaves_scheduled_polls_their_half(clock, service) -> None:
    """While callbacks flood in, the tasks that nobody calls back are asked about in turn."""
    poll = PollSchedule(first_s=10.0, interval_s=10.0, jitter=0.0, max_per_s=4.0)
    async with hinting(service, poll=poll) as session:
        await in_flight(clock, session, 40)
        start = clock.monotonic()
        for _ in range(600):
            for number in range(1, 21):
                await service.callback(f"task{number:04d}").to(session)
            await clock.advance(0.1)
        called_back = {f"task{number:04d}" for number in range(1, 21)}
        late = [(at - start, task) for at, task in service.polled_at if at - start >= 10.0]
        hinted = [at for at, task in late if task in called_back]
        others = [task for _, task in late if task not in called_back]
        assert 200 >= len(late) >= 198
        # Half a budget of 4 per s, 50 s long, is for 20 tasks that have a turn each 10 s.
        assert 98 <= len(others) <= 102
        assert {f"task{number:04d}" for number in range(21, 41)} == set(others)
        assert 98 <= len(hinted) <= 102


async def test_hint_that_waited_is_within_the_budget(clock, service) -> None:
    """Between a callback's poll that had to wait for its turn and the next one is a full gap."""
    poll = PollSchedule(first_s=1.1, interval_s=1e6, max_per_s=2.0)
    async with hinting(service, poll=poll) as session:
        await in_flight(clock, session, 3)
        start = clock.monotonic()
        await hint(service, session, "task0001")
        await hint(service, session, "task0002")
        await clock.advance(60.0)
        assert [0.0, 1.0, 1.5] == since(start, service.polled_at_moments)


async def test_hint_of_an_idle_task_does_not_wait_for_scheduled_polls(clock, service) -> None:
    """A callback's poll goes before the scheduled ones that are due."""
    poll = PollSchedule(first_s=10.0, interval_s=1_000.0, max_per_s=2.0)
    async with hinting(service, poll=poll) as session:
        await in_flight(clock, session, 40)
        await clock.advance(12.0)
        asked_at = clock.monotonic()
        await hint(service, session, "task0040")
        await clock.advance(0.5)
        assert [asked_at] == pytest.approx(service.polls_of("task0040"), abs=0.5)


async def test_scheduled_polls_do_not_count_as_hinted(clock, service) -> None:
    """A callback just after a scheduled poll causes a poll at once."""
    async with hinting(service, poll=STEADY) as session:
        await in_flight(clock, session)
        start = clock.monotonic()
        await clock.advance(15.5)
        await hint(service, session)
        await clock.advance(20.0)
        assert [15.0, 15.5, 25.5, 35.5] == since(start, service.polled_at_moments)


# --- what follows -------------------------------------------------------------------------


async def test_after_a_hint_comes_the_interval(clock, service) -> None:
    """After a hint whose record is pending the next poll comes at the interval, not twice."""
    async with hinting(service, poll=STEADY) as session:
        await in_flight(clock, session)
        start = clock.monotonic()
        await clock.advance(4.0)
        await hint(service, session)
        await clock.advance(36.0)
        assert [4.0, 14.0, 24.0, 34.0] == since(start, service.polled_at_moments)


async def test_after_a_hint_comes_the_interval_and_not_the_backstop(clock, service) -> None:
    """A conversion whose hint brought nothing is then polled at the interval."""
    async with service.listening(poll=STEADY, timeout_s=None) as session:
        make_healthy(session)
        await in_flight(clock, session)
        start = clock.monotonic()
        await clock.advance(50.0)
        assert [] == service.polled_at
        await hint_by_failure(service, session, "task0001")
        await clock.advance(30.0)
        assert [50.0, 60.0, 70.0, 80.0] == since(start, service.polled_at_moments)


async def hint_by_failure(service: FakeService, session: WavSession, task_id: str) -> None:
    """Deliver a callback that is a hint under any trust."""
    assert POLLING is await service.callback(task_id, None, code=500).to(session)


@pytest.mark.parametrize(
    "reply",
    [lambda _: raw(b"<html>", 502), lambda _: lost(), pending],
    ids=["html", "reset", "pending"],
)
async def test_hint_without_news_leaves_it_to_the_next_poll(clock, service, reply) -> None:
    """A hint's poll that brings no news is not repeated before the interval is over."""
    service.poll_replies.append(reply)
    async with hinting(service, poll=STEADY) as session:
        (conversion,) = await in_flight(clock, session)
        service.finish("task0001")
        start = clock.monotonic()
        await hint(service, session)
        wav = await clock.run(conversion.wait())
        assert [0.0, 10.0] == since(start, service.polled_at_moments)
        assert "poll" == wav.settled_by


# --- while a poll is on the wire ----------------------------------------------------------


@pytest.mark.parametrize(
    ("latency_s", "hints_at", "polls_at"),
    [
        # The poll of 15 s is scheduled, what comes of hints is free at once.
        (1.0, [15.5], [15.0, 16.0]),
        (1.0, [15.0], [15.0, 16.0]),
        (1.0, [15.1, 15.3, 15.9], [15.0, 16.0]),
        (1.0, [16.5], [15.0, 16.5]),
        # That of a hint needs 2 s to the next one of a hint.
        (1.0, [3.0, 3.5], [3.0, 5.0]),
        (0.5, [3.0, 3.6], [3.0, 5.0]),
        (1.0, [3.0, 5.5], [3.0, 5.5]),
        (3.0, [3.0, 3.5], [3.0, 6.0]),
        (3.0, [3.0, 3.5, 4.0, 5.5], [3.0, 6.0]),
        (3.0, [3.0, 5.9], [3.0, 6.0]),
        (5.0, [3.0, 4.0, 7.0], [3.0, 8.0]),
    ],
)
async def test_hint_while_a_poll_is_on_the_wire(
    clock, service, latency_s, hints_at, polls_at
) -> None:
    """A callback that comes while a poll is out causes exactly one more when that is back."""
    service.latency_s = latency_s
    poll = PollSchedule(first_s=15.0, interval_s=1_000.0, jitter=0.0)
    async with hinting(service, poll=poll) as session:
        await in_flight(clock, session)
        start = clock.monotonic()
        for at in hints_at:
            await clock.advance(start + at - clock.monotonic())
            await hint(service, session)
        await clock.advance(100.0)
        assert polls_at == since(start, service.polled_at_moments)


async def test_poll_under_way_may_bring_the_news(clock, service) -> None:
    """A hint while a poll is out is void if that poll ends the conversion."""
    service.latency_s = 1.0
    async with hinting(service, poll=STEADY) as session:
        (conversion,) = await in_flight(clock, session)
        service.finish("task0001")
        await clock.advance(15.5)
        await hint(service, session)
        await clock.advance(60.0)
        assert (1, True) == (session.statistics().polls, conversion.done())
        assert not session._core._polls._asking
        assert not session._core._polls._requested


async def test_scheduled_poll_waits_for_the_hinted_one_on_the_wire(clock, service) -> None:
    """A scheduled poll that is due while a callback's is out is not sent beside it."""
    service.latency_s = 5.0
    async with hinting(service, poll=STEADY) as session:
        await in_flight(clock, session)
        start = clock.monotonic()
        await clock.advance(13.0)
        await hint(service, session)
        await clock.advance(15.0)
        assert [13.0, 23.0] == since(start, service.polled_at_moments)


async def test_scheduled_poll_does_for_the_hint_that_waits(clock, service) -> None:
    """A scheduled poll that leaves after a callback came spares the poll of its own."""
    poll = PollSchedule(first_s=100.0, interval_s=1.5, jitter=0.0)
    async with hinting(service, poll=poll) as session:
        await in_flight(clock, session)
        start = clock.monotonic()
        await clock.advance(3.0)
        await hint(service, session)
        await clock.advance(0.5)
        await hint(service, session)
        await clock.advance(3.0)
        # Not at 5 s too, when the second hint's turn would have come.
        assert [3.0, 4.5, 6.0] == since(start, service.polled_at_moments)


# --- while polling rests ------------------------------------------------------------------


async def test_hint_while_polling_rests_after_a_429(clock, service) -> None:
    """After a 429 with a Retry-After callbacks wait until the rest is over, and ask once each."""
    service.poll_replies.append(lambda _: refused(429, retry_after="30"))
    async with hinting(service) as session:
        await in_flight(clock, session, 2)
        start = clock.monotonic()
        await clock.advance(2.0)
        await hint(service, session, "task0001")
        await clock.advance(1.0)
        for task_id in ("task0001", "task0002") * 5:
            await hint(service, session, task_id)
        await clock.advance(100.0)
        polls = [(round(at - start, 6), task_id) for at, task_id in service.polled_at]
        # The first has had a hint's poll at 2 s, so that it is free at 4 s and comes second.
        assert [(2.0, "task0001"), (32.0, "task0002"), (32.1, "task0001")] == polls
        assert 1 == session.statistics().rejected_429


async def test_hint_while_the_key_is_in_doubt(clock, service) -> None:
    """After a first 401 a callback waits its 5 s, and one poll asks for all."""
    service.latency_s = 1.0
    service.is_key_good = False
    async with hinting(service) as session:
        service.is_key_good = True
        await in_flight(clock, session, 3)
        service.is_key_good = False
        start = clock.monotonic()
        await hint(service, session, "task0001")
        await clock.advance(2.0)
        for number in (2, 3, 1):
            await hint(service, session, f"task000{number}")
        await clock.advance(3.9)
        assert [0.0] == since(start, service.polled_at_moments)
        service.is_key_good = True
        await clock.advance(0.5)
        assert [0.0, 6.0] == since(start, service.polled_at_moments)
        await clock.advance(1.0)
        # Then the key is known to be good, and the others follow.
        polls = [(round(at - start, 6), task_id) for at, task_id in service.polled_at]
        assert [(0.0, "task0001"), (6.0, "task0002"), (7.0, "task0003"), (7.1, "task0001")] == polls


async def test_hint_while_the_key_is_refused(clock, service) -> None:
    """Once the key is refused callbacks have it tried once a minute, somebody who waits at once."""
    async with hinting(service) as session:
        (conversion,) = await in_flight(clock, session)
        waiting = asyncio.create_task(conversion.wait())
        await clock.run_pending()
        service.is_key_good = False
        await hint(service, session)
        await clock.advance(3.0)
        await hint(service, session)
        await clock.advance(3.0)
        with pytest.raises(AuthenticationError):
            await waiting
        assert 2 == len(service.polled_at)
        refused_at = service.polled_at_moments[1]
        for _ in range(20):
            await hint(service, session)
            await clock.advance(10.0)
        tried = [at - refused_at for at in service.polled_at_moments[2:]]
        assert 3 == len(tried)
        assert all(later - earlier >= 60.0 for earlier, later in itertools.pairwise([0.0, *tried]))

        service.is_key_good = True
        service.finish("task0001")
        again_at = clock.monotonic()
        assert "poll" == (await clock.run(conversion.wait())).settled_by
        assert [again_at] == service.polled_at_moments[5:]


async def test_hint_finds_out_that_the_key_is_good_again(clock, service) -> None:
    """A callback that nobody waits for ends its conversion though the key was refused once."""
    async with hinting(service) as session:
        (conversion,) = await in_flight(clock, session)
        service.is_key_good = False
        for _ in range(2):
            await hint(service, session)
            await clock.advance(10.0)
        assert 2 == len(service.polled_at)
        await clock.advance(60.0)
        service.is_key_good = True
        service.finish("task0001")
        await hint(service, session)
        await clock.advance(1.0)
        assert conversion.done()


async def test_poll_by_schedule_serves_a_hint_that_waits(clock, service) -> None:
    """A hint that waits for its 2 s is void when the schedule asks first: one poll at a time."""
    poll = PollSchedule(first_s=15.0, interval_s=10.0, jitter=0.0)
    async with hinting(service, poll=poll) as session:
        await in_flight(clock, session)
        start = clock.monotonic()
        await clock.advance(13.5)
        # Its answer is no news, so that the schedule stays as it is.
        service.poll_replies.append(lambda _: refused(500))
        await hint(service, session)
        await clock.advance(0.5)
        await hint(service, session)
        service.latency_s = 1.0
        await clock.advance(5.0)
        assert [13.5, 15.0] == since(start, service.polled_at_moments)


# --- what ends meanwhile ------------------------------------------------------------------


async def test_hint_of_what_has_settled_meanwhile(clock, service) -> None:
    """A hint that waits for its turn is void once a callback has settled the conversion."""
    async with service.listening(poll=QUIET) as session:
        await in_flight(clock, session, 2)
        await hint_by_failure(service, session, "task0001")
        await clock.advance(0.5)
        await hint_by_failure(service, session, "task0001")
        assert SETTLED is await service.callback("task0001").to(session)
        await clock.advance(1.5)
        asked_at = clock.monotonic()
        await hint_by_failure(service, session, "task0002")
        await clock.advance(60.0)
        assert 1 == len(service.polls_of("task0001"))
        # Nor does it take the turn of another.
        assert [asked_at] == service.polls_of("task0002")
        assert not session._core._polls._requested_tasks


async def test_hint_of_what_has_timed_out_meanwhile(clock, service) -> None:
    """A hint that waits for its turn is still polled once: the task is known, if not waited for."""
    async with hinting(service, timeout_s=5.0) as session:
        (conversion,) = await in_flight(clock, session)
        await clock.advance(4.0)
        await hint(service, session)
        await clock.advance(0.5)
        await hint(service, session)
        await clock.advance(60.0)
        with pytest.raises(ConversionTimeoutError):
            conversion.result()
        assert 2 == session.statistics().polls


async def test_hint_when_the_session_closes(clock, service) -> None:
    """A hint that waits for its turn when the session closes causes no poll."""
    async with hinting(service) as session:
        await in_flight(clock, session, 3)
        for number in range(1, 4):
            await hint(service, session, f"task000{number}")
        await clock.advance(0.1)
        await clock.run(session.aclose())
        await clock.advance(60.0)
        assert 2 == session.statistics().polls
        assert 3 == len(session.conversions())
        poller = session._core._polls
        books = (
            poller._requested,
            poller._requested_tasks,
            poller._asking,
            poller._due,
            poller._lookups,
        )
        assert not any(books)


async def test_hinted_poll_on_the_wire_when_the_session_closes(clock, service) -> None:
    """A poll that a callback caused ends with the session, like any other."""
    service.latency_s = 10.0
    async with hinting(service) as session:
        (conversion,) = await in_flight(clock, session)
        await hint(service, session)
        await clock.advance(1.0)
        await hint(service, session)
        await clock.run(session.aclose())
        await clock.advance(60.0)
        assert (1, False) == (session.statistics().polls, conversion.done())


async def test_task_attached_while_it_is_probed_is_asked_about_every_2_s(clock, service) -> None:
    """Two reasons to ask about one task keep 2 s between them."""
    service.fates.append(LOST_CHARGED)
    async with hinting(service) as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track()))
        start = clock.monotonic()
        await hint(service, session)
        session.attach("task0001")
        await clock.advance(60.0)
        polls = since(start, service.polls_of("task0001"))
        assert [b - a for a, b in itertools.pairwise(polls) if b - a < 2.0] == []


async def test_hints_of_two_tasks_in_turn_keep_the_2_s_of_each(clock, service) -> None:
    """The 2 s between two polls of one task hold whatever is asked about in between."""
    async with hinting(service) as session:
        await in_flight(clock, session, 2)
        start = clock.monotonic()
        for number in (1, 2, 1, 2, 1):
            await hint(service, session, f"task000{number}")
            await clock.advance(1.2)
        await clock.advance(60.0)
        polls = [(round(at - start, 6), task_id) for at, task_id in service.polled_at]
        assert [
            (0.0, "task0001"),
            (1.2, "task0002"),
            (2.4, "task0001"),
            (3.6, "task0002"),
            (4.8, "task0001"),
        ] == polls


async def test_hints_of_two_tasks_that_come_too_soon(clock, service) -> None:
    """A task asked about a moment ago waits its 2 s, though another was asked about since."""
    async with hinting(service) as session:
        await in_flight(clock, session, 2)
        start = clock.monotonic()
        await hint(service, session, "task0001")
        await clock.advance(1.1)
        await hint(service, session, "task0002")
        await clock.advance(0.1)
        await hint(service, session, "task0001")
        await clock.advance(60.0)
        assert [0.0, 2.0] == since(start, service.polls_of("task0001"))


async def test_probes_keep_the_2_s_whatever_the_interval(clock, service) -> None:
    """A task probed on a callback's word is asked about every 2 s at most at any interval."""
    service.fates.append(LOST_CHARGED)
    service.poll_replies += [lambda _: missing()] * 3
    poll = PollSchedule(first_s=15.0, interval_s=0.5, jitter=0.0)
    async with hinting(service, poll=poll) as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track()))
        start = clock.monotonic()
        await hint(service, session)
        await clock.advance(6.0)
        assert [0.0, 2.0, 4.0, 6.0] == since(start, service.polls_of("task0001"))[:4]


async def test_hint_of_a_probed_task_puts_its_next_turn_off(clock, service) -> None:
    """A probed task that is called back again is asked at once, and next an interval after that."""
    service.fates.append(LOST_CHARGED)
    service.poll_replies += [lambda _: missing()] * 9
    async with hinting(service, poll=STEADY) as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track()))
        start = clock.monotonic()
        await hint(service, session)
        await clock.advance(4.0)
        await hint(service, session)
        await clock.advance(22.0)
        assert [0.0, 4.0, 14.0, 24.0] == since(start, service.polls_of("task0001"))


async def test_so_many_tasks_are_probed_and_no_more(clock, service, monkeypatch) -> None:
    """There is a bound to the tasks that are asked about though nobody follows them."""
    assert 10_000 == polls.MAX_LOOKUPS
    monkeypatch.setattr(polls, "MAX_LOOKUPS", 3)
    service.fates.append(LOST_CHARGED)
    async with hinting(service) as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track()))
        (unknown,) = session.unknown_submits()
        for number in range(5):
            await service.callback(f"claims{number}", attempt_id=unknown.attempt_id).to(session)
        await clock.advance(10.0)
        assert {f"claims{number}" for number in range(3)} == {t for _, t in service.polled_at}


# --- patience -----------------------------------------------------------------------------


async def test_hints_do_not_use_up_patience_with_an_attached_task(clock, service) -> None:
    """An attached task without a record is missed at three scheduled polls, hints aside."""
    service.poll_replies += [lambda _: missing()] * 30
    async with hinting(service, poll=STEADY) as session:
        conversion = session.attach("gone")
        for _ in range(4):
            await hint(service, session, "gone")
            await clock.advance(2.0)
        assert (4, False) == (session.statistics().polls, conversion.done())
        with pytest.raises(NotFoundError):
            await clock.run(conversion.wait())
        assert 7 == session.statistics().polls


async def test_hinted_failure_ends_the_wait(clock, service) -> None:
    """A record that shows a failure ends the wait, also if a callback made us ask."""
    service.poll_replies.append(failed)
    async with hinting(service) as session:
        (conversion,) = await in_flight(clock, session)
        await hint(service, session)
        with pytest.raises(ConversionFailedError):
            await clock.run(conversion.wait())
