"""
The life of one conversion: a table of what may happen, and when.

Theory of operation
===================

Every conversion is one `Entry`, and an entry is in one `Phase`. What happens to
it is an `Event`; `TRANSITIONS` says where an event leads from a phase. An event
without a row is a mistake of the caller: it raises `IllegalTransition` and
changes nothing. Nothing but `Registry` changes an entry's phase::

    QUEUED    send → SENDING      refuse → REFUSED     withdraw → WITHDRAWN
    SENDING   accept → ACCEPTED   refuse → REFUSED     postpone → QUEUED
              lose → UNKNOWN
    UNKNOWN   accept → ACCEPTED   resend → QUEUED      withdraw → WITHDRAWN
    FOUND     accept → ACCEPTED
    ACCEPTED  succeed → SUCCEEDED fail → FAILED        time_out → TIMED_OUT
              retract → UNKNOWN
    KEPT      accept → ACCEPTED   succeed → SUCCEEDED  fail → FAILED

and, for an entry that was UNKNOWN before, relapse → UNKNOWN from QUEUED and SENDING.

Three rules carry the money:

* An entry that is SENDING may be charged at any moment, so it leaves that phase
  by an answer or into UNKNOWN, never by being forgotten.
* An attempt of unknown fate stays in the books (`unknown_submits`) until its
  fate is known, whatever becomes of the entry: the entry may be sent again and
  succeed, and the first attempt may still have been charged.
* An entry that has such an attempt cannot end as refused or withdrawn, which
  would read "not charged": it *relapses* to UNKNOWN.

The bill is thus bounded at any time: ``accepted <= charged <= accepted + unknown``
plus what is on the wire.

Terminal once: the first terminal news settles an entry; later news is counted
and changes nothing. An entry that TIMED_OUT leaves another one for its task,
which is KEPT: known and not polled, until it is asked for again or a callback
brings news. What succeeded is remembered, the last 10,000 of them, so
that a track asked for again is not paid again.

Pure: values and one table; who applies it, and when, is the registry's business.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping

    from kie_wav_async._models import Track, WavFile
    from kie_wav_async.errors import KieWavError


class Phase(enum.Enum):
    """Where a conversion stands."""

    # Members are single objects; the hash of an Enum is that of its name, made anew.
    __hash__ = object.__hash__

    QUEUED = enum.auto()  #: waits for its turn
    SENDING = enum.auto()  #: its submit is on the wire
    UNKNOWN = enum.auto()  #: its submit may have been accepted
    KEPT = enum.auto()  #: the wait for its task timed out; it is known, and not polled
    FOUND = enum.auto()  #: its task is named by someone, who need not be its submitter
    ACCEPTED = enum.auto()  #: has a task id, and is followed
    SUCCEEDED = enum.auto()
    FAILED = enum.auto()
    TIMED_OUT = enum.auto()
    REFUSED = enum.auto()
    WITHDRAWN = enum.auto()


class Event(enum.Enum):
    """What can happen to a conversion."""

    __hash__ = object.__hash__

    SEND = enum.auto()
    POSTPONE = enum.auto()
    REFUSE = enum.auto()
    WITHDRAW = enum.auto()
    LOSE = enum.auto()
    RELAPSE = enum.auto()
    RESEND = enum.auto()
    ACCEPT = enum.auto()
    RETRACT = enum.auto()  #: its task was named by mistake
    SUCCEED = enum.auto()
    FAIL = enum.auto()
    TIME_OUT = enum.auto()


TRANSITIONS: Final[Mapping[tuple[Phase, Event], Phase]] = {
    (Phase.QUEUED, Event.SEND): Phase.SENDING,
    (Phase.QUEUED, Event.REFUSE): Phase.REFUSED,
    (Phase.QUEUED, Event.WITHDRAW): Phase.WITHDRAWN,
    (Phase.QUEUED, Event.RELAPSE): Phase.UNKNOWN,
    (Phase.SENDING, Event.POSTPONE): Phase.QUEUED,
    (Phase.SENDING, Event.REFUSE): Phase.REFUSED,
    (Phase.SENDING, Event.LOSE): Phase.UNKNOWN,
    (Phase.SENDING, Event.RELAPSE): Phase.UNKNOWN,
    (Phase.SENDING, Event.ACCEPT): Phase.ACCEPTED,
    (Phase.UNKNOWN, Event.RESEND): Phase.QUEUED,
    (Phase.UNKNOWN, Event.ACCEPT): Phase.ACCEPTED,
    (Phase.UNKNOWN, Event.WITHDRAW): Phase.WITHDRAWN,
    (Phase.FOUND, Event.ACCEPT): Phase.ACCEPTED,
    (Phase.ACCEPTED, Event.SUCCEED): Phase.SUCCEEDED,
    (Phase.ACCEPTED, Event.FAIL): Phase.FAILED,
    (Phase.ACCEPTED, Event.TIME_OUT): Phase.TIMED_OUT,
    (Phase.ACCEPTED, Event.RETRACT): Phase.UNKNOWN,
    (Phase.KEPT, Event.ACCEPT): Phase.ACCEPTED,
    (Phase.KEPT, Event.SUCCEED): Phase.SUCCEEDED,
    (Phase.KEPT, Event.FAIL): Phase.FAILED,
}


class IllegalTransition(RuntimeError):  # noqa: N818 - a mistake of ours, not an answer to users
    """An event met a phase that has no row for it."""


class Origin(enum.Enum):
    """How the registry came to know a task."""

    SUBMITTED = enum.auto()  #: we asked for it, so we know its age
    ADOPTED = enum.auto()  #: named by a 409, or found for an unknown submit
    ATTACHED = enum.auto()  #: the user named it; not ours to count


class Entry:
    """
    One conversion in the books; read by anyone, changed by the registry only.

    Attributes:
        track: What is converted; `None` if attached without one.

        task_id: The task; ``""`` until it is known.

        attempt_id: The latest attempt; ``""`` before the first and if attached.

        is_recognised:
            Whether it is known if an attempt in doubt created the task; `False`
            only for a task that a 409 or a ledger named while there was a doubt.

        attempts: How many times the service refused the submit without a verdict.

        is_again: Whether the user said to submit it all the same.

        is_called_back:
            Whether an authentic callback of the task has come since the last poll by
            schedule was sent: what ends it now, the callback told.

        is_risky:
            Whether the submit went out while an earlier attempt was in doubt, so
            that it may be a second charge.

        found_task_id:
            The task that an earlier attempt turned out to have made while this one
            was on the wire; ``""`` for none.

        accepted_at: When the service made the task, by its own clock; `None` if it did
            not say.
        unread_answer:
            The record, shortened, that last said success and named no file that we
            can read; ``""`` for none.

        outcome: The file or the error, once terminal.
    """

    __slots__ = (
        "accepted_at",
        "accepted_mono_s",
        "attempt_id",
        "attempts",
        "found_task_id",
        "is_again",
        "is_called_back",
        "is_recognised",
        "is_risky",
        "misses",
        "origin",
        "outcome",
        "phase",
        "submitted_unix_s",
        "task_id",
        "track",
        "unread_answer",
    )

    def __init__(self, track: Track | None) -> None:
        """Start in the queue, knowing nothing."""
        self.track = track
        self.task_id = ""
        self.found_task_id = ""
        self.attempt_id = ""
        self.attempts = 0
        self.is_recognised = True
        self.is_again = False
        self.is_called_back = False
        self.is_risky = False
        self.misses = 0
        self.unread_answer = ""
        self.phase = Phase.QUEUED
        self.origin = Origin.SUBMITTED
        self.accepted_at: dt.datetime | None = None
        self.accepted_mono_s = 0.0
        self.submitted_unix_s = 0.0
        self.outcome: WavFile | KieWavError | None = None


def advance(entry: Entry, event: Event) -> None:
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
