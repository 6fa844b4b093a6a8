from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_wav_async.core.callback_health import HISTORY_LENGTH, CallbackHealth


def health(ends=""):
    """Return what is known after ends by callback (``c``), by poll (``p``), or a stranger's."""
    made = CallbackHealth()
    for end in ends:
        if end == "s":
            made.mark_unhealthy()
        else:
            made.record_end(is_called_back=end == "c")
    return made


def test_the_bound_is_the_documented_one():
    """Callbacks are healthy once they have settled the last 10 conversions."""
    assert 10 == HISTORY_LENGTH


@pytest.mark.parametrize(
    ("ends", "is_good"),
    [
        ("", False),
        ("c", False),
        ("c" * 9, False),
        ("c" * 10, True),
        ("c" * 100, True),
        ("c" * 100 + "p", False),
        ("c" * 100 + "s", False),
        ("p" + "c" * 9, False),
        ("p" + "c" * 10, True),
        ("s" + "c" * 9, False),
        ("s" + "c" * 10, True),
        ("c" * 9 + "p" + "c", False),
        ("c" * 9 + "p" + "c" * 9, False),
        ("c" * 10 + "p" + "c" * 10, True),
    ],
)
def test_ten_conversions_in_a_row_are_settled_by_callbacks(ends, is_good):
    """One that needed a poll, or a callback of a task not ours, and it takes 10 more."""
    assert is_good is health(ends).is_healthy


@pytest.mark.parametrize(("ends", "times"), [("", 0), ("c" * 9, 0), ("c" * 10, 1)])
def test_the_end_of_health_is_told_once(ends, times):
    """That callbacks are no longer healthy is reported once, and only then."""
    found = health(ends)

    found.record_end(is_called_back=False)
    found.mark_unhealthy()

    assert [times == 1, False] == [found.pop_loss(), found.pop_loss()]


@given(ends=st.text("cps", max_size=60))
def test_health_is_what_a_naive_memory_says(ends):
    """Only the last 10 ends decide, with nothing else among them."""
    assert health(ends).is_healthy is (ends[-10:] == "c" * 10)
