"""
When to ask again, as arithmetic: no clock, no chance, no waiting in here.

Chance is an argument: a *sample* is a number in [0, 1) that the caller drew.
"""

from __future__ import annotations

from typing import Final

import attrs

from kie_wav_async._support.validation import verify_count, verify_number
from kie_wav_async.errors import (
    MaintenanceError,
    RateLimitedError,
    ServerError,
    TransportError,
    WireFormatError,
)

#: How long new submits rest between two probes of a service under maintenance
#: (code 455). The service names no time; the value is ours.
MAINTENANCE_PROBE_S = 60.0

#: How long a submit of unknown outcome rests before `OnUnknown.RESUBMIT` repeats
#: it: as long as a submit may take in all, so that the first one has landed or
#: died by then. Ours.
RESUBMIT_AFTER_S = 60.0

#: Pause in polling after an answer that concerns all polls: a 401, or a missing
#: route. Ours.
REJECTED_POLL_RETRY_S = 5.0


@attrs.frozen(kw_only=True)
class PollSchedule:
    """
    When a conversion in flight is polled.

    Poll *n* (from 1) comes ``first_s`` after acceptance for *n* = 1, else
    ``interval_s * (1 + jitter * x)`` after poll *n* - 1, where *x* is uniform in
    [-1, 1). With the defaults a conversion that takes more than 15 s is seen 5 s
    after its end at the median, and 12 s and the poll's own time after it at the
    most; one that takes less, 15 s after its acceptance. All of it is later while
    more polls are due than ``max_per_s`` lets out, and after a poll that failed.

    Attributes:
        first_s: Acceptance to first poll, in seconds; 0 or more.

        interval_s: Poll to poll, in seconds; above 0.

        jitter: Share of *interval_s* left to chance; from 0 up to 1, 1 excluded.

        backstop_s: Acceptance to first poll while callbacks are healthy; above 0.

        max_per_s:
            Polls per second, over all conversions; above 0. The service
            documents 3 per second and task and no limit in all.

    Raises:
        TypeError: A value is not a number.

        ValueError: A value is NaN, infinite or out of range.
    """

    first_s: float = 15.0
    interval_s: float = 10.0
    jitter: float = 0.2
    backstop_s: float = 60.0
    max_per_s: float = 30.0

    def __attrs_post_init__(self) -> None:
        """Hold the ranges."""
        verify_number(self.first_s, "first_s", least=0)
        verify_number(self.interval_s, "interval_s", above=0)
        verify_number(self.jitter, "jitter", least=0)
        verify_number(self.backstop_s, "backstop_s", above=0)
        verify_number(self.max_per_s, "max_per_s", above=0)
        if self.jitter >= 1:
            msg = f"jitter must be below 1, not {self.jitter!r}"
            raise ValueError(msg)


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """
    How often, and after what wait, a request is repeated.

    Retry *n* (from 1) waits ``sample * min(cap_s, base_s * 2 ** (n - 1))``
    seconds, *sample* uniform in [0, 1): full jitter. It holds for reads, and for
    submits that provably created nothing; a submit of unknown outcome is never
    repeated by it.

    Attributes:
        attempts: Requests in all, the first included; 1 or more.

        base_s: The first retry's longest wait, in seconds; 0 or more.

        cap_s: Any retry's longest wait, in seconds; 0 or more.

        retry_after_cap_s:
            The longest wait the service may ask for, in seconds; 0 or more.
            What it asks for beyond is cut down to this.

    Raises:
        TypeError: A value is not a number, or *attempts* not a whole one.

        ValueError: A value is NaN, infinite or out of range.
    """

    attempts: int = 3
    base_s: float = 1.0
    cap_s: float = 20.0
    retry_after_cap_s: float = 300.0

    def __attrs_post_init__(self) -> None:
        """Hold the ranges."""
        verify_count(self.attempts, "attempts")
        verify_number(self.base_s, "base_s", least=0)
        verify_number(self.cap_s, "cap_s", least=0)
        verify_number(self.retry_after_cap_s, "retry_after_cap_s", least=0)


def first_poll_delay_s(schedule: PollSchedule, *, awaits_callback: bool) -> float:
    """Return the seconds from acceptance to the first poll."""
    return schedule.backstop_s if awaits_callback else schedule.first_s


def next_poll_delay_s(schedule: PollSchedule, sample: float) -> float:
    """Return the seconds from one poll to the next, given a *sample* in [0, 1)."""
    return schedule.interval_s * (1 + schedule.jitter * (2 * sample - 1))


def retry_delay_s(
    policy: RetryPolicy, attempt: int, sample: float, retry_after_s: float | None
) -> float:
    """
    Return the seconds to wait after *attempt* (from 1) failed.

    What the service asks for (*retry_after_s*) goes before our own back-off, up
    to the policy's cap; `None` means it did not ask.
    """
    if retry_after_s is not None:
        return min(retry_after_s, policy.retry_after_cap_s)
    # 2 ** 64 s is beyond any cap; the bound keeps the float from overflowing.
    return sample * min(policy.cap_s, policy.base_s * 2.0 ** min(attempt - 1, 64))


def rate_limit_delay_s(policy: RetryPolicy, per_s: float, retry_after_s: float | None) -> float:
    """
    Return the seconds that new submits rest after a 429.

    As long as the service asks, up to the policy's cap; one whole window of
    *per_s* if it does not ask.
    """
    return per_s if retry_after_s is None else min(retry_after_s, policy.retry_after_cap_s)


@attrs.frozen
class RateLimit:
    """
    At most *count* submits in any *per_s* seconds.

    Attributes:
        count: Submits per window; 1 or more.

        per_s: Length of the window in seconds; above 0.

    Raises:
        TypeError: A value is not a number, or *count* not a whole one.

        ValueError: A value is NaN, infinite or out of range.

    Source: docs.kie.ai, "Getting Started with KIE API": 20 per 10 s and account.
    """

    count: int
    per_s: float = attrs.field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        """Hold the ranges."""
        verify_count(self.count, "count")
        verify_number(self.per_s, "per_s", above=0)


#: What a request that creates nothing may be repeated after: the fault is the line's or
#: the service's.
TRANSIENT_ERRORS: Final = (
    TransportError,
    WireFormatError,
    ServerError,
    RateLimitedError,
    MaintenanceError,
)
