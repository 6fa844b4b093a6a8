"""Takes the API key out of what the service sends back."""

from __future__ import annotations

import re
from typing import Final

#: What stands where a secret stood.
_REDACTED: Final = b"[api key]"


def redact(body: bytes, secret: str) -> bytes:
    r"""
    Return *body* without *secret*, a text of ASCII characters, however JSON spells it.

    Each of its characters may be written ``\u0041`` or stand behind a backslash, as
    in ``\/``, and that once more if the body quotes JSON in a string.
    """
    stained = body.replace(secret.encode(), _REDACTED)
    if b"\\" not in stained:
        return stained
    # Three backslashes are one of JSON in JSON. Bounded, or a megabyte of
    # backslashes would take hours.
    letters = (rf"\\{{0,3}}(?:{re.escape(c)}|(?<=\\)u(?i:{ord(c):04x}))" for c in secret)
    return re.sub("".join(letters).encode(), _REDACTED, stained)
