"""The pause of new submits as a state machine: no clock, no session."""

from __future__ import annotations

import math

import pytest

from kie_wav_async.core.submit_pause import PauseReason, SubmitPause


def in_outage(now: float = 0.0) -> SubmitPause:
    """Return a pause that began with 5 unknown outcomes."""
    pause = SubmitPause()
    for _ in range(4):
        pause.note_unknown(now)
    assert pause.reason is None
    pause.note_unknown(now)
    assert pause.reason is PauseReason.OUTAGE
    return pause


def probe(pause: SubmitPause, now: float, *, is_sent: bool = True) -> None:
    """Let one probe go, and end without an answer."""
    assert pause.blocked_until(now, is_sending=False) is None
    assert pause.begin_read(now)
    pause.end_read(now, is_answered=True)
    assert not pause.begin_read(now)
    pause.begin_submit("probe")
    assert math.inf == pause.blocked_until(now, is_sending=False)
    pause.end_submit("probe", now, is_sent=is_sent)


def test_without_a_pause_nothing_waits() -> None:
    """Submits go out, and end, as they like."""
    pause = SubmitPause()
    assert pause.blocked_until(0.0, is_sending=True) is None
    assert not pause.begin_read(0.0)
    pause.begin_submit("a")
    pause.end_submit("a", 0.0, is_sent=True)
    pause.note_answer("a", has_code=True)
    assert pause.blocked_until(0.0, is_sending=True) is None
    assert pause.reason is None


def test_the_pause_between_probes_doubles_up_to_a_quarter_of_an_hour() -> None:
    """From probe to probe it is 1, 2, 4, 8, and then 15 minutes."""
    pause, now, pauses = in_outage(), 0.0, list[float]()
    for _ in range(7):
        due = pause.blocked_until(now, is_sending=False)
        assert due is not None
        pauses.append(due - now)
        now = due
        probe(pause, now)
    assert [60.0, 120.0, 240.0, 480.0, 900.0, 900.0, 900.0] == pauses


def test_a_probe_waits_for_open_submits_and_for_the_read() -> None:
    """While a submit is open, or the read is, none goes out."""
    pause = in_outage()
    assert math.inf == pause.blocked_until(60.0, is_sending=True)
    assert pause.begin_read(60.0)
    assert math.inf == pause.blocked_until(60.0, is_sending=False)


def test_an_answered_read_is_good_for_a_minute() -> None:
    """A probe that has to wait for something else needs another read a minute later."""
    pause = in_outage()
    assert pause.begin_read(60.0)
    pause.end_read(61.0, is_answered=True)
    assert not pause.begin_read(121.0)
    assert pause.begin_read(121.5)


def test_a_read_without_an_answer_is_repeated_after_a_minute() -> None:
    """The pause of a read does not grow."""
    pause = in_outage()
    for now in (60.0, 120.0, 180.0):
        assert pause.blocked_until(now, is_sending=False) is None
        assert pause.begin_read(now)
        pause.end_read(now, is_answered=False)
        assert now + 60.0 == pause.blocked_until(now, is_sending=False)


def test_a_probe_that_was_not_sent_is_none() -> None:
    """The next one may go at once, after a read of its own."""
    pause = in_outage()
    probe(pause, 60.0, is_sent=False)
    probe(pause, 60.0)
    assert 180.0 == pause.blocked_until(60.0, is_sending=False)


def test_a_code_ends_an_outage_whichever_submit_got_it() -> None:
    """An outcome without one ends nothing."""
    pause = in_outage()
    pause.begin_submit("probe")
    pause.note_answer("probe", has_code=False)
    assert pause.reason is PauseReason.OUTAGE
    pause.note_answer("another", has_code=True)
    assert pause.reason is None
    for _ in range(4):
        pause.note_unknown(0.0)
    assert pause.reason is None


def test_more_unknown_outcomes_are_no_news() -> None:
    """Those that were open when the outage began change nothing."""
    pause = in_outage()
    pause.note_unknown(30.0)
    pause.end_submit("another", 30.0, is_sent=True)
    assert 60.0 == pause.blocked_until(30.0, is_sending=False)


def test_an_outage_is_news_once() -> None:
    """Who waits first learns for how long; not of one that is over by then, nor of maintenance."""
    pause = SubmitPause()
    assert pause.pop_notification(0.0) is None
    assert pause.note_maintenance("a", 0.0)
    assert pause.pop_notification(0.0) is None
    pause = in_outage()
    assert (50.0, None) == (pause.pop_notification(10.0), pause.pop_notification(10.0))
    pause = in_outage()
    assert 0.0 == pause.pop_notification(70.0)
    pause = in_outage()
    pause.note_answer("a", has_code=True)
    assert pause.pop_notification(10.0) is None


def test_maintenance_needs_no_read_and_ends_with_its_probe() -> None:
    """A probe a minute; an answer to another submit is older than the maintenance."""
    pause = SubmitPause()
    assert pause.note_maintenance("a", 0.0)
    assert not pause.note_maintenance("b", 0.0)
    pause.note_answer("c", has_code=True)
    assert pause.reason is PauseReason.MAINTENANCE
    for now in (60.0, 120.0):
        assert now == pause.blocked_until(now - 1, is_sending=False)
        assert not pause.begin_read(now)
        pause.begin_submit("a")
        assert pause.note_maintenance("a", now)
        pause.end_submit("a", now, is_sent=True)
    pause.begin_submit("b")
    pause.note_answer("b", has_code=False)
    assert pause.reason is None


def test_maintenance_ends_an_outage_and_the_row() -> None:
    """Code 455 is an answer: the probes are the maintenance's from then on."""
    pause = in_outage()
    pause.begin_submit("probe")
    assert pause.note_maintenance("probe", 60.0)
    assert pause.reason is PauseReason.MAINTENANCE
    for _ in range(4):
        pause.note_unknown(99.0)
    assert pause.reason is PauseReason.MAINTENANCE
    pause.note_unknown(99.0)
    assert pause.reason is PauseReason.OUTAGE


def test_an_outage_that_a_probe_of_a_maintenance_begins_waits_a_minute() -> None:
    """That probe was none of the outage's."""
    pause = SubmitPause()
    assert pause.note_maintenance("a", 0.0)
    for _ in range(4):
        pause.note_unknown(0.0)
    pause.begin_submit("a")
    pause.note_unknown(60.0)
    pause.end_submit("a", 60.0, is_sent=True)
    assert 120.0 == pause.blocked_until(60.0, is_sending=False)


@pytest.mark.parametrize(
    ("ended", "unknown", "is_paused"),
    [
        ([], [], False),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], False),
        ([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0], True),
        ([7.0] * 5, [7.0] * 5, True),  # A killed run: all end when the next one opens it.
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [5.0, 4.0, 3.0, 2.0, 1.0], True),
        ([1.0, 2.0, 2.5, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0], False),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 3.0, 4.0, 5.0], False),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0], False),
    ],
)
def test_an_earlier_run_that_ended_in_an_outage(ended, unknown, is_paused) -> None:
    """If the last 5 submits of a ledger are all unknown, the next one goes alone, at once."""
    pause = SubmitPause()
    assert is_paused == pause.restore(ended, unknown, 100.0)
    if is_paused:
        assert pause.pop_notification(100.0) is None
        probe(pause, 100.0)
        assert 160.0 == pause.blocked_until(100.0, is_sending=False)
        assert (60.0, None) == (pause.pop_notification(100.0), pause.pop_notification(100.0))


def test_an_earlier_outage_that_goes_on_is_news() -> None:
    """Also where the read before the first probe is not answered."""
    pause = SubmitPause()
    assert pause.restore([1.0] * 5, [1.0] * 5, 100.0)
    assert pause.begin_read(100.0)
    assert pause.pop_notification(100.0) is None
    pause.end_read(101.0, is_answered=False)
    assert 60.0 == pause.pop_notification(101.0)
