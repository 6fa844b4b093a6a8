"""
``kie-wav bulk``: a catalog, converted and saved, however often the run is stopped.

The catalog goes into the ledger first; what is converted and what is saved is drawn
from the ledger. That is why the same command again goes on where the last one
stopped, and why memory does not grow with the catalog.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import click

from kie_wav_async import CallbackTrust, Outcome, SystemClock, Track, errors, events
from kie_wav_async.cli.bulk.counts import RunResult
from kie_wav_async.cli.bulk.estimate import count_words
from kie_wav_async.cli.bulk.importer import Plan, Planner
from kie_wav_async.cli.bulk.manifest import MANIFEST, write_manifest
from kie_wav_async.cli.bulk.monitor import ProgressMonitor
from kie_wav_async.cli.bulk.preflight import announce, recheck_files, verify_not_lost
from kie_wav_async.cli.bulk.progress import BulkDisplay
from kie_wav_async.cli.bulk.saved_files import SavedFilesCheck, reclaim
from kie_wav_async.cli.bulk.saver import Saver, run_together
from kie_wav_async.cli.bulk.summary import show_summary
from kie_wav_async.cli.common.ledger_pages import pages
from kie_wav_async.cli.common.listen import ListenOptions, listen, read_listening
from kie_wav_async.cli.common.output import USAGE, CliError, cell, clean
from kie_wav_async.cli.common.signals import Interrupt, end_at_once
from kie_wav_async.cli.common.streams import OutputError, finish, flush, wait_for_room
from kie_wav_async.ledger import SqliteLedger, TrackState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from decimal import Decimal
    from pathlib import Path

    from kie_wav_async import Clock, WavSession
    from kie_wav_async.cli.bulk.options import BulkOptions
    from kie_wav_async.cli.common.session_factory import Service
    from kie_wav_async.ledger import Ledger, LedgerEntry

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
    errors.EndpointGoneError,
    errors.ChargeLimitError,
    errors.SessionClosedError,
)
# What ends the saving of files with it: it would meet the same.
_ENDING_ALL: Final = (errors.LedgerError, errors.SessionClosedError, errors.TransportError)


async def run_bulk(
    service: Service, options: BulkOptions, *, as_json: bool, clock: Clock | None = None
) -> int:
    """
    Convert a catalog, and return the exit code.

    Args:
        service: Where to convert it.

        options: What, and how.

        as_json: Print one JSON object at the end in place of a line per track.

        clock: The source of time; `None`: the system's.

    Raises:
        CliError: It did not begin.

        KieWavError: It did not begin at the service.
    """
    listening = read_listening(options.address, options.callback_url)
    clock = SystemClock() if clock is None else clock
    ledger = SqliteLedger(options.ledger, new_ledger=options.new_ledger)
    display = BulkDisplay()
    run = _Run(options, ledger, display, clock, as_json=as_json)
    session = service.session(
        listening.callback_url if listening else "",
        callback_trust=CallbackTrust.CONFIRM,
        rate_limit=options.rate,
        max_in_flight=options.max_in_flight,
        poll=options.poll,
        on_unknown=options.on_unknown,
        max_charges=options.max_charges,
        timeout_s=_TIMEOUT_S,
        ledger=ledger,
        on_event=run.note_event,
        clock=clock,
    )
    _open_folder(options.folder)
    verify_not_lost(options, display)
    began_s = time.monotonic()
    with Interrupt(run.stop, run.leave):
        _ = await ledger.open(clock.time())
        try:
            stopped_by = await run.convert(session, listening)
            result = asyncio.ensure_future(
                run.end(session, stopped_by, seconds=time.monotonic() - began_s, as_json=as_json)
            )
            try:
                code, stopped_by = await asyncio.shield(result)
            except asyncio.CancelledError:
                # Ctrl-C comes too late to stop anything, and a second one leaves at once.
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
                code, stopped_by = await result
        finally:
            await ledger.aclose()
        if run.is_stuck:
            end_at_once(finish(code))
        if isinstance(stopped_by, OutputError):
            raise stopped_by
    return code


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

        saver: What saves the files; `None` before it begins, and if nothing does.

        earlier: The files of earlier runs.
    """

    def __init__(
        self,
        options: BulkOptions,
        ledger: Ledger,
        display: BulkDisplay,
        clock: Clock,
        *,
        as_json: bool,
    ) -> None:
        self.plan: Plan | None = None
        self.saver: Saver | None = None
        self.earlier = SavedFilesCheck()
        self._options = options
        self._ledger = ledger
        self._display = display
        self._clock = clock
        self._monitor = ProgressMonitor(options, ledger, display, clock)
        # On a terminal the bars tell, and addresses would push them about.
        self._prints = not as_json and not sys.stdout.isatty()
        self._planner: Planner | None = None
        self._session: WavSession | None = None
        self._unsent = 0
        # Whether WAVs that had expired are to be fetched once more, before they are paid again.
        self._is_reclaiming = TrackState.EXPIRED in options.retried
        # Not yet printed. Not all that settles is the batch's to yield: it drops what it
        # has as it is closed, and a task may be found for a submit it had given up.
        self._results: deque[bytes] = deque()

    # --- from outside -----------------------------------------------------------------------

    @property
    def is_stuck(self) -> bool:
        """Whether a thread of ours cannot be ended."""
        return self._planner is not None and self._planner.is_stuck

    @property
    def credits(self) -> Decimal | None:
        """What was left of them when last asked; `None` while nobody knows."""
        return self._monitor.credits

    def stop(self) -> None:
        """Say what a first Ctrl-C does."""
        under_way = self._session.statistics() if self._session else None
        if under_way is None or not under_way.submitted:
            return
        kept = "" if self.saver is None else "what has come of files is kept; "
        self._display.say(
            "stopping: nothing more is submitted, and submits under way get up to 25 s for "
            f"their answer; {kept}Ctrl-C again leaves at once"
        )

    def leave(self) -> None:
        """Say what a second Ctrl-C does."""
        command = self._options.resume(
            is_planned=self.plan is not None, is_reclaiming=self._is_reclaiming
        )
        self._display.leave(f"{self._options.resume_words}: {command}")

    def note_event(self, event: events.Event) -> None:
        """Take an event of the session's."""
        match event:
            case events.SubmitAccepted():
                self._unsent = 0
            case events.ConversionSucceeded(wav=wav) if (
                self._options.is_saving_off and wav.track is not None
            ):
                self._add_result(wav.track, wav.task_id, str(wav.url))
            case _:
                pass
        if self.saver is not None:
            self.saver.note_event(event)
        self._monitor.note_event(event)
        self._display.show_event(event)

    # --- the run ----------------------------------------------------------------------------

    async def convert(
        self, session: WavSession, listening: ListenOptions | None
    ) -> BaseException | None:
        """
        Plan the catalog, convert what the ledger has and save it; return what stopped it, if any.

        Raises:
            CliError: The catalog is no good, or nothing can be listened to.

            KieWavError: What ended it before anything was planned.
        """
        try:
            with self._display:
                async with session, listen(session, listening):
                    self._session = session
                    if listening is not None:
                        self._display.show_listening(listening)
                    await self._plan(session)
                    tally = await announce(self._options, self._ledger, self._display, self._clock)
                    self._monitor.begin(tally)
                    async with self._monitor.while_running(session):
                        return await self._work(session)
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
            return error
        except errors.KieWavError as error:
            if self.plan is None:
                raise
            return error
        except OutputError as error:
            return error

    async def end(
        self,
        session: WavSession,
        stopped_by: BaseException | None,
        *,
        seconds: float,
        as_json: bool,
    ) -> tuple[int, BaseException | None]:
        """Tell how it ended; return the exit code, and what stopped it, if anything did."""
        try:
            self.print_results()
            await flush()
        except OutputError as error:
            stopped_by = stopped_by or error
        if self.saver is not None:
            await self._list_files()
        result = RunResult(
            ledger=self._ledger,
            options=self._options,
            stopped_by=stopped_by,
            counted=session.statistics(),
            open_tasks=session.conversions(),
            plan=self.plan,
            credits=self.credits,
            seconds=seconds,
            now_unix_s=self._clock.time(),
            is_reclaiming=self._is_reclaiming,
            saver=self.saver,
            lost=self.earlier.lost,
        )
        code = await show_summary(result, self._display, as_json=as_json)
        try:
            await flush()
        except OutputError as error:
            if not isinstance(stopped_by, asyncio.CancelledError):
                stopped_by = error
                error.exit_code = max(code, error.exit_code)
                error.resume = self._options.resume_words, self._options.resume(is_planned=True)
        return code, stopped_by

    async def _list_files(self) -> None:
        """Write the manifest; a run that has saved its files does not fail for it."""
        folder = self._options.folder
        try:
            _ = await write_manifest(self._ledger, folder)
        except OSError as error:
            why = error.strerror or type(error).__name__
            self._display.say(f"cannot write {folder / MANIFEST}: {why}; the ledger has all of it")
        except errors.LedgerError:
            pass  # The ending says so.

    async def _plan(self, session: WavSession) -> None:
        options = self._options
        self._planner = Planner(session, self._ledger, options.folder, self._display)
        async with self._monitor.while_planning():
            plan = await self._planner.plan(options.catalog, skip_invalid=options.skip_invalid)
            if not options.is_saving_off:
                self.earlier = await recheck_files(options, self._ledger, self._display)
        retried = await self._ledger.requeue(set(options.retried) - {TrackState.EXPIRED})
        reclaimed = await reclaim(self._ledger) if self._is_reclaiming else 0
        self.plan = plan
        known = plan.tracks - plan.new
        parts = [f"{plan.new:,} new"]
        if known:
            parts.append(f"{known:,} known or repeated")
        if retried:
            parts.append(f"{retried:,} that came to nothing are tried again")
        if plan.invalid:
            parts.append(f"{count_words(plan.invalid, 'bad line')} left out")
        self._display.clear()
        self._display.say(f"The catalog: {count_words(plan.tracks, 'track')}; {', '.join(parts)}.")
        if reclaimed:
            self._display.say(
                f"{count_words(reclaimed, 'WAV')} had expired at KIE: fetching each once "
                "more, which is free, before what is gone is converted again."
            )

    async def _work(self, session: WavSession) -> BaseException | None:
        """Convert, and save; return what ended only the submits, once all else is done."""
        if self._options.is_saving_off:
            await self._convert(session)
            return None
        options = self._options
        saver = Saver(
            session,
            self._ledger,
            self._clock,
            folder=options.folder,
            template=options.filename_template,
            downloads=options.max_downloads,
            earlier=self.earlier,
            on_saved=self._take_saved,
            on_put_back=self._display.show_put_back,
            accept_short=options.accept_short,
        )
        self.saver = self._monitor.saver = saver
        stopped_by: errors.KieWavError | None = None

        async def convert() -> None:
            nonlocal stopped_by
            try:
                await self._give_up(saver)
                await self._convert(session)
            except _ENDING_ALL:
                raise
            except errors.KieWavError as error:
                stopped_by = error
                if not saver.is_idle:
                    self._display.say("nothing more is submitted; what is converted is saved yet")
            saver.finish()

        await run_together(convert(), saver.run())
        return stopped_by

    async def _give_up(self, saver: Saver) -> None:
        """Plan again what had expired and is gone, once every free way to it was tried."""
        if not self._is_reclaiming:
            return
        await saver.wait_idle()
        gone = await self._ledger.requeue([TrackState.EXPIRED])
        self._is_reclaiming = False
        if gone:
            self._display.say(f"{count_words(gone, 'WAV is', 'WAVs are')} gone: converting again.")

    # --- converting -------------------------------------------------------------------------

    async def _convert(self, session: WavSession) -> None:
        async with session.convert_all(self._source()) as batch:
            async for outcome in batch:
                self._take(outcome)
        await self._join_adopted(session)

    async def _source(self) -> AsyncIterator[Track]:
        """Give what is in flight, to be joined, and then what is to be submitted."""
        first = [TrackState.ACCEPTED]
        if self._options.resubmits:
            first.append(TrackState.UNKNOWN)
        for states in (first, [TrackState.PLANNED]):
            async for page in pages(self._ledger, states):
                for entry in page:
                    await wait_for_room()
                    if self.saver is not None and entry.state is not TrackState.ACCEPTED:
                        await self.saver.wait_turn()
                    yield entry.track

    def _take(self, outcome: Outcome) -> None:
        self.print_results()
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

    async def _join_adopted(self, session: WavSession) -> None:
        """Wait for tasks that were found meanwhile for submits that the batch had given up."""
        for conversion in session.conversions():
            with contextlib.suppress(errors.KieWavError):
                await conversion.wait()
            self.print_results()

    # --- results ----------------------------------------------------------------------------

    def _take_saved(self, entry: LedgerEntry, place: str) -> None:
        self._add_result(entry.track, entry.task_id, place)
        self.print_results()

    def _add_result(self, track: Track, task_id: str, where: str) -> None:
        if self._prints:
            ids = map(clean, (track.music_task_id, track.audio_id, task_id))
            cells = [cell(one).encode(sys.stdout.encoding, "replace") for one in ids]
            # A path is told as it is: it is ours, and stands for one file only.
            self._results.append(b"\t".join([*cells, os.fsencode(cell(where))]))

    def print_results(self) -> None:
        """
        Print what there is to show since it was called last.

        Raises:
            OutputError: Nobody reads it.
        """
        while self._results:
            click.echo(self._results.popleft())
