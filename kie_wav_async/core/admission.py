"""
What a request for a track gets: what there is of it, or a new place in the queue.

A track in flight is joined, a remembered result is returned, one whose wait timed out is
joined again, and one whose submit is unknown is refused: in none of these is anything
sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_wav_async.core.policies import RESUBMIT_AFTER_S
from kie_wav_async.core.state_machine import Phase
from kie_wav_async.core.submit_errors import unknown_error

if TYPE_CHECKING:
    from kie_wav_async.core.effects import Now
    from kie_wav_async.core.following import Following
    from kie_wav_async.core.polls import Polls
    from kie_wav_async.core.registry import Registry
    from kie_wav_async.core.state_machine import TaskEntry
    from kie_wav_async.core.submit_ends import SubmitEnds
    from kie_wav_async.core.submit_queue import SubmitQueue
    from kie_wav_async.models import Track


class Admission:
    """Decides whether a track is submitted when it is asked for."""

    def __init__(
        self,
        registry: Registry,
        queue: SubmitQueue,
        polls: Polls,
        following: Following,
        ends: SubmitEnds,
    ) -> None:
        self._registry = registry
        self._queue = queue
        self._polls = polls
        self._following = following
        self._ends = ends

    def ask(self, track: Track, now: Now, *, again: bool, is_patient: bool) -> TaskEntry:
        """Return the entry of *track*; see `SessionCore.ask`."""
        registry = self._registry
        entry = registry.find(track)
        if entry is not None and entry.phase is not Phase.UNKNOWN:
            if again:
                msg = f"{track} is in flight: again=True is for settled and unknown ones"
                raise ValueError(msg)
            entry.waits_for_maintenance |= is_patient
            return entry
        if not again and (known := self._find_waiting(entry, track, now)) is not None:
            known.waits_for_maintenance |= is_patient
            return known
        if (spent := self._queue.charge_limit()) is not None:
            raise spent.about(track=track)
        if entry is None:
            entry = registry.enqueue(track)
        else:
            self._queue.remove(entry)
            registry.retry(entry)
        entry.is_again = again
        entry.waits_for_maintenance = is_patient
        self._queue.add(entry)
        # It may wait for a slot, so for news of those in flight.
        self._polls.resume(now.mono_s)
        return entry

    def _find_waiting(self, entry: TaskEntry | None, track: Track, now: Now) -> TaskEntry | None:
        """
        Return what there is of a track that is not in flight, if that will do.

        Raises:
            SubmitUnknownError: A submit of it is unknown, and is not ours to repeat.
        """
        registry = self._registry
        if entry is not None and self._queue.is_delayed(entry):
            return entry
        if entry is None and (known := registry.find_result(track)) is not None:
            return known
        if entry is None and (kept := registry.find_timed_out(track)) is not None:
            return self._following.rejoin(kept.task_id, now.mono_s)
        unknown = registry.find_unknown(track)
        if unknown is None:
            return None
        if entry is None or not self._ends.may_repeat(track):
            raise unknown_error(unknown, "an earlier submit has no known fate")
        # If its time for a repeat came when nothing waited, it is now.
        delay_s = unknown.at.timestamp() + RESUBMIT_AFTER_S - now.unix_s
        if delay_s <= 0:
            return None
        self._queue.schedule(entry, now.mono_s + min(delay_s, RESUBMIT_AFTER_S))
        return entry
