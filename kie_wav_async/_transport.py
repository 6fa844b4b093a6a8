"""
The one place that talks HTTP: bytes out, bytes in, no reading of either.

Submits and reads go different ways. A submit costs credits, so it goes out on a
connection of its own: on a pooled one the server may have hung up meanwhile,
and then nobody knows whether it saw the request. aiohttp's trace signal fires
before the first byte of a request is written; without it, no byte has left.
"""

from __future__ import annotations

import time
from importlib import metadata
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import aiohttp
from yarl import URL

from kie_wav_async._models import WireResponse
from kie_wav_async.errors import TransportError, TransportTimeoutError, WireFormatError

if TYPE_CHECKING:
    import ssl as ssl_module
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

    @property
    def fate(self) -> str:
        if self.began:
            return "; the request may have been received"
        return "; no byte of the request has left"


async def _note_sent(
    _: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceRequestHeadersSentParams
) -> None:
    context.trace_request_ctx.began = True


def _origin(request: WireRequest) -> str:
    return str(URL(request.url, encoded=True).origin())


class AiohttpTransport:
    """
    The transport a session makes for itself, for sessions that need it tuned.

    It belongs to the session it is given to, is closed with it, and opens its
    connections on the loop that first sends something.

    Args:
        proxy: URL of an HTTP proxy for all requests; `None` for none.

        ssl:
            An `ssl.SSLContext` for certificates of your own; `True` checks
            against the system's. There is no way to switch the check off.

        trust_env: Whether proxies and ``.netrc`` are taken from the environment.

    Raises:
        TypeError: *ssl* is neither `True` nor an `ssl.SSLContext`.
    """

    def __init__(
        self,
        *,
        proxy: str | URL | None = None,
        ssl: ssl_module.SSLContext | bool = True,
        trust_env: bool = False,
    ) -> None:
        """Keep the settings; nothing is opened yet."""
        if ssl is False:
            msg = "ssl=False would send the API key to anybody: pass True or an ssl.SSLContext"
            raise TypeError(msg)
        self._proxy = URL(proxy) if isinstance(proxy, str) else proxy
        self._ssl = ssl
        self._trust_env = trust_env
        self._submits: aiohttp.ClientSession | None = None
        self._reads: aiohttp.ClientSession | None = None

    async def send(self, request: WireRequest) -> WireResponse:
        """Send *request*; see `Transport.send`."""
        flight = _Flight()
        # Reads are not traced: they may be repeated, whatever became of them.
        flight.began = not request.is_submit
        try:
            return await self._exchange(request, flight)
        except TimeoutError as error:
            why = f"no answer from {_origin(request)} in time"
            raise TransportTimeoutError(why + flight.fate, maybe_sent=flight.began) from error
        except aiohttp.ClientConnectorCertificateError as error:
            why = f"the certificate of {_origin(request)} does not hold"
            raise TransportError(why + flight.fate, maybe_sent=flight.began) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # ValueError: yarl and aiohttp raise it for what they cannot send or read.
            why = f"no answer from {_origin(request)}: {type(error).__name__}"
            raise TransportError(why + flight.fate, maybe_sent=flight.began) from error

    async def _exchange(self, request: WireRequest, flight: _Flight) -> WireResponse:
        if request.is_submit:
            http = self._submits = self._submits or self._open(is_submit=True)
        else:
            http = self._reads = self._reads or self._open(is_submit=False)
        async with http.request(
            request.method,
            URL(request.url, encoded=True),
            data=request.body,
            headers=request.headers,
            allow_redirects=False,
            proxy=self._proxy,
            trace_request_ctx=flight,
        ) as answer:
            body = bytearray()
            # One byte too many tells a longer answer from a full one.
            while (room := MAX_ANSWER_BYTES + 1 - len(body)) and not answer.content.at_eof():
                body += await answer.content.read(room)
            if len(body) > MAX_ANSWER_BYTES:
                answer.close()
                msg = f"the service's answer (HTTP {answer.status}) is longer than 1 MiB"
                raise WireFormatError(msg, http_status=answer.status)
            return WireResponse(
                status=answer.status,
                body=bytes(body),
                retry_after=answer.headers.get("Retry-After"),
                request_id=answer.headers.get("cf-ray"),
                now_unix_s=time.time(),
            )

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
            trust_env=self._trust_env,
            trace_configs=[trace] if is_submit else [],
        )

    async def aclose(self) -> None:
        """Close all connections."""
        for http in (self._submits, self._reads):
            if http is not None:
                await http.close()
        self._submits = self._reads = None
