"""Batches under schedules nobody thought of: exactly once, and never above the bound."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import attrs
from hypothesis import event, given
from hypothesis import strategies as st

from catalog import Catalog, Studio, track
from kie_wav_async import Batch, Outcome, RateLimit, Track
from kie_wav_async.errors import InsufficientCreditsError, SubmitUnknownError, TransportError
from kie_wav_async.testing import FakeClock, refused

if TYPE_CHECKING:
    from collections.abc import Callable

_ANSWERS = {
    "accepted": lambda: None,
    "refused": lambda: refused(422),
    "window": lambda: refused(429, retry_after="1"),
    "maintenance": lambda: refused(455),
    "unsent": lambda: TransportError("no route", maybe_sent=False),
    "lost": lambda: TransportError("reset"),
    "credits": lambda: refused(402),
}

_pauses = st.sampled_from([0.0, 0.0, 0.3, 1.1, 4.0])
# Most catalogs do not run out of credits.
_answers = st.sampled_from([*[name for name in _ANSWERS if name != "credits"] * 3, "credits"])

_fates = st.fixed_dictionaries(
    {
        "takes_s": st.sampled_from([0.0, 0.9, 2.5, 7.0]),
        "latency_s": _pauses,
        "answers": st.lists(_answers, max_size=2),
        "is_bad": st.booleans(),
    }
)

#: What a consumer does, for how long or how often.
_steps = st.one_of(
    st.tuples(st.just("loop"), st.integers(1, 5), _pauses),
    st.tuples(st.just("loop for"), st.floats(0.0, 8.0), _pauses),
    st.tuples(st.just("ask for"), st.floats(0.0, 5.0), st.none()),
    st.tuples(st.just("rest"), st.floats(0.1, 90.0), st.none()),
)

_ends = st.sampled_from(["over", "over", "boom", "no track"])


class Boom(Exception):  # noqa: N818 - it is no error of ours
    """What goes wrong on the user's side."""


class CountedCatalog(Catalog):
    """A catalog that tells whenever it has given a track."""

    on_given: Callable[[], None]

    async def __anext__(self) -> object:
        item = await super().__anext__()
        self.on_given()
        return item


@attrs.define
class Consumer:
    """Takes outcomes as a program says, and keeps what it saw."""

    clock: FakeClock
    batch: Batch
    outcomes: list[Outcome] = attrs.field(factory=list)
    errors: list[Exception] = attrs.field(factory=list)

    async def loop(self, count: int, pause_s: float) -> None:
        try:
            async for outcome in self.batch:
                self.outcomes.append(outcome)
                count -= 1
                if not count:
                    break
                await self.clock.sleep(pause_s)
        except (Boom, TypeError, InsufficientCreditsError) as error:
            self.errors.append(error)

    async def ask(self) -> None:
        try:
            self.outcomes.append(await anext(self.batch))
        except StopAsyncIteration:
            pass
        except (Boom, TypeError, InsufficientCreditsError) as error:
            self.errors.append(error)

    async def cut(self, task: asyncio.Task[None], after_s: float) -> None:
        await self.clock.sleep(after_s)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


@attrs.define(kw_only=True)
class Scenario:
    """One catalog, one service, one consumer, and what must hold of them."""

    numbers: list[int]
    delays_s: list[float]
    end: str
    fates: list[dict[str, object]]
    limits: tuple[int, int, float]
    program: list[tuple[str, float, float]]
    clock: FakeClock = attrs.field(factory=FakeClock)

    async def run(self) -> None:
        studio = self._studio()
        last = {"over": [], "boom": [Boom()], "no track": ["5c79/e1"]}[self.end]
        items = [*(track(number) for number in self.numbers), *last]
        catalog = CountedCatalog(self.clock, items, self.delays_s)
        max_in_flight, count, per_s = self.limits
        async with studio.session(
            rate_limit=RateLimit(count, per_s=per_s), max_in_flight=max_in_flight
        ) as session:
            consumer = Consumer(self.clock, session.convert_all(catalog))

            def verify_bound() -> None:
                unyielded = catalog.given - len(consumer.outcomes)
                # What is no track is given, and never yielded.
                assert unyielded <= max_in_flight + (self.end == "no track")
                assert len(session.conversions()) <= max_in_flight

            catalog.on_given = verify_bound
            await self.clock.run(self._consume(consumer, catalog, studio))
            assert () == session.conversions()
            assert 0 == session._core.registry.used_slots
            assert session.statistics().submitted == len(studio.submitted)
            unknowns = {unknown.track for unknown in session.unknown_submits()}
        read = [item for item in items[: catalog.given] if isinstance(item, Track)]
        self._judge_outcomes(consumer.outcomes, read, unknowns)
        self._judge_end(consumer, read)
        for number in {*self.numbers} - studio.bad:
            assert studio.accepted[number] <= 1
        await asyncio.sleep(0)
        assert {asyncio.current_task()} == asyncio.all_tasks()

    def _studio(self) -> Studio:
        studio = Studio(self.clock)
        for number, fate in enumerate(self.fates):
            studio.takes_s[number] = fate["takes_s"]
            studio.latency_s[number] = fate["latency_s"]
            replies = [_ANSWERS[answer]() for answer in fate["answers"]]
            studio.replies[number].extend(reply for reply in replies if reply is not None)
            if fate["is_bad"]:
                studio.bad.add(number)
        return studio

    async def _consume(self, consumer: Consumer, catalog: Catalog, studio: Studio) -> None:
        for step, amount, pause_s in self.program:
            if step == "loop":
                await consumer.loop(amount, pause_s)
            elif step == "loop for":
                task = asyncio.create_task(consumer.loop(-1, pause_s))
                await consumer.cut(task, amount)
            elif step == "ask for":
                await consumer.cut(asyncio.create_task(consumer.ask()), amount)
            else:
                # One track may have been asked for before.
                given = catalog.given + catalog.is_read
                submitted = len(studio.submitted)
                await self.clock.sleep(amount)
                assert catalog.given <= given
                assert len(studio.submitted) == submitted
        await consumer.loop(-1, 0.0)
        await consumer.loop(-1, 0.0)

    def _judge_outcomes(
        self, outcomes: list[Outcome], read: list[Track], unknowns: set[Track]
    ) -> None:
        assert [*range(len(read))] == sorted(outcome.index for outcome in outcomes)
        for outcome in outcomes:
            assert read[outcome.index] == outcome.track
            told = outcome.wav if outcome.error is None else outcome.error
            assert told.track == outcome.track
            if isinstance(outcome.error, SubmitUnknownError):
                assert outcome.track in unknowns

    def _judge_end(self, consumer: Consumer, read: list[Track]) -> None:
        if any(isinstance(o.error, InsufficientCreditsError) for o in consumer.outcomes):
            event("stopped")
            assert len(consumer.errors) == 1
            return
        assert len(read) == len(self.numbers)
        expected = {"over": [], "boom": [Boom], "no track": [TypeError]}[self.end]
        assert expected == [type(error) for error in consumer.errors]


@given(
    scenario=st.builds(
        Scenario,
        numbers=st.lists(st.integers(0, 5), max_size=14),
        delays_s=st.lists(_pauses, max_size=15),
        end=_ends,
        fates=st.lists(_fates, min_size=6, max_size=6),
        limits=st.tuples(st.integers(1, 5), st.integers(1, 4), st.sampled_from([0.1, 2.0, 10.0])),
        program=st.lists(_steps, max_size=5),
        clock=st.builds(FakeClock),
    )
)
def test_each_track_is_yielded_once_whatever_happens(scenario: Scenario) -> None:
    """Whatever catalog, service and consumer do, each track is yielded once, within the bound."""
    asyncio.run(scenario.run())
