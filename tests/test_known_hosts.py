"""The hosts that the service has named: how many are remembered, and which one goes."""

from __future__ import annotations

from kie_wav_async._known_hosts import KnownHosts


def known(hosts: KnownHosts) -> list[str]:
    """Return the hosts that are known, the least recently used first."""
    return list(hosts._hosts)


def test_only_what_was_named_is_known() -> None:
    """A host is known once the service has named it; nothing else is, and no URL without one."""
    hosts = KnownHosts()
    assert hosts.learn("a.example:443")
    assert hosts.use("a.example:443")
    assert not hosts.use("a.example:8443")
    assert not hosts.use("b.example:443")
    assert not hosts.use(None)
    assert ["a.example:443"] == known(hosts)


def test_a_host_is_news_once_a_run() -> None:
    """A host is to be written down when it is named for the first time in a run."""
    hosts = KnownHosts()
    hosts.restore(["a.example:443"])
    assert hosts.use("a.example:443")
    assert [True, False] == [hosts.learn("a.example:443") for _ in range(2)]
    assert [True, False] == [hosts.learn("b.example:443") for _ in range(2)]


def test_the_least_recently_used_goes() -> None:
    """At most 100 hosts are known; to be named and to be relied on are both uses."""
    hosts = KnownHosts()
    hosts.restore(f"{n}.example:443" for n in range(100))
    assert hosts.use("0.example:443")
    assert not hosts.use("0.example:444")
    assert hosts.learn("1.example:443")
    assert hosts.learn("new.example:443")
    assert 100 == len(known(hosts))
    assert not hosts.use("2.example:443")
    assert ["0.example:443", "1.example:443", "new.example:443"] == known(hosts)[-3:]
    assert hosts.learn("2.example:443")


def test_what_was_forgotten_is_news_again() -> None:
    """A host that had to give way is written down again once it is named again."""
    hosts = KnownHosts()
    for n in range(101):
        assert hosts.learn(f"{n}.example:443")
    assert hosts.learn("0.example:443")
