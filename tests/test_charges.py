"""What submits may cost: every answer under every policy, cancelled at every step."""

from __future__ import annotations

import asyncio
import itertools

import attrs
import pytest

from fakes import (
    ACCEPTED,
    LOST_CHARGED,
    LOST_FREE,
    UNSENT,
    FakeService,
    Fate,
    is_bounded,
    lost,
    raw,
    refusal,
    track,
)
from kie_wav_async import (
    OnUnknown,
    RetryPolicy,
    Statistics,
    WireResponse,
)
from kie_wav_async.errors import (
    AlreadyExistsError,
    AuthenticationError,
    FeatureDisabledError,
    InsufficientCreditsError,
    InvalidRequestError,
    MaintenanceError,
    NotFoundError,
    RateLimitedError,
    ServiceError,
    SourceUnavailableError,
    SubmitUnknownError,
    TransportError,
    TransportTimeoutError,
    WireFormatError,
)
from kie_wav_async.testing import FakeClock, answer, refused


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


# --- every answer, under every policy -----------------------------------------------------


@attrs.frozen
class Row:
    """
    What a submit that meets *fates* comes to.

    Attributes:
        outcome: The error, `None` for a file, or SubmitUnknownError.

        submitted: Submits sent under RAISE.
    """

    name: str
    fates: list[Fate]
    outcome: type[Exception] | None
    submitted: int = 1
    accepted: int = 0
    adopted: int = 0
    rejected: int = 0


def unclear(name: str, reply, *, is_charged: bool) -> Row:
    """Return the row of an answer that tells nothing."""
    fate = Fate(name, is_charged=is_charged, reply=reply)
    name += ", charged" if is_charged else ", free"
    return Row(name, [fate], SubmitUnknownError)


def answered(response: WireResponse) -> Fate:
    """Return the fate of a submit that creates nothing and gets this answer."""
    return Fate("", is_charged=False, reply=lambda _: response)


def refusing(code: int, outcome: type[Exception], **fields: object) -> Row:
    """Return the row of an answer that says no."""
    return Row(f"code {code}", [refusal(code, **fields)], outcome)


UNCLEAR = {
    "reset": lambda _: lost(),
    "timeout": lambda _: TransportTimeoutError("slow"),
    "answer too long": lambda _: WireFormatError("longer than 1 MiB"),
    "bug of the transport": lambda _: KeyError("oops"),
    "200 without id": lambda _: answer({"code": 200, "msg": "success", "data": {}}),
    "200 with null": lambda _: answer({"code": 200, "msg": "success", "data": None}),
    "200 with two ids": lambda _: answer(
        {"code": 200, "data": {"taskId": "task0001", "task_id": "task0002"}}
    ),
    "200 with an id that is none": lambda _: answer({"code": 200, "data": {"taskId": "a\nb"}}),
    "cut off": lambda _: raw(b'{"code":200,"msg":"success","data":{"task'),
    "empty": lambda _: raw(b""),
    "html": lambda _: raw(b"<html></html>"),
    "status 500": lambda _: raw(b"", 500),
    "status 502 html": lambda _: raw(b"<html></html>", 502),
    "status 504": lambda _: raw(b"", 504),
    "code 500": lambda _: refused(500),
    "code 501": lambda _: refused(501),
    "code 408": lambda _: refused(408),
    "status 408": lambda _: raw(b"", 408),
    "code 302 in a body": lambda _: refused(302),
    "code 0": lambda _: refused(0),
}

OLD = Fate("409", is_charged=False, reply=lambda _: refused(409, data={"taskId": "old"}))

ROWS = [
    Row("accepted", [ACCEPTED], None, accepted=1),
    *(unclear(name, reply, is_charged=True) for name, reply in UNCLEAR.items()),
    *(unclear(name, reply, is_charged=False) for name, reply in UNCLEAR.items()),
    Row("unsent once", [UNSENT], None, submitted=2, accepted=1),
    Row("unsent", [UNSENT] * 3, TransportError, submitted=3),
    Row("status 307", [answered(raw(b"", 307))], TransportError),
    Row("status 302", [answered(raw(b"", 302))], TransportError),
    Row("429 once", [refusal(429)], None, submitted=2, accepted=1, rejected=1),
    Row("429", [refusal(429)] * 3, RateLimitedError, submitted=3, rejected=3),
    Row("455 once", [refusal(455)], None, submitted=2, accepted=1),
    Row("455", [refusal(455)] * 3, MaintenanceError, submitted=3),
    Row("409 with id", [OLD], None, adopted=1),
    refusing(409, AlreadyExistsError),
    refusing(400, InvalidRequestError),
    refusing(401, AuthenticationError),
    refusing(402, InsufficientCreditsError),
    refusing(404, NotFoundError),
    refusing(413, ServiceError),
    refusing(422, InvalidRequestError),
    refusing(433, InsufficientCreditsError),
    refusing(451, SourceUnavailableError),
    refusing(505, FeatureDisabledError),
    Row(
        "status 403", [Fate("", is_charged=False, reply=lambda _: raw(b"1010", 403))], ServiceError
    ),
]

# Under RESUBMIT, an unclear answer is followed by a repeat. What the books say
# then depends on whether the first was charged and the service knows repeats.
REPEATED = {
    # (charged, knows repeats): outcome, charged, and the books.
    (True, True): (1, Statistics(submitted=2, accepted=1, adopted=1)),
    (True, False): (2, Statistics(submitted=2, accepted=1, unknown=1, possible_double_charges=1)),
    (False, True): (1, Statistics(submitted=2, accepted=1, unknown=1, possible_double_charges=1)),
    (False, False): (1, Statistics(submitted=2, accepted=1, unknown=1, possible_double_charges=1)),
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_every_answer(row) -> None:
    """Every answer to a submit ends as written in the table, and the bill is bounded."""
    for on_unknown, knows_repeats in itertools.product(OnUnknown, [True, False]):
        await meet(row, on_unknown, knows_repeats=knows_repeats)


async def meet(row: Row, on_unknown: OnUnknown, *, knows_repeats: bool) -> None:
    """Convert a track under one policy, and hold the end against the table."""
    clock = FakeClock()
    service = FakeService(clock, conversion_s=0.0)
    service.create("old", track(1 if OLD in row.fates else 99))
    service.knows_repeats = knows_repeats and OLD not in row.fates
    service.fates += row.fates
    async with service.session(on_unknown=on_unknown) as session:
        asker = asyncio.create_task(session.convert(track()))
        await clock.advance(150.0)
        counted = attrs.evolve(session.statistics(), polls=0, settled_by_poll=0)
        if row.outcome is not SubmitUnknownError:
            charged, outcome = row.accepted, row.outcome
            expected = Statistics(
                submitted=row.submitted,
                accepted=row.accepted,
                adopted=row.adopted,
                rejected_429=row.rejected,
            )
        elif on_unknown is OnUnknown.RAISE:
            charged, outcome = int(row.fates[0].is_charged), SubmitUnknownError
            expected = Statistics(submitted=1, unknown=1)
        else:
            charged, expected = REPEATED[row.fates[0].is_charged, knows_repeats]
            outcome = None
        assert expected == counted
        assert charged == service.charged
        assert is_bounded(service, session)
        if outcome is None:
            assert track() == asker.result().track
        else:
            error = asker.exception()
            assert outcome is type(error)
            assert track() == error.track


# --- cancelled and closed at every step ---------------------------------------------------


CANCELLED = {
    "accepted": [ACCEPTED],
    "answer lost": [LOST_CHARGED],
    "request lost": [LOST_FREE],
    "exists": [Fate("409", is_charged=False, reply=lambda _: refused(409, data={"taskId": "old"}))],
    "unsent, then accepted": [UNSENT, ACCEPTED],
    "refused": [refusal(422)],
}


class SteppedService(FakeService):
    """Takes turns of the loop instead of time."""

    async def _pause(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)

    async def _submit(self, request):
        self.on_wire += 1
        try:
            await self._pause()
            reply = self._take(request)
            await self._pause()
            return reply
        finally:
            self.on_wire -= 1

    async def _read(self, request):
        self.on_wire += 1
        try:
            await self._pause()
            return await super()._read(request)
        finally:
            self.on_wire -= 1

    async def quieten(self) -> None:
        """Wait until nothing has been on the wire for a while."""
        quiet = 0
        while quiet < 10:
            await asyncio.sleep(0)
            quiet = 0 if self.on_wire else quiet + 1

    def unaccounted(self, session) -> set[str]:
        """Name the tasks charged that are in none of the session's books."""
        known = {conversion.task_id for conversion in session.conversions()}
        unknowns = {unknown.attempt_id for unknown in session.unknown_submits()}
        charged = [task for task in self.tasks.values() if task.task_id != "old"]
        return {
            t.task_id for t in charged if t.task_id not in known and t.attempt_id not in unknowns
        }


@pytest.mark.parametrize("name", ["submit", "convert", "aclose"])
@pytest.mark.parametrize("fates", CANCELLED.values(), ids=CANCELLED)
async def test_no_charge_is_forgotten_at_any_step(clock, fates, name) -> None:
    """Cancelled, or closed, at any step of the loop, what was charged is in the books."""
    reached = set()
    for step in range(50):
        service = SteppedService(clock)
        service.create("old", track())
        service.knows_repeats = False
        service.fates += fates
        async with service.session(retry=RetryPolicy(base_s=0.0)) as session:
            asker = asyncio.create_task(
                session.submit(track()) if name == "submit" else session.convert(track())
            )
            for _ in range(step):
                await asyncio.sleep(0)
                if session._core.queue.delayed:
                    await clock.advance(0.0)
            if name == "aclose":
                await session.aclose()
            else:
                asker.cancel()
            await service.quieten()
            await asyncio.wait([asker])
            reached.add((service.charged, len(session.unknown_submits())))
            assert set() == service.unaccounted(session)
            assert is_bounded(service, session)
            if not asker.cancelled():
                asker.exception()
    assert name == "aclose" or 1 < len(reached) or not any(fate.is_charged for fate in fates)
