"""
Whether a file comes fast enough to be worth waiting for.

A timeout between two pieces does not catch a host that sends one byte every minute.
This looks at how much came over the last while, and only at time spent waiting for
the host, so that a slow disk or a busy reader is not held against it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

#: What must come at least, and over how long. Ours.
LEAST_BYTES_PER_S: Final = 16 * 1024
WINDOW_S: Final = 60.0

# What came is kept in so many sums, however many pieces it came in.
_SLICES: Final = 60


class ThroughputMonitor:
    """
    The rate of one attempt.

    Args:
        least_bytes_per_s: What must come on average.

        window_s:
            Over how long a time of waiting; above 0. Told to a sixtieth of it, in
            favour of the host: what came so much earlier still counts.
    """

    __slots__ = ("_least", "_slice_s", "_sums", "_waited_s", "_window_s")

    def __init__(
        self, least_bytes_per_s: float = LEAST_BYTES_PER_S, window_s: float = WINDOW_S
    ) -> None:
        self._least = least_bytes_per_s * window_s
        self._window_s = window_s
        self._slice_s = window_s / _SLICES
        self._waited_s = 0.0
        # The slices of a window, and the one that is under way.
        self._sums: deque[int] = deque([0], maxlen=_SLICES + 1)

    def record(self, seconds: float, count: int) -> None:
        """Note that after another *seconds* of waiting *count* bytes came at once."""
        before = int(self._waited_s / self._slice_s)
        self._waited_s += seconds
        passed = int(self._waited_s / self._slice_s) - before
        # However long it was, it empties no more slices than there are.
        self._sums.extend([0] * min(passed, _SLICES + 1))
        self._sums[-1] += count

    @property
    def is_too_slow(self) -> bool:
        """Whether less than the least came in the last window; never before one is full."""
        return self._waited_s >= self._window_s and sum(self._sums) < self._least
