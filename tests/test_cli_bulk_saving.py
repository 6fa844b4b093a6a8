"""``kie-wav bulk`` saves what it converts: whole files, each under a name of its own."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import itertools
import os
import re
import shlex
import shutil
import time
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from bulk_runs import (
    LEDGER,
    LONG_S,
    OUT,
    SAVING,
    Bulk,
    entry_of_track,
    resume_command,
    rows_of,
    states,
    write_catalog,
)
from cli_runs import SHORT, is_wav, names, service
from kie_wav_async import file_names
from kie_wav_async.cli.bulk import backpressure, monitor, preflight, run, saver
from kie_wav_async.errors import LedgerError
from kie_wav_async.ledger import AttemptOutcome, SqliteLedger, TrackState
from kie_wav_async.simulator import Fault, Simulator

if TYPE_CHECKING:
    from collections.abc import Callable

    from kie_wav_async.ledger import LedgerEntry

DAY_S = 86_400.0
HOSTILE = "../../[bold red]x[/]\\CON\x1b]0;z\x07\u202e"
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]")


@pytest.fixture(autouse=True)
def quiet_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take the developer's terminal out of it, and every wait between two tries."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("random.random", lambda: 0.0)
    monkeypatch.setattr(saver, "_PAUSE_S", 0.0)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bulk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bulk:
    """Run ``kie-wav bulk``, with its files."""
    return Bulk(capsys, monkeypatch, SAVING)


def kie_of(*faults: Fault, **settings: object) -> Simulator:
    """Make a service without a window."""
    return service(*faults, **{"window": None, **settings})


def media(kind: str, **settings: object) -> Fault:
    """Make something go wrong with a file."""
    return Fault(kind=kind, on="media", **settings)


def wavs() -> list[str]:
    """Name the files that were saved."""
    return [name for name in names(OUT) if name.endswith(".wav")]


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class File(NamedTuple):
    """What there is of a file, whatever it is called."""

    size: int
    sha256: str


def file_of(path: Path) -> File:
    """Look at a file."""
    return File(path.stat().st_size, digest(path))


def spoil(name: str, text: bytes | None = None, *, at: int = 1_000) -> bytes:
    """Change a byte of a file, or all of it, and return what is in it now."""
    path = OUT / name
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(bytes(data) if text is None else text)
    return path.read_bytes()


def copies(folder: Path) -> Path:
    """Return where a file is kept that nobody is to touch."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# --- a run ------------------------------------------------------------------------------------


async def test_a_run(bulk: Bulk) -> None:
    """Each WAV is a whole file under its name, is in the ledger, and is a line of stdout."""
    write_catalog(*rows_of(12))
    async with kie_of() as kie:
        done = await bulk(kie)
        charges, keys = kie.charges, kie.state().keys_sent_to_media

    expected = {f"a{number}": f"Song {number} [a{number}].wav" for number in range(12)}
    assert (0, 12, 0) == (done.code, charges, keys), done
    assert {"saved": 12} == await states()
    assert sorted(expected.values()) == wavs()
    others = {"kie-wav.sqlite3", "kie-wav.sqlite3.lock", "manifest.jsonl"}
    assert others == set(names(OUT)) - set(wavs())
    assert sorted(expected) == sorted(row[1] for row in done.results)
    for music_task_id, audio_id, task_id, name in done.results:
        one = await entry_of_track(audio_id)
        assert is_wav(OUT / name)
        assert ("m", one.task_id, one.path) == (music_task_id, task_id, name)
        assert expected[audio_id] == name
        assert file_of(OUT / name) == (one.bytes, one.sha256)
    size = sum((OUT / name).stat().st_size for name in wavs())
    assert f"12 WAVs saved in out, 12 of them in this run ({size / 1e6:.3g} MB).\n" in done.err
    assert "--urls" not in done.err


async def test_short_files_can_be_accepted(bulk: Bulk) -> None:
    """Files that came completely and are short are saved by the same command and one word."""
    write_catalog(*rows_of(3))
    async with kie_of(SHORT) as kie:
        refused = await bulk(kie)
        saved = await bulk(kie, "--accept-short")
        charges = kie.charges

    assert (1, 0, 3) == (refused.code, saved.code, charges)
    assert "declares 3,948; accept_short=True (--accept-short) saves it as it is" in refused.err
    assert [444] * 3 == [(OUT / name).stat().st_size for name in wavs()]
    assert "3 of these WAVs have something unusual, e.g. Song " in saved.err
    assert ": only 444 of the 3,948 bytes that the header declares\n" in saved.err


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE], ids=errno.errorcode.get)
@pytest.mark.parametrize("times", [3, 10_000])
async def test_a_machine_without_descriptors_for_one_file(
    bulk: Bulk, monkeypatch: pytest.MonkeyPatch, code: int, times: int
) -> None:
    """A file that cannot be opened just now is tried again later, and ends nothing."""
    left, os_open = itertools.repeat(1, times), os.open

    def refuse(path, *given, **more) -> int:
        if str(path).endswith("[a1].wav.part") and next(left, 0):
            raise OSError(code, os.strerror(code))
        return os_open(path, *given, **more)

    write_catalog(*rows_of(4))
    monkeypatch.setattr(os, "open", refuse)
    async with kie_of() as kie:
        done = await bulk(kie)
        monkeypatch.setattr(os, "open", os_open)
        again = await bulk(kie)
        charges = kie.charges

    is_short = times > 100
    assert (int(is_short), 0, 4) == (done.code, again.code, charges), done
    assert (3 if is_short else 4) == len(done.results)
    assert 4 == len(wavs())
    if is_short:
        assert f"1 x unavailable: {OUT / 'Song 1 [a1].wav'}: {os.strerror(code)}" in done.err


async def test_files_that_cannot_be_checked_just_now_are_not_damaged(
    bulk: Bulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of earlier runs that cannot be read for want of descriptors are left alone."""
    write_catalog(*rows_of(3))
    path_open = Path.open

    def refuse(path, *given, **more):
        if path.name.endswith("[a1].wav"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return path_open(path, *given, **more)

    async with kie_of() as kie:
        await bulk(kie)
        monkeypatch.setattr(Path, "open", refuse)
        again = await bulk(kie)
        requests = kie.state().requests["media"]

    assert (0, 3, 3) == (again.code, len(wavs()), requests)
    assert "damaged" not in again.err
    assert {"saved": 3} == await states()


async def test_again(bulk: Bulk) -> None:
    """The same command again fetches nothing, and prints nothing that was printed before."""
    write_catalog(*rows_of(5))
    async with kie_of() as kie:
        await bulk(kie)
        before = kie.state().requests["media"]
        done = await bulk(kie)
        after = kie.state().requests["media"]

    assert (0, "", 5, 5) == (done.code, done.out, before, after)
    assert "5 WAVs saved in out, 0 of them in this run.\n" in done.err


async def test_saved_later(bulk: Bulk) -> None:
    """What `--no-download` left at KIE is saved by a run without it, and paid for by neither."""
    write_catalog(*rows_of(7))
    async with kie_of() as kie:
        first = await bulk(kie, "--no-download")
        fetched = kie.state().requests.get("media", 0)
        done = await bulk(kie)

        assert (0, 0, 0, 7) == (first.code, fetched, done.code, kie.charges)
    assert all(row[3].startswith("http") for row in first.results)
    assert {"saved": 7} == await states()
    assert 7 == len(wavs()) == len(done.results)


async def test_as_json(bulk: Bulk) -> None:
    """`--json` tells in its one object how much was saved, and what was not and why."""
    write_catalog(*rows_of(4))
    async with kie_of(media("body", body="<html>", audio_id="a1")) as kie:
        done = await bulk(kie, "--json")

    told = done.json()
    (reason,) = told["saving"].pop("reasons")
    size = sum((OUT / name).stat().st_size for name in wavs())
    assert 1 == done.code
    expected = {"folder": "out", "saved": 3, "bytes": size, "unsaved": 1, "expired": 0}
    assert {**expected, "damaged": []} == told["saving"]
    assert ("not-a-wav", 1, "m", "a1") == tuple(
        reason[name] for name in ("reason", "count", "music_task_id", "audio_id")
    )
    assert "WAV" in reason["message"]
    assert shlex.split(told["resume"])[:2] == ["kie-wav", "bulk"]


async def test_a_place_of_its_own(bulk: Bulk) -> None:
    """`--ledger` moves the ledger alone, and `--filename-template` says what files are called."""
    write_catalog("m,a0,One", "m,a1,Two")
    async with kie_of() as kie:
        done = await bulk(
            kie, "--ledger", "books.db", "--filename-template", "{index:03} {music_task_id} {title}"
        )

    assert 0 == done.code, done
    assert ["001 m One.wav", "002 m Two.wav", "manifest.jsonl"] == names(OUT)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--filename-template", "{artist}.wav"),
        ("--filename-template", "all the same.wav"),
        ("--filename-template", "../{title}.wav"),
        ("--filename-template", "{title.__class__}"),
        ("--filename-template", "{title"),
        ("--max-downloads", "0"),
        ("--max-downloads", "9"),
    ],
)
async def test_wrong_usage(bulk: Bulk, option: str, value: str) -> None:
    """A name that is none, and too many files at a time, are refused before anything is made."""
    write_catalog(*rows_of(1))
    async with kie_of() as kie:
        done = await bulk(kie, option, value)

        assert 0 == sum(kie.state().requests.values())
    assert (2, False) == (done.code, OUT.exists())
    assert option in done.err


async def test_where_a_file_is_stays(bulk: Bulk) -> None:
    """Another `--filename-template` is for files without a name, whatever became of the others."""
    write_catalog("m,a0,One", "m,a1,Two")
    async with kie_of(media("body", body="<html>", audio_id="a1")) as kie:
        await bulk(kie)
        kie.set_faults([])
        write_catalog("m,a0,One", "m,a1,Two", "m,a2,Three")
        done = await bulk(kie, "--filename-template", "{audio_id}")

    assert 0 == done.code, done
    assert ["One [a0].wav", "Two [a1].wav", "a2.wav"] == wavs()


# --- names ------------------------------------------------------------------------------------


async def test_titles_that_collide(bulk: Bulk) -> None:
    """Titles that some file system takes for one come to files that none does."""
    titles = ["Song", "song", "SONG", "So\u0301ng", "S\u00f3ng", "\uff33ong", "Song. ", "Song"]
    write_catalog(*(f"m,a{number},{title}" for number, title in enumerate(titles)))
    async with kie_of() as kie:
        done = await bulk(kie, "--filename-template", "{title}")

    assert 0 == done.code, done
    assert len(titles) == len(wavs()) == len({file_names.collision_key(name) for name in wavs()})
    assert len(titles) == len({unicodedata.normalize("NFC", n).casefold() for n in wavs()})
    assert {"Song.wav", "S\u00f3ng.wav"} & set(wavs())
    for _, audio_id, _, name in done.results:
        assert digest(OUT / name) == (await entry_of_track(audio_id)).sha256


async def test_a_file_that_is_not_ours(bulk: Bulk) -> None:
    """A file that was there before is left alone, also if it is a WAV, and ours goes beside it."""
    write_catalog("m,a0,One", "m,a1,Two")
    copies(OUT)
    (OUT / "One [a0].wav").write_bytes(b"mine")
    (OUT / "Two [a1].wav").symlink_to("nowhere")
    async with kie_of() as kie:
        done = await bulk(kie)

    assert 0 == done.code, done
    assert (b"mine", "nowhere") == (
        (OUT / "One [a0].wav").read_bytes(),
        str((OUT / "Two [a1].wav").readlink()),
    )
    for number, name in enumerate(("One [a0]", "Two [a1]")):
        one = await entry_of_track(f"a{number}")
        suffix = file_names.unique_suffix(one.track, 8)
        assert f"{name}{suffix}.wav" == one.path
        assert digest(OUT / one.path) == one.sha256


async def test_names_that_are_taken(bulk: Bulk) -> None:
    """If others have the name, and the one with a little of the track in it, it gets more."""
    write_catalog("m,a0,One")
    async with kie_of() as kie:
        await bulk(kie, "--max-charges", "1", "--no-download")
        async with SqliteLedger(LEDGER) as ledger:
            (one,) = await ledger.list_entries(TrackState)
            others = [type(one.track)("x", f"x{number}") for number in range(2)]
            await ledger.add_tracks(others)
            for other, suffix in zip(
                others, ("", file_names.unique_suffix(one.track, 8)), strict=True
            ):
                name = f"One [a0]{suffix}.wav"
                assert await ledger.reserve_path(
                    other, path=name, key=file_names.collision_key(name)
                )
        done = await bulk(kie, "--max-charges", "1")

    assert f"One [a0]{file_names.unique_suffix(one.track, 16)}.wav" == done.results[0][3]


async def test_hostile_titles(bulk: Bulk) -> None:
    """Whatever a title is its file is in the folder, and the screen shows nothing it obeys."""
    titles = [HOSTILE, "/etc/passwd", "..", "", "NUL", "x" * 400, "-rf", "\u3000wide\u3000"]
    rows = (f'm,a{number},"{title}"' for number, title in enumerate(titles))
    write_catalog(*rows)
    before = set(names(Path()))
    async with kie_of(media("body", body="<html>", audio_id="a0")) as kie:
        first = await bulk(kie)
        kie.set_faults([])
        done = await bulk(kie)

    assert (1, 0) == (first.code, done.code), done
    assert before | {"out"} == set(names(Path()))
    assert len(titles) == len(wavs())
    assert all(is_wav(OUT / name) for name in wavs())
    assert not CONTROLS.search(first.err + first.out + done.err + done.out)
    assert set(wavs()) == {row[3] for row in first.results + done.results}


# --- what cannot be saved ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (media("body", body="<html>", content_type="text/html"), "not-a-wav"),
        (media("html", http_status=502), "unavailable"),
        (media("reset"), "unavailable"),
        (media("hangup", when="after"), "unavailable"),
        (media("redirect", url="http://169.254.169.254/"), "url-not-allowed"),
        (media("cut", size=100), "truncated"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
async def test_what_cannot_be_saved(bulk: Bulk, fault: Fault, reason: str) -> None:
    """What cannot be saved is told by its reason, keeps nobody else, and is tried by the next."""
    write_catalog(*rows_of(3))
    fault = Fault.from_json({**fault.to_json(), "audio_id": "a1"})
    async with kie_of(fault) as kie:
        done = await bulk(kie)
        kie.set_faults([])
        again = await bulk(kie)
        charges = kie.charges

    assert (1, 0, 3) == (done.code, again.code, charges), done
    assert ["Song 0 [a0].wav", "Song 2 [a2].wav"] == sorted(row[3] for row in done.results)
    assert ["Song 1 [a1].wav"] == [row[3] for row in again.results]
    assert "1 WAV could not be saved; the same command tries again, and pays nothing:\n" in done.err
    assert re.search(rf"^  1 x {reason}: .*\(m a1\)$", done.err, re.MULTILINE), done.err
    assert "kie-wav: 1 WAV is not saved\n" in done.err
    assert resume_command(done.err)
    assert "insecure_hosts" not in done.err
    assert {"saved": 3} == await states()


async def test_a_trouble_that_passes(bulk: Bulk) -> None:
    """What the host does badly for a while is tried until it does well."""
    write_catalog(*rows_of(3))
    faults = [media("html", http_status=503, audio_id="a1", times=10), media("cut", size=9_999)]
    async with kie_of(*faults, wav_s=0.3) as kie:
        done = await bulk(kie)

    assert 0 == done.code, done
    assert all(is_wav(OUT / name) for name in wavs())
    assert 1 == done.err.count("not saved yet, and tried again in ")


async def test_file_after_file(bulk: Bulk, monkeypatch: pytest.MonkeyPatch) -> None:
    """If one file after another cannot be saved no more are paid for, and the rest waits."""
    monkeypatch.setattr(saver, "_MOST_UNSAVED", 5)
    write_catalog(*rows_of(200))
    async with kie_of(media("body", body="<html>")) as kie:
        done = await bulk(kie, "--max-in-flight", "4")
        charges = kie.charges
        kie.set_faults([])
        again = await bulk(kie)

        assert (3, 0, 200) == (done.code, again.code, kie.charges), done
    assert charges < 100
    assert "files in a row could not be saved, so that no more are paid for" in done.err
    assert re.search(rf"{200 - charges} tracks are left", done.err), done.err
    assert resume_command(done.err)


async def test_the_account_is_empty(bulk: Bulk) -> None:
    """What was paid before the account was empty is saved before the run ends."""
    write_catalog(*rows_of(10))
    slow = media("slow", delay_s=0.1)
    async with kie_of(slow, credits="1.2", price="0.4") as kie:
        done = await bulk(kie, "--max-in-flight", "1")

    assert (3, 3) == (done.code, len(wavs())), done
    assert {"saved": 3, "planned": 7} == await states()
    assert "7 tracks are left." in done.err


async def test_the_cap_is_reached(bulk: Bulk) -> None:
    """What was paid under `--max-charges` is saved."""
    write_catalog(*rows_of(6))
    async with kie_of() as kie:
        done = await bulk(kie, "--max-charges", "2")

    assert (1, 2) == (done.code, len(wavs()))
    assert {"saved": 2, "planned": 4} == await states()


async def test_the_ledger_fails_meanwhile(bulk: Bulk, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the ledger fails a submit the run ends at once, whatever files are on their way."""

    class Failing(SqliteLedger):
        submits = 0

        async def begin_attempt(self, *args: object, **named: object) -> object:
            self.submits += 1
            if self.submits > 8:
                msg = "cannot write: no space left"
                raise LedgerError(msg)
            return await super().begin_attempt(*args, **named)

    monkeypatch.setattr(run, "SqliteLedger", Failing)
    write_catalog(*rows_of(50))
    async with kie_of(media("stall")) as kie, asyncio.timeout(LONG_S / 2):
        done = await bulk(kie, "--max-in-flight", "2")

        assert (3, 8) == (done.code, kie.charges), done
    assert 1 == done.err.count("no space left")


# --- the oldest first ---------------------------------------------------------------------------


async def test_the_oldest_first(bulk: Bulk) -> None:
    """What KIE deletes first is saved first, and before that what may be deleted any moment."""
    write_catalog(*rows_of(6))
    days = {"a0": 1, "a1": 5, "a2": 3, "a3": 0, "a4": 9, "a5": 2}
    async with kie_of() as kie:
        await bulk(kie, "--no-download")
        async with SqliteLedger(LEDGER) as ledger:
            page = await ledger.list_entries(TrackState)
        async with SqliteLedger("books.db") as ledger:
            for one in page:
                await rewrite(ledger, one, days[one.track.audio_id], is_adopted=one.index == 4)
        done = await bulk(kie, "--ledger", "books.db", "--max-downloads", "1")

    assert 0 == done.code, done
    assert ["a3", "a4", "a1", "a2", "a5", "a0"] == [row[1] for row in done.results]


async def rewrite(
    ledger: SqliteLedger, one: LedgerEntry, days_ago: float, *, is_adopted: bool = False
) -> None:
    """Have *ledger* know of a WAV, as of some days ago."""
    then = time.time() - days_ago * DAY_S
    attempt_id = f"{one.index:032x}"
    outcome = AttemptOutcome.ADOPTED if is_adopted else AttemptOutcome.ACCEPTED
    await ledger.begin_attempt(one.track, attempt_id, then)
    await ledger.finish_attempt(attempt_id, outcome, then, task_id=one.task_id)
    await ledger.finish_task(one.task_id, then, wav_url=one.wav_url)


# --- a crash ------------------------------------------------------------------------------------


async def test_between_the_file_and_the_ledger(bulk: Bulk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that the ledger has not heard of is found in its place, and not fetched again."""

    class Dying(SqliteLedger):
        async def mark_saved(self, *_: object, **__: object) -> None:
            msg = "cannot write: the machine is gone"
            raise LedgerError(msg)

    write_catalog(*rows_of(1))
    async with kie_of() as kie:
        with monkeypatch.context() as patched:
            patched.setattr(run, "SqliteLedger", Dying)
            first = await bulk(kie)
        found = wavs()
        fetched = kie.state().requests["media"]
        again = await bulk(kie)

        assert (3, 0) == (first.code, again.code), again
        assert fetched == kie.state().requests["media"]
    assert ["Song 0 [a0].wav"] == found == wavs()
    assert ["Song 0 [a0].wav"] == [row[3] for row in again.results]
    one = await entry_of_track("a0")
    assert file_of(OUT / one.path) == (one.bytes, one.sha256)


async def test_files_that_are_gone(bulk: Bulk) -> None:
    """A file that is missing by the next run is saved again in its place, and costs nothing."""
    write_catalog(*rows_of(4))
    async with kie_of() as kie:
        await bulk(kie)
        before = digest(OUT / "Song 1 [a1].wav")
        for number in (1, 2):
            (OUT / f"Song {number} [a{number}].wav").unlink()
        done = await bulk(kie)

        assert (0, 4) == (done.code, kie.charges), done
    assert "Of 4 files saved before 2 missing: to be saved again.\n" in done.err
    assert ["a1", "a2"] == sorted(row[1] for row in done.results)
    assert before == digest(OUT / "Song 1 [a1].wav")


@pytest.mark.parametrize("is_short", [True, False], ids=["truncated", "changed"])
async def test_files_that_are_damaged(bulk: Bulk, *, is_short: bool) -> None:
    """A file that is not what was saved is kept under another name, and saved again."""
    write_catalog(*rows_of(3))
    (copies(OUT) / "Song 1 [a1].wav.damaged").write_bytes(b"of another day")
    async with kie_of() as kie:
        await bulk(kie)
        good = digest(OUT / "Song 1 [a1].wav")
        bad = spoil("Song 1 [a1].wav", b"RIFF" if is_short else None)
        done = await bulk(kie)

        assert (0, 3) == (done.code, kie.charges), done
    aside = OUT / "Song 1 [a1].wav.damaged.2"
    assert f"Of 3 files saved before 1 damaged, kept as {aside}: to be saved" in done.err
    assert (good, bad) == (digest(OUT / "Song 1 [a1].wav"), aside.read_bytes())
    assert (OUT / "Song 1 [a1].wav.damaged").read_bytes() == b"of another day"
    assert ["a1"] == [row[1] for row in done.results]


def name_of(one: LedgerEntry) -> str:
    """Return what the file of a track is called."""
    return file_names.file_name(one.track)


async def test_only_the_last_files_are_read(bulk: Bulk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many files only those written last are read to the end, and all are looked at."""
    monkeypatch.setattr("kie_wav_async.cli.bulk.saved_files._RECENT", 2)
    write_catalog(*rows_of(4))
    async with kie_of() as kie:
        await bulk(kie)
        for number in range(4):
            name = f"Song {number} [a{number}].wav"
            spoil(name, None if number else b"RIFF")
            os.utime(OUT / name, (number, number))
        done = await bulk(kie)

    assert "Of 4 files saved before 3 damaged, kept as out/" in done.err
    assert {"a0", "a2", "a3"} == {row[1] for row in done.results}


# --- files that come too slowly -----------------------------------------------------------------


async def test_submits_wait_for_files(bulk: Bulk, monkeypatch: pytest.MonkeyPatch) -> None:
    """If files come too slowly submits wait, which is told, and go on once there is less to do."""
    monkeypatch.setattr(backpressure, "_LEAST_S", 0.1)
    monkeypatch.setattr(backpressure, "_STEP_S", 0.0)
    monkeypatch.setattr(backpressure, "LONGEST_S", 0.05)
    monkeypatch.setattr(monitor, "_LINES_S", 0.02)
    write_catalog(*rows_of(40))
    async with kie_of(media("slow", delay_s=0.05), wav_s=0.1) as kie:
        done = await bulk(kie, "--max-downloads", "1", "--max-in-flight", "3", "--rate", "5/0.3")

        assert (0, 40, 40) == (done.code, kie.charges, len(wavs())), done
    assert "WAVs are saved too slowly" in done.err
    assert "New submits wait until it is less" in done.err
    assert "WAVs are saved in time again: new submits go on" in done.err
    assert "holding for the files" in done.err
    # Those drawn before it began to hold are all that may be submitted meanwhile.
    lines = re.findall(r"^submitted (\d+) .* (about|holding) ", done.err, re.MULTILINE)
    for word, stretch in itertools.groupby(lines, lambda line: line[1]):
        counts = [int(count) for count, _ in stretch]
        assert word == "about" or counts[-1] - counts[0] <= 4


# --- the disk -----------------------------------------------------------------------------------


def give(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the disk say how much is free."""
    usage = shutil.disk_usage(".")._replace(free=free)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)


async def test_a_full_disk(bulk: Bulk, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no room for two files nothing is submitted, and it is said how much is wanted."""
    write_catalog(*rows_of(3))
    async with kie_of() as kie:
        with monkeypatch.context() as patched:
            give(130_000_000, patched)
            done = await bulk(kie)
            charges = kie.charges
            unsaved = await bulk(kie, "--no-download")
        again = await bulk(kie)

        assert (3, 0, 0, 0) == (done.code, charges, unsaved.code, again.code), done
    assert "out: 130 MB are free, and 131 MB are wanted" in done.err
    assert "3 tracks are left" in done.err
    assert resume_command(done.err)


async def test_little_room(bulk: Bulk, monkeypatch: pytest.MonkeyPatch) -> None:
    """If not all files have room that is said before it begins, and it begins."""
    write_catalog(*rows_of(20))
    give(400_000_000, monkeypatch)
    async with kie_of() as kie:
        done = await bulk(kie)

    assert 0 == done.code
    assert "Only 400 MB are free in out, and what is to be saved takes about 640 MB" in done.err


def failing_write(number: int, at: int) -> Callable[[int, bytes], int]:
    """Return an `os.write` that says *number* for good from its *at*-th large piece on."""
    write, count = os.write, 0

    def fail(fd: int, data: bytes) -> int:
        nonlocal count
        count += len(data) > 9_999
        if count >= at:
            raise OSError(number, os.strerror(number))
        return write(fd, data)

    return fail


async def test_the_disk_fills_up(bulk: Bulk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the middle ends the run at once with one message, and it goes on."""
    write_catalog(*rows_of(200))
    async with kie_of() as kie:
        with monkeypatch.context() as patched:
            patched.setattr("os.write", failing_write(errno.ENOSPC, 6))
            done = await bulk(kie, "--max-in-flight", "4")
        saved, charges = len(wavs()), kie.charges
        kie.set_faults([])
        again = await bulk(kie)

        assert (3, 0, 200) == (done.code, again.code, kie.charges), done
    assert charges < 200
    assert saved <= 6
    assert 1 == done.err.count("No space left on device")
    assert "kie-wav: stopped: " in done.err
    assert re.search(r"; .*\d+ WAVs? waits? to be saved and \d+ tracks are left\. Make", done.err)
    assert resume_command(done.err)
    assert all(is_wav(OUT / name) for name in wavs())
    assert 200 == len(wavs())


async def test_a_name_that_the_disk_refuses(bulk: Bulk) -> None:
    """A folder where a file is to be keeps that file from being saved, and no other."""
    write_catalog(*rows_of(3))
    async with kie_of(media("body", body="<html>", audio_id="a1")) as kie:
        await bulk(kie)
        kie.set_faults([])
        (OUT / "Song 1 [a1].wav").mkdir()
        (OUT / "Song 0 [a0].wav").unlink()
        done = await bulk(kie)

    assert 1 == done.code
    assert ["Song 0 [a0].wav"] == [row[3] for row in done.results]
    assert re.search(r"^  1 x disk: .*\(m a1\)$", done.err, re.MULTILINE), done.err


def made(path: Path, data: bytes) -> Path:
    """Write a file."""
    path.write_bytes(data)
    return path


async def test_file_that_cannot_be_looked_at(bulk: Bulk) -> None:
    """One file that the system cannot look at is damaged, and stops nothing."""
    write_catalog(*rows_of(3))
    async with kie_of() as kie:
        await bulk(kie)
        path = OUT / "Song 1 [a1].wav"
        path.unlink()
        path.symlink_to(path.name)
        done = await bulk(kie)

    assert 0 == done.code, done.err
    assert "Of 3 files saved before 1 damaged" in done.err
    assert path.is_file()
    assert not path.is_symlink()


async def test_ledger_that_leads_out_of_the_folder(bulk: Bulk) -> None:
    """A path in a ledger that leads out of the folder is not gone to, and the track saved anew."""
    write_catalog(*rows_of(2))
    async with kie_of() as kie:
        await bulk(kie)
        victim = made(Path("victim.wav"), b"somebody else's")
        async with SqliteLedger(LEDGER) as ledger:
            one = (await ledger.list_entries(TrackState))[0]
            await ledger.mark_saved(one.track, path="../victim.wav", size=7, sha256="0" * 64)
        done = await bulk(kie)

    assert 0 == done.code, done.err
    assert b"somebody else's" == victim.read_bytes()
    # What is under its first name is nobody's by now.
    assert 3 == len(wavs())
