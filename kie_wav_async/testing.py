"""
For tests of programs that use this package: time and a service that do as told.

::

    clock = FakeClock()
    transport = ScriptedTransport([accepted("t1"), pending("t1"), succeeded("t1")])
    async with WavSession("key", transport=transport, clock=clock) as session:
        wav = await clock.run(session.convert(Track("5c79", "e231")))

Minutes pass in milliseconds, and nothing is sent anywhere. For a whole service
on a real socket there is `kie_wav_async.simulator`. `MemoryLedger` is a journal
whose process can die as often as a test likes.
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
from yarl import URL

from kie_wav_async._support.secret import Secret
from kie_wav_async.callbacks.signature import sign
from kie_wav_async.ledger.memory import MemoryLedger
from kie_wav_async.models import Track
from kie_wav_async.protocol.api_constants import KIE_WAV
from kie_wav_async.protocol.http_messages import WireRequest, WireResponse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kie_wav_async._support.clock import TimerHandle

__all__ = [
    "FakeClock",
    "MemoryLedger",
    "Reply",
    "ScriptedTransport",
    "SignedCallback",
    "accepted",
    "answer",
    "failed",
    "missing",
    "pending",
    "polled_task_id",
    "refused",
    "signed_callback",
    "submitted_callback_query",
    "submitted_track",
    "succeeded",
]

T = TypeVar("T")

#: What a script may hold: an answer, an error to raise, or something to await
#: for either.
Reply = WireResponse | BaseException | Awaitable["WireResponse | BaseException"]

#: How often the loop gets its turn before time moves on. A submit's answer is
#: with its waiter after about ten.
_TURNS: Final = 25


class FakeClock:
    """
    A clock that moves when told, and fires what is due in order.

    Args:
        monotonic_s: Where `monotonic` starts.

        unix_s: Where `time` starts; it moves along, and `shift_wall_clock` moves it alone.
    """

    def __init__(self, *, monotonic_s: float = 1_000.0, unix_s: float = 1_800_000_000.0) -> None:
        self._monotonic_s = monotonic_s
        self._offset_s = unix_s - monotonic_s
        self._timers: list[tuple[float, int, _FakeTimer]] = []
        self._ties = itertools.count()

    def monotonic(self) -> float:
        """Return the monotonic time in seconds."""
        return self._monotonic_s

    def time(self) -> float:
        """Return the Unix time in seconds."""
        return self._monotonic_s + self._offset_s

    async def sleep(self, delay_s: float) -> None:
        """Return once the clock was moved by *delay_s*."""
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        timer = self.call_at(self._monotonic_s + delay_s, wake)
        try:
            await woken
        finally:
            timer.cancel()

    def call_at(self, when_mono_s: float, callback: Callable[[], object]) -> TimerHandle:
        """Call *callback* when the clock is moved to *when_mono_s* or beyond."""
        timer = _FakeTimer(callback)
        heapq.heappush(self._timers, (when_mono_s, next(self._ties), timer))
        return timer

    def shift_wall_clock(self, seconds: float) -> None:
        """Move `time` alone, as when somebody sets the machine's clock."""
        self._offset_s += seconds

    async def run_pending(self) -> None:
        """Let the loop do what can be done without time passing."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        """
        Move on by *seconds*, firing on the way what is due, each at its moment.

        Raises:
            ValueError: *seconds* is negative or NaN.
        """
        if not seconds >= 0:  # Also true of NaN.
            msg = f"time does not go back: {seconds!r}"
            raise ValueError(msg)
        end = self._monotonic_s + seconds
        await self.run_pending()
        while (when := self._next()) is not None and when <= end:
            await self._fire(when)
        self._monotonic_s = end
        await self.run_pending()

    async def run(self, awaitable: Awaitable[T]) -> T:
        """
        Await something, moving on to the next timer whenever nothing else happens.

        Raises:
            RuntimeError: Nothing will ever happen: it waits, and no timer is set.
        """
        waited = asyncio.ensure_future(awaitable)
        try:
            await self.run_pending()
            while not waited.done():
                when = self._next()
                if when is None:
                    msg = "nothing will ever happen: all wait, and no timer is set"
                    raise RuntimeError(msg)
                await self._fire(when)
            return waited.result()
        finally:
            if not waited.done():
                waited.cancel()
                await asyncio.wait([waited])

    def _next(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    async def _fire(self, when: float) -> None:
        """Move to *when* and fire what is due there."""
        self._monotonic_s = max(self._monotonic_s, when)
        while (following := self._next()) is not None and following <= self._monotonic_s:
            _, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                timer.callback()
        await self.run_pending()


class _FakeTimer:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ScriptedTransport:
    """
    A transport that answers from a script and keeps what it was asked.

    Args:
        script:
            Replies in the order of the requests; or a function of the request
            that returns a reply. A reply is a `WireResponse`, an error to raise,
            or an awaitable of either.

    Attributes:
        requests: Every request sent, in order.

        is_closed: Whether the session has closed the transport.
    """

    def __init__(self, script: Iterable[Reply] | Callable[[WireRequest], Reply]) -> None:
        self.requests: list[WireRequest] = []
        self.is_closed = False
        self._replies: Iterator[Reply] | None = None
        self._answer: Callable[[WireRequest], Reply] | None = None
        if callable(script):
            self._answer = script
        else:
            self._replies = iter(script)

    @property
    def submits(self) -> list[WireRequest]:
        """The submits among the requests."""
        return [request for request in self.requests if request.is_submit]

    @property
    def polls(self) -> list[WireRequest]:
        """The polls among the requests."""
        return [request for request in self.requests if KIE_WAV.record_path in request.url]

    async def send(self, request: WireRequest) -> WireResponse:
        """
        Return, or raise, what the script says.

        Raises:
            AssertionError: The script is over.
        """
        self.requests.append(request)
        reply = self._reply(request)
        if inspect.isawaitable(reply):
            reply = await reply
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def _reply(self, request: WireRequest) -> Reply:
        if self._answer is not None:
            return self._answer(request)
        for reply in self._replies or ():
            return reply
        msg = f"the script has no reply to request {len(self.requests)}, {request.url}"
        raise AssertionError(msg)

    async def aclose(self) -> None:
        """Note that the transport was closed."""
        self.is_closed = True


# --- replies ----------------------------------------------------------------------------


def answer(
    payload: object,
    *,
    status: int = 200,
    retry_after: str | None = None,
    date: str | None = None,
) -> WireResponse:
    """Return an answer with *payload* as its JSON body."""
    body = json.dumps(payload).encode()
    return WireResponse(status=status, body=body, retry_after=retry_after, date=date)


def accepted(task_id: str, *, date: str | None = None) -> WireResponse:
    """Return the answer to a submit that created *task_id*; *date* is its ``Date`` header."""
    return answer({"code": 200, "msg": "success", "data": {"taskId": task_id}}, date=date)


def refused(
    code: int,
    message: str = "",
    *,
    data: object = None,
    retry_after: str | None = None,
    date: str | None = None,
) -> WireResponse:
    """Return an answer that says no, in HTTP 200 as the service does."""
    payload = {"code": code, "msg": message, "data": data}
    return answer(payload, retry_after=retry_after, date=date)


def missing() -> WireResponse:
    """Return the answer to a poll of a task the service does not know."""
    return answer({"code": 200, "msg": "success", "data": None})


def pending(task_id: str, **fields: object) -> WireResponse:
    """Return the record of a task that is not finished; *fields* are added as they are."""
    return _record({"taskId": task_id, "successFlag": "PENDING", "response": None, **fields})


def succeeded(task_id: str, url: str | None = None, **fields: object) -> WireResponse:
    """Return the record of a finished task; *url* defaults to one made from its id."""
    link = {"audioWavUrl": url or f"https://media.invalid/{task_id}.wav"}
    return _record({"taskId": task_id, "successFlag": "SUCCESS", "response": link, **fields})


def failed(task_id: str, message: str = "wav build failed", **fields: object) -> WireResponse:
    """Return the record of a task that ended badly."""
    why: dict[str, Any] = {"errorCode": 500, "errorMessage": message, "response": None}
    return _record({"taskId": task_id, "successFlag": "GENERATE_WAV_FAILED", **why, **fields})


def _record(data: Mapping[str, object]) -> WireResponse:
    return answer({"code": 200, "msg": "success", "data": data})


# --- requests ---------------------------------------------------------------------------


def submitted_track(request: WireRequest) -> Track:
    """Return the track that a submit asks for."""
    body = json.loads(request.body or b"{}")
    return Track(body["taskId"], body["audioId"])


def submitted_callback_query(request: WireRequest) -> str:
    """Return the query of the callback URL that a submit gives: what a delivery brings back."""
    body = json.loads(request.body or b"{}")
    return URL(body["callBackUrl"], encoded=True).raw_query_string


def polled_task_id(request: WireRequest) -> str:
    """Return the task that a poll asks about."""
    return URL(request.url, encoded=True).query["taskId"]


# --- callbacks --------------------------------------------------------------------------


@attrs.frozen
class SignedCallback:
    """
    A callback as it would arrive: ``await session.handle_callback(*callback, query=...)``.

    Attributes:
        headers: What the service sends, the two signed headers included.

        body: JSON, UTF-8.
    """

    headers: Mapping[str, str]
    body: bytes

    def __iter__(self) -> Iterator[Any]:
        """Yield headers and body, the order in which they are taken."""
        return iter((self.headers, self.body))


def signed_callback(
    task_id: str,
    url: str | None = "https://media.invalid/song.wav",
    *,
    key: str,
    now_unix_s: float | None = None,
    code: int = 200,
    message: str = "success",
    **fields: object,
) -> SignedCallback:
    """
    Return a callback of *task_id*, signed with *key*.

    Args:
        task_id: The conversion task.

        url: Where the file is; `None` for a callback without one.

        key: The webhook key.

        now_unix_s: When it is signed, Unix seconds, cut to whole ones: the
            `time` of your clock. `None` for the system's.

        code: 200, or how the conversion failed.

        message: The service's words.

        fields: Added to the body's ``data`` as they are, or put in place of ours.
    """
    secret = Secret(key)
    del key
    timestamp = str(int(time.time() if now_unix_s is None else now_unix_s))
    signature = secret.parse(lambda given: sign(task_id, timestamp, given))
    data = {"task_id": task_id, "audioWavUrl": url, **fields}
    return SignedCallback(
        headers={
            "Content-Type": "application/json",
            KIE_WAV.timestamp_header: timestamp,
            KIE_WAV.signature_header: signature,
        },
        body=json.dumps({"code": code, "msg": message, "data": data}).encode(),
    )
