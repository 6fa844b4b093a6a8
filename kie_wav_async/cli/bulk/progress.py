"""What is seen on stderr while a catalog is converted: bars on a terminal, else plain lines."""

from __future__ import annotations

import datetime as dt
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import attrs
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from kie_wav_async import events
from kie_wav_async.cli.bulk.estimate import TrackCounts, bytes_words, count_words, duration_words
from kie_wav_async.cli.common.output import clean, plain
from kie_wav_async.cli.common.progress import Display
from kie_wav_async.cli.common.streams import is_behind, leave
from kie_wav_async.errors import MaintenanceError, RateLimitedError, SubmitUnknownError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from rich.console import RenderableType

    from kie_wav_async import Track
    from kie_wav_async.errors import DownloadError, KieWavError

_SHOW_CURSOR: Final = "\x1b[?25h"

_MAINTENANCE: Final = "KIE is under maintenance: new submits wait, and ask once a minute"
_OUTAGE: Final = (
    "KIE seems to be out: the last submits got no clear answer. New submits pause, and one at a "
    "time is tried, less and less often"
)
_TOO_MANY: Final = "KIE says 429, too many submits: is another program using the account?"
_HOLDS: Final = {_MAINTENANCE: "holding for maintenance", _OUTAGE: "paused for an outage"}
_MINUTE: Final = dt.timedelta(minutes=1)


@attrs.frozen(kw_only=True)
class SavingFigures:
    """
    How far the saving of files has come.

    Attributes:
        done: Bytes that are here, those of files that are not whole too.

        total: What they are expected to become.

        per_s: Bytes a second, lately.

        waiting: Files that are tried again after a pause.

        given_up: Files that could not be saved.

        is_holding: Whether submits wait, because files are saved too slowly.
    """

    done: int
    total: int
    per_s: float
    waiting: int
    given_up: int
    is_holding: bool

    @property
    def amount(self) -> str:
        """How much has come, and how fast."""
        return f"{bytes_words(self.done)}, {bytes_words(self.per_s)}/s"

    def words(self) -> list[str]:
        """Return what no bar shows."""
        words: list[str] = []
        if self.waiting:
            words.append(f"{count_words(self.waiting, 'file')} to try again")
        if self.given_up:
            words.append(f"{self.given_up:,} not saved")
        return words


@attrs.frozen(kw_only=True)
class Figures:
    """
    How far a run has come.

    Attributes:
        tally: Where the tracks of the ledger stand.

        per_s: Submits a second, lately.

        left_s: How long it will take; `None` once nothing is left.

        hold: Why submits wait nobody knows how long, in a few words; ``""`` if they do not.

        credits: What is left of them; `None` while nobody knows.

        saving: How far the saving of files has come; `None` if none are saved.
    """

    tally: TrackCounts
    per_s: float
    left_s: float | None
    hold: str
    credits: Decimal | None
    saving: SavingFigures | None = None

    def words(self) -> list[str]:
        """Return what no bar shows."""
        words = [f"{self.per_s:.1f} submits/s"]
        if self.hold:
            words.append(self.hold)
        elif self.saving is not None and self.saving.is_holding:
            words.append("holding for the files")
        elif self.left_s is not None:
            words.append(f"about {duration_words(self.left_s)} left")
        words.append(f"{self.tally.in_flight:,} in flight")
        if self.saving is not None:
            words += self.saving.words()
        if self.credits is not None:
            words.append(f"{self.credits:,f} credits left")
        return words

    def line(self) -> str:
        """Return all of it as one line."""
        tally, saved = self.tally, list[str]()
        if self.saving is not None:
            saved = [f"saved {tally.saved:,} ({self.saving.amount})"]
        parts = [
            f"submitted {tally.submitted:,} of {tally.total:,}",
            f"converted {tally.converted:,}",
            *saved,
            f"failed {tally.failed:,}",
            f"unknown {tally.unknown:,}",
            *self.words(),
        ]
        return ", ".join(parts)


class _Bars(Progress):
    """Bars, with a line or two below them."""

    footer: tuple[str, ...] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield what is shown."""
        if any(task.visible for task in self.tasks):
            yield self.make_tasks_table(self.tasks)
        for line in self.footer:
            yield Text(clean(line), overflow="ellipsis", no_wrap=True)


class BulkDisplay(Display):
    """How far a catalog has come."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        #: Whether there is a terminal that can show bars.
        self.is_live = console.is_terminal and not console.is_dumb_terminal
        # Refreshed by whoever has news: a thread of its own would complain of a
        # terminal that has gone.
        self._bars = _Bars(
            TextColumn("{task.description:<9}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[amount]}", markup=False, justify="right"),
            console=console,
            auto_refresh=False,
            expand=True,
            disable=not self.is_live,
            # What goes to a file or a pipe is not to end up on the terminal.
            redirect_stdout=sys.stdout.isatty(),
        )
        super().__init__(console, self._bars)
        # Made before anything is shown: each new one would be shown at once.
        self._lines: dict[str, TaskID] = {
            name: self._bars.add_task(name, visible=False, amount="")
            for name in ("submitted", "converted", "saved", "bytes", "failed", "unknown")
        }
        self._footer = ""
        self._hold = ""
        self._held: set[Track] = set()
        self._put_back: set[str] = set()
        self._told_429_at: dt.datetime | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop showing; the bars stay, and what was said of the moment does not."""
        self._hold = ""
        self.clear()
        super().__exit__(kind, error, traceback)

    # --- lines that stay --------------------------------------------------------------------

    def say_as_is(self, text: str) -> None:
        """Print a line to be copied: it is broken nowhere."""
        self._console.print(plain(text), soft_wrap=True)

    def show_event(self, event: events.Event) -> None:
        """Show an event of the session's that is not in the figures."""
        match event:
            case events.SubmitRetryScheduled(track=track, error=error, at=at):
                self._held.add(track)
                self._show_held(error, at)
            case events.SubmitAccepted(track=track) | events.SubmitRejected(track=track):
                # Others may have been on the wire when the hold began; any ends an outage.
                if track in self._held or self._hold == _OUTAGE:
                    self._held.clear()
                    self._show_held(None, event.at)
            case events.PollingPaused(delay_s=float(delay_s)):
                self.say(f"polling refused ({event.reason}), asking again in {delay_s:g} s")
            case events.CallbackRejected():
                self._show_rejected(event)
            case _:
                pass

    @property
    def hold(self) -> str:
        """Why submits wait nobody knows how long, in a few words; empty if they do not."""
        return _HOLDS.get(self._hold, "")

    def _show_held(self, error: KieWavError | None, at: dt.datetime) -> None:
        # Once when it begins and once when it is over: there is one event for each
        # track and try.
        match error:
            case MaintenanceError():
                hold = _MAINTENANCE
            case RateLimitedError():
                hold = _TOO_MANY
            case SubmitUnknownError():
                hold = _OUTAGE
            case None:
                hold = ""
            case _:
                hold = f"submits do not get through, trying again: {error}"
        if hold == self._hold:
            return
        if hold and (hold != _TOO_MANY or self._is_news(at)):
            self.say(hold)
        if not hold and self.hold:
            self.say("KIE takes submits again")
        self._hold = hold
        self._refresh()

    def _is_news(self, at: dt.datetime) -> bool:
        """Whether 429 was not told in the last minute."""
        last = self._told_429_at
        if last is not None and dt.timedelta() <= at - last < _MINUTE:
            return False
        self._told_429_at = at
        return True

    # --- what moves -------------------------------------------------------------------------

    def show_read(self, rows: int) -> None:
        """Show how much of the catalog was read."""
        self._footer = f"reading the catalog: {count_words(rows, 'row')}"
        self._refresh()

    def show_planned(self, done: int, total: int) -> None:
        """Show how much of the catalog was planned."""
        self._footer = f"planning: {done:,} of {count_words(total, 'track')}"
        self._refresh()

    def show_checked(self, done: int, total: int) -> None:
        """Show how far the check of the files of earlier runs has come."""
        self._footer = f"checking the files of earlier runs: {done:,} of {total:,}"
        self._refresh()

    def show_put_back(self, error: DownloadError, pause_s: float) -> None:
        """Say why a file is not saved yet."""
        # Once for each reason: the next file is likely to meet it too.
        if error.reason not in self._put_back:
            self._put_back.add(error.reason)
            self.say(f"not saved yet, and tried again in {duration_words(pause_s)}: {error}")

    def say_moving(self) -> None:
        """Say as a line what would move on a terminal."""
        if self._footer:
            self.say(self._footer)

    def show(self, figures: Figures) -> None:
        """Show how far it has come."""
        if not self.is_live:
            if not is_behind():
                self.say(figures.line())
            return
        tally = figures.tally
        for name, done in {
            "submitted": tally.submitted,
            "converted": tally.converted,
            "saved": tally.saved,
        }.items():
            if name != "saved" or figures.saving is not None:
                self._show_bar(name, done, tally.total, f"{done:,}/{tally.total:,}")
        for name, done in {"failed": tally.failed, "unknown": tally.unknown}.items():
            self._show_bar(name, done, tally.total, f"{done:,}")
        if (saving := figures.saving) is not None:
            self._show_bar("bytes", saving.done, saving.total, saving.amount)
        self._footer = " · ".join(figures.words())
        self._refresh()

    def _show_bar(self, name: str, done: int, total: int, amount: str) -> None:
        self._bars.update(
            self._lines[name], visible=True, completed=done, total=max(1, total), amount=amount
        )

    def clear(self) -> None:
        """Take away what moves and is over."""
        self._footer = ""
        self._refresh()

    def _refresh(self) -> None:
        self._bars.footer = tuple(line for line in (self._footer, self._hold) if line)
        self._bars.refresh()

    def leave(self, last: str) -> None:
        """Say a last line and give the terminal back, from a signal's handler."""
        cursor = _SHOW_CURSOR if self.is_live else ""
        leave(f"{cursor}\n{clean(last)}\n")
