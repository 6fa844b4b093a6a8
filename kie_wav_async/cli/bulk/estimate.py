"""How long a catalog takes, what it may cost and how much disk: arithmetic, and words for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import attrs

from kie_wav_async.ledger import TrackState

if TYPE_CHECKING:
    from kie_wav_async import RateLimit

#: What a WAV takes on the disk until its size is known: three minutes of sound.
BYTES_PER_TRACK: Final = 32_000_000

#: How long a conversion takes until some have ended; ours, and rather long.
USUAL_CONVERSION_S: Final = 120.0


_MINUTE_S: Final = 60.0
_HOUR_S: Final = 3_600.0
_DAY_S: Final = 86_400.0

#: Where a track stands that came to nothing.
FAILED: Final = tuple(state for state in TrackState if state.came_to_nothing)


@attrs.frozen
class TrackCounts:
    """How many tracks of a ledger stand where."""

    counts: Mapping[TrackState, int]

    def of(self, *states: TrackState) -> int:
        """Return how many tracks are in one of *states*."""
        return sum(self.counts.get(state, 0) for state in states)

    @property
    def total(self) -> int:
        """All tracks."""
        return self.of(*TrackState)

    @property
    def planned(self) -> int:
        """Those not submitted."""
        return self.of(TrackState.PLANNED)

    @property
    def submitted(self) -> int:
        """Those whose submit has come to something, if only to doubt."""
        return self.total - self.of(TrackState.PLANNED, TrackState.SUBMITTING)

    @property
    def in_flight(self) -> int:
        """Those with a task that has not ended."""
        return self.of(TrackState.ACCEPTED)

    @property
    def unknown(self) -> int:
        """Those in doubt."""
        return self.of(TrackState.UNKNOWN)

    @property
    def converted(self) -> int:
        """Those with a WAV, whatever became of it since."""
        return self.of(*(state for state in TrackState if state.is_converted))

    @property
    def saved(self) -> int:
        """Those whose WAV is a file here."""
        return self.of(TrackState.SAVED)

    @property
    def unsaved(self) -> int:
        """Those whose WAV is at the service, and not here."""
        return self.of(TrackState.SUCCEEDED)

    @property
    def to_be_saved(self) -> int:
        """Those with a WAV that is not here, or that may come to have one."""
        return self.of(
            TrackState.PLANNED, TrackState.SUBMITTING, TrackState.ACCEPTED, TrackState.SUCCEEDED
        )

    @property
    def failed(self) -> int:
        """Those that came to nothing."""
        return self.of(*FAILED)

    @property
    def expired(self) -> int:
        """Those whose WAV the service has deleted, as it says itself."""
        return self.of(TrackState.EXPIRED)


def most_charges(
    tally: TrackCounts,
    *,
    resubmits: bool,
    charges: int = 0,
    max_charges: int | None = None,
    reclaimed: int = 0,
) -> int:
    """
    Return how many new charges a run may cause at the worst.

    Args:
        tally: Where the tracks stand before it.

        resubmits: Whether submits of unknown fate are repeated.

        charges: Submits accepted or unknown so far.

        max_charges: The cap on them; `None` for none.

        reclaimed: Those with a WAV that are planned again if it turns out to be gone.
    """
    most = tally.planned + reclaimed
    if resubmits:  # What is planned can be lost, and sent once more, in the same run.
        most = 2 * most + tally.unknown
    return most if max_charges is None else max(0, min(most, max_charges - charges))


def submits_per_s(rate: RateLimit, max_in_flight: int, conversion_s: float) -> float:
    """Return how many submits a second the window and the places in flight allow."""
    by_window = rate.count / rate.per_s
    return min(by_window, max_in_flight / conversion_s) if conversion_s > 0 else by_window


def time_left_s(
    tally: TrackCounts,
    submits: int,
    rate: RateLimit,
    max_in_flight: int,
    *,
    conversion_s: float = USUAL_CONVERSION_S,
    measured_per_s: float | None = None,
) -> float:
    """
    Return the seconds until the last conversion has ended.

    Args:
        tally: Where the tracks stand.

        submits: How many are still to be sent.

        rate: The window of submits.

        max_in_flight: Most conversions at a time.

        conversion_s: How long one takes.

        measured_per_s: Submits a second, lately; `None` while that says nothing.
    """
    if not submits:
        return conversion_s if tally.of(TrackState.ACCEPTED, TrackState.SUBMITTING) else 0.0
    per_s = submits_per_s(rate, max_in_flight, conversion_s)
    if measured_per_s:  # The window is not all that may be in the way.
        per_s = min(per_s, measured_per_s)
    # A window is free at its beginning.
    return max(0, submits - rate.count) / per_s + conversion_s


@attrs.define
class Durations:
    """Tells how long conversions take at present."""

    _mean_s: float | None = None

    def note(self, seconds: float) -> None:
        """Note how long one took."""
        if math.isfinite(seconds) and seconds >= 0:
            known = seconds if self._mean_s is None else self._mean_s
            self._mean_s = known + (seconds - known) / 16

    @property
    def mean_s(self) -> float:
        """How long one takes; what is usual, until one has ended."""
        return USUAL_CONVERSION_S if self._mean_s is None else self._mean_s


# --- words ------------------------------------------------------------------------------------


def duration_words(seconds: float) -> str:
    """Return a length of time as a person would say it."""
    if seconds < 1.5 * _MINUTE_S:
        return f"{max(1, math.ceil(seconds))} s"
    if seconds < 1.5 * _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    if seconds < 2 * _DAY_S:
        hours = seconds / _HOUR_S
        return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"  # noqa: PLR2004 - two digits do
    return f"{seconds / _DAY_S:.1f} days"


def bytes_words(size: float) -> str:
    """Return a size as disks are sold: in units of 1,000."""
    value = float(size)
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:  # noqa: PLR2004 - what would be rounded to 1000
        value /= 1_000
        del units[0]
    return f"{value:.3g} {units[0]}"


def count_words(count: int, one: str, many: str = "") -> str:
    """Return *count* with its noun."""
    return f"1 {one}" if count == 1 else f"{count:,} {many or one + 's'}"
