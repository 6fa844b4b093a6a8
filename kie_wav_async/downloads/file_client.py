"""
The hosts of WAV files: where a link leads, what it answers, and nothing of ours to see.

They are not the service. No key and no cookie goes there, and a link may lead
anywhere: so each hop of it is checked before it is looked up, and each address
that a name comes to as it is connected to, which is the only moment that counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
from typing import TYPE_CHECKING, Any, Final, cast

import aiohttp

from kie_wav_async._support.patient_timer import LoopDelayMeter, patient_timeout
from kie_wav_async._support.secret import drop_frames
from kie_wav_async.downloads.public_address import is_public
from kie_wav_async.downloads.url_policy import check_download_url, is_trusted, join_link
from kie_wav_async.errors import DownloadError
from kie_wav_async.http.connection_settings import (
    is_permanent,
    presentable,
    proxy_failure,
    proxy_rejection,
    reason_of,
    user_agent,
    via_proxy,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from types import SimpleNamespace

    from aiohttp.abc import AbstractResolver
    from yarl import URL

    from kie_wav_async._support.patient_timer import PatientTimer
    from kie_wav_async.errors import DownloadReason
    from kie_wav_async.http.connection_settings import ConnectionSettings

#: Most connections at a time, and so most downloads of a session.
MAX_CONNECTIONS: Final = 8

#: Most redirects from a link to its file.
MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

#: How long a host has for each thing. There is no limit to the whole: a file that
#: comes is welcome however long it takes. Counted by us, as the transport does.
TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=30.0, sock_read=60.0)
#: How long it has for the head of its answer, connecting included.
HEAD_TIMEOUT_S: Final = 90.0

_READ_AHEAD: Final = 1 << 18


class FileError(Exception):
    """
    A host gave no usable answer; it may another time.

    Attributes:
        reason: As of `DownloadError`.

        retry_after: Its ``Retry-After`` header; `None` if there was none.
    """

    def __init__(
        self,
        message: str,
        reason: DownloadReason = "unavailable",
        *,
        retry_after: str | None = None,
    ) -> None:
        super().__init__(message)
        self.reason: DownloadReason = reason
        self.retry_after = retry_after


class _PrivateAddressError(OSError):
    """A name leads to an address that is not public."""

    def __init__(self) -> None:
        # The same words whatever the address: one error stands for several of them.
        super().__init__(errno.EACCES, "not a public address")


class FileResponse:
    """
    What a host answered.

    Attributes:
        status: The HTTP status.

        host: Who answered, for words.
    """

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.status = answer.status
        self.host = _host(answer.url)
        self._answer = answer
        self._failure: FileError | None = None
        self._meter = LoopDelayMeter()

    @property
    def held_s(self) -> float:
        """How long our loop was held up since then, in seconds: not the host's fault."""
        return self._meter.delayed_s

    def close(self) -> None:
        """Let go of the connection."""
        self._meter.close()
        self._answer.close()

    def header(self, name: str) -> str | None:
        """Return the value of a header; `None` if it is not there, or there twice."""
        values = self._answer.headers.getall(name, [])
        return values[0] if len(values) == 1 else None

    def has(self, name: str) -> bool:
        """Return whether a header is there."""
        return name in self._answer.headers

    @property
    def coding(self) -> str:
        """How the body is encoded, as its headers say; ``""`` for nothing that changes bytes."""
        told = ",".join(self._answer.headers.getall("Content-Encoding", []))
        names = (name.strip().lower() for name in told.split(","))
        return ",".join(name for name in names if name not in {"", "identity"})

    @property
    def is_chunked(self) -> bool:
        """Whether the end of the body is marked, so that it cannot be missing unnoticed."""
        told = ",".join(self._answer.headers.getall("Transfer-Encoding", []))
        return told.rpartition(",")[2].strip(" \t").lower() == "chunked"

    async def read(self) -> bytes:
        """
        Return what has come of the body, or what comes next; nothing at its end.

        Raises:
            MediaError: It ends before its end, or nothing comes.
        """
        if self._failure is None:
            before = sys.exception()
            try:
                async with patient_timeout(TIMEOUT.sock_read):
                    return await self._answer.content.readany()
            except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
                # RuntimeError: the same, if nobody waited yet.
                self._failure = _failure(self._answer.url, error, "truncated")
            except asyncio.CancelledError as error:
                drop_frames(error, before)
                raise
            if rest := self._rest():
                return rest
        raise self._failure

    def _rest(self) -> bytes:
        """Return what came before the failure: aiohttp lets nobody have it after that."""
        content = self._answer.content
        content.set_exception(cast("BaseException", None))
        return content.read_nowait()


class FileClient:
    """
    The way to the hosts of files.

    Args:
        network: The way out of this machine.

        insecure_hosts: Hosts from which plain http and addresses that are not
            public are taken.

        download_hosts: The only hosts that files are taken from; empty for all.

        resolver: Looks names up; `None`: as aiohttp does.

        is_allowed: Tells whether an address may be connected to.
    """

    def __init__(
        self,
        network: ConnectionSettings,
        *,
        insecure_hosts: frozenset[str] = frozenset(),
        download_hosts: frozenset[str] = frozenset(),
        resolver: AbstractResolver | None = None,
        is_allowed: Callable[[str], bool] = is_public,
    ) -> None:
        self._network = network
        self._insecure_hosts = insecure_hosts
        self._download_hosts = download_hosts
        self._resolver = resolver
        self._is_allowed = is_allowed
        # By whether every address is checked as it is connected to.
        self._clients: dict[bool, aiohttp.ClientSession] = {}

    @contextlib.asynccontextmanager
    async def open(self, url: URL, headers: Mapping[str, str]) -> AsyncGenerator[FileResponse]:
        """
        Ask for *url*, follow what it redirects to, and give the last answer.

        Raises:
            DownloadError: It leads to where nothing is fetched from, or to a host with which
                no connection is possible before something is mended.

            MediaError: There is no answer.
        """
        answer = FileResponse(await self._follow(url, headers))
        try:
            yield answer
        finally:
            answer.close()

    async def _follow(self, url: URL, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        for _ in range(MAX_REDIRECTS + 1):
            self.verify(url)
            answer = await self._get(url, headers)
            if refusal := proxy_rejection(answer.status, self._network.proxy_for(url)):
                answer.close()
                msg = f"{refusal}, which does not pass by itself"
                raise DownloadError(msg, reason="unavailable")
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or location is None:
                return answer
            answer.close()
            try:
                url = join_link(url, location)
            except ValueError as error:
                msg = f"{_host(url)} redirects to nowhere"
                raise DownloadError(msg, reason="url-not-allowed") from error
        msg = f"{_host(url)} redirects more than {MAX_REDIRECTS} times"
        raise DownloadError(msg, reason="url-not-allowed")

    def verify(self, url: URL) -> None:
        """
        Return if files may be fetched from *url*, as far as that can be told before connecting.

        Raises:
            DownloadError: They may not.
        """
        try:
            check_download_url(
                url, insecure_hosts=self._insecure_hosts, download_hosts=self._download_hosts
            )
        except ValueError as error:
            raise DownloadError(str(error), reason="url-not-allowed") from error

    async def _get(self, url: URL, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        # A proxy looks names up and connects itself. It is kept in no variable, because
        # errors carry frames, and its URL may hold a password.
        is_direct = self._network.proxy_for(url) is None
        is_guarded = is_direct and not is_trusted(url, self._insecure_hosts)
        client = self._clients.get(is_guarded)
        if client is None:
            client = self._clients[is_guarded] = self._client(is_guarded=is_guarded)
        before = sys.exception()
        try:
            async with (
                patient_timeout(HEAD_TIMEOUT_S),
                patient_timeout(TIMEOUT.connect) as connecting,
            ):
                return await client.get(
                    url,
                    headers=headers,
                    allow_redirects=False,
                    proxy=self._network.proxy_for(url),
                    trace_request_ctx=connecting,
                )
        except asyncio.CancelledError as error:
            drop_frames(error, before)  # Those of aiohttp have the proxy's password.
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # ValueError: yarl and aiohttp raise it for what they cannot send or read.
            failure = None if _is_private(error) else self._failure_of(url, error)
        # Out here, so that aiohttp's error, and with it its frames, is not the context.
        if failure is not None:
            raise failure
        msg = f"{_host(url)} leads to an address that is not public"
        raise DownloadError(msg, reason="url-not-allowed")

    def _failure_of(self, url: URL, error: Exception) -> FileError | DownloadError:
        """Return why there is no response: the proxy, or the connection to the host."""
        if why := proxy_failure(error, self._network.proxy_for(url)):
            failure = _caused(why, error)
        else:
            failure = _failure(url, error, route=via_proxy(self._network.proxy_for(url)))
        if not is_permanent(error):
            return failure
        lasting = DownloadError(f"{failure}, which does not pass by itself", reason="unavailable")
        lasting.__cause__ = failure.__cause__
        return lasting

    def _client(self, *, is_guarded: bool) -> aiohttp.ClientSession:
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_note_connected)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=self._network.ssl,
                limit=MAX_CONNECTIONS,
                # What a host sends behind one answer, aiohttp takes for the next one.
                force_close=True,
                resolver=self._resolver,
                socket_factory=self._open_socket if is_guarded else None,
            ),
            connector_owner=True,
            timeout=aiohttp.ClientTimeout(total=None),
            trace_configs=[trace],
            headers={"User-Agent": user_agent(), "Accept-Encoding": "identity", "Accept": "*/*"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_READ_AHEAD,
        )

    def _open_socket(self, address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, to = address
        if not self._is_allowed(str(to[0])):
            raise _PrivateAddressError
        return socket.socket(family=family, type=kind, proto=protocol)

    async def aclose(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.close()


async def _note_connected(
    _: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceRequestHeadersSentParams
) -> None:
    connecting: PatientTimer | None = context.trace_request_ctx
    if connecting is not None:
        connecting.cancel()


def _host(url: URL) -> str:
    """Name a host in words; the rest of a link may be a secret."""
    return (url.host or "")[:80]


def _is_private(error: Exception) -> bool:
    return isinstance(error, aiohttp.ClientConnectorError) and isinstance(
        error.os_error, _PrivateAddressError
    )


def _failure(
    url: URL, error: Exception, reason: DownloadReason = "unavailable", *, route: str = ""
) -> FileError:
    if isinstance(error, TimeoutError):
        words = f"{_host(url)} sent nothing for too long{route}"
    else:
        words = f"the connection to {_host(url)}{route} broke: {reason_of(error)}"
    return _caused(words, error, reason)


def _caused(words: str, error: Exception, reason: DownloadReason = "unavailable") -> FileError:
    failure = FileError(words, reason)
    failure.__cause__ = presentable(error)
    return failure
