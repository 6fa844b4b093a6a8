"""Callbacks to a session with a ledger: what is answered when, and what outlives the process."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from fakes import LOST_CHARGED, FakeService, track
from kie_wav_async import CallbackResult, OnUnknown, PollSchedule, WavFile
from kie_wav_async.errors import LedgerError, SessionClosedError, SubmitUnknownError
from kie_wav_async.ledger import AttemptOutcome, TrackState
from kie_wav_async.testing import FakeClock, MemoryLedger, failed, missing, pending
from ledger_steps import bill, is_in_bill
from receivers import embedded, under_starlette

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


async def find(ledger: MemoryLedger):
    """Return where the track stands."""
    return await ledger.get(track())


# --- early ones ---------------------------------------------------------------------------------


async def test_a_callback_before_the_task_is_written(clock, service, ledger) -> None:
    """A callback that comes while the task is being written settles once that is, and is heard."""
    ledger.hold = {"finish_attempt": asyncio.Event()}
    async with service.listening(ledger=ledger) as session:
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(1.0)
        early = asyncio.create_task(service.callback("task0001").to(session))
        await clock.run_pending()
        assert CallbackResult.UNKNOWN_TASK is early.result()
        assert ("record_callback", (*service.attempts, "task0001")) in ledger.calls
        assert [] == [name for name, _ in ledger.calls if name == "finish_task"]

        ledger.hold["finish_attempt"].set()
        wav = await clock.run(waiting)
        assert ("callback", 0) == (wav.settled_by, session.statistics().polls)
        found = await find(ledger)
        assert (TrackState.SUCCEEDED, wav.url) == (found.state, found.wav_url)


async def test_a_callback_before_the_task_is_written_in_vain(clock, service, ledger) -> None:
    """Dead while the task is being written, the next run finds it by the callback it heard."""
    ledger.hold = {"finish_attempt": asyncio.Event()}
    async with service.listening(ledger=ledger) as session:
        submit = asyncio.create_task(session.submit(track()))
        await clock.advance(0.3)
        service.finish("task0001")
        await service.callback("task0001").to(session)
        left = ledger.die()
        submit.cancel()

    async with service.listening(ledger=left) as session:
        assert 1 == len(session.unknown_submits())
        await clock.advance(10.0)
        assert () == session.unknown_submits()
        assert (1, 0) == bill(left)
        wav = await clock.run(session.convert(track()))
        assert "task0001" == wav.task_id
    assert 1 == service.charged


async def test_a_callback_that_waits_for_the_next_run(clock, service, ledger) -> None:
    """A callback of a submit lost in an earlier run adopts its task, under another session."""
    service.fates.append(LOST_CHARGED)
    async with service.listening(ledger=ledger) as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track()))
        left = ledger.die()

    async with service.listening(ledger=left) as session:
        assert CallbackResult.POLLING is await service.callback("task0001").to(session)
        await clock.advance(5.0)
        assert () == session.unknown_submits()
        (conversion,) = session.conversions()
        assert (None, TrackState.SUCCEEDED) == (
            (await clock.run(conversion.wait())).expires_at,
            (await find(left)).state,
        )
    assert is_in_bill(service, left)


async def test_who_waits_for_a_repeat_gets_the_task_that_was_heard(clock, service, ledger) -> None:
    """A repeat that is not yet due is not sent once a callback has named the first task."""
    service.knows_repeats = False
    service.fates.append(LOST_CHARGED)
    async with service.listening(ledger=ledger) as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track()))
        left = ledger.die()

    async with service.listening(ledger=left, on_unknown=OnUnknown.RESUBMIT) as session:
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(10.0)
        await service.callback("task0001").to(session)
        assert "task0001" == (await clock.run(waiting)).task_id
    assert (1, 1) == (len(service.submitted_at), service.charged)


async def test_the_first_of_two_callbacks_adopts(clock, service, ledger) -> None:
    """Two callbacks of one lost submit at once adopt its task once."""
    service.fates.append(LOST_CHARGED)
    async with service.listening(ledger=ledger) as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track()))
        ledger.hold = {"finish_attempt": asyncio.Event()}
        calls = []
        for _ in range(2):
            calls.append(asyncio.create_task(service.callback("task0001").to(session)))
            await clock.advance(30.0)
        assert 1 == len(session.unknown_submits())
        ledger.hold["finish_attempt"].set()
        await asyncio.gather(*calls)
        await clock.run_pending()
        assert () == session.unknown_submits()
        assert (1, 1) == (session.statistics().adopted, session.statistics().accepted)
        (conversion,) = session.conversions()
        await clock.run(conversion.wait())
        assert (1, 0) == bill(ledger)


async def test_an_adoption_that_cannot_be_written_is_tried_again(clock, service, ledger) -> None:
    """A callback's news of a lost submit is not used up by a ledger that fails."""
    service.fates.append(LOST_CHARGED)
    async with service.listening(ledger=ledger) as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track()))
        ledger.fail_with = {"finish_attempt": BROKEN}
        await service.callback("task0001").to(session)
        await clock.advance(60.0)
        assert 1 == len(session.unknown_submits())
        polls = session.statistics().polls
        assert polls < 10
        ledger.fail_with = None
        await clock.advance(20.0)
        assert () == session.unknown_submits()
        assert "task0001" == (await clock.run(session.convert(track()))).task_id
    assert 1 == service.charged


async def test_a_callback_that_names_what_is_not_there(clock, service, ledger) -> None:
    """A heard task whose record does not show the attempt is not adopted by the next run."""
    service.fates.append(LOST_CHARGED)
    service.create("other", track(7), "https://elsewhere.example/?attempt=x")
    async with service.listening(ledger=ledger) as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track()))
        (attempt_id,) = service.attempts
        await service.callback("other", attempt_id=attempt_id).to(session)
        left = ledger.die()

    async with service.listening(ledger=left) as session:
        await clock.advance(30.0)
        assert [attempt_id] == [unknown.attempt_id for unknown in session.unknown_submits()]
        # The true one still counts.
        await service.callback("task0002").to(session)
        await clock.advance(5.0)
        assert () == session.unknown_submits()


# --- what is answered when ----------------------------------------------------------------------


async def test_a_callback_is_answered_once_its_end_is_written(clock, service, ledger) -> None:
    """handle_callback() returns once the end it brought is on the disk; a second one waits too."""
    ledger.hold = {"finish_task": asyncio.Event()}
    async with service.listening(ledger=ledger) as session:
        conversion = await clock.run(session.submit(track()))
        callback = service.callback("task0001")
        calls = [asyncio.create_task(callback.to(session)) for _ in range(2)]
        await clock.advance(100.0)
        assert [False, False, False] == [calls[0].done(), calls[1].done(), conversion.done()]

        ledger.hold["finish_task"].set()
        await clock.run_pending()
        assert [CallbackResult.SETTLED, CallbackResult.DUPLICATE] == [c.result() for c in calls]
        assert conversion.done()


async def test_a_callback_does_not_wait_for_what_it_is_not_about(clock, service, ledger) -> None:
    """However much is being written, a callback is answered once its own news is."""
    ledger.hold = {"finish_task": asyncio.Event()}
    async with service.listening(ledger=ledger) as session:
        conversions = [await clock.run(session.submit(track(n))) for n in (1, 2)]
        first = asyncio.create_task(service.callback("task0001").to(session))
        await clock.run_pending()
        hint = service.callback("task0002", attempt_id="f" * 32)
        others = [
            asyncio.create_task(each.to(session)) for each in (hint, service.callback("other"))
        ]
        await clock.run_pending()
        verdicts = [CallbackResult.POLLING, CallbackResult.UNKNOWN_TASK]
        assert verdicts == [call.result() for call in others]
        assert not first.done()
        ledger.hold["finish_task"].set()
        await clock.run(asyncio.wait([first, *(asyncio.ensure_future(c) for c in conversions)]))


async def test_a_callback_whose_end_cannot_be_written_raises(clock, service, ledger) -> None:
    """handle_callback() raises what the ledger says, so that the service tries again."""
    async with service.listening(ledger=ledger) as session:
        conversion = await clock.run(session.submit(track()))
        waiting = asyncio.create_task(conversion.wait())
        await clock.run_pending()
        ledger.fail_with = {"finish_task": BROKEN}
        with pytest.raises(LedgerError, match="no space left"):
            await service.callback("task0001").to(session)
        await clock.run_pending()
        assert isinstance(waiting.exception(), LedgerError)
        ledger.fail_with = None
        service.finish("task0001")
        assert "task0001" == (await clock.run(session.convert(track()))).task_id
    assert TrackState.SUCCEEDED is (await find(await reopened(ledger))).state


async def reopened(ledger: MemoryLedger) -> MemoryLedger:
    """Return what is left of a ledger, open."""
    left = ledger.die()
    await left.open(0.0)
    return left


async def test_a_callback_is_not_answered_by_a_closing(clock, service, ledger) -> None:
    """A callback whose end is not written when the session closes is not taken for written."""
    ledger.hold = {"finish_task": asyncio.Event()}
    async with service.listening(ledger=ledger) as session:
        await clock.run(session.submit(track()))
        call = asyncio.create_task(service.callback("task0001").to(session))
        await clock.run_pending()
        await clock.run(session.aclose())
        await clock.run_pending()
        assert isinstance(call.exception(), LedgerError | SessionClosedError)


@pytest.mark.parametrize("serve", [embedded, under_starlette])
async def test_over_http(ledger, serve) -> None:
    """A callback is answered 503 until what it says is written, and 200 then."""
    clock = FakeClock()
    service = FakeService(clock)
    async with (
        service.listening(ledger=ledger) as session,
        serve(session) as served,
        aiohttp.ClientSession() as client,
    ):
        await clock.run(session.submit(track(1)))
        conversion = await clock.run(session.submit(track()))

        async def post(task_id: str) -> int:
            sent = service.callback(task_id)
            url = f"{served.url}?{sent.query}"
            async with client.post(url, data=sent.body, headers=sent.headers) as answer:
                return answer.status

        ledger.fail_with = {"finish_task": BROKEN}
        assert 503 == await post("task0001")
        ledger.fail_with = None
        assert 200 == await post("task0002")
        assert conversion.done()


# --- after a restart ----------------------------------------------------------------------------


async def test_a_callback_settles_what_was_restored(clock, service, ledger) -> None:
    """A task of an earlier run is settled by its callback, as its submit's own session had done."""
    async with service.listening(ledger=ledger) as session:
        await clock.run(session.submit(track()))
        submitted_at = clock.time()
        left = ledger.die()

    async with service.listening(ledger=left) as session:
        (conversion,) = await session.recover()
        assert CallbackResult.SETTLED is await service.callback("task0001").to(session)
        wav = await clock.run(conversion.wait())
        assert "callback" == wav.settled_by
        age_s = wav.expires_at.timestamp() - submitted_at
        assert 14 * 86_400 == pytest.approx(age_s, abs=2.0)


async def test_a_callback_of_another_attempt_is_a_hint(clock, service, ledger) -> None:
    """A callback that does not name the attempt of a restored task has it polled at once."""
    schedule = PollSchedule(first_s=300.0, interval_s=300.0)
    async with service.listening(ledger=ledger, poll=schedule) as session:
        await clock.run(session.submit(track()))
        left = ledger.die()

    async with service.listening(ledger=left, poll=schedule) as session:
        session._context.random = lambda: 0.99
        (conversion,) = await session.recover()
        service.finish("task0001")
        callback = service.callback("task0001", attempt_id="f" * 32)
        assert CallbackResult.POLLING is await callback.to(session)
        await clock.advance(3.0)
        assert conversion.done()
        assert "poll" == conversion.result().settled_by


async def test_a_callback_before_the_restored_task_is_asked_for(clock, service, ledger) -> None:
    """A callback of a task of an earlier run that nobody has asked for yet is kept."""
    async with service.listening(ledger=ledger) as session:
        await clock.run(session.submit(track()))
        left = ledger.die()

    async with service.listening(ledger=left) as session:
        assert CallbackResult.UNKNOWN_TASK is await service.callback("task0001").to(session)
        wav = await clock.run(session.convert(track()))
        assert ("callback", 0) == (wav.settled_by, session.statistics().polls)


async def test_ages(clock, service, ledger) -> None:
    """Only a task that our submit made, in whichever run, has a known age."""
    await ledger.open(clock.time())
    for n, outcome in ((1, AttemptOutcome.ACCEPTED), (2, AttemptOutcome.ADOPTED)):
        await ledger.begin_attempt(track(n), str(n) * 32, clock.time())
        await ledger.finish_attempt(str(n) * 32, outcome, clock.time(), task_id=f"old{n}")
        service.create(f"old{n}", track(n))
    service.create("old3", track(3))
    async with service.session(ledger=ledger) as session:
        attached = session.attach("old3", track=track(3))
        wavs = [await clock.run(session.convert(track(n))) for n in (1, 2)]
        wavs.append(await clock.run(attached.wait()))
        assert [True, False, False] == [wav.expires_at is not None for wav in wavs]
    assert 0 == service.charged
    async with service.session(ledger=ledger) as session:
        again = [await clock.run(session.convert(track(n))) for n in (1, 2)]
        assert [w.expires_at for w in wavs[:2]] == [w.expires_at for w in again]
    await ledger.aclose()


async def test_an_attached_task_of_the_ledger_is_settled_in_it(clock, service, ledger) -> None:
    """A task attached by hand is the ledger's, if the ledger has it."""
    async with service.session(ledger=ledger) as session:
        await clock.run(session.submit(track()))
        left = ledger.die()
    async with service.session(ledger=left) as session:
        attached = session.attach("task0001")
        (conversion,) = await session.recover()
        assert conversion is attached
        assert track() == (await clock.run(attached.wait())).track
        assert TrackState.SUCCEEDED is (await find(left)).state


async def test_an_attached_task_is_not_joined_by_another_track(clock, service, ledger) -> None:
    """A task that somebody attached under another track is followed for its own too."""
    async with service.session(ledger=ledger) as session:
        await clock.run(session.submit(track()))
        left = ledger.die()
    async with service.session(ledger=left) as session:
        attached = session.attach("task0001", track=track(5))
        (conversion,) = await session.recover()
        assert (track(5), track()) == (attached.track, conversion.track)
        assert track() == (await clock.run(conversion.wait())).track


async def test_a_restored_task_that_is_not_there(clock, service, ledger) -> None:
    """A task of an earlier run that the service does not know is given its minute anew."""
    async with service.session(ledger=ledger) as session:
        await clock.run(session.submit(track()))
        left = ledger.die()
    service.poll_replies.extend([lambda _: missing()] * 4 + [pending])
    await clock.advance(500.0)
    async with service.session(ledger=left) as session:
        assert "task0001" == (await clock.run(session.convert(track()))).task_id


@pytest.mark.parametrize("name", ["list_entries", "get"])
@pytest.mark.parametrize("ends_well", [True, False])
async def test_what_has_ended_meanwhile_is_not_followed(
    clock, service, ledger, name, ends_well
) -> None:
    """A task that ended while the ledger was asked about it is not followed again."""
    async with service.listening(ledger=ledger) as session:
        await clock.run(session.submit(track()))
        left = ledger.die()

    async with service.listening(ledger=left) as session:
        left.hold = {name: asyncio.Event()}
        ask = session.recover() if name == "list_entries" else session.submit(track())
        asking = asyncio.create_task(ask)
        await clock.run_pending()
        attached = session.attach("task0001")
        service.finish("task0001")
        if not ends_well:
            service.poll_replies.append(failed)
        await service.callback("task0001", attempt_id="f" * 32).to(session)
        await clock.advance(3.0)
        assert attached.done()
        service.knows_repeats = False
        left.hold[name].set()
        await clock.run(asking)
        in_flight = 0 if name == "list_entries" or ends_well else 1
        assert in_flight == session.statistics().in_flight
        assert ends_well is isinstance(attached._entry.outcome, WavFile)
        if name == "list_entries":
            assert () == asking.result()


async def test_a_callback_that_is_sent_again_settles(clock, service, ledger) -> None:
    """A callback refused for a ledger that failed settles when it is sent again and asked for."""
    async with service.listening(ledger=ledger) as session:
        await clock.run(session.submit(track()))
        ledger.fail_with = {"finish_task": BROKEN}
        with pytest.raises(LedgerError):
            await service.callback("task0001").to(session)
        ledger.fail_with = None
        await service.callback("task0001").to(session)
        wav = await clock.run(session.convert(track()))
        assert ("callback", 0) == (wav.settled_by, session.statistics().polls)
