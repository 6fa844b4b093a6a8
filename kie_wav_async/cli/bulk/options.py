"""What ``kie-wav bulk`` is asked for, as read from its command line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs
import click

from kie_wav_async import OnUnknown, PollSchedule, RateLimit
from kie_wav_async.cli.common.shell import join, without_password
from kie_wav_async.file_names import verify_template
from kie_wav_async.ledger import TrackState

# What is said once, and done once it was said.
_RECLAIM: Final = "--retry-expired"
_ONCE: Final = frozenset({"--retry-failed", _RECLAIM, "--new-ledger"})
_CAP: Final = "--max-charges"
_PROXY: Final = "--proxy"

# All options of the command that have no value.
_FLAGS: Final = _ONCE | {"--no-download", "--skip-invalid", "--accept-short", "--json"}

_STDIN: Final = frozenset({"-", "/dev/stdin"})
# Names of open files, such as a shell's process substitution: not valid later.
_PASSING: Final = ("/dev/fd/", "/proc/self/fd/")


@attrs.frozen(kw_only=True)
class BulkOptions:
    """
    What is asked for.

    Attributes:
        catalog: A path, or ``-``.

        folder: Where the files go, the ledger, and whatever else is written.

        ledger: The ledger's file.

        address: Where callbacks are waited for; `None`: nowhere.

        callback_url: Where the service posts to get there; `None`: as in the environment.

        on_unknown: What becomes of submits of unknown fate.

        max_charges: Most submits accepted or unknown, over all runs; `None` for no limit.

        rate: The window of submits.

        max_in_flight: Most conversions at a time.

        poll: When they are polled.

        is_saving_off: Whether the user said that no WAV is to be saved.

        filename_template: What the files are called.

        max_downloads: How many files are fetched at a time.

        skip_invalid: Whether bad lines of the catalog are left out.

        accept_short: Whether files are saved that are shorter than they declare.
        new_ledger: Whether a new ledger may begin where one is lost.

        retried: Tracks in which states are converted again.

        given: What was typed after ``kie-wav``.
    """

    catalog: str
    folder: Path
    ledger: Path
    address: tuple[str, int] | None
    callback_url: str | None
    on_unknown: OnUnknown
    max_charges: int | None
    rate: RateLimit
    max_in_flight: int
    poll: PollSchedule
    is_saving_off: bool
    filename_template: str
    max_downloads: int
    skip_invalid: bool
    retried: Collection[TrackState]
    given: Sequence[str]
    accept_short: bool = False
    new_ledger: bool = False

    def resume(
        self, *, is_planned: bool, is_capped: bool = False, is_reclaiming: bool = False
    ) -> str:
        """
        Return what is to be typed to go on.

        Args:
            is_planned: Whether what is said once was done, and is not to be said again.

            is_capped: Whether the cap on charges was reached: it has to be another one.

            is_reclaiming: Whether WAVs that had expired are still to be fetched once more.

        A placeholder in capitals stands for what is not known or must not be shown.
        """
        done = _ONCE if is_planned else frozenset[str]()
        if is_reclaiming:
            done -= {_RECLAIM}
        words = [word for word, option in _read(self.given) if option not in done]
        if self.catalog.startswith(_PASSING):
            words = ["CATALOG" if word == self.catalog else word for word in words]
        if is_capped:
            words = _with_value(words, _CAP, lambda _: "N")
        return join(["kie-wav", *_with_value(words, _PROXY, without_password)])

    @property
    def resubmits(self) -> bool:
        """Whether a submit of unknown fate is sent once more."""
        return self.on_unknown is OnUnknown.RESUBMIT

    @property
    def resume_words(self) -> str:
        """What is said before `resume`."""
        if self.catalog in _STDIN:
            return "Give it the same catalog on stdin once more, and go on with"
        if self.catalog.startswith(_PASSING):
            return "Give it the same catalog once more in place of CATALOG, and go on with"
        return "Go on with"


def _read(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield each word, and the option that it names; `None` for a value or an argument."""
    is_value = is_over = False
    for word in words:
        is_option = word.startswith("--") and not is_value and not is_over
        name, equals, _ = word.partition("=")
        yield word, name if is_option else None
        is_over = is_over or (is_option and word == "--")
        is_value = is_option and not equals and name not in _FLAGS


def _with_value(words: Sequence[str], option: str, change: Callable[[str], str]) -> list[str]:
    """Return *words* with the value of an option changed."""
    changed: list[str] = []
    is_next = False
    for word, name in _read(words):
        _, equals, value = word.partition("=")
        if is_next:
            changed.append(change(word))
        elif equals and name == option:
            changed.append(f"{name}={change(value)}")
        else:
            changed.append(word)
        is_next = name == option and not equals
    return changed


def read_rate(_: click.Context, __: click.Parameter, value: str) -> RateLimit:
    """
    Return the window that ``--rate`` names: ``20/10`` is 20 submits in 10 s.

    Raises:
        click.BadParameter: It names none.
    """
    count, slash, per_s = value.partition("/")
    try:
        if not slash:
            msg = f"{value!r} is not COUNT/SECONDS like 20/10"
            raise click.BadParameter(msg)
        return RateLimit(int(count), per_s=float(per_s))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def read_poll(_: click.Context, __: click.Parameter, value: str | None) -> PollSchedule:
    """
    Return the schedule that ``--poll`` names.

    Raises:
        click.BadParameter: It names none.
    """
    if value is None:
        return PollSchedule()
    names = ("first_s", "interval_s", "max_per_s")
    given = value.split(",")
    try:
        if not 2 <= len(given) <= len(names):  # noqa: PLR2004 - the last one may be left out
            msg = f"{value!r} is not FIRST,INTERVAL or FIRST,INTERVAL,MAX_PER_S like 15,10,30"
            raise click.BadParameter(msg)
        return PollSchedule(**dict(zip(names, map(float, given), strict=False)))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def read_template(_: click.Context, __: click.Parameter, value: str) -> str:
    """
    Return what ``--filename-template`` says that files are called.

    Raises:
        click.BadParameter: No file can be called that.
    """
    try:
        verify_template(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return value
