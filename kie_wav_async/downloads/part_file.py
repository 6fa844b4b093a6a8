"""
A WAV file while it is not whole: beside its place, for its owner's eyes only.

``NAME.part`` holds the bytes, and ``NAME.part.json`` what they are bytes of, so
that a later process can go on with them. The name itself is given to a file that
is whole and synced, by a rename. Everything here waits for the disk, so it is
called in threads, one call at a time per part file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
import threading
from typing import TYPE_CHECKING, Final

import attrs

from kie_wav_async._support.file_lock import try_lock, unlock
from kie_wav_async._support.files import synced_folder
from kie_wav_async.downloads.part_metadata import PartMetadata, parse_part_metadata, this_boot
from kie_wav_async.downloads.wav_header import HEAD_LENGTH, WavScanner
from kie_wav_async.models import Download

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

#: What is synced reaches so far at least: more is not lost with the machine.
SYNC_EVERY: Final = 16 << 20

#: What a disk says that is full, and otherwise sound.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What is left free on the disk besides the file itself.
_SPARE: Final = 64 << 20

_NAME_BYTES: Final = 255
_PIECE: Final = 1 << 20
# So much of a strange ``NAME.part.json`` is looked at.
_METADATA_BYTES: Final = 16_384

# No link is followed, and no pipe is waited for.
_FLAGS: Final = sum(
    getattr(os, name, 0)
    for name in ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY")
)
#: What the system says of a name that is there and is no file of ours: a link, a folder,
#: a socket, a file of somebody else.
_IN_THE_WAY: Final = frozenset(
    {errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO, errno.ENOTSUP}
    | {errno.EACCES, errno.EPERM}
)


class _NotOursError(Exception):
    """What has the name of a part, or of its note, belongs to somebody else or is in use."""


def part_path(target: Path) -> Path:
    """Return where the bytes of *target* are kept until it is whole."""
    name = f"{target.name}.part"
    if len(os.fsencode(name)) + len("..json") > _NAME_BYTES:
        name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32]}.part"
    return target.with_name(name)


@attrs.frozen
class Found:
    """
    A WAV file that is there already.

    Attributes:
        download: The file.

        is_complete: Whether its own header says so; else only its host can tell.
    """

    download: Download
    is_complete: bool


def find_complete(target: Path, *, accept_short: bool = False) -> Found | None:
    """
    Return the WAV file at *target*; `None` if there is none.

    Args:
        target: Where to look.

        accept_short: Return one that has fewer bytes than it declares, too.

    Raises:
        OSError: It cannot be read, or what is there is no file.
    """
    wav, digest = WavScanner(), hashlib.sha256()
    try:
        # Not opened before it is known to be a file: a pipe would have us wait.
        if not stat.S_ISREG(target.stat().st_mode):
            raise OSError(errno.EEXIST, "there is something else of that name")
        with target.open("rb") as file:
            while piece := file.read(HEAD_LENGTH if not wav.length else _PIECE):
                digest.update(piece)
                wav.feed(piece)
                if wav.flaw is not None:
                    return None
        notes = wav.verify(accept_short=accept_short)
    except (FileNotFoundError, ValueError):
        return None
    found = Download(target, wav.length, digest.hexdigest(), resumed=False, notes=notes)
    return Found(found, is_complete=0 < (wav.promised or 0) <= wav.length)


def remove_leftovers(target: Path, task_id: str) -> None:
    """Remove what a process that was killed has left of a file that is whole, if it did."""
    part = part_path(target)
    if os.path.lexists(part) or os.path.lexists(f"{part}.json"):
        left = PartFile(target, task_id)
        with contextlib.suppress(OSError):
            left.open()
        left.close(keep=False)


class PartFile:
    """
    What there is of one file.

    Two that are opened for one target do not meet: the second one, also in
    another process, gets a name of its own, under which nothing is gone on with.
    So does one in whose place something is that no process of this user has made:
    a file of another user, a link, a file with several names, a pipe.

    Attributes:
        path: Where the bytes are.

        length: How many there are.

        wav: What they say about the file.

        etag: The strong tag of the version they belong to; `None`: they cannot be
            gone on with.

        total: The length of that version; `None` if it was not told.

        is_resumed: Whether bytes of an earlier attempt are among them.
    """

    def __init__(self, target: Path, task_id: str) -> None:
        """Be a part of *target* if it was begun for *task_id*; nothing is opened yet."""
        self.path = part_path(target)
        self.etag: str | None = None
        self.total: int | None = None
        self.is_resumed = False
        self._target = target
        self._task_id = task_id
        self._one_at_a_time = threading.Lock()
        self._fd = self._metadata_fd = -1
        self._mode = 0o600
        self._is_new = self._is_adopted = False
        # After a fault nobody knows what is on the disk, whatever the next call says.
        self._fault: tuple[int | None, str] | None = None
        # The same of a disk that is full, where what is there stays good.
        self._filled: tuple[int | None, str] | None = None
        self._begin()

    def open(self) -> None:
        """
        Take in what there is.

        Raises:
            OSError: The disk or the system says no.
        """
        with self._recording_faults():
            metadata = None
            try:
                metadata = self._open_shared()
            except _NotOursError:
                self._open_private()
            _restrict_mode(self._fd, 0o600)
            if metadata is None:
                os.ftruncate(self._fd, 0)
            else:
                self._load(metadata)
            self._is_adopted = True

    @contextlib.contextmanager
    def _recording_faults(self) -> Generator[None]:
        with self._one_at_a_time:
            if self._fault is not None:
                raise OSError(*self._fault)
            try:
                yield
            except OSError as error:
                self._fault = (error.errno, error.strerror or type(error).__name__)
                if self._is_adopted and self._metadata_fd >= 0:
                    with contextlib.suppress(OSError):
                        self._write_metadata()
                raise

    @property
    def is_shared(self) -> bool:
        """Whether it has the name under which a later download finds it."""
        return self.path == part_path(self._target)

    @property
    def is_resumable(self) -> bool:
        """Whether it can be gone on with: it has bytes, and they are known to be of one version."""
        return self.length > 0 and self.etag is not None

    # --- what is there ----------------------------------------------------------------------

    def _begin(self) -> None:
        self.length = self._synced = 0
        self.is_resumed = False
        self.wav = WavScanner()
        self._digest = hashlib.sha256()

    @property
    def _metadata_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def _open_shared(self) -> PartMetadata | None:
        """
        Open what has the part's name, and put a note in the place of the one that is there.

        Returns:
            What an earlier process noted, if it makes sense.

        Raises:
            _NotOursError: It is not ours to take.

            OSError: It cannot be read just now, which is no reason to forget the part.
        """
        self._fd, self._is_new = _open_locked(self.path)
        # A name of its own, not any: who finds it after our death takes it for his.
        fresh = self.path.with_name(f".{self.path.name}.json")
        fd = _create_metadata(fresh)
        try:
            try:
                # That is how a new file comes out here. There is no other way to ask for
                # the umask than to change it, under the other threads of the process, nor
                # for the owner, which is not everywhere who the process says that it is.
                mine = os.fstat(fd)
                self._mode = stat.S_IMODE(mine.st_mode)
                metadata = self._find_metadata(mine.st_uid)
                _restrict_mode(fd, 0o600)
                _write_all(fd, b"" if metadata is None else metadata.encode())
            finally:
                os.close(fd)
            fresh.replace(self._metadata_path)
        except (OSError, _NotOursError):
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise
        self._metadata_fd = os.open(self._metadata_path, os.O_WRONLY | _FLAGS)
        return metadata

    def _find_metadata(self, uid: int) -> PartMetadata | None:
        """Return what is noted about the part that is open, if both are files of *uid*."""
        part = os.fstat(self._fd)
        if part.st_uid != uid:
            raise _NotOursError
        try:
            fd = os.open(self._metadata_path, os.O_RDONLY | _FLAGS)
        except FileNotFoundError:
            # Each part of ours has a note before its first byte, and as long as it lives.
            if part.st_size:
                raise _NotOursError from None
            return None
        except OSError as error:
            raise _not_ours(error) from error
        try:
            if not _is_plain(found := os.fstat(fd)) or found.st_uid != uid:
                raise _NotOursError
            text = os.read(fd, _METADATA_BYTES)
        finally:
            os.close(fd)
        metadata = parse_part_metadata(text)
        return metadata if metadata is not None and metadata.task_id == self._task_id else None

    def _open_private(self) -> None:
        """Let go of what is not ours, and begin under a name that nobody else has."""
        if self._is_new:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._close()
        self.path = self.path.with_name(f".{secrets.token_hex(16)}.part")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS
        self._fd, self._is_new = os.open(self.path, flags, 0o600), True
        self._metadata_fd = os.open(self._metadata_path, flags, 0o666)
        self._mode = stat.S_IMODE(os.fstat(self._metadata_fd).st_mode)
        _restrict_mode(self._metadata_fd, 0o600)

    def _load(self, metadata: PartMetadata) -> None:
        """Take in what an earlier process has vouched for; what comes after may be anything."""
        os.ftruncate(self._fd, min(metadata.good, os.fstat(self._fd).st_size))
        os.lseek(self._fd, 0, os.SEEK_SET)
        while piece := os.read(self._fd, _PIECE):
            self._take(piece)
        self._synced = min(metadata.synced, self.length)
        self.etag, self.total = metadata.etag, metadata.total
        self.is_resumed = self.length > 0
        if self.length != metadata.written:
            self._write_metadata()

    def _take(self, piece: bytes) -> None:
        self.wav.feed(piece)
        self._digest.update(piece)
        self.length += len(piece)

    def _write_metadata(self) -> None:
        """Write down what is there, or that nothing can be gone on with."""
        text = b""
        if self.etag is not None and self.is_shared:
            written = self.length if self._fault is None else self._synced
            counts = (self.total, written, self._synced)
            text = PartMetadata(self._task_id, self.etag, *counts, this_boot()).encode()
        os.lseek(self._metadata_fd, 0, os.SEEK_SET)
        _write_all(self._metadata_fd, text)
        # Not first: killed in between, we would have nothing to go on by.
        os.ftruncate(self._metadata_fd, len(text))

    # --- what is done with it ---------------------------------------------------------------

    def restart(self, etag: str | None, total: int | None) -> None:
        """
        Forget all bytes, and be a part of another version.

        Args:
            etag: Its strong tag; `None` if it has none.

            total: Its length; `None` if it is not told.

        Raises:
            OSError: The disk says no.
        """
        with self._recording_faults():
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            self._begin()
            self.etag, self.total = etag, total
            self._write_metadata()

    def verify_room(self, missing: int) -> None:
        """
        Return if the disk has room for *missing* more bytes, and some more.

        Raises:
            OSError: It has not.
        """
        free = shutil.disk_usage(self._target.parent).free
        if free < 2 * missing + _SPARE:
            needed = (2 * missing + _SPARE) // 1_000_000
            msg = f"there are {free // 1_000_000:,} MB free, and {needed:,} MB are wanted"
            raise OSError(errno.ENOSPC, msg)

    def write(self, pieces: Iterable[bytes]) -> None:
        """
        Append *pieces*.

        Raises:
            OSError: The disk says no.
        """
        self._verify_unfilled()
        with self._recording_faults():
            for piece in pieces:
                try:
                    _write_all(self._fd, piece)
                except OSError as error:
                    if error.errno not in _FULL:
                        raise
                    # The disk is sound, and what came before is as good as it was.
                    os.ftruncate(self._fd, self.length)
                    self._filled = (error.errno, error.strerror or type(error).__name__)
                    break
                self._take(piece)
            if self._filled is None and self.length - self._synced >= SYNC_EVERY:
                self._sync()
            elif self.is_resumable:
                self._write_metadata()
        self._verify_unfilled()

    def _verify_unfilled(self) -> None:
        # What comes after a piece that found no room must not take its place.
        if self._filled is not None:
            raise OSError(*self._filled)

    def _sync(self) -> None:
        os.fsync(self._fd)
        self._synced = self.length
        self._write_metadata()

    def finish(self, notes: tuple[str, ...] = ()) -> Download:
        """
        Give the file its name.

        Args:
            notes: What is unusual about it.

        Raises:
            OSError: The disk says no, or somebody has moved the part.
        """
        self._verify_unfilled()
        with self._recording_faults():
            os.fsync(self._fd)
            if not _is_at(self._fd, self.path):
                raise OSError(errno.ENOENT, f"somebody has moved {self.path.name}")
            with synced_folder(self._target.parent):
                _restrict_mode(self._fd, self._mode)
                if os.name == "nt":  # pragma: no cover - the tests run on POSIX
                    self._close()  # Nothing that is open can be renamed there.
                try:
                    self.path.replace(self._target)
                except OSError:
                    with contextlib.suppress(OSError):
                        _restrict_mode(self._fd, 0o600)
                    raise
                # Not first: a part without a note is somebody else's file.
                with contextlib.suppress(OSError):
                    self._metadata_path.unlink()
            self._close()
            digest = self._digest.hexdigest()
            return Download(self._target, self.length, digest, resumed=self.is_resumed, notes=notes)

    def close(self, *, keep: bool) -> None:
        """
        Let go of the file, if that was not done; what the disk says of it does not matter.

        Args:
            keep: Whether to leave the bytes for another try, if they can be gone on with.
        """
        with self._one_at_a_time, contextlib.suppress(OSError):
            try:
                if self._fd < 0:
                    pass
                elif keep and self.is_resumable and self.is_shared:
                    if self._fault is None:
                        self._sync()
                elif not self._is_adopted and not self._is_new:
                    pass  # It could not even be looked at, and may be gone on with.
                elif _is_at(self._fd, self.path):
                    self.path.unlink()
                    self._metadata_path.unlink(missing_ok=True)
            finally:
                self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        note_fd, self._metadata_fd = self._metadata_fd, -1
        # It is closed, whatever the system says of it; what counts was synced.
        if note_fd >= 0:
            with contextlib.suppress(OSError):
                os.close(note_fd)
        if fd >= 0:
            # Not left to the closing: a forked child may have the file open still.
            with contextlib.suppress(OSError):
                unlock(fd)
            with contextlib.suppress(OSError):
                os.close(fd)


def _open_locked(path: Path) -> tuple[int, bool]:
    """
    Open *path* for us alone, and make it if it is not there.

    Returns:
        The file, and whether it is new.

    Raises:
        _NotOursError: Somebody has it open, or it is not a file with one name.

        OSError: The disk or the system says no.
    """
    while True:
        is_new, fd = _open_or_create(path)
        try:
            _lock(fd, path if is_new else None)
            # Whoever had the lock may have given the file its name, or removed it.
            if _is_at(fd, path):
                return fd, is_new
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _lock(fd: int, new: Path | None) -> None:
    """Lock a file; without locks, remove it if it is *new*, since nobody goes on with it."""
    is_locked = _try_lock(fd) if _is_plain(os.fstat(fd)) else False
    if is_locked is None and new is not None:
        new.unlink()
    if not is_locked:
        raise _NotOursError


def _open_or_create(path: Path) -> tuple[bool, int]:
    while True:
        try:
            return True, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        except FileExistsError:
            try:
                return False, os.open(path, os.O_RDWR | _FLAGS)
            except FileNotFoundError:
                continue  # It was removed just now.
            except OSError as error:
                raise _not_ours(error) from error


def _create_metadata(path: Path) -> int:
    """Make a new file, also in the place of one that a process of ours left there."""
    while True:
        try:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
        except FileExistsError:
            left = path.lstat()
            if not _is_plain(left) or (hasattr(os, "geteuid") and left.st_uid != os.geteuid()):
                raise _NotOursError from None
            path.unlink()


def _is_plain(found: os.stat_result) -> bool:
    """Return whether it is a file; what has a second name is somebody's file under that."""
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def _not_ours(error: OSError) -> Exception:
    """Return what an *error* means that was met at opening what is there."""
    return _NotOursError() if error.errno in _IN_THE_WAY else error


def _try_lock(fd: int) -> bool | None:
    try:
        return try_lock(fd)
    except OSError:  # A file system without locks: nobody can know who else is there.
        return None


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _restrict_mode(fd: int, mode: int) -> None:
    if hasattr(os, "fchmod"):  # pragma: no branch - Windows has it since Python 3.13
        os.fchmod(fd, mode)


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
