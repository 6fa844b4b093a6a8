"""
The hosts of files that the service itself has named: how far a callback may go.

A callback's signature does not cover the file's URL. Whoever replays one can name any
host, so a callback settles only with a URL on a host that an answer to a poll has named
before, port included.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from kie_wav_async._ledger_models import MAX_HOSTS

if TYPE_CHECKING:
    from collections.abc import Iterable


class KnownHosts:
    """Remembers at most 100 hosts, as ``name:port``; the least recently used one goes."""

    __slots__ = ("_hosts",)

    def __init__(self) -> None:
        """Start with none."""
        # With whether it was named in this run, and not only in an earlier one.
        self._hosts: OrderedDict[str, bool] = OrderedDict()

    def restore(self, hosts: Iterable[str]) -> None:
        """Take over what an earlier run knew, the least recently used first."""
        for host in hosts:
            self._put(host, is_named=False)

    def learn(self, host: str) -> bool:
        """Note that the service named *host*; return whether it did for the first time here."""
        is_new = not self._hosts.get(host, False)
        self._put(host, is_named=True)
        return is_new

    def use(self, host: str | None) -> bool:
        """Return whether the service has named *host*, which counts as a use of it."""
        if host is None or host not in self._hosts:
            return False
        self._hosts.move_to_end(host)
        return True

    def _put(self, host: str, *, is_named: bool) -> None:
        self._hosts[host] = is_named
        self._hosts.move_to_end(host)
        if len(self._hosts) > MAX_HOSTS:
            self._hosts.popitem(last=False)
