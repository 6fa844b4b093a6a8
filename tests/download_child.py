"""
A process that saves files, and watches its memory and its loop doing so.

Started by `test_download_size`: writes what there is to judge into JUDGED, as JSON.

    download_child.py JUDGED session ADDRESS FOLDER COUNT
    download_child.py JUDGED bulk ARGUMENT...
    download_child.py JUDGED careless

In all but the second, what waits for the disk on the loop's thread is noted, as far as
the interpreter has audit events for it. A command may do that before it begins: nobody
shares its loop. The third does so on purpose.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from collections import deque
from pathlib import Path

import psutil
from yarl import URL

from kie_wav_async import WavFile, WavSession
from kie_wav_async.cli import main

AT_ONCE = 4
STEP_S = 0.005
# Audit events of what may wait. They need no function to be replaced: replacing methods of
# built-in types, while other threads run, is under suspicion of one crash.
WAITS = {"open", "sqlite3.connect", "fcntl.flock", "os.listdir", "os.scandir"} | {
    f"os.{name}" for name in ("rename", "remove", "link", "symlink", "mkdir", "rmdir", "truncate")
}
# How often the most memory of a command is noted, whose files are not seen from here.
NOTE_S = 0.1


@contextlib.contextmanager
def waiting_for_a_processor():
    """
    Yield a function that returns how long this thread had work and no processor.

    Others on the machine are to blame for that. Where it is not known it is nothing.
    """
    try:
        file = open("/proc/thread-self/schedstat", "rb")  # noqa: PTH123, SIM115 - closed below
    except FileNotFoundError:
        yield lambda: 0.0
        return
    with file:
        yield lambda: int(os.pread(file.fileno(), 100, 0).split()[1]) / 1e9


def note_waits(noted):
    """Note what waits on this thread while it runs a loop; there is no way to end that."""
    ours = threading.get_ident()

    def hook(event, _):
        if (
            event in WAITS
            and threading.get_ident() == ours
            and asyncio._get_running_loop() is not None
            # An import is made once.
            and not sys._getframe(1).f_code.co_filename.startswith("<frozen importlib")
        ):
            noted.append(event)

    sys.addaudithook(hook)


class Watch:
    """
    What is seen of this process.

    Args:
        notes: Whether it notes the memory on its own, again and again.

    Attributes:
        peaks: The most memory, in bytes, between one note and the next.
        late_s: How late the loop was, each time it was looked at.
        blocked_s: The same less the time in which its thread had no processor.
        waits: What may have waited for the disk on the loop's thread.
    """

    def __init__(self, *, notes):
        self.waits = []
        self.peaks = []
        self.late_s = []
        self.blocked_s = []
        self._notes = notes
        self._process = psutil.Process()
        self._seen = deque([self._process.memory_info().rss])
        self._over = threading.Event()

    @contextlib.contextmanager
    def watching(self):
        """Look at the memory and at every loop that runs, from now on."""
        run = asyncio.BaseEventLoop.run_forever

        def run_watched(loop):
            with waiting_for_a_processor() as waited_s:
                self._look_at(loop, loop.time(), waited_s, waited_s())
                try:
                    run(loop)
                finally:
                    self._next.cancel()  # The loop may run again, and be looked at anew.

        asyncio.BaseEventLoop.run_forever = run_watched
        thread = threading.Thread(target=self._look_at_memory)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join()
            asyncio.BaseEventLoop.run_forever = run

    def note(self):
        """Note the most memory since the last note."""
        self.peaks.append(max(self._seen))
        # The last one stays: there may be no other before the next note.
        while len(self._seen) > 1:
            self._seen.popleft()

    def _look_at(self, loop, due, waited_s, before_s):
        late_s = max(0.0, loop.time() - due)
        after_s = waited_s()
        self.late_s.append(late_s)
        self.blocked_s.append(max(0.0, late_s - (after_s - before_s)))
        due = loop.time() + STEP_S
        self._next = loop.call_at(due, self._look_at, loop, due, waited_s, after_s)

    def _look_at_memory(self):
        noted_s = time.monotonic()
        while not self._over.wait(STEP_S):
            self._seen.append(self._process.memory_info().rss)
            if self._notes and time.monotonic() - noted_s >= NOTE_S:
                noted_s = time.monotonic()
                self.note()


async def save_all(watch, address, folder, count):
    """Save *count* files through a session."""
    serials = iter(range(count))

    async def work():
        for n in serials:
            wav = WavFile(f"t{n}", URL(f"{address}/{n}.wav"), None, "poll", None)
            await session.download(wav, folder / f"{n}.wav")
            watch.note()

    async with WavSession("key", insecure_hosts=["127.0.0.1"]) as session:
        await asyncio.gather(*(work() for _ in range(AT_ONCE)))


async def be_careless():
    """Open a file and look into a folder."""
    with open(os.devnull, "rb"):  # noqa: ASYNC230, PTH123 - to be noted
        os.listdir()  # noqa: PTH208 - to be noted


def run(watch, kind, *arguments):
    """Do what is asked for; return the exit code."""
    if kind == "bulk":
        return main(["bulk", *arguments])
    note_waits(watch.waits)
    if kind == "careless":
        asyncio.run(be_careless())
        watch.note()
    else:
        address, folder, count = arguments
        asyncio.run(save_all(watch, address, Path(folder), int(count)))
    return 0


if __name__ == "__main__":
    began_s = time.monotonic()
    with Watch(notes=sys.argv[2] == "bulk").watching() as watch:
        code = run(watch, *sys.argv[2:])
    judged = {
        "peaks": watch.peaks,
        "late_s": watch.late_s,
        "blocked_s": watch.blocked_s,
        "waits": watch.waits,
        "seconds": time.monotonic() - began_s,
    }
    Path(sys.argv[1]).write_text(json.dumps(judged), "utf-8")
    sys.exit(code)
