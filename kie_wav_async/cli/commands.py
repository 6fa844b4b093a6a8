"""The commands of ``kie-wav``: thin, and made of public names only."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from kie_wav_async import __version__ as version
from kie_wav_async.cli.catalog_commands import bulk, report, resolve
from kie_wav_async.cli.common.listen import read_address
from kie_wav_async.cli.common.options import (
    accept_short_option,
    json_option,
    run_command,
    service_options,
)
from kie_wav_async.cli.common.output import DONE, INTERRUPTED, CliError, print_json, print_line
from kie_wav_async.cli.common.session_factory import Service, as_usage
from kie_wav_async.cli.common.streams import finish, printing
from kie_wav_async.cli.demo.demo import run_demo
from kie_wav_async.cli.demo.simulate import read_script, run_simulator
from kie_wav_async.cli.single.convert import run_convert
from kie_wav_async.cli.single.status import run_status
from kie_wav_async.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Sequence


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    # The commands tell what matters themselves, in one place and once.
    logging.getLogger("kie_wav_async").addHandler(logging.NullHandler())
    with printing():
        return finish(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(given: list[str]) -> int:
    try:
        result: object = cli.main(args=given, prog_name="kie-wav", standalone_mode=False, obj=given)
    except CliError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return result if isinstance(result, int) else DONE


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version, prog_name="kie-wav", message="%(prog)s %(version)s")
def cli() -> None:
    """
    Convert tracks of KIE.AI to WAV.

    The API key is read from the environment, KIE_API_KEY. Results are printed on
    stdout, progress and messages on stderr.

    \b
    Exit codes: 0 done, 1 a conversion failed or was not finished in time,
    --max-charges was reached, or a saved file is not what it was, 2 usage, 3 the
    service, the network or the disk got in the way, 4 a submit may or may not have
    been accepted, 130 interrupted.
    """  # noqa: D301 - \b keeps click from filling the lines


for _command in (bulk, report, resolve):
    cli.add_command(_command)


@cli.command()
@click.option(
    "--tracks", type=click.IntRange(1, 1000), default=12, show_default=True, help="How many."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the WAV files.  [default: a new kie-wav-demo]",
)
@json_option
def demo(tracks: int, out: Path | None, *, as_json: bool) -> int:
    """
    Convert some tracks at a simulated KIE, and save them.

    It loses every second callback, so that one half is settled by callback and
    the other by polling. Needs no key and no network, and costs nothing.
    """
    return run_command(run_demo(tracks, out, as_json=as_json), as_json=as_json)


@cli.command()
@click.argument("music_task_id")
@click.argument("audio_id")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Save the WAV as this new file; without it, its URL is printed.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait once the service has taken it.",
)
@click.option(
    "--listen",
    "address",
    metavar="HOST:PORT",
    callback=read_address,
    help="Wait for KIE's callback here, and poll only as a safety net.",
)
@click.option(
    "--callback-url",
    metavar="URL",
    help="Where KIE posts so that it gets to --listen.  [default: $KIE_CALLBACK_URL]",
)
@accept_short_option
@service_options
def convert(
    music_task_id: str,
    audio_id: str,
    *,
    output: Path | None,
    timeout_s: float,
    address: tuple[str, int] | None,
    callback_url: str | None,
    accept_short: bool,
    service: Service,
    as_json: bool,
) -> int:
    """
    Convert one track, which costs credits, and wait for the WAV.

    MUSIC_TASK_ID is the task that made the music, AUDIO_ID the track in it; see
    `kie-wav tracks`.

    With --listen the result is waited for by callback: KIE posts to
    --callback-url, and a reverse proxy or tunnel of yours brings it to HOST:PORT
    (plain http; any path). The webhook key of the account is read from the
    environment, KIE_WEBHOOK_HMAC_KEY; without it a callback only makes kie-wav
    ask KIE. Without --listen the result is polled for, whatever KIE_CALLBACK_URL
    says.
    """
    work = run_convert(
        service,
        (music_task_id, audio_id),
        output,
        timeout_s,
        address=address,
        callback_url=callback_url,
        accept_short=accept_short,
        as_json=as_json,
    )
    return run_command(work, as_json=as_json)


@cli.command()
@click.argument("task_id")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Save the WAV as this new file, which costs nothing.",
)
@accept_short_option
@service_options
def status(
    task_id: str,
    *,
    output: Path | None,
    accept_short: bool,
    service: Service,
    as_json: bool,
) -> int:
    """
    Show what has become of a conversion, and save its WAV with -o.

    TASK_ID is the one `kie-wav convert` told. Exits with 1 if the conversion
    failed, or if there is nothing to save yet.

    What `kie-wav convert -o` or a former -o has left of FILE is gone on with.
    """
    work = run_status(service, task_id, output, accept_short=accept_short, as_json=as_json)
    return run_command(work, as_json=as_json)


@cli.command()
@click.argument("music_task_id")
@service_options
def tracks(music_task_id: str, *, service: Service, as_json: bool) -> int:
    """
    List the tracks of a music task: audio id and title.

    They are apart by a tab where stdout is no terminal.
    """
    work = _tracks(service, music_task_id, as_json=as_json)
    return run_command(work, as_json=as_json)


async def _tracks(service: Service, music_task_id: str, *, as_json: bool) -> int:
    async with service.session() as session:
        with as_usage():
            found = await session.list_tracks(music_task_id)
    width = max((len(track.audio_id) for track in found), default=0)
    for track in found:
        if as_json:
            print_json(attrs.asdict(track))
        elif sys.stdout.isatty():
            print_line(f"{track.audio_id:<{width}}  {track.title or ''}".rstrip())
        else:
            print_line(track.audio_id, track.title or "")
    return DONE


@cli.command(name="credits")
@service_options
def credits_(*, service: Service, as_json: bool) -> int:
    """Show the credits of the account."""
    return run_command(_credits(service, as_json=as_json), as_json=as_json)


async def _credits(service: Service, *, as_json: bool) -> int:
    async with service.session() as session:
        left = await session.get_credits()
    if as_json:
        print_json({"credits": float(left)})
    else:
        print_line(f"{left:f}")
    return DONE


@cli.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address or name of this machine to listen at; 0.0.0.0 is every address. Anybody "
    "who can connect can use it.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port.  [default: any]")
@click.option(
    "--median",
    "median_s",
    type=float,
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Median conversion time.",
)
@click.option(
    "--speed",
    type=float,
    default=1.0,
    show_default=True,
    help="How many times as fast as the real service its time passes.",
)
@click.option("--seed", type=int, default=0, help="Decides ids and conversion times.")
@click.option(
    "--faults",
    callback=read_script,
    metavar="JSON|@FILE",
    help="What goes wrong: a list of objects; see kie_wav_async.simulator.Fault.",
)
@json_option
def simulate(speed: float, *, as_json: bool, **settings: Any) -> int:  # noqa: ANN401 - as above
    """
    Run a local KIE until Ctrl-C.

    Prints all the environment that kie-wav, or any program made with
    kie_wav_async, needs to convert, be called back and save files there. It
    calls back to addresses of this machine only.
    """
    work = _simulate(as_json=as_json, time_scale=speed, **settings)
    return run_command(work, as_json=as_json)


async def _simulate(*, as_json: bool, **settings: Any) -> int:  # noqa: ANN401 - Simulator's own
    with as_usage():
        simulator = Simulator(**settings)
    return await run_simulator(simulator, as_json=as_json)
