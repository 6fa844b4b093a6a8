"""
The files of a catalog that is being saved: moments to die at, and what must hold of them.

The moments are those before and after each call to the system about a file that is
not whole, in words of `disk`; the manifest's part is a ``list``. What a file must be
is known before it is there: a track has the same sound in all lives.
"""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from disk import Disk
from kie_wav_async.cli.bulk.manifest import Entry, InvalidLine, read_manifest
from kie_wav_async.downloads import part_file, transfer
from kie_wav_async.file_names import collision_key
from kie_wav_async.simulator.wav import tone_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

#: How long a file plays: some are a block, some are a few.
WAV_S = (0.02, 0.2)

#: So much is written at a time, and so much is synced, in these lives.
BLOCK = 1 << 13
SYNC_EVERY = 1 << 14

#: Calls that change what is on the disk, or have it stay there.
CHANGES = (
    "open part",
    "fchmod part",
    "ftruncate part",
    "open note",
    "fchmod note",
    "write note",
    "replace note",
    "ftruncate note",
    "write part",
    "fsync part",
    "unlink note",
    "replace part",
    "fsync folder",
    "open list",
    "fsync list",
    "replace list",
)
SAVING = (
    *(
        f"{what}: {moment}"
        for what in ("reserve_path", "mark_saved")
        for moment in ("asked", "written", "committed", "told")
    ),
    *(f"{what}: {moment}" for what in CHANGES for moment in ("next", "done")),
    "downloaded: told",  # To whoever listens, and not to the ledger yet.
)

#: Those that leave nothing behind that another one does not.
SAVING_NEXT = tuple(f"{what}: next" for what in CHANGES)

#: Left for good by a death before a manifest has its name: nobody knows what it was called.
NAMELESS = re.compile(r"\.manifest\.jsonl\.[0-9a-f]{16}\.part")

MANIFEST = "manifest.jsonl"
LEDGER = frozenset(f"kie-wav.sqlite3{suffix}" for suffix in ("", "-wal", "-shm", ".lock"))


class CatalogDisk(Disk):
    """Watches the files of a catalog, and its manifest; its ledger has moments of its own."""

    def _role(self, path):
        role = super()._role(path)
        if role in {None, "folder"} or isinstance(path, int):
            return role
        name = Path(path).name
        if MANIFEST in name:
            return "list"
        return None if name in LEDGER else role


def watch_files(folder: Path, at: Callable[[str], object]) -> None:
    """Come to what is done with the files in *folder*, which are written in small pieces."""
    part_file.SYNC_EVERY, transfer._BLOCK = SYNC_EVERY, BLOCK
    disk = CatalogDisk(folder, setattr)

    def before(point: str) -> int | None:
        at(f"{point}: next")
        # So that there is something between them, however the pieces came.
        return BLOCK if point == "write part" else None

    disk.before = before
    disk.after = lambda point: at(f"{point}: done")


# --- what must hold -----------------------------------------------------------------------------


@functools.cache
def sound_of(music_task_id: str, audio_id: str) -> tuple[int, str]:
    """Return the size and the SHA-256 of the file that the service has of a track."""
    body = tone_of(music_task_id, audio_id, *WAV_S).render()
    return len(body), hashlib.sha256(body).hexdigest()


@attrs.frozen
class Place:
    """Where a ledger has the file of a track; without a size it is not there yet."""

    path: str
    size: int | None
    sha256: str | None
    task_id: str | None

    @property
    def is_stored(self) -> bool:
        """Whether the ledger says that the file is there."""
        return self.size is not None


def read_places(db: sqlite3.Connection) -> dict[tuple[str, str], Place]:
    """Return where a ledger has the files of its tracks, or is going to."""
    return {
        (music, audio): Place(*cells)
        for music, audio, *cells in db.execute(
            "SELECT music_task_id, audio_id, path, bytes, sha256, task_id FROM track"
            " LEFT JOIN attempt ON attempt.n = current_attempt WHERE path IS NOT NULL"
        )
    }


@attrs.define
class Shelf:
    """The files of a catalog, looked at after each life."""

    folder: Path
    _listed: frozenset[Entry] = frozenset()

    def judge(self, places: dict[tuple[str, str], Place]) -> list[str]:
        """Return what must not be, whenever a life has ended."""
        wrong: list[str] = []
        tracks = {place.path: track for track, place in places.items()}
        keys = [collision_key(place.path) for place in places.values()]
        wrong += [
            f"{key!r} is the place of {keys.count(key)} tracks"
            for key in {*keys}
            if keys.count(key) > 1
        ]
        there = {path.name: path for path in self.folder.glob("*.wav")}
        for name, path in there.items():
            if name not in tracks:
                wrong.append(f"{name!r} is no track's file")
            elif (found := _look(path)) != sound_of(*tracks[name]):
                wrong.append(f"{name!r}: {found[0]} bytes are not the file of {tracks[name]}")
        for track, place in places.items():
            if place.is_stored and place.path not in there:
                wrong.append(f"{place.path!r} is stored, and is not there")
            if place.is_stored and (place.size, place.sha256) != sound_of(*track):
                wrong.append(f"{place.path!r} is stored as another file: {place}")
        return wrong + self._judge_list(places)

    def _judge_list(self, places: dict[tuple[str, str], Place]) -> list[str]:
        """Return what is wrong with the manifest, which names what is there and forgets nothing."""
        wrong: list[str] = []
        path = self.folder / MANIFEST
        rows = list(read_manifest(path)) if path.exists() else []
        wrong += [
            f"a bad line in the manifest: {row}" for row in rows if isinstance(row, InvalidLine)
        ]
        listed = [row for row in rows if isinstance(row, Entry)]
        for entry in listed:
            place = places.get((entry.music_task_id, entry.audio_id))
            said = (entry.file, entry.bytes, entry.sha256, entry.task_id)
            if place is None or said != (place.path, place.size, place.sha256, place.task_id):
                wrong.append(f"the manifest and the ledger differ: {entry}, {place}")
        if len({*listed}) < len(listed):
            wrong.append("the manifest names a file twice")
        if gone := self._listed - {*listed}:
            wrong.append(f"the manifest has forgotten {len(gone)} files")
        self._listed = frozenset(listed)
        return wrong

    def judge_end(self, places: dict[tuple[str, str], Place]) -> list[str]:
        """Return what must not be once all is done."""
        wrong: list[str] = []
        stored = {place.path for place in places.values() if place.is_stored}
        if {entry.file for entry in self._listed} != stored:
            wrong.append(f"{len(stored)} files, and {len(self._listed)} in the manifest")
        names = {path.name for path in self.folder.iterdir()} - stored - LEDGER - {MANIFEST}
        if names := {name for name in names if not NAMELESS.fullmatch(name)}:
            wrong.append(f"left over: {sorted(names)}")
        return wrong


def _look(path: Path) -> tuple[int, str]:
    body = path.read_bytes()
    return len(body), hashlib.sha256(body).hexdigest()
