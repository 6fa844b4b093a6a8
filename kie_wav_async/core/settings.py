"""What a core is given: what the user chose, as far as it decides by it, and chance."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from kie_wav_async.core.policies import PollSchedule, RateLimit, RetryPolicy
    from kie_wav_async.models import OnUnknown


class Chance(Protocol):
    """Where chance comes from."""

    def random(self) -> float:
        """Draw a number in [0, 1), for jitter."""
        ...

    def attempt_id(self) -> str:
        """Draw the name of a new attempt: 32 hex characters nobody can guess."""
        ...


class CoreSettings(NamedTuple):
    """
    The settings of a session's core; see `WavSession` for what each one means.

    Attributes:
        rate_limit: New submits.

        max_in_flight: Most conversions submitted and not terminal.

        max_charges: Most submits accepted or unknown; `None` for no limit.

        poll: When conversions in flight are polled.

        retry: How requests are repeated that provably created nothing.

        on_unknown: What to do with a submit of unknown outcome.

        timeout_s: Acceptance to result; `None` for no limit.

        callback_url: Where the service is told to post, before the attempt is named.

        has_ledger: Whether what happens is written down before it has an effect.

        has_listener: Whether anybody is told of events.
    """

    rate_limit: RateLimit
    max_in_flight: int
    max_charges: int | None
    poll: PollSchedule
    retry: RetryPolicy
    on_unknown: OnUnknown
    timeout_s: float | None
    callback_url: str
    has_ledger: bool
    has_listener: bool
