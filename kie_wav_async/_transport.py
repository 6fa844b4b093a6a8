"""
The one place that talks HTTP: bytes out, bytes in, no reading of either.

Submits and reads go different ways. A submit costs credits, so it goes out on a
connection of its own: on a pooled one the server may have hung up meanwhile,
and then nobody knows whether it saw the request. aiohttp's trace signal fires
before the first byte of a request is written; without it, no byte has left.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl as ssl_module
import time
import urllib.request
from importlib import metadata
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import aiohttp
from yarl import URL

from kie_wav_async._models import WireResponse, verify_type
from kie_wav_async.errors import TransportError, TransportTimeoutError, WireFormatError

if TYPE_CHECKING:
    from types import SimpleNamespace

    from kie_wav_async._models import WireRequest

__all__ = ["AiohttpTransport", "Transport"]

#: Longest answer we read. Real ones are a few hundred bytes.
MAX_ANSWER_BYTES: Final = 1 << 20

#: A submit gets longer than a read, because each false timeout leaves a submit
#: of unknown fate. Ours; the service answered within 3.3 s in all recorded calls.
SUBMIT_TIMEOUT: Final = aiohttp.ClientTimeout(total=60.0, connect=10.0)
READ_TIMEOUT: Final = aiohttp.ClientTimeout(total=30.0, connect=10.0)


@runtime_checkable
class Transport(Protocol):
    """What a session needs of HTTP."""

    async def send(self, request: WireRequest, /) -> WireResponse:
        """
        Send *request* once and return the answer, whatever its status.

        Raises:
            TransportError:
                No usable answer. Its ``maybe_sent`` is `False` only if provably
                no byte of the request has left.

            WireFormatError: The answer is longer than 1 MiB.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections; may be called more than once."""
        ...


class _Flight:
    """Whether one request's first byte may have left."""

    __slots__ = ("began",)

    def __init__(self) -> None:
        self.began = False

    def tell(self, *, is_submit: bool) -> str:
        """Say what became of the request, and what to do."""
        if not is_submit:
            return "; check the network and ask again"
        if self.began:
            return "; the request may have been received"
        return "; no byte of the request has left: check the network and submit again"


async def _note_sent(
    _: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceRequestHeadersSentParams
) -> None:
    context.trace_request_ctx.began = True


def _origin(request: WireRequest) -> str:
    return str(URL(request.url, encoded=True).origin())


def _parse_proxy(value: str | URL, name: str) -> URL:
    """Return *value* as a proxy's address; the error does not show it, for its password."""
    if not isinstance(value, URL):
        verify_type(value, str, name)
    try:
        url = URL(value)
        is_usable = url.scheme in {"http", "https"} and bool(url.host) and url.port is not None
    except ValueError:
        url, is_usable = URL(), False
    if not is_usable:
        msg = f"{name} must be an absolute http(s) URL like http://127.0.0.1:3128"
        raise ValueError(msg)
    return url


def _reason_of(error: Exception) -> str:
    """
    Name what went wrong in words of aiohttp, the system or OpenSSL, never of the peer.

    A peer may repeat our headers, and the parsers quote what they cannot read.
    """
    name = type(error).__name__
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"{name} (HTTP {error.status})"
    if isinstance(error, aiohttp.ClientResponseError):  # Its status is aiohttp's own.
        return f"{name} (cannot be read as HTTP)"
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    words: str | None = None
    if isinstance(error, ssl_module.SSLError):
        words = error.reason
    elif isinstance(error, socket.gaierror):
        words = error.strerror
    elif isinstance(error, OSError) and error.errno:
        words = os.strerror(error.errno)
    return f"{name} ({words})" if words else name


def _presentable(error: Exception) -> Exception | None:
    """
    Return the part of an aiohttp error that holds nothing of ours or of the peer.

    That is what the system or OpenSSL said: no header, no proxy's password, and
    no bytes that a parser quotes, in it or in what led to it.
    """
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    chain: list[BaseException] = [error]
    for one in chain:
        if not isinstance(one, OSError | ssl_module.CertificateError | asyncio.CancelledError):
            return None
        led_here = (one.__cause__, one.__context__)
        chain += [other for other in led_here if other is not None and other not in chain]
    return error


class AiohttpTransport:
    """
    The transport a session makes for itself, for sessions that need it tuned.

    It belongs to the session it is given to, is closed with it, and opens its
    connections on the loop that first sends something.

    Args:
        proxy:
            http(s) URL of an HTTP proxy for all requests, with user and password
            if it wants them; `None` for none.

        ssl:
            An `ssl.SSLContext` for certificates of your own; `True` checks
            against the system's. `False` is refused.

        trust_env:
            Whether, without *proxy*, the proxies of the environment are used:
            ``http_proxy``, ``https_proxy``, ``no_proxy``, as they are now.

    Raises:
        TypeError: *ssl* is neither `True` nor an `ssl.SSLContext`; *proxy* is no URL.

        ValueError: *proxy*, or a proxy of the environment, is not an absolute http(s) URL.
    """

    def __init__(
        self,
        *,
        proxy: str | URL | None = None,
        ssl: ssl_module.SSLContext | bool = True,
        trust_env: bool = False,
    ) -> None:
        """Keep the settings; nothing is opened yet."""
        if ssl is not True and not isinstance(ssl, ssl_module.SSLContext):
            msg = "ssl must be True or an ssl.SSLContext: anything else would trust anybody"
            raise TypeError(msg)
        self._ssl = ssl
        self._proxy = None if proxy is None else _parse_proxy(proxy, "proxy")
        # Not aiohttp's own trust_env: that also reads .netrc, and a default entry
        # there collides with the API key.
        self._environment: dict[str, str] = {}
        if trust_env and self._proxy is None:
            self._environment = urllib.request.getproxies_environment()
            for name in self._environment.keys() & {"http", "https"}:
                _ = self._environment_proxy(name)
        self._is_closed = False
        self._submits: aiohttp.ClientSession | None = None
        self._reads: aiohttp.ClientSession | None = None

    async def send(self, request: WireRequest) -> WireResponse:
        """Send *request*; see `Transport.send`."""
        self._verify_open()
        flight = _Flight()
        # Reads are not traced: they may be repeated, whatever became of them.
        flight.began = not request.is_submit
        kind = TransportError
        cause: Exception | None = None
        try:
            return await self._exchange(request, flight)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._is_closed or task is None or task.cancelling():
                raise
            # Nobody cancelled the caller: closing ends lookups of names this way.
            why = f"the transport was closed before an answer from {_origin(request)}"
        except TimeoutError as error:
            kind, cause = TransportTimeoutError, error
            why = f"no answer from {_origin(request)} in time"
        except aiohttp.ClientConnectorCertificateError as error:
            cause = error
            why = f"the certificate of {_origin(request)} does not hold"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # ValueError: yarl and aiohttp raise it for what they cannot send or read.
            cause = error
            why = f"no answer from {_origin(request)}: {_reason_of(error)}"
        # Out here, so that aiohttp's error is not its context: it may hold the key.
        fate = flight.tell(is_submit=request.is_submit)
        failure = kind(why + fate, maybe_sent=flight.began)
        failure.__cause__ = None if cause is None else _presentable(cause)
        raise failure

    def _verify_open(self) -> None:
        if self._is_closed:
            msg = "the transport is closed; no byte of the request has left"
            raise TransportError(msg, maybe_sent=False)

    async def _exchange(self, request: WireRequest, flight: _Flight) -> WireResponse:
        if request.is_submit:
            http = self._submits = self._submits or self._open(is_submit=True)
        else:
            http = self._reads = self._reads or self._open(is_submit=False)
        url = URL(request.url, encoded=True)
        async with http.request(
            request.method,
            url,
            data=request.body,
            headers=request.headers,
            allow_redirects=False,
            proxy=self._proxy_for(url) if self._environment else self._proxy,
            trace_request_ctx=flight,
        ) as answer:
            body = bytearray()
            # One byte too many tells a longer answer from a full one.
            while (room := MAX_ANSWER_BYTES + 1 - len(body)) and not answer.content.at_eof():
                body += await answer.content.read(room)
            if len(body) > MAX_ANSWER_BYTES:
                answer.close()
                msg = (
                    f"the service's answer (HTTP {answer.status}) is longer than 1 MiB. "
                    "Is base_url right, and no proxy in between?"
                )
                raise WireFormatError(msg, http_status=answer.status)
            return WireResponse(
                status=answer.status,
                body=bytes(body),
                retry_after=answer.headers.get("Retry-After"),
                request_id=answer.headers.get("cf-ray"),
                now_unix_s=time.time(),
            )

    def _proxy_for(self, url: URL) -> URL | None:
        """Return the proxy that the environment wants for *url*; `None` for none."""
        if url.scheme not in self._environment:
            return None
        names = (f".{url.host}", f".{url.host}:{url.port}", ".*")
        for exception in self._environment.get("no", "").lower().split(","):
            suffix = exception.strip().lstrip(".")
            if suffix and any(name.endswith(f".{suffix}") for name in names):
                return None
        return self._environment_proxy(url.scheme)

    def _environment_proxy(self, scheme: str) -> URL:
        # Written without a scheme as often as with one.
        value = self._environment[scheme]
        return _parse_proxy(value if "//" in value else f"http://{value}", f"{scheme}_proxy")

    def _open(self, *, is_submit: bool) -> aiohttp.ClientSession:
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_note_sent)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=self._ssl, force_close=is_submit, limit=0, ttl_dns_cache=60
            ),
            timeout=SUBMIT_TIMEOUT if is_submit else READ_TIMEOUT,
            headers={"User-Agent": f"kie-wav-async/{metadata.version('kie-wav-async')}"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[trace] if is_submit else [],
        )

    async def aclose(self) -> None:
        """Close all connections; nothing is sent any more."""
        self._is_closed = True
        for http in (self._submits, self._reads):
            if http is not None:
                await http.close()
