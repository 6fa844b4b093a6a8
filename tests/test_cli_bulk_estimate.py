"""How long a catalog takes and what it may cost: arithmetic, and words for it."""

from __future__ import annotations

import pytest

from kie_wav_async import RateLimit
from kie_wav_async.cli.bulk.estimate import (
    Durations,
    TrackCounts,
    bytes_words,
    count_words,
    duration_words,
    most_charges,
    submits_per_s,
    time_left_s,
)
from kie_wav_async.ledger import TrackState

RATE = RateLimit(20, per_s=10.0)


def tally(**counts: int) -> TrackCounts:
    """Return a tally with *counts* by the names of the states."""
    return TrackCounts({TrackState(name): count for name, count in counts.items()})


def test_every_track_is_counted_once() -> None:
    """What is submitted or not, and what ended how, adds up to all tracks."""
    each = TrackCounts(dict.fromkeys(TrackState, 1))

    assert len(TrackState) == each.total
    waiting = each.of(TrackState.PLANNED, TrackState.SUBMITTING)
    assert each.total == each.submitted + waiting
    assert each.submitted == each.in_flight + each.unknown + each.converted + each.failed


@pytest.mark.parametrize(
    ("resubmits", "charges", "max_charges", "expected"),
    [
        (False, 0, None, 10),
        (True, 0, None, 23),
        (False, 5, 12, 7),
        (False, 5, 100, 10),
        (True, 5, 17, 12),
        (False, 5, 5, 0),
        (False, 9, 5, 0),
    ],
)
def test_most_charges(resubmits, charges, max_charges, expected) -> None:
    """The worst case is a charge per submit to come, and per repeat of one, within the cap."""
    most = most_charges(
        tally(planned=10, unknown=3, accepted=7),
        resubmits=resubmits,
        charges=charges,
        max_charges=max_charges,
    )

    assert expected == most


@pytest.mark.parametrize(
    ("submits", "minutes"), [(10_000, 83), (100_000, 833)], ids=["10,000", "100,000"]
)
def test_the_window_rules(submits: int, minutes: float) -> None:
    """At 20 submits per 10 s 10,000 tracks take 83 minutes, and 100,000 take 14 hours."""
    left_s = time_left_s(tally(planned=submits), submits, RATE, 400, conversion_s=60.0)

    assert minutes == pytest.approx(left_s / 60, abs=1.5)


def test_places_in_flight_may_rule() -> None:
    """Few places and long conversions are slower than the window."""
    assert 2.0 == submits_per_s(RATE, 400, 120.0)
    assert 0.1 == submits_per_s(RATE, 12, 120.0)
    assert 2.0 == submits_per_s(RATE, 1, 0.0)


def test_what_is_left() -> None:
    """With nothing to submit it takes one conversion if one is in flight, and else no time."""
    assert 60.0 == time_left_s(tally(accepted=1), 0, RATE, 400, conversion_s=60.0)
    assert 0.0 == time_left_s(tally(succeeded=9), 0, RATE, 400, conversion_s=60.0)
    assert 60.0 == time_left_s(tally(planned=20), 20, RATE, 400, conversion_s=60.0)


def test_a_run_that_is_slower() -> None:
    """A speed below the window's counts for what is left, and one above it does not."""
    left = tally(planned=1_020)

    assert 1_060.0 == time_left_s(left, 1_020, RATE, 400, conversion_s=60.0, measured_per_s=1.0)
    assert 560.0 == time_left_s(left, 1_020, RATE, 400, conversion_s=60.0, measured_per_s=5.0)
    assert 560.0 == time_left_s(left, 1_020, RATE, 400, conversion_s=60.0, measured_per_s=0.0)


def test_how_long_conversions_take() -> None:
    """Before the first has ended a usual time is taken, and nonsense changes nothing."""
    durations = Durations()
    assert 120.0 == durations.mean_s
    for seconds in (float("nan"), float("inf"), -5.0):
        durations.note(seconds)
    assert 120.0 == durations.mean_s
    durations.note(60.0)
    assert 60.0 == durations.mean_s
    for _ in range(200):
        durations.note(30.0)
    assert 30.0 == pytest.approx(durations.mean_s, abs=0.1)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "1 s"),
        (4.2, "5 s"),
        (89.0, "89 s"),
        (90.0, "2 min"),
        (4_980.0, "83 min"),
        (5_400.0, "1.5 h"),
        (50_000.0, "14 h"),
        (500_000.0, "5.8 days"),
    ],
)
def test_time_in_words(seconds: float, expected: str) -> None:
    """A length of time is told with two digits and in a unit that fits it."""
    assert expected == duration_words(seconds)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1 kB"),
        (32_000_000, "32 MB"),
        (999_600_000, "1 GB"),
        (320_000_000_000, "320 GB"),
        (32_000_000_000_000, "32 TB"),
    ],
)
def test_bytes_in_words(size: int, expected: str) -> None:
    """A size is told as disks are sold."""
    assert expected == bytes_words(size)


def test_counts_in_words() -> None:
    """One is told in the singular, and thousands are apart."""
    assert "1 track" == count_words(1, "track")
    assert "0 tracks" == count_words(0, "track")
    assert "12,345 tracks are" == count_words(12_345, "track is", "tracks are")
