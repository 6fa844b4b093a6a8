"""
The way of a read: requests that cost nothing, so they may be repeated.

Scheduled polls do not come this way; for them the next poll is the retry.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from kie_wav_async._support.tasks import is_caller_cancelled, start
from kie_wav_async.core.policies import TRANSIENT_ERRORS, RetryPolicy, retry_delay_s
from kie_wav_async.errors import (
    RateLimitedError,
    ServiceError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from kie_wav_async.core.counters import Counters
    from kie_wav_async.protocol.http_messages import WireRequest, WireResponse
    from kie_wav_async.session.context import SessionContext

T = TypeVar("T")


class ReadClient:
    """Sends reads for callers who wait, and repeats them by the policy."""

    def __init__(self, context: SessionContext, counters: Counters, retry: RetryPolicy) -> None:
        self._context = context
        self._counters = counters
        self._retry = retry
        self._sleepers: set[asyncio.Future[None]] = set()
        self._sends: set[asyncio.Task[WireResponse]] = set()

    async def read(
        self, request: WireRequest, parse: Callable[[WireResponse], T], *, is_poll: bool = False
    ) -> T:
        """Send a request that costs nothing, again if need be, and read the answer."""
        attempt = 1
        while True:
            self._context.state.verify_open()
            self._counters.polls += is_poll
            try:
                return parse(await self._send(request))
            except TRANSIENT_ERRORS as error:
                self._counters.rejected_429 += isinstance(error, RateLimitedError)
                if self._context.state.closed is not None:
                    raise self._context.state.closed.about() from error
                if attempt >= self._retry.attempts:
                    raise
                asked = error.retry_after_s if isinstance(error, ServiceError) else None
                delay_s = retry_delay_s(self._retry, attempt, self._context.random(), asked)
            attempt += 1
            await self._sleep(delay_s)

    async def _send(self, request: WireRequest) -> WireResponse:
        """Send in a task that closing can cancel; the caller's own we must not."""
        session_state = self._context.state
        task = start(self._context.send(request))
        self._sends.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if session_state.closed is None or is_caller_cancelled():
                raise
            raise session_state.closed.about() from None
        finally:
            self._sends.discard(task)
            # Its error's traceback holds this frame: no cycle through the task.
            del task

    async def _sleep(self, delay_s: float) -> None:
        """Wait, or less if the session closes."""
        sleeper: asyncio.Future[None] = self._context.state.verify_loop().create_future()

        def wake() -> None:
            if not sleeper.done():
                sleeper.set_result(None)

        timer = self._context.clock.call_at(self._context.clock.monotonic() + delay_s, wake)
        self._sleepers.add(sleeper)
        try:
            await sleeper
        finally:
            timer.cancel()
            self._sleepers.discard(sleeper)

    @property
    def in_progress(self) -> tuple[asyncio.Task[WireResponse], ...]:
        """The reads that have no answer yet."""
        return tuple(self._sends)

    def close(self) -> None:
        """Let nobody wait any more, for an answer or for a repeat; see `in_progress`."""
        for task in self._sends:
            task.cancel()
        for sleeper in self._sleepers:
            if not sleeper.done():
                sleeper.set_result(None)
