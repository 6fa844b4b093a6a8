"""Lines of cells: what is text stays text, whatever reads it."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bulk_runs import LEDGER, SAVING, Bulk, write_catalog, write_lines
from cli_runs import KEY, names, service, submit_before
from kie_wav_async import Track
from kie_wav_async.cli import main
from kie_wav_async.cli.common.output import cell, print_line, text_of
from kie_wav_async.ledger import AttemptOutcome, SqliteLedger, TrackState

# What a spreadsheet takes for a formula, and what it takes off to find one.
ODD = ["=1+1", "+1", "-1", "@SUM(1)", '"=1+1"', "'=1", "\uff1d1", "--help"]
# Put before what is text in fact.
EXPECTED = [f"'{text}" for text in ODD]
PLAIN = ["a=1", "'Til", "a", "", "\u2026", "1-2"]


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in an empty folder, without random waits."""
    monkeypatch.setattr("random.random", lambda: 0.0)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bulk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bulk:
    """Run ``kie-wav bulk``."""
    return Bulk(capsys, monkeypatch)


def original(text: str) -> str:
    """Return what a cell was, as the documents say how to find out."""
    return text[1:] if re.match(r"""'+ *[=+\-@"]""", text) else text


@pytest.mark.parametrize("text", [*ODD, " =1", "''=1", "\u207a1", "\ufe631"])
def test_a_formula_is_made_text(text: str) -> None:
    """A cell that some spreadsheet may take for a formula has an apostrophe before it."""
    assert f"'{text}" == cell(text)


@pytest.mark.parametrize("text", PLAIN)
def test_other_cells_are_as_they_are(text: str) -> None:
    """A cell that is text to everybody is not changed."""
    assert text == cell(text)


@given(st.text(st.sampled_from("'=+-@\" a1"), max_size=6))
@example("'=")
def test_what_was_before_can_be_found(text: str) -> None:
    """From what is printed it is known what it was, and no spreadsheet finds a formula in it."""
    printed = cell(text)
    ((read,),) = csv.reader(io.StringIO(printed + "\n"), delimiter="\t") if printed else [[""]]

    assert text == original(printed)
    assert read.lstrip()[:1] not in {*"=+-@"}


def test_one_cell_alone_is_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A line that is one value, for a program to read, is that value."""
    print_line("-x.wav")
    print_line("-x", "=y", -1)

    assert "-x.wav\n'-x\t'=y\t-1\n" == capsys.readouterr().out.replace("'-1", "-1")


async def test_the_lines_of_a_catalog(bulk: Bulk) -> None:
    """Ids that are formulas are none in the lines of bulk and of the report; JSON has them bare."""
    write_lines("c.jsonl", *({"music_task_id": "=m", "audio_id": odd} for odd in ODD))
    async with service(window=None) as kie:
        done = await bulk(kie, catalog="c.jsonl")
        listed = [await bulk_report(bulk, *more) for more in ((), ("--json",))]

    assert 0 == done.code, done.err
    assert sorted(EXPECTED) == sorted(row[1] for row in done.results)
    assert {"'=m"} == {row[0] for row in done.results}
    assert EXPECTED == [line.split("\t")[1] for line in listed[0]]
    assert ODD == [json.loads(line)["audio_id"] for line in listed[1]]


async def bulk_report(bulk: Bulk, *more: str) -> list[str]:
    """Return the lines of ``kie-wav report --urls``."""
    bulk._capsys.readouterr()
    code = await asyncio.to_thread(main, ["report", str(LEDGER), "--urls", *more])
    assert 0 == code
    return bulk._capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("text", [*ODD, *PLAIN, *EXPECTED])
def test_a_cell_is_read_as_what_it_was(text: str) -> None:
    """What a spreadsheet was kept from taking for a formula comes back unchanged."""
    assert text == text_of(cell(text))


def test_the_list_of_unknown_submits(capsys: pytest.CaptureFixture[str]) -> None:
    """Ids are text in the list that is filled in with a spreadsheet, and read back as they were."""

    async def write() -> None:
        async with SqliteLedger("x.sqlite3") as ledger:
            for at, text in enumerate(ODD):
                name = f"{at:032x}"
                assert await ledger.begin_attempt(Track(text, text), name, 1.0) is None
                await ledger.finish_attempt(name, AttemptOutcome.UNKNOWN, 2.0)
                await ledger.record_callback(name, f"{text}t")

    asyncio.run(write())

    assert 0 == main(["resolve", "x.sqlite3"])
    printed = capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert EXPECTED == [row["music_task_id"] for row in rows]
    assert EXPECTED == [row["audio_id"] for row in rows]
    assert [f"{text}t" for text in EXPECTED] == [row["task_id"] for row in rows]
    Path("list.csv").write_text(printed, "utf-8")
    assert 0 == main(["resolve", "x.sqlite3", "--list", "list.csv", "--no-check", "--json"])

    async def read() -> list[str]:
        async with SqliteLedger("x.sqlite3") as ledger:
            return [entry.task_id for entry in await ledger.list_entries(TrackState)]

    assert [f"{text}t" for text in ODD] == asyncio.run(read())


async def test_the_names_of_files(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of a catalog has a name that is an option, a formula or hidden."""
    write_catalog("m,a0,=1", "m,a1,+x", "m,a2,@y", "m,a3,-z")
    async with service(window=None) as kie:
        done = await Bulk(capsys, monkeypatch, SAVING)(kie)

    assert 0 == done.code, done.err
    assert ["_+x [a1].wav", "_-z [a3].wav", "_=1 [a0].wav", "_@y [a2].wav"] == [
        name for name in names(Path("out")) if name.endswith(".wav")
    ]


async def test_the_tracks_of_a_music_task(capsys, monkeypatch) -> None:
    """The ids of tracks are text as well where they are listed."""
    async with service(music={"m": ODD}) as kie:
        monkeypatch.setenv("KIE_BASE_URL", kie.base_url)
        monkeypatch.setenv("KIE_API_KEY", KEY)
        capsys.readouterr()
        assert 0 == await asyncio.to_thread(main, ["tracks", "m"])
        lines = capsys.readouterr().out.splitlines()

    assert EXPECTED == [line.split("\t")[0] for line in lines]


async def test_the_path_of_a_file_is_the_path(capfdbinary, monkeypatch) -> None:
    """What convert prints of the file it made is the name of that file, byte for byte."""
    name = b"-Mes\xc2\xa0titres \xe9.wav"
    async with service() as kie:
        await submit_before(kie, "a")
        monkeypatch.setenv("KIE_BASE_URL", kie.base_url)
        monkeypatch.setenv("KIE_API_KEY", KEY)
        words = ["convert", "m", "a", "-o", name.decode("utf-8", "surrogateescape")]
        assert 0 == await asyncio.to_thread(main, words)

    assert name + b"\n" == capfdbinary.readouterr().out
    assert [name.decode("utf-8", "surrogateescape")] == names(Path())
