"""Commands to type, written so that a shell reads exactly the words that are meant."""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# A word that begins with = is the path of a program to zsh.
_BARE: Final = re.compile(r"(?!=)[A-Za-z0-9_@%+=:,./-]+")
# A backtick would end the quotation of a command in a sentence of ours.
_QUOTABLE: Final = re.compile(r"[ -_a-~]*")
_NAMED: Final = {ord("\n"): r"\n", ord("\r"): r"\r", ord("\t"): r"\t", ord("\\"): r"\\"}
_ESCAPED: Final = frozenset(b"'`!")


def quote(word: str) -> str:
    r"""
    Return *word* as a shell must be given it, in printable ASCII.

    What is not printable ASCII is written as the bytes that the system has for it,
    ``$'Mes\302\240titres'``, which bash, zsh, ksh and POSIX.1-2024 read. So neither
    the encoding of the output nor a terminal, a mail or a clipboard changes them.
    """
    if _BARE.fullmatch(word):
        return word
    if _QUOTABLE.fullmatch(word):
        quoted = shlex.quote(word)
        return f"'{word}'" if quoted == word else quoted
    return "$'" + "".join(map(_escape, _encode(word))) + "'"


def _encode(word: str) -> bytes:
    """Return the bytes of an argument as they came from the system."""
    try:
        return os.fsencode(word)
    except UnicodeEncodeError:  # Not from there, and nothing it has a name for.
        return word.encode("utf-8", "backslashreplace")


def _escape(byte: int) -> str:
    if byte in _NAMED:
        return _NAMED[byte]
    is_plain = 0x20 <= byte < 0x7F and byte not in _ESCAPED  # noqa: PLR2004 - printable ASCII
    # Always three digits: what follows may be one.
    return chr(byte) if is_plain else f"\\{byte:03o}"


def join(words: Sequence[str]) -> str:
    """Return *words* as one line for a shell."""
    return " ".join(map(quote, words))


def command_line(name: str, *arguments: str | Path, options: Sequence[str] = ()) -> str:
    """
    Return a command of ours as it must be typed.

    Args:
        name: The command's, after ``kie-wav``.

        arguments: What is no option, even if it begins with ``-``.

        options: As they are given.
    """
    given = [str(argument) for argument in arguments]
    words = [*given, *options]
    if any(argument.startswith("-") for argument in given):
        words = [*options, "--", *given]
    return join(["kie-wav", name, *words])


def status_command(task_id: str, path: Path | None = None) -> str:
    """Return what shows a task at the same service, or saves its WAV at *path*, free of charge."""
    output = [] if path is None else ["-o", str(path)]
    return command_line("status", task_id, options=[*output, *_service_options()])


def without_password(proxy: str) -> str:
    """Return a proxy's URL with placeholders for its user and password."""
    return re.sub(r"^([^/?#@]*//)?.*@", r"\1USER:PASSWORD@", proxy, flags=re.DOTALL)


def _service_options() -> list[str]:
    """Return the options that say where the service of the running command is."""
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
