"""Sessions on one ledger that die and come back in any order: the bill is always bounded."""

from __future__ import annotations

import asyncio
import collections

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fakes import (
    ACCEPTED,
    LISTENING_AT,
    LOST_CHARGED,
    LOST_FREE,
    SILENT_CHARGED,
    UNSENT,
    WEBHOOK_KEY,
    FakeService,
    lost,
    raw,
    refusal,
    track,
)
from kie_wav_async import OnUnknown, RateLimit
from kie_wav_async.errors import KieWavError, LedgerError
from kie_wav_async.ledger import TrackState
from kie_wav_async.testing import FakeClock, MemoryLedger, failed, missing, pending, refused
from ledger_steps import Process, bill, is_in_bill

FATES = [
    ACCEPTED,
    LOST_CHARGED,
    LOST_FREE,
    UNSENT,
    SILENT_CHARGED,
    refusal(401),
    refusal(409),
    refusal(422),
    refusal(429),
    refusal(455),
]

#: News of a task that end it badly, or may.
BAD_NEWS = {"failed": failed, "none": lambda _: missing()}
NEWS = {
    "pending": pending,
    "401": lambda _: refused(401),
    "429": lambda _: refused(429, retry_after="20"),
    "lost": lambda _: lost(),
    "no route": lambda _: raw(b"<html>404", 404),
    **BAD_NEWS,
}

BROKEN = LedgerError("no space left on device: free some")
CALLS = ["get", "list_entries", "begin_attempt", "finish_attempt", "record_callback", "finish_task"]

tracks = st.integers(0, 3).map(track)

#: What is rare happens at 0: most of what may happen happens before.
chances = st.integers(0, 3)


class LedgerMachine(RuleBasedStateMachine):
    """
    A service, and one session after another on what the last one left.

    Nothing is known here of how a session works: only what its callers were
    told, what the ledger holds and what the service charged.
    """

    waiters = Bundle("waiters")

    @initialize(
        on_unknown=st.sampled_from(OnUnknown),
        knows_repeats=st.booleans(),
        latency_s=st.sampled_from([0.0, 3.0]),
        max_charges=st.sampled_from([None, 4]),
        fates=st.lists(st.sampled_from(FATES), max_size=3),
        chance=st.sampled_from([0.0, 0.5, 0.99]),
    )
    def open(self, *, on_unknown, knows_repeats, latency_s, max_charges, fates, chance):
        self.loop = asyncio.new_event_loop()
        self.complaints = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.clock = FakeClock()
        self.service = FakeService(
            self.clock, conversion_s=40.0, latency_s=latency_s, knows_repeats=knows_repeats
        )
        self.settings = {
            "on_unknown": on_unknown,
            "rate_limit": RateLimit(2, per_s=10.0),
            "max_charges": max_charges,
            "timeout_s": 300.0,
            "callback_url": LISTENING_AT,
            "webhook_keys": WEBHOOK_KEY,
        }
        self.chance = chance
        self.insisted = set()
        self.has_bad_news = False
        self.tasks = []
        self.dead = []
        self.enter(MemoryLedger())
        # Few runs would get far if each had to begin with nothing.
        self.service.fates.extend(fates)
        for number in (1, 2, 3):
            self.start(self.session.convert(track(number)))

    def enter(self, ledger):
        self.words = []
        self.ledger = ledger
        self.process = Process(self.service, ledger, **self.settings)
        self.session = self.process.session
        # The same rules must lead to the same end, or nothing can be made smaller.
        self.session._context.random = lambda: self.chance
        self.run(self.session.__aenter__())

    def run(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    def start(self, coroutine):
        task = self.loop.create_task(coroutine)
        self.tasks.append(task)
        self.run(self.clock.run_pending())
        return task

    # --- what may happen --------------------------------------------------------------------

    @rule(target=waiters, of=tracks, again=st.sampled_from([False, False, True]))
    def convert(self, of, again):
        if again:
            self.insisted.add(of)
        return self.start(self.session.convert(of, again=again))

    @rule(target=waiters, of=tracks)
    def submit(self, of):
        return self.start(self.session.submit(of))

    @rule(target=waiters, catalog=st.lists(tracks, max_size=6))
    def convert_all(self, catalog):
        async def convert_all():
            async with self.session.convert_all(catalog) as batch:
                return [outcome async for outcome in batch]

        return self.start(convert_all())

    @rule(target=waiters)
    def recover(self):
        async def recover():
            for conversion in await self.session.recover():
                await conversion

        return self.start(recover())

    @rule(task=waiters)
    def cancel(self, task):
        task.cancel()
        self.run(self.clock.run_pending())

    @rule(fates=st.lists(st.sampled_from(FATES), min_size=1, max_size=4))
    def misbehave(self, fates):
        self.service.fates.extend(fates)

    @rule(names=st.lists(st.sampled_from(sorted(NEWS)), min_size=1, max_size=3))
    def bring_news(self, names):
        self.has_bad_news |= not BAD_NEWS.keys().isdisjoint(names)
        self.service.poll_replies.extend(self.saying(name) for name in names)

    def saying(self, name):
        """Return news that says whose task it is about: what does not explains a lone doubt."""

        def reply(task_id):
            task = self.service.tasks.get(task_id)
            if task is None or name not in {"pending", "failed"}:
                return NEWS[name](task_id)
            named = {"musicId": task.track.audio_id, "callbackUrl": task.callback_url}
            return NEWS[name](task_id, **named)

        return reply

    @rule(seconds=st.sampled_from([1.0, 5.0, 15.0, 61.0, 310.0]))
    def wait(self, seconds):
        self.run(self.clock.advance(seconds))

    @rule(seconds=st.sampled_from([-3_600.0, -5.0, 5.0, 3_600.0]))
    def jump(self, seconds):
        self.clock.shift_wall_clock(seconds)

    @rule(number=st.integers(1, 6))
    def call_back(self, number):
        task_id = f"task{number:04d}"
        if task_id in self.service.tasks:
            self.service.finish(task_id)
            self.start(self.service.callback(task_id).to(self.session))

    @rule(data=st.data(), is_charged=st.booleans())
    @precondition(lambda self: self.session.unknown_submits())
    def resolve(self, data, is_charged):
        # The user tells the truth, or there would be no bill to check.
        unknown = data.draw(st.sampled_from(self.session.unknown_submits()))
        charged = [t for t in self.service.tasks.values() if t.attempt_id == unknown.attempt_id]
        if bool(charged) != is_charged or self.service.on_wire:
            return
        word = {"task_id": charged[0].task_id} if charged else {"not_charged": True}
        self.words.append(self.start(self.session.resolve_unknown(unknown.attempt_id, **word)))

    # --- what may happen to the ledger ------------------------------------------------------

    @rule(names=st.sets(st.sampled_from(CALLS), min_size=1), is_late=st.booleans(), chance=chances)
    def break_ledger(self, names, is_late, chance):
        if chance:
            return
        self.ledger.fail_with = dict.fromkeys(names, BROKEN)
        self.ledger.fails_late = is_late

    @rule(names=st.sets(st.sampled_from(CALLS), min_size=1), chance=chances)
    def hold_ledger(self, names, chance):
        if not self.ledger.hold and not chance:
            self.ledger.hold = dict.fromkeys(names, asyncio.Event())

    @rule()
    def mend_ledger(self):
        self.ledger.fail_with = None
        for event in (self.ledger.hold or {}).values():
            event.set()
        self.ledger.hold = None
        self.run(self.clock.run_pending())

    @rule(chance=chances)
    def die(self, chance):
        if chance:
            return
        self.dead.append(self.process)
        self.enter(self.process.die())

    @rule(chance=chances)
    def close_and_come_back(self, chance):
        if chance:
            return
        self.run(self.clock.run(self.session.aclose()))
        assert not self.ledger.is_open
        self.ledger.hold = self.ledger.fail_with = None
        self.enter(self.ledger)

    # --- what must hold -----------------------------------------------------------------------

    @invariant()
    def no_surprise(self):
        """Whoever waits gets a value, one of our errors, or the word on a misuse."""
        for task in getattr(self, "tasks", ()):
            if task.done() and not task.cancelled():
                error = task.exception()
                assert error is None or isinstance(error, KieWavError | ValueError), error
        assert [] == getattr(self, "complaints", [])

    @invariant()
    def bill_is_bounded(self):
        """What was charged lies between accepted and accepted + unknown, in the ledger too."""
        if not hasattr(self, "session"):
            return
        assert is_in_bill(self.service, self.ledger)
        accepted, unknown = bill(self.ledger)
        limit = self.settings["max_charges"]
        assert limit is None or accepted + unknown <= limit

    @invariant()
    def nothing_is_paid_twice(self):
        """A track is paid once, unless its user insists, or a task of it ended badly."""
        if not hasattr(self, "session"):
            return
        is_careful = self.settings["on_unknown"] is OnUnknown.RAISE or self.service.knows_repeats
        if is_careful and not self.has_bad_news:
            charges = collections.Counter(task.track for task in self.service.tasks.values())
            assert all(n == 1 for of, n in charges.items() if of not in self.insisted)

    @invariant()
    def books_agree(self):
        """Once all is written, books and ledger say the same of every submit."""
        if not hasattr(self, "session"):
            return
        self.run(self.clock.run_pending())
        journal, registry = self.session._context.ledger_writer, self.session._core.registry
        if (
            journal.calls
            or journal._unwritten
            or registry.sending
            or self.session._core._polls._lookups
        ):
            return
        if any(word.exception() is not None for word in self.words if word.done()):
            return  # The ledger may have taken it all the same.
        assert set(self.ledger._tables.unknown) == {
            unknown.attempt_id for unknown in registry.unknown_submits()
        }
        accepted, unknown = bill(self.ledger)
        assert accepted + unknown == registry.charges
        states = {row.track: row.state() for row in self.ledger._tables.rows.values()}
        assert TrackState.SUBMITTING not in states.values()
        for conversion in self.session.conversions():
            # A second task, found late, is followed here, and needed no more there.
            followed = {TrackState.ACCEPTED, TrackState.SUCCEEDED}
            assert states[conversion.track] in followed

    def teardown(self):
        """Mend, close, and see that everybody was told."""
        if not hasattr(self, "session"):
            return
        self.mend_ledger()
        for process in [*self.dead, self.process]:
            process.ledger.hold = process.ledger.fail_with = None
            self.run(self.clock.run(process.session.aclose()))
            assert not process.ledger.is_open
        self.run(self.clock.advance(100.0))
        for task in self.tasks:
            assert task.done(), task
            if not task.cancelled():
                task.exception()
        assert asyncio.all_tasks(self.loop) == set()
        self.loop.close()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = hypothesis.settings(max_examples=60, stateful_step_count=30)


@pytest.mark.campaign
def test_many_lives() -> None:
    """The same holds over thousands of lives, drawn anew each time."""
    settings = hypothesis.settings(
        max_examples=5_000,
        stateful_step_count=50,
        derandomize=False,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    run_state_machine_as_test(LedgerMachine, settings=settings)
