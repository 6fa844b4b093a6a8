"""``kie-wav resolve``: the user's word on submits of unknown outcome, kept in their ledger."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from typing import TYPE_CHECKING, Final

import attrs

from kie_wav_async import errors
from kie_wav_async.callbacks.callback_url import find_attempt
from kie_wav_async.cli.common.output import (
    DONE,
    USAGE,
    CliError,
    say,
)
from kie_wav_async.cli.common.shell import join
from kie_wav_async.cli.report.catalog_report import ids_of, verify_ledger
from kie_wav_async.cli.report.render import moment, name_of, short_of
from kie_wav_async.cli.report.resolve_list import (
    Resolution,
    print_list,
    read_resolutions,
    verify_resolution,
)
from kie_wav_async.cli.report.resolve_output import Case, show, show_all
from kie_wav_async.ledger import (
    AttemptEntry,
    AttemptOutcome,
    LedgerEntry,
    SqliteLedger,
    TrackState,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kie_wav_async import TaskRecord, UnknownSubmit, WavSession
    from kie_wav_async.cli.common.session_factory import Service
    from kie_wav_async.ledger import RecoveryState

# How many unknown submits an error lists.
_LISTED: Final = 20
# How many tasks are asked about, and how many words written, at a time.
_ASKED: Final = 8
_WRITTEN: Final = 500


@attrs.frozen(kw_only=True)
class Choice:
    """
    Which submits are meant, and what is said of them; one of the first three is given.

    Attributes:
        attempt: One of them, or the beginning of its id.

        list_name: A list of submits and words; ``-`` for stdin.

        is_all: All that are unknown, within the times.

        task_id: The task that the one created.

        not_charged: They created nothing.

        after: Only what is unknown since this moment or later; `None` for no limit.

        before: Only what is unknown since before this moment; `None` for no limit.

        is_dry: Change nothing.
    """

    attempt: str | None = None
    list_name: str | None = None
    is_all: bool = False
    task_id: str | None = None
    not_charged: bool = False
    after: dt.datetime | None = None
    before: dt.datetime | None = None
    is_dry: bool = False

    @property
    def is_by_time(self) -> bool:
        """Whether they are chosen as all, or by time."""
        return self.is_all or self.after is not None or self.before is not None

    def verify(self) -> None:
        """
        Return if the options go together.

        Raises:
            CliError: They do not.
        """
        ways = (self.attempt is not None, self.list_name is not None, self.is_by_time)
        if sum(ways) > 1:
            msg = "name one ATTEMPT, or give a --list, or choose with --all, --before and --after"
        elif self.list_name is not None and (self.task_id is not None or self.not_charged):
            msg = "a --list says itself what came of each submit: leave out the other words"
        elif self.attempt is not None and (self.task_id is not None) == self.not_charged:
            msg = (
                "say one of the two: --task-id with the id of its task if KIE's logs have the "
                "submit, --not-charged if they have not"
            )
        elif self.is_by_time and (self.task_id is not None or not self.not_charged):
            msg = "of several at once only --not-charged can be said; a --list can name tasks"
        elif not any(ways) and (self.task_id is not None or self.not_charged or self.is_dry):
            msg = "name the ATTEMPT, or give a --list, or say --all"
        else:
            return
        raise CliError(USAGE, msg)


def read_choice(path: Path, choice: Choice) -> tuple[list[Resolution], int]:
    """
    Return what is said of which submits, and how many rows of a list say nothing.

    Args:
        path: The ledger.

        choice: Where that is said.

    Raises:
        CliError: The options do not go together, there is no ledger, or a word cannot be.
    """
    choice.verify()
    if choice.attempt is not None:
        verify_resolution(choice.attempt, choice.task_id)
    verify_ledger(path)
    if choice.attempt is not None:
        return [Resolution(choice.attempt, choice.task_id)], 0
    return ([], 0) if choice.list_name is None else read_resolutions(choice.list_name)


async def run_resolve(
    path: Path,
    choice: Choice,
    given: tuple[list[Resolution], int],
    service: Service | None,
    *,
    as_json: bool,
) -> int:
    """
    Write down what came of submits, and print where their tracks stand then.

    Args:
        path: The ledger.

        choice: Which, and what is said of them.

        given: What `read_choice` made of it.

        service: Where to ask about the tasks that are named; `None`: ask nobody.

        as_json: Print one JSON object.

    Raises:
        CliError: A word contradicts what the ledger or the service knows.

        KieWavError: The service gave no usable answer; nothing has changed.

        LedgerError: A run has the ledger open, or it cannot be read or written.
    """
    words, blanks = given
    if choice.attempt is None and choice.list_name is None and not choice.is_by_time:
        await print_list(path, as_json=as_json)
        return DONE
    ledger = SqliteLedger(path)
    opening = await ledger.open(time.time())
    try:
        if choice.is_by_time:
            cases = [await _case_of(ledger, one) for one in _chosen(opening, choice)]
        else:
            cases = [await _find(ledger, opening, path, word) for word in words]
        await _resolve(ledger, path, cases, choice, service)
        # Opened once more it tells what is left.
        left = (await ledger.open(time.time())).unknown
        await ledger.aclose()
    finally:
        await ledger.aclose()
    if choice.attempt is not None:
        show(path, cases[0], left, is_dry=choice.is_dry, as_json=as_json)
        return DONE
    return show_all(path, cases, left, blanks, is_dry=choice.is_dry, as_json=as_json)


async def _resolve(
    ledger: SqliteLedger,
    path: Path,
    cases: Sequence[Case],
    choice: Choice,
    service: Service | None,
) -> None:
    """Check what is said, write down what nothing contradicts, and look where the tracks stand."""
    _verify_distinct(cases)
    for case in cases:
        case.refusal = await _contradiction(ledger, case)
    if service is not None:
        await _ask(service, [c for c in cases if c.task_id is not None and not c.refusal])
    if choice.attempt is not None and (refusal := cases[0].refusal) is not None:
        raise refusal
    if not choice.is_dry:
        await _write(ledger, path, [case for case in cases if case.refusal is None])
    for case in cases:
        case.ledger_entry = await ledger.get(case.entry.track)


# --- which are meant ----------------------------------------------------------------------------


def _chosen(opening: RecoveryState, choice: Choice) -> list[UnknownSubmit]:
    """Return the unknown submits within the times."""
    return [
        one
        for one in opening.unknown
        if (choice.after is None or one.at >= choice.after)
        and (choice.before is None or one.at < choice.before)
    ]


async def _case_of(ledger: SqliteLedger, one: UnknownSubmit) -> Case:
    (entry,) = await ledger.find_attempts(one.attempt_id)
    return Case(entry, None)


async def _find(ledger: SqliteLedger, opening: RecoveryState, path: Path, word: Resolution) -> Case:
    """Return the submit that a word is about: unknown, existing, or with a word already."""
    name = word.attempt
    found: Sequence[AttemptEntry] = ()
    try:
        found = await ledger.find_attempts(name)
        if not found:
            found = await ledger.find_attempts(name.lower())
    except ValueError:
        pass  # No id is like that.
    fitting = [
        entry for entry in found if entry.outcome is not None and entry.outcome.can_be_resolved
    ] or [entry for entry in found if entry.resolved_from is not None]
    if len(fitting) == 1:
        return Case(fitting[0], word.task_id)
    if len(fitting) > 1:
        for entry in fitting[:_LISTED]:
            say(f"{entry.attempt_id}  {name_of(entry.track)}")
        msg = f"{len(fitting)} submits begin with {name}: name one of them"
        raise CliError(USAGE, msg, attempts=[e.attempt_id for e in fitting[:_LISTED]])
    facts = {"attempts": [one.attempt_id for one in opening.unknown[:_LISTED]]}
    if not opening.unknown:
        msg = f"{path} has no submit of unknown fate: there is nothing to resolve"
        raise CliError(USAGE, msg, **facts)
    for one in opening.unknown[:_LISTED]:
        say(f"{short_of(one, opening.unknown)}  {moment(one.at)} UTC  {name_of(one.track)}")
    if len(opening.unknown) > _LISTED:
        say(f"... and {len(opening.unknown) - _LISTED:,} more")
    msg = (
        f"no submit of unknown fate begins with {name}: name one of those listed. What the "
        "service has answered stays what it is"
    )
    raise CliError(USAGE, msg, **facts)


def _verify_distinct(cases: Sequence[Case]) -> None:
    seen: set[str] = set()
    for case in cases:
        if case.entry.attempt_id in seen:
            msg = f"{case.entry.attempt_id} is in the list twice: nothing has changed"
            raise CliError(USAGE, msg, attempt_id=case.entry.attempt_id)
        seen.add(case.entry.attempt_id)


# --- what contradicts ---------------------------------------------------------------------------


async def _contradiction(ledger: SqliteLedger, case: Case) -> CliError | None:
    """Return what the ledger says against a word, if it does."""
    entry, task_id = case.entry, case.task_id
    track, named = entry.track, entry.callback_task_id
    if named and named != task_id:
        msg = (
            f"KIE has called back for this very submit and named its task, {named}: it was "
            f"accepted. Say {join(('--task-id', named))}, or let `kie-wav bulk` find out"
        )
        return CliError(USAGE, msg, attempt_id=entry.attempt_id, callback_task_id=named)
    if task_id is None or task_id == entry.task_id:
        return None
    if task_id in {track.music_task_id, track.audio_id, entry.attempt_id}:
        msg = (
            f"{task_id} is an id of the track or of the attempt: --task-id is that of its "
            "conversion, from KIE's logs"
        )
        return CliError(USAGE, msg)
    other = await ledger.get_by_task(task_id)
    if other is None:
        return None
    if other.track == track:
        # What an answer called a repeat was made by this one, and what exists by any.
        is_found = case.base is AttemptOutcome.EXISTS_WITHOUT_ID
        if is_found or (other.is_adopted and other.task_id == task_id):
            return None
        msg = (
            f"task {task_id} was made by another submit of the same track: if KIE's logs have no "
            "second one, say --not-charged"
        )
    else:
        of = f"music task {other.track.music_task_id}, track {other.track.audio_id}"
        msg = f"task {task_id} is another track's ({of}): look the id up again"
    return CliError(USAGE, msg, **ids_of(other.track))


async def _ask(service: Service, cases: Sequence[Case]) -> None:
    """
    Have the service say whether the tasks can be those of their submits.

    Raises:
        CliError: There is no API key.

        KieWavError: It gave no usable answer.
    """
    if not cases:
        return
    advice = "To resolve without asking KIE, say --no-check"
    try:
        async with service.session() as session:
            for begin in range(0, len(cases), _ASKED):
                part = cases[begin : begin + _ASKED]
                await asyncio.gather(*(_compare(session, case) for case in part))
    except CliError as error:
        raise CliError(error.exit_code, f"{error}. {advice}") from error
    except errors.KieWavError:
        say(f"nothing has changed. {advice}")
        raise


async def _compare(session: WavSession, case: Case) -> None:
    assert case.task_id is not None  # noqa: S101 - only those with a task are asked about
    record = await session.get_task(case.task_id)
    reason = _objection(case, record)
    if reason is not None:
        facts = {"attempt_id": case.entry.attempt_id, **ids_of(case.entry.track)}
        case.refusal = CliError(USAGE, f"{reason}. Nothing has changed", **facts)


def _objection(case: Case, record: TaskRecord | None) -> str | None:
    """Return why the task of *record* is not that of a submit, if it is not."""
    task_id, entry = case.task_id, case.entry
    if record is None:
        return f"KIE knows no conversion {task_id}: look the id up again"
    if record.audio_id is not None and record.audio_id != entry.track.audio_id:
        return f"task {task_id} converts another track, {record.audio_id}: look the id up again"
    attempt_id = find_attempt(record)
    # What exists was there before our submit, and names another one.
    if case.base is AttemptOutcome.UNKNOWN and attempt_id not in {None, entry.attempt_id}:
        return f"task {task_id} was made by another submit, {attempt_id}: look the id up again"
    if record.audio_id is None and attempt_id != entry.attempt_id:
        return (
            f"KIE's record of task {task_id} does not tell which track it converts: if you are "
            "sure, say --no-check"
        )
    return None


# --- written ------------------------------------------------------------------------------------


async def _write(ledger: SqliteLedger, path: Path, cases: Sequence[Case]) -> None:
    now_unix_s = time.time()
    for begin in range(0, len(cases), _WRITTEN):
        part = cases[begin : begin + _WRITTEN]
        for case in part:
            entry = await ledger.get(case.entry.track)
            # Before it is written: whoever is killed between both has a file too few, not a
            # wrong one.
            if entry is not None and _is_wrong_file(case, entry):
                case.moved = _move(path, entry)
        await asyncio.gather(
            *(
                ledger.resolve(case.entry.attempt_id, now_unix_s, task_id=case.task_id or "")
                for case in part
            )
        )


def _is_wrong_file(case: Case, entry: LedgerEntry) -> bool:
    """Whether a track had a file of the task that an earlier word named."""
    submit = case.entry
    is_replaced = submit.resolved_from is not None and submit.task_id != (case.task_id or "")
    is_its = bool(submit.task_id) and entry.task_id == submit.task_id
    return is_replaced and is_its and entry.state is TrackState.SAVED


def _move(path: Path, entry: LedgerEntry) -> str | None:
    """Give a file of a wrong task another name, or the next run would take it for the right one."""
    assert entry.path is not None  # noqa: S101 - what is stored has a path
    file = path.parent / entry.path
    try:
        if not file.is_file():
            raise FileNotFoundError
        for number in range(1, 1_000):
            other = file.with_name(f"{file.name}.wrong{number if number > 1 else ''}")
            if not other.exists():
                file.rename(other)
                return str(other)
    except OSError:
        pass
    say(
        f"The file {entry.path} holds the WAV of task {entry.task_id}, which is not this "
        "track's: remove it before the next run, which would take it for the right one."
    )
    return None


# --- told ---------------------------------------------------------------------------------------
