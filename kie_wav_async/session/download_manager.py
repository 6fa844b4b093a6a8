"""
The way of a download within a session: how many at a time, who waits, and its end.

What one download does is `downloads.transfer`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kie_wav_async._support.files import OUT_OF_RESOURCES
from kie_wav_async._support.tasks import is_caller_cancelled, start
from kie_wav_async._support.validation import verify_type
from kie_wav_async.downloads.file_client import MAX_CONNECTIONS
from kie_wav_async.errors import DownloadError, KieWavError, SessionClosedError
from kie_wav_async.models import TaskState
from kie_wav_async.protocol.api_constants import is_past_retention
from kie_wav_async.protocol.responses import NoLink

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from yarl import URL

    from kie_wav_async.downloads.file_client import FileClient
    from kie_wav_async.errors import DownloadReason
    from kie_wav_async.models import Download, TaskRecord, WavFile
    from kie_wav_async.session.context import SessionContext

_logger = logging.getLogger("kie_wav_async")


class _PathUse:
    """A place that files are being saved to: one at a time, and all of one task."""

    __slots__ = ("task_id", "turn", "users")

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self.turn = asyncio.Lock()
        self.users = 0


class DownloadManager:
    """Saves files for callers who wait, a few at a time."""

    def __init__(
        self,
        context: SessionContext,
        file_client: FileClient,
        renew: Callable[[URL], Awaitable[URL | NoLink]],
        look_up: Callable[[str], Awaitable[TaskRecord | None]],
    ) -> None:
        """Start with nobody waiting; *renew* and *look_up* ask the service."""
        # Not with the package, and not with the first download, which must not fail for
        # want of a descriptor.
        from kie_wav_async.downloads.transfer import Transfer  # noqa: PLC0415 - as said above

        self._make_transfer = Transfer
        self._context = context
        self._file_client = file_client
        self._renew = renew
        self._look_up = look_up
        self._paths: dict[Path, _PathUse] = {}
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._executor = futures.ThreadPoolExecutor(MAX_CONNECTIONS, "kie-wav-download")
        self._tasks: set[asyncio.Task[Download]] = set()

    async def download(
        self, wav: WavFile, path: str | os.PathLike[str], *, accept_short: bool
    ) -> Download:
        """Save *wav* at *path*; see `WavSession.download`."""
        session_state = self._context.state
        target = _parse_path(path)
        # In a task that closing can cancel; the caller's own we must not.
        task = start(self._save(wav, target, accept_short=accept_short))
        self._tasks.add(task)
        try:
            download = await task
        except asyncio.CancelledError:
            if session_state.closed is None or is_caller_cancelled():
                raise
            closed = SessionClosedError().about(task_id=wav.task_id, track=wav.track)
            raise closed from None
        finally:
            self._tasks.discard(task)
            # Its error's traceback holds this frame: no cycle through the task.
            del task
        self._context.emit("DownloadCompleted", wav=wav, download=download)
        return download

    async def _save(self, wav: WavFile, path: Path, *, accept_short: bool) -> Download:
        target = await self._resolve(wav, path)
        async with self._using_path(wav, target), self._slots:
            work = self._make_transfer(
                wav=wav,
                path=path,
                target=target,
                file_client=self._file_client,
                clock=self._context.clock,
                executor=self._executor,
                renew=self._renew,
                confirm=self._confirm,
                random=self._context.random,
                emit=self._context.emit,
                accept_short=accept_short,
            )
            try:
                return await work.run()
            except DownloadError as error:
                # What the way to the host raises does not know what was wanted of it.
                raise error.about(task_id=wav.task_id, track=wav.track) from error.__cause__

    async def _confirm(self, wav: WavFile) -> WavFile:
        """
        Return *wav* as the service names it, if only a callback has named its file so far.

        Raises:
            DownloadError: The service could not be asked, or names no file; ``expired``
                if it has no record of the task, nor a link to the file, after 14 days.

            SessionClosedError: The session was closed.
        """
        if wav.settled_by != "callback":
            return wav
        try:
            record = await self._look_up(wav.task_id)
        except SessionClosedError:
            raise
        except KieWavError as error:
            msg = f"the link came by a callback, and KIE could not be asked to confirm it ({error})"
            raise DownloadError(msg, reason="unavailable") from error
        is_success = record is not None and record.state is TaskState.SUCCEEDED
        if record is None or not is_success or record.wav_url is None:
            msg = "the link came by a callback, and KIE's own record of the task names no file"
            is_gone = record is None and await self._is_gone(wav)
            raise DownloadError(msg, reason="expired" if is_gone else "unavailable")
        if record.wav_url != wav.url:
            _logger.warning(
                "a callback of task %s named another file than the service does: the service's "
                "is fetched",
                wav.task_id,
            )
        return attrs.evolve(wav, url=record.wav_url)

    async def _is_gone(self, wav: WavFile) -> bool:
        """
        Return whether the service has deleted the file of a task that it has no record of.

        The answer counts only if it is that there is no link. One that it gives is not
        used: who named the file is still not known.

        Raises:
            SessionClosedError: The session was closed.
        """
        if wav.accepted_at is None:  # Nobody can say how old it is.
            return False
        try:
            fresh = await self._renew(wav.url)
        except SessionClosedError:
            raise
        except KieWavError:
            return False
        return isinstance(fresh, NoLink) and is_past_retention(wav.accepted_at, fresh.at_unix_s)

    async def _resolve(self, wav: WavFile, path: Path) -> Path:
        """Return what names *path* wherever we are, and however its folder was spelled."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, _resolve_folder, path)
        except OSError as error:
            msg = f"{path}: {error.strerror or type(error).__name__}"
            reason: DownloadReason = "unavailable" if error.errno in OUT_OF_RESOURCES else "disk"
            failure = DownloadError(msg, reason=reason, task_id=wav.task_id, track=wav.track)
            raise failure from error

    @contextlib.asynccontextmanager
    async def _using_path(self, wav: WavFile, key: Path) -> AsyncGenerator[None]:
        place = self._paths.setdefault(key, _PathUse(wav.task_id))
        if place.task_id != wav.task_id:
            msg = f"{key} is where the WAV of another task, {place.task_id}, is being saved"
            raise ValueError(msg)
        place.users += 1
        try:
            async with place.turn:
                yield
        finally:
            place.users -= 1
            if not place.users:
                del self._paths[key]

    @property
    def in_progress(self) -> tuple[asyncio.Task[Download], ...]:
        """The downloads that have not ended."""
        return tuple(self._tasks)

    def close(self) -> None:
        """Let nobody wait any more; what has come of files is kept; see `in_progress`."""
        for task in self._tasks:
            if not task.cancelling():  # Cancelled twice, it would not wait for the disk.
                task.cancel()

    async def aclose(self) -> None:
        """Close the connections, once nothing is in progress."""
        await self._file_client.aclose()
        self._executor.shutdown(wait=False)


def _resolve_folder(path: Path) -> Path:
    # Not the name itself: a link of that name is replaced, not followed.
    return Path(os.path.realpath(path.parent), path.name)


def _parse_path(path: str | os.PathLike[str]) -> Path:
    """
    Return *path* if it can name a file.

    Raises:
        TypeError: It is no `str` and no path of one.

        ValueError: It names no file.
    """
    given = os.fspath(path)
    verify_type(given, str, "path")
    target = Path(given)
    if not target.name or target.name == ".." or given.endswith(("/", os.sep)) or "\0" in given:
        msg = f"path must name a file: {given[:200]!r}"
        raise ValueError(msg)
    return target
