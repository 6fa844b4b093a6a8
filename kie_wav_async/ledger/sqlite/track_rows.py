"""
The rows of tracks: what their submits and tasks make of their states.

A track's state is worked out from four facts, in this order: a submit of it is
under way; the task it is followed under has not ended; a submit of it is of
unknown fate; and else where it *rests*, which is what came of the rest. Submits
begun before the track had its WAV count for nothing in this.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from yarl import URL

from kie_wav_async.core.track_states import AttemptOutcome, TrackState
from kie_wav_async.ledger.models import LedgerEntry
from kie_wav_async.models import Track

if TYPE_CHECKING:
    import sqlite3

Row: TypeAlias = tuple[Any, ...]

#: Selects what `entry_of` reads.
SELECT_ENTRY: Final = """
    SELECT track.idx, music_task_id, audio_id, title, state, latest.id, task.task_id,
        task.outcome, task.began, task.accepted, settled, wav_url, track.error_code, track.error,
        path, bytes, sha256, task.id, settled_by
    FROM track
    LEFT JOIN attempt AS latest ON latest.n = track.latest
    LEFT JOIN attempt AS task ON task.n = track.current_attempt
"""

#: An attempt under way. Every other outcome is an `AttemptOutcome`.
OPEN: Final = "open"


class TrackRows:
    """
    What the calls of a ledger have in common, as statements on *connection*.

    Nothing here opens or ends a transaction.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def _follow_first(self, index: int, number: int) -> None:
        """Follow a track under the new task of an attempt, unless it needs none."""
        row = self._one(
            "SELECT base_state, superseded_through, task.n IS NOT NULL AND task.task_end IS NULL"
            " FROM track LEFT JOIN attempt AS task ON task.n = current_attempt WHERE idx = ?",
            index,
        )
        assert row is not None  # noqa: S101 - attempts refer to a track that is there
        base_state, superseded_through, is_followed = row
        if not is_followed and (not TrackState(base_state).has_wav or number > superseded_through):
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
            "UPDATE track SET base_state = ?, current_attempt = ?, settled = NULL, wav_url = NULL,"
            " error_code = NULL, error = NULL, bytes = NULL, sha256 = NULL"
            " WHERE idx = ?",
            *(TrackState.PLANNED, number, index),
        )

    def _restate(self, index: int) -> None:
        """Work out where a track stands."""
        self._run(
            "UPDATE track SET state = CASE"
            " WHEN EXISTS (SELECT 1 FROM attempt"
            "  WHERE track = idx AND outcome = 'open' AND n > superseded_through) THEN 'submitting'"
            " WHEN EXISTS (SELECT 1 FROM attempt"
            "  WHERE n = current_attempt AND task_end IS NULL) THEN 'accepted'"
            " WHEN EXISTS (SELECT 1 FROM attempt"
            "  WHERE track = idx AND outcome = 'unknown' AND n > superseded_through) THEN 'unknown'"
            " ELSE base_state END WHERE idx = ?",
            index,
        )

    def _run(self, statement: str, *values: object) -> sqlite3.Cursor:
        return self._db.execute(statement, values)

    def _one(self, statement: str, *values: object) -> Row | None:
        row: Row | None = self._run(statement, *values).fetchone()
        return row

    def _all(self, statement: str, *values: object) -> list[Row]:
        return self._run(statement, *values).fetchall()


def moment_of(unix_s: float) -> dt.datetime:
    """Return a time of the ledger, in UTC."""
    return dt.datetime.fromtimestamp(unix_s, dt.UTC)


def entry_of(row: Row) -> LedgerEntry:
    """Return what a row of `SELECT_ENTRY` says."""
    (index, music_task_id, audio_id, title, state, attempt_id, task_id, outcome, began) = row[:9]
    (accepted, settled, wav_url, error_code, error, path, size, sha256) = row[9:17]
    (task_attempt_id, named_by) = row[17:]
    state = TrackState(state)
    says_why = state.is_failure
    return LedgerEntry(
        index=index,
        track=Track(music_task_id, audio_id, title=title),
        state=state,
        attempt_id=attempt_id or "",
        task_id=task_id or "",
        task_attempt_id=task_attempt_id or "",
        is_adopted=outcome == AttemptOutcome.ADOPTED,
        submitted_at=None if task_id is None else moment_of(began),
        accepted_at=None if accepted is None else moment_of(accepted),
        settled_at=None if settled is None else moment_of(settled),
        wav_url=None if wav_url is None else URL(wav_url, encoded=True),
        settled_by=None if wav_url is None else named_by,
        error_code=error_code if says_why else None,
        error=error if says_why else None,
        path=path,
        bytes=size,
        sha256=sha256,
    )
