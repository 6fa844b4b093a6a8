"""The ASGI application: what its protocol asks for beyond answering callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections import deque

import aiohttp
import attrs
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from fakes import FakeService, counted
from kie_wav_async.testing import FakeClock
from kie_wav_async.webhook import asgi_app, request_handler
from receivers import PATH, run_asgi


@attrs.define
class Stage:
    """A server that plays a script to an application and keeps what it is sent."""

    app: object
    script: deque[dict[str, object]]
    sent: list[dict[str, object]] = attrs.field(factory=list)
    received: int = 0

    async def play(self, **scope: object) -> list[dict[str, object]]:
        given = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", **scope}
        await self.app(given, self._receive, self._send)
        return self.sent

    async def _receive(self) -> dict[str, object]:
        self.received += 1
        if not self.script:
            await asyncio.get_running_loop().create_future()
        return self.script.popleft()

    async def _send(self, message: dict[str, object]) -> None:
        self.sent.append(message)


def part(body: bytes, *, more: bool = False) -> dict[str, object]:
    """Return a part of a request's body."""
    return {"type": "http.request", "body": body, "more_body": more}


@contextlib.asynccontextmanager
async def staged(*script: dict[str, object]):
    """Give an application on a stage, its service, and a genuine callback."""
    service = FakeService(FakeClock())
    async with service.listening() as session:
        yield Stage(asgi_app(session), deque(script)), session, service.callback("genuine")


def scope_of(delivery, **changes: object) -> dict[str, object]:
    """Return the scope in which a delivery arrives."""
    headers = [(name.lower().encode(), value.encode()) for name, value in delivery.headers.items()]
    return {
        "method": "POST",
        "path": PATH,
        "headers": headers,
        "query_string": delivery.query.encode(),
        **changes,
    }


def status_of(sent: list[dict[str, object]]) -> object:
    """Return the status of the one answer sent, which must be a whole one."""
    start, body = sent
    assert ("http.response.start", "http.response.body") == (start["type"], body["type"])
    assert not body.get("more_body")
    return start["status"]


async def test_a_life_is_begun_and_ended() -> None:
    """Run alone the application takes part in the server's start and stop."""
    script = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    async with staged(*script) as (stage, _, _):
        sent = await stage.play(type="lifespan")

    assert [
        {"type": "lifespan.startup.complete"},
        {"type": "lifespan.shutdown.complete"},
    ] == sent


async def test_a_websocket_is_closed() -> None:
    """Whoever wants a websocket is turned away."""
    async with staged({"type": "websocket.connect"}) as (stage, session, _):
        sent = await stage.play(type="websocket", path=PATH, headers=[])
        assert {} == counted(session)

    assert [{"type": "websocket.close"}] == sent
    assert 1 == stage.received  # A server may insist on being asked first.


async def test_an_unknown_scope_is_an_error() -> None:
    """A server that asks for what nobody knows is told so, and not answered at random."""
    async with staged() as (stage, _, _):
        with pytest.raises(ValueError, match=r"carrier\.pigeon"):
            await stage.play(type="carrier.pigeon")

    assert [] == stage.sent


async def test_a_body_in_parts() -> None:
    """A body is taken in whatever parts the server has it, empty ones too."""
    async with staged() as (stage, session, genuine):
        stage.script += [
            {"type": "http.request", "more_body": True},
            *(part(genuine.body[n : n + 1], more=True) for n in range(len(genuine.body))),
            {"type": "http.request"},
        ]
        assert 200 == status_of(await stage.play(**scope_of(genuine)))
        assert {"unknown_task_callbacks": 1} == counted(session)


@pytest.mark.parametrize("parts", [0, 1])
async def test_a_peer_that_is_gone_is_not_answered(parts: int) -> None:
    """When the peer disconnects before its body is over nothing is sent, and nothing taken."""
    async with staged(*[part(b"{", more=True)] * parts) as (stage, session, genuine):
        stage.script.append({"type": "http.disconnect"})

        assert [] == await stage.play(**scope_of(genuine))
        assert {} == counted(session)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"method": "GET"}, 405),
        ({"headers": [(b"content-encoding", b"gzip")]}, 415),
        ({"headers": [(b"content-length", b"65537")]}, 413),
        ({"headers": [(b"content-length", b"9" * 5_000)]}, 413),
    ],
    ids=["405", "415", "413", "a long number"],
)
async def test_a_refusal_by_the_head_reads_nothing(changes, status: int) -> None:
    """What is refused by its head is not received at all."""
    async with staged() as (stage, _, genuine):
        sent = await stage.play(**scope_of(genuine, **changes))

    assert (status, 0) == (status_of(sent), stage.received)
    assert (b"connection", b"close") in sent[0]["headers"]


@pytest.mark.parametrize("length", [b"", b"-1", b"1_0", b"+10", b"\xb2"])
async def test_a_length_that_is_none_is_passed_over(length: bytes) -> None:
    """A length the server let pass although it is no number decides nothing."""
    async with staged() as (stage, _, genuine):
        stage.script.append(part(genuine.body))
        scope = scope_of(genuine)
        scope["headers"].append((b"content-length", length))

        assert 200 == status_of(await stage.play(**scope))


@pytest.mark.parametrize("version", ["1.0", "1.1", "2", "3"])
async def test_later_versions_of_http_have_no_connection_header(version: str) -> None:
    """A refusal ends the connection where there is one per request, and names none elsewhere."""
    async with staged() as (stage, _, genuine):
        sent = await stage.play(**scope_of(genuine, method="GET", http_version=version))

    names = [name for name, _ in sent[0]["headers"]]
    assert version.startswith("1") is (b"connection" in names)
    assert all(name == name.lower() for name in names)


async def test_only_what_is_accepted_keeps_the_connection() -> None:
    """After a callback that was accepted the peer may go on, and after no other."""
    for change in (b"", b"x"):
        async with staged() as (stage, _, genuine):
            stage.script.append(part(genuine.body + change))
            sent = await stage.play(**scope_of(genuine))

        assert (400 if change else 200) == status_of(sent)
        assert bool(change) is ((b"connection", b"close") in sent[0]["headers"])


@pytest.mark.parametrize("client", [("192.0.2.1", 4711), ["192.0.2.1", 4711], None])
async def test_a_connection_has_eight_callbacks(client) -> None:
    """Every eighth callback of one connection closes it, genuine or not; others do not count."""
    closed = []
    async with staged() as (stage, _, genuine):
        for number in range(17):
            for asking in (client, ("192.0.2.2", number)):
                stage.script.append(part(genuine.body))
                stage.sent.clear()
                sent = await stage.play(**scope_of(genuine, client=asking))
                assert 200 == status_of(sent)
                if (b"connection", b"close") in sent[0]["headers"]:
                    closed.append((number, asking))

    assert [(7, client), (15, client)] == closed


async def test_many_connections_are_not_remembered() -> None:
    """However many connections there are, a thousand of them are counted at most."""
    async with staged() as (stage, _, genuine):
        for port in range(2_500):
            stage.script.append(part(genuine.body))
            await stage.play(**scope_of(genuine, client=("192.0.2.1", port)))

        assert len(stage.app._counts) <= 1_000


async def test_the_lengths_are_true() -> None:
    """Every answer says how long it is."""
    for method in ("POST", "GET"):
        async with staged() as (stage, _, genuine):
            stage.script.append(part(genuine.body))
            start, body = await stage.play(**scope_of(genuine, method=method))

        assert str(len(body["body"])).encode() == dict(start["headers"])[b"content-length"]


async def test_a_cancelled_reader_gives_its_place_back() -> None:
    """A server that cancels requests under way does not use up the places for readers."""
    async with staged() as (stage, _, genuine):
        for _ in range(request_handler.MAX_READS):
            stage.script.append(part(b"{", more=True))
            asking = asyncio.create_task(stage.play(**scope_of(genuine)))
            for _ in range(5):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])
            assert asking.cancelled()
        stage.script.append(part(genuine.body))

        assert 200 == status_of(await stage.play(**scope_of(genuine)))


async def test_an_instance_is_no_function() -> None:
    """Frameworks that look whether an endpoint is a function find that it is an application."""
    async with staged() as (stage, _, _):
        endpoint = stage.app

    assert not inspect.isroutine(endpoint)
    assert inspect.iscoroutinefunction(type(endpoint).__call__)


# --- mounted --------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", ["FastAPI", "Starlette"])
async def test_a_mount_is_reached_with_a_slash(framework: str) -> None:
    """Mounted, the path without its slash is a redirect, which delivers nothing."""
    service = FakeService(FakeClock())
    async with service.listening() as session:
        if framework == "FastAPI":
            app = FastAPI()
            app.mount(PATH, asgi_app(session))
        else:
            app = Starlette(routes=[Mount(PATH, asgi_app(session))])
        genuine = service.callback("genuine")
        statuses = []
        async with run_asgi(app) as served, aiohttp.ClientSession() as http:
            for url in (served.url, f"{served.url}/", f"{served.url}/below"):
                async with http.post(
                    url, headers=genuine.headers, data=genuine.body, allow_redirects=False
                ) as answer:
                    statuses.append(answer.status)

        assert [307, 200, 200] == statuses
        assert {"unknown_task_callbacks": 2} == counted(session)


@pytest.mark.parametrize("framework", ["FastAPI", "Starlette"])
async def test_a_route_is_reached_as_it_is_written(framework: str) -> None:
    """As a route the application is at its path; with a slash more it is a redirect."""
    service = FakeService(FakeClock())
    async with service.listening() as session:
        if framework == "FastAPI":
            app = FastAPI()
            app.add_route(PATH, asgi_app(session))
        else:
            app = Starlette(routes=[Route(PATH, asgi_app(session))])
        genuine = service.callback("genuine")
        statuses = []
        async with run_asgi(app) as served, aiohttp.ClientSession() as http:
            for url in (served.url, f"{served.url}/"):
                async with http.post(
                    url, headers=genuine.headers, data=genuine.body, allow_redirects=False
                ) as answer:
                    statuses.append(answer.status)

        assert [200, 307] == statuses


async def test_a_session_lives_with_the_application() -> None:
    """A session entered by the application's lifespan takes what is delivered while it lives."""
    service = FakeService(FakeClock())
    session = service.listening()

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette):
        async with session:
            yield

    app = Starlette(routes=[Route(PATH, asgi_app(session))], lifespan=lifespan)
    genuine = service.callback("genuine")
    async with (
        run_asgi(app) as served,
        aiohttp.ClientSession() as http,
        http.post(served.url, headers=genuine.headers, data=genuine.body) as answer,
    ):
        assert 200 == answer.status

    assert {"unknown_task_callbacks": 1} == counted(session)
    assert "closed" in repr(session)
