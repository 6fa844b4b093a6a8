"""
One download: from a link to a file that is whole, over as many attempts as that takes.

Nothing is believed that cannot be checked: that a range is the rest of what is
there, that all has come which was announced, that it is a WAV file with some sound,
and that its header does not declare more. A file that is whole has its name;
everything before that is `downloads.part_file`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import attrs
from yarl import URL

from kie_wav_async._support.clock import Clock
from kie_wav_async._support.files import OUT_OF_RESOURCES
from kie_wav_async.core.policies import TRANSIENT_ERRORS, RetryPolicy, retry_delay_s
from kie_wav_async.downloads.file_client import FileClient, FileError
from kie_wav_async.downloads.http_range import parse_content_range, parse_length, strong_etag
from kie_wav_async.downloads.part_file import PartFile, find_complete, remove_leftovers
from kie_wav_async.downloads.throughput import ThroughputMonitor
from kie_wav_async.downloads.wav_header import HEAD_LENGTH, MAX_BYTES, ShortWavError, WavScanner
from kie_wav_async.errors import (
    DownloadError,
    KieWavError,
    SessionClosedError,
)
from kie_wav_async.http.connection_settings import TRANSIENT_STATUSES
from kie_wav_async.models import Download, WavFile
from kie_wav_async.protocol.api_constants import is_past_retention
from kie_wav_async.protocol.envelope import parse_retry_after
from kie_wav_async.protocol.responses import NoLink

if TYPE_CHECKING:
    from kie_wav_async.downloads.file_client import FileResponse
    from kie_wav_async.errors import DownloadReason
    from kie_wav_async.events import EventName

T = TypeVar("T")

#: How attempts follow one another; what the host asks for goes before.
RETRY: Final = RetryPolicy(attempts=8, base_s=1.0, cap_s=60.0)

# So much is given to the disk at a time.
_BLOCK: Final = 1 << 20
# How often is told how far it has come.
_PROGRESS_INTERVAL_S: Final = 0.25

# What a host says of a link that it does not let us have, any more or at all.
_REJECTIONS: Final = frozenset({401, 403, 404, 410})


class _ExhaustedError(Exception):
    """This machine has no descriptor or no memory left, just now."""


class _UrlRejectedError(Exception):
    """The host does not let us have the file under this link."""


class _AlreadySavedError(Exception):
    """What is there is as long as what the host has."""

    def __init__(self, download: Download) -> None:
        super().__init__()
        self.download = download


@attrs.define
class _Writer:
    """Gives pieces to the disk a block at a time, while the next block comes."""

    _start: Callable[[list[bytes]], asyncio.Future[None]]
    _finish: Callable[[asyncio.Future[None]], Awaitable[None]]
    _pieces: list[bytes] = attrs.field(factory=list[bytes], init=False)
    _size: int = attrs.field(default=0, init=False)
    _writing: asyncio.Future[None] | None = attrs.field(default=None, init=False)

    async def push(self, piece: bytes) -> None:
        """Take a piece; wait while the block before is being written and this one is full."""
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size >= _BLOCK:
            await self._begin()

    async def flush(self) -> None:
        """Wait until everything is written."""
        await self._begin()
        await self._settle()

    async def _begin(self) -> None:
        await self._settle()
        if self._pieces:
            pieces, self._pieces, self._size = self._pieces, [], 0
            self._writing = self._start(pieces)

    async def _settle(self) -> None:
        # Forgotten first: a caller who is cancelled here comes again with the rest.
        writing, self._writing = self._writing, None
        if writing is not None:
            await self._finish(writing)


def _has_all(part: PartFile) -> bool:
    """Return whether all has come, as far as anybody tells how much that is."""
    total = part.wav.promised if part.total is None else part.total
    return part.length > 0 and part.length == total


@attrs.define(kw_only=True)
class Transfer:
    """
    One WAV file on its way to one place.

    Attributes:
        wav: What is wanted.

        path: Where it is wanted, as that was said.

        target: The same, wherever we are.

        file_client: The way to the host.

        clock: The only time there is.

        executor: The threads that wait for the disk.

        renew: Asks the service for a fresh link to the file, which it may not have.

        confirm: Asks the service for the file's link, if only a callback has named it.

        random: Draws a number in [0, 1).

        emit: Told of each event but the last.

        accept_short: Whether to save a file that has fewer bytes than it declares.
    """

    wav: WavFile
    path: Path
    target: Path
    file_client: FileClient
    clock: Clock
    executor: Executor
    renew: Callable[[URL], Awaitable[URL | NoLink]]
    confirm: Callable[[WavFile], Awaitable[WavFile]]
    random: Callable[[], float]
    emit: Callable[..., None]
    accept_short: bool = False
    _is_renewed: bool = attrs.field(default=False, init=False)
    # A WAV file that is there, and whole if it is as long as what the host has.
    _existing: Download | None = attrs.field(default=None, init=False)
    # How the body is encoded that the part begins with.
    _coding: str = attrs.field(default="", init=False)
    _notes: tuple[str, ...] = attrs.field(default=(), init=False)
    # Whether what is there is of no use to anybody.
    _is_spoilt: bool = attrs.field(default=False, init=False)
    _notified_mono_s: float = attrs.field(default=-math.inf, init=False)

    async def run(self) -> Download:
        """
        Return the file once it is whole and has its name; one that is there is left alone.

        Raises:
            DownloadError: It is not there.
        """
        attempt = 1
        while True:
            try:
                download = await self._save()
            except _ExhaustedError as error:
                failure = FileError(str(error))
                failure.__cause__ = error.__cause__
            else:
                return attrs.evolve(download, path=self.path)
            await self._wait(failure, attempt)
            attempt += 1

    async def _save(self) -> Download:
        self._is_spoilt = self._is_renewed = False
        if (found := await self._find()) is not None:
            await self._on_disk(remove_leftovers, self.target, self.wav.task_id)
            return found
        self.wav = await self.confirm(self.wav)
        self.file_client.verify(self.wav.url)
        part = PartFile(self.target, self.wav.task_id)
        try:
            await self._on_disk(part.open)
            # Another process may have finished it before it let go of the part.
            if (found := await self._find()) is not None:
                self._is_spoilt = True
                return found
            await self._fetch(part)
            return await self._on_disk(part.finish, self._notes)
        except _AlreadySavedError as already:
            self._is_spoilt = True
            return already.download
        finally:
            await self._on_disk(lambda: part.close(keep=not self._is_spoilt))

    async def _find(self) -> Download | None:
        """Return the file if it is there and whole, as far as it tells itself."""
        found = await self._on_disk(
            lambda: find_complete(self.target, accept_short=self.accept_short)
        )
        self._existing = None if found is None else found.download
        return self._existing if found is not None and found.is_complete else None

    # --- attempts ---------------------------------------------------------------------------

    async def _fetch(self, part: PartFile) -> None:
        """Fill *part* until it is a whole WAV file."""
        url, attempt = self.wav.url, 1
        while True:
            try:
                return await self._attempt(part, url)
            except _UrlRejectedError as refusal:
                try:
                    url = await self._renew_url(refusal)
                except FileError as error:
                    failure = error
                else:
                    continue
            except FileError as error:
                failure = error
            is_kept = part.is_resumable and part.is_shared
            kept = f", and {part.length:,} bytes of the file are kept" if is_kept else ""
            await self._wait(failure, attempt, kept)
            attempt += 1

    async def _wait(self, failure: FileError, attempt: int, kept: str = "") -> None:
        """Wait for the next attempt after one that ended in *failure*, unless it was the last."""
        told = DownloadError(
            f"{failure} ({attempt} of {RETRY.attempts} attempts{kept})",
            reason=failure.reason,
            task_id=self.wav.task_id,
            track=self.wav.track,
        )
        told.__cause__ = failure.__cause__
        if attempt >= RETRY.attempts:
            raise told
        asked_s = parse_retry_after(failure.retry_after, self.clock.time())
        delay_s = retry_delay_s(RETRY, attempt, self.random(), asked_s)
        self._notify("DownloadRetryScheduled", error=told, delay_s=delay_s)
        await self.clock.sleep(delay_s)

    async def _renew_url(self, refusal: _UrlRejectedError) -> URL:
        """Return another link in place of one that is refused, once."""
        if self._is_renewed:
            # Whatever the host says: only the service knows whether it has the file.
            msg = f"{refusal}, and so is the one that KIE gave in its place"
            raise self._failed(msg, "unavailable")
        try:
            fresh = await self.renew(self.wav.url)
        except SessionClosedError:
            raise
        except KieWavError as error:
            msg = f"{refusal}, and KIE gave no other ({error})"
            if isinstance(error, TRANSIENT_ERRORS):
                raise FileError(msg) from error
            raise self._failed(msg, "unavailable") from error
        if isinstance(fresh, NoLink):
            msg = f"{refusal}, and KIE has no other ({fresh.message})"
            is_gone = is_past_retention(self.wav.accepted_at, fresh.at_unix_s)
            raise self._failed(msg, "expired" if is_gone else "unavailable")
        self._is_renewed = True
        self.file_client.verify(fresh)
        return fresh

    async def _attempt(self, part: PartFile, url: URL) -> None:
        if part.length and not part.is_resumable:
            await self._on_disk(part.restart, None, None)
        if not _has_all(part):
            headers: dict[str, str] = {}
            if part.is_resumable:
                headers = {"Range": f"bytes={part.length}-", "If-Range": str(part.etag)}
            async with self.file_client.open(url, headers) as answer:
                await self._take(part, answer, is_range=bool(headers))
        await self._verify_whole(part)

    async def _take(self, part: PartFile, answer: FileResponse, *, is_range: bool) -> None:
        """Put what *answer* brings into *part*, unless it is none of the file."""
        pace = ThroughputMonitor()
        self._verify_answer(answer)
        match answer.status:
            case HTTPStatus.OK:
                pieces, most = await self._begin(part, answer, pace, is_range=is_range)
            case HTTPStatus.PARTIAL_CONTENT:
                pieces = list[bytes]()
                most = await self._resume(part, answer, is_range=is_range)
            case HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE if is_range:
                await self._on_disk(part.restart, None, None)
                msg = f"{answer.host} has no more of the file, which has changed"
                raise FileError(msg, "truncated")
            case status:
                msg = f"{answer.host} answered {status}"
                raise self._failed(msg, "unavailable")
        self._notify_progress(part)
        try:
            await self._copy(part, answer, pace, pieces, most)
        except FileError:
            # An end that did not come, after everything else.
            if not _has_all(part):
                raise
        else:
            if answer.is_chunked and part.total is None:
                part.total = part.length

    def _verify_answer(self, answer: FileResponse) -> None:
        """Return if *answer* may be the file, or a part of it, by its head."""
        status, host = answer.status, answer.host
        if status in _REJECTIONS:
            msg = f"{host} refuses the link ({status})"
            raise _UrlRejectedError(msg)
        if status in TRANSIENT_STATUSES or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            retry_after = answer.header("Retry-After")
            msg = f"{host} answered {status}"
            raise FileError(msg, retry_after=retry_after)

    async def _read_head(self, answer: FileResponse, pace: ThroughputMonitor) -> list[bytes]:
        """Return the first pieces of a body: enough to see what it is, if there is as much."""
        pieces: list[bytes] = []
        with contextlib.suppress(FileError):  # The next read meets it again.
            while sum(map(len, pieces)) < HEAD_LENGTH:
                piece = await self._read(answer, pace)
                if not piece:
                    break
                pieces.append(piece)
        return pieces

    async def _begin(
        self, part: PartFile, answer: FileResponse, pace: ThroughputMonitor, *, is_range: bool
    ) -> tuple[list[bytes], int]:
        """Make *part* ready for a whole file; return its first pieces, and its greatest length."""
        length = answer.header("Content-Length")
        total = None if length is None else parse_length(length)
        self._verify_size(total, answer.host)
        pieces = await self._read_head(answer, pace)
        wav = WavScanner()
        wav.feed(b"".join(pieces))
        if wav.flaw is not None and (answer.coding or wav.length >= HEAD_LENGTH):
            if answer.coding:
                # aiohttp would unpack what was cut off without a word, and any bomb.
                msg = f"{answer.host} sent the file compressed, unasked"
                raise self._failed(msg, "content-encoding")
            msg = f"what {answer.host} sent {wav.flaw}"
            raise self._failed(msg, "not-a-wav")
        if self._existing is not None and self._existing.bytes == total and not is_range:
            raise _AlreadySavedError(self._existing)
        await self._on_disk(part.restart, strong_etag(answer.header("ETag")), total)
        self._coding = answer.coding
        await self._on_disk(part.verify_room, total or wav.promised or 0)
        return pieces, MAX_BYTES if total is None else total

    async def _resume(self, part: PartFile, answer: FileResponse, *, is_range: bool) -> int:
        """
        Return how long *part* becomes by *answer*, if that goes on where it ends.

        Else nothing is there any more.
        """
        found = parse_content_range(answer.header("Content-Range") or "")
        # One that is missing says nothing: If-Range was asked for.
        is_same = not answer.has("ETag") or strong_etag(answer.header("ETag")) == part.etag
        is_rest = (
            is_range
            and found is not None
            and found.first == part.length
            and found.total is not None
            and part.total in {None, found.total}
            and is_same
            and answer.coding == self._coding
        )
        if found is None or not is_rest:
            await self._on_disk(part.restart, None, None)
            msg = f"{answer.host} sent another part of the file than asked for"
            raise FileError(msg)
        self._verify_size(found.total, answer.host)
        part.total = found.total
        part.is_resumed = True
        await self._on_disk(part.verify_room, (found.total or 0) - part.length)
        return found.last + 1

    def _verify_size(self, size: int | None, host: str) -> None:
        if size is not None and size > MAX_BYTES:
            msg = f"{host} has a file of {size:,} bytes, and {MAX_BYTES:,} are taken at most"
            raise self._failed(msg, "too-large")

    async def _copy(
        self,
        part: PartFile,
        answer: FileResponse,
        pace: ThroughputMonitor,
        pieces: list[bytes],
        most: int,
    ) -> None:
        """Append *pieces* and the rest of the body of *answer* to *part*."""
        length = part.length
        writer = _Writer(lambda pieces: self._start(part.write, pieces), self._finish)
        try:
            while piece := pieces.pop(0) if pieces else await self._read(answer, pace):
                length += len(piece)
                if length > most:
                    raise await self._too_long(part, answer, most)
                await writer.push(piece)
                if not part.length:
                    await writer.flush()  # Something to go on with, should the next not come.
                self._notify_progress(part)
        finally:
            # What has come is worth keeping, whatever ended the attempt.
            await writer.flush()
            self._notify_progress(part, is_last=True)

    async def _read(self, answer: FileResponse, pace: ThroughputMonitor) -> bytes:
        if pace.is_too_slow:  # Asked first: what has come is never lost.
            msg = f"{answer.host} sends the file too slowly"
            raise FileError(msg, "too-slow")
        began_s = self.clock.monotonic() - answer.held_s
        piece = await answer.read()
        waited_s = self.clock.monotonic() - answer.held_s - began_s
        pace.record(max(0.0, waited_s), len(piece))
        return piece

    async def _too_long(self, part: PartFile, answer: FileResponse, most: int) -> Exception:
        if part.total is None:
            self._is_spoilt = True
            return self._failed(f"{answer.host} sends more than {most:,} bytes", "too-large")
        # Of such a host not even the beginning is to be believed.
        await self._on_disk(part.restart, None, None)
        msg = f"{answer.host} sends more than it announced"
        return FileError(msg, "truncated")

    # --- what it has to be ------------------------------------------------------------------

    async def _verify_whole(self, part: PartFile) -> None:
        """Return if *part* is a whole WAV file; if not, nothing of it is worth keeping."""
        wav, host = part.wav, self.wav.url.host
        if part.total is None and wav.flaw is None:
            # The connection ended, and only the file tells whether it should have.
            if wav.promised is None and part.length >= HEAD_LENGTH:
                self._is_spoilt = True
                msg = "neither the file nor its host tells how long it is, so it may be cut off"
                raise self._failed(msg, "truncated")
            if part.length < (wav.promised or HEAD_LENGTH):
                whole = "" if wav.promised is None else f" of the {wav.promised:,}"
                msg = f"{part.length:,}{whole} bytes came"
                raise FileError(msg, "truncated")
        elif part.total is not None and part.length != part.total:
            msg = f"{part.length:,} of {part.total:,} bytes came"
            raise FileError(msg, "truncated")
        self._is_spoilt = True
        # Asked for again it would be the same: that is how the host has it.
        try:
            self._notes = wav.verify(accept_short=self.accept_short)
        except ShortWavError as error:
            way_out = "; accept_short=True (--accept-short) saves it as it is"
            msg = f"what {host} sent {error}{way_out if error.is_playable else ''}"
            raise self._failed(msg, "truncated") from None
        except ValueError as error:
            msg = f"what {host} sent {error}"
            raise self._failed(msg, "not-a-wav") from None
        self._is_spoilt = False

    # --- helpers ----------------------------------------------------------------------------

    def _failed(self, message: str, reason: DownloadReason) -> DownloadError:
        return DownloadError(message, reason=reason, task_id=self.wav.task_id, track=self.wav.track)

    def _notify_progress(self, part: PartFile, *, is_last: bool = False) -> None:
        now = self.clock.monotonic()
        if is_last or now - self._notified_mono_s >= _PROGRESS_INTERVAL_S:
            self._notified_mono_s = now
            self._notify("DownloadProgress", bytes=part.length, total=part.total)

    def _notify(self, kind: EventName, **fields: object) -> None:
        self.emit(kind, wav=self.wav, path=self.path, **fields)

    async def _on_disk(self, work: Callable[..., T], *args: object) -> T:
        """
        Run *work* in a thread, and wait for it; see `_finish`.

        Raises:
            DownloadError: The disk says no.

            _ExhaustedError: The machine has nothing left to open or read it with.
        """
        return await self._finish(self._start(work, *args))

    def _start(self, work: Callable[..., T], *args: object) -> asyncio.Future[T]:
        working = asyncio.get_running_loop().run_in_executor(self.executor, work, *args)
        # It may be that nobody asks for its error.
        working.add_done_callback(lambda done: done.cancelled() or done.exception())
        return working

    async def _finish(self, working: asyncio.Future[T]) -> T:
        """
        Wait for what a thread is doing.

        A cancelled caller waits for it all the same: a thread cannot be stopped, and
        what it works on is not to be touched meanwhile. One who is cancelled twice does
        not want to: the thread, and those after it, are done with the file later.

        Raises:
            DownloadError: The disk says no.

            _ExhaustedError: The machine has nothing left to open or read it with.
        """
        caller = asyncio.current_task()
        assert caller is not None  # noqa: S101 - a coroutine runs in a task
        while not working.done() and caller.cancelling() <= 1:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({working})
        if caller.cancelling():
            raise asyncio.CancelledError
        try:
            return working.result()
        except OSError as error:
            msg = f"{self.path}: {error.strerror or type(error).__name__}"
            if error.errno in OUT_OF_RESOURCES:
                raise _ExhaustedError(msg) from error
            raise self._failed(msg, "disk") from error
