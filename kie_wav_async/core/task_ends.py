"""What follows when a task has ended: it is written down, and only then made known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_wav_async.core.effects import FinishTask, Notify
from kie_wav_async.core.state_machine import Origin, Phase
from kie_wav_async.errors import LedgerError
from kie_wav_async.models import WavFile

if TYPE_CHECKING:
    from kie_wav_async.core.callback_health import CallbackHealth
    from kie_wav_async.core.effects import Outbox
    from kie_wav_async.core.registry import Registry
    from kie_wav_async.core.state_machine import TaskEntry


class TaskEnds:
    """
    Sees to the end of tasks.

    Attributes:
        unwritten: The entries whose end is not in the ledger yet, in the order of their ends.
    """

    def __init__(
        self, registry: Registry, health: CallbackHealth, outbox: Outbox, *, has_ledger: bool
    ) -> None:
        self._registry = registry
        self._health = health
        self._outbox = outbox
        self._has_ledger = has_ledger
        self.unwritten: dict[TaskEntry, None] = {}

    def finish(self, entry: TaskEntry) -> None:
        """Have the end of *entry*, which the registry has noted, written down and made known."""
        is_over = entry.phase is not Phase.TIMED_OUT
        # An attached or adopted task may call back elsewhere, or have done so long ago.
        if entry.origin is Origin.SUBMITTED and is_over:
            self._health.record_end(is_called_back=entry.is_called_back)
        if self._has_ledger and is_over:
            entry.is_unwritten = True
            self.unwritten[entry] = None
            self._outbox.put(FinishTask(entry))
        else:
            self._make_known(entry)

    def on_written(self, entry: TaskEntry, error: LedgerError | None) -> None:
        """Go on once the end of *entry* is written down, or could not be because of *error*."""
        if error is not None:
            advice = "the ledger has it as open, and asking again costs nothing"
            unwritten = LedgerError(
                f"task {entry.task_id} has ended, but that could not be written down ({error})",
                advice="; ".join(filter(None, (error.advice, advice))),
            )
            unwritten.__cause__ = error
            self._registry.replace_outcome(entry, entry.error_for_waiter(unwritten))
        entry.is_unwritten = False
        del self.unwritten[entry]
        self._make_known(entry)

    def _make_known(self, entry: TaskEntry) -> None:
        outcome = entry.outcome
        if isinstance(outcome, WavFile):
            self._outbox.emit("ConversionSucceeded", wav=outcome)
        else:
            assert outcome is not None  # noqa: S101 - it has ended
            self._outbox.emit(
                "ConversionEnded",
                task_id=entry.task_id,
                track=entry.track,
                error=outcome.about(),
            )
        self._outbox.put(Notify(entry))
