from __future__ import annotations

import collections
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_wav_async.core.poll_throttle import GAP_S, TASK_GAP_S, PollThrottle


def drive(wishes, **settings):
    """
    Return when each wished poll went out, sent as early as it may be.

    A wish is how long after the one before it comes, and for which task; the
    polls go out in the order of the wishes.
    """
    limiter = PollThrottle(**settings)
    now = wished_at = 0.0
    sent = []
    for after_s, task_id in wishes:
        wished_at += after_s
        now = max(now, wished_at, limiter.next_at, limiter.free_at(task_id))
        limiter.spend(task_id, now)
        sent.append((now, task_id))
        # Each entry is a poll of the last seconds, at most one every tenth of one.
        assert len(limiter._last) <= TASK_GAP_S / GAP_S + 1
    return sent


def test_the_bounds_are_the_documented_ones():
    """Callbacks cause at most one poll per task in 2 s, and 10 a second in all."""
    assert 2.0 == TASK_GAP_S
    assert 0.1 == GAP_S


WISHES = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.1, 0.3, 1.9, 2.0, 5.0]), st.sampled_from("abcdefgh")
    ),
    max_size=80,
)


@given(wishes=WISHES, least_gap_s=st.sampled_from([0.0, 0.05, 0.1, 0.25, 1.0]))
def test_no_schedule_lets_more_than_the_budget_through(wishes, least_gap_s):
    """Whatever arrives when, no two polls are closer than the gap, nor two of a task than 2 s."""
    sent = drive(wishes, least_gap_s=least_gap_s)

    assert all(
        later >= earlier + max(0.1, least_gap_s)
        for (earlier, _), (later, _) in itertools.pairwise(sent)
    )
    by_task = collections.defaultdict(list)
    for moment, task_id in sent:
        by_task[task_id].append(moment)
    for moments in by_task.values():
        assert all(later >= earlier + 2.0 for earlier, later in itertools.pairwise(moments))


@given(wishes=WISHES)
def test_a_poll_waits_for_nothing_but_the_budget(wishes):
    """A poll goes out at the first moment that gap, task and wish allow, as a naive list tells."""
    naive: list[tuple[float, str]] = []
    wished_at = 0.0
    for after_s, task_id in wishes:
        wished_at += after_s
        of_task = [moment + 2.0 for moment, other in naive if other == task_id]
        of_all = [moment + 0.1 for moment, _ in naive]
        naive.append((max([wished_at, *of_task, *of_all]), task_id))

    assert naive == drive(wishes)


def test_a_flood_of_one_task_is_one_poll_in_2_s():
    """A replay without end spends half a poll per second."""
    sent = drive([(0.0, "t")] * 100)

    assert [2.0 * index for index in range(100)] == [moment for moment, _ in sent]


def test_a_flood_of_many_tasks_is_10_a_second():
    """Replays of however many tasks spend ten polls per second, and memory for two seconds."""
    sent = drive([(0.0, f"t{number}") for number in range(2_000)])

    assert sent[-1][0] == pytest.approx(199.9)


def test_the_first_poll_waits_for_nothing():
    """Before the first poll nothing holds one back, whatever the clock begins with."""
    limiter = PollThrottle()

    assert -math.inf == limiter.next_at
    assert -math.inf == limiter.free_at("t")


def test_a_poll_holds_back_its_task_and_all():
    """After a poll its task is free 2 s later, and every other a tenth of a second later."""
    limiter = PollThrottle()
    limiter.spend("t", 10.0)

    assert 12.0 == limiter.free_at("t")
    assert -math.inf == limiter.free_at("u")
    assert 10.1 == limiter.next_at

    limiter.spend("t", 12.0)
    assert 14.0 == limiter.free_at("t")
    assert 12.1 == limiter.next_at


@pytest.mark.parametrize(("least_gap_s", "expected"), [(0.05, 0.1), (0.1, 0.1), (0.5, 0.5)])
def test_the_wider_gap_holds(least_gap_s, expected):
    """A session that polls more slowly than ten a second does so for callbacks too."""
    limiter = PollThrottle(least_gap_s=least_gap_s)
    limiter.spend("t", 0.0)

    assert expected == limiter.next_at


def test_only_the_last_seconds_are_remembered():
    """A task that is free again is forgotten with the next poll, and no sooner."""
    limiter = PollThrottle()
    limiter.spend("a", 0.0)
    limiter.spend("b", 1.0)
    limiter.spend("c", 1.999)
    assert ["a", "b", "c"] == list(limiter._last)

    limiter.spend("d", 2.0)
    assert ["b", "c", "d"] == list(limiter._last)

    limiter.spend("b", 3.0)
    assert ["c", "d", "b"] == list(limiter._last)

    limiter.spend("e", 1_000.0)
    assert ["e"] == list(limiter._last)
