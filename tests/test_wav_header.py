from __future__ import annotations

import io
import random
import struct
import wave

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_wav_async.downloads.wav_header import (
    HEAD_LENGTH,
    MAX_BYTES,
    TOLERANCE,
    ShortWavError,
    WavScanner,
)

ALL_ONES = 0xFFFF_FFFF
ALL_ONES_LONG = 0xFFFF_FFFF_FFFF_FFFF
FMT = struct.pack("<HHIIHH", 1, 2, 44_100, 176_400, 4, 16)
NOISE = random.Random(0).randbytes(4_000)  # noqa: S311 - repeatable, guards nothing
PAGE = b"<!DOCTYPE html><html><head><title>Bad Gateway</title></head></html>"


def chunk(name, body=b"", size=None):
    """Return a chunk, padded to an even length; *size*: what it declares instead."""
    told = len(body) if size is None else size
    return name + struct.pack("<I", told) + body + b"\0" * (len(body) % 2)


def riff(*chunks, size=None, kind=b"RIFF", form=b"WAVE"):
    """Return a file of *chunks*; *size*: what it declares instead of the true one."""
    body = form + b"".join(chunks)
    return kind + struct.pack("<I", len(body) if size is None else size) + body


def wav(*, size=None, data=None, before=(), after=(), sound=NOISE, fmt=FMT):
    """Return an ordinary file; what it declares of itself and of its sound may be wrong."""
    return riff(*before, chunk(b"fmt ", fmt), chunk(b"data", sound, data), *after, size=size)


def long_wav(size=None, data=None, *, kind=b"RF64", short=ALL_ONES, ds64=28, in_data=ALL_ONES):
    """Return a file that has its sizes in a ``ds64`` chunk of *ds64* bytes."""
    length = 12 + 8 + 28 + 8 + 16 + 8 + len(NOISE)
    sizes = struct.pack(
        "<QQQI", length - 8 if size is None else size, len(NOISE) if data is None else data, 0, 0
    )
    chunks = chunk(b"ds64", sizes[:ds64]), chunk(b"fmt ", FMT), chunk(b"data", NOISE, in_data)
    return riff(*chunks, kind=kind, size=short)


def scan(file, step=None):
    """Read *file*, some bytes at a time."""
    scanner = WavScanner()
    for start in range(0, len(file), step or len(file) or 1):
        scanner.feed(file[start : start + (step or len(file))])
    return scanner


def verify(file, **settings):
    """Judge a file to which nothing is missing."""
    return scan(file).verify(**settings)


def written(frames, *, width=2, channels=2):
    """Return a whole WAV file as the standard library writes it."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(44_100)
        writer.writeframes(bytes(frames * width * channels))
    return file.getvalue()


LENGTH = len(wav())

#: Files whose header is right.
RIGHT = {
    "as any": wav(),
    "one frame": wav(sound=NOISE[:4]),
    "silence": wav(sound=bytes(400)),
    "sound that looks like a tag": wav(sound=b"<h1>" + NOISE[:400]),
    "sound like a tag, 12 bytes": wav(sound=b"<h1>no</h1>."),
    "one byte of sound": wav(sound=b"\x80", fmt=struct.pack("<HHIIHH", 1, 1, 8_000, 8_000, 1, 8)),
    "extensible": wav(fmt=b"\xfe\xff" + FMT[2:] + bytes(24)),
    "14 bytes of format": wav(fmt=FMT[:14]),
    "no size of a frame": wav(fmt=FMT[:12] + b"\0\0" + FMT[14:]),
    "JUNK before": wav(before=[chunk(b"JUNK", bytes(5_000))]),
    "an odd chunk before": wav(before=[chunk(b"id3 ", b"x" * 333)]),
    "LIST behind": wav(after=[chunk(b"LIST", b"INFO")]),
    "a second data chunk": wav(after=[chunk(b"data", b"more")]),
    "an unpadded odd sound": riff(chunk(b"fmt ", FMT), chunk(b"data", NOISE[:399])[:-1]),
    "an odd sound, its padding not counted": wav(sound=NOISE[:399], size=36 + 399),
    "RF64": long_wav(),
    "BW64": long_wav(kind=b"BW64"),
    "RF64 with 0 for the size": long_wav(short=0),
    "RF64 that needs no ds64": long_wav(0, 0, short=4_072, in_data=4_000),
}

#: Files whose header does not know the length, as programs leave it that write to a pipe.
UNTOLD = {
    "ffmpeg": wav(size=ALL_ONES, data=ALL_ONES),
    "SoX, espeak-ng": wav(size=0x7FFF_F024, data=0x7FFF_F000),
    "opusdec": wav(size=0x7FFF_FFFF, data=0x7FFF_FFFF),
    "zeros": wav(size=0, data=0),
    "zeros, silent": wav(size=0, data=0, sound=bytes(4_000)),
    "over 1 GiB": wav(size=MAX_BYTES - 7, data=MAX_BYTES + 1),
    "RF64, zeros": long_wav(0, 0),
    "RF64, all ones": long_wav(ALL_ONES_LONG, ALL_ONES_LONG),
    "RF64 without its ds64": riff(
        chunk(b"fmt ", FMT), chunk(b"data", NOISE, ALL_ONES), kind=b"RF64", size=ALL_ONES
    ),
    "RF64, its ds64 too short": long_wav(ds64=22),
    "RIFF with a ds64": long_wav(kind=b"RIFF"),
}

#: Files whose sizes are off by a little, or that go on behind their end; what is noted.
NOTED = {
    "one NUL behind": (wav() + b"\0", "4,045 bytes, and the header declares 4,044"),
    "ID3v1 behind": (wav() + b"TAG" + b"song".ljust(125), "4,172 bytes, and the header"),
    "an uncounted LIST": (wav(size=36 + 4_000, after=[chunk(b"LIST", b"INFO")]), "4,056 bytes"),
    "a page behind": (wav() + PAGE, "and the header declares 4,044"),
    "another file behind": (wav() + wav(), "8,088 bytes, and the header declares 4,044"),
    "the size of the file": (wav(size=LENGTH), "the header declares 4,052"),
    "one byte too many": (wav(size=LENGTH - 7), "the header declares 4,045"),
    "the size of the sound": (wav(size=4_000), "the header declares 4,008"),
    "the header alone": (wav(size=36), "the header declares 44"),
    "less than a header": (wav(size=1), "the header declares 9"),
    "the sound counts its own header": (wav(data=4_008), "declares 8 more bytes of sound"),
    "the sound is as long as the file": (wav(data=LENGTH), "declares 44 more bytes of sound"),
    "the sound is as long as what is left": (wav(data=LENGTH - 8), "36 more bytes of sound"),
    "no padding where it is counted": (wav(sound=NOISE[:399])[:-1], "declares 444"),
    "a byte missing": (wav()[:-1], "4,043 bytes, and the header declares 4,044"),
    "no size, and bytes behind": (wav(size=0) + b"TAG", "4,047 bytes, and the header declares"),
    "RF64, one NUL behind": (long_wav() + b"\0", "4,081 bytes, and the header declares 4,080"),
}

#: Complete transfers to which something is missing.
SHORT = {
    "half": wav()[:2_000],
    "9 bytes": wav()[:-9],
    "the sound alone is longer": wav(data=4_009),
    "the file alone is longer": wav(size=LENGTH + 1),
    "RF64": long_wav()[:-100],
    "RF64, the sound": long_wav(0, 5_000),
    "no size of the file": wav(size=0)[:-100],
}

#: What is no WAV file although it begins as one.
NOT_WAV = {
    "12 bytes": (riff(), "only 12 bytes"),
    "12 bytes, long": (riff(size=1_000), "only 12 bytes"),
    "a page": (riff(PAGE), "goes on with text"),
    "a page, long": (riff(PAGE, size=50_000), "goes on with text"),
    "a page, untold": (riff(PAGE, size=ALL_ONES), "goes on with text"),
    "a page for sound": (wav(sound=PAGE), "goes on with text"),
    "a page for sound, untold": (wav(sound=PAGE, size=ALL_ONES, data=ALL_ONES), "with text"),
    "a page for sound, zeros": (wav(sound=PAGE, size=0, data=0), "goes on with text"),
    "a page for sound, short": (wav(sound=PAGE, size=32_000, data=31_964), "goes on with text"),
    "blanks and a page": (wav(sound=b"\r\n<html><body>no</body>"), "goes on with text"),
    "a page with a mark": (wav(sound=b"\xef\xbb\xbf" + PAGE), "goes on with text"),
    "a page with a mark, zeros": (wav(sound=b"\xef\xbb\xbf" + PAGE, data=0), "goes on with text"),
    "XML": (wav(sound=b"<?xml version='1.0'?><Error/>"), "goes on with text"),
    "S3's error": (wav(sound=b"<Error><Code>AccessDenied</Code>"), "goes on with text"),
    "a heading": (wav(sound=b"<h1>502 Bad Gateway</h1>"), "goes on with text"),
    "a heading, zeros": (wav(sound=b"<h1>502 Bad</h1>", size=0, data=0), "goes on with text"),
    "JSON": (wav(sound=b'{"code":404,"msg":"no"}'), "goes on with text"),
    "no format": (riff(chunk(b"data", NOISE)), "no format"),
    "a format of 13 bytes": (wav(fmt=FMT[:13]), "no format"),
    "no channels": (wav(fmt=FMT[:2] + b"\0\0" + FMT[4:]), "no format"),
    "no rate": (wav(fmt=FMT[:4] + bytes(4) + FMT[8:]), "no format"),
    "no sound": (riff(chunk(b"fmt ", FMT)), "no sound"),
    "noise in place of chunks": (riff(chunk(b"fmt ", FMT), NOISE), "no sound"),
    "an empty sound": (wav(sound=b""), "no sound"),
    "an empty sound, LIST behind": (
        wav(sound=b"", after=[chunk(b"LIST", b"INFO"), chunk(b"id3 ", b"odd")]),
        "no sound",
    ),
    "less than a frame": (wav(sound=b"abc"), "no sound"),
}


@pytest.mark.parametrize("file", RIGHT.values(), ids=RIGHT)
def test_a_file_that_tells_its_length_is_accepted(file):
    """A file with a right header is accepted without a note, however its bytes come."""
    for step in (None, 1, 7, 1_000):
        scanner = scan(file, step)
        assert (len(file), ()) == (scanner.length, scanner.verify())
    assert scan(file[:60]).promised in {len(file), len(file) - 1, len(file) - 20, None}
    assert scanner.promised in {len(file), len(file) - 1}


@pytest.mark.parametrize("frames", [1, 2, 44_100])
def test_a_written_file_is_accepted(frames):
    """A file that another program wrote is as long as its header is read to say."""
    file = written(frames)

    assert len(file) == scan(file[:44]).promised
    assert () == verify(file)


@pytest.mark.parametrize("file", UNTOLD.values(), ids=UNTOLD)
def test_a_file_that_was_piped_is_accepted(file):
    """A file whose header does not know the length promises none, and has no note."""
    for step in (None, 1):
        scanner = scan(file, step)
        assert scanner.promised is None
        assert () == scanner.verify()


@pytest.mark.parametrize(("file", "note"), NOTED.values(), ids=NOTED)
def test_a_file_that_is_off_by_a_little_is_accepted_with_a_note(file, note):
    """Trailing bytes and sizes that are a little wrong are noted in one short text each."""
    notes = verify(file)

    assert any(note in told for told in notes), notes
    assert all(len(told) < 80 and told.isascii() for told in notes)


@pytest.mark.parametrize("file", SHORT.values(), ids=SHORT)
def test_a_file_that_promises_more_is_short(file):
    """What is complete and promises more is accepted on request only, and then noted."""
    with pytest.raises(ShortWavError, match=r"^is [\d,]+ bytes long and declares ") as caught:
        verify(file)

    assert caught.value.is_playable
    (note,) = verify(file, accept_short=True)
    assert note.startswith(f"only {len(file):,} of the ")


def test_the_tolerance_is_8_bytes():
    """A few bytes may be missing, more may not."""
    assert 8 == TOLERANCE
    verify(wav()[:-8])
    with pytest.raises(ShortWavError):
        verify(wav()[:-9])


@pytest.mark.parametrize("count", [20, 35, 36, 43, 44, 47])
@pytest.mark.parametrize("accept_short", [False, True])
def test_a_file_cut_before_its_first_frame_is_short_and_never_accepted(count, accept_short):
    """Without one frame of sound nothing can be played, so nobody can ask for it."""
    with pytest.raises(ShortWavError) as caught:
        verify(wav()[:count], accept_short=accept_short)

    assert not caught.value.is_playable


@pytest.mark.parametrize(("file", "complaint"), NOT_WAV.values(), ids=NOT_WAV)
@pytest.mark.parametrize("accept_short", [False, True])
def test_a_beginning_alone_is_no_file(file, complaint, accept_short):
    """What begins as a WAV file and has no format, no sound, or text for it, is refused."""
    with pytest.raises(ValueError, match=complaint) as caught:
        verify(file, accept_short=accept_short)

    assert not isinstance(caught.value, ShortWavError)


# --- how it begins --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"<!DOCTYPE html><html><head><title>Not found</title></head></html>",
        b'{"code":404,"msg":"the file was deleted after 14 days","data":null}',
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>          ",
        b"ID3\x04" + bytes(60),
        b"\xff\xfb\x90\x64" + bytes(60),
        b"\x1f\x8b\x08" + bytes(60),
        b"OggS" + bytes(60),
        b"fLaC" + bytes(60),
        b"\x00\x00\x00\x20ftypM4A " + bytes(60),
        bytes(64),
        b"\xef\xbb\xbf" + wav(),
        b"\n" + wav(),
        wav()[:40].lower() + wav()[40:],
        riff(kind=b"riff"),
        riff(kind=b"RIFX"),
        struct.pack(">4sI4s", b"RIFX", 36, b"WAVE") + bytes(60),
        riff(kind=b"FORM"),
        riff(kind=b"RIF\xc6"),
        riff(kind=b"RF32"),
        riff(form=b"AVI "),
        riff(form=b"wave"),
        riff(form=b"WAVX"),
        riff(kind=b"RF64", form=b"AVI "),
        # As Sony's Wave64 begins.
        b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00" + bytes(60),
    ],
)
def test_what_begins_otherwise_is_refused(head):
    """Whatever else a server sends, the text of the refusal shows how it began."""
    scanner = scan(head)
    complaint = f"begins with {head[:12]!r}, as no WAV file does"

    assert complaint == scanner.flaw
    assert scanner.promised is None
    with pytest.raises(ValueError, match=r"^begins with b") as caught:
        scanner.verify()
    assert complaint == str(caught.value)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        *((wav()[:count], True) for count in range(HEAD_LENGTH + 8)),
        *((riff(kind=kind)[:count], True) for kind in (b"RF64", b"BW64") for count in (2, 4)),
        *((head, False) for head in (b"<html>no", b"Forbidden", b"R!", b"RIFX", b"\0", b"riff")),
    ],
)
def test_few_bytes_may_begin_a_file_or_cannot(head, expected):
    """What is too short to be judged is a beginning, unless it begins otherwise; never a file."""
    assert expected is (scan(head).flaw is None)
    with pytest.raises(ValueError, match=r"only|begins"):
        verify(head)


def test_a_promise_is_known_as_soon_as_the_header_is():
    """The length is known from the first bytes, and the larger of two sizes counts."""
    assert LENGTH == scan(wav()[:HEAD_LENGTH]).promised
    assert 5_044 == scan(wav(data=5_000)[:44]).promised
    assert 44 == scan(wav(size=36)[:40]).promised
    assert LENGTH == scan(wav(size=36)[:44]).promised
    assert scan(wav(size=ALL_ONES)[:44]).promised is None


def test_a_sound_that_ends_beyond_the_cap_has_no_size():
    """A size that makes the file longer than any that is accepted was not meant."""
    size = MAX_BYTES - 44

    assert () == verify(wav(size=ALL_ONES, data=size + 1))
    with pytest.raises(ShortWavError):
        verify(wav(size=ALL_ONES, data=size))


@pytest.mark.parametrize(
    ("size", "expected"),
    [(36, None), (4, None), (LENGTH - 8, LENGTH), (LENGTH - 8 - 1_000, None), (0, None)],
)
@pytest.mark.parametrize("data", [0, ALL_ONES, MAX_BYTES])
def test_a_sound_without_a_size_ends_where_the_file_says_or_nowhere(size, expected, data):
    """A size that the sound exceeds was written before the sound, and says nothing about it."""
    file = wav(size=size, data=data)

    assert expected == scan(file).promised
    assert scan(wav(size=36, data=data, sound=b"")).promised is None
    verify(file)


CHUNKS = st.lists(
    st.builds(
        chunk,
        st.sampled_from([b"fmt ", b"data", b"ds64", b"LIST", b"\0\xff\1\2"]),
        st.binary(max_size=60) | st.just(FMT) | st.just(PAGE),
        st.none() | st.integers(0, ALL_ONES) | st.integers(0, 60),
    ),
    max_size=4,
)


@given(
    st.binary(max_size=80)
    | st.builds(
        lambda chunks, cut, **settings: riff(*chunks, **settings)[: cut or None],
        CHUNKS,
        st.integers(0, 200),
        size=st.none() | st.integers(0, ALL_ONES) | st.integers(0, 200),
        kind=st.sampled_from([b"RIFF", b"RF64", b"BW64", b"RIFX"]),
        form=st.sampled_from([b"WAVE", b"WAVE", b"AVI "]),
    ),
    st.integers(1, 30),
    st.booleans(),
)
def test_any_bytes_are_a_file_or_none(file, step, accept_short):
    """Whatever the bytes, and however they come, the judgement is the same and harmless."""
    ends = []
    for one in (scan(file), scan(file, step)):
        assert one.promised is None or one.promised > 0
        try:
            ends.append(one.verify(accept_short=accept_short))
        except ValueError as error:
            ends.append((type(error), str(error)))
    assert ends[0] == ends[1]
    assert all(str(text).isascii() and len(str(text)) < 120 for text in ends[0])
