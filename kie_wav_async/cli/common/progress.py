"""What is seen on stderr while a command waits: a live line on a terminal, else plain ones."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from yarl import URL

from kie_wav_async import events
from kie_wav_async.cli.common.listen import KEY_NAME
from kie_wav_async.cli.common.output import plain, print_line, say
from kie_wav_async.cli.common.streams import is_behind, need_stdout
from kie_wav_async.errors import with_advice

if TYPE_CHECKING:
    import datetime as dt
    from pathlib import Path
    from types import TracebackType

    from kie_wav_async.cli.common.listen import ListenOptions


class Display:
    """
    A progress on a console, with lines that stay above it.

    Args:
        console: Where it is shown.

        progress: What is shown.
    """

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._rejections: set[str] = set()
        self._is_over = False
        refresh = progress.live.refresh

        def refresh_if_seen() -> None:
            # A terminal that was stopped would show all of it once it goes on. What is
            # shown last is shown in any case.
            if self._is_over or not is_behind():
                refresh()

        progress.live.refresh = refresh_if_seen  # type: ignore[method-assign]  # one object's

    def __enter__(self) -> Self:
        """Begin to show."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop showing; a transient progress disappears, and the lines stay."""
        self._is_over = True
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        say(text, self._console)

    def print_result(self, text: str) -> None:
        """Print a line on stdout; above the progress, if both are on the terminal."""
        need_stdout()
        if self._console.is_terminal and sys.stdout.isatty():
            # Still one line, however long, for who copies it.
            self._console.print(plain(text), soft_wrap=True)
        else:
            print_line(text)

    def show_listening(self, listening: ListenOptions) -> None:
        """Say where callbacks are waited for, and what they may do."""
        outside = URL(listening.callback_url).with_query(None)  # A query may hold a secret.
        self.say(f"listening on {listening} for what KIE posts to {outside}")
        if not listening.has_keys:
            self.say(
                f"no webhook key: set {KEY_NAME}. Without it callbacks cannot be "
                "verified, and are hints only: each makes kie-wav ask KIE"
            )

    def _show_rejected(self, event: events.CallbackRejected) -> None:
        """Say why a callback was refused."""
        reason = with_advice(event.error)
        # Once each: anybody can cause them, as often as he likes.
        if reason not in self._rejections:
            self._rejections.add(reason)
            self.say(f"refused a callback, and will not tell of the next: {reason}")


class WaitDisplay(Display):
    """
    The wait for one conversion, or for its file.

    Its `show_event` is the session's ``on_event``.

    Args:
        begin: What is done first, in a word.
    """

    def __init__(self, begin: str) -> None:
        console = Console(stderr=True)
        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        super().__init__(console, progress)
        self._is_submitted = False
        #: Whether bytes of the file have come.
        self.is_fetched = False
        self._line = self._progress.add_task(begin, total=None)

    def show_event(self, event: events.Event) -> None:
        """Show an event of the session's."""
        match event:
            case events.SubmitAccepted():
                self._is_submitted = True
                was = "already there" if event.adopted else "submitted"
                self.say(f"{was}: task {event.task_id}")
                self._progress.update(self._line, description="waiting for the WAV")
            case events.SubmitRetryScheduled():
                self.say(f"not taken yet, trying again: {event.error}")
            case events.PollingPaused(delay_s=float(delay_s)):
                self.say(f"polling refused ({event.reason}), asking again in {delay_s:g} s")
            case events.CallbackRejected():
                self._show_rejected(event)
            case events.DownloadProgress():
                self.is_fetched = True
                self._progress.update(self._line, completed=event.bytes, total=event.total)
            case events.DownloadRetryScheduled():
                self.say(f"not saved yet, trying again in {event.delay_s:.1f} s: {event.error}")
            case _:
                pass

    def show_interrupted(self) -> None:
        """Say why the end takes a moment."""
        if not self._is_submitted:
            self.say("interrupted; waiting up to 25 s for the answer to a submit under way")

    def show_saving(self, path: Path) -> None:
        """Go on to the file."""
        self._progress.columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
        )
        self._progress.update(self._line, description=f"saving {plain(path.name)}")


class DemoDisplay(Display):
    """
    How far a catalog has come: submitted, converted, saved.

    Its `show_event` is the session's ``on_event``.
    """

    def __init__(self, count: int) -> None:
        console = Console(stderr=True)
        progress = Progress(
            TextColumn("{task.description:<9}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        super().__init__(console, progress)
        self._submitted_at: dict[str, dt.datetime] = {}
        self._seconds: dict[str, float] = {}
        self._submitted = self._progress.add_task("submitted", total=count)
        self._converted = self._progress.add_task("converted", total=count)
        self._saved = self._progress.add_task("saved", total=count)

    def show_event(self, event: events.Event) -> None:
        """Show an event of the session's."""
        match event:
            case events.SubmitAccepted():
                self._submitted_at[event.task_id] = event.at
                self._progress.advance(self._submitted)
            case events.ConversionSucceeded(wav=wav) if wav.task_id in self._submitted_at:
                spent = event.at - self._submitted_at[wav.task_id]
                self._seconds[wav.task_id] = spent.total_seconds()
            case _:
                pass

    def show_converted(self) -> None:
        """Count one more outcome."""
        self._progress.advance(self._converted)

    def show_saved(self) -> None:
        """Count one more file."""
        self._progress.advance(self._saved)

    def seconds_of(self, task_id: str) -> float | None:
        """Return the seconds from the acceptance of a task to its result."""
        return self._seconds.get(task_id)


class VerifyDisplay(Display):
    """How many bytes of files were read; its `show_read` may be called from any thread."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        #: Whether anybody sees how far it has come.
        self.is_live = console.is_terminal
        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            transient=True,
            disable=not self.is_live,
        )
        super().__init__(console, progress)
        self._line = self._progress.add_task("verifying", total=None)

    def show_total(self, total: int) -> None:
        """Say how many bytes there are."""
        self._progress.update(self._line, total=total)

    def show_read(self, count: int) -> None:
        """Count some more."""
        self._progress.advance(self._line, count)
