"""
The thread that has a ledger's file: its queue, its transactions, its second tries.

Whatever waits when the thread comes back from the disk is written together and
told to the loop together. Nothing is forgotten over a passing failure: a group
that the disk refuses is tried again, on a new connection if the fault was in the
reading or writing, because after a failed sync nobody knows what the file holds.
Every call can be made twice, so it does not matter whether the first one counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import queue
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import attrs

from kie_wav_async.errors import LedgerError, with_advice
from kie_wav_async.ledger.sqlite.database_file import (
    advice_on,
    connect_to_read,
    connect_to_write,
    is_missing,
    set_log_aside,
)
from kie_wav_async.ledger.sqlite.owner_lock import OwnerLock, network_file_system, read_mark
from kie_wav_async.ledger.sqlite.queries import LedgerTables

if TYPE_CHECKING:
    from kie_wav_async.ledger.models import LedgerMark

__all__ = ["Job", "LedgerThread"]

_logger = logging.getLogger("kie_wav_async")

#: How many calls share a transaction at most.
_GROUP: Final = 1_000

#: Seconds between the tries to write a group.
_PAUSES_S: Final = (0.05, 0.2, 1.0)

# Faults of one call, that the others of its group have nothing to do with.
_OWN_FAULTS: Final = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
)

# After these the connection is as good as before.
_PASSING: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL}


@attrs.define(eq=False)
class Job:
    """
    One call on its way to the thread and back.

    Attributes:
        call: What to do in a transaction.

        future: Who waits for it; may be done before.

        is_write: Whether it changes anything.

        opens_at: Open the file first, if it is not open; the time by the caller's clock.

        unwritten: The attempt whose end this is, and its task if it made one: not to be
            lost, so it is kept to be written later if it cannot be now.
    """

    call: Callable[[LedgerTables], Any]
    future: asyncio.Future[Any] | None
    is_write: bool = attrs.field(default=True, kw_only=True)
    opens_at: float | None = attrs.field(default=None, kw_only=True)
    unwritten: tuple[str, str] | None = attrs.field(default=None, kw_only=True)
    result: Any = attrs.field(default=None, init=False)
    error: Exception | None = attrs.field(default=None, init=False)


class LedgerThread:
    """Owns the file at *path* from the first opening until it is told to stop."""

    def __init__(
        self,
        path: Path,
        *,
        loop: asyncio.AbstractEventLoop,
        is_read_only: bool,
        is_new: bool,
        predecessor: threading.Thread | None,
    ) -> None:
        """Start it; it waits for *predecessor* to let go of the file."""
        self._path = path
        self._loop = loop
        self._is_read_only = is_read_only
        self._is_new = is_new
        self._predecessor = predecessor
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._is_stopping = threading.Event()
        self._closed: asyncio.Future[None] | None = None
        self._is_open = False
        self._lock: OwnerLock | None = None
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._unwritten: list[Job] = []
        # A daemon: whoever leaves without closing does not wait, and what was
        # told to be written is.
        self.thread: Final = threading.Thread(target=self._run, name="kie-wav-ledger", daemon=True)
        self.thread.start()

    def put(self, job: Job) -> None:
        """Queue a job; from the loop."""
        self._jobs.put(job)

    def stop(self, closed: asyncio.Future[None] | None) -> None:
        """Finish what is queued, let go of the file, then tell *closed*; from anywhere."""
        self._closed = closed
        self._is_stopping.set()
        self._jobs.put(None)

    # Everything below runs in the thread.

    def _run(self) -> None:
        if self._predecessor is not None:
            self._predecessor.join()
            self._predecessor = None
        is_last = False
        while not is_last:
            jobs, is_last = self._take()
            for opens, run in itertools.groupby(jobs, lambda job: job.opens_at is not None):
                work = self._do_opening if opens else self._do
                work(list(run))
            self._tell(jobs)
            jobs.clear()  # Keep nothing alive while waiting.
        self._close()

    def _take(self) -> tuple[list[Job], bool]:
        """Return what is queued, waiting for the first; and whether that was all."""
        jobs: list[Job] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == _GROUP:
                return jobs, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return jobs, False
        return jobs, True

    def _tell(self, jobs: list[Job]) -> None:
        told = [(job.future, job.result, job.error) for job in jobs if job.future is not None]
        self._call_loop(lambda: _resolve(told))

    def _call_loop(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            # The loop is closed, and nobody can use or close this ledger any more.
            self._is_stopping.set()
            self._jobs.put(None)

    def _do_opening(self, jobs: list[Job]) -> None:
        for job in jobs:
            if self._is_open:
                self._do([job])
                continue
            assert job.opens_at is not None  # noqa: S101 - they were grouped by this
            now_unix_s = job.opens_at
            try:
                self._open_file()
            except Exception as error:  # noqa: BLE001 - a dead thread would leave all waiting
                job.error = self._refusal("opened", error)
            else:
                self._is_open = True
                if not self._is_read_only:
                    job.call = functools.partial(_recover_first, now_unix_s, job.call)
                    job.is_write = True
                self._do([job])
            if job.error is not None:
                self._release()

    def _open_file(self) -> None:
        # One lock for one file, whatever it is called.
        self._path = Path(os.path.realpath(self._path))
        if self._is_read_only:
            # Read first: a run that goes on notes its submits after they are written.
            known = read_mark(self._path)
            self._connection = connect_to_read(self._path)
            self._warn_of_loss(known)
            return
        self._warn_of_network()
        self._lock = OwnerLock(self._path)
        try:
            self._lock.acquire()
        except FileNotFoundError as error:
            msg = f"the folder of the ledger {self._path} is not there"
            raise LedgerError(msg, advice="make it first") from error
        known = None if self._is_new else self._lock.mark
        if self._is_new and is_missing(self._path):
            set_log_aside(self._path)
        self._connection = self._connect_to_write(known)
        self._identity = _identity(self._path)
        self._lock.write_mark(LedgerTables(self._connection).mark())

    def _warn_of_loss(self, known: LedgerMark | None) -> None:
        """Say so if what is read is not all there was: its sums are too low then."""
        if known is None or not known.submits:
            return
        try:
            _verify_same(self._path, known, LedgerTables(self._connected()).mark())
        except LedgerError as error:
            _logger.warning("%s", with_advice(error))

    def _warn_of_network(self) -> None:
        if sys.platform != "linux":
            return
        try:
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        kind = network_file_system(mounts, PurePosixPath(self._path))
        if kind is not None:
            _logger.warning(
                "the ledger %s is on a network file system (%s), where neither its lock nor "
                "its durability can be relied on: keep it on a local disk",
                *(self._path, kind),
            )

    def _do(self, jobs: list[Job]) -> None:
        """Do *jobs* in one transaction, what is owed first; each gets a result or an error."""
        if not self._is_open:
            for job in jobs:
                job.error = LedgerError(f"the ledger {self._path} is not open")
            return
        group = [*self._unwritten, *jobs]
        for pause_s in (*_PAUSES_S, None):
            try:
                self._try(group)
            except Exception as error:  # noqa: BLE001 - as above
                self._undo(error)
                if pause_s is None:
                    for job in group:
                        job.error = self._refusal("written" if job.is_write else "read", error)
                    self._unwritten = [job for job in group if job.unwritten is not None]
                    return
                self._is_stopping.wait(pause_s)
            else:
                self._unwritten = []
                return

    def _try(self, jobs: list[Job]) -> None:
        connection = self._connected()
        tables = LedgerTables(connection)
        is_write = any(job.is_write for job in jobs)
        connection.execute("BEGIN IMMEDIATE" if is_write else "BEGIN")
        for job in jobs:
            job.result, job.error = None, None
            connection.execute("SAVEPOINT job")
            try:
                job.result = job.call(tables)
            except Exception as error:
                is_of_group = isinstance(error, sqlite3.Error | MemoryError)
                if is_of_group and not isinstance(error, _OWN_FAULTS):
                    raise
                connection.execute("ROLLBACK TO job")
                job.error = self._refusal("used", error)
            connection.execute("RELEASE job")
        connection.execute("COMMIT")
        if is_write and self._lock is not None:
            with contextlib.suppress(sqlite3.Error):  # It is written, and noted with the next.
                self._lock.write_mark(tables.mark())

    def _connected(self) -> sqlite3.Connection:
        # What is written into a file that was moved away is written for nobody.
        if self._identity is not None and _identity(self._path) != self._identity:
            msg = f"the ledger {self._path} was moved, removed or replaced while it was open"
            advice = "put it back, as a new one would not know what was paid, and pay for it again"
            raise LedgerError(msg, advice=advice)
        lock = self._lock
        if lock is not None and not lock.is_held():
            msg = (
                f"the lock of the ledger {self._path} was removed, and another process may have "
                "it open now"
            )
            raise LedgerError(msg, advice="stop both, and start one")
        if self._connection is None:
            if self._is_read_only:
                self._connection = connect_to_read(self._path)
            else:
                self._connection = self._connect_to_write(None if lock is None else lock.mark)
        return self._connection

    def _connect_to_write(self, known: LedgerMark | None) -> sqlite3.Connection:
        """
        Open the ledger, which has to be the one that *known* is of.

        Raises:
            LedgerError: It is lost, another one or an older copy.
        """
        if known is None or not known.submits:
            return connect_to_write(self._path)
        if is_missing(self._path):
            raise _lost(self._path, f"there is no ledger at {self._path}", known)
        connection = connect_to_write(self._path)
        try:
            _verify_same(self._path, known, LedgerTables(connection).mark())
        except BaseException:
            connection.close()
            raise
        return connection

    def _undo(self, error: Exception) -> None:
        """Go back to before the group; on a new connection, unless the fault was a passing one."""
        connection = self._connection
        if connection is None:
            return
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR) & 0xFF in _PASSING:
            try:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            except sqlite3.Error:
                pass
            else:
                return
        self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error:  # What is committed is in the log, for the next opening.
                _logger.debug("closing the ledger %s failed", self._path, exc_info=True)

    def _release(self) -> None:
        self._disconnect()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self._identity = None
        self._is_open = False

    def _close(self) -> None:
        if self._unwritten:
            self._do([])
        if self._unwritten:
            ends = [job.unwritten for job in self._unwritten if job.unwritten is not None]
            _logger.error(
                "the ledger %s could not be written: it will take as unknown %s",
                self._path,
                ", ".join(f"{a} (task {task})" if task else a for a, task in sorted(ends)),
            )
        self._release()
        closed = self._closed
        if closed is not None:
            self._call_loop(lambda: _resolve([(closed, None, None)]))

    def _refusal(self, done: str, error: Exception) -> LedgerError:
        """Return a new error, as each waiter gets one of his own."""
        if isinstance(error, LedgerError):  # It says enough, and its cause goes with it.
            return error.about()
        what, advice = repr(error), ""
        if isinstance(error, sqlite3.Error | OSError):
            what, advice = str(error), advice_on(error)
        refusal = LedgerError(f"the ledger {self._path} cannot be {done}: {what}", advice=advice)
        refusal.__cause__ = error
        return refusal


def _identity(path: Path) -> tuple[int, int] | None:
    """Tell which file *path* is; `None` if it, or a folder above it, is gone."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _verify_same(path: Path, known: LedgerMark, found: LedgerMark) -> None:
    """
    Return if the ledger at *path* is the one that was there, with all that was paid.

    Raises:
        LedgerError: It is another one, or an older copy, or its log was removed.
    """
    if found.ledger_id != known.ledger_id:
        raise _lost(path, f"{path} is not the ledger that was there", known)
    if found.submits < known.submits:
        what = (
            f"the ledger {path} knows of {found.submits:,} submits, so it is an older copy, or its "
            f"log, {path.name}-wal, was removed or damaged"
        )
        raise _lost(path, what, known)


def _lost(path: Path, what: str, known: LedgerMark) -> LedgerError:
    """Return the error of a ledger that is not what it was."""
    return LedgerError(
        f"{what}, and {path.name}.lock says that {known.submits:,} submits were begun with the one "
        "that belongs here",
        advice=(
            "put that back, with its -wal file if there is one. Only if it is lost begin a new one "
            "(new_ledger=True, --new-ledger): what it knew may be paid again"
        ),
    )


def _recover_first(
    now_unix_s: float, call: Callable[[LedgerTables], object], tables: LedgerTables
) -> object:
    tables.recover(now_unix_s)
    return call(tables)


def _resolve(told: list[tuple[asyncio.Future[Any], Any, Exception | None]]) -> None:
    for future, result, error in told:
        if future.done():  # Its caller has gone.
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
