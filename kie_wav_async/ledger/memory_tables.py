"""The tables of a ledger in memory: tracks, and the submits sent for them."""

from __future__ import annotations

import datetime as dt
from collections import deque
from typing import Final

import attrs
from yarl import URL

from kie_wav_async.core.known_hosts import MAX_HOSTS
from kie_wav_async.core.track_states import LATER_OUTCOMES, AttemptOutcome, TrackState
from kie_wav_async.ledger.models import LedgerEntry
from kie_wav_async.models import SettledBy, Track

_ENDS: Final = 1_000


@attrs.define(eq=False)
class Attempt:
    """A submit, as `AttemptEntry` tells it, with what decides on its track."""

    row: Row
    attempt_id: str
    begun_unix_s: float
    #: Its place among the attempts of its track; 1 or more.
    number: int
    #: `None` while it is under way.
    outcome: AttemptOutcome | None = None
    ended_unix_s: float = 0.0
    task_id: str = ""
    is_task_over: bool = False
    #: Whether its task ended with a WAV.
    has_wav: bool = False
    callback_task: str = ""
    #: What it was before the user's word, if its outcome is that.
    resolved_from: AttemptOutcome | None = None
    #: When the service made its task, by the service's clock.
    accepted_unix_s: float | None = None


@attrs.define(eq=False)
class Row:
    """A track, with its submits."""

    index: int
    track: Track
    #: Where it stands once nothing of it is under way or in doubt.
    base_state: TrackState = TrackState.PLANNED
    attempts: list[Attempt] = attrs.field(factory=list[Attempt])
    #: Whose task it is followed under, or was.
    current_attempt: Attempt | None = None
    #: How many attempts there were when it got its WAV: they no longer matter to it.
    superseded_through: int = 0
    settled_unix_s: float | None = None
    wav_url: URL | None = None
    settled_by: SettledBy | None = None
    error_code: int | None = None
    error: str | None = None
    #: Where its file is, or is to be.
    path: str | None = None
    key: str | None = None
    #: The size and the digest of its file.
    file: tuple[int, str] | None = None

    def state(self) -> TrackState:
        """Tell where it stands."""
        unanswered = {attempt.outcome for attempt in self.attempts[self.superseded_through :]}
        if None in unanswered:
            return TrackState.SUBMITTING
        if self.is_followed():
            return TrackState.ACCEPTED
        return TrackState.UNKNOWN if AttemptOutcome.UNKNOWN in unanswered else self.base_state

    def is_followed(self) -> bool:
        """Whether it has a task that has not ended."""
        return self.current_attempt is not None and not self.current_attempt.is_task_over

    def follow(self, attempt: Attempt | None, rest: TrackState = TrackState.PLANNED) -> None:
        """Go on under the task of *attempt*, or without any, and forget the end of another."""
        self.base_state, self.current_attempt = rest, attempt
        self.settled_unix_s = self.wav_url = self.file = None
        self.error_code = self.error = None

    def entry(self) -> LedgerEntry:
        """Tell all there is to tell."""
        state, task = self.state(), self.current_attempt
        is_bad = state.is_failure
        size, sha256 = self.file or (None, None)
        accepted_unix_s = None if task is None else task.accepted_unix_s
        return LedgerEntry(
            index=self.index,
            track=self.track,
            state=state,
            attempt_id=self.attempts[-1].attempt_id if self.attempts else "",
            task_id="" if task is None else task.task_id,
            task_attempt_id="" if task is None else task.attempt_id,
            is_adopted=task is not None and task.outcome is AttemptOutcome.ADOPTED,
            submitted_at=None if task is None else _moment(task.begun_unix_s),
            accepted_at=None if accepted_unix_s is None else _moment(accepted_unix_s),
            settled_at=None if self.settled_unix_s is None else _moment(self.settled_unix_s),
            wav_url=self.wav_url,
            settled_by=None if self.wav_url is None else self.settled_by,
            error_code=self.error_code if is_bad else None,
            error=self.error if is_bad else None,
            path=self.path,
            bytes=size,
            sha256=sha256,
        )


@attrs.define(eq=False)
class Tables:
    """What would be on the disk, and who has it open."""

    rows: dict[Track, Row] = attrs.field(factory=dict[Track, Row])
    attempts: dict[str, Attempt] = attrs.field(factory=dict[str, Attempt])
    by_task: dict[str, list[Attempt]] = attrs.field(factory=dict[str, list["Attempt"]])
    unknown: dict[str, Attempt] = attrs.field(factory=dict[str, Attempt])
    by_key: dict[str, Row] = attrs.field(factory=dict[str, Row])
    hosts: dict[str, None] = attrs.field(factory=dict[str, None])
    ends: deque[float] = attrs.field(factory=lambda: deque[float](maxlen=_ENDS))
    owner: object = None

    def add(self, track: Track) -> Row:
        """Return the row of *track*, made if there is none; a title is learnt late."""
        row = self.rows.setdefault(track, Row(index=len(self.rows) + 1, track=track))
        if row.track.title is None:
            row.track = track
        return row

    def row_of_task(self, task_id: str) -> Row | None:
        """Return the row that follows a task, or was last given it."""
        found = [one for one in self.attempts.values() if one.task_id == task_id]
        followed = [one for one in found if one.row.current_attempt is one]
        return (followed or found)[-1].row if task_id and found else None

    def place(self, row: Row, path: str, key: str | None) -> None:
        """Give *row* a path, and a key or none in place of the one it has."""
        if row.key is not None:
            del self.by_key[row.key]
        row.path, row.key = path, key
        if key is not None:
            self.by_key[key] = row

    def keep_host(self, host: str) -> None:
        """Have *host* as the latest, and forget the oldest of too many."""
        self.hosts.pop(host, None)
        self.hosts[host] = None
        if len(self.hosts) > MAX_HOSTS:
            del self.hosts[next(iter(self.hosts))]

    def begin(self, row: Row, attempt_id: str, now_unix_s: float) -> None:
        """Open an attempt."""
        if row.base_state.is_failure:
            row.follow(None)
        attempt = Attempt(row, attempt_id, now_unix_s, len(row.attempts) + 1)
        row.attempts.append(attempt)
        self.attempts[attempt_id] = attempt

    def end(self, attempt: Attempt, outcome: AttemptOutcome, now_unix_s: float) -> bool:
        """Close an attempt, or find out better; return whether it came to that."""
        if attempt.outcome is None:
            attempt.ended_unix_s = now_unix_s
            self.ends.append(now_unix_s)
        elif outcome not in LATER_OUTCOMES.get(attempt.outcome, ()):
            return False
        elif (
            attempt.outcome is AttemptOutcome.EXISTS_WITHOUT_ID
            and attempt.row.base_state is TrackState.EXISTS_WITHOUT_ID
        ):
            attempt.row.base_state = TrackState.PLANNED
            attempt.row.error_code = attempt.row.error = None
        attempt.outcome, attempt.resolved_from = outcome, None
        self.unknown.pop(attempt.attempt_id, None)
        if outcome is AttemptOutcome.UNKNOWN:
            self.unknown[attempt.attempt_id] = attempt
        return True

    def take_back(self, attempt: Attempt) -> None:
        """Have an attempt be what it was before a word, and its track with it."""
        row = attempt.row
        if attempt.task_id:
            self.by_task[attempt.task_id].remove(attempt)
        attempt.outcome, attempt.task_id, attempt.is_task_over = attempt.resolved_from, "", False
        attempt.accepted_unix_s = None
        if row.current_attempt is not attempt:
            return
        row.superseded_through = 0
        others = [one for one in row.attempts if one.task_id]
        row.follow(None)
        if others:
            other = max(others, key=lambda one: (not one.is_task_over, one.has_wav, one.number))
            other.is_task_over = False
            row.follow(other)
        elif any(one.outcome is AttemptOutcome.EXISTS_WITHOUT_ID for one in row.attempts):
            row.base_state = TrackState.EXISTS_WITHOUT_ID


def _moment(unix_s: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(unix_s, dt.UTC)
