"""Whether new submits wait because files are saved too slowly: arithmetic."""

from __future__ import annotations

import pytest

from kie_wav_async.cli.bulk.backpressure import LONGEST_S, Backpressure

MB = 1_000_000


def run(
    throttle: Backpressure, *, seconds: int, per_s: float, begin: tuple[int, int] = (0, 0)
) -> None:
    """Have bytes come at a speed, looked at every second."""
    began_s, received = begin
    for second in range(seconds + 1):
        throttle.note(began_s + second, round(received + per_s * second), is_busy=True)


def test_an_unknown_speed_holds_nothing() -> None:
    """Before a minute of saving nobody knows how fast it is, and nothing waits."""
    throttle = Backpressure()
    assert throttle.bytes_per_s is None
    assert not throttle.decide(1e18)
    run(throttle, seconds=59, per_s=1.0)

    assert throttle.bytes_per_s is None
    assert not throttle.decide(1e18)


def test_half_of_the_retention() -> None:
    """More than a week's work makes submits wait, and they go on once it is clearly less."""
    throttle = Backpressure()
    run(throttle, seconds=120, per_s=MB)
    week = MB * 7 * 86_400

    assert pytest.approx(MB) == throttle.bytes_per_s
    assert [False, True, True, False, False, True] == [
        throttle.decide(share * week) for share in (0.99, 1.01, 0.95, 0.85, 0.95, 1.01)
    ]
    assert LONGEST_S == 7 * 86_400


def test_nothing_comes() -> None:
    """That nothing comes at all is believed after ten minutes; then whatever there is waits."""
    throttle = Backpressure()
    run(throttle, seconds=599, per_s=0.0)
    before = throttle.bytes_per_s
    run(throttle, seconds=2, per_s=0.0, begin=(599, 0))

    assert before is None
    assert 0.0 == throttle.bytes_per_s
    assert throttle.decide(1.0)
    assert not throttle.decide(0.0)


def test_idle_time_is_no_slowness() -> None:
    """Time in which there was nothing to save says nothing of the speed."""
    throttle = Backpressure()
    run(throttle, seconds=100, per_s=MB)
    for second in range(100, 100_000, 10):
        throttle.note(second, 100 * MB, is_busy=False)

    assert pytest.approx(MB) == throttle.bytes_per_s


def test_only_the_last_minutes_count() -> None:
    """The speed is that of the last ten minutes of saving, and its memory does not grow."""
    throttle = Backpressure()
    run(throttle, seconds=10_000, per_s=MB)
    run(throttle, seconds=600, per_s=10.0, begin=(10_000, 10_000 * MB))

    assert pytest.approx(10.0, rel=0.01) == throttle.bytes_per_s
    assert len(throttle._meter._samples) < 130
