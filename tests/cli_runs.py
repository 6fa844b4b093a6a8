"""What the tests of the command line share: a service for it, and a way to look at files."""

from __future__ import annotations

import wave
from typing import TYPE_CHECKING, Any

from kie_wav_async import Track, WavSession
from kie_wav_async.simulator import Fault, Simulator

if TYPE_CHECKING:
    from pathlib import Path

#: Every download is a WAV file of 444 bytes whose header declares 3,948.
SHORT = Fault(
    kind="body",
    on="media",
    content_type="audio/wav",
    body="RIFF\x64\x0f\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x40\x1f\0\0\1\0\x08\0"
    "data\x40\x0f\0\0" + "\0" * 400,
)

KEY = "sk-not-to-be-seen"


def service(*faults: Fault, **settings: Any) -> Simulator:
    """Make a service that converts at once and knows our key."""
    given = {"median_s": 0.0, "api_key": KEY, "faults": faults, "gzip": False, **settings}
    return Simulator(**given)


async def submit_before(kie: Simulator, *audio_ids: str) -> None:
    """
    Submit tracks of music task ``m``.

    A session polls 15 s after a submit at the earliest, but a track that was
    submitted before is answered with its task, which is asked for at once.
    """
    async with WavSession(KEY, base_url=kie.base_url) as session:
        for audio_id in audio_ids:
            await session.submit(Track("m", audio_id))


def names(folder: Path) -> list[str]:
    """Name what is in *folder*."""
    return sorted(path.name for path in folder.iterdir())


def is_wav(path: Path) -> bool:
    """Return whether *path* is a whole WAV file, made by the simulator."""
    with wave.open(str(path)) as opened:
        return opened.getnframes() > 0 and path.stat().st_size == 44 + 4 * opened.getnframes()
