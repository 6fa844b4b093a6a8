"""Ledgers through random histories, beside a small model and a service that knows its charges."""

from __future__ import annotations

import asyncio
from collections import Counter

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from yarl import URL

from kie_wav_async import Track
from kie_wav_async.errors import LedgerError
from kie_wav_async.ledger import AttemptOutcome, TrackState
from ledger_storages import MemoryStorage, SqliteStorage

ACCEPTED, ADOPTED, UNKNOWN, NOT_CREATED, REJECTED, EXISTS = (
    AttemptOutcome.ACCEPTED,
    AttemptOutcome.ADOPTED,
    AttemptOutcome.UNKNOWN,
    AttemptOutcome.NOT_CREATED,
    AttemptOutcome.REJECTED,
    AttemptOutcome.EXISTS_WITHOUT_ID,
)
TRACKS = [Track("music", f"audio{number}") for number in range(3)]

#: What a submit that has ended may turn out to have come to.
BETTER = {UNKNOWN: {ACCEPTED, NOT_CREATED}, NOT_CREATED: {ACCEPTED}, EXISTS: {ADOPTED, NOT_CREATED}}

HAS_WAV = {"succeeded", "saved"}
HAD_WAV = {*HAS_WAV, "expired"}

#: Where a track may go from each state, in one call.
WAYS = {
    None: "planned submitting",
    "planned": "submitting accepted succeeded",
    "submitting": (
        "unknown exists_without_id accepted planned rejected failed succeeded saved expired"
    ),
    "unknown": (
        "submitting exists_without_id accepted planned rejected failed succeeded saved expired"
    ),
    "exists_without_id": "submitting accepted succeeded planned",
    "accepted": "submitting unknown succeeded failed",
    "succeeded": "submitting accepted saved expired",
    "saved": "submitting accepted succeeded",
    "rejected": "submitting planned accepted succeeded",
    "failed": "submitting planned accepted succeeded",
    "expired": "submitting planned accepted succeeded saved",
}


PICK = st.integers(0, 11)

#: Three paths, two of which are one on some disks.
PATHS = st.sampled_from(["x.wav", "X.wav", "y.wav"])

#: Of which track, again or not, what comes of it, whether it was charged (if it
#: was lost) or names an old task (if it names one that was), and what comes of that.
SUBMITS = st.tuples(
    st.sampled_from(TRACKS),
    st.booleans(),
    st.sampled_from([None, ACCEPTED, ACCEPTED, ACCEPTED, UNKNOWN, *AttemptOutcome]),
    st.booleans(),
    st.sampled_from(["", "wav", "wav", "bad", "file"]),
)


class LedgerMachine(RuleBasedStateMachine):
    """
    One catalog through submits, callbacks, ends, restarts and deaths.

    The model keeps, of each track: its attempts, oldest first, as ``[id, fate,
    task, whether that has ended, when it began]``; its *base_state*; its
    *current_attempt*, whose task is followed; how many attempts its WAV has
    *superseded*; and its *path*, *key* and *file*, the size of which tells one from another.
    """

    storage: type

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = self.storage()
        self.now = 1_800_000_000.0
        self.ids = 0
        self.charged: dict[str, Track] = {}
        self.model: dict[Track, dict] = {}
        self.ends: list[float] = []
        self.since: dict[str, float] = {}
        self.named: dict[str, str] = {}
        self.states: dict[Track, TrackState] = {}
        self.run(self.world.set_up())
        self.ledger = self.run(self.world.make_ledger())
        self.run(self.ledger.open(self.now))

    def run(self, call):
        return self.loop.run_until_complete(call)

    def tick(self, seconds=1.0):
        self.now += seconds
        return self.now

    def id(self):
        self.ids += 1
        return f"{self.ids:032x}"

    # --- the model --------------------------------------------------------------------------

    def entry(self, track):
        new = {
            "attempts": [],
            "base_state": "planned",
            "current_attempt": None,
            "superseded_through": 0,
        }
        place = {"path": None, "key": None, "file": None}
        return self.model.setdefault(track, new | place)

    def state_of(self, track):
        entry = self.model[track]
        fates = [attempt[1] for attempt in entry["attempts"][entry["superseded_through"] :]]
        if "open" in fates:
            return "submitting"
        if entry["current_attempt"] is not None and not entry["current_attempt"][3]:
            return "accepted"
        return "unknown" if UNKNOWN in fates else entry["base_state"]

    def attempts(self, *fates):
        return [
            (track, attempt)
            for track, entry in self.model.items()
            for attempt in entry["attempts"]
            if not fates or attempt[1] in fates
        ]

    def follow(self, entry, attempt):
        entry["current_attempt"], entry["base_state"], entry["file"] = attempt, "planned", None

    def close(self, track, attempt, outcome, task_id):
        entry = self.model[track]
        if attempt[1] == "open":
            self.ends.append(self.now)
            self.since[attempt[0]] = self.now
        elif outcome not in BETTER.get(attempt[1], ()):
            return
        if (attempt[1], outcome, entry["base_state"]) == (EXISTS, NOT_CREATED, "exists_without_id"):
            entry["base_state"] = "planned"
        attempt[1] = outcome
        if outcome in {ACCEPTED, ADOPTED}:
            attempt[2:4] = task_id, False
            is_free = entry["current_attempt"] is None or entry["current_attempt"][3]
            has_wav = entry["base_state"] in HAS_WAV
            is_late = entry["attempts"].index(attempt) < entry["superseded_through"]
            if is_free and not (has_wav and is_late):
                self.follow(entry, attempt)
        elif outcome in {REJECTED, EXISTS} and entry["base_state"] not in HAD_WAV:
            entry["base_state"] = outcome.value

    # --- what may happen --------------------------------------------------------------------

    @rule(tracks=st.lists(st.sampled_from(TRACKS), max_size=4))
    def plan(self, tracks):
        new = {track for track in tracks if track not in self.model}
        assert self.run(self.ledger.add_tracks(tracks)) == len(new)
        for track in tracks:
            self.entry(track)

    @rule(submits=st.lists(SUBMITS, min_size=1, max_size=6))
    def submit(self, submits):
        for track, again, outcome, is_charged, end in submits:
            attempt = self.begin(track, again=again, is_charged=is_charged or outcome is ACCEPTED)
            self.tracks_stand_where_they_should()
            if attempt is None or outcome is None:
                continue
            task_id = self.end(track, attempt, outcome, is_old_task=is_charged)
            self.tracks_stand_where_they_should()
            if not task_id or not end:
                continue
            self.settle(task_id, is_good=end != "bad")
            self.tracks_stand_where_they_should()
            if end == "file":
                self.store(track)

    def begin(self, track, *, again, is_charged):
        attempt_id = self.id()
        may = track not in self.model or self.state_of(track) in {"planned", "rejected", "failed"}
        if again:
            may = not any(of == track for of, _ in self.attempts("open"))
        before = self.run(self.ledger.get(track))
        told = self.run(self.ledger.begin_attempt(track, attempt_id, self.tick(), again=again))
        assert told == (None if may else before)
        if not may:
            # Nothing that is said of it later has an effect.
            self.run(self.ledger.finish_attempt(attempt_id, ACCEPTED, self.now, task_id=self.id()))
            return None
        assert self.run(self.ledger.begin_attempt(track, attempt_id, self.now, again=again)) is None
        entry = self.entry(track)
        if entry["base_state"] in {"rejected", "failed"}:
            self.follow(entry, None)
        attempt = [attempt_id, "open", None, False, self.now]
        entry["attempts"].append(attempt)
        if is_charged:
            self.charged[attempt_id] = track
        return attempt

    def end(self, track, attempt, outcome, *, is_old_task=False):
        """End a submit truly, or as unknown; what has ended may be told anything."""
        if attempt[1] in {"open", UNKNOWN} and outcome is not UNKNOWN:
            is_charged = attempt[0] in self.charged
            is_lie = is_charged is not (outcome is ACCEPTED)
            if is_lie and (attempt[1] == "open" or outcome in {ACCEPTED, NOT_CREATED}):
                outcome = ACCEPTED if is_charged else NOT_CREATED
        if attempt[1] is NOT_CREATED and outcome is ACCEPTED:
            self.charged[attempt[0]] = track  # Whoever said that there is none was wrong.
        task_id = ""
        if outcome in {ACCEPTED, ADOPTED}:
            own = [a[2] for a in self.model[track]["attempts"] if a[2] is not None]
            task_id = own[-1] if own and is_old_task and outcome is ADOPTED else self.id()
        self.run(self.ledger.finish_attempt(attempt[0], outcome, self.tick(), task_id=task_id))
        self.close(track, attempt, outcome, task_id)
        return attempt[2]

    @rule(picks=st.lists(st.tuples(PICK, st.sampled_from(AttemptOutcome)), min_size=1, max_size=4))
    @precondition(lambda self: self.attempts())
    def find_out(self, picks):
        for pick, outcome in picks:
            some = (self.attempts("open", UNKNOWN) if pick % 4 else []) or self.attempts()
            self.end(*some[pick % len(some)], outcome)
            self.tracks_stand_where_they_should()

    @rule(picks=st.lists(st.tuples(PICK, st.booleans()), min_size=1, max_size=4))
    @precondition(lambda self: any(attempt[2] for _, attempt in self.attempts()))
    def news(self, picks):
        for pick, is_good in picks:
            made = [attempt for _, attempt in self.attempts() if attempt[2]]
            some = [attempt for attempt in made if pick % 4 and not attempt[3]] or made
            self.settle(some[pick % len(some)][2], is_good=is_good)
            self.tracks_stand_where_they_should()

    def settle(self, task_id, *, is_good):
        url = URL(f"https://media.invalid/{task_id}.wav") if is_good else None
        self.run(self.ledger.finish_task(task_id, self.tick(), wav_url=url))
        made = [(t, a) for t, a in self.attempts() if a[2] == task_id and not a[3]]
        for _, attempt in made:
            attempt[3] = True
        for track, attempt in reversed(made):
            entry = self.model[track]
            if is_good and entry["base_state"] not in HAS_WAV:
                self.follow(entry, attempt)
                entry["base_state"], entry["superseded_through"] = (
                    "succeeded",
                    len(entry["attempts"]),
                )
            elif not is_good and attempt is entry["current_attempt"]:
                others = [a for a in entry["attempts"] if a[2] and not a[3]]
                if others:
                    self.follow(entry, others[-1])
                else:
                    entry["base_state"] = "failed"

    @rule(pick=PICK, task=st.integers(0, 2))
    @precondition(lambda self: self.attempts())
    def hear(self, pick, task):
        some = (self.attempts("open", UNKNOWN) if pick % 4 else []) or self.attempts()
        _, attempt = some[pick % len(some)]
        self.run(self.ledger.record_callback(attempt[0], f"named{task}"))
        if attempt[1] in {"open", UNKNOWN}:
            self.named.setdefault(attempt[0], f"named{task}")

    @rule(track=st.sampled_from(TRACKS), path=PATHS)
    def reserve(self, track, path):
        key = path.lower()
        told = self.run(self.ledger.reserve_path(track, path=path, key=key))
        others = {entry["key"] for of, entry in self.model.items() if of != track}
        entry = self.model.get(track)
        may = entry is not None and key not in others
        if may and entry["base_state"] == "saved":
            may = entry["path"] == path
        assert told is may
        if may:
            entry["path"], entry["key"] = path, key

    @rule(track=st.sampled_from(TRACKS), path=PATHS)
    def store(self, track, path="x.wav"):
        size = len(self.ends)
        self.run(self.ledger.mark_saved(track, path=path, size=size, sha256="ab"))
        if track in self.model and self.model[track]["base_state"] in HAD_WAV:
            entry = self.model[track]
            entry["key"] = entry["key"] if entry["path"] == path else None
            entry["base_state"], entry["path"], entry["file"] = "saved", path, size

    @rule(track=st.sampled_from(TRACKS))
    def lose(self, track):
        self.run(self.ledger.mark_missing(track))
        if track in self.model and self.model[track]["base_state"] in {"saved", "expired"}:
            self.model[track]["base_state"], self.model[track]["file"] = "succeeded", None

    @rule(track=st.sampled_from(TRACKS))
    def expire(self, track):
        self.run(self.ledger.mark_expired(track))
        if track in self.model and self.state_of(track) == "succeeded":
            self.model[track]["base_state"] = "expired"

    @rule(states=st.sets(st.sampled_from(["rejected", "failed", "expired"])))
    def retry(self, states):
        named = [track for track in self.model if self.state_of(track) in states]
        assert self.run(self.ledger.requeue([TrackState(state) for state in states])) == len(named)
        for track in named:
            self.follow(self.model[track], None)

    @rule(how=st.sampled_from(["restart", "die", "die", "restart twice"]))
    def live_on(self, how):
        for _ in range(2 if how == "restart twice" else 1):
            if how == "die":
                self.run(self.world.kill(self.ledger))
            else:
                self.run(self.ledger.aclose())
            self.tick(60.0)
            for track, attempt in self.attempts("open"):
                self.close(track, attempt, UNKNOWN, "")
            self.ledger = self.run(self.world.make_ledger())
            opening = self.run(self.ledger.open(self.now))
            self.verify(opening)

    @rule()
    def intrude(self):
        other = self.run(self.world.make_ledger())
        with pytest.raises(LedgerError):
            self.run(other.open(self.tick()))

    @rule(
        states=st.sets(st.sampled_from(TrackState)),
        after=st.integers(0, 5),
        limit=st.integers(1, 5),
    )
    def page(self, states, after, limit):
        page = self.run(self.ledger.list_entries(states, after=after, limit=limit))
        expected = [
            (index, track)
            for index, track in enumerate(self.model, start=1)
            if index > after and self.state_of(track) in states
        ]
        assert [(s.index, s.track) for s in page] == expected[:limit]

    # --- what must hold -----------------------------------------------------------------------

    def verify(self, opening):
        """Hold an opening to what the model and the service know."""
        unknown = {attempt[0] for _, attempt in self.attempts(UNKNOWN)}
        unknowns = [doubt.attempt_id for doubt in opening.unknown]
        assert sorted(unknowns) == sorted(unknown)
        assert [self.since[attempt_id] for attempt_id in unknowns] == sorted(
            self.since[attempt_id] for attempt_id in unknowns
        )
        assert all(d.at.timestamp() == self.since[d.attempt_id] for d in opening.unknown)
        assert opening.callback_tasks == {a: t for a, t in self.named.items() if a in unknown}
        assert opening.accepted == len(self.attempts(ACCEPTED))
        assert opening.ended_unix_s == tuple(self.ends[-1_000:])
        accepted = opening.accepted
        assert accepted <= len(self.charged) <= accepted + len(opening.unknown)
        bill = Counter(self.charged.values())
        took = Counter(track for track, _ in self.attempts(ACCEPTED))
        may = took + Counter(doubt.track for doubt in opening.unknown)
        assert all(took[track] <= bill[track] <= may[track] for track in TRACKS)

    @invariant()
    def tracks_stand_where_they_should(self):
        """Every track stands where the model has it, under its task, and got there lawfully."""
        page = self.run(self.ledger.list_entries(list(TrackState)))
        assert [stands.track for stands in page] == list(self.model)
        for stands in page:
            entry = self.model[stands.track]
            followed = entry["current_attempt"]
            assert stands.state == self.state_of(stands.track)
            assert stands.task_id == ("" if followed is None else followed[2])
            assert stands.is_adopted == (followed is not None and followed[1] is ADOPTED)
            attempt_id = entry["attempts"][-1][0] if entry["attempts"] else ""
            assert stands.attempt_id == attempt_id
            digest = None if entry["file"] is None else "ab"
            file = entry["path"], entry["file"], digest
            assert (stands.path, stands.bytes, stands.sha256) == file
            before = self.states.get(stands.track)
            assert stands.state in {before, *WAYS[before].split()}
            self.states[stands.track] = stands.state
        counts = self.run(self.ledger.count_by_state())
        held = Counter(stands.state for stands in page)
        assert dict(counts) == {state: held[state] for state in TrackState}

    def teardown(self):
        """See that one more death loses nothing."""
        try:
            self.live_on("die")
            self.run(self.ledger.aclose())
        finally:
            self.run(self.world.clean_up())
            self.loop.close()


class MemoryMachine(LedgerMachine):
    storage = MemoryStorage


class SqliteMachine(LedgerMachine):
    storage = SqliteStorage


class TestMemoryLedgerMachine(MemoryMachine.TestCase):
    settings = hypothesis.settings(max_examples=200, stateful_step_count=40)


class TestSqliteLedgerMachine(SqliteMachine.TestCase):
    settings = hypothesis.settings(max_examples=30, stateful_step_count=40)


@pytest.mark.campaign
class TestMemoryLedgerMachineForLong(MemoryMachine.TestCase):
    settings = hypothesis.settings(
        max_examples=3_000, stateful_step_count=60, derandomize=False, database=None
    )


@pytest.mark.campaign
class TestSqliteLedgerMachineForLong(SqliteMachine.TestCase):
    settings = hypothesis.settings(
        max_examples=500, stateful_step_count=60, derandomize=False, database=None
    )
