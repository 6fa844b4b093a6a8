from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import ledger_worlds
from kie_wav_async import Track
from kie_wav_async.errors import LedgerError
from kie_wav_async.ledger import AttemptOutcome, SqliteLedger, TrackState
from kie_wav_async.ledger.sqlite import worker
from ledger_worlds import NOW, TRACKS, WAV, Told, complaints, live

SHIM = Path(__file__).with_name("failing_disk.c")
COMPILER = shutil.which("cc")
SHORT = "EIO*1,ENOSPC*10000"
LONG = "EIO*1,EIO*3,EIO*10000,ENOSPC*1,ENOSPC*3,ENOSPC*10000,EDQUOT*5,EROFS*2"

FULL = ("database or disk is full", sqlite3.SQLITE_FULL)
IOERR = ("disk I/O error", sqlite3.SQLITE_IOERR | (4 << 8))  # SQLITE_IOERR_FSYNC
BUSY = ("database is locked", sqlite3.SQLITE_BUSY)


class Disk:
    """Fails statements of every connection opened while it is installed."""

    def __init__(self):
        self.statements = []
        self.failed = 0
        self.fail_from(0, 0, FULL)

    def fail_from(self, first, length, how, *, late=False):
        """Fail *length* statements from *first* on, before or after they took effect."""
        self.statements.clear()
        self.failed = 0
        self.first, self.length, self.how, self.late = first, length, how, late

    def mend(self):
        self.length = 0

    def run(self, sql, call):
        self.statements.append(sql)
        if not self.first <= len(self.statements) < self.first + self.length:
            return call()
        self.failed += 1
        if self.late:
            call()
        text, code = self.how
        error = sqlite3.OperationalError(text)
        error.sqlite_errorcode = code
        raise error

    def count(self, beginning):
        """Count the statements that begin so."""
        return sum(sql.startswith(beginning) for sql in self.statements)


@pytest.fixture
def disk(monkeypatch):
    """Return a disk that the ledgers of this test are on, with no pauses between tries."""
    disk = Disk()

    class Connection(sqlite3.Connection):
        def execute(self, sql, *values):
            # Nobody dies here, so nobody has to wait for a real disk.
            sql = sql.replace("synchronous = FULL", "synchronous = OFF")
            return disk.run(sql, lambda: super(Connection, self).execute(sql, *values))

        def executemany(self, sql, *values):
            return disk.run(sql, lambda: super(Connection, self).executemany(sql, *values))

    connect = sqlite3.connect

    def connect_here(*args, **kw):
        connection = connect(*args, factory=Connection, **kw)
        sqlite3.Connection.execute(connection, "PRAGMA synchronous = OFF")
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_here)
    monkeypatch.setattr(worker, "_PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return disk


async def begun(ledger):
    """Return after a submit of the first track has begun."""
    assert await ledger.begin_attempt(TRACKS[0], "a0", NOW) is None


DISKS = list(itertools.product((FULL, IOERR, BUSY), (1, 3, 10_000), (False, True)))
SOON = [(FULL, 3, False), (IOERR, 1, True), (IOERR, 10_000, False), (BUSY, 1, False)]


@pytest.mark.parametrize(
    ("how", "length", "late"),
    [
        pytest.param(*failure, marks=[] if failure in SOON else pytest.mark.campaign)
        for failure in DISKS
    ],
)
async def test_no_failing_statement_loses_a_task(tmp_path, disk, how, length, late):
    """Whichever statement fails, and however often, every accepted task is in the ledger."""
    for n in itertools.count(1):
        path = tmp_path / f"{n}.sqlite3"
        disk.fail_from(n, length, how, late=late)
        told = await live(path, heal=disk.mend)
        failed = disk.failed
        disk.mend()
        assert [] == await complaints(path, told), n
        if not failed:
            assert told == Told(planned=True, sent={0, 1, 2}, settled={0, 1, 2})
            break
    assert n > 40


async def test_a_single_failure_is_not_heard_of(tmp_path, disk):
    """One failing statement is made good by the next try, so no caller gets an error."""
    path = tmp_path / "x.sqlite3"
    async with SqliteLedger(path) as ledger:
        for n in itertools.count(1):
            disk.fail_from(n, 1, IOERR)
            assert await ledger.begin_attempt(Track("5c79", f"e{n}"), f"a{n}", NOW) is None
            if not disk.failed:
                break
    assert n > 5


async def test_a_failed_sync_is_followed_by_a_new_connection(tmp_path, disk, monkeypatch):
    """After an I/O error the file is opened anew; after a full disk or a lock it is not."""
    opened = []
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **kw: opened.append(1) or connect(*args, **kw)
    )
    async with SqliteLedger(tmp_path / "x.sqlite3") as ledger:
        fresh = {}
        for name, how in {"full": FULL, "busy": BUSY, "ioerr": IOERR}.items():
            opened.clear()
            disk.fail_from(1, 1, how)
            await ledger.record_callback("a0", "t0")
            fresh[name] = bool(opened)
    assert fresh == {"full": False, "busy": False, "ioerr": True}


@pytest.mark.parametrize(
    ("how", "advice"),
    [(FULL, "free some space"), (IOERR, "check the disk"), (BUSY, "let that finish")],
    ids=["full", "ioerr", "busy"],
)
async def test_an_error_says_what_the_disk_said_and_what_to_do(tmp_path, disk, how, advice):
    """A lasting failure names the file, gives the system's words and a way on."""
    path = tmp_path / "x.sqlite3"
    async with SqliteLedger(path) as ledger:
        disk.fail_from(1, 10_000, how)
        with pytest.raises(LedgerError) as caught:
            await ledger.add_tracks(TRACKS)
        disk.mend()
    assert str(path) in str(caught.value)
    assert how[0] in str(caught.value)
    assert advice in caught.value.advice
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)


async def test_nothing_is_sent_while_nothing_can_be_written(tmp_path, disk):
    """A submit whose intent cannot be written raises, and is written by nothing later."""
    async with SqliteLedger(tmp_path / "x.sqlite3") as ledger:
        disk.fail_from(1, 10_000, FULL)
        with pytest.raises(LedgerError):
            await ledger.begin_attempt(TRACKS[0], "a0", NOW)
        disk.mend()
        assert await ledger.get(TRACKS[0]) is None


async def test_an_end_that_failed_is_written_before_all_else(tmp_path, disk):
    """The end of a submit that could not be written is there before the next call."""
    async with SqliteLedger(tmp_path / "x.sqlite3") as ledger:
        await begun(ledger)
        disk.fail_from(1, 10_000, FULL)
        with pytest.raises(LedgerError):
            await ledger.finish_attempt("a0", AttemptOutcome.ACCEPTED, NOW, task_id="t0")
        disk.mend()
        await ledger.finish_task("t0", NOW, wav_url=WAV)
        entry = await ledger.get(TRACKS[0])
    assert (TrackState.SUCCEEDED, "t0") == (entry.state, entry.task_id)


async def test_an_end_that_failed_is_written_at_the_latest_at_the_end(tmp_path, disk, caplog):
    """Closing writes what is owed, if the disk works by then, and complains of nothing."""
    path = tmp_path / "x.sqlite3"
    ledger = SqliteLedger(path)
    await ledger.open(NOW)
    await begun(ledger)
    disk.fail_from(1, 10_000, IOERR)
    with pytest.raises(LedgerError):
        await ledger.finish_attempt("a0", AttemptOutcome.NOT_CREATED, NOW)
    disk.mend()
    await ledger.aclose()
    assert [] == caplog.records
    async with SqliteLedger(path) as ledger:
        assert TrackState.PLANNED is (await ledger.get(TRACKS[0])).state


async def test_what_stays_owed_is_named_once(tmp_path, disk, caplog):
    """A task that cannot be written to the end stands in one line of the log with its attempt."""
    path = tmp_path / "x.sqlite3"
    ledger = SqliteLedger(path)
    await ledger.open(NOW)
    for n, track in enumerate(TRACKS):
        await ledger.begin_attempt(track, f"a{n}", NOW)
    disk.fail_from(1, 10_000, IOERR)
    for n in range(2):
        with pytest.raises(LedgerError):
            await ledger.finish_attempt(f"a{n}", AttemptOutcome.ACCEPTED, NOW, task_id=f"t{n}")
    with pytest.raises(LedgerError):
        await ledger.finish_attempt("a2", AttemptOutcome.REJECTED, NOW)
    await ledger.aclose()
    disk.mend()
    [record] = caplog.records
    assert ("kie_wav_async", logging.ERROR) == (record.name, record.levelno)
    assert "a0 (task t0), a1 (task t1), a2" in record.getMessage()
    async with SqliteLedger(path) as ledger:
        assert 3 == len((await ledger.open(NOW)).unknown)
        await ledger.aclose()


async def test_closing_does_not_wait_for_the_next_try(tmp_path, disk, monkeypatch):
    """The pauses between the tries end when the ledger is closed."""
    monkeypatch.setattr(worker, "_PAUSES_S", (3_600.0, 3_600.0, 3_600.0))
    ledger = SqliteLedger(tmp_path / "x.sqlite3")
    await ledger.open(NOW)
    disk.fail_from(1, 10_000, FULL)
    call = ledger.add_tracks(TRACKS)
    waiting = asyncio.ensure_future(call)
    await asyncio.sleep(0)
    await ledger.aclose()
    with pytest.raises(LedgerError, match="full"):
        await waiting


async def test_one_bad_call_does_not_undo_its_neighbours(tmp_path):
    """A call that is refused, or that SQLite cannot take, fails alone in its transaction."""
    async with SqliteLedger(tmp_path / "x.sqlite3") as ledger:
        await begun(ledger)
        await ledger.finish_attempt("a0", AttemptOutcome.ACCEPTED, NOW, task_id="t0")
        await ledger.finish_task("t0", NOW, wav_url=WAV)
        told = await asyncio.gather(
            ledger.begin_attempt(TRACKS[1], "a1", NOW),
            ledger.begin_attempt(TRACKS[2], "a0", NOW),
            ledger.mark_saved(TRACKS[0], path="\udcff", size=1, sha256="00"),
            ledger.reserve_path(TRACKS[0], path="x", key="\udcff"),
            ledger.begin_attempt(TRACKS[2], "a2", NOW),
            return_exceptions=True,
        )
        counts = await ledger.count_by_state()
    assert [None, *[LedgerError] * 3, None] == [t and type(t) for t in told]
    assert (2, 1) == (counts[TrackState.SUBMITTING], counts[TrackState.SUCCEEDED])


async def test_a_call_that_fails_half_way_writes_nothing(tmp_path, disk, monkeypatch):
    """What a call wrote before SQLite refused the rest of it is taken back, and it alone."""
    run = disk.run
    refusals = [sqlite3.IntegrityError("refused")]

    def run_or_refuse(sql, call):
        if sql.startswith("UPDATE track SET latest") and refusals:
            raise refusals.pop()
        return run(sql, call)

    monkeypatch.setattr(disk, "run", run_or_refuse)
    async with SqliteLedger(tmp_path / "x.sqlite3") as ledger:
        told = await asyncio.gather(
            ledger.begin_attempt(TRACKS[0], "a0", NOW),
            ledger.begin_attempt(TRACKS[1], "a1", NOW),
            return_exceptions=True,
        )
        assert [LedgerError, type(None)] == [type(one) for one in told]
        assert None is await ledger.get(TRACKS[0])
        # Refused in a try that failed as a whole, it is refused no more if the next one is not.
        refusals.append(sqlite3.IntegrityError("refused"))
        commits = ["COMMIT"]

        def run_or_fail(sql, call):
            if sql in commits:
                commits.clear()
                raise sqlite3.OperationalError(IOERR[0])
            return run_or_refuse(sql, call)

        monkeypatch.setattr(disk, "run", run_or_fail)
        assert None is await ledger.begin_attempt(TRACKS[0], "a0", NOW)


async def test_a_ledger_moved_away_is_not_written_on(tmp_path, monkeypatch):
    """While the file is not where it was, nothing may be sent; put back, it goes on."""
    monkeypatch.setattr(worker, "_PAUSES_S", ())
    path = tmp_path / "x.sqlite3"
    async with SqliteLedger(path) as ledger:
        await begun(ledger)
        path.rename(tmp_path / "y")
        with pytest.raises(LedgerError, match="was moved"):
            await ledger.begin_attempt(TRACKS[1], "a1", NOW)
        path.touch()
        with pytest.raises(LedgerError, match="was moved"):
            await ledger.begin_attempt(TRACKS[1], "a1", NOW)
        (tmp_path / "y").replace(path)
        assert await ledger.begin_attempt(TRACKS[1], "a1", NOW) is None


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be moved")
@pytest.mark.parametrize("instead", [None, "file"])
async def test_a_folder_that_went_away_is_to_be_put_back(tmp_path, monkeypatch, instead):
    """With its folder gone, a ledger says what a new one would cost; put back, it goes on."""
    monkeypatch.setattr(worker, "_PAUSES_S", ())
    folder, away = tmp_path / "disk", tmp_path / "away"
    folder.mkdir()
    async with SqliteLedger(folder / "x.sqlite3") as ledger:
        await begun(ledger)
        folder.rename(away)
        if instead is not None:
            folder.touch()
        with pytest.raises(LedgerError, match=r"(?s)was moved.*put it back.*pay for it again"):
            await ledger.finish_attempt("a0", AttemptOutcome.ACCEPTED, NOW, task_id="t0")
        folder.unlink(missing_ok=True)
        away.rename(folder)
        assert "t0" == (await ledger.get(TRACKS[0])).task_id


@pytest.mark.parametrize(
    "kinds", [SHORT, pytest.param(LONG, marks=pytest.mark.campaign)], ids=["short", "long"]
)
@pytest.mark.skipif(sys.platform != "linux" or COMPILER is None, reason="needs Linux and cc")
def test_no_failing_system_call_loses_a_task(tmp_path, kinds):
    """Whichever write or sync of the files fails, every accepted task is in the ledger."""
    library = tmp_path / "failing_disk.so"
    build = [COMPILER, "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"]
    subprocess.run(build, check=True, timeout=60)  # noqa: S603 - the system's compiler and our file
    done = subprocess.run(  # noqa: S603 - our own interpreter and our own program
        [sys.executable, ledger_worlds.__file__, str(tmp_path), kinds],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "LD_PRELOAD": str(library)},
    )
    answer = json.loads(done.stdout)
    assert {} == answer["wrong"]
    assert answer["failed"] > 50 * (kinds.count(",") + 1)


async def written_history(folder):
    """Write a history; return the file, its log, and what there was to see after each commit."""
    path = folder / "history.sqlite3"
    wal = path.with_name(f"{path.name}-wal")
    history = []
    async with SqliteLedger(path) as ledger:

        async def note():
            history.append((wal.stat().st_size, await ledger.list_entries(TrackState)))

        await note()
        for n in range(20):
            track = Track("5c79", f"e{n}")
            for call in (
                ledger.add_tracks([track]),
                ledger.begin_attempt(track, f"a{n}", NOW),
                ledger.finish_attempt(f"a{n}", AttemptOutcome.ACCEPTED, NOW, task_id=f"t{n}"),
                ledger.finish_task(f"t{n}", NOW, wav_url=WAV),
            ):
                await call
                await note()
        return path.read_bytes(), wal.read_bytes(), history


@pytest.mark.parametrize("images", [200, pytest.param(2_000, marks=pytest.mark.campaign)])
async def test_a_damaged_log_gives_a_prefix_of_history(tmp_path, images):
    """Cut anywhere, garbage behind the cut or not, every commit before the cut is there."""
    chance = random.Random(4)  # noqa: S311 - repeatable, not secret
    data, wal, history = await written_history(tmp_path)
    assert 81 == len(history)
    for image in range(images):
        cut = chance.randrange(len(wal) + 1)
        tail = chance.randbytes(chance.randrange(1, 9_000)) if image % 2 else b""
        path = tmp_path / "image.sqlite3"
        for suffix, content in {"": data, "-wal": wal[:cut] + tail}.items():
            path.with_name(path.name + suffix).write_bytes(content)
        for suffix in ("-shm", ".lock"):  # The lock knows how much there was.
            path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
        expected = [seen for size, seen in history if size <= cut][-1:] or [history[0][1]]
        async with SqliteLedger(path, read_only=True) as ledger:
            assert expected[0] == await ledger.list_entries(TrackState), (image, cut)
        if image % 10 < 2:  # One of each kind; it waits for the disk.
            async with SqliteLedger(path) as ledger:
                assert len(expected[0]) == sum((await ledger.count_by_state()).values())
