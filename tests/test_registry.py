"""The books: what each entry says, one method at a time."""

from __future__ import annotations

import datetime as dt

import attrs
import pytest
from yarl import URL

from kie_wav_async import TaskRecord, TaskState, Track, WavFile
from kie_wav_async.core import registry, timed_out_tasks
from kie_wav_async.core.registry import Registry
from kie_wav_async.core.state_machine import IllegalTransition, Origin, Phase, TaskEntry
from kie_wav_async.core.task_outcome import is_foreign
from kie_wav_async.errors import (
    AlreadyExistsError,
    ConversionFailedError,
    ConversionTimeoutError,
    KieWavError,
    NotFoundError,
)
from kie_wav_async.models import Statistics, UnknownSubmit

Books = Registry

TRACK = Track("5c79", "e1")
OTHER = Track("5c79", "e2")
#: 2027-01-15 08:00:00 UTC.
NOW_UNIX_S = 1_800_000_000.0
NOW = dt.datetime(2027, 1, 15, 8, tzinfo=dt.UTC)
LINK = URL("https://media.invalid/t1.wav")


@pytest.fixture
def books() -> Books:
    """Give empty books."""
    return Registry()


def queued(books: Books, track: Track = TRACK) -> TaskEntry:
    """Return an entry in the queue."""
    return books.enqueue(track)


def sending(books: Books, track: Track = TRACK, attempt_id: str = "a1") -> TaskEntry:
    """Return an entry on the wire."""
    entry = books.enqueue(track)
    books.send(entry, attempt_id, NOW_UNIX_S)
    return entry


def unknown(books: Books, track: Track = TRACK, attempt_id: str = "a1") -> TaskEntry:
    """Return an entry of unknown fate."""
    entry = sending(books, track, attempt_id)
    books.mark_unknown(entry, NOW_UNIX_S)
    return entry


def resent(books: Books, track: Track = TRACK) -> TaskEntry:
    """Return an entry on the wire whose first attempt, a1, is of unknown fate."""
    entry = unknown(books, track)
    books.retry(entry)
    books.send(entry, "a2", NOW_UNIX_S)
    return entry


def accepted(books: Books, track: Track = TRACK, task_id: str = "t1") -> TaskEntry:
    """Return an entry in flight, accepted at 100 s."""
    entry = sending(books, track)
    books.accept(entry, task_id, 100.0)
    return entry


def succeeded(books: Books, track: Track = TRACK, task_id: str = "t1") -> TaskEntry:
    """Return an entry that ended well."""
    entry = accepted(books, track, task_id)
    assert books.observe(entry, record(wav_url=LINK), 130.0, "poll")
    return entry


def record(
    state: TaskState = TaskState.SUCCEEDED, wav_url: URL | None = None, **fields: object
) -> TaskRecord:
    """Return what the service says of task t1."""
    return TaskRecord(task_id="t1", state=state, wav_url=wav_url, **fields)


PENDING = record(TaskState.PENDING)


def counted(books: Books) -> dict[str, int]:
    """Return the counters that are not 0."""
    figures = books.statistics()
    names = [name.name for name in Statistics.__attrs_attrs__]
    return {name: getattr(figures, name) for name in names if getattr(figures, name)}


class TestSubmit:
    def test_empty_books_know_nothing(self, books: Books) -> None:
        """New books hold no entry, no doubt and no figure but 0."""
        assert books.find(TRACK) is None
        assert books.find_task("t1") is None
        assert books.find_result(TRACK) is None
        assert books.find_unknown(TRACK) is None
        assert books.unknown_submit("a1") is None
        assert () == books.unknown_submits() == books.waiting() == tuple(books.in_flight())
        assert (0, 0, 0) == (books.sending, books.used_slots, books.charges)
        assert Statistics() == books.statistics()

    def test_a_queued_entry_is_found_by_its_track(self, books: Books) -> None:
        """A track in the queue has an entry, and takes no place."""
        entry = queued(books)

        assert (Phase.QUEUED, TRACK) == (entry.phase, entry.track)
        assert books.find(TRACK) is entry
        assert (entry,) == books.waiting()
        assert (0, 0) == (books.sending, books.used_slots)
        assert {} == counted(books)

    @pytest.mark.parametrize("make", [queued, sending, unknown, accepted])
    def test_a_track_has_one_entry_at_a_time(self, books: Books, make: object) -> None:
        """A track that has an entry not terminal is not put into the queue again."""
        entry = make(books)

        with pytest.raises(IllegalTransition, match=r"e1.* has an entry already$"):
            books.enqueue(TRACK)

        assert books.find(TRACK) is entry

    def test_a_submit_on_the_wire_takes_a_place(self, books: Books) -> None:
        """A submit that goes out is counted, named, dated, and takes a place."""
        entry = sending(books)

        assert Phase.SUBMITTING is entry.phase
        assert ("a1", NOW_UNIX_S) == (entry.attempt_id, entry.submitted_unix_s)
        assert (entry,) == books.waiting()
        assert (1, 1, 0) == (books.sending, books.used_slots, books.charges)
        assert {"submitted": 1} == counted(books)

    def test_a_postponed_submit_gives_its_place_back(self, books: Books) -> None:
        """A submit that created nothing waits again, and takes no place meanwhile."""
        entry = sending(books)
        books.requeue(entry)

        assert Phase.QUEUED is entry.phase
        assert books.find(TRACK) is entry
        assert (0, 0) == (books.sending, books.used_slots)

        books.send(entry, "a2", NOW_UNIX_S + 1)
        assert ("a2", NOW_UNIX_S + 1) == (entry.attempt_id, entry.submitted_unix_s)
        assert {"submitted": 2} == counted(books)

    @pytest.mark.parametrize("make", [queued, sending])
    def test_a_refused_submit_is_over(self, books: Books, make: object) -> None:
        """A refused submit leaves the books with its error, and costs nothing."""
        entry = make(books)
        error = KieWavError("no")
        books.reject(entry, error)

        assert Phase.REJECTED is entry.phase
        assert entry.outcome is error
        assert books.find(TRACK) is None
        assert () == books.waiting()
        assert books.find_result(TRACK) is None
        assert (0, 0, 0) == (books.sending, books.used_slots, books.charges)
        assert not books.statistics().failed

    def test_a_withdrawn_submit_is_over(self, books: Books) -> None:
        """A withdrawn submit leaves the books with its error, uncounted."""
        entry = queued(books)
        error = KieWavError("nobody waits")
        books.cancel(entry, error)

        assert Phase.CANCELLED is entry.phase
        assert entry.outcome is error
        assert books.find(TRACK) is None
        assert {} == counted(books)

    def test_a_submit_on_the_wire_is_not_withdrawn(self, books: Books) -> None:
        """What may be charged at any moment cannot be withdrawn."""
        entry = sending(books)

        with pytest.raises(IllegalTransition):
            books.cancel(entry, KieWavError("too late"))

        assert (Phase.SUBMITTING, None) == (entry.phase, entry.outcome)
        assert books.find(TRACK) is entry

    def test_an_accepted_submit_is_in_flight(self, books: Books) -> None:
        """An accepted submit keeps its place, is found by its task, and is a charge."""
        entry = accepted(books)

        assert Phase.ACCEPTED is entry.phase
        assert Origin.SUBMITTED is entry.origin
        assert ("t1", 100.0) == (entry.task_id, entry.accepted_mono_s)
        assert books.find(TRACK) is books.find_task("t1") is entry
        assert [entry] == [*books.in_flight()]
        assert () == books.waiting()
        assert (0, 1, 1) == (books.sending, books.used_slots, books.charges)
        assert {"submitted": 1, "accepted": 1, "in_flight": 1} == counted(books)

    def test_what_is_in_flight_is_told_oldest_first(self, books: Books) -> None:
        """The entries in flight come in the order in which their tasks became known."""
        made = [accepted(books, Track("5c79", f"e{n}"), f"t{n}") for n in (3, 1, 2)]
        queued(books, OTHER.__class__("5c79", "e9"))

        assert made == [*books.in_flight()]


class TestDoubt:
    def test_a_lost_submit_is_a_doubt(self, books: Books) -> None:
        """A lost submit gives its place back and stays in the books as a doubt."""
        entry = sending(books)
        doubt = books.mark_unknown(entry, NOW_UNIX_S)

        assert UnknownSubmit(track=TRACK, attempt_id="a1", at=NOW) == doubt
        assert Phase.UNKNOWN is entry.phase
        assert books.find(TRACK) is entry
        assert (entry,) == books.waiting()
        assert (doubt,) == books.unknown_submits()
        assert doubt is books.unknown_submit("a1") is books.find_unknown(TRACK)
        assert books.find_unknown(OTHER) is None
        assert books.has_unknown_submit(entry)
        assert (0, 0, 1) == (books.sending, books.used_slots, books.charges)
        assert {"submitted": 1, "unknown": 1} == counted(books)

    def test_others_are_not_in_doubt(self, books: Books) -> None:
        """A doubt is about its own track only."""
        unknown(books)

        assert not books.has_unknown_submit(queued(books, OTHER))
        assert not books.has_unknown_submit(books.attach("t9", None, 0.0))

    def test_a_repeat_starts_counting_anew(self, books: Books) -> None:
        """An entry sent again after a doubt has all its attempts, and the doubt stands."""
        entry = unknown(books)
        entry.attempts = 2
        books.retry(entry)

        assert (Phase.QUEUED, 0) == (entry.phase, entry.attempts)
        assert books.has_unknown_submit(entry)
        assert 1 == books.charges

    def test_a_second_doubt_may_be_a_second_charge(self, books: Books) -> None:
        """A repeat that is lost too adds a doubt, and may have been a double charge."""
        entry = resent(books)
        books.mark_unknown(entry, NOW_UNIX_S)

        assert ["a1", "a2"] == [doubt.attempt_id for doubt in books.unknown_submits()]
        assert "a2" == books.find_unknown(TRACK).attempt_id
        assert 2 == books.charges
        assert {"submitted": 2, "unknown": 2, "possible_double_charges": 1} == counted(books)

    def test_an_accepted_repeat_may_be_a_second_charge(self, books: Books) -> None:
        """A repeat that is accepted leaves the doubt, and may have been a double charge."""
        entry = resent(books)
        books.accept(entry, "t1", 100.0)

        assert ["a1"] == [doubt.attempt_id for doubt in books.unknown_submits()]
        assert (0, 1, 2) == (books.sending, books.used_slots, books.charges)
        expected = {"submitted": 2, "accepted": 1, "unknown": 1, "in_flight": 1}
        assert {**expected, "possible_double_charges": 1} == counted(books)

    @pytest.mark.parametrize("is_sent", [False, True])
    def test_a_repeat_that_came_to_nothing_relapses(self, books: Books, *, is_sent: bool) -> None:
        """A repeat that created nothing, or was never sent, leaves the entry in its doubt."""
        entry = unknown(books)
        books.retry(entry)
        if is_sent:
            books.send(entry, "a2", NOW_UNIX_S)
        doubt = books.return_to_unknown(entry)

        assert "a1" == doubt.attempt_id
        assert Phase.UNKNOWN is entry.phase
        assert books.find(TRACK) is entry
        assert (0, 0, 1) == (books.sending, books.used_slots, books.charges)

    @pytest.mark.parametrize("make", [queued, sending])
    def test_without_a_doubt_nothing_relapses(self, books: Books, make: object) -> None:
        """An entry without a doubt does not relapse, and stays as it is."""
        entry = make(books)
        phase, sending_before = entry.phase, books.sending

        with pytest.raises(IllegalTransition, match=r"e1.* is not in doubt$"):
            books.return_to_unknown(entry)

        assert (phase, sending_before) == (entry.phase, books.sending)

    @pytest.mark.parametrize("end", [Registry.reject, Registry.cancel])
    def test_a_doubt_is_not_ended_as_free(self, books: Books, end: object) -> None:
        """An entry in doubt cannot end as refused or withdrawn, which would read uncharged."""
        entry = unknown(books)
        with pytest.raises(IllegalTransition, match=r"e1.* is in doubt$"):
            end(books, entry, KieWavError("no"))
        assert Phase.UNKNOWN is entry.phase

        books.retry(entry)
        with pytest.raises(IllegalTransition, match=r"e1.* is in doubt$"):
            end(books, entry, KieWavError("no"))
        assert Phase.QUEUED is entry.phase

        books.send(entry, "a2", NOW_UNIX_S)
        with pytest.raises(IllegalTransition, match=r"e1.* is in doubt$"):
            end(books, entry, KieWavError("no"))
        assert (Phase.SUBMITTING, None) == (entry.phase, entry.outcome)
        assert (1, 1) == (books.sending, books.used_slots)


class TestAdoption:
    def test_a_task_that_existed_is_no_charge_of_ours(self, books: Books) -> None:
        """A task named by a 409, without a doubt of ours, is followed and not counted as paid."""
        entry = sending(books)
        books.adopt_existing(entry, "t1", 100.0)

        assert (Phase.ACCEPTED, Origin.ADOPTED) == (entry.phase, entry.origin)
        assert books.find_task("t1") is entry
        assert (0, 1, 0) == (books.sending, books.used_slots, books.charges)
        assert {"submitted": 1, "adopted": 1, "in_flight": 1} == counted(books)

    def test_a_task_that_existed_leaves_the_doubt_until_its_record_is_known(
        self, books: Books
    ) -> None:
        """A 409 alone does not tell whose submit created the task."""
        entry = resent(books)
        books.adopt_existing(entry, "t1", 100.0)

        assert ["a1"] == [doubt.attempt_id for doubt in books.unknown_submits()]
        assert not entry.is_attributed
        assert (0, 1) == (books.statistics().accepted, books.statistics().adopted)

    def test_a_task_that_existed_has_nothing_to_explain_without_a_doubt(self, books: Books) -> None:
        """A task named by a 409 is known for what it is if no attempt is in doubt."""
        entry = sending(books)
        books.adopt_existing(entry, "t1", 100.0)

        assert entry.is_attributed

    @pytest.mark.parametrize(
        ("attempt_id", "is_ours"), [(None, True), ("a1", True), ("a9", False), ("", False)]
    )
    def test_a_record_explains_the_doubt_it_names(
        self, books: Books, attempt_id: str | None, *, is_ours: bool
    ) -> None:
        """A record that names our attempt, or none, explains the one doubt as a charge."""
        unknown(books, OTHER, "a9")
        entry = resent(books)
        books.adopt_existing(entry, "t1", 100.0)
        books.attribute(entry, attempt_id)

        left = [doubt.attempt_id for doubt in books.unknown_submits()]
        assert (["a9"] if is_ours else ["a9", "a1"]) == left
        assert entry.is_attributed
        assert int(is_ours) == books.statistics().accepted
        assert 2 == books.charges
        assert not books.statistics().possible_double_charges

    @pytest.mark.parametrize(
        ("attempt_id", "left"), [("a1", ["a2"]), ("a2", ["a1"]), (None, ["a1", "a2"])]
    )
    def test_a_record_explains_one_of_several_doubts(
        self, books: Books, attempt_id: str | None, left: list[str]
    ) -> None:
        """A task is explained by the attempt it names, and by none of several if it names none."""
        entry = resent(books)
        books.mark_unknown(entry, NOW_UNIX_S)
        books.retry(entry)
        books.send(entry, "a3", NOW_UNIX_S)
        books.adopt_existing(entry, "t1", 100.0)
        books.attribute(entry, attempt_id)

        assert left == [doubt.attempt_id for doubt in books.unknown_submits()]
        assert 2 == books.charges

    def test_each_doubt_explained_is_a_charge(self, books: Books) -> None:
        """Two lost submits whose tasks are named by 409s are two charges."""
        for track, name in ((TRACK, "a1"), (OTHER, "a2")):
            entry = unknown(books, track, name)
            books.retry(entry)
            books.send(entry, f"{name}-again", NOW_UNIX_S)
            books.adopt_existing(entry, f"t-{name}", 100.0)
            books.attribute(entry, name)

        assert (2, 2) == (books.statistics().accepted, books.charges)
        assert () == books.unknown_submits()

    def test_a_record_explains_nothing_where_no_doubt_is_left(self, books: Books) -> None:
        """A doubt resolved meanwhile is not explained a second time."""
        entry = resent(books)
        books.adopt_existing(entry, "t1", 100.0)
        books.mark_not_charged("a1")
        books.attribute(entry, "a1")

        assert entry.is_attributed
        assert (0, 0) == (books.statistics().accepted, books.charges)

    def test_the_users_word_counts_a_task_of_unread_record_once(self, books: Books) -> None:
        """A task named by a 409 and then by the user, for two tracks, is two charges in all."""
        for track, name in ((TRACK, "a1"), (OTHER, "a2")):
            entry = unknown(books, track, name)
            books.retry(entry)
            books.send(entry, f"{name}-again", NOW_UNIX_S)
            books.mark_unknown(entry, NOW_UNIX_S)
            books.retry(entry)
            books.send(entry, f"{name}-last", NOW_UNIX_S)
            books.adopt_existing(entry, f"t-{name}", 100.0)
            assert books.adopt_unknown(name, f"t-{name}", 101.0) is entry
            assert entry.is_attributed is True

        assert (2, 2) == (books.statistics().accepted, books.statistics().unknown)
        assert books.adopt_unknown("a1-again", "t-a1", 102.0).is_attributed is True
        assert 2 == books.statistics().accepted

    def test_a_record_that_names_none_of_several_leaves_it_open(self, books: Books) -> None:
        """A record without an attempt settles nothing while two attempts are in doubt."""
        entry = resent(books)
        books.mark_unknown(entry, NOW_UNIX_S)
        books.retry(entry)
        books.send(entry, "a3", NOW_UNIX_S)
        books.adopt_existing(entry, "t1", 100.0)
        books.attribute(entry, None)

        assert entry.is_attributed is False

    def test_every_submit_on_the_wire_counts(self, books: Books) -> None:
        """Two submits on the wire are two, and take two places."""
        sending(books, TRACK, "a1")
        sending(books, OTHER, "a2")

        assert (2, 2) == (books.sending, books.used_slots)

    def test_a_found_task_takes_a_place_again(self, books: Books) -> None:
        """A doubt whose task is found becomes a conversion in flight, and a charge."""
        entry = unknown(books)

        assert books.adopt_unknown("a1", "t1", 100.0) is entry
        assert (Phase.ACCEPTED, Origin.ADOPTED) == (entry.phase, entry.origin)
        assert ("t1", "a1", 100.0) == (entry.task_id, entry.attempt_id, entry.accepted_mono_s)
        assert books.find_task("t1") is entry
        assert () == books.unknown_submits()
        assert not books.has_unknown_submit(entry)
        assert (0, 1, 1) == (books.sending, books.used_slots, books.charges)
        expected = {"submitted": 1, "accepted": 1, "adopted": 1, "in_flight": 1}
        assert expected == counted(books)

    def test_a_track_that_went_on_is_followed_twice(self, books: Books) -> None:
        """A doubt resolved while its track is sent again is followed beside the repeat."""
        entry = resent(books)
        beside = books.adopt_unknown("a1", "t1", 100.0)

        assert beside is not entry
        assert Phase.SUBMITTING is entry.phase
        assert (TRACK, "a1") == (beside.track, beside.attempt_id)
        assert books.find(TRACK) is entry
        assert books.find_task("t1") is beside
        assert (1, 2) == (books.sending, books.used_slots)

        books.accept(entry, "t2", 110.0)
        assert [beside, entry] == [*books.in_flight()]
        assert books.observe(beside, record(wav_url=LINK), 120.0, "poll")
        assert books.find_result(TRACK) is beside
        assert books.find(TRACK) is entry
        assert 1 == books.used_slots

    def test_a_track_that_is_over_is_followed_again(self, books: Books) -> None:
        """A doubt resolved after its track has ended gives the track a new entry."""
        entry = resent(books)
        books.accept(entry, "t2", 100.0)
        books.time_out(entry, 5.0, 1_000.0)
        anew = books.adopt_unknown("a1", "t1", 110.0)

        assert anew is not entry
        assert books.find(TRACK) is anew
        assert 1 == books.used_slots

    @pytest.mark.parametrize("track", [None, TRACK, OTHER])
    def test_an_attached_task_can_be_found_for_a_doubt(
        self, books: Books, track: Track | None
    ) -> None:
        """A task attached before it is found for a doubt is followed once, as ours."""
        entry = resent(books)
        attached = books.attach("t1", track, 50.0)

        assert books.adopt_unknown("a1", "t1", 100.0) is attached
        assert Origin.ADOPTED is attached.origin
        assert (track or TRACK) == attached.track
        assert 50.0 == attached.accepted_mono_s
        assert books.find(TRACK) is entry
        assert (1, 2, 1) == (books.sending, books.used_slots, books.charges)
        expected = {"submitted": 2, "accepted": 1, "adopted": 1, "in_flight": 1}
        assert expected == counted(books)

    def test_a_repeat_that_was_given_the_lost_task_is_one_charge(self, books: Books) -> None:
        """A doubt resolved by the very task that its repeat was given adds no charge."""
        entry = resent(books)
        books.accept(entry, "t1", 100.0)
        before = counted(books)

        assert books.adopt_unknown("a1", "t1", 110.0) is entry
        assert Origin.SUBMITTED is entry.origin
        assert (1, 1) == (books.used_slots, books.charges)
        del before["unknown"]
        assert before == counted(books)

    def test_an_absolved_entry_is_given_back(self, books: Books) -> None:
        """A doubt that was not charged leaves an entry that may be withdrawn or sent again."""
        entry = unknown(books)

        assert books.mark_not_charged("a1") is entry
        assert Phase.UNKNOWN is entry.phase
        assert () == books.unknown_submits()
        assert 0 == books.charges
        books.cancel(entry, KieWavError("not charged"))
        assert books.find(TRACK) is None

    def test_an_entry_with_another_doubt_is_not_given_back(self, books: Books) -> None:
        """A track with two doubts waits for both."""
        entry = resent(books)
        books.mark_unknown(entry, NOW_UNIX_S)

        assert books.mark_not_charged("a2") is None
        assert "a1" == books.find_unknown(TRACK).attempt_id
        assert books.mark_not_charged("a1") is entry

    def test_an_entry_that_went_on_is_not_given_back(self, books: Books) -> None:
        """A track that is sent again, or is over, does not wait for the doubt."""
        entry = resent(books)
        assert books.mark_not_charged("a1") is None
        assert Phase.SUBMITTING is entry.phase

        books.mark_unknown(entry, NOW_UNIX_S)
        books.retry(entry)
        books.send(entry, "a3", NOW_UNIX_S)
        books.accept(entry, "t1", 100.0)
        books.time_out(entry, 5.0, 1_000.0)
        assert books.mark_not_charged("a2") is None

    @pytest.mark.parametrize("resolve", ["adopt", "mark_not_charged"])
    def test_a_doubt_is_resolved_once(self, books: Books, resolve: str) -> None:
        """What is no doubt, or no longer one, cannot be resolved."""

        def act() -> None:
            if resolve == "adopt":
                books.adopt_unknown("a1", "t1", 0.0)
            else:
                books.mark_not_charged("a1")

        unknown(books)
        act()
        with pytest.raises(IllegalTransition, match=r"^no unknown submit has the attempt_id 'a1'$"):
            act()


class TestAttach:
    def test_an_attached_task_takes_no_place(self, books: Books) -> None:
        """A task attached is in flight, takes no place and is no charge of ours."""
        entry = books.attach("t1", TRACK, 100.0)

        assert (Phase.ACCEPTED, Origin.ATTACHED) == (entry.phase, entry.origin)
        assert ("t1", "", 100.0) == (entry.task_id, entry.attempt_id, entry.accepted_mono_s)
        assert books.find(TRACK) is books.find_task("t1") is entry
        assert (0, 0, 0) == (books.sending, books.used_slots, books.charges)
        assert {"in_flight": 1} == counted(books)

        assert books.observe(entry, record(wav_url=LINK), 110.0, "poll")
        assert (0, 0) == (books.used_slots, books.statistics().in_flight)
        assert books.find_result(TRACK) is entry

    def test_a_task_without_a_track_is_found_by_its_id_only(self, books: Books) -> None:
        """A task attached without a track ends without being remembered."""
        entry = books.attach("t1", None, 100.0)

        assert entry.track is None
        assert [entry] == [*books.in_flight()]
        assert books.observe(entry, record(wav_url=LINK), 110.0, "poll")
        assert books.find_task("t1") is None
        assert entry.outcome.track is None

    def test_it_does_not_displace_a_submit(self, books: Books) -> None:
        """A task attached for a track that is in the queue leaves that one in its place."""
        entry = queued(books)
        attached = books.attach("t1", TRACK, 100.0)

        assert books.find(TRACK) is entry
        assert books.find_task("t1") is attached
        books.time_out(attached, 5.0, 1_000.0)
        assert books.find(TRACK) is entry

    def test_a_track_can_be_named_later(self, books: Books) -> None:
        """A task attached without a track is found by it once it is named."""
        entry = books.attach("t1", None, 100.0)
        books.set_track(entry, TRACK)

        assert TRACK == entry.track
        assert books.find(TRACK) is entry

    def test_naming_does_not_displace_a_submit(self, books: Books) -> None:
        """A track that has an entry keeps it when an attached task gets the same name."""
        entry = queued(books)
        attached = books.attach("t1", None, 100.0)
        books.set_track(attached, TRACK)

        assert books.find(TRACK) is entry
        assert TRACK == attached.track

    def test_it_has_no_submit(self, books: Books) -> None:
        """An entry without a track has no doubt that it could relapse into."""
        entry = books.attach("t1", None, 100.0)

        with pytest.raises(IllegalTransition, match=r"^an attached task has no submit$"):
            books.return_to_unknown(entry)

    def test_two_entries_may_follow_one_task(self, books: Books) -> None:
        """A task attached, and then named for a submit, is in flight for both until each ends."""
        attached = books.attach("t1", None, 50.0)
        entry = sending(books)
        books.adopt_existing(entry, "t1", 100.0)

        assert books.find_task("t1") is attached
        assert [attached, entry] == [*books.in_flight()]
        assert 2 == books.statistics().in_flight
        assert books.observe(entry, record(wav_url=LINK), 110.0, "poll")
        assert books.find_task("t1") is attached
        assert [attached] == [*books.in_flight()]


class TestNews:
    @pytest.mark.parametrize("settled_by", ["poll", "callback"])
    def test_a_success_is_settled_and_remembered(self, books: Books, settled_by: str) -> None:
        """A record with a file settles the entry with it, and frees its place."""
        entry = accepted(books)

        assert books.observe(entry, record(wav_url=LINK), 130.0, settled_by)
        assert Phase.SUCCEEDED is entry.phase
        expected = WavFile(
            task_id="t1",
            url=LINK,
            track=TRACK,
            settled_by=settled_by,
            expires_at=NOW + dt.timedelta(days=14),
        )
        assert expected == entry.outcome
        assert books.find(TRACK) is books.find_task("t1") is None
        assert books.find_result(TRACK) is entry
        assert (0, 0, 1) == (books.sending, books.used_slots, books.charges)
        expected_figures = {"submitted": 1, "accepted": 1, f"settled_by_{settled_by}": 1}
        assert expected_figures == counted(books)

    @pytest.mark.parametrize("origin", [Origin.ADOPTED, Origin.ATTACHED])
    def test_the_age_of_a_task_of_others_is_unknown(self, books: Books, origin: Origin) -> None:
        """A task that was adopted or attached has no date at which its file expires."""
        if origin is Origin.ATTACHED:
            entry = books.attach("t1", TRACK, 100.0)
        else:
            entry = sending(books)
            books.adopt_existing(entry, "t1", 100.0)
        assert books.observe(entry, record(wav_url=LINK), 130.0, "poll")

        assert entry.outcome.expires_at is None

    def test_a_failure_ends_the_wait(self, books: Books) -> None:
        """A record of a failure ends the entry with an error that holds it."""
        entry = accepted(books)
        bad = record(TaskState.FAILED, status="GENERATE_WAV_FAILED", error_message="no stems")

        assert books.observe(entry, bad, 130.0, "poll")
        assert Phase.FAILED is entry.phase
        assert isinstance(entry.outcome, ConversionFailedError)
        assert entry.outcome.record is bad
        assert (TRACK, "t1") == (entry.outcome.track, entry.outcome.task_id)
        assert str(entry.outcome).startswith("task t1 failed (no stems)")
        assert books.find(TRACK) is books.find_task("t1") is None
        assert books.find_result(TRACK) is None
        assert {"submitted": 1, "accepted": 1, "failed": 1} == counted(books)
        assert 0 == books.used_slots

    def test_a_failure_without_words_is_told_by_its_status(self, books: Books) -> None:
        """A failure without a message is told in the service's own word."""
        entry = accepted(books)
        books.observe(entry, record(TaskState.FAILED, status="CREATE_TASK_FAILED"), 130.0, "poll")

        assert str(entry.outcome).startswith("task t1 failed (CREATE_TASK_FAILED)")

    def test_pending_is_no_news(self, books: Books) -> None:
        """A record of a task that is not finished changes nothing."""
        entry = accepted(books)

        assert not books.observe(entry, PENDING, 1e6, "poll")
        assert (Phase.ACCEPTED, None) == (entry.phase, entry.outcome)
        assert 1 == books.statistics().in_flight

    def test_a_success_without_a_file_is_no_news(self, books: Books) -> None:
        """A record that says success and names no file changes nothing, however often."""
        entry = accepted(books)

        for _ in range(100):
            assert not books.observe(entry, record(), 1e6, "poll")
        assert (Phase.ACCEPTED, None) == (entry.phase, entry.outcome)

    @pytest.mark.parametrize(("later", "is_shown"), [(None, True), (PENDING, False)])
    def test_the_timeout_shows_a_success_without_a_file(
        self, books: Books, later: TaskRecord | None, *, is_shown: bool
    ) -> None:
        """It shows the answer if that was the last word; a missing record is none."""
        entry = accepted(books)
        books.observe(entry, attrs.evolve(record(), raw={"file": "here"}), 110.0, "poll")
        books.observe(entry, later, 120.0, "poll")
        books.time_out(entry, 900.0, 1_000.0)

        assert isinstance(entry.outcome, ConversionTimeoutError)
        assert ('{"file": "here"}' if is_shown else "") == entry.outcome.answer

    @pytest.mark.parametrize("origin", [Origin.SUBMITTED, Origin.ADOPTED])
    def test_a_task_may_be_missing_for_a_minute(self, books: Books, origin: Origin) -> None:
        """No record is no news until 60 s after acceptance, however often it is asked for."""
        entry = sending(books)
        if origin is Origin.SUBMITTED:
            books.accept(entry, "t1", 100.0)
        else:
            books.adopt_existing(entry, "t1", 100.0)

        for _ in range(9):
            assert not books.observe(entry, None, 159.9, "poll")
        assert books.observe(entry, None, 160.0, "poll")
        assert Phase.FAILED is entry.phase
        assert isinstance(entry.outcome, NotFoundError)
        assert (404, "no record of task t1") == (entry.outcome.code, entry.outcome.message)
        assert (TRACK, "t1") == (entry.outcome.track, entry.outcome.task_id)
        assert 1 == books.statistics().failed

    def test_an_attached_task_may_be_missing_twice(self, books: Books) -> None:
        """An attached task is given up at the third poll in a row without a record."""
        entry = books.attach("t1", TRACK, 100.0)

        assert not books.observe(entry, None, 1e6, "poll")
        assert not books.observe(entry, None, 1e6, "poll")
        assert not books.observe(entry, PENDING, 1e6, "poll")
        assert not books.observe(entry, None, 1e6, "poll")
        assert not books.observe(entry, None, 1e6, "poll")
        assert books.observe(entry, None, 1e6, "poll")
        assert isinstance(entry.outcome, NotFoundError)

    @pytest.mark.parametrize("state", list(TaskState))
    def test_an_adopted_task_of_another_track_ends(self, books: Books, state: TaskState) -> None:
        """A task taken over whose record names another track is not ours, whatever its state."""
        entry = sending(books)
        books.adopt_existing(entry, "t1", 100.0)
        foreign = record(state, wav_url=LINK, audio_id="e9")

        assert is_foreign(entry, foreign)
        assert books.observe(entry, foreign, 110.0, "poll")
        assert isinstance(entry.outcome, AlreadyExistsError)
        assert 409 == entry.outcome.code
        assert "task t1 converts another track, e9" == entry.outcome.message
        assert (TRACK, "t1") == (entry.outcome.track, entry.outcome.task_id)
        assert 1 == books.statistics().failed
        assert books.find_result(TRACK) is None

    def test_only_adopted_tasks_can_be_of_another_track(self, books: Books) -> None:
        """A task is foreign if it was taken over for one track and its record names another."""
        own = accepted(books)
        adopted = sending(books, OTHER, "a2")
        books.adopt_existing(adopted, "t2", 100.0)
        nameless = books.attach("t3", None, 100.0)
        nameless.origin = Origin.ADOPTED

        assert not is_foreign(own, record(audio_id="e9"))
        assert not is_foreign(adopted, record(audio_id="e2"))
        assert not is_foreign(adopted, record(audio_id=None))
        assert not is_foreign(nameless, record(audio_id="e9"))

    def test_later_news_is_counted_and_changes_nothing(self, books: Books) -> None:
        """News of an entry that is over is a duplicate if it is terminal, and no more."""
        entry = succeeded(books)
        outcome = entry.outcome
        before = books.statistics()

        assert not books.observe(entry, None, 1e6, "poll")
        assert not books.observe(entry, PENDING, 1e6, "poll")
        assert before == books.statistics()
        assert not books.observe(entry, record(TaskState.FAILED), 1e6, "poll")
        assert not books.observe(entry, record(wav_url=LINK), 1e6, "callback")
        assert 2 == books.statistics().duplicate_results
        assert entry.outcome is outcome
        assert Phase.SUCCEEDED is entry.phase
        assert 0 == books.used_slots

    def test_a_timeout_lets_the_task_go(self, books: Books) -> None:
        """A conversion that took too long leaves the books; its task may be attached again."""
        entry = accepted(books)
        books.time_out(entry, 900.0, 1_000.0)

        assert Phase.TIMED_OUT is entry.phase
        assert isinstance(entry.outcome, ConversionTimeoutError)
        assert 900.0 == entry.outcome.timeout_s
        assert (TRACK, "t1") == (entry.outcome.track, entry.outcome.task_id)
        assert books.find(TRACK) is books.find_task("t1") is None
        assert books.find_result(TRACK) is None
        assert (0, 1) == (books.used_slots, books.charges)
        assert {"submitted": 1, "accepted": 1, "timed_out": 1} == counted(books)
        assert books.attach("t1", TRACK, 2_000.0) is books.find_task("t1")

    def test_what_is_not_in_flight_does_not_time_out(self, books: Books) -> None:
        """Only a conversion in flight can run into its timeout."""
        entry = succeeded(books)

        with pytest.raises(IllegalTransition):
            books.time_out(entry, 900.0, 1_000.0)

        assert 0 == books.statistics().timed_out


class TestMemory:
    def test_ten_thousand_successes_are_remembered(self) -> None:
        """The books remember as many results as they say."""
        assert 10_000 == registry.RESULT_CACHE_SIZE

    def test_the_latest_successes_are_remembered(
        self, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When there are more successes than are remembered, the oldest is forgotten."""
        monkeypatch.setattr(registry, "RESULT_CACHE_SIZE", 2)
        made = [Track("5c79", f"e{n}") for n in range(3)]
        for number, track in enumerate(made):
            succeeded(books, track, f"t{number}")

        assert [False, True, True] == [books.find_result(track) is not None for track in made]

    def test_a_success_repeated_is_the_latest(
        self, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A track that succeeds again is remembered as new, with its new file."""
        monkeypatch.setattr(registry, "RESULT_CACHE_SIZE", 2)
        first = Track("5c79", "e0")
        succeeded(books, first, "t0")
        succeeded(books, TRACK)
        again = succeeded(books, first, "t2")
        succeeded(books, OTHER, "t3")

        assert books.find_result(first) is again
        assert books.find_result(TRACK) is None

    def test_a_later_failure_does_not_forget_the_file(self, books: Books) -> None:
        """A track that succeeded and then failed still has its file."""
        good = succeeded(books)
        bad = accepted(books, TRACK, "t2")
        books.observe(bad, record(TaskState.FAILED), 200.0, "poll")

        assert books.find_result(TRACK) is good

    def test_ten_thousand_ended_tasks_are_remembered(self) -> None:
        """The books remember the ids of as many tasks that ended as they say."""
        assert 10_000 == registry.ENDED_CACHE_SIZE

    def test_a_task_has_ended_once_its_conversion_has(self, books: Books) -> None:
        """A task is known to have ended when it succeeded or failed here, and not before."""
        good = accepted(books)
        bad = accepted(books, OTHER, "t2")
        assert not books.has_ended("t1")
        assert not books.has_ended("t2")
        assert books.observe(good, record(wav_url=LINK), 130.0, "callback")
        assert (True, False) == (books.has_ended("t1"), books.has_ended("t2"))
        assert books.observe(bad, record(TaskState.FAILED), 130.0, "poll")
        assert (True, True) == (books.has_ended("t1"), books.has_ended("t2"))
        assert not books.has_ended("t3")
        assert not books.has_ended("")

    def test_an_attached_task_ends_like_any_other(self, books: Books) -> None:
        """An attached task without a track is remembered by its id when it ends."""
        entry = books.attach("t1", None, 100.0)
        books.observe(entry, record(wav_url=LINK), 130.0, "poll")

        assert books.has_ended("t1")

    def test_a_task_that_timed_out_has_not_ended(self, books: Books) -> None:
        """A task that we only stopped waiting for may still finish, so it is not over."""
        books.time_out(accepted(books), 900.0, 1_000.0)

        assert not books.has_ended("t1")

    def test_a_submit_without_a_task_leaves_no_id(self, books: Books) -> None:
        """A submit that was refused or withdrawn has no task that could have ended."""
        books.reject(sending(books), KieWavError("no"))
        books.cancel(queued(books, OTHER), KieWavError("nobody waited"))

        assert not books.has_ended("")

    def test_the_latest_ended_tasks_are_remembered(
        self, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When more tasks ended than are remembered, the first to have ended is forgotten."""
        monkeypatch.setattr(registry, "ENDED_CACHE_SIZE", 2)
        for number in range(3):
            succeeded(books, Track("5c79", f"e{number}"), f"t{number}")

        assert [False, True, True] == [books.has_ended(f"t{number}") for number in range(3)]

    def test_a_task_that_ended_again_is_the_latest(
        self, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A task that was attached again and ended again is remembered as new."""
        monkeypatch.setattr(registry, "ENDED_CACHE_SIZE", 2)
        succeeded(books, TRACK, "t1")
        succeeded(books, OTHER, "t2")
        entry = books.attach("t1", None, 200.0)
        assert books.find_task("t1") is entry
        books.observe(entry, record(wav_url=LINK), 230.0, "poll")
        succeeded(books, Track("5c79", "e3"), "t3")

        assert [True, False, True] == [books.has_ended(f"t{number}") for number in (1, 2, 3)]

    def test_ended_tasks_are_bounded(self, books: Books) -> None:
        """However many tasks end, the ids of 10,000 are kept."""
        for number in range(10_002):
            entry = books.attach(f"t{number}", None, 0.0)
            books.observe(entry, record(TaskState.FAILED), 1.0, "poll")

        assert 10_000 == len(books._ended_tasks)
        assert [False, False, True] == [books.has_ended(f"t{number}") for number in range(3)]


def kept(
    books: Books, track: Track = TRACK, task_id: str = "t1", at_s: float = 1_000.0
) -> TaskEntry:
    """Return the entry that one leaves whose wait timed out."""
    books.time_out(accepted(books, track, task_id), 900.0, at_s)
    (entry,) = books.known(task_id)
    return entry


class TestKept:
    def test_the_bounds_are_the_documented_ones(self) -> None:
        """A task is kept for 14 days, and 100,000 of them at most."""
        assert (14 * 86_400.0, 100_000) == (
            timed_out_tasks.TIMED_OUT_KEPT_S,
            timed_out_tasks.MAX_TIMED_OUT,
        )

    def test_an_entry_that_timed_out_leaves_another(self, books: Books) -> None:
        """It knows what the first one did, is found by track and task, and takes no place."""
        first = accepted(books)
        books.time_out(first, 900.0, 1_000.0)
        (entry,) = books.known("t1")

        assert entry is not first
        assert (Phase.TIMED_OUT_KEPT, "t1", TRACK, "a1") == (
            entry.phase,
            entry.task_id,
            entry.track,
            entry.attempt_id,
        )
        assert books.find_timed_out(TRACK) is entry
        assert (None, None, ()) == (books.find(TRACK), books.find_task("t1"), (*books.in_flight(),))
        assert (0, 0, ()) == (books.used_slots, books.statistics().in_flight, books.waiting())

    def test_a_kept_entry_that_is_joined_is_in_flight_again(self, books: Books) -> None:
        """It begins anew, takes a place, and is not kept any more."""
        entry = kept(books)
        books.rejoin(entry, 5_000.0)

        assert (Phase.ACCEPTED, 5_000.0) == (entry.phase, entry.accepted_mono_s)
        assert entry is books.find(TRACK) is books.find_task("t1")
        assert (None, 1, 1) == (
            books.find_timed_out(TRACK),
            books.used_slots,
            books.statistics().in_flight,
        )
        assert {"submitted": 1, "accepted": 1, "in_flight": 1, "timed_out": 1} == counted(books)

    def test_news_of_a_kept_task_settles_it(self, books: Books) -> None:
        """Its file is remembered, with its age, and nothing of it is kept."""
        entry = kept(books)
        assert books.observe(entry, record(wav_url=LINK), 5_000.0, "callback")

        assert books.find_result(TRACK) is entry
        assert isinstance(entry.outcome, WavFile)
        assert entry.outcome.expires_at is not None
        assert ((), None, True) == (
            books.known("t1"),
            books.find_timed_out(TRACK),
            books.has_ended("t1"),
        )
        assert (0, 0) == (books.used_slots, books.statistics().in_flight)

    @pytest.mark.parametrize("news", [record(TaskState.FAILED), None])
    def test_bad_news_of_a_kept_task_ends_it(self, books: Books, news: TaskRecord | None) -> None:
        """A failure, or no record, is its end."""
        entry = kept(books)
        assert books.observe(entry, news, 5_000.0, "poll")
        assert (Phase.FAILED, ()) == (entry.phase, books.known("t1"))

    def test_no_news_leaves_it_kept(self, books: Books) -> None:
        """A record that is pending changes nothing."""
        entry = kept(books)
        assert not books.observe(entry, PENDING, 5_000.0, "poll")
        assert (entry,) == books.known("t1")

    def test_the_latest_of_a_track_is_found(self, books: Books) -> None:
        """Once that is over, the one before."""
        first, second = kept(books), kept(books, task_id="t2")
        assert books.find_timed_out(TRACK) is second
        books.observe(second, record(TaskState.FAILED), 5_000.0, "poll")
        assert books.find_timed_out(TRACK) is first

    @pytest.mark.parametrize(("track", "named"), [(None, TRACK), (OTHER, OTHER)])
    def test_a_task_that_is_still_followed_is_not_kept(
        self, books: Books, track: Track | None, named: Track
    ) -> None:
        """Whoever follows it still is found by its track, unless it is of another."""
        entry = accepted(books)
        follower = books.attach("t1", track, 500.0)
        books.time_out(entry, 900.0, 1_000.0)

        assert ((follower,), None) == (books.known("t1"), books.find_timed_out(TRACK))
        assert (named, follower) == (follower.track, books.find(named))

    def test_a_task_without_a_track_is_kept_too(self, books: Books) -> None:
        """An attached task is found by its id alone."""
        books.time_out(books.attach("t1", None, 100.0), 900.0, 1_000.0)
        (entry,) = books.known("t1")
        books.rejoin(entry, 2_000.0)

        assert (entry, 0) == (books.find_task("t1"), books.used_slots)

    def test_a_task_that_is_followed_anew_is_not_kept(self, books: Books) -> None:
        """One entry is enough for news of it."""
        kept(books)
        follower = books.attach("t1", None, 2_000.0)

        assert ((follower,), None) == (books.known("t1"), books.find_timed_out(TRACK))

    def test_the_first_to_time_out_is_forgotten_first(
        self, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where there are too many, or they are too old."""
        monkeypatch.setattr(timed_out_tasks, "MAX_TIMED_OUT", 2)
        for number in range(3):
            kept(books, Track("5c79", f"k{number}"), f"t{number}", 1_000.0 + number)
        assert [0, 1, 1] == [len(books.known(f"t{number}")) for number in range(3)]
        kept(books, TRACK, "t9", 1_001.0 + 14 * 86_400.0)
        assert [0, 1, 1] == [len(books.known(name)) for name in ("t1", "t2", "t9")]
        kept(books, OTHER, "t10", 10_000.0 + 28 * 86_400.0)
        assert [0, 0, 1] == [len(books.known(name)) for name in ("t2", "t9", "t10")]


class TestHints:
    def test_a_hint_without_a_record_is_no_miss(self, books: Books) -> None:
        """A poll that a callback caused does not count among the three an attached task has."""
        entry = books.attach("t1", None, 0.0)
        for _ in range(9):
            assert not books.observe(entry, None, 1.0, "poll", is_hint=True)
        for _ in range(2):
            assert not books.observe(entry, None, 1.0, "poll")
        assert not books.observe(entry, None, 1.0, "poll", is_hint=True)
        assert books.observe(entry, None, 1.0, "poll")
        assert isinstance(entry.outcome, NotFoundError)

    def test_a_hint_with_news_settles(self, books: Books) -> None:
        """A poll that a callback caused settles like any other if it brings news."""
        assert books.observe(accepted(books), record(wav_url=LINK), 130.0, "poll", is_hint=True)
        bad = accepted(books, OTHER, "t2")
        assert books.observe(bad, record(TaskState.FAILED), 130.0, "poll", is_hint=True)

    def test_a_hint_sees_that_a_record_came_back(self, books: Books) -> None:
        """A record that a callback made us find ends the row of misses."""
        entry = books.attach("t1", None, 0.0)
        for _ in range(2):
            books.observe(entry, None, 1.0, "poll")
        books.observe(entry, PENDING, 1.0, "poll", is_hint=True)
        for _ in range(2):
            assert not books.observe(entry, None, 1.0, "poll")
        assert books.observe(entry, None, 1.0, "poll")


def _lose_and_find(books: Books, track: Track, name: str) -> None:
    unknown(books, track, f"a{name}")
    books.adopt_unknown(f"a{name}", f"t{name}", 100.0)


def _lose_and_meet_again(books: Books, track: Track, name: str) -> None:
    entry = unknown(books, track, f"a{name}")
    books.retry(entry)
    books.send(entry, f"b{name}", NOW_UNIX_S)
    books.adopt_existing(entry, f"t{name}", 100.0)


def _lose_and_claim(books: Books, track: Track, name: str) -> None:
    entry = unknown(books, track, f"a{name}")
    books.retry(entry)
    books.attach(f"t{name}", None, 50.0)
    books.adopt_unknown(f"a{name}", f"t{name}", 100.0)


def _lose_twice(books: Books, track: Track, name: str) -> None:
    entry = unknown(books, track, f"a{name}")
    books.retry(entry)
    books.send(entry, f"b{name}", NOW_UNIX_S)
    books.mark_unknown(entry, NOW_UNIX_S)


def _lose_and_repeat(books: Books, track: Track, name: str) -> None:
    entry = unknown(books, track, f"a{name}")
    books.retry(entry)
    books.send(entry, f"b{name}", NOW_UNIX_S)
    books.accept(entry, f"t{name}", 100.0)


def _succeed_by_poll(books: Books, track: Track, name: str) -> None:
    entry = accepted(books, track, f"t{name}")
    books.observe(entry, record(wav_url=LINK), 130.0, "poll")
    books.observe(entry, record(wav_url=LINK), 130.0, "poll")


def _succeed_by_callback(books: Books, track: Track, name: str) -> None:
    books.observe(accepted(books, track, f"t{name}"), record(wav_url=LINK), 130.0, "callback")


def _fail(books: Books, track: Track, name: str) -> None:
    books.observe(accepted(books, track, f"t{name}"), record(TaskState.FAILED), 130.0, "poll")


def _time_out(books: Books, track: Track, name: str) -> None:
    books.time_out(accepted(books, track, f"t{name}"), 900.0, 1_000.0)


@pytest.mark.parametrize(
    "story",
    [
        _lose_and_find,
        _lose_and_meet_again,
        _lose_and_claim,
        _lose_twice,
        _lose_and_repeat,
        _succeed_by_poll,
        _succeed_by_callback,
        _fail,
        _time_out,
    ],
)
def test_what_happens_thrice_is_counted_thrice(books: Books, story: object) -> None:
    """Every figure of the books is a sum over all tracks."""
    story(books, TRACK, "1")
    once = counted(books)
    story(books, OTHER, "2")
    story(books, Track("5c79", "e3"), "3")

    assert {name: 3 * figure for name, figure in once.items()} == counted(books)


# --- who follows a task beside another -----------------------------------------------------


@pytest.mark.parametrize(
    "order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
)
def test_all_that_follow_a_task_are_known_until_they_end(
    books: Books, order: tuple[int, ...]
) -> None:
    """Whoever of those that follow one task ends first, the others still follow it."""
    followers = [books.attach("t1", None, 5.0)]
    followers += [accepted(books, Track("m", f"e{number}"), "t1") for number in range(2)]
    assert tuple(followers) == books.conversions_of("t1") == tuple(books.in_flight())
    left = list(followers)
    for number in order:
        books.time_out(followers[number], 9.0, 1_000.0)
        left.remove(followers[number])
        assert tuple(left) == books.conversions_of("t1") == tuple(books.in_flight())
        assert (left[0] if left else None) is books.find_task("t1")
    assert books.attach("t1", None, 9.0).phase is Phase.ACCEPTED


@pytest.mark.parametrize("is_ours", [True, False])
def test_adopted_task_that_ended_here(books, is_ours) -> None:
    """A task that a later submit made, and that has ended here, is not that of one in doubt."""
    entry = resent(books)
    if is_ours:
        books.accept(entry, "t1", 0.0)
    else:
        books.return_to_unknown(entry)
        entry = books.attach("t1", None, 0.0)
    books.observe(entry, TaskRecord("t1", TaskState.SUCCEEDED, wav_url=LINK), 1.0, "poll")
    again = books.find(TRACK) or books.enqueue(TRACK)
    if again.phase is Phase.UNKNOWN:
        books.retry(again)
    books.send(again, "a3", NOW_UNIX_S)
    books.adopt_existing(again, "t1", 2.0)
    assert is_ours is again.is_attributed


@pytest.mark.parametrize("made_by", ["a submit", "a 409", "somebody else"])
def test_adopted_task_that_is_followed_here(books, made_by) -> None:
    """A task that is followed already, and whose making is known, is not of a later doubt."""
    if made_by == "somebody else":
        entry = books.attach("t1", TRACK, 0.0)
    else:
        entry = sending(books)
        take = books.accept if made_by == "a submit" else books.adopt_existing
        take(entry, "t1", 0.0)
    # Its wait times out, the track is submitted twice more, and the first of that is lost.
    books.time_out(entry, 9.0, 100.0)
    _ = books.rejoin(books.known("t1")[0], 200.0)
    again = TaskEntry(TRACK)
    books.send(again, "a2", NOW_UNIX_S)
    books.mark_unknown(again, NOW_UNIX_S)
    books.retry(again)
    books.send(again, "a3", NOW_UNIX_S)
    before = books.statistics().accepted

    books.adopt_existing(again, "t1", 300.0)

    assert (made_by != "somebody else") is again.is_attributed
    assert before == books.statistics().accepted


@pytest.mark.parametrize("way", ["named by a 409", "attached"])
def test_task_that_was_counted_stays_counted(books, way) -> None:
    """A task that a submit made is that submit's, however often it is met and ends again."""
    entry = accepted(books)
    books.observe(entry, record(TaskState.FAILED), 130.0, "poll")
    if way == "attached":
        entry = books.attach("t1", TRACK, 200.0)
    else:
        entry = sending(books, attempt_id="a2")
        books.adopt_existing(entry, "t1", 200.0)
    books.observe(entry, record(TaskState.FAILED), 230.0, "poll")
    entry = unknown(books, attempt_id="a3")
    books.retry(entry)
    books.send(entry, "a4", NOW_UNIX_S)

    books.adopt_existing(entry, "t1", 300.0)

    assert entry.is_attributed
    assert (1, 2) == (books.statistics().accepted, books.charges)


def test_is_sending(books) -> None:
    """An attempt is on the wire until its fate is known."""
    entry = sending(books)
    assert (True, False) == (books.is_sending("a1"), books.is_sending("a2"))
    books.mark_unknown(entry, NOW_UNIX_S)
    assert not books.is_sending("a1")


class TestRestore:
    """What a ledger knows of earlier runs."""

    @staticmethod
    def doubt(track: Track = TRACK, attempt_id: str = "a0") -> UnknownSubmit:
        """Return a submit of an earlier run that may have been accepted."""
        return UnknownSubmit(track=track, attempt_id=attempt_id, at=NOW)

    def test_charges(self, books) -> None:
        """What all runs were or may have been charged counts; the session's own figures do not."""
        books.restore_unknown_submits(3, [self.doubt()])
        books.accept(sending(books, OTHER), "t1", 0.0)
        assert 5 == books.charges
        counted = books.statistics()
        assert (1, 1, 1) == (counted.accepted, counted.unknown, counted.submitted)

    def test_doubts_make_no_entries(self, books) -> None:
        """A track is not held up by a doubt about an earlier submit of it."""
        books.restore_unknown_submits(0, [self.doubt(), self.doubt(OTHER, "b0")])
        assert ("a0", "b0") == tuple(doubt.attempt_id for doubt in books.unknown_submits())
        assert (None, ()) == (books.find(TRACK), books.waiting())
        assert "a0" == books.find_unknown(TRACK).attempt_id

    def test_unknown(self, books) -> None:
        """A track of which there are doubts alone has one entry, in doubt, that can be repeated."""
        books.restore_unknown_submits(0, [self.doubt()])
        books.restore_unknown(TRACK)
        entry = books.find(TRACK)
        assert Phase.UNKNOWN is entry.phase
        books.restore_unknown(TRACK)
        assert entry is books.find(TRACK)
        books.retry(entry)
        books.send(entry, "a1", NOW_UNIX_S)
        assert entry.may_double_charge

    def test_unknown_without_a_doubt(self, books) -> None:
        """A track that nothing here doubts gets no entry."""
        books.restore_unknown(TRACK)
        assert books.find(TRACK) is None

    def test_unknown_while_queued(self, books) -> None:
        """A track that is asked for again stays asked for."""
        books.restore_unknown_submits(0, [self.doubt()])
        entry = books.enqueue(TRACK)
        books.restore_unknown(TRACK)
        assert (entry, Phase.QUEUED) == (books.find(TRACK), entry.phase)

    def test_task_of_ours(self, books) -> None:
        """A task that our submit made is followed again, takes a place, and keeps its age."""
        at = NOW_UNIX_S - 1_000.0
        entry = books.restore(TRACK, "t1", 7.0, attempt_id="a0", submitted_unix_s=at)
        assert entry is books.find(TRACK) is books.find_task("t1")
        assert (Phase.ACCEPTED, Origin.SUBMITTED) == (entry.phase, entry.origin)
        assert ("a0", 7.0, True) == (entry.attempt_id, entry.accepted_mono_s, entry.is_attributed)
        assert (1, 1) == (books.used_slots, books.statistics().in_flight)
        record = TaskRecord("t1", TaskState.SUCCEEDED, wav_url=LINK)
        assert books.observe(entry, record, 8.0, "poll")
        sent_at = dt.datetime.fromtimestamp(at, dt.UTC)
        assert sent_at + dt.timedelta(days=14) == entry.outcome.expires_at
        assert 0 == books.used_slots

    def test_task_of_somebodys(self, books) -> None:
        """A task that existed before our submit has no known age, and explains no doubt."""
        entry = books.restore(TRACK, "t1", 7.0, attempt_id="a0", submitted_unix_s=None)
        assert (Origin.ADOPTED, True) == (entry.origin, entry.is_attributed)
        assert 0 == books.statistics().adopted

    @pytest.mark.parametrize("submitted", [NOW_UNIX_S, None])
    def test_task_beside_a_doubt(self, books, submitted) -> None:
        """A task may be that of the submit in doubt, until its record says whose it is."""
        books.restore_unknown_submits(1, [self.doubt()])
        entry = books.restore(TRACK, "t1", 7.0, attempt_id="a1", submitted_unix_s=submitted)
        assert not entry.is_attributed
        assert "a0" == books.attribute(entry, "a0")
        assert (2, 0) == (books.charges, books.statistics().unknown)

    def test_task_of_ours_explains_no_doubt_by_silence(self, books) -> None:
        """A record that names no attempt explains no doubt if the task has its submit."""
        books.restore_unknown_submits(1, [self.doubt()])
        entry = books.restore(TRACK, "t1", 7.0, attempt_id="a1", submitted_unix_s=NOW_UNIX_S)
        assert books.attribute(entry, None) is None
        assert not entry.is_attributed
        assert books.attribute(entry, "a1") is None
        assert entry.is_attributed
        assert 1 == books.statistics().unknown

    def test_task_that_is_claimed(self, books) -> None:
        """A doubt whose task the ledger knew before the books did is counted as accepted."""
        books.restore_unknown_submits(0, [self.doubt()])
        entry = books.restore(TRACK, "t1", 7.0, attempt_id="a0", submitted_unix_s=NOW_UNIX_S)
        assert entry is books.adopt_unknown("a0", "t1", 8.0)
        assert (1, 1) == (books.charges, books.used_slots)

    def test_task_for_who_waits(self, books) -> None:
        """Who waits for a track in doubt gets the task that there is of it."""
        books.restore_unknown_submits(0, [self.doubt()])
        books.restore_unknown(TRACK)
        waited_for = books.find(TRACK)
        entry = books.restore(TRACK, "t1", 7.0, attempt_id="a1", submitted_unix_s=NOW_UNIX_S)
        assert waited_for is entry
        assert (Phase.ACCEPTED, 1) == (entry.phase, books.used_slots)

    def test_result(self, books) -> None:
        """A success of an earlier run is remembered like one of this."""
        wav = WavFile("t1", LINK, TRACK, "poll", None)
        entry = books.restore_result(TRACK, wav)
        assert entry is books.find_result(TRACK)
        assert (wav, Phase.SUCCEEDED, "t1") == (entry.outcome, entry.phase, entry.task_id)
        assert books.find(TRACK) is None
        assert (0, 0) == (books.used_slots, books.statistics().in_flight)

    def test_results_are_not_remembered_for_ever(self, books, monkeypatch) -> None:
        """Of many successes of earlier runs the last are remembered."""
        monkeypatch.setattr(registry, "RESULT_CACHE_SIZE", 2)
        tracks = [Track("5c79", f"r{n}") for n in range(3)]
        for n, each in enumerate(tracks):
            books.restore_result(each, WavFile(f"t{n}", LINK, each, "poll", None))
        assert [False, True, True] == [books.find_result(each) is not None for each in tracks]

    def test_overturn(self, books) -> None:
        """A success that could not be written down is an error, and is not remembered."""
        entry = sending(books)
        books.accept(entry, "t1", 0.0)
        books.observe(entry, TaskRecord("t1", TaskState.SUCCEEDED, wav_url=LINK), 1.0, "poll")
        error = KieWavError("full")
        books.replace_outcome(entry, error)
        assert (error, None) == (entry.outcome, books.find_result(TRACK))
        assert not books.has_ended("t1")

    def test_overturn_what_is_not_remembered(self, books) -> None:
        """An end that was not remembered is overturned too, and leaves another's be."""
        first = sending(books)
        books.accept(first, "t1", 0.0)
        attached = books.attach("t2", None, 0.0)
        for entry in (first, attached):
            task_id = entry.task_id
            books.observe(
                entry, TaskRecord(task_id, TaskState.SUCCEEDED, wav_url=LINK), 1.0, "poll"
            )
        error = KieWavError("full")
        books.replace_outcome(attached, error)
        assert (error, first) == (attached.outcome, books.find_result(TRACK))
        newer = books.restore_result(TRACK, first.outcome)
        books.replace_outcome(first, error)
        assert newer is books.find_result(TRACK)


# --- the user's word, taken back ----------------------------------------------------------------


def figures(books: Books) -> tuple[int, int, int, int, int]:
    """Return what a word counts for."""
    counted = books.statistics()
    return counted.accepted, counted.adopted, counted.unknown, counted.in_flight, books.used_slots


def test_a_word_is_remembered_until_it_is_taken_back(books: Books) -> None:
    """Only the user's word can be taken back, and it is known which it was."""
    entry = unknown(books)
    doubt = books.unknown_submit("a1")
    assert not books.is_resolution("a1", "t1")
    books.adopt_unknown("a1", "t1", 0.0, is_resolution=True)
    assert doubt == books.resolved_submit("a1")
    assert (True, False, False) == tuple(books.is_resolution("a1", t) for t in ("t1", "t2", None))
    assert entry is books.retract("a1")
    assert (doubt, None) == (books.unknown_submit("a1"), books.resolved_submit("a1"))

    books.adopt_unknown("a1", "t1", 0.0)
    assert books.resolved_submit("a1") is None


def test_a_retracted_task_leaves_all_as_it_was(books: Books) -> None:
    """The entry is of unknown fate again, and no counter tells of the task."""
    entry = unknown(books)
    before = figures(books)
    books.adopt_unknown("a1", "t1", 0.0, is_resolution=True)
    assert (1, 1, 0, 1, 1) == figures(books)
    entry.missing_count, entry.unread_response = 2, "an answer"
    entry.is_called_back = True
    assert entry is books.retract("a1")
    assert before == figures(books)
    assert (Phase.UNKNOWN, "", 0, "", False) == (
        entry.phase,
        entry.task_id,
        entry.missing_count,
        entry.unread_response,
        entry.is_called_back,
    )
    assert books.find_task("t1") is None
    assert entry is books.find(TRACK)
    assert entry is books.adopt_unknown("a1", "t2", 0.0, is_resolution=True)
    assert (1, 1, 0, 1, 1) == figures(books)


def test_a_word_of_no_charge_is_taken_back(books: Books) -> None:
    """The attempt is unknown again; there is no task to leave."""
    entry = unknown(books)
    assert entry is books.mark_not_charged("a1", is_resolution=True)
    assert books.is_resolution("a1", None)
    assert books.retract("a1") is None
    assert 1 == books.charges


def test_a_result_of_a_retracted_task_is_forgotten(books: Books) -> None:
    """A success is no result any more; another result of the track stays."""
    record = TaskRecord("t1", TaskState.SUCCEEDED, wav_url=LINK)
    for is_replaced in (False, True):
        entry = unknown(books)
        books.adopt_unknown("a1", "t1", 0.0, is_resolution=True)
        assert books.observe(entry, record, 0.0, "poll")
        if is_replaced:
            wav = WavFile("t9", LINK, TRACK, "poll", None)
            other = books.restore_result(TRACK, wav)
        assert books.has_ended("t1")
        assert books.retract("a1") is None
        assert not books.has_ended("t1")
        assert (other if is_replaced else None) is books.find_result(TRACK)
        _ = books.mark_not_charged("a1")


def test_a_task_found_beside_another_attempt_goes_on_without_the_track(books: Books) -> None:
    """Where the track went on, the wrong task is nobody's, and the right one is followed."""
    entry = resent(books)
    found = books.adopt_unknown("a1", "t1", 0.0, is_resolution=True)
    assert ("t1", Phase.SUBMITTING) == (entry.discovered_task_id, entry.phase)
    assert books.retract("a1") is None
    assert ("", None) == (entry.discovered_task_id, found.track)
    assert found is books.find_task("t1")
    assert entry is books.find(TRACK)
    assert (0, 0, 1, 1, 2) == figures(books)


@pytest.mark.parametrize("is_named", [False, True])
def test_a_claimed_task_is_attached_again(books: Books, *, is_named: bool) -> None:
    """A task that was attached before is nobody's once the word is taken back."""
    books.restore_unknown_submits(0, [UnknownSubmit(TRACK, "a1", NOW)])
    attached = books.attach("t1", None, 0.0)
    before = figures(books)
    if is_named:
        other = books.attach("t2", TRACK, 0.0)
        before = figures(books)
    assert attached is books.adopt_unknown("a1", "t1", 0.0, is_resolution=True)
    assert books.retract("a1") is None
    assert before == figures(books)
    assert (Origin.ATTACHED, None) == (attached.origin, attached.track)
    assert (other if is_named else None) is books.find(TRACK)


def test_a_task_that_a_later_submit_was_given_stays_with_it(books: Books) -> None:
    """Taken back, a word on an earlier attempt only uncounts it."""
    entry = resent(books)
    books.adopt_existing(entry, "t1", 0.0)
    before = figures(books)
    assert entry is books.adopt_unknown("a1", "t1", 0.0, is_resolution=True)
    after = figures(books)
    assert books.retract("a1") is None
    assert before == figures(books)
    assert (entry, TRACK) == (books.find_task("t1"), entry.track)
    assert entry is books.adopt_unknown("a1", "t1", 0.0)
    assert after == figures(books)


def test_the_last_ten_thousand_words_are_remembered(books: Books) -> None:
    """Of 10,001 words the oldest cannot be taken back."""
    assert 10_000 == registry.RESOLUTION_CACHE_SIZE
    tracks = [Track("5c79", f"x{n}") for n in range(10_001)]
    books.restore_unknown_submits(0, [UnknownSubmit(t, f"a{n}", NOW) for n, t in enumerate(tracks)])
    for n in range(10_001):
        _ = books.mark_not_charged(f"a{n}", is_resolution=True)
    assert books.resolved_submit("a0") is None
    assert books.resolved_submit("a1") is not None


@pytest.mark.parametrize("is_joined_again", [False, True])
def test_a_retracted_task_whose_wait_timed_out_is_nobody_s(
    books: Books, *, is_joined_again: bool
) -> None:
    """A wrong task is not kept for its track, nor followed for it once it was joined again."""
    unknown(books)
    entry = books.adopt_unknown("a1", "t1", 0.0, is_resolution=True)
    books.time_out(entry, 900.0, 900.0)
    kept = books.find_timed_out(TRACK)
    assert kept is not None
    if is_joined_again:
        books.rejoin(kept, 1_000.0)
    back = books.retract("a1")
    assert (kept if is_joined_again else None) is back
    assert books.find_timed_out(TRACK) is None
    assert () == books.known("t1")
    assert "a1" == books.find_unknown(TRACK).attempt_id
