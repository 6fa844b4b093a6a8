"""
From a catalog to a plan: read once, checked to its end, and only then planned.

The rows are kept in a nameless file meanwhile: whether a line is bad is known when
all were read, stdin cannot be read twice, and a catalog may be too large for memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self, TypeVar

import attrs

from kie_wav_async import Track, WavSession
from kie_wav_async.cli.bulk.catalog_file import InvalidLine, Row, read_catalog
from kie_wav_async.cli.bulk.estimate import count_words
from kie_wav_async.cli.bulk.progress import BulkDisplay
from kie_wav_async.cli.common.ledger_pages import pages
from kie_wav_async.cli.common.output import SERVICE, USAGE, CliError, clean
from kie_wav_async.errors import InvalidRequestError, NotFoundError, with_advice
from kie_wav_async.ledger import Ledger, TrackState

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

T = TypeVar("T")

#: Where the bad lines are written if there are many.
INVALID_LINES: Final = "kie-wav-invalid-lines.txt"

# So many rows are read, looked up and planned at a time.
_SLICE: Final = 1_000
# So many music tasks are looked up at the same time.
_PARALLEL: Final = 8
# What a thread takes to end that has done its work, and much more.
_PARTING_S: Final = 0.5
# So many bad lines are shown; more would push each other off the screen.
_SHOWN: Final = 50


@attrs.frozen
class Plan:
    """
    What was planned.

    Attributes:
        tracks: How many the catalog names, repeats included.

        new: How many of them were not in the ledger before.

        invalid: How many of its lines are bad, and were left out.
    """

    tracks: int
    new: int
    invalid: int


@attrs.define
class Planner:
    """
    Plans a catalog.

    Attributes:
        session: Knows the tracks of a music task.

        ledger: Where they are planned; open.

        folder: Where there is room on the disk.

        display: Is told how far it has come, and of each bad line.
    """

    session: WavSession
    ledger: Ledger
    folder: Path
    display: BulkDisplay
    _thread: threading.Thread | None = None
    _known: Counter[str] | None = None

    @property
    def is_stuck(self) -> bool:
        """Whether the catalog is still being read: a stdin that says nothing cannot be left."""
        if self._thread is None:
            return False
        # It may have given all it had, and be about to end.
        self._thread.join(_PARTING_S)
        return self._thread.is_alive()

    async def plan(self, catalog: str, *, skip_invalid: bool) -> Plan:
        """
        Plan a catalog, all of it or nothing.

        Args:
            catalog: Its path, or ``-``.

            skip_invalid: Leave bad lines out instead.

        Raises:
            CliError: It cannot be read, or has bad lines.

            LedgerError: It cannot be planned.

            KieWavError: The service could not be asked for the tracks of a music task.
        """
        with (
            _InvalidLines(self.folder / INVALID_LINES, self.display) as bad,
            self._open_stage() as stage,
        ):
            tracks = await self._read(catalog, stage, bad)
            if bad.count and not skip_invalid:
                sentence = (
                    f"{count_words(bad.count, 'line is', 'lines are')} bad: nothing was planned or "
                    "submitted. Mend what is bad, or leave it out with --skip-invalid"
                )
                raise CliError(USAGE, sentence, invalid_lines=bad.count)
            new = await self._write(stage, tracks)
        return Plan(tracks, new, bad.count)

    def _open_stage(self) -> IO[str]:
        with self._writing():
            return tempfile.TemporaryFile("w+", encoding="ascii", dir=self.folder)

    @contextlib.contextmanager
    def _writing(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            sentence = (
                f"{self.folder} cannot be written to: {error.strerror or error}; nothing was "
                "planned or submitted"
            )
            raise CliError(SERVICE, sentence) from error

    async def _read(self, catalog: str, stage: IO[str], bad: _InvalidLines) -> int:
        """Read the catalog to its end, and return how many tracks it names."""
        rows = read_catalog(catalog)
        read = tracks = 0
        self.display.show_read(read)
        while found := await self._in_thread(lambda: list(itertools.islice(rows, _SLICE))):
            asked = {r.music_task_id for r in found if isinstance(r, Row) and r.audio_id is None}
            looked_up = await self._look_up(asked) if asked else {}
            lines: list[str] = []
            for row in found:
                if isinstance(row, InvalidLine):
                    bad.show(row)
                    continue
                given = _tracks_of(row, looked_up)
                if not isinstance(given, str):
                    lines += map(_packed, given)
                elif known := await self._count_known(row.music_task_id):
                    tracks += known
                else:
                    bad.show(InvalidLine(row.line, given))
            with self._writing():
                stage.write("".join(lines))
                stage.flush()
            tracks += len(lines)
            read += len(found)
            self.display.show_read(read)
        return tracks

    async def _write(self, stage: IO[str], total: int) -> int:
        """Plan what was read, and return how much of it is new."""
        stage.seek(0)
        new = done = 0

        def unpack() -> list[Track]:
            return [_unpacked(line) for line in itertools.islice(stage, _SLICE)]

        while tracks := await self._in_thread(unpack):
            self.display.show_planned(done, total)
            new += await self.ledger.add_tracks(tracks)
            done += len(tracks)
        return new

    async def _look_up(self, music_task_ids: Iterable[str]) -> dict[str, list[Track] | str]:
        """Return the tracks of each music task, or why it has none."""
        found: dict[str, list[Track] | str] = {}
        waiting = iter(music_task_ids)

        async def ask() -> None:
            for music_task_id in waiting:
                found[music_task_id] = await self._ask(music_task_id)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_PARALLEL):
                    _ = group.create_task(ask())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return found

    async def _count_known(self, music_task_id: str) -> int:
        """
        Return how many tracks of a music task an earlier run has planned.

        KIE forgets music tasks, and a catalog that was planned is not to turn bad
        before it is done.
        """
        if self._known is None:
            self._known = Counter()
            async for page in pages(self.ledger, TrackState, limit=_SLICE):
                self._known.update(entry.track.music_task_id for entry in page)
        return self._known[music_task_id]

    async def _ask(self, music_task_id: str) -> list[Track] | str:
        try:
            tracks = await self.session.list_tracks(music_task_id)
        except (NotFoundError, InvalidRequestError) as error:
            return f"no tracks of music task {music_task_id}: {with_advice(error)}"
        return tracks or f"no tracks of music task {music_task_id}: KIE lists none"

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """
        Return what *work* returns, from a thread that nobody waits for.

        asyncio's own are waited for when the program ends, and stdin may never.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]  # there is no error, so it is one

        def run() -> None:
            result: T | None = None
            failure: BaseException | None = None
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
                failure = error
            with contextlib.suppress(RuntimeError):  # The loop has ended meanwhile.
                loop.call_soon_threadsafe(settle, result, failure)

        self._thread = threading.Thread(target=run, name="kie-wav-catalog", daemon=True)
        self._thread.start()
        return await done


def _tracks_of(row: Row, looked_up: dict[str, list[Track] | str]) -> list[Track] | str:
    """Return what a row stands for, or why it stands for nothing."""
    if row.audio_id is None:
        return looked_up[row.music_task_id]
    return [Track(row.music_task_id, row.audio_id, title=row.title)]


def _packed(track: Track) -> str:
    return json.dumps([track.music_task_id, track.audio_id, track.title]) + "\n"


def _unpacked(line: str) -> Track:
    music_task_id, audio_id, title = json.loads(line)
    return Track(music_task_id, audio_id, title=title)


class _InvalidLines:
    """Tells of the first bad lines, and writes all of them to a file if there are more."""

    def __init__(self, path: Path, display: BulkDisplay) -> None:
        self.count = 0
        self._path = path
        self._display = display
        self._first: list[str] = []
        self._file: IO[str] | None = None
        # Why not all of them are in the file.
        self._flaw = ""

    def __enter__(self) -> Self:
        self._remove()
        return self

    def __exit__(self, *_: object) -> None:
        with self._trying():
            if self._file is not None:
                self._file.close()
        if (more := self.count - _SHOWN) > 0:
            where = f"all bad lines are in {self._path}"
            if self._flaw:
                where = f"they are not listed, as {self._path} cannot be written ({self._flaw})"
            self._display.say(f"and {more:,} more: {where}")

    def show(self, bad: InvalidLine) -> None:
        """Tell of one."""
        self.count += 1
        which = f"line {bad.line}" if bad.lines == 1 else f"lines {bad.line}-{_last(bad)}"
        text = clean(f"{which}: {bad.why}")
        if self.count <= _SHOWN:
            self._first.append(text)
            self._display.say(text)
        elif not self._flaw:
            with self._trying():
                self._write(text)

    @contextlib.contextmanager
    def _trying(self) -> Generator[None]:
        # A list that cannot be written is no reason to say nothing of the catalog.
        try:
            yield
        except OSError as error:
            self._flaw = error.strerror or type(error).__name__

    def _write(self, text: str) -> None:
        if self._file is None:
            self._file = self._open()
            self._file.writelines(f"{line}\n" for line in self._first)
        self._file.write(f"{text}\n")

    def _open(self) -> IO[str]:
        self._remove()
        # The catalog may be nobody else's business. The file is new: what others put
        # there meanwhile, a link to another file for example, is not written to.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        number = os.open(self._path, flags, 0o600)
        return os.fdopen(number, "w", encoding="utf-8", errors="replace")

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()


def _last(bad: InvalidLine) -> int:
    return bad.line + bad.lines - 1
