"""
A durable journal of a catalog: what was asked for, what was paid, and what came of it.

Every step that spends money stands between two commits. Before the first byte of
a submit its intent is on the disk; before its caller hears of the task, the task's
id is. Whatever is open when a process dies is *unknown* to the next one, never
"probably not", so that the bill is bounded at any moment::

    accepted <= charged <= accepted + unknown
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from yarl import URL

    from kie_wav_async.core.track_states import AttemptOutcome, TrackState
    from kie_wav_async.ledger.models import LedgerEntry, RecoveryState
    from kie_wav_async.models import SettledBy, Track


@runtime_checkable
class Ledger(Protocol):
    """
    What a session asks of its ledger.

    A call that returns has been written, and survives the death of the process
    and of the machine. One that raises `LedgerError` may or may not have been
    written, and changes nothing by halves. Calls take effect in the order in which
    they are made, and a cancelled one may still take effect. Said again with the
    same ids and values, every call but `add_tracks` and `requeue` changes nothing.

    All times are seconds since 1970, given by the caller.
    """

    async def open(self, now_unix_s: float) -> RecoveryState:
        """
        Open the ledger for this process alone, and tell where it stands.

        Every submit that was under way in a process that has ended is unknown
        from *now_unix_s* on. Opened again while it is open, it only tells; it
        closes with the last `aclose`.

        Raises:
            LedgerError: Another process has it open, another version wrote it, or
                it cannot be read.
        """
        ...

    async def aclose(self) -> None:
        """Undo one `open`; the last one waits for what is being written, and lets go."""
        ...

    async def add_tracks(self, tracks: Iterable[Track]) -> int:
        """
        Take in tracks as planned, all or none; return how many were not there before.

        Of more than 1,000 tracks, it may take effect after calls that are made later.
        """
        ...

    async def requeue(self, states: Iterable[TrackState]) -> int:
        """
        Plan tracks again that came to nothing; return how many.

        Args:
            states: Among ``REJECTED``, ``FAILED`` and ``EXPIRED``.
        """
        ...

    async def get(self, track: Track) -> LedgerEntry | None:
        """Return where a track stands; `None` if it is not there."""
        ...

    async def get_by_task(self, task_id: str) -> LedgerEntry | None:
        """
        Return where the track of a task stands; `None` if no track has, or had, that task.

        It may be followed under another one by now. Of several tracks it is the one
        followed under this task, else the one that was last given it.
        """
        ...

    async def list_entries(
        self, states: Iterable[TrackState], *, after: int = 0, limit: int = 1000
    ) -> Sequence[LedgerEntry]:
        """Return the first tracks in one of *states* whose index is above *after*, in order."""
        ...

    async def count_by_state(self) -> Mapping[TrackState, int]:
        """Return how many tracks stand where; every state has an entry."""
        ...

    async def begin_attempt(
        self, track: Track, attempt_id: str, now_unix_s: float, *, again: bool = False
    ) -> LedgerEntry | None:
        """
        Write down that a submit of *track* is about to be sent.

        Returns `None` if it may be sent: the track is new, planned, refused or
        failed, or *again* was said and no submit of it is under way. Otherwise
        returns where the track stands, and nothing has changed. Said again of the
        same attempt it returns `None` for as long as that is under way.
        """
        ...

    async def finish_attempt(
        self,
        attempt_id: str,
        outcome: AttemptOutcome,
        now_unix_s: float,
        *,
        task_id: str = "",
        error_code: int | None = None,
        error: str | None = None,
        accepted_unix_s: float | None = None,
    ) -> None:
        """
        Write down what came of a submit.

        A submit under way can come to anything; an unknown one to ``ACCEPTED`` or
        ``NOT_CREATED``; one ``NOT_CREATED`` to ``ACCEPTED``, as a task that is there
        beats any word that there is none; one that ended in ``EXISTS_WITHOUT_ID`` to ``ADOPTED``,
        if the task was found, or ``NOT_CREATED``, if there is none, which plans an
        existing track again; any other stays what it is. ``ACCEPTED`` and ``ADOPTED``
        name the task; the track is followed under it, unless it has a task that
        has not ended, or got its WAV after this submit. A task of the track that
        ``ADOPTED`` names again is followed anew. After an outcome that created
        nothing the track stands where it would without this submit: unknown if a
        later one than its WAV is, succeeded if it has a WAV, else planned, refused
        or existing. An attempt that is not there is ignored.

        *accepted_unix_s* is when the service made the task, by the service's own
        clock; `None` if it did not say.
        """
        ...

    async def resolve(self, attempt_id: str, now_unix_s: float, *, task_id: str = "") -> bool:
        """
        Write down the user's word on a submit: which task it created, or that it created none.

        The word is taken, and `True` returned, for a submit that is unknown, that
        ended in ``EXISTS_WITHOUT_ID``, or that has a word already, which is replaced: of an
        existing one the task is ``ADOPTED``, else ``ACCEPTED``; without *task_id* it
        is ``NOT_CREATED``. Any other stays what it is: `False`.

        What a replaced word has led to counts no more. If the track was followed
        under its task, the end, the WAV and the file of that task are forgotten (the
        path is kept), and the track is followed under another task of its own, if it
        has one, else under the new word's.
        """
        ...

    async def record_callback(self, attempt_id: str, task_id: str) -> None:
        """
        Write down that an authentic callback of *task_id* names *attempt_id*.

        Only the first one counts, and only while the attempt is under way or
        unknown; see `RecoveryState.callback_tasks`.
        """
        ...

    async def keep_host(self, host: str) -> None:
        """
        Write down that the service named a file on *host*, as ``name:port``.

        See `RecoveryState.hosts`. Said again it counts as the latest. Of more than 100
        the one that was said longest ago is forgotten.
        """
        ...

    async def finish_task(
        self,
        task_id: str,
        now_unix_s: float,
        *,
        wav_url: URL | None = None,
        settled_by: SettledBy = "poll",
        error_code: int | None = None,
        error: str | None = None,
        accepted_unix_s: float | None = None,
    ) -> None:
        """
        Write down how a task ended: with the WAV at *wav_url*, or badly.

        *settled_by* tells what named the WAV; without *wav_url* it means nothing.

        The first end counts. The first WAV of any of its tasks makes a track
        succeed. One whose task fails is followed under another that has not
        ended, if there is one; else it is unknown if a submit of it is, and has
        failed if none is. A task that is not there is ignored.

        *accepted_unix_s* is when the service made the task, as its record says; of two
        such times the later one is kept.
        """
        ...

    async def reserve_path(self, track: Track, *, path: str, key: str) -> bool:
        """
        Write down where the WAV of a track is to be saved; return whether it may be there.

        A track, whatever its state, keeps the place until it is given another, also
        when it is expired, planned again or converted anew. Its former key is free
        then.

        Args:
            track: The track.

            path: Relative to the catalog's folder.

            key: The path as file systems compare it: the same of two paths that one
                of them may take for one file.

        Returns:
            `False`, and nothing has changed, if another track has *key*, if the WAV
            is a file here at another path, or if the track is not there; else `True`.
        """
        ...

    async def mark_saved(self, track: Track, *, path: str, size: int, sha256: str) -> None:
        """
        Write down that the WAV of a succeeded track is a file here.

        Said again, the last word counts. An expired track is stored too, as the WAV
        was saved in time; any other stays as it is. If *path* is not the one that
        was reserved, the track has no key any more, and keeps nobody off its path.
        """
        ...

    async def mark_missing(self, track: Track) -> None:
        """
        Write down that the WAV of a track is to be fetched again.

        The file of a stored track is gone or damaged, or the WAV of an expired one may
        be at the service after all. The track has succeeded then, and its path is kept.
        Any other stays as it is.
        """
        ...

    async def mark_expired(self, track: Track) -> None:
        """
        Write down that the service has deleted the WAV of a succeeded track.

        Whatever its age by our clock: it is the service that has said so. Any other
        track stays as it is.
        """
        ...
