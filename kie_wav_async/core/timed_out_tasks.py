"""The tasks whose wait timed out: known, and not polled."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from kie_wav_async.protocol.api_constants import KIE_WAV

if TYPE_CHECKING:
    from kie_wav_async.core.state_machine import TaskEntry
    from kie_wav_async.models import Track

#: How long a task whose wait timed out is kept: as long as its file.
TIMED_OUT_KEPT_S: Final = KIE_WAV.retention_days * 86_400.0

#: Most tasks kept: 400 in flight that all time out after 15 minutes reach this in
#: two and a half days. One takes about 800 bytes.
MAX_TIMED_OUT: Final = 100_000


class TimedOutTasks:
    """Keeps an entry for each task whose wait timed out, the last 100,000 for 14 days."""

    __slots__ = ("_by_task", "_by_track")

    def __init__(self) -> None:
        # Oldest first.
        self._by_task: OrderedDict[str, TaskEntry] = OrderedDict()
        self._by_track: dict[Track, list[TaskEntry]] = {}

    def get(self, task_id: str) -> TaskEntry | None:
        """Return the entry of a task, if it is kept."""
        return self._by_task.get(task_id)

    def latest_of(self, track: Track) -> TaskEntry | None:
        """Return the latest entry of *track*, if one is kept."""
        kept = self._by_track.get(track)
        return kept[-1] if kept else None

    def add(self, entry: TaskEntry, now_mono_s: float) -> None:
        """Keep *entry*, whose wait timed out now; the oldest go if there are too many."""
        self._by_task[entry.task_id] = entry
        if entry.track is not None:
            self._by_track.setdefault(entry.track, []).append(entry)
        oldest = next(iter(self._by_task.values()))
        while (
            len(self._by_task) > MAX_TIMED_OUT
            or now_mono_s - oldest.accepted_mono_s >= TIMED_OUT_KEPT_S
        ):
            self.remove(oldest)
            oldest = next(iter(self._by_task.values()))

    def remove(self, entry: TaskEntry) -> bool:
        """Keep an entry no longer; return whether it was kept."""
        if self._by_task.get(entry.task_id) is not entry:
            return False
        del self._by_task[entry.task_id]
        if entry.track is not None:
            others = self._by_track[entry.track]
            others.remove(entry)
            if not others:
                del self._by_track[entry.track]
        return True
