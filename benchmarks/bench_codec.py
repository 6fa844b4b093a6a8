"""
What do the pure parts cost per call, in units of what cannot be saved?

Decides whether strictness is affordable: a codec that looks at every spelling,
and books that check every step. The yardstick of reading an answer is what a
loop written by hand does, ``json.loads`` and a few look-ups; that of the books
is one dict entry made, found and deleted; that of the limiter one entry of a
deque. Everything is built outside the timed part; each figure is the median
over rounds in which the thing and its yardstick take turns.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from _figures import Figure, main
from _server import record

from kie_wav_async import RateLimit, Track
from kie_wav_async.core.rate_limiter import SlidingWindowLimiter
from kie_wav_async.core.registry import Registry
from kie_wav_async.protocol.http_messages import WireResponse
from kie_wav_async.protocol.responses import parse_record, parse_submit

if TYPE_CHECKING:
    from collections.abc import Callable

TASK_ID: Final = "8f1e0c2ab94d4f6f9d3a57b0c6e4d218"


def _wrap(data: object) -> bytes:
    return json.dumps({"code": 200, "msg": "success", "data": data}).encode()


_SUBMITTED = _wrap({"taskId": TASK_ID})
_PENDING = _wrap(record(TASK_ID, "PENDING"))
_SUCCEEDED = _wrap(record(TASK_ID, "SUCCESS"))
_SUBMIT_ANSWER = WireResponse(status=200, body=_SUBMITTED)
_PENDING_ANSWER = WireResponse(status=200, body=_PENDING)
_SUCCEEDED_ANSWER = WireResponse(status=200, body=_SUCCEEDED)
_SETTLED = parse_record(_SUCCEEDED_ANSWER, TASK_ID)


def _read_pending_by_hand() -> None:
    assert json.loads(_PENDING)["data"]["successFlag"] == "PENDING"


def _read_succeeded_by_hand() -> None:
    data = json.loads(_SUCCEEDED)["data"]
    assert data["successFlag"] == "SUCCESS"
    assert data["response"]["audioWavUrl"]


def _read_submit_by_hand() -> None:
    assert json.loads(_SUBMITTED)["data"]["taskId"]


_limiter = SlidingWindowLimiter(RateLimit(20, per_s=10.0))
_now_s = itertools.count()


def _limit() -> None:
    # One call a second: the window is half full, and places come free.
    now_s = float(next(_now_s))
    assert _limiter.acquire(now_s) is None
    _limiter.release(now_s)


_times: deque[float] = deque(range(10))


def _limit_by_hand() -> None:
    _times.append(float(next(_now_s)))
    _times.popleft()


_registry: Registry = Registry()
_tracks = itertools.cycle([Track(f"{n:032x}", "e231") for n in range(20_000)])
_entries: dict[Track, Track] = {}


def _keep_books() -> None:
    """Take one conversion through its life: queued, sent, accepted, succeeded."""
    entry = _registry.enqueue(next(_tracks))
    _registry.send(entry, TASK_ID, 0.0)
    _registry.accept(entry, TASK_ID, 0.0)
    assert _registry.observe(entry, _SETTLED, 0.0, "poll")


def _keep_a_dict() -> None:
    track = next(_tracks)
    _entries[track] = track
    assert _entries.get(track) is track
    del _entries[track]


_PAIRS: Final[tuple[tuple[str, Callable[[], object], Callable[[], object]], ...]] = (
    ("parse_submit", lambda: parse_submit(_SUBMIT_ANSWER), _read_submit_by_hand),
    (
        "parse_record, pending",
        lambda: parse_record(_PENDING_ANSWER, TASK_ID),
        _read_pending_by_hand,
    ),
    (
        "parse_record, succeeded",
        lambda: parse_record(_SUCCEEDED_ANSWER, TASK_ID),
        _read_succeeded_by_hand,
    ),
    ("limiter, acquire and release", _limit, _limit_by_hand),
    ("registry, a whole life", _keep_books, _keep_a_dict),
)


def _spend_us(work: Callable[[], object], calls: int) -> float:
    start = time.process_time_ns()
    for _ in itertools.repeat(None, calls):
        work()
    return (time.process_time_ns() - start) / calls / 1000


def measure(*, quick: bool) -> list[Figure]:
    """Return each part's cost in units of its yardstick."""
    rounds, calls = (3, 10) if quick else (51, 500)
    figures = []
    for name, ours, yardstick in _PAIRS:
        ratios, costs_us = [], []
        for _ in range(rounds):
            cost_us = _spend_us(ours, calls)
            ratios.append(cost_us / max(_spend_us(yardstick, calls), 1e-3))
            costs_us.append(cost_us)
        figures.append(
            Figure(
                f"{name} / by hand",
                statistics.median(ratios),
                "x",
                note=f"{statistics.median(costs_us):.1f} us",
            )
        )
    return figures


if __name__ == "__main__":
    main(measure)
