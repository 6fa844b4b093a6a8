"""Checks of arguments and of texts that come from outside."""

from __future__ import annotations

import sys
import unicodedata
from typing import TypeGuard

#: Longest id we accept. The service's are 32 or 36 characters; the bound keeps
#: a stray document out of URLs and logs.
MAX_ID_LENGTH = 256


def verify_id(value: object, name: str) -> None:
    """
    Return if *value* can be an id of the service.

    An id is 1 to 256 visible characters, without blanks.

    Raises:
        TypeError: *value* is not a `str`.

        ValueError: *value* is empty, too long, or has a blank or a control character.
    """
    verify_type(value, str, name)
    if not is_id(value):
        shown = str(value)[:80]
        msg = f"{name} must be 1 to {MAX_ID_LENGTH} visible characters, no blanks: {shown!r}"
        raise ValueError(msg)


def verify_type(value: object, kind: type, name: str) -> None:
    """
    Return if *value* is a *kind*.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, kind):
        msg = f"{name} must be a {kind.__name__}, not {type(value).__name__}"
        raise TypeError(msg)


def is_id(value: object) -> TypeGuard[str]:
    """Return whether *value* can be an id of the service."""
    # str.isprintable() is false for controls, lone surrogates and every blank but " ".
    return (
        isinstance(value, str)
        and 0 < len(value) <= MAX_ID_LENGTH
        and value.isprintable()
        and " " not in value
    )


def verify_number(
    value: object, name: str, *, above: float | None = None, least: float | None = None
) -> None:
    """
    Return if *value* is a finite number above *above* and not below *least*.

    Raises:
        TypeError: *value* is not a number.

        ValueError: *value* is NaN, infinite or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{name} must be a number, not {type(value).__name__}"
        raise TypeError(msg)
    # Also false for NaN, and for an int too large to be a float.
    if not -sys.float_info.max <= value <= sys.float_info.max:
        msg = f"{name} must be a finite number"
        raise ValueError(msg)
    if above is not None and value <= above:
        msg = f"{name} must be above {above:g}, not {value!r}"
        raise ValueError(msg)
    if least is not None and value < least:
        msg = f"{name} must be at least {least:g}, not {value!r}"
        raise ValueError(msg)


def verify_count(value: object, name: str) -> None:
    """
    Return if *value* is a whole number above 0.

    Raises:
        TypeError: *value* is not an `int`.

        ValueError: *value* is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name} must be an int, not {type(value).__name__}"
        raise TypeError(msg)
    if value < 1:
        msg = f"{name} must be at least 1"
        raise ValueError(msg)


def strip_controls(text: str) -> str:
    """
    Return *text* as one line, without control, format, surrogate and private characters.

    Line breaks and tabs become blanks, runs of blanks become one. Titles and
    messages come from strangers and end up in terminals and logs.
    """
    if text.isalnum() and text.isascii():  # Most words of the service.
        return text
    visible = (c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    return " ".join("".join(visible).split())
