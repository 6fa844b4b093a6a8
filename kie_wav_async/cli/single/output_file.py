"""The file that ``-o`` names: looked at before anything is paid, and filled in the end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from kie_wav_async.cli.common.output import (
    ACCEPT_SHORT,
    INTERRUPTED,
    SERVICE,
    CliError,
)
from kie_wav_async.cli.common.shell import status_command
from kie_wav_async.errors import DownloadError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kie_wav_async import Download, WavFile, WavSession
    from kie_wav_async.cli.common.progress import WaitDisplay

_AGAIN: Final = "`{save}` tries once more"
_AS_IT_IS: Final = f"`{{save}} {ACCEPT_SHORT}` does so"
_ELSEWHERE: Final = "`{show} -o FILE` saves it elsewhere"
_LOOK: Final = "`{show}` shows its URL"
# What to do about a file that is not saved, by the reason for that.
_NEXT: Final[Mapping[str, str]] = {
    "url-not-allowed": f"{_AGAIN}; if that host is one of your own, name it with --insecure-host",
    "not-a-wav": _LOOK,
    "too-large": _LOOK,
    "content-encoding": f"{_AGAIN}. Is there a proxy in between?",
    "disk": "`{save}` tries once more, to any place with room",
}


def verify_target(path: Path) -> None:
    """
    Return if a new file can be made at *path*, as far as that can be told before.

    What is there is never replaced: it may be the WAV of another track.

    Raises:
        ValueError: It cannot.
    """
    try:
        is_folder, is_in_folder = path.is_dir(), path.parent.is_dir()
        is_there = path.is_symlink() or path.exists()
    except OSError as error:  # A name may be too long, for instance.
        msg = f"{path} cannot be made: {error.strerror or error}"
        raise ValueError(msg) from error
    if path.name == "-" or is_folder:
        msg = f"{path} is not the name of a file"
        raise ValueError(msg)
    if not is_in_folder:
        msg = f"there is no folder {path.parent}"
        raise ValueError(msg)
    if is_there:
        msg = f"{path} is there already: choose another name, or remove it"
        raise ValueError(msg)
    if not os.access(path.parent, os.W_OK):
        msg = f"the folder {path.parent} may not be written to"
        raise ValueError(msg)


async def save(
    session: WavSession,
    wav: WavFile,
    path: Path,
    display: WaitDisplay,
    *,
    accept_short: bool = False,
) -> Download:
    """
    Save *wav* at *path*, and say what is unusual about it.

    Raises:
        CliError: It is not saved.
    """
    display.show_saving(path)
    try:
        download = await session.download(wav, path, accept_short=accept_short)
    except DownloadError as error:
        why = str(error)
        do_next = _AS_IT_IS if ACCEPT_SHORT in why else _NEXT.get(error.reason, _AGAIN)
        told = {"type": type(error).__name__, "reason": error.reason}
        raise _not_saved(wav, path, why, do_next, **told) from error
    if not display.is_fetched and not download.resumed:
        # A whole WAV file of that name is left alone, and may be another track's.
        raise _not_saved(wav, path, f"somebody has made {path} meanwhile", _ELSEWHERE)
    for note in download.notes:
        display.say(f"{path}: {note}")
    return download


def _not_saved(wav: WavFile, path: Path, why: str, do_next: str, **facts: object) -> CliError:
    do_next = do_next.format(
        save=status_command(wav.task_id, path), show=status_command(wav.task_id)
    )
    sentence = f"the WAV is made but not saved: {why}. Do not convert it again: {do_next}"
    if facts.get("reason") == "expired":
        sentence = f"KIE has deleted the WAV: {why}. A new conversion is a new charge"
    return CliError(SERVICE, sentence, **facts, **facts_of(wav))


def interrupted_saving(task_id: str, path: Path, download: Download | None) -> CliError:
    """Say what there is of a file, and how to get all of it."""
    if download is not None:
        return CliError(INTERRUPTED, f"interrupted; {path} is saved", task_id=task_id)
    part = path.with_name(f"{path.name}.part")
    does = f"goes on with {part}" if part.exists() else f"saves it as {path}"
    sentence = f"interrupted; the WAV is made: `{status_command(task_id, path)}` {does}"
    return CliError(INTERRUPTED, sentence, task_id=task_id)


def facts_of(wav: WavFile) -> dict[str, object]:
    """Return a WAV for JSON."""
    return {
        "task_id": wav.task_id,
        "music_task_id": wav.track and wav.track.music_task_id,
        "audio_id": wav.track and wav.track.audio_id,
        "url": str(wav.url),
        "settled_by": wav.settled_by,
        "expires_at": wav.expires_at and wav.expires_at.isoformat(),
    }


def file_facts_of(path: Path | None, download: Download | None) -> dict[str, object]:
    """Return a saved file for JSON; of none there is nothing to tell."""
    return {
        "file": None if path is None else str(path),
        "bytes": download and download.bytes,
        "sha256": download and download.sha256,
        "notes": download and download.notes,
    }
