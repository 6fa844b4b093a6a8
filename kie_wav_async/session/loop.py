"""
The session's loop: it tells the core what happened, and does what the core returns.

It alone holds what the core must not know: tasks, timers, the transport, the ledger and
the waiters' futures.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from kie_wav_async.callbacks.callback_url import build_callback_url
from kie_wav_async.core.effects import (
    BeginAttempt,
    Emit,
    FinishAttempt,
    FinishTask,
    KeepHost,
    Log,
    Notify,
    NotifySubmit,
    Now,
    PollExisting,
    ReadCredits,
    RecordCallback,
    ResolveAttempt,
    SendPoll,
    SendSubmit,
    WriteTask,
)
from kie_wav_async.core.state_machine import Phase, track_of
from kie_wav_async.downloads.url_policy import host_and_port
from kie_wav_async.errors import KieWavError, LedgerError
from kie_wav_async.models import TaskState
from kie_wav_async.protocol.responses import is_answered, parse_record
from kie_wav_async.protocol.submit_result import classify, classify_failure
from kie_wav_async.session.context import CLOSE_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from kie_wav_async.core.effects import Effect
    from kie_wav_async.core.session_core import SessionCore
    from kie_wav_async.core.state_machine import TaskEntry, Waiter
    from kie_wav_async.errors import SessionClosedError
    from kie_wav_async.models import TaskRecord
    from kie_wav_async.protocol.submit_result import SubmitResult
    from kie_wav_async.session.context import SessionContext

_logger = logging.getLogger("kie_wav_async")

P = ParamSpec("P")
T = TypeVar("T")


class SessionLoop:
    """
    Drives the core of one session.

    Attributes:
        context: The session's way out: transport, ledger, clock, events.

        core: What decides.

        capacity_listeners: Called when the queue has room, as often as that may be news.

        dispatch_listeners: Called before a submit may go out, to take back what is not
            wanted any more.
    """

    def __init__(self, context: SessionContext, core: SessionCore) -> None:
        self.context = context
        self.core = core
        self.capacity_listeners: set[Callable[[], None]] = set()
        self.dispatch_listeners: set[Callable[[], None]] = set()
        self._timer = context.timer(self._on_time)
        self._effects: deque[Effect] = deque()
        self._is_running = False
        self._idle: asyncio.Future[None] | None = None
        # What runs in a task of its own, and what is done at once.
        self._tasks: dict[type, Callable[[Any], Coroutine[Any, Any, None]]] = {
            SendSubmit: self._submit,
            SendPoll: self._poll,
            PollExisting: self._poll_existing,
            ReadCredits: self._read_credits,
            BeginAttempt: self._begin_attempt,
            WriteTask: self._write_task,
        }
        self._actions: dict[type, Callable[[Any], None]] = {
            FinishTask: self._start_finish_task,
            ResolveAttempt: self._start_resolve,
            FinishAttempt: self._finish_attempt,
            RecordCallback: self._record_callback,
            KeepHost: self._keep_host,
            Notify: self._notify,
            NotifySubmit: self._notify_submit,
            Emit: self._emit,
            Log: self._log,
        }

    # --- what happened, and what follows --------------------------------------------------------

    def _now(self) -> Now:
        return Now(self.context.clock.monotonic(), self.context.clock.time())

    def tell(
        self,
        what: Callable[Concatenate[Now, P], list[Effect]],
        *args: P.args,
        **details: P.kwargs,
    ) -> None:
        """Tell the core what happened, by one of its methods, and do what follows."""
        self.do(what(self._now(), *args, **details))

    def ask(
        self,
        what: Callable[Concatenate[Now, P], tuple[T, list[Effect]]],
        *args: P.args,
        **details: P.kwargs,
    ) -> T:
        """Ask the core for something, by one of its methods; do what follows, and return it."""
        found, effects = what(self._now(), *args, **details)
        self.do(effects)
        return found

    def do(self, effects: list[Effect]) -> None:
        """Do what the core returned, in order; what that causes comes after it."""
        left = self._effects
        left.extend(effects)
        if self._is_running:
            return
        self._is_running = True
        queue = self.core.queue
        try:
            while left or (queue.has_queued and self._dispatch()):
                effect = left.popleft()
                begin = self._tasks.get(type(effect))
                if begin is None:
                    self._actions[type(effect)](effect)
                else:
                    _ = self.context.spawn(begin(effect))
        finally:
            self._is_running = False
            self._settle()

    def _dispatch(self) -> bool:
        """Have submits sent that may be sent by now; return whether that leaves much to do."""
        if self.dispatch_listeners:
            for listener in tuple(self.dispatch_listeners):
                listener()
        self._effects.extend(self.core.dispatch(self._now()))
        return bool(self._effects)

    def _settle(self) -> None:
        self._timer.set(self.core.next_at)
        if self._idle is not None and not self.core.registry.sending:
            if not self._idle.done():
                self._idle.set_result(None)
            self._idle = None
        if not self.capacity_listeners or self.context.state.closed is not None:
            return
        if self.core.queue.has_capacity:
            for listener in tuple(self.capacity_listeners):
                listener()

    def _on_time(self) -> None:
        self.tell(self.core.on_time)

    # --- waiters ---------------------------------------------------------------

    def add_waiter(self, entry: TaskEntry, waiter: Waiter, *, for_submit: bool = False) -> None:
        """Notify *waiter* when the wait for the file, or only for the submit, is over."""
        entry.add_waiter(waiter, for_submit=for_submit)
        if entry.phase is Phase.ACCEPTED and self.core.is_polling_stopped:
            self.tell(self.core.resume_polling)

    def drop_waiter(self, entry: TaskEntry, waiter: Waiter) -> None:
        """Forget *waiter*; a queued submit that nothing waits for is cancelled."""
        if entry.drop_waiter(waiter) and entry.phase is Phase.QUEUED:
            self.do(self.core.abandon(entry))

    @staticmethod
    def _notify(effect: Notify) -> None:
        for waiter in effect.entry.take_waiters():
            if not waiter.done():
                waiter.set_result(effect.error)

    @staticmethod
    def _notify_submit(effect: NotifySubmit) -> None:
        for waiter in effect.entry.take_submit_waiters():
            if not waiter.done():
                waiter.set_result(effect.error)

    def _emit(self, effect: Emit) -> None:
        self.context.emit(effect.kind, **effect.fields)

    @staticmethod
    def _log(effect: Log) -> None:
        getattr(_logger, effect.level)(effect.message, *effect.args)

    # --- submits ---------------------------------------------------------------

    async def _submit(self, effect: SendSubmit) -> None:
        entry = effect.entry
        result: SubmitResult | None = None
        try:
            result = await self._exchange(entry)
        finally:
            if result is None:
                # Cancelled by a session that closes, or a bug of ours.
                self.tell(self.core.on_submit_cut, entry)
            else:
                self.tell(self.core.on_submit_result, entry, result)

    async def _exchange(self, entry: TaskEntry) -> SubmitResult:
        """Send a submit, and return what came of it."""
        context = self.context
        callback_url = build_callback_url(context.callback_url, entry.attempt_id)
        request = context.requests.submit(track_of(entry), callback_url)
        try:
            response = await context.send(request)
        except Exception as error:
            if not isinstance(error, KieWavError):
                # A transport of the user's may raise anything, at any moment.
                _logger.exception("the transport failed in a way it should not")
            return classify_failure(error)
        return classify(response)

    async def _begin_attempt(self, effect: BeginAttempt) -> None:
        entry = effect.entry
        try:
            known = await self.context.ledger_writer.begin_attempt(
                track_of(entry), effect.attempt_id, again=entry.is_again, is_repeat=effect.is_repeat
            )
        except LedgerError as error:
            self.tell(self.core.on_intent_failed, entry, error)
        except asyncio.CancelledError:
            # The session closes, and nothing has left.
            self.tell(self.core.on_intent_failed, entry, None)
            raise
        else:
            self.tell(self.core.on_intent_written, entry, known)

    async def _write_task(self, effect: WriteTask) -> None:
        try:
            await self.context.ledger_writer.finish_attempt(
                effect.attempt_id,
                effect.outcome,
                task_id=effect.task_id,
                accepted_unix_s=effect.accepted_unix_s,
            )
        except LedgerError as error:
            self.tell(self.core.on_task_written, effect, error)
        except asyncio.CancelledError:
            self.tell(self.core.on_task_written, effect, None)
            raise
        else:
            self.tell(self.core.on_task_written, effect, None)

    async def _read_credits(self, _: ReadCredits) -> None:
        status, is_up = None, False
        try:
            response = await self.context.send(self.context.requests.credits())
            status, is_up = response.status, is_answered(response)
        except Exception as failure:  # noqa: BLE001 - a transport of the user's may raise anything
            _logger.debug("no answer to the read before a submit: %s", failure)
        finally:
            self.tell(self.core.on_read, status, is_answered=is_up)

    async def drain(self) -> None:
        """Wait until no submit is in progress, 25 s at most."""
        if not self.core.registry.sending:
            return
        empty = self._idle = asyncio.get_running_loop().create_future()

        def give_up() -> None:
            if not empty.done():
                self._idle = None
                empty.set_result(None)

        timer = self.context.timer(give_up)
        timer.set(self.context.clock.monotonic() + CLOSE_TIMEOUT_S)
        try:
            await empty
        finally:
            timer.cancel()

    # --- polls ---------------------------------------------------------------

    async def _fetch(self, task_id: str) -> TaskRecord | None:
        response = await self.context.send(self.context.requests.poll(task_id))
        return parse_record(response, task_id)

    async def _poll(self, effect: SendPoll) -> None:
        try:
            record = await self._fetch(effect.task_id)
        except Exception as error:
            if not isinstance(error, KieWavError):
                # A transport of the user's may raise anything; the wait goes on.
                _logger.exception("polling task %s failed; asking again later", effect.task_id)
            self.tell(self.core.on_poll_failed, effect, error)
        else:
            self.tell(self.core.on_poll_result, effect, record, host=_host_of(record))

    async def _poll_existing(self, effect: PollExisting) -> None:
        try:
            record = await self._fetch(effect.task_id)
        except asyncio.CancelledError:
            self.tell(self.core.on_existing_polled, effect, None, is_cut=True)
            raise
        except Exception as failure:  # noqa: BLE001 - a transport of the user's may raise anything
            _logger.debug("no news of task %s: %s", effect.task_id, failure)
            self.tell(self.core.on_existing_polled, effect, None, failure)
        else:
            self.tell(self.core.on_existing_polled, effect, record)

    # --- what is written ---------------------------------------------------------------

    def _finish_attempt(self, effect: FinishAttempt) -> None:
        self.context.ledger_writer.finish_attempt_later(
            effect.attempt_id, effect.outcome, task_id=effect.task_id, error=effect.error
        )

    def _record_callback(self, effect: RecordCallback) -> None:
        self.context.ledger_writer.record_callback(effect.attempt_id, effect.task_id)

    def _keep_host(self, effect: KeepHost) -> None:
        self.context.ledger_writer.keep_host(effect.host)

    def _start_finish_task(self, effect: FinishTask) -> None:
        entry = effect.entry
        _ = self.context.ledger_writer.spawn(self._finish_task(entry), entry.task_id)

    async def _finish_task(self, entry: TaskEntry) -> None:
        """Write down how a task ended, and only then let its waiters know."""
        try:
            await self.context.ledger_writer.finish_task(entry.task_id, entry.outcome)
        except LedgerError as error:
            self.tell(self.core.on_end_written, entry, error)
            raise
        self.tell(self.core.on_end_written, entry, None)

    def _start_resolve(self, effect: ResolveAttempt) -> None:
        _ = self.context.ledger_writer.spawn(self._resolve(effect))

    async def _resolve(self, effect: ResolveAttempt) -> None:
        await self.context.ledger_writer.resolve_attempt(effect.unknown.attempt_id, effect.task_id)
        self.tell(self.core.on_resolved, effect)

    # --- closing ---------------------------------------------------------------

    def close(self, error: SessionClosedError) -> None:
        """Begin nothing more, and end every wait with *error*."""
        self._timer.cancel()
        self.do([*self.core.close(error), *(Notify(one, error) for one in self.core.all_waits())])


def _host_of(record: TaskRecord | None) -> str | None:
    """Return the host of the file that a record names, if it says that the conversion succeeded."""
    if record is None or record.state is not TaskState.SUCCEEDED or record.wav_url is None:
        return None
    return host_and_port(record.wav_url)
