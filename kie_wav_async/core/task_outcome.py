"""What a record of the service makes of a task: its end, or no news."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final

from kie_wav_async.core.state_machine import Origin
from kie_wav_async.errors import AlreadyExistsError, ConversionFailedError, NotFoundError
from kie_wav_async.models import TaskState, WavFile
from kie_wav_async.protocol.api_constants import KIE_WAV, deleted_at
from kie_wav_async.protocol.envelope import quote

if TYPE_CHECKING:
    from yarl import URL

    from kie_wav_async.core.state_machine import TaskEntry
    from kie_wav_async.errors import KieWavError
    from kie_wav_async.models import SettledBy, TaskRecord

#: How long after acceptance a missing record is no news. The service may not
#: show a task it has just created. Ours.
MISSING_GRACE_S: Final = 60.0

#: How many polls of an attached task may find no record; its age is unknown.
MAX_ATTACHED_MISSING: Final = 3


def terminal_error(
    entry: TaskEntry, record: TaskRecord | None, now_mono_s: float, *, is_hint: bool
) -> KieWavError | None:
    """
    Return the error that *record* ends *entry* with, if it does, and note what it brings.

    Args:
        entry: In flight, or timed out and kept.

        record: `None` if the service has none.

        now_mono_s: The time.

        is_hint: Whether a callback caused the poll; see `Registry.observe`.
    """
    if record is None:
        entry.missing_count += not is_hint
        if entry.origin is Origin.ATTACHED:
            missing = entry.missing_count >= MAX_ATTACHED_MISSING
        else:
            missing = now_mono_s - entry.accepted_mono_s >= MISSING_GRACE_S
        if not missing:
            return None
        return NotFoundError(
            code=KIE_WAV.not_found,
            message=f"no record of task {entry.task_id}",
            task_id=entry.task_id,
            track=entry.track,
        )
    entry.missing_count = 0
    entry.unread_response = quote(record.raw) if is_success_without_url(record) else ""
    if is_foreign(entry, record):
        return AlreadyExistsError(
            code=KIE_WAV.conflict,
            message=f"task {entry.task_id} converts another track, {record.audio_id}",
            task_id=entry.task_id,
            track=entry.track,
        )
    if record.state is TaskState.FAILED:
        why = record.error_message or record.status
        return ConversionFailedError(
            f"task {entry.task_id} failed ({why})", record=record, track=entry.track
        )
    return None


def is_success_without_url(record: TaskRecord) -> bool:
    """Return whether *record* says success and names no file that we can read."""
    return record.state is TaskState.SUCCEEDED and record.wav_url is None


def is_foreign(entry: TaskEntry, record: TaskRecord) -> bool:
    """Return whether *record* shows that a task taken over converts another track."""
    return (
        entry.origin is Origin.ADOPTED
        and entry.track is not None
        and record.audio_id is not None
        and record.audio_id != entry.track.audio_id
    )


def wav_of(
    entry: TaskEntry, url: URL, settled_by: SettledBy, created_at: dt.datetime | None
) -> WavFile:
    """Return the file of a task that succeeded; for *created_at* see `Registry.observe`."""
    expires_at = None
    if entry.origin is Origin.SUBMITTED:
        expires_at = deleted_at(dt.datetime.fromtimestamp(entry.submitted_unix_s, dt.UTC))
    return WavFile(
        task_id=entry.task_id,
        url=url,
        track=entry.track,
        settled_by=settled_by,
        expires_at=expires_at,
        accepted_at=_later(entry.accepted_at, created_at),
    )


def _later(one: dt.datetime | None, other: dt.datetime | None) -> dt.datetime | None:
    """Return the later of two times that may be unknown: the younger a file, the safer."""
    return max((at for at in (one, other) if at is not None), default=None)
