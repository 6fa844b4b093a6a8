"""Every attack on every receiver comes to what docs/security.md says, and gets nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
from yarl import URL

from attacks import ATTACKS, CapturedCallback, attack
from fakes import track
from fastclock import FastClock
from kie_wav_async import PollSchedule, WavSession
from kie_wav_async.simulator.loopback import Address
from kie_wav_async.testing import (
    ScriptedTransport,
    accepted,
    pending,
    polled_task_id,
    signed_callback,
    succeeded,
)
from receivers import Served, alone, alone_in_c, embedded, own_server

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from attacks import AttackResult
    from kie_wav_async import Conversion, Statistics, WireRequest
    from kie_wav_async.testing import Reply

KEY = "sk-kie-0123456789abcdef"
WEBHOOK_KEY = "whk-0123456789abcdef"

#: Nothing is polled unless a callback asks for it.
QUIET = PollSchedule(first_s=3_600.0, interval_s=3_600.0, backstop_s=3_600.0)

#: How long an answer is waited for: what gets none waits for the rest of a body.
PATIENCE_S = 0.3

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "security.md").read_text("utf-8")
ROWS = {
    cells[0]: cells
    for line in PAGE.partition("## What attacks come to")[2].partition("\n## ")[0].splitlines()
    if (cells := re.split(r" *\| *", line.strip("| "))) and len(cells) == 5
}
COUNTERS = {"rejected_callbacks", "unknown_task_callbacks", "duplicate_results"}

RECEIVERS = {"aiohttp": embedded, "server": own_server, "h11": alone, "httptools": alone_in_c}


class Kie:
    """The service: its conversions end when it is told."""

    def __init__(self) -> None:
        self.is_done = False
        self.transport = ScriptedTransport(self._reply)
        self._ids = itertools.count(1)

    def _reply(self, request: WireRequest) -> Reply:
        if request.is_submit:
            return accepted(f"{next(self._ids):032x}")
        task_id = polled_task_id(request)
        return succeeded(task_id) if self.is_done else pending(task_id)


def file_of(task_id: str) -> str:
    """Return where the genuine file of a task is."""
    return f"https://media.invalid/{task_id}.wav"


def callback_url_of(kie: Kie, number: int) -> URL:
    """Return the callback URL of a submit, as the service has it."""
    body = kie.transport.submits[number].body or b""
    return URL(json.loads(body)["callBackUrl"], encoded=True)


async def settled_down(session: WavSession) -> Statistics:
    """Return the statistics once nothing moves any more."""
    last = session.statistics()
    for _ in range(20):
        await asyncio.sleep(0.001)
        now = session.statistics()
        if now == last:
            return now
        last = now
    return last


def effect_of(before: Statistics, after: Statistics) -> str:
    """Return what changed, in the words of the page."""
    was, now = attrs.asdict(before), attrs.asdict(after)
    changes = {name: now[name] - was[name] for name in now if now[name] != was[name]}
    if not changes:
        return "nothing"
    if changes == {"polls": 1}:
        return "one poll"
    return "counted" if set(changes.values()) == {1} and changes.keys() < COUNTERS else str(changes)


@attrs.define
class Target:
    """A session behind a receiver, and what an attacker has captured of it."""

    session: WavSession
    served: Served
    kie: Kie

    def captured(self, number: int, conversion: Conversion) -> CapturedCallback:
        """Return the genuine callback of a conversion, as an attacker has it."""
        query = callback_url_of(self.kie, number).raw_query_string
        address = Address.parse(f"{self.served.url}?{query}")
        assert address is not None
        task_id = conversion.task_id
        _, body = signed_callback(task_id, file_of(task_id), key=WEBHOOK_KEY)
        return CapturedCallback(address, task_id, str(int(time.time())), body, WEBHOOK_KEY)

    async def attacked(
        self, kind: str, number: int, conversion: Conversion
    ) -> tuple[AttackResult, str]:
        """Carry out an attack; return what was answered, and what it changed."""
        before = await settled_down(self.session)
        result = await attack(kind, self.captured(number, conversion), patience_s=PATIENCE_S)
        return result, effect_of(before, await settled_down(self.session))


def test_the_page_has_every_attack() -> None:
    """Each attack has its row, with what it tries."""
    assert ["attack", "---", *ATTACKS] == list(ROWS)


@pytest.mark.parametrize("kind", ATTACKS)
@pytest.mark.parametrize("receiver", RECEIVERS.values(), ids=RECEIVERS)
async def test_an_attack_comes_to_what_the_page_says(
    kind: str, receiver: Callable[[WavSession], AbstractAsyncContextManager[Served]]
) -> None:
    """Status and effect are those of the row, and both conversions end with KIE's own file."""
    kie = Kie()
    async with WavSession(
        KEY,
        transport=kie.transport,
        callback_url="https://mine.example/kie/callback?from=kie",
        webhook_keys=WEBHOOK_KEY,
        poll=QUIET,
        clock=FastClock(50.0),  # A task is polled at a callback's word once in 2 s.
    ) as session:
        async with receiver(session) as served:
            target = Target(session, served, kie)
            conversions = [await session.submit(track(number)) for number in (1, 2)]
            in_flight = await target.attacked(kind, 0, conversions[0])
            assert not any(conversion.done() for conversion in conversions)

            kie.is_done = True
            for number, conversion in enumerate(conversions):
                genuine = signed_callback(
                    conversion.task_id, file_of(conversion.task_id), key=WEBHOOK_KEY
                )
                query = callback_url_of(kie, number).raw_query_string
                await session.handle_callback(*genuine, query=query)
                wav = await conversion
                assert file_of(conversion.task_id) == str(wav.url)
            settled = await target.attacked(kind, 1, conversions[1])
        end = session.statistics()

    (first, effect), (second, effect_when_settled) = in_flight, settled
    _, tries, status, *effects = ROWS[kind]
    assert (tries, effects) == (first.tries, [effect, effect_when_settled])
    assert status == ("none" if first.status is None else str(first.status))
    assert (first.status, first.body) == (second.status, second.body)
    assert (2, 2, 0, 0) == (end.submitted, end.accepted, end.failed, end.unknown)
