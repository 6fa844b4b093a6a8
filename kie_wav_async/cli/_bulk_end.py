"""How ``kie-wav bulk`` ends: what there is, what is left, and what to do about it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import TYPE_CHECKING, Final

import attrs

from kie_wav_async import errors
from kie_wav_async.cli._bulk_books import Books, Ending, read_books
from kie_wav_async.cli._estimate import (
    Tally,
    bytes_words,
    count_words,
    duration_words,
    most_charges,
)
from kie_wav_async.cli._output import (
    DONE,
    INTERRUPTED,
    SERVICE,
    UNKNOWN,
    CliError,
    failure_of,
    print_json,
    without_advice,
)
from kie_wav_async.cli._output import FAILED as SOME_FAILED
from kie_wav_async.cli._shell import command_line
from kie_wav_async.cli._streams import OutputError
from kie_wav_async.cli._survey import resolve_all_commands, resolve_commands
from kie_wav_async.ledger import TrackState

if TYPE_CHECKING:
    from kie_wav_async.cli._bulk_display import BulkDisplay
    from kie_wav_async.cli._saver import Unsaved

# So many reasons are spelled out.
_REASONS: Final = 20


async def tell_ending(ending: Ending, display: BulkDisplay, *, as_json: bool) -> int:
    """Say how a run ended, and return its exit code."""
    books: Books | None = None
    is_moved = _is_moved(ending.stopped_by)
    try:
        books = await read_books(ending)
    except errors.LedgerError as error:  # If it cannot be read, that was said.
        is_moved = is_moved or _is_moved(error)
    failure = _failure(ending, books)
    if books is not None:
        _tell(ending, books, display)
    if isinstance(ending.stopped_by, errors.LedgerError):
        _tell_open(ending, display)
    if failure is not None:
        display.say(f"kie-wav: {failure}")
    resume = None
    if is_moved:
        display.say(
            f"Put the ledger {ending.order.ledger} back before you go on: with a new ledger "
            "everything would be paid again."
        )
    elif failure is not None and _is_left(ending, books):
        is_capped = _is_capped(ending, books)
        resume = ending.order.resume(
            is_planned=ending.plan is not None,
            is_capped=is_capped,
            is_reclaiming=ending.is_reclaiming,
        )
        if is_capped and books is not None:
            display.say(f"For all that is left, N would have to be {_enough(ending, books)}.")
        display.say(f"{ending.order.resume_words}:")
        display.say_as_is(f"  {resume}")
    code = DONE if failure is None else failure.exit_code
    if isinstance(ending.stopped_by, OutputError):
        ending.stopped_by.is_told = True
    elif as_json:
        with contextlib.suppress(OutputError):  # Who flushes it will see.
            print_json(_facts(ending, books, failure, resume))
    return code


def _is_moved(error: BaseException | None) -> bool:
    """Whether the ledger is not where it was: the same command would begin a new one."""
    return isinstance(error, errors.LedgerError) and "was moved" in str(error)


def _is_capped(ending: Ending, books: Books | None) -> bool:
    """Whether ``--max-charges`` keeps something from being sent."""
    if isinstance(ending.stopped_by, errors.ChargeLimitError):
        return True
    cap = ending.order.max_charges
    if books is None or cap is None or ending.stopped_by is not None:
        return False
    waiting = books.tally.planned + (books.tally.unknown if ending.order.resubmits else 0)
    return bool(waiting) and books.charges >= cap


def _enough(ending: Ending, books: Books) -> int:
    """Return a cap that all that is left would keep to."""
    return books.charges + most_charges(books.tally, resubmits=ending.order.resubmits)


# --- in words -----------------------------------------------------------------------------------


def _tell(ending: Ending, books: Books, display: BulkDisplay) -> None:
    say, tally = display.say, books.tally
    now = ending.counted.settled_by_callback + ending.counted.settled_by_poll
    say(
        f"{tally.converted:,} of {count_words(tally.total, 'track')} converted, {now:,} of them "
        f"in this run of {duration_words(ending.seconds)}."
    )
    if not ending.order.is_saving_off:
        _tell_saved(ending, tally, display)
    existing = tally.of(TrackState.EXISTS)
    if tally.failed:
        tries = "; --retry-failed tries again" * (tally.failed > existing)
        but = ", but not what KIE has" * (tally.failed > existing > 0)
        say(f"{count_words(tally.failed, 'track')} failed{tries}{but}:")
        for entry in books.failures[:_REASONS]:
            track = entry.example
            say(f"  {entry.count:,} x {entry.reason} ({track.music_task_id} {track.audio_id})")
        if len(books.failures) > _REASONS:
            say(f"  and {len(books.failures) - _REASONS:,} more reasons")
    if books.existing:
        _tell_existing(ending, books, display)
    if tally.expired:
        say(
            f"{count_words(tally.expired, 'WAV')} expired at KIE, as it says itself; "
            "--retry-expired tries each link once more, which is free, and converts again what "
            "is gone, which is charged again."
        )
    if books.opening.unknown:
        _tell_doubts(ending, books, display)
    accepted, unknown = books.opening.accepted, len(books.opening.unknown)
    charged = f"{accepted:,}"
    if unknown:
        charged = f"at least {accepted:,} and at most {accepted + unknown:,}, with those unknown"
    say(f"Charged for this catalog in all: {charged}.")
    if tally.unsaved or (ending.order.is_saving_off and tally.saved):
        display.say_as_is(f"The URLs of all WAVs: {_report(ending, '--urls')}")


def _tell_saved(ending: Ending, tally: Tally, display: BulkDisplay) -> None:
    say, saver = display.say, ending.saver
    now = size = 0
    if saver is not None:
        now, size = saver.files, saver.bytes
    sizes = f" ({bytes_words(size)})" if now else ""
    say(
        f"{count_words(tally.saved, 'WAV')} saved in {ending.order.folder}, {now:,} of them in "
        f"this run{sizes}."
    )
    if saver is not None and saver.noted:
        files = count_words(saver.noted, "of these WAVs has", "of these WAVs have")
        say(f"{files} something unusual, e.g. {saver.note}")
    unsaved = _unsaved(ending)
    if unsaved:
        count = count_words(sum(entry.count for entry in unsaved), "WAV")
        say(f"{count} could not be saved; the same command tries again, and pays nothing:")
        for entry in unsaved:
            track = entry.example
            say(
                f"  {entry.count:,} x {entry.reason}: {entry.message} "
                f"({track.music_task_id} {track.audio_id})"
            )
    if ending.lost:
        one = ending.lost[0]
        say(
            f"{count_words(len(ending.lost), 'file is', 'files are')} damaged and cannot be "
            f"renamed ({ending.order.folder / str(one.path)}): rename or delete it, and the same "
            "command saves it again, which is free."
        )


def _unsaved(ending: Ending) -> list[Unsaved]:
    return [] if ending.saver is None else ending.saver.unsaved


def _report(ending: Ending, *options: str) -> str:
    return command_line("report", ending.order.ledger, options=options)


def _tell_existing(ending: Ending, books: Books, display: BulkDisplay) -> None:
    count = books.tally.of(TrackState.EXISTS)
    tracks = count_words(count, "track has", "tracks have")
    if count == 1:
        tracks = f"{books.existing[0].track.music_task_id} {books.existing[0].track.audio_id} has"
    display.say(
        f"{tracks} a WAV at KIE that was there before. Look for its task in KIE's logs, then "
        "name it, or say --not-charged if there is none:"
    )
    if count == 1:
        _tell_command(ending, books.existing[0].attempt_id, None, display)
    else:
        _tell_list(ending, display)


def _tell_doubts(ending: Ending, books: Books, display: BulkDisplay) -> None:
    doubts, others = books.doubts, len(books.opening.unknown) - len(books.doubts)
    if doubts:
        words = "which task each has made"
        submits = count_words(len(doubts), "submit")
        if len(doubts) == 1:
            words = "which task it made, or --not-charged in place of --task-id"
            submits += f" ({doubts[0].track.music_task_id} {doubts[0].track.audio_id})"
        display.say(
            f"{submits} may or may not have been accepted. Look in KIE's logs, then say {words}:"
        )
    if len(doubts) == 1:
        (doubt,) = doubts
        named = books.opening.named.get(doubt.attempt_id)
        _tell_command(ending, doubt.attempt_id, named, display)
    elif doubts:
        _tell_list(ending, display)
        *_, none_of_them = resolve_all_commands(ending.order.ledger)
        display.say("If KIE's logs have none of them:")
        display.say_as_is(f"  {none_of_them}")
    if others:
        submits = count_words(others, "more submit" if doubts else "submit")
        display.say(
            f"{submits} may have been accepted too, of tracks that have a task since: see "
            f"`{_report(ending)}`"
        )


def _tell_command(ending: Ending, attempt_id: str, named: str | None, display: BulkDisplay) -> None:
    # Alone on its line: zsh reads no comments where commands are typed.
    display.say_as_is(f"  {resolve_commands(ending.order.ledger, attempt_id, named)[0]}")


def _tell_list(ending: Ending, display: BulkDisplay) -> None:
    """Name the commands for several at once: a list that is filled in between them."""
    write, read, _ = resolve_all_commands(ending.order.ledger)
    display.say_as_is(f"  {write}")
    display.say("Fill in the column task_id, a task id or not-charged, and read the list:")
    display.say_as_is(f"  {read}")


def _tell_open(ending: Ending, display: BulkDisplay) -> None:
    """Name the tasks that only this process may know."""
    if ending.open_tasks:
        display.say("These tasks are under way, and the ledger may lack some of them: keep the ids")
    for conversion in ending.open_tasks:
        track = conversion.track
        of = "" if track is None else f"{track.music_task_id} {track.audio_id}"
        display.say_as_is(f"  {conversion.task_id}  # {of}")


def _is_left(ending: Ending, books: Books | None) -> bool:
    """Whether the same command would find something to do."""
    if ending.plan is None or books is None or ending.stopped_by is not None:
        return True
    if _is_capped(ending, books):
        return True
    tally = books.tally
    if tally.unsaved and not ending.order.is_saving_off:
        return True
    return bool(tally.of(TrackState.PLANNED, TrackState.ACCEPTED, TrackState.SUBMITTING))


def _failure(ending: Ending, books: Books | None) -> CliError | None:
    """Return what is not good about the end, the most important of it."""
    match ending.stopped_by:
        case errors.KieWavError() as error:
            return _stop(ending, error, books)
        case asyncio.CancelledError():
            return CliError(INTERRUPTED, f"interrupted; {_rest(ending, books)}")
        case OutputError() as error:
            sentence = f"{error}: stopped; {_rest(ending, books)}"
            return CliError(error.exit_code, sentence)
        case _ if books is None:
            return CliError(SERVICE, "the ledger cannot be read")
        case _:
            failure = _shortfall(ending, books.tally)
            cap = ending.order.max_charges
            if failure is None or cap is None or not _is_capped(ending, books):
                return failure
            return CliError(failure.exit_code, f"{_cap_words(cap)}; {failure}")


def _shortfall(ending: Ending, tally: Tally) -> CliError | None:
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
    unsaved = tally.unsaved + tally.expired + len(ending.lost)
    if unsaved and not ending.order.is_saving_off:
        losses.append(f"{count_words(unsaved, 'WAV is', 'WAVs are')} not saved")
    return CliError(SOME_FAILED, " and ".join(losses)) if losses else None


def _stop(ending: Ending, error: errors.KieWavError, books: Books | None) -> CliError:
    told = failure_of(error)
    code, sentence, rest = told.exit_code, str(told), _rest(ending, books)
    match error:
        case errors.LedgerError():
            return told
        case errors.ChargeLimitError(max_charges=cap):
            # Nothing got in the way: it was asked for, and not all is converted.
            code = UNKNOWN if books is not None and books.tally.unknown else SOME_FAILED
            sentence = _cap_words(cap)
        case errors.InsufficientCreditsError(track=track):
            # What the library says of the charge is meant of this one submit.
            sentence = f"the service answered {error.code} {error.message!r}"
            if track is not None:
                sentence += f" to {track.music_task_id} {track.audio_id}, which was not charged"
            rest += ". Top up credits or raise the key's limit, and run it again"
        case errors.DownloadError():
            sentence = without_advice(error)
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


def _rest(ending: Ending, books: Books | None) -> str:
    """Say what goes on without us, and what waits."""
    if books is None:
        return "the same command goes on"
    tally = books.tally
    parts: list[str] = []
    if tally.in_flight:
        flying = count_words(tally.in_flight, "conversion goes", "conversions go")
        parts.append(f"{flying} on at KIE")
    if tally.unsaved and not ending.order.is_saving_off:
        parts.append(f"{count_words(tally.unsaved, 'WAV waits', 'WAVs wait')} to be saved")
    parts.append(count_words(tally.planned, "track is", "tracks are") + " left")
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


# --- as JSON ------------------------------------------------------------------------------------


def _facts(
    ending: Ending, books: Books | None, failure: CliError | None, resume: str | None
) -> dict[str, object]:
    plan, counted = ending.plan, ending.counted
    facts: dict[str, object] = {
        "ledger": str(ending.order.ledger),
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
            "seconds": round(ending.seconds, 3),
        },
        "saving": None if ending.order.is_saving_off else _saving_facts(ending, books),
        "credits": None if ending.credits is None else float(ending.credits),
        "states": None,
        "accepted": None,
        "unknown": None,
        "failures": [],
        "unknown_submits": [],
        "existing": [],
        "resume": resume,
        "error": failure and failure.facts,
    }
    if books is not None:
        facts |= {
            "states": {state.value: books.tally.of(state) for state in TrackState},
            "accepted": books.opening.accepted,
            "unknown": len(books.opening.unknown),
            "failures": [
                {
                    "reason": entry.reason,
                    "count": entry.count,
                    "music_task_id": entry.example.music_task_id,
                    "audio_id": entry.example.audio_id,
                }
                for entry in books.failures
            ],
            "unknown_submits": [
                {
                    "attempt_id": doubt.attempt_id,
                    "music_task_id": doubt.track.music_task_id,
                    "audio_id": doubt.track.audio_id,
                    "at": doubt.at.isoformat(),
                    "named_task_id": books.opening.named.get(doubt.attempt_id),
                }
                for doubt in books.doubts
            ],
            "existing": [
                {
                    "attempt_id": one.attempt_id,
                    "music_task_id": one.track.music_task_id,
                    "audio_id": one.track.audio_id,
                }
                for one in books.existing
            ],
        }
    return facts


def _saving_facts(ending: Ending, books: Books | None) -> dict[str, object]:
    saver = ending.saver
    return {
        "folder": str(ending.order.folder),
        "saved": 0 if saver is None else saver.files,
        "bytes": 0 if saver is None else saver.bytes,
        "unsaved": books and books.tally.unsaved,
        "expired": books and books.tally.expired,
        "damaged": [str(one.path) for one in ending.lost],
        "reasons": [
            {
                "reason": entry.reason,
                "count": entry.count,
                "message": entry.message,
                "music_task_id": entry.example.music_task_id,
                "audio_id": entry.example.audio_id,
            }
            for entry in _unsaved(ending)
        ],
    }
