"""Ledgers that an earlier version wrote: read as they are, and upgraded to be written."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sqlite3

import pytest

from kie_wav_async._ledger_schema import SCHEMA_VERSION
from kie_wav_async.errors import LedgerError
from kie_wav_async.ledger import SqliteLedger, TrackState
from ledger_versions import NOW, PLANNED, STORED, SUCCEEDED, version_of, write_first


@pytest.fixture
def old(tmp_path):
    """Return the path of a ledger of version 1."""
    path = tmp_path / "old.sqlite3"
    write_first(path)
    return path


@pytest.fixture
def watched(monkeypatch):
    """Return a list of functions that get each statement before and after it is run."""
    watchers = []

    class Connection(sqlite3.Connection):
        def execute(self, sql, *values):
            for watcher in watchers:
                watcher(sql)
            try:
                return super().execute(sql, *values)
            finally:
                for watcher in watchers:
                    watcher(f"after {sql}")

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **kw: connect(*args, factory=Connection, **kw)
    )
    return watchers


def shape_of(path):
    """Return the columns and the indices of the file at *path*."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = ("track", "attempt")
        columns = [connection.execute(f"PRAGMA table_info({t})").fetchall() for t in tables]
        indices = "SELECT name, sql FROM sqlite_master WHERE type = 'index' ORDER BY name"
        return columns, connection.execute(indices).fetchall()


async def look(path):
    """Return all that a reader is told of the ledger at *path*."""
    async with SqliteLedger(path, read_only=True) as ledger:
        opening = await ledger.open(NOW)
        await ledger.aclose()
        found = [await ledger.find_task("t1"), await ledger.find(STORED)]
        return opening, await ledger.page(TrackState), await ledger.count(), found


async def test_an_old_ledger_is_read_as_it_is(old):
    """A reader is told all there is in an old ledger, and not a byte of it changes."""
    content = old.read_bytes()
    opening, page, counts, _ = await look(old)
    assert content == old.read_bytes()
    assert 1 == version_of(old)
    assert 2 == opening.accepted
    assert [STORED, SUCCEEDED, PLANNED] == [standing.track for standing in page]
    assert {1} == {counts[standing.state] for standing in page}
    assert ("x.wav", 4, "00") == (page[0].path, page[0].bytes, page[0].sha256)


async def test_an_old_ledger_is_upgraded_with_all_it_holds(old, tmp_path):
    """Opened to be written, an old ledger tells what it told, and is as a new one is."""
    before = await look(old)
    async with SqliteLedger(old) as ledger:
        assert before[1] == await ledger.page(TrackState)
    assert before == await look(old)
    async with SqliteLedger(tmp_path / "new.sqlite3"):
        pass
    assert shape_of(tmp_path / "new.sqlite3") == shape_of(old)
    assert SCHEMA_VERSION == version_of(old)


async def test_an_upgraded_ledger_gives_places(old):
    """What was stored before there were keys gets one when it is asked for, and keeps it."""
    async with SqliteLedger(old) as ledger:
        assert await ledger.reserve(SUCCEEDED, path="X.wav", key="x.wav")
        assert not await ledger.reserve(STORED, path="x.wav", key="x.wav")
        assert await ledger.reserve(SUCCEEDED, path="y.wav", key="y.wav")
        assert await ledger.reserve(STORED, path="x.wav", key="x.wav")
        assert not await ledger.reserve(PLANNED, path="X.wav", key="x.wav")
        assert not await ledger.reserve(STORED, path="z.wav", key="z.wav")


async def test_a_ledger_is_upgraded_once(old, watched):
    """The tables are changed by the first opening to write, and by no later one."""
    statements = []
    watched.append(statements.append)
    for expected in (1, 0):
        statements.clear()
        async with SqliteLedger(old) as ledger:
            await ledger.count()
        for beginning in ("ALTER TABLE track", "PRAGMA user_version ="):
            assert expected == sum(sql.startswith(beginning) for sql in statements)


async def test_a_reader_goes_on_through_an_upgrade(old):
    """Who reads an old ledger while it is upgraded reads on."""
    async with SqliteLedger(old, read_only=True) as reader:
        before = await reader.page(TrackState)
        async with SqliteLedger(old) as writer:
            assert before == await reader.page(TrackState)
            await writer.reserve(PLANNED, path="y.wav", key="y.wav")
            assert "y.wav" == (await reader.find(PLANNED)).path


async def test_a_death_in_an_upgrade_loses_nothing(old, watched, tmp_path):
    """Killed before or after any statement of an upgrade, a ledger is the old one or the new."""
    before = await look(old)
    numbers, versions = itertools.count(1), []

    def kill(_):
        # What SIGKILL would leave.
        image = tmp_path / f"image-{next(numbers)}.sqlite3"
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(f"{old}{suffix}", f"{image}{suffix}")

    watched.append(kill)
    async with SqliteLedger(old):
        watched.clear()
    for n in range(1, next(numbers)):
        image = tmp_path / f"image-{n}.sqlite3"
        versions.append(version_of(image))
        async with SqliteLedger(image) as ledger:
            assert before[1] == await ledger.page(TrackState)
            assert await ledger.reserve(PLANNED, path="y.wav", key="y.wav")
            assert not await ledger.reserve(SUCCEEDED, path="Y.wav", key="y.wav")
    assert versions == sorted(versions)
    assert {1, SCHEMA_VERSION} == set(versions)
    assert versions.count(1) > 10


async def test_a_ledger_without_a_version_is_none_of_ours(old):
    """No version of ours left out its number: a file without one stays as it is."""
    with contextlib.closing(sqlite3.connect(old)) as connection:
        connection.execute("PRAGMA user_version = 0")
    content = old.read_bytes()
    for read_only in (False, True):
        with pytest.raises(LedgerError, match="another program's database"):
            await SqliteLedger(old, read_only=read_only).open(NOW)
    assert content == old.read_bytes()
