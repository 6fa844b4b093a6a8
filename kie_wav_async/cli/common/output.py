"""
What people and programs see: results on stdout, everything else on stderr.

Titles and the service's messages come from strangers: what is printed is
stripped of control characters, and never taken for markup.
"""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console
from rich.text import Text

from kie_wav_async import errors
from kie_wav_async.cli.common.shell import status_command

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
SERVICE: Final = 3
UNKNOWN: Final = 4
INTERRUPTED: Final = 130

#: The option for ``accept_short=True``, which messages of the library name.
ACCEPT_SHORT: Final = "--accept-short"

_FORMULA: Final = re.compile(r"""'*\s*[=+\-@"]""")


class CliError(Exception):
    """
    An expected end that is not a good one: an exit code and one sentence.

    Attributes:
        exit_code: Not 0.

        advice: What to do about it; ``""`` where the sentence says that, or nothing does.

        command: What shows the task that it is about; ``""`` for none.

        facts: What ``--json`` prints of it.
    """

    def __init__(self, exit_code: int, sentence: str, advice: str = "", /, **facts: object) -> None:
        super().__init__(clean(sentence))
        self.exit_code = exit_code
        self.advice = clean(advice)
        self.command = ""
        self.facts = {"exit_code": exit_code, "message": str(self), **facts}
        if advice:
            self.facts["advice"] = self.advice

    @property
    def words(self) -> str:
        """What happened, and what to do."""
        return errors.with_advice(self)

    def show(self) -> None:
        """Print all of it on stderr."""
        say(f"kie-wav: {self.words}")
        if self.command:
            say(f"The task is shown by `{self.command}`")


def clean(text: object) -> str:
    """Return *text* as one line without anything a terminal might obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def plain(text: object) -> Text:
    """Return *text* for a rich cell or message: cleaned, and not markup."""
    return Text(clean(text))


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object on a line of its own, at once."""
    click.echo(json.dumps(value))


def print_line(*cells: object) -> None:
    """Print one line of tab-separated cells on stdout; a single cell is printed unchanged."""
    one = len(cells) == 1
    click.echo("\t".join(clean(c) if one else cell(clean(c)) for c in cells))


def print_path(path: Path) -> None:
    """Print a path on stdout, byte for byte unless stdout is a terminal."""
    if sys.stdout.isatty():
        print_line(path)
    else:
        click.echo(os.fsencode(path))


def cell(text: str) -> str:
    """
    Return *text* as a cell of a tab-separated line that no spreadsheet takes for a formula.

    An apostrophe is put before ``=``, ``+``, ``-``, ``@`` or a quotation mark at the
    beginning, and before apostrophes that one of these follows, so that it can be removed
    again.
    """
    # Some spreadsheets take fullwidth forms for the same.
    return f"'{text}" if _FORMULA.match(unicodedata.normalize("NFKC", text)) else text


def text_of(given: str) -> str:
    """Return the text of which `cell` made *given*."""
    return given[1:] if given.startswith("'") and cell(given) != given else given


def say(text: str, console: Console | None = None) -> None:
    """Print a message on stderr: on one line, or filled on a terminal if it has no command."""
    console = console or Console(stderr=True)
    # A command is copied, and a shell would read a line end of ours.
    console.print(plain(text), soft_wrap=not console.is_terminal or "`" in text)


def stdout_console() -> Console:
    """Return a console on stdout that truncates nothing where no terminal sets its width."""
    return Console() if sys.stdout.isatty() else Console(width=240)


def failure_of(error: errors.KieWavError) -> CliError:
    """Return *error* as an exit code, with its own words."""
    facts: dict[str, object] = {"type": type(error).__name__, "task_id": error.task_id}
    if error.track is not None:
        facts |= {"music_task_id": error.track.music_task_id, "audio_id": error.track.audio_id}
    code, task_id = SERVICE, ""
    match error:
        case errors.SubmitUnknownError():
            facts["attempt_id"] = error.attempt_id
            code, task_id = UNKNOWN, "TASK_ID"
        case errors.ConversionTimeoutError():
            code, task_id = FAILED, str(error.task_id)
        case errors.ConversionFailedError():
            code = FAILED
        case errors.AlreadyExistsError():
            task_id = "TASK_ID"
        case errors.DownloadError():
            facts["reason"] = error.reason
        case _:
            pass
    failure = CliError(code, str(error), error.advice, **facts)
    if task_id:
        # It asks the service in the way that the running command does.
        failure.command = status_command(task_id)
    return failure
