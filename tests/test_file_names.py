from __future__ import annotations

import hashlib
import os
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_wav_async.file_names import (
    DEFAULT_TEMPLATE,
    _clean,
    collision_key,
    file_name,
    unique_suffix,
    verify_template,
)
from kie_wav_async.models import Track
from samples import AUDIO_ID, MUSIC_TASK_ID, short
from strategies import ids
from titles import TITLES

TEMPLATES = [
    DEFAULT_TEMPLATE,
    "{title}.wav",
    "{title}",
    "{audio_id}",
    "{music_task_id}{audio_id}.wav",
    "{index:06} {title}.WAV",
    "{index}",
    "-{title}",
    " {title} .wav",
    ".{title}..wav",
    "{title}{music_task_id}{audio_id}{index:09}",
    "x" * 50 + "{title}{music_task_id}{audio_id}{index}",
    "{title}\u0301{{}}",
    "con{index}",
]

DEVICES = {
    *("con", "prn", "aux", "nul", "conin$", "conout$", "clock$"),
    *(f"{port}{mark}" for port in ("com", "lpt") for mark in "0123456789\u00b9\u00b2\u00b3"),
}

# But for the planes that hold ideographs, and nothing or nobody's characters.
CHARACTERS = list(map(chr, [*range(0x20000), *range(0x2F800, 0x2FA20), *range(0xE0000, 0xE0200)]))

UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def track(title=None, *, music_task_id=MUSIC_TASK_ID, audio_id=AUDIO_ID):
    """Return a track with this title."""
    return Track(music_task_id, audio_id, title=title)


def name(title=None, **settings):
    """Return the name of a track with this title."""
    return file_name(track(title), **settings)


def faults(found):
    """Say what is wrong with a name, by rules that are written down once more."""
    plain = unicodedata.normalize("NFKC", found)
    sizes = [len(unicodedata.normalize(form, found).encode()) for form in ("NFC", "NFD")]
    paths = [kind("folder", found) for kind in (PurePosixPath, PureWindowsPath)]
    rules = {
        "no extension": found.endswith(".wav") and len(found) > len(".wav"),
        "begins badly": plain[0] not in " .-~=+@" and unicodedata.category(found[0])[0] != "M",
        "a device": found.split(".")[0].rstrip().lower() not in DEVICES,
        "unsafe": not set('/\\<>:"|?*') & set(found),
        "turns unsafe": not set("/\\") & set(plain),
        "invisible": not UNSEEN & {unicodedata.category(char) for char in found},
        "not composed": unicodedata.is_normalized("NFC", found),
        "too long": max(*sizes, len(found.encode("utf-16-le")) // 2) <= 240,
        "no component": all(path.parts == ("folder", found) for path in paths),
        "another extension": all(path.suffix == ".wav" for path in paths),
        "does not come back": os.fsdecode(os.fsencode(found)) == found,
    }
    return [fault for fault, is_kept in rules.items() if not is_kept]


# --- plain names ----------------------------------------------------------------------------


def test_the_default_shows_the_title_and_the_track():
    """Unless asked for another, the name is the title with the id of the track."""
    assert DEFAULT_TEMPLATE == "{title} [{audio_id}].wav"
    assert f"Night Drive [{AUDIO_ID}].wav" == name("Night Drive")


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Night Drive", "Night Drive"),
        ("Stra\u00dfe", "Stra\u00dfe"),
        ("\u5922\u306e\u4e2d", "\u5922\u306e\u4e2d"),
        ("\u4f60\u597d\u5417\uff1f", "\u4f60\u597d\u5417\uff1f"),
        ("It's 100% [ok] (1); a=b & c, d!", "It's 100% [ok] (1); a=b & c, d!"),
        ("Wait...", "Wait..."),
        ("\U0001f3b5 song", "\U0001f3b5 song"),
        ("e\u0301", "\u00e9"),
        ("AC/DC: Live? <1> *2* |3|", "AC_DC_ Live_ _1_ _2_ _3_"),
        ('a"b\\c', "a_b_c"),
        ("a~b", "a_b"),
        ("a\uff0fb\u2215c\u2044d\uff3ce\u2216f\u2100", "a_b_c_d_e_f_"),
        ("  a \t b\n", "a b"),
        ("a \u3164 b", "a b"),
        ("a\u2028b\u00a0c", "a b c"),
        ("a\u202eb\u200bc\x00d\ue000e\ufe0f", "abcde"),
        ("\x1b[31mred", "[31mred"),
        # Nothing left to show.
        (None, "untitled"),
        ("", "untitled"),
        ("\u200b\u3164", "untitled"),
        # What may not stand first, or alone.
        ("-rf", "_-rf"),
        (".hidden", "_.hidden"),
        ("..", "_.."),
        ("~root", "_root"),
        ('=HYPERLINK("x")', "_=HYPERLINK(_x_)"),
        ("+1", "_+1"),
        ("@list", "_@list"),
        ("\uff1d1", "_\uff1d1"),
        ("\ufe631", "_\ufe631"),
        ("\t\r=1", "_=1"),
        ("\u0301a", "_\u0301a"),
        ("CON", "_CON"),
        ("nul.tar", "_nul.tar"),
        ("Com1 .x", "_Com1 .x"),
        ("LPT\u00b9", "_LPT\u00b9"),
        ("cloc\u212a$", "_clocK$"),
        ("C\u200bON", "_CON"),
        ("CONIN$", "_CONIN$"),
        ("CONcert", "CONcert"),
        ("COM10", "COM10"),
        ("COM", "COM"),
        ("a CON", "a CON"),
        ("LPT", "LPT"),
    ],
    ids=short,
)
def test_a_title_becomes_what_is_safe_of_it(title, expected):
    """What is safe of a title is kept, what is not becomes a line below, and the unseen goes."""
    assert f"{expected}.wav" == name(title, template="{title}")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{title}", "Song.wav"),
        ("{title}.wav", "Song.wav"),
        ("{title}.WAV", "Song.wav"),
        ("{title}.wav.wav", "Song.wav.wav"),
        ("{title}.mp3", "Song.mp3.wav"),
        ("{title}wav", "Songwav.wav"),
        ("{audio_id}", f"{AUDIO_ID}.wav"),
        ("{music_task_id}-{audio_id}", f"{MUSIC_TASK_ID}-{AUDIO_ID}.wav"),
        ("{index}", "7.wav"),
        ("{index:06}", "000007.wav"),
        ("{index:01} {title}", "7 Song.wav"),
        ("{index:09}", "000000007.wav"),
        ("{title:}", "Song.wav"),
        ("My {title}, take {index}", "My Song, take 7.wav"),
        ("{{{title}}} }}{{", "{Song} }{.wav"),
        ("\u5922 {title}", "\u5922 Song.wav"),
        ("e\u0301 {title}", "\u00e9 Song.wav"),
        ("-{title}", "_-Song.wav"),
        (".{title}", "_.Song.wav"),
        (" {title}", "_ Song.wav"),
        ("con.{title}", "_con.Song.wav"),
        ("com{index}", "_com7.wav"),
    ],
)
def test_a_template_puts_the_fields_in_their_places(template, expected):
    """A template's words stay, its fields are put in, and the end is that of a WAV file."""
    assert expected == name("Song", template=template, index=7)


@pytest.mark.parametrize("index", [0, 1, 999_999, 10**17, 10**18 - 1])
def test_an_index_is_shown_whole(index):
    """An index has as many digits as it needs, and zeros before it if asked for."""
    assert f"{index}.wav" == name(template="{index}", index=index)
    assert f"{index:05}.wav" == name(template="{index:05}", index=index)
    assert name("a") == name("a", index=index)


def test_a_suffix_stands_before_the_extension():
    """What tells two tracks apart stands at the end of the name, and is the track's own."""
    digits = hashlib.sha256(f"{MUSIC_TASK_ID} {AUDIO_ID}".encode()).hexdigest()

    assert f" ~{digits[:8]}" == unique_suffix(track("a"))
    assert f" ~{digits[:1]}" == unique_suffix(track("b"), 1)
    assert f" ~{digits}" == unique_suffix(track(), 64)
    assert f"a ~{digits[:8]}.wav" == name("a", template="{title}", suffix=unique_suffix(track("a")))
    assert f"CON ~{digits[:8]}.wav" == name(
        "CON", template="{title}", suffix=unique_suffix(track())
    )


def test_suffixes_of_different_ids_differ():
    """However two ids are cut out of the same characters, their tracks are told apart."""
    made = {unique_suffix(Track(*pair), 64) for pair in [("a", "bc"), ("ab", "c"), ("bc", "a")]}

    assert 3 == len(made)


# --- mistakes of the caller -----------------------------------------------------------------


FORMAT = "template may have no format but that of {index:06}, from 01 to 09"
WORDS = 'template must not have separators, control characters or any of <>:"|?*~'
FIELDS = "title, music_task_id, audio_id, index"


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("", f"template must name one of {FIELDS}, or all files had one name"),
        ("a.wav", f"template must name one of {FIELDS}, or all files had one name"),
        ("{{title}}", f"template must name one of {FIELDS}, or all files had one name"),
        ("{}", f"template has a field '', and there are only {FIELDS}"),
        ("{0}", f"template has a field '0', and there are only {FIELDS}"),
        ("{name}", f"template has a field 'name', and there are only {FIELDS}"),
        ("{Title}", f"template has a field 'Title', and there are only {FIELDS}"),
        ("{ title}", f"template has a field ' title', and there are only {FIELDS}"),
        ("{title.upper}", f"template has a field 'title.upper', and there are only {FIELDS}"),
        ("{title[0]}", f"template has a field 'title[0]', and there are only {FIELDS}"),
        ("{title._x}", f"template has a field 'title._x', and there are only {FIELDS}"),
        ("{" + "x" * 900 + "}", f"template has a field '{'x' * 80}', and there are only {FIELDS}"),
        ("{title!r}", FORMAT),
        ("{index!s}", FORMAT),
        ("{title:20}", FORMAT),
        ("{audio_id:06}", FORMAT),
        ("{index:6}", FORMAT),
        ("{index:0}", FORMAT),
        ("{index:00}", FORMAT),
        ("{index:010}", FORMAT),
        ("{index:99999999}", FORMAT),
        ("{index:,}", FORMAT),
        ("{index:x}", FORMAT),
        ("{index:-06}", FORMAT),
        ("{index:06d}", FORMAT),
        ("{index:0\u0666}", FORMAT),
        ("{index:{title}}", FORMAT),
        ("{title}{title}", "template must not name a field twice"),
        ("{index:01}{title}{index:02}", "template must not name a field twice"),
        ("{title", "template is not well formed: expected '}' before end of string"),
        ("title}", "template is not well formed: Single '}' encountered in format string"),
        ("{title}/{index}", WORDS),
        ("{title}\\{index}", WORDS),
        ("../{title}", WORDS),
        ("C:{title}", WORDS),
        ("{title}?", WORDS),
        ("{title}*", WORDS),
        ("<{title}>", WORDS),
        ("{title}|", WORDS),
        ('"{title}"', WORDS),
        ("~{title}", WORDS),
        ("{title}\n", WORDS),
        ("{title}\x00", WORDS),
        ("{title}\u202e", WORDS),
        ("{title}\u00a0", WORDS),
        ("{title}\u200b.wav", WORDS),
        ("{title}\u3164", WORDS),
        ("{title}\uff0f", WORDS),
        ("{title}\ud800", WORDS),
        ("{title}\uffff", WORDS),
        ("x" * 51 + "{title}", "template must not have more than 50 bytes besides its fields"),
        ("{title}" + "\u96ea" * 17, "template must not have more than 50 bytes besides its fields"),
        ("{title}" + "\uac01" * 6, "template must not have more than 50 bytes besides its fields"),
    ],
    ids=short,
)  # fmt: skip
def test_what_is_no_template_is_refused(template, complaint):
    """A template that could not make names of files is a `ValueError` that says why."""
    with pytest.raises(ValueError, match=r"^template ") as caught:
        verify_template(template)
    with pytest.raises(ValueError, match=r"^template "):
        name("a", template=template, index=1)

    assert complaint == str(caught.value)


@pytest.mark.parametrize("value", [None, 5, b"{title}", ["{title}"]])
def test_a_template_is_text(value):
    """What is no text is no template and no suffix."""
    with pytest.raises(TypeError, match=r"^template must be a str, not "):
        name(template=value)
    with pytest.raises(TypeError, match=r"^suffix must be a str, not "):
        name(suffix=value)


@pytest.mark.parametrize("value", [True, 1.0, "1", b"1"], ids=ascii)
def test_an_index_is_a_number(value):
    """What is no whole number is no index."""
    with pytest.raises(TypeError, match=rf"^index must be an? int, not {type(value).__name__}$"):
        name(index=value)


@pytest.mark.parametrize("value", [-1, 10**18, 10**5_000], ids=["below", "above", "monstrous"])
def test_an_index_has_its_range(value):
    """A number below 0, or of more than 18 digits, is no index."""
    with pytest.raises(
        ValueError, match=r"^index must be 0 or more, and below 1000000000000000000$"
    ):
        name(index=value)


def test_a_template_with_an_index_wants_one():
    """A template that names the index is refused if there is none."""
    with pytest.raises(ValueError, match=r"^template names {index}, and there is none$"):
        name(template="{index} {title}")


@pytest.mark.parametrize(
    "suffix",
    [
        "a", " ", " ~", "~1a2b", " ~1A2B", " ~xyz", " (2)", "/..", " ~1a2b.wav", " ~1\n",
        " ~" + "a" * 65, "x" * 999,
    ],
)  # fmt: skip
def test_a_suffix_is_one_of_ours(suffix):
    """A suffix that `unique_suffix` did not make is refused."""
    with pytest.raises(
        ValueError, match=r"^suffix must be one of unique_suffix\(\), not ' ?"
    ) as caught:
        name(suffix=suffix)

    assert f"suffix must be one of unique_suffix(), not {suffix[:80]!r}" == str(caught.value)


@pytest.mark.parametrize("length", [-1, 0, 65])
def test_a_suffix_has_digits(length):
    """A suffix has 1 to 64 digits."""
    with pytest.raises(ValueError, match=rf"^length must be 1 to 64, not {length}$"):
        unique_suffix(track(), length)


# --- ids ------------------------------------------------------------------------------------


@pytest.mark.parametrize("audio_id", ["a", "a-b_c.d", "\u00e9", AUDIO_ID, "x" * 40, "\u96ea" * 13])
def test_an_id_is_shown_as_it_is(audio_id):
    """An id that is safe and not longer than the service's stays as it is."""
    assert f"a [{audio_id}].wav" == file_name(track("a", audio_id=audio_id))


@pytest.mark.parametrize(
    ("audio_id", "shown"),
    [
        ("a/b", "a_b"),
        ("a:b", "a_b"),
        ("a~b", "a_b"),
        ("..\\..", ".._.."),
        ("e\u0301", "\u00e9"),
        ("\u3164", ""),
        ("x" * 41, "x" * 23),
        ("x" * 256, "x" * 23),
        ("\u96ea" * 256, "\u96ea" * 7),
        ("e\u0301" * 128, "\u00e9" * 7),
        ("\u0301" * 256, "\u0301" * 11),
    ],
    ids=short,
)
def test_an_id_that_cannot_be_shown_has_its_hash_beside_it(audio_id, shown):
    """Of an id that is unsafe or too long a part is shown, and its hash stands for the whole."""
    digits = hashlib.sha256(audio_id.encode()).hexdigest()[:16]

    found = file_name(track("a", audio_id=audio_id))

    assert unicodedata.normalize("NFC", f"a [{shown}~{digits}].wav") == found


def test_ids_that_look_alike_make_different_names():
    """Two ids of which the same would be shown come to different names."""
    many = ["a/b", "a:b", "a_b", "a\\b", "e\u0301", "\u00e9", "x" * 41, "x" * 42, "x" * 23]
    names = {file_name(track("a", audio_id=one), template="{audio_id}") for one in many}

    assert len(many) == len(names)


def test_an_id_that_shows_nothing_is_not_hidden():
    """A name that would begin with the mark of a hash begins otherwise."""
    found = file_name(track(audio_id="\u3164"), template="{audio_id}")

    assert found.startswith("_~")


# --- length ---------------------------------------------------------------------------------


def test_a_long_title_gives_way():
    """A name that would be too long loses the end of its title, and nothing else."""
    found = name("x" * 500)

    assert found == "x" * (239 - len(f" [{AUDIO_ID}].wav")) + f" [{AUDIO_ID}].wav"
    assert 239 == len(found)
    assert found == name("x" * 499)


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        # 240 bytes without the extension, and the one that may have to stand first.
        ("a" * 235, "a" * 235),
        ("a" * 236, "a" * 235),
        ("a" * 232 + "\u00e9", "a" * 232 + "\u00e9"),
        ("a" * 233 + "\u00e9", "a" * 233),  # Three bytes when it is decomposed.
        ("\u96ea" * 80, "\u96ea" * 78),
        ("a\U0001f3b5" * 60, "a\U0001f3b5" * 47),
        ("\uac01" * 60, "\uac01" * 26),
        # Not between a letter and its marks.
        ("a" * 232 + "x\u0338", "a" * 232 + "x\u0338"),
        ("a" * 233 + "x\u0338", "a" * 233),
        ("a" * 234 + "x\u0338", "a" * 234),
        ("a" * 231 + "x\u0338\u0323", "a" * 231),
        ("a" * 229 + "x\u0338\u0323\u0331\u0330", "a" * 229),
        # Unless there is nothing before it.
        ("x" + "\u0338" * 300, "x" + "\u0338" * 117),
        ("\u0338" * 300, "_" + "\u0338" * 117),
        # Not after a blank.
        ("a" * 234 + " b", "a" * 234),
        ("-" * 300, "_" + "-" * 235),
    ],
    ids=short,
)
def test_a_title_is_cut_between_characters(title, expected):
    """A title is cut where a character ends, so that 240 bytes are enough in every form."""
    found = name(title, template="{title}")

    assert f"{expected}.wav" == found
    assert [] == faults(found)


@pytest.mark.parametrize(
    "title", ["\U0001f3b5" * 500, "\u1fa7" * 500, "x" + "\u0338" * 400, "a" * 500]
)
def test_there_is_always_room_for_some_of_the_title(title):
    """With everything else as long as it can be, 20 bytes are left for the title."""
    long = Track("\u96ea" * 256, "\u00e9" * 256, title=title)
    template = "x" * 50 + "{title}{music_task_id}{audio_id}{index}"

    found = file_name(long, template=template, index=10**18 - 1, suffix=unique_suffix(long, 64))

    assert [] == faults(found)
    assert found.startswith("x" * 50 + unicodedata.normalize("NFC", title)[0])
    assert len(unicodedata.normalize("NFD", found).encode()) >= 225


# --- whatever the title ---------------------------------------------------------------------


def test_the_corpus_is_as_long_as_promised():
    """There are at least 100 titles, each once."""
    assert len(set(TITLES)) == len(TITLES) >= 100


@pytest.mark.parametrize("title", TITLES, ids=short)
def test_a_hostile_title_makes_a_harmless_name(title, tmp_path):
    """Whatever the title, its name is safe on every system, and one can write to it here."""
    for template in TEMPLATES:
        for suffix in ("", unique_suffix(track())):
            found = name(title, template=template, index=3, suffix=suffix)
            assert [] == faults(found), template
            path = tmp_path / found
            path.write_bytes(b"RIFF")
            (tmp_path / f"{found}.part.json").write_bytes(b"{}")
            assert path.resolve().parent == tmp_path.resolve()
    assert {path.name for path in tmp_path.iterdir() if path.suffix == ".wav"} == {
        name(title, template=template, index=3, suffix=suffix)
        for template in TEMPLATES
        for suffix in ("", unique_suffix(track()))
    }


def test_the_corpus_makes_different_names():
    """Tracks of hostile titles come to names that no system takes for one another."""
    tracks = [track(title, audio_id=f"{at:08x}") for at, title in enumerate(TITLES)]
    for template in TEMPLATES:
        taken = {}
        for at, one in enumerate(tracks):
            found = file_name(one, template=template, index=at)
            if collision_key(found) in taken:
                found = file_name(one, template=template, index=at, suffix=unique_suffix(one))
            taken[collision_key(found)] = found
        assert len(tracks) == len(taken), template


# A track strips its title; what it is not asked for must do no harm either.
HOSTILE = st.text() | st.text(
    "./\\:~-_ \u0301\u0338\u200b\u3164CONcon1\u00e9\uac01\ud800\n", max_size=300
)


TRACKS = st.builds(Track, ids, ids, title=HOSTILE)


@given(TRACKS, st.sampled_from(TEMPLATES), st.integers(0, 10**18 - 1), st.booleans())
def test_any_track_makes_a_harmless_name(one, template, index, is_again):
    """Whatever title and ids are, the name is safe on every system, and the same each time."""
    suffix = unique_suffix(one, 64) if is_again else ""

    found = file_name(one, template=template, index=index, suffix=suffix)

    assert [] == faults(found)
    assert found == file_name(one, template=template, index=index, suffix=suffix)
    assert f"{suffix}.wav" == found[-len(suffix) - 4 :]


@given(HOSTILE)
def test_what_is_clean_stays_so(title):
    """What is safe of a title is safe: nothing is lost by a second look."""
    once = _clean(title)

    assert once == _clean(once)
    assert "~" not in once
    assert "" == once or not once[0].isspace()


def test_every_character_is_harmless():
    """No single character makes a name that some system would not take."""
    for char in CHARACTERS:
        clean = _clean(f"_{char}_")
        assert clean == _clean(clean)
        assert clean.startswith("_")
        assert clean.endswith("_")
        if not char.isascii():
            assert not {"/", "\\"} & set(unicodedata.normalize("NFKC", clean)), ascii(char)
            # Why one length is enough.
            assert len(clean.encode()) <= len(unicodedata.normalize("NFD", clean).encode())


# --- what is taken for one name -------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a.wav", "A.WAV"),
        ("\u00e9", "e\u0301"),
        ("\u00e9", "\u00c9"),
        ("\u00e9", "E\u0301"),
        ("\u212b", "\u00e5"),
        ("\u1e9b\u0323", "\u1e69"),
        ("a\u0323\u0307", "a\u0307\u0323"),
        ("\uac00", "\u1100\u1161"),
        ("\u00df", "SS"),
        ("\u00df", "\u1e9e"),
        ("\u0131", "I"),
        ("\u0130", "i\u0307"),
        ("\u03c3", "\u03c2"),
        ("\u03c3", "\u03a3"),
        ("\u017f", "S"),
        ("\u212a", "k"),
        ("\u01c4", "\u01c5"),
        ("\u1fb3", "\u1fbc"),
        ("\u1fb3", "\u0391\u0399"),
        ("\u1fb7", "\u1fbc\u0342"),
        ("\u0345", "\u0399"),
        ("\uff21", "a"),
        ("\ufb01", "FI"),
        ("\u13a0", "\uab70"),
        ("a\u200db", "AB"),
        ("a\ufe0f", "a"),
        ("a\u034f\u0301", "\u00e1"),
        ("a.wav", "a.wav."),
        ("a.wav", "a.wav . "),
        ("a  b", "a b"),
        ("a\ud800", "a"),
    ],
    ids=short,
)
def test_what_some_system_takes_for_one_has_one_key(one, other):
    """Names that differ in case, form, width or what is not seen have one key."""
    assert collision_key(one) == collision_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a", "b"),
        ("a.wav", "a wav"),
        ("a", "a ~1a2b3c4d"),
        ("e", "\u00e9"),
        ("\u304b", "\u304c"),
        ("\u0915\u093f", "\u0915\u0941"),
        ("a_b", "a-b"),
        ("1", "2"),
        ("", "a"),
    ],
    ids=short,
)
def test_different_names_have_different_keys(one, other):
    """Names that every system keeps apart have different keys, accents included."""
    assert collision_key(one) != collision_key(other)


# Upper case moves a subscript iota behind the marks, or not, depending on the form.
PLAIN = st.text().filter(lambda text: "\u0345" not in unicodedata.normalize("NFD", text))


@given(
    PLAIN | st.text("aAe\u0301\u0323\u00e9\u00df\u1e9e\u0130\u0131iI\u03c3\u03c2\u03a3\uac00. ~")
)
def test_a_key_does_not_depend_on_the_form(text):
    """Composed or not, in capitals or small letters, a name has one key."""
    composed = unicodedata.normalize("NFC", text)
    decomposed = unicodedata.normalize("NFD", text)
    forms = [text, composed, decomposed, composed.upper(), composed.lower(), composed.casefold()]

    assert {collision_key(text)} == {
        collision_key(form) for form in [*forms, f"{text}.", f"{text} ", collision_key(text)]
    }


def test_every_character_has_one_key():
    """Whatever a system does to the case or form of a character, the key is the same."""
    for char in CHARACTERS:
        composed = unicodedata.normalize("NFC", char)
        forms = {char, composed, unicodedata.normalize("NFD", char), collision_key(char)}
        forms |= {composed.upper(), composed.lower(), composed.casefold(), composed.title()}
        assert 1 == len({collision_key(form) for form in forms}), ascii(char)
