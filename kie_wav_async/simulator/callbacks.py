"""
Callbacks: what they say, when they go out, and what came of them.

Written by hand after docs.kie.ai (suno-api/convert-to-wav-callbacks, "Webhook Security
Verification"); the spacing of retries after an older edition of the first page.
"""

import asyncio
import base64
import contextlib
import hashlib
import heapq
import hmac
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias, cast

import attrs

from kie_wav_async.simulator.faults import Fault
from kie_wav_async.simulator.loopback import Address, Answer, Headers, exchange
from kie_wav_async.simulator.script import merge, place, shape
from kie_wav_async.simulator.service import Payload, Task, envelope
from kie_wav_async.simulator.state import Delivery

PickCallbackFaults: TypeAlias = Callable[[Task, frozenset[str]], Sequence[Fault]]
DrawDelay: TypeAlias = Callable[[Fault], float]

_DELIVERED: Final = 200
_MOST_AT_ONCE: Final = 100
# The receiver's own work does not pass faster when the service's time does.
_LEAST_PATIENCE_S: Final = 1.0


def sign(key: str, task_id: str, timestamp: str) -> str:
    """Return the signature of a callback: what it covers is all that the docs name."""
    digest = hmac.new(key.encode(), f"{task_id}.{timestamp}".encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def signed_headers(timestamp: str, signature: str) -> Headers:
    """Return the two headers that prove a callback."""
    return [("X-Webhook-Timestamp", timestamp), ("X-Webhook-Signature", signature)]


def success_of(task_id: str, url: str) -> Payload:
    """Return what a callback of a success says, in the documented spelling."""
    return envelope(200, "success", {"audioWavUrl": url, "task_id": task_id})


def payload_of(task: Task, url: str) -> Payload:
    """Return what the callback of a task says once it has ended."""
    if task.ending == "SUCCESS":
        return success_of(task.task_id, url)
    data = {"audioWavUrl": None, "task_id": task.task_id}
    return envelope(task.error_code, task.error_message, data)


def encode(payload: object) -> bytes:
    """Return JSON as the service writes it."""
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="backslashreplace")


def _shape(fault: Fault, payload: Payload, task: Task, url: str) -> None:
    """Change what a callback says, in place, as one fault says."""
    inside = payload.get("data")
    data = cast("Payload", inside) if isinstance(inside, dict) else {}
    match fault.kind:
        case "code":
            told = fault.data
            if told is None:
                told = {"audioWavUrl": None, "task_id": task.task_id}
            payload.update(envelope(fault.code, fault.msg, told))
        case "fields":
            merge(data, fault)
        case "no-url":
            data["audioWavUrl"] = None
            merge(data, fault)
        case "id-places" | "url-places":
            is_id = fault.kind == "id-places"
            data.pop("task_id" if is_id else "audioWavUrl", None)
            true = task.task_id if is_id else url
            other = true[::-1] if is_id else true.replace("/s/", "/s/0")
            for path in fault.places:
                place(payload, path, true)
            for path in fault.other_places:
                place(payload, path, other)
        case _:
            shape(fault, payload)


_CONTENT: Final = frozenset(
    {"code", "fields", "no-url", "id-places", "url-places", "huge", "string-code", "no-code"}
    | {"no-data", "data-null", "envelope"}
)


@attrs.define
class _Callback:
    """One callback on its way: its deliveries so far and what the script does to it."""

    task: Task
    url: str
    address: Address
    faults: dict[str, Fault]  # By kind; those that change the content are in `content`.
    content: list[Fault]
    attempts: int = 0
    first_at: float = 0.0

    def body(self) -> tuple[str, bytes]:
        """Return the media type and the body."""
        if (fault := self.faults.get("body")) is not None:
            return fault.content_type, fault.body.encode(errors="surrogatepass")
        payload = payload_of(self.task, self.url)
        for fault in self.content:
            _shape(fault, payload, self.task, self.url)
        body = encode(payload)
        return "application/json", body[: len(body) // 2] if "truncated" in self.faults else body


@attrs.frozen(kw_only=True)
class CallbackSettings:
    """How callbacks are sent; see `Simulator`. Durations are service seconds."""

    enabled: bool
    webhook_key: str = attrs.field(repr=False)
    retries_s: Sequence[float]
    timeout_s: float
    time_scale: float
    now: Callable[[], float]


class Sender:
    """
    Sends the callbacks of one simulator when they are due.

    One heap and one timer for all of them; a task only for a delivery that is under way.
    """

    def __init__(self, callback_settings: CallbackSettings) -> None:
        self._settings = callback_settings
        # Scaled, but a receiver that is only slow by real time is not taken for dead.
        scaled_s = callback_settings.timeout_s / callback_settings.time_scale
        self._patience_s = max(scaled_s, min(callback_settings.timeout_s, _LEAST_PATIENCE_S))
        self.deliveries: list[Delivery] = []
        self.outcomes: Counter[str] = Counter()
        self._due: list[tuple[float, int, _Callback, bool]] = []
        self._planned = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._in_progress: set[asyncio.Task[None]] = set()
        self._closed = False

    def forget(self) -> None:
        """Stop everything planned and under way, and count anew."""
        self._due.clear()
        self._rearm()
        for task in self._in_progress:
            task.cancel()
        self.deliveries, self.outcomes = [], Counter()

    async def aclose(self) -> None:
        """Stop for good, and wait until every connection is gone. The counts stay."""
        self._closed = True
        self._due.clear()
        self._rearm()
        while self._in_progress:
            for task in self._in_progress:
                task.cancel()
            await asyncio.wait(self._in_progress)

    def announce(
        self, task: Task, url: str, pick: PickCallbackFaults, draw: DrawDelay
    ) -> "asyncio.Task[None] | None":
        """
        Plan the callback of a task that was just created.

        Args:
            task: The task.
            url: The address of its file.
            pick: Returns the faults for a task whose callback has the parts named.
            draw: Returns the delay of a fault in service seconds.

        Returns:
            The first delivery if it goes out before the submit is answered, else `None`.

        """
        address = Address.parse(task.callback_url) if self._settings.enabled else None
        if address is None:
            self.outcomes["not_sent"] += 1
            return None
        if self._closed or task.done_at == math.inf:
            return None
        done = {"done"} if task.ending == "SUCCESS" else set[str]()
        picked = pick(task, frozenset({"data", "id"} | done))
        faults = {fault.kind: fault for fault in reversed(picked) if fault.kind not in _CONTENT}
        if "lost" in faults:
            self.outcomes["lost"] += 1
            return None
        content = [fault for fault in picked if fault.kind in _CONTENT]
        callback = _Callback(task, url, address, faults, content)
        if "early" in faults:
            task.done_at = task.created_at
        scale = self._settings.time_scale
        due_at = task.done_at + sum(draw(f) for f in picked if f.kind == "late") / scale
        if (fault := faults.get("doubled")) is not None:
            self._plan(due_at + draw(fault) / scale, callback, again=True)
        if "early" in faults:
            return self._start(callback, again=False)
        self._plan(due_at, callback)
        return None

    def look(self) -> None:
        """Send what is due, and set the timer for what is next."""
        while (
            self._due
            and len(self._in_progress) < _MOST_AT_ONCE
            and self._due[0][0] <= self._settings.now()
        ):
            _, _, callback, again = heapq.heappop(self._due)
            _ = self._start(callback, again=again)
        self._rearm()

    def _plan(self, at: float, callback: _Callback, *, again: bool = False) -> None:
        self._planned += 1
        heapq.heappush(self._due, (at, self._planned, callback, again))
        self._rearm()

    def _rearm(self) -> None:
        # With all places taken, the end of a delivery is what to wait for.
        full = len(self._in_progress) >= _MOST_AT_ONCE
        at = self._due[0][0] if self._due and not full else math.inf
        if at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, at
        if at < math.inf:
            delay_s = max(0.0, at - self._settings.now())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake)

    def _wake(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self.look()

    def _start(self, callback: _Callback, *, again: bool) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(self._deliver(callback, again=again))
        self._in_progress.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._in_progress.discard(task)
        if not self._closed:
            self.look()

    async def _deliver(self, callback: _Callback, *, again: bool) -> None:
        """Send a callback once: for the next time, or once more for the first time."""
        at = self._settings.now()
        if not again:
            callback.attempts += 1
            if callback.attempts == 1:
                callback.first_at = at
        attempt = 1 if again else callback.attempts
        answer = Answer()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                answer = await exchange(callback.address, self._request(callback, at))
        self.deliveries.append(Delivery(at, callback.task.task_id, attempt, answer.status))
        if again:
            return
        if answer.status == _DELIVERED:
            self.outcomes["delivered"] += 1
        elif attempt > len(self._settings.retries_s):
            self.outcomes["given_up"] += 1
        else:
            wait_s = self._settings.retries_s[attempt - 1] / self._settings.time_scale
            self._plan(self._settings.now() + wait_s, callback)

    def _request(self, callback: _Callback, at: float) -> bytes:
        content_type, body = callback.body()
        headers: Headers = []
        if self._settings.webhook_key and "unsigned" not in callback.faults:
            # Of the wall clock, whatever the time scale: the receiver compares it with its own.
            unix_s = time.time()
            if "stale-retry" in callback.faults:
                unix_s -= (at - callback.first_at) * self._settings.time_scale
            task_id, timestamp = callback.task.task_id, str(int(unix_s))
            headers = signed_headers(
                timestamp, sign(self._settings.webhook_key, task_id, timestamp)
            )
        return callback.address.request(
            headers, body, content_type=content_type, query="no-query" not in callback.faults
        )
