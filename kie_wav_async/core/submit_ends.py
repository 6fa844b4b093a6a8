"""
How a submit ends that came to no task: refused, sent again, withdrawn or unknown.

Nothing here sends. Only what provably created nothing may go out again; a submit that
may have been charged stays unknown until somebody says what became of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_wav_async.core.effects import FinishAttempt, Notify
from kie_wav_async.core.policies import RESUBMIT_AFTER_S
from kie_wav_async.core.state_machine import Phase, track_of
from kie_wav_async.core.submit_errors import unknown_error
from kie_wav_async.core.track_states import AttemptOutcome
from kie_wav_async.errors import KieWavError, LedgerError, MaintenanceError, TransportError
from kie_wav_async.models import OnUnknown, Track

if TYPE_CHECKING:
    from kie_wav_async.core.callback_rules import CallbackRules
    from kie_wav_async.core.effects import Now, Outbox
    from kie_wav_async.core.following import Following
    from kie_wav_async.core.registry import Registry
    from kie_wav_async.core.settings import CoreSettings
    from kie_wav_async.core.state_machine import TaskEntry
    from kie_wav_async.core.submit_queue import SubmitQueue
    from kie_wav_async.errors import SessionClosedError


class SubmitEnds:
    """Ends submits that came to no task."""

    def __init__(
        self,
        registry: Registry,
        queue: SubmitQueue,
        following: Following,
        callbacks: CallbackRules,
        outbox: Outbox,
        *,
        settings: CoreSettings,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._queue = queue
        self._following = following
        self._callbacks = callbacks
        self._outbox = outbox
        self._repeated: set[Track] = set()
        self._is_closed = False

    # --- not sent after all -------------------------------------------------------------

    def abandon(self, entry: TaskEntry) -> None:
        """Cancel a queued submit: nothing waits for it."""
        self._queue.remove(entry)
        error = KieWavError("the submit was withdrawn before it was sent, as nothing waited for it")
        self._cancel(entry, error.about(track=entry.track))

    def _cancel(self, entry: TaskEntry, error: KieWavError) -> None:
        if self._registry.has_unknown_submit(entry):
            self._registry.return_to_unknown(entry)
        else:
            self._registry.cancel(entry, error)

    def reject_all(self, error: KieWavError, now: Now) -> None:
        """Reject all that is queued."""
        while (entry := self._queue.first_queued()) is not None:
            self.reject(entry, error, now)

    def reject_all_waiting(self, error: KieWavError, now: Now) -> None:
        """Reject all that is not in progress, what waits for its moment included."""
        for entry in self._queue.delayed:
            self._queue.remove(entry)
            if entry.phase is Phase.UNKNOWN:
                # As if the moment of its repeat had come.
                self._registry.retry(entry)
            self.reject(entry, error, now)
        self.reject_all(error, now)

    # --- ends of an attempt -------------------------------------------------------------

    def note(
        self, entry: TaskEntry, outcome: AttemptOutcome, error: KieWavError | None = None
    ) -> None:
        """Write down what came of a submit, behind, if there is a ledger."""
        if self._settings.has_ledger:
            self._outbox.put(FinishAttempt(entry.attempt_id, outcome, error=error))

    def end(self, entry: TaskEntry, now: Now, *, is_sent: bool) -> None:
        """Note that a submit is over; one that nothing is known of is unknown."""
        self._queue.end(entry, now, is_sent=is_sent)
        if entry.phase is Phase.SUBMITTING:
            self.mark_unknown(entry, TransportError("the submit was cut off"), now)

    def reject(self, entry: TaskEntry, error: KieWavError, now: Now) -> None:
        """End a submit that created nothing."""
        if self._following.adopt_discovered(entry, now.mono_s):
            return
        self._queue.remove(entry)
        reason = entry.error_for_waiter(error)
        if self._registry.has_unknown_submit(entry):
            unknown = self._registry.return_to_unknown(entry)
            if not isinstance(error, LedgerError):
                reason = unknown_error(unknown, "the repeat was refused", cause=reason)
        else:
            self._registry.reject(entry, reason)
            self._outbox.emit("SubmitRejected", track=entry.track, error=reason.about())
        self._outbox.put(Notify(entry, reason))

    def reject_if_exhausted(self, entry: TaskEntry, error: KieWavError, now: Now) -> bool:
        """Count a rejection without a verdict; reject for good after the last."""
        if entry.waits_for_maintenance and isinstance(error, MaintenanceError):
            return False
        entry.attempts += 1
        if entry.attempts < self._settings.retry.attempts:
            return False
        self.reject(entry, error, now)
        return True

    def requeue(self, entry: TaskEntry, error: KieWavError, delay_s: float, now: Now) -> bool:
        """End a submit that is to be sent again; return `False` if there is no need."""
        if self._following.adopt_discovered(entry, now.mono_s):
            return False
        self._registry.requeue(entry)
        self.forget_repeat(entry)
        if not entry.is_awaited:
            self.abandon(entry)
            return False
        self._outbox.emit(
            "SubmitRetryScheduled",
            track=entry.track,
            error=entry.error_for_waiter(error),
            delay_s=delay_s,
        )
        return True

    def mark_unknown(self, entry: TaskEntry, error: KieWavError, now: Now) -> None:
        """Note that a submit may have been charged."""
        self.note(entry, AttemptOutcome.UNKNOWN, error)
        unknown = self._registry.mark_unknown(entry, now.unix_s)
        self._outbox.log(
            "warning",
            "submit of %s is of unknown fate (attempt %s): %s",
            entry.track,
            unknown.attempt_id,
            error,
        )
        self._outbox.emit(
            "SubmitUnknown",
            track=unknown.track,
            attempt_id=unknown.attempt_id,
            error=entry.error_for_waiter(error),
        )
        self._queue.note_unknown(now)
        if self.may_repeat(unknown.track) and not self._is_closed:
            self._queue.schedule(entry, now.mono_s + RESUBMIT_AFTER_S)
        else:
            reason = unknown_error(unknown, "the submit got no clear answer", cause=error)
            self._outbox.put(Notify(entry, reason))
        self._callbacks.use_early_for_unknown(unknown, now.mono_s)

    # --- repeats ------------------------------------------------------------------------

    def may_repeat(self, track: Track) -> bool:
        """Return whether an unknown submit of *track* is repeated: once in a session."""
        return self._settings.on_unknown is OnUnknown.RESUBMIT and track not in self._repeated

    def note_repeat(self, entry: TaskEntry) -> None:
        """Note that an unknown submit is being repeated."""
        self._repeated.add(track_of(entry))

    def forget_repeat(self, entry: TaskEntry) -> None:
        """Note that the submit, if it was a repeat, created nothing: so it was none."""
        self._repeated.discard(track_of(entry))

    # --- closing ------------------------------------------------------------------------

    def close(self, error: SessionClosedError) -> None:
        """Send nothing more, and cancel what has not been sent."""
        self._is_closed = True
        for entry in self._queue.close():
            if entry.phase is Phase.QUEUED:
                # One error for all: each waiter gets one that names the track.
                self._cancel(entry, error)
            self._outbox.put(Notify(entry, error))
