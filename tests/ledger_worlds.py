"""
A short life of a ledger on a disk that fails, and what must be true after it.

Shared by the tests that fail statements in Python and those that fail system
calls; the latter run this file as a program, under a library that fails them::

    python ledger_worlds.py FOLDER EIO*1,ENOSPC*3
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import itertools
import json
import sqlite3
import sys
from pathlib import Path

import attrs
from yarl import URL

from kie_wav_async import Track
from kie_wav_async.errors import LedgerError
from kie_wav_async.ledger import AttemptOutcome, SqliteLedger, TrackState
from kie_wav_async.ledger.sqlite import worker

NOW = 1_700_000_000.0
TRACKS = [Track("5c79", f"e{n}") for n in range(3)]
WAV = URL("https://files.example/x.wav")


@attrs.define
class Told:
    """What the ledger's user was told, and what the service charged."""

    planned: bool = False
    sent: set[int] = attrs.field(factory=set)
    settled: set[int] = attrs.field(factory=set)


async def live(path: Path, *, heal=lambda: None) -> Told:
    """Convert three tracks as a session does; *heal* mends the disk before it closes."""
    told = Told()
    ledger = SqliteLedger(path)
    while True:
        try:
            await ledger.open(NOW)
            break
        except LedgerError:
            heal()
    with contextlib.suppress(LedgerError):
        await ledger.add_tracks(TRACKS)
        told.planned = True
    await asyncio.gather(*(convert(ledger, told, n) for n in range(len(TRACKS))))
    heal()
    await ledger.aclose()
    return told


async def convert(ledger: SqliteLedger, told: Told, n: int) -> None:
    """Send one track if its ledger lets us; the service takes it."""
    try:
        if await ledger.begin_attempt(TRACKS[n], f"a{n}", NOW + n) is not None:
            raise AssertionError
    except LedgerError:
        return
    told.sent.add(n)
    with contextlib.suppress(LedgerError):
        await ledger.finish_attempt(f"a{n}", AttemptOutcome.ACCEPTED, NOW + n, task_id=f"t{n}")
    with contextlib.suppress(LedgerError):
        await ledger.finish_task(f"t{n}", NOW + 9, wav_url=WAV)
        told.settled.add(n)


async def complaints(path: Path, told: Told) -> list[str]:
    """Tell what the ledger at *path* has wrong, opened on a disk that works."""
    found = []
    async with SqliteLedger(path) as ledger:
        opening = await ledger.open(NOW + 100)
        await ledger.aclose()
        counts = await ledger.count_by_state()
        if told.planned and sum(counts.values()) < len(TRACKS):
            found.append("a planned track is missing")
        for n, track in enumerate(TRACKS):
            entry = await ledger.get(track)
            has_task = entry is not None and entry.task_id == f"t{n}"
            if n in told.sent and not has_task:
                found.append(f"task t{n} is lost: {entry}")
            if n in told.settled and entry.state is not TrackState.SUCCEEDED:
                found.append(f"task t{n} was told to be settled: {entry}")
        most = opening.accepted + len(opening.unknown)
        if not opening.accepted <= len(told.sent) <= most:
            found.append(f"{len(told.sent)} charged, by the ledger {opening.accepted} to {most}")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        if connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
            found.append("the file is damaged")
    return found


def main(folder: Path, kinds: str) -> None:
    """
    Fail every system call in turn; print how many worlds ran, and what was wrong in each.

    *kinds* are the failures, as ``EIO*1,ENOSPC*3``: an error, and how many calls
    from the chosen one on get it.
    """
    worker._PAUSES_S = (0.0, 0.0, 0.0)
    shim = ctypes.CDLL(None)
    failed, wrong = 0, {}
    for kind in kinds.split(","):
        name, _, length = kind.partition("*")
        for n in itertools.count(1):
            path = folder / f"{name}-{length}-{n}.sqlite3"
            shim.fail_from(n, int(length), getattr(errno, name))
            told = asyncio.run(live(path, heal=shim.mend))
            shim.mend()
            if found := asyncio.run(complaints(path, told)):
                wrong[f"{kind} from {n}"] = found
            if not shim.has_failed():
                break
            failed += 1
    print(json.dumps({"failed": failed, "wrong": wrong}))  # noqa: T201 - what its parent reads


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
