"""Opening the file of a ledger: whether it is one, who may read it, and how it is written."""

from __future__ import annotations

import os
import sqlite3
import stat
from typing import TYPE_CHECKING, Final

from kie_wav_async._ledger_sql import APPLICATION_ID, SCHEMA_VERSION, create_tables
from kie_wav_async.errors import LedgerError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["connect_to_read", "connect_to_write", "explain"]

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


def connect_to_write(path: Path) -> sqlite3.Connection:
    """
    Open the ledger at *path*, which is made if it is not there.

    Raises:
        LedgerError: It is no ledger, or a newer version wrote it.

        OSError: The system says no.

        sqlite3.Error: SQLite says no.
    """
    _create(path)
    # A file that is no ledger of ours stays as it is. SQLite looks, because to
    # close a descriptor of our own would drop the locks it has on the file.
    with_tables = _connect(path, "ro")
    try:
        _verify_ours(with_tables, path)
    finally:
        with_tables.close()
    _narrow(path)
    connection = _connect(path, "rw")
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """
    Open the ledger at *path* and change nothing.

    Raises:
        LedgerError: It is not there, is no ledger, or a newer version wrote it.

        OSError: The system says no.

        sqlite3.Error: SQLite says no.
    """
    try:
        _verify_regular(path)
    except FileNotFoundError as error:
        msg = f"there is no ledger at {path}: check the name"
        raise LedgerError(msg) from error
    connection = _connect(path, "ro")
    try:
        if _verify_ours(connection, path) == 0:
            msg = f"there is no ledger in {path} yet: check the name"
            raise LedgerError(msg)  # noqa: TRY301 - the connection is closed below
    except BaseException:
        connection.close()
        raise
    return connection


def explain(error: Exception) -> str:
    """Say what the system said, and what to do about it."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR) & 0xFF
    if isinstance(error, OSError):
        code = sqlite3.SQLITE_CANTOPEN
    return f"{error}: {_ADVICE.get(code, _ADVICE[sqlite3.SQLITE_IOERR])}"


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.as_uri()}?mode={mode}", uri=True, timeout=_BUSY_S, isolation_level=None
    )


def _create(path: Path) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    try:
        os.close(os.open(path, flags, 0o600))
    except FileExistsError:
        _verify_regular(path)
    except FileNotFoundError as error:
        msg = f"the folder of the ledger {path} is not there: make it first"
        raise LedgerError(msg) from error


def _verify_regular(path: Path) -> None:
    if not stat.S_ISREG(path.stat().st_mode):
        msg = f"{path} is not a file: name another ledger"
        raise LedgerError(msg)


def _narrow(path: Path) -> None:
    """Take the rights of others off the file and what SQLite keeps beside it."""
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        beside = path.with_name(name)
        try:
            if stat.S_IMODE(beside.stat().st_mode) & 0o077:
                beside.chmod(0o600)
        except FileNotFoundError:
            continue


def _verify_ours(connection: sqlite3.Connection, path: Path) -> int:
    """Return the version of the schema, 0 for an empty file."""
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_NOTADB:
            raise
        msg = f"{path} is no ledger, and stays as it is: name another file"
        raise LedgerError(msg) from error
    if application == 0 and version == 0 and tables == 0:
        return 0
    if application != APPLICATION_ID:
        msg = f"{path} is another program's database, and stays as it is: name another file"
        raise LedgerError(msg)
    if version > SCHEMA_VERSION:
        msg = (
            f"the ledger {path} was written by a newer version (its schema is {version}, ours "
            f"{SCHEMA_VERSION}): upgrade kie-wav-async"
        )
        raise LedgerError(msg)
    return int(version)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        msg = f"SQLite cannot keep a write-ahead log of {path}: put the ledger on a local disk"
        raise LedgerError(msg)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = ON")  # macOS, where fsync stops at the drive's cache.
    connection.execute("PRAGMA checkpoint_fullfsync = ON")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("BEGIN IMMEDIATE")
    if _verify_ours(connection, path) == 0:
        create_tables(connection)
    connection.execute("COMMIT")
