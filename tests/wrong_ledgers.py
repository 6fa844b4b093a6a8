"""
Ledgers that are wrong in one thing each, and the promise that each of them breaks.

Whoever writes a ledger makes one of these mistakes: the suite has to find it.
"""

from __future__ import annotations

import asyncio

import attrs
from yarl import URL

from kie_wav_async import Track
from kie_wav_async.errors import LedgerError
from kie_wav_async.ledger import AttemptOutcome, TrackState
from kie_wav_async.testing import MemoryLedger

#: What is wrong, by a name: the ledger, and the promise that finds it.
WRONG: dict[str, tuple[type[MemoryLedger], str]] = {}


def wrong(promise):
    """Put a ledger into the table of those that break *promise*."""

    def put(kind):
        WRONG[kind.__name__] = kind, f"test_{promise}"
        return kind

    return put


class Rows:
    """What wrong ledgers reach into."""

    def rows(self):
        return list(self._tables.rows.values())

    def row(self, track):
        return self._tables.rows.get(track)

    def attempt(self, attempt_id):
        return self._tables.attempts.get(attempt_id)


# Opening.


@wrong("what_is_written_stays")
class LosesItsLastWrite(MemoryLedger):
    """What it wrote last is gone when it dies."""

    def die(self):
        left = super().die()
        for attempt in [a for a in left._tables.attempts.values() if a.task_id][-1:]:
            attempt.outcome = None
            attempt.row.current_attempt = None
        return left


@wrong("a_second_process_is_refused")
class IsOpenedTwice(MemoryLedger):
    """Two processes may have it open."""

    async def open(self, now_unix_s):
        self._tables.owner = None
        return await super().open(now_unix_s)


@wrong("a_second_process_is_refused")
class RecoversWhenRefused(MemoryLedger):
    """A process that is refused has put the submits of the other in doubt already."""

    async def open(self, now_unix_s):
        if self._tables.owner not in {None, self}:
            for attempt in self._tables.attempts.values():
                self._tables.end(attempt, AttemptOutcome.UNKNOWN, now_unix_s)
        return await super().open(now_unix_s)


@wrong("openings_nest")
class RecoversEachTime(MemoryLedger):
    """A nested opening puts what is under way in doubt."""

    async def open(self, now_unix_s):
        for attempt in self._tables.attempts.values():
            if attempt.outcome is None:
                self._tables.end(attempt, AttemptOutcome.UNKNOWN, now_unix_s)
        return await super().open(now_unix_s)


@wrong("what_dies_on_the_wire_is_unknown")
class NeverRecovers(MemoryLedger):
    """What died on the wire is taken to be under way still."""

    async def open(self, now_unix_s):
        self._opened += 1
        opening = await super().open(now_unix_s)
        self._opened -= 1
        return opening


@wrong("what_a_close_left_on_the_wire_is_unknown")
class RecoversAsNotCreated(MemoryLedger):
    """What died on the wire was probably not sent."""

    async def open(self, now_unix_s):
        if not self._opened:
            for attempt in self._tables.attempts.values():
                if attempt.outcome is None:
                    self._tables.end(attempt, AttemptOutcome.NOT_CREATED, now_unix_s)
        return await super().open(now_unix_s)


@wrong("a_doubt_keeps_its_time")
class RecoversAtTheBeginning(MemoryLedger):
    """What died on the wire is in doubt since it was sent, not since it was found."""

    async def open(self, now_unix_s):
        if not self._opened:
            for attempt in self._tables.attempts.values():
                self._tables.end(attempt, AttemptOutcome.UNKNOWN, attempt.begun_unix_s)
        return await super().open(now_unix_s)


@wrong("what_is_written_stays")
class RenewsDoubts(MemoryLedger):
    """Each opening finds all doubts anew."""

    async def open(self, now_unix_s):
        if not self._opened:
            for attempt in self._tables.unknown.values():
                attempt.ended_unix_s = now_unix_s
        return await super().open(now_unix_s)


@wrong("openings_nest")
class ClosesAtOnce(MemoryLedger):
    """The first of two closes closes it."""

    async def aclose(self):
        self._opened = min(self._opened, 1)
        await super().aclose()


@wrong("accepted_submits_are_counted_for_ever")
class StaysLocked(MemoryLedger):
    """Closed, it is still its process's own."""

    async def aclose(self):
        await super().aclose()
        self._tables.owner = self


def opening_with(change):
    """Make a ledger whose openings tell what *change* makes of them and of its books."""

    class Opens(MemoryLedger):
        async def open(self, now_unix_s):
            opening = await super().open(now_unix_s)
            return attrs.evolve(opening, **change(opening, self._tables))

    return Opens


def count_outcomes(books, *outcomes):
    """Count the attempts that came to one of *outcomes*."""
    return sum(attempt.outcome in outcomes for attempt in books.attempts.values())


ACCEPTED, ADOPTED = AttemptOutcome.ACCEPTED, AttemptOutcome.ADOPTED

for (_name, _promise), _change in {
    ("counts adopted tasks", "accepted_submits_are_counted_for_ever"): lambda _, b: {
        "accepted": count_outcomes(b, ACCEPTED, ADOPTED)
    },
    ("counts doubts as accepted", "the_bill_is_bounded"): lambda o, _: {
        "accepted": o.accepted + len(o.unknown)
    },
    ("counts what is in flight", "retry_forgets_no_bill"): lambda _, b: {
        "accepted": sum(row.current_attempt is not None for row in b.rows.values())
    },
    ("counts what was found late twice", "a_repeat_is_followed_and_the_doubt_stays"): lambda o, b: {
        "accepted": o.accepted
        + sum(a.outcome is ACCEPTED and a.ended_unix_s < 0 for a in b.attempts.values())
        + sum(len(row.attempts) > 1 for row in b.rows.values())
    },
    ("tells doubts newest first", "what_dies_on_the_wire_is_unknown"): lambda o, _: {
        "unknown": o.unknown[::-1]
    },
    ("tells one doubt of a track", "what_dies_on_the_wire_is_unknown"): lambda o, _: {
        "unknown": tuple({doubt.track: doubt for doubt in o.unknown}.values())[-1:]
    },
    ("tells ends newest first", "the_last_ends_are_told"): lambda o, _: {
        "ended_unix_s": o.ended_unix_s[::-1]
    },
    ("tells a hundred ends", "the_last_ends_are_told"): lambda o, _: {
        "ended_unix_s": o.ended_unix_s[-100:]
    },
    ("tells all ends", "the_last_ends_are_told"): lambda _, b: {
        "ended_unix_s": tuple(sorted(a.ended_unix_s for a in b.attempts.values() if a.outcome))
    },
    ("tells ends of tasks alone", "what_dies_on_the_wire_is_unknown"): lambda _, b: {
        "ended_unix_s": tuple(a.ended_unix_s for a in b.attempts.values() if a.task_id)
    },
    ("names tasks for ever", "a_task_named_for_a_doubt_is_told"): lambda _, b: {
        "callback_tasks": {
            a.attempt_id: a.callback_task for a in b.attempts.values() if a.callback_task
        }
    },
    ("names no tasks", "a_task_named_for_a_doubt_is_told"): lambda *_: {"callback_tasks": {}},
    ("names doubts without a name", "a_task_named_for_a_doubt_is_told"): lambda _, b: {
        "callback_tasks": {a.attempt_id: a.callback_task for a in b.unknown.values()}
    },
}.items():
    WRONG[_name] = opening_with(_change), f"test_{_promise}"


# Tracks.


@wrong("plan_changes_nothing_that_is_there")
class CountsAllThatIsPlanned(MemoryLedger):
    """Planning returns how many were given."""

    async def add_tracks(self, tracks):
        tracks = tuple(tracks)
        await super().add_tracks(tracks)
        return len(tracks)


@wrong("plan_changes_nothing_that_is_there")
class PlansAnew(MemoryLedger, Rows):
    """A track planned again begins at the beginning."""

    async def add_tracks(self, tracks):
        tracks = tuple(tracks)
        for track in tracks:
            if (row := self.row(track)) is not None:
                row.follow(None)
        return await super().add_tracks(tracks)


@wrong("plan_is_all_or_nothing")
class PlansByHalves(MemoryLedger):
    """Tracks are taken in one by one."""

    async def add_tracks(self, tracks):
        return sum([await super(PlansByHalves, self).add_tracks([track]) for track in tracks])


@wrong("plan_is_all_or_nothing")
class SwallowsErrorsOfTracks(MemoryLedger):
    """An error of what is planned is nobody's business."""

    async def add_tracks(self, tracks):
        try:
            return await super().add_tracks(tracks)
        except ZeroDivisionError:
            return 0


@wrong("tracks_keep_their_order")
class ReordersTracks(MemoryLedger):
    """A track planned again moves to the end."""

    async def add_tracks(self, tracks):
        tracks = tuple(tracks)
        for track in tracks:
            if (row := self._tables.rows.pop(track, None)) is not None:
                row.index = max([r.index for r in self._tables.rows.values()] or [0]) + 1
                self._tables.rows[track] = row
        return await super().add_tracks(tracks)


@wrong("plan_takes_each_track_once")
class StartsAtZero(MemoryLedger, Rows):
    """The first index is 0, which no page holds."""

    async def add_tracks(self, tracks):
        planned = await super().add_tracks(tracks)
        for index, row in enumerate(self.rows()):
            row.index = index
        return planned


@wrong("pages_hold_what_they_are_asked_for")
class PagesFromTheLast(MemoryLedger):
    """A page begins with the last track of the one before."""

    async def list_entries(self, states, *, after=0, limit=1000):
        return await super().list_entries(states, after=max(0, after - 1), limit=limit)


@wrong("pages_hold_what_they_are_asked_for")
class PagesBeforeFiltering(MemoryLedger):
    """A page is cut before its states are looked at."""

    async def list_entries(self, states, *, after=0, limit=1000):
        states = set(states)
        page = await super().list_entries(list(TrackState), after=after, limit=limit)
        return [entry for entry in page if entry.state in states]


@wrong("tracks_keep_their_order")
class PagesByState(MemoryLedger):
    """A page is in the order of the states asked for."""

    async def list_entries(self, states, *, after=0, limit=1000):
        pages = [await super(PagesByState, self).list_entries([s], after=after) for s in states]
        return [entry for page in pages for entry in page][:limit]


@wrong("a_walk_loses_no_track")
class PagesByNumber(MemoryLedger):
    """A page leaves out as many tracks of its states as the index says."""

    async def list_entries(self, states, *, after=0, limit=1000):
        return (await super().list_entries(states, limit=after + limit))[after:]


@wrong("a_page_is_of_a_thousand")
class PagesOfAHundred(MemoryLedger):
    """A page is of 100 tracks unless asked otherwise."""

    async def list_entries(self, states, *, after=0, limit=100):
        return await super().list_entries(states, after=after, limit=limit)


@wrong("a_page_is_of_a_thousand")
class PagesWithoutLimit(MemoryLedger):
    """A page holds all there is."""

    async def list_entries(self, states, *, after=0, limit=1000):
        return await super().list_entries(states, after=after, limit=limit * 1_000)


@wrong("new_ledger_is_empty")
class CountsWhatIsThere(MemoryLedger):
    """A state without tracks has no count."""

    async def count_by_state(self):
        return {
            state: number for state, number in (await super().count_by_state()).items() if number
        }


@wrong("counts_are_what_pages_hold")
class CountsWhereTracksRest(MemoryLedger, Rows):
    """What is under way is not counted where it stands."""

    async def count_by_state(self):
        counts = dict.fromkeys(TrackState, 0)
        for row in self.rows():
            counts[row.base_state] += 1
        return counts


# Submits.


def sends_what_is(state):
    """Make a ledger that sends a track in *state* without a word of the user's."""

    class Sends(MemoryLedger):
        async def begin_attempt(self, track, attempt_id, now_unix_s, *, again=False):
            entry = await self.get(track)
            again = again or (entry is not None and entry.state is state)
            return await super().begin_attempt(track, attempt_id, now_unix_s, again=again)

    return Sends


for _state in TrackState:
    if _state not in {
        TrackState.PLANNED,
        TrackState.REJECTED,
        TrackState.FAILED,
        TrackState.SUBMITTING,
    }:
        WRONG[f"sends what is {_state}"] = (
            sends_what_is(_state),
            "test_only_what_is_free_is_sent",
        )


def holds_back_what_is(state):
    """Make a ledger that sends no track in *state*, whatever the user says."""

    class Holds(MemoryLedger):
        async def begin_attempt(self, track, attempt_id, now_unix_s, *, again=False):
            entry = await self.get(track)
            if entry is not None and entry.state is state:
                return entry
            return await super().begin_attempt(track, attempt_id, now_unix_s, again=again)

    return Holds


for _state in TrackState:
    if _state is not TrackState.SUBMITTING:
        WRONG[f"holds back what is {_state}"] = (
            holds_back_what_is(_state),
            "test_again_sends_all_but_what_is_on_the_wire",
        )


@wrong("one_of_many_begins")
class SendsTwiceAtOnce(MemoryLedger, Rows):
    """Said again, a submit is sent beside one under way."""

    async def begin_attempt(self, track, attempt_id, now_unix_s, *, again=False):
        if again and attempt_id not in self._tables.attempts:
            self._tables.begin(self._tables.add(track), attempt_id, now_unix_s)
            return None
        return await super().begin_attempt(track, attempt_id, now_unix_s, again=again)


@wrong("a_submit_begins_once")
class LooksBeforeItWrites(MemoryLedger):
    """Between its look and its writing another may write."""

    async def begin_attempt(self, track, attempt_id, now_unix_s, *, again=False):
        entry = await self.get(track)
        await asyncio.sleep(0)
        if entry is not None and entry.state is not TrackState.PLANNED:
            return await super().begin_attempt(track, attempt_id, now_unix_s, again=again)
        if attempt_id not in self._tables.attempts:
            self._tables.begin(self._tables.add(track), attempt_id, now_unix_s)
        return None


@wrong("a_held_back_submit_leaves_no_trace")
class TakesInWhatItMayNotSend(MemoryLedger, Rows):
    """A submit that may not be sent is written down all the same."""

    async def begin_attempt(self, track, attempt_id, now_unix_s, *, again=False):
        told = await super().begin_attempt(track, attempt_id, now_unix_s, again=again)
        if told is not None and attempt_id not in self._tables.attempts:
            books, row = self._tables, self.row(track)
            books.attempts[attempt_id] = attrs.evolve(
                next(iter(books.attempts.values())), row=row, attempt_id=attempt_id, outcome=None
            )
        return told


@wrong("a_cancelled_call_does_no_harm")
class AnswersARepeatWithDoubt(MemoryLedger):
    """Begun again under the same id, a submit may not be sent."""

    async def begin_attempt(self, track, attempt_id, now_unix_s, *, again=False):
        if attempt_id in self._tables.attempts:
            return await self.get(track)
        return await super().begin_attempt(track, attempt_id, now_unix_s, again=again)


@wrong("begin_takes_in_a_new_track")
class ForgetsTheTitle(MemoryLedger):
    """A track that comes with its submit comes without its title."""

    async def begin_attempt(self, track, attempt_id, now_unix_s, *, again=False):
        bare = Track(track.music_task_id, track.audio_id)
        return await super().begin_attempt(bare, attempt_id, now_unix_s, again=again)


# Ends.


@wrong("a_doubt_ends_accepted_or_not_created")
class EndsDoubtsAnyhow(MemoryLedger, Rows):
    """A doubt ends by whatever is said of it."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        attempt = self.attempt(attempt_id)
        is_unknown = attempt is not None and attempt.outcome is AttemptOutcome.UNKNOWN
        if is_unknown and outcome is not AttemptOutcome.UNKNOWN:
            attempt.outcome = None
            del self._tables.unknown[attempt_id]
            self._tables.ends.pop()
        await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)


@wrong("calls_made_twice_change_nothing")
class ChangesItsMind(MemoryLedger, Rows):
    """The last outcome counts."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        attempt = self.attempt(attempt_id)
        if attempt is not None and attempt.outcome is AttemptOutcome.NOT_CREATED:
            attempt.outcome = None
        await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)


@wrong("an_outcome_is_final")
class DoubtsWhatWasAccepted(MemoryLedger, Rows):
    """An accepted submit can become unknown."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        attempt = self.attempt(attempt_id)
        if outcome is AttemptOutcome.UNKNOWN and attempt is not None:
            attempt.outcome = outcome
            self._tables.unknown[attempt_id] = attempt
        await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)


@wrong("a_task_beats_a_word_that_there_is_none")
class KeepsThatThereIsNone(MemoryLedger, Rows):
    """What was said to have created nothing has not, whatever turns up."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        attempt = self.attempt(attempt_id)
        if attempt is None or attempt.outcome is not AttemptOutcome.NOT_CREATED:
            await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)


@wrong("the_users_word_is_taken")
class TakesNoWord(MemoryLedger):
    """What the user says is not written down."""

    async def resolve(self, attempt_id, *_, **__):
        return attempt_id in self._tables.unknown


@wrong("a_word_is_for_what_is_unknown_or_exists")
class TakesAWordOnAnything(MemoryLedger, Rows):
    """The user may overrule what the service has said."""

    async def resolve(self, attempt_id, now_unix_s, *, task_id=""):
        attempt = self.attempt(attempt_id)
        if attempt is not None:
            attempt.resolved_from = attempt.resolved_from or AttemptOutcome.UNKNOWN
        return await super().resolve(attempt_id, now_unix_s, task_id=task_id)


@wrong("a_wrong_word_is_replaced")
class KeepsTheFirstWord(MemoryLedger, Rows):
    """A word cannot be taken back."""

    async def resolve(self, attempt_id, now_unix_s, *, task_id=""):
        attempt = self.attempt(attempt_id)
        if attempt is not None and attempt.resolved_from is not None:
            return True
        return await super().resolve(attempt_id, now_unix_s, task_id=task_id)


@wrong("a_wrong_word_is_replaced")
class KeepsTheWrongFile(MemoryLedger, Rows):
    """The file of a task that was wrong stays that of the track."""

    async def resolve(self, attempt_id, now_unix_s, *, task_id=""):
        row = self.attempt(attempt_id) and self.attempt(attempt_id).row
        file = row and row.file
        told = await super().resolve(attempt_id, now_unix_s, task_id=task_id)
        if row is not None:
            row.file = file
        return told


@wrong("a_word_said_twice_changes_nothing")
class StartsAnewWithEachWord(MemoryLedger, Rows):
    """The same word again forgets what came of the first."""

    async def resolve(self, attempt_id, now_unix_s, *, task_id=""):
        attempt = self.attempt(attempt_id)
        if attempt is not None and attempt.resolved_from is not None:
            base = attempt.resolved_from
            self._tables.take_back(attempt)
            told = await super().resolve(attempt_id, now_unix_s, task_id=task_id)
            attempt.resolved_from = base
            return told
        return await super().resolve(attempt_id, now_unix_s, task_id=task_id)


@wrong("a_word_on_what_exists_is_replaced")
class CountsWhatWasThere(MemoryLedger, Rows):
    """What existed before our submit was made by it."""

    async def resolve(self, attempt_id, now_unix_s, *, task_id=""):
        told = await super().resolve(attempt_id, now_unix_s, task_id=task_id)
        attempt = self.attempt(attempt_id)
        if attempt is not None and attempt.outcome is AttemptOutcome.ADOPTED:
            attempt.outcome = AttemptOutcome.ACCEPTED
        return told


@wrong("a_word_taken_back_leaves_what_was_there")
class ForgetsTheOtherTask(MemoryLedger, Rows):
    """Without the task that was wrong a track has none."""

    async def resolve(self, attempt_id, now_unix_s, *, task_id=""):
        attempt = self.attempt(attempt_id)
        was_followed = attempt is not None and attempt.row.current_attempt is attempt
        told = await super().resolve(attempt_id, now_unix_s, task_id=task_id)
        if was_followed and attempt.row.current_attempt is not attempt:
            attempt.row.follow(None)
        return told


@wrong("what_exists_is_found_or_is_not_there")
class FindsNothingThatExists(MemoryLedger, Rows):
    """What exists under an unknown name stays so for ever."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        attempt = self.attempt(attempt_id)
        if attempt is None or attempt.outcome is not AttemptOutcome.EXISTS_WITHOUT_ID:
            await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)


@wrong("what_exists_is_found_or_is_not_there")
class PlansNothingThatExists(MemoryLedger, Rows):
    """A track whose WAV is not there after all is not planned again."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        attempt = self.attempt(attempt_id)
        existed = attempt is not None and attempt.row.base_state is TrackState.EXISTS_WITHOUT_ID
        await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)
        if existed and outcome is AttemptOutcome.NOT_CREATED:
            attempt.row.base_state = TrackState.EXISTS_WITHOUT_ID


@wrong("an_unheard_of_attempt_is_ignored")
class MissesUnheardOfAttempts(MemoryLedger, Rows):
    """The end of an attempt that is not there is an error."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        if self.attempt(attempt_id) is None:
            msg = "no such attempt"
            raise LedgerError(msg)
        await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)


@wrong("a_doubt_ends_accepted_or_not_created")
class RenewsADoubtThatIsRepeated(MemoryLedger, Rows):
    """A doubt said twice is since the second time."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)
        if (attempt := self.attempt(attempt_id)) is not None:
            attempt.ended_unix_s = now_unix_s


@wrong("a_wav_comes_while_a_repeat_is_on_the_wire")
class PlansWhatCameToNothing(MemoryLedger, Rows):
    """After a submit that created nothing a track is planned, whatever it was."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)
        attempt = self.attempt(attempt_id)
        if attempt is not None and outcome is attempt.outcome is AttemptOutcome.NOT_CREATED:
            attempt.row.follow(None)


@wrong("a_repeat_that_created_nothing_was_none")
class RefusesWhatHasAWav(MemoryLedger, Rows):
    """A repeat that was refused has its track refused."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)
        attempt = self.attempt(attempt_id)
        if attempt is not None and outcome is attempt.outcome is AttemptOutcome.REJECTED:
            attempt.row.base_state = TrackState.REJECTED


@wrong("one_doubt_of_two_stays")
class ForgetsOlderDoubts(MemoryLedger, Rows):
    """Only the latest submit of a track can be in doubt."""

    async def begin_attempt(self, track, attempt_id, now_unix_s, *, again=False):
        told = await super().begin_attempt(track, attempt_id, now_unix_s, again=again)
        if told is None:
            row = self.row(track)
            row.superseded_through = len(row.attempts) - 1
        return told


@wrong("a_repeat_is_followed_and_the_doubt_stays")
class AbsolvesByAcceptance(MemoryLedger, Rows):
    """A repeat that was accepted ends the doubts before it."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)
        attempt = self.attempt(attempt_id)
        if attempt is not None and outcome is AttemptOutcome.ACCEPTED:
            for other in attempt.row.attempts:
                if other is not attempt:
                    self._tables.unknown.pop(other.attempt_id, None)


@wrong("a_doubt_of_a_repeat_is_a_doubt")
class DoubtsNothingThatHasAWav(MemoryLedger, Rows):
    """A repeat in doubt does not put a track in doubt that has a WAV."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)
        attempt = self.attempt(attempt_id)
        if attempt is not None and attempt.row.base_state in {
            TrackState.SUCCEEDED,
            TrackState.SAVED,
        }:
            attempt.row.superseded_through = len(attempt.row.attempts)


@wrong("a_track_is_followed_under_one_task_then_the_other")
class FollowsTheLatest(MemoryLedger, Rows):
    """A second task takes the place of the first."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        attempt = self.attempt(attempt_id)
        if attempt is not None and attempt.outcome is AttemptOutcome.UNKNOWN and kwargs["task_id"]:
            attempt.row.current_attempt = None
        await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)


@wrong("a_new_submit_is_followed")
class FollowsOneTaskForEver(MemoryLedger, Rows):
    """A track that has had a task is never followed under another."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        attempt = self.attempt(attempt_id)
        followed = None if attempt is None else attempt.row.current_attempt
        await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)
        if followed is not None:
            attempt.row.current_attempt = followed


@wrong("a_wav_is_not_lost_to_a_late_find")
class LosesAWavToALateFind(MemoryLedger, Rows):
    """An old doubt that turns out accepted has a track followed that has its WAV."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)
        attempt = self.attempt(attempt_id)
        has_task = attempt is not None and attempt.task_id and not attempt.is_task_over
        if has_task and not attempt.row.is_followed():
            attempt.row.follow(attempt)


@wrong("a_task_named_again_is_followed_again")
class IgnoresATaskNamedAgain(MemoryLedger):
    """A task that has ended once is not followed again."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, *, task_id="", **kwargs):
        if any(attempt.is_task_over for attempt in self._tables.by_task.get(task_id, ())):
            outcome, task_id = AttemptOutcome.NOT_CREATED, ""
        await super().finish_attempt(attempt_id, outcome, now_unix_s, task_id=task_id, **kwargs)


@wrong("a_paid_track_is_never_free")
class FreesWhatIsAnothers(MemoryLedger, Rows):
    """A task of another track is nobody's."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, *, task_id="", **kwargs):
        others = {attempt.row for attempt in self._tables.by_task.get(task_id, ())}
        attempt = self.attempt(attempt_id)
        if attempt is not None and others - {attempt.row}:
            outcome, task_id = AttemptOutcome.NOT_CREATED, ""
        await super().finish_attempt(attempt_id, outcome, now_unix_s, task_id=task_id, **kwargs)


@wrong("a_task_is_as_old_as_its_submit")
class DatesTasksByTheirAnswer(MemoryLedger, Rows):
    """A task is as old as the answer that named it."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)
        if (attempt := self.attempt(attempt_id)) is not None and attempt.task_id:
            attempt.begun_unix_s = now_unix_s


@wrong("every_outcome_of_a_submit")
class AcceptsWhatIsAdopted(MemoryLedger):
    """A task that existed before is as old as our submit."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        if outcome is AttemptOutcome.ADOPTED:
            outcome = AttemptOutcome.ACCEPTED
        await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)


@wrong("every_outcome_of_a_submit")
class RemembersNoReasons(MemoryLedger):
    """A refused track does not tell why."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        await super().finish_attempt(
            attempt_id, outcome, now_unix_s, task_id=kwargs.get("task_id", "")
        )


@wrong("calls_take_effect_in_order")
class EndsByHalves(MemoryLedger):
    """A call that is cancelled has written half of it."""

    async def finish_attempt(self, attempt_id, outcome, now_unix_s, **kwargs):
        if outcome is AttemptOutcome.ACCEPTED and attempt_id in self._tables.attempts:
            attempt = self._tables.attempts[attempt_id]
            if attempt.outcome is None:
                self._tables.end(attempt, outcome, now_unix_s)
                await asyncio.sleep(0)
                attempt.outcome = None
                self._tables.ends.pop()
        await super().finish_attempt(attempt_id, outcome, now_unix_s, **kwargs)


# Callbacks.


@wrong("a_task_named_for_a_doubt_is_told")
class HearsTheLast(MemoryLedger, Rows):
    """The last callback counts."""

    async def record_callback(self, attempt_id, task_id):
        if (attempt := self.attempt(attempt_id)) is not None:
            attempt.callback_task = ""
        await super().record_callback(attempt_id, task_id)


@wrong("a_task_named_for_a_doubt_is_told")
class HearsNothingUnderWay(MemoryLedger, Rows):
    """A callback counts once the submit is in doubt."""

    async def record_callback(self, attempt_id, task_id):
        if attempt_id in self._tables.unknown:
            await super().record_callback(attempt_id, task_id)


@wrong("an_unheard_of_task_is_ignored")
class AdoptsWhatItHears(MemoryLedger, Rows):
    """A callback that names a doubt is believed."""

    async def record_callback(self, attempt_id, task_id):
        await super().record_callback(attempt_id, task_id)
        if attempt_id in self._tables.unknown:
            await self.finish_attempt(attempt_id, AttemptOutcome.ACCEPTED, 0.0, task_id=task_id)


# Tasks.


@wrong("the_first_end_counts")
class SettlesTwice(MemoryLedger):
    """The last end of a task counts."""

    async def finish_task(self, task_id, now_unix_s, **kwargs):
        for attempt in self._tables.by_task.get(task_id, ()):
            attempt.is_task_over = False
        await super().finish_task(task_id, now_unix_s, **kwargs)


@wrong("an_unheard_of_task_is_ignored")
class SettlesUnheardOfTasks(MemoryLedger):
    """The end of a task that is not there is an error."""

    async def finish_task(self, task_id, now_unix_s, **kwargs):
        if task_id not in self._tables.by_task:
            msg = "no such task"
            raise LedgerError(msg)
        await super().finish_task(task_id, now_unix_s, **kwargs)


@wrong("the_task_beside_may_fail_first")
class FailsByAnyTask(MemoryLedger):
    """A track fails with the first of its tasks that fails."""

    async def finish_task(self, task_id, now_unix_s, *, wav_url=None, **kwargs):
        made = self._tables.by_task.get(task_id, [])
        rows = [attempt.row for attempt in made if not attempt.is_task_over]
        await super().finish_task(task_id, now_unix_s, wav_url=wav_url, **kwargs)
        for row in rows if wav_url is None else ():
            row.base_state, row.current_attempt = TrackState.FAILED, made[-1]


@wrong("the_first_end_counts")
class FailsWhileAnotherIsInFlight(MemoryLedger):
    """A track fails with the task it is followed under, whatever else there is."""

    async def finish_task(self, task_id, now_unix_s, *, wav_url=None, **kwargs):
        rows = [attempt.row for attempt in self._tables.by_task.get(task_id, [])]
        followed = [row.current_attempt for row in rows]
        await super().finish_task(task_id, now_unix_s, wav_url=wav_url, **kwargs)
        for row, attempt in zip(rows, followed, strict=True):
            if wav_url is None and attempt is not None and attempt.task_id == task_id:
                row.base_state, row.current_attempt = TrackState.FAILED, attempt


@wrong("a_repeat_in_doubt_ends_in_failure")
class FailsInDoubt(MemoryLedger):
    """A task that failed ends the doubts about its track."""

    async def finish_task(self, task_id, now_unix_s, *, wav_url=None, **kwargs):
        await super().finish_task(task_id, now_unix_s, wav_url=wav_url, **kwargs)
        for attempt in self._tables.by_task.get(task_id, []):
            attempt.row.superseded_through = len(attempt.row.attempts)


@wrong("the_first_wav_of_two_tasks_is_taken")
class WaitsForTheTaskItFollows(MemoryLedger):
    """A WAV of another task than the one followed is no WAV."""

    async def finish_task(self, task_id, now_unix_s, **kwargs):
        made = self._tables.by_task.get(task_id, [])
        if any(attempt.row.current_attempt is attempt for attempt in made):
            await super().finish_task(task_id, now_unix_s, **kwargs)


@wrong("the_first_wav_of_two_tasks_is_taken")
class StoresNoMore(MemoryLedger, Rows):
    """A second WAV takes the place of the file that is here."""

    async def finish_task(self, task_id, now_unix_s, *, wav_url=None, **kwargs):
        rows = [a.row for a in self._tables.by_task.get(task_id, []) if not a.is_task_over]
        await super().finish_task(task_id, now_unix_s, wav_url=wav_url, **kwargs)
        for row in rows if wav_url is not None else ():
            row.base_state = TrackState.SUCCEEDED


@wrong("a_wav_is_not_lost_to_a_late_find")
class StaysInDoubtWithItsWav(MemoryLedger):
    """A track whose repeat has a WAV is in doubt for ever, for the first submit."""

    async def finish_task(self, task_id, now_unix_s, **kwargs):
        await super().finish_task(task_id, now_unix_s, **kwargs)
        for attempt in self._tables.by_task.get(task_id, []):
            attempt.row.superseded_through = 0


@wrong("a_wav_is_kept_to_the_byte")
class DecodesUrls(MemoryLedger):
    """A URL is kept as people would read it."""

    async def finish_task(self, task_id, now_unix_s, *, wav_url=None, **kwargs):
        url = None if wav_url is None else URL(wav_url.human_repr())
        await super().finish_task(task_id, now_unix_s, wav_url=url, **kwargs)


@wrong("a_failure_is_told")
class KeepsTheFirstLine(MemoryLedger):
    """Of what the service said, a line is enough."""

    async def finish_task(self, task_id, now_unix_s, *, error=None, **kwargs):
        line = None if error is None else error.splitlines()[0]
        await super().finish_task(task_id, now_unix_s, error=line, **kwargs)


@wrong("a_failure_is_told")
class RoundsTimes(MemoryLedger):
    """When a task was settled is kept to the hour."""

    async def finish_task(self, task_id, now_unix_s, **kwargs):
        await super().finish_task(task_id, now_unix_s // 3600 * 3600, **kwargs)


@wrong("calls_take_effect_in_order")
class SettlesLate(MemoryLedger):
    """The end of a task takes effect after the calls made next."""

    async def finish_task(self, task_id, now_unix_s, **kwargs):
        await asyncio.sleep(0)
        await super().finish_task(task_id, now_unix_s, **kwargs)


# Files, expiry, trying again.


@wrong("only_a_wav_is_stored")
class StoresAnything(MemoryLedger, Rows):
    """A track that has no WAV can be stored."""

    async def mark_saved(self, track, **kwargs):
        if (row := self.row(track)) is not None:
            row.base_state = TrackState.SUCCEEDED
        await super().mark_saved(track, **kwargs)


@wrong("only_a_wav_is_stored")
class MissesUnheardOfTracks(MemoryLedger, Rows):
    """A file of a track that is not there is an error."""

    async def mark_saved(self, track, **kwargs):
        if self.row(track) is None:
            msg = "no such track"
            raise LedgerError(msg)
        await super().mark_saved(track, **kwargs)


@wrong("a_stored_track_tells_its_file")
class StoresSmallFiles(MemoryLedger):
    """A size is of 32 bits."""

    async def mark_saved(self, track, *, path, size, sha256):
        await super().mark_saved(track, path=path, size=size % 2**32, sha256=sha256)


@wrong("a_wav_expires_when_the_service_says_so")
class ExpiresByAge(MemoryLedger, Rows):
    """A WAV expires by our clock, whatever the service says."""

    async def mark_expired(self, track):
        row = self.row(track)
        if row is not None and row.entry().is_adopted:
            return
        await super().mark_expired(track)


@wrong("a_wav_expires_when_the_service_says_so")
class ExpiresTheOthersToo(MemoryLedger, Rows):
    """When one WAV is deleted, so are those of the same age."""

    async def mark_expired(self, track):
        await super().mark_expired(track)
        row = self.row(track)
        if row is not None and row.base_state is TrackState.EXPIRED:
            for other in self.rows():
                if other.state() is TrackState.SUCCEEDED:
                    other.base_state = TrackState.EXPIRED


@wrong("a_wav_expires_when_the_service_says_so")
class ExpiresFiles(MemoryLedger, Rows):
    """A file here is given up with its WAV at the service."""

    async def mark_expired(self, track):
        row = self.row(track)
        if row is not None and row.base_state is TrackState.SAVED:
            row.base_state, row.file = TrackState.SUCCEEDED, None
        await super().mark_expired(track)


@wrong("a_wav_expires_when_the_service_says_so")
class ForgetsTheEndOfWhatIsDeleted(MemoryLedger, Rows):
    """What the service has deleted never was."""

    async def mark_expired(self, track):
        await super().mark_expired(track)
        row = self.row(track)
        if row is not None and row.base_state is TrackState.EXPIRED:
            row.wav_url = None


@wrong("what_is_expired_may_be_fetched_again")
class GivesUpForGood(MemoryLedger, Rows):
    """What is expired once stays so."""

    async def mark_missing(self, track):
        row = self.row(track)
        if row is None or row.base_state is not TrackState.EXPIRED:
            await super().mark_missing(track)


@wrong("what_is_expired_may_be_fetched_again")
class ForgetsThePlaceOfWhatComesBack(MemoryLedger, Rows):
    """What comes back is to be saved elsewhere."""

    async def mark_missing(self, track):
        row = self.row(track)
        if row is not None and row.base_state is TrackState.EXPIRED and row.path is not None:
            self._tables.place(row, row.path, None)
            row.path = None
        await super().mark_missing(track)


@wrong("the_time_of_acceptance_is_the_later_one")
class ForgetsWhenItWasAccepted(MemoryLedger):
    """When a task was made is not kept with the submit."""

    async def finish_attempt(self, *args, **kwargs):
        await super().finish_attempt(*args, **(kwargs | {"accepted_unix_s": None}))


@wrong("the_time_of_acceptance_is_the_later_one")
class TakesTheRecordsWord(MemoryLedger, Rows):
    """What the record says of the time counts, though the service's clock said a later one."""

    async def finish_task(self, task_id, now_unix_s, *, accepted_unix_s=None, **kwargs):
        made = self._tables.by_task.get(task_id, [])
        if accepted_unix_s is not None:
            for attempt in made:
                if not attempt.is_task_over:
                    attempt.accepted_unix_s = None
        await super().finish_task(task_id, now_unix_s, accepted_unix_s=accepted_unix_s, **kwargs)


@wrong("the_time_of_acceptance_is_the_later_one")
class KeepsTheAgeOfAnotherTask(MemoryLedger, Rows):
    """A track is as old as its first task."""

    async def finish_attempt(self, attempt_id, *args, accepted_unix_s=None, **kwargs):
        attempt = self.attempt(attempt_id)
        if attempt is not None and accepted_unix_s is None:
            first = attempt.row.attempts[0]
            accepted_unix_s = first.accepted_unix_s if first is not attempt else None
        await super().finish_attempt(attempt_id, *args, accepted_unix_s=accepted_unix_s, **kwargs)


@wrong("retry_plans_what_is_named")
class RetriesAllThree(MemoryLedger):
    """Whatever came to nothing is planned again, named or not."""

    async def requeue(self, states):
        states = list(states)
        every = [TrackState.REJECTED, TrackState.FAILED, TrackState.EXPIRED]
        return await super().requeue(every if states else [])


@wrong("retry_plans_what_is_named")
class RetriesWithTheOldReason(MemoryLedger, Rows):
    """What is planned again says why it failed."""

    async def requeue(self, states):
        before = {id(row): (row.error_code, row.error) for row in self.rows()}
        planned = await super().requeue(states)
        for row in self.rows():
            row.error_code, row.error = before[id(row)]
        return planned

    async def get(self, track):
        entry = await super().get(track)
        row = self.row(track)
        if entry is None or entry.state is not TrackState.PLANNED:
            return entry
        return attrs.evolve(entry, error_code=row.error_code, error=row.error)


@wrong("retry_forgets_no_bill")
class ForgetsTheBill(MemoryLedger, Rows):
    """What is planned again was never paid."""

    async def requeue(self, states):
        states = set(states)
        for row in self.rows():
            if row.state() in states:
                for attempt in row.attempts:
                    del self._tables.attempts[attempt.attempt_id]
        return await super().requeue(states)


# Where files are to be.


@wrong("a_place_is_told_in_every_state")
class PlacesWhatSucceeded(MemoryLedger, Rows):
    """A place is for a track whose WAV is there."""

    async def reserve_path(self, track, **kwargs):
        row = self.row(track)
        if row is not None and row.state() is not TrackState.SUCCEEDED:
            return False
        return await super().reserve_path(track, **kwargs)


@wrong("a_place_is_told_in_every_state")
class TellsThePathOfFilesAlone(MemoryLedger):
    """A path is told once there is a file."""

    async def get(self, track):
        entry = await super().get(track)
        if entry is None or entry.bytes is not None:
            return entry
        return attrs.evolve(entry, path=None)


@wrong("a_place_is_told_in_every_state")
class LosesPlaces(MemoryLedger):
    """Where files were to be is gone when it dies."""

    def die(self):
        left = super().die()
        for row in left._tables.rows.values():
            row.path = row.key = None
        left._tables.by_key.clear()
        return left


@wrong("a_place_is_told_in_every_state")
class RefusesAPlaceAskedForAgain(MemoryLedger):
    """A key that somebody has is taken, whoever asks."""

    async def reserve_path(self, track, *, path, key):
        return key not in self._tables.by_key and await super().reserve_path(
            track, path=path, key=key
        )


@wrong("a_place_is_told_in_every_state")
class KeepsTheFirstPlace(MemoryLedger, Rows):
    """A track that has a place has it for good."""

    async def reserve_path(self, track, **kwargs):
        row = self.row(track)
        if row is not None and row.path is not None:
            return True
        return await super().reserve_path(track, **kwargs)


@wrong("a_place_is_told_in_every_state")
class PlansWhatHasAPlace(MemoryLedger, Rows):
    """A track that is given a place is to be converted."""

    async def reserve_path(self, track, **kwargs):
        if (row := self.row(track)) is not None:
            row.follow(None)
        return await super().reserve_path(track, **kwargs)


@wrong("a_place_is_one_tracks_alone")
class SharesPlaces(MemoryLedger):
    """Two tracks may be saved to one place."""

    async def reserve_path(self, track, *, path, key):
        self._tables.by_key.pop(key, None)
        return await super().reserve_path(track, path=path, key=key)


@wrong("a_place_is_one_tracks_alone")
class ComparesPaths(MemoryLedger):
    """Two paths are one place if they are spelt alike."""

    async def reserve_path(self, track, *, path, key):  # noqa: ARG002 - that is what is wrong
        return await super().reserve_path(track, path=path, key=path)


@wrong("a_place_is_one_tracks_alone")
class MovesWhatIsRefused(MemoryLedger, Rows):
    """A track that may not be at a path is told to be there."""

    async def reserve_path(self, track, *, path, key):
        is_free = await super().reserve_path(track, path=path, key=key)
        if (row := self.row(track)) is not None:
            row.path = path
        return is_free


@wrong("a_place_is_one_tracks_alone")
class KeepsFormerPlaces(MemoryLedger, Rows):
    """A place that was given up is not free."""

    async def reserve_path(self, track, *, path, key):
        row = self.row(track)
        former = None if row is None else row.key
        is_free = await super().reserve_path(track, path=path, key=key)
        if former is not None:
            self._tables.by_key.setdefault(former, row)
        return is_free


@wrong("a_place_is_one_tracks_alone")
class ForgetsKeysWhenItCloses(MemoryLedger):
    """Who may be where is kept for one process."""

    async def aclose(self):
        await super().aclose()
        if not self._opened:
            self._tables.by_key.clear()
            for row in self._tables.rows.values():
                row.key = None


@wrong("one_of_many_has_a_place")
class LooksBeforeItReserves(MemoryLedger, Rows):
    """Between the look and the note another may have had the place."""

    async def reserve_path(self, track, *, path, key):
        is_free = self._tables.by_key.get(key, self.row(track)) is self.row(track)
        await asyncio.sleep(0)
        if is_free:
            self._tables.by_key.pop(key, None)
            return await super().reserve_path(track, path=path, key=key)
        return False


@wrong("a_file_stays_where_it_is")
class MovesFiles(MemoryLedger, Rows):
    """A file is where its track was told to be last."""

    async def reserve_path(self, track, *, path, key):
        row = self.row(track)
        if row is not None and row.file is not None and key not in self._tables.by_key:
            self._tables.place(row, path, key)
            return True
        return await super().reserve_path(track, path=path, key=key)


@wrong("a_file_stays_where_it_is")
class RefusesFiles(MemoryLedger, Rows):
    """A track whose file is here needs no place."""

    async def reserve_path(self, track, **kwargs):
        row = self.row(track)
        if row is not None and row.file is not None:
            return False
        return await super().reserve_path(track, **kwargs)


@wrong("a_file_stays_where_it_is")
class TakesNoKeyForFiles(MemoryLedger, Rows):
    """A file at its path has all it needs."""

    async def reserve_path(self, track, *, path, key):
        row = self.row(track)
        if row is not None and row.file is not None:
            return row.path == path
        return await super().reserve_path(track, path=path, key=key)


@wrong("a_file_stays_where_it_is")
class MovesFilesOfWhatIsOnTheWire(MemoryLedger, Rows):
    """Only a track that stands as stored has a file."""

    async def reserve_path(self, track, **kwargs):
        row = self.row(track)
        if row is None or row.state() is TrackState.SAVED:
            return await super().reserve_path(track, **kwargs)
        rest, row.base_state = row.base_state, TrackState.PLANNED
        is_free = await super().reserve_path(track, **kwargs)
        row.base_state = rest
        return is_free


@wrong("a_track_that_is_not_there_has_no_place")
class PlansWhatIsToHaveAPlace(MemoryLedger):
    """A track that is not there is taken in to be given a place."""

    async def reserve_path(self, track, **kwargs):
        await super().add_tracks([track])
        return await super().reserve_path(track, **kwargs)


@wrong("a_track_that_is_not_there_has_no_place")
class AgreesToAnything(MemoryLedger, Rows):
    """A track that is not there may be anywhere."""

    async def reserve_path(self, track, **kwargs):
        return self.row(track) is None or await super().reserve_path(track, **kwargs)


@wrong("a_file_elsewhere_gives_up_its_place")
class KeepsThePlaceOfAFileElsewhere(MemoryLedger, Rows):
    """A key is kept wherever the file is."""

    async def mark_saved(self, track, **kwargs):
        row = self.row(track)
        key = None if row is None else row.key
        await super().mark_saved(track, **kwargs)
        if key is not None:
            self._tables.place(row, row.path, key)


@wrong("a_file_elsewhere_gives_up_its_place")
class GivesUpPlacesWithFiles(MemoryLedger, Rows):
    """A file keeps others off by being there."""

    async def mark_saved(self, track, **kwargs):
        await super().mark_saved(track, **kwargs)
        if (row := self.row(track)) is not None and row.file is not None:
            self._tables.place(row, row.path, None)


def forgetting(call, *, path):
    """Make a ledger where *call* makes a track forget its place, or its key alone."""

    async def forget(self, *args, **kwargs):
        before = {row.index: row.state() for row in self._tables.rows.values()}
        told = await getattr(MemoryLedger, call)(self, *args, **kwargs)
        for row in self._tables.rows.values():
            if row.state() is not before.get(row.index, row.state()) and row.path is not None:
                self._tables.place(row, row.path, None)
                row.path = row.path if path else None
        return told

    return type("Forgets", (MemoryLedger,), {call: forget})


for _call in ("begin_attempt", "finish_attempt", "finish_task", "mark_expired", "requeue"):
    for _what, _keeps_path in {"places": False, "keys": True}.items():
        WRONG[f"forgets {_what} at {_call}"] = (
            forgetting(_call, path=_keeps_path),
            "test_a_place_outlives_the_wav",
        )


@wrong("a_place_outlives_the_wav")
class KeepsTheOldFile(MemoryLedger, Rows):
    """What is converted anew is told with the file it had."""

    async def finish_attempt(self, attempt_id, *args, **kwargs):
        attempt = self.attempt(attempt_id)
        file = None if attempt is None else attempt.row.file
        await super().finish_attempt(attempt_id, *args, **kwargs)
        if attempt is not None:
            attempt.row.file = file


@wrong("a_cancelled_reservation_does_no_harm")
class HoldsAPlaceForWhoIsCancelled(MemoryLedger):
    """Who is cancelled while he asks for a place keeps it from all, himself among them."""

    def __init__(self):
        super().__init__()
        self.asked = set()

    async def reserve_path(self, track, *, path, key):
        if key in self.asked:
            return False
        self.asked.add(key)
        await asyncio.sleep(0)
        self.asked.remove(key)
        return await super().reserve_path(track, path=path, key=key)


@wrong("a_file_that_is_gone_is_fetched_again")
class ConvertsAgainWhatIsGone(MemoryLedger, Rows):
    """A file that is gone is to be paid again."""

    async def mark_missing(self, track):
        if (row := self.row(track)) is not None and row.base_state is TrackState.SAVED:
            row.follow(None)


@wrong("a_file_that_is_gone_is_fetched_again")
class ForgetsWhereItWas(MemoryLedger, Rows):
    """With a file its place is gone."""

    async def mark_missing(self, track):
        row = self.row(track)
        if row is not None and row.base_state is TrackState.SAVED:
            self._tables.place(row, row.path, None)
            row.path = None
        await super().mark_missing(track)


@wrong("a_file_that_is_gone_is_fetched_again")
class TellsWhatIsGone(MemoryLedger, Rows):
    """Of a file that is gone the size and the digest are told on."""

    async def mark_missing(self, track):
        row = self.row(track)
        file = None if row is None else row.file
        await super().mark_missing(track)
        if file is not None:
            row.file = file


@wrong("a_file_that_is_gone_is_fetched_again")
class MissesNothingInDoubt(MemoryLedger, Rows):
    """Only of a track that stands as stored a file can be gone."""

    async def mark_missing(self, track):
        row = self.row(track)
        if row is not None and row.state() is TrackState.SAVED:
            await super().mark_missing(track)


@wrong("only_a_wav_is_fetched_again")
class FetchesWhatFailed(MemoryLedger, Rows):
    """A failed track has succeeded once its file is said to be gone."""

    async def mark_missing(self, track):
        row = self.row(track)
        if row is not None and row.base_state is TrackState.FAILED:
            row.base_state = TrackState.SAVED
        await super().mark_missing(track)


@wrong("only_a_wav_is_fetched_again")
class MissesWhatNeverWas(MemoryLedger, Rows):
    """A file gone of a track that is not there is an error."""

    async def mark_missing(self, track):
        if self.row(track) is None:
            msg = "no such track"
            raise LedgerError(msg)
        await super().mark_missing(track)


@wrong("calls_made_twice_change_nothing")
class TakesTheFileAwayTwice(MemoryLedger, Rows):
    """A file that is gone again is to be paid again."""

    async def mark_missing(self, track):
        row = self.row(track)
        is_again = row is not None and row.base_state is TrackState.SUCCEEDED
        await super().mark_missing(track)
        if is_again:
            row.base_state = TrackState.EXPIRED


@wrong("calls_take_effect_in_order")
class ReservesLate(MemoryLedger):
    """A place is noted after the calls made next."""

    async def reserve_path(self, track, **kwargs):
        await asyncio.sleep(0)
        return await super().reserve_path(track, **kwargs)


# Who named a file.


@wrong("what_named_a_wav_is_told")
class TakesEveryWavAsPolled(MemoryLedger):
    """It does not keep that a callback named the WAV."""

    async def finish_task(self, task_id, now_unix_s, **how):
        await super().finish_task(task_id, now_unix_s, **{**how, "settled_by": "poll"})


@wrong("what_named_a_wav_is_told")
class TellsWhoNamedNothing(MemoryLedger, Rows):
    """A track that failed has its WAV from a poll."""

    async def get(self, track):
        entry = await super().get(track)
        return entry and attrs.evolve(entry, settled_by=entry.settled_by or "poll")


@wrong("a_track_is_followed_under_one_task_then_the_other")
class NamesTheLatestSubmit(MemoryLedger):
    """The submit of the task that is followed is taken to be the latest."""

    async def get(self, track):
        entry = await super().get(track)
        return entry and attrs.evolve(entry, task_attempt_id=entry.attempt_id)


@wrong("hosts_are_told")
class ForgetsHosts(MemoryLedger):
    """Hosts die with the process."""

    def die(self):
        left = super().die()
        left._tables.hosts = {}
        return left


@wrong("hosts_are_told")
class KeepsEveryHost(MemoryLedger):
    """There is no end to the hosts."""

    async def keep_host(self, host):
        before = dict(self._tables.hosts)
        await super().keep_host(host)
        self._tables.hosts = {**before, **self._tables.hosts}


@wrong("hosts_are_told")
class KeepsHostsInTheirFirstOrder(MemoryLedger):
    """A host said again does not count as the latest."""

    async def keep_host(self, host):
        if host not in self._tables.hosts:
            await super().keep_host(host)


@wrong("hosts_are_told")
class ForgetsTheLatestHost(MemoryLedger):
    """Of too many hosts the one that came last goes."""

    async def keep_host(self, host):
        if len(self._tables.hosts) < 100:
            await super().keep_host(host)
