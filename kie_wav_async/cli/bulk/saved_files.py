"""
The files of earlier runs, looked at before the next one begins.

Of each is looked whether it is there, and as long as it was. What a crash of the
machine can have hurt was written last, so of those the SHA-256 is checked too. What is
missing or damaged is fetched again: whether the service still has it, the service says,
and no clock of ours. The file of an expired track may be back.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from kie_wav_async._support.files import OUT_OF_RESOURCES, is_inside, sha256_of
from kie_wav_async.cli.common.ledger_pages import pages
from kie_wav_async.ledger import Ledger, LedgerEntry, TrackState

if TYPE_CHECKING:
    from collections.abc import Sequence


# So many files are read, those written last.
_RECENT: Final = 256
# What no file has: there is something, and nobody can say what.
_NO_SIZE: Final = -1


@attrs.define
class SavedFilesCheck:
    """
    What became of the files of earlier runs.

    Attributes:
        files: How many are as they were.

        bytes: What those take.

        missing: How many are not there, and are to be saved again.

        aside: Those that were not what they were, are under another name now, and are
            to be saved again: where the first of them is.

        damaged: How many there are of those.

        back: How many files of expired tracks are there, and are to be looked at.

        lost: Those that are not what they were and cannot be moved: they were left as they
            are, and the ledger keeps what they were.
    """

    files: int = 0
    bytes: int = 0
    missing: int = 0
    damaged: int = 0
    aside: Path | None = None
    back: int = 0
    lost: list[LedgerEntry] = attrs.field(factory=list[LedgerEntry])


@attrs.define
class _Checker:
    ledger: Ledger
    folder: Path
    tell: Callable[[int], object]
    found: SavedFilesCheck = attrs.field(factory=SavedFilesCheck, init=False)

    async def check(self) -> SavedFilesCheck:
        """Check all files."""
        recent: list[tuple[float, int, LedgerEntry]] = []
        done = 0
        async for page in pages(self.ledger, [TrackState.SAVED]):
            looked = await asyncio.to_thread(self._look, page)
            for entry, (size, changed_s) in zip(page, looked, strict=True):
                if size is None:
                    self.found.missing += 1
                    await self.ledger.mark_missing(entry.track)
                elif size != entry.bytes:
                    await self._take_damaged(entry)
                else:
                    self.found.files += 1
                    self.found.bytes += size
                    heapq.heappush(recent, (changed_s, entry.index, entry))
                    if len(recent) > _RECENT:
                        _ = heapq.heappop(recent)
            done += len(page)
            self.tell(done)
        for _, _, entry in recent:
            done += 1
            self.tell(done)
            try:
                digest = await asyncio.to_thread(_digest, self._path(entry))
            except OSError:
                continue  # It has the right size, and nobody can read anything just now.
            if digest != entry.sha256:
                self.found.files -= 1
                self.found.bytes -= entry.bytes or 0
                await self._take_damaged(entry)
        await self._find_back()
        return self.found

    async def _find_back(self) -> None:
        """Have every expired track looked at whose file is there, be it moved back or copied."""
        async for page in pages(self.ledger, [TrackState.EXPIRED]):
            for entry, (size, _) in zip(
                page, await asyncio.to_thread(self._look, page), strict=True
            ):
                if entry.path is not None and size is not None:
                    self.found.back += 1
                    await self.ledger.mark_missing(entry.track)

    def _path(self, entry: LedgerEntry) -> Path:
        """
        Return where a file should be.

        Raises:
            FileNotFoundError: In none of our folders: the ledger was tampered with.
        """
        place = str(entry.path)
        if not is_inside(place, on_any_system=False):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self.folder / place

    def _look(self, page: Sequence[LedgerEntry]) -> list[tuple[int | None, float]]:
        """Return the size of each file, and when it was changed; `None` if it is not there."""
        found: list[tuple[int | None, float]] = []
        for entry in page:
            try:
                status = self._path(entry).stat()
            except (FileNotFoundError, NotADirectoryError):
                found.append((None, 0.0))
            except OSError as error:
                is_unknown = error.errno in OUT_OF_RESOURCES
                found.append((entry.bytes if is_unknown else _NO_SIZE, 0.0))
            else:
                is_file = stat.S_ISREG(status.st_mode)
                found.append((status.st_size if is_file else _NO_SIZE, status.st_mtime))
        return found

    async def _take_damaged(self, entry: LedgerEntry) -> None:
        path = self._path(entry)
        try:
            aside = await asyncio.to_thread(_move_aside, path)
        except OSError:  # One file that cannot be moved is no reason to leave all others.
            self.found.lost.append(entry)
            return
        self.found.damaged += 1
        self.found.aside = self.found.aside or aside
        await self.ledger.mark_missing(entry.track)


def steps(files: int) -> int:
    """Return how many looks it takes to recheck so many *files*."""
    return files + min(files, _RECENT)


async def recheck(ledger: Ledger, folder: Path, tell: Callable[[int], object]) -> SavedFilesCheck:
    """
    Check the files that a ledger has as stored, and have it know which are not good.

    Args:
        ledger: Open.

        folder: Where the files are.

        tell: Called with how many were looked at, or read, which comes on top: see `steps`.

    Raises:
        LedgerError: The ledger cannot be read or written.
    """
    return await _Checker(ledger, folder, tell).check()


async def reclaim(ledger: Ledger) -> int:
    """
    Have every expired WAV fetched once more, as the service may have it after all.

    Returns how many there are.

    Raises:
        LedgerError: The ledger cannot be read or written.
    """
    count = 0
    async for page in pages(ledger, [TrackState.EXPIRED]):
        _ = await asyncio.gather(*(ledger.mark_missing(entry.track) for entry in page))
        count += len(page)
    return count


def _digest(path: Path) -> str | None:
    """
    Return the SHA-256 of a file; `None` if it cannot be read.

    Raises:
        OSError: No file can be read just now.
    """
    try:
        with path.open("rb", buffering=0) as file:
            return sha256_of(file)
    except OSError as error:
        if error.errno in OUT_OF_RESOURCES:
            raise
        return None


def _move_aside(path: Path) -> Path:
    """Give a file another name, which nothing has, and return that."""
    aside, number = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged.{number}")
    return path.rename(aside)
