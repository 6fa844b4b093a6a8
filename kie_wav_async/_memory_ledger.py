"""A ledger in memory, for tests: keeps the promises of `Ledger` but the lasting one."""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import attrs
from yarl import URL

from kie_wav_async._ledger_models import AttemptOutcome, LedgerOpening, Standing, TrackState
from kie_wav_async._models import Track, UnknownSubmit, verify_type
from kie_wav_async.errors import LedgerError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Sequence

#: How many ends of submits an opening tells.
_ENDS: Final = 1_000

_RETRIED: Final = frozenset({TrackState.REFUSED, TrackState.FAILED, TrackState.EXPIRED})

_WITH_TASK: Final = frozenset({AttemptOutcome.ACCEPTED, AttemptOutcome.ADOPTED})

_NOTHING: Final[Mapping[AttemptOutcome, TrackState]] = {
    AttemptOutcome.NOT_CREATED: TrackState.PLANNED,
    AttemptOutcome.REFUSED: TrackState.REFUSED,
    AttemptOutcome.EXISTS: TrackState.EXISTS,
}


@attrs.define(eq=False)
class _Row:
    index: int
    track: Track
    #: Where it stands while no attempt and no task says otherwise.
    base: TrackState = TrackState.PLANNED
    error_code: int | None = None
    error: str | None = None
    attempts: list[_Attempt] = attrs.field(factory=list["_Attempt"])
    tasks: list[_Task] = attrs.field(factory=list["_Task"])


@attrs.define(eq=False)
class _Attempt:
    attempt_id: str
    row: _Row
    begun_unix_s: float
    number: int
    outcome: AttemptOutcome | None = None
    ended_unix_s: float = 0.0
    named: str = ""


@attrs.define(eq=False)
class _Task:
    task_id: str
    attempt: _Attempt
    is_adopted: bool
    settled_unix_s: float | None = None
    wav_url: URL | None = None
    error_code: int | None = None
    error: str | None = None
    stored: tuple[str, int, str] | None = None
    is_expired: bool = False
    #: Planned again since: how it ended says nothing of where the track stands.
    is_past: bool = False


@attrs.define(eq=False)
class _Books:
    """What would be on the disk, and who has it open."""

    rows: dict[Track, _Row] = attrs.field(factory=dict[Track, _Row])
    attempts: dict[str, _Attempt] = attrs.field(factory=dict[str, _Attempt])
    tasks: dict[str, _Task] = attrs.field(factory=dict[str, _Task])
    unknown: dict[str, _Attempt] = attrs.field(factory=dict[str, _Attempt])
    ends: list[float] = attrs.field(factory=list[float])
    owner: MemoryLedger | None = None


class MemoryLedger:
    """
    A `kie_wav_async.ledger.Ledger` for tests: kept in memory, and lost with it.

    Every call takes effect at once and returns without waiting, unless told
    otherwise::

        ledger.hold = asyncio.Event()  # Written, but nobody is told before it is set.
        ledger.fail_with = {"begin": LedgerError("no space left")}
        restarted = ledger.die()  # What the next process finds.

    Attributes:
        calls: Every call made, as its name and its arguments in the order of the
            signature, those left out with their defaults.

        fail_with: What every call but `aclose` raises, or what the calls of the
            names given raise; `None` for nothing.

        fails_late: Whether a call that raises has been written all the same.

        hold: What every call but `aclose`, or those of the names given, waits for
            after it was written; `None` for nothing.
    """

    def __init__(self) -> None:
        """Start empty, and not open."""
        self.calls: list[tuple[str, tuple[object, ...]]] = []
        self.fail_with: LedgerError | Mapping[str, LedgerError] | None = None
        self.fails_late = False
        self.hold: asyncio.Event | Mapping[str, asyncio.Event] | None = None
        self._books = _Books()
        self._opened = 0

    # --- processes --------------------------------------------------------------------------

    def twin(self) -> MemoryLedger:
        """Return another ledger of the same contents, as another process would open them."""
        twin = MemoryLedger()
        twin._books = self._books
        return twin

    def die(self) -> MemoryLedger:
        """
        Return what the next process finds if this one is killed now; it is not open.

        This ledger goes on with contents of its own, which nobody will see.
        """
        left, books = MemoryLedger(), self._books
        left._books, books.owner = books, None
        self._books = copy.deepcopy(books)
        self._books.owner = self if self._opened else None
        return left

    @property
    def is_open(self) -> bool:
        """Whether it was opened more often than closed."""
        return self._opened > 0

    async def open(self, now_unix_s: float) -> LedgerOpening:
        """Open it, and tell where it stands; see `Ledger.open`."""
        await self._call("open", now_unix_s, is_open=False)
        books = self._books
        if books.owner not in {None, self}:
            msg = "another process has the ledger open: end it, or wait until it has ended"
            raise LedgerError(msg)
        books.owner = self
        self._opened += 1
        if self._opened == 1:
            for attempt in books.attempts.values():
                if attempt.outcome is None:
                    self._end(attempt, AttemptOutcome.UNKNOWN, now_unix_s)
        opening = LedgerOpening(
            unknown=tuple(
                UnknownSubmit(
                    track=attempt.row.track,
                    attempt_id=attempt.attempt_id,
                    at=_moment(attempt.ended_unix_s),
                )
                for attempt in books.unknown.values()
            ),
            accepted=sum(
                attempt.outcome is AttemptOutcome.ACCEPTED for attempt in books.attempts.values()
            ),
            ended_unix_s=tuple(books.ends),
            named={a.attempt_id: a.named for a in books.unknown.values() if a.named},
        )
        await self._return("open")
        return opening

    async def aclose(self) -> None:
        """Undo one `open`; see `Ledger.aclose`."""
        self.calls.append(("aclose", ()))
        if self._opened:
            self._opened -= 1
            if not self._opened:
                self._books.owner = None

    # --- tracks -----------------------------------------------------------------------------

    async def plan(self, tracks: Iterable[Track]) -> int:
        """Take in tracks as planned; see `Ledger.plan`."""
        tracks = tuple(tracks)
        for track in tracks:
            verify_type(track, Track, "track")
        await self._call("plan", tracks)
        before = len(self._books.rows)
        for track in tracks:
            self._take_in(track)
        new = len(self._books.rows) - before
        await self._return("plan")
        return new

    async def retry(self, states: Iterable[TrackState]) -> int:
        """Plan tracks again that came to nothing; see `Ledger.retry`."""
        states = frozenset(states)
        if not states <= _RETRIED:
            msg = "only what is refused, failed or expired can be planned again"
            raise ValueError(msg)
        await self._call("retry", states)
        rows = [row for row in self._books.rows.values() if _state(row) in states]
        for row in rows:
            row.base = TrackState.PLANNED
            for task in row.tasks:
                task.is_past = True
        await self._return("retry")
        return len(rows)

    async def find(self, track: Track) -> Standing | None:
        """Return where a track stands; see `Ledger.find`."""
        await self._call("find", track)
        row = self._books.rows.get(track)
        standing = None if row is None else _standing(row)
        await self._return("find")
        return standing

    async def page(
        self, states: Iterable[TrackState], *, after: int = 0, limit: int = 1000
    ) -> Sequence[Standing]:
        """Return the first tracks in some states; see `Ledger.page`."""
        states = frozenset(states)
        await self._call("page", states, after, limit)
        rows = [r for r in self._books.rows.values() if r.index > after and _state(r) in states]
        page = tuple(_standing(row) for row in rows[:limit])
        await self._return("page")
        return page

    async def count(self) -> Mapping[TrackState, int]:
        """Return how many tracks stand where; see `Ledger.count`."""
        await self._call("count")
        counts = dict.fromkeys(TrackState, 0)
        for row in self._books.rows.values():
            counts[_state(row)] += 1
        await self._return("count")
        return counts

    # --- submits ----------------------------------------------------------------------------

    async def begin(
        self, track: Track, attempt_id: str, now_unix_s: float, *, again: bool = False
    ) -> Standing | None:
        """Write down that a submit is about to be sent; see `Ledger.begin`."""
        await self._call("begin", track, attempt_id, now_unix_s, again)
        standing = self._begin(track, attempt_id, now_unix_s, again=again)
        await self._return("begin")
        return standing

    async def end(
        self,
        attempt_id: str,
        outcome: AttemptOutcome,
        now_unix_s: float,
        *,
        task_id: str = "",
        error_code: int | None = None,
        error: str | None = None,
    ) -> None:
        """Write down what came of a submit; see `Ledger.end`."""
        if (outcome in _WITH_TASK) != bool(task_id):
            msg = "an outcome names its task if and only if it is accepted or adopted"
            raise ValueError(msg)
        await self._call("end", attempt_id, outcome, now_unix_s, task_id, error_code, error)
        attempt = self._books.attempts.get(attempt_id)
        if attempt is not None:
            self._end(
                attempt,
                outcome,
                now_unix_s,
                task_id=task_id,
                error_code=error_code,
                error=error,
            )
        await self._return("end")

    async def hear(self, attempt_id: str, task_id: str) -> None:
        """Write down which task a callback names for a submit; see `Ledger.hear`."""
        await self._call("hear", attempt_id, task_id)
        attempt = self._books.attempts.get(attempt_id)
        if attempt is not None and attempt.outcome in {None, AttemptOutcome.UNKNOWN}:
            attempt.named = attempt.named or task_id
        await self._return("hear")

    # --- tasks ------------------------------------------------------------------------------

    async def settle(
        self,
        task_id: str,
        now_unix_s: float,
        *,
        wav_url: URL | None = None,
        error_code: int | None = None,
        error: str | None = None,
    ) -> None:
        """Write down how a task ended; see `Ledger.settle`."""
        await self._call("settle", task_id, now_unix_s, wav_url, error_code, error)
        task = self._books.tasks.get(task_id)
        if task is not None and task.settled_unix_s is None:
            task.settled_unix_s = now_unix_s
            task.wav_url = wav_url
            if wav_url is None:
                task.error_code, task.error = error_code, error
        await self._return("settle")

    async def store(self, track: Track, *, path: str, size: int, sha256: str) -> None:
        """Write down that a WAV is a file here; see `Ledger.store`."""
        await self._call("store", track, path, size, sha256)
        row = self._books.rows.get(track)
        if row is not None and _state(row) is TrackState.SUCCEEDED:
            task = _task(row)
            assert task is not None  # noqa: S101 - what has succeeded has a task
            task.stored = (path, size, sha256)
        await self._return("store")

    async def expire(self, now_unix_s: float) -> int:
        """Give up the WAVs that are deleted by now; see `Ledger.expire`."""
        await self._call("expire", now_unix_s)
        expired = 0
        for row in self._books.rows.values():
            expires_at = _standing(row).expires_at
            if _state(row) is TrackState.SUCCEEDED and expires_at is not None:
                task = _task(row)
                if task is not None and expires_at <= _moment(now_unix_s):
                    task.is_expired = True
                    expired += 1
        await self._return("expire")
        return expired

    # --- inside -----------------------------------------------------------------------------

    async def _call(self, name: str, *args: object, is_open: bool = True) -> None:
        """Note a call, and refuse it if it is to fail before it is written."""
        self.calls.append((name, args))
        if is_open and not self._opened:
            msg = "the ledger is not open: await open() first"
            raise RuntimeError(msg)
        if not self.fails_late:
            self._fail(name)

    async def _return(self, name: str) -> None:
        """Wait, or fail, now that a call was written."""
        hold = self.hold.get(name) if isinstance(self.hold, Mapping) else self.hold
        if hold is not None:
            await hold.wait()
        self._fail(name)

    def _fail(self, name: str) -> None:
        fail_with = self.fail_with
        error = fail_with.get(name) if isinstance(fail_with, Mapping) else fail_with
        if error is not None:
            raise error.about()

    def _take_in(self, track: Track) -> _Row:
        rows = self._books.rows
        return rows.setdefault(track, _Row(index=len(rows) + 1, track=track))

    def _begin(
        self, track: Track, attempt_id: str, now_unix_s: float, *, again: bool
    ) -> Standing | None:
        books = self._books
        row = books.rows.get(track)
        known = books.attempts.get(attempt_id)
        if known is not None:
            if row is None or known.row is not row:
                msg = f"attempt {attempt_id} is another track's"
                raise ValueError(msg)
            return None if known.outcome is None else _standing(row)
        if row is not None:
            state = _state(row)
            free = {TrackState.PLANNED, TrackState.REFUSED, TrackState.FAILED}
            if state is TrackState.SUBMITTING or not (again or state in free):
                return _standing(row)
        row = self._take_in(track)
        attempt = _Attempt(attempt_id, row, now_unix_s, len(books.attempts))
        books.attempts[attempt_id] = attempt
        row.attempts.append(attempt)
        return None

    def _end(
        self,
        attempt: _Attempt,
        outcome: AttemptOutcome,
        now_unix_s: float,
        *,
        task_id: str = "",
        error_code: int | None = None,
        error: str | None = None,
    ) -> None:
        books = self._books
        row = attempt.row
        if attempt.outcome is AttemptOutcome.UNKNOWN:
            if outcome not in {AttemptOutcome.ACCEPTED, AttemptOutcome.NOT_CREATED}:
                return
            del books.unknown[attempt.attempt_id]
        elif attempt.outcome is None:
            attempt.ended_unix_s = now_unix_s
            books.ends = [*books.ends, now_unix_s][-_ENDS:]
        else:
            return
        attempt.outcome = outcome
        if outcome is AttemptOutcome.UNKNOWN:
            books.unknown[attempt.attempt_id] = attempt
        elif outcome in _WITH_TASK:
            if task_id not in books.tasks:
                task = _Task(task_id, attempt, outcome is AttemptOutcome.ADOPTED)
                books.tasks[task_id] = task
                row.tasks.append(task)
        elif attempt is row.attempts[-1]:
            row.base = _NOTHING[outcome]
            row.error_code, row.error = error_code, error
            for task in row.tasks:
                if task.settled_unix_s is not None and task.wav_url is None:
                    task.is_past = True


def _state(row: _Row) -> TrackState:
    """Tell where a track stands from what became of its submits and its tasks."""
    if any(attempt.outcome is None for attempt in row.attempts):
        return TrackState.SUBMITTING
    task = _task(row)
    if task is not None and task.settled_unix_s is None:
        return TrackState.ACCEPTED
    doubts = [a.number for a in row.attempts if a.outcome is AttemptOutcome.UNKNOWN]
    latest = task.attempt.number if task is not None and _has_wav(task) else -1
    # A WAV that came of a later submit stands, whatever became of an earlier one.
    if doubts and doubts[-1] > latest:
        return TrackState.UNKNOWN
    return row.base if task is None or task.is_past else _end_of(task)


def _end_of(task: _Task) -> TrackState:
    if task.wav_url is None:
        return TrackState.FAILED
    if task.stored is not None:
        return TrackState.STORED
    return TrackState.EXPIRED if task.is_expired else TrackState.SUCCEEDED


def _has_wav(task: _Task) -> bool:
    return task.wav_url is not None and not task.is_past


def _task(row: _Row) -> _Task | None:
    """Return the task that is followed; else the latest with a WAV; else the latest."""
    live = [task for task in row.tasks if task.settled_unix_s is None]
    if live:
        return live[0]
    tasks = [task for task in row.tasks if _has_wav(task)] or row.tasks
    return tasks[-1] if tasks else None


def _standing(row: _Row) -> Standing:
    state = _state(row)
    task = _task(row)
    standing = Standing(
        index=row.index,
        track=row.track,
        state=state,
        attempt_id=row.attempts[-1].attempt_id if row.attempts else "",
    )
    if state is TrackState.REFUSED:
        standing = attrs.evolve(standing, error_code=row.error_code, error=row.error)
    if task is None:
        return standing
    if state is TrackState.FAILED:
        standing = attrs.evolve(standing, error_code=task.error_code, error=task.error)
    path, size, sha256 = task.stored or (None, None, None)
    return attrs.evolve(
        standing,
        task_id=task.task_id,
        is_adopted=task.is_adopted,
        submitted_at=_moment(task.attempt.begun_unix_s),
        settled_at=None if task.settled_unix_s is None else _moment(task.settled_unix_s),
        wav_url=task.wav_url,
        path=path,
        bytes=size,
        sha256=sha256,
    )


def _moment(unix_s: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(unix_s, dt.UTC)
