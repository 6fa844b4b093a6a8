from __future__ import annotations

from kie_wav_async._support.rate_meter import RateMeter


def test_the_speed_of_the_last_minute() -> None:
    """The speed is that of the last minute, whatever was before."""
    meter = RateMeter(60.0)
    assert 0.0 == meter.per_s
    meter.note(0.0, 1_000)
    assert 0.0 == meter.per_s
    assert meter.covered_s < 30.0
    for second in range(1, 301):
        meter.note(float(second), 1_000 + 2 * max(0, second - 200))

    assert 2.0 == meter.per_s
    assert meter.covered_s >= 30.0
    assert len(meter._samples) <= 62


def test_what_is_planned_again_is_no_speed() -> None:
    """A number that goes back is no negative speed."""
    meter = RateMeter(60.0)
    meter.note(0.0, 10)
    meter.note(10.0, 5)

    assert 0.0 == meter.per_s


def test_nothing_noted() -> None:
    """Before anything was noted nothing was done, in no time."""
    meter = RateMeter(60.0)
    assert (0.0, 0, 0.0) == (meter.covered_s, meter.done, meter.per_s)


def test_steps() -> None:
    """Totals within a step count as one, so that what is kept does not grow."""
    meter = RateMeter(60.0, 5.0)
    for second in range(10_000):
        meter.note(second, 2 * second)
    assert 2.0 == meter.per_s
    assert 60.0 <= meter.covered_s <= 70.0
    assert len(meter._samples) < 20
