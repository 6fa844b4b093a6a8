"""Where ledgers under test keep what they write, and how their processes die."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from kie_wav_async.ledger import SqliteLedger
from kie_wav_async.testing import MemoryLedger


class MemoryStorage:
    """Ledgers in memory, of the class *make*."""

    make = MemoryLedger

    async def set_up(self):
        """Make an empty one."""
        self.storage = self.make()

    async def make_ledger(self):
        """Return another of the same contents."""
        return self.storage.twin()

    async def kill(self, ledger):
        """Go on with what it leaves."""
        self.storage = ledger.die()

    async def clean_up(self):
        """Leave it to the collector."""


class SqliteStorage:
    """Ledgers in a file."""

    async def set_up(self):
        """Make a folder."""
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "first.sqlite3"
        self.dead = []

    async def make_ledger(self):
        """Return another on the same file."""
        return SqliteLedger(self.path)

    async def kill(self, ledger):
        """Go on with what is on the disk now, which is what SIGKILL would leave."""
        found, self.path = self.path, self.folder / f"after-{len(self.dead)}.sqlite3"
        for suffix in ("", "-wal"):
            shutil.copy(f"{found}{suffix}", f"{self.path}{suffix}")
        self.dead.append(ledger)

    async def clean_up(self):
        """Let the dead go, and remove the folder."""
        for ledger in self.dead:
            await ledger.aclose()
        shutil.rmtree(self.folder)
