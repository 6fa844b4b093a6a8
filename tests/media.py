"""
A media host on loopback that lies on purpose, down to the byte.

It serves files put there by a test, honestly unless a `Manner` says otherwise:
another status, other headers, another body or framing, a cut at some byte and
how the connection ends there, a stop until the test goes on. It works on raw
sockets and knows of HTTP only what it needs, so that nothing corrects its lies.
Every request is kept as it arrived. `wav_bytes` makes files whose versions
cannot be mixed unseen, and `ScriptedResolver` a name service that changes its
mind.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import random
import re
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Self

import attrs
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from certificates import SERVER_PEM

if TYPE_CHECKING:
    from types import TracebackType

End = Literal["fin", "rst", "stall"]
Framing = Literal["length", "chunked", "close"]
Hook = Callable[[], Awaitable[object]]
Fields = tuple[tuple[str, str | None], ...]

_PIECE = 1 << 16
_CHUNK = 1 << 12
#: Small, so that what was sent is not much more than what was taken.
_SEND_BUFFER = 1 << 16


@attrs.frozen
class File:
    """
    What an honest server would serve.

    Attributes:
        body: The bytes.
        etag: The entity tag, quotes included; `None`: there is none.
        content_type: The media type.
    """

    body: bytes = attrs.field(repr=False)
    etag: str | None = '"v1"'
    content_type: str = "audio/wav"


@attrs.define(eq=False)
class Request:
    """
    One request as it arrived, and what became of it.

    Attributes:
        number: Which request for this path it is, from 1.
        connection: Which connection it came on, from 1.
        file: The file of its path.
        method: As sent, as is the target.
        headers: As sent, in their order.
        sent: Bytes of the answer's body handed to the kernel, framing not counted.
        wire: All bytes of the answer handed to the kernel.
        is_over: Whether the server is done with it.
    """

    number: int
    connection: int
    file: File
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    sent: int = 0
    wire: int = 0
    is_over: bool = False

    def header(self, name: str) -> str | None:
        """Return the value of a header; `None` if there is none or more than one."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return values[0] if len(values) == 1 else None

    @property
    def start(self) -> int | None:
        """The first byte of the one range asked for."""
        found = re.fullmatch(r"bytes=(\d+)-\d*", self.header("Range") or "")
        return int(found[1]) if found else None


@attrs.frozen(kw_only=True)
class Manner:
    """
    How one request is answered; by default honestly.

    Attributes:
        status: Said whatever was asked; `None`: what an honest server says.
        file: Served instead of the one put there.
        headers: Put in place of those of the same name; `None` for a value: left out.
        body: Sent instead of the file or its range; may be endless.
        framing: How the body's end is told: by its length, in chunks, by the connection's end.
        length: The Content-Length, if it is to be wrong.
        ignores_range: Whether the whole file is served to a request for a part of it.
        raw: The whole answer as bytes on the wire, counted as a body; may be endless.
        cut: Nothing comes after this byte of the body.
        wire_cut: Nothing comes after this byte of the answer.
        end: What comes after the cut, or after the whole answer: an orderly end, a reset, or
            silence until the client gives up. `None`: the end that fits.
        piece: How many bytes of the body are sent at once.
        head_piece: The same for the status line and headers.
        tick: Awaited after every piece.
        holds: Awaited once that many bytes of the body are out, for each in rising order.
    """

    status: int | None = None
    file: File | None = None
    headers: Fields = ()
    body: bytes | Iterable[bytes] | None = attrs.field(default=None, repr=False)
    framing: Framing = "length"
    length: int | None = None
    ignores_range: bool = False
    raw: bytes | Iterable[bytes] | None = attrs.field(default=None, repr=False)
    cut: int | None = None
    wire_cut: int | None = None
    end: End | None = None
    piece: int = _PIECE
    head_piece: int = _PIECE
    tick: Hook | None = None
    holds: tuple[tuple[int, Hook], ...] = ()


HONEST = Manner()

#: One manner for all requests of a path, one for each of them (the last for all
#: that follow), or a function of the request.
Manners = Manner | Sequence[Manner | Callable[[Request], Manner]] | Callable[[Request], Manner]


class _CutError(Exception):
    """The answer ends here."""


class MediaServer:
    """
    Serves the files put there, on 127.0.0.1.

    Args:
        host: The host in the addresses it gives out; it must lead to 127.0.0.1.

        is_tls: Whether it speaks TLS, with a certificate for localhost.

    Attributes:
        connections: How many were accepted.
        requests: All of them, in order.
    """

    def __init__(self, *, host: str = "127.0.0.1", is_tls: bool = False) -> None:
        self.connections = 0
        self.requests: list[Request] = []
        self._host = host
        self._context: ssl.SSLContext | None = None
        if is_tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(SERVER_PEM)
        self._files: dict[str, tuple[File, Manners]] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    async def __aenter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.port: int = listener.getsockname()[1]
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=1 << 20)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        if self._errors and exc is None:
            msg = "the server itself failed"
            raise BaseExceptionGroup(msg, self._errors)

    def put(
        self,
        path: str,
        body: bytes = b"",
        manner: Manners = HONEST,
        *,
        etag: str | None = '"v1"',
        content_type: str = "audio/wav",
    ) -> URL:
        """Serve a file, or another one than before, at *path*; return its address."""
        self._files[path] = (File(body, etag, content_type), manner)
        return self.url(path)

    def url(self, path: str) -> URL:
        """Return the address of *path*, byte for byte."""
        scheme = "http" if self._context is None else "https"
        return URL(f"{scheme}://{self._host}:{self.port}{path}", encoded=True)

    def chain(self, hops: int, to: str | URL, *, status: int = 302, headers: Fields = ()) -> URL:
        """Put a chain of redirects there that ends at *to*; return its start."""
        for hop in range(hops, 0, -1):
            to = self.put(f"/hop/{hop}", manner=redirect(to, status, *headers))
        return URL(to)

    def asked(self, path: str) -> list[Request]:
        """Return the requests for *path* so far; a query does not matter."""
        return [request for request in self.requests if request.target.split("?")[0] == path]

    async def until(self, path: str, *, sent: int = 0, number: int = 1) -> Request:
        """Wait for the *number*-th request for *path*, and until *sent* bytes of a body are out."""

        def is_so() -> bool:
            asked = self.asked(path)
            return len(asked) >= number and asked[number - 1].sent >= sent

        await self._wait(is_so)
        return self.asked(path)[number - 1]

    async def ended(self) -> None:
        """Wait until every connection so far has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _wait(self, is_so: Callable[[], bool]) -> None:
        if not is_so():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((is_so, future))
            await future

    def _tell(self) -> None:
        for waiter in self._waiters[:]:
            is_so, future = waiter
            if future.done() or is_so():
                self._waiters.remove(waiter)
                if not future.done():
                    future.set_result(None)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine, so that the tasks are ours to keep.
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer, self.connections))
        self._tasks.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
    ) -> None:
        try:
            if self._context is not None:
                # Not left to the loop, which tells of every handshake that fails.
                await writer.start_tls(self._context)
            # Nothing waits out of sight. Not 0: that is as many as TLS has when all is out.
            writer.transport.set_write_buffer_limits(high=1, low=0)
            while await self._serve_one(reader, writer, connection):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, TimeoutError):
            pass  # Somebody hung up, which is what this is for.
        finally:
            writer.close()

    async def _serve_one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
    ) -> bool:
        """Answer one request; return whether the connection goes on."""
        line, *fields = (await reader.readuntil(b"\r\n\r\n"))[:-4].decode("latin-1").split("\r\n")
        method, target, _ = line.split(" ")
        path = target.split("?")[0]
        # An unknown path is a 404, as everywhere.
        file, manners = self._files.get(path, (File(b""), Manner(status=404, body=b"nothing here")))
        pairs = [field.partition(":") for field in fields]
        request = Request(
            number=len(self.asked(path)) + 1,
            connection=connection,
            file=file,
            method=method,
            target=target,
            headers=tuple((name, value.strip()) for name, _, value in pairs),
        )
        self.requests.append(request)
        self._tell()
        manner = _choose(manners, request)
        try:
            goes_on = await self._answer(request, manner, writer)
        except _CutError:
            goes_on = False
        finally:
            request.is_over = True
        end = manner.end
        if end == "stall":
            await reader.read()  # Until the client gives up.
        elif end == "rst":
            sock: socket.socket = writer.get_extra_info("socket")
            # Zero linger: no orderly end.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        return goes_on and end is None

    async def _answer(self, request: Request, manner: Manner, writer: asyncio.StreamWriter) -> bool:
        """Send an answer; return whether another one may follow."""
        line = _Line(request, manner, writer, self._tell)
        if manner.raw is not None:
            for data in _parts(manner.raw):
                await line.send_body(data)
            await line.send_body(b"")
            return False
        status, headers, body = _compose(request, manner)
        lines = [f"HTTP/1.1 {status} As told", *(f"{name}: {value}" for name, value in headers)]
        await line.send_frame("\r\n".join([*lines, "", ""]).encode())
        if request.method != "HEAD" and status not in _WITHOUT_BODY:
            is_chunked = manner.framing == "chunked"
            for data in _parts(body):
                for start in range(0, len(data), _CHUNK) if is_chunked else (0,):
                    chunk = data[start : start + _CHUNK] if is_chunked else data
                    if is_chunked:
                        await line.send_frame(b"%x\r\n" % len(chunk))
                    await line.send_body(chunk)
                    if is_chunked:
                        await line.send_frame(b"\r\n")
            await line.send_body(b"")  # What is due at the very end.
            if is_chunked:
                await line.send_frame(b"0\r\n\r\n")
        return (
            manner.framing != "close"
            and manner.length is None
            and isinstance(body, bytes)
            and request.header("Connection") != "close"
        )


class _Line:
    """The way of one answer to the client, with its stops and cuts."""

    def __init__(
        self,
        request: Request,
        manner: Manner,
        writer: asyncio.StreamWriter,
        tell: Callable[[], None],
    ) -> None:
        self._request = request
        self._manner = manner
        self._writer = writer
        self._tell = tell
        self._holds = list(manner.holds)

    async def send_frame(self, data: bytes) -> None:
        """Send what is not of the body."""
        left = memoryview(data)
        while left:
            left = left[await self._send(left[: self._manner.head_piece]) :]

    async def send_body(self, data: bytes) -> None:
        """Send a part of the body, and stop or end where that is due; also without a part."""
        left = memoryview(data)
        request, cut = self._request, self._manner.cut
        while True:
            while self._holds and self._holds[0][0] <= request.sent:
                await self._holds.pop(0)[1]()
            if cut is not None and cut <= request.sent:
                raise _CutError
            if not left:
                return
            stops = [at - request.sent for at, _ in self._holds[:1]]
            if cut is not None:
                stops.append(cut - request.sent)
            count = await self._send(left[: min([self._manner.piece, *stops])])
            left = left[count:]
            request.sent += count
            self._tell()

    async def _send(self, data: memoryview) -> int:
        """Send as much of *data* as may be before the cut; return how much."""
        request, cut = self._request, self._manner.wire_cut
        if cut is not None:
            if cut <= request.wire:
                raise _CutError
            data = data[: cut - request.wire]
        self._writer.write(data)
        await self._writer.drain()
        request.wire += len(data)
        await asyncio.sleep(0)  # A buffer that takes it all would let nobody else run.
        if self._manner.tick is not None:
            await self._manner.tick()
        return len(data)


_WITHOUT_BODY = frozenset({204, 304})


def _choose(manners: Manners, request: Request) -> Manner:
    if isinstance(manners, Manner):
        return manners
    if callable(manners):
        return manners(request)
    chosen = manners[min(request.number, len(manners)) - 1]
    return chosen if isinstance(chosen, Manner) else chosen(request)


def _parts(data: bytes | Iterable[bytes]) -> Iterable[bytes]:
    return (data,) if isinstance(data, bytes) else data


def _compose(
    request: Request, manner: Manner
) -> tuple[int, list[tuple[str, str]], bytes | Iterable[bytes]]:
    """Return status, headers and body: the honest ones, and the lies over them."""
    file = manner.file or request.file
    status, headers, body = _honest(request, file, ignores_range=manner.ignores_range)
    if manner.status is not None and manner.status != status:
        is_file = manner.status < _FIRST_REDIRECT and manner.status not in _WITHOUT_BODY
        status, body = manner.status, file.body if is_file else b""
        headers = [pair for pair in headers if is_file and pair[0] != "Content-Range"]
    if manner.body is not None:
        body = manner.body
    if manner.framing == "chunked":
        headers.append(("Transfer-Encoding", "chunked"))
    elif manner.framing == "close":
        headers.append(("Connection", "close"))
    elif manner.length is not None:
        headers.append(("Content-Length", str(manner.length)))
    elif isinstance(body, bytes) and status not in _WITHOUT_BODY:
        headers.append(("Content-Length", str(len(body))))
    told = {name.lower() for name, _ in manner.headers}
    headers = [pair for pair in headers if pair[0].lower() not in told]
    headers += [(name, value) for name, value in manner.headers if value is not None]
    return status, headers, body


_FIRST_REDIRECT = 300


def _honest(
    request: Request, file: File, *, ignores_range: bool
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Return status, headers but the length, and body as RFC 9110 wants them."""
    size = len(file.body)
    headers = [("Content-Type", file.content_type), ("Accept-Ranges", "bytes")]
    if file.etag is not None:
        headers.append(("ETag", file.etag))
    if_range = request.header("If-Range")
    is_same = if_range is None or (if_range == file.etag and not if_range.startswith("W/"))
    if ignores_range or request.start is None or not is_same:
        return 200, headers, file.body
    if request.start >= size:
        return 416, [*headers, ("Content-Range", f"bytes */{size}")], b""
    part = ("Content-Range", f"bytes {request.start}-{size - 1}/{size}")
    return 206, [*headers, part], file.body[request.start :]


# --- manners ----------------------------------------------------------------------------


def redirect(to: str | URL | None, status: int = 302, *headers: tuple[str, str | None]) -> Manner:
    """Return a redirect to *to* as it stands; without a Location for `None`."""
    return Manner(status=status, headers=(("Location", None if to is None else str(to)), *headers))


def refusal(status: int, *headers: tuple[str, str]) -> Manner:
    """Return an error with a page of the host's own."""
    page = f'<?xml version="1.0"?><Error><Code>{status}</Code></Error>'.encode()
    return Manner(status=status, body=page, headers=(("Content-Type", "application/xml"), *headers))


def page(status: int = 200) -> Manner:
    """Return a page for people, as a captive portal sends it."""
    text = b"<!DOCTYPE html><title>Sign in</title><p>Please sign in to go on."
    return Manner(status=status, body=text, headers=(("Content-Type", "text/html"), ("ETag", None)))


def encoded(coding: str = "gzip", **changes: object) -> Callable[[Request], Manner]:
    """Return the file under a Content-Encoding: compressed in truth for gzip alone."""

    def answer(request: Request) -> Manner:
        body = request.file.body
        manner = Manner(
            status=200,
            body=gzip.compress(body) if coding in {"gzip", "x-gzip"} else body,
            headers=(("Content-Encoding", coding),),
        )
        return attrs.evolve(manner, **changes)

    return answer


def bomb(size: int = 64 << 20) -> Manner:
    """Return *size* zeros as gzip, a thousandth of that on the wire."""
    body = gzip.compress(bytes(size), 9)
    return Manner(status=200, body=body, headers=(("Content-Encoding", "gzip"),))


def part(
    content_range: str | None = "bytes {start}-{last}/{size}",
    *,
    shift: int = 0,
    headers: Fields = (),
) -> Callable[[Request], Manner]:
    """
    Return a 206 whose Content-Range says *content_range*.

    Args:
        content_range: With the true ``{start}``, ``{last}`` and ``{size}``; without such a
            header for `None`.

        shift: How much later than asked the bytes start that are sent.

        headers: As of a `Manner`.
    """

    def answer(request: Request) -> Manner:
        body = request.file.body
        start = request.start or 0
        told = {"start": start, "last": len(body) - 1, "size": len(body)}
        value = None if content_range is None else content_range.format(**told)
        return Manner(
            status=206,
            body=body[start + shift :],
            headers=(("Content-Range", value), *headers),
        )

    return answer


def endless(data: bytes = b"\0" * _PIECE, first: bytes = b"") -> Iterator[bytes]:
    """Yield *first*, then *data* without end."""
    return itertools.chain((first,), itertools.repeat(data))


# --- files ------------------------------------------------------------------------------


def wav_bytes(
    size: int = 1_000,
    *,
    seed: int = 0,
    kind: Literal["RIFF", "RF64", "BW64"] = "RIFF",
    declared: int | None = None,
) -> bytes:
    """
    Return a WAV of *size* bytes whose samples are noise, so that no two versions share a part.

    Args:
        size: Of the file, at least its header: 44 bytes, 80 for the large kinds.

        seed: Which noise.

        kind: Its first four bytes; the large kinds have their sizes in a ``ds64`` chunk.

        declared: The size the file claims to have after its first 8 bytes, if not the true one.
    """
    riff = size - 8 if declared is None else declared
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, 44_100, 176_400, 4, 16)
    if kind == "RIFF":
        start = struct.pack("<4sI4s", b"RIFF", riff, b"WAVE") + form
        data = size - len(start) - 8
        start += struct.pack("<4sI", b"data", data)
    else:
        data = size - 12 - 36 - len(form) - 8
        start = struct.pack("<4sI4s", kind.encode(), 0xFFFFFFFF, b"WAVE")
        start += struct.pack("<4sIQQQI", b"ds64", 28, riff, data, max(data, 0) // 4, 0)
        start += form + struct.pack("<4sI", b"data", 0xFFFFFFFF)
    noise = random.Random(seed)  # noqa: S311 - repeatable, guards nothing
    return start + noise.randbytes(size - len(start))


# --- names ------------------------------------------------------------------------------


class ScriptedResolver(AbstractResolver):
    """
    A name service that says something else at every look.

    Args:
        answers: For each host the addresses of one look after the other; the last
            answer holds for all looks that follow.

        others: The addresses of all other hosts; without any, there are none.

        port: Where they are said to listen, if not where the link says.

    Attributes:
        looks: The hosts that were looked up, in order.
    """

    def __init__(
        self,
        answers: Mapping[str, Sequence[Sequence[str]]],
        *,
        others: Sequence[str] = (),
        port: int | None = None,
    ) -> None:
        self.looks: list[str] = []
        self._answers = answers
        self._others = others
        self._port = port

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002 - the interface has it
    ) -> list[ResolveResult]:
        """Return the next answer for *host*."""
        self.looks.append(host)
        answers = self._answers.get(host, [self._others])
        addresses = answers[min(self.looks.count(host), len(answers)) - 1]
        if not addresses:
            raise OSError(socket.EAI_NONAME, "no such host")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port if self._port is None else self._port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Have nothing to close."""
