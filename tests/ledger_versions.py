"""Ledgers' files as earlier versions made them."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

from kie_wav_async import Track

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_700_000_000.0
STORED, SUCCEEDED, PLANNED = TRACKS = [Track("5c79", f"e{n}") for n in range(3)]

#: Version 1, in its own words.
FIRST = """
    CREATE TABLE track (
        idx INTEGER PRIMARY KEY,
        music_task_id TEXT NOT NULL,
        audio_id TEXT NOT NULL,
        title TEXT,
        state TEXT NOT NULL DEFAULT 'planned',
        rest TEXT NOT NULL DEFAULT 'planned', -- its state once nothing of it is under way
        latest INTEGER REFERENCES attempt (n),
        followed INTEGER REFERENCES attempt (n), -- whose task it is followed under, or was
        answered INTEGER NOT NULL DEFAULT 0, -- its latest attempt when it last got a WAV
        settled REAL,
        wav_url TEXT,
        error_code INTEGER,
        error TEXT,
        path TEXT,
        bytes INTEGER,
        sha256 TEXT,
        UNIQUE (music_task_id, audio_id)
    );
    CREATE INDEX track_state ON track (state);
    CREATE TABLE attempt (
        n INTEGER PRIMARY KEY, -- in the order in which they began
        id TEXT NOT NULL UNIQUE,
        track INTEGER NOT NULL REFERENCES track (idx),
        began REAL NOT NULL,
        ended REAL,
        outcome TEXT NOT NULL DEFAULT 'open',
        task_id TEXT,
        task_end TEXT, -- 'succeeded' or 'failed'
        named_task TEXT, -- by a callback
        error_code INTEGER,
        error TEXT
    );
    CREATE INDEX attempt_track ON attempt (track, outcome);
    CREATE INDEX attempt_task ON attempt (task_id) WHERE task_id IS NOT NULL;
    CREATE INDEX attempt_outcome ON attempt (outcome);
    CREATE INDEX attempt_ended ON attempt (ended);
    PRAGMA application_id = 0x6B776176;
    PRAGMA user_version = 1;
"""


def write_first(path: Path) -> None:
    """Make a ledger of version 1: a track stored as ``x.wav``, one succeeded, one planned."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(FIRST)
        url = "https://files.example/x.wav"
        for n, (track, state) in enumerate(
            zip(TRACKS, ("stored", "succeeded", "planned"), strict=True)
        ):
            file = ("x.wav", 4, "00") if state == "stored" else (None, None, None)
            connection.execute(
                "INSERT INTO track (music_task_id, audio_id, state, rest, path, bytes, sha256)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (track.music_task_id, track.audio_id, state, state, *file),
            )
            if state != "planned":
                connection.execute(
                    "INSERT INTO attempt (id, track, began, ended, outcome, task_id, task_end)"
                    " VALUES (?, ?, ?, ?, 'accepted', ?, 'succeeded')",
                    (f"a{n}", n + 1, NOW + n, NOW + n, f"t{n}"),
                )
                connection.execute(
                    "UPDATE track SET latest = ?, followed = ?, answered = ?, settled = ?,"
                    " wav_url = ? WHERE idx = ?",
                    (n + 1, n + 1, n + 1, NOW + 9, url, n + 1),
                )


def version_of(path: Path) -> int:
    """Return the version of the schema in the file at *path*."""
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        return version
