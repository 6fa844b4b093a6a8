"""
``kie-wav demo --attack``: every attack of the simulator's on a receiver of ours.

Each attack has a conversion of its own, and is carried out twice: once while the
conversion is in flight and the attacker holds back its genuine callback, and once
when the conversion is settled. The trust is the default. What an attack did is read
from the session's counters, and from what KIE itself says in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING, Final

import attrs
from rich import box
from rich.table import Table

from kie_wav_async import (
    CallbackResult,
    PollSchedule,
    RateLimit,
    Statistics,
    Track,
    WavSession,
    events,
)
from kie_wav_async.cli.common.output import DONE, FAILED, clean, plain, print_json, stdout_console
from kie_wav_async.cli.common.progress import AttackDisplay
from kie_wav_async.simulator import ATTACKS, AttackResult, Simulator
from kie_wav_async.webhook import CallbackServer

if TYPE_CHECKING:
    from kie_wav_async import Conversion

# How long the attacker waits for an answer, and we for a poll, in seconds.
_PATIENCE_S: Final = 2.0
# How long a conversion may take once nothing is in its way.
_LONG_S: Final = 60.0
# Longer than the demo takes: nothing is polled for but what a callback hints at.
_NEVER_S: Final = 3_600.0

# The signature does not cover the body: these have a genuine one, and are read.
_SIGNED: Final = frozenset(
    {
        "other-body",
        "loopback-url",
        "userinfo-url",
        "failure-body",
        "replay",
        "wrong-attempt",
        "foreign-task",
    }
)
_OK: Final = 200

# What a delivery may be counted as.
_COUNTERS: Final = frozenset({"rejected_callbacks", "unknown_task_callbacks", "duplicate_results"})


@attrs.frozen
class _Blow:
    """
    One attack on one receiver, and what came of it.

    Attributes:
        result: What the attacker saw.

        changes: The session's counters that changed, by how much.
    """

    result: AttackResult
    changes: dict[str, int]

    @property
    def effect(self) -> str:
        """What changed, in a word or two where it is nothing to worry about."""
        if not self.changes:
            return "nothing"
        if self.changes == {"polls": 1}:
            return "one poll"
        if sum(self.changes.values()) == 1 and self.changes.keys() <= _COUNTERS:
            return "counted"
        return ", ".join(f"{name} {by:+d}" for name, by in self.changes.items())

    @property
    def is_harmless(self) -> bool:
        """Whether it was answered, and did, no more than it may."""
        is_read = self.result.status == _OK
        if is_read and self.result.kind not in _SIGNED:
            return False
        return self.effect in ({"one poll", "counted"} if is_read else {"nothing", "counted"})

    @property
    def answer(self) -> str:
        """The HTTP status, if there was any."""
        return "none" if self.result.status is None else str(self.result.status)


@attrs.frozen
class _Assault:
    """
    All attacks on one receiver.

    Attributes:
        blows: One for each attack, in their order.

        stolen: What is not as it would be without them; empty as it should be.
    """

    blows: list[_Blow]
    stolen: list[str]


@attrs.define
class _Time:
    """The simulated KIE's clock, which can be put forward."""

    ahead_s: float = 0.0

    def now(self) -> float:
        return time.monotonic() + self.ahead_s


async def run_attack(*, as_json: bool) -> int:
    """
    Attack two receivers in every way, and print what came of it.

    Args:
        as_json: Print one JSON object per attack in place of the table.
    """
    began_s = time.monotonic()
    count = len(ATTACKS)
    with AttackDisplay(2 * count) as display:
        display.say(
            f"Playing {count} attacks on two receivers of callbacks. In one the conversions are in "
            "flight, and the attacker holds their genuine callbacks back. In the other they are "
            "settled."
        )
        in_flight, settled = await asyncio.gather(
            _assault(display, is_held_back=True),
            _assault(display, is_held_back=False),
        )
    pairs = list(zip(in_flight.blows, settled.blows, strict=True))
    if as_json:
        for pair in pairs:
            print_json(_facts(*pair))
    else:
        stdout_console().print(_table(pairs))
        display.say(
            "Counted: one of the session's counters went up, and nothing else changed. "
            "One poll: the session asked KIE, and believed KIE. None: the receiver waited for "
            f"more, or hung up; the attacker leaves after {_PATIENCE_S:g} s."
        )
    told = [f"{pair[0].result.kind} got something" for pair in pairs if not _is_harmless(*pair)]
    told += in_flight.stolen + settled.stolen
    took_s = time.monotonic() - began_s
    if told:
        display.say(f"{count} attacks in {took_s:.1f} s, not all in vain: {'; '.join(told)}.")
        return FAILED
    display.say(
        f"{count} attacks in {took_s:.1f} s, none got anything: each of the {2 * count} "
        "conversions settled with KIE's own file, and was submitted and charged once."
    )
    display.say(
        "What remains with the default trust: whoever holds a fresh signature and the query, "
        "before the genuine delivery settles, can name another file on the same host, and "
        "anybody with an account can put one there. "
        "callback_trust=CallbackTrust.CONFIRM closes that."
    )
    return DONE


async def _assault(display: AttackDisplay, *, is_held_back: bool) -> _Assault:
    """Carry out every attack on a receiver of its own, and look what became of its session."""
    clock = _Time()
    received: list[CallbackResult] = []

    def note(event: events.Event) -> None:
        if isinstance(event, events.CallbackReceived):
            received.append(event.result)

    simulator = Simulator(
        median_s=_NEVER_S if is_held_back else 0.0, sigma=0.0, window=None, now=clock.now
    )
    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with simulator as kie:
            session = WavSession(
                kie.api_key,
                base_url=kie.base_url,
                callback_url=f"http://127.0.0.1:{sock.getsockname()[1]}/kie/callback",
                webhook_keys=kie.webhook_key,
                insecure_hosts=("127.0.0.1",),
                rate_limit=RateLimit(len(ATTACKS), per_s=1.0),
                poll=PollSchedule(first_s=_NEVER_S, interval_s=_NEVER_S, backstop_s=_NEVER_S),
                timeout_s=_LONG_S,
                on_event=note,
            )
            async with session, CallbackServer(session, sock=sock):
                tracks = [Track("5c79be8e", kind) for kind in ATTACKS]
                conversions = await asyncio.gather(*map(session.submit, tracks))
                if not is_held_back:
                    await asyncio.gather(*(conversion.wait() for conversion in conversions))
                blows = await _strike(kie, session, conversions, received, display)
                clock.ahead_s += 2 * _NEVER_S
                await session.get_credits()  # Asked, the simulator looks at its clock.
                stolen = await _miss(session, conversions)
            if kie.charges != len(ATTACKS):
                stolen.append(f"{kie.charges} conversions were charged")
            return _Assault(blows, stolen)


async def _strike(
    kie: Simulator,
    session: WavSession,
    conversions: list[Conversion],
    received: list[CallbackResult],
    display: AttackDisplay,
) -> list[_Blow]:
    """Carry out one attack after the other, and tell their effects apart."""
    blows: list[_Blow] = []
    # Each begins where the one before ended, so that no change is lost between them.
    before = session.statistics()
    for kind, conversion in zip(ATTACKS, conversions, strict=True):
        received.clear()
        result = await kie.attack(kind, conversion.task_id, patience_s=_PATIENCE_S)
        if CallbackResult.POLLING in received:
            await _see_poll(kie, conversion.task_id)
        after = session.statistics()
        blows.append(_Blow(result, _changes(before, after)))
        before = after
        display.show_attacked()
    return blows


async def _see_poll(kie: Simulator, task_id: str) -> None:
    """Return when a poll of a task was answered, or after some time without one."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            while not kie.state().polls.get(task_id):  # noqa: ASYNC110 - it has no event for it
                await asyncio.sleep(0.01)


def _changes(before: Statistics, after: Statistics) -> dict[str, int]:
    was, now = attrs.asdict(before), attrs.asdict(after)
    return {name: now[name] - was[name] for name in now if now[name] != was[name]}


async def _miss(session: WavSession, conversions: list[Conversion]) -> list[str]:
    """Name what the attacks took or left: whatever is not KIE's own word in the end."""
    stolen: list[str] = []
    for conversion in conversions:
        kind = conversion.track and conversion.track.audio_id
        wav = await conversion
        record = await session.get_task(conversion.task_id)
        if record is None or wav.url != record.wav_url:
            stolen.append(f"after {kind} a conversion has the file {clean(wav.url)}")
    end, count = session.statistics(), len(conversions)
    if (end.submitted, end.accepted, end.unknown, end.adopted) != (count, count, 0, 0):
        stolen.append("something else was submitted")
    if end.failed or end.timed_out or session.conversions():
        stolen.append("not every conversion ended well")
    return stolen


def _is_harmless(first: _Blow, second: _Blow) -> bool:
    """Whether neither did harm, and the answers do not tell one conversion from the other."""
    seen = {
        (blow.result.status, blow.result.body)
        for blow in (first, second)
        if blow.result.status is not None  # Who just hangs up tells nothing.
    }
    return first.is_harmless and second.is_harmless and len(seen) <= 1


def _answer(first: _Blow, second: _Blow) -> str:
    return first.answer if first.answer == second.answer else f"{first.answer}, {second.answer}"


def _facts(first: _Blow, second: _Blow) -> dict[str, object]:
    return {
        "attack": first.result.kind,
        "tries": first.result.tries,
        "in_flight": {"status": first.result.status, "effect": first.effect},
        "settled": {"status": second.result.status, "effect": second.effect},
        "harmless": _is_harmless(first, second),
    }


def _table(pairs: list[tuple[_Blow, _Blow]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("Attack", no_wrap=True)
    table.add_column("What it tries", overflow="fold")
    for name in ("Answer", "In flight", "Settled"):
        table.add_column(name)
    for first, second in pairs:
        table.add_row(
            plain(first.result.kind),
            plain(first.result.tries),
            plain(_answer(first, second)),
            plain(first.effect),
            plain(second.effect),
        )
    return table
