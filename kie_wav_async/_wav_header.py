"""
What the first bytes of a WAV file say of it: that it is one, and how long it is.

Only what players commonly read is a WAV file here. RIFX, the same in the other
order of bytes, is none.

Sources: Microsoft and IBM, "Multimedia Programming Interface and Data
Specifications 1.0" (RIFF); EBU Tech 3306 (RF64); ITU-R BS.2088 (BW64).
"""

from __future__ import annotations

import struct
from typing import Final

#: How many bytes `parse_wav_header` looks at, of a file that has as many.
HEAD_LENGTH: Final = 28

#: Fewer are no WAV file, whatever they are: its name is not even complete.
LEAST_LENGTH: Final = 12

#: What names the kind, a length, the form.
_FORM: Final = struct.Struct("<4sI4s")

#: The chunk that comes first in the kinds for more than 4 GB, up to its length of the file.
_DS64: Final = struct.Struct("<4sIQ")

#: A ``ds64`` chunk shorter than its three mandatory lengths is none.
_LEAST_DS64: Final = 24

_LONG_KINDS: Final = frozenset({b"RF64", b"BW64"})

#: What writers put where the length belongs that did not know it, or for which
#: its place is too small.
_UNTOLD: Final = frozenset({0, 0xFFFF_FFFF})
_UNTOLD_LONG: Final = frozenset({0, 0xFFFF_FFFF_FFFF_FFFF})

#: A length counts what comes after it.
_BEFORE_LENGTH: Final = 8


def parse_wav_header(head: bytes) -> int | None:
    """
    Return the length of the whole file in bytes, as its header declares it.

    Args:
        head:
            The first `HEAD_LENGTH` bytes or more; fewer only if the file has no
            more.

    Returns:
        At least `LEAST_LENGTH`. `None` if the file was written as a stream, so
        that its header does not know.

    Raises:
        ValueError: It is not the beginning of a WAV file; the text says what it does instead.
    """
    if len(head) < LEAST_LENGTH:
        msg = f"has only {len(head)} bytes, and no WAV file has fewer than {LEAST_LENGTH}"
        raise ValueError(msg)
    kind, size, form = _FORM.unpack_from(head)
    if (kind != b"RIFF" and kind not in _LONG_KINDS) or form != b"WAVE":
        # The text of bytes is ASCII without control characters.
        msg = f"begins with {head[:12]!r}, as no WAV file does"
        raise ValueError(msg)
    untold = _UNTOLD
    if kind in _LONG_KINDS and size in _UNTOLD and len(head) >= HEAD_LENGTH:
        name, length, long_size = _DS64.unpack_from(head, _FORM.size)
        # Without that chunk nobody tells how long it is: as if it was a stream.
        if name == b"ds64" and length >= _LEAST_DS64:
            size, untold = long_size, _UNTOLD_LONG
    if size in untold:
        return None
    declared = int(size) + _BEFORE_LENGTH
    if declared < LEAST_LENGTH:
        msg = f"declares {declared} bytes, and no WAV file has fewer than {LEAST_LENGTH}"
        raise ValueError(msg)
    return declared


def may_begin(head: bytes) -> bool:
    """Return whether *head*, however short, may be the beginning of a WAV file."""
    return any(kind.startswith(head[:4]) for kind in {b"RIFF", *_LONG_KINDS})


def is_whole(length: int, declared: int) -> bool:
    """
    Return whether a file of *length* bytes is all that its header declares, and no more.

    The last chunk is filled up to an even length by one byte, which some writers
    add without counting it, and some leave away.
    """
    return length == declared or (declared % 2 == 1 and length == declared + 1)
