"""Services that a catalog can meet, with what befalls its submits, and what a ledger says of it."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import attrs

from crash_files import WAV_S, Place, read_places
from kie_wav_async.simulator import Fault


@attrs.frozen(kw_only=True)
class World:
    """
    A service, and what the command is told to do with submits of unknown fate.

    Attributes:
        name: In the table.

        ends: Where a track may stand in the end.

        on_unknown: The command's option.

        service: Settings of the simulator.

        faults: Its script.

        is_charged_once: Whether no track may be charged twice here.

        is_retrying: Whether what failed is tried again by the next life.

        is_listening: Whether the command is called back.

        is_saving: Whether files are saved, of tracks that have all the same title.
    """

    name: str
    ends: frozenset[str]
    on_unknown: str = "raise"
    service: dict[str, Any] = attrs.field(factory=dict)
    faults: tuple[Fault, ...] = ()
    is_charged_once: bool = True
    is_retrying: bool = False
    is_listening: bool = False
    is_saving: bool = False


# What befalls submits in all worlds: one was charged and its answer is lost, one was not and
# is, one meets the limit.
LOST = (
    Fault(kind="hangup", when="after", every=7),
    Fault(kind="hangup", when="before", every=11),
    Fault(kind="code", code=429, http_status=429, every=13),
)
BAD = "refused"  # An audio id that the service does not know.
FAILING = Fault(kind="fail", on="conversion", every=9)
# And files: some hosts let go half way, or refuse a link that is fresh, or take their time.
LOOSE = (
    Fault(kind="cut", on="media", every=5, size=5_000),
    Fault(kind="expired", on="media", at=1, per_task=True, chance=0.2),
    Fault(kind="slow", on="media", every=3, delay_s=(0.0, 20.0)),
)

KNOWS = World(
    name="409 with id, resubmit",
    on_unknown="resubmit",
    ends=frozenset({"succeeded"}),
    faults=LOST,
)
CHARGES = World(
    name="charges again, raise",
    ends=frozenset({"succeeded", "failed", "rejected", "unknown"}),
    service={"dedupe": False, "unknown_audio_ids": [BAD]},
    faults=(*LOST, FAILING),
)
HIDES = World(
    name="409 without id, resubmit",
    on_unknown="resubmit",
    ends=frozenset({"succeeded", "failed", "rejected", "unknown", "exists_without_id"}),
    # Nor of a track that failed: the lost submit of one may be repeated.
    service={"conflict_id": False, "retry_failed": False, "unknown_audio_ids": [BAD]},
    faults=(*LOST, FAILING),
)
RISKS = World(
    name="charges again, resubmit",
    on_unknown="resubmit",
    ends=frozenset({"succeeded", "failed"}),
    service={"dedupe": False},
    faults=(*LOST, FAILING),
    is_charged_once=False,
    is_retrying=True,
)
CALLS = World(
    name="charges again, called back",
    ends=CHARGES.ends,
    service=CHARGES.service,
    faults=(*CHARGES.faults, Fault(kind="lost", on="callback", every=3)),
    is_listening=True,
)
SAVES = World(
    name="409 with id, saves",
    on_unknown="resubmit",
    ends=frozenset({"saved"}),
    service={"wav_s": WAV_S},
    faults=(*LOST, *LOOSE),
    is_saving=True,
)
# One world that comes to every moment.
MIXED = World(
    name="409, at times without id",
    on_unknown="resubmit",
    ends=frozenset({"saved", "rejected", "unknown", "exists_without_id"}),
    service={"unknown_audio_ids": [BAD], "wav_s": WAV_S},
    faults=(
        *LOST,
        *LOOSE,
        Fault(kind="no-data", verdict="repeated", every=2),
        Fault(kind="lost", on="callback", every=2),
    ),
    is_retrying=True,
    is_listening=True,
    is_saving=True,
)
WORLDS = (KNOWS, CHARGES, HIDES, CALLS, RISKS, SAVES)


@attrs.frozen
class Books:
    """What a ledger's file says, by track."""

    states: dict[tuple[str, str], str]
    urls: dict[str, str]
    accepted: Counter[tuple[str, str]]
    adopted: Counter[tuple[str, str]]
    unknown: Counter[tuple[str, str]]
    open: int
    tasks: dict[str, tuple[tuple[str, str], str]]
    places: dict[tuple[str, str], Place]

    @classmethod
    def read(cls, path: Path) -> Books:
        """Read a copy of a ledger that nobody has open, which leaves the ledger as it is."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy.sqlite3"
            for suffix in ("", "-wal"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
            with contextlib.closing(sqlite3.connect(copy)) as db:
                assert [("ok",)] == db.execute("PRAGMA quick_check").fetchall()
                if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                    return cls({}, {}, Counter(), Counter(), Counter(), 0, {}, {})
                return cls._of(db)

    @classmethod
    def _of(cls, db: sqlite3.Connection) -> Books:
        states, urls = {}, {}
        for music, audio, state, task_id, url in db.execute(
            "SELECT music_task_id, audio_id, state, task_id, wav_url FROM track"
            " LEFT JOIN attempt ON attempt.n = current_attempt"
        ):
            states[music, audio] = state
            if url is not None:
                urls[task_id] = url
        counted = {name: Counter() for name in ("accepted", "adopted", "unknown", "open")}
        tasks = {}
        for music, audio, outcome, task_id in db.execute(
            "SELECT music_task_id, audio_id, outcome, attempt.task_id FROM attempt"
            " JOIN track ON idx = attempt.track"
        ):
            counted.get(outcome, Counter())[music, audio] += 1
            if task_id is not None:
                tasks[task_id] = ((music, audio), outcome)
        # A submit under way is as good as unknown.
        unknown = counted["unknown"] + counted["open"]
        return cls(
            states=states,
            urls=urls,
            accepted=counted["accepted"],
            adopted=counted["adopted"],
            unknown=unknown,
            open=counted["open"].total(),
            tasks=tasks,
            places=read_places(db),
        )
