"""
The way out of a submit: from the queue through its intent to the request.

A submit costs money and is not idempotent. With a ledger it is written down before it
leaves, and what that finds, another session's task or an earlier submit, ends it. A
submit in progress belongs to the session: whoever asked for it may go away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_wav_async.core.effects import BeginAttempt, ReadCredits, SendSubmit
from kie_wav_async.core.state_machine import track_of
from kie_wav_async.core.submit_errors import exists_error
from kie_wav_async.core.submit_queue import Turn
from kie_wav_async.core.track_states import AttemptOutcome, TrackState
from kie_wav_async.errors import ChargeLimitError, LedgerError, SubmitUnknownError
from kie_wav_async.protocol.api_constants import KIE_WAV

if TYPE_CHECKING:
    from kie_wav_async.core.effects import Now, Outbox
    from kie_wav_async.core.following import Following
    from kie_wav_async.core.registry import Registry
    from kie_wav_async.core.settings import Chance
    from kie_wav_async.core.state_machine import TaskEntry
    from kie_wav_async.core.submit_ends import SubmitEnds
    from kie_wav_async.core.submit_errors import KnownTrack
    from kie_wav_async.core.submit_queue import SubmitQueue


class Submits:
    """Decides what is submitted."""

    def __init__(
        self,
        registry: Registry,
        queue: SubmitQueue,
        following: Following,
        ends: SubmitEnds,
        outbox: Outbox,
        *,
        has_ledger: bool,
        chance: Chance,
    ) -> None:
        self._registry = registry
        self._queue = queue
        self._following = following
        self._ends = ends
        self._outbox = outbox
        self._has_ledger = has_ledger
        self._chance = chance
        self._is_read_warned = False

    # --- the next one -------------------------------------------------------------------

    def dispatch(self, now: Now) -> None:
        """Send what may go now."""
        while self._queue.has_queued:
            match self._queue.pop_next(now):
                case Turn.WAIT:
                    return
                case Turn.READ:
                    self._outbox.put(ReadCredits())
                    return
                case ChargeLimitError() as error:
                    self._ends.reject_all(error, now)
                case entry:
                    self._send(entry, now)

    def _send(self, entry: TaskEntry, now: Now) -> None:
        if self._registry.has_unknown_submit(entry):
            self._ends.note_repeat(entry)
        attempt_id = self._chance.attempt_id()
        self._registry.send(entry, attempt_id, now.unix_s)
        if self._has_ledger:
            is_repeat = entry.may_double_charge and not entry.is_again
            self._outbox.put(BeginAttempt(entry, attempt_id, is_repeat))
        else:
            self._outbox.put(SendSubmit(entry, attempt_id))

    def on_read(self, status: int | None, now: Now, *, is_answered: bool) -> None:
        """
        Take in whether the service answered the free read that the next submit waits for.

        *status* is the HTTP status, `None` without a response.
        """
        if status is not None:
            if not is_answered and not self._is_read_warned:
                self._outbox.log(
                    "warning",
                    "submits stay paused until the service answers %s: it brings HTTP %d, without "
                    "a code that the service gives when it is up. Is base_url right?",
                    *(KIE_WAV.credits_path, status),
                )
            self._is_read_warned = not is_answered
        self._queue.end_read(now, is_answered=is_answered)

    # --- the intent ---------------------------------------------------------------------

    def on_intent_written(self, entry: TaskEntry, known: KnownTrack | None, now: Now) -> None:
        """
        Send a submit whose intent is written down, if there is still need.

        *known*: what the ledger has of the track that forbids it; `None` for nothing.
        """
        if known is None and entry.is_awaited and not entry.discovered_task_id:
            self._outbox.put(SendSubmit(entry, entry.attempt_id))
            return
        self._undo_send(entry)
        if known is None:
            # While that was written all waiters have left, or its task was found.
            self._ends.note(entry, AttemptOutcome.NOT_CREATED)
            self._take_back(entry, now)
        elif known.state.is_converted or known.state is TrackState.ACCEPTED:
            # Another session that writes into this ledger was faster.
            entry.discovered_task_id = known.task_id
            _ = self._following.adopt_discovered(entry, now.mono_s)
        elif known.state is TrackState.EXISTS_WITHOUT_ID:
            self._ends.reject(entry, exists_error(known), now)
        else:
            message = "another submit of the track is in the ledger"
            self._ends.reject(
                entry,
                SubmitUnknownError(message, track=track_of(entry), attempt_id=known.attempt_id),
                now,
            )
        self._ends.end(entry, now, is_sent=False)

    def on_intent_failed(self, entry: TaskEntry, error: LedgerError | None, now: Now) -> None:
        """End a submit whose intent could not be written; `None`: the session closes."""
        self._undo_send(entry)
        if error is None:
            self._take_back(entry, now)
        else:
            self._ends.reject(entry, error, now)
        self._ends.end(entry, now, is_sent=False)

    def _undo_send(self, entry: TaskEntry) -> None:
        """Count out a submit that will not leave."""
        self._registry.counters.submitted -= 1
        self._ends.forget_repeat(entry)

    def _take_back(self, entry: TaskEntry, now: Now) -> None:
        """End a submit that has not left, and is not to."""
        if not self._following.adopt_discovered(entry, now.mono_s):
            self._registry.requeue(entry)
            self._ends.abandon(entry)
