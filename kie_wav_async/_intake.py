"""
What is asked for: the conversion there is of a track, one of an earlier run, or a new one.

Nothing is sent for a track that is in flight, has succeeded, is in doubt, or has a
task whose wait timed out, which is then waited for again; who goes on the wire is
the submitter's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_wav_async._ledger_models import TrackState
from kie_wav_async._lifecycle import Phase
from kie_wav_async._models import Track, WavFile, verify_type
from kie_wav_async._schedule import RESUBMIT_AFTER_S
from kie_wav_async._submitter import SUCCESSES, exists_error, unknown_error

if TYPE_CHECKING:
    from kie_wav_async._conversion import Conversion
    from kie_wav_async._desk import Desk
    from kie_wav_async._ledger_models import Standing
    from kie_wav_async._poller import Poller
    from kie_wav_async._submitter import Submitter
    from kie_wav_async._turns import Turns


class Intake:
    """Takes tracks, and what the ledger knows of them."""

    def __init__(self, desk: Desk, poller: Poller, turns: Turns, submitter: Submitter) -> None:
        """Start with nothing taken."""
        self._desk = desk
        self._registry = desk.registry
        self._poller = poller
        self._turns = turns
        self._submitter = submitter

    def take(self, track: Track, *, again: bool = False, is_patient: bool = False) -> Conversion:
        """
        Return the conversion of *track*: the one there is, or a new one in the queue.

        Raises:
            TypeError: *track* is no `Track`.

            ValueError: *again* for a track in flight.

            SubmitUnknownError: An earlier submit of the track is in doubt.

            ChargeLimitError: ``max_charges`` is reached.

            SessionClosedError: The session was closed.
        """
        self._desk.hub.verify_open()
        verify_type(track, Track, "track")
        conversion = self._registry.find(track)
        if conversion is not None and conversion.phase is not Phase.UNKNOWN:
            if again:
                msg = f"{track} is in flight: again=True is for settled and unknown ones"
                raise ValueError(msg)
            conversion.is_patient |= is_patient
            return conversion
        if not again and (known := self._find_waiting(conversion, track)) is not None:
            known.is_patient |= is_patient
            return known
        if (spent := self._turns.charge_limit()) is not None:
            raise spent.about(track=track)
        if conversion is None:
            conversion = self._registry.enqueue(track)
        else:
            self._turns.remove(conversion)
            self._registry.resend(conversion)
        conversion.is_again = again
        conversion.is_patient = is_patient
        self._turns.add(conversion)
        # It may wait for a place, so for news of those in flight.
        self._poller.revive()
        self._turns.pump()
        return conversion

    def _find_waiting(self, conversion: Conversion | None, track: Track) -> Conversion | None:
        """
        Return what there is of a track that is not in flight, if that will do.

        Raises:
            SubmitUnknownError: There is a doubt, and it is not for us to repeat the submit.
        """
        if conversion is not None and self._turns.is_delayed(conversion):
            return conversion
        if conversion is None and (known := self._registry.find_result(track)) is not None:
            return known
        if conversion is None and (kept := self._registry.find_kept(track)) is not None:
            return self._poller.rejoin(kept.task_id)
        doubt = self._registry.find_unknown(track)
        if doubt is None:
            return None
        if conversion is None or not self._submitter.may_repeat(track):
            raise unknown_error(doubt, "an earlier submit has no known fate")
        # If its time for a repeat came when nobody waited, it is now.
        delay_s = doubt.at.timestamp() + RESUBMIT_AFTER_S - self._desk.clock.time()
        if delay_s <= 0:
            return None
        self._turns.add_in(conversion, min(delay_s, RESUBMIT_AFTER_S))
        return conversion

    async def look_up(self, track: Track, *, again: bool = False) -> None:
        """
        Bring what the ledger knows of *track* into the books, before it is taken.

        Raises:
            AlreadyExistsError:
                The service has a WAV of it under an unknown task id, and the user
                did not say *again*.

            LedgerError: It cannot be read.
        """
        if not self._desk.journal.is_kept or self._is_known(track):
            return
        standing = await self._desk.journal.find(track)
        if standing is not None and self.is_stale(standing):
            standing = await self._desk.journal.find(track)
        if standing is None or self._is_known(track):
            return
        if standing.state is TrackState.EXISTS and not again:
            raise exists_error(standing)
        if standing.state is TrackState.ACCEPTED:
            _ = self.restore(standing)
        elif standing.state is TrackState.UNKNOWN:
            self._registry.restore_unknown(track)
        elif standing.state in SUCCESSES and standing.wav_url is not None:
            wav = WavFile(
                task_id=standing.task_id,
                url=standing.wav_url,
                track=standing.track,
                settled_by=standing.settled_by or "poll",
                expires_at=standing.expires_at,
                accepted_at=standing.accepted_at,
            )
            _ = self._registry.restore_result(track, wav)

    def _is_known(self, track: Track) -> bool:
        registry = self._registry
        places = (registry.find, registry.find_result, registry.find_kept)
        return any(find(track) is not None for find in places)

    def is_stale(self, standing: Standing) -> bool:
        """Return whether the ledger told *standing* before its task ended here."""
        is_open = standing.state is TrackState.ACCEPTED
        return is_open and self._registry.has_ended(standing.task_id)

    def restore(self, standing: Standing) -> Conversion:
        """Follow the task that the ledger has for a track; return its conversion."""
        task_id, submitted_at = standing.task_id, standing.submitted_at
        _ = self._poller.rejoin(task_id)
        followed = self._registry.find(standing.track) or self._registry.find_task(task_id)
        if (
            followed is not None
            and followed.track in {None, standing.track}
            and followed.phase is not Phase.UNKNOWN
        ):
            if followed.track is None:
                self._registry.name_track(followed, standing.track)
            return followed
        is_ours = submitted_at is not None and not standing.is_adopted
        conversion = self._registry.restore(
            standing.track,
            task_id,
            self._desk.clock.monotonic(),
            attempt_id=standing.task_attempt_id,
            submitted_unix_s=submitted_at.timestamp() if submitted_at and is_ours else None,
            accepted_at=standing.accepted_at,
        )
        self._turns.remove(conversion)
        self._poller.follow(conversion, is_restored=True)
        conversion.wake_submitted()
        self._desk.on_followed(conversion)
        return conversion
