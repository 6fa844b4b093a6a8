"""A ledger in memory, for tests: keeps the promises of `Ledger` but the lasting one."""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Self

from kie_wav_async._support.validation import verify_id, verify_type
from kie_wav_async.core.track_states import AttemptOutcome, TrackState
from kie_wav_async.errors import LedgerError
from kie_wav_async.ledger.memory_tables import Attempt, Tables
from kie_wav_async.ledger.models import (
    LedgerEntry,
    RecoveryState,
    verify_host,
    verify_path,
    verify_settled_by,
)
from kie_wav_async.models import SettledBy, Track, UnknownSubmit

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Sequence

    from yarl import URL

#: How many ends of submits an opening tells.


#: What a submit that has ended may turn out to have come to.
_BASE_STATE_AFTER: Final = {
    AttemptOutcome.REJECTED: TrackState.REJECTED,
    AttemptOutcome.EXISTS_WITHOUT_ID: TrackState.EXISTS_WITHOUT_ID,
}


class MemoryLedger:
    """
    A `kie_wav_async.ledger.Ledger` for tests: kept in memory, and lost with it.

    Every call takes effect at once and returns without waiting, unless told
    otherwise::

        ledger.hold = asyncio.Event()  # Written, but nobody is told before it is set.
        ledger.fail_with = {"begin_attempt": LedgerError("no space left")}
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
        self.calls: list[tuple[str, tuple[object, ...]]] = []
        self.fail_with: LedgerError | Mapping[str, LedgerError] | None = None
        self.fails_late = False
        self.hold: asyncio.Event | Mapping[str, asyncio.Event] | None = None
        self._tables = Tables()
        self._opened = 0

    # --- processes --------------------------------------------------------------------------

    def twin(self) -> Self:
        """Return another ledger of the same contents, as another process would open them."""
        twin = type(self)()
        twin._tables = self._tables  # noqa: SLF001 - one of its own kind
        return twin

    def die(self) -> Self:
        """
        Return what the next process finds if this one is killed now; it is not open.

        This ledger goes on with contents of its own, which nobody will see.
        """
        left, tables = type(self)(), self._tables
        left._tables = tables  # noqa: SLF001 - one of its own kind
        tables.owner = None
        self._tables = copy.deepcopy(tables)
        self._tables.owner = self if self._opened else None
        return left

    @property
    def is_open(self) -> bool:
        """Whether it was opened more often than closed."""
        return self._opened > 0

    async def open(self, now_unix_s: float) -> RecoveryState:
        """Open it, and tell where it stands; see `Ledger.open`."""
        await self._call("open", now_unix_s, is_open=False)
        tables = self._tables
        if tables.owner not in {None, self}:
            msg = "another process has the ledger open"
            raise LedgerError(msg, advice="end it, or wait until it has ended")
        tables.owner = self
        self._opened += 1
        if self._opened == 1:
            for attempt in tables.attempts.values():
                if attempt.outcome is None:
                    tables.end(attempt, AttemptOutcome.UNKNOWN, now_unix_s)
        opening = RecoveryState(
            unknown=tuple(
                UnknownSubmit(
                    track=attempt.row.track,
                    attempt_id=attempt.attempt_id,
                    at=_moment(attempt.ended_unix_s),
                )
                for attempt in tables.unknown.values()
            ),
            accepted=sum(
                attempt.outcome is AttemptOutcome.ACCEPTED for attempt in tables.attempts.values()
            ),
            ended_unix_s=tuple(tables.ends),
            callback_tasks={
                a.attempt_id: a.callback_task for a in tables.unknown.values() if a.callback_task
            },
            hosts=tuple(tables.hosts),
        )
        try:
            await self._return("open")
        except BaseException:
            self._close()
            raise
        return opening

    async def aclose(self) -> None:
        """Undo one `open`; see `Ledger.aclose`."""
        self.calls.append(("aclose", ()))
        if self._opened:
            self._close()

    def _close(self) -> None:
        self._opened -= 1
        if not self._opened:
            self._tables.owner = None

    # --- tracks -----------------------------------------------------------------------------

    async def add_tracks(self, tracks: Iterable[Track]) -> int:
        """Take in tracks as planned; see `Ledger.add_tracks`."""
        tracks = tuple(tracks)
        for track in tracks:
            verify_type(track, Track, "track")
        await self._call("add_tracks", tracks)
        before = len(self._tables.rows)
        for track in tracks:
            self._tables.add(track)
        new = len(self._tables.rows) - before
        await self._return("add_tracks")
        return new

    async def requeue(self, states: Iterable[TrackState]) -> int:
        """Plan tracks again that came to nothing; see `Ledger.requeue`."""
        states = frozenset(map(TrackState, states))
        if not all(state.can_be_requeued for state in states):
            msg = "only what is rejected, failed or expired can be planned again"
            raise ValueError(msg)
        await self._call("requeue", states)
        rows = [row for row in self._tables.rows.values() if row.state() in states]
        for row in rows:
            row.follow(None)
        await self._return("requeue")
        return len(rows)

    async def get(self, track: Track) -> LedgerEntry | None:
        """Return where a track stands; see `Ledger.get`."""
        await self._call("get", track)
        row = self._tables.rows.get(track)
        entry = None if row is None else row.entry()
        await self._return("get")
        return entry

    async def get_by_task(self, task_id: str) -> LedgerEntry | None:
        """Return where the track of a task stands; see `Ledger.get_by_task`."""
        await self._call("get_by_task", task_id)
        row = self._tables.row_of_task(task_id)
        entry = None if row is None else row.entry()
        await self._return("get_by_task")
        return entry

    async def list_entries(
        self, states: Iterable[TrackState], *, after: int = 0, limit: int = 1000
    ) -> Sequence[LedgerEntry]:
        """Return the first tracks in some states; see `Ledger.list_entries`."""
        states = frozenset(states)
        await self._call("list_entries", states, after, limit)
        rows = [r for r in self._tables.rows.values() if r.index > after and r.state() in states]
        page = tuple(row.entry() for row in rows[:limit])
        await self._return("list_entries")
        return page

    async def count_by_state(self) -> Mapping[TrackState, int]:
        """Return how many tracks stand where; see `Ledger.count_by_state`."""
        await self._call("count_by_state")
        counts = dict.fromkeys(TrackState, 0)
        for row in self._tables.rows.values():
            counts[row.state()] += 1
        await self._return("count_by_state")
        return counts

    # --- submits ----------------------------------------------------------------------------

    async def begin_attempt(
        self, track: Track, attempt_id: str, now_unix_s: float, *, again: bool = False
    ) -> LedgerEntry | None:
        """Write down that a submit is about to be sent; see `Ledger.begin_attempt`."""
        await self._call("begin_attempt", track, attempt_id, now_unix_s, again)
        entry = self._begin(track, attempt_id, now_unix_s, again=again)
        await self._return("begin_attempt")
        return entry

    async def finish_attempt(
        self,
        attempt_id: str,
        outcome: AttemptOutcome,
        now_unix_s: float,
        *,
        task_id: str = "",
        error_code: int | None = None,
        error: str | None = None,
        accepted_unix_s: float | None = None,
    ) -> None:
        """Write down what came of a submit; see `Ledger.finish_attempt`."""
        outcome = AttemptOutcome(outcome)
        if outcome.has_task:
            verify_id(task_id, "task_id")
        elif task_id:
            msg = f"an outcome of {outcome} names no task: {task_id!r}"
            raise ValueError(msg)
        given = (task_id, error_code, error, accepted_unix_s)
        await self._call("finish_attempt", attempt_id, outcome, now_unix_s, *given)
        attempt = self._tables.attempts.get(attempt_id)
        if attempt is not None:
            words = (error_code, error)
            self._end(attempt, outcome, now_unix_s, task_id=task_id, words=words)
            if task_id and attempt.task_id == task_id and attempt.outcome is outcome:
                attempt.accepted_unix_s = accepted_unix_s
        await self._return("finish_attempt")

    def _end(
        self,
        attempt: Attempt,
        outcome: AttemptOutcome,
        now_unix_s: float,
        *,
        task_id: str,
        words: tuple[int | None, str | None] = (None, None),
    ) -> None:
        if not self._tables.end(attempt, outcome, now_unix_s):
            return
        row = attempt.row
        if outcome.has_task:
            attempt.task_id = task_id
            self._tables.by_task.setdefault(task_id, []).append(attempt)
            # Found out late, a task is not waited for if there is a WAV by now.
            is_late = row.base_state.has_wav and attempt.number <= row.superseded_through
            if not row.is_followed() and not is_late:
                row.follow(attempt)
        elif outcome in _BASE_STATE_AFTER and not row.base_state.is_converted:
            row.base_state = _BASE_STATE_AFTER[outcome]
            row.error_code, row.error = words

    async def resolve(self, attempt_id: str, now_unix_s: float, *, task_id: str = "") -> bool:
        """Write down the user's word on a submit; see `Ledger.resolve`."""
        if task_id:
            verify_id(task_id, "task_id")
        await self._call("resolve", attempt_id, now_unix_s, task_id)
        attempt = self._tables.attempts.get(attempt_id)
        base = None if attempt is None else attempt.resolved_from or attempt.outcome
        is_taken = base is not None and base.can_be_resolved
        if attempt is not None and base is not None and is_taken:
            word = AttemptOutcome.NOT_CREATED
            if task_id:
                is_found = base is AttemptOutcome.EXISTS_WITHOUT_ID
                word = AttemptOutcome.ADOPTED if is_found else AttemptOutcome.ACCEPTED
            if (attempt.outcome, attempt.task_id) != (word, task_id):
                if attempt.resolved_from is not None:
                    self._tables.take_back(attempt)
                self._end(attempt, word, now_unix_s, task_id=task_id)
                attempt.resolved_from = base
        await self._return("resolve")
        return is_taken

    async def record_callback(self, attempt_id: str, task_id: str) -> None:
        """Write down which task a callback names for a submit; see `Ledger.record_callback`."""
        await self._call("record_callback", attempt_id, task_id)
        attempt = self._tables.attempts.get(attempt_id)
        if attempt is not None and attempt.outcome in {None, AttemptOutcome.UNKNOWN}:
            attempt.callback_task = attempt.callback_task or task_id
        await self._return("record_callback")

    # --- tasks ------------------------------------------------------------------------------

    async def keep_host(self, host: str) -> None:
        """Write down that the service named a file on a host; see `Ledger.keep_host`."""
        verify_host(host)
        await self._call("keep_host", host)
        self._tables.keep_host(host)
        await self._return("keep_host")

    async def finish_task(
        self,
        task_id: str,
        now_unix_s: float,
        *,
        wav_url: URL | None = None,
        settled_by: SettledBy = "poll",
        error_code: int | None = None,
        error: str | None = None,
        accepted_unix_s: float | None = None,
    ) -> None:
        """Write down how a task ended; see `Ledger.finish_task`."""
        verify_settled_by(settled_by)
        given = (wav_url, settled_by, error_code, error, accepted_unix_s)
        await self._call("finish_task", task_id, now_unix_s, *given)
        made = self._tables.by_task.get(task_id, [])
        ending = [attempt for attempt in made if not attempt.is_task_over]
        for attempt in ending:
            attempt.is_task_over, attempt.has_wav = True, wav_url is not None
            known = [s for s in (attempt.accepted_unix_s, accepted_unix_s) if s is not None]
            attempt.accepted_unix_s = max(known, default=None)
        for attempt in reversed(ending):
            row = attempt.row
            if wav_url is not None and not row.base_state.has_wav:
                row.follow(attempt, TrackState.SUCCEEDED)
                row.superseded_through = len(row.attempts)
                row.settled_unix_s, row.wav_url = now_unix_s, wav_url
                row.settled_by = settled_by
            elif wav_url is None and attempt is row.current_attempt:
                others = [a for a in row.attempts if a.task_id and not a.is_task_over]
                if others:
                    row.follow(others[-1])
                else:
                    row.base_state, row.settled_unix_s = TrackState.FAILED, now_unix_s
                    row.error_code, row.error = error_code, error
        await self._return("finish_task")

    async def reserve_path(self, track: Track, *, path: str, key: str) -> bool:
        """Write down where a WAV is to be saved; see `Ledger.reserve_path`."""
        verify_path(path, key)
        await self._call("reserve_path", track, path, key)
        row = self._tables.rows.get(track)
        is_free = row is not None and self._tables.by_key.get(key, row) is row
        if row is None or (row.base_state is TrackState.SAVED and row.path != path):
            is_free = False
        elif is_free:
            self._tables.place(row, path, key)
        await self._return("reserve_path")
        return is_free

    async def mark_saved(self, track: Track, *, path: str, size: int, sha256: str) -> None:
        """Write down that a WAV is a file here; see `Ledger.mark_saved`."""
        await self._call("mark_saved", track, path, size, sha256)
        row = self._tables.rows.get(track)
        if row is not None and row.base_state.is_converted:
            self._tables.place(row, path, row.key if row.path == path else None)
            row.base_state, row.file = TrackState.SAVED, (size, sha256)
        await self._return("mark_saved")

    async def mark_missing(self, track: Track) -> None:
        """Write down that a WAV is to be fetched again; see `Ledger.mark_missing`."""
        await self._call("mark_missing", track)
        row = self._tables.rows.get(track)
        if row is not None and row.base_state.is_final:
            row.base_state, row.file = TrackState.SUCCEEDED, None
        await self._return("mark_missing")

    async def mark_expired(self, track: Track) -> None:
        """Write down that the service has deleted a WAV; see `Ledger.mark_expired`."""
        await self._call("mark_expired", track)
        row = self._tables.rows.get(track)
        if row is not None and row.state() is TrackState.SUCCEEDED:
            row.base_state = TrackState.EXPIRED
        await self._return("mark_expired")

    # --- inside -----------------------------------------------------------------------------

    async def _call(self, name: str, *args: object, is_open: bool = True) -> None:
        """Note a call, and refuse it if it is to fail before it is written."""
        self.calls.append((name, args))
        if is_open and not self._opened:
            msg = "the ledger is not open"
            raise LedgerError(msg, advice="call open()")
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

    def _begin(
        self, track: Track, attempt_id: str, now_unix_s: float, *, again: bool
    ) -> LedgerEntry | None:
        row = self._tables.rows.get(track)
        known = self._tables.attempts.get(attempt_id)
        if known is not None:
            if row is None or known.row is not row:
                msg = f"attempt {attempt_id} is of another track; nothing was sent"
                raise LedgerError(msg, advice="take a new id", track=track)
            return None if known.outcome is None else row.entry()
        if row is not None:
            is_under_way = any(attempt.outcome is None for attempt in row.attempts)
            if is_under_way if again else not row.state().may_be_sent:
                return row.entry()
        self._tables.begin(self._tables.add(track), attempt_id, now_unix_s)
        return None


def _moment(unix_s: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(unix_s, dt.UTC)
