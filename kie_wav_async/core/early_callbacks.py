"""
Early callbacks: authentic ones of tasks we do not know (yet), kept for a while.

A callback can overtake the answer to its submit, and an answer can be lost and
its callback arrive. Most of what lies here concerns neither: other products of
the account, other programs. It is therefore bounded, in number and in age, and
creates nothing; whoever learns of a task or loses a submit looks here.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from yarl import URL

#: Most callbacks kept; the oldest gives way. At full rate 1,800 submits are
#: answered in the time one is kept.
MAX_BUFFERED: Final = 10_000

#: How long one is kept. Ours; a submit is answered or lost after 60 s.
BUFFERED_S: Final = 900.0


class VerifiedCallback(NamedTuple):
    """
    What of a delivery is believed or kept; its signature was verified.

    Attributes:
        task_id: The conversion task.

        attempt_id: The attempt that the delivery's URL names; `None` for none.

        wav_url: The file, if the callback reports a success that may be believed, and
            files may be fetched from there.

        host: The host and port of that file, as ``name:port``.
    """

    task_id: str
    attempt_id: str | None
    wav_url: URL | None = None
    host: str | None = None


class EarlyCallbackBuffer:
    """Keeps callbacks by task; the first of a task stays."""

    def __init__(self) -> None:
        self._buffered: OrderedDict[str, tuple[float, VerifiedCallback]] = OrderedDict()

    def __len__(self) -> int:
        """How many are kept, old ones included that nobody has looked for."""
        return len(self._buffered)

    def put(self, callback: VerifiedCallback, now_mono_s: float) -> None:
        """
        Keep *callback*, unless there is one of its task.

        The first stays, so that a replay with another body does not replace it.
        If it names no attempt, one that does gives it that, but not its file.
        """
        self._drop_old(now_mono_s)
        kept = self._buffered.get(callback.task_id)
        if kept is not None:
            if kept[1].attempt_id is None:
                callback = callback._replace(wav_url=None, host=None)
                self._buffered[callback.task_id] = (kept[0], callback)
            return
        self._buffered[callback.task_id] = (now_mono_s, callback)
        if len(self._buffered) > MAX_BUFFERED:
            self._buffered.popitem(last=False)

    def pop(self, task_id: str, now_mono_s: float) -> VerifiedCallback | None:
        """Return the callback of a task, which is then no longer kept; `None` if there is none."""
        self._drop_old(now_mono_s)
        kept = self._buffered.pop(task_id, None)
        return None if kept is None else kept[1]

    def get(self, task_id: str, now_mono_s: float) -> VerifiedCallback | None:
        """Return the callback of a task, which stays; `None` if there is none."""
        self._drop_old(now_mono_s)
        kept = self._buffered.get(task_id)
        return None if kept is None else kept[1]

    def find_by_attempt(self, attempt_id: str, now_mono_s: float) -> tuple[str, ...]:
        """Return the tasks, oldest first, whose callbacks name *attempt_id*."""
        self._drop_old(now_mono_s)
        return tuple(self._by_attempt(attempt_id))

    def _by_attempt(self, attempt_id: str) -> Iterator[str]:
        # A search through all, for each submit lost; those are few.
        for _, callback in self._buffered.values():
            if callback.attempt_id == attempt_id:
                yield callback.task_id

    def _drop_old(self, now_mono_s: float) -> None:
        while self._buffered:
            kept_at, _ = next(iter(self._buffered.values()))
            if now_mono_s - kept_at < BUFFERED_S:
                return
            self._buffered.popitem(last=False)
