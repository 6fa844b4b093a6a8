"""Fetch a WAV file: streamed into a part file, which gets its name when it is whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import BinaryIO

_CHUNK: Final = 1 << 18
_MAX_BYTES: Final = 1 << 32  # A WAV header cannot count further.
_MAX_REDIRECTS: Final = 5
_HEAD: Final = 12  # "RIFF", a size, "WAVE".
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=15.0, sock_read=60.0)


class SaveError(Exception):
    """The file is not on the disk; the text says why."""


def verify_target(path: Path) -> None:
    """
    Return if a file can be made at *path*, as far as that can be told before.

    Raises:
        ValueError: It cannot.
    """
    if path.name == "-" or path.is_dir():
        msg = f"{path} is not the name of a file"
        raise ValueError(msg)
    if not path.parent.is_dir():
        msg = f"there is no folder {path.parent}"
        raise ValueError(msg)
    if not os.access(path.parent, os.W_OK):
        msg = f"the folder {path.parent} may not be written to"
        raise ValueError(msg)


def open_http() -> aiohttp.ClientSession:
    """Return a client for file hosts: it knows no key, and keeps no cookies."""
    return aiohttp.ClientSession(timeout=_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar())


async def save(
    http: aiohttp.ClientSession,
    url: URL,
    path: Path,
    *,
    insecure_hosts: Collection[str],
    on_progress: Callable[[int, int | None], object] = lambda _, __: None,
) -> int:
    """
    Fetch *url* into *path*, replacing what is there, and return the bytes.

    Args:
        http: A client without credentials.

        url: The file.

        path: Where to put it.

        insecure_hosts: Hosts from which plain http is accepted.

        on_progress: Called with the bytes so far, and in all if the host tells.

    Raises:
        SaveError: The file is not there; nothing is left behind.
    """
    try:
        file, part = _open_part(path)
        try:
            with file:
                size = await _fetch(http, url, file, insecure_hosts, on_progress)
            part.chmod(0o666 & ~_umask())
            part.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
    except TimeoutError as error:
        msg = f"{url.host} sent nothing for too long"
        raise SaveError(msg) from error
    except aiohttp.ClientError as error:
        msg = f"the connection to {url.host} broke ({type(error).__name__})"
        raise SaveError(msg) from error
    except OSError as error:
        msg = f"{path}: {error.strerror or type(error).__name__}"
        raise SaveError(msg) from error
    return size


def _open_part(path: Path) -> tuple[BinaryIO, Path]:
    # For its owner's eyes only until it is whole, under a name nobody else has.
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    return os.fdopen(number, "wb"), Path(name)


def _umask() -> int:
    # There is no way to look without touching.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _next(url: URL, location: str) -> URL:
    try:
        return url.join(URL(location))
    except ValueError as error:
        msg = f"{url.host} redirects to nowhere"
        raise SaveError(msg) from error


async def _fetch(
    http: aiohttp.ClientSession,
    url: URL,
    file: BinaryIO,
    insecure_hosts: Collection[str],
    on_progress: Callable[[int, int | None], object],
) -> int:
    for _ in range(_MAX_REDIRECTS):
        if url.scheme != "https" and (url.host or "") not in insecure_hosts:
            msg = f"the file's address ({url.scheme}: {url.host}) is not https"
            raise SaveError(msg)
        async with http.get(url, allow_redirects=False) as answer:
            if answer.status in {301, 302, 303, 307, 308} and "Location" in answer.headers:
                url = _next(answer.url, answer.headers["Location"])
                continue
            if answer.status != HTTPStatus.OK:
                msg = f"{url.host} answered {answer.status}"
                raise SaveError(msg)
            return await _copy(answer, file, on_progress)
    msg = f"{url.host} redirects without end"
    raise SaveError(msg)


async def _copy(
    answer: aiohttp.ClientResponse,
    file: BinaryIO,
    on_progress: Callable[[int, int | None], object],
) -> int:
    head = await _first(answer, _HEAD)
    if head[:4] not in {b"RIFF", b"RF64"} or head[8:12] != b"WAVE":
        msg = f"what {answer.url.host} sent is not a WAV file"
        raise SaveError(msg)
    size, chunk = 0, head
    while chunk:
        size += len(chunk)
        if size > _MAX_BYTES:
            msg = f"what {answer.url.host} sent is too large for a WAV file"
            raise SaveError(msg)
        await asyncio.to_thread(file.write, chunk)
        on_progress(size, answer.content_length)
        chunk = await answer.content.read(_CHUNK)
    return size


async def _first(answer: aiohttp.ClientResponse, count: int) -> bytes:
    try:
        return await answer.content.readexactly(count)
    except asyncio.IncompleteReadError as error:
        return error.partial
