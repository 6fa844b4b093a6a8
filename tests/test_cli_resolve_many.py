"""`kie-wav resolve` for many submits at once, with KIE asked first, and words taken back."""

from __future__ import annotations

import asyncio
import csv
import fcntl
import io
import os
import signal
import sys
import termios
import time
import wave
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from yarl import URL

from bulk_runs import end, until
from cli_runs import KEY, service
from kie_wav_async import Track, WavSession, errors
from kie_wav_async.ledger import AttemptOutcome, LedgerEntry, SqliteLedger, TrackState
from kie_wav_async.simulator import Fault
from ledger_runs import Done, Writer, attempt, run, track

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kie_wav_async.simulator import Simulator

LEDGER = "kie-wav.sqlite3"


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty folder, without the developer's terminal or account."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "KIE_API_KEY", "KIE_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def resolve(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run `kie-wav resolve` on the ledger."""
    return lambda *arguments: run(capsys, "resolve", LEDGER, *arguments)


@pytest.fixture
def ask(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Awaitable[Done]]:
    """Run `kie-wav resolve` on the ledger while a simulator can be asked."""

    async def work(kie: Simulator, *arguments: str) -> Done:
        monkeypatch.setenv("KIE_API_KEY", KEY)
        monkeypatch.setenv("KIE_BASE_URL", kie.base_url)
        return await asyncio.to_thread(run, capsys, "resolve", LEDGER, *arguments)

    return work


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


def write_list(*rows: str) -> None:
    """Write a list of words."""
    Path("list.csv").write_text("\n".join(rows), "utf-8")


async def look() -> tuple[list[LedgerEntry], int, int]:
    """Return where the tracks stand, how many submits are accepted, and how many unknown."""
    ledger = SqliteLedger(LEDGER, read_only=True)
    opening = await ledger.open(0.0)
    try:
        page = await ledger.list_entries(TrackState)
        return list(page), opening.accepted, len(opening.unknown)
    finally:
        await ledger.aclose()


def states() -> list[str]:
    """Return where the tracks stand, in order."""
    return [entry.state.value for entry in asyncio.run(look())[0]]


# --- a list ---------------------------------------------------------------------------------------


def test_a_list_is_printed_filled_in_and_read(resolve) -> None:
    """What is unknown is printed as CSV; with words in it the same list resolves it."""

    async def work(writer: Writer) -> None:
        for number in range(1, 6):
            await writer.lose(number)
        await writer.ledger.record_callback(attempt(3), "named")
        await writer.end(7, AttemptOutcome.EXISTS_WITHOUT_ID)
        await writer.accept(8)

    write(work)
    done = resolve()
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert (0, "") == (done.code, done.err)
    assert [attempt(n) for n in (1, 2, 3, 4, 5, 7)] == [row["attempt_id"] for row in rows]
    assert ["", "", "named", "", "", ""] == [row["task_id"] for row in rows]
    assert ["unknown"] * 5 + ["exists_without_id"] == [row["state"] for row in rows]
    assert ("m", "a1") == (rows[0]["music_task_id"], rows[0]["audio_id"])

    for row, word in zip(
        rows, ["t-1", "not-charged", "named", "", "Not_Charged", "t-7"], strict=True
    ):
        row["task_id"] = word
    with Path("filled.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    done = resolve("--list", "filled.csv", "--no-check")
    assert 4 == done.code, done
    assert [
        [attempt(1), "m", "a1", "t-1", "accepted"],
        [attempt(2), "m", "a2", "not-charged", "planned"],
        [attempt(3), "m", "a3", "named", "accepted"],
        [attempt(5), "m", "a5", "not-charged", "planned"],
        [attempt(7), "m", "a7", "t-7", "accepted"],
    ] == done.lines
    assert [
        "5 submits resolved: 3 accepted, 2 not charged; left as they are: 1 row without a word.",
        f"1 more submit is of unknown fate: see `kie-wav report {LEDGER}`.",
    ] == done.err.splitlines()
    _, accepted, unknown = asyncio.run(look())
    assert (3, 1) == (accepted, unknown)


def test_a_list_while_a_run_has_the_ledger(capsys) -> None:
    """The list is printed while a run is under way, without what is in progress."""

    async def work() -> Done:
        async with SqliteLedger(LEDGER) as ledger:
            await Writer(ledger).lose(1)
            await Writer(ledger).begin(2)
            return await asyncio.to_thread(run, capsys, "resolve", LEDGER, "--json")

    done = asyncio.run(work())
    assert [attempt(1)] == [one["attempt_id"] for one in done.json()["submits"]]


LISTS = {
    "commas": f"{attempt(1)},t-1\n{attempt(2)},not-charged\n",
    "tabs": f"{attempt(1)}\tt-1\n{attempt(2)}\tnot-charged\n",
    "semicolons": f"{attempt(1)};t-1\n{attempt(2)};not-charged\n",
    "a mark, blank lines, remarks": (
        f"\ufeff\n# looked up\n{attempt(1)}, t-1\n,,\n{attempt(2)},not-charged"
    ),
    "columns elsewhere": f"x,task_id,attempt_id\n,t-1,{attempt(1)}\n,not-charged,{attempt(2)}\n",
    "line ends": f"{attempt(1)},t-1\r\n{attempt(2)},not-charged\r\n",
    "beginnings": f"{attempt(1)[:8].upper()},t-1\n{attempt(2)[:6]},not-charged\n",
}


@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS)
def test_a_list_from_stdin(resolve, monkeypatch, text: str) -> None:
    """A list may come on stdin, and be written in more than one way."""
    lose(1, 2)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    done = resolve("--list", "-", "--no-check")
    assert (0, ["accepted", "planned"]) == (done.code, states()), done


def test_a_list_from_a_closed_stdin(resolve, monkeypatch) -> None:
    """Without stdin there is no list on it, which is a usage error."""
    lose(1)
    monkeypatch.setattr(sys, "stdin", None)
    done = resolve("--list", "-", "--no-check")
    assert (2, "", "kie-wav: there is no stdin to read the list from\n") == done


async def test_ctrl_c_while_the_list_is_waited_for() -> None:
    """The first Ctrl-C ends a command whose list does not come to its end on stdin."""
    await asyncio.to_thread(lose, 1)
    reader, writer = os.pipe()
    try:
        os.write(writer, b"attempt_id,task_id\n")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kie_wav_async", "resolve", LEDGER, "--list", "-"),
            stdin=reader,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await until(lambda: fcntl.ioctl(reader, termios.FIONREAD, bytes(4)) == bytes(4))
        process.send_signal(signal.SIGINT)
        done = await end(process)
    finally:
        os.close(reader)
        os.close(writer)

    assert (130, "", "") == (done.code, done.out, done.err.strip())


BAD_LISTS = {
    f"{attempt(1)},a b\n": "line 1: the task id must be 1 to 256 visible characters",
    "abc,t-1\n": "line 1: 'abc' is too short for an attempt",
    f"{attempt(1)},t-1\n{attempt(1)},t-2\n": "line 2: attempt",
    f"{attempt(1)},t-1\n{attempt(2)},t-1\n": "line 2: task t-1 is in line 1 already",
    f"{attempt(1)[:8]},t-1\n{attempt(1)[:9]},t-2\n": "is in the list twice",
    f"{attempt(1)},t-1\nffffff,t-2\n": "no submit of unknown fate begins with ffffff",
    "attempt_id,state\n": "the list has no column task_id",
    f'{attempt(1)},"' + "x" * 200_000: "line 1: ",
}


@pytest.mark.parametrize(("text", "words"), BAD_LISTS.items(), ids=range(len(BAD_LISTS)))
def test_a_list_that_cannot_be_read_changes_nothing(resolve, text: str, words: str) -> None:
    """One bad line, and nothing of the list is done."""
    lose(1, 2)
    Path("bad.csv").write_text(text, "utf-8")
    done = resolve("--list", "bad.csv", "--no-check")
    assert (2, "") == (done.code, done.out), done
    assert words in done.err
    assert ["unknown", "unknown"] == states()


def test_a_list_that_is_not_there_or_no_text(resolve) -> None:
    """A file that cannot be opened, or is no text, is a usage error that says so."""
    lose(1)
    Path("binary").write_bytes(b"\xff\xfe\x00")
    assert (
        "cannot read nowhere.csv: No such file or directory" in resolve("--list", "nowhere.csv").err
    )
    done = resolve("--list", "binary")
    assert (2, True) == (done.code, "binary is not UTF-8 text" in done.err)


def test_what_is_refused_of_a_list_hinders_nothing_else(resolve) -> None:
    """A row that the ledger contradicts is told, and the others are done."""

    async def work(writer: Writer) -> None:
        await writer.lose(1)
        await writer.lose(2)
        await writer.accept(3)
        await writer.ledger.record_callback(attempt(1), "t-1")

    write(work)
    Path("list.csv").write_text(f"{attempt(1)},not-charged\n{attempt(2)},t-2\n", "utf-8")
    done = resolve("--list", "list.csv", "--no-check", "--json")
    assert 4 == done.code
    told = done.json()
    assert [attempt(2)] == [one["attempt_id"] for one in told["resolved"]]
    assert [attempt(1)] == [one["attempt_id"] for one in told["refused"]]
    assert "KIE has called back for this very submit" in told["refused"][0]["reason"]
    assert (1, 0, False) == (told["unknown_left"], told["without_word"], told["dry_run"])
    # A correction that is refused leaves nothing unknown, and is not done.
    assert 0 == resolve(attempt(1), "--task-id", "t-1", "--no-check").code
    assert 1 == resolve("--list", "list.csv", "--no-check").code


# --- all, or by time ------------------------------------------------------------------------------


def test_all_at_once(resolve) -> None:
    """A thousand unknown submits need one command."""
    lose(*range(1_000))
    done = resolve("--all", "--not-charged")
    assert (0, 1_000) == (done.code, len(done.lines))
    assert "1,000 submits resolved: 0 accepted, 1,000 not charged.\n" == done.err
    assert {"planned"} == set(states())


def test_by_time(resolve) -> None:
    """Times choose what became unknown within them; without a zone they are UTC."""

    async def work(writer: Writer) -> None:
        writer.now_unix_s = 1_800_000_000.0  # 2027-01-15 08:00 UTC
        for number, ago_s in enumerate((7_201.0, 3_601.0, 1.0)):
            await writer.lose(number, ago_s=ago_s)

    write(work)
    done = resolve(
        "--after", "2027-01-15T06:30", "--before", "2027-01-15T09:00+01:00", "--not-charged"
    )
    assert (4, ["unknown", "planned", "unknown"]) == (done.code, states()), done
    done = resolve("--before", "2027-01-15T07:00", "--not-charged")
    assert (4, ["planned", "planned", "unknown"]) == (done.code, states())
    assert 0 == resolve("--after", "2027-01-15", "--not-charged").code
    done = resolve("--all", "--not-charged")
    assert (0, "0 submits resolved: 0 accepted, 0 not charged.\n") == (done.code, done.err)


def test_a_dry_run_changes_nothing(resolve) -> None:
    """What would be done is shown, also of one and of a list, and nothing is done."""
    lose(1, 2)
    Path("list.csv").write_text(f"{attempt(1)},t-1\n{attempt(2)},not-charged\n", "utf-8")
    for words in (
        ["--all", "--not-charged"],
        ["--list", "list.csv", "--no-check"],
        [attempt(1), "--not-charged"],
    ):
        done = resolve(*words, "--dry-run")
        assert (0, True) == (done.code, "Nothing has changed (--dry-run)" in done.err)
        assert ["unknown", "unknown"] == states()
    assert (
        "2 submits would be resolved: 1 accepted"
        in resolve("--list", "list.csv", "--no-check", "--dry-run").err
    )


WRONG_WORDS = [
    ["--all"],
    ["--all", "--task-id", "t"],
    ["--all", "--list", "x.csv", "--not-charged"],
    ["--list", "x.csv", "--not-charged"],
    [attempt(1), "--all", "--not-charged"],
    [attempt(1), "--dry-run"],
    ["--not-charged"],
    ["--task-id", "t"],
    ["--dry-run"],
    ["--before", "yesterday", "--not-charged"],
]


@pytest.mark.parametrize("words", WRONG_WORDS, ids=" ".join)
def test_words_that_do_not_go_together(resolve, words) -> None:
    """Options that contradict each other are a usage error, and nothing changes."""
    lose(1)
    done = resolve(*words)
    assert (2, "") == (done.code, done.out)
    assert ["unknown"] == states()


# --- KIE is asked first ---------------------------------------------------------------------------


async def lose_at(kie: Simulator, *numbers: int) -> dict[int, tuple[str, str]]:
    """Have answers lost of submits that KIE took; return attempts and tasks."""
    async with WavSession(KEY, base_url=kie.base_url, ledger=SqliteLedger(LEDGER)) as session:
        attempts: dict[int, str] = {}
        for number in numbers:
            with pytest.raises(errors.SubmitUnknownError) as caught:
                await session.submit(track(number))
            attempts[number] = caught.value.attempt_id
    tasks = {one.audio_id: one.task_id for one in kie.arrivals}
    return {number: (attempts[number], tasks[f"a{number}"] or "") for number in numbers}


LOST = Fault(kind="hangup", when="after", on="submit")


async def test_the_right_task_is_taken(ask) -> None:
    """A task whose record names the track and the submit is accepted."""
    async with service(LOST) as kie:
        made = await lose_at(kie, 1, 2)
        one = await ask(kie, made[1][0], "--task-id", made[1][1])
        write_list(",".join(made[2]))
        many = await ask(kie, "--list", "list.csv")
    assert (0, 0) == (one.code, many.code), (one, many)
    assert (2, 0) == (await look())[1:]


async def test_a_task_that_is_not_there(ask) -> None:
    """A task that KIE does not know is refused with a sentence, and nothing changes."""
    async with service(LOST) as kie:
        made = await lose_at(kie, 1)
        done = await ask(kie, made[1][0], "--task-id", "0" * 32, "--json")
    assert 2 == done.code
    assert f"KIE knows no conversion {'0' * 32}: look the id up again" in done.err
    assert made[1][0] == done.json()["error"]["attempt_id"]
    assert (0, 1) == (await look())[1:]


async def test_a_task_of_another_track(ask) -> None:
    """A task whose record names another track is refused; without a check it is taken."""
    async with service(LOST) as kie:
        made = await lose_at(kie, 1, 2)
        done = await ask(kie, made[1][0], "--task-id", made[2][1])
        assert (2, (0, 2)) == (done.code, (await look())[1:])
        assert f"task {made[2][1]} converts another track, a2: look the id up again" in done.err
        done = await ask(kie, made[1][0], "--task-id", made[2][1], "--no-check")
        assert (0, (1, 1)) == (done.code, (await look())[1:])


async def test_a_task_of_another_submit(ask) -> None:
    """A task of the same track that names another submit is refused."""
    async with service(LOST, dedupe=False) as kie:
        made = await lose_at(kie, 1)
        async with WavSession(KEY, base_url=kie.base_url) as other:
            with pytest.raises(errors.SubmitUnknownError) as caught:
                await other.submit(track(1))
        task_id = kie.arrivals[-1].task_id
        assert task_id != made[1][1]
        done = await ask(kie, made[1][0], "--task-id", task_id)
    assert 2 == done.code, done
    assert f"was made by another submit, {caught.value.attempt_id}: look" in done.err


async def test_a_record_that_names_no_track(ask) -> None:
    """Without track and submit in the record nothing can be checked, and that is said."""
    silent = Fault(on="poll", kind="fields", drop=("musicId", "callbackUrl"))
    async with service(LOST, silent) as kie:
        made = await lose_at(kie, 1)
        done = await ask(kie, *made[1][:1], "--task-id", made[1][1])
    assert 2 == done.code
    assert "does not tell which track it converts: if you are sure, say --no-check" in done.err


async def test_what_existed_before_names_another_submit(ask) -> None:
    """A task that was there before our submit is checked by its track alone."""
    async with service() as kie:
        async with WavSession(KEY, base_url=kie.base_url) as before:
            task_id = (await before.submit(Track("m", "a1"))).task_id
        async with SqliteLedger(LEDGER) as ledger:
            await Writer(ledger).end(1, AttemptOutcome.EXISTS_WITHOUT_ID)
        done = await ask(kie, attempt(1), "--task-id", task_id)
    assert (0, TrackState.ACCEPTED) == (done.code, (await look())[0][0].state), done


async def test_nobody_can_be_asked(ask, resolve) -> None:
    """Without a key, or an answer, nothing changes, and it is said how to do without."""
    await asyncio.to_thread(lose, 1)
    done = await asyncio.to_thread(resolve, attempt(1), "--task-id", "t-1")
    assert (2, True, True) == (done.code, "KIE_API_KEY" in done.err, "--no-check" in done.err)
    async with service(Fault(on="poll", kind="code", code=401)) as kie:
        done = await ask(kie, attempt(1), "--task-id", "t-1")
    assert (3, True) == (done.code, "nothing has changed. To resolve without asking" in done.err)
    # What creates nothing needs nobody.
    assert (0, 1) == (await look())[1:]
    assert 0 == (await asyncio.to_thread(resolve, attempt(1), "--not-charged")).code


async def test_one_wrong_task_of_a_list(ask) -> None:
    """A row with a wrong task is refused, and the others are done."""
    async with service(LOST) as kie:
        made = await lose_at(kie, 1, 3, 5, 7)
        rows = [f"{made[n][0]},{made[n][1] if n != 3 else '0' * 32}" for n in made]
        write_list(*rows)
        done = await ask(kie, "--list", "list.csv")
    assert (4, 3, (3, 1)) == (done.code, len(done.lines), (await look())[1:])
    assert f"not resolved: {made[3][0]} a3: KIE knows no conversion" in done.err


# --- taken back -----------------------------------------------------------------------------------


def one() -> tuple[TrackState, str, int, int]:
    """Return where the only track stands, its task, and the bill."""
    (entry,), accepted, unknown = asyncio.run(look())
    return entry.state, entry.task_id, accepted, unknown


def test_a_wrong_word_is_corrected(resolve) -> None:
    """A task for a task, nothing for a task, a task for nothing: the last word counts."""
    lose(1)
    for words, expected in (
        (["--task-id", "wrong"], (TrackState.ACCEPTED, "wrong", 1, 0)),
        (["--task-id", "right"], (TrackState.ACCEPTED, "right", 1, 0)),
        (["--not-charged"], (TrackState.PLANNED, "", 0, 0)),
        (["--task-id", "right"], (TrackState.ACCEPTED, "right", 1, 0)),
        (["--task-id", "right"], (TrackState.ACCEPTED, "right", 1, 0)),
    ):
        done = resolve(attempt(1)[:8], *words, "--no-check")
        assert (0, expected) == (done.code, one()), done


@pytest.mark.parametrize("is_there", [True, False])
def test_a_file_of_the_wrong_task_is_put_aside(resolve, is_there) -> None:
    """A file that was saved of the wrong task gets another name, so that the right one is saved."""
    Path("a1.wav").write_bytes(b"RIFF of another song")
    Path("a1.wav.wrong").write_bytes(b"one from before")

    async def work(writer: Writer) -> None:
        await writer.lose(1)
        await writer.ledger.resolve(attempt(1), time.time(), task_id="wrong")
        url = URL("https://files.example/wrong.wav")
        await writer.ledger.finish_task("wrong", time.time(), wav_url=url)
        await writer.ledger.mark_saved(track(1), path="a1.wav", size=20, sha256="0" * 64)

    write(work)
    if not is_there:
        Path("a1.wav").unlink()
    done = resolve(attempt(1), "--task-id", "right", "--no-check")
    assert (0, (TrackState.ACCEPTED, "right", 1, 0)) == (done.code, one()), done
    if is_there:
        assert "The WAV of task wrong had been saved" in done.err
        assert b"RIFF of another song" == Path("a1.wav.wrong2").read_bytes()
        assert not Path("a1.wav").exists()
    else:
        assert "The file a1.wav holds the WAV of task wrong" in done.err
        assert "remove it before the next run" in done.err


def wavs() -> dict[str, bytes]:
    """Return what is in the WAV files here."""
    return {path.name: path.read_bytes() for path in Path().glob("*.wav")}


async def test_a_corrected_track_gets_its_own_wav(capsys, ask) -> None:
    """After a correction `bulk` saves the right file under the name that the wrong one had."""
    Path("c.csv").write_text("music_task_id,audio_id\nm,a1\n", "utf-8")  # noqa: ASYNC240 - a test
    bulk = ("bulk", "c.csv", "--out", ".", "--rate", "1000/1", "--poll", "0.01,0.01,1000")
    async with service(LOST, dedupe=False) as kie:
        made = await lose_at(kie, 1, 3)
        (attempt_id, right), (_, wrong) = made[1], made[3]
        assert 0 == (await ask(kie, attempt_id, "--task-id", wrong, "--no-check")).code
        async with SqliteLedger(LEDGER) as ledger:  # As it was saved before anybody looked.
            await ledger.finish_task(wrong, time.time(), wav_url=URL("https://h.example/x.wav"))
            await ledger.mark_saved(track(1), path="a1.wav", size=48, sha256="0" * 64)
        stranger = await asyncio.to_thread(a_wav, "a1.wav")
        done = await ask(kie, attempt_id, "--task-id", right)
        again = await asyncio.to_thread(run, capsys, *bulk)
        charges = kie.charges
    saved = await asyncio.to_thread(wavs)
    assert (0, 2) == (done.code, charges), (done, again)
    assert [stranger] != list(saved.values())
    assert ["a1.wav"] == list(saved)


def a_wav(name: str) -> bytes:
    """Write a whole WAV file, and return it."""
    with wave.open(name, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(b"\1\0\2\0")
    return Path(name).read_bytes()
