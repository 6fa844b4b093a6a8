"""What a ledger holds of a track and of the submits sent for it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

import attrs
from yarl import URL

from kie_wav_async._support.validation import verify_type
from kie_wav_async.core.track_states import AttemptOutcome, TrackState
from kie_wav_async.models import SettledBy, Track, UnknownSubmit
from kie_wav_async.protocol.api_constants import deleted_at


@attrs.frozen(kw_only=True)
class LedgerEntry:
    """
    Where one track stands.

    Attributes:
        index: Its place in the order in which tracks came into the ledger; 1 or more.

        track: The track.

        state: Where it stands.

        attempt_id: The latest submit; ``""`` before the first.

        task_id: The task that is followed or was; ``""`` without one.

        task_attempt_id: The submit that this task belongs to, which need not be the
            latest; ``""`` without a task.

        is_adopted: Whether the task existed before our submit, so that its age is unknown.

        submitted_at: When the submit that made the task was sent; aware, UTC.
            `None` without a task.

        accepted_at: When the service made the task, by the service's own clock; aware,
            UTC. `None` if it did not say.

        settled_at: When the task was seen to have ended; aware, UTC; else `None`.

        wav_url: The WAV at the service, exactly as it was sent; `None` without one.

        settled_by: What named the WAV: ``"callback"`` or ``"poll"``; `None` without one.

        error_code: What the service said, of a refused or failed track; else `None`.

        error: The same in words; `None` without.

        path: Where the WAV is, or is to be, relative to the catalog's folder; `None`
            before a place was chosen.

        bytes: The size of the file; `None` while there is none.

        sha256: Its SHA-256 in hex; `None` while there is none.
    """

    index: int
    track: Track
    state: TrackState
    attempt_id: str = ""
    task_id: str = ""
    task_attempt_id: str = ""
    is_adopted: bool = False
    submitted_at: dt.datetime | None = None
    accepted_at: dt.datetime | None = None
    settled_at: dt.datetime | None = None
    wav_url: URL | None = None
    settled_by: SettledBy | None = None
    error_code: int | None = None
    error: str | None = None
    path: str | None = None
    bytes: int | None = None
    sha256: str | None = None

    @property
    def expires_at(self) -> dt.datetime | None:
        """
        When the service deletes the WAV, about; `None` without a task, or if its age is unknown.

        By our clock, so that it is a hint: nothing is given up for it.
        """
        if self.submitted_at is None or self.is_adopted:
            return None
        return deleted_at(self.submitted_at)


@attrs.frozen(kw_only=True)
class AttemptEntry:
    """
    One submit in a ledger.

    Attributes:
        attempt_id: Its id.

        track: What it was sent for.

        outcome: What came of it; `None` while it may be under way.

        task_id: The task that it created or was answered with; ``""`` without one.

        resolved_from: Its outcome before the user's word, if *outcome* is that; else `None`.

        callback_task_id: The task that an authentic callback named for it; ``""`` if none did.
    """

    attempt_id: str
    track: Track
    outcome: AttemptOutcome | None
    task_id: str = ""
    resolved_from: AttemptOutcome | None = None
    callback_task_id: str = ""


@attrs.frozen(kw_only=True)
class RecoveryState:
    """
    What a session has to know of a ledger that it goes on with.

    Attributes:
        unknown: Every submit of unknown fate, oldest first.

        accepted: How many submits the service took, ever.

        ended_unix_s: When the last 1,000 submits ended, oldest first. One that
            was under way when its process ended is taken to have ended now.

        callback_tasks: The task that a callback named for a submit of unknown fate, by the
            id of the attempt.

        hosts: The hosts that the service named for files, as ``name:port``; at most
            100, the one used longest ago first.
    """

    unknown: tuple[UnknownSubmit, ...]
    accepted: int
    ended_unix_s: tuple[float, ...]
    callback_tasks: Mapping[str, str]
    hosts: tuple[str, ...] = ()


@attrs.frozen
class LedgerMark:
    """
    What tells a ledger from others, and from a copy of itself that is too old to go on with.

    Attributes:
        ledger_id: Its own, 32 hex digits, for as long as it lives.

        submits: How many submits were begun with it.
    """

    ledger_id: str
    submits: int


def verify_path(path: object, key: object) -> None:
    """
    Return if a WAV can be told to be at *path*, by *key*.

    Raises:
        TypeError: One of them is not a `str`.

        ValueError: One of them is empty.
    """
    for name, value in {"path": path, "key": key}.items():
        verify_type(value, str, name)
        if not value:
            msg = f"{name} must not be empty"
            raise ValueError(msg)


def verify_host(host: object) -> None:
    """
    Return if *host* can be the host of a file.

    Raises:
        TypeError: It is not a `str`.

        ValueError: It is empty.
    """
    verify_type(host, str, "host")
    if not host:
        msg = "host must not be empty"
        raise ValueError(msg)


def verify_settled_by(settled_by: object) -> None:
    """
    Return if *settled_by* tells what named a WAV.

    Raises:
        ValueError: It is neither ``"callback"`` nor ``"poll"``.
    """
    if settled_by not in {"callback", "poll"}:
        msg = f"settled_by must be 'callback' or 'poll', not {str(settled_by)[:80]!r}"
        raise ValueError(msg)
