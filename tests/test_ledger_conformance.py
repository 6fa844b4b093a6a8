"""The suite every ledger is held to: ours keep it, and it finds what is wrong with others."""

from __future__ import annotations

import asyncio
import inspect
import re
import textwrap

import pytest

import ledger_conformance as conformance
from kie_wav_async.errors import KieWavError, LedgerError
from kie_wav_async.testing import MemoryLedger
from ledger_conformance import LedgerConformance, run_conformance
from ledger_storages import MemoryStorage, SqliteStorage
from wrong_ledgers import WRONG, TakesInWhatItMayNotSend

PROMISES = [name for name in vars(LedgerConformance) if name.startswith("test_")]

# --- the ledgers that are ours ------------------------------------------------------------------


class TestMemoryLedger(MemoryStorage, LedgerConformance):
    pass


class TestSqliteLedger(SqliteStorage, LedgerConformance):
    pass


# --- the example --------------------------------------------------------------------------------


class Server:
    """A server that keeps tables, and sees connections go."""

    def __init__(self):
        self.tables = MemoryLedger()


class MyLedger(MemoryLedger):
    """Somebody's ledger on a server."""

    def __init__(self, server=None):
        super().__init__()
        self.server = server
        self.connection = self
        if server is not None:
            self._tables = server.tables._tables

    def abort(self):
        self.server.tables = self.die()


async def test_the_example_works():
    """The example in the module's docstring is held to every promise, without a test runner."""
    example = re.search(r"::\n\n(    class .*?)\n\nUnder", conformance.__doc__, re.DOTALL)
    program = textwrap.dedent(example[1])
    names = {"LedgerConformance": LedgerConformance, "MyLedger": MyLedger, "Server": Server}
    exec(program, names)  # noqa: S102 - the text of our own docstring
    promises = await run_conformance(names["TestMyLedger"])
    assert promises == tuple(PROMISES)


def test_the_suite_needs_no_test_runner():
    """Whoever has no pytest can use the suite all the same."""
    assert "pytest" not in re.findall(
        r"^\s*(?:from|import) (\w+)", inspect.getsource(conformance), re.MULTILINE
    )


async def test_a_broken_promise_is_named():
    """What `run_conformance` raises holds an error for each broken promise, named and told."""

    class Suite(MemoryStorage, LedgerConformance):
        make = TakesInWhatItMayNotSend

    with pytest.raises(ExceptionGroup, match=r"of \d+ promises are broken") as caught:
        await run_conformance(Suite)
    told = [error.__notes__ for error in caught.value.exceptions]
    promise = LedgerConformance.test_a_held_back_submit_leaves_no_trace
    assert [f"{promise.__name__}: {promise.__doc__}"] in told


async def test_hooks_have_to_be_overridden():
    """A suite that does not say how a ledger is made says so itself."""
    for call in (LedgerConformance().make_ledger(), LedgerConformance().kill(MemoryLedger())):
        with pytest.raises(NotImplementedError):
            await call


async def test_a_storage_is_taken_away_whatever_happens():
    """Each storage made is removed, also when the ledger cannot even be made."""
    error = LedgerError("no")
    told = []

    class Suite(LedgerConformance):
        async def set_up(self):
            told.append("made")

        async def make_ledger(self):
            raise error

        async def clean_up(self):
            told.append("removed")

    with pytest.raises(ExceptionGroup):
        await run_conformance(Suite)
    assert told == ["made", "removed"] * (len(told) // 2)
    assert told


# --- ledgers that are wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_wrong_ledger_is_found(name):
    """Each wrong ledger breaks the promise that the table names."""
    kind, promise = WRONG[name]

    class Suite(MemoryStorage, LedgerConformance):
        make = kind

    try:
        asyncio.run(getattr(Suite(), promise)())
    except (AssertionError, KieWavError):
        return
    pytest.fail(f"{promise} did not find a ledger that is wrong: {kind.__doc__ or name}")


def test_every_promise_finds_something():
    """No promise of the suite is idle: each finds a wrong ledger."""
    assert {promise for _, promise in WRONG.values()} == set(PROMISES)
