from __future__ import annotations

import datetime as dt

import pytest

from kie_wav_async import Track
from kie_wav_async.ledger import AttemptOutcome, LedgerEntry, TrackState
from kie_wav_async.ledger.models import verify_host, verify_path, verify_settled_by

AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def entry(**fields: object) -> LedgerEntry:
    """Return where a track stands that succeeded."""
    return LedgerEntry(index=1, track=Track("m", "a"), state=TrackState.SUCCEEDED, **fields)


def test_a_wav_of_our_submit_expires_14_days_after_it() -> None:
    """The service keeps a WAV for 14 days from its submit."""
    assert AT + dt.timedelta(days=14) == entry(submitted_at=AT).expires_at


@pytest.mark.parametrize("fields", [{}, {"submitted_at": AT, "is_adopted": True}])
def test_a_wav_of_unknown_age_has_no_known_end(fields: dict[str, object]) -> None:
    """Without a submit of ours, or where the task existed before it, no date is promised."""
    assert entry(**fields).expires_at is None


def test_a_place_is_two_texts() -> None:
    """A path and its key are texts that say something."""
    verify_path("song.wav", "song.wav")


@pytest.mark.parametrize(
    ("path", "key", "expected", "complaint"),
    [
        ("", "k", ValueError, "path must not be empty"),
        ("p", "", ValueError, "key must not be empty"),
        (None, "k", TypeError, "path must be a str"),
        ("p", b"k", TypeError, "key must be a str"),
    ],
)
def test_what_is_no_place_is_refused(
    path: object, key: object, expected: type[Exception], complaint: str
) -> None:
    """What cannot be a place is refused before anything is written."""
    with pytest.raises(expected, match=complaint):
        verify_path(path, key)


def test_a_host_is_a_text() -> None:
    """The host of a file is a text that says something."""
    verify_host("media.example:443")
    with pytest.raises(ValueError, match="host must not be empty"):
        verify_host("")
    with pytest.raises(TypeError, match="host must be a str"):
        verify_host(b"media.example:443")


@pytest.mark.parametrize("settled_by", ["callback", "poll"])
def test_a_callback_or_a_poll_names_a_wav(settled_by: str) -> None:
    """Nothing else than a callback or a poll can name a WAV."""
    verify_settled_by(settled_by)
    with pytest.raises(ValueError, match="settled_by must be 'callback' or 'poll', not 'guess'"):
        verify_settled_by("guess")


STATES = {
    "may_be_sent": "planned rejected failed",
    "is_failure": "rejected failed",
    "came_to_nothing": "exists_without_id rejected failed",
    "can_be_requeued": "rejected failed expired",
    "has_wav": "succeeded saved",
    "is_converted": "succeeded saved expired",
    "is_unsaved": "accepted succeeded",
    "is_final": "saved expired",
}


@pytest.mark.parametrize("name", STATES)
def test_what_a_state_is(name: str) -> None:
    """Each question that is asked of a state is answered by exactly these states with yes."""
    assert STATES[name].split() == sorted(
        (state for state in TrackState if getattr(state, name)), key=list(TrackState).index
    )


def test_which_submits_have_a_task() -> None:
    """A submit has a task if it created one, or was answered with one that existed."""
    assert ["accepted", "adopted"] == [outcome for outcome in AttemptOutcome if outcome.has_task]


def test_which_submits_wait_for_a_word() -> None:
    """The user's word is for a submit that is unknown, or whose WAV exists under no known id."""
    assert ["unknown", "exists_without_id"] == [
        outcome for outcome in AttemptOutcome if outcome.can_be_resolved
    ]
