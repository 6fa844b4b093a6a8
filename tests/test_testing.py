"""What users test with: a clock and a transport that do as they are told."""

from __future__ import annotations

import asyncio
import math
import time

import pytest
from yarl import URL

from kie_wav_async import (
    Clock,
    SystemClock,
    TaskState,
    Track,
    Transport,
    WavSession,
    WireRequest,
    WireResponse,
)
from kie_wav_async._support.secret import Secret
from kie_wav_async.errors import ConversionFailedError, RateLimitedError, TransportError
from kie_wav_async.protocol.requests import RequestBuilder
from kie_wav_async.protocol.responses import parse_record, parse_submit
from kie_wav_async.testing import (
    FakeClock,
    ScriptedTransport,
    accepted,
    answer,
    failed,
    missing,
    pending,
    polled_task_id,
    refused,
    submitted_track,
    succeeded,
)


@pytest.fixture(autouse=True)
def as_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the clock as users have it, without the short cut of conftest.py."""
    monkeypatch.setattr(FakeClock, "run_pending", FakeClock.run_pending.__wrapped__)


# --- the example of the module ------------------------------------------------------------


async def test_example_works() -> None:
    """The example in the module's docstring converts a track."""
    clock = FakeClock()
    transport = ScriptedTransport([accepted("t1"), pending("t1"), succeeded("t1")])
    async with WavSession("key", transport=transport, clock=clock) as session:
        wav = await clock.run(session.convert(Track("5c79", "e231")))
    assert "t1" == wav.task_id
    assert (1, 2) == (len(transport.submits), len(transport.polls))
    assert transport.is_closed


async def test_hours_pass_in_no_time() -> None:
    """A fake day costs a user's test next to nothing."""
    clock = FakeClock()
    started = time.monotonic()
    await clock.run(clock.sleep(86_400.0))
    assert 1_000.0 + 86_400.0 == clock.monotonic()
    assert time.monotonic() - started < 86_400.0


# --- what both clocks promise -------------------------------------------------------------


@pytest.mark.parametrize("make", [FakeClock, SystemClock])
async def test_clocks_are_clocks(make) -> None:
    """The fake clock and the machine's keep the same promises."""
    clock = make()
    assert isinstance(clock, Clock)
    assert clock.monotonic() <= clock.monotonic()
    assert clock.time() > 1_600_000_000.0
    await clock.sleep(0)
    await clock.sleep(-1.0)
    fired = []
    clock.call_at(clock.monotonic() - 1.0, lambda: fired.append("past"))
    called_off = clock.call_at(clock.monotonic(), lambda: fired.append("called off"))
    called_off.cancel()
    called_off.cancel()
    assert [] == fired  # Never within the call.
    if isinstance(clock, FakeClock):
        await clock.run_pending()
        await clock.advance(0.0)
    for _ in range(3):
        await asyncio.sleep(0)
    assert ["past"] == fired
    called_off.cancel()


async def test_scripted_transport_is_a_transport() -> None:
    """A scripted transport is what a session takes for one, and may be closed twice."""
    transport = ScriptedTransport([])
    assert isinstance(transport, Transport)
    assert not transport.is_closed
    await transport.aclose()
    await transport.aclose()
    assert transport.is_closed


# --- FakeClock ----------------------------------------------------------------------------


async def test_timers_fire_in_order_of_their_moments() -> None:
    """Timers fire in the order of their moments, then of their making, at their moment."""
    clock = FakeClock(monotonic_s=0.0)
    fired = []
    for name, when in [("c", 3.0), ("a", 1.0), ("b1", 2.0), ("b2", 2.0)]:
        clock.call_at(when, lambda name=name: fired.append((name, clock.monotonic())))
    await clock.advance(2.5)
    assert [("a", 1.0), ("b1", 2.0), ("b2", 2.0)] == fired
    assert 2.5 == clock.monotonic()
    await clock.advance(0.5)
    assert ("c", 3.0) == fired[-1]


async def test_timers_set_on_the_way_fire_too() -> None:
    """A timer that is set while time moves fires within the same move if it is due."""
    clock = FakeClock(monotonic_s=0.0)
    fired = []

    def again():
        fired.append(clock.monotonic())
        if len(fired) < 5:
            clock.call_at(clock.monotonic() + 1.0, again)

    clock.call_at(1.0, again)
    await clock.advance(3.5)
    assert [1.0, 2.0, 3.0] == fired


async def test_sleepers_wake_at_their_moment() -> None:
    """Sleepers wake in order, each at its moment, and what they do then takes no time."""
    clock = FakeClock(monotonic_s=0.0)
    woken = []

    async def sleeper(delay_s):
        await clock.sleep(delay_s)
        woken.append((delay_s, clock.monotonic()))
        await clock.sleep(1.0)
        woken.append((delay_s, clock.monotonic()))

    async with asyncio.TaskGroup() as group:
        for delay_s in (3.0, 1.0):
            group.create_task(sleeper(delay_s))
        await clock.advance(10.0)
    assert [(1.0, 1.0), (1.0, 2.0), (3.0, 3.0), (3.0, 4.0)] == woken


async def test_cancelled_sleep_leaves_no_timer() -> None:
    """A sleeper that is cancelled leaves nothing that time would move to."""
    clock = FakeClock()
    sleeper = asyncio.create_task(clock.sleep(5.0))
    await clock.run_pending()
    sleeper.cancel()
    await clock.run_pending()
    with pytest.raises(RuntimeError, match="nothing will ever happen"):
        await clock.run(asyncio.Event().wait())
    assert 1_000.0 == clock.monotonic()


async def test_run_moves_no_further_than_needed() -> None:
    """run() stops the clock where its awaitable ended, and leaves later timers alone."""
    clock = FakeClock(monotonic_s=0.0)
    fired = []
    clock.call_at(9.0, lambda: fired.append(9.0))
    await clock.run(clock.sleep(4.0))
    assert (4.0, []) == (clock.monotonic(), fired)


async def test_run_raises_what_it_awaits() -> None:
    """run() returns what its awaitable returns and raises what it raises."""
    clock = FakeClock()

    async def fail():
        await clock.sleep(1.0)
        raise KeyError(clock.monotonic())

    with pytest.raises(KeyError, match="1001"):
        await clock.run(fail())
    future = asyncio.get_running_loop().create_future()
    clock.call_at(1_002.0, lambda: future.set_result("value"))
    assert "value" == await clock.run(future)


async def test_run_that_can_never_end_says_so() -> None:
    """run() raises rather than hangs if nothing will ever happen, and cancels the wait."""
    clock = FakeClock()
    waiting = asyncio.get_running_loop().create_future()
    with pytest.raises(RuntimeError, match="nothing will ever happen"):
        await clock.run(waiting)
    assert waiting.cancelled()


async def test_run_that_is_cancelled_cancels() -> None:
    """A cancelled run() takes what it ran along."""
    clock = FakeClock()
    ended = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    def forever():
        clock.call_at(clock.monotonic() + 1.0, forever)

    forever()
    run = asyncio.create_task(clock.run(work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    run.cancel()
    await asyncio.wait([run])
    assert run.cancelled()
    assert [True] == ended


@pytest.mark.parametrize("seconds", [-1.0, -math.inf, math.nan])
async def test_time_does_not_go_back(seconds) -> None:
    """Moving the clock by less than nothing is a ValueError, and it stays where it was."""
    clock = FakeClock()
    with pytest.raises(ValueError, match="go back"):
        await clock.advance(seconds)
    assert 1_000.0 == clock.monotonic()


async def test_wall_clock_moves_along_and_alone() -> None:
    """time() moves with monotonic(), and shift_wall_clock() moves it alone."""
    clock = FakeClock(monotonic_s=5.0, unix_s=100.0)
    await clock.advance(2.0)
    assert (7.0, 102.0) == (clock.monotonic(), clock.time())
    clock.shift_wall_clock(-50.0)
    assert (7.0, 52.0) == (clock.monotonic(), clock.time())


# --- ScriptedTransport --------------------------------------------------------------------

REQUEST = WireRequest(method="GET", url="https://h/x", headers={})


async def test_script_is_followed_in_order() -> None:
    """Replies come in the order of the script, whatever is asked, and requests are kept."""
    transport = ScriptedTransport(iter([accepted("t1"), missing()]))
    assert accepted("t1") == await transport.send(REQUEST)
    assert missing() == await transport.send(REQUEST)
    assert [REQUEST] * 2 == transport.requests


async def test_script_may_be_a_function() -> None:
    """A function of the request decides for each what it gets."""
    transport = ScriptedTransport(lambda request: answer({"url": request.url}))
    assert answer({"url": "https://h/x"}) == await transport.send(REQUEST)


async def test_errors_are_raised() -> None:
    """An error in the script is raised instead of returned."""
    transport = ScriptedTransport([TransportError("reset")])
    with pytest.raises(TransportError, match="reset"):
        await transport.send(REQUEST)


@pytest.mark.parametrize("is_error", [False, True])
async def test_awaitables_are_awaited(is_error) -> None:
    """An awaitable in the script is awaited for a reply, and may bring or raise an error."""

    async def later():
        await asyncio.sleep(0)
        return TransportError("later") if is_error else accepted("t1")

    transport = ScriptedTransport([later()])
    if is_error:
        with pytest.raises(TransportError, match="later"):
            await transport.send(REQUEST)
    else:
        assert accepted("t1") == await transport.send(REQUEST)


async def test_script_that_is_over_says_so() -> None:
    """A request beyond the script's end is an AssertionError that shows it."""
    transport = ScriptedTransport([])
    with pytest.raises(AssertionError, match=r"request 1, https://h/x"):
        await transport.send(REQUEST)


async def test_script_that_is_over_settles_nothing() -> None:
    """A session that asks for more than its script holds goes on waiting."""
    clock = FakeClock()
    transport = ScriptedTransport([accepted("t1")])
    async with WavSession("key", transport=transport, clock=clock) as session:
        conversion = await clock.run(session.submit(Track("m", "a")))
        await clock.advance(60.0)
        assert not conversion.done()


def test_requests_are_told_apart() -> None:
    """Submits and polls are what a session sends as such, and nothing else is."""
    build = RequestBuilder(URL("https://h"), Secret("key"))
    track = Track("m1", "a/1&=ü")
    submit, poll = build.submit(track, "https://cb"), build.poll("t/1&=ü")
    transport = ScriptedTransport([])
    transport.requests += [submit, poll, build.music("m1"), build.credits()]
    transport.requests.append(build.download_url(URL("https://h/x")))
    assert [submit] == transport.submits
    assert [poll] == transport.polls
    assert track == submitted_track(submit)
    assert "t/1&=ü" == polled_task_id(poll)


# --- replies ------------------------------------------------------------------------------


def test_replies_mean_what_they_say() -> None:
    """The replies are read by our codec as what their names say."""
    assert "t1" == parse_submit(accepted("t1")).task_id
    assert parse_record(missing(), "t1") is None
    record = parse_record(pending("t1", musicId="a1"), "t1")
    assert (TaskState.PENDING, "a1") == (record.state, record.audio_id)
    record = parse_record(succeeded("t1"), "t1")
    assert (TaskState.SUCCEEDED, "https://media.invalid/t1.wav") == (
        record.state,
        str(record.wav_url),
    )
    assert "https://h/x.wav" == str(parse_record(succeeded("t1", "https://h/x.wav"), "t1").wav_url)
    record = parse_record(failed("t1", "why"), "t1")
    assert (TaskState.FAILED, 500, "why") == (
        record.state,
        record.error_code,
        record.error_message,
    )
    with pytest.raises(RateLimitedError) as caught:
        parse_submit(refused(429, "slow", retry_after="7"))
    assert ("slow", 7.0, 200) == (
        caught.value.message,
        caught.value.retry_after_s,
        caught.value.http_status,
    )
    existing = parse_submit(refused(409, data={"taskId": "old"}))
    assert ("old", True) == (existing.task_id, existing.exists)
    assert WireResponse(status=503, body=b"[1]") == answer([1], status=503)


async def test_failure_reaches_a_users_test() -> None:
    """A scripted failure is the error a user's code has to deal with."""
    clock = FakeClock()
    transport = ScriptedTransport([accepted("t1"), failed("t1", "no such song")])
    async with WavSession("key", transport=transport, clock=clock) as session:
        with pytest.raises(ConversionFailedError, match="no such song"):
            await clock.run(session.convert(Track("m", "a")))
