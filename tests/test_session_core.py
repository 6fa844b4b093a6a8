"""The core alone: what happened goes in, what is to be done comes out, with no loop at all."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from typing import TYPE_CHECKING, TypeVar

import attrs
import pytest
from yarl import URL

from kie_wav_async import (
    CallbackResult,
    OnUnknown,
    PollSchedule,
    RateLimit,
    RetryPolicy,
    TaskRecord,
    TaskState,
    Track,
    UnknownSubmit,
    WavFile,
)
from kie_wav_async.core.early_callbacks import VerifiedCallback
from kie_wav_async.core.effects import (
    BeginAttempt,
    Emit,
    FinishAttempt,
    FinishTask,
    Notify,
    NotifySubmit,
    Now,
    PollExisting,
    ResolveAttempt,
    SendPoll,
    SendSubmit,
    WriteTask,
)
from kie_wav_async.core.session_core import SessionCore
from kie_wav_async.core.settings import CoreSettings
from kie_wav_async.core.state_machine import Phase
from kie_wav_async.core.track_states import AttemptOutcome, TrackState
from kie_wav_async.errors import (
    AlreadyExistsError,
    LedgerError,
    SessionClosedError,
    SubmitUnknownError,
    TransportError,
)
from kie_wav_async.protocol.api_constants import KIE_WAV
from kie_wav_async.protocol.submit_result import SubmitKind, SubmitResult

if TYPE_CHECKING:
    from kie_wav_async.core.effects import Effect
    from kie_wav_async.core.state_machine import TaskEntry

E = TypeVar("E")

TRACK = Track("5c79", "e231")
OTHER = Track("5c79", "e232")
FILE = URL("https://files.example/a.wav")
SETTINGS = CoreSettings(
    rate_limit=RateLimit(20, per_s=10.0),
    max_in_flight=400,
    max_charges=None,
    poll=PollSchedule(),
    retry=RetryPolicy(),
    on_unknown=OnUnknown.RAISE,
    timeout_s=900.0,
    callback_url="https://mine.example/kie",
    has_ledger=False,
    has_listener=True,
)
ACCEPTED = SubmitResult(SubmitKind.ACCEPTED, "task1", has_code=True)
LOST = SubmitResult(SubmitKind.UNKNOWN, error=TransportError("reset"))


@attrs.frozen
class Known:
    """What a ledger says of a track."""

    state: TrackState
    track: Track = TRACK
    attempt_id: str = "e" * 32
    task_id: str = ""
    error: str | None = None


class Waiter:
    """Stands for a future: the core only keeps it."""

    def done(self) -> bool:
        return False

    def set_result(self, result: object) -> None:
        raise NotImplementedError


class Steady:
    """Chance, taken out."""

    def __init__(self) -> None:
        self._names = itertools.count(1)

    def random(self) -> float:
        return 0.5

    def attempt_id(self) -> str:
        return f"{next(self._names):032x}"


class Driver:
    """Tells a core what happens, keeps the time, and finds effects by their kind."""

    def __init__(self, **changed: object) -> None:
        self.core = SessionCore(SETTINGS._replace(**changed), Steady())
        self.now = Now(1_000.0, 1.7e9)

    def later(self, seconds: float) -> None:
        self.now = Now(self.now.mono_s + seconds, self.now.unix_s + seconds)

    def ask(self, track: Track = TRACK) -> tuple[TaskEntry, list[Effect]]:
        """Ask for a track, and wait for it."""
        entry, effects = self.core.ask(self.now, track)
        entry.add_waiter(Waiter())
        return entry, [*effects, *self.core.dispatch(self.now)]

    def accepted(self, task_id: str = "task1", track: Track = TRACK) -> TaskEntry:
        """Return an entry whose submit is accepted, without a ledger."""
        entry, _ = self.ask(track)
        self.core.on_submit_result(self.now, entry, ACCEPTED._replace(task_id=task_id))
        return entry

    def time_passes(self) -> list[Effect]:
        """Go on to the moment at which the core wants to be told the time."""
        self.later(self.core.next_at - self.now.mono_s)
        return self.core.on_time(self.now)


def only(effects: list[Effect], kind: type[E]) -> E:
    """Return the only effect of a kind."""
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert 1 == len(found), effects
    return found[0]


def kinds(effects: list[Effect]) -> list[str]:
    """Return the kinds of effects, events left out."""
    return [type(effect).__name__ for effect in effects if not isinstance(effect, Emit)]


def test_a_submit_becomes_a_file() -> None:
    """Asked for, answered, polled, and told."""
    driver = Driver()
    core = driver.core
    entry, effects = driver.ask()
    assert ["SendSubmit"] == kinds(effects)
    assert ["NotifySubmit"] == kinds(core.on_submit_result(driver.now, entry, ACCEPTED))
    poll = only(driver.time_passes(), SendPoll)
    record = TaskRecord("task1", TaskState.SUCCEEDED, wav_url=FILE)
    effects = core.on_poll_result(driver.now, poll, record, host="files.example:443")

    assert ["Notify", "KeepHost"] == kinds(effects)
    assert isinstance(entry.outcome, WavFile)
    assert FILE == entry.outcome.url


def test_nothing_leaves_before_it_is_written() -> None:
    """With a ledger each write stands alone, and what depends on it follows it (decision 20)."""
    driver = Driver(has_ledger=True)
    core = driver.core
    entry, effects = driver.ask()
    assert ["BeginAttempt"] == kinds(effects)
    assert ["SendSubmit"] == kinds(core.on_intent_written(driver.now, entry, None))
    effects = core.on_submit_result(driver.now, entry, ACCEPTED)
    assert ["WriteTask"] == kinds(effects)
    assert Phase.SUBMITTING is entry.phase
    write = only(effects, WriteTask)
    assert ["NotifySubmit"] == kinds(core.on_task_written(driver.now, write, None))
    poll = only(driver.time_passes(), SendPoll)
    record = TaskRecord("task1", TaskState.SUCCEEDED, wav_url=FILE)
    effects = core.on_poll_result(driver.now, poll, record, host=None)
    assert ["FinishTask"] == kinds(effects)
    assert not entry.done()

    assert ["Notify"] == kinds(core.on_end_written(driver.now, entry, None))
    assert entry.done()


def test_an_end_that_cannot_be_written_is_told_as_that() -> None:
    """The waiters of a task whose end the ledger does not take get a `LedgerError`."""
    driver = Driver(has_ledger=True)
    core = driver.core
    entry, _ = driver.ask()
    core.on_intent_written(driver.now, entry, None)
    write = only(core.on_submit_result(driver.now, entry, ACCEPTED), WriteTask)
    core.on_task_written(driver.now, write, None)
    poll = only(driver.time_passes(), SendPoll)
    record = TaskRecord("task1", TaskState.SUCCEEDED, wav_url=FILE)
    only(core.on_poll_result(driver.now, poll, record, host=None), FinishTask)

    assert ["Notify"] == kinds(core.on_end_written(driver.now, entry, LedgerError("disk full")))
    assert isinstance(entry.outcome, LedgerError)


@pytest.mark.parametrize("failure", [LedgerError("disk full"), None])
def test_a_submit_whose_intent_is_not_written_does_not_leave(failure: LedgerError | None) -> None:
    """Whether the ledger fails or the session closes meanwhile: nothing is sent."""
    driver = Driver(has_ledger=True)
    entry, effects = driver.ask()
    only(effects, BeginAttempt)
    effects = driver.core.on_intent_failed(driver.now, entry, failure)

    assert ("Notify" in kinds(effects)) is (failure is not None)
    assert entry.phase in {Phase.REJECTED, Phase.CANCELLED}
    assert 0 == driver.core.registry.statistics().submitted


def test_a_submit_that_nothing_waits_for_is_taken_back_after_its_intent() -> None:
    """Whoever asked went away while the intent was being written: nothing is sent."""
    driver = Driver(has_ledger=True)
    entry, _ = driver.core.ask(driver.now, TRACK)
    only(driver.core.dispatch(driver.now), BeginAttempt)
    effects = driver.core.on_intent_written(driver.now, entry, None)

    assert AttemptOutcome.NOT_CREATED is only(effects, FinishAttempt).outcome
    assert Phase.CANCELLED is entry.phase


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (TrackState.EXISTS_WITHOUT_ID, AlreadyExistsError),
        (TrackState.UNKNOWN, SubmitUnknownError),
        (TrackState.SUBMITTING, SubmitUnknownError),
    ],
)
def test_what_the_ledger_has_of_a_track_forbids_its_submit(
    state: TrackState, error: type[Exception]
) -> None:
    """Another session was faster with the same ledger: nothing is sent."""
    driver = Driver(has_ledger=True)
    entry, _ = driver.ask()
    effects = driver.core.on_intent_written(driver.now, entry, Known(state))

    assert ["Notify"] == kinds(effects)
    assert isinstance(only(effects, Notify).error, error)


@pytest.mark.parametrize("state", [TrackState.ACCEPTED, TrackState.SUCCEEDED, TrackState.SAVED])
def test_a_task_that_the_ledger_has_is_followed_instead(state: TrackState) -> None:
    """Another session was faster with the same ledger, and has a task: it is followed here too."""
    driver = Driver(has_ledger=True)
    entry, _ = driver.ask()
    effects = driver.core.on_intent_written(driver.now, entry, Known(state, task_id="task7"))

    assert ["NotifySubmit"] == kinds(effects)
    assert ("task7", Phase.ACCEPTED) == (entry.task_id, entry.phase)


def test_a_task_written_down_that_is_another_tracks_by_then_is_not_taken() -> None:
    """A 409 names a task; while that is written down another track turns out to have it."""
    driver = Driver(has_ledger=True)
    core = driver.core
    entry, _ = driver.ask()
    core.on_intent_written(driver.now, entry, None)
    exists = SubmitResult(SubmitKind.EXISTS, "task9", has_code=True)
    poll = only(core.on_submit_result(driver.now, entry, exists), PollExisting)
    write = only(core.on_existing_polled(driver.now, poll, None), WriteTask)
    core.attach(driver.now, "task9", OTHER)
    effects = core.on_task_written(driver.now, write, None)

    assert AttemptOutcome.EXISTS_WITHOUT_ID is only(effects, FinishAttempt).outcome
    assert isinstance(only(effects, Notify).error, AlreadyExistsError)


def test_an_end_of_healthy_callbacks_moves_polls_to_the_schedule() -> None:
    """A callback of a task that nobody knows ends the waiting for callbacks."""
    driver = Driver()
    core = driver.core
    host = "files.example:443"
    for number in range(11):
        entry = driver.accepted(f"task{number}", Track("5c79", f"e{number}"))
        if number == 0:
            poll = only(driver.time_passes(), SendPoll)
            record = TaskRecord("task0", TaskState.SUCCEEDED, wav_url=FILE)
            core.on_poll_result(driver.now, poll, record, host=host)
            continue
        callback = VerifiedCallback(entry.task_id, entry.attempt_id, FILE, host)
        result, _ = core.on_callback(driver.now, callback, is_authentic=True)
        assert CallbackResult.SETTLED is result
    driver.later(SETTINGS.poll.first_s)
    assert [] == kinds(core.on_time(driver.now))  # They have ended, and are not polled.
    core.attach(driver.now, "task98", None)  # It may call back elsewhere: not waited for.
    driver.later(SETTINGS.poll.first_s)
    only(core.on_time(driver.now), SendPoll)
    driver.accepted("task11", Track("5c79", "e11"))
    due = core.next_at - driver.now.mono_s
    driver.later(1.0)
    stranger = VerifiedCallback("task99", None)
    result, _ = core.on_callback(driver.now, stranger, is_authentic=True)

    assert CallbackResult.UNKNOWN_TASK is result
    assert SETTINGS.poll.backstop_s == due
    assert SETTINGS.poll.first_s - 1.0 == core.next_at - driver.now.mono_s


def test_callbacks_of_an_earlier_run_count_for_unknown_submits_only() -> None:
    """Of what callbacks named in an earlier run, only what is still unknown is looked up."""
    driver = Driver(has_ledger=True)
    lost = UnknownSubmit(TRACK, "a" * 32, at=_moment(driver.now))
    effects = driver.core.restore(
        driver.now,
        accepted=1,
        unknown=[lost],
        ended_unix_s=[],
        hosts=[],
        callback_tasks={"b" * 32: "task2", lost.attempt_id: "task3"},
    )
    effects += driver.time_passes()

    assert "task3" == only(effects, SendPoll).task_id


def _moment(now: Now) -> dt.datetime:
    return dt.datetime.fromtimestamp(now.unix_s, dt.UTC)


def test_a_word_on_a_submit_that_is_no_longer_unknown_changes_nothing() -> None:
    """The service's own word came first: the user's is too late, and is not an error."""
    driver = Driver()
    core = driver.core
    entry, _ = driver.ask()
    core.on_submit_result(driver.now, entry, LOST)
    [unknown] = core.registry.unknown_submits()
    core.apply_resolution(driver.now, unknown, "task1")
    before = core.registry.statistics()
    earlier = UnknownSubmit(TRACK, "f" * 32, at=unknown.at)

    assert [] == core.apply_resolution(driver.now, earlier, "task2")
    assert before == core.registry.statistics()


def test_a_resolution_of_the_service_waits_for_the_ledger() -> None:
    """The task of an unknown submit is adopted once that is written down."""
    driver = Driver(has_ledger=True)
    core = driver.core
    entry, _ = driver.ask()
    core.on_intent_written(driver.now, entry, None)
    effects = core.on_submit_result(driver.now, entry, LOST)
    assert isinstance(only(effects, Notify).error, SubmitUnknownError)
    callback = VerifiedCallback("task1", entry.attempt_id)
    core.on_callback(driver.now, callback, is_authentic=True)
    poll = only(driver.time_passes(), SendPoll)
    url = f"https://mine.example/kie?attempt={entry.attempt_id}"
    record = TaskRecord(
        "task1",
        TaskState.PENDING,
        audio_id=TRACK.audio_id,
        raw={KIE_WAV.callback_url_names[0]: url},
    )
    effects = core.on_poll_result(driver.now, poll, record, host=None)
    resolve = only(effects, ResolveAttempt)
    assert Phase.UNKNOWN is entry.phase

    assert ["NotifySubmit"] == kinds(core.on_resolved(driver.now, resolve))
    assert ("task1", Phase.ACCEPTED) == (entry.task_id, entry.phase)
    assert [] == kinds(core.on_resolved(driver.now, resolve))


def test_a_closed_core_begins_nothing() -> None:
    """After closing, a response that says "again" is not followed by a request."""
    driver = Driver()
    core = driver.core
    entry, effects = driver.ask()
    only(effects, SendSubmit)
    core.close(SessionClosedError())
    unsent = SubmitResult(SubmitKind.NOT_SENT, error=TransportError("refused", maybe_sent=False))

    assert [] == kinds(core.on_submit_result(driver.now, entry, unsent))
    assert math.inf == core.next_at


def test_waits_for_the_submit_end_before_those_for_the_file() -> None:
    """`NotifySubmit` leaves those alone that wait for the file."""
    driver = Driver()
    entry, _ = driver.ask()
    file_waiter, submit_waiter = Waiter(), Waiter()
    entry.add_waiter(file_waiter)
    entry.add_waiter(submit_waiter, for_submit=True)
    effects = driver.core.on_submit_result(driver.now, entry, ACCEPTED)
    only(effects, NotifySubmit)

    assert (submit_waiter,) == entry.take_submit_waiters()
    assert file_waiter in entry.take_waiters()
