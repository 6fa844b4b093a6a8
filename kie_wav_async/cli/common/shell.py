"""Quotes the commands that are printed, so that a shell reads exactly the same words."""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# zsh replaces a word that begins with = by the path of a program.
_BARE: Final = re.compile(r"(?!=)[A-Za-z0-9_@%+=:,./-]+")
# Without the backtick, which encloses commands in our messages.
_QUOTABLE: Final = re.compile(r"[ -_a-~]*")
_NAMED: Final = {ord("\n"): r"\n", ord("\r"): r"\r", ord("\t"): r"\t", ord("\\"): r"\\"}
_ESCAPED: Final = frozenset(b"'`!")


def quote(word: str) -> str:
    r"""
    Return *word* quoted for a shell, in printable ASCII.

    Other characters are written as the bytes that the system uses for them,
    ``$'Mes\302\240titres'``, as bash, zsh, ksh and POSIX.1-2024 read it. So neither the
    encoding of the output nor a terminal or a clipboard can change them.
    """
    if _BARE.fullmatch(word):
        return word
    if _QUOTABLE.fullmatch(word):
        quoted = shlex.quote(word)
        return f"'{word}'" if quoted == word else quoted
    return "$'" + "".join(map(_escape, _encode(word))) + "'"


def _encode(word: str) -> bytes:
    """Return the bytes that the system uses for an argument."""
    try:
        return os.fsencode(word)
    except UnicodeEncodeError:  # Not from the command line, e.g. an id of the service.
        return word.encode("utf-8", "backslashreplace")


def _escape(byte: int) -> str:
    if byte in _NAMED:
        return _NAMED[byte]
    is_plain = 0x20 <= byte < 0x7F and byte not in _ESCAPED  # noqa: PLR2004 - printable ASCII
    # Always three digits: the next character may be a digit.
    return chr(byte) if is_plain else f"\\{byte:03o}"


def join(words: Sequence[str]) -> str:
    """Return *words* as one line for a shell."""
    return " ".join(map(quote, words))


def command_line(name: str, *arguments: str | Path, options: Sequence[str] = ()) -> str:
    """
    Return a ``kie-wav`` command as it must be typed.

    Args:
        name: The command's, after ``kie-wav``.

        arguments: The positional ones; may begin with ``-``.

        options: Options and their values.
    """
    given = [str(argument) for argument in arguments]
    words = [*given, *options]
    if any(argument.startswith("-") for argument in given):
        words = [*options, "--", *given]
    return join(["kie-wav", name, *words])


def service_command(name: str, *arguments: str | Path, options: Sequence[str] = ()) -> str:
    """Return a command that asks the same service as the running one; see `command_line`."""
    return command_line(name, *arguments, options=[*options, *_service_options()])


def status_command(task_id: str, path: Path | None = None) -> str:
    """Return the command that shows a task, or saves its WAV at *path*, free of charge."""
    return service_command("status", task_id, options=[] if path is None else ["-o", str(path)])


def without_password(proxy: str) -> str:
    """Return a proxy's URL with placeholders for its user and password."""
    return re.sub(r"^([^/?#@]*//)?.*@", r"\1USER:PASSWORD@", proxy, flags=re.DOTALL)


def _service_options() -> list[str]:
    """Return the options by which the running command reaches the service."""
    context = click.get_current_context(silent=True)
    given = {} if context is None else context.params
    words: list[str] = []
    if given.get("base_url") is not None:
        words += ["--base-url", given["base_url"]]
    for host in given.get("insecure_hosts", ()):
        words += ["--insecure-host", host]
    if given.get("proxy") is not None:
        words += ["--proxy", without_password(given["proxy"])]
    return words
