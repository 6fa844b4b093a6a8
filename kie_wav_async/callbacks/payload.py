"""
Callbacks as values: what a delivery says, and whether to believe that it was sent.

Total: whatever the bytes, there is a value or one of our two errors. The body is
read strictly, since two parsers that read it differently are a hole: one task id
in however many spellings, and no name twice in an object.

Order of judgement: the shape of the headers, the body and its id, the signature,
the age. A callback that says ``stale`` is thus a genuine one.

Sources: docs.kie.ai, "Convert to WAV Callbacks" and "Webhook Security Verification".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, cast

from kie_wav_async.callbacks.signature import (
    TOLERANCE_S,
    Headers,
    Keys,
    Signed,
    read_signed,
    verify_signed,
)
from kie_wav_async.errors import CallbackFormatError
from kie_wav_async.models import Callback
from kie_wav_async.protocol.api_constants import KIE_WAV
from kie_wav_async.protocol.envelope import (
    JsonObject,
    as_object,
    load_object,
    make_strict_object,
    parse_int,
    parse_text,
)
from kie_wav_async.protocol.responses import says_failed
from kie_wav_async.protocol.urls import find_url

if TYPE_CHECKING:
    from yarl import URL

#: Longest body that is read. The service's have some hundred bytes; this is what
#: other receivers of webhooks take, three times over.
MAX_BODY_LENGTH: Final = 64 * 1024

#: Most lists and objects in a body, brackets in texts included. The service's have
#: a handful; tens of thousands take milliseconds before anything is verified.
_MAX_CONTAINERS: Final = 1_000

#: What a signed id may consist of: nothing that could be part of ``.`` and a
#: timestamp, else one signature would serve for two ids.
_TASK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")

_BYTES: Final = (bytes, bytearray, memoryview)


def authenticate(
    headers: Headers,
    body: bytes,
    *,
    keys: Keys,
    now_unix_s: float,
    tolerance_s: float = TOLERANCE_S,
) -> tuple[str, Signed, JsonObject]:
    """
    Return task id, headers and body of a callback, if one of *keys* signed its id and time.

    Raises:
        SignatureError: Forged, malformed or stale.

        CallbackFormatError: The body cannot be read.

        TypeError: *headers* or *body* has the wrong type.
    """
    signed = read_signed(headers)
    task_id, root = read_body(body)
    verify_signed(task_id, signed, keys=keys, now_unix_s=now_unix_s, tolerance_s=tolerance_s)
    return task_id, signed, root


def build_callback(task_id: str, signed: Signed, root: JsonObject) -> Callback:
    """Return what a callback says, for those who have no session to make use of it."""
    return Callback(
        task_id=task_id,
        code=parse_int(root.get("code")),
        message=parse_text(root.get("msg")) or parse_text(root.get("message")),
        wav_url=find_url(root, as_object(root.get("data"))),
        timestamp=int(signed.timestamp),
        raw=root,
    )


def read_body(body: bytes) -> tuple[str, JsonObject]:
    """
    Return the task id of a callback's body, and all of the body; nothing is verified.

    Raises:
        CallbackFormatError: It cannot be read.

        TypeError: *body* is no bytes.
    """
    given = cast("object", body)
    if not isinstance(given, _BYTES):
        msg = f"body must be bytes as they were received, not {type(given).__name__}"
        raise TypeError(msg)
    raw = bytes(cast("bytes", given))
    if len(raw) > MAX_BODY_LENGTH:
        msg = f"the body is longer than {MAX_BODY_LENGTH} bytes"
        raise CallbackFormatError(msg)
    is_huge = raw.count(b"[") + raw.count(b"{") > _MAX_CONTAINERS
    root = None if is_huge else load_object(raw, make_strict_object)
    if root is None:
        msg = "the body is no JSON object in UTF-8, holds too many, or names something twice"
        raise CallbackFormatError(msg)
    return _find_task_id(root, as_object(root.get("data"))), root


def find_wav_url(root: JsonObject) -> URL | None:
    """Return the file that a callback names, if all of it says that the conversion succeeded."""
    data = as_object(root.get("data"))
    if parse_int(root.get("code")) != KIE_WAV.ok or says_failed(data):
        return None
    return find_url(root, data)


def is_signable(task_id: str) -> bool:
    """Return whether *task_id* is one that a signature can be good for."""
    return _TASK_ID.fullmatch(task_id) is not None


def _find_task_id(root: JsonObject, data: JsonObject) -> str:
    """
    Return the one task id of a body.

    Raises:
        CallbackFormatError: It names none, two different ones, or one that cannot be.
    """
    found: str | None = None
    for place in (data, root):
        for name in KIE_WAV.task_id_names:
            value = place.get(name)
            if value is None:
                continue
            if not isinstance(value, str) or not is_signable(value):
                msg = "a task id is not 1 to 128 letters, digits, _ and - of ASCII"
                raise CallbackFormatError(msg)
            if found is not None and value != found:
                msg = "it names two different tasks"
                raise CallbackFormatError(msg)
            found = value
    if found is None:
        msg = "it names no task"
        raise CallbackFormatError(msg)
    return found
