"""
What the core asks for: values that say what is to be done, and nothing that does it.

The core is given what happened and puts what is to be done into an `Outbox`; the
session's loop takes it out and does it, in order. A write that something depends on
(`BeginAttempt`, `WriteTask`, `FinishTask`, `ResolveAttempt`) never stands beside what
depends on it: that follows once the loop says that it was written. All other writes
are *behind*: if they are lost the ledger has the submit as in progress, which the next
run takes as unknown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kie_wav_async.core.state_machine import TaskEntry
    from kie_wav_async.core.track_states import AttemptOutcome
    from kie_wav_async.errors import KieWavError
    from kie_wav_async.events import EventName
    from kie_wav_async.models import TaskRecord, UnknownSubmit


class Now(NamedTuple):
    """
    The time, as the core is given it.

    Attributes:
        mono_s: Monotonic seconds, for everything that waits.

        unix_s: Unix time, for what outlives the process.
    """

    mono_s: float
    unix_s: float


# --- requests -----------------------------------------------------------------------------


class SendSubmit(NamedTuple):
    """Send the submit of *entry*; answered by `SessionCore.on_submit_result`."""

    entry: TaskEntry
    attempt_id: str


class SendPoll(NamedTuple):
    """
    Poll a task; answered by `SessionCore.on_poll_result`.

    Attributes:
        task_id: The task.

        sent_at: When, monotonic.

        rejection_round: What `PollRejections.round` was when it was sent.
    """

    task_id: str
    sent_at: float
    rejection_round: int


class PollExisting(NamedTuple):
    """Poll the task that a 409 named for *entry*; answered by `SessionCore.on_existing_polled`."""

    entry: TaskEntry
    task_id: str


class ReadCredits(NamedTuple):
    """See whether the service answers a free read; answered by `SessionCore.on_read`."""


# --- writes that something depends on ------------------------------------------------------


class BeginAttempt(NamedTuple):
    """Write down that the submit of *entry* goes out; answered by `on_intent_written`."""

    entry: TaskEntry
    attempt_id: str
    is_repeat: bool


class WriteTask(NamedTuple):
    """
    Write down which task a submit came to; answered by `SessionCore.on_task_written`.

    Attributes:
        entry: Its entry.

        attempt_id: The submit.

        outcome: ACCEPTED or ADOPTED.

        task_id: The task.

        accepted_unix_s: When the service made it, by its own clock; `None` if it did not say.

        record: What a poll said of a task that existed; `None` if nothing.
    """

    entry: TaskEntry
    attempt_id: str
    outcome: AttemptOutcome
    task_id: str
    accepted_unix_s: float | None = None
    record: TaskRecord | None = None


class FinishTask(NamedTuple):
    """Write down how the task of *entry* ended; answered by `SessionCore.on_end_written`."""

    entry: TaskEntry


class ResolveAttempt(NamedTuple):
    """Write down what the service says of an unknown submit; answered by `on_resolved`."""

    unknown: UnknownSubmit
    task_id: str


# --- writes behind ----------------------------------------------------------------------------


class FinishAttempt(NamedTuple):
    """Write down what came of a submit."""

    attempt_id: str
    outcome: AttemptOutcome
    task_id: str = ""
    error: KieWavError | None = None


class RecordCallback(NamedTuple):
    """Write down that an authentic callback of a task names a submit."""

    attempt_id: str
    task_id: str


class KeepHost(NamedTuple):
    """Write down that the service named a file on *host*."""

    host: str


# --- notifications ------------------------------------------------------------------------------


class Notify(NamedTuple):
    """End every wait for *entry*: with *error*, or with its outcome if that is `None`."""

    entry: TaskEntry
    error: KieWavError | None = None


class NotifySubmit(NamedTuple):
    """End the waits for the submit of *entry* only."""

    entry: TaskEntry
    error: KieWavError | None = None


class Emit(NamedTuple):
    """Tell the user's ``on_event``: the name of the event, and its fields."""

    kind: EventName
    fields: Mapping[str, Any]


class Log(NamedTuple):
    """Log a message, at a level of `logging`."""

    level: str
    message: str
    args: tuple[object, ...] = ()


Effect: TypeAlias = (
    SendSubmit
    | SendPoll
    | PollExisting
    | ReadCredits
    | BeginAttempt
    | WriteTask
    | FinishTask
    | ResolveAttempt
    | FinishAttempt
    | RecordCallback
    | KeepHost
    | Notify
    | NotifySubmit
    | Emit
    | Log
)


class Outbox:
    """Holds what is to be done, in order, until the loop takes it."""

    __slots__ = ("_effects", "_has_listener")

    def __init__(self, *, has_listener: bool = True) -> None:
        self._effects: list[Effect] = []
        self._has_listener = has_listener

    def put(self, effect: Effect) -> None:
        """Add one effect."""
        self._effects.append(effect)

    def emit(self, kind: EventName, **fields: object) -> None:
        """Add an event for the user, if anybody listens."""
        if self._has_listener:
            self._effects.append(Emit(kind, fields))

    def log(self, level: str, message: str, *args: object) -> None:
        """Add a message for the log."""
        self._effects.append(Log(level, message, args))

    def take(self) -> list[Effect]:
        """Return all effects, oldest first, which are thereby gone."""
        effects, self._effects = self._effects, []
        return effects
