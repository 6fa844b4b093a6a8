"""What `kie-wav report` tells of a ledger."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import math
import os
import re
import shlex
import sqlite3
import sys
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_wav_async import Track, UnknownSubmit
from kie_wav_async.cli.report.catalog_report import CatalogReport, survey
from kie_wav_async.cli.report.render import short_of
from kie_wav_async.ledger import (
    AttemptOutcome,
    LedgerEntry,
    RecoveryState,
    SqliteLedger,
    TrackState,
)
from kie_wav_async.testing import MemoryLedger
from ledger_runs import DAY_S, Done, Writer, attempt, run, track

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

NOW_S = 1_800_000_000.0
LEDGER = "kie-wav.sqlite3"

# What a terminal might obey.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]")
HOSTILE = "[bold red]x[/] \x1b[31m\x1b]0;z\x07\u202e\ny"


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty folder, without the developer's terminal."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run `kie-wav report` on the ledger."""
    return lambda *arguments: run(capsys, "report", LEDGER, *arguments)


@pytest.fixture
def seen(
    report: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], list[str]]:
    """Run it on a terminal of some width, and return the lines."""

    def seen(columns: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        done = report()
        assert 0 == done.code
        return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", done.out).splitlines()]

    return seen


async def write_all() -> None:
    """Write a ledger in which there is one of everything."""
    async with SqliteLedger(LEDGER) as ledger:
        writer = Writer(ledger)
        await ledger.add_tracks([track(number) for number in range(12)])
        await writer.accept(1)
        await writer.convert(2, took_s=20.0, ago_s=13 * DAY_S)
        await writer.convert(3, took_s=40.25)
        await ledger.mark_saved(track(3), path="a3.wav", size=44, sha256="0" * 64)
        await writer.convert(4, took_s=31.0, ago_s=15 * DAY_S)
        await ledger.mark_expired(track(4))
        await writer.fail(5, 500, "Internal Error")
        await writer.fail(6, 500, "Internal Error")
        await writer.end(
            7, AttemptOutcome.REJECTED, error_code=422, error="no such [i]track[/i]\x1b[31m"
        )
        await writer.end(8, AttemptOutcome.EXISTS_WITHOUT_ID, error_code=409, error="exists")
        await writer.lose(9)
        await ledger.record_callback(await writer.lose(10), "t10")
        await writer.begin(11, ago_s=0.5)


@pytest.fixture
def everything() -> None:
    """Write a ledger in which there is one of everything."""
    asyncio.run(write_all())


# --- all there is ---------------------------------------------------------------------------


@pytest.mark.usefixtures("everything")
def test_as_json(report) -> None:
    """`--json` tells all there is in one object, each list and number under a name of its own."""
    told = report("--json").json()

    assert LEDGER == told["ledger"]
    assert dt.timedelta() == dt.datetime.fromisoformat(told["at"]).utcoffset()
    assert 12 == told["tracks"]
    assert {
        "planned": 1,
        "submitting": 1,
        "unknown": 2,
        "exists_without_id": 1,
        "accepted": 1,
        "succeeded": 1,
        "saved": 1,
        "rejected": 1,
        "failed": 2,
        "expired": 1,
    } == told["states"]
    assert {"accepted": 6, "unknown": 3, "at_most": 9} == told["bill"]
    assert [
        {
            "attempt_id": attempt(9),
            "music_task_id": "m",
            "audio_id": "a9",
            "title": None,
            "in_progress": False,
            "callback_task_id": None,
            "resolve": [
                f"kie-wav resolve {LEDGER} {attempt(9)} --task-id TASK_ID",
                f"kie-wav resolve {LEDGER} {attempt(9)} --not-charged",
            ],
        },
        {
            "attempt_id": attempt(10),
            "music_task_id": "m",
            "audio_id": "a10",
            "title": "Song 10",
            "in_progress": False,
            "callback_task_id": "t10",
            "resolve": [f"kie-wav resolve {LEDGER} {attempt(10)} --task-id t10"],
        },
        {
            "attempt_id": attempt(11),
            "music_task_id": "m",
            "audio_id": "a11",
            "title": None,
            "in_progress": True,
            "callback_task_id": None,
            "resolve": [],
        },
    ] == [{k: v for k, v in one.items() if k != "since"} for one in told["unknown"]]
    since = [dt.datetime.fromisoformat(one["since"]) for one in told["unknown"]]
    assert since == sorted(since)
    assert [("failed", 500, "Internal Error", 2, "a5", "t5")] == reasons(told)[:1]
    assert {
        ("rejected", 422, "no such [i]track[/i]\x1b[31m", 1, "a7", None),
        (
            "exists_without_id",
            None,
            "a WAV is there, under a task id that was not told",
            1,
            "a8",
            None,
        ),
    } == set(reasons(told)[1:])
    (soonest,) = told["expiring"].pop("soonest")
    assert {
        "within_s": 172_800.0,
        "count": 1,
        "overdue": 0,
        "of_unknown_age": 0,
        "expired": 1,
    } == told["expiring"]
    assert dt.datetime.fromisoformat(soonest.pop("expires_at")) > dt.datetime.now(dt.UTC)
    assert {
        "music_task_id": "m",
        "audio_id": "a2",
        "title": "Song 2",
        "task_id": "t2",
        "url": "https://files.example/t2.wav",
    } == soonest
    slowest = told["conversion_time"].pop("slowest")
    assert {"count": 3, "p50_s": 31.0, "p99_s": 40.2} == told["conversion_time"]
    assert {"count": 1, "bytes": 44, "folder": None} == told["saved"]
    assert [("t3", 40.25), ("t4", 31.0), ("t2", 20.0)] == [
        (one["task_id"], pytest.approx(one["seconds"], abs=0.001)) for one in slowest
    ]


def reasons(told: dict[str, Any]) -> list[tuple[object, ...]]:
    """Return the reasons without what is the same in all."""
    return [
        (
            *(one["state"], one["error_code"], one["error"], one["count"]),
            *(one["example"]["audio_id"], one["example"]["task_id"]),
        )
        for one in told["reasons"]
    ]


#: What resolves several submits: one list, or one word for all.
AT_ONCE = [
    f"kie-wav resolve {LEDGER} > unknown.csv",
    f"kie-wav resolve {LEDGER} --list unknown.csv",
    f"kie-wav resolve {LEDGER} --all --not-charged",
]


@pytest.mark.usefixtures("everything")
def test_in_a_pipe(report) -> None:
    """In a pipe there are the tables of a terminal, in lines that nothing breaks or colours."""
    done = report()
    lines = [line.rstrip() for line in done.out.splitlines()]

    assert (0, "") == (done.code, done.err)
    assert not CONTROLS.search(done.out)
    assert re.search(r"^planned +1 +wanted, not submitted$", "\n".join(lines), re.MULTILINE)
    assert re.search(r"^saved +1 +converted and saved$", "\n".join(lines), re.MULTILINE)
    assert {f"  {command}" for command in AT_ONCE} < set(lines)
    assert "Charged: at least 6 and at most 9 conversions, because the fate" in done.out


@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_on_a_terminal(seen, columns: int) -> None:
    """On a terminal there are tables that fit, and commands to copy that are never broken."""
    lines = seen(columns)

    text = " ".join(" ".join(lines).split())
    assert "Charged: at least 6 and at most 9 conversions, because the fate of 3 submits" in text
    assert "1 of them is on the wire, or was when the run was killed" in text
    assert {f"  {command}" for command in AT_ONCE} < set(lines)
    assert "A callback named its task, t10." in text
    assert attempt(11)[:8] not in text
    assert "[i]track[/i]" in text
    assert (
        "1 to be deleted by the service within 48 hours, 1 deleted, as the service has said."
        in text
    )
    assert "31.0 s (median), 40.2 s (99 of 100)" in text
    assert " Saved: 1 file, 44 bytes. " in text
    assert not [line for line in lines if len(line) > columns and "kie-wav resolve" not in line]
    assert not CONTROLS.search(text)


@pytest.mark.usefixtures("everything")
def test_commands_on_a_narrow_terminal(seen) -> None:
    """A command to copy is one line of text, however narrow the terminal."""
    assert {f"  {command}" for command in AT_ONCE} < set(seen(40))


def test_an_empty_ledger(report, seen) -> None:
    """Of a ledger without tracks nothing is told but that."""
    asyncio.run(write_nothing())

    told = report("--json").json()
    assert (0, [], []) == (told["tracks"], told["unknown"], told["reasons"])
    assert {"count": 0, "p50_s": None, "p99_s": None, "slowest": []} == told["conversion_time"]
    assert ["State   Tracks", "Charged: 0 conversions."] == [
        line for line in seen(80)[1:] if line and "─" not in line and "in all" not in line
    ]


async def write_nothing() -> None:
    """Write a ledger without tracks."""
    async with SqliteLedger(LEDGER):
        pass


@pytest.mark.parametrize("count", [1, 10, 13])
def test_many_unknown_submits(seen, report, count: int) -> None:
    """People are shown ten unknown submits and how many more there are, programs all."""

    async def lose() -> None:
        async with SqliteLedger(LEDGER) as ledger:
            for number in range(count):
                await Writer(ledger).lose(number)

    asyncio.run(lose())
    assert count == len(report("--json").json()["unknown"])
    lines = seen(80)

    assert min(count, 10) == len([line for line in lines if ", since " in line])
    assert 1 == len([line for line in lines if "--not-charged" in line])
    assert (["... and 3 more; see --json."] if count == 13 else []) == [
        line for line in lines if "more" in line
    ]


def test_the_only_submit_is_on_the_wire(seen) -> None:
    """One submit, on the wire, is told of in the singular and cannot be resolved yet."""

    async def begin() -> None:
        async with SqliteLedger(LEDGER) as ledger:
            await Writer(ledger).begin(0)

    asyncio.run(begin())
    text = " ".join(" ".join(seen(80)).split())

    assert (
        "Charged: at least 0 and at most 1 conversion, because the fate of 1 submit is unknown. "
        "It is on the wire, or was when the run was killed: the next run will tell." in text
    )
    assert "kie-wav resolve" not in text


def test_a_path_with_blanks(capsys, tmp_path: Path) -> None:
    """The commands to copy name the ledger as a shell wants it."""
    path = tmp_path / "my songs" / "led'ger"
    path.parent.mkdir()

    async def lose() -> None:
        async with SqliteLedger(path) as ledger:
            await Writer(ledger).lose(0)

    asyncio.run(lose())
    (one,) = run(capsys, "report", str(path), "--json").json()["unknown"]

    for command in one["resolve"]:
        assert ["kie-wav", "resolve", str(path), attempt(0)] == shlex.split(command)[:4]


def test_what_is_saved(report, seen) -> None:
    """What is saved is counted, what only has its place is not, and it is said where."""

    async def store() -> None:
        async with SqliteLedger(LEDGER) as ledger:
            writer = Writer(ledger)
            for number in range(4):
                await writer.convert(number)
                await ledger.reserve_path(track(number), path=f"{number}.wav", key=f"{number}.wav")
            for number in range(1, 4):
                await ledger.mark_saved(
                    track(number), path=f"{number}.wav", size=2_000_000, sha256="0" * 64
                )
            await ledger.mark_missing(track(3))

    asyncio.run(store())
    assert {"count": 2, "bytes": 4_000_000, "folder": None} == report("--json").json()["saved"]
    Path("1.wav").touch()

    assert {"count": 2, "bytes": 4_000_000, "folder": "."} == report("--json").json()["saved"]
    assert [["", "1.wav", "2.wav", ""]] == [[cells[5] for cells in report("--urls").lines]]
    assert "Saved in .: 2 files, 4 MB." in seen(80)


# --- while and where ------------------------------------------------------------------------


async def test_while_a_run_is_under_way(capsys: pytest.CaptureFixture[str]) -> None:
    """A ledger that is open elsewhere can be reported on, and what was just written counts."""
    async with SqliteLedger(LEDGER) as ledger:
        writer = Writer(ledger)
        await writer.lose(1)
        await writer.begin(2)
        done = await asyncio.to_thread(run, capsys, "report", LEDGER, "--json")
        await ledger.finish_attempt(
            attempt(2), AttemptOutcome.ACCEPTED, writer.now_unix_s, task_id="t"
        )

    told = done.json()
    assert (0, "") == (done.code, done.err)
    assert {"accepted": 0, "unknown": 2, "at_most": 2} == told["bill"]
    assert {"a1": False, "a2": True} == {
        one["audio_id"]: one["in_progress"] for one in told["unknown"]
    }


@pytest.mark.usefixtures("everything")
def test_nothing_is_changed(report) -> None:
    """A report leaves the ledger as it is, a submit that was on the wire included."""
    before = Path(LEDGER).read_bytes()
    report()

    assert before == Path(LEDGER).read_bytes()
    assert 1 == report("--json").json()["states"]["submitting"]


@pytest.mark.parametrize("command", ["report", "resolve"])
@pytest.mark.parametrize("json_too", [False, True], ids=["text", "json"])
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("nowhere", 2, "there is no ledger nowhere"),
        ("no\x1b[31mwhere", 2, "there is no ledger no\N{REPLACEMENT CHARACTER}[31mwhere"),
        (".", 2, ". is a folder: name the ledger in it, kie-wav.sqlite3 perhaps"),
        ("x" * 5_000, 2, "File name too long"),
        ("empty", 2, "empty is no ledger: name the one that `kie-wav bulk` made"),
        ("song.wav", 2, "song.wav is no ledger: name the one that `kie-wav bulk` made"),
        ("/dev/null", 2, "/dev/null is no ledger: name the one that `kie-wav bulk` made"),
        ("other.sqlite3", 3, "stays as it is"),
        ("newer.sqlite3", 3, "newer"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_what_is_no_ledger(*, capsys, name, code, words, json_too, command) -> None:
    """What is no ledger of ours ends with one sentence, and stays as it is."""
    Path("empty").touch()
    Path("song.wav").write_bytes(b"RIFF" * 100)
    with sqlite3.connect("other.sqlite3") as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    asyncio.run(write_nothing())
    newer = sqlite3.connect(LEDGER)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    Path(LEDGER).rename("newer.sqlite3")
    before = {path.name: path.read_bytes() for path in Path().iterdir() if path.suffix != ".lock"}
    more = ["123456", "--not-charged"] if command == "resolve" else []
    done = run(capsys, command, name, *more, *["--json"] * json_too)

    assert code == done.code
    assert words in done.err
    assert 1 == len(done.err.splitlines())
    assert done.err.startswith("kie-wav: ")
    assert not CONTROLS.search(done.err)
    if json_too:
        assert code == done.json()["error"]["exit_code"]
    else:
        assert "" == done.out
    after = {path.name: path.read_bytes() for path in Path().iterdir() if path.name in before}
    assert before == after


def test_a_pipe_is_no_ledger(capsys) -> None:
    """A named pipe is not read from, whatever comes out of it."""
    os.mkfifo("pipe")
    pipe = os.open("pipe", os.O_RDWR)
    os.write(pipe, b"SQLite format 3\0")
    done = run(capsys, "report", "pipe")
    os.close(pipe)

    assert 2 == done.code
    assert "kie-wav: pipe is no ledger: name the one that `kie-wav bulk` made\n" == done.err


# --- what is counted ------------------------------------------------------------------------


async def surveyed(ledger: MemoryLedger) -> CatalogReport:
    """Return what there is to tell of *ledger*."""
    return await survey(ledger, Path(LEDGER), NOW_S, lambda _, __: None)


async def test_what_expires() -> None:
    """What is not saved is counted by age: deleted within 48 hours, past 14 days, or unknown."""
    ledger = MemoryLedger()
    await ledger.open(NOW_S)
    writer = Writer(ledger, NOW_S)
    for number, days in enumerate([0.1, 11.9, 12.1, 13.9, 13.0, 14.1]):
        await writer.convert(number, ago_s=days * DAY_S)
    await writer.accept(10, ago_s=12.5 * DAY_S)
    await writer.convert(11, ago_s=13 * DAY_S, is_adopted=True)
    await writer.convert(12, ago_s=13 * DAY_S)
    await ledger.mark_saved(track(12), path="x.wav", size=1, sha256="0" * 64)
    await ledger.aclose()
    found = await surveyed(ledger)

    assert (4, 1, 1) == (found.expiring, found.overdue, found.ageless)
    assert ["a3", "a4", "a10", "a2"] == [one.track.audio_id for one in found.soonest()]


async def test_only_the_service_says_that_a_wav_is_deleted() -> None:
    """A WAV past 14 days by our clock is told as such, and only one the service denies as gone."""
    ledger = MemoryLedger()
    await ledger.open(NOW_S)
    writer = Writer(ledger, NOW_S)
    for number in range(3):
        await writer.convert(number, ago_s=15 * DAY_S)
    await ledger.mark_expired(track(1))
    await writer.convert(3, ago_s=16 * DAY_S)
    await ledger.aclose()
    found = await surveyed(ledger)

    assert (1, 3) == (found.expired, found.overdue)
    overdue = {name: found.facts()["expiring"][name] for name in ("expired", "overdue")}
    assert {"expired": 1, "overdue": 3} == overdue


async def test_reasons_without_end() -> None:
    """A thousand reasons are told apart, and what comes on top is counted as others."""
    ledger = MemoryLedger()
    await ledger.open(NOW_S)
    writer = Writer(ledger, NOW_S)
    for number in range(1_005):
        await writer.end(number, AttemptOutcome.REJECTED, error_code=422, error=f"no {number}")
    for number in range(1_005, 1_010):
        await writer.fail(number, None, None)
    await ledger.aclose()
    found = (await surveyed(ledger)).reasons()

    assert 1_010 == sum(reason.count for reason in found)
    assert 1_002 == len(found)
    assert [("other reasons", 5)] * 2 == [(reason.text, reason.count) for reason in found[:2]]


async def test_a_failure_without_words() -> None:
    """A failure that the service said nothing about is told as such."""
    ledger = MemoryLedger()
    await ledger.open(NOW_S)
    await Writer(ledger, NOW_S).fail(0, None, None)
    await ledger.aclose()
    (reason,) = (await surveyed(ledger)).reasons()

    assert (None, "no reason given", 1) == (reason.code, reason.text, reason.count)


def test_hostile_words(report, seen) -> None:
    """What the service and titles say is neither markup nor obeyed by the terminal."""

    async def write() -> None:
        async with SqliteLedger(LEDGER) as ledger:
            await Writer(ledger).end(0, AttemptOutcome.REJECTED, error=HOSTILE)
            song = Track("m", "[/b]", title=HOSTILE)
            await ledger.begin_attempt(song, attempt(1), 0.0)
            await ledger.finish_attempt(attempt(1), AttemptOutcome.UNKNOWN, 0.0)

    asyncio.run(write())

    assert not CONTROLS.search(report().out)
    assert not CONTROLS.search(report("--json").out)
    text = "\n".join(seen(120))
    assert not CONTROLS.search(text)
    assert 2 == text.count("[bold red]x[/]")


def entries(seconds: Sequence[float]) -> list[LedgerEntry]:
    """Return succeeded tracks that took *seconds*."""
    began = dt.datetime.fromtimestamp(NOW_S - DAY_S, dt.UTC)
    return [
        LedgerEntry(
            index=index,
            track=track(index),
            state=TrackState.SAVED,
            task_id=f"t{index}",
            submitted_at=began,
            settled_at=began + dt.timedelta(seconds=took),
        )
        for index, took in enumerate(seconds, start=1)
    ]


def empty_survey() -> CatalogReport:
    """Return a survey that has seen nothing."""
    opening = RecoveryState(unknown=(), accepted=0, ended_unix_s=(), callback_tasks={})
    at = dt.datetime.fromtimestamp(NOW_S, dt.UTC)
    return CatalogReport(Path(LEDGER), at, opening, dict.fromkeys(TrackState, 0))


@given(st.lists(st.integers(0, 9_000), min_size=1, max_size=300))
def test_times(tenths: list[int]) -> None:
    """Median and 99th percentile are the times of conversions, and the slowest are the slowest."""
    found = empty_survey()
    for entry in entries([tenth / 10 for tenth in tenths]):
        found.take(entry)

    ranked = sorted(tenths)
    for share in (0.5, 0.99):
        assert ranked[math.ceil(share * len(ranked)) - 1] / 10 == found.quantile(share)
    assert [tenth / 10 for tenth in ranked[::-1][:5]] == [seconds for seconds, _ in found.slowest()]


def test_times_of_no_meaning() -> None:
    """A task that was there before its submit has no time, and a clock set back makes none < 0."""
    found = empty_survey()
    (entry,) = entries([-5.0])
    found.take(entry)
    found.take(attrs.evolve(entry, is_adopted=True))

    assert (1, 0.0) == (found.converted, found.quantile(0.5))


class _Endless(MemoryLedger):
    """As many converted tracks as one likes, in no memory."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    async def list_entries(
        self, states: Iterable[TrackState], *, after: int = 0, limit: int = 1000
    ) -> list[LedgerEntry]:
        """Return the next ones."""
        assert TrackState.SUCCEEDED in states
        count, self.left = min(limit, self.left), max(0, self.left - limit)
        at = dt.datetime.fromtimestamp(NOW_S - 13 * DAY_S, dt.UTC)
        return [
            LedgerEntry(
                index=after + 1 + n,
                track=Track("m", f"a{after + n}"),
                state=TrackState.SUCCEEDED,
                task_id="t",
                submitted_at=at,
                settled_at=at + dt.timedelta(seconds=n % 300),
            )
            for n in range(count)
        ]


async def test_memory_is_flat() -> None:
    """Ten times as many tracks take no more memory."""

    async def peak(count: int) -> int:
        tracemalloc.start()
        found = await surveyed(_Endless(count))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (count, 1_000) == (found.expiring, len(found.soonest()))
        return top

    await peak(2_000)
    assert await peak(30_000) < await peak(3_000) + 50_000


def test_an_attempt_is_abbreviated_as_far_as_it_is_unique() -> None:
    """A short id is 8 characters, or as many as tell it from every other."""
    at = dt.datetime.fromtimestamp(NOW_S, dt.UTC)
    names = ["0" * 32, "0" * 12 + "1" * 20, "1" * 32, "abc"]
    submits = [UnknownSubmit(track(n), name, at) for n, name in enumerate(names)]

    assert ["0" * 13, "0" * 12 + "1", "1" * 8, "abc"] == [short_of(s, submits) for s in submits]


# --- addresses ------------------------------------------------------------------------------


@pytest.mark.usefixtures("everything")
def test_urls(report) -> None:
    """`--urls` prints a line for each WAV that is at KIE or saved, and for no other track."""
    done = report("--urls")

    assert (0, "") == (done.code, done.err)
    assert [
        ["m", "a2", "t2", "https://files.example/t2.wav"],
        ["m", "a3", "t3", "https://files.example/t3.wav"],
    ] == [cells[:4] for cells in done.lines]
    assert all(dt.datetime.fromisoformat(cells[4]).tzinfo for cells in done.lines)
    assert ["", "a3.wav"] == [cells[5] for cells in done.lines]


@pytest.mark.usefixtures("everything")
def test_urls_as_json(report) -> None:
    """With `--json` each of these lines is an object."""
    first, second = (json.loads(line) for line in report("--urls", "--json").out.splitlines())

    assert {"music_task_id", "audio_id", "title", "task_id", "url", "expires_at", "file"} == set(
        first
    )
    assert ("a2", "t2", "https://files.example/t2.wav") == tuple(
        first[name] for name in ("audio_id", "task_id", "url")
    )
    assert (None, "a3", "a3.wav") == (first["file"], second["audio_id"], second["file"])


def test_urls_whatever_is_under_way(report) -> None:
    """`--urls` has the link of a track whose WAV is there while a second submit is unknown."""

    async def convert() -> None:
        async with SqliteLedger(LEDGER) as ledger:
            writer = Writer(ledger)
            await writer.convert(1, ago_s=20 * DAY_S)
            await ledger.begin_attempt(track(1), attempt(99), NOW_S, again=True)
            await ledger.finish_attempt(attempt(99), AttemptOutcome.UNKNOWN, NOW_S)

    asyncio.run(convert())
    assert [["m", "a1", "t1", "https://files.example/t1.wav"]] == [
        cells[:4] for cells in report("--urls").lines
    ]


def test_urls_of_many(report) -> None:
    """There may be more of them than the ledger gives at once, and one of unknown age."""

    async def convert() -> None:
        async with SqliteLedger(LEDGER) as ledger:
            writer = Writer(ledger)
            await writer.convert(0, is_adopted=True)
            for number in range(1, 1_003):
                await writer.convert(number)

    asyncio.run(convert())
    told = report("--urls").lines

    assert [f"a{number}" for number in range(1_003)] == [cells[1] for cells in told]
    assert "" == told[0][4]


@pytest.mark.usefixtures("everything")
def test_what_exists_under_an_untold_id(report, seen) -> None:
    """A track whose task was not told is listed with what to type once it was looked up."""
    commands = [
        f"kie-wav resolve {LEDGER} {attempt(8)} --task-id TASK_ID",
        f"kie-wav resolve {LEDGER} {attempt(8)} --not-charged",
    ]
    (told,) = report("--json").json()["existing"]

    assert (attempt(8), "a8", commands) == (told["attempt_id"], told["audio_id"], told["resolve"])
    assert {f"  {command}" for command in commands} < set(seen(80))


def test_many_that_exist(report, seen) -> None:
    """Tracks that exist under untold ids are listed, with one list to fill in for all of them."""

    async def exist() -> None:
        async with SqliteLedger(LEDGER) as ledger:
            for number in range(12):
                await Writer(ledger).end(
                    number, "exists_without_id", error_code=409, error="exists"
                )

    asyncio.run(exist())
    assert 12 == len(report("--json").json()["existing"])
    lines = seen(80)
    assert {f"  {command}" for command in AT_ONCE[:2]} < set(lines)
    assert not [line for line in lines if "--task-id" in line]
    assert "... and 2 more; see --json." in lines
