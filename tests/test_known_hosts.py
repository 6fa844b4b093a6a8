"""The hosts that the service has named: how many are remembered, and which one goes."""

from __future__ import annotations

from kie_wav_async.core.effects import KeepHost, Outbox
from kie_wav_async.core.known_hosts import KnownHosts


class Ledger:
    """What is written down, as a ledger would have it."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self._writes: list[str] = []

    @property
    def writes(self) -> list[str]:
        """The hosts written down, in order."""
        effects = self.outbox.take()
        self._writes += [effect.host for effect in effects if isinstance(effect, KeepHost)]
        return self._writes

    def hosts(self) -> list[str]:
        """Return the last 100, the one written last at the end."""
        last = dict.fromkeys(reversed(self.writes))
        return list(last)[:100][::-1]


def known(hosts: KnownHosts) -> list[str]:
    """Return the hosts that are known, the least recently used first."""
    return list(hosts._hosts)


def test_only_what_was_named_is_known() -> None:
    """A host is known once the service has named it; nothing else is, and no URL without one."""
    hosts = KnownHosts(Outbox())
    hosts.learn("a.example:443")
    assert hosts.note_use("a.example:443")
    assert not hosts.note_use("a.example:8443")
    assert not hosts.note_use("b.example:443")
    assert not hosts.note_use(None)
    assert ["a.example:443"] == known(hosts)


def test_the_least_recently_used_goes() -> None:
    """At most 100 hosts are known; to be named and to be relied on are both uses."""
    hosts = KnownHosts(Outbox())
    hosts.restore(f"{n}.example:443" for n in range(100))
    assert hosts.note_use("0.example:443")
    assert not hosts.note_use("0.example:444")
    hosts.learn("1.example:443")
    hosts.learn("new.example:443")
    assert 100 == len(known(hosts))
    assert not hosts.note_use("2.example:443")
    assert ["0.example:443", "1.example:443", "new.example:443"] == known(hosts)[-3:]


def test_a_host_is_written_down_when_it_is_new() -> None:
    """A host is written down once, not each time, and again if it had to give way."""
    ledger = Ledger()
    hosts = KnownHosts(ledger.outbox)
    hosts.restore(["old.example:443"])
    for _ in range(50):
        hosts.learn("a.example:443")
        assert hosts.note_use("old.example:443")
    assert ["a.example:443"] == ledger.writes
    for n in range(100):
        hosts.learn(f"{n}.example:443")
    assert not hosts.note_use("a.example:443")
    hosts.learn("a.example:443")
    assert "a.example:443" == ledger.writes[-1]


def test_few_hosts_in_turn_cost_no_writes() -> None:
    """Ten hosts that are named in turn are written down once each."""
    ledger = Ledger()
    hosts = KnownHosts(ledger.outbox)
    for n in range(1_000):
        hosts.learn(f"{n % 10}.example:443")
    assert 10 == len(ledger.writes)


def test_the_next_run_forgets_the_least_recently_used_too() -> None:
    """What is in use is written down again, so that the next run does not lose it first."""
    ledger = Ledger()
    hosts = KnownHosts(ledger.outbox)
    for n in range(100):
        hosts.learn(f"{n}.example:443")
    assert hosts.note_use("0.example:443")
    hosts.learn("new.example:443")
    following = KnownHosts(ledger.outbox)
    following.restore(ledger.hosts())
    assert ["0.example:443", "new.example:443"] == known(following)[-2:]
    assert not following.note_use("1.example:443")
    assert known(hosts) == known(following)
