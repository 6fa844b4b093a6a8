"""A session that is called back, in whatever order: what callbacks can and cannot make of it."""

from __future__ import annotations

import asyncio
import itertools

import attrs
import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from deliveries import ADDRESS, QUIET, SECRET, STEADY, World, file_of, query_of
from fakes import ACCEPTED, LOST_CHARGED, LOST_FREE, UNSENT, is_bounded, refusal, track
from kie_wav_async import CallbackResult, CallbackTrust, OnUnknown, RateLimit
from kie_wav_async.errors import (
    ConversionTimeoutError,
    KieWavError,
    SessionClosedError,
    SignatureError,
)
from kie_wav_async.events import (
    CallbackReceived,
    CallbackRejected,
    ConversionEnded,
    ConversionSucceeded,
    SubmitAccepted,
    SubmitUnknown,
)
from kie_wav_async.testing import SignedCallback, failed, missing, pending, refused

TIMEOUT_S = 300.0

#: The first attempt of a world, and the task it makes.
TASK = "task0001"
QUERY = "from=kie&attempt=" + "0" * 31 + "1"

FATES = [ACCEPTED, ACCEPTED, LOST_CHARGED, LOST_FREE, UNSENT, refusal(409), refusal(429)]

POLLS = {
    "pending": pending,
    "bare": lambda task_id: pending(task_id, successFlag="SUCCESS"),
    "failed": failed,
    "none": lambda _: missing(),
    "401": lambda _: refused(401),
    "429": lambda _: refused(429, retry_after="20"),
    "500": lambda _: refused(500),
}

URLS = ["genuine", "https://evil.invalid/x.wav", "http://h/x.wav", None]


#: Of which task a delivery is, what it names, and how it was made.
PLANS = st.tuples(
    st.integers(0, 7),
    st.sampled_from(["own", "own", "own", "another", "both", "none"]),
    st.sampled_from(["genuine", *URLS]),
    st.sampled_from([200, 200, 200, 500]),
    st.sampled_from(["now"] * 7 + ["old", "ahead", "forged"]),
)


@attrs.frozen
class Delivery:
    """One delivery, and what is true of it."""

    callback: SignedCallback
    query: str
    task_id: str
    attempt_id: str | None
    url: str | None
    code: int
    signed_at: float
    is_signed: bool

    def is_authentic(self, now_unix_s: float) -> bool:
        return self.is_signed and abs(now_unix_s - int(self.signed_at)) <= 300

    def may_settle(self) -> bool:
        return self.code == 200 and str(self.url).startswith("https://media.invalid/")


class CallbackMachine(RuleBasedStateMachine):
    """
    A session, a service that calls back, and somebody who has seen the access logs.

    Nothing is known here of how the session works: only what was submitted,
    what was delivered, and what the session's callers were told.
    """

    waiters = Bundle("waiters")
    deliveries = Bundle("deliveries")

    @hypothesis.stateful.initialize(
        trust=st.sampled_from(CallbackTrust),
        keys=st.sampled_from([SECRET, SECRET, SECRET, ()]),
        on_unknown=st.sampled_from(OnUnknown),
        knows_repeats=st.booleans(),
        latency_s=st.sampled_from([0.0, 3.0]),
        is_quiet=st.booleans(),
        first=st.sampled_from([ACCEPTED, LOST_CHARGED]),
    )
    def open(self, *, trust, keys, on_unknown, knows_repeats, latency_s, is_quiet, first):
        self.trust = trust
        self.has_keys = keys != ()
        self.knows_repeats = knows_repeats
        self.is_quiet = is_quiet
        self.world = World(
            service={"latency_s": latency_s, "knows_repeats": knows_repeats},
            callback_trust=trust,
            webhook_keys=keys,
            on_unknown=on_unknown,
            rate_limit=RateLimit(5, per_s=10.0),
            timeout_s=TIMEOUT_S,
            poll=QUIET if is_quiet else STEADY,
            on_event=self.note,
        )
        self.service = self.world.service
        self.session = self.world.session
        self.told: list[object] = []
        self.told_at: list[float] = []
        self.authentic: list[Delivery] = []
        self.attached: set[str] = set()
        self.refused = 0
        self.ended: dict[object, object] = {}
        self.seen: dict[object, float] = {}
        self.is_closed = False
        self.service.fates.extend([ACCEPTED, first])
        for number in (1, 2):
            self.world.start(self.session.convert(track(number)))

    def note(self, event):
        self.told.append(event)
        self.told_at.append(self.world.clock.monotonic())

    # --- what may happen --------------------------------------------------------------------

    @rule(target=waiters, number=st.integers(1, 4), again=st.booleans())
    def convert(self, number, again):
        return self.world.start(self.session.convert(track(number), again=again))

    @rule(target=waiters, number=st.integers(1, 5))
    @precondition(lambda self: not self.is_closed)
    def attach(self, number):
        self.attached.add(f"task{number:04d}")

        async def attach():
            return await self.session.attach(f"task{number:04d}")

        return self.world.start(attach())

    @rule(task=waiters)
    def cancel(self, task):
        task.cancel()
        self.world.run(self.world.clock.run_pending())

    @rule(
        fates=st.lists(st.sampled_from(FATES), max_size=2),
        names=st.lists(st.sampled_from(sorted(POLLS)), max_size=2),
    )
    def misbehave(self, fates, names):
        self.service.fates.extend(fates)
        self.service.poll_replies.extend(POLLS[name] for name in names)

    @rule(seconds=st.sampled_from([0.05, 0.5, 1.6, 1.6, 5.0, 5.0, 16.0, 61.0, 310.0]))
    def wait(self, seconds):
        self.world.advance(seconds)

    @rule(target=deliveries, plans=st.lists(PLANS, min_size=1, max_size=4))
    @precondition(lambda self: self.service.tasks and not self.is_closed)
    def deliver(self, plans):
        made = [self.make(*plan) for plan in plans]
        for delivery in made:
            self.bring(delivery)
        return made[0]

    def make(self, picked, named, url, code, signed):
        # The latest tasks are those that are open.
        tasks = [None, *self.service.tasks.values()][-4:]
        task = tasks[-1 - picked % len(tasks)]
        task_id = "music1" if task is None else task.task_id
        others = [*self.service.attempts, "f" * 32]
        another = others[picked % len(others)]
        own = another if task is None else task.attempt_id
        query = {
            "own": f"from=kie&attempt={own}",
            "another": f"attempt={another}",
            "both": f"attempt={own}&attempt={another}",
            "none": "from=kie",
        }[named]
        now = self.world.clock.time()
        signed_at = {"old": now - 301.5, "ahead": now + 301.5}.get(signed, now)
        url = file_of(task_id) if url == "genuine" else url
        callback = self.world.callback(
            task_id,
            url,
            code=code,
            now_unix_s=signed_at,
            key="whsec-of-somebody-else" if signed == "forged" else SECRET,
        )
        attempt_id = {"own": own, "another": another}.get(named)
        return Delivery(
            callback, query, task_id, attempt_id, url, code, signed_at, signed != "forged"
        )

    @rule(delivery=deliveries, number=st.integers(0, 9))
    def replay(self, delivery, number):
        """The same again, or the same under the query of another attempt."""
        if number < len(self.service.attempts):
            attempt_id = self.service.attempts[number]
            query = f"attempt={attempt_id}"
            delivery = attrs.evolve(delivery, query=query, attempt_id=attempt_id)
        self.bring(delivery)

    def bring(self, delivery):
        session = self.session
        before = self.world.snapshot(without={"rejected_callbacks"})
        open_ids = {conversion.task_id for conversion in session.conversions()}
        ends = {}
        for event in self.told:
            if isinstance(event, ConversionSucceeded):
                ends[event.wav.task_id] = None
            elif isinstance(event, ConversionEnded):
                ends[event.task_id] = type(event.error)
        timed_out = {name for name, end in ends.items() if end is ConversionTimeoutError}
        lost = {unknown.attempt_id for unknown in session.unknown_submits()}
        is_authentic = self.has_keys and delivery.is_authentic(self.world.clock.time())
        begun = len(self.told)
        told = self.world.deliver(delivery.callback, delivery.query)
        if self.is_closed:
            assert isinstance(told, SessionClosedError)
            return
        if self.has_keys and not is_authentic:
            self.refused += 1
            assert isinstance(told, SignatureError)
            assert before == self.world.snapshot(without={"rejected_callbacks"})
            assert [CallbackRejected] == [type(event) for event in self.told[begun:]]
            return
        assert isinstance(told, CallbackResult)
        received = [e for e in self.told[begun:] if isinstance(e, CallbackReceived)]
        assert [(delivery.task_id, told, self.has_keys)] == [
            (event.task_id, event.result, event.is_authentic) for event in received
        ]
        if is_authentic:
            self.authentic.append(delivery)
        is_named = delivery.attempt_id in lost
        accepted = {
            # A task that a 409 named later is followed for that, and no longer as ours.
            event.task_id: None if event.adopted else event.attempt_id
            for event in self.told[:begun]
            if isinstance(event, SubmitAccepted)
        }
        is_ours = (
            delivery.attempt_id is not None
            and accepted.get(delivery.task_id) == delivery.attempt_id
            and delivery.task_id not in self.attached
        )
        if delivery.task_id not in open_ids | timed_out:
            may_be = {CallbackResult.UNKNOWN_TASK, CallbackResult.DUPLICATE}
            assert told in may_be | ({CallbackResult.POLLING} if is_named else set())
        elif (
            self.trust is CallbackTrust.PAYLOAD
            and is_authentic
            and is_ours
            and delivery.may_settle()
        ):
            assert told is CallbackResult.SETTLED
        elif delivery.task_id not in self.attached:
            # Of a task whose wait timed out ours goes on beside the one of a later 409.
            is_kept = delivery.task_id in timed_out and (
                (delivery.task_id, delivery.attempt_id) in self.submitted()
            )
            may_settle = self.trust is CallbackTrust.PAYLOAD and delivery.may_settle()
            is_settling = is_kept and is_authentic and may_settle
            assert told is CallbackResult.POLLING or (
                is_settling and told is CallbackResult.SETTLED
            )

    @rule(data=st.data(), is_charged=st.booleans())
    @precondition(lambda self: not self.is_closed and self.session.unknown_submits())
    def resolve(self, data, is_charged):
        # The user tells the truth, or there would be no bill to check.
        unknown = data.draw(st.sampled_from(self.session.unknown_submits()))
        made = [t for t in self.service.tasks.values() if t.attempt_id == unknown.attempt_id]
        if made and is_charged:
            call = self.session.resolve_unknown(unknown.attempt_id, task_id=made[0].task_id)
        elif not made and not is_charged:
            call = self.session.resolve_unknown(unknown.attempt_id, not_charged=True)
        else:
            return
        self.world.run(call)

    @rule(chance=st.integers(0, 9))
    @precondition(lambda self: not self.is_closed)
    def close(self, chance):
        if chance != 5:
            return  # Most of what may happen happens before.
        self.is_closed = True
        waits = [task for task in self.world.waiters if not task.done()]
        closing = self.world.loop.create_task(self.session.aclose())
        self.world.run(self.world.clock.run_pending())
        assert all(task.done() for task in waits)
        self.world.run(self.world.clock.run(closing))

    # --- what must hold -----------------------------------------------------------------------

    @invariant()
    def ends_are_final(self):
        """Each conversion ends once, is told of once, and is never another again."""
        if not hasattr(self, "world"):
            return
        for task in self.world.waiters:
            if task.done() and not task.cancelled():
                error = task.exception()
                assert error is None or isinstance(error, KieWavError | ValueError)
        for conversion in self.session.conversions():
            self.seen.setdefault(conversion, self.world.clock.monotonic())
        for conversion in self.seen:
            if conversion.done():
                outcome = self.ended.setdefault(conversion, conversion._entry.outcome)
                assert outcome is conversion._entry.outcome
        figures = self.session.statistics()
        settled = [event for event in self.told if isinstance(event, ConversionSucceeded)]
        over = [event for event in self.told if isinstance(event, ConversionEnded)]
        by = [event.wav.settled_by for event in settled]
        assert by.count("callback") == figures.settled_by_callback
        assert by.count("poll") == figures.settled_by_poll
        assert len(over) == figures.failed + figures.timed_out
        assert figures.in_flight == len(self.session.conversions())
        assert figures.rejected_callbacks == self.refused

    @invariant()
    def callbacks_settle_what_they_may(self):
        """Only an authentic success that names the task's own attempt settles, with its URL."""
        if not hasattr(self, "world"):
            return
        for event in self.told:
            if not isinstance(event, ConversionSucceeded) or event.wav.settled_by != "callback":
                continue
            assert self.trust is CallbackTrust.PAYLOAD
            wav = event.wav
            attempt_id = self.service.tasks[wav.task_id].attempt_id
            assert (wav.task_id, attempt_id, str(wav.url)) in {
                (d.task_id, d.attempt_id, str(d.url)) for d in self.authentic if d.may_settle()
            }
            assert (wav.task_id, attempt_id) in self.submitted()

    def submitted(self):
        """Return the tasks that submits made, each with the attempt."""
        return {
            (event.task_id, event.attempt_id)
            for event in self.told
            if isinstance(event, SubmitAccepted) and not event.adopted
        }

    @invariant()
    def the_bill_is_bounded(self):
        """The service charged between accepted and accepted + unknown, and nothing is forgotten."""
        if not hasattr(self, "world") or self.session._core.registry.sending:
            return
        assert is_bounded(self.service, self.session)
        unknowns = {unknown.attempt_id for unknown in self.session.unknown_submits()}
        told = {getattr(event, "task_id", None) for event in self.told}
        for task in self.service.tasks.values():
            assert task.task_id in told or task.attempt_id in unknowns
        assert self.session.statistics().submitted == len(self.service.submitted_at)

    @invariant()
    def nothing_foreign_is_followed(self):
        """What is followed or asked about was submitted, attached, or named for a lost submit."""
        if not hasattr(self, "world"):
            return
        known = {*self.service.tasks, *self.attached}
        assert {c.task_id for c in self.session.conversions()} <= known
        lost = {event.attempt_id for event in self.told if isinstance(event, SubmitUnknown)}
        named = {d.task_id for d in self.authentic if d.attempt_id in lost}
        # A read of the credits names none.
        polled = {task_id for _, task_id in self.service.polled_at if task_id}
        assert polled <= known | named
        if not self.has_keys:
            assert polled <= known

    @invariant()
    def callbacks_cause_few_polls(self):
        """Callbacks cause at most 10 polls a second, one of a task per 2 s, never two at once."""
        # In quiet nothing else is polled but what a 409 names.
        if not hasattr(self, "world") or not self.is_quiet or self.knows_repeats:
            return
        polls = [(at, task_id) for at, task_id in self.service.polled_at if task_id]
        assert all(b - a > 0.0999 for (a, _), (b, _) in itertools.pairwise(polls))
        last: dict[str, float] = {}
        for at, task_id in polls:
            assert at - last.get(task_id, -10.0) > 1.999
            last[task_id] = at

    @invariant()
    def no_two_polls_of_a_task_at_once(self):
        """A task is asked about once at a time."""
        if not hasattr(self, "world") or self.knows_repeats:
            return
        for task_id, count in self.service.most_at_once.items():
            assert count == 1, task_id

    @invariant()
    def nobody_waits_too_long(self):
        """No conversion is in flight for longer than its timeout."""
        if not hasattr(self, "world") or self.is_closed:
            return
        # A refused key stops the clock of all waits; they end at once.
        if any(getattr(event, "reason", "") == "authentication" for event in self.told):
            return
        now = self.world.clock.monotonic()
        for conversion in self.session.conversions():
            assert now - self.seen.get(conversion, now) <= TIMEOUT_S

    def teardown(self):
        """Let the waits end by themselves, close, and see that all is quiet."""
        if not hasattr(self, "world"):
            return
        self.service.fates.clear()
        self.service.poll_replies.clear()
        self.world.advance(2 * TIMEOUT_S + 200.0)
        assert all(task.done() for task in self.world.waiters)
        self.callbacks_settle_what_they_may()
        self.the_bill_is_bounded()
        self.nobody_waits_too_long()
        self.callbacks_cause_few_polls()
        with self.world:
            pass


TestCallbackMachine = CallbackMachine.TestCase
TestCallbackMachine.settings = hypothesis.settings(max_examples=150, stateful_step_count=30)


@pytest.mark.campaign
class TestCallbackMachineForLong(CallbackMachine.TestCase):
    settings = hypothesis.settings(
        max_examples=3_000, stateful_step_count=60, derandomize=False, database=None
    )


# --- all that a delivery may be, in every combination ------------------------------------------

#: How a query may name the attempt, and whether it does.
NAMINGS = {
    "attempt={own}": True,
    "from=kie&attempt={own}&x=y": True,
    "attempt={own}&attempt={own}": False,
    "attempt={other}": False,
    "": False,
}

#: What the body may say, and whether that is the success of a task.
SAYINGS = {
    (200, "https://media.invalid/x.wav"): True,
    ("200", "https://media.invalid/x.wav"): True,
    (201, "https://media.invalid/x.wav"): False,
    (500, "https://media.invalid/x.wav"): False,
    (None, "https://media.invalid/x.wav"): False,
    (200, "https://evil.invalid/x.wav"): False,
    (200, "https://media.invalid:8443/x.wav"): False,
    (200, "http://media.invalid/x.wav"): False,
    (200, "media.invalid/x.wav"): False,
    (200, None): False,
}


@pytest.mark.parametrize("trust", list(CallbackTrust))
@pytest.mark.parametrize("keys", [SECRET, ()], ids=["with keys", "without"])
@pytest.mark.parametrize("origin", ["submitted", "named by a 409", "attached"])
def test_a_delivery_settles_only_if_all_holds(origin, keys, trust):
    """A callback settles a task submitted here if it names its attempt and a file; none else."""
    for naming, names in NAMINGS.items():
        for (code, url), says in SAYINGS.items():
            with World(webhook_keys=keys, callback_trust=trust, on_event=None) as world:
                if origin == "submitted":
                    world.start(world.session.convert(track(1)))
                else:
                    callback_url = f"{ADDRESS}&attempt={'0' * 31}1"
                    world.service.create(TASK, track(1), callback_url)
                if origin == "attached":
                    world.start(world.attach(TASK).wait())
                else:
                    world.start(world.session.convert(track(1)))
                query = naming.format(own="0" * 31 + "1", other="f" * 32)
                before = world.session.statistics().polls
                told = world.deliver(world.callback(TASK, url, code=code), query)
                world.advance(0.0)
                settles = (
                    origin == "submitted"
                    and bool(keys)
                    and trust is CallbackTrust.PAYLOAD
                    and names
                    and says
                )
                case = (naming, code, url)
                assert told is (CallbackResult.SETTLED if settles else CallbackResult.POLLING), case
                figures = world.session.statistics()
                assert figures.settled_by_callback == settles, case
                assert figures.polls == before + (not settles), case
                world.advance(60.0)
                wav = world.waiters[-1].result()
                assert str(wav.url) == (url if settles else file_of(TASK)), case


# --- at every step of something else --------------------------------------------------------

STEPS = range(61)

trusts = pytest.mark.parametrize("trust", list(CallbackTrust))


def _at_step(world: World, step: int, meanwhile, task_id: str = TASK, query: str = QUERY):
    """Deliver the genuine callback when *meanwhile* has had *step* turns of the loop."""

    async def go():
        task = asyncio.ensure_future(meanwhile)
        for _ in range(step):
            await asyncio.sleep(0)
        world.polls_before = world.session.statistics().polls
        try:
            told = await world.session.handle_callback(*world.callback(task_id), query=query)
        except SessionClosedError as error:
            told = error
        await task
        return told

    return world.run(go())


@trusts
@pytest.mark.parametrize("again_from", [0, 40])
def test_a_callback_around_the_answer_of_its_submit_settles(trust, again_from):
    """Whenever a callback comes around the answer of its submit, it settles, or has it polled."""
    for step in STEPS:
        with World(callback_trust=trust, poll=QUIET, service={"conversion_s": 0.0}) as world:
            world.service.latency_s = 0.2
            world.start(world.session.convert(track(1)))
            told = _at_step(world, again_from + step, world.clock.advance(0.3))
            world.advance(3.0)
            figures = world.session.statistics()
            wav = world.waiters[0].result()
            assert (wav.task_id, str(wav.url)) == (TASK, file_of(TASK)), step
            is_payload = trust is CallbackTrust.PAYLOAD
            assert figures.settled_by_callback == is_payload
            assert figures.settled_by_poll == (not is_payload)
            assert figures.polls == (not is_payload)
            is_early = told is CallbackResult.UNKNOWN_TASK
            assert figures.unknown_task_callbacks == is_early
            assert is_early or told is (
                CallbackResult.SETTLED if is_payload else CallbackResult.POLLING
            )


@trusts
@pytest.mark.parametrize("on_unknown", list(OnUnknown))
@pytest.mark.parametrize("again_from", [0, 40])
def test_a_callback_around_the_loss_of_its_submit_explains_it(trust, on_unknown, again_from):
    """Whenever a callback comes around the loss of its submit, the task is adopted and settles."""
    for step in STEPS:
        with World(callback_trust=trust, on_unknown=on_unknown) as world:
            world.service.latency_s = 0.2
            world.service.fates.append(LOST_CHARGED)
            world.start(world.session.convert(track(1)))
            told = _at_step(world, again_from + step, world.clock.advance(0.3))
            assert told in {CallbackResult.UNKNOWN_TASK, CallbackResult.POLLING}, step
            world.advance(100.0)
            figures = world.session.statistics()
            assert (figures.adopted, figures.unknown, figures.submitted) == (1, 0, 1), step
            assert (figures.settled_by_poll, figures.settled_by_callback) == (1, 0)
            assert is_bounded(world.service, world.session)
            wav = world.start(world.session.convert(track(1))).result()
            assert str(wav.url) == file_of(TASK)


@trusts
@pytest.mark.parametrize("is_ready", [True, False])
@pytest.mark.parametrize("again_from", [0, 40])
def test_a_callback_around_the_answer_of_a_poll_settles_once(trust, is_ready, again_from):
    """Whenever a callback comes around a poll, there is one result, and one poll more at most."""
    for step in STEPS:
        made = {"conversion_s": 10.0 if is_ready else 40.0, "latency_s": 0.4}
        with World(callback_trust=trust, service=made) as world:
            world.start(world.session.convert(track(1)))
            world.advance(15.3)
            assert world.session.statistics().polls == 0
            told = _at_step(world, again_from + step, world.clock.advance(0.6))
            world.advance(4.0)
            figures = world.session.statistics()
            is_payload = trust is CallbackTrust.PAYLOAD
            if is_ready or is_payload:
                assert figures.settled_by_callback + figures.settled_by_poll == 1, step
                assert figures.settled_by_callback == (told is CallbackResult.SETTLED)
                assert figures.in_flight == 0
                assert world.waiters[0].result().settled_by in {"callback", "poll"}
            else:
                assert told is CallbackResult.POLLING
                assert not world.waiters[0].done()
                # One that was on the wire need not have had the news.
                assert figures.polls == 2 or (world.polls_before, figures.polls) == (0, 1), step
            assert figures.polls <= 2
            assert world.service.most_at_once[TASK] <= 1
            world.advance(60.0)
            assert world.waiters[0].done()


@trusts
@pytest.mark.parametrize("fate", [ACCEPTED, LOST_CHARGED], ids=["accepted", "lost"])
@pytest.mark.parametrize("of", ["in flight", "on the wire", "lost"])
def test_a_callback_around_the_closing_leaves_books_that_agree(trust, fate, of):
    """Whenever a callback comes around closing, all waits end and no charge is forgotten."""
    for step in STEPS:
        made = {"latency_s": 2.0, "conversion_s": 5.0}
        with World(callback_trust=trust, service=made, rate_limit=RateLimit(5, per_s=1.0)) as world:
            world.service.fates.extend([ACCEPTED, LOST_CHARGED])
            for number in (1, 2):
                world.start(world.session.convert(track(number)))
            world.advance(10.0)
            world.service.fates.append(fate)
            world.start(world.session.convert(track(3)))
            world.advance(1.5)
            number = ["in flight", "lost", "on the wire"].index(of) + 1
            task = world.service.tasks[f"task{number:04d}"]

            async def close(world=world):
                closing = asyncio.ensure_future(world.session.aclose())
                await world.clock.run_pending()
                assert all(task.done() for task in world.waiters)
                await world.clock.run(closing)

            told = _at_step(world, step, close(), task.task_id, query_of(task))
            assert isinstance(told, CallbackResult | SessionClosedError), step
            # It takes some turns until the closing begins.
            assert isinstance(told, SessionClosedError) or step <= 4
            assert all(task.done() for task in world.waiters)
            figures = world.session.statistics()
            assert is_bounded(world.service, world.session), step
            open_ids = {conversion.task_id for conversion in world.session.conversions()}
            assert figures.in_flight == len(open_ids)
            unknowns = {unknown.attempt_id for unknown in world.session.unknown_submits()}
            ended = {
                event.wav.task_id for event in world.told if isinstance(event, ConversionSucceeded)
            }
            for made_task in world.service.tasks.values():
                places = [
                    made_task.task_id in open_ids,
                    made_task.attempt_id in unknowns,
                    made_task.task_id in ended,
                ]
                assert places.count(True) == 1, step


@trusts
@pytest.mark.parametrize("again_from", [0, 40])
def test_a_callback_around_the_timeout_ends_the_wait_once(trust, again_from):
    """Whenever a callback comes around the timeout, the wait ends one way, and stays so."""
    ways = set()
    for step in STEPS:
        made = {"latency_s": 0.2, "conversion_s": 900.0}
        with World(callback_trust=trust, poll=QUIET, timeout_s=60.0, service=made) as world:
            world.start(world.session.convert(track(1)))
            world.advance(60.1)
            assert not world.waiters[0].done()
            told = _at_step(world, again_from + step, world.clock.advance(0.2))
            world.advance(5.0)
            assert world.waiters[0].done()
            figures = world.session.statistics()
            is_late = isinstance(world.waiters[0].exception(), ConversionTimeoutError)
            if trust == "payload":
                assert told is CallbackResult.SETTLED
                assert (figures.settled_by_callback, figures.timed_out) == (1, is_late), step
            else:
                assert told is CallbackResult.POLLING
                assert (figures.settled_by_callback, figures.timed_out) == (0, 1), step
            assert figures.in_flight == 0
            # One that came too late is not lost: who asks for the track again has its file.
            again = world.start(world.session.convert(track(1)))
            assert again.done() is (trust == "payload")
            assert world.service.charged == 1
            ways.add(is_late)
    assert again_from or trust == "confirm" or len(ways) == 2


@trusts
def test_a_delivery_cancelled_at_any_step_is_whole_or_nothing(trust):
    """A delivery cancelled at any step has been taken as a whole, or not at all."""
    for step in STEPS:
        for turns in (0, 1, 2):
            made = {"latency_s": 0.2, "conversion_s": 0.0}
            with World(callback_trust=trust, poll=QUIET, service=made) as world:
                world.start(world.session.convert(track(1)))
                world.advance(0.2)
                world.start(world.session.convert(track(2)))

                async def go(world=world, step=step, turns=turns):
                    moving = asyncio.ensure_future(world.clock.advance(0.3))
                    for _ in range(step):
                        await asyncio.sleep(0)
                    callback = world.callback(TASK)
                    delivery = asyncio.ensure_future(
                        world.session.handle_callback(*callback, query=QUERY)
                    )
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    delivery.cancel()
                    await moving
                    return delivery

                delivery = world.run(go())
                world.advance(3.0)
                received = [event for event in world.told if isinstance(event, CallbackReceived)]
                assert delivery.cancelled() is (turns == 0)
                assert len(received) == (turns > 0)
                figures = world.session.statistics()
                assert figures.settled_by_callback + figures.settled_by_poll == (turns > 0)
                assert figures.in_flight == 2 - (turns > 0)
                assert is_bounded(world.service, world.session)


@trusts
def test_a_waiter_cancelled_at_any_step_of_a_delivery_takes_nothing_with_it(trust):
    """Whoever goes away while a callback settles leaves the other waiters their result."""
    for step in range(20):
        with World(callback_trust=trust, service={"conversion_s": 0.0}) as world:
            first = world.start(world.session.convert(track(1)))
            second = world.start(world.session.convert(track(1)))

            async def go(world=world, first=first, step=step):
                callback = world.callback(TASK)
                delivery = asyncio.ensure_future(
                    world.session.handle_callback(*callback, query=QUERY)
                )
                for _ in range(step):
                    await asyncio.sleep(0)
                first.cancel()
                return await delivery

            world.run(go())
            world.advance(2.0)
            assert first.cancelled() or first.result().task_id == TASK
            assert str(second.result().url) == file_of(TASK)


@trusts
@pytest.mark.parametrize("when", ["before the loss", "after it"])
@pytest.mark.parametrize("unseen", [1, 3, 20])
def test_a_lost_submit_is_asked_about_until_its_record_is_there(unseen, when, trust):
    """One callback is enough to find a lost submit, however late the service shows its record."""
    made = {"latency_s": 2.0, "conversion_s": 0.0}
    with World(callback_trust=trust, service=made) as world:
        world.service.fates.append(LOST_CHARGED)
        world.service.poll_replies.extend([lambda _: missing()] * unseen)
        world.start(world.session.convert(track(1)))
        world.advance(1.5 if when == "before the loss" else 2.5)
        world.deliver(world.callback(TASK), QUERY)
        world.advance(10.0 * unseen)
        assert world.session.statistics().adopted == 0
        world.advance(13.0)
        figures = world.session.statistics()
        assert (figures.adopted, figures.unknown, figures.polls) == (1, 0, unseen + 1)


@pytest.mark.parametrize("second", ["evil", "no attempt", "failed"])
@pytest.mark.parametrize("first", ["genuine", "no attempt"])
def test_of_early_callbacks_the_first_is_believed(first, second):
    """A replay with another body does not replace an early callback."""
    with World(poll=QUIET, service={"latency_s": 2.0, "conversion_s": 0.0}) as world:
        world.start(world.session.convert(track(1)))
        world.advance(1.5)
        told = world.deliver(world.callback(TASK), QUERY if first == "genuine" else "")
        assert told is CallbackResult.UNKNOWN_TASK
        url = {"evil": "https://evil.invalid/x.wav", "no attempt": "", "failed": None}[second]
        code = 500 if second == "failed" else 200
        query = "" if second == "no attempt" else QUERY
        told = world.deliver(world.callback(TASK, url, code=code), query)
        assert told is CallbackResult.UNKNOWN_TASK
        world.advance(5.0)
        wav = world.waiters[0].result()
        assert str(wav.url) == file_of(TASK)
        assert wav.settled_by == ("callback" if first == "genuine" else "poll")


# --- where two ways lead to one task ----------------------------------------------------------


@trusts
def test_a_callback_reaches_every_conversion_of_its_task(trust):
    """A callback of a task that was attached before its submit's answer ends both waits."""
    with World(
        callback_trust=trust, poll=QUIET, service={"latency_s": 2.0, "conversion_s": 0.0}
    ) as world:
        submitted = world.start(world.session.convert(track(1)))
        attached = world.start(world.attach(TASK).wait())
        world.advance(3.0)
        assert len(world.session.conversions()) == 2
        told = world.deliver(world.callback(TASK), QUERY)
        is_payload = trust is CallbackTrust.PAYLOAD
        assert told is (CallbackResult.SETTLED if is_payload else CallbackResult.POLLING)
        assert submitted.done() is is_payload
        world.advance(10.0)
        assert submitted.result().settled_by == ("callback" if is_payload else "poll")
        assert attached.result().settled_by == "poll"


def test_a_probe_and_a_hint_of_one_task_keep_their_distance():
    """A task that is probed and then resolved by the user is polled once per 2 s for callbacks."""
    with World(poll=QUIET) as world:
        # Others are hinted before it, so that the probe has to wait.
        for number in range(5):
            world.service.create(f"other{number}", track(10 + number), ADDRESS)
            world.attach(f"other{number}")
        world.service.fates.append(LOST_CHARGED)
        world.start(world.session.convert(track(1)))
        for number in range(5):
            world.deliver(world.callback(f"other{number}"))
        lost = world.session.unknown_submits()[0]
        task_id = next(t.task_id for t in world.service.tasks.values() if t.track == track(1))
        told = world.deliver(world.callback(task_id), f"attempt={lost.attempt_id}")
        assert told is CallbackResult.POLLING
        world.run(world.session.resolve_unknown(lost.attempt_id, task_id=task_id))
        world.advance(4.0)
        moments = [at for at, polled in world.service.polled_at if polled == task_id]
        assert moments
        assert all(b - a > 1.999 for a, b in itertools.pairwise(moments))


def test_a_probe_and_a_hint_of_one_task_are_one_at_a_time():
    """A task that is probed and then resolved by the user has one poll on the wire at a time."""
    with World(poll=QUIET) as world:
        world.service.fates.append(LOST_CHARGED)
        world.start(world.session.convert(track(1)))
        lost = world.session.unknown_submits()[0]
        world.service.latency_s = 5.0
        world.deliver(world.callback(TASK), f"attempt={lost.attempt_id}")
        world.run(world.session.resolve_unknown(lost.attempt_id, task_id=TASK))
        world.advance(20.0)
        assert world.service.most_at_once[TASK] == 1


@pytest.mark.parametrize("keys", [SECRET, ()], ids=["with keys", "without"])
def test_hints_do_not_prolong_the_wait_for_a_task_that_is_gone(keys):
    """A task without a record ends with `NotFoundError` by its schedule, hinted or not."""
    with World(webhook_keys=keys, poll=STEADY) as world:
        waiter = world.start(world.attach("task").wait())
        for _ in range(10):
            world.deliver(world.callback("task"))
            world.advance(5.0)
        assert waiter.done()


@pytest.mark.parametrize("is_followed", [True, False])
def test_a_callback_of_a_probed_task_is_prompt(is_followed):
    """A callback that comes while a probe waits for its next turn has the task asked about now."""
    with World(service={"conversion_s": 0.0}) as world:
        world.service.fates.append(LOST_CHARGED)
        world.start(world.session.convert(track(1)))
        world.service.poll_replies.append(lambda _: missing())
        world.deliver(world.callback(TASK), QUERY)
        world.advance(3.0)
        assert [at for at, _ in world.service.polled_at] == [1_000.0]
        if is_followed:
            lost = world.session.unknown_submits()[0]
            world.run(world.session.resolve_unknown(lost.attempt_id, task_id=TASK))
        world.deliver(world.callback(TASK), QUERY)
        world.advance(1.0)
        assert len(world.service.polled_at) == 2
