"""
The one poll scheduler: a heap of due times under a budget of polls per second.

A conversion in flight costs one heap item, not a task: a timer on the clock
wakes the scheduler for whatever is due first, and a task exists only while a
poll is on the wire. A poll is never repeated: the next poll is the retry.

What a poll can bring. A record is news and goes to the registry. A 401 is about
the key and not the task, so all polling rests, asks once more, and on a second
401 ends all waits; the tasks stay in the books and polling starts again when
somebody waits again. Everything else, an HTML page, a 5xx, a reset, is no news.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Final

import attrs

from kie_wav_async import events
from kie_wav_async._lifecycle import Phase
from kie_wav_async._registry import is_foreign
from kie_wav_async._requests import PLACEHOLDER_CALLBACK_URL
from kie_wav_async._schedule import (
    AUTHENTICATION_RETRY_S,
    PollSchedule,
    RetryPolicy,
    first_poll_delay_s,
    next_poll_delay_s,
)
from kie_wav_async._wire import (
    find_attempt,
    is_called_back_elsewhere,
    is_known_status,
    parse_record,
)
from kie_wav_async.errors import AuthenticationError, KieWavError, RateLimitedError

if TYPE_CHECKING:
    from kie_wav_async._conversion import Conversion
    from kie_wav_async._desk import Desk
    from kie_wav_async._models import TaskRecord

_logger = logging.getLogger("kie_wav_async")

#: Most polls on the wire at once: more would only queue for the same service,
#: with their timeouts running. Ours.
_MAX_ON_WIRE: Final = 100

#: How late a poll may be and still be counted at its turn. Timers of a busy
#: loop are some milliseconds late. Ours.
_MAX_LATE_S: Final = 0.1

#: Most unknown status words remembered as logged, so that a lying peer cannot
#: grow the set.
_MAX_WORDS: Final = 100


class Poller:
    """Polls the conversions it is told to follow until they are terminal."""

    def __init__(
        self, desk: Desk, schedule: PollSchedule, retry: RetryPolicy, timeout_s: float | None
    ) -> None:
        """Start with nothing to follow."""
        self._desk = desk
        self._schedule = schedule
        self._retry = retry
        self._timeout_s = timeout_s
        self._gap_s = 1 / schedule.max_per_s
        self._due: list[tuple[float, int, Conversion]] = []
        self._ties = itertools.count()
        # One timeout for all: the order of acceptance is the order of deadlines.
        self._deadlines: deque[Conversion] = deque()
        self._timer = desk.timer(self._tick)
        self._on_wire = 0
        self._next_poll_at = -math.inf
        self._paused_until = -math.inf
        self._key = _KeyDoubt()
        self._words: set[str] = set()
        self._is_closed = False

    # --- what others call -------------------------------------------------------------

    def follow(self, conversion: Conversion) -> None:
        """Poll *conversion*, just accepted, until it is terminal."""
        self.revive()
        now = self._desk.clock.monotonic()
        if self._timeout_s is not None:
            self._deadlines.append(conversion)
        self._push(conversion, now + first_poll_delay_s(self._schedule, callbacks_flow=False))
        self._arm()

    def revive(self) -> None:
        """Somebody waits: ask again, even if the key was refused."""
        if self._key.is_refused:
            self._key = _KeyDoubt(strikes=1)
            self._arm()

    async def poll(self, task_id: str) -> TaskRecord | None:
        """
        Send one poll and return what it brought.

        Raises:
            KieWavError: No record could be read.
        """
        self._desk.registry.tally.polls += 1
        response = await self._desk.send(self._desk.requests.poll(task_id))
        try:
            return parse_record(response, task_id)
        except RateLimitedError:
            self._desk.registry.tally.rejected_429 += 1
            raise

    def close(self) -> None:
        """Follow nothing any more."""
        self._is_closed = True
        self._timer.cancel()
        self._due.clear()
        self._deadlines.clear()

    # --- the scheduler ------------------------------------------------------------------

    def _push(self, conversion: Conversion, due: float) -> None:
        heapq.heappush(self._due, (due, next(self._ties), conversion))

    def _arm(self) -> None:
        """Set the timer for whatever comes first; for nothing once the key is refused."""
        if self._is_closed or self._key.is_refused:
            return
        when = self._deadline()
        if self._due and self._may_ask():
            due = max(self._due[0][0], self._next_poll_at, self._paused_until)
            when = min(when, due)
        if when < math.inf:
            self._timer.set(when)

    def _may_ask(self) -> bool:
        # While the key is in doubt one poll asks for all.
        return self._on_wire < (1 if self._key.strikes else _MAX_ON_WIRE)

    def _deadline(self) -> float:
        """Return the next deadline; forget those of conversions already terminal."""
        if self._timeout_s is None:
            return math.inf
        while self._deadlines and self._deadlines[0].phase is not Phase.ACCEPTED:
            _ = self._deadlines.popleft()
        if len(self._deadlines) > 2 * len(self._due) + _MAX_ON_WIRE:
            living = [c for c in self._deadlines if c.phase is Phase.ACCEPTED]
            self._deadlines = deque(living)
        if not self._deadlines:
            return math.inf
        return self._deadlines[0].accepted_mono_s + self._timeout_s

    def _tick(self) -> None:
        if self._key.is_refused:
            return
        now = self._desk.clock.monotonic()
        while self._timeout_s is not None and self._deadline() <= now:
            late: Conversion = self._deadlines.popleft()
            self._desk.registry.time_out(late, self._timeout_s)
            self._desk.ended(late)
        while self._due and self._due[0][0] <= now and self._may_ask():
            free_at = max(self._next_poll_at, self._paused_until)
            if free_at > now:
                break
            due, _, conversion = heapq.heappop(self._due)
            if conversion.phase is not Phase.ACCEPTED:
                continue
            # The budget counts from when the poll's turn was, so that a late timer
            # costs none of it; a loop that was blocked for long gets no burst.
            turn = max(due, free_at, now - _MAX_LATE_S)
            self._next_poll_at = turn + self._gap_s
            self._on_wire += 1
            _ = self._desk.spawn(self._ask(conversion, now))
        self._arm()

    # --- one poll -----------------------------------------------------------------------

    async def _ask(self, conversion: Conversion, sent_at: float) -> None:
        doubt = self._key
        # Counted from the poll's start, so that latency does not stretch the interval.
        again_from = sent_at
        try:
            record = await self.poll(conversion.task_id)
        except AuthenticationError as error:
            self._strike(doubt, error)
        except KieWavError as error:
            self._no_news(conversion, error)
            again_from = self._desk.clock.monotonic()
        except Exception:
            # A transport of the user's may raise anything; the wait goes on.
            _logger.exception("polling task %s failed; asking again later", conversion.task_id)
            again_from = self._desk.clock.monotonic()
        else:
            if self._key.strikes:
                self._key = _KeyDoubt()
            self.observe(conversion, record)
        finally:
            self._on_wire -= 1
            if conversion.phase is Phase.ACCEPTED:
                sample = self._desk.chance()
                self._push(conversion, again_from + next_poll_delay_s(self._schedule, sample))
            self._arm()

    def observe(self, conversion: Conversion, record: TaskRecord | None) -> None:
        """Take in what a poll brought, and spread it if it ends the conversion."""
        if record is not None:
            if not is_known_status(record):
                self._log_word(record)
            if not (conversion.is_recognised or is_foreign(conversion, record)):
                self._recognise(conversion, record)
        now = self._desk.clock.monotonic()
        if self._desk.registry.observe(conversion, record, now, "poll"):
            self._desk.ended(conversion)

    def _recognise(self, conversion: Conversion, record: TaskRecord) -> None:
        """Look whose submit created a task that existed."""
        attempt_id = find_attempt(record)
        if attempt_id is None and is_called_back_elsewhere(record, PLACEHOLDER_CALLBACK_URL):
            attempt_id = ""  # Somebody else's.
        self._desk.registry.recognise(conversion, attempt_id)

    def _no_news(self, conversion: Conversion, error: KieWavError) -> None:
        _logger.debug("no news of task %s: %s", conversion.task_id, error)
        if isinstance(error, RateLimitedError) and error.retry_after_s is not None:
            delay_s = min(error.retry_after_s, self._retry.retry_after_cap_s)
            self._paused_until = max(self._paused_until, self._desk.clock.monotonic() + delay_s)
            self._desk.emit(events.PollingPaused, reason="rate-limit", delay_s=delay_s)

    def _strike(self, doubt: _KeyDoubt, error: AuthenticationError) -> None:
        """Take in a 401, unless the poll went out before the doubt it speaks of."""
        if doubt is not self._key:
            return
        if not doubt.strikes:
            self._key = _KeyDoubt(strikes=1)
            self._paused_until = self._desk.clock.monotonic() + AUTHENTICATION_RETRY_S
            self._desk.emit(
                events.PollingPaused, reason="authentication", delay_s=AUTHENTICATION_RETRY_S
            )
            return
        self._key = _KeyDoubt(strikes=2)
        _logger.error("the service refuses the API key: all waits end, the tasks stay open")
        self._desk.emit(events.PollingPaused, reason="authentication", delay_s=None)
        for conversion in tuple(self._desk.registry.in_flight()):
            conversion.wake(error)
        self._desk.on_key_refused(error)

    def _log_word(self, record: TaskRecord) -> None:
        if record.status not in self._words and len(self._words) < _MAX_WORDS:
            self._words.add(record.status)
            _logger.warning(
                "task %s has the unknown status %r: taken as pending",
                record.task_id,
                record.status,
            )


@attrs.frozen(eq=False)
class _KeyDoubt:
    """
    How much the service doubts our key: refused polls in a row.

    A new object each time the doubt changes, so that a poll can tell whether
    its 401 is news.
    """

    strikes: int = 0

    @property
    def is_refused(self) -> bool:
        return self.strikes > 1
