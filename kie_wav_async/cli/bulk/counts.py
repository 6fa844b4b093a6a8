"""What ``kie-wav bulk`` leaves: how the run went, and what its ledger says."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

import attrs

from kie_wav_async import Conversion, Statistics, Track, UnknownSubmit
from kie_wav_async.cli.bulk.estimate import FAILED, TrackCounts
from kie_wav_async.cli.bulk.importer import Plan
from kie_wav_async.cli.bulk.options import BulkOptions
from kie_wav_async.cli.bulk.saver import Saver
from kie_wav_async.cli.common.ledger_pages import pages
from kie_wav_async.cli.common.output import clean
from kie_wav_async.ledger import Ledger, LedgerEntry, RecoveryState, TrackState

# So many reasons are told apart, in case each track has one of its own.
_MOST_REASONS: Final = 1_000
# So many tracks whose task was not told are kept.
_EXISTING: Final = 1_000

_NO_ID: Final = "KIE has a WAV of it under a task id that it did not tell"


@attrs.frozen(kw_only=True)
class RunResult:
    """
    What a run leaves.

    Attributes:
        ledger: Still open.

        options: What was asked for.

        stopped_by: What ended it before its time; `None` if nothing did.

        counted: What the session counted.

        open_tasks: What the session followed to the end.

        plan: What the catalog came to; `None` if it was not read to its end.

        credits: What was left of them; `None` if nobody knows.

        seconds: How long it took.

        now_unix_s: The time.

        is_reclaiming: Whether WAVs that had expired are still to be fetched once more.

        saver: What saved the files; `None` if nothing did.

        lost: Files that were found damaged, and cannot be moved.
    """

    ledger: Ledger
    options: BulkOptions
    stopped_by: BaseException | None
    counted: Statistics
    open_tasks: Sequence[Conversion]
    plan: Plan | None
    credits: Decimal | None
    seconds: float
    now_unix_s: float
    is_reclaiming: bool = False
    saver: Saver | None = None
    lost: Sequence[LedgerEntry] = ()


@attrs.define
class Failures:
    """
    Tracks that came to nothing for one reason.

    Attributes:
        reason: In a word or two.

        count: How many.

        example: The first of them.
    """

    reason: str
    count: int
    example: Track


@attrs.frozen
class RunCounts:
    """What the ledger says at the end."""

    tally: TrackCounts
    opening: RecoveryState
    failures: list[Failures]
    unknown_submits: list[UnknownSubmit]
    existing: list[LedgerEntry]

    @property
    def charges(self) -> int:
        """How many submits were charged at the most."""
        return self.opening.accepted + len(self.opening.unknown)


async def read_counts(result: RunResult) -> RunCounts:
    """
    Read what the ledger says.

    Raises:
        LedgerError: It cannot be read.
    """
    ledger = result.ledger
    tally = TrackCounts(await ledger.count_by_state())
    opening = await ledger.open(result.now_unix_s)
    await ledger.aclose()
    failures: dict[str, Failures] = {}
    existing: list[LedgerEntry] = []
    if tally.failed:
        async for page in pages(ledger, FAILED):
            for entry in page:
                if entry.state is TrackState.EXISTS_WITHOUT_ID and len(existing) < _EXISTING:
                    existing.append(entry)
                reason = _reason(entry)
                if reason not in failures and len(failures) >= _MOST_REASONS:
                    reason = "other reasons"
                group = failures.setdefault(reason, Failures(reason, 0, entry.track))
                group.count += 1
    undecided: set[Track] = set()
    if tally.unknown:
        async for page in pages(ledger, [TrackState.UNKNOWN]):
            undecided.update(entry.track for entry in page)
    return RunCounts(
        tally,
        opening,
        sorted(failures.values(), key=lambda group: -group.count),
        # Of a track that has a task since, there is nothing to decide.
        [unknown for unknown in opening.unknown if unknown.track in undecided],
        existing,
    )


def _reason(entry: LedgerEntry) -> str:
    if entry.state is TrackState.EXISTS_WITHOUT_ID:
        return _NO_ID
    words = [str(entry.error_code or ""), entry.error or ""]
    return clean(" ".join(word for word in words if word)) or entry.state.value
