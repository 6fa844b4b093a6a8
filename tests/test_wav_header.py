from __future__ import annotations

import io
import struct
import wave

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_wav_async._wav_header import (
    HEAD_LENGTH,
    LEAST_LENGTH,
    is_whole,
    may_begin,
    parse_wav_header,
)

ALL_ONES = 0xFFFF_FFFF
ALL_ONES_LONG = 0xFFFF_FFFF_FFFF_FFFF
REST = b"fmt \x10\0\0\0" + bytes(64)


def riff(size, *, kind=b"RIFF", form=b"WAVE", rest=REST):
    """Return the first bytes of a file whose header declares *size* bytes after it."""
    return kind + struct.pack("<I", size) + form + rest


def long_riff(long_size, *, kind=b"RF64", size=ALL_ONES, name=b"ds64", length=28):
    """Return the first bytes of a file that tells its length in a ``ds64`` chunk."""
    chunk = name + struct.pack("<IQQQI", length, long_size, 0, 0, 0)
    return riff(size, kind=kind, rest=chunk + REST)


def written(frames, *, width=2, channels=2):
    """Return a whole WAV file as the standard library writes it."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(44_100)
        writer.writeframes(bytes(frames * width * channels))
    return file.getvalue()


# --- what declares a length -----------------------------------------------------------------


@pytest.mark.parametrize("frames", [0, 1, 2, 44_100])
def test_a_written_file_declares_its_own_length(frames):
    """A file that another program wrote is as long as its header is read to say."""
    file = written(frames)

    assert len(file) == parse_wav_header(file[:HEAD_LENGTH])
    assert is_whole(len(file), len(file))


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (riff(36), 44),
        (riff(37), 45),
        (riff(32_000_000), 32_000_008),
        (riff(ALL_ONES - 1), 4_294_967_302),
        (riff(36, rest=b"JUNK" + bytes(60)), 44),
        (riff(36, rest=b"ds64" + bytes(60)), 44),
        (long_riff(100), 108),
        (long_riff(36), 44),
        (long_riff(100, kind=b"BW64"), 108),
        (long_riff(ALL_ONES), 4_294_967_303),
        (long_riff(5_000_000_000), 5_000_000_008),
        (long_riff(ALL_ONES_LONG - 1), 18_446_744_073_709_551_622),
        (long_riff(100, length=24), 108),
        (long_riff(100, length=ALL_ONES), 108),
        # The short length did not need the long one.
        (long_riff(100, size=200), 208),
        (long_riff(0, size=200), 208),
        (long_riff(100, size=0), 108),
        # Not even sound, and all the same no other kind of file.
        (riff(4), 12),
        (riff(4)[:12], 12),
        (riff(36)[:20], 44),
        (riff(100, kind=b"RF64"), 108),
        (long_riff(100, size=200)[:20], 208),
    ],
)
def test_a_header_declares_the_length_of_the_file(head, expected):
    """The length is what the header says comes after it, and the 8 bytes before."""
    assert expected == parse_wav_header(head)
    assert expected == parse_wav_header(head[:HEAD_LENGTH])


@pytest.mark.parametrize(
    "head",
    [
        riff(0),
        riff(ALL_ONES),
        long_riff(0),
        long_riff(ALL_ONES_LONG),
        long_riff(0, size=0),
        long_riff(ALL_ONES_LONG, size=0, kind=b"BW64"),
        # The chunk that would tell is missing, too short, or cut off.
        riff(ALL_ONES, kind=b"RF64"),
        riff(0, kind=b"BW64"),
        long_riff(100, name=b"JUNK"),
        long_riff(100, name=b"DS64"),
        long_riff(100, length=23),
        long_riff(100)[:27],
    ],
)
def test_a_stream_declares_no_length(head):
    """A header that was written before its end was known does not tell how long the file is."""
    assert parse_wav_header(head) is None


# --- what is no WAV file --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        (b"", "has only 0 bytes, and no WAV file has fewer than 12"),
        (b"RIFF", "has only 4 bytes, and no WAV file has fewer than 12"),
        (riff(36)[:11], "has only 11 bytes, and no WAV file has fewer than 12"),
        (riff(1), "declares 9 bytes, and no WAV file has fewer than 12"),
        (riff(3), "declares 11 bytes, and no WAV file has fewer than 12"),
        (long_riff(1), "declares 9 bytes, and no WAV file has fewer than 12"),
        (long_riff(100, size=3), "declares 11 bytes, and no WAV file has fewer than 12"),
    ],
)
def test_a_header_that_cannot_be_right_is_refused(head, complaint):
    """What calls itself a WAV file, but cannot be one, is refused with the reason."""
    with pytest.raises(ValueError, match=r"^(has|declares|is) ") as caught:
        parse_wav_header(head)

    assert complaint == str(caught.value)


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
        b"\xef\xbb\xbf" + riff(36),
        b"\n" + riff(36),
        riff(36).lower(),
        riff(36, kind=b"riff"),
        riff(36, kind=b"RIFX"),
        struct.pack(">4sI4s", b"RIFX", 36, b"WAVE") + REST,
        riff(36, kind=b"FORM"),
        riff(36, kind=b"RIF\xc6"),
        long_riff(100, kind=b"RF32"),
        riff(36, form=b"AVI "),
        riff(36, form=b"wave"),
        riff(36, form=b"WAVX"),
        long_riff(100)[:8] + b"AVI " + long_riff(100)[12:],
        # As Sony's Wave64 begins.
        b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00" + bytes(60),
    ],
)
def test_what_begins_otherwise_is_refused(head):
    """Whatever else a server sends, the text of the refusal shows how it began."""
    with pytest.raises(ValueError, match=r"^begins with b") as caught:
        parse_wav_header(head)

    assert str(caught.value) == f"begins with {head[:12]!r}, as no WAV file does"


@given(
    st.binary(max_size=80)
    | st.builds(
        riff,
        st.integers(0, ALL_ONES),
        kind=st.sampled_from([b"RIFF", b"RF64", b"BW64", b"RIFX"]),
        form=st.sampled_from([b"WAVE", b"AVI "]),
        rest=st.binary(max_size=80),
    )
    | st.builds(
        long_riff,
        st.integers(0, ALL_ONES_LONG),
        kind=st.sampled_from([b"RF64", b"BW64"]),
        size=st.sampled_from([0, 36, ALL_ONES]),
        length=st.integers(0, ALL_ONES),
    )
)
def test_any_bytes_are_a_header_or_none(head):
    """Whatever the bytes, they declare a possible length or none, or are refused harmlessly."""
    try:
        declared = parse_wav_header(head)
    except ValueError as error:
        text = str(error)
        assert text.isascii()
        assert text.isprintable()
        assert len(text) < 120
        return

    assert declared is None or declared >= LEAST_LENGTH
    assert declared == parse_wav_header(head[:HEAD_LENGTH])


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        *((riff(36)[:count], True) for count in range(12)),
        *(
            (long_riff(36, kind=kind)[:count], True)
            for kind in (b"RF64", b"BW64")
            for count in (2, 4)
        ),
        *((head, False) for head in (b"<html>no", b"Forbidden", b"R!", b"RIFX", b"\0", b"riff")),
    ],
)
def test_few_bytes_may_begin_a_file_or_cannot(head, expected):
    """What is too short to be judged is a beginning, unless it begins otherwise."""
    assert expected is may_begin(head)


# --- whether all is there -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "declared", "expected"),
    [
        (44, 44, True),
        (43, 44, False),
        (45, 44, False),
        (46, 44, False),
        (0, 44, False),
        # One byte to fill up, there and counted, there and not counted, or left away.
        (46, 46, True),
        (46, 45, True),
        (45, 45, True),
        (45, 46, False),
        (44, 45, False),
        (47, 45, False),
        (32_000_008, 32_000_008, True),
        (31_999_999, 32_000_008, False),
        (64_000_016, 32_000_008, False),
    ],
)
def test_a_file_is_whole_or_it_is_not(length, declared, expected):
    """A file is as long as declared, but for one byte that fills up an odd length."""
    assert expected is is_whole(length, declared)
