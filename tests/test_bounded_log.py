"""Log lines that anybody can cause: the first of a kind, then one a minute with a count."""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiohttp.http_exceptions import BadStatusLine

from fakes import KEY, FakeService
from kie_wav_async import WavSession
from kie_wav_async.testing import FakeClock
from kie_wav_async.webhook import request_handler
from kie_wav_async.webhook.bounded_log import BoundedLog, MalformedRequestFilter
from receivers import PARSERS, Wire, embedded, request

#: Requests that are not HTTP, or none that a server has to take.
MALFORMED = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03PLANTED\r\n\r\n",
    "nonsense": b"PLANTED\r\n\r\n",
    "NUL": b"\0" * 100 + b"PLANTED\r\n\r\n",
    "version": b"POST /PLANTED HTTP/9.9\r\n\r\n",
    "target": b"POST http://[PLANTED/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "no colon": b"POST / HTTP/1.1\r\nHost PLANTED\r\n\r\n",
    "length": b"POST / HTTP/1.1\r\nContent-Length: PLANTED\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "long header": b"POST / HTTP/1.1\r\nX-PLANTED: " + b"y" * 70_000 + b"\r\n\r\n",
    "many headers": b"POST / HTTP/1.1\r\n" + b"X: PLANTED\r\n" * 300 + b"\r\n",
    "long target": b"POST /" + b"PLANTED" * 10_000 + b" HTTP/1.1\r\n\r\n",
    "chunks": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nPLANTED\r\n",
}


async def sends_malformed(served, times: int) -> None:
    """Send each of the malformed requests so many times, on connections of their own."""
    for _ in range(times):
        for sent in MALFORMED.values():
            async with Wire(served) as wire:
                await wire.send(sent)
                assert await wire._receive()  # An answer of some kind.


@pytest.mark.parametrize("receiver", PARSERS.values(), ids=PARSERS)
async def test_malformed_requests_are_logged_once(receiver, caplog, monkeypatch) -> None:
    """However many requests are malformed, we and aiohttp log a line each, without the requests."""
    monkeypatch.setattr(
        request_handler, "READ_TIMEOUT_S", 0.05
    )  # Not all parsers tell of a bad chunk.
    async with FakeService(FakeClock()).listening() as session, receiver(session) as served:
        await sends_malformed(served, 10)

    # uvicorn has a line of its own for each, and a busy machine makes asyncio say so.
    records = [
        record
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name != "uvicorn.error"
        if not record.getMessage().startswith("Executing ")
    ]
    names = [record.name for record in records]
    assert len(names) == len(set(names)), caplog.text
    assert {"kie_wav_async", "aiohttp.server"} >= set(names)
    assert all("PLANTED" not in logging.Formatter().format(record) for record in records)
    assert all(record.exc_info is None for record in records)


async def test_a_malformed_request_is_logged() -> None:
    """The first malformed request is told, with where it came from."""
    heard = logging.getLogger("aiohttp.server")
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    heard.addHandler(handler)
    try:
        async with FakeService(FakeClock()).listening() as session, embedded(session) as served:
            one = next(log for log in heard.filters if isinstance(log, MalformedRequestFilter))
            one._budget = MalformedRequestFilter()._budget  # The filter is one for the process.
            for _ in range(3):
                async with Wire(served) as wire:
                    await wire.send(MALFORMED["no colon"])
                    assert 400 == (await wire.answer()).status
    finally:
        heard.removeHandler(handler)

    assert ["Error handling request from 127.0.0.1: malformed request (BadHttpMessage)"] == lines


def record_of(error: Exception | None, at: float) -> logging.LogRecord:
    """Return a record as aiohttp's server makes it."""
    record = logging.makeLogRecord({"msg": "Error handling request from %s", "args": ("h",)})
    record.created = at
    record.exc_info = (type(error), error, None) if error is not None else None
    return record


def test_the_next_line_tells_how_many_there_were() -> None:
    """A minute after a line the next malformed request has one, with the number between."""
    log = MalformedRequestFilter()
    records = [
        record_of(BadStatusLine("x"), at) for at in [0.0, *(n / 2 for n in range(118)), 60.0]
    ]
    told = [record for record in records if log.filter(record)]

    told_text = [record.getMessage() for record in told]
    malformed = "Error handling request from h: malformed request (BadStatusLine)"
    assert [malformed, f"{malformed} (118 more since the last such line)"] == told_text


@pytest.mark.parametrize("error", [None, ValueError("x")])
def test_other_records_are_left_alone(error) -> None:
    """Errors of handlers are logged as ever, each of them."""
    log = MalformedRequestFilter()
    for _ in range(3):
        record = record_of(error, 0.0)
        before = dict(vars(record))
        assert log.filter(record)
        assert before == vars(record)


async def test_one_line_a_minute_of_each_kind(caplog, monkeypatch) -> None:
    """Each kind has a line a minute, and the next one says how many were left out."""
    bounded, now = BoundedLog(), 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    for now in (100.0, 100.0, 159.0, 160.0):
        for kind in ("one", "other"):
            bounded.error(kind, f"{kind} at {now:g}")
    monkeypatch.undo()

    assert [
        *("one at 100", "other at 100"),
        "one at 160 (2 more since the last such line)",
        "other at 160 (2 more since the last such line)",
    ] == [record.getMessage() for record in caplog.records]


class Ear(WavSession):
    """A session that does with every callback what it is told to."""

    def __init__(self, act) -> None:
        super().__init__(KEY)
        self._act = act

    async def handle_callback(self, *_: object, **__: object) -> None:
        await self._act()


async def fail() -> None:
    """Fail as nobody foresaw."""
    raise LookupError


async def wait() -> None:
    """Wait for what never comes."""
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize(
    ("make", "status"),
    [(lambda: WavSession(KEY), 500), (lambda: Ear(fail), 500), (lambda: Ear(wait), 503)],
    ids=["not entered", "failing", "slow"],
)
@pytest.mark.parametrize("receiver", PARSERS.values(), ids=PARSERS)
async def test_errors_of_ours_are_logged_once(receiver, make, status, caplog, monkeypatch) -> None:
    """However many callbacks cannot be taken, one line, and one traceback at most, says so."""
    monkeypatch.setattr(request_handler, "HANDLE_TIMEOUT_S", 0.0)
    async with receiver(make()) as served:
        for _ in range(30):
            async with Wire(served) as wire:
                await wire.send(request(served.path, body=b"{}"))
                assert status == (await wire.answer()).status

    (record,) = [record for record in caplog.records if record.name == "kie_wav_async"]
    assert len(record.getMessage()) < 3_000


@pytest.mark.parametrize("how", ["reset", "shutdown"])
@pytest.mark.parametrize("receiver", PARSERS.values(), ids=PARSERS)
async def test_who_asks_to_go_on_and_leaves_is_not_logged(receiver, how, caplog) -> None:
    """A peer that asks whether to send its body, and leaves, is logged by nobody."""
    async with FakeService(FakeClock()).listening() as session, receiver(session) as served:
        for _ in range(20):
            async with Wire(served) as wire:
                await wire.post({"Expect": "100-continue"}, length=10)
                if how == "reset":
                    wire.reset()
                else:
                    wire.end()
                    await wire.is_closed()

    assert [] == [record.getMessage() for record in caplog.records if record.exc_info]
