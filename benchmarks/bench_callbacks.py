"""
What does a callback cost, from the socket to the waiter?

Decides whether all the strictness is affordable: whoever fears for the CPU of a
web service must have no reason to write the handler by hand. It is written by
hand below, as briefly as it can be and still verify: read, ``json.loads``, one
HMAC, compare, answer. That one settles nothing; ours verifies more, finds the
conversion and settles it. All receivers run in this process, take turns, and
get the same kind of callbacks from another process; the rates are per CPU second
of this one, and the run fails unless every answer, and what became of every
conversion, is as it should be. Each genuine callback is of a conversion in flight
of its own; a repeated one is of one that has ended, and a forged one is refused.
Like for like is the repeated one, where both verify and answer and neither has
anything to settle: it has the target. Plain HTTP and connections kept open: with
TLS, or a connection per callback, which cost all the same, the ratios would
flatter us.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import hashlib
import hmac
import itertools
import json
import logging
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

import attrs
from _figures import Figure, main
from _sender import sending
from aiohttp import web

from kie_wav_async import CallbackTrust, PollSchedule, RateLimit, Track, WavSession
from kie_wav_async._support.clock import SystemClock
from kie_wav_async._support.secret import Secret
from kie_wav_async.callbacks.payload import authenticate
from kie_wav_async.testing import (
    SignedCallback,
    accepted,
    polled_task_id,
    signed_callback,
    submitted_callback_query,
    submitted_track,
    succeeded,
)
from kie_wav_async.webhook import CallbackServer, add_callback_route, asgi_app

try:
    import uvicorn
except ImportError:  # It is in the extra for tests.
    uvicorn = None  # type: ignore[assignment]  # asked for below

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from _sender import Sender

    from kie_wav_async import Conversion
    from kie_wav_async._support.clock import TimerHandle
    from kie_wav_async.protocol.http_messages import WireRequest, WireResponse

TARGET: Final = 0.85
SETTLE_TARGET_US: Final = 100.0

KEY: Final = "benchmark-webhook-key"
PATH: Final = "/kie/callback"

#: No poll while we measure, unless a callback asks for it.
_QUIET: Final = PollSchedule(first_s=50_000.0, interval_s=50_000.0, backstop_s=50_000.0)


class _Service:
    """Accepts every submit, calls its task as its track, and knows each attempt's query."""

    def __init__(self) -> None:
        self.queries: dict[str, str] = {}

    async def send(self, request: WireRequest) -> WireResponse:
        if not request.is_submit:
            task_id = polled_task_id(request)
            return succeeded(task_id, _file_of(task_id))
        task_id = submitted_track(request).music_task_id
        self.queries[task_id] = submitted_callback_query(request)
        return accepted(task_id)

    async def aclose(self) -> None:
        pass


def _session(service: _Service, **settings: object) -> WavSession:
    return WavSession(
        "benchmark-key",
        transport=service,
        callback_url=f"https://example.com{PATH}",
        webhook_keys=KEY,
        rate_limit=RateLimit(1_000_000, per_s=1.0),
        max_in_flight=1_000_000,
        poll=_QUIET,
        timeout_s=None,
        **settings,  # type: ignore[arg-type]  # keywords
    )


def _task_ids() -> Iterator[str]:
    # Looks as the service's do, 32 hex digits, and repeats itself nowhere.
    return (hashlib.sha256(b"%d" % n).hexdigest()[:32] for n in itertools.count())


def _callback(task_id: str, *, key: str = KEY) -> SignedCallback:
    return signed_callback(task_id, _file_of(task_id), key=key)


def _file_of(task_id: str) -> str:
    return f"https://musicfile.kie.ai/{task_id}.wav"


async def _teach(session: WavSession, service: _Service) -> None:
    """Have the session poll once: a callback settles only on a host that a poll has named."""
    conversion = await session.submit(Track("first", "e231"))
    await session.handle_callback(*_callback("first"), query=service.queries.pop("first"))
    await conversion


# --- from the socket to the answer ----------------------------------------------------------


async def _verify_by_hand(request: web.Request) -> web.Response:
    """Do what the service's own samples do, and no more."""
    body = json.loads(await request.read())
    message = f"{body['data']['task_id']}.{request.headers['X-Webhook-Timestamp']}"
    mac = hmac.new(KEY.encode(), message.encode(), hashlib.sha256)
    signature = base64.b64encode(mac.digest()).decode()
    if not hmac.compare_digest(signature, request.headers["X-Webhook-Signature"]):
        return web.Response(status=401)
    return web.json_response({"status": "received"})


async def _verify_nothing(request: web.Request) -> web.Response:
    await request.read()
    return web.json_response({"status": "received"})


@contextlib.asynccontextmanager
async def _serving(add_route: Callable[[web.Application], object]) -> AsyncIterator[int]:
    """Serve an aiohttp application; its port is the value."""
    app = web.Application()
    add_route(app)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def _serving_asgi(session: WavSession) -> AsyncIterator[int]:
    # The sender idles between its turns, and may do so for longer than the 5 s of the default.
    config = uvicorn.Config(
        asgi_app(session), port=0, log_level="critical", access_log=False, timeout_keep_alive=3_600
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


@attrs.frozen
class _Receiver:
    """One of those compared, what it gets, and what must come of each callback."""

    name: str
    port: int
    make: Callable[[], Awaitable[Sequence[bytes]]]
    status: int = 200
    counter: str = ""


def _headers(callback: SignedCallback) -> dict[str, str]:
    """Return what HTTP clients commonly send along; of the service's two are documented."""
    return {
        "Host": "example.com",
        "User-Agent": "Apache-HttpClient/5.3 (Java/17)",
        "Accept": "*/*",
        "Accept-Encoding": "gzip",
        **callback.headers,
        "Content-Length": str(len(callback.body)),
    }


def _request(callback: SignedCallback, query: str) -> bytes:
    fields = "".join(f"{name}: {value}\r\n" for name, value in _headers(callback).items())
    return f"POST {PATH}?{query} HTTP/1.1\r\n{fields}\r\n".encode() + callback.body


class _Requests:
    """Makes the requests of one round, and what they need to have happened before."""

    def __init__(self, session: WavSession, service: _Service, count: int) -> None:
        self._session = session
        self._service = service
        self._count = count
        self._ids = _task_ids()

    async def genuine(self) -> list[bytes]:
        """Submit as many conversions as there will be callbacks; each settles one."""
        ids = [next(self._ids) for _ in range(self._count)]
        for task_id in ids:
            _ = await self._session.submit(Track(task_id, "e231"))
        return [_request(_callback(task_id), self._service.queries[task_id]) for task_id in ids]

    async def repeated(self) -> list[bytes]:
        """Settle a conversion, and have its callback sent again and again."""
        task_id = next(self._ids)
        _ = await self._session.submit(Track(task_id, "e231"))
        callback, query = _callback(task_id), self._service.queries.pop(task_id)
        await self._session.handle_callback(*callback, query=query)
        return [_request(callback, query)] * self._count

    async def forged(self) -> list[bytes]:
        """Sign with another key."""
        key = "another-webhook-key"
        ids = [next(self._ids) for _ in range(self._count)]
        return [_request(_callback(task_id, key=key), f"attempt={task_id}") for task_id in ids]


async def _spend(
    sender: Sender, session: WavSession, service: _Service, receiver: _Receiver
) -> float:
    """Return the CPU microseconds that *receiver* spends on a callback."""
    requests = await receiver.make()
    await sender.load(receiver.port, requests)
    before = attrs.asdict(session.statistics())
    gc.collect()
    start = time.process_time()
    statuses = await sender.send()
    spent = time.process_time() - start
    assert statuses == {receiver.status: len(requests)}, (receiver.name, statuses)
    counted = attrs.asdict(session.statistics())
    for counter in ("settled_by_callback", "duplicate_results", "rejected_callbacks"):
        wanted = len(requests) if counter == receiver.counter else 0
        assert counted[counter] - before[counter] == wanted, (receiver.name, counter)
    # Whatever a receiver that settles nothing has left in flight.
    for conversion in session.conversions():
        query = service.queries[conversion.task_id]
        await session.handle_callback(*_callback(conversion.task_id), query=query)
    service.queries.clear()
    return spent / len(requests) * 1e6


async def _receive(rounds: int, count: int) -> dict[str, list[float]]:
    """Return what each receiver spent in each round, in CPU microseconds per callback."""
    service = _Service()
    async with contextlib.AsyncExitStack() as stack:
        sender = await stack.enter_async_context(sending())
        session = await stack.enter_async_context(_session(service))
        await _teach(session, service)

        async def route(handler: Callable[[web.Request], Awaitable[web.Response]]) -> int:
            return await stack.enter_async_context(
                _serving(lambda app: app.router.add_post(PATH, handler))
            )

        ours = await stack.enter_async_context(
            _serving(lambda app: add_callback_route(app, session, PATH))
        )
        by_hand = await route(_verify_by_hand)
        requests = _Requests(session, service, count)
        settles, repeats, refuses = "settled_by_callback", "duplicate_results", "rejected_callbacks"
        receivers = [
            _Receiver("ours", ours, requests.genuine, counter=settles),
            _Receiver("by hand", by_hand, requests.genuine),
            _Receiver("nothing", await route(_verify_nothing), requests.genuine),
            _Receiver("ours, repeated", ours, requests.repeated, counter=repeats),
            _Receiver("by hand, repeated", by_hand, requests.repeated),
            _Receiver("ours, forged", ours, requests.forged, 401, refuses),
            _Receiver("by hand, forged", by_hand, requests.forged, 401),
        ]
        server = await stack.enter_async_context(CallbackServer(session))
        receivers.append(
            _Receiver("CallbackServer", server.port, requests.genuine, counter=settles)
        )
        if uvicorn is not None:
            port = await stack.enter_async_context(_serving_asgi(session))
            receivers.append(_Receiver("uvicorn", port, requests.genuine, counter=settles))
        spent: dict[str, list[float]] = {receiver.name: [] for receiver in receivers}
        for number in range(rounds + 1):
            # Whoever comes second finds the caches as the first left them.
            for receiver in receivers if number % 2 else reversed(receivers):
                spent_us = await _spend(sender, session, service, receiver)
                if number:  # The first round opens connections.
                    spent[receiver.name].append(spent_us)
    return spent


def _ratio(
    name: str, ours: Sequence[float], theirs: Sequence[float], *, at_least: float | None = None
) -> Figure:
    """Return the rate of ours by that of theirs: the median over rounds."""
    ratios = [their_us / our_us for our_us, their_us in zip(ours, theirs, strict=True)]
    quarters = statistics.quantiles(ratios, n=4)
    our_us, their_us = statistics.median(ours), statistics.median(theirs)
    note = f"+-{(quarters[2] - quarters[0]) / 2:.2f}; {our_us:.0f} us against {their_us:.0f}"
    return Figure(name, quarters[1], "x", at_least=at_least, note=note)


def _compare(rounds: int, count: int) -> list[Figure]:
    spent = asyncio.run(_receive(rounds, count))
    ours, by_hand = spent["ours"], spent["by hand"]
    figures = [
        _ratio("callbacks/s, each settles one, route / by hand", ours, by_hand),
        _ratio("callbacks/s, route / verifies nothing", ours, spent["nothing"]),
        _ratio("callbacks/s, by hand / verifies nothing", by_hand, spent["nothing"]),
    ]
    for fate, target in (("repeated", TARGET), ("forged", None)):
        name = f"callbacks/s, {fate}, route / by hand"
        spent_us = spent[f"ours, {fate}"], spent[f"by hand, {fate}"]
        figures.append(_ratio(name, *spent_us, at_least=target))
    for server in ("CallbackServer", "uvicorn"):
        if server in spent:
            name = f"callbacks/s, {server} / by hand in aiohttp"
            figures.append(_ratio(name, spent[server], by_hand))
    return figures


# --- from the session to the waiter ---------------------------------------------------------


class _Clock(SystemClock):
    """The system's, which can be moved on."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self._ahead_s

    def call_at(self, when_mono_s: float, callback: Callable[[], object]) -> TimerHandle:
        return super().call_at(when_mono_s - self._ahead_s, callback)

    def move(self, seconds: float) -> None:
        self._ahead_s += seconds


async def _settle(pending: int, samples: int, trust: CallbackTrust) -> list[float]:
    """Return the CPU microseconds from `handle_callback` to the waiter, *pending* others open."""
    service, clock = _Service(), _Clock()
    spent_us = []
    async with _session(service, callback_trust=trust, clock=clock) as session:
        await _teach(session, service)

        async def wait(conversion: Conversion) -> int:
            await conversion
            return time.process_time_ns()

        ids = itertools.islice(_task_ids(), pending + samples)
        conversions = [await session.submit(Track(task_id, "e231")) for task_id in ids]
        waits = [asyncio.create_task(wait(conversion)) for conversion in conversions]
        await asyncio.sleep(0)
        # What a process has that has waited for a while: nothing of it is garbage.
        gc.collect()
        every = len(conversions) // samples
        for number in range(0, every * samples, every):
            task_id = conversions[number].task_id
            callback, query = _callback(task_id), service.queries[task_id]
            start_ns = time.process_time_ns()
            await session.handle_callback(*callback, query=query)
            spent_us.append((await waits[number] - start_ns) / 1000)
            # So that the polls that callbacks cause are not too many a second.
            clock.move(0.2)
        assert len(session.conversions()) == pending
        for task in waits:
            task.cancel()
        await asyncio.wait(waits)
    return spent_us


def _settle_growth(rounds: int, pending: int, samples: int) -> list[Figure]:
    """Return what settling costs among many, and that by what it costs among few."""
    figures = []
    for trust in CallbackTrust:
        costs, ratios, slow = [], [], []
        for _ in range(rounds):
            among_few = asyncio.run(_settle(pending // 10, samples, trust))
            among_many = asyncio.run(_settle(pending, samples, trust))
            costs.append(statistics.median(among_many))
            ratios.append(costs[-1] / statistics.median(among_few))
            slow.append(statistics.quantiles(among_many, n=100)[98])
        is_direct = trust is CallbackTrust.PAYLOAD
        note = f"99 of 100 within {statistics.median(slow):.0f} us"
        if not is_direct:
            note += "; a poll of a service that answers at once included"
        figures += [
            Figure(
                f"settle one of {pending}, {trust.name}",
                statistics.median(costs),
                "us",
                at_most=SETTLE_TARGET_US if is_direct else None,
                note=note,
            ),
            Figure(
                f"settle one of {pending} / of {pending // 10}, {trust.name}",
                statistics.median(ratios),
                "x",
            ),
        ]
    return figures


# --- verification alone ---------------------------------------------------------------------


def _authenticate_cost(rounds: int, count: int) -> Figure:
    """Return what verifying costs in units of its own HMAC and ``json.loads``."""
    now_unix_s = time.time()
    callbacks = [_callback(task_id) for task_id in itertools.islice(_task_ids(), count)]
    # As a server has them: pairs of bytes, most of them of no interest.
    headers = [
        tuple((name.encode(), value.encode()) for name, value in _headers(callback).items())
        for callback in callbacks
    ]
    given = list(zip(headers, callbacks, strict=True))
    key = KEY.encode()
    keys = Secret((key,))

    def ours() -> None:
        for fields, callback in given:
            authenticate(fields, callback.body, keys=keys, now_unix_s=now_unix_s)

    timestamp = b"." + str(int(now_unix_s)).encode()

    def yardstick() -> None:
        for _, callback in given:
            task_id = json.loads(callback.body)["data"]["task_id"]
            hmac.new(key, task_id.encode() + timestamp, hashlib.sha256).digest()

    ratios, costs_us = [], []
    for number in range(rounds):
        spent = {}
        for work in (ours, yardstick) if number % 2 else (yardstick, ours):
            start = time.process_time_ns()
            work()
            spent[work] = time.process_time_ns() - start
        ratios.append(spent[ours] / spent[yardstick])
        costs_us.append(spent[ours] / count / 1000)
    return Figure(
        "authenticate / its HMAC and json.loads",
        statistics.median(ratios),
        "x",
        note=f"{statistics.median(costs_us):.1f} us",
    )


def measure(*, quick: bool) -> list[Figure]:
    """Return ratios, and microseconds of the loop."""
    logging.disable(logging.WARNING)  # Refusals, and sessions closed with open tasks.
    if quick:
        return [*_compare(2, 20), *_settle_growth(1, 50, 5), _authenticate_cost(3, 10)]
    return [
        *_compare(30, 250),
        *_settle_growth(3, 10_000, 500),
        _authenticate_cost(51, 1_000),
    ]


if __name__ == "__main__":
    main(measure)
