"""
Whether callbacks arrive, so that polling may wait for them.

Judged by how conversions ended. Callbacks are healthy while each of the last 10
conversions was settled by a callback, or by the poll that a callback caused. One
conversion that needed a poll of its own ends that, and so does an authentic
callback for a task that is not ours: the callback URL is then shared, for example
with another replica, which may receive the callbacks for our tasks.
"""

from __future__ import annotations

from typing import Final

#: How many conversions in a row must have been settled by callbacks.
HISTORY_LENGTH: Final = 10


class CallbackHealth:
    """
    Counts the conversions in a row that callbacks settled.

    Attributes:
        is_healthy: Whether callbacks are healthy.
    """

    __slots__ = ("_in_a_row", "_was_lost")

    def __init__(self) -> None:
        self._in_a_row = 0
        self._was_lost = False

    @property
    def is_healthy(self) -> bool:
        """Whether callbacks are healthy."""
        return self._in_a_row >= HISTORY_LENGTH

    def record_end(self, *, is_called_back: bool) -> None:
        """Note that a conversion of ours ended, and whether a callback settled it."""
        if is_called_back:
            self._in_a_row += 1
        else:
            self.mark_unhealthy()

    def mark_unhealthy(self) -> None:
        """Note a reason to wait for callbacks no more."""
        self._was_lost |= self.is_healthy
        self._in_a_row = 0

    def pop_loss(self) -> bool:
        """Return whether callbacks have stopped being healthy since this was last asked."""
        was_lost, self._was_lost = self._was_lost, False
        return was_lost
