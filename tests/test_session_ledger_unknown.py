"""Submits of unknown fate that an earlier run left, and who may send what again."""

from __future__ import annotations

import asyncio

import pytest
from yarl import URL

from fakes import ACCEPTED, LOST_CHARGED, LOST_FREE, FakeService, refusal, track
from kie_wav_async import OnUnknown, RateLimit
from kie_wav_async.errors import (
    AlreadyExistsError,
    ChargeLimitError,
    ConversionTimeoutError,
    KieWavError,
    LedgerError,
    SessionClosedError,
    SubmitUnknownError,
)
from kie_wav_async.ledger import AttemptOutcome, TrackState
from kie_wav_async.testing import FakeClock, MemoryLedger, failed, missing, succeeded
from ledger_steps import bill, is_in_bill

BROKEN = LedgerError("no space left on device: free some")


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock: FakeClock) -> FakeService:
    """Return a service that takes half a second to answer, and knows no repeats."""
    return FakeService(clock, latency_s=0.5, knows_repeats=False)


async def lose(clock, service, ledger, *fates, **settings) -> MemoryLedger:
    """Submit a track by *fates*, each time again, and return what the next process finds."""
    service.fates.extend(fates)
    async with service.session(ledger=ledger, **settings) as session:
        for again in [False, *([True] * (len(fates) - 1))]:
            try:
                await clock.run(session.submit(track(), again=again))
            except SubmitUnknownError:
                continue
        return ledger.die()


async def state_of(ledger: MemoryLedger) -> TrackState:
    """Return where the track stands."""
    return (await ledger.get(track())).state


# --- a doubt beside something better -----------------------------------------------------------


@pytest.mark.parametrize("on_unknown", OnUnknown)
async def test_a_task_is_followed_whatever_else_is_in_doubt(clock, service, on_unknown) -> None:
    """A track with a task is followed under it, although an earlier submit of it is in doubt."""
    left = await lose(clock, service, MemoryLedger(), LOST_CHARGED, ACCEPTED)
    async with service.session(ledger=left, on_unknown=on_unknown) as session:
        (unknown,) = session.unknown_submits()
        (recovered,) = await session.recover()
        wav = await clock.run(session.convert(track()))

        assert await clock.run(recovered.wait()) == wav
        assert ("task0002", 2) == (wav.task_id, len(service.submitted_at))
        assert (unknown,) == session.unknown_submits()
        assert TrackState.SUCCEEDED is await state_of(left)
        assert is_in_bill(service, left)


@pytest.mark.parametrize("on_unknown", OnUnknown)
async def test_a_wav_is_returned_whatever_else_is_in_doubt(clock, service, on_unknown) -> None:
    """A track that was converted is returned, although an earlier submit of it is in doubt."""
    ledger = MemoryLedger()
    service.fates += [LOST_FREE, ACCEPTED]
    async with service.session(ledger=ledger) as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track()))
        first = await clock.run(session.convert(track(), again=True))
        left = ledger.die()

    async with service.session(ledger=left, on_unknown=on_unknown) as session:
        assert 1 == len(session.unknown_submits())
        assert first == await clock.run(session.convert(track()))
        assert () == await session.recover()

    assert 2 == len(service.submitted_at)


async def test_a_lost_repeat_of_a_wav_is_in_doubt(clock, service) -> None:
    """A repeat that the user wanted of a converted track, and that was lost, stays in doubt."""
    ledger = MemoryLedger()
    service.fates += [ACCEPTED, LOST_CHARGED]
    async with service.session(ledger=ledger) as session:
        await clock.run(session.convert(track()))
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.convert(track(), again=True))
        left = ledger.die()

    async with service.session(ledger=left) as session:
        (unknown,) = session.unknown_submits()
        with pytest.raises(SubmitUnknownError, match=unknown.attempt_id):
            await clock.run(session.convert(track()))
        await session.resolve_unknown(unknown.attempt_id, not_charged=True)
        assert TrackState.SUCCEEDED is await state_of(left)
        assert "task0001" == (await clock.run(session.convert(track()))).task_id

    assert 2 == len(service.submitted_at)


# --- a task that a 409 names --------------------------------------------------------------------


async def test_a_refused_repeat_explains_the_doubt_of_an_earlier_run(clock, service) -> None:
    """A 409 that names the task of a submit lost in an earlier run settles that, in the ledger."""
    service.knows_repeats = True
    left = await lose(clock, service, MemoryLedger(), LOST_CHARGED)
    async with service.session(ledger=left, on_unknown=OnUnknown.RESUBMIT) as session:
        await clock.run(session.convert(track()))
        assert () == session.unknown_submits()
        assert (1, 1) == (session.statistics().accepted, session.statistics().adopted)
        assert (1, 0) == bill(left)
    assert 1 == service.charged


async def test_a_doubt_is_explained_after_a_death(clock, service) -> None:
    """Dead between a 409 and the task's record, the next run asks for it and settles the doubt."""
    service.knows_repeats = True
    ledger = await lose(clock, service, MemoryLedger(), LOST_CHARGED)
    service.poll_replies.extend([lambda _: missing()] * 2)
    async with service.session(ledger=ledger) as session:
        await clock.run(session.submit(track(), again=True))
        assert (0, 1) == bill(ledger)
        left = ledger.die()
    service.poll_replies.clear()

    async with service.session(ledger=left) as session:
        assert "task0001" == (await clock.run(session.convert(track()))).task_id
        await clock.run_pending()
        assert () == session.unknown_submits()
        assert (1, 0) == bill(left)
        assert is_in_bill(service, left)


async def test_a_task_that_is_counted_explains_no_doubt(clock, service) -> None:
    """A 409 that names the task of a later submit leaves the doubt, if its record is silent."""
    service.knows_repeats = True
    service.fates.append(LOST_FREE)
    ledger = MemoryLedger()
    async with service.session(ledger=ledger) as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track()))
        await clock.run(session.convert(track(), again=True))
        service.poll_replies.append(succeeded)
        await clock.run(session.convert(track(), again=True))
        assert (1, 1) == (session.statistics().accepted, session.statistics().unknown)
        assert (1, 1) == bill(ledger)
        assert is_in_bill(service, ledger)


# --- the user's word ----------------------------------------------------------------------------


async def test_an_earlier_doubt_is_resolved_by_its_task(clock, service) -> None:
    """The user names the task of a submit lost in an earlier run, and it is followed."""
    left = await lose(clock, service, MemoryLedger(), LOST_CHARGED)
    async with service.session(ledger=left) as session:
        (unknown,) = session.unknown_submits()
        await session.resolve_unknown(unknown.attempt_id, task_id="task0001")
        assert () == session.unknown_submits()
        assert TrackState.ACCEPTED is await state_of(left)
        assert "task0001" == (await clock.run(session.convert(track()))).task_id
        assert (1, 0) == bill(left)

    assert 1 == len(service.submitted_at)


async def test_an_earlier_doubt_is_resolved_as_not_charged(clock, service) -> None:
    """After the user's word that a lost submit created nothing, its track is sent again."""
    left = await lose(clock, service, MemoryLedger(), LOST_FREE)
    async with service.session(ledger=left) as session:
        (unknown,) = session.unknown_submits()
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.convert(track()))
        await session.resolve_unknown(unknown.attempt_id, not_charged=True)
        assert TrackState.PLANNED is await state_of(left)
        await clock.run(session.convert(track()))
        assert 0 == session.statistics().possible_double_charges


@pytest.mark.parametrize("fails_late", [False, True])
@pytest.mark.parametrize("word", [{"task_id": "task0001"}, {"not_charged": True}])
async def test_a_word_that_cannot_be_written_changes_nothing(
    clock, service, word, fails_late
) -> None:
    """Where the user's word cannot be written, the doubt stands, and it may be said again."""
    left = await lose(clock, service, MemoryLedger(), LOST_CHARGED)
    async with service.session(ledger=left) as session:
        (unknown,) = session.unknown_submits()
        left.fail_with, left.fails_late = {"resolve": BROKEN}, fails_late
        with pytest.raises(LedgerError, match="no space left"):
            await session.resolve_unknown(unknown.attempt_id, **word)
        left.fail_with = None
        assert (unknown,) == session.unknown_submits()
        assert () == session.conversions()
        if not fails_late:
            assert TrackState.UNKNOWN is await state_of(left)

        await session.resolve_unknown(unknown.attempt_id, **word)
        assert () == session.unknown_submits()


async def test_a_word_that_was_written_all_the_same_is_not_paid_for(clock, service) -> None:
    """A task that the ledger got although it failed keeps the repeat of its submit from leaving."""
    left = await lose(clock, service, MemoryLedger(), LOST_CHARGED)
    async with service.session(ledger=left, on_unknown=OnUnknown.RESUBMIT) as session:
        (unknown,) = session.unknown_submits()
        waiting = asyncio.create_task(session.convert(track()))
        await clock.run_pending()
        left.fail_with, left.fails_late = {"resolve": BROKEN}, True
        with pytest.raises(LedgerError):
            await session.resolve_unknown(unknown.attempt_id, task_id="task0001")
        left.fail_with = None
        assert "task0001" == (await clock.run(waiting)).task_id
        assert 0 == session.statistics().possible_double_charges
    assert (1, 1) == (len(service.submitted_at), service.charged)


async def test_a_word_counts_whoever_goes_away(clock, service) -> None:
    """The user's word that is being written is taken, although who said it was cancelled."""
    left = await lose(clock, service, MemoryLedger(), LOST_CHARGED)
    async with service.session(ledger=left) as session:
        (unknown,) = session.unknown_submits()
        left.hold = {"resolve": asyncio.Event()}
        saying = asyncio.create_task(
            session.resolve_unknown(unknown.attempt_id, task_id="task0001")
        )
        await clock.run_pending()
        saying.cancel()
        await asyncio.wait([saying])
        left.hold["resolve"].set()
        await clock.run_pending()

        assert saying.cancelled()
        assert () == session.unknown_submits()
        assert ["task0001"] == [conversion.task_id for conversion in session.conversions()]


async def test_a_word_that_recover_reads_before_it_is_told(clock, service) -> None:
    """A task that the ledger has by a word still on its way is counted once, as accepted."""
    left = await lose(clock, service, MemoryLedger(), LOST_CHARGED, LOST_FREE)
    async with service.session(ledger=left, max_charges=3) as session:
        first, _ = session.unknown_submits()
        left.hold = {"resolve": asyncio.Event()}
        word = session.resolve_unknown(first.attempt_id, task_id="task0001")
        saying = asyncio.create_task(word)
        await clock.run_pending()
        (conversion,) = await session.recover()
        left.hold["resolve"].set()
        await saying
        assert (1, 1) == (session.statistics().accepted, session.statistics().unknown)
        await clock.run(session.submit(track(2)))
        with pytest.raises(ChargeLimitError):
            await clock.run(session.submit(track(3)))
        await clock.run(conversion.wait())
        assert (2, 1) == bill(left)


async def test_two_words_on_one_doubt(clock, service) -> None:
    """Of two words on one submit at once the last counts, in the session as in the ledger."""
    left = await lose(clock, service, MemoryLedger(), LOST_CHARGED)
    async with service.session(ledger=left) as session:
        (unknown,) = session.unknown_submits()
        left.hold = {"resolve": asyncio.Event()}
        words = [
            asyncio.create_task(session.resolve_unknown(unknown.attempt_id, **word))
            for word in ({"task_id": "task0001"}, {"not_charged": True})
        ]
        await clock.run_pending()
        left.hold["resolve"].set()
        await clock.run_pending()
        assert all(word.done() and word.exception() is None for word in words)
        assert () == session.conversions()
        assert (0, 0) == (session.statistics().accepted, session.statistics().unknown)
        assert TrackState.PLANNED is await state_of(left)


# --- again=True ---------------------------------------------------------------------------------


async def bring_to(ledger: MemoryLedger, state: TrackState, now: float) -> None:
    """Bring the track to where it should stand; the task, if there is one, is ``old``."""
    ends = {
        TrackState.UNKNOWN: AttemptOutcome.UNKNOWN,
        TrackState.EXISTS_WITHOUT_ID: AttemptOutcome.EXISTS_WITHOUT_ID,
        TrackState.REJECTED: AttemptOutcome.REJECTED,
    }
    await ledger.open(now)
    await ledger.add_tracks([track()])
    if state is not TrackState.PLANNED:
        await ledger.begin_attempt(track(), "a" * 32, now)
    if state in ends:
        await ledger.finish_attempt("a" * 32, ends[state], now)
    elif state not in {TrackState.PLANNED, TrackState.SUBMITTING}:
        await ledger.finish_attempt("a" * 32, AttemptOutcome.ACCEPTED, now, task_id="old")
    if state is TrackState.FAILED:
        await ledger.finish_task("old", now, error="it broke")
    elif state in {TrackState.SUCCEEDED, TrackState.SAVED, TrackState.EXPIRED}:
        await ledger.finish_task("old", now, wav_url=URL("https://media.invalid/old.wav"))
    if state is TrackState.SAVED:
        await ledger.mark_saved(track(), path="a.wav", size=1, sha256="0" * 64)
    if state is TrackState.EXPIRED:
        await ledger.mark_expired(track())
    assert state is await state_of(ledger)
    await ledger.aclose()


#: What comes of asking for a track that stands there: a new task, the old one, or an error.
ASKED = {
    TrackState.PLANNED: ("new", "new"),
    TrackState.SUBMITTING: (SubmitUnknownError, "new"),
    TrackState.UNKNOWN: (SubmitUnknownError, "new"),
    TrackState.EXISTS_WITHOUT_ID: (AlreadyExistsError, "new"),
    TrackState.ACCEPTED: ("old", ValueError),
    TrackState.SUCCEEDED: ("old", "new"),
    TrackState.SAVED: ("old", "new"),
    TrackState.REJECTED: ("new", "new"),
    TrackState.FAILED: ("new", "new"),
    TrackState.EXPIRED: ("old", "new"),
}


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("state", TrackState)
async def test_what_is_sent_from_each_state(clock, service, state, again) -> None:
    """Only what is not paid is sent without the user's word; with it all but what is in flight."""
    ledger = MemoryLedger()
    await bring_to(ledger, state, clock.time())
    service.create("old", track())
    expected = ASKED[state][again]
    async with service.session(ledger=ledger) as session:
        if isinstance(expected, str):
            wav = await clock.run(session.convert(track(), again=again))
            assert ("old" == expected) == ("old" == wav.task_id)
        else:
            with pytest.raises(expected):
                await clock.run(session.convert(track(), again=again))
    assert len(service.submitted_at) == ("new" == expected)


# --- two sessions on one ledger -----------------------------------------------------------------


async def race(clock, service, ledger, *later_s) -> list[object]:
    """Convert one track in two sessions that share a ledger; return what came of it."""
    async with (
        service.session(ledger=ledger) as one,
        service.session(ledger=ledger) as other,
    ):
        first = asyncio.create_task(one.convert(track()))
        for delay_s in later_s:
            await clock.advance(delay_s)
        second = asyncio.create_task(other.convert(track()))
        return await clock.run(asyncio.gather(first, second, return_exceptions=True))


async def test_of_two_sessions_one_sends(clock, service) -> None:
    """Of two sessions that share a ledger and want one track, the slower one sends nothing."""
    first, second = await race(clock, service, MemoryLedger())
    assert "task0001" == first.task_id
    assert isinstance(second, SubmitUnknownError)
    assert 1 == service.charged


async def test_what_one_session_has_sent_the_other_follows(clock, service) -> None:
    """A task that another session on the ledger has is followed by both, and paid once."""
    first, second = await race(clock, service, MemoryLedger(), 5.0)
    assert "task0001" == first.task_id == second.task_id
    assert 1 == service.charged


async def test_who_finds_the_task_at_the_last_moment_follows_it(clock, service) -> None:
    """A session that another forestalled between its look and its submit follows the other's."""
    ledger = MemoryLedger()
    service.latency_s = 0.0
    async with (
        service.session(ledger=ledger) as one,
        service.session(ledger=ledger, rate_limit=RateLimit(1, per_s=10.0)) as other,
    ):
        waits = [asyncio.create_task(other.submit(track(9)))]
        await clock.run_pending()
        waits += [asyncio.create_task(other.convert(track()))]
        await clock.run_pending()
        await clock.run(one.submit(track()))
        await clock.run(asyncio.gather(*waits))
        assert "task0002" == waits[1].result().task_id
        assert 1 == other.statistics().submitted
    assert 2 == service.charged


async def test_a_doubt_of_another_session_is_told(clock, service) -> None:
    """A track that another session on the ledger lost is not sent."""
    ledger = MemoryLedger()
    service.fates.append(LOST_CHARGED)
    async with (
        service.session(ledger=ledger) as one,
        service.session(ledger=ledger) as other,
    ):
        for session in (one, other):
            with pytest.raises(SubmitUnknownError):
                await clock.run(session.convert(track()))
    assert 1 == len(service.submitted_at)


async def test_a_lost_repeat_of_another_session_is_told(clock, service) -> None:
    """What somebody else on the ledger repeated and lost is in doubt, old WAV or not."""
    ledger = MemoryLedger()
    async with service.session(ledger=ledger, rate_limit=RateLimit(1, per_s=10.0)) as session:
        await clock.run(session.submit(track(9)))
        waiting = asyncio.create_task(session.convert(track()))
        await clock.run_pending()
        await bring_to(ledger, TrackState.SUCCEEDED, clock.time())
        await ledger.begin_attempt(track(), "b" * 32, clock.time(), again=True)
        await ledger.finish_attempt("b" * 32, AttemptOutcome.UNKNOWN, clock.time())
        with pytest.raises(SubmitUnknownError, match="b" * 32):
            await clock.run(waiting)
    assert 1 == len(service.submitted_at)


# --- waits that ended ---------------------------------------------------------------------------


async def test_a_wait_that_timed_out_is_taken_up_again(clock, service) -> None:
    """A track whose wait ran out is followed again when it is asked for again, and not sent."""
    ledger = MemoryLedger()
    service.conversion_s = 80.0
    async with service.session(ledger=ledger, timeout_s=50.0) as session:
        with pytest.raises(ConversionTimeoutError):
            await clock.run(session.convert(track()))
        wav = await clock.run(session.convert(track()))
        assert wav.expires_at is not None
        assert (1, 1) == (session.statistics().timed_out, session.statistics().accepted)

    assert ("task0001", 1) == (wav.task_id, len(service.submitted_at))


async def test_a_track_that_failed_is_sent_again(clock, service) -> None:
    """A failed track is sent again by the next run, as it is by the same."""
    ledger = MemoryLedger()
    service.poll_replies.append(failed)
    async with service.session(ledger=ledger) as session:
        with pytest.raises(KieWavError, match="build failed"):
            await clock.run(session.convert(track()))
        left = ledger.die()
    async with service.session(ledger=left) as session:
        assert "task0002" == (await clock.run(session.convert(track()))).task_id
    assert (2, 0) == bill(left)


# --- charges and windows ------------------------------------------------------------------------


async def test_an_earlier_doubt_counts_among_the_charges(clock, service) -> None:
    """A doubt of an earlier run takes its place in ``max_charges``, until it is resolved."""
    left = await lose(clock, service, MemoryLedger(), LOST_CHARGED, LOST_FREE)
    async with service.session(ledger=left, max_charges=2) as session:
        with pytest.raises(ChargeLimitError):
            await clock.run(session.submit(track(2)))
        unknown = session.unknown_submits()[1]
        await session.resolve_unknown(unknown.attempt_id, not_charged=True)
        await clock.run(session.submit(track(2)))
        with pytest.raises(ChargeLimitError):
            await clock.run(session.submit(track(3)))
    assert 2 == service.charged


@pytest.mark.parametrize(
    ("jump_s", "waits_s"),
    [(0.0, 9.5), (-3_600.0, 10.0), (4.0, 5.5), (3_600.0, 0.0)],
    ids=["none", "back", "forward a little", "forward"],
)
async def test_the_window_of_an_earlier_run(clock, service, jump_s, waits_s) -> None:
    """A restart waits for the window by the wall clock, and never longer than it lasts."""
    ledger = MemoryLedger()
    settings = {"ledger": ledger, "rate_limit": RateLimit(1, per_s=10.0)}
    async with service.session(**settings) as session:
        await clock.run(session.submit(track(1)))
        settings["ledger"] = ledger.die()
    clock.shift_wall_clock(jump_s)
    await clock.advance(0.5)
    async with service.session(**settings) as session:
        opened_at = clock.monotonic()
        await clock.run(session.submit(track(2)))
        assert waits_s == pytest.approx(service.submitted_at[1] - opened_at)


# --- the repeat of a doubt ----------------------------------------------------------------------


async def test_a_restart_does_not_restart_the_minute(clock, service) -> None:
    """A repeat is due a minute after its submit was lost, however many restarts come between."""
    service.knows_repeats = True
    ledger = await lose(clock, service, MemoryLedger(), LOST_CHARGED)
    lost_at = clock.monotonic()
    for _ in range(3):
        await clock.advance(10.0)
        async with service.session(ledger=ledger, on_unknown=OnUnknown.RESUBMIT) as session:
            waiting = asyncio.create_task(session.convert(track()))
            await clock.advance(5.0)
            assert not waiting.done()
            ledger = ledger.die()
        await asyncio.wait([waiting])
        assert isinstance(waiting.exception(), SessionClosedError)

    async with service.session(ledger=ledger, on_unknown=OnUnknown.RESUBMIT) as session:
        await clock.run(session.convert(track()))
    assert 60.0 == pytest.approx(service.submitted_at[1] - lost_at, abs=1.0)
    assert (2, 1) == (len(service.submitted_at), service.charged)


@pytest.mark.parametrize(
    ("jump_s", "waits_s"),
    [(-3_600.0, 60.0), (30.0, 20.0), (3_600.0, 0.0)],
    ids=["back", "forward a little", "forward"],
)
async def test_the_minute_by_a_clock_that_was_set(clock, service, jump_s, waits_s) -> None:
    """A repeat waits by the wall clock, at most its minute."""
    ledger = await lose(clock, service, MemoryLedger(), LOST_CHARGED)
    clock.shift_wall_clock(jump_s)
    await clock.advance(10.0)
    async with service.session(ledger=ledger, on_unknown=OnUnknown.RESUBMIT) as session:
        asked_at = clock.monotonic()
        await clock.run(session.convert(track()))
        assert waits_s == pytest.approx(service.submitted_at[1] - asked_at, abs=1.0)


async def test_waiters_of_a_repeat_come_and_go(clock, service) -> None:
    """A repeat is sent once, at its time if somebody waits then, else when somebody does."""
    ledger = await lose(clock, service, MemoryLedger(), LOST_CHARGED)
    async with service.session(ledger=ledger, on_unknown=OnUnknown.RESUBMIT) as session:
        for _ in range(3):
            waiting = asyncio.create_task(session.convert(track()))
            await clock.advance(10.0)
            waiting.cancel()
            await clock.run_pending()
        await clock.advance(100.0)
        assert 1 == len(service.submitted_at)

        waits = [asyncio.create_task(session.convert(track())) for _ in range(3)]
        await clock.run(asyncio.gather(*waits))
        assert {"task0002"} == {wait.result().task_id for wait in waits}
    assert 2 == len(service.submitted_at)


async def test_a_repeat_that_could_not_be_written_is_not_used_up(clock, service) -> None:
    """A repeat that the ledger kept from leaving is sent once the ledger works again."""
    ledger = await lose(clock, service, MemoryLedger(), LOST_CHARGED)
    async with service.session(ledger=ledger, on_unknown=OnUnknown.RESUBMIT) as session:
        ledger.fail_with = {"begin_attempt": BROKEN}
        with pytest.raises(LedgerError, match="no space left"):
            await clock.run(session.convert(track()))
        assert (1, 0) == (len(session.unknown_submits()), session.statistics().submitted)

        ledger.fail_with = None
        assert "task0002" == (await clock.run(session.convert(track()))).task_id


async def test_a_refused_repeat_leaves_the_doubt(clock, service) -> None:
    """A repeat that the service refuses leaves the track in doubt, in this run and the next."""
    ledger = await lose(clock, service, MemoryLedger(), LOST_CHARGED)
    service.fates.append(refusal(422))
    for _ in range(2):
        async with service.session(ledger=ledger, on_unknown=OnUnknown.RESUBMIT) as session:
            if not service.fates:
                break
            with pytest.raises(SubmitUnknownError):
                await clock.run(session.convert(track()))
            assert TrackState.UNKNOWN is await state_of(ledger)
            ledger = ledger.die()


async def test_a_repeat_is_withdrawn_if_its_task_is_found_first(clock, service) -> None:
    """A repeat whose intent is being written is not sent if the first one's task is found."""
    ledger = await lose(clock, service, MemoryLedger(), LOST_CHARGED)
    async with service.session(ledger=ledger, on_unknown=OnUnknown.RESUBMIT) as session:
        (unknown,) = session.unknown_submits()
        ledger.hold = {"begin_attempt": asyncio.Event()}
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(100.0)
        await session.resolve_unknown(unknown.attempt_id, task_id="task0001")
        ledger.hold["begin_attempt"].set()
        assert "task0001" == (await clock.run(waiting)).task_id
        assert (0, 0) == (session.statistics().submitted, session.statistics().unknown)
    assert (1, 1) == (len(service.submitted_at), service.charged)
    assert (1, 0) == bill(ledger)
