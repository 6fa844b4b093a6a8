"""
The calls of a ledger on its tables: the rules by which a track moves between its states.

Plain calls on one `sqlite3` connection; transactions are the caller's. Each call
may be made again after a failure that left it open whether it was written.
"""

from __future__ import annotations

import heapq
import itertools
import sys
from typing import TYPE_CHECKING, Final

from kie_wav_async.core.known_hosts import MAX_HOSTS
from kie_wav_async.core.track_states import LATER_OUTCOMES, AttemptOutcome, TrackState
from kie_wav_async.errors import LedgerError
from kie_wav_async.ledger.models import AttemptEntry, LedgerEntry, LedgerMark, RecoveryState
from kie_wav_async.ledger.sqlite.track_rows import (
    OPEN,
    SELECT_ENTRY,
    TrackRows,
    entry_of,
    moment_of,
)
from kie_wav_async.models import Track, UnknownSubmit

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = ["LedgerTables"]

#: How many of the last submits an opening tells the end of.
LAST_ENDS: Final = 1_000

# What an attempt may come to, by what it is; everything else stays what it is.
_ENDS: Final[Mapping[str, frozenset[AttemptOutcome]]] = {
    OPEN: frozenset(AttemptOutcome),
    **{str(outcome): later for outcome, later in LATER_OUTCOMES.items()},
}


class LedgerTables(TrackRows):
    """
    The calls of a ledger, as statements on *connection*.

    Nothing here opens or ends a transaction. What is written is checked before
    anything is.
    """

    def recover(self, now_unix_s: float) -> None:
        """Make every attempt that is open one of unknown fate since *now_unix_s*."""
        left = self._all("SELECT DISTINCT track FROM attempt WHERE outcome = ?", OPEN)
        self._run(
            "UPDATE attempt SET outcome = ?, ended = ? WHERE outcome = ?",
            *(AttemptOutcome.UNKNOWN, now_unix_s, OPEN),
        )
        for (index,) in left:
            self._restate(index)

    def opening(self, *, is_reader: bool) -> RecoveryState:
        """
        Tell where the ledger stands.

        To a reader (*is_reader*) an attempt under way is as good as unknown: its
        process may have died.
        """
        doubtful = self._all(
            "SELECT music_task_id, audio_id, title, id, coalesce(ended, began), callback_task"
            " FROM attempt JOIN track ON idx = track WHERE outcome IN (?, ?)"
            " ORDER BY coalesce(ended, began), n",
            *(OPEN if is_reader else AttemptOutcome.UNKNOWN, AttemptOutcome.UNKNOWN),
        )
        accepted = self._one(
            "SELECT count(*) FROM attempt WHERE outcome = ?", AttemptOutcome.ACCEPTED
        )
        ends = self._all(
            "SELECT ended FROM attempt WHERE ended IS NOT NULL ORDER BY ended DESC LIMIT ?",
            LAST_ENDS,
        )
        return RecoveryState(
            unknown=tuple(
                UnknownSubmit(Track(music, audio, title=title), attempt_id, moment_of(at))
                for music, audio, title, attempt_id, at, _ in doubtful
            ),
            accepted=0 if accepted is None else accepted[0],
            ended_unix_s=tuple(ended for (ended,) in reversed(ends)),
            callback_tasks={row[3]: row[5] for row in doubtful if row[5] is not None},
            hosts=tuple(name for (name,) in self._all("SELECT name FROM host ORDER BY n")),
        )

    def mark(self) -> LedgerMark:
        """Tell which ledger it is, and how many submits were begun with it."""
        row = self._one("SELECT id, (SELECT max(n) FROM attempt) FROM ledger")
        assert row is not None  # noqa: S101 - its tables were made with one
        return LedgerMark(row[0], row[1] or 0)

    def add_tracks(self, rows: Sequence[tuple[str, str, str | None]]) -> int:
        """Take in what is not there, and titles that were missing; return how many are new."""
        new = self._db.executemany(
            "INSERT INTO track (music_task_id, audio_id, title) VALUES (?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            rows,
        ).rowcount
        if new < len(rows):
            self._db.executemany(
                "UPDATE track SET title = ?"
                " WHERE music_task_id = ? AND audio_id = ? AND title IS NULL",
                [(title, music, audio) for music, audio, title in rows if title is not None],
            )
        return max(new, 0)  # -1 of no rows at all.

    def requeue(self, states: Collection[TrackState]) -> int:
        """Plan again what is in one of *states*; return how many."""
        return sum(
            self._run(
                "UPDATE track SET state = 'planned', base_state = 'planned',"
                " current_attempt = NULL, settled = NULL, wav_url = NULL, error_code = NULL,"
                " error = NULL WHERE state = ?",
                state,
            ).rowcount
            for state in states
        )

    def get(self, track: Track) -> LedgerEntry | None:
        """Return where *track* stands."""
        row = self._one(
            f"{SELECT_ENTRY} WHERE music_task_id = ? AND audio_id = ?",
            *(track.music_task_id, track.audio_id),
        )
        return None if row is None else entry_of(row)

    def get_by_task(self, task_id: str) -> LedgerEntry | None:
        """Return where the track stands that is followed under a task, or last was given it."""
        found = self._one(
            "SELECT track FROM attempt JOIN track ON idx = track WHERE task_id = ?"
            " ORDER BY n = current_attempt DESC, n DESC LIMIT 1",
            task_id,
        )
        row = found and self._one(f"{SELECT_ENTRY} WHERE track.idx = ?", *found)
        return None if row is None else entry_of(row)

    def list_entries(
        self, states: Collection[TrackState], after: int, limit: int
    ) -> list[LedgerEntry]:
        """Return the first tracks in one of *states* above *after*."""
        # One walk of the index for each state: with IN, SQLite would sort all there are.
        walks = [
            self._run(
                f"{SELECT_ENTRY} WHERE state = ? AND track.idx > ? ORDER BY track.idx LIMIT ?",
                *(state, after, limit),
            )
            for state in states
        ]
        try:
            # The index comes first in a row, and no two have the same.
            return [entry_of(row) for row in itertools.islice(heapq.merge(*walks), limit)]
        finally:
            for walk in walks:
                walk.close()

    def count_by_state(self) -> dict[TrackState, int]:
        """Count the tracks in each state."""
        counted = dict.fromkeys(TrackState, 0)
        for state, number in self._all("SELECT state, count(*) FROM track GROUP BY state"):
            counted[TrackState(state)] = number
        return counted

    def begin_attempt(
        self, track: Track, attempt_id: str, now_unix_s: float, *, again: bool
    ) -> LedgerEntry | None:
        """Open an attempt; `None` if it may be sent."""
        entry = self.get(track)
        known = self._one("SELECT track, outcome FROM attempt WHERE id = ?", attempt_id)
        if known is not None:
            if entry is None or entry.index != known[0]:
                msg = f"attempt {attempt_id} is of another track; nothing was sent"
                raise LedgerError(msg, advice="take a new id", track=track)
            return None if known[1] == OPEN else entry
        if entry is not None and not self._may_begin(entry, again=again):
            return entry
        if entry is None:
            self.add_tracks([(track.music_task_id, track.audio_id, track.title)])
            entry = self.get(track)
            assert entry is not None  # noqa: S101 - it was put there a line above
        index = entry.index
        number = self._run(
            "INSERT INTO attempt (id, track, began) VALUES (?, ?, ?)",
            *(attempt_id, index, now_unix_s),
        ).lastrowid
        self._run(
            "UPDATE track SET latest = ?, title = coalesce(title, ?) WHERE idx = ?",
            *(number, track.title, index),
        )
        self._run(
            "UPDATE track SET base_state = 'planned', current_attempt = NULL, settled = NULL,"
            " error_code = NULL, error = NULL"
            " WHERE idx = ? AND base_state IN ('rejected', 'failed')",
            index,
        )
        self._restate(index)
        return None

    def finish_attempt(
        self,
        attempt_id: str,
        outcome: AttemptOutcome,
        now_unix_s: float,
        *,
        task_id: str,
        accepted_unix_s: float | None,
        error_code: int | None,
        error: str | None,
    ) -> None:
        """Close an attempt, or find out better about one."""
        row = self._one("SELECT n, track, outcome FROM attempt WHERE id = ?", attempt_id)
        if row is None or outcome not in _ENDS.get(row[2], ()):
            return
        number, index, before = row
        # The end of a submit is when it left the wire, not when its fate was found out.
        self._run(
            "UPDATE attempt SET outcome = ?, ended = coalesce(ended, ?), task_id = ?,"
            " accepted = ?, error_code = ?, error = ?, resolved_from = NULL WHERE n = ?",
            *(outcome, now_unix_s, task_id if outcome.has_task else None),
            *(accepted_unix_s, error_code, error, number),
        )
        if outcome.has_task:
            self._follow_first(index, number)
        elif outcome in (AttemptOutcome.REJECTED, AttemptOutcome.EXISTS_WITHOUT_ID):
            self._run(
                "UPDATE track SET base_state = ?, error_code = ?, error = ?"
                " WHERE idx = ? AND base_state NOT IN ('succeeded', 'saved', 'expired')",
                *(TrackState(outcome.value), error_code, error, index),
            )
        elif before == AttemptOutcome.EXISTS_WITHOUT_ID:
            self._run(
                "UPDATE track SET base_state = 'planned', error_code = NULL, error = NULL"
                " WHERE idx = ? AND base_state = 'exists_without_id'",
                index,
            )
        self._restate(index)

    def resolve(self, attempt_id: str, now_unix_s: float, task_id: str) -> bool:
        """Take the user's word on an attempt, in place of an earlier one; tell whether."""
        row = self._one(
            "SELECT n, track, outcome, coalesce(resolved_from, outcome), coalesce(task_id, '')"
            " FROM attempt WHERE id = ?",
            attempt_id,
        )
        if row is None:
            return False
        number, index, outcome, base, before = row
        if base == OPEN or not AttemptOutcome(base).can_be_resolved:
            return False
        if not task_id:
            word = AttemptOutcome.NOT_CREATED
        elif base == AttemptOutcome.EXISTS_WITHOUT_ID:
            word = AttemptOutcome.ADOPTED
        else:
            word = AttemptOutcome.ACCEPTED
        if (outcome, before) == (word, task_id):
            return True  # It was said before.
        if outcome != base:
            self._take_back(index, number, base)
        self.finish_attempt(
            *(attempt_id, word, now_unix_s),
            task_id=task_id,
            accepted_unix_s=None,
            error_code=None,
            error=None,
        )
        self._run("UPDATE attempt SET resolved_from = ? WHERE n = ?", base, number)
        return True

    def _take_back(self, index: int, number: int, base: str) -> None:
        """Have an attempt be what it was before a word, and its track with it."""
        self._run(
            "UPDATE attempt SET outcome = ?, task_id = NULL, task_end = NULL, accepted = NULL"
            " WHERE n = ?",
            *(base, number),
        )
        is_followed = self._one(
            "SELECT current_attempt = ? FROM track WHERE idx = ?", number, index
        )
        if is_followed is None or not is_followed[0]:
            return
        # What came before it had its WAV matters again.
        self._run("UPDATE track SET superseded_through = 0 WHERE idx = ?", index)
        other = self._one(
            "SELECT n FROM attempt WHERE track = ? AND task_id IS NOT NULL"
            " ORDER BY task_end IS NULL DESC, task_end DESC, n DESC LIMIT 1",
            index,
        )
        if other is not None:
            # How it ended is asked for again: the track did not keep it.
            self._run("UPDATE attempt SET task_end = NULL WHERE n = ?", *other)
            self._follow(index, other[0])
            return
        self._follow(index, None)
        self._run(
            "UPDATE track SET base_state = 'exists_without_id' WHERE idx = ? AND EXISTS"
            " (SELECT 1 FROM attempt WHERE track = idx AND outcome = 'exists_without_id')",
            index,
        )

    def find_attempts(self, prefix: str, limit: int) -> list[AttemptEntry]:
        """Return the attempts whose id begins with *prefix*, or the one that is it."""
        found = (
            "SELECT id, music_task_id, audio_id, title, outcome, attempt.task_id, resolved_from,"
            " callback_task FROM attempt JOIN track ON idx = track"
        )
        rows = self._all(f"{found} WHERE id = ?", prefix) or self._all(
            f"{found} WHERE id >= ? AND id < ? ORDER BY n LIMIT ?",
            # No character comes after the last one of Unicode.
            *(prefix, prefix + chr(sys.maxunicode), limit),
        )
        return [
            AttemptEntry(
                attempt_id=attempt_id,
                track=Track(music, audio, title=title),
                outcome=None if outcome == OPEN else AttemptOutcome(outcome),
                task_id=task_id or "",
                resolved_from=None if base is None else AttemptOutcome(base),
                callback_task_id=named or "",
            )
            for attempt_id, music, audio, title, outcome, task_id, base, named in rows
        ]

    def record_callback(self, attempt_id: str, task_id: str) -> None:
        """Keep the first task a callback named for an attempt in doubt."""
        self._run(
            "UPDATE attempt SET callback_task = ?"
            " WHERE id = ? AND callback_task IS NULL AND outcome IN (?, ?)",
            *(task_id, attempt_id, OPEN, AttemptOutcome.UNKNOWN),
        )

    def keep_host(self, host: str) -> None:
        """Have *host* as the latest, and forget the oldest of too many."""
        self._run("INSERT OR REPLACE INTO host (name) VALUES (?)", host)
        self._run(
            "DELETE FROM host WHERE n NOT IN (SELECT n FROM host ORDER BY n DESC LIMIT ?)",
            MAX_HOSTS,
        )

    def finish_task(
        self,
        task_id: str,
        now_unix_s: float,
        *,
        wav_url: str | None,
        settled_by: str,
        accepted_unix_s: float | None,
        error_code: int | None,
        error: str | None,
    ) -> None:
        """End a task, whichever of its track's attempts made it."""
        ending = self._all(
            "SELECT track, max(n), max(n = current_attempt) FROM attempt JOIN track ON idx = track"
            " WHERE task_id = ? AND task_end IS NULL GROUP BY track",
            task_id,
        )
        end = TrackState.FAILED if wav_url is None else TrackState.SUCCEEDED
        self._run(
            "UPDATE attempt SET task_end = ?,"
            " accepted = coalesce(max(accepted, ?), accepted, ?)"
            " WHERE task_id = ? AND task_end IS NULL",
            *(end, accepted_unix_s, accepted_unix_s, task_id),
        )
        for index, number, is_followed in ending:
            if wav_url is not None:
                self._run(
                    "UPDATE track SET base_state = ?, current_attempt = ?,"
                    " superseded_through = latest, settled = ?, wav_url = ?, settled_by = ?,"
                    " error_code = NULL, error = NULL"
                    " WHERE idx = ? AND base_state NOT IN ('succeeded', 'saved')",
                    *(end, number, now_unix_s, wav_url, settled_by, index),
                )
            elif is_followed and not self._follow_another(index):
                self._run(
                    "UPDATE track SET base_state = ?, settled = ?, error_code = ?, error = ?"
                    " WHERE idx = ?",
                    *(end, now_unix_s, error_code, error, index),
                )
            self._restate(index)

    def reserve_path(self, track: Track, *, path: str, key: str) -> bool:
        """Keep where the WAV of a track is to be, unless another track's is; tell which."""
        row = self._one(
            "SELECT idx, base_state, path FROM track WHERE music_task_id = ? AND audio_id = ?",
            *(track.music_task_id, track.audio_id),
        )
        if row is None:
            return False
        index, base_state, place = row
        if base_state == TrackState.SAVED and path != place:
            return False
        if self._one("SELECT 1 FROM track WHERE path_key = ? AND idx <> ?", key, index):
            return False
        self._run("UPDATE track SET path = ?, path_key = ? WHERE idx = ?", path, key, index)
        return True

    def mark_saved(self, track: Track, *, path: str, size: int, sha256: str) -> None:
        """Keep where the WAV of a track that has one is."""
        entry = self.get(track)
        if entry is None:
            return
        self._run(
            "UPDATE track SET base_state = ?, path_key = CASE WHEN path = ? THEN path_key END,"
            " path = ?, bytes = ?, sha256 = ?"
            " WHERE idx = ? AND base_state IN ('succeeded', 'saved', 'expired')",
            *(TrackState.SAVED, path, path, size, sha256, entry.index),
        )
        self._restate(entry.index)

    def mark_missing(self, track: Track) -> None:
        """Have a track succeeded again whose WAV is not here, and may be at the service."""
        entry = self.get(track)
        if entry is None:
            return
        self._run(
            "UPDATE track SET base_state = ?, bytes = NULL, sha256 = NULL"
            " WHERE idx = ? AND base_state IN ('saved', 'expired')",
            *(TrackState.SUCCEEDED, entry.index),
        )
        self._restate(entry.index)

    def mark_expired(self, track: Track) -> None:
        """Give up the WAV of a track that succeeded."""
        self._run(
            "UPDATE track SET state = 'expired', base_state = 'expired'"
            " WHERE state = 'succeeded' AND music_task_id = ? AND audio_id = ?",
            *(track.music_task_id, track.audio_id),
        )

    def _may_begin(self, entry: LedgerEntry, *, again: bool) -> bool:
        if not again:
            return entry.state.may_be_sent
        under_way = self._one(
            "SELECT 1 FROM attempt WHERE track = ? AND outcome = ?", *(entry.index, OPEN)
        )
        return under_way is None
