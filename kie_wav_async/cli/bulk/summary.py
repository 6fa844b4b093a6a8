"""How ``kie-wav bulk`` ends: what there is, what is left, and what to do about it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import TYPE_CHECKING, Final

import attrs

from kie_wav_async import errors
from kie_wav_async.cli.bulk.counts import RunCounts, RunResult, read_counts
from kie_wav_async.cli.bulk.estimate import (
    TrackCounts,
    bytes_words,
    count_words,
    duration_words,
    most_charges,
)
from kie_wav_async.cli.common.output import (
    DONE,
    INTERRUPTED,
    SERVICE,
    UNKNOWN,
    CliError,
    failure_of,
    print_json,
)
from kie_wav_async.cli.common.output import FAILED as SOME_FAILED
from kie_wav_async.cli.common.shell import command_line
from kie_wav_async.cli.common.streams import OutputError
from kie_wav_async.cli.report.catalog_report import resolve_all_commands, resolve_commands
from kie_wav_async.ledger import TrackState

if TYPE_CHECKING:
    from kie_wav_async.cli.bulk.progress import BulkDisplay
    from kie_wav_async.cli.bulk.saver import Unsaved

# So many reasons are spelled out.
_REASONS: Final = 20


async def show_summary(result: RunResult, display: BulkDisplay, *, as_json: bool) -> int:
    """Say how a run ended, and return its exit code."""
    counts: RunCounts | None = None
    is_moved = _is_moved(result.stopped_by)
    try:
        counts = await read_counts(result)
    except errors.LedgerError as error:  # If it cannot be read, that was said.
        is_moved = is_moved or _is_moved(error)
    failure = _failure(result, counts)
    if counts is not None:
        _show(result, counts, display)
    if isinstance(result.stopped_by, errors.LedgerError):
        _show_open(result, display)
    if failure is not None:
        display.say(f"kie-wav: {failure}")
    resume = None
    if is_moved:
        display.say(
            f"Put the ledger {result.options.ledger} back before you go on: with a new ledger "
            "everything would be paid again."
        )
    elif failure is not None and _is_left(result, counts):
        is_capped = _is_capped(result, counts)
        resume = result.options.resume(
            is_planned=result.plan is not None,
            is_capped=is_capped,
            is_reclaiming=result.is_reclaiming,
        )
        if is_capped and counts is not None:
            display.say(f"For all that is left, N would have to be {_enough(result, counts)}.")
        display.say(f"{result.options.resume_words}:")
        display.say_as_is(f"  {resume}")
    code = DONE if failure is None else failure.exit_code
    if isinstance(result.stopped_by, OutputError):
        result.stopped_by.is_reported = True
    elif as_json:
        with contextlib.suppress(OutputError):  # Who flushes it will see.
            print_json(_facts(result, counts, failure, resume))
    return code


def _is_moved(error: BaseException | None) -> bool:
    """Whether the ledger is not where it was: the same command would begin a new one."""
    return isinstance(error, errors.LedgerError) and "was moved" in str(error)


def _is_capped(result: RunResult, counts: RunCounts | None) -> bool:
    """Whether ``--max-charges`` keeps something from being sent."""
    if isinstance(result.stopped_by, errors.ChargeLimitError):
        return True
    cap = result.options.max_charges
    if counts is None or cap is None or result.stopped_by is not None:
        return False
    waiting = counts.tally.planned + (counts.tally.unknown if result.options.resubmits else 0)
    return bool(waiting) and counts.charges >= cap


def _enough(result: RunResult, counts: RunCounts) -> int:
    """Return a cap that all that is left would keep to."""
    return counts.charges + most_charges(counts.tally, resubmits=result.options.resubmits)


# --- in words -----------------------------------------------------------------------------------


def _show(result: RunResult, counts: RunCounts, display: BulkDisplay) -> None:
    say, tally = display.say, counts.tally
    now = result.counted.settled_by_callback + result.counted.settled_by_poll
    say(
        f"{tally.converted:,} of {count_words(tally.total, 'track')} converted, {now:,} of them "
        f"in this run of {duration_words(result.seconds)}."
    )
    if not result.options.is_saving_off:
        _show_saved(result, tally, display)
    existing = tally.of(TrackState.EXISTS_WITHOUT_ID)
    if tally.failed:
        tries = "; --retry-failed tries again" * (tally.failed > existing)
        but = ", but not what KIE has" * (tally.failed > existing > 0)
        say(f"{count_words(tally.failed, 'track')} failed{tries}{but}:")
        for entry in counts.failures[:_REASONS]:
            track = entry.example
            say(f"  {entry.count:,} x {entry.reason} ({track.music_task_id} {track.audio_id})")
        if len(counts.failures) > _REASONS:
            say(f"  and {len(counts.failures) - _REASONS:,} more reasons")
    if counts.existing:
        _show_existing(result, counts, display)
    if tally.expired:
        say(
            f"{count_words(tally.expired, 'WAV')} expired at KIE, as it says itself; "
            "--retry-expired tries each link once more, which is free, and converts again what "
            "is gone, which is charged again."
        )
    if counts.opening.unknown:
        _show_unknown(result, counts, display)
    accepted, unknown = counts.opening.accepted, len(counts.opening.unknown)
    charged = f"{accepted:,}"
    if unknown:
        charged = f"at least {accepted:,} and at most {accepted + unknown:,}, with those unknown"
    say(f"Charged for this catalog in all: {charged}.")
    if tally.unsaved or (result.options.is_saving_off and tally.saved):
        display.say_as_is(f"The URLs of all WAVs: {_report(result, '--urls')}")


def _show_saved(result: RunResult, tally: TrackCounts, display: BulkDisplay) -> None:
    say, saver = display.say, result.saver
    now = size = 0
    if saver is not None:
        now, size = saver.files, saver.bytes
    sizes = f" ({bytes_words(size)})" if now else ""
    say(
        f"{count_words(tally.saved, 'WAV')} saved in {result.options.folder}, {now:,} of them in "
        f"this run{sizes}."
    )
    if saver is not None and saver.noted:
        files = count_words(saver.noted, "of these WAVs has", "of these WAVs have")
        say(f"{files} something unusual, e.g. {saver.note}")
    unsaved = _unsaved(result)
    if unsaved:
        count = count_words(sum(entry.count for entry in unsaved), "WAV")
        say(f"{count} could not be saved; the same command tries again, and pays nothing:")
        for entry in unsaved:
            track = entry.example
            say(
                f"  {entry.count:,} x {entry.reason}: {entry.message} "
                f"({track.music_task_id} {track.audio_id})"
            )
    if result.lost:
        one = result.lost[0]
        say(
            f"{count_words(len(result.lost), 'file is', 'files are')} damaged and cannot be "
            f"renamed ({result.options.folder / str(one.path)}): rename or delete it, and the same "
            "command saves it again, which is free."
        )


def _unsaved(result: RunResult) -> list[Unsaved]:
    return [] if result.saver is None else result.saver.unsaved


def _report(result: RunResult, *options: str) -> str:
    return command_line("report", result.options.ledger, options=options)


def _show_existing(result: RunResult, counts: RunCounts, display: BulkDisplay) -> None:
    count = counts.tally.of(TrackState.EXISTS_WITHOUT_ID)
    tracks = count_words(count, "track has", "tracks have")
    if count == 1:
        tracks = f"{counts.existing[0].track.music_task_id} {counts.existing[0].track.audio_id} has"
    display.say(
        f"{tracks} a WAV at KIE that was there before. Look for its task in KIE's logs, then "
        "name it, or say --not-charged if there is none:"
    )
    if count == 1:
        _show_command(result, counts.existing[0].attempt_id, None, display)
    else:
        _show_list(result, display)


def _show_unknown(result: RunResult, counts: RunCounts, display: BulkDisplay) -> None:
    unknowns, others = (
        counts.unknown_submits,
        len(counts.opening.unknown) - len(counts.unknown_submits),
    )
    if unknowns:
        words = "which task each has made"
        submits = count_words(len(unknowns), "submit")
        if len(unknowns) == 1:
            words = "which task it made, or --not-charged in place of --task-id"
            submits += f" ({unknowns[0].track.music_task_id} {unknowns[0].track.audio_id})"
        display.say(
            f"{submits} may or may not have been accepted. Look in KIE's logs, then say {words}:"
        )
    if len(unknowns) == 1:
        (unknown,) = unknowns
        named = counts.opening.callback_tasks.get(unknown.attempt_id)
        _show_command(result, unknown.attempt_id, named, display)
    elif unknowns:
        _show_list(result, display)
        *_, none_of_them = resolve_all_commands(result.options.ledger)
        display.say("If KIE's logs have none of them:")
        display.say_as_is(f"  {none_of_them}")
    if others:
        submits = count_words(others, "more submit" if unknowns else "submit")
        display.say(
            f"{submits} may have been accepted too, of tracks that have a task since: see "
            f"`{_report(result)}`"
        )


def _show_command(
    result: RunResult, attempt_id: str, named: str | None, display: BulkDisplay
) -> None:
    # Alone on its line: zsh reads no comments where commands are typed.
    display.say_as_is(f"  {resolve_commands(result.options.ledger, attempt_id, named)[0]}")


def _show_list(result: RunResult, display: BulkDisplay) -> None:
    """Name the commands for several at once: a list that is filled in between them."""
    write, read, _ = resolve_all_commands(result.options.ledger)
    display.say_as_is(f"  {write}")
    display.say("Fill in the column task_id, a task id or not-charged, and read the list:")
    display.say_as_is(f"  {read}")


def _show_open(result: RunResult, display: BulkDisplay) -> None:
    """Name the tasks that only this process may know."""
    if result.open_tasks:
        display.say("These tasks are under way, and the ledger may lack some of them: keep the ids")
    for conversion in result.open_tasks:
        track = conversion.track
        of = "" if track is None else f"{track.music_task_id} {track.audio_id}"
        display.say_as_is(f"  {conversion.task_id}  # {of}")


def _is_left(result: RunResult, counts: RunCounts | None) -> bool:
    """Whether the same command would find something to do."""
    if result.plan is None or counts is None or result.stopped_by is not None:
        return True
    if _is_capped(result, counts):
        return True
    tally = counts.tally
    if tally.unsaved and not result.options.is_saving_off:
        return True
    return bool(tally.of(TrackState.PLANNED, TrackState.ACCEPTED, TrackState.SUBMITTING))


def _failure(result: RunResult, counts: RunCounts | None) -> CliError | None:
    """Return what is not good about the end, the most important of it."""
    match result.stopped_by:
        case errors.KieWavError() as error:
            return _stop(result, error, counts)
        case asyncio.CancelledError():
            return CliError(INTERRUPTED, f"interrupted; {_rest(result, counts)}")
        case OutputError() as error:
            sentence = f"{error}: stopped; {_rest(result, counts)}"
            return CliError(error.exit_code, sentence)
        case _ if counts is None:
            return CliError(SERVICE, "the ledger cannot be read")
        case _:
            failure = _shortfall(result, counts.tally)
            cap = result.options.max_charges
            if failure is None or cap is None or not _is_capped(result, counts):
                return failure
            return CliError(failure.exit_code, f"{_cap_words(cap)}; {failure}")


def _shortfall(result: RunResult, tally: TrackCounts) -> CliError | None:
    """Return what keeps the tracks from all being converted and saved, the most important of it."""
    if tally.unknown:
        tracks = count_words(
            tally.unknown, "track is in doubt and needs", "tracks are in doubt and need"
        )
        return CliError(UNKNOWN, f"{tracks} a decision")
    if tally.planned:
        tracks = count_words(tally.planned, "track")
        return CliError(SERVICE, f"{tracks} did not get through to KIE; nothing was charged for it")
    if tally.in_flight:
        tasks = count_words(tally.in_flight, "conversion")
        sentence = (
            f"{tasks} did not finish in time and may still finish: the same command asks again, "
            "and pays nothing"
        )
        return CliError(SOME_FAILED, sentence)
    losses = [count_words(tally.failed, "track") + " failed"] if tally.failed else []
    unsaved = tally.unsaved + tally.expired + len(result.lost)
    if unsaved and not result.options.is_saving_off:
        losses.append(f"{count_words(unsaved, 'WAV is', 'WAVs are')} not saved")
    return CliError(SOME_FAILED, " and ".join(losses)) if losses else None


def _stop(result: RunResult, error: errors.KieWavError, counts: RunCounts | None) -> CliError:
    told = failure_of(error)
    code, sentence, rest = told.exit_code, told.words, _rest(result, counts)
    match error:
        case errors.LedgerError():
            return told
        case errors.ChargeLimitError(max_charges=cap):
            # Nothing got in the way: it was asked for, and not all is converted.
            code = UNKNOWN if counts is not None and counts.tally.unknown else SOME_FAILED
            sentence = _cap_words(cap)
        case errors.InsufficientCreditsError(track=track):
            # What the library says of the charge is meant of this one submit.
            sentence = str(error)
            if track is not None:
                sentence += f" to {track.music_task_id} {track.audio_id}, which was not charged"
            rest += ". Top up credits or raise the key's limit, and run it again"
        case errors.DownloadError():
            sentence = str(error)
            rest += f". {_mend(error)}, and run it again"
        case _:
            pass
    facts = {name: fact for name, fact in told.facts.items() if name != "message"}
    facts.pop("exit_code")
    return CliError(code, f"stopped: {sentence}; {rest}", **facts)


def _mend(error: errors.DownloadError) -> str:
    cause = error.__cause__
    is_full = isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}
    return "Make room" if is_full else "See to it that files can be written there"


def _cap_words(max_charges: int) -> str:
    return (
        f"--max-charges {max_charges} is reached (accepted and unknown submits): a higher one "
        "goes on"
    )


def _rest(result: RunResult, counts: RunCounts | None) -> str:
    """Say what goes on without us, and what waits."""
    if counts is None:
        return "the same command goes on"
    tally = counts.tally
    parts: list[str] = []
    if tally.in_flight:
        flying = count_words(tally.in_flight, "conversion goes", "conversions go")
        parts.append(f"{flying} on at KIE")
    if tally.unsaved and not result.options.is_saving_off:
        parts.append(f"{count_words(tally.unsaved, 'WAV waits', 'WAVs wait')} to be saved")
    parts.append(count_words(tally.planned, "track is", "tracks are") + " left")
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


# --- as JSON ------------------------------------------------------------------------------------


def _facts(
    result: RunResult, counts: RunCounts | None, failure: CliError | None, resume: str | None
) -> dict[str, object]:
    plan, counted = result.plan, result.counted
    facts: dict[str, object] = {
        "ledger": str(result.options.ledger),
        "catalog": plan and attrs.asdict(plan),
        "run": {
            "submitted": counted.submitted,
            "accepted": counted.accepted,
            "adopted": counted.adopted,
            "unknown": counted.unknown,
            "settled": counted.settled_by_callback + counted.settled_by_poll,
            "failed": counted.failed,
            "timed_out": counted.timed_out,
            "polls": counted.polls,
            "possible_double_charges": counted.possible_double_charges,
            "seconds": round(result.seconds, 3),
        },
        "saving": None if result.options.is_saving_off else _saving_facts(result, counts),
        "credits": None if result.credits is None else float(result.credits),
        "states": None,
        "accepted": None,
        "unknown": None,
        "failures": [],
        "unknown_submits": [],
        "existing": [],
        "resume": resume,
        "error": failure and failure.facts,
    }
    if counts is not None:
        facts |= {
            "states": {state.value: counts.tally.of(state) for state in TrackState},
            "accepted": counts.opening.accepted,
            "unknown": len(counts.opening.unknown),
            "failures": [
                {
                    "reason": entry.reason,
                    "count": entry.count,
                    "music_task_id": entry.example.music_task_id,
                    "audio_id": entry.example.audio_id,
                }
                for entry in counts.failures
            ],
            "unknown_submits": [
                {
                    "attempt_id": unknown.attempt_id,
                    "music_task_id": unknown.track.music_task_id,
                    "audio_id": unknown.track.audio_id,
                    "at": unknown.at.isoformat(),
                    "callback_task_id": counts.opening.callback_tasks.get(unknown.attempt_id),
                }
                for unknown in counts.unknown_submits
            ],
            "existing": [
                {
                    "attempt_id": one.attempt_id,
                    "music_task_id": one.track.music_task_id,
                    "audio_id": one.track.audio_id,
                }
                for one in counts.existing
            ],
        }
    return facts


def _saving_facts(result: RunResult, counts: RunCounts | None) -> dict[str, object]:
    saver = result.saver
    return {
        "folder": str(result.options.folder),
        "saved": 0 if saver is None else saver.files,
        "bytes": 0 if saver is None else saver.bytes,
        "unsaved": counts and counts.tally.unsaved,
        "expired": counts and counts.tally.expired,
        "damaged": [str(one.path) for one in result.lost],
        "reasons": [
            {
                "reason": entry.reason,
                "count": entry.count,
                "message": entry.message,
                "music_task_id": entry.example.music_task_id,
                "audio_id": entry.example.audio_id,
            }
            for entry in _unsaved(result)
        ],
    }
