"""
The submit limiter: a true sliding window that holds whatever the latency.

Theory of operation. The service counts a submit at a moment we cannot see:
somewhere between the moment we send it and the moment we see its answer. A
place in the window is therefore taken when a submit goes out, and is free again
``per_s`` after its *answer* was seen. The next submit in that place arrives at
least ``per_s`` after the last one did, whatever the network did to either; with
``count`` places the service never sees more than ``count`` in any window of
``per_s``. The price is small: ``count`` submits per (``per_s`` + round trip).

Pure: the caller brings the time, and does the waiting.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kie_wav_async.core.policies import RateLimit


class SlidingWindowLimiter:
    """
    Says whether a submit may go out now, and if not, when to ask again.

    Times are monotonic seconds and never go back between calls.
    """

    __slots__ = ("_free_at", "_limit", "_paused_until", "_taken")

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit
        self._taken = 0
        # Release times never go back, so appending keeps them in order.
        self._free_at: deque[float] = deque()
        self._paused_until = -math.inf

    def acquire(self, now_mono_s: float) -> float | None:
        """
        Take a place and return `None`, or return the moment to ask again.

        The moment is infinite if every place is held by a submit that has no
        answer yet: ask again after the next `release`.
        """
        if now_mono_s < self._paused_until:
            return self._paused_until
        while self._free_at and self._free_at[0] <= now_mono_s:
            self._free_at.popleft()
        if self._taken + len(self._free_at) >= self._limit.count:
            return self._free_at[0] if self._free_at else math.inf
        self._taken += 1
        return None

    def release(self, now_mono_s: float) -> None:
        """Note that the answer to a submit, or its failure, was seen now."""
        self._taken -= 1
        self._free_at.append(now_mono_s + self._limit.per_s)

    def pause(self, until_mono_s: float) -> None:
        """Grant no place before *until_mono_s*; an earlier pause is not shortened."""
        self._paused_until = max(self._paused_until, until_mono_s)

    def restore(self, free_at_mono_s: Iterable[float]) -> None:
        """Take the places of submits of an earlier run, free again at the moments given."""
        self._free_at.extend(sorted(free_at_mono_s)[-self._limit.count :])
