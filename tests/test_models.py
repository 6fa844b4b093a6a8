from __future__ import annotations

import datetime as dt
import pickle
import sys
import unicodedata
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

import strategies
from kie_wav_async import errors
from kie_wav_async._support import validation
from kie_wav_async._support.validation import (
    is_id,
    strip_controls,
    verify_count,
    verify_id,
    verify_number,
)
from kie_wav_async.core.policies import PollSchedule, RateLimit, RetryPolicy
from kie_wav_async.models import (
    Download,
    OnUnknown,
    Statistics,
    TaskRecord,
    TaskState,
    Track,
    UnknownSubmit,
    WavFile,
)
from kie_wav_async.protocol.http_messages import WireRequest, WireResponse
from kie_wav_async.session.outcome import Outcome
from samples import short

TRACK = Track("music-1", "audio-1")
WAV = WavFile(
    task_id="task-1",
    url=URL("https://h.example/a.wav"),
    track=TRACK,
    settled_by="poll",
    expires_at=dt.datetime(2025, 1, 15, tzinfo=dt.UTC),
)

BAD_IDS = {
    "empty": ("", ValueError),
    "blank": (" ", ValueError),
    "blank-inside": ("a b", ValueError),
    "blank-before": (" a", ValueError),
    "blank-after": ("a ", ValueError),
    "newline": ("a\n", ValueError),
    "carriage-return": ("a\rb", ValueError),
    "tab": ("a\tb", ValueError),
    "nul": ("a\x00b", ValueError),
    "escape": ("a\x1b[31m", ValueError),
    "delete": ("a\x7f", ValueError),
    "c1-control": ("a\x85b", ValueError),
    "no-break-space": ("a\xa0b", ValueError),
    "line-separator": ("a\u2028b", ValueError),
    "bidi-override": ("a\u202eb", ValueError),
    "zero-width-space": ("a\u200bb", ValueError),
    "high-surrogate": ("a\ud800", ValueError),
    "low-surrogate": ("\udc00a", ValueError),
    "private-use": ("a\ue000", ValueError),
    "too-long": ("x" * 257, ValueError),
    "none": (None, TypeError),
    "int": (5, TypeError),
    "float": (5.0, TypeError),
    "bool": (True, TypeError),
    "bytes": (b"5c79", TypeError),
    "list": (["5c79"], TypeError),
    "url": (URL("https://h/5c79"), TypeError),
}
every_bad_id = pytest.mark.parametrize(("value", "kind"), list(BAD_IDS.values()), ids=list(BAD_IDS))
every_good_id = pytest.mark.parametrize(
    "value",
    ["a", "5c79", "e231d0f8-6a1c-4b4e-9a53-0c2a6a5d9b11", "é", "歌", "x" * 256, "a/b?c&d=e#f%"],
    ids=["short", "hex", "uuid", "accent", "cjk", "longest", "punctuation"],
)


@every_bad_id
def test_a_bad_id_is_refused_by_name(value, kind):
    """What cannot be an id is refused with the name of the argument."""
    with pytest.raises(kind, match=r"^some_id must be "):
        verify_id(value, "some_id")


@every_bad_id
def test_a_bad_id_is_no_id(value, kind):  # noqa: ARG001 - the table of the test above
    """``is_id`` is false for whatever ``verify_id`` refuses."""
    assert not is_id(value)


@every_good_id
def test_a_good_id_is_taken(value):
    """One to 256 visible characters of any script are an id."""
    verify_id(value, "some_id")

    assert is_id(value)


@given(strategies.ids)
def test_visible_characters_are_an_id(value):
    """Any visible characters but blanks are an id, up to 256 of them."""
    assert is_id(value) == value.isprintable()


def test_the_refusal_quotes_the_id_in_short():
    """A stray document given as an id is quoted by 80 characters only, escaped."""
    with pytest.raises(ValueError, match="must be") as caught:
        verify_id("\n" * 80 + "x" * 5000, "some_id")

    assert str(caught.value) == (
        "some_id must be 1 to 256 visible characters, no blanks: " + repr("\n" * 80)
    )


def test_the_refusal_names_the_type():
    """A value of the wrong type is refused by its type, not shown."""
    with pytest.raises(TypeError) as caught:
        verify_id(b"secret", "some_id")

    assert str(caught.value) == "some_id must be a str, not bytes"


@every_bad_id
def test_a_track_refuses_a_bad_music_task_id(value, kind):
    """A track names ``music_task_id`` where that is what is wrong."""
    with pytest.raises(kind, match=r"^music_task_id "):
        Track(value, "audio-1")


@every_bad_id
def test_a_track_refuses_a_bad_audio_id(value, kind):
    """A track names ``audio_id`` where that is what is wrong."""
    with pytest.raises(kind, match=r"^audio_id "):
        Track("music-1", value)


@pytest.mark.parametrize("title", [5, b"x", ["x"], True], ids=["int", "bytes", "list", "bool"])
def test_a_track_refuses_a_title_that_is_no_text(title):
    """A title of another type than str is a TypeError that names it."""
    with pytest.raises(
        TypeError, match=rf"^title must be a str or None, not {type(title).__name__}$"
    ):
        Track("music-1", "audio-1", title=title)


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        (None, None),
        ("", None),
        (" ", None),
        ("\n\t", None),
        ("\u200b \u200b", None),
        ("Morning", "Morning"),
        ("  Morning  ", "Morning"),
        ("Good  Morning", "Good Morning"),
        ("Good_Morning", "Good_Morning"),
        ("Über den Wölken", "Über den Wölken"),
        ("two\nlines", "two lines"),
        ("two\r\nlines", "two lines"),
        ("a\ttab", "a tab"),
        ("nul\x00", "nul"),
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("c1\x9b31m", "c131m"),
        ("rtl\u202egpj.exe", "rtlgpj.exe"),
        ("\u2066isolate\u2069", "isolate"),
        ("zero\u200bwidth", "zerowidth"),
        ("line\u2028separator", "line separator"),
        ("para\u2029graph", "para graph"),
        ("half \ud83d", "half"),
        ("private \ue000 use", "private use"),
        ("no-break\xa0space", "no-break space"),
        ("[bold]markup[/bold]", "[bold]markup[/bold]"),
        ("x" * 501, "x" * 500),
        ("\x00" * 600 + "seen", "seen"),
    ],
    ids=short,
)
def test_a_title_is_made_harmless(title, expected):
    """Control and format characters leave a title, line breaks become blanks."""
    assert expected == Track("music-1", "audio-1", title=title).title


@given(st.text())
def test_stripped_text_is_one_harmless_line(text):
    """Whatever comes in, what comes out has neither controls nor surrogates nor line breaks."""
    stripped = strip_controls(text)

    assert not [c for c in stripped if unicodedata.category(c)[0] == "C"]
    assert stripped == " ".join(stripped.split())


@given(st.text())
def test_stripping_twice_is_stripping_once(text):
    """Harmless text stays as it is."""
    stripped = strip_controls(text)

    assert stripped == strip_controls(stripped)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"])))
def test_stripping_keeps_what_is_visible(text):
    """No visible character is lost."""
    assert text == strip_controls(text)


def test_tracks_are_equal_by_their_ids():
    """Two tracks with the same ids are one, whatever their titles."""
    one = Track("m", "a", title="One")
    two = Track("m", "a", title="Two")

    assert one == two
    assert hash(one) == hash(two)
    assert len({one, two}) == 1


@pytest.mark.parametrize("other", [Track("m", "b"), Track("n", "a")], ids=["audio", "music"])
def test_tracks_differ_by_either_id(other):
    """A different id makes a different track."""
    assert Track("m", "a") != other


def test_a_title_is_given_by_name():
    """The third positional argument stays free."""
    with pytest.raises(TypeError):
        Track("m", "a", "title")


BAD_NUMBERS = {
    "nan": (float("nan"), ValueError),
    "inf": (float("inf"), ValueError),
    "minus-inf": (float("-inf"), ValueError),
    "huge-int": (10**400, ValueError),
    "huge-negative-int": (-(10**400), ValueError),
    "bool": (True, TypeError),
    "none": (None, TypeError),
    "str": ("1", TypeError),
    "complex": (1j, TypeError),
    "timedelta": (dt.timedelta(seconds=1), TypeError),
}
every_bad_number = pytest.mark.parametrize(
    ("value", "kind"), list(BAD_NUMBERS.values()), ids=list(BAD_NUMBERS)
)

NUMBERS = [
    (PollSchedule, "first_s"),
    (PollSchedule, "interval_s"),
    (PollSchedule, "jitter"),
    (PollSchedule, "backstop_s"),
    (PollSchedule, "max_per_s"),
    (RetryPolicy, "base_s"),
    (RetryPolicy, "cap_s"),
    (RetryPolicy, "retry_after_cap_s"),
    (RateLimit, "per_s"),
]
ABOVE_ZERO = {"interval_s", "backstop_s", "max_per_s", "per_s"}


def make(kind: type, **values: object) -> object:
    """Return an instance of a settings class with *values*, and good ones besides."""
    return kind(**({"count": 20, "per_s": 10.0} if kind is RateLimit else {}) | values)


@every_bad_number
@pytest.mark.parametrize(("settings", "name"), NUMBERS, ids=str)
def test_a_bad_number_is_refused_by_name(settings, name, value, kind):
    """NaN, infinity and what is no number are refused with the argument's name."""
    with pytest.raises(kind, match=rf"^{name} must be "):
        make(settings, **{name: value})


@pytest.mark.parametrize("value", [-1, -0.001, -1e-300, -(10**300)], ids=str)
@pytest.mark.parametrize(("settings", "name"), NUMBERS, ids=str)
def test_a_negative_number_is_refused_by_name(settings, name, value):
    """Nothing lasts less than no time."""
    with pytest.raises(ValueError, match=rf"^{name} must be (above|at least) 0, not -"):
        make(settings, **{name: value})


@pytest.mark.parametrize("value", [0, 0.0, -0.0], ids=["int", "float", "negative"])
@pytest.mark.parametrize(("settings", "name"), NUMBERS, ids=str)
def test_zero_is_refused_where_nothing_would_happen(settings, name, value):
    """Zero is refused for rates, intervals and windows, and taken for waits."""
    if name in ABOVE_ZERO:
        with pytest.raises(ValueError, match=rf"^{name} must be above 0, not "):
            make(settings, **{name: value})
    else:
        assert value == getattr(make(settings, **{name: value}), name)


@pytest.mark.parametrize("value", [0.5, 5e-324], ids=str)
@pytest.mark.parametrize(("settings", "name"), NUMBERS, ids=str)
def test_a_positive_number_is_taken(settings, name, value):
    """Any finite number above zero is taken as it is."""
    assert value == getattr(make(settings, **{name: value}), name)


@pytest.mark.parametrize("value", [1, 1.0, 1.5], ids=["int", "float", "more"])
def test_jitter_stays_below_one(value):
    """A jitter of 1 would let two polls fall together."""
    with pytest.raises(ValueError, match=rf"^jitter must be below 1, not {value}$"):
        PollSchedule(jitter=value)


def test_the_greatest_jitter_is_taken():
    """Any jitter below 1 is taken."""
    assert PollSchedule(jitter=0.999).jitter == 0.999


COUNTS = [(RetryPolicy, "attempts"), (RateLimit, "count")]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (0, ValueError),
        (-1, ValueError),
        (-(10**5000), ValueError),
        (1.0, TypeError),
        (float("nan"), TypeError),
        (True, TypeError),
        ("1", TypeError),
        (None, TypeError),
    ],
    ids=["zero", "negative", "very-negative", "float", "nan", "bool", "str", "none"],
)
@pytest.mark.parametrize(("settings", "name"), COUNTS, ids=["attempts", "count"])
def test_a_bad_count_is_refused_by_name(settings, name, value, kind):
    """A count is a whole number from 1 up, else it is refused with the argument's name."""
    with pytest.raises(kind, match=rf"^{name} must be "):
        make(settings, **{name: value})


@pytest.mark.parametrize(("settings", "name"), COUNTS, ids=["attempts", "count"])
def test_the_least_count_is_one(settings, name):
    """One is a count."""
    assert getattr(make(settings, **{name: 1}), name) == 1


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: verify_number("1", "x_s"), "x_s must be a number, not str"),
        (lambda: verify_number(value=True, name="x_s"), "x_s must be a number, not bool"),
        (lambda: verify_number(float("nan"), "x_s"), "x_s must be a finite number"),
        (lambda: verify_number(10**400, "x_s"), "x_s must be a finite number"),
        (lambda: verify_number(2, "x_s", above=2), "x_s must be above 2, not 2"),
        (lambda: verify_number(1.5, "x_s", least=2), "x_s must be at least 2, not 1.5"),
        (lambda: verify_count(1.0, "n"), "n must be an int, not float"),
        (lambda: verify_count(0, "n"), "n must be at least 1"),
    ],
    ids=["str", "bool", "nan", "huge", "above", "least", "float", "zero"],
)
def test_a_refusal_says_what_would_do(call, text):
    """The text of a refusal names the argument, what it must be and what it is."""
    with pytest.raises((TypeError, ValueError)) as caught:
        call()

    assert text == str(caught.value)


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        (-5.0, {}),
        (2.1, {"above": 2}),
        (2, {"least": 2}),
        (0, {}),
        (10**300, {}),
        (-sys.float_info.max, {}),
        (sys.float_info.max, {}),
    ],
    ids=["unbounded", "above", "least", "zero", "big-int", "least-float", "greatest-float"],
)
def test_a_number_in_range_is_taken(value, bounds):
    """Bounds hold only where they are given; ``least`` is included, ``above`` is not."""
    verify_number(value, "x_s", **bounds)


def test_an_outcome_with_a_file_is_ok():
    """An outcome with a file unwraps to it."""
    outcome = Outcome(index=0, track=TRACK, wav=WAV)

    assert outcome.ok
    assert outcome.unwrap() is WAV


def test_an_outcome_with_an_error_raises_it():
    """An outcome with an error raises that error when unwrapped."""
    error = errors.NotFoundError(code=404)
    outcome = Outcome(index=0, track=TRACK, error=error)

    assert not outcome.ok
    with pytest.raises(errors.NotFoundError) as caught:
        outcome.unwrap()
    assert caught.value is error


@pytest.mark.parametrize(
    "fields",
    [{}, {"wav": WAV, "error": errors.KieWavError("x")}],
    ids=["neither", "both"],
)
def test_an_outcome_is_a_file_or_an_error(fields):
    """An outcome has either a file or an error."""
    with pytest.raises(ValueError, match=r"^an outcome has either a wav or an error$"):
        Outcome(index=0, track=TRACK, **fields)


VALUES = [
    TRACK,
    WAV,
    Download(path=Path("a.wav"), bytes=44, sha256="ab12", resumed=True),
    TaskRecord(task_id="t", state=TaskState.PENDING, raw={"a": [1]}),
    Outcome(index=0, track=TRACK, wav=WAV),
    UnknownSubmit(track=TRACK, attempt_id="ab", at=dt.datetime(2025, 1, 1, tzinfo=dt.UTC)),
    Statistics(polls=5),
    WireRequest(method="GET", url="https://h/", headers={"Authorization": "Bearer key"}),
    WireResponse(status=200, body=b"{}"),
]
every_value = pytest.mark.parametrize(
    "value", VALUES, ids=[type(value).__name__ for value in VALUES]
)


@pytest.mark.parametrize("value", VALUES[1:6], ids=[type(value).__name__ for value in VALUES[1:6]])
def test_values_are_made_by_position_too(value):
    """The fields of a value may be given in order, without their names."""
    fields = [getattr(value, field.name) for field in attrs.fields(type(value))]

    assert value == type(value)(*fields)


@every_value
def test_values_are_frozen(value):
    """A fact does not change."""
    name = attrs.fields(type(value))[0].name
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(value, name, None)


@every_value
def test_values_survive_pickling(value):
    """A value comes out of a pickle as it went in."""
    assert value == pickle.loads(pickle.dumps(value))  # noqa: S301 - our own


@pytest.mark.parametrize("value", VALUES[:-2], ids=[type(value).__name__ for value in VALUES[:-2]])
def test_values_can_be_keys(value):
    """Public values are hashable, the raw record in them notwithstanding."""
    assert hash(value) == hash(pickle.loads(pickle.dumps(value)))  # noqa: S301 - our own


def test_a_request_shows_no_headers():
    """The key in a request's headers is not in its repr."""
    assert "key" not in repr(VALUES[7])


def test_a_record_shows_no_raw_fields():
    """What a stranger sent besides is not in a record's repr."""
    record = TaskRecord(task_id="t", state=TaskState.PENDING, raw={"stranger": 1})

    assert "stranger" not in repr(record)


def test_statistics_start_at_zero():
    """Every counter starts at 0."""
    assert set(attrs.astuple(Statistics())) == {0}


@pytest.mark.parametrize(
    ("kind", "words"),
    [(TaskState, ["pending", "succeeded", "failed"]), (OnUnknown, ["raise", "resubmit"])],
    ids=["TaskState", "OnUnknown"],
)
def test_enums_are_their_words(kind, words):
    """An enum's members are the strings that command lines and logs show."""
    assert words == [str(member) for member in kind]


def test_the_limits_are_the_documented_ones():
    """Ids have up to 256 characters, files live 14 days."""
    assert validation.MAX_ID_LENGTH == 256
