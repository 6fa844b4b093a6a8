"""
What a response to a submit says, as one value: total, so that nothing falls through.

A submit costs credits and is not idempotent, so of every response, and of every failure
to get one, it must be known whether the submit may have created a task.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from kie_wav_async.errors import (
    KieWavError,
    MaintenanceError,
    RateLimitedError,
    ServerError,
    TransportError,
    WireFormatError,
)
from kie_wav_async.protocol.responses import is_answered, parse_submit

if TYPE_CHECKING:
    from kie_wav_async.protocol.http_messages import WireResponse


class SubmitKind(enum.Enum):
    """
    What came of a submit.

    ============  ==================  =====================================================
    kind          a task was created  what it is
    ============  ==================  =====================================================
    ACCEPTED      yes                 a task id
    EXISTS        by an earlier one   code 409 with a task id
    REJECTED      no                  any other code that says no; a redirect
    RATE_LIMITED  no                  code 429
    MAINTENANCE   no                  code 455
    NOT_SENT      no                  provably no byte has left
    UNKNOWN       nobody knows        no response, an unreadable one, 408, 5xx but 505
    ============  ==================  =====================================================
    """

    ACCEPTED = enum.auto()
    EXISTS = enum.auto()
    REJECTED = enum.auto()
    RATE_LIMITED = enum.auto()
    MAINTENANCE = enum.auto()
    NOT_SENT = enum.auto()
    UNKNOWN = enum.auto()


class SubmitResult(NamedTuple):
    """
    What came of a submit.

    Attributes:
        kind: What it is.

        task_id: The task, if one is named; else ``""``.

        accepted_unix_s: When the service made it, by its own clock; `None` if it did not say.

        error: What it said, or why there is no response; `None` for ACCEPTED and EXISTS.

        has_code: Whether it is a body with a code other than 408 and 5xx.
    """

    kind: SubmitKind
    task_id: str = ""
    accepted_unix_s: float | None = None
    error: KieWavError | None = None
    has_code: bool = False


def classify(response: WireResponse) -> SubmitResult:
    """Return what *response* says of the submit that it answers; raises nothing."""
    try:
        answer = parse_submit(response)
    except KieWavError as error:
        return SubmitResult(_kind_of(error), error=error, has_code=is_answered(response))
    kind = SubmitKind.EXISTS if answer.exists else SubmitKind.ACCEPTED
    return SubmitResult(kind, answer.task_id, answer.accepted_unix_s, has_code=True)


def _kind_of(error: KieWavError) -> SubmitKind:
    match error:
        case RateLimitedError():
            return SubmitKind.RATE_LIMITED
        case MaintenanceError():
            return SubmitKind.MAINTENANCE
        case ServerError() | WireFormatError():
            return SubmitKind.UNKNOWN
        case _:
            return SubmitKind.REJECTED


def classify_failure(failure: Exception) -> SubmitResult:
    """Return what it says of a submit that there is no response, because of *failure*."""
    if isinstance(failure, TransportError) and not failure.maybe_sent:
        return SubmitResult(SubmitKind.NOT_SENT, error=failure)
    if isinstance(failure, KieWavError):
        return SubmitResult(SubmitKind.UNKNOWN, error=failure)
    error = TransportError(f"the transport raised {type(failure).__name__}")
    error.__cause__ = failure
    return SubmitResult(SubmitKind.UNKNOWN, error=error)
