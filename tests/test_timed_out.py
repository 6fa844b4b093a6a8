"""A track whose wait timed out: its task is known, not polled, and never paid for again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import LOST_CHARGED, FakeService, counted, lost, raw, refusal, track
from kie_wav_async import CallbackResult, CallbackTrust, PollSchedule, RateLimit
from kie_wav_async.core import timed_out_tasks
from kie_wav_async.errors import (
    ConversionFailedError,
    ConversionTimeoutError,
    NotFoundError,
    SubmitUnknownError,
)
from kie_wav_async.ledger import TrackState
from kie_wav_async.testing import (
    FakeClock,
    MemoryLedger,
    answer,
    failed,
    missing,
    pending,
    refused,
)

if TYPE_CHECKING:
    from kie_wav_async import Conversion, WavSession

STEADY = PollSchedule(first_s=15.0, interval_s=10.0, jitter=0.0)


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock) -> FakeService:
    """Return a service that charges whatever it is sent, and converts when the test says so."""
    return FakeService(clock, conversion_s=1e9, knows_repeats=False)


def opened(service: FakeService, **settings: object) -> WavSession:
    """Return a session that gives up soon, and is called back."""
    return service.listening(
        **{"poll": STEADY, "timeout_s": 100.0, "rate_limit": RateLimit(1_000, per_s=1.0)} | settings
    )


async def time_out(
    clock: FakeClock, session: WavSession, number: int = 1, **settings: object
) -> Conversion:
    """Have the wait for a track time out."""
    conversion = await clock.run(session.submit(track(number), **settings))
    with pytest.raises(ConversionTimeoutError):
        await clock.run(conversion.wait())
    return conversion


# --- asked for again --------------------------------------------------------------------------


async def test_three_calls_are_one_charge(clock, service) -> None:
    """A plain convert() that times out, three times over, sends and costs nothing more."""
    async with opened(service) as session:
        for calls in range(1, 4):
            with pytest.raises(ConversionTimeoutError) as caught:
                await clock.run(session.convert(track()))
            assert "task0001" == caught.value.task_id
            assert calls == session.statistics().timed_out
        assert (1, 1) == (service.charged, len(service.submitted_at))
        service.finish("task0001")
        assert "task0001" == (await clock.run(session.convert(track()))).task_id
        figures = counted(session)
        del figures["polls"]
        assert {"submitted": 1, "accepted": 1, "timed_out": 3, "settled_by_poll": 1} == figures


async def test_it_is_joined_in_a_new_conversion_with_a_new_timeout(clock, service) -> None:
    """The first handle stays as it ended; the second waits as long as the first did."""
    async with opened(service) as session:
        first = await time_out(clock, session)
        await clock.advance(1_000.0)
        joined_at = clock.monotonic()
        second = await clock.run(session.submit(track()))
        assert second is not first
        assert (first.task_id, first.track) == (second.task_id, second.track)
        with pytest.raises(ConversionTimeoutError):
            await clock.run(second.wait())
        assert 100.0 == clock.monotonic() - joined_at
        with pytest.raises(ConversionTimeoutError):
            first.result()


async def test_it_is_not_polled_until_then(clock, service) -> None:
    """A task that nobody waits for costs no polls, and is asked about soon once somebody does."""
    async with opened(service) as session:
        await time_out(clock, session)
        polls = session.statistics().polls
        await clock.advance(10_000.0)
        assert (polls, ()) == (session.statistics().polls, session.conversions())
        service.finish("task0001")
        joined_at = clock.monotonic()
        await clock.run(session.convert(track()))
        assert 10.0 >= clock.monotonic() - joined_at
        assert polls + 1 == session.statistics().polls


async def test_all_who_ask_join_one_conversion(clock, service) -> None:
    """Whoever asks while it is waited for again gets the same handle."""
    async with opened(service) as session:
        await time_out(clock, session)
        first, second = await clock.run(
            asyncio.gather(session.submit(track()), session.submit(track()))
        )
        assert first is second
        assert (1, 1) == (len(session.conversions()), session.statistics().in_flight)


async def test_a_batch_joins_it(clock, service) -> None:
    """A catalog that is run again sends only what was never sent."""
    async with opened(service) as session:
        await time_out(clock, session, 1)
        service.conversion_s = 5.0
        service.finish("task0001")

        async def convert_all() -> list[str]:
            batch = session.convert_all([track(1), track(2), track(1)])
            return [outcome.unwrap().task_id async for outcome in batch]

        assert ["task0001", "task0001", "task0002"] == sorted(await clock.run(convert_all()))
        assert 2 == service.charged


async def test_it_can_be_asked_for_from_the_handler_of_its_end(clock, service) -> None:
    """The task is known by the time its end is told."""
    asked: list[Conversion] = []

    def on_event(event: object) -> None:
        if type(event).__name__ == "ConversionEnded" and not asked:
            asked.append(session.attach("task0001"))

    async with opened(service, on_event=on_event) as session:
        await time_out(clock, session)
        assert [*session.conversions()] == asked


async def test_attach_joins_it_with_all_that_is_known(clock, service) -> None:
    """The task's track and age are still there, and its place is one of ours."""
    async with opened(service) as session:
        await time_out(clock, session)
        service.finish("task0001")
        conversion = session.attach("task0001")
        assert track() == conversion.track
        wav = await clock.run(conversion.wait())
        assert (track(), True) == (wav.track, wav.expires_at is not None)
        assert 1 == session.statistics().accepted


async def test_attach_for_another_track_is_refused(clock, service) -> None:
    """A kept task is not given to a track it does not convert, and stays as it was."""
    async with opened(service) as session:
        await time_out(clock, session)
        with pytest.raises(ValueError, match="is followed for another track"):
            session.attach("task0001", track=track(2))
        assert () == session.conversions()
        assert track() == session.attach("task0001").track


async def test_an_attached_task_that_timed_out_is_attached_again(clock, service) -> None:
    """A task of others is taken up again too, and may be given its track."""
    service.create("old", track(7))
    async with opened(service) as session:
        with pytest.raises(ConversionTimeoutError):
            await clock.run(session.attach("old").wait())
        assert track(7) == session.attach("old", track=track(7)).track
        assert "old" == (await clock.run(session.submit(track(7)))).task_id
    assert 0 == service.charged


async def test_max_in_flight_counts_it_while_it_is_waited_for(clock, service) -> None:
    """It takes a place again, and leaves it when it ends."""
    async with opened(service, max_in_flight=1) as session:
        await time_out(clock, session)
        joined = await clock.run(session.submit(track()))
        waiting = asyncio.create_task(session.submit(track(2)))
        await clock.advance(5.0)
        assert 1 == len(service.submitted_at)
        service.finish("task0001")
        await clock.run(joined.wait())
        await clock.run(waiting)
        assert 2 == service.charged


# --- paid again, on somebody's word -------------------------------------------------------------


async def test_again_is_the_word_to_pay_again(clock, service) -> None:
    """again=True sends the track once more; both tasks are known from then on."""
    async with opened(service) as session:
        await time_out(clock, session)
        second = await clock.run(session.submit(track(), again=True))
        assert ("task0002", 2) == (second.task_id, service.charged)
        assert second is await clock.run(session.submit(track()))
        assert CallbackResult.SETTLED is await service.callback("task0001").to(session)
        assert not second.done()
        assert 0 == session.statistics().possible_double_charges


async def test_the_latest_of_several_is_joined(clock, service) -> None:
    """Once it is over without a file, the one before is still there."""
    async with opened(service) as session:
        await time_out(clock, session)
        await time_out(clock, session, again=True)
        joined = await clock.run(session.submit(track()))
        assert "task0002" == joined.task_id
        service.poll_replies.append(failed)
        with pytest.raises(ConversionFailedError):
            await clock.run(joined.wait())
        assert "task0001" == (await clock.run(session.submit(track()))).task_id
        assert 2 == service.charged


async def test_a_result_goes_before_a_wait_that_timed_out(clock, service) -> None:
    """What a second submit brought is returned, though the first may still finish."""
    async with opened(service) as session:
        await time_out(clock, session)
        service.conversion_s = 0.0
        await clock.run(session.convert(track(), again=True))
        assert "task0002" == (await clock.run(session.convert(track()))).task_id
        assert 2 == service.charged


async def test_a_task_that_failed_meanwhile_may_be_paid_again(clock, service) -> None:
    """Asked for again, the failure is told; the call after that is a new submit."""
    async with opened(service) as session:
        await time_out(clock, session)
        service.poll_replies.append(failed)
        with pytest.raises(ConversionFailedError):
            await clock.run(session.convert(track()))
        await clock.run(session.submit(track()))
        assert 2 == service.charged


async def test_a_task_that_is_gone_may_be_paid_again(clock, service) -> None:
    """A task that the service no longer knows is told as not found, after a minute."""
    async with opened(service) as session:
        await time_out(clock, session)
        service.poll_replies += [lambda _: missing()] * 20
        with pytest.raises(NotFoundError):
            await clock.run(session.convert(track()))
        service.poll_replies.clear()
        await clock.run(session.submit(track()))
        assert 2 == service.charged


async def test_an_unknown_submit_is_raised_again(clock, service) -> None:
    """again=True that is lost leaves a doubt, which goes before the task that is known."""
    async with opened(service) as session:
        await time_out(clock, session)
        service.fates.append(LOST_CHARGED)
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track(), again=True))
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track()))
        assert 2 == service.charged


async def test_again_that_is_refused_leaves_the_task_known(clock, service) -> None:
    """A second submit that created nothing changes nothing."""
    async with opened(service) as session:
        await time_out(clock, session)
        service.fates.append(refusal(402))
        with pytest.raises(Exception, match="402"):
            await clock.run(session.submit(track(), again=True))
        assert "task0001" == (await clock.run(session.submit(track()))).task_id
        assert 1 == service.charged


async def test_again_that_names_the_task_joins_it(clock, service) -> None:
    """A service that has the WAV already names the task that timed out."""
    service.knows_repeats = True
    async with opened(service) as session:
        await time_out(clock, session)
        joined = await clock.run(session.submit(track(), again=True))
        assert "task0001" == joined.task_id
        service.finish("task0001")
        await clock.run(joined.wait())
        assert (1, 1) == (service.charged, session.statistics().accepted)
        assert () == session.conversions()


# --- callbacks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", CallbackTrust)
async def test_a_callback_still_settles_it(clock, service, trust) -> None:
    """Its file is there at once for whoever asks for the track, and nothing is sent."""
    async with opened(service, callback_trust=trust) as session:
        first = await time_out(clock, session)
        await clock.advance(5_000.0)
        service.finish("task0001")
        polls = session.statistics().polls
        verdict = await service.callback("task0001").to(session)
        await clock.advance(0.0)
        is_believed = trust is CallbackTrust.PAYLOAD
        assert verdict is (CallbackResult.SETTLED if is_believed else CallbackResult.POLLING)
        assert session.statistics().polls - polls == (0 if is_believed else 1)
        asked_at = clock.monotonic()
        wav = await clock.run(session.convert(track()))
        assert asked_at == clock.monotonic()
        assert ("callback" if is_believed else "poll") == wav.settled_by
        assert 1 == service.charged
        assert isinstance(first._entry.outcome, ConversionTimeoutError)
        assert CallbackResult.DUPLICATE is await service.callback("task0001").to(session)


async def test_a_callback_that_brings_nothing_has_it_polled_once(clock, service) -> None:
    """What does not end it leaves it as it was: known, and not polled."""
    async with opened(service) as session:
        await time_out(clock, session)
        polls = session.statistics().polls
        hint = service.callback("task0001", None, code=500)
        assert CallbackResult.POLLING is await hint.to(session)
        await clock.advance(1_000.0)
        assert polls + 1 == session.statistics().polls
        service.finish("task0001")
        assert "task0001" == (await clock.run(session.convert(track()))).task_id
        assert 1 == service.charged


async def test_a_callback_of_a_failure_ends_it(clock, service) -> None:
    """The next call is a new submit."""
    async with opened(service) as session:
        await time_out(clock, session)
        service.poll_replies.append(failed)
        await service.callback("task0001", None, code=501).to(session)
        await clock.advance(1.0)
        assert (1, 1) == (session.statistics().failed, session.statistics().timed_out)
        await clock.run(session.submit(track()))
        assert 2 == service.charged


async def test_a_late_answer_to_a_poll_settles_it(clock, service) -> None:
    """A poll that was on the wire when the time was over is not wasted."""
    async with opened(service, timeout_s=17.0) as session:
        service.poll_replies.clear()
        conversion = await clock.run(session.submit(track()))
        service.latency_s = 5.0
        service.finish("task0001")
        with pytest.raises(ConversionTimeoutError):
            await clock.run(conversion.wait())
        await clock.advance(5.0)
        polls = session.statistics().polls
        assert "task0001" == (await clock.run(session.convert(track()))).task_id
        assert polls == session.statistics().polls


# --- with a ledger ------------------------------------------------------------------------------


async def test_the_ledger_has_it_as_accepted(clock, service) -> None:
    """It is open there, so that this session and the next one wait for it again."""
    ledger = MemoryLedger()
    async with opened(service, ledger=ledger) as session:
        await time_out(clock, session)
        assert TrackState.ACCEPTED is (await ledger.get(track())).state
        with pytest.raises(ConversionTimeoutError):
            await clock.run(session.convert(track()))
    service.finish("task0001")
    async with opened(service, ledger=ledger) as session:
        assert "task0001" == (await clock.run(session.convert(track()))).task_id
        assert TrackState.SUCCEEDED is (await ledger.get(track())).state
    assert 1 == service.charged


async def test_recover_takes_it_up_again(clock, service) -> None:
    """recover() in the same session gives one conversion of it, which knows its attempt."""
    async with opened(service, ledger=MemoryLedger()) as session:
        await time_out(clock, session)
        (conversion,) = await clock.run(session.recover())
        assert (conversion,) == session.conversions() == await clock.run(session.recover())
        assert CallbackResult.SETTLED is await service.callback("task0001").to(session)
        assert "callback" == (await clock.run(conversion.wait())).settled_by


async def test_a_callback_of_it_is_written_down(clock, service) -> None:
    """The file is in the ledger although nobody waited for it."""
    ledger = MemoryLedger()
    async with opened(service, ledger=ledger) as session:
        await time_out(clock, session)
        await service.callback("task0001").to(session)
        assert TrackState.SUCCEEDED is (await ledger.get(track())).state


async def test_again_pays_again_with_a_ledger_too(clock, service) -> None:
    """It is the caller's word, whatever the ledger has of the track."""
    ledger = MemoryLedger()
    async with opened(service, ledger=ledger) as session:
        await time_out(clock, session)
        second = await clock.run(session.submit(track(), again=True))
        assert "task0002" == second.task_id
        service.finish("task0002")
        await clock.run(second.wait())
        assert "task0002" == (await ledger.get(track())).task_id
    assert 2 == service.charged


# --- in any order ---------------------------------------------------------------------------------

#: What a poll may bring that ends no wait for good.
NO_ENDS = {
    "pending": pending,
    "bare": lambda task_id: pending(task_id, successFlag="SUCCESS"),
    "router": lambda _: answer({"status": 404, "error": "Not Found"}, status=404),
    "401": lambda _: refused(401),
    "500": lambda _: refused(500),
    "html": lambda _: raw(b"<html>"),
    "lost": lambda _: lost(),
}

_moves = st.one_of(
    st.tuples(st.just("convert"), st.integers(1, 2)),
    st.tuples(st.just("batch"), st.integers(1, 2)),
    st.tuples(st.just("attach"), st.integers(1, 2)),
    st.tuples(st.just("advance"), st.sampled_from([1.0, 20.0, 110.0, 110.0, 1_000.0])),
    st.tuples(st.just("news"), st.lists(st.sampled_from(sorted(NO_ENDS)), min_size=1, max_size=4)),
    st.tuples(st.just("hint"), st.integers(1, 2)),
    st.tuples(st.just("callback"), st.integers(1, 2)),
    st.tuples(st.just("finish"), st.integers(1, 2)),
)


class Play:
    """A session and who asks it for what; each move is a method."""

    def __init__(self, clock: FakeClock, service: FakeService, session: WavSession) -> None:
        self.clock = clock
        self.service = service
        self.session = session
        self.asked: list[asyncio.Task[object]] = []

    async def convert(self, number: int) -> None:
        self.asked.append(asyncio.create_task(self.session.convert(track(number))))

    async def batch(self, number: int) -> None:
        async def convert_all() -> None:
            async for _ in self.session.convert_all([track(number)] * 2):
                pass

        self.asked.append(asyncio.create_task(convert_all()))

    async def attach(self, number: int) -> None:
        if f"task{number:04d}" in self.service.tasks:
            waiting = self.session.attach(f"task{number:04d}").wait()
            self.asked.append(asyncio.create_task(waiting))

    async def finish(self, number: int) -> None:
        if f"task{number:04d}" in self.service.tasks:
            self.service.finish(f"task{number:04d}")

    async def hint(self, number: int, code: int = 500) -> None:
        if f"task{number:04d}" in self.service.tasks:
            await self.service.callback(f"task{number:04d}", code=code).to(self.session)

    async def callback(self, number: int) -> None:
        await self.hint(number, 200)

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def news(self, names: list[str]) -> None:
        self.service.poll_replies.extend(NO_ENDS[name] for name in names)


async def play(moves: list[tuple[str, object]], *, has_ledger: bool) -> None:
    """Make *moves*, then have everybody asked for again, and hold the books to account."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=1e9, knows_repeats=False)
    ledger = MemoryLedger() if has_ledger else None
    async with opened(service, ledger=ledger) as session:
        world = Play(clock, service, session)
        for move, argument in moves:
            await getattr(world, move)(argument)
            await clock.run_pending()
        service.poll_replies.clear()
        for task in [*service.tasks.values()]:
            service.finish(task.task_id)
            assert task.task_id == (await clock.run(session.convert(task.track))).task_id
        await clock.run(asyncio.gather(*world.asked, return_exceptions=True))
        figures = session.statistics()
        assert len({task.track for task in service.tasks.values()}) == service.charged
        assert service.charged == figures.accepted
        assert (0, ()) == (figures.in_flight, session.conversions())
        assert (
            0
            == session._core.registry.used_slots
            == len(session._core.registry._timed_out._by_track)
        )


@given(moves=st.lists(_moves, max_size=15), has_ledger=st.booleans())
def test_no_track_is_ever_paid_twice(moves, has_ledger):
    """Whatever polls and callbacks bring, and whoever asks when, a track costs one charge."""
    asyncio.run(play(moves, has_ledger=has_ledger))


# --- how much is kept -----------------------------------------------------------------------------


async def test_what_is_kept_is_bounded(clock, service, monkeypatch) -> None:
    """Of more than are kept, the first to have timed out is forgotten."""
    monkeypatch.setattr(timed_out_tasks, "MAX_TIMED_OUT", 3)
    async with opened(service) as session:
        for number in range(1, 6):
            await time_out(clock, session, number)
        for number in range(1, 6):
            await clock.run(session.submit(track(number)))
        assert [track(1), track(2)] == [task.track for task in [*service.tasks.values()][5:]]


async def test_it_is_kept_as_long_as_its_file(clock, service) -> None:
    """After 14 days there is nothing to wait for, and room for others."""
    async with opened(service) as session:
        await time_out(clock, session, 1)
        await clock.advance(14 * 86_400.0)
        await time_out(clock, session, 2)
        books = session._core.registry
        assert (None, "task0002") == (
            books.find_timed_out(track(1)),
            books.find_timed_out(track(2)).task_id,
        )


async def test_what_ended_is_not_kept(clock, service) -> None:
    """Whichever way a kept task goes, nothing of it stays behind in the books."""
    async with opened(service) as session:
        for number in range(1, 5):
            await time_out(clock, session, number)
        await service.callback("task0001").to(session)
        service.poll_replies.append(failed)
        await service.callback("task0002", None, code=500).to(session)
        await clock.advance(1.0)
        service.finish("task0003")
        await clock.run(session.convert(track(3)))
        books = session._core.registry
        assert ["task0004"] == [*books._timed_out._by_task]
        assert [track(4)] == [*books._timed_out._by_track]
        assert (0, 0) == (books.statistics().in_flight, books.used_slots)


async def test_closing_leaves_it_be(clock, service) -> None:
    """A session that closes with a kept task has nothing open, and ends nobody's wait for it."""
    async with opened(service) as session:
        await time_out(clock, session)
        await clock.run(session.aclose())
        assert () == session.conversions()
