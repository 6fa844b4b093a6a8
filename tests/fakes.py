"""
A service in memory, under a fake clock: what the tests of the session talk to.

It converts, counts what it charges, and goes wrong as told. It keeps its own
books, so that a session's can be held against them.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import attrs
from yarl import URL

from kie_wav_async import Track, WavSession, WireResponse, events
from kie_wav_async.errors import TransportError
from kie_wav_async.protocol.api_constants import KIE_WAV
from kie_wav_async.testing import (
    FakeClock,
    Reply,
    ScriptedTransport,
    accepted,
    missing,
    pending,
    polled_task_id,
    refused,
    signed_callback,
    submitted_track,
    succeeded,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from kie_wav_async import CallbackResult, WireRequest

KEY = "sk-kie-PLANTED-0123456789"
WEBHOOK_KEY = "whk-PLANTED-0123456789"

#: The hosts of the files that records and callbacks name here.
HOSTS = ("media.invalid:443", "cdn.example:443", "mirror.example:80")

#: Where a session that listens is called back.
LISTENING_AT = "https://app.example/kie/callback?shop=7"


def track(number: int = 1) -> Track:
    """Return a track; the same number gives an equal one."""
    return Track("5c79", f"e{number}")


@attrs.frozen
class Fate:
    """
    What becomes of one submit.

    Attributes:
        name: For the table's rows.

        is_charged: Whether the service creates and charges a task.

        reply: What the client sees, given that task's id; never anything if `None`.
    """

    name: str
    is_charged: bool
    reply: Callable[[str], Reply] | None


def raw(body: bytes, status: int = 200) -> WireResponse:
    """Answer with bytes as they are."""
    return WireResponse(status=status, body=body)


def lost(text: str = "reset") -> TransportError:
    """Return an error after which the request may have been received."""
    return TransportError(text)


def unsent(text: str = "no route") -> TransportError:
    """Return an error after which it was not."""
    return TransportError(text, maybe_sent=False)


ACCEPTED = Fate("accepted", is_charged=True, reply=accepted)
LOST_CHARGED = Fate("lost answer", is_charged=True, reply=lambda _: lost())
LOST_FREE = Fate("lost request", is_charged=False, reply=lambda _: lost())
UNSENT = Fate("unsent", is_charged=False, reply=lambda _: unsent())
SILENT_CHARGED = Fate("no answer ever", is_charged=True, reply=None)


def refusal(code: int, **fields: object) -> Fate:
    """Return the fate of a submit that is refused."""
    return Fate(f"code {code}", is_charged=False, reply=lambda _: refused(code, **fields))


@attrs.define
class Task:
    """One conversion, as the service knows it."""

    task_id: str
    track: Track
    callback_url: str
    created_at: float
    ends_at: float

    @property
    def attempt_id(self) -> str:
        return URL(self.callback_url).query["attempt"]


@attrs.frozen
class Delivery:
    """One callback as it arrives."""

    headers: Mapping[str, str]
    body: bytes
    query: str

    async def to(self, session: WavSession) -> CallbackResult:
        """Deliver it."""
        return await session.handle_callback(self.headers, self.body, query=self.query)

    def saying(self, **changes: object) -> Delivery:
        """Return it with another body: the signature does not cover it. `None` leaves out."""
        said = {**json.loads(self.body), **changes}
        kept = {name: value for name, value in said.items() if value is not None}
        return attrs.evolve(self, body=json.dumps(kept).encode())


class FakedSession(WavSession):
    """Leaves `async with` in fake time, so that a test which fails does not hang."""

    async def __aexit__(self, *_: object) -> None:
        await self._context.clock.run(self.aclose())


class FakeService:
    """
    Answers like the service, once ``latency_s`` of fake time has passed.

    A pair that was submitted before gets 409 with the id, unless
    ``knows_repeats`` is false: then it is charged again.
    """

    def __init__(
        self,
        clock: FakeClock,
        *,
        latency_s: float = 0.0,
        conversion_s: float | Callable[[], float] = 60.0,
        knows_repeats: bool = True,
    ) -> None:
        self.clock = clock
        self.latency_s = latency_s
        self.conversion_s = conversion_s
        self.knows_repeats = knows_repeats
        self.fates: deque[Fate] = deque()
        self.poll_replies: deque[Callable[[str], Reply]] = deque()
        self.tasks: dict[str, Task] = {}
        self.submitted_at: list[float] = []
        self.polled_at: list[tuple[float, str]] = []
        self.charged = 0
        self.on_wire = 0
        self.is_key_good = True
        self.transport = ScriptedTransport(self.reply)

    @property
    def attempts(self) -> list[str]:
        """The attempts named by the submits seen, in order."""
        return [
            URL(json.loads(request.body or b"")["callBackUrl"]).query["attempt"]
            for request in self.transport.submits
        ]

    def session(self, *, hosts: Iterable[str] = HOSTS, **settings: object) -> WavSession:
        """Return a session that knows *hosts*, as if polls had named files there."""
        session = FakedSession(KEY, transport=self.transport, clock=self.clock, **settings)
        session._core._hosts.restore(hosts)
        return session

    def listening(self, **settings: object) -> WavSession:
        """Return a session that is called back, with the key that signs."""
        given = {"callback_url": LISTENING_AT, "webhook_keys": WEBHOOK_KEY, **settings}
        return self.session(**given)

    def callback(
        self,
        task_id: str,
        url: str | None = "https://cdn.example/called-back.wav",
        *,
        attempt_id: str | None = None,
        query: str | None = None,
        key: str = WEBHOOK_KEY,
        at_s: float = 0.0,
        **said: object,
    ) -> Delivery:
        """
        Return a callback of *task_id* as the service would send it now.

        Args:
            task_id: The task; its callback URL has the query, if there is such a task.

            url: What the body names as the file; not what the record does.

            attempt_id: Named by the query instead of the task's own.

            query: The whole query, instead.

            key: What signs.

            at_s: When it was signed, from now.

            said: See `signed_callback`.
        """
        if query is None:
            task = self.tasks.get(task_id)
            if attempt_id is not None or task is None:
                query = f"shop=7&attempt={attempt_id or 'f' * 32}"
            else:
                query = URL(task.callback_url, encoded=True).raw_query_string
        signed = signed_callback(task_id, url, key=key, now_unix_s=self.clock.time() + at_s, **said)
        return Delivery(signed.headers, signed.body, query)

    def finish(self, task_id: str) -> None:
        """End a task now: its record shows the file from now on."""
        self.tasks[task_id].ends_at = self.clock.monotonic()

    @property
    def polled_at_moments(self) -> list[float]:
        """When polls were sent, whichever task they asked about."""
        return [at for at, _ in self.polled_at]

    def polls_of(self, task_id: str) -> list[float]:
        """Return when polls of one task were sent."""
        return [at for at, polled in self.polled_at if polled == task_id]

    def reply(self, request: WireRequest) -> Awaitable[WireResponse | BaseException]:
        return self._submit(request) if request.is_submit else self._read(request)

    async def _submit(self, request: WireRequest) -> WireResponse | BaseException:
        self.submitted_at.append(self.clock.monotonic())
        self.on_wire += 1
        try:
            # What becomes of it is decided when it arrives, halfway.
            await self.clock.sleep(self.latency_s / 2)
            reply = self._take(request)
            await self.clock.sleep(self.latency_s / 2)
            return await asyncio.get_running_loop().create_future() if reply is None else reply
        finally:
            self.on_wire -= 1

    def _take(self, request: WireRequest) -> Reply | None:
        if not self.is_key_good:
            return refused(401)
        wanted = submitted_track(request)
        fate = self.fates.popleft() if self.fates else ACCEPTED
        if fate.is_charged and self.knows_repeats:
            for task in self.tasks.values():
                if task.track == wanted:
                    return refused(409, data={"taskId": task.task_id})
        task_id = f"task{len(self.tasks) + 1:04d}"
        if fate.is_charged:
            self.charged += 1
            self.create(task_id, wanted, json.loads(request.body or b"")["callBackUrl"])
        return None if fate.reply is None else fate.reply(task_id)

    def create(self, task_id: str, of: Track, callback_url: str = "https://h/?attempt=x") -> None:
        """Add a task."""
        now = self.clock.monotonic()
        takes_s = self.conversion_s if isinstance(self.conversion_s, float) else self.conversion_s()
        self.tasks[task_id] = Task(task_id, of, callback_url, now, now + takes_s)

    async def _read(self, request: WireRequest) -> WireResponse | BaseException:
        task_id = polled_task_id(request) if KIE_WAV.record_path in request.url else ""
        self.polled_at.append((self.clock.monotonic(), task_id))
        await self.clock.sleep(self.latency_s)
        if not self.is_key_good:
            return refused(401)
        if self.poll_replies:
            return self.poll_replies.popleft()(task_id)
        task = self.tasks.get(task_id)
        if task is None:
            return missing()
        names = {"musicId": task.track.audio_id, "callbackUrl": task.callback_url}
        is_over = self.clock.monotonic() >= task.ends_at
        return succeeded(task_id, **names) if is_over else pending(task_id, **names)


def is_bounded(service: FakeService, session: WavSession) -> bool:
    """Return whether the session's bill bounds what the service charged."""
    counted = session.statistics()
    return counted.accepted <= service.charged <= counted.accepted + counted.unknown


def make_healthy(session: WavSession) -> None:
    """Have a session believe in its callbacks, as 10 conversions that they settled would."""
    for _ in range(10):
        session._core._health.record_end(is_called_back=True)


def counted(session: WavSession) -> dict[str, int]:
    """Return the figures of *session* that are not 0."""
    return {name: n for name, n in attrs.asdict(session.statistics()).items() if n}


def told(event: object) -> tuple[type, object]:
    """Return what an event says, in short."""
    if isinstance(event, events.CallbackReceived):
        return type(event), (event.task_id, event.result, event.is_authentic)
    if isinstance(event, events.CallbackRejected):
        return type(event), type(event.error)
    if isinstance(event, events.ConversionSucceeded):
        return type(event), event.wav
    return type(event), getattr(event, "task_id", None)
