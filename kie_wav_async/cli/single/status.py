"""``kie-wav status``: what became of a conversion, and its file."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kie_wav_async import TaskState, WavFile
from kie_wav_async.cli.common.output import DONE, FAILED, SERVICE, CliError, print_json, print_line
from kie_wav_async.cli.common.progress import WaitDisplay
from kie_wav_async.cli.common.session_factory import as_usage
from kie_wav_async.cli.single.output_file import (
    file_facts_of,
    interrupted_saving,
    save,
    verify_target,
)

if TYPE_CHECKING:
    from pathlib import Path

    from kie_wav_async import Download, TaskRecord
    from kie_wav_async.cli.common.session_factory import Service


async def run_status(
    service: Service, task_id: str, output: Path | None, *, accept_short: bool, as_json: bool
) -> int:
    """
    Print what has become of a conversion, and save its file if that is wanted.

    Args:
        service: Where to ask.

        task_id: The conversion.

        output: The file to save the WAV in; `None`: save nothing.

        accept_short: Save a file that has fewer bytes than it declares, too.

        as_json: Print one JSON object.

    Raises:
        CliError: There is no such conversion, or its file is not saved.

        KieWavError: The service gave no usable answer.
    """
    with as_usage():
        if output is not None:
            verify_target(output)
    display = WaitDisplay("asking KIE")
    download: Download | None = None
    try:
        with display:
            async with service.session(on_event=display.show_event) as session:
                with as_usage():
                    record = await session.get_task(task_id)
                if record is None:
                    raise _unknown(task_id)
                if output is not None and record.state is not TaskState.FAILED:
                    download = await save(
                        session, _file_of(record), output, display, accept_short=accept_short
                    )
    except asyncio.CancelledError:
        if output is None:
            raise
        raise interrupted_saving(task_id, output, download) from None
    shown = _facts(record)
    if output is not None:
        shown |= file_facts_of(None if download is None else output, download)
    if as_json:
        print_json(shown)
    else:
        for name, value in shown.items():
            if value is not None and name != "notes":  # Those were said.
                print_line(f"{name:<14}{value}")
    return FAILED if record.state is TaskState.FAILED else DONE


def _unknown(task_id: str) -> CliError:
    sentence = (
        f"the service knows no conversion {task_id}: check the id. A music task is not one, "
        "and the service forgets a conversion after two months"
    )
    return CliError(SERVICE, sentence, task_id=task_id)


def _file_of(record: TaskRecord) -> WavFile:
    if record.state is not TaskState.SUCCEEDED:
        sentence = f"nothing is saved: task {record.task_id} is not finished; ask again later"
        raise CliError(FAILED, sentence, task_id=record.task_id)
    if record.wav_url is None:
        sentence = (
            f"nothing is saved: KIE says that task {record.task_id} is finished, and not where "
            "its WAV is; ask again later"
        )
        raise CliError(SERVICE, sentence, task_id=record.task_id)
    return WavFile(
        task_id=record.task_id,
        url=record.wav_url,
        track=None,
        settled_by="poll",
        expires_at=None,
    )


def _facts(record: TaskRecord) -> dict[str, object]:
    return {
        "task_id": record.task_id,
        "state": record.state.value,
        "status": record.status,
        "url": record.wav_url and str(record.wav_url),
        "audio_id": record.audio_id,
        "created_at": record.created_at and record.created_at.isoformat(),
        "completed_at": record.completed_at and record.completed_at.isoformat(),
        "error_code": record.error_code,
        "error_message": record.error_message,
    }
