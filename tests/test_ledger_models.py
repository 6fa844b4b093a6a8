from __future__ import annotations

import datetime as dt

import pytest

from kie_wav_async import Track
from kie_wav_async.ledger import Standing, TrackState

AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def standing(**fields: object) -> Standing:
    """Return where a track stands that succeeded."""
    return Standing(index=1, track=Track("m", "a"), state=TrackState.SUCCEEDED, **fields)


def test_a_wav_of_our_submit_expires_14_days_after_it() -> None:
    """The service keeps a WAV for 14 days from its submit."""
    assert AT + dt.timedelta(days=14) == standing(submitted_at=AT).expires_at


@pytest.mark.parametrize("fields", [{}, {"submitted_at": AT, "is_adopted": True}])
def test_a_wav_of_unknown_age_has_no_known_end(fields: dict[str, object]) -> None:
    """Without a submit of ours, or where the task existed before it, no date is promised."""
    assert standing(**fields).expires_at is None
