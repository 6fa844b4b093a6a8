"""When a session waits for callbacks instead of polling, and what ends that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fakes import FakeService, counted, lost, track
from kie_wav_async import CallbackResult, CallbackTrust, PollSchedule, RateLimit, events
from kie_wav_async.core.callback_health import HISTORY_LENGTH
from kie_wav_async.errors import ConversionFailedError, ConversionTimeoutError, SignatureError
from kie_wav_async.testing import FakeClock, failed

if TYPE_CHECKING:
    from kie_wav_async import Conversion, WavSession

POLLING, SETTLED = CallbackResult.POLLING, CallbackResult.SETTLED

STEADY = PollSchedule(first_s=15.0, interval_s=10.0, jitter=0.0, backstop_s=60.0)

#: Submits at once: what is asked here is when polls are sent.
FAST = RateLimit(10_000, per_s=1.0)


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock) -> FakeService:
    """Return a service whose conversions end when the test says so."""
    return FakeService(clock, conversion_s=1e9)


def listening(service: FakeService, **settings: object) -> WavSession:
    """Return a session that is called back, with a schedule without chance."""
    return service.listening(**{"poll": STEADY, "rate_limit": FAST, **settings})


async def submit(clock: FakeClock, session: WavSession, number: int) -> Conversion:
    """Submit a track."""
    return await clock.run(session.submit(track(number)))


async def settle_by_callback(
    clock: FakeClock, service: FakeService, session: WavSession, number: int
) -> None:
    """Have one conversion settled by its callback."""
    conversion = await submit(clock, session, number)
    assert SETTLED is await service.callback(conversion.task_id).to(session)


async def settle_by_hint(
    clock: FakeClock, service: FakeService, session: WavSession, number: int, **said: object
) -> None:
    """Have one conversion settled by the poll that its callback causes."""
    conversion = await submit(clock, session, number)
    service.finish(conversion.task_id)
    callback = service.callback(conversion.task_id, **said)
    assert POLLING is await callback.to(session)
    assert "poll" == (await clock.run(conversion.wait())).settled_by


async def settle_ten(
    clock: FakeClock, service: FakeService, session: WavSession, settle: object = settle_by_callback
) -> None:
    """Have as many conversions settled by callbacks as it takes."""
    for number in range(1, HISTORY_LENGTH + 1):
        await settle(clock, service, session, number)


async def first_poll_s(
    clock: FakeClock, service: FakeService, session: WavSession, number: int = 99
) -> float:
    """Return how long after its acceptance a new track is first polled."""
    conversion = await submit(clock, session, number)
    start = clock.monotonic()
    service.finish(conversion.task_id)
    await clock.run(conversion.wait())
    (polled_at,) = service.polls_of(conversion.task_id)
    return round(polled_at - start, 6)


# --- becoming healthy -----------------------------------------------------------------------


@pytest.mark.parametrize(("ends", "expected"), [(0, 15.0), (1, 15.0), (9, 15.0), (10, 60.0)])
@pytest.mark.parametrize("settle", [settle_by_callback, settle_by_hint])
async def test_ten_conversions_settled_by_callbacks_let_polling_wait(
    clock, service, settle, ends, expected
) -> None:
    """After 10 conversions settled by a callback, or the poll it caused, the backstop holds."""
    trust = CallbackTrust.CONFIRM if settle is settle_by_hint else CallbackTrust.PAYLOAD
    async with listening(service, callback_trust=trust) as session:
        for number in range(1, ends + 1):
            await settle(clock, service, session, number)
        assert expected == await first_poll_s(clock, service, session)


async def test_an_authentic_failure_is_no_sign_of_health(clock, service) -> None:
    """A callback with code 500, however often it comes, makes no conversion wait longer."""
    async with listening(service) as session:
        conversion = await submit(clock, session, 1)
        for _ in range(2 * HISTORY_LENGTH):
            callback = service.callback(conversion.task_id, None, code=500)
            assert POLLING is await callback.to(session)
            await clock.advance(1.0)
        assert 15.0 == await first_poll_s(clock, service, session)


@pytest.mark.parametrize("minutes", [0, 60])
async def test_silence_alone_changes_nothing(clock, service, minutes) -> None:
    """An hour without a conversion says nothing of callbacks."""
    async with listening(service) as session:
        await settle_ten(clock, service, session)
        await clock.advance(60.0 * minutes)
        assert 60.0 == await first_poll_s(clock, service, session)


async def forged(service: FakeService, session: WavSession) -> None:
    """Deliver what nobody with the key has signed."""
    with pytest.raises(SignatureError):
        await service.callback("task0001", key="whk-of-somebody-else").to(session)


async def stale(service: FakeService, session: WavSession) -> None:
    """Deliver an old one."""
    with pytest.raises(SignatureError):
        await service.callback("task0001", at_s=-1_000.0).to(session)


async def doubled(service: FakeService, session: WavSession) -> None:
    """Deliver one again."""
    assert CallbackResult.DUPLICATE is await service.callback("task0001").to(session)


@pytest.mark.parametrize("deliver", [forged, stale, doubled])
async def test_what_says_nothing_of_callbacks_changes_nothing(clock, service, deliver) -> None:
    """Refused callbacks and duplicates neither end health nor count towards it."""
    async with listening(service) as session:
        for number in range(1, HISTORY_LENGTH):
            await settle_by_callback(clock, service, session, number)
        await deliver(service, session)
        assert 15.0 == await first_poll_s(clock, service, session)

    async with listening(service) as session:
        await submit(clock, session, 1_000)
        for number in range(1_001, 1_001 + HISTORY_LENGTH):
            await settle_by_callback(clock, service, session, number)
        if deliver is not doubled:
            await deliver(service, session)
        assert 60.0 == await first_poll_s(clock, service, session, 2_000)


async def test_without_keys_polling_never_waits(clock, service) -> None:
    """Without keys callbacks cause polls, and are no sign that more will come."""
    async with listening(service, webhook_keys=()) as session:
        for number in range(1, HISTORY_LENGTH + 1):
            await settle_by_hint(clock, service, session, number)
        assert 15.0 == await first_poll_s(clock, service, session)


# --- the end of it --------------------------------------------------------------------------


async def test_a_lost_callback_costs_the_backstop(clock, service) -> None:
    """While callbacks are healthy, a conversion whose callback is lost is polled at 60 s."""
    async with service.listening(poll=PollSchedule(jitter=0.0), rate_limit=FAST) as session:
        await settle_ten(clock, service, session)
        assert 60.0 == await first_poll_s(clock, service, session)


async def test_a_conversion_that_needed_a_poll_ends_health(clock, service) -> None:
    """After one it takes 10 more until polling waits for callbacks again."""
    async with listening(service) as session:
        await settle_ten(clock, service, session)
        assert 60.0 == await first_poll_s(clock, service, session, 90)
        for number in range(11, 11 + HISTORY_LENGTH - 1):
            await settle_by_callback(clock, service, session, number)
        conversion = await submit(clock, session, 91)
        await settle_by_callback(clock, service, session, 92)
        assert 60.0 == await first_poll_s(clock, service, session, 93)
        assert service.polls_of(conversion.task_id)


async def test_a_failure_found_by_polling_ends_health(clock, service) -> None:
    """A failure that no callback told of counts like any other end."""
    async with listening(service) as session:
        await settle_ten(clock, service, session)
        conversion = await submit(clock, session, 11)
        service.poll_replies.append(failed)
        with pytest.raises(ConversionFailedError):
            await clock.run(conversion.wait())
        assert 15.0 == await first_poll_s(clock, service, session)


async def test_a_callback_before_the_end_does_not_tell_the_end(clock, service) -> None:
    """A conversion whose callback came too early, and that a poll settled, needed that poll."""
    async with listening(service) as session:
        await settle_ten(clock, service, session)
        conversion = await submit(clock, session, 11)
        early = service.callback(conversion.task_id, None, code=500)
        assert POLLING is await early.to(session)
        await clock.advance(1.0)
        service.finish(conversion.task_id)
        await clock.run(conversion.wait())
        assert 2 == len(service.polls_of(conversion.task_id))
        assert 15.0 == await first_poll_s(clock, service, session)


async def test_a_conversion_that_is_called_back_after_its_poll_needed_none(clock, service) -> None:
    """A poll at the backstop that brought nothing is forgiven if the callback then settles."""
    async with listening(service) as session:
        await settle_ten(clock, service, session)
        conversion = await submit(clock, session, 11)
        await clock.advance(61.0)
        assert 1 == len(service.polls_of(conversion.task_id))
        assert SETTLED is await service.callback(conversion.task_id).to(session)
        assert 60.0 == await first_poll_s(clock, service, session)


@pytest.mark.parametrize(("called_at_s", "expected"), [(59.0, 60.0), (61.0, 60.0)])
async def test_a_callback_beside_a_poll_on_the_wire_counts(
    clock, service, called_at_s, expected
) -> None:
    """The poll that a callback caused needs no other, and a callback excuses one under way."""
    service.latency_s = 4.0
    async with listening(service, callback_trust=CallbackTrust.CONFIRM) as session:
        await settle_ten(clock, service, session, settle_by_hint)
        conversion = await submit(clock, session, 11)
        await clock.advance(called_at_s)
        service.finish(conversion.task_id)
        await service.callback(conversion.task_id).to(session)
        await clock.run(conversion.wait())
        assert 1 == len(service.polls_of(conversion.task_id))
        assert expected == await first_poll_s(clock, service, session)


async def test_a_poll_that_stands_in_for_a_callbacks_counts_as_that(clock, service) -> None:
    """A callback's poll that waits for its turn is not sent if the scheduled one comes first."""
    async with listening(service, callback_trust=CallbackTrust.CONFIRM) as session:
        await settle_ten(clock, service, session, settle_by_hint)
        conversion = await submit(clock, session, 11)
        await clock.advance(59.0)
        service.poll_replies.append(lambda _: lost())
        await service.callback(conversion.task_id, None, code=500).to(session)
        await clock.advance(0.5)
        service.finish(conversion.task_id)
        await service.callback(conversion.task_id).to(session)
        await clock.run(conversion.wait())
        start = conversion._entry.accepted_mono_s
        polled = [round(at - start, 3) for at in service.polls_of(conversion.task_id)]
        assert [59.0, 60.0] == polled
        assert 60.0 == await first_poll_s(clock, service, session)


async def test_a_callback_of_a_task_not_ours_ends_health(clock, service) -> None:
    """Another replica's callback comes here, so ours may go there: polling goes on as usual."""
    async with listening(service) as session:
        await settle_ten(clock, service, session)
        assert CallbackResult.UNKNOWN_TASK is await service.callback("of-the-other-replica").to(
            session
        )
        assert 15.0 == await first_poll_s(clock, service, session)


async def test_callbacks_of_tasks_not_ours_never_let_polling_wait(clock, service) -> None:
    """Among 10 conversions settled here, one callback of another's is enough."""
    async with listening(service) as session:
        for number in range(1, 2 * HISTORY_LENGTH):
            await settle_by_callback(clock, service, session, number)
            if number == HISTORY_LENGTH:
                await service.callback("of-the-other-replica").to(session)
        assert 15.0 == await first_poll_s(clock, service, session)


async def test_an_early_callback_of_ours_ends_nothing(clock, service) -> None:
    """A callback that comes before the answer to its submit names an attempt of ours."""
    async with listening(service) as session:
        await settle_ten(clock, service, session)
        service.latency_s = 2.0
        submitting = asyncio.create_task(session.submit(track(11)))
        await clock.advance(1.5)
        (early,) = [task for task in service.tasks.values() if task.track == track(11)]
        assert CallbackResult.UNKNOWN_TASK is await service.callback(early.task_id).to(session)
        await clock.run(submitting)
        assert 60.0 == await first_poll_s(clock, service, session)


async def test_a_conversion_that_timed_out_tells_nothing(clock, service) -> None:
    """Nobody could have called it back yet: giving it up is no bad sign."""
    poll = PollSchedule(first_s=15.0, interval_s=10.0, backstop_s=50.0, jitter=0.0)
    async with listening(service, poll=poll, timeout_s=100.0) as session:
        await settle_ten(clock, service, session)
        slow = await submit(clock, session, 11)
        with pytest.raises(ConversionTimeoutError):
            await clock.run(slow.wait())
        assert 50.0 == await first_poll_s(clock, service, session)


async def test_a_conversion_of_others_tells_nothing(clock, service) -> None:
    """An attached task that a poll settles, whose callback went elsewhere, is no bad sign."""
    async with listening(service) as session:
        await settle_ten(clock, service, session)
        service.create("old", track(50))
        service.finish("old")
        await clock.run(session.attach("old").wait())
        assert 60.0 == await first_poll_s(clock, service, session)


# --- the polls that were left to callbacks --------------------------------------------------


@pytest.mark.parametrize(
    ("age_s", "earliest_s", "latest_s"),
    [(0.0, 15.0, 15.0), (5.0, 15.0, 15.0), (14.0, 15.0, 15.0), (20.0, 20.0, 30.0)],
)
async def test_the_end_of_health_brings_waiting_polls_forward(
    clock, service, age_s, earliest_s, latest_s
) -> None:
    """A conversion in flight is then polled as if callbacks had never been healthy."""
    async with listening(service) as session:
        await settle_ten(clock, service, session)
        conversion = await submit(clock, session, 11)
        start = clock.monotonic()
        await clock.advance(age_s)
        await service.callback("of-the-other-replica").to(session)
        service.finish(conversion.task_id)
        await clock.run(conversion.wait())
        (polled_at,) = service.polls_of(conversion.task_id)
        assert earliest_s <= polled_at - start <= latest_s


async def test_the_end_of_health_leaves_the_other_polls_as_they_are(clock, service) -> None:
    """A conversion that is polled by the normal schedule is not polled once more for it."""
    async with listening(service) as session:
        first = await submit(clock, session, 90)
        start = clock.monotonic()
        await settle_ten(clock, service, session)
        await clock.advance(16.0)
        await service.callback("of-the-other-replica").to(session)
        await clock.advance(20.0)
        assert [15.0, 25.0, 35.0] == [at - start for at in service.polls_of(first.task_id)]


async def test_replicas_behind_a_balancer_wait_no_longer_than_polling(clock, service) -> None:
    """With half of the callbacks going elsewhere, no request waits for the backstop."""
    service.conversion_s = 40.0
    ended: list[float] = []
    async with listening(service, rate_limit=RateLimit(1, per_s=5.0)) as session:
        begun = {}

        async def request(number: int) -> None:
            conversion = await session.submit(track(number))
            begun[conversion.task_id] = clock.monotonic()
            await conversion
            ended.append(clock.monotonic() - begun[conversion.task_id])

        requests = [asyncio.create_task(request(number)) for number in range(1, 41)]
        called: set[str] = set()
        while not all(request.done() for request in requests):
            await clock.advance(1.0)
            for number, task in enumerate(service.tasks.values()):
                if task.ends_at <= clock.monotonic() and task.task_id not in called:
                    called.add(task.task_id)
                    if number % 2:
                        await service.callback(task.task_id).to(session)
                    else:
                        await service.callback(f"replica-{number}").to(session)
        assert 40 == len(ended)
        assert 51.0 >= max(ended)


@pytest.mark.parametrize(
    ("timeout_s", "backstop_s", "expected"),
    [
        (None, 300.0, 300.0),
        (300.1, 300.0, 300.0),
        (300.0, 300.0, 15.0),
        (100.0, 300.0, 15.0),
        (100.0, 99.0, 99.0),
    ],
)
async def test_backstop_comes_before_the_timeout(
    clock, service, timeout_s, backstop_s, expected
) -> None:
    """Who would be given up before the backstop is polled as if no callbacks came."""
    poll = PollSchedule(first_s=15.0, interval_s=10.0, backstop_s=backstop_s)
    async with listening(service, poll=poll, timeout_s=timeout_s) as session:
        await settle_ten(clock, service, session)
        assert expected == await first_poll_s(clock, service, session)


async def test_the_end_of_health_survives_polls_that_fail(clock, service) -> None:
    """The poll that is brought forward and gets no answer is followed by the next."""
    async with listening(service) as session:
        await settle_ten(clock, service, session)
        conversion = await submit(clock, session, 11)
        await clock.advance(20.0)
        service.finish(conversion.task_id)
        service.poll_replies.append(lambda _: lost())
        await service.callback("of-the-other-replica").to(session)
        await clock.run(conversion.wait())
        assert 2 == len(service.polls_of(conversion.task_id))


async def test_run_of_lost_callbacks_loses_nothing(clock, service) -> None:
    """With every third callback lost all conversions settle, none later than its backstop."""
    service.conversion_s = 50.0
    seen: list[events.Event] = []
    async with listening(
        service, rate_limit=RateLimit(1, per_s=20.0), on_event=seen.append
    ) as session:
        waiting = [asyncio.create_task(session.convert(track(n))) for n in range(1, 31)]
        called: set[str] = set()
        while not all(waiter.done() for waiter in waiting):
            await clock.advance(1.0)
            for number, task in enumerate(service.tasks.values()):
                if task.ends_at <= clock.monotonic() and task.task_id not in called:
                    called.add(task.task_id)
                    if number % 3:
                        await service.callback(task.task_id).to(session)
        figures = counted(session)
        assert 30 == figures["settled_by_callback"] + figures["settled_by_poll"]
        assert {"submitted": 30, "accepted": 30} == {
            name: figures[name] for name in ("submitted", "accepted")
        }
        begun = {e.task_id: e.at for e in seen if isinstance(e, events.SubmitAccepted)}
        ended = {e.wav.task_id: e.at for e in seen if isinstance(e, events.ConversionSucceeded)}
        assert 61.0 >= max((ended[t] - begun[t]).total_seconds() for t in begun)
        assert begun.keys() == ended.keys()


async def test_callbacks_that_all_come_save_all_polls(clock, service) -> None:
    """While callbacks are healthy no poll is sent before the backstop, however long the run."""
    async with listening(service) as session:
        await settle_ten(clock, service, session)
        for number in range(11, 60):
            conversion = await submit(clock, session, number)
            await clock.advance(59.0)
            assert SETTLED is await service.callback(conversion.task_id).to(session)
        assert 0 == session.statistics().polls
