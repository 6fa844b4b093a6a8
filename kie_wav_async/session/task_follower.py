"""From a submit to its task: written down, followed by the poller, and made known."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kie_wav_async.core.state_machine import Origin, Phase, track_of
from kie_wav_async.errors import AlreadyExistsError, KieWavError, LedgerError
from kie_wav_async.ledger.states import AttemptOutcome
from kie_wav_async.protocol.api_constants import KIE_WAV

if TYPE_CHECKING:
    from collections.abc import Callable

    from kie_wav_async.models import TaskRecord
    from kie_wav_async.protocol.responses import SubmitResponse
    from kie_wav_async.session.context import SessionContext
    from kie_wav_async.session.conversion import ConversionEntry
    from kie_wav_async.session.poller import Poller

_logger = logging.getLogger("kie_wav_async")


class TaskFollower:
    """Has the tasks of submits followed: a new one, one that existed, one that was found."""

    def __init__(self, context: SessionContext, poller: Poller) -> None:
        """Start with nothing followed."""
        self._context = context
        self._registry = context.registry
        self._poller = poller

    async def accept(self, conversion: ConversionEntry, answer: SubmitResponse) -> None:
        """Follow the task that the service created for a submit, once it is written down."""
        task_id = answer.task_id
        error: KieWavError | None = None
        try:
            error = await self._write_task(
                conversion, AttemptOutcome.ACCEPTED, task_id, accepted_unix_s=answer.accepted_unix_s
            )
        finally:
            # Also if the session closes meanwhile: the service has taken it.
            _ = self._poller.rejoin(task_id)
            self._registry.accept(
                conversion,
                task_id,
                self._context.clock.monotonic(),
                accepted_unix_s=answer.accepted_unix_s,
            )
            self.follow(conversion, error)

    async def _write_task(
        self,
        conversion: ConversionEntry,
        outcome: AttemptOutcome,
        task_id: str,
        *,
        accepted_unix_s: float | None = None,
    ) -> LedgerError | None:
        """Write down which task a submit came to; return why it could not be."""
        try:
            await self._context.ledger_writer.finish_attempt(
                conversion.attempt_id, outcome, task_id=task_id, accepted_unix_s=accepted_unix_s
            )
        except LedgerError as error:
            _logger.error(  # noqa: TRY400 - the traceback tells nothing of the disk
                "task %s of %s (attempt %s) could not be written down: %s",
                task_id,
                conversion.track,
                conversion.attempt_id,
                error,
            )
            told = LedgerError(
                f"the service has taken the submit, as task {task_id}, but that could not be "
                f"written down ({error}); keep the id",
                task_id=task_id,
                track=conversion.track,
            )
            told.__cause__ = error
            return told
        return None

    async def adopt(
        self,
        conversion: ConversionEntry,
        task_id: str,
        reject: Callable[[ConversionEntry, AlreadyExistsError], None],
    ) -> None:
        """
        Take over the task that a 409 names, once its record was asked for.

        *reject* is called instead if the task converts another track.
        """
        record: TaskRecord | None = None
        error: KieWavError | None = None
        try:
            try:
                record = await self._poller.poll(task_id)
            except Exception as failure:  # noqa: BLE001 - a transport of the user's may raise anything
                _logger.debug("no news of task %s: %s", task_id, failure)
            if not self._is_foreign(conversion, task_id, record):
                error = await self._write_task(conversion, AttemptOutcome.ADOPTED, task_id)
        finally:
            # Also if the session closes meanwhile: the service has named the task.
            self._take_over(conversion, task_id, record, error, reject)

    def _take_over(
        self,
        conversion: ConversionEntry,
        task_id: str,
        record: TaskRecord | None,
        error: KieWavError | None,
        reject: Callable[[ConversionEntry, AlreadyExistsError], None],
    ) -> None:
        """Follow an existing task, unless it converts another track."""
        if self._is_foreign(conversion, task_id, record):
            message = f"the service named task {task_id}, which is another track's"
            reject(
                conversion,
                AlreadyExistsError(code=KIE_WAV.conflict, message=message, task_id=task_id),
            )
            return
        _ = self._poller.rejoin(task_id)
        self._registry.adopt_existing(conversion, task_id, self._context.clock.monotonic())
        self.follow(conversion, error)
        if record is not None:
            self._poller.observe(conversion, record)

    def _is_foreign(
        self, conversion: ConversionEntry, task_id: str, record: TaskRecord | None
    ) -> bool:
        """Whether a task that exists converts another track."""
        audio_id = None if record is None else record.audio_id
        ours = track_of(conversion).audio_id
        return self.is_taken(task_id, conversion) or audio_id not in {None, ours}

    def is_taken(self, task_id: str, conversion: ConversionEntry) -> bool:
        """Whether *task_id* is known to convert another track."""
        others = self._registry.known(task_id)
        return any(other.track not in {None, conversion.track} for other in others)

    def follow(self, conversion: ConversionEntry, error: KieWavError | None = None) -> None:
        """
        Spread the news that *conversion* has a task, and have it polled.

        *error*: what whoever waits for the submit is told all the same.
        """
        self.notify_task(conversion, conversion.attempt_id)
        self._poller.follow(conversion)
        conversion.notify_submit_waiters(error)
        self._context.on_followed(conversion)

    def notify_task(self, conversion: ConversionEntry, attempt_id: str) -> None:
        """Tell which task a submit came to."""
        self._context.emit(
            "SubmitAccepted",
            task_id=conversion.task_id,
            track=conversion.track,
            attempt_id=attempt_id,
            adopted=conversion.origin is not Origin.SUBMITTED,
        )

    def adopt_discovered(self, conversion: ConversionEntry) -> bool:
        """
        Have a repeat that created nothing follow what the first attempt turned out to have made.

        A callback, or the user, may have told that while the repeat was on the wire.
        """
        task_id = conversion.discovered_task_id
        if not task_id or conversion.phase is not Phase.SUBMITTING:
            return False
        _ = self._poller.rejoin(task_id)
        self._registry.adopt_existing(conversion, task_id, self._context.clock.monotonic())
        self.follow(conversion)
        # It may be long over, with nobody left who asks.
        self._poller.request_poll(task_id)
        return True
