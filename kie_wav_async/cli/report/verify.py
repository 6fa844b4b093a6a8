"""``kie-wav report --verify``: whether the files are still what was saved."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import json
import os
import stat
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import attrs

from kie_wav_async._support.files import is_inside, sha256_of
from kie_wav_async.cli.bulk.catalog_file import InvalidLine
from kie_wav_async.cli.bulk.estimate import bytes_words, count_words
from kie_wav_async.cli.bulk.manifest import MANIFEST, Entry, entry_of, read_manifest
from kie_wav_async.cli.common.ledger_pages import pages
from kie_wav_async.cli.common.output import DONE, FAILED, INTERRUPTED, USAGE, CliError
from kie_wav_async.cli.common.progress import VerifyDisplay
from kie_wav_async.cli.common.streams import flush, wait_for_room
from kie_wav_async.cli.report.catalog_report import is_folder, is_sqlite
from kie_wav_async.ledger import SqliteLedger, TrackState
from kie_wav_async.protocol.api_constants import KIE_WAV

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

# A disk is read by so many at a time, and so many more files are looked up ahead.
_WORKERS: Final = 4
_AHEAD: Final = 32

# A pipe, or whatever else has the name, is neither waited for nor made our terminal.
_FLAGS: Final = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY")
)


class Result(enum.StrEnum):
    """What a file turned out to be."""

    #: As it was saved.
    OK = "ok"
    #: Of another size, or with other bytes.
    DAMAGED = "damaged"
    #: Not there.
    MISSING = "missing"
    #: There, and it cannot be read.
    UNREADABLE = "unreadable"


# As `sha256sum -c` says it.
_WORDS: Final = {
    Result.OK: "OK",
    Result.DAMAGED: "FAILED",
    Result.MISSING: "FAILED open or read",
    Result.UNREADABLE: "FAILED open or read",
}


@attrs.frozen
class Checked:
    """
    One file that was looked at.

    Attributes:
        entry: What it has to be.

        result: What it is.

        why: What is wrong with it; ``""`` if nothing is.
    """

    entry: Entry
    result: Result
    why: str = ""


async def run_verify(path: Path, folder: Path | None, *, as_json: bool) -> int:
    """
    Read every file that was saved, and print what became of it.

    Args:
        path: A ledger, which a run may be under way with; a manifest, or the folder of one.

        folder: Where the files are; `None`: where *path* is.

        as_json: Print one JSON object a line.

    Raises:
        CliError: There is nothing to go by, or it was interrupted.

        LedgerError: The ledger cannot be read.
    """
    source = _Source.find(path)
    found = _Found(source, folder or source.path.parent)
    with VerifyDisplay() as display:
        if display.is_live:
            display.show_total(await source.measure())
        try:
            async with (
                _Workers(found.folder, display.show_read) as workers,
                contextlib.aclosing(workers.check(source.entries())) as results,
            ):
                async for one in results:
                    found.take(one)
                    await wait_for_room()
                    _print(one, found, display, as_json=as_json)
            await flush()
        except asyncio.CancelledError:
            raise CliError(INTERRUPTED, f"interrupted: {found.sentence()}") from None
    display.say(found.sentence())
    if found.has_none and source.is_ledger and folder is None:
        display.say(
            f"No file is in {found.folder}: if they are elsewhere, name the folder by --out."
        )
    elif found.count and not found.is_good and source.is_ledger:
        display.say(
            "Remove what is damaged: the same `kie-wav bulk` command saves what is missing, for as "
            f"long as KIE has it, which is {KIE_WAV.retention_days} days."
        )
    return DONE if found.is_good else FAILED


@attrs.frozen
class _Source:
    """
    What tells which files there are.

    Attributes:
        path: A ledger or a manifest.

        is_ledger: Which of them.
    """

    path: Path
    is_ledger: bool

    @classmethod
    def find(cls, path: Path) -> _Source:
        """
        Return what *path* is.

        Raises:
            CliError: It is none.
        """
        if is_folder(path):
            manifest = path / MANIFEST
            if not manifest.is_file():
                ledger = path / "kie-wav.sqlite3"
                msg = f"there is no {MANIFEST} in {path}: name the ledger, {ledger} perhaps"
                raise CliError(USAGE, msg)
            return cls(manifest, is_ledger=False)
        if is_sqlite(path, "ledger and no manifest"):
            return cls(path, is_ledger=True)
        if not path.is_file() or not _is_json(path):
            msg = f"{path} is neither a ledger nor a {MANIFEST}"
            raise CliError(USAGE, msg)
        return cls(path, is_ledger=False)

    async def entries(self) -> AsyncGenerator[Entry | InvalidLine]:
        """Yield what there is to check, in order."""
        if not self.is_ledger:
            for found in read_manifest(self.path):
                yield found
            return
        ledger = SqliteLedger(self.path, read_only=True)
        _ = await ledger.open(time.time())
        try:
            async for page in pages(ledger, [TrackState.SAVED]):
                for row in page:
                    if (entry := entry_of(row)) is not None:
                        yield entry
        finally:
            await ledger.aclose()

    async def measure(self) -> int:
        """Return how many bytes there are to be read."""
        total = 0
        async with contextlib.aclosing(self.entries()) as entries:
            async for found in entries:
                total += found.bytes if isinstance(found, Entry) else 0
        return total


def _is_json(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            begin = file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise CliError(USAGE, f"cannot read {path}: {error.strerror or error}") from error
    return not begin or begin.startswith(b"{")


@attrs.define
class _Found:
    """
    What was found so far.

    Attributes:
        source: What told of the files.

        folder: Where they are.

        bytes: How many bytes the good ones have.

        invalid_lines: How many lines of a manifest are none.
    """

    source: _Source
    folder: Path
    bytes: int = 0
    invalid_lines: int = 0
    _results: Counter[Result] = attrs.field(factory=Counter[Result], init=False)

    def take(self, one: Checked | InvalidLine) -> None:
        """Count one."""
        if isinstance(one, InvalidLine):
            self.invalid_lines += 1
            return
        self._results[one.result] += 1
        if one.result is Result.OK:
            self.bytes += one.entry.bytes

    @property
    def count(self) -> int:
        """How many files there are."""
        return self._results.total()

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong; a manifest without a line is, as it has lost all of them."""
        is_empty = not self.count and not self.source.is_ledger
        return not is_empty and not self.invalid_lines and self._results[Result.OK] == self.count

    @property
    def has_none(self) -> bool:
        """Whether there are files, and none of them is where it should be."""
        return 0 < self.count == self._results[Result.MISSING]

    def sentence(self) -> str:
        """Say it to a person."""
        if self.count:
            text = self._of_files()
        elif self.invalid_lines:
            text = "Nothing is verified."
        else:
            what = "has no saved file" if self.source.is_ledger else "lists no file"
            text = f"{self.source.path} {what}: there is nothing to verify."
        if self.invalid_lines:
            lines = count_words(self.invalid_lines, "line")
            text += f" {lines} of {self.source.path.name} cannot be read."
        return text

    def _of_files(self) -> str:
        files = f"{count_words(self.count, 'file')} in {self.folder}"
        bad = self.count - self._results[Result.OK]
        if bad:
            told = [
                f"{self._results[result]:,} {result.value}"
                for result in Result
                if self._results[result] and result is not Result.OK
            ]
            are = "is not as it was" if bad == 1 else "are not as they were"
            return f"{bad:,} of {files} {are} saved: {', '.join(told)}."
        are = "as it was" if self.count == 1 else "all as they were"
        return f"{files}, {bytes_words(self.bytes)}: {are} saved."


@attrs.define
class _Workers:
    """
    Threads that read files.

    Attributes:
        folder: Where the files are.

        on_read: Called from the threads with how many bytes are done with.
    """

    folder: Path
    on_read: Callable[[int], object]
    _executor: ThreadPoolExecutor = attrs.field(
        factory=lambda: ThreadPoolExecutor(_WORKERS, "kie-wav-verify"), init=False
    )
    _is_over: threading.Event = attrs.field(factory=threading.Event, init=False)

    async def __aenter__(self) -> Self:
        """Wait for work."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Have the threads end with the piece that each of them is at."""
        self._is_over.set()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def check(
        self, entries: AsyncGenerator[Entry | InvalidLine]
    ) -> AsyncGenerator[Checked | InvalidLine]:
        """Check *entries*, some at a time; yield what came of each, in their order."""
        loop = asyncio.get_running_loop()
        ahead: deque[asyncio.Future[Checked] | InvalidLine] = deque()
        async with contextlib.aclosing(entries):
            async for found in entries:
                if isinstance(found, InvalidLine):
                    ahead.append(found)
                else:
                    ahead.append(loop.run_in_executor(self._executor, self._check, found))
                if len(ahead) >= _AHEAD:
                    yield await _ready(ahead.popleft())
        while ahead:
            yield await _ready(ahead.popleft())

    def _check(self, entry: Entry) -> Checked:
        if not is_inside(entry.file):
            return Checked(entry, Result.UNREADABLE, "it may be outside of the folder")
        left = entry.bytes

        def tell_read(count: int) -> None:
            nonlocal left
            left -= min(count, left)
            self.on_read(count)

        try:
            why = self._find_fault(entry, tell_read)
        except FileNotFoundError:
            return Checked(entry, Result.MISSING, "it is not there")
        except (OSError, ValueError) as error:  # A name may have what no name here can.
            why = getattr(error, "strerror", None) or "no file can have that name"
            return Checked(entry, Result.UNREADABLE, why)
        finally:
            self.on_read(left)  # What there is no need to read.
        return Checked(entry, Result.DAMAGED, why) if why else Checked(entry, Result.OK)

    def _find_fault(self, entry: Entry, tell_read: Callable[[int], object]) -> str:
        """
        Return in what a file differs from *entry*; ``""`` if it does not.

        Raises:
            OSError: It cannot be read.

            ValueError: It cannot be named.
        """
        number = os.open(self.folder / entry.file, _FLAGS)
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            os.close(number)
            raise OSError(errno.EINVAL, "it is not a file")
        with os.fdopen(number, "rb", buffering=0) as file:
            if found.st_size != entry.bytes:
                return f"it has {found.st_size:,} bytes, and had {entry.bytes:,}"

            def proceed(count: int) -> bool:
                tell_read(count)
                return not self._is_over.is_set()

            digest = sha256_of(file, proceed)
        return "" if digest == entry.sha256 else "its bytes have changed"


async def _ready(one: asyncio.Future[Checked] | InvalidLine) -> Checked | InvalidLine:
    return one if isinstance(one, InvalidLine) else await one


def _print(
    one: Checked | InvalidLine, found: _Found, display: VerifyDisplay, *, as_json: bool
) -> None:
    if isinstance(one, InvalidLine):
        if as_json:
            told = {"line": one.line, "result": "invalid-line", "why": one.why}
            display.print_result(json.dumps(told))
        display.say(f"kie-wav: {found.source.path.name}, line {one.line}: {one.why}")
        return
    name = escaped(one.entry.file)
    if as_json:
        told = {**attrs.asdict(one.entry), "result": one.result.value, "why": one.why or None}
        display.print_result(json.dumps(told))
    else:
        display.print_result(f"{name}: {_WORDS[one.result]}")
    if one.why:
        display.say(f"kie-wav: {name}: {one.why}")


def escaped(name: str) -> str:
    """Return *name* on one line, as ``sha256sum`` writes it: a backslash first tells of others."""
    if not {"\\", "\n", "\r"} & set(name):
        return name
    return "\\" + name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
