"""One request on its way through the simulator: arrival, judgement, answer."""

import asyncio
import contextlib
import json
import random
import re
import secrets
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NoReturn, cast

import attrs
from aiohttp import web

from kie_wav_async.simulator.callbacks import Sender
from kie_wav_async.simulator.faults import Endpoint, Fault, Seconds, When, draw_s, faults_from_json
from kie_wav_async.simulator.replies import (
    ENDERS,
    NOT_FOUND,
    REPLACERS,
    UNAUTHORIZED,
    Reply,
    changed,
    replacement,
    send_file,
)
from kie_wav_async.simulator.script import Script, parts_of
from kie_wav_async.simulator.service import Payload, Service, Settings, Task
from kie_wav_async.simulator.state import SimulatorState
from kie_wav_async.simulator.wav import ToneCache

if TYPE_CHECKING:
    from kie_wav_async.simulator.connections import Server

_ROUTES: Final[dict[tuple[str, str], Endpoint]] = {
    ("POST", "/api/v1/wav/generate"): "submit",
    ("GET", "/api/v1/wav/record-info"): "poll",
    ("GET", "/api/v1/generate/record-info"): "music",
    ("POST", "/api/v1/common/download-url"): "download-url",
    ("GET", "/api/v1/chat/credit"): "credits",
}
_FILE: Final = re.compile(r"/([st])/([0-9a-f]{32})\.wav")


class _GoneError(Exception):
    """The connection was ended on purpose: there is nobody to answer."""


@attrs.define
class _Call:
    """One request on its way through the simulator."""

    request: web.BaseRequest
    on: Endpoint
    task_id: str | None = None
    audio_id: str | None = None
    at: float = 0.0
    verdict: str = ""
    reply: Reply = attrs.field(factory=Reply)
    task: Task | None = None
    early: asyncio.Task[None] | None = None  # A callback that goes out before the answer.


@attrs.frozen(kw_only=True)
class ResponseSettings:
    """How requests are received and answered; see `Simulator`."""

    api_key: str = attrs.field(repr=False)
    arrival_delay_s: Seconds
    answer_delay_s: Seconds
    http_status: Mapping[str, int]  # By verdict; 200 for all others.
    gzip: bool
    now: Callable[[], float]


def _decode(raw: bytes) -> object:
    try:
        return cast("object", json.loads(raw))
    except (ValueError, RecursionError):
        return None


def _first(faults: Sequence[Fault], kinds: Collection[str]) -> Fault | None:
    return next((fault for fault in faults if fault.kind in kinds), None)


class Handler:
    """Answers the requests of one simulator."""

    def __init__(
        self,
        settings: Settings,
        response_settings: ResponseSettings,
        sender: Sender,
        faults: Iterable[Fault],
    ) -> None:
        self.sender = sender
        self._settings = settings
        self._response_settings = response_settings
        self._authorization = f"Bearer {response_settings.api_key}"
        self._faults = tuple(faults)
        self._tones = ToneCache()
        self._service: Service | None = None
        self._answers = secrets.randbits(60)
        self.server: Server | None = None
        self._forget()

    def _forget(self) -> None:
        self._chance = random.Random(self._settings.seed)  # noqa: S311 - repeatable, guards nothing
        self._script = Script(self._faults, self._chance)
        self._requests: dict[str, int] = {}
        self._connections = 0
        self._submits_on_used_connection = 0
        self._keys_sent_to_media = 0
        self._rejected_429 = 0
        self.sender.forget()
        if self.server is not None:
            self.server.used.clear()

    @property
    def service(self) -> Service:
        """The service behind it; a `RuntimeError` before `open`."""
        if self._service is None:
            message = "the simulator is not running: use it as `async with Simulator() as kie`"
            raise RuntimeError(message)
        return self._service

    def open(self, base_url: str) -> None:
        """Begin, or begin anew: no tasks, no counts, the script at its beginning."""
        self._service = Service(
            self._settings,
            started_at=self._response_settings.now(),
            started_unix_s=time.time(),
            base_url=base_url,
        )
        self._forget()

    def set_faults(self, faults: Iterable[Fault]) -> None:
        """Put a new script in place of the old one."""
        self._faults = tuple(faults)
        self._script = Script(self._faults, self._chance)

    def state(self) -> SimulatorState:
        """Return everything counted so far."""
        service = self.service
        return SimulatorState(
            now=self._response_settings.now(),
            charges=service.charges,
            charges_by_track=dict(service.charges_by_track),
            arrivals=tuple(service.arrivals),
            polls={task.task_id: task.polls for task in service.tasks.values() if task.polls},
            polls_after_done=service.polls_after_done,
            polls_too_fast=service.polls_too_fast,
            seen_lags_s=tuple(service.seen_lags_s),
            rejected_429=self._rejected_429,
            requests=dict(self._requests),
            connections=self._connections,
            submits_on_used_connection=self._submits_on_used_connection,
            keys_sent_to_media=self._keys_sent_to_media,
            credits=service.credits,
            deliveries=tuple(self.sender.deliveries),
            callbacks=dict(self.sender.outcomes),
        )

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, or end its connection."""
        # The timer goes by the loop; a clock of the user's may have moved since.
        self.sender.look()
        try:
            if request.path.startswith("/__sim__/"):
                return await self._control(request)
            file = _FILE.fullmatch(request.path) if request.method in {"GET", "HEAD"} else None
            on = "media" if file else _ROUTES.get((request.method, request.path))
            self._count(request, on or "unknown")
            if on is None:
                return self._respond(request, Reply(dict(NOT_FOUND), status=404))
            if file is not None:
                return await self._media(request, file[1], file[2])
            return await self._api(request, on)
        except (_GoneError, ConnectionError, web.RequestPayloadError):
            # Nobody is there to read it: aiohttp notices and drops the connection.
            if request.transport is not None:
                request.transport.close()
            return web.Response()

    def _count(self, request: web.BaseRequest, on: str) -> None:
        assert self.server is not None  # noqa: S101 - it is what called us
        self._requests[on] = self._requests.get(on, 0) + 1
        connection = request.protocol
        if connection not in self.server.used:
            self.server.used.add(connection)
            self._connections += 1
        elif on == "submit":
            self._submits_on_used_connection += 1

    async def _api(self, request: web.BaseRequest, on: Endpoint) -> web.StreamResponse:
        call = _Call(request, on)
        if on in {"poll", "music"}:
            call.task_id = request.query.get("taskId")
        if on == "poll" and (known := self.service.tasks.get(call.task_id or "")) is not None:
            call.audio_id = known.audio_id
        body = _decode(await self._arrive(call))
        fields = cast("Payload", body) if isinstance(body, dict) else None
        if on == "submit" and fields is not None:
            call.task_id, call.audio_id = str(fields.get("taskId")), str(fields.get("audioId"))
        await self._judge(call, fields)
        if call.early is not None:
            await asyncio.wait({call.early})
        return await self._answer(call)

    async def _arrive(self, call: _Call) -> bytes:
        """Take the request in, wait as long as it is under way, and return its body."""
        picked = self._pick(call, "arrival")
        ender = _first(picked, ENDERS)
        # Read before the wait: what is on the wire arrives, even if its client has left by
        # then, and aiohttp hands out no body once the connection is lost.
        body = b""
        if ender is None and call.request.method == "POST":
            body = await call.request.read()
        always_s = 0.0 if call.on == "media" else self._response_settings.arrival_delay_s
        if delay_s := self._delay_s(always_s, picked):
            await self._pause(delay_s)
        if ender is not None:
            if call.on == "submit":
                self.service.log(self._response_settings.now(), "dropped")
            await self._end(call.request, ender)
        return body

    async def _judge(self, call: _Call, body: Payload | None) -> None:
        """Put the service's answer, or the script's in its place, into the call."""
        call.at = self._response_settings.now()
        picked = self._pick(call, "before")
        ender = _first(picked, ENDERS)
        if not picked and call.request.headers.get("Authorization") == self._authorization:
            payload = self._carry_out(call, body)
            call.reply = Reply(
                payload, status=self._response_settings.http_status.get(call.verdict, 200)
            )
            return
        if ender is not None:
            call.verdict = "dropped"
        elif picked:
            call.verdict, call.reply = "scripted", replacement(picked[0])
        else:
            call.verdict, call.reply = "unauthorized", Reply(dict(UNAUTHORIZED))
        if call.on == "submit":
            if call.verdict != "unauthorized" and not call.reply.is_429:
                self.service.occupy_window(call.at)
            self.service.log(call.at, call.verdict, body)
        if ender is not None:
            await self._end(call.request, ender)

    async def _answer(self, call: _Call) -> web.StreamResponse:
        """Send the answer, with everything the script does to it."""
        picked = self._pick(call, "after")
        if call.task is not None and all(fault.kind == "slow" for fault in picked):
            self.service.saw_done(call.task, call.at)
        reply = changed(call.reply, picked)
        if call.on == "submit" and reply.is_429:
            self._rejected_429 += 1
        if delay_s := self._delay_s(self._response_settings.answer_delay_s, picked):
            await self._pause(delay_s)
        if ender := _first(picked, ENDERS):
            await self._end(call.request, ender)
        response = self._respond(call.request, reply, truncated=bool(_first(picked, {"truncated"})))
        if cut := _first(picked, {"cut"}):
            return await self._cut(call.request, response, cut.size or 0)
        return response

    def _pick(self, call: _Call, when: When) -> Sequence[Fault]:
        if not self._script.has(call.on, when):
            return ()
        parts = parts_of(call.reply.payload or {}) if when == "after" else frozenset[str]()
        return self._script.pick(
            call.on,
            when,
            task_id=call.task_id,
            audio_id=call.audio_id,
            verdict=call.verdict,
            parts=parts,
        )

    def _carry_out(self, call: _Call, body: Payload | None) -> Payload:
        service = self.service
        match call.on:
            case "submit":
                payload, call.verdict = service.submit(body, call.at, self._conversion_faults)
                if call.verdict == "created":
                    call.early = self._announce(payload)
            case "poll":
                payload, call.task = service.poll(call.task_id, call.at)
            case "music":
                payload = service.music(call.task_id, call.at)
            case "credits":
                payload = service.credit()
            case _:
                payload = service.download_url(body, call.at, secrets.token_hex(16))
        return payload

    def _conversion_faults(
        self, music_task_id: str, audio_id: str, task_id: str
    ) -> Sequence[Fault]:
        del music_task_id
        return self._script.pick("conversion", "before", audio_id=audio_id, task_id=task_id)

    def _announce(self, payload: Payload) -> asyncio.Task[None] | None:
        data = cast("Mapping[str, str]", payload["data"])
        task = self.service.tasks[data["taskId"]]
        return self.sender.announce(
            task, self.service.url_of(task), self._callback_faults, self._own_delay_s
        )

    def _callback_faults(self, task: Task, parts: frozenset[str]) -> Sequence[Fault]:
        return self._script.pick(
            "callback", "after", audio_id=task.audio_id, task_id=task.task_id, parts=parts
        )

    def _own_delay_s(self, fault: Fault) -> float:
        return 0.0 if fault.delay_s is None else draw_s(fault.delay_s, self._chance)

    def _delay_s(self, always_s: Seconds, faults: Sequence[Fault]) -> float:
        delay_s = draw_s(always_s, self._chance)
        for fault in faults:
            if fault.kind == "slow":
                delay_s += self._own_delay_s(fault)
        return delay_s

    async def _pause(self, service_s: float) -> None:
        await asyncio.sleep(service_s / self._settings.time_scale)

    async def _end(self, request: web.BaseRequest, fault: Fault) -> NoReturn:
        """End the connection the way the fault says, and the handler with it."""
        if fault.kind == "stall":
            await self._stall(request, fault)
        transport = request.transport
        if transport is not None:
            if fault.kind == "reset":
                # Zero linger: the peer sees a reset, not an orderly end.
                sock: socket.socket = transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                transport.abort()
            else:
                transport.close()
        raise _GoneError

    async def _stall(self, request: web.BaseRequest, fault: Fault) -> None:
        assert self.server is not None  # noqa: S101 - it is what called us
        if request.transport is None:
            return
        seconds = None if fault.delay_s is None else draw_s(fault.delay_s, self._chance)
        lost = self.server.stalled[request.protocol] = asyncio.Event()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    None if seconds is None else seconds / self._settings.time_scale
                ):
                    await lost.wait()
        finally:
            del self.server.stalled[request.protocol]

    # Answers

    def _respond(
        self, request: web.BaseRequest, reply: Reply, *, truncated: bool = False
    ) -> web.Response:
        self._answers += 1
        gzip = self._response_settings.gzip and "gzip" in request.headers.get("Accept-Encoding", "")
        headers, body = reply.encode(self._answers, gzip=gzip, truncated=truncated)
        response = web.Response(body=body, status=reply.status, headers=headers)
        if self._response_settings.gzip and request.version >= (1, 1):
            response.enable_chunked_encoding()
        return response

    async def _cut(
        self, request: web.BaseRequest, whole: web.Response, size: int
    ) -> web.StreamResponse:
        """Send a head and the first bytes of a body, and hang up."""
        body = cast("bytes", whole.body or b"")
        response = web.StreamResponse(status=whole.status, headers=whole.headers)
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[:size])
        raise _GoneError

    async def _media(self, request: web.BaseRequest, folder: str, name: str) -> web.StreamResponse:
        status, task = self.service.file(folder, name, self._response_settings.now())
        call = _Call(request, "media", task=task)
        if task is not None:
            call.task_id, call.audio_id = task.task_id, task.audio_id
        self._keys_sent_to_media += "Authorization" in request.headers
        await self._arrive(call)
        before, after = self._pick(call, "before"), self._pick(call, "after")
        if delay_s := self._delay_s(0.0, after):
            await self._pause(delay_s)
        if ender := _first((*before, *after), ENDERS):
            await self._end(request, ender)
        if instead := _first((*before, *after), REPLACERS | {"expired"}):
            return self._respond(request, replacement(instead))
        if status != HTTPStatus.OK or task is None:
            return self._respond(request, Reply(status=status, content_type="text/plain"))
        cut = _first(after, {"cut"})
        tone = self.service.tone(task.music_task_id, task.audio_id)
        response = await send_file(
            request,
            tone,
            memoryview(self._tones.get(tone)) if request.method == "GET" else None,
            modified=formatdate(self.service.unix_s(task.done_at), usegmt=True),
            ranges=not _first(before, {"no-ranges"}),
            limit=None if cut is None else cut.size or 0,
        )
        if cut is not None and response.prepared and request.method == "GET":
            raise _GoneError
        return response

    # Control

    async def _control(self, request: web.BaseRequest) -> web.StreamResponse:
        match request.method, request.path:
            case "GET", "/__sim__/state":
                state = self.state()
                if "brief" in request.query:
                    state = attrs.evolve(
                        state, arrivals=(), charges_by_track={}, polls={}, deliveries=()
                    )
                return web.json_response(state.to_json())
            case "POST", "/__sim__/faults":
                faults = _decode(await request.read())
                try:
                    self.set_faults(faults_from_json(faults))
                except ValueError as error:
                    return web.json_response({"error": str(error)}, status=400)
                return web.json_response({"faults": len(self._faults)})
            case "POST", "/__sim__/reset":
                self.open(self.service.base_url)
                return web.json_response({})
            case _:
                return web.json_response({"error": "no such control"}, status=404)
