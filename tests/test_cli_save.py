"""Files saved by the command line: whole, or not there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from yarl import URL

from cli_runs import KEY, is_wav, names, service, submit_before
from kie_wav_async import WavSession
from kie_wav_async.cli._save import SaveError, open_http, save
from kie_wav_async.simulator import Fault, Simulator

if TYPE_CHECKING:
    from pathlib import Path

BAD_FILES = [
    (Fault(kind="expired", on="media"), "answered 404"),
    (Fault(kind="cut", on="media", size=5_000), "broke"),
    (Fault(kind="cut", on="media", size=5), "broke"),
    (Fault(kind="html", on="media", http_status=200), "not a WAV"),
    (Fault(kind="body", on="media", body=""), "not a WAV"),
    (Fault(kind="redirect", on="media", url="http://192.0.2.1/x.wav"), "not https"),
    (Fault(kind="redirect", on="media", url="file:///etc/passwd"), "not https"),
    (Fault(kind="redirect", on="media", url="http://[nonsense"), "nowhere"),
    (Fault(kind="redirect", on="media", url="?again"), "without end"),
    (Fault(kind="reset", on="media"), "broke"),
]


@pytest.mark.parametrize(
    ("fault", "words"), BAD_FILES, ids=[f"{f.kind} {f.url or f.size}" for f, _ in BAD_FILES]
)
async def test_a_file_that_does_not_come(tmp_path: Path, fault: Fault, words: str) -> None:
    """A file that does not come whole leaves nothing behind, and what was there before."""
    target = tmp_path / "song.wav"
    target.write_bytes(b"before")
    async with service(fault) as kie, open_http() as http:
        await submit_before(kie, "a")
        url = await url_of(kie)
        with pytest.raises(SaveError, match=words):
            await save(http, url, target, insecure_hosts={"127.0.0.1"})

    assert (["song.wav"], b"before") == (names(tmp_path), target.read_bytes())


async def test_a_redirect_is_followed(tmp_path: Path) -> None:
    """A redirect to where files may come from is followed."""
    async with service(Fault(kind="redirect", on="media", at=1, url="?again")) as kie:
        await submit_before(kie, "a")
        async with open_http() as http:
            size = await save(
                http, await url_of(kie), tmp_path / "song.wav", insecure_hosts={"127.0.0.1"}
            )

    assert ["song.wav"] == names(tmp_path)
    assert size > 44
    assert is_wav(tmp_path / "song.wav")


async def test_a_save_cut_off(tmp_path: Path) -> None:
    """A save cancelled half way leaves no part file, which was for its owner's eyes only."""
    seen: list[int] = []

    def look_and_cancel(_: int, __: int | None) -> None:
        seen.extend(part.stat().st_mode & 0o777 for part in tmp_path.iterdir())
        saving.cancel()

    async with service() as kie, open_http() as http:
        await submit_before(kie, "a")
        saving = asyncio.create_task(
            save(
                *(http, await url_of(kie), tmp_path / "song.wav"),
                insecure_hosts={"127.0.0.1"},
                on_progress=look_and_cancel,
            )
        )
        with pytest.raises(asyncio.CancelledError):
            await saving

    assert ([0o600], []) == (seen, names(tmp_path))


async def test_a_file_by_plain_http(tmp_path: Path) -> None:
    """A file is fetched by https, or from a host named as insecure."""
    async with open_http() as http:
        with pytest.raises(SaveError, match="not https"):
            await save(http, URL("http://192.0.2.1/"), tmp_path / "x.wav", insecure_hosts={"h"})


async def url_of(kie: Simulator) -> URL:
    """Return where the first track's file is."""
    async with WavSession(KEY, base_url=kie.base_url) as session:
        record = await session.record(kie.arrivals[0].task_id)
    return record.wav_url
