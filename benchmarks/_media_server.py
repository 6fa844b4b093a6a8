"""
A media host that costs its clients nothing: one WAV file under any name, by sendfile.

It runs as a process of its own, so that its work is in nobody's figures, and says
on its first line of output which port it has. A thread serves each connection, and
none of them touches the bytes.

    python benchmarks/_media_server.py BYTES
"""

from __future__ import annotations

import contextlib
import random
import socket
import socketserver
import struct
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD: Final = struct.Struct("<4sI4s4sIHHIIHH4sI")


def _write_wav(file: BinaryIO, size: int) -> None:
    """Write a WAV file of *size* bytes, whose sound is noise: nothing can be saved on it."""
    samples = size - _HEAD.size
    file.write(
        _HEAD.pack(
            *(b"RIFF", size - 8, b"WAVE", b"fmt ", 16, 1, 2, 44_100, 176_400, 4, 16),
            *(b"data", samples),
        )
    )
    file.write(random.Random(0).randbytes(samples))  # noqa: S311 - noise, not a secret
    file.flush()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file_name = file.name
        self.size = size
        super().__init__(("127.0.0.1", 0), _Peer)


class _Peer(socketserver.StreamRequestHandler):
    """One connection; a request is a head without a body."""

    server: _Server
    request: socket.socket
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with (
            contextlib.suppress(ConnectionError),
            open(self.server.file_name, "rb") as file,  # noqa: PTH123 - it may be a number
        ):
            while line := self.rfile.readline():
                while self.rfile.readline().strip():
                    pass
                # Any name is a version of its own, with a tag one can go on by.
                tag = line.split()[1].rpartition(b"/")[2].decode()
                self.wfile.write(
                    f"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nETag: \"{tag}\"\r\n"
                    f"Accept-Ranges: bytes\r\nContent-Length: {self.server.size}\r\n\r\n".encode()
                )
                self.request.sendfile(file)


def _serve(size: int) -> None:
    with tempfile.NamedTemporaryFile() as file:
        _write_wav(file, size)
        with _Server(file, size) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            print(server.server_address[1], flush=True)
            # Whoever started us closes our input when done, or by dying.
            sys.stdin.read()
            server.shutdown()


@contextlib.contextmanager
def serving_files(size: int) -> Iterator[str]:
    """Run the server, with files of *size* bytes, in a process of its own; yield its address."""
    command = [sys.executable, __file__, str(size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:  # noqa: S603 - our own file
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.stdin.close()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
