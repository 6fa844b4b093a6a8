"""The command line as a process of its own: signals, pipes, terminals."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from yarl import URL

from cli_runs import KEY, is_wav, names, service, submit_before
from kie_wav_async.simulator import Fault

REPOSITORY = Path(__file__).resolve().parent.parent
LONG_S = 60  # Far more than anything here takes.


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty folder, without the developer's terminal."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def environment(**more: str) -> dict[str, str]:
    """Return our environment and *more*, with warnings shown."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "default", **more}


async def start(*words: str, **more: str) -> asyncio.subprocess.Process:
    """Start our Python with *words*, and *more* in its environment."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *words,
        env=environment(**more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def end(process: asyncio.subprocess.Process) -> Done:
    """Return what became of a process."""
    async with asyncio.timeout(LONG_S):
        out, err = await process.communicate()
    return Done(process.returncode, out.decode("latin-1"), err.decode())


async def interrupt(process: asyncio.subprocess.Process, word: bytes) -> Done:
    """Press Ctrl-C once *word* was said on stderr."""
    async with asyncio.timeout(LONG_S):
        while word not in await process.stderr.readline():
            pass
    process.send_signal(signal.SIGINT)
    return await end(process)


async def test_as_a_module() -> None:
    """`python -m kie_wav_async` is the command line."""
    done = await end(await start("-m", "kie_wav_async", "--version"))

    assert Done(0, f"kie-wav {metadata.version('kie-wav-async')}\n", "") == done


@pytest.mark.parametrize("missing", ["click", "rich"])
async def test_without_the_extra(missing: str) -> None:
    """Without its extra the command exits with 2 and says what to install."""
    program = (
        f"import sys; sys.modules[{missing!r}] = None; "
        "from kie_wav_async.cli import main; sys.exit(main(['demo']))"
    )
    done = await end(await start("-c", program))

    assert (2, "") == (done.code, done.out)
    assert "pip install 'kie-wav-async[cli]'" in done.err
    assert 1 == len(done.err.splitlines())


async def test_the_demo_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends the demo with 130, without a trace, a part file or an empty folder."""
    slow = "import sys; from kie_wav_async.cli import main; "
    slow += "from kie_wav_async.cli.demo import demo; demo._SPEED = 1.0; "
    process = await start("-c", slow + "sys.exit(main(['demo', '--tracks', '40']))")
    done = await interrupt(process, b"Converting")

    assert (130, "", "") == (done.code, done.out, done.err.strip())
    assert [] == names(tmp_path)


async def test_a_conversion_interrupted() -> None:
    """Ctrl-C during a conversion names the task that goes on, and how to ask for it."""
    async with service(median_s=1e6) as kie:
        process = await start(
            *("-m", "kie_wav_async", "convert", "m", "a"),
            KIE_BASE_URL=kie.base_url,
            KIE_API_KEY=KEY,
        )
        done = await interrupt(process, b"submitted: ")
        task_id = kie.arrivals[0].task_id

    assert (130, "") == (done.code, done.out)
    assert f"kie-wav: interrupted; task {task_id} goes on: `kie-wav status {task_id}`\n" == done.err


async def test_a_file_interrupted(tmp_path: Path) -> None:
    """Ctrl-C while a file is saved keeps what has come, and names what goes on with it, free."""
    # The longest wait there may be before the second attempt.
    patient = "import random, sys; random.random = lambda: 0.99; "
    words = (
        "from kie_wav_async.cli import main; "
        "sys.exit(main(['convert', 'm', 'a', '-o', 'song.wav']))"
    )
    async with service(Fault(kind="cut", on="media", size=5_000, times=1)) as kie:
        given = {"KIE_BASE_URL": kie.base_url, "KIE_API_KEY": KEY}
        await submit_before(kie, "a")
        process = await start("-c", patient + words, **given)
        done = await interrupt(process, b"not saved yet")
        begun = names(tmp_path)
        command = re.search(r"`kie-wav (.*?)` goes on with song\.wav\.part\n", done.err)[1]
        again = await end(await start("-m", "kie_wav_async", *command.split(), **given))
        charges = kie.charges

    assert (130, "") == (done.code, done.out)
    assert ["song.wav.part", "song.wav.part.json"] == begun
    assert (0, 1) == (again.code, charges), again
    assert ["song.wav"] == names(tmp_path)
    assert is_wav(tmp_path / "song.wav")


async def test_a_submit_interrupted() -> None:
    """Ctrl-C while a submit is on the wire waits for its answer, so that its id is known."""
    async with service(median_s=1e6, answer_delay_s=0.5) as kie:
        process = await start(
            *("-m", "kie_wav_async", "convert", "m", "a"),
            KIE_BASE_URL=kie.base_url,
            KIE_API_KEY=KEY,
        )
        async with asyncio.timeout(LONG_S):
            while not kie.arrivals:  # noqa: ASYNC110 - another process does it
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        done = await end(process)

    assert 130 == done.code
    assert f"task {kie.arrivals[0].task_id} goes on" in done.err


async def test_simulate() -> None:
    """`simulate` prints an environment that works, and Ctrl-C is its good end."""
    process = await start("-m", "kie_wav_async", "simulate", "--speed", "60")
    async with asyncio.timeout(LONG_S):
        lines = [(await process.stdout.readline()).decode() for _ in range(4)]
    given = dict(re.fullmatch(r"export (\w+)=(\S+)\n", line).groups() for line in lines)
    asked = await end(await start("-m", "kie_wav_async", "credits", **given))
    done = await interrupt(process, b"Ctrl-C")

    names = {"KIE_BASE_URL", "KIE_API_KEY", "KIE_INSECURE_HOSTS", "KIE_WEBHOOK_HMAC_KEY"}
    assert names == set(given)
    assert Done(0, "100000.25\n", "") == asked
    assert (0, "") == (done.code, done.out)
    assert "Stopped: 0 submits, 0 charged, 0 polls.\n" == done.err


EVERYWHERE = "0.0.0.0"  # noqa: S104 - a simulator, for a second
PROGRAM = """
import asyncio
import socket
from kie_wav_async import Track, WavSession
from kie_wav_async.webhook import CallbackServer

async def main():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/kie/callback"
        async with WavSession(callback_url=url) as session, CallbackServer(session, sock=sock):
            for name in ("first", "second"):
                wav = await session.convert(Track("m", name))
                file = await session.download(wav, f"{name}.wav")
                print(name, wav.settled_by, file.bytes)

asyncio.run(main())
"""


@pytest.mark.parametrize("host", ["127.0.0.1", EVERYWHERE, "::1", "localhost"])
async def test_what_simulate_prints_is_all_a_program_needs(host: str) -> None:
    """With nothing else in its environment a program converts, is called back, and downloads."""
    words = ("simulate", "--median", "0.1", "--host", host)
    process = await start("-m", "kie_wav_async", *words)
    async with asyncio.timeout(LONG_S):
        lines = [(await process.stdout.readline()).decode() for _ in range(4)]
        given = dict(shlex.split(line)[1].split("=", 1) for line in lines)
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM),
            env=given,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        done = await end(program)
    process.terminate()
    await end(process)

    assert (0, "") == (done.code, done.err)
    # The first one may be asked for, because nobody knows its host before.
    assert "second callback" in done.out
    assert is_wav(Path("first.wav"))
    assert is_wav(Path("second.wav"))


@pytest.mark.parametrize(
    ("host", "code", "words"),
    [
        ("192.0.2.77", 3, "cannot listen: "),
        ("no.such.invalid", 3, "cannot listen: "),
        (f"{'x' * 80}.example", 3, "cannot listen: "),
        ("", 2, "host must be an address or a name"),
    ],
)
async def test_simulate_where_it_cannot_listen(host: str, code: int, words: str) -> None:
    """A host that is not of this machine, or is none, is one sentence."""
    done = await end(await start("-m", "kie_wav_async", "simulate", "--host", host))

    assert (code, "") == (done.code, done.out)
    assert done.err.startswith(f"kie-wav: {words}")
    assert 1 == done.err.count("\n")


async def test_simulate_on_a_taken_port() -> None:
    """`simulate --json` prints one object; a second one on its port exits with 3."""
    process = await start("-m", "kie_wav_async", "simulate", "--json")
    async with asyncio.timeout(LONG_S):
        ready = json.loads(await process.stdout.readline())
    port = str(URL(ready["base_url"]).port)
    second = await end(await start("-m", "kie_wav_async", "simulate", "--port", port))
    process.terminate()
    done = await end(process)

    assert {"base_url", "api_key", "webhook_key", "environment"} == set(ready)
    assert (ready["base_url"], "127.0.0.1") == (
        ready["environment"]["KIE_BASE_URL"],
        ready["environment"]["KIE_INSECURE_HOSTS"],
    )
    assert (3, "") == (second.code, second.out)
    assert "choose another --host or --port" in second.err
    assert 0 == done.code


async def test_nobody_reads() -> None:
    """A reader that goes away, as `head` does, is no error worth a word."""
    async with service() as kie:
        reader, writer = os.pipe()
        os.close(reader)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "kie_wav_async", "tracks", "m"),
                env=environment(KIE_BASE_URL=kie.base_url, KIE_API_KEY=KEY),
                stdout=writer,
                stderr=asyncio.subprocess.PIPE,
            )
        finally:
            os.close(writer)
        async with asyncio.timeout(LONG_S):
            _, err = await process.communicate()

    assert (141, b"") == (process.returncode, err)


async def test_a_title_in_a_poor_terminal() -> None:
    """A title that the terminal's encoding does not have is printed all the same."""
    song = {"id": "a", "title": "Träumerei \N{MUSICAL SYMBOL G CLEF}"}
    fault = Fault(kind="fields", on="music", fields={"response": {"sunoData": [song]}})
    async with service(fault) as kie:
        process = await start(
            *("-m", "kie_wav_async", "tracks", "m"),
            KIE_BASE_URL=kie.base_url,
            KIE_API_KEY=KEY,
            PYTHONIOENCODING="latin-1:strict",
        )
        done = await end(process)

    assert (0, "a\tTräumerei ?\n") == (done.code, done.out)


def on_a_terminal(*words: str) -> tuple[int, str]:
    """Run our Python on a terminal of 80 columns; return its code and all that was shown."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(  # noqa: S603 - our own interpreter and our own text
            [sys.executable, *words],
            env=environment(COLUMNS="80", TERM="xterm"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            shown = b""
            with contextlib.suppress(OSError):  # Linux says EIO when the other side has gone.
                while chunk := os.read(ours, 65_536):
                    shown += chunk
    finally:
        os.close(ours)
    return process.returncode, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def test_the_demo_on_a_terminal(tmp_path: Path) -> None:
    """On a terminal of 80 columns the demo shows its three bars, and no line of it is cut."""
    hasty = "import sys; from kie_wav_async.cli import main; "
    hasty += "from kie_wav_async.cli.demo import demo; demo._SPEED = 3000.0; "
    code, text = on_a_terminal("-c", hasty + "sys.exit(main(['demo', '--tracks', '2']))")

    assert 0 == code
    for name in ("submitted", "converted", "saved"):
        assert re.search(rf"{name} +━+ 2/2", text), text
    files = names(tmp_path / "kie-wav-demo")
    assert 2 == len(files)
    assert all(file in text for file in files), text
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]", text)), text


def test_to_verify_on_a_terminal(tmp_path: Path) -> None:
    """On a terminal there is a bar of bytes, and each result is a line above it."""
    data = bytes(3_000_000)
    digest = hashlib.sha256(data).hexdigest()
    for number in range(40):
        (tmp_path / f"{number}.wav").write_bytes(data)
    lines = [{"file": f"{n}.wav", "bytes": len(data), "sha256": digest} for n in range(40)]
    (tmp_path / "manifest.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    code, text = on_a_terminal("-m", "kie_wav_async", "report", ".", "--verify")
    shown = re.split(r"[\r\n]+", text)

    assert 0 == code
    assert re.search(r"verifying ━+.* \d+(\.\d)?/120\.0 MB", text), text
    assert [f"{n}.wav: OK" for n in range(40)] == [line for line in shown if line.endswith(": OK")]
    assert "40 files in ., 120 MB: all as they were saved." in shown
    assert all(len(line) <= 80 for line in shown), text
