"""A ledger that was there and is gone, or is not the one that was: refused, unless it is said."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bulk_runs import LEDGER, OUT, SAVING, Bulk, resume_command, rows_of, states, write_catalog
from cli_runs import names, service
from kie_wav_async import Track
from kie_wav_async.cli import main
from kie_wav_async.errors import LedgerError
from kie_wav_async.ledger import AttemptOutcome, SqliteLedger

if TYPE_CHECKING:
    from collections.abc import Callable

    from kie_wav_async.simulator import Simulator

NOW = 1_700_000_000.0
TRACKS = [Track("5c79", f"e{number}") for number in range(6)]
LOCK = LEDGER.with_name(f"{LEDGER.name}.lock")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the ledger is."""
    return tmp_path / "x.sqlite3"


async def pay(path: Path, *tracks: Track, **settings: bool) -> None:
    """Open a ledger, and have submits accepted."""
    async with SqliteLedger(path, **settings) as ledger:
        for track in tracks:
            name = f"{path.stem}-{track.audio_id}"
            assert await ledger.begin_attempt(track, name, NOW) is None
            await ledger.finish_attempt(
                name, AttemptOutcome.ACCEPTED, NOW, task_id=f"t-{track.audio_id}"
            )


async def accepted(path: Path) -> int:
    """Return how many submits a ledger knows as accepted."""
    async with SqliteLedger(path, read_only=True) as ledger:
        opening = await ledger.open(NOW)
        await ledger.aclose()
    return opening.accepted


# --- a ledger -----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_empty", [False, True])
async def test_a_lost_ledger_is_not_replaced_in_silence(path, is_empty) -> None:
    """A ledger that is gone, or truncated to nothing, is refused as often as it is opened."""
    await pay(path, *TRACKS)
    path.unlink()
    if is_empty:
        path.touch()
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"(?s)no ledger at .*6 submits.*--new-ledger"):
            await SqliteLedger(path).open(NOW)
    assert is_empty is path.exists()
    assert not is_empty or path.stat().st_size == 0


async def test_a_new_ledger_is_the_callers_word(path) -> None:
    """With `new_ledger` a new one begins, and is then the one that must not be lost."""
    await pay(path, *TRACKS)
    path.unlink()
    await pay(path, TRACKS[0], new_ledger=True)
    await pay(path, TRACKS[1])
    assert 2 == await accepted(path)
    path.unlink()
    with pytest.raises(LedgerError, match="2 submits"):
        await SqliteLedger(path).open(NOW)


async def test_the_word_changes_nothing_where_nothing_is_lost(path) -> None:
    """Said of a ledger that is there, or was never there, `new_ledger` means nothing."""
    await pay(path, TRACKS[0], new_ledger=True)
    await pay(path, TRACKS[1], new_ledger=True)
    assert 2 == await accepted(path)


async def test_another_ledger_is_refused(path) -> None:
    """A ledger of another catalog in its place is refused, and stays as it is."""
    other = path.with_name("other.sqlite3")
    await pay(path, *TRACKS)
    await pay(other, *TRACKS, Track("m", "a"))
    shutil.copy(other, path)
    content = path.read_bytes()
    with pytest.raises(LedgerError, match="is not the ledger that was there"):
        await SqliteLedger(path).open(NOW)
    assert content == path.read_bytes()
    await pay(path, new_ledger=True)
    await pay(path)


async def test_an_older_copy_is_refused(path) -> None:
    """A copy that was made before the last submits is refused, and a later one is not."""
    await pay(path, *TRACKS[:2])
    older = shutil.copy(path, path.with_name("older"))
    await pay(path, *TRACKS[2:])
    latest = shutil.copy(path, path.with_name("latest"))
    shutil.copy(older, path)
    with pytest.raises(LedgerError, match=r"knows of 2 submits.*older copy.*says that 6"):
        await SqliteLedger(path).open(NOW)
    shutil.copy(latest, path)
    await pay(path)
    assert 6 == await accepted(path)


def spoil(path: Path) -> None:
    """Damage ledger and log in place, so that the open connection is of no use any more."""
    for end, content in (("", b"x" * 200_000), ("-wal", b"x" * 50_000), ("-shm", b"\xff" * 200)):
        with path.with_name(path.name + end).open("r+b") as file:
            file.write(content)


def put_back(path: Path) -> None:
    """Do as is told: an older copy under the name, and nothing beside it."""
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    shutil.copyfile(path.with_name("older"), path)


def empty(path: Path) -> None:
    """Leave a file of nothing, and no log."""
    put_back(path)
    path.write_bytes(b"")


@pytest.mark.parametrize("put", [put_back, empty])
async def test_another_ledger_in_its_place_is_refused_while_it_is_open(path, put) -> None:
    """A ledger that is damaged and then replaced under a running process is compared again."""
    await pay(path, *TRACKS[:2])
    shutil.copy(path, path.with_name("older"))
    async with SqliteLedger(path) as running:
        for number, one in enumerate(TRACKS[2:4]):
            assert await running.begin_attempt(one, f"b-{number}", NOW) is None
        spoil(path)
        with pytest.raises(LedgerError):
            await running.begin_attempt(TRACKS[4], "b-2", NOW)
        put(path)
        with pytest.raises(LedgerError, match="says that 4 submits were begun"):
            await running.begin_attempt(TRACKS[2], "b-3", NOW)
    with pytest.raises(LedgerError, match="says that 4 submits were begun"):
        await SqliteLedger(path).open(NOW)


async def test_reading_an_older_copy_says_so(path, caplog) -> None:
    """What an older copy counts is too little, and whoever reads it is told; else nobody is."""
    await pay(path, *TRACKS[:2])
    older = shutil.copy(path, path.with_name("older"))
    async with SqliteLedger(path) as running:
        assert await running.begin_attempt(TRACKS[2], "a-2", NOW) is None
        assert 2 == await accepted(path)
    assert 2 == await accepted(path)
    assert not caplog.messages

    shutil.copy(older, path)

    assert 2 == await accepted(path)
    (message,) = caplog.messages
    assert "knows of 2 submits" in message
    assert "says that 3 submits were begun" in message


async def test_a_copy_under_another_name_is_a_ledger(path) -> None:
    """Where no ledger was, any may be begun or brought."""
    await pay(path, *TRACKS)
    copy = path.with_name("copy.sqlite3")
    shutil.copy(path, copy)
    path.with_name("x.sqlite3.lock").unlink()
    for ledger in (path, copy):
        await pay(ledger)
        assert 6 == await accepted(ledger)


async def test_a_ledger_with_nothing_paid_may_go(path) -> None:
    """A ledger that has sent nothing may be lost, and another begun."""
    async with SqliteLedger(path) as ledger:
        await ledger.add_tracks(TRACKS)
    path.unlink()
    await pay(path, *TRACKS)


PAYS_AND_WAITS = """
import asyncio, sys
from kie_wav_async import Track
from kie_wav_async.ledger import SqliteLedger

async def main():
    async with SqliteLedger(sys.argv[1]) as ledger:
        for number in range(3):
            await ledger.begin_attempt(Track("5c79", f"e{number}"), f"a{number}", 1_700_000_000.0)
        print("paid", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


def die_with_it_open(path: Path) -> None:
    """Have another process begin three submits, and kill it."""
    with subprocess.Popen(  # noqa: S603 - our own interpreter and our own text
        [sys.executable, "-c", PAYS_AND_WAITS, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert "paid\n" == process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("left", ["all", "no log", "an empty log", "half a log"])
async def test_the_log_of_one_that_was_killed_is_part_of_it(path, left) -> None:
    """After a kill the ledger is its file and its log: without the log it is refused."""
    die_with_it_open(path)
    log = path.with_name("x.sqlite3-wal")
    match left:
        case "no log":
            log.unlink()
            path.with_name("x.sqlite3-shm").unlink()
        case "an empty log":
            log.write_bytes(b"")
        case "half a log":
            log.write_bytes(log.read_bytes()[: log.stat().st_size // 2])
        case _:
            pass
    if left != "all":
        with pytest.raises(LedgerError, match=r"knows of [012] submits.*x\.sqlite3-wal, was"):
            await SqliteLedger(path).open(NOW)
    else:
        async with SqliteLedger(path) as ledger:
            opening = await ledger.open(NOW)
            await ledger.aclose()
        assert 3 == len(opening.unknown)


async def test_a_disk_that_does_not_take_the_note_stops_nothing(path, monkeypatch) -> None:
    """What is written in the ledger counts, whatever becomes of the note beside it."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async with SqliteLedger(path) as ledger:
        monkeypatch.setattr("kie_wav_async.ledger.sqlite.owner_lock._write", fail)
        await ledger.begin_attempt(TRACKS[0], "a0", NOW)
        monkeypatch.undo()
        await ledger.begin_attempt(TRACKS[1], "a1", NOW)
    path.unlink()
    with pytest.raises(LedgerError, match="2 submits"):
        await SqliteLedger(path).open(NOW)


# --- kie-wav bulk -------------------------------------------------------------------------------


@pytest.fixture
def bulk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Bulk:
    """Run ``kie-wav bulk``, with its files."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("random.random", lambda: 0.0)
    monkeypatch.chdir(tmp_path)
    return Bulk(capsys, monkeypatch, SAVING)


def kie_of() -> Simulator:
    """Make a service that charges each submit."""
    return service(window=None, dedupe=False)


def remove(*paths: Path) -> Callable[[], None]:
    """Return a call that removes some files."""
    return lambda: [path.unlink() for path in paths] and None


def truncate() -> None:
    """Truncate the ledger to nothing."""
    LEDGER.write_bytes(b"")


def leave_an_empty_lock() -> None:
    """Remove the ledger and the manifest, and what the lock says."""
    remove(LEDGER, OUT / "manifest.jsonl")()
    LOCK.write_bytes(b"")


def leave_an_empty_ledger() -> None:
    """Leave nothing but an empty ledger beside the files."""
    remove(LOCK, OUT / "manifest.jsonl")()
    truncate()


def leave_the_log() -> None:
    """Remove the ledger, and leave its log as a run that was killed does."""
    LEDGER.unlink()
    LEDGER.with_name(f"{LEDGER.name}-wal").write_bytes(b"x" * 99)


LOSSES = {
    "the ledger": remove(LEDGER),
    "the ledger, truncated": truncate,
    "the ledger without its log": leave_the_log,
    "the ledger and the manifest": remove(LEDGER, OUT / "manifest.jsonl"),
    "the ledger and the lock": remove(LEDGER, LOCK),
    "all but an empty lock": leave_an_empty_lock,
    "all but an empty ledger": leave_an_empty_ledger,
}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
async def test_a_run_without_its_ledger_pays_nothing(bulk: Bulk, lose) -> None:
    """Whatever is left of a ledger, the same command is refused, and says what to do."""
    write_catalog(*rows_of(6))
    async with kie_of() as kie:
        await bulk(kie)
        lose()
        left = names(OUT)
        done = [await bulk(kie) for _ in range(2)]
        none = await bulk(kie, "--json")

        assert 6 == kie.charges
    assert [3, 3, 3] == [one.code for one in (*done, none)]
    for one in done:
        assert str(LEDGER) in one.err
        assert "Put the ledger back" in one.err
        assert "--new-ledger" in one.err
        assert "" == one.out
    assert "paid again" in none.json()["error"]["message"]
    assert set(left) == set(names(OUT))


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
async def test_a_new_ledger_pays_again(bulk: Bulk, lose) -> None:
    """With `--new-ledger` the catalog is converted again, which is said before, and only once."""
    write_catalog(*rows_of(6))
    async with kie_of() as kie:
        await bulk(kie)
        lose()
        done = await bulk(kie, "--new-ledger")
        again = await bulk(kie, "--new-ledger")

        assert (0, 0, 12) == (done.code, again.code, kie.charges), done
    assert "beginning a new ledger, and what the lost one knew is paid again" in done.err
    assert "At most 6 new charges." in done.err
    assert "beginning a new ledger" not in again.err
    assert {"saved": 6} == await states()


async def test_a_ledger_that_cannot_be_looked_for_is_refused(bulk: Bulk) -> None:
    """Where the system does not tell whether there is a ledger, nothing is begun."""
    write_catalog(*rows_of(3))
    ledger = f"{'x' * 300}/kie-wav.sqlite3"  # Too long also for root, who may enter any folder.
    async with kie_of() as kie:
        done = await bulk(kie, "--ledger", ledger)

        assert (3, 0) == (done.code, kie.charges), done
    assert done.err.startswith("kie-wav: cannot tell whether a ledger was here: ")
    assert done.err.endswith(f"{ledger}: File name too long. Nothing was submitted\n")


async def test_a_folder_that_cannot_be_looked_into_is_refused(bulk: Bulk, monkeypatch) -> None:
    """Where the files of a lost ledger cannot be listed, nothing is begun."""

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    write_catalog(*rows_of(3))
    async with kie_of() as kie:
        await bulk(kie)
        remove(LEDGER, OUT / "manifest.jsonl")()
        monkeypatch.setattr(Path, "iterdir", refuse)
        done = await bulk(kie)

        assert (3, 3) == (done.code, kie.charges), done
    assert done.err == (
        "kie-wav: cannot tell whether a ledger was here: out: Permission denied. Nothing was "
        "submitted\n"
    )


async def test_the_word_is_said_once(bulk: Bulk) -> None:
    """The command that goes on does not begin a new ledger once more."""
    write_catalog(*rows_of(3))
    async with kie_of() as kie:
        await bulk(kie)
        LEDGER.unlink()
        done = await bulk(kie, "--new-ledger", "--max-charges", "1")
        assert "--new-ledger" not in resume_command(done.err)


async def test_a_pipe_in_place_of_a_manifest_is_not_waited_for(bulk: Bulk) -> None:
    """A pipe that is called as a manifest is no sign of a lost ledger, and is not read."""
    write_catalog(*rows_of(1))
    await asyncio.to_thread(OUT.mkdir)
    await asyncio.to_thread(os.mkfifo, OUT / "manifest.jsonl")
    async with kie_of() as kie:
        done = await bulk(kie, "--no-download")
        assert (0, 1) == (done.code, kie.charges)


async def test_a_folder_with_other_files_is_a_folder(bulk: Bulk) -> None:
    """WAV files of somebody else are no sign of a ledger, and neither is a lock alone."""
    write_catalog(*rows_of(2))
    OUT.mkdir()
    (OUT / "mine.wav").write_bytes(b"RIFF")
    async with kie_of() as kie:
        assert 0 == (await bulk(kie)).code
        LEDGER.unlink()
        for path in OUT.glob("*.wav"):
            path.unlink()
        (OUT / "manifest.jsonl").unlink()
        LOCK.write_bytes(b"")

        assert (0, 4) == ((await bulk(kie)).code, kie.charges)


@pytest.mark.parametrize("what", ["another", "older"])
async def test_a_run_with_the_wrong_ledger_pays_nothing(bulk: Bulk, what: str) -> None:
    """Another catalog's ledger, or an older copy, in place of the ledger is refused."""
    write_catalog(*rows_of(2))
    async with kie_of() as kie:
        await bulk(kie)
        wrong = shutil.copy(LEDGER, "wrong.db")
        if what == "another":
            await pay(Path("wrong.db.new"), *TRACKS)
            wrong = Path("wrong.db.new")
        write_catalog(*rows_of(6))
        await bulk(kie)
        shutil.copy(wrong, LEDGER)
        done = await bulk(kie)

        assert (3, 6) == (done.code, kie.charges), done
    assert "put that back" in done.err
    assert "--new-ledger" in done.err


async def test_resolving_needs_the_right_ledger_too(
    bulk: Bulk, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is said of a submit is not written into an older copy."""
    write_catalog(*rows_of(1))
    async with kie_of() as kie:
        await bulk(kie)
        older = shutil.copy(LEDGER, "older.db")
        write_catalog(*rows_of(2))
        await bulk(kie)
    shutil.copy(older, LEDGER)
    words = ("resolve", str(LEDGER), "0" * 32, "--not-charged")

    assert 3 == await asyncio.to_thread(main, words)
    assert "older copy" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [("report",), ("report", "--urls"), ("report", "--json"), ("resolve",)]
)
async def test_reading_warns_of_an_older_copy(
    bulk: Bulk, capsys: pytest.CaptureFixture[str], words
) -> None:
    """A report of an older copy counts too little, and says so; that of the right one does not."""
    write_catalog(*rows_of(1))
    async with kie_of() as kie:
        await bulk(kie)
        older = shutil.copy(LEDGER, "older.db")
        write_catalog(*rows_of(2))
        await bulk(kie)
    command, *options = words
    assert 0 == await asyncio.to_thread(main, (command, str(LEDGER), *options))
    assert "warning" not in capsys.readouterr().err
    shutil.copy(older, LEDGER)

    assert 0 == await asyncio.to_thread(main, (command, str(LEDGER), *options))
    assert "warning: the ledger" in (told := capsys.readouterr().err)
    assert "2 submits were begun" in told
