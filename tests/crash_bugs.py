"""Bugs that a ledger and its session could have, planted into a life of `crash_child`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kie_wav_async import _ledger_thread, _owner_lock, _part_file
from kie_wav_async._desk import Desk
from kie_wav_async._ledger_sql import LedgerTables
from kie_wav_async._ledger_thread import LedgerThread
from kie_wav_async._submitter import Submitter
from kie_wav_async.cli import _manifest, _places
from kie_wav_async.cli._places import Places
from kie_wav_async.cli._saver import Saver
from kie_wav_async.cli._saving_queue import SavingQueue
from kie_wav_async.file_names import file_name
from kie_wav_async.ledger import AttemptOutcome, SqliteLedger, TrackState

if TYPE_CHECKING:
    from collections.abc import Callable


def write_intent_behind() -> None:
    """Send first, and write down afterwards that it was about to be sent."""
    may_go, exchange = Submitter._may_go, Submitter._exchange

    async def go(*_):
        return True

    async def send_and_write(self, conversion):
        response = await exchange(self, conversion)
        await may_go(self, conversion)
        return response

    Submitter._may_go, Submitter._exchange = go, send_and_write


def tell_before_commit() -> None:
    """Commit what a call wrote when the next one comes."""
    connected, disconnect = LedgerThread._connected, LedgerThread._disconnect

    class Lagging:
        def __init__(self, connection):
            self._connection = connection

        def __getattr__(self, name):
            return getattr(self._connection, name)

        def execute(self, sql, *parameters):
            if sql == "COMMIT":
                return None
            if sql.startswith("BEGIN") and self._connection.in_transaction:
                self._connection.execute("COMMIT")
            return self._connection.execute(sql, *parameters)

    def commit_and_disconnect(self):
        if self._connection is not None and self._connection.in_transaction:
            self._connection.execute("COMMIT")
        disconnect(self)

    LedgerThread._connected = lambda self: Lagging(connected(self))
    LedgerThread._disconnect = commit_and_disconnect


def write_task_behind() -> None:
    """Have `submit` return before the task's id is written."""

    async def accept(self, conversion, answer):
        attempt_id = conversion.attempt_id
        self._registry.accept(conversion, answer.task_id, self._desk.clock.monotonic())
        self._follow(conversion)
        await self._desk.journal.end(attempt_id, AttemptOutcome.ACCEPTED, task_id=answer.task_id)

    Submitter._accept = accept


def write_result_behind() -> None:
    """Wake who waits for a WAV before it is written."""

    async def write_end(self, conversion):
        self._tell_written(conversion)
        await self.journal.settle(conversion.task_id, conversion.outcome)

    Desk._write_end = write_end


def recover_as(outcome: str) -> None:
    """Take every submit that was under way for one that came to *outcome*."""

    def recover(self, now_unix_s):
        left = self._all("SELECT DISTINCT track FROM attempt WHERE outcome = 'open'")
        self._run(
            "UPDATE attempt SET outcome = ?, ended = ? WHERE outcome = 'open'", outcome, now_unix_s
        )
        for (index,) in left:
            self._restate(index)

    LedgerTables.recover = recover


def forget_what_is_lost() -> None:
    """Write down that a submit whose answer was lost created nothing."""
    lose = Submitter._lose

    def lose_silently(self, conversion, error):
        self._note(conversion, AttemptOutcome.NOT_CREATED, error)
        lose(self, conversion, error)

    Submitter._lose = lose_silently


def repeat_what_is_lost() -> None:
    """Send a submit whose answer was lost again, as if none of it had left."""

    def lose(self, conversion, error):
        self._note(conversion, AttemptOutcome.UNKNOWN, error)
        # The ledger would not have it otherwise.
        conversion.is_again = True
        self._postpone(conversion, error)

    Submitter._lose = lose


def plan_over_what_is_known() -> None:
    """Plan every row of the catalog, whatever became of it before."""
    plan = LedgerTables.plan

    def plan_all(self, rows):
        new = plan(self, rows)
        for music_task_id, audio_id, _ in rows:
            self._run(
                "UPDATE track SET state = 'planned', rest = 'planned', followed = NULL"
                " WHERE music_task_id = ? AND audio_id = ?",
                music_task_id,
                audio_id,
            )
        return new

    LedgerTables.plan = plan_all


def throw_the_log_away() -> None:
    """Remove what a dead process left beside the file."""
    connect = _ledger_thread.connect_to_write

    def tidy(path):
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        return connect(path)

    _ledger_thread.connect_to_write = tidy


def leave_what_is_in_flight() -> None:
    """Go on with what was not submitted, and with nothing else."""
    page = SqliteLedger.page

    async def page_of_planned(self, states, **settings):
        wanted = set(states) - {TrackState.ACCEPTED}
        return await page(self, wanted, **settings)

    SqliteLedger.page = page_of_planned


def lock_nothing() -> None:
    """Let everybody have the file."""
    _owner_lock.try_lock = lambda _: True


def lock_and_compare_nothing() -> None:
    """Let everybody have the file, and submit whatever he thinks is not submitted."""
    lock_nothing()
    LedgerTables._may_begin = lambda *_, **__: True
    Submitter._is_known = lambda *_: True


def wait_for_no_disk() -> None:
    """Leave it to the system when anything gets to the disk."""
    connect = _ledger_thread.connect_to_write

    def careless(path):
        connection = connect(path)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    _ledger_thread.connect_to_write = careless


def store_before_it_is_there() -> None:
    """Have the ledger know of a file that is whole, and give it its name afterwards."""
    replace, store = Path.replace, Saver._store
    held: dict[Path, Path] = {}

    def hold(self, target):
        if target.suffix == ".wav":
            held[target] = self
            return target
        return replace(self, target)

    async def store_and_name(self, standing, place, download):
        await store(self, standing, place, download)
        if (part := held.pop(download.path, None)) is not None:
            replace(part, download.path)

    Path.replace, Saver._store = hold, store_and_name


def reserve_nothing() -> None:
    """Give a file the name that its title makes, whoever else has that."""

    async def find(self, standing):
        return file_name(standing.track, template=self.template, index=standing.index)

    Places.find = find


def reserve_as_it_is_written() -> None:
    """Take names for different that some file systems take for one."""
    _places.fold = lambda name: name


def write_in_place() -> None:
    """Have the bytes under the file's name while they come."""
    _part_file.part_path = lambda target: target


def list_in_place() -> None:
    """Write the manifest over the one that is there."""
    open_part = _manifest._open_part

    def open_over(part):
        (part.parent / _manifest.MANIFEST).write_bytes(b"")
        return open_part(part)

    _manifest._open_part = open_over


def save_only_what_is_told() -> None:
    """Leave the files of what an earlier life converted."""
    SavingQueue.is_short = property(lambda _: False)


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
    "what is in flight is not followed": leave_what_is_in_flight,
}

#: What a death while files are saved brings to light, and a pattern of what is said of it.
BUGS_OF_FILES: dict[str, tuple[Callable[[], None], str]] = {
    "a file is stored before it is there": (store_before_it_is_there, "stored, and is not there"),
    "names are not reserved": (reserve_nothing, "is the place of|the WAV of another task"),
    "names are reserved by their case": (reserve_as_it_is_written, "is the place of"),
    "a file is written in its place": (write_in_place, "bytes are not the file of"),
    "the manifest is written in its place": (list_in_place, "has forgotten"),
    "what is converted is not saved": (save_only_what_is_told, "stuck"),
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
