"""``kie-wav bulk`` as a process of its own: signals, sudden death, pipes, terminals."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest

from bulk_runs import (
    HASTY,
    LEDGER,
    LONG_S,
    SAVING,
    end,
    environment,
    is_bounded,
    on_terminal,
    resume_command,
    rows_of,
    said,
    see_off,
    start,
    states,
    until,
    visible,
    write_catalog,
)
from cli_runs import service
from kie_wav_async.ledger import AttemptOutcome, SqliteLedger
from kie_wav_async.simulator import Fault

if TYPE_CHECKING:
    from pathlib import Path

BULK = ("bulk", "c.csv", "--out", "out", *HASTY)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty folder, without the developer's terminal."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


# --- Ctrl-C ---------------------------------------------------------------------------------------


HUNG_UP = pytest.param(
    signal.SIGHUP,
    marks=pytest.mark.skipif(
        signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, reason="nohup: SIGHUP is ignored here"
    ),
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, HUNG_UP])
async def test_stopped_once(number: signal.Signals) -> None:
    """A signal stops it, what is in flight stays in the ledger, and the command told resumes."""
    write_catalog(*rows_of(20))
    async with service(median_s=1e6, window=None) as kie:
        process = await start(kie, *BULK, "--max-in-flight", "5")
        await until(lambda: kie.charges == 5)
        process.send_signal(number)
        done = await end(process)
        left = await states()

        assert (130, "") == (done.code, done.out), done
        assert left.get("accepted", 0) + left.get("unknown", 0) >= 5
        assert await is_bounded(kie)
    assert "Traceback" not in done.err
    assert "interrupted; 5 conversions go on at KIE and 15 tracks are left" in done.err
    assert shlex.split(resume_command(done.err)) == [
        *("kie-wav", *BULK),
        *("--max-in-flight", "5"),
    ]


async def test_stopped_and_resumed() -> None:
    """The command that is told after Ctrl-C does the rest, and pays for nothing twice."""
    write_catalog(*rows_of(40))
    async with service(median_s=0.2, window=None) as kie:
        process = await start(kie, *BULK, "--max-in-flight", "8")
        await until(lambda: kie.charges >= 20)
        process.send_signal(signal.SIGINT)
        first = await end(process)
        command = shlex.split(resume_command(first.err))
        again = await end(await start(kie, *command[1:]))

        assert (130, 0) == (first.code, again.code), again
        assert {1} == set(kie.charges_by_track.values())
        assert 40 == kie.charges
    assert {"succeeded": 40} == await states()
    told = [tuple(row[:2]) for row in first.results + again.results]
    assert 40 == len(set(told))


async def test_submits_on_the_wire() -> None:
    """Submits on the wire at Ctrl-C get their answer, so that none of them is in doubt."""
    write_catalog(*rows_of(20))
    async with service(Fault(kind="slow", delay_s=0.7), median_s=1e6, window=None) as kie:
        process = await start(kie, *BULK, "--rate", "6/1000")
        await until(lambda: kie.charges == 6)
        process.send_signal(signal.SIGINT)
        done = await end(process)
        left = await states()

    assert 130 == done.code
    assert "up to 25 s for their answer" in done.err
    assert {"accepted": 6, "planned": 14} == left


async def test_stopped_in_an_outage() -> None:
    """Ctrl-C while submits pause ends it at once: what was not sent stays planned."""
    write_catalog(*rows_of(40))
    async with service(Fault(kind="html", http_status=502), window=None) as kie:
        process = await start(kie, *BULK, "--rate", "5/1")
        await said(process, "KIE seems to be out")
        process.send_signal(signal.SIGINT)
        done = await end(process)

        assert (130, 5) == (done.code, len(kie.arrivals)), done
    assert {"unknown": 5, "planned": 35} == await states()


async def test_stopped_twice() -> None:
    """A second Ctrl-C ends it at once, and the ledger still bounds the bill."""
    write_catalog(*rows_of(20))
    async with service(Fault(kind="stall", when="after"), median_s=1e6, window=None) as kie:
        process = await start(kie, *BULK, "--rate", "6/1000")
        await until(lambda: kie.charges == 6)
        process.send_signal(signal.SIGINT)
        await said(process, "Ctrl-C again leaves at once")
        process.send_signal(signal.SIGINT)
        done = await end(process)
        bounded, left = await is_bounded(kie), await states()

    assert (130, "") == (done.code, done.out)
    assert shlex.split(resume_command(done.err)) == ["kie-wav", *BULK, "--rate", "6/1000"]
    assert bounded
    assert {"unknown": 6, "planned": 14} == left


async def test_stopped_before_it_began() -> None:
    """Ctrl-C while stdin is waited for ends it without a word from a thread."""
    async with service() as kie:
        words = ("bulk", "-", "--out", "out", *HASTY)
        process = await start(kie, *words, stdin=asyncio.subprocess.PIPE)
        # A thousand rows are read at a time; the bad one is told before it goes on to wait.
        rows = [b"music_task_id,audio_id", b"m,a b", *[b"m,a%d" % n for n in range(999)]]
        process.stdin.write(b"\n".join(rows) + b"\n")
        await process.stdin.drain()
        await said(process, "line 2: ")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(LONG_S):
            err = (await process.stderr.read()).decode()
            code = await process.wait()
        process.stdin.close()

        assert (130, 0) == (code, len(kie.arrivals)), err
    assert "Fatal" not in err
    assert "interrupted; 0 tracks are left" in err
    assert "Give it the same catalog on stdin once more, and go on with:\n" in err


async def test_in_the_background() -> None:
    """A SIGINT that the shell has it ignore, as in the background, stays ignored."""
    write_catalog(*rows_of(4))
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "from kie_wav_async.cli import main; sys.exit(main())"
    )
    async with service(median_s=0.5, window=None) as kie:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, *BULK),
            env=environment(kie),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await until(lambda: kie.charges == 4)
        process.send_signal(signal.SIGINT)
        done = await end(process)

    assert (0, 4) == (done.code, len(done.results)), done


# --- sudden death ---------------------------------------------------------------------------------


@pytest.mark.parametrize("charged", [1, 9, 25])
async def test_killed(charged: int) -> None:
    """Killed at any moment, the bill is bounded, and the rest is done without a second charge."""
    write_catalog(*rows_of(40))
    async with service(median_s=0.1, window=None, answer_delay_s=(0.0, 0.01)) as kie:
        process = await start(kie, *BULK, "--max-in-flight", "8")
        await until(lambda: kie.charges >= charged)
        process.kill()
        killed = await end(process)
        bounded = await is_bounded(kie)
        again = await end(await start(kie, *BULK))
        ledger = SqliteLedger(LEDGER)
        opening = await ledger.open(time.time())
        for unknown in opening.unknown:
            # KIE's word on it comes with the 409 to the next submit.
            await ledger.finish_attempt(unknown.attempt_id, AttemptOutcome.NOT_CREATED, time.time())
        await ledger.aclose()
        last = await end(await start(kie, *BULK))

        assert (-signal.SIGKILL, 0) == (killed.code, last.code), last
        assert again.code == (4 if opening.unknown else 0)
        assert bounded
        assert {1} == set(kie.charges_by_track.values())
        assert 40 == kie.charges
    assert {"succeeded": 40} == await states()


# --- pipes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "json"])
async def test_a_catalog_from_stdin(form: str) -> None:
    """A catalog can come through a pipe, of either form."""
    catalog = b"music_task_id,audio_id\nm,a0\nm,a1\n"
    if form == "json":
        lines = [json.dumps({"music_task_id": "m", "audio_id": f"a{n}"}) for n in range(2)]
        catalog = "\n".join(lines).encode()
    async with service(window=None) as kie:
        words = ("bulk", "-", "--out", "out", *HASTY)
        done = await end(await start(kie, *words, stdin=asyncio.subprocess.PIPE), catalog)

    assert 0 == done.code, done
    assert ["a0", "a1"] == sorted(row[1] for row in done.results)


async def test_nobody_reads() -> None:
    """When the reader of the results goes away it stops, and says how to go on."""
    write_catalog(*rows_of(40))
    async with service(median_s=0.1, window=None) as kie:
        reader, writer = os.pipe()
        os.close(reader)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "kie_wav_async", *BULK, "--max-in-flight", "3"),
                env=environment(kie),
                stdout=writer,
                stderr=asyncio.subprocess.PIPE,
            )
        finally:
            os.close(writer)
        async with asyncio.timeout(LONG_S):
            _, err = await process.communicate()
        await see_off()

        assert 141 == process.returncode
        assert kie.charges < 40
    assert "nobody reads the results any more" in err.decode()
    assert resume_command(err.decode())
    assert "Traceback" not in err.decode()


async def test_nobody_listens() -> None:
    """When stderr goes away the work, which is paid, goes on."""
    write_catalog(*rows_of(5))
    async with service(median_s=0.1, window=None) as kie:
        reader, writer = os.pipe()
        os.close(reader)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "kie_wav_async", *BULK),
                env=environment(kie),
                stdout=asyncio.subprocess.PIPE,
                stderr=writer,
            )
        finally:
            os.close(writer)
        async with asyncio.timeout(LONG_S):
            out, _ = await process.communicate()
        await see_off()

    assert (0, 5) == (process.returncode, len(out.splitlines()))


@pytest.mark.parametrize("saving", [HASTY, SAVING], ids=["addresses", "files"])
async def test_an_id_that_the_encoding_has_not(saving) -> None:
    """An id that the locale cannot spell is printed with a question mark, and all is done."""
    write_catalog("mé,a0,Song", "m,a1,Song")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    async with service(median_s=0.02, window=None) as kie:
        words = ("bulk", "c.csv", "--out", "out", *saving)
        done = await end(await start(kie, *words, **ascii_only))

    assert 0 == done.code, done.err
    assert [["m", "a1"], ["m?", "a0"]] == sorted(row[:2] for row in done.results)


# --- a terminal -----------------------------------------------------------------------------------


async def test_bars() -> None:
    """On a terminal bars tell how far it has come, within 80 columns, and no addresses."""
    write_catalog(*rows_of(6))
    failing = Fault(kind="fail", on="conversion", audio_id="a1")
    async with service(failing, median_s=0.1, window=None, credits="4.5", price="0.5") as kie:
        code, shown = await on_terminal(kie, *BULK)

    text = visible(shown)
    assert 1 == code
    bar = "[━╸╺]+"
    for pattern in (
        rf"submitted +{bar} +6/6",
        rf"converted +{bar} +5/6",
        rf"failed +{bar} +1$",
        rf"unknown +{bar} +0$",
    ):
        assert [line for line in text if re.search(pattern, line)], shown
    assert [line for line in text if re.search(r"submits/s · .* in flight", line)], shown
    assert [line for line in text if "credits left" in line]
    assert not [line for line in text if len(line) > 80]
    assert "/s/" not in shown


async def test_bars_and_results() -> None:
    """Results that go to a file go there, while the bars are on the terminal."""
    write_catalog(*rows_of(4))
    reader, writer = os.pipe()
    async with service(median_s=0.1, window=None) as kie:
        code, shown = await on_terminal(kie, *BULK, out=writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        results = file.read().decode().splitlines()

    assert 0 == code
    assert 4 == len([line for line in results if line.count("\t") == 3])
    assert "submitted" in shown


async def test_hostile_words_on_a_terminal() -> None:
    """A title, a bad line and KIE's words are neither markup nor obeyed by the terminal."""
    hostile = "[bold red]x[/]\x1b]0;pwned\x07\x1b[2J"
    write_catalog(f'm,a0,"{hostile}"', f"m,{hostile},t", f"m,a1,{hostile}")
    fault = Fault(kind="fail", on="conversion", audio_id="a0", code=500, msg=hostile)
    async with service(fault, median_s=0.1, window=None) as kie:
        code, shown = await on_terminal(kie, *BULK, "--skip-invalid")

    assert 1 == code
    assert "pwned" in shown
    assert "[bold red]x[/]" in shown
    assert "\x1b]0;" not in shown
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
