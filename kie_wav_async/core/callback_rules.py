"""
What a verified callback does to a session: settle, have a poll sent, wait, or nothing.

The signature covers the task id and the time, not the body, so most of what a
callback says is a reason to ask and no more. A callback settles only what the
session submitted itself, under the very attempt that the delivery names, and
only with a URL that may be downloaded and whose host and port the service itself
has named in an answer to a poll; everything else that is authentic makes the next
poll of its task come soon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_wav_async.callbacks.callback_url import (
    find_attempt,
    find_callback_url,
    is_called_back_elsewhere,
)
from kie_wav_async.core.early_callbacks import BUFFERED_S, EarlyCallbackBuffer, VerifiedCallback
from kie_wav_async.core.effects import RecordCallback
from kie_wav_async.core.state_machine import Origin
from kie_wav_async.models import CallbackResult, TaskRecord, TaskState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kie_wav_async.core.callback_health import CallbackHealth
    from kie_wav_async.core.effects import Outbox
    from kie_wav_async.core.known_hosts import KnownHosts
    from kie_wav_async.core.polls import Polls
    from kie_wav_async.core.registry import Registry
    from kie_wav_async.core.state_machine import TaskEntry
    from kie_wav_async.core.task_ends import TaskEnds
    from kie_wav_async.models import UnknownSubmit


class CallbackRules:
    """Judges callbacks, and keeps those that came too early."""

    def __init__(
        self,
        registry: Registry,
        polls: Polls,
        ends: TaskEnds,
        outbox: Outbox,
        *,
        health: CallbackHealth,
        hosts: KnownHosts,
        callback_url: str,
    ) -> None:
        self._registry = registry
        self._health = health
        self._polls = polls
        self._ends = ends
        self._hosts = hosts
        self._outbox = outbox
        self._callback_url = callback_url
        self._early = EarlyCallbackBuffer()
        self._warned: set[str] = set()

    # --- a callback -----------------------------------------------------------------------

    def on_callback(
        self, callback: VerifiedCallback, now_s: float, *, is_authentic: bool
    ) -> CallbackResult:
        """Take a callback; *is_authentic*: a key verified it."""
        task_id, attempt_id = callback.task_id, callback.attempt_id
        explains = is_authentic and self._match_unknown(task_id, attempt_id, now_s)
        entries = self._registry.known(task_id)
        if entries:
            # An attached task may turn out to be one that is submitted here.
            results = [
                self._apply(entry, callback, now_s, is_authentic=is_authentic) for entry in entries
            ]
            is_settled = CallbackResult.SETTLED in results
            return CallbackResult.SETTLED if is_settled else CallbackResult.POLLING
        result = CallbackResult.UNKNOWN_TASK
        if self._registry.has_ended(task_id):
            self._registry.counters.duplicate_results += 1
            result = CallbackResult.DUPLICATE
        else:
            self._registry.counters.unknown_task_callbacks += 1
            if is_authentic:
                self._buffer(callback, now_s)
        return CallbackResult.POLLING if explains else result

    def _buffer(self, callback: VerifiedCallback, now_s: float) -> None:
        """Keep a callback of a task that is not known (yet)."""
        attempt_id = callback.attempt_id
        is_sending = attempt_id is not None and self._registry.is_sending(attempt_id)
        if not is_sending and (
            attempt_id is None or self._registry.unknown_submit(attempt_id) is None
        ):
            # The callback URL is somebody else's too, who may get ours.
            self._health.mark_unhealthy()
        self._early.put(callback, now_s)
        if is_sending and attempt_id is not None:
            self._outbox.put(RecordCallback(attempt_id, callback.task_id))

    def _match_unknown(self, task_id: str, attempt_id: str | None, now_s: float) -> bool:
        """Have an unknown submit looked into that the delivery names; return whether it does."""
        if attempt_id is None or self._registry.unknown_submit(attempt_id) is None:
            return False
        self._outbox.put(RecordCallback(attempt_id, task_id))
        self._look_up(task_id, attempt_id, now_s)
        return True

    def _apply(
        self, entry: TaskEntry, callback: VerifiedCallback, now_s: float, *, is_authentic: bool
    ) -> CallbackResult:
        """Take what a callback says of an entry in flight."""
        if is_authentic:
            entry.is_called_back = True
            self._polls.reconsider(now_s)
        if not self._may_settle(entry, callback):
            self._polls.request(entry.task_id, now_s)
            return CallbackResult.POLLING
        record = TaskRecord(callback.task_id, TaskState.SUCCEEDED, wav_url=callback.wav_url)
        self._registry.observe(entry, record, now_s, "callback")
        self._ends.finish(entry)
        return CallbackResult.SETTLED

    def _may_settle(self, entry: TaskEntry, callback: VerifiedCallback) -> bool:
        """Return whether a callback is believed without asking the service."""
        is_ours = entry.origin is Origin.SUBMITTED and entry.attempt_id == callback.attempt_id
        return is_ours and callback.wav_url is not None and self._hosts.note_use(callback.host)

    # --- what came too early, or instead of a response ---------------------------------------

    def restore(self, named: Mapping[str, str], now_s: float) -> None:
        """Go on with what callbacks named in an earlier run: a task for each unknown attempt."""
        for attempt_id, task_id in named.items():
            if self._registry.unknown_submit(attempt_id) is not None:
                self._look_up(task_id, attempt_id, now_s)

    def use_early(self, entry: TaskEntry, now_s: float) -> None:
        """Use the callback of a task that has become known, if it was here before."""
        # Attaching explains no submit: one that becomes unknown later must still find it.
        is_attached = entry.origin is Origin.ATTACHED
        find = self._early.get if is_attached else self._early.pop
        callback = find(entry.task_id, now_s)
        if callback is not None:
            _ = self._apply(entry, callback, now_s, is_authentic=True)

    def use_early_for_unknown(self, unknown: UnknownSubmit, now_s: float) -> None:
        """Use the callback of a submit whose response is lost, if it was here before."""
        for task_id in self._early.find_by_attempt(unknown.attempt_id, now_s):
            self._look_up(task_id, unknown.attempt_id, now_s)

    def _look_up(self, task_id: str, attempt_id: str, now_s: float) -> None:
        """Have the service say whether the unknown submit *attempt_id* made *task_id*."""
        self._polls.reconsider(now_s)
        self._polls.look_up(task_id, attempt_id, now_s + BUFFERED_S, now_s)

    def judge(
        self, task_id: str, record: TaskRecord | None, now_s: float
    ) -> tuple[bool, UnknownSubmit | None]:
        """
        Return whether the record of a task looked up says enough, and whose submit made it.

        The submit is `None` if none of ours made the task, or if that is still open.
        """
        unknown = self._registry.unknown_submit(self._polls.looked_up_for(task_id) or "")
        if unknown is None:
            return True, None  # It was resolved meanwhile.
        if record is None:
            return False, None
        url = find_callback_url(record)
        is_taken = any(
            other.track not in {None, unknown.track} for other in self._registry.known(task_id)
        )
        if (
            is_taken
            or record.audio_id not in {None, unknown.track.audio_id}
            or (url is not None and find_attempt(record) != unknown.attempt_id)
            or is_called_back_elsewhere(record, self._callback_url)
        ):
            # Once for each submit: whoever knows its attempt could fill the logs.
            level = "debug" if unknown.attempt_id in self._warned else "warning"
            self._warned.add(unknown.attempt_id)
            self._outbox.log(
                level,
                "a callback of task %s names the lost attempt %s, but the task's record "
                "does not show that it made the task: not adopted",
                record.task_id,
                unknown.attempt_id,
            )
            return True, None
        if record.audio_id is None or url is None:
            return False, None  # It does not say, or not yet.
        _ = self._early.pop(task_id, now_s)
        return True, unknown
