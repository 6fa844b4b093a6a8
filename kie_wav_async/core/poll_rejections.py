"""
Answers that concern all polls: the key is refused, or there is no such route.

The first one pauses polling, and then a single poll asks for all. A second 401, or a
third missing route, in a row is final: nothing is polled until something waits again.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Final

from kie_wav_async.core.policies import REJECTED_POLL_RETRY_S
from kie_wav_async.errors import AuthenticationError, EndpointGoneError, KieWavError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kie_wav_async.core.effects import Outbox

#: How many answers of a kind in a row are final.
_MAX_REJECTIONS: Final[Mapping[type[KieWavError], int]] = {
    AuthenticationError: 2,
    EndpointGoneError: 3,
}

#: How long after that no callback has it tried again: replayed callbacks must not
#: notify each waiter every moment. Ours.
_RECONSIDER_S: Final = 60.0


class PollRejections:
    """
    Counts the rejections that concern all polls.

    Attributes:
        number: How many there were in a row.

        round: Which count that is: 0 without a rejection, and another number each time
            that it changes, so that a poll can tell whether its rejection is news.

        is_final: Whether nothing is polled any more.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._rounds = itertools.count(1)
        self._kind: type[KieWavError] = KieWavError
        self._final_at = -math.inf
        self.number = 0
        self.round = 0
        self.is_final = False

    def _set(self, kind: type[KieWavError], number: int) -> None:
        self._kind, self.number, self.round = kind, number, next(self._rounds)
        self.is_final = number >= _MAX_REJECTIONS[kind]

    def clear(self) -> None:
        """Note that a poll got an answer that says nothing against all polls."""
        self._kind, self.number, self.round, self.is_final = KieWavError, 0, 0, False

    def note(
        self, sent_in: int, error: AuthenticationError | EndpointGoneError, now_s: float
    ) -> float | None:
        """
        Count a rejection, unless its poll was sent before the last one, in an earlier round.

        Returns until when polling pauses, monotonic; infinite if it is final, and
        `None` if the rejection is no news.
        """
        if sent_in != self.round:
            return None
        self._set(type(error), self.number + 1 if type(error) is self._kind else 1)
        is_key = isinstance(error, AuthenticationError)
        is_final = self.is_final
        delay_s = None if is_final else REJECTED_POLL_RETRY_S
        reason = "authentication" if is_key else "endpoint-gone"
        if is_final:
            self._final_at = now_s
            self._outbox.log(
                "error",
                "the service %s: all waits end, the tasks stay open",
                "refuses the API key" if is_key else "has no such route",
            )
        self._outbox.emit("PollingPaused", reason=reason, delay_s=delay_s)
        return math.inf if is_final else now_s + REJECTED_POLL_RETRY_S

    def note_other(self, sent_in: int) -> None:
        """Note another error: it ends the count, unless that is of rejections of the key."""
        if sent_in == self.round and self._kind is EndpointGoneError:
            self.clear()

    def resume(self) -> bool:
        """Allow one more poll after a final rejection; return whether there was one."""
        if not self.is_final:
            return False
        self._set(self._kind, self.number - 1)
        return True

    def may_reconsider(self, now_s: float) -> bool:
        """Return whether a callback is reason enough to poll again: once a minute."""
        return now_s >= self._final_at + _RECONSIDER_S
