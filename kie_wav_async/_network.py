"""
How this machine goes out, whatever for: its proxy and certificates, and what aiohttp's errors say.

The transport speaks to the service and `_media` to the hosts of files; they share
nothing but this.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl as ssl_module
import urllib.request
from importlib import metadata
from typing import Final

import aiohttp
from yarl import URL

from kie_wav_async._models import verify_type

# Looked up as the package is imported: it is in a file, and no loop is to wait for that.
_VERSION: Final = metadata.version("kie-wav-async")


class Network:
    """
    The way out of this machine.

    Args:
        proxy, ssl, trust_env: As for `AiohttpTransport`.

    Attributes:
        ssl: What certificates are checked against.

    Raises:
        TypeError, ValueError: As for `AiohttpTransport`.
    """

    def __init__(
        self,
        *,
        proxy: str | URL | None = None,
        ssl: ssl_module.SSLContext | bool = True,
        trust_env: bool = False,
    ) -> None:
        """Read the environment, if it is to be trusted."""
        if ssl is not True and not isinstance(ssl, ssl_module.SSLContext):
            msg = "ssl must be True or an ssl.SSLContext: anything else would trust anybody"
            raise TypeError(msg)
        self.ssl = ssl
        self._proxy = None if proxy is None else _parse_proxy(proxy, "proxy")
        # Not aiohttp's own trust_env: that also reads .netrc, and a default entry
        # there collides with the API key.
        self._environment: dict[str, str] = {}
        if trust_env and self._proxy is None:
            self._environment = urllib.request.getproxies_environment()
            for name in self._environment.keys() & {"http", "https"}:
                _ = self._environment_proxy(name)

    def proxy_for(self, url: URL) -> URL | None:
        """Return the proxy for requests to *url*; `None` for none."""
        if not self._environment:
            return self._proxy
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


def user_agent() -> str:
    """Return what we call ourselves."""
    return f"kie-wav-async/{_VERSION}"


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


def reason_of(error: Exception) -> str:
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


# What OpenSSL says where the two sides cannot agree, or the other one speaks no TLS at
# all. Anything else, a connection that ends in between for instance, may be chance.
_LASTING_TLS: Final = frozenset(
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
_PASSING_STATUS: Final = frozenset({408, 425, 429})
_SERVER_ERRORS: Final = range(500, 600)


def is_lasting(error: Exception) -> bool:
    """
    Return whether a connection failed for a reason that does not pass by itself.

    A certificate that does not hold, no common version of TLS, a server that speaks
    none, a proxy that refuses. A name that is not found may be: a machine that is
    off the network for a moment finds none.
    """
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return error.status not in _SERVER_ERRORS and error.status not in _PASSING_STATUS
    if isinstance(error, aiohttp.InvalidURL):
        return True
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, ssl_module.CertificateError):
        return True
    return isinstance(error, ssl_module.SSLError) and error.reason in _LASTING_TLS


def presentable(error: Exception) -> Exception | None:
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
