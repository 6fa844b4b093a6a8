"""
A durable journal of conversions: what was asked for, what was paid, and what came of it.

`Ledger` is the protocol, `SqliteLedger` the ledger in a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_wav_async.ledger.base import Ledger
from kie_wav_async.ledger.models import (
    AttemptEntry,
    AttemptOutcome,
    LedgerEntry,
    RecoveryState,
    TrackState,
)

if TYPE_CHECKING:
    from kie_wav_async.ledger.sqlite.ledger import SqliteLedger

__all__ = [
    "AttemptEntry",
    "AttemptOutcome",
    "Ledger",
    "LedgerEntry",
    "RecoveryState",
    "SqliteLedger",
    "TrackState",
]


def __getattr__(name: str) -> object:
    """Load SQLite when its ledger is asked for: most programs never do."""
    if name == "SqliteLedger":
        from kie_wav_async.ledger.sqlite.ledger import SqliteLedger  # noqa: PLC0415 - costs time few need

        return SqliteLedger
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
