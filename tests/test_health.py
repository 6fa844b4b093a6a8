from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_wav_async._health import ALIVE_S, LOOKED_BACK, CallbackHealth


def health(ends="", *, called_back_at=None):
    """Return what is known after conversions ended by callback (``c``) or by poll (``p``)."""
    made = CallbackHealth()
    if called_back_at is not None:
        made.called_back(called_back_at)
    for end in ends:
        made.ended(is_called_back=end == "c")
    return made


def test_the_bounds_are_the_documented_ones():
    """Callbacks flow if one came within 15 minutes and the last 20 conversions had theirs."""
    assert 900.0 == ALIVE_S
    assert 20 == LOOKED_BACK


@pytest.mark.parametrize("now", [-1e9, 0.0, 1e9])
def test_without_a_callback_nothing_is_known_to_flow(now):
    """Before the first callback, polling is what there is, whatever the clock begins with."""
    assert not health().is_good(now)
    assert not health("c" * 30).is_good(now)


@pytest.mark.parametrize(
    ("age_s", "is_good"),
    [(0.0, True), (1.0, True), (899.999, True), (900.0, True), (900.001, False), (1e9, False)],
)
def test_a_callback_is_a_sign_of_life_for_15_minutes(age_s, is_good):
    """One callback lets polling rest at once, and for no longer than 15 minutes."""
    assert is_good is health(called_back_at=50.0).is_good(50.0 + age_s)


def test_each_callback_begins_the_15_minutes_anew():
    """The last callback counts, not the first."""
    found = health(called_back_at=0.0)
    found.called_back(800.0)

    assert found.is_good(1_700.0)
    assert not found.is_good(1_701.0)


@pytest.mark.parametrize(
    ("ends", "is_good"),
    [
        ("", True),
        ("c", True),
        ("p", False),
        ("cp", False),
        ("pc", False),
        ("c" * 19 + "p", False),
        ("p" + "c" * 19, False),
        ("p" + "c" * 20, True),
        ("p" * 20 + "c" * 19, False),
        ("p" * 20 + "c" * 20, True),
        ("c" * 100 + "p", False),
        ("p" * 100 + "c" * 20, True),
        ("p" + "c" * 20 + "p", False),
    ],
)
def test_twenty_conversions_in_a_row_needed_no_poll(ends, is_good):
    """One conversion that only a poll noticed means polling until 20 more had callbacks."""
    assert is_good is health(ends, called_back_at=0.0).is_good(0.0)


def test_a_flow_that_stopped_may_begin_again():
    """Silence alone is forgiven by the next callback."""
    found = health("ccc", called_back_at=0.0)
    assert not found.is_good(10_000.0)

    found.called_back(10_000.0)

    assert found.is_good(10_000.0)


@given(ends=st.text("cp", max_size=60), calls=st.lists(st.integers(0, 2_000)))
def test_health_is_what_a_naive_memory_says(ends, calls):
    """Only the last callback and the last 20 ends decide, in whichever order they came."""
    found = health(ends)
    for call in sorted(calls):
        found.called_back(float(call))
    expected = bool(calls) and 2_000 - max(calls) <= 900 and "p" not in ends[-20:]

    assert expected is found.is_good(2_000.0)
