"""What ``kie-wav bulk`` is asked for, as read from its command line."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import attrs
import click

from kie_wav_async import OnUnknown, PollSchedule, RateLimit
from kie_wav_async.ledger import TrackState


@attrs.frozen(kw_only=True)
class Order:
    """
    What is asked for.

    Attributes:
        catalog: A path, or ``-``.

        folder: Where the ledger is, and whatever else is written.

        ledger: The ledger's file.

        address: Where callbacks are waited for; `None`: nowhere.

        callback_url: Where the service posts to get there; `None`: as in the environment.

        on_unknown: What becomes of submits of unknown fate.

        max_charges: Most submits accepted or unknown, over all runs; `None` for no limit.

        rate: The window of submits.

        max_in_flight: Most conversions at a time.

        poll: When they are polled.

        is_saving_off: Whether the user said that no WAV is to be saved.

        skip_bad: Whether bad lines of the catalog are left out.

        retried: Tracks in which states are converted again.

        command: What is to be typed to go on.
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
    skip_bad: bool
    retried: Collection[TrackState]
    command: str


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
