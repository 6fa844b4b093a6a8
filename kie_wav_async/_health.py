"""
Do callbacks arrive? Then polling may rest, and is a backstop only.

Judged by what came of conversions, not by promises: a callback has come lately,
and none of the last conversions had to be polled to be noticed.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

#: How long one authentic callback counts as a sign of life. Ours.
ALIVE_S: Final = 900.0

#: How many conversions in a row must not have needed a poll. Ours.
LOOKED_BACK: Final = 20


class CallbackHealth:
    """Remembers when a callback came, and which conversions needed none or a poll."""

    __slots__ = ("_called_back_at", "_needed_poll")

    def __init__(self) -> None:
        """Start without a sign of life."""
        self._called_back_at = -math.inf
        self._needed_poll: deque[bool] = deque(maxlen=LOOKED_BACK)

    def called_back(self, now_mono_s: float) -> None:
        """Note an authentic callback of a conversion of ours."""
        self._called_back_at = now_mono_s

    def ended(self, *, is_called_back: bool) -> None:
        """Note that a conversion of ours ended, and whether a callback had told."""
        self._needed_poll.append(not is_called_back)

    def is_good(self, now_mono_s: float) -> bool:
        """Return whether callbacks flow."""
        is_alive = now_mono_s - self._called_back_at <= ALIVE_S
        return is_alive and not any(self._needed_poll)
