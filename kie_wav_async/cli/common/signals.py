"""Ctrl-C and SIGTERM, for a command that has something to finish: once stops it, twice ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

import attrs

from kie_wav_async.cli.common.output import INTERRUPTED
from kie_wav_async.cli.common.streams import hurry

if TYPE_CHECKING:
    from types import TracebackType

# A terminal that goes away sends SIGHUP, where there is such a thing.
_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


@attrs.define
class Interrupt:
    """
    Cancels the task that enters it at the first signal, and ends the process at the second.

    A signal that is ignored, as a shell does for what runs in the background, stays so.

    Attributes:
        on_stop: Called at the first.

        on_leave: Called at the second, from the signal's handler: it must not wait.
    """

    on_stop: Callable[[], object]
    on_leave: Callable[[], object]
    _task: asyncio.Task[Any] | None = None
    _before: dict[signal.Signals, Any] = attrs.field(factory=dict[signal.Signals, Any])
    _is_asked: bool = False

    def __enter__(self) -> Self:
        """Listen to signals, where that can be done."""
        loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if before is signal.SIG_IGN:
                continue
            # Not on Windows, where asyncio's own way with Ctrl-C does, nor outside the
            # main thread.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self._ask)
                self._before[number] = before
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the signals as they were."""
        loop = asyncio.get_running_loop()
        for number, before in self._before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, before)

    def _ask(self) -> None:
        if self._is_asked:
            self.leave()
        self._is_asked = True
        for number in self._before:
            # Not the loop's any more: the second one is heard even if the loop is stuck.
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, lambda _, __: self.leave())
        hurry()
        self.on_stop()
        if self._task is not None:
            self._task.cancel()

    def leave(self) -> None:
        """End the process at once."""
        try:
            self.on_leave()
        finally:
            end_at_once(INTERRUPTED)


def end_at_once(exit_code: int) -> NoReturn:
    """End the process without Python's own ceremony, which waits for threads."""
    os._exit(exit_code)
