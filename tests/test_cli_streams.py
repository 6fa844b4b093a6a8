"""What is printed, and a reader that sleeps, is gone or was never there, or a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import io
import os
import pty
import re
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from bulk_runs import (
    HASTY,
    LEDGER,
    LONG_S,
    SAVING,
    environment,
    is_bounded,
    rows_of,
    said,
    see_off,
    states,
    until,
    write_catalog,
    write_lines,
)
from cli_runs import service, submit_before
from kie_wav_async.cli.common import streams
from kie_wav_async.cli.common.streams import OutputError
from kie_wav_async.ledger import SqliteLedger, TrackState
from kie_wav_async.simulator import Fault
from ledger_runs import Writer, track

BULK = ("bulk", "c.csv", "--out", "out", *HASTY, "--max-in-flight", "10")
FULL = Path("/dev/full")

needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")


class Done(NamedTuple):
    code: int
    out: bytes
    err: str


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty folder, without the developer's terminal."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


class Sleeper:
    """A small pipe that is read when told, and is full from the start if *is_full*."""

    def __init__(self, *, is_full: bool = False) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)
        self.filled = 0
        if is_full:
            os.set_blocking(self.writer, False)
            self.filled = os.write(self.writer, b"." * 4096)
            os.set_blocking(self.writer, True)

    def wake(self) -> asyncio.Task[bytes]:
        """Begin to read, up to the end; the task returns what was printed."""
        os.close(self.writer)

        def read() -> bytes:
            with os.fdopen(self.reader, "rb") as file:
                return file.read()[self.filled :]

        return asyncio.create_task(asyncio.to_thread(read))

    def leave(self) -> None:
        """Never read."""
        os.close(self.reader)
        os.close(self.writer)


async def run(kie, *words: str, out=None, err=None, **limits: float):
    """Start ``kie-wav`` with *words*, and with limits of `cli.common.streams` of our own."""
    own = "".join(f"streams.{name} = {value}; " for name, value in limits.items())
    imports = "import sys; from kie_wav_async.cli import main; "
    imports += "from kie_wav_async.cli.common import streams; "
    program = f"{imports}{own}sys.exit(main())"
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *words),
        env=environment(kie),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE if out is None else out,
        stderr=asyncio.subprocess.PIPE if err is None else err,
    )


async def shell(kie, redirection: str, *words: str) -> Done:
    """Run ``kie-wav`` with *words* in a shell that redirects."""
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", f'exec "$0" -m kie_wav_async "$@" {redirection}', sys.executable),
        *words,
        env=environment(kie),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    return await end(process)


async def end(process) -> Done:
    """Return what became of a process."""
    async with asyncio.timeout(LONG_S):
        out, err = await process.communicate()
    await see_off()
    return Done(process.returncode, out or b"", (err or b"").decode())


def exists(name: str) -> bool:
    """Return whether there is a file."""
    return Path(name).exists()


async def unknown() -> int:
    """Return how many submits of the ledger are of unknown outcome."""
    return (await states()).get("unknown", 0)


async def until_held(kie) -> None:
    """Return once what was submitted is converted, and for a while nothing more was submitted."""
    before, looks = -1, 0
    async with asyncio.timeout(LONG_S):
        while looks < 20:
            await asyncio.sleep(0.02)
            counts = {}
            if LEDGER.exists():
                ledger = SqliteLedger(LEDGER, read_only=True)
                await ledger.open(0.0)
                counts = await ledger.count_by_state()
                await ledger.aclose()
            is_quiet = 0 < kie.charges == before == counts.get(TrackState.SUCCEEDED)
            looks = looks + 1 if is_quiet else 0
            before = kie.charges


# --- a reader that sleeps -------------------------------------------------------------------------


async def test_a_sleeping_reader_holds_submits_and_no_answer() -> None:
    """While nobody reads, what is submitted is converted; once it is read nothing is missing."""
    write_catalog(*rows_of(200))
    async with service(median_s=0.02, window=None) as kie:
        sleeper = Sleeper()
        process = await run(kie, *BULK, out=sleeper.writer, FULL=2000)
        await until_held(kie)
        held = kie.charges
        reading = sleeper.wake()
        done = await end(process)
        lines = (await reading).decode().splitlines()

        assert 0 == done.code, done.err
        assert 30 < held < 200
        assert 200 == kie.charges
    assert {"succeeded": 200} == await states()
    assert sorted(f"a{n}" for n in range(200)) == sorted(line.split("\t")[1] for line in lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_stopped_while_the_reader_sleeps(number) -> None:
    """A signal stops it although nobody reads, and says what was not printed."""
    write_catalog(*rows_of(200))
    async with service(median_s=0.02, window=None) as kie:
        sleeper = Sleeper()
        process = await run(kie, *BULK, out=sleeper.writer, FULL=2000, STOPPING_S=0.2)
        await until_held(kie)
        process.send_signal(number)
        done = await end(process)
        sleeper.leave()

        assert 130 == done.code, done.err
        assert {"succeeded", "planned"} == set(await states())
    assert "Traceback" not in done.err
    assert "stdout has not been read" in done.err
    assert re.search(r"^ *kie-wav bulk c\.csv ", done.err, re.MULTILINE)


async def test_a_reader_that_never_reads_ends_the_run() -> None:
    """A reader that takes nothing for too long ends a run as a full disk does."""
    write_catalog(*rows_of(200))
    async with service(median_s=0.02, window=None) as kie:
        sleeper = Sleeper()
        done = await end(await run(kie, *BULK, out=sleeper.writer, FULL=2000, PATIENCE_S=0.5))
        sleeper.leave()

        assert 3 == done.code, done.err
        assert await is_bounded(kie)
        assert not await unknown()
    assert "kie-wav: stdout has not been read for 0.5 s" in done.err
    assert re.search(r"^ *kie-wav bulk c\.csv ", done.err, re.MULTILINE)
    assert "Traceback" not in done.err


async def test_stopped_when_all_is_done_but_not_printed() -> None:
    """A signal ends a run that only waits for its reader, and the rest is named."""
    write_catalog(*rows_of(10))
    async with service(median_s=0.02, window=None) as kie:
        sleeper = Sleeper(is_full=True)
        process = await run(kie, *BULK, out=sleeper.writer, STOPPING_S=0.2)
        await until_held(kie)
        process.send_signal(signal.SIGINT)
        done = await end(process)
        sleeper.leave()

        assert 10 == kie.charges
    assert done.code in {3, 130}
    assert "stdout has not been read for 0.2 s" in done.err
    assert "kie-wav report out/kie-wav.sqlite3 --urls" in done.err
    assert "Traceback" not in done.err


async def test_stopped_twice_while_both_readers_sleep() -> None:
    """A second signal ends it at once, whoever sleeps, and the ledger bounds the bill."""
    write_catalog(*rows_of(20))
    async with service(Fault(kind="stall", when="after"), median_s=1e6, window=None) as kie:
        out, err = Sleeper(is_full=True), Sleeper(is_full=True)
        process = await run(
            *(kie, *BULK, "--rate", "6/1000"),
            out=out.writer,
            err=err.writer,
            LEAVING_S=0.2,
        )
        await until(lambda: kie.charges == 6)
        process.send_signal(signal.SIGINT)
        words = f"/proc/{process.pid}/status"
        # Python's own handler is there once the first was heard.
        await until(lambda: "SigCgt" in Path(words).read_text())
        while process.returncode is None:
            # Not send_signal, which takes the exit code of a process that has just ended.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
            await asyncio.sleep(0.01)
        done = await end(process)
        out.leave()
        err.leave()

        assert 130 == done.code
        assert await is_bounded(kie)


async def test_the_simulator_is_stopped_while_the_reader_sleeps() -> None:
    """Ctrl-C ends `simulate` although nobody has read what it printed."""
    async with service() as kie:
        sleeper = Sleeper(is_full=True)
        process = await run(kie, "simulate", out=sleeper.writer, STOPPING_S=0.2)
        await said(process, "is listening")
        process.send_signal(signal.SIGINT)
        done = await end(process)
        sleeper.leave()

    assert 3 == done.code
    assert "stdout has not been read for 0.2 s" in done.err


async def test_nobody_reads_the_messages() -> None:
    """A reader of stderr that sleeps for ever stops nothing, and all results are there."""
    write_catalog(*rows_of(20))
    async with service(median_s=0.02, window=None) as kie:
        sleeper = Sleeper(is_full=True)
        process = await run(kie, *BULK, err=sleeper.writer, PATIENCE_S=1.0)
        done = await end(process)
        sleeper.leave()

    assert (0, 20) == (done.code, len(done.out.splitlines()))


COMMANDS = pytest.mark.parametrize(
    "words",
    [
        ["tracks", "m", "--json"],
        ["credits"],
        ["status", "TASK"],
        ["convert", "m", "a"],
        ["convert", "m", "a", "--json", "-o", "a.wav"],
        ["report", "LEDGER", "--json"],
        ["report", "LEDGER", "--urls"],
        ["report", "LEDGER", "--verify"],
        ["demo", "--tracks", "1"],
        ["demo", "--tracks", "1", "--json"],
        ["simulate"],
        ["--help"],
    ],
    ids=" ".join,
)


async def prepared(kie, words: list[str]) -> list[str]:
    """Return *words*, and make what they speak of."""
    await submit_before(kie, "a")
    if "LEDGER" in words:
        LEDGER.parent.mkdir()
        data = b"sound"
        LEDGER.with_name("a.wav").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        async with SqliteLedger(LEDGER) as ledger:
            await Writer(ledger).convert(0)
            await ledger.mark_saved(track(0), path="a.wav", size=len(data), sha256=digest)
    given = {"TASK": kie.arrivals[0].task_id, "LEDGER": str(LEDGER)}
    return [given.get(word, word) for word in words]


@COMMANDS
async def test_every_command_ends_although_nobody_reads(words) -> None:
    """Every command gives up a reader that never reads, says so, and exits with 3."""
    async with service(window=None) as kie:
        words = await prepared(kie, words)
        sleeper = Sleeper(is_full=True)
        done = await end(await run(kie, *words, out=sleeper.writer, PATIENCE_S=0.3))
        sleeper.leave()

    assert 3 == done.code, done.err
    assert "kie-wav: stdout has not been read for 0.3 s" in done.err
    assert "Traceback" not in done.err


# --- a full disk, and none at all -----------------------------------------------------------------


@needs_full
@COMMANDS
async def test_every_command_on_a_full_disk(words) -> None:
    """On a full disk every command says so in one sentence, and exits with 3."""
    async with service(window=None) as kie:
        words = await prepared(kie, words)
        done = await shell(kie, ">/dev/full", *words)

    sentences = [line for line in done.err.splitlines() if line.startswith("kie-wav: ")]
    assert 3 == done.code, done.err
    assert ["kie-wav: cannot write to stdout: No space left on device"] == sentences
    assert "Traceback" not in done.err
    assert "Exception ignored" not in done.err


@COMMANDS
async def test_every_command_without_stdout(words) -> None:
    """With stdout closed every command says so in one sentence, and does nothing."""
    async with service(window=None) as kie:
        words = await prepared(kie, words)
        charges = kie.charges
        done = await shell(kie, ">&-", *words)

        assert charges == kie.charges
    assert (3, "kie-wav: cannot write to stdout: it is closed\n") == (done.code, done.err)
    assert not exists("a.wav")


@needs_full
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["lines", "json"])
async def test_a_catalog_whose_results_cannot_be_printed(redirection, more) -> None:
    """A run whose results go nowhere ends with 3, and names the command that goes on."""
    write_catalog(*rows_of(30))
    async with service(median_s=0.02, window=None) as kie:
        done = await shell(kie, redirection, *BULK, *more)
        (command,) = re.findall(r"^ *(kie-wav bulk .*)$", done.err, re.MULTILINE)
        again = await shell(kie, "", *shlex.split(command)[1:])

        assert 3 == done.code, done.err
        assert 1 == done.err.count("kie-wav: ")
        assert "cannot write to stdout: " in done.err
        assert 0 == again.code, again.err
        assert 30 == kie.charges
    assert "Traceback" not in done.err
    assert {"succeeded": 30} == await states()


@needs_full
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "<&-", "0>&- 2>&-"])
async def test_what_is_not_needed_is_not_missed(redirection) -> None:
    """Without stdin and stderr the work, which is paid, is done, and its results are printed."""
    write_catalog(*rows_of(5))
    async with service(median_s=0.02, window=None) as kie:
        done = await shell(kie, redirection, *BULK)
        short = await shell(kie, redirection, "credits")

        assert (0, 5) == (done.code, len(done.out.splitlines())), done.err
        assert 0 == short.code
    assert {"succeeded": 5} == await states()
    assert LEDGER.read_bytes().startswith(b"SQLite format 3\0")


async def test_everything_is_closed() -> None:
    """With all three closed nothing is done, and no file of ours is written into."""
    write_catalog(*rows_of(5))
    async with service(median_s=0.02, window=None) as kie:
        done = await shell(kie, "<&- >&- 2>&-", *BULK)

        assert (3, 0) == (done.code, kie.charges)
    assert not exists("out")


# --- a terminal that hangs up ---------------------------------------------------------------------


async def hang_up(kie, *words: str) -> int:
    """Return the exit code of ``kie-wav`` on a terminal that hangs up once it shows anything."""
    ours, theirs = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kie_wav_async", *words),
            env=environment(kie, TERM="xterm"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        assert await asyncio.to_thread(os.read, ours, 1)
    finally:
        os.close(ours)
    return (await end(process)).code


@pytest.mark.parametrize(("more", "code"), [([], 0), (["--json"], 3)], ids=["bars", "json"])
async def test_the_terminal_of_a_catalog_hangs_up(more, code) -> None:
    """A catalog is converted and saved to its end, and only a result that is lost is an error."""
    write_catalog(*rows_of(40))
    words = ("bulk", "c.csv", "--out", "out", *SAVING, "--max-in-flight", "10", *more)
    async with service(median_s=0.2, window=None) as kie:
        assert code == await hang_up(kie, *words)
    assert {"saved": 40} == await states()


@pytest.mark.parametrize(
    "words",
    [["convert", "m", "a"], ["convert", "m", "a", "--json"], ["report", ".", "--verify"]],
    ids=" ".join,
)
async def test_the_terminal_of_a_result_hangs_up(words) -> None:
    """A result that the terminal was to show, and did not, is an error."""
    # More lines than a terminal takes that nobody reads.
    lines = [{"file": f"{n:0200}.wav", "bytes": 1, "sha256": "0" * 64} for n in range(1000)]
    write_lines("manifest.jsonl", *lines)
    slow = Fault(kind="slow", on="poll", when="arrival", delay_s=1.0)
    async with service(slow, window=None) as kie:
        await submit_before(kie, "a")
        assert 3 == await hang_up(kie, *words)


# --- the queue ------------------------------------------------------------------------------------


class Slow(io.RawIOBase):
    """A file that takes what it is given, a byte or so at a time, once it may."""

    def __init__(self, *, takes: int = 3) -> None:
        super().__init__()
        self.may_go = threading.Event()
        self.got = b""
        self._takes = takes

    def write(self, data) -> int:
        assert self.may_go.wait(LONG_S)
        self.got += bytes(data[: self._takes])
        return min(self._takes, len(data))


def test_the_queue_keeps_the_order() -> None:
    """What is put from several threads is written whole, each thread's in its order."""
    slow = Slow()
    pipe = streams._Pipe(slow)

    def put(name: str) -> None:
        for number in range(200):
            pipe.put(f"{name}{number}\n".encode())

    threads = [threading.Thread(target=put, args=[name]) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    slow.may_go.set()
    pipe.drain()
    lines = slow.got.decode().splitlines()

    for name in "abc":
        assert [f"{name}{n}" for n in range(200)] == [one for one in lines if one[0] == name]
    assert 600 == len(lines)


def test_messages_are_dropped_from_the_oldest_and_that_is_said() -> None:
    """Of messages that nobody reads the newest are kept, and a line says that some are missing."""
    slow = Slow(takes=1000)
    pipe = streams._Pipe(slow, 1000)
    for number in range(1000):
        pipe.put(f"line {number}\n".encode())
    assert pipe._size < 2000
    slow.may_go.set()
    pipe.drain()
    lines = slow.got.decode().splitlines()

    assert "line 999" == lines[-1]
    assert [line for line in lines if "missing" in line]


async def test_who_waits_for_room_is_woken() -> None:
    """Whoever waits for room goes on once there is some, and the loop turns meanwhile."""
    slow = Slow(takes=100)
    pipe = streams._Pipe(slow)
    pipe.put(b"x" * 10_000)
    waiting = [asyncio.create_task(pipe.wait(most)) for most in (5_000, 0)]
    await asyncio.sleep(0)
    assert not [task for task in waiting if task.done()]
    slow.may_go.set()
    async with asyncio.timeout(LONG_S):
        await asyncio.gather(*waiting)

    assert 10_000 == len(slow.got)


async def test_who_waits_for_room_can_be_cancelled() -> None:
    """Whoever waits for a reader that sleeps can be cancelled, and is not woken later."""
    slow = Slow(takes=100)
    pipe = streams._Pipe(slow)
    pipe.put(b"x" * 1_000)
    waiting = asyncio.create_task(pipe.wait(0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    slow.may_go.set()
    pipe.drain()

    assert 1_000 == len(slow.got)


async def test_who_waits_for_a_reader_that_is_gone_is_told() -> None:
    """Whoever waits learns that nobody reads any more, and so does whoever prints."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb", buffering=0) as raw:
        pipe = streams._Pipe(raw)
        text = streams._text(streams._Buffer(pipe, is_mute=False), None)
        text.write("x" * 1_000_000)
        waiting = asyncio.create_task(pipe.wait(0))
        await asyncio.sleep(0)
        os.close(reader)
        with pytest.raises(OutputError) as caught:
            await waiting
        with pytest.raises(OutputError):
            text.write("more")

    assert 141 == caught.value.exit_code


def test_a_file_that_does_not_block_is_waited_for() -> None:
    """A pipe that somebody made non-blocking loses nothing."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data = bytes(range(256)) * 2_000
    with os.fdopen(reader, "rb") as file:
        with os.fdopen(writer, "wb", buffering=0) as raw:
            pipe = streams._Pipe(raw)
            pipe.put(data)
            got = file.read(len(data))
            pipe.drain()

        assert data == got
