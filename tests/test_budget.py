"""How often something that anybody can cause is reported."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kie_wav_async._support.budget import Budget


def test_the_first_ones_are_reported() -> None:
    """As many as the budget has are reported at once, and no more in its period."""
    budget = Budget(3, 60.0)
    assert [0, 0, 0, None, None] == [budget.admit(5.0) for _ in range(5)]
    assert None is budget.admit(64.9)


def test_the_next_period_tells_how_many_were_left_out() -> None:
    """A period ends with its last instant, and the first report of the next has the count."""
    budget = Budget(2, 60.0)
    for _ in range(10):
        budget.admit(5.0)
    assert [8, 0, None] == [budget.admit(65.0) for _ in range(3)]
    assert [1, 0] == [budget.admit(125.0) for _ in range(2)]


def test_a_quiet_time_leaves_nothing_out() -> None:
    """What is reported now and then is reported always, and nothing is left out."""
    budget = Budget(1, 60.0)
    assert [0] * 5 == [budget.admit(60.0 * n) for n in range(5)]


def test_a_clock_that_was_set_back() -> None:
    """A clock that goes back holds up no report."""
    budget = Budget(1, 60.0)
    assert [0, None, 1] == [budget.admit(now) for now in (1_000.0, 1_059.0, 10.0)]


@given(st.lists(st.integers(0, 1_000)), st.integers(1, 5))
def test_none_is_lost_and_none_is_too_many(times, count) -> None:
    """Reported and left out make up all, and no period has more than its count."""
    budget = Budget(count, 60.0)
    admitted = [(at, told) for at in sorted(times) if (told := budget.admit(at)) is not None]
    # What was left out since the last report is not told yet.
    rest = budget.admit(2_000.0)
    assert rest is not None
    assert len(times) == len(admitted) + sum(told for _, told in admitted) + rest
    for at, _ in admitted:
        # Two periods may meet within one.
        assert sum(at <= other < at + 60 for other, _ in admitted) <= 2 * count
