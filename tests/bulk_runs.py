"""What the tests of ``kie-wav bulk`` share: catalogs, and runs that do not wait."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cli_runs import KEY
from kie_wav_async.cli import main
from kie_wav_async.ledger import SqliteLedger, TrackState

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from kie_wav_async.simulator import Simulator

SAVING = ("--rate", "1000/1", "--poll", "0.01,0.01,1000")
HASTY = (*SAVING, "--no-download")
LONG_S = 60  # Far more than anything here takes.
OUT = Path("out")
LEDGER = OUT / "kie-wav.sqlite3"


class Done(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> dict:
        """Return the one object on stdout."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def results(self) -> list[list[str]]:
        """The cells of each line on stdout."""
        return [line.split("\t") for line in self.out.splitlines()]


def is_there(path: Path) -> bool:
    """Return whether there is something at *path*."""
    return path.exists()


def contents(path: Path) -> tuple[int, str]:
    """Return the mode of a file, and its text."""
    return path.stat().st_mode & 0o777, path.read_text("utf-8")


def write_catalog(*rows: str, name: str = "c.csv") -> str:
    """Write a catalog of CSV *rows* into the working folder; return its name."""
    text = "\n".join(["music_task_id,audio_id,title", *rows, ""])
    Path(name).write_text(text, "utf-8", newline="")
    return name


def write_lines(name: str, *values: object, indent: int | None = None) -> None:
    """Write a catalog of JSON into the working folder."""
    text = "".join(json.dumps(value, indent=indent) + "\n" for value in values)
    Path(name).write_text(text, "utf-8")


def rows_of(count: int) -> list[str]:
    """Return *count* rows of different tracks of music task ``m``."""
    return [f"m,a{number},Song {number}" for number in range(count)]


class Bulk:
    """Runs ``kie-wav bulk c.csv --out out`` in a thread."""

    def __init__(
        self,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        given: tuple[str, ...] = HASTY,
    ) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self._given = given

    async def __call__(
        self,
        kie: Simulator | None,
        *options: str,
        catalog: str = "c.csv",
        key: str | None = KEY,
        **environment: str,
    ) -> Done:
        given = {"KIE_BASE_URL": kie and kie.base_url, "KIE_API_KEY": key, **environment}
        with self._monkeypatch.context() as patched:
            for name, value in given.items():
                if value is None:
                    patched.delenv(name, raising=False)
                else:
                    patched.setenv(name, value)
            self._capsys.readouterr()
            words = ("bulk", catalog, "--out", "out", *self._given, *options)
            code = await asyncio.to_thread(main, words)
        await see_off()
        return Done(code, *self._capsys.readouterr())


async def see_off() -> None:
    """
    Let the simulator take leave of clients that have gone.

    asyncio loses sight of what it accepts as it closes, and Python warns of it.
    """
    for _ in range(20):
        await asyncio.sleep(0)


async def states() -> dict[str, int]:
    """Return how many tracks of the ledger stand where, those states left out that have none."""
    async with SqliteLedger(LEDGER) as ledger:
        return {state.value: n for state, n in (await ledger.count_by_state()).items() if n}


async def is_bounded(kie: Simulator) -> bool:
    """Return whether the ledger's bill bounds what *kie* charged."""
    ledger = SqliteLedger(LEDGER)
    opening = await ledger.open(time.time())
    await ledger.aclose()
    return opening.accepted <= kie.charges <= opening.accepted + len(opening.unknown)


async def entry_of_track(audio_id: str) -> object:
    """Return where a track of music task ``m`` stands."""
    async with SqliteLedger(LEDGER) as ledger:
        page = await ledger.list_entries(TrackState)
    return next(entry for entry in page if entry.track.audio_id == audio_id)


def resume_command(err: str) -> str:
    """Return the command that *err* says to go on with."""
    return re.search(r"Go on with:\s+(kie-wav bulk .*)\n", err)[1]


# --- processes ------------------------------------------------------------------------------------


def environment(kie: Simulator, **more: str) -> dict[str, str]:
    """Return our environment, pointed at *kie*."""
    given = {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "default", **more}
    return {**os.environ, "KIE_BASE_URL": kie.base_url, "KIE_API_KEY": KEY, **given}


async def start(
    kie: Simulator, *words: str, stdin: int | None = None, **more: str
) -> asyncio.subprocess.Process:
    """Start ``kie-wav`` with *words*, and *more* in its environment."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kie_wav_async", *words),
        env=environment(kie, **more),
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def end(process: asyncio.subprocess.Process, given: bytes | None = None) -> Done:
    """Return what became of a process."""
    async with asyncio.timeout(LONG_S):
        out, err = await process.communicate(given)
    await see_off()
    return Done(process.returncode, out.decode(), err.decode())


async def until(condition: Callable[[], bool]) -> None:
    """Return once *condition* holds."""
    async with asyncio.timeout(LONG_S):
        while not condition():  # noqa: ASYNC110 - another process makes it hold
            await asyncio.sleep(0.005)


async def said(process: asyncio.subprocess.Process, words: str) -> None:
    """Return once a line of stderr has *words* in it."""
    async with asyncio.timeout(LONG_S):
        while words not in (line := (await process.stderr.readline()).decode()):
            assert line, f"{words!r} was never said"


async def on_terminal(kie: Simulator, *words: str, out: int | None = None) -> tuple[int, str]:
    """Return the exit code of ``kie-wav`` on a terminal of 80 columns, and all it wrote there."""
    ours, theirs = pty.openpty()

    def watch() -> tuple[int, str]:
        with subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-m", "kie_wav_async", *words],
            env=environment(kie, COLUMNS="80", TERM="xterm"),
            stdin=theirs,
            stdout=theirs if out is None else out,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            shown = b""
            with contextlib.suppress(OSError):  # Linux says EIO when the other side has gone.
                while chunk := os.read(ours, 65_536):
                    shown += chunk
        return process.returncode, shown.decode()

    try:
        return await asyncio.to_thread(watch)
    finally:
        os.close(ours)
        await see_off()


def visible(shown: str) -> list[str]:
    """Return the lines of *shown* without what rich does to the terminal."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown))
