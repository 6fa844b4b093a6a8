"""
A sender that costs receivers nothing: requests made beforehand, over a few connections.

It runs as a process of its own, so that its work is in nobody's figures. Each
round is read from its input: the receiver's port and the requests. Once it has
connected it says ``ready`` and waits for a word; it sends one request per
connection and the next when the answer is there, so that the receiver is never
without work, and says in the end which statuses it was answered, as JSON.
Connections stay open from round to round, unless the receiver announces that it closes one.

    python benchmarks/_sender.py
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import sys
from collections import Counter
from typing import IO, TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

#: How many connections there are to each receiver.
CONNECTIONS: Final = 8

_ROUND: Final = struct.Struct("!HI")
_LENGTH: Final = struct.Struct("!I")


class Sender:
    """The process, as those see it who have it send."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin = process.stdin
        self._stdout = process.stdout

    async def load(self, port: int, requests: Sequence[bytes]) -> None:
        """Have *requests* made ready, so that `send` costs this process nothing more."""
        self._stdin.write(_ROUND.pack(port, len(requests)))
        for request in requests:
            self._stdin.write(_LENGTH.pack(len(request)) + request)
        await self._stdin.drain()
        assert await self._stdout.readline() == b"ready\n"

    async def send(self) -> Mapping[int, int]:
        """Have them sent, and return how often there was which status in answer."""
        self._stdin.write(b"!")
        said = await self._stdout.readline()
        assert said, "the sender died"
        statuses = cast("dict[str, int]", json.loads(said))
        return {int(status): times for status, times in statuses.items()}


@contextlib.asynccontextmanager
async def sending() -> AsyncIterator[Sender]:
    """Run the sender in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Sender(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()  # Its end.
        await process.wait()


# --- in the process -------------------------------------------------------------------------


class _Connection:
    """One connection; one request is under way at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connect()
        self.is_waiting = False

    def _connect(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, request: bytes) -> None:
        self._socket.sendall(request)
        self.is_waiting = True

    def receive(self) -> int:
        """Return the status of the answer, once all of it is there."""
        received = b""
        while True:
            part = self._socket.recv(65_536)
            assert part, "the receiver closed the connection"
            received += part
            head, end, body = received.partition(b"\r\n\r\n")
            if not end:
                continue
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if len(body) >= length:
                self.is_waiting = False
                if b"connection: close" in head.lower():
                    self._socket.close()
                    self._connect()
                return int(head.split(b" ", 2)[1])


def _send(connections: Sequence[_Connection], requests: Sequence[bytes]) -> Counter[int]:
    statuses: Counter[int] = Counter()
    for number, request in enumerate(requests):
        connection = connections[number % len(connections)]
        if connection.is_waiting:
            statuses[connection.receive()] += 1
        connection.send(request)
    for connection in connections:
        if connection.is_waiting:
            statuses[connection.receive()] += 1
    return statuses


def _run(rounds: IO[bytes]) -> None:
    connections: dict[int, list[_Connection]] = {}
    while head := rounds.read(_ROUND.size):
        port, count = _ROUND.unpack(head)
        requests = [rounds.read(_LENGTH.unpack(rounds.read(4))[0]) for _ in range(count)]
        if port not in connections:
            connections[port] = [_Connection(port) for _ in range(CONNECTIONS)]
        print("ready", flush=True)
        if not rounds.read(1):
            return
        print(json.dumps(_send(connections[port], requests)), flush=True)


if __name__ == "__main__":
    _run(sys.stdin.buffer)
