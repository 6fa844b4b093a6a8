"""
The one place that talks HTTP: bytes out, bytes in, no reading of either.

Submits and reads go different ways. A submit costs credits, so it goes out on a
connection of its own: on a pooled one the server may have hung up meanwhile,
and then nobody knows whether it saw the request. aiohttp's trace signal fires
before the first byte of a request is written; without it, no byte has left.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import aiohttp
from yarl import URL

from kie_wav_async._support.patient_timer import PatientTimer, patient_timeout
from kie_wav_async._support.secret import Secret, drop_frames
from kie_wav_async._support.tasks import is_caller_cancelled
from kie_wav_async.errors import TransportError, TransportTimeoutError, WireFormatError
from kie_wav_async.http.connection_settings import (
    ConnectionSettings,
    presentable,
    proxy_failure,
    proxy_rejection,
    reason_of,
    user_agent,
    via_proxy,
)
from kie_wav_async.protocol.api_constants import KIE_WAV
from kie_wav_async.protocol.http_messages import WireResponse

if TYPE_CHECKING:
    import ssl as ssl_module
    from types import SimpleNamespace

    from kie_wav_async.protocol.http_messages import WireRequest

__all__ = ["AiohttpTransport", "Transport"]

#: Longest answer we read. Real ones are a few hundred bytes.
MAX_RESPONSE_BYTES: Final = 1 << 20

#: A submit gets longer than a read, because each false timeout leaves a submit
#: of unknown fate. Ours; the service answered within 3.3 s in all recorded calls.
#: We count them ourselves: after the loop was held up, aiohttp gives a request up
#: whose answer has arrived.
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


class _SendProgress:
    """
    Whether one request's first byte may have left.

    Attributes:
        has_begun: Whether it may.

        timer: Ends the request if no connection stands in time, and from its first
            byte on if there is no answer in time; `None` before the request begins.
    """

    __slots__ = ("_limits", "has_begun", "timer")

    def __init__(self, limits: aiohttp.ClientTimeout, *, began: bool) -> None:
        self._limits = limits
        self.has_begun = began
        self.timer: PatientTimer | None = None

    @property
    def connect_s(self) -> float | None:
        """Seconds until a connection has to stand."""
        limits = self._limits
        return limits.total if limits.connect is None else limits.connect

    def note_sent(self) -> None:
        """Record that the first byte leaves, and count the time for the answer."""
        self.has_begun = True
        if self.timer is not None and self._limits.total is not None:
            # From now: the loop may have been held up while connecting, which was not
            # the service's time.
            self.timer.restart(self._limits.total)

    def describe(self, *, is_submit: bool) -> str:
        """Say what became of the request."""
        if not is_submit:
            return ""
        if self.has_begun:
            return "; the request may have been received"
        return "; no byte of the request has left"


async def _note_sent(
    _: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceRequestHeadersSentParams
) -> None:
    progress: _SendProgress = context.trace_request_ctx
    progress.note_sent()


def _too_long(response: WireResponse) -> WireFormatError:
    msg = f"the service's answer (HTTP {response.status}) is longer than 1 MiB"
    return WireFormatError(msg, http_status=response.status)


def _single(values: list[str]) -> str | None:
    return values[0] if len(values) == 1 else None


def _origin(request: WireRequest) -> str:
    return str(URL(request.url, encoded=True).origin())


class AiohttpTransport:
    """
    The transport a session makes for itself, for sessions that need it tuned.

    It belongs to the session it is given to, is closed with it, and opens its
    connections on the loop that first sends something.

    A submit is given up 60 s after it was sent, a read after 30 s, and either after
    10 s without a connection. An answer that arrived while the loop was held up beyond that is
    still taken.

    Args:
        proxy:
            http(s) URL of an HTTP proxy for all requests, with user and password
            if it wants them; `None` for none.

        ssl:
            An `ssl.SSLContext` for certificates of your own; `True` checks
            against the system's. `False` is refused.

        trust_env:
            Whether, without *proxy*, the proxies of the environment are used:
            ``http_proxy``, ``https_proxy``, ``all_proxy``, ``no_proxy``, as they are
            now. ``.netrc`` is never read.

    Attributes:
        network: The same three for WAV files, which a session fetches the same way.

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
        address = Secret(proxy)  # It may have a password.
        del proxy
        self.network: Final = ConnectionSettings(proxy=address, ssl=ssl, trust_env=trust_env)
        self._is_closed = False
        self._submits: aiohttp.ClientSession | None = None
        self._reads: aiohttp.ClientSession | None = None

    async def send(self, request: WireRequest) -> WireResponse:
        """Send *request*; see `Transport.send`."""
        self._verify_open()
        # Reads may be repeated, whatever became of them.
        limits = SUBMIT_TIMEOUT if request.is_submit else READ_TIMEOUT
        progress = _SendProgress(limits, began=not request.is_submit)
        kind = TransportError
        cause: Exception | None = None
        why: str | None
        before = sys.exception()
        try:
            response = await self._exchange(request, progress)
        except asyncio.CancelledError as error:
            drop_frames(error, before)  # Those of aiohttp have the key.
            if not self._is_closed or is_caller_cancelled():
                raise
            # Nobody cancelled the caller: closing ends lookups of names this way.
            why = f"the transport was closed before an answer from {_origin(request)}"
        except TimeoutError as error:
            kind, cause = TransportTimeoutError, presentable(error)
            why = f"no answer from {_origin(request)}{self._route_of(request)} in time"
        except aiohttp.ClientConnectorCertificateError as error:
            cause = presentable(error)
            certificate = f"the certificate of {_origin(request)} does not hold"
            why = proxy_failure(error, self._proxy_for(request)) or certificate
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # ValueError: yarl and aiohttp raise it for what they cannot send or read.
            cause = presentable(error)
            route = self._route_of(request)
            silence = f"no answer from {_origin(request)}{route}: {reason_of(error)}"
            why = proxy_failure(error, self._proxy_for(request)) or silence
        else:
            why = proxy_rejection(response.status, self._proxy_for(request))
            if why is None and len(response.body) > MAX_RESPONSE_BYTES:
                raise _too_long(response)
            if why is None:
                return response
        # Out here, so that aiohttp's error is not its context: it may hold the key.
        outcome = progress.describe(is_submit=request.is_submit)
        failure = kind(why + outcome, maybe_sent=progress.has_begun)
        failure.__cause__ = cause
        raise failure

    def _verify_open(self) -> None:
        if self._is_closed:
            msg = "the transport is closed; no byte of the request has left"
            raise TransportError(msg, maybe_sent=False, advice="open a new session")

    def _proxy_for(self, request: WireRequest) -> URL | None:
        # To be kept in no variable: errors carry frames, and its URL may hold a password.
        return self.network.proxy_for(URL(request.url, encoded=True))

    def _route_of(self, request: WireRequest) -> str:
        return via_proxy(self._proxy_for(request))

    async def _exchange(self, request: WireRequest, progress: _SendProgress) -> WireResponse:
        if request.is_submit:
            http = self._submits = self._submits or self._open(is_submit=True)
        else:
            http = self._reads = self._reads or self._open(is_submit=False)
        url = URL(request.url, encoded=True)
        async with (
            patient_timeout(progress.connect_s) as progress.timer,
            http.request(
                request.method,
                url,
                data=request.body,
                headers=request.headers,
                allow_redirects=False,
                proxy=self._proxy_for(request),
                trace_request_ctx=progress,
            ) as answer,
        ):
            body = bytearray()
            # One byte too many tells a longer answer from a full one.
            while (room := MAX_RESPONSE_BYTES + 1 - len(body)) and not answer.content.at_eof():
                body += await answer.content.read(room)
            if len(body) > MAX_RESPONSE_BYTES:
                answer.close()
            return WireResponse(
                status=answer.status,
                body=bytes(body),
                retry_after=answer.headers.get("Retry-After"),
                request_id=answer.headers.get(KIE_WAV.request_id_header),
                date=_single(answer.headers.getall("Date", [])),
                now_unix_s=time.time(),
            )

    def _open(self, *, is_submit: bool) -> aiohttp.ClientSession:
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_note_sent)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=self.network.ssl, force_close=is_submit, limit=0, ttl_dns_cache=60
            ),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"User-Agent": user_agent()},
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[trace],
        )

    async def aclose(self) -> None:
        """Close all connections; nothing is sent any more."""
        self._is_closed = True
        for http in (self._submits, self._reads):
            if http is not None:
                await http.close()
