from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_wav_async.downloads.throughput import LEAST_BYTES_PER_S, WINDOW_S, ThroughputMonitor

KIB = 1024
LEAST = 16 * KIB * 60


def paced(*notes, **settings):
    """Return the pace of an attempt to which these pieces came."""
    pace = ThroughputMonitor(**settings)
    for seconds, count in notes:
        pace.record(seconds, count)
    return pace


def test_the_least_is_the_documented_one():
    """A host must send 16 KiB per second on average over a minute."""
    assert 16_384 == LEAST_BYTES_PER_S
    assert 60.0 == WINDOW_S


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ([], False),
        ([(0.0, 0)], False),
        # No verdict before a minute of waiting is over.
        ([(59.999, 0)], False),
        ([(59.0, 0), (0.999, 0)], False),
        ([(1.0, 1)] * 59, False),
        ([(60.0, 0)], True),
        ([(1.0, 1)] * 60, True),
        ([(0.5, 0)] * 120, True),
        # The least, and one byte less.
        ([(60.0, LEAST)], False),
        ([(60.0, LEAST - 1)], True),
        ([(1.0, 16 * KIB)] * 60, False),
        ([(1.0, 16 * KIB)] * 59 + [(1.0, 16 * KIB - 1)], True),
        ([(1.0, 16 * KIB)] * 1_000, False),
        ([(1.0, 16 * KIB - 300)] * 1_000, True),
        # All at the beginning, and then nothing: forgotten after a minute.
        ([(0.0, LEAST)] + [(1.0, 0)] * 60, False),
        ([(0.0, LEAST)] + [(1.0, 0)] * 61, True),
        ([(0.0, 1 << 30)] + [(1.0, 0)] * 61, True),
        ([(30.0, LEAST), (30.0, 0)], False),
        ([(30.0, LEAST), (60.0, 0)], False),
        ([(30.0, LEAST), (61.0, 0)], True),
        # Long silence, and then all at once.
        ([(59.0, 0), (1.0, LEAST)], False),
        ([(3_600.0, LEAST)], False),
        ([(3_600.0, LEAST - 1)], True),
        ([(0.0, 1 << 30), (3_600.0, 1)], True),
        ([(1.0, 1 << 30)] * 100 + [(61.0, 0)], True),
        # Slow, and then fast enough.
        ([(1.0, 0)] * 59 + [(1.0, LEAST)] + [(1.0, 0)] * 60, False),
        ([(1.0, 0)] * 100 + [(1.0, LEAST)], False),
        # A reader that was busy: what had come meanwhile came without waiting.
        ([(0.0, 1)] * 1_000, False),
        ([(0.0, 64 * KIB)] * 10 + [(60.0, 0)], True),
        ([(0.0, 64 * KIB)] * 15 + [(60.0, 0)], False),
    ],
)
def test_less_than_the_least_in_a_minute_is_too_slow(notes, expected):
    """Once a minute was spent waiting, the last one must have brought the least."""
    assert expected is paced(*notes).is_too_slow


def test_other_settings_are_kept():
    """The rate and the time it is taken over may be others."""
    assert not paced((1.0, 100), least_bytes_per_s=50, window_s=2.0).is_too_slow
    assert not paced((2.0, 100), least_bytes_per_s=50, window_s=2.0).is_too_slow
    assert paced((2.0, 99), least_bytes_per_s=50, window_s=2.0).is_too_slow
    # What came just before counts for a sixtieth of the window, and no longer.
    for window_s in (2.0, 600.0):
        came = (0.0, 10**9), (window_s, 0)
        assert not paced(*came, (window_s / 70, 0), window_s=window_s).is_too_slow
        assert paced(*came, (window_s / 50, 0), window_s=window_s).is_too_slow


def test_a_stream_of_single_bytes_takes_no_memory():
    """However many pieces come, and however long it takes, what is kept stays the same."""
    pace = paced(*[(0.001, 1)] * 70_000, *[(1e6, 1)] * 10)

    assert 61 == len(pace._sums)
    assert sys.getsizeof(pace._sums) < 2_000


# Eighths of seconds, so that sums are exact, and a slice of one second.
NOTES = st.lists(
    st.tuples(
        st.integers(0, 80) | st.integers(0, 4_000), st.integers(0, 3) | st.integers(0, 30_000)
    ),
    max_size=60,
)


@given(NOTES, st.integers(1, 2_000))
def test_the_pace_is_what_a_naive_memory_says(notes, least):
    """What came in the last minute decides, and what came in the second before is in doubt."""
    pace = ThroughputMonitor(least)
    moment, arrivals = 0, []
    for eighths, count in notes:
        pace.record(eighths / 8, count)
        moment += eighths
        arrivals.append((moment, count))
        surely = sum(count for at, count in arrivals if at > moment - 60 * 8)
        perhaps = sum(count for at, count in arrivals if at > moment - 61 * 8)
        if moment < 60 * 8 or surely >= least * 60:
            assert not pace.is_too_slow
        elif perhaps < least * 60:
            assert pace.is_too_slow


@given(
    st.lists(st.tuples(st.floats(0, 1e9), st.integers(0, 1 << 40)), max_size=40),
    st.floats(0.001, 1e6),
)
def test_any_pace_is_fast_enough_or_not(notes, window_s):
    """Whatever the times, there is an answer, and none against the host before a window is over."""
    pace = ThroughputMonitor(1.0, window_s)
    waited_s = 0.0
    for seconds, count in notes:
        pace.record(seconds, count)
        waited_s += seconds

        assert pace.is_too_slow in {True, False}
        assert not (waited_s < window_s and pace.is_too_slow)
        assert len(pace._sums) <= 61
