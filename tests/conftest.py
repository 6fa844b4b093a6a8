"""
What holds for every test: nothing fails unseen and nothing is left over.

The loop of an async test runs in asyncio's debug mode (``asyncio_debug`` in
pyproject.toml). A test that passed fails all the same if the loop was told of an
exception nobody handled, if a task still runs, or if a file descriptor, and so
a socket, is still open. Rubbish is collected after each async test, so that a
coroutine never awaited, an exception never retrieved and a transport never
closed are the failure of the test that made them and not of a later one.
"""

from __future__ import annotations

import asyncio.constants
import functools
import gc
import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import pytest_asyncio

from kie_wav_async.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator

_PASSED = pytest.StashKey[bool]()
_FDS = Path("/proc/self/fd")

# A transport that was closed lets go of its socket in a later turn of the loop.
_TURNS_TO_CLOSE = 5

# As many as the clock gives; and in one without anything ready a socket may become it.
_TURNS_TO_SETTLE = 25
_IDLE_TURNS = 2

# Repeatable unless asked otherwise: HYPOTHESIS_PROFILE=thorough looks further.
hypothesis.settings.register_profile("fast", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    "thorough", max_examples=2_000, deadline=None, print_blob=True, database=None
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

# Debug mode notes a stack for each future, task and callback: of some sixty lines, which
# was half the time of many tests. Three say where it was made; PYTHONASYNCIODEBUG=1 has all.
if not os.environ.get("PYTHONASYNCIODEBUG"):
    asyncio.constants.DEBUG_STACK_DEPTH = 3
    traceback.extract_stack.__defaults__ = (None, 3)  # Asked without a limit, from C.


@functools.wraps(FakeClock.run_pending)
async def _settle(_: FakeClock) -> None:
    """
    Let the loop do what can be done, and look whether anything is left to do.

    The clock itself may not look into a loop it does not know, and gives it the
    same number of turns each time: nine of ten were for nothing.
    """
    ready = asyncio.get_running_loop()._ready
    idle = 0
    for _ in range(_TURNS_TO_SETTLE):
        await asyncio.sleep(0)
        idle = 0 if ready else idle + 1
        if idle == _IDLE_TURNS:
            break


# The tests of the clock take it back.
FakeClock.run_pending = _settle


def pytest_configure() -> None:
    """Keep the developer's own key and settings out of the tests."""
    for name in [name for name in os.environ if name.startswith("KIE_")]:
        del os.environ[name]


@pytest.fixture(autouse=True, scope="module")
def _cheap_collections() -> None:
    """
    Take what is there before a file's first fixture out of every later collection.

    What the imports and the earlier files left for good, such as pytest's reports,
    adds up to a tenth of a second for each collection, and there is one a test.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Remember whether the test passed: a failed one holds on to what its traceback shows."""
    if call.when == "call":
        item.stash[_PASSED] = call.excinfo is None
    return (yield)


@pytest_asyncio.fixture
async def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@pytest.fixture(autouse=True)
def nothing_left_over(request: pytest.FixtureRequest) -> Iterator[None]:
    """
    Fail a passed test for what it left behind.

    Being automatic and of the narrowest scope, it is set up after the fixtures
    of wider scope, whose sockets may stay, and torn down after all others.
    """
    unhandled: list[dict[str, Any]] = []
    loop: asyncio.AbstractEventLoop | None = None
    if pytest_asyncio.is_async_test(request.node):
        loop = request.getfixturevalue("_loop")
        loop.set_exception_handler(lambda _, context: unhandled.append(context))
    before = _open_fds()

    yield

    if not request.node.stash.get(_PASSED, False):
        return
    complaints: list[str] = []
    if loop is not None:
        for _ in range(_TURNS_TO_CLOSE):
            loop.run_until_complete(asyncio.sleep(0))
        tasks = asyncio.all_tasks(loop)
        complaints += [f"still running: {task!r}" for task in tasks]
        del tasks
        # Coroutines and tasks keep each other alive, hence not left to reference
        # counts. Thousands of sync tests do without.
        gc.collect()
        complaints += [f"unhandled in the loop: {context!r}" for context in unhandled]
    complaints += [f"still open: {target}" for target in sorted(_open_fds() - before)]
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


def _open_fds() -> set[str]:
    """Name what is open, as ``"7 socket:[4711]"``; nothing where there is no /proc."""
    if not _FDS.is_dir():
        return set()
    found: set[str] = set()
    for fd in _FDS.iterdir():
        try:
            found.add(f"{fd.name} {fd.readlink()}")
        except FileNotFoundError:
            continue  # The one that listed the folder.
    return found
