"""
Links to files: which ones may be followed, before anything is looked up or connected to.

A link comes from the service, or from whoever answered the last one, and may lead
anywhere. What it may not do is lead into the network of its reader, whatever
spelling of an address it uses for that, or have a file sent readable by everybody.
A name says nothing about where it leads: that is judged again, by `is_public`, for
each address as it is connected to.

What is judged is the very `URL` that is then asked for, so no second reading of the
same text can differ. Texts of errors show no more of a link than its host: its query
may be what opens the file.
"""

from __future__ import annotations

import contextlib
import re
import string
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote, urljoin

from kie_wav_async._support.validation import strip_controls
from kie_wav_async.downloads.public_address import is_public
from kie_wav_async.protocol.urls import parse_url

if TYPE_CHECKING:
    from yarl import URL

#: Longest link; web servers commonly stop at 8 KiB.
_MAX_LENGTH: Final = 8192

#: Longest host with its port and what else may stand before the path. DNS stops at
#: 253, and yarl takes long over what is much longer.
_MAX_AUTHORITY_LENGTH: Final = 260

_MAX_NAME_LENGTH: Final = 253

# A host in brackets or without, and a port: nothing percent-encoded, no zone, no user.
_AUTHORITY: Final = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9_.-]+))(?::[0-9]*)?"
)

# At least two labels; names of one are of the reader's own network.
_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})+")

# What the URL standard, and inet_aton() in a resolver, read as an IPv4 address if a
# host ends in it: 2130706433, 0x7f.1, 0177.0.0.1. Source: url.spec.whatwg.org,
# "ends in a number checker".
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")

# Control characters, and what some take for a slash and others do not.
_SENSELESS: Final = re.compile(r"[\x00-\x1f\x7f\\]")

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")

_HTTPS_PORT: Final = 443


class _Host(NamedTuple):
    """
    The host of a link.

    Attributes:
        text: In lower case and ASCII; an IPv6 address without its brackets.

        spellings: As it may stand among the hosts that the user names.

        address: The IP address it is, in its usual notation; `None` for a name.
    """

    text: str
    spellings: frozenset[str]
    address: str | None


def check_download_url(
    url: URL, *, insecure_hosts: frozenset[str], download_hosts: frozenset[str]
) -> None:
    """
    Return if a file may be fetched from *url*, as far as can be told before connecting.

    Args:
        url: A link, or what it was redirected to.

        insecure_hosts:
            Hosts from which plain http, any port and addresses that are not public
            are taken; as `parse_hosts` returns them.

        download_hosts: If there are any, the only hosts; any port of them is taken. Likewise.

    Raises:
        ValueError: It may not; the text says why and what would allow it.
    """
    authority = url.raw_authority
    if url.scheme not in {"http", "https"} or not authority:
        msg = "the link is no absolute https URL"
        raise ValueError(msg)
    problem: str | None
    if "@" in authority:  # An empty user too, which yarl does not tell.
        problem = "the link must not hold a user or password"
    elif (host := _read_host(url)) is None:
        problem = "the host is neither a name nor an IP address, or its port is none"
    elif download_hosts and host.spellings.isdisjoint(download_hosts):
        problem = "the host is none of download_hosts"
    else:
        problem = _find_flaw(url.raw_path_qs)
        if problem is None and host.spellings.isdisjoint(insecure_hosts):
            problem = _find_insecurity(url, host, is_port_free=bool(download_hosts))
    if problem is not None:
        msg = f"no file is fetched from {url.scheme}://{_presentable(authority)}: {problem}"
        raise ValueError(msg)


def host_and_port(url: URL) -> str | None:
    """Return host and port of *url* as ``name:port``, in lower case and ASCII; `None` if bad."""
    host = _read_host(url)
    return None if host is None else f"{host.text}:{url.port}"


def is_trusted(url: URL, insecure_hosts: frozenset[str]) -> bool:
    """Return whether plain http and addresses that are not public are taken from its host."""
    host = _read_host(url)
    return host is not None and not host.spellings.isdisjoint(insecure_hosts)


def join_link(url: URL, location: str) -> URL:
    """
    Return where an answer from *url* redirects to; to be verified like any link.

    Args:
        url: What was asked for.

        location:
            The ``Location`` header: relative or absolute. What is percent-encoded
            stays as sent, blanks and what is not ASCII become so.

    Raises:
        ValueError: It makes no sense.
    """
    text = location.strip(" \t")
    joined = None
    if text and len(text) <= _MAX_LENGTH and not _SENSELESS.search(text):
        # What they raise shows too much.
        with contextlib.suppress(ValueError):
            # Bytes that were no UTF-8 came as surrogates, and go as the bytes they were.
            text = quote(text, safe=string.punctuation, errors="surrogateescape")
            if text.startswith("//"):
                text = f"{url.scheme}:{text}"
            # What names a scheme must name a host too, which urljoin() is lax about.
            joined = parse_url(text if _SCHEME.match(text) else urljoin(str(url), text))
    if joined is None:
        msg = "the redirect leads to no http(s) URL"
        raise ValueError(msg)
    return joined


# --- one link ---------------------------------------------------------------------------


def _find_flaw(path_and_query: str) -> str | None:
    """Return why it cannot be asked for as it stands; `None` if it can."""
    # yarl quotes what it is not told is quoted already.
    is_visible = path_and_query.isascii() and path_and_query.isprintable()
    if not is_visible or " " in path_and_query or "\\" in path_and_query:
        return "the link must not have blanks, backslashes or control characters"
    if len(path_and_query) > _MAX_LENGTH:
        return f"the link must not be longer than {_MAX_LENGTH} characters"
    return None


def _find_insecurity(url: URL, host: _Host, *, is_port_free: bool) -> str | None:
    """Return what speaks against a host that is not among the insecure ones."""
    if url.scheme != "https":
        return "plain http could be changed on its way"
    if host.address is not None:
        if not is_public(host.address):
            return "the address is not public"
    else:
        name = host.text.removesuffix(".")
        if _NUMBER.fullmatch(name.rpartition(".")[2]):
            return "the host is an IP address in another notation than the usual one"
        if not _is_of_the_internet(name):
            return "the host is no name of the internet"
    if url.port != _HTTPS_PORT and not is_port_free:
        return f"port {url.port} is not {_HTTPS_PORT}"
    return None


def _is_of_the_internet(name: str) -> bool:
    """Return whether *name* may be one that everybody finds the same host under."""
    return (
        len(name) <= _MAX_NAME_LENGTH
        and _NAME.fullmatch(name) is not None
        and not name.endswith(".localhost")
    )


def _read_host(url: URL) -> _Host | None:
    """Return the host of *url*; `None` if it cannot be one."""
    authority = url.raw_authority
    match = _AUTHORITY.fullmatch(authority) if len(authority) <= _MAX_AUTHORITY_LENGTH else None
    if match is None:
        return None
    try:
        # Asking is what makes yarl look at them.
        in_its_script, _ = (url.host or "").lower(), url.port
        if match["six"] is not None:
            address = str(IPv6Address(match["six"]))
            return _Host(address, frozenset({address}), address)
    except ValueError:
        return None
    text = match["name"].lower()
    names = {name.removesuffix(".") for name in (text, in_its_script)}
    return _Host(text, frozenset(names | {f"{name}." for name in names}), _usual_v4(text))


def _usual_v4(text: str) -> str | None:
    """Return *text* if it is an IPv4 address in four decimal parts; else `None`."""
    try:
        return str(IPv4Address(text))
    except ValueError:
        return None


def _presentable(authority: str) -> str:
    """Return the host out of *authority*, whatever is wrong with it, and nothing beside it."""
    host = authority.rpartition("@")[2]
    end = host.find("]") + 1 if host.startswith("[") else 0
    return strip_controls(host[:end] or host.partition(":")[0])[:80]
