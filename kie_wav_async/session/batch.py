"""
A catalog, converted: tracks are read as there is room, outcomes come as they end.

Who does what. One reader task takes tracks from the source and hands them to
the coordinator; no conversion has a task of its own, its end is put into a queue
by the registry's news. The reader works while somebody wants outcomes: while an
``async for`` over the batch is alive, or an ``__anext__`` is pending. That is
how a ``break`` stops it, with or without ``async with``; what is queued by then
is taken back when its turn comes, and held for whoever iterates again.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncIterable, Iterator
from typing import TYPE_CHECKING, Final, Self

from kie_wav_async._support.tasks import is_caller_cancelled
from kie_wav_async._support.validation import verify_type
from kie_wav_async.core.state_machine import Phase
from kie_wav_async.errors import (
    AuthenticationError,
    ChargeLimitError,
    EndpointGoneError,
    InsufficientCreditsError,
    KieWavError,
    LedgerError,
    SessionClosedError,
)
from kie_wav_async.models import Track, WavFile
from kie_wav_async.session.context import CLOSE_TIMEOUT_S
from kie_wav_async.session.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from types import TracebackType

    from kie_wav_async._support.timer import Timer
    from kie_wav_async.core.state_machine import TaskEntry
    from kie_wav_async.session.loop import SessionLoop
    from kie_wav_async.session.submit_coordinator import SubmitCoordinator

#: Errors that every further track would meet too.
_STOPPERS: Final = (
    AuthenticationError,
    InsufficientCreditsError,
    EndpointGoneError,
    ChargeLimitError,
    LedgerError,
    SessionClosedError,
)


class Batch:
    """
    The outcomes of a catalog, in the order in which they end.

    ::

        async with session.convert_all(tracks) as batch:
            async for outcome in batch:
                print(outcome.track, outcome.wav or outcome.error)

    Every track that is read is yielded exactly once, duplicates too; a duplicate
    of a track in flight, or of one of the last 10,000 successes, shares its
    conversion. At most ``max_in_flight`` tracks are read and not yet yielded, so
    a slow consumer pauses the submits and memory does not grow with the catalog.

    A track's error is its outcome's ``error`` and ends nothing but that track,
    with these exceptions. After 401, 402, `EndpointGoneError`, `ChargeLimitError`
    and `LedgerError`, which every further track would meet too, no further track
    is read, those in flight are yielded as they end, those read but not submitted
    are yielded with that error, and then it is raised, once. So is an error raised
    by *tracks* itself. Maintenance (455) holds the submits until it is over.

    After ``break``, `aclose` or a cancellation nothing more is read or
    submitted; what is in flight stays in ``conversions()``. Iterating again goes
    on where it stopped, unless the batch was closed.
    """

    def __init__(
        self,
        tracks: Iterable[Track] | AsyncIterable[Track],
        loop: SessionLoop,
        coordinator: SubmitCoordinator,
        max_in_flight: int,
    ) -> None:
        self._loop = loop
        self._context = loop.context
        self._coordinator = coordinator
        self._max_in_flight = max_in_flight
        self._source = _open_source(tracks)
        self._read = 0
        # A heap by index: read, and not taken (any more).
        self._undelivered: list[tuple[int, Track]] = []
        self._open: set[_PendingTrack] = set()
        self._ready: deque[Outcome] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._is_exhausted = False
        self._is_closed = False
        self._stopped_by: KieWavError | None = None
        self._error: Exception | None = None
        self._loops = 0
        self._pending = 0
        self._resume_timer: Timer | None = None
        self._room = asyncio.Event()
        self._news = asyncio.Event()

    # --- the consumer's side ------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Outcome]:
        """Return an iterator; as long as it lives, tracks are read."""
        return _BatchIterator(self)

    async def __anext__(self) -> Outcome:
        """
        Return the next outcome; a cancelled call loses none.

        Raises:
            StopAsyncIteration: All tracks have been yielded, or the batch is closed.

            KieWavError: What stopped the batch; once, after the last outcome.

            RuntimeError: Called from another loop than the session's.
        """
        self._context.state.verify_loop()
        self._pending += 1
        self._context.state.close_listeners.add(self._news.set)
        try:
            while True:
                self._resume_reading()
                if self._ready:
                    return self._ready.popleft()
                if self._is_over:
                    error, self._error = self._error, None
                    if error is not None:
                        raise error
                    raise StopAsyncIteration
                self._news.clear()
                await self._news.wait()
        finally:
            self._pending -= 1
            if not self._pending:
                self._context.state.close_listeners.discard(self._news.set)
            # For the reader to see that there is room, or that it is not wanted.
            self._room.set()

    async def __aenter__(self) -> Self:
        """Return the batch itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the batch."""
        await self.aclose()

    async def aclose(self) -> None:
        """
        Read and submit nothing more; what is in flight stays in ``conversions()``.

        Submits that are still queued for this batch alone are withdrawn. Outcomes
        not yet yielded are dropped. Closing twice does nothing.
        """
        self._is_closed = True
        self._is_exhausted = True
        self._error = None
        for ticket in tuple(self._open):
            self._drop(ticket)
        self._undelivered.clear()
        self._ready.clear()
        self._news.set()
        if self._reader is not None:
            await self._context.stop(self._reader)
            self._end_reading()
        # Whoever else holds the source keeps it; else its cleanup is due.
        self._source = _NOTHING
        self._undelivered.clear()

    # --- the reader's side --------------------------------------------------------------

    @property
    def _is_wanted(self) -> bool:
        return not self._is_closed and (self._loops > 0 or self._pending > 0)

    @property
    def _is_settled(self) -> bool:
        """Whether all that was read has its outcome, and nothing more is to be read."""
        return self._is_exhausted and not (self._undelivered or self._open)

    @property
    def _is_over(self) -> bool:
        # A reader that was told to stop may still come with a track.
        return self._is_settled and not self._ready and self._reader is None

    @property
    def _has_capacity(self) -> bool:
        if not self._loop.core.queue.has_capacity:
            return False
        unyielded = len(self._undelivered) + len(self._open) + len(self._ready)
        return bool(self._undelivered) or unyielded < self._max_in_flight

    def _resume_reading(self) -> None:
        """Have a reader, unless there is nothing left to read."""
        if self._context.state.closed is not None and not self._is_settled:
            self._stop(self._context.state.closed)
        self._room.set()
        if self._reader is None and (self._undelivered or not self._is_exhausted):
            self._loop.capacity_listeners.add(self._room.set)
            self._reader = self._context.spawn(self._read_tracks())
            # Not at the reader's end: it may be cancelled before it begins.
            self._reader.add_done_callback(self._end_reading)

    async def _read_tracks(self) -> None:
        while self._is_wanted and (self._undelivered or not self._is_exhausted):
            if not self._has_capacity:
                self._room.clear()
                await self._room.wait()
            elif self._undelivered:
                await self._take_next()
            else:
                await self._read_one()

    def _end_reading(self, _: asyncio.Future[None] | None = None) -> None:
        self._reader = None
        if self._resume_timer is not None:
            self._resume_timer.cancel()
            self._resume_timer = None
        self._loop.capacity_listeners.discard(self._room.set)
        self._news.set()

    async def _read_one(self) -> None:
        try:
            track = await anext(self._source)
            verify_type(track, Track, "each of tracks")
        except StopAsyncIteration:
            self._end_source(None)
        except asyncio.CancelledError as cancellation:
            if is_caller_cancelled():
                raise
            # Not ours: something in the source was cancelled, and with it the source.
            error = RuntimeError("the source of the tracks was cancelled")
            error.__cause__ = cancellation
            self._end_source(error)
        except Exception as error:  # noqa: BLE001 - whatever the source raises is the user's to see
            self._end_source(error)
        else:
            # Taken on the next turn, if outcomes are still wanted by then.
            heapq.heappush(self._undelivered, (self._read, track))
            self._read += 1
            if self._stopped_by is not None:
                self._give_up(self._stopped_by)

    def _end_source(self, error: Exception | None) -> None:
        self._is_exhausted = True
        self._error = self._error or error
        self._source = _NOTHING

    async def _take_next(self) -> None:
        """Submit the next track, unless looking it up took so long that it is not next any more."""
        held = self._undelivered[0]
        failure: KieWavError | None = None
        try:
            await self._coordinator.load_from_ledger(held[1])
        except KieWavError as error:
            failure = error
        if self._undelivered[:1] == [held] and self._is_wanted and self._has_capacity:
            self._take(*heapq.heappop(self._undelivered), failure)

    def _take(self, index: int, track: Track, failure: KieWavError | None) -> None:
        """Submit one track, and see to it that its outcome is yielded."""
        try:
            if failure is not None:
                raise failure
            conversion = self._coordinator.get_or_enqueue(track, is_patient=True)
        except KieWavError as error:
            self._yield(Outcome(index=index, track=track, error=error.about(track=track)))
            return
        ticket = _PendingTrack(self, index, track, conversion)
        self._open.add(ticket)
        self._loop.dispatch_listeners.add(self._check_end)
        if conversion.done():
            ticket.set_result(None)
        else:
            self._loop.add_waiter(conversion, ticket)

    def _drop(self, ticket: _PendingTrack) -> None:
        """Wait for the track of *ticket* no more."""
        self._open.discard(ticket)
        if not self._open:
            self._loop.dispatch_listeners.discard(self._check_end)
        self._loop.drop_waiter(ticket.conversion, ticket)

    def settle(self, ticket: _PendingTrack, error: KieWavError | None) -> None:
        """Yield the outcome of one track: *error*, or what its conversion came to."""
        self._drop(ticket)
        outcome = ticket.conversion.outcome if error is None else error
        if isinstance(outcome, WavFile):
            self._yield(Outcome(index=ticket.index, track=ticket.track, wav=outcome))
        elif outcome is not None:
            told = ticket.conversion.error_for_waiter(outcome)
            self._yield(Outcome(index=ticket.index, track=ticket.track, error=told))

    def _yield(self, outcome: Outcome) -> None:
        self._ready.append(outcome)
        self._news.set()
        self._room.set()
        if isinstance(outcome.error, _STOPPERS):
            self._stop(outcome.error)

    # --- no further -----------------------------------------------------------------------

    def _stop(self, error: KieWavError) -> None:
        """Read nothing more, and yield what was read but not submitted."""
        if self._stopped_by is not None:
            return
        self._stopped_by = error.about()
        # It will be told of other tracks.
        self._stopped_by.task_id = self._stopped_by.track = None
        self._end_source(error.about())
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
            # A source that swallows its cancellation is not waited for.
            self._resume_timer = self._context.timer(self._end_reading)
            self._resume_timer.set(self._context.clock.monotonic() + CLOSE_TIMEOUT_S)
        self._check_end()

    def _check_end(self) -> None:
        """Before a submit goes out: take back what is queued and not wanted any more."""
        if self._is_wanted and self._stopped_by is None:
            return
        for ticket in tuple(self._open):
            if ticket.conversion.phase is Phase.QUEUED:
                self._drop(ticket)
                heapq.heappush(self._undelivered, (ticket.index, ticket.track))
        if self._stopped_by is not None:
            self._give_up(self._stopped_by)

    def _give_up(self, error: KieWavError) -> None:
        """Yield what was read and will not be submitted."""
        while self._undelivered:
            index, track = heapq.heappop(self._undelivered)
            self._ready.append(Outcome(index=index, track=track, error=error.about(track=track)))
        self._news.set()

    def enter_loop(self) -> None:
        """Note that an ``async for`` over the batch has begun."""
        self._loops += 1

    def leave_loop(self) -> None:
        """Note that an ``async for`` over the batch is over."""
        # Only a number and a call for later: the garbage collector may call this
        # from anywhere. Whoever reads or submits looks at the number before.
        self._loops -= 1
        loop = self._context.state.loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._room.set)


class _BatchIterator:
    """An iterator over a batch; its end, of news or of life, ends the ``async for``."""

    __slots__ = ("_batch", "_is_entered")

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._is_entered = True
        batch.enter_loop()

    def __aiter__(self) -> _BatchIterator:
        return self

    async def __anext__(self) -> Outcome:
        if not self._is_entered:
            self._is_entered = True
            self._batch.enter_loop()
        try:
            return await self._batch.__anext__()
        except BaseException:
            # The traceback keeps this object for as long as somebody keeps it.
            self._leave()
            raise

    def __del__(self) -> None:
        if hasattr(self, "_is_entered"):
            self._leave()

    def _leave(self) -> None:
        if self._is_entered:
            self._is_entered = False
            self._batch.leave_loop()


class _PendingTrack:
    """One track of a batch, waiting for its conversion to end."""

    __slots__ = ("batch", "conversion", "index", "track")

    def __init__(self, batch: Batch, index: int, track: Track, conversion: TaskEntry) -> None:
        self.batch = batch
        self.index = index
        self.track = track
        self.conversion = conversion

    def done(self) -> bool:
        return False

    def set_result(self, error: KieWavError | None, /) -> None:
        self.batch.settle(self, error)


def _open_source(tracks: Iterable[Track] | AsyncIterable[Track]) -> AsyncIterator[Track]:
    """
    Return *tracks* as an async iterator.

    Raises:
        TypeError: It is neither an iterable nor an async iterable.
    """
    if isinstance(tracks, AsyncIterable):
        return aiter(tracks)
    return _AsyncAdapter(iter(tracks))


class _AsyncAdapter:
    """A plain iterator, as an async one."""

    __slots__ = ("_iterator",)

    def __init__(self, iterator: Iterator[Track]) -> None:
        self._iterator = iterator

    def __aiter__(self) -> _AsyncAdapter:
        return self

    async def __anext__(self) -> Track:
        try:
            return next(self._iterator)
        except StopIteration:
            raise StopAsyncIteration from None


#: What a batch reads that has nothing more to read.
_NOTHING: Final = _AsyncAdapter(iter(()))
