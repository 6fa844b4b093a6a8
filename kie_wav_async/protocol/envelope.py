"""
The envelope: how an answer's bytes become a code, data, or one of our errors.

The lower half of the codec. The body's ``code`` decides if there is a usable
one, an int or a string of digits; the HTTP status is the fallback, since the
service answers failures with HTTP 200.

Sources: docs.kie.ai, "Getting Started with KIE API" and "Convert to WAV".
"""

from __future__ import annotations

import datetime as dt
import email.utils
import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from kie_wav_async import errors
from kie_wav_async._support.validation import strip_controls
from kie_wav_async.protocol.api_constants import KIE_WAV

if TYPE_CHECKING:
    from kie_wav_async.protocol.http_messages import WireResponse

JsonObject = Mapping[str, object]

#: There is none: as the code or the HTTP status.
_NOT_FOUND: Final = 404

#: Longest run of digits that is still a code or a number to us, and its bound.
_DIGITS: Final = re.compile(r"-?[0-9]{1,18}")
_INT_BELOW: Final = 10**18


#: How much of an unreadable answer an error quotes.
_EXCERPT_LENGTH: Final = 200


class Envelope(NamedTuple):
    """
    What an answer says, before it is known of what.

    Attributes:
        code: The body's code; the HTTP status where there is none to use.

        in_body: Whether *code* is the body's.

        message: The service's words, printable; may be empty.

        data: The payload, as loaded from JSON.

        root: The whole body, empty if it is no JSON object.

        response: What all this was read from.
    """

    code: int
    in_body: bool
    message: str
    data: object
    root: JsonObject
    response: WireResponse


def as_object(value: object) -> JsonObject:
    """Return *value* if it is a JSON object, else an empty one."""
    return cast("JsonObject", value) if isinstance(value, dict) else {}


@functools.cache
def _decoder(
    make_object: Callable[[list[tuple[str, object]]], JsonObject],
) -> Callable[[str], object]:
    """Return what loads JSON with *make_object*; `json.loads` would make one for each text."""
    return json.JSONDecoder(object_pairs_hook=make_object).decode


def load_object(
    body: bytes,
    make_object: Callable[[list[tuple[str, object]]], JsonObject] | None = None,
) -> JsonObject | None:
    """
    Return *body* as a JSON object; `None` if it is anything else.

    *make_object*, if given, makes each object of its pairs, and refuses by `ValueError`.
    """
    try:
        # UTF-8 with or without a mark, and never UTF-16, which json.loads would
        # guess from bytes. The codec utf-8-sig is slower than all the rest here.
        text = body.decode().removeprefix("\ufeff")
        loaded = json.loads(text) if make_object is None else _decoder(make_object)(text)
    except (ValueError, RecursionError):
        # UnicodeDecodeError, JSONDecodeError and the 4,300-digit limit are all
        # ValueErrors; deep nesting is a RecursionError.
        return None
    if _is_deep(text, loaded):
        return None
    return cast("JsonObject", loaded) if isinstance(loaded, dict) else None


def open_text(value: object) -> object:
    """
    Return the JSON object or list that *value*, a text inside an answer, holds.

    `None` if it holds none, or names something twice.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return None
    try:
        loaded = _decoder(make_strict_object)(value)
    except (ValueError, RecursionError):
        return None
    return None if _is_deep(value, loaded) else loaded


def make_strict_object(pairs: list[tuple[str, object]]) -> JsonObject:
    """
    Return *pairs* as an object without repeated names: parsers differ on which one counts.

    Raises:
        ValueError: A name stands twice.
    """
    made = dict(pairs)
    if len(made) != len(pairs):
        msg = "a name stands twice"
        raise ValueError(msg)
    return made


#: How deep an answer may be nested: ten times what the service does. An error
#: that holds a record must survive copying, which recurses.
_MAX_DEPTH: Final = 50


def _is_deep(text: str, value: object) -> bool:
    # Counting is quick, and nearly always enough.
    return text.count("[") + text.count("{") > _MAX_DEPTH and not _is_shallow(value)


def _is_shallow(value: object) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        lists = [cast("list[object]", outer) for outer in level if isinstance(outer, list)]
        lists += [list(as_object(outer).values()) for outer in level]
        if not any(lists):
            return True
        level = [inner for outer in lists for inner in outer]
    return False


#: Below this a float holds every whole number exactly.
_EXACT_BELOW: Final = 2.0**53


def parse_int(value: object) -> int | None:
    """Return an int of up to 18 digits, or what a string or whole float spells; else `None`."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if abs(value) < _INT_BELOW else None
    if isinstance(value, str) and _DIGITS.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_BELOW:
        return int(value)
    return None


def read_envelope(response: WireResponse) -> Envelope:
    """
    Return the envelope of an answer, with the code that counts.

    Raises:
        WireFormatError: There is neither a code nor an HTTP status to go by.
    """
    root = load_object(response.body)
    is_yes = 200 <= response.status < 300  # noqa: PLR2004 - HTTP's own classes
    if root is None:
        if is_yes:
            raise unreadable(response, "it is not a JSON object")
        return Envelope(
            code=response.status, in_body=False, message="", data=None, root={}, response=response
        )
    message = parse_text(root.get("msg")) or parse_text(root.get("message"))
    data = root.get("data")
    code = parse_int(root.get("code"))
    if code is None and root.get("code") is None and data is not None and is_yes:
        # Some endpoints leave the code out where all is well.
        code = KIE_WAV.ok
    if code is not None:
        return Envelope(
            code=code, in_body=True, message=message, data=data, root=root, response=response
        )
    if is_yes:
        raise unreadable(response, "it has no usable code")
    return Envelope(
        code=response.status,
        in_body=False,
        message=message,
        data=data,
        root=root,
        response=response,
    )


def parse_text(value: object) -> str:
    """Return a stranger's text, printable and bounded; empty if it is none."""
    return strip_controls(value[:2000])[:500] if isinstance(value, str) else ""


#: A callback URL in JSON, quoted however often: its query may hold a secret.
_CALLBACK_URL: Final = re.compile(
    r'(call_?back_?url\\*"\s*:\s*\\*")[^"]*?(?=\\*"|$)', re.IGNORECASE
)

#: Longest quote of an answer that the user has to read.
_QUOTE_LENGTH: Final = 500


def quote(data: JsonObject) -> str:
    """Return *data* for an error's text: JSON, printable, bounded, without callback URLs."""
    text = json.dumps(data, ensure_ascii=False)[: 100 * _QUOTE_LENGTH]
    return strip_controls(_CALLBACK_URL.sub(r"\1[hidden]", text))[:_QUOTE_LENGTH]


def unreadable(
    response: WireResponse, why: str, *, task_id: str | None = None
) -> errors.WireFormatError:
    """Return the error for an answer that makes no sense, with an excerpt of it."""
    excerpt = strip_controls(response.body[: 4 * _EXCERPT_LENGTH].decode("utf-8", "replace"))
    excerpt = excerpt[:_EXCERPT_LENGTH]
    return errors.WireFormatError(
        f"cannot read the service's answer (HTTP {response.status}): {why}; it begins {excerpt!r}",
        http_status=response.status,
        request_id=response.request_id,
        excerpt=excerpt,
        task_id=task_id,
    )


#: What other codes mean, by their hundreds.
_ERRORS_BY_CLASS: Final[Mapping[int, type[errors.ServiceError]]] = {
    4: errors.ServiceError,
    5: errors.ServerError,
}

_REDIRECT_CLASS: Final = 3


def raise_for_code(envelope: Envelope) -> None:
    """Return if the service said yes; raise what it said otherwise."""
    response = envelope.response
    code = envelope.code
    if code == KIE_WAV.ok:
        return
    if not envelope.in_body and code // 100 == _REDIRECT_CLASS:
        msg = (
            f"the service answered with a redirect (HTTP {code}), which is not followed: "
            "nothing was created"
        )
        raise errors.TransportError(msg, advice=errors.WireFormatError.advice)
    kind = KIE_WAV.error_codes.get(code) or _ERRORS_BY_CLASS.get(code // 100)
    if code == _NOT_FOUND and envelope.root.get("code") is None:
        # The service names a code where it finds nothing; a router does not.
        kind = errors.EndpointGoneError
    if kind is None:
        raise unreadable(response, f"code {code} is neither yes nor no")
    raise kind(
        code=code,
        message=envelope.message,
        http_status=response.status,
        request_id=response.request_id,
        retry_after_s=parse_retry_after(response.retry_after, response.now_unix_s),
    )


def parse_retry_after(value: str | None, now_unix_s: float) -> float | None:
    """
    Return the seconds a ``Retry-After`` header asks for; `None` if it asks nothing.

    Both forms of RFC 9110 are read, whole seconds and an HTTP date; a date gone
    by is 0. Anything else, negative numbers included, asks nothing.
    """
    if value is None:
        return None
    text = value.strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    at_unix_s = _parse_http_date(text)
    return None if at_unix_s is None else max(0.0, at_unix_s - now_unix_s)


#: No time of the service is before it: a clock that says so was never set.
_EARLIEST_UNIX_S: Final = dt.datetime(2020, 1, 1, tzinfo=dt.UTC).timestamp()
_LATEST_UNIX_S: Final = dt.datetime(2200, 1, 1, tzinfo=dt.UTC).timestamp()


def parse_date(value: str | None) -> float | None:
    """
    Return the Unix time that a ``Date`` header names; `None` if it is of no use.

    It is of none if it is absent, no HTTP date of RFC 9110, or before 2020 or after 2200.
    """
    return None if value is None else plausible_time(_parse_http_date(value.strip()))


def plausible_time(unix_s: float | None) -> float | None:
    """Return *unix_s* if it can be the time of an event at the service; else `None`."""
    if unix_s is None or not _EARLIEST_UNIX_S <= unix_s < _LATEST_UNIX_S:
        return None
    return unix_s


def _parse_http_date(text: str) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime(text)
        if moment.tzinfo is None:  # The oldest form names no zone, and means GMT.
            moment = moment.replace(tzinfo=dt.UTC)
        return moment.timestamp()
    except (ValueError, OverflowError):
        return None
