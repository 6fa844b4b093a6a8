"""
A media host that costs its clients nothing: one WAV file under any name, by sendfile.

It runs as a process of its own, so that its work is in nobody's figures, and says
on its first line of output which port it has. A thread serves each connection, and
none of them touches the bytes. All of them together may be held to a rate, as by a
link.

    python benchmarks/_media_server.py BYTES [BYTES_PER_S]
"""

from __future__ import annotations

import contextlib
import random
import socketserver
import struct
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

_PIECE: Final = 1 << 18

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


class _Link:
    """Lets so many bytes through in a second, in the order in which they are asked for."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_mono_s = 0.0
        self._lock = threading.Lock()

    def wait(self, count: int) -> None:
        """Wait until *count* more bytes are through."""
        with self._lock:
            start_mono_s = max(self._free_mono_s, time.monotonic())
            self._free_mono_s = through_mono_s = start_mono_s + count / self._bytes_per_s
        time.sleep(max(0.0, through_mono_s - time.monotonic()))


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, file: BinaryIO, size: int, bytes_per_s: int) -> None:
        self.file_name = file.name
        self.size = size
        self.link = _Link(bytes_per_s) if bytes_per_s else None
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
                    f'HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nETag: "{tag}"\r\n'
                    f"Accept-Ranges: bytes\r\nContent-Length: {self.server.size}\r\n\r\n".encode()
                )
                self._send(file)

    def _send(self, file: BinaryIO) -> None:
        link, size = self.server.link, self.server.size
        if link is None:
            self.request.sendfile(file)
            return
        for start in range(0, size, _PIECE):
            count = min(_PIECE, size - start)
            link.wait(count)
            self.request.sendfile(file, start, count)


def _serve(size: int, bytes_per_s: int = 0) -> None:
    with tempfile.NamedTemporaryFile() as file:
        _write_wav(file, size)
        with _Server(file, size, bytes_per_s) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            print(server.server_address[1], flush=True)
            # Whoever started us closes our input when done, or by dying.
            sys.stdin.read()
            server.shutdown()


@contextlib.contextmanager
def serving_files(size: int, bytes_per_s: int = 0) -> Iterator[str]:
    """Run the server, with files of *size* bytes, in a process of its own; yield its address."""
    command = [sys.executable, __file__, str(size), str(bytes_per_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:  # noqa: S603 - our own file
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.stdin.close()


if __name__ == "__main__":
    _serve(*map(int, sys.argv[1:]))
