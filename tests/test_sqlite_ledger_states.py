from __future__ import annotations

import asyncio
import itertools

import pytest
from yarl import URL

from kie_wav_async import Track
from kie_wav_async.ledger import AttemptOutcome, SqliteLedger, TrackState

NOW = 1_700_000_000.0
TRACK = Track("5c79", "e231", title="Song")
WAV = URL("https://files.example/x.wav")
ANOTHER_WAV = URL("https://files.example/y.wav")

# How a track comes to stand where it stands, always by attempt a1 and task t1.
WAYS = {
    "planned": "plan",
    "submitting": "begin",
    "unknown": "begin unknown",
    "exists_without_id": "begin exists_without_id",
    "accepted": "begin accepted",
    "succeeded": "begin accepted wav",
    "saved": "begin accepted wav store",
    "rejected": "begin rejected",
    "failed": "begin accepted bad",
    "expired": "begin accepted wav expire",
}

# What each call makes of each state; a dot for no change. `begin` and `again` are of
# attempt a2, the outcomes of a1, `wav` and `bad` the ends of t1.
TABLE = """
                   begin       again       accepted  adopted   unknown  not_created  rejected
planned            submitting  submitting  .         .         .        .            .
submitting         .           .           accepted  accepted  unknown  planned      rejected
unknown            .           submitting  accepted  .         .        planned      .
exists_without_id  .           submitting  .         accepted  .        planned      .
accepted           .           submitting  .         .         .        .            .
succeeded          .           submitting  .         .         .        .            .
saved              .           submitting  .         .         .        .            .
rejected           submitting  submitting  .         .         .        .            .
failed             submitting  submitting  .         .         .        .            .
expired            .           submitting  .         .         .        .            .

                   wav        bad     plan  hear  retry    reopen   exists_without_id
planned            .          .       .     .     .        .        .
submitting         .          .       .     .     .        unknown  exists_without_id
unknown            .          .       .     .     .        .        .
exists_without_id  .          .       .     .     .        .        .
accepted           succeeded  failed  .     .     .        .        .
succeeded          .          .       .     .     .        .        .
saved              .          .       .     .     .        .        .
rejected           .          .       .     .     planned  .        .
failed             .          .       .     .     planned  .        .
expired            .          .       .     .     planned  .        .

                   reserve  store  unstore    expire
planned            .        .      .          .
submitting         .        .      .          .
unknown            .        .      .          .
exists_without_id  .        .      .          .
accepted           .        .      .          .
succeeded          .        saved  .          expired
saved              .        .      succeeded  .
rejected           .        .      .          .
failed             .        .      .          .
expired            .        saved  succeeded  .
"""


def cells():
    """Read the table as pairs of a state and a call with what comes of them."""
    found = {}
    for part in TABLE.strip("\n").split("\n\n"):
        head, *rows = [line.split() for line in part.splitlines()]
        for state, *ends in rows:
            assert len(head) == len(ends)
            for call, end in zip(head, ends, strict=True):
                found[state, call] = state if end == "." else end
    return found


CELLS = cells()


class Life:
    """A ledger of one track, with short words for the calls."""

    def __init__(self, path):
        self.path = path
        self.ledger = SqliteLedger(path)

    async def __aenter__(self):
        await self.ledger.open(NOW)
        return self

    async def __aexit__(self, *_):
        await self.ledger.aclose()

    async def do(self, word, attempt="a1", task="t1"):
        """Make the call named *word*."""
        if word == "reopen":
            await self.ledger.aclose()
            return await self.ledger.open(NOW + 3)
        return await self.call(word, attempt, task)

    def call(self, word, attempt, task):
        ledger = self.ledger
        if word in set(AttemptOutcome):
            why = {"error_code": 7, "error": word}
            how = {"task_id": task} if word in {"accepted", "adopted"} else why
            return ledger.finish_attempt(attempt, AttemptOutcome(word), NOW + 1, **how)
        calls = {
            "plan": lambda: ledger.add_tracks([TRACK]),
            "begin": lambda: ledger.begin_attempt(TRACK, attempt, NOW),
            "again": lambda: ledger.begin_attempt(TRACK, attempt, NOW, again=True),
            "wav": lambda: ledger.finish_task(task, NOW + 2, wav_url=WAV),
            "bad": lambda: ledger.finish_task(task, NOW + 2, error_code=501, error="bad source"),
            "hear": lambda: ledger.record_callback(attempt, "t9"),
            "store": lambda: ledger.mark_saved(TRACK, path="x.wav", size=4, sha256="00"),
            "reserve": lambda: ledger.reserve_path(TRACK, path="x.wav", key="x"),
            "unstore": lambda: ledger.mark_missing(TRACK),
            "expire": lambda: ledger.mark_expired(TRACK),
            "retry": lambda: ledger.requeue(["rejected", "failed", "expired"]),
        }
        return calls[word]()

    async def go(self, words):
        """Make calls; ``word:a2:t2`` names an attempt and a task of its own."""
        for word in words.split():
            await self.do(*word.split(":"))
        return self

    async def standing(self):
        return await self.ledger.get(TRACK)

    async def state(self):
        return (await self.standing()).state


def test_the_table_is_whole():
    """Every state has a row and a way to it, and every call a column of all states."""
    calls = {call for _, call in CELLS}
    assert set(WAYS) == set(TrackState)
    assert set(CELLS) == set(itertools.product(WAYS, calls))
    assert set(AttemptOutcome) <= calls


@pytest.mark.parametrize("state", WAYS)
async def test_each_call_makes_of_each_state_what_the_table_says(tmp_path, state):
    """A track moves as the table says, however it is asked, and each call counts once."""
    for (before, call), after in CELLS.items():
        if before != state:
            continue
        async with Life(tmp_path / f"{call}.sqlite3") as life:
            await life.go(WAYS[state])
            assert state == await life.state(), WAYS[state]
            attempt = "a2" if call in {"begin", "again"} else "a1"
            first = await life.do(call, attempt)
            entry = await life.standing()
            assert after == entry.state, call
            if call in {"begin", "again"}:
                assert (first is None) is (before != after)
                assert entry.attempt_id == (
                    attempt if first is None else "a1" * (before != "planned")
                )
            # Said again it changes nothing, and a submit keeps its permission.
            again = await life.do(call, attempt)
            assert entry == await life.standing(), call
            if call in {"begin", "again"}:
                assert first == again


@pytest.mark.parametrize(
    ("story", "state", "task"),
    [
        # A submit after one of unknown fate.
        ("begin unknown again:a2 accepted:a2:t2", "accepted", "t2"),
        ("begin unknown again:a2 rejected:a2", "unknown", ""),
        ("begin unknown again:a2 not_created:a2 not_created", "planned", ""),
        ("begin unknown again:a2 rejected:a2 not_created", "rejected", ""),
        ("begin unknown again:a2 exists_without_id:a2 not_created", "exists_without_id", ""),
        ("begin unknown again:a2 accepted:a2:t2 bad::t2", "unknown", "t2"),
        ("begin unknown again:a2 accepted:a2:t2 bad::t2 not_created", "failed", "t2"),
        ("begin unknown again:a2 accepted:a2:t2 bad::t2 accepted", "accepted", "t1"),
        ("begin unknown again:a2 accepted:a2:t2 accepted", "accepted", "t2"),
        ("begin unknown again:a2 accepted:a2:t2 accepted bad::t2", "accepted", "t1"),
        ("begin unknown again:a2 accepted:a2:t2 accepted bad::t2 bad", "failed", "t1"),
        ("begin unknown again:a2 accepted:a2:t2 accepted bad wav::t2", "succeeded", "t2"),
        ("begin unknown again:a2 accepted:a2:t2 accepted wav bad::t2", "succeeded", "t1"),
        ("begin unknown again:a2 accepted:a2:t2 wav::t2", "succeeded", "t2"),
        ("begin unknown again:a2 accepted:a2:t2 wav::t2 accepted", "succeeded", "t2"),
        ("begin unknown again:a2 accepted:a2:t2 wav::t2 accepted bad", "succeeded", "t2"),
        ("begin unknown again:a2 unknown:a2 accepted", "accepted", "t1"),
        ("begin unknown again:a2 unknown:a2 accepted wav", "succeeded", "t1"),
        ("begin unknown again:a2 unknown:a2 not_created", "unknown", ""),
        ("begin unknown again:a2 accepted", "submitting", "t1"),
        ("begin unknown again:a2 accepted not_created:a2", "accepted", "t1"),
        ("begin unknown again:a2 accepted wav accepted:a2:t2", "succeeded", "t1"),
        ("begin unknown again:a2 adopted:a2", "accepted", "t1"),
        ("begin unknown again:a2 adopted:a2 accepted wav", "succeeded", "t1"),
        # A submit after a task that is there.
        ("begin accepted again:a2 not_created:a2", "accepted", "t1"),
        ("begin accepted again:a2 accepted:a2:t2", "accepted", "t1"),
        ("begin accepted again:a2 unknown:a2", "accepted", "t1"),
        ("begin accepted again:a2 unknown:a2 bad", "unknown", "t1"),
        ("begin accepted wav again:a2 not_created:a2", "succeeded", "t1"),
        ("begin accepted wav again:a2 rejected:a2", "succeeded", "t1"),
        ("begin accepted wav again:a2 exists_without_id:a2", "succeeded", "t1"),
        ("begin accepted wav again:a2 unknown:a2", "unknown", "t1"),
        ("begin accepted wav again:a2 unknown:a2 not_created:a2", "succeeded", "t1"),
        ("begin accepted wav again:a2 unknown:a2 accepted:a2:t2", "accepted", "t2"),
        ("begin accepted wav again:a2 accepted:a2:t2 bad::t2", "failed", "t2"),
        ("begin accepted wav again:a2 adopted:a2:t1", "accepted", "t1"),
        ("begin accepted wav again:a2 adopted:a2:t1 wav", "succeeded", "t1"),
        ("begin accepted wav store again:a2 not_created:a2", "saved", "t1"),
        ("begin accepted wav again:a2 store not_created:a2", "saved", "t1"),
        ("begin accepted wav store again:a2 accepted:a2:t2 store", "accepted", "t2"),
        ("begin accepted wav store again:a2 unstore not_created:a2", "succeeded", "t1"),
        ("begin accepted wav store again:a2 unknown:a2 unstore", "unknown", "t1"),
        ("begin accepted wav again:a2 expire not_created:a2", "succeeded", "t1"),
        ("begin accepted wav store unstore expire retry", "planned", ""),
        ("begin adopted wav expire", "expired", "t1"),
        ("begin accepted wav expire again:a2 not_created:a2", "expired", "t1"),
        ("begin accepted wav expire again:a2 rejected:a2", "expired", "t1"),
        ("begin accepted wav expire again:a2 accepted:a2:t2 wav::t2", "succeeded", "t2"),
        ("begin accepted wav again:a2 reopen", "unknown", "t1"),
        ("begin accepted again:a2 reopen", "accepted", "t1"),
        # A submit after one that came to nothing.
        ("begin accepted bad begin:a2 not_created:a2", "planned", ""),
        ("begin rejected begin:a2 not_created:a2", "planned", ""),
        ("begin rejected begin:a2 accepted:a2:t2", "accepted", "t2"),
        ("begin exists_without_id again:a2 not_created:a2", "exists_without_id", ""),
        ("begin exists_without_id again:a2 rejected:a2", "rejected", ""),
        ("begin accepted bad begin:a2 adopted:a2:t1 wav", "succeeded", "t1"),
        # Somebody said that there is no task, or that there is one, and knows better by now.
        ("begin not_created accepted", "accepted", "t1"),
        ("begin unknown not_created accepted wav", "succeeded", "t1"),
        ("begin not_created begin:a2 accepted:a2:t2 accepted bad::t2", "accepted", "t1"),
        ("begin not_created begin:a2 accepted:a2:t2 wav::t2 accepted", "succeeded", "t2"),
        ("begin not_created begin:a2 rejected:a2 accepted", "accepted", "t1"),
        ("begin not_created accepted not_created", "accepted", "t1"),
        ("begin not_created adopted", "planned", ""),
        ("begin accepted wav again:a2 not_created:a2 accepted:a2:t2", "accepted", "t2"),
        ("begin exists_without_id adopted wav", "succeeded", "t1"),
        ("begin exists_without_id again:a2 rejected:a2 adopted", "accepted", "t1"),
        ("begin exists_without_id again:a2 rejected:a2 not_created", "rejected", ""),
        ("begin exists_without_id not_created begin:a2 accepted:a2:t2", "accepted", "t2"),
        ("begin exists_without_id not_created accepted", "accepted", "t1"),
        ("begin exists_without_id not_created adopted", "planned", ""),
        ("begin accepted wav again:a2 exists_without_id:a2 not_created:a2", "succeeded", "t1"),
        ("begin exists_without_id again:a2 accepted:a2:t2 wav::t2 adopted", "succeeded", "t2"),
        ("begin exists_without_id again:a2 accepted:a2:t2 bad::t2 not_created", "failed", "t2"),
        # Planned again by hand.
        ("begin accepted bad retry begin:a2 accepted:a2:t2 wav::t2", "succeeded", "t2"),
        ("begin accepted wav expire retry", "planned", ""),
        ("begin accepted wav expire retry begin:a2 not_created:a2", "planned", ""),
        ("begin accepted wav expire retry begin:a2 accepted:a2:t2 bad::t2", "failed", "t2"),
        # An older doubt does not come back once there was a WAV.
        ("begin unknown again:a2 accepted:a2:t2 wav::t2 expire retry", "planned", ""),
    ],
)
async def test_several_attempts_make_one_state(tmp_path, story, state, task):
    """However many submits a track has seen, it stands where the sum of them leaves it."""
    async with Life(tmp_path / "x.sqlite3") as life:
        await life.go(story)
        entry = await life.standing()
        assert (state, task) == (entry.state, entry.task_id)
        # The same after the next opening, but that nothing is under way.
        await life.do("reopen")
        later = await life.standing()
        assert later.state == ("unknown" if state == "submitting" and not task else later.state)
        assert later.task_id == task


async def test_a_submit_under_way_keeps_others_off_whatever_is_said(tmp_path):
    """While a submit of a track is under way, no other of it may be sent."""
    async with Life(tmp_path / "x.sqlite3") as life:
        await life.go("begin accepted again:a2 wav")
        assert TrackState.SUCCEEDED == await life.state()
        assert TrackState.SUCCEEDED == (await life.do("again", "a3")).state


async def test_one_that_stands_in_the_way_is_shown(tmp_path):
    """A submit that may not be sent gets the standing that forbids it."""
    async with Life(tmp_path / "x.sqlite3") as life:
        await life.go("begin accepted wav")
        assert await life.standing() == await life.do("begin", "a2")


async def test_a_standing_tells_all(tmp_path):
    """A track with a file tells its ids, its times in UTC, its URL as sent and its file."""
    url = URL("https://files.example/a%2Fb.wav?sig=%7e", encoded=True)
    async with Life(tmp_path / "x.sqlite3") as life:
        await life.go("plan begin accepted")
        await life.ledger.finish_task("t1", NOW + 60, wav_url=url)
        await life.do("store")
        entry = await life.standing()
    assert (1, TRACK, "Song") == (entry.index, entry.track, entry.track.title)
    assert ("a1", "t1", False) == (entry.attempt_id, entry.task_id, entry.is_adopted)
    assert "2023-11-14T22:13:20+00:00" == entry.submitted_at.isoformat()
    assert "2023-11-14T22:14:20+00:00" == entry.settled_at.isoformat()
    assert "2023-11-28T22:13:20+00:00" == entry.expires_at.isoformat()
    assert "https://files.example/a%2Fb.wav?sig=%7e" == str(entry.wav_url)
    assert ("x.wav", 4, "00") == (entry.path, entry.bytes, entry.sha256)
    assert (None, None) == (entry.error_code, entry.error)


@pytest.mark.parametrize(
    ("story", "reason"),
    [
        ("begin rejected", (7, "rejected")),
        ("begin accepted bad", (501, "bad source")),
        ("begin not_created", (None, None)),
        ("begin exists_without_id", (None, None)),
        ("begin unknown", (None, None)),
        ("begin accepted bad retry", (None, None)),
        ("begin accepted bad begin:a2", (None, None)),
        ("begin unknown again:a2 rejected:a2", (None, None)),
        ("begin unknown again:a2 rejected:a2 not_created", (7, "rejected")),
    ],
)
async def test_what_failed_says_why(tmp_path, story, reason):
    """The service's words stand beside a track that is refused or failed, and only then."""
    async with Life(tmp_path / "x.sqlite3") as life:
        await life.go(story)
        entry = await life.standing()
    assert reason == (entry.error_code, entry.error)


async def test_a_stored_file_may_move(tmp_path):
    """Stored again, the last word on where the file is counts."""
    async with Life(tmp_path / "x.sqlite3") as life:
        await life.go("begin accepted wav store")
        await life.ledger.mark_saved(TRACK, path="y.wav", size=5, sha256="11")
        entry = await life.standing()
    assert ("y.wav", 5, "11") == (entry.path, entry.bytes, entry.sha256)


async def test_a_new_task_forgets_the_end_of_the_old(tmp_path):
    """Sent again after its WAV was there, a track tells nothing of the old one but the path."""
    async with Life(tmp_path / "x.sqlite3") as life:
        await life.go("begin accepted wav store again:a2 accepted:a2:t2")
        entry = await life.standing()
    assert (None, None) == (entry.wav_url, entry.settled_at)
    assert ("x.wav", None, None) == (entry.path, entry.bytes, entry.sha256)


async def test_only_the_first_end_of_a_task_counts(tmp_path):
    """A task that ended once is not ended again with another WAV."""
    async with Life(tmp_path / "x.sqlite3") as life:
        await life.go("begin accepted wav")
        await life.ledger.finish_task("t1", NOW + 9, wav_url=ANOTHER_WAV)
        assert WAV == (await life.standing()).wav_url


async def test_an_adopted_task_has_no_age(tmp_path):
    """A task that existed before is marked so, and has no age by our clock."""
    async with Life(tmp_path / "x.sqlite3") as life:
        await life.go("begin adopted wav")
        entry = await life.standing()
    assert (True, None, TrackState.SUCCEEDED) == (
        *(entry.is_adopted, entry.expires_at),
        entry.state,
    )


async def test_a_late_answer_keeps_the_time_of_the_submit(tmp_path):
    """A submit found out about days later was sent, and ended, when it was."""
    async with Life(tmp_path / "x.sqlite3") as life:
        await life.go("begin unknown")
        await life.ledger.finish_attempt("a1", AttemptOutcome.ACCEPTED, NOW + 86_400, task_id="t1")
        opening = await life.do("reopen")
        assert NOW == (await life.standing()).submitted_at.timestamp()
    assert (NOW + 1,) == opening.ended_unix_s


@pytest.mark.parametrize(
    ("story", "accepted", "unknown", "named"),
    [
        ("plan", 0, [], {}),
        ("begin", 0, ["a1"], {}),
        ("begin hear", 0, ["a1"], {"a1": "t9"}),
        ("begin hear accepted", 1, [], {}),
        ("begin accepted hear", 1, [], {}),
        ("begin adopted", 0, [], {}),
        ("begin unknown hear again:a2 accepted:a2:t2", 1, ["a1"], {"a1": "t9"}),
        ("begin unknown again:a2 unknown:a2", 0, ["a1", "a2"], {}),
        ("begin unknown again:a2 unknown:a2 accepted accepted:a2:t2", 2, [], {}),
        ("begin accepted wav again:a2 accepted:a2:t2", 2, [], {}),
        ("begin accepted wav expire retry begin:a2", 1, ["a2"], {}),
    ],
)
async def test_an_opening_tells_the_bill(tmp_path, story, accepted, unknown, named):
    """What was accepted, what is in doubt and what a callback said of it is told at opening."""
    async with Life(tmp_path / "x.sqlite3") as life:
        await life.go(story)
        opening = await life.do("reopen")
    assert accepted == opening.accepted
    assert unknown == [submit.attempt_id for submit in opening.unknown]
    assert named == dict(opening.callback_tasks)


async def test_only_the_first_name_counts(tmp_path):
    """A second callback that names another task for an attempt changes nothing."""
    async with Life(tmp_path / "x.sqlite3") as life:
        await life.go("begin hear")
        await life.ledger.record_callback("a1", "t8")
        assert {"a1": "t9"} == dict((await life.do("reopen")).callback_tasks)


async def test_an_opening_tells_the_last_thousand_ends(tmp_path):
    """The ends of the last 1,000 submits are told, oldest first, whatever their order was."""
    async with Life(tmp_path / "x.sqlite3") as life:
        ledger, numbers = life.ledger, range(1_005)
        await asyncio.gather(
            *(ledger.begin_attempt(Track("5c79", f"e{n}"), f"a{n}", NOW) for n in numbers),
            *(
                ledger.finish_attempt(f"a{n}", AttemptOutcome.REJECTED, NOW + n)
                for n in reversed(numbers)
            ),
        )
        opening = await life.do("reopen")
    assert [NOW + n for n in range(5, 1_005)] == list(opening.ended_unix_s)


async def test_what_is_left_open_is_unknown_since_the_opening(tmp_path):
    """A submit that outlived its process is unknown, and ended, at the time of the opening."""
    async with Life(tmp_path / "x.sqlite3") as life:
        await life.go("begin")
        opening = await life.do("reopen")
    [submit] = opening.unknown
    assert (TRACK, "a1", NOW + 3) == (submit.track, submit.attempt_id, submit.at.timestamp())
    assert (NOW + 3,) == opening.ended_unix_s


@pytest.mark.parametrize(
    "call", ["accepted", "hear", "wav", "bad", "reserve", "store", "unstore", "expire"]
)
async def test_what_is_not_there_is_ignored(tmp_path, call):
    """Of an attempt, a task or a track that is not there nothing is written."""
    async with Life(tmp_path / "x.sqlite3") as life:
        await life.do(call)
        assert 0 == sum((await life.ledger.count_by_state()).values())


@pytest.mark.parametrize(
    ("states", "count"),
    [((), 0), (("failed",), 1), (("rejected", "failed"), 2), (("expired", "rejected"), 1)],
)
async def test_only_what_is_named_is_planned_again(tmp_path, states, count):
    """Of the tracks that came to nothing those in the states named are planned, and counted."""
    async with Life(tmp_path / "x.sqlite3") as life:
        await life.go("begin accepted bad")
        await life.ledger.begin_attempt(Track("5c79", "e9"), "a9", NOW)
        await life.ledger.finish_attempt("a9", AttemptOutcome.REJECTED, NOW)
        assert count == await life.ledger.requeue(states)
        assert count == (await life.ledger.count_by_state())[TrackState.PLANNED]
