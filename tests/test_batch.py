"""What a catalog comes to: each track yielded once, at the pace of the slowest of three."""

from __future__ import annotations

import asyncio
import gc
import itertools
from typing import TYPE_CHECKING

import pytest

from catalog import Catalog, Studio, collect, number_of, numbers, take, track, tracks
from kie_wav_async import PollSchedule, RateLimit, Track, WavSession
from kie_wav_async.core import registry
from kie_wav_async.errors import (
    ConversionFailedError,
    InvalidRequestError,
    SubmitUnknownError,
    TransportError,
)
from kie_wav_async.testing import FakeClock, polled_task_id, refused
from kie_wav_async.testing import accepted as accepted_answer
from kie_wav_async.testing import succeeded as succeeded_answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from kie_wav_async import WireRequest, WireResponse


@pytest.fixture
def clock() -> FakeClock:
    """Give time that moves when told."""
    return FakeClock()


@pytest.fixture
def studio(clock: FakeClock) -> Studio:
    """Give a service on that time."""
    return Studio(clock)


class TestYield:
    @pytest.mark.parametrize("count", [0, 1, 7, 50])
    async def test_every_track_is_yielded_once(
        self, clock: FakeClock, studio: Studio, count: int
    ) -> None:
        """Each track of a catalog of any size is yielded once, with its place in it."""
        catalog = tracks(*range(count))
        async with studio.session(max_in_flight=6) as session:
            collected = await clock.run(collect(session.convert_all(catalog)))
            submitted = session.statistics().submitted

        assert collected.error is None
        found = {outcome.index: outcome.track for outcome in collected.outcomes}
        assert found == dict(enumerate(catalog))
        assert len(collected.outcomes) == submitted == count
        assert all(outcome.wav.track == outcome.track for outcome in collected.outcomes)

    @pytest.mark.parametrize("kind", ["list", "iterator", "generator", "async", "async generator"])
    async def test_any_iterable_will_do(self, clock: FakeClock, studio: Studio, kind: str) -> None:
        """A catalog may be an iterable or an async iterable of any kind, empty ones too."""

        async def generate(catalog: list[Track]) -> AsyncIterator[Track]:
            for item in catalog:
                await asyncio.sleep(0)
                yield item

        make = {
            "list": list,
            "iterator": iter,
            "generator": lambda catalog: (item for item in catalog),
            "async": lambda catalog: Catalog(clock, catalog, [0.5, 0.0, 0.5]),
            "async generator": generate,
        }[kind]
        async with studio.session() as session:
            full = await clock.run(collect(session.convert_all(make(tracks(1, 2, 3)))))
            empty = await clock.run(collect(session.convert_all(make([]))))

        assert [1, 2, 3] == sorted(numbers(full.outcomes))
        assert [] == empty.outcomes
        assert full.error is empty.error is None

    async def test_what_ends_first_comes_first(self, clock: FakeClock, studio: Studio) -> None:
        """Outcomes come in the order in which the conversions end."""
        studio.takes_s.update({1: 9.0, 2: 3.0, 3: 6.0})
        async with studio.session() as session:
            collected = await clock.run(collect(session.convert_all(tracks(1, 2, 3))))

        assert [2, 3, 1] == numbers(collected.outcomes)
        assert [1, 2, 0] == [outcome.index for outcome in collected.outcomes]

    async def test_duplicates_in_flight_share_a_conversion(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """A track that comes again while in flight is yielded again and submitted once."""
        async with studio.session() as session:
            collected = await clock.run(collect(session.convert_all(tracks(1, 1, 2, 1))))

        assert [1, 2] == studio.submitted
        assert [0, 1, 2, 3] == sorted(outcome.index for outcome in collected.outcomes)
        assert 1 == len({o.wav.task_id for o in collected.outcomes if o.track == track(1)})

    async def test_duplicates_of_a_failure_get_errors_of_their_own(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """Duplicates that share a failed conversion do not share an error object."""
        studio.bad.add(1)
        async with studio.session() as session:
            collected = await clock.run(collect(session.convert_all(tracks(1, 1))))

        first, second = (outcome.error for outcome in collected.outcomes)
        assert isinstance(first, ConversionFailedError)
        assert isinstance(second, ConversionFailedError)
        assert first is not second

    async def test_duplicates_keep_the_title_they_were_read_with(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """An outcome has the very track that was read, though an equal one was converted."""
        catalog = [Track("5c79", "e1", title="one"), Track("5c79", "e1", title="two")]
        async with studio.session() as session:
            collected = await clock.run(collect(session.convert_all(catalog)))

        assert ["one", "two"] == [outcome.track.title for outcome in collected.outcomes]

    async def test_duplicates_of_a_result_are_not_paid_again(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """A track that comes again after its success is yielded again and not submitted."""
        async with studio.session(max_in_flight=1) as session:
            collected = await clock.run(collect(session.convert_all(tracks(1, 1, 2, 1))))

        assert [1, 2] == studio.submitted
        assert [1, 1, 2, 1] == numbers(collected.outcomes)
        assert all(outcome.ok for outcome in collected.outcomes)

    async def test_forgotten_results_are_converted_again(
        self, clock: FakeClock, studio: Studio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A duplicate that comes more results later than are remembered is submitted again."""
        monkeypatch.setattr(registry, "RESULT_CACHE_SIZE", 2)
        async with studio.session(max_in_flight=1) as session:
            collected = await clock.run(collect(session.convert_all(tracks(1, 2, 1, 3, 4, 1))))

        assert [1, 2, 3, 4, 1] == studio.submitted
        assert [1, 2, 1, 3, 4, 1] == numbers(collected.outcomes)

    async def test_a_failed_track_is_converted_again(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """A track that comes again after its failure is submitted again."""
        studio.bad.add(1)
        async with studio.session(max_in_flight=1) as session:
            collected = await clock.run(collect(session.convert_all(tracks(1, 1))))

        assert [1, 1] == studio.submitted
        assert [False, False] == [outcome.ok for outcome in collected.outcomes]

    async def test_an_error_of_one_track_is_its_outcome(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """A refused, failed or unsent track ends nothing but itself."""
        studio.bad.add(1)
        studio.replies[2].append(refused(422, "no such track"))
        studio.replies[3].extend(TransportError("no route", maybe_sent=False) for _ in range(3))
        async with studio.session() as session:
            collected = await clock.run(collect(session.convert_all(tracks(1, 2, 3, 4))))

        errors = {number_of(o.track): o.error for o in collected.outcomes}
        assert collected.error is None
        assert [ConversionFailedError, InvalidRequestError, TransportError, type(None)] == [
            type(errors[number]) for number in (1, 2, 3, 4)
        ]
        assert all(o.error is None or o.error.track == o.track for o in collected.outcomes)

    async def test_unknown_submits_are_outcomes(self, clock: FakeClock, studio: Studio) -> None:
        """A submit of unknown fate is an outcome, and its duplicate one more, never sent again."""
        studio.replies[1].append(TransportError("reset"))
        async with studio.session(max_in_flight=1) as session:
            collected = await clock.run(collect(session.convert_all(tracks(1, 2, 1))))
            (unknown,) = session.unknown_submits()

        assert [1, 2] == studio.submitted
        assert [1, 2, 1] == numbers(collected.outcomes)
        first, _, second = (outcome.error for outcome in collected.outcomes)
        assert isinstance(first, SubmitUnknownError)
        assert isinstance(second, SubmitUnknownError)
        assert unknown.attempt_id == first.attempt_id == second.attempt_id

    async def test_a_conversion_of_somebody_else_is_joined(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """A track that another caller has in flight is yielded by the batch and submitted once."""
        async with studio.session() as session:
            other = await clock.run(session.submit(track(1)))
            collected = await clock.run(collect(session.convert_all(tracks(1, 2))))
            assert other.result() == collected.outcomes[0].wav

        assert [1, 2] == studio.submitted

    async def test_two_batches_share_the_conversions(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """Two batches over the same tracks yield all of them each, and pay for each once."""
        studio.bad.add(3)
        async with studio.session(max_in_flight=4) as session:
            both = asyncio.gather(
                collect(session.convert_all(tracks(1, 2, 3, 4, 5, 6, 7))),
                collect(session.convert_all(tracks(7, 6, 5, 4, 3, 2, 1))),
            )
            one, other = await clock.run(both)

        assert [*range(1, 8)] == sorted(numbers(one.outcomes)) == sorted(numbers(other.outcomes))
        assert [*range(1, 8)] == sorted({*studio.submitted})
        assert 6 == len([number for number in studio.submitted if number != 3])
        assert one.error is other.error is None

    async def test_the_end_is_told_again(self, clock: FakeClock, studio: Studio) -> None:
        """A batch that is over says so however often it is asked, after the session too."""
        async with studio.session() as session:
            batch = session.convert_all(tracks(1))
            await clock.run(collect(batch))
            with pytest.raises(StopAsyncIteration):
                await anext(batch)

        with pytest.raises(StopAsyncIteration):
            await anext(batch)
        assert [] == (await collect(batch)).outcomes

    async def test_maintenance_holds(self, clock: FakeClock, studio: Studio) -> None:
        """Maintenance, however long, holds the submits and fails no track."""
        studio.maintained_until = clock.monotonic() + 3_600.0
        async with studio.session(rate_limit=RateLimit(2, per_s=10.0)) as session:
            collected = await clock.run(collect(session.convert_all(tracks(1, 2, 3, 4, 5))))

        assert collected.error is None
        assert [1, 2, 3, 4, 5] == sorted(numbers(collected.outcomes))
        assert all(outcome.ok for outcome in collected.outcomes)

    @pytest.mark.parametrize("wrong", [None, 7, track(1)])
    async def test_what_cannot_be_read_is_refused_at_the_call(
        self, studio: Studio, wrong: object
    ) -> None:
        """What is neither an iterable nor an async one is a `TypeError` at the call."""
        async with studio.session() as session:
            with pytest.raises(TypeError):
                session.convert_all(wrong)

    async def test_without_a_session_there_is_no_batch(self, studio: Studio) -> None:
        """A session that was not entered converts no catalog."""
        with pytest.raises(RuntimeError, match="async with"):
            studio.session().convert_all(tracks(1))


class TestPace:
    async def test_nothing_happens_before_somebody_asks(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """A batch that nobody iterates reads nothing."""
        catalog = Catalog(clock, tracks(1, 2))
        async with studio.session() as session:
            async with session.convert_all(catalog):
                await clock.advance(10.0)
            await clock.advance(10.0)

        assert 0 == catalog.given
        assert [] == studio.submitted

    async def test_it_reads_on_while_the_consumer_works(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """Tracks are submitted while the body of the loop is busy with an outcome."""
        async with studio.session(max_in_flight=3) as session:

            async def consume() -> None:
                async for _ in session.convert_all(tracks(1, 2, 3, 4)):
                    await clock.sleep(1.0)
                    assert 4 in studio.submitted
                    break

            await clock.run(consume())

    @pytest.mark.parametrize("max_in_flight", [1, 2, 5])
    async def test_a_slow_consumer_pauses_the_submits(
        self, clock: FakeClock, studio: Studio, max_in_flight: int
    ) -> None:
        """What is in flight and what is not yet taken are together never above the limit."""
        catalog = Catalog(clock, map(track, itertools.count()))
        async with studio.session(max_in_flight=max_in_flight) as session:
            batch = session.convert_all(catalog)
            yielded = 0

            async def consume() -> None:
                nonlocal yielded
                async for _ in batch:
                    yielded += 1
                    for _ in range(10):
                        await clock.sleep(3.0)
                        assert catalog.given - yielded <= max_in_flight
                        assert len(studio.submitted) - yielded <= max_in_flight
                    assert catalog.given - yielded == max_in_flight
                    if yielded == 5:
                        break

            await clock.run(consume())

        assert 5 == yielded

    async def test_a_single_conversion_is_not_starved(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """A single conversion beside an endless batch gets its turn within about a window."""
        async with studio.session(rate_limit=RateLimit(20, per_s=10.0)) as session:
            batch = asyncio.create_task(
                collect(session.convert_all(map(track, itertools.count(1))))
            )
            await clock.advance(35.0)
            started = clock.monotonic()
            await clock.run(session.submit(track(0)))
            waited = clock.monotonic() - started
            await clock.advance(30.0)
            batch.cancel()
            await asyncio.wait([batch])

        assert waited <= 11.0

    async def test_a_batch_uses_the_window_up(self, clock: FakeClock, studio: Studio) -> None:
        """With room in flight, a batch sends as many submits as the window lets through."""
        async with studio.session(rate_limit=RateLimit(20, per_s=10.0)) as session:
            batch = asyncio.create_task(collect(session.convert_all(map(track, itertools.count()))))
            await clock.advance(99.0)
            assert 200 == len(studio.submitted)
            batch.cancel()
            await asyncio.wait([batch])

    async def test_outcomes_come_while_the_catalog_is_slow(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """An async catalog that keeps its next track waiting holds no outcome up."""
        catalog = Catalog(clock, tracks(1, 2), [0.0, 1_000.0])
        async with studio.session() as session:
            batch = session.convert_all(catalog)
            started = clock.monotonic()
            first = await clock.run(anext(batch))
            assert clock.monotonic() - started < 10.0
            rest = await clock.run(collect(batch))

        assert [1, 2] == [number_of(first.track), *numbers(rest.outcomes)]

    async def test_the_catalog_has_one_reader(self, clock: FakeClock, studio: Studio) -> None:
        """Several consumers of one batch share it, and its catalog is asked by one at a time."""
        catalog = Catalog(clock, tracks(*range(12)), [0.5] * 12)
        async with studio.session(max_in_flight=4) as session:
            batch = session.convert_all(catalog)
            shares = await clock.run(asyncio.gather(*(collect(batch) for _ in range(3))))

        assert [*range(12)] == sorted(numbers(o for share in shares for o in share.outcomes))
        assert [None] * 3 == [share.error for share in shares]

    async def test_one_at_a_time_by_hand(self, clock: FakeClock, studio: Studio) -> None:
        """A batch can be asked for one outcome after the other, without a loop."""
        async with studio.session(max_in_flight=2) as session:
            batch = session.convert_all(tracks(1, 2, 3))
            found = [await clock.run(anext(batch)) for _ in range(3)]
            with pytest.raises(StopAsyncIteration):
                await clock.run(anext(batch))

        assert [1, 2, 3] == sorted(numbers(found))

    async def test_an_endless_catalog_can_be_left(self, clock: FakeClock, studio: Studio) -> None:
        """An endless catalog is converted for as long as somebody asks."""
        async with studio.session(max_in_flight=3) as session:
            outcomes = await clock.run(take(session.convert_all(map(track, itertools.count())), 50))

        assert 50 == len(outcomes)
        assert 53 >= len(studio.submitted)


class Instant:
    """A transport whose conversions are over at once, and that keeps nothing."""

    def __init__(self) -> None:
        self._ids = itertools.count()

    async def send(self, request: WireRequest) -> WireResponse:
        if request.is_submit:
            return accepted_answer(f"task{next(self._ids)}")
        return succeeded_answer(polled_task_id(request))

    async def aclose(self) -> None:
        pass


class Gauge:
    """A catalog that weighs the process when it is asked for certain tracks."""

    def __init__(self, count: int, weigh_at: set[int]) -> None:
        self._count = count
        self._weigh_at = weigh_at
        self.objects: list[int] = []

    def __iter__(self) -> Iterator[Track]:
        for number in range(self._count):
            if number in self._weigh_at:
                gc.collect()
                self.objects.append(len(gc.get_objects()))
            yield track(number)


def test_memory_does_not_grow_with_the_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 29,000 tracks a session holds as much as after 10,000."""
    monkeypatch.setattr(registry, "RESULT_CACHE_SIZE", 1_000)
    catalog = Gauge(30_000, {10_000, 29_000})

    async def convert() -> int:
        yielded = 0
        async with WavSession(
            "key",
            transport=Instant(),
            rate_limit=RateLimit(1_000, per_s=0.001),
            poll=PollSchedule(first_s=0.0, max_per_s=1e6),
        ) as session:
            async for outcome in session.convert_all(catalog):
                yielded += outcome.ok
        return yielded

    assert 30_000 == asyncio.run(convert())
    early, late = catalog.objects
    assert late - early < 2_000
