"""
Names for files, of titles that come from strangers.

A name is one that Linux, macOS and Windows all take, that stays in its folder, and
that shows what it says: no separators or what is mistaken for them, nothing
invisible or that turns the direction of writing, no device of Windows. It leaves
room for what is written beside a file while it is not whole.

``~`` comes into a name by this module only. So no title can pass for a name that
was made unlike another, nor for the short name that Windows gives to a long one.

Sources: learn.microsoft.com, "Naming Files, Paths, and Namespaces"; Unicode
Standard Annex 15 (normalization) and Annex 44 (Default_Ignorable_Code_Point).
"""

from __future__ import annotations

import functools
import hashlib
import re
import string
import unicodedata
from typing import TYPE_CHECKING, Final

import attrs

from kie_wav_async._support.validation import strip_controls, verify_type

if TYPE_CHECKING:
    from kie_wav_async.models import Track

__all__ = ["DEFAULT_TEMPLATE", "collision_key", "file_name", "unique_suffix", "verify_template"]

#: The name of a file if the user asks for no other.
DEFAULT_TEMPLATE: Final = "{title} [{audio_id}].wav"

_EXTENSION: Final = ".wav"

#: What stands for a title that has nothing to show.
_UNTITLED: Final = "untitled"

# File systems take 255 bytes, or as many UTF-16 units; a part and its note have
# longer names than the file. Counted in UTF-8 of the decomposed form, which Apple's
# older systems store: it is never the shorter one.
_MAX_BYTES: Final = 240

# What each may take of that, so that at least 20 bytes are left for the title. The
# service's ids have 32 or 36.
_MAX_ID_BYTES: Final = 40
_MAX_WORDS_BYTES: Final = 50
_INDEX_BELOW: Final = 10**18

# Of SHA-256, for an id that could not be shown as it is.
_ID_DIGITS: Final = 16

# What some system takes for a separator, a stream, a wildcard or a pipe; what looks
# like a separator, or turns into one when a name is converted; and our own mark.
_UNSAFE: Final = frozenset(
    '/\\<>:"|?*~'
    "\u2044\u2215\u2216\u29f5\u29f8\u29f9\ufe68\uff0f\uff3c"  # Slashes of other kinds.
    "\u2100\u2101\u2105\u2106"  # Letters around a slash.
)
_REPLACED: Final = str.maketrans(dict.fromkeys(_UNSAFE, "_"))

# Invisible, and skipped by some file systems when they compare names, although they
# are no format characters: joiners, fillers, selectors of variants.
_IGNORABLE: Final = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0"
) | frozenset(map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
_DROPPED: Final = str.maketrans(dict.fromkeys(_IGNORABLE))

# As `collision_key` has them: devices of Windows, whatever follows after a dot.
_DEVICES: Final = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$", "clock$"}
    | {f"{port}{number}" for port in ("com", "lpt") for number in range(10)}
)

# Hidden, an option, a home folder, a file of options, a formula of a spreadsheet; a
# blank is lost on Windows.
_NOT_FIRST: Final = frozenset(".-~ =+@")

_FIELDS: Final = ("title", "music_task_id", "audio_id", "index")

_INDEX_SPEC: Final = re.compile(r"0[1-9]")
_SUFFIX: Final = re.compile(r"(?: ~[0-9a-f]{1,64})?")


@attrs.frozen
class _Template:
    """
    What names are made of.

    Attributes:
        pieces: In order: words, and the field after them if there is one.

        fields: All fields, each once.

        words: All words together.

        index_width: To how many digits the index is filled up.
    """

    pieces: tuple[tuple[str, str | None], ...]
    fields: frozenset[str]
    words: str
    index_width: int


def file_name(
    track: Track,
    *,
    template: str = DEFAULT_TEMPLATE,
    index: int | None = None,
    suffix: str = "",
) -> str:
    """
    Return a name for the WAV file of *track* that every common file system takes.

    It is one component of a path, in NFC, of at most 240 bytes in UTF-8, and ends in
    ``.wav``. Characters that are not safe become ``_``, invisible ones are left out.
    A title that is too long is cut. An id that is, or that has such characters, is
    cut, and the first digits of its SHA-256 stand for it. Two tracks may still come
    to the same name, or to names that some systems take for the same: see `collision_key`.

    Args:
        track: What the file is of. Without a title it is called ``untitled``.

        template:
            Words around ``{title}``, ``{music_task_id}``, ``{audio_id}`` and
            ``{index}``, at least one of them and each at most once; ``{index:06}``
            fills up with zeros. ``.wav`` is added if it does not end in it.

        index: For ``{index}``; 0 or more, below 10**18.

        suffix: As `unique_suffix` returns it, for before ``.wav``; empty for none.

    Raises:
        TypeError: *template* or *suffix* is no `str`, or *index* no `int`.

        ValueError:
            *template* is none, or names ``{index}`` without one; *index* or
            *suffix* is out of its range.
    """
    verify_type(template, str, "template")
    parsed = _parse_template(template)
    verify_type(suffix, str, "suffix")
    if not _SUFFIX.fullmatch(suffix):
        msg = f"suffix must be one of unique_suffix(), not {suffix[:80]!r}"
        raise ValueError(msg)
    texts = {
        "music_task_id": _show_id(track.music_task_id),
        "audio_id": _show_id(track.audio_id),
        "index": _show_index(parsed, index),
    }
    taken = sum(_size(texts[field]) for field in parsed.fields if field != "title")
    # One more for what may have to stand first.
    room = _MAX_BYTES - 1 - _size(parsed.words) - taken - len(suffix) - len(_EXTENSION)
    texts["title"] = _cut(_clean(track.title or "") or _UNTITLED, room)
    shown = "".join(words + (texts[field] if field else "") for words, field in parsed.pieces)
    # Once more, since what was apart may combine.
    name = unicodedata.normalize("NFC", shown + suffix)
    # Without its width or style: some systems take one for the other.
    first = unicodedata.normalize("NFKC", name[0])[0]
    is_first_bad = first in _NOT_FIRST or unicodedata.category(name[0]).startswith("M")
    if is_first_bad or collision_key(name.partition(".")[0]) in _DEVICES:
        name = f"_{name}"
    return name + _EXTENSION


def unique_suffix(track: Track, length: int = 8) -> str:
    """
    Return what makes the name of *track* unlike that of another one.

    Args:
        track: It is made of its two ids, and of nothing else.

        length: How many hexadecimal digits; 1 to 64.

    Raises:
        ValueError: *length* is out of its range.
    """
    digits = _digest(f"{track.music_task_id} {track.audio_id}")  # Ids have no blanks.
    if not 1 <= length <= len(digits):
        msg = f"length must be 1 to {len(digits)}, not {length}"
        raise ValueError(msg)
    return f" ~{digits[:length]}"


def collision_key(name: str) -> str:
    """
    Return a key that is the same for all names which some file system takes for one.

    In doubt it is the same: letters count without their case, characters without
    their width or style, and blanks and dots at the end not at all.
    """
    # Decomposed first, or marks of one letter could come in two orders.
    text = _visible(unicodedata.normalize("NFKD", name)).upper().casefold()
    return unicodedata.normalize("NFKC", text).rstrip(" .")


# --- the template -----------------------------------------------------------------------


def verify_template(template: str) -> None:
    """
    Return if *template* is one; see `file_name`.

    Raises:
        TypeError: It is no `str`.

        ValueError:
            A field that there is not, twice, or with something after its name; none
            at all; unbalanced braces; or words that could not stand in a name, or
            of more than 50 bytes.
    """
    verify_type(template, str, "template")
    _ = _parse_template(template)


# A catalog has one, and a name for each of its tracks.
@functools.lru_cache(maxsize=16)
def _parse_template(template: str) -> _Template:
    text = unicodedata.normalize("NFC", template)
    if text.lower().endswith(_EXTENSION):
        text = text[: -len(_EXTENSION)]
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        msg = f"template is not well formed: {error}"
        raise ValueError(msg) from None
    for _, field, spec, conversion in parts:
        if field is not None:
            _verify_field(field, spec or "", conversion)
    fields = [field for _, field, _, _ in parts if field is not None]
    if len(fields) != len(set(fields)):
        msg = "template must not name a field twice"
        raise ValueError(msg)
    if not fields:
        msg = f"template must name one of {', '.join(_FIELDS)}, or all files had one name"
        raise ValueError(msg)
    words = "".join(words for words, _, _, _ in parts)
    if not (words.isprintable() and _UNSAFE.isdisjoint(words) and _IGNORABLE.isdisjoint(words)):
        msg = 'template must not have separators, control characters or any of <>:"|?*~'
        raise ValueError(msg)
    if _size(words) > _MAX_WORDS_BYTES:
        msg = f"template must not have more than {_MAX_WORDS_BYTES} bytes besides its fields"
        raise ValueError(msg)
    pieces = tuple((words, field) for words, field, _, _ in parts)
    # Only the index has one.
    width = sum(int(spec) for _, _, spec, _ in parts if spec)
    return _Template(pieces, frozenset(fields), words, width)


def _verify_field(field: str, spec: str, conversion: str | None) -> None:
    """
    Return if a template may have it.

    Raises:
        ValueError: It may not.
    """
    if field not in _FIELDS:
        msg = f"template has a field {field[:80]!r}, and there are only {', '.join(_FIELDS)}"
        raise ValueError(msg)
    if conversion is not None or (spec and (field != "index" or not _INDEX_SPEC.fullmatch(spec))):
        msg = "template may have no format but that of {index:06}, from 01 to 09"
        raise ValueError(msg)


# --- the fields -------------------------------------------------------------------------


def _show_index(parsed: _Template, index: int | None) -> str:
    if index is None:
        if "index" in parsed.fields:
            msg = "template names {index}, and there is none"
            raise ValueError(msg)
        return ""
    if isinstance(index, bool):
        msg = "index must be an int, not bool"
        raise TypeError(msg)
    verify_type(index, int, "index")
    if not 0 <= index < _INDEX_BELOW:
        msg = f"index must be 0 or more, and below {_INDEX_BELOW}"
        raise ValueError(msg)
    return str(index).zfill(parsed.index_width)


def _show_id(value: str) -> str:
    """Return an id, or what stands for it alone."""
    text = _clean(value)
    if text == value and _size(text) <= _MAX_ID_BYTES:
        return text
    mark = f"~{_digest(value)[:_ID_DIGITS]}"
    return _cut(text, _MAX_ID_BYTES - len(mark)) + mark


def _clean(text: str) -> str:
    """Return *text* as one line without what is invisible, composed, and safe within a name."""
    return unicodedata.normalize("NFC", _visible(text)).translate(_REPLACED)


def _visible(text: str) -> str:
    # Without the ignorable ones first: blanks around them become one.
    return strip_controls(text.translate(_DROPPED))


def _cut(text: str, room: int) -> str:
    """Return as much of *text* as has room, not between a letter and its marks if it can be."""
    if _size(text) <= room:
        return text
    end, size = 0, 0
    while (size := size + _size(text[end])) <= room:
        end += 1
    letter = end
    while letter and unicodedata.category(text[letter]).startswith("M"):
        letter -= 1
    return text[: letter or end].rstrip()


def _size(text: str) -> int:
    return len(unicodedata.normalize("NFD", text).encode())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
