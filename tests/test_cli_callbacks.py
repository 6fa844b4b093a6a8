"""The command line called back: servers and clients of this machine, and no wait for a poll."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
import pytest

from cli_runs import KEY, is_wav, service
from kie_wav_async.cli import main
from kie_wav_async.simulator import Fault, Simulator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LONG_S = 60  # Far more than anything here takes.
WEBHOOK_KEY = "simulator-webhook-key"
ELSEWHERE = "https://hooks.example.com/kie/callback"

# Its callback overtakes the answer to its submit, so that nothing waits by the clock.
EARLY = Fault(on="callback", kind="early")

# Polls begin 15 s after acceptance: whoever is done by then was called back.
AT_ONCE = ("--timeout", "10")
SOON = ("--timeout", "0.05")


class Done(NamedTuple):
    code: int
    out: str
    err: str


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of *host* that nobody listens on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as sock:
        return sock.getsockname()[1]


def is_open(port: int) -> bool:
    """Return whether somebody listens on *port*."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


async def answers(kie: Simulator) -> list[int | None]:
    """Return what was answered to the callbacks of *kie*, once it has seen an answer."""
    async with asyncio.timeout(LONG_S):
        while not kie.deliveries:  # noqa: ASYNC110 - another thread has answered
            await asyncio.sleep(0.001)
    return [delivery.status for delivery in kie.deliveries]


@pytest.fixture(autouse=True)
def quiet_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take the developer's terminal out of it."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def kie_wav(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Awaitable[Done]]:
    """Run the command line in a thread, with *environment* besides the address of *kie*."""

    async def run(*arguments: str, kie: Simulator, **environment: str) -> Done:
        with monkeypatch.context() as patched:
            given = {"KIE_BASE_URL": kie.base_url, "KIE_API_KEY": KEY, **environment}
            for name, value in given.items():
                patched.setenv(name, value)
            capsys.readouterr()
            code = await asyncio.to_thread(main, arguments)
        return Done(code, *capsys.readouterr())

    return run


# --- what a callback does -----------------------------------------------------------------------


async def test_convert_by_callback(kie_wav) -> None:
    """A conversion is settled by the one poll that its callback causes, long before the first."""
    port = free_port()
    async with service() as kie:
        done = await kie_wav(
            *("convert", "m", "a", *AT_ONCE),
            *("--listen", f"127.0.0.1:{port}"),
            *("--callback-url", f"http://127.0.0.1:{port}/any/path"),
            kie=kie,
            KIE_WEBHOOK_HMAC_KEY=WEBHOOK_KEY,
        )
        answered, state = await answers(kie), kie.state()

    task_id = state.arrivals[0].task_id
    assert 0 == done.code, done
    assert re.fullmatch(rf"{re.escape(kie.base_url)}/s/[0-9a-f]{{32}}\.wav\n", done.out)
    assert [
        f"listening on 127.0.0.1:{port} for what KIE posts to http://127.0.0.1:{port}/any/path",
        f"submitted: task {task_id}",
    ] == done.err.splitlines()
    assert [200] == answered
    assert 1 == sum(state.polls.values())
    assert not is_open(port)


async def test_a_callback_before_the_answer(kie_wav) -> None:
    """We listen before the submit goes out: a callback that overtakes its answer counts."""
    port = free_port()
    async with service(EARLY) as kie:
        done = await kie_wav(
            *("convert", "m", "a", "-o", "song.wav", "--json", *AT_ONCE),
            *("--listen", f"127.0.0.1:{port}"),
            kie=kie,
            KIE_CALLBACK_URL=f"http://127.0.0.1:{port}/",
            KIE_WEBHOOK_HMAC_KEY=f"the-old-webhook-key,{WEBHOOK_KEY}",
        )
        answered = await answers(kie)

    told = json.loads(done.out)
    assert (0, "poll", [200]) == (done.code, told["settled_by"], answered)
    assert is_wav(Path("song.wav"))


@pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6 here")
async def test_listening_on_ipv6(kie_wav) -> None:
    """A literal address of version 6 stands in brackets, as in URLs."""
    try:
        port = free_port("::1")
    except OSError:
        pytest.skip("there is no IPv6 here")
    async with service() as kie:
        done = await kie_wav(
            *("convert", "m", "a", "--json", *AT_ONCE, "--listen", f"[::1]:{port}"),
            *("--callback-url", f"http://[::1]:{port}/"),
            kie=kie,
            KIE_WEBHOOK_HMAC_KEY=WEBHOOK_KEY,
        )

    assert (0, "poll") == (done.code, json.loads(done.out)["settled_by"])
    assert f"listening on [::1]:{port} " in done.err


async def test_without_a_webhook_key(kie_wav) -> None:
    """Without a key a callback makes us ask and no more, which is said before it comes."""
    port = free_port()
    async with service() as kie:
        done = await kie_wav(
            *("convert", "m", "a", "--json", *AT_ONCE, "--listen", f"localhost:{port}"),
            kie=kie,
            KIE_CALLBACK_URL=f"http://localhost:{port}/",
        )
        answered, state = await answers(kie), kie.state()

    assert (0, "poll") == (done.code, json.loads(done.out)["settled_by"])
    assert 1 == sum(state.polls.values())
    assert [200] == answered
    assert "no webhook key: set KIE_WEBHOOK_HMAC_KEY." in done.err.splitlines()[1]


async def test_a_wrong_webhook_key(kie_wav) -> None:
    """A callback that our key did not sign settles nothing, and is told of once, without keys."""
    port = free_port()
    ours = "quite-another-webhook-key"
    doubled = Fault(on="callback", kind="doubled")
    async with service(EARLY, doubled) as kie:
        done = await kie_wav(
            *("convert", "m", "a", *SOON, "--listen", f"127.0.0.1:{port}"),
            *("--callback-url", f"http://127.0.0.1:{port}/"),
            kie=kie,
            KIE_WEBHOOK_HMAC_KEY=ours,
        )
        answered = await answers(kie)

    assert (1, "") == (done.code, done.out)
    assert {401} == set(answered)
    assert 1 == done.err.count("refused a callback")
    assert "webhook_keys (KIE_WEBHOOK_HMAC_KEY) lacks the key of KIE's settings" in done.err
    assert ours not in done.err
    assert WEBHOOK_KEY not in done.err


async def test_polling_is_the_safety_net(kie_wav) -> None:
    """A callback that never comes costs time and not the conversion: `status` has the WAV."""
    port = free_port()
    async with service(Fault(on="callback", kind="lost")) as kie:
        waited = await kie_wav(
            *("convert", "m", "a", *SOON, "--listen", f"127.0.0.1:{port}"),
            *("--callback-url", f"http://127.0.0.1:{port}/"),
            kie=kie,
            KIE_WEBHOOK_HMAC_KEY=WEBHOOK_KEY,
        )
        # Taken up again, it is asked for at once.
        again = await kie_wav(
            *("convert", "m", "a", "--json", "--listen", f"127.0.0.1:{port}"),
            *("--callback-url", f"http://127.0.0.1:{port}/"),
            kie=kie,
            KIE_WEBHOOK_HMAC_KEY=WEBHOOK_KEY,
        )

    assert 1 == waited.code
    assert (0, "poll") == (again.code, json.loads(again.out)["settled_by"])


async def test_a_secret_in_the_callback_url(kie_wav) -> None:
    """The query of the callback URL reaches KIE as given, and no message."""
    port = free_port()
    async with service(EARLY) as kie:
        done = await kie_wav(
            *("convert", "m", "a", *AT_ONCE, "--listen", f"127.0.0.1:{port}"),
            *("--callback-url", f"http://127.0.0.1:{port}/?token=not-to-be-seen"),
            kie=kie,
            KIE_WEBHOOK_HMAC_KEY=WEBHOOK_KEY,
        )

    assert 0 == done.code, done
    assert f"for what KIE posts to http://127.0.0.1:{port}/\n" in done.err
    assert "not-to-be-seen" not in done.out + done.err


# --- which options go together ------------------------------------------------------------------

HERE = ("--listen", "127.0.0.1:{port}")
URL = ("--callback-url", ELSEWHERE)
KEYED = {"KIE_WEBHOOK_HMAC_KEY": WEBHOOK_KEY}

REFUSED = [
    (HERE, KEYED, "add --callback-url URL, or set KIE_CALLBACK_URL"),
    (HERE, {"KIE_CALLBACK_URL": ""}, "add --callback-url URL, or set KIE_CALLBACK_URL"),
    ((*HERE, "--callback-url", ""), {"KIE_CALLBACK_URL": ELSEWHERE}, "add --callback-url URL"),
    (URL, KEYED, "add --listen HOST:PORT"),
    (("--listen", "8080", *URL), {}, "'8080' is not HOST:PORT"),
    (("--listen", "", *URL), {}, "'' is not HOST:PORT"),
    (("--listen", ":8080", *URL), {}, "every address of this machine"),
    (("--listen", "::1:8080", *URL), {}, "like 127.0.0.1:8080 or [::1]:8080"),
    (("--listen", "[]:8080", *URL), {}, "is not HOST:PORT"),
    (("--listen", "127.0.0.1:", *URL), {}, "is not HOST:PORT"),
    (("--listen", "127.0.0.1:http", *URL), {}, "is not HOST:PORT"),
    (("--listen", "127.0.0.1:-1", *URL), {}, "is not HOST:PORT"),
    (("--listen", "127.0.0.1:\u0668\u0660", *URL), {}, "is not HOST:PORT"),
    (("--listen", "127.0.0.1:80\n", *URL), {}, "is not HOST:PORT"),
    (("--listen", "\x1b[31m:80", *URL), {}, "is not HOST:PORT"),
    (("--listen", "http://127.0.0.1:80", *URL), {}, "is not HOST:PORT"),
    (("--listen", "127.0.0.1:0", *URL), {}, "port 0 is any free one"),
    (("--listen", "127.0.0.1:65536", *URL), {}, "there is no port 65536"),
    ((*HERE, "--callback-url", "/kie/callback"), {}, "--callback-url (KIE_CALLBACK_URL) must be"),
    ((*HERE, "--callback-url", "https://u:p@x.example/"), {}, "must not hold a user"),
    ((*HERE, "--callback-url", ELSEWHERE + "#x"), {}, "must not have a fragment"),
    ((*HERE, "--callback-url", ELSEWHERE + "?attempt=1"), {}, "'attempt'"),
    (HERE, {"KIE_CALLBACK_URL": "nonsense"}, "(KIE_CALLBACK_URL) must be an absolute"),
    ((*HERE, *URL), {"KIE_WEBHOOK_HMAC_KEY": "not-so-long"}, "KIE_WEBHOOK_HMAC_KEY is shorter"),
    ((*HERE, *URL), {"KIE_WEBHOOK_HMAC_KEY": ","}, "KIE_WEBHOOK_HMAC_KEY holds an empty key"),
    ((*HERE, *URL, "--webhook-key", WEBHOOK_KEY), {}, "No such option"),
]


@pytest.mark.parametrize("json_too", [False, True], ids=["text", "json"])
@pytest.mark.parametrize(
    ("arguments", "environment", "words"), REFUSED, ids=lambda value: repr(value)[:60]
)
async def test_what_does_not_go_together(kie_wav, arguments, environment, words, json_too) -> None:
    """Wrong usage exits with 2 and one sentence, before anything is opened, sent or paid."""
    port = free_port()
    given = [argument.format(port=port) for argument in arguments]
    async with service() as kie:
        done = await kie_wav(
            "convert", "m", "a", *given, *["--json"] * json_too, kie=kie, **environment
        )
        requests = sum(kie.state().requests.values())

    assert 2 == done.code, done
    assert words in done.err
    assert 0 == requests
    sentences = [line for line in done.err.splitlines() if line.startswith(("kie-wav:", "Error:"))]
    assert 1 == len(sentences)
    assert "not-so-long" not in done.err
    assert "\x1b" not in done.err
    assert "listening" not in done.err
    if json_too and sentences[0].startswith("kie-wav:"):
        assert sentences[0] == f"kie-wav: {json.loads(done.out)['error']['message']}"
    else:
        assert "" == done.out


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("127.0.0.1", "address already in use"),
        ("192.0.2.1", "assign requested address"),  # Reserved for documentation.
        ("a..b", "not the name of a host"),
    ],
)
async def test_where_nobody_can_listen(kie_wav, host: str, words: str) -> None:
    """An address that cannot be listened on is told before anything is submitted."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with service() as kie:
            done = await kie_wav(
                *("convert", "m", "a", "--listen", f"{host}:{sock.getsockname()[1]}", *URL),
                kie=kie,
                **KEYED,
            )
            requests = sum(kie.state().requests.values())

    assert (3, "", 0) == (done.code, done.out, requests)
    assert done.err.startswith(f"kie-wav: cannot listen on {host}:")
    assert f"{words}; nothing was submitted\n" in done.err


BROKEN = {"KIE_CALLBACK_URL": "nonsense", "KIE_WEBHOOK_HMAC_KEY": "x"}


@pytest.mark.parametrize("environment", [{"KIE_CALLBACK_URL": ELSEWHERE, **KEYED}, BROKEN])
async def test_not_listening(kie_wav, environment) -> None:
    """Without --listen nobody is told to call back, whatever the environment says."""
    port = free_port()
    there = {"KIE_CALLBACK_URL": f"http://127.0.0.1:{port}/"} if environment is not BROKEN else {}
    async with service() as kie:
        done = await kie_wav("convert", "m", "a", *SOON, kie=kie, **{**environment, **there})
        asked = await kie_wav("credits", kie=kie, **environment)
        state = kie.state()

    assert (1, 0) == (done.code, asked.code)
    assert {"not_sent": 1} == dict(state.callbacks)
    assert "listening" not in done.err


# --- as a process of its own --------------------------------------------------------------------


async def start(*words: str, **environment: str) -> asyncio.subprocess.Process:
    """Start ``kie-wav`` with *words*, and *environment* besides ours."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kie_wav_async", *words),
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "default", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_a_listener_interrupted() -> None:
    """Ctrl-C while a callback is waited for names the task that goes on, and ends the server."""
    port = free_port()
    async with service(median_s=1e6) as kie, asyncio.timeout(LONG_S):
        process = await start(
            *("convert", "m", "a", "--listen", f"127.0.0.1:{port}", *URL),
            KIE_BASE_URL=kie.base_url,
            KIE_API_KEY=KEY,
            **KEYED,
        )
        said = [(await process.stderr.readline()).decode() for _ in range(2)]
        # Answered, not only connected: asyncio loses sight of what it accepts as it closes,
        # and Python would warn of it.
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/") as got:
            status = got.status
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
        task_id = kie.arrivals[0].task_id

    assert [
        f"listening on 127.0.0.1:{port} for what KIE posts to {ELSEWHERE}\n",
        f"submitted: task {task_id}\n",
    ] == said
    assert 405 == status
    assert not is_open(port)
    assert (130, b"") == (process.returncode, out)
    assert f"kie-wav: interrupted; task {task_id} goes on: `kie-wav status {task_id}`\n" == (
        err.decode()
    )


async def test_what_simulate_prints_is_all_it_takes() -> None:
    """The environment that `simulate` prints makes `convert --listen` hear its callback."""
    port = free_port()
    early = json.dumps([{"on": "callback", "kind": "early"}])
    simulator = await start("simulate", "--faults", early)
    try:
        async with asyncio.timeout(LONG_S):
            lines = [(await simulator.stdout.readline()).decode() for _ in range(4)]
            given = dict(re.fullmatch(r"export (\w+)=(\S+)\n", line).groups() for line in lines)
            process = await start(
                *("convert", "m", "a", "--json", *AT_ONCE, "--listen", f"127.0.0.1:{port}"),
                KIE_CALLBACK_URL=f"http://127.0.0.1:{port}/kie/callback",
                **given,
            )
            out, err = await process.communicate()
    finally:
        simulator.terminate()
        await simulator.communicate()

    assert 0 == process.returncode, err
    assert "poll" == json.loads(out)["settled_by"]
