"""Where in a catalog's folder a track's file goes: chosen once, and written down first."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from kie_wav_async._support.files import is_inside
from kie_wav_async.errors import DownloadError
from kie_wav_async.file_names import collision_key, file_name, unique_suffix
from kie_wav_async.ledger import Ledger

if TYPE_CHECKING:
    from kie_wav_async.ledger import LedgerEntry

# So many characters of what tells a track from all others, if the name itself does not.
_SUFFIXES: Final = (8, 16, 64)


@attrs.frozen
class FilePaths:
    """
    The places of a catalog's files.

    Attributes:
        folder: The catalog's.

        ledger: Knows which places are taken; open.

        template: What a file is called.
    """

    folder: Path
    ledger: Ledger
    template: str

    async def find(self, entry: LedgerEntry) -> str:
        """
        Return where a track's file is to be, relative to the folder.

        It is the place that it was given before, or else a new one: one that no other
        track has, and where nothing is that we did not save.

        Raises:
            DownloadError: No file can be made under any name of it.

            LedgerError: The ledger cannot be asked.
        """
        if entry.path is not None and is_inside(entry.path, on_any_system=False):
            return entry.path
        track = entry.track
        for length in (0, *_SUFFIXES):
            suffix = unique_suffix(track, length) if length else ""
            name = file_name(track, template=self.template, index=entry.index, suffix=suffix)
            _verify_encodable(name, entry)
            # What is there under a name with its track in it can only be ours.
            if not suffix and await asyncio.to_thread(os.path.lexists, self.folder / name):
                continue
            if await self.ledger.reserve_path(track, path=name, key=collision_key(name)):
                return name
        msg = f"{self.folder}: there is another file under every name for it"
        raise _failed(msg, entry) from FileExistsError(errno.EEXIST, "taken")


def _verify_encodable(name: str, entry: LedgerEntry) -> None:
    """
    Return if this system can make a file of that name.

    Raises:
        DownloadError: It cannot.
    """
    try:
        _ = os.fsencode(name)
    except UnicodeEncodeError as error:
        msg = f"the encoding of this system's file names has no {name[error.start]!a}"
        raise _failed(msg, entry) from OSError(errno.EILSEQ, "not encodable")


def _failed(message: str, entry: LedgerEntry) -> DownloadError:
    return DownloadError(message, reason="disk", task_id=entry.task_id or None, track=entry.track)
