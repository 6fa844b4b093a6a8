"""
The one poll scheduler: a heap of due times under a budget of polls per second.

A conversion in flight costs one heap item, not a task: a timer on the clock
wakes the scheduler for whatever is due first, and a task exists only while a
poll is on the wire. A poll is never repeated: the next poll is the retry.

A callback that must be confirmed has its task asked about beside the schedule (a
*hint*), within limits of its own; one that may belong to a lost submit has a task
*looked up* that nobody follows, by the same way. Both go before the scheduled polls,
and take at most half of their budget, so that a flood of callbacks ends nobody's
wait. One poll of a task is on the wire at a time, and what it brings is news for
everything that follows the task.

What a poll can bring. A record is news and goes to the registry. A 401, or an
answer that there is no such route, concerns all polls: polling pauses, and then a
single poll is sent. A second 401 or a third missing route in a row ends all waits;
the tasks stay in the books and polling resumes when somebody waits again.
Everything else, an HTML page, a 5xx, a reset, is no news.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from kie_wav_async.callbacks.callback_url import find_attempt, is_called_back_elsewhere
from kie_wav_async.core.policies import (
    REJECTED_POLL_RETRY_S,
    PollSchedule,
    RetryPolicy,
    first_poll_delay_s,
    next_poll_delay_s,
)
from kie_wav_async.core.poll_throttle import PollThrottle
from kie_wav_async.core.state_machine import Origin, Phase
from kie_wav_async.core.task_outcome import is_foreign, is_success_without_url
from kie_wav_async.errors import (
    AuthenticationError,
    EndpointGoneError,
    KieWavError,
    RateLimitedError,
    WireFormatError,
)
from kie_wav_async.ledger.states import AttemptOutcome
from kie_wav_async.models import TaskRecord, TaskState
from kie_wav_async.protocol.responses import created_at, is_known_status, parse_record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from yarl import URL

    from kie_wav_async.session.context import SessionContext
    from kie_wav_async.session.conversion import ConversionEntry

_logger = logging.getLogger("kie_wav_async")

#: Most polls on the wire at once: more would only queue for the same service,
#: with their timeouts running. Ours.
_MAX_IN_PROGRESS: Final = 100

#: How late a poll may be and still be counted at its turn. Timers of a busy
#: loop are some milliseconds late. Ours.
_MAX_LATE_S: Final = 0.1

#: Most tasks looked up at a time: as many as there are early callbacks. Ours.
_MAX_LOOKUPS: Final = 10_000

#: How many answers of a kind in a row end all waits.
_MAX_REJECTIONS: Final[Mapping[type[KieWavError], int]] = {
    AuthenticationError: 2,
    EndpointGoneError: 3,
}

#: How long after that no callback has it tried again: whoever replays them could
#: have each waiter told of it every moment. Ours.
_RECONSIDER_S: Final = 60.0

#: Most kinds of unknown answers remembered as logged, so that a lying peer cannot
#: grow the set.
_MAX_LOGGED: Final = 100


class TaskLookup(NamedTuple):
    """
    A task that is asked about on a callback's word until its record says enough.

    Attributes:
        task_id: The task.

        on_record: Given the record, `None` if there is none; returns whether that is enough.

        until_mono_s: When to give up.
    """

    task_id: str
    on_record: Callable[[TaskRecord | None], bool]
    until_mono_s: float


class Poller:
    """Polls the conversions it is told to follow until they are terminal."""

    def __init__(
        self,
        context: SessionContext,
        schedule: PollSchedule,
        retry: RetryPolicy,
        timeout_s: float | None,
    ) -> None:
        """Start with nothing to follow."""
        self._context = context
        self._schedule = schedule
        self._retry = retry
        self._timeout_s = timeout_s
        self._gap_s = 1 / schedule.max_per_s
        self._due: list[tuple[float, int, ConversionEntry]] = []
        self._ties = itertools.count()
        self._requested: list[tuple[float, int, str]] = []
        # When each task's hint has its turn; items that say otherwise are void.
        self._requested_tasks: dict[str, float] = {}
        self._throttle = PollThrottle(least_gap_s=2 * self._gap_s)
        self._lookups: dict[str, TaskLookup] = {}
        # The tasks with a poll on the wire, and whether a hint came meanwhile.
        self._asking: dict[str, bool] = {}
        # One timeout for all: the order of acceptance is the order of deadlines.
        self._deadlines: deque[ConversionEntry] = deque()
        self._timer = context.timer(self._tick)
        self._next_poll_at = -math.inf
        self._paused_until = -math.inf
        self._rejection = _NOT_REJECTED
        self._rejected_at = -math.inf
        self._logged: set[str] = set()
        self._is_closed = False
        context.health.on_unhealthy = self._resume_schedule

    # --- what others call -------------------------------------------------------------

    def follow(self, conversion: ConversionEntry, *, is_restored: bool = False) -> None:
        """
        Poll *conversion*, just accepted, until it is terminal.

        *is_restored*: it was accepted long ago, and maybe many with it, so its first
        poll comes at some moment of the next interval.
        """
        self.resume()
        now = self._context.clock.monotonic()
        if self._timeout_s is not None:
            self._deadlines.append(conversion)
        # Who is given up before the backstop would otherwise never be asked about,
        # and a task that is not of our making may call back elsewhere.
        has_backstop = self._timeout_s is None or self._schedule.backstop_s < self._timeout_s
        is_ours = conversion.origin is Origin.SUBMITTED
        conversion.awaits_callback = (
            has_backstop and is_ours and not is_restored and self._context.health.is_healthy
        )
        delay_s = first_poll_delay_s(self._schedule, awaits_callback=conversion.awaits_callback)
        if is_restored:
            delay_s = self._schedule.interval_s * self._context.random()
        self._push(conversion, now + delay_s)
        self._arm()

    def unfollow(self, conversion: ConversionEntry) -> None:
        """Let a conversion be that has lost its task; it may be followed anew."""
        conversion.next_poll_at = math.inf
        with contextlib.suppress(ValueError):  # There is no deadline without a timeout.
            self._deadlines.remove(conversion)

    def _resume_schedule(self) -> None:
        """Move backstop polls to the normal schedule: callbacks are no longer healthy."""
        now = self._context.clock.monotonic()
        for conversion in self._context.registry.in_flight():
            if not conversion.awaits_callback:
                continue
            conversion.awaits_callback = False
            first_at = conversion.accepted_mono_s + self._schedule.first_s
            # Overdue polls are spread over one interval.
            soon = now + self._schedule.interval_s * self._context.random()
            self._push(conversion, first_at if first_at > now else soon)
        self._arm()

    def rejoin(self, task_id: str) -> ConversionEntry | None:
        """Poll a task again that is kept, and return its new conversion; `None` if it is not."""
        for conversion in self._context.registry.known(task_id):
            if conversion.phase is Phase.TIMED_OUT_KEPT:
                self._context.registry.rejoin(conversion, self._context.clock.monotonic())
                self.follow(conversion, is_restored=True)
                self._context.on_followed(conversion)
                return conversion
        return None

    def request_poll(self, task_id: str) -> None:
        """Poll a task as soon as the limits allow: a callback says there is news."""
        if task_id in self._asking:
            # A poll that left before the callback came need not have its news.
            self._asking[task_id] = True
        else:
            self._push_requested(task_id, self._context.clock.monotonic())

    def look_up(self, lookup: TaskLookup) -> None:
        """Ask about a task on a callback's word, until its record says enough."""
        if len(self._lookups) < _MAX_LOOKUPS:
            _ = self._lookups.setdefault(lookup.task_id, lookup)
        if lookup.task_id in self._lookups:
            self.request_poll(lookup.task_id)

    def resume(self) -> None:
        """Resume polling after a final refusal, because somebody waits."""
        if self._rejection.is_final:
            self._rejection = self._rejection._replace(number=self._rejection.number - 1)
            # Polling was stopped, so give those waits the full timeout again.
            for conversion in self._deadlines:
                conversion.accepted_mono_s = self._context.clock.monotonic()
            self._arm()

    def reconsider(self) -> None:
        """Resume polling after a final refusal on an authentic callback, once a minute."""
        if self._context.clock.monotonic() >= self._rejected_at + _RECONSIDER_S:
            self.resume()

    async def poll(self, task_id: str) -> TaskRecord | None:
        """
        Send one poll and return what it brought.

        Raises:
            KieWavError: No record could be read.
        """
        self._context.registry.counters.polls += 1
        response = await self._context.send(self._context.requests.poll(task_id))
        try:
            return parse_record(response, task_id)
        except RateLimitedError:
            self._context.registry.counters.rejected_429 += 1
            raise

    def close(self) -> None:
        """Follow nothing any more."""
        self._is_closed = True
        self._timer.cancel()
        for collection in (self._due, self._requested, self._requested_tasks, self._lookups):
            collection.clear()
        self._deadlines.clear()

    # --- the scheduler ------------------------------------------------------------------

    def _push(self, conversion: ConversionEntry, due: float) -> None:
        """Schedule the next poll of *conversion*, unless an earlier one is."""
        if due < conversion.next_poll_at:
            # An earlier item of the conversion is thereby void.
            conversion.next_poll_at = due
            heapq.heappush(self._due, (due, next(self._ties), conversion))

    def _push_requested(self, task_id: str, due: float) -> None:
        """Give a task's hint its turn, unless an earlier one is; not before the task is free."""
        due = max(due, self._throttle.free_at(task_id))
        if self._is_closed or due >= self._requested_tasks.get(task_id, math.inf):
            return
        self._requested_tasks[task_id] = due
        heapq.heappush(self._requested, (due, next(self._ties), task_id))
        self._arm()

    def _arm(self) -> None:
        """Set the timer for whatever comes first; for nothing after a final refusal."""
        if self._is_closed or self._rejection.is_final:
            return
        when = self._deadline()
        if self._may_ask():
            free_at = max(self._next_poll_at, self._paused_until)
            if self._requested:
                when = min(when, max(self._requested[0][0], self._throttle.next_at, free_at))
            if self._due:
                when = min(when, max(self._due[0][0], free_at))
        if when < math.inf:
            self._timer.set(when)

    def _may_ask(self) -> bool:
        # After a refusal one poll asks for all.
        return len(self._asking) < (1 if self._rejection.number else _MAX_IN_PROGRESS)

    def _deadline(self) -> float:
        """Return the next deadline; forget those of conversions already terminal."""
        if self._timeout_s is None:
            return math.inf
        while self._deadlines and self._deadlines[0].phase is not Phase.ACCEPTED:
            _ = self._deadlines.popleft()
        if len(self._deadlines) > 2 * len(self._due) + _MAX_IN_PROGRESS:
            living = [c for c in self._deadlines if c.phase is Phase.ACCEPTED]
            self._deadlines = deque(living)
        if not self._deadlines:
            return math.inf
        return self._deadlines[0].accepted_mono_s + self._timeout_s

    def _tick(self) -> None:
        if self._rejection.is_final:
            return
        now = self._context.clock.monotonic()
        while self._timeout_s is not None and self._deadline() <= now:
            late: ConversionEntry = self._deadlines.popleft()
            self._context.registry.time_out(late, self._timeout_s, now)
            self._context.finish_conversion(late)
        self._send_requested(now)
        while self._due and self._due[0][0] <= now and self._is_free(now):
            due, _, conversion = heapq.heappop(self._due)
            if conversion.next_poll_at != due or conversion.phase is not Phase.ACCEPTED:
                continue
            conversion.next_poll_at = math.inf
            conversion.awaits_callback = False
            # A poll of its task that is on the wire does for this one too.
            if conversion.task_id not in self._asking:
                # This poll may stand in for one that a callback has asked for.
                conversion.is_called_back &= conversion.task_id in self._requested_tasks
                self._send(conversion.task_id, due, now)
        self._arm()

    def _send_requested(self, now: float) -> None:
        limiter = self._throttle
        while self._requested and self._requested[0][0] <= now and self._is_free(now):
            if limiter.next_at > now:
                return
            due, _, task_id = heapq.heappop(self._requested)
            if self._requested_tasks.get(task_id) != due:
                continue
            del self._requested_tasks[task_id]
            if task_id not in self._lookups and not self._context.registry.known(task_id):
                continue
            turn = max(due, limiter.next_at)
            limiter.spend(task_id, now)
            self._send(task_id, turn, now)

    def _is_free(self, now: float) -> bool:
        return self._may_ask() and max(self._next_poll_at, self._paused_until) <= now

    def _send(self, task_id: str, due: float, now: float) -> None:
        # The budget counts from when the poll's turn was, so that a late timer
        # costs none of it; a loop that was blocked for long gets no burst.
        free_at = max(self._next_poll_at, self._paused_until)
        self._next_poll_at = max(due, free_at, now - _MAX_LATE_S) + self._gap_s
        # It leaves after whatever callback there was, and will have its news.
        _ = self._requested_tasks.pop(task_id, None)
        self._asking[task_id] = False
        _ = self._context.spawn(self._ask(task_id, now))

    # --- one poll -----------------------------------------------------------------------

    async def _ask(self, task_id: str, sent_at: float) -> None:
        before = self._rejection
        # Counted from the poll's start, so that latency does not stretch the interval.
        again_from = sent_at
        is_news = False
        try:
            record = await self.poll(task_id)
        except (AuthenticationError, EndpointGoneError) as error:
            self._on_rejection(before, error)
        except KieWavError as error:
            self._no_news(task_id, error)
            self._end_rejections(before)
            again_from = self._context.clock.monotonic()
        except Exception:
            # A transport of the user's may raise anything; the wait goes on.
            _logger.exception("polling task %s failed; asking again later", task_id)
            again_from = self._context.clock.monotonic()
        else:
            self._rejection = _NOT_REJECTED
            is_news = record is not None
            self._distribute(task_id, record)
        finally:
            is_asked_again = self._asking.pop(task_id)
            if not self._is_closed:
                self._schedule_next(task_id, again_from, is_news=is_news)
                if is_asked_again:
                    self.request_poll(task_id)
            self._arm()

    def _distribute(self, task_id: str, record: TaskRecord | None) -> None:
        """Bring a record to everything that waits for it."""
        lookup = self._lookups.get(task_id)
        if lookup is not None and lookup.on_record(record):
            del self._lookups[task_id]
        conversions = self._context.registry.known(task_id)
        if lookup is None and not conversions:
            self._context.registry.record_late(record)
        for conversion in conversions:
            # Its own turn is still to come, so this poll was another's, or a callback's.
            self.observe(conversion, record, is_hint=conversion.next_poll_at < math.inf)
        # Afterwards, so that no end of a task waits for it in the ledger.
        is_ours = any(conversion.origin is Origin.SUBMITTED for conversion in conversions)
        if is_ours and record is not None and (url := _file_of(record)) is not None:
            self._context.learn_host(url)

    def _schedule_next(self, task_id: str, again_from: float, *, is_news: bool) -> None:
        """
        See to it that a poll without a last word is followed by another.

        A hint's poll that brought news (*is_news*) does for the one by schedule;
        one without leaves it, so that hints do not prolong a wait for nothing.
        """
        due = again_from + next_poll_delay_s(self._schedule, self._context.random())
        for conversion in self._context.registry.conversions_of(task_id):
            if is_news:
                conversion.next_poll_at = math.inf
            self._push(conversion, due)
        lookup = self._lookups.get(task_id)
        if lookup is None:
            return
        if due < lookup.until_mono_s:
            self._push_requested(task_id, due)
        else:
            del self._lookups[task_id]

    def observe(
        self, conversion: ConversionEntry, record: TaskRecord | None, *, is_hint: bool = False
    ) -> None:
        """
        Take in what a poll brought, and spread it if it ends the conversion.

        *is_hint*: a callback made us ask, so an empty answer exhausts no patience.
        """
        if record is not None:
            if not is_known_status(record):
                self._log_once(
                    f"status {record.status}",
                    "task %s has the unknown status %r: taken as pending",
                    record.task_id,
                    record.status,
                )
            if is_success_without_url(record):
                self._log_once(
                    "success without a file",
                    "task %s succeeded, but its answer names no file that we can read: waiting",
                    record.task_id,
                )
            if not (conversion.is_attributed or is_foreign(conversion, record)):
                self._attribute(conversion, record)
        now = self._context.clock.monotonic()
        if self._context.registry.observe(
            conversion,
            record,
            now,
            "poll",
            is_hint=is_hint,
            created_at=None if record is None else created_at(record),
        ):
            self._context.finish_conversion(conversion)

    def _attribute(self, conversion: ConversionEntry, record: TaskRecord) -> None:
        """Look whose submit created a task that existed."""
        attempt_id = find_attempt(record)
        if attempt_id is None and is_called_back_elsewhere(record, self._context.callback_url):
            attempt_id = ""  # Somebody else's.
        explained = self._context.registry.attribute(conversion, attempt_id)
        if explained is not None:
            task_id = conversion.task_id
            self._context.ledger_writer.finish_attempt_later(
                explained, AttemptOutcome.ACCEPTED, task_id=task_id
            )

    def _no_news(self, task_id: str, error: KieWavError) -> None:
        _logger.debug("no news of task %s: %s", task_id, error)
        if isinstance(error, WireFormatError):
            self._log_once("unreadable", "%s; polling goes on", error)
        if isinstance(error, RateLimitedError) and error.retry_after_s is not None:
            delay_s = min(error.retry_after_s, self._retry.retry_after_cap_s)
            self._paused_until = max(self._paused_until, self._context.clock.monotonic() + delay_s)
            self._context.emit("PollingPaused", reason="rate-limit", delay_s=delay_s)

    def _on_rejection(
        self, before: _Rejection, error: AuthenticationError | EndpointGoneError
    ) -> None:
        """Count a refusal that concerns all polls, unless its poll was sent before the last one."""
        if before is not self._rejection:
            return
        refusal = self._rejection = before.next(type(error))
        is_key = isinstance(error, AuthenticationError)
        reason = "authentication" if is_key else "endpoint-gone"
        if not refusal.is_final:
            self._paused_until = self._context.clock.monotonic() + REJECTED_POLL_RETRY_S
            self._context.emit("PollingPaused", reason=reason, delay_s=REJECTED_POLL_RETRY_S)
            return
        self._rejected_at = self._context.clock.monotonic()
        _logger.error(
            "the service %s: all waits end, the tasks stay open",
            "refuses the API key" if is_key else "has no such route",
        )
        self._context.emit("PollingPaused", reason=reason, delay_s=None)
        for conversion in tuple(self._context.registry.in_flight()):
            conversion.notify_waiters(error)
        self._context.on_polling_rejected(error)

    def _end_rejections(self, before: _Rejection) -> None:
        """Reset the count after another answer, unless it counts refusals of the key."""
        if before is self._rejection and self._rejection.kind is EndpointGoneError:
            self._rejection = _NOT_REJECTED

    def _log_once(self, what: str, message: str, *args: object) -> None:
        """Log a warning, unless one of the same kind was logged before."""
        if what not in self._logged and len(self._logged) < _MAX_LOGGED:
            self._logged.add(what)
            _logger.warning(message, *args)


def _file_of(record: TaskRecord) -> URL | None:
    """Return the file that a record names, if it says that the conversion succeeded."""
    return record.wav_url if record.state is TaskState.SUCCEEDED else None


class _Rejection(NamedTuple):
    """
    The refusals that polls got in a row: their kind and number.

    A new object each time that changes, so that a poll can tell whether its
    refusal is news.
    """

    kind: type[KieWavError] = KieWavError
    number: int = 0

    @property
    def is_final(self) -> bool:
        return self.number >= _MAX_REJECTIONS.get(self.kind, 1) and self.number > 0

    def next(self, kind: type[KieWavError]) -> _Rejection:
        """Return what follows with one more refusal, of *kind*."""
        return _Rejection(kind, self.number + 1 if kind is self.kind else 1)


_NOT_REJECTED: Final = _Rejection()
