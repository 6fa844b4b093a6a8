"""Whether WAVs come faster than they can be saved before the service deletes them."""

from __future__ import annotations

from typing import Final

import attrs

from kie_wav_async._support.rate_meter import RateMeter
from kie_wav_async.protocol.api_constants import KIE_WAV

# So far back is looked, in seconds in which something was being saved.
_SPAN_S: Final = 600.0
# A shorter look says nothing yet.
_LEAST_S: Final = 60.0
# Samples are so far apart: a look every half second needs no more.
_STEP_S: Final = 5.0

#: Half of the time for which the service keeps a WAV.
LONGEST_S: Final = KIE_WAV.retention_days * 86_400.0 / 2
# Once it is on, it takes so much of that to be over: speeds are never steady.
_OVER: Final = 0.9


@attrs.define
class Backpressure:
    """
    Measures how fast files are saved, and holds new submits if that is too slow.

    Attributes:
        is_on: Whether they are to be held, by the last `decide`.
    """

    is_on: bool = attrs.field(default=False, init=False)
    _meter: RateMeter = attrs.field(factory=lambda: RateMeter(_SPAN_S, _STEP_S), init=False)
    _busy_s: float = attrs.field(default=0.0, init=False)
    _last_s: float | None = attrs.field(default=None, init=False)

    def note(self, now_mono_s: float, received: int, *, is_busy: bool) -> None:
        """
        Note how far it has come.

        Args:
            now_mono_s: The time.

            received: How many bytes have come in all.

            is_busy: Whether something was being saved since the last note.
        """
        if self._last_s is not None and is_busy:
            self._busy_s += max(0.0, now_mono_s - self._last_s)
        self._last_s = now_mono_s
        self._meter.note(self._busy_s, received)

    @property
    def bytes_per_s(self) -> float | None:
        """How many bytes come in a second while something is being saved; `None`: unknown."""
        meter = self._meter
        # That nothing comes is said only after a long look.
        if meter.covered_s < (_LEAST_S if meter.done > 0 else _SPAN_S):
            return None
        return meter.per_s

    def decide(self, backlog: float) -> bool:
        """
        Return whether new submits are to be held.

        Args:
            backlog: How many bytes there are to save of what is paid.
        """
        per_s = self.bytes_per_s
        longest_s = LONGEST_S * (_OVER if self.is_on else 1.0)
        self.is_on = per_s is not None and backlog > per_s * longest_s
        return self.is_on
