"""Tones as WAV files: the same bytes for the same track, always."""

import hashlib
import io
import math
import wave
from collections import OrderedDict
from typing import Final

import attrs

_RATE: Final = 44_100
_FRAME: Final = 4  # Bytes: two channels of 16 bits.
_HEADER: Final = 44  # Bytes before the samples, as the wave module writes them.
_CACHE: Final = 32 * 2**20  # Bytes kept: about three minutes of sound.


@attrs.frozen
class Tone:
    """
    One track's file before it is rendered: length and pitch follow from the track's ids.

    Attributes:
        frames: Its length in frames of 44,100 per second.
        period: Frames per oscillation: 50 to 200, that is 882 to 220.5 Hz.

    """

    frames: int
    period: int

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return _HEADER + self.frames * _FRAME

    @property
    def etag(self) -> str:
        """A strong entity tag, quoted: the two numbers decide every byte."""
        return f'"{self.frames:x}-{self.period:x}"'

    def render(self) -> bytes:
        """Return the file: 16 bits, stereo, 44.1 kHz."""
        wave_form = [
            round(9000 * math.sin(2 * math.pi * n / self.period)) for n in range(self.period)
        ]
        once = b"".join(2 * sample.to_bytes(2, "little", signed=True) for sample in wave_form)
        times, rest = divmod(self.frames, self.period)
        file = io.BytesIO()
        with wave.open(file, "wb") as out:
            out.setnchannels(2)
            out.setsampwidth(2)
            out.setframerate(_RATE)
            out.setnframes(self.frames)
            out.writeframesraw(once * times + once[: rest * _FRAME])
        return file.getvalue()


def tone_of(music_task_id: str, audio_id: str, low_s: float, high_s: float) -> Tone:
    """Return the tone of a track, between `low_s` and `high_s` seconds long."""
    digest = hashlib.blake2b(
        f"{music_task_id}\n{audio_id}".encode(errors="surrogatepass"), digest_size=12
    ).digest()
    share = int.from_bytes(digest[:8]) / 2**64
    seconds = low_s + (high_s - low_s) * share
    return Tone(frames=max(1, round(seconds * _RATE)), period=50 + int.from_bytes(digest[8:]) % 151)


class ToneCache:
    """Files rendered when first asked for; the least recently used are let go."""

    def __init__(self) -> None:
        self._files: OrderedDict[Tone, bytes] = OrderedDict()
        self._size = 0

    def get(self, tone: Tone) -> bytes:
        """Return the bytes of a tone."""
        file = self._files.get(tone)
        if file is None:
            file = self._files[tone] = tone.render()
            self._size += len(file)
            while self._size > _CACHE and len(self._files) > 1:
                _, dropped = self._files.popitem(last=False)
                self._size -= len(dropped)
        self._files.move_to_end(tone)
        return file
