"""``kie-wav bulk`` saving files, as a process of its own: signals, pipes, limits, terminals."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import resource
import shlex
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from bulk_runs import (
    LONG_S,
    OUT,
    SAVING,
    end,
    entry_of_track,
    environment,
    on_terminal,
    resume_command,
    rows_of,
    see_off,
    start,
    states,
    until,
    visible,
    write_catalog,
)
from cli_runs import is_wav, names, service
from kie_wav_async.simulator import Fault

if TYPE_CHECKING:
    from pathlib import Path

BULK = ("bulk", "c.csv", "--out", "out", *SAVING)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty folder, without the developer's terminal."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def part_of(number: int) -> Path:
    """Return where a file is while it is not whole."""
    return OUT / f"Song {number} [a{number}].wav.part"


def has(path: Path, size: int) -> bool:
    """Return whether there are so many bytes."""
    return path.exists() and path.stat().st_size == size


def mark(path: Path, at: int) -> int:
    """Change a byte that has come, and return what it is now."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    return data[at]


CUT = 100_000
STUCK = (
    Fault(kind="cut", on="media", audio_id="a1", at=1, size=CUT),
    Fault(kind="stall", on="media", audio_id="a1", at=2),
)


async def test_stopped_in_a_file() -> None:
    """What has come of a file at Ctrl-C is kept for us alone, and gone on with by the next run."""
    write_catalog(*rows_of(3))
    async with service(*STUCK, median_s=0.1, window=None, wav_s=1.0) as kie:
        process = await start(kie, *BULK, "--max-downloads", "1")
        await until(lambda: has(part_of(1), CUT) and kie.state().requests["media"] >= 2)
        process.send_signal(signal.SIGINT)
        first = await end(process)
        mode, names_left = part_of(1).stat().st_mode & 0o777, names(OUT)
        marked = mark(part_of(1), CUT // 2)
        kie.set_faults([])
        again = await end(await start(kie, *BULK))

        assert (130, 0, 3) == (first.code, again.code, kie.charges), again
    assert "Song 1 [a1].wav" not in names_left
    assert 0o600 == mode
    # It is the beginning that was there before, and was not fetched again.
    assert marked == (OUT / "Song 1 [a1].wav").read_bytes()[CUT // 2]
    assert {"saved": 3} == await states()
    assert 3 == len(first.results + again.results)
    assert not [name for name in names(OUT) if "part" in name]
    assert "Traceback" not in first.err
    assert re.search(r"interrupted; .*\d WAVs? waits? to be saved and 0 tracks", first.err)
    assert shlex.split(resume_command(first.err)) == ["kie-wav", *BULK, "--max-downloads", "1"]


async def test_killed_and_resumed() -> None:
    """Killed again and again while files come, it pays once, and what has its name is whole."""
    write_catalog(*rows_of(30))
    slow = Fault(kind="slow", on="media", delay_s=(0.0, 0.05))
    async with service(slow, median_s=0.05, window=None, wav_s=(1.0, 3.0)) as kie:
        for saved in (1, 8, 16):
            process = await start(kie, *BULK, "--max-in-flight", "6", "--on-unknown", "resubmit")
            await until(lambda saved=saved: len(list(OUT.glob("*.wav"))) >= saved)
            process.kill()
            await end(process)
            assert all(is_wav(path) for path in OUT.glob("*.wav"))
        # A submit that was lost is asked for once more after a minute, and 409 tells its task.
        kie.set_faults([])
        done = await end(await start(kie, *BULK))
        unknowns = (await states()).get("unknown", 0)

        assert done.code == (4 if unknowns else 0), done
        assert {1} == set(kie.charges_by_track.values())
    assert {"saved": 30 - unknowns} == {
        state: count for state, count in (await states()).items() if state != "unknown"
    }
    assert 30 - unknowns == len(list(OUT.glob("*.wav")))
    for path in OUT.glob("*.wav"):
        one = await entry_of_track(re.search(r"\[(a\d+)\]", path.name)[1])
        assert hashlib.sha256(path.read_bytes()).hexdigest() == one.sha256


async def test_nobody_reads() -> None:
    """When the reader of the results goes away it stops, and says how to go on."""
    write_catalog(*rows_of(40))
    async with service(median_s=0.1, window=None) as kie:
        reader, writer = os.pipe()
        os.close(reader)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "kie_wav_async", *BULK, "--max-in-flight", "3"),
                env=environment(kie),
                stdout=writer,
                stderr=asyncio.subprocess.PIPE,
            )
        finally:
            os.close(writer)
        async with asyncio.timeout(LONG_S):
            _, told = await process.communicate()
        await see_off()
        err = told.decode()

        assert 141 == process.returncode
        assert kie.charges < 40
    assert "nobody reads the results any more" in err
    assert resume_command(err)
    assert "Traceback" not in err


async def test_files_may_not_be_so_large() -> None:
    """A limit on the size of files ends the run with one clear message, and without it goes on."""
    write_catalog(*rows_of(100))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    async with service(median_s=0.1, window=None, wav_s=3.0) as kie:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kie_wav_async", *BULK, "--max-in-flight", "5"),
            env=environment(kie),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=limit,
        )
        done = await end(process)

        assert kie.charges < 100
    assert 3 == done.code, done
    assert re.search(
        r"^kie-wav: stopped: out/Song .*\.wav: File too large; ", done.err, re.MULTILINE
    )
    assert "Traceback" not in done.err
    assert [] == list(OUT.glob("*.wav"))


async def test_file_names_that_stdout_cannot_spell() -> None:
    """A path is told as the bytes that the file is found under, whatever stdout can spell."""
    write_catalog("m,a0,\u4f60\u597d \u3000caf\u00e9 \U0001f3b5")
    async with service(window=None) as kie:
        done = await end(await start(kie, *BULK, PYTHONIOENCODING="latin-1", PYTHONUTF8="1"))

    assert 0 == done.code, done
    assert (OUT / done.results[0][3]).is_file()


async def test_bars() -> None:
    """On a terminal two more bars tell of the files, within 80 columns, and no paths."""
    write_catalog(*rows_of(6))
    fault = Fault(kind="body", on="media", body="<html>", audio_id="a1")
    async with service(fault, median_s=0.1, window=None) as kie:
        code, shown = await on_terminal(kie, *BULK)

    text = visible(shown)
    bar = "[━╸╺]+"
    assert 1 == code
    for pattern in (
        rf"converted +{bar} +6/6",
        rf"saved +{bar} +5/6",
        rf"bytes +{bar} +[\d.]+ [kM]B, .*/s$",
    ):
        assert [line for line in text if re.search(pattern, line)], shown
    assert [line for line in text if "1 not saved" in line]
    assert not [line for line in text if len(line) > 80]
    assert "Song" not in shown


LATE = """
import os, signal, sys
from kie_wav_async.cli import main
from kie_wav_async.cli.bulk import run, summary

module, name = {"manifest": (run, "write_manifest"), "counts": (summary, "read_counts")}[
    sys.argv.pop(1)
]
work = getattr(module, name)

async def interrupted(*arguments):
    os.kill(os.getpid(), signal.SIGINT)
    return await work(*arguments)

setattr(module, name, interrupted)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("moment", ["manifest", "counts"])
async def test_stopped_at_the_end(moment: str) -> None:
    """Ctrl-C after the last file comes too late to stop anything: the run tells how it ended."""
    write_catalog(*rows_of(2))
    async with service() as kie:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", LATE, moment, *BULK, "--json"),
            env=environment(kie),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        done = await end(process)

    assert 0 == done.code, done.err
    assert "2 WAVs saved in out" in done.err
    assert 2 == done.json()["saving"]["saved"]
    assert (OUT / "manifest.jsonl").read_text().count("\n") == 2
