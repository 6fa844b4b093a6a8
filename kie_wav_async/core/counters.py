"""The counters of a session."""

from __future__ import annotations


class Counters:
    """The counters, which go up, and down only with a word that was wrong; see `Statistics`."""

    def __init__(self) -> None:
        self.submitted = 0
        self.accepted = 0
        self.adopted = 0
        self.settled_by_callback = 0
        self.settled_by_poll = 0
        self.failed = 0
        self.timed_out = 0
        self.polls = 0
        self.rejected_429 = 0
        self.possible_double_charges = 0
        self.duplicate_results = 0
        self.unknown_task_callbacks = 0
        self.rejected_callbacks = 0
