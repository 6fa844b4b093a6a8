"""What the tests of ``kie-wav report`` and ``resolve`` share: ledgers, and a way to run."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, NamedTuple

from yarl import URL

from kie_wav_async import Track
from kie_wav_async.cli import main
from kie_wav_async.ledger import AttemptOutcome

if TYPE_CHECKING:
    import pytest

    from kie_wav_async.ledger import Ledger, LedgerEntry

DAY_S = 86_400.0


class Done(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> dict:
        """Return the one object on stdout."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def lines(self) -> list[list[str]]:
        """The cells of each line on stdout."""
        return [line.split("\t") for line in self.out.splitlines()]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Done:
    """Run the command line, on a loop of its own."""
    capsys.readouterr()
    code = main(arguments)
    return Done(code, *capsys.readouterr())


def track(number: int) -> Track:
    """Return the track of that number; every second one has a title."""
    return Track("m", f"a{number}", title=None if number % 2 else f"Song {number}")


def attempt(number: int) -> str:
    """Return the attempt of the track of that number; 6 characters tell it from others."""
    return f"{number:06x}" + "e" * 26


class Writer:
    """Writes into a ledger what came of tracks, at moments before *now_unix_s*."""

    def __init__(self, ledger: Ledger, now_unix_s: float | None = None) -> None:
        self.ledger = ledger
        self.now_unix_s = time.time() if now_unix_s is None else now_unix_s

    async def begin(self, number: int, *, ago_s: float = 60.0, again: bool = False) -> str:
        """Begin a submit of a track, and return its id."""
        name = attempt(number + 1_000 if again else number)
        refusal = await self.ledger.begin_attempt(
            track(number), name, self.now_unix_s - ago_s, again=again
        )
        assert refusal is None
        return name

    async def end(
        self,
        number: int,
        outcome: AttemptOutcome,
        *,
        ago_s: float = 60.0,
        task_id: str = "",
        error_code: int | None = None,
        error: str | None = None,
        again: bool = False,
    ) -> None:
        """Submit a track, and see what came of it."""
        name = await self.begin(number, ago_s=ago_s, again=again)
        await self.ledger.finish_attempt(
            name,
            outcome,
            self.now_unix_s - ago_s + 1.0,
            task_id=task_id,
            error_code=error_code,
            error=error,
        )

    async def accept(self, number: int, *, ago_s: float = 60.0, is_adopted: bool = False) -> str:
        """Have a track accepted, and return the task."""
        task_id = f"t{number}"
        outcome = AttemptOutcome.ADOPTED if is_adopted else AttemptOutcome.ACCEPTED
        await self.end(number, outcome, ago_s=ago_s, task_id=task_id)
        return task_id

    async def convert(
        self, number: int, *, took_s: float = 30.0, ago_s: float = 60.0, is_adopted: bool = False
    ) -> None:
        """Have a track converted."""
        task_id = await self.accept(number, ago_s=ago_s, is_adopted=is_adopted)
        url = URL(f"https://files.example/{task_id}.wav")
        await self.ledger.finish_task(task_id, self.now_unix_s - ago_s + took_s, wav_url=url)

    async def fail(self, number: int, error_code: int | None, error: str | None) -> None:
        """Have a conversion fail."""
        task_id = await self.accept(number)
        await self.ledger.finish_task(
            task_id, self.now_unix_s - 5.0, error_code=error_code, error=error
        )

    async def lose(self, number: int, *, ago_s: float = 60.0, again: bool = False) -> str:
        """Have the fate of a submit unknown, and return the attempt."""
        await self.end(number, AttemptOutcome.UNKNOWN, ago_s=ago_s, again=again)
        return attempt(number + 1_000 if again else number)

    async def find(self, number: int) -> LedgerEntry:
        """Return where a track stands."""
        entry = await self.ledger.get(track(number))
        assert entry is not None
        return entry
