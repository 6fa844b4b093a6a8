from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import hmac
import json
import re
import socket
import struct
import time

import aiohttp
import attrs
import pytest

from kie_wav_async.simulator import ATTACKS, Fault, Simulator
from kie_wav_async.simulator.loopback import Answer, _send, parse_answer

ATTEMPT = "0123456789abcdef0123456789abcdef"
TARGET = f"/kie/callback?x=1&attempt={ATTEMPT}"


def signature(key, task_id, timestamp):
    """Compute a signature as the docs describe it."""
    digest = hmac.new(key.encode(), f"{task_id}.{timestamp}".encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


class Got:
    """One request as its bytes."""

    def __init__(self, head, body):
        self.raw = head + body
        self.body = body
        line, *lines = head.decode("latin-1").split("\r\n")[:-2]
        self.method, self.target, _ = line.split(" ")
        self.headers = [tuple(line.split(": ", 1)) for line in lines]

    def all(self, name):
        return [value for given, value in self.headers if given.lower() == name]

    @property
    def timestamp(self):
        (value,) = self.all("x-webhook-timestamp")
        return value

    @property
    def signature(self):
        (value,) = self.all("x-webhook-signature")
        return value

    @property
    def json(self):
        return json.loads(self.body)


class Receiver:
    """A server that keeps the bytes of each request and answers as told."""

    def __init__(self, answer=b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno"):
        self.answer = answer
        self.got = []
        self.reset = False
        self.let_go = asyncio.Event()
        self.let_go.set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.origin = f"http://127.0.0.1:{port}"
        self.url = self.origin + TARGET
        return self

    async def __aexit__(self, *exc):
        self.let_go.set()
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader, writer):
        with contextlib.suppress(OSError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            try:
                body = await reader.readexactly(int(length[1]) if length else 100_000)
            except asyncio.IncompleteReadError as error:
                body = error.partial
            self.got.append(Got(head, body))
            if self.reset:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.write(self.answer)
            await writer.drain()
        await self.let_go.wait()
        writer.close()


@contextlib.asynccontextmanager
async def called_back(*faults, answer=None, **settings):
    """Run a simulator whose one task was called back at a receiver, and tell the three."""
    settings = {"median_s": 0.0, **settings}
    async with (
        Receiver(b"HTTP/1.1 200 OK\r\n\r\n") as receiver,
        Simulator(faults=faults, **settings) as kie,
    ):
        headers = {"Authorization": f"Bearer {kie.api_key}"}
        body = {"taskId": "m", "audioId": "a", "callBackUrl": receiver.url}
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.post(kie.base_url + "/api/v1/wav/generate", json=body) as told,
        ):
            task_id = (await told.json(content_type=None))["data"]["taskId"]
        async with asyncio.timeout(20.0):
            while not kie.deliveries:  # noqa: ASYNC110 - the simulator offers no event for this
                await asyncio.sleep(0)
        if answer is not None:
            receiver.answer = answer
        yield kie, task_id, receiver


class Sent:
    """What one attack sent, beside the genuine delivery it knew of."""

    def __init__(self, kie, task_id, receiver, result):
        self.genuine, self.got = receiver.got
        self.key, self.task_id, self.result = kie.webhook_key, task_id, result

    @property
    def is_signed(self):
        return self.got.signature == signature(self.key, self.said_id, self.got.timestamp)

    @property
    def said_id(self):
        return self.got.json["data"]["task_id"]


async def sent_by(kind):
    """Carry one attack out, and tell what it sent."""
    patience_s = 0.3 if kind == "slow-body" else 20.0
    async with called_back() as (kie, task_id, receiver):
        result = await kie.attack(kind, task_id, patience_s=patience_s)
        async with asyncio.timeout(20.0):
            while len(receiver.got) < 2:  # noqa: ASYNC110 - the receiver offers no event for this
                await asyncio.sleep(0)
        return Sent(kie, task_id, receiver, result)


# What is sent


@pytest.mark.parametrize("kind", ATTACKS)
async def test_attack_goes_where_the_callback_goes(kind):
    """Every attack is one request to the address of the callback, and says what it tries."""
    sent = await sent_by(kind)

    assert kind == sent.result.kind
    assert re.fullmatch(r"[^\n]{10,90}", sent.result.tries)
    if kind != "wrong-attempt":
        assert TARGET == sent.got.target
    assert ("GET" if kind == "get" else "POST") == sent.got.method
    assert sent.genuine.all("host") == sent.got.all("host")


async def test_replay_is_the_genuine_delivery_byte_for_byte(monkeypatch):
    """A replay repeats every byte that was sent, the timestamp of then as well."""
    now_s = time.time()
    async with called_back() as (kie, task_id, receiver):
        monkeypatch.setattr(time, "time", lambda: now_s + 200)
        await kie.attack("replay", task_id)

    assert receiver.got[0].raw == receiver.got[1].raw


async def test_forged_without_headers():
    """Without the key, the simplest thing is to leave the headers out."""
    sent = await sent_by("no-headers")

    assert [] == sent.got.all("x-webhook-signature") == sent.got.all("x-webhook-timestamp")
    assert sent.task_id == sent.said_id


async def test_guessed_key():
    """A guessed key signs well, but not as the account's key does."""
    sent = await sent_by("wrong-key")

    assert re.fullmatch("[A-Za-z0-9+/]{43}=", sent.got.signature)
    assert not sent.is_signed


@pytest.mark.parametrize("kind", ["other-body", "wrong-attempt"])
async def test_other_body_under_the_genuine_headers(kind):
    """Headers that were overheard stand over the attacker's URL, and verify."""
    sent = await sent_by(kind)

    assert sent.genuine.headers[-2:] == sent.got.headers[-2:]
    assert sent.is_signed
    assert "attacker" in sent.got.json["data"]["audioWavUrl"]


async def test_other_attempt_in_the_query():
    """The attempt is another one of the same form, and the rest of the query stays."""
    sent = await sent_by("wrong-attempt")

    assert TARGET.replace(ATTEMPT, ATTEMPT[::-1]) == sent.got.target


async def test_failure_under_the_genuine_headers():
    """Headers that were overheard stand over a failure, and verify."""
    sent = await sent_by("failure-body")

    assert sent.is_signed
    assert (501, None) == (sent.got.json["code"], sent.got.json["data"]["audioWavUrl"])


@pytest.mark.parametrize(("kind", "age_s"), [("stale", 600), ("future", -600)])
async def test_genuine_signature_out_of_its_time(kind, age_s):
    """A signature of another time verifies, ten minutes too late or too early."""
    sent = await sent_by(kind)

    assert sent.is_signed
    assert abs(time.time() - int(sent.got.timestamp) - age_s) < 60


@pytest.mark.parametrize("kind", ["unicode-digits", "padded-timestamp", "blank-in-timestamp"])
async def test_timestamp_that_python_takes_for_the_genuine_one(kind):
    """The timestamp is spelled otherwise, and still the same number to a careless reader."""
    sent = await sent_by(kind)
    raw = sent.got.timestamp.encode("latin-1")
    text = raw.decode() if kind == "unicode-digits" else raw.decode("latin-1")

    assert sent.genuine.timestamp != text
    assert int(sent.genuine.timestamp) == int(text)
    assert sent.genuine.signature == sent.got.signature


@pytest.mark.parametrize(("kind", "place"), [("two-signatures", 1), ("two-signatures-swapped", 0)])
async def test_two_signatures(kind, place):
    """The genuine signature stands behind or before another one."""
    sent = await sent_by(kind)
    both = sent.got.all("x-webhook-signature")

    assert [place] == [n for n, one in enumerate(both) if one == sent.genuine.signature]
    assert 2 == len(both)


async def test_spare_bits():
    """Another base64 text decodes to the genuine signature."""
    sent = await sent_by("spare-bits")

    assert sent.genuine.signature != sent.got.signature
    assert base64.b64decode(sent.genuine.signature) == base64.b64decode(sent.got.signature)


async def test_spliced_id():
    """An id that contains the dot is signed as it stands."""
    sent = await sent_by("spliced-id")

    assert f"{sent.task_id}.{sent.genuine.timestamp}" == sent.said_id
    assert sent.is_signed


async def test_duplicate_keys():
    """The body names another task first and the genuine one last, by the same name."""
    sent = await sent_by("duplicate-keys")

    assert 2 == sent.got.body.count(b'"task_id":')
    assert sent.is_signed


async def test_two_ids():
    """The body names two tasks by two names, and the headers are for the first."""
    sent = await sent_by("two-ids")

    assert sent.is_signed
    assert re.fullmatch("[0-9a-f]{32}", sent.got.json["taskId"])
    assert sent.task_id != sent.got.json["taskId"]


async def test_foreign_task():
    """A callback of another product is signed for an id of its own."""
    sent = await sent_by("foreign-task")

    assert sent.task_id != sent.said_id
    assert sent.is_signed


async def test_deep_json():
    """The body is 30,000 levels deep, well-formed, and within 64 KiB."""
    sent = await sent_by("deep-json")

    assert 30_000 == sent.got.body.count(b"[") == sent.got.body.count(b"]")
    assert len(sent.got.body) <= 65_536


async def test_oversize():
    """The body is one byte over 64 KiB, and else in order."""
    sent = await sent_by("oversize")

    assert 65_537 == len(sent.got.body)
    assert sent.is_signed


async def test_gzip_bomb():
    """Less than 64 KiB unpack to 200 times as much, a genuine body in it."""
    sent = await sent_by("gzip-bomb")
    whole = gzip.decompress(sent.got.body)

    assert ["gzip"] == sent.got.all("content-encoding")
    assert len(sent.got.body) <= 65_536
    assert len(whole) >= 200 * len(sent.got.body)
    assert sent.task_id == json.loads(whole)["data"]["task_id"]


async def test_endless_chunks():
    """A chunked body goes on until the receiver has had enough."""
    sent = await sent_by("endless-chunks")

    assert ["chunked"] == sent.got.all("transfer-encoding")
    assert [] == sent.got.all("content-length")
    assert 100_000 == len(sent.got.body)


async def test_slow_body():
    """Half of a body comes, and no more for as long as there is patience."""
    sent = await sent_by("slow-body")
    (length,) = sent.got.all("content-length")

    assert int(length) // 2 == len(sent.got.body)
    assert (None, None) == (sent.result.status, sent.result.body)
    assert sent.result.took_s >= 0.3


async def test_genuine_of_a_failed_task():
    """What is overheard of a task that failed says so."""
    async with called_back(Fault(on="conversion", kind="fail")) as (kie, task_id, receiver):
        await kie.attack("replay", task_id)

    assert receiver.got[0].raw == receiver.got[1].raw
    assert 500 == receiver.got[1].json["code"]


async def test_task_that_was_not_called_back():
    """Of a task that was not called back, the attacker has what would be sent now."""
    fault = Fault(on="callback", kind="lost")
    async with Receiver() as receiver, called_back() as (kie, _, _):
        kie.set_faults([fault])
        result = await kie.attack("replay", "task-1", url=receiver.url)
    (got,) = receiver.got

    assert 401 == result.status
    assert signature(kie.webhook_key, "task-1", got.timestamp) == got.signature
    assert abs(time.time() - int(got.timestamp)) < 60


# What comes back


async def test_answer_is_told():
    """Status and body of the answer are handed on, and the result cannot be changed."""
    answer = b"HTTP/1.1 418 T\r\nContent-Length: 4\r\n\r\nshort and stout"
    async with called_back(answer=answer) as (kie, task_id, _):
        result = await kie.attack("replay", task_id)

    assert (418, b"shor") == (result.status, result.body)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        result.status = 200


@pytest.mark.parametrize("reset", [False, True])
async def test_hanging_up_is_told(reset):
    """A connection closed without an answer has no status."""
    async with called_back(answer=b"") as (kie, task_id, receiver):
        receiver.reset = reset
        result = await kie.attack("replay", task_id)

    assert (None, None) == (result.status, result.body)


async def test_answer_before_the_end_is_told():
    """A receiver that answers and hangs up in the middle of a body is understood."""
    answer = b"HTTP/1.1 413 Too much\r\nContent-Length: 0\r\n\r\n"
    async with called_back(answer=answer) as (kie, task_id, _):
        for _ in range(5):
            result = await kie.attack("endless-chunks", task_id, patience_s=20.0)

            assert (413, b"") == (result.status, result.body)


async def test_answer_ends_what_is_still_being_sent():
    """A receiver that answers, reads no more and stays is not waited for."""
    answer = b"HTTP/1.1 413 Too much\r\nContent-Length: 0\r\n\r\n"
    async with called_back(answer=answer) as (kie, task_id, receiver):
        receiver.let_go.clear()
        result = await kie.attack("endless-chunks", task_id, patience_s=20.0)

    assert 413 == result.status


async def test_sending_much_leaves_the_loop_its_turns(monkeypatch):
    """However fast a socket takes it, what is sent in pieces lets others run in between."""
    turns = []

    async def taken_at_once(_, piece):
        turns.append(piece)

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_sendall", taken_at_once)
    sending = asyncio.create_task(_send(None, b"first", [b"more"] * 9))
    seen = []
    while not sending.done():
        await asyncio.sleep(0)
        seen.append(len(turns))

    assert max(b - a for a, b in zip([0, *seen], seen, strict=False)) <= 2


async def test_nobody_there_is_told():
    """Where nobody listens there is no status, and no error either."""
    async with Receiver() as receiver:
        pass
    async with Simulator() as kie:
        result = await kie.attack("replay", "t", url=receiver.url)

    assert None is result.status


async def test_attacks_are_no_deliveries():
    """An attack is counted nowhere."""
    async with called_back() as (kie, task_id, _):
        before = kie.state()
        await kie.attack("replay", task_id)
        after = kie.state()

    assert attrs.evolve(before, now=0.0) == attrs.evolve(after, now=0.0)


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


# What is refused


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        ("nonsense", {}, "slow-body"),
        ("replay", {"patience_s": 0.0}, "patience_s"),
        ("replay", {"patience_s": float("nan")}, "patience_s"),
        ("replay", {"url": "http://192.0.2.1/"}, "this machine"),
        ("replay", {"url": "https://caller.invalid/"}, "this machine"),
        ("replay", {}, "url"),
    ],
)
async def test_attack_that_makes_no_sense_is_a_value_error(kind, options, match):
    """An unknown attack, task or place is refused before anything is sent."""
    async with Simulator() as kie:
        with pytest.raises(ValueError, match=match):
            await kie.attack(kind, "unknown", **options)


async def test_attack_before_the_start_is_a_runtime_error():
    """A simulator that does not run attacks nobody."""
    with pytest.raises(RuntimeError, match="async with"):
        await Simulator().attack("replay", "t", url="http://127.0.0.1:9/")


async def test_key_of_the_account_is_in_no_text():
    """Nothing that is told of an attack holds the key."""
    async with called_back() as (kie, task_id, receiver):
        told = repr([await kie.attack(kind, task_id, patience_s=0.3) for kind in ATTACKS])

    assert kie.webhook_key not in told
    assert all(kie.webhook_key.encode() not in got.raw for got in receiver.got)
