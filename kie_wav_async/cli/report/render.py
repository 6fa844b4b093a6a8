"""``kie-wav report``: what a ledger has to tell, as tables for people or as JSON for programs."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from kie_wav_async.cli.bulk.estimate import bytes_words, count_words
from kie_wav_async.cli.common.ledger_pages import pages
from kie_wav_async.cli.common.output import DONE, plain, print_json, print_line, stdout_console
from kie_wav_async.cli.common.progress import Display
from kie_wav_async.cli.common.streams import wait_for_room
from kie_wav_async.cli.report.catalog_report import (
    ids_of,
    resolve_all_commands,
    showing_warnings,
    survey,
    verify_ledger,
)
from kie_wav_async.ledger import SqliteLedger, TrackState
from kie_wav_async.protocol.api_constants import KIE_WAV

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Generator, Iterable, Sequence
    from pathlib import Path

    from kie_wav_async import Track, UnknownSubmit
    from kie_wav_async.cli.report.catalog_report import CatalogReport
    from kie_wav_async.ledger import LedgerEntry

# Whatever else is under way of a track: only what the service says it has deleted is left out.
_WITH_WAV: Final = tuple(state for state in TrackState if state is not TrackState.EXPIRED)

# How many are listed of what there may be any number of.
_LISTED: Final = 10

_MEANING: Final[dict[TrackState, str]] = {
    TrackState.PLANNED: "wanted, not submitted",
    TrackState.SUBMITTING: "a submit may be on the wire",
    TrackState.UNKNOWN: "a submit may have been accepted",
    TrackState.EXISTS_WITHOUT_ID: "converted before, under a task id that was not told",
    TrackState.ACCEPTED: "being converted",
    TrackState.SUCCEEDED: "converted, not saved",
    TrackState.SAVED: "converted and saved",
    TrackState.REJECTED: "rejected by the service; nothing was created",
    TrackState.FAILED: "the conversion failed",
    TrackState.EXPIRED: "converted, not saved, deleted by the service",
}


async def run_report(path: Path, *, as_json: bool) -> int:
    """
    Print what the ledger at *path* has to tell.

    Args:
        path: The ledger; a run may be under way with it.

        as_json: Print one JSON object.

    Raises:
        CliError: There is no such file.

        LedgerError: It cannot be read.
    """
    verify_ledger(path)
    with showing_warnings(), reading() as on_progress:
        found = await survey(SqliteLedger(path, read_only=True), path, time.time(), on_progress)
    if as_json:
        print_json(found.facts())
    else:
        _show(found, stdout_console())
    return DONE


async def run_urls(path: Path, *, as_json: bool) -> int:
    """
    Print a line for each WAV that may be at the service or is saved, however many there are.

    Args:
        path: The ledger; a run may be under way with it.

        as_json: Print one JSON object a line.

    Raises:
        CliError: There is no such file.

        LedgerError: It cannot be read.
    """
    verify_ledger(path)
    ledger = SqliteLedger(path, read_only=True)
    with showing_warnings():
        _ = await ledger.open(time.time())
    try:
        async for page in pages(ledger, _WITH_WAV):
            for entry in page:
                await wait_for_room()
                if entry.wav_url is not None:
                    _print_url(entry, as_json=as_json)
    finally:
        await ledger.aclose()
    return DONE


def _print_url(entry: LedgerEntry, *, as_json: bool) -> None:
    url = str(entry.wav_url)
    expires_at = entry.expires_at and entry.expires_at.isoformat()
    # Before it is stored, that is where it will be.
    file = entry.path if entry.state is TrackState.SAVED else None
    if as_json:
        facts = {"task_id": entry.task_id, "url": url, "expires_at": expires_at, "file": file}
        print_json({**ids_of(entry.track), **facts})
    else:
        print_line(*_cells(entry), url, expires_at or "", file or "")


@contextlib.contextmanager
def reading() -> Generator[Callable[[int, int], None]]:
    """
    Show on a terminal how far reading has come, while it lasts.

    What it returns is called with how many tracks were read, and how many there are.
    """
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    line = progress.add_task("reading", total=None)
    with Display(console, progress):
        yield lambda done, total: progress.update(line, completed=done, total=max(done, total))


def name_of(track: Track) -> str:
    """Name a track to people."""
    return track.title or track.audio_id


def moment(at: dt.datetime) -> str:
    """Write a time for people."""
    return f"{at:%Y-%m-%d %H:%M}"


def short_of(one: UnknownSubmit, among: Sequence[UnknownSubmit]) -> str:
    """Return as much of an attempt's id as tells it from all others, 8 characters at least."""
    others = [other.attempt_id for other in among if other.attempt_id != one.attempt_id]
    for length in range(8, len(one.attempt_id)):
        short = one.attempt_id[:length]
        if not any(other.startswith(short) for other in others):
            return short
    return one.attempt_id


def _cells(entry: LedgerEntry) -> tuple[str, str, str]:
    return entry.track.music_task_id, entry.track.audio_id, entry.task_id


# --- for people --------------------------------------------------------------------------


def _show(found: CatalogReport, console: Console) -> None:
    """Show tables to a person."""
    console.print(plain(f"{found.path} at {moment(found.at)} UTC"))
    rows = [(s.value, f"{found.states[s]:,}", _MEANING[s]) for s in TrackState if found.states[s]]
    rows.append(("in all", f"{sum(found.states.values()):,}", ""))
    _print_block(console, _table(("State", "Tracks>", ""), rows))
    _show_bill(found, console)
    _show_unknown(found, console)
    _show_existing(found, console)
    _show_reasons(found, console)
    _show_saved(found, console)
    _show_expiring(found, console)
    _show_times(found, console)


def _show_bill(found: CatalogReport, console: Console) -> None:
    doubtful, under_way = len(found.opening.unknown), len(found.in_progress())
    if not doubtful:
        _print_block(console, f"Charged: {count_words(found.accepted, 'conversion')}.")
        return
    at_most = count_words(found.at_most, "conversion")
    text = (
        f"Charged: at least {found.accepted:,} and at most {at_most}, "
        f"because the fate of {count_words(doubtful, 'submit')} is unknown."
    )
    if under_way:
        which = "It" if doubtful == 1 else f"{under_way:,} of them"
        verbs = ("is", "was") if under_way == 1 else ("are", "were")
        text += (
            f" {which} {verbs[0]} on the wire, or {verbs[1]} when the run was killed: the next run "
            "will tell."
        )
    _print_block(console, text)


def _show_unknown(found: CatalogReport, console: Console) -> None:
    unknown = found.unknown()
    if not unknown:
        return
    _print_block(
        console,
        "Submits of unknown fate. Look each up in KIE's logs: if it is there, name its task; "
        "if not, say that it was not charged.",
    )
    for one in unknown[:_LISTED]:
        _print_block(console, f"{name_of(one.track)}, since {moment(one.at)} UTC")
        if task_id := found.opening.callback_tasks.get(one.attempt_id):
            console.print(plain(f"  A callback named its task, {task_id}."))
        if len(unknown) == 1:
            for command in found.commands(one, short_of(one, found.opening.unknown)):
                # On one line, however long: it is there to be copied.
                console.print(plain(f"  {command}"), soft_wrap=True)
    _show_rest(console, len(unknown) - _LISTED)
    if len(unknown) > 1:
        write, read, none_of_them = resolve_all_commands(found.path)
        _print_block(console, "Several at once: fill in the list between these commands.")
        for command in (write, read):
            console.print(plain(f"  {command}"), soft_wrap=True)
        _print_block(console, "If KIE's logs have none of them:")
        console.print(plain(f"  {none_of_them}"), soft_wrap=True)


def _show_existing(found: CatalogReport, console: Console) -> None:
    existing = found.existing()
    if not existing:
        return
    _print_block(
        console,
        "Converted before, under task ids that KIE did not tell. Look each up in KIE's logs: if "
        "it is there, name its task; if not, the track is planned again.",
    )
    for one in existing[:_LISTED]:
        _print_block(console, name_of(one.track))
        if len(existing) == 1:
            for command in found.existing_commands(one):
                console.print(plain(f"  {command}"), soft_wrap=True)
    _show_rest(console, found.states[TrackState.EXISTS_WITHOUT_ID] - _LISTED)
    if len(existing) > 1:
        _print_block(console, "Several at once: fill in the list between these commands.")
        for command in resolve_all_commands(found.path)[:2]:
            console.print(plain(f"  {command}"), soft_wrap=True)


def _show_reasons(found: CatalogReport, console: Console) -> None:
    reasons = found.reasons()
    if not reasons:
        return
    rows = [
        (
            reason.state.value,
            f"{reason.count:,}",
            "" if reason.code is None else str(reason.code),
            reason.text,
            name_of(reason.example.track),
        )
        for reason in reasons[:_LISTED]
    ]
    columns = ("State|", "Tracks>", "Code>", "Reason", "For example~")
    _print_block(console, _table(columns, rows))
    _show_rest(console, len(reasons) - _LISTED)


def _show_saved(found: CatalogReport, console: Console) -> None:
    if not found.saved:
        return
    where = "" if found.folder is None else f" in {found.folder}"
    files, size = count_words(found.saved, "file"), bytes_words(found.saved_bytes)
    _print_block(console, f"Saved{where}: {files}, {size}.")


def _show_expiring(found: CatalogReport, console: Console) -> None:
    told = [
        f"{count:,} {what}"
        for count, what in (
            (found.expiring, "to be deleted by the service within 48 hours"),
            (
                found.overdue,
                f"past {KIE_WAV.retention_days} days by this machine's clock, perhaps still there",
            ),
            (found.expired, "deleted, as the service has said"),
            (found.ageless, "of unknown age"),
        )
        if count
    ]
    if not told:
        return
    _print_block(console, f"WAV files not saved: {', '.join(told)}.")
    if found.expiring:
        rows = [
            (moment(one.expires_at) if one.expires_at else "", one.task_id, name_of(one.track))
            for one in found.soonest()[:_LISTED]
        ]
        _print_block(console, _table(("Until (UTC)|", "Task|", "Track~"), rows))
        _show_rest(console, found.expiring - _LISTED)
        console.print(plain("`kie-wav status TASK` shows where a file is."))


def _show_times(found: CatalogReport, console: Console) -> None:
    p50, p99 = found.quantile(0.5), found.quantile(0.99)
    if p50 is None or p99 is None:
        return
    _print_block(
        console,
        f"From submit to result: {p50:,.1f} s (median), {p99:,.1f} s (99 of 100). The slowest:",
    )
    rows = [(f"{s:,.1f}", one.task_id, name_of(one.track)) for s, one in found.slowest()]
    _print_block(console, _table(("Seconds>", "Task|", "Track~"), rows))


def _show_rest(console: Console, count: int) -> None:
    if count > 0:
        console.print(plain(f"... and {count:,} more; see --json."))


def _print_block(console: Console, block: Table | str) -> None:
    """Print a table or a paragraph, and an empty line before it."""
    console.print()
    console.print(plain(block) if isinstance(block, str) else block)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """
    Return a table of *columns*, whose names may end in a mark.

    ``>`` marks numbers, ``|`` what must stay whole, ``~`` what may be cut to fit.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    lines = [[plain(cell) for cell in row] for row in rows]
    for place, column in enumerate(columns):
        name = column.rstrip(">|~")
        cells = [line[place] for line in lines]
        if column.endswith("~"):
            for cell in cells:  # To rich the column can be wrapped, so it gives way to others.
                cell.no_wrap, cell.overflow = True, "ellipsis"
        is_whole = column.endswith((">", "|"))
        table.add_column(
            name,
            justify="right" if column.endswith(">") else "left",
            overflow="fold",
            no_wrap=is_whole,
            min_width=max(map(cell_len, (name, *map(str, cells)))) if is_whole else None,
        )
    for line in lines:
        table.add_row(*line)
    return table
