"""
Reads one JSON object of a catalog: a row, or a saved response of the service.

The keys of a row may be spelled as the service spells them. A saved response is what
``/api/v1/generate/record-info`` returns, all of it or from ``data`` or ``response``
on, what ``/api/v1/jobs/recordInfo`` returns, or the body of the callback for the music.
The tracks may be in a text that holds JSON, as they are in ``resultJson``.

Source: docs.kie.ai, "Get Music Task Details", "Music Generation Callbacks" and "Get Task
Details" of the jobs API.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, cast

from kie_wav_async.protocol.api_constants import KIE_WAV

if TYPE_CHECKING:
    from collections.abc import Sequence

# An object as pairs, so that a key that is given twice is not lost.
Pairs: TypeAlias = "Sequence[tuple[str, object]]"

#: The spellings of a column after `letters`; the first one that is there counts.
SPELLINGS: Final = {
    "music_task_id": ("musictaskid", "taskid"),
    "audio_id": ("audioid", "id"),
    "title": ("title",),
}
_MUSIC: Final = SPELLINGS["music_task_id"]
_UNDERSTOOD: Final = frozenset(name for names in SPELLINGS.values() for name in names)

_SHOWN: Final = 120
# How many keys an error names.
_LISTED: Final = 5

_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
# What JSON calls what it becomes here.
_KINDS: Final[dict[type, str]] = {
    bool: "true or false",
    float: "a number",
    int: "a number",
    list: "a list",
    str: "a string",
    tuple: "an object",
    type(None): "null",
}


class Named(NamedTuple):
    """What is to be converted: a track, or with `None` every track of a music task."""

    music_task_id: str
    audio_id: str | None
    title: str | None


class JsonError(ValueError):
    """
    A text that is no JSON.

    Attributes:
        at: Where it ceases to be.
    """

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


def parse(text: str) -> Pairs:
    """
    Return the object that *text* is.

    Raises:
        JsonError: It is no JSON.

        ValueError: It is something else, or cannot be read.
    """
    try:
        found: object = json.loads(text, object_pairs_hook=tuple)
    except json.JSONDecodeError as error:
        msg = f"no JSON: {error.msg} at character {error.pos + 1}"
        raise JsonError(msg, error.pos) from error
    except (ValueError, RecursionError) as error:
        msg = "no JSON that can be read: a number too long, or nested too deep"
        raise ValueError(msg) from error
    if not isinstance(found, tuple):
        msg = f"{_KINDS[type(found)]}, not a JSON object"
        raise ValueError(msg)  # noqa: TRY004 - the line is at fault, not how we were called
    return cast("Pairs", found)


def depth_of(text: str) -> int:
    """Return how many more brackets *text* opens than it closes."""
    rest = _STRING.sub("", text)
    return sum(map(rest.count, "{[")) - sum(map(rest.count, "}]"))


def letters(key: str) -> str:
    """Return *key* in lower case, without blanks, hyphens and underscores."""
    return re.sub(r"[_\s-]", "", key.casefold())


def read(pairs: Pairs) -> list[Named]:
    """
    Return what an object of a catalog names, a row or a saved response.

    Raises:
        ValueError: It is neither.
    """
    tracks = _read_response(pairs)
    return [read_row(pairs)] if tracks is None else tracks


# --- a row ----------------------------------------------------------------------------------


def read_row(pairs: Pairs) -> Named:
    """
    Return what a row names.

    Without an audio id every track of the music task is converted and paid. A row must
    ask for that: by an empty ``audio_id``, or by having no other key than those of
    `SPELLINGS`.

    Raises:
        ValueError: Something is missing, given twice or of the wrong kind.
    """
    music_task_id, _ = _find(pairs, "music_task_id")
    audio_id, name = _find(pairs, "audio_id")
    title, _ = _find(pairs, "title")
    strange = [key for key, _ in pairs if letters(key) not in _UNDERSTOOD]
    if not music_task_id:
        raise ValueError("no music_task_id" + _not_understood(strange))
    if not audio_id:
        other = SPELLINGS["audio_id"][-1]
        if name == other or (name is None and strange):
            empty = [key for key, _ in pairs if letters(key) == other]
            msg = (
                f"no audio_id{_not_understood(strange + empty)}: name the track audio_id, or add "
                "an empty audio_id to convert every track"
            )
            raise ValueError(msg)
        given = [key for key, value in pairs if value and letters(key) == other]
        if given:
            msg = f"audio_id is empty, but {_shown(given)} is not: remove one of the two"
            raise ValueError(msg)
    return Named(music_task_id, audio_id or None, title)


def _find(pairs: Pairs, column: str) -> tuple[str | None, str | None]:
    """
    Return what a row has in a column, and by which spelling.

    Raises:
        ValueError: It has it twice, or what it has is no string.
    """
    for name in SPELLINGS[column]:
        given = [(key, value) for key, value in pairs if letters(key) == name]
        if len(given) > 1:
            keys = list(dict.fromkeys(_cut(key) for key, _ in given))
            raise ValueError(
                f"{keys[0]} is given twice" if len(keys) == 1 else f"{_listed(keys)} are both given"
            )
        for key, value in given:
            if not isinstance(value, str | None):
                msg = f"{_cut(key)} must be a string, not {_KINDS[type(value)]}"
                raise ValueError(msg)  # noqa: TRY004 - as above
            return value, name
    return None, None


def _not_understood(keys: Sequence[str]) -> str:
    if not keys:
        return ""
    verb = "is" if len(keys) == 1 else "are"
    return f", and {_shown(keys)} {verb} not understood"


def _shown(keys: Sequence[str]) -> str:
    return _listed([repr(_cut(key)) for key in keys])


def _listed(keys: Sequence[str]) -> str:
    more = [f"{len(keys) - _LISTED} more"] if len(keys) > _LISTED else []
    *others, last = [*keys[:_LISTED], *more]
    return f"{', '.join(others)} and {last}" if others else last


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


# --- a response ----------------------------------------------------------------------------


def _read_response(pairs: Pairs) -> list[Named] | None:
    """
    Return the tracks of a saved response; `None` if it is not one.

    Raises:
        ValueError: It has none that are finished.
    """
    root = _fields(pairs) or {}
    if "audioid" in root:
        return None
    data = _fields(root.get("data"))
    body = root if data is None else data
    response = _opened(body.get("response")) or _opened(body.get("resultjson"))
    made = body if response is None else response
    listed = made.get("sunodata") or made.get("data")
    is_bare = body is made is root and not isinstance(listed, list)
    if is_bare and "sunodata" not in root and not {"code", "data"} <= root.keys():
        return None
    _verify_finished(root, body)
    if not isinstance(listed, list) or not listed:
        msg = "a response without tracks"
        raise ValueError(msg)
    names = {str(one[key]) for one in (body, made) for key in _MUSIC if one.get(key)}
    if len(names) != 1:
        msg = "a response of two music tasks" if names else "a response without its music task's id"
        raise ValueError(msg)
    (music_task_id,) = names
    return [
        _read_track(music_task_id, item, number)
        for number, item in enumerate(cast("list[object]", listed), start=1)
    ]


def _verify_finished(root: dict[str, object], body: dict[str, object]) -> None:
    code, message = root.get("code"), root.get("msg")
    if code is not None and str(code) != str(KIE_WAV.ok):
        said = f" {_cut(message)!r}" if isinstance(message, str) else ""
        msg = f"a response without tracks: its code is {_cut(str(code))}{said}"
        raise ValueError(msg)
    for name, good in KIE_WAV.music_finished.items():
        word = body.get(name.lower())
        if word is not None and str(word) not in good:
            msg = f"a response without all tracks: its {name} is {_cut(str(word))!r}"
            raise ValueError(msg)


def _read_track(music_task_id: str, item: object, number: int) -> Named:
    fields = _fields(item) or {}
    audio_id, title = fields.get("id") or fields.get("audioid"), fields.get("title")
    if not isinstance(audio_id, str):
        msg = f"track {number} of the response has no id"
        raise ValueError(msg)  # noqa: TRY004 - as above
    return Named(music_task_id, audio_id, title if isinstance(title, str) else None)


def _opened(value: object) -> dict[str, object] | None:
    """Return the same of an object that may be the text of one."""
    if isinstance(value, str):
        try:
            value = parse(value)
        except ValueError:
            return None
    return _fields(value)


def _fields(value: object) -> dict[str, object] | None:
    """Return an object by the letters of its keys; `None` of anything else."""
    if type(value) is not tuple:
        return None
    return {letters(key): field for key, field in cast("Pairs", value)}
