"""A catalog's manifest: written whole or not at all, and read without being trusted."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import stat
import tracemalloc
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_wav_async import Track
from kie_wav_async.cli.bulk.catalog_file import InvalidLine
from kie_wav_async.cli.bulk.manifest import Entry, is_inside, read_manifest, write_manifest
from kie_wav_async.cli.common.output import CliError
from kie_wav_async.errors import LedgerError
from kie_wav_async.ledger import LedgerEntry, TrackState
from kie_wav_async.testing import MemoryLedger
from ledger_runs import Writer, track

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

DIGEST = "0123456789abcdef" * 4


async def stored(*numbers: int) -> MemoryLedger:
    """Return an open ledger of six tracks, of which those of these numbers are stored."""
    ledger = MemoryLedger()
    await ledger.open(0.0)
    writer = Writer(ledger)
    await ledger.add_tracks([track(number) for number in range(6)])
    for number in numbers:
        await writer.convert(number)
        await ledger.mark_saved(
            track(number), path=f"{number}.wav", size=44 + number, sha256=DIGEST
        )
    return ledger


def lines(folder: Path) -> list[dict]:
    """Return the lines of the manifest in *folder*."""
    text = (folder / "manifest.jsonl").read_text("ascii")
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def listing(folder: Path) -> list[str]:
    """Name what is in *folder*."""
    return sorted(path.name for path in folder.iterdir())


def modes_of_parts(folder: Path) -> list[int]:
    """Return the modes of what is not whole in *folder*."""
    return [stat.S_IMODE(part.stat().st_mode) for part in folder.glob(".*.part")]


def manifest(folder: Path, *texts: str | bytes) -> Path:
    """Write a manifest of these lines."""
    path = folder / "manifest.jsonl"
    path.write_bytes(b"".join((t if isinstance(t, bytes) else t.encode()) + b"\n" for t in texts))
    return path


def line(**fields: object) -> str:
    """Return a good line, but for *fields*."""
    return json.dumps({"file": "x.wav", "bytes": 44, "sha256": DIGEST, **fields})


# --- written --------------------------------------------------------------------------------


async def test_what_is_written(tmp_path: Path) -> None:
    """There is a line for each stored track and no other, in the order of the ledger."""
    ledger = await stored(4, 1)
    await Writer(ledger).convert(3)
    await ledger.reserve_path(track(3), path="3.wav", key="3.wav")  # A place, and no file yet.

    assert 2 == await write_manifest(ledger, tmp_path)
    assert [
        {
            "music_task_id": "m",
            "audio_id": "a1",
            "title": None,
            "file": "1.wav",
            "bytes": 45,
            "sha256": DIGEST,
            "task_id": "t1",
        },
        {
            "music_task_id": "m",
            "audio_id": "a4",
            "title": "Song 4",
            "file": "4.wav",
            "bytes": 48,
            "sha256": DIGEST,
            "task_id": "t4",
        },
    ] == lines(tmp_path)
    assert ["manifest.jsonl"] == listing(tmp_path)


async def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    """What was written is read as it was, titles of any alphabet included."""
    ledger = MemoryLedger()
    await ledger.open(0.0)
    song = Track("m", "a", title='Träumerei 夢\N{MUSICAL SYMBOL G CLEF} \\ "q"')
    await ledger.begin_attempt(song, "e" * 32, 0.0)
    await Writer(ledger).convert(1)
    await ledger.mark_saved(track(1), path="tr\u00e4um/\u5922 'x'.wav", size=1, sha256=DIGEST)
    await write_manifest(ledger, tmp_path)
    (entry,) = read_manifest(tmp_path / "manifest.jsonl")

    assert lines(tmp_path) == [attrs.asdict(entry)]
    assert "träum/夢 'x'.wav" == entry.file


async def test_nothing_is_stored(tmp_path: Path) -> None:
    """Where nothing is stored there is no manifest, and one that was there is empty."""
    ledger = await stored()

    assert 0 == await write_manifest(ledger, tmp_path)
    assert [] == listing(tmp_path)

    manifest(tmp_path, line())
    assert 0 == await write_manifest(ledger, tmp_path)
    assert (["manifest.jsonl"], []) == (listing(tmp_path), lines(tmp_path))


async def test_the_one_before_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    """A ledger that fails half way leaves the manifest that was there, and nothing else."""
    before = manifest(tmp_path, line()).read_bytes()
    modes: list[int] = []

    class Failing(_Endless):
        async def list_entries(
            self, states: Iterable[TrackState], *, after: int = 0, limit: int = 1000
        ) -> list[LedgerEntry]:
            if after >= 2_000:
                modes.extend(modes_of_parts(tmp_path))
                msg = "no"
                raise LedgerError(msg)
            return await super().list_entries(states, after=after, limit=limit)

    with pytest.raises(LedgerError):
        await write_manifest(Failing(10_000), tmp_path)

    assert ([0o600], ["manifest.jsonl"]) == (modes, listing(tmp_path))
    assert before == (tmp_path / "manifest.jsonl").read_bytes()


async def test_cancelled_half_way(tmp_path: Path) -> None:
    """A write that is cancelled leaves nothing behind."""

    class Stuck(_Endless):
        async def list_entries(
            self, states: Iterable[TrackState], *, after: int = 0, limit: int = 1000
        ) -> list[LedgerEntry]:
            if after:
                writing.cancel()
                await asyncio.sleep(0)
            return await super().list_entries(states, after=after, limit=limit)

    writing = asyncio.ensure_future(write_manifest(Stuck(5_000), tmp_path))
    with pytest.raises(asyncio.CancelledError):
        await writing

    assert [] == listing(tmp_path)


async def test_what_cannot_be_written(tmp_path: Path) -> None:
    """Where there is no folder, or a folder has the name, the disk's word is passed on."""
    ledger = await stored(1)
    (tmp_path / "manifest.jsonl").mkdir()

    with pytest.raises(OSError, match="manifest"):
        await write_manifest(ledger, tmp_path)
    assert ["manifest.jsonl"] == listing(tmp_path)
    with pytest.raises(FileNotFoundError):
        await write_manifest(ledger, tmp_path / "nowhere")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
async def test_its_mode(tmp_path: Path, umask: int) -> None:
    """The manifest has the mode that every new file has here."""
    before = os.umask(umask)
    try:
        await write_manifest(await stored(1), tmp_path)
    finally:
        os.umask(before)

    assert 0o666 & ~umask == stat.S_IMODE((tmp_path / "manifest.jsonl").stat().st_mode)


class _Endless(MemoryLedger):
    """As many stored tracks as one likes, in no memory."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count_ = count

    async def list_entries(
        self, states: Iterable[TrackState], *, after: int = 0, limit: int = 1000
    ) -> list[LedgerEntry]:
        assert [TrackState.SAVED] == list(states)
        return [
            LedgerEntry(
                index=index,
                track=Track("m", f"a{index}"),
                state=TrackState.SAVED,
                task_id="t",
                path=f"{index}.wav",
                bytes=1,
                sha256=DIGEST,
            )
            for index in range(after + 1, min(after + limit, self.count_) + 1)
        ]


async def test_memory_is_flat(tmp_path: Path) -> None:
    """Ten times as many files take no more memory, to write and to read."""

    async def peak(count: int) -> int:
        tracemalloc.start()
        assert count == await write_manifest(_Endless(count), tmp_path)
        assert count == sum(1 for _ in read_manifest(tmp_path / "manifest.jsonl"))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    await peak(2_000)
    assert await peak(20_000) < await peak(3_000) + 100_000


# --- read -----------------------------------------------------------------------------------

HOSTILE = [
    ("nonsense", "not JSON"),
    ('{"file": "x.wav"', "not JSON"),
    ("[" * 30_000, "not JSON"),
    (b'{"file": "\xff"}', "not JSON"),
    ('{"bytes": ' + "9" * 5_000 + "}", "not JSON"),
    ("[]", "not a JSON object"),
    ('"x.wav"', "not a JSON object"),
    ("{}", "names no file"),
    (line(file=""), "names no file"),
    (line(file=None), "names no file"),
    (line(file=["x.wav"]), "names no file"),
    (line(file="/etc/passwd"), "outside"),
    (line(file="//server/share/x"), "outside"),
    (line(file="\\\\server\\share\\x"), "outside"),
    (line(file="\\x.wav"), "outside"),
    (line(file="C:\\x.wav"), "outside"),
    (line(file="c:x.wav"), "outside"),
    (line(file=".."), "outside"),
    (line(file="../x.wav"), "outside"),
    (line(file="a/../../x.wav"), "outside"),
    (line(file="a/.."), "outside"),
    (line(file="a\\..\\..\\x.wav"), "outside"),
    (line(file="a/.. /x.wav"), "outside"),
    (line(file="..."), "outside"),
    (line(file="."), "outside"),
    (line(file="./"), "outside"),
    (line(file="x\0.wav"), "outside"),
    (line(bytes=-1), "not a size"),
    (line(bytes=1.0), "not a size"),
    (line(bytes=True), "not a size"),
    (line(bytes="44"), "not a size"),
    (line(bytes=1 << 63), "not a size"),
    (line(bytes=None), "not a size"),
    (line(sha256="0" * 63), "64 hex digits"),
    (line(sha256="g" * 64), "64 hex digits"),
    (line(sha256="0" * 64 + "\n"), "64 hex digits"),
    (line(sha256=0), "64 hex digits"),
    (line(title="x" * 100_000), "longer than 65,536 bytes"),
    ("x" * 1_000_000, "longer than 65,536 bytes"),
]


@pytest.mark.parametrize(("text", "why"), HOSTILE, ids=map(str, range(len(HOSTILE))))
def test_a_bad_line(tmp_path: Path, text: str | bytes, why: str) -> None:
    """A bad line is told with its number and costs nothing else."""
    path = manifest(tmp_path, line(file="1.wav"), "", text, line(file="4.wav"))
    first, bad, last = read_manifest(path)

    assert isinstance(bad, InvalidLine)
    assert 3 == bad.line
    assert why in bad.why
    assert ("1.wav", "4.wav") == (first.file, last.file)


def test_what_is_not_asked_for(tmp_path: Path) -> None:
    """Keys that are not ours are ignored, ours may be missing, and hex is hex in capitals too."""
    path = manifest(
        tmp_path,
        b"\xef\xbb\xbf" + line(sha256=DIGEST.upper(), title=7, task_id=[], extra={"a": 1}).encode(),
        line(file="a/b/c.wav", music_task_id="m", audio_id="a", task_id="t", title="T") + "\r",
        line(file="..x/y..wav"),
    )
    empty = Entry(
        music_task_id="",
        audio_id="",
        title=None,
        task_id="",
        file="x.wav",
        bytes=44,
        sha256=DIGEST,
    )

    assert [
        empty,
        attrs.evolve(
            empty, music_task_id="m", audio_id="a", task_id="t", title="T", file="a/b/c.wav"
        ),
        attrs.evolve(empty, file="..x/y..wav"),
    ] == list(read_manifest(path))


def test_the_last_line_without_its_end(tmp_path: Path) -> None:
    """A last line without a newline counts."""
    path = tmp_path / "m"
    path.write_text(line())

    assert ["x.wav"] == [entry.file for entry in read_manifest(path)]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    """A manifest that is not there, or is a folder, is one sentence."""
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CliError, match=re.escape(f"cannot read {path}: ")):
            list(read_manifest(path))


@given(st.text(st.sampled_from("./\\:ab \0"), max_size=12))
def test_a_file_in_the_folder_is_in_it(file: str) -> None:
    """A name that is taken never leads out of the folder, by either system's rules."""
    if not is_inside(file):
        return

    for separator in ("/", "\\"):
        depth = 0
        for part in file.replace("\\" if separator == "/" else "/", separator).split(separator):
            depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
            assert depth >= 0
    assert not file.startswith(("/", "\\"))
    assert ":" != file[1:2]


@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever is in a manifest, reading it ends with entries and bad lines."""
    path = tmp_path_factory.mktemp("any") / hashlib.sha256(data).hexdigest()
    path.write_bytes(data)

    assert all(isinstance(found, Entry | InvalidLine) for found in read_manifest(path))
