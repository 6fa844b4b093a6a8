"""What strangers can make a process use that receives callbacks: memory, descriptors, log."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fakes import WEBHOOK_KEY
from kie_wav_async.testing import signed_callback
from receivers import PARSERS, PATIENCE_S, request

CHILD = Path(__file__).resolve().parent / "receiver_child.py"
MIB = 1 << 20


class Child:
    """A process that receives callbacks."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        port, self.path = process.stdout.readline().split()
        self._address = ("127.0.0.1", int(port))

    def connect(self) -> socket.socket:
        return socket.create_connection(self._address, timeout=PATIENCE_S)

    def look(self) -> tuple[int, int]:
        """Return its most memory so far, and how many files it can open."""
        self._process.stdin.write("look\n")
        self._process.stdin.flush()
        most, files = map(int, self._process.stdout.readline().split())
        return most, files

    def genuine(self) -> bytes:
        """Return the request of a genuine callback."""
        callback = signed_callback("nobody", key=WEBHOOK_KEY, now_unix_s=time.time())
        return request(self.path, callback.headers, callback.body)

    def answers(self, data: bytes) -> bytes:
        """Return the first line of the answer to a request."""
        with self.connect() as sock:
            sock.sendall(data)
            return sock.makefile("rb").readline()


@contextlib.contextmanager
def receiving(receiver: str, log: Path, *, keys: str = WEBHOOK_KEY, descriptors: int = 1_024):
    """Run a process that receives callbacks; what it logs goes into *log*."""
    with (
        log.open("wb") as stderr,
        subprocess.Popen(  # noqa: S603 - a file of this repository
            [sys.executable, str(CHILD), receiver, keys, str(descriptors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        try:
            yield Child(process)
        finally:
            process.stdin.close()
            try:
                process.wait(PATIENCE_S)
            finally:
                process.kill()


def pipeline(child: Child, data: bytes, size: int) -> None:
    """Send a request again and again in one connection, without reading the answers."""
    with child.connect() as sock, contextlib.suppress(ConnectionError, TimeoutError):
        sock.settimeout(1.0)  # A server that stops reading has stopped growing.
        block = data * (MIB // len(data))
        for _ in range(size // MIB):
            sock.sendall(block)


FORGED = b"{}"
PLAIN = b'{"code":200,"data":{"task_id":"nobody"}}'


@pytest.mark.parametrize(
    ("receiver", "kind"),
    [
        ("uvicorn with httptools", "forged"),
        ("uvicorn with httptools", "without keys"),
        *((receiver, "genuine") for receiver in PARSERS),
    ],
)
def test_pipelining_takes_no_memory(tmp_path, receiver, kind) -> None:
    """Whoever sends 40 MB of requests without waiting for an answer costs less than 100 MB."""
    with receiving(
        receiver, tmp_path / "log", keys="" if kind == "without keys" else WEBHOOK_KEY
    ) as child:
        data = {
            "forged": request(child.path, body=FORGED),
            "genuine": child.genuine(),
            "without keys": request(child.path, body=PLAIN),
        }[kind]
        assert child.answers(child.genuine()).split()[1] == b"200"
        before, _ = child.look()
        for _ in range(2):
            pipeline(child, data, 20 * MIB)
        after, _ = child.look()

        assert child.answers(child.genuine()).split()[1] == b"200"
    assert after - before < 100 * MIB


HALF = b"POST / HTTP/1.1\r\nX-Slow: "
NO_BODY = b"POST / HTTP/1.1\r\nContent-Length: 500\r\n\r\n"


@pytest.mark.parametrize(
    ("descriptors", "sent"),
    [(256, b""), (256, HALF), (256, NO_BODY), (64, b"")],
    ids=["nothing", "half a head", "no body", "few descriptors"],
)
def test_connections_leave_descriptors_for_the_work(tmp_path, descriptors, sent) -> None:
    """However many connections are open callbacks are taken, files opened, and nothing logged."""
    log = tmp_path / "log"
    with (
        receiving("CallbackServer", log, descriptors=descriptors) as child,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(300):
            stack.enter_context(child.connect()).sendall(sent)
        assert child.answers(child.genuine()).split()[1] == b"200"
        _, files = child.look()
        # 64 descriptors are few: the interpreter and the loop have a dozen.
        assert files >= (40 if descriptors == 256 else 16)
    assert log.stat().st_size < 1_000
