"""The net every other test is under: each hole a test could leave is caught by it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

LEAKS = """
import asyncio
import os
import socket

kept = []


async def boom():
    raise ValueError("boom")


async def test_task_left_running():
    kept.append(asyncio.create_task(asyncio.sleep(99)))


async def test_coroutine_never_awaited():
    boom()


async def test_coroutine_in_a_cycle():
    cycle = []
    cycle += [cycle, boom()]


async def test_exception_never_retrieved():
    asyncio.create_task(boom())
    await asyncio.sleep(0)


async def test_callback_raises():
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)


async def test_server_left_open():
    kept.append(await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0))


async def test_transport_never_closed():
    here, there = socket.socketpair()
    kept.append(there)
    await asyncio.open_connection(sock=here)


def test_socket_left_open():
    kept.append(socket.socket())


def test_file_left_open():
    kept.append(os.open(os.devnull, os.O_RDONLY))


def test_socket_never_closed():
    socket.socket()
"""

CLEAN = """
import asyncio
import socket

import pytest


@pytest.fixture(scope="module")
def wide():
    with socket.socket() as opened:
        yield opened


@pytest.fixture
async def server():
    async with await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0) as opened:
        yield opened


async def test_debug_mode():
    assert asyncio.get_running_loop().get_debug()


async def test_wide_fixture_may_stay_open(wide):
    pass


async def test_closed_in_time(server):
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.close()
    await asyncio.to_thread(sum, [1])


async def test_expected_cancellation():
    task = asyncio.create_task(asyncio.sleep(99))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
"""


def run(folder: Path, source: str) -> str:
    """Run *source* as a test file under this project's settings and conftest."""
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    tests = folder / "tests"
    tests.mkdir()
    shutil.copy(REPOSITORY / "tests" / "conftest.py", tests)
    (tests / "test_it.py").write_text(source, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider"],
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1", "PYTEST_ADDOPTS": ""},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout


@pytest.fixture(scope="module")
def leaks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the report of a run of all the leaking tests."""
    return run(tmp_path_factory.mktemp("leaks"), LEAKS)


@pytest.mark.parametrize("name", re.findall(r"def (test_\w+)", LEAKS))
def test_a_leak_fails_its_test(leaks: str, name: str) -> None:
    """A test that leaves something behind fails, and not a later one in its place."""
    if not Path("/proc/self/fd").is_dir() and name.endswith("left_open"):
        pytest.skip("open descriptors are only seen where there is a /proc")

    assert re.search(rf"^(ERROR|FAILED) tests/test_it.py::{name}\b", leaks, re.MULTILINE)


def test_a_clean_test_passes(tmp_path: Path) -> None:
    """A test that closes what it opened is left alone, wider fixtures included."""
    report = run(tmp_path, CLEAN)

    assert re.search(r"= 4 passed in", report), report
