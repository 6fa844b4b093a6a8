"""Errors of submits, and what a ledger keeps of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from kie_wav_async.core.track_states import AttemptOutcome, TrackState
from kie_wav_async.errors import (
    AlreadyExistsError,
    AuthenticationError,
    EndpointGoneError,
    FeatureDisabledError,
    InsufficientCreditsError,
    SubmitUnknownError,
    TransportError,
)
from kie_wav_async.protocol.api_constants import KIE_WAV

if TYPE_CHECKING:
    from kie_wav_async.errors import KieWavError
    from kie_wav_async.models import Track, UnknownSubmit


class KnownTrack(Protocol):
    """What a ledger knows of a track, as far as it decides on a submit."""

    @property
    def state(self) -> TrackState:
        """Where it stands."""
        ...

    @property
    def track(self) -> Track:
        """The track."""
        ...

    @property
    def attempt_id(self) -> str:
        """The latest submit; ``""`` before the first."""
        ...

    @property
    def task_id(self) -> str:
        """The task that is followed or was; ``""`` without one."""
        ...

    @property
    def error(self) -> str | None:
        """What the service said, of a rejected or failed track; else `None`."""
        ...


def outcome_of(error: KieWavError) -> AttemptOutcome:
    """Return what a ledger keeps of a refusal: whether the track may be sent again."""
    match error:
        case AlreadyExistsError():
            return AttemptOutcome.EXISTS_WITHOUT_ID
        case (
            AuthenticationError()
            | InsufficientCreditsError()
            | FeatureDisabledError()
            | EndpointGoneError()
            | TransportError()
        ):
            return AttemptOutcome.NOT_CREATED  # It is not about the track.
        case _:
            return AttemptOutcome.REJECTED


def exists_error(entry: KnownTrack) -> AlreadyExistsError:
    """Return the error of a track that has a WAV under a task id that is not known."""
    return AlreadyExistsError(
        code=KIE_WAV.conflict, message=entry.error or "the WAV exists", track=entry.track
    )


def unknown_error(
    unknown: UnknownSubmit, message: str, *, cause: KieWavError | None = None
) -> SubmitUnknownError:
    """Return the error of a submit whose outcome is unknown."""
    if cause is not None:
        message += f" ({cause})"
    error = SubmitUnknownError(message, track=unknown.track, attempt_id=unknown.attempt_id)
    error.__cause__ = cause
    return error
