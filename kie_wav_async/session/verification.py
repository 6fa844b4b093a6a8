"""
Verification of callbacks without a session: for WSGI programs, standing receivers, tests.

What it does is in `callbacks.signature` and `callbacks.payload`; this adds the clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_wav_async._support.clock import SystemClock
from kie_wav_async._support.secret import Secret
from kie_wav_async._support.validation import verify_number, verify_type
from kie_wav_async.callbacks.payload import authenticate, build_callback, is_signable
from kie_wav_async.callbacks.signature import (
    TOLERANCE_S,
    Headers,
    parse_keys,
    shape_signed,
    verify_signed,
    verify_tolerance,
)
from kie_wav_async.errors import SignatureError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kie_wav_async.models import Callback


def verify_signature(
    task_id: str,
    timestamp: str | bytes,
    signature: str | bytes,
    *,
    keys: str | Iterable[str],
    now_unix_s: float | None = None,
    tolerance_s: float = TOLERANCE_S,
) -> None:
    """
    Return if the service signed a callback for *task_id*, and not long ago.

    The signature covers the task id and the timestamp **and nothing else**: you
    may believe which task was called back, and not what the body says of it.

    Args:
        task_id: ``data.task_id`` of the body, as sent. No signature is good for
            anything but 1 to 128 letters, digits, ``_`` and ``-`` of ASCII: an id
            with a dot could be another one with part of a timestamp.

        timestamp: ``X-Webhook-Timestamp``, as sent.

        signature: ``X-Webhook-Signature``, as sent.

        keys: The account's webhook HMAC key, or several while one replaces
            another: any of them may have signed. At least 16 characters each.

        now_unix_s: Unix time in seconds; `None` for the system's.

        tolerance_s: How far *timestamp* may lie from now, either way, in
            seconds, both ends included; above 0.

    Raises:
        SignatureError: Forged, malformed or stale. Nothing a peer sent can
            cause another error.

        TypeError: An argument of yours has the wrong type.

        ValueError: There is no key, or one that could be guessed; or a number
            is out of range.

    Source: docs.kie.ai, "Webhook Security Verification".
    """
    secret = Secret(keys)
    del keys
    verify_type(task_id, str, "task_id")
    # Yours first, so that a setting that verifies nothing shows whatever a peer sends.
    parsed = Secret(secret.parse(_some_keys))
    now = _now(now_unix_s)
    tolerance = _tolerance(tolerance_s)
    signed = shape_signed(timestamp, signature)
    if not is_signable(task_id):
        raise SignatureError(reason="signature")
    verify_signed(task_id, signed, keys=parsed, now_unix_s=now, tolerance_s=tolerance)


def parse_callback(
    headers: Headers,
    body: bytes,
    *,
    keys: str | Iterable[str],
    now_unix_s: float | None = None,
    tolerance_s: float = TOLERANCE_S,
) -> Callback:
    """
    Verify a callback and return what it says.

    Args:
        headers: All headers of the request: a mapping or pairs, of text or of
            bytes, whatever the case of the names.

        body: The body as received, 64 KiB at most.

        keys: As for `verify_signature`.

        now_unix_s: Unix time in seconds; `None` for the system's.

        tolerance_s: As for `verify_signature`.

    Raises:
        SignatureError: Forged, malformed or stale: answer 401, without a body.

        CallbackFormatError: The body cannot be read: answer 400. Nothing a peer
            sent can cause a third kind of error.

        TypeError: An argument of yours has the wrong type.

        ValueError: There is no key, or one that could be guessed; or a number
            is out of range.

    Sources: docs.kie.ai, "Convert to WAV Callbacks" and "Webhook Security
    Verification".
    """
    secret = Secret(keys)
    del keys
    task_id, signed, root = authenticate(
        headers,
        body,
        keys=Secret(secret.parse(_some_keys)),
        now_unix_s=_now(now_unix_s),
        tolerance_s=_tolerance(tolerance_s),
    )
    return build_callback(task_id, signed, root)


def _some_keys(keys: str | Iterable[str]) -> tuple[bytes, ...]:
    parsed = parse_keys(keys, "keys")
    if not parsed:
        msg = "keys is empty: without a key nothing can be verified"
        raise ValueError(msg)
    return parsed


def _now(now_unix_s: float | None) -> float:
    if now_unix_s is None:
        return SystemClock().time()
    verify_number(now_unix_s, "now_unix_s")
    return now_unix_s


def _tolerance(tolerance_s: float) -> float:
    verify_tolerance(tolerance_s)
    return tolerance_s
