"""
A session that is called back, in a world of fake time, and what may be delivered to it.

Whoever delivers here signs as the service does, or nearly, and is told what came
of it: a verdict or an error. Chance is taken out, so that two worlds with the
same fates do the same at the same moments.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from typing import TYPE_CHECKING, Self

import attrs
from yarl import URL

from fakes import FakeService
from kie_wav_async import PollSchedule, sign
from kie_wav_async.errors import CallbackFormatError, SessionClosedError, SignatureError
from kie_wav_async.testing import (
    FakeClock,
    SignedCallback,
    failed,
    polled_task_id,
    signed_callback,
)

if TYPE_CHECKING:
    from fakes import Task
    from kie_wav_async import Conversion

SECRET = "whsec-0123456789abcdef"
ADDRESS = "https://example.com/kie/callback?from=kie"

#: Polls by the clock, without chance.
STEADY = PollSchedule(jitter=0.0, backstop_s=15.0)

#: No poll within any test's time, unless a callback asks for it.
QUIET = PollSchedule(first_s=50_000.0, interval_s=50_000.0, backstop_s=50_000.0, jitter=0.0)

#: What the counters of deliveries are called.
COUNTERS_OF_CALLBACKS = {"unknown_task_callbacks", "duplicate_results", "rejected_callbacks"}


def file_of(task_id: str) -> str:
    """Return where the file of a task is, by its record and its genuine callback."""
    return f"https://media.invalid/{task_id}.wav"


def query_of(task: Task) -> str:
    """Return the query that a genuine callback of *task* brings back."""
    return URL(task.callback_url, encoded=True).raw_query_string


def signed_body(task_id: str, body: bytes, now_unix_s: float, key: str = SECRET) -> SignedCallback:
    """Return *body*, whatever it is, signed as a callback of *task_id*."""
    timestamp = str(int(now_unix_s))
    headers = {
        "X-Webhook-Timestamp": timestamp,
        "X-Webhook-Signature": sign(task_id, timestamp, key),
    }
    return SignedCallback(headers, body)


class WatchedService(FakeService):
    """A service that remembers which polls were on the wire at the same time."""

    def __init__(self, clock: FakeClock, **settings: object) -> None:
        super().__init__(clock, **settings)
        self.failing: set[str] = set()
        self.polling: Counter[str] = Counter()
        self.most_at_once: Counter[str] = Counter()

    async def _read(self, request):
        if "taskId=" not in request.url:
            return await super()._read(request)
        task_id = polled_task_id(request)
        self.polling[task_id] += 1
        self.most_at_once[task_id] = max(self.most_at_once[task_id], self.polling[task_id])
        try:
            answer = await super()._read(request)
        finally:
            self.polling[task_id] -= 1
        task = self.tasks.get(task_id)
        is_over = task is not None and self.clock.monotonic() >= task.ends_at
        return failed(task_id) if is_over and task_id in self.failing else answer


class _Ear(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@attrs.frozen
class Snapshot:
    """All that a session shows of itself."""

    conversions: tuple[tuple[str, object], ...]
    unknown: tuple[object, ...]
    figures: dict[str, int]
    outcomes: tuple[str, ...]
    polled_at: tuple[tuple[float, str], ...]
    submitted_at: tuple[float, ...]
    told: tuple[object, ...]


class World:
    """
    One session, its service and its loop.

    To be closed; that fails if the loop, or the log, heard of a bug.
    """

    def __init__(self, *, service: dict[str, object] | None = None, **settings: object) -> None:
        self.loop = asyncio.new_event_loop()
        self.complaints: list[object] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.ear = _Ear()
        self._logger = logging.getLogger("kie_wav_async")
        self._logger.addHandler(self.ear)
        self.clock = FakeClock()
        self.service = WatchedService(self.clock, **{"conversion_s": 40.0, **(service or {})})
        self.told: list[object] = []
        self.waiters: list[asyncio.Task[object]] = []
        self.session = self.service.session(
            **{
                "callback_url": ADDRESS,
                "webhook_keys": SECRET,
                "poll": STEADY,
                "on_event": self.told.append,
                **settings,
            }
        )
        serial = itertools.count(1)
        self.session._context.attempt_id = lambda: f"{next(serial):032x}"
        self.session._context.random = lambda: 0.5
        self.run(self.session.__aenter__())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.run(self.clock.run(self.session.aclose()))
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        self.run(self.clock.run_pending())
        for task in self.waiters:
            if task.done() and not task.cancelled():
                task.exception()
        self.loop.close()
        self._logger.removeHandler(self.ear)
        if kind is None:
            assert left == set()
            assert self.complaints == []
            errors = [r.getMessage() for r in self.ear.records if r.levelno >= logging.ERROR]
            assert [error for error in errors if "refuses the API key" not in error] == []

    # --- making things happen -----------------------------------------------------------

    def run(self, awaitable):
        """Let the loop work on something, and then until nothing happens without time."""

        async def settled():
            result = await awaitable
            await self.clock.run_pending()
            return result

        return self.loop.run_until_complete(settled())

    def advance(self, seconds: float) -> None:
        self.loop.run_until_complete(self.clock.advance(seconds))

    def start(self, coroutine) -> asyncio.Task[object]:
        """Begin to wait for something."""
        task = self.loop.create_task(coroutine)
        self.waiters.append(task)
        self.run(self.clock.run_pending())
        return task

    def attach(self, task_id: str) -> Conversion:
        """Follow a task."""

        async def attach() -> Conversion:
            return self.session.attach(task_id)

        return self.run(attach())

    def deliver(self, callback: SignedCallback, query: str | bytes = ""):
        """Deliver and return the verdict, or the error of ours that was raised."""
        try:
            return self.run(self.session.handle_callback(*callback, query=query))
        except (SignatureError, CallbackFormatError, SessionClosedError) as error:
            return error

    def callback(self, task_id: str, url: str | None = "", **fields: object) -> SignedCallback:
        """Return a callback signed now; *url* is the genuine one unless given."""
        url = file_of(task_id) if url == "" else url
        now = self.clock.time()
        return signed_callback(task_id, url, **{"key": SECRET, "now_unix_s": now, **fields})

    # --- looking at it ------------------------------------------------------------------

    def figures(self, *, without: set[str] = frozenset()) -> dict[str, int]:
        counted = attrs.asdict(self.session.statistics())
        return {name: count for name, count in counted.items() if name not in without}

    def outcomes(self) -> tuple[str, ...]:
        """Tell how each wait begun here stands."""
        return tuple(map(_tell, self.waiters))

    def snapshot(self, *, without: set[str] = frozenset(), unsaid: tuple[type, ...] = ()):
        """Return all there is to see, without some counters and some kinds of event."""
        return Snapshot(
            tuple((c.task_id, c.track) for c in self.session.conversions()),
            self.session.unknown_submits(),
            self.figures(without=without),
            self.outcomes(),
            tuple(self.service.polled_at),
            tuple(self.service.submitted_at),
            tuple(repr(event) for event in self.told if not isinstance(event, unsaid)),
        )


def _tell(waiter: asyncio.Task[object]) -> str:
    if not waiter.done():
        return "waits"
    if waiter.cancelled():
        return "cancelled"
    error = waiter.exception()
    return repr(waiter.result()) if error is None else f"{type(error).__name__}: {error}"
