"""
The values of the package: frozen facts, no behaviour, no wire spelling.

A value checks what must hold for every instance and refuses the rest with
`ValueError` or `TypeError`, so nothing malformed travels further.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import attrs
from yarl import URL

from kie_wav_async._support.validation import strip_controls, verify_id

SettledBy = Literal["callback", "poll"]


class TaskState(enum.StrEnum):
    """What a conversion task has come to, in our words."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class OnUnknown(enum.StrEnum):
    """What to do when nobody can know whether a submit was accepted."""

    #: Raise `SubmitUnknownError` and never send the track again on our own.
    RAISE = "raise"

    #: Send it once more, 60 s later. Safe only if the service answers a repeat
    #: with 409 instead of a second charge, which its documents do not promise.
    RESUBMIT = "resubmit"


class CallbackTrust(enum.StrEnum):
    """
    How much of an authentic callback is believed: its signature does not cover its body.

    Without webhook keys nothing is authentic, and neither makes a difference.
    """

    #: It settles a conversion if it names the very submit that made the task, says
    #: success, and brings a URL from which a file may be fetched, on a host and port
    #: that the service has named in an answer to a poll. Everything else is a hint.
    PAYLOAD = "payload"

    #: Every callback is a hint: one poll decides.
    CONFIRM = "confirm"


class CallbackResult(enum.StrEnum):
    """What was made of a callback that was not refused."""

    #: It settled its conversion.
    SETTLED = "settled"

    #: A poll will decide.
    POLLING = "polling"

    #: Its task was settled before.
    DUPLICATE = "duplicate"

    #: We know no such task. If the callback is authentic it is kept for 15
    #: minutes, for a submit whose answer is still on its way.
    UNKNOWN_TASK = "unknown_task"


def _clean_title(value: object) -> str | None:
    # Anything else is refused once all fields are there: until then there is no repr.
    clean = strip_controls(value)[:500] or None if isinstance(value, str) else value
    return cast("str | None", clean)


@attrs.frozen(cache_hash=True)
class Track:
    """
    One track of a finished music task: what a conversion converts.

    Two tracks are equal if their two ids are; the title is decoration.

    Attributes:
        music_task_id: The music task that made the track; not a conversion's task id.

        audio_id: The track within it, ``sunoData[].id`` of the music task.

        title:
            For people to read; stripped of control characters and cut at 500
            characters. `None` or ``""`` for none.

    Raises:
        TypeError: An id is not a `str`.

        ValueError: An id is empty, longer than 256, or has blanks or control characters.

    Source: docs.kie.ai, "Convert to WAV".
    """

    music_task_id: str
    audio_id: str
    title: str | None = attrs.field(default=None, kw_only=True, eq=False, converter=_clean_title)

    def __attrs_post_init__(self) -> None:
        """Hold the shape of the ids."""
        verify_id(self.music_task_id, "music_task_id")
        verify_id(self.audio_id, "audio_id")
        title = cast("object", self.title)  # Callers without a type checker pass anything.
        if title is not None and not isinstance(title, str):
            msg = f"title must be a str or None, not {type(title).__name__}"
            raise TypeError(msg)


@attrs.frozen
class WavFile:
    """
    A finished conversion: where the file is, and for how long.

    Attributes:
        task_id: The conversion task.

        url: Absolute URL of the file, exactly as the service sent it.

        track: The track it was made from; `None` if attached without one.

        settled_by: Which news came first: ``"callback"`` or ``"poll"``.

        expires_at:
            14 days after our submit, aware, UTC: the service deletes the file
            about then. By our clock, so that it is a hint. `None` for a task submitted
            elsewhere (attached or adopted), whose age we do not know.

        accepted_at:
            When the service made the task, by its own clock, aware, UTC: the ``Date`` of
            its response, or a ``createTime`` sent as a number. `None` if it did not say:
            then no download of it ends with ``"expired"``.

    Source: docs.kie.ai, "Convert to WAV" (retention).
    """

    task_id: str
    url: URL
    track: Track | None
    settled_by: SettledBy
    expires_at: dt.datetime | None
    accepted_at: dt.datetime | None = None


@attrs.frozen
class Download:
    """
    A WAV file on the disk, whole and synced.

    Attributes:
        path: Where it is, as it was asked for.

        bytes: Its size.

        sha256: Its SHA-256, in hex.

        resumed:
            Whether it was gone on with where an attempt had stopped, of this download
            or of an earlier one.

        notes:
            What is unusual about the file, in short texts for people: trailing bytes,
            sizes that its header declares wrongly. Empty for most files.
    """

    path: Path
    bytes: int
    sha256: str
    resumed: bool
    notes: tuple[str, ...] = ()


@attrs.frozen
class TaskRecord:
    """
    One answer of the service about one conversion task.

    A record is true of one moment only.

    Attributes:
        task_id: The conversion task; not the music task it converts.

        state: The state we derived from *status* and *wav_url*.

        status: The service's own word, as sent, e.g. ``GENERATE_WAV_FAILED``.

        wav_url:
            Absolute http(s) URL of the file, `None` if the record names none.
            A record may claim success and name none for a while.

        audio_id: The track converted, if the record names it.

        error_code: The service's code of the failure; `None` for none (0 included).

        error_message: The service's words on it, made printable; `None` for none.

        created_at:
            Naive: the service names no zone. Times sent as numbers are UTC.
            `None` where absent or unreadable.

        completed_at: As *created_at*.

        raw: The record as sent, unknown fields included.

    Source: docs.kie.ai, "Get WAV Details".
    """

    task_id: str
    state: TaskState
    status: str = ""
    wav_url: URL | None = None
    audio_id: str | None = None
    error_code: int | None = None
    error_message: str | None = None
    created_at: dt.datetime | None = None
    completed_at: dt.datetime | None = None
    raw: Mapping[str, object] = attrs.field(factory=dict[str, object], hash=False, repr=False)


@attrs.frozen
class Callback:
    """
    What one callback says.

    The signature covers *task_id* and *timestamp* and **nothing else**: whoever has
    seen a genuine callback can send another with the same two and a body of his
    own. Ask `WavSession.get_task` before you act on the rest.

    Attributes:
        task_id: The conversion task; ASCII letters, digits, ``_`` and ``-``.

        code: The service's code: 200 for success; `None` if there is none to read.

        message: The service's words, made printable; may be empty.

        wav_url: Absolute http(s) URL of the file, as sent; `None` if there is none.

        timestamp: When the service signed it: Unix time in whole seconds.

        raw: The body as loaded from JSON, unknown fields included.

    Source: docs.kie.ai, "Convert to WAV Callbacks".
    """

    task_id: str
    code: int | None
    message: str
    wav_url: URL | None
    timestamp: int
    raw: Mapping[str, object] = attrs.field(factory=dict[str, object], hash=False, repr=False)


@attrs.frozen
class UnknownSubmit:
    """
    A submit of which nobody knows whether it was accepted.

    Attributes:
        track: What was submitted.

        attempt_id: Names the attempt; also the ``attempt`` of its callback URL.

        at: When its fate became unknown; aware, UTC.
    """

    track: Track
    attempt_id: str
    at: dt.datetime


@attrs.frozen(kw_only=True)
class Statistics:
    """
    A snapshot of a session's counters.

    The bill is bounded by ``accepted <= charged <= accepted + unknown``.

    Attributes:
        submitted: Submits put on the wire, repeats included.

        accepted:
            Submits the service took, those found out later included; less those
            whose task you named and took back with ``resolve_unknown``.

        unknown: Submits of unknown fate, now.

        adopted: Tasks taken over: named by a 409, or found for an unknown submit.

        in_flight: Conversions accepted and not terminal, now.

        settled_by_callback: Conversions whose first terminal news was a callback.

        settled_by_poll: Conversions whose first terminal news was a poll.

        failed: Conversions that ended badly at the service, vanished ones included.

        timed_out: Waits that ran into ``timeout_s``; the task may have ended since.

        polls: Polls sent.

        rejected_429: Requests refused with 429.

        possible_double_charges:
            Submits that were accepted with a task of their own, or became of
            unknown fate themselves, while an earlier one of the same track was
            of unknown fate. What is found out later takes none of them back.

        duplicate_results: Terminal news of tasks already settled.

        unknown_task_callbacks: Callbacks of tasks we do not know.

        rejected_callbacks: Callbacks that were not authentic or not readable.
    """

    submitted: int = 0
    accepted: int = 0
    unknown: int = 0
    adopted: int = 0
    in_flight: int = 0
    settled_by_callback: int = 0
    settled_by_poll: int = 0
    failed: int = 0
    timed_out: int = 0
    polls: int = 0
    rejected_429: int = 0
    possible_double_charges: int = 0
    duplicate_results: int = 0
    unknown_task_callbacks: int = 0
    rejected_callbacks: int = 0
