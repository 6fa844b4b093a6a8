"""
What is asked for: the conversion there is of a track, one of an earlier run, or a new one.

Nothing is sent for a track that is in flight, has succeeded, is in doubt, or has a
task whose wait timed out, which is then waited for again; who goes on the wire is
the submitter's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_wav_async._support.validation import verify_type
from kie_wav_async.core.policies import RESUBMIT_AFTER_S
from kie_wav_async.core.state_machine import Phase
from kie_wav_async.ledger.states import TrackState
from kie_wav_async.models import Track, WavFile
from kie_wav_async.session.submit_errors import exists_error, unknown_error

if TYPE_CHECKING:
    from kie_wav_async.ledger.models import LedgerEntry
    from kie_wav_async.session.context import SessionContext
    from kie_wav_async.session.conversion import ConversionEntry
    from kie_wav_async.session.poller import Poller
    from kie_wav_async.session.submit_queue import SubmitQueue
    from kie_wav_async.session.submitter import Submitter


class SubmitCoordinator:
    """Takes tracks, and what the ledger knows of them."""

    def __init__(
        self, context: SessionContext, poller: Poller, queue: SubmitQueue, submitter: Submitter
    ) -> None:
        """Start with nothing taken."""
        self._context = context
        self._registry = context.registry
        self._poller = poller
        self._queue = queue
        self._submitter = submitter

    def get_or_enqueue(
        self, track: Track, *, again: bool = False, is_patient: bool = False
    ) -> ConversionEntry:
        """
        Return the conversion of *track*: the one there is, or a new one in the queue.

        Raises:
            TypeError: *track* is no `Track`.

            ValueError: *again* for a track in flight.

            SubmitUnknownError: An earlier submit of the track is in doubt.

            ChargeLimitError: ``max_charges`` is reached.

            SessionClosedError: The session was closed.
        """
        self._context.state.verify_open()
        verify_type(track, Track, "track")
        conversion = self._registry.find(track)
        if conversion is not None and conversion.phase is not Phase.UNKNOWN:
            if again:
                msg = f"{track} is in flight: again=True is for settled and unknown ones"
                raise ValueError(msg)
            conversion.waits_for_maintenance |= is_patient
            return conversion
        if not again and (known := self._find_waiting(conversion, track)) is not None:
            known.waits_for_maintenance |= is_patient
            return known
        if (spent := self._queue.charge_limit()) is not None:
            raise spent.about(track=track)
        if conversion is None:
            conversion = self._registry.enqueue(track)
        else:
            self._queue.remove(conversion)
            self._registry.retry(conversion)
        conversion.is_again = again
        conversion.waits_for_maintenance = is_patient
        self._queue.add(conversion)
        # It may wait for a place, so for news of those in flight.
        self._poller.resume()
        self._queue.dispatch()
        return conversion

    def _find_waiting(
        self, conversion: ConversionEntry | None, track: Track
    ) -> ConversionEntry | None:
        """
        Return what there is of a track that is not in flight, if that will do.

        Raises:
            SubmitUnknownError: There is a doubt, and it is not for us to repeat the submit.
        """
        if conversion is not None and self._queue.is_delayed(conversion):
            return conversion
        if conversion is None and (known := self._registry.find_result(track)) is not None:
            return known
        if conversion is None and (kept := self._registry.find_timed_out(track)) is not None:
            return self._poller.rejoin(kept.task_id)
        unknown = self._registry.find_unknown(track)
        if unknown is None:
            return None
        if conversion is None or not self._submitter.may_repeat(track):
            raise unknown_error(unknown, "an earlier submit has no known fate")
        # If its time for a repeat came when nobody waited, it is now.
        delay_s = unknown.at.timestamp() + RESUBMIT_AFTER_S - self._context.clock.time()
        if delay_s <= 0:
            return None
        self._queue.schedule(conversion, min(delay_s, RESUBMIT_AFTER_S))
        return conversion

    async def load_from_ledger(self, track: Track, *, again: bool = False) -> None:
        """
        Bring what the ledger knows of *track* into the books, before it is taken.

        Raises:
            AlreadyExistsError:
                The service has a WAV of it under an unknown task id, and the user
                did not say *again*.

            LedgerError: It cannot be read.
        """
        if not self._context.ledger_writer.is_enabled or self._is_known(track):
            return
        entry = await self._context.ledger_writer.get(track)
        if entry is not None and self.is_stale(entry):
            entry = await self._context.ledger_writer.get(track)
        if entry is None or self._is_known(track):
            return
        if entry.state is TrackState.EXISTS_WITHOUT_ID and not again:
            raise exists_error(entry)
        if entry.state is TrackState.ACCEPTED:
            _ = self.restore(entry)
        elif entry.state is TrackState.UNKNOWN:
            self._registry.restore_unknown(track)
        elif entry.state.is_converted and entry.wav_url is not None:
            wav = WavFile(
                task_id=entry.task_id,
                url=entry.wav_url,
                track=entry.track,
                settled_by=entry.settled_by or "poll",
                expires_at=entry.expires_at,
                accepted_at=entry.accepted_at,
            )
            _ = self._registry.restore_result(track, wav)

    def _is_known(self, track: Track) -> bool:
        registry = self._registry
        places = (registry.find, registry.find_result, registry.find_timed_out)
        return any(find(track) is not None for find in places)

    def is_stale(self, entry: LedgerEntry) -> bool:
        """Return whether the ledger was read before the task of *entry* ended here."""
        is_open = entry.state is TrackState.ACCEPTED
        return is_open and self._registry.has_ended(entry.task_id)

    def restore(self, entry: LedgerEntry) -> ConversionEntry:
        """Follow the task that the ledger has for a track; return its conversion."""
        task_id, submitted_at = entry.task_id, entry.submitted_at
        _ = self._poller.rejoin(task_id)
        followed = self._registry.find(entry.track) or self._registry.find_task(task_id)
        if (
            followed is not None
            and followed.track in {None, entry.track}
            and followed.phase is not Phase.UNKNOWN
        ):
            if followed.track is None:
                self._registry.set_track(followed, entry.track)
            return followed
        is_ours = submitted_at is not None and not entry.is_adopted
        conversion = self._registry.restore(
            entry.track,
            task_id,
            self._context.clock.monotonic(),
            attempt_id=entry.task_attempt_id,
            submitted_unix_s=submitted_at.timestamp() if submitted_at and is_ours else None,
            accepted_at=entry.accepted_at,
        )
        self._queue.remove(conversion)
        self._poller.follow(conversion, is_restored=True)
        conversion.notify_submit_waiters()
        self._context.on_followed(conversion)
        return conversion
