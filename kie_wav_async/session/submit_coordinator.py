"""Brings a track into the core: with what the ledger knows of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_wav_async._support.validation import verify_type
from kie_wav_async.core.submit_errors import exists_error
from kie_wav_async.core.track_states import TrackState
from kie_wav_async.models import Track, WavFile

if TYPE_CHECKING:
    from kie_wav_async.core.state_machine import TaskEntry
    from kie_wav_async.ledger.models import LedgerEntry
    from kie_wav_async.session.loop import SessionLoop


class SubmitCoordinator:
    """Takes tracks from callers and catalogs, and brings them to the core."""

    def __init__(self, loop: SessionLoop) -> None:
        self._loop = loop
        self._context = loop.context
        self._registry = loop.core.registry

    def get_or_enqueue(
        self, track: Track, *, again: bool = False, is_patient: bool = False
    ) -> TaskEntry:
        """
        Return the entry of *track*: the one there is, or a new one in the queue.

        Raises:
            TypeError: *track* is no `Track`.

            ValueError: *again* for a track in flight.

            SubmitUnknownError: An earlier submit of the track is unknown.

            ChargeLimitError: ``max_charges`` is reached.

            SessionClosedError: The session was closed.
        """
        self._context.state.verify_open()
        verify_type(track, Track, "track")
        loop = self._loop
        return loop.ask(loop.core.ask, track, again=again, is_patient=is_patient)

    async def load_from_ledger(self, track: Track, *, again: bool = False) -> None:
        """
        Bring what the ledger knows of *track* into the registry, before it is taken.

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

    def restore(self, entry: LedgerEntry) -> TaskEntry:
        """Follow the task that the ledger has for a track; return its entry."""
        submitted_at = entry.submitted_at
        is_ours = submitted_at is not None and not entry.is_adopted
        loop = self._loop
        return loop.ask(
            loop.core.restore_task,
            entry,
            attempt_id=entry.task_attempt_id,
            submitted_unix_s=submitted_at.timestamp() if submitted_at and is_ours else None,
            accepted_at=entry.accepted_at,
        )
