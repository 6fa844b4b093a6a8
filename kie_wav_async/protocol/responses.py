"""
The codec's upper half: answers of the service as values of ours.

It knows where the service puts things and how it spells them. Every parser is
total: whatever the bytes, it returns a value or raises one of our errors.

Names are looked up in the tables below, because the vendor's own pages disagree
on them; unknown fields are ignored. What an answer *means* is up to the envelope.

Sources: docs.kie.ai, "Convert to WAV", "Get WAV Details", "Get Music Details",
"Get Download URL", "Get Remaining Credits", "Getting Started with KIE API".
"""

from __future__ import annotations

import datetime as dt
import functools
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import cattrs
from yarl import URL

from kie_wav_async import errors
from kie_wav_async._support.validation import is_id, strip_controls
from kie_wav_async.models import TaskRecord, TaskState, Track
from kie_wav_async.protocol.api_constants import KIE_WAV
from kie_wav_async.protocol.envelope import (
    Envelope,
    JsonObject,
    as_object,
    load_object,
    open_text,
    parse_date,
    parse_int,
    parse_text,
    plausible_time,
    raise_for_code,
    read_envelope,
    unreadable,
)
from kie_wav_async.protocol.urls import find_documented_url, find_url, parse_url

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from decimal import Decimal

    from kie_wav_async.protocol.http_messages import WireResponse


class SubmitResponse(NamedTuple):
    """
    The service's answer to a submit, where there is a task to follow.

    Attributes:
        task_id: The conversion task.

        exists: Whether it existed before (code 409) rather than being created.

        accepted_unix_s: When it was created, by the service's clock; `None` if it existed
            before, or the answer has no usable ``Date``.
    """

    task_id: str
    exists: bool = False
    accepted_unix_s: float | None = None


class NoLink(NamedTuple):
    """
    The service's word that it has no link to a file.

    Attributes:
        message: What it said.

        at_unix_s: When, by its own clock; `None` if the answer has no usable ``Date``.
    """

    message: str
    at_unix_s: float | None


# --- reading: where things are spelled -----------------------------------------


def _find_task_id(root: JsonObject, data: JsonObject) -> str | None:
    """
    Return the one task id an answer names, `None` if it names none.

    Raises:
        ValueError: It names two different ones, or one that cannot be an id.
    """
    found: str | None = None
    for place in (data, root):
        for name in KIE_WAV.task_id_names:
            value = place.get(name)
            if value is None or value == "":
                continue
            if not is_id(value):
                msg = f"{name} is no id"
                raise ValueError(msg)
            if found is not None and value != found:
                msg = "two different task ids"
                raise ValueError(msg)
            found = value
    return found


# --- reading: states --------------------------------------------------------------


def parse_state(status: str, *, has_url: bool) -> TaskState | None:
    """
    Return our state for the service's status word; `None` for a word we do not know.

    An unknown word that contains FAIL or ERROR is a failure all the same.
    """
    word = status.strip().upper()
    if word == KIE_WAV.callback_failed:
        return TaskState.SUCCEEDED if has_url else TaskState.PENDING
    state = KIE_WAV.states.get(word)
    if state is None and ("FAIL" in word or "ERROR" in word):
        return TaskState.FAILED
    return state


def _status_word(data: JsonObject, names: Sequence[str] = KIE_WAV.status_names) -> str:
    """Return the status word: the first of *names* that is there and says something."""
    for name in names:
        value = data.get(name)
        if isinstance(value, str):
            if value.strip():
                return strip_controls(value)[:100]
        elif (number := parse_int(value)) is not None:
            return str(number)
    return ""


def says_failed(data: JsonObject) -> bool:
    """Return whether the status word of *data* is one of a failure."""
    return parse_state(_status_word(data), has_url=True) is TaskState.FAILED


#: A number at or above this is milliseconds: as seconds it is the year 5138.
_MILLISECONDS_FROM: Final = 1e11


def parse_moment(value: object) -> dt.datetime | None:
    """
    Return a time of the service, naive as sent; `None` if it cannot be read.

    Strings with a blank or a ``T`` keep their wall clock, a zone is dropped;
    numbers, and strings of digits, are seconds or milliseconds since 1970, UTC.
    """
    if value is None:
        return None
    # With a colon it is no number: the usual case, and worth the shortcut.
    number = None if isinstance(value, str) and ":" in value else parse_int(value)
    if number is None and isinstance(value, float) and math.isfinite(value):
        number = int(value)
    try:
        if number is not None:
            seconds = number / 1000 if abs(number) >= _MILLISECONDS_FROM else float(number)
            return dt.datetime.fromtimestamp(seconds, dt.UTC).replace(tzinfo=None)
        if isinstance(value, str):
            return dt.datetime.fromisoformat(value.strip()).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError):
        return None
    return None


def created_at(record: TaskRecord) -> dt.datetime | None:
    """
    Return when the service made the task of *record*; aware, UTC.

    `None` unless its ``createTime`` is a number, or a string of digits: other text names
    no zone. Seconds and milliseconds since 1970 are read.
    """
    value = record.raw.get(KIE_WAV.created_name)
    number = None if isinstance(value, str) and ":" in value else parse_int(value)
    if number is None:
        return None
    seconds = plausible_time(number / 1000 if abs(number) >= _MILLISECONDS_FROM else float(number))
    return None if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC)


# --- the converter: canonical objects to models -----------------------------------


@functools.cache
def _structure_record() -> Callable[[object, type[TaskRecord]], TaskRecord]:
    """
    Return what makes a record of its fields: strict about what it is given.

    A default cattrs converter coerces, ``None`` to ``"None"`` and ``True`` to 1;
    ours takes a value of the right type or refuses.
    """
    converter = cattrs.Converter(detailed_validation=False)

    def exactly(kind: type) -> None:
        def structure(value: object, _: object) -> object:
            if type(value) is not kind:
                msg = f"expected {kind.__name__}, got {type(value).__name__}"
                raise TypeError(msg)
            return value

        def structure_optional(value: object, _: object) -> object:
            return None if value is None else structure(value, _)

        converter.register_structure_hook(kind, structure)
        # cattrs finds its way through a union by itself, but slowly.
        converter.register_structure_hook(kind | None, structure_optional)

    for kind in (str, int, URL, dt.datetime, TaskState):
        exactly(kind)
    converter.register_structure_hook_func(
        lambda kind: kind == Mapping[str, object], lambda value, _: value
    )
    return converter.get_structure_hook(TaskRecord)


def _canonical(envelope: Envelope, data: JsonObject, task_id: str) -> dict[str, object]:
    """Return a record's fields under our names, each of the type our model wants."""
    status = _status_word(data)
    # Most polls bring a pending record, which need not be searched.
    is_searched = parse_state(status, has_url=True) is TaskState.SUCCEEDED
    url = (find_url if is_searched else find_documented_url)(envelope.root, data)
    state = parse_state(status, has_url=url is not None)
    audio_id = next(filter(None, map(data.get, KIE_WAV.audio_id_names)), None)
    error_code = next(
        filter(None, (parse_int(data.get(name)) for name in KIE_WAV.error_code_names)), None
    )
    message = next(
        filter(None, (parse_text(data.get(name)) for name in KIE_WAV.error_message_names)), None
    )
    if envelope.code != KIE_WAV.ok:
        error_code, message = error_code or envelope.code, message or envelope.message
    return {
        "task_id": task_id,
        "state": TaskState.PENDING if state is None else state,
        "status": status,
        "wav_url": url,
        "audio_id": audio_id if is_id(audio_id) else None,
        # 0 and "" mean "no error".
        "error_code": error_code,
        "error_message": message or None,
        "created_at": parse_moment(data.get(KIE_WAV.created_name)),
        "completed_at": parse_moment(data.get(KIE_WAV.completed_name)),
        "raw": data,
    }


# --- reading: one parser per request ------------------------------------------------


def parse_submit(response: WireResponse) -> SubmitResponse:
    """
    Read the answer to a submit.

    Raises:
        ServiceError: The service refused: nothing was created.

        TransportError: A redirect that was not followed: nothing was created.

        ServerError: 408 or 5xx other than 505: nobody knows what was created.

        WireFormatError: Unreadable, or a yes without an id: likewise.
    """
    envelope = read_envelope(response)
    data = as_object(envelope.data)
    exists = envelope.code == KIE_WAV.conflict
    if not exists:
        raise_for_code(envelope)
    try:
        task_id = _find_task_id(envelope.root, data)
    except ValueError as error:
        if exists:
            task_id = None
        else:
            raise unreadable(response, f"a submit's answer with {error}") from None
    if task_id is None:
        raise_for_code(envelope)  # 409 without an id: AlreadyExistsError.
        raise unreadable(response, "a submit's answer without a task id")
    return SubmitResponse(
        task_id=task_id,
        exists=exists,
        accepted_unix_s=None if exists else parse_date(response.date),
    )


#: The hundreds of codes that tell nothing of a submit.
_SERVER_ERRORS: Final = 5
_FIRST_REFUSAL: Final = 400


def is_answered(response: WireResponse) -> bool:
    """
    Return whether the service itself has answered: a body with a code other than 408 and 5xx.

    The code of a missing route is its ``status``, in JSON, of 400 or more.
    """
    root = load_object(response.body) or {}
    code = parse_int(root.get("code"))
    if code is None:
        status = parse_int(root.get("status"))
        code = status if status is not None and status >= _FIRST_REFUSAL else None
    if code is None or code // 100 == _SERVER_ERRORS:
        return False
    return KIE_WAV.error_codes.get(code) is not errors.ServerError


def parse_record(response: WireResponse, task_id: str) -> TaskRecord | None:
    """
    Read the answer to a poll of *task_id*; `None` if the service has no record.

    The service says so with ``data: null``, its relatives with code 400, 404 or 422.
    An error code beside data that names the task and a failed state is no refusal:
    it is the record of a conversion that failed.

    Raises:
        ServiceError: The service refused.

        TransportError: A redirect that was not followed.

        WireFormatError: Unreadable, or the record of another task.
    """
    envelope = read_envelope(response)
    data = open_text(envelope.data) or envelope.data
    fields = as_object(data)
    try:
        named = _find_task_id(envelope.root, fields)
    except ValueError as error:
        named, problem = None, str(error)
    else:
        problem = ""
    if envelope.code != KIE_WAV.ok and not (named == task_id and _says_failed(fields)):
        if envelope.in_body and envelope.code in KIE_WAV.no_such_task_codes:
            return None
        raise_for_code(envelope)
    if data is None:
        return None
    if data is not fields:
        raise unreadable(response, "a record that is no object", task_id=task_id)
    if problem:
        raise unreadable(response, f"a record with {problem}", task_id=task_id)
    if named is not None and named != task_id:
        raise unreadable(response, "the record of another task", task_id=task_id)
    return _structure_record()(_canonical(envelope, fields, task_id), TaskRecord)


def _says_failed(data: JsonObject) -> bool:
    return parse_state(_status_word(data), has_url=False) is TaskState.FAILED


def is_known_status(record: TaskRecord) -> bool:
    """Return whether the record's status is a word we know the meaning of."""
    return parse_state(record.status, has_url=record.wav_url is not None) is not None


def parse_tracks(response: WireResponse, music_task_id: str) -> list[Track]:
    """
    Read the answer to a music task's record: its distinct tracks, in order.

    Raises:
        NotFoundError: No such task, or its tracks are not complete (yet).

        ServiceError: The service refused.

        WireFormatError: Unreadable, or a track without a usable id.
    """
    envelope = read_envelope(response)
    raise_for_code(envelope)
    data = as_object(envelope.data)
    if data is not envelope.data is not None:
        raise unreadable(response, "a music task that is no object")
    status = _status_word(data, KIE_WAV.music_status_names)
    made = as_object(data.get("response"))
    listed = next(filter(None, map(made.get, KIE_WAV.track_list_names)), None)
    if not listed or parse_state(status, has_url=True) is not TaskState.SUCCEEDED:
        raise errors.NotFoundError(
            code=404 if envelope.data is None else KIE_WAV.ok,
            message=(
                f"music task {music_task_id} is unknown"
                if envelope.data is None
                else f"music task {music_task_id} has no complete list of tracks (status {status})"
            ),
            http_status=response.status,
            request_id=response.request_id,
            advice="" if envelope.data is None else _advise_on_music(status),
        )
    if not isinstance(listed, list):
        raise unreadable(response, "tracks that are no list")
    tracks: dict[Track, None] = {}
    for item in cast("list[object]", listed):
        fields = as_object(item)
        audio_id = fields.get("id") or fields.get("audioId")
        if not is_id(audio_id):
            raise unreadable(response, "a track without a usable id")
        title = fields.get("title")
        track = Track(music_task_id, audio_id, title=title if isinstance(title, str) else None)
        tracks.setdefault(track)
    return list(tracks)


def _advise_on_music(status: str) -> str:
    if parse_state(status, has_url=False) is TaskState.FAILED:
        return "it will have none; generate the music again"
    return "ask again when it is finished"


#: Bounded, so that nobody is handed a number of a million digits.
_AMOUNT: Final = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?(e[+-]?[0-9]{1,3})?")


def parse_credits(response: WireResponse) -> Decimal:
    """
    Read the account's credits: exact to 15 digits, and fractional in practice.

    Raises:
        ServiceError: The service refused.

        WireFormatError: Unreadable, or not a finite number.
    """
    envelope = read_envelope(response)
    raise_for_code(envelope)
    # str() of a float is the shortest text for it: what was sent.
    text = str(envelope.data)
    if not _AMOUNT.fullmatch(text):
        raise unreadable(response, "credits that are no number")
    from decimal import Decimal  # noqa: PLC0415 - costs time; a session has loaded it

    return Decimal(text)


def parse_download_url(response: WireResponse) -> URL:
    """
    Read the 20-minute link to a file.

    Raises:
        ServiceError: The service refused, e.g. 422 for a file that is not its own.

        WireFormatError: Unreadable, or not an absolute http(s) URL.
    """
    envelope = read_envelope(response)
    raise_for_code(envelope)
    url = parse_url(envelope.data)
    if url is None:
        raise unreadable(response, "a link that is no absolute URL")
    return url


def parse_renewal(response: WireResponse) -> URL | NoLink:
    """
    Read what the service says of a link that a host refuses.

    Only a code in the body counts as its word that there is none: an HTTP status may be
    that of anything in between.

    Raises:
        ServiceError: The service rejected the request for another reason.

        WireFormatError: Unreadable, or not an absolute http(s) URL.
    """
    envelope = read_envelope(response)
    if envelope.in_body and envelope.code in KIE_WAV.no_link_codes:
        return NoLink(f"{envelope.code} {envelope.message!r}", parse_date(response.date))
    return parse_download_url(response)
