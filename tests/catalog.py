"""
Catalogs to convert, and a service that does with each track as told.

What a track comes to goes by its number, not by the order of the requests, so
that a test says what happens to which track and leaves the schedule free.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict, deque
from typing import TYPE_CHECKING

import attrs

from kie_wav_async import Outcome, PollSchedule, RateLimit, Track, WavSession
from kie_wav_async.testing import (
    FakeClock,
    ScriptedTransport,
    accepted,
    failed,
    pending,
    polled_task_id,
    refused,
    submitted_track,
    succeeded,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from kie_wav_async import Batch, WireRequest, WireResponse
    from kie_wav_async.testing import Reply

#: Polls every second, so that conversions end in the order the test gives.
EVERY_SECOND = PollSchedule(first_s=1.0, interval_s=1.0, jitter=0.0, max_per_s=1e6)

#: Submits without a wait of their own.
AT_ONCE = RateLimit(1_000, per_s=0.001)


def track(number: int) -> Track:
    """Return the track of that number."""
    return Track("5c79", f"e{number}")


def tracks(*numbers: int) -> list[Track]:
    """Return the tracks of those numbers."""
    return [track(number) for number in numbers]


def number_of(converted: Track) -> int:
    """Return the number of a track."""
    return int(converted.audio_id[1:])


def numbers(outcomes: Iterable[Outcome]) -> list[int]:
    """Return the numbers of the tracks of *outcomes*."""
    return [number_of(outcome.track) for outcome in outcomes]


class Studio:
    """
    A service that converts each track in its own time.

    Attributes:
        takes_s: How long the conversion of a track takes, by its number; else 2 s.

        latency_s: How long a submit is on the wire, by its number; else no time.

        replies:
            What submits of a track are answered, by its number; accepted when
            there is no more. Not awaitables.

        bad: The numbers of the tracks whose conversion fails.

        polls_refused: The code that polls are answered, if not `None`.

        maintained_until: When the service accepts submits again; else 455.

        accepted: How many submits of a track were accepted, by its number.

        submitted: The numbers of the tracks in the order of their submits.

        submitted_at: When each of these was seen.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.takes_s: dict[int, float] = defaultdict(lambda: 2.0)
        self.latency_s: dict[int, float] = defaultdict(float)
        self.replies: dict[int, deque[Reply]] = defaultdict(deque)
        self.bad: set[int] = set()
        self.polls_refused: int | None = None
        self.maintained_until = -math.inf
        self.accepted: Counter[int] = Counter()
        self.submitted: list[int] = []
        self.submitted_at: list[float] = []
        self.transport = ScriptedTransport(self._reply)
        self._tasks: dict[str, tuple[int, float]] = {}

    def session(self, **settings: object) -> WavSession:
        settings = {"rate_limit": AT_ONCE, "poll": EVERY_SECOND, **settings}
        return WavSession("key", transport=self.transport, clock=self.clock, **settings)

    async def _reply(self, request: WireRequest) -> WireResponse | BaseException:
        if not request.is_submit:
            if self.polls_refused is not None:
                return refused(self.polls_refused)
            return self._record(polled_task_id(request))
        number = number_of(submitted_track(request))
        self.submitted.append(number)
        self.submitted_at.append(self.clock.monotonic())
        if self.latency_s[number]:
            await self.clock.sleep(self.latency_s[number])
        if self.clock.monotonic() < self.maintained_until:
            return refused(455)
        if self.replies[number]:
            return self.replies[number].popleft()
        self.accepted[number] += 1
        task_id = f"task{len(self._tasks) + 1}"
        self._tasks[task_id] = number, self.clock.monotonic() + self.takes_s[number]
        return accepted(task_id)

    def _record(self, task_id: str) -> WireResponse:
        number, ends_at = self._tasks[task_id]
        if self.clock.monotonic() < ends_at:
            return pending(task_id)
        return failed(task_id) if number in self.bad else succeeded(task_id)


class Catalog:
    """
    An async iterable that notes how it is read, and minds a second reader.

    Args:
        items: What it gives; an error is raised.

        delays_s: How long each item takes, in turn; then no time.

    Attributes:
        given: How many items were given out.

        is_read: Whether somebody waits for an item now.

        is_over: Whether it has raised, `StopAsyncIteration` included.
    """

    def __init__(
        self, clock: FakeClock, items: Iterable[object], delays_s: Iterable[float] = ()
    ) -> None:
        self._clock = clock
        self._items = iter(items)
        self._delays_s = iter(delays_s)
        self.given = 0
        self.is_read = False
        self.is_over = False

    def __aiter__(self) -> Catalog:
        return self

    async def __anext__(self) -> object:
        assert not self.is_read, "a second reader"
        assert not self.is_over, "read on after the end"
        self.is_read = True
        try:
            delay_s = next(self._delays_s, 0.0)
            if delay_s:
                await self._clock.sleep(delay_s)
            item = next(self._items, StopAsyncIteration())
            if isinstance(item, Exception):
                raise item  # noqa: TRY301 - the caller's error, not one to handle
            self.given += 1
            return item  # noqa: TRY300 - no more than what may raise
        except Exception:
            self.is_over = True
            raise
        finally:
            self.is_read = False


@attrs.define
class Yield:
    """What iterating a batch came to."""

    outcomes: list[Outcome] = attrs.field(factory=list)
    error: Exception | None = None


async def collect(batch: Batch) -> Yield:
    """Iterate *batch* to its end."""
    collected = Yield()
    try:
        async for outcome in batch:
            collected.outcomes.append(outcome)
    except Exception as error:  # noqa: BLE001 - whatever it is, the test judges it
        collected.error = error
    return collected


async def take(batch: AsyncIterator[Outcome], count: int) -> list[Outcome]:
    """Iterate *batch* and break after *count* outcomes."""
    outcomes: list[Outcome] = []
    async for outcome in batch:
        outcomes.append(outcome)
        if len(outcomes) == count:
            break
    return outcomes


async def cancelled(task: asyncio.Task[object]) -> None:
    """Cancel *task* and wait for its end."""
    task.cancel()
    await asyncio.wait([task])
