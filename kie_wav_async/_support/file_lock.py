"""A lock on an open file, which the system takes back when the process dies."""

from __future__ import annotations

import os
import sys
from typing import Final

if sys.platform == "win32":  # pragma: no cover - the tests run on POSIX
    import msvcrt
else:
    import fcntl

# Far behind what a file says, so that others may read it on Windows too, where a
# lock keeps them from the bytes it covers. No WAV of ours is so long.
_LOCKED_BYTE: Final = 1 << 40


if sys.platform == "win32":  # pragma: no cover - the tests run on POSIX

    def try_lock(fd: int) -> bool:
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def unlock(fd: int) -> None:
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:

    def try_lock(fd: int) -> bool:
        """
        Take the lock at once, and return whether it could be had.

        Raises:
            OSError: The file system knows no locks.
        """
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(fd: int) -> None:
        """Give the lock back."""
        fcntl.flock(fd, fcntl.LOCK_UN)
