"""
A catalog's manifest: which files it has, and what they must be.

``manifest.jsonl`` is in the catalog's folder and has one JSON object a line, in
the order of the ledger: ``music_task_id``, ``audio_id``, ``title``, ``file``
(relative to the folder), ``bytes``, ``sha256``, ``task_id``. It goes where the
files go, and may come back from there in any shape: what is read is not trusted.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
from typing import TYPE_CHECKING, Final, cast

import attrs

from kie_wav_async._support.files import is_inside, sync_folder
from kie_wav_async.cli.bulk.catalog_file import InvalidLine
from kie_wav_async.cli.common.output import USAGE, CliError
from kie_wav_async.ledger import TrackState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from kie_wav_async.ledger import Ledger, LedgerEntry

#: What it is called, in the catalog's folder.
MANIFEST: Final = "manifest.jsonl"

# A line is some hundred bytes.
_MAX_LINE: Final = 1 << 16
# No file is longer anywhere.
_MAX_BYTES: Final = (1 << 63) - 1
_DIGEST: Final = re.compile(r"[0-9A-Fa-f]{64}")
_BOM: Final = b"\xef\xbb\xbf"


@attrs.frozen(kw_only=True)
class Entry:
    """
    A file that was saved.

    Attributes:
        music_task_id: The music task of its track; ``""`` if that is not told.

        audio_id: The track in it; ``""`` if that is not told.

        title: The track's title; `None` without.

        file: Where it is, relative to the catalog's folder, and in it.

        bytes: Its size.

        sha256: Its SHA-256, in lower-case hex.

        task_id: The conversion it is the WAV of; ``""`` if that is not told.
    """

    music_task_id: str
    audio_id: str
    title: str | None
    file: str
    bytes: int
    sha256: str
    task_id: str


async def write_manifest(ledger: Ledger, folder: Path) -> int:
    """
    Write the manifest of what *ledger* has as stored, and return how many files that is.

    The one that is there stays until the new one is whole, and then gives way to it.
    If nothing is stored there is none, unless there was one: that is empty then.

    Args:
        ledger: Open.

        folder: The catalog's.

    Raises:
        LedgerError: The ledger cannot be read.

        OSError: The manifest cannot be written.
    """
    target = folder / MANIFEST
    page = await ledger.list_entries([TrackState.SAVED])
    if not page and not target.exists():
        return 0
    part = folder / f".{MANIFEST}.{secrets.token_hex(8)}.part"
    file, mode = _open_part(part)
    count = 0
    try:
        with file:
            while page:
                entries = [entry for one in page if (entry := entry_of(one)) is not None]
                await asyncio.to_thread(_append, file, entries)
                count += len(entries)
                page = await ledger.list_entries([TrackState.SAVED], after=page[-1].index)
            await asyncio.to_thread(_sync, file)
        part.chmod(mode)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    await asyncio.to_thread(sync_folder, folder)
    return count


def entry_of(entry: LedgerEntry) -> Entry | None:
    """Return the file of a stored track; `None` if it is not all known."""
    path, size, sha256 = entry.path, entry.bytes, entry.sha256
    if path is None or size is None or sha256 is None:
        return None
    return Entry(
        music_task_id=entry.track.music_task_id,
        audio_id=entry.track.audio_id,
        title=entry.track.title,
        file=path,
        bytes=size,
        sha256=sha256,
        task_id=entry.task_id,
    )


def _open_part(part: Path) -> tuple[BinaryIO, int]:
    """Make a new file for our eyes only; return the mode that new files have here, too."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    number = os.open(part, flags, 0o666)
    mode = os.fstat(number).st_mode & 0o777
    part.chmod(0o600)
    return os.fdopen(number, "wb"), mode


def _append(file: BinaryIO, entries: Sequence[Entry]) -> None:
    file.writelines(json.dumps(attrs.asdict(entry)).encode() + b"\n" for entry in entries)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


# --- reading ----------------------------------------------------------------------------------


def read_manifest(path: Path) -> Iterator[Entry | InvalidLine]:
    """
    Read a manifest line by line; memory does not grow with it.

    Lines with nothing on them are left out, and so are keys that are not ours.

    Args:
        path: Where it is.

    Raises:
        CliError: It cannot be opened or read.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_MAX_LINE + 1):
                number += 1
                is_cut = len(line) > _MAX_LINE
                while len(line) > _MAX_LINE and not line.endswith(b"\n"):
                    line = file.readline(_MAX_LINE + 1)
                if is_cut:
                    yield InvalidLine(number, f"it is longer than {_MAX_LINE:,} bytes")
                elif text := line.removeprefix(_BOM if number == 1 else b"").strip():
                    yield _parse_line(number, text)
    except OSError as error:
        raise CliError(USAGE, f"cannot read {path}: {error.strerror or error}") from error


def _parse_line(number: int, line: bytes) -> Entry | InvalidLine:
    try:
        found: object = json.loads(line.decode())
    except (ValueError, RecursionError):
        return InvalidLine(number, "it is not JSON")
    if not isinstance(found, dict):
        return InvalidLine(number, "it is not a JSON object")
    try:
        return _parse_entry(cast("dict[str, object]", found))
    except ValueError as error:
        return InvalidLine(number, str(error))


def _parse_entry(fields: dict[str, object]) -> Entry:
    file, size, sha256 = (fields.get(name) for name in ("file", "bytes", "sha256"))
    if not isinstance(file, str) or not file:
        msg = "it names no file"
        raise ValueError(msg)
    if not is_inside(file):
        msg = f"its file may be outside of the folder: {file[:120]!r}"
        raise ValueError(msg)
    if type(size) is not int or not 0 <= size <= _MAX_BYTES:
        msg = "its bytes are not a size"
        raise ValueError(msg)
    if not isinstance(sha256, str) or not _DIGEST.fullmatch(sha256):
        msg = "its sha256 is not 64 hex digits"
        raise ValueError(msg)
    title = fields.get("title")
    return Entry(
        music_task_id=_text(fields.get("music_task_id")),
        audio_id=_text(fields.get("audio_id")),
        title=title if isinstance(title, str) else None,
        file=file,
        bytes=size,
        sha256=sha256.lower(),
        task_id=_text(fields.get("task_id")),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
