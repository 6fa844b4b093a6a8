"""
A catalog: the tracks to convert, as CSV with a header, as JSON lines, or as saved responses.

It is read as a stream, line by line, so that memory does not grow with it. What is
wrong with one line costs that line alone: it is told with its number, and reading
goes on. Only what makes every line doubtful, a header for instance, ends it.
"""

from __future__ import annotations

import contextlib
import csv
import re
import sys
from collections import deque
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

import attrs

from kie_wav_async import Track
from kie_wav_async.cli.bulk.catalog_json import (
    SPELLINGS,
    JsonError,
    Named,
    Pairs,
    depth_of,
    letters,
    parse,
    read,
    read_row,
)
from kie_wav_async.cli.common.output import SERVICE, USAGE, CliError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

# A row is some hundred bytes; this leaves room for columns that are not ours.
_MAX_LINE: Final = 1 << 18
# How many lines one row may take: a quotation mark that is not closed does not
# swallow the rest of the catalog.
_MAX_SPAN: Final = 50
# How many lines one JSON object may take, and how deep its beginning may be nested:
# a response has a hundred lines, and less than ten brackets open at a time.
_MAX_DOCUMENT: Final = 1 << 15
_MAX_DEPTH: Final = 50
_SHOWN: Final = 120

_IDS: Final = ("music_task_id", "audio_id")
_EXPECTED: Final = "music_task_id,audio_id[,title]"

# What a row of empty cells is made of.
_BLANK: Final = ', \t\r"'

_BOM: Final = b"\xef\xbb\xbf"
_OTHER_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")


@attrs.frozen
class Row:
    """
    One row of a catalog.

    Attributes:
        line: The line it begins on; the first of the file is 1.

        music_task_id: The music task that made the track.

        audio_id: The track in it; `None` stands for every track of the music task.

        title: For people to read; `None` without.

        lines: How many lines it takes; above 1 if a cell has line breaks, and 0 if
            the row before has them: one response has several tracks.
    """

    line: int
    music_task_id: str
    audio_id: str | None
    title: str | None
    lines: int = 1


@attrs.frozen
class InvalidLine:
    """
    A line that is no row.

    Attributes:
        line: The line it begins on; the first of the file is 1.

        why: What is wrong with it, in a few words. May quote the line.

        lines: How many lines are given up for it.
    """

    line: int
    why: str
    lines: int = 1


class _Line(NamedTuple):
    """One line without the newline at its end, and what is wrong with its bytes."""

    number: int
    text: str
    why: str | None


def read_catalog(path_or_dash: str) -> Iterator[Row | InvalidLine]:
    """
    Read a catalog: CSV; or JSON lines or saved responses if it begins with ``{``.

    Nothing is opened before the first row is asked for, and no more is read than
    that row needs. Lines with nothing on them are left out.

    Args:
        path_or_dash: The file; ``-`` is stdin.

    Raises:
        CliError: It cannot be opened or read (2 and 3), is empty, or is not a
            catalog at all; always before the first row, unless the disk fails.
    """
    name = "stdin" if path_or_dash == "-" else path_or_dash
    with _opened(path_or_dash, name) as file:
        lines = _Lines(file, name)
        first = next(lines, None)
        if first is None:
            msg = f"{name} is empty: a catalog begins with the line {_EXPECTED}"
            raise CliError(USAGE, msg)
        lines.unread([first])
        match first.text.lstrip()[:1]:
            case "{":
                yield from _json_rows(lines)
            case "[":
                msg = (
                    f"{name} begins with '[': a catalog in JSON has one object on each line, "
                    "and no list around them (`jq -c '.[]'` takes it off)"
                )
                raise CliError(USAGE, msg)
            case _:
                yield from _csv_rows(lines, name)


@contextlib.contextmanager
def _opened(path: str, name: str) -> Generator[BinaryIO]:
    if path == "-":
        stdin: BinaryIO | None = getattr(sys.stdin, "buffer", None)
        if stdin is None:  # Closed before we were started.
            msg = "there is no stdin to read the catalog from"
            raise CliError(USAGE, msg)
        yield stdin  # Not ours to close.
        return
    try:
        file = open(path, "rb")  # noqa: PTH123, SIM115 - Path() would change the name; closed below
    except IsADirectoryError as error:
        msg = f"{name} is a folder: name the catalog in it"
        raise CliError(USAGE, msg) from error
    except FileNotFoundError as error:
        raise CliError(USAGE, f"there is no file {name}") from error
    except (OSError, ValueError) as error:  # A name may have a NUL in it.
        why = getattr(error, "strerror", None) or error
        raise CliError(USAGE, f"cannot open {name}: {why}") from error
    with file:
        yield file


class _Lines:
    """The lines of a catalog, with what may be said of each before it is understood."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Begin at the first line of *file*, called *name* in errors."""
        self._file = file
        self._name = name
        self._number = 0
        self._unread: deque[_Line] = deque()

    def __iter__(self) -> Iterator[_Line]:
        return self

    def __next__(self) -> _Line:
        """Return the next line that has something on it."""
        while (line := self.take()) is not None:
            if line.why is not None or not (line.text == "" or line.text.isspace()):
                return line
        raise StopIteration

    def take(self) -> _Line | None:
        """Return the next line, with something on it or not; `None` at the end."""
        if self._unread:
            return self._unread.popleft()
        try:
            raw = self._read()
        except OSError as error:
            msg = (
                f"{self._name} cannot be read on after line {self._number}: "
                f"{error.strerror or error}"
            )
            raise CliError(SERVICE, msg) from error
        if raw == b"":
            return None
        self._number += 1
        return self._understand(raw)

    def unread(self, lines: Sequence[_Line]) -> None:
        """Put lines back that were taken, to be taken again in the same order."""
        self._unread.extendleft(reversed(lines))

    def _read(self) -> bytes:
        """Return one line, cut if it is too long; nothing at the end."""
        raw = rest = self._file.readline(_MAX_LINE + 1)
        while len(raw) > _MAX_LINE and rest and not rest.endswith(b"\n"):
            rest = self._file.readline(_MAX_LINE)
        return raw

    def _understand(self, raw: bytes) -> _Line:
        number = self._number
        if len(raw) > _MAX_LINE:
            return _Line(number, "", f"longer than {_MAX_LINE >> 10} KiB")
        if number == 1:
            if raw.startswith(_OTHER_BOMS):
                return _Line(number, "", "UTF-16: save it as UTF-8")
            raw = raw.removeprefix(_BOM)
        try:
            text, why = raw.decode(), None
        except UnicodeDecodeError:
            # Told all the same where its row ends.
            text, why = raw.decode(errors="surrogateescape"), "not UTF-8"
        if "\0" in text:
            why = "not text: it has a NUL byte"
        return _Line(number, text.removesuffix("\n"), why)


# --- CSV ------------------------------------------------------------------------------------


def _csv_rows(lines: _Lines, name: str) -> Iterator[Row | InvalidLine]:
    header = _header(lines, name)
    for line in lines:
        taken = [line]
        try:
            cells = _cells(taken, lines)
            if any(map(str.strip, cells)) or any(one.why for one in taken):
                yield _csv_row(taken, header, cells)
        except csv.Error as error:
            # Whatever its quotation mark took in may be rows of their own.
            lines.unread(taken[1:])
            yield InvalidLine(line.number, line.why or _no_csv(error))
        except ValueError as error:
            yield InvalidLine(line.number, str(error), len(taken))


def _header(lines: _Lines, name: str) -> list[str]:
    line = next(lines)
    if line.why is None and line.text.strip().lower() == "sep=,":  # Written by spreadsheets.
        line = next(lines, line)
    while line.why is None and not line.text.strip(_BLANK) and (after := next(lines, None)):
        line = after
    if line.why is not None:
        msg = f"{name} is no catalog: its line {line.number} is {line.why}"
        raise CliError(USAGE, msg)
    try:
        header = [cell.strip() for cell in _cells([line], lines)]
    except csv.Error as error:
        raise _no_header(name, line.text, _no_csv(error)) from error
    if why := _wrong_columns(header):
        raise _no_header(name, line.text, why)
    return header


def _wrong_columns(header: Sequence[str]) -> str:
    """Say why the columns of a header do not do; empty if they do."""
    missing: list[str] = []
    for column, spellings in SPELLINGS.items():
        named = [[name for name in header if letters(name) == one] for one in spellings]
        for names in named:
            if len(names) > 1:
                first, *others = dict.fromkeys(names)
                return f"it has both {first} and {others[0]}" if others else f"it has {first} twice"
        if column in _IDS and not any(named):
            missing.append(column)
    match missing:
        case []:
            return ""
        case ["audio_id"]:
            return (
                "it has no column audio_id, which may be empty in a row to convert every track of "
                "its music task"
            )
        case [column]:
            return f"it has no column {column}"
        case _:
            return "the first line must name the columns"


def _cells(taken: list[_Line], lines: _Lines) -> list[str]:
    """Return the cells of one row, which may take more lines than the one it begins on."""

    def texts() -> Iterator[str]:
        yield taken[0].text + "\n"
        while len(taken) < _MAX_SPAN and (line := lines.take()) is not None:
            taken.append(line)
            yield line.text + "\n"

    return next(csv.reader(texts(), strict=True))


def _no_csv(error: csv.Error) -> str:
    text = str(error)
    if text.startswith("unexpected end"):
        return f"a quotation mark is opened and not closed within {_MAX_SPAN} lines"
    if text.startswith("'"):
        return "a quotation mark inside a quoted cell: write it twice"
    if text.startswith("new-line"):
        return "a carriage return inside the line"
    return text


def _csv_row(taken: list[_Line], header: list[str], cells: list[str]) -> Row:
    first = taken[0]
    for line in taken:
        if line.why is not None:
            raise ValueError(line.why if line is first else f"its line {line.number} is {line.why}")
    if len(cells) != len(header):
        plural = "" if len(cells) == 1 else "s"
        msg = f"{len(cells)} cell{plural} where the header has {len(header)}"
        raise ValueError(msg)
    pairs = [
        (name, cell if letters(name) == "title" else cell.strip())
        for name, cell in zip(header, cells, strict=True)
    ]
    return _row(first.number, read_row(pairs), len(taken))


def _no_header(name: str, text: str, why: str) -> CliError:
    shown = text.strip()
    if "\r" in text.rstrip("\r"):
        why = "its lines end in carriage returns alone; save it with Unix or Windows line ends"
    elif separator := re.fullmatch(r"(?i)sep=([^,]?)", shown):
        why = f"it says that cells are separated by {separator[1]!r}; commas are expected"
    for mark, found in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
        if not _wrong_columns([cell.strip(' "') for cell in shown.split(mark)]):
            why = f"it has {found} between its cells; commas are expected"
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    msg = f"{name} has no header that fits: expected {_EXPECTED}, found {shown!r} ({why})"
    return CliError(USAGE, msg)


# --- JSON -----------------------------------------------------------------------------------


def _json_rows(lines: _Lines) -> Iterator[Row | InvalidLine]:
    for line in lines:
        taken = [line]
        try:
            named = read(_document(taken, lines))
            rows = [_row(line.number, one, 0) for one in named]
        except ValueError as error:
            yield InvalidLine(line.number, str(error), len(taken))
            continue
        rows[0] = attrs.evolve(rows[0], lines=len(taken))
        yield from rows


def _document(taken: list[_Line], lines: _Lines) -> Pairs:
    """
    Return the object that begins on a line, and ends there or on a later one.

    Raises:
        ValueError: There is none. Only the first line is taken then, or all that is left.
    """
    first = taken[0]
    if first.why is not None:
        raise ValueError(first.why)
    try:
        return parse(first.text)
    except JsonError:
        if (document := _longer_document(taken, lines)) is None:
            lines.unread(taken[1:])
            del taken[1:]
            raise
        return document


def _longer_document(taken: list[_Line], lines: _Lines) -> Pairs | None:
    """
    Return the object that begins on one line and ends on a later one; `None` if none does.

    Raises:
        ValueError: It goes on to the end of the catalog, and does not end there.
    """
    parts = [taken[0].text]
    depth, next_look = depth_of(parts[0]), 2
    while 0 < depth <= _MAX_DEPTH and len(parts) < _MAX_DOCUMENT:
        line = lines.take()
        if line is not None:
            taken.append(line)
            parts.append(line.text)
            depth += depth_of(line.text)
            # Parsed now and then too, so that an invalid object is not read to its end.
            if line.why is None and depth > 0 and len(parts) < next_look:
                continue
            next_look *= 2
        text = "\n".join(parts).rstrip()
        try:
            return parse(text)
        except JsonError as error:
            is_cut = error.at >= len(text) - 1
            if is_cut and line is None:
                msg = "the object that begins here has no end"
                raise ValueError(msg) from error
            if not is_cut or line is None or line.why is not None:
                return None
        except ValueError:
            return None
    return None


def _row(number: int, named: Named, lines: int) -> Row:
    # With some id or other where every track is meant: the music task's is judged too.
    track = Track(named.music_task_id, named.audio_id or "any", title=named.title)
    return Row(number, track.music_task_id, named.audio_id, track.title, lines)
