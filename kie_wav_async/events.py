"""
What ``WavSession(on_event=...)`` is called with: one frozen value per happening.

An event is sent when the session's own books already hold what it tells, and
before any waiter hears of it. `SubmitAccepted` is the first that names a task, so a
service can store the id before anything else can go wrong.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Literal

import attrs

from kie_wav_async.errors import (
    CallbackFormatError,
    DownloadError,
    KieWavError,
    SignatureError,
)
from kie_wav_async.models import CallbackResult, Download, Track, WavFile

__all__ = [
    "CallbackReceived",
    "CallbackRejected",
    "ConversionEnded",
    "ConversionSucceeded",
    "DownloadCompleted",
    "DownloadProgress",
    "DownloadRetryScheduled",
    "Event",
    "PollingPaused",
    "SubmitAccepted",
    "SubmitRejected",
    "SubmitRetryScheduled",
    "SubmitUnknown",
]

#: Every kind of event but the root, by its name.
EventName = Literal[
    "CallbackReceived",
    "CallbackRejected",
    "ConversionEnded",
    "ConversionSucceeded",
    "DownloadCompleted",
    "DownloadProgress",
    "DownloadRetryScheduled",
    "PollingPaused",
    "SubmitAccepted",
    "SubmitRejected",
    "SubmitRetryScheduled",
    "SubmitUnknown",
]


@attrs.frozen(kw_only=True)
class Event:
    """
    The root of all events.

    Attributes:
        at: When it happened; aware, UTC.
    """

    at: dt.datetime


@attrs.frozen(kw_only=True)
class SubmitAccepted(Event):
    """
    The service took a submit, or a task was taken over for one.

    Attributes:
        task_id: The conversion task.

        track: What it converts.

        attempt_id: The attempt it answers.

        adopted: Whether the task was taken over rather than newly created.
    """

    task_id: str
    track: Track
    attempt_id: str
    adopted: bool = False


@attrs.frozen(kw_only=True)
class SubmitRetryScheduled(Event):
    """
    A submit provably created nothing and will be sent again, or waits for the end of an outage.

    Attributes:
        track: What was or is to be submitted.

        error:
            Why it was not taken: unsent, 429 or 455. Of an outage, a
            `SubmitUnknownError` that names the last unknown submit: there is one
            event for each outage, for the submit that has to wait first.

        delay_s: How long we wait before the next try, at least.
    """

    track: Track
    error: KieWavError
    delay_s: float


@attrs.frozen(kw_only=True)
class SubmitRejected(Event):
    """
    A submit ended without a task, and without a charge.

    Attributes:
        track: What was submitted.

        error: Why.
    """

    track: Track
    error: KieWavError


@attrs.frozen(kw_only=True)
class SubmitUnknown(Event):
    """
    A submit's fate is unknown: it may have been charged.

    Attributes:
        track: What was submitted.

        attempt_id: Names it for ``resolve_unknown``.

        error: What got in the way of the answer.
    """

    track: Track
    attempt_id: str
    error: KieWavError


@attrs.frozen(kw_only=True)
class ConversionSucceeded(Event):
    """
    A conversion succeeded.

    Attributes:
        wav: The file.
    """

    wav: WavFile


@attrs.frozen(kw_only=True)
class ConversionEnded(Event):
    """
    A conversion left the registry without a file.

    Attributes:
        task_id: The conversion task.

        track: What it converts; `None` if attached without one.

        error: Why: it failed, vanished, or timed out.
    """

    task_id: str
    track: Track | None
    error: KieWavError


@attrs.frozen(kw_only=True)
class PollingPaused(Event):
    """
    The service refused a poll with 401 or 429, or has no such route: all polling waits.

    Attributes:
        reason: ``"authentication"``, ``"rate-limit"`` or ``"endpoint-gone"``.

        delay_s:
            How long; `None` after a second 401, or a third answer that there is no
            such route, in a row, which ends all waits.
    """

    reason: Literal["authentication", "rate-limit", "endpoint-gone"]
    delay_s: float | None


@attrs.frozen(kw_only=True)
class CallbackReceived(Event):
    """
    A callback was delivered and not refused.

    At most 600 a minute are sent for each result other than ``SETTLED``, because
    authentic callbacks can be repeated by whoever has seen them.
    ``WavSession.statistics()`` counts all of them.

    Attributes:
        task_id: The conversion task it names.

        result: What was made of it.

        is_authentic: Whether its signature was verified; `False` without webhook keys.
    """

    task_id: str
    result: CallbackResult
    is_authentic: bool


@attrs.frozen(kw_only=True)
class CallbackRejected(Event):
    """
    A callback was delivered that is not authentic or not readable: nothing was done.

    Anybody who knows the address can cause this, so at most 100 a minute are sent.
    ``WavSession.statistics().rejected_callbacks`` counts all of them.

    Attributes:
        error: Why.
    """

    error: SignatureError | CallbackFormatError


@attrs.frozen(kw_only=True)
class DownloadProgress(Event):
    """
    More of a file has come: at its beginning, at its end, and some times a second between.

    Attributes:
        wav: What is downloaded.

        path: Where it will be.

        bytes: How much of it is there; less than before where it had to begin anew.

        total: Its size; `None` if the host does not tell.
    """

    wav: WavFile
    path: Path
    bytes: int
    total: int | None


@attrs.frozen(kw_only=True)
class DownloadRetryScheduled(Event):
    """
    An attempt to download failed and there will be another.

    Attributes:
        wav: What is downloaded.

        path: Where it will be.

        error: Why the attempt failed.

        delay_s: How long we wait before the next one.
    """

    wav: WavFile
    path: Path
    error: DownloadError
    delay_s: float


@attrs.frozen(kw_only=True)
class DownloadCompleted(Event):
    """
    A file has got its name, whole and synced, or was there before.

    Attributes:
        wav: What was downloaded.

        download: The file.
    """

    wav: WavFile
    download: Download
