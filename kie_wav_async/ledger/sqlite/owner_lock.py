"""Whether a file is ours alone, and the one it was: the lock beside it, and its file system."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from kie_wav_async._support.file_lock import try_lock, unlock
from kie_wav_async.errors import LedgerError
from kie_wav_async.ledger.models import LedgerMark

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["OwnerLock", "network_file_system", "read_mark"]

# What is one file for several machines, as Linux calls it.
_NETWORK_TYPES: Final = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse.ceph", "fuse.glusterfs"}
    | {"fuse.davfs2", "fuse.gcsfuse", "fuse.juicefs", "fuse.rclone", "fuse.s3fs", "fuse.smbnetfs"}
    | {"fuse.sshfs", "glusterfs", "gfs2", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2"}
    | {"orangefs", "prl_fs", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs", "fuse.vmhgfs-fuse"}
)


# The mark stands in a lock file in one line of a fixed length, before who has the lock.
_MARK: Final = re.compile(rb"kie-wav-ledger ([0-9a-f]{32}) ([0-9]{18})\n")
_MARK_LENGTH: Final = 67
_NO_MARK: Final = LedgerMark("0" * 32, 0)


class OwnerLock:
    """
    The right to write a file, held by one process at a time, and once in it.

    It stands on a file of its own beside the other: to close any descriptor of a
    database drops the locks that SQLite has on it. The operating system takes it
    back when the process dies. The file stays, and says which ledger was there.

    Attributes:
        path: The lock file.

        mark: The ledger that was last beside it; `None` if it does not say.
    """

    def __init__(self, owned: Path) -> None:
        """Be the lock of *owned*, not yet taken."""
        self._owned = owned
        self.path: Final = owned.with_name(f"{owned.name}.lock")
        self.mark: LedgerMark | None = None
        self._fd: int | None = None

    def acquire(self) -> None:
        """
        Take the lock, at once.

        Raises:
            LedgerError: Somebody has it, or what has its name is no file, or a file that
                has another name too.

            OSError: The lock file cannot be made.
        """
        flags = os.O_RDWR | os.O_CREAT
        # Not every system has each.
        for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_BINARY"):
            flags |= getattr(os, name, 0)
        fd = os.open(self.path, flags, 0o600)
        try:
            self._verify_plain(fd)
            self._take(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def release(self) -> None:
        """Give the lock back, if it was taken."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        # What a bad disk says of it does not matter: nobody has the lock any more.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, _MARK_LENGTH if self.mark is not None else 0)
        # Not left to the closing: a forked child may have the file open still.
        with contextlib.suppress(OSError):
            unlock(fd)
        with contextlib.suppress(OSError):
            os.close(fd)

    def is_held(self) -> bool:
        """Tell whether we have the lock, and others would meet it: its file may be removed."""
        try:
            return self._fd is not None and os.path.samestat(os.fstat(self._fd), self.path.stat())
        except FileNotFoundError:
            return False

    def _verify_plain(self, fd: int) -> None:
        # It is written to, and a pipe would have us wait for what it says.
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            msg = (
                f"{self.path} is not a plain file, or it has another name (a hard link), and "
                "stays as it is"
            )
            raise LedgerError(msg, advice="remove it, or name another ledger")

    def _take(self, fd: int) -> None:
        is_ours = try_lock(fd)
        said = os.read(fd, 400)
        found = _MARK.match(said)
        if not is_ours:
            raise self._refusal(said[found.end() if found else 0 :])
        self.mark = _mark_in(said)
        owner = f"{os.getpid()} {socket.gethostname()}\n".encode()
        if found is None:
            os.ftruncate(fd, 0)
            _write(fd, 0, _line_of(_NO_MARK))
        else:
            os.ftruncate(fd, _MARK_LENGTH)  # What it says of the ledger is not to be lost.
        _write(fd, _MARK_LENGTH, owner)

    def write_mark(self, mark: LedgerMark) -> None:
        """
        Write down which ledger is beside it, for the next one who has the lock.

        It is not synced: a machine that stops may have an older mark, which allows more.
        What cannot be written is let go: the ledger itself has it.
        """
        if self._fd is None or mark == self.mark:
            return
        with contextlib.suppress(OSError):
            _write(self._fd, 0, _line_of(mark))
            self.mark = mark

    def _refusal(self, said: bytes) -> LedgerError:
        wait = "let it finish or stop it, or name another ledger"
        found = re.fullmatch(r"([0-9]{1,10}) ([\w.-]{1,255})\n", said.decode("utf-8", "replace"))
        if found is None:
            return LedgerError(f"the ledger {self._owned} is open in another process", advice=wait)
        pid, host = found.groups()
        if host == socket.gethostname() and int(pid) == os.getpid():
            return LedgerError(
                f"the ledger {self._owned} is already open in this process (pid {pid})",
                advice="share the one SqliteLedger, or close it first",
            )
        return LedgerError(
            f"the ledger {self._owned} is open in process {pid} on {host}", advice=wait
        )


def read_mark(owned: Path) -> LedgerMark | None:
    """Return which ledger was last at *owned*, without its lock; `None` if nothing says so."""
    try:
        with owned.with_name(f"{owned.name}.lock").open("rb") as file:
            return _mark_in(file.read(_MARK_LENGTH))
    except OSError:
        return None


def _mark_in(said: bytes) -> LedgerMark | None:
    found = _MARK.match(said)
    mark = None if found is None else LedgerMark(found[1].decode(), int(found[2]))
    return None if mark == _NO_MARK else mark


def _line_of(mark: LedgerMark) -> bytes:
    return f"kie-wav-ledger {mark.ledger_id} {mark.submits:018d}\n".encode()


def _write(fd: int, at: int, data: bytes) -> None:
    """Write *data* in one call, so that who is killed here leaves all of it or nothing."""
    os.lseek(fd, at, os.SEEK_SET)
    os.write(fd, data)


def network_file_system(mountinfo: str, path: PurePosixPath) -> str | None:
    """
    Return the type of the network file system that *path* lies on, else `None`.

    Args:
        mountinfo: The text of Linux's ``/proc/self/mountinfo``.

        path: Absolute, without symbolic links.

    Source: the manual page proc(5), "/proc/[pid]/mountinfo".
    """
    best, kind = -1, ""
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:  # noqa: PLR2004 - the fifth is the mount point
            continue
        point = PurePosixPath(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4]))
        # Of two mounts on one point the later one is seen.
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split(" ")[0]
    return kind if kind in _NETWORK_TYPES else None
