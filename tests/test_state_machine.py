"""The life of a conversion, row by row, written down a second time."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from kie_wav_async import Track
from kie_wav_async.core import state_machine
from kie_wav_async.core.state_machine import (
    TRANSITIONS,
    IllegalTransition,
    Origin,
    Phase,
    TaskEntry,
    Transition,
    apply,
)

#: Where each event leads from each phase, by hand; "." for nowhere.
TABLE = """
                  QUEUED     SUBMITTING UNKNOWN   TIMED_OUT_KEPT DISCOVERED ACCEPTED  SUCCEEDED FAILED TIMED_OUT REJECTED CANCELLED
SEND              SUBMITTING .          .         .              .          .         .         .      .         .        .
REQUEUE           .          QUEUED     .         .              .          .         .         .      .         .        .
REJECT            REJECTED   REJECTED   .         .              .          .         .         .      .         .        .
CANCEL            CANCELLED  .          CANCELLED .              .          .         .         .      .         .        .
MARK_UNKNOWN      .          UNKNOWN    .         .              .          .         .         .      .         .        .
RETURN_TO_UNKNOWN UNKNOWN    UNKNOWN    .         .              .          .         .         .      .         .        .
RETRY             .          .          QUEUED    .              .          .         .         .      .         .        .
ACCEPT            .          ACCEPTED   ACCEPTED  ACCEPTED       ACCEPTED   .         .         .      .         .        .
SUCCEED           .          .          .         SUCCEEDED      .          SUCCEEDED .         .      .         .        .
FAIL              .          .          .         FAILED         .          FAILED    .         .      .         .        .
TIME_OUT          .          .          .         .              .          TIMED_OUT .         .      .         .        .
RETRACT           .          .          .         .              .          UNKNOWN   .         .      .         .        .
"""  # noqa: E501 - a row of the table is a line

HEAD, *ROWS = [line.split() for line in TABLE.strip().splitlines()]
CASES = [
    (phase, row[0], None if target == "." else target)
    for row in ROWS
    for phase, target in zip(HEAD, row[1:], strict=True)
]


def state_of(entry: TaskEntry) -> dict[str, object]:
    """Return all that *entry* holds."""
    return {name: getattr(entry, name) for name in TaskEntry.__slots__}


def test_the_table_is_full() -> None:
    """Every pair of a phase and an event has its place in the table of this file."""
    pairs = [(phase, event) for phase, event, _ in CASES]

    expected = itertools.product([p.name for p in Phase], [e.name for e in Transition])
    assert sorted(expected) == sorted(pairs)


@pytest.mark.parametrize(("phase", "event", "target"), [c for c in CASES if c[2] is not None])
def test_a_legal_event_leads_on(phase: str, event: str, target: str) -> None:
    """An event with a row moves the entry where the table says, and changes nothing else."""
    entry = TaskEntry(Track("5c79", "e1"))
    entry.phase = Phase[phase]
    before = state_of(entry)

    apply(entry, Transition[event])

    assert {**before, "phase": Phase[target]} == state_of(entry)


@pytest.mark.parametrize(("phase", "event"), [c[:2] for c in CASES if c[2] is None])
def test_an_illegal_event_changes_nothing(phase: str, event: str) -> None:
    """An event without a row raises, says which, and leaves the entry alone."""
    entry = TaskEntry(Track("5c79", "e1"))
    entry.phase = Phase[phase]
    before = state_of(entry)

    with pytest.raises(IllegalTransition, match=rf"^{event} does not follow {phase}$"):
        apply(entry, Transition[event])

    assert before == state_of(entry)


def test_the_docstring_tells_the_table() -> None:
    """The table people read and the table the code reads are the same."""
    text = state_machine.__doc__ or ""
    told: set[tuple[str, str, str]] = set()
    phase = ""
    for line in text.splitlines():
        arrows = re.findall(r"(\w+) → ([A-Z_]+)", line)
        begin = re.match(r" {4}([A-Z_]+) +\w+ →", line)
        if begin is not None:
            phase = begin[1]
        if line.startswith("    "):
            told |= {(phase, event.upper(), target) for event, target in arrows}
    (repeat,) = re.findall(r"(\w+) → ([A-Z_]+) from ([A-Z_]+) and ([A-Z_]+)\.", text)
    told |= {(phase, repeat[0].upper(), repeat[1]) for phase in repeat[2:]}

    assert {(p.name, e.name, t.name) for (p, e), t in TRANSITIONS.items()} == told


def test_no_way_leads_out_of_an_end() -> None:
    """A terminal phase has no rows, and every other phase leads to one."""
    ends = {"SUCCEEDED", "FAILED", "TIMED_OUT", "REJECTED", "CANCELLED"}
    assert {phase.name for phase in Phase} - ends == {phase.name for phase, _ in TRANSITIONS}

    reaching = {*ends}
    for _ in Phase:
        reaching |= {p.name for (p, _), target in TRANSITIONS.items() if target.name in reaching}
    assert {phase.name for phase in Phase} == reaching


def test_a_submit_is_never_forgotten() -> None:
    """What is on the wire may be charged: no event calls it cancelled or timed out."""
    after = {t.name for (phase, _), t in TRANSITIONS.items() if phase is Phase.SUBMITTING}

    assert {"ACCEPTED", "REJECTED", "QUEUED", "UNKNOWN"} == after


PHASES = {
    "is_submitting": {Phase.QUEUED, Phase.SUBMITTING, Phase.UNKNOWN},
    "may_be_accepted": {Phase.SUBMITTING, Phase.UNKNOWN},
    "created_nothing": {Phase.REJECTED, Phase.CANCELLED},
}


@pytest.mark.parametrize("name", PHASES)
def test_what_a_phase_is(name: str) -> None:
    """Each question that is asked of a phase is answered by exactly these phases with yes."""
    assert PHASES[name] == {phase for phase in Phase if getattr(phase, name)}


def test_a_new_entry_is_queued_and_knows_nothing() -> None:
    """An entry begins in the queue, with nothing but its track."""
    entry = TaskEntry(Track("5c79", "e1"))

    assert {
        "accepted_at": None,
        "accepted_mono_s": 0.0,
        "attempt_id": "",
        "attempts": 0,
        "discovered_task_id": "",
        "is_again": False,
        "is_called_back": False,
        "is_attributed": True,
        "may_double_charge": False,
        "missing_count": 0,
        "origin": Origin.SUBMITTED,
        "outcome": None,
        "phase": Phase.QUEUED,
        "submitted_unix_s": 0.0,
        "task_id": "",
        "track": Track("5c79", "e1"),
        "unread_response": "",
        "_waiters": None,
        "awaits_callback": False,
        "handle": None,
        "is_unwritten": False,
        "next_poll_at": math.inf,
        "waits_for_maintenance": False,
    } == state_of(entry)
    assert not hasattr(entry, "__dict__")
