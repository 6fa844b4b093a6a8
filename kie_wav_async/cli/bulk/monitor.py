"""How far a run of ``kie-wav bulk`` has come, while it goes on."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from kie_wav_async import errors, events
from kie_wav_async._support.rate_meter import RateMeter
from kie_wav_async.cli.bulk.estimate import Durations, TrackCounts, time_left_s
from kie_wav_async.cli.bulk.progress import BulkDisplay, Figures, SavingFigures
from kie_wav_async.cli.common.streams import is_full
from kie_wav_async.protocol.api_constants import KIE_WAV

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import AsyncGenerator, Coroutine
    from decimal import Decimal

    from kie_wav_async import Clock, WavSession
    from kie_wav_async.cli.bulk.options import BulkOptions
    from kie_wav_async.cli.bulk.saver import Saver
    from kie_wav_async.ledger import Ledger

# How often is told how far it has come: bars, and plain lines.
_BARS_S: Final = 0.5
_LINES_S: Final = 10.0
_CREDITS_S: Final = 60.0
# So far back is looked for how fast it goes on; half of that says how it will go on.
_SPAN_S: Final = 60.0

_TOO_SLOW: Final = (
    "WAVs are saved too slowly: what there is would take more than half of the "
    f"{KIE_WAV.retention_days} days that KIE keeps them. New submits wait until it is less"
)
_FAST_ENOUGH: Final = "WAVs are saved in time again: new submits go on"
_UNREAD: Final = "stdout is not read at present: new submits and downloads wait until it is"
_STUCK: Final = "one file after another cannot be saved: new submits wait until one is"
_NOT_STUCK: Final = "new submits go on"


class ProgressMonitor:
    """
    Looks on, and tells.

    Attributes:
        credits: What was left of them when last asked; `None` while nobody knows.

        saver: What saves the files; `None` if nothing does.
    """

    def __init__(
        self, options: BulkOptions, ledger: Ledger, display: BulkDisplay, clock: Clock
    ) -> None:
        self.credits: Decimal | None = None
        self.saver: Saver | None = None
        self._options = options
        self._ledger = ledger
        self._display = display
        self._clock = clock
        self._submits = RateMeter(_SPAN_S)
        self._received = RateMeter(_SPAN_S)
        self._durations = Durations()
        self._submitted_at: dict[str, dt.datetime] = {}
        self._is_throttled = self._is_stuck = False
        self._is_unread = False

    def note_event(self, event: events.Event) -> None:
        """Take an event of the session's."""
        match event:
            case events.SubmitAccepted(adopted=False):
                self._submitted_at[event.task_id] = event.at
            case events.ConversionSucceeded(wav=wav):
                began = self._submitted_at.pop(wav.task_id, None)
                if began is not None:
                    self._durations.note((event.at - began).total_seconds())
            case events.ConversionEnded():
                _ = self._submitted_at.pop(event.task_id, None)
            case _:
                pass

    def begin(self, tally: TrackCounts) -> None:
        """Take it that a run begins here."""
        self._submits.note(self._clock.monotonic(), tally.submitted)

    @contextlib.asynccontextmanager
    async def while_planning(self) -> AsyncGenerator[None]:
        """Tell how far the planning has come for as long as the block runs."""
        async with _alongside(self._tell_planning()):
            yield

    @contextlib.asynccontextmanager
    async def while_running(self, session: WavSession) -> AsyncGenerator[None]:
        """Tell how far the run has come for as long as the block runs."""
        try:
            async with _alongside(self._ask_credits(session), self._watch()):
                yield
        finally:
            if self._display.is_live:
                _ = await self._look()
                self._display.clear()

    async def _tell_planning(self) -> None:
        while not self._display.is_live:
            await self._clock.sleep(_LINES_S)
            self._display.say_moving()

    async def _watch(self) -> None:
        is_live = self._display.is_live
        least_s = _BARS_S if is_live else _LINES_S
        took_s = await self._look() if is_live else 0.0
        while True:
            # Counting a million rows takes a moment of the ledger's time.
            await self._clock.sleep(max(least_s, 20 * took_s))
            took_s = await self._look()

    async def _look(self) -> float:
        """Look how far it has come, and tell; return how long that took, in seconds."""
        began_s = self._clock.monotonic()
        with contextlib.suppress(errors.LedgerError):  # Whoever writes will meet it too.
            tally = TrackCounts(await self._ledger.count_by_state())
            self._submits.note(began_s, tally.submitted)
            if self.saver is not None:
                if self.saver.received:  # Before the first files come there is no speed.
                    self._received.note(began_s, self.saver.received)
                self.saver.look(tally)
                self._show_throttle(self.saver)
            if is_full() and not self._is_unread:  # Once: it may be so every other moment.
                self._is_unread = True
                self._display.say(_UNREAD)
            self._display.show(self._figures(tally))
        return self._clock.monotonic() - began_s

    def _show_throttle(self, saver: Saver) -> None:
        if saver.throttle.is_on != self._is_throttled:
            self._is_throttled = saver.throttle.is_on
            self._display.say(_TOO_SLOW if self._is_throttled else _FAST_ENOUGH)
        if saver.is_stuck != self._is_stuck:
            self._is_stuck = saver.is_stuck
            self._display.say(_STUCK if self._is_stuck else _NOT_STUCK)

    def _figures(self, tally: TrackCounts) -> Figures:
        options, saver = self._options, self.saver
        left_s = time_left_s(
            tally,
            tally.planned,
            options.rate,
            options.max_in_flight,
            conversion_s=self._durations.mean_s,
            measured_per_s=self._submits.per_s if self._submits.covered_s >= _SPAN_S / 2 else None,
        )
        saving = None
        if saver is not None:
            done, total = saver.progress(tally)
            per_s = self._received.per_s
            left_s = max(left_s, (total - done) / per_s if per_s else 0.0)
            saving = SavingFigures(
                done=done,
                total=total,
                per_s=per_s,
                waiting=saver.waiting,
                given_up=saver.given_up,
                is_holding=saver.throttle.is_on,
            )
        return Figures(
            tally=tally,
            per_s=self._submits.per_s,
            left_s=left_s or None,
            hold=self._display.hold,
            credits=self.credits,
            saving=saving,
        )

    async def _ask_credits(self, session: WavSession) -> None:
        while True:
            with contextlib.suppress(errors.KieWavError):  # Not knowing is no harm.
                self.credits = await session.get_credits()
            await self._clock.sleep(_CREDITS_S)


@contextlib.asynccontextmanager
async def _alongside(*works: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    """Have *works* run for as long as the block does, whatever becomes of them."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
