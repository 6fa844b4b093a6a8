"""``kie-wav demo``: a catalog converted at a simulated KIE, through the public names only."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
from rich import box
from rich.table import Table

from kie_wav_async import Outcome, PollSchedule, RateLimit, Statistics, Track, WavSession
from kie_wav_async.cli.common.output import (
    DONE,
    SERVICE,
    USAGE,
    CliError,
    failure_of,
    plain,
    stdout_console,
)
from kie_wav_async.cli.common.progress import DemoDisplay
from kie_wav_async.errors import DownloadError
from kie_wav_async.simulator import Fault, Simulator
from kie_wav_async.webhook import CallbackServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Simulated time, and with it the session's waits, passes so many times as fast.
_SPEED: Final = 30.0
_MEDIAN_S: Final = 60.0
_FIRST_POLL_S: Final = 15.0
# Some tracks are followed before the first callback is missed: they are not to wait for long.
_BACKSTOP_S: Final = 120.0
# Seconds of sound: short files, and shorter ones for many tracks.
_LONGEST_S: Final = 4.0
_SOUND_S: Final = 160.0


@attrs.frozen(kw_only=True)
class _Row:
    """What became of one track."""

    outcome: Outcome
    seconds: float | None = None
    bytes: int | None = None
    file: Path | None = None
    failure: CliError | None = None

    def facts(self) -> dict[str, object]:
        track, wav = self.outcome.track, self.outcome.wav
        return {
            **attrs.asdict(track),
            "task_id": wav and wav.task_id,
            "url": wav and str(wav.url),
            "settled_by": wav and wav.settled_by,
            "seconds": self.seconds,
            "bytes": self.bytes,
            "file": self.file and str(self.file),
            "error": self.failure and self.failure.facts,
        }


async def run_demo(count: int, out: Path | None, *, as_json: bool) -> int:
    """
    Convert and save *count* tracks, and print what became of each.

    Args:
        count: How many tracks.

        out: The folder for the files; `None` for a new one.

        as_json: Print one JSON object per track, as it is done, in place of the table.
    """
    began_s = time.monotonic()
    folder = _open_folder(out)
    try:
        async with _simulator(count) as kie:
            with DemoDisplay(count) as display:
                display.say(
                    f"Converting {_tracks(count)} at a simulated KIE (its time passes "
                    f"{_SPEED:g} times as fast), which loses every second callback."
                )
                # Bound first: the session tells the port to the service.
                with socket.create_server(("127.0.0.1", 0)) as sock:
                    session = _session(kie, sock.getsockname()[1], display)
                    async with session, CallbackServer(session, sock=sock):
                        rows = await _Work(session, folder, display, as_json).run(count)
            charged = kie.charges
    finally:
        if out is None:
            with contextlib.suppress(OSError):  # It holds files, as it should.
                folder.rmdir()
    if not as_json:
        stdout_console().print(_table(rows))
    saved = sum(row.file is not None for row in rows)
    statistics = session.statistics()
    display.say(
        f"{saved} of {_tracks(count)} converted and saved in {folder} "
        f"in {time.monotonic() - began_s:.1f} s: {statistics.settled_by_callback} settled by "
        f"callback, {statistics.settled_by_poll} by polling."
    )
    display.say(_bill(statistics, charged))
    return max((row.failure.exit_code for row in rows if row.failure), default=DONE)


def _simulator(count: int) -> Simulator:
    longest_s = min(_LONGEST_S, _SOUND_S / count)
    return Simulator(
        median_s=_MEDIAN_S,
        time_scale=_SPEED,
        wav_s=(longest_s / 4, longest_s),
        seed=1,
        faults=[Fault(on="callback", kind="lost", every=2)],
    )


def _session(kie: Simulator, port: int, display: DemoDisplay) -> WavSession:
    return WavSession(
        kie.api_key,
        base_url=kie.base_url,
        callback_url=f"http://127.0.0.1:{port}/kie/callback",
        webhook_keys=kie.webhook_key,
        insecure_hosts=("127.0.0.1",),
        rate_limit=RateLimit(20, per_s=10.0 / _SPEED),
        poll=PollSchedule(
            first_s=_FIRST_POLL_S / _SPEED,
            interval_s=10.0 / _SPEED,
            backstop_s=_BACKSTOP_S / _SPEED,
            max_per_s=30.0 * _SPEED,
        ),
        on_event=display.show_event,
    )


def _open_folder(out: Path | None) -> Path:
    """Make the folder for the files: *out*, or a new one here, or a temporary one."""
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            return out
        for number in range(1, 1000):
            folder = Path("kie-wav-demo" if number == 1 else f"kie-wav-demo-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        if out is not None:
            sentence = f"cannot make the folder {out}: {error.strerror or error}"
            raise CliError(USAGE, sentence) from error
    return Path(tempfile.mkdtemp(prefix="kie-wav-demo-"))


async def _catalog(session: WavSession, count: int) -> AsyncIterator[Track]:
    """Give *count* tracks, looked up as they are wanted, two to a music task."""
    for number in range((count + 1) // 2):
        found = await session.list_tracks(f"{number + 1:032x}")
        for track in found[: count - 2 * number]:
            yield track


@attrs.define
class _Work:
    """The conversions of one demo, and the files made of them."""

    session: WavSession
    folder: Path
    display: DemoDisplay
    as_json: bool

    async def run(self, count: int) -> list[_Row]:
        """Return a row for each track, in the order of the catalog."""
        savers: list[asyncio.Task[_Row]] = []
        try:
            async with self.session.convert_all(_catalog(self.session, count)) as batch:
                async for outcome in batch:
                    self.display.show_converted()
                    savers.append(asyncio.create_task(self._keep(outcome)))
            rows = await asyncio.gather(*savers)
        finally:
            for saver in savers:
                saver.cancel()
            await asyncio.gather(*savers, return_exceptions=True)
        return sorted(rows, key=lambda row: row.outcome.index)

    async def _keep(self, outcome: Outcome) -> _Row:
        row = await self._save(outcome)
        self.display.show_saved()
        if self.as_json:
            self.display.print_result(json.dumps(row.facts()))
        return row

    async def _save(self, outcome: Outcome) -> _Row:
        if outcome.wav is None:
            failure = failure_of(outcome.error) if outcome.error else None
            return _Row(outcome=outcome, failure=failure)
        wav = outcome.wav
        seconds = self.display.seconds_of(wav.task_id)
        file = self.folder / _file_name(outcome)
        try:
            download = await self.session.download(wav, file)
        except DownloadError as error:
            failure = CliError(
                SERVICE,
                f"not saved: {error}",
                type=type(error).__name__,
                reason=error.reason,
                task_id=wav.task_id,
            )
            return _Row(outcome=outcome, seconds=seconds, failure=failure)
        finally:
            # The simulated KIE goes when we do: there is nothing to go on with.
            for name in (f"{file.name}.part", f"{file.name}.part.json"):
                file.with_name(name).unlink(missing_ok=True)
        return _Row(outcome=outcome, seconds=seconds, bytes=download.bytes, file=file)


def _file_name(outcome: Outcome) -> str:
    """Return a name made of letters, digits and dashes, whatever the title is."""
    slug = re.sub(r"[^a-z0-9]+", "-", (outcome.track.title or "track").lower()).strip("-")
    return f"{outcome.index + 1:02d}-{slug[:40] or 'track'}.wav"


def _table(rows: list[_Row]) -> Table:
    table = Table("Track", "Settled by", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("Seconds", "Bytes"):
        table.add_column(name, justify="right")
    table.add_column("File", overflow="fold")
    for row in rows:
        wav, failure = row.outcome.wav, row.failure
        table.add_row(
            plain(row.outcome.track.title or row.outcome.track.audio_id),
            plain(wav.settled_by if wav else "-"),
            "-" if row.seconds is None else f"{row.seconds:.1f}",
            "-" if row.bytes is None else f"{row.bytes:,}",
            plain(row.file.name if row.file else str(failure) if failure else "-"),
        )
    return table


def _tracks(count: int) -> str:
    return "1 track" if count == 1 else f"{count} tracks"


def _bill(statistics: Statistics, charged: int) -> str:
    return (
        f"The bill: accepted {statistics.accepted} <= charged {charged} <= "
        f"accepted + unknown {statistics.accepted + statistics.unknown}."
    )
