"""
Nothing is paid twice by us, and nothing is paid unseen.

A session submits through a proxy that cuts the connection at the byte it is told
to, falls silent there, or answers in the service's place. The service runs in a
process of its own and counts what it charged; its word is the measure.

The default run tries every 7th or 17th byte. All of them, with the table::

    python -m pytest -m campaign tests/test_charges_by_byte.py
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections import Counter

import aiohttp
import attrs
import pytest

from fastclock import FastClock
from kie_wav_async import (
    OnUnknown,
    PollSchedule,
    RateLimit,
    Track,
    WavSession,
)
from kie_wav_async.errors import KieWavError, SubmitUnknownError
from kie_wav_async.simulator import SimulatorProcess, SimulatorState
from proxy import PASS, Plan, Proxy, http

# A minute to the session, its wait before a repeat, is 60 ms.
SPEED = 1000.0
# What no test waits for; it only ends a hang.
PATIENCE_S = 120.0

HTML = "<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"
# The faults that are no cut: what is answered, and whether the service was asked before.
ANSWERS = {
    "500": http("500 Internal Server Error", '{"code":500,"msg":"Server Error","data":null}'),
    "200, code 500": http("200 OK", '{"code":500,"msg":"Server Error","data":null}'),
    "502 HTML": http("502 Bad Gateway", HTML, "Content-Type: text/html"),
    "200 HTML": http("200 OK", HTML, "Content-Type: text/html"),
    "200 without id": http("200 OK", '{"code":200,"msg":"success","data":{}}'),
    "200, data null": http("200 OK", '{"code":200,"msg":"success","data":null}'),
    "truncated JSON": http("200 OK", '{"code":200,"msg":"success","data":{"taskId":"4f0c'),
    "empty": http("200 OK"),
    "408": http("408 Request Timeout"),
    "no HTTP": b"\x15\x03\x01\x00\x02\x02\x28",
    "silence": b"",
}
# The answers that say that nothing was created, which hold only if it is so.
REFUSALS = {
    "307": http("307 Temporary Redirect", "", "Location: {trap}/api/v1/wav/generate"),
    "308": http("308 Permanent Redirect", "", "Location: {trap}/api/v1/wav/generate"),
    "422": http("200 OK", '{"code":422,"msg":"Record does not exist","data":null}'),
    "429": http("429 Too Many Requests", "", "Retry-After: 1"),
    "505": http("200 OK", '{"code":505,"msg":"Feature disabled","data":null}'),
}


@attrs.define
class Row:
    """What came of one kind of fault."""

    kind: str
    on_unknown: OnUnknown
    dedupe: bool
    submits: int = 0
    accepted: int = 0
    unknown: int = 0
    refused: int = 0
    charged: int = 0
    charged_twice: int = 0
    violations: list[str] = attrs.field(factory=list)

    def line(self) -> str:
        """Return a line of the table."""
        repeats = "409" if self.dedupe else "charges"
        return (
            f"| {self.kind:<32} | {self.on_unknown:<8} | {repeats:<7} | {self.submits:>6} "
            f"| {self.accepted:>6} | {self.unknown:>6} | {self.refused:>6} | {self.charged:>6} "
            f"| {self.charged_twice:>6} | {len(self.violations):>6} |"
        )


HEAD = (
    "| fault                            | unknown  | repeat  | submit | accept | unkno. "
    "| refuse | charge |  twice | violat |\n"
    "|----------------------------------|----------|---------|-------:|-------:|-------:"
    "|-------:|-------:|-------:|-------:|"
)


def audio_id_of(request: bytes) -> str:
    """Return the audio id that a submit names; empty for any other request."""
    found = re.search(rb'"audioId": *"([^"]*)"', request)
    return found[1].decode() if found else ""


class Bench:
    """A service that counts in a process of its own, a proxy before it, and a trap beside it."""

    def __init__(self, kie, proxy, trap, *, dedupe):
        self.kie = kie
        self.proxy = proxy
        self.trap = trap
        self.dedupe = dedupe
        self.plans = {}
        self._numbers = itertools.count()
        proxy.plan = lambda request: self.plans.pop(audio_id_of(request), PASS)

    def tracks(self, plans):
        """Name a track, of always the same length, for each plan its first submit meets."""
        tracks = [Track("5c79", f"e{next(self._numbers):07}") for _ in plans]
        self.plans = {track.audio_id: plan for track, plan in zip(tracks, plans, strict=True)}
        return tracks

    def session(self, **settings):
        """Return a session without limits, whose minutes are short and that never polls."""
        given = {
            "base_url": self.proxy.base_url,
            "rate_limit": RateLimit(200, per_s=0.001),
            "max_in_flight": 1_000_000,
            "poll": PollSchedule(first_s=1e6),
            "timeout_s": None,
            "clock": FastClock(SPEED),
        }
        return WavSession(self.kie.api_key, **given | settings)

    async def settled_state(self):
        """Return what the service has counted, once what is on its way has arrived."""
        await self.proxy.ended()
        before, same = None, 0
        while same < 3:
            now = await self.kie.state(brief=True)
            seen = (now.charges, now.requests)
            before, same = seen, same + 1 if seen == before else 0
        return await self.kie.state()

    async def lengths(self):
        """Return the length of a submit's request and the greatest of its answers."""
        async with self.session() as session:
            for track in self.tracks([PASS] * 20):
                await session.submit(track)
        await self.kie.reset()
        requests = {len(request) for request in self.proxy.requests}
        assert 1 == len(requests)
        return requests.pop(), max(map(len, self.proxy.answers))

    async def try_all(self, plans_by_kind, on_unknown):
        """Submit one track for each plan, all in one session, and return a row for each kind."""
        await self.kie.reset()
        self.proxy.requests.clear()
        kinds = [kind for kind, plans in plans_by_kind.items() for _ in plans]
        tracks = self.tracks([plan for plans in plans_by_kind.values() for plan in plans])
        async with self.session(on_unknown=on_unknown) as session:
            ends = await asyncio.gather(*map(session.submit, tracks), return_exceptions=True)
        seen = await self.evidence(session)
        rows = {kind: Row(kind, on_unknown, self.dedupe) for kind in plans_by_kind}
        for kind, track, end in zip(kinds, tracks, ends, strict=True):
            judge_track(rows[kind], track, end, seen)
        total = session.statistics()
        assert total.accepted <= seen.state.charges <= total.accepted + total.unknown
        # On a busy machine a submit may time out before it has a connection.
        assert total.submitted >= sum(row.submits for row in rows.values())
        assert total.accepted == sum(row.accepted for row in rows.values())
        assert total.unknown == sum(row.unknown for row in rows.values())
        assert total.possible_double_charges >= sum(row.charged_twice for row in rows.values())
        return list(rows.values())

    async def evidence(self, session):
        """Return what there is to judge a closed session by."""
        state = await self.settled_state()
        return Evidence(
            state=state,
            submits=Counter(map(audio_id_of, self.proxy.requests)),
            unknown=Counter(unknown.track for unknown in session.unknown_submits()),
            created={(a.audio_id, a.task_id) for a in state.arrivals if a.verdict == "created"},
        )


@attrs.frozen
class Evidence:
    """What the service and the session say, by track."""

    state: SimulatorState
    submits: Counter
    unknown: Counter
    created: set

    def charged(self, track):
        """Return how often the service charged for a track."""
        return self.state.charges_by_track.get((track.music_task_id, track.audio_id), 0)


def judge_track(row, track, end, seen):
    """Add to the row what became of a track, and what must not be."""
    wrong = row.violations.append
    charged, unknown = seen.charged(track), seen.unknown[track]
    accepted = not isinstance(end, BaseException)
    row.submits += seen.submits[track.audio_id]
    row.accepted += accepted
    row.unknown += unknown
    row.charged += charged
    row.charged_twice += charged > 1
    if not accepted <= charged <= accepted + unknown:
        wrong(f"{track}: not {accepted:d} <= {charged} <= {accepted:d} + {unknown}")
    if charged > 1 and (row.dedupe or row.on_unknown is OnUnknown.RAISE):
        wrong(f"{track}: charged {charged} times")
    if accepted:
        if (track.audio_id, end.task_id) not in seen.created:
            wrong(f"{track}: accepted as {end.task_id}, which is not its task")
    elif not isinstance(end, KieWavError):
        wrong(f"{track}: {end!r} is none of our errors")
    elif not isinstance(end, SubmitUnknownError):
        row.refused += 1
        if charged or unknown:
            wrong(f"{track}: charged {charged} times, and shown as {end!r}")


@contextlib.asynccontextmanager
async def bench(*, dedupe, **settings):
    """Start a service, a proxy and a trap."""
    async with (
        asyncio.timeout(PATIENCE_S * 10),
        SimulatorProcess(window=None, median_s=1e9, dedupe=dedupe, **settings) as kie,
        Proxy(kie.base_url) as proxy,
        Proxy() as trap,
    ):
        yield Bench(kie, proxy, trap, dedupe=dedupe)


def plans_by_kind(request_length, answer_length, step, trap_url):
    """Return every kind of fault with the plans it is tried by."""
    kinds = {}
    for end in ("fin", "rst", "stall"):
        kinds[f"request, {end}"] = [
            Plan(request_bytes=k, end=end)
            for k in (*range(0, request_length, step), request_length)
        ]
        kinds[f"answer, {end}"] = [
            Plan(answer_bytes=k, end=end) for k in (*range(0, answer_length, step), answer_length)
        ]
    for name, answer in ANSWERS.items():
        kinds[f"{name}, not asked"] = [Plan(answer=answer)] * 3
        kinds[f"{name}, charged before"] = [Plan(answer=answer, is_asked=True)] * 3
    for name, answer in REFUSALS.items():
        kinds[name] = [Plan(answer=answer.replace(b"{trap}", trap_url.encode()))] * 3
    return kinds


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """Have no run of unknown submits taken for an outage: here each is cut on purpose."""
    monkeypatch.setattr("kie_wav_async.core.submit_pause.UNKNOWN_IN_A_ROW", 10**9)


@pytest.fixture
def timeouts(monkeypatch):
    """Return a function that sets the timeouts of a submit for new sessions."""

    def set_to(**seconds):
        timeout = aiohttp.ClientTimeout(**seconds)
        monkeypatch.setattr("kie_wav_async.http.transport.SUBMIT_TIMEOUT", timeout)

    return set_to


async def run(timeouts, *, on_unknown, dedupe, step, stall, gzip):
    """Try every kind of fault, and return a row for each."""
    async with bench(dedupe=dedupe, gzip=gzip) as place:
        request_length, answer_length = await place.lengths()
        kinds = plans_by_kind(request_length, answer_length, step, place.trap.base_url)
        stalls = {kind: plans for kind, plans in kinds.items() if kind.endswith("stall")}
        others = {kind: plans for kind, plans in kinds.items() if kind not in stalls}
        rows = await place.try_all(others, on_unknown)
        # Only where a submit is meant to time out may it do so.
        timeouts(**stall)
        rows += await place.try_all(stalls, on_unknown)
        assert 0 == place.trap.connections, "a redirect was followed"
    return rows


def judge(rows):
    """Fail for what must not be, and for a campaign that did not try what it should."""
    violations = [
        f"{row.kind}, {row.on_unknown}: {what}" for row in rows for what in row.violations
    ]
    assert [] == violations
    by_kind = {row.kind: row for row in rows}
    for end in ("fin", "rst", "stall"):
        assert 0 < by_kind[f"request, {end}"].charged
        assert 0 < by_kind[f"answer, {end}"].charged
    if by_kind["500, not asked"].on_unknown is OnUnknown.RAISE:
        assert 0 < by_kind["answer, stall"].unknown
        assert 3 == by_kind["502 HTML, charged before"].unknown
        assert 3 == by_kind["307"].refused
    else:
        assert 3 == by_kind["502 HTML, not asked"].accepted


@pytest.mark.parametrize(
    ("on_unknown", "dedupe", "gzip", "step"),
    [(OnUnknown.RAISE, False, True, 7), (OnUnknown.RESUBMIT, True, False, 17)],
)
async def test_bill_is_bounded_at_every_few_bytes(timeouts, on_unknown, dedupe, gzip, step):
    """Wherever a submit is cut: accepted <= charged <= accepted + unknown, and nobody is misled."""
    judge(
        await run(
            timeouts,
            on_unknown=on_unknown,
            dedupe=dedupe,
            step=step,
            stall={"total": 3.0},
            gzip=gzip,
        )
    )


@pytest.mark.campaign
async def test_bill_is_bounded_at_every_byte(timeouts, capsys):
    """Whatever byte a submit is cut at, the bill stays bounded, and the table shows it."""
    asyncio.get_running_loop().set_debug(False)  # Twice as fast.
    groups = [
        await run(
            timeouts, on_unknown=on_unknown, dedupe=dedupe, step=1, stall={"total": 5.0}, gzip=True
        )
        for on_unknown, dedupe in itertools.product(OnUnknown, (True, False))
    ]
    with capsys.disabled():
        # The table is what the campaign is run for.
        print("", HEAD, *(row.line() for rows in groups for row in rows), sep="\n")  # noqa: T201 - as said
    for rows in groups:
        judge(rows)


# Turns of the loop within which a submit is accepted, mostly after 20, sometimes later.
STEPS = 61


async def steps(number):
    """Let the loop take so many turns."""
    for _ in range(number):
        await asyncio.sleep(0)


async def judge_books(place, tracks, sessions):
    """Fail if the service charged for what the books of closed sessions do not show."""
    state = await place.settled_state()
    open_tasks = {one.task_id for session in sessions for one in session.conversions()}
    unknowns = Counter(one.track for session in sessions for one in session.unknown_submits())
    created = {a.audio_id: a.task_id for a in state.arrivals if a.verdict == "created"}
    for track in tracks:
        charged = state.charges_by_track.get((track.music_task_id, track.audio_id), 0)
        accepted = created.get(track.audio_id) in open_tasks
        assert accepted <= charged <= accepted + unknowns[track], track
        assert charged <= 1, track
    return state.charges, len(open_tasks), unknowns.total()


async def test_no_charge_of_a_cancelled_submit_is_forgotten():
    """A submit cancelled at any step of the loop is charged only if the session's books show it."""
    async with bench(dedupe=False) as place:
        tracks = place.tracks([PASS] * 300)
        async with place.session() as session:
            for number, track in enumerate(tracks):
                task = asyncio.create_task(session.submit(track))
                await steps(number % STEPS)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        charged, accepted, _ = await judge_books(place, tracks, [session])

    assert 0 < charged < 300  # Withdrawn before, finished after.
    assert charged == accepted


async def test_no_charge_of_a_session_closed_half_way_is_forgotten():
    """A session closed at any step of a submit gives it time, and then tells what is in doubt."""
    plans = [PASS, Plan(delay_s=0.02), Plan(request_bytes=10_000, end="stall")]
    async with bench(dedupe=False) as place:
        tracks = place.tracks([plans[number % 3] for number in range(2 * STEPS)])
        sessions = []
        for number, track in enumerate(tracks):
            async with place.session() as session:
                task = asyncio.create_task(session.submit(track))
                await steps(number % STEPS)
            await asyncio.gather(task, return_exceptions=True)
            sessions.append(session)
        charged, accepted, unknown = await judge_books(place, tracks, sessions)

    assert 0 < accepted < charged
    assert 0 < unknown


async def test_no_charge_of_a_cancelled_session_is_forgotten():
    """A task cancelled at any step inside `async with` leaves books that show every charge."""

    async def use(session, track):
        async with session:
            await session.convert(track)

    async with bench(dedupe=False) as place:
        tracks = place.tracks([PASS] * (2 * STEPS))
        sessions = [place.session() for _ in tracks]
        for number, (session, track) in enumerate(zip(sessions, tracks, strict=True)):
            task = asyncio.create_task(use(session, track))
            await steps(number % STEPS)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await session.aclose()
        charged, accepted, unknown = await judge_books(place, tracks, sessions)

    assert 0 < charged < 2 * STEPS
    assert accepted <= charged <= accepted + unknown
