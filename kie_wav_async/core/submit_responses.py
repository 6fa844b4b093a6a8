"""
What follows from the response to a submit; see `protocol.submit_result.SubmitKind`.

It may be repeated only if provably no byte has left, or the service said that it
created nothing. A task is followed once it is written down. Everything else leaves the
submit unknown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_wav_async.core.effects import PollExisting, WriteTask
from kie_wav_async.core.policies import MAINTENANCE_PROBE_S, rate_limit_delay_s, retry_delay_s
from kie_wav_async.core.submit_errors import outcome_of
from kie_wav_async.core.track_states import AttemptOutcome
from kie_wav_async.errors import (
    AlreadyExistsError,
    LedgerError,
    RateLimitedError,
    WireFormatError,
    with_advice,
)
from kie_wav_async.protocol.api_constants import KIE_WAV
from kie_wav_async.protocol.submit_result import SubmitKind

if TYPE_CHECKING:
    from kie_wav_async.core.effects import Now, Outbox
    from kie_wav_async.core.following import Following
    from kie_wav_async.core.registry import Registry
    from kie_wav_async.core.settings import Chance, CoreSettings
    from kie_wav_async.core.state_machine import TaskEntry
    from kie_wav_async.core.submit_ends import SubmitEnds
    from kie_wav_async.core.submit_queue import SubmitQueue
    from kie_wav_async.errors import KieWavError
    from kie_wav_async.models import TaskRecord
    from kie_wav_async.protocol.submit_result import SubmitResult


class SubmitResponses:
    """Decides what follows from each response to a submit."""

    def __init__(
        self,
        registry: Registry,
        queue: SubmitQueue,
        following: Following,
        ends: SubmitEnds,
        outbox: Outbox,
        *,
        settings: CoreSettings,
        chance: Chance,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._queue = queue
        self._following = following
        self._ends = ends
        self._outbox = outbox
        self._chance = chance

    # --- the response -------------------------------------------------------------------

    def on_result(self, entry: TaskEntry, result: SubmitResult, now: Now) -> None:
        """Take in what came of a submit; see `SubmitKind`."""
        error = result.error
        match result.kind:
            case SubmitKind.ACCEPTED:
                if not self._following.is_taken(result.task_id, entry):
                    self._queue.note_answer(entry, has_code=True)
                    self._accept(entry, result, now)
                    return
                text = f"the service answered with task {result.task_id}, which is another track's"
                self._ends.mark_unknown(entry, WireFormatError(text), now)
            case SubmitKind.EXISTS:
                self._queue.note_answer(entry, has_code=True)
                self._registry.counters.polls += 1
                self._outbox.put(PollExisting(entry, result.task_id))
                return
            case SubmitKind.RATE_LIMITED:
                self._registry.counters.rejected_429 += 1
                self._ends.note(entry, AttemptOutcome.NOT_CREATED, error)
                self._queue.note_answer(entry, has_code=result.has_code)
                self._pause_all(entry, _given(error), now)
            case SubmitKind.MAINTENANCE:
                self._ends.note(entry, AttemptOutcome.NOT_CREATED, error)
                self._hold_for_maintenance(entry, _given(error), now)
            case SubmitKind.NOT_SENT:
                self._ends.note(entry, AttemptOutcome.NOT_CREATED, error)
                self._retry_later(entry, _given(error), now)
            case SubmitKind.UNKNOWN:
                self._ends.mark_unknown(entry, _given(error), now)
            case _:  # REJECTED
                self._queue.note_answer(entry, has_code=result.has_code)
                self._ends.note(entry, outcome_of(_given(error)), error)
                self._ends.reject(entry, _given(error), now)
        self._ends.end(entry, now, is_sent=True)

    def on_cut(self, entry: TaskEntry, now: Now) -> None:
        """End a submit whose response the session did not wait for."""
        self._ends.end(entry, now, is_sent=True)

    def _retry_later(self, entry: TaskEntry, error: KieWavError, now: Now) -> None:
        """Send a submit again that never left, after a back-off of its own."""
        if self._ends.reject_if_exhausted(entry, error, now):
            return
        delay_s = retry_delay_s(self._settings.retry, entry.attempts, self._chance.random(), None)
        if self._ends.requeue(entry, error, delay_s, now):
            self._queue.schedule(entry, now.mono_s + delay_s)

    def _pause_all(self, entry: TaskEntry, error: KieWavError, now: Now) -> None:
        """Pause all submits: another program uses the account's rate limit too."""
        asked = error.retry_after_s if isinstance(error, RateLimitedError) else None
        delay_s = rate_limit_delay_s(self._settings.retry, self._settings.rate_limit.per_s, asked)
        self._queue.pause(now.mono_s + delay_s)
        self._put_back(entry, error, delay_s, now)

    def _hold_for_maintenance(self, entry: TaskEntry, error: KieWavError, now: Now) -> None:
        """Pause all submits but one probe a minute; not everything waits that long."""
        if self._queue.note_maintenance(entry, now):
            for waiting in self._queue.queued:
                _ = self._ends.reject_if_exhausted(waiting, error, now)
        self._put_back(entry, error, MAINTENANCE_PROBE_S, now)

    def _put_back(self, entry: TaskEntry, error: KieWavError, delay_s: float, now: Now) -> None:
        """Have a submit wait in the queue again, unless that was its last attempt."""
        if not self._ends.reject_if_exhausted(entry, error, now) and self._ends.requeue(
            entry, error, delay_s, now
        ):
            self._queue.requeue(entry)

    # --- the task -----------------------------------------------------------------------

    def _accept(self, entry: TaskEntry, result: SubmitResult, now: Now) -> None:
        write = WriteTask(
            entry,
            entry.attempt_id,
            AttemptOutcome.ACCEPTED,
            result.task_id,
            accepted_unix_s=result.accepted_unix_s,
        )
        if self._settings.has_ledger:
            self._outbox.put(write)
        else:
            self.on_task_written(write, None, now)

    def on_existing_polled(
        self,
        poll: PollExisting,
        record: TaskRecord | None,
        failure: Exception | None,
        now: Now,
        *,
        is_cut: bool,
    ) -> None:
        """
        Take in what a poll said of the task that a 409 named; `None`: nothing.

        Args:
            poll: It.

            record: The record of the task.

            failure: Why it could not be read; `None` if the service has none.

            now: The time.

            is_cut: Whether the session did not wait for it.
        """
        entry, task_id = poll.entry, poll.task_id
        if isinstance(failure, RateLimitedError):
            self._registry.counters.rejected_429 += 1
        if self._following.is_foreign(entry, task_id, record):
            self._reject_foreign(entry, task_id, now)
            return
        write = WriteTask(entry, entry.attempt_id, AttemptOutcome.ADOPTED, task_id, record=record)
        if self._settings.has_ledger and not is_cut:
            self._outbox.put(write)
        else:
            # Also if the session closes meanwhile: the service has named the task.
            self.on_task_written(write, None, now)

    def _reject_foreign(self, entry: TaskEntry, task_id: str, now: Now) -> None:
        """End a submit for which the service named a task of another track."""
        message = f"the service named task {task_id}, which is another track's"
        error = AlreadyExistsError(code=KIE_WAV.conflict, message=message, task_id=task_id)
        self._ends.note(entry, AttemptOutcome.EXISTS_WITHOUT_ID, error)
        self._ends.reject(entry, error, now)
        self._ends.end(entry, now, is_sent=True)

    def on_task_written(self, write: WriteTask, failure: LedgerError | None, now: Now) -> None:
        """
        Follow the task of a submit, once it is written down.

        Also if that could not be because of *failure*, or because the session closes: the
        service has the task.
        """
        entry, task_id = write.entry, write.task_id
        error = None if failure is None else self._unwritten(write, failure)
        if write.outcome is AttemptOutcome.ACCEPTED:
            self._following.accept(entry, task_id, write.accepted_unix_s, now.mono_s, error)
        elif self._following.is_foreign(entry, task_id, write.record):
            self._reject_foreign(entry, task_id, now)
            return
        else:
            self._following.take_over(entry, task_id, write.record, now.mono_s, error)
        self._ends.end(entry, now, is_sent=True)

    def _unwritten(self, write: WriteTask, failure: LedgerError) -> LedgerError:
        self._outbox.log(
            "error",
            "task %s of %s (attempt %s) could not be written down: %s",
            write.task_id,
            write.entry.track,
            write.attempt_id,
            with_advice(failure),
        )
        error = LedgerError(
            f"the service has taken the submit, as task {write.task_id}, but that could not be "
            f"written down ({failure})",
            advice="; ".join(filter(None, ("keep the id", failure.advice))),
            task_id=write.task_id,
            track=write.entry.track,
        )
        error.__cause__ = failure
        return error


def _given(error: KieWavError | None) -> KieWavError:
    assert error is not None  # noqa: S101 - only a task comes without an error
    return error
