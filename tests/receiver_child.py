"""
A process that receives callbacks, and tells what that costs it.

Started by `test_receiver_process`::

    receiver_child.py RECEIVER KEYS DESCRIPTORS

RECEIVER is one of `receivers.PARSERS`, KEYS what the environment would have, and
DESCRIPTORS how many the process may have. It writes its port, and then for each line
that it reads: its most memory so far in bytes, and how many more files it could open.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys

from kie_wav_async import WavSession
from receivers import PARSERS

#: As many files does the work of `bulk` have open, and some more.
WANTED = 40


def look() -> str:
    """Return what the process has used, and whether it can do its work."""
    opened = []
    with contextlib.suppress(OSError):
        while len(opened) < WANTED:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    for fd in opened:
        os.close(fd)
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024} {len(opened)}"


async def main(receiver: str, keys: str, descriptors: str) -> None:
    """Receive callbacks until the input ends."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(descriptors), int(descriptors)))
    settings = {"webhook_keys": keys or (), "callback_url": "https://hooks.example/kie"}
    async with WavSession("key", **settings) as session, PARSERS[receiver](session) as served:
        print(served.port, served.path, flush=True)  # noqa: T201 - for the test
        while await asyncio.to_thread(sys.stdin.readline):
            print(look(), flush=True)  # noqa: T201 - for the test


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
