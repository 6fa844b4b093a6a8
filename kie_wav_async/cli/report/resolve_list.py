"""Lists of unknown submits, with what came of each: written to be filled in, and read."""

from __future__ import annotations

import csv
import io
import sys
from typing import TYPE_CHECKING, BinaryIO, Final

import attrs
import click

from kie_wav_async import Track
from kie_wav_async.cli.common.ledger_pages import pages
from kie_wav_async.cli.common.output import USAGE, CliError, cell, clean, print_json, say, text_of
from kie_wav_async.cli.report.catalog_report import ids_of, showing_warnings
from kie_wav_async.ledger import SqliteLedger, TrackState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: In place of a task id: the submit created nothing.
NOT_CHARGED: Final = "not-charged"

#: An abbreviation shorter than this might be a slip of the pen.
MIN_LENGTH: Final = 6

_COLUMNS: Final = (
    "attempt_id",
    "task_id",
    "music_task_id",
    "audio_id",
    "since",
    "state",
)
# So many bad rows are told.
_TOLD: Final = 20


@attrs.frozen
class Resolution:
    """
    What the user says of one submit.

    Attributes:
        attempt: Its id, or the beginning of it.

        task_id: The task that it created; `None` if it created nothing.
    """

    attempt: str
    task_id: str | None


def verify_resolution(attempt: str, task_id: str | None) -> None:
    """
    Return if these can be an attempt and a task.

    Raises:
        CliError: They cannot.
    """
    if len(attempt) < MIN_LENGTH:
        msg = (
            f"{attempt!r} is too short for an attempt: name it by its first {MIN_LENGTH} "
            "characters at least"
        )
        raise CliError(USAGE, msg)
    if task_id is None:
        return
    try:
        Track("any", task_id)  # Ids are alike.
    except ValueError as error:
        raise CliError(USAGE, str(error).replace("audio_id", "--task-id")) from error


# --- read ---------------------------------------------------------------------------------------


def read_resolutions(name: str) -> tuple[list[Resolution], int]:
    """
    Read a list; return its words, and how many rows have none.

    Args:
        name: The file; ``-`` for stdin.

    Raises:
        CliError: It cannot be read, or a row cannot be understood.
    """
    words: list[Resolution] = []
    blanks = 0
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, attempt, value in _rows(_read(name)):
        if value in {"", "?"}:
            blanks += 1
            continue
        task_id = None if value.lower().replace("_", "-") == NOT_CHARGED else value
        try:
            verify_resolution(attempt, task_id)
        except CliError as error:
            problems.append(f"line {number}: {error}".replace("--task-id", "the task id"))
            continue
        for key in (f"attempt {attempt.lower()}", *([f"task {task_id}"] if task_id else [])):
            if key in seen:
                problems.append(f"line {number}: {key} is in line {seen[key]} already")
            seen.setdefault(key, number)
        words.append(Resolution(attempt, task_id))
    if problems:
        for problem in problems[:_TOLD]:
            say(problem)
        if len(problems) > _TOLD:
            say(f"... and {len(problems) - _TOLD:,} more")
        count = f"{len(problems):,} lines are" if len(problems) > 1 else "1 line is"
        msg = f"{count} not understood: nothing has changed"
        raise CliError(USAGE, msg, problems=[clean(one) for one in problems[:_TOLD]])
    return words, blanks


def _read(name: str) -> str:
    try:
        if name == "-":
            stdin: BinaryIO | None = getattr(sys.stdin, "buffer", None)
            if stdin is None:  # Closed before we were started.
                raise CliError(USAGE, "there is no stdin to read the list from")
            content = stdin.read()
        else:
            with click.open_file(name, "rb") as file:
                content = file.read()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise CliError(USAGE, f"cannot read {name}: {error.strerror or error}") from error
    except ValueError as error:
        raise CliError(USAGE, f"{name} is not UTF-8 text: save it as CSV in UTF-8") from error


def _rows(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the number of each line that is not blank, its attempt and its word."""
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    delimiter = next((mark for mark in ("\t", ",", ";") if mark in first), ",")
    places = (0, 1)
    is_first = True
    for number, line in enumerate(lines, 1):
        try:
            read = csv.reader([line], delimiter=delimiter)
            cells = [given.strip() for given in next(read, list[str]())]
        except csv.Error as error:
            raise CliError(USAGE, f"line {number}: {error}") from error
        if not any(cells) or cells[0].startswith("#"):
            continue
        if is_first and "attempt_id" in (names := [name.lower() for name in cells]):
            if "task_id" not in names:
                raise CliError(USAGE, "the list has no column task_id: nothing has changed")
            places = (names.index("attempt_id"), names.index("task_id"))
        else:
            attempt, value = (cells[at] if at < len(cells) else "" for at in places)
            yield number, attempt, text_of(value)
        is_first = False


# --- written ------------------------------------------------------------------------------------


async def print_list(path: Path, *, as_json: bool) -> None:
    """
    Print the submits of the ledger at *path* that need a word, to be filled in.

    The task of one that a callback has named is filled in.

    Raises:
        LedgerError: It cannot be read.
    """
    rows: list[dict[str, object]] = []
    ledger = SqliteLedger(path, read_only=True)
    with showing_warnings():
        opening = await ledger.open(0.0)
    try:
        in_progress: set[str] = set()
        async for page in pages(ledger, [TrackState.SUBMITTING]):
            in_progress.update(entry.attempt_id for entry in page)
        for one in opening.unknown:
            if one.attempt_id not in in_progress:
                named = opening.callback_tasks.get(one.attempt_id, "")
                facts = {"attempt_id": one.attempt_id, "task_id": named, **ids_of(one.track)}
                rows.append({**facts, "since": one.at.isoformat(), "state": "unknown"})
        async for page in pages(ledger, [TrackState.EXISTS_WITHOUT_ID]):
            for entry in page:
                facts = {"attempt_id": entry.attempt_id, "task_id": "", **ids_of(entry.track)}
                rows.append({**facts, "since": "", "state": "exists_without_id"})
    finally:
        await ledger.aclose()
    if as_json:
        print_json({"ledger": str(path), "submits": rows})
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([cell(str(row[name])) for name in _COLUMNS] for row in rows)
    click.echo(text.getvalue(), nl=False)
