"""
The tables of a ledger's file.

A file of another version is refused by name, to be read as well as to be written:
nothing is released yet, so there is nothing to migrate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import sqlite3

__all__ = ["APPLICATION_ID", "EARLIER_APPLICATION_ID", "SCHEMA_VERSION", "create_tables"]

#: Marks a file as ours: "kwl1".
APPLICATION_ID: Final = 0x6B776C31
#: Marked the files of versions that were never released: "kwav".
EARLIER_APPLICATION_ID: Final = 0x6B776176
SCHEMA_VERSION: Final = 1

_SCHEMA: Final = f"""
    CREATE TABLE ledger (id TEXT NOT NULL); -- one row, which tells this ledger from others
    CREATE TABLE track (
        idx INTEGER PRIMARY KEY,
        music_task_id TEXT NOT NULL,
        audio_id TEXT NOT NULL,
        title TEXT,
        state TEXT NOT NULL DEFAULT 'planned',
        base_state TEXT NOT NULL DEFAULT 'planned', -- its state once nothing of it is under way
        latest INTEGER REFERENCES attempt (n),
        current_attempt INTEGER REFERENCES attempt (n), -- whose task it is followed under, or was
        superseded_through INTEGER NOT NULL DEFAULT 0, -- its latest attempt when it last got a WAV
        settled REAL,
        wav_url TEXT,
        settled_by TEXT, -- what named wav_url: 'callback' or 'poll'
        error_code INTEGER,
        error TEXT,
        path TEXT, -- where its file is, or is to be
        bytes INTEGER, -- NULL unless it rests 'saved', and so is sha256
        sha256 TEXT,
        path_key TEXT, -- the path as file systems compare it
        UNIQUE (music_task_id, audio_id)
    );
    CREATE INDEX track_state ON track (state);
    CREATE UNIQUE INDEX track_path_key ON track (path_key) WHERE path_key IS NOT NULL;
    CREATE TABLE attempt (
        n INTEGER PRIMARY KEY, -- in the order in which they began
        id TEXT NOT NULL UNIQUE,
        track INTEGER NOT NULL REFERENCES track (idx),
        began REAL NOT NULL,
        ended REAL,
        outcome TEXT NOT NULL DEFAULT 'open',
        task_id TEXT,
        accepted REAL, -- when the service made the task, by the service's clock
        task_end TEXT, -- 'succeeded' or 'failed'
        callback_task TEXT, -- by a callback
        error_code INTEGER,
        error TEXT,
        resolved_from TEXT -- what it was before the user's word, if its outcome is that
    );
    CREATE INDEX attempt_track ON attempt (track, outcome);
    CREATE INDEX attempt_task ON attempt (task_id) WHERE task_id IS NOT NULL;
    CREATE INDEX attempt_outcome ON attempt (outcome);
    CREATE INDEX attempt_ended ON attempt (ended);
    CREATE TABLE host (
        n INTEGER PRIMARY KEY, -- in the order in which they were last named
        name TEXT NOT NULL UNIQUE -- 'name:port'
    );
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = {SCHEMA_VERSION};
"""


def create_tables(connection: sqlite3.Connection) -> None:
    """Make the tables, inside the transaction that is open."""
    for statement in _SCHEMA.split(";"):
        connection.execute(statement)
    connection.execute("INSERT INTO ledger VALUES (lower(hex(randomblob(16))))")
