from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys

import aiohttp
import pytest

from kie_wav_async.simulator import Fault, Simulator, SimulatorProcess
from kie_wav_async.simulator.process import simulator_from_json
from kie_wav_async.simulator.server import base_url_of

COMMAND = [sys.executable, "-X", "dev", "-W", "error", "-m", "kie_wav_async.simulator"]


async def submit(kie, audio_id="a"):
    """Submit one track with plain aiohttp."""
    body = {"taskId": "m", "audioId": audio_id, "callBackUrl": "https://caller.invalid/"}
    headers = {"Authorization": f"Bearer {kie.api_key}", "Connection": "close"}
    async with (
        aiohttp.ClientSession(kie.base_url, headers=headers) as http,
        http.post("/api/v1/wav/generate", json=body) as answer,
    ):
        return await answer.json(content_type=None)


@contextlib.asynccontextmanager
async def command(max_life_s=60.0, **settings):
    """Run what `SimulatorProcess` runs, with what it says when it is ready."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60.0):
            first = {"settings": settings, "max_life_s": max_life_s}
            process.stdin.write(json.dumps(first).encode() + b"\n")
            line = await process.stdout.readline()
            yield process, json.loads(line)
            assert b"" == await process.stderr.read()
            assert 0 == await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
        process.stdin.close()
        await process.communicate()


async def answers(address):
    """Tell whether anybody listens there."""
    try:
        async with aiohttp.request("GET", address):
            return True
    except aiohttp.ClientConnectionError:
        return False


# The helper


async def test_process_has_what_a_client_needs():
    """A simulator in its own process is reached by its address and key and tells its state."""
    async with SimulatorProcess() as kie:
        answer = await submit(kie)
        state = await kie.state()

    assert 200 == answer["code"]
    assert {("m", "a"): 1} == state.charges_by_track
    assert [("created", "m", "a", answer["data"]["taskId"])] == [a[1:] for a in state.arrivals]
    assert kie.webhook_key


async def test_process_answers_as_one_in_this_process():
    """The same settings give the same ids in either process."""
    async with SimulatorProcess(seed=7) as there, Simulator(seed=7) as here:
        assert await submit(here) == await submit(there)


async def test_process_takes_settings_and_faults():
    """Settings and the script reach the process."""
    settings = {"window": [1, 10.0], "api_key": "other"}
    async with SimulatorProcess(faults=[Fault(kind="code", at=1)], **settings) as kie:
        codes = [(await submit(kie, n))["code"] for n in "abc"]

    assert "other" == kie.api_key
    assert [500, 429, 429] == codes


async def test_process_takes_a_catalog_that_no_command_line_would():
    """Settings of a megabyte reach the process."""
    music = {"m": [f"{number:0100}" for number in range(10_000)]}
    async with SimulatorProcess(music=music, known_only=True) as kie:
        answers = [(await submit(kie, n))["code"] for n in (music["m"][-1], "other")]

    assert [200, 422] == answers


async def test_process_takes_new_faults_and_forgets():
    """Faults and counts of a running process can be changed."""
    async with SimulatorProcess() as kie:
        await kie.set_faults([Fault(kind="code", code=455)])
        assert 455 == (await submit(kie))["code"]
        await kie.set_faults([])
        await kie.reset()
        assert 200 == (await submit(kie))["code"]
        assert 1 == len((await kie.state()).arrivals)


async def test_asking_a_process_for_its_state_counts_nothing():
    """Asking for the state leaves the counts of connections and requests alone."""
    async with SimulatorProcess() as kie:
        await submit(kie)
        await kie.state()
        state = await kie.state(brief=True)

    assert (1, {"submit": 1}) == (state.connections, state.requests)


async def test_process_ends_with_its_block():
    """Nothing listens any more after the block."""
    async with SimulatorProcess() as kie:
        pass
    with pytest.raises(aiohttp.ClientConnectionError):
        await submit(kie)


async def test_process_that_does_not_start_is_a_runtime_error(capfd):
    """A wrong setting is told by the process in its own words."""
    with pytest.raises(RuntimeError, match="before it was ready"):
        await SimulatorProcess(nonsense=1).__aenter__()

    assert "nonsense" in capfd.readouterr().err


# What it runs


async def test_it_says_when_it_is_ready():
    """The process prints one line with address and keys, and then serves."""
    async with command() as (process, ready):
        assert {"base_url", "api_key", "webhook_key", "pid"} == ready.keys()
        assert process.pid == ready["pid"]
        process.stdin.close()
        assert b"" == await process.stdout.read()


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_it_quietly(number):
    """SIGTERM and SIGINT end the process with exit code 0 and no message."""
    async with command() as (process, _):
        process.send_signal(number)


async def test_end_of_its_life_ends_it_quietly():
    """The process ends by itself after its life."""
    async with command(max_life_s=0.01):
        pass


async def test_it_ends_with_a_parent_that_was_killed():
    """A simulator does not outlive a process that started it and was killed."""
    script = (
        "import asyncio, os\n"
        "from kie_wav_async.simulator import SimulatorProcess\n"
        "async def main():\n"
        "    async with SimulatorProcess() as kie:\n"
        "        print(kie.base_url, flush=True)\n"
        "        os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    address = (await child.stdout.readline()).decode().strip()
    await child.wait()
    await child.stdout.read()
    async with asyncio.timeout(20.0):
        while await answers(address):
            pass


def test_settings_from_json():
    """Every keyword that JSON can say is taken."""
    settings = {
        "median_s": 1,
        "window": None,
        "arrival_delay_s": [0, 3.3],
        "wav_s": [1, 2],
        "faults": [{"kind": "code"}],
        "unknown_audio_ids": ["x"],
    }

    assert isinstance(simulator_from_json(settings), Simulator)


@pytest.mark.parametrize("settings", [{"nonsense": 1}, {"median_s": "x"}, {"faults": {}}])
def test_wrong_settings_are_a_value_error(settings):
    """A setting from JSON that makes no sense is one kind of error."""
    with pytest.raises(ValueError, match=r".+"):
        simulator_from_json(settings)


def test_package_does_not_import_the_simulator():
    """Importing the library does not load the simulator or a web server."""
    code = (
        "import sys, kie_wav_async\n"
        "sys.exit(any('simulator' in name or name == 'aiohttp.web' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, env=dict(os.environ))  # noqa: S603 - our own interpreter

    assert 0 == done.returncode


async def test_the_command_listens_where_it_is_told():
    """``host`` is the address of the URL that is printed, and somebody answers there."""
    async with command(host="::1") as (process, ready):
        assert ready["base_url"].startswith("http://[::1]:")
        assert await answers(ready["base_url"])
        process.terminate()


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
        (str(ipaddress.IPv4Address(0)), "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
    ],
)
def test_the_url_without_a_network(monkeypatch, host, shown):
    """Without a network every address is reached by that of this machine to itself."""

    def refuse(*_):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)

    assert shown == base_url_of(host, 80)
