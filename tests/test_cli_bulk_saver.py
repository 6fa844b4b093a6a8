"""The saving stage of `kie-wav bulk`, with time and files that are not real."""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from yarl import URL

from kie_wav_async import Download, Track, WavFile, events
from kie_wav_async.cli.bulk import file_paths
from kie_wav_async.cli.bulk.estimate import TrackCounts
from kie_wav_async.cli.bulk.file_paths import FilePaths
from kie_wav_async.cli.bulk.monitor import ProgressMonitor
from kie_wav_async.cli.bulk.saved_files import SavedFilesCheck
from kie_wav_async.cli.bulk.saver import Saver, UnsavableError, run_together
from kie_wav_async.errors import DownloadError, LedgerError
from kie_wav_async.file_names import DEFAULT_TEMPLATE, collision_key, file_name, unique_suffix
from kie_wav_async.ledger import AttemptOutcome, SqliteLedger, TrackState
from kie_wav_async.testing import FakeClock, MemoryLedger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

DAY_S = 86_400.0


def track(number: int) -> Track:
    """Return one of many tracks."""
    return Track("m", f"a{number}", title=f"Song {number}")


def failure(reason: str, number: int = 0) -> DownloadError:
    """Return why a file was not saved, as the disk put it if *number* is the disk's."""
    error = DownloadError(f"why: {reason}", reason=reason)
    error.__cause__ = OSError(number, "the disk") if number else None
    return error


class Files:
    """A session that downloads nothing, at any speed."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.takes_s = 0.0
        self.fails: Callable[[Track, int], DownloadError | None] = lambda _, __: None
        self.asked: list[tuple[str, float]] = []
        self.at_once = self.most_at_once = 0
        self.tell: Callable[[events.Event], object] = lambda _: None
        self.open: tuple[object, ...] = ()

    def conversions(self) -> tuple[object, ...]:
        """Return what is in flight."""
        return self.open

    async def download(self, wav: WavFile, path: Path, *, accept_short: bool) -> Download:
        """Take a while for a file, and tell of it."""
        assert not accept_short
        name = wav.track.audio_id
        self.asked.append((name, self.clock.monotonic() - 1_000.0))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self._tell(wav, path, 300)  # What an earlier run had of it.
            if self.takes_s:
                await self.clock.sleep(self.takes_s)
            tries = sum(asked == name for asked, _ in self.asked)
            if (error := self.fails(wav.track, tries)) is not None:
                raise error
            self._tell(wav, path, 600)
            self._tell(wav, path, 1_000)
        finally:
            self.at_once -= 1
        return Download(path, 1_000, "0" * 64, resumed=False)

    def _tell(self, wav: WavFile, path: Path, size: int) -> None:
        at = dt.datetime.fromtimestamp(self.clock.time(), dt.UTC)
        event = events.DownloadProgress(at=at, wav=wav, path=path, bytes=size, total=1_000)
        self.tell(event)


class Stage:
    """A saver, and what is around it."""

    def __init__(self, folder: Path, *, earlier: int = 5_000) -> None:
        self.clock = FakeClock()
        self.ledger = MemoryLedger()
        self.files = Files(self.clock)
        self.saved: list[str] = []
        self.put_back: list[float] = []
        self.saver = Saver(
            self.files,
            self.ledger,
            self.clock,
            folder=folder,
            template="{audio_id}",
            downloads=2,
            earlier=SavedFilesCheck(files=1, bytes=earlier),
            on_saved=lambda _, place: self.saved.append(place),
            on_put_back=lambda _, pause_s: self.put_back.append(pause_s),
        )
        self.files.tell = self.saver.note_event

    async def convert(
        self,
        number: int,
        *,
        days_ago: float = 0.0,
        is_told: bool = False,
        outcome: AttemptOutcome = AttemptOutcome.ACCEPTED,
    ) -> None:
        """Have a track converted, by an earlier run or by this one."""
        then, name = self.clock.time() - days_ago * DAY_S, f"{number:032x}"
        await self.ledger.begin_attempt(track(number), name, then)
        # Looking for a free place takes a thread, which knows nothing of this clock.
        await self.ledger.reserve_path(track(number), path=f"a{number}.wav", key=f"a{number}.wav")
        await self.ledger.finish_attempt(name, outcome, then, task_id=f"t{number}")
        url = URL(f"https://files.example/{number}.wav")
        await self.ledger.finish_task(f"t{number}", then, wav_url=url)
        if is_told:
            entry = await self.ledger.get(track(number))
            at = dt.datetime.fromtimestamp(self.clock.time(), dt.UTC)
            wav = WavFile(f"t{number}", url, track(number), "poll", entry.expires_at)
            self.saver.note_event(events.ConversionSucceeded(at=at, wav=wav))

    async def tally(self) -> TrackCounts:
        """Return where the tracks stand."""
        return TrackCounts(await self.ledger.count_by_state())

    async def look(self) -> None:
        """Have the saver look at how far it has come."""
        self.saver.look(await self.tally())


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """Return a stage with nothing on it."""
    stage = Stage(tmp_path)
    await stage.ledger.open(stage.clock.time())
    yield stage
    await stage.ledger.aclose()


async def test_what_there_is_and_what_comes(stage: Stage) -> None:
    """It saves what an earlier run left, what comes meanwhile, and ends when no more will."""
    for number in range(3):
        await stage.convert(number)
    running = asyncio.create_task(stage.saver.run())
    await stage.clock.run_pending()
    await stage.convert(3, is_told=True)
    await stage.clock.run_pending()

    assert ["a0.wav", "a1.wav", "a2.wav", "a3.wav"] == stage.saved
    assert not running.done()
    stage.saver.finish()
    await stage.clock.run(running)
    assert (4, 4_000, 2_800) == (stage.saver.files, stage.saver.bytes, stage.saver.received)
    assert 4 == (await stage.tally()).saved


async def test_saved_once(stage: Stage) -> None:
    """What comes of a second task of a track that has its file is not fetched."""
    await stage.convert(0)
    running = asyncio.create_task(stage.saver.run())
    await stage.clock.run_pending()
    entry = await stage.ledger.get(track(0))
    wav = WavFile("t9", entry.wav_url, track(0), "poll", entry.expires_at)
    stage.saver.note_event(events.ConversionSucceeded(at=entry.settled_at, wav=wav))
    stage.saver.finish()
    await stage.clock.run(running)

    assert (["a0.wav"], 1) == (stage.saved, len(stage.files.asked))


async def test_how_far_it_has_come(stage: Stage) -> None:
    """What is here counts with what has come of files, and what is to come by what files take."""
    stage.files.takes_s = 10.0
    for number in range(3):
        await stage.convert(number)
    running = asyncio.create_task(stage.saver.run())
    await stage.clock.advance(5.0)

    assert (5_600, 20_000) == stage.saver.progress(await stage.tally())
    await stage.clock.advance(10.0)
    tally = TrackCounts({**(await stage.tally()).counts, TrackState.PLANNED: 10})
    # A file takes 7,000 bytes / 3, and 11 are missing.
    assert (7_300, 7_000 + 25_667) == stage.saver.progress(tally)
    stage.saver.finish()
    await stage.clock.run(running)


async def test_so_many_at_a_time(stage: Stage) -> None:
    """No more files are fetched at a time than asked for, and no fewer if there are enough."""
    stage.files.takes_s = 5.0
    for number in range(9):
        await stage.convert(number)
    stage.saver.finish()
    await stage.clock.run(stage.saver.run())

    assert (2, 9) == (stage.files.most_at_once, len(stage.saved))


async def test_more_than_are_held(stage: Stage) -> None:
    """What does not fit into memory is saved all the same, the oldest first, and only once."""
    stage.saver._queue.most = 3
    stage.files.takes_s = 1.0
    for number in range(20):
        await stage.convert(number, days_ago=number % 7)
    stage.saver.finish()
    await stage.clock.run(stage.saver.run())

    asked = [int(name[1:]) % 7 for name, _ in stage.files.asked]
    assert sorted(asked, reverse=True) == asked
    assert 20 == len(set(stage.saved)) == len(stage.saved)


@pytest.mark.parametrize("reason", ["unavailable", "truncated", "too-slow"])
async def test_three_rounds(stage: Stage, reason: str) -> None:
    """A trouble that may pass is tried again after a minute and after two, and then given up."""
    await stage.convert(0)
    stage.files.fails = lambda _, __: failure(reason)
    stage.saver.finish()
    await stage.clock.run(stage.saver.run())

    assert [0.0, 60.0, 180.0] == [at for _, at in stage.files.asked]
    assert [60.0, 120.0] == stage.put_back
    (entry,) = stage.saver.unsaved
    assert (reason, 1, track(0), "why") == (
        *(entry.reason, entry.count, entry.example),
        entry.message.partition(":")[0],
    )
    assert 1 == (await stage.tally()).unsaved


@pytest.mark.parametrize(
    "reason", ["not-a-wav", "too-large", "url-not-allowed", "content-encoding"]
)
async def test_a_trouble_that_stays(stage: Stage, reason: str) -> None:
    """What would be the same another time is tried once in a run."""
    await stage.convert(0)
    stage.files.fails = lambda _, __: failure(reason)
    stage.saver.finish()
    await stage.clock.run(stage.saver.run())

    assert [("a0", 0.0)] == stage.files.asked
    assert 1 == stage.saver.given_up


async def test_others_go_on_meanwhile(stage: Stage) -> None:
    """A file that is tried again later keeps no other from being saved."""
    for number in range(5):
        await stage.convert(number)
    stage.files.fails = lambda one, tries: (
        failure("unavailable") if one == track(0) and tries == 1 else None
    )
    running = asyncio.create_task(stage.saver.run())
    await stage.clock.run_pending()

    assert (4, 1) == (len(stage.saved), stage.saver.waiting)
    stage.saver.finish()
    await stage.clock.run(running)
    assert "a0.wav" == stage.saved[-1]
    assert (0, []) == (stage.saver.waiting, stage.saver.unsaved)


async def test_expired(stage: Stage) -> None:
    """What KIE has no longer is expired in the ledger, whatever its age, and is not tried again."""
    await stage.convert(0)
    stage.files.fails = lambda _, __: failure("expired")
    stage.saver.finish()
    await stage.clock.run(stage.saver.run())

    assert 1 == (await stage.tally()).expired == len(stage.files.asked)
    assert [] == stage.saver.unsaved


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES])
async def test_the_disk_says_no(stage: Stage, number: int) -> None:
    """What a disk says of every file ends the saving at once, and no other file is begun."""
    for one in range(50):
        await stage.convert(one)
    stage.files.fails = lambda _, __: failure("disk", number)

    with pytest.raises(DownloadError) as caught:
        await stage.clock.run(stage.saver.run())
    assert "disk" == caught.value.reason
    assert len(stage.files.asked) <= 2
    assert 50 == (await stage.tally()).unsaved


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG])
async def test_the_disk_refuses_a_name(stage: Stage, number: int) -> None:
    """What a disk says of one name is about that one file."""
    for one in range(3):
        await stage.convert(one)
    stage.files.fails = lambda one, _: failure("disk", number) if one == track(1) else None
    stage.saver.finish()
    await stage.clock.run(stage.saver.run())

    assert ["a0.wav", "a2.wav"] == stage.saved


async def test_a_ledger_that_fails(stage: Stage) -> None:
    """A ledger that cannot be written ends the saving with its error."""
    await stage.convert(0)
    stage.ledger.fail_with = {"mark_saved": LedgerError("full")}

    with pytest.raises(LedgerError):
        await stage.clock.run(stage.saver.run())


async def test_cancelled_while_it_is_written_down(stage: Stage) -> None:
    """A file that the ledger is hearing of when the run is stopped is counted and told."""
    await stage.convert(0)
    go_on = asyncio.Event()
    store = stage.ledger.mark_saved

    async def slowly(*args: object, **named: object) -> None:
        await go_on.wait()
        await store(*args, **named)

    stage.ledger.mark_saved = slowly
    running = asyncio.create_task(stage.saver.run())
    await stage.clock.run_pending()
    running.cancel()
    await stage.clock.run_pending()
    assert not running.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert ["a0.wav"] == stage.saved
    assert 1 == (await stage.tally()).saved


# --- places -------------------------------------------------------------------------------------


async def test_a_place_outside(tmp_path: Path) -> None:
    """A place that is not in the folder, whatever ledger it comes from, is not gone to."""
    async with SqliteLedger(tmp_path / "books.db") as ledger:
        for number, path in enumerate(("../x.wav", "/x.wav", "a/../../x.wav", "x\0.wav")):
            await ledger.add_tracks([track(number)])
            assert await ledger.reserve_path(track(number), path=path, key=path)
            entry = await ledger.get(track(number))
            place = await FilePaths(tmp_path, ledger, "{audio_id}").find(entry)

            assert f"a{number}.wav" == place == (await ledger.get(track(number))).path


async def test_a_name_that_the_system_cannot_spell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where file names are of an encoding that lacks a letter, that is about one file."""
    system = SimpleNamespace(path=os.path, fsencode=lambda name: name.encode("latin-1"))
    monkeypatch.setattr(file_paths, "os", system)
    hard = Track("m", "a0", title="\u97f3")
    async with SqliteLedger(tmp_path / "books.db") as ledger:
        await ledger.add_tracks([hard])
        with pytest.raises(DownloadError, match=r"no '.u97f3'") as caught:
            await FilePaths(tmp_path, ledger, "{title}").find(await ledger.get(hard))

        assert ("disk", errno.EILSEQ) == (caught.value.reason, caught.value.__cause__.errno)
        assert (await ledger.get(hard)).path is None


async def test_every_name_is_taken(tmp_path: Path) -> None:
    """If all its names are others', a track has no place, and that is about one file."""
    async with SqliteLedger(tmp_path / "books.db") as ledger:
        await ledger.add_tracks([track(number) for number in range(5)])
        for number, length in enumerate((0, 8, 16, 64), start=1):
            suffix = unique_suffix(track(0), length) if length else ""
            name = file_name(track(0), suffix=suffix)
            assert await ledger.reserve_path(track(number), path=name, key=collision_key(name))
        with pytest.raises(DownloadError, match="another file under every name") as caught:
            await FilePaths(tmp_path, ledger, DEFAULT_TEMPLATE).find(await ledger.get(track(0)))

        assert errno.EEXIST == caught.value.__cause__.errno


# --- who waits for it ---------------------------------------------------------------------------


def is_free(waiting: asyncio.Task[None]) -> bool:
    """Return whether a submit got its turn."""
    return waiting.done() and waiting.exception() is None


async def test_a_backlog_that_takes_too_long(tmp_path: Path) -> None:
    """With more than a week's work no submit has its turn until enough of it is done."""
    stage = Stage(tmp_path, earlier=32_000_000)
    await stage.ledger.open(stage.clock.time())
    await stage.convert(0)
    stage.files.takes_s = 1e9
    running = asyncio.create_task(stage.saver.run())
    await stage.clock.run_pending()
    backlog = [100_000]

    def look() -> None:
        stage.saver.received += 10_000_000  # 5 MB a second: 94,500 files a week.
        stage.saver.look(TrackCounts({TrackState.SUCCEEDED: backlog[0]}))

    for _ in range(40):
        look()
        await stage.clock.advance(2.0)
    waiting = asyncio.create_task(stage.saver.wait_turn())
    await stage.clock.advance(10.0)
    assert stage.saver.throttle.is_on
    assert not waiting.done()
    backlog[0] = 50_000
    look()
    await stage.clock.run_pending()
    assert is_free(waiting)

    running.cancel()
    await stage.ledger.aclose()


async def test_the_throttle_is_told_once(tmp_path: Path) -> None:
    """That submits wait is said when it begins and when it is over, however long it lasts."""
    stage = Stage(tmp_path)
    watch = ProgressMonitor(None, stage.ledger, Lines(), stage.clock)
    for is_on in (False, True, True, True, False, False):
        stage.saver.throttle.is_on = is_on
        watch._show_throttle(stage.saver)

    stage.saver._failing.update(track(number) for number in range(20))
    watch._show_throttle(stage.saver)
    watch._show_throttle(stage.saver)
    stage.saver._failing.clear()
    watch._show_throttle(stage.saver)

    first, second, third, last = watch._display.lines
    assert "New submits wait until it is less" in first
    assert "new submits go on" in second
    assert "one file after another cannot be saved: new submits wait" in third
    assert "new submits go on" in last


class Lines:
    """A display that keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """Keep a line."""
        self.lines.append(text)


async def test_nothing_comes_at_all(stage: Stage) -> None:
    """If nothing comes for ten minutes submits wait, but not once there is nothing to wait for."""
    stage.files.takes_s = 1e6
    await stage.convert(0)
    stage.files.fails = lambda _, __: failure("not-a-wav")
    running = asyncio.create_task(stage.saver.run())
    held = []
    for _ in range(62):
        await stage.look()
        held.append(stage.saver.throttle.is_on)
        await stage.clock.advance(10.0)
    assert [False] * 60 == held[:60]
    assert held[61]
    await stage.clock.advance(1e6)
    # A conversion that does not end is not to keep submits waiting for ever.
    stage.saver.look(TrackCounts({**(await stage.tally()).counts, TrackState.ACCEPTED: 1}))

    assert not stage.saver.throttle.is_on
    assert stage.saver.is_idle
    stage.saver.finish()
    await stage.clock.run(running)


async def test_file_after_file(stage: Stage) -> None:
    """After twenty files in a row that cannot be saved submits wait for one that can."""
    stage.files.fails = lambda one, _: None if one == track(20) else failure("not-a-wav")
    stage.files.open = ("a conversion",)
    for number in range(20):
        await stage.convert(number)
    running = asyncio.create_task(stage.saver.run())
    await stage.clock.run_pending()
    waiting = asyncio.create_task(stage.saver.wait_turn())
    await stage.clock.run_pending()
    await stage.look()
    await stage.clock.run_pending()
    assert not waiting.done()
    await stage.convert(20, is_told=True)
    await stage.clock.run_pending()

    assert is_free(waiting)
    stage.saver.finish()
    await stage.clock.run(running)


async def test_every_refusal_counts_at_once(stage: Stage) -> None:
    """Files that are tried again later keep submits waiting meanwhile, and each counts once."""
    stage.files.fails = lambda _, tries: failure("unavailable") if tries == 1 else None
    for number in range(19):
        await stage.convert(number)
    running = asyncio.create_task(stage.saver.run())
    await stage.clock.run_pending()
    assert not stage.saver.is_stuck
    await stage.convert(19, is_told=True)
    await stage.clock.run_pending()
    waiting = asyncio.create_task(stage.saver.wait_turn())
    await stage.clock.advance(59.0)
    await stage.look()
    await stage.clock.run_pending()
    assert (20, False) == (stage.saver.waiting, waiting.done())
    await stage.clock.advance(2.0)
    await stage.clock.run_pending()

    assert is_free(waiting)
    stage.saver.finish()
    await stage.clock.run(running)
    assert 20 == len(stage.saved)


async def test_attempts_in_vain_count_too(stage: Stage) -> None:
    """A host that is down keeps submits waiting long before the first file is given up."""

    def tell_retry(wav: WavFile) -> None:
        at = dt.datetime.fromtimestamp(stage.clock.time(), dt.UTC)
        path, error = Path("a0.wav"), failure("unavailable")
        stage.saver.note_event(
            events.DownloadRetryScheduled(at=at, wav=wav, path=path, error=error, delay_s=1)
        )

    await stage.convert(0)
    stage.files.takes_s = 60.0
    running = asyncio.create_task(stage.saver.run())
    await stage.clock.run_pending()
    wav = WavFile("t0", URL("https://h/x.wav"), track(0), "poll", None)
    for _ in range(19):
        tell_retry(wav)
    assert not stage.saver.is_stuck
    tell_retry(wav)
    assert stage.saver.is_stuck
    stage.files._tell(wav, Path("a0.wav"), 300)
    assert stage.saver.is_stuck
    stage.files._tell(wav, Path("a0.wav"), 301)
    assert not stage.saver.is_stuck
    for _ in range(20):
        tell_retry(wav)
    waiting = asyncio.create_task(stage.saver.wait_turn())
    await stage.clock.run_pending()
    assert not waiting.done()
    await stage.clock.advance(61.0)

    assert is_free(waiting)
    stage.saver.finish()
    await stage.clock.run(running)


async def test_attempts_in_vain_end_nothing(stage: Stage) -> None:
    """Once a file is given up, the next may be paid for: one host in trouble is no twenty files."""
    at = dt.datetime.fromtimestamp(stage.clock.time(), dt.UTC)
    wav = WavFile("t0", URL("https://h/x.wav"), track(0), "poll", None)
    error = failure("not-a-wav")
    await stage.convert(0)
    stage.files.fails = lambda _, __: error
    stage.files.takes_s = 60.0
    running = asyncio.create_task(stage.saver.run())
    await stage.clock.run_pending()
    for _ in range(24):
        stage.saver.note_event(
            events.DownloadRetryScheduled(
                at=at, wav=wav, path=Path("a0.wav"), error=error, delay_s=1
            )
        )
    assert stage.saver.is_stuck
    await stage.clock.advance(61.0)

    assert not stage.saver.is_stuck
    await stage.saver.wait_turn()
    stage.saver.finish()
    await stage.clock.run(running)


async def test_one_file_that_fails_again_and_again_is_one(stage: Stage) -> None:
    """Seven files that are tried three times each are no twenty files in a row."""
    stage.files.fails = lambda _, __: failure("unavailable")
    for number in range(7):
        await stage.convert(number)
    stage.saver.finish()
    await stage.clock.run(stage.saver.run())

    assert (21, 7, False) == (
        *(len(stage.files.asked), stage.saver.given_up),
        stage.saver.is_stuck,
    )


@pytest.mark.parametrize(
    ("outcome", "days_ago", "is_stuck"),
    [
        (AttemptOutcome.ACCEPTED, 0.0, True),
        (AttemptOutcome.ACCEPTED, 13.0, True),
        (AttemptOutcome.ACCEPTED, 15.0, False),
        (AttemptOutcome.ADOPTED, 0.0, True),
        (AttemptOutcome.ADOPTED, 1.0, False),
    ],
)
async def test_what_may_be_long_deleted_keeps_nothing_from_being_converted(
    stage: Stage, outcome: AttemptOutcome, days_ago: float, *, is_stuck: bool
) -> None:
    """Files of earlier runs that are past 14 days, or of unknown age, do not count."""
    stage.files.fails = lambda _, __: failure("unavailable")
    for number in range(25):
        await stage.convert(number, days_ago=days_ago, outcome=outcome)
    stage.saver.finish()
    await stage.clock.run(stage.saver.run())

    assert is_stuck is stage.saver.is_stuck
    (entry,) = stage.saver.unsaved
    assert (25, "why: unavailable") == (entry.count, entry.message)


async def test_expired_files_count_for_nothing(stage: Stage) -> None:
    """That the service has deleted old files says nothing of those that are paid for next."""
    stage.files.fails = lambda _, __: failure("expired")
    for number in range(25):
        await stage.convert(number)
    stage.saver.finish()
    await stage.clock.run(stage.saver.run())

    assert not stage.saver.is_stuck
    assert 25 == (await stage.tally()).expired


async def test_all_that_there_was_is_tried_first(stage: Stage) -> None:
    """Who waits for it to be idle waits for every second and third attempt too."""
    stage.files.fails = lambda _, tries: failure("unavailable") if tries < 3 else None
    await stage.convert(0)
    running = asyncio.create_task(stage.saver.run())
    waiting = asyncio.create_task(stage.saver.wait_idle())
    await stage.clock.advance(179.0)
    assert not waiting.done()
    await stage.clock.advance(2.0)
    await stage.clock.run_pending()

    assert is_free(waiting)
    assert ["a0.wav"] == stage.saved
    stage.saver.finish()
    await stage.clock.run(running)


async def test_no_file_can_be_saved(stage: Stage) -> None:
    """If none can be saved, and nothing else is to come, that ends the submits."""
    stage.files.fails = lambda _, __: failure("url-not-allowed")
    for number in range(25):
        await stage.convert(number)
    running = asyncio.create_task(stage.saver.run())
    await stage.clock.run_pending()

    with pytest.raises(UnsavableError, match="25 files in a row could not be saved") as caught:
        await stage.saver.wait_turn()
    assert "url-not-allowed" in str(caught.value)
    stage.saver.finish()
    await stage.clock.run(running)


async def test_the_others_end_with_one_that_fails() -> None:
    """Of works that run together the error of one ends all, and is raised."""
    ended: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waiting")

    async def fail() -> None:
        await asyncio.sleep(0)
        msg = "no"
        raise LedgerError(msg)

    with pytest.raises(LedgerError, match="no"):
        await run_together(wait(), fail())
    assert ["waiting"] == ended
