"""
Read a WAV file as it comes: whether it is one, and how long it says it is.

`WavScanner` walks the chunks of a file piece by piece and keeps a few numbers, never
the sound. Only what players commonly read is a WAV file here: RIFF, RF64 or BW64 with
a format and at least one sample frame. RIFX, the same in big-endian order, is not.

The sizes in a header are often wrong: a program that writes to a pipe cannot know
them, and many count a few bytes too many or too few. So a size only matters if more
bytes are missing than such a mistake explains.

Sources: Microsoft and IBM, "Multimedia Programming Interface and Data
Specifications 1.0" (RIFF); EBU Tech 3306 (RF64); ITU-R BS.2088 (BW64).
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: Longest file that is accepted, in bytes. Three minutes of sound are 32 MB. A header
#: that declares more does not know the size: programs that write to a pipe leave
#: such numbers (0x7FFFF024, 0x7FFFFFFF, 0xFFFFFFFF).
MAX_BYTES: Final = 1 << 30

#: How many bytes tell whether a file begins as a WAV file.
HEAD_LENGTH: Final = 12

#: A declared size may be wrong by so many bytes: the 8 bytes of a chunk's own header,
#: counted where they should not be, or a padding byte.
TOLERANCE: Final = 8

# What names the kind, a size, the form.
_FORM: Final = struct.Struct("<4sI4s")
_CHUNK: Final = struct.Struct("<4sI")
# The two 64-bit sizes, of the file and of the sound, that the first chunk of the
# kinds for more than 4 GB begins with.
_DS64: Final = struct.Struct("<QQ")
_LEAST_DS64: Final = 24
# Format tag, channels, frames per second, bytes per second, bytes per frame.
_FORMAT: Final = struct.Struct("<HHIIH")

_LONG_KINDS: Final = frozenset({b"RF64", b"BW64"})
_KINDS: Final = _LONG_KINDS | {b"RIFF"}
# A size of 32 bits that refers to the one in the ``ds64`` chunk.
_ELSEWHERE: Final = frozenset({0, 0xFFFF_FFFF})

# Sizes do not count the name and size of the outermost chunk.
_BEFORE_SIZE: Final = 8

# The names of chunks are printable ASCII.
_NAME: Final = re.compile(rb"[\x20-\x7e]{4}", re.DOTALL)
# How HTML, XML or JSON begins that was sent where chunks or sound were expected. Of the
# sound so many bytes are looked at that no sound has such by chance.
_TEXT: Final = re.compile(
    rb"(?:\xef\xbb\xbf)?(?=[\t\n\r\x20-\x7e]+\Z)\s*(?:<[!?/a-z]|\{\s*\"[a-z_])", re.IGNORECASE
)
_SOUND_HEAD: Final = 16


class ShortWavError(ValueError):
    """
    A WAV file has fewer bytes than its header declares.

    Attributes:
        is_playable: Whether it has a format and some sound.
    """

    def __init__(self, message: str, *, is_playable: bool) -> None:
        super().__init__(message)
        self.is_playable = is_playable


class WavScanner:
    """
    Reads the chunks of one file while its bytes come.

    Attributes:
        length: How many bytes came.
    """

    def __init__(self) -> None:
        self.length = 0
        # The next thing to read: where it is, how long, what came of it, and its reader.
        self._at = 0
        self._size = _FORM.size
        self._window = b""
        self._reader: Callable[[bytes], None] | None = self._read_form
        self._form = b""
        self._is_wave = self._is_long = self._is_text = False
        # Sizes are 0 where they are not known.
        self._declared = 0
        self._long_sound_size = 0
        self._frame_size = 0
        self._sound_at: int | None = None
        self._sound_size = 0
        self._chunk_end = 0

    def feed(self, piece: bytes) -> None:
        """Read the next bytes of the file."""
        start, self.length = self.length, self.length + len(piece)
        while self._reader is not None:
            first = self._at + len(self._window) - start
            self._window += piece[first : first + self._size - len(self._window)]
            if len(self._window) < self._size:
                return
            window, self._window = self._window, b""
            self._reader(window)

    # --- what it is ---------------------------------------------------------------------------

    @property
    def flaw(self) -> str | None:
        """How a file begins that is no WAV file; `None` if it is one, or may become one."""
        head = self._form or self._window
        may_be = self._is_wave if self._form else any(kind.startswith(head[:4]) for kind in _KINDS)
        # The text of bytes is ASCII without control characters.
        return None if may_be else f"begins with {head!r}, as no WAV file does"

    @property
    def promised(self) -> int | None:
        """
        The length of the whole file in bytes, as its header declares it.

        `None` if it does not, or if a sound without a size goes beyond that: where such a
        sound ends is unknown. If the sound alone is declared longer, where that ends.
        """
        if self._sound_at is not None and not self._sound_size:
            is_meant = self._sound_at < self._declared >= self.length
            return self._declared if is_meant else None
        return max(self._declared, self._sound_end) if self._declared else None

    def verify(self, *, accept_short: bool = False) -> tuple[str, ...]:
        """
        Return if the bytes are a WAV file, provided that no more will come.

        Args:
            accept_short: Accept a file that has fewer bytes than its header declares.

        Returns:
            What is unusual about it, in short texts.

        Raises:
            ShortWavError: Bytes are missing; the text says how many there are.

            ValueError: It is no WAV file; the text says what it is instead.
        """
        if self.flaw is not None:
            raise ValueError(self.flaw)
        if self.length < HEAD_LENGTH + _CHUNK.size:
            msg = f"has only {self.length} bytes, which are no more than the name of a WAV file"
            raise ValueError(msg)
        if self._is_text:
            msg = "begins as a WAV file does and goes on with text"
            raise ValueError(msg)
        is_playable = 0 < self._frame_size <= self._sound_length
        declared = self._least()
        if declared - self.length > TOLERANCE:
            if not accept_short or not is_playable:
                msg = f"is {self.length:,} bytes long and declares {declared:,}"
                raise ShortWavError(msg, is_playable=is_playable)
            return (f"only {self.length:,} of the {declared:,} bytes that the header declares",)
        if not is_playable:
            what = "no sound" if self._frame_size else "no format that describes the sound"
            msg = f"is a WAV file with {what}"
            raise ValueError(msg)
        return tuple(self._notes())

    # --- sizes --------------------------------------------------------------------------------

    @property
    def _sound_end(self) -> int:
        return (self._sound_at or 0) + self._sound_size if self._sound_size else 0

    @property
    def _sound_length(self) -> int:
        """How many bytes of sound came."""
        if self._sound_at is None:
            return 0
        rest = self.length - self._sound_at
        if self._sound_size:
            return min(self._sound_size, rest)
        # Without a size the sound ends with the file, unless only chunks follow.
        is_next_chunk = self._reader == self._read_chunk and not self._window
        return 0 if is_next_chunk and 0 <= self._at - self.length <= 1 else rest

    @property
    def _is_sound_miscounted(self) -> bool:
        # Some programs write the length of the file where that of the sound belongs.
        return self._sound_size in {self.length, self.length - _BEFORE_SIZE}

    def _least(self) -> int:
        """Return how long a complete file must at least be."""
        return max(self._declared, 0 if self._is_sound_miscounted else self._sound_end)

    def _notes(self) -> list[str]:
        notes: list[str] = []
        declared = self._declared or self._sound_end
        if declared and self.length != declared + (declared % 2 and self.length > declared):
            notes.append(f"{self.length:,} bytes, and the header declares {declared:,}")
        if (missing := self._sound_end - self.length) > 0:
            notes.append(f"the header declares {missing:,} more bytes of sound than there are")
        return notes

    # --- chunks -------------------------------------------------------------------------------

    def _expect(self, at: int, size: int, reader: Callable[[bytes], None] | None) -> None:
        self._at, self._size, self._reader = at, size, reader

    def _next_chunk(self) -> None:
        self._expect(self._chunk_end, _CHUNK.size, self._read_chunk)

    def _read_form(self, window: bytes) -> None:
        kind, size, form = _FORM.unpack(window)
        self._form = window
        self._is_wave = kind in _KINDS and form == b"WAVE"
        self._is_long = kind in _LONG_KINDS
        if not self._is_wave:
            self._reader = None
            return
        if not (self._is_long and size in _ELSEWHERE):
            self._declared = _known(size, _BEFORE_SIZE)
        self._chunk_end = _FORM.size
        self._next_chunk()

    def _read_chunk(self, window: bytes) -> None:
        if self._ends_with_text(window):
            return
        if not _NAME.match(window):
            self._reader = None
            return
        name, size = _CHUNK.unpack(window)
        body = self._at + _CHUNK.size
        self._chunk_end = body + size + size % 2
        if name == b"fmt " and size >= _FORMAT.size:
            self._expect(body, _FORMAT.size, self._read_format)
        elif name == b"ds64" and size >= _LEAST_DS64 and self._is_long:
            self._expect(body, _DS64.size, self._read_ds64)
        elif name == b"data" and not self._sound_size:
            self._begin_sound(body, size)
        else:
            self._next_chunk()

    def _read_format(self, window: bytes) -> None:
        _, channels, rate, _, frame_size = _FORMAT.unpack(window)
        if channels and rate:
            self._frame_size = frame_size or 1
        self._next_chunk()

    def _read_ds64(self, window: bytes) -> None:
        size, sound_size = _DS64.unpack(window)
        self._declared = self._declared or _known(size, _BEFORE_SIZE)
        self._long_sound_size = sound_size
        self._next_chunk()

    def _begin_sound(self, body: int, size: int) -> None:
        if self._is_long and size in _ELSEWHERE:
            size = self._long_sound_size
        self._sound_at, self._sound_size = body, size if _known(size, body) else 0
        self._chunk_end = body + size + size % 2
        if size >= _SOUND_HEAD:
            self._expect(body, _SOUND_HEAD, self._read_sound)
        else:  # What follows a sound without a size is sound, or the next chunk.
            self._next_chunk()

    def _read_sound(self, window: bytes) -> None:
        if self._ends_with_text(window):
            return
        if self._sound_size:
            self._next_chunk()
        else:
            self._reader = None

    def _ends_with_text(self, window: bytes) -> bool:
        """Return whether text was sent instead of sound, and nothing further is to be read."""
        is_after_sound = bool(self._sound_size) and self._reader == self._read_chunk
        self._is_text = not is_after_sound and _TEXT.match(window) is not None
        if self._is_text:
            self._reader = None
        return self._is_text


def _known(size: int, before: int = 0) -> int:
    """Return a declared *size* and what stands *before* it; 0 if it cannot be meant."""
    return size + before if 0 < size <= MAX_BYTES - before else 0
