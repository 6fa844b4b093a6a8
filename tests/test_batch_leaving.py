"""Ways to leave a batch: whichever it is, nothing more is read, sent or lost."""

from __future__ import annotations

import asyncio
import gc
import itertools
from typing import TYPE_CHECKING

import pytest

from catalog import Catalog, Studio, cancelled, collect, number_of, numbers, track, tracks
from kie_wav_async import RateLimit
from kie_wav_async.errors import TransportError
from kie_wav_async.testing import FakeClock, refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from kie_wav_async import Batch, Outcome, Track

#: Three submits at a time, so that there is something queued.
BY_THREES = RateLimit(3, per_s=10.0)


@pytest.fixture
def clock() -> FakeClock:
    """Give time that moves when told."""
    return FakeClock()


@pytest.fixture
def studio(clock: FakeClock) -> Studio:
    """Give a service on that time."""
    return Studio(clock)


@pytest.fixture
def endless(clock: FakeClock) -> Catalog:
    """Give the tracks 1, 2, 3 and so on."""
    return Catalog(clock, map(track, itertools.count(1)))


class Boom(Exception):  # noqa: N818 - it is no error of ours
    """What goes wrong on the user's side."""


async def leave_by_break(batch: Batch) -> None:
    """Break out of the loop."""
    async for _ in batch:
        break


async def leave_by_error(batch: Batch) -> Boom:
    """Raise in the body of the loop."""
    try:
        async for _ in batch:
            raise Boom  # noqa: TRY301 - the error is the way out
    except Boom as error:
        return error


async def leave_block_by_break(batch: Batch) -> None:
    """Break out of the loop in an ``async with``."""
    async with batch:
        async for _ in batch:
            break


async def leave_block_by_error(batch: Batch) -> Boom:
    """Raise in the loop in an ``async with``."""
    try:
        async with batch:
            async for _ in batch:
                raise Boom  # noqa: TRY301 - the error is the way out
    except Boom as error:
        return error


async def leave_by_aclose(batch: Batch) -> None:
    """Close the batch in the body of the loop."""
    async for _ in batch:
        await batch.aclose()


async def leave_by_timeout(batch: Batch) -> TimeoutError:
    """Run into a timeout while the loop waits, and keep the error."""
    try:
        async with asyncio.timeout(None) as limit:
            async for _ in batch:
                limit.reschedule(asyncio.get_running_loop().time())
    except TimeoutError as error:
        return error


async def leave_by_cancellation(batch: Batch) -> asyncio.CancelledError:
    """Be cancelled while the loop waits, and keep the error."""

    async def iterate() -> None:
        async for _ in batch:
            asyncio.get_running_loop().call_soon(task.cancel)

    task = asyncio.ensure_future(iterate())
    try:
        await task
    except asyncio.CancelledError as error:
        return error


async def leave_by_hand(batch: Batch) -> asyncio.Future[object]:
    """Ask without a loop, and cancel that."""
    await anext(batch)
    asking = asyncio.ensure_future(anext(batch))
    await asyncio.sleep(0)
    await cancelled(asking)
    return asking


async def leave_generator(batch: Batch) -> None:
    """Break out of a generator around the loop."""

    async def generate() -> AsyncIterator[object]:
        async for outcome in batch:
            yield outcome

    async for _ in generate():
        break


WAYS_TO_CLOSE = [leave_block_by_break, leave_block_by_error, leave_by_aclose]
WAYS_TO_PAUSE = [
    leave_by_break,
    leave_by_error,
    leave_by_timeout,
    leave_by_cancellation,
    leave_by_hand,
    leave_generator,
]
WAYS = [*WAYS_TO_CLOSE, *WAYS_TO_PAUSE]


def name_of(way: object) -> str:
    """Name a way out."""
    return way.__name__.removeprefix("leave_")


class TestLeave:
    @pytest.mark.parametrize("way", WAYS, ids=name_of)
    @pytest.mark.parametrize("is_held", [False, True])
    async def test_nothing_more_is_read_or_submitted(
        self,
        clock: FakeClock,
        studio: Studio,
        endless: Catalog,
        way: Callable[[Batch], Awaitable[object]],
        *,
        is_held: bool,
    ) -> None:
        """Whichever way a batch is left, nothing more is read or sent; what is in flight stays."""
        studio.takes_s.update(dict.fromkeys(range(2, 99), 1_000.0))
        async with studio.session(rate_limit=BY_THREES, timeout_s=None) as session:
            batch = session.convert_all(endless)
            kept = [batch, await clock.run(way(batch))] if is_held else await clock.run(way(batch))
            del batch
            given = endless.given
            await clock.advance(200.0)

            assert [1, 2, 3] == studio.submitted
            assert given == endless.given
            assert [2, 3] == [number_of(c.track) for c in session.conversions()]
        del kept

    @pytest.mark.parametrize("way", WAYS_TO_PAUSE, ids=name_of)
    async def test_iterating_again_goes_on(
        self,
        clock: FakeClock,
        studio: Studio,
        way: Callable[[Batch], Awaitable[object]],
    ) -> None:
        """A batch that was left, but not closed, yields the rest when iterated again."""
        catalog = Catalog(clock, tracks(*range(1, 13)), [0.0, 0.5] * 6)
        async with studio.session(rate_limit=BY_THREES, max_in_flight=8) as session:
            batch = session.convert_all(catalog)
            seen: list[int] = []

            async def spy() -> None:
                # The ways drop what they take; whatever is missing later was theirs.
                await way(batch)

            await clock.run(spy())
            await clock.advance(33.0)
            rest = await clock.run(collect(batch))
            seen = numbers(rest.outcomes)

        assert rest.error is None
        assert 11 == len(seen) == len({*seen})
        assert [*range(1, 13)] == sorted(studio.submitted)
        assert all(number_of(o.track) == o.index + 1 for o in rest.outcomes)

    @pytest.mark.parametrize("way", WAYS_TO_CLOSE, ids=name_of)
    async def test_a_closed_batch_yields_nothing(
        self,
        clock: FakeClock,
        studio: Studio,
        endless: Catalog,
        way: Callable[[Batch], Awaitable[object]],
    ) -> None:
        """A batch that was closed is over, and closing it again does nothing."""
        async with studio.session(rate_limit=BY_THREES) as session:
            batch = session.convert_all(endless)
            await clock.run(way(batch))
            await batch.aclose()
            collected = await clock.run(collect(batch))

        assert ([], None) == (collected.outcomes, collected.error)
        await batch.aclose()

    async def test_closing_ends_a_waiting_consumer(
        self, clock: FakeClock, studio: Studio, endless: Catalog
    ) -> None:
        """Whoever waits for an outcome of a batch that is closed sees its end."""
        async with studio.session() as session:
            batch = session.convert_all(endless)
            collecting = asyncio.ensure_future(collect(batch))
            await clock.advance(0.0)
            await batch.aclose()
            collected = await collecting

        assert ([], None) == (collected.outcomes, collected.error)

    async def test_closing_before_the_reader_began(
        self, clock: FakeClock, studio: Studio, endless: Catalog
    ) -> None:
        """A batch closed in the moment it is first asked reads nothing and leaves nothing."""
        async with studio.session() as session:
            batch = session.convert_all(endless)
            collected, _ = await clock.run(asyncio.gather(collect(batch), batch.aclose()))

        assert ([], None) == (collected.outcomes, collected.error)
        assert [] == studio.submitted
        assert 0 == endless.given

    @pytest.mark.parametrize("way", WAYS, ids=name_of)
    async def test_what_others_wait_for_is_still_sent(
        self,
        clock: FakeClock,
        studio: Studio,
        endless: Catalog,
        way: Callable[[Batch], Awaitable[object]],
    ) -> None:
        """A queued track that another caller waits for is submitted though the batch is left."""
        async with studio.session(rate_limit=BY_THREES) as session:
            batch = session.convert_all(endless)
            leaving = asyncio.ensure_future(way(batch))
            await clock.run_pending()
            other = asyncio.ensure_future(session.convert(track(5)))
            await clock.run(leaving)
            wav = await clock.run(other)

        assert track(5) == wav.track
        assert [1, 2, 3, 5] == studio.submitted

    @pytest.mark.parametrize("way", WAYS, ids=name_of)
    @pytest.mark.parametrize(
        "held", [refused(429), refused(455), TransportError("no route", maybe_sent=False)]
    )
    async def test_a_submit_held_after_the_batch_is_left_is_not_repeated(
        self,
        clock: FakeClock,
        studio: Studio,
        held: object,
        way: Callable[[Batch], Awaitable[object]],
    ) -> None:
        """A submit on the wire when the batch is left, that created nothing, is not sent again."""
        studio.latency_s[2] = 20.0
        studio.replies[2].append(held)
        async with studio.session() as session:
            batch = session.convert_all(tracks(1, 2))
            await clock.run(way(batch))
            await clock.advance(200.0)

            assert [1, 2] == studio.submitted

    async def test_a_catalog_that_keeps_one_waiting_is_let_go(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """Closing a batch does not wait for the track its catalog is looking for."""
        catalog = Catalog(clock, tracks(1, 2), [0.0, 1_000.0])
        async with studio.session() as session:
            async with session.convert_all(catalog) as batch:
                await clock.run(anext(batch))
                assert catalog.is_read
            assert not catalog.is_read

    async def test_a_catalog_left_reading_ends_with_the_session(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """A batch that is left while its catalog looks for a track leaves no task behind."""
        catalog = Catalog(clock, tracks(1, 2), [0.0, 1_000.0])
        async with studio.session() as session:
            await clock.run(leave_by_break(session.convert_all(catalog)))
            assert catalog.is_read
        assert not catalog.is_read

    @pytest.mark.parametrize("way", WAYS, ids=name_of)
    async def test_a_generator_is_cleaned_up(
        self,
        clock: FakeClock,
        studio: Studio,
        way: Callable[[Batch], Awaitable[object]],
    ) -> None:
        """A generator that only the batch knows is closed with it, or when it is dropped."""
        closed: list[str] = []

        async def generate() -> AsyncIterator[Track]:
            try:
                for number in itertools.count(1):
                    yield track(number)
            finally:
                await asyncio.sleep(0)
                closed.append("async")

        def plain() -> Iterator[Track]:
            try:
                for number in itertools.count(1):
                    yield track(number)
            finally:
                closed.append("plain")

        async with studio.session(max_in_flight=3) as session:
            for source in (generate, plain):
                batch = session.convert_all(source())
                await clock.run(way(batch))
                if way not in WAYS_TO_CLOSE:
                    del batch
                    gc.collect()
                await clock.advance(10.0)

        assert ["async", "plain"] == closed

    async def test_a_generator_of_the_users_is_left_open(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """A generator that its owner still holds can be read on after the batch."""
        numbers_left = (track(number) for number in itertools.count(1))
        async with studio.session(max_in_flight=2) as session:
            await clock.run(leave_block_by_break(session.convert_all(numbers_left)))

        assert number_of(next(numbers_left)) in {3, 4}


class TestCancelledAnext:
    @pytest.mark.parametrize("turns", range(14))
    async def test_no_outcome_is_lost(self, clock: FakeClock, studio: Studio, turns: int) -> None:
        """An ``anext`` cancelled any number of turns after the news loses no outcome."""
        async with studio.session() as session:
            batch = session.convert_all(tracks(1, 2))
            asking = asyncio.ensure_future(anext(batch))

            async def cancel_later() -> None:
                for _ in range(turns):
                    await asyncio.sleep(0)
                asking.cancel()

            cancelling: list[asyncio.Task[None]] = []
            clock.call_at(
                clock.monotonic() + 2.0,
                lambda: cancelling.append(asyncio.create_task(cancel_later())),
            )
            await clock.advance(2.0)
            await asyncio.wait([asking, *cancelling])
            first = [] if asking.cancelled() else [asking.result()]
            rest = await clock.run(collect(batch))

        assert [1, 2] == sorted(numbers([*first, *rest.outcomes]))

    async def test_a_timeout_loses_no_outcome(self, clock: FakeClock, studio: Studio) -> None:
        """An ``anext`` under `asyncio.timeout` that ran out can be asked again."""
        async with studio.session(max_in_flight=2) as session:
            batch = session.convert_all(tracks(1, 2, 3, 4))
            found = []
            timeouts = 0
            while len(found) < 4:
                try:
                    async with asyncio.timeout(0):
                        found.append(await anext(batch))
                except TimeoutError:
                    timeouts += 1
                    # Somebody has to ask for a track to be read.
                    asking = asyncio.ensure_future(anext(batch))
                    await clock.advance(0.7)
                    await cancelled(asking)
                    if not asking.cancelled():
                        found.append(asking.result())

        assert [1, 2, 3, 4] == sorted(numbers(found))
        assert timeouts > 1

    async def test_an_iterator_can_be_asked_again(self, clock: FakeClock, studio: Studio) -> None:
        """An iterator whose ``anext`` was cancelled reads on as soon as it is asked again."""
        async with studio.session(max_in_flight=2) as session:
            iterator = aiter(session.convert_all(tracks(1, 2, 3, 4)))
            asking = asyncio.ensure_future(anext(iterator))
            await clock.advance(1.0)
            await cancelled(asking)
            await clock.advance(100.0)
            assert [1, 2] == studio.submitted

            first = await clock.run(anext(iterator))
            await clock.advance(1.0)
            # As long as it lives it reads on, asked or not.
            assert [1, 2, 3] == studio.submitted
            rest = [outcome async for outcome in iterator_of(clock, iterator)]

        assert [1, 2, 3, 4] == sorted(numbers([first, *rest]))

    async def test_what_is_ready_is_given_at_once(self, clock: FakeClock, studio: Studio) -> None:
        """An outcome that is there is returned without giving the loop a chance to cancel."""
        async with studio.session() as session:
            batch = session.convert_all(tracks(1, 2))
            first = await clock.run(anext(batch))
            await clock.advance(10.0)
            async with asyncio.timeout(0):
                second = await anext(batch)

        assert [1, 2] == sorted(numbers([first, second]))


async def iterator_of(clock: FakeClock, iterator: AsyncIterator[Outcome]) -> AsyncIterator[Outcome]:
    """Go on with *iterator* while time moves."""
    while True:
        try:
            yield await clock.run(anext(iterator))
        except StopAsyncIteration:
            return
