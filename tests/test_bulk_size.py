"""
A whole catalog through ``kie-wav bulk``: its memory, and its use of the window.

The service runs in a process of its own, and so does the command. The default run
is a small one; a catalog of 100,000 tracks at 200 times the speed of life, and a
minute at life's own pace, with the figures printed::

    python -m pytest -m campaign tests/test_bulk_size.py
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import sys
import time
from typing import TYPE_CHECKING

import attrs
import psutil
import pytest

from kie_wav_async.simulator import SimulatorProcess, SimulatorState

if TYPE_CHECKING:
    from pathlib import Path


COUNT, PER_S = 20, 10.0
# What no test waits for; it only ends a hang.
PATIENCE_S = 1800.0
MIB = 1 << 20


@attrs.frozen
class Run:
    """What there is to judge of one run."""

    state: SimulatorState
    code: int
    said: str
    told: str
    memory: list[int]
    seconds: float

    def peak_after(self, share: float) -> int:
        """Return the most memory, in MiB, from a *share* of the run on."""
        return max(self.memory[int(share * len(self.memory)) :])


async def run_bulk(
    folder: Path, tracks: int, speed: float, *, interrupt_after_s: float = 0.0, **settings: object
) -> Run:
    """Convert a catalog of so many tracks at a simulator that is so many times as fast as life."""
    catalog = folder / "tracks.csv"
    with catalog.open("w") as file:
        file.write("music_task_id,audio_id,title\n")
        file.writelines(f"m{n // 2:06d},a{n:06d},Song number {n}\n" for n in range(tracks))
    memory: list[int] = []
    async with (
        asyncio.timeout(PATIENCE_S),
        SimulatorProcess(time_scale=speed, max_life_s=PATIENCE_S, **settings) as kie,
    ):
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kie_wav_async", "bulk", str(catalog), "--json"),
            *("--out", str(folder / "out"), "--no-download"),
            *("--rate", f"{COUNT}/{PER_S / speed}"),
            *("--poll", f"{15 / speed},{10 / speed},{30 * speed}"),
            env={**os.environ, "KIE_API_KEY": kie.api_key, "KIE_BASE_URL": kie.base_url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

        async def watch() -> None:
            probe = psutil.Process(process.pid)
            while True:
                memory.append(probe.memory_info().rss // MIB)
                await asyncio.sleep(0.5)

        async def interrupt() -> None:
            await asyncio.sleep(interrupt_after_s)
            process.send_signal(signal.SIGINT)

        beside = [asyncio.ensure_future(watch())]
        if interrupt_after_s:
            beside.append(asyncio.ensure_future(interrupt()))
        said, told = await process.communicate()
        for task in beside:
            task.cancel()
        seconds = time.monotonic() - began
        state = await kie.state()
    assert process.returncode is not None
    return Run(state, process.returncode, said.decode(), told.decode(), memory, seconds)


async def test_a_catalog_is_converted_and_paid_once(tmp_path: Path) -> None:
    """Every track of a catalog larger than what is in flight is converted, and charged once."""
    run = await run_bulk(tmp_path, 600, 200.0)

    assert 0 == run.code, run.told
    assert 600 == run.state.charges
    assert 0 == run.state.rejected_429
    assert 600 == json.loads(run.said)["states"]["succeeded"]


@pytest.mark.campaign
async def test_memory_does_not_grow_with_the_catalog(tmp_path: Path, capsys) -> None:
    """100,000 tracks take less than 300 MB, and the last ones no more than those before."""
    run = await run_bulk(tmp_path, 100_000, 200.0)

    with capsys.disabled():
        at = [run.memory[int(n * (len(run.memory) - 1) / 10)] for n in range(11)]
        print(  # noqa: T201 - the figures are what the campaign is run for
            f"\n100,000 tracks in {run.seconds:.0f} s; resident MiB at each tenth: {at}, "
            f"at most {max(run.memory)}"
        )
    assert 0 == run.code, run.told
    assert 100_000 == run.state.charges
    assert 300 > max(run.memory)
    # What succeeded is remembered, the last 10,000 of them; from there on it is flat.
    assert run.peak_after(0.5) < 1.1 * run.memory[len(run.memory) // 4]


@pytest.mark.campaign
async def test_the_window_at_the_pace_of_life(tmp_path: Path, capsys) -> None:
    """For a minute no submit is refused, and 97 % of what the window allows is used."""
    delay_s = 0.25
    run = await run_bulk(
        tmp_path,
        1000,
        1.0,
        interrupt_after_s=62.0,
        arrival_delay_s=delay_s,
        answer_delay_s=delay_s,
    )

    times = sorted(arrival.at for arrival in run.state.arrivals)
    bursts = len(times) // COUNT - 1
    spans = [times[n + bursts * COUNT] - times[n] for n in range(COUNT)]
    usage = bursts * (PER_S + 2 * delay_s) / statistics.mean(spans)
    with capsys.disabled():
        print(  # noqa: T201 - the figures are what the campaign is run for
            f"\n{len(times)} submits, at most {run.state.most_arrivals_in(PER_S)} in any 10 s, "
            f"{run.state.rejected_429} refused, {usage:.1%} of 20 per (10 s + round trip) used"
        )
    assert 130 == run.code, run.told
    assert 0 == run.state.rejected_429
    assert COUNT == run.state.most_arrivals_in(PER_S)
    assert 0.97 <= usage
