"""
Does the end of a wait stay cheap when very many wait?

Decides how waiters and due times are kept: whoever closes a session with 100,000
waiters must not block his loop, and settling one conversion must not cost more
because 10,000 others are pending. Waiters are as users have them, a task each,
and each gets an error raised; what the garbage collector makes of so many tasks
and errors is most of it, with bare futures too, which stand in the note.
Figures are CPU seconds of this process, so that neighbours do not count.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import statistics
import time
from typing import TYPE_CHECKING

from _figures import Figure, main

from kie_wav_async import PollSchedule, RateLimit, Track, WavSession
from kie_wav_async.errors import SessionClosedError
from kie_wav_async.testing import FakeClock, accepted, polled_task_id, succeeded

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from kie_wav_async.protocol.http_messages import WireRequest, WireResponse


class _Service:
    """Is done with everything as soon as it is asked."""

    async def send(self, request: WireRequest) -> WireResponse:
        return accepted("5c79") if request.is_submit else succeeded(polled_task_id(request))

    async def aclose(self) -> None:
        pass


def _session(**settings: object) -> WavSession:
    return WavSession("benchmark-key", transport=_Service(), **settings)  # type: ignore[arg-type]  # keywords


async def _close(waits: list[Coroutine[Any, Any, object]], session: WavSession) -> float:
    """Return the CPU seconds from closing until the last waiter knows."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.sleep(0)
    gc.collect()
    start = time.process_time()
    await session.aclose()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    spent = time.process_time() - start
    assert all(isinstance(end, SessionClosedError) for end in ends)
    return spent


async def _end_bare(count: int) -> float:
    """Return the CPU seconds that *count* bare futures take to end the same way: the floor."""
    loop = asyncio.get_running_loop()
    waiters: list[asyncio.Future[None]] = [loop.create_future() for _ in range(count)]

    async def wait(waiter: asyncio.Future[None]) -> None:
        await waiter
        raise SessionClosedError

    tasks = [asyncio.create_task(wait(waiter)) for waiter in waiters]
    await asyncio.sleep(0)
    gc.collect()
    start = time.process_time()
    for waiter in waiters:
        waiter.set_result(None)
    await asyncio.gather(*tasks, return_exceptions=True)
    return time.process_time() - start


async def _close_queued(count: int) -> float:
    # The clock stands still, so no submit after the first has its turn.
    async with _session(rate_limit=RateLimit(1, per_s=1.0), clock=FakeClock()) as session:
        waits = [session.convert(Track(f"{n:032x}", "e231")) for n in range(count)]
        return await _close(list(waits), session)


async def _close_in_flight(count: int) -> float:
    async with _session(clock=FakeClock()) as session:
        return await _close([session.attach(f"{n:032x}").wait() for n in range(count)], session)


async def _close_shared(count: int) -> float:
    async with _session(clock=FakeClock()) as session:
        shared = session.attach("5c79")
        return await _close([shared.wait() for _ in range(count)], session)


async def _cancel_shared(count: int) -> float:
    """Return the CPU seconds that *count* waiters of one conversion take to go away."""
    async with _session(clock=FakeClock()) as session:
        shared = session.attach("5c79")
        tasks = [asyncio.create_task(shared.wait()) for _ in range(count)]
        await asyncio.sleep(0)
        gc.collect()
        start = time.process_time()
        for task in reversed(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return time.process_time() - start


async def _settle(count: int) -> float:
    """Return the CPU microseconds per conversion, from a first poll to its waiter's turn."""
    async with _session(poll=PollSchedule(first_s=0.0, max_per_s=1e6), timeout_s=None) as session:
        waits = [session.attach(f"{n:032x}").wait() for n in range(count)]
        start = time.process_time()
        await asyncio.gather(*waits)
        return (time.process_time() - start) / count * 1e6


def _settle_growth(rounds: int, few: int, many: int) -> tuple[float, float]:
    """Return what settling costs among many, by what it costs among few, and in microseconds."""
    ratios, costs = [], []
    for _ in range(rounds):
        among_few = asyncio.run(_settle(few))
        among_many = asyncio.run(_settle(many))
        ratios.append(among_many / among_few)
        costs.append(among_many)
    return statistics.median(ratios), statistics.median(costs)


def measure(*, quick: bool) -> list[Figure]:
    """Return seconds of the loop, and the growth of a cost."""
    logging.disable(logging.WARNING)  # The warning of a session closed with open tasks.
    waiters, pending, rounds = (100, 50, 1) if quick else (100_000, 10_000, 5)
    growth, cost_us = _settle_growth(rounds, pending // 10, pending)
    bare_s = statistics.median(asyncio.run(_end_bare(waiters)) for _ in range(rounds))
    closings = []
    for name, work in (
        ("queued", _close_queued),
        ("in flight", _close_in_flight),
        ("waiters of one", _close_shared),
    ):
        spent_s = statistics.median(asyncio.run(work(waiters)) for _ in range(rounds))
        ratio = spent_s / bare_s
        note = f"{ratio:.2f} times what bare futures take to end so"
        closings.append(Figure(f"close, {waiters} {name}", spent_s, "s", at_most=1.0, note=note))
    return [
        *closings,
        Figure(
            f"cancel {waiters // 10} of one, last first",
            asyncio.run(_cancel_shared(waiters // 10)),
            "s",
        ),
        Figure(
            f"settle one of {pending} / of {pending // 10}",
            growth,
            "x",
            at_most=2.0,
            note=f"{cost_us:.0f} us, poll included",
        ),
    ]


if __name__ == "__main__":
    main(measure)
