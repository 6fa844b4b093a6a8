"""
Dependencies shared by a session's components, and what all of them do.

The components know the context, and not the session.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib
import logging
import random
import secrets
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final

import attrs

from kie_wav_async._support.secret import Secret, drop_frames
from kie_wav_async._support.tasks import start
from kie_wav_async._support.timer import Timer
from kie_wav_async.errors import KieWavError
from kie_wav_async.protocol.redaction import redact
from kie_wav_async.session.ledger_writer import LedgerWriter
from kie_wav_async.session.session_state import SessionState

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from kie_wav_async._support.clock import Clock
    from kie_wav_async.events import Event, EventName
    from kie_wav_async.http.transport import Transport
    from kie_wav_async.ledger.base import Ledger
    from kie_wav_async.protocol.http_messages import WireRequest, WireResponse
    from kie_wav_async.protocol.requests import RequestBuilder

#: A shorter key is a placeholder, and may well be a word of any answer.
_SECRET_FROM: Final = 8

#: How long closing waits for what is in progress. Process managers commonly kill
#: after 30 s.
CLOSE_TIMEOUT_S: Final = 25.0

#: How long the ledger has for its own closing, if nothing is left of that.
_LAST_TIMEOUT_S: Final = 3.0

_logger = logging.getLogger("kie_wav_async")


class SessionContext:
    """
    The shared parts of one session.

    Attributes:
        state: What the conversions share.

        clock: The only time there is.

        transport: The only way out; `send` goes through it.

        requests: Builds what the transport sends.

        ledger_writer: Writes into the ledger, if there is one.

        callback_url: Where the service is told to post, before the attempt is named.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        transport: Transport,
        requests: RequestBuilder,
        api_key: Secret[str],
        callback_url: str,
        on_event: Callable[[Event], object] | None,
        ledger: Ledger | None = None,
    ) -> None:
        self.state = SessionState()
        self.clock = clock
        self.transport = transport
        self.requests = requests
        self.ledger_writer = LedgerWriter(ledger, clock)
        self.callback_url = callback_url
        self._api_key = api_key if len(api_key.reveal()) >= _SECRET_FROM else None
        self._on_event = on_event
        # What not all programs need is not loaded with the package; and not when it is
        # needed, which must not fail for want of a descriptor.
        _ = importlib.import_module("decimal")  # For credits.
        self._events = None if on_event is None else importlib.import_module("kie_wav_async.events")
        self._tasks: set[asyncio.Task[None]] = set()

    def random(self) -> float:
        """Draw a number in [0, 1), for jitter."""
        return random.random()  # noqa: S311 - jitter is no secret

    def attempt_id(self) -> str:
        """Draw the name of a new attempt: 32 hex characters nobody can guess."""
        return secrets.token_hex(16)

    async def send(self, request: WireRequest) -> WireResponse:
        """
        Send *request* and return the answer, without the API key should it repeat it.

        Error pages of proxies show the headers they got, and answers end up in
        errors and logs.

        Raises:
            KieWavError: There is no usable answer; see `Transport.send`.
        """
        before = sys.exception()
        try:
            response = await self.transport.send(request)
            # In here: what is no proper response of a user's transport raises, too.
            return response if self._api_key is None else _without(self._api_key.reveal(), response)
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, KieWavError):
                # A bug of the transport's: where it is stays to be read, as text.
                error.add_note("".join(traceback.format_tb(error.__traceback__)))
            drop_frames(error, before)
            raise

    def timer(self, callback: Callable[[], None]) -> Timer:
        """Return a timer that is not set."""
        return Timer(self.clock, callback)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        """Run *coroutine* as a task of the session's, which outlives its callers."""
        _ = self.state.verify_loop()
        task = start(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("a task of the session died; please report this", exc_info=error)

    async def cancel_tasks(self) -> None:
        """Cancel what is still running, and wait until it has stopped; see `stop`."""
        await self.stop(*self._tasks)

    async def stop(self, *tasks: asyncio.Future[Any]) -> None:
        """Cancel *tasks* and wait until they have stopped, 25 s at most."""
        for task in tasks:
            task.cancel()
        running = await self._wait(tasks)
        if running:
            _logger.warning(
                "%d tasks did not stop when cancelled: does the source of a catalog "
                "swallow its cancellation?",
                running,
            )

    async def finish_writing(self, until_mono_s: float) -> None:
        """Wait until *until_mono_s* for what is being written, and for what comes of that."""
        self.ledger_writer.write_unwritten()
        waited: set[asyncio.Task[Any]] = set()
        while calls := self.ledger_writer.calls - waited:
            await self.finish(*calls, until_mono_s=until_mono_s)
            waited |= calls

    async def close_ledger(self, until_mono_s: float) -> None:
        """Close the ledger, by *until_mono_s* or in a moment; log it if it does not close."""
        if not self.ledger_writer.is_enabled:
            return
        closing = self.ledger_writer.spawn(self.ledger_writer.aclose())
        until = max(until_mono_s, self.clock.monotonic() + _LAST_TIMEOUT_S)
        await self.finish(closing, until_mono_s=until)
        if closing.cancelled():
            _logger.error("the ledger did not close in time")

    async def finish(self, *tasks: asyncio.Future[Any], until_mono_s: float) -> None:
        """Wait until *tasks* have ended, or *until_mono_s*; then cancel what has not."""
        if await self._wait(tasks, until_mono_s):
            await self.stop(*tasks)

    async def _wait(
        self, tasks: Iterable[asyncio.Future[Any]], until_mono_s: float | None = None
    ) -> int:
        """Wait until *tasks* have ended, 25 s at most or *until*; return how many have not."""
        running = {task for task in tasks if not task.done()}
        if not running:
            return 0
        stopped = self.state.verify_loop().create_future()

        def give_up() -> None:
            if not stopped.done():
                stopped.set_result(None)

        def note(task: asyncio.Future[Any]) -> None:
            running.discard(task)
            if not running:
                give_up()

        for task in tuple(running):
            task.add_done_callback(note)
        timer = self.timer(give_up)
        if until_mono_s is None:
            until_mono_s = self.clock.monotonic() + CLOSE_TIMEOUT_S
        timer.set(until_mono_s)
        try:
            await stopped
        finally:
            timer.cancel()
        return len(running)

    def emit(self, kind: EventName, **fields: object) -> None:
        """Tell the user's ``on_event``, if there is one, and mind nothing it raises."""
        if self._on_event is None:
            return
        at = dt.datetime.fromtimestamp(self.clock.time(), dt.UTC)
        try:
            self._on_event(getattr(self._events, kind)(at=at, **fields))
        except (Exception, asyncio.CancelledError):
            # Nothing is awaited here, so a cancellation is not meant for us.
            _logger.exception("on_event raised for %s; going on", kind)


def _without(key: str, response: WireResponse) -> WireResponse:
    """Return an answer without *key*."""
    # Nearly no answer of the service holds a backslash: two searches, and done.
    if key.encode() in response.body or b"\\" in response.body:
        response = attrs.evolve(response, body=redact(response.body, key))
    if key in (response.request_id or ""):
        response = attrs.evolve(response, request_id="[api key]")
    if key in (response.retry_after or ""):
        response = attrs.evolve(response, retry_after=None)
    return response
