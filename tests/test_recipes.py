"""
docs/callbacks.md: each recipe receives callbacks as it stands.

They are run against a simulator they know of from the environment, which calls
them back over loopback. Its time is fast, and so is the clock of their sessions.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import socket
import sys
import threading
import types
from pathlib import Path
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, make_server

import aiohttp
import pytest
from aiohttp import web
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.urls import clear_url_caches

from fastclock import FastClock
from kie_wav_async import Track, WavSession
from kie_wav_async.session import session as session_session
from kie_wav_async.simulator import Simulator
from kie_wav_async.testing import signed_callback
from receivers import PATH, Served, run_aiohttp, run_asgi, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = (REPOSITORY / "docs" / "callbacks.md").read_text(encoding="utf-8")
SPEED = 200.0
KEY = "a-key-of-the-recipes"
LIMIT = 65_536


def blocks() -> dict[str, list[str]]:
    """Return the page's Python blocks by the heading they stand under."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^#{2,3} ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        if python := re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            found[title] = python
    return found


BLOCKS = blocks()
RECEIVING, FLASK, DJANGO, COLLECT = BLOCKS["Verify, store, answer"]
numbers = itertools.count(1)


def load(source: str, name: str = "") -> types.ModuleType:
    """Import a block as a module."""
    module = types.ModuleType(name or f"recipe{next(numbers)}")
    sys.modules[module.__name__] = module
    exec(compile(source, f"callbacks.md, {module.__name__}", "exec"), vars(module))  # noqa: S102 - the page is ours
    return module


@pytest.fixture
async def kie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Simulator]:
    """Give a simulator that the environment names, in an empty folder; forget what was loaded."""
    before = set(sys.modules)
    async with Simulator(time_scale=SPEED, webhook_key=KEY) as simulator:
        monkeypatch.setenv("KIE_BASE_URL", simulator.base_url)
        monkeypatch.setenv("KIE_API_KEY", simulator.api_key)
        monkeypatch.setenv("KIE_WEBHOOK_HMAC_KEY", KEY)
        monkeypatch.setattr(session_session, "SystemClock", lambda: FastClock(SPEED))
        monkeypatch.chdir(tmp_path)
        yield simulator
    for name in set(sys.modules) - before:
        if name.startswith(("recipe", "receiving")):
            del sys.modules[name]


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Give a socket that listens already, whose address is the callback URL."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        monkeypatch.setenv("KIE_CALLBACK_URL", f"http://127.0.0.1:{port}{PATH}")
        yield sock


async def ask(http: aiohttp.ClientSession, url: str) -> dict[str, str]:
    """Return what a service tells."""
    async with http.get(url) as answer:
        assert 200 == answer.status, await answer.text()
        return await answer.json()


async def refusals(url: str) -> dict[str, tuple[int, str]]:
    """Return what a receiver says to what it should refuse."""
    genuine = signed_callback("nobody", key=KEY)
    stale = signed_callback("nobody", key=KEY, now_unix_s=1_700_000_000)
    forged = signed_callback("nobody", key="z" * 20)
    long = b'{"taskId": "nobody"}' + b" " * LIMIT
    asked = {
        "genuine": ("POST", genuine.headers, genuine.body),
        "stale": ("POST", stale.headers, stale.body),
        "forged": ("POST", forged.headers, forged.body),
        "unsigned": ("POST", {}, genuine.body),
        "unreadable": ("POST", genuine.headers, b"nonsense"),
        "long": ("POST", genuine.headers, long),
        "encoded": ("POST", {**genuine.headers, "Content-Encoding": "gzip"}, genuine.body),
        "get": ("GET", genuine.headers, b""),
    }
    answers = {}
    async with aiohttp.ClientSession() as http:
        for name, (method, headers, body) in asked.items():
            async with http.request(method, url, headers=headers, data=body) as answer:
                text = (await answer.read()).decode() if answer.status in {200, 401} else ""
                answers[name] = answer.status, text
    return answers


def right(received: str = '{"status":"received"}') -> dict[str, tuple[int, str]]:
    """Return what each receiver should say."""
    return {
        "genuine": (200, received),
        "stale": (401, ""),
        "forged": (401, ""),
        "unsigned": (401, ""),
        "unreadable": (400, ""),
        "long": (413, ""),
        "encoded": (415, ""),
        "get": (405, ""),
    }


# --- asyncio --------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", ["aiohttp", "FastAPI", "Starlette"])
async def test_a_service_is_called_back(
    kie: Simulator, listener: socket.socket, framework: str
) -> None:
    """The service of the recipe converts, and what KIE posts to it is received."""
    (source,) = BLOCKS[framework]
    module = load(source)
    run = run_aiohttp if framework == "aiohttp" else run_asgi
    async with run(module.app, sock=listener) as served, aiohttp.ClientSession() as http:
        told = await ask(http, f"http://127.0.0.1:{served.port}/wav/5c79/e231")
        await until(lambda: kie.deliveries)

        assert right() == await refusals(served.url)

    assert told["url"].startswith(kie.base_url)
    assert [200] == [delivery.status for delivery in kie.deliveries]
    assert 0 == module.session.statistics().in_flight


async def test_the_example_service_is_called_back(kie: Simulator, listener: socket.socket) -> None:
    """The example service receives callbacks if the environment says where."""
    source = (REPOSITORY / "examples" / "web_service.py").read_text(encoding="utf-8")
    app = load(source).make_app()
    async with run_aiohttp(app, sock=listener) as served, aiohttp.ClientSession() as http:
        told = await ask(http, f"http://127.0.0.1:{served.port}/wav/5c79/e231")
        await until(lambda: kie.deliveries)

        assert right() == await refusals(served.url)

    assert told["url"].startswith(kie.base_url)
    assert [200] == [delivery.status for delivery in kie.deliveries]


async def test_a_script_is_called_back(
    kie: Simulator, listener: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script of the recipe converts, and its server receives what KIE posts."""
    (source,) = BLOCKS["A script without a server"]
    port = listener.getsockname()[1]
    listener.close()
    await load(source).main(port)

    assert capsys.readouterr().out.startswith(kie.base_url)
    # Whether the callback or a poll brought it: the server was there to be asked.
    assert {delivery.status for delivery in kie.deliveries} <= {200}


async def test_any_other_framework(kie: Simulator, listener: socket.socket) -> None:
    """The function of the recipe answers for a framework this package has never heard of."""
    (source,) = BLOCKS["Any other framework"]
    module = load(source)

    async def handle(request: web.Request) -> web.Response:
        if request.method != "POST":
            return web.Response(status=405)
        if "Content-Encoding" in request.headers:
            return web.Response(status=415)
        status, body = await module.kie_callback(
            request.raw_headers, await request.read(), request.rel_url.raw_query_string
        )
        return web.Response(status=status, body=body)

    app = web.Application(client_max_size=LIMIT)
    app.router.add_route("*", PATH, handle)
    genuine = signed_callback("nobody", key=KEY)
    async with run_aiohttp(app, sock=listener) as served:
        async with module.session as session:
            assert (await session.convert(Track("5c79", "e231"))).url
            await until(lambda: kie.deliveries)
            assert right() == await refusals(served.url)
        assert (503, b"") == await module.kie_callback(genuine.headers, genuine.body, "")

    assert [200] == [delivery.status for delivery in kie.deliveries]


# --- WSGI -----------------------------------------------------------------------------------


class Quiet(WSGIRequestHandler):
    """A handler that writes no log."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.asynccontextmanager
async def run_wsgi(app: object, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    """Run a WSGI application in a thread, and have KIE post to it."""
    server = make_server("127.0.0.1", 0, app, handler_class=Quiet)
    served = Served(server.server_port)
    monkeypatch.setenv("KIE_CALLBACK_URL", served.url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        await asyncio.to_thread(server.shutdown)
        thread.join()
        server.server_close()


def flask_app() -> object:
    """Return the recipe's Flask application."""
    return load(FLASK).app


def django_app() -> object:
    """Return the recipe's Django application."""
    load(DJANGO, "recipe_views")
    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF="recipe_views", SECRET_KEY="s", USE_TZ=True
        )
    clear_url_caches()  # The views of an earlier test.
    return get_wsgi_application()


@pytest.mark.parametrize(
    ("make", "received"),
    [(flask_app, '{"status":"received"}\n'), (django_app, '{"status": "received"}')],
    ids=["Flask", "Django"],
)
async def test_a_standing_receiver(
    kie: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make,
    received: str,
) -> None:
    """A WSGI program verifies, stores and answers; a session follows what was stored, later."""
    receiving = load(RECEIVING, "receiving")
    async with run_wsgi(make(), monkeypatch) as served:
        async with WavSession() as session:
            conversion = await session.submit(Track("5c79", "e231"))
            await until(lambda: kie.deliveries)
        assert [200] == [delivery.status for delivery in kie.deliveries]
        assert [conversion.task_id] == receiving.due()

        assert right(received) == await refusals(served.url)
        assert {conversion.task_id, "nobody"} == set(receiving.due())

    await load(COLLECT).collect()

    told = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert told[conversion.task_id].startswith(kie.base_url)
    assert "nobody" in told
    assert [] == receiving.due()


@pytest.mark.parametrize("make", [flask_app, django_app], ids=["Flask", "Django"])
@pytest.mark.usefixtures("kie")
async def test_a_doubled_header_is_refused_under_wsgi(
    monkeypatch: pytest.MonkeyPatch, make
) -> None:
    """Two signatures reach a WSGI program as one that is none."""
    receiving = load(RECEIVING, "receiving")
    genuine = signed_callback("nobody", key=KEY)
    async with run_wsgi(make(), monkeypatch) as served, aiohttp.ClientSession() as http:
        for doubled in (["genuine", "A" * 44], ["A" * 44, "genuine"], ["genuine"] * 2):
            signature = genuine.headers["X-Webhook-Signature"]
            headers = [
                ("X-Webhook-Timestamp", genuine.headers["X-Webhook-Timestamp"]),
                *(
                    ("X-Webhook-Signature", signature if value == "genuine" else value)
                    for value in doubled
                ),
            ]
            async with http.post(served.url, headers=headers, data=genuine.body) as answer:
                assert 401 == answer.status

    assert [] == receiving.due()


async def test_handing_on_to_a_session(kie: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session in a thread of its own is handed what a WSGI program receives."""
    (source,) = BLOCKS["Handing on to a session"]
    late = Late()
    async with run_wsgi(late, monkeypatch) as served, aiohttp.ClientSession() as http:
        module = load(source)
        late.app = module.app
        told = await ask(http, f"http://127.0.0.1:{served.port}/wav/5c79/e231")
        await until(lambda: kie.deliveries)

        assert right('{"status":"received"}\n') == await refusals(served.url)
        await asyncio.to_thread(module.close)
        await until(lambda: not module.loop.is_running())
        module.loop.close()

    assert told["url"].startswith(kie.base_url)
    assert [200] == [delivery.status for delivery in kie.deliveries]
    figures = module.session.statistics()
    assert 1 == figures.settled_by_callback + figures.settled_by_poll


class Late:
    """An application that is there once its address is known."""

    app: object = None

    def __call__(self, environ, start_response):
        """Pass the request on."""
        return self.app(environ, start_response)


# --- the page -------------------------------------------------------------------------------


def test_every_block_is_run() -> None:
    """The page has no Python block that these tests do not run."""
    assert {
        "aiohttp": 1,
        "A script without a server": 1,
        "FastAPI": 1,
        "Starlette": 1,
        "Any other framework": 1,
        "Verify, store, answer": 4,
        "Handing on to a session": 1,
    } == {title: len(found) for title, found in BLOCKS.items()}
    assert 10 == PAGE.count("```python\n")


def test_every_link_leads_somewhere() -> None:
    """Links of the page lead to headings of its own, or to files and headings beside it."""

    def anchors(text: str) -> set[str]:
        titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}

    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert links
    for link in links:
        name, _, anchor = link.partition("#")
        target = REPOSITORY / "docs" / name if name else REPOSITORY / "docs" / "callbacks.md"
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link
