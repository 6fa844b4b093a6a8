"""
The service's signature on a callback: what it covers, and how it is verified.

The signed text is ``task_id + "." + timestamp``, and the signature the base64 of
its HMAC-SHA256. **The rest of the body is not covered**: a genuine signature says
which task was called back and when, and nothing of how the task ended.

Nothing a peer sent is decoded here. Our own signature is encoded, and bytes are
compared with bytes, so that no header can provoke another error than ours, and
no second spelling of a signature is taken for the first.

Source: docs.kie.ai, "Webhook Security Verification".
"""

from __future__ import annotations

import binascii
import hmac
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias, cast

import attrs

from kie_wav_async._support.secret import Secret
from kie_wav_async._support.validation import verify_number, verify_type
from kie_wav_async.errors import SignatureError
from kie_wav_async.protocol.api_constants import KIE_WAV

#: The keys that may have signed, in UTF-8.
Keys: TypeAlias = Secret[tuple[bytes, ...]]

Text: TypeAlias = str | bytes

#: Headers as frameworks have them: a mapping or pairs, of text or of bytes.
Headers: TypeAlias = Mapping[str, str] | Mapping[bytes, bytes] | Iterable[tuple[Text, Text]]

#: How far a timestamp may lie from now, either way, in seconds. The service
#: names no value; this one is what other webhooks use.
TOLERANCE_S: Final = 300.0

#: Shortest key that is taken: a shorter one can be guessed.
_MIN_KEY_LENGTH: Final = 16

_TIMESTAMP_NAME: Final = KIE_WAV.timestamp_header.lower().encode()
_SIGNATURE_NAME: Final = KIE_WAV.signature_header.lower().encode()

#: Nearly all other headers have another length, and are passed over.
_NAME_LENGTHS: Final = (len(_TIMESTAMP_NAME), len(_SIGNATURE_NAME))

#: Made once: ``tuple | list`` would be made for each header.
_PAIR: Final = (tuple, list)
_TEXT: Final = (str, bytes)

#: Ten digits of ASCII: from 2001 to 2286. `str.isdigit` and ``\d`` know digits
#: of other scripts, and `int` takes blanks, signs and underscores as well.
_TIMESTAMP: Final = re.compile(rb"[1-9][0-9]{9}")

#: 32 bytes in base64, padding included.
_SIGNATURE_LENGTH: Final = 44


@attrs.frozen
class Signed:
    """
    The two headers of a callback, of the right shape; nothing is verified yet.

    Attributes:
        timestamp: Ten digits: Unix seconds.

        signature: 44 bytes.
    """

    timestamp: bytes
    signature: bytes = attrs.field(repr=False)


def sign(task_id: str, timestamp: int | str, key: str) -> str:
    """
    Return the signature the service puts on a callback: 44 characters of base64.

    For tests, and for those who send. It signs any text, also such as would be
    refused on arrival.

    Args:
        task_id: The conversion task.

        timestamp: Unix time in whole seconds; a `str` is signed as it stands.

        key: The account's webhook HMAC key, as text. Shorter keys than those
            that may verify are taken.

    Raises:
        TypeError: An argument has the wrong type.

        ValueError: *key* is empty or blank.

    Source: docs.kie.ai, "Webhook Security Verification".
    """
    secret = Secret(key)
    del key
    verify_type(task_id, str, "task_id")
    given = cast("object", timestamp)  # Callers without a type checker pass floats.
    if isinstance(given, bool) or not isinstance(given, int | str):
        msg = f"timestamp must be an int or a str, not {type(given).__name__}"
        raise TypeError(msg)
    encoded = Secret(secret.parse(_encode_key))
    # A lone surrogate is no text, but a test may well want it signed.
    message = f"{task_id}.{timestamp}".encode("utf-8", "surrogatepass")
    return _sign(message, encoded.reveal()).decode()


def _encode_key(key: str) -> bytes:
    verify_type(key, str, "key")
    if not key.strip():
        msg = "key must not be empty or blank"
        raise ValueError(msg)
    return key.encode("utf-8", "surrogatepass")


def _sign(message: bytes, key: bytes) -> bytes:
    return binascii.b2a_base64(hmac.digest(key, message, "sha256"), newline=False)


def parse_keys(keys: str | Iterable[str], name: str) -> tuple[bytes, ...]:
    """
    Return the bytes of one key or several; the texts of errors never show one.

    Raises:
        TypeError: *keys* is neither a `str` nor an iterable of `str`.

        ValueError:
            A key is empty, blank, shorter than 16 characters, no Unicode text,
            or begins or ends with a blank, as a line read from a file may.
    """
    given = cast("object", keys)  # Callers without a type checker pass None.
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        msg = f"{name} must be a str or several, not {type(given).__name__}"
        raise TypeError(msg)
    several = (keys,) if isinstance(keys, str) else tuple(keys)
    return tuple(_parse_key(key, name) for key in several)


def _parse_key(key: str, name: str) -> bytes:
    verify_type(key, str, f"each of {name}")
    if not key.strip():
        msg = f"{name} holds an empty key: anybody could sign with it"
        raise ValueError(msg)
    if key != key.strip():
        msg = f"a key of {name} begins or ends with a blank or a line break, which is part of it"
        raise ValueError(msg)
    if len(key) < _MIN_KEY_LENGTH:
        msg = f"a key of {name} is shorter than {_MIN_KEY_LENGTH} characters: it could be guessed"
        raise ValueError(msg)
    encoded = key.encode(errors="ignore")
    # Not asked by way of the codec's error, which would carry the key behind ours.
    if encoded.decode() != key:
        msg = f"a key of {name} is no Unicode text"
        raise ValueError(msg)
    return encoded


def verify_tolerance(tolerance_s: float) -> None:
    """
    Return if *tolerance_s* is one: freshness cannot be switched off.

    Raises:
        TypeError: It is not a number.

        ValueError: It is not finite, or not above 0.
    """
    verify_number(tolerance_s, "tolerance_s", above=0)


def read_signed(headers: Headers) -> Signed:
    """
    Return the two headers of a callback, whatever the case of their names.

    Raises:
        SignatureError:
            ``headers``: not exactly one of each. ``timestamp``: not ten digits.
            ``signature``: not 44 bytes.

        TypeError: *headers* is neither a mapping nor pairs.
    """
    timestamps: list[object] = []
    signatures: list[object] = []
    given = _iterable(headers)
    for pair in cast("Iterable[tuple[Any, ...] | list[Any] | None]", given):
        if not isinstance(pair, _PAIR) or len(pair) != 2:  # noqa: PLR2004 - a pair
            msg = "headers must be pairs of a name and a value"
            raise TypeError(msg)
        name, value = pair
        if not isinstance(name, _TEXT) or len(name) not in _NAME_LENGTHS:
            continue
        lowered = _bytes(name).lower()
        if lowered == _TIMESTAMP_NAME:
            timestamps.append(value)
        elif lowered == _SIGNATURE_NAME:
            signatures.append(value)
    if len(timestamps) != 1 or len(signatures) != 1:
        names = f"{KIE_WAV.timestamp_header} and {KIE_WAV.signature_header}"
        raise SignatureError(reason="headers", headers=names)
    return shape_signed(timestamps[0], signatures[0])


def shape_signed(timestamp: object, signature: object) -> Signed:
    """
    Return timestamp and signature if they have the right shape.

    Raises:
        SignatureError: ``timestamp``: not ten digits. ``signature``: not 44 bytes.
    """
    signed = Signed(_bytes(timestamp), _bytes(signature))
    if _TIMESTAMP.fullmatch(signed.timestamp) is None:
        raise SignatureError(reason="timestamp")
    if len(signed.signature) != _SIGNATURE_LENGTH:
        raise SignatureError(reason="signature")
    return signed


def _iterable(headers: Headers) -> Iterable[object]:
    """
    Return what *headers* are made of: pairs, if they are headers.

    Raises:
        TypeError: They are not made of anything, or of characters.
    """
    # Multidicts of several frameworks are no Mapping, but have items().
    items = getattr(headers, "items", None)
    given = cast("object", items() if callable(items) else headers)
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        msg = f"headers must be a mapping or pairs, not {type(given).__name__}"
        raise TypeError(msg)
    return cast("Iterable[object]", given)


def _bytes(value: object) -> bytes:
    """
    Return a header's name or value as bytes; empty if it is no ASCII text.

    The lower case of the Kelvin sign is a ``k``; of bytes only ASCII has one.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value.isascii():
        return value.encode()
    return b""


def _is_genuine(task_id: str, signed: Signed, keys: tuple[bytes, ...]) -> bool:
    message = task_id.encode("utf-8", "surrogatepass") + b"." + signed.timestamp
    is_genuine = False
    for key in keys:
        is_genuine |= hmac.compare_digest(_sign(message, key), signed.signature)
    return is_genuine


def verify_signed(
    task_id: str,
    signed: Signed,
    *,
    keys: Keys,
    now_unix_s: float,
    tolerance_s: float = TOLERANCE_S,
) -> None:
    """
    Return if one of *keys* signed *task_id* and the time, and not long ago.

    Every key is tried, so that the time taken does not tell which one it was;
    and the age is judged last, so that ``stale`` is said of genuine ones only.

    Raises:
        SignatureError: ``signature``: no key signed this. ``stale``: too old, or too far ahead.
    """
    if not _is_genuine(task_id, signed, keys.reveal()):
        raise SignatureError(reason="signature", task_id=task_id)
    # Written as "not <=" so that a NaN clock refuses rather than accepts.
    if not abs(now_unix_s - int(signed.timestamp)) <= tolerance_s:
        raise SignatureError(reason="stale", task_id=task_id)
