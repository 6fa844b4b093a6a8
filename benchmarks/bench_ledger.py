"""
What does a conversion cost in the ledger, and how many a second does it take?

Decides whether durability can be the only setting: a ledger that every commit
waits for the disk must not be what a catalog waits for, or users would ask for
one that does not. The service takes 2 submits a second, 500 conversions a second
are asked for. A conversion is three calls (its submit begins, ends accepted, its
task is settled), each awaited before the next; 400 conversions run at once, as
many as a session has in flight by default. The neighbours take turns in one run,
in the folder for temporary files: the same ledger that does not wait for the disk
(``synchronous=NORMAL``), and the ledger for tests, which is Python's dicts.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
from _figures import Figure, main
from yarl import URL

from kie_wav_async import Track
from kie_wav_async.ledger import AttemptOutcome, Ledger, SqliteLedger, TrackState
from kie_wav_async.testing import MemoryLedger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW: Final = 1_700_000_000.0
WAV: Final = URL("https://files.example/x.wav")
AT_ONCE: Final = 400


@attrs.frozen
class _Cost:
    """What one conversion took: seconds, seconds of CPU, and commits."""

    wall_s: float
    cpu_s: float
    commits: float


class _Counting(sqlite3.Connection):
    """Counts commits, and waits for the disk or not."""

    commits = 0
    synchronous = "FULL"

    def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
        _Counting.commits += sql == "COMMIT"
        sql = sql.replace("synchronous = FULL", f"synchronous = {_Counting.synchronous}")
        return super().execute(sql, *values)  # type: ignore[arg-type]  # passed on as they came


@contextlib.contextmanager
def _counting() -> Iterator[None]:
    connect = sqlite3.connect

    def connect_here(*args: object, **options: object) -> sqlite3.Connection:
        connection: sqlite3.Connection
        connection = connect(*args, factory=_Counting, **options)  # type: ignore[call-overload]  # as they came
        return connection

    sqlite3.connect = connect_here  # type: ignore[assignment]  # for the time of a run
    try:
        yield
    finally:
        sqlite3.connect = connect


async def _convert(ledger: Ledger, serials: Iterator[int], count: int) -> None:
    for n in itertools.islice(serials, count):
        attempt_id = task_id = f"{n:032x}"
        assert await ledger.begin_attempt(Track(task_id, "e231"), attempt_id, NOW) is None
        await ledger.finish_attempt(attempt_id, AttemptOutcome.ACCEPTED, NOW, task_id=task_id)
        await ledger.finish_task(task_id, NOW, wav_url=WAV)


async def _run(ledger: Ledger, count: int) -> _Cost:
    """Return what each of *count* conversions cost."""
    serials = iter(range(count))
    each = -(-count // AT_ONCE)
    await ledger.open(NOW)
    _Counting.commits = 0
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(_convert(ledger, serials, each) for _ in range(AT_ONCE)))
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    commits = _Counting.commits
    assert (await ledger.count_by_state())[TrackState.SUCCEEDED] == count
    await ledger.aclose()
    return _Cost(wall_s / count, cpu_s / count, commits / count)


async def _plan(ledger: Ledger, count: int) -> float:
    """Return how many tracks a second are planned, a thousand at a time."""
    batches = [
        [Track(f"{start:032x}", f"{n:032x}") for n in range(start, min(start + 1_000, count))]
        for start in range(0, count, 1_000)
    ]
    await ledger.open(NOW)
    start_s = time.perf_counter()
    for batch in batches:
        await ledger.add_tracks(batch)
    spent_s = time.perf_counter() - start_s
    await ledger.aclose()
    return count / spent_s


def _measure_in(folder: Path, *, count: int, rounds: int) -> dict[str, list[_Cost]]:
    files = (folder / f"{n}.sqlite3" for n in itertools.count())
    makers: dict[str, Callable[[], Ledger]] = {
        "FULL": lambda: SqliteLedger(next(files)),
        "NORMAL": lambda: SqliteLedger(next(files)),
        "memory": MemoryLedger,
    }
    costs: dict[str, list[_Cost]] = {name: [] for name in makers}
    for _ in range(rounds):
        for name, make in makers.items():
            _Counting.synchronous = "NORMAL" if name == "NORMAL" else "FULL"
            costs[name].append(asyncio.run(_run(make(), count)))
    _Counting.synchronous = "FULL"
    return costs


def measure(*, quick: bool) -> list[Figure]:
    """Return the rate, and ratios within one run."""
    count, planned, rounds = (400, 1_000, 1) if quick else (8_000, 100_000, 5)
    with tempfile.TemporaryDirectory() as name, _counting():
        folder = Path(name)
        costs = _measure_in(folder, count=count, rounds=rounds)
        plan_rate = asyncio.run(_plan(SqliteLedger(folder / "plan.sqlite3"), planned))
    full = costs["FULL"]
    ratios = [a.wall_s / b.wall_s for a, b in zip(full, costs["NORMAL"], strict=True)]
    dicts = [a.cpu_s / b.cpu_s for a, b in zip(full, costs["memory"], strict=True)]
    cpu_us = statistics.median(cost.cpu_s for cost in full) * 1e6
    return [
        Figure(
            "ledger, conversions through it",
            1 / statistics.median(cost.wall_s for cost in full),
            "per s",
            at_least=500,
            note=f"{AT_ONCE} at once, FULL, {statistics.median(c.commits for c in full):.3f} "
            "commits each",
        ),
        Figure("ledger, time with FULL / NORMAL", statistics.median(ratios), "x"),
        Figure(
            "ledger, CPU / that of dicts",
            statistics.median(dicts),
            "x",
            note=f"{cpu_us:.0f} us per conversion",
        ),
        Figure("ledger, tracks planned", plan_rate, "per s", note="1,000 at a time"),
    ]


if __name__ == "__main__":
    main(measure)
