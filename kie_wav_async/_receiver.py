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

from kie_wav_async import events
from kie_wav_async._budget import Budget
from kie_wav_async._callback import authenticate, find_wav_url, read_body
from kie_wav_async._callback_url import (
    find_attempt,
    find_callback_url,
    is_called_back_elsewhere,
    parse_attempt,
)
from kie_wav_async._inbox import KEPT_S, Inbox, Notice
from kie_wav_async._lifecycle import Origin
from kie_wav_async._link import host_and_port, verify_link
from kie_wav_async._models import CallbackTrust, CallbackVerdict, TaskRecord, TaskState
from kie_wav_async._poller import Probe
from kie_wav_async.errors import CallbackFormatError, SignatureError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from yarl import URL

    from kie_wav_async._conversion import Conversion
    from kie_wav_async._desk import Desk
    from kie_wav_async._envelope import JsonObject
    from kie_wav_async._models import UnknownSubmit
    from kie_wav_async._poller import Poller
    from kie_wav_async._signature import Headers, Keys
    from kie_wav_async._submitter import Submitter

_logger = logging.getLogger("kie_wav_async")

#: Most events a minute about callbacks that were refused, and about those of each
#: verdict but SETTLED: anybody who has seen one callback can repeat it without end.
_REFUSED_A_MINUTE = 100
_RECEIVED_A_MINUTE = 600


class Receiver:
    """Takes deliveries, and brings what they say to the books and the poller."""

    def __init__(
        self,
        desk: Desk,
        poller: Poller,
        submitter: Submitter,
        *,
        keys: Keys | None,
        trust: CallbackTrust,
        insecure_hosts: frozenset[str],
        download_hosts: frozenset[str],
    ) -> None:
        """Start with nothing received; without *keys* (`None`) nothing is authentic."""
        self._desk = desk
        self._registry = desk.registry
        self._poller = poller
        self._submitter = submitter
        self._keys = keys
        self._trust = trust
        self._insecure_hosts = insecure_hosts
        self._download_hosts = download_hosts
        self._inbox = Inbox()
        self._warned: set[str] = set()
        self._refused = Budget(_REFUSED_A_MINUTE, 60.0)
        self._received = {verdict: Budget(_RECEIVED_A_MINUTE, 60.0) for verdict in CallbackVerdict}
        desk.on_followed = self._look_for_early
        desk.on_lost = self._look_for_lost

    async def deliver(self, headers: Headers, body: bytes, query: str | bytes) -> CallbackVerdict:
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
                now_unix_s = self._desk.clock.time()
                task_id, _, root = authenticate(
                    headers, body, keys=self._keys, now_unix_s=now_unix_s
                )
            else:
                task_id, root = read_body(body)
        except (SignatureError, CallbackFormatError) as error:
            self._refuse(error)
            raise
        verdict = self._take(task_id, root, attempt_id)
        budget = self._received[verdict]
        # A callback settles once.
        if verdict is CallbackVerdict.SETTLED or self._admits(budget):
            self._desk.emit(
                events.CallbackReceived,
                task_id=task_id,
                verdict=verdict,
                is_authentic=self._keys is not None,
            )
        await self._desk.journal.flush(task_id)
        return verdict

    def _refuse(self, error: SignatureError | CallbackFormatError) -> None:
        self._registry.tally.refused_callbacks += 1
        reason = error.reason if isinstance(error, SignatureError) else "format"
        # Once per reason: whoever knows the address could fill the logs.
        if reason not in self._warned:
            self._warned.add(reason)
            _logger.warning("refused a callback, and will not log the next: %s", error)
        if self._admits(self._refused):
            self._desk.emit(events.CallbackRefused, error=error.about())

    def _admits(self, budget: Budget) -> bool:
        return budget.admit(self._desk.clock.monotonic()) is not None

    def _notice_of(self, task_id: str, root: JsonObject, attempt_id: str | None) -> Notice:
        """Return what of a callback is looked at, now or once its task is known."""
        url = None
        if (
            self._keys is not None
            and self._trust is CallbackTrust.PAYLOAD
            and attempt_id is not None
        ):
            url = find_wav_url(root)
        return Notice(task_id, attempt_id, url)

    def _may_settle(self, conversion: Conversion, notice: Notice) -> bool:
        """Return whether a callback is believed without asking the service."""
        is_ours = (
            conversion.origin is Origin.SUBMITTED and conversion.attempt_id == notice.attempt_id
        )
        return is_ours and notice.wav_url is not None and self._is_known(notice.wav_url)

    def _is_known(self, url: URL) -> bool:
        """Return whether files may be fetched from *url*, on a host that the service named."""
        try:
            verify_link(
                url, insecure_hosts=self._insecure_hosts, download_hosts=self._download_hosts
            )
        except ValueError:
            return False
        return self._desk.hosts.use(host_and_port(url))

    # --- what it is about --------------------------------------------------------------

    def _take(self, task_id: str, root: JsonObject, attempt_id: str | None) -> CallbackVerdict:
        explains = self._keys is not None and self._explain(task_id, attempt_id)
        conversions = self._registry.known(task_id)
        if conversions:
            notice = self._notice_of(task_id, root, attempt_id)
            # An attached task may turn out to be one that is submitted here.
            verdicts = [self._apply(conversion, notice) for conversion in conversions]
            is_settled = CallbackVerdict.SETTLED in verdicts
            return CallbackVerdict.SETTLED if is_settled else CallbackVerdict.CONFIRMING
        verdict = CallbackVerdict.ORPHAN
        if self._registry.has_ended(task_id):
            self._registry.tally.duplicates += 1
            verdict = CallbackVerdict.DUPLICATE
        else:
            self._registry.tally.orphans += 1
            if self._keys is not None:
                if not self._is_of_ours(attempt_id):
                    self._desk.health.end()
                notice = self._notice_of(task_id, root, attempt_id)
                self._inbox.keep(notice, self._desk.clock.monotonic())
                if attempt_id is not None and self._registry.is_sending(attempt_id):
                    self._desk.journal.hear(attempt_id, task_id)
        return CallbackVerdict.CONFIRMING if explains else verdict

    def _is_of_ours(self, attempt_id: str | None) -> bool:
        """Return whether the delivery of a task we do not know names a submit of ours."""
        return attempt_id is not None and (
            self._registry.is_sending(attempt_id)
            or self._registry.unknown_submit(attempt_id) is not None
        )

    def _explain(self, task_id: str, attempt_id: str | None) -> bool:
        """Have a lost submit looked into that the delivery names; return whether it does."""
        if attempt_id is None or self._registry.unknown_submit(attempt_id) is None:
            return False
        self._desk.journal.hear(attempt_id, task_id)
        self._probe(task_id, attempt_id)
        return True

    def _apply(self, conversion: Conversion, notice: Notice) -> CallbackVerdict:
        """Take what a callback says of a conversion in flight."""
        now = self._desk.clock.monotonic()
        if self._keys is not None:
            conversion.is_called_back = True
            self._poller.reconsider()
        if not self._may_settle(conversion, notice):
            self._poller.hint(conversion.task_id)
            return CallbackVerdict.CONFIRMING
        record = TaskRecord(notice.task_id, TaskState.SUCCEEDED, wav_url=notice.wav_url)
        self._registry.observe(conversion, record, now, "callback")
        self._desk.ended(conversion)
        return CallbackVerdict.SETTLED

    # --- what came too early, or instead of an answer -------------------------------------

    def restore(self, named: Mapping[str, str]) -> None:
        """Go on with what callbacks named in an earlier run: a task for each lost attempt."""
        for attempt_id, task_id in named.items():
            if self._registry.unknown_submit(attempt_id) is not None:
                self._probe(task_id, attempt_id)

    def _look_for_early(self, conversion: Conversion) -> None:
        """A task has become known: its callback may have been here before."""
        now = self._desk.clock.monotonic()
        # Attaching explains no submit: one that is lost later must still find it.
        is_attached = conversion.origin is Origin.ATTACHED
        find = self._inbox.look_up if is_attached else self._inbox.take
        notice = find(conversion.task_id, now)
        if notice is not None:
            _ = self._apply(conversion, notice)

    def _look_for_lost(self, doubt: UnknownSubmit) -> None:
        """A submit's answer is lost: its callback may have been here before."""
        now = self._desk.clock.monotonic()
        for task_id in self._inbox.naming(doubt.attempt_id, now):
            self._probe(task_id, doubt.attempt_id)

    def _probe(self, task_id: str, attempt_id: str) -> None:
        """Have the service say whether the lost submit *attempt_id* made *task_id*."""

        def on_record(record: TaskRecord | None) -> bool:
            doubt = self._registry.unknown_submit(attempt_id)
            if doubt is None:
                return True  # It was resolved meanwhile.
            return record is not None and self._compare(record, doubt)

        self._poller.reconsider()
        until = self._desk.clock.monotonic() + KEPT_S
        self._poller.probe(Probe(task_id, on_record, until))

    def _compare(self, record: TaskRecord, doubt: UnknownSubmit) -> bool:
        """Adopt the task of *record* if the lost submit made it; nothing else tells more."""
        url = find_callback_url(record)
        is_taken = any(
            followed.track not in {None, doubt.track}
            for followed in self._registry.known(record.task_id)
        )
        if (
            is_taken
            or record.audio_id not in {None, doubt.track.audio_id}
            or (url is not None and find_attempt(record) != doubt.attempt_id)
            or is_called_back_elsewhere(record, self._desk.callback_url)
        ):
            # Once for each lost submit: whoever knows its attempt could fill the logs.
            level = logging.DEBUG if doubt.attempt_id in self._warned else logging.WARNING
            self._warned.add(doubt.attempt_id)
            _logger.log(
                level,
                "a callback of task %s names the lost attempt %s, but the task's record "
                "does not show that it made the task: not adopted",
                record.task_id,
                doubt.attempt_id,
            )
            return True
        if record.audio_id is None or url is None:
            return False  # It does not say, or not yet.
        _ = self._inbox.take(record.task_id, self._desk.clock.monotonic())
        # What the record says of the task, the poller then brings to its conversion.
        if self._desk.journal.is_kept:
            _ = self._desk.journal.spawn(self._submitter.adopt(doubt, record.task_id))
            return False  # Enough once it is written.
        self._submitter.resolve(doubt, record.task_id)
        return True
