"""The media host of the tests lies as told, and otherwise not at all."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import itertools
import re
import socket
import ssl
import struct

import aiohttp
import attrs
import pytest

from certificates import TRUSTED_PEM
from media import (
    File,
    Manner,
    MediaServer,
    ScriptedResolver,
    bomb,
    encoded,
    endless,
    page,
    part,
    redirect,
    refusal,
    wav_bytes,
)

BODY = wav_bytes(1_000)
# What no test waits for; it only ends a hang.
PATIENCE_S = 20.0


@attrs.frozen
class Answer:
    """What arrived on the wire, and how it ended."""

    wire: bytes
    is_reset: bool = False

    @property
    def status(self):
        """The number in the status line."""
        return int(self.wire.split(b" ")[1])

    @property
    def headers(self):
        """All headers by their names in small letters."""
        lines = self.wire.split(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    @property
    def body(self):
        """What came after the headers."""
        return self.wire.partition(b"\r\n\r\n")[2]


async def ask(url, *headers, method="GET", **settings):
    """Send one request, and read until the server ends the connection."""
    reader, writer = await asyncio.open_connection(url.host, url.port, **settings)
    lines = [f"{method} {url.raw_path_qs} HTTP/1.1", f"Host: {url.host}", "Connection: close"]
    writer.write("\r\n".join([*lines, *headers, "", ""]).encode())
    wire, is_reset = b"", False
    try:
        async with asyncio.timeout(PATIENCE_S):
            while data := await reader.read(1 << 16):
                wire += data
    except ConnectionResetError:
        is_reset = True
    writer.close()
    return Answer(wire, is_reset)


@pytest.fixture
async def media():
    """Run a server."""
    async with MediaServer() as server:
        yield server


# Honest


async def test_file_is_served_as_it_is(media):
    """By default a GET brings the file, its length and its tag."""
    answer = await ask(media.put("/a.wav", BODY))

    assert (200, BODY) == (answer.status, answer.body)
    assert {
        "content-type": "audio/wav",
        "accept-ranges": "bytes",
        "etag": '"v1"',
        "content-length": "1000",
    } == answer.headers


@pytest.mark.parametrize(
    ("headers", "etag", "expected"),
    [
        (["Range: bytes=400-"], '"v1"', (206, BODY[400:], "bytes 400-999/1000")),
        (["Range: bytes=0-"], '"v1"', (206, BODY, "bytes 0-999/1000")),
        (["Range: bytes=999-"], '"v1"', (206, BODY[999:], "bytes 999-999/1000")),
        (["Range: bytes=1000-"], '"v1"', (416, b"", "bytes */1000")),
        (["Range: bytes=400-", 'If-Range: "v1"'], '"v1"', (206, BODY[400:], "bytes 400-999/1000")),
        (["Range: bytes=400-", 'If-Range: "v0"'], '"v1"', (200, BODY, None)),
        (["Range: bytes=1000-", 'If-Range: "v0"'], '"v1"', (200, BODY, None)),
        (["Range: bytes=400-", 'If-Range: W/"v1"'], 'W/"v1"', (200, BODY, None)),
        (["Range: bytes=400-", 'If-Range: "v1"'], None, (200, BODY, None)),
        (["Range: lines=4-"], '"v1"', (200, BODY, None)),
    ],
)
async def test_ranges_are_served_by_the_book(media, headers, etag, expected):
    """A range, and a condition on it, get what RFC 9110 says."""
    answer = await ask(media.put("/a.wav", BODY, etag=etag), *headers)

    assert expected == (answer.status, answer.body, answer.headers.get("content-range"))


async def test_connection_serves_one_request_after_the_other(media):
    """An ordinary client gets many files over one connection."""
    url = media.put("/a.wav", BODY)
    async with aiohttp.ClientSession() as session:
        for _ in range(3):
            async with session.get(url) as response:
                assert BODY == await response.read()
        async with session.head(url) as response:
            assert "1000" == response.headers["Content-Length"]

    assert 1 == media.connections
    assert ["GET"] * 3 + ["HEAD"] == [request.method for request in media.requests]


async def test_tls_is_spoken():
    """With TLS, a client that trusts the certificate gets the file from localhost."""
    async with MediaServer(host="localhost", is_tls=True) as media:
        url = media.put("/a.wav", BODY)
        answer = await ask(url, ssl=ssl.create_default_context(cafile=TRUSTED_PEM))

    assert "https" == url.scheme
    assert BODY == answer.body


async def test_unknown_path_is_not_found(media):
    """Nothing is served that was not put there."""
    assert 404 == (await ask(media.url("/b.wav"))).status


async def test_requests_are_kept_as_they_arrived(media):
    """Method, target, headers in their order and case, connection and bytes sent are kept."""
    url = media.put("/a.wav", BODY)
    await ask(url.with_query("a=1&b"), "X-B: 2", "x-a: 1", "X-B: 3", "Range: bytes=990-")
    await ask(url)

    first, second = media.asked("/a.wav")
    assert ("GET", "/a.wav?a=1&b") == (first.method, first.target)
    assert (("X-B", "2"), ("x-a", "1"), ("X-B", "3"), ("Range", "bytes=990-")) == first.headers[2:]
    assert (None, "1", None) == tuple(first.header(name) for name in ("X-B", "X-A", "X-C"))
    assert (990, None) == (first.start, second.start)
    assert (1, 2) == (first.number, second.number)
    assert (1, 2) == (first.connection, second.connection)
    assert (10, 1_000) == (first.sent, second.sent)
    assert first.is_over


# Lies about the body


@pytest.mark.parametrize(
    ("manner", "length", "body"),
    [
        (Manner(length=1_100), "1100", BODY),
        (Manner(length=900), "900", BODY),
        (Manner(length=(1 << 30) + 1, cut=0), str((1 << 30) + 1), b""),
        (Manner(cut=400), "1000", BODY[:400]),
        (Manner(cut=0), "1000", b""),
        (Manner(framing="close"), None, BODY),
        (Manner(framing="close", cut=400), None, BODY[:400]),
        (Manner(body=b""), "0", b""),
        (Manner(body=BODY * 2), "2000", BODY * 2),
        (Manner(body=[BODY, BODY[:5]], framing="close"), None, BODY + BODY[:5]),
    ],
)
async def test_length_is_what_it_is_told_to_be(media, manner, length, body):
    """Length and bytes are independent of each other."""
    answer = await ask(media.put("/a.wav", BODY, manner))

    assert (200, body) == (answer.status, answer.body)
    assert length == answer.headers.get("content-length")
    assert len(body) == media.requests[0].sent


async def test_chunks_are_whole_or_not(media):
    """A chunked body is readable by others, and cut without its last chunk if so told."""
    body = wav_bytes(10_000)
    async with aiohttp.ClientSession() as session:
        async with session.get(media.put("/a", body, Manner(framing="chunked"))) as response:
            assert body == await response.read()
            assert "Content-Length" not in response.headers
        for cut in (10_000, 9_999, 4_096, 1, 0):
            url = media.put("/b", body, Manner(framing="chunked", cut=cut))
            async with session.get(url) as response:
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()
            assert cut == media.requests[-1].sent


@pytest.mark.parametrize(
    ("manner", "expected"),
    [
        (Manner(status=204), (204, b"")),
        (Manner(status=500), (500, b"")),
        (Manner(status=206), (206, BODY)),
        (refusal(403), (403, b'<?xml version="1.0"?><Error><Code>403</Code></Error>')),
        (refusal(429, ("Retry-After", "7")), (429, refusal(429).body)),
        (page(), (200, page().body)),
        (redirect("http://b.example/x"), (302, b"")),
        (redirect(None, 308), (308, b"")),
        (part(), (206, BODY)),
    ],
)
async def test_status_is_what_it_is_told_to_be(media, manner, expected):
    """A status of its own comes with a fitting body, and its connection lives on."""
    url = media.put("/a.wav", BODY, manner)
    answer = await ask(url)
    async with aiohttp.ClientSession() as session:
        for _ in range(2):
            async with session.get(url, allow_redirects=False) as response:
                assert expected == (response.status, await response.read())

    assert expected == (answer.status, answer.body)
    assert 2 == media.connections


async def test_headers_are_put_in_place_of_the_honest_ones(media):
    """A header of the manner's own replaces all of that name, in any case; none removes it."""
    manner = Manner(headers=(("etag", 'W/"v1"'), ("Accept-Ranges", None), ("X-A", "b")))
    answer = await ask(media.put("/a.wav", BODY, manner))

    assert {
        "content-type": "audio/wav",
        "content-length": "1000",
        "etag": 'W/"v1"',
        "x-a": "b",
    } == answer.headers


async def test_other_file_is_served_for_one_request(media):
    """The file may be another one from one request to the next."""
    other = File(wav_bytes(900, seed=1), '"v2"')
    url = media.put("/a.wav", BODY, [Manner(cut=10), Manner(file=other), Manner()])
    answers = [await ask(url, "Range: bytes=10-", 'If-Range: "v1"') for _ in range(4)]

    assert [206, 200, 206, 206] == [answer.status for answer in answers]
    assert other.body == answers[1].body
    assert '"v2"' == answers[1].headers["etag"]


async def test_manner_may_depend_on_the_request(media):
    """A function of the request decides, alone or at its place in a sequence."""
    url = media.put("/a.wav", BODY, lambda request: Manner(status=200 + request.number))
    other = media.put("/b.wav", BODY, [Manner(), lambda request: Manner(cut=request.start)])

    assert [201, 202] == [(await ask(url)).status for _ in range(2)]
    assert BODY == (await ask(other)).body
    assert BODY[7:14] == (await ask(other, "Range: bytes=7-")).body


@pytest.mark.parametrize(
    ("manner", "content_range", "body"),
    [
        (part(), "bytes 400-999/1000", BODY[400:]),
        (part("bytes 0-{last}/{size}"), "bytes 0-999/1000", BODY[400:]),
        (part(shift=5), "bytes 400-999/1000", BODY[405:]),
        (part("bytes {start}-{last}/*"), "bytes 400-999/*", BODY[400:]),
        (part(None), None, BODY[400:]),
        (Manner(ignores_range=True), None, BODY),
    ],
)
async def test_range_is_what_it_is_told_to_be(media, manner, content_range, body):
    """Content-Range and bytes are independent of what was asked for."""
    answer = await ask(media.put("/a.wav", BODY, manner), "Range: bytes=400-")

    assert (content_range, body) == (answer.headers.get("content-range"), answer.body)


async def test_codings_are_named_and_for_gzip_true(media):
    """A coding is said in the header; gzip is gzip, others only say so; a bomb is small."""
    answers = {
        coding: await ask(media.put("/a.wav", BODY, encoded(coding)))
        for coding in ("gzip", "br", "identity")
    }
    cut = await ask(media.put("/a.wav", BODY, encoded(cut=100)))
    zeros = await ask(media.put("/a.wav", BODY, bomb(1 << 20)))

    assert list(answers) == [answer.headers["content-encoding"] for answer in answers.values()]
    assert BODY == gzip.decompress(answers["gzip"].body)
    assert BODY == answers["br"].body == answers["identity"].body
    assert answers["gzip"].body[:100] == cut.body
    assert bytes(1 << 20) == gzip.decompress(zeros.body)
    assert len(zeros.body) < 1_100


async def test_redirects_make_a_chain(media):
    """A chain has as many hops as told, and ends where told."""
    url = media.chain(3, media.put("/a.wav", BODY), status=307, headers=(("Set-Cookie", "a=b"),))
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert BODY == await response.read()

    assert ["/hop/1", "/hop/2", "/hop/3", "/a.wav"] == [one.target for one in media.requests]
    assert [307] * 3 == [one.status for one in response.history]
    assert "a=b" == response.history[0].headers["Set-Cookie"]


# Cuts, stops and the like


async def test_answer_can_end_at_every_byte(media):
    """Whatever byte of the wire is named, exactly those before it arrive, headers included."""
    whole = (await ask(media.put("/a.wav", BODY))).wire
    for k in (0, 1, 5, 20, len(whole) - 1_000, len(whole) - 999, len(whole) - 1, len(whole)):
        answer = await ask(media.put("/b.wav", BODY, Manner(wire_cut=k)))

        assert whole[:k] == answer.wire
        assert k == media.requests[-1].wire


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_answer_ends_as_told(media, end):
    """A cut, and a whole answer too, end in an orderly way or with a reset."""
    for manner in (Manner(cut=400, end=end), Manner(wire_cut=0, end=end), Manner(end=end)):
        answer = await ask(media.put("/a.wav", BODY, manner))

        assert ("rst" == end) == answer.is_reset
    assert BODY == answer.body


@pytest.mark.parametrize(
    "manner",
    [Manner(cut=400, end="stall"), Manner(wire_cut=10, end="stall"), Manner(cut=0, end="stall")],
)
async def test_stall_lasts_until_the_client_gives_up(media, manner):
    """A stalled answer neither goes on nor ends by itself."""
    url = media.put("/a.wav", BODY, manner)
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"GET /a.wav HTTP/1.1\r\n\r\n")
    request = await media.until("/a.wav", sent=manner.cut or 0)
    ended = asyncio.ensure_future(media.ended())
    for _ in range(50):
        await asyncio.sleep(0)
    assert (True, False) == (request.is_over, ended.done())
    writer.close()
    await ended


async def test_server_stops_where_held(media):
    """At a hold nothing more is sent until it is over, and the test can wait for that moment."""
    gates = asyncio.Event(), asyncio.Event(), asyncio.Event()
    holds = tuple(zip((0, 400, 1_000), (gate.wait for gate in gates), strict=True))
    url = media.put("/a.wav", BODY, Manner(holds=holds, piece=300, framing="chunked"))
    asking = asyncio.ensure_future(ask(url))
    for sent, gate in zip((0, 400, 1_000), gates, strict=True):
        request = await media.until("/a.wav", sent=sent)
        for _ in range(50):
            await asyncio.sleep(0)
        assert (sent, False) == (request.sent, request.is_over)
        gate.set()

    assert (await asking).wire.endswith(b"0\r\n\r\n")
    assert request.is_over


async def test_bytes_come_one_by_one(media):
    """A trickle has a tick after every piece, of the headers too if so told."""
    ticks = itertools.count()

    async def tick():
        next(ticks)

    answer = await ask(media.put("/a.wav", BODY, Manner(piece=1, tick=tick)))
    assert BODY == answer.body
    assert 1_001 == next(ticks)
    answer = await ask(media.put("/a.wav", BODY, Manner(head_piece=1, tick=tick)))
    assert 1_002 + len(answer.wire) - 1_000 + 1 == next(ticks)


async def test_endless_body_counts_what_was_taken(media):
    """An endless body goes on for as long as the client takes it, and not far beyond."""
    url = media.put("/a.wav", manner=Manner(body=endless(first=BODY), framing="close"))
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert BODY == await response.content.readexactly(1_000)
        await response.content.readexactly(1 << 20)
        response.close()
    await media.ended()

    assert 1 << 20 <= media.requests[0].sent < 1 << 25


@pytest.mark.parametrize("raw", [b"", b"\x00\x01", b"HTTP/1.1 2OO OK\r\n\r\n", [b"a", b"b"]])
async def test_anything_can_be_sent(media, raw):
    """An answer may be any bytes, or none."""
    answer = await ask(media.put("/a.wav", BODY, Manner(raw=raw)))

    assert b"".join([raw] if isinstance(raw, bytes) else raw) == answer.wire


async def test_trouble_in_a_hook_is_not_hidden():
    """What goes wrong in a hook of a test, or in the server, ends the test."""

    async def fail():
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        async with MediaServer() as media:
            await ask(media.put("/a.wav", BODY, Manner(holds=((0, fail),))))


async def test_waiting_for_a_later_request(media):
    """A test can wait for the second request and how far its answer is."""
    url = media.put("/a.wav", BODY)
    waiting = asyncio.ensure_future(media.until("/a.wav", number=2, sent=1_000))
    await ask(url)
    assert not waiting.done()
    await ask(url)

    assert 2 == (await waiting).number


# Files and names


@pytest.mark.parametrize("kind", ["RIFF", "RF64", "BW64"])
@pytest.mark.parametrize("size", [80, 81, 1_000, 100_003])
def test_wav_has_the_size_it_declares(kind, size):
    """A WAV is as long as asked for, and its header agrees."""
    body = wav_bytes(size, kind=kind)

    assert size == len(body)
    assert (kind.encode(), b"WAVE") == (body[:4], body[8:12])
    declared = struct.unpack_from("<I", body, 4)[0]
    if kind != "RIFF":
        assert 0xFFFFFFFF == declared
        assert b"ds64" == body[12:16]
        declared = struct.unpack_from("<Q", body, 20)[0]
    assert size - 8 == declared
    chunks = dict(re.findall(rb"(fmt |data)(.{4})", body[:80], re.DOTALL))
    assert struct.pack("<I", 16) == chunks[b"fmt "]


def test_wav_may_declare_another_size():
    """The declared size is what it is told to be."""
    assert bytes(4) == wav_bytes(declared=0)[4:8]
    assert b"\xff\xff\xff\xff" == wav_bytes(declared=0xFFFFFFFF)[4:8]
    assert struct.pack("<Q", 7) == wav_bytes(kind="RF64", declared=7)[20:28]


def test_wavs_differ_in_every_part():
    """Two versions of a file are nowhere alike after their headers; one version always is."""
    first, second = wav_bytes(10_000), wav_bytes(10_000, seed=1)

    assert first == wav_bytes(10_000)
    assert first[:44] == second[:44]
    cut = range(44, 10_000, 100)
    parts = [hashlib.sha256(body[k : k + 16]).digest() for body in (first, second) for k in cut]
    assert len(parts) == len(set(parts))


async def test_resolver_changes_its_mind():
    """Each look gets the next answer, the last one holds, and every look is kept."""
    resolver = ScriptedResolver({"a.example": [["93.184.216.34"], ["127.0.0.1", "::1"]]})
    looks = [await resolver.resolve("a.example", 443) for _ in range(3)]
    with pytest.raises(OSError, match="no such host"):
        await resolver.resolve("b.example", 443)
    await resolver.close()
    elsewhere = ScriptedResolver({"a.example": [["127.0.0.1"]]}, port=4711)
    assert 4711 == (await elsewhere.resolve("a.example", 443))[0]["port"]
    everywhere = ScriptedResolver({}, others=["10.0.0.1"])
    assert "10.0.0.1" == (await everywhere.resolve("b.example", 443))[0]["host"]

    assert ["93.184.216.34"] == [found["host"] for found in looks[0]]
    assert looks[1] == looks[2]
    families = [(found["family"], found["port"]) for found in looks[1]]
    assert [(socket.AF_INET, 443), (socket.AF_INET6, 443)] == families
    assert ["a.example"] * 3 + ["b.example"] == resolver.looks
