"""How a session closes: who is told, what is waited for, and what is left in the books."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from fakes import (
    ACCEPTED,
    KEY,
    LOST_CHARGED,
    LOST_FREE,
    SILENT_CHARGED,
    UNSENT,
    FakeService,
    is_bounded,
    refusal,
    track,
)
from kie_wav_async import OnUnknown, RateLimit, RetryPolicy, WavSession, events
from kie_wav_async.errors import SessionClosedError, SubmitUnknownError, TransportError
from kie_wav_async.testing import FakeClock, refused


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock) -> FakeService:
    """Return a service that means well until it is told otherwise."""
    return FakeService(clock)


async def test_waits_end_at_once(clock, service) -> None:
    """Every waiter ends without time passing, each with an error of its own that names its task."""
    async with service.session() as session:
        conversions = [await clock.run(session.submit(track(n))) for n in (1, 2)]
        attached = session.attach("else")
        waits = [
            asyncio.create_task(c.wait())
            for c in (conversions[0], conversions[0], conversions[1], attached)
        ]
        waits.append(asyncio.create_task(session.convert(track(2))))
        await clock.run_pending()
        started = clock.monotonic()
        await session.aclose()
        await asyncio.wait(waits)
        assert started == clock.monotonic()
        closed = [wait.exception() for wait in waits]
        assert [SessionClosedError] * 5 == [type(error) for error in closed]
        assert 5 == len({id(error) for error in closed})
        named = ["task0001", "task0001", "task0002", "else", "task0002"]
        assert named == [error.task_id for error in closed]
        assert [track(1), track(1), track(2), None, track(2)] == [error.track for error in closed]
        for error in closed:
            assert ("task0001", "task0002", "else") == error.open_task_ids


async def test_queued_submits_are_never_sent(clock, service) -> None:
    """Submits that wait for their turn or their next try end at closing and never go out."""
    service.fates.append(UNSENT)
    patient = RetryPolicy(base_s=50.0, cap_s=50.0)
    async with service.session(rate_limit=RateLimit(1, per_s=10.0), retry=patient) as session:
        session._context.random = lambda: 0.9
        waits = [asyncio.create_task(session.submit(track(n))) for n in (1, 2)]
        waits.append(asyncio.create_task(session.convert(track(2))))
        await clock.run_pending()
        await session.aclose()
        await asyncio.wait(waits)
        assert [SessionClosedError] * 3 == [type(wait.exception()) for wait in waits]
        assert [track(1), track(2), track(2)] == [wait.exception().track for wait in waits]
        await clock.advance(500.0)
        assert 1 == len(service.submitted_at)
        assert () == session.unknown_submits()


async def test_repeat_is_given_up(clock, service) -> None:
    """A submit that waits for its repeat stays unknown, and its waiter is told of the closing."""
    service.fates.append(LOST_CHARGED)
    async with service.session(on_unknown=OnUnknown.RESUBMIT) as session:
        wait = asyncio.create_task(session.convert(track()))
        await clock.advance(5.0)
        await session.aclose()
        await asyncio.wait([wait])
        assert isinstance(wait.exception(), SessionClosedError)
        await clock.advance(500.0)
        assert 1 == len(service.submitted_at)
        assert service.attempts == [unknown.attempt_id for unknown in session.unknown_submits()]


async def test_submit_on_the_wire_gets_its_answer(clock, service) -> None:
    """A submit on the wire has its waiter told at once, and its answer still reaches the books."""
    service.latency_s = 20.0
    seen = []
    async with service.session(on_event=seen.append) as session:
        wait = asyncio.create_task(session.submit(track()))
        await clock.advance(1.0)
        closing = asyncio.create_task(session.aclose())
        await clock.run_pending()
        assert isinstance(wait.exception(), SessionClosedError)
        assert not closing.done()
        await clock.run(closing)
        assert ["task0001"] == [conversion.task_id for conversion in session.conversions()]
        assert [events.SubmitAccepted] == [type(event) for event in seen]
        assert is_bounded(service, session)
        assert service.transport.is_closed


async def test_submit_on_the_wire_waits_no_longer_than_25_s(clock, service) -> None:
    """A submit without an answer 25 s after closing began is of unknown fate."""
    service.fates += [SILENT_CHARGED, SILENT_CHARGED]
    async with service.session() as session:
        waits = [asyncio.create_task(session.submit(track(n))) for n in (1, 2)]
        await clock.advance(3.0)
        started = clock.monotonic()
        await clock.run(session.aclose())
        assert 25.0 == clock.monotonic() - started
        assert [SessionClosedError] * 2 == [type(wait.exception()) for wait in waits]
        assert {*service.attempts} == {unknown.attempt_id for unknown in session.unknown_submits()}
        assert (2, 0) == (session.statistics().unknown, session.statistics().in_flight)
        assert is_bounded(service, session)


@pytest.mark.parametrize(
    "fate",
    [LOST_FREE, refusal(422), refusal(429), refusal(455), UNSENT],
    ids=lambda fate: fate.name,
)
async def test_bad_answer_while_closing_is_not_repeated(clock, service, fate) -> None:
    """Whatever the submit on the wire meets while the session closes, nothing is sent again."""
    service.fates.append(fate)
    service.latency_s = 2.0
    async with service.session(on_unknown=OnUnknown.RESUBMIT) as session:
        wait = asyncio.create_task(session.submit(track()))
        await clock.advance(0.5)
        await clock.run(session.aclose())
        assert isinstance(wait.exception(), SessionClosedError)
        assert clock._next() is None
        await clock.advance(500.0)
        assert 1 == len(service.submitted_at)
        assert int(fate is LOST_FREE) == session.statistics().unknown


async def test_adoption_while_closing(clock, service) -> None:
    """A task that a 409 names is in the books even if its record does not come in time."""
    service.create("old", track())
    gate = asyncio.get_running_loop().create_future()
    service.poll_replies.append(lambda _: gate)
    inner = service._read

    async def hang(request):
        await gate
        return await inner(request)

    service._read = hang
    async with service.session() as session:
        wait = asyncio.create_task(session.submit(track()))
        await clock.advance(1.0)
        await clock.run(session.aclose())
        assert isinstance(wait.exception(), SessionClosedError)
        assert ["old"] == [conversion.task_id for conversion in session.conversions()]
        assert () == session.unknown_submits()


async def test_nothing_is_sent_after_closing(clock, service) -> None:
    """No poll goes out once closing has begun, also for what was under way."""
    service.latency_s = 4.0
    service.conversion_s = 500.0
    async with service.session() as session:
        await clock.run(session.submit(track(1)))
        await clock.advance(14.0)
        late = asyncio.create_task(session.submit(track(2)))
        await clock.advance(2.0)  # A poll and a submit are on the wire.
        assert 1 == len(service.polled_at)
        await clock.run(session.aclose())
        assert isinstance(late.exception(), SessionClosedError)
        await clock.advance(1_000.0)
        assert 1 == len(service.polled_at)
        assert clock._next() is None
        assert 2 == session.statistics().in_flight


async def test_news_while_closing_settles(clock, service) -> None:
    """A poll that was under way and brings the file while the session closes still settles."""
    service.conversion_s = 0.0
    async with service.session() as session:
        conversion = await clock.run(session.submit(track(1)))
        await clock.advance(14.5)
        service.latency_s = 4.0
        await clock.advance(1.0)  # The poll is on the wire.
        submit = asyncio.create_task(session.submit(track(2)))
        await clock.advance(1.0)
        await clock.run(session.aclose())
        assert isinstance(submit.exception(), SessionClosedError)
        assert "task0001" == conversion.result().task_id
        assert ["task0002"] == [c.task_id for c in session.conversions()]


async def test_closing_names_what_is_open_in_one_warning(clock, service, caplog) -> None:
    """One WARNING names the open tasks and the unknown submits."""
    async with service.session() as session:
        await clock.run(session.submit(track(1)))
        session.attach("else")
        service.fates.append(LOST_CHARGED)
        with pytest.raises(SubmitUnknownError) as caught:
            await clock.run(session.submit(track(2)))
        caplog.clear()
    (record,) = caplog.records
    assert ("kie_wav_async", logging.WARNING) == (record.name, record.levelno)
    text = record.getMessage()
    assert all(name in text for name in ("task0001", "else", caught.value.attempt_id))


async def test_warning_names_a_hundred(service, caplog) -> None:
    """Of very many open tasks the WARNING names a hundred and counts the rest."""
    async with service.session() as session:
        for number in range(130):
            session.attach(f"t{number:03}")
    (record,) = caplog.records
    text = record.getMessage()
    assert "130 open tasks" in text
    assert "t099" in text
    assert "t100" not in text
    assert "30 more" in text


async def test_closing_with_nothing_open_is_quiet(clock, service, caplog) -> None:
    """A session whose conversions are all terminal closes without a word."""
    async with service.session() as session:
        await clock.run(session.convert(track()))
    assert [] == caplog.records


async def test_closing_twice(clock, service) -> None:
    """Closing again, at once or later, waits for the same closing and does nothing else."""
    service.latency_s = 10.0
    async with service.session() as session:
        submit = asyncio.create_task(session.submit(track()))
        await clock.advance(1.0)
        closings = [asyncio.create_task(session.aclose()) for _ in range(3)]
        await clock.advance(1.0)
        assert not any(closing.done() for closing in closings)
        await clock.run(asyncio.gather(*closings))
        assert isinstance(submit.exception(), SessionClosedError)
        await session.aclose()


async def test_cancelled_closing_goes_on(clock, service) -> None:
    """A cancelled aclose() leaves the closing to go on by itself."""
    service.latency_s = 10.0
    async with service.session() as session:
        submit = asyncio.create_task(session.submit(track()))
        await clock.advance(1.0)
        closing = asyncio.create_task(session.aclose())
        await clock.run_pending()
        closing.cancel()
        await clock.advance(30.0)
        assert closing.cancelled()
        assert service.transport.is_closed
        assert isinstance(submit.exception(), SessionClosedError)
        assert ["task0001"] == [conversion.task_id for conversion in session.conversions()]


async def test_leaving_by_an_exception_keeps_it(clock, service) -> None:
    """An exception inside `async with` closes the session and comes out as it was."""
    boom = KeyError("boom")
    session = WavSession(KEY, transport=service.transport, clock=clock)

    async def fail():
        async with session:
            await clock.run(session.submit(track()))
            raise boom

    with pytest.raises(KeyError) as caught:
        await fail()
    assert boom is caught.value
    assert service.transport.is_closed
    (conversion,) = session.conversions()
    assert "task0001" == conversion.task_id


async def test_leaving_by_cancellation_closes(clock, service) -> None:
    """A task cancelled inside `async with` closes the session and is cancelled."""

    async def work():
        async with WavSession(KEY, transport=service.transport, clock=clock) as session:
            await session.convert(track())

    task = asyncio.create_task(work())
    await clock.advance(5.0)
    task.cancel()
    await clock.run_pending()
    assert task.cancelled()
    assert service.transport.is_closed


class BadlyClosed:
    """A transport of a user's that cannot be closed."""

    def __init__(self, service) -> None:
        self.send = service.transport.send

    async def aclose(self):
        raise ConnectionError(self.send.__name__)


async def test_transport_that_cannot_be_closed(clock, service, caplog) -> None:
    """What a transport raises at closing comes out, after the warning of what is open."""
    session = WavSession(KEY, transport=BadlyClosed(service), clock=clock)
    await session.__aenter__()
    await clock.run(session.submit(track()))
    with pytest.raises(ConnectionError, match="send"):
        await session.aclose()
    assert "task0001" in caplog.text


async def test_closing_ends_a_batch(clock, service) -> None:
    """A batch that is being read when the session closes ends with SessionClosedError."""
    async with service.session(rate_limit=RateLimit(2, per_s=10.0)) as session:

        async def consume():
            return [outcome async for outcome in session.convert_all(map(track, range(9)))]

        reading = asyncio.create_task(consume())
        await clock.advance(1.0)
        await session.aclose()
        await asyncio.wait([reading])
        assert isinstance(reading.exception(), SessionClosedError)
        await clock.advance(500.0)
        assert 2 == len(service.submitted_at)


async def test_refused_key_while_closing(clock, service) -> None:
    """A second 401 that arrives while the session closes disturbs nothing."""
    async with service.session() as session:
        conversion = await clock.run(session.submit(track(1)))
        wait = asyncio.create_task(conversion.wait())
        service.poll_replies += [lambda _: refused(401)] * 2
        await clock.advance(16.0)
        service.latency_s = 6.0
        service.fates.append(ACCEPTED)
        submit = asyncio.create_task(session.submit(track(2)))
        await clock.advance(5.0)
        await clock.run(session.aclose())
        assert isinstance(wait.exception(), SessionClosedError)
        assert isinstance(submit.exception(), SessionClosedError | TransportError)
        assert 2 == session.statistics().in_flight


async def test_waiting_for_an_outcome_ends_at_once(clock, service) -> None:
    """A batch that waits for its source ends with the closing, not with the last submit."""

    async def endless():
        await asyncio.get_running_loop().create_future()
        yield track()

    service.fates.append(SILENT_CHARGED)
    async with service.session() as session:
        submit = asyncio.create_task(session.submit(track(9)))
        outcome = asyncio.ensure_future(anext(session.convert_all(endless())))
        await clock.run_pending()
        closing = asyncio.create_task(session.aclose())
        await clock.run_pending()

        assert not closing.done()
        with pytest.raises(SessionClosedError):
            await outcome
        with pytest.raises(SessionClosedError):
            await submit


async def test_submit_on_the_wire_is_not_told_to_submit_again(clock, service) -> None:
    """Closing tells a waiter whose submit is on the wire that it may still be accepted."""
    service.fates.append(SILENT_CHARGED)
    async with service.session() as session:
        submit = asyncio.create_task(session.submit(track()))
        await clock.run_pending()
        closing = asyncio.create_task(session.aclose())
        await clock.run_pending()

        with pytest.raises(SessionClosedError, match=r"(?s)may be accepted.*unknown_submits\(\)"):
            await submit
        await clock.run(closing)


async def test_waiter_is_told_its_own_task(clock, service) -> None:
    """Closing names the waiter's own task in the sentence it gets."""
    async with service.session() as session:
        conversion = await session.submit(track())
        waiter = asyncio.create_task(conversion.wait())
        await clock.run_pending()
        await session.aclose()

        with pytest.raises(SessionClosedError, match=r"task task0001 goes on"):
            await waiter


async def test_source_that_swallows_its_cancellation(clock, service, caplog) -> None:
    """A catalog's source that will not end is given 25 s, and then left with a warning."""
    gate = asyncio.get_running_loop().create_future()

    async def stubborn():
        while not gate.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(gate)
        yield track()

    async with service.session() as session:
        outcome = asyncio.ensure_future(anext(session.convert_all(stubborn())))
        await clock.run_pending()
        before = clock.monotonic()
        await clock.run(session.aclose())

        assert 25.0 == clock.monotonic() - before
        assert "did not stop when cancelled" in caplog.text
        with pytest.raises(SessionClosedError):
            await clock.run(outcome)
        gate.set_result(None)
