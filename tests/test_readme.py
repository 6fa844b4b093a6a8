"""
The README: what it shows runs, and what it lists is all there is.

Code runs as it stands, against a simulator it knows of from the environment
only. Minutes pass in milliseconds: the simulator's time is fast, and so is the
clock of every session that is not given one.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

import kie_wav_async
from fastclock import FastClock
from kie_wav_async import (
    Conversion,
    OnUnknown,
    PollSchedule,
    RateLimit,
    RetryPolicy,
    Track,
    WavSession,
    errors,
    events,
    testing,
)
from kie_wav_async.cli.commands import cli
from kie_wav_async.session import session as session_session
from kie_wav_async.simulator import Fault, Simulator
from nearby import nearby_media

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import ModuleType

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SPEED = 200.0


def blocks(language: str) -> list[str]:
    """Return the README's code blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def line_of(block: str) -> str:
    """Name the line at which a block begins."""
    return f"line {README[: README.index(block)].count(chr(10)) + 1}"


def first_column(title: str) -> list[str]:
    """Return the names in the first column of the table under a heading."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


PYTHON = blocks("python")
SH = blocks("sh")
SERVICE, CATALOG, _LEDGER, _FILE, CALLBACKS, UNKNOWN = PYTHON[:6]


def run(source: str, **names: object) -> dict[str, Any]:
    """Run *source* as it stands, top-level ``await`` included; return the names it made."""
    code = compile(source, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    space: dict[str, Any] = {"__name__": "readme", **names}
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(code, space))  # noqa: S307 - the README is ours
    else:
        exec(code, space)  # noqa: S102 - the README is ours
    return space


@pytest.fixture
async def kie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Simulator]:
    """Give a simulator that the environment names, in an empty folder."""
    async with Simulator(time_scale=SPEED) as simulator:
        monkeypatch.setenv("KIE_BASE_URL", simulator.base_url)
        monkeypatch.setenv("KIE_API_KEY", simulator.api_key)
        monkeypatch.setattr(session_session, "SystemClock", lambda: FastClock(SPEED))
        monkeypatch.setattr(session_session, "FileClient", nearby_media)
        monkeypatch.chdir(tmp_path)
        yield simulator


def example(name: str) -> ModuleType:
    """Import one of the examples."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.asynccontextmanager
async def serve(app: web.Application) -> AsyncIterator[str]:
    """Serve *app* and give its address."""
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def ask(app: web.Application, path: str) -> tuple[int, dict[str, Any]]:
    """Serve *app* for one request."""
    (told,) = await ask_all(app, path)
    return told


async def ask_all(app: web.Application, *paths: str) -> list[tuple[int, dict[str, Any]]]:
    """Serve *app* for one request after another."""
    told: list[tuple[int, dict[str, Any]]] = []
    async with serve(app) as url, aiohttp.ClientSession() as http:
        for path in paths:
            async with http.get(url + path) as got:
                told.append((got.status, await got.json()))
    return told


# --- code -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kie")
@pytest.mark.parametrize(
    "source", PYTHON, ids=lambda source: f"line{README[: README.index(source)].count(chr(10)) + 1}"
)
async def test_a_python_block_runs(source: str) -> None:
    """Every Python block of the README runs as it stands."""
    await asyncio.to_thread(run, source)


def test_a_catalog_needs_ten_lines() -> None:
    """A catalog is converted in ten lines of code at the most."""
    assert 10 >= sum(bool(line.strip()) for line in CATALOG.splitlines())


async def test_the_service_serves(kie: Simulator) -> None:
    """The README's service answers a request with the URL of a WAV."""
    status, told = await ask(run(SERVICE)["app"], "/wav/5c79be8e/e231")

    assert (200, 1) == (status, kie.charges)
    assert told["url"].startswith(f"{kie.base_url}/s/")


async def test_the_callback_route_takes_callbacks(kie: Simulator) -> None:
    """The README's route takes a genuine callback, and none that is signed with another key."""
    assert kie.base_url
    key = re.findall(r'webhook_keys="([^"]+)"', CALLBACKS)[0]
    statuses = []
    async with serve(run(CALLBACKS)["app"]) as url, aiohttp.ClientSession() as http:
        for one in (key, key.upper()):
            headers, body = testing.signed_callback("5c79", key=one)
            async with http.post(f"{url}/kie/callback", data=body, headers=headers) as got:
                statuses.append(got.status)

    assert [200, 401] == statuses


async def test_the_catalog_is_converted(kie: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """The README's catalog prints the URL of every track's WAV, and pays once for each."""
    await asyncio.to_thread(run, CATALOG)

    lines = capsys.readouterr().out.splitlines()
    assert 4 == len(lines) == kie.charges
    line = r"Tone \d+ Hz, take [12] http://127.0.0.1:\d+/s/[0-9a-f]+\.wav"
    assert all(re.fullmatch(line, one) for one in lines), lines


async def test_the_doubt_is_told(kie: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """The README's way out of a doubt is taken when an answer is lost."""
    kie.set_faults([Fault(on="submit", kind="hangup", when="after")])
    await asyncio.to_thread(run, UNKNOWN)

    assert capsys.readouterr().out.startswith("Is it in KIE's logs? Track(")
    assert 1 == kie.charges


async def test_the_commands_run(kie: Simulator, tmp_path: Path) -> None:
    """The README's commands run in a shell, and leave the file they name."""
    async with WavSession() as session:
        # The commands keep the machine's time; a track that was converted before comes at once.
        await session.convert(Track("5c79be8e", "e231"))
    (tmp_path / "tracks.csv").write_text("music_task_id,audio_id\n5c79be8e,e231\n")
    for block in SH[2:]:
        shell = await asyncio.create_subprocess_exec(
            *("sh", "-eu", "-c", block),
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, err = await shell.communicate()
        assert 0 == shell.returncode, err.decode()

    assert out.decode().endswith("\nsong.wav\n")
    assert (tmp_path / "song.wav").read_bytes().startswith(b"RIFF")
    assert 1 == kie.charges


def test_the_two_commands_of_the_quick_start() -> None:
    """The first two sh blocks are complete: each makes its environment, installs, and runs."""
    for block, extra, last in ((SH[0], "cli", "kie-wav demo"), (SH[1], "dev", "python -m pytest")):
        assert [
            "python3 -m venv .venv",
            f".venv/bin/python -m pip install -e '.[{extra}]'",
            f".venv/bin/{last}",
        ] == block.splitlines()
    start = README.split("## ")[1]
    assert start.startswith("Quick start\n")
    assert 2 == start.count("```sh\n")


# --- examples ---------------------------------------------------------------------------------


async def test_the_example_service(kie: Simulator) -> None:
    """The example service converts, and has a status for what cannot be converted."""
    module = example("web_service")

    assert 200 == (await ask(module.make_app(), "/wav/5c79be8e/e231"))[0]
    assert 400 == (await ask(module.make_app(), "/wav/5c79be8e/e%20231"))[0]
    kie.set_faults([Fault(on="submit", kind="code", code=422)])
    assert 404 == (await ask(module.make_app(), "/wav/5c79be8e/e232"))[0]
    kie.set_faults([Fault(on="submit", kind="hangup", when="after")])
    status, told = await ask(module.make_app(), "/wav/5c79be8e/e233")
    assert 502 == status
    assert "may have been charged" in told["error"]


async def test_the_example_service_does_not_wait_for_ever(kie: Simulator, monkeypatch) -> None:
    """A request to the example service that has waited long enough is told to ask again."""
    kie.set_faults([Fault(on="conversion", kind="never")])
    module = example("web_service")
    monkeypatch.setattr(module, "WAIT_S", 0.05)

    status, told = await ask(module.make_app(), "/wav/5c79be8e/e231")

    assert (202, "not finished yet: ask again") == (status, told["error"])


async def test_the_example_service_cancels_what_is_still_queued(
    kie: Simulator, monkeypatch
) -> None:
    """A request that ends while its submit is queued has sent nothing; one in progress goes on."""
    kie.set_faults([Fault(on="conversion", kind="never")])
    module = example("web_service")
    monkeypatch.setattr(module, "WAIT_S", 0.05)
    app = module.make_app()
    app[module.SESSION] = session = WavSession(rate_limit=RateLimit(1, per_s=1_000.0))
    paths = [f"/wav/m/{name}" for name in ("sent", "queued", "sent", "queued")]

    assert [202] * 4 == [status for status, _ in await ask_all(app, *paths)]
    assert ["sent"] == [arrival.audio_id for arrival in kie.arrivals]
    assert (1, 1) == (kie.charges, session.statistics().submitted)


@pytest.mark.parametrize("promise", ["README", "submit", "convert", "Conversion", "web_service"])
def test_where_a_conversion_goes_on_it_is_said_when_not(promise: str) -> None:
    """Wherever it is promised that a conversion goes on, it is said that a queued one does not."""
    texts = {
        "README": README.partition("A client that hangs up")[2],
        "submit": WavSession.submit.__doc__,
        "convert": WavSession.convert.__doc__,
        "Conversion": Conversion.__doc__,
        "web_service": example("web_service").__doc__,
    }

    assert re.search(r"still\s+queued.*\s+cancelled", texts[promise], re.DOTALL)


async def test_the_example_catalog(
    kie: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example catalog writes a row for every track, and prints every task it paid for."""
    source, target = tmp_path / "tracks.csv", tmp_path / "urls.csv"
    source.write_text("music_task_id,audio_id\n" + "".join(f"m,{n}\n" for n in range(5)))
    kie.set_faults([Fault(on="conversion", kind="fail", audio_id="3")])

    await example("catalog").convert(source, target)

    out = capsys.readouterr().out
    rows = target.read_text().splitlines()
    assert 6 == len(rows)
    assert 4 == target.read_text().count(".wav,")
    assert 5 == out.count("submitted ")
    assert "5 <= charged <= 5\n" in out
    assert 5 == kie.charges


async def test_the_example_of_a_lost_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """The example of a lost answer ends with one charge."""
    await example("lost_answer").main()

    assert "accepted 1, unknown 0, charged 1\n" in capsys.readouterr().out


def test_an_example_is_a_program() -> None:
    """The example that needs no key runs as its docstring says."""
    done = subprocess.run(
        [sys.executable, "examples/lost_answer.py"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert "charged 1\n" in done.stdout


# --- lists ------------------------------------------------------------------------------------


def test_every_keyword_is_listed() -> None:
    """The configuration table has every keyword of `WavSession`, in order, with its default."""
    parameters = inspect.signature(WavSession).parameters
    shown = {
        name: re.findall(rf"^\| `{name}` \| `([^`]*)` \|", README, re.MULTILINE)
        for name in parameters
    }
    # What the session puts in place of None, which the signature does not tell.
    instead = {"rate_limit": RateLimit(20, per_s=10.0), "poll": PollSchedule()}
    for name, default in instead.items():
        assert default == parameters[name].default

    assert list(parameters) == first_column("Configuration")
    for name, parameter in parameters.items():
        if name == "callback_trust":
            assert ["CallbackTrust.PAYLOAD"] == shown[name]
        elif name in {"rate_limit", "poll", "retry", "on_unknown"}:
            made = eval(shown[name][0], vars(kie_wav_async))  # noqa: S307 - the README is ours
            assert made == instead.get(name, RetryPolicy() if name == "retry" else OnUnknown.RAISE)
        else:
            assert [repr(parameter.default)] == shown[name]


def test_every_error_is_listed() -> None:
    """The errors table has every error but the root."""
    assert sorted(set(errors.__all__) - {"KieWavError"}) == sorted(first_column("Errors"))


def test_every_event_is_named() -> None:
    """The README names every kind of event."""
    assert [] == [name for name in set(events.__all__) - {"Event"} if f"`{name}`" not in README]


def test_every_command_is_listed() -> None:
    """The table of commands has every command."""
    assert sorted(cli.commands) == sorted(first_column("The command line"))


def test_every_link_leads_somewhere() -> None:
    """Links within the repository lead to files and headings that exist."""
    headings = {
        re.sub(r"\W+", "-", line.lower()) for line in re.findall(r"^## (.*)$", README, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings
        else:
            assert (REPOSITORY / target).is_file(), target


# --- docstrings -------------------------------------------------------------------------------


def docstring_blocks() -> list[tuple[str, str]]:
    """Find the code in the package's docstrings: what is indented after ``::``."""
    found: list[tuple[str, str]] = []
    for path in sorted((REPOSITORY / "kie_wav_async").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                for block in re.findall(r"^::\n\n((?:(?: {4}.*)?\n)+)", text + "\n", re.MULTILINE):
                    name = f"{path.stem}-{getattr(node, 'name', 'module')}"
                    found.append((name, textwrap.dedent(block)))
    return found


DOCSTRINGS = docstring_blocks()


def test_docstrings_have_code() -> None:
    """The package, the session, the batch and the testing module each show some code."""
    assert {
        "__init__-module",
        "session-WavSession",
        "batch-Batch",
        "testing-module",
    } <= {name for name, _ in DOCSTRINGS}


@pytest.mark.usefixtures("kie")
@pytest.mark.parametrize(("name", "source"), DOCSTRINGS, ids=[name for name, _ in DOCSTRINGS])
async def test_a_docstring_block_runs(name: str, source: str) -> None:
    """Code in a docstring runs as it stands, given the names the text around it speaks of."""
    assert name

    async def given() -> None:
        space = {**vars(kie_wav_async), **vars(testing), "__name__": "docstring"}
        async with WavSession() as session:
            space |= {"session": session, "tracks": [Track("m", str(n)) for n in range(3)]}
            code = compile(source, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            await eval(code, space)  # noqa: S307 - the docstring is ours

    await asyncio.to_thread(asyncio.run, given())
