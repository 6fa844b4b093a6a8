"""
Convert a catalog: from a CSV file of tracks to a CSV file of URLs.

Run it with KIE_API_KEY in the environment:
python examples/catalog.py tracks.csv urls.csv

tracks.csv has the columns music_task_id and audio_id. Every task id is printed
as soon as the service has named it: what is printed is paid for.
"""

from __future__ import annotations

import asyncio
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kie_wav_async import Track, WavSession, events

if TYPE_CHECKING:
    from collections.abc import Iterator


def read_tracks(path: Path) -> Iterator[Track]:
    """Read tracks as they are wanted, however many there are."""
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield Track(row["music_task_id"], row["audio_id"])


def note(event: events.Event) -> None:
    """Keep what must not be forgotten."""
    match event:
        case events.SubmitAccepted(task_id=task_id, track=track):
            print("submitted", task_id, track.music_task_id, track.audio_id, flush=True)
        case events.SubmitUnknown(attempt_id=attempt_id, track=track):
            print("unknown", attempt_id, track.music_task_id, track.audio_id, flush=True)
        case _:
            pass


async def convert(source: Path, target: Path) -> None:
    """Convert what *source* names, and write what became of it to *target*."""
    with target.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["music_task_id", "audio_id", "url", "error"])
        async with (
            WavSession(on_event=note) as session,
            session.convert_all(read_tracks(source)) as batch,
        ):
            async for outcome in batch:
                track, wav = outcome.track, outcome.wav
                result = (wav.url if wav else "", outcome.error or "")
                rows.writerow([track.music_task_id, track.audio_id, *result])
        done = session.statistics()
    print(f"{done.accepted} <= charged <= {done.accepted + done.unknown}")


if __name__ == "__main__":
    asyncio.run(convert(Path(sys.argv[1]), Path(sys.argv[2])))
