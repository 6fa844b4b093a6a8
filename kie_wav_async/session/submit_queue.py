"""
The order of submits: who goes next, and when.

A submit waits in the queue for the window, a place in flight and the budget of
charges, or for a moment of its own: a back-off, or the repeat of a doubt. Under
maintenance and in an outage the queue pauses; see `core.submit_pause`.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from kie_wav_async.core.rate_limiter import SlidingWindowLimiter
from kie_wav_async.core.state_machine import Phase
from kie_wav_async.core.submit_pause import UNKNOWN_IN_A_ROW, SubmitPause
from kie_wav_async.errors import ChargeLimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kie_wav_async._support.timer import Timer
    from kie_wav_async.core.policies import RateLimit
    from kie_wav_async.models import UnknownSubmit
    from kie_wav_async.session.context import SessionContext
    from kie_wav_async.session.conversion import ConversionEntry

_logger = logging.getLogger("kie_wav_async")


class SubmitQueue:
    """
    Gives conversions their turn on the wire.

    Attributes:
        on_dispatch: Called with a conversion, taken out of the queue, that may go out.

        on_read: Called when a free read has to be answered before the next turn; see `end_read`.

        on_outage: Called once for an outage, with the submit that is next and its seconds to wait.

        on_charge_limit: Called with the error when no further charge is allowed.

        capacity_listeners: Called when the queue has room, so often as that may be news.

        dispatch_listeners: Called before a turn, to take back what is not wanted any more.
    """

    def __init__(
        self,
        context: SessionContext,
        *,
        rate_limit: RateLimit,
        max_in_flight: int,
        max_charges: int | None,
    ) -> None:
        """Start with an empty queue."""
        self.on_dispatch: Callable[[ConversionEntry], None] = lambda _: None
        self.on_read: Callable[[], None] = lambda: None
        self.on_outage: Callable[[ConversionEntry, float], None] = lambda _, __: None
        self.on_charge_limit: Callable[[ChargeLimitError], None] = lambda _: None
        self.capacity_listeners: set[Callable[[], None]] = set()
        self.dispatch_listeners: set[Callable[[], None]] = set()
        self._context = context
        self._registry = context.registry
        self._rate_limit = rate_limit
        self._limiter = SlidingWindowLimiter(rate_limit)
        self._max_in_flight = max_in_flight
        self._max_charges = max_charges
        # Ordered sets: from the front to the wire, from anywhere if withdrawn.
        # Those that had a turn before go first, in the order they came back.
        self._returned: OrderedDict[ConversionEntry, None] = OrderedDict()
        self._queue: OrderedDict[ConversionEntry, None] = OrderedDict()
        # Those that wait for a moment of their own before they queue (again).
        self._timers: dict[ConversionEntry, Timer] = {}
        self._pause = SubmitPause()
        self._timer = context.timer(self.dispatch)
        self._is_closed = False

    # --- waiting ------------------------------------------------------------------------

    @property
    def has_capacity(self) -> bool:
        """
        Whether a catalog may queue one more track.

        A window's worth waits ready, less one: whoever comes with a single track
        finds a turn in the next window.
        """
        waiting = len(self._returned) + len(self._queue)
        return waiting < max(1, self._rate_limit.count - 1)

    @property
    def queued(self) -> tuple[ConversionEntry, ...]:
        """Who waits in the queue, the next one first."""
        return (*self._returned, *self._queue)

    @property
    def delayed(self) -> tuple[ConversionEntry, ...]:
        """Who waits for a moment of its own."""
        return tuple(self._timers)

    def first_queued(self) -> ConversionEntry | None:
        """Return who is next in the queue, if anybody is."""
        return next(iter(self._returned or self._queue), None)

    def is_delayed(self, conversion: ConversionEntry) -> bool:
        """Return whether *conversion* waits for a moment of its own."""
        return conversion in self._timers

    def add(self, conversion: ConversionEntry) -> None:
        """Put *conversion* at the end of the queue."""
        self._queue[conversion] = None

    def requeue(self, conversion: ConversionEntry) -> None:
        """Put *conversion*, which had a turn before, ahead of those that had none."""
        self._returned[conversion] = None

    def schedule(self, conversion: ConversionEntry, delay_s: float) -> None:
        """Put *conversion* back in *delay_s* seconds, if it is awaited by then."""

        def add() -> None:
            del self._timers[conversion]
            if not conversion.is_awaited:
                return  # In doubt it stays: nothing is sent for nobody.
            if conversion.phase is Phase.UNKNOWN:
                self._registry.retry(conversion)
            self.requeue(conversion)
            self.dispatch()

        timer = self._timers[conversion] = self._context.timer(add)
        timer.set(self._context.clock.monotonic() + delay_s)

    def remove(self, conversion: ConversionEntry) -> None:
        """Let *conversion* wait no more, wherever it does."""
        self._returned.pop(conversion, None)
        self._queue.pop(conversion, None)
        timer = self._timers.pop(conversion, None)
        if timer is not None:
            timer.cancel()

    # --- the next one -------------------------------------------------------------------

    def dispatch(self) -> None:
        """Give turns to who may have one now, and see to it that the rest gets its own."""
        now = self._context.clock.monotonic()
        if self._returned or self._queue:
            for listener in tuple(self.dispatch_listeners):
                listener()
        while (waiting := self._returned or self._queue) and not self._is_closed:
            if self._registry.used_slots >= self._max_in_flight or not self._is_affordable():
                break
            if (delay_s := self._pause.pop_notification(now)) is not None:
                self.on_outage(next(iter(waiting)), delay_s)
            when = self._next_slot(now)
            if when is not None:
                if when < math.inf:
                    self._timer.set(when)
                break
            conversion, _ = waiting.popitem(last=False)
            self._pause.begin_submit(conversion)
            self.on_dispatch(conversion)
        self.notify_capacity()

    def _next_slot(self, now: float) -> float | None:
        """Take a turn and return `None`, or return when to ask again; infinite: at an answer."""
        is_sending = bool(self._registry.sending)
        if (when := self._pause.blocked_until(now, is_sending=is_sending)) is not None:
            return when
        if self._pause.begin_read(now):
            self.on_read()
            return math.inf
        return self._limiter.acquire(now)

    def notify_capacity(self) -> None:
        """Tell the catalogs if there is room."""
        if self.has_capacity:
            for listener in tuple(self.capacity_listeners):
                listener()

    def restore(self, ended_unix_s: Sequence[float], unknown: Iterable[UnknownSubmit]) -> None:
        """
        Leave the window to the submits of an earlier run that the service still counts.

        If the last of them have unknown outcomes the service may still be out: new
        submits begin paused, and the first one goes alone.
        """
        now, per_s = self._context.clock.time(), self._rate_limit.per_s
        # A wall clock that was set back makes an end lie ahead: it counts in full.
        left = (per_s - max(0.0, now - ended) for ended in ended_unix_s)
        mono = self._context.clock.monotonic()
        self._limiter.restore(mono + left_s for left_s in left if left_s > 0)
        if self._pause.restore(ended_unix_s, [one.at.timestamp() for one in unknown], mono):
            _logger.info(
                "the last %d submits in the ledger have an unknown outcome: new submits wait "
                "until one of them, sent alone, is answered",
                UNKNOWN_IN_A_ROW,
            )

    def end(self, conversion: ConversionEntry, *, is_sent: bool) -> None:
        """
        Note that a submit has its answer, or never will.

        *is_sent*: it was handed to the transport.
        """
        now = self._context.clock.monotonic()
        self._limiter.release(now)
        self._pause.end_submit(conversion, now, is_sent=is_sent)

    # --- charges ------------------------------------------------------------------------

    def charge_limit(self) -> ChargeLimitError | None:
        """Return the error for one submit more, if none is allowed whatever the answers."""
        if self._max_charges is None or self._registry.charges < self._max_charges:
            return None
        return ChargeLimitError(max_charges=self._max_charges)

    def _is_affordable(self) -> bool:
        """Whether one more charge is allowed now; if never again, say so to all."""
        if self._max_charges is None:
            return True
        if (error := self.charge_limit()) is not None:
            self.on_charge_limit(error)
            return False
        # What is on the wire may be charged; its responses dispatch again.
        return self._registry.charges + self._registry.sending < self._max_charges

    # --- resting ------------------------------------------------------------------------

    def pause(self, delay_s: float) -> None:
        """Give nobody a turn for *delay_s* seconds."""
        self._limiter.pause(self._context.clock.monotonic() + delay_s)

    def note_maintenance(self, conversion: ConversionEntry) -> bool:
        """Note that *conversion* met maintenance; return whether that is news."""
        return self._pause.note_maintenance(conversion, self._context.clock.monotonic())

    def note_unknown(self) -> None:
        """Note an unknown outcome."""
        self._pause.note_unknown(self._context.clock.monotonic())

    def note_answer(self, conversion: ConversionEntry, *, has_code: bool) -> None:
        """
        Note that the outcome of a submit is known, and that it did not meet maintenance.

        *has_code*: it got a body with a code other than 408 and 5xx.
        """
        self._pause.note_answer(conversion, has_code=has_code)

    def end_read(self, *, is_answered: bool) -> None:
        """Note whether the service answered the free read that a turn waits for."""
        self._pause.end_read(self._context.clock.monotonic(), is_answered=is_answered)
        self.dispatch()

    def close(self) -> None:
        """Give nobody a turn any more."""
        self._is_closed = True
        self._timer.cancel()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._returned.clear()
        self._queue.clear()
