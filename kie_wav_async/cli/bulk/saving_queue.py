"""Which WAV is saved next: the one that the service deletes first."""

from __future__ import annotations

import bisect
import math
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from kie_wav_async import Track

if TYPE_CHECKING:
    import datetime as dt


#: So many tracks are held at a time.
MOST: Final = 10_000

# When it is deleted, then its ids: the same for the same track, whoever tells of it.
_Key: TypeAlias = tuple[float, str, str]
_FIRST: Final[_Key] = (-math.inf, "", "")


@attrs.define
class SavingQueue:
    """
    Tracks whose WAVs are to be saved, in the order in which the service deletes them.

    One of unknown age goes first: nobody knows how long it will be there. Only so
    many are held, and all that there is before the last of them. What comes after
    it is left out, and found again by a refill, which a new queue begins with.

    Attributes:
        most: So many are held.
    """

    most: int = MOST
    _entries: list[tuple[_Key, Track]] = attrs.field(factory=list[tuple[_Key, Track]], init=False)
    # Those taken and not yet done with, too.
    _held: set[Track] = attrs.field(factory=set[Track], init=False)
    # From here on tracks were left out; `None`: none was.
    _horizon: _Key | None = attrs.field(default=_FIRST, init=False)
    _floor: _Key = attrs.field(default=_FIRST, init=False)

    def __len__(self) -> int:
        """Return how many wait to be taken."""
        return len(self._entries)

    @property
    def held(self) -> int:
        """How many wait to be taken, or were and are not done with."""
        return len(self._held)

    @property
    def is_short(self) -> bool:
        """Whether some were left out."""
        return self._horizon is not None

    def begin_refill(self) -> None:
        """Make room for what was left out: all of it is to be put in again by `refill`."""
        self._floor, self._horizon = self._horizon or _FIRST, None

    def refill(self, expires_at: dt.datetime | None, track: Track) -> None:
        """Put in a track that may have been left out; what was dealt with before is not."""
        if _key(expires_at, track) >= self._floor:
            self.put(expires_at, track)

    def put(self, expires_at: dt.datetime | None, track: Track) -> None:
        """Put in a track, unless it is held, or comes after those that were left out."""
        key = _key(expires_at, track)
        if track in self._held or (self._horizon is not None and key >= self._horizon):
            return
        bisect.insort(self._entries, (key, track), key=_key_of)
        self._held.add(track)
        if len(self._held) > self.most:
            self._horizon, last = self._entries.pop()
            self._held.discard(last)

    def take(self) -> Track:
        """
        Return the next; it is held until it is put back or released.

        Raises:
            IndexError: There is none.
        """
        return self._entries.pop(0)[1]

    def put_back(self, expires_at: dt.datetime | None, track: Track) -> None:
        """Have a track that was taken wait again, in its place."""
        bisect.insort(self._entries, (_key(expires_at, track), track), key=_key_of)

    def release(self, track: Track) -> None:
        """Be done with a track that was taken."""
        self._held.discard(track)


def _key(expires_at: dt.datetime | None, track: Track) -> _Key:
    at_unix_s = -math.inf if expires_at is None else expires_at.timestamp()
    return at_unix_s, track.music_task_id, track.audio_id


def _key_of(entry: tuple[_Key, Track]) -> _Key:
    return entry[0]
