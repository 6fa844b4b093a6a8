"""The ledger that users test with: what it is asked, and how it is made to wait, fail and die."""

from __future__ import annotations

import asyncio

import pytest
from yarl import URL

from kie_wav_async import Track
from kie_wav_async.errors import LedgerError
from kie_wav_async.ledger import AttemptOutcome, Ledger, TrackState
from kie_wav_async.testing import MemoryLedger

TRACK = Track("5c79", "e231", title="a song")
ACCEPTED = AttemptOutcome.ACCEPTED


async def opened():
    """Return an empty one, open."""
    ledger = MemoryLedger()
    await ledger.open(1.0)
    return ledger


def calls_of(ledger):
    """Name the calls made of *ledger*."""
    return [name for name, _ in ledger.calls]


async def every_call(ledger):
    """Make each call of a ledger once, `open` and `aclose` left out."""
    yield "add_tracks", ledger.add_tracks([TRACK])
    yield "begin_attempt", ledger.begin_attempt(TRACK, "a1", 2.0)
    yield "record_callback", ledger.record_callback("a1", "t1")
    yield "finish_attempt", ledger.finish_attempt("a1", ACCEPTED, 3.0, task_id="t1")
    yield "finish_task", ledger.finish_task("t1", 4.0, wav_url=URL("https://h.invalid/x.wav"))
    yield "mark_saved", ledger.mark_saved(TRACK, path="x.wav", size=1, sha256="ab")
    yield "mark_missing", ledger.mark_missing(TRACK)
    yield "reserve_path", ledger.reserve_path(TRACK, path="x.wav", key="x.wav")
    yield "mark_saved", ledger.mark_saved(TRACK, path="x.wav", size=1, sha256="ab")
    yield "mark_expired", ledger.mark_expired(TRACK)
    yield "requeue", ledger.requeue([TrackState.FAILED])
    yield "get", ledger.get(TRACK)
    yield "list_entries", ledger.list_entries([TrackState.SAVED])
    yield "count_by_state", ledger.count_by_state()


async def test_it_is_a_ledger():
    """It can stand wherever a `Ledger` is asked for."""
    assert isinstance(MemoryLedger(), Ledger)


async def test_no_call_waits():
    """Every call takes effect and returns before the loop gets a turn."""
    ledger = await opened()
    async for name, call in every_call(ledger):
        with pytest.raises(StopIteration):
            call.send(None)
        assert ledger.calls[-1][0] == name


async def test_calls_are_kept_in_order():
    """What it is asked is kept with every argument, those left out with their defaults."""
    ledger = await opened()
    states = [TrackState.PLANNED]
    await ledger.add_tracks([TRACK])
    await ledger.begin_attempt(TRACK, "a1", 2.0)
    await ledger.finish_attempt("a1", AttemptOutcome.REJECTED, 3.0, error_code=422, error="no")
    await ledger.list_entries(states)
    await ledger.reserve_path(TRACK, path="x.wav", key="x")
    await ledger.mark_expired(TRACK)
    await ledger.aclose()
    assert ledger.calls == [
        ("open", (1.0,)),
        ("add_tracks", ((TRACK,),)),
        ("begin_attempt", (TRACK, "a1", 2.0, False)),
        ("finish_attempt", ("a1", AttemptOutcome.REJECTED, 3.0, "", 422, "no", None)),
        ("list_entries", (frozenset(states), 0, 1000)),
        ("reserve_path", (TRACK, "x.wav", "x")),
        ("mark_expired", (TRACK,)),
        ("aclose", ()),
    ]


async def test_every_call_fails_when_told():
    """Told to fail, every call raises a copy of the error given and changes nothing."""
    ledger = await opened()
    ledger.fail_with = error = LedgerError("no space left")
    async for _, call in every_call(ledger):
        with pytest.raises(LedgerError, match="no space left") as raised:
            await call
        assert raised.value is not error
    ledger.fail_with = None
    assert await ledger.get(TRACK) is None


async def test_calls_named_fail():
    """Told which calls fail, it fails those and no others."""
    ledger = await opened()
    ledger.fail_with = {"begin_attempt": LedgerError("no space left")}
    await ledger.add_tracks([TRACK])
    with pytest.raises(LedgerError):
        await ledger.begin_attempt(TRACK, "a1", 2.0)
    assert (await ledger.get(TRACK)).state is TrackState.PLANNED
    assert calls_of(ledger) == ["open", "add_tracks", "begin_attempt", "get"]


async def test_a_late_failure_is_written():
    """Told to fail late, a call that raises has been written all the same."""
    ledger = await opened()
    ledger.fail_with, ledger.fails_late = LedgerError("who knows"), True
    async for name, call in every_call(ledger):
        with pytest.raises(LedgerError, match="who knows"):
            await call
        if name == "begin_attempt":
            assert ledger.calls[-1][0] == "begin_attempt"
    ledger.fail_with = None
    assert (await ledger.get(TRACK)).state is TrackState.SAVED


async def test_an_opening_that_fails_opens_nothing():
    """An opening that fails, early or late, leaves the ledger to others."""
    ledger = MemoryLedger()
    for ledger.fails_late in (False, True):
        ledger.fail_with = {"open": LedgerError("no")}
        with pytest.raises(LedgerError, match="no"):
            await ledger.open(1.0)
        assert not ledger.is_open
        other = ledger.twin()
        await other.open(1.0)
        await other.aclose()


async def test_every_call_can_be_held():
    """Held, every call is written at once and returns when the event is set."""
    ledger = await opened()
    async for name, call in every_call(ledger):
        ledger.hold = asyncio.Event()
        task = asyncio.ensure_future(call)
        await asyncio.sleep(0)
        assert not task.done(), name
        ledger.hold.set()
        await task
    ledger.hold = None
    assert (await ledger.get(TRACK)).state is TrackState.SAVED


async def test_calls_named_are_held():
    """Told which calls to hold, it holds those and no others, and keeps the order."""
    ledger = await opened()
    held = asyncio.Event()
    ledger.hold = {"begin_attempt": held}
    begun = asyncio.ensure_future(ledger.begin_attempt(TRACK, "a1", 2.0))
    await asyncio.sleep(0)
    assert (await ledger.get(TRACK)).state is TrackState.SUBMITTING
    assert not begun.done()
    held.set()
    assert await begun is None


async def test_a_held_call_that_is_cancelled_stays_written():
    """Whoever is cancelled while held has written what he asked for."""
    ledger = await opened()
    ledger.hold = {"begin_attempt": asyncio.Event()}
    begun = asyncio.ensure_future(ledger.begin_attempt(TRACK, "a1", 2.0))
    await asyncio.sleep(0)
    begun.cancel()
    with pytest.raises(asyncio.CancelledError):
        await begun
    assert (await ledger.get(TRACK)).state is TrackState.SUBMITTING


async def test_held_and_failing():
    """A call that is held and fails late raises when it is let go."""
    ledger = await opened()
    ledger.hold, ledger.fails_late = asyncio.Event(), True
    ledger.fail_with = LedgerError("late")
    planned = asyncio.ensure_future(ledger.add_tracks([TRACK]))
    await asyncio.sleep(0)
    assert not planned.done()
    ledger.hold.set()
    with pytest.raises(LedgerError, match="late"):
        await planned


async def test_a_death_parts_the_two():
    """What dies goes on alone: nothing it writes reaches the next process, nor the other way."""
    ledger = await opened()
    await ledger.begin_attempt(TRACK, "a1", 2.0)
    after = ledger.die()
    assert ledger.is_open
    assert not after.is_open
    assert after.calls == []
    opening = await after.open(3.0)
    assert [unknown.attempt_id for unknown in opening.unknown] == ["a1"]
    await ledger.finish_attempt("a1", ACCEPTED, 4.0, task_id="t1")
    assert (await after.get(TRACK)).state is TrackState.UNKNOWN
    await after.finish_attempt("a1", AttemptOutcome.NOT_CREATED, 5.0)
    assert await ledger.reserve_path(TRACK, path="x.wav", key="x")
    await after.add_tracks([Track("m", "a")])
    assert await after.reserve_path(Track("m", "a"), path="x.wav", key="x")
    assert (await ledger.get(TRACK)).state is TrackState.ACCEPTED
    await ledger.aclose()
    assert (await after.get(TRACK)).state is TrackState.PLANNED


async def test_a_death_frees_the_twins():
    """A twin is refused while the first is open, and finds what a death left behind."""
    ledger = await opened()
    twin = ledger.twin()
    await ledger.begin_attempt(TRACK, "a1", 2.0)
    with pytest.raises(LedgerError, match="another process"):
        await twin.open(3.0)
    after = ledger.die()
    await twin.open(4.0)
    assert (await twin.get(TRACK)).state is TrackState.UNKNOWN
    with pytest.raises(LedgerError, match="another process"):
        await after.open(5.0)


async def test_what_is_not_open_is_refused():
    """While it is not open every call says so, and a close does nothing."""
    ledger = MemoryLedger()
    await ledger.aclose()
    async for _, call in every_call(ledger):
        with pytest.raises(LedgerError, match=r"open\(\)"):
            await call
    await ledger.open(1.0)
    await ledger.aclose()
    with pytest.raises(LedgerError, match=r"open\(\)"):
        await ledger.count_by_state()


async def test_nonsense_is_refused_and_not_written():
    """What cannot be meant is an error at the call."""
    ledger = await opened()
    await ledger.begin_attempt(TRACK, "a1", 2.0)
    with pytest.raises(TypeError, match="track"):
        await ledger.add_tracks([Track("m", "a"), "m/a"])
    with pytest.raises(ValueError, match="task_id"):
        await ledger.finish_attempt("a1", ACCEPTED, 3.0)
    with pytest.raises(ValueError, match="names no task"):
        await ledger.finish_attempt("a1", AttemptOutcome.REJECTED, 3.0, task_id="t1")
    with pytest.raises(ValueError, match="planned again"):
        await ledger.requeue([TrackState.FAILED, TrackState.UNKNOWN])
    with pytest.raises(ValueError, match="key must not be empty"):
        await ledger.reserve_path(TRACK, path="x.wav", key="")
    with pytest.raises(LedgerError, match="another track"):
        await ledger.begin_attempt(Track("m", "a"), "a1", 3.0)
    page = await ledger.list_entries(list(TrackState))
    assert [(s.track, s.state) for s in page] == [(TRACK, TrackState.SUBMITTING)]


async def test_a_title_is_learnt_late():
    """A title that comes after its track is kept, and a second one is not."""
    ledger = await opened()
    await ledger.add_tracks([Track("m", "a")])
    await ledger.add_tracks([Track("m", "a", title="first")])
    await ledger.begin_attempt(Track("m", "a", title="second"), "a1", 2.0)
    assert (await ledger.get(Track("m", "a"))).track.title == "first"
