"""A process that dies at any moment: the next one knows the bill, and pays nothing twice."""

from __future__ import annotations

import asyncio
import collections
import contextlib

import attrs
import pytest

from fakes import (
    ACCEPTED,
    LOST_CHARGED,
    LOST_FREE,
    FakeService,
    Fate,
    refusal,
    track,
)
from kie_wav_async import OnUnknown, RateLimit, WavSession
from kie_wav_async.errors import AlreadyExistsError, KieWavError, SubmitUnknownError
from ledger_steps import Process, StepLedger, SteppedClock, is_in_bill

TRACKS = [track(n) for n in (1, 2, 3)]

FATES = {
    "accepted": [ACCEPTED],
    "lost": [LOST_CHARGED, LOST_FREE, ACCEPTED],
    "refused": [refusal(422), refusal(402), ACCEPTED],
    "429": [refusal(429), ACCEPTED, refusal(429)],
    "409 with id": [LOST_CHARGED, ACCEPTED, LOST_CHARGED, ACCEPTED],
    "mixed": [refusal(429), LOST_CHARGED, refusal(409), ACCEPTED],
    "409 without": [refusal(409), LOST_CHARGED, refusal(409)],
}


async def by_submit(session: WavSession) -> None:
    """Submit the tracks one by one, and wait for none."""
    for each in TRACKS:
        with contextlib.suppress(KieWavError):
            await session.submit(each)


async def by_insisting(session: WavSession) -> None:
    """Submit the tracks, and again where that was lost."""
    for each in TRACKS:
        for again in (False, True):
            with contextlib.suppress(KieWavError):
                await session.submit(each, again=again)
                break


async def by_convert(session: WavSession) -> None:
    """Convert the tracks at once."""
    waits = [asyncio.ensure_future(session.convert(each)) for each in TRACKS]
    await asyncio.gather(*waits, return_exceptions=True)


async def by_batch(session: WavSession) -> dict[str, object]:
    """Convert the tracks as a catalog; return what came of them."""
    outcomes = {}
    async with session.convert_all(TRACKS) as batch:
        with contextlib.suppress(KieWavError):
            async for outcome in batch:
                outcomes[outcome.track.audio_id] = outcome
    return outcomes


@attrs.frozen
class World:
    """What the service does, and what its user wants."""

    fates: list[Fate]
    knows_repeats: bool
    on_unknown: OnUnknown
    way: object

    async def live(self, last: int | None) -> bool:
        """Die after *last* changes anybody else could see; return whether it came to that."""
        clock = SteppedClock()
        service = FakeService(
            clock, latency_s=1.0, conversion_s=16.0, knows_repeats=self.knows_repeats
        )
        service.fates.extend(self.fates)
        settings = {"on_unknown": self.on_unknown, "rate_limit": RateLimit(2, per_s=10.0)}
        first = Process(service, StepLedger(), **settings)
        async with first.session as session:
            living = asyncio.ensure_future(self.way(session))
            changes, seen = 0, None
            async for _ in clock.moments(living):
                now = (len(first.ledger.calls), len(service.transport.requests), service.charged)
                changes += now != seen
                seen = now
                assert is_in_bill(service, first.ledger)
                counted = session.statistics()
                assert counted.accepted <= service.charged
                on_wire = session._core.registry.sending
                assert service.charged <= counted.accepted + counted.unknown + on_wire
                if changes == last:
                    break
            is_over = living.done()
            left = first.die()
            living.cancel()
            await self.go_on(service, clock, left, settings)
            await asyncio.wait([living])
        return not is_over

    async def go_on(self, service, clock, left, settings) -> None:
        """Convert the tracks with what is left, and hold it against the service."""
        service.fates.clear()
        process = Process(service, left, **settings)
        async with process.session as session:
            recovered = await session.recover()
            converting = asyncio.ensure_future(by_batch(session))
            async for _ in clock.moments(converting):
                assert is_in_bill(service, left)
            outcomes = converting.result()
            for conversion in recovered:
                await clock.run(conversion.wait())
            assert {each.audio_id for each in TRACKS} == set(outcomes)
            assert is_in_bill(service, left)
        charges = collections.Counter(task.track for task in service.tasks.values())
        is_safe = self.on_unknown is OnUnknown.RAISE and self.way is not by_insisting
        if self.knows_repeats or is_safe:
            assert set(charges.values()) <= {1}
        unknowns = {unknown.track for unknown in session.unknown_submits()}
        for outcome in outcomes.values():
            if self.on_unknown is OnUnknown.RESUBMIT:
                assert outcome.ok or isinstance(outcome.error, AlreadyExistsError)
                assert charges[outcome.track] >= outcome.ok
            elif not outcome.ok and not isinstance(outcome.error, AlreadyExistsError):
                assert isinstance(outcome.error, SubmitUnknownError)
                assert outcome.track in unknowns


async def die_everywhere(way, fates, *, knows_repeats, on_unknown) -> None:
    """Die at each moment of a world in turn."""
    world = World(FATES[fates], knows_repeats, on_unknown, way)
    last = 1
    while await world.live(last):
        last += 1
    assert last > 5


@pytest.mark.parametrize(
    ("way", "fates", "knows_repeats", "on_unknown"),
    [
        (by_insisting, "409 with id", False, OnUnknown.RAISE),
        (by_convert, "429", False, OnUnknown.RESUBMIT),
        (by_batch, "mixed", False, OnUnknown.RAISE),
        (by_batch, "mixed", True, OnUnknown.RESUBMIT),
    ],
)
async def test_death_at_any_moment(way, fates, knows_repeats, on_unknown) -> None:
    """Wherever a process is cut off, the bill is bounded, and the next one pays nothing twice."""
    await die_everywhere(way, fates, knows_repeats=knows_repeats, on_unknown=on_unknown)


@pytest.mark.campaign
@pytest.mark.parametrize("on_unknown", OnUnknown)
@pytest.mark.parametrize("knows_repeats", [True, False], ids=["knows", "forgets"])
@pytest.mark.parametrize("fates", FATES)
@pytest.mark.parametrize("way", [by_submit, by_insisting, by_convert, by_batch])
async def test_death_at_any_moment_of_any_run(way, fates, knows_repeats, on_unknown) -> None:
    """Whatever the service does, and however it is asked, the same holds."""
    await die_everywhere(way, fates, knows_repeats=knows_repeats, on_unknown=on_unknown)
