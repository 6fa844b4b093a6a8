"""
Lives of ``kie-wav bulk``, each of which can be made to die at a named moment.

Started by `crashes`: reads an order, one line of JSON, from standard input, runs the
command in a process of its own, and says on standard output which one and how it
ended; then reads the next. The process dies by SIGKILL, sent by itself: it gets to
no clean-up, no flush and no goodbye.

The moments of each thing that is written into the ledger:

=========  ==========================================================
asked      the call was made, nothing is written
written    the statements have run, COMMIT has not
committed  COMMIT has returned, whoever asked has not been told
told       whoever asked goes on
=========  ==========================================================

Those of a submit on the wire are in `WIRE`, those of the ledger's file in `FILE`, and
those of the files that are saved in `crash_files`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import sqlite3
import sys
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import crash_bugs
from crash_files import watch_files
from fastclock import FastClock
from kie_wav_async import AiohttpTransport, WavSession, cli, events
from kie_wav_async.cli.bulk import importer, run
from kie_wav_async.ledger import AttemptOutcome, SqliteLedger

if TYPE_CHECKING:
    from collections.abc import Callable

#: What is written, in words of the moments below.
WRITES = (
    "add_tracks",
    "requeue",
    "begin_attempt",
    *(f"finish_attempt {outcome.value}" for outcome in AttemptOutcome),
    "record_callback",
    "finish_task",
)
WIRE = (
    "first byte: next",  # Connected, nothing sent.
    "first byte: sent",  # And no other one.
    "last byte: sent",
    "answer: there",  # In the system's hands, not in ours.
    "answer: read",  # In ours, and not in the ledger's.
    "submitted: told",  # To whoever listens.
    "settled: told",
)
FILE = (
    "open: asked",
    "lock: next",
    "lock: taken",
    "file: opened",
    "schema: written",
    "schema: committed",
    "recover: written",
    "recover: committed",
    "open: told",
    "close: asked",
    "checkpoint: next",
    "checkpoint: done",
    "unlock: next",
    "unlock: done",
    "close: told",
)
POINTS = (
    *FILE,
    *(
        f"{what}: {moment}"
        for what in WRITES
        for moment in ("asked", "written", "committed", "told")
    ),
    *WIRE,
)

#: A catalog is planned so many tracks at a time.
SLICE = 5

#: Ends a life that hangs.
PATIENCE_S = 60


class Reaper:
    """Counts the moments that a life comes to, and ends it at one of them, or only stops it."""

    def __init__(self, point: str | None, hit: int, number: int) -> None:
        self.seen: Counter[str] = Counter()
        self._point = point
        self._hit = hit
        self._signal = number
        # Files are written in threads.
        self._lock = threading.Lock()

    def is_next(self, point: str) -> bool:
        """Return whether this life is to end when it comes to *point* next."""
        return point == self._point and self.seen[point] + 1 == self._hit

    def at(self, point: str) -> None:
        """Come to *point*."""
        with self._lock:
            is_end = self.is_next(point)
            self.seen[point] += 1
            if is_end:
                os.kill(os.getpid(), self._signal)


class WorldClock(FastClock):
    """A fast clock whose date passes as fast, from one moment for all lives of a world."""

    __slots__ = ("_born",)

    def __init__(self, speed: float, born_unix_s: float) -> None:
        super().__init__(speed)
        self._born = born_unix_s

    def time(self) -> float:
        return self._born + (time.time() - self._born) * self._speed


def watch_calls(reaper: Reaper) -> None:
    """Come to what the session asks of its ledger."""

    def watch(name, point_of):
        method = getattr(SqliteLedger, name)

        async def watched(self, *args, **kwargs):
            point = point_of(args)
            reaper.at(f"{point}: asked")
            result = await method(self, *args, **kwargs)
            reaper.at(f"{point}: told")
            return result

        setattr(SqliteLedger, name, watched)

    names = (
        "open",
        "add_tracks",
        "requeue",
        "mark_expired",
        "begin_attempt",
        "record_callback",
        "finish_task",
        "reserve_path",
        "mark_saved",
    )
    for name in names:
        watch(name, lambda _, name=name: name)
    watch("aclose", lambda _: "close")
    watch("finish_attempt", lambda args: f"finish_attempt {AttemptOutcome(args[1]).value}")


#: What each of the statements that write is for.
STATEMENTS = {
    name: re.compile(pattern)
    for name, pattern in {
        "schema": r"CREATE TABLE",
        "recover": r"UPDATE attempt SET outcome = \?, ended = \? WHERE outcome",
        "add_tracks": r"INSERT INTO track",
        "requeue": r"UPDATE track SET state = 'planned'",
        "mark_expired": r"UPDATE track SET state = 'expired'",
        "begin_attempt": r"INSERT INTO attempt",
        "finish_attempt": r"UPDATE attempt SET outcome = \?, ended = coalesce",
        "record_callback": r"UPDATE attempt SET callback_task",
        "finish_task": r"UPDATE attempt SET task_end",
        "reserve_path": r"UPDATE track SET path = \?, path_key",
        "mark_saved": r"UPDATE track SET base_state = \?, path_key",
    }.items()
}


class Transactions:
    """Comes to what a transaction wrote, before and after its COMMIT."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        # By the ledger's thread alone. In order, and each once.
        self._written: dict[str, None] = {}

    def watch(self) -> None:
        """Watch all of them."""
        connect = sqlite3.connect

        def watched(database, **settings):
            if "mode=rw" not in database:
                return connect(database, **settings)
            connection = connect(database, factory=self._connection(), **settings)
            self._reaper.at("file: opened")
            return connection

        sqlite3.connect = watched

    def _connection(self) -> type[sqlite3.Connection]:
        transactions = self

        class Connection(sqlite3.Connection):
            def execute(self, sql, values=()):
                if sql == "COMMIT":
                    return transactions.commit(lambda: super(Connection, self).execute(sql))
                if sql.startswith("BEGIN"):
                    transactions.begin()
                result = super().execute(sql, values)
                transactions.write(sql, values)
                return result

            def executemany(self, sql, rows):
                result = super().executemany(sql, rows)
                transactions.write(sql, ())
                return result

            def close(self):
                transactions.close(super().close)

        return Connection

    def begin(self) -> None:
        """Have written nothing."""
        self._written.clear()

    def write(self, sql, values) -> None:
        """Have carried out a statement."""
        for name, pattern in STATEMENTS.items():
            if pattern.search(sql):
                what = (
                    f"{name} {AttemptOutcome(values[0]).value}"
                    if name == "finish_attempt"
                    else name
                )
                self._written[what] = None

    def commit(self, do):
        """Carry out a COMMIT."""
        for what in self._written:
            self._reaper.at(f"{what}: written")
        result = do()
        for what in self._written:
            self._reaper.at(f"{what}: committed")
        return result

    def close(self, do):
        """Close a connection, whose log goes into the file by that."""
        self._reaper.at("checkpoint: next")
        do()
        self._reaper.at("checkpoint: done")


def watch_lock(reaper: Reaper) -> None:
    """Come to the taking and giving back of the file."""
    flock = fcntl.flock

    def watched(fd, operation):
        if not Path(f"/proc/self/fd/{fd}").readlink().name.endswith(".sqlite3.lock"):
            return flock(fd, operation)
        taken = operation & fcntl.LOCK_EX
        reaper.at("lock: next" if taken else "unlock: next")
        flock(fd, operation)
        reaper.at("lock: taken" if taken else "unlock: done")
        return None

    fcntl.flock = watched


def watch_wire(reaper: Reaper) -> None:
    """Come to what a submit does on its socket."""
    submits: weakref.WeakSet[socket.socket] = weakref.WeakSet()
    send, sendmsg, recv = socket.socket.send, socket.socket.sendmsg, socket.socket.recv
    ask = AiohttpTransport.send

    def watched(self, data, send_all):
        if not data.startswith(b"POST /api/v1/wav/generate "):
            return send_all()
        assert b'"audioId"' in data, "head and body left together"
        reaper.at("first byte: next")
        if reaper.is_next("first byte: sent"):
            send(self, data[:1])
        reaper.at("first byte: sent")
        sent = send_all()
        submits.add(self)
        reaper.at("last byte: sent")
        return sent

    def watched_send(self, data, *flags):
        return watched(self, bytes(data), lambda: send(self, data, *flags))

    def watched_sendmsg(self, buffers, *rest):
        parts = [bytes(part) for part in buffers]
        return watched(self, b"".join(parts), lambda: sendmsg(self, parts, *rest))

    def watched_recv(self, *args):
        if self in submits:
            reaper.at("answer: there")
        return recv(self, *args)

    async def watched_ask(self, request):
        response = await ask(self, request)
        if request.is_submit:
            reaper.at("answer: read")
        return response

    socket.socket.send, socket.socket.sendmsg = watched_send, watched_sendmsg
    socket.socket.recv = watched_recv
    AiohttpTransport.send = watched_ask


def watch_events(reaper: Reaper, told: Path) -> None:
    """Write down what the session tells, as it tells it: that much has to be in the ledger."""
    fd = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(event):
        match event:
            case events.SubmitAccepted(task_id=task_id):
                os.write(fd, f"task {task_id}\n".encode())
                reaper.at("submitted: told")
            case events.ConversionSucceeded(wav=wav):
                os.write(fd, f"url {wav.task_id} {wav.url}\n".encode())
                reaper.at("settled: told")
            case events.DownloadCompleted(download=download):
                os.write(fd, f"file {download.sha256} {download.path.name}\n".encode())
                reaper.at("downloaded: told")

    make = WavSession.__init__

    def watched(self, *args, on_event=lambda _: None, **settings):
        def tell(event):
            on_event(event)
            note(event)

        make(self, *args, on_event=tell, **settings)

    WavSession.__init__ = watched


def live(order: dict) -> int:
    """Run the command once, as ordered."""
    signal.alarm(PATIENCE_S)
    if order["bug"]:
        crash_bugs.ALL_BUGS[order["bug"]]()
    reaper = Reaper(order["point"], order["hit"], order["signal"])
    watch_calls(reaper)
    Transactions(reaper).watch()
    watch_lock(reaper)
    watch_wire(reaper)
    watch_events(reaper, Path(order["told"]))
    if order["saves_to"] is not None:
        watch_files(Path(order["saves_to"]), reaper.at)
    clock = FastClock(order["speed"])
    if order["born_unix_s"] is not None:
        clock = WorldClock(order["speed"], order["born_unix_s"])
    run.SystemClock = lambda: clock
    importer._SLICE = SLICE
    os.environ.update(order["environment"])
    code = cli.main(order["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    Path(order["census"]).write_text(json.dumps(reaper.seen), encoding="utf-8")
    return code


def redirect(order: dict) -> None:
    """Have the command print into files, and read nothing."""
    for number, name in enumerate((os.devnull, order["stdout"], order["stderr"])):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        fd = os.open(name, flags, 0o600)
        os.dup2(fd, number)
        os.close(fd)


def serve(live: Callable[[dict], int] = live) -> None:
    """Run the lives that are ordered, each in a process forked from this one."""
    from kie_wav_async.cli import commands  # noqa: F401, PLC0415 - once for all lives

    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 70
            with contextlib.suppress(BaseException):
                redirect(order)
                try:
                    code = live(order)
                except BaseException:  # noqa: BLE001 - whatever it is, it is shown
                    sys.excepthook(*sys.exc_info())
            os._exit(code)
        print(pid, flush=True)  # noqa: T201 - the way to tell
        _, status = os.waitpid(pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            print(-os.WSTOPSIG(status), flush=True)  # noqa: T201 - the way to tell
            _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201 - the way to tell


if __name__ == "__main__":
    if len(sys.argv) > 1:
        # A life by hand, or under strace.
        ordered = json.loads(Path(sys.argv[1]).read_text("utf-8"))
        redirect(ordered)
        sys.exit(live(ordered))
    serve()
