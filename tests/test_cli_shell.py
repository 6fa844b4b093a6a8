"""The commands that are printed, as a shell reads them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bulk_runs import SAVING, on_terminal, resume_command, see_off, visible, write_catalog
from cli_runs import KEY, names, service, submit_before
from kie_wav_async.cli import main
from kie_wav_async.cli.bulk.options import _FLAGS, BulkOptions
from kie_wav_async.cli.commands import cli
from kie_wav_async.cli.common.shell import command_line, join, quote, status_command
from kie_wav_async.cli.report.catalog_report import resolve_commands
from kie_wav_async.simulator import Fault
from test_architecture import imports_of

BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="there is no bash here")
CLI = Path(__file__).resolve().parent.parent / "kie_wav_async" / "cli"

# Whose locale reads the line; it is printed in ASCII, so none may matter.
LOCALES = ["C", "C.UTF-8", "POSIX", "en_US.ISO-8859-1"]

AWKWARD = [
    b"Mes\xc2\xa0titres",  # A no-break space.
    b"\xe3\x80\x80",  # An ideographic space.
    b"\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x8e\xa4",  # An emoji with a zero width joiner.
    b"caf\xe9",  # Latin-1.
    b"cafe\xcc\x81",  # Decomposed.
    b"\xe2\x80\xae\xe2\x80\x8b\xef\xbb\xbf",  # Right to left, and nothing to be seen.
    b"a\nb\r\tc\x1b[2J\x7f\x9b",
    b"\x011\x0177",  # Digits after an escape.
    b"$'x' \"y\" `z` \\ !! !$ #c",
    b"it's",
    b"~", b"~root/x", b"-x", b"--out", b"=ls", b"='", b"{a,b}", b"*?[x]", b"",
]  # fmt: skip


def read_by_bash(line: str, locale: str = "C.UTF-8") -> list[bytes]:
    """Return the arguments that bash gives to ``kie-wav`` for *line*."""
    printing = "kie-wav() { printf '%s\\0' \"$@\"; }\n"
    done = subprocess.run(  # noqa: S603 - the shell is what is tried
        [BASH, "-c", printing + line],
        env={"LC_ALL": locale, "HOME": "/nowhere", "PATH": os.environ["PATH"]},
        capture_output=True,
        check=True,
    )
    return done.stdout.split(b"\0")[:-1]


@needs_bash
@given(
    st.lists(
        st.binary(max_size=20).map(lambda word: word.replace(b"\0", b"0"))
        | st.text(st.characters(exclude_characters="\0"), max_size=10).map(
            lambda word: word.encode("utf-8", "surrogatepass")
        ),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from(LOCALES),
)
@settings(max_examples=60, deadline=None)
@example(words=AWKWARD, locale="C")
@example(words=AWKWARD, locale="C.UTF-8")
@example(words=[bytes([byte]) for byte in range(1, 256)], locale="C.UTF-8")
@example(words=[bytes([byte]) + b"7" for byte in range(1, 256)], locale="C")
def test_bash_reads_what_was_meant(words, locale) -> None:
    """Whatever bytes a word has, a shell of any locale reads the same from the printed line."""
    line = join(["kie-wav", *map(os.fsdecode, words)])

    assert line.isascii()
    assert line.isprintable()
    assert words == read_by_bash(line, locale)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("song.wav", "song.wav"),
        ("--rate=20/10", "--rate=20/10"),
        ("My songs", "'My songs'"),
        ("", "''"),
        ("=ls", "'=ls'"),
        ("it's", """'it'"'"'s'"""),
        ("Mes\u00a0titres", r"$'Mes\302\240titres'"),
        ("a\nb`c`!", r"$'a\nb\140c\140!'".replace("!", r"\041")),
        ("caf\udce9", r"$'caf\351'"),
        ("\ud800", r"$'\\ud800'"),
    ],
)
def test_words_that_need_no_escape_have_none(word: str, expected: str) -> None:
    """A word is as plain on the line as it can be, and an odd one is in ASCII."""
    assert expected == quote(word)


@needs_bash
@pytest.mark.parametrize("name", ["-x", "--help", "plain", "my ledger"])
def test_a_name_is_no_option(name: str) -> None:
    """An id or a file that begins with a dash is given as what it is."""
    words = [w.decode() for w in read_by_bash(status_command(name, Path("-o.wav")))]
    dashes = ["--"] if name.startswith("-") else []

    assert words in (["status", "-o", "-o.wav", *dashes, name], ["status", name, "-o", "-o.wav"])
    assert dashes == [word for word in words if word == "--"]
    for command in resolve_commands(Path(name), "0123456789", None):
        assert dashes == [w.decode() for w in read_by_bash(command) if w == b"--"]
    assert command_line("report", Path("-x")) == "kie-wav report -- -x"


@pytest.mark.parametrize(("name", "code"), [("--help", 2), ("-x.db", 2)])
def test_the_program_takes_such_a_name(capsys, tmp_path, monkeypatch, name: str, code: int) -> None:
    """What is printed for a file that begins with a dash is understood as the file."""
    monkeypatch.chdir(tmp_path)

    assert code == main(command_line("report", Path(name)).split()[1:])
    assert f"there is no ledger {name}" in capsys.readouterr().err


def order_of(catalog: str, *options: str) -> BulkOptions:
    """Return an order of which no more is known than what was typed."""
    order = BulkOptions.__new__(BulkOptions)
    object.__setattr__(order, "catalog", catalog)
    object.__setattr__(order, "given", ["bulk", catalog, *options])
    return order


def test_a_catalog_that_was_the_output_of_a_command() -> None:
    """A name that means something else to the next command is not printed as if it did not."""
    order = order_of("/dev/fd/63", "--out=x")

    assert "kie-wav bulk CATALOG --out=x" == order.resume(is_planned=True)
    assert "in place of CATALOG" in order.resume_words


def test_a_name_that_is_an_option_elsewhere() -> None:
    """Only an option that was obeyed is left out, not a file or a value of the same name."""
    given = [
        "--out",
        "--retry-failed",
        "--retry-failed",
        "--filename-template=--new-ledger",
        "--json",
        "--",
    ]
    order = order_of("--new-ledger")
    object.__setattr__(order, "given", ["bulk", *given, "--new-ledger"])
    kept = (
        "kie-wav bulk --out --retry-failed --filename-template=--new-ledger --json -- --new-ledger"
    )

    assert kept == order.resume(is_planned=True)
    assert order.resume(is_planned=False) == join(["kie-wav", "bulk", *given, "--new-ledger"])
    object.__setattr__(order, "given", ["bulk", "--max-charges", "1", "--", "--max-charges"])
    assert "kie-wav bulk --max-charges N -- --max-charges" == order.resume(
        is_planned=True, is_capped=True
    )


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_a_catalog_on_stdin(name: str) -> None:
    """Where the catalog came from stdin, that is said beside the command."""
    assert "Give it the same catalog on stdin once more, and go on with" == (
        order_of(name).resume_words
    )


def test_every_option_without_a_value_is_known() -> None:
    """What follows an option is its value, unless the option has none."""
    flags = {
        name
        for param in cli.commands["bulk"].params
        if isinstance(param, click.Option) and param.is_flag
        for name in param.opts
    }
    assert _FLAGS == flags


def test_a_cap_is_left_to_be_chosen() -> None:
    """In the command after a cap was reached every other word is as it was typed."""
    order = order_of("c\u00a0.csv", "--max-charges", "5", "--out=~/x")

    assert r"kie-wav bulk $'c\302\240.csv' --max-charges N '--out=~/x'" == order.resume(
        is_planned=True, is_capped=True
    )


@pytest.mark.parametrize(
    "module", sorted(CLI.rglob("*.py")), ids=lambda path: str(path.relative_to(CLI))
)
def test_there_is_one_way_to_quote(module: Path) -> None:
    """No module of the command line writes a command with words of others by other means."""
    source = module.read_text("utf-8")
    if module != CLI / "common" / "shell.py":
        assert "shlex" not in imports_of(source)
    assert [] == re.findall(r"kie-wav [a-z]+ \{.*", source)


# --- from the process that prints it to the one that is started ---------------------------------

ENVIRONMENTS = [
    {"LC_ALL": "C"},
    {"LC_ALL": "C.UTF-8"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1:strict"},
    {"LC_ALL": "en_US.ISO-8859-1"},
]


@pytest.fixture(scope="module")
def latin_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a locale whose file names are of Latin-1; return the folder that has it."""
    folder = tmp_path_factory.mktemp("locales")
    made = folder / "en_US.ISO-8859-1"
    program = shutil.which("localedef")
    if program is not None:
        subprocess.run(  # noqa: S603 - the system's own
            [program, "-i", "en_US", "-f", "ISO-8859-1", made], check=False, capture_output=True
        )
    return folder


@needs_bash
@pytest.mark.parametrize("locale", ENVIRONMENTS, ids=lambda e: " ".join(e.values()))
async def test_the_printed_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, latin_1: Path, locale: dict[str, str]
) -> None:
    """Pasted into a shell, the command of a stopped run goes on, and pays nothing twice."""
    if "ISO" in locale["LC_ALL"] and not names(latin_1):
        pytest.skip("localedef, or what it makes locales of, is missing")
    folder = b"-" + b"".join(word for word in AWKWARD if b"/" not in word)
    monkeypatch.chdir(tmp_path)
    write_catalog("m,a0,", "m,a1,", "m,a2,")
    program = tmp_path / "bin" / "kie-wav"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m kie_wav_async "$@"\n')
    program.chmod(0o755)
    async with service() as kie:
        environment = {
            **os.environ,
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "KIE_BASE_URL": kie.base_url,
            "KIE_API_KEY": KEY,
            "LOCPATH": str(latin_1),
            **locale,
        }
        words = ["bulk", "c.csv", b"--out=" + folder, *SAVING, "--max-charges", "1"]
        first = await _run(environment, program, *words)
        command = resume_command(first.decode("latin-1")).replace(" N", " 10")
        await _run(environment, BASH, "-c", command)
        charges = kie.charges
        await see_off()

    assert (3, 3) == (
        charges,
        sum(name.endswith(".wav") for name in names(Path(os.fsdecode(folder)))),
    )


async def test_a_terminal_does_not_break_a_command(tmp_path: Path) -> None:
    """On a terminal of 80 columns a command in a sentence has no line end of ours in it."""
    path = tmp_path / ("a long name " * 12 + ".wav")
    async with service(Fault(kind="expired", on="media")) as kie:
        await submit_before(kie, "a")
        task_id = kie.arrivals[0].task_id
        words = ["status", task_id, "-o", str(path), "--base-url", kie.base_url]
        code, shown = await on_terminal(kie, *words)

    assert 3 == code
    assert any(f"`{join(['kie-wav', *words])}`" in line for line in visible(shown)), shown


async def _run(environment: dict[str, str], *words: str | bytes | Path) -> bytes:
    """Return what a process says on stderr."""
    process = await asyncio.create_subprocess_exec(
        *words,
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    return err
