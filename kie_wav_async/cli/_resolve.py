"""``kie-wav resolve``: somebody's word on a submit of unknown fate, kept in its ledger."""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING, Final

from kie_wav_async import Track, UnknownSubmit
from kie_wav_async.cli._output import DONE, USAGE, CliError, print_json, print_line, say
from kie_wav_async.cli._report import moment, name_of, short_of
from kie_wav_async.cli._shell import command_line, join
from kie_wav_async.cli._survey import ids_of, resolve_commands, verify_ledger
from kie_wav_async.ledger import AttemptOutcome, SqliteLedger, TrackState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kie_wav_async.ledger import Ledger, LedgerOpening, Standing

# An abbreviation shorter than this might be a slip of the pen.
_MIN_LENGTH: Final = 6
# How many unknown submits an error lists.
_LISTED: Final = 20

_NEXT: Final[dict[TrackState, str]] = {
    TrackState.PLANNED: "planned again: `kie-wav bulk` submits it",
    TrackState.ACCEPTED: "accepted: `kie-wav bulk` goes on with it and asks KIE for the WAV",
    TrackState.SUCCEEDED: "converted, by another submit: there is nothing left to do",
    TrackState.STORED: "saved already: there is nothing left to do",
    TrackState.REFUSED: "refused by the service, as it was before",
    TrackState.EXISTS: "known to have a WAV, under a task id that the service did not tell",
    TrackState.FAILED: "failed, as it was before: `kie-wav bulk --retry-failed` submits it",
    TrackState.EXPIRED: "expired: its WAV was not saved in time, as was known before",
}


async def run_resolve(
    path: Path, attempt: str, *, task_id: str | None, not_charged: bool, as_json: bool
) -> int:
    """
    Write down what came of a submit, and print where its track stands then.

    Args:
        path: The ledger.

        attempt: The attempt, or the beginning of its id.

        task_id: The task that it created; `None` if it is not known to have.

        not_charged: Whether it created nothing.

        as_json: Print one JSON object.

    Raises:
        CliError: One of these cannot be, or contradicts what the ledger knows.

        LedgerError: A run has the ledger open, or it cannot be read or written.
    """
    if (task_id is not None) == not_charged:
        msg = (
            "say one of the two: --task-id with the id of its task if KIE's logs have the submit, "
            "--not-charged if they have not"
        )
        raise CliError(USAGE, msg)
    _verify_words(attempt, task_id)
    verify_ledger(path)
    ledger = SqliteLedger(path)
    now_unix_s = time.time()
    opening = await ledger.open(now_unix_s)
    try:
        existing = await _find_existing(ledger, opening, attempt)
        submit = existing or _find(opening, path, attempt)
        _verify_heard(submit, opening, task_id)
        if task_id is None:
            await ledger.end(submit.attempt_id, AttemptOutcome.NOT_CREATED, now_unix_s)
        else:
            await _verify_free(ledger, submit, task_id, exists=existing is not None)
            # What was there before our submit is not ours to count.
            outcome = AttemptOutcome.ADOPTED if existing else AttemptOutcome.ACCEPTED
            await ledger.end(submit.attempt_id, outcome, now_unix_s, task_id=task_id)
        standing = await ledger.find(submit.track)
        if existing and standing is not None and standing.state is TrackState.EXISTS:
            msg = f"{submit.attempt_id} is not the submit that was answered so: nothing has changed"
            raise CliError(USAGE, msg, attempt_id=submit.attempt_id)
        # Opened once more it tells what is left.
        left = (await ledger.open(now_unix_s)).unknown
        await ledger.aclose()
    finally:
        await ledger.aclose()
    _tell(path, submit, standing, left, as_json=as_json)
    return DONE


def _verify_words(attempt: str, task_id: str | None) -> None:
    if len(attempt) < _MIN_LENGTH:
        msg = (
            f"{attempt!r} is too short for an attempt: name it by its first {_MIN_LENGTH} "
            "characters at least"
        )
        raise CliError(USAGE, msg)
    if task_id is None:
        return
    try:
        Track("any", task_id)  # Ids are alike.
    except ValueError as error:
        raise CliError(USAGE, str(error).replace("audio_id", "--task-id")) from error


def _find(opening: LedgerOpening, path: Path, attempt: str) -> UnknownSubmit:
    """Return the unknown submit that *attempt* is or begins."""
    found = [one for one in opening.unknown if one.attempt_id == attempt] or [
        one for one in opening.unknown if one.attempt_id.startswith(attempt.lower())
    ]
    if len(found) == 1:
        return found[0]
    listed = found or opening.unknown
    facts = {"attempts": [one.attempt_id for one in listed[:_LISTED]]}
    if found:
        _list(listed, opening.unknown)
        msg = f"{len(found)} submits of unknown fate begin with {attempt}: name one of them"
    elif listed:
        _list(listed, opening.unknown)
        msg = (
            f"no submit of unknown fate begins with {attempt}: name one of those listed. One that "
            "was resolved or answered stays what it is"
        )
    else:
        msg = f"{path} has no submit of unknown fate: there is nothing to resolve"
    raise CliError(USAGE, msg, **facts)


async def _find_existing(
    ledger: Ledger, opening: LedgerOpening, attempt: str
) -> UnknownSubmit | None:
    """Return the submit that *attempt* is or begins, of a track whose task was not told."""
    found: list[UnknownSubmit] = []
    after = 0
    while page := await ledger.page([TrackState.EXISTS], after=after):
        for standing in page:
            if standing.attempt_id == attempt:
                return _submit_of(standing)
            if standing.attempt_id.startswith(attempt.lower()) and len(found) <= _LISTED:
                found.append(_submit_of(standing))
        after = page[-1].index
    if not found:
        return None
    found += [one for one in opening.unknown if one.attempt_id.startswith(attempt.lower())]
    if len(found) == 1:
        return found[0]
    if any(one.attempt_id == attempt for one in found):
        return None
    for one in found[:_LISTED]:
        say(f"{one.attempt_id}  {name_of(one.track)}")
    facts = {"attempts": [one.attempt_id for one in found[:_LISTED]]}
    msg = f"more than one submit begins with {attempt}: name one of them"
    raise CliError(USAGE, msg, **facts)


def _submit_of(standing: Standing) -> UnknownSubmit:
    at = dt.datetime.fromtimestamp(0, dt.UTC)  # Nobody asks.
    return UnknownSubmit(attempt_id=standing.attempt_id, track=standing.track, at=at)


def _list(listed: Sequence[UnknownSubmit], among: Sequence[UnknownSubmit]) -> None:
    for one in listed[:_LISTED]:
        say(f"{short_of(one, among)}  {moment(one.at)} UTC  {name_of(one.track)}")
    if len(listed) > _LISTED:
        say(f"... and {len(listed) - _LISTED:,} more")


def _verify_heard(submit: UnknownSubmit, opening: LedgerOpening, task_id: str | None) -> None:
    """Return unless an authentic callback contradicts."""
    heard = opening.named.get(submit.attempt_id)
    if heard is not None and heard != task_id:
        msg = (
            f"KIE has called back for this very submit and named its task, {heard}: it was "
            f"accepted. Say {join(('--task-id', heard))}, or let `kie-wav bulk` find out"
        )
        raise CliError(USAGE, msg, attempt_id=submit.attempt_id, named_task_id=heard)


async def _verify_free(
    ledger: SqliteLedger, submit: UnknownSubmit, task_id: str, *, exists: bool
) -> None:
    """Return if a task may be that of a submit, as far as the ledger knows."""
    track = submit.track
    if task_id in {track.music_task_id, track.audio_id, submit.attempt_id}:
        msg = (
            f"{task_id} is an id of the track or of the attempt: --task-id is that of its "
            "conversion, from KIE's logs"
        )
        raise CliError(USAGE, msg)
    other = await ledger.find_task(task_id)
    if other is None:
        return
    if other.track == track:
        # What an answer called a repeat was made by this one, and what exists by any.
        if exists or (other.is_adopted and other.task_id == task_id):
            return
        msg = (
            f"task {task_id} was made by another submit of the same track: if KIE's logs have no "
            "second one, say --not-charged"
        )
    else:
        of = f"music task {other.track.music_task_id}, track {other.track.audio_id}"
        msg = f"task {task_id} is another track's ({of}): look the id up again"
    raise CliError(USAGE, msg, **ids_of(other.track))


def _tell(
    path: Path,
    submit: UnknownSubmit,
    standing: Standing | None,
    left: Sequence[UnknownSubmit],
    *,
    as_json: bool,
) -> None:
    assert standing is not None  # noqa: S101 - a ledger forgets no track
    facts = {
        "attempt_id": submit.attempt_id,
        **ids_of(submit.track),
        "state": standing.state.value,
        "task_id": standing.task_id or None,
        "unknown_left": len(left),
    }
    if as_json:
        print_json(facts)
    else:
        for name, value in facts.items():
            if value is not None:
                print_line(f"{name:<14}{value}")
    others = [one for one in left if one.track == submit.track]
    if standing.state is TrackState.UNKNOWN and others:
        command, *_ = resolve_commands(path, short_of(others[0], left), None)
        text = f"still unknown, because of another submit: go on with `{command}`, or"
        say(f"{name_of(submit.track)} is {text} with --not-charged.")
    else:
        say(f"{name_of(submit.track)} is now {_NEXT.get(standing.state, standing.state.value)}.")
    if left:
        what = "submit is" if len(left) == 1 else "submits are"
        command = command_line("report", path)
        say(f"{len(left):,} more {what} of unknown fate: see `{command}`.")
