from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import hashlib
import hmac
import json
import re
import time

import aiohttp
import pytest
from aiohttp import web

from kie_wav_async.simulator import Delivery, Fault, Simulator, SimulatorProcess, SimulatorState
from kie_wav_async.simulator.callbacks import sign
from kie_wav_async.simulator.loopback import Address, Answer, parse_answer

QUERY = "?x=%2F&attempt=00ff&&y=a+b&z"


def signature(key, task_id, timestamp):
    """Compute a signature as the docs describe it."""
    message = task_id.encode("utf-8") + b"." + timestamp.encode("utf-8")
    return base64.standard_b64encode(
        hmac.new(key.encode("utf-8"), message, hashlib.sha256).digest()
    ).decode("ascii")


class Came:
    """One callback as it came in."""

    def __init__(self, request, body):
        self.method = request.method
        self.target = request.raw_path
        self.headers = request.headers
        self.raw = body
        self.at = time.time()

    @property
    def json(self):
        return json.loads(self.raw)

    @property
    def signed(self):
        names = ("X-Webhook-Timestamp", "X-Webhook-Signature")
        return tuple(self.headers.getone(name) for name in names)


class Receiver:
    """A loopback server that takes whatever comes and answers the statuses it was told."""

    def __init__(self, *statuses, host="127.0.0.1"):
        self.statuses = list(statuses)
        self.came = []
        self.let_go = asyncio.Event()
        self.let_go.set()
        self.headers = {}
        self._host = host

    async def _answer(self, request):
        self.came.append(Came(request, await request.read()))
        await self.let_go.wait()
        status = self.statuses.pop(0) if self.statuses else 200
        return web.json_response({"status": "received"}, status=status, headers=self.headers)

    async def __aenter__(self):
        self._runner = web.ServerRunner(
            web.Server(self._answer, access_log=None), shutdown_timeout=0.0
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, 0).start()
        self.port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}/kie/callback{QUERY}"
        return self

    async def __aexit__(self, *exc):
        self.let_go.set()
        await self._runner.cleanup()


class Client:
    """A plain aiohttp client with the key of a simulator."""

    def __init__(self, kie, http):
        self.kie = kie
        self.http = http

    async def submit(self, url, audio_id="a"):
        body = {"taskId": "m", "audioId": audio_id, "callBackUrl": url}
        async with self.http.post("/api/v1/wav/generate", json=body) as answer:
            return (await answer.json(content_type=None))["data"]["taskId"]

    async def record(self, task_id):
        params = {"taskId": task_id}
        async with self.http.get("/api/v1/wav/record-info", params=params) as answer:
            return (await answer.json(content_type=None))["data"]


async def until(condition):
    """Let the loop turn until something is so."""
    async with asyncio.timeout(20.0):
        while not condition():  # noqa: ASYNC110 - the servers offer no event for this
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running(*faults, statuses=(), **settings):
    """Run a simulator with a script, a client with its key, and a receiver."""
    settings = {"median_s": 0.0, "window": None, **settings}
    async with Receiver(*statuses) as receiver, Simulator(faults=faults, **settings) as kie:
        headers = {"Authorization": f"Bearer {kie.api_key}"}
        async with aiohttp.ClientSession(kie.base_url, headers=headers) as http:
            yield kie, Client(kie, http), receiver


async def only(*faults, **settings):
    """Return the one callback of one submit, and the simulator it came from."""
    async with running(*faults, **settings) as (kie, client, receiver):
        await client.submit(receiver.url)
        await until(lambda: kie.deliveries)
        (came,) = receiver.came
        return came, kie


# What is sent


def test_signature_of_the_known_vector():
    """The signature is the one computed with other tools for a known key, id and time."""
    made = sign("test-webhook-hmac-key", "ee9c2715375b7837f8bb51d641ff5863", "1769670760")

    assert "xG6/yOyrMyJtUdc1yjmHpKLHSHF3MpzOPa6uxSj3qb4=" == made


async def test_callback_tells_a_success():
    """A conversion that went well is called back with its id and the URL of its record."""
    async with running() as (kie, client, receiver):
        task_id = await client.submit(receiver.url)
        await until(lambda: kie.deliveries)
        record = await client.record(task_id)
    (came,) = receiver.came

    assert {
        "code": 200,
        "msg": "success",
        "data": {"audioWavUrl": record["response"]["audioWavUrl"], "task_id": task_id},
    } == came.json
    assert ("POST", "application/json") == (came.method, came.headers["Content-Type"])


async def test_callback_tells_a_failure():
    """A conversion that failed is called back with its code, its message and no URL."""
    fault = Fault(on="conversion", kind="fail", code=501, msg="No good")
    async with running(fault) as (kie, client, receiver):
        task_id = await client.submit(receiver.url)
        await until(lambda: kie.deliveries)

    assert {
        "code": 501,
        "msg": "No good",
        "data": {"audioWavUrl": None, "task_id": task_id},
    } == receiver.came[0].json


@pytest.mark.parametrize("tail", ["/kie" + QUERY, "/a%2fb/%7E?", "?q", "", "/x#part", "/?a?b"])
async def test_address_is_taken_as_given(tail):
    """Path and query go out byte for byte; only a fragment stays behind."""
    async with running() as (kie, client, receiver):
        await client.submit(f"http://127.0.0.1:{receiver.port}{tail}")
        await until(lambda: kie.deliveries)
    expected = tail.partition("#")[0]

    assert (expected if expected.startswith("/") else "/" + expected) == receiver.came[0].target
    assert f"127.0.0.1:{receiver.port}" == receiver.came[0].headers["Host"]


async def test_callback_is_signed():
    """The two headers sign the task id and the time of sending, and nothing else."""
    came, kie = await only()
    timestamp, signed = came.signed

    assert re.fullmatch("[0-9]{10}", timestamp)
    assert abs(came.at - int(timestamp)) < 60
    assert signature(kie.webhook_key, came.json["data"]["task_id"], timestamp) == signed


async def test_timestamp_is_the_wall_clock_whatever_the_scale():
    """Fast service time does not make a callback stale."""
    async with running(time_scale=1e6, median_s=6e4) as (kie, client, receiver):
        await client.submit(receiver.url)
        await until(lambda: kie.deliveries)
    (came,) = receiver.came

    assert abs(came.at - int(came.signed[0])) < 60


async def test_account_without_a_key_does_not_sign():
    """Without a webhook key callbacks are sent without headers."""
    came, _ = await only(webhook_key="")

    assert [] == [name for name in came.headers if name.startswith("X-Webhook")]


# When


class Moved:
    """A clock that a test moves."""

    def __init__(self):
        self.at = 5000.0

    def __call__(self):
        return self.at


async def test_nothing_is_sent_before_the_end():
    """A callback waits for the conversion."""
    now = Moved()
    async with running(now=now, median_s=60.0, sigma=0.0) as (kie, client, receiver):
        await client.submit(receiver.url)
        now.at = 5059.9
        await client.record("none")
        for _ in range(100):
            await asyncio.sleep(0)
        too_early = kie.deliveries
        now.at = 5060.0
        # The loop's own clock has a minute to go: it is the request that tells.
        await client.record("none")
        await until(lambda: kie.deliveries)

    assert () == too_early
    assert [5060.0] == [one.at for one in kie.deliveries]


async def test_callbacks_come_in_the_order_of_the_ends():
    """One timer, set for the next end, serves conversions that end in another order."""
    takes = [("a", 40.0), ("b", 10.0), ("c", 70.0), ("d", 20.0)]
    faults = [Fault(on="conversion", kind="takes", audio_id=i, delay_s=s) for i, s in takes]
    now = Moved()
    async with running(*faults, now=now) as (kie, client, receiver):
        tasks = {await client.submit(receiver.url, name): name for name, _ in takes}
        sender = kie._handler.sender
        timers = []
        for number, after in enumerate((10.0, 20.0, 40.0, 70.0), 1):
            timers.append(sender._timer_at)
            now.at = 5000.0 + after
            sender.look()
            await until(lambda: len(kie.deliveries) == number)  # noqa: B023 - used at once

    assert "bdac" == "".join(tasks[one.task_id] for one in kie.deliveries)
    assert [5010.0, 5020.0, 5040.0, 5070.0] == timers


async def test_timer_sends_what_is_due():
    """Nobody has to ask for a callback to go out."""
    fault = Fault(on="conversion", kind="takes", delay_s=50.0)
    async with running(fault, time_scale=1000.0) as (kie, client, receiver):
        await client.submit(receiver.url)
        requests = kie.state().requests
        await until(lambda: kie.deliveries)

    assert requests == kie.state().requests


async def test_conversion_that_never_ends_is_not_called_back():
    """No end, no callback, and nothing that waits for one."""
    async with running(Fault(on="conversion", kind="never")) as (kie, client, receiver):
        await client.submit(receiver.url)

        assert [] == kie._handler.sender._due
    assert {} == kie.state().callbacks


# Retries


@pytest.mark.parametrize("status", [500, 404, 201, 204, 301, 307])
async def test_only_200_counts(status):
    """Any other answer than HTTP 200 is followed by a retry, and no redirect is followed."""
    async with running(statuses=[status], time_scale=1e4) as (kie, client, receiver):
        receiver.headers = {"Location": "/elsewhere"}
        task_id = await client.submit(receiver.url)
        await until(lambda: len(kie.deliveries) == 2)

    assert [(task_id, 1, status), (task_id, 2, 200)] == [one[1:] for one in kie.deliveries]
    assert 1 == len({came.target for came in receiver.came})
    assert {"delivered": 1} == kie.state().callbacks


async def test_three_retries_then_no_more():
    """After the third failed retry a callback is given up."""
    async with running(statuses=[500] * 9, time_scale=1e4) as (kie, client, receiver):
        await client.submit(receiver.url)
        await until(lambda: kie.state().callbacks)
        left = kie._handler.sender._due[:]

    assert [1, 2, 3, 4] == [one.attempt for one in kie.deliveries]
    assert {"given_up": 1} == kie.state().callbacks
    assert ([], 4) == (left, len(receiver.came))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [60, 300, 900]),
        ({"callback_retries_s": (5, 0.1)}, [5, 0.1]),
        ({"time_scale": 60}, [1, 5, 15]),
    ],
)
async def test_retries_are_spaced_as_set(settings, expected):
    """Each retry waits its own service seconds from the failure before it."""
    now = Moved()
    async with running(now=now, statuses=[500] * 9, **settings) as (kie, client, receiver):
        sender = kie._handler.sender
        await client.submit(receiver.url)
        for number, after in enumerate(expected, 1):
            await until(lambda: len(kie.deliveries) == number)  # noqa: B023 - used at once
            now.at += after - 0.001
            sender.look()
            kept_back = len(sender._due)
            now.at += 0.001
            sender.look()

            assert (1, 0) == (kept_back, len(sender._due))
        await until(lambda: kie.state().callbacks)

    assert len(expected) + 1 == len(receiver.came)


async def test_retry_is_signed_anew(monkeypatch):
    """A retry carries the time at which it is sent."""
    came = await retried(monkeypatch)

    assert [1_800_000_000, 1_800_000_360] == [int(one.signed[0]) for one in came]


async def retried(monkeypatch, *faults, **settings):
    """Return a callback and its second retry, with a wall clock that goes by service time."""
    now = Moved()
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000 + now.at - 5000.0)
    async with running(*faults, now=now, statuses=[500, 500], **settings) as (
        kie,
        client,
        receiver,
    ):
        await client.submit(receiver.url)
        for number, after in ((1, 60.0), (2, 300.0)):
            await until(lambda: len(kie.deliveries) == number)  # noqa: B023 - used at once
            now.at += after
            kie._handler.sender.look()
        await until(lambda: len(kie.deliveries) == 3)
    for came in receiver.came:
        task_id, (timestamp, signed) = came.json["data"]["task_id"], came.signed
        assert signature(kie.webhook_key, task_id, timestamp) == signed
    return receiver.came[0], receiver.came[2]


async def test_stale_retry_carries_the_first_time(monkeypatch):
    """By script a retry is as old as the delivery it repeats."""
    came = await retried(monkeypatch, Fault(on="callback", kind="stale-retry"))

    assert [1_800_000_000] * 2 == [int(one.signed[0]) for one in came]


async def test_stale_retry_is_stale_in_fast_time_too():
    """Where minutes pass in milliseconds, a stale retry is minutes old all the same."""
    fault = Fault(on="callback", kind="stale-retry")
    async with running(fault, statuses=[500] * 3, time_scale=1e4) as (kie, client, receiver):
        await client.submit(receiver.url)
        await until(lambda: len(kie.deliveries) == 4)
    first, *_, last = (int(came.signed[0]) for came in receiver.came)

    assert first - last > 1200


async def test_silence_is_a_failure():
    """A receiver that does not answer in time is called again."""
    settings = {"callback_timeout_s": 0.01, "callback_retries_s": (0.0,)}
    async with running(**settings) as (kie, client, receiver):
        receiver.let_go.clear()
        await client.submit(receiver.url)
        await until(lambda: len(kie.deliveries) == 2)

    assert [(1, None), (2, None)] == [one[2:] for one in kie.deliveries]
    assert {"given_up": 1} == kie.state().callbacks


@pytest.mark.parametrize(
    ("timeout_s", "scale", "real_s"),
    [(15.0, 1.0, 15.0), (15.0, 10.0, 1.5), (15.0, 1e4, 1.0), (0.2, 1.0, 0.2), (0.2, 100.0, 0.2)],
)
async def test_patience_is_scaled_down_to_a_second(timeout_s, scale, real_s):
    """Fast service time does not make the service take a busy receiver for dead."""
    kie = Simulator(callback_timeout_s=timeout_s, time_scale=scale)

    assert real_s == kie._handler.sender._patience_s


class Raw:
    """A server that answers every connection with the same bytes and ends it."""

    def __init__(self, answer):
        self.answer = answer

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        return self

    async def __aexit__(self, *exc):
        self.server.close()
        await self.server.wait_closed()

    async def _serve(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.answer)
            await writer.drain()
        writer.close()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"", None),
        (b"HTTP/1.1 200", None),
        (b"hello\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\n\r\n", 200),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nhalf", 200),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 No\r\n\r\n", 500),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", 200),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 200_000, 200),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", None),
    ],
)
async def test_any_answer_is_survived(answer, status):
    """A receiver may answer what it likes; only a status is read."""
    async with Raw(answer) as raw, running(callback_retries_s=()) as (kie, client, _):
        await client.submit(raw.url)
        await until(lambda: kie.deliveries)

    assert [status] == [one.status for one in kie.deliveries]


async def nobody():
    """Return an address where nobody listens."""
    async with Raw(b"") as raw:
        return raw.url


async def test_nobody_there_is_a_failure():
    """An address where nobody listens counts as a delivery without an answer."""
    async with running(callback_retries_s=()) as (kie, client, _):
        await client.submit(await nobody())
        await until(lambda: kie.deliveries)

    assert [None] == [one.status for one in kie.deliveries]


# Where to


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("http://127.0.0.1/", ("127.0.0.1",)),
        ("http://127.9.8.7:1/x", ("127.9.8.7",)),
        ("HTTP://127.0.0.1", ("127.0.0.1",)),
        ("https://127.0.0.1/", None),
        ("httpx://127.0.0.1/", None),
        ("http://[::1]:80/", ("::1",)),
        ("http://LOCALHOST/", ("127.0.0.1", "::1")),
        ("https://caller.invalid/kie?attempt=00", None),
        ("https://example.com/", None),
        ("http://128.0.0.1/", None),
        ("http://0.0.0.0/", None),
        ("http://[::]/", None),
        ("http://[::ffff:127.0.0.1]/", None),
        ("http://[::1%25lo]/", None),
        ("http://127.1/", None),
        ("http://2130706433/", None),
        ("http://0177.0.0.1/", None),
        ("http://127.0.0.1.example.com/", None),
        ("http://localhost.example.com/", None),
        ("http://user@127.0.0.1/", None),
        ("http://127.0.0.1@example.com/", None),
        ("http://example.com\\@127.0.0.1/", None),
        ("http://127.0.0.1:99999/", None),
        ("http://127.0.0.1:x/", None),
        ("http://[::1/", None),
        ("http://127.0.0.1/a b", None),
        ("http://127.0.0.1/a\r\nX-Evil: 1", None),
        ("http://127.0.0.1/ü", None),
        ("http://१२७.0.0.1/", None),
        ("ftp://127.0.0.1/", None),
        ("//127.0.0.1/", None),
        ("127.0.0.1", None),
        ("http:///x", None),
    ],
)
def test_only_this_machine_is_called(url, hosts):
    """What is not plainly an http address of this machine is no address at all."""
    address = Address.parse(url)

    assert hosts == (None if address is None else address.hosts)


async def test_other_address_is_counted_and_never_contacted(monkeypatch):
    """A callback for anywhere else is counted as not sent, without a connection or a look-up."""
    asked = []
    loop = asyncio.get_running_loop()
    async with running() as (kie, client, _):
        await client.submit(await nobody(), "warm")
        await until(lambda: kie.deliveries)
        monkeypatch.setattr(loop, "getaddrinfo", lambda *where, **_: asked.append(where))
        monkeypatch.setattr(loop, "sock_connect", lambda *where, **_: asked.append(where))
        await client.submit("https://caller.invalid/kie?attempt=00", "a")
        await client.submit("http://192.0.2.1/", "b")
        for _ in range(20):
            await asyncio.sleep(0)
        state = kie.state()

    assert [] == asked
    assert 2 == state.callbacks["not_sent"]
    assert 1 == len(state.deliveries)


async def test_callbacks_can_be_off():
    """With callbacks off, none is sent and each is counted."""
    async with running(callbacks=False) as (kie, client, receiver):
        await client.submit(receiver.url)
        for _ in range(50):
            await asyncio.sleep(0)

    assert ({"not_sent": 1}, []) == (kie.state().callbacks, receiver.came)


async def test_localhost_is_tried_in_both_families():
    """A receiver on ::1 alone is reached by the name localhost."""
    try:
        receiver = await Receiver(host="::1").__aenter__()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_exit(receiver)
        kie, client, _ = await stack.enter_async_context(running(callback_retries_s=()))
        await client.submit(f"http://localhost:{receiver.port}/")
        await until(lambda: kie.deliveries)

    assert [200] == [one.status for one in kie.deliveries]
    assert f"localhost:{receiver.port}" == receiver.came[0].headers["Host"]


# By script


def places(kind, *where, other=()):
    """Write a fault that puts the id or the URL elsewhere."""
    return Fault(on="callback", kind=kind, places=where, other_places=other)


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ([places("id-places", "data.taskId")], {"data": {"audioWavUrl": "URL", "taskId": "ID"}}),
        ([places("id-places", "taskId")], {"data": {"audioWavUrl": "URL"}, "taskId": "ID"}),
        (
            [places("id-places", "taskId", "data.task_id")],
            {"data": {"audioWavUrl": "URL", "task_id": "ID"}, "taskId": "ID"},
        ),
        (
            [places("id-places", "data.task_id", other=["data.taskId"])],
            {"data": {"audioWavUrl": "URL", "task_id": "ID", "taskId": "DI"}},
        ),
        (
            [places("url-places", "data.audio_wav_url")],
            {"data": {"task_id": "ID", "audio_wav_url": "URL"}},
        ),
        (
            [places("url-places", "data.response.audioWavUrl")],
            {"data": {"task_id": "ID", "response": {"audioWavUrl": "URL"}}},
        ),
        (
            [places("url-places", "audioWavUrl"), places("id-places", "task_id")],
            {"data": {}, "audioWavUrl": "URL", "task_id": "ID"},
        ),
        (
            [Fault(on="callback", kind="no-url")],
            {"data": {"task_id": "ID", "audioWavUrl": None}},
        ),
        (
            [Fault(on="callback", kind="no-url", drop=["audioWavUrl"])],
            {"data": {"task_id": "ID"}},
        ),
        (
            [Fault(on="callback", kind="fields", fields={"callbackType": "task_completed"})],
            {"data": {"task_id": "ID", "audioWavUrl": "URL", "callbackType": "task_completed"}},
        ),
        (
            [Fault(on="callback", kind="envelope", fields={"msg": "Success"}, drop=["code"])],
            {"code": None, "msg": "Success", "data": {"task_id": "ID", "audioWavUrl": "URL"}},
        ),
        (
            [Fault(on="callback", kind="code", code=501, msg="no")],
            {"code": 501, "msg": "no", "data": {"task_id": "ID", "audioWavUrl": None}},
        ),
        (
            [Fault(on="callback", kind="code", code="400", data={"x": 1})],
            {"code": "400", "msg": "Simulated failure", "data": {"x": 1}},
        ),
        (
            [Fault(on="callback", kind="string-code")],
            {"code": "200", "data": {"task_id": "ID", "audioWavUrl": "URL"}},
        ),
        ([Fault(on="callback", kind="data-null")], {"data": None}),
        (
            [Fault(on="callback", kind="data-null"), places("id-places", "taskId")],
            {"data": None, "taskId": "ID"},
        ),
    ],
    ids=str,
)
async def test_content_as_scripted(faults, expected):
    """Every spelling and every kind of nonsense can be sent, signed for the true id."""
    async with running(*faults) as (kie, client, receiver):
        task_id = await client.submit(receiver.url)
        await until(lambda: kie.deliveries)
        url = (await client.record(task_id))["response"]["audioWavUrl"]
    (came,) = receiver.came
    text = came.raw.decode().replace(task_id, "ID").replace(task_id[::-1], "DI")
    seen = json.loads(text.replace(url, "URL"))

    assert {"code": 200, "msg": "success", **expected} == {"code": None, **seen}
    assert signature(kie.webhook_key, task_id, came.signed[0]) == came.signed[1]


async def test_body_as_scripted():
    """Any text can be sent, as any media type."""
    came, _ = await only(Fault(on="callback", kind="body", body="[[[", content_type="text/x"))

    assert (b"[[[", "text/x") == (came.raw, came.headers["Content-Type"])
    assert came.signed


async def test_truncated_and_huge_bodies():
    """A body can be half of its JSON, or padded."""
    half, _ = await only(Fault(on="callback", kind="truncated"))
    huge, _ = await only(Fault(on="callback", kind="huge", size=70_000))

    with pytest.raises(ValueError, match=r"."):
        _ = half.json
    assert 70_000 < len(huge.raw)


async def test_unsigned_and_without_query():
    """Headers and query can each be left out."""
    unsigned, _ = await only(Fault(on="callback", kind="unsigned"))
    plain, _ = await only(Fault(on="callback", kind="no-query"))

    assert "X-Webhook-Signature" not in unsigned.headers
    assert "/kie/callback" + QUERY == unsigned.target
    assert "/kie/callback" == plain.target
    assert plain.signed


async def test_lost_callback_is_never_sent():
    """A lost callback is counted, and only polls tell how it ended."""
    async with running(Fault(on="callback", kind="lost", at=1)) as (kie, client, receiver):
        lost = await client.submit(receiver.url, "a")
        other = await client.submit(receiver.url, "b")
        await until(lambda: kie.deliveries)
        record = await client.record(lost)

    assert [other] == [one.task_id for one in kie.deliveries]
    assert {"lost": 1, "delivered": 1} == kie.state().callbacks
    assert "SUCCESS" == record["successFlag"]


@pytest.mark.parametrize("scale", [1.0, 10.0])
async def test_late_callback_comes_late(scale):
    """A late callback goes out its delay in service seconds after the end of the conversion."""
    now = Moved()
    fault = Fault(on="callback", kind="late", delay_s=30.0 * scale)
    async with running(fault, now=now, time_scale=scale) as (kie, client, receiver):
        task_id = await client.submit(receiver.url)
        record = await client.record(task_id)
        for after in (29.9, 0.1):
            now.at += after
            kie._handler.sender.look()
        await until(lambda: kie.deliveries)

    assert "SUCCESS" == record["successFlag"]
    assert [5030.0] == [one.at for one in kie.deliveries]


async def test_doubled_callback_comes_twice_at_once():
    """A doubled callback is under way twice before either is answered."""
    async with running(Fault(on="callback", kind="doubled")) as (kie, client, receiver):
        receiver.let_go.clear()
        await client.submit(receiver.url)
        await until(lambda: len(receiver.came) == 2)
        receiver.let_go.set()
        await until(lambda: len(kie.deliveries) == 2)

    assert receiver.came[0].raw == receiver.came[1].raw
    assert [(1, 200), (1, 200)] == [one[2:] for one in kie.deliveries]
    assert {"delivered": 1} == kie.state().callbacks


async def test_double_can_come_later():
    """The second of a doubled callback waits its delay."""
    now = Moved()
    fault = Fault(on="callback", kind="doubled", delay_s=30.0)
    async with running(fault, now=now) as (kie, client, receiver):
        await client.submit(receiver.url)
        await until(lambda: kie.deliveries)
        now.at += 30.0
        kie._handler.sender.look()
        await until(lambda: len(kie.deliveries) == 2)

    assert [5000.0, 5030.0] == [one.at for one in kie.deliveries]


async def test_early_callback_comes_before_the_submit_is_answered():
    """A submit is answered only after its early callback was, and its record agrees."""
    async with running(Fault(on="callback", kind="early"), median_s=60.0) as (
        kie,
        client,
        receiver,
    ):
        receiver.let_go.clear()
        asked = asyncio.create_task(client.submit(receiver.url))
        await until(lambda: receiver.came)
        for _ in range(100):
            await asyncio.sleep(0)
        waiting = not asked.done()
        receiver.let_go.set()
        task_id = await asked
        record = await client.record(task_id)

    assert waiting
    assert task_id == receiver.came[0].json["data"]["task_id"]
    assert "SUCCESS" == record["successFlag"]
    assert [(task_id, 1, 200)] == [one[1:] for one in kie.deliveries]


async def test_early_callback_comes_even_if_the_answer_does_not():
    """With the answer to the submit lost, its early callback still tells the task id."""
    faults = [Fault(on="callback", kind="early"), Fault(kind="hangup", when="after")]
    async with running(*faults) as (kie, client, receiver):
        with pytest.raises(aiohttp.ClientError):
            await client.submit(receiver.url)

    assert list(kie._handler.service.tasks) == [receiver.came[0].json["data"]["task_id"]]


async def test_early_callback_that_is_not_taken_is_sent_again():
    """An early callback has its retries, which nothing waits for."""
    fault = Fault(on="callback", kind="early")
    async with running(fault, statuses=[503], time_scale=1e4) as (kie, client, receiver):
        await client.submit(receiver.url)
        await until(lambda: len(kie.deliveries) == 2)

    assert [503, 200] == [one.status for one in kie.deliveries]


async def test_script_counts_callbacks_that_are_sent():
    """Callbacks for addresses that are never called do not count for the script."""
    fault = Fault(on="callback", kind="unsigned", at=2)
    async with running(fault) as (kie, client, receiver):
        await client.submit("https://caller.invalid/", "x")
        for name in "abc":
            await client.submit(receiver.url, name)
        await until(lambda: len(kie.deliveries) == 3)
        unsigned = ["X-Webhook-Signature" not in came.headers for came in receiver.came]

    assert [False, True, False] == unsigned


async def test_script_names_tracks_and_tasks():
    """A fault for one audio id leaves other callbacks alone."""
    fault = Fault(on="callback", kind="no-query", audio_id="b")
    async with running(fault) as (kie, client, receiver):
        for name in "abc":
            await client.submit(receiver.url, name)
        await until(lambda: len(kie.deliveries) == 3)

    assert [False, True, False] == ["?" not in came.target for came in receiver.came]


async def test_success_without_url_strikes_successes_only():
    """A kind that takes the URL away counts only callbacks that have one."""
    faults = [
        Fault(on="conversion", kind="fail", at=1),
        Fault(on="callback", kind="no-url", at=1),
    ]
    async with running(*faults) as (kie, client, receiver):
        for name in "ab":
            await client.submit(receiver.url, name)
        await until(lambda: len(kie.deliveries) == 2)

    assert [500, 200] == [came.json["code"] for came in receiver.came]
    assert [None, None] == [came.json["data"]["audioWavUrl"] for came in receiver.came]


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "late"},
        {"kind": "lost", "on": "poll"},
        {"kind": "lost", "when": "before"},
        {"kind": "code", "when": "before"},
        {"kind": "hangup"},
        {"kind": "slow", "delay_s": 1.0},
        {"kind": "flag-name", "word": "x"},
        {"kind": "unsigned", "verdict": "created"},
    ],
    ids=str,
)
def test_fault_that_makes_no_sense_for_a_callback_is_refused(fault):
    """What cannot happen to a callback is a ValueError where it is written."""
    with pytest.raises(ValueError, match="Fault"):
        Fault(**{"on": "callback", **fault})


def test_callback_faults_survive_json():
    """A fault of callbacks comes back from its JSON form."""
    fault = Fault(on="callback", kind="doubled", delay_s=(1, 2), every=3, audio_id="a")

    assert fault == Fault.from_json(json.loads(json.dumps(fault.to_json())))


# Life


async def test_slow_receivers_do_not_slow_down_the_api():
    """With more callbacks waiting than are sent at once, submits and polls are answered."""
    async with running() as (kie, client, receiver):
        receiver.let_go.clear()
        tasks = [await client.submit(receiver.url, str(n)) for n in range(130)]
        await until(lambda: len(receiver.came) == 100)
        record = await client.record(tasks[-1])
        under_way = len(kie._handler.sender._in_progress)
        receiver.let_go.set()
        await until(lambda: len(kie.deliveries) == 130)

    assert "SUCCESS" == record["successFlag"]
    assert 100 == under_way
    assert sorted(tasks) == sorted(one.task_id for one in kie.deliveries)


def leftovers(before):
    """Return the tasks that are still there, other than those before."""
    return [task for task in asyncio.all_tasks() if task not in before]


async def test_closing_ends_deliveries():
    """A delivery under way, a retry and a callback to come end with the simulator."""
    before = asyncio.all_tasks()
    async with Receiver(500) as receiver:
        async with Simulator(faults=[Fault(on="conversion", kind="takes", at=3, delay_s=9)]) as kie:
            headers = {"Authorization": f"Bearer {kie.api_key}"}
            async with aiohttp.ClientSession(kie.base_url, headers=headers) as http:
                client = Client(kie, http)
                kie._handler.set_faults([Fault(on="conversion", kind="takes", delay_s=0.0)])
                await client.submit(receiver.url, "a")
                await until(lambda: kie.deliveries)
                receiver.let_go.clear()
                await client.submit(receiver.url, "b")
                await until(lambda: len(receiver.came) == 2)
                kie.set_faults([])
                await client.submit(receiver.url, "c")
            sender = kie._handler.sender
            assert (1, 2) == (len(sender._in_progress), len(sender._due))
            await kie.aclose()

            assert (set(), [], None) == (sender._in_progress, sender._due, sender._timer)
        assert 1 == len(kie.deliveries)
        assert 1 == len(kie.state().deliveries)
    await until(lambda: not leftovers(before))
    gc.collect()


async def test_closing_does_not_wait_for_an_early_callback():
    """A submit that waits for its early callback ends with the simulator."""
    async with Receiver() as receiver:
        receiver.let_go.clear()
        kie = await Simulator(faults=[Fault(on="callback", kind="early")]).__aenter__()
        headers = {"Authorization": f"Bearer {kie.api_key}"}
        async with aiohttp.ClientSession(kie.base_url, headers=headers) as http:
            asked = asyncio.create_task(Client(kie, http).submit(receiver.url))
            await until(lambda: receiver.came)
            await kie.aclose()
            await asyncio.wait({asked})
            asked.exception()

    assert () == kie.deliveries


async def test_reset_stops_callbacks():
    """After a reset nothing planned before is sent, and nothing under way is counted."""
    async with running(statuses=[500]) as (kie, client, receiver):
        await client.submit(receiver.url, "a")
        await until(lambda: kie.deliveries)
        receiver.let_go.clear()
        await client.submit(receiver.url, "b")
        await until(lambda: len(receiver.came) == 2)
        kie.reset()
        receiver.let_go.set()
        sender = kie._handler.sender
        await until(lambda: not sender._in_progress)
        state = kie.state()
        after = sender._due[:], sender._timer
        await client.submit(receiver.url, "c")
        await until(lambda: kie.deliveries)

    assert ((), {}) == (state.deliveries, state.callbacks)
    assert ([], None) == after
    assert {"delivered": 1} == kie.state().callbacks


async def test_state_with_deliveries_survives_json():
    """A state with deliveries, answered and not, comes back from its JSON form."""
    async with running(statuses=[503], time_scale=1e4) as (kie, client, receiver):
        await client.submit(receiver.url, "a")
        await client.submit(await nobody(), "b")
        await until(lambda: {200, None} <= {one.status for one in kie.deliveries})
        state = kie.state()

    assert state == SimulatorState.from_json(json.loads(json.dumps(state.to_json())))
    assert {503, 200, None} == {one.status for one in state.deliveries}
    assert all(isinstance(one, Delivery) for one in state.deliveries)


async def test_brief_state_counts_callbacks_without_the_list():
    """A brief state tells what became of callbacks, but not of each delivery."""
    async with running() as (kie, client, receiver):
        await client.submit(receiver.url)
        await until(lambda: kie.deliveries)
        async with client.http.get("/__sim__/state?brief=1") as answer:
            told = SimulatorState.from_json(await answer.json())

    assert ((), {"delivered": 1}) == (told.deliveries, told.callbacks)


async def test_process_calls_back_into_this_one():
    """A simulator in a process of its own signs with the key it tells."""
    settings = {"median_s": 0.0, "callback_retries_s": [0.0]}
    async with Receiver(500) as receiver, SimulatorProcess(**settings) as kie:
        headers = {"Authorization": f"Bearer {kie.api_key}"}
        async with aiohttp.ClientSession(kie.base_url, headers=headers) as http:
            task_id = await Client(kie, http).submit(receiver.url)
        await until(lambda: len(receiver.came) == 2)
        timestamp, signed = receiver.came[1].signed
        # The second answer may still be under way to the other process.
        async with asyncio.timeout(20.0):
            while not (state := await kie.state()).callbacks:
                pass

    assert signature(kie.webhook_key, task_id, timestamp) == signed
    assert [(task_id, 1, 500), (task_id, 2, 200)] == [one[1:] for one in state.deliveries]


@pytest.mark.parametrize(
    "settings",
    [
        {"callback_retries_s": (-1.0,)},
        {"callback_retries_s": (1.0, float("nan"))},
        {"callback_timeout_s": 0.0},
        {"callback_timeout_s": float("inf")},
    ],
)
def test_setting_out_of_range_is_a_value_error(settings):
    """A setting of callbacks that makes no sense is refused where it is given."""
    with pytest.raises(ValueError, match="callback_"):
        Simulator(**settings)


@pytest.mark.parametrize("step", range(8))
async def test_a_start_that_is_cancelled_leaves_nothing_open(step: int) -> None:
    """Whenever entering is cancelled, nothing listens and nothing is left to warn of."""
    starting = asyncio.ensure_future(Simulator().__aenter__())
    for _ in range(step):
        await asyncio.sleep(0)
    starting.cancel()
    try:
        kie = await starting
    except asyncio.CancelledError:
        return
    await kie.aclose()


@pytest.mark.parametrize(
    ("data", "ended", "expected"),
    [
        (b"", False, None),
        (b"", True, Answer()),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n", False, None),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n", True, Answer()),
        (b"SSH-2.0\r\n\r\n", False, Answer()),
        (b"HTTP/1.1 200 OK\r\n\r\n", False, None),
        (b"HTTP/1.1 200 OK\r\n\r\n", True, Answer(200, b"")),
        (b"HTTP/1.1 200\r\n\r\nall there is", True, Answer(200, b"all there is")),
        (b"HTTP/1.0 401 No\r\ncontent-length:2\r\n\r\nno", False, Answer(401, b"no")),
        (b"HTTP/1.1 401 No\r\nContent-Length: 3\r\n\r\nno", False, None),
        (b"HTTP/1.1 401 No\r\nContent-Length: 3\r\n\r\nno", True, Answer(401, b"no")),
        (b"HTTP/1.1 100 Go\r\n\r\n", False, None),
        (b"HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 503 No\r\n\r\n", True, Answer(503, b"")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2;x=y\r\nbc\r\n0\r\n",
            False,
            Answer(200, b"abc"),
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", False, None),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", False, Answer(200, b"")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", False, Answer(200, b"")),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 99_999, False, Answer(200, b"x" * 65_536)),
        (b"x" * 99_999, False, Answer()),
    ],
)
def test_answer_is_read_as_far_as_needed(data, ended, expected):
    """An answer is whole with its length, its last chunk, the end, or 64 KiB."""
    assert expected == parse_answer(data, ended=ended)
