"""
stdout and stderr that never block.

What is printed, by whatever means, goes into a queue, and a thread writes it out. A
reader that pauses, or a stopped terminal, delays neither the event loop nor a signal.
Nothing of stdout is lost or reordered; a loop that prints results calls
`wait_for_room` before each, so that the queue stays bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import select
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from kie_wav_async.cli.common.output import INTERRUPTED, SERVICE, CliError, plain, say

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_BROKEN_PIPE: Final = 141  # What a shell shows for a command that SIGPIPE ended.

#: With more bytes than that in the queue, no more is made.
FULL: Final = 1 << 16
#: With more bytes than that, what moves on a terminal is left out: it will be shown again.
BEHIND: Final = 1 << 14
#: Of messages, which nothing makes wait, the last bytes are kept.
KEPT: Final = 1 << 20
# What a pipe takes at once; a slow reader is seen to read.
_PIECE: Final = 4096

#: So long a reader may take nothing before it is given up, in seconds.
PATIENCE_S: Final = 3600.0
#: The same once the command was told to stop, and once it was told so twice.
STOPPING_S: Final = 5.0
LEAVING_S: Final = 1.0

_LOST: Final = "[messages are missing here: they were not read in time]\n"


class OutputError(CliError):
    """
    Results cannot be printed.

    Attributes:
        is_reported: Whether the user was told.

        resume: What is said before the command that goes on, and that command; `None`:
            there is none.
    """

    def __init__(self, sentence: str, exit_code: int = SERVICE) -> None:
        super().__init__(exit_code, sentence)
        self.is_reported = False
        self.resume: tuple[str, str] | None = None

    def show(self) -> None:
        """Print the sentence and the command on stderr, once."""
        if self.is_reported:
            return
        self.is_reported = True
        super().show()
        if self.resume is not None:
            words, command = self.resume
            say(f"{words}:")
            # To be copied: it is broken nowhere.
            Console(stderr=True).print(plain(f"  {command}"), soft_wrap=True)


class ReaderGoneError(OutputError):
    """Whoever read our results has gone, as ``head`` does: no error worth a word."""

    def __init__(self) -> None:
        super().__init__("nobody reads the results any more", _BROKEN_PIPE)

    def show(self) -> None:
        """Print nothing, unless there is something to go on with."""
        if self.resume is not None:
            super().show()


class _Pipe:
    """
    A queue of bytes, and the thread that writes them to a file.

    Args:
        raw: The file, unbuffered; `None` if it is closed.

        kept: With more bytes in the queue, the oldest are dropped; `None`: they are not.
    """

    def __init__(self, raw: io.RawIOBase | None, kept: int | None = None) -> None:
        self.failure = None if raw is not None else _failure(OSError(errno.EBADF, "it is closed"))
        self.patience_s = PATIENCE_S
        self.raw = raw
        # Asked now: once a terminal has gone it says that it is none.
        self.is_terminal = raw is not None and raw.isatty()
        # Whether it is an error that nothing is taken any more; of a terminal only once it
        # was given a result.
        self.is_needed = not self.is_terminal
        self._kept = kept
        self._chunks: deque[bytes] = deque()
        # Of all that was put and not yet written, what is being written included.
        self._size = 0
        # Since when nothing was taken.
        self._since_s = time.monotonic()
        # Of a lock that its owner may take again: a signal's handler may print.
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], object]] = []
        self._thread: threading.Thread | None = None

    @property
    def is_behind(self) -> bool:
        """Whether the reader is slower than we are."""
        return self._size > BEHIND

    @property
    def is_full(self) -> bool:
        """Whether no more is to be made."""
        return self._size > FULL

    def put(self, data: bytes) -> None:
        """Have *data* written, after all that was put before; never waits."""
        with self._changed:
            if self.failure is not None or not data:
                return
            if not self._size:
                self._since_s = time.monotonic()
            self._chunks.append(data)
            self._size += len(data)
            if self._kept is not None and self._size > self._kept:
                self._drop()
            if self._thread is None:
                # The interpreter does not wait for it: its reader may never read.
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _drop(self) -> None:
        while len(self._chunks) > 1 and self._size > (self._kept or 0) // 2:
            self._size -= len(self._chunks.popleft())
        self._chunks.appendleft(_LOST.encode())
        self._size += len(_LOST)

    # --- the thread -------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._chunks:
                    self._changed.wait()
                data = bytearray()
                while self._chunks and len(data) < _PIECE:
                    data += self._chunks.popleft()
            try:
                self._write(memoryview(data))
            except (OSError, ValueError) as error:  # ValueError: somebody has closed it.
                self.fail(_failure(error))
                return

    def _write(self, data: memoryview) -> None:
        assert self.raw is not None  # noqa: S101 - else nothing is put
        while data:
            count = self.raw.write(data[:_PIECE])
            if count is None:  # Somebody has made it non-blocking, and it is full.
                _ = select.select([], [self.raw], [])
                continue
            data = data[count:]
            with self._changed:
                self._size -= count
                self._since_s = time.monotonic()
                self._report()

    def fail(self, failure: OutputError) -> None:
        """Take it that nothing will be written any more."""
        with self._changed:
            self.failure = self.failure or failure
            self._chunks.clear()
            self._report()

    def _report(self) -> None:
        self._changed.notify_all()
        for wake in self._wakers:
            wake()

    # --- those who wait ---------------------------------------------------------------------

    def verify(self) -> None:
        """
        Return if what is put is written, or need not be.

        Raises:
            OutputError: Nothing is taken any more.
        """
        if self.failure is not None and self.is_needed:
            raise self.failure

    def hurry(self, patience_s: float) -> None:
        """Give up a reader that takes nothing for *patience_s* from now on."""
        with self._changed:
            self.patience_s = min(self.patience_s, patience_s)
            self._since_s = time.monotonic()
            self._report()

    def _left_s(self, most: int) -> float:
        """
        Return how long to wait until there are *most* bytes, or fewer; 0 if there are.

        Raises:
            OutputError: Nothing is taken any more.
        """
        if self.failure is None:
            if self._size <= most:
                return 0.0
            left_s = self._since_s + self.patience_s - time.monotonic()
            if left_s > 0:
                return left_s
            lines = sum(chunk.count(b"\n") for chunk in self._chunks)
            self.fail(
                OutputError(
                    f"stdout has not been read for {self.patience_s:g} s: {lines:,} lines or more "
                    "were not printed"
                )
            )
        self.verify()
        return 0.0

    def drain(self) -> None:
        """
        Return once all is written; for where there is no loop.

        Raises:
            OutputError: Nothing is taken any more.
        """
        with self._changed:
            while left_s := self._left_s(0):
                self._changed.wait(left_s)

    async def wait(self, most: int) -> None:
        """
        Return once there are *most* bytes in the queue, or fewer.

        Raises:
            OutputError: Nothing is taken any more.
        """
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # The loop has been closed.
                loop.call_soon_threadsafe(woken.set)

        with self._changed:
            self._wakers.append(wake)
        try:
            while left_s := self._left_s(most):
                woken.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        _ = await woken.wait()
        finally:
            with self._changed:
                self._wakers.remove(wake)


def _failure(error: Exception) -> OutputError:
    if isinstance(error, BrokenPipeError):
        return ReaderGoneError()
    why = getattr(error, "strerror", None) or error
    return OutputError(f"cannot write to stdout: {why}")


class _Buffer(io.BufferedIOBase):
    """
    What a text stream writes to.

    Args:
        pipe: Where it goes.

        is_mute: Whether it is no error that it goes nowhere.
    """

    def __init__(self, pipe: _Pipe, *, is_mute: bool) -> None:
        super().__init__()
        self.pipe = pipe
        self.name = getattr(pipe.raw, "name", None)
        self._is_mute = is_mute

    def writable(self) -> bool:
        """Return that it is."""
        return True

    def isatty(self) -> bool:
        """Return whether it is a terminal, or was one."""
        return self.pipe.is_terminal

    def fileno(self) -> int:
        """Return the file's number."""
        if self.pipe.raw is None:
            raise io.UnsupportedOperation
        return self.pipe.raw.fileno()

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - any buffer of bytes
        """
        Have *data* written.

        Raises:
            OutputError: Nothing is taken any more.
        """
        if not self._is_mute:
            self.pipe.is_needed = True
            self.pipe.verify()
        written = bytes(data)
        self.pipe.put(written)
        return len(written)


# --- the process's own two ------------------------------------------------------------------

# While a command runs; `None` for what is no file, as in a test.
_stdout: _Pipe | None = None
_stderr: _Pipe | None = None


@contextlib.contextmanager
def printing() -> Generator[None]:
    """Print on stdout and stderr by threads in the block."""
    global _stdout, _stderr  # noqa: PLW0603 - a process has one of each
    before = sys.stdout, sys.stderr
    _open_missing()
    _stdout, _stderr = _pipe_of(sys.stdout), _pipe_of(sys.stderr, KEPT)
    if _stdout is not None and _stderr is not None and _is_same(_stdout.raw, _stderr.raw):
        _stderr = _stdout  # On one terminal, or in one file, they keep their order.
    if _stdout is not None:
        sys.stdout = _text(_Buffer(_stdout, is_mute=False), before[0])
    if _stderr is not None:
        sys.stderr = _text(_Buffer(_stderr, is_mute=True), before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        _stdout = _stderr = None


def _pipe_of(stream: Any, kept: int | None = None) -> _Pipe | None:  # noqa: ANN401 - whatever stands in its place
    """Return what writes to the file of a stream; `None` if it has none."""
    if stream is None:  # It was closed before we were started.
        return _Pipe(None)
    try:
        _ = stream.fileno()
        raw = getattr(stream.buffer, "raw", stream.buffer)  # Python -u has no buffer.
    except (AttributeError, OSError, ValueError):
        return None
    return _Pipe(raw, kept)


def _text(buffer: _Buffer, before: Any) -> io.TextIOWrapper:  # noqa: ANN401 - may be None
    encoding = getattr(before, "encoding", None) or "utf-8"
    # A title may not fit the terminal's encoding.
    return io.TextIOWrapper(buffer, encoding=encoding, errors="replace", write_through=True)


def _is_same(one: io.RawIOBase | None, other: io.RawIOBase | None) -> bool:
    if one is None or other is None:
        return False
    with contextlib.suppress(OSError):
        return os.path.sameopenfile(one.fileno(), other.fileno())
    return False


def _open_missing() -> None:
    """Open /dev/null for each closed stream: else a file of ours would get its number."""
    for number in range(3):
        try:
            _ = os.fstat(number)
        except OSError:
            _ = os.open(os.devnull, os.O_RDWR)


# --- for the commands -----------------------------------------------------------------------


def verify_stdout() -> None:
    """
    Return if results can be printed, as far as that can be told before any are.

    Raises:
        OutputError: They cannot.
    """
    if _stdout is not None:
        _stdout.verify()


def need_stdout() -> None:
    """Have it be an error if stdout cannot be written: a result goes to its terminal by stderr."""
    if _stdout is not None:
        _stdout.is_needed = True


async def wait_for_room() -> None:
    """
    Return once there is room for more results: before making any, in a loop.

    Raises:
        OutputError: They are not taken any more.
    """
    verify_stdout()
    if _stdout is not None and _stdout.is_full:
        await _stdout.wait(FULL // 2)


async def flush() -> None:
    """
    Return once all results are printed.

    Raises:
        OutputError: They are not taken any more.
    """
    if _stdout is not None:
        await _stdout.wait(0)


def is_full() -> bool:
    """Return whether no more results are to be made at present."""
    return _stdout is not None and _stdout.is_full


def is_behind() -> bool:
    """Return whether messages are not being read at present."""
    return _stderr is not None and _stderr.is_behind


def hurry() -> None:
    """Give readers that take nothing a moment more: the command was told to stop."""
    _hurry(STOPPING_S)


def _hurry(patience_s: float) -> None:
    for pipe in {_stdout, _stderr}:
        if pipe is not None:
            pipe.hurry(patience_s)


def finish(exit_code: int) -> int:
    """Wait until all is printed, as long as it is being read; return the exit code."""
    if exit_code == INTERRUPTED:
        hurry()
    try:
        return _finish(exit_code)
    except KeyboardInterrupt:
        _hurry(LEAVING_S)
        with contextlib.suppress(KeyboardInterrupt):
            _ = _finish(exit_code)
        return INTERRUPTED


def _finish(exit_code: int) -> int:
    if _stdout is not None:
        try:
            _stdout.drain()
        except OutputError as error:
            error.show()
            exit_code = max(exit_code, error.exit_code)
    if _stderr is not None:
        with contextlib.suppress(OutputError):
            _stderr.drain()
    return exit_code


def leave(last: str) -> None:
    """Say a last line; for a signal's handler. It takes two seconds at most."""
    _hurry(LEAVING_S)
    if _stderr is not None:
        _stderr.put(last.encode(errors="replace"))
    _ = _finish(INTERRUPTED)
