"""
The session: what users call, and what puts the parts together.

It decides nothing about submits, polls or batches; `core` does. It checks
arguments, reads the environment, opens and closes.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import warnings
from typing import TYPE_CHECKING, Final, Self, TypeVar

from kie_wav_async._support.clock import Clock, SystemClock
from kie_wav_async._support.secret import Secret
from kie_wav_async._support.tasks import start
from kie_wav_async._support.validation import verify_count, verify_id, verify_number, verify_type
from kie_wav_async.callbacks.callback_url import PLACEHOLDER_CALLBACK_URL
from kie_wav_async.core.policies import PollSchedule, RateLimit, RetryPolicy
from kie_wav_async.core.session_core import SessionCore
from kie_wav_async.core.settings import CoreSettings
from kie_wav_async.core.track_states import TrackState
from kie_wav_async.downloads.file_client import FileClient
from kie_wav_async.errors import KieWavError, SessionClosedError
from kie_wav_async.http.connection_settings import ConnectionSettings
from kie_wav_async.http.transport import AiohttpTransport, Transport
from kie_wav_async.ledger.base import Ledger
from kie_wav_async.models import (
    CallbackResult,
    CallbackTrust,
    Download,
    OnUnknown,
    Statistics,
    TaskRecord,
    Track,
    UnknownSubmit,
    WavFile,
)
from kie_wav_async.protocol.api_constants import KIE_WAV
from kie_wav_async.protocol.requests import RequestBuilder
from kie_wav_async.protocol.responses import (
    parse_credits,
    parse_download_url,
    parse_record,
    parse_renewal,
    parse_tracks,
)
from kie_wav_async.protocol.urls import parse_url
from kie_wav_async.protocol.user_settings import parse_hosts
from kie_wav_async.session.batch import Batch
from kie_wav_async.session.callback_processor import CallbackProcessor
from kie_wav_async.session.context import CLOSE_TIMEOUT_S, SessionContext
from kie_wav_async.session.conversion import handle_of, wait_for, wait_for_submit
from kie_wav_async.session.download_manager import DownloadManager
from kie_wav_async.session.loop import SessionLoop
from kie_wav_async.session.read_client import ReadClient
from kie_wav_async.session.settings import (
    read_api_key,
    read_base_url,
    read_callback_url,
    read_insecure_hosts,
    read_webhook_keys,
)
from kie_wav_async.session.submit_coordinator import SubmitCoordinator

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable
    from decimal import Decimal
    from types import TracebackType

    from yarl import URL

    from kie_wav_async import events
    from kie_wav_async.callbacks.signature import Headers
    from kie_wav_async.core.state_machine import TaskEntry
    from kie_wav_async.protocol.responses import NoLink
    from kie_wav_async.session.conversion import Conversion

_logger = logging.getLogger("kie_wav_async")

T = TypeVar("T")


#: Source: docs.kie.ai, "Getting Started with KIE API".
DEFAULT_RATE_LIMIT: Final = RateLimit(KIE_WAV.submits, per_s=KIE_WAV.submits_per_s)

DEFAULT_POLL: Final = PollSchedule()
DEFAULT_RETRY: Final = RetryPolicy()

#: How many ids the warning at closing spells out; conversions() has them all.
_MAX_NAMED: Final = 100


class WavSession:
    """
    Converts tracks to WAV: submits, follows, and settles what you await.

    ::

        async with WavSession() as session:
            wav = await session.convert(Track("5c79", "e231"))

    A session belongs to the event loop it is entered in, and serves once. Two
    sessions share no limits, so have one per account and process.

    Args:
        api_key: The API key; `None`: ``KIE_API_KEY`` of the environment.

        base_url:
            Where the service is; `None`: ``KIE_BASE_URL``, else
            ``https://api.kie.ai``. https, unless the host is loopback or in
            *insecure_hosts*; no userinfo, query or fragment.

        callback_url:
            Where the service posts results, an absolute http(s) URL that leads
            to `handle_callback`; `None`: ``KIE_CALLBACK_URL``, else polling only; ``""``:
            polling only, whatever the environment says. Its query is kept, and
            each submit adds ``attempt=<32 hex>``. No userinfo, no fragment. With
            polling only the service is given a placeholder that leads nowhere.

        webhook_keys:
            The account's webhook HMAC key, or several while one replaces another;
            each 16 characters or more. `None`: ``KIE_WEBHOOK_HMAC_KEY``, comma
            separated; ``()``: none. Without a key no callback is authentic: it
            may cause a poll of a task we know, and nothing else.

        callback_trust: How much of an authentic callback is believed.

        rate_limit: New submits, as a true sliding window.

        max_in_flight:
            Most conversions submitted and not terminal; 1 or more. 400 is 2
            submits per second for 2 minutes and the lag of polling, rounded up.

        poll: When conversions in flight are polled.

        retry:
            How reads are repeated, and submits that provably created nothing. A
            submit of unknown outcome is never repeated by it.

        on_unknown:
            What to do with a submit of unknown outcome. After 5 of them in a row new
            submits pause: one at a time is tried, each after a free read that was
            answered, 1 minute apart, then 2, 4, 8 and 15, until a submit gets a body
            with a code other than 408 and 5xx. Repeats wait and count too. With a
            ledger whose last 5 submits are unknown the session begins so.

        timeout_s:
            Acceptance to result, per conversion, in seconds, above 0; `None` for
            no limit. After it the wait ends with `ConversionTimeoutError`, and the
            task is no longer polled. It stays known for 14 days, the last 100,000
            such tasks: a callback still settles it, and asking for the track again,
            or `attach`, waits for it again, with a new timeout and no new charge.

        max_charges:
            Most submits accepted or unknown in this session, or ever in its
            *ledger* if it has one; 1 or more. At the limit a submit raises
            `ChargeLimitError`. `None` for no limit.

        ledger:
            A durable journal, as `kie_wav_async.ledger` has one; `None` for none.
            It is opened and closed with the session, and one that is open already
            stays open. With it no track is paid again, however long ago it was
            converted, and `recover` goes on with what an earlier run left.

        on_event:
            Called on the loop with one value of `kie_wav_async.events` for each
            thing that happened. What it raises is logged and swallowed.

        insecure_hosts:
            Hosts from which plain http and addresses that are not public are
            accepted: a simulator, an internal mirror; names or IP literals, without
            scheme or port. `None`: ``KIE_INSECURE_HOSTS``, comma separated, else
            none. Nothing else relaxes this, but the service itself may be at a
            loopback address.

        download_hosts:
            If there are any, WAV files are fetched from these hosts only,
            redirects included; names or IP literals, without scheme or port.

        transport:
            How requests are sent; `None`: an `AiohttpTransport`. It belongs to
            the session and is closed with it. Files are fetched by its proxy and
            certificates, if it is an `AiohttpTransport`; else directly.

        clock: The source of time and sleep; `None`: the system's.

    Raises:
        TypeError: An argument has the wrong type.

        ValueError: An argument is out of range, or there is no API key.

    Sources: docs.kie.ai, "Convert to WAV", "Convert to WAV Callbacks", "Webhook
    Security Verification" and "Getting Started with KIE API".
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | URL | None = None,
        callback_url: str | URL | None = None,
        webhook_keys: str | Iterable[str] | None = None,
        callback_trust: CallbackTrust = CallbackTrust.PAYLOAD,
        rate_limit: RateLimit = DEFAULT_RATE_LIMIT,
        max_in_flight: int = 400,
        poll: PollSchedule = DEFAULT_POLL,
        retry: RetryPolicy = DEFAULT_RETRY,
        on_unknown: OnUnknown = OnUnknown.RAISE,
        timeout_s: float | None = 900.0,
        max_charges: int | None = None,
        ledger: Ledger | None = None,
        on_event: Callable[[events.Event], object] | None = None,
        insecure_hosts: Iterable[str] | None = None,
        download_hosts: Iterable[str] = (),
        transport: Transport | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Check everything; nothing is opened yet."""
        # First of all, so that no error below has one of them in this frame.
        key = Secret(os.environ.get("KIE_API_KEY") if api_key is None else api_key)
        given_keys = Secret(webhook_keys)
        address = Secret(base_url)
        posted_to = Secret(callback_url)
        del api_key, webhook_keys, base_url, callback_url
        verify_count(max_in_flight, "max_in_flight")
        if max_charges is not None:
            verify_count(max_charges, "max_charges")
        if timeout_s is not None:
            verify_number(timeout_s, "timeout_s", above=0)
        verify_type(rate_limit, RateLimit, "rate_limit")
        verify_type(poll, PollSchedule, "poll")
        verify_type(retry, RetryPolicy, "retry")
        clock = SystemClock() if clock is None else clock
        _verify_part(clock, Clock, "clock")
        transport = AiohttpTransport() if transport is None else transport
        _verify_part(transport, Transport, "transport")
        if ledger is not None:
            _verify_part(ledger, Ledger, "ledger")
        handler: object = on_event
        if handler is not None and not callable(handler):
            msg = "on_event must be callable"
            raise TypeError(msg)
        if any(map(inspect.iscoroutinefunction, (handler, type(handler).__call__))):
            msg = "on_event is called, not awaited: pass a plain function"
            raise TypeError(msg)
        hosts = read_insecure_hosts(insecure_hosts)
        allowed = parse_hosts(download_hosts, "download_hosts")
        secret = Secret(key.parse(read_api_key))
        self._base_url = address.parse(lambda given: read_base_url(given, hosts))
        called_back_at = posted_to.parse(read_callback_url)
        parsed = Secret(given_keys.parse(read_webhook_keys))
        keys = parsed if parsed.reveal() else None
        self._lacks_keys = called_back_at is not None and keys is None
        self._context = SessionContext(
            clock=clock,
            transport=transport,
            requests=RequestBuilder(self._base_url, secret),
            api_key=secret,
            callback_url=called_back_at or PLACEHOLDER_CALLBACK_URL,
            on_event=on_event,
            ledger=ledger,
        )
        context = self._context
        self._core = SessionCore(
            CoreSettings(
                rate_limit=rate_limit,
                max_in_flight=max_in_flight,
                max_charges=max_charges,
                poll=poll,
                retry=retry,
                on_unknown=OnUnknown(on_unknown),
                timeout_s=timeout_s,
                callback_url=context.callback_url,
                has_ledger=ledger is not None,
                has_listener=on_event is not None,
            ),
            context,
        )
        self._loop = SessionLoop(context, self._core)
        self._coordinator = SubmitCoordinator(self._loop)
        self._callbacks = CallbackProcessor(
            self._loop,
            keys=keys,
            trust=CallbackTrust(callback_trust),
            insecure_hosts=hosts,
            download_hosts=allowed,
        )
        self._reads = ReadClient(context, self._core.registry.counters, retry)
        file_client = FileClient(
            transport.network if isinstance(transport, AiohttpTransport) else ConnectionSettings(),
            insecure_hosts=hosts,
            download_hosts=allowed,
        )
        self._downloads = DownloadManager(self._context, file_client, self._renew, self.get_task)
        self._max_in_flight = max_in_flight
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        """Name the address and the state, never the key."""
        context: SessionContext | None = getattr(self, "_context", None)
        if context is None:  # The constructor raised.
            return "<WavSession not constructed>"
        if context.state.loop is None:
            state = "not entered"
        else:
            state = "open" if context.state.closed is None else "closed"
        return f"<WavSession {self._base_url} {state}>"

    # --- opening and closing --------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """
        Open the session in the running loop.

        Raises:
            RuntimeError: It was entered before.

            LedgerError: Its ledger cannot be opened.
        """
        if self._context.state.loop is not None:
            msg = "a session serves once: make a new one for another `async with`"
            raise RuntimeError(msg)
        self._context.state.loop = asyncio.get_running_loop()
        try:
            opening = await self._context.ledger_writer.open()
        except BaseException:
            self._context.state.loop = None
            raise
        if opening is not None:
            self._loop.tell(
                self._core.restore,
                accepted=opening.accepted,
                unknown=opening.unknown,
                ended_unix_s=opening.ended_unix_s,
                hosts=opening.hosts,
                callback_tasks=opening.callback_tasks,
            )
        if self._lacks_keys:
            _logger.warning(
                "callbacks are asked for, but without a webhook key none can be verified: each "
                "will only cause a poll. Generate a key in KIE's settings and pass webhook_keys "
                "(KIE_WEBHOOK_HMAC_KEY)"
            )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the session, whatever the reason for leaving."""
        await self.aclose()

    async def aclose(self) -> None:
        """
        End all waits at once, stop submitting, and close.

        Waiters get `SessionClosedError`. Submits in progress get up to 25 s for
        their answer; after that their outcome is unknown. What is left open is named
        in one warning, and `conversions` and `unknown_submits` still tell it.
        Closing twice, or a session never entered, does nothing. A cancelled call
        leaves the closing to go on by itself.

        Raises:
            RuntimeError: Called from another loop than the session's.
        """
        if self._context.state.loop is None:
            return
        _ = self._context.state.verify_loop()
        if self._closing is None:
            self._closing = start(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        session_state, registry = self._context.state, self._core.registry
        task_ids = tuple(conversion.task_id for conversion in registry.in_flight())
        session_state.closed = SessionClosedError(open_task_ids=task_ids)
        until = self._context.clock.monotonic() + CLOSE_TIMEOUT_S
        self._loop.close(session_state.closed)
        self._context.ledger_writer.close(session_state.closed)
        reads, downloads = self._reads.in_progress, self._downloads.in_progress
        self._reads.close()
        self._downloads.close()
        for listener in tuple(session_state.close_listeners):
            listener()
        try:
            await self._loop.drain()
        finally:
            await self._context.cancel_tasks()
            await self._context.stop(*reads)
            # Not cancelled twice at once: what has come of a file is still to be synced.
            await self._context.finish(*downloads, until_mono_s=until)
            await self._context.finish_writing(until)
            self._warn_of_open()
            try:
                await self._downloads.aclose()
                await self._context.transport.aclose()
            finally:
                await self._context.close_ledger(until)

    def _warn_of_open(self) -> None:
        task_ids = [conversion.task_id for conversion in self.conversions()]
        attempt_ids = [unknown.attempt_id for unknown in self.unknown_submits()]
        if task_ids or attempt_ids:
            _logger.warning(
                "the session closed with %d open tasks (%s) and %d unknown submits (%s)",
                len(task_ids),
                _named(task_ids),
                len(attempt_ids),
                _named(attempt_ids),
            )

    def __del__(self) -> None:
        """Complain about a session that was entered and never closed."""
        # Not all attributes are there if the constructor raised.
        context: SessionContext | None = getattr(self, "_context", None)
        if context is not None and context.state.loop is not None and self._closing is None:
            msg = f"{self!r} was never closed: use `async with` or await aclose()"
            warnings.warn(msg, ResourceWarning, source=self, stacklevel=1)

    # --- converting ---------------------------------------------------------------------------

    async def submit(self, track: Track, *, again: bool = False) -> Conversion:
        """
        Submit a track and return its conversion once the service has taken it.

        Waits for its turn under ``rate_limit`` and ``max_in_flight``. Nothing is
        sent for a track in flight, whose conversion is returned, nor for one of
        the last 10,000 results, which is returned settled, nor for one whose wait
        timed out, which is waited for again in a new conversion, nor for one whose
        submit is unknown, which raises again. Only successes are remembered: a
        track that failed is sent again. A submit that is still queued is cancelled
        when its last waiter is: nothing was sent. One in progress is finished by
        the session, and its conversion goes on.

        Args:
            track: What to convert.

            again:
                Your word to submit once more all the same: a settled track, one
                whose wait timed out, or one whose submit is unknown, at the risk of
                a second charge.

        Raises:
            SubmitUnknownError: It may or may not have been accepted.

            ChargeLimitError: ``max_charges`` is reached; nothing was sent.

            ServiceError: The service refused; nothing was created.

            TransportError: The submit provably created nothing.

            LedgerError:
                The ledger failed: with a ``task_id`` the service has taken the
                submit, without one nothing was sent.

            SessionClosedError: The session was closed.

            TypeError: *track* is no `Track`.

            ValueError: *again* for a track in flight.
        """
        conversion = await self._take(track, again=again)
        await wait_for_submit(conversion, self._loop)
        return handle_of(conversion, self._loop)

    async def _take(self, track: Track, *, again: bool) -> TaskEntry:
        if self._context.ledger_writer.is_enabled:
            self._context.state.verify_open()
            verify_type(track, Track, "track")
            await self._coordinator.load_from_ledger(track, again=again)
        return self._coordinator.get_or_enqueue(track, again=again)

    async def convert(self, track: Track, *, again: bool = False) -> WavFile:
        """
        Submit a track, wait for its conversion, and return the file.

        Cancelling the call ends this wait only; the conversion goes on, and the next
        call for the track joins it. But a submit that is still queued is cancelled
        with its last waiter, as in `submit`: nothing was sent.

        Args:
            track: What to convert.

            again: As for `submit`.

        Raises:
            ConversionFailedError: The conversion ended badly.

            ConversionTimeoutError: It took longer than ``timeout_s``.

            KieWavError: What `submit` raises.
        """
        return await wait_for(await self._take(track, again=again), self._loop)

    def convert_all(self, tracks: Iterable[Track] | AsyncIterable[Track]) -> Batch:
        """
        Convert a catalog: return its outcomes as an async iterator.

        Args:
            tracks: Any iterable or async iterable; read as there is room.

        Raises:
            TypeError: *tracks* is neither.

            SessionClosedError: The session was closed.
        """
        self._context.state.verify_open()
        return Batch(tracks, self._loop, self._coordinator, self._max_in_flight)

    def attach(self, task_id: str, *, track: Track | None = None) -> Conversion:
        """
        Follow a task submitted earlier or elsewhere.

        A task already followed gives its conversion; one whose wait timed out is
        waited for again in a new one, with a new ``timeout_s``. For a submit of unknown
        outcome whose task you have found, use `resolve_unknown`.

        Args:
            task_id: The conversion task.

            track: What it converts, to be found in the result; `None` if unknown.

        Raises:
            TypeError: An argument has the wrong type.

            ValueError: *task_id* cannot be an id, or is followed for another track.

            SessionClosedError: The session was closed.
        """
        self._context.state.verify_open()
        verify_id(task_id, "task_id")
        if track is not None:
            verify_type(track, Track, "track")
        known = self._core.registry.known(task_id)
        if known and track is not None and known[0].track not in {None, track}:
            msg = f"task {task_id} is followed for another track, {known[0].track}"
            raise ValueError(msg)
        return handle_of(self._loop.ask(self._core.attach, task_id, track), self._loop)

    async def recover(self) -> tuple[Conversion, ...]:
        """
        Follow every task again that the ledger has as open; return their conversions.

        Await them, or leave them be: the ledger learns how they end either way.
        Their first polls are spread over one interval of the schedule, and
        ``timeout_s`` counts anew. Submits of unknown outcome are in `unknown_submits`.

        Raises:
            RuntimeError: The session has no ledger.

            LedgerError: It cannot be read.

            SessionClosedError: The session was closed.
        """
        self._context.state.verify_open()
        if not self._context.ledger_writer.is_enabled:
            msg = "the session has no ledger to recover from: pass ledger=..."
            raise RuntimeError(msg)
        conversions: list[TaskEntry] = []
        after = 0
        while page := await self._context.ledger_writer.list_entries(TrackState.ACCEPTED, after):
            self._context.state.verify_open()
            conversions += [
                self._coordinator.restore(entry)
                for entry in page
                if not self._coordinator.is_stale(entry)
            ]
            after = page[-1].index
        return tuple(handle_of(conversion, self._loop) for conversion in conversions)

    # --- callbacks ------------------------------------------------------------------------

    async def handle_callback(
        self, headers: Headers, body: bytes, *, query: str | bytes = ""
    ) -> CallbackResult:
        """
        Take one callback, from whatever framework received it.

        Answer 200 whatever it returns: a duplicate or an unknown task is not the
        service's fault. `kie_wav_async.webhook` has routes that do all of this.

        Args:
            headers: All headers of the request: a mapping or pairs, of text or of
                bytes, whatever the case of the names.

            body: The body as received, 64 KiB at most.

            query: The raw query string of the request's URL, without its ``?``;
                it names the attempt. Without it every callback is a hint.

        Raises:
            SignatureError: Forged, malformed or stale: answer 401, without a body.

            CallbackFormatError: The body cannot be read: answer 400.

            SessionClosedError: The session was closed: answer 503.

            LedgerError: What it says could not be written down: answer 503.

            TypeError: An argument has the wrong type.

            RuntimeError: Called from another loop than the session's.

        Sources: docs.kie.ai, "Convert to WAV Callbacks" and "Webhook Security
        Verification".
        """
        self._context.state.verify_open()
        return await self._callbacks.handle(headers, body, query)

    # --- looking at what there is -----------------------------------------------------------------

    def conversions(self) -> tuple[Conversion, ...]:
        """Return every conversion with a task that is not terminal; also after closing."""
        return tuple(handle_of(entry, self._loop) for entry in self._core.registry.in_flight())

    def unknown_submits(self) -> tuple[UnknownSubmit, ...]:
        """Return every submit of unknown outcome, oldest first; also after closing."""
        return self._core.registry.unknown_submits()

    def statistics(self) -> Statistics:
        """Return the counters as they are now; also after closing."""
        return self._core.registry.statistics()

    async def resolve_unknown(
        self, attempt_id: str, *, task_id: str | None = None, not_charged: bool = False
    ) -> None:
        """
        Tell what became of a submit of unknown outcome.

        A word that was wrong is corrected by another call with the right one, for the
        last 10,000 words of this session: what follows the wrong task follows the
        right one then, and a result of the wrong task is forgotten. A file that you
        have saved of it is yours to remove. Words of earlier runs are corrected by
        ``kie-wav resolve``.

        Args:
            attempt_id: As in `unknown_submits` and `SubmitUnknownError`.

            task_id: The task it created, which is followed from now on.

            not_charged: It created nothing: the track may be submitted again.

        Raises:
            ValueError:
                No submit that is unknown, or was resolved by an earlier call, has
                that *attempt_id*; not exactly one of
                *task_id* and *not_charged* is given; or the task is followed for
                another track.

            LedgerError: It could not be written down; nothing has changed.

            SessionClosedError: The session was closed.
        """
        self._context.state.verify_open()
        if (task_id is None) is not not_charged:
            msg = "say either task_id=... or not_charged=True"
            raise ValueError(msg)
        if task_id is not None:
            verify_id(task_id, "task_id")
        registry = self._core.registry
        unknown = registry.unknown_submit(attempt_id) or registry.resolved_submit(attempt_id)
        if unknown is None:
            msg = f"no unknown submit has the attempt_id {attempt_id!r}"
            raise ValueError(msg)
        for known in () if task_id is None else registry.known(task_id):
            if known.track not in {None, unknown.track}:
                msg = f"task {task_id} is followed for another track, {known.track}"
                raise ValueError(msg)
        adoption = self._apply_resolution(unknown, task_id)
        if self._context.ledger_writer.is_enabled:
            adoption = self._context.ledger_writer.shield(adoption)
        await adoption

    async def _apply_resolution(self, submit: UnknownSubmit, task_id: str | None) -> None:
        # False: the service has answered for it meanwhile.
        if await self._context.ledger_writer.resolve(submit.attempt_id, task_id):
            self._loop.tell(self._core.apply_resolution, submit, task_id)

    # --- reads --------------------------------------------------------------------------------

    async def get_task(self, task_id: str) -> TaskRecord | None:
        """
        Poll a task once and return its record; `None` if the service has none.

        Raises:
            KieWavError: No record could be read, repeats included.

            TypeError: *task_id* is no `str`.

            ValueError: *task_id* cannot be an id.
        """
        verify_id(task_id, "task_id")
        try:
            return await self._reads.read(
                self._context.requests.poll(task_id),
                lambda answer: parse_record(answer, task_id),
                is_poll=True,
            )
        except KieWavError as error:
            raise error.about(task_id=task_id) from error.__cause__

    async def list_tracks(self, music_task_id: str) -> list[Track]:
        """
        Return all tracks of a finished music task, in order.

        Raises:
            NotFoundError: There is no such task, or it is not finished.

            KieWavError: No answer could be read, repeats included.

            TypeError: *music_task_id* is no `str`.

            ValueError: *music_task_id* cannot be an id.
        """
        verify_id(music_task_id, "music_task_id")
        return await self._reads.read(
            self._context.requests.music(music_task_id),
            lambda answer: parse_tracks(answer, music_task_id),
        )

    async def get_credits(self) -> Decimal:
        """
        Return the account's credits, which may have a fraction.

        Raises:
            KieWavError: No answer could be read, repeats included.
        """
        return await self._reads.read(self._context.requests.credits(), parse_credits)

    async def create_download_url(self, url: str | URL) -> URL:
        """
        Return a link to a file of the service's that is good for 20 minutes.

        Args:
            url: `WavFile.url`, or any other file the service made.

        Raises:
            InvalidRequestError: The file is not the service's.

            KieWavError: No answer could be read, repeats included.

            ValueError: *url* is not an absolute http(s) URL.
        """
        parsed = parse_url(str(url))
        if parsed is None:
            msg = f"url must be an absolute http(s) URL, not {str(url)[:200]!r}"
            raise ValueError(msg)
        return await self._reads.read(
            self._context.requests.download_url(parsed), parse_download_url
        )

    async def _renew(self, url: URL) -> URL | NoLink:
        """Return a fresh link to the file behind *url*, or the service's word that it has none."""
        return await self._reads.read(self._context.requests.download_url(url), parse_renewal)

    # --- files --------------------------------------------------------------------------------

    async def download(
        self, wav: WavFile, path: str | os.PathLike[str], *, accept_short: bool = False
    ) -> Download:
        """
        Save a WAV file, and return once it is whole, synced and under its name.

        Until then it is ``NAME.part`` beside its place, readable by its owner only.
        That stays if the download fails or is cancelled, and the next one goes on
        with it, also in another process, if the host names its versions. A WAV file
        that has all bytes it declares, or as many as the host's, is left alone;
        anything else of that name is replaced.

        At most 8 run at a time; others wait. An attempt ends when nothing comes for
        60 s, or less than 16 KiB/s over 60 s; there are 8, with growing waits
        between them. A link that the host refuses is renewed once, and one that only
        a callback has named is confirmed by one poll before. Nothing of ours goes to
        the host: neither key nor cookie.

        Args:
            wav: What to save.

            path: The file's name, in a folder that is there.

            accept_short:
                Save a file that the host has sent completely although it has fewer
                bytes than its header declares, with a note in `Download.notes`; by
                default it is ``"truncated"``.

        Raises:
            DownloadError: It is not saved; its ``reason`` says why.

            SessionClosedError: The session was closed.

            TypeError: An argument has the wrong type.

            ValueError:
                *path* names no file, or the WAV of another task is being saved there.

        Sources: docs.kie.ai, "Get Download URL" and "Convert to WAV" (retention).
        """
        self._context.state.verify_open()
        verify_type(wav, WavFile, "wav")
        return await self._downloads.download(wav, path, accept_short=accept_short)


def _verify_part(value: object, kind: type, name: str) -> None:
    verify_type(value, kind, name)
    if isinstance(value, type):  # A class has all the methods, and none that works.
        msg = f"{name} must be an object, not the class {value.__name__}"
        raise TypeError(msg)


def _named(ids: list[str]) -> str:
    named = ", ".join(ids[:_MAX_NAMED]) or "none"
    return f"{named}, and {len(ids) - _MAX_NAMED} more" if len(ids) > _MAX_NAMED else named
