"""
A service that costs its clients nothing: the WAV endpoints on a raw asyncio protocol.

It runs as a process of its own, so that its work is in nobody's figures, says
on its first line of output which port it has, and counts what reached it. Every
task is done at its n-th poll, so that two clients in one run meet the same.
Answers are chunked and packed, as the service's are.

    python benchmarks/_server.py POLLS_PER_TASK
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import subprocess
import sys
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_HEADERS: Final = (
    b"HTTP/1.1 200 OK\r\n"
    b"Date: Tue, 28 Apr 2026 12:28:01 GMT\r\n"
    b"Content-Type: application/json;charset=UTF-8\r\n"
    b"Transfer-Encoding: chunked\r\n"
    b"Content-Encoding: gzip\r\n"
    b"Server: cloudflare\r\n"
    b"cf-ray: 9f36107cb8b75f2f-SIN\r\n\r\n"
)


def _answer(payload: object) -> bytes:
    body = gzip.compress(json.dumps(payload).encode(), compresslevel=1)
    return _HEADERS + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def record(task_id: str, status: str) -> dict[str, object]:
    """Return a record as the service sends it."""
    is_done = status == "SUCCESS"
    return {
        "taskId": task_id,
        "musicId": f"e231-{task_id}",
        "callbackUrl": "https://kie-wav-async.invalid/callback?attempt=" + task_id,
        "musicIndex": 0,
        "completeTime": "2026-04-28 12:29:31" if is_done else None,
        "response": {"audioWavUrl": f"https://media.invalid/s/{task_id}.wav"} if is_done else None,
        "successFlag": status,
        "createTime": "2026-04-28 12:28:01",
        "errorCode": None,
        "errorMessage": None,
    }


class _State:
    def __init__(self, polls_per_task: int) -> None:
        self.polls_per_task = polls_per_task
        self.serials = itertools.count(1)
        self.polls_of: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def answer(self, method: str, target: str) -> bytes:
        """Return the answer to one request."""
        path, _, query = target.partition("?")
        if path.endswith("/counts"):
            counts, self.counts = self.counts, Counter()
            return _answer(counts)
        if method == "POST":
            self.counts["submits"] += 1
            task_id = f"{next(self.serials):032x}"
            return _answer({"code": 200, "msg": "success", "data": {"taskId": task_id}})
        self.counts["polls"] += 1
        task_id = query.removeprefix("taskId=")
        self.polls_of[task_id] += 1
        status = "SUCCESS" if self.polls_of[task_id] >= self.polls_per_task else "PENDING"
        return _answer({"code": 200, "msg": "success", "data": record(task_id, status)})


class _Peer(asyncio.Protocol):
    """One connection; a request comes in one or more pieces, never two at once."""

    def __init__(self, state: _State) -> None:
        self._state = state
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._is_new = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        line, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (f.partition(": ") for f in fields)}
        if len(body) < int(headers.get("content-length", "0")):
            return
        self._received = b""
        method, target, _ = line.split(" ")
        if not target.endswith("/counts"):
            self._state.counts["connections"] += self._is_new
            self._is_new = False
            for name in headers:
                self._state.counts[f"header {name}"] += 1
        assert self._transport is not None
        self._transport.write(self._state.answer(method, target))
        if headers.get("connection", "").lower() == "close":
            self._transport.close()


async def _serve(polls_per_task: int) -> None:
    state = _State(polls_per_task)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Peer(state), "127.0.0.1", 0, backlog=4096)
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        # Whoever started us closes our input when done, or by dying.
        await loop.run_in_executor(None, sys.stdin.read)


@contextlib.contextmanager
def serving(polls_per_task: int) -> Iterator[str]:
    """Run the server in a process of its own; its address is the value."""
    command = [sys.executable, __file__, str(polls_per_task)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:  # noqa: S603 - our own file
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.stdin.close()


def take_counts(address: str) -> Mapping[str, int]:
    """Return what reached the server since the last call."""
    with urllib.request.urlopen(f"{address}/counts") as answer:  # noqa: S310 - our own server
        return cast("dict[str, int]", json.loads(gzip.decompress(answer.read())))


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
