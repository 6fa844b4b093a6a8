"""Which WAV `kie-wav bulk` saves next."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_wav_async import Track
from kie_wav_async.cli.bulk.saving_queue import SavingQueue

BEGIN = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


def track(number: int) -> Track:
    """Return one of many tracks."""
    return Track("m", f"a{number:06d}")


def at(day: float | None) -> dt.datetime | None:
    """Return a moment so many *days* on."""
    return None if day is None else BEGIN + dt.timedelta(days=day)


def filled(*days: float | None, most: int = 10) -> SavingQueue:
    """Return a queue of tracks whose WAVs are deleted on so many *days*."""
    queue = SavingQueue(most)
    queue.begin_refill()
    for number, day in enumerate(days):
        queue.refill(at(day), track(number))
    return queue


def drain(queue: SavingQueue) -> list[Track]:
    """Take all there is, and be done with it."""
    taken = []
    while queue:
        taken.append(queue.take())
        queue.release(taken[-1])
    return taken


def test_the_oldest_first() -> None:
    """What is deleted first is saved first, and before that what may be deleted at any moment."""
    queue = filled(3, 1, None, 2)

    assert [track(n) for n in (2, 1, 3, 0)] == drain(queue)
    assert not queue.is_short


def test_a_new_queue_is_short() -> None:
    """Before its first refill nothing is taken in: an earlier run may have left something older."""
    queue = SavingQueue()
    queue.put(at(1), track(1))

    assert queue.is_short
    assert 0 == len(queue) == queue.held


def test_a_track_is_held_once() -> None:
    """A track is taken in once, also while it is being saved, and again only after its release."""
    queue = filled(1, 2)
    queue.put(at(1), track(0))
    first = queue.take()
    queue.put(at(1), track(0))

    assert (1, 2) == (len(queue), queue.held)
    queue.release(first)
    queue.put(at(1), track(0))
    assert [track(0), track(1)] == drain(queue)


def test_back_in_its_place() -> None:
    """What is put back is as old as it was."""
    queue = filled(1, 2, 3)
    first = queue.take()
    assert track(1) == queue.take()
    queue.put_back(at(1), first)

    assert [track(0), track(2)] == drain(queue)


def test_what_comes_after_the_horizon_waits() -> None:
    """Once something was left out, nothing newer overtakes it, and what is older still goes in."""
    queue = filled(1, 3, 5, 7, most=3)
    assert queue.is_short
    assert track(0) == queue.take()
    queue.release(track(0))
    queue.put(at(9), track(9))
    queue.put(at(2), track(8))

    assert [track(8), track(1), track(2)] == drain(queue)
    queue.begin_refill()
    # What was given up before is in the ledger still.
    for number, day in ((0, 1), (3, 7), (9, 9)):
        queue.refill(at(day), track(number))
    assert [track(3), track(9)] == drain(queue)


@given(st.lists(st.none() | st.integers(0, 20), max_size=60), st.integers(1, 10))
def test_all_in_order_in_little_room(days: list[int | None], most: int) -> None:
    """However few are held, everything is taken once, in the order in which it is deleted."""
    wanted = {track(number): day for number, day in enumerate(days)}
    queue, taken = SavingQueue(most), []
    while queue.is_short:
        queue.begin_refill()
        for one, day in wanted.items():
            queue.refill(at(day), one)
            assert queue.held <= most
        taken += drain(queue)

    expected = sorted(wanted, key=lambda t: (-1 if wanted[t] is None else wanted[t], t.audio_id))
    assert expected == taken


def test_nothing_to_take() -> None:
    """Taking from an empty queue is a mistake."""
    with pytest.raises(IndexError):
        filled().take()
