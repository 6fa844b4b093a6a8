"""What becomes of a submit whose outcome was unknown, once somebody knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_wav_async.core.effects import ResolveAttempt
from kie_wav_async.core.state_machine import Origin, Phase
from kie_wav_async.errors import KieWavError

if TYPE_CHECKING:
    import datetime as dt

    from kie_wav_async.core.effects import Now, Outbox
    from kie_wav_async.core.following import Following
    from kie_wav_async.core.polls import Polls
    from kie_wav_async.core.registry import Registry
    from kie_wav_async.core.state_machine import TaskEntry
    from kie_wav_async.core.submit_errors import KnownTrack
    from kie_wav_async.core.submit_queue import SubmitQueue
    from kie_wav_async.models import UnknownSubmit


class Unknowns:
    """Resolves submits of unknown outcome, by the word of the service or of the user."""

    def __init__(
        self,
        registry: Registry,
        polls: Polls,
        queue: SubmitQueue,
        following: Following,
        outbox: Outbox,
        *,
        has_ledger: bool,
    ) -> None:
        self._registry = registry
        self._polls = polls
        self._queue = queue
        self._following = following
        self._outbox = outbox
        self._has_ledger = has_ledger

    def adopt(self, unknown: UnknownSubmit, task_id: str, now: Now) -> bool:
        """Note that the service says which task a submit made; return whether that is done."""
        if self._has_ledger:
            self._outbox.put(ResolveAttempt(unknown, task_id))
            return False  # Done once it is written.
        self.resolve(unknown, task_id, now)
        return True

    def apply_resolution(self, submit: UnknownSubmit, task_id: str | None, now: Now) -> None:
        """Go on with the user's word on a submit, in place of an earlier one."""
        attempt_id = submit.attempt_id
        if self._registry.is_resolution(attempt_id, task_id):
            return
        if self._registry.resolved_submit(attempt_id) is not None:
            retracted = self._registry.retract(attempt_id)
            if retracted is not None:
                self._polls.unfollow(retracted)
        if self._registry.unknown_submit(attempt_id) is not None:
            self.resolve(submit, task_id, now, is_resolution=True)

    def resolve(
        self, unknown: UnknownSubmit, task_id: str | None, now: Now, *, is_resolution: bool = False
    ) -> None:
        """Go on with an attempt that created *task_id*, or nothing if `None`."""
        if task_id is None:
            self._resolve_not_charged(unknown, is_resolution=is_resolution)
            return
        queued = self._registry.find(unknown.track)
        if queued is not None and queued.phase is Phase.QUEUED:
            # Its waiters get the task that was found instead of a second submit.
            self._queue.remove(queued)
            _ = self._registry.return_to_unknown(queued)
        rejoined = self._following.rejoin(task_id, now.mono_s)
        followed = rejoined or self._registry.find_task(task_id)
        was_attached = followed is not None and followed.origin is Origin.ATTACHED
        entry = self._registry.adopt_unknown(
            unknown.attempt_id, task_id, now.mono_s, is_resolution=is_resolution
        )
        self._queue.remove(entry)
        if entry is not followed:
            self._following.follow(entry, now.mono_s)
        elif was_attached:
            # It was not told so far that the task is paid for by a submit of ours.
            self._following.notify_task(entry, unknown.attempt_id)

    def _resolve_not_charged(self, unknown: UnknownSubmit, *, is_resolution: bool) -> None:
        entry = self._registry.mark_not_charged(unknown.attempt_id, is_resolution=is_resolution)
        if entry is None:
            return
        self._queue.remove(entry)
        if entry.is_awaited:
            # Its waiters wait for the repeat, which is now without risk.
            self._registry.retry(entry)
            self._queue.requeue(entry)
            return
        error = KieWavError("the submit was not charged", advice="submit the track again")
        self._registry.cancel(entry, error.about(track=unknown.track))

    def restore_task(
        self,
        known: KnownTrack,
        now: Now,
        *,
        attempt_id: str,
        submitted_unix_s: float | None,
        accepted_at: dt.datetime | None,
    ) -> TaskEntry:
        """
        Follow the task that a ledger has for a track; return its entry.

        Args:
            known: The track, and the task.

            now: The time.

            attempt_id: The submit that the task belongs to.

            submitted_unix_s: When that was sent; `None` if it did not make the task.

            accepted_at: When the service made it, by its own clock; `None` if it did not say.
        """
        track, task_id = known.track, known.task_id
        _ = self._following.rejoin(task_id, now.mono_s)
        followed = self._registry.find(track) or self._registry.find_task(task_id)
        if (
            followed is not None
            and followed.track in {None, track}
            and followed.phase is not Phase.UNKNOWN
        ):
            if followed.track is None:
                self._registry.set_track(followed, track)
            return followed
        entry = self._registry.restore(
            track,
            task_id,
            now.mono_s,
            attempt_id=attempt_id,
            submitted_unix_s=submitted_unix_s,
            accepted_at=accepted_at,
        )
        self._queue.remove(entry)
        self._following.follow_restored(entry, now.mono_s)
        return entry
