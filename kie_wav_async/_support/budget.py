"""
How often something that anybody can cause may be reported.

Pure: the caller brings the time.
"""

from __future__ import annotations


class Budget:
    """
    Admits so many reports in a period, and counts those that it leaves out.

    Args:
        count: Most reports in a period.

        period_s: Length of a period, in seconds; it begins with its first report.
    """

    __slots__ = ("_began_s", "_count", "_left_out", "_period_s", "_used")

    def __init__(self, count: int, period_s: float) -> None:
        self._count = count
        self._period_s = period_s
        self._began_s: float | None = None
        self._used = 0
        self._left_out = 0

    def admit(self, now_s: float) -> int | None:
        """
        Return how many were left out since the last report; `None`: leave this one out.

        Args:
            now_s: The time of any one clock, in seconds. A clock that was set back
                begins a new period.
        """
        if self._began_s is None or not 0.0 <= now_s - self._began_s < self._period_s:
            self._began_s = now_s
            self._used = 0
        if self._used == self._count:
            self._left_out += 1
            return None
        self._used += 1
        left_out, self._left_out = self._left_out, 0
        return left_out
