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

        facts: What ``--json`` prints of it.
    """

    def __init__(self, exit_code: int, sentence: str, **facts: object) -> None:
        """Say what happened and what to do next."""
        super().__init__(clean(sentence))
        self.exit_code = exit_code
        self.facts = {"exit_code": exit_code, "message": str(self), **facts}

    def show(self) -> None:
        """Print the sentence on stderr."""
        say(f"kie-wav: {self}")


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
    """Return *error* as an exit code and a sentence that speaks of commands, not of calls."""
    facts: dict[str, object] = {"type": type(error).__name__, "task_id": error.task_id}
    if error.track is not None:
        facts |= {"music_task_id": error.track.music_task_id, "audio_id": error.track.audio_id}
    code, sentence = SERVICE, str(error)
    match error:
        case errors.SubmitUnknownError():
            facts["attempt_id"] = error.attempt_id
            code = UNKNOWN
            sentence = (
                f"nobody knows whether the submit was accepted{_reason(error)}; it may have been "
                "charged and was not repeated. Look for the track in KIE's logs: if it is there, "
                f"`{status_command('TASK_ID')}` shows its WAV; if not, convert it again"
            )
        case errors.ConversionTimeoutError():
            code = FAILED
            ask = f"`{status_command(str(error.task_id))}`"
            sentence = (
                f"task {error.task_id} is not finished after {error.timeout_s:g} s but may still "
                f"finish: ask with {ask} instead of converting again"
            )
            if error.answer:
                sentence = (
                    f"task {error.task_id} succeeded, but its answer names no file that can be "
                    f"read: {error.answer}. It is paid for: ask later with {ask}, or fetch the "
                    "file by hand, instead of converting again"
                )
        case errors.ConversionFailedError():
            code = FAILED
        case errors.AlreadyExistsError():
            sentence = (
                f"the service answered {error.code} {error.message!r}: it has a WAV of this track "
                "under a task id it did not tell; look the id up in KIE's logs, then ask with "
                f"`{status_command('TASK_ID')}`"
            )
        case errors.DownloadError():
            facts["reason"] = error.reason
            sentence = _as_options(sentence)
        case errors.TransportError() | errors.WireFormatError() | errors.EndpointGoneError():
            sentence = sentence.replace("base_url", "--base-url (KIE_BASE_URL)")
        case _:
            pass
    return CliError(code, sentence, **facts)


def without_advice(error: errors.DownloadError) -> str:
    """Return what went wrong with a download, without what the library advises to do."""
    return _as_options(str(error).rpartition(": ")[0])


def _as_options(sentence: str) -> str:
    """Return it in words of the command line, which has one option for strange hosts."""
    sentence = sentence.replace("accept_short=True", ACCEPT_SHORT)
    for name in ("insecure_hosts", "download_hosts"):
        sentence = sentence.replace(f"in {name}", "with --insecure-host")
    return sentence


def _reason(error: errors.KieWavError) -> str:
    """Say why nobody knows, without what the cause advises: that is meant for reads."""
    match error.__cause__:
        case None:
            return ""
        case errors.ServiceError() as cause:
            return f" (the service answered {cause.code} {cause.message!r})"
        case errors.WireFormatError():
            return " (its answer cannot be read)"
        case cause:
            return f" ({cause})"
