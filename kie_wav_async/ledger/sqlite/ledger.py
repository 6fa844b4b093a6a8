"""
A ledger in one SQLite file.

One thread owns the connection. Calls queue up to it from the loop; it takes all
that wait, writes them in one transaction, and tells their callers together, so
that the disk is waited for once, however many submits are under way.
"""

from __future__ import annotations

import asyncio
import os
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar

from kie_wav_async._support.patient_timer import patient_timeout
from kie_wav_async._support.validation import verify_count, verify_id, verify_number, verify_type
from kie_wav_async.core.track_states import AttemptOutcome, TrackState
from kie_wav_async.errors import LedgerError
from kie_wav_async.ledger.models import (
    AttemptEntry,
    LedgerEntry,
    RecoveryState,
    verify_host,
    verify_path,
    verify_settled_by,
)
from kie_wav_async.ledger.sqlite.queries import LedgerTables
from kie_wav_async.ledger.sqlite.worker import Job, LedgerThread
from kie_wav_async.models import Track

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from yarl import URL

    from kie_wav_async.models import SettledBy

__all__ = ["SqliteLedger"]

_T = TypeVar("_T")

#: Longest text of the service that is kept.
_MAX_ERROR: Final = 1_000

#: Seconds that closing waits for the disk: a little more than all tries of one group take.
_CLOSING_S: Final = 25.0

#: How many tracks are looked at before others on the loop have their turn.
_SLICE: Final = 1_000

#: Times have to be moments that `datetime` knows, retention included.
_MAX_UNIX_S: Final = 250_000_000_000


class SqliteLedger:
    """
    A ledger in the SQLite file *path*: a `Ledger`, durable by default.

    Constructing it opens nothing. `open` makes the file, with mode 0600, if it is
    not there, but not its folder; one found with a wider mode is narrowed. It
    takes the file for this process alone, by a lock on ``<path>.lock``, which stays
    behind. As a context manager it is opened by the system's clock.

    A call returns once it is on the disk (WAL, ``synchronous=FULL``). Calls that
    wait together are written together. What the disk refuses is tried again for
    some seconds; the end of a submit that it goes on refusing is kept, and written
    before anything else, so that a full disk loses no task once there is room.

    A file that another version of the schema wrote is refused, and stays as it is.

    Keep it on a local disk: opening it on a network file system is warned of.

    Args:
        path: The file.

        new_ledger: Begin anew, or with another ledger, where one was that is lost.
            ``<path>.lock`` keeps which ledger was there and how many submits it knew;
            without your word one that is missing, empty, another or an older copy
            is refused, as what it does not know would be paid again.

        read_only: Look into a ledger, also while another process works with it.
            The file must be there. Nothing is locked or recovered, a submit under
            way counts as unknown, and every call that would write raises
            `LedgerError`.

    Raises:
        TypeError: *path* is no path, or *read_only* or *new_ledger* no `bool`.

        RuntimeError: From every call, if it is not made on the loop that opened
            the ledger.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        new_ledger: bool = False,
    ) -> None:
        name = os.fspath(path)
        verify_type(name, str, "path")
        verify_type(read_only, bool, "read_only")
        verify_type(new_ledger, bool, "new_ledger")
        if not name:
            msg = "path must not be empty"
            raise ValueError(msg)
        self._path = Path(name)
        self._is_read_only = read_only
        self._is_new = new_ledger
        self._opened = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: LedgerThread | None = None
        self._last_thread: threading.Thread | None = None

    def __del__(self) -> None:
        # __init__ may have failed before there was anything.
        thread = getattr(self, "_thread", None)
        if thread is not None:
            thread.stop(None)
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        path: Path | None = getattr(self, "_path", None)
        if path is None:  # __init__ raised.
            return "<SqliteLedger not constructed>"
        return f"SqliteLedger({str(path)!r})"

    async def __aenter__(self) -> Self:
        await self.open(time.time())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def open(self, now_unix_s: float) -> RecoveryState:
        """
        Open the ledger for this process alone, and tell where it stands.

        See `Ledger.open`.

        Raises:
            LedgerError: Another process has it open, or this one has under another
                `SqliteLedger`; it is not the one that was there; another version
                wrote it; it is no ledger; or the disk says no.
        """
        _verify_moment(now_unix_s)
        loop = asyncio.get_running_loop()
        if self._thread is not None and self._loop is not None and self._loop.is_closed():
            self._opened = 0  # Nobody can close it any more.
            self._detach(None)
        if self._thread is None:
            self._loop = loop
            self._thread = LedgerThread(
                self._path,
                loop=loop,
                is_read_only=self._is_read_only,
                is_new=self._is_new,
                predecessor=self._last_thread,
            )
        self._verify_loop()
        # Of its own, so that the thread does not keep a forgotten ledger alive.
        thread, is_reader = self._thread, self._is_read_only
        self._opened += 1
        try:
            return await self._ask(
                lambda tables: tables.opening(is_reader=is_reader),
                is_write=False,
                opens_at=now_unix_s,
            )
        except BaseException:
            self._opened -= 1
            if self._opened == 0 and self._thread is thread:
                self._detach(None)
            raise

    async def aclose(self) -> None:
        """
        Undo one `open`; the last one waits for what is being written, and lets go.

        Raises:
            LedgerError: The disk has not answered for 25 seconds. The ledger is
                closed, and what is left to write is still tried, until the
                process ends.
        """
        if self._thread is None:
            return
        self._verify_loop()
        self._opened -= 1
        if self._opened == 0:
            closed = asyncio.get_running_loop().create_future()
            self._detach(closed)
            try:
                async with patient_timeout(_CLOSING_S):
                    await closed
            except TimeoutError as error:
                msg = (
                    f"the ledger {self._path} is still being written after {_CLOSING_S:g} s, and "
                    "the last of it may be missing"
                )
                raise LedgerError(msg, advice="check the disk and the system's log") from error

    async def add_tracks(self, tracks: Iterable[Track]) -> int:
        """
        Take in tracks as planned, all or none; return how many were not there before.

        Of more than 1,000 tracks the loop turns after each 1,000, so that calls
        made meanwhile take effect first.
        """
        rows: list[tuple[str, str, str | None]] = []
        for track in tracks:
            if rows and len(rows) % _SLICE == 0:
                await asyncio.sleep(0)
            verify_type(track, Track, "track")
            rows.append((track.music_task_id, track.audio_id, track.title))
        return await self._ask(lambda tables: tables.add_tracks(rows))

    async def requeue(self, states: Iterable[TrackState]) -> int:
        """
        Plan tracks again that came to nothing; return how many.

        Args:
            states: Among ``REJECTED``, ``FAILED`` and ``EXPIRED``.

        Raises:
            ValueError: Another state is among them.
        """
        wanted = sorted({TrackState(state) for state in states})
        if not all(state.can_be_requeued for state in wanted):
            among = ", ".join(sorted(state for state in TrackState if state.can_be_requeued))
            msg = f"states must be among {among}: {', '.join(wanted)}"
            raise ValueError(msg)
        return await self._ask(lambda tables: tables.requeue(wanted))

    async def get(self, track: Track) -> LedgerEntry | None:
        """Return where a track stands; `None` if it is not there."""
        verify_type(track, Track, "track")
        return await self._ask(lambda tables: tables.get(track), is_write=False)

    async def get_by_task(self, task_id: str) -> LedgerEntry | None:
        """Return where the track of a task stands; see `Ledger.get_by_task`."""
        verify_id(task_id, "task_id")
        return await self._ask(lambda tables: tables.get_by_task(task_id), is_write=False)

    async def list_entries(
        self, states: Iterable[TrackState], *, after: int = 0, limit: int = 1000
    ) -> Sequence[LedgerEntry]:
        """Return the first tracks in one of *states* whose index is above *after*, in order."""
        wanted = sorted({TrackState(state) for state in states})
        verify_type(after, int, "after")
        verify_count(limit, "limit")
        return await self._ask(
            lambda tables: tables.list_entries(wanted, after, limit), is_write=False
        )

    async def count_by_state(self) -> Mapping[TrackState, int]:
        """Return how many tracks stand where; every state has an entry."""
        return await self._ask(LedgerTables.count_by_state, is_write=False)

    async def begin_attempt(
        self, track: Track, attempt_id: str, now_unix_s: float, *, again: bool = False
    ) -> LedgerEntry | None:
        """
        Write down that a submit of *track* is about to be sent.

        See `Ledger.begin_attempt`.
        """
        verify_type(track, Track, "track")
        verify_id(attempt_id, "attempt_id")
        _verify_moment(now_unix_s)
        return await self._ask(
            lambda tables: tables.begin_attempt(track, attempt_id, now_unix_s, again=again)
        )

    async def finish_attempt(
        self,
        attempt_id: str,
        outcome: AttemptOutcome,
        now_unix_s: float,
        *,
        task_id: str = "",
        error_code: int | None = None,
        error: str | None = None,
        accepted_unix_s: float | None = None,
    ) -> None:
        """
        Write down what came of a submit.

        See `Ledger.finish_attempt`. An end that could not be written raises, and is kept to
        be written before anything else is.

        Raises:
            ValueError: ``ACCEPTED`` or ``ADOPTED`` without *task_id*, or another
                outcome with one.
        """
        verify_id(attempt_id, "attempt_id")
        _verify_moment(now_unix_s)
        outcome = AttemptOutcome(outcome)
        if outcome.has_task:
            verify_id(task_id, "task_id")
        elif task_id:
            msg = f"an outcome of {outcome} names no task: {task_id!r}"
            raise ValueError(msg)
        _verify_accepted(accepted_unix_s)
        code, words = _code(error_code), _words(error)
        await self._ask(
            lambda tables: tables.finish_attempt(
                attempt_id,
                outcome,
                now_unix_s,
                task_id=task_id,
                accepted_unix_s=accepted_unix_s if task_id else None,
                error_code=code,
                error=words,
            ),
            owed=(attempt_id, task_id),
        )

    async def resolve(self, attempt_id: str, now_unix_s: float, *, task_id: str = "") -> bool:
        """
        Write down the user's word on a submit: which task it created, or that it created none.

        See `Ledger.resolve`.
        """
        verify_id(attempt_id, "attempt_id")
        _verify_moment(now_unix_s)
        if task_id:
            verify_id(task_id, "task_id")
        return await self._ask(lambda tables: tables.resolve(attempt_id, now_unix_s, task_id))

    async def find_attempts(self, prefix: str, *, limit: int = 100) -> Sequence[AttemptEntry]:
        """
        Return the submits whose id begins with *prefix*, in the order in which they began.

        Args:
            prefix: The beginning of an id; a whole one that is there gives that one alone.

            limit: How many at most; 1 or more.
        """
        verify_id(prefix, "prefix")
        verify_count(limit, "limit")
        return await self._ask(lambda tables: tables.find_attempts(prefix, limit), is_write=False)

    async def record_callback(self, attempt_id: str, task_id: str) -> None:
        """
        Write down that an authentic callback of *task_id* names *attempt_id*.

        See `Ledger.record_callback`.
        """
        verify_id(attempt_id, "attempt_id")
        verify_id(task_id, "task_id")
        await self._ask(lambda tables: tables.record_callback(attempt_id, task_id))

    async def keep_host(self, host: str) -> None:
        """
        Write down that the service named a file on *host*, as ``name:port``.

        See `Ledger.keep_host`.
        """
        verify_host(host)
        await self._ask(lambda tables: tables.keep_host(host))

    async def finish_task(
        self,
        task_id: str,
        now_unix_s: float,
        *,
        wav_url: URL | None = None,
        settled_by: SettledBy = "poll",
        error_code: int | None = None,
        error: str | None = None,
        accepted_unix_s: float | None = None,
    ) -> None:
        """
        Write down how a task ended: with the WAV at *wav_url*, or badly.

        See `Ledger.finish_task`.
        """
        verify_id(task_id, "task_id")
        verify_settled_by(settled_by)
        _verify_moment(now_unix_s)
        _verify_accepted(accepted_unix_s)
        url = None if wav_url is None else str(wav_url)
        code, words = _code(error_code), _words(error)
        await self._ask(
            lambda tables: tables.finish_task(
                task_id,
                now_unix_s,
                wav_url=url,
                settled_by=settled_by,
                accepted_unix_s=accepted_unix_s,
                error_code=code,
                error=words,
            )
        )

    async def reserve_path(self, track: Track, *, path: str, key: str) -> bool:
        """
        Write down where the WAV of a track is to be saved; return whether it may be there.

        See `Ledger.reserve_path`.

        Raises:
            ValueError: *path* or *key* is empty.
        """
        verify_type(track, Track, "track")
        verify_path(path, key)
        return await self._ask(lambda tables: tables.reserve_path(track, path=path, key=key))

    async def mark_saved(self, track: Track, *, path: str, size: int, sha256: str) -> None:
        """
        Write down that the WAV of a succeeded track is a file here.

        See `Ledger.mark_saved`.
        """
        verify_type(track, Track, "track")
        verify_type(path, str, "path")
        verify_type(sha256, str, "sha256")
        verify_type(size, int, "size")
        verify_number(size, "size", least=0)
        await self._ask(
            lambda tables: tables.mark_saved(track, path=path, size=size, sha256=sha256)
        )

    async def mark_missing(self, track: Track) -> None:
        """
        Write down that the WAV of a track is to be fetched again.

        See `Ledger.mark_missing`.
        """
        verify_type(track, Track, "track")
        await self._ask(lambda tables: tables.mark_missing(track))

    async def mark_expired(self, track: Track) -> None:
        """
        Write down that the service has deleted the WAV of a succeeded track.

        See `Ledger.mark_expired`.
        """
        verify_type(track, Track, "track")
        await self._ask(lambda tables: tables.mark_expired(track))

    async def _ask(
        self,
        call: Callable[[LedgerTables], _T],
        *,
        is_write: bool = True,
        opens_at: float | None = None,
        owed: tuple[str, str] | None = None,
    ) -> _T:
        if self._thread is None:
            msg = f"the ledger {self._path} is not open"
            raise LedgerError(msg, advice="use it inside `async with`, or call open()")
        self._verify_loop()
        if is_write and self._is_read_only:
            msg = f"the ledger {self._path} is open to be read only"
            raise LedgerError(msg)
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._thread.put(Job(call, future, is_write=is_write, opens_at=opens_at, unwritten=owed))
        return await future

    def _verify_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            msg = "a SqliteLedger is used on the loop that opened it; open another one here"
            raise RuntimeError(msg)

    def _detach(self, closed: asyncio.Future[None] | None) -> None:
        thread, self._thread = self._thread, None
        assert thread is not None  # noqa: S101 - its callers have looked
        # Opened again at once, its successor has to wait for the lock.
        self._last_thread = thread.thread
        thread.stop(closed)


def _verify_moment(unix_s: float, name: str = "now_unix_s") -> None:
    verify_number(unix_s, name, least=0)
    if unix_s > _MAX_UNIX_S:
        msg = f"{name} must be seconds since 1970, not {unix_s!r}"
        raise ValueError(msg)


def _verify_accepted(accepted_unix_s: float | None) -> None:
    if accepted_unix_s is not None:
        _verify_moment(accepted_unix_s, "accepted_unix_s")


def _code(error_code: int | None) -> int | None:
    if error_code is not None:
        verify_type(error_code, int, "error_code")
    # What does not fit into a column is no code anybody could look up.
    return error_code if error_code is None or -(2**63) <= error_code < 2**63 else None


def _words(error: str | None) -> str | None:
    """Cut the service's words, and take out what no text file can hold."""
    if error is None:
        return None
    verify_type(error, str, "error")
    return error[:_MAX_ERROR].encode("utf-8", "replace").decode("utf-8")
