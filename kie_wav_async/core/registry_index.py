"""
What a session knows: its entries, found by track, task or attempt, and the counters.

Pure, as `core.registry` is, which changes it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from kie_wav_async.core.counters import Counters
from kie_wav_async.core.state_machine import Phase, TaskEntry
from kie_wav_async.core.timed_out_tasks import TimedOutTasks
from kie_wav_async.core.unknown_submits import UnknownSubmits
from kie_wav_async.models import Statistics, Track, UnknownSubmit

if TYPE_CHECKING:
    from collections.abc import Iterator


class Resolution(NamedTuple):
    """
    What the user said of a submit of unknown outcome, and what that changed.

    Attributes:
        unknown: The submit.

        task_id: The task that it created; `None` if it created nothing.

        entry: What follows the task; `None` without one.

        is_created: Whether that was made for it, or else had followed the task before.

        was_attached: Whether it followed the task as one that was made elsewhere.

        accepted: By how much the counter went up.

        adopted: The same.
    """

    unknown: UnknownSubmit
    task_id: str | None = None
    entry: TaskEntry | None = None
    is_created: bool = False
    was_attached: bool = False
    accepted: int = 0
    adopted: int = 0


class RegistryIndex:
    """
    Holds the entries, and finds them by track, task or attempt.

    `Registry` changes them.
    """

    def __init__(self) -> None:
        self._by_track: dict[Track, TaskEntry] = {}
        self._by_task: dict[str, TaskEntry] = {}
        # Who follows a task beside the first; rare: attached, and then submitted.
        self._more_by_task: dict[str, list[TaskEntry]] = {}
        self._timed_out: TimedOutTasks = TimedOutTasks()
        self._results: OrderedDict[Track, TaskEntry] = OrderedDict()
        # With whether it is known which submit made it, if one of ours did.
        self._ended_tasks: OrderedDict[str, bool] = OrderedDict()
        self._unknown = UnknownSubmits()
        self._resolutions: OrderedDict[str, Resolution] = OrderedDict()
        self._sending: set[str] = set()
        self._used_slots = 0
        self._in_flight = 0
        self._accepted_before = 0
        self.counters = Counters()

    def find(self, track: Track) -> TaskEntry | None:
        """Return the entry of *track* that is not terminal, if there is one."""
        return self._by_track.get(track)

    def find_task(self, task_id: str) -> TaskEntry | None:
        """Return the entry in flight under *task_id*, if there is one."""
        return self._by_task.get(task_id)

    def conversions_of(self, task_id: str) -> tuple[TaskEntry, ...]:
        """Return every entry in flight under *task_id*, the first one first."""
        first = self._by_task.get(task_id)
        return () if first is None else (first, *self._more_by_task.get(task_id, ()))

    def known(self, task_id: str) -> tuple[TaskEntry, ...]:
        """Return every entry that news of *task_id* is for, in flight or kept."""
        kept = self._timed_out.get(task_id)
        return self.conversions_of(task_id) if kept is None else (kept,)

    def find_timed_out(self, track: Track) -> TaskEntry | None:
        """Return the latest entry of *track* whose wait timed out, if one is kept."""
        return self._timed_out.latest_of(track)

    def has_ended(self, task_id: str) -> bool:
        """Return whether the task, not in flight now, is one of the last that ended here."""
        return task_id in self._ended_tasks

    def find_result(self, track: Track) -> TaskEntry | None:
        """Return the remembered success of *track*, if there is one."""
        return self._results.get(track)

    def find_unknown(self, track: Track) -> UnknownSubmit | None:
        """Return the latest attempt at *track* whose outcome is unknown, if there is one."""
        return self._unknown.latest_of(track)

    def unknown_submit(self, attempt_id: str) -> UnknownSubmit | None:
        """Return the attempt of that name if its outcome is unknown."""
        return self._unknown.get(attempt_id)

    def resolved_submit(self, attempt_id: str) -> UnknownSubmit | None:
        """Return the attempt of that name if the user has said what came of it; that may change."""
        word = self._resolutions.get(attempt_id)
        return None if word is None else word.unknown

    def is_resolution(self, attempt_id: str, task_id: str | None) -> bool:
        """Return whether the user's word on an attempt is *task_id*; `None`: that it has none."""
        word = self._resolutions.get(attempt_id)
        return word is not None and word.task_id == task_id

    def unknown_submits(self) -> tuple[UnknownSubmit, ...]:
        """Return every attempt whose outcome is unknown, oldest first."""
        return self._unknown.all()

    def in_flight(self) -> Iterator[TaskEntry]:
        """Yield every entry that is ACCEPTED, oldest first where that is known."""
        yield from self._by_task.values()
        for entries in self._more_by_task.values():
            yield from entries

    def waiting(self) -> tuple[TaskEntry, ...]:
        """Return every entry that is QUEUED, SUBMITTING or UNKNOWN."""
        return tuple(e for e in self._by_track.values() if e.phase is not Phase.ACCEPTED)

    @property
    def sending(self) -> int:
        """How many submits are in progress."""
        return len(self._sending)

    def is_sending(self, attempt_id: str) -> bool:
        """Return whether the attempt of that name is in progress."""
        return attempt_id in self._sending

    @property
    def used_slots(self) -> int:
        """How many conversions of ours are in progress or in flight."""
        return self._used_slots

    @property
    def charges(self) -> int:
        """The most that the submits known to have ended, ever, can have been charged."""
        return self._accepted_before + self.counters.accepted + len(self._unknown)

    def statistics(self) -> Statistics:
        """Return the counters as they are now."""
        return Statistics(
            unknown=len(self._unknown),
            in_flight=self._in_flight,
            **vars(self.counters),
        )
