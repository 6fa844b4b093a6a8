"""
The life of one conversion: a table of what may happen, and when.

Theory of operation
===================

Every conversion is one `TaskEntry`, and an entry is in one `Phase`. What happens to
it is a `Transition`; `TRANSITIONS` says where one leads from a phase. A transition
without a row is a mistake of the caller: it raises `IllegalTransition` and
changes nothing. Nothing but `Registry` changes an entry's phase::

    QUEUED          send → SUBMITTING    reject → REJECTED    cancel → CANCELLED
    SUBMITTING      accept → ACCEPTED    reject → REJECTED    requeue → QUEUED
                    mark_unknown → UNKNOWN
    UNKNOWN         accept → ACCEPTED    retry → QUEUED       cancel → CANCELLED
    DISCOVERED      accept → ACCEPTED
    ACCEPTED        succeed → SUCCEEDED  fail → FAILED        time_out → TIMED_OUT
                    retract → UNKNOWN
    TIMED_OUT_KEPT  accept → ACCEPTED    succeed → SUCCEEDED  fail → FAILED

and, for an entry that was UNKNOWN before,
return_to_unknown → UNKNOWN from QUEUED and SUBMITTING.

Three rules carry the money:

* An entry that is SUBMITTING may be charged at any moment, so it leaves that phase
  by an answer or into UNKNOWN, never by being forgotten.
* An attempt of unknown outcome stays in the registry (`unknown_submits`) until its
  outcome is known, whatever becomes of the entry: the entry may be sent again and
  succeed, and the first attempt may still have been charged.
* An entry that has such an attempt cannot end as rejected or cancelled, which
  would read "not charged": it returns to UNKNOWN.

The bill is thus bounded at any time: ``accepted <= charged <= accepted + unknown``
plus what is in progress.

Terminal once: the first terminal news settles an entry; later news is counted
and changes nothing. An entry that TIMED_OUT leaves another one for its task,
which is TIMED_OUT_KEPT: known and not polled, until it is asked for again or a callback
brings news. What succeeded is remembered, the last 10,000 of them, so
that a track asked for again is not paid again.

Pure: values and one table; who applies it, and when, is the registry's business.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Final, Protocol

from kie_wav_async.errors import SessionClosedError

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping

    from kie_wav_async.errors import KieWavError
    from kie_wav_async.models import Track, WavFile


class Phase(enum.Enum):
    """Where a conversion stands."""

    # Members are single objects; the hash of an Enum is that of its name, made anew.
    __hash__ = object.__hash__

    QUEUED = enum.auto()  #: waits for its turn
    SUBMITTING = enum.auto()  #: its submit is in progress
    UNKNOWN = enum.auto()  #: its submit may have been accepted
    TIMED_OUT_KEPT = enum.auto()  #: the wait for its task timed out; it is known, and not polled
    DISCOVERED = enum.auto()  #: its task is named by someone, who need not be its submitter
    ACCEPTED = enum.auto()  #: has a task id, and is followed
    SUCCEEDED = enum.auto()
    FAILED = enum.auto()
    TIMED_OUT = enum.auto()
    REJECTED = enum.auto()
    CANCELLED = enum.auto()

    @property
    def is_submitting(self) -> bool:
        """Whether its submit has no end yet: it waits, is in progress, or is unknown."""
        return self in _SUBMITTING

    @property
    def may_be_accepted(self) -> bool:
        """Whether the service may have taken its submit, and did not say so yet."""
        return self in _MAY_BE_ACCEPTED

    @property
    def created_nothing(self) -> bool:
        """Whether it ended without a task."""
        return self in _CREATED_NOTHING


# Made once: these are asked for in every submit.
_SUBMITTING: Final = frozenset({Phase.QUEUED, Phase.SUBMITTING, Phase.UNKNOWN})
_MAY_BE_ACCEPTED: Final = frozenset({Phase.SUBMITTING, Phase.UNKNOWN})
_CREATED_NOTHING: Final = frozenset({Phase.REJECTED, Phase.CANCELLED})


class Transition(enum.Enum):
    """What can happen to a conversion."""

    __hash__ = object.__hash__

    SEND = enum.auto()
    REQUEUE = enum.auto()
    REJECT = enum.auto()
    CANCEL = enum.auto()
    MARK_UNKNOWN = enum.auto()
    RETURN_TO_UNKNOWN = enum.auto()
    RETRY = enum.auto()
    ACCEPT = enum.auto()
    RETRACT = enum.auto()  #: its task was named by mistake
    SUCCEED = enum.auto()
    FAIL = enum.auto()
    TIME_OUT = enum.auto()


TRANSITIONS: Final[Mapping[tuple[Phase, Transition], Phase]] = {
    (Phase.QUEUED, Transition.SEND): Phase.SUBMITTING,
    (Phase.QUEUED, Transition.REJECT): Phase.REJECTED,
    (Phase.QUEUED, Transition.CANCEL): Phase.CANCELLED,
    (Phase.QUEUED, Transition.RETURN_TO_UNKNOWN): Phase.UNKNOWN,
    (Phase.SUBMITTING, Transition.REQUEUE): Phase.QUEUED,
    (Phase.SUBMITTING, Transition.REJECT): Phase.REJECTED,
    (Phase.SUBMITTING, Transition.MARK_UNKNOWN): Phase.UNKNOWN,
    (Phase.SUBMITTING, Transition.RETURN_TO_UNKNOWN): Phase.UNKNOWN,
    (Phase.SUBMITTING, Transition.ACCEPT): Phase.ACCEPTED,
    (Phase.UNKNOWN, Transition.RETRY): Phase.QUEUED,
    (Phase.UNKNOWN, Transition.ACCEPT): Phase.ACCEPTED,
    (Phase.UNKNOWN, Transition.CANCEL): Phase.CANCELLED,
    (Phase.DISCOVERED, Transition.ACCEPT): Phase.ACCEPTED,
    (Phase.ACCEPTED, Transition.SUCCEED): Phase.SUCCEEDED,
    (Phase.ACCEPTED, Transition.FAIL): Phase.FAILED,
    (Phase.ACCEPTED, Transition.TIME_OUT): Phase.TIMED_OUT,
    (Phase.ACCEPTED, Transition.RETRACT): Phase.UNKNOWN,
    (Phase.TIMED_OUT_KEPT, Transition.ACCEPT): Phase.ACCEPTED,
    (Phase.TIMED_OUT_KEPT, Transition.SUCCEED): Phase.SUCCEEDED,
    (Phase.TIMED_OUT_KEPT, Transition.FAIL): Phase.FAILED,
}


class IllegalTransition(RuntimeError):  # noqa: N818 - a mistake of ours, not an answer to users
    """An event met a phase that has no row for it."""


class Origin(enum.Enum):
    """How the registry came to know a task."""

    SUBMITTED = enum.auto()  #: we asked for it, so we know its age
    ADOPTED = enum.auto()  #: named by a 409, or found for an unknown submit
    ATTACHED = enum.auto()  #: the user named it; not ours to count


class Waiter(Protocol):
    """What is notified when a wait is over: a future, or something like one."""

    def done(self) -> bool:
        """Return whether it needs no notification any more."""
        ...

    def set_result(self, result: KieWavError | None, /) -> object:
        """Take the error that ended the wait; `None`: see the entry's outcome."""
        ...


class TaskEntry:
    """
    One conversion: all that is known of it, and what waits for it.

    Attributes:
        track: What is converted; `None` if attached without one.

        task_id: The task; ``""`` until it is known.

        attempt_id: The latest attempt; ``""`` before the first and if attached.

        is_attributed:
            Whether it is known if an attempt of unknown outcome created the task; `False`
            only for a task that a 409 or a ledger named while there was one.

        attempts: How many times the service refused the submit without a verdict.

        is_again: Whether the user said to submit it all the same.

        is_called_back:
            Whether an authentic callback of the task has come since the last poll by
            schedule was sent: what ends it now, the callback told.

        may_double_charge:
            Whether the submit went out while an earlier one was unknown, so
            that it may be a second charge.

        discovered_task_id:
            The task that an earlier attempt turned out to have made while this one
            was in progress; ``""`` for none.

        accepted_at: When the service made the task, by its own clock; `None` if it did
            not say.
        unread_response:
            The record, shortened, that last said success and named no file that we
            can read; ``""`` for none.

        outcome: The file or the error, once terminal.

        is_unwritten: Whether its end is not in the ledger yet.

        waits_for_maintenance: Whether its submit waits for the end of a maintenance,
            however long.

        next_poll_at: When it is polled next by the schedule, monotonic; infinite while
            that poll is in progress.

        awaits_callback: Whether its first poll is at the backstop, because callbacks
            are healthy.

        handle: What the user has of it, if something is kept; the core leaves it alone.
    """

    __slots__ = (
        "_waiters",
        "accepted_at",
        "accepted_mono_s",
        "attempt_id",
        "attempts",
        "awaits_callback",
        "discovered_task_id",
        "handle",
        "is_again",
        "is_attributed",
        "is_called_back",
        "is_unwritten",
        "may_double_charge",
        "missing_count",
        "next_poll_at",
        "origin",
        "outcome",
        "phase",
        "submitted_unix_s",
        "task_id",
        "track",
        "unread_response",
        "waits_for_maintenance",
    )

    def __init__(self, track: Track | None) -> None:
        self.track = track
        self.task_id = ""
        self.discovered_task_id = ""
        self.attempt_id = ""
        self.attempts = 0
        self.is_attributed = True
        self.is_again = False
        self.is_called_back = False
        self.may_double_charge = False
        self.missing_count = 0
        self.unread_response = ""
        self.phase = Phase.QUEUED
        self.origin = Origin.SUBMITTED
        self.accepted_at: dt.datetime | None = None
        self.accepted_mono_s = 0.0
        self.submitted_unix_s = 0.0
        self.outcome: WavFile | KieWavError | None = None
        self.is_unwritten = False
        self.waits_for_maintenance = False
        self.next_poll_at = math.inf
        self.awaits_callback = False
        self.handle: object = None
        # In the order they came, and whether they wait for the end of the submit only.
        self._waiters: dict[Waiter, bool] | None = None

    def done(self) -> bool:
        """Return whether the conversion is terminal, and that is written down."""
        return self.outcome is not None and not self.is_unwritten

    def error_for_waiter(self, error: KieWavError) -> KieWavError:
        """Return *error* as a new object that names this conversion."""
        if isinstance(error, SessionClosedError):
            return SessionClosedError(
                open_task_ids=error.open_task_ids,
                is_submitting=self.phase.may_be_accepted,
                task_id=self.task_id or None,
                track=self.track,
            )
        return error.about(task_id=self.task_id or None, track=self.track)

    # --- who waits for it -----------------------------------------------------------------

    @property
    def is_awaited(self) -> bool:
        """Whether anything waits, for the file or for the submit."""
        return bool(self._waiters)

    def add_waiter(self, waiter: Waiter, *, for_submit: bool = False) -> None:
        """Add what is to be notified of the end, or of the end of the submit only."""
        if self._waiters is None:
            self._waiters = {}
        self._waiters[waiter] = for_submit

    def drop_waiter(self, waiter: Waiter) -> bool:
        """Forget *waiter*; return whether it was the last one."""
        if self._waiters is None or waiter not in self._waiters:
            return False
        del self._waiters[waiter]
        return not self._waiters

    def take_waiters(self) -> tuple[Waiter, ...]:
        """Return all waiters, those for the submit first, which are forgotten thereby."""
        of_submit = self.take_submit_waiters()
        waiters, self._waiters = self._waiters, None
        return of_submit if waiters is None else (*of_submit, *waiters)

    def take_submit_waiters(self) -> tuple[Waiter, ...]:
        """Return the waiters for the submit, which are forgotten thereby."""
        waiters = self._waiters
        if waiters is None or True not in waiters.values():
            return ()
        others = {waiter: False for waiter, for_submit in waiters.items() if not for_submit}
        self._waiters = others or None
        return tuple(waiter for waiter, for_submit in waiters.items() if for_submit)

    # --- its task ---------------------------------------------------------------------------

    @property
    def is_maker_known(self) -> bool:
        """Whether it is known which submit made the task, or that it was there before them."""
        is_adopted = self.origin is Origin.ADOPTED
        return self.origin is Origin.SUBMITTED or (is_adopted and self.is_attributed)

    def copy_task(self, other: TaskEntry) -> None:
        """Take over what *other*, an entry of the same track, knows of its task."""
        self.task_id = other.task_id
        self.attempt_id = other.attempt_id
        self.origin = other.origin
        self.is_attributed = other.is_attributed
        self.submitted_unix_s = other.submitted_unix_s
        self.accepted_at = other.accepted_at

    def forget_task(self) -> None:
        """Forget the task, which turned out not to be the entry's."""
        self.task_id = ""
        self.missing_count = 0
        self.unread_response = ""
        self.accepted_at = None
        self.is_called_back = False


def track_of(entry: TaskEntry) -> Track:
    """
    Return what the submit of *entry* converts.

    Raises:
        IllegalTransition: It was attached without a track, and has no submit.
    """
    if entry.track is None:
        msg = "an attached task has no submit"
        raise IllegalTransition(msg)
    return entry.track


def apply(entry: TaskEntry, event: Transition) -> None:
    """
    Move *entry* to where *event* leads.

    Raises:
        IllegalTransition: There is no row for it; nothing has changed.
    """
    phase = TRANSITIONS.get((entry.phase, event))
    if phase is None:
        msg = f"{event.name} does not follow {entry.phase.name}"
        raise IllegalTransition(msg)
    entry.phase = phase
