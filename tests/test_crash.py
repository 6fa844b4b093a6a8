"""
``kie-wav bulk`` survives SIGKILL at any moment: the bill is right, and every file is whole.

The command runs in a process that dies at named moments, or at random ones, and is
run again. The service runs in another process, which counts the charges. By default
a few lives of each kind are tried. All of them, with the table::

    python -m pytest -m campaign tests/test_crash.py
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter

import pytest

import crash_bugs
import syncs
from crash_bugs import BUGS, BUGS_OF_FILES, BUGS_OF_TWO
from crash_child import POINTS
from crash_files import SAVING, SAVING_NEXT
from crash_worlds import CHARGES, KNOWS, MIXED, RISKS, SAVES, WORLDS
from crashes import HEAD, Bench, Score, die_at_random, die_everywhere, die_in_turn, is_found

# One for each core of a small machine.
BENCHES = 2

# Each Python tries every other moment, and the next one the others; the campaign tries all.
TURN = slice(sys.version_info.minor % 2, None, 2)


def judge(*scores):
    """Fail for what must not be."""
    assert [] == [what for score in scores for what in score.violations]


async def test_death_at_each_named_moment(tmp_path):
    """Whatever moment the command dies at, bill and files are right, and nothing is forgotten."""
    points = [point for point in (*POINTS, *SAVING) if point not in SAVING_NEXT][TURN]
    score = await die_in_turn(MIXED, tmp_path, points, tracks=4, benches=BENCHES)

    judge(score)
    assert len(points) == score.kills
    assert 0 == score.charged_twice


@pytest.mark.parametrize("world", [SAVES, CHARGES], ids=lambda world: world.name)
async def test_death_at_random_moments(world, tmp_path):
    """However often the command dies, it comes to the end, and no track is paid twice."""
    score = await die_at_random(world, tmp_path, kills=5, per_world=5, tracks=40, benches=1)

    judge(score)
    assert 0 == score.charged_twice
    if world is SAVES:
        assert score.tracks == score.converted == score.charged == score.saved


async def test_two_at_once(tmp_path):
    """A second process is refused a ledger, and gets it once the first was killed."""
    score = Score(CHARGES.name, "two")
    async with Bench(CHARGES, tmp_path) as bench:
        await bench.make(score, 60)
        await bench.contend()

    judge(score)
    assert 1 == score.kills
    assert 0 == score.charged_twice


async def look(folder, bug=None):
    """Return in which order things were written and done in a life, as the system saw it."""
    if why := syncs.why_not():
        pytest.skip(why)
    trace = folder / "trace"
    async with Bench(CHARGES, folder) as bench:
        await bench.make(Score(CHARGES.name, ""), 12)
        await bench.live_under("strace", *syncs.ARGUMENTS, "-o", trace, bug=bug)
    return syncs.judge_order(trace.read_text("utf-8", "replace"))


async def test_the_disk_has_it_first(tmp_path, record_property):
    """The intent of a submit, its task and its result are synced before each next step."""
    order = await look(tmp_path)

    record_property("order", order.line())
    assert order.submits == order.submits_after_sync >= 12
    assert order.tasks == order.tasks_after_sync > 0
    assert order.results == order.results_after_sync > 0


# --- the checker, checked -----------------------------------------------------------------------


@pytest.mark.campaign
@pytest.mark.parametrize("world", [CHARGES, SAVES], ids=lambda world: world.name)
async def test_no_bug_is_found_where_there_is_none(world, tmp_path):
    """The deaths that bring bugs to light find nothing in what is there."""
    async with Bench(world, tmp_path) as bench:
        assert "" == await is_found(bench, None)


@pytest.mark.campaign
@pytest.mark.parametrize("bug", BUGS)
async def test_a_planted_bug_is_found(bug, tmp_path):
    """A bug in the order of writing and doing, or in the recovery, is a violation of the bill."""
    async with Bench(CHARGES, tmp_path) as bench:
        found = await is_found(bench, bug)

    assert "" != found


@pytest.mark.campaign
@pytest.mark.parametrize("bug", BUGS_OF_FILES)
async def test_a_bug_of_files_is_found(bug, tmp_path):
    """A file that is there too early, or in another's place, is seen for what it is."""
    async with Bench(SAVES, tmp_path) as bench:
        found = await is_found(bench, bug)

    assert re.search(BUGS_OF_FILES[bug][1], found)


@pytest.mark.campaign
@pytest.mark.parametrize("bug", BUGS_OF_TWO)
async def test_a_bug_of_two_is_found(bug, tmp_path):
    """A ledger that two processes can open is a violation, and paid for if it does not compare."""
    score = Score(CHARGES.name, "two")
    async with Bench(CHARGES, tmp_path) as bench:
        await bench.make(score, 60)
        await bench.contend(bug=bug)

    assert "was not refused" in score.violations[0]
    if BUGS_OF_TWO[bug] is not crash_bugs.lock_nothing:
        assert 2 < score.charged_twice


@pytest.mark.campaign
async def test_a_ledger_that_waits_for_no_disk_is_found(tmp_path):
    """Without a sync no submit counts as written before it was sent."""
    order = await look(tmp_path, bug="nothing waits for the disk")

    assert 0 == order.submits_after_sync < order.submits
    assert 0 == order.tasks_after_sync < order.tasks


# --- the campaign -------------------------------------------------------------------------------


@pytest.mark.campaign
async def test_death_at_every_moment(tmp_path, capsys):
    """At every named moment up to its fifth time, and at 250 random ones, the promises hold."""
    asyncio.get_running_loop().set_debug(False)
    scores = []

    def show(line):
        with capsys.disabled():
            # The table is what the campaign is run for.
            print(line)  # noqa: T201 - as said

    show(f"\n{HEAD}")
    for world in WORLDS:
        folder = tmp_path / world.name
        points = (*POINTS, *SAVING) if world.is_saving else POINTS
        everywhere = {"hits": 5, "tracks": 30, "benches": BENCHES}
        at_random = {"kills": 50, "per_world": 12, "tracks": 100, "benches": BENCHES}
        for score in (
            await die_everywhere(world, folder / "points", points, **everywhere),
            await die_at_random(world, folder / "chance", **at_random),
        ):
            scores.append(score)
            show("\n".join([score.line(), *score.violations[:5]]))

    judge(*scores)
    reached = sum((score.reached for score in scores), Counter())
    assert {*POINTS, *SAVING} <= {*reached}
    for score in scores:
        if score.world != RISKS.name:
            assert 0 == score.charged_twice
        if score.world in {KNOWS.name, SAVES.name}:
            assert score.tracks == score.converted == score.charged
        if score.world == SAVES.name:
            assert score.tracks == score.saved
