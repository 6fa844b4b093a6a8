"""
Requests to this machine, and to no other: byte for byte as given, on a connection each.

No HTTP client in between: what goes out is neither normalised nor followed, compressed or
sent again, and requests can be sent that no client would send.
"""

import asyncio
import contextlib
import functools
import ipaddress
import re
import ssl
from collections.abc import Iterable, Sequence
from typing import Final, Self, TypeAlias
from urllib.parse import urlsplit

import attrs

Headers: TypeAlias = Sequence[tuple[str, str | bytes]]

_URL: Final = re.compile(r"(https?)://([^/?#@]+)((?:[/?][^#]*)?)(?:#.*)?", re.IGNORECASE)
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})\b")
_LENGTH: Final = re.compile(rb"(?im)^content-length: *([0-9]{1,9}) *\r?$")
_CHUNKED: Final = re.compile(rb"(?im)^transfer-encoding: *chunked *\r?$")
_NEWS: Final = 200  # Statuses below it announce another answer.
_MOST_BODY: Final = 65_536  # Bytes of an answer that are read.


@attrs.frozen
class Address:
    """
    Where a request goes: an http(s) URL whose host is this machine.

    Attributes:
        hosts: Literal addresses to try one after the other; nothing is looked up.
        port: The port.
        tls: Whether it is https. Certificates are not verified: nobody is in between.
        authority: Host and port as in the URL, for the ``Host`` header.
        path: The path as in the URL.
        query: What follows it, with its question mark; empty where there is none.

    """

    hosts: Sequence[str]
    port: int
    tls: bool
    authority: str
    path: str
    query: str

    @classmethod
    def parse(cls, url: str) -> Self | None:
        """Return the address; `None` for what is no http(s) URL of 127/8, ::1 or localhost."""
        match = _URL.fullmatch(url)
        # What is not visible ASCII would not reach the wire, or the host, as it is given.
        if match is None or not url.isascii() or not url.isprintable() or " " in url:
            return None
        scheme, authority, rest = match.groups()
        try:
            parts = urlsplit(f"//{authority}")
            host, port = parts.hostname or "", parts.port
        except ValueError:
            return None
        hosts = ("127.0.0.1", "::1") if host == "localhost" else (host,)
        if not all(map(_is_loopback, hosts)):
            return None
        tls = scheme.lower() == "https"
        path, mark, query = rest.partition("?")
        default = 443 if tls else 80
        return cls(
            hosts, default if port is None else port, tls, authority, path or "/", mark + query
        )

    def request(
        self,
        headers: Headers,
        body: bytes,
        *,
        method: str = "POST",
        content_type: str = "application/json",
        query: bool = True,
        length: int | None = None,
    ) -> bytes:
        """
        Return a request.

        Args:
            headers: Besides those that every request has; sent as they stand.
            body: The body.
            method: The method.
            content_type: The media type of the body.
            query: `False`: without the query.
            length: What ``Content-Length`` says; `None`: the truth; below 0: not there.

        """
        every: list[tuple[str, str | bytes]] = [
            ("Host", self.authority),
            ("Connection", "close"),
            ("User-Agent", "kie-simulator"),
            ("Content-Type", content_type),
        ]
        if length is None or length >= 0:
            every.append(("Content-Length", str(len(body) if length is None else length)))
        lines = [f"{method} {self.path}{self.query if query else ''} HTTP/1.1".encode()]
        for name, value in [*every, *headers]:
            text = value if isinstance(value, bytes) else value.encode()
            lines.append(name.encode() + b": " + text)
        return b"\r\n".join([*lines, b"", body])


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # Not is_loopback alone: what it says of mapped and scoped addresses differs by version.
    return address.is_loopback if address.version == 4 else host == "::1"  # noqa: PLR2004 - the number of IPv4


@functools.cache
def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@attrs.frozen
class Answer:
    """
    What came back.

    Attributes:
        status: The HTTP status; `None`: the connection ended without one.
        body: The body as far as it came, 64 KiB of it at most; `None` without a status.

    """

    status: int | None = None
    body: bytes | None = None


async def exchange(address: Address, request: bytes, more: Iterable[bytes] = ()) -> Answer:
    """
    Send one request and return what is answered; waits for it without end.

    Args:
        address: Where to.
        request: Its bytes, or the first of them.
        more: What follows, as fast as it is taken, until the answer is there.

    """
    try:
        reader, writer = await _connect(address)
    except OSError:
        return Answer()
    sending = asyncio.create_task(_send(writer, request, more))
    try:
        return await _read_answer(reader)
    finally:
        sending.cancel()
        writer.transport.abort()
        # Only then is the connection gone, and nothing left behind.
        await asyncio.gather(sending, writer.wait_closed(), return_exceptions=True)


async def _connect(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    *others, last = address.hosts
    context = _unverified() if address.tls else None
    for host in others:
        with contextlib.suppress(OSError):
            return await asyncio.open_connection(host, address.port, ssl=context)
    return await asyncio.open_connection(last, address.port, ssl=context)


async def _send(writer: asyncio.StreamWriter, request: bytes, more: Iterable[bytes]) -> None:
    # Who does not want to read on may hang up, and can still have answered.
    with contextlib.suppress(OSError):
        writer.write(request)
        await writer.drain()
        for piece in more:
            writer.write(piece)
            await writer.drain()
            # A drained buffer does not yield: the answer would not be seen.
            await asyncio.sleep(0)


async def _read_answer(reader: asyncio.StreamReader) -> Answer:
    head, status = b"", 0
    try:
        while status < _NEWS:
            head = await reader.readuntil(b"\r\n\r\n")
            match = _STATUS.match(head)
            if match is None:
                return Answer()
            status = int(match[1])
    except (OSError, EOFError, asyncio.LimitOverrunError):
        return Answer()
    body = bytearray()
    with contextlib.suppress(OSError, EOFError, ValueError, asyncio.LimitOverrunError):
        if _CHUNKED.search(head):
            while size := int(await reader.readline(), 16):
                await _read(reader, body, size)
                await reader.readline()
        else:
            length = _LENGTH.search(head)
            await _read(reader, body, int(length[1]) if length else _MOST_BODY)
    return Answer(status, bytes(body))


async def _read(reader: asyncio.StreamReader, body: bytearray, size: int) -> None:
    """Add the next `size` bytes to a body, or as many as there are; `EOFError` beyond the limit."""
    end = len(body) + size
    while len(body) < end:
        piece = await reader.read(min(end, _MOST_BODY) - len(body))
        if not piece:
            raise EOFError
        body += piece
