"""
The session's writer: what happens is written into the ledger, if there is one.

Some of it has to be written before it may have an effect: that a submit goes
out, that the service took it, how a task ended. The rest is written behind: if
the process dies before, the ledger still has the submit as in progress, which the
next run takes as unknown, so the bill stays bounded. The ledger keeps the order.

What came of a submit is known here alone, so if it cannot be written it is owed:
said again before anything that builds on it, and at the end.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

from kie_wav_async._support.tasks import is_caller_cancelled, start
from kie_wav_async.core.track_states import AttemptOutcome, TrackState
from kie_wav_async.errors import (
    ConversionFailedError,
    KieWavError,
    LedgerError,
    ServiceError,
    with_advice,
)
from kie_wav_async.models import WavFile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from kie_wav_async._support.clock import Clock
    from kie_wav_async.errors import SessionClosedError
    from kie_wav_async.ledger.base import Ledger
    from kie_wav_async.ledger.models import LedgerEntry, RecoveryState
    from kie_wav_async.models import Track

_logger = logging.getLogger("kie_wav_async")

P = ParamSpec("P")
T = TypeVar("T")


class _End(NamedTuple):
    """What came of a submit, as the ledger is told."""

    attempt_id: str
    outcome: AttemptOutcome
    at_unix_s: float
    task_id: str
    error_code: int | None
    error: str | None
    accepted_unix_s: float | None = None


class LedgerWriter:
    """
    Writes into a ledger on behalf of a session; without one every call does nothing.

    Attributes:
        is_enabled: Whether there is a ledger.
    """

    def __init__(self, ledger: Ledger | None, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        # By the task whose callback has to wait for it; "" for none.
        self._writes: dict[str, set[asyncio.Task[Any]]] = {}
        self._reads: set[asyncio.Task[Any]] = set()
        # Callers that wait for one of those.
        self._waits: set[asyncio.Future[Any]] = set()
        self._unwritten: dict[str, _End] = {}
        self._closed: SessionClosedError | None = None
        self.is_enabled = ledger is not None

    # --- opening and closing ------------------------------------------------------------

    async def open(self) -> RecoveryState | None:
        """
        Open the ledger and return where it stands.

        Raises:
            LedgerError: It cannot be opened.
        """
        if self._ledger is None:
            return None
        return await _told(self._ledger.open, self._clock.time())

    def close(self, error: SessionClosedError) -> None:
        """Let nobody wait any more: *error* ends all waits; what is being written goes on."""
        self._closed = error
        for wait in tuple(self._waits):
            wait.cancel()

    def write_unwritten(self) -> None:
        """Write down what is owed, behind."""
        if self._unwritten:
            _ = self.spawn(self._write_unwritten())

    async def aclose(self) -> None:
        """Close the ledger; that it cannot be closed is logged, and ends nothing."""
        if self._ledger is not None:
            try:
                await _told(self._ledger.aclose)
            except LedgerError:
                _logger.exception("the ledger did not close well")

    def spawn(self, write: Coroutine[Any, Any, T], task_id: str = "") -> asyncio.Task[T]:
        """Run *write* beside whoever asked for it; `flush` of *task_id* waits for it."""

        def forget(_: object) -> None:
            writes.discard(task)
            if not writes and self._writes.get(task_id) is writes:
                del self._writes[task_id]

        task = start(write)
        writes = self._writes.setdefault(task_id, set())
        writes.add(task)
        task.add_done_callback(forget)
        task.add_done_callback(self._log_failure)
        return task

    @staticmethod
    def _log_failure(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("what happened could not be written down: %s", with_advice(error))

    async def flush(self, task_id: str) -> None:
        """
        Wait until what was to be written by now of *task_id* is, or cannot be.

        Raises:
            LedgerError: Some of it could not be written.
        """
        if task_id in self._writes:
            writes = tuple(self._writes[task_id])
            await asyncio.wait(writes)
            for write in writes:
                if write.cancelled():
                    msg = "the session closed before it was written down"
                    raise LedgerError(msg)
                if isinstance(error := write.exception(), LedgerError):
                    raise error.about()

    @property
    def calls(self) -> set[asyncio.Task[Any]]:
        """What is being written and read now."""
        return self._reads.union(*self._writes.values())

    async def shield(self, write: Coroutine[Any, Any, T]) -> T:
        """
        Write, and return what came of it; whoever goes away does not end it.

        Raises:
            SessionClosedError: The session closed before; it may still be written.
        """
        return await self._wait_for(self.spawn(write))

    async def _wait_for(self, call: asyncio.Task[T]) -> T:
        """Wait for a call in a task of its own, until the session closes."""
        wait = asyncio.shield(call)
        self._waits.add(wait)
        try:
            return await wait
        except asyncio.CancelledError:
            if self._closed is None or is_caller_cancelled():
                raise
            raise self._closed.about() from None
        finally:
            self._waits.discard(wait)
            if wait.done() and not wait.cancelled():
                wait.exception()  # Or the loop complains, if the caller is cancelled just now.
            # An error keeps the frames it came through, and all that they name.
            del wait, call

    # --- reading ------------------------------------------------------------------------

    async def get(self, track: Track) -> LedgerEntry | None:
        """
        Return where *track* stands in the ledger; `None` if it is not there.

        Raises:
            LedgerError: It cannot be read.
        """
        if self._ledger is None:
            return None
        try:
            return await self._read(self._ledger.get, track)
        except KieWavError as error:
            raise error.about(track=track) from error.__cause__

    async def list_entries(self, state: TrackState, after: int) -> tuple[LedgerEntry, ...]:
        """
        Return the next tracks in *state*, in order.

        Raises:
            LedgerError: They cannot be read.
        """
        if self._ledger is None:
            return ()
        return tuple(await self._read(self._ledger.list_entries, [state], after=after))

    async def _read(self, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read in a task that closing can cancel; the caller's own we must not."""
        read = start(_told(call, *args, **kwargs))
        self._reads.add(read)
        read.add_done_callback(self._reads.discard)
        try:
            return await self._wait_for(read)
        finally:
            read.cancel()
            del read

    # --- writing ------------------------------------------------------------------------

    async def begin_attempt(
        self, track: Track, attempt_id: str, *, again: bool, is_repeat: bool
    ) -> LedgerEntry | None:
        """
        Write down that a submit goes out; `None`: it may.

        Args:
            track: What it is for.

            attempt_id: Its name.

            again: Whether the user said to send it all the same.

            is_repeat: Whether it is sent because an earlier one is unknown.

        Raises:
            LedgerError: It could not be written, so it must not.
        """
        if self._ledger is None:
            return None
        await self._write_unwritten()
        if is_repeat:
            # A word on that one may have been written although the ledger failed.
            entry = await _told(self._ledger.get, track)
            if entry is not None and entry.state is TrackState.ACCEPTED:
                return entry
        now = self._clock.time()
        try:
            return await _told(
                self._ledger.begin_attempt, track, attempt_id, now, again=again or is_repeat
            )
        except (LedgerError, asyncio.CancelledError):
            # It may be there all the same.
            self.finish_attempt_later(attempt_id, AttemptOutcome.NOT_CREATED)
            raise

    async def finish_attempt(
        self,
        attempt_id: str,
        outcome: AttemptOutcome,
        *,
        task_id: str = "",
        error: KieWavError | None = None,
        accepted_unix_s: float | None = None,
    ) -> None:
        """
        Write down what came of a submit, and when the service accepted it by its own clock.

        Raises:
            LedgerError: It could not be written, and is owed.
        """
        if self._ledger is not None:
            now = self._clock.time()
            end = _End(attempt_id, outcome, now, task_id, *_words(error), accepted_unix_s)
            try:
                await self._write(end)
            except LedgerError:
                self._unwritten[attempt_id] = end
                raise

    async def resolve_attempt(self, attempt_id: str, task_id: str | None) -> None:
        """
        Write down what somebody says of a submit of unknown outcome: its task, or that it has none.

        Raises:
            LedgerError: It could not be written, and is to be said again.
        """
        if self._ledger is not None:
            outcome = AttemptOutcome.ACCEPTED if task_id else AttemptOutcome.NOT_CREATED
            now = self._clock.time()
            await self._write(_End(attempt_id, outcome, now, task_id or "", None, None))

    async def resolve(self, attempt_id: str, task_id: str | None) -> bool:
        """
        Write down the user's word on a submit; return `False` if it has been answered meanwhile.

        Raises:
            LedgerError: It could not be written, and is to be said again.
        """
        if self._ledger is None:
            return True
        await self._write_unwritten()  # That its outcome is unknown may be among it.
        now = self._clock.time()
        return await _told(self._ledger.resolve, attempt_id, now, task_id=task_id or "")

    async def _write(self, end: _End) -> None:
        assert self._ledger is not None  # noqa: S101 - its callers have looked
        await _told(
            self._ledger.finish_attempt,
            end.attempt_id,
            end.outcome,
            end.at_unix_s,
            task_id=end.task_id,
            error_code=end.error_code,
            error=end.error,
            accepted_unix_s=end.accepted_unix_s,
        )

    async def _write_unwritten(self) -> None:
        """
        Write down which submits came to what, where that could not be done before.

        Raises:
            LedgerError: It still cannot be.
        """
        for attempt_id, end in tuple(self._unwritten.items()):
            await self._write(end)
            if self._unwritten.get(attempt_id) is end:
                del self._unwritten[attempt_id]

    def finish_attempt_later(
        self,
        attempt_id: str,
        outcome: AttemptOutcome,
        *,
        task_id: str = "",
        error: KieWavError | None = None,
    ) -> None:
        """Write down what came of a submit, behind."""
        if self._ledger is not None:
            _ = self.spawn(self.finish_attempt(attempt_id, outcome, task_id=task_id, error=error))

    def record_callback(self, attempt_id: str, task_id: str) -> None:
        """Write down that an authentic callback of *task_id* names *attempt_id*, behind."""
        if self._ledger is not None:
            _ = self.spawn(_told(self._ledger.record_callback, attempt_id, task_id), task_id)

    def keep_host(self, host: str) -> None:
        """Write down that the service named a file on *host*, behind; nothing waits for it."""
        if self._ledger is not None:
            _ = self.spawn(_told(self._ledger.keep_host, host))

    async def finish_task(self, task_id: str, outcome: WavFile | KieWavError | None) -> None:
        """
        Write down how a task ended.

        Raises:
            LedgerError: It could not be written.
        """
        if self._ledger is None:
            return
        now = self._clock.time()
        await self._write_unwritten()  # The task may be among it.
        if isinstance(outcome, WavFile):
            at = outcome.accepted_at
            await _told(
                self._ledger.finish_task,
                task_id,
                now,
                wav_url=outcome.url,
                settled_by=outcome.settled_by,
                accepted_unix_s=None if at is None else at.timestamp(),
            )
        else:
            code, text = _words(outcome)
            await _told(self._ledger.finish_task, task_id, now, error_code=code, error=text)


async def _told(call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a call of a ledger, which may be of the user's making and raise anything."""
    failure: BaseException
    try:
        return await call(*args, **kwargs)
    except LedgerError:
        raise
    except asyncio.CancelledError as cancellation:
        if is_caller_cancelled():
            raise
        failure = cancellation  # Not ours: something in the ledger was cancelled.
    except Exception as error:  # noqa: BLE001 - it is raised below
        failure = error
    _logger.error("the ledger failed in a way it should not", exc_info=failure)
    msg = f"the ledger raised {type(failure).__name__}"
    raise LedgerError(msg, advice="look into the log") from failure


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
