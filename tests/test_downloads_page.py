"""docs/downloads.md: its programs run, its tables are complete, and its numbers are the code's."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest

from fastclock import FastClock
from kie_wav_async import errors
from kie_wav_async.downloads import file_client, part_file, throughput, transfer
from kie_wav_async.session import session
from kie_wav_async.simulator import Simulator
from nearby import nearby_media

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "downloads.md").read_text("utf-8")
SPEED = 200.0
ONE_FILE, NAMES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
async def kie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Simulator]:
    """Give a simulator that the environment names, in an empty folder."""
    async with Simulator(time_scale=SPEED) as simulator:
        monkeypatch.setenv("KIE_BASE_URL", simulator.base_url)
        monkeypatch.setenv("KIE_API_KEY", simulator.api_key)
        monkeypatch.setattr(session, "SystemClock", lambda: FastClock(SPEED))
        monkeypatch.setattr(session, "FileClient", nearby_media)
        monkeypatch.chdir(tmp_path)
        yield simulator


async def test_the_program_saves_a_file(
    kie: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's program saves a file, tells its SHA-256, and pays once."""
    code = compile(ONE_FILE, "downloads.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert code.co_flags & inspect.CO_COROUTINE
    await eval(code, {"__name__": "downloads"})  # noqa: S307 - the page is ours

    data = await asyncio.to_thread((tmp_path / "song.wav").read_bytes)
    digest = hashlib.sha256(data).hexdigest()
    assert f"song.wav {len(data)} {digest}\n" == capsys.readouterr().out
    assert 1 == kie.charges


def test_the_names_are_those_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """The page's names are what it says, and the one that would collide gets another."""
    exec(compile(NAMES, "downloads.md", "exec"), {})  # noqa: S102 - the page is ours

    first, second, third = capsys.readouterr().out.splitlines()
    (told,) = re.findall(r"print\(file_name\(track\)\)  # (.*)", NAMES)
    assert told == first
    assert "0007 AC_DC_ Live_ gnp.exe.wav" == second
    assert re.fullmatch(r"AC_DC_ Live_ gnp\.exe \[e231\] ~[0-9a-f]{8}\.wav", third)


def test_every_reason_is_explained() -> None:
    """The table of reasons has every reason there is."""
    told = re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE)

    assert sorted(get_args(errors.DownloadReason)) == sorted(told)


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("nothing for 60 s", file_client.TIMEOUT.sock_read == 60),
        ("less than 16 KiB/s", throughput.LEAST_BYTES_PER_S == 16 * 1024),
        ("over 60 s", throughput.WINDOW_S == 60),
        ("there are 8, with growing waits of up to a minute", transfer.RETRY.cap_s == 60),
        ("there are 8,", transfer.RETRY.attempts == 8),
        ("8 files at a time", file_client.MAX_CONNECTIONS == 8),
        ("1 GiB a file at most", transfer.MAX_BYTES == 1 << 30),
        ("followed five times at most", file_client.MAX_REDIRECTS == 5),
        ("at most 16 MiB less", part_file.SYNC_EVERY == 16 << 20),
    ],
)
def test_the_numbers_are_those_of_the_code(told: str, *, found: bool) -> None:
    """A number on the page is the one that holds."""
    assert told in PAGE
    assert found
