"""What stops a batch, its session or its own catalog, and what is still told then."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import pytest

from catalog import Catalog, Studio, cancelled, collect, number_of, numbers, track, tracks
from kie_wav_async import RateLimit
from kie_wav_async.errors import (
    AuthenticationError,
    ChargeLimitError,
    InsufficientCreditsError,
    SessionClosedError,
    TransportError,
)
from kie_wav_async.testing import FakeClock, refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from kie_wav_async import Batch, Track

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


class TestStop:
    @pytest.mark.parametrize("code", [401, 402, 433])
    async def test_what_waits_for_the_slot_of_a_refused_submit_is_not_sent(
        self, clock: FakeClock, studio: Studio, endless: Catalog, code: int
    ) -> None:
        """The refusal frees the slot in the same moment in which it stops the batch."""
        studio.latency_s[1] = 1.0
        studio.replies[1].append(refused(code))
        async with studio.session(rate_limit=BY_THREES, max_in_flight=2) as session:
            await clock.run(session.submit(track(99)))
            collected = await clock.run(collect(session.convert_all(endless)))

        assert [99, 1] == studio.submitted
        assert code == collected.error.code

    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            (401, AuthenticationError),
            (402, InsufficientCreditsError),
            (433, InsufficientCreditsError),
        ],
    )
    async def test_a_refusal_for_all_stops_the_batch(
        self, clock: FakeClock, studio: Studio, endless: Catalog, code: int, kind: type
    ) -> None:
        """After 401, 402 or 433 what was read is yielded, then the error is raised, once."""
        studio.takes_s.update({1: 50.0, 4: 20.0})
        studio.latency_s[5] = 1.0
        studio.replies[5].append(refused(code))
        async with studio.session(rate_limit=BY_THREES) as session:
            batch = session.convert_all(endless)
            collected = await clock.run(collect(batch))
            again = await clock.run(collect(batch))
            with pytest.raises(StopAsyncIteration):
                await anext(batch)

        assert [1, 2, 3, 4, 5, 6] == studio.submitted
        assert [*range(endless.given)] == sorted(o.index for o in collected.outcomes)
        assert [2, 3, 5, 7, 8, 6, 4, 1] == numbers(collected.outcomes)
        assert {5, 7, 8} == {number_of(o.track) for o in collected.outcomes if not o.ok}
        assert isinstance(collected.error, kind)
        assert ([], None) == (again.outcomes, again.error)

    async def test_each_outcome_has_an_error_of_its_own(
        self, clock: FakeClock, studio: Studio, endless: Catalog
    ) -> None:
        """The error that stops a batch is told of each track by name, and by its own object."""
        studio.replies[2].append(refused(402))
        async with studio.session(rate_limit=BY_THREES) as session:
            collected = await clock.run(collect(session.convert_all(endless)))

        bad = [outcome for outcome in collected.outcomes if not outcome.ok]
        assert len(bad) > 2
        assert [o.track for o in bad] == [o.error.track for o in bad]
        assert {None} == {outcome.error.task_id for outcome in bad}
        assert len(bad) + 1 == len(
            {id(error) for error in [*(o.error for o in bad), collected.error]}
        )

    async def test_the_charge_limit_stops_the_batch(
        self, clock: FakeClock, studio: Studio, endless: Catalog
    ) -> None:
        """At ``max_charges`` what was read is yielded, then `ChargeLimitError` is raised, once."""
        studio.replies[2].append(TransportError("reset"))
        async with studio.session(rate_limit=BY_THREES, max_charges=4) as session:
            batch = session.convert_all(endless)
            collected = await clock.run(collect(batch))
            again = await clock.run(collect(batch))

        assert [1, 2, 3, 4] == studio.submitted
        assert [*range(endless.given)] == sorted(o.index for o in collected.outcomes)
        assert {1, 3, 4} == {number_of(o.track) for o in collected.outcomes if o.ok}
        limited = [o for o in collected.outcomes if isinstance(o.error, ChargeLimitError)]
        assert {*range(5, endless.given + 1)} == {number_of(outcome.track) for outcome in limited}
        assert [o.track for o in limited] == [o.error.track for o in limited]
        assert isinstance(collected.error, ChargeLimitError)
        assert ([], None) == (again.outcomes, again.error)

    async def test_a_limit_reached_before_stops_at_the_first_track(
        self, clock: FakeClock, studio: Studio, endless: Catalog
    ) -> None:
        """A session that may charge no more reads one track, yields it and raises."""
        async with studio.session(max_charges=1) as session:
            await clock.run(session.convert(track(0)))
            collected = await clock.run(collect(session.convert_all(endless)))

        assert 1 == endless.given
        assert [1] == numbers(collected.outcomes)
        assert isinstance(collected.outcomes[0].error, ChargeLimitError)
        assert isinstance(collected.error, ChargeLimitError)

    async def test_a_key_refused_on_polls_stops_the_batch(
        self, clock: FakeClock, studio: Studio, endless: Catalog
    ) -> None:
        """When polls are refused for good, all that was read is yielded with 401, then raised."""
        async with studio.session(rate_limit=BY_THREES, max_in_flight=5) as session:
            studio.polls_refused = 401
            collected = await clock.run(collect(session.convert_all(endless)))
            following = {number_of(conversion.track) for conversion in session.conversions()}

        assert [*range(endless.given)] == sorted(o.index for o in collected.outcomes)
        assert all(isinstance(o.error, AuthenticationError) for o in collected.outcomes)
        assert [o.track for o in collected.outcomes] == [o.error.track for o in collected.outcomes]
        assert {*studio.submitted} == following
        named = {number_of(o.track) for o in collected.outcomes if o.error.task_id is not None}
        assert following == named
        assert isinstance(collected.error, AuthenticationError)

    async def test_a_key_that_is_good_again_is_asked_again(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """A batch over tracks whose polls were refused for good has them polled again."""
        async with studio.session() as session:
            studio.polls_refused = 401
            await clock.run(collect(session.convert_all(tracks(1, 2))))
            studio.polls_refused = None
            collected = await clock.run(collect(session.convert_all(tracks(1, 2))))

        assert [1, 2] == studio.submitted
        assert [True, True] == [outcome.ok for outcome in collected.outcomes]

    async def test_a_catalog_that_keeps_one_waiting_is_let_go(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """A batch that is stopped does not wait for the track its catalog is looking for."""
        studio.replies[1].append(refused(402))
        catalog = Catalog(clock, tracks(1, 2), [0.0, 1_000.0])
        async with studio.session() as session:
            started = clock.monotonic()
            collected = await clock.run(collect(session.convert_all(catalog)))
            assert clock.monotonic() - started < 10.0

        assert [1] == numbers(collected.outcomes)
        assert isinstance(collected.error, InsufficientCreditsError)
        assert not catalog.is_read

    async def test_a_track_read_in_spite_of_a_stop_is_yielded(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """A catalog that gives a track though it was told to stop has it back as an outcome."""

        async def stubborn() -> AsyncIterator[Track]:
            yield track(1)
            try:
                await clock.sleep(1_000.0)
            except asyncio.CancelledError:
                yield track(2)
            yield track(3)

        studio.replies[1].append(refused(402))
        async with studio.session() as session:
            collected = await clock.run(collect(session.convert_all(stubborn())))

        assert [1, 2] == numbers(collected.outcomes)
        assert [1] == studio.submitted
        assert isinstance(collected.outcomes[1].error, InsufficientCreditsError)

    async def test_a_stop_takes_nothing_from_others(
        self, clock: FakeClock, studio: Studio, endless: Catalog
    ) -> None:
        """A track that another caller waits for too is still converted when the batch stops."""
        studio.replies[1].append(refused(402))
        async with studio.session(rate_limit=BY_THREES) as session:
            batch = asyncio.create_task(collect(session.convert_all(endless)))
            await asyncio.sleep(0)
            other = asyncio.create_task(session.convert(track(5)))
            collected = await clock.run(batch)
            wav = await clock.run(other)

        assert 5 in numbers(outcome for outcome in collected.outcomes if not outcome.ok)
        assert track(5) == wav.track
        assert [1, 2, 3, 5] == studio.submitted

    async def test_a_submit_held_after_the_stop_is_not_repeated(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """A submit that is on the wire when the batch stops, and creates nothing, is over."""
        studio.latency_s.update({1: 1.0, 2: 2.0})
        studio.replies[1].append(refused(402))
        studio.replies[2].append(refused(429))
        async with studio.session(rate_limit=BY_THREES) as session:
            collected = await clock.run(collect(session.convert_all(tracks(1, 2))))
            await clock.advance(100.0)

        assert [1, 2] == studio.submitted
        assert [1, 2] == numbers(collected.outcomes)
        assert isinstance(collected.outcomes[1].error, InsufficientCreditsError)
        assert track(2) == collected.outcomes[1].error.track


class TestBadCatalog:
    @pytest.mark.parametrize("is_async", [False, True])
    @pytest.mark.parametrize("after", [0, 1, 4])
    @pytest.mark.parametrize("wrong", [Boom(), "5c79/e1", None, ("5c79", "e1")])
    async def test_its_error_is_raised_after_the_outcomes(
        self, clock: FakeClock, studio: Studio, after: int, wrong: object, *, is_async: bool
    ) -> None:
        """What a catalog raises, or a `TypeError` for no track, comes last, and once."""

        def generate() -> Iterator[object]:
            yield from tracks(*range(1, after + 1))
            if isinstance(wrong, Exception):
                raise wrong
            yield wrong
            pytest.fail("read on")

        catalog = [*tracks(*range(1, after + 1)), wrong]
        source = Catalog(clock, catalog, [1.0] * 9) if is_async else generate()
        async with studio.session(max_in_flight=3) as session:
            batch = session.convert_all(source)
            collected = await clock.run(collect(batch))
            again = await clock.run(collect(batch))

        assert [*range(1, after + 1)] == sorted(numbers(collected.outcomes))
        assert all(outcome.ok for outcome in collected.outcomes)
        if isinstance(wrong, Exception):
            assert collected.error is wrong
        else:
            assert isinstance(collected.error, TypeError)
            assert "Track" in str(collected.error)
        assert ([], None) == (again.outcomes, again.error)

    async def test_its_error_waits_for_the_next_to_ask(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """An error that a catalog raises while nobody asks is raised to whoever asks next."""
        error = Boom()
        async with studio.session() as session:
            batch = session.convert_all(Catalog(clock, [track(1), error], [0.0, 5.0]))
            await clock.run(anext(batch))
            asking = asyncio.ensure_future(anext(batch))
            await clock.advance(1.0)
            await cancelled(asking)
            await clock.advance(10.0)
            collected = await clock.run(collect(batch))

        assert [] == collected.outcomes
        assert collected.error is error

    async def test_the_first_error_is_the_one_raised(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """A refusal that comes after the catalog's own error is told by its outcome alone."""
        error = Boom()
        studio.latency_s[1] = 1.0
        studio.replies[1].append(refused(402))
        async with studio.session() as session:
            collected = await clock.run(
                collect(session.convert_all(Catalog(clock, [track(1), error])))
            )

        assert isinstance(collected.outcomes[0].error, InsufficientCreditsError)
        assert collected.error is error

    async def test_a_cancellation_of_its_own_is_an_error(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """A catalog that is cancelled from within ends the batch with an error, not in silence."""

        async def generate() -> AsyncIterator[Track]:
            yield track(1)
            inner = asyncio.ensure_future(asyncio.sleep(0))
            inner.cancel()
            await inner
            yield track(2)

        async with studio.session() as session:
            collected = await clock.run(collect(session.convert_all(generate())))

        assert [1] == numbers(collected.outcomes)
        assert isinstance(collected.error, RuntimeError)
        assert isinstance(collected.error.__cause__, asyncio.CancelledError)


class TestClosedSession:
    async def test_all_that_was_read_is_yielded(
        self, clock: FakeClock, studio: Studio, endless: Catalog
    ) -> None:
        """A session closed half way yields all that was read, then raises, and reads no more."""
        studio.takes_s.update(dict.fromkeys(range(2, 99), 1_000.0))
        async with studio.session(rate_limit=BY_THREES) as session:
            batch = session.convert_all(endless)
            collecting = asyncio.ensure_future(collect(batch))
            await clock.advance(5.0)
        collected = await clock.run(collecting)
        given = endless.given
        again = await collect(batch)

        assert [*range(given)] == sorted(outcome.index for outcome in collected.outcomes)
        assert [1] == numbers(outcome for outcome in collected.outcomes if outcome.ok)
        ended = [outcome for outcome in collected.outcomes if not outcome.ok]
        assert all(isinstance(outcome.error, SessionClosedError) for outcome in ended)
        assert [o.track for o in ended] == [o.error.track for o in ended]
        assert isinstance(collected.error, SessionClosedError)
        assert ([], None) == (again.outcomes, again.error)
        assert [1, 2, 3] == studio.submitted
        assert given == endless.given

    async def test_a_batch_not_yet_begun_raises(self, studio: Studio, endless: Catalog) -> None:
        """A batch first iterated after its session was closed reads nothing and raises, once."""
        async with studio.session() as session:
            batch = session.convert_all(endless)
        collected = await collect(batch)
        again = await collect(batch)

        assert 0 == endless.given
        assert [] == collected.outcomes
        assert isinstance(collected.error, SessionClosedError)
        assert ([], None) == (again.outcomes, again.error)

    async def test_closing_in_the_moment_of_asking(self, studio: Studio, endless: Catalog) -> None:
        """A consumer that first asks in the moment the session closes is not left waiting."""
        async with studio.session() as session:
            batch = session.convert_all(endless)
            _, collected = await asyncio.gather(session.aclose(), collect(batch))

        assert isinstance(collected.error, SessionClosedError)
        assert endless.given == len(collected.outcomes)

    async def test_a_consumer_waiting_for_a_slow_catalog_is_told(
        self, clock: FakeClock, studio: Studio
    ) -> None:
        """Whoever waits for a track that the catalog looks for is told when the session closes."""
        catalog = Catalog(clock, tracks(1), [1_000.0])
        async with studio.session() as session:
            collecting = asyncio.ensure_future(collect(session.convert_all(catalog)))
            await clock.advance(5.0)
        collected = await collecting

        assert [] == collected.outcomes
        assert isinstance(collected.error, SessionClosedError)
        assert not catalog.is_read

    async def test_another_loop_is_refused(self, studio: Studio, endless: Catalog) -> None:
        """A batch is asked on its session's loop and on no other."""
        async with studio.session() as session:
            batch = session.convert_all(endless)

            def ask() -> None:
                asyncio.run(anext_of(batch))

            with pytest.raises(RuntimeError, match="another event loop"):
                await asyncio.to_thread(ask)


async def anext_of(batch: Batch) -> object:
    """Ask *batch* for an outcome."""
    return await anext(batch)
