"""The submits whose outcome is unknown, by attempt and by track."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_wav_async.core.state_machine import IllegalTransition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kie_wav_async.models import Track, UnknownSubmit


class UnknownSubmits:
    """Holds the submits whose outcome is unknown; one track may have several."""

    __slots__ = ("_by_attempt", "_by_track")

    def __init__(self) -> None:
        self._by_attempt: dict[str, UnknownSubmit] = {}
        self._by_track: dict[Track, list[str]] = {}

    def __len__(self) -> int:
        return len(self._by_attempt)

    def add(self, unknown: UnknownSubmit) -> None:
        """Add a submit, the latest of its track."""
        self._by_attempt[unknown.attempt_id] = unknown
        self._by_track.setdefault(unknown.track, []).append(unknown.attempt_id)

    def remove(self, attempt_id: str) -> UnknownSubmit:
        """
        Remove a submit, whose outcome is known now, and return it.

        Raises:
            IllegalTransition: There is none of that name.
        """
        unknown = self._by_attempt.pop(attempt_id, None)
        if unknown is None:
            msg = f"no unknown submit has the attempt_id {attempt_id!r}"
            raise IllegalTransition(msg)
        others = self._by_track[unknown.track]
        others.remove(attempt_id)
        if not others:
            del self._by_track[unknown.track]
        return unknown

    def get(self, attempt_id: str) -> UnknownSubmit | None:
        """Return the submit of that name, if there is one."""
        return self._by_attempt.get(attempt_id)

    def latest_of(self, track: Track) -> UnknownSubmit | None:
        """Return the latest submit of *track*, if there is one."""
        attempts = self._by_track.get(track)
        return self._by_attempt[attempts[-1]] if attempts else None

    def attempts_of(self, track: Track | None) -> Sequence[str]:
        """Return the names of the submits of *track*, oldest first."""
        return () if track is None else self._by_track.get(track, ())

    def all(self) -> tuple[UnknownSubmit, ...]:
        """Return every submit, oldest first."""
        return tuple(self._by_attempt.values())
