"""
When new submits pause because the service cannot take them, and what ends the pause.

One mechanism with two reasons. While paused at most one submit is open at a time, a
*probe*, which asks for all the others:

===========  ====================  ==========================  =============================
reason       begins                from probe to probe         ends
===========  ====================  ==========================  =============================
maintenance  code 455              60 s                        its probe is answered otherwise
outage       5 unknown outcomes    1, 2, 4, 8, 15, 15 ... min  a submit gets a body with a
             in a row              each after a free read      code other than 408 and 5xx
                                   that was answered
===========  ====================  ==========================  =============================

In a row: without such a body between them. An outcome that is unknown ends no
outage, whatever the code. A read that is not answered is repeated after 60 s: it
costs nothing, so its pause does not grow.

Pure: the caller brings the time, sends, and waits.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Final

from kie_wav_async.core.policies import MAINTENANCE_PROBE_S

if TYPE_CHECKING:
    from collections.abc import Sequence

#: How many unknown outcomes in a row are taken for an outage.
UNKNOWN_IN_A_ROW: Final = 5

#: The first and the longest pause between two probes of an outage, in seconds.
FIRST_PAUSE_S: Final = 60.0
LAST_PAUSE_S: Final = 900.0

#: How long an answered read lets a probe go, should it have to wait for something else.
_READ_IS_GOOD_S: Final = 60.0


class PauseReason(enum.Enum):
    """Why new submits pause."""

    MAINTENANCE = enum.auto()
    OUTAGE = enum.auto()


class SubmitPause:
    """
    Says whether a submit may go out, as far as the service's state goes.

    Submits are told apart by identity. Times are monotonic seconds.

    Attributes:
        reason: Why new submits pause; `None` while they do not.
    """

    __slots__ = (
        "_is_quiet",
        "_is_reading",
        "_is_unreported",
        "_pause_s",
        "_probe",
        "_probe_at",
        "_read_good_until",
        "_unknown_in_a_row",
        "reason",
    )

    def __init__(self) -> None:
        self.reason: PauseReason | None = None
        self._unknown_in_a_row = 0
        self._probe: object | None = None
        self._probe_at = -math.inf
        self._pause_s = FIRST_PAUSE_S
        self._is_reading = False
        self._is_unreported = False
        self._is_quiet = False
        self._read_good_until = -math.inf

    # --- may one go? ----------------------------------------------------------------------

    def blocked_until(self, now_mono_s: float, *, is_sending: bool) -> float | None:
        """
        Return when to ask again; `None`: a submit may go out now.

        The moment is infinite if it is the end of a submit or a read: ask again then.

        Args:
            now_mono_s: The time.

            is_sending: Whether a submit is open.
        """
        if self.reason is None:
            return None
        if is_sending or self._probe is not None or self._is_reading:
            return math.inf
        return None if now_mono_s >= self._probe_at else self._probe_at

    def pop_notification(self, now_mono_s: float) -> float | None:
        """Return in how many seconds the first probe goes, once for each outage; else `None`."""
        if not self._is_unreported or self.reason is not PauseReason.OUTAGE:
            return None
        self._is_unreported = False
        return max(0.0, self._probe_at - now_mono_s)

    def begin_read(self, now_mono_s: float) -> bool:
        """Return whether a free read has to be answered first; it is in progress then."""
        if self.reason is not PauseReason.OUTAGE or now_mono_s <= self._read_good_until:
            return False
        self._is_reading = True
        return True

    def end_read(self, now_mono_s: float, *, is_answered: bool) -> None:
        """Note what came of the read."""
        self._is_reading = False
        if is_answered:
            self._read_good_until = now_mono_s + _READ_IS_GOOD_S
        else:
            self._probe_at = now_mono_s + FIRST_PAUSE_S
            self._confirm()

    # --- what becomes of submits --------------------------------------------------------------

    def begin_submit(self, submit: object) -> None:
        """Note that *submit* goes out: while paused it is the probe."""
        if self.reason is not None:
            self._probe = submit
            self._read_good_until = -math.inf

    def end_submit(self, submit: object, now_mono_s: float, *, is_sent: bool) -> None:
        """
        Note that *submit* is over, whatever came of it.

        Args:
            submit: It.

            now_mono_s: The time.

            is_sent: Whether it was handed to the transport.
        """
        if submit is not self._probe:
            return
        self._probe = None
        if not is_sent:
            return
        if self.reason is PauseReason.OUTAGE:
            self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S)
            self._probe_at = now_mono_s + self._pause_s
            self._confirm()
        else:
            self._probe_at = now_mono_s + MAINTENANCE_PROBE_S

    def note_unknown(self, now_mono_s: float) -> None:
        """Note an unknown outcome."""
        self._unknown_in_a_row += 1
        is_row = self._unknown_in_a_row >= UNKNOWN_IN_A_ROW
        if is_row and self.reason is not PauseReason.OUTAGE:
            self._begin_outage(FIRST_PAUSE_S, now_mono_s + FIRST_PAUSE_S)

    def note_maintenance(self, submit: object, now_mono_s: float) -> bool:
        """
        Note that *submit* met maintenance; return whether that is news.

        It is none if the submit was open together with the one that brought the news.
        """
        self._unknown_in_a_row = 0
        if self.reason is PauseReason.MAINTENANCE and submit is not self._probe:
            return False
        self.reason = PauseReason.MAINTENANCE
        self._probe_at = now_mono_s + MAINTENANCE_PROBE_S
        return True

    def note_answer(self, submit: object, *, has_code: bool) -> None:
        """
        Note that the outcome of *submit* is known, and that it did not meet maintenance.

        Args:
            submit: It.

            has_code: Whether it got a body with a code other than 408 and 5xx.
        """
        if has_code:
            self._unknown_in_a_row = 0
        is_over = has_code if self.reason is PauseReason.OUTAGE else submit is self._probe
        if is_over:
            self.reason = None

    # --- an earlier run --------------------------------------------------------------------

    def restore(
        self, ended_unix_s: Sequence[float], unknown_unix_s: Sequence[float], now_mono_s: float
    ) -> bool:
        """
        Begin in an outage if the last 5 submits of an earlier run are all unknown.

        Its first probe may go at once, after the read, and only if that fails is the
        outage news: the earlier run may as well have been killed. Returns whether it
        is so.

        Args:
            ended_unix_s: When the last submits ended.

            unknown_unix_s: When those of unknown outcome ended.

            now_mono_s: The time.
        """
        last = sorted(unknown_unix_s)[-UNKNOWN_IN_A_ROW:]
        if len(last) < UNKNOWN_IN_A_ROW:
            return False
        # Times are compared as the ledger's models round them, to the microsecond.
        since = last[0] - 1e-6
        unknown = sum(at >= since for at in unknown_unix_s)
        if sum(at >= since for at in ended_unix_s) > unknown:
            return False
        self._begin_outage(FIRST_PAUSE_S / 2, now_mono_s)
        self._is_unreported, self._is_quiet = False, True
        return True

    def _confirm(self) -> None:
        """Note that an outage which may have been over is not."""
        self._is_unreported |= self._is_quiet
        self._is_quiet = False

    def _begin_outage(self, pause_s: float, probe_at: float) -> None:
        self.reason = PauseReason.OUTAGE
        self._is_unreported, self._is_quiet = True, False
        # If it began with a probe of a maintenance, that one is over.
        self._probe = None
        self._pause_s = pause_s
        self._probe_at = probe_at
        self._read_good_until = -math.inf
