"""
How often callbacks may cause a poll, so that a flood of them spends nothing.

Pure: the caller brings the time, and does the waiting.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

#: Least seconds between two polls of one task that callbacks ask for. Ours; the
#: service documents 3 polls per second and task for its music.
TASK_GAP_S: Final = 2.0

#: Least seconds between any two polls that callbacks ask for: 10 a second.
GAP_S: Final = 0.1


class PollThrottle:
    """
    Says when a poll that a callback asks for may go out.

    Whoever can make callbacks arrive, by replaying a genuine one, shall not be
    able to spend the polls that the account has.
    """

    __slots__ = ("_gap_s", "_last", "next_at")

    def __init__(self, *, least_gap_s: float = 0.0) -> None:
        """Keep at least *least_gap_s* between two, if that is more than the 0.1 s."""
        self._gap_s = max(GAP_S, least_gap_s)
        #: When the next poll may go out, whichever task it asks about.
        self.next_at = -math.inf
        # Only as many as went out in the last seconds.
        self._last: OrderedDict[str, float] = OrderedDict()

    def free_at(self, task_id: str) -> float:
        """Return when the next poll of this task may go out, as far as the task goes."""
        return self._last.get(task_id, -math.inf) + TASK_GAP_S

    def spend(self, task_id: str, now_mono_s: float) -> None:
        """Note that a poll of *task_id* goes out now."""
        self.next_at = now_mono_s + self._gap_s
        self._last[task_id] = now_mono_s
        self._last.move_to_end(task_id)
        while next(iter(self._last.values())) + TASK_GAP_S <= now_mono_s:
            self._last.popitem(last=False)
