"""
How this machine goes out, whatever for: its proxy and certificates, and what aiohttp's errors say.

The transport speaks to the service and `downloads.file_client` to the hosts of files; they share
nothing but this.
"""

from __future__ import annotations

import asyncio
import copy
import ipaddress
import os
import socket
import ssl as ssl_module
import urllib.request
from typing import TYPE_CHECKING, Final

import aiohttp
from yarl import URL

from kie_wav_async._support.secret import Secret
from kie_wav_async._support.validation import verify_type
from kie_wav_async._support.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

# What a proxy answers without a valid user and password.
_AUTHENTICATION_REQUIRED: Final = 407

# The errors that name the host they are about.
_CONNECTION_ERRORS: Final = (aiohttp.ClientConnectorError, aiohttp.ClientConnectorCertificateError)


class ConnectionSettings:
    """
    The way out of this machine.

    Args:
        proxy, ssl, trust_env: As for `AiohttpTransport`, but the proxy as a secret.

    Attributes:
        ssl: What certificates are checked against.

    Raises:
        TypeError, ValueError: As for `AiohttpTransport`.
    """

    def __init__(
        self,
        *,
        proxy: Secret[str | URL | None] | None = None,
        ssl: ssl_module.SSLContext | bool = True,
        trust_env: bool = False,
    ) -> None:
        if ssl is not True and not isinstance(ssl, ssl_module.SSLContext):
            msg = "ssl must be True or an ssl.SSLContext: anything else would trust anybody"
            raise TypeError(msg)
        self.ssl = ssl
        # Both may have passwords.
        self._proxy = Secret(None if proxy is None else proxy.parse(_parse_proxy))
        # Not aiohttp's own trust_env: that also reads .netrc, and a default entry
        # there collides with the API key.
        is_of_environment = trust_env and self._proxy.reveal() is None
        self._environment = Secret(
            urllib.request.getproxies_environment() if is_of_environment else {}
        )
        self._environment.parse(_verify_proxies)

    def proxy_for(self, url: URL) -> URL | None:
        """
        Return the proxy for requests to *url*; `None` for none.

        It may have a password: keep it in no variable.
        """
        if self._environment.reveal():
            return _find_proxy(self._environment.reveal(), url)
        return self._proxy.reveal()


def user_agent() -> str:
    """Return what we call ourselves."""
    return f"kie-wav-async/{__version__}"


def _find_proxy(environment: Mapping[str, str], url: URL) -> URL | None:
    """Return what the environment names as the proxy for *url*."""
    if any(_is_excepted(url, exception) for exception in _exceptions(environment)):
        return None
    return _environment_proxy(environment, url.scheme)


def _exceptions(environment: Mapping[str, str]) -> list[str]:
    """Return what ``no_proxy`` names."""
    return [name.strip() for name in environment.get("no", "").lower().split(",")]


def _is_excepted(url: URL, exception: str) -> bool:
    """Whether one name, address or network of ``no_proxy`` covers *url*."""
    if exception == "*":
        return True
    if "/" in exception:
        try:
            return ipaddress.ip_address(url.host or "") in ipaddress.ip_network(exception, False)  # noqa: FBT003 - with host bits
        except ValueError:
            return False
    suffix = exception.removeprefix("*").lstrip(".")
    names = (f".{url.host}", f".{url.host}:{url.port}")
    return bool(suffix) and any(name.endswith(f".{suffix}") for name in names)


def _verify_proxies(environment: Mapping[str, str]) -> None:
    """Return if the proxies of the environment are some, or ``no_proxy`` excepts every host."""
    if "*" in _exceptions(environment):
        return
    for scheme in ("http", "https"):
        _ = _environment_proxy(environment, scheme)


def _environment_proxy(environment: Mapping[str, str], scheme: str) -> URL | None:
    for name in (scheme, "all"):
        if value := environment.get(name):
            # Written without a scheme as often as with one.
            return _parse_proxy(value if "//" in value else f"http://{value}", f"{name}_proxy")
    return None


def _parse_proxy(value: str | URL | None, name: str = "proxy") -> URL | None:
    """Return *value* as a proxy's address; the error does not show it, for its password."""
    if value is None:
        return None
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


def via_proxy(proxy: URL | None) -> str:
    """Return words that name the proxy, without its password; empty without a proxy."""
    return "" if proxy is None else f" through the proxy {proxy.origin()}"


def proxy_failure(error: Exception, proxy: URL | None) -> str | None:
    """Return what is wrong with the proxy itself; `None` if it is something else."""
    if proxy is None:
        return None
    name = f"the proxy {proxy.origin()}"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return proxy_rejection(error.status, proxy) or f"{name} answered HTTP {error.status}"
    if not isinstance(error, _CONNECTION_ERRORS):
        return None
    if (error.host, error.port) != (proxy.host, proxy.port):
        return None
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"the certificate of {name} does not hold"
    return f"{name} cannot be reached: {reason_of(error)}"


def proxy_rejection(status: int, proxy: URL | None) -> str | None:
    """Return what is wrong if the status comes from the proxy; `None` if it does not."""
    if proxy is None or status != _AUTHENTICATION_REQUIRED:
        return None
    reason = "its user or password is missing or wrong"
    return f"the proxy {proxy.origin()} answered HTTP {status}: {reason}"


def reason_of(error: Exception) -> str:
    """
    Name what went wrong in words of aiohttp, the system or OpenSSL, never of the peer.

    A peer may repeat our headers, and the parsers quote what they cannot read.
    """
    name = type(error).__name__
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


# What OpenSSL says where the two sides cannot agree, or the other one speaks no TLS at
# all. Anything else, a connection that ends in between for instance, may be chance.
_PERMANENT_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "UNKNOWN_PROTOCOL"}
    | {"UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE", "TLSV1_ALERT_PROTOCOL_VERSION"}
    | {"NO_SHARED_CIPHER", "NO_CIPHERS_AVAILABLE", "SSLV3_ALERT_HANDSHAKE_FAILURE"}
    | {"TLSV1_ALERT_INSUFFICIENT_SECURITY", "WRONG_SIGNATURE_TYPE", "DH_KEY_TOO_SMALL"}
    | {"UNSAFE_LEGACY_RENEGOTIATION_DISABLED", "WRONG_SSL_VERSION", "EE_KEY_TOO_SMALL"}
    | {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "TLSV1_ALERT_UNKNOWN_CA", "CA_MD_TOO_WEAK"}
    | {"TLSV1_UNRECOGNIZED_NAME", "TLSV1_ALERT_UNRECOGNIZED_NAME"}
    | {"SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_UNKNOWN"}
)
# What a proxy may answer otherwise another time; every 5xx besides.
TRANSIENT_STATUSES: Final = frozenset({408, 425, 429})
_SERVER_ERRORS: Final = range(500, 600)


def is_permanent(error: Exception) -> bool:
    """
    Return whether a connection failed for a reason that does not pass by itself.

    A certificate that does not hold, no common version of TLS, a server that speaks
    none, a proxy that refuses. A name that is not found may be: a machine that is
    off the network for a moment finds none.
    """
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return error.status not in _SERVER_ERRORS and error.status not in TRANSIENT_STATUSES
    if isinstance(error, aiohttp.InvalidURL):
        return True
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, ssl_module.CertificateError):
        return True
    return isinstance(error, ssl_module.SSLError) and error.reason in _PERMANENT_TLS


def presentable(error: Exception) -> Exception | None:
    """
    Return a copy of the part of an aiohttp error that holds nothing of ours or of the peer.

    That is what the system or OpenSSL said: no header, no proxy's password, and
    no bytes that a parser quotes, in it or in what led to it; nor the frames in
    which aiohttp has them. `None` if there is no such part.
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
    return copy.copy(error)  # Which has neither frames nor causes.
