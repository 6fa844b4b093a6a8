"""From a submit to its task: followed by the polls, and made known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_wav_async.callbacks.callback_url import find_attempt, is_called_back_elsewhere
from kie_wav_async.core.effects import FinishAttempt, NotifySubmit
from kie_wav_async.core.state_machine import Origin, Phase, track_of
from kie_wav_async.core.task_outcome import is_foreign, is_success_without_url
from kie_wav_async.core.track_states import AttemptOutcome
from kie_wav_async.protocol.responses import created_at, is_known_status

if TYPE_CHECKING:
    from kie_wav_async.core.callback_rules import CallbackRules
    from kie_wav_async.core.effects import Outbox
    from kie_wav_async.core.polls import Polls
    from kie_wav_async.core.registry import Registry
    from kie_wav_async.core.state_machine import TaskEntry
    from kie_wav_async.core.task_ends import TaskEnds
    from kie_wav_async.errors import KieWavError
    from kie_wav_async.models import TaskRecord, Track


class Following:
    """Has tasks followed: new ones, those that existed, and those that were found."""

    def __init__(
        self,
        registry: Registry,
        polls: Polls,
        ends: TaskEnds,
        callbacks: CallbackRules,
        outbox: Outbox,
        *,
        callback_url: str,
    ) -> None:
        self._registry = registry
        self._polls = polls
        self._ends = ends
        self._callbacks = callbacks
        self._outbox = outbox
        self._callback_url = callback_url

    def follow(self, entry: TaskEntry, now_s: float, error: KieWavError | None = None) -> None:
        """
        Make known that *entry* has a task, and have it polled.

        *error*: what the waits for the submit end with all the same.
        """
        self.notify_task(entry, entry.attempt_id)
        self._polls.follow(entry, now_s)
        self._outbox.put(NotifySubmit(entry, error))
        self._callbacks.use_early(entry, now_s)

    def follow_restored(self, entry: TaskEntry, now_s: float) -> None:
        """Have a task of an earlier run polled, and its submit's waits end."""
        self._polls.follow(entry, now_s, is_restored=True)
        self._outbox.put(NotifySubmit(entry))
        self._callbacks.use_early(entry, now_s)

    def notify_task(self, entry: TaskEntry, attempt_id: str) -> None:
        """Tell which task a submit came to."""
        self._outbox.emit(
            "SubmitAccepted",
            task_id=entry.task_id,
            track=entry.track,
            attempt_id=attempt_id,
            adopted=entry.origin is not Origin.SUBMITTED,
        )

    def accept(
        self,
        entry: TaskEntry,
        task_id: str,
        accepted_unix_s: float | None,
        now_s: float,
        error: KieWavError | None,
    ) -> None:
        """Follow the task that the service created for a submit."""
        _ = self.rejoin(task_id, now_s)
        self._registry.accept(entry, task_id, now_s, accepted_unix_s=accepted_unix_s)
        self.follow(entry, now_s, error)

    def take_over(
        self,
        entry: TaskEntry,
        task_id: str,
        record: TaskRecord | None,
        now_s: float,
        error: KieWavError | None,
    ) -> None:
        """Follow the task that a 409 named for a submit; *record* is what a poll said of it."""
        _ = self.rejoin(task_id, now_s)
        self._registry.adopt_existing(entry, task_id, now_s)
        self.follow(entry, now_s, error)
        if record is not None:
            self.observe(entry, record, now_s)

    def adopt_discovered(self, entry: TaskEntry, now_s: float) -> bool:
        """
        If an earlier attempt's task is known by now, follow that instead; return whether it is.

        A callback, or the user, may have named it while the repeat was in progress.
        """
        task_id = entry.discovered_task_id
        if not task_id or entry.phase is not Phase.SUBMITTING:
            return False
        _ = self.rejoin(task_id, now_s)
        self._registry.adopt_existing(entry, task_id, now_s)
        self.follow(entry, now_s)
        # It may be long over, with nothing left that polls it.
        self._polls.request(task_id, now_s)
        return True

    def rejoin(self, task_id: str, now_s: float) -> TaskEntry | None:
        """Poll a task again that is kept, and return its new entry; `None` if it is not."""
        for entry in self._registry.known(task_id):
            if entry.phase is Phase.TIMED_OUT_KEPT:
                self._registry.rejoin(entry, now_s)
                self._polls.follow(entry, now_s, is_restored=True)
                self._callbacks.use_early(entry, now_s)
                return entry
        return None

    def attach(self, task_id: str, track: Track | None, now_s: float) -> TaskEntry:
        """Follow a task that was submitted elsewhere; return its entry."""
        entry = self.rejoin(task_id, now_s) or self._registry.find_task(task_id)
        if entry is None:
            entry = self._registry.attach(task_id, track, now_s)
            self._polls.follow(entry, now_s)
            self._callbacks.use_early(entry, now_s)
        elif track is not None and entry.track is None:
            self._registry.set_track(entry, track)
        return entry

    def is_foreign(self, entry: TaskEntry, task_id: str, record: TaskRecord | None) -> bool:
        """Return whether a task that exists converts another track than *entry*."""
        audio_id = None if record is None else record.audio_id
        ours = track_of(entry).audio_id
        return self.is_taken(task_id, entry) or audio_id not in {None, ours}

    def is_taken(self, task_id: str, entry: TaskEntry) -> bool:
        """Return whether *task_id* is known to convert another track than *entry*."""
        others = self._registry.known(task_id)
        return any(other.track not in {None, entry.track} for other in others)

    # --- what a poll brought -----------------------------------------------------------------

    def observe(
        self,
        entry: TaskEntry,
        record: TaskRecord | None,
        now_s: float,
        *,
        is_requested: bool = False,
    ) -> None:
        """
        Take in what a poll brought, and what follows if it ends the conversion.

        *is_requested*: a callback made us ask, so an empty answer exhausts no patience.
        """
        if record is not None:
            self._look_at(record)
            if not (entry.is_attributed or is_foreign(entry, record)):
                self._attribute(entry, record)
        if self._registry.observe(
            entry,
            record,
            now_s,
            "poll",
            is_hint=is_requested,
            created_at=None if record is None else created_at(record),
        ):
            self._ends.finish(entry)

    def _look_at(self, record: TaskRecord) -> None:
        """Log what is strange about a record, once."""
        if not is_known_status(record):
            self._polls.log_once(
                f"status {record.status}",
                "task %s has the unknown status %r: taken as pending",
                record.task_id,
                record.status,
            )
        if is_success_without_url(record):
            self._polls.log_once(
                "success without a file",
                "task %s succeeded, but its answer names no file that we can read: waiting",
                record.task_id,
            )

    def _attribute(self, entry: TaskEntry, record: TaskRecord) -> None:
        """Look whose submit created a task that existed."""
        attempt_id = find_attempt(record)
        if attempt_id is None and is_called_back_elsewhere(record, self._callback_url):
            attempt_id = ""  # Somebody else's.
        explained = self._registry.attribute(entry, attempt_id)
        if explained is not None:
            self._outbox.put(
                FinishAttempt(explained, AttemptOutcome.ACCEPTED, task_id=entry.task_id)
            )
