"""The saving stage of ``kie-wav bulk``: files, while other tracks are being converted."""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
from typing import TYPE_CHECKING, Any, Final

import attrs

from kie_wav_async import Track, WavFile, errors, events
from kie_wav_async.cli.bulk.backpressure import Backpressure
from kie_wav_async.cli.bulk.estimate import BYTES_PER_TRACK, TrackCounts, count_words
from kie_wav_async.cli.bulk.file_paths import FilePaths
from kie_wav_async.cli.bulk.saving_queue import SavingQueue
from kie_wav_async.cli.common.ledger_pages import pages
from kie_wav_async.cli.common.streams import wait_for_room
from kie_wav_async.ledger import TrackState

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from kie_wav_async import Clock, Download, WavSession
    from kie_wav_async.cli.bulk.saved_files import SavedFilesCheck
    from kie_wav_async.ledger import Ledger, LedgerEntry

# What may be otherwise another time.
_TRANSIENT: Final = frozenset({"unavailable", "truncated", "too-slow"})
# So often a file is tried in one run, with a pause between, which doubles.
_ROUNDS: Final = 3
_PAUSE_S: Final = 60.0
# So many files that cannot be saved, and none in between that can: no more are paid for.
# So many attempts that bring nothing, and no more are paid for while they go on.
_MOST_UNSAVED: Final = 20
# What a disk says of one name, and may not say of the next.
_OF_ONE_NAME: Final = frozenset(
    {errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}
)


class UnsavableError(errors.KieWavError):
    """File after file cannot be saved, so that no more are paid for."""


@attrs.define
class Unsaved:
    """
    WAVs that could not be saved, for one reason.

    Attributes:
        reason: In a word or two.

        message: What was said of the first of them.

        example: The first of them.

        count: How many.
    """

    reason: str
    message: str
    example: Track
    count: int = 0


class Saver:
    """
    Saves the WAVs of a catalog, those first that are deleted first.

    It begins with what the ledger has, goes on with what the session tells, and is
    done once it was told that no more will come.
    """

    def __init__(
        self,
        session: WavSession,
        ledger: Ledger,
        clock: Clock,
        *,
        folder: Path,
        template: str,
        downloads: int,
        earlier: SavedFilesCheck,
        on_saved: Callable[[LedgerEntry, str], object],
        on_put_back: Callable[[errors.DownloadError, float], object],
        accept_short: bool = False,
    ) -> None:
        """
        Begin with nothing saved.

        Args:
            session: What downloads; entered.

            ledger: What is to be saved, and what was; open.

            clock: The source of time.

            folder: Where the files go.

            template: What they are called.

            downloads: How many at a time.

            earlier: What was saved before.

            on_saved: Called with where a track stood, and its place in the folder,
                once its file is there and the ledger has it.

            on_put_back: Called with why a file is not saved yet, and when it is tried
                again, in seconds.

            accept_short: Whether files are saved that are shorter than they declare.
        """
        #: Files that were saved, and their bytes.
        self.files = self.bytes = 0
        #: Bytes that came over the network.
        self.received = 0
        #: Those given up for now.
        self.given_up = 0
        #: Files about which something is unusual, and one of them in words.
        self.noted = 0
        self.note = ""
        self.throttle = Backpressure()
        self._session = session
        self._ledger = ledger
        self._clock = clock
        self._began = self._now()
        self._folder = folder
        self._places = FilePaths(folder, ledger, template)
        self._downloads = downloads
        self._earlier = earlier
        self._on_saved = on_saved
        self._on_put_back = on_put_back
        self._accept_short = accept_short
        self._queue = SavingQueue()
        self._changed = asyncio.Event()
        self._is_refilling = self._is_closed = False
        # Those that are being saved, and those that wait to be tried again.
        self._in_progress = 0
        self._rounds: dict[Track, int] = {}
        self._waiting: dict[Track, Any] = {}
        # Those whose next attempt is waited for.
        self._troubled: set[Path] = set()
        # How much of each file has come.
        self._parts: dict[Path, int] = {}
        self._unsaved: dict[str, Unsaved] = {}
        # Those that could not be saved, at the first attempt or a later one, since one was.
        self._failing: set[Track] = set()
        # Attempts that failed since one brought something.
        self._vain_attempts = 0
        self._last_failure = ""

    # --- what is told it --------------------------------------------------------------------

    def note_event(self, event: events.Event) -> None:
        """Take an event of the session's."""
        match event:
            case events.ConversionSucceeded(
                wav=WavFile(track=Track() as track, expires_at=expires_at)
            ):
                self._queue.put(expires_at, track)
                self._changed.set()
            case events.DownloadRetryScheduled():
                self._troubled.add(event.path)
                self._vain_attempts += 1
            case events.DownloadProgress():
                self._troubled.discard(event.path)
                before = self._parts.get(event.path)
                if before is not None and event.bytes > before:
                    self.received += event.bytes - before
                    self._vain_attempts = 0
                self._parts[event.path] = event.bytes
            case _:
                pass

    def finish(self) -> None:
        """Take it that no more will come."""
        self._is_closed = True
        self._changed.set()

    def look(self, tally: TrackCounts) -> None:
        """Look, every now and then, at how far it has come, and decide who waits for whom."""
        self.throttle.note(self._clock.monotonic(), self.received, is_busy=bool(self._in_progress))
        _ = self.throttle.decide(0.0 if self.is_idle else self._mean * self.backlog(tally))
        self._changed.set()

    # --- what it tells ----------------------------------------------------------------------

    def backlog(self, tally: TrackCounts) -> int:
        """Return how many files are to be saved of what is paid."""
        return max(0, tally.of(TrackState.SUCCEEDED) - self.given_up) + tally.in_flight

    @property
    def waiting(self) -> int:
        """How many are tried again after a pause."""
        return len(self._waiting) + len(self._troubled)

    @property
    def unsaved(self) -> list[Unsaved]:
        """What was given up, by reason, the most common first."""
        return sorted(self._unsaved.values(), key=lambda entry: -entry.count)

    @property
    def _mean(self) -> float:
        """Bytes of a file."""
        files = self._earlier.files + self.files
        return (self._earlier.bytes + self.bytes) / files if files else float(BYTES_PER_TRACK)

    def progress(self, tally: TrackCounts) -> tuple[int, int]:
        """Return the bytes that are here, and those that it is expected to become."""
        whole = self._earlier.bytes + self.bytes
        done = whole + sum(self._parts.values())
        files = self.backlog(tally) + tally.of(TrackState.PLANNED, TrackState.SUBMITTING)
        return done, max(done, whole + round(self._mean * files))

    # --- who waits for it -------------------------------------------------------------------

    async def wait_turn(self) -> None:
        """
        Return once a new conversion may be paid for.

        Raises:
            UnsavableError: Nothing comes any more that could be saved, and too much
                before could not.
        """
        while self.throttle.is_on or self.is_stuck:
            if self._is_hopeless and self.is_idle and not self._session.conversions():
                msg = (
                    f"{count_words(len(self._failing), 'file')} in a row could not be saved, so "
                    f"that no more are paid for; of the last one: {self._last_failure}"
                )
                raise UnsavableError(msg)
            await self._wait_for_change()

    async def wait_idle(self) -> None:
        """Return once every WAV that there was has been tried, and nothing waits to be again."""
        while not self.is_idle:
            await self._wait_for_change()

    @property
    def is_stuck(self) -> bool:
        """Whether so much in a row could not be saved that no more is paid for."""
        is_in_vain = self._vain_attempts >= _MOST_UNSAVED and not self.is_idle
        return self._is_hopeless or is_in_vain

    @property
    def _is_hopeless(self) -> bool:
        return len(self._failing) >= _MOST_UNSAVED

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to be done at present."""
        is_at_work = self._in_progress or self._waiting or self._is_refilling
        return not (is_at_work or self._queue or self._queue.is_short)

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        _ = await self._changed.wait()

    # --- the work ---------------------------------------------------------------------------

    async def run(self) -> None:
        """
        Save what there is and what comes, until no more will.

        Raises:
            DownloadError: The disk is full, or says no.

            LedgerError: The ledger cannot be read or written.

            OutputError: Nobody wants to hear of it any more.
        """
        try:
            await run_together(*(self._work() for _ in range(self._downloads)))
        finally:
            for timer in self._waiting.values():
                timer.cancel()

    async def _work(self) -> None:
        while True:
            await wait_for_room()
            if (track := await self._next()) is None:
                return
            self._in_progress += 1
            try:
                await self._save(track)
            finally:
                self._in_progress -= 1
                self._changed.set()

    async def _next(self) -> Track | None:
        """Return what is to be saved next; `None` once nothing will."""
        while True:
            if self._is_refilling:
                pass
            elif self._queue:
                return self._queue.take()
            elif self._queue.is_short:
                await self._refill()
                continue
            elif self._is_closed and self.is_idle:
                return None
            await self._wait_for_change()

    async def _refill(self) -> None:
        """Find what was left out, or is of an earlier run."""
        self._is_refilling = True
        self._queue.begin_refill()
        async for page in pages(self._ledger, [TrackState.SUCCEEDED]):
            for entry in page:
                self._queue.refill(entry.expires_at, entry.track)
        self._is_refilling = False
        self._changed.set()

    async def _save(self, track: Track) -> None:
        entry = await self._ledger.get(track)
        url = None if entry is None else entry.wav_url
        if entry is None or url is None or entry.state is not TrackState.SUCCEEDED:
            self._be_done(track)
            return
        wav = WavFile(
            entry.task_id,
            url,
            entry.track,
            entry.settled_by or "poll",
            entry.expires_at,
            accepted_at=entry.accepted_at,
        )
        path: Path | None = None
        try:
            place = await self._places.find(entry)
            path = self._folder / place
            download = await self._session.download(wav, path, accept_short=self._accept_short)
            await self._store(entry, place, download)
        except errors.DownloadError as error:
            await self._take_failure(entry, error)
        else:
            self._be_done(track)
        finally:
            if path is not None:
                _ = self._parts.pop(path, None)
                self._troubled.discard(path)

    async def _store(self, entry: LedgerEntry, place: str, download: Download) -> None:
        """Have the ledger know of a file; whoever is cancelled meanwhile still tells of it."""

        async def store() -> None:
            size, sha256 = download.bytes, download.sha256
            await self._ledger.mark_saved(entry.track, path=place, size=size, sha256=sha256)
            self.files += 1
            self.bytes += size
            self._failing.clear()
            self._vain_attempts = 0
            if download.notes:
                self.noted += 1
                self.note = self.note or f"{place}: {'; '.join(download.notes)}"
            self._on_saved(entry, place)

        storing = asyncio.ensure_future(store())
        try:
            await asyncio.shield(storing)
        except asyncio.CancelledError:
            _ = await asyncio.wait({storing})
            if not storing.cancelled():
                _ = storing.exception()
            raise

    def _be_done(self, track: Track) -> None:
        _ = self._rounds.pop(track, None)
        self._queue.release(track)

    # --- what is not saved ------------------------------------------------------------------

    async def _take_failure(self, entry: LedgerEntry, error: errors.DownloadError) -> None:
        track, reason = entry.track, error.reason
        if reason == "disk" and not _is_of_one_name(error):
            raise error
        if reason == "expired":  # It says nothing of other files.
            self._be_done(track)
            await self._ledger.mark_expired(track)
            return
        if self._tells_of_others(entry):
            self._failing.add(track)
            self._last_failure = str(error)
        rounds = self._rounds.get(track, 0) + 1
        if reason in _TRANSIENT and rounds < _ROUNDS:
            self._rounds[track] = rounds
            self._put_back(entry, error, _PAUSE_S * 2 ** (rounds - 1))
            return
        self._be_done(track)
        self.given_up += 1
        group = self._unsaved.setdefault(reason, Unsaved(reason, str(error), track))
        group.count += 1

    def _tells_of_others(self, entry: LedgerEntry) -> bool:
        """
        Whether a file that cannot be saved says something of those that are paid for next.

        One of an earlier run may be long deleted, if it is past the retention or of unknown
        age, and without the service's word on that it is tried in every run. It must not
        keep all others from being converted.
        """
        settled_at, expires_at = entry.settled_at, entry.expires_at
        is_new = settled_at is not None and settled_at >= self._began
        return is_new or (expires_at is not None and expires_at > self._now())

    def _now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._clock.time(), dt.UTC)

    def _put_back(self, entry: LedgerEntry, error: errors.DownloadError, pause_s: float) -> None:
        def put_back() -> None:
            del self._waiting[entry.track]
            self._queue.put_back(entry.expires_at, entry.track)
            self._changed.set()

        at = self._clock.monotonic() + pause_s
        self._waiting[entry.track] = self._clock.call_at(at, put_back)
        self._on_put_back(error, pause_s)


def _is_of_one_name(error: errors.DownloadError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _OF_ONE_NAME


async def run_together(*works: Coroutine[Any, Any, None]) -> None:
    """Run *works* until all have ended, or one has failed; raise what it failed with."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        _ = await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
