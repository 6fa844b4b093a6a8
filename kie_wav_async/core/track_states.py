"""The states of a track in a ledger, and the outcomes of a submit."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class TrackState(enum.StrEnum):
    """Where a track stands in a ledger."""

    #: Wanted, and nothing of it is paid or unknown.
    PLANNED = "planned"
    #: A submit of it may be in progress.
    SUBMITTING = "submitting"
    #: A submit of it may have been accepted.
    UNKNOWN = "unknown"
    #: The service has a WAV of it, under a task id that it did not tell.
    EXISTS_WITHOUT_ID = "exists_without_id"
    #: Has a task, which is not known to have ended.
    ACCEPTED = "accepted"
    #: Its WAV is at the service.
    SUCCEEDED = "succeeded"
    #: Its WAV is a file here.
    SAVED = "saved"
    #: The service refused it for good; nothing was created.
    REJECTED = "rejected"
    #: Its task ended badly.
    FAILED = "failed"
    #: Its WAV was not saved, and the service has said that it was deleted.
    EXPIRED = "expired"

    @property
    def may_be_sent(self) -> bool:
        """Whether the track is submitted without a word of the caller's."""
        return self in {TrackState.PLANNED, TrackState.REJECTED, TrackState.FAILED}

    @property
    def is_failure(self) -> bool:
        """Whether the service said no, or the task ended badly."""
        return self in {TrackState.REJECTED, TrackState.FAILED}

    @property
    def came_to_nothing(self) -> bool:
        """Whether there is no WAV that we could have, and none to wait for."""
        return self.is_failure or self is TrackState.EXISTS_WITHOUT_ID

    @property
    def can_be_requeued(self) -> bool:
        """Whether `Ledger.requeue` plans the track again."""
        return self.is_failure or self is TrackState.EXPIRED

    @property
    def has_wav(self) -> bool:
        """Whether there is a WAV, at the service or here."""
        return self in {TrackState.SUCCEEDED, TrackState.SAVED}

    @property
    def is_unsaved(self) -> bool:
        """Whether there is a task whose WAV is still to be saved."""
        return self in {TrackState.ACCEPTED, TrackState.SUCCEEDED}

    @property
    def is_final(self) -> bool:
        """Whether nothing is left to be done for its WAV."""
        return self in {TrackState.SAVED, TrackState.EXPIRED}

    @property
    def is_converted(self) -> bool:
        """Whether there is or was a WAV."""
        return self.has_wav or self is TrackState.EXPIRED


class AttemptOutcome(enum.StrEnum):
    """What came of one submit."""

    #: The service created a task for it.
    ACCEPTED = "accepted"
    #: The service named a task that existed before.
    ADOPTED = "adopted"
    #: It may have been accepted.
    UNKNOWN = "unknown"
    #: It created nothing, and the track may be sent again.
    NOT_CREATED = "not_created"
    #: It created nothing, and neither would another.
    REJECTED = "rejected"
    #: It created nothing, because there is a WAV of the track under an unknown task id.
    EXISTS_WITHOUT_ID = "exists_without_id"

    @property
    def can_be_resolved(self) -> bool:
        """Whether the user's word says what came of the submit."""
        return self in {AttemptOutcome.UNKNOWN, AttemptOutcome.EXISTS_WITHOUT_ID}

    @property
    def has_task(self) -> bool:
        """Whether there is a task for the submit."""
        return self in {AttemptOutcome.ACCEPTED, AttemptOutcome.ADOPTED}


#: What the outcome of a submit may be replaced by; everything else stays what it is.
LATER_OUTCOMES: Final[Mapping[AttemptOutcome, frozenset[AttemptOutcome]]] = {
    AttemptOutcome.UNKNOWN: frozenset({AttemptOutcome.ACCEPTED, AttemptOutcome.NOT_CREATED}),
    AttemptOutcome.NOT_CREATED: frozenset({AttemptOutcome.ACCEPTED}),
    AttemptOutcome.EXISTS_WITHOUT_ID: frozenset(
        {AttemptOutcome.ADOPTED, AttemptOutcome.NOT_CREATED}
    ),
}
