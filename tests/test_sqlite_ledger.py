from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from yarl import URL

from kie_wav_async import Track
from kie_wav_async.errors import LedgerError
from kie_wav_async.ledger import AttemptEntry, AttemptOutcome, Ledger, SqliteLedger, TrackState
from kie_wav_async.ledger.sqlite import database_file
from kie_wav_async.ledger.sqlite import ledger as sqlite_ledger
from kie_wav_async.ledger.sqlite.queries import LedgerTables
from kie_wav_async.ledger.sqlite.schema import (
    APPLICATION_ID,
    EARLIER_APPLICATION_ID,
    SCHEMA_VERSION,
)
from kie_wav_async.testing import MemoryLedger

NOW = 1_700_000_000.0
TRACK = Track("5c79", "e231")
WAV = URL("https://files.example/x.wav")

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX modes")


@pytest.fixture
def path(tmp_path):
    """Return where the ledger is to be."""
    return tmp_path / "x.sqlite3"


def tracks(count):
    """Return *count* tracks."""
    return [Track("5c79", f"e{n}") for n in range(count)]


def mode(path):
    """Return the rights on a file."""
    return stat.S_IMODE(path.stat().st_mode)


def beside(path):
    """Name the files in the folder of *path*."""
    return sorted(entry.name for entry in path.parent.iterdir())


# --- the file --------------------------------------------------------------------------------


def test_it_is_a_ledger(path):
    """The class has the calls of the protocol."""
    assert isinstance(SqliteLedger(path), Ledger)


def test_constructing_it_touches_nothing(path):
    """Until it is opened there is no file, no thread and no running loop needed."""
    threads = threading.active_count()
    SqliteLedger(path)
    assert [] == beside(path)
    assert threads == threading.active_count()


@pytest.mark.parametrize(
    ("args", "options", "error"),
    [
        ((7,), {}, TypeError),
        ((None,), {}, TypeError),
        ((b"x",), {}, TypeError),
        (("",), {}, ValueError),
        (("x",), {"read_only": 1}, TypeError),
        (("x",), {"new_ledger": None}, TypeError),
    ],
)
def test_what_is_no_path_is_refused(args, options, error):
    """A path is a str or a path of str, and not empty."""
    with pytest.raises(error):
        SqliteLedger(*args, **options)


@posix
async def test_nobody_else_can_read_it(path):
    """Every file it makes has mode 0600, whatever the umask."""
    umask = os.umask(0)
    try:
        async with SqliteLedger(path) as ledger:
            await ledger.add_tracks([TRACK])
            names = beside(path)
            assert {0o600} == {mode(path.with_name(name)) for name in names}
    finally:
        os.umask(umask)
    assert ["x.sqlite3", "x.sqlite3-shm", "x.sqlite3-wal", "x.sqlite3.lock"] == names


@posix
async def test_rights_of_others_are_taken_away(path):
    """A ledger that others could read is theirs no more after an opening."""
    async with SqliteLedger(path):
        pass
    path.chmod(0o644)
    async with SqliteLedger(path):
        assert 0o600 == mode(path)


async def test_a_closed_ledger_is_one_file(path):
    """Closed, the log is in the file, and only the lock stays beside it."""
    async with SqliteLedger(path) as ledger:
        await ledger.add_tracks([TRACK])
    assert ["x.sqlite3", "x.sqlite3.lock"] == beside(path)


async def test_the_file_says_what_it_is(path):
    """The file carries our mark, the version of its schema, and keeps a write-ahead log."""
    async with SqliteLedger(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection:
        found = [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version", "journal_mode")
        ]
    assert [APPLICATION_ID, SCHEMA_VERSION, "wal"] == found


async def test_commits_are_synced(path, monkeypatch):
    """The connection that writes syncs each commit, waits for locks and minds references."""
    connections = []
    connect = sqlite3.connect

    def connect_here(*args, **kw):
        connections.append(connect(*args, check_same_thread=False, **kw))
        return connections[-1]

    monkeypatch.setattr(sqlite3, "connect", connect_here)
    async with SqliteLedger(path):
        settings = {
            name: connections[-1].execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("synchronous", "busy_timeout", "foreign_keys", "fullfsync")
        }
    assert {"synchronous": 2, "busy_timeout": 5000, "foreign_keys": 1, "fullfsync": 1} == settings


async def test_a_folder_that_is_missing_is_not_made(tmp_path):
    """A ledger in a folder that is not there says so."""
    with pytest.raises(LedgerError, match=r"(?s)folder of the ledger .* is not there.*make it"):
        await SqliteLedger(tmp_path / "no" / "x.sqlite3").open(NOW)
    assert [] == list(tmp_path.iterdir())


async def test_a_folder_is_no_ledger(tmp_path):
    """A folder where the ledger should be is refused."""
    with pytest.raises(LedgerError, match="is not a file"):
        await SqliteLedger(tmp_path).open(NOW)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("ours", "versions"),
    [(1, (2, "a newer")), (1, (99, "a newer")), (3, (2, "an older"))],
)
async def test_a_ledger_of_another_version_is_refused_by_name(
    path, read_only, ours, versions, monkeypatch
):
    """A ledger of another schema version is left as it is, and the error names both versions."""
    async with SqliteLedger(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {versions[0]}")
    monkeypatch.setattr(database_file, "SCHEMA_VERSION", ours)
    version, who = versions
    content = path.read_bytes()
    told = rf"{who} version .*its schema is {version}, this version .* {ours} only"
    with pytest.raises(LedgerError, match=told):
        await SqliteLedger(path, read_only=read_only).open(NOW)
    assert content == path.read_bytes()


@pytest.mark.parametrize("version", [1, 3])
async def test_a_ledger_from_before_the_first_release_is_refused_by_name(path, version):
    """A file of a version that was never released is called what it is, and left alone."""
    async with SqliteLedger(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {EARLIER_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")
    content = path.read_bytes()
    told = rf"an older version of kie-wav-async, before its first release \(its schema is {version}"
    with pytest.raises(LedgerError, match=told):
        await SqliteLedger(path).open(NOW)
    assert content == path.read_bytes()


async def test_another_programs_database_is_refused(path):
    """A database that is not ours stays as it is, down to its mode and its neighbours."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE track (idx)")
    path.chmod(0o644)
    content = path.read_bytes()
    with pytest.raises(LedgerError, match="another program's database"):
        await SqliteLedger(path).open(NOW)
    assert content == path.read_bytes()
    assert sys.platform == "win32" or 0o644 == mode(path)
    assert ["x.sqlite3", "x.sqlite3.lock"] == beside(path)


async def test_what_is_no_database_is_refused(path):
    """A file of another kind stays as it is."""
    path.write_text("music_task_id,audio_id\n" * 100)
    with pytest.raises(LedgerError, match="is no ledger, and stays as it is"):
        await SqliteLedger(path).open(NOW)
    assert path.read_text() == "music_task_id,audio_id\n" * 100


async def test_an_empty_file_becomes_a_ledger(path):
    """An empty file, as `mktemp` leaves it, is made a ledger."""
    path.touch()
    async with SqliteLedger(path) as ledger:
        assert 1 == await ledger.add_tracks([TRACK])


async def test_what_a_broken_start_left_is_cleared_away(path):
    """A ledger that was being made when its process died is made anew."""
    path.with_name("x.sqlite3.new").write_bytes(b"SQLite format 3\0" + b"x" * 99)
    path.with_name("x.sqlite3.new-journal").write_bytes(b"x" * 512)
    async with SqliteLedger(path) as ledger:
        assert 1 == await ledger.add_tracks([TRACK])
    assert ["x.sqlite3", "x.sqlite3.lock"] == beside(path)


async def test_the_log_of_a_lost_ledger_is_not_taken_for_a_new_ones(path):
    """Where the file is gone but its log is there, no empty ledger is made in its place."""
    path.with_name("x.sqlite3-wal").write_bytes(b"x" * 99)
    with pytest.raises(LedgerError, match=r"(?s)x\.sqlite3-wal, .*put the ledger back.*paid again"):
        await SqliteLedger(path).open(NOW)
    assert ["x.sqlite3-wal", "x.sqlite3.lock"] == beside(path)


async def test_a_new_ledger_leaves_the_log_of_a_lost_one(path):
    """Where a new ledger is wanted, the log of the lost one gets another name, and no other."""
    for number in range(2):
        path.unlink(missing_ok=True)
        path.with_name("x.sqlite3-wal").write_bytes(b"%d" % number * 99)
        async with SqliteLedger(path, new_ledger=True) as ledger:
            assert 1 == await ledger.add_tracks([TRACK])
    logs = ["x.sqlite3-wal.lost", "x.sqlite3-wal.lost1"]
    assert ["x.sqlite3", *logs, "x.sqlite3.lock"] == beside(path)
    assert [b"0" * 99, b"1" * 99] == [path.with_name(name).read_bytes() for name in logs]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a plain user")
async def test_a_file_that_may_not_be_written_says_so(path):  # pragma: no cover - run as root here
    """A ledger without the right to write is refused with the system's words."""
    async with SqliteLedger(path):
        pass
    path.parent.chmod(0o500)
    try:
        with pytest.raises(LedgerError, match="may be"):
            await SqliteLedger(path).open(NOW)
    finally:
        path.parent.chmod(0o700)


async def test_names_are_only_names(tmp_path):
    """Blanks, percent signs and question marks in a path mean nothing special."""
    path = tmp_path / "a b%41?mode=memory#x.sqlite3"
    async with SqliteLedger(str(path)) as ledger:
        await ledger.add_tracks([TRACK])
    assert path.stat().st_size > 0


async def test_a_relative_path_is_meant_where_it_is_opened(path, monkeypatch):
    """A relative path is looked up once, when the ledger is opened."""
    monkeypatch.chdir(path.parent)
    async with SqliteLedger(path.name) as ledger:
        monkeypatch.chdir("/")
        await ledger.add_tracks([TRACK])
    assert path.exists()


# --- reading only ----------------------------------------------------------------------------


@pytest.fixture
async def left(path):
    """Return a ledger's path after a run."""
    async with SqliteLedger(path) as ledger:
        await ledger.add_tracks(tracks(3))
    return path


async def test_looking_changes_nothing(left):
    """A ledger that is only read needs no lock, keeps its bytes, and gets no log to replay."""
    left.with_name("x.sqlite3.lock").unlink()
    content = left.read_bytes()
    async with SqliteLedger(left, read_only=True) as ledger:
        assert 3 == (await ledger.count_by_state())[TrackState.PLANNED]
        assert 3 == len(await ledger.list_entries([TrackState.PLANNED]))
    assert content == left.read_bytes()
    assert "x.sqlite3.lock" not in beside(left)
    assert b"" == left.with_name("x.sqlite3-wal").read_bytes()


async def test_looking_sees_what_was_written_since(left):
    """A reader sees each commit of the process that writes, as soon as it is made."""
    async with SqliteLedger(left) as writer, SqliteLedger(left, read_only=True) as reader:
        for n in range(3, 6):
            await writer.add_tracks(tracks(n + 1))
            assert n + 1 == (await reader.count_by_state())[TrackState.PLANNED]


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        ("add_tracks", ([TRACK],), {}),
        ("requeue", ([TrackState.FAILED],), {}),
        (
            "begin_attempt",
            (
                TRACK,
                "a1",
                NOW,
            ),
            {},
        ),
        (
            "finish_attempt",
            (
                "a1",
                AttemptOutcome.UNKNOWN,
                NOW,
            ),
            {},
        ),
        (
            "record_callback",
            (
                "a1",
                "t1",
            ),
            {},
        ),
        (
            "finish_task",
            (
                "t1",
                NOW,
            ),
            {},
        ),
        ("reserve_path", (TRACK,), {"path": "x", "key": "x"}),
        ("mark_saved", (TRACK,), {"path": "x", "size": 1, "sha256": "00"}),
        ("mark_missing", (TRACK,), {}),
        ("mark_expired", (TRACK,), {}),
    ],
)
async def test_looking_writes_nothing(left, name, args, options):
    """Every call that would write is refused by a ledger that is only read."""
    async with SqliteLedger(left, read_only=True) as ledger:
        with pytest.raises(LedgerError, match="read only"):
            await getattr(ledger, name)(*args, **options)


@pytest.mark.parametrize("is_empty", [False, True])
async def test_looking_makes_no_ledger(path, is_empty):
    """A ledger that is not there is not made by looking at it."""
    if is_empty:
        path.touch()
    with pytest.raises(LedgerError, match="there is no ledger at"):
        await SqliteLedger(path, read_only=True).open(NOW)
    assert (["x.sqlite3"] if is_empty else []) == beside(path)


def on_a_read_only_disk(monkeypatch, code):
    """Have SQLite refuse whatever would make a file beside the ledger, as such a disk has it."""
    connect = sqlite3.connect

    class Connection(sqlite3.Connection):
        def execute(self, *_):
            error = sqlite3.OperationalError("unable to open database file")
            error.sqlite_errorcode = code
            raise error

    def connect_here(name, **kw):
        refuses = "immutable=1" not in name
        return connect(name, factory=Connection if refuses else sqlite3.Connection, **kw)

    monkeypatch.setattr(sqlite3, "connect", connect_here)


CANTOPEN, READONLY_DIRECTORY = sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY | (6 << 8)


@pytest.mark.parametrize("code", [CANTOPEN, READONLY_DIRECTORY])
@pytest.mark.parametrize("is_log_there", [False, True])
async def test_a_read_only_disk_can_be_looked_at(left, monkeypatch, code, is_log_there):
    """A ledger that was closed can be read where nothing can be written."""
    if is_log_there:
        left.with_name("x.sqlite3-wal").touch()
    on_a_read_only_disk(monkeypatch, code)
    async with SqliteLedger(left, read_only=True) as ledger:
        assert 3 == (await ledger.count_by_state())[TrackState.PLANNED]


@pytest.mark.parametrize("code", [CANTOPEN, READONLY_DIRECTORY])
async def test_a_log_is_not_left_out_on_a_read_only_disk(left, monkeypatch, code):
    """A ledger is not read without what stands in its log alone."""
    left.with_name("x.sqlite3-wal").write_bytes(b"x" * 99)
    on_a_read_only_disk(monkeypatch, code)
    with pytest.raises(LedgerError, match="may be"):
        await SqliteLedger(left, read_only=True).open(NOW)


async def test_a_disk_that_cannot_be_read_is_not_looked_at(left, monkeypatch):
    """Only what a disk says that cannot be written is overheard."""
    on_a_read_only_disk(monkeypatch, sqlite3.SQLITE_IOERR)
    with pytest.raises(LedgerError, match="check the disk"):
        await SqliteLedger(left, read_only=True).open(NOW)


# --- opening and closing ---------------------------------------------------------------------


async def test_openings_nest(path):
    """It is open from the first opening to the last closing, and one more closing is nothing."""
    ledger = SqliteLedger(path)
    await ledger.open(NOW)
    await ledger.begin_attempt(TRACK, "a1", NOW)
    assert () == (await ledger.open(NOW)).unknown
    assert TrackState.SUBMITTING is (await ledger.get(TRACK)).state
    await ledger.aclose()
    assert TrackState.SUBMITTING is (await ledger.get(TRACK)).state
    await ledger.aclose()
    await ledger.aclose()
    with pytest.raises(LedgerError, match="is not open"):
        await ledger.get(TRACK)


async def test_it_can_be_opened_again(path):
    """Closed, a ledger can be opened again, at once and from two places."""
    ledger = SqliteLedger(path)
    for n in range(3):
        await asyncio.gather(ledger.open(NOW), ledger.open(NOW))
        assert 1 == await ledger.add_tracks([Track("5c79", f"e{n}")])
        await asyncio.gather(ledger.aclose(), ledger.aclose())


@pytest.mark.parametrize("name", ["add_tracks", "count_by_state", "get", "begin_attempt"])
async def test_it_must_be_open(path, name):
    """Before it is opened every call raises, and says what to do."""
    calls = {
        "add_tracks": ([TRACK],),
        "count_by_state": (),
        "get": (TRACK,),
        "begin_attempt": (TRACK, "a1", NOW),
    }
    with pytest.raises(LedgerError, match=r"(?s)is not open.*`async with`, or call open\(\)"):
        await getattr(SqliteLedger(path), name)(*calls[name])


async def test_a_failed_opening_counts_for_nothing(path):
    """After an opening that failed it is closed, and the next one may succeed."""
    path.mkdir()
    ledger = SqliteLedger(path)
    results = await asyncio.gather(
        ledger.open(NOW), ledger.open(NOW), ledger.count_by_state(), return_exceptions=True
    )
    assert [LedgerError] * 3 == [type(result) for result in results]
    assert 3 == len(set(map(id, results)))
    path.rmdir()
    async with ledger:
        assert 1 == await ledger.add_tracks([TRACK])


async def test_closing_finishes_what_is_queued(path):
    """Calls made before the last closing are written before it returns."""
    ledger = SqliteLedger(path)
    await ledger.open(NOW)
    calls = [asyncio.ensure_future(ledger.add_tracks([track])) for track in tracks(50)]
    await asyncio.sleep(0)
    await ledger.aclose()
    assert [1] * 50 == await asyncio.gather(*calls)


async def test_a_cancelled_opening_leaves_it_closed(path):
    """Cancelled while it opens, a ledger lets go of its file by itself."""
    ledger = SqliteLedger(path)
    opening = asyncio.ensure_future(ledger.open(NOW))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    async with ledger:
        assert 1 == await ledger.add_tracks([TRACK])


async def test_a_cancelled_closing_closes(path):
    """Cancelled while it closes, a ledger closes all the same, and the next one waits for it."""
    ledger = SqliteLedger(path)
    await ledger.open(NOW)
    closing = asyncio.ensure_future(ledger.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    async with ledger:
        assert 1 == await ledger.add_tracks([TRACK])


async def test_closing_gives_up_on_a_disk_that_hangs(path, monkeypatch):
    """A disk that does not answer holds no closing up for ever; what was asked is still done."""
    gate = threading.Event()
    plan = LedgerTables.add_tracks

    def plan_late(tables, rows):
        gate.wait(60)
        return plan(tables, rows)

    monkeypatch.setattr(LedgerTables, "add_tracks", plan_late)
    monkeypatch.setattr(sqlite_ledger, "_CLOSING_S", 0.0)
    ledger = SqliteLedger(path)
    await ledger.open(NOW)
    planning = asyncio.ensure_future(ledger.add_tracks([TRACK]))
    await asyncio.sleep(0)
    try:
        with pytest.raises(LedgerError, match=r"is still being written .* missing") as caught:
            await ledger.aclose()
        assert str(path) in str(caught.value)
        await ledger.aclose()  # It is closed, so that this does nothing.
        monkeypatch.undo()
    finally:
        gate.set()
    assert 1 == await planning
    # The next opening waits for what is left of the last.
    async with ledger:
        assert 1 == (await ledger.count_by_state())[TrackState.PLANNED]


async def test_a_cancelled_caller_stops_nobody(path):
    """A caller who goes away while his call is queued takes nothing with him."""
    async with SqliteLedger(path) as ledger:
        calls = [asyncio.ensure_future(ledger.add_tracks([track])) for track in tracks(9)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [1] * 4 == results[1::2]
        assert 9 == (await ledger.count_by_state())[TrackState.PLANNED]


def test_another_loop_is_refused(path):
    """A ledger belongs to the loop that opened it until it is closed."""
    ledger = SqliteLedger(path)

    async def use_elsewhere():
        with pytest.raises(RuntimeError, match="loop that opened it"):
            await ledger.count_by_state()
        with pytest.raises(RuntimeError, match="loop that opened it"):
            await ledger.open(NOW)
        with pytest.raises(RuntimeError, match="loop that opened it"):
            await ledger.aclose()

    async def main():
        async with ledger:
            await asyncio.to_thread(asyncio.run, use_elsewhere())
            assert 1 == await ledger.add_tracks([TRACK])

    asyncio.run(main())
    asyncio.run(main_again(ledger))


async def main_again(ledger):
    """Use *ledger* on another loop, now that it was closed."""
    async with ledger:
        assert 0 == await ledger.add_tracks([TRACK])


def test_a_loop_that_died_does_not_keep_it(path):
    """Left open by a loop that has ended, a ledger can be opened on the next one."""
    ledger = SqliteLedger(path)
    asyncio.run(ledger.open(NOW))
    asyncio.run(main_again_after_death(ledger))


async def main_again_after_death(ledger):
    """Plan one track on a new loop."""
    async with ledger:
        assert 1 == await ledger.add_tracks([TRACK])


def test_a_forgotten_ledger_is_told_of_and_closed(path):
    """A ledger nobody closed warns when it is collected, and its file is free again."""
    ledger = SqliteLedger(path)
    asyncio.run(ledger.open(NOW))
    [thread] = [t for t in threading.enumerate() if t.name == "kie-wav-ledger"]
    ledgers = [ledger]
    del ledger
    with pytest.warns(ResourceWarning, match="unclosed SqliteLedger"):
        ledgers.clear()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert ["x.sqlite3", "x.sqlite3.lock"] == beside(path)


def test_leaving_without_closing_hangs_nothing_and_loses_nothing(path):
    """A program that ends with its ledger open ends, and what was told to be written is."""
    program = """
import asyncio, sys
from kie_wav_async import Track
from kie_wav_async.ledger import SqliteLedger
ledger = SqliteLedger(sys.argv[1])
async def main():
    await ledger.open(1.0)
    await ledger.add_tracks([Track("5c79", "e231")])
asyncio.run(main())
"""
    done = subprocess.run(  # noqa: S603 - our own interpreter and our own text
        [sys.executable, "-c", program, str(path)], check=True, timeout=60, capture_output=True
    )
    assert b"" == done.stderr
    asyncio.run(main_again(SqliteLedger(path)))


# --- one transaction for many ----------------------------------------------------------------


class Gate:
    """Stops the first commit until it is opened, and counts what is committed."""

    def __init__(self, monkeypatch):
        self.reached = threading.Event()
        self.opened = threading.Event()
        self.commits = 0
        gate = self

        class Connection(sqlite3.Connection):
            def execute(self, sql, *values):
                if sql == "COMMIT" and gate.is_armed:
                    gate.commits += 1
                    gate.reached.set()
                    assert gate.opened.wait(timeout=60)
                return super().execute(sql, *values)

        self.is_armed = False
        connect = sqlite3.connect
        monkeypatch.setattr(
            sqlite3, "connect", lambda *args, **kw: connect(*args, factory=Connection, **kw)
        )


async def test_calls_that_wait_are_written_together(path, monkeypatch):
    """However many calls wait for the disk, they are one transaction, and one word to the loop."""
    gate = Gate(monkeypatch)
    async with SqliteLedger(path) as ledger:
        gate.is_armed = True
        first = asyncio.ensure_future(ledger.add_tracks([TRACK]))
        await asyncio.to_thread(gate.reached.wait, 60)
        rest = [
            asyncio.ensure_future(ledger.begin_attempt(track, f"a{n}", NOW))
            for n, track in enumerate(tracks(400))
        ]
        await asyncio.sleep(0)
        loop, words = asyncio.get_running_loop(), []
        tell = loop.call_soon_threadsafe
        monkeypatch.setattr(
            loop, "call_soon_threadsafe", lambda *args: words.append(1) or tell(*args)
        )
        gate.opened.set()
        assert 1 == await first
        assert [None] * 400 == await asyncio.gather(*rest)
        assert (2, 2) == (gate.commits, len(words))


async def test_calls_take_effect_in_their_order(path):
    """Calls made one after the other, not waiting, are written in that order."""
    async with SqliteLedger(path) as ledger:
        results = await asyncio.gather(
            ledger.get(TRACK),
            ledger.begin_attempt(TRACK, "a1", NOW),
            ledger.begin_attempt(TRACK, "a2", NOW),
            ledger.finish_attempt("a1", AttemptOutcome.NOT_CREATED, NOW),
            ledger.begin_attempt(TRACK, "a2", NOW),
            ledger.finish_attempt("a2", AttemptOutcome.ACCEPTED, NOW, task_id="t2"),
            ledger.finish_task("t2", NOW, wav_url=WAV),
            ledger.get(TRACK),
        )
    assert (None, None, "submitting", None) == (*results[:2], results[2].state, results[4])
    assert ("succeeded", "t2") == (results[-1].state, results[-1].task_id)


async def test_of_many_submits_of_one_track_one_is_sent(path):
    """However many ask at once to send a track, one may."""
    async with SqliteLedger(path) as ledger:
        answers = await asyncio.gather(
            *(ledger.begin_attempt(TRACK, f"a{n}", NOW) for n in range(50))
        )
    assert 1 == answers.count(None)


async def test_a_loop_that_ends_first_does_not_kill_the_thread(path, monkeypatch):
    """A loop that is closed while the disk is waited for leaves the file written and free."""
    gate = Gate(monkeypatch)
    ledger = SqliteLedger(path)

    async def leave():
        await ledger.open(NOW)
        gate.is_armed = True
        call = asyncio.ensure_future(ledger.add_tracks([TRACK]))
        await asyncio.to_thread(gate.reached.wait, 60)
        call.cancel()

    def main():
        asyncio.run(leave())
        [thread] = [t for t in threading.enumerate() if t.name == "kie-wav-ledger"]
        gate.opened.set()
        thread.join(timeout=60)
        assert not thread.is_alive()
        gate.is_armed = False
        asyncio.run(main_again(ledger))

    await asyncio.to_thread(main)


# --- planning and reading --------------------------------------------------------------------


async def test_planning_counts_what_is_new(path):
    """Tracks that are there, or come twice, are taken in once."""
    async with SqliteLedger(path) as ledger:
        assert 3 == await ledger.add_tracks([*tracks(3), *tracks(2)])
        assert 2 == await ledger.add_tracks(iter(tracks(5)))
        assert 0 == await ledger.add_tracks([])
        assert [1, 2, 3, 4, 5] == [s.index for s in await ledger.list_entries([TrackState.PLANNED])]


async def test_a_title_is_learnt_late_and_kept(path):
    """A track that came without a title gets the first one it is named with."""
    async with SqliteLedger(path) as ledger:
        for title in (None, "First", "Second", None):
            await ledger.add_tracks([Track("5c79", "e231", title=title)])
        assert "First" == (await ledger.get(TRACK)).track.title
        await ledger.begin_attempt(Track("5c79", "e9"), "a1", NOW)
        await ledger.finish_attempt("a1", AttemptOutcome.NOT_CREATED, NOW)
        await ledger.begin_attempt(Track("5c79", "e9", title="Third"), "a2", NOW)
        assert "Third" == (await ledger.get(Track("5c79", "e9"))).track.title


async def test_planning_is_all_or_nothing(path):
    """A batch with something that is no track plans nothing."""
    async with SqliteLedger(path) as ledger:
        with pytest.raises(TypeError):
            await ledger.add_tracks([TRACK, "e231"])
        with pytest.raises(TypeError):
            await ledger.add_tracks([*tracks(2_500), "e231"])
        assert 0 == sum((await ledger.count_by_state()).values())


async def test_planning_a_catalog_lets_others_have_their_turn(path):
    """However many tracks are planned in one call, the loop turns while they are taken."""
    turns, seen = 0, set()

    async def count_turns():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def source():
        for track in tracks(100_000):
            seen.add(turns)
            yield track

    async with SqliteLedger(path) as ledger:
        counter = asyncio.ensure_future(count_turns())
        new = await ledger.add_tracks(source())
        counter.cancel()
        assert 100_000 == new == (await ledger.count_by_state())[TrackState.PLANNED]
    assert len(seen) > 50


@pytest.mark.parametrize("kind", [SqliteLedger, lambda _: MemoryLedger()], ids=["file", "memory"])
async def test_a_task_tells_its_track(path, kind):
    """Whose task an id is can be asked, of those too that a track has left behind."""
    one, two = tracks(2)
    async with contextlib.AsyncExitStack() as stack:
        ledger = kind(path)
        await ledger.open(NOW)
        stack.push_async_callback(ledger.aclose)
        assert None is await ledger.get_by_task("t1")
        for attempt, task in [("a1", "t1"), ("a2", "t2")]:
            await ledger.begin_attempt(one, attempt, NOW)
            await ledger.finish_attempt(attempt, AttemptOutcome.ACCEPTED, NOW, task_id=task)
            await ledger.finish_task(task, NOW)
        entry = await ledger.get(one)
        assert "t2" == entry.task_id
        assert entry == await ledger.get_by_task("t1") == await ledger.get_by_task("t2")
        assert None is await ledger.get_by_task("t3")
        # A task of two tracks tells the one that is followed under it, then the latest.
        await ledger.begin_attempt(two, "a3", NOW)
        await ledger.finish_attempt("a3", AttemptOutcome.ADOPTED, NOW, task_id="t2")
        await ledger.begin_attempt(two, "a4", NOW, again=True)
        await ledger.finish_attempt("a4", AttemptOutcome.ACCEPTED, NOW, task_id="t4")
        await ledger.finish_task("t2", NOW)
        assert "t4" == (await ledger.get(two)).task_id
        assert one == (await ledger.get_by_task("t2")).track
        await ledger.begin_attempt(one, "a5", NOW)
        assert two == (await ledger.get_by_task("t2")).track
        assert two == (await ledger.get_by_task("t4")).track


async def test_pages_tell_all_once(path):
    """Page by page every track in the states asked for is told once, in order."""
    async with SqliteLedger(path) as ledger:
        await ledger.add_tracks(tracks(25))
        for n in range(0, 25, 3):
            await ledger.begin_attempt(Track("5c79", f"e{n}"), f"a{n}", NOW)
        await ledger.finish_attempt("a0", AttemptOutcome.REJECTED, NOW)
        for states, expected in {
            ("planned",): [n + 1 for n in range(25) if n % 3],
            ("submitting",): [n + 1 for n in range(3, 25, 3)],
            ("submitting", "planned"): list(range(2, 26)),
            tuple(TrackState): list(range(1, 26)),
            ("expired",): [],
            (): [],
        }.items():
            found, after = [], 0
            while page := await ledger.list_entries(states, after=after, limit=4):
                assert len(page) <= 4
                found += [entry.index for entry in page]
                after = found[-1]
            assert expected == found


async def test_no_reading_sorts_the_catalog(path, monkeypatch):
    """Pages, counts and openings walk an index, so that a million tracks cost what a few do."""
    statements = []

    class Connection(sqlite3.Connection):
        def execute(self, sql, *values):
            if sql.lstrip().startswith("SELECT"):
                plan = super().execute(f"EXPLAIN QUERY PLAN {sql}", *values).fetchall()
                statements.append(" / ".join(row[3] for row in plan))
            return super().execute(sql, *values)

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **kw: connect(*args, factory=Connection, **kw)
    )
    async with SqliteLedger(path) as ledger:
        await ledger.list_entries(TrackState, after=5)
        await ledger.get(TRACK)
        await ledger.get_by_task("t1")
        await ledger.begin_attempt(TRACK, "a1", NOW)
        await ledger.finish_attempt("a1", AttemptOutcome.ACCEPTED, NOW, task_id="t1")
        await ledger.finish_task("t1", NOW)
        await ledger.reserve_path(TRACK, path="x", key="x")
        await ledger.mark_missing(TRACK)
        await ledger.count_by_state()
    # Those in doubt, and those of one task, are sorted: they are few.
    few = ("(outcome=?)", "(task_id=?)")
    assert ["SCAN track USING COVERING INDEX track_state"] == [
        plan
        for plan in statements
        # One row in the first, a hundred at most in the other.
        if ("SCAN" in plan and not plan.startswith(("SCAN ledger ", "SCAN host")))
        or ("B-TREE" in plan and not any(name in plan for name in few))
    ]
    assert len(statements) > 15


async def test_no_submit_looks_through_what_is_unknown(path, monkeypatch):
    """Where a track stands is worked out from its own submits, however many are in doubt."""
    plans = []

    class Connection(sqlite3.Connection):
        def execute(self, sql, *values):
            if "outcome = " in sql and "track = " in sql:
                plan = super().execute(f"EXPLAIN QUERY PLAN {sql}", *values).fetchall()
                plans.extend(row[3] for row in plan if "SEARCH attempt" in row[3])
            return super().execute(sql, *values)

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **kw: connect(*args, factory=Connection, **kw)
    )
    async with SqliteLedger(path) as ledger:
        await ledger.begin_attempt(TRACK, "a1", NOW)
        await ledger.finish_attempt("a1", AttemptOutcome.UNKNOWN, NOW)
        await ledger.begin_attempt(TRACK, "a2", NOW, again=True)
    kinds = {"(rowid=?)", "(track=? AND outcome=?)", "(track=? AND outcome=? AND rowid>?)"}
    assert kinds == {plan[plan.index("(") :] for plan in plans}


async def test_every_state_is_counted(path):
    """The counts have an entry for every state."""
    async with SqliteLedger(path) as ledger:
        await ledger.add_tracks(tracks(2))
        assert {
            **dict.fromkeys(TrackState, 0),
            TrackState.PLANNED: 2,
        } == await ledger.count_by_state()


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        ("open", (float("nan"),), {}),
        ("open", (-1,), {}),
        (
            "begin_attempt",
            (
                TRACK,
                "a1",
                1e15,
            ),
            {},
        ),
        (
            "begin_attempt",
            (
                TRACK,
                "",
                NOW,
            ),
            {},
        ),
        (
            "finish_attempt",
            (
                "a1",
                AttemptOutcome.ACCEPTED,
                NOW,
            ),
            {},
        ),
        (
            "finish_attempt",
            (
                "a1",
                AttemptOutcome.UNKNOWN,
                NOW,
            ),
            {"task_id": "t1"},
        ),
        (
            "finish_attempt",
            (
                "a1",
                "lost",
                NOW,
            ),
            {},
        ),
        (
            "record_callback",
            (
                "a 1",
                "t1",
            ),
            {},
        ),
        (
            "finish_task",
            (
                "",
                NOW,
            ),
            {},
        ),
        ("requeue", ([TrackState.FAILED, TrackState.UNKNOWN],), {}),
        ("list_entries", (["lost"],), {}),
        ("list_entries", ([],), {"limit": 0}),
        ("mark_saved", (TRACK,), {"path": "x", "size": -1, "sha256": "00"}),
        ("reserve_path", (TRACK,), {"path": "", "key": "x"}),
        ("reserve_path", (TRACK,), {"path": "x", "key": ""}),
    ],
)
async def test_nonsense_is_refused(path, name, args, options):
    """A value that cannot be meant is a `ValueError` at the call."""
    async with SqliteLedger(path) as ledger:
        with pytest.raises(ValueError, match=r"."):
            await getattr(ledger, name)(*args, **options)


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        ("open", ("now",), {}),
        ("get", ("e231",), {}),
        ("get_by_task", (7,), {}),
        (
            "begin_attempt",
            (
                "e231",
                "a1",
                NOW,
            ),
            {},
        ),
        (
            "finish_attempt",
            (
                7,
                AttemptOutcome.UNKNOWN,
                NOW,
            ),
            {},
        ),
        (
            "finish_attempt",
            (
                "a1",
                AttemptOutcome.REJECTED,
                NOW,
            ),
            {"error_code": "7"},
        ),
        (
            "finish_task",
            (
                "t1",
                NOW,
            ),
            {"error": 7},
        ),
        ("mark_saved", (TRACK,), {"path": "x", "size": 1.5, "sha256": "00"}),
        ("mark_saved", (TRACK,), {"path": None, "size": 1, "sha256": "00"}),
        ("reserve_path", ("e231",), {"path": "x", "key": "x"}),
        ("reserve_path", (TRACK,), {"path": Path("x"), "key": "x"}),
        ("reserve_path", (TRACK,), {"path": "x", "key": None}),
        ("mark_missing", ("e231",), {}),
        ("mark_expired", ("e231",), {}),
    ],
)
async def test_a_wrong_type_is_refused(path, name, args, options):
    """A value of another type is a `TypeError` at the call."""
    async with SqliteLedger(path) as ledger:
        with pytest.raises(TypeError):
            await getattr(ledger, name)(*args, **options)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ((7, "x" * 5_000), (7, "x" * 1_000)),
        ((2**63, "\ud800 '; DROP TABLE track; --"), (None, "? '; DROP TABLE track; --")),
        ((-(2**63), "a\0b"), (-(2**63), "a\0b")),
        ((None, None), (None, None)),
        ((0, ""), (0, "")),
    ],
)
async def test_the_services_words_are_only_words(path, said, kept):
    """Whatever the service says is kept, as far as a file can hold it, and does nothing."""
    async with SqliteLedger(path) as ledger:
        await ledger.begin_attempt(TRACK, "a1", NOW)
        await ledger.finish_attempt(
            "a1", AttemptOutcome.REJECTED, NOW, error_code=said[0], error=said[1]
        )
        entry = await ledger.get(TRACK)
    assert kept == (entry.error_code, entry.error)


async def test_a_ledger_that_was_tampered_with_is_an_error(path):
    """What no version of ours would write is a `LedgerError`, not a crash."""
    async with SqliteLedger(path) as ledger:
        await ledger.add_tracks([TRACK])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE track SET audio_id = 'a b', state = 'lost'")
    async with SqliteLedger(path) as ledger:
        for call in (
            ledger.list_entries(TrackState),
            ledger.count_by_state(),
            ledger.add_tracks(tracks(1)),
        ):
            result = await asyncio.gather(call, return_exceptions=True)
            assert result in ([()], [[]], [1]) or isinstance(result[0], LedgerError)


# --- submits by their ids -----------------------------------------------------------------------


async def test_submits_are_found_by_the_beginning_of_their_id(tmp_path):
    """All that begin so are found, in order; a whole id gives that one alone."""
    async with SqliteLedger(tmp_path / "l.sqlite3") as ledger:
        for number, name in enumerate(("abcdef1", "abcdef", "abcdeg", "\u20acx")):
            await ledger.begin_attempt(Track("m", f"a{number}", title="T"), name, 1.0)
        await ledger.record_callback("abcdeg", "named")
        await ledger.finish_attempt("abcdeg", AttemptOutcome.UNKNOWN, 2.0)
        assert await ledger.resolve("abcdeg", 3.0, task_id="task")

        found = await ledger.find_attempts("abcde")
        assert ["abcdef1", "abcdef", "abcdeg"] == [one.attempt_id for one in found]
        assert ["abcdef1"] == [one.attempt_id for one in await ledger.find_attempts("abc", limit=1)]
        assert ["abcdef"] == [one.attempt_id for one in await ledger.find_attempts("abcdef")]
        assert 1 == len(await ledger.find_attempts("\u20ac"))
        assert [] == list(await ledger.find_attempts("b"))
        assert (
            AttemptEntry(
                attempt_id="abcdeg",
                track=Track("m", "a2"),
                outcome=AttemptOutcome.ACCEPTED,
                task_id="task",
                resolved_from=AttemptOutcome.UNKNOWN,
                callback_task_id="named",
            )
            == found[-1]
        )
        assert (None, "") == (found[0].outcome, found[0].task_id)


@pytest.mark.parametrize("bad", ["", "a b", "x" * 257, 7])
async def test_a_word_is_checked_before_it_is_written(tmp_path, bad):
    """Ids that cannot be are refused."""
    async with SqliteLedger(tmp_path / "l.sqlite3") as ledger:
        with pytest.raises((TypeError, ValueError)):
            await ledger.resolve(bad, 1.0)
        if bad:
            with pytest.raises((TypeError, ValueError)):
                await ledger.resolve("a", 1.0, task_id=bad)
        with pytest.raises((TypeError, ValueError)):
            await ledger.find_attempts(bad)
