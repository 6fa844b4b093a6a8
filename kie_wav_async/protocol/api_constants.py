"""
The facts about the service, in one place: a table for each of its APIs.

What is ours (limits on what we read, retries, schedules) stands where it is used.

Sources: docs.kie.ai, "Getting Started with KIE API", "Convert to WAV", "Get WAV
Details", "Get Music Details", "Get Download URL", "Get Remaining Credits", "Convert to
WAV Callbacks", "Webhook Security Verification".
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final, NamedTuple

from kie_wav_async import errors
from kie_wav_async.models import TaskState

if TYPE_CHECKING:
    from collections.abc import Mapping


class ApiTable(NamedTuple):
    """
    One API of the service.

    Attributes:
        base_url: Its own address.

        submit_path, record_path, music_path, download_url_path, credits_path: Where a
            conversion is asked for, the record of a conversion and of a music task, a
            fresh link to a file, and the account's credits.

        submits, submits_per_s: At most so many submits in any so many seconds.

        retention_days: How long a WAV file is kept.

        ok: The code that says yes.

        not_found: The code of what there is not.

        conflict: The code of a submit for which there is a WAV already.

        error_codes: What the codes mean that say no; after a `ServerError` nobody knows
            what a submit has created.

        no_such_task_codes: What says "no such task" to a poll.

        no_link_codes: What says that there is no link to a file.

        status_names, music_status_names: Where the record of a conversion, and of a music
            task, has its status; the first that is there and says something counts.

        states: What the status words mean, in upper case.

        callback_failed: The status of a conversion that could not be called back.

        task_id_names, audio_id_names, url_names, error_code_names, error_message_names,
        created_name, completed_name, callback_url_names, track_list_names: What fields
            with these are called; the first that is there counts.

        submit_names: What a submit calls the music task, the track and the callback URL.

        task_query_name: What the query of a poll calls the task.

        music_finished: What each field of a saved music task says if all tracks are there.

        timestamp_header, signature_header: What signs a callback.

        request_id_header: What names a response in the service's own logs.
    """

    base_url: str
    submit_path: str
    record_path: str
    music_path: str
    download_url_path: str
    credits_path: str
    submits: int
    submits_per_s: float
    retention_days: int
    ok: int
    not_found: int
    conflict: int
    error_codes: Mapping[int, type[errors.ServiceError]]
    no_such_task_codes: frozenset[int]
    no_link_codes: frozenset[int]
    status_names: tuple[str, ...]
    music_status_names: tuple[str, ...]
    states: Mapping[str, TaskState]
    callback_failed: str
    task_id_names: tuple[str, ...]
    audio_id_names: tuple[str, ...]
    url_names: tuple[str, ...]
    error_code_names: tuple[str, ...]
    error_message_names: tuple[str, ...]
    created_name: str
    completed_name: str
    callback_url_names: tuple[str, ...]
    track_list_names: tuple[str, ...]
    submit_names: tuple[str, str, str]
    task_query_name: str
    music_finished: Mapping[str, frozenset[str]]
    timestamp_header: str
    signature_header: str
    request_id_header: str


KIE_WAV: Final = ApiTable(
    base_url="https://api.kie.ai",
    submit_path="/api/v1/wav/generate",
    record_path="/api/v1/wav/record-info",
    music_path="/api/v1/generate/record-info",
    download_url_path="/api/v1/common/download-url",
    credits_path="/api/v1/chat/credit",
    submits=20,
    submits_per_s=10.0,
    retention_days=14,
    ok=200,
    not_found=404,
    conflict=409,
    error_codes={
        400: errors.InvalidRequestError,
        401: errors.AuthenticationError,
        402: errors.InsufficientCreditsError,
        404: errors.NotFoundError,
        408: errors.ServerError,
        409: errors.AlreadyExistsError,
        410: errors.EndpointGoneError,
        422: errors.InvalidRequestError,
        429: errors.RateLimitedError,
        433: errors.InsufficientCreditsError,
        451: errors.SourceUnavailableError,
        455: errors.MaintenanceError,
        505: errors.FeatureDisabledError,
    },
    # In the service's and its relatives' dialects. An HTTP 404 without a code is a
    # wrong address instead.
    no_such_task_codes=frozenset({400, 404, 422}),
    no_link_codes=frozenset({404, 422}),
    status_names=("successFlag", "status", "state"),
    music_status_names=("status", "successFlag"),
    states={
        "": TaskState.PENDING,
        "PENDING": TaskState.PENDING,
        "WAITING": TaskState.PENDING,
        "QUEUING": TaskState.PENDING,
        "GENERATING": TaskState.PENDING,
        "0": TaskState.PENDING,
        "SUCCESS": TaskState.SUCCEEDED,
        "1": TaskState.SUCCEEDED,
        "成功": TaskState.SUCCEEDED,
        "CREATE_TASK_FAILED": TaskState.FAILED,
        "2": TaskState.FAILED,
        "GENERATE_WAV_FAILED": TaskState.FAILED,
        "3": TaskState.FAILED,
    },
    callback_failed="CALLBACK_EXCEPTION",
    task_id_names=("taskId", "task_id"),
    audio_id_names=("musicId", "audioId"),
    url_names=("audioWavUrl", "audio_wav_url", "wavUrl", "wav_url"),
    error_code_names=("errorCode", "failCode"),
    error_message_names=("errorMessage", "errorMsg", "failMsg"),
    created_name="createTime",
    completed_name="completeTime",
    callback_url_names=("callbackUrl", "callBackUrl"),
    track_list_names=("sunoData", "data"),
    submit_names=("taskId", "audioId", "callBackUrl"),
    task_query_name="taskId",
    music_finished={
        "status": frozenset({"SUCCESS", "CALLBACK_EXCEPTION"}),
        "state": frozenset({"success"}),
        "callbackType": frozenset({"complete"}),
    },
    timestamp_header="X-Webhook-Timestamp",
    signature_header="X-Webhook-Signature",
    request_id_header="cf-ray",
)


def deleted_at(created_at: dt.datetime) -> dt.datetime:
    """Return when the service deletes, about, what it made at *created_at*."""
    return created_at + dt.timedelta(days=KIE_WAV.retention_days)


def is_past_retention(accepted_at: dt.datetime | None, now_unix_s: float | None) -> bool:
    """
    Return whether the service may have deleted a WAV, by its own clock alone.

    Args:
        accepted_at: When it made the task; aware. `None`: it did not say.

        now_unix_s: What time it is there; `None`: it did not say.
    """
    if accepted_at is None or now_unix_s is None:
        return False
    return now_unix_s - accepted_at.timestamp() > KIE_WAV.retention_days * 86_400
