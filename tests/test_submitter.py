"""The way of a submit: joined, queued, withdrawn, and what holds it back."""

from __future__ import annotations

import asyncio

import pytest
from yarl import URL

from fakes import (
    ACCEPTED,
    LOST_CHARGED,
    LOST_FREE,
    UNSENT,
    FakeService,
    Fate,
    is_bounded,
    refusal,
    track,
)
from kie_wav_async import (
    OnUnknown,
    RateLimit,
    TaskRecord,
    TaskState,
)
from kie_wav_async.core.registry import RESULT_CACHE_SIZE
from kie_wav_async.errors import (
    ChargeLimitError,
    ConversionFailedError,
    InvalidRequestError,
    SubmitUnknownError,
)
from kie_wav_async.testing import FakeClock, failed, refused


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock) -> FakeService:
    """Return a service that means well until it is told otherwise."""
    return FakeService(clock)


# --- one submit for many askers -----------------------------------------------------------


async def test_submit_returns_the_handle(clock, service) -> None:
    """A submit gives a conversion that knows its task, its track, and is awaitable twice."""
    async with service.session() as session:
        conversion = await clock.run(session.submit(track()))
        assert ("task0001", track()) == (conversion.task_id, conversion.track)
        assert not conversion.done()
        wav = await clock.run(conversion.wait())
        assert wav is await conversion
        assert wav is conversion.result()
        assert ("task0001", track(), "poll") == (wav.task_id, wav.track, wav.settled_by)


async def test_file_expires_two_weeks_after_submit(clock) -> None:
    """The file of a task of ours expires 14 days after its submit went out."""
    service = FakeService(clock, latency_s=4.0)
    async with service.session() as session:
        sent_at = clock.time()
        wav = await clock.run(session.convert(track()))
        assert sent_at + 14 * 86_400 == wav.expires_at.timestamp()


async def test_track_in_flight_is_joined(clock, service) -> None:
    """Whoever asks for a track on the wire or in flight shares its one conversion."""
    service.latency_s = 1.0
    async with service.session() as session:
        first = asyncio.create_task(session.submit(track()))
        second = asyncio.create_task(session.submit(track()))
        await clock.advance(2.0)
        third = await session.submit(track())
        assert first.result() is second.result() is third
        waits = asyncio.gather(session.convert(track()), third.wait())
        one, other = await clock.run(waits)
        assert one is other
        assert 1 == len(service.submitted_at)


async def test_queued_track_is_joined(clock, service) -> None:
    """Whoever asks for a track in the queue joins it there."""
    async with service.session(rate_limit=RateLimit(1, per_s=10.0)) as session:
        await clock.run(session.submit(track(1)))
        waits = [asyncio.create_task(session.submit(track(2))) for _ in range(3)]
        await clock.advance(10.0)
        assert 1 == len({id(wait.result()) for wait in waits})
        assert 2 == len(service.submitted_at)


async def test_result_is_remembered(clock, service) -> None:
    """A track that succeeded is returned settled, and nothing is sent."""
    async with service.session() as session:
        wav = await clock.run(session.convert(track()))
        asked = len(service.transport.requests)
        conversion = await session.submit(track())
        assert conversion.done()
        assert wav is conversion.result()
        assert wav is await session.convert(track())
        assert asked == len(service.transport.requests)


async def test_last_ten_thousand_results_are_remembered(clock, service) -> None:
    """Of 10,001 results the oldest is forgotten, and only that one is sent again."""
    assert 10_000 == RESULT_CACHE_SIZE
    async with service.session() as session:
        registry = session._core.registry
        for number in range(10_001):
            entry = registry.attach(f"t{number}", track(number), 0.0)
            record = TaskRecord(
                task_id=f"t{number}", state=TaskState.SUCCEEDED, wav_url=URL("https://h/x.wav")
            )
            assert registry.observe(entry, record, 0.0, "poll")
        assert "t1" == (await session.submit(track(1))).task_id
        assert "t10000" == (await session.submit(track(10_000))).task_id
        assert [] == service.submitted_at
        assert "task0001" == (await clock.run(session.submit(track(0)))).task_id


async def test_attached_result_is_remembered(clock, service) -> None:
    """A task attached with its track answers later submits of that track."""
    service.create("old", track())
    async with service.session() as session:
        wav = await clock.run(session.attach("old", track=track()).wait())
        assert wav is await session.convert(track())
        assert [] == service.submitted_at


async def test_failed_track_is_sent_again(clock, service) -> None:
    """A failure is not remembered: the next submit is a new one."""
    service.knows_repeats = False
    service.poll_replies.append(failed)
    async with service.session() as session:
        with pytest.raises(ConversionFailedError):
            await clock.run(session.convert(track()))
        assert "task0002" == (await clock.run(session.convert(track()))).task_id


async def test_refused_track_is_sent_again(clock, service) -> None:
    """A refusal ends that submit only; the next one of the track is new."""
    service.fates.append(refusal(422))
    async with service.session() as session:
        with pytest.raises(InvalidRequestError):
            await clock.run(session.convert(track()))
        assert "task0001" == (await clock.run(session.convert(track()))).task_id


# --- again=True ---------------------------------------------------------------------------


async def test_again_sends_a_settled_track(clock, service) -> None:
    """again=True converts a track anew although its result is known."""
    service.knows_repeats = False
    async with service.session() as session:
        first = await clock.run(session.convert(track()))
        second = await clock.run(session.convert(track(), again=True))
        assert ("task0001", "task0002") == (first.task_id, second.task_id)
        assert 0 == session.statistics().possible_double_charges
        assert second is await session.convert(track())


async def test_again_sends_an_unknown_track(clock, service) -> None:
    """again=True sends a track of unknown fate, and counts the risk once it was taken."""
    service.fates += [LOST_FREE, ACCEPTED]
    async with service.session() as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.convert(track()))
        assert "task0001" == (await clock.run(session.convert(track(), again=True))).task_id
        counted = session.statistics()
        assert (1, 1, 1) == (counted.possible_double_charges, counted.accepted, counted.unknown)
        assert is_bounded(service, session)


async def test_again_explained_by_a_409(clock, service) -> None:
    """again=True that is answered with the lost task itself ends the doubt at no risk."""
    service.fates += [LOST_CHARGED, ACCEPTED]
    async with service.session() as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.convert(track()))
        await clock.run(session.convert(track(), again=True))
        counted = session.statistics()
        assert (0, 1, 0, 1) == (
            counted.possible_double_charges,
            counted.accepted,
            counted.unknown,
            counted.adopted,
        )
        assert 1 == service.charged


async def test_again_lost_again_keeps_both_doubts(clock, service) -> None:
    """A second submit of unknown fate stands beside the first in the books."""
    service.knows_repeats = False
    service.fates += [LOST_CHARGED, LOST_CHARGED]
    async with service.session() as session:
        for again in (False, True):
            with pytest.raises(SubmitUnknownError):
                await clock.run(session.convert(track(), again=again))
        assert service.attempts == [unknown.attempt_id for unknown in session.unknown_submits()]
        assert 1 == session.statistics().possible_double_charges
        assert 2 == service.charged
        assert is_bounded(service, session)


async def test_again_in_flight_is_misuse(clock, service) -> None:
    """again=True for a track queued, on the wire or in flight is a ValueError, nothing sent."""
    service.latency_s = 1.0
    async with service.session(rate_limit=RateLimit(1, per_s=10.0)) as session:
        waits = [asyncio.create_task(session.submit(track(n))) for n in (1, 2)]
        await clock.advance(0.5)
        for number in (1, 2):
            with pytest.raises(ValueError, match="in flight"):
                await session.submit(track(number), again=True)
        await clock.advance(5.0)
        with pytest.raises(ValueError, match="in flight"):
            await session.convert(track(1), again=True)
        assert 1 == len(service.submitted_at)
        await clock.run(asyncio.gather(*waits))


async def test_again_of_a_new_track_is_a_submit(clock, service) -> None:
    """again=True for a track never seen is a submit like any other."""
    async with service.session() as session:
        conversion = await clock.run(session.submit(track(), again=True))
        assert "task0001" == conversion.task_id


# --- cancelled askers ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["submit", "convert"])
async def test_queued_submit_is_withdrawn_with_its_last_asker(clock, service, name) -> None:
    """A queued submit nobody waits for any more is never sent, and can be asked for anew."""
    async with service.session(rate_limit=RateLimit(1, per_s=10.0)) as session:
        await clock.run(session.submit(track(1)))
        asker = asyncio.create_task(getattr(session, name)(track(2)))
        await clock.run_pending()
        asker.cancel()
        await clock.advance(60.0)
        assert asker.cancelled()
        assert 1 == len(service.submitted_at)
        assert 1 == session.statistics().submitted
        assert track(2) == (await clock.run(session.submit(track(2)))).track


async def test_queued_submit_stays_for_another_asker(clock, service) -> None:
    """A queued submit stays as long as one asker is left, whoever asked first."""
    async with service.session(rate_limit=RateLimit(1, per_s=10.0)) as session:
        await clock.run(session.submit(track(1)))
        first = asyncio.create_task(session.submit(track(2)))
        other = asyncio.create_task(session.convert(track(2)))
        await clock.run_pending()
        first.cancel()
        await clock.advance(11.0)
        assert 2 == len(service.submitted_at)
        assert track(2) == (await clock.run(other)).track


async def test_submit_backing_off_is_withdrawn(clock, service) -> None:
    """A submit that waits for its next try is withdrawn with its last asker."""
    service.fates.append(UNSENT)
    async with service.session() as session:
        asker = asyncio.create_task(session.submit(track()))
        await clock.run_pending()
        asker.cancel()
        await clock.advance(60.0)
        assert 1 == len(service.submitted_at)
        assert 0 == service.charged


@pytest.mark.parametrize("name", ["submit", "convert"])
async def test_submit_on_the_wire_is_finished(clock, service, name) -> None:
    """A submit whose asker goes away on the wire is finished, and its task followed."""
    service.latency_s = 2.0
    async with service.session() as session:
        asker = asyncio.create_task(getattr(session, name)(track()))
        await clock.advance(1.5)
        asker.cancel()
        await clock.advance(2.0)
        assert ["task0001"] == [conversion.task_id for conversion in session.conversions()]
        await clock.advance(100.0)
        assert 1 == session.statistics().settled_by_poll


@pytest.mark.parametrize("fate", [UNSENT, refusal(429), refusal(455)], ids=["unsent", "429", "455"])
async def test_submit_nobody_waits_for_is_not_sent_again(clock, service, fate) -> None:
    """A submit whose asker went away on the wire is not repeated if it created nothing."""
    service.latency_s = 2.0
    service.fates.append(fate)
    async with service.session() as session:
        asker = asyncio.create_task(session.submit(track()))
        await clock.advance(1.5)
        asker.cancel()
        await clock.advance(500.0)
        assert 1 == len(service.submitted_at)
        assert () == session.conversions()
        assert "task0001" == (await clock.run(session.submit(track()))).task_id


# --- the window and max_in_flight ---------------------------------------------------------


async def test_window_is_kept(clock, service) -> None:
    """No span of per_s sees more than count submits, counted from their answers."""
    service.latency_s = 1.0
    async with service.session(rate_limit=RateLimit(3, per_s=5.0)) as session:
        started = clock.monotonic()
        waits = asyncio.gather(*(session.submit(track(n)) for n in range(9)))
        await clock.run(waits)
        assert [0.0] * 3 + [6.0] * 3 + [12.0] * 3 == [at - started for at in service.submitted_at]


async def test_submits_go_out_in_order(clock, service) -> None:
    """Submits are sent in the order in which they were asked for."""
    async with service.session(rate_limit=RateLimit(1, per_s=1.0)) as session:
        waits = asyncio.gather(*(session.submit(track(n)) for n in range(5)))
        conversions = await clock.run(waits)
        assert [f"task000{n + 1}" for n in range(5)] == [c.task_id for c in conversions]


async def test_max_in_flight_holds_submits(clock, service) -> None:
    """With max_in_flight conversions open, the next submit waits for one to end."""
    async with service.session(max_in_flight=2) as session:
        waits = [asyncio.create_task(session.convert(track(n))) for n in range(4)]
        await clock.advance(50.0)
        assert 2 == len(service.submitted_at)
        assert 2 == session.statistics().in_flight
        await clock.run(asyncio.gather(*waits))
        started = service.submitted_at[0]
        assert all(at - started >= 60.0 for at in service.submitted_at[2:])


async def test_unknown_submit_gives_its_place_back(clock, service) -> None:
    """A submit of unknown fate makes room for the next one at once."""
    service.fates.append(LOST_CHARGED)
    async with service.session(max_in_flight=1) as session:
        waits = [asyncio.create_task(session.submit(track(n))) for n in (1, 2)]
        await clock.advance(1.0)
        assert isinstance(waits[0].exception(), SubmitUnknownError)
        assert track(2) == waits[1].result().track


async def test_adopted_task_takes_a_place_over_the_limit(clock, service) -> None:
    """An unknown submit that turns out to have a task takes a place, over the limit if need be."""
    service.fates.append(LOST_CHARGED)
    async with service.session(max_in_flight=1) as session:
        with pytest.raises(SubmitUnknownError) as caught:
            await clock.run(session.submit(track(1)))
        await clock.run(session.submit(track(2)))
        await session.resolve_unknown(caught.value.attempt_id, task_id="task0001")
        assert 2 == session.statistics().in_flight
        third = asyncio.create_task(session.submit(track(3)))
        service.tasks["task0002"].ends_at = 0.0
        await clock.advance(20.0)
        assert 1 == session.statistics().in_flight
        assert not third.done()
        await clock.run(third)


async def test_attached_tasks_take_no_place(clock, service) -> None:
    """Attached tasks leave max_in_flight to our own."""
    async with service.session(max_in_flight=1) as session:
        for number in range(5):
            session.attach(f"other{number}")
        await clock.run(session.submit(track()))
        assert 6 == session.statistics().in_flight


async def test_attached_tasks_give_no_place(clock, service) -> None:
    """The end of an attached task makes no room for a submit of ours."""
    async with service.session(max_in_flight=1) as session:
        for number in range(3):
            service.create(f"other{number}", track(100 + number))
            service.tasks[f"other{number}"].ends_at = 0.0
            session.attach(f"other{number}")
        await clock.run(session.submit(track(1)))
        waiting = asyncio.create_task(session.submit(track(2)))
        await clock.advance(30.0)
        assert 1 == session.statistics().in_flight
        assert 1 == len(service.submitted_at)
        await clock.run(waiting)


# --- max_charges --------------------------------------------------------------------------


async def test_charge_limit_counts_accepted_and_unknown(clock, service) -> None:
    """At max_charges accepted and unknown submits, the next raises and sends nothing."""
    service.fates += [ACCEPTED, LOST_CHARGED]
    async with service.session(max_charges=2) as session:
        await clock.run(session.submit(track(1)))
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track(2)))
        with pytest.raises(ChargeLimitError) as caught:
            await session.submit(track(3))
        assert (2, track(3)) == (caught.value.max_charges, caught.value.track)
        assert 2 == len(service.submitted_at)
        assert "task0001" == (await session.submit(track(1))).task_id


async def test_charge_limit_counts_what_is_on_the_wire(clock, service) -> None:
    """A submit on the wire may be charged: the next waits for its answer and ends by it."""
    service.latency_s = 1.0
    async with service.session(max_charges=2) as session:
        waits = [asyncio.create_task(session.submit(track(n))) for n in range(5)]
        await clock.advance(0.9)
        assert 2 == len(service.submitted_at)
        assert not any(wait.done() for wait in waits)
        await clock.advance(0.2)
        errors_seen = [wait.exception() for wait in waits]
        assert [None, None] == errors_seen[:2]
        assert [ChargeLimitError] * 3 == [type(error) for error in errors_seen[2:]]
        assert [track(2), track(3), track(4)] == [error.track for error in errors_seen[2:]]
        assert 2 == service.charged


async def test_refused_submit_frees_its_charge(clock, service) -> None:
    """A submit that was refused, or answered with an old task, costs nothing of max_charges."""
    exists = Fate("409", is_charged=False, reply=lambda _: refused(409, data={"taskId": "old"}))
    service.create("old", track(2))
    service.fates += [refusal(422), exists, ACCEPTED]
    service.latency_s = 1.0
    async with service.session(max_charges=1) as session:
        waits = [asyncio.create_task(session.submit(track(n))) for n in (1, 2, 3)]
        await clock.advance(10.0)
        assert isinstance(waits[0].exception(), InvalidRequestError)
        assert "old" == waits[1].result().task_id
        assert track(3) == waits[2].result().track


async def test_charge_limit_holds_a_repeat(clock, service) -> None:
    """The automatic repeat of a submit of unknown fate respects max_charges as well."""
    service.fates.append(LOST_CHARGED)
    async with service.session(max_charges=1, on_unknown=OnUnknown.RESUBMIT) as session:
        with pytest.raises(SubmitUnknownError) as caught:
            await clock.run(session.submit(track()))
        assert isinstance(caught.value.__cause__, ChargeLimitError)
        assert 1 == len(service.submitted_at)


async def test_charge_limit_and_a_batch_end_the_queue_together(clock, service, caplog) -> None:
    """A batch that withdraws its tracks at the limit does not trip whoever refuses them."""
    async with service.session(max_charges=3) as session:
        files = 0

        async def consume():
            nonlocal files
            async with session.convert_all(track(n) for n in range(10)) as batch:
                async for outcome in batch:
                    files += outcome.ok

        with pytest.raises(ChargeLimitError):
            await clock.run(consume())
        assert 3 == files
        assert [] == caplog.records
