"""A file that only a callback has named: the service is asked for it before anything is fetched."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging

import attrs
import pytest
from yarl import URL

from fakes import FakeService, track
from hostile import BODY, KEY, TRACK, HastyClock, link
from kie_wav_async import RetryPolicy, WavFile, WavSession
from kie_wav_async.errors import DownloadError, SessionClosedError, TransportError
from kie_wav_async.testing import (
    FakeClock,
    MemoryLedger,
    ScriptedTransport,
    failed,
    missing,
    pending,
    polled_task_id,
    refused,
    succeeded,
)
from media import MediaServer


@pytest.fixture
async def media():
    """Run a host."""
    async with MediaServer() as server:
        yield server


@pytest.fixture
def target(tmp_path):
    """Return where the file is to be."""
    return tmp_path / "a.wav"


@contextlib.asynccontextmanager
async def asking(*replies, clock=None):
    """Run a session whose polls are answered by *replies*; yield it and its transport."""
    transport = ScriptedTransport(list(replies))
    async with WavSession(
        KEY,
        transport=transport,
        clock=clock or HastyClock(),
        callback_url="",
        insecure_hosts=["127.0.0.1"],
        retry=RetryPolicy(attempts=1),
    ) as session:
        yield session, transport


def named(url, by="callback"):
    """Return a WAV whose file was named by a callback."""
    return WavFile(task_id="t1", url=URL(url), track=TRACK, settled_by=by, expires_at=None)


async def test_a_file_that_the_record_names_is_fetched(media, target) -> None:
    """One poll confirms the link, and then the file is fetched."""
    url = media.put("/a.wav", BODY)
    async with asking(succeeded("t1", str(url))) as (session, transport):
        await session.download(named(url), target)
        assert ["t1"] == [polled_task_id(request) for request in transport.requests]
        assert 1 == session.statistics().polls
    assert BODY == target.read_bytes()
    assert 1 == len(media.requests)


async def test_the_services_file_is_fetched(media, target, caplog) -> None:
    """Where the callback named another file, the one of the record is fetched, and that is told."""
    genuine, planted = media.put("/genuine.wav", BODY), media.put("/planted.wav", BODY[::-1])
    async with asking(succeeded("t1", str(genuine))) as (session, _):
        with caplog.at_level(logging.WARNING):
            await session.download(named(planted), target)
    assert BODY == target.read_bytes()
    assert ["/genuine.wav"] == [request.target for request in media.requests]
    assert "task t1 named another file" in caplog.text


@pytest.mark.parametrize(
    "reply",
    [
        failed("t1"),
        pending("t1"),
        missing(),
        succeeded("t1", response={}),
        refused(401),
        refused(500),
        TransportError("no route"),
    ],
    ids=["failed", "pending", "no record", "no URL", "401", "500", "no answer"],
)
async def test_nothing_is_fetched_that_is_not_confirmed(media, target, reply) -> None:
    """Unless the service names a file, nothing is fetched and nothing is left behind."""
    url = media.put("/a.wav", BODY)
    async with asking(reply) as (session, _):
        with pytest.raises(DownloadError, match="came by a callback") as caught:
            await session.download(named(url), target)
    assert ("unavailable", "t1", TRACK) == (
        caught.value.reason,
        caught.value.task_id,
        caught.value.track,
    )
    assert [] == media.requests
    assert [] == [*target.parent.iterdir()]


ACCEPTED_AT = dt.datetime(2025, 1, 1, 12, tzinfo=dt.UTC)
#: As long after it as the service keeps files, and a second more or less.
PAST = "Wed, 15 Jan 2025 12:00:01 GMT"
NOT_PAST = "Wed, 15 Jan 2025 11:59:59 GMT"


@pytest.mark.parametrize(
    ("record", "answer", "reason"),
    [
        (missing(), refused(404, date=PAST), "expired"),
        (refused(404), refused(422, date=PAST), "expired"),
        (missing(), refused(404, date=NOT_PAST), "unavailable"),
        (missing(), refused(404), "unavailable"),
        (missing(), refused(500, date=PAST), "unavailable"),
        (missing(), TransportError("no route"), "unavailable"),
        (pending("t1"), refused(404, date=PAST), "unavailable"),
        (failed("t1"), refused(404, date=PAST), "unavailable"),
    ],
    ids=[
        *("no record", "404", "not yet 14 days", "no Date", "500", "no answer"),
        *("pending", "failed"),
    ],
)
async def test_a_task_without_a_record_may_have_expired(
    media, target, record, answer, reason
) -> None:
    """KIE has neither record nor link, and 14 days are over: expired."""
    wav = attrs.evolve(named(media.put("/a.wav", BODY)), accepted_at=ACCEPTED_AT)
    async with asking(record, answer) as (session, _):
        with pytest.raises(DownloadError, match="came by a callback") as caught:
            await session.download(wav, target)
    assert reason == caught.value.reason
    assert [] == media.requests


async def test_a_link_in_place_of_a_record_confirms_nothing(media, target) -> None:
    """A link that KIE gives for a file of a task without a record is not followed."""
    wav = attrs.evolve(named(media.put("/a.wav", BODY)), accepted_at=ACCEPTED_AT)
    async with asking(missing(), link(media.put("/b.wav", BODY))) as (session, _):
        with pytest.raises(DownloadError, match="names no file") as caught:
            await session.download(wav, target)
    assert "unavailable" == caught.value.reason
    assert [] == media.requests


async def test_a_file_that_a_poll_named_is_fetched_at_once(media, target) -> None:
    """A link of the service's own needs no confirmation."""
    url = media.put("/a.wav", BODY)
    async with asking() as (session, transport):
        await session.download(named(url, by="poll"), target)
        assert [] == transport.requests
    assert BODY == target.read_bytes()


async def test_a_file_that_is_there_needs_no_confirmation(media, target) -> None:
    """A whole file of that name is left alone, and nobody is asked."""
    url = media.put("/a.wav", BODY)
    target.write_bytes(BODY)
    async with asking() as (session, transport):
        await session.download(named(url), target)
        assert [] == transport.requests
    assert [] == media.requests


async def test_closing_ends_a_confirmation(media, target) -> None:
    """A download that waits for the service's word ends when the session closes."""
    url = media.put("/a.wav", BODY)
    transport = ScriptedTransport(lambda _: asyncio.get_running_loop().create_future())
    async with WavSession(
        KEY, transport=transport, clock=FakeClock(), insecure_hosts=["127.0.0.1"]
    ) as session:
        task = asyncio.create_task(session.download(named(url), target))
        async with asyncio.timeout(30):
            while not transport.requests:  # noqa: ASYNC110 - the disk sets no event
                await asyncio.sleep(0.001)
        await session.aclose()
        with pytest.raises(SessionClosedError):
            await task
    assert [] == media.requests


async def test_the_next_run_knows_who_named_the_file() -> None:
    """A ledger keeps that only a callback named a file, so that the next run confirms it too."""
    clock = FakeClock()
    service, ledger = FakeService(clock), MemoryLedger()
    async with service.listening(ledger=ledger) as session:
        await clock.run(session.submit(track()))
        await service.callback("task0001").to(session)
        wav = (await clock.run(session.submit(track()))).result()
        assert "callback" == wav.settled_by
    async with service.listening(ledger=ledger) as session:
        again = (await clock.run(session.submit(track()))).result()
    assert (wav.url, "callback") == (again.url, again.settled_by)
