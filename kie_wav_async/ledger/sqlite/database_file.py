"""
Opening the file of a ledger: whether it is one, who may read it, and how it is written.

The file is not read through at opening: that takes seconds for a million tracks,
a torn write cannot get past the log's checksums, and of a page that a disk has
spoilt SQLite tells when it comes to read it.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from itertools import count
from typing import TYPE_CHECKING, Final

from kie_wav_async._support.files import sync_folder
from kie_wav_async.errors import LedgerError
from kie_wav_async.ledger.sqlite.schema import (
    APPLICATION_ID,
    EARLIER_APPLICATION_ID,
    SCHEMA_VERSION,
    create_tables,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["advice_on", "connect_to_read", "connect_to_write", "is_missing", "set_log_aside"]

# What SQLite keeps what is not yet in the file in.
_LOGS: Final = ("-wal", "-journal")

#: Seconds that SQLite itself waits for a lock which another program has.
_BUSY_S: Final = 5.0

_ADVICE: Final[dict[int, str]] = {
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_BUSY: "another program holds the file, so let that finish",
    sqlite3.SQLITE_LOCKED: "another program holds the file, so let that finish",
    sqlite3.SQLITE_READONLY: "check that the file and its folder may be written",
    sqlite3.SQLITE_CANTOPEN: "check that the file and its folder may be read and written",
    sqlite3.SQLITE_PERM: "check that the file and its folder may be read and written",
    sqlite3.SQLITE_IOERR: "check the disk and the system's log",
    sqlite3.SQLITE_CORRUPT: "the file is damaged, so go on with a copy from a backup",
    sqlite3.SQLITE_NOTADB: "it is no ledger, so name another file",
}

# What SQLite says of a place where it can make no file.
_UNWRITABLE: Final = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}

_AS_SQLITE: Final[dict[int, int]] = {
    errno.ENOSPC: sqlite3.SQLITE_FULL,
    errno.EDQUOT: sqlite3.SQLITE_FULL,
    errno.EROFS: sqlite3.SQLITE_READONLY,
    errno.EACCES: sqlite3.SQLITE_CANTOPEN,
    errno.EPERM: sqlite3.SQLITE_CANTOPEN,
    errno.ENOENT: sqlite3.SQLITE_CANTOPEN,
}


def connect_to_write(path: Path) -> sqlite3.Connection:
    """
    Open the ledger at *path*, which is made if it is not there.

    The caller has the owner's lock.

    Raises:
        LedgerError: It is no ledger, has a second name, or is of another version.

        OSError: The system says no.

        sqlite3.Error: SQLite says no.
    """
    if is_missing(path):
        _create(path)
    else:
        # A file that is no ledger of ours stays as it is. SQLite looks, because to
        # close a descriptor of our own would drop the locks it has on the file.
        _connect_ours(path, "ro").close()
    _narrow(path)
    connection = _connect_ours(path, "rw")
    try:
        _make_durable(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """
    Open the ledger at *path* and change nothing.

    Raises:
        LedgerError: It is not there, is no ledger, has a second name, or is of
            another version.

        OSError: The system says no.

        sqlite3.Error: SQLite says no.
    """
    if is_missing(path):
        msg = f"there is no ledger at {path}"
        raise LedgerError(msg, advice="check the name")
    try:
        return _connect_ours(path, "ro")
    except sqlite3.OperationalError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code not in _UNWRITABLE or _has_content(path.with_name(f"{path.name}-wal")):
            raise
    # Even to read, SQLite makes files beside one that keeps a log. Where it cannot,
    # nobody writes, and without a log the file is all there is to read.
    return _connect_ours(path, "ro&immutable=1")


def advice_on(error: sqlite3.Error | OSError) -> str:
    """Say what to do about what the system said."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR) & 0xFF
    if isinstance(error, OSError):
        code = _AS_SQLITE.get(error.errno or 0, sqlite3.SQLITE_IOERR)
    return _ADVICE.get(code, _ADVICE[sqlite3.SQLITE_IOERR])


def _connect_ours(path: Path, mode: str) -> sqlite3.Connection:
    connection = _connect(path, mode)
    try:
        _verify_ours(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.as_uri()}?mode={mode}", uri=True, timeout=_BUSY_S, isolation_level=None
    )


def is_missing(path: Path) -> bool:
    """Tell whether a ledger could be made at *path*: there is nothing, or an empty file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return True
    if not stat.S_ISREG(found.st_mode):
        msg = f"{path} is not a file"
        raise LedgerError(msg, advice="name another ledger")
    if found.st_nlink > 1:
        # The lock and the log go by the name, so that each name could have its owner.
        msg = (
            f"the ledger {path} has another name (a hard link), under which another process "
            "could pay for the same tracks"
        )
        raise LedgerError(msg, advice="remove one of the names, or name a copy")
    return found.st_size == 0


def set_log_aside(path: Path) -> None:
    """
    Give the log of a ledger that is lost another name; it may still be wanted with a backup.

    Raises:
        OSError: The system says no.
    """
    for suffix in _LOGS:
        log = path.with_name(f"{path.name}{suffix}")
        if _has_content(log):
            names = (log.with_name(f"{log.name}.lost{number or ''}") for number in count())
            log.rename(next(name for name in names if not name.exists()))


def _create(path: Path) -> None:
    """Make an empty ledger under another name, so that there is a whole one or none."""
    for suffix in _LOGS:
        beside = path.with_name(f"{path.name}{suffix}")
        if _has_content(beside):
            # SQLite would take it for the new one's.
            msg = f"there is no ledger at {path}, but {beside.name}, a log of one that was there"
            advice = (
                "put the ledger back. Only if it is lost begin a new one (new_ledger=True, "
                "--new-ledger): what it knew may be paid again"
            )
            raise LedgerError(msg, advice=advice)
    new = path.with_name(f"{path.name}.new")
    for suffix in ("", "-journal", "-wal", "-shm"):  # Of one that died here.
        new.with_name(f"{new.name}{suffix}").unlink(missing_ok=True)
    # SQLite gives the files it makes beside this one the same mode.
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    connection = _connect(new, "rw")
    try:
        connection.execute("BEGIN IMMEDIATE")
        create_tables(connection)
        connection.execute("COMMIT")
        _make_durable(connection, path)
    finally:
        connection.close()
    new.replace(path)
    sync_folder(path.parent)


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _narrow(path: Path) -> None:
    """Take the rights of others off the file and what SQLite keeps beside it."""
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        beside = path.with_name(name)
        try:
            if stat.S_IMODE(beside.stat().st_mode) & 0o077:
                beside.chmod(0o600)
        except FileNotFoundError:
            continue


def _verify_ours(connection: sqlite3.Connection, path: Path) -> None:
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_NOTADB:
            raise
        msg = f"{path} is no ledger, and stays as it is"
        raise LedgerError(msg, advice="name another file") from error
    if application == EARLIER_APPLICATION_ID:
        msg = (
            f"the ledger {path} was written by an older version of kie-wav-async, before its first "
            f"release (its schema is {version}), and stays as it is"
        )
        raise LedgerError(msg, advice="use it with the version that wrote it")
    if application != APPLICATION_ID or version < 1:  # We make none without a version.
        msg = f"{path} is another program's database, and stays as it is"
        raise LedgerError(msg, advice="name another file")
    if version != SCHEMA_VERSION:
        age = "a newer" if version > SCHEMA_VERSION else "an older"
        msg = (
            f"the ledger {path} was written by {age} version of kie-wav-async (its schema is "
            f"{version}, this version reads and writes {SCHEMA_VERSION} only), and stays as it is"
        )
        raise LedgerError(msg, advice="use it with the version that wrote it")


def _make_durable(connection: sqlite3.Connection, path: Path) -> None:
    """Have every commit synced before it returns."""
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        msg = f"SQLite cannot keep a write-ahead log of {path}"
        raise LedgerError(msg, advice="put the ledger on a local disk")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = ON")  # macOS, where fsync stops at the drive's cache.
    connection.execute("PRAGMA checkpoint_fullfsync = ON")
    connection.execute("PRAGMA foreign_keys = ON")
