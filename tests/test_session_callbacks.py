"""What a session is told of callbacks, what it tells the service, and where it takes them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import traceback

import pytest
from yarl import URL

from fakes import KEY, LISTENING_AT, LOST_CHARGED, WEBHOOK_KEY, FakeService, counted, track
from kie_wav_async import CallbackResult, CallbackTrust, WavSession
from kie_wav_async.errors import (
    CallbackFormatError,
    KieWavError,
    SessionClosedError,
    SignatureError,
    SubmitUnknownError,
)
from kie_wav_async.testing import FakeClock, submitted_callback_query
from test_session_secrets import spell

SETTLED, UNKNOWN_TASK = CallbackResult.SETTLED, CallbackResult.UNKNOWN_TASK


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock) -> FakeService:
    """Return a service that means well until it is told otherwise."""
    return FakeService(clock)


async def sent(clock: FakeClock, service: FakeService, session: WavSession) -> str:
    """Submit a track and return the callback URL that the service was given."""
    await clock.run(session.submit(track(len(service.transport.submits) + 1)))
    return json.loads(service.transport.submits[-1].body or b"")["callBackUrl"]


# --- what the service is told -------------------------------------------------------------

ADDRESSES = [
    ("https://app.example", "https://app.example?attempt={}"),
    ("https://app.example/", "https://app.example/?attempt={}"),
    ("https://app.example/kie/callback", "https://app.example/kie/callback?attempt={}"),
    ("https://app.example/kie?", "https://app.example/kie?attempt={}"),
    ("https://app.example/kie?a=1", "https://app.example/kie?a=1&attempt={}"),
    ("https://app.example/kie?a=1&", "https://app.example/kie?a=1&attempt={}"),
    ("https://app.example/kie?a", "https://app.example/kie?a&attempt={}"),
    ("https://app.example/kie?a=1&a=1&b=", "https://app.example/kie?a=1&a=1&b=&attempt={}"),
    (
        "https://app.example/kie?a=+&b=%20&c=%2B&d=%7e&e=~;f&&g==",
        "https://app.example/kie?a=+&b=%20&c=%2B&d=%7e&e=~;f&&g==&attempt={}",
    ),
    ("https://app.example/kie?attempts=3", "https://app.example/kie?attempts=3&attempt={}"),
    ("https://app.example/kie?a=attempt", "https://app.example/kie?a=attempt&attempt={}"),
    ("https://app.example/attempt=1", "https://app.example/attempt=1?attempt={}"),
    ("https://app.example/%2f/%7E/a/../b", "https://app.example/%2f/%7E/a/../b?attempt={}"),
    ("https://App.Example:443/kie", "https://App.Example:443/kie?attempt={}"),
    ("http://127.0.0.1:8080/kie", "http://127.0.0.1:8080/kie?attempt={}"),
    ("https://app.example/kie?q=\u00fc", "https://app.example/kie?q=%C3%BC&attempt={}"),
    (URL("https://app.example/url?a=1"), "https://app.example/url?a=1&attempt={}"),
]


@pytest.mark.parametrize(("callback_url", "expected"), ADDRESSES, ids=lambda value: str(value)[:60])
async def test_address_is_sent_byte_for_byte(clock, service, callback_url, expected) -> None:
    """The service is given the address as it was given to us, with the attempt at its end."""
    async with service.session(callback_url=callback_url, webhook_keys=WEBHOOK_KEY) as session:
        given = await sent(clock, service, session)
    (attempt,) = re.findall(r"attempt=([0-9a-f]{32})$", given)
    assert expected.format(attempt) == given


async def test_each_submit_has_an_attempt_of_its_own(clock, service) -> None:
    """No two submits name the same attempt, the repeats of one track included."""
    service.knows_repeats = False
    service.fates.append(LOST_CHARGED)
    async with service.listening() as session:
        with pytest.raises(SubmitUnknownError) as caught:
            await clock.run(session.submit(track(1)))
        await clock.run(session.submit(track(1), again=True))
        for number in range(2, 12):
            await clock.run(session.submit(track(number)))
        assert caught.value.attempt_id == service.attempts[0]
    assert 12 == len(set(service.attempts))


@pytest.mark.parametrize("settings", [{}, {"callback_url": ""}, {"callback_url": None}])
async def test_polling_only_gives_a_placeholder(clock, service, settings) -> None:
    """Who polls only gives an address that leads nowhere, and names the attempt all the same."""
    async with service.session(**settings) as session:
        given = URL(await sent(clock, service, session))
    assert "https" == given.scheme
    assert (given.host or "").endswith(".invalid")
    assert ["attempt"] == [*given.query]
    assert re.fullmatch(r"[0-9a-f]{32}", given.query["attempt"])


async def test_query_comes_back_as_it_was_sent(clock, service) -> None:
    """A delivery to the very URL that a submit gave settles, whatever else its query holds."""
    address = "https://app.example/kie?a=+&b=%2B&c=%7e&d&&e=="
    async with service.session(callback_url=address, webhook_keys=WEBHOOK_KEY) as session:
        await sent(clock, service, session)
        query = submitted_callback_query(service.transport.submits[0])
        assert SETTLED is await service.callback("task0001", query=query).to(session)


# --- the environment ----------------------------------------------------------------------


async def test_address_comes_from_the_environment(clock, service, monkeypatch) -> None:
    """KIE_CALLBACK_URL is where the service posts, unless an argument says otherwise."""
    monkeypatch.setenv("KIE_CALLBACK_URL", "https://env.example/kie?a=1")
    hosts = []
    for settings in ({}, {"callback_url": None}, {"callback_url": LISTENING_AT}):
        async with service.session(webhook_keys=WEBHOOK_KEY, **settings) as session:
            hosts.append(URL(await sent(clock, service, session)).host)
    assert ["env.example", "env.example", "app.example"] == hosts


async def test_empty_address_goes_before_the_environment(clock, service, monkeypatch) -> None:
    """An empty address means polling only, whatever the environment says."""
    monkeypatch.setenv("KIE_CALLBACK_URL", "https://env.example/kie")
    async with service.session(callback_url="") as session:
        assert (URL(await sent(clock, service, session)).host or "").endswith(".invalid")


async def test_empty_environment_is_none(clock, service, monkeypatch, caplog) -> None:
    """Empty variables are as good as none."""
    monkeypatch.setenv("KIE_CALLBACK_URL", "")
    monkeypatch.setenv("KIE_WEBHOOK_HMAC_KEY", "")
    async with service.session() as session:
        assert (URL(await sent(clock, service, session)).host or "").endswith(".invalid")
        assert not session._callbacks._keys
        await service.callback("task0001").to(session)
        assert 1 == len(session.conversions())
    assert "webhook key" not in caplog.text


@pytest.mark.parametrize("count", [1, 3])
async def test_keys_come_from_the_environment(clock, service, monkeypatch, count) -> None:
    """KIE_WEBHOOK_HMAC_KEY holds one key, or several with commas between: any of them signs."""
    keys = [f"whk-number-{number}-0123456789" for number in range(count)]
    monkeypatch.setenv("KIE_WEBHOOK_HMAC_KEY", ",".join(keys))
    async with service.session() as session:
        for number, key in enumerate(keys, 1):
            conversion = await clock.run(session.submit(track(number)))
            for bad in (WEBHOOK_KEY, f"{key},", f",{key}"):
                with pytest.raises(SignatureError):
                    await service.callback(conversion.task_id, key=bad).to(session)
            assert SETTLED is await service.callback(conversion.task_id, key=key).to(session)


async def test_keys_go_before_the_environment(clock, service, monkeypatch) -> None:
    """Keys given as an argument are the only ones, and none given are none."""
    monkeypatch.setenv("KIE_WEBHOOK_HMAC_KEY", "whk-environment-0123456789")
    async with service.session(webhook_keys=WEBHOOK_KEY) as session:
        await clock.run(session.submit(track(1)))
        with pytest.raises(SignatureError):
            await service.callback("task0001", key="whk-environment-0123456789").to(session)
        assert SETTLED is await service.callback("task0001").to(session)
    async with service.session(webhook_keys=()) as session:
        await clock.run(session.submit(track(2)))
        callback = service.callback("task0002", key="whk-environment-0123456789")
        assert CallbackResult.POLLING is await callback.to(session)


def test_environment_is_checked_like_arguments(monkeypatch) -> None:
    """What the environment says is refused where an argument would be."""
    for name, value in [
        ("KIE_CALLBACK_URL", "app.example/kie"),
        ("KIE_CALLBACK_URL", "https://user@app.example/kie"),
        ("KIE_CALLBACK_URL", f"https://app.example/kie?attempt={'a' * 32}"),
        ("KIE_CALLBACK_URL", " "),
        ("KIE_WEBHOOK_HMAC_KEY", "short"),
        ("KIE_WEBHOOK_HMAC_KEY", f"{WEBHOOK_KEY},"),
        ("KIE_WEBHOOK_HMAC_KEY", f"{WEBHOOK_KEY}, {WEBHOOK_KEY}"),
        ("KIE_WEBHOOK_HMAC_KEY", f"{WEBHOOK_KEY}\n"),
        ("KIE_WEBHOOK_HMAC_KEY", " "),
    ]:
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            with pytest.raises(ValueError, match=r"callback_url|KIE_WEBHOOK_HMAC_KEY") as caught:
                WavSession(KEY)
        assert WEBHOOK_KEY not in "".join(traceback.format_exception(caught.value))


async def test_environment_is_read_at_construction_only(clock, service, monkeypatch) -> None:
    """What the environment says later is not heard."""
    session = service.session()
    monkeypatch.setenv("KIE_CALLBACK_URL", "https://env.example/kie")
    monkeypatch.setenv("KIE_WEBHOOK_HMAC_KEY", WEBHOOK_KEY)
    async with session:
        assert (URL(await sent(clock, service, session)).host or "").endswith(".invalid")
        assert CallbackResult.POLLING is await service.callback("task0001").to(session)
    assert "KIE_CALLBACK_URL" in os.environ


# --- arguments ----------------------------------------------------------------------------

WRONG_VALUES = [
    ("callback_url", " "),
    ("callback_url", "app.example/kie"),
    ("callback_url", "//app.example/kie"),
    ("callback_url", "/kie"),
    ("callback_url", "ftp://app.example/kie"),
    ("callback_url", "https://"),
    ("callback_url", "https:///kie"),
    ("callback_url", "https://app.example:99999/kie"),
    ("callback_url", "https://app.example/kie#top"),
    ("callback_url", "https://app.example/kie#"),
    ("callback_url", "https://user@app.example/kie"),
    ("callback_url", "https://user:secret@app.example/kie"),
    ("callback_url", "https://@app.example/kie"),
    ("callback_url", "https://app.example/kie callback"),
    ("callback_url", "https://app.example/kie\n"),
    ("callback_url", " https://app.example/kie"),
    ("callback_url", "https://app.example/\x00"),
    ("callback_url", "https://app.example/kie?attempt=1"),
    ("callback_url", "https://app.example/kie?attempt"),
    ("callback_url", "https://app.example/kie?attempt="),
    ("callback_url", "https://app.example/kie?a=1&attempt=1"),
    ("callback_url", "https://app.example/kie?%61ttempt=1"),
    ("callback_url", "https://app.example/kie?attemp%74=1"),
    ("callback_url", URL("https://app.example/kie?attempt=1")),
    ("callback_url", URL("/kie")),
    ("webhook_keys", ""),
    ("webhook_keys", " "),
    ("webhook_keys", " " * 20),
    ("webhook_keys", "short"),
    ("webhook_keys", "whk-0123456789a"),
    ("webhook_keys", f"{WEBHOOK_KEY}\n"),
    ("webhook_keys", f" {WEBHOOK_KEY}"),
    ("webhook_keys", "whk-\ud800-0123456789"),
    ("webhook_keys", [""]),
    ("webhook_keys", [WEBHOOK_KEY, "short"]),
    ("callback_trust", "everything"),
    ("callback_trust", None),
]

WRONG_TYPES = [
    ("callback_url", 5),
    ("callback_url", b"https://app.example/kie"),
    ("callback_url", b""),
    ("callback_url", ["https://app.example/kie"]),
    ("webhook_keys", 5),
    ("webhook_keys", WEBHOOK_KEY.encode()),
    ("webhook_keys", [WEBHOOK_KEY.encode()]),
    ("webhook_keys", [None]),
    ("webhook_keys", False),
]


@pytest.mark.parametrize(("name", "value"), WRONG_VALUES, ids=lambda value: ascii(value)[:60])
def test_wrong_value_is_refused_at_the_call(name, value) -> None:
    """A setting out of range is a ValueError of the constructor that names it."""
    with pytest.raises(ValueError, match=name if name != "callback_trust" else "CallbackTrust"):
        WavSession(**{"api_key": KEY, name: value})


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES, ids=lambda value: ascii(value)[:60])
def test_wrong_type_is_refused_at_the_call(name, value) -> None:
    """A setting of the wrong type is a TypeError of the constructor that names it."""
    with pytest.raises(TypeError, match=name):
        WavSession(**{"api_key": KEY, name: value})


async def test_keys_may_be_any_iterable(clock, service) -> None:
    """Several keys come in a list, a tuple, a set or a generator; it is read once."""
    for number, make in enumerate((list, tuple, set, iter), 1):
        async with service.session(webhook_keys=make([WEBHOOK_KEY])) as session:
            conversion = await clock.run(session.submit(track(number)))
            for verdict in (SETTLED, CallbackResult.DUPLICATE):
                assert verdict is await service.callback(conversion.task_id).to(session)


async def test_trust_may_be_given_by_its_word(clock, service) -> None:
    """The trust may be given by its value, as from a settings file."""
    async with service.listening(callback_trust="confirm") as session:
        await clock.run(session.submit(track()))
        assert CallbackResult.POLLING is await service.callback("task0001").to(session)


async def test_a_key_of_sixteen_characters_is_long_enough(clock, service) -> None:
    """The shortest key has 16 characters; any text may be one."""
    for number, key in enumerate(("0123456789abcdef", "schl\u00fcssel-\u20ac-und-mehr"), 1):
        async with service.session(webhook_keys=key) as session:
            conversion = await clock.run(session.submit(track(number)))
            assert SETTLED is await service.callback(conversion.task_id, key=key).to(session)


# --- the warning at the start -------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({}, 0),
        ({"webhook_keys": WEBHOOK_KEY}, 0),
        ({"callback_url": "", "webhook_keys": ()}, 0),
        ({"callback_url": LISTENING_AT, "webhook_keys": WEBHOOK_KEY}, 0),
        ({"callback_url": LISTENING_AT}, 1),
        ({"callback_url": LISTENING_AT, "webhook_keys": ()}, 1),
        ({"callback_url": LISTENING_AT, "callback_trust": CallbackTrust.CONFIRM}, 1),
    ],
)
async def test_warning_if_callbacks_cannot_be_verified(
    clock, service, caplog, settings, lines
) -> None:
    """Who asks for callbacks without a key is warned once, when the session opens."""
    session = service.session(**settings)
    assert [] == caplog.records
    async with session:
        opened = [*caplog.records]
        await clock.run(session.convert(track()))
        await service.callback("task0001").to(session)
        assert opened == caplog.records
    assert [logging.WARNING] * lines == [record.levelno for record in opened]
    assert all("KIE_WEBHOOK_HMAC_KEY" in record.getMessage() for record in opened)


# --- where and when -----------------------------------------------------------------------


async def test_delivery_before_the_session_opens(service) -> None:
    """A session that was never entered takes no callback, and says how to enter it."""
    session = service.listening()
    for headers in (service.callback("task0001").headers, {}, None):
        with pytest.raises(RuntimeError, match="async with"):
            await session.handle_callback(headers, b"{}")
    assert {} == counted(session)


async def test_delivery_after_closing(clock, service) -> None:
    """A closed session takes no callback, good or bad, and counts none."""
    async with service.listening() as session:
        conversion = await clock.run(session.submit(track()))
    before = session.statistics()
    with pytest.raises(SessionClosedError) as caught:
        await service.callback("task0001").to(session)
    with pytest.raises(SessionClosedError):
        await session.handle_callback({}, b"{}")
    assert ("task0001",) == caught.value.open_task_ids
    assert before == session.statistics()
    assert not conversion.done()


async def test_delivery_while_closing(clock, service) -> None:
    """From the moment a session closes it takes no callback, though a submit is still out."""
    service.latency_s = 20.0
    async with service.listening() as session:
        waiting = asyncio.create_task(session.submit(track(1)))
        await clock.advance(5.0)
        closing = asyncio.create_task(session.aclose())
        await clock.run_pending()
        before = session.statistics()
        with pytest.raises(SessionClosedError):
            await service.callback("task0001").to(session)
        assert before == session.statistics()
        await clock.run(closing)
        with pytest.raises(SessionClosedError):
            await waiting
        assert ["task0001"] == [c.task_id for c in session.conversions()]


async def test_early_callback_settles_while_closing(clock, service) -> None:
    """A callback kept for a submit that is answered while the session closes settles it."""
    service.latency_s = 20.0
    async with service.listening() as session:
        waiting = asyncio.create_task(session.submit(track(1)))
        await clock.advance(15.0)
        assert UNKNOWN_TASK is await service.callback("task0001").to(session)
        await clock.run(session.aclose())
        with pytest.raises(SessionClosedError):
            await waiting
        assert () == session.conversions()
        assert 1 == session.statistics().settled_by_callback


async def test_delivery_in_another_loop(service) -> None:
    """A callback delivered from another thread's loop is misuse, and changes nothing."""
    callback = service.callback("task0001")
    async with service.listening() as session:
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(callback.to(session)))
        assert {} == counted(session)


async def test_deliveries_from_many_tasks_at_once(clock, service) -> None:
    """Of one callback delivered by many tasks at once, one settles and all others are told so."""
    async with service.listening() as session:
        await clock.run(session.submit(track()))
        callback = service.callback("task0001")
        verdicts = await asyncio.gather(*(callback.to(session) for _ in range(50)))
        assert [SETTLED] + [CallbackResult.DUPLICATE] * 49 == verdicts
        assert 49 == session.statistics().duplicate_results


# --- secrets ------------------------------------------------------------------------------


async def test_webhook_key_is_in_no_text(clock, service, caplog) -> None:
    """Nothing a session shows, says, raises, logs or tells holds a webhook key or a signature."""
    shown: list[object] = []
    right = service.callback("task0001").headers["X-Webhook-Signature"]
    with caplog.at_level(logging.DEBUG):
        async with service.listening(on_event=shown.append) as session:
            shown += [
                session,
                session._context,
                session._callbacks,
                session._core._callbacks._early,
            ]
            for number in (1, 2):
                await clock.run(session.submit(track(number)))
            forged = service.callback("task0001", key="whk-of-somebody-else")
            for delivery in (
                forged,
                forged.saying(data={"task_id": right}),
                forged.saying(data={"task_id": f"{WEBHOOK_KEY}!"}),
                service.callback("task0001", at_s=-1_000.0),
            ):
                with pytest.raises((SignatureError, CallbackFormatError)) as caught:
                    await delivery.to(session)
                shown.append(caught.value)
            for delivery in (
                service.callback("task0001"),
                service.callback("task0001"),
                service.callback("task0002", None, code=500, message="no"),
                service.callback("stranger"),
            ):
                shown.append(await delivery.to(session))
            await clock.advance(100.0)
            service.fates.append(LOST_CHARGED)
            with pytest.raises(KieWavError) as caught:
                await clock.run(session.submit(track(3)))
            await service.callback("task0003").to(session)
            await clock.advance(100.0)
            shown += [caught.value, session.statistics(), *session.conversions()]
            shown += [request.url for request in service.transport.requests]
            shown += [request.body for request in service.transport.requests]
            shown += [request.headers for request in service.transport.requests]
    shown += [[record.__dict__ for record in caplog.records], caplog.text, session]

    kinds = {type(value).__name__ for value in shown}
    assert {
        "CallbackReceived",
        "CallbackRejected",
        "SignatureError",
        "ConversionSucceeded",
    } <= kinds
    text = spell(shown, {})
    for secret in (WEBHOOK_KEY, "whk-PLANTED", right, forged.headers["X-Webhook-Signature"]):
        assert secret not in text


@pytest.mark.parametrize(
    "keys",
    [
        [WEBHOOK_KEY, "short"],
        [WEBHOOK_KEY, ""],
        [f"{WEBHOOK_KEY} "],
        f"\n{WEBHOOK_KEY}",
        [WEBHOOK_KEY, 5],
        WEBHOOK_KEY.encode(),
        [WEBHOOK_KEY.encode()],
        f"{WEBHOOK_KEY}\ud800",
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_webhook_key_is_in_no_misuse(keys) -> None:
    """Errors about webhook keys do not show one."""
    with pytest.raises((ValueError, TypeError)) as caught:
        WavSession(KEY, webhook_keys=keys)
    said = "".join(traceback.format_exception(caught.value)) + repr(caught.value.args)
    assert "PLANTED" not in said.replace("WEBHOOK_KEY", "")
    assert "short" not in repr(caught.value.args).replace("shorter", "")
