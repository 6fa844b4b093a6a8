"""What a ledger has to tell: read page by page, also while a run is under way."""

from __future__ import annotations

import contextlib
import datetime as dt
import heapq
import logging
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from kie_wav_async.cli.common.ledger_pages import pages
from kie_wav_async.cli.common.output import USAGE, CliError, say
from kie_wav_async.cli.common.shell import command_line, service_command
from kie_wav_async.ledger import LedgerEntry, RecoveryState, TrackState

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from kie_wav_async import Track, UnknownSubmit
    from kie_wav_async.ledger import Ledger

# How every file of SQLite's begins.
_MAGIC: Final = b"SQLite format 3\0"

_SOON: Final = dt.timedelta(hours=48)

# How many are kept of what there may be any number of.
_SOONEST: Final = 1_000
_EXISTING: Final = 1_000
_SLOWEST: Final = 5
# The service's words may be others each time: memory must not grow with them.
_MAX_REASONS: Final = 1_000

_READ: Final = {
    state for state in TrackState if state.is_unsaved or state.is_converted or state.came_to_nothing
} | {TrackState.SUBMITTING}

# What comes of a track, by what the service said of it: the state, its code, its words.
_Key: TypeAlias = tuple[TrackState, int | None, str | None]
# A number to sort by, one that decides between equals, and what is sorted.
_Ranked: TypeAlias = tuple[float, int, LedgerEntry]


def verify_ledger(path: Path) -> None:
    """
    Return if the file at *path* may be a ledger.

    Raises:
        CliError: It is none, or there is none.
    """
    if is_folder(path):
        msg = f"{path} is a folder: name the ledger in it, {path / 'kie-wav.sqlite3'} perhaps"
        raise CliError(USAGE, msg)
    if not is_sqlite(path, "ledger"):
        raise CliError(USAGE, f"{path} is no ledger: name the one that `kie-wav bulk` made")


@contextlib.contextmanager
def showing_warnings() -> Generator[None]:
    """Print afterwards what the library warned of meanwhile, such as an incomplete ledger."""
    told = _Warnings(logging.WARNING)
    logger = logging.getLogger("kie_wav_async")
    logger.addHandler(told)
    try:
        yield
    finally:
        logger.removeHandler(told)
        for message in told.messages:
            say(f"warning: {message}")


class _Warnings(logging.Handler):
    """
    Keeps warnings until it is their turn to be printed.

    Attributes:
        messages: What was warned of.
    """

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning, in whatever thread."""
        self.messages.append(record.getMessage())


def is_folder(path: Path) -> bool:
    """Return whether there is a folder at *path*."""
    try:
        return path.is_dir()
    except (OSError, ValueError):  # A name may be too long, or have a NUL in it.
        return False


def is_sqlite(path: Path, what: str) -> bool:
    """
    Return whether the file at *path* is one of SQLite's.

    Args:
        path: Any file.

        what: What is missing if it is not there.

    Raises:
        CliError: It is not there, or cannot be opened.
    """
    try:
        if path.exists() and not path.is_file():  # A pipe would have us wait.
            return False
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except FileNotFoundError as error:
        raise CliError(USAGE, f"there is no {what} {path}") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise CliError(USAGE, f"cannot open {path}: {why}") from error


def resolve_commands(path: Path, attempt: str, task_id: str | None) -> list[str]:
    """
    Return what to choose from to resolve an unknown submit.

    Args:
        path: The ledger.

        attempt: The attempt, or the beginning of its id.

        task_id: Its task, if a callback has named it: it was charged then.
    """
    choices = [["--task-id", task_id]] if task_id else [["--task-id", "TASK_ID"], ["--not-charged"]]
    return [service_command("resolve", path, attempt, options=options) for options in choices]


def resolve_all_commands(path: Path) -> list[str]:
    """Return the commands that resolve all unknown submits of the ledger *path* at once."""
    return [
        f"{command_line('resolve', path)} > unknown.csv",
        service_command("resolve", path, options=["--list", "unknown.csv"]),
        command_line("resolve", path, options=["--all", "--not-charged"]),
    ]


@attrs.define
class Reason:
    """
    Why some tracks came to nothing.

    Attributes:
        state: What they came to.

        code: The service's code; `None` without.

        text: The service's words, or ours where it had none.

        example: One of them.

        count: How many there are.
    """

    state: TrackState
    code: int | None
    text: str
    example: LedgerEntry
    count: int = 0


_NO_WORDS: Final = {
    TrackState.EXISTS_WITHOUT_ID: "a WAV is there, under a task id that was not told"
}


@attrs.define
class CatalogReport:
    """
    What there is to tell of a ledger; grows with what is wrong, not with the catalog.

    Attributes:
        path: The ledger.

        at: When it was looked at; aware, UTC.

        opening: The submits in it.

        states: How many tracks stand where.

        expiring: How many WAVs are not saved and gone within 48 hours.

        overdue: How many are not saved and past the retention by our clock: they may still
            be there.

        ageless: How many are not saved, and of unknown age.

        saved_bytes: How many bytes the saved files have.

        folder: Where they are; `None` if they are not beside the ledger, or there are none.
    """

    path: Path
    at: dt.datetime
    opening: RecoveryState
    states: Mapping[TrackState, int]
    expiring: int = 0
    overdue: int = 0
    ageless: int = 0
    saved_bytes: int = 0
    folder: Path | None = None
    _existing: list[LedgerEntry] = attrs.field(factory=list[LedgerEntry], init=False)
    _in_progress: set[str] = attrs.field(factory=set[str], init=False)
    _reasons: dict[_Key, Reason] = attrs.field(factory=dict[_Key, Reason], init=False)
    # Heaps whose first is the next to give way: the last to expire, the fastest.
    _soonest: list[_Ranked] = attrs.field(factory=list[_Ranked], init=False)
    _slowest: list[_Ranked] = attrs.field(factory=list[_Ranked], init=False)
    # How many conversions took so many tenths of a second.
    _tenths: Counter[int] = attrs.field(factory=Counter[int], init=False)

    def take(self, entry: LedgerEntry) -> None:
        """Look at one track."""
        if entry.state is TrackState.SUBMITTING:
            self._in_progress.add(entry.attempt_id)
        if entry.state is TrackState.EXISTS_WITHOUT_ID and len(self._existing) < _EXISTING:
            self._existing.append(entry)
        if entry.state.came_to_nothing:
            self._take_reason(entry)
        if entry.state.is_unsaved:
            self._take_unsaved(entry)
        if entry.state.is_converted:
            self._take_time(entry)
        if entry.state is TrackState.SAVED:
            self._take_saved(entry)

    def _take_reason(self, entry: LedgerEntry) -> None:
        state, code, text = key = (entry.state, entry.error_code, entry.error)
        if key not in self._reasons and len(self._reasons) >= _MAX_REASONS:
            state, code, text = key = (entry.state, None, "other reasons")
        text = text or _NO_WORDS.get(state, "no reason given")
        self._reasons.setdefault(key, Reason(state, code, text, entry)).count += 1

    def _take_unsaved(self, entry: LedgerEntry) -> None:
        expires_at = entry.expires_at
        if expires_at is None:
            self.ageless += 1
        elif expires_at <= self.at:
            self.overdue += 1
        elif expires_at <= self.at + _SOON:
            self.expiring += 1
            _keep(self._soonest, _SOONEST, (-expires_at.timestamp(), -entry.index, entry))

    def _take_saved(self, entry: LedgerEntry) -> None:
        if not self.saved_bytes and _is_beside(self.path, entry):
            self.folder = self.path.parent
        self.saved_bytes += entry.bytes or 0

    def _take_time(self, entry: LedgerEntry) -> None:
        began, ended = entry.submitted_at, entry.settled_at
        # What was there before our submit took some other time.
        if began is None or ended is None or entry.is_adopted:
            return
        seconds = max(0.0, (ended - began).total_seconds())
        self._tenths[round(10 * seconds)] += 1
        _keep(self._slowest, _SLOWEST, (seconds, -entry.index, entry))

    @property
    def accepted(self) -> int:
        """How many submits were charged for certain."""
        return self.opening.accepted

    @property
    def at_most(self) -> int:
        """How many submits may have been charged."""
        return self.opening.accepted + len(self.opening.unknown)

    @property
    def saved(self) -> int:
        """How many files are saved."""
        return self.states[TrackState.SAVED]

    @property
    def expired(self) -> int:
        """How many WAVs are not saved and gone, as the service has said."""
        return self.states[TrackState.EXPIRED]

    @property
    def converted(self) -> int:
        """How many conversions `quantile` speaks of."""
        return self._tenths.total()

    def unknown(self) -> list[UnknownSubmit]:
        """Return the submits of unknown fate, oldest first."""
        return [one for one in self.opening.unknown if not self.is_in_progress(one)]

    def in_progress(self) -> list[UnknownSubmit]:
        """Return the submits that are on the wire, or were when a run was killed."""
        return [one for one in self.opening.unknown if self.is_in_progress(one)]

    def is_in_progress(self, one: UnknownSubmit) -> bool:
        """Return whether a submit may be on the wire."""
        return one.attempt_id in self._in_progress

    def commands(self, one: UnknownSubmit, attempt: str = "") -> list[str]:
        """Return what to choose from to resolve a submit, called *attempt* there."""
        if self.is_in_progress(one):
            return []
        task_id = self.opening.callback_tasks.get(one.attempt_id)
        return resolve_commands(self.path, attempt or one.attempt_id, task_id)

    def existing(self) -> list[LedgerEntry]:
        """Return the tracks with a WAV under a task id that was not told, at most 1,000."""
        return list(self._existing)

    def existing_commands(self, one: LedgerEntry) -> list[str]:
        """Return what to choose from once such a task was looked up."""
        return resolve_commands(self.path, one.attempt_id, None)

    def reasons(self) -> list[Reason]:
        """Return why tracks came to nothing, the most frequent reason first."""
        return sorted(self._reasons.values(), key=lambda reason: -reason.count)

    def soonest(self) -> list[LedgerEntry]:
        """Return what is gone within 48 hours, the next first, at most 1,000."""
        return [entry for *_, entry in sorted(self._soonest, reverse=True)]

    def slowest(self) -> list[tuple[float, LedgerEntry]]:
        """Return the 5 slowest conversions and their seconds."""
        return [(seconds, one) for seconds, _, one in sorted(self._slowest, reverse=True)]

    def quantile(self, share: float) -> float | None:
        """Return the seconds within which *share* of the conversions ended; `None` of none."""
        rank = math.ceil(share * self.converted)
        for tenth in sorted(self._tenths):
            rank -= self._tenths[tenth]
            if rank <= 0:
                return tenth / 10
        return None

    def facts(self) -> dict[str, object]:
        """Return all of it as one JSON object."""
        return {
            "ledger": str(self.path),
            "at": self.at.isoformat(),
            "tracks": sum(self.states.values()),
            "states": {state.value: self.states[state] for state in TrackState},
            "bill": {
                "accepted": self.accepted,
                "unknown": len(self.opening.unknown),
                "at_most": self.at_most,
            },
            "unknown": [
                {
                    "attempt_id": one.attempt_id,
                    **ids_of(one.track),
                    "since": one.at.isoformat(),
                    "in_progress": self.is_in_progress(one),
                    "callback_task_id": self.opening.callback_tasks.get(one.attempt_id),
                    "resolve": self.commands(one),
                }
                for one in self.opening.unknown
            ],
            "existing": [
                {
                    "attempt_id": one.attempt_id,
                    **ids_of(one.track),
                    "resolve": self.existing_commands(one),
                }
                for one in self.existing()
            ],
            "reasons": [
                {
                    "state": reason.state.value,
                    "error_code": reason.code,
                    "error": reason.text,
                    "count": reason.count,
                    "example": _example(reason.example),
                }
                for reason in self.reasons()
            ],
            "saved": {
                "count": self.saved,
                "bytes": self.saved_bytes,
                "folder": self.folder and str(self.folder),
            },
            "expiring": {
                "within_s": _SOON.total_seconds(),
                "count": self.expiring,
                "soonest": [
                    {
                        **_example(one),
                        "expires_at": one.expires_at and one.expires_at.isoformat(),
                        "url": one.wav_url and str(one.wav_url),
                    }
                    for one in self.soonest()
                ],
                "overdue": self.overdue,
                "of_unknown_age": self.ageless,
                "expired": self.expired,
            },
            "conversion_time": {
                "count": self.converted,
                "p50_s": self.quantile(0.5),
                "p99_s": self.quantile(0.99),
                "slowest": [{**_example(one), "seconds": s} for s, one in self.slowest()],
            },
        }


def ids_of(track: Track) -> dict[str, object]:
    """Return a track for JSON."""
    return attrs.asdict(track)


def _example(entry: LedgerEntry) -> dict[str, object]:
    return {**ids_of(entry.track), "task_id": entry.task_id or None}


def _is_beside(ledger: Path, entry: LedgerEntry) -> bool:
    """Return whether a file is in the folder of the ledger, which may have been given another."""
    try:
        return entry.path is not None and (ledger.parent / entry.path).is_file()
    except (OSError, ValueError):
        return False


def _keep(heap: list[_Ranked], count: int, entry: _Ranked) -> None:
    """Keep the *count* greatest entries."""
    if len(heap) < count:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


async def survey(
    ledger: Ledger, path: Path, now_unix_s: float, on_progress: Callable[[int, int], object]
) -> CatalogReport:
    """
    Read a ledger.

    Args:
        ledger: It; not open.

        path: Where it is.

        now_unix_s: The time.

        on_progress: Called with how many tracks were read, and how many there are.
    """
    opening = await ledger.open(now_unix_s)
    try:
        states = await ledger.count_by_state()
        found = CatalogReport(path, dt.datetime.fromtimestamp(now_unix_s, dt.UTC), opening, states)
        total = sum(states[state] for state in _READ)
        done = 0
        async for page in pages(ledger, _READ):
            for entry in page:
                found.take(entry)
            done += len(page)
            on_progress(done, total)
        return found
    finally:
        await ledger.aclose()
