"""
How fast are WAV files saved, beside a bare aiohttp loop that writes what comes?

Decides whether checking, hashing and syncing may be the only setting: whoever has
a fast link must not want a download that trusts. Files of 32 MB come from a server
in a process of its own, four at a time, into the folder for temporary files. The
neighbours take turns in one run: a loop that writes between two reads, one that has
a thread write, one that syncs each file besides, one that does by hand all that
makes a file one to rely on (SHA-256, sync, rename), ours, and ours on a disk that
nobody waits for. Plain http: with TLS, which costs all of them the same, the
ratios would flatter us.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import os
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import BinaryIO, Final
from unittest import mock

import aiohttp
import attrs
from _figures import Figure, main
from _media_server import serving_files
from yarl import URL

from kie_wav_async import WavFile, WavSession

AT_ONCE: Final = 4
PIECE: Final = 1 << 20
TARGET: Final = 0.8
#: Of a link as homes and small servers have it, in bytes a second.
LINK: Final = 125_000_000

Save = Callable[[URL, Path], Awaitable[object]]
Write = Callable[[BinaryIO, bytes], Awaitable[object]]
Finish = Callable[[BinaryIO], Awaitable[object]]


@attrs.frozen
class _Cost:
    """What a gigabyte took: seconds, and seconds of CPU."""

    wall_s: float
    cpu_s: float


# --- the neighbours ---------------------------------------------------------------------------


async def _write_at_once(file: BinaryIO, piece: bytes) -> None:
    file.write(piece)


async def _write_in_thread(file: BinaryIO, piece: bytes) -> None:
    await asyncio.to_thread(file.write, piece)


async def _leave(_: BinaryIO) -> None:
    pass


async def _sync(file: BinaryIO) -> None:
    await asyncio.to_thread(os.fsync, file.fileno())


@contextlib.asynccontextmanager
async def _bare(write: Write, finish: Finish) -> AsyncIterator[Save]:
    """Do without us what one would do without us."""
    async with aiohttp.ClientSession() as client:

        async def save(url: URL, path: Path) -> None:
            with path.open("wb") as file:
                async with client.get(url) as response:
                    async for piece in response.content.iter_chunked(PIECE):
                        await write(file, piece)
                file.flush()
                await finish(file)

        yield save


@contextlib.asynccontextmanager
async def _careful() -> AsyncIterator[Save]:
    """Do by hand what makes a file one to rely on; its checks are left out."""
    async with aiohttp.ClientSession() as client:

        async def save(url: URL, path: Path) -> None:
            digest = hashlib.sha256()

            def write(piece: bytes) -> None:
                digest.update(piece)
                file.write(piece)

            def finish() -> None:
                file.flush()
                os.fsync(file.fileno())
                part.replace(path)
                folder = os.open(path.parent, os.O_RDONLY)
                os.fsync(folder)
                os.close(folder)

            part = path.with_suffix(".part")
            with part.open("wb") as file:
                async with client.get(url) as response:
                    async for piece in response.content.iter_chunked(PIECE):
                        await asyncio.to_thread(write, piece)
                await asyncio.to_thread(finish)

        yield save


@contextlib.asynccontextmanager
async def _ours() -> AsyncIterator[Save]:
    async with WavSession("key", insecure_hosts=["127.0.0.1"]) as session:

        async def save(url: URL, path: Path) -> None:
            await session.download(WavFile(path.name, url, None, "poll", None), path)

        yield save


@contextlib.asynccontextmanager
async def _ours_unsynced() -> AsyncIterator[Save]:
    with mock.patch("os.fsync"):
        async with _ours() as save:
            yield save


_WAYS: Final[dict[str, Callable[[], AbstractAsyncContextManager[Save]]]] = {
    "bare": lambda: _bare(_write_at_once, _leave),
    "threaded": lambda: _bare(_write_in_thread, _leave),
    "synced": lambda: _bare(_write_in_thread, _sync),
    "careful": _careful,
    "ours": _ours,
    "unsynced": _ours_unsynced,
}


# --- what they cost ---------------------------------------------------------------------------


@attrs.frozen
class _Host:
    """Where the files are, and how many are saved in one go."""

    address: str
    size: int
    count: int

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.size * self.count

    async def cost(self, way: str, folder: Path) -> _Cost:
        """Return what this process spends on saving them."""
        serials = iter(range(self.count))

        async def work(save: Save) -> None:
            for n in serials:
                await save(URL(f"{self.address}/{n}.wav"), folder / f"{n}.wav")

        async with _WAYS[way]() as save:
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            await asyncio.gather(*(work(save) for _ in range(AT_ONCE)))
            wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        return _Cost(wall_s / self.bytes * 1e9, cpu_s / self.bytes * 1e9)

    def round(self, ways: list[str], folder: Path, costs: dict[str, list[_Cost]]) -> None:
        """Have each way save them once, and note what it cost."""
        for way in ways:
            folder.mkdir()
            # Nobody pays for what the one before has left to be written.
            os.sync()
            gc.collect()
            costs.setdefault(way, []).append(asyncio.run(self.cost(way, folder)))
            assert [path.stat().st_size for path in folder.iterdir()] == [self.size] * self.count
            shutil.rmtree(folder)

    def alone_s(self) -> float:
        """Return how long clients take that do nothing with what comes."""
        threads = [threading.Thread(target=self._drain) for _ in range(AT_ONCE)]
        start_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (time.perf_counter() - start_s) / (self.size * AT_ONCE) * 1e9

    def _drain(self) -> None:
        url, room = URL(self.address), bytearray(PIECE)
        with socket.create_connection((str(url.host), int(url.port or 0))) as peer:
            peer.sendall(b"GET /x.wav HTTP/1.1\r\n\r\n")
            left = self.size
            while left > 0:
                left -= peer.recv_into(room)


def _hashing_s(size: int) -> float:
    """Return the CPU seconds of the SHA-256 of a gigabyte."""
    piece, digest = bytes(PIECE), hashlib.sha256()
    start_s = time.process_time()
    for _ in range(-(-size // PIECE)):
        digest.update(piece)
    return (time.process_time() - start_s) / (-(-size // PIECE) * PIECE) * 1e9


def _ratio(costs: dict[str, list[_Cost]], way: str) -> tuple[float, str]:
    """Return the median of our rate over that of a neighbour, and how far it spreads."""
    ratios = [a.wall_s / b.wall_s for a, b in zip(costs[way], costs["ours"], strict=True)]
    if len(ratios) == 1:
        return ratios[0], ""
    quarters = statistics.quantiles(ratios, n=4)
    rate = statistics.median(1e3 / cost.wall_s for cost in costs[way])
    return quarters[1], f"+-{(quarters[2] - quarters[0]) / 2:.2f}; it takes {rate:.0f} MB a second"


def measure(*, quick: bool) -> list[Figure]:
    """Return the rates, and ratios within one run."""
    size, count, rounds = (1 << 20, 4, 1) if quick else (32_000_000, 24, 7)
    costs: dict[str, list[_Cost]] = {}
    linked: dict[str, list[_Cost]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "files"
        with serving_files(size) as address:
            host = _Host(address, size, count)
            for number in range(rounds):
                # Whoever comes second finds the caches as the first left them.
                ways = list(_WAYS) if number % 2 else list(reversed(_WAYS))
                host.round(ways, folder, costs)
            server = 1e3 / host.alone_s()
        with serving_files(size, LINK) as address:
            host = _Host(address, size, -(-count // 3))
            for ways in [["bare", "ours"], ["ours", "bare"]][: min(2, rounds)]:
                host.round(ways, folder, linked)
    cpu_s = {way: statistics.median(cost.cpu_s for cost in many) for way, many in costs.items()}
    ours = statistics.median(1e3 / cost.wall_s for cost in costs["ours"])
    against = {way: _ratio(costs, way) for way in costs}
    return [
        Figure("download, ours", ours, "MB/s", note=f"{AT_ONCE} at a time, of files in one run"),
        Figure(
            "download, ours / bare loop",
            against["bare"][0],
            "x",
            at_least=TARGET,
            note=against["bare"][1],
        ),
        Figure(
            "download, ours / loop with threads",
            against["threaded"][0],
            "x",
            note=against["threaded"][1],
        ),
        Figure(
            "download, ours / that and synced", against["synced"][0], "x", note=against["synced"][1]
        ),
        Figure(
            "download, ours / all by hand", against["careful"][0], "x", note=against["careful"][1]
        ),
        Figure("download, ours / bare, at 1 Gbit/s", _ratio(linked, "bare")[0], "x"),
        Figure(
            "download, with sync / without",
            against["unsynced"][0],
            "x",
            note=against["unsynced"][1],
        ),
        Figure(
            "download, CPU, ours / bare loop",
            cpu_s["ours"] / cpu_s["bare"],
            "x",
            note=f"{cpu_s['ours']:.2f} s per GB; all by hand {cpu_s['careful']:.2f}",
        ),
        Figure("download, SHA-256 / our CPU", _hashing_s(size) / cpu_s["ours"], "x"),
        Figure("download, the server alone", server, "MB/s"),
    ]


if __name__ == "__main__":
    main(measure)
