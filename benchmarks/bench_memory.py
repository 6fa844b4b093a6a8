"""
What does a conversion cost in memory while it waits?

Decides whether a service may have 10,000 conversions awaited at once in a small
container, and whether another field per conversion is affordable. Counted is
what `WavSession.convert` adds to a task that awaits a bare future: 10,000 such
tasks are the baseline, and their tracks exist in both. Once all conversions are
accepted and between two polls, and once all are still queued.

The figure that counts is what Python has allocated (``tracemalloc``); what the
process holds (its resident set) stands beside it, and adds what the allocator
rounds up. Each figure is taken in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from _figures import Figure, main

from kie_wav_async import PollSchedule, RateLimit, Track, WavSession
from kie_wav_async.testing import FakeClock, accepted, pending, polled_task_id

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from kie_wav_async.protocol.http_messages import WireRequest, WireResponse

TARGET_KIB: Final = 1.25

#: What is left of tasks inside the session: none per conversion.
TARGET_TASKS: Final = 0


class _Service:
    """Accepts every submit, and is never done."""

    def __init__(self) -> None:
        self._serials = itertools.count(1)

    async def send(self, request: WireRequest) -> WireResponse:
        if request.is_submit:
            return accepted(f"{next(self._serials):032x}")
        return pending(polled_task_id(request))

    async def aclose(self) -> None:
        pass


def _used_bytes(by: str) -> int:
    gc.collect()
    if by == "tracemalloc":
        return tracemalloc.get_traced_memory()[0]
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


async def _measure(
    by: str, count: int, wait: Callable[[Track], Coroutine[Any, Any, object]], clock: FakeClock
) -> dict[str, float]:
    """Return what one waiting task costs, and how many tasks there are too many."""
    tracks = [Track(f"{n:032x}", f"e231-{n}") for n in range(count)]
    await clock.run_pending()
    before = _used_bytes(by)
    tasks = [asyncio.create_task(wait(track)) for track in tracks]
    # A submit each, and three polls on the average.
    for _ in range(50):
        await clock.advance(1.0)
    spent = _used_bytes(by) - before
    extra = len(asyncio.all_tasks()) - count - 1
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return {"bytes": spent / count, "tasks": extra}


async def _bare(by: str, count: int) -> dict[str, float]:
    loop = asyncio.get_running_loop()

    async def wait(_: Track) -> object:
        return await loop.create_future()

    return await _measure(by, count, wait, FakeClock())


async def _with_us(by: str, count: int, max_in_flight: int) -> dict[str, float]:
    clock = FakeClock()
    async with WavSession(
        "benchmark-key",
        transport=_Service(),
        clock=clock,
        # No more at once than a fast line brings: a burst leaves holes in the heap.
        rate_limit=RateLimit(max(count // 20, 1), per_s=1.0),
        max_in_flight=max_in_flight,
        poll=PollSchedule(max_per_s=count),
    ) as session:
        return await _measure(by, count, session.convert, clock)


def _subject(name: str, by: str, count: int) -> None:
    """Be the process that is measured."""
    if by == "tracemalloc":
        tracemalloc.start()
    if name == "bare":
        result = asyncio.run(_bare(by, count))
    else:
        result = asyncio.run(_with_us(by, count, count if name == "accepted" else 1))
    print(json.dumps(result))


def _spend(name: str, by: str, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--subject", name, by, str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own file
    result: dict[str, float] = json.loads(done.stdout)
    return result


def measure(*, quick: bool) -> list[Figure]:
    """Return KiB per conversion, and tasks."""
    count = 100 if quick else 10_000
    baseline = {by: _spend("bare", by, count) for by in ("tracemalloc", "rss")}
    figures = []
    for name in ("accepted", "queued"):
        for by, target in (("tracemalloc", TARGET_KIB), ("rss", None)):
            bare, ours = baseline[by], _spend(name, by, count)
            figures.append(
                Figure(
                    f"memory, {name}, {by}",
                    (ours["bytes"] - bare["bytes"]) / 1024,
                    "KiB",
                    at_most=target,
                    note=f"per conversion; the bare task {bare['bytes'] / 1024:.2f}",
                )
            )
        figures.append(
            Figure(f"tasks inside, {name}", ours["tasks"], "tasks", at_most=TARGET_TASKS)
        )
    return figures


if __name__ == "__main__":
    if "--subject" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--subject", nargs=3)
        name, by, count = parser.parse_args().subject
        _subject(name, by, int(count))
    else:
        main(measure)
