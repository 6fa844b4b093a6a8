from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_wav_async.downloads.http_range import (
    ContentRange,
    parse_content_range,
    parse_length,
    strong_etag,
)
from samples import short

NINES = "9" * 18


# --- Content-Range --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes 0-0/1", ContentRange(0, 0, 1)),
        ("bytes 0-99/100", ContentRange(0, 99, 100)),
        ("bytes 50-99/100", ContentRange(50, 99, 100)),
        ("bytes 50-98/100", ContentRange(50, 98, 100)),
        ("bytes 99-99/100", ContentRange(99, 99, 100)),
        ("bytes 50-99/*", ContentRange(50, 99, None)),
        ("bytes 0-0/*", ContentRange(0, 0, None)),
        ("BYTES 1-2/3", ContentRange(1, 2, 3)),
        ("Bytes 1-2/3", ContentRange(1, 2, 3)),
        ("bytes 001-002/003", ContentRange(1, 2, 3)),
        (" \tbytes 1-2/3 \t", ContentRange(1, 2, 3)),
        (f"bytes 0-{10**18 - 2}/{NINES}", ContentRange(0, 10**18 - 2, 10**18 - 1)),
        # No range.
        ("", None),
        (" ", None),
        ("bytes", None),
        ("bytes ", None),
        ("bytes */100", None),
        ("bytes */*", None),
        ("bytes 0-99", None),
        ("bytes 0-99/", None),
        ("bytes -99/100", None),
        ("bytes 0-/100", None),
        ("bytes -/100", None),
        ("0-99/100", None),
        ("bytes=0-99/100", None),
        ("bytes:0-99/100", None),
        ("bytes0-99/100", None),
        ("items 0-99/100", None),
        ("kbytes 0-99/100", None),
        ("bytes 0-99/100;q=1", None),
        # Out of order.
        ("bytes 2-1/3", None),
        ("bytes 100-99/*", None),
        ("bytes 0-100/100", None),
        ("bytes 100-100/100", None),
        ("bytes 0-0/0", None),
        # Several.
        ("bytes 0-9/100, bytes 0-9/100", None),
        ("bytes 0-9/100,bytes 10-19/100", None),
        ("bytes 0-9,20-29/100", None),
        # No numbers, or none of a file.
        ("bytes a-b/c", None),
        ("bytes 0x0-0x9/0x10", None),
        ("bytes +0-+9/+10", None),
        ("bytes 0--9/10", None),
        ("bytes 0.0-9.0/10.0", None),
        ("bytes 1_0-2_0/3_0", None),
        ("bytes 0-9/1e3", None),
        ("bytes 0-\u0669/100", None),
        ("bytes \uff10-\uff19/100", None),
        ("bytes 0-\u00b2/100", None),
        (f"bytes 0-{NINES}0/*", None),
        (f"bytes {NINES}0-{NINES}1/*", None),
        (f"bytes 0-1/{NINES}0", None),
        ("bytes 0-1/" + "9" * 8_000, None),
        # Blanks where none belong.
        ("bytes  0-9/10", None),
        ("bytes\t0-9/10", None),
        ("bytes 0 - 9/10", None),
        ("bytes 0-9 / 10", None),
        ("bytes 0-9/ 10", None),
        ("bytes 0-9/10\n", None),
        ("\nbytes 0-9/10", None),
        ("bytes 0-9/10\x00", None),
        ("bytes\u00a00-9/10", None),
        ("\u00a0bytes 0-9/10", None),
        ("byte\u017f 0-9/10", None),
        ("\ud800", None),
    ],
    ids=short,
)
def test_a_content_range_is_one_range_by_the_book(value, expected):
    """A `Content-Range` names one range within its file, or makes no sense."""
    assert expected == parse_content_range(value)


@given(
    st.integers(0, 10**18 - 1), st.integers(0, 10**18 - 1), st.none() | st.integers(0, 10**18 - 1)
)
def test_a_range_lies_within_its_file(first, last, total):
    """Whatever the numbers, a range is taken if it lies within its file, and then as it stands."""
    found = parse_content_range(f"bytes {first}-{last}/{'*' if total is None else total}")

    if first <= last and (total is None or last < total):
        assert ContentRange(first, last, total) == found
    else:
        assert found is None


@given(st.text() | st.text("bytes 0123456789-/*,"))
def test_any_text_is_a_range_or_none(value):
    """Whatever the text, it is a range with its ends in order, or none."""
    found = parse_content_range(value)

    assert found is None or 0 <= found.first <= found.last < (found.total or 10**18)


# --- Content-Length -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0),
        ("44", 44),
        ("32000044", 32_000_044),
        ("0044", 44),
        (" 44\t", 44),
        (NINES, 10**18 - 1),
        ("", None),
        (" ", None),
        ("-1", None),
        ("+1", None),
        ("1.0", None),
        ("1e3", None),
        ("0x10", None),
        ("1_000", None),
        ("1,000", None),
        ("44, 44", None),
        ("44,44", None),
        ("4 4", None),
        ("44\n", None),
        ("44\r\n", None),
        ("44\x00", None),
        ("\u00a044", None),
        ("\u0664\u0664", None),
        ("\uff14\uff14", None),
        ("\u00b2", None),
        ("nan", None),
        ("*", None),
        (NINES + "0", None),
        ("9" * 8_000, None),
        ("\ud800", None),
    ],
    ids=short,
)
def test_a_length_is_a_run_of_digits(value, expected):
    """A `Content-Length` is one number of up to 18 digits, or makes no sense."""
    assert expected == parse_length(value)


@given(st.text() | st.text("0123456789 ,"))
def test_any_text_is_a_length_or_none(value):
    """Whatever the text, it is a length or none."""
    found = parse_length(value)

    assert found is None or 0 <= found < 10**18


# --- ETag -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('"a"', '"a"'),
        ('"5d41402abc4b2a76b9719d911017c592-4"', '"5d41402abc4b2a76b9719d911017c592-4"'),
        ("\"a,b;c='d' \"".replace(" ", ""), "\"a,b;c='d'\""),
        ('"W/a"', '"W/a"'),
        ('"\\"', '"\\"'),
        ('"!#~"', '"!#~"'),
        (' "a"\t', '"a"'),
        (f'"{"x" * 256}"', f'"{"x" * 256}"'),
        # Weak, or a list, which is no tag.
        ('W/"a"', None),
        ('w/"a"', None),
        ('"a", "b"', None),
        ('"a","b"', None),
        ('"a", W/"b"', None),
        ('W/"a", "b"', None),
        ("*", None),
        # Not by the book.
        (None, None),
        ("", None),
        ("a", None),
        ("5d41402abc4b2a76b9719d911017c592", None),
        ('"a', None),
        ('a"', None),
        ('"', None),
        ("'a'", None),
        ('"a"b"', None),
        ('"a b"', None),
        ('"a\tb"', None),
        ('"a\n"', None),
        ('"a"\n', None),
        ('"a"\r\nX: y', None),
        ('"a\x00"', None),
        ('"a\x7f"', None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),
        # By the book, and yet of no use.
        ('""', None),
        ('"\u00e9"', None),
        ('"\u96ea"', None),
        ('"\udce9"', None),
        (f'"{"x" * 257}"', None),
    ],
    ids=short,
)
def test_a_strong_tag_names_the_very_bytes(value, expected):
    """One strong ETag by the book is kept as it stands, and anything else names nothing."""
    assert expected == strong_etag(value)


@given(st.text() | st.text('W/"ab ,\\'))
def test_any_text_is_a_strong_tag_or_none(value):
    """Whatever the text, it is a tag that can stand in a header, or none."""
    found = strong_etag(value)

    if found is not None:
        assert found == strong_etag(found)
        assert found.isascii()
        assert found.isprintable()
        assert found in value
        assert '"' == found[0] == found[-1]
