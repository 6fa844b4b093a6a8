"""Files: what to make of the system's errors, syncing folders, and paths that stay in one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from io import RawIOBase
    from pathlib import Path

#: The process or the machine is short of something for a moment: no fault of the disk.
OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})

# What is read at a time.
_PIECE: Final = 1 << 18

# What a file system says that cannot sync a folder, or does not let us open it.
_UNSYNCABLE: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM})


def is_inside(file: str, *, on_any_system: bool = True) -> bool:
    """
    Return whether *file*, relative to a folder, is a place in it by its name.

    Args:
        file: The path.

        on_any_system: Judge it as every system would, for paths that come from
            elsewhere: no root, no drive, no step up, in the words of any of them.
            Windows drops dots and blanks at the end of a name, so that ``.. `` is a
            step up there.
    """
    if not on_any_system:
        pure = PurePath(file)
        return not pure.is_absolute() and ".." not in pure.parts and "\0" not in file
    if file.startswith(("/", "\\")) or file[1:2] == ":" or "\0" in file:
        return False
    # A dot alone stays where it is, and is not the name of a file.
    parts = [part for part in re.split(r"[/\\]", file) if part not in {"", "."}]
    return bool(parts) and all(part.rstrip(". ") for part in parts)


def sha256_of(file: RawIOBase, proceed: Callable[[int], bool] = lambda _: True) -> str:
    """
    Return the SHA-256 of what is left to read of *file*, in hex.

    Args:
        file: Open for bytes.

        proceed: Called before the first piece, with 0, and with the size of each piece
            read; `False` stops reading.

    Raises:
        OSError: It cannot be read.
    """
    digest, piece = hashlib.sha256(), memoryview(bytearray(_PIECE))
    count: int | None = 0
    while proceed(count or 0) and (count := file.readinto(piece)):
        digest.update(piece[:count])
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """
    Sync *folder*, so that what was renamed in it stays renamed.

    Raises:
        OSError: The system says no.
    """
    with synced_folder(folder, must=True):
        pass


@contextlib.contextmanager
def synced_folder(folder: Path, *, must: bool = False) -> Generator[None]:
    """
    Sync *folder* after what is done to it in the block, where the system can do that.

    It is opened first, since that may fail.

    Args:
        folder: An existing folder.

        must: Whether it is an error that this file system cannot sync a folder.

    Raises:
        OSError: The system says no.
    """
    fd = -1
    with _where_possible(must=must):
        if os.name != "nt":  # pragma: no branch - there a folder cannot be opened
            fd = os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        yield
        with _where_possible(must=must):
            if fd >= 0:
                os.fsync(fd)
    finally:
        if fd >= 0:
            os.close(fd)


@contextlib.contextmanager
def _where_possible(*, must: bool) -> Generator[None]:
    """Pass over an error that says that this cannot be synced at all."""
    try:
        yield
    except OSError as error:
        if must or error.errno not in _UNSYNCABLE:
            raise
