"""Catalogs as people make them: by spreadsheet, by script, and by hand."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import tracemalloc
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kie_wav_async import Track
from kie_wav_async.cli.bulk.catalog_file import InvalidLine, Row, read_catalog
from kie_wav_async.cli.common.output import CliError

if TYPE_CHECKING:
    from pathlib import Path

Read = Callable[[bytes], "list[Row | InvalidLine]"]

HEADER = b"music_task_id,audio_id,title\n"
MAX_LINE = 1 << 18


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read bytes as a catalog."""

    def read(content: bytes) -> list[Row | InvalidLine]:
        path = tmp_path / "catalog"
        path.write_bytes(content)
        return list(read_catalog(str(path)))

    return read


@pytest.fixture
def refusal(read: Read) -> Callable[[bytes], str]:
    """Say why bytes are no catalog."""

    def refusal(content: bytes) -> str:
        with pytest.raises(CliError) as caught:
            read(content)
        assert 2 == caught.value.exit_code
        return str(caught.value)

    return refusal


def short(value: object) -> str:
    """Return the beginning of *value* as the id of a test."""
    return ascii(value)[:50]


def json_lines(*values: object) -> bytes:
    """Return *values* as JSON lines."""
    return "".join(json.dumps(value) + "\n" for value in values).encode()


# --- what is read ---------------------------------------------------------------------------


def test_csv(read) -> None:
    """A row has the line it is on, its two ids and its title."""
    assert [
        Row(2, "m1", "a1", "One"),
        Row(3, "m1", "a2", None),
        Row(4, "m2", None, "All of it"),
    ] == read(HEADER + b"m1,a1,One\nm1,a2,\nm2,,All of it\n")


def test_json_lines(read) -> None:
    """A JSON line has the same keys, of which only the music task's is needed."""
    assert [
        Row(1, "m1", "a1", "One"),
        Row(2, "m1", "a2", None),
        Row(3, "m2", None, None),
        Row(4, "m3", None, None),
    ] == read(
        json_lines(
            {"music_task_id": "m1", "audio_id": "a1", "title": "One"},
            {"audio_id": "a2", "music_task_id": "m1", "title": None, "more": [{"audio_id": 1}]},
            {"music_task_id": "m2"},
            {"music_task_id": "m3", "audio_id": ""},
        )
    )


@pytest.mark.parametrize(
    "content",
    [
        b"music_task_id,audio_id\nm,a\n",
        b"music_task_id,audio_id\nm,a",
        b"music_task_id,audio_id\r\nm,a\r\n",
        b"\xef\xbb\xbfmusic_task_id,audio_id\nm,a\n",
        b'"music_task_id","audio_id"\n"m","a"\n',
        b"music_task_id, audio_id\nm, a \n",
        b"audio_id,length,music_task_id,,\na,200,m,,\n",
        b"audio_id,x,x,music_task_id\na,1,2,m\n",
        b"\xef\xbb\xbf" + json_lines({"music_task_id": "m", "audio_id": "a"}),
        b'  {"music_task_id": "m", "audio_id": "a"}\r\n\r\n',
        b'{"music_task_id": "m", "audio_id": "a"}',
    ],
)
def test_the_same_in_other_words(read, content: bytes) -> None:
    """Neither the order of columns nor line ends, marks, quotes or further columns matter."""
    (row,) = read(content)

    assert ("m", "a", None) == (row.music_task_id, row.audio_id, row.title)


def test_lines_with_nothing_on_them(read) -> None:
    """Empty lines are left out, and counted all the same."""
    assert [Row(4, "m", "a", None), Row(7, "m", "b", None)] == read(
        b"\n  \nmusic_task_id,audio_id\nm,a\n\n \t\r\nm,b\n\n"
    )


def test_rows_with_nothing_in_their_cells(read) -> None:
    """Rows of empty cells, which spreadsheets leave, are left out, however many cells they have."""
    assert [Row(2, "m", "a", None), Row(8, "m", "b", None)] == read(
        HEADER + b'm,a,\n,,\n , ,\t\r\n,\n,,,,\n"","",""\nm,b,\n,,'
    )


def test_the_line_of_a_spreadsheet_for_itself(read) -> None:
    """A first line that names the comma as what is between cells is not the header."""
    assert [Row(3, "m", "a", None)] == read(b"sep=,\r\nmusic_task_id,audio_id\r\nm,a\r\n")


# --- as the service spells it ---------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"music_task_id": "m", "id": "a"},
        {"taskId": "m", "audioId": "a", "callBackUrl": "https://h.example/"},
        {"task_id": "m", "audio_id": "a"},
        {"musicTaskId": "m", "AudioID": "a"},
        {"taskId": "m", "id": "a", "audioUrl": "https://h.example/", "duration": 1.5},
        {"id": "17", "task_id": "the conversion's", "music_task_id": "m", "audio_id": "a"},
    ],
    ids=short,
)
@pytest.mark.parametrize("kind", ["json", "csv"])
def test_the_spellings_of_the_service(read, row: dict, kind: str) -> None:
    """A row may name its track as the service does, and then stands for that track alone."""
    lines = f"{','.join(row)}\n{','.join(map(str, row.values()))}\n".encode()
    (found,) = read(json_lines(row) if kind == "json" else lines)

    assert ("m", "a") == (found.music_task_id, found.audio_id)


TRACKS = [
    {"id": "a1", "title": "One", "audioUrl": "https://h.example/1.mp3", "duration": 1.5},
    {"id": "a2", "title": None, "prompt": '[verse] {\n"x"}'},
]
DATA = {
    "taskId": "m",
    "parentMusicId": "",
    "status": "SUCCESS",
    "response": {"taskId": "m", "sunoData": TRACKS},
}
JOB = {
    "taskId": "m",
    "model": "ai-music-api/generate",
    "state": "success",
    "param": json.dumps({"input": json.dumps({"prompt": "x"})}),
    "resultJson": json.dumps({"data": TRACKS}),
    "failCode": None,
}
ANSWERS = {
    "all of it": {"code": 200, "msg": "success", "data": DATA},
    "from data on": DATA,
    "from response on": DATA["response"],
    "the tracks as data": {"code": 200, "data": {**DATA, "response": {"data": TRACKS}}},
    "the callback": {
        "code": 200,
        "msg": "ok",
        "data": {"callbackType": "complete", "task_id": "m", "data": TRACKS},
    },
    "the callback from data on": {"callbackType": "complete", "task_id": "m", "data": TRACKS},
    "tracks by audioId": {
        "taskId": "m",
        "sunoData": [{"audioId": "a1", "title": "One"}, TRACKS[1]],
    },
    "a text of JSON": {"code": 200, "data": {**DATA, "response": json.dumps(DATA["response"])}},
    "of the jobs API": {"code": 200, "msg": "success", "data": JOB},
    "of the jobs API, from data on": JOB,
    "delivery failed": {"code": 200, "data": {**DATA, "status": "CALLBACK_EXCEPTION"}},
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=list(ANSWERS))
@pytest.mark.parametrize("indent", [None, 0, 2, "\t"])
def test_a_saved_answer(read, answer: dict, indent) -> None:
    """An answer of the service is a catalog of its tracks, however it is laid out."""
    content = json.dumps(answer, indent=indent).encode()
    first, second = read(content)

    assert Row(1, "m", "a1", "One", content.count(b"\n") + 1) == first
    assert Row(1, "m", "a2", None, 0) == second


def test_answers_and_rows_one_after_another(read) -> None:
    """Several answers, on a line each or on many, and rows among them are one catalog."""
    indented = json.dumps(ANSWERS["all of it"], indent=4).encode() + b"\n"
    compact = json_lines(ANSWERS["the callback"], {"music_task_id": "m", "audio_id": "a3"})
    found = read(indented + b"\n" + compact + indented)

    lines = indented.count(b"\n")
    assert [1, 1, *[lines + 2] * 2, lines + 3, *[lines + 4] * 2] == [one.line for one in found]
    assert ["a1", "a2", "a1", "a2", "a3", "a1", "a2"] == [one.audio_id for one in found]


NO_ANSWERS = [
    ({"code": 501, "msg": "failed\u001b[2J", "data": None}, "its code is 501 'failed"),
    ({"code": 200, "msg": "success", "data": None}, "a response without tracks"),
    ({"code": 200, "data": {**DATA, "status": "FIRST_SUCCESS"}}, "its status is 'FIRST_SUCCESS'"),
    ({"code": 200, "data": {**JOB, "state": "generating"}}, "its state is 'generating'"),
    ({"code": 200, "data": {**JOB, "resultJson": '{"resultUrls":["u"]}'}}, "without tracks"),
    ({"code": 200, "data": {**JOB, "resultJson": "{"}}, "a response without tracks"),
    ({**DATA, "status": ["x"]}, "its status is \"['x']\""),
    ({"code": 200, "data": {"callbackType": "first", "task_id": "m", "data": TRACKS}}, "'first'"),
    ({"code": 200, "data": {"callbackType": "complete", "task_id": "m", "data": []}}, "without tr"),
    (
        {"code": 200, "data": {"taskId": "w", "musicId": "a", "response": {"audioWavUrl": "u"}}},
        "out",
    ),
    ({"sunoData": TRACKS}, "a response without its music task"),
    ({**DATA, "taskId": "n"}, "a response of two music tasks"),
    ({"taskId": ["m"], "sunoData": [{"id": 7}]}, "track 1 of the response has no id"),
    ({"taskId": "m", "sunoData": [*TRACKS, 7]}, "track 3 of the response has no id"),
    ({"taskId": "m", "sunoData": [{"id": "a b"}]}, "audio_id must be 1 to 256 visible"),
    ({"taskId": "m", "sunoData": {"id": "a"}}, "a response without tracks"),
]


@pytest.mark.parametrize(("answer", "words"), NO_ANSWERS, ids=short)
def test_an_answer_without_what_is_wanted(read, answer: dict, words: str) -> None:
    """An answer that does not have all tracks is one bad line, whatever else it has."""
    content = json.dumps(answer, indent=1).encode()
    (bad,) = read(content)

    assert (1, content.count(b"\n") + 1) == (bad.line, bad.lines)
    assert words in bad.why


@pytest.mark.parametrize("size", [1, 20, 100, -1])
def test_an_answer_that_was_cut_off(read, size: int) -> None:
    """What is left of an answer that was not saved to its end is one bad line."""
    content = json.dumps(ANSWERS["all of it"], indent=2).encode()[:size].rpartition(b"\n")
    content = content[0] or content[2]
    row = json_lines({"music_task_id": "m", "audio_id": "a"})
    before, bad = read(row + content)

    assert Row(1, "m", "a", None) == before
    assert (2, content.count(b"\n") + 1) == (bad.line, bad.lines)
    assert "the object that begins here has no end" == bad.why


@pytest.mark.parametrize(
    "broken", ["{", '{"a": [', '{"music_task_id": "m",', '{"a":', '{"a": {"b": 1']
)
def test_an_object_without_its_end(read, broken: str) -> None:
    """A line that breaks off costs itself alone, and is not looked for the end of for long."""
    rows = [{"music_task_id": "m", "audio_id": str(number)} for number in range(300)]
    found = read(json_lines(rows[0]) + f"{broken}\n".encode() + json_lines(*rows[1:]))

    assert [2] == [one.line for one in found if isinstance(one, InvalidLine)]
    assert [str(number) for number in range(300)] == [
        one.audio_id for one in found if isinstance(one, Row)
    ]


def test_line_breaks_in_a_title(read) -> None:
    """A quoted cell may have line breaks, commas and quotation marks; its row is one."""
    assert [
        Row(2, "m", "a", 'One, "two" three', lines=3),
        Row(5, "m", "b", None),
    ] == read(HEADER + b'm,a,"One, ""two""\r\n\nthree"\nm,b,\n')


def test_any_script(read) -> None:
    """Ids and titles may be of any script."""
    assert [Row(2, "音乐", "ä", "Träumerei 𝄞")] == read(HEADER + "音乐,ä,Träumerei 𝄞\n".encode())


def test_a_header_alone(read) -> None:
    """A header without rows is a catalog of nothing."""
    assert [] == read(HEADER)


def test_titles_are_made_fit_to_show(read) -> None:
    """A title has nothing in it that a terminal might obey."""
    assert [Row(2, "m", "a", "red[31m")] == read(HEADER + b"m,a,red\x1b[31m\n")


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dash reads stdin and leaves it open."""
    stdin = io.TextIOWrapper(io.BytesIO(HEADER + b"m,a,\n"))
    monkeypatch.setattr("sys.stdin", stdin)

    assert [Row(2, "m", "a", None)] == list(read_catalog("-"))
    assert not stdin.buffer.closed


def test_rows_come_as_they_are_written() -> None:
    """A row is there as soon as its line is, so that a pipe may stay open."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb", buffering=0) as pipe:
        pipe.write(HEADER + b"m,a,\n")
        rows = read_catalog(f"/dev/fd/{reader}")
        assert Row(2, "m", "a", None) == next(rows)
        pipe.write(b"m,b,\n")
        assert Row(3, "m", "b", None) == next(rows)
    assert [] == list(rows)
    os.close(reader)


# --- bad lines ------------------------------------------------------------------------------

BAD_CSV = [
    (b"m", "1 cell where the header has 3"),
    (b"m,a", "2 cells where the header has 3"),
    (b"m,a,t,", "4 cells where the header has 3"),
    (b"m;a;t", "1 cell where"),
    (b",a,", "no music_task_id"),
    (b" ,a,t", "no music_task_id"),
    (b"m m,a,", "music_task_id must be"),
    (b"m m,,", "music_task_id must be"),
    (b"m,a\xe2\x80\xaeb,", "audio_id must be"),
    (b"m," + b"x" * 257 + b",", "audio_id must be"),
    (b"m,a,caf\xe9", "not UTF-8"),
    (b"m,a,\xed\xa0\x80", "not UTF-8"),
    (b"m,a,x\0y", "NUL"),
    (b"m,a\0,", "NUL"),
    (b"m,a,x\ry", "carriage return"),
    (b'm,a,"x"y', "write it twice"),
    (b'm,a,"x', "opened and not closed within 50 lines"),
    (b"m,a," + b"x" * 131_073, "field larger than field limit (131072)"),
    (b"m,a," + b"x" * 10_000_000, "longer than 256 KiB"),
]


@pytest.mark.parametrize(("line", "why"), BAD_CSV, ids=short)
def test_a_bad_line_of_csv(read, line: bytes, why: str) -> None:
    """A bad line is told with its number and why, and costs no other row."""
    before, bad, *after = read(HEADER + b"m,1,\n" + line + b"\nm,2,\r\nm,3,\n")

    assert Row(2, "m", "1", None) == before
    assert (3, 1) == (bad.line, bad.lines)
    assert why in bad.why
    assert [Row(4, "m", "2", None), Row(5, "m", "3", None)] == after


BAD_JSON = [
    (b"nonsense", "no JSON: Expecting value at character 1"),
    (b'{"music_task_id": "m",}', "no JSON: "),
    (b'{"music_task_id": "m"} {"music_task_id": "n"}', "no JSON: Extra data at character 24"),
    (b'["m", "a"]', "a list, not a JSON object"),
    (b'"m"', "a string, not a JSON object"),
    (b"null", "null, not a JSON object"),
    (b"17", "a number, not a JSON object"),
    (b"{}", "no music_task_id"),
    (b'{"music_task_id": null}', "no music_task_id"),
    (b'{"music_task_id": "", "audio_id": "a"}', "no music_task_id"),
    (b'{"music_task_id": 7}', "music_task_id must be a string, not a number"),
    (b'{"music_task_id": "m", "audio_id": NaN}', "audio_id must be a string, not a number"),
    (b'{"music_task_id": "m", "audio_id": false}', "a string, not true or false"),
    (b'{"music_task_id": "m", "audio_id": ["a"]}', "a string, not a list"),
    (b'{"music_task_id": "m", "title": {"en": "x"}}', "title must be a string, not an object"),
    (b'{"music_task_id": "m", "audio_id": " a"}', "audio_id must be 1 to 256 visible"),
    (b'{"music_task_id": "\\ud800"}', "music_task_id must be 1 to 256 visible"),
    (b'{"music_task_id": "m", "track": "a"}', "no audio_id, and 'track' is not understood"),
    (b'{"music_task_id": "m", "clip_id": "a", "x": 1}', "'clip_id' and 'x' are not understood"),
    (b'{"task_id": "m", "musicId": "a"}', "no audio_id, and 'musicId' is not understood"),
    (b'{"song": "m", "track": "a"}', "no music_task_id, and 'song' and 'track' are not underst"),
    (b'{"music_task_id": "m", "id": ""}', "no audio_id, and 'id' is not understood"),
    (b'{"music_task_id": "m", "id": null, "x": 1}', "'x' and 'id' are not understood"),
    (b'{"music_task_id": "m", "id": 17}', "id must be a string, not a number"),
    (b'{"music_task_id": "m", "audio_id": null, "id": "a"}', "audio_id is empty, but 'id' is not"),
    (b'{"music_task_id": "m", "audio_id": "a", "audioId": "b"}', "audio_id and audioId are both"),
    (b'{"music_task_id": null, "task_id": "w", "audio_id": "a"}', "no music_task_id"),
    (b'{"music_task_id": "m", "audio_id": "a", "audio_id": "b"}', "audio_id is given twice"),
    (b'{"music_task_id": "m", "x": "\xff"}', "not UTF-8"),
    (b'{"music_task_id": "m", "x": "\0"}', "NUL"),
    (b'{"x": ' + b"[" * 100_000, "nested too deep"),
    (b'{"x": ' + b"9" * 5_000 + b"}", "a number too long"),
    (b'{"x": "' + b"x" * 10_000_000 + b'"}', "longer than 256 KiB"),
]


@pytest.mark.parametrize(("line", "why"), BAD_JSON, ids=short)
def test_a_bad_line_of_json(read, line: bytes, why: str) -> None:
    """A bad JSON line is told with its number and why, and costs no other."""
    good = json_lines({"music_task_id": "m", "audio_id": "a"})
    before, bad, after = read(good + line + b"\n" + good)

    assert (1, 2, 3) == (before.line, bad.line, after.line)
    assert (Row, InvalidLine, Row) == (type(before), type(bad), type(after))
    assert why in bad.why


def test_the_first_json_line_may_be_bad(read) -> None:
    """What kind of catalog it is shows in its first character, whatever follows."""
    bad, row = read(b'{"music_task_id": "\xff"}\n{"music_task_id": "m"}\n')

    assert (InvalidLine(1, "not UTF-8"), Row(2, "m", None, None)) == (bad, row)


def test_a_bad_line_within_a_row(read) -> None:
    """What is wrong with a later line of a row is told with that line's number, and once."""
    bad, row = read(HEADER + b'm,a,"one\ntwo \xff\nthree"\nm,b,\n')

    assert InvalidLine(2, "its line 3 is not UTF-8", lines=3) == bad
    assert Row(5, "m", "b", None) == row


def test_a_stray_quotation_mark(read) -> None:
    """A quotation mark that is not closed costs its own line, however much follows."""
    rows = [b"m,%d,\n" % number for number in range(200)]
    found = read(HEADER + b'm,"x,\n' + b"".join(rows) + b'm,"y"\n,z\n')

    assert [2, 203, 204] == [one.line for one in found if isinstance(one, InvalidLine)]
    assert [str(number) for number in range(200)] == [
        one.audio_id for one in found if isinstance(one, Row)
    ]


# --- no catalog at all ----------------------------------------------------------------------

NO_HEADER = [
    (b"m1,a1,One\nm2,a2,Two\n", "found 'm1,a1,One' (the first line must name"),
    (b"music_task_id\nm1\n", "found 'music_task_id' (it has no column audio_id, which may be"),
    (b"music_task_id,track\nm1,a\n", "found 'music_task_id,track' (it has no column audio_id"),
    (b"music_task_id,audio;id\nm1,a\n", "(it has no column audio_id, which"),
    (b"song,audio_id\nm1,a\n", "(it has no column music_task_id)"),
    (b"music task;x,track\nm1,a\n", "(the first line must name the columns)"),
    (b"sep=;\nmusic_task_id;audio_id\n", "(it says that cells are separated by ';'; commas"),
    (b"music_task_id|audio_id\nm|a\n", "(it has vertical bars between its cells; commas are"),
    (b"music_task_id,taskId,task_id,audio_id\n", "(it has both taskId and task_id)"),
    (b"music_task_id;audio_id\nm;a\n", "(it has semicolons between its cells; commas are"),
    (b"music_task_id\taudio_id\nm\ta\n", "(it has tabs between its cells; commas are"),
    (b"music_task_id,audio_id,audio_id\n", "(it has audio_id twice)"),
    (b"title,music_task_id,title,audio_id\n", "(it has title twice)"),
    (b"music_task_id,audio_id\rm,a\r", "(its lines end in carriage returns alone;"),
    (b'"music_task_id,audio_id\nm,a\n', "found '\"music_task_id,audio_id' (a quotation mark"),
    (b"x" * 5_000 + b"\n", "found '" + "x" * 120 + "...'"),
]


@pytest.mark.parametrize(("content", "words"), NO_HEADER, ids=short)
def test_a_header_that_does_not_fit(refusal, content: bytes, words: str) -> None:
    """Without its header a catalog is refused, with what was found and what is expected."""
    said = refusal(content)

    assert "has no header that fits: expected music_task_id,audio_id[,title], found '" in said
    assert words in said


NO_CATALOG = [
    (b"", "is empty: a catalog begins with the line music_task_id,audio_id[,title]"),
    (b"\xef\xbb\xbf", "is empty"),
    (b"\n\n \n", "is empty"),
    (b'[{"music_task_id": "m"}]', "one object on each line, and no list around them"),
    ("music_task_id,audio_id".encode("utf-16"), "its line 1 is UTF-16: save it as UTF-8"),
    (b"\x1f\x8b\x08\x00\xff\xff", "its line 1 is not text"),
    (b"music_task_id,audio_id,caf\xe9\n", "its line 1 is not UTF-8"),
    (b"x" * (MAX_LINE + 1), "its line 1 is longer than 256 KiB"),
]


@pytest.mark.parametrize(("content", "words"), NO_CATALOG, ids=short)
def test_what_is_no_catalog(refusal, content: bytes, words: str) -> None:
    """What is no catalog at all is refused in one sentence."""
    assert words in refusal(content)


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a name with nothing behind it, and one that cannot be are usage errors."""
    monkeypatch.setattr("sys.stdin", None)
    for name, words in [
        (str(tmp_path), "is a folder: name the catalog in it"),
        (str(tmp_path / "nowhere.csv"), "there is no file "),
        (str(tmp_path / "x\0y"), "cannot open "),
        ("x" * 5_000, "File name too long"),
        ("-", "there is no stdin to read the catalog from"),
    ]:
        with pytest.raises(CliError, match=words) as caught:
            next(read_catalog(name))
        assert 2 == caught.value.exit_code


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_one_may_not_read(tmp_path: Path) -> None:
    """A catalog that may not be read is a usage error that says so."""
    path = tmp_path / "catalog.csv"
    path.write_bytes(HEADER)
    path.chmod(0)

    with pytest.raises(CliError, match="Permission denied"):
        next(read_catalog(str(path)))


def test_a_disk_that_fails_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalog that cannot be read to its end says how far it was read, and ends with 3."""

    class Failing(io.BytesIO):
        def readline(self, size: int | None = -1) -> bytes:
            if line := super().readline(size):
                return line
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Failing(HEADER + b"m,a,\n")))
    rows = read_catalog("-")

    assert Row(2, "m", "a", None) == next(rows)
    with pytest.raises(CliError, match="stdin cannot be read on after line 2: Input/") as caught:
        next(rows)
    assert 3 == caught.value.exit_code


# --- whatever comes -------------------------------------------------------------------------

_PIECES = [
    HEADER, b"music_task_id,audio_id\n", b"\n", b"\r\n", b"\r", b",", b'"', b'""', b'","', b"m",
    b"a", b"m,a,t\n", b"m,a\n", b'm,a,"t\nt"\n', b"\0", b"\xff", b"\xc3\xa4", b"\xef\xbb\xbf", b" ",
    b";", b"\t", b'{"music_task_id": "m"}\n', b'{"music_task_id":', b"{", b"}", b"[", b"]", b":",
    b'"music_task_id"', b'"audio_id"', b"\\ud800", b"NaN", b"null", b"\x1c", b"\xe2\x80\xa8",
    b'"id"', b'"taskId"', b'"data"', b'"response"', b'"sunoData"', b'"status"', b'"code"', b"200",
    b'{"taskId":"m","sunoData":[\n{"id":"a"}\n,{"id":"b"}]\n}\n',
]  # fmt: skip
_contents = st.tuples(
    st.sampled_from([b"", HEADER, b'{"music_task_id": "m"}\n']),
    st.binary(max_size=80) | st.lists(st.sampled_from(_PIECES), max_size=60).map(b"".join),
).map(b"".join)


def _is_blank(line: bytes) -> bool:
    """Whether a line has nothing on it, or empty cells alone."""
    return re.sub(r'[\s,"]', "", line.decode(errors="replace")) == ""


@given(_contents)
@example(HEADER + b'a","b\n' * 70)
@example(HEADER + b'"' * 60)
def test_every_line_is_accounted_for(tmp_path_factory, content: bytes) -> None:
    """Whatever bytes come, every line is a row, a bad line or empty, or there is one error."""
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    try:
        found = list(read_catalog(str(path)))
    except CliError:
        return

    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    filled = [number for number, line in enumerate(lines, start=1) if not _is_blank(line)]
    covered = [n for one in found for n in range(one.line, one.line + one.lines)]
    assert covered == sorted(set(covered))
    is_json = lines[filled[0] - 1].lstrip().startswith(b"{")
    missing = set(filled) - set(covered)
    if is_json:
        assert set() == missing
    else:  # The header, which may have a line break in a column that is not ours.
        assert missing == set(filled[: len(missing)])
        assert filled[0] in missing
    for one in found:
        if isinstance(one, Row):
            Track(one.music_task_id, one.audio_id or "x", title=one.title)


_cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
_ids = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12)


@given(st.lists(st.tuples(_ids, _ids | st.just(""), _cells, _cells)))
def test_what_a_csv_writer_wrote_is_read(tmp_path_factory, rows) -> None:
    """Whatever a writer of CSV makes of ids and titles is read as it was meant."""
    path = tmp_path_factory.getbasetemp() / "written"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["music_task_id", "note", "audio_id", "title"])
        writer.writerows((music, note, audio, title) for music, audio, title, note in rows)

    found = list(read_catalog(str(path)))

    assert [
        (music, audio or None, Track("m", "a", title=title).title)
        for music, audio, title, _ in rows
    ] == [(row.music_task_id, row.audio_id, row.title) for row in found]


@given(st.lists(st.tuples(_ids, st.none() | _ids, st.none() | st.text())))
def test_what_a_json_writer_wrote_is_read(tmp_path_factory, rows) -> None:
    """Whatever a writer of JSON makes of ids and titles is read as it was meant."""
    path = tmp_path_factory.getbasetemp() / "written"
    names = ("music_task_id", "audio_id", "title")
    path.write_bytes(json_lines(*(dict(zip(names, row, strict=True)) for row in rows)))
    try:
        found = list(read_catalog(str(path)))
    except CliError:
        assert [] == rows
        return

    assert [(music, audio, Track("m", "a", title=title).title) for music, audio, title in rows] == [
        (row.music_task_id, row.audio_id, row.title) for row in found
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"m,%d,\n",
        b'a","b%d\n',
        b'm,%d,"x\n',
        b'{"music_task_id": "m%d"}\n',
        b'{"a": [{"%d": [\n',
        b'{"a": [%d\n',
    ],
    ids=["csv", "quotes", "open", "json", "deep", "broken"],
)
def test_memory_is_flat(tmp_path: Path, line: bytes) -> None:
    """Ten times as many lines take no more memory, good or bad."""

    def peak(count: int) -> int:
        path = tmp_path / f"{count}"
        with path.open("wb") as file:
            file.write(b"" if line.startswith(b"{") else HEADER)
            file.writelines(line % number for number in range(count))
        tracemalloc.start()
        found = sum(one.lines for one in itertools.islice(read_catalog(str(path)), None))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == found
        return top

    peak(200)  # What is loaded once is loaded now.
    assert peak(4_000) < peak(400) + 20_000


@pytest.mark.parametrize("before", [b",,\n", b'"","",\r\n, ,\n\n', b"sep=,\n,,,\n"])
def test_rows_of_empty_cells_before_the_header(read, before: bytes) -> None:
    """Rows that a spreadsheet leaves above the header are left out as those below are."""
    (row,) = read(before + b"music_task_id,audio_id\nm,a\n")

    assert Row(before.count(b"\n") + 2, "m", "a", None) == row


@pytest.mark.parametrize("content", [b",,\n", b"sep=,\n", b"sep=,\n,,\n"])
def test_a_file_without_a_header_is_told_so(read, content: bytes) -> None:
    """What separates the cells is no problem of a file that has none."""
    with pytest.raises(CliError, match="the first line must name the columns"):
        read(content)
