"""What is logged of an error says what to do, as the error does: nobody else reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fakes import LISTENING_AT, WEBHOOK_KEY, FakeService, raw, track
from kie_wav_async import RateLimit
from kie_wav_async.errors import LedgerError, SignatureError, WireFormatError
from kie_wav_async.ledger import AttemptOutcome, SqliteLedger
from kie_wav_async.ledger.sqlite.owner_lock import LedgerMark, OwnerLock
from kie_wav_async.testing import FakeClock, MemoryLedger

if TYPE_CHECKING:
    from pathlib import Path

FULL = LedgerError("the disk is full", advice="free some space")


@pytest.fixture
def clock() -> FakeClock:
    """Give time that moves when told."""
    return FakeClock()


@pytest.fixture
def service(clock: FakeClock) -> FakeService:
    """Give a service on that time."""
    return FakeService(clock)


async def test_a_refused_callback(service: FakeService, caplog: pytest.LogCaptureFixture) -> None:
    """The log tells whoever runs the receiver which keys to compare."""
    async with service.session(callback_url=LISTENING_AT, webhook_keys=WEBHOOK_KEY) as session:
        with pytest.raises(SignatureError) as caught:
            await service.callback("t1", key="another-key-0123456789").to(session)

    assert caught.value.advice in caplog.text


async def test_an_unreadable_answer(
    clock: FakeClock, service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    """The log tells to look at the address, and at what is in between."""
    service.poll_replies.append(lambda _: raw(b"<html>"))
    async with service.session(rate_limit=RateLimit(20, per_s=10.0)) as session:
        await clock.run(session.convert(track()))

    assert WireFormatError.advice in caplog.text


async def test_what_came_of_a_submit(
    clock: FakeClock, service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that the ledger does not take is logged, and told, with what to do about the disk."""
    ledger = MemoryLedger()
    async with service.session(ledger=ledger) as session:
        ledger.fail_with = {"finish_attempt": FULL}
        with pytest.raises(LedgerError) as caught:
            await clock.run(session.submit(track()))
        ledger.fail_with = None

    assert "free some space" in caplog.text
    assert "keep the id" in caught.value.advice
    assert "free some space" in caught.value.advice


async def test_how_a_task_ended(
    clock: FakeClock, service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    """An end that the ledger does not take is logged, and told, in the same way."""
    ledger = MemoryLedger()
    async with service.session(ledger=ledger) as session:
        ledger.fail_with = {"finish_task": FULL}
        with pytest.raises(LedgerError) as caught:
            await clock.run(session.convert(track()))
        ledger.fail_with = None

    assert "could not be written down: the disk is full: free some space" in caplog.text
    assert "asking again costs nothing" in caught.value.advice
    assert "free some space" in caught.value.advice


async def test_a_ledger_that_is_an_older_copy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who reads such a ledger is told to put the right one back."""
    path = tmp_path / "x.sqlite3"
    async with SqliteLedger(path) as ledger:
        await ledger.begin_attempt(track(), "a" * 32, 1.0)
        await ledger.finish_attempt("a" * 32, AttemptOutcome.ACCEPTED, 2.0, task_id="t1")
    lock = OwnerLock(path)
    lock.acquire()
    assert lock.mark is not None
    lock.write_mark(LedgerMark(lock.mark.ledger_id, 9))
    lock.release()
    async with SqliteLedger(path, read_only=True):
        pass

    assert "put that back" in caplog.text
