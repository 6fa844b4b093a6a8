"""
The calls of a ledger on its tables: the rules by which a track moves between its states.

Plain calls on one `sqlite3` connection; transactions are the caller's. Each call
may be made again after a failure that left it open whether it was written.

A track's state is worked out from four facts, in this order: a submit of it is
under way; the task it is followed under has not ended; a submit of it is of
unknown fate; and else where it *rests*, which is what came of the rest. Submits
begun before the track had its WAV count for nothing in this.
"""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
import sys
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from yarl import URL

from kie_wav_async._ledger_models import (
    MAX_HOSTS,
    AttemptEntry,
    AttemptOutcome,
    LedgerMark,
    LedgerOpening,
    Standing,
    TrackState,
)
from kie_wav_async._models import Track, UnknownSubmit
from kie_wav_async.errors import LedgerError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Sequence

__all__ = ["RETRIABLE", "LedgerTables"]

#: How many of the last submits an opening tells the end of.
LAST_ENDS: Final = 1_000

#: What `LedgerTables.retry` plans again.
RETRIABLE: Final = frozenset({TrackState.REFUSED, TrackState.FAILED, TrackState.EXPIRED})

_STANDING: Final = """
    SELECT track.idx, music_task_id, audio_id, title, state, latest.id, task.task_id,
        task.outcome, task.began, task.accepted, settled, wav_url, track.error_code, track.error,
        path, bytes, sha256, task.id, settled_by
    FROM track
    LEFT JOIN attempt AS latest ON latest.n = track.latest
    LEFT JOIN attempt AS task ON task.n = track.followed
"""

#: An attempt under way. Every other outcome is an `AttemptOutcome`.
_OPEN: Final = "open"

# What an attempt may come to, by what it is; everything else stays what it is.
_ENDS: Final[dict[str, frozenset[AttemptOutcome]]] = {
    _OPEN: frozenset(AttemptOutcome),
    AttemptOutcome.UNKNOWN: frozenset({AttemptOutcome.ACCEPTED, AttemptOutcome.NOT_CREATED}),
    AttemptOutcome.NOT_CREATED: frozenset({AttemptOutcome.ACCEPTED}),
    AttemptOutcome.EXISTS: frozenset({AttemptOutcome.ADOPTED, AttemptOutcome.NOT_CREATED}),
}
_HAS_TASK: Final = frozenset({AttemptOutcome.ACCEPTED, AttemptOutcome.ADOPTED})
_FREE: Final = frozenset({TrackState.PLANNED, TrackState.REFUSED, TrackState.FAILED})
_HAS_WAV: Final = frozenset({TrackState.SUCCEEDED, TrackState.STORED})
_SAYS_WHY: Final = frozenset({TrackState.REFUSED, TrackState.FAILED})

_Row: TypeAlias = tuple[Any, ...]


class LedgerTables:
    """
    The calls of a ledger, as statements on *connection*.

    Nothing here opens or ends a transaction. What is written is checked before
    anything is.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def recover(self, now_unix_s: float) -> None:
        """Make every attempt that is open one of unknown fate since *now_unix_s*."""
        left = self._all("SELECT DISTINCT track FROM attempt WHERE outcome = ?", _OPEN)
        self._run(
            "UPDATE attempt SET outcome = ?, ended = ? WHERE outcome = ?",
            *(AttemptOutcome.UNKNOWN, now_unix_s, _OPEN),
        )
        for (index,) in left:
            self._restate(index)

    def opening(self, *, is_reader: bool) -> LedgerOpening:
        """
        Tell where the ledger stands.

        To a reader (*is_reader*) an attempt under way is as good as unknown: its
        process may have died.
        """
        doubtful = self._all(
            "SELECT music_task_id, audio_id, title, id, coalesce(ended, began), named_task"
            " FROM attempt JOIN track ON idx = track WHERE outcome IN (?, ?)"
            " ORDER BY coalesce(ended, began), n",
            *(_OPEN if is_reader else AttemptOutcome.UNKNOWN, AttemptOutcome.UNKNOWN),
        )
        accepted = self._one(
            "SELECT count(*) FROM attempt WHERE outcome = ?", AttemptOutcome.ACCEPTED
        )
        ends = self._all(
            "SELECT ended FROM attempt WHERE ended IS NOT NULL ORDER BY ended DESC LIMIT ?",
            LAST_ENDS,
        )
        return LedgerOpening(
            unknown=tuple(
                UnknownSubmit(Track(music, audio, title=title), attempt_id, _moment(at))
                for music, audio, title, attempt_id, at, _ in doubtful
            ),
            accepted=0 if accepted is None else accepted[0],
            ended_unix_s=tuple(ended for (ended,) in reversed(ends)),
            named={row[3]: row[5] for row in doubtful if row[5] is not None},
            hosts=tuple(name for (name,) in self._all("SELECT name FROM host ORDER BY n")),
        )

    def mark(self) -> LedgerMark:
        """Tell which ledger it is, and how many submits were begun with it."""
        row = self._one("SELECT id, (SELECT max(n) FROM attempt) FROM ledger")
        assert row is not None  # noqa: S101 - its tables were made with one
        return LedgerMark(row[0], row[1] or 0)

    def plan(self, rows: Sequence[tuple[str, str, str | None]]) -> int:
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

    def retry(self, states: Collection[TrackState]) -> int:
        """Plan again what is in one of *states*; return how many."""
        return sum(
            self._run(
                "UPDATE track SET state = 'planned', rest = 'planned', followed = NULL,"
                " settled = NULL, wav_url = NULL, error_code = NULL, error = NULL"
                " WHERE state = ?",
                state,
            ).rowcount
            for state in states
        )

    def find(self, track: Track) -> Standing | None:
        """Return where *track* stands."""
        row = self._one(
            f"{_STANDING} WHERE music_task_id = ? AND audio_id = ?",
            *(track.music_task_id, track.audio_id),
        )
        return None if row is None else _standing(row)

    def find_task(self, task_id: str) -> Standing | None:
        """Return where the track stands that is followed under a task, or last was given it."""
        found = self._one(
            "SELECT track FROM attempt JOIN track ON idx = track WHERE task_id = ?"
            " ORDER BY n = followed DESC, n DESC LIMIT 1",
            task_id,
        )
        row = found and self._one(f"{_STANDING} WHERE track.idx = ?", *found)
        return None if row is None else _standing(row)

    def page(self, states: Collection[TrackState], after: int, limit: int) -> list[Standing]:
        """Return the first tracks in one of *states* above *after*."""
        # One walk of the index for each state: with IN, SQLite would sort all there are.
        walks = [
            self._run(
                f"{_STANDING} WHERE state = ? AND track.idx > ? ORDER BY track.idx LIMIT ?",
                *(state, after, limit),
            )
            for state in states
        ]
        try:
            # The index comes first in a row, and no two have the same.
            return [_standing(row) for row in itertools.islice(heapq.merge(*walks), limit)]
        finally:
            for walk in walks:
                walk.close()

    def count(self) -> dict[TrackState, int]:
        """Count the tracks in each state."""
        counted = dict.fromkeys(TrackState, 0)
        for state, number in self._all("SELECT state, count(*) FROM track GROUP BY state"):
            counted[TrackState(state)] = number
        return counted

    def begin(
        self, track: Track, attempt_id: str, now_unix_s: float, *, again: bool
    ) -> Standing | None:
        """Open an attempt; `None` if it may be sent."""
        standing = self.find(track)
        known = self._one("SELECT track, outcome FROM attempt WHERE id = ?", attempt_id)
        if known is not None:
            if standing is None or standing.index != known[0]:
                msg = f"attempt {attempt_id} is of another track: take a new id; nothing was sent"
                raise LedgerError(msg, track=track)
            return None if known[1] == _OPEN else standing
        if standing is not None and not self._may_begin(standing, again=again):
            return standing
        if standing is None:
            self.plan([(track.music_task_id, track.audio_id, track.title)])
            standing = self.find(track)
            assert standing is not None  # noqa: S101 - it was put there a line above
        index = standing.index
        number = self._run(
            "INSERT INTO attempt (id, track, began) VALUES (?, ?, ?)",
            *(attempt_id, index, now_unix_s),
        ).lastrowid
        self._run(
            "UPDATE track SET latest = ?, title = coalesce(title, ?) WHERE idx = ?",
            *(number, track.title, index),
        )
        self._run(
            "UPDATE track SET rest = 'planned', followed = NULL, settled = NULL,"
            " error_code = NULL, error = NULL WHERE idx = ? AND rest IN ('refused', 'failed')",
            index,
        )
        self._restate(index)
        return None

    def end(
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
            *(outcome, now_unix_s, task_id if outcome in _HAS_TASK else None),
            *(accepted_unix_s, error_code, error, number),
        )
        if outcome in _HAS_TASK:
            self._follow_first(index, number)
        elif outcome in (AttemptOutcome.REFUSED, AttemptOutcome.EXISTS):
            self._run(
                "UPDATE track SET rest = ?, error_code = ?, error = ?"
                " WHERE idx = ? AND rest NOT IN ('succeeded', 'stored', 'expired')",
                *(TrackState(outcome.value), error_code, error, index),
            )
        elif before == AttemptOutcome.EXISTS:
            self._run(
                "UPDATE track SET rest = 'planned', error_code = NULL, error = NULL"
                " WHERE idx = ? AND rest = 'exists'",
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
        if base not in (AttemptOutcome.UNKNOWN, AttemptOutcome.EXISTS):
            return False
        if not task_id:
            word = AttemptOutcome.NOT_CREATED
        elif base == AttemptOutcome.EXISTS:
            word = AttemptOutcome.ADOPTED
        else:
            word = AttemptOutcome.ACCEPTED
        if (outcome, before) == (word, task_id):
            return True  # It was said before.
        if outcome != base:
            self._take_back(index, number, base)
        self.end(
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
        is_followed = self._one("SELECT followed = ? FROM track WHERE idx = ?", number, index)
        if is_followed is None or not is_followed[0]:
            return
        # What came before it had its WAV matters again.
        self._run("UPDATE track SET answered = 0 WHERE idx = ?", index)
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
            "UPDATE track SET rest = 'exists' WHERE idx = ? AND EXISTS"
            " (SELECT 1 FROM attempt WHERE track = idx AND outcome = 'exists')",
            index,
        )

    def find_attempts(self, prefix: str, limit: int) -> list[AttemptEntry]:
        """Return the attempts whose id begins with *prefix*, or the one that is it."""
        found = (
            "SELECT id, music_task_id, audio_id, title, outcome, attempt.task_id, resolved_from,"
            " named_task FROM attempt JOIN track ON idx = track"
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
                outcome=None if outcome == _OPEN else AttemptOutcome(outcome),
                task_id=task_id or "",
                resolved_from=None if base is None else AttemptOutcome(base),
                named_task_id=named or "",
            )
            for attempt_id, music, audio, title, outcome, task_id, base, named in rows
        ]

    def hear(self, attempt_id: str, task_id: str) -> None:
        """Keep the first task a callback named for an attempt in doubt."""
        self._run(
            "UPDATE attempt SET named_task = ?"
            " WHERE id = ? AND named_task IS NULL AND outcome IN (?, ?)",
            *(task_id, attempt_id, _OPEN, AttemptOutcome.UNKNOWN),
        )

    def keep_host(self, host: str) -> None:
        """Have *host* as the latest, and forget the oldest of too many."""
        self._run("INSERT OR REPLACE INTO host (name) VALUES (?)", host)
        self._run(
            "DELETE FROM host WHERE n NOT IN (SELECT n FROM host ORDER BY n DESC LIMIT ?)",
            MAX_HOSTS,
        )

    def settle(
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
            "SELECT track, max(n), max(n = followed) FROM attempt JOIN track ON idx = track"
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
                    "UPDATE track SET rest = ?, followed = ?, answered = latest, settled = ?,"
                    " wav_url = ?, settled_by = ?, error_code = NULL, error = NULL"
                    " WHERE idx = ? AND rest NOT IN ('succeeded', 'stored')",
                    *(end, number, now_unix_s, wav_url, settled_by, index),
                )
            elif is_followed and not self._follow_another(index):
                self._run(
                    "UPDATE track SET rest = ?, settled = ?, error_code = ?, error = ?"
                    " WHERE idx = ?",
                    *(end, now_unix_s, error_code, error, index),
                )
            self._restate(index)

    def reserve(self, track: Track, *, path: str, key: str) -> bool:
        """Keep where the WAV of a track is to be, unless another track's is; tell which."""
        row = self._one(
            "SELECT idx, rest, path FROM track WHERE music_task_id = ? AND audio_id = ?",
            *(track.music_task_id, track.audio_id),
        )
        if row is None:
            return False
        index, rest, place = row
        if rest == TrackState.STORED and path != place:
            return False
        if self._one("SELECT 1 FROM track WHERE path_key = ? AND idx <> ?", key, index):
            return False
        self._run("UPDATE track SET path = ?, path_key = ? WHERE idx = ?", path, key, index)
        return True

    def store(self, track: Track, *, path: str, size: int, sha256: str) -> None:
        """Keep where the WAV of a track that has one is."""
        standing = self.find(track)
        if standing is None:
            return
        self._run(
            "UPDATE track SET rest = ?, path_key = CASE WHEN path = ? THEN path_key END,"
            " path = ?, bytes = ?, sha256 = ?"
            " WHERE idx = ? AND rest IN ('succeeded', 'stored', 'expired')",
            *(TrackState.STORED, path, path, size, sha256, standing.index),
        )
        self._restate(standing.index)

    def unstore(self, track: Track) -> None:
        """Have a track succeeded again whose WAV is not here, and may be at the service."""
        standing = self.find(track)
        if standing is None:
            return
        self._run(
            "UPDATE track SET rest = ?, bytes = NULL, sha256 = NULL"
            " WHERE idx = ? AND rest IN ('stored', 'expired')",
            *(TrackState.SUCCEEDED, standing.index),
        )
        self._restate(standing.index)

    def expire(self, track: Track) -> None:
        """Give up the WAV of a track that succeeded."""
        self._run(
            "UPDATE track SET state = 'expired', rest = 'expired'"
            " WHERE state = 'succeeded' AND music_task_id = ? AND audio_id = ?",
            *(track.music_task_id, track.audio_id),
        )

    def _may_begin(self, standing: Standing, *, again: bool) -> bool:
        if not again:
            return standing.state in _FREE
        under_way = self._one(
            "SELECT 1 FROM attempt WHERE track = ? AND outcome = ?", *(standing.index, _OPEN)
        )
        return under_way is None

    def _follow_first(self, index: int, number: int) -> None:
        """Follow a track under the new task of an attempt, unless it needs none."""
        row = self._one(
            "SELECT rest, answered, task.n IS NOT NULL AND task.task_end IS NULL"
            " FROM track LEFT JOIN attempt AS task ON task.n = followed WHERE idx = ?",
            index,
        )
        assert row is not None  # noqa: S101 - attempts refer to a track that is there
        rest, answered, is_followed = row
        if not is_followed and (rest not in _HAS_WAV or number > answered):
            self._follow(index, number)

    def _follow_another(self, index: int) -> bool:
        """Follow a track under the latest of its tasks that has not ended, if there is one."""
        row = self._one(
            "SELECT max(n) FROM attempt"
            " WHERE track = ? AND task_id IS NOT NULL AND task_end IS NULL",
            index,
        )
        if row is None or row[0] is None:
            return False
        self._follow(index, row[0])
        return True

    def _follow(self, index: int, number: int | None) -> None:
        self._run(
            "UPDATE track SET rest = ?, followed = ?, settled = NULL, wav_url = NULL,"
            " error_code = NULL, error = NULL, bytes = NULL, sha256 = NULL"
            " WHERE idx = ?",
            *(TrackState.PLANNED, number, index),
        )

    def _restate(self, index: int) -> None:
        """Work out where a track stands."""
        self._run(
            "UPDATE track SET state = CASE"
            " WHEN EXISTS (SELECT 1 FROM attempt"
            "  WHERE track = idx AND outcome = 'open' AND n > answered) THEN 'submitting'"
            " WHEN EXISTS (SELECT 1 FROM attempt"
            "  WHERE n = followed AND task_end IS NULL) THEN 'accepted'"
            " WHEN EXISTS (SELECT 1 FROM attempt"
            "  WHERE track = idx AND outcome = 'unknown' AND n > answered) THEN 'unknown'"
            " ELSE rest END WHERE idx = ?",
            index,
        )

    def _run(self, statement: str, *values: object) -> sqlite3.Cursor:
        return self._db.execute(statement, values)

    def _one(self, statement: str, *values: object) -> _Row | None:
        row: _Row | None = self._run(statement, *values).fetchone()
        return row

    def _all(self, statement: str, *values: object) -> list[_Row]:
        return self._run(statement, *values).fetchall()


def _moment(unix_s: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(unix_s, dt.UTC)


def _standing(row: _Row) -> Standing:
    (index, music_task_id, audio_id, title, state, attempt_id, task_id, outcome, began) = row[:9]
    (accepted, settled, wav_url, error_code, error, path, size, sha256) = row[9:17]
    (task_attempt_id, named_by) = row[17:]
    says_why = state in _SAYS_WHY
    return Standing(
        index=index,
        track=Track(music_task_id, audio_id, title=title),
        state=TrackState(state),
        attempt_id=attempt_id or "",
        task_id=task_id or "",
        task_attempt_id=task_attempt_id or "",
        is_adopted=outcome == AttemptOutcome.ADOPTED,
        submitted_at=None if task_id is None else _moment(began),
        accepted_at=None if accepted is None else _moment(accepted),
        settled_at=None if settled is None else _moment(settled),
        wav_url=None if wav_url is None else URL(wav_url, encoded=True),
        settled_by=None if wav_url is None else named_by,
        error_code=error_code if says_why else None,
        error=error if says_why else None,
        path=path,
        bytes=size,
        sha256=sha256,
    )
