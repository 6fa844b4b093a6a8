"""
Many files at once: memory, and the loop, while they are saved.

The host runs in a process of its own, and so does what saves. The default run is a
small one; 200 files of 32 MB through a session, and as a catalog through
``kie-wav bulk``, with the figures printed, times as median/p99/most::

    python -m pytest -m campaign tests/test_download_size.py
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import attrs
import pytest

from hostile import downloading
from kie_wav_async.errors import DownloadError
from kie_wav_async.simulator import SimulatorProcess
from media import HONEST, Manner, MediaServer, page, wav_bytes

HERE = Path(__file__).resolve().parent
SERVER = HERE.parent / "benchmarks" / "_media_server.py"
CHILD = HERE / "download_child.py"
# What no test waits for; it only ends a hang.
PATIENCE_S = 900.0
MIB = 1 << 20
MANY, LARGE = 200, 32_000_000


@attrs.frozen
class Run:
    """
    What there is to judge of one run.

    Attributes:
        peaks: The most memory in bytes, between the ends of two files or each 0.1 s.
        late_s: How late the loop was, each 5 ms.
        blocked_s: The same less the time in which its thread had no processor.
        waits: What may have waited for the disk on the loop's thread.
        told: What it said for people.
    """

    peaks: list[int]
    late_s: list[float]
    blocked_s: list[float]
    waits: list[str]
    seconds: float
    told: str

    def rise_after(self, notes: int) -> int:
        """Return how much more memory was in use after so many notes than before."""
        return max(self.peaks[notes:]) - max(self.peaks[:notes])

    def __str__(self) -> str:
        at = [self.peaks[n * (len(self.peaks) - 1) // 10] // MIB for n in range(11)]
        return (
            f"{self.seconds:.1f} s; resident MiB at each tenth: {at}, at most "
            f"{max(self.peaks) // MIB}; loop late by {spread_ms(self.late_s)}, of that "
            f"blocked {spread_ms(self.blocked_s)}"
        )


def spread_ms(times_s: list[float]) -> str:
    """Show the middle and the end of many times."""
    ms = sorted(1e3 * time_s for time_s in times_s)
    return f"{statistics.median(ms):.1f}/{ms[len(ms) * 99 // 100]:.1f}/{ms[-1]:.1f} ms"


def run_child(judged: Path, *arguments: str, **environment: str) -> Run:
    """Run a process that watches itself."""
    child = subprocess.run(  # noqa: S603 - a file of this repository
        [sys.executable, str(CHILD), str(judged), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
        text=True,
        timeout=PATIENCE_S,
    )
    assert 0 == child.returncode, child.stderr
    return Run(**json.loads(judged.read_text("utf-8")), told=child.stdout + child.stderr)


def save_all(folder: Path, files: int, size: int) -> Run:
    """Save so many files of *size* bytes."""
    folder.mkdir()
    with subprocess.Popen(  # noqa: S603 - a file of this repository
        [sys.executable, str(SERVER), str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        address = f"http://127.0.0.1:{int(server.stdout.readline())}"
        judged = folder.with_suffix(".json")
        try:
            run = run_child(judged, "session", address, str(folder), str(files))
        finally:
            server.stdin.close()
    assert [size] * files == sizes(folder)
    assert [] == run.waits
    return run


def sizes(folder: Path) -> list[int]:
    """Return the sizes of the WAV files in a folder that holds nothing else but its books."""
    return [path.stat().st_size for path in folder.glob("*.wav*")]


def test_memory_knows_neither_how_many_files_nor_how_long(tmp_path) -> None:
    """The last of many files take no more memory than the first, and a long one no more."""
    many = save_all(tmp_path / "many", 12, 4_000_000)
    one = save_all(tmp_path / "one", 1, 64_000_000)

    # 32 MB came after the first four.
    assert many.rise_after(4) < 16_000_000, many
    assert max(one.peaks) < max(many.peaks) + 32_000_000, (one, many)


def test_what_waits_on_the_loop_is_noted(tmp_path) -> None:
    """What opens a file or lists a folder on the loop's thread is seen by the run that looks."""
    run = run_child(tmp_path / "judged.json", "careless")

    assert ["open", "os.listdir"] == run.waits


# --- which thread does what -------------------------------------------------------------------


@contextlib.contextmanager
def watching_calls():
    """Yield what is called of what is written in C: on this thread, and on those it starts."""
    ours, here, others = threading.get_ident(), Counter(), Counter()

    def note(_frame, event, function):
        if event == "c_call":
            owner = function.__module__ or f"{type(function.__self__).__module__}"
            calls = here if threading.get_ident() == ours else others
            calls[f"{owner}.{function.__name__}"] += 1

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield here, others
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def waits(calls):
    """Return those of *calls* that wait for a disk, or take long with much."""
    modules = (f"{os.open.__module__}.", "io.", "_io.", "fcntl.", "_hashlib.")
    # Of these one reads a path, and one makes a hash of nothing yet.
    harmless = {"fspath", "_path_splitroot_ex", "openssl_sha256"}
    return {
        name for name in calls if name.startswith(modules) and name.split(".")[-1] not in harmless
    }


@pytest.mark.parametrize(
    ("manner", "there", "seen"),
    [
        (HONEST, b"", {"write", "update", "fsync", "replace"}),
        (HONEST, wav_bytes(3 * MIB), {"open", "read", "update"}),
        ([Manner(cut=2 * MIB, end="rst"), HONEST], b"", {"write", "update", "fsync", "replace"}),
        (page(), b"", {"open", "unlink"}),
    ],
    ids=["new", "there already", "gone on with", "no WAV file"],
)
async def test_the_loop_neither_writes_nor_hashes(tmp_path, manner, there, seen) -> None:
    """What waits for a disk, and what hashes, is called in threads, however a download goes."""
    # That looks into source files, to tell where tasks come from.
    asyncio.get_running_loop().set_debug(False)
    target = tmp_path / "a.wav"
    if there:
        target.write_bytes(there)
    async with MediaServer() as media, downloading() as running, asyncio.timeout(PATIENCE_S):
        url = media.put("/a.wav", wav_bytes(3 * MIB), manner)
        with watching_calls() as (here, others), contextlib.suppress(DownloadError):
            await running.download(url, target)

    assert set() == waits(here)
    # They are seen where they are made.
    assert seen <= {name.rpartition(".")[2] for name in waits(others)}


# --- the campaign -----------------------------------------------------------------------------


def assert_is_flat(run: Run) -> None:
    """Hold a long run to the limits of memory and of the loop."""
    assert max(run.peaks) < 200_000_000, run
    # The last nine tenths have no more than the first.
    assert run.rise_after(len(run.peaks) // 10) < 32_000_000, run
    assert max(run.blocked_s) < 0.050, run


@pytest.mark.campaign
def test_200_files_through_a_session(tmp_path, capsys) -> None:
    """200 files of 32 MB take less than 200 MB, and the loop is never held up by 50 ms."""
    run = save_all(tmp_path / "out", MANY, LARGE)
    with capsys.disabled():
        print(f"\n{MANY} files through a session, four at a time: {run}")  # noqa: T201 - for this the campaign is run
    assert_is_flat(run)


@pytest.mark.campaign
async def test_200_files_through_bulk(tmp_path, capsys) -> None:
    """A catalog of 200 tracks of 32 MB takes no more, and holds up the loop no longer."""
    catalog, out = tmp_path / "tracks.csv", tmp_path / "out"
    rows = "".join(f"m{n // 2},a{n},Song number {n}\n" for n in range(MANY))
    catalog.write_text(f"music_task_id,audio_id,title\n{rows}", "utf-8")
    speed = 100.0
    async with (
        asyncio.timeout(PATIENCE_S),
        SimulatorProcess(time_scale=speed, max_life_s=PATIENCE_S, wav_s=(181.0, 182.0)) as kie,
    ):
        run = await asyncio.to_thread(
            run_child,
            tmp_path / "judged.json",
            *("bulk", str(catalog), "--out", str(out), "--json"),
            *("--rate", f"20/{10.0 / speed}", "--poll", f"{15 / speed},{10 / speed},{30 * speed}"),
            KIE_API_KEY=kie.api_key,
            KIE_BASE_URL=kie.base_url,
        )
        state = await kie.state()
    with capsys.disabled():
        print(f"\n{MANY} files through kie-wav bulk: {run}")  # noqa: T201 - as above
    assert MANY == state.charges
    assert MANY == len([size for size in sizes(out) if size > 31_900_000])
    assert_is_flat(run)
