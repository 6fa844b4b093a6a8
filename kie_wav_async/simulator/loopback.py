"""
Requests to this machine, and to no other: byte for byte as given, on a connection each.

No HTTP client in between: what goes out is neither normalised nor followed, compressed or
sent again, and requests can be sent that no client would send.
"""

import asyncio
import contextlib
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Final, Self, TypeAlias
from urllib.parse import urlsplit

import attrs

Headers: TypeAlias = Sequence[tuple[str, str | bytes]]

_URL: Final = re.compile(r"http://([^/?#@]+)((?:[/?][^#]*)?)(?:#.*)?", re.IGNORECASE)
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})\b")
_LENGTH: Final = re.compile(rb"(?im)^content-length: *([0-9]{1,9}) *\r?$")
_CHUNKED: Final = re.compile(rb"(?im)^transfer-encoding: *chunked *\r?$")
_CHUNK: Final = re.compile(rb"[0-9A-Fa-f]{1,8}")
_NEWS: Final = 200  # Statuses below it announce another answer.
_MOST_HEAD: Final = 65_536  # Bytes of an answer before its body.
_MOST_BODY: Final = 65_536  # Bytes of an answer that are read.


@attrs.frozen
class Address:
    """
    Where a request goes: a plain http URL whose host is this machine.

    Attributes:
        hosts: Literal addresses to try one after the other; nothing is looked up.
        port: The port.
        authority: Host and port as in the URL, for the ``Host`` header.
        path: The path as in the URL.
        query: What follows it, with its question mark; empty where there is none.

    """

    hosts: Sequence[str]
    port: int
    authority: str
    path: str
    query: str

    @classmethod
    def parse(cls, url: str) -> Self | None:
        """Return the address; `None` for what is no http URL of 127/8, ::1 or localhost."""
        match = _URL.fullmatch(url)
        # What is not visible ASCII would not reach the wire, or the host, as it is given.
        if match is None or not url.isascii() or not url.isprintable() or " " in url:
            return None
        authority, rest = match.groups()
        try:
            parts = urlsplit(f"//{authority}")
            host, port = parts.hostname or "", parts.port
        except ValueError:
            return None
        hosts = ("127.0.0.1", "::1") if host == "localhost" else (host,)
        if not all(map(_is_loopback, hosts)):
            return None
        path, mark, query = rest.partition("?")
        return cls(hosts, 80 if port is None else port, authority, path or "/", mark + query)

    def request(
        self,
        headers: Headers,
        body: bytes,
        *,
        content_type: str = "application/json",
        query: bool = True,
    ) -> bytes:
        """
        Return a request.

        Args:
            headers: Besides those that every request has; sent as they stand.
            body: The body.
            content_type: The media type of the body.
            query: `False`: without the query.

        """
        every: list[tuple[str, str | bytes]] = [
            ("Host", self.authority),
            ("Connection", "close"),
            ("User-Agent", "kie-simulator"),
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
        ]
        lines = [f"POST {self.path}{self.query if query else ''} HTTP/1.1".encode()]
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


async def exchange(address: Address, request: bytes) -> Answer:
    """
    Send one request and return what is answered; waits for it without end.

    Args:
        address: Where to.
        request: Its bytes; what an early answer makes pointless is not sent.

    """
    # A socket, not a stream: who answers early and hangs up makes sending fail, and a stream
    # would then no longer tell the answer.
    try:
        sock = await _connect(address)
    except OSError:
        return Answer()
    loop = asyncio.get_running_loop()
    with sock:
        sending = loop.create_task(_send(sock, request))
        try:
            data, answer = b"", None
            while answer is None:
                piece = await _receive(sock)
                data += piece
                answer = parse_answer(data, ended=not piece)
            return answer
        finally:
            sending.cancel()
            # It looks at the socket, which has to stay open as long.
            await asyncio.gather(sending, return_exceptions=True)


async def _connect(address: Address) -> socket.socket:
    *others, last = address.hosts
    for host in others:
        with contextlib.suppress(OSError):
            return await _connect_to(host, address.port)
    return await _connect_to(last, address.port)


async def _connect_to(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setblocking(False)  # noqa: FBT003 - as the method has it
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def _send(sock: socket.socket, request: bytes) -> None:
    with contextlib.suppress(OSError):
        await asyncio.get_running_loop().sock_sendall(sock, request)


async def _receive(sock: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(sock, _MOST_BODY)
    except OSError:
        return b""


def parse_answer(data: bytes, *, ended: bool) -> Answer | None:
    """
    Return the answer that has come so far; `None`: there is more to wait for.

    Args:
        data: What was received.
        ended: Whether no more will come.

    """
    status, head = 0, b""
    while status < _NEWS:
        head, end, data = data.partition(b"\r\n\r\n")
        match = _STATUS.match(head)
        if not end:
            return Answer() if ended or len(head) > _MOST_HEAD else None
        if match is None:
            return Answer()
        status = int(match[1])
    if _CHUNKED.search(head):
        body, is_whole = _join_chunks(data)
    else:
        length = _LENGTH.search(head)
        size = int(length[1]) if length else _MOST_BODY
        body, is_whole = data[:size], len(data) >= size
    if is_whole or ended or len(data) > _MOST_BODY:
        return Answer(status, body[:_MOST_BODY])
    return None


def _join_chunks(data: bytes) -> tuple[bytes, bool]:
    """Return the body as far as it came, and whether it ends there, well or badly."""
    body = b""
    while True:
        line, end, rest = data.partition(b"\r\n")
        if not end:
            return body, False
        size = _CHUNK.match(line)
        if size is None or not int(size[0], 16):
            return body, True
        length = int(size[0], 16)
        body += rest[:length]
        data = rest[length + 2 :]
