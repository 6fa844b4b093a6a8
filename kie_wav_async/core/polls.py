"""
The one poll scheduler: a heap of due times under a budget of polls per second.

A conversion in flight costs one heap item. A poll is never repeated: the next poll is
the retry.

A callback that must be confirmed has its task polled beside the schedule (*requested*),
within limits of its own; a task that may belong to an unknown submit is *looked up*
although nothing follows it, in the same way. Both go before the scheduled polls, and
take at most half of their budget, so that a flood of callbacks ends no wait. One poll of
a task is in progress at a time, and what it brings is news for everything that follows
the task.

What a poll can bring. A record is news and goes to the registry. A 401, or an answer
that there is no such route, concerns all polls; see `core.poll_rejections`. Everything
else, an HTML page, a 5xx, a reset, is no news.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
from collections import deque
from typing import TYPE_CHECKING, Final

from kie_wav_async.core.effects import Notify, SendPoll
from kie_wav_async.core.policies import first_poll_delay_s, next_poll_delay_s
from kie_wav_async.core.poll_rejections import PollRejections
from kie_wav_async.core.poll_throttle import PollThrottle
from kie_wav_async.core.state_machine import Origin, Phase
from kie_wav_async.errors import (
    AuthenticationError,
    EndpointGoneError,
    KieWavError,
    RateLimitedError,
    WireFormatError,
    with_advice,
)

if TYPE_CHECKING:
    from kie_wav_async.core.callback_health import CallbackHealth
    from kie_wav_async.core.effects import Outbox
    from kie_wav_async.core.registry import Registry
    from kie_wav_async.core.settings import Chance, CoreSettings
    from kie_wav_async.core.state_machine import TaskEntry
    from kie_wav_async.core.task_ends import TaskEnds

#: Most polls in progress at once: more would only queue for the same service,
#: with their timeouts running. Ours.
_MAX_IN_PROGRESS: Final = 100

#: How late a poll may be and still be counted at its turn. Timers of a busy
#: loop are some milliseconds late. Ours.
_MAX_LATE_S: Final = 0.1

#: Most tasks looked up at a time: as many as there are early callbacks. Ours.
MAX_LOOKUPS: Final = 10_000

#: Most kinds of unknown answers remembered as logged, so that a lying peer cannot
#: grow the set.
_MAX_LOGGED: Final = 100


class Polls:
    """Schedules the polls of what is followed, until it is terminal."""

    def __init__(
        self,
        registry: Registry,
        health: CallbackHealth,
        ends: TaskEnds,
        outbox: Outbox,
        *,
        settings: CoreSettings,
        chance: Chance,
    ) -> None:
        self._registry = registry
        self._health = health
        self._ends = ends
        self._outbox = outbox
        self._schedule = settings.poll
        self._retry = settings.retry
        self._timeout_s = math.inf if settings.timeout_s is None else settings.timeout_s
        self._chance = chance
        self._gap_s = 1 / settings.poll.max_per_s
        self._due: list[tuple[float, int, TaskEntry]] = []
        self._ties = itertools.count()
        self._requested: list[tuple[float, int, str]] = []
        # When each task's request has its turn; items that say otherwise are void.
        self._requested_tasks: dict[str, float] = {}
        self._throttle = PollThrottle(least_gap_s=2 * self._gap_s)
        # Until when each task is looked up, and for which unknown submit.
        self._lookups: dict[str, tuple[float, str]] = {}
        # The tasks with a poll in progress, and whether another was requested meanwhile.
        self._asking: dict[str, bool] = {}
        # One timeout for all: the order of acceptance is the order of deadlines.
        self._deadlines: deque[TaskEntry] = deque()
        self._next_poll_at = -math.inf
        self._paused_until = -math.inf
        self._rejections = PollRejections(outbox)
        self._logged: set[str] = set()
        self._is_closed = False

    # --- what is to be polled -------------------------------------------------------------

    def follow(self, entry: TaskEntry, now_s: float, *, is_restored: bool = False) -> None:
        """
        Poll *entry*, just accepted, until it is terminal.

        *is_restored*: it was accepted long ago, and maybe many with it, so its first
        poll comes at some moment of the next interval.
        """
        self.resume(now_s)
        if self._is_closed:
            return
        if self._timeout_s < math.inf:
            self._deadlines.append(entry)
            if len(self._deadlines) > 2 * len(self._due) + _MAX_IN_PROGRESS:
                self._deadlines = deque(e for e in self._deadlines if e.phase is Phase.ACCEPTED)
        # One that would time out before the backstop would otherwise never be asked about,
        # and a task that is not of our making may call back elsewhere.
        has_backstop = self._schedule.backstop_s < self._timeout_s
        is_ours = entry.origin is Origin.SUBMITTED
        entry.awaits_callback = (
            has_backstop and is_ours and not is_restored and self._health.is_healthy
        )
        delay_s = first_poll_delay_s(self._schedule, awaits_callback=entry.awaits_callback)
        if is_restored:
            delay_s = self._schedule.interval_s * self._chance.random()
        self._push(entry, now_s + delay_s)

    def unfollow(self, entry: TaskEntry) -> None:
        """Stop polling an entry that has lost its task; it may be followed anew."""
        entry.next_poll_at = math.inf
        with contextlib.suppress(ValueError):  # There is no deadline without a timeout.
            self._deadlines.remove(entry)

    def resume_schedule(self, now_s: float) -> None:
        """Move backstop polls to the normal schedule: callbacks are no longer healthy."""
        for entry in self._registry.in_flight():
            if not entry.awaits_callback:
                continue
            entry.awaits_callback = False
            first_at = entry.accepted_mono_s + self._schedule.first_s
            # Overdue polls are spread over one interval.
            soon = now_s + self._schedule.interval_s * self._chance.random()
            self._push(entry, first_at if first_at > now_s else soon)

    def request(self, task_id: str, now_s: float) -> None:
        """Poll a task as soon as the limits allow: a callback says there is news."""
        if task_id in self._asking:
            # A poll that left before the callback came need not have its news.
            self._asking[task_id] = True
        else:
            self._push_requested(task_id, now_s)

    def look_up(self, task_id: str, attempt_id: str, until_mono_s: float, now_s: float) -> None:
        """
        Poll a task that nothing follows, until `end_lookup` or *until_mono_s*.

        *attempt_id* is the unknown submit that may have made it; the first one counts.
        """
        if len(self._lookups) < MAX_LOOKUPS:
            _ = self._lookups.setdefault(task_id, (until_mono_s, attempt_id))
        if task_id in self._lookups:
            self.request(task_id, now_s)

    def looked_up_for(self, task_id: str) -> str | None:
        """Return the unknown submit that a task is looked up for; `None` if it is not."""
        lookup = self._lookups.get(task_id)
        return None if lookup is None else lookup[1]

    def end_lookup(self, task_id: str) -> None:
        """Look a task up no more: its record has said enough."""
        del self._lookups[task_id]

    def resume(self, now_s: float) -> None:
        """Resume polling after a final rejection, because something waits."""
        if self._rejections.resume():
            # Polling was stopped, so give those waits the full timeout again.
            for entry in self._deadlines:
                entry.accepted_mono_s = now_s

    @property
    def is_stopped(self) -> bool:
        """Whether nothing is polled after a final rejection."""
        return self._rejections.is_final

    def reconsider(self, now_s: float) -> None:
        """Resume polling after a final rejection on an authentic callback, once a minute."""
        if self._rejections.may_reconsider(now_s):
            self.resume(now_s)

    def close(self) -> None:
        """Poll nothing any more."""
        self._is_closed = True
        for collection in (self._due, self._requested, self._requested_tasks, self._lookups):
            collection.clear()
        self._deadlines.clear()

    # --- the schedule -------------------------------------------------------------------

    def _push(self, entry: TaskEntry, due: float) -> None:
        """Schedule the next poll of *entry*, unless an earlier one is."""
        if due < entry.next_poll_at:
            # An earlier item of the entry is thereby void.
            entry.next_poll_at = due
            heapq.heappush(self._due, (due, next(self._ties), entry))

    def _push_requested(self, task_id: str, due: float) -> None:
        """Give a task's request its turn, unless it has an earlier one."""
        due = max(due, self._throttle.free_at(task_id))
        if self._is_closed or due >= self._requested_tasks.get(task_id, math.inf):
            return
        self._requested_tasks[task_id] = due
        heapq.heappush(self._requested, (due, next(self._ties), task_id))

    def next_at(self) -> float:
        """Return when `tick` is due, monotonic; infinite after a final rejection."""
        if self._is_closed or self._rejections.is_final:
            return math.inf
        when = self._deadline() if self._deadlines else math.inf
        if (self._due or self._requested) and self._may_ask():
            free_at = max(self._next_poll_at, self._paused_until)
            if self._requested:
                when = min(when, max(self._requested[0][0], self._throttle.next_at, free_at))
            if self._due:
                when = min(when, max(self._due[0][0], free_at))
        return when

    def _may_ask(self) -> bool:
        # After a rejection one poll asks for all.
        return len(self._asking) < (1 if self._rejections.number else _MAX_IN_PROGRESS)

    def _deadline(self) -> float:
        """Return the next deadline; forget those of entries already terminal."""
        deadlines = self._deadlines
        while deadlines and deadlines[0].phase is not Phase.ACCEPTED:
            _ = deadlines.popleft()
        return deadlines[0].accepted_mono_s + self._timeout_s if deadlines else math.inf

    def tick(self, now_s: float) -> None:
        """Time out what is late, and send the polls that are due."""
        if self._is_closed or self._rejections.is_final:
            return
        while self._deadlines and self._deadline() <= now_s:
            late = self._deadlines.popleft()
            self._registry.time_out(late, self._timeout_s, now_s)
            self._ends.finish(late)
        self._send_requested(now_s)
        while self._due and self._due[0][0] <= now_s and self._is_free(now_s):
            due, _, entry = heapq.heappop(self._due)
            if entry.next_poll_at != due or entry.phase is not Phase.ACCEPTED:
                continue
            entry.next_poll_at = math.inf
            entry.awaits_callback = False
            # A poll of its task that is in progress does for this one too.
            if entry.task_id not in self._asking:
                # This poll may stand in for one that a callback has asked for.
                entry.is_called_back &= entry.task_id in self._requested_tasks
                self._send(entry.task_id, due, now_s)

    def _send_requested(self, now_s: float) -> None:
        limiter = self._throttle
        while self._requested and self._requested[0][0] <= now_s and self._is_free(now_s):
            if limiter.next_at > now_s:
                return
            due, _, task_id = heapq.heappop(self._requested)
            if self._requested_tasks.get(task_id) != due:
                continue
            del self._requested_tasks[task_id]
            if task_id not in self._lookups and not self._registry.known(task_id):
                continue
            turn = max(due, limiter.next_at)
            limiter.spend(task_id, now_s)
            self._send(task_id, turn, now_s)

    def _is_free(self, now_s: float) -> bool:
        return self._may_ask() and max(self._next_poll_at, self._paused_until) <= now_s

    def _send(self, task_id: str, due: float, now_s: float) -> None:
        # The budget counts from when the poll's turn was, so that a late timer
        # costs none of it; a loop that was blocked for long gets no burst.
        free_at = max(self._next_poll_at, self._paused_until)
        self._next_poll_at = max(due, free_at, now_s - _MAX_LATE_S) + self._gap_s
        # It leaves after whatever callback there was, and will have its news.
        _ = self._requested_tasks.pop(task_id, None)
        self._asking[task_id] = False
        self._registry.counters.polls += 1
        self._outbox.put(SendPoll(task_id, now_s, self._rejections.round))

    # --- what a poll brought ---------------------------------------------------------------

    def note_answered(self) -> None:
        """Note that a poll got an answer that says nothing against all polls."""
        self._rejections.clear()

    def fail_poll(self, poll: SendPoll, error: Exception, now_s: float) -> KieWavError | None:
        """End a poll that brought no record; return what it ends all waits with, if it does."""
        final, is_answered = None, False
        if isinstance(error, AuthenticationError | EndpointGoneError):
            final, is_answered = self._note_rejection(poll, error, now_s), True
        elif isinstance(error, KieWavError):
            self._note_no_news(poll.task_id, error, now_s)
            self._rejections.note_other(poll.rejection_round)
        self.end_poll(poll, now_s, is_answered=is_answered, is_news=False)
        return final

    def end_poll(self, poll: SendPoll, now_s: float, *, is_answered: bool, is_news: bool) -> None:
        """
        Note that a poll is over, and see to it that one without a last word is followed by another.

        Args:
            poll: It.

            now_s: The time.

            is_answered: Whether it was answered, if only with an error that concerns
                all polls: the next interval counts from its start, so that latency
                does not stretch it.

            is_news: Whether it brought a record. A requested poll that did does for the one
                by schedule; one that did not leaves it, so that requests do not prolong
                a wait for nothing.
        """
        is_requested_again = self._asking.pop(poll.task_id)
        if self._is_closed:
            return
        again_from = poll.sent_at if is_answered else now_s
        due = again_from + next_poll_delay_s(self._schedule, self._chance.random())
        for entry in self._registry.conversions_of(poll.task_id):
            if is_news:
                entry.next_poll_at = math.inf
            self._push(entry, due)
        lookup = self._lookups.get(poll.task_id)
        if lookup is not None:
            if due < lookup[0]:
                self._push_requested(poll.task_id, due)
            else:
                del self._lookups[poll.task_id]
        if is_requested_again:
            self.request(poll.task_id, now_s)

    def _note_no_news(self, task_id: str, error: KieWavError, now_s: float) -> None:
        self._outbox.log("debug", "no news of task %s: %s", task_id, error)
        if isinstance(error, WireFormatError):
            self.log_once("unreadable", "%s; polling goes on", with_advice(error))
        if isinstance(error, RateLimitedError):
            self._registry.counters.rejected_429 += 1
            if error.retry_after_s is not None:
                delay_s = min(error.retry_after_s, self._retry.retry_after_cap_s)
                self._paused_until = max(self._paused_until, now_s + delay_s)
                self._outbox.emit("PollingPaused", reason="rate-limit", delay_s=delay_s)

    def _note_rejection(
        self, poll: SendPoll, error: AuthenticationError | EndpointGoneError, now_s: float
    ) -> KieWavError | None:
        """Pause all polls; return *error* if it ends all waits."""
        until = self._rejections.note(poll.rejection_round, error, now_s)
        if until is None:
            return None
        if until < math.inf:
            self._paused_until = until
            return None
        for entry in self._registry.in_flight():
            self._outbox.put(Notify(entry, error))
        return error

    def log_once(self, what: str, message: str, *args: object) -> None:
        """Log a warning, unless one of the same kind was logged before."""
        if what not in self._logged and len(self._logged) < _MAX_LOGGED:
            self._logged.add(what)
            self._outbox.log("warning", message, *args)
