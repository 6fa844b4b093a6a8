"""
What is written beside a part of a file: whose bytes it has, and how many are good.

It may have been written by a process that died, or by anybody: what is read of it is
checked, and believed only as far as this machine can vouch for it.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import cast

import attrs

from kie_wav_async.downloads.http_range import strong_etag


@attrs.define
class PartMetadata:
    """
    What is written beside a part: what its bytes are bytes of, and how many are good.

    Attributes:
        task_id: The conversion task.

        etag: The strong tag of the version.

        total: Its length; `None` if it is not told.

        written: How many bytes there are for as long as the machine runs.

        synced: How many there are whatever becomes of it; at most *written*.

        boot_id: Names the run of the machine; ``""`` where that has no name.
    """

    task_id: str
    etag: str
    total: int | None
    written: int
    synced: int
    boot_id: str

    def encode(self) -> bytes:
        """Return it as it is written."""
        return json.dumps(attrs.asdict(self)).encode() + b"\n"

    @property
    def good(self) -> int:
        """How many bytes can be gone on with."""
        return self.written if self.boot_id and self.boot_id == this_boot() else self.synced


def parse_part_metadata(text: bytes) -> PartMetadata | None:
    """Return what a note says, if that makes sense."""
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    fields = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    match fields:
        case {
            "task_id": str(task_id),
            "etag": str(etag),
            "total": total,
            "written": int(written),
            "synced": int(synced),
            "boot_id": str(boot_id),
        }:
            pass
        case _:
            return None
    # A bool is an int, and no count.
    if not (total is None or type(total) is int) or {type(written), type(synced)} != {int}:
        return None
    if not 0 <= synced <= written or strong_etag(etag) is None:
        return None
    if total is not None and written > total:
        return None
    return PartMetadata(task_id, etag, total, written, synced, boot_id)


@functools.cache
def this_boot() -> str:
    """Name this run of the machine; `""` where it has no name."""
    # Source: the manual page proc(5), "/proc/sys/kernel/random/boot_id".
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
