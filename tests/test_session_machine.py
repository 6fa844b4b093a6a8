"""A session under whatever order of events: each waiter ends once, and the books add up."""

from __future__ import annotations

import asyncio

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from fakes import (
    ACCEPTED,
    LOST_CHARGED,
    LOST_FREE,
    SILENT_CHARGED,
    UNSENT,
    FakeService,
    Fate,
    lost,
    raw,
    refusal,
    track,
)
from kie_wav_async import OnUnknown, RateLimit
from kie_wav_async.errors import KieWavError, SessionClosedError
from kie_wav_async.testing import FakeClock, failed, missing, pending, refused, succeeded

FATES = [
    ACCEPTED,
    LOST_CHARGED,
    LOST_FREE,
    UNSENT,
    SILENT_CHARGED,
    Fate("html", is_charged=True, reply=lambda _: raw(b"<html>")),
    Fate("500", is_charged=False, reply=lambda _: refused(500)),
    Fate("no route", is_charged=False, reply=lambda _: raw(b"<html>410", 410)),
    refusal(401),
    refusal(409),
    refusal(422),
    refusal(429),
    refusal(455),
]

POLLS = {
    "pending": pending,
    "succeeded": succeeded,
    "bare": lambda task_id: pending(task_id, successFlag="SUCCESS"),
    "failed": failed,
    "failed by code": lambda task_id: refused(501, data={"taskId": task_id, "successFlag": 3}),
    "no route": lambda _: raw(b"<html>404", 404),
    "none": lambda _: missing(),
    "401": lambda _: refused(401),
    "429": lambda _: refused(429, retry_after="20"),
    "500": lambda _: refused(500),
    "lost": lambda _: lost(),
    "another's": lambda _: succeeded("another"),
}

tracks = st.integers(0, 5).map(track)


class SessionMachine(RuleBasedStateMachine):
    """
    A session and a service, driven in any order.

    Nothing is known here of how the session works: only what its callers were
    told, and what the service charged.
    """

    waiters = Bundle("waiters")

    @hypothesis.stateful.initialize(
        on_unknown=st.sampled_from(OnUnknown),
        knows_repeats=st.booleans(),
        latency_s=st.sampled_from([0.0, 3.0]),
        max_in_flight=st.sampled_from([2, 100]),
        max_charges=st.sampled_from([None, 3]),
        first=st.sampled_from(FATES),
    )
    def open(self, *, on_unknown, knows_repeats, latency_s, max_in_flight, max_charges, first):
        self.loop = asyncio.new_event_loop()
        self.complaints = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.clock = FakeClock()
        self.service = FakeService(
            self.clock, conversion_s=40.0, latency_s=latency_s, knows_repeats=knows_repeats
        )
        self.session = self.service.session(
            on_unknown=on_unknown,
            rate_limit=RateLimit(2, per_s=10.0),
            max_in_flight=max_in_flight,
            max_charges=max_charges,
            timeout_s=300.0,
            on_event=self.note,
        )
        self.max_charges = max_charges
        self.told: list[object] = []
        self.tasks: list[asyncio.Task[object]] = []
        self.is_closed = False
        self.run(self.session.__aenter__())
        # Few runs would get far if each had to begin with nothing.
        self.service.fates.append(first)
        for number in (1, 2):
            self.start(self.session.convert(track(number)))

    def note(self, event):
        self.told.append(event)

    def run(self, awaitable):
        """Let the loop work on something, and then until nothing happens without time."""

        async def settled():
            result = await awaitable
            await self.clock.run_pending()
            return result

        return self.loop.run_until_complete(settled())

    def start(self, coroutine):
        task = self.loop.create_task(coroutine)
        self.tasks.append(task)
        self.run(self.clock.run_pending())
        return task

    # --- what may happen --------------------------------------------------------------------

    @rule(target=waiters, track=tracks, again=st.booleans())
    def convert(self, track, again):
        return self.start(self.session.convert(track, again=again))

    @rule(target=waiters, track=tracks)
    def submit(self, track):
        return self.start(self.session.submit(track))

    @rule(target=waiters, number=st.integers(1, 4))
    @precondition(lambda self: not self.is_closed)
    def attach(self, number):
        async def attach():
            return await self.session.attach(f"task{number:04d}")

        return self.start(attach())

    @rule(task=waiters)
    def cancel(self, task):
        task.cancel()
        self.run(self.clock.run_pending())

    @rule(fates=st.lists(st.sampled_from(FATES), min_size=1, max_size=4))
    def misbehave(self, fates):
        self.service.fates.extend(fates)

    @rule(names=st.lists(st.sampled_from(sorted(POLLS)), min_size=1, max_size=4))
    def bring_news(self, names):
        self.service.poll_replies.extend(POLLS[name] for name in names)

    @rule(seconds=st.sampled_from([1.0, 5.0, 15.0, 61.0, 310.0]))
    def wait(self, seconds):
        self.run(self.clock.advance(seconds))

    @rule(data=st.data(), is_charged=st.booleans())
    @precondition(lambda self: not self.is_closed and self.session.unknown_submits())
    def resolve(self, data, is_charged):
        # The user tells the truth, or there would be no bill to check.
        unknown = data.draw(st.sampled_from(self.session.unknown_submits()))
        charged = [t for t in self.service.tasks.values() if t.attempt_id == unknown.attempt_id]
        if charged and is_charged:
            call = self.session.resolve_unknown(unknown.attempt_id, task_id=charged[0].task_id)
        elif not charged and not is_charged:
            call = self.session.resolve_unknown(unknown.attempt_id, not_charged=True)
        else:
            return
        self.run(call)

    @rule(chance=st.integers(0, 9))
    @precondition(lambda self: not self.is_closed)
    def close(self, chance):
        if chance != 5:
            return  # Most of what may happen happens before.
        self.is_closed = True
        waits = [task for task in self.tasks if not task.done()]
        closing = self.loop.create_task(self.session.aclose())
        self.run(self.clock.run_pending())
        assert all(task.done() for task in waits)
        self.run(self.clock.run(closing))

    # --- what must hold -----------------------------------------------------------------------

    @invariant()
    def no_surprise(self):
        """Whoever waits gets a value, one of our errors, or the word on a misuse."""
        errors = []
        for task in self.tasks:
            if task.done() and not task.cancelled():
                error = task.exception()
                assert error is None or isinstance(error, KieWavError | ValueError)
                errors += [error] if error is not None else []
        assert len(errors) == len({id(error) for error in errors})
        assert [] == getattr(self, "complaints", [])

    @invariant()
    def bill_is_bounded(self):
        """What was charged lies between accepted and accepted + unknown + on the wire."""
        if not hasattr(self, "session"):
            return
        counted = self.session.statistics()
        charged = self.service.charged
        assert counted.accepted <= charged
        assert charged <= counted.accepted + counted.unknown + self.service.on_wire
        if self.max_charges is not None:
            assert counted.accepted + counted.unknown <= self.max_charges

    @invariant()
    def books_add_up(self):
        """The books agree with each other."""
        if not hasattr(self, "session"):
            return
        counted = self.session.statistics()
        open_ones = self.session.conversions()
        assert counted.in_flight == len(open_ones)
        assert all(c.task_id and not c.done() for c in open_ones)
        assert counted.unknown == len(self.session.unknown_submits())
        assert counted.submitted == len(self.service.submitted_at)
        assert counted.polls == len(self.service.polled_at)
        registry = self.session._core.registry
        # More, while the record of a task that a 409 named is asked for.
        assert registry.sending >= self.service.on_wire

    @invariant()
    def no_charge_is_forgotten(self):
        """Every task charged is known by id or in doubt, now or in what was told."""
        if not hasattr(self, "session") or self.service.on_wire:
            return
        unknowns = {unknown.attempt_id for unknown in self.session.unknown_submits()}
        told = {getattr(event, "task_id", None) for event in self.told}
        for task in self.service.tasks.values():
            assert task.task_id in told or task.attempt_id in unknowns

    def teardown(self):
        """Close, and see that everybody was told."""
        if not hasattr(self, "session"):
            return
        self.run(self.clock.run(self.session.aclose()))
        self.run(self.clock.advance(1_000.0))
        for task in self.tasks:
            assert task.done()
            if not task.cancelled():
                task.exception()
        with_nothing_sent = len(self.service.transport.requests)
        self.run(self.clock.advance(1_000.0))
        assert with_nothing_sent == len(self.service.transport.requests)
        assert isinstance(self.session._context.state.closed, SessionClosedError)
        assert asyncio.all_tasks(self.loop) == set()
        self.loop.close()


TestSessionMachine = SessionMachine.TestCase
TestSessionMachine.settings = hypothesis.settings(max_examples=75, stateful_step_count=30)


@pytest.mark.campaign
class TestSessionMachineForLong(SessionMachine.TestCase):
    settings = hypothesis.settings(
        max_examples=1_000, stateful_step_count=60, derandomize=False, database=None
    )
