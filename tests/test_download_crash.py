"""
A download survives SIGKILL at any moment: what has the file's name is whole.

Files are saved by processes that die at named moments, or at random ones, and the
next one goes on. By default each moment is tried once. Several times each, in all
worlds, with the table::

    python -m pytest -m campaign tests/test_download_crash.py
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import random
import signal
import stat
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from crashes import Nursery
from download_lives import BUGS
from kie_wav_async.downloads.part_file import PartFile, part_path
from media import Manner, MediaServer, wav_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIVES = Path(__file__).with_name("download_lives.py")

SIZE = 50_000
BODY = wav_bytes(SIZE, seed=1)
NEWER = wav_bytes(SIZE, seed=2)

#: In small pieces, so that there is something between them.
PIECEMEAL = Manner(piece=1_500)

#: Calls that change nothing: when each moment is tried once, they are left out.
LOOKS = ("stat", "fstat", "lseek", "read", "statvfs", "close", "flock")

#: The moments between which a part is as open to others as the file is to be.
NAMED = {"fchmod part: done", "replace part: next"}


@attrs.frozen
class World:
    """
    What is there before the first life, and at the host.

    Attributes:
        name: For the table.
        kept: How much an earlier process has left, synced.
        body: What is at the host now.
        etag: Which version that is said to be; what was left is of ``"v1"``.
    """

    name: str
    kept: int = 0
    body: bytes = attrs.field(default=BODY, repr=False)
    etag: str | None = '"v1"'


NEW = World("new")
RESUMED = World("resumed", kept=20_000)
CHANGED = World("changed at the host", kept=20_000, body=NEWER, etag='"v2"')
UNTAGGED = World("without a tag", etag=None)
COMPLETE = World("all there but the name", kept=SIZE)
WORLDS = (NEW, RESUMED, CHANGED, UNTAGGED, COMPLETE)


def read(path: Path) -> bytes | None:
    """Return what is in a file; `None` if there is none."""
    return path.read_bytes() if path.exists() else None


@attrs.define
class Row:
    """What became of those that died at one moment."""

    kills: int = 0
    whole: int = 0
    resumed: int = 0
    anew: int = 0
    lost: int = 0

    def line(self, name: str) -> str:
        """Return it as a line."""
        cells = (self.kills, self.whole, self.resumed, self.anew, self.lost)
        return f"| {name:<23} | {' | '.join(f'{cell:>7}' for cell in cells)} |"


HEAD = (
    "| moment                  |   kills |   whole | went on |    anew |    lost |\n"
    "|-------------------------|--------:|--------:|--------:|--------:|--------:|"
)


@attrs.define
class Score:
    """What became of all."""

    rows: dict[str, Row] = attrs.field(factory=dict)
    asked: int = 0
    spared: int = 0
    violations: list[str] = attrs.field(factory=list)

    @property
    def total(self) -> Row:
        """All rows in one."""
        columns = zip(*map(attrs.astuple, self.rows.values()), strict=True)
        return Row(*map(sum, columns))

    def table(self) -> str:
        """Return all of it as text."""
        lines = [row.line(name) for name, row in self.rows.items()]
        end = (
            f"violations: {len(self.violations)}; bytes that the next lives asked for: "
            f"{self.asked:,}, and did not have to: {self.spared:,}"
        )
        return "\n".join([HEAD, *lines, self.total.line("all"), end])


@attrs.frozen
class Life:
    """How a life ended, what it said, what it came to and what the host was asked for."""

    code: int
    said: dict[str, object] | None
    seen: Counter[str]
    starts: list[int | None]
    sent: int


class Bench:
    """Downloads in a world that can be made again and again."""

    def __init__(self, nursery: Nursery, media: MediaServer, folder: Path) -> None:
        self.score = Score()
        self._nursery = nursery
        self._media = media
        self._folder = folder
        self._numbers = itertools.count()

    def make(self, world: World) -> Path:
        """Make a world; return where the file is to be in it."""
        number = next(self._numbers)
        target = self._folder / str(number) / "out" / "song.wav"
        target.parent.mkdir(parents=True)
        self._media.put(f"/{number}.wav", world.body, PIECEMEAL, etag=world.etag)
        if world.kept:
            part = PartFile(target, "t1")
            part.open()
            part.restart('"v1"', SIZE)
            part.write([BODY[: world.kept]])
            part.close(keep=True)
            with part_path(target).open("ab") as file:
                file.write(b"not synced" * 500)
        return target

    async def live(
        self,
        target: Path,
        point: str | None = None,
        hit: int = 1,
        *,
        bug: str | None = None,
        after_s: float | None = None,
    ) -> Life:
        """Have a process save the file, and maybe die."""
        world = target.parent.parent
        path = f"/{world.name}.wav"
        before = len(self._media.asked(path))
        names = {name: world / name for name in ("stdout", "stderr", "census")}
        for name in names.values():
            name.unlink(missing_ok=True)
        await self._nursery.begin(
            {
                "url": str(self._media.url(path)),
                "target": str(target),
                "point": point,
                "hit": hit,
                "bug": bug,
                **{name: str(place) for name, place in names.items()},
            }
        )
        code = await self._nursery.end(after_s)
        await self._media.ended()
        requests = self._media.asked(path)[before:]
        assert code in {0, -signal.SIGKILL}, names["stderr"].read_text("utf-8")
        is_over = code == 0
        return Life(
            code,
            json.loads(names["stdout"].read_bytes()) if is_over else None,
            Counter(json.loads(names["census"].read_bytes()) if is_over else {}),
            [request.start for request in requests],
            sum(request.sent for request in requests),
        )

    async def die(self, world: World, point: str, hit: int, *, bug: str | None = None) -> None:
        """Have a process die at a moment, look at what it left, and have the next one end it."""
        target = self.make(world)
        life = await self.live(target, point, hit, bug=bug)
        if life.code == 0 and hit > 1:
            return  # What comes in two pieces once may come in one another time.
        assert -signal.SIGKILL == life.code, f"{world.name}: never came to {point}"
        await self.judge(world, target, point, bug=bug)

    async def judge(
        self, world: World, target: Path, point: str, *, bug: str | None = None
    ) -> None:
        """Look at what a death left, and have the next life end the download."""
        row = self.score.rows.setdefault(point, Row())
        row.kills += 1
        is_whole = (found := read(target)) is not None
        if is_whole and found != world.body:
            self._blame(world, point, "what has the name is not whole")
        vouched = self._vouched(world, target)
        self._look_at_modes(world, target, point)
        life = await self.live(target, bug=bug)
        self.score.asked += life.sent
        self.score.spared += len(world.body) - life.sent
        expected = {"bytes": SIZE, "sha256": hashlib.sha256(world.body).hexdigest()}
        if life.code or {**expected, "resumed": not is_whole and vouched > 0} != life.said:
            self._blame(world, point, f"the next life said {life.said}")
        if read(target) != world.body:
            self._blame(world, point, "the next life left a wrong file")
        if vouched == SIZE or is_whole:
            wanted, left = [], 0
        else:
            wanted, left = [vouched or None], SIZE - vouched
        if world is CHANGED and not is_whole and not vouched:
            left, wanted = SIZE, life.starts  # It may ask for the rest of what is no more.
        if (wanted, left) != (life.starts, life.sent):
            self._blame(world, point, f"{vouched} were there, and it asked from {life.starts}")
        row.whole += is_whole
        row.resumed += not is_whole and vouched > 0
        row.anew += not is_whole and not vouched
        if world in (RESUMED, COMPLETE) and not is_whole and not vouched:
            row.lost += 1
            self._blame(world, point, "what was there is lost")
        others = {path.name for path in target.parent.iterdir()} - {target.name}
        if others:
            self._blame(world, point, f"left over: {others}")

    def _vouched(self, world: World, target: Path) -> int:
        """Return how many bytes of the file that is at the host are there and noted."""
        note = part_path(target).with_name(f"{part_path(target).name}.json")
        with contextlib.suppress(OSError, ValueError):
            said = json.loads(note.read_bytes())
            if said["etag"] == world.etag:
                # All that was written, since the machine has not stopped.
                return min(said["written"], part_path(target).stat().st_size)
        return 0

    def _look_at_modes(self, world: World, target: Path, point: str) -> None:
        """Blame what others could read before it has the name."""
        for path in target.parent.iterdir():
            found = path.stat()
            # A part gets the mode of the file just before the name.
            is_file = path == target or point in NAMED
            if stat.S_IMODE(found.st_mode) & 0o077 and found.st_size and not is_file:
                self._blame(world, point, f"{path.name} is not its owner's only")

    def _blame(self, world: World, point: str, what: str) -> None:
        self.score.violations.append(f"{world.name}, {point}: {what}")


@contextlib.asynccontextmanager
async def bench_in(folder: Path) -> AsyncIterator[Bench]:
    """Run a host and a process that brings forth others."""
    async with MediaServer() as media, Nursery(LIVES) as nursery:
        yield Bench(nursery, media, folder)


async def die_everywhere(
    bench: Bench,
    world: World,
    *,
    hits: int,
    without: tuple[str, ...] = (),
    bug: str | None = None,
) -> None:
    """Die at each moment that a life in *world* comes to, the first times and the last."""
    whole = await bench.live(bench.make(world), bug=bug)
    for point, count in whole.seen.items():
        if point.split()[0] not in without:
            for hit in sorted({*range(1, min(hits, count) + 1), *([count] * (hits > 1))}):
                await bench.die(world, point, hit, bug=bug)


async def die_at_random(bench: Bench, world: World, *, kills: int, seed: int) -> None:
    """Die *kills* times at some moment, over and over until the file is whole."""
    chance = random.Random(seed)  # noqa: S311 - repeatable, guards nothing
    began = time.perf_counter()
    await bench.live(bench.make(world))
    length_s = time.perf_counter() - began
    while kills:
        target = bench.make(world)
        life = await bench.live(target, after_s=chance.uniform(0, length_s))
        if life.code:
            kills -= 1
            await bench.judge(world, target, "at random")


async def test_death_at_each_moment(tmp_path):
    """Wherever a download dies, what has the name is whole, and what was there is gone on with."""
    async with bench_in(tmp_path) as bench:
        await die_everywhere(bench, RESUMED, hits=1, without=LOOKS)
    assert [] == bench.score.violations
    total = bench.score.total
    assert total.kills == total.whole + total.resumed + total.anew
    assert total.kills > 25
    assert total.whole > 3
    assert total.resumed > 15
    assert {"replace part: next", "replace part: done", "fsync folder: next"} < {*bench.score.rows}


async def test_death_at_random_moments(tmp_path):
    """However a download dies, the next one ends it."""
    async with bench_in(tmp_path) as bench:
        await die_at_random(bench, NEW, kills=10, seed=1)
    assert [] == bench.score.violations
    assert 10 == bench.score.total.kills


@pytest.mark.parametrize("bug", BUGS)
async def test_a_planted_bug_is_found(tmp_path, bug):
    """A download that breaks the promise is seen to do so by these tests."""
    world, point = {
        "write_in_place": (NEW, "write part: done"),
        "ask_without_version": (CHANGED, "open part: next"),
    }[bug]
    async with bench_in(tmp_path) as bench:
        await bench.die(world, point, 1, bug=bug)
    assert [] != bench.score.violations


# --- the campaign -------------------------------------------------------------------------------


@pytest.mark.campaign
async def test_death_at_every_moment(tmp_path, capsys):
    """In all worlds, at the first three times and the last of every moment: no wrong file."""
    async with bench_in(tmp_path) as bench:
        for world in WORLDS:
            await die_everywhere(bench, world, hits=3)
        for number, world in enumerate(WORLDS):
            await die_at_random(bench, world, kills=20, seed=number)
    with capsys.disabled():
        # The table is what the campaign is run for.
        print(f"\n{bench.score.table()}")  # noqa: T201 - as above
    assert [] == bench.score.violations
