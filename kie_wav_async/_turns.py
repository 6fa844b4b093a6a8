"""
The order of submits: who goes next, and when.

A submit waits in the queue for the window, a place in flight and the budget of
charges, or for a moment of its own: a back-off, or the repeat of a doubt. Under
maintenance the queue rests, and one probe a minute asks for all of it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from kie_wav_async._lifecycle import Phase
from kie_wav_async._limiter import RateLimit, SlidingWindowLimiter
from kie_wav_async._schedule import MAINTENANCE_PROBE_S
from kie_wav_async.errors import ChargeLimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kie_wav_async._conversion import Conversion
    from kie_wav_async._desk import Desk, Timer


class Turns:
    """
    Gives conversions their turn on the wire.

    Attributes:
        on_turn: Called with a conversion, taken out of the queue, that may go out.

        on_spent: Called with the error when no further charge is allowed.

        room_listeners: Called when the queue has room, so often as that may be news.

        turn_listeners: Called before a turn, to take back what is not wanted any more.
    """

    def __init__(
        self, desk: Desk, *, rate_limit: RateLimit, max_in_flight: int, max_charges: int | None
    ) -> None:
        """Start with an empty queue."""
        self.on_turn: Callable[[Conversion], None] = lambda _: None
        self.on_spent: Callable[[ChargeLimitError], None] = lambda _: None
        self.room_listeners: set[Callable[[], None]] = set()
        self.turn_listeners: set[Callable[[], None]] = set()
        self._desk = desk
        self._registry = desk.registry
        self._rate_limit = rate_limit
        self._limiter = SlidingWindowLimiter(rate_limit)
        self._max_in_flight = max_in_flight
        self._max_charges = max_charges
        # Ordered sets: from the front to the wire, from anywhere if withdrawn.
        # Those that had a turn before go first, in the order they came back.
        self._returned: OrderedDict[Conversion, None] = OrderedDict()
        self._queue: OrderedDict[Conversion, None] = OrderedDict()
        # Those that wait for a moment of their own before they queue (again).
        self._timers: dict[Conversion, Timer] = {}
        self._in_maintenance = False
        self._probe: Conversion | None = None
        self._probe_at = -math.inf
        self._timer = desk.timer(self.pump)
        self._is_closed = False

    # --- waiting ------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """
        Whether a catalog may queue one more track.

        A window's worth waits ready, less one: whoever comes with a single track
        finds a turn in the next window.
        """
        waiting = len(self._returned) + len(self._queue)
        return waiting < max(1, self._rate_limit.count - 1)

    @property
    def queued(self) -> tuple[Conversion, ...]:
        """Who waits in the queue, the next one first."""
        return (*self._returned, *self._queue)

    @property
    def delayed(self) -> tuple[Conversion, ...]:
        """Who waits for a moment of its own."""
        return tuple(self._timers)

    def first_queued(self) -> Conversion | None:
        """Return who is next in the queue, if anybody is."""
        return next(iter(self._returned or self._queue), None)

    def is_delayed(self, conversion: Conversion) -> bool:
        """Return whether *conversion* waits for a moment of its own."""
        return conversion in self._timers

    def add(self, conversion: Conversion) -> None:
        """Put *conversion* at the end of the queue."""
        self._queue[conversion] = None

    def add_again(self, conversion: Conversion) -> None:
        """Put *conversion*, which had a turn before, ahead of those that had none."""
        self._returned[conversion] = None

    def add_in(self, conversion: Conversion, delay_s: float) -> None:
        """Put *conversion* back in *delay_s* seconds, if it is awaited by then."""

        def add() -> None:
            del self._timers[conversion]
            if not conversion.is_awaited:
                return  # In doubt it stays: nothing is sent for nobody.
            if conversion.phase is Phase.UNKNOWN:
                self._registry.resend(conversion)
            self.add_again(conversion)
            self.pump()

        timer = self._timers[conversion] = self._desk.timer(add)
        timer.set(self._desk.clock.monotonic() + delay_s)

    def remove(self, conversion: Conversion) -> None:
        """Let *conversion* wait no more, wherever it does."""
        self._returned.pop(conversion, None)
        self._queue.pop(conversion, None)
        timer = self._timers.pop(conversion, None)
        if timer is not None:
            timer.cancel()

    # --- the next one -------------------------------------------------------------------

    def pump(self) -> None:
        """Give turns to who may have one now, and see to it that the rest gets its own."""
        now = self._desk.clock.monotonic()
        if self._returned or self._queue:
            for listener in tuple(self.turn_listeners):
                listener()
        while (waiting := self._returned or self._queue) and not self._is_closed:
            if self._registry.places >= self._max_in_flight or not self._is_affordable():
                break
            when = self._next_turn(now)
            if when is not None:
                if when < math.inf:
                    self._timer.set(when)
                break
            conversion, _ = waiting.popitem(last=False)
            if self._in_maintenance:
                # Whatever becomes of it, the next one goes a minute later.
                self._probe, self._probe_at = conversion, now + MAINTENANCE_PROBE_S
            self.on_turn(conversion)
        self.tell_room()

    def _next_turn(self, now: float) -> float | None:
        """Take a turn and return `None`, or return when to ask again; infinite: at an answer."""
        if self._in_maintenance:
            if self._registry.sending:
                return math.inf  # One probe at a time.
            if now < self._probe_at:
                return self._probe_at
        return self._limiter.acquire(now)

    def tell_room(self) -> None:
        """Tell the catalogs if there is room."""
        if self.has_room:
            for listener in tuple(self.room_listeners):
                listener()

    def restore(self, ended_unix_s: Iterable[float]) -> None:
        """Leave the window to the submits of an earlier run that the service still counts."""
        now, per_s = self._desk.clock.time(), self._rate_limit.per_s
        # A wall clock that was set back makes an end lie ahead: it counts in full.
        left = (per_s - max(0.0, now - ended) for ended in ended_unix_s)
        mono = self._desk.clock.monotonic()
        self._limiter.restore(mono + left_s for left_s in left if left_s > 0)

    def answered(self) -> None:
        """Note that a submit has its answer, or never will."""
        self._limiter.release(self._desk.clock.monotonic())

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
            self.on_spent(error)
            return False
        # What is on the wire may be charged; its answers pump again.
        return self._registry.charges + self._registry.sending < self._max_charges

    # --- resting ------------------------------------------------------------------------

    def rest(self, delay_s: float) -> None:
        """Give nobody a turn for *delay_s* seconds."""
        self._limiter.pause(self._desk.clock.monotonic() + delay_s)

    def begin_maintenance(self, conversion: Conversion) -> bool:
        """
        Note that *conversion* met maintenance; return whether that is news.

        It is none if the submit was on the wire with the one that brought the news.
        """
        if self._in_maintenance and conversion is not self._probe:
            return False
        self._in_maintenance = True
        self._probe_at = self._desk.clock.monotonic() + MAINTENANCE_PROBE_S
        return True

    def end_maintenance(self, conversion: Conversion) -> None:
        """Note an answer that is not maintenance: only the probe's is newer than that."""
        if conversion is self._probe:
            self._in_maintenance = False

    def close(self) -> None:
        """Give nobody a turn any more."""
        self._is_closed = True
        self._timer.cancel()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._returned.clear()
        self._queue.clear()
