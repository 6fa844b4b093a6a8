from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_wav_async.downloads.public_address import is_public

PUBLIC = [
    # The first and last addresses beside what is set aside.
    "1.0.0.0", "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255",
    "100.128.0.0", "126.255.255.255", "128.0.0.0", "168.63.129.15", "168.63.129.17",
    "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255",
    "192.0.1.0", "192.0.1.255", "192.0.3.0", "192.31.195.255", "192.31.197.0",
    "192.52.192.255", "192.52.194.0", "192.88.98.255", "192.88.100.0", "192.167.255.255",
    "192.169.0.0", "192.175.47.255", "192.175.49.0", "198.17.255.255", "198.20.0.0",
    "198.51.99.255", "198.51.101.0", "203.0.112.255", "203.0.114.0", "223.255.255.255",
    "2000::", "2001:200::", "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::",
    "2001:4860:4860::8888", "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::",
    "2606:4700::6810:84e5", "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff", "2620:4f:8001::",
    "2A00:1450:4001:82B::200E", "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::",
    "2606:4700::5efd:808:808", "2606:4700::100:5efe:808:808", "2606:4700::5efe:808",
    # IPv4 behind a mapping or a translator.
    "::ffff:8.8.8.8", "::ffff:808:808", "0:0:0:0:0:FFFF:8.8.8.8",
    "64:ff9b::8.8.8.8", "64:ff9b::808:808",
]  # fmt: skip

NOT_PUBLIC = [
    ("0.0.0.0", "this network"),  # noqa: S104 - nothing is bound
    ("0.255.255.255", "this network"),
    ("10.0.0.0", "private"),
    ("10.255.255.255", "private"),
    ("100.64.0.0", "behind a provider's NAT"),
    ("100.100.100.200", "the metadata of a cloud"),
    ("100.127.255.255", "behind a provider's NAT"),
    ("127.0.0.0", "loopback"),
    ("127.0.0.1", "loopback"),
    ("127.255.255.255", "loopback"),
    ("168.63.129.16", "the metadata of a cloud"),
    ("169.254.0.0", "link-local"),
    ("169.254.169.254", "the metadata of most clouds"),
    ("169.254.170.2", "the metadata of containers"),
    ("169.254.255.255", "link-local"),
    ("172.16.0.0", "private"),
    ("172.31.255.255", "private"),
    ("192.0.0.0", "protocol assignments"),
    ("192.0.0.8", "dummy address"),
    ("192.0.0.9", "port control anycast"),
    ("192.0.0.10", "TURN anycast"),
    ("192.0.0.170", "discovery of NAT64"),
    ("192.0.0.192", "the metadata of a cloud"),
    ("192.0.0.255", "protocol assignments"),
    ("192.0.2.0", "documentation"),
    ("192.0.2.255", "documentation"),
    ("192.31.196.0", "AS112"),
    ("192.31.196.255", "AS112"),
    ("192.52.193.0", "AMT"),
    ("192.52.193.255", "AMT"),
    ("192.88.99.0", "6to4 relays"),
    ("192.88.99.255", "6to4 relays"),
    ("192.168.0.0", "private"),
    ("192.168.255.255", "private"),
    ("192.175.48.0", "AS112"),
    ("192.175.48.255", "AS112"),
    ("198.18.0.0", "benchmarks"),
    ("198.19.255.255", "benchmarks"),
    ("198.51.100.0", "documentation"),
    ("198.51.100.255", "documentation"),
    ("203.0.113.0", "documentation"),
    ("203.0.113.255", "documentation"),
    ("224.0.0.0", "multicast"),
    ("224.0.0.251", "multicast DNS"),
    ("239.255.255.255", "multicast"),
    ("240.0.0.0", "reserved"),
    ("255.255.255.254", "reserved"),
    ("255.255.255.255", "broadcast"),
    # IPv6 that is given out to nobody, or to this machine or network.
    ("::", "unspecified"),
    ("::1", "loopback"),
    ("::7f00:1", "IPv4-compatible"),
    ("::127.0.0.1", "IPv4-compatible"),
    ("::8.8.8.8", "IPv4-compatible, even if public within"),
    ("::ffff:0:8.8.8.8", "IPv4-translated, even if public within"),
    ("100::", "discarded"),
    ("100::1", "discarded"),
    ("100:0:0:1::", "dummy prefix"),
    ("200::1", "reserved"),
    ("400::1", "reserved"),
    ("1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "reserved"),
    ("4000::", "reserved"),
    ("5f00::", "segment routing"),
    ("5f00:ffff::1", "segment routing"),
    ("6000::1", "reserved"),
    ("e000::1", "reserved"),
    ("f000::1", "reserved"),
    ("fc00::", "unique local"),
    ("fd00:ec2::254", "the metadata of a cloud"),
    ("fd20:ce::254", "the metadata of a cloud"),
    ("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "unique local"),
    ("fe00::1", "reserved"),
    ("fe80::", "link-local"),
    ("fe80::a9fe:a9fe", "link-local"),
    ("febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "link-local"),
    ("fec0::", "site-local"),
    ("feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "site-local"),
    ("ff00::", "multicast"),
    ("ff02::1", "multicast"),
    ("ff0e::1", "multicast, of global scope"),
    ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "multicast"),
    # Set aside within what is given out.
    ("2001:1::1", "port control anycast"),
    ("2001:1::3", "DNS-SD anycast"),
    ("2001:2::1", "benchmarks"),
    ("2001:3::1", "AMT"),
    ("2001:4:112::1", "AS112"),
    ("2001:10::1", "ORCHID"),
    ("2001:20::1", "ORCHIDv2"),
    ("2001:30::1", "drones"),
    ("2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "protocol assignments"),
    ("2001:db8::1", "documentation"),
    ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "documentation"),
    ("2620:4f:8000::", "AS112"),
    ("2620:4f:8000:ffff:ffff:ffff:ffff:ffff", "AS112"),
    ("3fff::", "documentation"),
    ("3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "documentation"),
    # IPv4 carried within.
    ("::ffff:127.0.0.1", "mapped loopback"),
    ("::ffff:7f00:1", "mapped loopback"),
    ("0:0:0:0:0:FFFF:7F00:0001", "mapped loopback"),
    ("::ffff:169.254.169.254", "mapped metadata"),
    ("::ffff:10.0.0.1", "mapped private"),
    ("::ffff:0.0.0.0", "mapped unspecified"),
    ("::ffff:224.0.0.1", "mapped multicast"),
    ("::ffff:100.64.0.1", "mapped provider's NAT"),
    ("64:ff9b::127.0.0.1", "translated loopback"),
    ("64:ff9b::a9fe:a9fe", "translated metadata"),
    ("64:ff9b::10.0.0.1", "translated private"),
    ("64:ff9b::192.168.0.1", "translated private"),
    ("64:ff9b::224.0.0.1", "translated multicast"),
    ("64:ff9b::", "translated unspecified"),
    ("64:ff9b:0:0:0:1:808:808", "beside the translators' prefix"),
    ("64:ff9b:1::8.8.8.8", "locally translated"),
    ("64:ff9b:1::10.0.0.1", "locally translated"),
    ("64:ff9b:1:ffff:ffff:ffff:808:808", "locally translated"),
    ("2002:7f00:1::", "6to4 to loopback"),
    ("2002:7f00:1::1", "6to4 to loopback"),
    ("2002:a9fe:a9fe::1", "6to4 to metadata"),
    ("2002:a00:1::1", "6to4 to private"),
    ("2002:808:808::1", "6to4, even to public"),
    ("2001::1", "Teredo"),
    ("2001:0:7f00:1::f7f7:f7f7", "Teredo with a private server"),
    ("2001:0:808:808::80ff:fffe", "Teredo with a private client, 127.0.0.1"),
    ("2001:0:808:808::f7f7:f7f7", "Teredo, even between public ones"),
    ("2606:4700::5efe:10.0.0.1", "ISATAP to private"),
    ("2606:4700::200:5efe:10.0.0.1", "ISATAP to private, marked as public"),
    ("2606:4700::200:5efe:8.8.8.8", "ISATAP, even to public"),
    ("fe80::5efe:10.0.0.1", "ISATAP on the link"),
    # With a zone.
    ("fe80::1%eth0", "link-local, with its link"),
    ("fe80::1%1", "link-local, with its link"),
    ("::1%lo", "loopback, with its link"),
    ("2606:4700::1%eth0", "of one link only"),
    ("::ffff:8.8.8.8%eth0", "of one link only"),
]

NO_ADDRESS = [
    "", " ", "localhost", "example.com", "8", "8.8", "8.8.8", "8.8.8.8.8", "8.8.8.8.", "08.8.8.8",
    "8.8.8.256", "0x8.8.8.8", "0x08080808", "134744072", "8.8.8.8/32", "8.8.8.8:443", " 8.8.8.8",
    "8.8.8.8 ", "8.8.8.8\n", "8.8.8.8\x00", "\uff18.8.8.8", "8\u30028.8.8", "\u0668.8.8.8",
    "[2606:4700::1]", "2606:4700::1/64", "2606:4700:::1", "2606:4700::g", "2606:4700::1%",
    ":", ":::", "::ffff:8.8.8.256", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_public(address):
    """An address that is given out to the public is public, however it is spelled."""
    assert is_public(address)


@pytest.mark.parametrize(("address", "reason"), NOT_PUBLIC)
def test_an_address_set_aside_is_not_public(address, reason):
    """An address that leads to this machine, its network or nowhere is not public."""
    assert not is_public(address), reason


@pytest.mark.parametrize("address", NO_ADDRESS, ids=ascii)
def test_what_is_no_address_is_not_public(address):
    """A name, an address with something around it or in another notation is not public."""
    assert not is_public(address)


def is_set_aside(ip):
    """Return whether the standard library knows of a reason not to call *ip* public."""
    return (
        ip.is_private
        or ip.is_loopback
        or ip.is_link_local
        or ip.is_multicast
        or ip.is_reserved
        or ip.is_unspecified
        or not ip.is_global
        or getattr(ip, "is_site_local", False)
    )


def carries_v4(ip):
    """Return whether what counts is the IPv4 address within."""
    return ip.ipv4_mapped is not None or ip in ipaddress.ip_network("64:ff9b::/96")


# Hypothesis takes half of its addresses out of the registries' blocks.
@given(st.ip_addresses(v=4))
def test_no_address_is_public_that_python_sets_aside(ip):
    """Whatever the standard library calls private or special is not public to us either."""
    assert not (is_set_aside(ip) and is_public(str(ip)))


@given(st.ip_addresses(v=6))
def test_no_long_address_is_public_that_python_sets_aside(ip):
    """What the standard library calls special is not public, unless it carries what is."""
    if not carries_v4(ip):
        assert not (is_set_aside(ip) and is_public(str(ip)))


def test_the_edges_of_every_block_are_known():
    """At the first and last address of each /12 of IPv4 we call no more public than Python."""
    ends = [edge for start in range(0, 1 << 32, 1 << 20) for edge in (start, start + (1 << 20) - 1)]
    addresses = [ipaddress.IPv4Address(end) for end in ends]

    assert [] == [ip for ip in addresses if is_set_aside(ip) and is_public(str(ip))]
    assert sum(is_public(str(ip)) for ip in addresses) > 6_000


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:", "64:ff9b::"]))
def test_an_address_within_another_decides(ip, prefix):
    """Behind a mapping or a translator it is the IPv4 address that is public or not."""
    assert is_public(str(ip)) is is_public(f"{prefix}{ip}")


@given(st.ip_addresses(v=4), st.ip_addresses(v=4), st.integers(0, 0xFFFF))
def test_no_tunnel_is_public(ip, other, port):
    """No address of a tunnel is public, whichever addresses it leads to."""
    six = ipaddress.IPv6Address
    assert not is_public(str(six((0x2002 << 112) | (int(ip) << 80) | port)))
    teredo = (0x2001 << 112) | (int(ip) << 64) | (port << 32) | (int(other) ^ 0xFFFF_FFFF)
    assert not is_public(str(six(teredo)))
    assert not is_public(str(six(int(ip))))
    assert not is_public(str(six((0x2606_4700 << 96) | (0x5EFE << 32) | int(ip))))


@given(st.text() | st.text("0123456789abcdef:.%x/[] "))
def test_any_text_is_a_public_address_or_not(address):
    """Whatever the text, there is an answer."""
    assert is_public(address) in {True, False}
