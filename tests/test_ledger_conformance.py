"""The suite every ledger is held to: ours keep it, and it finds what is wrong with others."""

from __future__ import annotations

from kie_wav_async.ledger_conformance import LedgerConformance
from kie_wav_async.testing import MemoryLedger


class TestMemoryLedger(LedgerConformance):
    async def set_up(self):
        self.storage = MemoryLedger()

    async def make_ledger(self):
        return self.storage.twin()

    async def kill(self, ledger):
        self.storage = ledger.die()
