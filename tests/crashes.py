"""
Worlds in which ``kie-wav bulk`` dies again and again, and what must hold in all of them.

The service runs in a process of its own and counts what it charged; its word is
the measure. What was accepted and what is unknown is read from the ledger's file,
as the dead left it. After every life, however it ended::

    accepted <= charged <= accepted + unknown

for each track and in total; and what the session had told, the ledger knows. Where
files are saved, what has a file's name is the file, and what is stored is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import attrs

from crash_files import Shelf
from crash_worlds import BAD, KNOWS, SAVES, Books, World
from kie_wav_async.simulator import SimulatorProcess, SimulatorState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

CHILD = Path(__file__).with_name("crash_child.py")

#: A minute to the command and to the service is 120 ms.
SPEED = 500.0

#: A world in which this many lives in a row end by themselves and leave work is stuck.
MOST_RERUNS = 12

#: A catalog that grows keeps so many rows; the ledger knows the others.
MOST_ROWS = 40

#: A life that is to be killed at random is killed within so many seconds.
LIFE_S = 0.4

#: Between what is done and what is written of it.
TELLING = (
    "begin_attempt: committed",
    "first byte: sent",
    "last byte: sent",
    "answer: read",
    "finish_attempt accepted: asked",
    "finish_attempt accepted: written",
    "submitted: told",
    "finish_task: asked",
    "finish_task: written",
    "settled: told",
)

#: Between what is done with a file and what is written of it.
SAVING_TELLING = (
    "reserve_path: told",
    "write part: done",
    "write file: done",  # None does that, but for a bug.
    "replace part: next",
    "downloaded: told",
    "mark_saved: committed",
    "mark_saved: told",
    "open list: done",
    "replace list: next",
)

#: Titles that some file systems take for one.
TITLES = ("Song", "SONG", "\uff33ong", "song ")

#: Ends of the command that say that it came to the end of its catalog.
FINISHED = frozenset({0, 1, 4})

#: That somebody has to decide about a submit of unknown fate.
UNDECIDED = 4

#: That it could not begin, because somebody else has the ledger.
REFUSED = 3


@attrs.define
class Score:
    """A row of the table."""

    world: str
    kills_by: str
    worlds: int = 0
    lives: int = 0
    kills: int = 0
    tracks: int = 0
    converted: int = 0
    charged: int = 0
    accepted: int = 0
    unknown: int = 0
    saved: int = 0
    charged_twice: int = 0
    reached: Counter[str] = attrs.field(factory=Counter)
    violations: list[str] = attrs.field(factory=list)

    def line(self) -> str:
        """Return it as a line."""
        cells = (self.worlds, self.lives, self.kills, self.tracks, self.converted, self.charged)
        cells += (self.accepted, self.unknown, self.charged_twice)
        cells += (self.saved, len(self.violations))
        numbers = " | ".join(f"{cell:>6}" for cell in cells)
        return f"| {self.world:<26} | {self.kills_by:<7} | {numbers} |"


HEAD = (
    "| world                      | killed  | worlds |  lives |  kills | tracks | conver | charge "
    "| accept | unkno. |  twice |  saved | violat |\n"
    "|----------------------------|---------|-------:|-------:|-------:|-------:|-------:|-------:"
    "|-------:|-------:|-------:|-------:|-------:|"
)


@attrs.frozen
class Life:
    """How one life ended: its exit code, negative if by a signal, and what it came to."""

    code: int
    seen: Counter[str]
    stderr: str

    @property
    def was_killed(self) -> bool:
        """Whether it did not end by itself."""
        return self.code == -signal.SIGKILL


class Nursery:
    """A process that brings forth lives of the command, or of *child*, one at a time."""

    def __init__(self, child: Path = CHILD) -> None:
        self._child = child
        self._process: asyncio.subprocess.Process | None = None
        self._pid: int | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            self._child,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        self.kill()
        process.stdin.close()
        await process.wait()
        await process.stdout.read()

    async def begin(self, order: dict[str, Any]) -> int:
        """Begin a life, and return its process."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._pid = await self._read()
        return self._pid

    async def end(self, after_s: float | None = None) -> int:
        """
        Wait until the life has ended, and kill it if it has not *after_s*; return its exit code.

        It is negative if by a signal. A life that was only stopped can be waited for again.
        """
        code = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(after_s):
                code = await self._read()
        if code is None:
            self.kill()
            code = await self._read()
        if code != -signal.SIGSTOP:
            self._pid = None
        return code

    def kill(self) -> None:
        """Kill the life that is under way, if one is."""
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    async def _read(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        return int(await self._process.stdout.readline())


class Bench:
    """A world that can be made again and again, one at a time."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.score = Score(world.name, "")
        self._root = folder
        self._folder = folder
        self._numbers = itertools.count()
        self._stack = contextlib.AsyncExitStack()
        self._tracks: list[tuple[str, str]] = []
        self._born_unix_s = 0.0
        self._where = ""
        self._shelf = Shelf(self.out)
        # For all lives: so that the callbacks of the dead find their heirs.
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]

    async def __aenter__(self) -> Self:
        kie = SimulatorProcess(
            faults=self.world.faults,
            max_life_s=3600.0,
            time_scale=SPEED,
            median_s=20.0,
            arrival_delay_s=[0.0, 1.0],
            answer_delay_s=[0.0, 1.0],
            **self.world.service,
        )
        self.kie = await self._stack.enter_async_context(kie)
        self.nursery = await self._stack.enter_async_context(Nursery())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    # --- a world ----------------------------------------------------------------------------

    async def make(self, score: Score, tracks: int) -> None:
        """Make the world anew, with so many tracks in its catalog."""
        await self.kie.reset()
        self.score = score
        self._folder = self._root / f"{next(self._numbers)}"
        self._folder.mkdir(parents=True)
        self._tracks = []
        self._shelf = Shelf(self.out)
        self._born_unix_s = time.time()
        score.worlds += 1
        self.grow(tracks)

    def grow(self, tracks: int) -> None:
        """Put so many tracks more at the end of the catalog, and old ones off its beginning."""
        first = len(self._tracks)
        self._tracks += [("m", f"a{first + n:03}") for n in range(tracks)]
        if not first and BAD in self.world.service.get("unknown_audio_ids", ()):
            self._tracks[1] = ("m", BAD)
        last = list(enumerate(self._tracks))[-max(tracks, MOST_ROWS) :]
        rows = "".join(f"{music},{audio},{TITLES[n % len(TITLES)]}\n" for n, (music, audio) in last)
        self.catalog.write_text(f"music_task_id,audio_id,title\n{rows}", "utf-8")

    @property
    def catalog(self) -> Path:
        """The catalog."""
        return self._folder / "catalog.csv"

    @property
    def out(self) -> Path:
        """Where the files go, and the ledger."""
        return self._folder / "out"

    @property
    def ledger(self) -> Path:
        """The ledger's file."""
        return self.out / "kie-wav.sqlite3"

    def order(self, point: str | None = None, hit: int = 1, bug: str | None = None) -> dict:
        """Return the order for a life in this world."""
        out = str(self.out)
        arguments = ["bulk", str(self.catalog), "--out", out, "--base-url", self.kie.base_url]
        arguments += ["--on-unknown", self.world.on_unknown, "--poll", "5,5,1000"]
        # One that tells no track from another by itself.
        arguments += (
            ["--filename-template", "{title}"] if self.world.is_saving else ["--no-download"]
        )
        arguments += ["--retry-failed"] * self.world.is_retrying
        if self.world.is_listening:
            address = f"127.0.0.1:{self._port}"
            arguments += ["--listen", address, "--callback-url", f"http://{address}/"]
        names = ("told", "stdout", "stderr", "census")
        return {
            **{name: str(self._folder / name) for name in names},
            "arguments": arguments,
            "environment": {
                "KIE_API_KEY": self.kie.api_key,
                "KIE_WEBHOOK_HMAC_KEY": self.kie.webhook_key,
            },
            "speed": SPEED,
            # Callbacks are signed by the machine's own date.
            "born_unix_s": None if self.world.is_listening else self._born_unix_s,
            "saves_to": out if self.world.is_saving else None,
            "point": point,
            "hit": hit,
            "signal": signal.SIGKILL,
            "bug": bug,
        }

    async def live(
        self,
        point: str | None = None,
        hit: int = 1,
        *,
        after_s: float | None = None,
        bug: str | None = None,
    ) -> Life:
        """Live once, until *point* is come to for the *hit*-th time, or *after_s*, and judge."""
        self._where = f"{self.world.name}, {point} {hit}, {after_s}"
        order = self.order(point, hit, bug)
        _ = await self.nursery.begin(order)
        life = self._life(order, await self.nursery.end(after_s))
        if life.was_killed and point is not None:
            self.score.reached[point] += 1
        await self.judge(life)
        return life

    async def live_under(self, *tracer: str | Path, bug: str | None = None) -> Life:
        """Live once under another program, undisturbed, and judge."""
        self._where = f"{self.world.name}, under {tracer[0]}"
        order = self.order(bug=bug)
        path = self._folder / "order"
        path.write_text(json.dumps(order), "utf-8")
        process = await asyncio.create_subprocess_exec(
            *(*tracer, sys.executable, CHILD, path),
            stdin=asyncio.subprocess.DEVNULL,
        )
        life = self._life(order, await process.wait())
        await self.judge(life)
        return life

    def _life(self, order: dict[str, Any], code: int) -> Life:
        census, stderr = Path(order["census"]), Path(order["stderr"])
        # Empty if the process was killed as it wrote it.
        counted = census.read_text() if census.exists() else ""
        life = Life(
            code=code,
            seen=Counter(json.loads(counted or "{}")),
            stderr=stderr.read_text("utf-8", "replace") if stderr.exists() else "",
        )
        for left in (census, stderr):
            left.unlink(missing_ok=True)
        self.score.lives += 1
        self.score.kills += life.was_killed
        self.score.reached += life.seen
        return life

    async def finish(self, *, bug: str | None = None) -> None:
        """Run the command again, undisturbed, until there is nothing left to do, and judge that."""
        for _ in range(MOST_RERUNS):
            life = await self.live(bug=bug)
            states = Counter(Books.read(self.ledger).states.values())
            if life.code in FINISHED and set(states) <= self.world.ends:
                break
        else:
            self.wrong(f"stuck: {states}, exit code {life.code}: {life.stderr[-500:]}")
        await self.close_score()

    async def contend(self, *, bug: str | None = None) -> None:
        """Live twice at once, which must not be; kill the first, judge both, and go on."""
        self._where = f"{self.world.name}, two at once"
        first = self.order("begin_attempt: committed", bug=bug) | {"signal": signal.SIGSTOP}
        second = self.order(bug=bug)
        for name in ("stderr", "census"):
            second[name] += " of the second"
        pid = await self.nursery.begin(first)
        # Whatever the second one does from here, the first does not know of it.
        assert -signal.SIGSTOP == await self.nursery.end()
        async with Nursery() as other:
            _ = await other.begin(second)
            told = self._life(second, await other.end())
        is_refused = told.code == REFUSED and f"is open in process {pid} " in told.stderr
        if not is_refused:
            self.wrong(f"the second was not refused: exit code {told.code}: {told.stderr[-300:]}")
            os.kill(pid, signal.SIGCONT)
        life = self._life(first, await self.nursery.end(0.0 if is_refused else None))
        await self.judge(life)
        await self.finish(bug=bug)

    async def close_score(self) -> None:
        """Enter what this world came to into its row of the table."""
        books, state = Books.read(self.ledger), await self.settled_state()
        score = self.score
        score.tracks += len(self._tracks)
        states = Counter(books.states.values())
        score.converted += states["succeeded"] + states["saved"]
        score.saved += sum(place.is_stored for place in books.places.values())
        score.charged += state.charges
        score.accepted += books.accepted.total()
        score.unknown += books.unknown.total()
        score.charged_twice += sum(n > 1 for n in state.charges_by_track.values())
        if len(books.states) != len(self._tracks):
            self.wrong(f"{len(self._tracks)} tracks, {len(books.states)} in the ledger")
        if self.world.is_saving:
            for what in self._shelf.judge_end(books.places):
                self.wrong(what)
        if self.world in (KNOWS, SAVES) and set(state.charges_by_track.values()) != {1}:
            self.wrong(f"not each charged once: {state.charges_by_track}")

    # --- the judge --------------------------------------------------------------------------

    def wrong(self, what: str) -> None:
        """Note a violation."""
        self.score.violations.append(f"{self._where}: {what}")

    async def settled_state(self) -> SimulatorState:
        """Return what the service has counted, once what is on its way has arrived."""
        before, same = None, 0
        while same < 3:
            now = await self.kie.state(brief=True)
            seen = (now.charges, now.requests)
            before, same = seen, same + 1 if seen == before else 0
        return await self.kie.state()

    async def judge(self, life: Life) -> None:
        """Compare what the service charged with what the ledger says."""
        books, state = Books.read(self.ledger), await self.settled_state()
        charged = state.charges_by_track
        for track in {*charged, *books.states}:
            least, most = books.accepted[track], books.accepted[track] + books.unknown[track]
            if not least <= charged.get(track, 0) <= most:
                self.wrong(f"{track}: not {least} <= {charged.get(track, 0)} <= {most}")
        least, most = books.accepted.total(), books.accepted.total() + books.unknown.total()
        if not least <= state.charges <= most:
            self.wrong(f"in total: not {least} <= {state.charges} <= {most}")
        twice = {track: n for track, n in charged.items() if n > 1}
        if twice and self.world.is_charged_once:
            self.wrong(f"charged more than once: {twice}")
        created = {
            (arrival.task_id, (arrival.music_task_id, arrival.audio_id))
            for arrival in state.arrivals
            if arrival.verdict == "created"
        }
        for task_id, (track, _) in books.tasks.items():
            if (task_id, track) not in created:
                self.wrong(f"task {task_id} of {track} is none that the service created")
        self._judge_told(books)
        if self.world.is_saving:
            for what in self._shelf.judge(books.places):
                self.wrong(what)
        if not life.was_killed:
            self._judge_end(life, books)

    def _judge_end(self, life: Life, books: Books) -> None:
        """Compare how a life ended by itself with what the ledger says."""
        left = set(books.states.values())
        if life.code not in FINISHED:
            self.wrong(f"exit code {life.code}: {life.stderr[-2000:]}")
        if books.open:
            self.wrong(f"{books.open} submits under way after the end")
        if life.code != UNDECIDED and "unknown" in left:
            self.wrong(f"exit code {life.code}, and tracks are unknown")
        if life.code == UNDECIDED and not left & {"unknown", "exists_without_id"}:
            self.wrong(f"exit code {life.code}, and nothing is unknown")

    def _judge_told(self, books: Books) -> None:
        """Compare what was told, by the session and on stdout, with what the ledger says."""
        told, stdout = self._folder / "told", self._folder / "stdout"
        # The last line may be cut off in its middle.
        for line in told.read_text("utf-8").split("\n")[:-1] if told.exists() else ():
            what, task_id, *url = line.split(" ", 2)
            if what == "file":
                if not (self.out / url[0]).exists():
                    self.wrong(f"{url[0]!r} was told to be there, and is not")
                continue
            if task_id not in books.tasks:
                self.wrong(f"task {task_id} was told, and is not in the ledger")
            if what == "url" and books.urls.get(task_id) != url[0]:
                self.wrong(f"the WAV of task {task_id} was told, and is not in the ledger")
        places = {(one.task_id, one.path) for one in books.places.values() if one.is_stored}
        shown = places if self.world.is_saving else {*books.urls.items()}
        for line in stdout.read_text("utf-8").split("\n")[:-1] if stdout.exists() else ():
            *_, task_id, where = line.split("\t")
            if (task_id, where) not in shown:
                self.wrong(f"{line!r} was printed, and is not in the ledger")


# --- campaigns ------------------------------------------------------------------------------


async def on_benches(
    world: World, folder: Path, work: Callable[[Bench], Awaitable[None]], number: int
) -> None:
    """Do *work* on so many benches of a world at once."""

    async def one(name: str) -> None:
        async with Bench(world, folder / name) as bench:
            await work(bench)

    await asyncio.gather(*(one(f"{n}") for n in range(number)))


async def die_in_turn(
    world: World, folder: Path, points: Sequence[str], *, tracks: int, benches: int
) -> Score:
    """Die at each of *points* once, one after the other in one world for each bench."""
    score = Score(world.name, "point")
    left = iter(points)

    async def work(bench: Bench) -> None:
        await bench.make(score, tracks)
        for point in left:
            for _ in range(MOST_RERUNS):
                if (await bench.live(point)).was_killed:
                    break
                bench.grow(tracks)
            else:
                bench.wrong(f"{point} was never come to")
            bench.grow(tracks)
        await bench.finish()

    await on_benches(world, folder, work, benches)
    return score


async def die_everywhere(
    world: World, folder: Path, points: Sequence[str], *, hits: int, tracks: int, benches: int
) -> Score:
    """Die at each of *points* the first time, the second and so on, each in a world of its own."""
    score = Score(world.name, "point")
    left = iter(points)

    async def work(bench: Bench) -> None:
        for point in left:
            for hit in range(1, hits + 1):
                await bench.make(score, tracks)
                life = await bench.live(point, hit)
                await bench.finish()
                if not life.was_killed:
                    break

    await on_benches(world, folder, work, benches)
    return score


async def die_at_random(
    world: World, folder: Path, *, kills: int, per_world: int, tracks: int, benches: int
) -> Score:
    """Die so often, a few times in each world, at moments that nobody chose."""
    score = Score(world.name, "chance")
    numbers = itertools.count()

    async def work(bench: Bench) -> None:
        while score.kills < kills:
            chance = random.Random(f"{world.name} {next(numbers)}")  # noqa: S311 - no secret
            await bench.make(score, tracks)
            for _ in range(per_world):
                _ = await bench.live(after_s=chance.uniform(0.0, LIFE_S))
            await bench.finish()

    await on_benches(world, folder, work, benches)
    return score


async def is_found(bench: Bench, bug: str | None) -> str:
    """Live with a bug, if any, dying where that tells most; return what was found."""
    score = Score(bench.world.name, "point")
    await bench.make(score, 8)
    for point in SAVING_TELLING if bench.world.is_saving else TELLING:
        _ = await bench.live(point, bug=bug)
        bench.grow(8)
        if score.violations:
            return "\n".join(score.violations)
    await bench.finish(bug=bug)
    return "\n".join(score.violations)
