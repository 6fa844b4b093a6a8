"""
``kie-wav bulk``: a catalog, converted, however often the run is stopped.

The catalog goes into the ledger first; what is converted is drawn from the ledger.
That is why the same command again goes on where the last one stopped, and why
memory does not grow with the catalog.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from kie_wav_async import CallbackTrust, OnUnknown, Outcome, SystemClock, Track, errors, events
from kie_wav_async.cli._bulk_books import Ending
from kie_wav_async.cli._bulk_display import BulkDisplay, Figures
from kie_wav_async.cli._bulk_end import tell_ending
from kie_wav_async.cli._bulk_plan import Plan, Planner
from kie_wav_async.cli._estimate import (
    BYTES_PER_TRACK,
    Durations,
    Meter,
    Tally,
    bytes_words,
    count_words,
    duration_words,
    most_charges,
    time_left_s,
)
from kie_wav_async.cli._interrupt import Interrupt, end_at_once
from kie_wav_async.cli._listen import Listening, listen, read_listening
from kie_wav_async.cli._output import USAGE, CliError, print_line
from kie_wav_async.ledger import SqliteLedger, TrackState

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
    from decimal import Decimal
    from pathlib import Path

    from kie_wav_async import Clock, WavFile, WavSession
    from kie_wav_async.cli._bulk_order import Order
    from kie_wav_async.cli._service import Service
    from kie_wav_async.ledger import Ledger

# So many tracks are drawn from the ledger at a time.
_PAGE: Final = 500
# How often is told how far it has come: bars, and plain lines.
_BARS_S: Final = 0.5
_LINES_S: Final = 10.0
_CREDITS_S: Final = 60.0
# How long a conversion is followed before it is left to the next run.
_TIMEOUT_S: Final = 900.0
# So many submits in a row that do not get through, and the next will not either.
_MOST_UNSENT: Final = 20

# What says nothing about the track it met: the next one would meet it too.
_SYSTEMIC: Final = (
    errors.TransportError,
    errors.RateLimitedError,
    errors.MaintenanceError,
    errors.FeatureDisabledError,
)
# What ends a batch, and leaves its tracks as they were.
_STOPPERS: Final = (
    errors.AuthenticationError,
    errors.InsufficientCreditsError,
    errors.ChargeLimitError,
    errors.SessionClosedError,
)


async def run_bulk(
    service: Service, order: Order, *, as_json: bool, clock: Clock | None = None
) -> int:
    """
    Convert a catalog, and return the exit code.

    Args:
        service: Where to convert it.

        order: What, and how.

        as_json: Print one JSON object at the end in place of a line per track.

        clock: The source of time; `None`: the system's.

    Raises:
        CliError: It did not begin.

        KieWavError: It did not begin at the service.
    """
    listening = read_listening(order.address, order.callback_url)
    clock = SystemClock() if clock is None else clock
    ledger = SqliteLedger(order.ledger)
    display = BulkDisplay()
    run = _Run(order, ledger, display, clock, as_json=as_json)
    session = service.session(
        listening.callback_url if listening else "",
        callback_trust=CallbackTrust.HINT,
        rate_limit=order.rate,
        max_in_flight=order.max_in_flight,
        poll=order.poll,
        on_unknown=order.on_unknown,
        max_charges=order.max_charges,
        timeout_s=_TIMEOUT_S,
        ledger=ledger,
        on_event=run.tell,
        clock=clock,
    )
    _open_folder(order.folder)
    began_s = time.monotonic()
    with Interrupt(run.stop, run.leave):
        _ = await ledger.open(clock.time())
        try:
            stopped_by = await run.convert(session, listening)
            try:
                run.print_settled()
            except BrokenPipeError as error:
                stopped_by = stopped_by or error
            ending = Ending(
                ledger=ledger,
                order=order,
                stopped_by=stopped_by,
                counted=session.statistics(),
                open_tasks=session.conversions(),
                plan=run.plan,
                credits=run.credits,
                seconds=time.monotonic() - began_s,
                now_unix_s=clock.time(),
            )
            code = await tell_ending(ending, display, as_json=as_json)
        finally:
            await ledger.aclose()
        if isinstance(stopped_by, BrokenPipeError):
            raise stopped_by
        if run.is_stuck:
            sys.stdout.flush()
            end_at_once(code)
    return code


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


def _open_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sentence = f"cannot make the folder {folder}: {error.strerror or error}"
        raise CliError(USAGE, sentence) from error


class _Run:
    """
    One run over the ledger.

    Attributes:
        plan: What the catalog came to; `None` before it was read.

        credits: What was left of them when last asked; `None` while nobody knows.
    """

    def __init__(
        self, order: Order, ledger: Ledger, display: BulkDisplay, clock: Clock, *, as_json: bool
    ) -> None:
        """Begin with nothing done."""
        self.plan: Plan | None = None
        self.credits: Decimal | None = None
        self._order = order
        self._ledger = ledger
        self._display = display
        self._clock = clock
        # On a terminal the bars tell, and addresses would push them about.
        self._prints = not as_json and not sys.stdout.isatty()
        self._planner: Planner | None = None
        self._session: WavSession | None = None
        self._meter = Meter()
        self._durations = Durations()
        self._submitted_at: dict[str, dt.datetime] = {}
        self._unsent = 0
        # Not yet printed. Not all that settles is the batch's to yield: it drops what it
        # has as it is closed, and a task may be found for a submit it had given up.
        self._settled: deque[WavFile] = deque()

    # --- from outside -----------------------------------------------------------------------

    @property
    def is_stuck(self) -> bool:
        """Whether a thread of ours cannot be ended."""
        return self._planner is not None and self._planner.is_stuck

    def stop(self) -> None:
        """Say what a first Ctrl-C does."""
        under_way = self._session.statistics() if self._session else None
        if under_way is None or not under_way.submitted:
            return
        self._display.say(
            "stopping: nothing more is submitted, and submits under way get up to 25 s for "
            "their answer; Ctrl-C again leaves at once"
        )

    def leave(self) -> None:
        """Say what a second Ctrl-C does."""
        command = self._order.resume(is_planned=self.plan is not None)
        self._display.leave(f"{self._order.resume_words}: {command}")

    def tell(self, event: events.Event) -> None:
        """Take an event of the session's."""
        match event:
            case events.Submitted():
                self._unsent = 0
                if not event.adopted:
                    self._submitted_at[event.task_id] = event.at
            case events.Settled(wav=wav):
                self._settled.append(wav)
                began = self._submitted_at.pop(wav.task_id, None)
                if began is not None:
                    self._durations.note((event.at - began).total_seconds())
            case events.WaitEnded():
                self._submitted_at.pop(event.task_id, None)
            case _:
                pass
        self._display.tell(event)

    # --- the run ----------------------------------------------------------------------------

    async def convert(
        self, session: WavSession, listening: Listening | None
    ) -> BaseException | None:
        """
        Plan the catalog and convert what the ledger has; return what stopped it, if anything.

        Raises:
            CliError: The catalog is no good, or nothing can be listened to.

            KieWavError: What ended it before anything was planned.
        """
        try:
            with self._display:
                async with session, listen(session, listening):
                    self._session = session
                    if listening is not None:
                        self._display.tell_listening(listening)
                    await self._plan(session)
                    await self._announce()
                    async with self._watched(session):
                        await self._draw(session)
                        await self._join_adopted(session)
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
            return error
        except errors.KieWavError as error:
            if self.plan is None:
                raise
            return error
        except BrokenPipeError as error:
            return error
        return None

    async def _plan(self, session: WavSession) -> None:
        order = self._order
        self._planner = Planner(session, self._ledger, order.folder, self._display)
        async with _alongside(self._tell_planning()):
            plan = await self._planner.plan(order.catalog, skip_bad=order.skip_bad)
        retried = await self._ledger.retry(order.retried) if order.retried else 0
        _ = await self._ledger.expire(self._clock.time())
        self.plan = plan
        known = plan.tracks - plan.new
        parts = [f"{plan.new:,} new"]
        if known:
            parts.append(f"{known:,} known or repeated")
        if retried:
            parts.append(f"{retried:,} that came to nothing are tried again")
        if plan.bad:
            parts.append(f"{count_words(plan.bad, 'bad line')} left out")
        self._display.clear()
        self._display.say(f"The catalog: {count_words(plan.tracks, 'track')}; {', '.join(parts)}.")

    async def _announce(self) -> None:
        """Say what is to come, before it begins."""
        order, say = self._order, self._display.say
        tally = Tally(await self._ledger.count())
        self._meter.note(self._clock.monotonic(), tally.submitted)
        opening = await self._ledger.open(self._clock.time())
        await self._ledger.aclose()
        resubmits = order.on_unknown is OnUnknown.RESUBMIT
        most = most_charges(
            tally,
            resubmits=resubmits,
            charges=opening.accepted + len(opening.unknown),
            max_charges=order.max_charges,
        )
        say(
            f"The ledger: {tally.planned:,} to submit, {tally.in_flight:,} in flight, "
            f"{tally.converted:,} converted, {tally.failed:,} failed, {tally.unknown:,} unknown."
        )
        cap = "" if order.max_charges is None else f" (--max-charges {order.max_charges:,})"
        # Time is told as it is expected, and the charges as they are at the worst.
        submits = min(most, tally.planned + (tally.unknown if resubmits else 0))
        left_s = time_left_s(tally, submits, order.rate, order.max_in_flight)
        rate = f"{order.rate.count} submits per {order.rate.per_s:g} s"
        disk = bytes_words(BYTES_PER_TRACK * (tally.total - tally.failed - tally.expired))
        say(
            f"At most {count_words(most, 'new charge')}{cap}. It takes about "
            f"{duration_words(left_s)} at {rate}; all WAVs together are about {disk}."
        )
        if not order.is_saving_off:
            say(
                "WAVs are not saved (--no-download is implied): KIE keeps each for 14 days, and "
                "the ledger has its URL."
            )

    async def _draw(self, session: WavSession) -> None:
        async with session.convert_all(self._source()) as batch:
            async for outcome in batch:
                self._take(outcome)

    async def _source(self) -> AsyncIterator[Track]:
        """Give what is in flight, to be joined, and then what is to be submitted."""
        first = [TrackState.ACCEPTED]
        if self._order.on_unknown is OnUnknown.RESUBMIT:
            first.append(TrackState.UNKNOWN)
        for states in (first, [TrackState.PLANNED]):
            after = 0
            while page := await self._ledger.page(states, after=after, limit=_PAGE):
                for standing in page:
                    yield standing.track
                after = page[-1].index

    def _take(self, outcome: Outcome) -> None:
        self.print_settled()
        error = outcome.error
        if error is None:
            self._unsent = 0
        elif isinstance(error, errors.LedgerError):
            raise error
        elif isinstance(error, _SYSTEMIC) or type(error) is errors.ServiceError:
            self._unsent += 1
            if self._unsent >= _MOST_UNSENT:
                raise error
        elif not isinstance(error, _STOPPERS):
            self._unsent = 0

    def print_settled(self) -> None:
        """
        Print what has settled since it was called last.

        Raises:
            BrokenPipeError: Nobody reads it.
        """
        while self._settled:
            wav = self._settled.popleft()
            if self._prints and wav.track is not None:
                track = wav.track
                print_line(track.music_task_id, track.audio_id, wav.task_id, wav.url)

    async def _join_adopted(self, session: WavSession) -> None:
        """Wait for tasks that were found meanwhile for submits that the batch had given up."""
        for conversion in session.conversions():
            with contextlib.suppress(errors.KieWavError):
                await conversion.wait()
            self.print_settled()

    # --- meanwhile --------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _watched(self, session: WavSession) -> AsyncGenerator[None]:
        """Show how far it has come for as long as the block runs."""
        try:
            async with _alongside(self._ask_credits(session), self._watch()):
                yield
        finally:
            if self._display.is_live:
                await self._show()
                self._display.clear()

    async def _tell_planning(self) -> None:
        while not self._display.is_live:
            await self._clock.sleep(_LINES_S)
            self._display.say_moving()

    async def _watch(self) -> None:
        while True:
            began_s = self._clock.monotonic()
            if self._display.is_live:
                await self._show()
            # Counting a million rows takes a moment of the ledger's time.
            took_s = self._clock.monotonic() - began_s
            least_s = _BARS_S if self._display.is_live else _LINES_S
            await self._clock.sleep(max(least_s, 20 * took_s))
            if not self._display.is_live:
                await self._show()

    async def _show(self) -> None:
        with contextlib.suppress(errors.LedgerError):  # Whoever writes will meet it too.
            tally = Tally(await self._ledger.count())
            self._meter.note(self._clock.monotonic(), tally.submitted)
            order = self._order
            left_s = time_left_s(
                tally,
                tally.planned,
                order.rate,
                order.max_in_flight,
                conversion_s=self._durations.mean_s,
                measured_per_s=self._meter.per_s if self._meter.is_steady else None,
            )
            figures = Figures(
                tally=tally,
                per_s=self._meter.per_s,
                left_s=left_s or None,
                is_held=self._display.is_held,
                credits=self.credits,
            )
            self._display.show(figures)

    async def _ask_credits(self, session: WavSession) -> None:
        while True:
            with contextlib.suppress(errors.KieWavError):  # Not knowing is no harm.
                self.credits = await session.credits()
            await self._clock.sleep(_CREDITS_S)
