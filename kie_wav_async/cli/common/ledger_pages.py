"""A ledger, read a page at a time: it may have a million tracks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from kie_wav_async.ledger import Ledger, LedgerEntry, TrackState


async def pages(
    ledger: Ledger, states: Iterable[TrackState], *, limit: int = 500
) -> AsyncGenerator[Sequence[LedgerEntry]]:
    """
    Yield all tracks in one of *states*, in order, so many at a time.

    Raises:
        LedgerError: It cannot be read.
    """
    wanted, after = tuple(states), 0
    while page := await ledger.list_entries(wanted, after=after, limit=limit):
        yield page
        after = page[-1].index
