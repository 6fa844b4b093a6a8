"""
What a media host may do to a download, as a table, and what is to come of it.

Each `Case` is one host: how it answers, one request after the other, what then is
on the disk, and after how many requests. `Downloading` is the session it is done
to: its back-offs pass at once, and it asks a service of its own for fresh links.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
from yarl import URL

from kie_wav_async import Track, WavFile, WavSession, WireResponse, events
from kie_wav_async.errors import DownloadError
from kie_wav_async.testing import FakeClock, ScriptedTransport, answer, refused
from media import (
    HONEST,
    File,
    Manner,
    Manners,
    MediaServer,
    Request,
    bomb,
    encoded,
    endless,
    page,
    part,
    redirect,
    refusal,
    wav_bytes,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from kie_wav_async import Download, WireRequest

KEY: Final = "sk-kie-PLANTED-0123456789"
TRACK: Final = Track("5c79", "e231")
ATTEMPTS: Final = 8
#: Of those that take our patience.
FEW: Final = 3

BODY: Final = wav_bytes(1_000)
#: Another version of it: of the same length, longer, shorter.
OTHER: Final = wav_bytes(1_000, seed=1)
LONGER: Final = wav_bytes(1_100, seed=2)
SHORTER: Final = wav_bytes(300, seed=3)
#: Written as a stream: its header does not know its length.
UNTOLD: Final = wav_bytes(1_000, declared=0xFFFFFFFF)

MIB: Final = 1 << 20
GIB: Final = 1 << 30


class HastyClock(FakeClock):
    """
    A clock that passes a sleep at once, and keeps how long it was.

    Sockets need turns of the loop that no fake clock can count, so time moves
    when somebody sleeps, not when nothing else happens.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)
        await self.advance(delay_s)


@attrs.frozen(kw_only=True)
class Case:
    """
    One host.

    Attributes:
        manner: How it answers requests for ``/a.wav``.
        body, etag: What is there at first.
        put: Puts more there; returns the link, if that is not the one of ``/a.wav``.
        fresh: The service's answers to requests for a fresh link, given the host.
        expected: What is under the name in the end; or the reason why nothing is.
        requests: How many the host gets, for whatever.
        kept: How much is left as a part.
        is_resumed: Whether the file is said to be of several attempts.
        sleeps: How long is waited between attempts, where the host has a say in it.
        most: How much may have been sent.
        max_bytes: The longest file that is taken; `None`: as always.
        is_silent: Whether it takes our patience to get on.
    """

    manner: Manners = HONEST
    body: bytes = attrs.field(default=BODY, repr=False)
    etag: str | None = '"v1"'
    put: Callable[[MediaServer], URL | None] = lambda _: None
    fresh: Callable[[MediaServer], list[WireResponse]] = lambda _: []
    expected: bytes | str = attrs.field(default=BODY, repr=False)
    requests: int = 1
    kept: int = 0
    is_resumed: bool = False
    sleeps: list[float] | None = None
    most: int | None = None
    max_bytes: int | None = None
    is_silent: bool = False


@attrs.define
class Downloading:
    """
    A session over a fake clock, and what it told.

    Attributes:
        renewals: The links it asked fresh ones for.
    """

    session: WavSession
    clock: HastyClock
    told: list[events.Event]
    renewals: list[str]

    async def download(self, url: URL | str, path: Path, task_id: str = "t1") -> Download:
        """Download from *url*."""
        url = URL(url, encoded=True) if isinstance(url, str) else url
        wav = WavFile(task_id=task_id, url=url, track=TRACK, settled_by="poll", expires_at=None)
        return await self.session.download(wav, path)

    @property
    def retries(self) -> list[events.DownloadRetryScheduled]:
        """What it told of attempts that failed."""
        return [one for one in self.told if isinstance(one, events.DownloadRetryScheduled)]


@contextlib.asynccontextmanager
async def downloading(*fresh: WireResponse, **settings: Any) -> AsyncIterator[Downloading]:
    """Run a session that trusts 127.0.0.1; *fresh* are the service's answers for fresh links."""
    clock = HastyClock()
    told: list[events.Event] = []
    renewals: list[str] = []
    answers = iter(fresh)

    def reply(request: WireRequest) -> WireResponse:
        assert request.url.endswith("/download-url"), request.url
        renewals.append(json.loads(request.body or b"")["url"])
        return next(answers)

    settings = {"insecure_hosts": ["127.0.0.1"], "callback_url": "", **settings}
    async with WavSession(
        KEY, transport=ScriptedTransport(reply), clock=clock, on_event=told.append, **settings
    ) as session:
        yield Downloading(session, clock, told, renewals)


def link(url: URL | str) -> WireResponse:
    """Return the service's answer that gives a fresh link."""
    return answer({"code": 200, "msg": "success", "data": str(url)})


def verify_requests(media: MediaServer) -> None:
    """Hold every request to what no host may see, and to what it must."""
    for request in media.requests:
        names = [name.lower() for name, _ in request.headers]
        assert "GET" == request.method
        assert "identity" == request.header("Accept-Encoding")
        assert not {"authorization", "proxy-authorization", "cookie", "referer"} & set(names)
        assert KEY not in f"{request.target} {request.headers}"
        assert ("range" in names) == ("if-range" in names)
        if "range" in names:
            assert request.start, "a range that is the whole"


def verify_folder(folder: Path, case: Case) -> None:
    """Hold what is on the disk to what is expected of it."""
    left = {path.name: path for path in folder.iterdir()}
    assert case.kept == (left["a.wav.part"].stat().st_size if "a.wav.part" in left else 0)
    if isinstance(case.expected, bytes):
        assert ["a.wav"] == list(left)
        assert case.expected == left["a.wav"].read_bytes()
    elif case.kept:
        assert ["a.wav.part", "a.wav.part.json"] == sorted(left)
        assert {0o600} == {path.stat().st_mode & 0o777 for path in left.values()}
        assert case.body[: case.kept] == left["a.wav.part"].read_bytes()
    else:
        assert [] == list(left)


async def run_case(case: Case, media: MediaServer, folder: Path) -> tuple[Downloading, object]:
    """Download from the host of *case* to ``a.wav``; return the end of it, an error too."""
    url = media.put("/a.wav", case.body, case.manner, etag=case.etag)
    url = case.put(media) or url
    async with downloading(*case.fresh(media)) as running:
        try:
            return running, await running.download(url, folder / "a.wav")
        except DownloadError as error:
            return running, error


def verify_end(case: Case, running: Downloading, end: object, folder: Path) -> None:
    """Hold what `run_case` returned to what is expected of it."""
    if isinstance(case.expected, str):
        assert isinstance(end, DownloadError), end
        assert case.expected == end.reason, end
        assert ("t1", TRACK) == (end.task_id, end.track)
    else:
        assert not isinstance(end, DownloadError), end
        whole = case.expected
        assert (folder / "a.wav", len(whole), hashlib.sha256(whole).hexdigest()) == (
            end.path,
            end.bytes,
            end.sha256,
        )
        assert case.is_resumed == end.resumed
    assert [one.delay_s for one in running.retries] == running.clock.slept
    if case.sleeps is not None:
        assert case.sleeps == running.clock.slept


# --- the table ------------------------------------------------------------------------------


CUT: Final = Manner(cut=400)


def then(*manners: Manner | Callable[[Request], Manner]) -> list[Any]:
    """Return a host that stops after 400 bytes, goes on as told, and then is honest."""
    return [CUT, *manners, HONEST]


def lines(*text: str, body: bytes = BODY, status: str = "HTTP/1.1 200 OK") -> Manner:
    """Return an answer whose head stands as it is given."""
    return Manner(raw="\r\n".join([status, *text, "", ""]).encode("latin-1") + body)


async def turns() -> None:
    """Let what was sent arrive by itself."""
    for _ in range(20):
        await asyncio.sleep(0)


def apart(*pieces: bytes, **settings: Any) -> Manner:
    """Return an answer whose body's pieces arrive one after the other, and after the head."""
    return Manner(body=pieces, tick=turns, **settings)


def etags(*values: str) -> Manner:
    """Return a file that is cut off, and whose ETag reads like this."""
    return Manner(cut=400, headers=(("ETag", None), *(("ETag", value) for value in values)))


def moved(to: str) -> Callable[[MediaServer], None]:
    """Return what puts a redirect to *to* where the file was."""

    def put(media: MediaServer) -> None:
        media.put("/a.wav", manner=redirect(to.format(port=media.port)))

    return put


def chained(hops: int, **settings: Any) -> Callable[[MediaServer], URL]:
    """Return what puts *hops* redirects before the file."""
    return lambda media: media.chain(hops, media.url("/a.wav"), **settings)


def fresh_at(path: str, manner: Manners = HONEST) -> Callable[[MediaServer], list[WireResponse]]:
    """Return a service that has another link to the file, and only once."""
    return lambda media: [link(media.put(path, BODY, manner))]


HONEST_HOSTS: Final[Mapping[str, Case]] = {
    "honest": Case(),
    "honest, RF64": Case(body=(rf64 := wav_bytes(kind="RF64")), expected=rf64),
    "honest, BW64": Case(body=(bw64 := wav_bytes(kind="BW64")), expected=bw64),
    "honest, written as a stream (0xFFFFFFFF)": Case(body=UNTOLD, expected=UNTOLD),
    "honest, written as a stream (0)": Case(body=(zero := wav_bytes(declared=0)), expected=zero),
    "honest, filled up to an even length": Case(
        body=(odd := wav_bytes(1_001) + b"\0"), expected=odd
    ),
    "honest, one frame": Case(body=(frame := wav_bytes(48)), expected=frame),
    "honest, 3 MiB and a bit": Case(body=(big := wav_bytes(3 * MIB + 5)), expected=big),
    "honest, RF64 without its chunk": Case(
        body=(short_rf64 := b"RF64" + b"\xff" * 4 + BODY[8:]), expected=short_rf64
    ),
    "honest, without an ETag": Case(etag=None),
    "honest, with a weak ETag": Case(etag='W/"v1"'),
    "honest, chunked": Case(manner=Manner(framing="chunked")),
    "honest, its length told by the end": Case(manner=Manner(framing="close")),
    "honest, byte by byte": Case(manner=Manner(piece=1, head_piece=1)),
    "honest, called text/html": Case(manner=Manner(headers=(("Content-Type", "text/html"),))),
    "honest, sets a cookie and stops": Case(
        manner=[Manner(cut=400, headers=(("Set-Cookie", "a=b"),)), HONEST],
        requests=2,
        is_resumed=True,
    ),
}

LENGTHS: Final[Mapping[str, Case]] = {
    "short: stops once": Case(manner=then(), requests=2, is_resumed=True),
    "short: stops once, 2.5 of 3 MiB": Case(
        manner=[Manner(cut=5 * MIB // 2), HONEST],
        body=big,
        expected=big,
        requests=2,
        is_resumed=True,
    ),
    "short: stops each time after 100 bytes": Case(
        manner=Manner(cut=100), expected="truncated", requests=ATTEMPTS, kept=800
    ),
    "short: stops each time at once": Case(
        manner=Manner(cut=0), expected="truncated", requests=ATTEMPTS
    ),
    "short: stops each time one byte before the end": Case(
        manner=[Manner(cut=999), Manner(cut=0)],
        expected="truncated",
        requests=ATTEMPTS,
        kept=999,
    ),
    "short: stops each time, weak ETag": Case(
        manner=CUT, etag='W/"v1"', expected="truncated", requests=ATTEMPTS
    ),
    "short: stops once, weak ETag": Case(manner=then(), etag='W/"v1"', requests=2),
    "short: stops once, no ETag": Case(manner=then(), etag=None, requests=2),
    "short: stops once, ETag without quotes": Case(manner=[etags("v1"), HONEST], requests=2),
    "short: stops once, empty ETag": Case(manner=[etags('""'), HONEST], requests=2),
    "short: stops once, two ETags": Case(manner=[etags('"v1"', '"v2"'), HONEST], requests=2),
    "short: more announced than the file declares": Case(
        manner=Manner(length=1_100), expected="truncated", requests=ATTEMPTS
    ),
    "short: less there than the file declares": Case(body=BODY[:900], expected="truncated"),
    "short: 43 bytes of a WAV": Case(body=BODY[:43], expected="truncated"),
    "long: bytes after the announced ones": Case(manner=apart(BODY, OTHER, length=1_000)),
    "long: bytes after the announced ones, all at once": Case(
        # aiohttp reads on behind the answer, and then has none.
        manner=lines("Content-Length: 1000", body=BODY + OTHER),
        expected="unavailable",
        requests=ATTEMPTS,
    ),
    "long: an answer hidden after the announced bytes": Case(
        manner=Manner(
            body=BODY + b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + OTHER, length=1_000
        )
    ),
    "long: more there than the file declares": Case(body=(more := BODY + b"LIST"), expected=more),
    "long: the rest is longer than it says": Case(
        manner=then(lambda one: Manner(body=one.file.body[400:] + b"more")), requests=3
    ),
    "cut chunked: once": Case(
        manner=[Manner(framing="chunked", cut=400), HONEST], requests=2, is_resumed=True
    ),
    "cut chunked: only the last chunk is missing": Case(
        manner=[Manner(framing="chunked", cut=1_000), HONEST], requests=1
    ),
    "cut chunked: each time": Case(
        manner=lambda one: Manner(framing="chunked", cut=one.number * 50, ignores_range=True),
        expected="truncated",
        requests=ATTEMPTS,
        kept=400,
    ),
    "chunked, written as a stream": Case(
        manner=Manner(framing="chunked"), body=UNTOLD, expected=UNTOLD
    ),
    "chunked, written as a stream, stops once": Case(
        manner=[Manner(framing="chunked", cut=400), HONEST],
        body=UNTOLD,
        expected=UNTOLD,
        requests=2,
        is_resumed=True,
    ),
    "cut chunked: each time, written as a stream": Case(
        manner=Manner(framing="chunked", cut=400, ignores_range=True),
        body=UNTOLD,
        expected="truncated",
        requests=ATTEMPTS,
        kept=400,
    ),
    "cut chunked: only the last chunk is missing, written as a stream": Case(
        manner=Manner(framing="chunked", cut=1_000, ignores_range=True),
        body=UNTOLD,
        expected="truncated",
        requests=ATTEMPTS,
        kept=1_000,
    ),
    "chunked: less there than the file declares": Case(
        manner=Manner(framing="chunked"), body=BODY[:900], expected="truncated"
    ),
    "chunked: bytes behind the file": Case(
        manner=Manner(framing="chunked"), body=(tag := BODY + b"TAG" + bytes(125)), expected=tag
    ),
    "no length: stops once": Case(
        manner=[Manner(framing="close", cut=400), HONEST], requests=2, is_resumed=True
    ),
    "no length: stops inside the header": Case(
        manner=[Manner(framing="close", cut=30), HONEST], requests=2, is_resumed=True
    ),
    "no length: more than the file declares": Case(
        manner=apart(BODY, b"LIST", framing="close"), expected=more
    ),
    "no length: more than the file declares, all at once": Case(
        manner=Manner(body=more, framing="close"), expected=more
    ),
    "no length: the size of the file is off": Case(
        manner=Manner(framing="close"),
        body=wav_bytes(declared=1_000),
        expected="truncated",
        requests=ATTEMPTS,
    ),
    "no length: a transfer coding that marks no end": Case(
        manner=lines("Transfer-Encoding: xchunked", body=UNTOLD), expected="truncated"
    ),
    "no length: written as a stream": Case(
        manner=Manner(framing="close"), body=UNTOLD, expected="truncated"
    ),
    "no length: stops, written as a stream": Case(
        manner=Manner(framing="close", cut=400), body=UNTOLD, expected="truncated"
    ),
    "length: over 1 GiB": Case(
        manner=Manner(length=GIB + 1, cut=0, end="stall"), expected="too-large", most=0
    ),
    "length: declared over 1 GiB, chunked": Case(
        manner=Manner(framing="chunked"),
        body=(huge := wav_bytes(declared=GIB)),
        expected=huge,
    ),
    "length: declared over 1 GiB": Case(body=huge, expected=huge),
    "length: no number": Case(
        manner=lines("Content-Length: many"), expected="unavailable", requests=ATTEMPTS
    ),
    "length: signed": Case(
        manner=lines("Content-Length: +1000"), expected="unavailable", requests=ATTEMPTS
    ),
    "length: told twice, differently": Case(
        manner=lines("Content-Length: 1000", "Content-Length: 900"),
        expected="unavailable",
        requests=ATTEMPTS,
    ),
    "length: told by number and by chunks": Case(
        manner=lines("Content-Length: 1000", "Transfer-Encoding: chunked"),
        expected="unavailable",
        requests=ATTEMPTS,
    ),
    "length: chunks of no size": Case(
        manner=Manner(
            raw=[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"what?\r\n"],
            tick=turns,
        ),
        expected="truncated",
        requests=FEW,
        is_silent=True,
    ),
    "length: chunks of no size after a good one": Case(
        manner=[
            Manner(
                raw=[
                    b'HTTP/1.1 200 OK\r\nETag: "v1"\r\nTransfer-Encoding: chunked\r\n\r\n',
                    b"190\r\n" + BODY[:400] + b"\r\n",
                    b"what?\r\n",
                ],
                tick=turns,
            ),
            HONEST,
        ],
        requests=2,
        is_resumed=True,
        is_silent=True,
    ),
    "endless": Case(
        manner=Manner(body=endless(first=BODY), framing="close"),
        expected="too-large",
        max_bytes=MIB,
        most=16 * MIB,
    ),
    "endless, chunked": Case(
        manner=Manner(body=endless(first=BODY), framing="chunked"),
        expected="too-large",
        max_bytes=MIB,
        most=16 * MIB,
    ),
    "endless, written as a stream": Case(
        manner=Manner(body=endless(first=UNTOLD), framing="chunked"),
        expected="too-large",
        max_bytes=MIB,
        most=16 * MIB,
    ),
    "endless, not a WAV": Case(
        manner=Manner(body=endless(), framing="close"), expected="not-a-wav", most=16 * MIB
    ),
}

CODINGS: Final[Mapping[str, Case]] = {
    "gzip": Case(manner=encoded(), expected="content-encoding"),
    "gzip, cut": Case(manner=encoded(cut=400), expected="content-encoding"),
    "gzip bomb, 1,000 to 1": Case(manner=bomb(), expected="content-encoding", most=1 * MIB),
    "gzip, with a range": Case(
        manner=[CUT, part(headers=(("Content-Encoding", "gzip"),)), encoded()],
        expected="content-encoding",
        requests=3,
    ),
    "gzip, a word": Case(
        manner=Manner(body=b"\x1f\x8b\x08", headers=(("Content-Encoding", "gzip"),)),
        expected="content-encoding",
    ),
    "deflate, of zeros": Case(
        body=zlib.compress(bytes(1_000)), manner=encoded("deflate"), expected="content-encoding"
    ),
    "identity": Case(manner=encoded("identity")),
    "identity, in capitals and twice": Case(manner=encoded(" Identity ,IDENTITY")),
    "identity, in two headers": Case(
        manner=Manner(headers=(("Content-Encoding", "identity"), ("Content-Encoding", "")))
    ),
    "identity, chunked": Case(manner=encoded("identity", framing="chunked")),
    "identity, cut": Case(
        manner=[
            encoded("identity", cut=400),
            part(headers=(("Content-Encoding", "identity"),)),
        ],
        requests=2,
        is_resumed=True,
    ),
    "identity, of another file": Case(
        manner=encoded("identity"), body=b"<html>" * 9, expected="not-a-wav"
    ),
    "no name": Case(manner=encoded("")),
    "no name, cut": Case(manner=[encoded("", cut=400), HONEST], requests=2, is_resumed=True),
    **{
        f"{name} in name only": Case(manner=encoded(name))
        for name in ("br", "utf-8", "aws-chunked", "none", "identity, br", "wav")
    },
    "aws-chunked in name only, cut": Case(
        manner=[
            encoded("aws-chunked", cut=400),
            part(headers=(("Content-Encoding", "aws-chunked"),)),
        ],
        requests=2,
        is_resumed=True,
    ),
    "gzip as a transfer coding": Case(
        manner=lines("Transfer-Encoding: gzip, chunked"),
        expected="unavailable",
        requests=ATTEMPTS,
    ),
}

CONTENTS: Final[Mapping[str, Case]] = {
    "12 bytes of a WAV": Case(body=b"RIFF\4\0\0\0WAVE", expected="not-a-wav"),
    "12 bytes of a WAV, chunked": Case(
        manner=Manner(framing="chunked"), body=b"RIFF\xff\xff\xff\xffWAVE", expected="not-a-wav"
    ),
    "a WAV without sound": Case(body=wav_bytes(44), expected="not-a-wav"),
    "a header, then HTML": Case(
        body=UNTOLD[:40] + b"\xff" * 4 + bytes(page().body), expected="not-a-wav"
    ),
    "a header, then HTML, chunked": Case(
        manner=Manner(framing="chunked"),
        body=UNTOLD[:12] + bytes(page().body),
        expected="not-a-wav",
    ),
    "HTML with 200": Case(manner=page(), expected="not-a-wav"),
    "HTML with 200, chunked": Case(
        manner=attrs.evolve(page(), framing="chunked"), expected="not-a-wav"
    ),
    "a word with 200, chunked": Case(
        manner=Manner(body=b"Forbidden", framing="chunked"), expected="not-a-wav"
    ),
    "HTML with 200, after a part": Case(
        manner=[CUT, page()], expected="not-a-wav", requests=2, kept=400
    ),
    "HTML with 206": Case(manner=[page(206), HONEST], requests=2),
    "empty, 200": Case(body=b"", expected="not-a-wav"),
    "empty, 204": Case(manner=Manner(status=204), expected="unavailable"),
    "empty, 205": Case(manner=Manner(status=205, body=b""), expected="unavailable"),
    "another RIFF": Case(body=BODY[:8] + b"AVI " + BODY[12:], expected="not-a-wav"),
    "a WAV in the other order of bytes": Case(body=b"RIFX" + BODY[4:], expected="not-a-wav"),
}


def ranged(
    manner: Manner | Callable[[Request], Manner], *, saved: bytes = BODY, requests: int = 3
) -> Case:
    """Return a host that answers so when asked for the rest: from then on there is no part."""
    return Case(manner=then(manner), expected=saved, requests=requests)


def changed(file: File) -> list[Any]:
    """Return a host whose file is another one from the second request on."""
    return [CUT, Manner(file=file)]


RANGES: Final[Mapping[str, Case]] = {
    "206: starts before the asked": ranged(part("bytes 399-{last}/{size}", shift=-1)),
    "206: starts at 0": ranged(part("bytes 0-{last}/{size}", shift=-400)),
    "206: starts after the asked": ranged(part("bytes 500-{last}/{size}", shift=100)),
    "206: of a longer file": ranged(part("bytes {start}-{last}/1001")),
    "206: of a shorter file": ranged(part("bytes {start}-899/900")),
    "206: beyond the end": ranged(part("bytes {start}-2000/{size}")),
    "206: backwards": ranged(part("bytes 999-400/{size}")),
    "206: of unknown length": ranged(part("bytes {start}-{last}/*")),
    "206: of unknown length, as before": Case(
        manner=[
            Manner(framing="chunked", cut=400),
            part("bytes {start}-{last}/*"),
            HONEST,
        ],
        requests=3,
    ),
    "206: without Content-Range": ranged(part(None)),
    "206: two Content-Ranges": ranged(part(headers=(("Content-Range", "bytes 0-599/1000"),))),
    "206: in other units": ranged(part("samples {start}-{last}/{size}")),
    "206: multipart/byteranges": ranged(
        part(None, headers=(("Content-Type", "multipart/byteranges; boundary=x"),))
    ),
    "206: another ETag": ranged(part(headers=(("ETag", '"v2"'),))),
    "206: the ETag has become weak": ranged(part(headers=(("ETag", 'W/"v1"'),))),
    "206: without ETag": Case(
        manner=[CUT, part(headers=(("ETag", None),))], requests=2, is_resumed=True
    ),
    "206: over 1 GiB in all": ranged(part(f"bytes {{start}}-{GIB}/{GIB + 1}")),
    "206: less than the rest": Case(
        manner=then(
            lambda one: Manner(
                status=206,
                body=one.file.body[400:500],
                headers=(("Content-Range", "bytes 400-499/1000"),),
            )
        ),
        requests=3,
        is_resumed=True,
    ),
    "206: to a request for all": Case(manner=[part(), HONEST], requests=2),
    "206: always to a request for all": Case(
        manner=part(), expected="unavailable", requests=ATTEMPTS
    ),
    "206: always a wrong one": Case(
        manner=lambda one: CUT if one.start is None else part(None)(one),
        expected="unavailable",
        requests=ATTEMPTS,
    ),
    "200 to a range request, the same file": ranged(Manner(ignores_range=True), requests=2),
    "200 to a range request, another file": ranged(
        Manner(ignores_range=True, file=File(OTHER, '"v2"')), saved=OTHER, requests=2
    ),
    "200 to a range request, and stops": Case(
        manner=then(Manner(ignores_range=True, cut=300)), requests=3, is_resumed=True
    ),
    "416": ranged(Manner(status=416, headers=(("Content-Range", "bytes */1000"),))),
    "416 without Content-Range": ranged(Manner(status=416)),
    "416 to a request for all": Case(manner=Manner(status=416), expected="unavailable"),
    "changed: another ETag, the same length": Case(
        manner=changed(File(OTHER, '"v2"')), expected=OTHER, requests=2
    ),
    "changed: another ETag and length": Case(
        manner=changed(File(LONGER, '"v2"')), expected=LONGER, requests=2
    ),
    "changed: no ETag any more": Case(
        manner=changed(File(OTHER, None)), expected=OTHER, requests=2
    ),
    "changed: the same ETag, longer": Case(
        manner=changed(File(LONGER)), expected=LONGER, requests=3
    ),
    "changed: the same ETag, shorter than the part": Case(
        manner=changed(File(SHORTER)), expected=SHORTER, requests=3
    ),
    "changed: each time": Case(
        manner=lambda one: Manner(
            file=File(wav_bytes(1_000, seed=one.number), f'"v{one.number}"'), cut=400
        ),
        body=wav_bytes(1_000, seed=ATTEMPTS),
        expected="truncated",
        requests=ATTEMPTS,
        kept=400,
    ),
}

REDIRECTS: Final[Mapping[str, Case]] = {
    **{
        f"redirect: {status}": Case(put=chained(1, status=status), requests=2)
        for status in (301, 302, 303, 307, 308)
    },
    "redirect: to a path": Case(put=lambda media: media.chain(1, "/a.wav?x=1#part"), requests=2),
    "redirect: chain of 5": Case(put=chained(5), requests=6),
    "redirect: chain of 6": Case(put=chained(6), expected="url-not-allowed", requests=6),
    "redirect: loop": Case(manner=redirect("/a.wav"), expected="url-not-allowed", requests=6),
    "redirect: to nowhere, an empty Location": Case(
        manner=redirect(""), expected="url-not-allowed"
    ),
    "redirect: with cookies": Case(
        put=chained(3, headers=(("Set-Cookie", "a=b; Path=/"),)), requests=4
    ),
    "redirect: asks for credentials": Case(
        put=chained(1, headers=(("WWW-Authenticate", "Basic"),)), requests=2
    ),
    "redirect: with an endless body": Case(
        put=lambda media: media.put(
            "/b",
            manner=attrs.evolve(redirect("/a.wav"), body=endless(), framing="close"),
        ),
        requests=2,
        most=16 * MIB,
    ),
    "redirect: each attempt anew": Case(manner=then(), put=chained(2), requests=6, is_resumed=True),
    "redirect: without Location": Case(manner=redirect(None), expected="unavailable"),
    **{
        f"redirect: to {to}": Case(put=moved(to), expected="url-not-allowed")
        for to in (
            "http://localhost:{port}/a.wav",
            "http://media.example/a.wav",
            "http://user:hush@127.0.0.1:{port}/a.wav",
            "https://10.0.0.1/a.wav",
            "https://[::1]/a.wav",
            "https://[::ffff:127.0.0.1]/a.wav",
            "https://169.254.169.254/latest/meta-data/",
            "https://0x7f.1/a.wav",
            "//localhost:{port}/a.wav",
            "file:///etc/passwd",
            "data:audio/wav;base64,UklGRg==",
            "ftp://127.0.0.1/a.wav",
            "http://[",
            "http://127.0.0.1:port/",
            "http:///a.wav",
        )
    },
    **{
        f"redirect: {status}, which is none": Case(
            manner=redirect("/b.wav", status), expected="unavailable"
        )
        for status in (300, 304, 305, 306)
    },
}

STATUSES: Final[Mapping[str, Case]] = {
    **{
        f"{status}, a fresh link": Case(
            manner=refusal(status), fresh=fresh_at("/b.wav"), requests=2, sleeps=[]
        )
        for status in (401, 403, 404, 410)
    },
    "403 half way, a fresh link": Case(
        manner=[CUT, refusal(403)], fresh=fresh_at("/b.wav"), requests=3, is_resumed=True
    ),
    "403 half way, a fresh link to another file": Case(
        manner=[CUT, refusal(403)],
        fresh=fresh_at("/b.wav", Manner(file=File(OTHER, '"v2"'))),
        expected=OTHER,
        requests=3,
    ),
    "403, so the fresh link": Case(
        manner=refusal(403),
        fresh=fresh_at("/b.wav", refusal(403)),
        expected="unavailable",
        requests=2,
    ),
    "403, and the service has no other": Case(
        manner=refusal(403), fresh=lambda _: [refused(422, "no such file")], expected="unavailable"
    ),
    "403 half way, and the service has no other": Case(
        manner=[CUT, refusal(403)],
        fresh=lambda _: [refused(422, "no such file")],
        expected="unavailable",
        requests=2,
        kept=400,
    ),
    "403, a fresh link to a private address": Case(
        manner=refusal(403),
        fresh=lambda _: [link("https://10.0.0.1/a.wav")],
        expected="url-not-allowed",
    ),
    "403 behind a redirect, a fresh link": Case(
        manner=refusal(403), put=chained(1), fresh=fresh_at("/b.wav"), requests=3
    ),
    **{
        f"{status} once": Case(manner=[refusal(status), HONEST], requests=2)
        for status in (408, 425, 429, 500, 502, 503, 504, 599)
    },
    "429 with Retry-After: 7": Case(
        manner=[refusal(429, ("Retry-After", "7")), HONEST], requests=2, sleeps=[7.0]
    ),
    "503 with Retry-After: 9999": Case(
        manner=[refusal(503, ("Retry-After", "9999")), HONEST], requests=2, sleeps=[300.0]
    ),
    "500 each time": Case(manner=refusal(500), expected="unavailable", requests=ATTEMPTS),
    "500 half way, each time": Case(
        manner=[CUT, refusal(500)], expected="unavailable", requests=ATTEMPTS, kept=400
    ),
    **{
        f"{status}": Case(manner=refusal(status), expected="unavailable")
        for status in (400, 402, 407, 418, 451, 201, 203)
    },
}


def broken(manner: Manners, requests: int = ATTEMPTS, *, is_silent: bool = False) -> Case:
    """Return a host without one usable answer."""
    return Case(manner=manner, expected="unavailable", requests=requests, is_silent=is_silent)


def silent(manner: Manners) -> Case:
    """Return a host without one usable answer for as long as we are patient."""
    return broken(manner, FEW, is_silent=True)


#: aiohttp asks once more, at once, where a connection ends before the answer's head.
TWICE: Final = 2 * ATTEMPTS


HEADS: Final[Mapping[str, Case]] = {
    "ends before its answer": broken(Manner(raw=b""), TWICE),
    "resets before its answer": broken(Manner(raw=b"", end="rst"), TWICE),
    "ends within its headers": broken(Manner(wire_cut=40), TWICE),
    "is silent": silent(Manner(wire_cut=0, end="stall")),
    "is silent within its headers": silent(Manner(wire_cut=40, end="stall")),
    "speaks no HTTP": broken(Manner(raw=b"SSH-2.0-OpenSSH_9.6\r\n")),
    "speaks TLS": broken(Manner(raw=b"\x15\x03\x01\x00\x02\x02\x50")),
    "a status without a number": broken(Manner(raw=b"HTTP/1.1 OK\r\n\r\n" + BODY)),
    "a status of four digits": broken(Manner(raw=b"HTTP/1.1 2000 OK\r\n\r\n" + BODY)),
    "a header of 1 MiB": broken(Manner(headers=(("X-Huge", "a" * MIB),))),
    "10,000 headers": broken(
        Manner(headers=tuple((f"X-{number}", "a") for number in range(10_000)))
    ),
    "a header with a NUL": broken(lines("Content-Length: 1000", "X-Nul: a\0b")),
    "headers without end": broken(
        lambda _: Manner(raw=endless(b"X-More: of it\r\n", first=b"HTTP/1.1 200 OK\r\n"))
    ),
    "headers byte by byte, without end": silent(
        lambda _: Manner(
            raw=endless(b"a", first=b"HTTP/1.1 200 OK\r\nX-Long: "),
            # For the limit of it, not for how long it lasts.
            tick=lambda: asyncio.sleep(0.001),
        )
    ),
    "interim answers without end": silent(Manner(raw=endless(b"HTTP/1.1 100 Continue\r\n\r\n"))),
    "101, another protocol": Case(
        manner=lines("Upgrade: x", "Connection: Upgrade", status="HTTP/1.1 101 No"),
        expected="unavailable",
    ),
    "silent after the headers": Case(
        manner=Manner(cut=0, end="stall"), expected="truncated", requests=FEW, is_silent=True
    ),
    "silent half way, once": Case(
        manner=[Manner(cut=400, end="stall"), HONEST],
        requests=2,
        is_resumed=True,
        is_silent=True,
    ),
    "silent half way, each time": Case(
        manner=[Manner(cut=400, end="stall"), Manner(cut=0, end="stall")],
        expected="truncated",
        requests=FEW,
        kept=400,
        is_silent=True,
    ),
}

CASES: Final[Mapping[str, Case]] = {
    **HONEST_HOSTS,
    **LENGTHS,
    **CODINGS,
    **CONTENTS,
    **RANGES,
    **REDIRECTS,
    **STATUSES,
    **HEADS,
}
