"""docs/architecture.md: both walks go where the page says, in its order."""

from __future__ import annotations

import ast
import asyncio
import importlib
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from fakes import LISTENING_AT, WEBHOOK_KEY, FakeService, track
from kie_wav_async.testing import FakeClock, MemoryLedger
from kie_wav_async.webhook import add_callback_route

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
STOP = re.compile(r"^\d+\. `([\w.]+)` \(`([\w/.]+)`\): ", re.MULTILINE)


def walk(title: str) -> list[tuple[str, str]]:
    """Return the stops of a walk: what is called, and the module it is in."""
    _, _, rest = PAGE.partition(f"\n## {title}\n")
    return STOP.findall(rest.partition("\n## ")[0])


WALKS = {title: walk(title) for title in ("A submit", "A callback")}
STOPS = sorted({path for stops in WALKS.values() for _, path in stops})


def code_of(name: str, path: str) -> CodeType:
    """Return the code of a function that the page names."""
    found: object = importlib.import_module(
        f"kie_wav_async.{path.removesuffix('.py').replace('/', '.')}"
    )
    for part in name.split("."):
        found = getattr(found, part)
    return found.__code__


@contextmanager
def watched() -> Iterator[list[CodeType]]:
    """Give what was called, in order."""
    called: list[CodeType] = []

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            called.append(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield called
    finally:
        sys.setprofile(before)


def is_walked(stops: list[tuple[str, str]], called: list[CodeType]) -> bool:
    """Return whether the stops were called in their order, whatever was called between."""
    rest = iter(called)
    return all(code_of(*stop) in rest for stop in stops)


@pytest.mark.parametrize("title", WALKS)
def test_a_walk_has_at_most_ten_stops(title: str) -> None:
    """Each walk can be read in one sitting."""
    assert 5 <= len(WALKS[title]) <= 10
    assert [str(n) for n in range(1, len(WALKS[title]) + 1)] == re.findall(
        r"^(\d+)\. ", PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0], re.MULTILINE
    )


@pytest.mark.parametrize("path", STOPS)
def test_no_stop_is_long(path: str) -> None:
    """A stop has 400 lines of code at most, without docstrings, comments and blank lines."""
    tree = ast.parse((ROOT / "kie_wav_async" / path).read_text("utf-8"))
    lines: set[int] = set()
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and not is_text:
            end = node.end_lineno if not hasattr(node, "body") else node.lineno
            lines.update(range(node.lineno, (end or node.lineno) + 1))
    assert len(lines) <= 400


async def test_a_submit_goes_the_way_of_the_page() -> None:
    """The stops of a submit are called in the order of the page."""
    clock = FakeClock()
    service = FakeService(clock)
    async with service.session(ledger=MemoryLedger()) as session:
        with watched() as called:
            await clock.run(session.convert(track()))

    assert is_walked(WALKS["A submit"], called)
    assert not is_walked(WALKS["A submit"][::-1], called)


async def test_a_callback_goes_the_way_of_the_page() -> None:
    """The stops of a callback are called in the order of the page."""
    clock = FakeClock()
    service = FakeService(clock)
    app = web.Application()
    async with service.session(
        callback_url=LISTENING_AT, webhook_keys=WEBHOOK_KEY, ledger=MemoryLedger()
    ) as session:
        add_callback_route(app, session)
        conversion = await clock.run(session.submit(track()))
        waiting = asyncio.ensure_future(conversion.wait())
        await clock.run_pending()
        callback = service.callback(conversion.task_id)
        async with TestServer(app) as server, aiohttp.ClientSession() as client:
            url = server.make_url("/kie/callback").with_query(callback.query)
            with watched() as called:
                async with client.post(url, data=callback.body, headers=callback.headers) as answer:
                    assert 200 == answer.status
                wav = await waiting

    assert "callback" == wav.settled_by
    assert is_walked(WALKS["A callback"], called)
    assert not is_walked(WALKS["A callback"][::-1], called)
