"""The settings of a service as a user gives them: key, base URL, hosts."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final, cast

from yarl import URL

from kie_wav_async._support.validation import verify_type


def parse_api_key(value: str) -> str:
    """
    Return *value* if it can stand in a header.

    Raises:
        TypeError: *value* is no `str`.

        ValueError: *value* is empty, or not visible ASCII. The text never shows it.
    """
    verify_type(value, str, "api_key")
    if not (value and value.isascii() and value.isprintable() and " " not in value):
        msg = "api_key must be visible ASCII without blanks or line breaks, and not empty"
        raise ValueError(msg)
    return value


#: A host's name in any script; IP literals are read by `ipaddress`.
_HOST_NAME: Final = re.compile(r"[\w-]+(\.[\w-]+)*\.?")


def parse_hosts(values: Iterable[str], name: str) -> frozenset[str]:
    """
    Return *values* as `parse_base_url` compares them: in lower case, addresses in short form.

    Raises:
        TypeError: *values* is one `str`, or not an iterable of `str`.

        ValueError: One is neither a host's name nor an IP literal, e.g. has a port.
    """
    # Callers without a type checker pass None, and mean no hosts.
    given = cast("object", values)
    if isinstance(given, str) or not isinstance(given, Iterable):
        msg = f"{name} must be several host names, not one {type(given).__name__}"
        raise TypeError(msg)
    return frozenset(_parse_host(host, name) for host in values)


def _parse_host(host: str, name: str) -> str:
    verify_type(host, str, f"each of {name}")
    try:
        return str(ipaddress.ip_address(host)).lower()
    except ValueError:
        if _HOST_NAME.fullmatch(host):
            return host.lower()
    msg = f"{name} must be host names or IP addresses, without scheme or port: {host!r}"
    raise ValueError(msg)


def parse_base_url(value: str | URL, insecure_hosts: frozenset[str]) -> URL:
    """
    Return *value* as the address of the service.

    Raises:
        TypeError: *value* is neither a `str` nor a `URL`.

        ValueError:
            Not an absolute http(s) URL; plain http to a host that is neither
            loopback nor in *insecure_hosts*; or with userinfo, query, fragment,
            blanks or control characters.
    """
    if not isinstance(value, URL):
        verify_type(value, str, "base_url")
    text = str(value)
    # yarl takes both away without a word, and reads what is left.
    if not text.isprintable() or " " in text:
        msg = "base_url must not have blanks or control characters"
        raise ValueError(msg)
    try:
        url = URL(value)
        is_absolute = url.scheme in {"http", "https"} and bool(url.host) and url.port is not None
    except ValueError:
        url, is_absolute = URL(), False
    if not is_absolute:
        msg = "base_url must be an absolute http(s) URL like https://api.kie.ai"
        raise ValueError(msg)
    # An empty user too, which yarl does not tell.
    if "@" in re.split(r"[/?#]", text.partition("//")[2], maxsplit=1)[0]:
        msg = "base_url must not hold a user or password"
        raise ValueError(msg)
    if url.raw_query_string or url.raw_fragment or text.endswith(("?", "#")):
        msg = "base_url must not have a query or a fragment"
        raise ValueError(msg)
    host = url.host or ""
    if url.scheme == "http" and not is_loopback(host) and host.lower() not in insecure_hosts:
        msg = (
            f"base_url must be https: the API key would travel readable to {host}. "
            "Name the host in insecure_hosts if that is what you want"
        )
        raise ValueError(msg)
    return url


def is_loopback(host: str) -> bool:
    """Return whether *host* is this machine, as a name or in numbers."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
