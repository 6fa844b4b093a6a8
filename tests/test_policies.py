from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies
from kie_wav_async.core import policies
from kie_wav_async.core.policies import (
    PollSchedule,
    RetryPolicy,
    first_poll_delay_s,
    next_poll_delay_s,
    rate_limit_delay_s,
    retry_delay_s,
)

positive_s = st.floats(1e-9, 1e9)


def test_the_defaults_are_the_documented_ones():
    """A schedule and a policy without arguments are what the documentation says."""
    assert attrs.asdict(PollSchedule()) == {
        "first_s": 15.0,
        "interval_s": 10.0,
        "jitter": 0.2,
        "backstop_s": 60.0,
        "max_per_s": 30.0,
    }
    assert attrs.asdict(RetryPolicy()) == {
        "attempts": 3,
        "base_s": 1.0,
        "cap_s": 20.0,
        "retry_after_cap_s": 300.0,
    }


def test_the_settled_waits_are_the_documented_ones():
    """Maintenance probes and repeats come after 60 s, refused polling is tried again after 5 s."""
    assert (
        policies.MAINTENANCE_PROBE_S,
        policies.RESUBMIT_AFTER_S,
        policies.REJECTED_POLL_RETRY_S,
    ) == (60.0, 60.0, 5.0)


@pytest.mark.parametrize(("awaits_callback", "expected"), [(False, 7.0), (True, 100.0)])
def test_the_first_poll_waits_for_healthy_callbacks(awaits_callback, expected):
    """While callbacks arrive the first poll is the backstop, else it is the first one."""
    schedule = PollSchedule(first_s=7.0, backstop_s=100.0)

    assert expected == first_poll_delay_s(schedule, awaits_callback=awaits_callback)


@pytest.mark.parametrize(
    ("jitter", "sample", "expected"),
    [
        (0.2, 0.0, 8.0),
        (0.2, 0.25, 9.0),
        (0.2, 0.5, 10.0),
        (0.2, 0.75, 11.0),
        (0.2, 1.0, 12.0),
        (0.5, 0.0, 5.0),
        (0.5, 0.75, 12.5),
        (0, 0.0, 10.0),
        (0, 0.9, 10.0),
        (0.75, 0.0, 2.5),
    ],
)
def test_the_next_poll_comes_after_a_jittered_interval(jitter, sample, expected):
    """The interval is shortened or stretched by chance, by up to its jitter."""
    schedule = PollSchedule(interval_s=10.0, jitter=jitter)

    assert expected == pytest.approx(next_poll_delay_s(schedule, sample), rel=1e-12)


@given(positive_s, st.floats(0, 1, exclude_max=True), strategies.samples_in_unit)
def test_polls_keep_their_distance(interval_s, jitter, sample):
    """No two polls of a task are closer or further apart than the jitter allows."""
    schedule = PollSchedule(interval_s=interval_s, jitter=jitter)
    delay_s = next_poll_delay_s(schedule, sample)

    assert delay_s > 0
    assert delay_s >= interval_s * (1 - jitter) * (1 - 1e-9)
    assert delay_s <= interval_s * (1 + jitter) * (1 + 1e-9)


# With sample 1, the longest wait: attempt by attempt.
@pytest.mark.parametrize(
    ("attempt", "longest_s"),
    [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 16.0), (6, 20.0), (7, 20.0), (10_000, 20.0)],
)
@pytest.mark.parametrize("sample", [0.0, 0.25, 0.5, 0.999])
def test_retries_wait_twice_as_long_each_time_up_to_the_cap(attempt, longest_s, sample):
    """The longest wait doubles up to the cap, and chance takes its share of the whole."""
    assert retry_delay_s(RetryPolicy(), attempt, sample, None) == longest_s * sample


@pytest.mark.parametrize(
    ("policy", "attempt", "expected"),
    [
        (RetryPolicy(base_s=0.0), 50, 0.0),
        (RetryPolicy(cap_s=0.0), 5, 0.0),
        (RetryPolicy(base_s=3.0, cap_s=100.0), 3, 12.0),
        (RetryPolicy(base_s=30.0, cap_s=20.0), 1, 20.0),
        (RetryPolicy(base_s=1e308, cap_s=20.0), 10**9, 20.0),
        (RetryPolicy(base_s=1e-9, cap_s=1e300), 66, 1e-9 * 2.0**64),
        (RetryPolicy(base_s=1e-9, cap_s=1e300), 65, 1e-9 * 2.0**64),
        (RetryPolicy(base_s=1e-9, cap_s=1e300), 64, 1e-9 * 2.0**63),
    ],
    ids=["no-base", "no-cap", "base", "base-over-cap", "overflow", "bound", "last", "before"],
)
def test_the_back_off_does_not_overflow(policy, attempt, expected):
    """The longest wait is the cap, however great the base and the number of attempts."""
    assert expected == retry_delay_s(policy, attempt, 1.0, None)


@given(
    base_s=strategies.seconds,
    cap_s=strategies.seconds,
    attempt=st.integers(1, 10**9),
    sample=strategies.samples_in_unit,
)
def test_a_retry_never_waits_beyond_its_cap(base_s, cap_s, attempt, sample):
    """Our own back-off is at least nothing and at most the cap."""
    delay_s = retry_delay_s(RetryPolicy(base_s=base_s, cap_s=cap_s), attempt, sample, None)

    assert 0 <= delay_s <= cap_s


RETRY_AFTER = [(0.0, 0.0), (0.5, 0.5), (7.0, 7.0), (300.0, 300.0), (300.1, 300.0), (1e9, 300.0)]


@pytest.mark.parametrize(("asked_s", "expected"), RETRY_AFTER)
@pytest.mark.parametrize("sample", [0.0, 0.999])
def test_a_wish_of_the_service_goes_first(asked_s, expected, sample):
    """What the service asks for is waited, chance or not, up to the policy's cap."""
    assert expected == retry_delay_s(RetryPolicy(), 1, sample, asked_s)


@pytest.mark.parametrize(("asked_s", "expected"), [(None, 10.0), *RETRY_AFTER])
def test_submits_rest_as_long_as_the_service_asks(asked_s, expected):
    """After a 429 submits rest as long as asked, up to the cap, and else one window."""
    assert expected == rate_limit_delay_s(RetryPolicy(), 10.0, asked_s)


@given(st.floats(0, 1e12), strategies.seconds, strategies.samples_in_unit, positive_s)
def test_no_wish_of_the_service_goes_beyond_its_cap(asked_s, cap_s, sample, per_s):
    """Whatever the service asks, we wait no longer than the policy says."""
    policy = RetryPolicy(retry_after_cap_s=cap_s)

    for delay_s in (
        retry_delay_s(policy, 1, sample, asked_s),
        rate_limit_delay_s(policy, per_s, asked_s),
    ):
        assert math.isfinite(delay_s)
        assert delay_s == min(asked_s, cap_s)


@pytest.mark.parametrize("settings", [PollSchedule, RetryPolicy])
def test_settings_are_given_by_name(settings):
    """No one has to count the numbers of a schedule."""
    with pytest.raises(TypeError):
        settings(5)
