"""
A look at what is asked of the system about the files of one folder, and a hand in it.

What `downloads.part_file` does is a row of calls such as ``fsync part`` or ``replace part``:
each is told before it is made and after it has returned, so that a test can note
their order, have one of them fail, or end the process there.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Calls that say which file they mean by its path, or by its descriptor.
_BY_PATH = ("open", "stat", "unlink", "replace", "statvfs")
_BY_FD = ("read", "write", "lseek", "ftruncate", "fstat", "fsync", "fchmod")


def role_of(name: str) -> str:
    """Say what a file of that name is for."""
    if name.endswith(".part"):
        return "part"
    return "note" if name.endswith(".part.json") else "file"


class Disk:
    """
    Watches the files in *folder*.

    Args:
        folder: Where they are.

        patch: Puts something in the place of an attribute: `setattr`, or monkeypatch's.

    Attributes:
        calls: What was asked for, in order, e.g. ``fsync part``.

        before: Called with each of them before it is made. What it raises is the
            call's outcome; a number is how many bytes a write writes.

        after: Called with each of them once it has returned.
    """

    def __init__(self, folder: Path, patch: Callable[[object, str, object], object]) -> None:
        self.calls: list[str] = []
        self.before: Callable[[str], int | None] = lambda _: None
        self.after: Callable[[str], object] = lambda _: None
        self._folder = Path(folder)
        self._roles: dict[int, str] = {}
        for name in _BY_PATH:
            patch(os, name, self._by_path(name, getattr(os, name)))
        for name in _BY_FD:
            patch(os, name, self._by_fd(name, getattr(os, name)))
        patch(os, "close", self._close(os.close))
        patch(fcntl, "flock", self._by_fd("flock", fcntl.flock))
        patch(io, "open", self._by_path("read", io.open))

    def _role(self, path: object) -> str | None:
        if isinstance(path, int):
            return self._roles.get(path)
        if not isinstance(path, str | Path):
            return None
        if Path(path) == self._folder:
            return "folder"
        return role_of(Path(path).name) if Path(path).parent == self._folder else None

    def _begin(self, point: str) -> int | None:
        self.calls.append(point)
        return self.before(point)

    def _by_path(self, name, function):
        def call(path, *args, **settings):
            role = self._role(path)
            if role is None:
                return function(path, *args, **settings)
            self._begin(f"{name} {role}")
            result = function(path, *args, **settings)
            if name == "open":
                self._roles[result] = role
            self.after(f"{name} {role}")
            return result

        return call

    def _by_fd(self, name, function):
        def call(fd, *args):
            role = self._roles.get(fd)
            if role is None:
                return function(fd, *args)
            count = self._begin(f"{name} {role}")
            if name == "write" and count is not None:
                args = (args[0][:count],)
            result = function(fd, *args)
            self.after(f"{name} {role}")
            return result

        return call

    def _close(self, function):
        def call(fd):
            role = self._roles.pop(fd, None)
            if role is None:
                return function(fd)
            try:
                self._begin(f"close {role}")
            finally:
                # It is closed, whatever the system says of it.
                function(fd)
            return self.after(f"close {role}")

        return call


class Fault:
    """Has the *number*-th call (from 1) fail, and every later one too if it *lasts*."""

    def __init__(self, number: int, code: int = errno.EIO, *, lasts: bool = False) -> None:
        self.point: str | None = None
        self._number = number
        self._code = code
        self._lasts = lasts
        self._seen = 0

    def __call__(self, point: str) -> None:
        self._seen += 1
        if self._seen == self._number or (self._lasts and self._seen > self._number):
            self.point = self.point or point
            raise OSError(self._code, os.strerror(self._code))
