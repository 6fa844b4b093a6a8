"""
The hosts of files that the service itself has named: how far a callback may go.

A callback's signature does not cover the file's URL. Whoever replays one can name any
host, so a callback settles only with a URL on a host that an answer to a poll has named
before, port included.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from kie_wav_async.core.effects import KeepHost

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kie_wav_async.core.effects import Outbox

#: How many hosts of files are kept, here and in a ledger.
MAX_HOSTS: Final = 100

#: A host in use is written down again once so many others were: the order that a
#: ledger has is right to within that, and few hosts in turn cost no writes. Ours.
_SLACK: Final = 10


class KnownHosts:
    """Remembers at most 100 hosts, as ``name:port``; the least recently used one goes."""

    __slots__ = ("_hosts", "_outbox", "_serial")

    def __init__(self, outbox: Outbox) -> None:
        """Start with none; *outbox* gets those that are to be written down as the latest."""
        self._outbox = outbox
        # By use; with when each was last written down, in numbers of writes.
        self._hosts: OrderedDict[str, int] = OrderedDict()
        self._serial = 0

    def restore(self, hosts: Iterable[str]) -> None:
        """Take over what an earlier run wrote down, the least recently used first."""
        for host in hosts:
            self._note_written(host)
            self._touch(host)

    def learn(self, host: str) -> None:
        """Note that the service named *host*."""
        written = self._hosts.get(host)
        if written is None or self._serial - written > _SLACK:
            self._note_written(host)
            self._outbox.put(KeepHost(host))
        self._touch(host)

    def note_use(self, host: str | None) -> bool:
        """Return whether the service has named *host*, which counts as a use of it."""
        if host is None or host not in self._hosts:
            return False
        self.learn(host)
        return True

    def _note_written(self, host: str) -> None:
        self._serial += 1
        self._hosts[host] = self._serial

    def _touch(self, host: str) -> None:
        self._hosts.move_to_end(host)
        if len(self._hosts) > MAX_HOSTS:
            self._hosts.popitem(last=False)
