from __future__ import annotations

import errno
import ssl
from types import SimpleNamespace

import aiohttp
import pytest
from yarl import URL

from kie_wav_async._support.secret import Secret
from kie_wav_async.http.connection_settings import ConnectionSettings, is_permanent

PROXY = "http://127.0.0.1:3128"
NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    """Keep the developer's own proxies out."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("environment", "url", "expected"),
    [
        ({}, "https://h.example/", None),
        ({"https_proxy": PROXY}, "https://h.example/", PROXY),
        ({"https_proxy": "127.0.0.1:3128"}, "https://h.example/", PROXY),
        ({"http_proxy": PROXY}, "https://h.example/", None),
        ({"https_proxy": PROXY}, "http://h.example/", None),
        ({"https_proxy": PROXY, "no_proxy": "h.example"}, "https://h.example/", None),
        ({"https_proxy": PROXY, "no_proxy": "H.EXAMPLE"}, "https://h.example/", None),
        ({"https_proxy": PROXY, "no_proxy": "x, .example"}, "https://h.example/", None),
        ({"https_proxy": PROXY, "no_proxy": "h.example:443"}, "https://h.example/", None),
        ({"https_proxy": PROXY, "no_proxy": "h.example:80"}, "https://h.example/", PROXY),
        ({"https_proxy": PROXY, "no_proxy": "*"}, "https://h.example/", None),
        ({"https_proxy": PROXY, "no_proxy": "xample"}, "https://h.example/", PROXY),
        ({"https_proxy": PROXY, "no_proxy": ", ,"}, "https://h.example/", PROXY),
        ({"https_proxy": PROXY, "no_proxy": "*.example"}, "https://h.example/", None),
        ({"https_proxy": PROXY, "no_proxy": "*.h.example"}, "https://xh.example/", PROXY),
        ({"https_proxy": PROXY, "no_proxy": "10.1.2.3/8"}, "https://10.9.9.9/", None),
        ({"https_proxy": PROXY, "no_proxy": "10.0.0.0/8"}, "https://11.0.0.1/", PROXY),
        ({"https_proxy": PROXY, "no_proxy": "fd00::/8,h/24"}, "https://[fd00::2]/", None),
        ({"https_proxy": PROXY, "no_proxy": "10.0.0.0/8,x/y"}, "https://h.example/", PROXY),
        ({"all_proxy": PROXY}, "https://h.example/", PROXY),
        ({"ALL_PROXY": PROXY}, "http://h.example/", PROXY),
        (
            {"all_proxy": "socks5://h", "https_proxy": PROXY, "http_proxy": PROXY},
            "http://h/",
            PROXY,
        ),
        ({"all_proxy": PROXY, "no_proxy": "h.example"}, "https://h.example/", None),
        ({"all_proxy": "socks5://h", "no_proxy": "x, *"}, "https://h.example/", None),
    ],
)
def test_each_scheme_has_its_proxy(monkeypatch, environment, url, expected):
    """The environment's proxy for a scheme is taken for that one, but for the hosts excepted."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    proxy = ConnectionSettings(trust_env=True).proxy_for(URL(url))
    assert (None if expected is None else URL(expected)) == proxy
    assert ConnectionSettings().proxy_for(URL(url)) is None


def test_a_proxy_that_was_named_goes_before_the_environment(monkeypatch):
    """With a proxy of its own, a way out does not look at the environment."""
    monkeypatch.setenv("https_proxy", "http://other.example:1")
    monkeypatch.setenv("no_proxy", "*")
    network = ConnectionSettings(proxy=Secret(PROXY), trust_env=True)
    assert URL(PROXY) == network.proxy_for(URL("https://h.example/"))


# --- what does not pass -----------------------------------------------------------------------

KEY = SimpleNamespace(host="h.example", port=443, ssl=True)


def tls(reason):
    """Return what aiohttp raises when OpenSSL says so."""
    error = ssl.SSLError(1, f"[SSL: {reason}] (_ssl.c:1)")
    error.reason = reason
    return aiohttp.ClientConnectorSSLError(KEY, error)


def proxy_says(status):
    """Return what aiohttp raises when a proxy does not let it through."""
    return aiohttp.ClientHttpProxyError(None, (), status=status, message="no")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (aiohttp.ClientConnectorCertificateError(KEY, ssl.SSLCertVerificationError("no")), True),
        (tls("WRONG_VERSION_NUMBER"), True),
        (tls("TLSV1_ALERT_PROTOCOL_VERSION"), True),
        (tls("SSLV3_ALERT_HANDSHAKE_FAILURE"), True),
        (tls("UNEXPECTED_EOF_WHILE_READING"), False),
        (tls("TLSV1_ALERT_INTERNAL_ERROR"), False),
        (tls(None), False),
        *((proxy_says(status), True) for status in (400, 401, 403, 404, 405, 407)),
        *((proxy_says(status), False) for status in (408, 425, 429, 500, 502, 503, 504)),
        (aiohttp.InvalidURL("https://h.example/"), True),
        *(
            (aiohttp.ClientConnectorError(KEY, OSError(code, "no")), False)
            for code in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EMFILE)
        ),
        (aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "no such name")), False),
        (aiohttp.ServerDisconnectedError(), False),
        (ConnectionResetError(), False),
        (TimeoutError(), False),
    ],
    ids=repr,
)
def test_some_failures_of_a_connection_do_not_pass(error, expected):
    """Asking again is of use only where the next connection may end otherwise."""
    assert expected is is_permanent(error)
