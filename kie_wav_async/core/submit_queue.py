"""
The order of submits: which goes next, and when.

A submit waits in the queue for the rate limit, a slot under ``max_in_flight`` and the
budget of charges, or for a moment of its own: a back-off, or the repeat of an unknown
submit. Under maintenance and in an outage the queue pauses; see `core.submit_pause`.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from kie_wav_async.core.rate_limiter import SlidingWindowLimiter
from kie_wav_async.core.state_machine import Phase
from kie_wav_async.core.submit_errors import unknown_error
from kie_wav_async.core.submit_pause import UNKNOWN_IN_A_ROW, SubmitPause
from kie_wav_async.errors import ChargeLimitError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kie_wav_async.core.effects import Now, Outbox
    from kie_wav_async.core.registry import Registry
    from kie_wav_async.core.settings import CoreSettings
    from kie_wav_async.core.state_machine import TaskEntry
    from kie_wav_async.models import UnknownSubmit


class Turn(enum.Enum):
    """What is to be done instead of a submit."""

    #: Nothing, for now.
    WAIT = enum.auto()
    #: A free read has to be answered first; see `SubmitQueue.end_read`.
    READ = enum.auto()


class SubmitQueue:
    """
    Says which submit goes next.

    Attributes:
        next_at: When to ask again by the clock, monotonic; infinite for never.
    """

    def __init__(
        self,
        registry: Registry,
        outbox: Outbox,
        settings: CoreSettings,
    ) -> None:
        self._registry = registry
        self._outbox = outbox
        self._rate_limit = settings.rate_limit
        self._limiter = SlidingWindowLimiter(settings.rate_limit)
        self._max_in_flight = settings.max_in_flight
        self._max_charges = settings.max_charges
        # Ordered sets: taken from the front, or from anywhere if cancelled.
        # Those that had a turn before go first, in the order they came back.
        self._returned: OrderedDict[TaskEntry, None] = OrderedDict()
        self._queue: OrderedDict[TaskEntry, None] = OrderedDict()
        # Those that wait for a moment of their own; items that say otherwise are void.
        self._delayed: dict[TaskEntry, float] = {}
        self._moments: list[tuple[float, int, TaskEntry]] = []
        self._ties = itertools.count()
        self._pause = SubmitPause()
        self._blocked_until = math.inf
        self._is_closed = False

    # --- waiting ------------------------------------------------------------------------

    @property
    def has_capacity(self) -> bool:
        """
        Whether a catalog may queue one more track.

        A window's worth waits ready, less one, so that a single track of somebody
        else's gets a turn in the next window.
        """
        waiting = len(self._returned) + len(self._queue)
        return waiting < max(1, self._rate_limit.count - 1)

    @property
    def has_queued(self) -> bool:
        """Whether anything waits in the queue."""
        return bool(self._returned or self._queue)

    @property
    def queued(self) -> tuple[TaskEntry, ...]:
        """What waits in the queue, the next one first."""
        return (*self._returned, *self._queue)

    @property
    def delayed(self) -> tuple[TaskEntry, ...]:
        """What waits for a moment of its own."""
        return tuple(self._delayed)

    def first_queued(self) -> TaskEntry | None:
        """Return what is next in the queue, if anything is."""
        return next(iter(self._returned or self._queue), None)

    def is_delayed(self, entry: TaskEntry) -> bool:
        """Return whether *entry* waits for a moment of its own."""
        return entry in self._delayed

    def add(self, entry: TaskEntry) -> None:
        """Put *entry* at the end of the queue."""
        self._queue[entry] = None

    def requeue(self, entry: TaskEntry) -> None:
        """Put *entry*, which had a turn before, ahead of those that had none."""
        self._returned[entry] = None

    def schedule(self, entry: TaskEntry, when_mono_s: float) -> None:
        """Put *entry* back at a moment of its own, if it is awaited by then."""
        if not self._is_closed:
            self._delayed[entry] = when_mono_s
            heapq.heappush(self._moments, (when_mono_s, next(self._ties), entry))

    def remove(self, entry: TaskEntry) -> None:
        """Take *entry* out, wherever it waits."""
        self._returned.pop(entry, None)
        self._queue.pop(entry, None)
        self._delayed.pop(entry, None)

    # --- the next one -------------------------------------------------------------------

    @property
    def next_at(self) -> float:
        """When to ask again by the clock, monotonic; infinite for never."""
        while self._moments and self._delayed.get(self._moments[0][2]) != self._moments[0][0]:
            heapq.heappop(self._moments)
        first = self._moments[0][0] if self._moments else math.inf
        return min(self._blocked_until, first)

    def return_due(self, now: Now) -> None:
        """Put back what has come to its moment."""
        if self._blocked_until <= now.mono_s:
            self._blocked_until = math.inf  # Until the next look at the queue.
        while self._moments and self._moments[0][0] <= now.mono_s:
            when, _, entry = heapq.heappop(self._moments)
            if self._delayed.get(entry) != when:
                continue
            del self._delayed[entry]
            if not entry.is_awaited:
                continue  # If it is unknown it stays so: nothing is sent that nothing awaits.
            if entry.phase is Phase.UNKNOWN:
                self._registry.retry(entry)
            self.requeue(entry)

    def pop_next(self, now: Now) -> TaskEntry | Turn | ChargeLimitError:
        """
        Take the submit that goes now out of the queue, which is not empty.

        Returns what is to be done instead if none goes: the error if no further charge is
        allowed, whatever the responses.
        """
        self._blocked_until = math.inf
        waiting = self._returned or self._queue
        if self._is_closed or self._registry.used_slots >= self._max_in_flight:
            return Turn.WAIT
        if (spent := self.charge_limit()) is not None:
            return spent
        if not self._is_affordable():
            return Turn.WAIT
        if (delay_s := self._pause.pop_notification(now.mono_s)) is not None:
            self._notify_outage(next(iter(waiting)), delay_s)
        is_sending = bool(self._registry.sending)
        blocked = self._pause.blocked_until(now.mono_s, is_sending=is_sending)
        if blocked is None:
            if self._pause.begin_read(now.mono_s):
                return Turn.READ
            blocked = self._limiter.acquire(now.mono_s)
        if blocked is not None:
            self._blocked_until = blocked
            return Turn.WAIT
        entry, _ = waiting.popitem(last=False)
        self._pause.begin_submit(entry)
        return entry

    def _notify_outage(self, entry: TaskEntry, delay_s: float) -> None:
        """Say that *entry*, which is next, waits for the end of an outage."""
        self._outbox.log(
            "warning",
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
            self._outbox.emit(
                "SubmitRetryScheduled", track=entry.track, error=held, delay_s=delay_s
            )

    def restore(
        self, ended_unix_s: Sequence[float], unknown: Iterable[UnknownSubmit], now: Now
    ) -> None:
        """
        Leave the window to the submits of an earlier run that the service still counts.

        If the last of them have unknown outcomes the service may still be out: new
        submits begin paused, and the first one goes alone.
        """
        per_s = self._rate_limit.per_s
        # A wall clock that was set back makes an end lie ahead: it counts in full.
        left = (per_s - max(0.0, now.unix_s - ended) for ended in ended_unix_s)
        self._limiter.restore(now.mono_s + left_s for left_s in left if left_s > 0)
        if self._pause.restore(ended_unix_s, [one.at.timestamp() for one in unknown], now.mono_s):
            self._outbox.log(
                "info",
                "the last %d submits in the ledger have an unknown outcome: new submits wait "
                "until one of them, sent alone, is answered",
                UNKNOWN_IN_A_ROW,
            )

    def end(self, entry: TaskEntry, now: Now, *, is_sent: bool) -> None:
        """
        Note that a submit has its response, or never will.

        *is_sent*: it was handed to the transport.
        """
        self._limiter.release(now.mono_s)
        self._pause.end_submit(entry, now.mono_s, is_sent=is_sent)

    # --- charges ------------------------------------------------------------------------

    def charge_limit(self) -> ChargeLimitError | None:
        """Return the error for one submit more, if none is allowed whatever the responses."""
        if self._max_charges is None or self._registry.charges < self._max_charges:
            return None
        return ChargeLimitError(max_charges=self._max_charges)

    def _is_affordable(self) -> bool:
        """Whether one more charge is allowed now: what is in progress may be charged."""
        charges = self._registry.charges + self._registry.sending
        return self._max_charges is None or charges < self._max_charges

    # --- pausing ------------------------------------------------------------------------

    def pause(self, until_mono_s: float) -> None:
        """Let nothing go before *until_mono_s*."""
        self._limiter.pause(until_mono_s)

    def note_maintenance(self, entry: TaskEntry, now: Now) -> bool:
        """Note that *entry* met maintenance; return whether that is news."""
        return self._pause.note_maintenance(entry, now.mono_s)

    def note_unknown(self, now: Now) -> None:
        """Note an unknown outcome."""
        self._pause.note_unknown(now.mono_s)

    def note_answer(self, entry: TaskEntry, *, has_code: bool) -> None:
        """
        Note that the outcome of a submit is known, and that it did not meet maintenance.

        *has_code*: it got a body with a code other than 408 and 5xx.
        """
        self._pause.note_answer(entry, has_code=has_code)

    def end_read(self, now: Now, *, is_answered: bool) -> None:
        """Note whether the service answered the free read that a turn waits for."""
        self._pause.end_read(now.mono_s, is_answered=is_answered)

    def close(self) -> tuple[TaskEntry, ...]:
        """Let nothing go any more; return what waited."""
        self._is_closed = True
        waiting = (*self.queued, *self._delayed)
        for collection in (self._returned, self._queue, self._delayed, self._moments):
            collection.clear()
        self._blocked_until = math.inf
        return waiting
