"""The API key goes out in one header, and is found nowhere else."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback

import attrs
import pytest

from fakes import (
    ACCEPTED,
    KEY,
    LOST_CHARGED,
    UNSENT,
    FakeService,
    Fate,
    raw,
    refusal,
    track,
)
from kie_wav_async import RetryPolicy, WavSession
from kie_wav_async.errors import InvalidRequestError, KieWavError
from kie_wav_async.testing import FakeClock, ScriptedTransport, failed, refused


def spell(value: object, seen: dict[int, object], depth: int = 0) -> str:
    """Return all that can be read off *value*: text, repr, fields, causes, copies."""
    if id(value) in seen or depth > 6:
        return ""
    seen[id(value)] = value
    text = f"{value!s} {value!r} {value}"
    if isinstance(value, BaseException):
        parts = [value.args, vars(value), value.__cause__, value.__context__]
        text += "".join(traceback.format_exception(value))
        text += "".join(spell(part, seen, depth + 1) for part in parts)
        if isinstance(value, KieWavError):
            again = pickle.loads(pickle.dumps(value))  # noqa: S301 - our own bytes
            text += pickle.dumps(value, 0).decode("latin-1") + repr(vars(again))
            text += repr(vars(copy.copy(value)))
    elif attrs.has(type(value)):
        fields = [getattr(value, field.name) for field in attrs.fields(type(value))]
        text += "".join(spell(part, seen, depth + 1) for part in fields)
    elif isinstance(value, dict):
        text += "".join(spell(part, seen, depth + 1) for part in value.values())
    elif isinstance(value, list | tuple | set):
        text += "".join(spell(part, seen, depth + 1) for part in value)
    return text


REPLIES = [
    ACCEPTED,
    LOST_CHARGED,
    UNSENT,
    Fate("html", is_charged=True, reply=lambda _: raw(b"<html>")),
    Fate("redirect", is_charged=False, reply=lambda _: raw(b"", 307)),
    Fate("bug", is_charged=True, reply=lambda _: KeyError("bug")),
    *(refusal(code) for code in (400, 401, 402, 409, 422, 429, 451, 455, 500, 505)),
]


async def test_key_is_in_no_text(caplog) -> None:
    """Nothing a session shows, says, raises, logs or tells holds the API key."""
    clock = FakeClock()
    service = FakeService(clock)
    shown: list[object] = []
    with caplog.at_level(logging.DEBUG):
        async with service.session(
            on_event=shown.append, timeout_s=100.0, retry=RetryPolicy(attempts=2)
        ) as session:
            service.fates += REPLIES
            service.poll_replies += [failed, lambda _: refused(500), lambda _: raw(b"<html>")]
            for number in range(len(REPLIES)):
                try:
                    shown.append(await clock.run(session.convert(track(number))))
                except KieWavError as error:
                    shown.append(error)
            service.is_key_good = False
            service.fates.clear()
            for call in (
                session.get_credits,
                lambda: session.get_task("t1"),
                session.attach("t2").wait,
            ):
                with pytest.raises(KieWavError) as caught:
                    await clock.run(call())
                shown.append(caught.value)
            shown += [session, session.statistics(), session.unknown_submits()]
            shown += [*session.conversions(), repr(service.transport.requests)]
            shown += [
                session._context,
                session._context.requests,
                session._coordinator,
                session._loop,
                session._core._polls,
                session._reads,
            ]
            shown += [call(track()) for call in (session.submit, session.convert)]
            for coroutine in shown[-2:]:
                coroutine.close()
    shown += [[record.__dict__ for record in caplog.records], caplog.text, session]

    kinds = {type(value).__name__ for value in shown}
    assert {"WavFile", "SubmitUnknownError", "TransportError", "AuthenticationError"} <= kinds
    assert {
        "SubmitAccepted",
        "SubmitUnknown",
        "SubmitRetryScheduled",
        "SubmitRejected",
        "ConversionSucceeded",
    } <= kinds
    assert 8 < len(caplog.records)
    assert KEY not in spell(shown, {})
    sent = [request.headers["Authorization"] for request in service.transport.requests]
    assert {f"Bearer {KEY}"} == set(sent)


def test_search_finds_a_planted_key() -> None:
    """The search of this file sees a key in a text, a field, a cause and a note."""
    plain = KieWavError("no key")
    assert KEY not in spell([plain], {})
    cause = KieWavError("no key")
    cause.__cause__ = ValueError(KEY)
    noted = KieWavError("no key")
    noted.add_note(KEY)
    field = KieWavError("no key", task_id=KEY)
    for planted in (KieWavError(KEY), cause, noted, field, {"header": [KEY]}):
        assert KEY in spell([planted], {})


async def test_key_is_in_no_misuse() -> None:
    """Errors about misuse do not show the key either."""
    shown = []
    for bad in (KEY + "\n", KEY + " ", f"\x00{KEY}"):
        with pytest.raises(ValueError, match="api_key") as caught:
            WavSession(bad)
        shown.append(caught.value)
    with pytest.raises(TypeError) as caught:
        WavSession(KEY.encode())
    shown.append(caught.value)
    session = FakeService(FakeClock()).session()
    with pytest.raises(RuntimeError) as caught:
        await session.get_credits()
    shown.append(caught.value)
    assert KEY not in "".join(str(error) + repr(error) for error in shown)


async def test_key_that_the_service_repeats_is_not_shown(caplog) -> None:
    """A service, or a proxy in between, that repeats our headers does not make us show the key."""
    clock = FakeClock()
    service = FakeService(clock)
    page = f"<html>Authorization: Bearer {KEY}</html>".encode()
    service.fates += [
        refusal(401, message=f"bad key {KEY}"),
        Fate("page", is_charged=False, reply=lambda _: raw(page)),
    ]
    service.poll_replies += [lambda _: raw(page), lambda t: failed(t, KEY, debug=KEY)]
    shown: list[object] = []
    with caplog.at_level(logging.DEBUG):
        async with service.session(on_event=shown.append) as session:
            for number in range(3):
                with pytest.raises(KieWavError) as caught:
                    await clock.run(session.convert(track(number)))
                shown.append(caught.value)
            service.poll_replies += [lambda _: raw(page)] * 3
            with pytest.raises(KieWavError) as caught:
                await clock.run(session.get_task("t1"))
            shown.append(caught.value)
    shown.append(caplog.text)
    assert KEY not in spell(shown, {})


ESCAPED = ["sk-kie-1", "sk-kie-/abc+def/1234", 'sk-"kie"-5678', "sk-kie-abcdef123456789"]


@pytest.mark.parametrize("spelling", ["plain", "slashes", "codes", "twice"])
@pytest.mark.parametrize("key", ESCAPED)
async def test_key_is_found_however_json_spells_it(key, spelling) -> None:
    """A key of 8 characters or more is not shown, whichever escapes the answer has it in."""
    text = json.dumps({"code": 422, "msg": f"bad header: Bearer {key}", "data": None})
    if spelling == "slashes":
        text = text.replace("/", "\\/")
    elif spelling == "codes":
        code = "".join(f"\\u{ord(letter):04X}" for letter in key)
        text = text.replace(json.dumps(key)[1:-1], code)
    elif spelling == "twice":
        inner = text.replace("/", "\\/")
        text = json.dumps({"code": 422, "msg": inner, "data": None})
    transport = ScriptedTransport(lambda _: raw(text.encode()))
    clock = FakeClock()
    async with WavSession(key, transport=transport, clock=clock) as session:
        with pytest.raises(InvalidRequestError) as caught:
            await clock.run(session.convert(track()))

    assert "[api key]" in caught.value.message
    assert key not in spell(caught.value, {}).replace("\\", "")


@pytest.mark.parametrize("name", ["request_id", "retry_after"])
async def test_key_in_a_header_of_the_answer_is_not_shown(name) -> None:
    """A key that comes back in a header is neither shown nor handed on."""
    reply = attrs.evolve(refused(422), **{name: f"x{KEY}y"})
    clock = FakeClock()
    transport = ScriptedTransport(lambda _: reply)
    async with WavSession(KEY, transport=transport, clock=clock) as session:
        with pytest.raises(InvalidRequestError) as caught:
            await clock.run(session.convert(track()))
        handed_on = await session._context.send(session._context.requests.credits())

    assert KEY not in spell([caught.value, handed_on], {})
