"""
Which addresses are the public internet's: where a file may come from.

`ipaddress` calls some addresses global that lead back to this machine or its
network: IPv4 addresses carried within IPv6 ones, multicast, and whatever was set
aside after the running Python was released. So it is told here, the same under
every Python, and in doubt an address is not public: relays, tunnels and anycast
services serve no files.

One thing cannot be told by an address: a network that translates IPv6 to IPv4
under a prefix of its own, RFC 6052's "Network-Specific", has to keep its own
private addresses out of it.

Sources: IANA, "IPv4 Special-Purpose Address Space", "IPv6 Special-Purpose Address
Space" and "Internet Protocol Version 6 Address Space".
"""

from __future__ import annotations

import functools
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, TypeVar

_NOT_PUBLIC_V4: Final = (
    "0.0.0.0/8",  # This network, and to many systems this machine.
    "10.0.0.0/8",  # Private.
    "100.64.0.0/10",  # Shared by the customers of a provider; some clouds' services.
    "127.0.0.0/8",  # This machine.
    "169.254.0.0/16",  # Link-local, and where clouds keep their machines' secrets.
    "172.16.0.0/12",  # Private.
    "192.0.0.0/24",  # Protocol assignments.
    "192.0.2.0/24",  # Documentation.
    "192.31.196.0/24",  # AS112: answers for private addresses.
    "192.52.193.0/24",  # AMT relays.
    "192.88.99.0/24",  # 6to4 relays.
    "192.168.0.0/16",  # Private.
    "192.175.48.0/24",  # AS112.
    "198.18.0.0/15",  # Benchmarks.
    "198.51.100.0/24",  # Documentation.
    "203.0.113.0/24",  # Documentation.
    "224.0.0.0/4",  # Multicast.
    "240.0.0.0/4",  # Reserved, and broadcast.
    # In no registry, but within Azure every machine's host, which hands out its
    # settings. Source: learn.microsoft.com, "What is IP address 168.63.129.16?".
    "168.63.129.16/32",
)

#: The only block of IPv6 that is given out to the public. Loopback, unique local,
#: link-local, site-local, multicast, discard-only, SRv6, IPv4-compatible, locally
#: translated and all reserved addresses are outside.
_GIVEN_OUT: Final = IPv6Network("2000::/3")

_NOT_PUBLIC_V6: Final = (
    "2001::/23",  # Protocol assignments; Teredo, which tunnels to IPv4, is one.
    "2001:db8::/32",  # Documentation.
    "2002::/16",  # 6to4, which tunnels to IPv4.
    "2620:4f:8000::/48",  # AS112.
    "3fff::/20",  # Documentation.
)

#: How networks without IPv4 reach the rest of the world (RFC 6052).
_NAT64: Final = IPv6Network("64:ff9b::/96")

#: What marks the IPv4 address in the last half of an ISATAP one, which tunnels to
#: it, for private addresses and for public ones (RFC 5214, section 6.1).
_ISATAP: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})


N = TypeVar("N", IPv4Network, IPv6Network)


@functools.cache
def _networks(kind: type[N], texts: tuple[str, ...]) -> tuple[N, ...]:
    """Return the networks, made when they are first asked for: that takes a while."""
    return tuple(map(kind, texts))


def is_public(address: str) -> bool:
    """
    Return whether *address* is one of the public internet's.

    Args:
        address:
            An IP address as a resolver gives it. What is none is not public, and
            neither is one with a zone, which is of this machine's links.
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address):
        if ip.scope_id is not None:
            return False
        inner = _carried(ip)
        if inner is None:
            return _is_public_v6(ip)
        ip = inner
    return not any(ip in network for network in _networks(IPv4Network, _NOT_PUBLIC_V4))


def _carried(ip: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that a system or a translator on the way takes *ip* for."""
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped


def _is_public_v6(ip: IPv6Address) -> bool:
    return (
        ip in _GIVEN_OUT
        and not any(ip in network for network in _networks(IPv6Network, _NOT_PUBLIC_V6))
        and int(ip) >> 32 & 0xFFFF_FFFF not in _ISATAP
    )
