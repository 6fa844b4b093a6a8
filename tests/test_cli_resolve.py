"""`kie-wav resolve`: somebody's word on a submit of unknown fate, hard to get wrong."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cli_runs import KEY, service
from kie_wav_async import Track
from kie_wav_async.ledger import LedgerEntry, SqliteLedger, TrackState
from kie_wav_async.simulator import Fault
from ledger_runs import Done, Writer, attempt, run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LEDGER = "kie-wav.sqlite3"


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty folder, without the developer's terminal."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def resolve(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run `kie-wav resolve` on the ledger, without asking the service."""
    return lambda *arguments: run(capsys, "resolve", LEDGER, *arguments, "--no-check")


def write(work: Callable[[Writer], Awaitable[object]]) -> None:
    """Let *work* write into the ledger."""

    async def open_and_write() -> None:
        async with SqliteLedger(LEDGER) as ledger:
            await work(Writer(ledger))

    asyncio.run(open_and_write())


def lose(*numbers: int) -> None:
    """Have the submits of some tracks be of unknown fate."""

    async def work(writer: Writer) -> None:
        for number in numbers:
            await writer.lose(number)

    write(work)


def look(number: int) -> tuple[LedgerEntry, int]:
    """Return where a track stands, and how many submits are of unknown fate."""

    async def open_and_look() -> tuple[LedgerEntry, int]:
        ledger = SqliteLedger(LEDGER, read_only=True)
        opening = await ledger.open(0.0)
        try:
            return await Writer(ledger).find(number), len(opening.unknown)
        finally:
            await ledger.aclose()

    return asyncio.run(open_and_look())


# --- the two words --------------------------------------------------------------------------


def test_it_was_accepted(resolve) -> None:
    """With its task named a track is accepted under it, and where it stands is printed."""
    lose(1, 2)
    done = resolve(attempt(1), "--task-id", "t-1", "--json")

    entry, left = look(1)
    assert 0 == done.code
    assert (TrackState.ACCEPTED, "t-1", 1) == (entry.state, entry.task_id, left)
    assert {
        "attempt_id": attempt(1),
        "music_task_id": "m",
        "audio_id": "a1",
        "title": None,
        "state": "accepted",
        "task_id": "t-1",
        "unknown_left": 1,
    } == done.json()
    assert [
        "a1 is now accepted: `kie-wav bulk` goes on with it and asks KIE for the WAV.",
        f"1 more submit is of unknown fate: see `kie-wav report {LEDGER}`.",
    ] == done.err.splitlines()
    assert TrackState.UNKNOWN is look(2)[0].state


def test_it_was_not_charged(resolve) -> None:
    """Said to be not charged a track is planned again, and may be submitted."""
    lose(2)
    done = resolve(attempt(2), "--not-charged")

    entry, left = look(2)
    assert (TrackState.PLANNED, 0) == (entry.state, left)
    assert 0 == done.code
    assert [
        f"attempt_id    {attempt(2)}",
        "music_task_id m",
        "audio_id      a2",
        "title         Song 2",
        "state         planned",
        "unknown_left  0",
    ] == done.out.splitlines()
    assert "Song 2 is now planned again: `kie-wav bulk` submits it.\n" == done.err
    write(lambda writer: writer.begin(2, again=True))


@pytest.mark.parametrize("words", [[], ["--task-id", "t", "--not-charged"]])
def test_one_word_it_is(resolve, words) -> None:
    """Neither word, or both, is a usage error that says when to say which."""
    lose(1)
    done = resolve(attempt(1), *words)

    assert (2, "") == (done.code, done.out)
    assert "say one of the two: --task-id with the id of its task if KIE's logs" in done.err
    assert 1 == look(1)[1]


def test_what_was_on_the_wire_when_a_run_was_killed(resolve) -> None:
    """A submit that a killed run left behind can be resolved at once."""
    write(lambda writer: writer.begin(1))
    assert TrackState.SUBMITTING is look(1)[0].state

    assert 0 == resolve(attempt(1), "--not-charged").code
    assert TrackState.PLANNED is look(1)[0].state


# --- which one ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "named", [attempt(0xABCDEF), attempt(0xABCDEF)[:6], attempt(0xABCDEF)[:9].upper()]
)
def test_the_beginning_of_an_id_will_do(resolve, named: str) -> None:
    """Six characters or more name an attempt, in any case, and it is said which it was."""
    lose(0xABCDEF, 1)
    done = resolve(named, "--not-charged")

    assert 0 == done.code
    assert f"attempt_id    {attempt(0xABCDEF)}\n" in done.out
    assert 1 == look(1)[1]


def test_a_whole_id_is_enough_where_others_begin_with_it(resolve) -> None:
    """An id that others begin with names itself."""

    async def work(writer: Writer) -> None:
        for name in ("abcdef", "abcdef1"):
            await writer.ledger.begin_attempt(Track("m", name), name, 1.0)

    write(work)

    assert 0 == resolve("abcdef", "--not-charged").code
    assert 2 == resolve("abcde", "--not-charged").code
    assert 0 == resolve("abcdef", "--not-charged").code


ATTEMPTS = [
    ("00000", "'00000' is too short for an attempt: name it by its first 6 characters at least"),
    ("", "'' is too short for an attempt"),
    ("000000", "2 submits begin with 000000: name one of them"),
    ("ffffff", "no submit of unknown fate begins with ffffff: name one of those listed."),
    ("[b]\x1b[31m\u202e", "no submit of unknown fate begins with [b]"),
]


@pytest.mark.parametrize(("named", "words"), ATTEMPTS, ids=[ascii(named) for named, _ in ATTEMPTS])
def test_no_or_more_than_one(resolve, named: str, words: str) -> None:
    """What names no attempt, or several, is refused, and changes nothing."""

    async def work(writer: Writer) -> None:
        for audio_id, name in (("a1", "0" * 32), ("a2", "0" * 20 + "1" * 12), ("a3", "1" * 32)):
            await writer.ledger.begin_attempt(Track("m", audio_id), name, 1.0)

    write(work)
    done = resolve(named, "--not-charged", "--json")

    assert 2 == done.code
    *listed, said = done.err.splitlines()
    assert said.startswith(f"kie-wav: {words}")
    assert said == f"kie-wav: {done.json()['error']['message']}"
    if named == "000000":
        assert ["0" * 32, "0" * 20 + "1" * 12] == [line.split()[0] for line in listed]
        assert ["0" * 32, "0" * 20 + "1" * 12] == done.json()["error"]["attempts"]
    elif len(named) >= 6:
        assert ["a1", "a2", "a3"] == [line.split()[-1] for line in listed]
    assert 3 == look(1)[1]


def test_at_most_twenty_are_listed(resolve) -> None:
    """An error lists twenty unknown submits, the oldest, and how many more there are."""
    lose(*range(1, 24))
    done = resolve("ffffff", "--not-charged", "--json")

    *listed, more, _ = done.err.splitlines()
    assert [attempt(number)[:8] for number in range(1, 21)] == [line.split()[0] for line in listed]
    assert all(re.search(r"  \d{4}-\d\d-\d\d \d\d:\d\d UTC  \S", line) for line in listed)
    assert "... and 3 more" == more
    assert [attempt(number) for number in range(1, 21)] == done.json()["error"]["attempts"]


def test_what_the_service_answered_stays_answered(resolve) -> None:
    """An attempt that never was unknown is refused, whatever is said of it."""
    write(lambda writer: writer.accept(2))

    for words in (["--not-charged"], ["--task-id", "t-1"]):
        done = resolve(attempt(2), *words)
        assert (2, "") == (done.code, done.out)
        assert (
            f"kie-wav: {LEDGER} has no submit of unknown fate: there is nothing to resolve\n"
            == done.err
        )
        assert TrackState.ACCEPTED is look(2)[0].state


# --- what contradicts -----------------------------------------------------------------------

TASKS = [
    ("t3", "task t3 is another track's (music task m, track a3): look the id up again"),
    ("t4", "task t4 is another track's (music task m, track a4): look the id up again"),
    ("t5", "task t5 is another track's (music task m, track a5): look the id up again"),
    ("m", "m is an id of the track or of the attempt: --task-id is that of its conversion"),
    ("a1", "a1 is an id of the track or of the attempt"),
    (attempt(1), "is an id of the track or of the attempt"),
    ("", "--task-id must be 1 to 256 visible characters, no blanks: ''"),
    ("a b", "--task-id must be 1 to 256 visible characters"),
    ("x" * 257, "--task-id must be 1 to 256 visible characters"),
]


@pytest.mark.parametrize(("task_id", "words"), TASKS, ids=[task_id[:9] for task_id, _ in TASKS])
def test_a_task_that_cannot_be(resolve, task_id: str, words: str) -> None:
    """A task id that is another track's, or no task's, is refused, and changes nothing."""

    async def work(writer: Writer) -> None:
        await writer.lose(1)
        await writer.accept(3)
        await writer.convert(4)
        await writer.fail(5, 500, "no")

    write(work)
    done = resolve(attempt(1), "--task-id", task_id)

    assert (2, "") == (done.code, done.out)
    assert words in done.err
    assert 1 == len(done.err.splitlines())
    assert (TrackState.UNKNOWN, 1) == (look(1)[0].state, look(1)[1])


def test_a_task_of_another_submit_of_the_same_track(resolve) -> None:
    """A task that another submit of the track has made was not made by this one."""

    async def work(writer: Writer) -> None:
        await writer.lose(1)
        await writer.begin(1, again=True)
        await writer.ledger.finish_attempt(
            attempt(1_001), "accepted", writer.now_unix_s, task_id="t-2"
        )

    write(work)
    done = resolve(attempt(1), "--task-id", "t-2")

    assert 2 == done.code
    assert (
        "task t-2 was made by another submit of the same track: if KIE's logs have no" in done.err
    )
    assert 0 == resolve(attempt(1), "--not-charged").code
    assert (TrackState.ACCEPTED, "t-2") == (look(1)[0].state, look(1)[0].task_id)


def test_a_task_that_a_repeat_was_answered_with(resolve) -> None:
    """A task that a second submit only found may be that of the first."""

    async def work(writer: Writer) -> None:
        await writer.lose(1)
        await writer.begin(1, again=True)
        await writer.ledger.finish_attempt(
            attempt(1_001), "adopted", writer.now_unix_s, task_id="t-1"
        )

    write(work)

    assert 0 == resolve(attempt(1), "--task-id", "t-1").code
    assert (TrackState.ACCEPTED, "t-1", 0) == (
        look(1)[0].state,
        look(1)[0].task_id,
        look(1)[1],
    )


@pytest.mark.parametrize("words", [["--not-charged"], ["--task-id", "other"]])
def test_a_callback_says_otherwise(resolve, words) -> None:
    """What contradicts an authentic callback for the very submit is refused; agreeing is not."""

    async def work(writer: Writer) -> None:
        await writer.ledger.record_callback(await writer.lose(1), "t-1")

    write(work)
    done = resolve(attempt(1), *words)

    assert (2, "") == (done.code, done.out)
    assert "KIE has called back for this very submit and named its task, t-1" in done.err
    assert 1 == look(1)[1]
    assert 0 == resolve(attempt(1), "--task-id", "t-1").code


async def test_while_a_run_is_under_way(capsys: pytest.CaptureFixture[str]) -> None:
    """A ledger that a run has open is refused with the run's process, and nothing changes."""
    async with SqliteLedger(LEDGER) as ledger:
        await Writer(ledger).lose(1)
        done = await asyncio.to_thread(
            run, capsys, "resolve", LEDGER, attempt(1), "--not-charged", "--json"
        )
        assert TrackState.UNKNOWN is (await Writer(ledger).find(1)).state

    assert 3 == done.code
    assert str(os.getpid()) in done.err
    assert "LedgerError" == done.json()["error"]["type"]


# --- where it stands then -------------------------------------------------------------------


def test_another_submit_is_still_unknown(resolve) -> None:
    """A track with two unknown submits is unknown until both are resolved, and told so."""

    async def work(writer: Writer) -> None:
        await writer.lose(1)
        await writer.lose(1, again=True)

    write(work)
    done = resolve(attempt(1), "--not-charged")

    assert (0, TrackState.UNKNOWN) == (done.code, look(1)[0].state)
    assert (
        "a1 is still unknown, because of another submit: go on with "
        f"`kie-wav resolve {LEDGER} {attempt(1_001)[:8]} --task-id TASK_ID`, or with --not-charged."
    ) in done.err
    assert 0 == resolve(attempt(1_001), "--not-charged").code
    assert TrackState.PLANNED is look(1)[0].state


def test_a_track_that_had_its_wav_before(resolve) -> None:
    """A second submit that came to nothing leaves a track the WAV it had."""

    async def work(writer: Writer) -> None:
        await writer.convert(1)
        await writer.lose(1, again=True)

    write(work)
    done = resolve(attempt(1_001), "--not-charged")

    assert TrackState.SUCCEEDED is look(1)[0].state
    assert "a1 is now converted, by another submit: there is nothing left to do.\n" == done.err


@pytest.mark.parametrize("is_charged", [True, False], ids=["charged", "not-charged"])
async def test_bulk_report_resolve_bulk(capsys, monkeypatch, *, is_charged: bool) -> None:
    """A submit whose answer was lost is converted after all, and charged once, by its commands."""
    when = "after" if is_charged else "before"
    with open("c.csv", "w", encoding="utf-8") as catalog:  # noqa: ASYNC230, PTH123 - nobody waits
        catalog.write("music_task_id,audio_id\nm,a\nm,b\n")
    ledger = str(Path("out", "kie-wav.sqlite3"))
    bulk = ("bulk", "c.csv", "--out", "out", "--rate", "1000/1", "--poll", "0.01,0.01,1000")

    async with service(Fault(kind="hangup", when=when, audio_id="b", at=1)) as kie:
        monkeypatch.setenv("KIE_BASE_URL", kie.base_url)
        monkeypatch.setenv("KIE_API_KEY", KEY)
        first = await asyncio.to_thread(run, capsys, *bulk)
        told = await asyncio.to_thread(run, capsys, "report", ledger, "--json")
        (lost,) = told.json()["unknown"]
        charged = next((one.task_id for one in kie.arrivals if one.audio_id == "b"), "")
        words = ["--task-id", charged] if is_charged else ["--not-charged"]
        resolved = await asyncio.to_thread(
            run, capsys, "resolve", ledger, lost["attempt_id"], *words
        )
        again = await asyncio.to_thread(run, capsys, *bulk)
        charges = kie.charges

    assert (4, 0, 0, 2) == (first.code, resolved.code, again.code, charges), again


# --- converted before -----------------------------------------------------------------------


def exist(*numbers: int) -> None:
    """Have some tracks exist under a task id that was not told."""

    async def work(writer: Writer) -> None:
        for number in numbers:
            await writer.end(number, "exists_without_id", error_code=409, error="exists")

    write(work)


@pytest.mark.parametrize("length", [6, 32])
def test_what_exists_was_found(resolve, length: int) -> None:
    """A track that exists is followed under the task that was looked up, and is not charged."""
    exist(1, 2)
    done = resolve(attempt(1)[:length], "--task-id", "t-1", "--json")

    entry = look(1)[0]
    assert 0 == done.code, done
    assert (TrackState.ACCEPTED, "t-1") == (entry.state, entry.task_id)
    assert entry.is_adopted
    assert ("accepted", "t-1") == (done.json()["state"], done.json()["task_id"])
    assert TrackState.EXISTS_WITHOUT_ID is look(2)[0].state


def test_what_exists_was_not_found(resolve) -> None:
    """A track that exists and is in no log is planned again."""
    exist(1)
    done = resolve(attempt(1), "--not-charged")

    assert (0, TrackState.PLANNED) == (done.code, look(1)[0].state)
    assert "a1 is now planned again: `kie-wav bulk` submits it.\n" == done.err


def test_what_exists_beside_what_is_unknown(resolve) -> None:
    """The beginning of two ids names neither, whichever of both kinds they are."""

    async def work(writer: Writer) -> None:
        await writer.lose(1)
        await writer.ledger.begin_attempt(Track("m", "x"), attempt(1)[:20] + "0", 1.0)
        await writer.ledger.finish_attempt(attempt(1)[:20] + "0", "exists_without_id", 2.0)

    write(work)
    done = resolve(attempt(1)[:8], "--not-charged")

    assert 2 == done.code
    assert f"2 submits begin with {attempt(1)[:8]}: name one of them" in done.err
    assert 0 == resolve(attempt(1), "--not-charged").code
    assert 0 == resolve(attempt(1)[:20] + "0", "--task-id", "t-x").code


def test_what_exists_is_a_task_of_ours(resolve) -> None:
    """What a submit met may be a task of an earlier one, and is followed anew."""

    async def work(writer: Writer) -> None:
        await writer.fail(1, 500, "no")
        await writer.end(1, "exists_without_id", again=True)

    write(work)
    assert TrackState.EXISTS_WITHOUT_ID is look(1)[0].state
    done = resolve(attempt(1_001), "--task-id", "t1")

    entry = look(1)[0]
    assert (0, TrackState.ACCEPTED, "t1") == (done.code, entry.state, entry.task_id), done


def test_a_task_of_before(resolve) -> None:
    """A task that a track is not followed under any more is known all the same."""

    async def work(writer: Writer) -> None:
        await writer.fail(3, 500, "no")
        await writer.end(3, "adopted", task_id="t-new", again=True)
        await writer.lose(1)

    write(work)
    done = resolve(attempt(1), "--task-id", "t3")

    assert 2 == done.code
    assert "task t3 is another track's (music task m, track a3)" in done.err
