"""What `kie-wav resolve` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from kie_wav_async.cli.bulk.estimate import count_words
from kie_wav_async.cli.common.output import (
    DONE,
    FAILED,
    UNKNOWN,
    CliError,
    print_json,
    print_line,
    say,
)
from kie_wav_async.cli.common.shell import command_line
from kie_wav_async.cli.report.catalog_report import ids_of, resolve_commands
from kie_wav_async.cli.report.render import name_of, short_of
from kie_wav_async.cli.report.resolve_list import (
    NOT_CHARGED,
)
from kie_wav_async.ledger import (
    AttemptEntry,
    AttemptOutcome,
    LedgerEntry,
    TrackState,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kie_wav_async import UnknownSubmit


_NEXT: Final[dict[TrackState, str]] = {
    TrackState.PLANNED: "planned again: `kie-wav bulk` submits it",
    TrackState.ACCEPTED: "accepted: `kie-wav bulk` goes on with it and asks KIE for the WAV",
    TrackState.SUCCEEDED: "converted, by another submit: there is nothing left to do",
    TrackState.SAVED: "saved already: there is nothing left to do",
    TrackState.REJECTED: "rejected by the service, as it was before",
    TrackState.EXISTS_WITHOUT_ID: (
        "known to have a WAV, under a task id that the service did not tell"
    ),
    TrackState.FAILED: "failed, as it was before: `kie-wav bulk --retry-failed` submits it",
    TrackState.EXPIRED: "expired: its WAV was not saved in time, as was known before",
}


@attrs.define
class Case:
    """One submit, what is said of it, and what came of that."""

    entry: AttemptEntry
    task_id: str | None
    #: Why the word is not taken; `None` while it is.
    refusal: CliError | None = None
    ledger_entry: LedgerEntry | None = None
    #: The file of a task that was wrong, under its new name.
    moved: str | None = None

    @property
    def base(self) -> AttemptOutcome | None:
        """What the submit was before any word."""
        return self.entry.resolved_from or self.entry.outcome


def show(
    path: Path, case: Case, left: Sequence[UnknownSubmit], *, is_dry: bool, as_json: bool
) -> None:
    """Print what became of the one submit that was named."""
    current, entry = case.ledger_entry, case.entry
    assert current is not None  # noqa: S101 - a ledger forgets no track
    facts = {
        "attempt_id": entry.attempt_id,
        **ids_of(entry.track),
        "state": current.state.value,
        "task_id": current.task_id or None,
        "unknown_left": len(left),
    }
    if as_json:
        print_json(facts)
    else:
        for name, value in facts.items():
            if value is not None:
                print_line(f"{name:<14}{value}")
    if is_dry:
        say(f"{name_of(entry.track)} can be resolved so. Nothing has changed (--dry-run).")
        return
    show_moved(case)
    others = [one for one in left if one.track == entry.track]
    if current.state is TrackState.UNKNOWN and others:
        command, *_ = resolve_commands(path, short_of(others[0], left), None)
        text = f"still unknown, because of another submit: go on with `{command}`, or"
        say(f"{name_of(entry.track)} is {text} with --not-charged.")
    else:
        say(f"{name_of(entry.track)} is now {_NEXT.get(current.state, current.state.value)}.")
    show_left(path, left)


def show_moved(case: Case) -> None:
    """Say that a file was moved aside, as its track has another task now."""
    if case.moved is not None:
        say(
            f"The WAV of task {case.entry.task_id} had been saved, and is not this track's: its "
            f"file is now {case.moved}."
        )


def show_left(path: Path, left: Sequence[UnknownSubmit]) -> None:
    """Say how many submits are still unknown, and how to list them."""
    if left:
        what = "submit is" if len(left) == 1 else "submits are"
        command = command_line("report", path)
        say(f"{len(left):,} more {what} of unknown fate: see `{command}`.")


def show_all(
    path: Path,
    cases: Sequence[Case],
    left: Sequence[UnknownSubmit],
    blanks: int,
    *,
    is_dry: bool,
    as_json: bool,
) -> int:
    """Print what became of several submits, and return the exit code."""
    taken = [case for case in cases if case.refusal is None]
    refused = [case for case in cases if case.refusal is not None]
    if as_json:
        print_json(
            {
                "ledger": str(path),
                "dry_run": is_dry,
                "resolved": [{**facts_of(case), "state": _state(case)} for case in taken],
                "refused": [{**facts_of(case), "reason": str(case.refusal)} for case in refused],
                "without_word": blanks,
                "unknown_left": len(left),
            }
        )
    else:
        for case in taken:
            track, word = case.entry.track, case.task_id or NOT_CHARGED
            ids = (track.music_task_id, track.audio_id)
            print_line(case.entry.attempt_id, *ids, word, _state(case))
    for case in refused:
        say(f"not resolved: {case.entry.attempt_id} {name_of(case.entry.track)}: {case.refusal}")
    for case in taken:
        show_moved(case)
    charged = sum(case.task_id is not None for case in taken)
    done = "would be resolved" if is_dry else "resolved"
    summary = (
        f"{count_words(len(taken), 'submit')} {done}: {charged:,} accepted, "
        f"{len(taken) - charged:,} not charged"
    )
    if refused:
        summary += f"; {len(refused):,} not resolved"
    if blanks:
        summary += f"; left as they are: {count_words(blanks, 'row')} without a word"
    say(f"{summary}.")
    if is_dry:
        say("Nothing has changed (--dry-run).")
        return FAILED if refused else DONE
    show_left(path, left)
    if left:
        return UNKNOWN
    return FAILED if refused else DONE


def facts_of(case: Case) -> dict[str, object]:
    """Return what JSON says of a submit."""
    ids = ids_of(case.entry.track)
    return {"attempt_id": case.entry.attempt_id, **ids, "task_id": case.task_id}


def _state(case: Case) -> str:
    return "" if case.ledger_entry is None else case.ledger_entry.state.value
