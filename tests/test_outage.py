"""An outage: after 5 unknown submits in a row new ones pause, and single probes end that."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

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
from kie_wav_async import OnUnknown, RateLimit, events
from kie_wav_async.errors import (
    AuthenticationError,
    ChargeLimitError,
    InsufficientCreditsError,
    SessionClosedError,
    SubmitUnknownError,
)
from kie_wav_async.protocol.api_constants import KIE_WAV
from kie_wav_async.testing import FakeClock, MemoryLedger, answer, refused

if TYPE_CHECKING:
    from kie_wav_async import WavSession

HTML = b"<html>Bad gateway</html>"

BAD_GATEWAY = Fate("502", is_charged=False, reply=lambda _: raw(HTML, 502))
HTML_OK = Fate("HTML with 200", is_charged=True, reply=lambda _: raw(HTML))
NO_ID = Fate("200 without an id", is_charged=True, reply=lambda _: answer(None))
TIMED_OUT = Fate("code 408", is_charged=True, reply=lambda _: refused(408))
WAF = Fate("403 of a proxy", is_charged=False, reply=lambda _: raw(HTML, 403))

#: Nothing that comes back tells what became of the submit.
OUTAGES = {
    "502": [BAD_GATEWAY],
    "reset": [LOST_CHARGED],
    "HTML": [HTML_OK],
    "no id": [NO_ID],
    "408": [TIMED_OUT],
    "a mixture": [BAD_GATEWAY, LOST_FREE, HTML_OK, NO_ID, TIMED_OUT, refusal(500), refusal(524)],
}


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock) -> FakeService:
    """Return a service that means well until it is told otherwise."""
    return FakeService(clock)


def reads(service: FakeService) -> list[float]:
    """Return when the account's credits were asked for."""
    asked = [
        r.url.endswith(KIE_WAV.credits_path) for r in service.transport.requests if not r.is_submit
    ]
    times = service.polled_at_moments
    return [at for at, is_credits in zip(times, asked, strict=True) if is_credits]


async def collect(session: WavSession, tracks: int) -> list[object]:
    """Convert a catalog; return the errors of the outcomes, `None` for a file."""
    async with session.convert_all(track(n) for n in range(tracks)) as batch:
        return [outcome.error async for outcome in batch]


# --- how many are unknown ---------------------------------------------------------------------


@pytest.mark.parametrize("fates", OUTAGES.values(), ids=OUTAGES)
async def test_an_outage_makes_few_decisions(clock, service, fates) -> None:
    """Of 200 tracks in an outage of an hour, one window and the probes are unknown."""
    service.fates.extend(fates * 40)
    async with service.session() as session:
        batch = asyncio.create_task(collect(session, 200))
        began = clock.monotonic()
        await clock.advance(3600.0)
        sent = [at - began for at in service.submitted_at]
        assert [0.0] * 20 + [60.0, 180.0, 420.0, 900.0, 1800.0, 2700.0, 3600.0] == sent
        assert sent[20:] == [at - began for at in reads(service)]
        assert 27 == len(session.unknown_submits())
        assert is_bounded(service, session)
        service.fates.clear()
        errors = await clock.run(batch)
        assert {type(None): 173, SubmitUnknownError: 27} == {
            kind: sum(type(error) is kind for error in errors)
            for kind in (type(None), SubmitUnknownError)
        }


@pytest.mark.parametrize("latency_s", [0.0, 0.3, 7.0, 60.0])
async def test_at_most_a_window_and_four_are_unknown(clock, latency_s) -> None:
    """Before the pause at most a window and 4 more submits become unknown, however slowly."""
    service = FakeService(clock, latency_s=latency_s)
    service.fates += [LOST_FREE] * 4
    async with service.session(rate_limit=RateLimit(20, per_s=10.0)) as session:
        first = [asyncio.create_task(session.submit(track(n))) for n in range(900, 904)]
        await clock.advance(latency_s + 11.0)
        service.fates += [LOST_FREE] * 400
        batch = asyncio.create_task(collect(session, 200))
        await clock.advance(2 * latency_s + 30.0)
        assert 20 <= len(session.unknown_submits()) <= 24
        assert 4 == sum(isinstance(one.exception(), SubmitUnknownError) for one in first)
        batch.cancel()


async def test_a_known_outcome_between_them_is_no_row(clock, service) -> None:
    """Unknown outcomes with an answer between any five of them pause nothing."""
    service.fates += ([LOST_FREE] * 4 + [ACCEPTED]) * 10
    async with service.session(rate_limit=RateLimit(1, per_s=1.0)) as session:
        batch = asyncio.create_task(collect(session, 50))
        await clock.advance(49.0)
        assert 50 == len(service.submitted_at)
        assert [] == reads(service)
        await clock.run(batch)


@pytest.mark.parametrize("fate", [UNSENT, WAF, refusal(505)], ids=["unsent", "html 403", "505"])
async def test_what_is_no_answer_interrupts_no_row(clock, service, fate) -> None:
    """A submit that never left, or that only a proxy answered, does not end a row."""
    service.fates += [LOST_FREE] * 4 + [fate] + [LOST_FREE]
    settings = {"rate_limit": RateLimit(1, per_s=1.0)}
    async with service.session(**settings) as session:
        session._context.random = lambda: 0.0
        waits = [asyncio.create_task(session.submit(track(n))) for n in range(9)]
        await clock.advance(60.0)
        assert 6 == len(service.submitted_at)
        for wait in waits:
            wait.cancel()


# --- while paused -----------------------------------------------------------------------------


async def test_one_submit_is_open_at_a_time(clock) -> None:
    """While paused no submit goes out while another is open, nor before a read is answered."""
    service = FakeService(clock, latency_s=40.0)
    service.fates += [LOST_FREE] * 30
    open_at_once: list[int] = []
    take = service._take

    def watch(request):
        open_at_once.append(service.on_wire)
        return take(request)

    service._take = watch
    async with service.session(rate_limit=RateLimit(5, per_s=1.0)) as session:
        batch = asyncio.create_task(collect(session, 30))
        await clock.advance(5000.0)
        assert 1 == max(open_at_once[5:])
        assert 12 == len(open_at_once)
        batch.cancel()


@pytest.mark.parametrize(
    "reply",
    [
        lambda _: lost(),
        lambda _: raw(HTML),
        lambda _: raw(HTML, 403),
        lambda _: refused(408),
        lambda _: refused(500),
        lambda _: raw(b'{"status":503,"error":"Service Unavailable"}', 503),
    ],
    ids=["reset", "html", "html 403", "408", "500", "503 without a code"],
)
async def test_no_probe_without_an_answered_read(clock, service, reply) -> None:
    """As long as the free read is not answered nothing is sent, and it is repeated each minute."""
    service.fates += [LOST_FREE] * 20
    service.poll_replies.extend([reply] * 100)
    async with service.session() as session:
        batch = asyncio.create_task(collect(session, 50))
        began = clock.monotonic()
        await clock.advance(3600.0)
        assert 20 == len(service.submitted_at)
        assert [60.0 * n for n in range(1, 61)] == [at - began for at in reads(service)]
        service.poll_replies.clear()
        await clock.advance(60.0)
        assert 40 == len(service.submitted_at)
        batch.cancel()


@pytest.mark.parametrize("code", [200, 401, 402, 404, 422, 429, 455])
async def test_any_code_of_the_service_answers_the_read(clock, service, code) -> None:
    """A read that is refused is answered: the probe tells the rest."""
    service.fates += [LOST_FREE] * 5
    service.poll_replies.append(lambda _: refused(code))
    async with service.session(rate_limit=RateLimit(5, per_s=1.0)) as session:
        batch = asyncio.create_task(collect(session, 6))
        await clock.advance(60.0)
        assert 6 == len(service.submitted_at)
        await clock.run(batch)


async def test_a_missing_route_answers_the_read(clock, service) -> None:
    """A service without that route answers too, so that the pause can end."""
    service.fates += [LOST_FREE] * 5
    service.poll_replies.append(lambda _: raw(b'{"status":404,"error":"Not Found"}', 404))
    async with service.session(rate_limit=RateLimit(5, per_s=1.0)) as session:
        batch = asyncio.create_task(collect(session, 6))
        await clock.advance(60.0)
        assert 6 == len(service.submitted_at)
        await clock.run(batch)


# --- what ends it -----------------------------------------------------------------------------


async def paused(clock, service, session, tracks: int = 30) -> asyncio.Task[list[object]]:
    """Have 5 submits lost, and the rest of a batch wait."""
    service.fates.extendleft([LOST_FREE] * 5)
    batch = asyncio.create_task(collect(session, tracks))
    await clock.advance(30.0)
    assert 5 == len(service.submitted_at)
    return batch


FIVE = RateLimit(5, per_s=1.0)


@pytest.mark.parametrize("code", [200, 400, 409, 422, 429, 451])
async def test_a_code_ends_the_pause(clock, service, code) -> None:
    """A probe that gets a body with a code other than 408 and 5xx lets all go."""
    service.fates.append(ACCEPTED if code == 200 else refusal(code))
    async with service.session(rate_limit=FIVE) as session:
        batch = await paused(clock, service, session)
        await clock.advance(30.0 + 7.0)
        assert 30 <= len(service.submitted_at)
        assert 1 == len(reads(service))
        await clock.run(batch)


@pytest.mark.parametrize(
    ("code", "kind"), [(401, AuthenticationError), (402, InsufficientCreditsError)]
)
async def test_a_refused_account_ends_the_batch(clock, service, code, kind) -> None:
    """A probe that is answered 401 or 402 ends the batch as always."""
    service.fates.append(refusal(code))
    async with service.session(rate_limit=FIVE) as session:
        batch = await paused(clock, service, session)
        with pytest.raises(kind):
            await clock.run(batch)


@pytest.mark.parametrize(
    "fate",
    [WAF, UNSENT, NO_ID, HTML_OK, refusal(505), refusal(500)],
    ids=lambda fate: fate.name,
)
async def test_anything_else_does_not(clock, service, fate) -> None:
    """A probe without such a body is followed by the next one after twice the pause."""
    service.fates.append(fate)
    async with service.session(rate_limit=FIVE) as session:
        session._context.random = lambda: 0.0
        batch = await paused(clock, service, session)
        await clock.advance(149.0)
        assert 6 == len(service.submitted_at)
        await clock.advance(10.0)
        assert 30 <= len(service.submitted_at)
        await clock.run(batch)


async def test_an_answer_to_an_earlier_submit_ends_the_pause(clock, service) -> None:
    """The answer to a submit that was open when the pause began ends it too."""
    service.fates += [*[LOST_FREE] * 5, ACCEPTED]
    submit = service._submit

    async def slowly(request):
        if len(service.submitted_at) == 5:
            await clock.sleep(50.0)
        return await submit(request)

    service._submit = slowly
    async with service.session(rate_limit=RateLimit(6, per_s=1.0)) as session:
        batch = asyncio.create_task(collect(session, 12))
        await clock.advance(49.0)
        assert 5 == len(service.submitted_at)
        await clock.advance(3.0)
        assert 12 == len(service.submitted_at)
        assert [] == reads(service)
        await clock.run(batch)


async def test_the_probe_waits_for_what_is_open(clock, service) -> None:
    """A submit that is still open when a probe is due holds it back, and the read before it."""
    service.fates += [*[LOST_FREE] * 5, Fate("silent", is_charged=True, reply=None)]
    async with service.session(rate_limit=RateLimit(6, per_s=1.0)) as session:
        batch = asyncio.create_task(collect(session, 12))
        await clock.advance(600.0)
        assert 6 == len(service.submitted_at)
        assert [] == reads(service)
        batch.cancel()


# --- with maintenance -------------------------------------------------------------------------


async def test_maintenance_takes_over(clock, service) -> None:
    """A probe that meets maintenance ends the outage, and is followed by one a minute."""
    service.fates += [refusal(455)] * 3
    async with service.session(rate_limit=FIVE) as session:
        batch = await paused(clock, service, session)
        began = clock.monotonic() - 30.0
        await clock.advance(30.0 + 200.0)
        sent = [at - began for at in service.submitted_at[5:9]]
        assert [60.0, 120.0, 180.0, 240.0] == sent
        assert 1 == len(reads(service))
        await clock.run(batch)


async def test_an_outage_takes_over_from_maintenance(clock, service) -> None:
    """Five lost probes of a maintenance are an outage: the next one follows a read."""
    service.fates += [refusal(455)] * 2 + [LOST_FREE] * 5
    async with service.session(rate_limit=RateLimit(1, per_s=1.0)) as session:
        batch = asyncio.create_task(collect(session, 30))
        await clock.advance(365.0)
        assert 7 == len(service.submitted_at)
        assert [] == reads(service)
        await clock.advance(60.0)
        assert 1 == len(reads(service))
        assert 8 <= len(service.submitted_at)
        await clock.run(batch)


# --- repeats, charges, waiters, closing -------------------------------------------------------


async def test_repeats_wait_and_count(clock, service) -> None:
    """With RESUBMIT a repeat in an outage is a probe like any other: no track is sent thrice."""
    service.fates += [LOST_FREE] * 200
    async with service.session(on_unknown=OnUnknown.RESUBMIT, rate_limit=FIVE) as session:
        batch = asyncio.create_task(collect(session, 100))
        began = clock.monotonic()
        await clock.advance(3600.0)
        sent = [at - began for at in service.submitted_at]
        assert [0.0] * 5 + [60.0, 180.0, 420.0, 900.0, 1800.0, 2700.0, 3600.0] == sent
        assert is_bounded(service, session)
        service.fates.clear()
        errors = await clock.run(batch)
        assert 100 == len(errors)


async def test_charges_stay_within_their_limit(clock, service) -> None:
    """Unknown submits count as charges: probes stop at the limit."""
    service.fates += [LOST_CHARGED] * 100
    async with service.session(max_charges=7, rate_limit=FIVE) as session:
        batch = asyncio.create_task(collect(session, 50))
        with pytest.raises(ChargeLimitError):
            await clock.run(batch)
        assert 7 == service.charged


async def test_nobody_waits_nothing_is_read(clock, service) -> None:
    """With nothing to send nothing is asked; the next submit asks at once, and goes alone."""
    service.fates += [LOST_FREE] * 5
    async with service.session() as session:
        waits = [asyncio.create_task(session.submit(track(n))) for n in range(5)]
        waits += [asyncio.create_task(session.submit(track(9)))]
        await clock.advance(1.0)
        waits[-1].cancel()
        await clock.advance(3600.0)
        assert ([], 6) == (reads(service), len(service.submitted_at))
        for wait in waits[:5]:
            assert isinstance(wait.exception(), SubmitUnknownError)


async def test_a_waiter_may_leave_while_paused(clock, service) -> None:
    """A submit that waits for the end of a pause is withdrawn with its waiter."""
    async with service.session(rate_limit=FIVE) as session:
        service.fates += [LOST_FREE] * 5
        lost_ones = [asyncio.create_task(session.submit(track(n))) for n in range(5)]
        await clock.advance(5.0)
        wait = asyncio.create_task(session.submit(track(7)))
        await clock.advance(5.0)
        wait.cancel()
        await clock.advance(600.0)
        assert ([], 5) == (reads(service), len(service.submitted_at))
        assert await clock.run(session.submit(track(8)))
        assert (1, 6) == (len(reads(service)), len(service.submitted_at))
        assert all(one.exception() for one in lost_ones)


async def test_closing_ends_the_pause(clock, service) -> None:
    """A session that is paused closes at once, also during the read."""
    for after_s in (30.0, 60.5):
        service = FakeService(clock, latency_s=1.0)
        session = service.session(rate_limit=FIVE)
        async with session:
            batch = await paused(clock, service, session)
            await clock.advance(after_s - 30.0 + 1.0)
            began = clock.monotonic()
            await clock.run(session.aclose())
            assert began == clock.monotonic()
            with pytest.raises(SessionClosedError):
                await batch


async def test_a_batch_may_be_left_while_paused(clock, service) -> None:
    """Leaving a batch withdraws what waits; nothing more is sent."""
    async with service.session(rate_limit=FIVE) as session:
        service.fates += [LOST_FREE] * 5
        async with session.convert_all(track(n) for n in range(30)) as batch:
            for _ in range(5):
                outcome = await clock.run(anext(batch))
                assert isinstance(outcome.error, SubmitUnknownError)
        await clock.advance(600.0)
        assert 5 == len(service.submitted_at)


async def test_two_sessions_pause_apart(clock, service) -> None:
    """A pause is the session's: another one finds out for itself."""
    async with service.session(rate_limit=FIVE) as one, service.session() as other:
        batch = await paused(clock, service, one)
        await clock.run(other.submit(track(99)))
        batch.cancel()


# --- an earlier run ---------------------------------------------------------------------------


async def lose_five(clock, service, ledger, *, then: Fate | None = None) -> None:
    """Have a run end with 5 lost submits, and perhaps another after them."""
    service.fates += [LOST_FREE] * 5 + ([] if then is None else [then])
    async with service.session(ledger=ledger, rate_limit=RateLimit(1, per_s=1.0)) as session:
        for n in range(5 if then is None else 6):
            with contextlib.suppress(SubmitUnknownError):
                await clock.run(session.submit(track(n)))


async def test_a_restart_begins_with_one(clock, service, caplog) -> None:
    """If the ledger's last 5 submits are unknown, one goes first, alone, after a read."""
    ledger = MemoryLedger()
    await lose_five(clock, service, ledger)
    service.latency_s = 1.0
    await clock.advance(60.0)
    caplog.set_level(logging.INFO, "kie_wav_async")
    seen: list[events.Event] = []
    async with service.session(ledger=ledger, on_event=seen.append) as session:
        began = clock.monotonic()
        batch = asyncio.create_task(collect(session, 30))
        await clock.advance(2.5)
        assert "the last 5 submits in the ledger have an unknown outcome" in caplog.text
        assert not [event for event in seen if isinstance(event, events.SubmitRetryScheduled)]
        assert [0.0] == [at - began for at in reads(service)]
        assert 1.0 == service.submitted_at[5] - began
        await clock.run(batch)


async def test_restarts_in_an_outage_send_one_each(clock, service) -> None:
    """A supervisor that restarts us each minute of an outage makes one unknown submit a start."""
    ledger = MemoryLedger()
    await lose_five(clock, service, ledger)
    for _ in range(5):
        service.fates.extend([LOST_FREE] * 30)
        before = len(service.submitted_at)
        async with service.session(ledger=ledger) as session:
            batch = asyncio.create_task(collect(session, 100))
            await clock.advance(59.0)
            batch.cancel()
        assert 1 == len(service.submitted_at) - before
        ledger = ledger.die()


async def test_an_answer_in_the_ledger_begins_as_usual(clock, service) -> None:
    """If the last submit in the ledger was answered nothing is paused."""
    ledger = MemoryLedger()
    await lose_five(clock, service, ledger, then=ACCEPTED)
    await clock.advance(60.0)
    before = reads(service)
    async with service.session(ledger=ledger) as session:
        await clock.run(session.submit(track(50)))
        assert before == reads(service)


# --- what is told -----------------------------------------------------------------------------


async def test_one_warning_and_one_event(clock, service, caplog) -> None:
    """The pause is told once in the log, and as an event of the submit that waits."""
    seen: list[events.Event] = []
    with caplog.at_level(logging.WARNING, "kie_wav_async"):
        async with service.session(rate_limit=FIVE, on_event=seen.append) as session:
            service.fates += [LOST_FREE] * 2
            batch = await paused(clock, service, session)
            await clock.run(batch)
    told = [record for record in caplog.records if "New submits pause" in record.message]
    assert 1 == len(told)
    (held,) = [event for event in seen if isinstance(event, events.SubmitRetryScheduled)]
    assert (track(5), 60.0) == (held.track, held.delay_s)
    assert isinstance(held.error, SubmitUnknownError)


async def test_a_read_that_stays_without_an_answer_is_told(clock, service, caplog) -> None:
    """What keeps submits paused is logged once, with what comes instead of an answer."""
    service.fates += [LOST_FREE] * 5
    service.poll_replies.extend([lambda _: raw(HTML, 403)] * 5)
    with caplog.at_level(logging.WARNING, "kie_wav_async"):
        async with service.session(rate_limit=RateLimit(5, per_s=1.0)) as session:
            batch = asyncio.create_task(collect(session, 6))
            await clock.advance(600.0)
            await clock.run(batch)
    (told,) = [record for record in caplog.records if "stay paused" in record.message]
    assert "/api/v1/chat/credit: it brings HTTP 403" in told.message


async def test_callbacks_resolve_what_an_outage_left(clock, service) -> None:
    """A callback that names a lost submit is taken during the pause as at any time."""
    service.fates += [LOST_CHARGED] * 5
    async with service.listening(rate_limit=FIVE) as session:
        batch = asyncio.create_task(collect(session, 8))
        await clock.advance(30.0)
        assert 5 == len(session.unknown_submits())
        await service.callback("task0001").to(session)
        await clock.advance(1.0)
        assert 4 == len(session.unknown_submits())
        await clock.run(batch)
