"""
How fast something has gone on over the last while.

Pure: the caller brings the time.
"""

from __future__ import annotations

from collections import deque


class RateMeter:
    """
    Measures a rate from totals that are noted from time to time.

    Args:
        span_s: How far back it looks, in seconds; above 0.

        step_s: Totals noted within so many seconds count as one, so that many notes
            cost little.

    Attributes:
        covered_s: How far back it looks so far, in seconds: *span_s*, and up to one
            note more, once so much has passed.

        done: How much was done in that time.
    """

    __slots__ = ("_samples", "_span_s", "_step_s")

    def __init__(self, span_s: float, step_s: float = 0.0) -> None:
        self._span_s = span_s
        self._step_s = step_s
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, at_s: float, total: int) -> None:
        """Note that *total* was done by *at_s*, which never goes back."""
        samples = self._samples
        if len(samples) > 1 and samples[-1][0] - samples[-2][0] < self._step_s:
            _ = samples.pop()
        samples.append((at_s, total))
        while len(samples) > 2 and samples[1][0] <= at_s - self._span_s:  # noqa: PLR2004 - a first and a last one
            _ = samples.popleft()

    @property
    def covered_s(self) -> float:
        return self._samples[-1][0] - self._samples[0][0] if self._samples else 0.0

    @property
    def done(self) -> int:
        return self._samples[-1][1] - self._samples[0][1] if self._samples else 0

    @property
    def per_s(self) -> float:
        """What is done in a second; 0 while that is not known."""
        return max(0, self.done) / self.covered_s if self.covered_s > 0 else 0.0
