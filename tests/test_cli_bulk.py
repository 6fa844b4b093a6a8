"""``kie-wav bulk``, run in this process against the simulator."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import re
import shlex
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from yarl import URL

from bulk_runs import (
    LEDGER,
    OUT,
    Bulk,
    contents,
    entry_of_track,
    is_bounded,
    is_there,
    resume_command,
    rows_of,
    states,
    write_catalog,
    write_lines,
)
from cli_runs import KEY, names, service, submit_before
from fastclock import FastClock
from kie_wav_async import OnUnknown, PollSchedule, RateLimit, Track, WavSession, events
from kie_wav_async.cli import main
from kie_wav_async.cli.bulk import run as bulk_run
from kie_wav_async.cli.bulk.options import BulkOptions
from kie_wav_async.cli.bulk.progress import BulkDisplay
from kie_wav_async.cli.bulk.run import run_bulk
from kie_wav_async.cli.common.session_factory import Service
from kie_wav_async.errors import LedgerError, RateLimitedError
from kie_wav_async.ledger import AttemptOutcome, SqliteLedger, TrackState
from kie_wav_async.simulator import Fault, Simulator
from kie_wav_async.testing import MemoryLedger
from ledger_runs import Writer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

HOSTILE = "[bold red]x[/] \x1b[31m\x1b]0;z\x07\u202e"
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]")


@pytest.fixture(autouse=True)
def quiet_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take the developer's terminal out of it, and every random wait."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("random.random", lambda: 0.0)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bulk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bulk:
    """Run ``kie-wav bulk``."""
    return Bulk(capsys, monkeypatch)


def kie_of(*faults: Fault, **settings: object) -> Simulator:
    """Make a service without a window."""
    return service(*faults, **{"window": None, **settings})


# --- a run ------------------------------------------------------------------------------------


async def test_a_run(bulk: Bulk) -> None:
    """Each track is converted and charged once, and its ids and URL are a line of stdout."""
    write_catalog(*rows_of(30))
    async with kie_of() as kie:
        done = await bulk(kie)
        charges = kie.charges

    assert 0 == done.code, done
    assert 30 == charges
    assert {"succeeded": 30} == await states()
    assert {("m", f"a{number}") for number in range(30)} == {tuple(r[:2]) for r in done.results}
    for music_task_id, audio_id, task_id, url in done.results:
        entry = await entry_of_track(audio_id)
        assert ("m", task_id, url) == (music_task_id, entry.task_id, str(entry.wav_url))


async def test_what_is_said_before(bulk: Bulk) -> None:
    """Before the first submit it says what is new, what it may cost, how long and how large."""
    write_catalog(*rows_of(3), "m,a0,again")
    async with kie_of() as kie:
        done = await bulk(kie, "--rate", "1/0.001")

    lines = done.err.splitlines()
    assert "The catalog: 4 tracks; 3 new, 1 known or repeated." == lines[0]
    assert lines[1].startswith("The ledger: 3 to submit, 0 in flight, 0 converted,")
    assert lines[2].startswith("At most 3 new charges. It takes about 2 min at 1 submits per 0.001")
    assert lines[2].endswith("all WAVs together are about 96 MB.")


async def test_again(bulk: Bulk) -> None:
    """The same command again sends nothing, and prints nothing that was printed before."""
    write_catalog(*rows_of(5))
    async with kie_of() as kie:
        await bulk(kie)
        sent = len(kie.arrivals)
        done = await bulk(kie)

        assert (0, "", sent) == (done.code, done.out, len(kie.arrivals))
    assert "0 new, 5 known" in done.err
    assert "5 of 5 tracks converted, 0 of them in this run" in done.err


async def test_a_catalog_that_grew(bulk: Bulk) -> None:
    """Only what is new in a catalog is paid."""
    write_catalog(*rows_of(3))
    async with kie_of() as kie:
        await bulk(kie)
        write_catalog(*rows_of(5))
        done = await bulk(kie)

        assert (0, 5) == (done.code, kie.charges)
    assert {"a3", "a4"} == {audio_id for _, audio_id, *_ in done.results}


async def test_every_track_of_a_music_task(bulk: Bulk) -> None:
    """A row without an audio id stands for all tracks of its music task, in its place."""
    write_catalog("x,x1,", "m,,", "y,y1,")
    async with kie_of() as kie:
        done = await bulk(kie)
        wanted = ["x1", *kie.audio_ids("m"), "y1"]

    assert 0 == done.code, done
    async with SqliteLedger(LEDGER) as ledger:
        page = await ledger.list_entries(TrackState)
    assert wanted == [entry.track.audio_id for entry in page]


async def test_as_json(bulk: Bulk) -> None:
    """`--json` prints one object at the end and nothing else on stdout."""
    write_catalog(*rows_of(3))
    fault = Fault(kind="fail", on="conversion", audio_id="a1", code=500, msg="no [b]source")
    async with kie_of(fault, credits="12.25") as kie:
        done = await bulk(kie, "--json")

    told = done.json()
    assert 1 == done.code
    assert {
        *("ledger", "catalog", "run", "saving", "credits", "states", "accepted", "unknown"),
        *("failures", "unknown_submits", "existing", "resume", "error"),
    } == set(told)
    assert told["saving"] is None
    assert str(LEDGER) == told["ledger"]
    assert {"tracks": 3, "new": 3, "invalid": 0} == told["catalog"]
    assert (2, 1) == (told["states"]["succeeded"], told["states"]["failed"])
    assert {state.value for state in TrackState} == set(told["states"])
    assert (3, 0) == (told["accepted"], told["unknown"])
    assert (3, 3, 2) == tuple(told["run"][name] for name in ("submitted", "accepted", "settled"))
    assert [
        {"reason": "500 no [b]source", "count": 1, "music_task_id": "m", "audio_id": "a1"}
    ] == told["failures"]
    assert (1, None) == (told["error"]["exit_code"], told["resume"])


# --- bad lines ----------------------------------------------------------------------------------


async def test_bad_lines(bulk: Bulk) -> None:
    """Each bad line is told with its number, and then nothing is planned, submitted or paid."""
    write_catalog("m,a0,", "m,a b,", "m,a1,", "oops", "m,a2,")
    async with kie_of() as kie:
        done = await bulk(kie)
        requests = kie.state().requests

    assert (2, "") == (done.code, done.out)
    assert 0 == requests.get("submit", 0)
    assert ["line 3", "line 5"] == re.findall(r"^line \d+(?=: )", done.err, re.MULTILINE)
    assert done.err.endswith("leave it out with --skip-invalid\n")
    assert {} == await states()


async def test_bad_lines_skipped(bulk: Bulk) -> None:
    """With `--skip-invalid` the bad lines are told all the same, and the rest is converted."""
    write_catalog("m,a0,", "m,a b,", "m,a1,", "oops", "m,a2,")
    async with kie_of() as kie:
        done = await bulk(kie, "--skip-invalid")

    assert 0 == done.code, done
    assert ["line 3", "line 5"] == re.findall(r"^line \d+(?=: )", done.err, re.MULTILINE)
    assert {"succeeded": 3} == await states()
    assert "2 bad lines left out" in done.err


async def test_a_bad_line_leaves_no_half_a_plan(bulk: Bulk) -> None:
    """The last line of a long catalog keeps the first from being planned."""
    write_catalog(*rows_of(2_500), "oops")
    async with kie_of() as kie:
        done = await bulk(kie)

        assert (2, 0) == (done.code, len(kie.arrivals))
    assert "line 2502: " in done.err
    assert {} == await states()


async def test_a_music_task_that_is_not_there(bulk: Bulk) -> None:
    """A row that stands for every track of a music task KIE does not have is a bad line."""
    write_catalog("m,a0,", "nobody,,", "m,a1,")
    async with kie_of(unknown_music_task_ids=["nobody"]) as kie:
        done = await bulk(kie)
        skipped = await bulk(kie, "--skip-invalid")

    assert 2 == done.code
    assert "line 3: no tracks of music task nobody: " in done.err
    assert 0 == skipped.code


async def test_a_music_task_that_kie_forgot(bulk: Bulk) -> None:
    """A music task whose tracks were planned before may be gone by the time a run is resumed."""
    write_catalog("m,,", "x,x1,")
    async with kie_of() as kie:
        first = await bulk(kie, "--max-charges", "1")
        kie.set_faults([Fault(on="music", kind="code", code=404, msg="gone")])
        done = await bulk(kie)

        assert (1, 0, 3) == (first.code, done.code, kie.charges)
    assert "The catalog: 3 tracks; 0 new, 3 known" in done.err


async def test_a_music_task_that_cannot_be_asked_for(bulk: Bulk) -> None:
    """If KIE cannot be asked for tracks no line is at fault, and nothing is planned."""
    write_catalog("m,a0,", "m2,,")
    async with kie_of(Fault(on="music", kind="code", code=401, msg="no")) as kie:
        done = await bulk(kie)

    assert 3 == done.code
    assert "KIE_API_KEY" in done.err
    assert "line 3" not in done.err
    assert {} == await states()


async def test_rows_that_name_their_track_as_the_service_does(bulk: Bulk) -> None:
    """A row with `id` is that track alone, and one with a key of another name costs nothing."""
    rows = [{"music_task_id": f"m{number}", "id": "a1"} for number in range(3)]
    write_lines("c.jsonl", *rows)
    write_lines("bad.jsonl", *({"music_task_id": "m", key: "a1"} for key in ("track", "clipId")))
    async with kie_of() as kie:
        bad = await bulk(kie, catalog="bad.jsonl")
        charges = kie.charges
        done = await bulk(kie, catalog="c.jsonl")

        assert (2, 0, 0, 3) == (bad.code, charges, done.code, kie.charges)
    assert "line 1: no audio_id, and 'track' is not understood" in bad.err
    assert [[f"m{number}", "a1"] for number in range(3)] == sorted(r[:2] for r in done.results)


async def test_a_saved_answer_is_a_catalog(bulk: Bulk) -> None:
    """What the service answered of a music task is converted, each of its tracks once."""
    async with kie_of() as kie:
        async with WavSession(KEY, base_url=kie.base_url) as session:
            tracks = await session.list_tracks("m")
        made = [{"id": track.audio_id, "title": track.title} for track in tracks]
        data = {"taskId": "m", "status": "SUCCESS", "response": {"taskId": "m", "sunoData": made}}
        write_lines("answer.json", {"code": 200, "msg": "", "data": data}, indent=2)
        done = await bulk(kie, catalog="answer.json")

        assert (0, len(tracks)) == (done.code, kie.charges)
    assert sorted(["m", track.audio_id] for track in tracks) == sorted(r[:2] for r in done.results)


async def test_very_many_bad_lines(bulk: Bulk) -> None:
    """Beyond fifty bad lines all of them are in a file for our eyes only, and stderr says where."""
    write_catalog(*["oops"] * 60)
    async with kie_of() as kie:
        done = await bulk(kie)
        file = OUT / "kie-wav-invalid-lines.txt"
        mode, text = contents(file)
        write_catalog("m,a0,")
        again = await bulk(kie)

    assert 2 == done.code
    told = re.findall(r"^line \d+: .*$", done.err, re.MULTILINE)
    assert 50 == len(told)
    assert f"and 10 more: all bad lines are in {file}" in done.err
    assert (0o600, 60) == (mode, len(text.splitlines()))
    assert told == text.splitlines()[:50]
    assert (0, False) == (again.code, is_there(file))


async def test_bad_lines_that_cannot_be_written(bulk: Bulk) -> None:
    """Where the file of bad lines cannot be made, that is said, and the rest as ever."""
    write_catalog(*["oops"] * 60)
    file = OUT / "kie-wav-invalid-lines.txt"
    await asyncio.to_thread(file.mkdir, parents=True)
    async with kie_of() as kie:
        done = await bulk(kie)

    assert (2, 0) == (done.code, kie.charges)
    assert f"and 10 more: they are not listed, as {file} cannot be written (" in done.err
    assert "60 lines are bad" in done.err
    assert "Traceback" not in done.err


async def test_a_link_in_place_of_the_bad_lines_is_not_followed(bulk: Bulk) -> None:
    """A link that others put there while the catalog is read is replaced, and not followed."""
    file, other = OUT / "kie-wav-invalid-lines.txt", Path("other.txt")
    os.mkfifo("c.csv")

    def write() -> None:
        with Path("c.csv").open("w") as catalog:  # Which waits for who reads it.
            other.write_text("precious")
            file.symlink_to(other.absolute())
            catalog.write("music_task_id,audio_id\n" + "oops\n" * 60)

    async with kie_of() as kie:
        done, _ = await asyncio.gather(bulk(kie), asyncio.to_thread(write))

    assert 2 == done.code
    assert "precious" == contents(other)[1]
    assert 60 == len(contents(file)[1].splitlines())


async def test_no_catalog(bulk: Bulk) -> None:
    """A catalog that is not there is a usage error."""
    async with kie_of() as kie:
        done = await bulk(kie, catalog="nowhere.csv")

    assert 2 == done.code
    assert "there is no file nowhere.csv" in done.err


# --- ends that are not good ---------------------------------------------------------------------


async def test_no_credits_and_then_some(bulk: Bulk) -> None:
    """402 in the middle ends the run with what is left; the same command goes on."""
    write_catalog(*rows_of(10))
    async with kie_of(credits="1.2", price="0.4") as kie:
        done = await bulk(kie, "--max-in-flight", "1")
        charges, command = kie.charges, resume_command(done.err)
    async with kie_of() as kie:
        again = await bulk(kie)

        assert (3, 3) == (done.code, charges)
        assert re.search(
            r"^kie-wav: stopped: the service answered 402 '.*' \(request .*\) to m a\d, which was "
            r"not charged; 7 tracks are left\. Top up credits or raise the key's limit, "
            r"and run it again$",
            done.err,
            re.MULTILINE,
        ), done.err
        assert "nothing was charged" not in done.err
        assert shlex.split(command)[:5] == ["kie-wav", "bulk", "c.csv", "--out", "out"]
        assert (0, 7) == (again.code, kie.charges)
    assert {"succeeded": 10} == await states()


async def test_a_key_that_is_refused(bulk: Bulk) -> None:
    """401 ends the run at once, and leaves every track planned."""
    write_catalog(*rows_of(30))
    async with kie_of() as kie:
        done = await bulk(kie, key="sk-wrong")

        assert (3, 0) == (done.code, kie.charges)
    assert "KIE_API_KEY" in done.err
    assert "30 tracks are left" in done.err
    assert "sk-wrong" not in done.err
    assert {"planned": 30} == await states()


async def test_a_route_that_is_gone(bulk: Bulk) -> None:
    """A 410 ends the run at once, says where to look, and leaves every track planned."""
    write_catalog(*rows_of(30))
    async with kie_of(Fault(kind="body", http_status=410, body="<html>")) as kie:
        done = await bulk(kie)

        assert (3, 0) == (done.code, kie.charges)
    assert "(base_url, --base-url, KIE_BASE_URL)" in done.err
    assert "30 tracks are left" in done.err
    assert {"planned": 30} == await states()


async def test_the_brake(bulk: Bulk) -> None:
    """`--max-charges` holds over all runs, and is said before and after."""
    write_catalog(*rows_of(10))
    async with kie_of() as kie:
        first = await bulk(kie, "--max-charges", "4")
        second = await bulk(kie, "--max-charges", "6")
        third = await bulk(kie)

        assert [1, 1, 0] == [first.code, second.code, third.code]
        assert 10 == kie.charges
    assert "At most 4 new charges (--max-charges 4)." in first.err
    assert "At most 2 new charges (--max-charges 6)." in second.err
    assert "--max-charges 6 is reached" in second.err
    assert "a higher one goes on; 4 tracks are left" in second.err
    assert "For all that is left, N would have to be 10.\n" in second.err
    command = shlex.split(resume_command(second.err))
    assert ["--max-charges", "N"] == command[-2:]


async def test_the_command_that_goes_on(bulk: Bulk) -> None:
    """What is said once is not in the command that goes on, unless it was not done yet."""
    write_catalog(*rows_of(5))
    once = ("--retry-failed", "--retry-expired")
    async with kie_of(credits="1", price="0.4") as kie:
        done = await bulk(kie, once[0], "--max-in-flight", "1")
    command = shlex.split(resume_command(done.err))
    order = order_of(given=["bulk", "-", *once], catalog="-")

    assert [] == [word for word in command if word in once]
    assert ["--max-in-flight", "1"] == command[-2:]
    assert "kie-wav bulk -" == order.resume(is_planned=True)
    assert "kie-wav bulk - --retry-failed --retry-expired" == order.resume(is_planned=False)
    assert "the same catalog on stdin" in order.resume_words


async def test_failures(bulk: Bulk) -> None:
    """What failed is listed by reason, and tried again only when asked."""
    write_catalog(*rows_of(6))
    script = [
        Fault(kind="fail", on="conversion", audio_id="a1", code=500, msg=HOSTILE),
        Fault(kind="fail", on="conversion", audio_id="a2", code=500, msg=HOSTILE),
        Fault(kind="code", code=422, msg="no such audio", audio_id="a3"),
    ]
    async with kie_of(*script) as kie:
        done = await bulk(kie)
        kie.set_faults([])
        sent = len(kie.arrivals)
        same = await bulk(kie)
        unsent = len(kie.arrivals) - sent
        again = await bulk(kie, "--retry-failed")

    assert [1, 1, 0] == [done.code, same.code, again.code]
    assert 0 == unsent
    assert "3 tracks failed; --retry-failed tries again:\n" in done.err
    assert "  2 x 500 [bold red]x[/]" in done.err
    assert re.search(r"  2 x 500 .* \(m a[12]\)\n", done.err)
    assert "  1 x 422 no such audio (m a3)\n" in done.err
    assert not CONTROLS.search(done.err)
    assert {"succeeded": 6} == await states()
    assert {"a1", "a2", "a3"} == {audio_id for _, audio_id, *_ in again.results}


async def test_a_track_converted_elsewhere(bulk: Bulk) -> None:
    """A 409 that names the task is followed, and costs nothing."""
    write_catalog(*rows_of(3))
    async with kie_of() as kie:
        await submit_before(kie, "a1")
        done = await bulk(kie)

        assert (0, 3) == (done.code, kie.charges)
    assert (await entry_of_track("a1")).is_adopted


async def test_a_track_under_an_unknown_id(bulk: Bulk) -> None:
    """A 409 without the id is a failure that comes with what to type, and then goes on unpaid."""
    write_catalog(*rows_of(2))
    async with kie_of(conflict_id=False) as kie:
        await submit_before(kie, "a1")
        done = await bulk(kie)
        again = await bulk(kie, "--retry-failed", "--json")
        charges = kie.charges
        task_id = next(a.task_id for a in kie.arrivals if a.audio_id == "a1")
        line = re.search(r"^  (kie-wav resolve .*)$", again.err, re.MULTILINE)[1]
        words = shlex.split(line.replace("TASK_ID", task_id))
        resolved = await asyncio.to_thread(main, [*words[1:], "--no-check"])
        last = await bulk(kie)

        assert charges == kie.charges
    assert [1, 1, 0, 0] == [done.code, again.code, resolved, last.code], last
    attempt_id = again.json()["existing"][0]["attempt_id"]
    for run in (done, again):
        assert "1 track failed:\n  1 x KIE has a WAV of it under a task id that it" in run.err
        assert "--retry-failed" not in run.err
        assert "m a1 has a WAV at KIE that was there before." in run.err
        assert f"  kie-wav resolve {LEDGER} {attempt_id} --task-id TASK_ID\n" in run.err
    assert [["m", "a1", task_id]] == [row[:3] for row in last.results]


async def test_tracks_under_unknown_ids(bulk: Bulk) -> None:
    """Several of them come with one list to fill in, not with a command each."""
    write_catalog(*rows_of(3))
    async with kie_of(conflict_id=False) as kie:
        await submit_before(kie, "a1", "a2")
        done = await bulk(kie)

    assert 1 == done.code
    assert "2 tracks have a WAV at KIE that was there before." in done.err
    assert [
        f"kie-wav resolve {LEDGER} > unknown.csv",
        f"kie-wav resolve {LEDGER} --list unknown.csv",
    ] == re.findall(r"^  (kie-wav resolve .*)$", done.err, re.MULTILINE)


async def test_what_is_in_doubt_beside(bulk: Bulk) -> None:
    """A task that a callback named is in the command, and no submit of the bill goes untold."""
    write_catalog(*rows_of(3))
    async with SqliteLedger("books.db") as ledger:
        writer = Writer(ledger)
        await ledger.record_callback(await writer.lose(0), "t-0")
        await writer.lose(1)
        await writer.end(1, AttemptOutcome.ACCEPTED, task_id="t-1", again=True)
        url = URL("https://files.example/t-1.wav")
        await ledger.finish_task("t-1", writer.now_unix_s, wav_url=url)
        await writer.convert(2)
        attempt_id = (await writer.find(0)).attempt_id
    async with kie_of() as kie:
        done = await bulk(kie, "--ledger", "books.db", "--max-charges", "1")

    assert f"  kie-wav resolve books.db {attempt_id} --task-id t-0\n" in done.err
    assert "1 more submit may have been accepted too, of tracks that have a task" in done.err
    assert "in all: at least 2 and at most 4, with those unknown.\n" in done.err
    assert "The URLs of all WAVs: kie-wav report books.db --urls\n" in done.err


async def test_an_unknown_submit(bulk: Bulk) -> None:
    """What is in doubt is listed with what to type, is never sent again, and once known goes on."""
    write_catalog(*rows_of(4))
    async with kie_of(Fault(kind="hangup", when="after", audio_id="a2")) as kie:
        done = await bulk(kie)
        same = await bulk(kie)
        charges = kie.charges
        (task_id,) = (a.task_id for a in kie.arrivals if a.audio_id == "a2")
        attempt_id = (await entry_of_track("a2")).attempt_id
        bounded = await is_bounded(kie)
        line = re.search(r"^  (kie-wav resolve .*)$", same.err, re.MULTILINE)[1]
        words = shlex.split(line.replace("TASK_ID", task_id))
        resolved = await asyncio.to_thread(main, [*words[1:], "--no-check"])
        again = await bulk(kie)

        assert [4, 4, 0, 0] == [done.code, same.code, resolved, again.code]
        assert (4, 4) == (charges, kie.charges)
    assert bounded
    for run in (done, same):
        assert "1 submit (m a2) may or may not have been accepted." in run.err
        assert f"  kie-wav resolve {LEDGER} {attempt_id} --task-id TASK_ID\n" in run.err
        assert "--not-charged" in run.err
    assert (
        "Charged for this catalog in all: at least 3 and at most 4, with those unknown.\n"
        in done.err
    )
    assert "Charged for this catalog in all: 4.\n" in again.err
    assert [["m", "a2", task_id]] == [row[:3] for row in again.results]


async def test_not_finished_in_time(bulk: Bulk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not finish in time stays in flight, and the next run asks for it unpaid."""
    monkeypatch.setattr(bulk_run, "_TIMEOUT_S", 0.3)
    write_catalog(*rows_of(3))
    async with kie_of(Fault(kind="takes", delay_s=1.0, on="conversion", audio_id="a1")) as kie:
        done = await bulk(kie)
        monkeypatch.setattr(bulk_run, "_TIMEOUT_S", 60.0)
        again = await bulk(kie)

        assert (1, 0, 3) == (done.code, again.code, kie.charges)
    assert "1 conversion did not finish in time" in done.err
    assert resume_command(done.err)
    assert [["m", "a1"]] == [row[:2] for row in again.results]


async def test_nobody_answers(bulk: Bulk) -> None:
    """If nothing gets through the run ends early, says why, and leaves everything planned."""
    write_catalog(*rows_of(200))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    done = await bulk(None, "--base-url", f"http://127.0.0.1:{port}")

    assert 3 == done.code
    assert "check the network" in done.err
    assert "200 tracks are left" in done.err
    assert {"planned": 200} == await states()


async def test_another_process_has_the_ledger(bulk: Bulk) -> None:
    """A ledger that is in use is refused in a sentence, before anything is sent."""
    write_catalog(*rows_of(3))
    ledger = SqliteLedger("books.db")
    async with kie_of() as kie, ledger:
        done = await bulk(kie, "--ledger", "books.db")

        assert (3, "", 0) == (done.code, done.out, len(kie.arrivals))
    assert 1 == len(done.err.splitlines()), done.err
    assert done.err.startswith("kie-wav: ")


@pytest.mark.parametrize("key", [None, ""])
async def test_no_key(bulk: Bulk, key: str | None) -> None:
    """Without a key nothing is read or made."""
    write_catalog(*rows_of(3))
    done = await bulk(None, key=key)

    assert (2, "", False) == (done.code, done.out, is_there(OUT))
    assert "set KIE_API_KEY" in done.err


async def test_a_folder_that_cannot_be(bulk: Bulk) -> None:
    """An `--out` that is a file is a usage error."""
    write_catalog(*rows_of(3))
    async with kie_of() as kie:
        done = await bulk(kie, "--out", "c.csv/out")

    assert 2 == done.code


async def test_a_ledger_elsewhere(bulk: Bulk) -> None:
    """`--ledger` says where the ledger is."""
    write_catalog(*rows_of(1))
    async with kie_of() as kie:
        done = await bulk(kie, "--ledger", "books.db")

    assert (0, True, False) == (done.code, is_there(Path("books.db")), is_there(LEDGER))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--rate", "20"),
        ("--rate", "x/10"),
        ("--rate", "0/10"),
        ("--rate", "20/0"),
        ("--rate", "20/nan"),
        ("--poll", "15"),
        ("--poll", "15,0"),
        ("--poll", "15,x"),
        ("--poll", "15,10,30,40"),
        ("--max-in-flight", "0"),
        ("--max-charges", "0"),
        ("--on-unknown", "guess"),
        ("--callback-url", "https://hooks.example.com/"),
        ("--listen", "8080"),
    ],
)
async def test_wrong_usage(bulk: Bulk, option: str, value: str) -> None:
    """A wrong option is named in one sentence before anything is made or sent."""
    write_catalog(*rows_of(1))
    async with kie_of() as kie:
        done = await bulk(kie, option, value)

        assert 0 == sum(kie.state().requests.values())
    assert 2 == done.code
    assert option in done.err
    assert not is_there(OUT)


# --- a ledger that fails --------------------------------------------------------------------------

NO_SPACE = LedgerError("cannot write out/kie-wav.sqlite3: no space left on device: make room")


@pytest.mark.parametrize(
    "call", ["add_tracks", "requeue", "list_entries", "begin_attempt", "finish_task"]
)
async def test_a_ledger_that_fails(bulk: Bulk, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A ledger that cannot be written ends the run at once, with one clear sentence."""
    ledger = MemoryLedger()
    ledger.fail_with = {call: NO_SPACE}
    monkeypatch.setattr(bulk_run, "SqliteLedger", lambda _, **__: ledger)
    write_catalog(*rows_of(100))
    async with kie_of() as kie:
        done = await bulk(kie, "--max-in-flight", "5", "--retry-failed")
        charges = kie.charges

    assert 3 == done.code, done
    assert 1 == len([line for line in done.err.splitlines() if line.startswith("kie-wav: ")])
    assert "no space left" in done.err
    assert charges <= 5 * (call == "finish_task")
    assert not ledger.is_open


@pytest.mark.parametrize("call", ["list_entries", "count_by_state"])
async def test_a_ledger_that_was_moved(
    bulk: Bulk, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """If the ledger is gone no command is told: with a new one everything would be paid again."""

    class Moved(MemoryLedger):
        async def begin_attempt(self, *args: object, **named: object) -> None:
            self.fail_with = {
                name: LedgerError("the ledger out/x was moved or replaced while it was open")
                for name in ("begin_attempt", call)
            }
            await super().begin_attempt(*args, **named)

    monkeypatch.setattr(bulk_run, "SqliteLedger", lambda _, **__: Moved())
    write_catalog(*rows_of(10))
    async with kie_of() as kie:
        done = await bulk(kie, "--json")

    assert 3 == done.code, done
    assert "Go on with" not in done.err
    assert done.json()["resume"] is None
    assert "with a new ledger everything would be paid again" in done.err


async def test_a_folder_that_was_moved(bulk: Bulk) -> None:
    """If the folder goes away under a run it stops, and asks for the ledger and nothing else."""
    write_catalog(*rows_of(200))
    async with kie_of(median_s=0.05) as kie, asyncio.timeout(60):
        run = asyncio.create_task(bulk(kie, "--max-in-flight", "2"))
        while kie.charges < 3:  # noqa: ASYNC110 - another thread makes it so
            await asyncio.sleep(0.005)
        OUT.rename("elsewhere")
        done = await run

        assert kie.charges < 200
    assert 3 == done.code, done
    assert "Go on with" not in done.err
    assert "Put the ledger out/kie-wav.sqlite3 back before you go on" in done.err


class FullLedger(MemoryLedger):
    """A disk that is full when the first answer to a submit is to be written."""

    async def finish_attempt(self, *args: object, **named: object) -> None:
        self.fail_with = NO_SPACE
        await super().finish_attempt(*args, **named)


async def test_tasks_that_cannot_be_written(bulk: Bulk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Task ids that only this process knows are told at the end, every one of them."""
    ledger = FullLedger()
    monkeypatch.setattr(bulk_run, "SqliteLedger", lambda _, **__: ledger)
    write_catalog(*rows_of(100))
    slow = Fault(kind="slow", delay_s=0.1)
    async with kie_of(slow, median_s=1e6) as kie:
        done = await bulk(kie, "--rate", "5/0.05")
        known = [arrival.task_id for arrival in kie.arrivals if arrival.task_id]

    assert 3 == done.code, done
    assert "no space left" in done.err
    assert 0 < len(known) < 100
    assert [] == [task_id for task_id in known if f"  {task_id}  # m a" not in done.err]
    assert resume_command(done.err)


# --- time -----------------------------------------------------------------------------------------


def order_of(**changes: object) -> BulkOptions:
    """Return what ``kie-wav bulk c.csv --out out`` asks for, changed."""
    given = {
        "catalog": "c.csv",
        "folder": Path("out"),
        "ledger": LEDGER,
        "address": None,
        "callback_url": None,
        "on_unknown": OnUnknown.RAISE,
        "max_charges": None,
        "rate": RateLimit(20, per_s=10.0),
        "max_in_flight": 400,
        "poll": PollSchedule(),
        "is_saving_off": True,
        "filename_template": "{title} [{audio_id}].wav",
        "max_downloads": 4,
        "skip_invalid": False,
        "retried": [],
        "given": ["bulk", "c.csv", "--out", "out"],
        **changes,
    }
    return BulkOptions(**given)


@pytest.fixture
def fast(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Awaitable[tuple[int, str]]]:
    """Run ``kie-wav bulk`` in this loop, two hundred times as fast."""

    async def run(kie: Simulator, **changes: object) -> tuple[int, str]:
        monkeypatch.setenv("KIE_API_KEY", KEY)
        order, clock = order_of(**changes), FastClock(200)
        code = await run_bulk(Service(kie.base_url, ()), order, as_json=False, clock=clock)
        return code, capsys.readouterr().err

    return run


async def test_a_line_every_ten_seconds(fast) -> None:
    """Where there is no terminal a plain line tells every ten seconds how far it has come."""
    write_catalog(*rows_of(60))
    async with service(median_s=60.0, time_scale=200, credits="100", price="0.5") as kie:
        code, err = await fast(kie)

    lines = re.findall(r"^submitted \d.*$", err, re.MULTILINE)
    assert 0 == code, err
    assert len(lines) >= 3
    assert re.fullmatch(
        r"submitted \d+ of 60, converted \d+, failed 0, unknown 0, \d+\.\d submits/s, "
        r"about .* left, \d+ in flight(, [\d.]+ credits left)?",
        lines[0],
    ), lines[0]


async def test_lines_tell_of_files(fast) -> None:
    """Where files are saved such a line tells how many, how much of them came, and how fast."""
    write_catalog(*rows_of(60))
    slow = Fault(kind="slow", on="media", delay_s=20.0)
    async with service(slow, median_s=10.0, time_scale=200) as kie:
        code, err = await fast(kie, is_saving_off=False)

    lines = re.findall(r"^submitted \d.*$", err, re.MULTILINE)
    pattern = (
        r"submitted \d+ of 60, converted \d+, saved \d+ \([\d.]+ ([kM]B|bytes), "
        r"[\d.]+ ([kM]B|bytes)/s\), failed 0, unknown 0, .* in flight.*"
    )
    assert 0 == code, err
    assert len(lines) >= 3
    assert [] == [line for line in lines if not re.fullmatch(pattern, line)]
    assert [line for line in lines if re.search(r"saved [1-9]\d* \([1-9]", line)]


async def test_maintenance(fast) -> None:
    """455 holds the submits, is told once, and is over when what was held is taken."""
    write_catalog(*rows_of(12))
    faults = [
        # Those on the wire with it are taken after it, and say nothing of its end.
        Fault(kind="slow", delay_s=5.0, every=2),
        Fault(kind="code", code=455, msg="maintenance", at=3),
        Fault(kind="code", code=455, msg="maintenance", audio_id="a2", times=2),
    ]
    async with service(*faults, median_s=5.0, time_scale=200) as kie:
        code, err = await fast(kie)

        assert (0, 12) == (code, kie.charges)
    assert 1 == err.count("KIE is under maintenance")
    assert 1 == err.count("KIE takes submits again")
    begun, over = err.index("KIE is under maintenance"), err.index("KIE takes submits again")
    held = [line for line in err[begun:over].splitlines() if line.startswith("submitted ")]
    assert held
    assert [] == [line for line in held if "holding for maintenance" not in line]
    assert [] == [line for line in held if re.search(r"about .* left", line)]


async def test_outage(fast) -> None:
    """After 5 unknown submits the rest waits, which is told once, and goes on by itself."""
    write_catalog(*rows_of(30))
    bad_gateway = Fault(kind="html", http_status=502, times=7)
    async with service(bad_gateway, median_s=5.0, time_scale=200) as kie:
        code, err = await fast(kie, rate=RateLimit(5, per_s=10.0))

        assert (4, 23) == (code, kie.charges), err
    assert 1 == err.count("KIE seems to be out")
    assert 1 == err.count("KIE takes submits again")
    begun, over = err.index("KIE seems to be out"), err.index("KIE takes submits again")
    held = [line for line in err[begun:over].splitlines() if line.startswith("submitted ")]
    assert held
    assert [] == [line for line in held if "paused for an outage" not in line]
    assert {"succeeded": 23, "unknown": 7} == await states()
    # One command for all of them, not one for each.
    assert [
        f"kie-wav resolve {LEDGER} > unknown.csv",
        f"kie-wav resolve {LEDGER} --list unknown.csv",
        f"kie-wav resolve {LEDGER} --all --not-charged",
    ] == re.findall(r"^  (kie-wav resolve .*)$", err, re.MULTILINE)


def test_429_once_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    """However often 429 comes and goes it is told once a minute, also if the clock is set back."""
    display, track = BulkDisplay(), Track("m", "a")
    begin = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    told = []
    for second in (0.0, 1.0, 30.0, 59.0, 60.0, 61.0, 121.0, 5.0, 6.0):
        at = begin + dt.timedelta(seconds=second)
        error = RateLimitedError(code=429)
        display.show_event(
            events.SubmitRetryScheduled(at=at, track=track, error=error, delay_s=1.0)
        )
        told.append(capsys.readouterr().err.count("KIE says 429"))
        display.show_event(events.SubmitRejected(at=at, track=track, error=error))

    assert [1, 0, 0, 0, 1, 0, 1, 1, 0] == told


async def test_lines_while_it_is_read(fast) -> None:
    """A plain line tells every ten seconds that the catalog is being read, also if KIE is slow."""
    write_catalog("m,,")
    slow = Fault(kind="slow", on="music", delay_s=45.0)
    async with service(slow, median_s=5.0, time_scale=200) as kie:
        code, err = await fast(kie)

    assert 0 == code, err
    assert 2 <= err.count("reading the catalog: 0 rows\n")


async def test_lines_while_it_is_planned(fast, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain line tells every ten seconds how much of a catalog is planned."""

    class Slow(SqliteLedger):
        async def add_tracks(self, tracks: Iterable[Track]) -> int:
            await FastClock(200).sleep(40.0)
            return await super().add_tracks(tracks)

    monkeypatch.setattr(bulk_run, "SqliteLedger", Slow)
    write_catalog(*rows_of(2_500))
    async with kie_of(credits="0") as kie:
        _, err = await fast(kie)

    assert "planning: 0 of 2,500 tracks\n" in err
    assert "planning: 1,000 of 2,500 tracks\n" in err


async def test_resubmitting_what_is_unknown(fast) -> None:
    """With `--on-unknown resubmit` what an earlier run left in doubt is sent again by the next."""
    write_catalog(*rows_of(3))
    async with service(
        Fault(kind="hangup", when="after", audio_id="a1"), median_s=5.0, time_scale=200
    ) as kie:
        first, _ = await fast(kie)
        kie.set_faults([])
        second, err = await fast(kie, on_unknown=OnUnknown.RESUBMIT)

        assert (4, 0, 3) == (first, second, kie.charges)
    assert "At most 1 new charge." in err


async def test_the_brake_and_repeats(fast) -> None:
    """If the brake keeps a lost submit from being repeated, that is said beside the doubt."""
    write_catalog(*rows_of(3))
    lost = Fault(kind="hangup", when="after", audio_id="a1")
    async with service(lost, median_s=5.0, time_scale=200) as kie:
        await fast(kie)
        given = ["bulk", "c.csv", "--out", "out", "--max-charges=3"]
        code, err = await fast(kie, on_unknown=OnUnknown.RESUBMIT, max_charges=3, given=given)

        assert (4, 3) == (code, kie.charges)
    assert "At most 0 new charges (--max-charges 3)." in err
    assert "--max-charges 3 is reached" in err
    assert "--max-charges=N" == shlex.split(resume_command(err))[-1]
    assert "N would have to be 4." in err


async def test_expired_wavs_are_fetched_before_they_are_paid(bulk: Bulk) -> None:
    """`--retry-expired` fetches files first, so it makes no sense with `--no-download`."""
    write_catalog(*rows_of(1))
    async with kie_of() as kie:
        done = await bulk(kie, "--retry-expired")

    assert (2, 0) == (done.code, kie.charges)
    assert "leave --no-download out" in done.err


# --- callbacks --------------------------------------------------------------------------------


async def test_by_callback(bulk: Bulk) -> None:
    """With `--listen` a callback has the task asked for at once, long before its first poll."""
    write_catalog(*rows_of(3))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    async with kie_of() as kie, asyncio.timeout(60):
        done = await bulk(
            kie,
            *("--listen", f"127.0.0.1:{port}", "--poll", "3600,3600"),
            KIE_CALLBACK_URL=f"http://127.0.0.1:{port}/",
            KIE_WEBHOOK_HMAC_KEY="simulator-webhook-key",
        )

    assert (0, 3) == (done.code, len(done.results)), done
    assert f"listening on 127.0.0.1:{port}" in done.err


# --- the ledger's file ----------------------------------------------------------------------------


async def test_who_may_read_the_ledger(bulk: Bulk) -> None:
    """The ledger is for our eyes only, and the catalog leaves nothing else behind."""
    write_catalog(*rows_of(1))
    async with kie_of() as kie:
        await bulk(kie)

    assert {"kie-wav.sqlite3", "kie-wav.sqlite3.lock"} == set(names(OUT))
    assert {0o600} == {(OUT / name).stat().st_mode & 0o777 for name in names(OUT)}
