"""
The way of a submit: out on the wire, and what to make of the answer.

A submit costs money and is not idempotent, so this room decides, for every end
an attempt can come to, whether it may be repeated: only if provably no byte has
left, or the service said that it created nothing. Everything else leaves the
attempt in doubt. A submit on the wire belongs to the session; whoever asked for
it may go away, and its answer still reaches the books.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from kie_wav_async import events
from kie_wav_async.callbacks.callback_url import build_callback_url
from kie_wav_async.core.policies import (
    MAINTENANCE_PROBE_S,
    RESUBMIT_AFTER_S,
    RetryPolicy,
    rate_limit_delay_s,
    retry_delay_s,
)
from kie_wav_async.core.state_machine import Origin, Phase
from kie_wav_async.core.submit_pause import UNKNOWN_IN_A_ROW
from kie_wav_async.errors import (
    AlreadyExistsError,
    AuthenticationError,
    EndpointGoneError,
    FeatureDisabledError,
    InsufficientCreditsError,
    KieWavError,
    LedgerError,
    MaintenanceError,
    RateLimitedError,
    ServerError,
    SessionClosedError,
    SubmitUnknownError,
    TransportError,
    WireFormatError,
)
from kie_wav_async.ledger.models import AttemptOutcome, TrackState
from kie_wav_async.models import OnUnknown, Track
from kie_wav_async.protocol.requests import CREDITS_PATH
from kie_wav_async.protocol.responses import SubmitResponse, is_answered, parse_submit
from kie_wav_async.session.context import CLOSE_TIMEOUT_S

if TYPE_CHECKING:
    from kie_wav_async.core.policies import RateLimit
    from kie_wav_async.ledger.models import LedgerEntry
    from kie_wav_async.models import TaskRecord, UnknownSubmit
    from kie_wav_async.protocol.messages import WireResponse
    from kie_wav_async.session.context import SessionContext
    from kie_wav_async.session.conversion import ConversionEntry
    from kie_wav_async.session.poller import Poller
    from kie_wav_async.session.submit_queue import SubmitQueue

_logger = logging.getLogger("kie_wav_async")

#: The states in a ledger of a track whose WAV was made.
SUCCESSES = frozenset({TrackState.SUCCEEDED, TrackState.SAVED, TrackState.EXPIRED})
_HAS_TASK = SUCCESSES | {TrackState.ACCEPTED}


class Submitter:
    """Submits what has its turn, once, and hands what is accepted to the poller."""

    def __init__(
        self,
        context: SessionContext,
        poller: Poller,
        queue: SubmitQueue,
        *,
        rate_limit: RateLimit,
        retry: RetryPolicy,
        on_unknown: OnUnknown,
    ) -> None:
        """Start with nothing on the wire."""
        self._context = context
        self._registry = context.registry
        self._poller = poller
        self._queue = queue
        self._rate_limit = rate_limit
        self._retry = retry
        self._on_unknown = on_unknown
        self._repeated: set[Track] = set()
        self._is_closed = False
        self._is_read_warned = False
        self._idle: asyncio.Future[None] | None = None
        queue.on_dispatch = self._send
        queue.on_read = self._ask
        queue.on_outage = self._notify_outage
        queue.on_charge_limit = self._reject_all
        context.on_slot_freed = queue.dispatch
        context.on_polling_rejected = self._end_waits
        context.state.on_abandon = self._abandon

    # --- not sent after all --------------------------------------------------------------

    def _abandon(self, conversion: ConversionEntry) -> None:
        """Withdraw a queued submit: nobody waits for it."""
        self._queue.remove(conversion)
        error = KieWavError("the submit was withdrawn before it was sent: nobody waited for it")
        self._cancel(conversion, error.about(track=conversion.track))
        self._queue.notify_capacity()

    def _cancel(self, conversion: ConversionEntry, error: KieWavError) -> None:
        if self._registry.has_unknown_submit(conversion):
            self._registry.return_to_unknown(conversion)
        else:
            self._registry.cancel(conversion, error)

    def _reject_all(self, error: KieWavError) -> None:
        # One at a time: a refusal may make a batch withdraw the rest.
        while (conversion := self._queue.first_queued()) is not None:
            self._reject(conversion, error)

    def _end_waits(self, error: KieWavError) -> None:
        """Refuse all that is not on the wire, what waits for a moment of its own included."""
        for conversion in self._queue.delayed:
            if not self._queue.is_delayed(conversion):
                continue  # A refusal before made a batch withdraw it.
            self._queue.remove(conversion)
            if conversion.phase is Phase.UNKNOWN:
                # As if the moment of its repeat had come.
                self._registry.retry(conversion)
            self._reject(conversion, error)
        self._reject_all(error)

    # --- on the wire --------------------------------------------------------------------

    def _send(self, conversion: ConversionEntry) -> None:
        """Begin an attempt; it belongs to the session, whoever asked for it."""
        if self._registry.has_unknown_submit(conversion):
            self._repeated.add(_track_of(conversion))
        attempt_id = self._context.attempt_id()
        self._registry.send(conversion, attempt_id, self._context.clock.time())
        _ = self._context.spawn(self._run_attempt(conversion))

    def _ask(self) -> None:
        """Have a free read tell whether the service answers."""
        _ = self._context.spawn(self._read())

    async def _read(self) -> None:
        is_up = False
        try:
            response = await self._context.send(self._context.requests.credits())
            is_up = is_answered(response)
            if not is_up and not self._is_read_warned:
                _logger.warning(
                    "submits stay paused until the service answers %s: it brings HTTP %d, without "
                    "a code that the service gives when it is up. Is base_url right?",
                    *(CREDITS_PATH, response.status),
                )
            self._is_read_warned = not is_up
        except Exception as failure:  # noqa: BLE001 - a transport of the user's may raise anything
            _logger.debug("no answer to the read before a submit: %s", failure)
        finally:
            self._queue.end_read(is_answered=is_up)

    async def _run_attempt(self, conversion: ConversionEntry) -> None:
        is_sent = False
        try:
            if await self._record_intent(conversion):
                is_sent = True
                await self._attempt(conversion)
        finally:
            self._queue.end(conversion, is_sent=is_sent)
            if conversion.phase is Phase.SUBMITTING:
                # Cancelled by a session that closes, or a bug of ours.
                self._mark_unknown(conversion, TransportError("the submit was cut off"))
            if self._idle is not None and not self._registry.sending:
                if not self._idle.done():
                    self._idle.set_result(None)
                self._idle = None
            self._queue.dispatch()

    async def _attempt(self, conversion: ConversionEntry) -> None:
        response = await self._exchange(conversion)
        if response is None:
            return
        has_code = is_answered(response)
        try:
            answer = parse_submit(response)
        except RateLimitedError as error:
            self._registry.counters.rejected_429 += 1
            self._note(conversion, AttemptOutcome.NOT_CREATED, error)
            self._queue.note_answer(conversion, has_code=has_code)
            self._pause_all(conversion, error)
        except MaintenanceError as error:
            self._note(conversion, AttemptOutcome.NOT_CREATED, error)
            self._hold_for_maintenance(conversion, error)
        except (ServerError, WireFormatError) as error:
            self._mark_unknown(conversion, error)
        except KieWavError as error:
            # A refusal, or a redirect that was not followed: nothing was created.
            self._queue.note_answer(conversion, has_code=has_code)
            self._note(conversion, _outcome_of(error), error)
            self._reject(conversion, error)
        else:
            if not answer.exists and self._is_taken(answer.task_id, conversion):
                msg = f"the service answered with task {answer.task_id}, which is another track's"
                self._mark_unknown(conversion, WireFormatError(msg))
                return
            self._queue.note_answer(conversion, has_code=True)
            if answer.exists:
                await self._adopt(conversion, answer.task_id)
            else:
                await self._accept(conversion, answer)

    async def _record_intent(self, conversion: ConversionEntry) -> bool:
        """Have the intent written down; if that cannot be, or there is no need, end the submit."""
        if not self._context.ledger_writer.is_enabled:
            return True
        track, attempt_id = _track_of(conversion), conversion.attempt_id
        is_repeat = conversion.may_double_charge and not conversion.is_again
        try:
            entry = await self._context.ledger_writer.begin_attempt(
                track, attempt_id, again=conversion.is_again, is_repeat=is_repeat
            )
        except LedgerError as error:
            self._undo_send(conversion)
            self._reject(conversion, error)
            return False
        except asyncio.CancelledError:
            # The session closes, and nothing has left.
            self._undo_send(conversion)
            self._take_back(conversion)
            raise
        if entry is None and conversion.is_awaited and not conversion.discovered_task_id:
            return True
        self._undo_send(conversion)
        if entry is None:
            # While that was written all who wanted it have left, or its task was found.
            self._note(conversion, AttemptOutcome.NOT_CREATED)
            self._take_back(conversion)
        elif entry.state in _HAS_TASK:
            # Whoever else writes into this ledger was faster.
            conversion.discovered_task_id = entry.task_id
            _ = self._adopt_discovered(conversion)
        elif entry.state is TrackState.EXISTS_WITHOUT_ID:
            self._reject(conversion, exists_error(entry))
        else:
            message = "another submit of the track is in the ledger"
            self._reject(
                conversion,
                SubmitUnknownError(message, track=track, attempt_id=entry.attempt_id),
            )
        return False

    def _undo_send(self, conversion: ConversionEntry) -> None:
        """Count out a submit that will not leave."""
        self._registry.counters.submitted -= 1
        self._repeated.discard(_track_of(conversion))

    def _take_back(self, conversion: ConversionEntry) -> None:
        """Take a submit off the wire that has not left, and is not to."""
        if not self._adopt_discovered(conversion):
            self._registry.requeue(conversion)
            self._abandon(conversion)

    def _note(
        self, conversion: ConversionEntry, outcome: AttemptOutcome, error: KieWavError | None = None
    ) -> None:
        self._context.ledger_writer.finish_attempt_later(
            conversion.attempt_id, outcome, error=error
        )

    async def _exchange(self, conversion: ConversionEntry) -> WireResponse | None:
        """Return the answer to a submit; `None` if there is none, which is dealt with."""
        track = _track_of(conversion)
        callback_url = build_callback_url(self._context.callback_url, conversion.attempt_id)
        request = self._context.requests.submit(track, callback_url)
        try:
            return await self._context.send(request)
        except TransportError as error:
            if error.maybe_sent:
                self._mark_unknown(conversion, error)
            else:
                self._note(conversion, AttemptOutcome.NOT_CREATED, error)
                self._retry_later(conversion, error)
        except KieWavError as error:
            self._mark_unknown(conversion, error)
        except Exception as error:
            # A transport of the user's may raise anything, at any moment.
            _logger.exception("the transport failed in a way it should not")
            lost = TransportError(f"the transport raised {type(error).__name__}")
            lost.__cause__ = error
            self._mark_unknown(conversion, lost)
        return None

    # --- ends of an attempt -------------------------------------------------------------

    async def _accept(self, conversion: ConversionEntry, answer: SubmitResponse) -> None:
        task_id = answer.task_id
        error: KieWavError | None = None
        try:
            error = await self._write_task(
                conversion, AttemptOutcome.ACCEPTED, task_id, accepted_unix_s=answer.accepted_unix_s
            )
        finally:
            # Also if the session closes meanwhile: the service has taken it.
            _ = self._poller.rejoin(task_id)
            self._registry.accept(
                conversion,
                task_id,
                self._context.clock.monotonic(),
                accepted_unix_s=answer.accepted_unix_s,
            )
            self._follow(conversion, error)

    async def _write_task(
        self,
        conversion: ConversionEntry,
        outcome: AttemptOutcome,
        task_id: str,
        *,
        accepted_unix_s: float | None = None,
    ) -> LedgerError | None:
        """Write down which task a submit came to; return why it could not be."""
        try:
            await self._context.ledger_writer.finish_attempt(
                conversion.attempt_id, outcome, task_id=task_id, accepted_unix_s=accepted_unix_s
            )
        except LedgerError as error:
            _logger.error(  # noqa: TRY400 - the traceback tells nothing of the disk
                "task %s of %s (attempt %s) could not be written down: %s",
                task_id,
                conversion.track,
                conversion.attempt_id,
                error,
            )
            told = LedgerError(
                f"the service has taken the submit, as task {task_id}, but that could not be "
                f"written down ({error}); keep the id",
                task_id=task_id,
                track=conversion.track,
            )
            told.__cause__ = error
            return told
        return None

    async def _adopt(self, conversion: ConversionEntry, task_id: str) -> None:
        """Take over the task that a 409 names, once its record was asked for."""
        record: TaskRecord | None = None
        error: KieWavError | None = None
        try:
            try:
                record = await self._poller.poll(task_id)
            except Exception as failure:  # noqa: BLE001 - a transport of the user's may raise anything
                _logger.debug("no news of task %s: %s", task_id, failure)
            if not self._is_foreign(conversion, task_id, record):
                error = await self._write_task(conversion, AttemptOutcome.ADOPTED, task_id)
        finally:
            # Also if the session closes meanwhile: the service has named the task.
            self._take_over(conversion, task_id, record, error)

    def _take_over(
        self,
        conversion: ConversionEntry,
        task_id: str,
        record: TaskRecord | None,
        error: KieWavError | None,
    ) -> None:
        """Follow an existing task, unless it converts another track."""
        if self._is_foreign(conversion, task_id, record):
            message = f"the service named task {task_id}, which is another track's"
            foreign = AlreadyExistsError(code=409, message=message, task_id=task_id)
            self._note(conversion, AttemptOutcome.EXISTS_WITHOUT_ID, foreign)
            self._reject(conversion, foreign)
            return
        _ = self._poller.rejoin(task_id)
        self._registry.adopt_existing(conversion, task_id, self._context.clock.monotonic())
        self._follow(conversion, error)
        if record is not None:
            self._poller.observe(conversion, record)

    def _is_foreign(
        self, conversion: ConversionEntry, task_id: str, record: TaskRecord | None
    ) -> bool:
        """Whether a task that exists converts another track."""
        audio_id = None if record is None else record.audio_id
        ours = _track_of(conversion).audio_id
        return self._is_taken(task_id, conversion) or audio_id not in {None, ours}

    def _is_taken(self, task_id: str, conversion: ConversionEntry) -> bool:
        """Whether *task_id* is known to convert another track."""
        others = self._registry.known(task_id)
        return any(other.track not in {None, conversion.track} for other in others)

    def _follow(self, conversion: ConversionEntry, error: KieWavError | None = None) -> None:
        """
        Spread the news that *conversion* has a task, and have it polled.

        *error*: what whoever waits for the submit is told all the same.
        """
        self._notify_task(conversion, conversion.attempt_id)
        self._poller.follow(conversion)
        conversion.notify_submit_waiters(error)
        self._context.on_followed(conversion)

    def _notify_task(self, conversion: ConversionEntry, attempt_id: str) -> None:
        """Tell which task a submit came to."""
        self._context.emit(
            events.SubmitAccepted,
            task_id=conversion.task_id,
            track=conversion.track,
            attempt_id=attempt_id,
            adopted=conversion.origin is not Origin.SUBMITTED,
        )

    def _reject(self, conversion: ConversionEntry, error: KieWavError) -> None:
        """End a submit that created nothing."""
        if self._adopt_discovered(conversion):
            return
        self._queue.remove(conversion)
        told = conversion.error_for_waiter(error)
        if self._registry.has_unknown_submit(conversion):
            unknown = self._registry.return_to_unknown(conversion)
            if not isinstance(error, LedgerError):
                told = unknown_error(unknown, "the repeat was refused", cause=told)
        else:
            self._registry.reject(conversion, told)
            self._context.emit(events.SubmitRejected, track=conversion.track, error=told.about())
        conversion.notify_waiters(told)

    def _retry_later(self, conversion: ConversionEntry, error: KieWavError) -> None:
        """Send a submit again that never left, after a back-off of its own."""
        if self._reject_if_exhausted(conversion, error):
            return
        delay_s = retry_delay_s(self._retry, conversion.attempts, self._context.random(), None)
        if self._requeue(conversion, error, delay_s):
            self._queue.schedule(conversion, delay_s)

    def _pause_all(self, conversion: ConversionEntry, error: RateLimitedError) -> None:
        """Let all submits rest: another program uses the account's window too."""
        delay_s = rate_limit_delay_s(self._retry, self._rate_limit.per_s, error.retry_after_s)
        self._queue.pause(delay_s)
        if not self._reject_if_exhausted(conversion, error) and self._requeue(
            conversion, error, delay_s
        ):
            self._queue.requeue(conversion)

    def _hold_for_maintenance(self, conversion: ConversionEntry, error: MaintenanceError) -> None:
        """Let all submits rest but one probe a minute; not everybody waits that long."""
        if self._queue.note_maintenance(conversion):
            for waiting in self._queue.queued:
                _ = self._reject_if_exhausted(waiting, error)
        delay_s = MAINTENANCE_PROBE_S
        if not self._reject_if_exhausted(conversion, error) and self._requeue(
            conversion, error, delay_s
        ):
            self._queue.requeue(conversion)

    def _reject_if_exhausted(self, conversion: ConversionEntry, error: KieWavError) -> bool:
        """Count a refusal without a verdict; refuse for good after the last."""
        if conversion.waits_for_maintenance and isinstance(error, MaintenanceError):
            return False
        conversion.attempts += 1
        if conversion.attempts < self._retry.attempts:
            return False
        self._reject(conversion, error)
        return True

    def _requeue(self, conversion: ConversionEntry, error: KieWavError, delay_s: float) -> bool:
        """Take a submit off the wire to be sent again; return `False` if there is no need."""
        if self._adopt_discovered(conversion):
            return False
        self._registry.requeue(conversion)
        # A repeat that created nothing was none.
        self._repeated.discard(_track_of(conversion))
        if not conversion.is_awaited:
            self._abandon(conversion)
            return False
        told = conversion.error_for_waiter(error)
        self._context.emit(
            events.SubmitRetryScheduled, track=conversion.track, error=told, delay_s=delay_s
        )
        return True

    def _adopt_discovered(self, conversion: ConversionEntry) -> bool:
        """
        Have a repeat that created nothing follow what the first attempt turned out to have made.

        A callback, or the user, may have told that while the repeat was on the wire.
        """
        task_id = conversion.discovered_task_id
        if not task_id or conversion.phase is not Phase.SUBMITTING:
            return False
        _ = self._poller.rejoin(task_id)
        self._registry.adopt_existing(conversion, task_id, self._context.clock.monotonic())
        self._follow(conversion)
        # It may be long over, with nobody left who asks.
        self._poller.request_poll(task_id)
        return True

    def _mark_unknown(self, conversion: ConversionEntry, error: KieWavError) -> None:
        """Put a submit into doubt: it may have been charged."""
        self._note(conversion, AttemptOutcome.UNKNOWN, error)
        unknown = self._registry.mark_unknown(conversion, self._context.clock.time())
        _logger.warning(
            "submit of %s is of unknown fate (attempt %s): %s",
            conversion.track,
            unknown.attempt_id,
            error,
        )
        self._context.emit(
            events.SubmitUnknown,
            track=unknown.track,
            attempt_id=unknown.attempt_id,
            error=conversion.error_for_waiter(error),
        )
        self._queue.note_unknown()
        if self.may_repeat(unknown.track) and not self._is_closed:
            self._queue.schedule(conversion, RESUBMIT_AFTER_S)
        else:
            conversion.notify_waiters(
                unknown_error(unknown, "the submit got no clear answer", cause=error)
            )
        self._context.on_unknown(unknown)

    def _notify_outage(self, conversion: ConversionEntry, delay_s: float) -> None:
        """Say that *conversion*, which is next, waits for the end of an outage."""
        _logger.warning(
            "%d submits in a row have an unknown outcome: the service seems to be out. New submits "
            "pause; one at a time is tried, in %g s and then less and less often, until one is "
            "answered",
            UNKNOWN_IN_A_ROW,
            delay_s,
        )
        unknown = next(reversed(self._registry.unknown_submits()), None)
        if unknown is not None:  # Or callbacks have told of all of them.
            reason = f"the last {UNKNOWN_IN_A_ROW} submits have an unknown outcome"
            held = unknown_error(unknown, reason)
            self._context.emit(
                events.SubmitRetryScheduled, track=conversion.track, error=held, delay_s=delay_s
            )

    def may_repeat(self, track: Track) -> bool:
        """Whether a submit in doubt is sent once more by itself: it was not, in this session."""
        return self._on_unknown is OnUnknown.RESUBMIT and track not in self._repeated

    # --- the user's word on a doubt -------------------------------------------------------

    async def adopt(self, unknown: UnknownSubmit, task_id: str | None) -> None:
        """
        Write down what the service says of an attempt of unknown fate, and go on with it.

        Raises:
            LedgerError: It could not be written; nothing has changed.
        """
        await self._context.ledger_writer.resolve_attempt(unknown.attempt_id, task_id)
        # Somebody else may have brought the news meanwhile.
        if self._registry.unknown_submit(unknown.attempt_id) is not None:
            self.resolve(unknown, task_id)

    async def apply_resolution(self, submit: UnknownSubmit, task_id: str | None) -> None:
        """
        Write down the user's word on a submit, in place of an earlier one, and go on with it.

        Raises:
            LedgerError: It could not be written; nothing has changed.
        """
        attempt_id = submit.attempt_id
        if not await self._context.ledger_writer.resolve(attempt_id, task_id):
            return  # The service has answered for it meanwhile.
        if self._registry.is_resolution(attempt_id, task_id):
            return
        if self._registry.resolved_submit(attempt_id) is not None:
            retracted = self._registry.retract(attempt_id)
            if retracted is not None:
                self._poller.unfollow(retracted)
        if self._registry.unknown_submit(attempt_id) is not None:
            self.resolve(submit, task_id, is_resolution=True)

    def resolve(
        self, unknown: UnknownSubmit, task_id: str | None, *, is_resolution: bool = False
    ) -> None:
        """Go on with an attempt that created *task_id*, or nothing if `None`."""
        if task_id is None:
            conversion = self._registry.mark_not_charged(
                unknown.attempt_id, is_resolution=is_resolution
            )
            if conversion is None:
                return
            self._queue.remove(conversion)
            if conversion.is_awaited:
                # Its waiters wait for the repeat, which is now without risk.
                self._registry.retry(conversion)
                self._queue.requeue(conversion)
                self._queue.dispatch()
                return
            error = KieWavError("the submit was not charged; submit the track again")
            self._registry.cancel(conversion, error.about(track=unknown.track))
            return
        queued = self._registry.find(unknown.track)
        if queued is not None and queued.phase is Phase.QUEUED:
            # Its waiters get the task that was found instead of a second submit.
            self._queue.remove(queued)
            _ = self._registry.return_to_unknown(queued)
        followed = self._poller.rejoin(task_id) or self._registry.find_task(task_id)
        was_attached = followed is not None and followed.origin is Origin.ATTACHED
        now = self._context.clock.monotonic()
        conversion = self._registry.adopt_unknown(
            unknown.attempt_id, task_id, now, is_resolution=is_resolution
        )
        self._queue.remove(conversion)
        if conversion is not followed:
            self._follow(conversion)
        elif was_attached:
            # Nobody was told so far that the task is paid for by a submit of ours.
            self._notify_task(conversion, unknown.attempt_id)

    # --- closing ----------------------------------------------------------------------------

    def close(self, error: SessionClosedError) -> None:
        """Send nothing more, and withdraw what has not been sent."""
        self._is_closed = True
        waiting = (*self._queue.queued, *self._queue.delayed)
        self._queue.close()
        for conversion in waiting:
            if conversion.phase is Phase.QUEUED:
                # One error for all: each waiter is told by one that names the track.
                self._cancel(conversion, error)
            conversion.notify_waiters(error)

    async def drain(self) -> None:
        """Wait until no submit is on the wire, 25 s at most."""
        if not self._registry.sending:
            return
        empty = self._idle = asyncio.get_running_loop().create_future()

        def give_up() -> None:
            if not empty.done():
                self._idle = None
                empty.set_result(None)

        timer = self._context.timer(give_up)
        timer.set(self._context.clock.monotonic() + CLOSE_TIMEOUT_S)
        try:
            await empty
        finally:
            timer.cancel()


def _track_of(conversion: ConversionEntry) -> Track:
    if conversion.track is None:  # pragma: no cover - only attached tasks have none
        msg = "an attached task has no submit"
        raise AssertionError(msg)
    return conversion.track


def _outcome_of(error: KieWavError) -> AttemptOutcome:
    """Return what a ledger keeps of a refusal: whether the track may be sent again."""
    match error:
        case AlreadyExistsError():
            return AttemptOutcome.EXISTS_WITHOUT_ID
        case (
            AuthenticationError()
            | InsufficientCreditsError()
            | FeatureDisabledError()
            | EndpointGoneError()
            | TransportError()
        ):
            return AttemptOutcome.NOT_CREATED  # It is not about the track.
        case _:
            return AttemptOutcome.REJECTED


def exists_error(entry: LedgerEntry) -> AlreadyExistsError:
    """Return the error of a track that has a WAV under a task id that is not known."""
    return AlreadyExistsError(code=409, message=entry.error or "the WAV exists", track=entry.track)


def unknown_error(
    unknown: UnknownSubmit, message: str, *, cause: KieWavError | None = None
) -> SubmitUnknownError:
    """Return the error of a submit whose outcome is unknown."""
    error = SubmitUnknownError(message, track=unknown.track, attempt_id=unknown.attempt_id)
    error.__cause__ = cause
    return error
