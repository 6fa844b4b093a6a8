"""What ``kie-wav bulk`` looks at and says before it begins: old files, costs, time, room."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kie_wav_async.cli.bulk.estimate import (
    BYTES_PER_TRACK,
    TrackCounts,
    bytes_words,
    count_words,
    duration_words,
    most_charges,
    time_left_s,
)
from kie_wav_async.cli.bulk.manifest import MANIFEST, Entry, read_manifest
from kie_wav_async.cli.bulk.saved_files import SavedFilesCheck, recheck, steps
from kie_wav_async.cli.common.output import SERVICE, CliError
from kie_wav_async.errors import DownloadError
from kie_wav_async.ledger import TrackState

if TYPE_CHECKING:
    from kie_wav_async import Clock
    from kie_wav_async.cli.bulk.options import BulkOptions
    from kie_wav_async.cli.bulk.progress import BulkDisplay
    from kie_wav_async.ledger import Ledger

# What has to be free on the disk before anything is paid: two files, and some more.
_LEAST_FREE: Final = 2 * BYTES_PER_TRACK + (64 << 20)


def verify_not_lost(options: BulkOptions, display: BulkDisplay) -> None:
    """
    Return if there is a ledger, or no sign that there was one; say so if a new one is wanted.

    Raises:
        CliError: One was there and is gone: with a new one all it knew would be paid again. Or
            the system does not tell.
    """
    ledger = Path(os.path.realpath(options.ledger))
    try:
        is_empty = ledger.exists()
        if is_empty and (not ledger.is_file() or ledger.stat().st_size):
            return  # Whether it is the right one the ledger finds out.
        signs = _signs_of_a_ledger(options.folder, ledger, is_empty=is_empty)
    except OSError as error:
        where, why = error.filename or ledger, error.strerror or error
        sentence = f"cannot tell whether a ledger was here: {where}: {why}. Nothing was submitted"
        raise CliError(SERVICE, sentence) from error
    if not signs:
        return
    found = (
        f"{ledger} is {'empty' if is_empty else 'not there'}, but there is {' and '.join(signs)}"
    )
    if options.new_ledger:
        display.say(f"{found}: beginning a new ledger, and what the lost one knew is paid again.")
        return
    sentence = (
        f"{found}: a ledger was here, and what it knew would be converted and paid again. Nothing "
        "was submitted. Put the ledger back, or name it with --ledger; only if it is lost, begin "
        "anew with --new-ledger"
    )
    raise CliError(SERVICE, sentence)


def _signs_of_a_ledger(folder: Path, ledger: Path, *, is_empty: bool) -> list[str]:
    """Say what there is of a ledger that is gone, and of the files that were saved with it."""
    manifest = folder / MANIFEST
    if manifest.is_file():  # A pipe would have us wait.
        listed = sum(isinstance(entry, Entry) for entry in read_manifest(manifest))
        return [f"{manifest}, which lists {count_words(listed, 'saved file')}"]
    lock = ledger.with_name(f"{ledger.name}.lock")
    if not is_empty and not lock.exists():
        return []
    saved = sum(path.suffix == ".wav" for path in folder.iterdir())
    if not saved:
        return []
    files = f"{count_words(saved, 'WAV file')} in {folder}"
    return [files] if is_empty else [str(lock), files]


async def recheck_files(
    options: BulkOptions, ledger: Ledger, display: BulkDisplay
) -> SavedFilesCheck:
    """
    Look at the files of earlier runs, and have the ledger know which are to be saved again.

    Raises:
        LedgerError: The ledger cannot be read or written.
    """
    tally = TrackCounts(await ledger.count_by_state())
    total = tally.saved
    if not total and not tally.expired:
        return SavedFilesCheck()

    def tell(done: int) -> None:
        display.show_checked(done, steps(total))

    tell(0)
    found = await recheck(ledger, options.folder, tell)
    display.clear()
    if found.back:
        display.say(f"{count_words(found.back, 'file')} of expired tracks found: looking at them.")
    parts: list[str] = []
    if found.missing:
        parts.append(f"{found.missing:,} missing")
    if found.damaged:
        more = " and the like" if found.damaged > 1 else ""
        parts.append(f"{found.damaged:,} damaged, kept as {found.aside}{more}")
    if parts:
        words = " and ".join(parts)
        display.say(f"Of {count_words(total, 'file')} saved before {words}: to be saved again.")
    if found.missing == total > 1:
        display.say(
            f"None of them is in {options.folder}: if its disk is not there, stop, and go on when "
            "it is."
        )
    return found


async def announce(
    options: BulkOptions, ledger: Ledger, display: BulkDisplay, clock: Clock
) -> TrackCounts:
    """
    Say what is to come, before it begins; return where the tracks stand.

    Raises:
        DownloadError: There is no room for a file.

        LedgerError: The ledger cannot be read.
    """
    tally = TrackCounts(await ledger.count_by_state())
    opening = await ledger.open(clock.time())
    await ledger.aclose()
    most = most_charges(
        tally,
        resubmits=options.resubmits,
        charges=opening.accepted + len(opening.unknown),
        max_charges=options.max_charges,
        reclaimed=tally.unsaved if TrackState.EXPIRED in options.retried else 0,
    )
    display.say(
        f"The ledger: {tally.planned:,} to submit, {tally.in_flight:,} in flight, "
        f"{tally.converted:,} converted, {tally.failed:,} failed, {tally.unknown:,} unknown."
    )
    cap = "" if options.max_charges is None else f" (--max-charges {options.max_charges})"
    # Time is told as it is expected, and the charges as they are at the worst.
    submits = min(most, tally.planned + (tally.unknown if options.resubmits else 0))
    left_s = time_left_s(tally, submits, options.rate, options.max_in_flight)
    rate = f"{options.rate.count} submits per {options.rate.per_s:g} s"
    disk = bytes_words(BYTES_PER_TRACK * (tally.total - tally.failed - tally.expired))
    display.say(
        f"At most {count_words(most, 'new charge')}{cap}. It takes about "
        f"{duration_words(left_s)} at {rate}; all WAVs together are about {disk}."
    )
    if not options.is_saving_off and tally.to_be_saved:
        await _verify_room(options.folder, tally.to_be_saved, display)
    return tally


async def _verify_room(folder: Path, files: int, display: BulkDisplay) -> None:
    """
    Return if there is room for a file; say so if there is none for all of them.

    Raises:
        DownloadError: There is none for one.
    """
    try:
        free = (await asyncio.to_thread(shutil.disk_usage, folder)).free
    except OSError as error:
        msg = f"{folder}: {error.strerror or type(error).__name__}"
        raise DownloadError(msg, reason="disk") from error
    if free < _LEAST_FREE:
        msg = f"{folder}: {bytes_words(free)} are free, and {bytes_words(_LEAST_FREE)} are wanted"
        raise DownloadError(msg, reason="disk") from OSError(errno.ENOSPC, "no room")
    if free < BYTES_PER_TRACK * files:
        display.say(
            f"Only {bytes_words(free)} are free in {folder}, and what is to be saved takes about "
            f"{bytes_words(BYTES_PER_TRACK * files)}: a full disk ends the run, and the same "
            "command goes on."
        )
