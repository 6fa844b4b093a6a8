"""
A TCP proxy on loopback that fails on purpose, at the byte it is told to.

It takes in one whole request, asks its owner for a `Plan`, and carries it out:
the service gets as many bytes of the request, and the client as many bytes of
the answer, as the plan says, and then the connection ends the way it says. It
knows just enough HTTP to tell where a message ends. Without a service behind it,
it is a server that answers whatever it is told to.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal, Self

import attrs
from yarl import URL

if TYPE_CHECKING:
    from types import TracebackType

End = Literal["fin", "rst", "stall"]


@attrs.frozen(kw_only=True)
class Plan:
    """
    What becomes of one request and of its answer; by default, nothing bad.

    Attributes:
        request_bytes: How much of the request reaches the service before the cut; `None`: all
            of it, and there is no cut.
        answer_bytes: How much of the answer reaches the client before the cut; `None`: as above.
        end: What a cut looks like on both sides: an orderly end, a reset, or silence until the
            client gives up.
        answer: An answer of the proxy's own: bytes, or something that writes them.
        keeps_open: Whether the connection outlives such an answer.
        is_asked: Whether the service gets the request all the same; its answer is dropped.
        delay_s: The way of the request to the service, in seconds.
    """

    request_bytes: int | None = None
    answer_bytes: int | None = None
    end: End = "fin"
    answer: bytes | Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
    keeps_open: bool = False
    is_asked: bool = False
    delay_s: float = 0.0


PASS = Plan()


def http(status: str, body: bytes | str = b"", *headers: str) -> bytes:
    """Return a whole HTTP answer that ends its connection."""
    content = body.encode() if isinstance(body, str) else body
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + content


def end_with_reset(writer: asyncio.StreamWriter) -> None:
    """Drop the connection so that the peer sees a reset."""
    sock: socket.socket = writer.get_extra_info("socket")
    if sock.fileno() >= 0:
        # Zero linger: no orderly end.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Proxy:
    """
    Stands before *service*, an ``http://`` address, or before nothing.

    Attributes:
        base_url: The address to point a client at.
        plan: Called with each whole request; says what becomes of it.
        connections: How many were accepted.
        requests: Every whole request, as bytes.
        answers: Every whole answer of the service, as bytes.
    """

    def __init__(
        self, service: str | None = None, plan: Callable[[bytes], Plan] = lambda _: PASS
    ) -> None:
        self.plan = plan
        self.connections = 0
        self.requests: list[bytes] = []
        self.answers: list[bytes] = []
        self._service = None if service is None else URL(service)
        self.base_url = ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=4096)
        self.base_url = "http://{}:{}".format(*self._server.sockets[0].getsockname())
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

    async def ended(self) -> None:
        """Wait until every connection has ended and all that was on its way has arrived."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine, so that the tasks are ours to keep.
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while request := await _read_message(reader):
                self.requests.append(request)
                plan = self.plan(request)
                if up is None and self._service is not None:
                    up = await asyncio.open_connection(self._service.host, self._service.port)
                if not await self._carry_out(plan, request, (reader, writer), up):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # Somebody hung up, which is what this is for.
        finally:
            for one in (writer, *(() if up is None else (up[1],))):
                one.close()

    async def _carry_out(
        self,
        plan: Plan,
        request: bytes,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        up: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None,
    ) -> bool:
        """Do what the plan says; return whether the connection goes on."""
        if plan.delay_s:
            await asyncio.sleep(plan.delay_s)
        answer = b""
        if up is not None and (plan.answer is None or plan.is_asked):
            up[1].write(request[: plan.request_bytes])
            if plan.request_bytes is not None:
                await _end(plan.end, client, up)
                return False
            answer = await _read_message(up[0])
            self.answers.append(answer)
        if plan.answer is not None:
            if isinstance(plan.answer, bytes):
                client[1].write(plan.answer)
            else:
                await plan.answer(client[1])
            return plan.keeps_open
        client[1].write(answer[: plan.answer_bytes])
        if plan.answer_bytes is not None:
            await _end(plan.end, client, up)
            return False
        return bool(answer)


async def _end(
    end: End,
    client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    up: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None,
) -> None:
    if end == "stall":
        await client[0].read()  # Until the client gives up.
    elif end == "rst":
        for _, writer in (client, *(() if up is None else (up,))):
            end_with_reset(writer)


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    """Read one HTTP message to its end; empty if there is none."""
    try:
        message = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    if length := re.search(rb"(?i)\r\ncontent-length: *(\d+)", message):
        return message + await reader.readexactly(int(length[1]))
    if re.search(rb"(?i)\r\ntransfer-encoding: *chunked", message):
        while True:
            size = await reader.readuntil(b"\r\n")
            message += size + await reader.readexactly(int(size, 16) + 2)
            if int(size, 16) == 0:
                break
    return message
