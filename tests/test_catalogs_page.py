"""docs/catalogs.md: its commands run as they stand, and so does its program."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastclock import FastClock
from kie_wav_async.ledger import TrackState
from kie_wav_async.session import session
from kie_wav_async.simulator import Simulator

if TYPE_CHECKING:
    import pytest

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "catalogs.md").read_text("utf-8")
SPEED = 200.0
# What no test waits for; it only ends a hang.
PATIENCE_S = 120.0


def blocks(language: str) -> list[str]:
    """Return the page's code blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


async def test_the_run_with_a_crash(tmp_path: Path) -> None:
    """The run that is killed and gone on with saves every track, and each is paid once."""
    (source,) = blocks("sh")
    shell = await asyncio.create_subprocess_exec(
        *("sh", "-eu", "-c", source),
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE_S):
        out, err = await shell.communicate()

    assert 0 == shell.returncode, err.decode()
    tables = re.compile(r"^State +Tracks *$.*?^in all", re.MULTILINE | re.DOTALL)
    before, after = tables.findall(out.decode())
    assert re.search(r"^accepted +[1-9]", before, re.MULTILINE)
    assert re.search(r"^saved +100 ", after, re.MULTILINE)
    assert "unknown" not in after
    assert "100 submits, 100 charged" in err.decode()
    saved = {
        name: {line.split("\t")[1] for line in (tmp_path / name).read_text().splitlines()}
        for name in ("first.tsv", "second.tsv")
    }
    assert not saved["first.tsv"] & saved["second.tsv"]
    assert (tmp_path / "verified.txt").read_text().splitlines() == [
        f"Song {n} [e{n}].wav: OK" for n in range(1, 101)
    ]
    entries = (tmp_path / "wavs" / "manifest.jsonl").read_text().splitlines()
    assert {f"e{n}" for n in range(1, 101)} == {json.loads(entry)["audio_id"] for entry in entries}


async def test_the_catalog_shown_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that the page shows is read without a bad line."""
    (source,) = blocks("csv")
    (tmp_path / "tracks.csv").write_text(source)
    monkeypatch.chdir(tmp_path)
    async with Simulator(time_scale=SPEED) as kie:
        bulk = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kie_wav_async", "bulk", "tracks.csv", "--out", "wavs"),
            *("--rate", f"20/{10 / SPEED}", "--poll", f"{15 / SPEED},{10 / SPEED}"),
            env={**os.environ, "KIE_BASE_URL": kie.base_url, "KIE_API_KEY": kie.api_key},
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE_S):
            _, err = await bulk.communicate()

    assert 0 == bulk.returncode, err.decode()
    assert {("5c79be8e", "e231"), ("5c79be8e", "e232")} < {
        (arrival.music_task_id, arrival.audio_id) for arrival in kie.arrivals
    }


async def test_the_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program converts its two tracks, and a second run of it pays for none."""
    (source,) = blocks("python")
    code = compile(source, "catalogs.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert code.co_flags & inspect.CO_COROUTINE
    monkeypatch.setattr(session, "SystemClock", lambda: FastClock(SPEED))
    monkeypatch.chdir(tmp_path)
    async with Simulator(time_scale=SPEED) as kie:
        monkeypatch.setenv("KIE_BASE_URL", kie.base_url)
        monkeypatch.setenv("KIE_API_KEY", kie.api_key)
        for _ in range(2):
            await eval(code, {"__name__": "catalogs"})  # noqa: S307 - the page is ours

    assert "{'succeeded': 2}\n" * 2 == capsys.readouterr().out
    assert 2 == kie.charges


def test_every_state_is_explained() -> None:
    """The table of states has every state there is, in the order in which a report has them."""
    firsts = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", PAGE, re.MULTILINE)

    assert [str(state) for state in TrackState] == re.findall(r"\w+", " ".join(firsts))
