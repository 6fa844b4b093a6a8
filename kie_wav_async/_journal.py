"""
The session's pen: what happens is written into the ledger, if there is one.

Some of it has to be written before it may have an effect: that a submit goes
out, that the service took it, how a task ended. The rest is written behind: if
the process dies before, the ledger still has the submit as under way, which the
next run takes as unknown, so the bill stays bounded. The ledger keeps the order.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, TypeVar

from kie_wav_async._models import WavFile
from kie_wav_async.errors import ConversionFailedError, LedgerError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine
    from typing import Any

    from kie_wav_async._clock import Clock
    from kie_wav_async._ledger_models import (
        AttemptOutcome,
        LedgerOpening,
        Standing,
        TrackState,
    )
    from kie_wav_async._models import Track
    from kie_wav_async.errors import KieWavError
    from kie_wav_async.ledger import Ledger

_logger = logging.getLogger("kie_wav_async")

T = TypeVar("T")


class Journal:
    """
    Writes into a ledger on behalf of a session; without one every call does nothing.

    Attributes:
        is_kept: Whether there is a ledger.
    """

    def __init__(self, ledger: Ledger | None, clock: Clock) -> None:
        """Open nothing yet."""
        self._ledger = ledger
        self._clock = clock
        self._writes: set[asyncio.Task[Any]] = set()
        self.is_kept = ledger is not None

    # --- opening and closing ------------------------------------------------------------

    async def open(self) -> LedgerOpening | None:
        """
        Open the ledger and return where it stands.

        Raises:
            LedgerError: It cannot be opened.
        """
        if self._ledger is None:
            return None
        return await _told(self._ledger.open(self._clock.time()))

    async def aclose(self) -> None:
        """Close the ledger; that it cannot be closed is logged, and ends nothing."""
        if self._ledger is not None:
            try:
                await _told(self._ledger.aclose())
            except LedgerError:
                _logger.exception("the ledger did not close well")

    def spawn(self, write: Coroutine[Any, Any, object]) -> None:
        """Run *write* beside whoever asked for it; `flush` waits for it."""
        task = asyncio.ensure_future(write)
        self._writes.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("what happened could not be written down: %s", error)

    async def flush(self) -> None:
        """
        Wait until what was to be written by now is, or cannot be.

        Raises:
            LedgerError: Some of it could not be written.
        """
        if self._writes:
            writes = tuple(self._writes)
            await asyncio.wait(writes)
            for write in writes:
                if not write.cancelled() and isinstance(error := write.exception(), LedgerError):
                    raise error.about()

    @property
    def writes(self) -> tuple[asyncio.Task[Any], ...]:
        """What is being written now."""
        return tuple(self._writes)

    # --- reading ------------------------------------------------------------------------

    async def find(self, track: Track) -> Standing | None:
        """
        Return where *track* stands in the ledger; `None` if it is not there.

        Raises:
            LedgerError: It cannot be read.
        """
        return None if self._ledger is None else await _told(self._ledger.find(track))

    async def page(self, state: TrackState, after: int) -> tuple[Standing, ...]:
        """
        Return the next tracks in *state*, in order.

        Raises:
            LedgerError: They cannot be read.
        """
        if self._ledger is None:
            return ()
        return tuple(await _told(self._ledger.page([state], after=after)))

    # --- writing ------------------------------------------------------------------------

    async def begin(self, track: Track, attempt_id: str, *, again: bool) -> Standing | None:
        """
        Write down that a submit goes out; `None`: it may.

        Raises:
            LedgerError: It could not be written, so it must not.
        """
        if self._ledger is None:
            return None
        write = self._ledger.begin(track, attempt_id, self._clock.time(), again=again)
        return await _told(write)

    async def end(
        self,
        attempt_id: str,
        outcome: AttemptOutcome,
        *,
        task_id: str = "",
        error: KieWavError | None = None,
    ) -> None:
        """
        Write down what came of a submit.

        Raises:
            LedgerError: It could not be written.
        """
        if self._ledger is not None:
            code, text = _words(error)
            write = self._ledger.end(
                attempt_id,
                outcome,
                self._clock.time(),
                task_id=task_id,
                error_code=code,
                error=text,
            )
            await _told(write)

    def note(
        self,
        attempt_id: str,
        outcome: AttemptOutcome,
        *,
        task_id: str = "",
        error: KieWavError | None = None,
    ) -> None:
        """Write down what came of a submit, behind."""
        if self._ledger is not None:
            self.spawn(self.end(attempt_id, outcome, task_id=task_id, error=error))

    def hear(self, attempt_id: str, task_id: str) -> None:
        """Write down that an authentic callback of *task_id* names *attempt_id*, behind."""
        if self._ledger is not None:
            self.spawn(_told(self._ledger.hear(attempt_id, task_id)))

    async def settle(self, task_id: str, outcome: WavFile | KieWavError | None) -> None:
        """
        Write down how a task ended.

        Raises:
            LedgerError: It could not be written.
        """
        if self._ledger is None:
            return
        now = self._clock.time()
        if isinstance(outcome, WavFile):
            write = self._ledger.settle(task_id, now, wav_url=outcome.url)
        else:
            code, text = _words(outcome)
            write = self._ledger.settle(task_id, now, error_code=code, error=text)
        await _told(write)


async def _told(call: Awaitable[T]) -> T:
    """Await a call of a ledger, which may be of the user's making and raise anything."""
    try:
        return await call
    except LedgerError:
        raise
    except Exception as error:
        _logger.exception("the ledger failed in a way it should not")
        msg = f"the ledger raised {type(error).__name__}: look into the log"
        raise LedgerError(msg) from error


def _words(error: KieWavError | None) -> tuple[int | None, str | None]:
    """Return what a ledger keeps of an error: a code, and the reason in words."""
    match error:
        case None:
            return None, None
        case ServiceError():
            return error.code, error.message
        case ConversionFailedError():
            record = error.record
            return record.error_code, record.error_message or record.status
        case _:
            return None, str(error)
