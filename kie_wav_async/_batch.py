"""
A catalog, converted: tracks are read as there is room, outcomes come as they end.

Who does what. One reader task takes tracks from the source and hands them to
the submitter; no conversion has a task of its own, its end is put into a queue
by the registry's news. The reader works while somebody wants outcomes: while an
``async for`` over the batch is alive, or an ``__anext__`` is pending. That is
how a ``break`` stops it, with or without ``async with``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Iterator
from typing import TYPE_CHECKING, Final, Self

import attrs

from kie_wav_async._conversion import Conversion
from kie_wav_async._lifecycle import Phase
from kie_wav_async._models import Outcome, Track, WavFile
from kie_wav_async.errors import (
    AuthenticationError,
    ChargeLimitError,
    InsufficientCreditsError,
    KieWavError,
    SessionClosedError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from types import TracebackType

    from kie_wav_async._desk import Desk
    from kie_wav_async._submitter import Submitter

#: Errors that every further track would meet too.
_STOPPERS: Final = (
    AuthenticationError,
    InsufficientCreditsError,
    ChargeLimitError,
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
    with these exceptions. After 401, 402 and `ChargeLimitError`, which every
    further track would meet too, no further track is read, those in flight are
    yielded as they end, those read but not submitted are yielded with that
    error, and then it is raised, once. So is an error raised by *tracks* itself.
    Maintenance (455) holds the submits until it is over.

    After ``break``, `aclose` or a cancellation nothing more is read or
    submitted; what is in flight stays in ``conversions()``. Iterating again goes
    on where it stopped, unless the batch was closed.
    """

    def __init__(
        self,
        tracks: Iterable[Track] | AsyncIterable[Track],
        desk: Desk,
        submitter: Submitter,
        max_in_flight: int,
    ) -> None:
        """Read nothing yet."""
        self._desk = desk
        self._submitter = submitter
        self._max_in_flight = max_in_flight
        self._source = _open_source(tracks)
        self._read = 0
        self._held: Track | None = None
        self._open: set[_Ticket] = set()
        self._ready: deque[Outcome] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._is_exhausted = False
        self._is_stopped = False
        self._is_closed = False
        self._error: Exception | None = None
        self._loops = 0
        self._pending = 0
        self._room = asyncio.Event()
        self._news = asyncio.Event()

    # --- the consumer's side ------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Outcome]:
        """Return an iterator; as long as it lives, tracks are read."""
        return _Loop(self)

    async def __anext__(self) -> Outcome:
        """
        Return the next outcome; a cancelled call loses none.

        Raises:
            StopAsyncIteration: All tracks have been yielded, or the batch is closed.

            KieWavError: What stopped the batch; once, after the last outcome.

            RuntimeError: Called from another loop than the session's.
        """
        self._desk.hub.verify_loop()
        self._pending += 1
        try:
            while not self._ready:
                if self._is_closed:
                    raise StopAsyncIteration
                self._read_on()
                if not self._open and self._is_exhausted:
                    error, self._error = self._error, None
                    if error is not None:
                        raise error
                    raise StopAsyncIteration
                self._news.clear()
                await self._news.wait()
            outcome = self._ready.popleft()
            self._room.set()
            return outcome
        finally:
            self._pending -= 1

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
        self._submitter.room_listeners.discard(self._room.set)
        for ticket in tuple(self._open):
            ticket.conversion.drop_waiter(ticket)
        self._open.clear()
        self._ready.clear()
        self._news.set()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])

    # --- the reader's side --------------------------------------------------------------

    @property
    def _is_wanted(self) -> bool:
        return self._loops > 0 or self._pending > 0

    @property
    def _has_room(self) -> bool:
        is_below = len(self._open) + len(self._ready) < self._max_in_flight
        return is_below and self._submitter.has_room

    def _read_on(self) -> None:
        """Have a reader, unless there is nothing left to read."""
        if self._desk.hub.closed is not None:
            self._stop(self._desk.hub.closed)
        self._room.set()
        if self._reader is None and not self._is_exhausted:
            self._submitter.room_listeners.add(self._room.set)
            self._reader = self._desk.spawn(self._read_tracks())

    async def _read_tracks(self) -> None:
        try:
            while not self._is_exhausted:
                if not self._is_wanted:
                    return
                if not self._has_room:
                    self._room.clear()
                    await self._room.wait()
                elif self._held is not None:
                    track, self._held = self._held, None
                    self._take(track)
                else:
                    await self._read_one()
        finally:
            self._reader = None
            self._submitter.room_listeners.discard(self._room.set)
            self._news.set()

    async def _read_one(self) -> None:
        try:
            track = await anext(self._source)
        except StopAsyncIteration:
            self._is_exhausted = True
        except Exception as error:  # noqa: BLE001 - whatever the source raises is the user's to see
            self._is_exhausted = True
            self._error = self._error or error
        else:
            # Taken on the next turn, if the outcome is still wanted by then.
            self._held = track

    def _take(self, track: Track) -> None:
        """Submit one track, and see to it that its outcome is yielded."""
        index = self._read
        try:
            conversion = self._submitter.take(track, is_patient=True)
        except TypeError as error:
            self._is_exhausted = True
            self._error = error
            return
        except KieWavError as error:
            self._read += 1
            self._yield(Outcome(index=index, track=track, error=error))
            return
        self._read += 1
        ticket = _Ticket(self, index, track, conversion)
        self._open.add(ticket)
        if conversion.done():
            ticket.set_result(None)
        else:
            conversion.add_waiter(ticket)

    def settle(self, ticket: _Ticket, error: KieWavError | None) -> None:
        """Yield the outcome of one track: *error*, or what its conversion came to."""
        self._open.discard(ticket)
        outcome = ticket.conversion.outcome if error is None else error
        if isinstance(outcome, WavFile):
            self._yield(Outcome(index=ticket.index, track=ticket.track, wav=outcome))
        elif outcome is not None:
            told = ticket.conversion.told(outcome)
            self._yield(Outcome(index=ticket.index, track=ticket.track, error=told))

    def _yield(self, outcome: Outcome) -> None:
        self._ready.append(outcome)
        self._news.set()
        self._room.set()
        if isinstance(outcome.error, _STOPPERS):
            self._stop(outcome.error)

    def _stop(self, error: KieWavError) -> None:
        """Read nothing more, and yield what was read but not submitted."""
        if self._is_stopped:
            return
        self._is_stopped = True
        self._is_exhausted = True
        self._error = self._error or error.about()
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
        if self._held is not None:
            track, self._held = self._held, None
            self._ready.append(Outcome(index=self._read, track=track, error=error.about()))
            self._read += 1
        for ticket in tuple(self._open):
            if ticket.conversion.phase is Phase.QUEUED:
                ticket.conversion.drop_waiter(ticket)
                self.settle(ticket, error)

    def enter_loop(self) -> None:
        """Note that an ``async for`` over the batch has begun."""
        self._loops += 1

    def leave_loop(self) -> None:
        """Note that an ``async for`` over the batch is over."""
        # Only a number: the garbage collector may call this from anywhere. The
        # reader looks at it before it reads.
        self._loops -= 1


class _Loop:
    """An iterator over a batch; its end of life is the end of the ``async for``."""

    __slots__ = ("_batch",)

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        batch.enter_loop()

    def __aiter__(self) -> _Loop:
        return self

    async def __anext__(self) -> Outcome:
        return await self._batch.__anext__()

    def __del__(self) -> None:
        self._batch.leave_loop()


@attrs.define(eq=False)
class _Ticket:
    """One track of a batch, waiting for its conversion to end."""

    batch: Batch
    index: int
    track: Track
    conversion: Conversion

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
    return _Turned(iter(tracks))


@attrs.define
class _Turned:
    """A plain iterator, as an async one."""

    _iterator: Iterator[Track]

    def __aiter__(self) -> _Turned:
        return self

    async def __anext__(self) -> Track:
        try:
            return next(self._iterator)
        except StopIteration:
            raise StopAsyncIteration from None
