"""``kie-wav convert``: one track, from its submit to its file."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kie_wav_async import Track
from kie_wav_async.cli.common.listen import listen, read_listening
from kie_wav_async.cli.common.output import (
    DONE,
    INTERRUPTED,
    CliError,
    print_json,
    print_line,
    print_path,
)
from kie_wav_async.cli.common.progress import WaitDisplay
from kie_wav_async.cli.common.session_factory import as_usage
from kie_wav_async.cli.common.shell import status_command
from kie_wav_async.cli.common.streams import OutputError, flush
from kie_wav_async.cli.single.output_file import (
    facts_of,
    file_facts_of,
    interrupted_saving,
    save,
    verify_target,
)

if TYPE_CHECKING:
    from pathlib import Path

    from kie_wav_async import Download, WavFile, WavSession
    from kie_wav_async.cli.common.session_factory import Service


async def run_convert(
    service: Service,
    ids: tuple[str, str],
    output: Path | None,
    timeout_s: float,
    *,
    address: tuple[str, int] | None,
    callback_url: str | None,
    accept_short: bool,
    as_json: bool,
) -> int:
    """
    Convert one track and print where it is.

    Args:
        service: Where to convert it.

        ids: The music task, and the track in it.

        output: The file to save it in; `None`: print its URL.

        timeout_s: How long to wait once the service has taken it.

        address: The host and port to wait for the callback at; `None`: poll only.

        callback_url: Where the service posts to get there; `None`: as in the environment.

        accept_short: Save a file that has fewer bytes than it declares, too.

        as_json: Print one JSON object.

    Raises:
        CliError: It did not come to its end.

        KieWavError: It did not come to its end at the service.
    """
    listening = read_listening(address, callback_url)
    with as_usage():
        track = Track(*ids)
        if output is not None:
            verify_target(output)  # Before anything is paid for.
    display = WaitDisplay("submitting")
    session = service.session(
        listening.callback_url if listening else "",
        timeout_s=timeout_s,
        on_event=display.show_event,
    )
    wav: WavFile | None = None
    download: Download | None = None
    try:
        with display:
            # Listening first: a callback may come before the submit's answer.
            async with session, listen(session, listening):
                if listening is not None:
                    display.show_listening(listening)
                try:
                    wav = await session.convert(track)
                except asyncio.CancelledError:
                    display.show_interrupted()
                    raise
                if output is not None:
                    download = await save(session, wav, output, display, accept_short=accept_short)
    except asyncio.CancelledError:
        raise _interrupted(session, wav, output, download) from None
    try:
        if as_json:
            print_json({**facts_of(wav), **file_facts_of(output, download)})
        elif output is not None:
            print_path(output)
        else:
            print_line(wav.url)
        await flush()
    except OutputError as error:  # It is paid for.
        error.resume = "The conversion is done; see it with", status_command(wav.task_id)
        raise
    return DONE


def _interrupted(
    session: WavSession, wav: WavFile | None, output: Path | None, download: Download | None
) -> CliError:
    """Say what goes on although we stop."""
    if wav is not None and output is not None:
        return interrupted_saving(wav.task_id, output, download)
    task_ids = [conversion.task_id for conversion in session.conversions()]
    if wav is not None:
        task_ids = [wav.task_id]
        sentence = f"interrupted; the WAV is made: `{status_command(wav.task_id)}` shows its URL"
    elif task_ids:
        ask = status_command(task_ids[0], output)
        sentence = f"interrupted; task {task_ids[0]} goes on: `{ask}`"
    elif session.unknown_submits():
        sentence = "interrupted; the submit may have been accepted: look it up in KIE's logs"
    else:
        sentence = "interrupted; nothing is under way"
    return CliError(INTERRUPTED, sentence, task_id=task_ids[0] if task_ids else None)
