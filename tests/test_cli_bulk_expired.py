"""What `kie-wav bulk` gives up, and takes back: only the service says that a WAV is deleted."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bulk_runs import LEDGER, OUT, SAVING, Bulk, resume_command, rows_of, states, write_catalog
from cli_runs import is_wav, names, service
from kie_wav_async import SystemClock
from kie_wav_async.cli import main
from kie_wav_async.cli.bulk import preflight, saver
from kie_wav_async.simulator import Fault, Simulator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DAY_S = 86_400.0
NO_LINK = Fault(kind="code", on="download-url", code=404, msg="no such file")


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


@pytest.fixture
def urls(capsys: pytest.CaptureFixture[str]) -> Callable[[], Awaitable[list[str]]]:
    """Return the audio ids that `report --urls` prints a link of."""

    async def urls() -> list[str]:
        capsys.readouterr()
        assert await asyncio.to_thread(main, ("report", str(LEDGER), "--urls")) == 0
        return [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]

    return urls


def kie_of(*faults: Fault) -> Simulator:
    """Make a service without a window, which charges each submit."""
    return service(*faults, window=None, dedupe=False)


def refusing(status: int = 403) -> Fault:
    """Have the host of the files answer every request with a page."""
    return Fault(kind="html", on="media", http_status=status)


def wavs() -> list[Path]:
    """Return the files that were saved, whole."""
    return [OUT / name for name in names(OUT) if name.endswith(".wav") and is_wav(OUT / name)]


def age(days: float) -> None:
    """Have every task be older, by the service's clock."""
    with contextlib.closing(sqlite3.connect(LEDGER)) as connection, connection:
        changed = connection.execute(
            "UPDATE attempt SET accepted = accepted - ? WHERE accepted IS NOT NULL", (days * DAY_S,)
        ).rowcount
    assert changed


def move_away() -> Callable[[], None]:
    """Move the saved files away; what is returned moves them back."""
    away = Path("away")
    away.mkdir()
    for path in wavs():
        path.rename(away / path.name)

    def move_back() -> None:
        for path in away.iterdir():
            path.rename(OUT / path.name)

    return move_back


# --- what is not given up -----------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_a_host_that_refuses_for_a_while(bulk: Bulk, urls, status: int) -> None:
    """However a host refuses 60 files, the same command saves them later, and pays nothing."""
    write_catalog(*rows_of(60))
    async with kie_of(refusing(status)) as kie:
        refused = await bulk(kie)
        left, charges = await states(), kie.charges
        links = await urls()
        kie.set_faults([])
        done = await bulk(kie)

        assert (0, 60, 60) == (done.code, len(wavs()), kie.charges), done
    assert (charges, 60) == (left.pop("succeeded"), charges + left.pop("planned", 0))
    assert ({}, [f"a{number}" for number in range(charges)]) == (left, links)
    told = f"{charges} WAVs could not be saved; the same command tries again, and pays nothing:"
    assert told in refused.err
    assert f"{charges} x unavailable: 127.0.0.1 refuses the link" in refused.err
    assert "--retry-expired" not in refused.err
    assert "new charge" not in refused.err.partition("It takes about")[2]
    assert resume_command(refused.err)


async def test_one_track_that_is_refused(bulk: Bulk) -> None:
    """A host that refuses one file alone keeps no other from being saved, and may think better."""
    write_catalog(*rows_of(3))
    async with kie_of(Fault(kind="html", on="media", http_status=403, audio_id="a1")) as kie:
        refused = await bulk(kie)
        kie.set_faults([])
        done = await bulk(kie)

        assert (1, 0, 3) == (refused.code, done.code, kie.charges), done
    assert "1 WAV could not be saved" in refused.err
    assert ["a1"] == [row[1] for row in done.results]


@pytest.mark.parametrize("fault", [refusing(403), refusing(503)], ids=["403", "503"])
async def test_every_refusal_counts_towards_the_brake(bulk: Bulk, fault: Fault) -> None:
    """If file after file is refused no more are paid for, and the rest waits for the next run."""
    write_catalog(*rows_of(400))
    async with kie_of(fault) as kie:
        refused = await bulk(kie, "--max-in-flight", "4")
        charges = kie.charges
        kie.set_faults([])
        done = await bulk(kie)

        assert (3, 0) == (refused.code, done.code), done
        assert (400, 400) == (kie.charges, len(wavs()))
    assert charges < 100
    assert "files in a row could not be saved, so that no more are paid for" in refused.err


@pytest.mark.parametrize("days", [15, -15])
async def test_a_clock_that_is_wrong_for_one_run(
    bulk: Bulk, urls, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """A clock that is 15 days wrong for one run gives nothing up, refused or missing."""
    write_catalog(*rows_of(6))
    async with kie_of(Fault(kind="html", on="media", http_status=403, audio_id="a1")) as kie:
        await bulk(kie)
        for path in wavs()[:2]:
            path.unlink()
        kie.set_faults([refusing()])
        with monkeypatch.context() as patched:
            patched.setattr(SystemClock, "time", lambda _: time.time() + days * DAY_S)
            wrong = await bulk(kie)
        left = (await states(), await urls())
        kie.set_faults([])
        done = await bulk(kie)

        assert (1, 0, 6, 6) == (wrong.code, done.code, len(wavs()), kie.charges), done
    assert left == ({"succeeded": 3, "saved": 3}, [f"a{number}" for number in range(6)])
    assert "--retry-expired" not in wrong.err


@pytest.mark.parametrize("status", [200, 403, 404, 422])
async def test_a_page_in_place_of_the_service(bulk: Bulk, status: int) -> None:
    """A page that something in between sends for `download-url` is not the service's word."""
    write_catalog(*rows_of(3))
    between = Fault(kind="html", on="download-url", http_status=status)
    async with kie_of(refusing(404), between) as kie:
        await bulk(kie, "--no-download")
        age(20)
        refused = await bulk(kie)
        left = await states()
        kie.set_faults([])
        done = await bulk(kie)

        assert (1, 0, 3) == (refused.code, done.code, kie.charges), done
    assert {"succeeded": 3} == left


async def test_an_age_that_nobody_told(bulk: Bulk) -> None:
    """Without the time of acceptance a WAV is not given up, whatever is said of its link."""
    write_catalog(*rows_of(3))
    async with kie_of(refusing(404), NO_LINK) as kie:
        await bulk(kie, "--no-download")
        with contextlib.closing(sqlite3.connect(LEDGER)) as connection, connection:
            connection.execute("UPDATE attempt SET accepted = NULL, began = began - 1e7")
        await bulk(kie)

    assert {"succeeded": 3} == await states()


async def test_files_that_were_moved_away_for_one_run(bulk: Bulk, urls) -> None:
    """Files that are missing while the host refuses all are as they were once they are back."""
    write_catalog(*rows_of(6))
    async with kie_of() as kie:
        await bulk(kie)
        move_back = move_away()
        kie.set_faults([refusing()])
        gone = await bulk(kie)
        left = await urls()
        move_back()
        done = await bulk(kie)

        assert (1, 0, 6, 6) == (gone.code, done.code, len(wavs()), kie.charges), done
    assert "Of 6 files saved before 6 missing: to be saved again.\n" in gone.err
    assert "None of them is in out: if its disk is not there, stop" in gone.err
    assert "None of them" not in done.err
    assert [f"a{number}" for number in range(6)] == left
    assert {"saved": 6} == await states()


# --- what is given up, and taken back ----------------------------------------------------------


async def test_what_the_service_has_deleted(bulk: Bulk, urls) -> None:
    """What the service says it has deleted is expired, and left alone until that is asked for."""
    write_catalog(*rows_of(3))
    async with kie_of() as kie:
        await bulk(kie, "--no-download")
        kie.set_faults([refusing(404), NO_LINK])
        young = await bulk(kie)
        left = await states()
        age(14.1)
        done = await bulk(kie)
        asked = kie.state().requests["media"]
        same = await bulk(kie)

        assert (1, 1, 1, 3) == (young.code, done.code, same.code, kie.charges), done
        assert asked == kie.state().requests["media"]
    assert {"succeeded": 3} == left
    for told in (done, same):
        assert "3 WAVs expired at KIE, as it says itself; --retry-expired" in told.err
        assert "kie-wav: 3 WAVs are not saved\n" in told.err
        assert "Go on with" not in told.err
    assert [] == await urls()


async def test_expired_wavs_are_paid_again_only_if_they_are_gone(bulk: Bulk) -> None:
    """`--retry-expired` fetches each WAV once more, and pays for those alone that are gone."""
    write_catalog(*rows_of(3))
    gone = Fault(kind="html", on="media", http_status=404, audio_id="a1", times=1)
    async with kie_of() as kie:
        await bulk(kie, "--no-download")
        age(15)
        kie.set_faults([refusing(404), NO_LINK])
        await bulk(kie)
        before = await states()
        kie.set_faults([gone, NO_LINK])
        done = await bulk(kie, "--retry-expired")

        assert (0, 3, 4) == (done.code, len(wavs()), kie.charges), done
    assert {"expired": 3} == before
    assert "3 WAVs had expired at KIE: fetching each once more, which is free" in done.err
    assert "At most 3 new charges." in done.err
    assert "1 WAV is gone: converting again." in done.err


async def test_expired_wavs_that_a_host_refuses_are_not_paid(bulk: Bulk) -> None:
    """A refusal that may pass has `--retry-expired` pay for nothing."""
    write_catalog(*rows_of(3))
    async with kie_of(NO_LINK) as kie:
        await bulk(kie, "--no-download")
        age(15)
        kie.set_faults([refusing(404), NO_LINK])
        await bulk(kie)
        kie.set_faults([refusing(403)])
        refused = await bulk(kie, "--retry-expired")
        left = await states()
        kie.set_faults([])
        done = await bulk(kie)

        assert (1, 0, 3) == (refused.code, done.code, kie.charges), done
    assert {"succeeded": 3} == left


async def test_a_run_that_ends_before_expired_wavs_were_fetched(
    bulk: Bulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that goes on has `--retry-expired` until that was obeyed."""
    write_catalog(*rows_of(2))
    async with kie_of() as kie:
        await bulk(kie, "--no-download")
        age(15)
        kie.set_faults([refusing(404), NO_LINK])
        await bulk(kie)
        with monkeypatch.context() as patched:
            patched.setattr(preflight, "_LEAST_FREE", 1 << 60)
            full = await bulk(kie, "--retry-expired")
            unpaid = kie.charges
        done = await bulk(kie, "--retry-expired", "--max-charges", "3")

        assert (3, 1, 2, 3) == (full.code, done.code, unpaid, kie.charges), done
    assert "--retry-expired" in resume_command(full.err)
    assert "--retry-expired" not in resume_command(done.err)


async def test_files_of_expired_tracks_that_come_back(bulk: Bulk) -> None:
    """Files that were away while the service deleted theirs are taken back, and cost nothing."""
    write_catalog(*rows_of(4))
    async with kie_of() as kie:
        await bulk(kie)
        age(15)
        move_back = move_away()
        kie.set_faults([refusing(404), NO_LINK])
        gone = await bulk(kie)
        left = await states()
        move_back()
        wavs()[0].write_bytes(b"RIFF")  # One did not survive the journey.
        done = await bulk(kie)

        assert (1, 1, 4) == (gone.code, done.code, kie.charges), done
    assert {"expired": 4} == left
    assert "4 files of expired tracks found: looking at them.\n" in done.err
    assert {"saved": 3, "expired": 1} == await states()
