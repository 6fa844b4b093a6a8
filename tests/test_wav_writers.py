"""
WAV files of real writers, made as the tests run: every one is saved, however it comes.

Each writer is a program or a library that is not ours; where it is missing its files
are skipped. Those written to a pipe have no size in their header, or a made-up one.
"""

from __future__ import annotations

import importlib.util
import io
import random
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import pytest

from hostile import downloading
from kie_wav_async import WavFile
from kie_wav_async.downloads.wav_header import WavScanner
from kie_wav_async.errors import DownloadError
from media import Manner, MediaServer

if TYPE_CHECKING:
    from pathlib import Path

#: An odd number of frames, so that sound of one byte a frame has an odd length.
FRAMES = 4_001
NOISE = random.Random(0).randbytes(FRAMES * 4)  # noqa: S311 - repeatable, guards nothing
#: Sizes that tell nothing: what the writers leave in a pipe.
PIPED = "piped"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the pipes are those of POSIX")

Maker = Callable[["Path"], bytes]


def run(*command: str, given: bytes = NOISE) -> bytes:
    """Return what a program writes on its stdout, which is a pipe."""
    return subprocess.run(command, input=given, capture_output=True, check=True).stdout  # noqa: S603 - fixed commands


def ffmpeg(*options: str, name: str = "", given: str = "-f s16le -ar 44100 -ac 2 -i -") -> Maker:
    """Have ffmpeg write a file, or to a pipe if it has no *name*."""

    def make(folder: Path) -> bytes:
        target = str(folder / name) if name else "-"
        out = run("ffmpeg", "-v", "error", *given.split(), *options, "-f", "wav", target)
        return (folder / name).read_bytes() if name else out

    return make


def sox(*options: str, name: str = "", channels: int = 2) -> Maker:
    """Have SoX write a file, or to a pipe if it has no *name*; it does not know how much comes."""

    def make(folder: Path) -> bytes:
        target = str(folder / name) if name else "-"
        raw = ["-t", "raw", "-e", "signed", "-b", "16", "-c", str(channels), "-r", "44100", "-"]
        out = run("sox", "-V0", *raw, "-t", "wav", *options, target)
        return (folder / name).read_bytes() if name else out

    return make


def espeak(*, to_file: bool) -> Maker:
    """Have espeak-ng speak."""

    def make(folder: Path) -> bytes:
        if not to_file:
            return run("espeak-ng", "--stdout", "one two")
        run("espeak-ng", "-w", str(folder / "a.wav"), "one two")
        return (folder / "a.wav").read_bytes()

    return make


def opusdec(folder: Path) -> bytes:
    """Have opusdec write to a pipe."""
    (folder / "a.wav").write_bytes(wave_file())
    run("opusenc", "--quiet", str(folder / "a.wav"), str(folder / "a.opus"))
    return run("opusdec", "--quiet", "--force-wav", str(folder / "a.opus"), "-")


def sndfile_convert(option: str, suffix: str) -> Maker:
    """Have the program of libsndfile write a file."""

    def make(folder: Path) -> bytes:
        (folder / "a.wav").write_bytes(wave_file())
        target = folder / f"b.{suffix}"
        run("sndfile-convert", option, str(folder / "a.wav"), str(target))
        return target.read_bytes()

    return make


def wave_file() -> bytes:
    """Return a file as the standard library writes it."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((2, 2, 44_100, FRAMES, "NONE", ""))
        writer.writeframes(NOISE)
    return file.getvalue()


def soundfile(kind: str, subtype: str, *, channels: int = 2, title: str = "") -> Maker:
    """Have libsndfile write a file through its package for Python."""

    def make(folder: Path) -> bytes:
        import soundfile as library  # noqa: PLC0415 - it may be missing

        path = folder / "a.wav"
        with library.SoundFile(path, "w", 44_100, channels, subtype, format=kind) as file:
            if title:
                file.title = title
            file.buffer_write(NOISE[: FRAMES // channels * channels * 2], "int16")
        return path.read_bytes()

    return make


#: What is written, by the program or package that must be there.
FILES: dict[str, tuple[str, Maker]] = {
    "ffmpeg": ("ffmpeg", ffmpeg(name="a.wav")),
    "ffmpeg, 24 bit": ("ffmpeg", ffmpeg("-c:a", "pcm_s24le", name="a.wav")),
    "ffmpeg, float": ("ffmpeg", ffmpeg("-c:a", "pcm_f32le", name="a.wav")),
    "ffmpeg, 6 channels": ("ffmpeg", ffmpeg("-ac", "6", name="a.wav")),
    "ffmpeg, mono of 8 bit": ("ffmpeg", ffmpeg("-ac", "1", "-c:a", "pcm_u8", name="a.wav")),
    "ffmpeg, RF64": ("ffmpeg", ffmpeg("-rf64", "always", name="a.wav")),
    "ffmpeg, room for RF64": ("ffmpeg", ffmpeg("-rf64", "auto", name="a.wav")),
    "ffmpeg, bext": (
        "ffmpeg",
        ffmpeg("-write_bext", "1", "-metadata", "description=take one", name="a.wav"),
    ),
    "ffmpeg, an odd LIST": ("ffmpeg", ffmpeg("-metadata", "title=odd!", name="a.wav")),
    "ffmpeg, peak envelope": ("ffmpeg", ffmpeg("-write_peak", "on", name="a.wav")),
    "ffmpeg, MS ADPCM": ("ffmpeg", ffmpeg("-c:a", "adpcm_ms", name="a.wav")),
    "ffmpeg, piped": ("ffmpeg", ffmpeg()),
    "ffmpeg, 24 bit, piped": ("ffmpeg", ffmpeg("-c:a", "pcm_s24le")),
    "ffmpeg, mono of 8 bit, piped": ("ffmpeg", ffmpeg("-ac", "1", "-c:a", "pcm_u8")),
    "ffmpeg, RF64, piped": ("ffmpeg", ffmpeg("-rf64", "always")),
    "SoX": ("sox", sox(name="a.wav")),
    "SoX, mono of 8 bit": ("sox", sox("-b", "8", name="a.wav", channels=1)),
    "SoX, 24 bit": ("sox", sox("-b", "24", name="a.wav")),
    "SoX, float": ("sox", sox("-e", "float", "-b", "32", name="a.wav")),
    "SoX, piped": ("sox", sox()),
    "SoX, 24 bit, piped": ("sox", sox("-b", "24")),
    "SoX, mono of 8 bit, piped": ("sox", sox("-b", "8", channels=1)),
    "espeak-ng": ("espeak-ng", espeak(to_file=True)),
    "espeak-ng, piped": ("espeak-ng", espeak(to_file=False)),
    "opusdec, piped": ("opusdec", opusdec),
    "sndfile-convert": ("sndfile-convert", sndfile_convert("-pcm16", "wav")),
    "sndfile-convert, 24 bit": ("sndfile-convert", sndfile_convert("-pcm24", "wav")),
    "sndfile-convert, float": ("sndfile-convert", sndfile_convert("-float32", "wav")),
    "sndfile-convert, RF64": ("sndfile-convert", sndfile_convert("-pcm16", "rf64")),
    "sndfile-convert, ADPCM": ("sndfile-convert", sndfile_convert("-ima-adpcm", "wav")),
    "soundfile": ("soundfile", soundfile("WAV", "PCM_16")),
    "soundfile, mono of 8 bit": ("soundfile", soundfile("WAV", "PCM_U8", channels=1)),
    "soundfile, 24 bit": ("soundfile", soundfile("WAV", "PCM_24")),
    "soundfile, 6 channels of float": ("soundfile", soundfile("WAVEX", "FLOAT", channels=6)),
    "soundfile, double": ("soundfile", soundfile("WAV", "DOUBLE")),
    "soundfile, WAVEX": ("soundfile", soundfile("WAVEX", "PCM_16")),
    "soundfile, RF64": ("soundfile", soundfile("RF64", "PCM_16")),
    "soundfile, a LIST": ("soundfile", soundfile("WAV", "PCM_16", title="odd")),
}


@cache
def is_there(writer: str) -> bool:
    """Return whether a program, or a package, can be used."""
    return shutil.which(writer) is not None or (
        writer == "soundfile" and importlib.util.find_spec(writer) is not None
    )


@pytest.fixture(params=FILES)
def written(request, tmp_path) -> bytes:
    """Return a file that another program has written."""
    writer, make = FILES[request.param]
    if not is_there(writer):
        pytest.skip(f"{writer} is not on this machine")
    folder = tmp_path / "writer"
    folder.mkdir()
    body = make(folder)
    assert len(body) > FRAMES / 4
    assert (PIPED in request.param) == (scan(body).promised is None)
    return body


def scan(body: bytes) -> WavScanner:
    """Read a file."""
    scanner = WavScanner()
    scanner.feed(body)
    return scanner


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_what_others_write_is_saved(written, tmp_path, framing) -> None:
    """A file is saved without a note however it is sent, if only anybody tells where it ends."""
    target = tmp_path / "a.wav"
    is_untold = framing == "close" and scan(written).promised is None
    async with MediaServer() as media, downloading() as running:
        url = media.put("/a.wav", written, Manner(framing=framing))
        if is_untold:
            with pytest.raises(DownloadError, match="neither the file nor its host") as caught:
                await running.download(url, target)
            assert "truncated" == caught.value.reason
        else:
            download = await running.download(url, target)
            assert (len(written), ()) == (download.bytes, download.notes)
            assert written == target.read_bytes()
    assert 1 == len(media.requests)


async def test_what_others_write_is_not_saved_by_half(written, tmp_path) -> None:
    """Of a file that the connection cut nothing is saved, whatever its header says."""
    cut = len(written) // 2
    async with MediaServer() as media, downloading() as running:
        for framing in ("length", "chunked", "close"):
            manner = Manner(framing=framing, cut=cut, ignores_range=True)
            url = media.put("/a.wav", written, manner)
            with pytest.raises(DownloadError) as caught:
                await running.session.download(wav_at(url), tmp_path / "a.wav", accept_short=True)
            assert "truncated" == caught.value.reason
    assert not (tmp_path / "a.wav").exists()


def wav_at(url):
    """Return what is to be downloaded."""
    return WavFile(task_id="t1", url=url, track=None, settled_by="poll", expires_at=None)
