"""What becomes of a submit whose outcome was unknown, once somebody knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_wav_async.core.state_machine import Origin, Phase
from kie_wav_async.errors import KieWavError

if TYPE_CHECKING:
    from kie_wav_async.models import UnknownSubmit
    from kie_wav_async.session.context import SessionContext
    from kie_wav_async.session.poller import Poller
    from kie_wav_async.session.submit_queue import SubmitQueue
    from kie_wav_async.session.task_follower import TaskFollower


class UnknownResolver:
    """Resolves submits of unknown outcome, by the word of the service or of the user."""

    def __init__(
        self,
        context: SessionContext,
        poller: Poller,
        queue: SubmitQueue,
        follower: TaskFollower,
    ) -> None:
        """Start with nothing resolved."""
        self._context = context
        self._registry = context.registry
        self._poller = poller
        self._queue = queue
        self._follower = follower

    async def adopt(self, unknown: UnknownSubmit, task_id: str | None) -> None:
        """
        Write down what the service says of an attempt of unknown fate, and go on with it.

        Raises:
            LedgerError: It could not be written; nothing has changed.
        """
        await self._context.ledger_writer.resolve_attempt(unknown.attempt_id, task_id)
        # Somebody else may have brought the news meanwhile.
        if self._registry.unknown_submit(unknown.attempt_id) is not None:
            self.resolve(unknown, task_id)

    async def apply_resolution(self, submit: UnknownSubmit, task_id: str | None) -> None:
        """
        Write down the user's word on a submit, in place of an earlier one, and go on with it.

        Raises:
            LedgerError: It could not be written; nothing has changed.
        """
        attempt_id = submit.attempt_id
        if not await self._context.ledger_writer.resolve(attempt_id, task_id):
            return  # The service has answered for it meanwhile.
        if self._registry.is_resolution(attempt_id, task_id):
            return
        if self._registry.resolved_submit(attempt_id) is not None:
            retracted = self._registry.retract(attempt_id)
            if retracted is not None:
                self._poller.unfollow(retracted)
        if self._registry.unknown_submit(attempt_id) is not None:
            self.resolve(submit, task_id, is_resolution=True)

    def resolve(
        self, unknown: UnknownSubmit, task_id: str | None, *, is_resolution: bool = False
    ) -> None:
        """Go on with an attempt that created *task_id*, or nothing if `None`."""
        if task_id is None:
            conversion = self._registry.mark_not_charged(
                unknown.attempt_id, is_resolution=is_resolution
            )
            if conversion is None:
                return
            self._queue.remove(conversion)
            if conversion.is_awaited:
                # Its waiters wait for the repeat, which is now without risk.
                self._registry.retry(conversion)
                self._queue.requeue(conversion)
                self._queue.dispatch()
                return
            error = KieWavError("the submit was not charged; submit the track again")
            self._registry.cancel(conversion, error.about(track=unknown.track))
            return
        queued = self._registry.find(unknown.track)
        if queued is not None and queued.phase is Phase.QUEUED:
            # Its waiters get the task that was found instead of a second submit.
            self._queue.remove(queued)
            _ = self._registry.return_to_unknown(queued)
        followed = self._poller.rejoin(task_id) or self._registry.find_task(task_id)
        was_attached = followed is not None and followed.origin is Origin.ATTACHED
        now = self._context.clock.monotonic()
        conversion = self._registry.adopt_unknown(
            unknown.attempt_id, task_id, now, is_resolution=is_resolution
        )
        self._queue.remove(conversion)
        if conversion is not followed:
            self._follower.follow(conversion)
        elif was_attached:
            # Nobody was told so far that the task is paid for by a submit of ours.
            self._follower.notify_task(conversion, unknown.attempt_id)
