"""
What every ledger must keep: the promises of `kie_wav_async.ledger.Ledger`, as tests.

For a ledger of your own, say how it is made and how its process dies::

    class TestMyLedger(LedgerConformance):
        async def set_up(self):
            self.server = Server()  # Storage of its own for each test.

        async def make_ledger(self):
            return MyLedger(self.server)  # Each time a new one, on the same storage.

        async def kill(self, ledger):
            ledger.connection.abort()  # What SIGKILL would leave behind.

Under pytest with pytest-asyncio (``asyncio_mode = "auto"``) that is all; without
a test runner ``await run_conformance(TestMyLedger)`` does the same. Nothing here
imports either.

What is not tested is what a process cannot see of itself: that what was written
is on the disk when the machine loses power.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import itertools
import random
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
from yarl import URL

from kie_wav_async.core.track_states import AttemptOutcome, TrackState
from kie_wav_async.errors import LedgerError
from kie_wav_async.ledger.models import LedgerEntry, RecoveryState
from kie_wav_async.models import Track
from kie_wav_async.protocol.api_constants import KIE_WAV

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence

    from kie_wav_async.ledger.base import Ledger

__all__ = ["LedgerConformance", "run_conformance"]

_START_UNIX_S: Final = 1_800_000_000.0
_RETENTION_S: Final = KIE_WAV.retention_days * 86_400.0

#: How many submits an opening tells the end of.
_ENDS: Final = 1_000

_WITH_TASK: Final = (AttemptOutcome.ACCEPTED, AttemptOutcome.ADOPTED)
_NOTHING: Final = (
    AttemptOutcome.NOT_CREATED,
    AttemptOutcome.REJECTED,
    AttemptOutcome.EXISTS_WITHOUT_ID,
)

#: Where a track may be sent without a word of the user's.
_FREE: Final = (TrackState.PLANNED, TrackState.REJECTED, TrackState.FAILED)

#: Where a new track stands after each outcome of its first submit.
_STATE_AFTER: Final = {
    AttemptOutcome.ACCEPTED: TrackState.ACCEPTED,
    AttemptOutcome.ADOPTED: TrackState.ACCEPTED,
    AttemptOutcome.UNKNOWN: TrackState.UNKNOWN,
    AttemptOutcome.NOT_CREATED: TrackState.PLANNED,
    AttemptOutcome.REJECTED: TrackState.REJECTED,
    AttemptOutcome.EXISTS_WITHOUT_ID: TrackState.EXISTS_WITHOUT_ID,
}

#: What a submit that has ended for sure may turn out to have come to all the same.
_BETTER: Final = {
    AttemptOutcome.NOT_CREATED: (AttemptOutcome.ACCEPTED,),
    AttemptOutcome.EXISTS_WITHOUT_ID: (AttemptOutcome.ADOPTED, AttemptOutcome.NOT_CREATED),
}

#: An end that needs care: what is escaped must stay so, byte for byte.
_WAV: Final = URL("https://media.invalid/a%2Fb/%E4%BD%A0.wav?x=%7E+1&y=%20#f", encoded=True)

#: A text that needs care.
_WORDS: Final = 'no\'; DROP TABLE track; -- "é" 音楽 🎵\nsecond line'

S = TypeVar("S", bound="LedgerConformance")


def _promise(
    test: Callable[[S], Coroutine[Any, Any, None]],
) -> Callable[[S], Coroutine[Any, Any, None]]:
    """Give *test* a storage, and take it away."""

    @functools.wraps(test)
    async def run(self: S) -> None:
        await self.set_up()
        try:
            self.life = _Life(self)
            try:
                await self.life.start()
                await test(self)
            finally:
                await self.life.aclose()
        finally:
            await self.clean_up()

    return run


async def run_conformance(make_suite: Callable[[], LedgerConformance]) -> tuple[str, ...]:
    """
    Hold a ledger to every promise; return the names of those it was held to.

    Args:
        make_suite: Makes the suite, one for each promise: your class will do.

    Raises:
        ExceptionGroup: Of what was raised for each promise that is broken, with
            its name and its text as a note.
    """
    errors: list[Exception] = []
    names: list[str] = []
    for name in _promises(type(make_suite())):
        test = getattr(make_suite(), name)
        names.append(name)
        try:
            await test()
        except Exception as error:  # noqa: BLE001 - a broken ledger may raise anything
            error.add_note(f"{name}: {test.__doc__}")
            errors.append(error)
    if errors:
        msg = f"{len(errors)} of {len(names)} promises are broken"
        raise ExceptionGroup(msg, errors)
    return tuple(names)


def _promises(suite: type[LedgerConformance]) -> Iterator[str]:
    """Yield the names of the tests in the order in which they are written."""
    seen = {name: None for kind in reversed(suite.__mro__) for name in vars(kind)}
    return (name for name in seen if name.startswith("test_"))


# --- a life of a ledger ---------------------------------------------------------------------


@attrs.frozen
class _Told:
    """All that a ledger tells."""

    standings: tuple[LedgerEntry, ...]
    counts: dict[TrackState, int]
    opening: RecoveryState


class _Life:
    """One ledger through restarts and deaths, and what tests do with it."""

    def __init__(self, suite: LedgerConformance) -> None:
        self._suite = suite
        self._open: list[Ledger] = []
        self._ids = itertools.count(1)
        self._now = _START_UNIX_S
        self.opening = RecoveryState(unknown=(), accepted=0, ended_unix_s=(), callback_tasks={})

    @property
    def ledger(self) -> Ledger:
        return self._open[-1]

    def tick(self, seconds: float = 1.0) -> float:
        """Move time on, and return it."""
        self._now += seconds
        return self._now

    @property
    def now(self) -> float:
        return self._now

    def id(self) -> str:
        """Return an id not used before."""
        return f"{next(self._ids):032x}"

    def track(self) -> Track:
        """Return a track not used before."""
        return Track(f"music-{next(self._ids)}", "audio")

    async def start(self) -> RecoveryState:
        """Open another ledger on the storage."""
        ledger = await self._suite.make_ledger()
        self.opening = await ledger.open(self.tick())
        self._open.append(ledger)
        return self.opening

    async def restart(self) -> RecoveryState:
        """End the process in good order, and start the next."""
        await self._open.pop().aclose()
        return await self.start()

    async def die(self) -> RecoveryState:
        """Kill the process, and start the next."""
        await self._suite.kill(self._open.pop())
        return await self.start()

    async def aclose(self) -> None:
        while self._open:
            await self._open.pop().aclose()

    async def begin(self, track: Track, *, again: bool = False, ago_s: float = 0.0) -> str:
        """Begin a submit that may be sent, some time ago, and return its attempt."""
        attempt_id = self.id()
        began = self.tick() - ago_s
        entry = await self.ledger.begin_attempt(track, attempt_id, began, again=again)
        _require(entry is None, f"a submit that may be sent was held back: {entry}")
        return attempt_id

    async def end(self, attempt_id: str, outcome: AttemptOutcome, task_id: str = "") -> str:
        """End a submit, and return its task, made up if it needs one."""
        if outcome in _WITH_TASK:
            task_id = task_id or self.id()
        is_bad = outcome is AttemptOutcome.REJECTED
        await self.ledger.finish_attempt(
            attempt_id,
            outcome,
            self.tick(),
            task_id=task_id,
            error_code=422 if is_bad else None,
            error=_WORDS if is_bad else None,
        )
        return task_id

    async def submit(
        self,
        track: Track,
        outcome: AttemptOutcome = AttemptOutcome.ACCEPTED,
        *,
        again: bool = False,
        ago_s: float = 0.0,
    ) -> tuple[str, str]:
        """Begin and end a submit; return its attempt and its task."""
        attempt_id = await self.begin(track, again=again, ago_s=ago_s)
        return attempt_id, await self.end(attempt_id, outcome)

    async def resolved(self, attempt_id: str, task_id: str = "") -> None:
        """Have the user say what came of a submit, which must be taken."""
        told = await self.ledger.resolve(attempt_id, self.tick(), task_id=task_id)
        _require(told is True, f"a word on an unknown submit was not taken: {told!r}")

    async def succeed(self, task_id: str) -> None:
        await self.ledger.finish_task(task_id, self.tick(), wav_url=_WAV)

    async def fail(self, task_id: str) -> None:
        await self.ledger.finish_task(task_id, self.tick(), error_code=500, error=_WORDS)

    async def store(self, track: Track) -> None:
        await self.ledger.mark_saved(track, path="å/b.wav", size=2**40, sha256="ab" * 32)

    async def place(self, track: Track, path: str, key: str) -> None:
        """Have a track saved where it may be."""
        told = await self.ledger.reserve_path(track, path=path, key=key)
        _require(told is True, f"{track} may not be at {path}, although it is free: {told!r}")

    async def no_place(self, track: Track, path: str, key: str) -> None:
        """Have a track saved where it may not be."""
        told = await self.ledger.reserve_path(track, path=path, key=key)
        _require(told is False, f"{track} may be at {path}, although that is not free: {told!r}")

    async def made(self, state: TrackState) -> Track:
        """Return a new track that stands in *state*."""
        track = self.track()
        await self.ledger.add_tracks([track])
        if state is TrackState.SUBMITTING:
            await self.begin(track)
        for outcome in (
            AttemptOutcome.UNKNOWN,
            AttemptOutcome.EXISTS_WITHOUT_ID,
            AttemptOutcome.REJECTED,
        ):
            if state is _STATE_AFTER[outcome]:
                await self.submit(track, outcome)
        if state in {
            TrackState.ACCEPTED,
            TrackState.SUCCEEDED,
            TrackState.SAVED,
            TrackState.FAILED,
            TrackState.EXPIRED,
        }:
            _, task_id = await self.submit(track)
            if state is TrackState.FAILED:
                await self.fail(task_id)
            elif state is not TrackState.ACCEPTED:
                await self.succeed(task_id)
            if state is TrackState.SAVED:
                await self.store(track)
            elif state is TrackState.EXPIRED:
                await self.ledger.mark_expired(track)
        await self.expect(track, state)
        return track

    async def find(self, track: Track) -> LedgerEntry:
        """Return where a track stands that must be there."""
        entry = await self.ledger.get(track)
        _require(entry is not None, f"{track} is not there")
        assert entry is not None
        return entry

    async def expect(self, track: Track, state: TrackState, **fields: object) -> None:
        """Require that a track stands in *state*, with *fields*."""
        entry = await self.find(track)
        for name, expected in {"state": state, **fields}.items():
            _same(getattr(entry, name), expected, f"{name} of a track that is {state}")

    async def walk(
        self, states: Sequence[TrackState], limit: int | None = None
    ) -> AsyncIterator[list[LedgerEntry]]:
        """Yield the pages of *states*."""
        after = 0
        limits = {} if limit is None else {"limit": limit}
        while page := list(await self.ledger.list_entries(states, after=after, **limits)):
            _require(page[0].index > after, f"a page above {after} begins at {page[0].index}")
            yield page
            after = page[-1].index

    async def told(self) -> _Told:
        """Return all that the ledger tells."""
        entries = await self.ledger.list_entries(list(TrackState), limit=1_000_000)
        counts = dict(await self.ledger.count_by_state())
        opening = await self.ledger.open(self.now)
        await self.ledger.aclose()
        return _Told(tuple(entries), counts, opening)

    async def unchanged(self, before: _Told, what: str) -> None:
        """Require that the ledger tells what it told before."""
        _same(await self.told(), before, f"what the ledger tells after {what}")


def _require(is_kept: bool, message: str) -> None:  # noqa: FBT001 - reads as an assert does
    # Not an assert: it has to hold under -O too.
    if not is_kept:
        raise AssertionError(message)


def _same(actual: object, expected: object, what: str) -> None:
    _require(actual == expected, f"{what}: expected {expected!r}, got {actual!r}")


def _moment(unix_s: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(unix_s, dt.UTC)


def _indices(entries: Iterable[LedgerEntry]) -> list[int]:
    return [entry.index for entry in entries]


# --- the promises ---------------------------------------------------------------------------


class LedgerConformance:
    """
    The promises of a ledger; subclass it, and override what is marked so.

    Every test is run on a new object with a storage of its own.

    Attributes:
        life: The ledger under test, with its restarts; of no use to subclasses.
    """

    life: _Life

    # --- to override ------------------------------------------------------------------------

    async def set_up(self) -> None:
        """Make an empty storage; override it if there is something to make."""

    async def make_ledger(self) -> Ledger:
        """Return a ledger on the storage, another object each time, not open; override it."""
        raise NotImplementedError

    async def kill(self, ledger: Ledger) -> None:
        """
        Leave the storage as if the process of *ledger* had been killed; override it.

        Nothing is under way. *ledger* is not used again, and may be closed at leisure,
        as long as that changes nothing.
        """
        raise NotImplementedError

    async def clean_up(self) -> None:
        """Remove the storage; override it if there is something to remove."""

    # --- opening and closing ----------------------------------------------------------------

    @_promise
    async def test_new_ledger_is_empty(self) -> None:
        """A new ledger knows no track, no submit and no doubt."""
        life = self.life
        empty = RecoveryState(unknown=(), accepted=0, ended_unix_s=(), callback_tasks={})
        _same(life.opening, empty, "the opening of a new ledger")
        _same(dict(await life.ledger.count_by_state()), dict.fromkeys(TrackState, 0), "its counts")
        _same(list(await life.ledger.list_entries(list(TrackState))), [], "its tracks")
        _same(await life.ledger.get(life.track()), None, "a track that is not there")

    @_promise
    async def test_a_second_process_is_refused(self) -> None:
        """A ledger that another has open is refused with `LedgerError`, and nothing changes."""
        life = self.life
        track = life.track()
        attempt_id = await life.begin(track)
        other = await self.make_ledger()
        try:
            await other.open(life.tick())
        except LedgerError:
            pass
        else:
            await other.aclose()
            _require(False, "a ledger was opened twice at once")  # noqa: FBT003 - as above
        await life.expect(track, TrackState.SUBMITTING)
        await life.end(attempt_id, AttemptOutcome.ACCEPTED)
        await life.expect(track, TrackState.ACCEPTED)
        await life.restart()

    @_promise
    async def test_openings_nest(self) -> None:
        """Opened again it only tells: what is under way stays so, until the last close."""
        life = self.life
        track = life.track()
        attempt_id = await life.begin(track)
        nested = await life.ledger.open(life.tick())
        _same(nested.unknown, (), "the submits of unknown fate, as a second opening tells")
        await life.expect(track, TrackState.SUBMITTING)
        await life.ledger.aclose()
        await life.end(attempt_id, AttemptOutcome.ACCEPTED)
        await life.expect(track, TrackState.ACCEPTED)
        again = await life.ledger.open(life.tick())
        _same(again.accepted, 1, "the submits accepted, as a second opening tells")
        await life.ledger.aclose()
        await life.restart()
        await life.expect(track, TrackState.ACCEPTED)

    @_promise
    async def test_what_is_written_stays(self) -> None:
        """Whatever a call wrote is there after a restart, and after a death."""
        life = self.life
        for state in TrackState:
            if state is not TrackState.SUBMITTING:
                await life.made(state)
        lost, _ = await life.submit(life.track(), AttemptOutcome.UNKNOWN)
        await life.ledger.record_callback(lost, "named")
        await life.ledger.add_tracks(
            [Track("m", "a", title="é 音楽"), Track("x" * 256, "ü-" * 128)]
        )
        before = await life.told()
        await life.restart()
        await life.unchanged(before, "a restart")
        _same(life.opening, before.opening, "the opening after a restart")
        await life.die()
        await life.unchanged(before, "a death")
        _same(life.opening, before.opening, "the opening after a death")

    @_promise
    async def test_what_dies_on_the_wire_is_unknown(self) -> None:
        """Submits under way when the process died are unknown from the next opening on."""
        life = self.life
        tracks = [life.track() for _ in range(3)]
        attempts = [await life.begin(track) for track in tracks]
        done = await life.made(TrackState.SUCCEEDED)
        opening = await life.die()
        opened_at = life.now
        _same(
            [(unknown.track, unknown.attempt_id, unknown.at) for unknown in opening.unknown],
            [
                (track, attempt_id, _moment(opened_at))
                for track, attempt_id in zip(tracks, attempts, strict=True)
            ],
            "the submits of unknown fate after a death",
        )
        _same(opening.ended_unix_s[-3:], (opened_at,) * 3, "when they are taken to have ended")
        for track, attempt_id in zip(tracks, attempts, strict=True):
            await life.expect(track, TrackState.UNKNOWN, attempt_id=attempt_id, task_id="")
        await life.expect(done, TrackState.SUCCEEDED)

    @_promise
    async def test_what_a_close_left_on_the_wire_is_unknown(self) -> None:
        """A submit under way when the ledger was closed is unknown to the next process too."""
        life = self.life
        track = life.track()
        attempt_id = await life.begin(track)
        opening = await life.restart()
        _same([d.attempt_id for d in opening.unknown], [attempt_id], "the unknown submits")
        await life.expect(track, TrackState.UNKNOWN)

    @_promise
    async def test_a_doubt_keeps_its_time(self) -> None:
        """A submit is unknown since the first opening that found it so, or since it was said."""
        life = self.life
        said, _ = await life.submit(life.track(), AttemptOutcome.UNKNOWN)
        said_at = life.now
        died = await life.begin(life.track())
        await life.die()
        died_at = life.now
        life.tick(3600.0)
        opening = await life.restart()
        _same(
            [(d.attempt_id, d.at) for d in opening.unknown],
            [(said, _moment(said_at)), (died, _moment(died_at))],
            "the unknown submits, oldest first",
        )
        _same(opening.ended_unix_s, (said_at, died_at), "when they ended")

    @_promise
    async def test_accepted_submits_are_counted_for_ever(self) -> None:
        """The opening counts what the service took, found out late or not, and nothing else."""
        life = self.life
        for outcome in AttemptOutcome:
            await life.submit(life.track(), outcome)
        lost, _ = await life.submit(life.track(), AttemptOutcome.UNKNOWN)
        await life.end(lost, AttemptOutcome.ACCEPTED)
        track = life.track()
        for _ in range(2):
            _, task_id = await life.submit(track)
            await life.fail(task_id)
        await life.ledger.requeue([TrackState.FAILED])
        _same((await life.restart()).accepted, 4, "the submits accepted after a restart")
        _same((await life.die()).accepted, 4, "the submits accepted after a death")

    @_promise
    async def test_the_last_ends_are_told(self) -> None:
        """The opening tells when the last 1,000 submits ended, oldest first, each once."""
        life = self.life
        ends: list[float] = []
        calls: list[Coroutine[Any, Any, object]] = []
        outcomes = itertools.cycle(AttemptOutcome)
        for _ in range(_ENDS + 5):
            attempt_id, outcome = life.id(), next(outcomes)
            task_id = life.id() if outcome in _WITH_TASK else ""
            begun, ended = life.tick(), life.tick()
            ends.append(ended)
            ledger = life.ledger
            calls += [
                ledger.begin_attempt(life.track(), attempt_id, begun),
                ledger.finish_attempt(attempt_id, outcome, ended, task_id=task_id),
            ]
        await _in_order(calls)
        lost, _ = await life.submit(life.track(), AttemptOutcome.UNKNOWN)
        ends.append(life.now)
        await life.end(lost, AttemptOutcome.NOT_CREATED)
        opening = await life.restart()
        _same(opening.ended_unix_s, tuple(ends[-_ENDS:]), "when the last submits ended")

    @_promise
    async def test_a_task_named_for_a_doubt_is_told(self) -> None:
        """The first task that a callback names for a doubt is told while it is one."""
        life = self.life
        on_wire, heard = await life.begin(life.track()), life.track()
        await life.ledger.record_callback(on_wire, "first")
        await life.ledger.record_callback(on_wire, "second")
        lost, _ = await life.submit(heard, AttemptOutcome.UNKNOWN)
        await life.ledger.record_callback(lost, "third")
        silent, _ = await life.submit(life.track(), AttemptOutcome.UNKNOWN)
        sure, _ = await life.submit(life.track())
        await life.ledger.record_callback(sure, "fourth")
        await life.ledger.record_callback(life.id(), "fifth")
        opening = await life.die()
        _same(dict(opening.callback_tasks), {on_wire: "first", lost: "third"}, "the tasks named")
        _require(silent not in opening.callback_tasks, "a task was named that no callback named")
        await life.expect(heard, TrackState.UNKNOWN, task_id="")
        await life.end(on_wire, AttemptOutcome.ACCEPTED, "first")
        await life.end(lost, AttemptOutcome.NOT_CREATED)
        await life.ledger.record_callback(lost, "sixth")
        _same(dict((await life.restart()).callback_tasks), {}, "the tasks named for what is known")

    # --- tracks -----------------------------------------------------------------------------

    @_promise
    async def test_plan_takes_each_track_once(self) -> None:
        """Planning returns how many are new: a track is there once, whatever its title."""
        life = self.life
        first, second, third = (Track("m", audio) for audio in "abc")
        _same(
            await life.ledger.add_tracks(iter([first, second, first])), 2, "the tracks that are new"
        )
        titled = Track("m", "b", title="another title")
        _same(await life.ledger.add_tracks([titled, third]), 1, "the tracks that are new to it")
        _same(await life.ledger.add_tracks([]), 0, "the new tracks among none")
        page = await life.ledger.list_entries([TrackState.PLANNED])
        _same([entry.track for entry in page], [first, second, third], "the tracks planned")
        _same(
            page[0], LedgerEntry(index=page[0].index, track=first, state=TrackState.PLANNED), "one"
        )

    @_promise
    async def test_plan_is_all_or_nothing(self) -> None:
        """Tracks that cannot all be taken in are not taken in at all."""
        life = self.life

        def broken() -> Iterator[Track]:
            yield life.track()
            yield life.track()
            raise ZeroDivisionError

        try:
            await life.ledger.add_tracks(broken())
        except ZeroDivisionError:
            pass
        else:
            _require(False, "an error of the tracks themselves was swallowed")  # noqa: FBT003 - as above
        _same(
            sum((await life.ledger.count_by_state()).values()), 0, "the tracks of a plan that broke"
        )

    @_promise
    async def test_plan_changes_nothing_that_is_there(self) -> None:
        """A track planned again stays where it is, in every state."""
        life = self.life
        tracks = [await life.made(state) for state in TrackState]
        before = await life.told()
        _same(await life.ledger.add_tracks(tracks), 0, "the new tracks among known ones")
        await life.unchanged(before, "planning the same tracks")

    @_promise
    async def test_tracks_keep_their_order(self) -> None:
        """Tracks are told in the order in which they came, by indices that never change."""
        life = self.life
        tracks = [life.track() for _ in range(30)]
        await life.ledger.add_tracks(tracks[:10])
        for track in tracks[10:20]:
            await life.begin(track)
        await life.ledger.add_tracks(reversed(tracks))
        order = tracks[:20] + tracks[:19:-1]
        page = list(await life.ledger.list_entries(list(TrackState)))
        _same([entry.track for entry in page], order, "the tracks in order")
        _require(page[0].index >= 1, "the first index is below 1")
        _same(_indices(page), sorted(set(_indices(page))), "the indices")
        await life.submit(tracks[5])
        await life.die()
        after = await life.ledger.list_entries(list(TrackState))
        _same(
            [(entry.index, entry.track) for entry in after],
            [(entry.index, entry.track) for entry in page],
            "the tracks in order after a death",
        )

    @_promise
    async def test_pages_hold_what_they_are_asked_for(self) -> None:
        """A page holds the first tracks in the states asked for above an index, and no more."""
        life = self.life
        for state in [*TrackState, *TrackState]:
            await life.made(state)
        everything = list(await life.ledger.list_entries(list(TrackState)))
        _same(len(everything), 2 * len(TrackState), "how many tracks there are")
        asked = [TrackState.FAILED, TrackState.PLANNED, TrackState.UNKNOWN]
        expected = [entry for entry in everything if entry.state in asked]
        _same(list(await life.ledger.list_entries(iter(asked))), expected, "a page of three states")
        for limit in (1, 2, 5):
            pages = [page async for page in life.walk(asked, limit)]
            _require(max(map(len, pages)) <= limit, f"a page of {limit} holds more")
            _same([s for page in pages for s in page], expected, f"the pages of {limit}")
        _same(list(await life.ledger.list_entries([])), [], "a page of no states")
        last = everything[-1].index
        _same(
            list(await life.ledger.list_entries(asked, after=last)),
            [],
            "a page above the last track",
        )

    @_promise
    async def test_a_page_is_of_a_thousand(self) -> None:
        """A page holds 1,000 tracks unless asked otherwise, and the next begins where it ended."""
        life = self.life
        tracks = [Track("m", str(number)) for number in range(2_100)]
        _same(await life.ledger.add_tracks(tracks), 2_100, "the tracks that are new")
        pages = [page async for page in life.walk([TrackState.PLANNED])]
        _same([len(page) for page in pages], [1_000, 1_000, 100], "the sizes of the pages")
        _same([s.track for page in pages for s in page], tracks, "the tracks in order")

    @_promise
    async def test_a_walk_loses_no_track(self) -> None:
        """A walk by pages comes by every track although what it passes changes state."""
        life = self.life
        tracks = [life.track() for _ in range(20)]
        await life.ledger.add_tracks(tracks)
        seen: list[Track] = []
        async for page in life.walk([TrackState.PLANNED], 3):
            for entry in page:
                seen.append(entry.track)
                await life.submit(entry.track)
        _same(seen, tracks, "the tracks that a walk came by")

    @_promise
    async def test_counts_are_what_pages_hold(self) -> None:
        """Every state has a count of what a page of it holds, and `get` tells the same."""
        life = self.life
        for number, state in enumerate(TrackState):
            for _ in range(number % 3):
                await life.made(state)
        counts = dict(await life.ledger.count_by_state())
        _same(set(counts), set(TrackState), "the states counted")
        for state in TrackState:
            page = await life.ledger.list_entries([state])
            _same(counts[state], len(page), f"the count of {state}")
            for entry in page:
                _same(entry.state, state, "the state of a track on a page")
                _same(await life.ledger.get(entry.track), entry, "what find tells")

    # --- begin ------------------------------------------------------------------------------

    @_promise
    async def test_only_what_is_free_is_sent(self) -> None:
        """A submit may be sent of what is new, planned, refused or failed; else nothing changes."""
        life = self.life
        for state in TrackState:
            track = await life.made(state)
            before = await life.told()
            entry = await life.find(track)
            told = await life.ledger.begin_attempt(track, life.id(), life.tick())
            if state in _FREE:
                _same(told, None, f"the answer to a submit of a track that is {state}")
                await life.expect(track, TrackState.SUBMITTING)
            else:
                _same(told, entry, f"the answer to a submit of a track that is {state}")
                await life.unchanged(before, f"a submit of a track that is {state}")

    @_promise
    async def test_again_sends_all_but_what_is_on_the_wire(self) -> None:
        """Said *again*, a submit may be sent unless one of the track is under way."""
        life = self.life
        for state in TrackState:
            track = await life.made(state)
            before = await life.told()
            entry = await life.find(track)
            told = await life.ledger.begin_attempt(track, life.id(), life.tick(), again=True)
            if state is TrackState.SUBMITTING:
                _same(told, entry, "the answer to a second submit at once")
                await life.unchanged(before, "a second submit at once")
            else:
                _same(told, None, f"the answer to *again* of a track that is {state}")
                await life.expect(track, TrackState.SUBMITTING)

    @_promise
    async def test_begin_takes_in_a_new_track(self) -> None:
        """A submit of a track that is not there takes it in, after all that are."""
        life = self.life
        await life.ledger.add_tracks([life.track()])
        track = Track("m", "a", title="title")
        attempt_id = await life.begin(track)
        last = list(await life.ledger.list_entries(list(TrackState)))[-1]
        expected = LedgerEntry(
            index=last.index, track=track, state=TrackState.SUBMITTING, attempt_id=attempt_id
        )
        _same(last, expected, "a track that came with its submit")
        _same(last.track.title, "title", "its title")

    @_promise
    async def test_one_of_many_begins(self) -> None:
        """Of submits of one track that ask at once, one may be sent."""
        life = self.life
        track = life.track()
        told = await _in_order(
            life.ledger.begin_attempt(track, life.id(), life.tick(), again=number % 2 == 1)
            for number in range(20)
        )
        _same(sum(entry is None for entry in told), 1, "the submits that may be sent")
        _same(len((await life.die()).unknown), 1, "the submits in doubt after a death")

    @_promise
    async def test_a_held_back_submit_leaves_no_trace(self) -> None:
        """A submit that may not be sent never was: no end of it, no doubt, no place in the bill."""
        life = self.life
        track = await life.made(TrackState.ACCEPTED)
        before = await life.told()
        refused = life.id()
        _require(
            await life.ledger.begin_attempt(track, refused, life.tick()) is not None,
            "a track that is in flight may be sent",
        )
        await life.end(refused, AttemptOutcome.ACCEPTED)
        await life.ledger.record_callback(refused, "task")
        await life.unchanged(before, "the end of a submit that was never sent")
        await life.die()
        await life.unchanged(before, "the end of a submit that was never sent, and a death")

    @_promise
    async def test_a_submit_begins_once(self) -> None:
        """Said again with the same ids, a submit under way may be sent still, and is one."""
        life = self.life
        track, attempt_id = life.track(), life.id()
        now = life.tick()
        _same(await life.ledger.begin_attempt(track, attempt_id, now), None, "the first answer")
        before = await life.told()
        _same(await life.ledger.begin_attempt(track, attempt_id, now), None, "the second answer")
        await life.unchanged(before, "beginning a submit a second time")
        await life.end(attempt_id, AttemptOutcome.NOT_CREATED)
        before = await life.told()
        told = await life.ledger.begin_attempt(track, attempt_id, now)
        _require(told is not None, "a submit that has ended may be sent a second time")
        await life.unchanged(before, "beginning a submit that has ended")

    # --- end --------------------------------------------------------------------------------

    @_promise
    async def test_every_outcome_of_a_submit(self) -> None:
        """A submit under way can come to anything, and its track stands where that puts it."""
        life = self.life
        for outcome in AttemptOutcome:
            track = life.track()
            attempt_id = await life.begin(track)
            begun = _moment(life.now)
            task_id = await life.end(attempt_id, outcome)
            is_bad = outcome is AttemptOutcome.REJECTED
            await life.expect(
                track,
                _STATE_AFTER[outcome],
                attempt_id=attempt_id,
                task_id=task_id,
                is_adopted=outcome is AttemptOutcome.ADOPTED,
                submitted_at=begun if outcome in _WITH_TASK else None,
                settled_at=None,
                wav_url=None,
                error_code=422 if is_bad else None,
                error=_WORDS if is_bad else None,
            )

    @_promise
    async def test_a_doubt_ends_accepted_or_not_created(self) -> None:
        """A submit of unknown fate turns out accepted, or not created; nothing else ends it."""
        life = self.life
        for outcome in AttemptOutcome:
            track = life.track()
            attempt_id = await life.begin(track)
            begun = _moment(life.now)
            await life.end(attempt_id, AttemptOutcome.UNKNOWN)
            before = await life.told()
            life.tick(3600.0)
            task_id = await life.end(attempt_id, outcome)
            if outcome is AttemptOutcome.ACCEPTED:
                await life.expect(
                    track,
                    TrackState.ACCEPTED,
                    task_id=task_id,
                    is_adopted=False,
                    submitted_at=begun,
                )
            elif outcome is AttemptOutcome.NOT_CREATED:
                await life.expect(track, TrackState.PLANNED, task_id="")
            else:
                await life.unchanged(before, f"{outcome} of a submit of unknown fate")
                continue
            unknowns = [unknown.attempt_id for unknown in (await life.restart()).unknown]
            _require(attempt_id not in unknowns, f"a submit that was {outcome} is still in doubt")

    @_promise
    async def test_an_outcome_is_final(self) -> None:
        """What a submit came to stays, but for what somebody may know better of it later."""
        life = self.life
        for first in AttemptOutcome:
            if first is AttemptOutcome.UNKNOWN:
                continue
            attempt_id, _ = await life.submit(life.track(), first)
            before = await life.told()
            for second in AttemptOutcome:
                if second in _BETTER.get(first, ()):
                    continue
                await life.end(attempt_id, second)
                await life.unchanged(before, f"{second} of a submit that was {first}")

    @_promise
    async def test_a_task_beats_a_word_that_there_is_none(self) -> None:
        """A submit said to have created nothing, whose task turns up, was accepted and paid."""
        life = self.life
        for is_doubted in (False, True):
            track = life.track()
            attempt_id = await life.begin(track)
            begun = _moment(life.now)
            if is_doubted:
                await life.end(attempt_id, AttemptOutcome.UNKNOWN)
            await life.end(attempt_id, AttemptOutcome.NOT_CREATED)
            task_id = await life.end(attempt_id, AttemptOutcome.ACCEPTED)
            await life.expect(
                track,
                TrackState.ACCEPTED,
                task_id=task_id,
                is_adopted=False,
                submitted_at=begun,
            )
            _same((await life.restart()).accepted, 1 + is_doubted, "the submits accepted")
        # Sent again meanwhile, it has two.
        track = life.track()
        older, _ = await life.submit(track, AttemptOutcome.NOT_CREATED)
        _, task_id = await life.submit(track)
        found = await life.end(older, AttemptOutcome.ACCEPTED)
        await life.expect(track, TrackState.ACCEPTED, task_id=task_id)
        await life.fail(task_id)
        await life.expect(track, TrackState.ACCEPTED, task_id=found)

    @_promise
    async def test_what_exists_is_found_or_is_not_there(self) -> None:
        """A WAV the service did not name is followed once it is found, else planned again."""
        life = self.life
        found, missing = life.track(), life.track()
        attempt_id, _ = await life.submit(found, AttemptOutcome.EXISTS_WITHOUT_ID)
        task_id = await life.end(attempt_id, AttemptOutcome.ADOPTED)
        await life.expect(found, TrackState.ACCEPTED, task_id=task_id, is_adopted=True)
        attempt_id, _ = await life.submit(missing, AttemptOutcome.EXISTS_WITHOUT_ID)
        await life.end(attempt_id, AttemptOutcome.NOT_CREATED)
        await life.expect(missing, TrackState.PLANNED, task_id="")
        await life.submit(missing)
        await life.expect(missing, TrackState.ACCEPTED)

    @_promise
    async def test_the_users_word_is_taken(self) -> None:
        """What the user says of an unknown submit is as if the service had said it."""
        life = self.life
        charged, free = life.track(), life.track()
        lost, _ = await life.submit(charged, AttemptOutcome.UNKNOWN)
        other, _ = await life.submit(free, AttemptOutcome.UNKNOWN)
        await life.resolved(lost, "task")
        await life.resolved(other)
        await life.expect(charged, TrackState.ACCEPTED, task_id="task", is_adopted=False)
        await life.expect(free, TrackState.PLANNED, task_id="")
        opening = await life.die()
        _same((opening.accepted, opening.unknown), (1, ()), "the submits accepted and unknown")
        await life.succeed("task")
        await life.expect(charged, TrackState.SUCCEEDED, task_id="task")
        await life.submit(free)

    @_promise
    async def test_a_word_is_for_what_is_unknown_or_exists(self) -> None:
        """Of any other submit, and of one that is not there, no word is taken."""
        life = self.life
        others = set(AttemptOutcome) - {AttemptOutcome.UNKNOWN, AttemptOutcome.EXISTS_WITHOUT_ID}
        attempts = [(await life.submit(life.track(), outcome))[0] for outcome in others]
        attempts += [life.id(), await life.begin(life.track())]
        late, _ = await life.submit(life.track(), AttemptOutcome.UNKNOWN)
        await life.end(late, AttemptOutcome.ACCEPTED)
        corrected, _ = await life.submit(life.track(), AttemptOutcome.UNKNOWN)
        await life.resolved(corrected)
        await life.end(corrected, AttemptOutcome.ACCEPTED)
        before = await life.told()
        for attempt_id in (*attempts, late, corrected):
            for task_id in ("task", ""):
                told = await life.ledger.resolve(attempt_id, life.tick(), task_id=task_id)
                _require(told is False, f"a word on {attempt_id} was taken: {told!r}")
        await life.unchanged(before, "a word on a submit that is not unknown")

    @_promise
    async def test_a_wrong_word_is_replaced(self) -> None:
        """A later word takes the place of an earlier one, whatever has become of its task."""
        life = self.life
        for state in (
            TrackState.ACCEPTED,
            TrackState.FAILED,
            TrackState.SUCCEEDED,
            TrackState.SAVED,
        ):
            track = life.track()
            attempt_id, _ = await life.submit(track, AttemptOutcome.UNKNOWN)
            wrong, right, accepted = life.id(), life.id(), life.opening.accepted
            await life.resolved(attempt_id, wrong)
            if state is TrackState.FAILED:
                await life.fail(wrong)
            elif state is not TrackState.ACCEPTED:
                await life.succeed(wrong)
            if state is TrackState.SAVED:
                await life.store(track)
            await life.expect(track, state, task_id=wrong)
            await life.resolved(attempt_id, right)
            nothing = {"wav_url": None, "settled_at": None, "bytes": None, "sha256": None}
            fields = {**nothing, "error": None, "path": (await life.find(track)).path}
            await life.expect(track, TrackState.ACCEPTED, task_id=right, **fields)
            _same((await life.restart()).accepted, accepted + 1, "the submits accepted")
            await life.succeed(wrong)
            await life.expect(track, TrackState.ACCEPTED, task_id=right)
            await life.resolved(attempt_id)
            await life.expect(track, TrackState.PLANNED, task_id="")
            opening = await life.die()
            _same((opening.accepted, opening.unknown), (accepted, ()), "accepted and unknown")
            await life.resolved(attempt_id, right)
            await life.expect(track, TrackState.ACCEPTED, task_id=right)
            await life.succeed(right)
            await life.expect(track, TrackState.SUCCEEDED, task_id=right)
            await life.restart()

    @_promise
    async def test_a_word_said_twice_changes_nothing(self) -> None:
        """The same word again is taken, and changes nothing."""
        life = self.life
        for outcome in (AttemptOutcome.UNKNOWN, AttemptOutcome.EXISTS_WITHOUT_ID):
            for task_id in ("", life.id()):
                track = life.track()
                attempt_id, _ = await life.submit(track, outcome)
                await life.resolved(attempt_id, task_id)
                if task_id:
                    await life.succeed(task_id)
                    await life.store(track)
                before = await life.told()
                await life.resolved(attempt_id, task_id)
                await life.unchanged(before, "a word said twice")

    @_promise
    async def test_a_word_on_what_exists_is_replaced(self) -> None:
        """What was there before our submit is adopted under the last task named, uncounted."""
        life = self.life
        track, accepted = life.track(), life.opening.accepted
        attempt_id, _ = await life.submit(track, AttemptOutcome.EXISTS_WITHOUT_ID)
        await life.resolved(attempt_id)
        await life.expect(track, TrackState.PLANNED)
        for task_id in ("wrong", "right"):
            await life.resolved(attempt_id, task_id)
            await life.expect(track, TrackState.ACCEPTED, task_id=task_id, is_adopted=True)
            await life.succeed(task_id)
        await life.expect(track, TrackState.SUCCEEDED, task_id="right")
        _same((await life.restart()).accepted, accepted, "the submits accepted")

    @_promise
    async def test_a_word_taken_back_leaves_what_was_there(self) -> None:
        """Without the task that was wrong a track stands where its other submits have it."""
        life = self.life
        # Another task, which had not ended, or whose WAV came second.
        for is_over in (False, True):
            track = life.track()
            lost, _ = await life.submit(track, AttemptOutcome.UNKNOWN)
            await life.resolved(lost, wrong := life.id())
            _, other = await life.submit(track, again=True)
            await life.succeed(wrong)
            if is_over:
                await life.succeed(other)
            await life.expect(track, TrackState.SUCCEEDED, task_id=wrong)
            await life.resolved(lost)
            await life.expect(track, TrackState.ACCEPTED, task_id=other, wav_url=None)
            await life.succeed(other)
            await life.expect(track, TrackState.SUCCEEDED, task_id=other)
        # A WAV whose task was not told.
        track = life.track()
        await life.submit(track, AttemptOutcome.EXISTS_WITHOUT_ID)
        lost, _ = await life.submit(track, AttemptOutcome.UNKNOWN, again=True)
        await life.resolved(lost, life.id())
        await life.resolved(lost)
        await life.expect(track, TrackState.EXISTS_WITHOUT_ID)
        # Another unknown submit, from before the WAV that was none of its.
        track = life.track()
        await life.submit(track, AttemptOutcome.UNKNOWN)
        lost, _ = await life.submit(track, AttemptOutcome.UNKNOWN, again=True)
        await life.resolved(lost, wrong := life.id())
        await life.succeed(wrong)
        await life.resolved(lost)
        await life.expect(track, TrackState.UNKNOWN)

    @_promise
    async def test_an_unheard_of_attempt_is_ignored(self) -> None:
        """Outcomes of an attempt that is not there change nothing."""
        life = self.life
        await life.made(TrackState.UNKNOWN)
        before = await life.told()
        for outcome in AttemptOutcome:
            await life.end(life.id(), outcome)
        await life.unchanged(before, "the end of an attempt that is not there")

    @_promise
    async def test_a_repeat_that_created_nothing_was_none(self) -> None:
        """After a repeat that created nothing the track stands where it stood before."""
        life = self.life
        for state in (
            TrackState.UNKNOWN,
            TrackState.ACCEPTED,
            TrackState.SUCCEEDED,
            TrackState.SAVED,
        ):
            for outcome in _NOTHING:
                track = await life.made(state)
                before = await life.find(track)
                attempt_id, _ = await life.submit(track, outcome, again=True)
                after = await life.find(track)
                _same(
                    after,
                    attrs.evolve(before, attempt_id=attempt_id),
                    f"a track that was {state}, after a repeat that was {outcome}",
                )

    @_promise
    async def test_a_doubt_of_a_repeat_is_a_doubt(self) -> None:
        """A repeat of unknown fate puts a track in doubt that had its WAV, until it is resolved."""
        life = self.life
        for state in (TrackState.SUCCEEDED, TrackState.SAVED):
            track = await life.made(state)
            before = await life.find(track)
            attempt_id, _ = await life.submit(track, AttemptOutcome.UNKNOWN, again=True)
            await life.expect(track, TrackState.UNKNOWN)
            await life.end(attempt_id, AttemptOutcome.NOT_CREATED)
            after = await life.find(track)
            _same(after, attrs.evolve(before, attempt_id=attempt_id), "a track absolved")

    @_promise
    async def test_one_doubt_of_two_stays(self) -> None:
        """A track with two doubts is unknown until both are resolved, in any order."""
        life = self.life
        for is_first in (True, False):
            track = life.track()
            older, _ = await life.submit(track, AttemptOutcome.UNKNOWN)
            newer, _ = await life.submit(track, AttemptOutcome.UNKNOWN, again=True)
            one, two = (older, newer) if is_first else (newer, older)
            await life.end(one, AttemptOutcome.NOT_CREATED)
            await life.expect(track, TrackState.UNKNOWN)
            await life.end(two, AttemptOutcome.NOT_CREATED)
            await life.expect(track, TrackState.PLANNED)

    @_promise
    async def test_a_repeat_is_followed_and_the_doubt_stays(self) -> None:
        """A repeat that was accepted is followed; the earlier doubt stays in the bill alone."""
        life = self.life
        track = life.track()
        lost, _ = await life.submit(track, AttemptOutcome.UNKNOWN)
        _, task_id = await life.submit(track, again=True)
        await life.expect(track, TrackState.ACCEPTED, task_id=task_id)
        await life.succeed(task_id)
        await life.expect(track, TrackState.SUCCEEDED, task_id=task_id)
        opening = await life.die()
        _same([d.attempt_id for d in opening.unknown], [lost], "the unknown submits")
        _same(opening.accepted, 1, "the submits accepted")
        await life.expect(track, TrackState.SUCCEEDED, task_id=task_id)
        await life.end(lost, AttemptOutcome.NOT_CREATED)
        await life.expect(track, TrackState.SUCCEEDED, task_id=task_id)

    @_promise
    async def test_a_wav_is_not_lost_to_a_late_find(self) -> None:
        """A track that has its WAV keeps it when an older doubt turns out accepted."""
        life = self.life
        for is_stored in (False, True):
            track = life.track()
            lost, _ = await life.submit(track, AttemptOutcome.UNKNOWN)
            _, task_id = await life.submit(track, again=True)
            await life.succeed(task_id)
            if is_stored:
                await life.store(track)
            before = await life.find(track)
            found = await life.end(lost, AttemptOutcome.ACCEPTED)
            _same(await life.find(track), before, "a track with a WAV, after a late find")
            await life.fail(found)
            _same(await life.find(track), before, "a track with a WAV, when the find fails")

    @_promise
    async def test_a_repeat_in_doubt_ends_in_failure(self) -> None:
        """A track whose repeat failed while an earlier doubt stands is not free to be sent."""
        life = self.life
        track = life.track()
        lost, _ = await life.submit(track, AttemptOutcome.UNKNOWN)
        _, task_id = await life.submit(track, again=True)
        await life.fail(task_id)
        await life.expect(track, TrackState.UNKNOWN)
        await life.end(lost, AttemptOutcome.NOT_CREATED)
        _require((await life.find(track)).state in _FREE, "an absolved track may not be sent")

    @_promise
    async def test_a_track_is_followed_under_one_task_then_the_other(self) -> None:
        """A second task waits beside the first, is followed when that fails, and fails last."""
        life = self.life
        track = life.track()
        lost, _ = await life.submit(track, AttemptOutcome.UNKNOWN)
        _, first = await life.submit(track, again=True)
        second = await life.end(lost, AttemptOutcome.ACCEPTED)
        repeat = (await life.find(track)).attempt_id
        await life.expect(track, TrackState.ACCEPTED, task_id=first, task_attempt_id=repeat)
        await life.fail(first)
        await life.expect(
            track, TrackState.ACCEPTED, task_id=second, error_code=None, error=None, settled_at=None
        )
        await life.expect(track, TrackState.ACCEPTED, attempt_id=repeat, task_attempt_id=lost)
        await life.fail(second)
        await life.expect(track, TrackState.FAILED, task_id=second, error_code=500, error=_WORDS)

    @_promise
    async def test_the_task_beside_may_fail_first(self) -> None:
        """The failure of a task that is not the one followed changes nothing of the track."""
        life = self.life
        track = life.track()
        lost, _ = await life.submit(track, AttemptOutcome.UNKNOWN)
        _, first = await life.submit(track, again=True)
        second = await life.end(lost, AttemptOutcome.ACCEPTED)
        await life.fail(second)
        await life.expect(track, TrackState.ACCEPTED, task_id=first)
        await life.fail(first)
        await life.expect(track, TrackState.FAILED)

    @_promise
    async def test_the_first_wav_of_two_tasks_is_taken(self) -> None:
        """The first WAV of a track's tasks is its WAV, whichever task it was followed under."""
        life = self.life
        for is_followed in (True, False):
            track = life.track()
            lost, _ = await life.submit(track, AttemptOutcome.UNKNOWN)
            _, first = await life.submit(track, again=True)
            second = await life.end(lost, AttemptOutcome.ACCEPTED)
            winner, loser = (first, second) if is_followed else (second, first)
            await life.succeed(winner)
            await life.expect(track, TrackState.SUCCEEDED, task_id=winner, wav_url=_WAV)
            await life.store(track)
            before = await life.find(track)
            await life.succeed(loser)
            _same(await life.find(track), before, "a track that is stored, after a second WAV")

    @_promise
    async def test_a_wav_comes_while_a_repeat_is_on_the_wire(self) -> None:
        """A task may end while another submit is under way, and its WAV is there afterwards."""
        life = self.life
        track = life.track()
        lost, _ = await life.submit(track, AttemptOutcome.UNKNOWN)
        repeat = await life.begin(track, again=True)
        found = await life.end(lost, AttemptOutcome.ACCEPTED)
        await life.succeed(found)
        _require(
            await life.ledger.begin_attempt(track, life.id(), life.tick(), again=True) is not None,
            "a second submit may be sent while one is under way",
        )
        await life.end(repeat, AttemptOutcome.NOT_CREATED)
        await life.expect(track, TrackState.SUCCEEDED, task_id=found, wav_url=_WAV)

    @_promise
    async def test_a_new_submit_is_followed(self) -> None:
        """A track that had its end is followed under the task of a new submit."""
        life = self.life
        for state in (
            TrackState.FAILED,
            TrackState.SUCCEEDED,
            TrackState.SAVED,
            TrackState.EXPIRED,
        ):
            for outcome in _WITH_TASK:
                track = await life.made(state)
                _, task_id = await life.submit(track, outcome, again=True)
                await life.expect(
                    track,
                    TrackState.ACCEPTED,
                    task_id=task_id,
                    is_adopted=outcome is AttemptOutcome.ADOPTED,
                    settled_at=None,
                    wav_url=None,
                )
                await life.succeed(task_id)
                await life.expect(track, TrackState.SUCCEEDED, task_id=task_id, wav_url=_WAV)

    @_promise
    async def test_a_task_named_again_is_followed_again(self) -> None:
        """A repeat answered with the track's own old task has it followed until it ends anew."""
        life = self.life
        for is_expired in (True, False):
            track = life.track()
            _, task_id = await life.submit(track)
            if is_expired:
                await life.succeed(task_id)
                await life.ledger.mark_expired(track)
            else:
                await life.fail(task_id)
            await life.ledger.requeue([TrackState.EXPIRED, TrackState.FAILED])
            attempt_id = await life.begin(track)
            await life.end(attempt_id, AttemptOutcome.ADOPTED, task_id)
            await life.expect(track, TrackState.ACCEPTED, task_id=task_id)
            await life.succeed(task_id)
            await life.expect(track, TrackState.SUCCEEDED, task_id=task_id)

    @_promise
    async def test_a_paid_track_is_never_free(self) -> None:
        """A submit accepted under a task that is another track's does not leave its track free."""
        life = self.life
        _, task_id = await life.submit(life.track())
        track = life.track()
        attempt_id = await life.begin(track)
        await life.end(attempt_id, AttemptOutcome.ACCEPTED, task_id)
        await life.restart()
        _require((await life.find(track)).state not in _FREE, "what was paid may be sent again")

    # --- settle -----------------------------------------------------------------------------

    @_promise
    async def test_a_wav_is_kept_to_the_byte(self) -> None:
        """A task that ended well has its track succeeded, with the URL exactly as it was sent."""
        life = self.life
        track = life.track()
        attempt_id, task_id = await life.submit(track)
        begun = life.now - 1.0
        await life.succeed(task_id)
        await life.die()
        entry = await life.find(track)
        expected = LedgerEntry(
            index=entry.index,
            track=track,
            state=TrackState.SUCCEEDED,
            attempt_id=attempt_id,
            task_id=task_id,
            task_attempt_id=attempt_id,
            submitted_at=_moment(begun),
            settled_at=_moment(life.now - 1.0),
            wav_url=_WAV,
            settled_by="poll",
        )
        _same(entry, expected, "a track that succeeded")
        _same(str(entry.wav_url), str(_WAV), "its URL")

    @_promise
    async def test_what_named_a_wav_is_told(self) -> None:
        """Whether a callback or a poll named the WAV is told; the first one stays."""
        life = self.life
        called_back, polled = life.track(), life.track()
        _, first = await life.submit(called_back)
        _, second = await life.submit(polled)
        await life.ledger.finish_task(first, life.tick(), wav_url=_WAV, settled_by="callback")
        await life.ledger.finish_task(second, life.tick(), wav_url=_WAV, settled_by="poll")
        await life.ledger.finish_task(first, life.tick(), wav_url=_WAV, settled_by="poll")
        await life.die()
        await life.expect(called_back, TrackState.SUCCEEDED, settled_by="callback")
        await life.expect(polled, TrackState.SUCCEEDED, settled_by="poll")
        failed = life.track()
        _, third = await life.submit(failed)
        await life.fail(third)
        await life.expect(failed, TrackState.FAILED, settled_by=None)

    @_promise
    async def test_hosts_are_told(self) -> None:
        """The hosts kept are told at openings, the one kept last at the end, and at most 100."""
        life = self.life
        _same(life.opening.hosts, (), "the hosts of an empty ledger")
        await life.ledger.keep_host("b.example:443")
        await life.ledger.keep_host("a.example:8443")
        await life.ledger.keep_host("a.example:443")
        await life.ledger.keep_host("b.example:443")
        told = ("a.example:8443", "a.example:443", "b.example:443")
        _same((await life.die()).hosts, told, "the hosts kept")
        await life.ledger.keep_host("a.example:8443")
        for number in range(98):
            await life.ledger.keep_host(f"{number}.example:443")
        most = ("b.example:443", "a.example:8443", *(f"{n}.example:443" for n in range(98)))
        _same((await life.restart()).hosts, most, "the last 100 hosts kept")

    @_promise
    async def test_a_failure_is_told(self) -> None:
        """A task that ended badly has its track failed, with the service's words."""
        life = self.life
        track = life.track()
        _, task_id = await life.submit(track)
        await life.fail(task_id)
        await life.expect(
            track,
            TrackState.FAILED,
            task_id=task_id,
            error_code=500,
            error=_WORDS,
            settled_at=_moment(life.now),
            wav_url=None,
        )
        await life.begin(track)
        await life.expect(track, TrackState.SUBMITTING, error_code=None, error=None)

    @_promise
    async def test_the_first_end_counts(self) -> None:
        """A task ends once; a later end of it changes nothing."""
        life = self.life
        other = URL("https://media.invalid/other.wav")
        for is_good in (True, False):
            _, task_id = await life.submit(life.track())
            await (life.succeed(task_id) if is_good else life.fail(task_id))
            before = await life.told()
            await life.ledger.finish_task(task_id, life.tick(), wav_url=other)
            await life.ledger.finish_task(task_id, life.tick(), error_code=501, error="another")
            await life.unchanged(before, "a second end of a task")

    @_promise
    async def test_an_unheard_of_task_is_ignored(self) -> None:
        """The end of a task that is not there changes nothing."""
        life = self.life
        attempt_id, _ = await life.submit(life.track())
        lost, _ = await life.submit(life.track(), AttemptOutcome.UNKNOWN)
        await life.ledger.record_callback(lost, "heard-of")
        before = await life.told()
        for task_id in (life.id(), attempt_id, "heard-of"):
            await life.succeed(task_id)
            await life.fail(task_id)
        await life.unchanged(before, "the end of a task that is not there")

    # --- files, expiry, trying again --------------------------------------------------------

    @_promise
    async def test_a_stored_track_tells_its_file(self) -> None:
        """A WAV that is a file here is told with its path, size and digest, for good."""
        life = self.life
        track = await life.made(TrackState.SUCCEEDED)
        before = await life.find(track)
        await life.store(track)
        await life.die()
        _same(
            await life.find(track),
            attrs.evolve(
                before, state=TrackState.SAVED, path="å/b.wav", bytes=2**40, sha256="ab" * 32
            ),
            "a track that is stored",
        )

    @_promise
    async def test_only_a_wav_is_stored(self) -> None:
        """A file of a track that has no WAV, or is not there, changes nothing."""
        life = self.life
        tracks = [
            await life.made(state)
            for state in TrackState
            if state not in {TrackState.SUCCEEDED, TrackState.SAVED, TrackState.EXPIRED}
        ]
        before = await life.told()
        for track in [*tracks, life.track()]:
            await life.store(track)
        await life.unchanged(before, "a file of a track without a WAV")

    @_promise
    async def test_a_task_is_as_old_as_its_submit(self) -> None:
        """By our clock a task is made when its submit is sent; one that existed is older."""
        life = self.life
        for outcome in (AttemptOutcome.ACCEPTED, AttemptOutcome.ADOPTED):
            track = life.track()
            _, task_id = await life.submit(track, outcome)
            sent = life.now - 1.0
            life.tick(3600.0)
            await life.succeed(task_id)
            is_adopted = outcome is AttemptOutcome.ADOPTED
            await life.expect(
                track,
                TrackState.SUCCEEDED,
                submitted_at=_moment(sent),
                expires_at=None if is_adopted else _moment(sent + _RETENTION_S),
            )

    @_promise
    async def test_the_time_of_acceptance_is_the_later_one(self) -> None:
        """
        When a task was made, by the service's clock, is kept: the later of two times.

        It is of the task that the track is followed under, and has no part in its state.
        """
        life = self.life
        for ended, settled, expected in (
            (None, None, None),
            (2_000.0, None, 2_000.0),
            (None, 3_000.0, 3_000.0),
            (2_000.0, 3_000.0, 3_000.0),
            (3_000.0, 2_000.0, 3_000.0),
        ):
            track = life.track()
            attempt_id, task_id = await life.begin(track), life.id()
            accepted = AttemptOutcome.ACCEPTED
            await life.ledger.finish_attempt(
                attempt_id, accepted, life.tick(), task_id=task_id, accepted_unix_s=ended
            )
            at = None if ended is None else _moment(ended)
            await life.expect(track, TrackState.ACCEPTED, accepted_at=at)
            await life.ledger.finish_task(
                task_id, life.tick(), wav_url=_WAV, accepted_unix_s=settled
            )
            await life.ledger.finish_task(
                task_id, life.tick(), wav_url=_WAV, accepted_unix_s=9_000.0
            )
            await life.die()
            at = None if expected is None else _moment(expected)
            await life.expect(track, TrackState.SUCCEEDED, accepted_at=at)
            _, task_id = await life.submit(track, again=True)
            await life.expect(track, TrackState.ACCEPTED, accepted_at=None)
            await life.fail(task_id)

    @_promise
    async def test_retry_plans_what_is_named(self) -> None:
        """Tracks in the states named are planned again, as if new, and no others."""
        life = self.life
        for state in (TrackState.REJECTED, TrackState.FAILED, TrackState.EXPIRED):
            tracks = {other: await life.made(other) for other in TrackState}
            before = await life.told()
            _same(await life.ledger.requeue([]), 0, "the tracks planned again of no state")
            await life.unchanged(before, "a retry of no state")
            planned = await life.ledger.requeue(iter([state]))
            _same(planned, before.counts[state], f"the {state} tracks planned again")
            for other, track in tracks.items():
                now = TrackState.PLANNED if other is state else other
                await life.expect(track, now)
            await life.expect(tracks[state], TrackState.PLANNED, error_code=None, error=None)
            await life.begin(tracks[state])
            _same(await life.ledger.requeue([state]), 0, "the tracks planned twice")
            await life.ledger.requeue([TrackState.REJECTED, TrackState.FAILED, TrackState.EXPIRED])

    @_promise
    async def test_retry_forgets_no_bill(self) -> None:
        """What was accepted stays in the bill when its track is planned again."""
        life = self.life
        await life.made(TrackState.FAILED)
        await life.made(TrackState.EXPIRED)
        await life.ledger.requeue([TrackState.FAILED, TrackState.EXPIRED])
        opening = await life.restart()
        _same((opening.accepted, len(opening.ended_unix_s)), (2, 2), "the submits accepted")

    # --- where files are to be --------------------------------------------------------------

    @_promise
    async def test_a_place_is_told_in_every_state(self) -> None:
        """A track in any state has the place it was given last, also after a death."""
        life = self.life
        for state in TrackState:
            if state in {TrackState.SUBMITTING, TrackState.SAVED}:
                continue  # One does not outlive its process, the other has a place.
            track = await life.made(state)
            entry = await life.find(track)
            for path in ("å/1.wav", "å/2 '\";--.wav"):
                await life.place(track, path, f"{state} {path}")
                before = await life.told()
                await life.place(track, path, f"{state} {path}")
                await life.unchanged(before, "a place asked for again")
                await life.die()
                expected = attrs.evolve(entry, path=path)
                _same(await life.find(track), expected, f"a {state} track with a place")

    @_promise
    async def test_a_place_is_one_tracks_alone(self) -> None:
        """A key that another track has is refused, and nothing changes, until that gives it up."""
        life = self.life
        for state in (TrackState.PLANNED, TrackState.SUCCEEDED):
            first, second = await life.made(state), await life.made(state)
            one, other = life.id(), life.id()
            await life.place(first, "Song.wav", one)
            await life.place(second, "Song.wav", other)
            before = await life.told()
            await life.no_place(second, "song.wav", one)
            await life.unchanged(before, "a place that was refused")
            await life.restart()
            await life.no_place(second, "song.wav", one)
            await life.place(first, "Song (2).wav", life.id())
            await life.place(second, "song.wav", one)
            await life.expect(first, state, path="Song (2).wav")
            await life.expect(second, state, path="song.wav")
            await life.place(first, "x.wav", other)

    @_promise
    async def test_one_of_many_has_a_place(self) -> None:
        """However many tracks ask for one place at once, one has it."""
        life = self.life
        tracks = [life.track() for _ in range(20)]
        await life.ledger.add_tracks(tracks)
        key = life.id()
        answers = await _in_order(
            [life.ledger.reserve_path(t, path="x.wav", key=key) for t in tracks]
        )
        _same(answers.count(True), 1, "the tracks that have one place")
        paths = [(await life.find(track)).path for track in tracks]
        _same([path is not None for path in paths], answers, "the tracks that are told a place")

    @_promise
    async def test_a_file_stays_where_it_is(self) -> None:
        """A track whose WAV is a file here can reserve where that is, and nothing else."""
        life = self.life
        for is_repeated in (False, True):
            track, other = await life.made(TrackState.SAVED), await life.made(TrackState.PLANNED)
            if is_repeated:
                await life.begin(track, again=True)
            entry = await life.find(track)
            assert entry.path is not None
            key = life.id()
            before = await life.told()
            await life.no_place(track, "y.wav", key)
            await life.unchanged(before, "a place that was refused to a file")
            await life.place(track, entry.path, key)
            await life.unchanged(before, "a file's own place")
            await life.no_place(other, "z.wav", key)

    @_promise
    async def test_a_track_that_is_not_there_has_no_place(self) -> None:
        """A track that is not there is given no place, and takes none from others."""
        life = self.life
        key, track = life.id(), await life.made(TrackState.PLANNED)
        before = await life.told()
        await life.no_place(life.track(), "x.wav", key)
        await life.unchanged(before, "a place for nobody")
        await life.place(track, "x.wav", key)

    @_promise
    async def test_a_file_elsewhere_gives_up_its_place(self) -> None:
        """A track stored where it was to be keeps others off; stored elsewhere, it does not."""
        life = self.life
        for path in ("x.wav", "y.wav"):
            track, other = [await life.made(TrackState.SUCCEEDED) for _ in range(2)]
            key = life.id()
            await life.place(track, "x.wav", key)
            await life.ledger.mark_saved(track, path=path, size=1, sha256="s")
            await life.expect(track, TrackState.SAVED, path=path)
            await (life.no_place if path == "x.wav" else life.place)(other, "z.wav", key)

    @_promise
    async def test_a_place_outlives_the_wav(self) -> None:
        """What is expired, planned again or converted anew keeps its place, but has no file."""
        life = self.life
        key, other = life.id(), await life.made(TrackState.PLANNED)
        track = life.track()
        await life.ledger.add_tracks([track])
        await life.place(track, "x.wav", key)

        async def expect(state: TrackState) -> None:
            await life.expect(track, state, path="x.wav", bytes=None, sha256=None)
            await life.no_place(other, "y.wav", key)

        _, task_id = await life.submit(track)
        await expect(TrackState.ACCEPTED)
        await life.fail(task_id)
        await expect(TrackState.FAILED)
        await life.ledger.requeue([TrackState.FAILED])
        await expect(TrackState.PLANNED)
        _, task_id = await life.submit(track)
        await life.succeed(task_id)
        await expect(TrackState.SUCCEEDED)
        await life.ledger.mark_expired(track)
        await expect(TrackState.EXPIRED)
        await life.ledger.requeue([TrackState.EXPIRED])
        await expect(TrackState.PLANNED)
        _, task_id = await life.submit(track)
        await life.succeed(task_id)
        await life.ledger.mark_saved(track, path="x.wav", size=1, sha256="s")
        _, task_id = await life.submit(track, again=True)
        await expect(TrackState.ACCEPTED)
        await life.succeed(task_id)
        await expect(TrackState.SUCCEEDED)

    @_promise
    async def test_a_cancelled_reservation_does_no_harm(self) -> None:
        """A cancelled call for a place has been written or not, and said again it is."""
        life = self.life
        for turns in range(12):
            track, other = [await life.made(TrackState.PLANNED) for _ in range(2)]
            key = life.id()
            await _cancelled(life.ledger.reserve_path(track, path="x.wav", key=key), turns)
            entry = await life.find(track)
            _require(entry.path in {None, "x.wav"}, f"a cancelled call left {entry}")
            await life.place(track, "x.wav", key)
            await life.no_place(other, "y.wav", key)

    @_promise
    async def test_a_file_that_is_gone_is_fetched_again(self) -> None:
        """A stored track whose file is gone has succeeded, at its place, and may be stored anew."""
        life = self.life
        track, other = await life.made(TrackState.SUCCEEDED), await life.made(TrackState.PLANNED)
        key = life.id()
        await life.place(track, "x.wav", key)
        succeeded = await life.find(track)
        for is_doubtful in (False, True):
            await life.ledger.mark_saved(track, path="x.wav", size=1, sha256="s")
            attempt_id = succeeded.attempt_id
            if is_doubtful:
                attempt_id, _ = await life.submit(track, AttemptOutcome.UNKNOWN, again=True)
            await life.ledger.mark_missing(track)
            await life.die()
            if is_doubtful:
                await life.expect(track, TrackState.UNKNOWN, bytes=None, sha256=None)
                await life.end(attempt_id, AttemptOutcome.NOT_CREATED)
            expected = attrs.evolve(succeeded, attempt_id=attempt_id)
            _same(await life.find(track), expected, "a track whose file is gone")
            await life.no_place(other, "y.wav", key)
        await life.place(track, "z.wav", key)
        await life.ledger.mark_expired(track)
        await life.expect(track, TrackState.EXPIRED)

    @_promise
    async def test_only_a_wav_is_fetched_again(self) -> None:
        """A track that is neither stored nor expired stays as it is when its file is gone."""
        life = self.life
        fetched = {TrackState.SAVED, TrackState.EXPIRED}
        tracks = [await life.made(state) for state in TrackState if state not in fetched]
        before = await life.told()
        for track in [*tracks, life.track()]:
            await life.ledger.mark_missing(track)
        await life.unchanged(before, "a file gone of a track without one")

    @_promise
    async def test_a_wav_expires_when_the_service_says_so(self) -> None:
        """A succeeded track expires when it is named, whatever its age, and no other does."""
        life = self.life
        tracks = {state: await life.made(state) for state in TrackState}
        adopted, old = life.track(), life.track()
        _, task_id = await life.submit(adopted, AttemptOutcome.ADOPTED)
        await life.succeed(task_id)
        _, task_id = await life.submit(old, ago_s=_RETENTION_S)
        await life.succeed(task_id)
        before = await life.told()
        for track in [*(t for s, t in tracks.items() if s != TrackState.SUCCEEDED), life.track()]:
            await life.ledger.mark_expired(track)
            await life.unchanged(before, "the expiry of a track without a WAV")
        for track in (tracks[TrackState.SUCCEEDED], adopted):
            entry = await life.find(track)
            for _ in range(2):
                await life.ledger.mark_expired(track)
            await life.die()
            expected = attrs.evolve(entry, state=TrackState.EXPIRED)
            _same(await life.find(track), expected, "a track whose WAV is deleted")
        await life.expect(old, TrackState.SUCCEEDED)
        _same(await life.ledger.requeue([TrackState.EXPIRED]), 3, "the tracks planned again")

    @_promise
    async def test_what_is_expired_may_be_fetched_again(self) -> None:
        """An expired track has succeeded as before if its WAV is to be fetched again."""
        life = self.life
        track = await life.made(TrackState.SUCCEEDED)
        await life.place(track, "x.wav", life.id())
        succeeded = await life.find(track)
        await life.ledger.mark_expired(track)
        await life.ledger.mark_missing(track)
        await life.die()
        _same(await life.find(track), succeeded, "a track that is to be fetched again")

    # --- calls ------------------------------------------------------------------------------

    @_promise
    async def test_calls_made_twice_change_nothing(self) -> None:
        """Every call said again with the same ids and values changes nothing."""
        life = self.life
        good, bad = life.track(), life.track()
        ids = [life.id() for _ in range(4)]
        now, later = life.tick(), life.tick()
        accepted, refused = AttemptOutcome.ACCEPTED, AttemptOutcome.REJECTED
        calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
            lambda: life.ledger.begin_attempt(good, ids[0], now),
            lambda: life.ledger.reserve_path(good, path="p", key="k"),
            lambda: life.ledger.record_callback(ids[0], "task"),
            lambda: life.ledger.finish_attempt(ids[0], AttemptOutcome.UNKNOWN, now),
            lambda: life.ledger.record_callback(ids[0], "task"),
            lambda: life.ledger.begin_attempt(good, ids[1], now, again=True),
            lambda: life.ledger.finish_attempt(ids[1], accepted, later, task_id="task"),
            lambda: life.ledger.finish_attempt(ids[0], AttemptOutcome.NOT_CREATED, later),
            lambda: life.ledger.keep_host("a.example:443"),
            lambda: life.ledger.keep_host("b.example:443"),
            lambda: life.ledger.finish_task("task", later, wav_url=_WAV),
            lambda: life.ledger.mark_saved(good, path="p", size=1, sha256="s"),
            lambda: life.ledger.mark_missing(good),
            lambda: life.ledger.mark_expired(good),
            lambda: life.ledger.mark_missing(good),
            lambda: life.ledger.mark_expired(good),
            lambda: life.ledger.mark_saved(good, path="q", size=2, sha256="s"),
            lambda: life.ledger.begin_attempt(bad, ids[2], now),
            lambda: life.ledger.finish_attempt(
                ids[2], refused, later, error_code=422, error=_WORDS
            ),
            lambda: life.ledger.begin_attempt(bad, ids[3], now),
            lambda: life.ledger.finish_attempt(ids[3], accepted, later, task_id="other"),
            lambda: life.ledger.finish_task("other", later, wav_url=_WAV),
            lambda: life.ledger.mark_expired(bad),
        ]
        for number, call in enumerate(calls):
            await call()
            before = await life.told()
            await call()
            await life.unchanged(before, f"call {number}, made twice")
        await life.expect(good, TrackState.SAVED)
        await life.expect(bad, TrackState.EXPIRED)

    @_promise
    async def test_calls_take_effect_in_order(self) -> None:
        """Calls that are under way together take effect in the order in which they were made."""
        life = self.life
        tracks = [life.track() for _ in range(40)]
        await life.ledger.add_tracks(tracks)
        calls: list[Coroutine[Any, Any, object]] = []
        for number, track in enumerate(tracks):
            ledger, attempt_id, task_id = life.ledger, life.id(), life.id()
            calls += [
                ledger.begin_attempt(track, attempt_id, life.tick()),
                ledger.record_callback(attempt_id, task_id),
                ledger.finish_attempt(
                    attempt_id, AttemptOutcome.ACCEPTED, life.tick(), task_id=task_id
                ),
                ledger.finish_task(task_id, life.tick(), wav_url=_WAV),
                ledger.finish_task(task_id, life.tick(), error="too late"),
                ledger.mark_saved(track, path="old.wav", size=1, sha256="ab"),
                ledger.mark_missing(track),
                ledger.reserve_path(track, path="new.wav", key=f"{number}"),
                ledger.mark_saved(track, path=f"{number}.wav", size=1, sha256="ab"),
                ledger.get(track),
            ]
        told = await _in_order(calls)
        _same(told[7::10], [True] * len(tracks), "the answers to calls for a place")
        for number, entry in enumerate(told[9::10]):
            _require(isinstance(entry, LedgerEntry), "a track is not there")
            assert isinstance(entry, LedgerEntry)
            _same(
                (entry.state, entry.path),
                (TrackState.SAVED, f"{number}.wav"),
                "what a track came to, as the last of its calls tells",
            )

    @_promise
    async def test_a_cancelled_call_does_no_harm(self) -> None:
        """A cancelled call has been written or not, and the next calls are as good as ever."""
        life = self.life
        for turns in range(12):
            track, attempt_id = life.track(), life.id()
            await _cancelled(life.ledger.begin_attempt(track, attempt_id, life.tick()), turns)
            entry = await life.ledger.get(track)
            _require(
                entry is None or entry.state is TrackState.SUBMITTING,
                f"a cancelled begin left a track {entry}",
            )
            told = await life.ledger.begin_attempt(track, attempt_id, life.now)
            _same(told, None, "the answer to a begin that was cancelled before")
            task_id = life.id()
            accepted = AttemptOutcome.ACCEPTED
            call = life.ledger.finish_attempt(attempt_id, accepted, life.tick(), task_id=task_id)
            await _cancelled(call, turns)
            entry = await life.find(track)
            _require(
                entry.state in {TrackState.SUBMITTING, TrackState.ACCEPTED},
                f"a cancelled end left a track {entry}",
            )
            await life.end(attempt_id, accepted, task_id)
            await life.expect(track, TrackState.ACCEPTED, task_id=task_id)
        _same((await life.die()).accepted, 12, "the submits accepted")

    # --- the bill ---------------------------------------------------------------------------

    @_promise
    async def test_the_bill_is_bounded(self) -> None:
        """In every history the bill lies between what is accepted and that plus what is unknown."""
        for seed in range(6):
            await _History(self.life, seed).run(steps=40)


async def _in_order(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Make all *calls* before the first has returned; return what they return."""
    return await asyncio.gather(*[asyncio.ensure_future(call) for call in calls])


async def _cancelled(call: Coroutine[Any, Any, object], turns: int) -> None:
    """Make *call*, and cancel it after some turns of the loop."""
    task = asyncio.ensure_future(call)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        _ = task.result()


class _History:
    """A random history, with a service that knows what it charged."""

    def __init__(self, life: _Life, seed: int) -> None:
        self._life = life
        self._random = random.Random(seed)  # noqa: S311 - a history that can be had again
        self._tracks = [life.track() for _ in range(4)]
        self._seed = seed
        # Which submits were charged, and under which task.
        self._charged: dict[str, str] = {}
        self._open: dict[str, Track] = {}
        self._doubts: set[str] = set()
        self._tasks: list[str] = []

    async def run(self, steps: int) -> None:
        life = self._life
        before = (await life.told()).opening
        for _ in range(steps):
            await self._random.choice(
                [
                    *(self._begin, self._begin, self._end, self._end),
                    *(self._resolve, self._settle, self._tidy, self._live_on),
                ]
            )()
            held = Counter(s.state for s in await life.ledger.list_entries(list(TrackState)))
            counts = dict(await life.ledger.count_by_state())
            _same(counts, {state: held[state] for state in TrackState}, "the counts")
        opening = await life.die()
        self._doubts |= set(self._open)
        known = {unknown.attempt_id for unknown in before.unknown}
        unknowns = {unknown.attempt_id for unknown in opening.unknown} - known
        accepted = opening.accepted - before.accepted
        _same(unknowns, self._doubts, f"the unknown submits of history {self._seed}")
        _require(
            accepted <= len(self._charged) <= accepted + len(unknowns),
            f"history {self._seed}: {accepted} accepted, {len(unknowns)} unknown, "
            f"but {len(self._charged)} charged",
        )

    async def _begin(self) -> None:
        life, track = self._life, self._random.choice(self._tracks)
        again = self._random.random() < 0.3
        entry = await life.ledger.get(track)
        attempt_id = life.id()
        told = await life.ledger.begin_attempt(track, attempt_id, life.tick(), again=again)
        _require(
            told == entry if told is not None else track not in self._open.values(),
            f"history {self._seed}: a submit of {entry} was answered with {told}",
        )
        if told is None:
            self._open[attempt_id] = track
            if self._random.random() < 0.6:
                self._charged[attempt_id] = life.id()

    async def _end(self) -> None:
        if not self._open:
            return
        attempt_id = self._random.choice(list(self._open))
        del self._open[attempt_id]
        if self._random.random() < 0.4:
            self._doubts.add(attempt_id)
            await self._life.end(attempt_id, AttemptOutcome.UNKNOWN)
        elif attempt_id in self._charged:
            await self._accept(attempt_id)
        else:
            await self._life.end(attempt_id, self._random.choice(_NOTHING))

    async def _accept(self, attempt_id: str) -> None:
        self._tasks.append(self._charged[attempt_id])
        await self._life.end(attempt_id, AttemptOutcome.ACCEPTED, self._charged[attempt_id])

    async def _resolve(self) -> None:
        if not self._doubts:
            return
        attempt_id = self._random.choice(sorted(self._doubts))
        self._doubts.remove(attempt_id)
        if attempt_id in self._charged:
            await self._accept(attempt_id)
        else:
            await self._life.end(attempt_id, AttemptOutcome.NOT_CREATED)

    async def _settle(self) -> None:
        if self._tasks:
            task_id = self._random.choice(self._tasks)
            is_good = self._random.random() < 0.5
            await (self._life.succeed(task_id) if is_good else self._life.fail(task_id))

    async def _tidy(self) -> None:
        ledger, track = self._life.ledger, self._random.choice(self._tracks)
        match self._random.randrange(4):
            case 0:
                await self._life.store(track)
            case 1:
                await ledger.requeue([TrackState.FAILED, TrackState.REJECTED])
            case 2:
                await ledger.add_tracks(self._tracks)
            case _:
                await ledger.record_callback(self._life.id(), self._life.id())

    async def _live_on(self) -> None:
        is_killed = self._random.random() < 0.5
        await (self._life.die() if is_killed else self._life.restart())
        self._doubts |= set(self._open)
        self._open.clear()
