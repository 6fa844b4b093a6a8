"""
Lives that save one file, each of which can be made to die at a named moment.

Started by `test_download_crash`, as `crash_child` is by its tests: each order is
carried out in a process of its own, which dies by SIGKILL, sent by itself. The
moments are those before and after each call to the system about the file, its part,
its note and its folder, in words of `disk`: ``fsync part: next``, ``fsync part: done``.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from aiohttp import ClientSession, StreamReader
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from crash_bugs import plant, write_in_place
from crash_child import Reaper, serve
from disk import Disk
from kie_wav_async import WavFile, WavSession
from kie_wav_async.downloads import part_file, transfer
from kie_wav_async.testing import ScriptedTransport

#: So much is written at a time, and so much is synced, in these lives.
BLOCK = 4_096
SYNC_EVERY = 8_192

#: Ends a life that hangs.
PATIENCE_S = 60


def ask_without_version() -> None:
    """Go on with whatever file is at the host now."""

    async def get(original, self, method, url, *, headers, **settings):
        unconditional = {name: headers[name] for name in headers if name != "If-Range"}
        answer = await original(self, method, url, headers=unconditional, **settings)
        # Every version is called the first one.
        told = CIMultiDict(answer.headers)
        told["ETag"] = '"v1"'
        answer._headers = CIMultiDictProxy(told)
        return answer

    plant(ClientSession, "_request", get)


#: What would break the promise; the tests are to find each.
BUGS = {bug.__name__: bug for bug in (write_in_place, ask_without_version)}


async def save(order: dict) -> None:
    """Download the file, and say on standard output what has come of it."""
    wav = WavFile(
        task_id="t1", url=URL(order["url"]), track=None, settled_by="poll", expires_at=None
    )
    async with WavSession(
        "sk-kie-PLANTED-0123456789",
        transport=ScriptedTransport([]),
        insecure_hosts=["127.0.0.1"],
    ) as session:
        download = await session.download(wav, order["target"])
    said = {"sha256": download.sha256, "bytes": download.bytes, "resumed": download.resumed}
    sys.stdout.write(json.dumps(said) + "\n")


def live(order: dict) -> int:
    """Save the file once, as ordered."""
    signal.alarm(PATIENCE_S)
    if order["bug"]:
        BUGS[order["bug"]]()
    part_file.SYNC_EVERY, transfer._BLOCK = SYNC_EVERY, BLOCK
    # All that has come would be one block: who starts slowly finds all of it there.
    StreamReader.readany = lambda self: self.read(BLOCK)
    reaper = Reaper(order["point"], order["hit"], signal.SIGKILL)
    disk = Disk(Path(order["target"]).parent, setattr)
    disk.before = lambda point: reaper.at(f"{point}: next")
    disk.after = lambda point: reaper.at(f"{point}: done")
    asyncio.run(save(order))
    sys.stdout.flush()
    Path(order["census"]).write_text(json.dumps(reaper.seen), encoding="utf-8")
    return 0


if __name__ == "__main__":
    serve(live)
