"""What a callback cannot do to a session: refused ones, and all of them without keys."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import attrs
import pytest

from fakes import WEBHOOK_KEY, Delivery, FakeService, counted, told, track
from kie_wav_async import CallbackResult, PollSchedule, Statistics, events
from kie_wav_async.errors import CallbackFormatError, SignatureError
from kie_wav_async.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

STEADY = PollSchedule(first_s=15.0, interval_s=10.0, jitter=0.0)

SETTLED, POLLING = CallbackResult.SETTLED, CallbackResult.POLLING
DUPLICATE, UNKNOWN_TASK = CallbackResult.DUPLICATE, CallbackResult.UNKNOWN_TASK

RECORDED_URL = "https://media.invalid/task0001.wav"


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock) -> FakeService:
    """Return a service that means well until it is told otherwise."""
    return FakeService(clock)


# --- refused ------------------------------------------------------------------------------


def without(name: str) -> Callable[[Delivery], Delivery]:
    """Return what takes a header away."""

    def change(delivery: Delivery) -> Delivery:
        kept = {key: value for key, value in delivery.headers.items() if key != name}
        return attrs.evolve(delivery, headers=kept)

    return change


def with_header(name: str, value: str) -> Callable[[Delivery], Delivery]:
    """Return what puts another value into a header."""
    return lambda delivery: attrs.evolve(delivery, headers={**delivery.headers, name: value})


def with_body(body: bytes) -> Callable[[Delivery], Delivery]:
    """Return what puts another body in place."""
    return lambda delivery: attrs.evolve(delivery, body=body)


def twice(delivery: Delivery) -> Delivery:
    """Send every header twice."""
    return attrs.evolve(delivery, headers=[*delivery.headers.items()] * 2)


REFUSED = {
    "no signature": ("headers", without("X-Webhook-Signature")),
    "no timestamp": ("headers", without("X-Webhook-Timestamp")),
    "two of each": ("headers", twice),
    "timestamp with a sign": ("timestamp", with_header("X-Webhook-Timestamp", "+180000000")),
    "another timestamp": ("signature", with_header("X-Webhook-Timestamp", "1800000001")),
    "another signature": ("signature", with_header("X-Webhook-Signature", "A" * 43 + "=")),
    "short signature": ("signature", with_header("X-Webhook-Signature", "AAAA")),
    "another task": ("signature", lambda d: d.saying(data={"task_id": "task0002"})),
    "no json": ("format", with_body(b"<html>")),
    "no task": ("format", lambda d: d.saying(data={})),
    "two tasks": ("format", lambda d: d.saying(taskId="task0002")),
    "64 KiB and one": ("format", with_body(b" " * (64 * 1024 + 1))),
}


@pytest.mark.parametrize(("reason", "change"), REFUSED.values(), ids=REFUSED)
async def test_refused_callback_changes_a_counter_only(
    clock, service, caplog, reason, change
) -> None:
    """A callback that is refused is counted, told and logged once, and nothing else happens."""
    await refuse_thrice(clock, service, caplog, reason, change(service.callback("task0001")))


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("signature", {"key": "whk-of-somebody-else"}),
        ("stale", {"at_s": -302.0}),
        ("stale", {"at_s": 302.0}),
    ],
)
async def test_callback_signed_by_others_or_at_another_time_is_refused(
    clock, service, caplog, reason, changes
) -> None:
    """A callback with another key, or out of its time, is refused like any other."""
    await refuse_thrice(clock, service, caplog, reason, service.callback("task0001", **changes))


async def refuse_thrice(
    clock: FakeClock,
    service: FakeService,
    caplog: pytest.LogCaptureFixture,
    reason: str,
    delivery: Delivery,
) -> None:
    """Have *delivery* refused for *reason*, of a task in flight, and look for effects."""
    seen: list[object] = []
    kind = CallbackFormatError if reason == "format" else SignatureError
    async with service.listening(poll=STEADY, on_event=seen.append) as session:
        conversion = await clock.run(session.submit(track()))
        seen.clear()
        before = session.statistics()
        # The attempt of the submit, so that nothing but the refusal stands in the way.
        right = attrs.evolve(delivery, query=service.callback("task0001").query)
        for _ in range(3):
            with pytest.raises(kind) as caught:
                await right.to(session)
        assert reason == getattr(caught.value, "reason", "format")
        await clock.advance(14.0)

        assert attrs.evolve(before, rejected_callbacks=3) == session.statistics()
        assert not conversion.done()
        assert [] == service.polled_at
        assert 0 == len(session._core._callbacks._early)
        assert [(events.CallbackRejected, kind)] * 3 == [told(event) for event in seen]
        assert len({id(event.error) for event in seen} | {id(caught.value)}) == 4
        await clock.advance(1.0)
        assert 1 == len(service.polled_at)
    refused = [r for r in caplog.records if "refused" in r.getMessage()]
    assert [logging.WARNING] == [record.levelno for record in refused]


async def test_one_line_for_each_reason(service, caplog) -> None:
    """However many callbacks are refused, there is one line in the log for each reason."""
    async with service.listening() as session:
        for _ in range(20):
            for reason, change in REFUSED.values():
                kind = CallbackFormatError if reason == "format" else SignatureError
                with pytest.raises(kind):
                    await change(service.callback("task0001")).to(session)
            with pytest.raises(SignatureError):
                await service.callback("task0001", at_s=-900.0).to(session)
        assert {"rejected_callbacks": 20 * (len(REFUSED) + 1)} == counted(session)
    assert 5 == len(caplog.records)
    # As an attacker chose it, or as would have been right: neither is shown.
    signature = service.callback("task0001").headers["X-Webhook-Signature"]
    for shown in (signature, "A" * 43, WEBHOOK_KEY):
        assert shown not in caplog.text


@pytest.mark.parametrize(("at_s", "is_taken"), [(-300.0, True), (300.0, True), (-301.0, False)])
async def test_tolerance_is_300_s_of_the_sessions_wall_clock(
    clock, service, at_s, is_taken
) -> None:
    """Freshness is judged by the time of the session's clock, 300 s both ways."""
    async with service.listening() as session:
        await clock.run(session.submit(track()))
        clock.shift_wall_clock(7_200.0)
        callback = service.callback("task0001", at_s=at_s)
        if is_taken:
            assert SETTLED is await callback.to(session)
        else:
            with pytest.raises(SignatureError) as caught:
                await callback.to(session)
            assert "stale" == caught.value.reason


async def test_clock_that_is_wrong_loses_no_conversion(clock, service) -> None:
    """With a wall clock ten minutes off all callbacks are refused, and polls still settle."""
    async with service.listening(poll=STEADY) as session:
        conversion = await clock.run(session.submit(track()))
        clock.shift_wall_clock(600.0)
        callback = service.callback("task0001", at_s=-600.0)
        with pytest.raises(SignatureError):
            await callback.to(session)
        assert "poll" == (await clock.run(conversion.wait())).settled_by


MISUSED = [
    {"headers": None},
    {"headers": 5},
    {"headers": "X-Webhook-Timestamp: 1"},
    {"headers": ["X-Webhook-Timestamp"]},
    {"body": "text"},
    {"body": None},
    {"body": {"code": 200}},
    {"query": None},
    {"query": {"attempt": "x"}},
]


@pytest.mark.parametrize("changes", MISUSED, ids=lambda changes: str(changes)[:40])
async def test_misuse_is_no_refusal(clock, service, changes) -> None:
    """An argument of the wrong type is a TypeError that names it, and counts for nothing."""
    async with service.listening() as session:
        await clock.run(session.submit(track()))
        before = session.statistics()
        delivery = attrs.evolve(service.callback("task0001"), **changes)
        with pytest.raises(TypeError, match=next(iter(changes))):
            await delivery.to(session)
        assert before == session.statistics()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_body_may_be_any_bytes(clock, service, kind) -> None:
    """A body is taken as whatever kind of bytes a framework has, the query as text or bytes."""
    async with service.listening() as session:
        await clock.run(session.submit(track()))
        callback = service.callback("task0001")
        pairs = [(name.encode(), value.encode()) for name, value in callback.headers.items()]
        verdict = await session.handle_callback(
            pairs, kind(callback.body), query=callback.query.encode()
        )
        assert SETTLED is verdict


# --- without keys -------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, None, 5, [("X-Webhook-Signature", "forged")] * 2])
async def test_without_keys_a_known_task_is_asked_about(clock, service, headers) -> None:
    """Without keys a callback of a task in flight is a hint, whatever its headers are."""
    seen: list[object] = []
    async with service.listening(webhook_keys=(), on_event=seen.append, poll=STEADY) as session:
        conversion = await clock.run(session.submit(track()))
        service.finish("task0001")
        callback = attrs.evolve(service.callback("task0001"), headers=headers)
        assert POLLING is await callback.to(session)
        assert not conversion.done()
        asked_at = clock.monotonic()
        wav = await clock.run(conversion.wait())

        assert (RECORDED_URL, "poll") == (str(wav.url), wav.settled_by)
        assert [asked_at] == service.polls_of("task0001")
        assert DUPLICATE is await callback.to(session)
        assert {
            "submitted": 1,
            "accepted": 1,
            "settled_by_poll": 1,
            "polls": 1,
            "duplicate_results": 1,
        } == counted(session)
    assert [
        (events.SubmitAccepted, "task0001"),
        (events.CallbackReceived, ("task0001", POLLING, False)),
        (events.ConversionSucceeded, wav),
        (events.CallbackReceived, ("task0001", DUPLICATE, False)),
    ] == [told(event) for event in seen]


async def test_without_keys_an_unknown_task_is_not_kept(clock, service) -> None:
    """Without keys a callback of an unknown task is counted, and leaves nothing behind."""
    service.latency_s = 10.0
    async with service.listening(webhook_keys=(), poll=STEADY) as session:
        waiting = asyncio.create_task(session.submit(track()))
        await clock.advance(7.0)
        for task_id in ("task0001", "never-heard-of"):
            assert UNKNOWN_TASK is await service.callback(task_id).to(session)
        assert {"submitted": 1, "unknown_task_callbacks": 2} == counted(session)
        assert 0 == len(session._core._callbacks._early)
        await clock.advance(3.0)
        assert not (await waiting).done()
        session.attach("never-heard-of")
        await clock.advance(14.0)
        assert [] == service.polled_at


async def test_without_keys_a_body_is_still_read_strictly(service) -> None:
    """Without keys too a body that cannot be read is refused."""
    async with service.listening(webhook_keys=()) as session:
        with pytest.raises(CallbackFormatError):
            await session.handle_callback({}, b"[]")
        assert Statistics(rejected_callbacks=1) == session.statistics()


async def test_polling_only_with_keys_takes_callbacks(clock, service) -> None:
    """A session that asked for no callbacks still verifies those it is given."""
    async with service.session(webhook_keys=WEBHOOK_KEY) as session:
        await clock.run(session.submit(track()))
        assert SETTLED is await service.callback("task0001").to(session)
