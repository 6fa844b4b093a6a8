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

from kie_wav_async.callbacks.callback_url import build_callback_url
from kie_wav_async.core.policies import (
    MAINTENANCE_PROBE_S,
    RESUBMIT_AFTER_S,
    RetryPolicy,
    rate_limit_delay_s,
    retry_delay_s,
)
from kie_wav_async.core.state_machine import Phase, track_of
from kie_wav_async.core.submit_pause import UNKNOWN_IN_A_ROW
from kie_wav_async.errors import (
    AlreadyExistsError,
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
from kie_wav_async.ledger.states import AttemptOutcome, TrackState
from kie_wav_async.models import OnUnknown, Track
from kie_wav_async.protocol.api_constants import KIE_WAV
from kie_wav_async.protocol.responses import is_answered, parse_submit
from kie_wav_async.session.context import CLOSE_TIMEOUT_S
from kie_wav_async.session.submit_errors import exists_error, outcome_of, unknown_error

if TYPE_CHECKING:
    from kie_wav_async.core.policies import RateLimit
    from kie_wav_async.protocol.http_messages import WireResponse
    from kie_wav_async.session.context import SessionContext
    from kie_wav_async.session.conversion import ConversionEntry
    from kie_wav_async.session.submit_queue import SubmitQueue
    from kie_wav_async.session.task_follower import TaskFollower

_logger = logging.getLogger("kie_wav_async")


class Submitter:
    """Submits what has its turn, once, and has what is accepted followed."""

    def __init__(
        self,
        context: SessionContext,
        queue: SubmitQueue,
        follower: TaskFollower,
        *,
        rate_limit: RateLimit,
        retry: RetryPolicy,
        on_unknown: OnUnknown,
    ) -> None:
        """Start with nothing on the wire."""
        self._context = context
        self._registry = context.registry
        self._queue = queue
        self._follower = follower
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
            self._repeated.add(track_of(conversion))
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
                    *(KIE_WAV.credits_path, response.status),
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
            self._note(conversion, outcome_of(error), error)
            self._reject(conversion, error)
        else:
            if not answer.exists and self._follower.is_taken(answer.task_id, conversion):
                msg = f"the service answered with task {answer.task_id}, which is another track's"
                self._mark_unknown(conversion, WireFormatError(msg))
                return
            self._queue.note_answer(conversion, has_code=True)
            if answer.exists:
                await self._follower.adopt(conversion, answer.task_id, self._reject_foreign)
            else:
                await self._follower.accept(conversion, answer)

    async def _record_intent(self, conversion: ConversionEntry) -> bool:
        """Have the intent written down; if that cannot be, or there is no need, end the submit."""
        if not self._context.ledger_writer.is_enabled:
            return True
        track, attempt_id = track_of(conversion), conversion.attempt_id
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
        elif entry.state.is_converted or entry.state is TrackState.ACCEPTED:
            # Whoever else writes into this ledger was faster.
            conversion.discovered_task_id = entry.task_id
            _ = self._follower.adopt_discovered(conversion)
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
        self._repeated.discard(track_of(conversion))

    def _take_back(self, conversion: ConversionEntry) -> None:
        """Take a submit off the wire that has not left, and is not to."""
        if not self._follower.adopt_discovered(conversion):
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
        track = track_of(conversion)
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

    def _reject_foreign(self, conversion: ConversionEntry, error: AlreadyExistsError) -> None:
        """End a submit for which the service named a task of another track."""
        self._note(conversion, AttemptOutcome.EXISTS_WITHOUT_ID, error)
        self._reject(conversion, error)

    def _reject(self, conversion: ConversionEntry, error: KieWavError) -> None:
        """End a submit that created nothing."""
        if self._follower.adopt_discovered(conversion):
            return
        self._queue.remove(conversion)
        told = conversion.error_for_waiter(error)
        if self._registry.has_unknown_submit(conversion):
            unknown = self._registry.return_to_unknown(conversion)
            if not isinstance(error, LedgerError):
                told = unknown_error(unknown, "the repeat was refused", cause=told)
        else:
            self._registry.reject(conversion, told)
            self._context.emit("SubmitRejected", track=conversion.track, error=told.about())
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
        if self._follower.adopt_discovered(conversion):
            return False
        self._registry.requeue(conversion)
        # A repeat that created nothing was none.
        self._repeated.discard(track_of(conversion))
        if not conversion.is_awaited:
            self._abandon(conversion)
            return False
        told = conversion.error_for_waiter(error)
        self._context.emit(
            "SubmitRetryScheduled", track=conversion.track, error=told, delay_s=delay_s
        )
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
            "SubmitUnknown",
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
                "SubmitRetryScheduled", track=conversion.track, error=held, delay_s=delay_s
            )

    def may_repeat(self, track: Track) -> bool:
        """Whether a submit in doubt is sent once more by itself: it was not, in this session."""
        return self._on_unknown is OnUnknown.RESUBMIT and track not in self._repeated

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
