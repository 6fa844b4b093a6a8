"""
The books against a naive model, under any order of events.

The model restates the rules: an entry is a row, and every figure is counted from
the rows and from what the service really charged. An event is tried on any row
it is not meant for as well, and must then be refused and change nothing.
"""

from __future__ import annotations

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from yarl import URL

from kie_wav_async import TaskRecord, TaskState, Track
from kie_wav_async.core import registry, timed_out_tasks
from kie_wav_async.core.registry import Registry
from kie_wav_async.core.state_machine import IllegalTransition, Origin, Phase, TaskEntry
from kie_wav_async.errors import (
    AlreadyExistsError,
    ConversionFailedError,
    ConversionTimeoutError,
    KieWavError,
    NotFoundError,
)

REMEMBERED = 2
ENDED_REMEMBERED = 1
MAX_KEPT = 2
TRACKS = [Track("5c79", f"e{number}") for number in range(3)]
LINK = URL("https://media.invalid/x.wav")

_tracks = st.sampled_from(TRACKS)


@attrs.define(eq=False)
class Row:
    """One entry, as the model knows it."""

    entry: TaskEntry
    track: Track | None
    phase: str
    attempt_id: str = ""
    task_id: str = ""
    origin: str = "SUBMITTED"
    is_attributed: bool = True
    accepted_at: float = 0.0
    misses: int = 0
    ended_with: type | None = None


@attrs.define
class Attempt:
    """One submit: what the service did with it, which the books may not know."""

    track: Track
    is_charged: bool
    task_id: str


class BooksMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.bounds = (
            registry.RESULT_CACHE_SIZE,
            registry.ENDED_CACHE_SIZE,
            timed_out_tasks.MAX_TIMED_OUT,
        )
        registry.RESULT_CACHE_SIZE, registry.ENDED_CACHE_SIZE = REMEMBERED, ENDED_REMEMBERED
        timed_out_tasks.MAX_TIMED_OUT = MAX_KEPT
        self.books: Registry = Registry()
        self.rows: list[Row] = []
        self.occupant: dict[Track, Row] = {}
        self.followers: dict[str, list[Row]] = {}
        self.kept: dict[str, Row] = {}
        self.results: list[Row] = []
        self.ended: list[str] = []
        self.doubts: dict[str, Attempt] = {}
        self.charged: list[str] = []
        self.count = dict.fromkeys(
            ["submitted", "accepted", "adopted", "poll", "callback", "failed", "timed_out"], 0
        )
        self.doubles = 0
        self.duplicates = 0
        self.serial = 0
        self.now = 0.0

    def teardown(self) -> None:
        registry.RESULT_CACHE_SIZE, registry.ENDED_CACHE_SIZE, timed_out_tasks.MAX_TIMED_OUT = (
            self.bounds
        )

    @property
    def holder(self) -> dict[str, Row]:
        return {task_id: rows[0] for task_id, rows in self.followers.items()}

    # --- how the model finds its way ------------------------------------------------------

    def new_id(self, letter: str) -> str:
        self.serial += 1
        return f"{letter}{self.serial}"

    def doubts_of(self, track: Track | None) -> list[str]:
        return [name for name, attempt in self.doubts.items() if attempt.track == track]

    def living(self, *phases: str) -> list[Row]:
        return [row for row in self.rows if row.phase in phases]

    def enter(self, row: Row) -> None:
        self.rows.append(row)
        if row.track is not None:
            self.occupant.setdefault(row.track, row)

    def follow(self, row: Row, task_id: str, origin: str) -> None:
        row.phase, row.task_id, row.origin = "ACCEPTED", task_id, origin
        row.accepted_at = self.now
        self.followers.setdefault(task_id, []).append(row)
        kept = self.kept.pop(task_id, row)
        if kept is not row:
            self.rows.remove(kept)

    def end(self, row: Row, phase: str, ended_with: type | None) -> None:
        row.phase, row.ended_with = phase, ended_with
        if self.occupant.get(row.track) is row:
            del self.occupant[row.track]
        if self.kept.get(row.task_id) is row:
            del self.kept[row.task_id]
        elif row.task_id:
            self.followers[row.task_id].remove(row)
            if not self.followers[row.task_id]:
                del self.followers[row.task_id]
        if row.task_id and phase != "TIMED_OUT":
            self.ended = [old for old in self.ended if old != row.task_id] + [row.task_id]
            self.ended = self.ended[-ENDED_REMEMBERED:]
        if phase == "SUCCEEDED" and row.track is not None:
            self.results = [old for old in self.results if old.track != row.track] + [row]
            self.results = self.results[-REMEMBERED:]

    def pick(self, data: st.DataObject, *meant: str) -> Row:
        """Draw a row: mostly one that the event is meant for."""
        rows = self.living(*meant)
        if not rows or data.draw(st.integers(0, 9)) == 0:
            rows = self.rows
        return data.draw(st.sampled_from(rows))

    # --- the queue and the wire -----------------------------------------------------------

    @rule(track=_tracks)
    def enqueue(self, track: Track) -> None:
        if track in self.occupant:
            with pytest.raises(IllegalTransition):
                self.books.enqueue(track)
            return
        self.enter(Row(self.books.enqueue(track), track, "QUEUED"))

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        row = self.pick(data, "QUEUED")
        attempt_id = self.new_id("a")
        if row.phase != "QUEUED":
            with pytest.raises(IllegalTransition):
                self.books.send(row.entry, attempt_id, self.now)
            return
        self.books.send(row.entry, attempt_id, self.now)
        row.phase, row.attempt_id = "SUBMITTING", attempt_id
        self.count["submitted"] += 1

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def postpone(self, data: st.DataObject) -> None:
        row = self.pick(data, "SUBMITTING")
        if row.phase != "SUBMITTING":
            with pytest.raises(IllegalTransition):
                self.books.requeue(row.entry)
            return
        self.books.requeue(row.entry)
        row.phase = "QUEUED"

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        row = self.pick(data, "SUBMITTING")
        if row.phase not in {"QUEUED", "SUBMITTING"} or self.doubts_of(row.track):
            with pytest.raises(IllegalTransition):
                self.books.reject(row.entry, KieWavError("no"))
            return
        self.books.reject(row.entry, KieWavError("no"))
        self.end(row, "REJECTED", KieWavError)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        row = self.pick(data, "QUEUED", "UNKNOWN")
        if row.phase not in {"QUEUED", "UNKNOWN"} or self.doubts_of(row.track):
            with pytest.raises(IllegalTransition):
                self.books.cancel(row.entry, KieWavError("no"))
            return
        self.books.cancel(row.entry, KieWavError("no"))
        self.end(row, "CANCELLED", KieWavError)

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), is_charged=st.booleans())
    def lose(self, data: st.DataObject, *, is_charged: bool) -> None:
        row = self.pick(data, "SUBMITTING")
        if row.phase != "SUBMITTING":
            with pytest.raises(IllegalTransition):
                self.books.mark_unknown(row.entry, self.now)
            return
        unknown = self.books.mark_unknown(row.entry, self.now)
        assert (row.track, row.attempt_id) == (unknown.track, unknown.attempt_id)
        self.doubles += bool(self.doubts_of(row.track))
        task_id = self.new_id("t")
        self.doubts[row.attempt_id] = Attempt(row.track, is_charged, task_id)
        if is_charged:
            self.charged.append(task_id)
        row.phase = "UNKNOWN"

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def relapse(self, data: st.DataObject) -> None:
        row = self.pick(data, "QUEUED", "SUBMITTING")
        if row.phase not in {"QUEUED", "SUBMITTING"} or not self.doubts_of(row.track):
            with pytest.raises(IllegalTransition):
                self.books.return_to_unknown(row.entry)
            return
        assert self.doubts_of(row.track)[-1] == self.books.return_to_unknown(row.entry).attempt_id
        row.phase = "UNKNOWN"

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def resend(self, data: st.DataObject) -> None:
        row = self.pick(data, "UNKNOWN")
        if row.phase != "UNKNOWN":
            with pytest.raises(IllegalTransition):
                self.books.retry(row.entry)
            return
        self.books.retry(row.entry)
        row.phase = "QUEUED"

    # --- tasks ----------------------------------------------------------------------------

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def accept(self, data: st.DataObject) -> None:
        row = self.pick(data, "SUBMITTING")
        # It may answer a repeat with the task that the lost submit created.
        lost = [self.doubts[name] for name in self.doubts_of(row.track)]
        known = [attempt.task_id for attempt in lost if attempt.is_charged]
        task_id = data.draw(st.sampled_from([self.new_id("t"), *known]))
        if row.phase not in {"SUBMITTING", "UNKNOWN", "TIMED_OUT_KEPT"}:
            with pytest.raises(IllegalTransition):
                self.books.accept(row.entry, task_id, self.now)
            return
        if row.phase != "SUBMITTING":
            return  # Legal in the table, for those that were found or kept; not an answer.
        self.books.accept(row.entry, task_id, self.now)
        if task_id not in known:
            self.charged.append(task_id)
        self.count["accepted"] += 1
        self.doubles += bool(self.doubts_of(row.track))
        self.follow(row, task_id, "SUBMITTED")

    @rule(track=_tracks)
    def submit_at_once(self, track: Track) -> None:
        """Go all the way to a task: few runs would, a step at a time."""
        if track in self.occupant:
            return
        row = Row(self.books.enqueue(track), track, "SUBMITTING")
        self.enter(row)
        row.attempt_id, task_id = self.new_id("a"), self.new_id("t")
        self.books.send(row.entry, row.attempt_id, self.now)
        self.books.accept(row.entry, task_id, self.now)
        self.charged.append(task_id)
        self.count["submitted"] += 1
        self.count["accepted"] += 1
        self.doubles += bool(self.doubts_of(track))
        self.follow(row, task_id, "SUBMITTED")

    @precondition(lambda self: self.living("SUBMITTING"))
    @rule(data=st.data(), is_named=st.booleans())
    def adopt_existing(self, data: st.DataObject, *, is_named: bool) -> None:
        """The service has a task of the pair: one it charged us for, or somebody else's."""
        row = data.draw(st.sampled_from(self.living("SUBMITTING")))
        unknowns = self.doubts_of(row.track)
        ours = [name for name in unknowns if self.doubts[name].is_charged]
        if ours:
            name = data.draw(st.sampled_from(ours))
            task_id, attempt_id = self.doubts[name].task_id, name if is_named else None
        else:
            task_id, attempt_id = self.new_id("t"), ""
        self.books.adopt_existing(row.entry, task_id, self.now)
        self.count["adopted"] += 1
        row.is_attributed = not unknowns
        if data.draw(st.booleans()):  # Its record can be read.
            self.books.attribute(row.entry, attempt_id)
            if ours and (is_named or len(unknowns) == 1):
                del self.doubts[name]
                self.count["accepted"] += 1
                row.is_attributed = True
            row.is_attributed |= not ours
        assert row.entry.is_attributed is row.is_attributed
        self.follow(row, task_id, "ADOPTED")

    @precondition(lambda self: any(a.is_charged for a in self.doubts.values()))
    @rule(data=st.data())
    def adopt_unknown(self, data: st.DataObject) -> None:
        charged = [name for name, attempt in self.doubts.items() if attempt.is_charged]
        name = data.draw(st.sampled_from(charged))
        attempt = self.doubts.pop(name)
        entry = self.books.adopt_unknown(name, attempt.task_id, self.now)
        row = self.occupant.get(attempt.track)
        followed = self.holder.get(attempt.task_id)
        goes_on = row is None or row.phase != "UNKNOWN"
        if goes_on and followed is not None and followed.origin != "ATTACHED":
            assert entry is followed.entry
            self.count["accepted"] += not followed.is_attributed
            followed.is_attributed = True
            return
        self.count["accepted"] += 1
        self.count["adopted"] += 1
        if goes_on:
            if followed is not None:
                assert entry is followed.entry
                followed.origin = "ADOPTED"
                if followed.track is None:
                    self.name(followed, attempt.track)
                return
            row = Row(entry, attempt.track, "UNKNOWN")
            self.enter(row)
        assert entry is row.entry
        row.attempt_id = name
        self.follow(row, attempt.task_id, "ADOPTED")

    @precondition(lambda self: any(not a.is_charged for a in self.doubts.values()))
    @rule(data=st.data())
    def absolve(self, data: st.DataObject) -> None:
        free = [name for name, attempt in self.doubts.items() if not attempt.is_charged]
        attempt = self.doubts.pop(name := data.draw(st.sampled_from(free)))
        entry = self.books.mark_not_charged(name)
        row = self.occupant.get(attempt.track)
        if row is not None and row.phase == "UNKNOWN" and not self.doubts_of(attempt.track):
            assert entry is row.entry
        else:
            assert entry is None

    @rule(attempt_id=st.sampled_from(["none", "a1", "a2"]))
    def resolve_what_is_no_doubt(self, attempt_id: str) -> None:
        if attempt_id in self.doubts:
            return
        with pytest.raises(IllegalTransition):
            self.books.mark_not_charged(attempt_id)
        with pytest.raises(IllegalTransition):
            self.books.adopt_unknown(attempt_id, "t0", self.now)

    @rule(data=st.data(), track=st.none() | _tracks)
    def attach(self, data: st.DataObject, track: Track | None) -> None:
        """Any task may be attached: one of others, one that timed out, one of a lost submit."""
        lost = [a.task_id for a in self.doubts.values() if a.is_charged]
        over = [row.task_id for row in self.living("TIMED_OUT", "TIMED_OUT_KEPT")]
        task_id = data.draw(st.sampled_from([self.new_id("t"), *lost, *over]))
        if task_id in self.holder:
            return
        row = Row(self.books.attach(task_id, track, self.now), track, "UNKNOWN")
        self.enter(row)
        self.follow(row, task_id, "ATTACHED")

    @precondition(lambda self: any(row.track is None for row in self.living("ACCEPTED")))
    @rule(data=st.data(), track=_tracks)
    def name_track(self, data: st.DataObject, track: Track) -> None:
        nameless = [row for row in self.living("ACCEPTED") if row.track is None]
        row = data.draw(st.sampled_from(nameless))
        self.books.set_track(row.entry, track)
        self.name(row, track)

    def name(self, row: Row, track: Track) -> None:
        row.track = track
        self.occupant.setdefault(track, row)

    # --- news -----------------------------------------------------------------------------

    @precondition(lambda self: self.rows)
    @rule(
        data=st.data(),
        state=st.sampled_from([None, *TaskState]),
        has_file=st.booleans(),
        audio_id=st.sampled_from([None, "e0", "e1"]),
        settled_by=st.sampled_from(["poll", "callback"]),
        is_hint=st.booleans(),
    )
    def observe(
        self,
        data: st.DataObject,
        state: TaskState | None,
        audio_id: str | None,
        settled_by: str,
        *,
        has_file: bool,
        is_hint: bool,
    ) -> None:
        row = self.pick(data, "ACCEPTED", "TIMED_OUT_KEPT")
        record = None
        if state is not None:
            record = TaskRecord(
                task_id=row.task_id or "t0",
                state=state,
                wav_url=LINK if has_file else None,
                audio_id=audio_id,
            )
        has_settled = self.books.observe(row.entry, record, self.now, settled_by, is_hint=is_hint)
        if row.phase not in {"ACCEPTED", "TIMED_OUT_KEPT"}:
            assert not has_settled
            self.duplicates += state in {TaskState.SUCCEEDED, TaskState.FAILED}
            return
        error = self.judge(row, state, audio_id, is_hint=is_hint)
        if error is not None:
            self.count["failed"] += 1
            self.end(row, "FAILED", error)
        elif state is TaskState.SUCCEEDED and has_file:
            self.count[settled_by] += 1
            self.end(row, "SUCCEEDED", None)
        assert has_settled is (row.phase not in {"ACCEPTED", "TIMED_OUT_KEPT"})

    def judge(
        self,
        row: Row,
        state: TaskState | None,
        audio_id: str | None,
        *,
        is_hint: bool,
    ) -> type | None:
        if state is None:
            row.misses += not is_hint
            is_old = self.now - row.accepted_at >= 60.0
            is_gone = row.misses >= 3 if row.origin == "ATTACHED" else is_old
            return NotFoundError if is_gone else None
        row.misses = 0
        own = None if row.track is None else row.track.audio_id
        if row.origin == "ADOPTED" and None not in {own, audio_id} and own != audio_id:
            return AlreadyExistsError
        return ConversionFailedError if state is TaskState.FAILED else None

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def time_out(self, data: st.DataObject) -> None:
        row = self.pick(data, "ACCEPTED")
        if row.phase != "ACCEPTED":
            with pytest.raises(IllegalTransition):
                self.books.time_out(row.entry, 900.0, self.now)
            return
        self.books.time_out(row.entry, 900.0, self.now)
        self.count["timed_out"] += 1
        self.end(row, "TIMED_OUT", ConversionTimeoutError)
        follower = self.holder.get(row.task_id)
        if follower is None:
            (entry,) = self.books.known(row.task_id)
            self.kept[row.task_id] = attrs.evolve(
                row,
                entry=entry,
                phase="TIMED_OUT_KEPT",
                accepted_at=self.now,
                misses=0,
                ended_with=None,
            )
            self.rows.append(self.kept[row.task_id])
            for task_id in [*self.kept][:-MAX_KEPT]:
                self.rows.remove(self.kept.pop(task_id))
        elif row.track is not None and follower.track in {None, row.track}:
            self.name(follower, row.track)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def rejoin(self, data: st.DataObject) -> None:
        """Somebody asks for a task again whose wait timed out."""
        row = data.draw(st.sampled_from([*self.kept.values()]))
        self.books.rejoin(row.entry, self.now)
        self.follow(row, row.task_id, row.origin)
        if row.track is not None:
            self.occupant.setdefault(row.track, row)

    @rule(passed_s=st.sampled_from([1.0, 59.0, 60.0]))
    def wait(self, passed_s: float) -> None:
        self.now += passed_s

    # --- what must hold after each step ---------------------------------------------------

    @invariant()
    def entries_agree(self) -> None:
        for row in self.rows:
            entry = row.entry
            assert (Phase[row.phase], Origin[row.origin]) == (entry.phase, entry.origin)
            assert (row.track, row.task_id) == (entry.track, entry.task_id)
            assert row.attempt_id == entry.attempt_id
            is_over = row.phase in {"SUCCEEDED", "FAILED", "TIMED_OUT", "REJECTED", "CANCELLED"}
            assert (
                is_over
                or row.phase != "TIMED_OUT_KEPT"
                or row.entry in self.books.known(row.task_id)
            )
            assert is_over is (entry.outcome is not None)
            if row.ended_with is not None:
                assert type(entry.outcome) is row.ended_with
            elif is_over:
                assert (row.task_id, LINK) == (entry.outcome.task_id, entry.outcome.url)

    @invariant()
    def places_agree(self) -> None:
        on_wire = self.living("SUBMITTING")
        in_flight = self.living("ACCEPTED")
        ours = [row for row in in_flight if row.origin != "ATTACHED"]
        assert len(on_wire) == self.books.sending
        assert len(on_wire) + len(ours) == self.books.used_slots

    @invariant()
    def figures_agree(self) -> None:
        figures = self.books.statistics()
        assert len(self.living("ACCEPTED")) == figures.in_flight
        assert len(self.doubts) == figures.unknown
        assert self.doubles == figures.possible_double_charges
        assert self.duplicates == figures.duplicate_results
        assert self.count == {
            "submitted": figures.submitted,
            "accepted": figures.accepted,
            "adopted": figures.adopted,
            "poll": figures.settled_by_poll,
            "callback": figures.settled_by_callback,
            "failed": figures.failed,
            "timed_out": figures.timed_out,
        }

    @invariant()
    def the_bill_is_bounded(self) -> None:
        figures = self.books.statistics()
        assert figures.accepted <= len(self.charged) <= self.books.charges
        assert self.books.charges == figures.accepted + figures.unknown

    @invariant()
    def what_is_found_agrees(self) -> None:
        def entry_of(row: Row | None) -> TaskEntry | None:
            return None if row is None else row.entry

        for track in TRACKS:
            assert entry_of(self.occupant.get(track)) is self.books.find(track)
            results = [row for row in self.results if row.track == track]
            assert entry_of(results[0] if results else None) is self.books.find_result(track)
            kept = [row for row in self.kept.values() if row.track == track]
            assert entry_of(kept[-1] if kept else None) is self.books.find_timed_out(track)
            latest = self.books.find_unknown(track)
            assert self.doubts_of(track)[-1:] == ([] if latest is None else [latest.attempt_id])
        assert [*self.kept] == [*self.books._timed_out._by_task]
        for row in self.rows:
            holder = self.holder.get(row.task_id)
            assert entry_of(holder) is self.books.find_task(row.task_id)
            assert self.books.has_ended(row.task_id) is (row.task_id in self.ended)
            assert self.books.has_unknown_submit(row.entry) is bool(self.doubts_of(row.track))
        assert [*self.doubts] == [unknown.attempt_id for unknown in self.books.unknown_submits()]
        for name in self.doubts:
            assert name == self.books.unknown_submit(name).attempt_id

    @invariant()
    def lists_agree(self) -> None:
        listed = [*self.books.in_flight()]
        holders = [row.entry for row in self.holder.values()]
        others = [row for row in self.occupant.values() if row.phase == "ACCEPTED"]
        assert holders == listed[: len(holders)]
        assert {*holders, *(row.entry for row in others)} == {*listed}
        assert len(listed) == len({*listed})
        waiting = {row.entry for row in self.living("QUEUED", "SUBMITTING", "UNKNOWN")}
        assert waiting == {*self.books.waiting()}


TestBooks = BooksMachine.TestCase
TestBooks.settings = settings(max_examples=100, stateful_step_count=40)


@pytest.mark.campaign
class TestBooksForLong(BooksMachine.TestCase):
    settings = settings(
        max_examples=3_000, stateful_step_count=60, derandomize=False, database=None
    )
