"""
Bugs that a ledger and its session could have, planted into a life of `crash_child`.

Each is planted where the package meets something else, so that it stays where it is
however the package is built inside: the transport's ``send``, the calls of a
`SqliteLedger`, the statements that SQLite is given, the lock and the files.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from kie_wav_async import AiohttpTransport
from kie_wav_async.errors import TransportError
from kie_wav_async.ledger import AttemptOutcome, SqliteLedger, TrackState

if TYPE_CHECKING:
    from collections.abc import Callable


def plant(owner: object, name: str, bug: Callable) -> None:
    """Have *bug* called instead of a function, with that function as its first argument."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def planted(*args, **kwargs):
        return bug(original, *args, **kwargs)

    setattr(owner, name, planted)


# --- where the ledger's file is opened ----------------------------------------------------------


class Connection:
    """A connection to a ledger that is written, with a hand in its statements."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def change(self, sql, values):
        """Return what is carried out instead of a statement."""
        return sql, values

    def execute(self, sql, values=()):
        return self._connection.execute(*self.change(sql, values))

    def executemany(self, sql, rows):
        sql, _ = self.change(sql, ())
        return self._connection.executemany(sql, rows)


def plant_connection(kind: type[Connection]) -> None:
    """Have every connection that writes a ledger, but not one that makes it, be a *kind*."""

    def connect(original, database, **settings):
        connection = original(database, **settings)
        is_ledger = "mode=rw" in database and not urlsplit(database).path.endswith(".new")
        return kind(connection) if is_ledger else connection

    plant(sqlite3, "connect", connect)


def plant_statement(pattern: str, change: Callable[[str, tuple], tuple[str, tuple]]) -> None:
    """Have *change* say what is carried out instead of the statements that *pattern* is in."""

    class Changed(Connection):
        def change(self, sql, values):
            return change(sql, values) if re.search(pattern, sql) else (sql, values)

    plant_connection(Changed)


# --- the bugs -----------------------------------------------------------------------------------


def write_intent_behind() -> None:
    """Send first, and write down afterwards that it was about to be sent."""
    held = {}

    async def begin(original, self, track, attempt_id, *args, **settings):
        held[attempt_id] = lambda: original(self, track, attempt_id, *args, **settings)

    async def send(original, self, request):
        try:
            return await original(self, request)
        finally:
            if request.is_submit:
                (attempt_id,) = re.findall("attempt=([0-9a-f]{32})", request.body.decode())
                await held.pop(attempt_id)()

    plant(SqliteLedger, "begin_attempt", begin)
    plant(AiohttpTransport, "send", send)


def tell_before_commit() -> None:
    """Commit what a call wrote when the next one comes."""

    class Lagging(Connection):
        def execute(self, sql, values=()):
            if sql == "COMMIT":
                return None
            if sql.startswith("BEGIN"):
                self._catch_up()
            return super().execute(sql, values)

        def close(self):
            self._catch_up()
            self._connection.close()

        def _catch_up(self):
            if self._connection.in_transaction:
                self._connection.execute("COMMIT")

    plant_connection(Lagging)


def write_behind(name: str, is_meant: Callable[..., bool]) -> None:
    """Have a call of the ledger return before it has written anything."""
    writing = set()

    async def call(original, self, *args, **settings):
        if not is_meant(*args):
            return await original(self, *args, **settings)
        task = asyncio.get_running_loop().create_task(original(self, *args, **settings))
        writing.add(task)
        task.add_done_callback(writing.discard)
        return None

    plant(SqliteLedger, name, call)


def write_task_behind() -> None:
    """Have `submit` return before the task's id is written."""
    write_behind("finish_attempt", lambda _, outcome, *__: outcome is AttemptOutcome.ACCEPTED)


def write_result_behind() -> None:
    """Wake who waits for a WAV before it is written."""
    write_behind("finish_task", lambda *_: True)


def recover_as(outcome: str) -> None:
    """Take every submit that was under way for one that came to *outcome*."""
    plant_statement(
        r"UPDATE attempt SET outcome = \?, ended = \? WHERE outcome = \?",
        lambda sql, values: (sql, (outcome, *values[1:])),
    )


def forget_what_is_lost() -> None:
    """Write down that a submit whose answer was lost created nothing."""

    async def end(original, self, attempt_id, outcome, *args, **settings):
        if outcome is AttemptOutcome.UNKNOWN:
            outcome = AttemptOutcome.NOT_CREATED
        await original(self, attempt_id, outcome, *args, **settings)

    plant(SqliteLedger, "finish_attempt", end)


def repeat_what_is_lost() -> None:
    """Send a submit whose answer was lost again, as if none of it had left."""

    async def send(original, self, request):
        try:
            return await original(self, request)
        except TransportError as error:
            raise TransportError(str(error), maybe_sent=False) from None

    plant(AiohttpTransport, "send", send)


def plan_over_what_is_known() -> None:
    """Plan every row of the catalog, whatever became of it before."""
    plant_statement(
        "INSERT INTO track .* ON CONFLICT DO NOTHING",
        lambda sql, values: (
            sql.replace(
                "DO NOTHING",
                "DO UPDATE SET state = 'planned', base_state = 'planned', current_attempt = NULL",
            ),
            values,
        ),
    )


def throw_the_log_away() -> None:
    """Remove what a dead process left beside the file."""
    tidied = set()

    def connect(original, database, **settings):
        path = unquote(urlsplit(database).path)
        if path not in tidied:
            tidied.add(path)
            for suffix in ("-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
        return original(database, **settings)

    plant(sqlite3, "connect", connect)


def hide(hidden: TrackState) -> None:
    """Have the ledger show no track in the state *hidden* when it is asked for many."""

    async def page(original, self, states, **settings):
        return await original(self, set(states) - {hidden}, **settings)

    plant(SqliteLedger, "list_entries", page)


def lock_nothing() -> None:
    """Let everybody have the file."""

    def flock(original, fd, operation):
        if not Path(f"/proc/self/fd/{fd}").readlink().name.endswith(".lock"):
            original(fd, operation)

    plant(fcntl, "flock", flock)


def lock_and_compare_nothing() -> None:
    """Let everybody have the file, and submit whatever he thinks is not submitted."""
    lock_nothing()

    async def begin(original, self, *args, **settings):
        await original(self, *args, **settings | {"again": True})

    plant(SqliteLedger, "begin_attempt", begin)


def wait_for_no_disk() -> None:
    """Leave it to the system when anything gets to the disk."""
    plant_statement("PRAGMA synchronous", lambda _, values: ("PRAGMA synchronous = OFF", values))


def store_before_it_is_there() -> None:
    """Have the ledger know of a file that is whole, and give it its name afterwards."""
    held: dict[str, Callable[[], object]] = {}

    def replace(original, source, target):
        if Path(target).suffix == ".wav":
            held[Path(target).name] = lambda: original(source, target)
        else:
            original(source, target)

    async def store(original, self, track, *, path, **settings):
        await original(self, track, path=path, **settings)
        if (name_it := held.pop(path, None)) is not None:
            name_it()

    plant(os, "replace", replace)
    plant(SqliteLedger, "mark_saved", store)


def reserve_nothing() -> None:
    """Give a file the name that its title makes, whoever else has that."""

    async def reserve(original, self, track, *, path, key):
        return await original(self, track, path=path, key=f"{key} {track.audio_id}")

    plant(SqliteLedger, "reserve_path", reserve)


def reserve_as_it_is_written() -> None:
    """Take names for different that some file systems take for one."""

    async def reserve(original, self, track, *, path, key):  # noqa: ARG001 - that is the bug
        return await original(self, track, path=path, key=path)

    plant(SqliteLedger, "reserve_path", reserve)


def write_in_place() -> None:
    """Have the bytes under the file's name while they come."""

    def is_part(path):
        return isinstance(path, str | Path) and Path(path).match("*.wav.part")

    def in_place(original, path, *args, **settings):
        return original(str(path)[: -len(".part")] if is_part(path) else path, *args, **settings)

    def replace(original, source, target):
        if not is_part(source):
            original(source, target)

    for name in ("open", "stat", "unlink"):
        plant(os, name, in_place)
    plant(os, "replace", replace)


def list_in_place() -> None:
    """Write the manifest over the one that is there."""

    def open_over(original, path, *args, **settings):
        if isinstance(path, str | Path) and Path(path).match(".manifest.jsonl.*.part"):
            (Path(path).parent / "manifest.jsonl").write_bytes(b"")
        return original(path, *args, **settings)

    plant(os, "open", open_over)


#: What a death, or the life after it, brings to light.
BUGS: dict[str, Callable[[], None]] = {
    "the intent is written after the submit": write_intent_behind,
    "calls return before their commit": tell_before_commit,
    "a task is told before it is written": write_task_behind,
    "a result is told before it is written": write_result_behind,
    "what was under way is planned again": lambda: recover_as("not_created"),
    "what was under way is accepted": lambda: recover_as("accepted"),
    "a lost answer is taken for no charge": forget_what_is_lost,
    "a lost submit is repeated at once": repeat_what_is_lost,
    "the catalog is planned over the ledger": plan_over_what_is_known,
    "the log of the dead is thrown away": throw_the_log_away,
    "what is in flight is not followed": lambda: hide(TrackState.ACCEPTED),
}

#: What a death while files are saved brings to light, and a pattern of what is said of it.
BUGS_OF_FILES: dict[str, tuple[Callable[[], None], str]] = {
    "a file is stored before it is there": (
        store_before_it_is_there,
        "(is stored|was told to be there), and is not",
    ),
    "names are not reserved": (reserve_nothing, "is the place of|the WAV of another task"),
    "names are reserved by their case": (reserve_as_it_is_written, "is the place of"),
    "a file is written in its place": (write_in_place, "bytes are not the file of"),
    "the manifest is written in its place": (list_in_place, "has forgotten"),
    "what is converted is not saved": (lambda: hide(TrackState.SUCCEEDED), "stuck"),
}

#: What a second process brings to light.
BUGS_OF_TWO: dict[str, Callable[[], None]] = {
    "the file is not locked": lock_nothing,
    "neither lock nor compare-and-set": lock_and_compare_nothing,
}

#: What only a look at the system's calls brings to light.
BUGS_OF_DISK: dict[str, Callable[[], None]] = {"nothing waits for the disk": wait_for_no_disk}

ALL_BUGS = (
    BUGS | BUGS_OF_TWO | BUGS_OF_DISK | {name: bug for name, (bug, _) in BUGS_OF_FILES.items()}
)
