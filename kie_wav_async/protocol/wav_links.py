"""
Which URLs in an answer can only be the WAV's, whatever the service calls them.

An answer to a poll also names the callback address, the MP3, the cover and the
source of a conversion. A URL is taken for the WAV by one of these rules, the
first rule first, and never from below a name that says something else:

1. its name says WAV, or it is a plain ``url`` below a name that says WAV;
2. the same with a name that says no more than that it is the result or a download;
3. its name says no more than that there is a file, its path ends in ``.wav``, and
   there is no other such URL.

For 1 and 2 the path must not end like a file of another kind. Texts that hold
JSON are read as part of the answer.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from kie_wav_async.protocol.envelope import JsonObject, open_text

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What names something other than the WAV, or echoes the request.
_OTHER: Final = re.compile(
    "callback|webhook|notif|source|src|origin|input|param|request|upload|refer|prompt"
    "|image|img|cover|thumb|avatar|video|stream|preview|sample|mp3|m4a|midi|flac|ogg"
    "|lyric|waveform|(?<!sy)stem|vocal|instrumental|error|fail|msg|message|doc|help"
    "|^(?!.*wav).*(music|suno)"
)

#: A name made of these words says only that there is a file.
_PLAIN: Final = re.compile(
    "(result|download|output|response|data|info|file|url|uri|link|href|json|s)+"
)
_RESULT: Final = re.compile("result|download|output")

#: Extensions of files that are no WAV.
_NO_WAV: Final = re.compile(
    r"\.(mp3|m4a|aac|og[ga]|opus|flac|wma|aiff?|mp4|m4v|mov|webm|avi|mkv|jpe?g|png|gif|webp|svg"
    r"|avif|txt|lrc|srt|vtt|json|xml|html?|pdf|midi?|zip)"
)

_NOT_A_WORD: Final = re.compile("[^a-z0-9]+")

#: How many values of an answer are looked at; the service's have some dozens.
_MOST_VALUES: Final = 1_000


def find_links(answer: JsonObject) -> list[str]:
    """Return the texts of *answer* that can be the WAV's URL, the likeliest first."""
    said: list[str] = []
    results: list[str] = []
    others: dict[str, None] = {}
    for names, text in _texts(answer):
        ending = _ending(text)
        is_plain = _PLAIN.fullmatch(names[-1]) is not None
        if _NO_WAV.fullmatch(ending):
            continue
        if "wav" in names[-1] or (is_plain and any("wav" in name for name in names)):
            said.append(text)
        elif is_plain and any(_PLAIN.fullmatch(n) and _RESULT.search(n) for n in names):
            results.append(text)
        elif is_plain and ending == ".wav":
            others[text] = None
    # URLs whose path ends in ``.wav`` first.
    for links in (said, results):
        links.sort(key=lambda text: _ending(text) != ".wav")
    return [*said, *results, *(others if len(others) == 1 else ())]


def _texts(answer: JsonObject) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the URLs of *answer*, each with the names on the way to it."""
    waiting: deque[tuple[tuple[str, ...], object]] = deque([(("",), answer)])
    for _ in range(_MOST_VALUES):
        if not waiting:
            return
        names, value = waiting.popleft()
        opened = open_text(value)
        value = value if opened is None else opened
        if isinstance(value, dict):
            for key, inner in cast("JsonObject", value).items():
                word = _NOT_A_WORD.sub("", key.lower())
                if not _OTHER.search(word):
                    waiting.append(((*names, word), inner))
        elif isinstance(value, list):
            waiting.extend((names, inner) for inner in cast("list[object]", value))
        elif isinstance(value, str) and value.lstrip().lower().startswith(("http:", "https:")):
            yield names, value


def _ending(url: str) -> str:
    """Return the extension of the path of *url*, as ``.wav``; empty if there is none."""
    path = re.split("[?#]", url.strip().lower(), maxsplit=1)[0].partition("://")[2]
    _, slash, name = path.rpartition("/")
    _, dot, kind = name.rpartition(".")
    return dot + kind if slash else ""
