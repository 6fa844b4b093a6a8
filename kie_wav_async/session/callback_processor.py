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
    parse_attempt,
)
from kie_wav_async.callbacks.payload import authenticate, find_wav_url, read_body
from kie_wav_async.core.early_callbacks import VerifiedCallback
from kie_wav_async.downloads.url_policy import check_download_url, host_and_port
from kie_wav_async.errors import CallbackFormatError, SignatureError, with_advice
from kie_wav_async.models import CallbackResult, CallbackTrust

if TYPE_CHECKING:
    from yarl import URL

    from kie_wav_async.callbacks.signature import Headers, Keys
    from kie_wav_async.protocol.envelope import JsonObject
    from kie_wav_async.session.loop import SessionLoop

_logger = logging.getLogger("kie_wav_async")

#: Most events a minute about callbacks that were refused, and about those of each
#: result but SETTLED: anybody who has seen one callback can repeat it without end.
_MAX_REJECTED_PER_MINUTE = 100
_MAX_RECEIVED_PER_MINUTE = 600


class CallbackProcessor:
    """Takes deliveries, and brings what they say to the core."""

    def __init__(
        self,
        loop: SessionLoop,
        *,
        keys: Keys | None,
        trust: CallbackTrust,
        insecure_hosts: frozenset[str],
        download_hosts: frozenset[str],
    ) -> None:
        """Start with nothing received; without *keys* (`None`) nothing is authentic."""
        self._loop = loop
        self._context = loop.context
        self._registry = loop.core.registry
        self._keys = keys
        self._trust = trust
        self._insecure_hosts = insecure_hosts
        self._download_hosts = download_hosts
        self._warned: set[str] = set()
        self._rejected = Budget(_MAX_REJECTED_PER_MINUTE, 60.0)
        self._received = {
            result: Budget(_MAX_RECEIVED_PER_MINUTE, 60.0) for result in CallbackResult
        }

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
        result = self._loop.ask(
            self._loop.core.on_callback,
            self._parse(task_id, root, attempt_id),
            is_authentic=self._keys is not None,
        )
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
            told = with_advice(error)
            _logger.warning("refused a callback, and will not log the next: %s", told)
        if self._admits(self._rejected):
            self._context.emit("CallbackRejected", error=error.about())

    def _admits(self, budget: Budget) -> bool:
        return budget.admit(self._context.clock.monotonic()) is not None

    def _parse(self, task_id: str, root: JsonObject, attempt_id: str | None) -> VerifiedCallback:
        """Return what of a callback is looked at, now or once its task is known."""
        is_looked_at = (
            self._keys is not None
            and self._trust is CallbackTrust.PAYLOAD
            and attempt_id is not None
            # Of a task that is over nothing is.
            and (not self._registry.has_ended(task_id) or self._registry.known(task_id))
        )
        url = find_wav_url(root) if is_looked_at else None
        if url is None or not self._may_be_fetched(url):
            return VerifiedCallback(task_id, attempt_id)
        return VerifiedCallback(task_id, attempt_id, url, host_and_port(url))

    def _may_be_fetched(self, url: URL) -> bool:
        """Return whether files may be fetched from *url*."""
        try:
            check_download_url(
                url, insecure_hosts=self._insecure_hosts, download_hosts=self._download_hosts
            )
        except ValueError:
            return False
        return True
