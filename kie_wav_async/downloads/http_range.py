"""
Going on with a file that was cut off: which part of it came, of how much, and of which.

Values are read as strictly as they are written by the book, since a guess would
splice two files. A header that came several times makes no sense: pass its values
joined by commas, or do not pass them.

Source: RFC 9110, sections 8.6 (Content-Length), 8.8.3 (ETag) and 14.4 (Content-Range).
"""

from __future__ import annotations

import re
from typing import Final

import attrs

#: What may stand around a header's value.
_BLANKS: Final = " \t"

# Eighteen digits are more than any file has, and int() never meets a header full
# of them. [0-9], since \d also takes digits of other scripts.
_LENGTH: Final = re.compile(r"[0-9]{1,18}")

# The name of the unit is case-insensitive (section 14.1).
_CONTENT_RANGE: Final = re.compile(
    r"[Bb][Yy][Tt][Ee][Ss] (?P<first>[0-9]{1,18})-(?P<last>[0-9]{1,18})"
    r"/(?P<total>[0-9]{1,18}|\*)"
)

# Bytes beyond ASCII, which the book allows, could not be sent back as they came,
# and an empty tag tells no file from another. The bound is ours: it is stored, and
# sent with every request.
_STRONG_ETAG: Final = re.compile(r'"[\x21\x23-\x7e]{1,256}"')


@attrs.frozen
class ContentRange:
    """
    Which bytes of a file an answer holds.

    Attributes:
        first: Offset of the first one.

        last: Offset of the last one, itself included; not below *first*.

        total: Length of the whole file, above *last*; `None` if it is not told.
    """

    first: int
    last: int
    total: int | None


def parse_content_range(value: str) -> ContentRange | None:
    """
    Return what a ``Content-Range`` says; `None` if it makes no sense.

    That of a 416, ``bytes */1234``, names no range and is none.
    """
    match = _CONTENT_RANGE.fullmatch(value.strip(_BLANKS))
    if match is None:
        return None
    first, last = int(match["first"]), int(match["last"])
    total = None if match["total"] == "*" else int(match["total"])
    if last < first or (total is not None and last >= total):
        return None
    return ContentRange(first, last, total)


def parse_length(value: str) -> int | None:
    """Return what a ``Content-Length`` says; `None` if it makes no sense."""
    text = value.strip(_BLANKS)
    return int(text) if _LENGTH.fullmatch(text) else None


def strong_etag(value: str | None) -> str | None:
    """
    Return an ``ETag`` as it is to be sent back, if it names the very bytes; else `None`.

    A weak one may stay the same while the bytes change. So may one that is none by
    the book, e.g. without quotes; then there is nothing to go on by.
    """
    if value is None:
        return None
    text = value.strip(_BLANKS)
    return text if _STRONG_ETAG.fullmatch(text) else None
