"""
What a callback does to a session: settle, have a poll sent, wait, or nothing.

The signature covers the task id and the time, not the body, so most of what a
callback says is a reason to ask and no more. A callback settles only what the
session submitted itself, under the very attempt that the delivery names, and
only with a URL that may be downloaded and whose host and port the service itself
has named in an answer to a poll; everything else that is authentic makes the next
poll of its task come soon. What is not authentic counts, and changes nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kie_wav_async._support.budget import Budget
from kie_wav_async.callbacks.callback_url import (
    find_attempt,
    find_callback_url,
    is_called_back_elsewhere,
    parse_attempt,
)
from kie_wav_async.callbacks.payload import authenticate, find_wav_url, read_body
from kie_wav_async.core.early_callbacks import BUFFERED_S, EarlyCallbackBuffer, VerifiedCallback
from kie_wav_async.core.state_machine import Origin
from kie_wav_async.downloads.url_policy import check_download_url, host_and_port
from kie_wav_async.errors import CallbackFormatError, SignatureError
from kie_wav_async.models import CallbackResult, CallbackTrust, TaskRecord, TaskState
from kie_wav_async.session.poller import TaskLookup

if TYPE_CHECKING:
    from collections.abc import Mapping

    from yarl import URL

    from kie_wav_async.callbacks.signature import Headers, Keys
    from kie_wav_async.models import UnknownSubmit
    from kie_wav_async.protocol.envelope import JsonObject
    from kie_wav_async.session.context import SessionContext
    from kie_wav_async.session.conversion import ConversionEntry
    from kie_wav_async.session.poller import Poller
    from kie_wav_async.session.unknown_resolver import UnknownResolver

_logger = logging.getLogger("kie_wav_async")

#: Most events a minute about callbacks that were refused, and about those of each
#: result but SETTLED: anybody who has seen one callback can repeat it without end.
_MAX_REJECTED_PER_MINUTE = 100
_MAX_RECEIVED_PER_MINUTE = 600


class CallbackProcessor:
    """Takes deliveries, and brings what they say to the books and the poller."""

    def __init__(
        self,
        context: SessionContext,
        poller: Poller,
        resolver: UnknownResolver,
        *,
        keys: Keys | None,
        trust: CallbackTrust,
        insecure_hosts: frozenset[str],
        download_hosts: frozenset[str],
    ) -> None:
        """Start with nothing received; without *keys* (`None`) nothing is authentic."""
        self._context = context
        self._registry = context.registry
        self._poller = poller
        self._resolver = resolver
        self._keys = keys
        self._trust = trust
        self._insecure_hosts = insecure_hosts
        self._download_hosts = download_hosts
        self._early_callbacks = EarlyCallbackBuffer()
        self._warned: set[str] = set()
        self._rejected = Budget(_MAX_REJECTED_PER_MINUTE, 60.0)
        self._received = {
            result: Budget(_MAX_RECEIVED_PER_MINUTE, 60.0) for result in CallbackResult
        }
        context.on_followed = self._use_early
        context.on_unknown = self._use_early_for_unknown

    async def handle(self, headers: Headers, body: bytes, query: str | bytes) -> CallbackResult:
        """
        Take one delivery, and wait until what it says of its task is written down.

        Raises:
            SignatureError: It is not authentic.

            CallbackFormatError: It cannot be read.

            LedgerError: What it says could not be written down.

            TypeError: An argument has the wrong type.
        """
        attempt_id = parse_attempt(query)
        try:
            if self._keys is not None:
                now_unix_s = self._context.clock.time()
                task_id, _, root = authenticate(
                    headers, body, keys=self._keys, now_unix_s=now_unix_s
                )
            else:
                task_id, root = read_body(body)
        except (SignatureError, CallbackFormatError) as error:
            self._reject(error)
            raise
        result = self._take(task_id, root, attempt_id)
        budget = self._received[result]
        # A callback settles once.
        if result is CallbackResult.SETTLED or self._admits(budget):
            self._context.emit(
                "CallbackReceived",
                task_id=task_id,
                result=result,
                is_authentic=self._keys is not None,
            )
        await self._context.ledger_writer.flush(task_id)
        return result

    def _reject(self, error: SignatureError | CallbackFormatError) -> None:
        self._registry.counters.rejected_callbacks += 1
        reason = error.reason if isinstance(error, SignatureError) else "format"
        # Once per reason: whoever knows the address could fill the logs.
        if reason not in self._warned:
            self._warned.add(reason)
            _logger.warning("refused a callback, and will not log the next: %s", error)
        if self._admits(self._rejected):
            self._context.emit("CallbackRejected", error=error.about())

    def _admits(self, budget: Budget) -> bool:
        return budget.admit(self._context.clock.monotonic()) is not None

    def _parse(self, task_id: str, root: JsonObject, attempt_id: str | None) -> VerifiedCallback:
        """Return what of a callback is looked at, now or once its task is known."""
        url = None
        if (
            self._keys is not None
            and self._trust is CallbackTrust.PAYLOAD
            and attempt_id is not None
        ):
            url = find_wav_url(root)
        return VerifiedCallback(task_id, attempt_id, url)

    def _may_settle(self, conversion: ConversionEntry, callback: VerifiedCallback) -> bool:
        """Return whether a callback is believed without asking the service."""
        is_ours = (
            conversion.origin is Origin.SUBMITTED and conversion.attempt_id == callback.attempt_id
        )
        return is_ours and callback.wav_url is not None and self._is_known(callback.wav_url)

    def _is_known(self, url: URL) -> bool:
        """Return whether files may be fetched from *url*, on a host that the service named."""
        try:
            check_download_url(
                url, insecure_hosts=self._insecure_hosts, download_hosts=self._download_hosts
            )
        except ValueError:
            return False
        return self._context.hosts.note_use(host_and_port(url))

    # --- what it is about --------------------------------------------------------------

    def _take(self, task_id: str, root: JsonObject, attempt_id: str | None) -> CallbackResult:
        explains = self._keys is not None and self._match_unknown(task_id, attempt_id)
        conversions = self._registry.known(task_id)
        if conversions:
            callback = self._parse(task_id, root, attempt_id)
            # An attached task may turn out to be one that is submitted here.
            results = [self._apply(conversion, callback) for conversion in conversions]
            is_settled = CallbackResult.SETTLED in results
            return CallbackResult.SETTLED if is_settled else CallbackResult.POLLING
        result = CallbackResult.UNKNOWN_TASK
        if self._registry.has_ended(task_id):
            self._registry.counters.duplicate_results += 1
            result = CallbackResult.DUPLICATE
        else:
            self._registry.counters.unknown_task_callbacks += 1
            if self._keys is not None:
                if not self._is_of_ours(attempt_id):
                    self._context.health.mark_unhealthy()
                callback = self._parse(task_id, root, attempt_id)
                self._early_callbacks.put(callback, self._context.clock.monotonic())
                if attempt_id is not None and self._registry.is_sending(attempt_id):
                    self._context.ledger_writer.record_callback(attempt_id, task_id)
        return CallbackResult.POLLING if explains else result

    def _is_of_ours(self, attempt_id: str | None) -> bool:
        """Return whether the delivery of a task we do not know names a submit of ours."""
        return attempt_id is not None and (
            self._registry.is_sending(attempt_id)
            or self._registry.unknown_submit(attempt_id) is not None
        )

    def _match_unknown(self, task_id: str, attempt_id: str | None) -> bool:
        """Have a lost submit looked into that the delivery names; return whether it does."""
        if attempt_id is None or self._registry.unknown_submit(attempt_id) is None:
            return False
        self._context.ledger_writer.record_callback(attempt_id, task_id)
        self._look_up(task_id, attempt_id)
        return True

    def _apply(self, conversion: ConversionEntry, callback: VerifiedCallback) -> CallbackResult:
        """Take what a callback says of a conversion in flight."""
        now = self._context.clock.monotonic()
        if self._keys is not None:
            conversion.is_called_back = True
            self._poller.reconsider()
        if not self._may_settle(conversion, callback):
            self._poller.request_poll(conversion.task_id)
            return CallbackResult.POLLING
        record = TaskRecord(callback.task_id, TaskState.SUCCEEDED, wav_url=callback.wav_url)
        self._registry.observe(conversion, record, now, "callback")
        self._context.finish_conversion(conversion)
        return CallbackResult.SETTLED

    # --- what came too early, or instead of an answer -------------------------------------

    def restore(self, named: Mapping[str, str]) -> None:
        """Go on with what callbacks named in an earlier run: a task for each lost attempt."""
        for attempt_id, task_id in named.items():
            if self._registry.unknown_submit(attempt_id) is not None:
                self._look_up(task_id, attempt_id)

    def _use_early(self, conversion: ConversionEntry) -> None:
        """A task has become known: its callback may have been here before."""
        now = self._context.clock.monotonic()
        # Attaching explains no submit: one that is lost later must still find it.
        is_attached = conversion.origin is Origin.ATTACHED
        find = self._early_callbacks.get if is_attached else self._early_callbacks.pop
        callback = find(conversion.task_id, now)
        if callback is not None:
            _ = self._apply(conversion, callback)

    def _use_early_for_unknown(self, unknown: UnknownSubmit) -> None:
        """A submit's answer is lost: its callback may have been here before."""
        now = self._context.clock.monotonic()
        for task_id in self._early_callbacks.find_by_attempt(unknown.attempt_id, now):
            self._look_up(task_id, unknown.attempt_id)

    def _look_up(self, task_id: str, attempt_id: str) -> None:
        """Have the service say whether the lost submit *attempt_id* made *task_id*."""

        def on_record(record: TaskRecord | None) -> bool:
            unknown = self._registry.unknown_submit(attempt_id)
            if unknown is None:
                return True  # It was resolved meanwhile.
            return record is not None and self._attribute(record, unknown)

        self._poller.reconsider()
        until = self._context.clock.monotonic() + BUFFERED_S
        self._poller.look_up(TaskLookup(task_id, on_record, until))

    def _attribute(self, record: TaskRecord, unknown: UnknownSubmit) -> bool:
        """Adopt the task of *record* if the lost submit made it; nothing else tells more."""
        url = find_callback_url(record)
        is_taken = any(
            followed.track not in {None, unknown.track}
            for followed in self._registry.known(record.task_id)
        )
        if (
            is_taken
            or record.audio_id not in {None, unknown.track.audio_id}
            or (url is not None and find_attempt(record) != unknown.attempt_id)
            or is_called_back_elsewhere(record, self._context.callback_url)
        ):
            # Once for each lost submit: whoever knows its attempt could fill the logs.
            level = logging.DEBUG if unknown.attempt_id in self._warned else logging.WARNING
            self._warned.add(unknown.attempt_id)
            _logger.log(
                level,
                "a callback of task %s names the lost attempt %s, but the task's record "
                "does not show that it made the task: not adopted",
                record.task_id,
                unknown.attempt_id,
            )
            return True
        if record.audio_id is None or url is None:
            return False  # It does not say, or not yet.
        _ = self._early_callbacks.pop(record.task_id, self._context.clock.monotonic())
        # What the record says of the task, the poller then brings to its conversion.
        if self._context.ledger_writer.is_enabled:
            _ = self._context.ledger_writer.spawn(self._resolver.adopt(unknown, record.task_id))
            return False  # Enough once it is written.
        self._resolver.resolve(unknown, record.task_id)
        return True
