"""
Every conversion of a session, and what has become of it.

What may happen to an entry, and what that costs, is told in `core.state_machine`; this
applies it. `core.registry_index` finds the entries.
What succeeded is remembered, the last 10,000 of them, so that a track asked for
again is not paid again.

Pure: no futures, no clock, no chance. Times are arguments; waiters are someone
else's business.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final, TypeVar

from kie_wav_async.core.registry_index import RegistryIndex, Resolution
from kie_wav_async.core.state_machine import (
    IllegalTransition,
    Origin,
    Phase,
    TaskEntry,
    Transition,
    apply,
    track_of,
)
from kie_wav_async.core.task_outcome import terminal_error, wav_of
from kie_wav_async.errors import (
    ConversionTimeoutError,
    KieWavError,
)
from kie_wav_async.models import (
    SettledBy,
    TaskRecord,
    TaskState,
    Track,
    UnknownSubmit,
    WavFile,
)

if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Iterable

#: How many successes are remembered: an hour and a half of submits at full rate.
RESULT_CACHE_SIZE: Final = 10_000

#: How many tasks that ended at the service are remembered by their ids, so that
#: a callback delivered again is known for what it is.
ENDED_CACHE_SIZE: Final = 10_000

#: How many of the user's words are remembered, so that they can be replaced.
RESOLUTION_CACHE_SIZE: Final = 10_000


K = TypeVar("K")
V = TypeVar("V")


class Registry(RegistryIndex):
    """Applies what happens to the entries."""

    # --- what happens to a submit -----------------------------------------------

    def enqueue(self, track: Track) -> TaskEntry:
        """Open an entry for *track*, which must have none that is not terminal."""
        if track in self._by_track:
            msg = f"{track} has an entry already"
            raise IllegalTransition(msg)
        entry = self._by_track[track] = TaskEntry(track)
        return entry

    def send(self, entry: TaskEntry, attempt_id: str, now_unix_s: float) -> None:
        """Note that the submit goes out now, under the name *attempt_id*."""
        apply(entry, Transition.SEND)
        entry.attempt_id = attempt_id
        entry.submitted_unix_s = now_unix_s
        entry.accepted_at = None
        entry.may_double_charge = self.has_unknown_submit(entry)
        entry.discovered_task_id = ""
        self._sending.add(attempt_id)
        self._used_slots += 1
        self.counters.submitted += 1

    def requeue(self, entry: TaskEntry) -> None:
        """Note that the submit created nothing, and waits for another turn."""
        self._end_submit(entry, Transition.REQUEUE)

    def reject(self, entry: TaskEntry, error: KieWavError) -> None:
        """Note that the submit created nothing, and is over; not for one with an unknown submit."""
        self._verify_free(entry)
        if entry.phase is Phase.SUBMITTING:
            self._end_submit(entry, Transition.REJECT)
        else:
            apply(entry, Transition.REJECT)
        self._end(entry, error)

    def cancel(self, entry: TaskEntry, error: KieWavError) -> None:
        """Cancel the queued submit that nothing waits for; not for one with an unknown submit."""
        self._verify_free(entry)
        apply(entry, Transition.CANCEL)
        self._end(entry, error)

    def mark_unknown(self, entry: TaskEntry, now_unix_s: float) -> UnknownSubmit:
        """Note that the submit may have been accepted, and return it."""
        self._end_submit(entry, Transition.MARK_UNKNOWN)
        track = track_of(entry)
        unknown = UnknownSubmit(
            track=track,
            attempt_id=entry.attempt_id,
            at=dt.datetime.fromtimestamp(now_unix_s, dt.UTC),
        )
        if entry.may_double_charge:
            self.counters.possible_double_charges += 1
        self._unknown.add(unknown)
        return unknown

    def has_unknown_submit(self, entry: TaskEntry) -> bool:
        """Return whether an earlier attempt at the entry's track is of unknown outcome."""
        return bool(self._unknown.attempts_of(entry.track))

    def return_to_unknown(self, entry: TaskEntry) -> UnknownSubmit:
        """Note that a repeat created nothing: the earlier submit stays unknown, and is returned."""
        unknown = self.find_unknown(track_of(entry))
        if unknown is None:
            msg = f"{entry.track} is not in doubt"
            raise IllegalTransition(msg)
        if entry.phase is Phase.SUBMITTING:
            self._end_submit(entry, Transition.RETURN_TO_UNKNOWN)
        else:
            apply(entry, Transition.RETURN_TO_UNKNOWN)
        return unknown

    def retry(self, entry: TaskEntry) -> None:
        """Put an entry of unknown outcome back into the queue."""
        apply(entry, Transition.RETRY)
        entry.attempts = 0

    def accept(
        self,
        entry: TaskEntry,
        task_id: str,
        now_mono_s: float,
        *,
        accepted_unix_s: float | None = None,
    ) -> None:
        """
        Note that the service created *task_id* for the submit in progress.

        *accepted_unix_s* is when, by its own clock; `None` if it did not say.
        """
        if accepted_unix_s is not None:
            entry.accepted_at = dt.datetime.fromtimestamp(accepted_unix_s, dt.UTC)
        self._follow(entry, task_id, now_mono_s, Origin.SUBMITTED)
        self.counters.accepted += 1
        if entry.may_double_charge:
            self.counters.possible_double_charges += 1

    def adopt_existing(self, entry: TaskEntry, task_id: str, now_mono_s: float) -> None:
        """
        Note that the service named *task_id* for the submit in progress: it existed.

        Its record tells whether an attempt of unknown outcome created it; see `attribute`.
        """
        others = self.conversions_of(task_id)
        self._follow(entry, task_id, now_mono_s, Origin.ADOPTED)
        is_known = self._ended_tasks.get(task_id, False) or any(
            other.is_maker_known for other in others
        )
        entry.is_attributed = is_known or not self.has_unknown_submit(entry)
        self.counters.adopted += 1

    def attribute(self, entry: TaskEntry, attempt_id: str | None) -> str | None:
        """
        Note which attempt the record of a task that existed names.

        Returns the attempt of unknown outcome that is thereby explained, if one is.

        Args:
            entry: Its entry.

            attempt_id:
                The attempt; `None` if the record names none, but may be of our
                making: then it explains an unknown submit only where there is just one, and
                no other submit that the task may be of.
        """
        unknowns = self._unknown.attempts_of(track_of(entry))
        if attempt_id is None and len(unknowns) == 1 and entry.origin is not Origin.SUBMITTED:
            attempt_id = unknowns[0]
        # One that names none leaves it open which of several it was.
        entry.is_attributed = attempt_id is not None or not unknowns
        if attempt_id is None or attempt_id not in unknowns:
            return None
        _ = self._unknown.remove(attempt_id)
        self.counters.accepted += 1
        return attempt_id

    def adopt_unknown(
        self, attempt_id: str, task_id: str, now_mono_s: float, *, is_resolution: bool = False
    ) -> TaskEntry:
        """
        Note that the attempt of unknown outcome created *task_id*; return its entry.

        *is_resolution*: it is the user who says so, and may take it back; see `retract`.
        """
        unknown = self._unknown.remove(attempt_id)
        followed = self._by_task.get(task_id)
        was_attached = followed is not None and followed.origin is Origin.ATTACHED
        accepted, adopted = self.counters.accepted, self.counters.adopted
        entry = self._adopt(unknown, task_id, now_mono_s)
        if is_resolution:
            word = Resolution(
                unknown=unknown,
                task_id=task_id,
                entry=entry,
                is_created=entry is not followed,
                was_attached=was_attached and entry is followed,
                accepted=self.counters.accepted - accepted,
                adopted=self.counters.adopted - adopted,
            )
            _remember(self._resolutions, attempt_id, word, RESOLUTION_CACHE_SIZE)
        return entry

    def _adopt(self, unknown: UnknownSubmit, task_id: str, now_mono_s: float) -> TaskEntry:
        entry = self._by_track.get(unknown.track)
        if entry is None or entry.phase is not Phase.UNKNOWN:
            # The track went on under another attempt; this one is followed beside it.
            if entry is not None:
                entry.discovered_task_id = task_id
            followed = self._by_task.get(task_id)
            if followed is not None:
                self._claim(followed, unknown.track)
                return followed
            entry = TaskEntry(unknown.track)
            entry.phase = Phase.DISCOVERED
            self._by_track.setdefault(unknown.track, entry)
        entry.attempt_id = unknown.attempt_id
        self._follow(entry, task_id, now_mono_s, Origin.ADOPTED)
        self.counters.adopted += 1
        self.counters.accepted += 1
        return entry

    def retract(self, attempt_id: str) -> TaskEntry | None:
        """
        Take back the user's word on an attempt: its outcome is unknown again.

        Returns the entry that followed the task for it and is in flight, if there is
        one: UNKNOWN again, if all of its track waits for that attempt. A result that
        came of the word is forgotten.
        """
        word = self._resolutions.pop(attempt_id)
        track, entry = word.unknown.track, word.entry
        self.counters.accepted -= word.accepted
        self.counters.adopted -= word.adopted
        self._unknown.add(word.unknown)
        waiting = self._by_track.get(track)
        if waiting is not None and waiting.discovered_task_id == word.task_id:
            waiting.discovered_task_id = ""
        if entry is None:
            return None
        if entry.phase is Phase.TIMED_OUT:
            # Another entry stands for the task by now, in flight or kept.
            entry = next((e for e in self.known(entry.task_id) if e.track == track), entry)
        if entry.phase is Phase.ACCEPTED:
            return self._detach(entry, word)
        if entry.phase is Phase.TIMED_OUT_KEPT and word.is_created:
            _ = self._timed_out.remove(entry)
        self._ended_tasks.pop(entry.task_id, None)
        if self._results.get(track) is entry:
            del self._results[track]
        return None

    def _detach(self, entry: TaskEntry, word: Resolution) -> TaskEntry | None:
        """Take the track of a word that was wrong from what follows the task."""
        track = word.unknown.track
        is_first = self._by_track.get(track) is entry
        if word.is_created and is_first:
            self._in_flight -= 1
            self._used_slots -= 1
            self._unfollow(entry)
            apply(entry, Transition.RETRACT)
            entry.forget_task()
            return entry
        if word.was_attached:
            entry.origin = Origin.ATTACHED
            self._used_slots -= 1
        elif not word.is_created:
            # A later submit was given the task; it is open again which of them made it.
            entry.is_attributed = not word.accepted
            return None
        # It goes on, and is nobody's.
        entry.track = None
        if is_first:
            del self._by_track[track]
        return None

    def _claim(self, entry: TaskEntry, track: Track) -> None:
        """Note that a task in flight is the one that a lost submit of *track* created."""
        if entry.origin is not Origin.ATTACHED:
            # A later submit was given it, and has been counted, unless a 409 named
            # it and its record did not tell whose it is.
            self.counters.accepted += not entry.is_attributed
            entry.is_attributed = True
            return
        entry.origin = Origin.ADOPTED
        self._used_slots += 1
        if entry.track is None:
            self.set_track(entry, track)
        self.counters.adopted += 1
        self.counters.accepted += 1

    def mark_not_charged(self, attempt_id: str, *, is_resolution: bool = False) -> TaskEntry | None:
        """
        Note that the attempt of unknown outcome was not charged.

        *is_resolution*: it is the user who says so, and may take it back; see `retract`.

        Returns the entry that waited for nothing else, still UNKNOWN: it may be
        withdrawn or sent again. `None` if the track has other unknown submits or went on.
        """
        unknown = self._unknown.remove(attempt_id)
        if is_resolution:
            _remember(
                self._resolutions, attempt_id, Resolution(unknown=unknown), RESOLUTION_CACHE_SIZE
            )
        entry = self._by_track.get(unknown.track)
        if entry is None or self.has_unknown_submit(entry):
            return None
        # One that is in progress was sent at a risk that there was not.
        entry.may_double_charge = False
        return entry if entry.phase is Phase.UNKNOWN else None

    # --- what a ledger knows of earlier runs ---------------------------------------

    def restore_unknown_submits(self, accepted: int, unknowns: Iterable[UnknownSubmit]) -> None:
        """Go on with a ledger: submits *accepted* ever, and those of unknown outcome."""
        self._accepted_before = accepted
        # Not every one of their tracks waits for that: it may have a task, or its WAV.
        for unknown in unknowns:
            self._unknown.add(unknown)

    def restore_unknown(self, track: Track) -> None:
        """Note that all there is of *track* are submits of unknown outcome, if there are."""
        if self._unknown.attempts_of(track) and track not in self._by_track:
            entry = self._by_track[track] = TaskEntry(track)
            entry.phase = Phase.UNKNOWN

    def restore(
        self,
        track: Track,
        task_id: str,
        now_mono_s: float,
        *,
        attempt_id: str,
        submitted_unix_s: float | None,
        accepted_at: dt.datetime | None = None,
    ) -> TaskEntry:
        """
        Follow a task of an earlier run again, of a track that has no task here.

        *submitted_unix_s* is `None` if the task was not made by our submit;
        *accepted_at* is when the service made it, by its own clock, if it said so.
        """
        entry = self._by_track.get(track)
        if entry is None:
            entry = self._by_track[track] = TaskEntry(track)
            entry.phase = Phase.DISCOVERED
        entry.attempt_id = attempt_id
        entry.accepted_at = accepted_at
        origin = Origin.ADOPTED
        if submitted_unix_s is not None:
            origin, entry.submitted_unix_s = Origin.SUBMITTED, submitted_unix_s
        self._follow(entry, task_id, now_mono_s, origin)
        entry.is_attributed = not self.has_unknown_submit(entry)
        return entry

    def restore_result(self, track: Track, wav: WavFile) -> TaskEntry:
        """Remember a success of an earlier run, of a track without an entry."""
        entry = TaskEntry(track)
        entry.task_id = wav.task_id
        entry.phase = Phase.SUCCEEDED
        entry.outcome = wav
        _remember(self._results, track, entry, RESULT_CACHE_SIZE)
        return entry

    def replace_outcome(self, entry: TaskEntry, error: KieWavError) -> None:
        """End a terminal entry with *error* instead: its end could not be written down."""
        entry.outcome = error
        self._ended_tasks.pop(entry.task_id, None)
        if entry.track is not None and self._results.get(entry.track) is entry:
            del self._results[entry.track]

    # --- what happens to a task ---------------------------------------------------

    def attach(self, task_id: str, track: Track | None, now_mono_s: float) -> TaskEntry:
        """Open an entry for a task submitted elsewhere, which must not be in flight here."""
        entry = TaskEntry(track)
        entry.phase = Phase.DISCOVERED
        if track is not None:
            self._by_track.setdefault(track, entry)
        self._follow(entry, task_id, now_mono_s, Origin.ATTACHED)
        return entry

    def set_track(self, entry: TaskEntry, track: Track) -> None:
        """Note what an attached task converts, once that is known."""
        entry.track = track
        self._by_track.setdefault(track, entry)

    def observe(
        self,
        entry: TaskEntry,
        record: TaskRecord | None,
        now_mono_s: float,
        settled_by: SettledBy,
        *,
        is_hint: bool = False,
        created_at: dt.datetime | None = None,
    ) -> bool:
        """
        Take in what the service says of a task; return whether this settled it.

        *record* is `None` if the service has none. News about an entry that is
        terminal is counted if it is terminal too, and changes nothing. A poll that
        a callback caused (*is_hint*) is not counted among those that may bring no
        news: replayed callbacks must not use up our patience with the service.
        *created_at* is when the service made the task, if the record says so in a way
        that can be compared with other clocks.
        """
        if entry.phase not in {Phase.ACCEPTED, Phase.TIMED_OUT_KEPT}:
            self.record_late(record)
            return False
        error = terminal_error(entry, record, now_mono_s, is_hint=is_hint)
        if error is not None:
            apply(entry, Transition.FAIL)
            self.counters.failed += 1
            self._end(entry, error)
            return True
        if record is None or record.state is not TaskState.SUCCEEDED or record.wav_url is None:
            # A success without a file we can read: the file may be named later.
            return False
        apply(entry, Transition.SUCCEED)
        if settled_by == "poll":
            self.counters.settled_by_poll += 1
        else:
            self.counters.settled_by_callback += 1
        self._end(entry, wav_of(entry, record.wav_url, settled_by, created_at))
        return True

    def record_late(self, record: TaskRecord | None) -> None:
        """Note what came of a poll whose task ended, or was given up, meanwhile."""
        self.counters.duplicate_results += (
            record is not None and record.state is not TaskState.PENDING
        )

    def time_out(self, entry: TaskEntry, timeout_s: float, now_mono_s: float) -> None:
        """Note that we stop waiting for the task; it may still finish, and is kept."""
        apply(entry, Transition.TIME_OUT)
        self.counters.timed_out += 1
        self._end(
            entry,
            ConversionTimeoutError(
                timeout_s=timeout_s,
                task_id=entry.task_id,
                track=entry.track,
                answer=entry.unread_response,
            ),
        )

        self._keep_timed_out(entry, now_mono_s)

    def rejoin(self, entry: TaskEntry, now_mono_s: float) -> None:
        """Follow a kept task again, as if it had just been accepted."""
        self._follow(entry, entry.task_id, now_mono_s, entry.origin)
        if entry.track is not None:
            self._by_track.setdefault(entry.track, entry)

    # --- inside -------------------------------------------------------------------

    def _keep_timed_out(self, ended: TaskEntry, now_mono_s: float) -> None:
        """Keep the task of an entry that timed out, unless another one still follows it."""
        follower = self._by_task.get(ended.task_id)
        if follower is not None:
            if ended.track is not None and follower.track in {None, ended.track}:
                self.set_track(follower, ended.track)
            return
        entry = TaskEntry(ended.track)
        entry.phase = Phase.TIMED_OUT_KEPT
        entry.copy_task(ended)
        entry.accepted_mono_s = now_mono_s
        self._timed_out.add(entry, now_mono_s)

    def _verify_free(self, entry: TaskEntry) -> None:
        if self.has_unknown_submit(entry):
            msg = f"{entry.track} is in doubt"
            raise IllegalTransition(msg)

    def _end_submit(self, entry: TaskEntry, event: Transition) -> None:
        apply(entry, event)
        self._sending.discard(entry.attempt_id)
        self._used_slots -= 1

    def _follow(self, entry: TaskEntry, task_id: str, now_mono_s: float, origin: Origin) -> None:
        was_sending = entry.phase is Phase.SUBMITTING
        apply(entry, Transition.ACCEPT)
        if (kept := self._timed_out.get(task_id)) is not None:
            _ = self._timed_out.remove(kept)
        entry.task_id = task_id
        entry.origin = origin
        entry.accepted_mono_s = now_mono_s
        if self._by_task.setdefault(task_id, entry) is not entry:
            self._more_by_task.setdefault(task_id, []).append(entry)
        self._in_flight += 1
        if was_sending:
            self._sending.discard(entry.attempt_id)
        elif origin is not Origin.ATTACHED:
            # An unknown submit gave its place back; it takes one again, over
            # the limit if need be.
            self._used_slots += 1

    def _end(self, entry: TaskEntry, outcome: WavFile | KieWavError) -> None:
        """Take a terminal entry out of the index."""
        entry.outcome = outcome
        if entry.task_id:
            if not self._timed_out.remove(entry):
                self._in_flight -= 1
                self._used_slots -= entry.origin is not Origin.ATTACHED
                self._unfollow(entry)
            if entry.phase is not Phase.TIMED_OUT:
                is_known = entry.is_maker_known or self._ended_tasks.get(entry.task_id, False)
                _remember(self._ended_tasks, entry.task_id, is_known, ENDED_CACHE_SIZE)
        if entry.track is None:
            return
        if self._by_track.get(entry.track) is entry:
            del self._by_track[entry.track]
        if entry.phase is Phase.SUCCEEDED:
            _remember(self._results, entry.track, entry, RESULT_CACHE_SIZE)

    def _unfollow(self, entry: TaskEntry) -> None:
        """Take an entry out of those that follow its task; the next one steps forward."""
        beside = self._more_by_task.get(entry.task_id)
        if beside is None:
            del self._by_task[entry.task_id]
            return
        if self._by_task[entry.task_id] is entry:
            self._by_task[entry.task_id] = beside.pop(0)
        else:
            beside.remove(entry)
        if not beside:
            del self._more_by_task[entry.task_id]


def _remember(cache: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Put *key* last; the first one goes if there are more than *most*."""
    cache[key] = value
    cache.move_to_end(key)
    if len(cache) > most:
        cache.popitem(last=False)
