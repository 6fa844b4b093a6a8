"""A session with a ledger, one turn of the loop at a time: to be cut off at any of them."""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING

from fakes import KEY, FakedSession, FakeService
from kie_wav_async.ledger import AttemptOutcome
from kie_wav_async.testing import FakeClock, MemoryLedger, ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kie_wav_async import WavSession, WireRequest, WireResponse

#: How many turns without time passing are enough for all that can be done.
TURNS = 25


class SteppedClock(FakeClock):
    """Moves on only between turns that a test sees."""

    async def moments(self, *until: asyncio.Future[object]) -> AsyncIterator[int]:
        """Number the turns of the loop until all of *until* are done; time moves when idle."""
        n = idle = 0
        while not all(task.done() for task in until):
            yield n
            n, idle = n + 1, idle + 1
            await asyncio.sleep(0)
            if idle == TURNS:
                idle = 0
                self._fire_next()

    def _fire_next(self) -> None:
        when = self._next()
        assert when is not None, "nothing will ever happen"
        self._monotonic_s = max(self._monotonic_s, when)
        while (following := self._next()) is not None and following <= self._monotonic_s:
            heapq.heappop(self._timers)[2].callback()


class StepLedger(MemoryLedger):
    """Takes a turn of the loop before it has written, and one after."""

    async def _call(self, name: str, *args: object, is_open: bool = True) -> None:
        await super()._call(name, *args, is_open=is_open)
        await asyncio.sleep(0)

    async def _return(self, name: str) -> None:
        await asyncio.sleep(0)
        await super()._return(name)


class MortalTransport(ScriptedTransport):
    """Once its process is dead nothing more leaves; what has left still arrives."""

    is_dead = False

    async def send(self, request: WireRequest) -> WireResponse:
        """Send, or hang."""
        if self.is_dead:
            await asyncio.get_running_loop().create_future()
        return await super().send(request)


class Process:
    """A session, its ledger, and the end of both."""

    def __init__(self, service: FakeService, ledger: MemoryLedger, **settings: object) -> None:
        self.ledger = ledger
        self.transport = MortalTransport(service.reply)
        self.transport.requests = service.transport.requests
        given = {"transport": self.transport, "clock": service.clock, "ledger": ledger}
        self.session: WavSession = FakedSession(KEY, **{**given, **settings})

    def die(self) -> MemoryLedger:
        """Return what the next process finds; whatever this one does now is for nobody."""
        self.transport.is_dead = True
        return self.ledger.die()


def bill(ledger: MemoryLedger) -> tuple[int, int]:
    """Return how many submits the ledger has as accepted, and how many may have been."""
    outcomes = [attempt.outcome for attempt in ledger._tables.attempts.values()]
    unknown = outcomes.count(AttemptOutcome.UNKNOWN) + outcomes.count(None)
    return outcomes.count(AttemptOutcome.ACCEPTED), unknown


def is_in_bill(service: FakeService, ledger: MemoryLedger) -> bool:
    """Return whether the ledger's bill bounds what the service charged."""
    accepted, unknown = bill(ledger)
    return accepted <= service.charged <= accepted + unknown
