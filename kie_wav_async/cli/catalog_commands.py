"""The commands for whole catalogs: thin, and made of public names only."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kie_wav_async import OnUnknown
from kie_wav_async.cli.bulk.options import BulkOptions, read_poll, read_rate, read_template
from kie_wav_async.cli.bulk.run import run_bulk
from kie_wav_async.cli.common.listen import read_address
from kie_wav_async.cli.common.options import (
    accept_short_option,
    json_option,
    run_command,
    service_options,
    telling_failures,
)
from kie_wav_async.cli.common.session_factory import Service
from kie_wav_async.cli.common.streams import verify_stdout
from kie_wav_async.cli.report.render import run_report, run_urls
from kie_wav_async.cli.report.resolve import Choice, read_choice, run_resolve
from kie_wav_async.cli.report.verify import run_verify
from kie_wav_async.file_names import DEFAULT_TEMPLATE
from kie_wav_async.ledger import TrackState
from kie_wav_async.protocol.api_constants import KIE_WAV

if TYPE_CHECKING:
    from kie_wav_async.cli.common.session_factory import Service


@click.command()
@click.argument("catalog")
@click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder of the WAV files and of the ledger, made if it is not there.",
)
@click.option(
    "--ledger",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The ledger.  [default: DIR/kie-wav.sqlite3]",
)
@click.option(
    "--new-ledger",
    is_flag=True,
    help="Begin a new ledger where one is lost, or take the one that is there in its place: what "
    "the lost one knew is converted again, which is charged again.",
)
@click.option(
    "--listen",
    "address",
    metavar="HOST:PORT",
    callback=read_address,
    help="Wait for KIE's callbacks here, and poll less.",
)
@click.option(
    "--callback-url",
    metavar="URL",
    help="Where KIE posts so that it gets to --listen.  [default: $KIE_CALLBACK_URL]",
)
@click.option(
    "--on-unknown",
    # By name or by value, which clicks do not agree on: they differ in nothing but case.
    type=click.Choice(list(OnUnknown), case_sensitive=False),
    default=OnUnknown.RAISE,
    show_default=True,
    help="What to do with a submit that may have been accepted: ask you, or send it once more, "
    "which may be charged twice.",
)
@click.option(
    "--max-charges",
    type=click.IntRange(min=1),
    metavar="N",
    help="Stop before there are more submits accepted or unknown, over all runs.",
)
@click.option(
    "--rate",
    default="20/10",
    show_default=True,
    metavar="COUNT/SECONDS",
    callback=read_rate,
    help="At most so many submits in any so many seconds.",
)
@click.option(
    "--max-in-flight",
    type=click.IntRange(min=1),
    default=400,
    show_default=True,
    metavar="N",
    help="At most so many conversions at a time.",
)
@click.option(
    "--poll",
    metavar="FIRST,INTERVAL[,MAX_PER_S]",
    callback=read_poll,
    help="Seconds to the first poll of a conversion, and between polls; polls a second in all.  "
    "[default: 15,10,30]",
)
@click.option(
    "--filename-template",
    "filename_template",
    default=DEFAULT_TEMPLATE,
    show_default=True,
    metavar="TEMPLATE",
    callback=read_template,
    help="What a file is called: {title}, {music_task_id}, {audio_id} and {index}, or {index:06}, "
    "stand for what is known of its track. What has its name keeps it.",
)
@click.option(
    "--max-downloads",
    type=click.IntRange(min=1, max=8),
    default=4,
    show_default=True,
    metavar="N",
    help="Save at most so many files at a time, 1 to 8.",
)
@click.option(
    "--no-download",
    is_flag=True,
    help=f"Save no WAV files: KIE keeps each for {KIE_WAV.retention_days} days, and the same "
    "command without this saves them.",
)
@click.option("--skip-invalid", is_flag=True, help="Leave bad lines out of the catalog.")
@accept_short_option
@click.option(
    "--retry-failed",
    is_flag=True,
    help="Convert again what failed; each may be a new charge.",
)
@click.option(
    "--retry-expired",
    is_flag=True,
    help="Try the links of expired WAVs once more, free, and convert again what KIE has deleted; "
    "each of those is a new charge.",
)
@service_options
@click.pass_obj
def bulk(
    given: list[str],
    /,
    catalog: str,
    folder: Path,
    ledger: Path | None,
    *,
    no_download: bool,
    retry_failed: bool,
    retry_expired: bool,
    service: Service,
    as_json: bool,
    **settings: Any,  # noqa: ANN401 - as the options above read them, by the names of BulkOptions
) -> int:
    """
    Convert a catalog, save its WAV files, and go on where the last run stopped.

    CATALOG is CSV with the header music_task_id,audio_id[,title], JSON lines with
    the same keys, or - for stdin. A row with an empty audio_id stands for every
    track of its music task. KIE's own spellings (taskId, audioId) and saved
    responses of KIE for music tasks are accepted too.

    All of it is written into the ledger first, and nothing is converted if a line
    is bad. The ledger knows what was submitted, so that no track is paid twice:
    after Ctrl-C, a crash or an empty account the same command goes on.

    The files are saved meanwhile, the oldest first. A file that has its name is
    whole; until then it is NAME.part. A file that is missing or damaged by the
    next run is saved again.

    One line is printed on stdout for each file saved, unless it is a terminal:
    music task, audio id, conversion task and the file's path in DIR, apart by
    tabs; with --no-download one for each track converted, with the URL instead.
    With --json there is one object at the end instead.
    """
    if no_download and retry_expired:
        msg = "--retry-expired fetches each file once more before it pays: leave --no-download out"
        raise click.UsageError(msg)
    options = BulkOptions(
        catalog=catalog,
        folder=folder,
        ledger=ledger or folder / "kie-wav.sqlite3",
        is_saving_off=no_download,
        retried=[
            *[state for state in TrackState if state.is_failure and retry_failed],
            *[TrackState.EXPIRED] * retry_expired,
        ],
        given=given,
        **settings,
    )
    work = run_bulk(service, options, as_json=as_json)
    resume = options.resume_words, options.resume(is_planned=False)
    return run_command(work, as_json=as_json, resume=resume)


@click.command()
@click.argument("ledger", type=click.Path(path_type=Path))
@click.option("--urls", is_flag=True, help="Print a line for each WAV instead.")
@click.option(
    "--verify", is_flag=True, help="Read every saved file instead, and say whether it is unchanged."
)
@click.option(
    "--out",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="With --verify: where the files are.  [default: the folder of LEDGER]",
)
@json_option
def report(ledger: Path, *, urls: bool, verify: bool, folder: Path | None, as_json: bool) -> int:
    """
    Show what a ledger has to tell, while `kie-wav bulk` runs or afterwards.

    How many tracks stand where, what was charged at least and at most, which
    submits are of unknown fate and how to resolve them, why tracks came to
    nothing, what is saved, which WAV files are about to be deleted, and how long
    conversions took. Changes nothing, needs neither key nor network, and exits
    with 0 whatever it shows.

    In a pipe it prints lines of cells, apart by tabs.

    With --urls there is one line for each WAV that may be at KIE or is saved: music task,
    audio id, conversion task, URL, when KIE deletes it, if that is known, and the
    file, if it is saved. With --json as well it is one object a line.

    With --verify every saved file is read and compared with the size and SHA-256
    that it was saved with. There is one line for each, as of `sha256sum -c`: NAME:
    OK, NAME: FAILED, or NAME: FAILED open or read. LEDGER may be a manifest.jsonl
    then, or a folder that has one. Exits with 1 if a file is not as it was saved.
    """
    if verify and urls:
        msg = "--urls and --verify do not go together"
        raise click.UsageError(msg)
    if folder is not None and not verify:
        msg = "--out is where --verify finds the files: without that it has no meaning"
        raise click.UsageError(msg)
    if verify:
        return run_command(run_verify(ledger, folder, as_json=as_json), as_json=as_json)
    work = (run_urls if urls else run_report)(ledger, as_json=as_json)
    return run_command(work, as_json=as_json)


def _read_time(_: click.Context, option: click.Parameter, value: str | None) -> dt.datetime | None:
    """Return a time, UTC unless it says otherwise."""
    if value is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(value)
    except ValueError as error:
        msg = f"{value!r} is no time: write 2026-01-31, 2026-01-31T14:05 or 2026-01-31T14:05+02:00"
        raise click.BadParameter(msg, param=option) from error
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment


@click.command()
@click.argument("ledger", type=click.Path(path_type=Path))
@click.argument("attempt", required=False)
@click.option("--task-id", metavar="ID", help="It was accepted: the id of its task.")
@click.option("--not-charged", is_flag=True, help="It was not: the track may be submitted again.")
@click.option(
    "--list",
    "list_name",
    metavar="FILE",
    help="Resolve what is in this list; - for stdin.",
)
@click.option("--all", "is_all", is_flag=True, help="With --not-charged: all that are unknown.")
@click.option(
    "--after",
    metavar="TIME",
    callback=_read_time,
    help="With --not-charged: all that are unknown since this time or later (ISO 8601; UTC).",
)
@click.option(
    "--before",
    metavar="TIME",
    callback=_read_time,
    help="With --not-charged: all that are unknown since before this time (ISO 8601; UTC).",
)
@click.option("--no-check", is_flag=True, help="Do not ask KIE about the tasks that are named.")
@click.option("--dry-run", "is_dry", is_flag=True, help="Show what would be done; change nothing.")
@service_options
def resolve(
    ledger: Path,
    attempt: str | None,
    *,
    no_check: bool,
    service: Service,
    as_json: bool,
    **choice: Any,  # noqa: ANN401 - as the options above read them, by the names of Choice
) -> int:
    """
    Say what came of submits of unknown outcome.

    ATTEMPT is the id of one, as `kie-wav report LEDGER` lists it, or the first 6 or
    more characters of it; that of a track that exists at KIE, under a task id that
    was not told, will do as well. Look the track up in KIE's logs first: if a
    conversion of it is there from that time, say --task-id, else --not-charged. Use
    --not-charged only if you are certain: a mistake causes a second charge.

    KIE is asked about each task that is named: it must exist, and be of this track.
    With --no-check, and for --not-charged, neither key nor network is needed.

    Without ATTEMPT and options all that need a word are printed, as CSV to be filled
    in: a task id, or not-charged, in the column task_id. --list takes it then; a row
    left empty stays unknown.

    A word that was wrong is corrected by another one. If a WAV of the wrong task
    was saved, its file gets another name. `kie-wav bulk` then goes on with the
    tracks.

    Exits with 0, or for several at once with 4 if some are still unknown, and with 1
    if a word was refused.
    """
    asked = None if no_check else service
    chosen = Choice(attempt=attempt, **choice)
    with telling_failures(as_json=as_json):
        verify_stdout()
        # In no event loop, where a stdin that says nothing would keep Ctrl-C from being heard.
        given = read_choice(ledger, chosen)
    work = run_resolve(ledger, chosen, given, asked, as_json=as_json)
    return run_command(work, as_json=as_json)
