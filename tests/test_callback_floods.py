"""Floods of callbacks: what they cost in polls, memory and log lines, and whom they hold up."""

from __future__ import annotations

import gc
import itertools
import logging
import math
import tracemalloc
from collections import Counter
from typing import Self

import pytest

from deliveries import QUIET, SECRET, World, file_of, query_of, signed_body
from fakes import LOST_CHARGED, track
from kie_wav_async import CallbackResult, CallbackTrust, PollSchedule, events
from kie_wav_async.core.early_callbacks import MAX_BUFFERED
from kie_wav_async.errors import CallbackFormatError, SignatureError
from kie_wav_async.testing import refused

#: What a session may keep for a flood that is to leave nothing. Caches of the
#: interpreter's take some.
FLAT = 64 * 1024


class Memory:
    """What was allocated in a block and is still held after it."""

    def __enter__(self) -> Self:
        gc.collect()
        tracemalloc.start()
        return self

    def __exit__(self, *_: object) -> None:
        gc.collect()
        self.kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()


def _bring(world: World, callbacks, query: str = "", count: int | None = None) -> Counter[object]:
    """Deliver one callback *count* times, or each of several once; count what came of it."""
    verdicts: Counter[object] = Counter()
    several = (callbacks for _ in range(count)) if count is not None else callbacks

    async def bring() -> None:
        for callback in several:
            try:
                verdicts[await world.session.handle_callback(*callback, query=query)] += 1
            except (SignatureError, CallbackFormatError) as error:
                verdicts[type(error)] += 1

    world.run(bring())
    return verdicts


def _polls_of(world: World, task_id: str) -> list[float]:
    return [at for at, polled in world.service.polled_at if polled == task_id]


def _most_in(moments: list[float], window_s: float) -> int:
    """Return how many of the moments lie in the fullest window."""
    edge = window_s - 1e-6
    return max((sum(a <= b < a + edge for b in moments) for a in moments), default=0)


# --- the same again -----------------------------------------------------------------------


def test_one_callback_ten_thousand_times_settles_once():
    """The same replay 10,000 times settles once, polls never, and is kept nowhere."""
    with World(poll=QUIET, on_event=None) as world:
        world.start(world.session.convert(track(1)))
        genuine = world.callback("task0001")
        query = query_of(world.service.tasks["task0001"])
        verdicts = _bring(world, genuine, query, count=7_000)
        with Memory() as memory:
            verdicts += _bring(world, genuine, query, count=3_000)
        assert verdicts == {CallbackResult.SETTLED: 1, CallbackResult.DUPLICATE: 9_999}
        assert memory.kept < FLAT
        figures = world.figures()
        assert (figures["settled_by_callback"], figures["duplicate_results"]) == (1, 9_999)
        assert (figures["polls"], figures["failed"], figures["in_flight"]) == (0, 0, 0)
        assert world.waiters[0].result().settled_by == "callback"


@pytest.mark.parametrize(
    ("latency_s", "keys"),
    [(0.0, SECRET), (0.7, SECRET), (5.0, SECRET), (0.7, ())],
    ids=["at once", "quick", "slow", "without keys"],
)
def test_one_hint_ten_thousand_times_polls_once_per_two_seconds(latency_s, keys):
    """10,000 replays in 20 s have one open task polled 11 times at most, one at a time."""
    with World(
        service={"latency_s": latency_s, "conversion_s": 900.0},
        poll=QUIET,
        callback_trust=CallbackTrust.CONFIRM,
        webhook_keys=keys,
        on_event=None,
    ) as world:
        world.start(world.session.convert(track(1)))
        world.advance(latency_s)
        genuine = world.callback("task0001")
        query = query_of(world.service.tasks["task0001"])

        def flood(batches: int) -> None:
            for _ in range(batches):
                verdicts = _bring(world, genuine, query, count=100)
                assert verdicts == {CallbackResult.POLLING: 100}
                world.advance(0.2)

        flood(70)
        with Memory() as memory:
            flood(30)
        assert memory.kept < FLAT
        world.advance(20.0)
        moments = _polls_of(world, "task0001")
        assert all(b - a > 1.999 for a, b in itertools.pairwise(moments))
        lasted = max(2.0, latency_s)
        assert math.floor(20 / lasted) <= len(moments) <= math.floor(20 / lasted) + 2
        assert world.service.most_at_once["task0001"] == 1
        assert world.figures()["in_flight"] == 1


def test_hints_on_many_tasks_poll_ten_a_second():
    """Hints on 300 tasks at once, over and over, cause 10 polls a second, each task's in turn."""
    with World(
        service={"conversion_s": 900.0},
        poll=QUIET,
        callback_trust=CallbackTrust.CONFIRM,
        max_in_flight=1_000,
        timeout_s=None,
        on_event=None,
    ) as world:
        for number in range(300):
            world.attach(f"task{number:04d}")
            world.service.create(f"task{number:04d}", track(number))
        for _ in range(40):
            callbacks = [world.callback(f"task{number:04d}") for number in range(300)]
            _bring(world, callbacks)
            world.advance(1.0)
        moments = [at for at, _ in world.service.polled_at]
        assert _most_in(moments, 1.0) == 10
        assert len(moments) in range(399, 402)
        # Only what still counts is remembered.
        assert len(world.session._core._polls._throttle._last) <= 21
        # Nobody is passed over: 300 tasks at 10 a second are through in 30 s.
        assert len({task_id for _, task_id in world.service.polled_at[:300]}) == 300


# --- what concerns nobody -------------------------------------------------------------------


def test_thirty_thousand_unknown_tasks_are_bounded():
    """30,000 authentic unknown ids cause no poll, and no more than 10,000 are kept."""
    with World(on_event=None) as world:
        query = "attempt=" + "f" * 32

        def callbacks(first: int, last: int):
            return (world.callback(f"music{number:06d}") for number in range(first, last))

        verdicts = _bring(world, callbacks(0, 25_000), query)
        with Memory() as memory:
            verdicts += _bring(world, callbacks(25_000, 30_000), query)
        assert verdicts == {CallbackResult.UNKNOWN_TASK: 30_000}
        assert len(world.session._core._callbacks._early) == MAX_BUFFERED == 10_000
        # They have the place of older ones, whose memory was not traced.
        assert memory.kept < 5_000 * 1_000
        assert world.session.conversions() == ()
        assert world.service.polled_at == world.service.submitted_at == []
        assert world.figures(without={"unknown_task_callbacks"}) == dict.fromkeys(
            world.figures(without={"unknown_task_callbacks"}), 0
        )
        assert world.figures()["unknown_task_callbacks"] == 30_000
        world.advance(901.0)
        _bring(world, [world.callback("music")])
        assert len(world.session._core._callbacks._early) == 1


def test_a_flood_of_unknown_tasks_does_not_hide_a_conversion():
    """A conversion whose early callback was crowded out is noticed by its polls."""
    with World(service={"latency_s": 4.0}, on_event=None) as world:
        world.start(world.session.convert(track(1)))
        world.advance(3.0)
        _bring(world, [world.callback("task0001")], query_of(world.service.tasks["task0001"]))
        _bring(world, (world.callback(f"music{number:06d}") for number in range(10_001)))
        world.advance(60.0)
        assert world.waiters[0].result().settled_by == "poll"


@pytest.mark.parametrize("kind", ["forged", "stale", "headers", "format", "long"])
def test_ten_thousand_refused_are_kept_nowhere(kind):
    """10,000 refused callbacks leave a counter, one line in the log, and nothing else."""
    with World(on_event=None) as world:
        world.start(world.session.convert(track(1)))
        now = world.clock.time()
        callback = {
            "forged": world.callback("task0001", key="whsec-of-somebody-else"),
            "stale": world.callback("task0001", now_unix_s=now - 301),
            "headers": ([], b"{}"),
            "format": signed_body("task0001", b"[" * 200, now),
            "long": signed_body("task0001", b" " * 70_000, now),
        }[kind]
        before = world.snapshot(without={"rejected_callbacks"})
        verdicts = _bring(world, callback, count=7_000)
        with Memory() as memory:
            verdicts += _bring(world, callback, count=3_000)
        assert sum(verdicts.values()) == 10_000
        assert set(verdicts) <= {SignatureError, CallbackFormatError}
        assert memory.kept < FLAT
        assert before == world.snapshot(without={"rejected_callbacks"})
        assert world.figures()["rejected_callbacks"] == 10_000
        lines = [record for record in world.ear.records if record.levelno >= logging.INFO]
        assert len(lines) == 1
        assert SECRET not in lines[0].getMessage()


def test_ten_thousand_refused_of_all_kinds_log_one_line_each():
    """However the refusals are mixed, the log gets at most one line per reason."""
    with World(on_event=None) as world:
        now = world.clock.time()
        kinds = [
            world.callback("task0001", key="whsec-of-somebody-else"),
            world.callback("task0001", now_unix_s=now + 301),
            ([], b"{}"),
            ({"X-Webhook-Timestamp": "1", "X-Webhook-Signature": "x"}, b"{}"),
            signed_body("task0001", b"\xff", now),
            signed_body("task0001", b'{"taskId":"a","task_id":"b"}', now),
            signed_body("task0001", b"{}", now),
        ]
        for number in range(300):
            _bring(world, [*kinds, world.callback(f"t{number}", key="whsec-of-somebody-else")])
        lines = [record for record in world.ear.records if record.levelno >= logging.INFO]
        assert len(lines) <= 5


# --- lost submits ---------------------------------------------------------------------------

FOREIGN = 5_000


def _with_a_lost_submit(world: World) -> str:
    world.service.fates.append(LOST_CHARGED)
    world.start(world.session.convert(track(1)))
    assert len(world.session.unknown_submits()) == 1
    return query_of(world.service.tasks["task0001"])


@pytest.mark.parametrize("has_record", [False, True], ids=["no record", "another's record"])
@pytest.mark.parametrize("place", [0, 2_500, FOREIGN])
def test_five_thousand_foreign_tasks_name_a_lost_attempt(place, has_record):
    """Foreign ids that name a lost attempt cause 10 polls a second; the genuine one is found."""
    with World(on_event=None) as world:
        query = _with_a_lost_submit(world)
        ids = [f"music{number:06d}" for number in range(FOREIGN)]
        if has_record:
            for task_id in ids:
                world.service.create(task_id, track(9))
        ids.insert(place, "task0001")
        verdicts = _bring(world, map(world.callback, ids), query)
        assert verdicts == {CallbackResult.POLLING: FOREIGN + 1}
        begun = world.clock.monotonic()
        while world.session.unknown_submits() and world.clock.monotonic() < begun + 600.0:
            world.advance(5.0)
        # At 10 a second, in the order they came.
        assert world.clock.monotonic() - begun <= place / 10 + 15.0
        moments = [at for at, _ in world.service.polled_at]
        assert _most_in(moments[:200], 1.0) <= 10
        assert len(moments) <= (world.clock.monotonic() - begun) * 10 + 5
        figures = world.figures()
        assert (figures["adopted"], figures["accepted"], figures["unknown"]) == (1, 1, 0)
        assert figures["submitted"] == 1
        known = world.session.conversions()
        assert [conversion.task_id for conversion in known] in ([], ["task0001"])
        # Once it is explained, nobody asks about the others for long.
        world.advance(600.0)
        asked = len(world.service.polled_at)
        world.advance(400.0)
        assert len(world.service.polled_at) == asked


def test_a_flood_that_names_a_lost_attempt_is_bounded():
    """30,000 foreign ids that name one lost attempt keep a bounded number of polls in store."""
    with World(on_event=None) as world:
        query = _with_a_lost_submit(world)

        def callbacks(first: int, last: int):
            return (world.callback(f"music{number:06d}") for number in range(first, last))

        _bring(world, callbacks(0, 10_000), query)
        with Memory() as memory:
            _bring(world, callbacks(10_000, 15_000), query)
        _bring(world, callbacks(15_000, 30_000), query)
        assert memory.kept < 5_000 * 1_000
        assert len(world.session._core._polls._requested) <= 10_000
        world.advance(60.0)
        assert len(world.service.polled_at) <= 602


# --- others keep their turn -------------------------------------------------------------------


@pytest.mark.parametrize("max_per_s", [0.5, 2.0, 30.0])
def test_a_flood_of_hints_starves_no_scheduled_poll(max_per_s):
    """While known tasks are hinted without end, others end within twice their schedule."""
    flooded, others = 40, 8
    schedule = PollSchedule(
        first_s=15.0, interval_s=10.0, jitter=0.0, backstop_s=15.0, max_per_s=max_per_s
    )
    ends = []
    for is_flooded in (False, True):
        with World(
            service={"conversion_s": 5.0},
            poll=schedule,
            callback_trust=CallbackTrust.CONFIRM,
            timeout_s=None,
            on_event=None,
        ) as world:
            for number in range(flooded):
                # Their schedule lies behind the horizon: only hints have them polled.
                world.service.create(f"flood{number}", track(100 + number))
                world.service.tasks[f"flood{number}"].ends_at = math.inf
            for number in range(others):
                world.service.create(f"other{number}", track(number))
                world.start(world.attach(f"other{number}").wait())
            for number in range(flooded if is_flooded else 0):
                world.attach(f"flood{number}")
            passed = 0.0
            while not all(task.done() for task in world.waiters) and passed < 600.0:
                if is_flooded:
                    _bring(world, [world.callback(f"flood{n}") for n in range(flooded)])
                world.advance(0.5)
                passed += 0.5
            ends.append(passed)
            moments = [at for at, _ in world.service.polled_at]
            # What a late timer may catch up on is one poll.
            assert _most_in(moments, 10.0) <= 10 * max_per_s + 1
    assert ends[1] <= 2 * ends[0] + 1


def test_a_flood_of_hints_starves_no_hint():
    """A genuine callback is confirmed within the turns of those that were there before."""
    with World(service={"conversion_s": 5.0}, poll=QUIET, timeout_s=None, on_event=None) as world:
        for number in range(100):
            world.service.create(f"flood{number}", track(100 + number))
            world.service.tasks[f"flood{number}"].ends_at = math.inf
            world.attach(f"flood{number}")
        world.service.create("task", track(1))
        world.start(world.attach("task").wait())
        world.advance(6.0)
        _bring(world, [world.callback(f"flood{n}") for n in range(100)])
        _bring(world, [world.callback("task")])
        for _ in range(22):
            assert not world.waiters[0].done() or world.clock.monotonic() > 1_010.0
            world.advance(0.5)
            _bring(world, [world.callback(f"flood{n}") for n in range(100)])
        assert str(world.waiters[0].result().url) == file_of("task")


def test_a_flood_while_polling_rests_is_answered_by_few_polls():
    """Hints that come while a 429 rests all polling cause no poll until it is over."""
    with World(timeout_s=100.0, on_event=None) as world:
        world.service.create("other", track(9))
        world.service.tasks["other"].ends_at = math.inf
        # Its timeout has the scheduler look around in the middle of the rest.
        world.start(world.attach("other").wait())
        begun = world.clock.monotonic()
        world.advance(80.0)
        world.start(world.session.convert(track(1)))
        world.service.poll_replies.append(lambda _: refused(429, retry_after="60"))
        query = query_of(world.service.tasks["task0002"])
        for _ in range(30):
            _bring(world, world.callback("task0002", None), query, count=50)
            world.advance(1.9 if world.service.poll_replies else 2.0)
        during = [at - begun for at, _ in world.service.polled_at if at - begun >= 80.0]
        assert len(during) == 1
        assert world.waiters[0].done()
        world.advance(30.0)
        assert world.waiters[1].done()


# --- events -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["forged", "stale", "headers", "format"])
def test_events_of_refusals_are_bounded(kind):
    """5,000 refused callbacks in two minutes have at most 100 events a minute; all are counted."""
    seen: list[events.Event] = []
    with World(on_event=seen.append) as world:
        now = world.clock.time()
        callback = {
            "forged": world.callback("task0001", key="whsec-of-somebody-else"),
            "stale": world.callback("task0001", now_unix_s=now - 301),
            "headers": ([], b"{}"),
            "format": signed_body("task0001", b"[" * 200, now),
        }[kind]
        for minute in range(2):
            _bring(world, callback, count=2_500)
            assert [events.CallbackRejected] * 100 * (minute + 1) == [type(event) for event in seen]
            world.advance(60.0)
        assert world.figures()["rejected_callbacks"] == 5_000


@pytest.mark.parametrize("keys", [SECRET, ()], ids=["with keys", "without"])
@pytest.mark.parametrize("verdict", ["UNKNOWN_TASK", "DUPLICATE", "POLLING"])
def test_events_of_what_can_be_repeated_are_bounded(verdict, keys):
    """5,000 callbacks that settle nothing have at most 600 events a minute, of each verdict."""
    seen: list[events.Event] = []
    with World(
        service={"conversion_s": 5.0 if verdict == "DUPLICATE" else 900.0},
        poll=QUIET,
        callback_trust=CallbackTrust.CONFIRM,
        webhook_keys=keys,
        on_event=seen.append,
    ) as world:
        world.start(world.session.convert(track(1)))
        callback = world.callback("nobody" if verdict == "UNKNOWN_TASK" else "task0001")
        if verdict == "DUPLICATE":
            world.advance(6.0)
            _bring(world, callback, count=1)
            world.advance(20.0)
            assert world.waiters[0].done()
        seen.clear()
        verdicts = _bring(world, callback, count=5_000)
        assert verdicts == {CallbackResult[verdict]: 5_000}
        assert 600 == len([event for event in seen if isinstance(event, events.CallbackReceived)])
        counted = {
            "UNKNOWN_TASK": ("unknown_task_callbacks",),
            "DUPLICATE": ("duplicate_results",),
            "POLLING": (),
        }[verdict]
        assert [5_000] * len(counted) == [world.figures()[name] for name in counted]


def test_every_result_has_its_event():
    """However many callbacks were repeated, each one that settles has an event."""
    seen: list[events.Event] = []
    with World(poll=QUIET, max_in_flight=5_000, on_event=seen.append) as world:
        _bring(world, world.callback("nobody"), count=2_000)
        for number in range(1, 21):
            world.start(world.session.convert(track(number)))
            task_id = f"task{number:04d}"
            _bring(world, [world.callback(task_id)], query_of(world.service.tasks[task_id]))
        settled = [e for e in seen if getattr(e, "result", None) is CallbackResult.SETTLED]
        assert 20 == len(settled)
