"""`kie-wav demo --attack`: that it tells the truth, also where an attack gets something."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, NamedTuple

import attrs
import pytest

from cli_runs import names
from fastclock import FastClock
from kie_wav_async import WavSession
from kie_wav_async.cli import main
from kie_wav_async.cli.demo import attack as demo_attack
from kie_wav_async.simulator import ATTACKS, Simulator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

#: One attack of each sort: forged, genuinely signed, stale, and too much.
SOME = ("wrong-key", "other-body", "failure-body", "stale", "oversize")


class Done(NamedTuple):
    code: int
    out: str
    err: str

    def told(self) -> dict[str, dict[str, object]]:
        return {one["attack"]: one for one in map(json.loads, self.out.splitlines())}


class Quick(WavSession):
    """A session whose limits, of polls that callbacks cause, pass quickly."""

    def __init__(self, *given: object, **settings: object) -> None:
        super().__init__(*given, **{**settings, "timeout_s": None, "clock": FastClock(20.0)})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take the developer's terminal out of it, and the waits."""
    monkeypatch.setattr(demo_attack, "WavSession", Quick)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(demo_attack, "_PATIENCE_S", 0.5)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def some(monkeypatch: pytest.MonkeyPatch) -> None:
    """Play some of the attacks only."""
    monkeypatch.setattr(demo_attack, "ATTACKS", SOME)


@pytest.fixture
def attack(capsys: pytest.CaptureFixture[str]) -> Callable[..., Awaitable[Done]]:
    """Run the demo of attacks in a thread."""

    async def run(*arguments: str) -> Done:
        code = await asyncio.to_thread(main, ("demo", "--attack", *arguments))
        return Done(code, *capsys.readouterr())

    return run


async def test_no_attack_gets_anything(attack, tmp_path: Path) -> None:
    """All attacks are in the table, each with its answer and effects, and none got anything."""
    done = await attack()

    header, _, *rows = [line for line in done.out.splitlines() if line.strip()]
    assert 0 == done.code, done
    assert ["Attack", "What it tries", "Answer", "In flight", "Settled"] == (
        re.split(r"  +", header.strip())
    )
    cells = [re.split(r"  +", row.strip()) for row in rows]
    assert list(ATTACKS) == [row[0] for row in cells]
    assert {"200", "400", "401", "405", "413", "415", "none"} == {row[2] for row in cells}
    assert {"counted", "nothing", "one poll"} == {row[3] for row in cells}
    assert {"counted", "nothing"} == {row[4] for row in cells}
    assert f"each of the {2 * len(ATTACKS)} conversions settled with KIE's own file" in done.err
    assert [] == names(tmp_path)


@pytest.mark.usefixtures("some")
async def test_the_attacks_as_json(attack, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--json` prints one object per attack and no table, whatever the environment is."""
    for name in ("KIE_BASE_URL", "KIE_CALLBACK_URL", "KIE_WEBHOOK_HMAC_KEY"):
        monkeypatch.setenv(name, "nonsense")
    done = await attack("--json")

    told = done.told()
    assert (0, SOME) == (done.code, tuple(told))
    for one in told.values():
        assert {"attack", "tries", "in_flight", "settled", "harmless"} == set(one)
    assert {"status": 401, "effect": "counted"} == told["wrong-key"]["in_flight"]
    assert {"status": 200, "effect": "one poll"} == told["other-body"]["in_flight"]
    assert {"status": 200, "effect": "counted"} == told["other-body"]["settled"]
    assert {"status": 413, "effect": "nothing"} == told["oversize"]["settled"]


class Believing(Quick):
    """A session that takes the attacker's host for one of the service's."""

    def __init__(self, *given: object, **settings: object) -> None:
        super().__init__(*given, **settings)
        self._core._hosts.restore(["attacker.invalid:443"])


class Keyless(Quick):
    """A session that verifies nothing."""

    def __init__(self, *given: object, **settings: object) -> None:
        super().__init__(*given, **{**settings, "webhook_keys": ()})


class Spending(Quick):
    """A session that submits once more whatever is settled."""

    async def get_credits(self) -> object:
        for conversion in {c.track: c for c in self.seen}.values():
            if conversion.done():
                await self.submit(attrs.evolve(conversion.track, audio_id="another"))
                break
        return await super().get_credits()

    async def submit(self, track: object, **how: object) -> object:
        conversion = await super().submit(track, **how)
        self.seen = [*getattr(self, "seen", []), conversion]
        return conversion


@pytest.mark.usefixtures("some")
async def test_an_attack_that_gets_something(attack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a held back callback is believed, the attacker's file is found, and the exit is 1."""
    monkeypatch.setattr(demo_attack, "WavSession", Believing)
    done = await attack("--json")

    told = done.told()
    effect = told["other-body"]["in_flight"]["effect"]
    assert (1, False) == (done.code, told["other-body"]["harmless"])
    assert "settled_by_callback +1" in effect
    assert "other-body got something" in done.err
    assert "after other-body a conversion has the file https://attacker.invalid/" in done.err
    assert "none got anything" not in done.err
    assert ["other-body"] == [kind for kind, one in told.items() if not one["harmless"]]


@pytest.mark.usefixtures("some")
async def test_a_receiver_that_verifies_nothing(attack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forged or stale callback that is taken is something got, though it only causes a poll."""
    monkeypatch.setattr(demo_attack, "WavSession", Keyless)
    done = await attack("--json")

    told = done.told()
    assert 1 == done.code
    assert ["wrong-key", "stale"] == [kind for kind, one in told.items() if not one["harmless"]]
    assert "wrong-key got something; stale got something." in done.err


@pytest.mark.usefixtures("some")
async def test_a_charge_on_the_side(attack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A submit that nobody asked for is seen in the session's books and in KIE's bill."""
    monkeypatch.setattr(demo_attack, "WavSession", Spending)
    done = await attack()

    assert 1 == done.code
    assert "something else was submitted" in done.err
    assert f"{len(SOME) + 1} conversions were charged" in done.err


@pytest.mark.usefixtures("some")
async def test_an_answer_that_tells(attack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that differ for a conversion in flight and a settled one give something away."""
    truly = Simulator.attack

    async def told(self: Simulator, kind: str, task_id: str, **how: float) -> object:
        result = await truly(self, kind, task_id, **how)
        if kind != "failure-body":
            return result
        return attrs.evolve(result, body=b"done" if self.deliveries else b"known")

    monkeypatch.setattr(Simulator, "attack", told)
    done = await attack("--json")

    assert 1 == done.code
    assert "not all in vain: failure-body got something." in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tracks", "12"), "leave --tracks out"),
        (("--out", "there"), "leave --out out"),
        (("--tracks", "3", "--out", "there"), "leave --out and --tracks out"),
    ],
)
async def test_what_an_attack_does_not_take(attack, tmp_path: Path, arguments, words) -> None:
    """Attacks keep no files, and say so rather than ignore where to keep them."""
    done = await attack(*arguments)

    assert (2, "") == (done.code, done.out)
    assert words in done.err
    assert [] == names(tmp_path)
