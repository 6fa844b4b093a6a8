"""A session with a ledger that is left: at any moment, and whatever the ledger does then."""

from __future__ import annotations

import asyncio
import collections
import contextlib

import pytest

from fakes import LOST_CHARGED, SILENT_CHARGED, FakeService, refusal, track
from kie_wav_async import OnUnknown, RateLimit
from kie_wav_async.errors import KieWavError, LedgerError, SessionClosedError
from kie_wav_async.ledger import TrackState
from kie_wav_async.testing import FakeClock, MemoryLedger
from ledger_steps import Process, StepLedger, SteppedClock, bill, is_in_bill

TRACKS = [track(n) for n in (1, 2, 3)]


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock: FakeClock) -> FakeService:
    """Return a service that takes half a second to answer."""
    return FakeService(clock, latency_s=0.5)


class StubbornLedger(MemoryLedger):
    """Does not close."""

    async def aclose(self) -> None:
        """Hang, but let go."""
        await super().aclose()
        await asyncio.get_running_loop().create_future()


class BrittleLedger(MemoryLedger):
    """Raises what no ledger should, from the calls of the names given."""

    def __init__(self, error: BaseException, *names: str) -> None:
        super().__init__()
        self.error = error
        self.names = names

    async def _call(self, name: str, *args: object, is_open: bool = True) -> None:
        if name in self.names:
            self.calls.append((name, args))
            raise self.error
        await super()._call(name, *args, is_open=is_open)


def closings(ledger: MemoryLedger) -> int:
    """Return how often the ledger was closed."""
    return [name for name, _ in ledger.calls].count("aclose")


# --- at any moment ------------------------------------------------------------------------------


async def convert_all(session) -> None:
    """Convert the tracks, some at once, some as a catalog."""
    single = asyncio.ensure_future(session.convert(TRACKS[0]))
    try:
        async with session.convert_all(TRACKS[1:]) as batch:
            async for _ in batch:
                pass
        await single
    finally:
        single.cancel()
        with contextlib.suppress(asyncio.CancelledError, KieWavError):
            await single


async def leave(how: str, last: int, on_unknown: OnUnknown) -> bool:
    """Leave at the turn *last*; return whether it came to that."""
    clock = SteppedClock()
    service = FakeService(clock, latency_s=1.0, conversion_s=16.0, knows_repeats=False)
    service.fates += [refusal(429), LOST_CHARGED]
    settings = {"on_unknown": on_unknown, "rate_limit": RateLimit(2, per_s=10.0)}
    process = Process(service, StepLedger(), **settings)
    ledger = process.ledger
    async with process.session as session:
        leaving = asyncio.ensure_future(convert_all(session))
        changes, seen = 0, None
        async for _ in clock.moments(leaving):
            now = (len(ledger.calls), len(service.transport.requests), service.charged)
            changes += now != seen
            seen = now
            if changes == last:
                break
        is_over = leaving.done()
        if how == "cancel":
            leaving.cancel()
            await asyncio.wait([leaving])
            await clock.advance(5.0)
            assert is_in_bill(service, ledger)
        else:
            began = clock.monotonic()
            await clock.run(session.aclose())
            assert clock.monotonic() - began <= 25.0
            assert closings(ledger) == 1
            await asyncio.wait([leaving])
            assert leaving.cancelled() or isinstance(
                leaving.exception(), SessionClosedError | KieWavError | None
            )
    assert is_in_bill(service, ledger)
    assert closings(ledger) == 1
    known = {c.task_id for c in session.conversions()} | {
        entry.task_id
        for entry in [row.entry() for row in ledger._tables.rows.values()]
        if entry.task_id
    }
    unknowns = {doubt.attempt_id for doubt in session.unknown_submits()}
    for task in service.tasks.values():
        assert task.task_id in known or task.attempt_id in unknowns
    accepted, unknown = bill(ledger)
    assert (accepted, unknown) == (session.statistics().accepted, session.statistics().unknown)
    assert TrackState.SUBMITTING not in {row.state() for row in ledger._tables.rows.values()}

    async with service.session(ledger=ledger, **settings) as session:
        for each in TRACKS:
            with contextlib.suppress(KieWavError):
                await clock.run(session.convert(each))
    if on_unknown is OnUnknown.RAISE:
        charges = collections.Counter(task.track for task in service.tasks.values())
        assert set(charges.values()) <= {1}
    return not is_over


@pytest.mark.parametrize("on_unknown", OnUnknown)
@pytest.mark.parametrize("how", ["cancel", "aclose"])
async def test_leaving_at_any_moment(how, on_unknown) -> None:
    """Cancelled or closed at any moment, books and ledger agree, and nothing is left under way."""
    last = 1
    while await leave(how, last, on_unknown):
        last += 1
    assert last > 12


# --- while the ledger holds ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["get", "begin_attempt", "finish_attempt", "finish_task"])
async def test_closing_does_not_wait_for_a_ledger_that_never_answers(clock, service, name) -> None:
    """Waits end at once and closing within 25 s, wherever the ledger hangs."""
    ledger = MemoryLedger()
    async with service.session(ledger=ledger) as session:
        ledger.hold = {name: asyncio.Event()}
        waits = [
            asyncio.create_task(wait)
            for wait in (
                session.convert(track()),
                session.submit(track()),
                session.convert(track(2)),
            )
        ]
        await clock.advance(100.0)
        began = clock.monotonic()
        closing = asyncio.create_task(session.aclose())
        await clock.run_pending()
        for wait in waits:
            if name != "finish_task" or wait is not waits[1]:
                assert isinstance(wait.exception(), SessionClosedError)
        await clock.run(closing)
        assert clock.monotonic() - began <= 25.0
    assert waits[1].done()
    assert (1, False) == (closings(ledger), ledger.is_open)
    assert is_in_bill(service, ledger)


async def test_closing_waits_for_what_is_being_written(clock, service) -> None:
    """An end that is being written while the session closes is written."""
    ledger = MemoryLedger()
    async with service.session(ledger=ledger) as session:
        ledger.hold = {"finish_task": asyncio.Event()}
        waiting = asyncio.create_task(session.convert(track()))
        await clock.advance(100.0)
        conversion = await session.submit(track())
        closing = asyncio.create_task(session.aclose())
        await clock.advance(5.0)
        assert isinstance(waiting.exception(), SessionClosedError)
        assert not closing.done()
        assert not conversion.done()
        ledger.hold["finish_task"].set()
        await clock.run_pending()
        assert closing.done()
        assert track() == conversion.result().track


async def test_a_submit_that_has_not_left_is_not_in_doubt(clock, service) -> None:
    """A submit whose intent is being written when the session closes is not sent, nor unknown."""
    ledger = MemoryLedger()
    async with service.session(ledger=ledger) as session:
        ledger.hold = {"begin_attempt": asyncio.Event()}
        waiting = asyncio.create_task(session.convert(track()))
        await clock.run_pending()
        closing = asyncio.create_task(session.aclose())
        await clock.run_pending()
        ledger.hold["begin_attempt"].set()
        await clock.run_pending()
        assert closing.done()
        assert isinstance(waiting.exception(), SessionClosedError)
        assert (0, 0) == (session.statistics().submitted, session.statistics().unknown)
    assert [] == service.submitted_at
    assert {"planned": 1} == {s: n for s, n in (await counted(ledger)).items() if n}


async def test_a_submit_that_nobody_waits_for_does_not_leave(clock, service) -> None:
    """Cancelled while its intent is being written, a submit is withdrawn, and costs nothing."""
    ledger = MemoryLedger()
    async with service.session(ledger=ledger) as session:
        ledger.hold = {"begin_attempt": asyncio.Event()}
        waiting = asyncio.create_task(session.convert(track()))
        await clock.run_pending()
        waiting.cancel()
        await clock.run_pending()
        ledger.hold["begin_attempt"].set()
        await clock.run_pending()
        assert [] == service.submitted_at
        assert TrackState.PLANNED is (await ledger.get(track())).state
        assert "task0001" == (await clock.run(session.convert(track()))).task_id


async def test_a_submit_that_never_ends_leaves_a_healthy_ledger_its_time(clock, service) -> None:
    """A submit cut off by closing is unknown, in the ledger too."""
    ledger = MemoryLedger()
    service.fates.append(SILENT_CHARGED)
    async with service.session(ledger=ledger) as session:
        waiting = asyncio.create_task(session.submit(track()))
        await clock.advance(5.0)
        await clock.run(session.aclose())
        assert isinstance(waiting.exception(), SessionClosedError)
    assert {"unknown": 1} == {s: n for s, n in (await counted(ledger)).items() if n}


async def test_what_is_owed_is_written_at_the_end(clock, service) -> None:
    """A task that could not be written is, when the session closes on a ledger that works again."""
    ledger = MemoryLedger()
    async with service.session(ledger=ledger) as session:
        ledger.fail_with = {"finish_attempt": LedgerError("full")}
        with pytest.raises(LedgerError, match="task0001"):
            await clock.run(session.submit(track()))
        ledger.fail_with = None
    assert {"accepted": 1} == {s: n for s, n in (await counted(ledger)).items() if n}


async def test_what_is_owed_in_the_last_moment_is_written(clock, service) -> None:
    """A task that was told and could not be written while the session closed is tried once more."""
    service.latency_s = 5.0
    ledger = MemoryLedger()
    async with service.session(ledger=ledger) as session:
        submit = asyncio.create_task(session.submit(track()))
        await clock.advance(1.0)
        closing = asyncio.create_task(session.aclose())
        await clock.run_pending()
        assert isinstance(submit.exception(), SessionClosedError)
        failures = [LedgerError("full")]

        async def end(*args: object, **said: object) -> None:
            if failures:
                raise failures.pop()
            await MemoryLedger.finish_attempt(ledger, *args, **said)

        ledger.finish_attempt = end
        await clock.run(closing)
    assert {"accepted": 1} == {s: n for s, n in (await counted(ledger)).items() if n}


@pytest.mark.parametrize("call", ["resolve", "recover"])
async def test_closing_ends_whatever_waits_for_the_ledger(clock, service, call) -> None:
    """Whoever waits for a ledger that hangs is told of the closing at once."""
    ledger = MemoryLedger()
    service.fates.append(LOST_CHARGED)
    async with service.session(ledger=ledger) as session:
        with pytest.raises(KieWavError):
            await clock.run(session.submit(track()))
        (unknown,) = session.unknown_submits()
        ledger.hold = asyncio.Event()
        waiting = asyncio.create_task(
            session.recover()
            if call == "recover"
            else session.resolve_unknown(unknown.attempt_id, task_id="task0001")
        )
        await clock.run_pending()
        closing = asyncio.create_task(session.aclose())
        await clock.run_pending()
        assert isinstance(waiting.exception(), SessionClosedError)
        await clock.run(closing)


async def test_a_ledger_that_does_not_close_is_left(clock, service, caplog) -> None:
    """Closing ends although the ledger's own closing does not, and says so."""
    ledger = StubbornLedger()
    async with service.session(ledger=ledger) as session:
        await clock.run(session.convert(track()))
        began = clock.monotonic()
    assert clock.monotonic() - began <= 25.0
    assert any("did not close" in text for text in caplog.messages)
    assert 1 == closings(ledger)


@pytest.mark.parametrize("error", [LedgerError("disk"), RuntimeError("boom")])
async def test_a_ledger_that_closes_badly_is_logged(clock, service, caplog, error) -> None:
    """What the ledger raises when it is closed is logged, and ends nothing."""
    ledger = MemoryLedger()

    async def fail() -> None:
        await MemoryLedger.aclose(ledger)
        raise error

    ledger.aclose = fail
    async with service.session(ledger=ledger) as session:
        await clock.run(session.convert(track()))
    assert any("did not close well" in text for text in caplog.messages)


async def test_a_body_that_raises_closes_the_ledger_once(clock, service) -> None:
    """An error that leaves ``async with`` is the user's own, and the ledger is closed."""
    ledger = MemoryLedger()

    async def use() -> None:
        async with service.session(ledger=ledger) as session:
            await clock.run(session.submit(track()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await use()
    assert (1, False) == (closings(ledger), ledger.is_open)


async def test_closing_twice_closes_the_ledger_once(service) -> None:
    """However often a session is closed, its ledger is closed once."""
    ledger = MemoryLedger()
    async with service.session(ledger=ledger) as session:
        await asyncio.gather(session.aclose(), session.aclose())
        await session.aclose()
    assert 1 == closings(ledger)


async def test_a_closing_that_is_cancelled_goes_on(clock, service) -> None:
    """A cancelled aclose() leaves the ledger to be closed all the same."""
    ledger = MemoryLedger()
    async with service.session(ledger=ledger) as session:
        ledger.hold = {"finish_task": asyncio.Event()}
        await clock.run(session.submit(track()))
        await clock.advance(100.0)
        closing = asyncio.create_task(session.aclose())
        await clock.run_pending()
        closing.cancel()
        await asyncio.wait([closing])
        ledger.hold["finish_task"].set()
        await clock.run_pending()
        assert (1, False) == (closings(ledger), ledger.is_open)


# --- opening ------------------------------------------------------------------------------------


async def test_an_opening_that_is_cancelled_is_none(clock, service) -> None:
    """A session whose ledger hangs when it is opened can be given up, and entered later."""
    ledger = MemoryLedger()
    ledger.hold = {"open": asyncio.Event()}
    session = service.session(ledger=ledger)
    entering = asyncio.create_task(session.__aenter__())
    await clock.run_pending()
    entering.cancel()
    await asyncio.wait([entering])
    assert entering.cancelled()
    assert not ledger.is_open

    ledger.hold = None
    async with session:
        await clock.run(session.submit(track()))


RAISED = [RuntimeError("boom"), asyncio.CancelledError(), OSError(28)]


@pytest.mark.parametrize("error", RAISED, ids=repr)
@pytest.mark.parametrize("name", ["get", "begin_attempt", "finish_attempt", "finish_task"])
async def test_whatever_a_ledger_raises_is_a_ledger_error(clock, service, name, error) -> None:
    """A ledger that raises what it should not ends waits with `LedgerError`, until it works."""
    ledger = BrittleLedger(error, name)
    async with service.session(ledger=ledger) as session:
        async with session.convert_all([track(1)]) as batch:
            outcome = await clock.run(anext(batch))
            assert isinstance(outcome.error, LedgerError)
            with pytest.raises(LedgerError):
                await clock.run(anext(batch))
        with pytest.raises(LedgerError):
            await clock.run(session.convert(track(2)))

        ledger.names = ()
        for n in (1, 2, 3):
            await clock.run(session.convert(track(n)))
    assert 3 == service.charged
    assert is_in_bill(service, ledger)


@pytest.mark.parametrize("error", RAISED, ids=repr)
async def test_whatever_a_ledger_raises_when_it_is_opened(service, error) -> None:
    """A ledger that cannot be opened for whatever reason is a `LedgerError`."""
    with pytest.raises(LedgerError):
        async with service.session(ledger=BrittleLedger(error, "open")):
            pytest.fail("it was entered")


async def counted(ledger: MemoryLedger) -> dict[TrackState, int]:
    """Return where the tracks stand in a ledger that was closed."""
    left = ledger.die()
    await left.open(0.0)
    return await left.count_by_state()
