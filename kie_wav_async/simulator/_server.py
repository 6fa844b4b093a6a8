"""The HTTP side of the simulator: reads requests, applies the script, answers as recorded."""

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
from decimal import Decimal
from email.utils import formatdate
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, NoReturn, Self, cast

import attrs
from aiohttp import web

from kie_wav_async.simulator._faults import (
    Endpoint,
    Fault,
    Script,
    Seconds,
    When,
    check_seconds,
    draw_s,
    parts_of,
)
from kie_wav_async.simulator._replies import (
    ENDERS,
    NOT_FOUND,
    REPLACERS,
    UNAUTHORIZED,
    Reply,
    changed,
    parse_range,
    replacement,
)
from kie_wav_async.simulator._service import Payload, Service, Settings, Task
from kie_wav_async.simulator._state import Arrival, SimulatorState
from kie_wav_async.simulator._wav import ToneCache

_ROUTES: Final[dict[tuple[str, str], Endpoint]] = {
    ("POST", "/api/v1/wav/generate"): "submit",
    ("GET", "/api/v1/wav/record-info"): "poll",
    ("GET", "/api/v1/generate/record-info"): "music",
    ("POST", "/api/v1/common/download-url"): "download-url",
    ("GET", "/api/v1/chat/credit"): "credits",
}
_FILE: Final = re.compile(r"/([st])/([0-9a-f]{32})\.wav")
_CHUNK: Final = 256 * 1024
_DAY_S: Final = 86_400.0


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


class _Server(web.Server):
    """Tells when a connection is lost, which a stalled handler waits for."""

    def __init__(self, handler: Callable[[web.BaseRequest], Any]) -> None:
        super().__init__(handler, access_log=None, tcp_keepalive=False)
        self.used: set[web.RequestHandler] = set()
        self.stalled: dict[web.RequestHandler, asyncio.Event] = {}

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        self.used.discard(handler)
        if handler in self.stalled:
            self.stalled[handler].set()
        super().connection_lost(handler, exc)


def _decode(raw: bytes) -> object:
    try:
        return cast("object", json.loads(raw))
    except (ValueError, RecursionError):
        return None


def _money(name: str, value: float | Decimal | str) -> Decimal:
    money = Decimal(str(value))
    if not money.is_finite() or money < 0:
        message = f"{name} must be a number of credits, got {value!r}"
        raise ValueError(message)
    return money


def _in_order(name: str, value: float, *, above: float | None = None) -> float:
    if not (value >= 0 if above is None else value > above) or value == float("inf"):
        message = f"{name} is out of range: {value!r}"
        raise ValueError(message)
    return float(value)


def _first(faults: Sequence[Fault], kinds: Collection[str]) -> Fault | None:
    return next((fault for fault in faults if fault.kind in kinds), None)


class Simulator:
    """
    A local KIE on 127.0.0.1: submits, records, music tasks, credits, links and WAV files.

    Use it as ``async with Simulator() as kie`` and point a client at `base_url` with
    `api_key`. It behaves like the service as documented at docs.kie.ai and as recorded from
    it: failures come as HTTP 200 with the code in the body, submits over the limit are
    answered 429 and create nothing, a repeated track is answered 409 with the id of its task,
    answers are gzipped, chunked and carry the service's headers. What the service does only
    on bad days is scripted with `Fault`.

    Ids and conversion times follow from `seed` and the track alone, so that a run can be
    repeated. Settings are in *service seconds*: with ``time_scale=60`` a median of 60 s, the
    window, delays and retentions all pass 60 times faster. `state()` is in real seconds.

    It sends no callbacks; the callback address is kept and shown in the record.

    It answers three control requests, without a key, as long as it runs:
    ``GET /__sim__/state`` (the snapshot as JSON; with ``?brief=1`` without the lists that
    grow with each track), ``POST /__sim__/faults`` (a JSON list of faults, in place of the
    old ones) and ``POST /__sim__/reset``.

    Args:
        median_s: The median conversion time; times are log-normal. 0: at once.
        sigma: Its spread: the standard deviation of the logarithm. 0: always the median.
        seed: Decides ids, conversion times, delays and chances.
        faults: The script; see `Fault`.
        window: At most this many submits in this many seconds; one more is answered 429.
            `None`: no limit. Every submit counts that carried a key and was not itself
            answered 429.
        window_http_status: The HTTP status beside that 429: 429, or 200.
        time_scale: How many service seconds pass in a real one.
        arrival_delay_s: Wait this long before the body of an API request is read; a
            (low, high) range is drawn from.
        answer_delay_s: The same before the answer is sent.
        dedupe: `False`: a repeated track is converted and charged again.
        conflict_id: `False`: a 409 does not name the existing task.
        conflict_http_status: The HTTP status beside a 409: 200, or 409.
        retry_failed: Whether a track whose conversion failed may be submitted again (else 409).
        credits: Credits at the start; with fewer than `price` left a submit is answered 402.
        price: Credits for each task created.
        music: Music tasks with their audio ids. Any other music task has two tracks, whose
            ids follow from its own (`audio_ids`), and any audio id in it can be converted.
        known_only: Only the tracks in `music` exist.
        unknown_music_task_ids: Music tasks that do not exist.
        unknown_audio_ids: Audio ids that do not exist.
        wav_s: The shortest and longest WAV file in seconds of sound (not scaled).
        retention_s: How long files are kept; 14 days.
        gzip: `False`: answers are neither compressed nor chunked, which is faster.
        api_key: The key that is accepted.
        webhook_key: The key callbacks would be signed with.
        port: The port; 0: any free one.
        now: The clock of conversions, window and retention: seconds that never go back. The
            wall clock is read once, at the start, for `createTime` and the like. Delays are
            waited for on the event loop.

    Raises:
        ValueError: a setting is out of range.
        OSError: on entering, the port is taken.
        RuntimeError: it is entered twice, or asked for what is there only while it runs.

    """

    def __init__(
        self,
        *,
        median_s: float = 60.0,
        sigma: float = 0.4,
        seed: int = 0,
        faults: Iterable[Fault] = (),
        window: tuple[int, float] | None = (20, 10.0),
        window_http_status: int = 429,
        time_scale: float = 1.0,
        arrival_delay_s: Seconds = 0.0,
        answer_delay_s: Seconds = 0.0,
        dedupe: bool = True,
        conflict_id: bool = True,
        conflict_http_status: int = 200,
        retry_failed: bool = True,
        credits: float | Decimal | str = "100000.25",  # noqa: A002 - the service's own word
        price: float | Decimal | str = "0.4",
        music: Mapping[str, Sequence[str]] | None = None,
        known_only: bool = False,
        unknown_music_task_ids: Collection[str] = (),
        unknown_audio_ids: Collection[str] = (),
        wav_s: tuple[float, float] = (1.0, 4.0),
        retention_s: float = 14 * _DAY_S,
        gzip: bool = True,
        api_key: str = "sk-kie-simulator",
        webhook_key: str = "simulator-webhook-key",
        port: int = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if window is not None and (window[0] < 1 or not 0 < window[1] < float("inf")):
            message = f"window is a count and a number of seconds, got {window!r}"
            raise ValueError(message)
        sound = check_seconds("wav_s", wav_s)
        self._settings = Settings(
            seed=seed,
            median_s=_in_order("median_s", median_s),
            sigma=_in_order("sigma", sigma),
            time_scale=_in_order("time_scale", time_scale, above=0),
            window=None if window is None else (int(window[0]), float(window[1])),
            dedupe=dedupe,
            conflict_id=conflict_id,
            retry_failed=retry_failed,
            credits=_money("credits", credits),
            price=_money("price", price),
            wav_s=sound if isinstance(sound, tuple) else (sound, sound),
            retention_s=_in_order("retention_s", retention_s),
            music={name: tuple(ids) for name, ids in (music or {}).items()},
            known_only=known_only,
            unknown_music_task_ids=frozenset(unknown_music_task_ids),
            unknown_audio_ids=frozenset(unknown_audio_ids),
        )
        self.api_key = api_key
        self.webhook_key = webhook_key
        self._authorization = f"Bearer {api_key}"
        self._arrival_delay_s = check_seconds("arrival_delay_s", arrival_delay_s)
        self._answer_delay_s = check_seconds("answer_delay_s", answer_delay_s)
        self._http_status = {"limited": window_http_status, "repeated": conflict_http_status}
        self._gzip = gzip
        self._port = port
        self._now = now
        self._faults = tuple(faults)
        self._tones = ToneCache()
        self._base_url = ""
        self._service: Service | None = None
        self._server: _Server | None = None
        self._runner: web.ServerRunner | None = None
        self._closing = asyncio.Event()
        self._answers = secrets.randbits(60)
        self._forget()

    def _forget(self) -> None:
        self._chance = random.Random(self._settings.seed)  # noqa: S311 - repeatable, guards nothing
        self._script = Script(self._faults, self._chance)
        self._requests: dict[str, int] = {}
        self._connections = 0
        self._submits_on_used_connection = 0
        self._keys_sent_to_media = 0
        self._rejected_429 = 0
        if self._server is not None:
            self._server.used.clear()

    # Life

    async def __aenter__(self) -> Self:
        if self._runner is not None or self._closing.is_set():
            message = "a Simulator is entered once: make a new one"
            raise RuntimeError(message)
        self._server = _Server(self._handle)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=1.0)
        try:
            await self._runner.setup()
            await web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=4096).start()
        except BaseException:
            await self.aclose()
            raise
        self._base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self.reset()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """
        Stop listening and drop every connection; delayed and stalled answers are never sent.

        What was counted can still be read. Closing twice does nothing.
        """
        self._closing.set()
        if self._server is not None:
            for event in self._server.stalled.values():
                event.set()
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    def reset(self) -> None:
        """
        Forget every task and count and start the script from its beginning.

        Raises:
            RuntimeError: it was never entered.

        """
        self._service = Service(
            self._settings,
            started_at=self._now(),
            started_unix_s=time.time(),
            base_url=self.base_url,
        )
        self._forget()

    def set_faults(self, faults: Iterable[Fault]) -> None:
        """Put a new script in place of the old one; its counts start at zero."""
        self._faults = tuple(faults)
        self._script = Script(self._faults, self._chance)

    # What users look at

    @property
    def _account(self) -> Service:
        if self._service is None:
            message = "the simulator is not running: use it as `async with Simulator() as kie`"
            raise RuntimeError(message)
        return self._service

    @property
    def base_url(self) -> str:
        """The address to point a client at; a `RuntimeError` before it was entered."""
        if not self._base_url:
            _ = self._account
        return self._base_url

    @property
    def charges(self) -> int:
        """How many tasks were created; each was charged once."""
        return self._account.charges

    @property
    def charges_by_track(self) -> Mapping[tuple[str, str], int]:
        """How often each (music task id, audio id) was charged."""
        return dict(self._account.charges_by_track)

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """Every submit so far, in the order of judgement."""
        return tuple(self._account.arrivals)

    def audio_ids(self, music_task_id: str) -> tuple[str, ...]:
        """Return the audio ids of a music task; none if it does not exist."""
        return tuple(self._account.audio_ids(music_task_id))

    def state(self) -> SimulatorState:
        """Return everything counted so far."""
        account = self._account
        return SimulatorState(
            now=self._now(),
            charges=account.charges,
            charges_by_track=self.charges_by_track,
            arrivals=self.arrivals,
            polls={task.task_id: task.polls for task in account.tasks.values() if task.polls},
            polls_after_done=account.polls_after_done,
            polls_too_fast=account.polls_too_fast,
            seen_lags_s=tuple(account.seen_lags_s),
            rejected_429=self._rejected_429,
            requests=dict(self._requests),
            connections=self._connections,
            submits_on_used_connection=self._submits_on_used_connection,
            keys_sent_to_media=self._keys_sent_to_media,
            credits=account.credits,
        )

    # One request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
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
        assert self._server is not None  # noqa: S101 - it is what called us
        self._requests[on] = self._requests.get(on, 0) + 1
        connection = request.protocol
        if connection not in self._server.used:
            self._server.used.add(connection)
            self._connections += 1
        elif on == "submit":
            self._submits_on_used_connection += 1

    async def _api(self, request: web.BaseRequest, on: Endpoint) -> web.StreamResponse:
        call = _Call(request, on)
        if on in {"poll", "music"}:
            call.task_id = request.query.get("taskId")
        if on == "poll" and (known := self._account.tasks.get(call.task_id or "")) is not None:
            call.audio_id = known.audio_id
        await self._arrive(call)
        # A request that came in whole is judged even if its client has left by now: what is
        # on the wire arrives.
        body = _decode(await request.read()) if request.method == "POST" else None
        fields = cast("Payload", body) if isinstance(body, dict) else None
        if on == "submit" and fields is not None:
            call.task_id, call.audio_id = str(fields.get("taskId")), str(fields.get("audioId"))
        await self._judge(call, fields)
        return await self._answer(call)

    async def _arrive(self, call: _Call) -> None:
        """Wait as long as the request is under way."""
        picked = self._pick(call, "arrival")
        always_s = 0.0 if call.on == "media" else self._arrival_delay_s
        if delay_s := self._delay_s(always_s, picked):
            await self._pause(delay_s)
        if ender := _first(picked, ENDERS):
            if call.on == "submit":
                self._account.log(self._now(), "dropped")
            await self._end(call.request, ender)

    async def _judge(self, call: _Call, body: Payload | None) -> None:
        """Put the service's answer, or the script's in its place, into the call."""
        call.at = self._now()
        picked = self._pick(call, "before")
        ender = _first(picked, ENDERS)
        if not picked and call.request.headers.get("Authorization") == self._authorization:
            payload = self._carry_out(call, body)
            call.reply = Reply(payload, status=self._http_status.get(call.verdict, 200))
            return
        if ender is not None:
            call.verdict = "dropped"
        elif picked:
            call.verdict, call.reply = "scripted", replacement(picked[0])
        else:
            call.verdict, call.reply = "unauthorized", Reply(dict(UNAUTHORIZED))
        if call.on == "submit":
            if call.verdict != "unauthorized" and not call.reply.is_429:
                self._account.occupy_window(call.at)
            self._account.log(call.at, call.verdict, body)
        if ender is not None:
            await self._end(call.request, ender)

    async def _answer(self, call: _Call) -> web.StreamResponse:
        """Send the answer, with everything the script does to it."""
        picked = self._pick(call, "after")
        if call.task is not None and all(fault.kind == "slow" for fault in picked):
            self._account.saw_done(call.task, call.at)
        reply = changed(call.reply, picked)
        if call.on == "submit" and reply.is_429:
            self._rejected_429 += 1
        if delay_s := self._delay_s(self._answer_delay_s, picked):
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
        account = self._account
        match call.on:
            case "submit":
                payload, call.verdict = account.submit(body, call.at, self._conversion_faults)
            case "poll":
                payload, call.task = account.poll(call.task_id, call.at)
            case "music":
                payload = account.music(call.task_id, call.at)
            case "credits":
                payload = account.credit()
            case _:
                payload = account.download_url(body, call.at, secrets.token_hex(16))
        return payload

    def _conversion_faults(
        self, music_task_id: str, audio_id: str, task_id: str
    ) -> Sequence[Fault]:
        del music_task_id
        return self._script.pick("conversion", "before", audio_id=audio_id, task_id=task_id)

    def _delay_s(self, always_s: Seconds, faults: Sequence[Fault]) -> float:
        delay_s = draw_s(always_s, self._chance)
        for fault in faults:
            if fault.kind == "slow" and fault.delay_s is not None:
                delay_s += draw_s(fault.delay_s, self._chance)
        return delay_s

    async def _pause(self, service_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(service_s / self._settings.time_scale):
                await self._closing.wait()
                raise _GoneError

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
        assert self._server is not None  # noqa: S101 - it is what called us
        if request.transport is None or self._closing.is_set():
            return
        seconds = None if fault.delay_s is None else draw_s(fault.delay_s, self._chance)
        lost = self._server.stalled[request.protocol] = asyncio.Event()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    None if seconds is None else seconds / self._settings.time_scale
                ):
                    await lost.wait()
        finally:
            del self._server.stalled[request.protocol]

    # Answers

    def _respond(
        self, request: web.BaseRequest, reply: Reply, *, truncated: bool = False
    ) -> web.Response:
        self._answers += 1
        gzip = self._gzip and "gzip" in request.headers.get("Accept-Encoding", "")
        headers, body = reply.encode(self._answers, gzip=gzip, truncated=truncated)
        response = web.Response(body=body, status=reply.status, headers=headers)
        if self._gzip and request.version >= (1, 1):
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
        account = self._account
        status, task = account.file(folder, name, self._now())
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
        return await self._send_file(
            request,
            task,
            ranges=not _first(before, {"no-ranges"}),
            limit=None if cut is None else cut.size or 0,
        )

    async def _send_file(
        self, request: web.BaseRequest, task: Task, *, ranges: bool, limit: int | None
    ) -> web.StreamResponse:
        """Send a file or one range of it; hang up after `limit` bytes of the body."""
        account = self._account
        tone = account.tone(task.music_task_id, task.audio_id)
        modified = formatdate(account.unix_s(task.done_at), usegmt=True)
        headers = {
            "Content-Type": "audio/wav",
            "ETag": tone.etag,
            "Last-Modified": modified,
            "Server": "cloudflare",
        }
        first, last, status = 0, tone.size - 1, HTTPStatus.OK
        if ranges:
            headers["Accept-Ranges"] = "bytes"
            if request.headers.get("If-Range", tone.etag) in {tone.etag, modified}:
                first, last, status = parse_range(request.headers.get("Range"), tone.size)
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            headers["Content-Range"] = f"bytes */{tone.size}"
            return web.Response(status=status, headers=headers)
        if status == HTTPStatus.PARTIAL_CONTENT:
            headers["Content-Range"] = f"bytes {first}-{last}/{tone.size}"
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = last - first + 1
        await response.prepare(request)
        if request.method == "GET":
            end = last + 1 if limit is None else min(last + 1, first + limit)
            file = memoryview(self._tones.get(tone))
            for start in range(first, end, _CHUNK):
                await response.write(file[start : min(start + _CHUNK, end)])
            if limit is not None:
                raise _GoneError
        return response

    # Control

    async def _control(self, request: web.BaseRequest) -> web.StreamResponse:
        match request.method, request.path:
            case "GET", "/__sim__/state":
                state = self.state()
                if "brief" in request.query:
                    state = attrs.evolve(state, arrivals=(), charges_by_track={}, polls={})
                return web.json_response(state.to_json())
            case "POST", "/__sim__/faults":
                faults = _decode(await request.read())
                try:
                    self.set_faults(faults_from_json(faults))
                except ValueError as error:
                    return web.json_response({"error": str(error)}, status=400)
                return web.json_response({"faults": len(self._faults)})
            case "POST", "/__sim__/reset":
                self.reset()
                return web.json_response({})
            case _:
                return web.json_response({"error": "no such control"}, status=404)


def faults_from_json(value: object) -> tuple[Fault, ...]:
    """
    Build a script from a JSON list of objects; see `Fault.from_json`.

    Raises:
        ValueError: it is not a list, or one of them is no fault.

    """
    if not isinstance(value, list):
        message = f"a script is a JSON list of faults, got {value!r}"
        raise ValueError(message)  # noqa: TRY004 - bad text from outside, not a wrong call
    return tuple(Fault.from_json(one) for one in cast("list[object]", value))
