"""The simulator as its users see it: settings, life, and what was counted."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from types import TracebackType
from typing import Final, Self

from aiohttp import web

from kie_wav_async.simulator.callbacks import (
    CallbackSettings,
    Sender,
)
from kie_wav_async.simulator.connections import Server
from kie_wav_async.simulator.faults import Fault, Seconds, check_seconds
from kie_wav_async.simulator.handler import Handler, ResponseSettings
from kie_wav_async.simulator.service import Settings
from kie_wav_async.simulator.state import Arrival, Delivery, SimulatorState

_DAY_S: Final = 86_400.0
# Twice this long handlers may go on; then those still delayed or stalled are cancelled.
_SHUTDOWN_S: Final = 0.05


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


# By every address: its family, ours, and one of others that nobody has.
_FAMILIES: Final = {
    "0.0.0.0": (socket.AF_INET, "127.0.0.1", "192.0.2.1"),  # noqa: S104 - compared with, not bound
    "::": (socket.AF_INET6, "::1", "2001:db8::1"),
}


def base_url_of(host: str, port: int) -> str:
    """Return the URL of what listens at an address; for every address, of one that others reach."""
    if host in _FAMILIES:
        family, host, outside = _FAMILIES[host]
        # Nothing is sent: it is asked by which address it would be.
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((outside, 9))
            host = str(sock.getsockname()[0])
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _start(site: web.BaseSite) -> None:
    """Start a site; if cancelled, wait until it can be stopped: asyncio listens already."""
    starting = asyncio.ensure_future(site.start())
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait([starting])
        raise


class Simulator:
    """
    A local KIE: submits, records, callbacks, music tasks, credits, links, WAV files.

    Use it as ``async with Simulator() as kie`` and point a client at `base_url` with
    `api_key`. It behaves like the service as documented at docs.kie.ai and as recorded from
    it: failures come as HTTP 200 with the code in the body, submits over the limit are
    answered 429 and create nothing, a repeated track is answered 409 with the id of its task,
    answers are gzipped, chunked and carry the service's headers. What the service does only
    on bad days is scripted with `Fault`.

    Ids and conversion times follow from `seed` and the track alone, so that a run can be
    repeated. Settings are in *service seconds*: with ``time_scale=60`` a median of 60 s, the
    window, delays and retentions all pass 60 times faster. `state()` is in real seconds.

    When a conversion has ended, well or badly, it POSTs the callback to the address that the
    submit gave, byte for byte, query included, and signed with `webhook_key`. An answer other
    than HTTP 200, or none within `callback_timeout_s`, is followed by a retry; redirects are
    not followed. **It calls this machine only**: plain http to 127.0.0.0/8, ``[::1]`` or
    ``localhost``. No other address is ever contacted.

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
        arrival_delay_s: An API request is under way this long before it is judged, even if
            its client leaves meanwhile; a (low, high) range is drawn from.
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
        webhook_key: The key that callbacks are signed with; ``""``: an account without one,
            whose callbacks are not signed. Timestamps are the wall clock's, not scaled.
        callbacks: `False`: none are sent.
        callback_retries_s: When a callback is sent again: so long after the first delivery
            that failed, so long after the second, and so on.
        callback_timeout_s: How long an answer to a callback is waited for. Scaled down to a
            real second at least, because the receiver's own work is not faster.
        host: The address or name of this machine to listen at. At ``0.0.0.0`` or ``::``
            anybody can use it, and `base_url` has the address by which others get here.
        port: The port; 0: any free one.
        now: The clock of conversions, window and retention: seconds that never go back. The
            wall clock is read once, at the start, for `createTime` and the like. Delays are
            waited for on the event loop. Callbacks, late ones and retries too, go out when
            this clock is seen to have passed their moment: it is looked at when the loop's
            own clock says that it should have, and at every request, control requests too.

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
        callbacks: bool = True,
        callback_retries_s: Sequence[float] = (60.0, 300.0, 900.0),
        callback_timeout_s: float = 15.0,
        host: str = "127.0.0.1",
        port: int = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if window is not None and (window[0] < 1 or not 0 < window[1] < float("inf")):
            message = f"window is a count and a number of seconds, got {window!r}"
            raise ValueError(message)
        if not host:  # To asyncio that is every address.
            message = "host must be an address or a name"
            raise ValueError(message)
        sound = check_seconds("wav_s", wav_s)
        settings = Settings(
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
        response_settings = ResponseSettings(
            api_key=api_key,
            arrival_delay_s=check_seconds("arrival_delay_s", arrival_delay_s),
            answer_delay_s=check_seconds("answer_delay_s", answer_delay_s),
            http_status={"limited": window_http_status, "repeated": conflict_http_status},
            gzip=gzip,
            now=now,
        )
        callback_settings = CallbackSettings(
            enabled=callbacks,
            webhook_key=webhook_key,
            retries_s=tuple(_in_order("callback_retries_s", one) for one in callback_retries_s),
            timeout_s=_in_order("callback_timeout_s", callback_timeout_s, above=0),
            time_scale=settings.time_scale,
            now=now,
        )
        self.api_key = api_key
        self.webhook_key = webhook_key
        self._host = host
        self._port = port
        self._handler = Handler(settings, response_settings, Sender(callback_settings), faults)
        self._entered = False
        self._runner: web.ServerRunner | None = None

    async def __aenter__(self) -> Self:
        if self._entered:
            message = "a Simulator is entered once: make a new one"
            raise RuntimeError(message)
        self._entered = True
        self._handler.server = Server(self._handler.handle)
        self._runner = web.ServerRunner(self._handler.server, shutdown_timeout=_SHUTDOWN_S)
        try:
            await self._runner.setup()
            await _start(web.TCPSite(self._runner, self._host, self._port, backlog=4096))
        except BaseException:
            await self.aclose()
            raise
        self._handler.open(base_url_of(*self._runner.addresses[0][:2]))
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
        Stop listening and drop every connection; delayed answers and callbacks are never sent.

        What was counted can still be read. Closing twice does nothing.
        """
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await self._handler.sender.aclose()
            await runner.cleanup()

    def reset(self) -> None:
        """Forget every task and count and start the script from its beginning."""
        self._handler.open(self.base_url)

    def set_faults(self, faults: Iterable[Fault]) -> None:
        """Put a new script in place of the old one; its counts start at zero."""
        self._handler.set_faults(faults)

    @property
    def base_url(self) -> str:
        """The address to point a client at, without a slash at its end."""
        return self._handler.service.base_url

    @property
    def charges(self) -> int:
        """How many tasks were created; each was charged once."""
        return self._handler.service.charges

    @property
    def charges_by_track(self) -> Mapping[tuple[str, str], int]:
        """How often each (music task id, audio id) was charged."""
        return dict(self._handler.service.charges_by_track)

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """Every submit so far, in the order of judgement."""
        return tuple(self._handler.service.arrivals)

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """Every callback sent so far that was answered or not in time."""
        return tuple(self._handler.sender.deliveries)

    def audio_ids(self, music_task_id: str) -> tuple[str, ...]:
        """Return the audio ids of a music task; none if it does not exist."""
        return tuple(self._handler.service.audio_ids(music_task_id))

    def state(self) -> SimulatorState:
        """Return everything counted so far."""
        return self._handler.state()
