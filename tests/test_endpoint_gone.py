"""A service without the route that is asked for: what it costs, and how waits end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fakes import FakeService, Fate, counted, lost, raw, track
from kie_wav_async import OnUnknown, PollSchedule, RateLimit, events
from kie_wav_async.errors import (
    AuthenticationError,
    EndpointGoneError,
    NotFoundError,
    SubmitUnknownError,
)
from kie_wav_async.ledger import TrackState
from kie_wav_async.testing import (
    FakeClock,
    MemoryLedger,
    ScriptedTransport,
    answer,
    missing,
    pending,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from kie_wav_async import Outcome
    from kie_wav_async.testing import Reply

STEADY = PollSchedule(first_s=15.0, interval_s=10.0, jitter=0.0)

ROUTER = {"status": 404, "error": "Not Found", "message": "No message available"}

GONE: dict[str, Callable[..., Reply]] = {
    "router": lambda *_: answer(ROUTER, status=404),
    "html": lambda *_: raw(b"<html>404", 404),
    "empty": lambda *_: raw(b"", 404),
    "410": lambda *_: raw(b"<html>410", 410),
    "410 in JSON": lambda *_: answer({"status": 410, "error": "Gone"}, status=410),
    "code 410": lambda *_: refused(410, "retired"),
}

every_kind = pytest.mark.parametrize("gone", GONE.values(), ids=list(GONE))


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock) -> FakeService:
    """Return a service."""
    return FakeService(clock, conversion_s=100.0)


# --- submits and reads ----------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("on_unknown", OnUnknown)
async def test_a_submit_without_a_route_created_nothing(clock, service, gone, on_unknown) -> None:
    """It is refused at once, leaves nothing in doubt, and may be sent again."""
    service.fates.append(Fate("gone", is_charged=False, reply=gone))
    async with service.session(on_unknown=on_unknown) as session:
        with pytest.raises(EndpointGoneError, match="base_url") as caught:
            await clock.run(session.submit(track()))
        assert track() == caught.value.track
        assert (1, {"submitted": 1}) == (len(service.submitted_at), counted(session))
        assert "task0001" == (await clock.run(session.convert(track()))).task_id


async def test_a_ledger_keeps_such_a_track_as_not_sent(clock, service) -> None:
    """It is not the track's fault: the next run sends it as if nothing had been."""
    ledger = MemoryLedger()
    service.fates.append(Fate("gone", is_charged=False, reply=GONE["router"]))
    async with service.session(ledger=ledger) as session:
        with pytest.raises(EndpointGoneError):
            await clock.run(session.submit(track()))
    async with service.session(ledger=ledger) as session:
        await clock.run(session.convert(track()))
        assert TrackState.SUCCEEDED is (await ledger.get(track())).state
    assert 1 == service.charged


async def test_a_batch_stops_where_there_is_no_route(clock, service) -> None:
    """Every further track would meet the same: no more than what was queued is sent."""
    service.fates += [Fate("gone", is_charged=False, reply=GONE["router"])] * 1_000
    async with service.session() as session:
        ends = []

        async def convert() -> None:
            ends.extend([o async for o in session.convert_all(map(track, range(1_000)))])

        with pytest.raises(EndpointGoneError):
            await clock.run(convert())
    assert len(service.submitted_at) <= 20
    assert 0 == service.charged


@every_kind
@pytest.mark.parametrize("read", ["get_task", "list_tracks", "get_credits"])
async def test_a_read_without_a_route_says_so_at_once(clock, gone, read) -> None:
    """Asking again would not help: it is not repeated."""
    transport = ScriptedTransport(gone)
    service = FakeService(clock)
    service.transport = transport
    async with service.session() as session:
        arguments = [] if read == "get_credits" else ["t1"]
        with pytest.raises(EndpointGoneError):
            await clock.run(getattr(session, read)(*arguments))
    assert 1 == len(transport.requests)


async def test_a_404_with_a_code_is_about_the_task(clock, service) -> None:
    """It says that there is no such task, however often."""
    service.poll_replies += [lambda _: answer({"code": 404, "msg": "no"}, status=404)] * 10
    async with service.session(poll=STEADY) as session:
        with pytest.raises(NotFoundError):
            await clock.run(session.convert(track()))
        assert 60.0 <= service.polled_at[-1][0] - service.submitted_at[0] < 70.0


# --- polls ----------------------------------------------------------------------------------


@every_kind
async def test_three_polls_in_a_row_end_all_waits(clock, service, gone) -> None:
    """Each wait ends with an error of its own, and the tasks stay open, unpolled."""
    service.poll_replies += [gone] * 1_000
    async with service.session(poll=STEADY) as session:
        conversions = [await clock.run(session.submit(track(n))) for n in range(3)]
        waits = [asyncio.create_task(c.wait()) for c in (*conversions, conversions[0])]
        await clock.advance(100.0)
        errors = [wait.exception() for wait in waits]
        assert [EndpointGoneError] * 4 == [type(error) for error in errors]
        assert 4 == len({id(error) for error in errors})
        assert ["task0001", "task0002", "task0003", "task0001"] == [e.task_id for e in errors]
        assert (3, list(conversions)) == (session.statistics().polls, [*session.conversions()])
        await clock.advance(1_000.0)
        assert 3 == session.statistics().polls


async def test_a_single_wait_ends_with_its_third_poll(clock, service) -> None:
    """One conversion is enough: its polls are all there are."""
    service.poll_replies += [GONE["router"]] * 3
    async with service.session(poll=STEADY) as session:
        start = clock.monotonic()
        with pytest.raises(EndpointGoneError):
            await clock.run(session.convert(track()))
        assert [15.0, 25.0, 35.0] == [at - start for at in service.polled_at_moments]


@pytest.mark.parametrize(
    "other",
    [pending, lambda _: missing(), lambda _: refused(500), lambda _: lost(), lambda _: raw(b"")],
    ids=["pending", "none", "500", "reset", "unreadable"],
)
async def test_what_comes_between_ends_the_row(clock, service, other) -> None:
    """Two in a row, however often, end no wait: a deployment may last some seconds."""
    twice = [GONE["router"], GONE["410"]]
    service.poll_replies += [*twice, other, *twice]
    async with service.session(poll=STEADY) as session:
        assert "task0001" == (await clock.run(session.convert(track()))).task_id


async def test_a_burst_while_the_service_restarts_is_one(clock, service) -> None:
    """Many polls that are answered so within a moment end no wait."""
    service.latency_s = 1.0
    service.poll_replies += [GONE["router"]] * 20
    async with service.session(poll=STEADY) as session:
        waits = [asyncio.create_task(session.convert(track(n))) for n in range(20)]
        await clock.run(asyncio.gather(*waits))
        assert 20 == session.statistics().settled_by_poll


async def test_polling_resumes_when_somebody_waits_again(clock, service) -> None:
    """The task was paid for: once the route is back, another wait gets the file."""
    service.poll_replies += [GONE["410"]] * 5
    async with service.session(poll=STEADY) as session:
        conversion = await clock.run(session.submit(track()))
        for _ in range(3):
            with pytest.raises(EndpointGoneError):
                await clock.run(conversion.wait())
        assert 5 == session.statistics().polls
        assert "task0001" == (await clock.run(session.convert(track()))).task_id
    assert 1 == service.charged


async def test_a_wait_that_begins_late_has_its_time(clock, service) -> None:
    """Hours after polling ended, a new wait is polled, and does not time out at once."""
    service.poll_replies += [GONE["410"]] * 3
    async with service.session(poll=STEADY, timeout_s=200.0) as session:
        conversion = await clock.run(session.submit(track()))
        with pytest.raises(EndpointGoneError):
            await clock.run(conversion.wait())
        await clock.advance(10_000.0)
        service.tasks["task0001"].ends_at = clock.monotonic() + 100.0
        assert "task0001" == (await clock.run(conversion.wait())).task_id
        assert 0 == session.statistics().timed_out


async def test_a_callback_still_settles(clock, service) -> None:
    """While nothing is polled, a callback brings the file."""
    service.poll_replies += [GONE["router"]] * 3
    async with service.listening(poll=STEADY) as session:
        conversion = await clock.run(session.submit(track()))
        with pytest.raises(EndpointGoneError):
            await clock.run(conversion.wait())
        await service.callback("task0001").to(session)
        assert "callback" == conversion.result().settled_by


async def test_submits_not_sent_end_too(clock, service) -> None:
    """What is queued is not paid for while no result could be read."""
    service.poll_replies += [GONE["router"]] * 3
    async with service.session(poll=STEADY, max_in_flight=1) as session:
        waits = [asyncio.create_task(session.convert(track(n))) for n in range(3)]
        await clock.advance(100.0)
        assert [EndpointGoneError] * 3 == [type(wait.exception()) for wait in waits]
    assert 1 == service.charged


async def test_a_batch_that_waits_for_room_in_the_queue_goes_on(clock, service) -> None:
    """When all waits end the queue is empty, so a batch that had no room there has it now."""
    service.poll_replies += [lambda _: refused(401)] * 2
    settings = {"rate_limit": RateLimit(2, per_s=10.0), "max_in_flight": 1}
    async with service.session(**settings) as session:
        first = await clock.run(session.submit(track(1)))
        others = [asyncio.ensure_future(session.convert(track(2)))]
        await clock.run_pending()

        async def convert_all() -> list[Outcome]:
            return [outcome async for outcome in session.convert_all([track(3)])]

        [outcome] = await clock.run(convert_all())
        with pytest.raises(AuthenticationError):
            await others[0]

    assert outcome.ok
    assert first.done()


async def test_a_repeat_that_waits_stays_unknown(clock, service) -> None:
    """A submit of unknown outcome is not called refused: it may have been charged."""
    service.fates.append(Fate("lost", is_charged=True, reply=lambda _: lost()))
    service.poll_replies += [GONE["router"]] * 3
    async with service.session(poll=STEADY, on_unknown=OnUnknown.RESUBMIT) as session:
        waits = [asyncio.create_task(session.convert(track(n))) for n in range(2)]
        await clock.advance(50.0)
        assert isinstance(waits[0].exception(), SubmitUnknownError)
        assert isinstance(waits[1].exception(), EndpointGoneError)


async def test_pauses_are_told(clock, service) -> None:
    """Each pause is an event, the last one without an end."""
    service.poll_replies += [GONE["router"]] * 3
    seen: list[events.Event] = []
    async with service.session(poll=STEADY, on_event=seen.append) as session:
        with pytest.raises(EndpointGoneError):
            await clock.run(session.convert(track()))
    assert [("endpoint-gone", 5.0), ("endpoint-gone", 5.0), ("endpoint-gone", None)] == [
        (event.reason, event.delay_s) for event in seen if isinstance(event, events.PollingPaused)
    ]


async def test_a_refused_key_and_a_route_are_counted_apart(clock, service) -> None:
    """A 401 begins another row."""
    service.poll_replies += [GONE["router"]] * 2 + [lambda _: refused(401), GONE["router"]] * 3
    async with service.session(poll=STEADY) as session:
        assert "task0001" == (await clock.run(session.convert(track()))).task_id


async def test_an_unreadable_answer_is_logged_once(clock, service, caplog) -> None:
    """It is polled on, and the log does not fill."""
    service.poll_replies += [lambda _: raw(b"<html>a page")] * 5
    async with service.session(poll=STEADY) as session:
        await clock.run(session.convert(track()))
    assert 1 == sum("a page" in record.getMessage() for record in caplog.records)
