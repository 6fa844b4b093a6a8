"""
A durable journal of conversions: what was asked for, what was paid, and what came of it.

`Ledger` is the protocol, `SqliteLedger` the ledger in a file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from kie_wav_async.core.track_states import AttemptOutcome, TrackState
from kie_wav_async.ledger.base import Ledger

if TYPE_CHECKING:
    from kie_wav_async.ledger.models import AttemptEntry, LedgerEntry, RecoveryState
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

# Loaded when they are asked for: a session without a ledger needs none of them.
_LAZY: Final = {
    "AttemptEntry": "models",
    "LedgerEntry": "models",
    "RecoveryState": "models",
    "SqliteLedger": "sqlite.ledger",
}


def __getattr__(name: str) -> object:
    """Load the module that *name* is from."""
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
