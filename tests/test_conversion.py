"""The live handle: awaited by many, each for itself."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import sys

import pytest

from fakes import FakeService, refusal, track
from kie_wav_async.core.effects import Notify
from kie_wav_async.errors import (
    ConversionFailedError,
    ConversionTimeoutError,
    InvalidRequestError,
    KieWavError,
)
from kie_wav_async.testing import FakeClock, failed


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock) -> FakeService:
    """Return a service that means well until it is told otherwise."""
    return FakeService(clock)


async def test_awaited_any_number_of_times(clock, service) -> None:
    """A conversion may be awaited by many at once and later, and gives the same file."""
    async with service.session() as session:
        conversion = await clock.run(session.submit(track()))

        async def plainly():
            return await conversion

        waits = [asyncio.create_task(plainly()), asyncio.create_task(conversion.wait())]
        await clock.run(asyncio.wait(waits))
        files = [wait.result() for wait in waits] + [await conversion, conversion.result()]
        assert 1 == len({id(wav) for wav in files})
        assert conversion.done()


async def test_awaited_after_closing(clock, service) -> None:
    """A settled conversion can be awaited when its session is long gone, in any loop."""
    async with service.session() as session:
        conversion = await clock.run(session.submit(track()))
        await clock.run(conversion.wait())
    assert "task0001" == (await conversion).task_id
    assert "task0001" == (await asyncio.to_thread(asyncio.run, conversion.wait())).task_id


async def test_result_before_the_end(clock, service) -> None:
    """result() of a conversion in flight is asyncio's InvalidStateError."""
    async with service.session() as session:
        conversion = await clock.run(session.submit(track()))
        assert not conversion.done()
        with pytest.raises(asyncio.InvalidStateError):
            conversion.result()


async def test_each_waiter_gets_an_error_of_its_own(clock, service) -> None:
    """A failure is a new object for every waiter and every look, with the same fields."""
    service.poll_replies.append(failed)
    async with service.session() as session:
        conversion = await clock.run(session.submit(track()))
        waits = [asyncio.create_task(conversion.wait()) for _ in range(3)]
        waits.append(asyncio.create_task(session.convert(track())))
        await clock.run(asyncio.wait(waits))
        seen = [wait.exception() for wait in waits]
        for _ in range(2):
            with pytest.raises(ConversionFailedError) as caught:
                await conversion
            seen.append(caught.value)
            with pytest.raises(ConversionFailedError) as caught:
                conversion.result()
            seen.append(caught.value)
        assert 8 == len({id(error) for error in seen})
        for error in seen:
            assert ("task0001", track()) == (error.task_id, error.track)
            assert seen[0].record is error.record
            assert str(seen[0]) == str(error)
            for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 - our own bytes
                assert vars(error) == vars(twin)


async def test_waiters_errors_share_no_traceback(clock, service) -> None:
    """Raising a failure again does not grow the traceback of an earlier one."""
    service.poll_replies.append(failed)
    async with service.session() as session:
        conversion = await clock.run(session.submit(track()))
        lengths = []
        with pytest.raises(ConversionFailedError):
            await clock.run(conversion.wait())
        for _ in range(3):
            with pytest.raises(ConversionFailedError) as caught:
                await conversion
            lengths.append(len(caught.traceback))
        assert 1 == len(set(lengths))


async def test_submit_waiters_get_errors_of_their_own(clock, service) -> None:
    """A refusal is a new object for everybody who joined the submit."""
    service.fates.append(refusal(422, message="Record does not exist"))
    service.latency_s = 1.0
    async with service.session() as session:
        waits = [asyncio.create_task(session.submit(track())) for _ in range(2)]
        waits += [asyncio.create_task(session.convert(track())) for _ in range(2)]
        await clock.run(asyncio.wait(waits))
        seen = [wait.exception() for wait in waits]
        assert 4 == len({id(error) for error in seen})
        for error in seen:
            assert isinstance(error, InvalidRequestError)
            assert (422, "Record does not exist") == (error.code, error.message)
            assert (None, track()) == (error.task_id, error.track)


async def test_cancelled_waiter_touches_nobody(clock, service) -> None:
    """Cancelling a waiter leaves the job, the handle and the other waiters alone."""
    async with service.session() as session:
        conversion = await clock.run(session.submit(track()))
        waits = [asyncio.create_task(conversion.wait()) for _ in range(3)]
        await clock.run_pending()
        waits[0].cancel()
        waits[2].cancel()
        await clock.run_pending()
        assert (conversion,) == session.conversions()
        assert "task0001" == (await clock.run(waits[1])).task_id
        assert [True, False, True] == [wait.cancelled() for wait in waits]
        assert "task0001" == (await conversion).task_id


async def test_all_waiters_cancelled_leaves_the_job(clock, service) -> None:
    """A conversion nobody waits for any more is still followed and settles."""
    async with service.session() as session:
        conversion = await clock.run(session.submit(track()))
        waits = [asyncio.create_task(conversion.wait()) for _ in range(3)]
        await clock.run_pending()
        for wait in waits:
            wait.cancel()
        await clock.advance(100.0)
        assert conversion.done()
        assert 1 == session.statistics().settled_by_poll


async def test_cancelled_waiters_are_forgotten(clock, service) -> None:
    """Whoever waits and gives up a thousand times leaves nothing behind."""
    async with service.session() as session:
        conversion = await clock.run(session.submit(track()))
        await clock.run_pending()
        for _ in range(1_000):
            wait = asyncio.create_task(conversion.wait())
            await asyncio.sleep(0)
            wait.cancel()
            await asyncio.sleep(0)
        await clock.run_pending()
        assert not conversion._entry._waiters


async def test_waiter_cancelled_as_the_file_arrives(clock, service) -> None:
    """A waiter cancelled in the very turn in which its wait ends is cancelled, and no more."""
    service.poll_replies.append(failed)
    async with service.session() as session:
        conversion = await clock.run(session.submit(track()))
        wait = asyncio.create_task(conversion.wait())
        await clock.run_pending()
        session._loop.do([Notify(conversion._entry, KieWavError("over"))])
        wait.cancel()
        await asyncio.wait([wait])
        assert wait.cancelled()


async def test_timeout_of_the_callers_own(clock, service) -> None:
    """asyncio.timeout around a wait ends that wait only."""
    async with service.session() as session:
        conversion = await clock.run(session.submit(track()))
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0):
                await conversion
        assert not isinstance(caught.value, ConversionTimeoutError)
        assert "task0001" == (await clock.run(conversion.wait())).task_id


async def test_wait_is_a_coroutine(clock, service) -> None:
    """wait() can be given to create_task, gather and a TaskGroup as it is."""
    async with service.session() as session:
        conversions = [await clock.run(session.submit(track(n))) for n in (1, 2)]

        async def both():
            async with asyncio.TaskGroup() as group:
                return [group.create_task(c.wait()) for c in conversions]

        files = [task.result() for task in await clock.run(both())]
        assert ["task0001", "task0002"] == [wav.task_id for wav in files]


async def test_repr_tells_task_track_and_phase(clock, service) -> None:
    """The repr of a conversion names its task, its track and where it stands."""
    async with service.session() as session:
        conversion = await clock.run(session.submit(track()))
        assert "task0001" in repr(conversion)
        assert "e1" in repr(conversion)
        assert "accepted" in repr(conversion)
        await clock.run(conversion.wait())
        assert "succeeded" in repr(conversion)


async def test_handles_are_not_values(clock, service) -> None:
    """Conversions are equal to themselves only, and can be kept in sets."""
    service.knows_repeats = False
    async with service.session() as session:
        first = await clock.run(session.submit(track()))
        await clock.run(first.wait())
        second = await clock.run(session.submit(track(), again=True))
        assert first != second
        assert 2 == len({first, second})


async def test_settled_conversion_holds_no_waiters(clock, service) -> None:
    """A settled conversion keeps no reference to those who waited for it."""
    async with service.session() as session:
        conversion = await clock.run(session.submit(track()))
        wait = asyncio.create_task(conversion.wait())
        await clock.run(asyncio.wait([wait]))
        await clock.run_pending()
        gc.collect()
        assert not conversion._entry._waiters
        assert sys.getrefcount(wait) <= 3
