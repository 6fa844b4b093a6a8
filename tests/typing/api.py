"""
The public calls as users write them, with the types they get.

Nobody runs this file; mypy and pyright check it. A line that must not pass
carries a ``type: ignore``, which is an error by itself once it is not needed.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Literal, assert_type

from yarl import URL

import kie_wav_async
from kie_wav_async import (
    AiohttpTransport,
    Batch,
    CallbackTrust,
    Clock,
    Conversion,
    Download,
    OnUnknown,
    Outcome,
    PollSchedule,
    RateLimit,
    RetryPolicy,
    Statistics,
    SystemClock,
    TaskRecord,
    TaskState,
    Track,
    Transport,
    UnknownSubmit,
    WavFile,
    WavSession,
    WireRequest,
    WireResponse,
    __version__,
    errors,
    events,
)
from kie_wav_async.simulator import Simulator
from kie_wav_async.testing import (
    FakeClock,
    ScriptedTransport,
    accepted,
    pending,
    polled_task_id,
    refused,
    submitted_track,
    succeeded,
)

assert_type(__version__, str)
kie_wav_async.nonsense  # type: ignore[attr-defined]  # noqa: B018 - must not pass


# Making a session.


def on_any_event(event: events.Event) -> None:
    assert_type(event.at, dt.datetime)
    if isinstance(event, events.SubmitAccepted):
        assert_type(event.task_id, str)
        assert_type(event.track, Track)
        assert_type(event.attempt_id, str)
    elif isinstance(event, events.ConversionSucceeded):
        assert_type(event.wav, WavFile)
    elif isinstance(event, events.ConversionEnded):
        assert_type(event.error, errors.KieWavError)


def sessions(seen: list[events.Event]) -> None:
    assert_type(WavSession(), WavSession)
    WavSession("key")
    WavSession(api_key=None, base_url="https://api.kie.ai")
    WavSession(
        "key",
        base_url=None,
        rate_limit=RateLimit(20, per_s=10.0),
        max_in_flight=400,
        poll=PollSchedule(first_s=15.0, interval_s=10, jitter=0.2, backstop_s=60, max_per_s=30),
        retry=RetryPolicy(attempts=3, base_s=1.0, cap_s=20.0, retry_after_cap_s=300.0),
        on_unknown=OnUnknown.RESUBMIT,
        timeout_s=None,
        max_charges=100,
        on_event=on_any_event,
        insecure_hosts=("kie.test",),
        transport=AiohttpTransport(proxy=URL("http://proxy.test:3128"), trust_env=True),
        clock=FakeClock(),
    )
    WavSession(timeout_s=60, insecure_hosts=["kie.test"], on_event=seen.append)
    WavSession(transport=AiohttpTransport(ssl=ssl.create_default_context()))
    WavSession(transport=ScriptedTransport([]))
    WavSession(transport=OwnTransport(), clock=OwnClock())
    WavSession(clock=SystemClock())

    WavSession("key", "https://api.kie.ai")  # type: ignore[call-arg]  # the address has a keyword
    WavSession(rate_limit=20)  # type: ignore[arg-type]  # 20 per what?
    WavSession(ledger=7)  # type: ignore[arg-type]  # no ledger at all
    WavSession(ledger=None)
    WavSession(callback_url="https://x.test", webhook_keys="0123456789abcdef")
    WavSession(callback_url=URL("https://x.test"), webhook_keys=("0123456789abcdef",))
    WavSession(callback_url="", webhook_keys=(), callback_trust=CallbackTrust.CONFIRM)


# One conversion per request of a web service.


async def one(session: WavSession) -> None:
    async with session as entered:
        assert_type(entered, WavSession)
    track = Track("5c79", "e231")
    Track(music_task_id="5c79", audio_id="e231", title=None)
    assert_type(track.title, str | None)

    assert_type(await session.convert(track), WavFile)
    assert_type(await session.convert(track, again=True), WavFile)
    conversion = await session.submit(track, again=False)
    _ = assert_type(conversion, Conversion)
    assert_type(conversion.task_id, str)
    assert_type(conversion.track, Track | None)
    assert_type(conversion.done(), bool)
    assert_type(conversion.result(), WavFile)
    assert_type(await conversion, WavFile)
    task = asyncio.create_task(conversion.wait())
    assert_type(await task, WavFile)
    async with asyncio.timeout(5):
        await conversion
    first, second = await asyncio.gather(conversion, conversion)
    assert_type(first, WavFile)
    assert_type(second, WavFile)

    _ = await session.submit("e231")  # type: ignore[arg-type]  # an id is not a track
    await session.convert(track, True)  # type: ignore[call-arg]  # noqa: FBT003 - must not pass


def a_file(wav: WavFile) -> None:
    assert_type(wav.task_id, str)
    assert_type(wav.url, URL)
    assert_type(wav.track, Track | None)
    assert_type(wav.settled_by, Literal["callback", "poll"])
    assert_type(wav.expires_at, dt.datetime | None)

    wav.task_id = "other"  # type: ignore[misc]  # facts do not change


# A catalog.


def some() -> Iterator[Track]:
    yield Track("5c79", "e231")


async def some_async() -> AsyncIterator[Track]:
    yield Track("5c79", "e231")


async def catalog(session: WavSession, tracks: list[Track]) -> None:
    async with session.convert_all(tracks) as batch:
        assert_type(batch, Batch)
        async for outcome in batch:
            assert_type(outcome, Outcome)
            assert_type(outcome.index, int)
            assert_type(outcome.track, Track)
            assert_type(outcome.wav, WavFile | None)
            assert_type(outcome.error, errors.KieWavError | None)
            assert_type(outcome.ok, bool)
            assert_type(outcome.unwrap(), WavFile)
    async for outcome in session.convert_all(some()):
        assert_type(outcome, Outcome)
    batch = session.convert_all(some_async())
    assert_type(await anext(batch), Outcome)
    await batch.aclose()

    session.convert_all(["e231"])  # type: ignore[list-item]  # ids are not tracks


# Tasks and their records.


async def tasks(session: WavSession) -> None:
    _ = assert_type(session.attach("9f3c"), Conversion)
    _ = assert_type(session.attach("9f3c", track=Track("5c79", "e231")), Conversion)
    assert_type(session.conversions(), tuple[Conversion, ...])
    assert_type(await session.list_tracks("5c79"), list[Track])
    assert_type(await session.get_credits(), Decimal)
    assert_type(await session.create_download_url("https://files.test/a.wav"), URL)
    assert_type(await session.create_download_url(URL("https://files.test/a.wav")), URL)

    record = await session.get_task("9f3c")
    assert_type(record, TaskRecord | None)
    if record is not None:
        assert_type(record.task_id, str)
        assert_type(record.state, TaskState)
        assert_type(record.status, str)
        assert_type(record.wav_url, URL | None)
        assert_type(record.audio_id, str | None)
        assert_type(record.error_code, int | None)
        assert_type(record.error_message, str | None)
        assert_type(record.created_at, dt.datetime | None)
        assert_type(record.completed_at, dt.datetime | None)
    assert_type(session.statistics(), Statistics)
    assert_type(session.statistics().possible_double_charges, int)
    await session.aclose()


async def files(session: WavSession, wav: WavFile) -> None:
    download = await session.download(wav, "song.wav")
    assert_type(download, Download)
    assert_type(download.path, Path)
    assert_type(download.bytes, int)
    assert_type(download.sha256, str)
    assert_type(download.resumed, bool)
    await session.download(wav, Path("song.wav"))
    await session.download(wav, b"song.wav")  # type: ignore[arg-type]  # a path is text
    await session.download("https://files.test/a.wav", "a.wav")  # type: ignore[arg-type]  # no WavFile


async def doubts(session: WavSession) -> None:
    unknown = session.unknown_submits()
    assert_type(unknown, tuple[UnknownSubmit, ...])
    assert_type(unknown[0].track, Track)
    assert_type(unknown[0].attempt_id, str)
    assert_type(unknown[0].at, dt.datetime)
    await session.resolve_unknown(unknown[0].attempt_id, task_id="9f3c")
    await session.resolve_unknown(unknown[0].attempt_id, not_charged=True)


# Errors.


async def failures(session: WavSession) -> None:
    try:
        await session.convert(Track("5c79", "e231"))
    except errors.SubmitUnknownError as error:
        assert_type(error.attempt_id, str)
        assert_type(error.track, Track | None)
    except errors.ConversionFailedError as error:
        assert_type(error.record, TaskRecord)
    except errors.SessionClosedError as error:
        assert_type(error.open_task_ids, tuple[str, ...])
    except errors.RateLimitedError as error:
        assert_type(error.retry_after_s, float | None)
    except errors.ServiceError as error:
        assert_type(error.code, int)
        assert_type(error.message, str)
        assert_type(error.http_status, int | None)
        assert_type(error.request_id, str | None)
    except TimeoutError:
        pass
    except errors.KieWavError as error:
        assert_type(error.task_id, str | None)
        assert_type(error.track, Track | None)


# Parts of one's own: only the shape counts.


class OwnHandle:
    def cancel(self) -> None: ...


class OwnClock:
    def monotonic(self) -> float:
        return 0.0

    def time(self) -> float:
        return 0.0

    async def sleep(self, delay_s: float, /) -> None: ...

    def call_at(self, when_mono_s: float, callback: Callable[[], object], /) -> OwnHandle:
        raise NotImplementedError


class OwnTransport:
    async def send(self, request: WireRequest) -> WireResponse:
        assert_type(request.is_submit, bool)
        return WireResponse(status=200, body=b"{}")

    async def aclose(self) -> None: ...


# Tests of one's own.


async def scripted(clock: FakeClock) -> None:
    transport = ScriptedTransport([accepted("9f3c"), pending("9f3c"), succeeded("9f3c")])
    async with WavSession("key", transport=transport, clock=clock) as session:
        assert_type(await clock.run(session.convert(Track("5c79", "e231"))), WavFile)
        await clock.advance(10.0)
    assert_type(submitted_track(transport.submits[0]), Track)
    assert_type(polled_task_id(transport.polls[0]), str)
    ScriptedTransport(lambda request: refused(429) if request.is_submit else TimeoutError())
    ScriptedTransport([errors.TransportError("gone", maybe_sent=True)])


async def simulated() -> None:
    async with Simulator() as kie:
        assert_type(kie, Simulator)
        assert_type(kie.base_url, str)
        assert_type(kie.api_key, str)
    async with (
        Simulator(median_s=0.5, seed=1, window=(20, 10.0)) as kie,
        WavSession(kie.api_key, base_url=kie.base_url) as session,
    ):
        await session.convert(Track("5c79", "e231"))


def roles(clock: Clock, transport: Transport) -> None:
    WavSession(clock=clock, transport=transport)
