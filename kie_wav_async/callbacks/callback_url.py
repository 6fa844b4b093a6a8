"""
The address the service posts results to, and the attempt it names.

Each submit names itself in the query of its callback URL, so that a callback of
a task we never learned of tells which submit made the task; the record of the
task shows the same URL. The name is a second check and no secret: query strings
end up in access logs.
"""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import quote, unquote_plus

from yarl import URL

from kie_wav_async._support.validation import verify_type
from kie_wav_async.protocol.api_constants import KIE_WAV
from kie_wav_async.protocol.urls import parse_url

if TYPE_CHECKING:
    from kie_wav_async.models import TaskRecord

#: The name under which a callback URL's query holds the attempt.
ATTEMPT_NAME: Final = "attempt"

#: Where the service is told to post when nobody listens: the field is
#: mandatory, and RFC 2606 reserves ``.invalid``, so no stranger gets results.
PLACEHOLDER_CALLBACK_URL: Final = "https://kie-wav-async.invalid/callback"

#: An attempt's name as we make them: 16 random bytes.
_ATTEMPT_ID: Final = re.compile(r"[0-9a-f]{32}")

#: Longest query looked at: what servers commonly take as a request line.
_MAX_QUERY_LENGTH: Final = 8190

#: Longest query of a callback URL: with the attempt added it must still be looked at.
_MAX_OWN_QUERY_LENGTH: Final = 4096


def parse_callback_url(value: str | URL) -> str:
    """
    Return *value* as the address to be called back at; what is ASCII stays byte for byte.

    Raises:
        TypeError: *value* is neither a `str` nor a `URL`.

        ValueError:
            Not an absolute http(s) URL; with userinfo, a fragment, blanks or
            control characters; with a query of more than 4,096 characters; or
            its query has the name ``attempt``, which is ours.
    """
    if not isinstance(value, URL):
        verify_type(value, str, "callback_url")
    text = str(value)
    url = None if " " in text else parse_url(text)
    if url is None:
        msg = "callback_url must be an absolute http(s) URL like https://example.com/kie/callback"
        raise ValueError(msg)
    if "#" in text:
        msg = "callback_url must not have a fragment"
        raise ValueError(msg)
    after_scheme = text.partition("//")[2]
    authority = re.split(r"[/?]", after_scheme, maxsplit=1)[0]
    # An empty user too, which yarl does not tell.
    if "@" in authority:
        msg = "callback_url must not hold a user or password"
        raise ValueError(msg)
    if _values_of_attempt(text.partition("?")[2]):
        msg = f"callback_url must not have {ATTEMPT_NAME!r} in its query: each submit adds its own"
        raise ValueError(msg)
    if len(text.partition("?")[2]) > _MAX_OWN_QUERY_LENGTH:
        msg = f"callback_url must not have more than {_MAX_OWN_QUERY_LENGTH} characters of query"
        raise ValueError(msg)
    if text.isascii():
        return text
    # yarl would spell the ASCII part of path and query anew as well.
    rest = quote(after_scheme.removeprefix(authority), safe=string.punctuation)
    return f"{url.scheme}://{url.raw_authority}{rest}"


def build_callback_url(callback_url: str, attempt_id: str) -> str:
    """Return *callback_url* with the attempt named at the end of its query."""
    before, _, query = callback_url.partition("?")
    if query and not query.endswith("&"):
        query += "&"
    return f"{before}?{query}{ATTEMPT_NAME}={attempt_id}"


def parse_attempt(query: str | bytes) -> str | None:
    """
    Return the attempt that the query of a delivery's URL names.

    `None` if it names none, more than one, or one that cannot be of our making.

    Args:
        query: The raw query string, without its ``?``.

    Raises:
        TypeError: *query* is neither `str` nor `bytes`.
    """
    given = cast("object", query)
    if isinstance(given, bytes):
        text = given.decode("latin-1")
    elif isinstance(given, str):
        text = given
    else:
        msg = f"query must be the raw query string, not {type(given).__name__}"
        raise TypeError(msg)
    values = _values_of_attempt(text) if len(text) <= _MAX_QUERY_LENGTH else []
    return values[0] if len(values) == 1 and _ATTEMPT_ID.fullmatch(values[0]) else None


def _values_of_attempt(query: str) -> list[str]:
    """Return the values of our name, each as it stands, however the name is quoted."""
    pairs = [part.partition("=") for part in query.split("&")]
    return [
        value
        for name, _, value in pairs
        if name == ATTEMPT_NAME or unquote_plus(name) == ATTEMPT_NAME
    ]


# --- in records -------------------------------------------------------------------------


def find_attempt(record: TaskRecord) -> str | None:
    """Return the attempt that a record's callback URL names; `None` if it names none or several."""
    url = find_callback_url(record)
    values = [] if url is None else url.query.getall(ATTEMPT_NAME, [])
    return values[0] if len(values) == 1 else None


def is_called_back_elsewhere(record: TaskRecord, callback_url: str) -> bool:
    """Return whether a record shows a callback URL that is not *callback_url*, query aside."""
    url = find_callback_url(record)
    if url is None:
        return False
    # Whoever stored it may have respelled it: as it stands, or as yarl spells both.
    # By text: yarl takes hosts in brackets apart anew, and may then refuse them.
    shown = str(url).partition("#")[0].partition("?")[0]
    ours = str(URL(callback_url, encoded=True)).partition("?")[0]
    return shown != ours and URL(shown) != URL(ours)


def find_callback_url(record: TaskRecord) -> URL | None:
    """Return the callback URL that a record shows; `None` if it shows none."""
    for name in KIE_WAV.callback_url_names:
        url = parse_url(record.raw.get(name))
        if url is not None:
            return url
    return None
