"""
All that a session decides: what happened goes in, what is to be done comes out.

Theory of operation
===================

`SessionCore` knows no clock, no network and no database. Each of its methods is told
one thing that happened, and the time; it returns the `effects` that follow, in the
order in which they are to be done. Nothing else has an effect. The session's loop does
them, and tells the core what came of those that are answered::

    asked for, resolved, attached, abandoned, closed   (a caller)
    response to a submit, a poll, a read               (the transport)
    callback                                           (a receiver)
    written, or not                                    (the ledger)
    time passed                                        (the clock, at `next_at`)

A write that something depends on is returned alone; what depends on it follows from
`on_intent_written`, `on_task_written`, `on_end_written` and `on_resolved`.

Whatever happened, `SessionCore.dispatch` looks at the queue afterwards, so that no part
has to tell another that a slot is free.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kie_wav_async.core.admission import Admission
from kie_wav_async.core.callback_health import CallbackHealth
from kie_wav_async.core.callback_rules import CallbackRules
from kie_wav_async.core.effects import Outbox
from kie_wav_async.core.following import Following
from kie_wav_async.core.known_hosts import KnownHosts
from kie_wav_async.core.polls import Polls
from kie_wav_async.core.registry import Registry
from kie_wav_async.core.state_machine import Origin
from kie_wav_async.core.submit_ends import SubmitEnds
from kie_wav_async.core.submit_queue import SubmitQueue
from kie_wav_async.core.submit_responses import SubmitResponses
from kie_wav_async.core.submits import Submits
from kie_wav_async.core.task_ends import TaskEnds
from kie_wav_async.core.unknowns import Unknowns

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping, Sequence

    from kie_wav_async.core.early_callbacks import VerifiedCallback
    from kie_wav_async.core.effects import (
        Effect,
        Now,
        PollExisting,
        ResolveAttempt,
        SendPoll,
        WriteTask,
    )
    from kie_wav_async.core.settings import Chance, CoreSettings
    from kie_wav_async.core.state_machine import TaskEntry
    from kie_wav_async.core.submit_errors import KnownTrack
    from kie_wav_async.errors import LedgerError, SessionClosedError
    from kie_wav_async.models import (
        CallbackResult,
        TaskRecord,
        Track,
        UnknownSubmit,
    )
    from kie_wav_async.protocol.submit_result import SubmitResult


class SessionCore:
    """
    Decides what a session does.

    Attributes:
        registry: Every conversion that the session knows; read by anyone.

        queue: The submits that wait.
    """

    def __init__(self, settings: CoreSettings, chance: Chance) -> None:
        self._outbox = outbox = Outbox(has_listener=settings.has_listener)
        self.registry = registry = Registry()
        self._health = health = CallbackHealth()
        self._hosts = hosts = KnownHosts(outbox)
        ends = TaskEnds(registry, health, outbox, has_ledger=settings.has_ledger)
        polls = Polls(registry, health, ends, outbox, settings=settings, chance=chance)
        callbacks = CallbackRules(
            registry,
            polls,
            ends,
            outbox,
            health=health,
            hosts=hosts,
            callback_url=settings.callback_url,
        )
        following = Following(
            registry, polls, ends, callbacks, outbox, callback_url=settings.callback_url
        )
        self.queue = queue = SubmitQueue(registry, outbox, settings)
        submit_ends = SubmitEnds(registry, queue, following, callbacks, outbox, settings=settings)
        self._submits = Submits(
            registry,
            queue,
            following,
            submit_ends,
            outbox,
            has_ledger=settings.has_ledger,
            chance=chance,
        )
        self._responses = SubmitResponses(
            registry, queue, following, submit_ends, outbox, settings=settings, chance=chance
        )
        self._admission = Admission(registry, queue, polls, following, submit_ends)
        self._unknowns = Unknowns(
            registry, polls, queue, following, outbox, has_ledger=settings.has_ledger
        )
        self._ends = ends
        self._polls = polls
        self._callbacks = callbacks
        self._following = following
        self._submit_ends = submit_ends

    # --- the time ---------------------------------------------------------------------------

    @property
    def next_at(self) -> float:
        """When `on_time` is due, monotonic; infinite for never."""
        polls_at, submits_at = self._polls.next_at(), self.queue.next_at
        return min(submits_at, polls_at)

    def on_time(self, now: Now) -> list[Effect]:
        """Do what is due."""
        self.queue.return_due(now)
        self._polls.tick(now.mono_s)
        return self._effects(now)

    def _effects(self, now: Now) -> list[Effect]:
        """Return what follows from all that happened until *now*."""
        if self._health.pop_loss():
            self._polls.resume_schedule(now.mono_s)
        return self._outbox.take()

    def dispatch(self, now: Now) -> list[Effect]:
        """
        Send what may be sent now.

        Called once all other effects are done: what was notified of them, a catalog for
        instance, may have withdrawn what it had queued.
        """
        self._submits.dispatch(now)
        return self._outbox.take()

    # --- what callers ask for -----------------------------------------------------------------

    def ask(
        self, now: Now, track: Track, *, again: bool = False, is_patient: bool = False
    ) -> tuple[TaskEntry, list[Effect]]:
        """
        Return the entry of *track*, the one there is or a new one in the queue, and what follows.

        Args:
            track: What is to be converted.

            now: The time.

            again: Whether the user said to submit it all the same.

            is_patient: Whether it waits for the end of a maintenance, however long.

        Raises:
            ValueError: *again* for a track in flight.

            SubmitUnknownError: An earlier submit of the track is unknown.

            ChargeLimitError: ``max_charges`` is reached.
        """
        entry = self._admission.ask(track, now, again=again, is_patient=is_patient)
        return entry, self._effects(now)

    @property
    def is_polling_stopped(self) -> bool:
        """Whether the service has rejected all polls, so that nothing is polled."""
        return self._polls.is_stopped

    def resume_polling(self, now: Now) -> list[Effect]:
        """Poll again after a final rejection: something waits for a task."""
        self._polls.resume(now.mono_s)
        return self._effects(now)

    def abandon(self, entry: TaskEntry) -> list[Effect]:
        """Cancel a queued submit that nothing waits for any more."""
        self._submit_ends.abandon(entry)
        return self._outbox.take()

    def attach(self, now: Now, task_id: str, track: Track | None) -> tuple[TaskEntry, list[Effect]]:
        """Follow a task that was submitted elsewhere; return its entry, and what follows."""
        entry = self._following.attach(task_id, track, now.mono_s)
        return entry, self._effects(now)

    def apply_resolution(
        self, now: Now, submit: UnknownSubmit, task_id: str | None
    ) -> list[Effect]:
        """Go on with the user's word on a submit, in place of an earlier one; it is written."""
        self._unknowns.apply_resolution(submit, task_id, now)
        return self._effects(now)

    # --- an earlier run -----------------------------------------------------------------------

    def restore(
        self,
        now: Now,
        *,
        accepted: int,
        unknown: Sequence[UnknownSubmit],
        ended_unix_s: Sequence[float],
        hosts: Sequence[str],
        callback_tasks: Mapping[str, str],
    ) -> list[Effect]:
        """Go on with a ledger; see `RecoveryState`."""
        self.registry.restore_unknown_submits(accepted, unknown)
        self.queue.restore(ended_unix_s, unknown, now)
        self._hosts.restore(hosts)
        self._callbacks.restore(callback_tasks, now.mono_s)
        return self._effects(now)

    def restore_task(
        self,
        now: Now,
        known: KnownTrack,
        *,
        attempt_id: str,
        submitted_unix_s: float | None,
        accepted_at: dt.datetime | None,
    ) -> tuple[TaskEntry, list[Effect]]:
        """Follow the task that the ledger has for a track; return its entry, and what follows."""
        entry = self._unknowns.restore_task(
            known,
            now,
            attempt_id=attempt_id,
            submitted_unix_s=submitted_unix_s,
            accepted_at=accepted_at,
        )
        return entry, self._effects(now)

    # --- submits ------------------------------------------------------------------------------

    def on_intent_written(
        self, now: Now, entry: TaskEntry, known: KnownTrack | None
    ) -> list[Effect]:
        """Go on with a submit whose intent is written; *known* forbids it if there is one."""
        self._submits.on_intent_written(entry, known, now)
        return self._effects(now)

    def on_intent_failed(
        self, now: Now, entry: TaskEntry, error: LedgerError | None
    ) -> list[Effect]:
        """Go on with a submit whose intent could not be written; `None`: the session closes."""
        self._submits.on_intent_failed(entry, error, now)
        return self._effects(now)

    def on_submit_result(self, now: Now, entry: TaskEntry, result: SubmitResult) -> list[Effect]:
        """Take in what came of a submit."""
        self._responses.on_result(entry, result, now)
        return self._effects(now)

    def on_submit_cut(self, now: Now, entry: TaskEntry) -> list[Effect]:
        """Take in that a submit's response is not waited for."""
        self._responses.on_cut(entry, now)
        return self._effects(now)

    def on_existing_polled(
        self,
        now: Now,
        poll: PollExisting,
        record: TaskRecord | None,
        failure: Exception | None = None,
        *,
        is_cut: bool = False,
    ) -> list[Effect]:
        """Take in what a poll said of the task that a 409 named, or why it said nothing."""
        self._responses.on_existing_polled(poll, record, failure, now, is_cut=is_cut)
        return self._effects(now)

    def on_task_written(
        self, now: Now, write: WriteTask, error: LedgerError | None
    ) -> list[Effect]:
        """Go on with a task that is written down, or could not be."""
        self._responses.on_task_written(write, error, now)
        return self._effects(now)

    def on_read(self, now: Now, status: int | None, *, is_answered: bool) -> list[Effect]:
        """Take in whether the service answered a free read."""
        self._submits.on_read(status, now, is_answered=is_answered)
        return self._effects(now)

    def on_resolved(self, now: Now, resolve: ResolveAttempt) -> list[Effect]:
        """Go on with an unknown submit whose task is written down."""
        unknown = resolve.unknown
        # It may have been resolved otherwise meanwhile.
        if self.registry.unknown_submit(unknown.attempt_id) is not None:
            self._unknowns.resolve(unknown, resolve.task_id, now)
        return self._effects(now)

    # --- tasks ----------------------------------------------------------------------------------

    def on_poll_result(
        self, now: Now, poll: SendPoll, record: TaskRecord | None, *, host: str | None
    ) -> list[Effect]:
        """
        Take in the record of a task; `None`: the service has none.

        *host*: where the file is that it names, as ``name:port``; `None` if it names none.
        """
        task_id = poll.task_id
        self._polls.note_answered()
        was_looked_up = self._polls.looked_up_for(task_id) is not None
        if was_looked_up:
            self._judge_lookup(now, task_id, record)
        entries = self.registry.known(task_id)
        if not entries and not was_looked_up:
            self.registry.record_late(record)
        for entry in entries:
            # Its own turn is still to come, so this poll was another's, or a callback's.
            is_requested = entry.next_poll_at < math.inf
            self._following.observe(entry, record, now.mono_s, is_requested=is_requested)
        # Afterwards, so that no end of a task waits for it in the ledger.
        if host is not None and any(entry.origin is Origin.SUBMITTED for entry in entries):
            self._hosts.learn(host)
        self._polls.end_poll(poll, now.mono_s, is_answered=True, is_news=record is not None)
        return self._effects(now)

    def _judge_lookup(self, now: Now, task_id: str, record: TaskRecord | None) -> None:
        is_enough, unknown = self._callbacks.judge(task_id, record, now.mono_s)
        if unknown is not None:
            # What the record says of the task, the poll then brings to its entry.
            is_enough = self._unknowns.adopt(unknown, task_id, now)
        if is_enough:
            self._polls.end_lookup(task_id)

    def on_poll_failed(self, now: Now, poll: SendPoll, error: Exception) -> list[Effect]:
        """Take in that a poll brought no record."""
        final = self._polls.fail_poll(poll, error, now.mono_s)
        if final is not None:
            self._submit_ends.reject_all_waiting(final, now)
        return self._effects(now)

    def on_callback(
        self, now: Now, callback: VerifiedCallback, *, is_authentic: bool
    ) -> tuple[CallbackResult, list[Effect]]:
        """Take in a callback; return what it came to, and what follows."""
        result = self._callbacks.on_callback(callback, now.mono_s, is_authentic=is_authentic)
        return result, self._effects(now)

    def on_end_written(self, now: Now, entry: TaskEntry, error: LedgerError | None) -> list[Effect]:
        """Make the end of a task known that is written down, or could not be."""
        self._ends.on_written(entry, error)
        return self._effects(now)

    # --- closing --------------------------------------------------------------------------------

    def close(self, error: SessionClosedError) -> list[Effect]:
        """Begin nothing more; every wait ends with *error*."""
        self._polls.close()
        self._submit_ends.close(error)
        return self._outbox.take()

    def all_waits(self) -> tuple[TaskEntry, ...]:
        """Return every entry that something may wait for."""
        return (*self.registry.waiting(), *self.registry.in_flight(), *self._ends.unwritten)
