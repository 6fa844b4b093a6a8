"""When the service accepted a submit, by its own clock: read, carried and kept."""

from __future__ import annotations

import datetime as dt

import pytest

from kie_wav_async import Track, WavSession
from kie_wav_async.errors import EndpointGoneError, KieWavError, WireFormatError
from kie_wav_async.models import TaskRecord, TaskState
from kie_wav_async.protocol.api_constants import KIE_WAV, is_past_retention
from kie_wav_async.protocol.envelope import parse_date
from kie_wav_async.protocol.responses import NoLink, created_at, parse_renewal
from kie_wav_async.testing import (
    FakeClock,
    MemoryLedger,
    ScriptedTransport,
    accepted,
    answer,
    refused,
    succeeded,
)

KEY = "sk-not-to-be-seen"
TRACK = Track("5c79", "e231")
DATE = "Wed, 15 Jan 2025 12:00:00 GMT"
AT = dt.datetime(2025, 1, 15, 12, tzinfo=dt.UTC)
LATER = AT + dt.timedelta(seconds=1)


def ms(at):
    """Return a time as the service's records may have it."""
    return int(at.timestamp() * 1_000)


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("date", "at"),
    [
        (DATE, AT),
        (f" {DATE} ", AT),
        ("Wednesday, 15-Jan-25 12:00:00 GMT", AT),
        ("Wed Jan 15 12:00:00 2025", AT),
        ("Wed, 15 Jan 2025 14:00:00 +0200", AT),
        ("Wed, 01 Jan 2020 00:00:00 GMT", dt.datetime(2020, 1, 1, tzinfo=dt.UTC)),
        (None, None),
        ("", None),
        ("0", None),
        ("now", None),
        ("2025-01-15T12:00:00Z", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", None),
        ("Tue, 31 Dec 2019 23:59:59 GMT", None),
        ("Wed, 01 Jan 2200 00:00:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None),
        ("Wed, 15 Jan 99999 12:00:00 GMT", None),
        ("Wed, 99 Jan 2025 12:00:00 GMT", None),
    ],
)
def test_a_date_is_read_or_of_no_use(date, at) -> None:
    """A `Date` is read in every form of RFC 9110; one that cannot be true is none."""
    assert parse_date(date) == (None if at is None else at.timestamp())


@pytest.mark.parametrize(
    ("value", "at"),
    [
        (ms(AT), AT),
        (str(ms(AT)), AT),
        (int(AT.timestamp()), AT),
        (float(AT.timestamp()), AT),
        (ms(AT) + 500, AT + dt.timedelta(milliseconds=500)),
        ("2025-01-15 12:00:00", None),
        ("2025-01-15T12:00:00Z", None),
        ("20250115120000", None),
        (0, None),
        (-ms(AT), None),
        (True, None),
        (None, None),
        (10**17, None),
        ([ms(AT)], None),
    ],
)
def test_a_time_of_creation_is_read_if_it_is_a_number(value, at) -> None:
    """Only a number says when a task was made: text names no zone."""
    record = TaskRecord("t1", TaskState.SUCCEEDED, raw={"createTime": value})

    assert created_at(record) == at
    assert created_at(TaskRecord("t1", TaskState.SUCCEEDED)) is None


@pytest.mark.parametrize(
    ("days", "is_past"), [(-1.0, False), (0.0, False), (13.999, False), (14.001, True)]
)
def test_the_retention_is_over_after_14_days(days, is_past) -> None:
    """A file is as old as the service's clock says, and unknown ages are none."""
    now_unix_s = AT.timestamp() + days * 86_400

    assert 14 == KIE_WAV.retention_days
    assert is_past is is_past_retention(AT, now_unix_s)
    assert not is_past_retention(None, now_unix_s)
    assert not is_past_retention(AT, None)


@pytest.mark.parametrize("code", [404, 422, "404"], ids=repr)
def test_the_word_of_the_service_on_a_link(code) -> None:
    """A code 404 or 422 in the body is the service's word that it has no link, and dated."""
    response = refused(code, "url is wrong", date=DATE)

    assert NoLink(f"{code} 'url is wrong'", AT.timestamp()) == parse_renewal(response)
    assert "https://h.example/b.wav" == str(
        parse_renewal(answer({"code": 200, "data": "https://h.example/b.wav"}))
    )


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (refused(401), KieWavError),
        (refused(400), KieWavError),
        (answer({"msg": "no"}, status=404), EndpointGoneError),
        (answer({"code": 200, "data": None}), WireFormatError),
        (answer("no", status=404), KieWavError),
    ],
)
def test_what_is_not_the_word_of_the_service(response, error) -> None:
    """An HTTP status without a code, and every other code, is an error like any other."""
    with pytest.raises(error):
        parse_renewal(response)


# --- carried and kept ---------------------------------------------------------------------------

CASES = {
    "Date": (DATE, {}, AT),
    "createTime": (None, {"createTime": ms(AT)}, AT),
    "the later of both": (DATE, {"createTime": ms(LATER)}, LATER),
    "Date, the later": (DATE, {"createTime": ms(AT) - 999}, AT),
    "createTime as text": (None, {"createTime": "2025-01-15 12:00:00"}, None),
    "neither": (None, {}, None),
    "Date of no use": ("yesterday", {}, None),
}


#: Records, and the age that they tell.
RECORDS = [({}, None), ({"createTime": ms(AT)}, AT)]


@pytest.mark.parametrize(("date", "fields", "expected"), CASES.values(), ids=CASES)
async def test_it_is_carried_and_kept(date, fields, expected) -> None:
    """A `WavFile` tells when the service accepted it, also out of the ledger and after a death."""

    def reply(request):
        if request.is_submit:
            return accepted("t1", date=date)
        return succeeded("t1", **fields)

    clock, ledger = FakeClock(), MemoryLedger()
    for _ in range(2):
        transport = ScriptedTransport(reply)
        async with WavSession(
            KEY, transport=transport, clock=clock, ledger=ledger, callback_url=""
        ) as session:
            wav = await clock.run(session.convert(TRACK))
        assert expected == wav.accepted_at
    ledger = ledger.die()
    await ledger.open(clock.time())
    entry = await ledger.get(TRACK)
    assert entry is not None
    assert expected == entry.accepted_at


async def test_a_task_of_an_earlier_run_keeps_its_time() -> None:
    """A task that is followed again after a restart is as old as the first run was told."""
    clock, ledger = FakeClock(), MemoryLedger()
    transport = ScriptedTransport(lambda _: accepted("t1", date=DATE))
    async with WavSession(
        KEY, transport=transport, clock=clock, ledger=ledger, callback_url=""
    ) as session:
        await clock.run(session.submit(TRACK))
    transport = ScriptedTransport(lambda _: succeeded("t1"))
    async with WavSession(
        KEY, transport=transport, clock=clock, ledger=ledger, callback_url=""
    ) as session:
        wav = await clock.run(session.convert(TRACK))

    assert AT == wav.accepted_at


@pytest.mark.parametrize(("fields", "expected"), RECORDS)
async def test_a_task_that_existed_is_of_unknown_age(fields, expected) -> None:
    """The `Date` of a 409 is not when the task was made; its record may say."""

    def reply(request):
        if request.is_submit:
            return refused(409, "exists", data={"taskId": "t1"}, date=DATE)
        return succeeded("t1", **fields)

    clock, transport = FakeClock(), ScriptedTransport(reply)
    async with WavSession(KEY, transport=transport, clock=clock, callback_url="") as session:
        wav = await clock.run(session.convert(TRACK))
    assert expected == wav.accepted_at


@pytest.mark.parametrize(("fields", "expected"), RECORDS)
async def test_an_attached_task_is_as_old_as_its_record_says(fields, expected) -> None:
    """Nobody but its record knows the age of a task that was submitted elsewhere."""
    clock, transport = FakeClock(), ScriptedTransport(lambda _: succeeded("t1", **fields))
    async with WavSession(KEY, transport=transport, clock=clock, callback_url="") as session:
        wav = await clock.run(session.attach("t1").wait())
    assert expected == wav.accepted_at
