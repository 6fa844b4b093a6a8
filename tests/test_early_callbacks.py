from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from kie_wav_async.core import early_callbacks
from kie_wav_async.core.early_callbacks import (
    BUFFERED_S,
    MAX_BUFFERED,
    EarlyCallbackBuffer,
    VerifiedCallback,
)
from samples import ATTEMPT_ID, FILE_URL

OTHER_ATTEMPT = "f" * 32


def notice(task_id="t", attempt_id=None, wav_url=None):
    """Return a notice of a task."""
    return VerifiedCallback(task_id, attempt_id, wav_url)


def test_the_bounds_are_the_documented_ones():
    """At most 10,000 notices are kept, for at most 15 minutes."""
    assert 10_000 == MAX_BUFFERED
    assert 900.0 == BUFFERED_S


def test_a_notice_without_an_attempt_is_given_one():
    """A delivery without its query hides no later one that names the attempt, only its file."""
    inbox = EarlyCallbackBuffer()
    first = notice("t", ATTEMPT_ID, URL(FILE_URL))
    inbox.put(notice("t"), 0.0)
    inbox.put(first, 100.0)
    inbox.put(notice("t"), 200.0)
    inbox.put(notice("t", OTHER_ATTEMPT), 300.0)

    assert ("t",) == inbox.find_by_attempt(ATTEMPT_ID, 899.0)
    assert () == inbox.find_by_attempt(ATTEMPT_ID, 900.0)
    inbox.put(notice("t"), 0.0)
    inbox.put(first, 1.0)
    assert notice("t", ATTEMPT_ID) == inbox.pop("t", 2.0)


def test_what_was_kept_is_taken_once():
    """A notice is handed to who asks first, and to nobody else."""
    inbox = EarlyCallbackBuffer()
    kept = notice("t", ATTEMPT_ID, URL(FILE_URL))
    inbox.put(kept, 5.0)

    assert inbox.pop("u", 5.0) is None
    assert inbox.get("u", 5.0) is None
    assert inbox.get("t", 5.0) is kept
    assert inbox.get("t", 905.0) is None
    inbox.put(kept, 5.0)
    assert inbox.pop("t", 5.0) is kept
    assert inbox.pop("t", 5.0) is None
    assert 0 == len(inbox)


def test_the_first_of_a_task_stays():
    """A replay with another body or another attempt replaces nothing, and prolongs nothing."""
    inbox = EarlyCallbackBuffer()
    first = notice("t", ATTEMPT_ID)
    inbox.put(first, 0.0)
    inbox.put(notice("t", OTHER_ATTEMPT, URL(FILE_URL)), 800.0)

    assert 1 == len(inbox)
    assert () == inbox.find_by_attempt(OTHER_ATTEMPT, 800.0)
    assert ("t",) == inbox.find_by_attempt(ATTEMPT_ID, 899.0)
    assert inbox.pop("t", 899.0) is first

    inbox.put(first, 0.0)
    inbox.put(notice("t"), 800.0)
    assert inbox.pop("t", 900.0) is None


@pytest.mark.parametrize(
    ("age_s", "is_kept"), [(0.0, True), (899.999, True), (900.0, False), (1e9, False)]
)
def test_a_notice_is_kept_for_15_minutes(age_s, is_kept):
    """After 15 minutes a notice is forgotten, whoever asks for it and how."""
    inbox = EarlyCallbackBuffer()
    inbox.put(notice("t", ATTEMPT_ID), 100.0)

    assert (("t",) if is_kept else ()) == inbox.find_by_attempt(ATTEMPT_ID, 100.0 + age_s)
    assert is_kept is (inbox.pop("t", 100.0 + age_s) is not None)


def test_a_late_replay_is_kept_anew():
    """What was forgotten may come again, and is then kept for as long."""
    inbox = EarlyCallbackBuffer()
    inbox.put(notice("t"), 0.0)
    later = notice("t", ATTEMPT_ID)
    inbox.put(later, 900.0)

    assert inbox.pop("t", 1799.0) is later


def test_old_notices_make_room_for_new_ones():
    """What is too old is dropped when something arrives, and not only when asked for."""
    inbox = EarlyCallbackBuffer()
    for number in range(100):
        inbox.put(notice(f"t{number}"), float(number))
    assert 100 == len(inbox)

    inbox.put(notice("new"), 949.5)

    assert 51 == len(inbox)
    assert inbox.pop("t49", 949.5) is None
    assert inbox.pop("t50", 949.5) is not None


def test_the_10_001st_drops_the_oldest():
    """However many arrive, 10,000 are kept, and the oldest gives way."""
    inbox = EarlyCallbackBuffer()
    for number in range(MAX_BUFFERED):
        inbox.put(notice(f"t{number}", ATTEMPT_ID), 0.0)
    assert 10_000 == len(inbox)

    inbox.put(notice("t5000"), 1.0)  # Known: nothing gives way.
    assert ("t0", "t1") == inbox.find_by_attempt(ATTEMPT_ID, 1.0)[:2]

    for number in range(20_000):
        inbox.put(notice(f"u{number}", OTHER_ATTEMPT), 1.0)
        assert 10_000 == len(inbox)
    assert () == inbox.find_by_attempt(ATTEMPT_ID, 1.0)
    assert inbox.pop("u9999", 1.0) is None
    assert inbox.pop("u10000", 1.0) is not None


def test_the_notices_that_name_an_attempt_are_found():
    """A lost submit finds every task that names it, oldest first, and takes none away."""
    inbox = EarlyCallbackBuffer()
    inbox.put(notice("c", ATTEMPT_ID), 0.0)
    inbox.put(notice("a", OTHER_ATTEMPT), 1.0)
    inbox.put(notice("b", ATTEMPT_ID), 2.0)
    inbox.put(notice("d"), 3.0)

    for _ in range(2):
        assert ("c", "b") == inbox.find_by_attempt(ATTEMPT_ID, 4.0)
    assert ("a",) == inbox.find_by_attempt(OTHER_ATTEMPT, 4.0)
    assert () == inbox.find_by_attempt("0" * 32, 4.0)
    assert ("b",) == inbox.find_by_attempt(ATTEMPT_ID, 901.0)


def test_a_notice_does_not_change():
    """What was verified stays as it was verified."""
    with pytest.raises(AttributeError):
        notice().wav_url = URL(FILE_URL)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["keep", "keep", "keep", "take", "naming", "len"]),
        st.sampled_from([0, 0, 1, 299, 300, 899, 900]),
        st.sampled_from("abcdef"),
        st.sampled_from([None, "x", "y"]),
    ),
    max_size=60,
)


@given(steps=STEPS)
def test_the_inbox_does_what_a_naive_one_does(steps):
    """Any sequence of calls is answered as by a list that is searched and cut each time."""
    inbox = EarlyCallbackBuffer()
    naive: list[tuple[int, VerifiedCallback]] = []
    now = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(early_callbacks, "MAX_BUFFERED", 3)
        for call, passed, task_id, attempt_id in steps:
            now += passed
            if call == "len":
                assert len(naive) == len(inbox)
                continue
            naive = [(at, kept) for at, kept in naive if now - at < 900]
            if call == "keep":
                arrived = notice(task_id, attempt_id)
                same = [i for i, (_, kept) in enumerate(naive) if kept.task_id == task_id]
                if not same:
                    naive = [*naive, (now, arrived)][-3:]
                elif naive[same[0]][1].attempt_id is None:
                    arrived = arrived._replace(wav_url=None)
                    naive[same[0]] = (naive[same[0]][0], arrived)
                inbox.put(arrived, float(now))
            elif call == "take":
                found = [kept for _, kept in naive if kept.task_id == task_id]
                naive = [(at, kept) for at, kept in naive if kept.task_id != task_id]
                assert (found[0] if found else None) == inbox.pop(task_id, float(now))
            else:
                expected = [kept.task_id for _, kept in naive if kept.attempt_id == "x"]
                assert tuple(expected) == inbox.find_by_attempt("x", float(now))
