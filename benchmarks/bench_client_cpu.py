"""
What does `WavSession.convert` cost over plain aiohttp doing the same by hand?

Decides whether a layer, an object or a timer more per request is affordable:
whoever fears for the CPU of a web service must have no reason to write the loop
by hand. Both clients make the same exchanges with the same server, each submit
on a connection of its own, polls pooled, the same headers, the same number of
conversions at once; the server counts them, and the run fails if they differ.
They take turns within one process, and the figure is the median of the ratios
of neighbours. Nine polls are what a conversion of 90 s gets by default (see
bench_window); three weigh what is done once per conversion. Plain http: with
TLS, which costs both the same, the ratio would flatter us.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

import aiohttp
from _figures import Figure, main
from _server import serving, take_counts

from kie_wav_async import PollSchedule, RateLimit, Track, WavSession

INTERVAL_S: Final = 0.02
AT_ONCE: Final = 50
TARGET: Final = 1.10

CALLBACK_URL: Final = "https://kie-wav-async.invalid/callback"

_HEADERS: Final = {
    "Authorization": "Bearer benchmark-key",
    "Content-Type": "application/json",
    "Accept": "application/json",
    "User-Agent": "kie-wav-async/0.1.0",
}


Convert = Callable[[Track], Awaitable[object]]


@contextlib.asynccontextmanager
async def _our_client(address: str) -> AsyncIterator[Convert]:
    async with WavSession(
        "benchmark-key",
        base_url=address,
        rate_limit=RateLimit(1_000_000, per_s=1.0),
        poll=PollSchedule(first_s=INTERVAL_S, interval_s=INTERVAL_S, jitter=0.0, max_per_s=1e6),
    ) as session:
        yield session.convert


@contextlib.asynccontextmanager
async def _plain_client(address: str) -> AsyncIterator[Convert]:
    """Do without us what one would do without us."""
    async with (
        aiohttp.ClientSession(
            address, headers=_HEADERS, connector=aiohttp.TCPConnector(force_close=True)
        ) as submits,
        aiohttp.ClientSession(address, headers=_HEADERS) as polls,
    ):

        async def convert(track: Track) -> str:
            body = {
                "taskId": track.music_task_id,
                "audioId": track.audio_id,
                "callBackUrl": CALLBACK_URL,
            }
            async with submits.post("/api/v1/wav/generate", json=body) as response:
                task_id = (await response.json())["data"]["taskId"]
            while True:
                await asyncio.sleep(INTERVAL_S)
                async with polls.get(
                    "/api/v1/wav/record-info", params={"taskId": task_id}
                ) as response:
                    data = (await response.json())["data"]
                if data["successFlag"] != "PENDING":
                    url: str = data["response"]["audioWavUrl"]
                    return url

        yield convert


async def _cpu_s(convert: Convert, tracks: list[Track]) -> float:
    """Return the CPU seconds this process spends on *tracks*, AT_ONCE at a time."""
    source = iter(tracks)

    async def work() -> None:
        for track in source:
            assert await convert(track)

    gc.collect()
    start = time.process_time()
    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return time.process_time() - start


async def _compare(polls_per_task: int, rounds: int, count: int) -> tuple[float, float, float]:
    """Return the median of the ratios, its middle half's width, and our us per conversion."""
    ratios, ours_us = [], []
    serials = itertools.count()

    def new_tracks() -> list[Track]:
        return [Track(f"{next(serials):032x}", "e231") for _ in range(count)]

    with serving(polls_per_task) as address:
        async with _our_client(address) as ours, _plain_client(address) as plain:
            for number in range(rounds + 1):
                spent, seen = {}, {}
                # Whoever comes second finds the caches as the first left them.
                for convert in (ours, plain) if number % 2 else (plain, ours):
                    spent[convert] = await _cpu_s(convert, new_tracks())
                    seen[convert] = await asyncio.to_thread(take_counts, address)
                _verify(seen[ours], seen[plain], count, polls_per_task)
                if number:  # The first round opens connections.
                    ratios.append(spent[ours] / spent[plain])
                    ours_us.append(spent[ours] / count * 1e6)
    quarters = statistics.quantiles(ratios, n=4)
    return quarters[1], quarters[2] - quarters[0], statistics.median(ours_us)


def _verify(
    ours: Mapping[str, int], plain: Mapping[str, int], count: int, polls_per_task: int
) -> None:
    """Hold both clients to the same exchanges, and to the same headers on each."""
    for seen in (ours, plain):
        assert seen["submits"] == count
        assert seen["polls"] == count * polls_per_task
        assert count <= seen["connections"] <= count + AT_ONCE
    assert _headers(ours) == _headers(plain)


def _headers(seen: Mapping[str, int]) -> dict[str, int]:
    return {name: times for name, times in seen.items() if name.startswith("header ")}


def measure(*, quick: bool) -> list[Figure]:
    """Return the ratios."""
    rounds, count = (2, AT_ONCE) if quick else (40, 100)
    figures = []
    for polls in (9, 3):
        ratio, spread, ours_us = asyncio.run(_compare(polls, rounds, count))
        figures.append(
            Figure(
                f"client CPU, {polls} polls, ours / aiohttp",
                ratio,
                "x",
                at_most=TARGET,
                note=f"+-{spread / 2:.2f}; {ours_us:.0f} us per conversion",
            )
        )
    return figures


if __name__ == "__main__":
    main(measure)
