"""What holds for whatever is delivered: any headers, query and body, at any moment."""

from __future__ import annotations

import itertools
import json
import math
from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deliveries import (
    ADDRESS,
    COUNTERS_OF_CALLBACKS,
    SECRET,
    STEADY,
    World,
    file_of,
    query_of,
    signed_body,
)
from fakes import ACCEPTED, LOST_CHARGED, LOST_FREE, UNSENT, raw, refusal, track
from kie_wav_async import CallbackResult, CallbackTrust, OnUnknown, PollSchedule, Track
from kie_wav_async.core.early_callbacks import BUFFERED_S
from kie_wav_async.errors import CallbackFormatError, SignatureError
from kie_wav_async.events import CallbackReceived, CallbackRejected
from kie_wav_async.testing import SignedCallback, missing, pending, refused, succeeded
from strategies import bodies, hostile_json

if TYPE_CHECKING:
    from kie_wav_async import WavSession
    from kie_wav_async.core.state_machine import TaskEntry

TASK = "task0001"

#: What a genuine callback of the first attempt brings back.
QUERY = "from=kie&attempt=" + "0" * 31 + "1"

OTHER_KEY = "whsec-of-somebody-else"

trusts = st.sampled_from(CallbackTrust)

# --- what strangers come with -------------------------------------------------------------

#: Text with everything that can be in a `str`, halves of surrogate pairs included.
_any_text = st.text(st.characters(), max_size=20)

_NAMES = [
    "X-Webhook-Timestamp",
    "X-Webhook-Signature",
    "x-webhook-timestamp",
    "X-WEBHOOK-SIGNATURE",
    "X-Webhoo\u212a-Signature",  # The sign of Kelvin, which is a k in lower case.
    "X-Webhook-Timestamp ",
    "X-Webhook-Timestam\udcff",
    "Content-Type",
]
_VALUES = [
    "1800000000",
    "1800000000\n",
    "+180000000",
    "1_80000000",
    "\u0661800000000",
    "9" * 5000,
    "",
    "A" * 43 + "=",
    "A" * 43 + "\u00ff",
    "A" * 43 + "\udcff",
]


def _as_either(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str | bytes]:
    return texts | texts.map(lambda text: text.encode("utf-8", "surrogatepass"))


_pairs = st.lists(
    st.tuples(
        _as_either(st.sampled_from(_NAMES) | _any_text),
        _as_either(st.sampled_from(_VALUES) | _any_text) | st.binary(max_size=50),
    ),
    max_size=5,
)

#: What proxies add, and whoever else.
_noise = st.lists(
    st.tuples(_any_text.filter(lambda name: "webhook" not in name.lower()), _any_text), max_size=3
)

any_headers = _pairs | _pairs.map(dict) | _pairs.map(lambda pairs: [list(p) for p in pairs])

_attempts = st.sampled_from(["0" * 31 + "1", "0" * 31 + "2", "f" * 32, "F" * 32, "", "x", "\ud800"])

queries = _as_either(
    _any_text
    | st.lists(
        st.tuples(st.sampled_from(["attempt", "%61ttempt", "from", ""]), _attempts).map("=".join),
        max_size=3,
    ).map("&".join)
    | st.sampled_from(
        ["attempt", "&" * 9000, "attempt=" + "0" * 31 + "1" + "&a" * 5000, "%", "%ff"]
    )
)

HOSTILE_URLS = [
    "", " ", "x", "//h/x", "http://h/x", "HTTP://h/x", "ftp://h/x", "javascript:alert(1)",
    "file:///etc/passwd", "data:audio/wav;base64,AAAA", "https://", "https:///x", "https:x",
    "https://h:99999/", "https://h:-1/", "https://h:x/", "https://[::1", "https://[", "https://]",
    "https://[::1%25eth0]/x", "https://a b/", "https://h/\r\nHost: x", "https://h/\u0000",
    "https://xn--a/", "https://\u00df" + "x" * 70 + "/", "https://\u2100/", "https://\ud800/",
    "https://%ff/%ff?%ff=%ff", "https://u:p@h/", "https://h/" + "x" * 9000, "https://h\\@i/",
    "https://\u202eh/", "https://h/\u202ex", "https://0x7f.1/", "\ufeffhttps://h/", "https://h#f",
]  # fmt: skip

_urls = st.sampled_from([file_of(TASK), *HOSTILE_URLS]) | _any_text.map("https://".__add__)

_json_urls = _urls.map(json.dumps) | hostile_json

_IDS = [f'"task_id":"{TASK}"', f'"taskId":"{TASK}"', f'"task_id":"{TASK}","taskId":"{TASK}"']
_OTHER_IDS = ['"task_id":"task0002"', '"taskId":null', '"taskId":7', '"task_id":"\\ud800"']


_PARTS = ["url", "id", "response", "code", "msg", "encoding", "bytes"]
_URL_NAMES = ["audioWavUrl", "audio_wav_url", "wavUrl"]


@st.composite
def malformed_bodies(draw: st.DrawFn) -> bytes:
    """Return a body that is nearly a callback of the task: some of its parts are hostile."""
    # Most of it is sound, or nothing would get past the first look.
    spoiled = draw(st.sets(st.sampled_from(_PARTS), max_size=2))
    parts = [draw(st.sampled_from(_IDS))]
    url = draw(_json_urls) if "url" in spoiled else f'"{file_of(TASK)}"'
    parts.append(f'"{draw(st.sampled_from(_URL_NAMES))}":{url}')
    if "id" in spoiled:
        parts.append(draw(st.sampled_from(_OTHER_IDS)))
    if "response" in spoiled:
        parts.append(f'"response":{{"audioWavUrl":{draw(_json_urls)}}}')
    data = "{" + ",".join(draw(st.permutations(parts))) + "}"
    codes = st.sampled_from(["200", '"200"', "200.0", "2e2"])
    code = draw(hostile_json if "code" in spoiled else codes)
    message = draw(hostile_json) if "msg" in spoiled else '"success"'
    text = f'{{"code":{code},"msg":{message},"data":{data}}}'
    encodings = ["utf-8-sig", "utf-16", "utf-32", "latin-1"]
    encoding = draw(st.sampled_from(encodings)) if "encoding" in spoiled else "utf-8"
    body = text.encode(encoding, draw(st.sampled_from(["replace", "backslashreplace"])))
    if "bytes" in spoiled:
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=3)) + body[at + draw(st.integers(0, 3)) :]
    return body


def _with_an_open_task(**settings: object) -> World:
    """Return a world in which one task is open, named by the first attempt."""
    world = World(**settings)
    world.start(world.session.convert(track(1)))
    assert TASK in world.service.tasks
    return world


def _is_verdict_or_refusal(told: object) -> bool:
    return isinstance(told, CallbackResult | SignatureError | CallbackFormatError)


# --- total --------------------------------------------------------------------------------


@given(
    trusts,
    st.sampled_from([(), SECRET]),
    any_headers,
    queries,
    malformed_bodies() | bodies,
)
def test_whatever_is_delivered_gets_a_verdict_or_is_refused(trust, keys, headers, query, body):
    """Any headers, query and body give a verdict, `SignatureError` or `CallbackFormatError`."""
    with _with_an_open_task(callback_trust=trust, webhook_keys=keys) as world:
        assert _is_verdict_or_refusal(world.deliver((headers, body), query))


@given(trusts, st.just(QUERY) | queries, malformed_bodies(), _noise)
def test_whatever_is_signed_gets_a_verdict_or_is_refused(trust, query, body, others):
    """A genuine signature on any body gives a verdict or a refusal, and does not stop the poll."""
    with _with_an_open_task(callback_trust=trust) as world:
        signed = signed_body(TASK, body, world.clock.time())
        headers = [*signed.headers.items(), *others]
        told = world.deliver((headers, body), query)
        assert _is_verdict_or_refusal(told)
        world.advance(60.0)
        wav = world.waiters[0].result()
        if told is CallbackResult.SETTLED:
            assert trust is CallbackTrust.PAYLOAD
            assert (wav.url.scheme, wav.settled_by) == ("https", "callback")
            assert wav.url.host
        else:
            assert (str(wav.url), wav.settled_by) == (file_of(TASK), "poll")


@pytest.mark.parametrize("place", ["data", "root", "response", "info"])
@pytest.mark.parametrize("url", HOSTILE_URLS, ids=range(len(HOSTILE_URLS)))
def test_a_file_that_is_nowhere_settles_nothing(url, place):
    """A callback settles with an absolute https URL only; for any other the poll decides."""
    with _with_an_open_task() as world:
        data: dict[str, object] = {"task_id": TASK}
        document: dict[str, object] = {"code": 200, "data": data}
        inside = {"data": data, "root": document}.get(place)
        if inside is None:
            data[place] = inside = {}
        inside["audioWavUrl"] = url
        signed = signed_body(TASK, json.dumps(document).encode(), world.clock.time())
        told = world.deliver(signed, query_of(world.service.tasks[TASK]))
        assert told in {CallbackResult.SETTLED, CallbackResult.POLLING}
        world.advance(60.0)
        wav = world.waiters[0].result()
        assert wav.url.scheme == "https"
        assert wav.url.host
        assert (told is CallbackResult.POLLING) is (str(wav.url) == file_of(TASK))


# --- scripts: what two worlds go through alike ------------------------------------------------

FATES = [ACCEPTED, ACCEPTED, LOST_CHARGED, LOST_FREE, UNSENT, refusal(422), refusal(409)]

POLLS = {
    "pending": pending,
    "succeeded": succeeded,
    "bare": lambda task_id: pending(task_id, successFlag="SUCCESS"),
    "none": lambda _: missing(),
    "429": lambda _: refused(429, retry_after="20"),
    "500": lambda _: refused(500),
    "html": lambda _: raw(b"<html>"),
    "another's": lambda _: succeeded("another"),
}

_moves = st.one_of(
    st.tuples(st.just("convert"), st.integers(1, 3)),
    st.tuples(st.just("advance"), st.sampled_from([0.5, 1.0, 3.0, 3.0, 15.0, 41.0, 200.0])),
    st.tuples(st.just("news"), st.sampled_from(sorted(POLLS))),
    st.tuples(st.just("attach"), st.integers(1, 3)),
)


def scripts(deliveries: st.SearchStrategy[tuple[str, object]]) -> st.SearchStrategy[list]:
    """Return scripts in which much is delivered, and some things happen in between."""
    rounds = st.tuples(
        st.lists(deliveries, min_size=1, max_size=3), st.lists(_moves, min_size=1, max_size=2)
    ).map(lambda drawn: [*drawn[0], *drawn[1]])
    return st.lists(rounds, min_size=2, max_size=6).map(lambda drawn: [*itertools.chain(*drawn)])


def _move(world: World, kind: str, what: object) -> None:
    """Do one step of a script."""
    if kind == "convert":
        world.start(world.session.convert(track(what)))
    elif kind == "advance":
        world.advance(what)
    elif kind == "news":
        world.service.poll_replies.append(POLLS[what])
    else:

        async def attach():
            return await world.session.attach(f"task{what:04d}")

        world.start(attach())


_worlds = st.fixed_dictionaries(
    {
        "fates": st.lists(st.sampled_from(range(len(FATES))), max_size=4),
        "latency_s": st.sampled_from([0.0, 3.0]),
        "on_unknown": st.sampled_from(OnUnknown),
        "trust": trusts,
    }
)


def _world(drawn: dict[str, object], **settings: object) -> World:
    world = World(
        service={"latency_s": drawn["latency_s"]},
        on_unknown=drawn["on_unknown"],
        callback_trust=drawn["trust"],
        timeout_s=300.0,
        **settings,
    )
    world.service.fates.extend(FATES[number] for number in drawn["fates"])
    for number in (1, 2):
        world.start(world.session.convert(track(number)))
    return world


# --- what is not authentic ------------------------------------------------------------------

_SPOILS = ["key", "stale", "future", "body of another", "twice", "cut", "none", "unreadable"]


def _spoiled(world: World, how: str, task_id: str) -> SignedCallback:
    """Return a callback of the task that is no longer authentic, or readable."""
    now = world.clock.time()
    headers, body = world.callback(task_id)
    signature = headers["X-Webhook-Signature"]
    return {
        "key": world.callback(task_id, key=OTHER_KEY),
        "stale": world.callback(task_id, now_unix_s=now - 302),
        "future": world.callback(task_id, now_unix_s=now + 302),
        "body of another": SignedCallback(headers, world.callback("x" + task_id).body),
        "twice": SignedCallback([*headers.items(), *headers.items()], body),
        "cut": SignedCallback({**headers, "X-Webhook-Signature": signature[:-1]}, body),
        "none": SignedCallback({}, body),
        "unreadable": SignedCallback(headers, body.replace(b"{", b"[", 1)),
    }[how]


@given(
    _worlds,
    scripts(
        st.tuples(
            st.just("deliver"),
            st.tuples(st.integers(1, 3), st.sampled_from(_SPOILS), st.booleans()),
        )
    ),
)
def test_nothing_unauthentic_changes_anything_but_a_counter(drawn, script):
    """A session that got forgeries is, event by event and poll by poll, one that got none."""
    with _world(drawn) as world, _world(drawn) as spared:
        refusals = 0
        for kind, what in [*script, ("advance", 1_000.0)]:
            if kind != "deliver":
                _move(world, kind, what)
                _move(spared, kind, what)
                continue
            number, how, is_named = what
            task = world.service.tasks.get(f"task{number:04d}")
            query = query_of(task) if task is not None and is_named else ""
            told = world.deliver(_spoiled(world, how, f"task{number:04d}"), query)
            spared.run(spared.clock.run_pending())
            assert isinstance(told, SignatureError | CallbackFormatError)
            refusals += 1
            assert world.session.statistics().rejected_callbacks == refusals
        without = {"rejected_callbacks"}
        assert world.snapshot(without=without, unsaid=(CallbackRejected,)) == spared.snapshot(
            without=without
        )


@given(
    _worlds,
    scripts(st.tuples(st.just("deliver"), st.tuples(st.integers(0, 9), st.booleans()))),
)
def test_another_product_of_the_account_creates_nothing(drawn, script):
    """Authentic callbacks of foreign tasks count as orphans; all else is as without them."""
    with _world(drawn) as world, _world(drawn) as spared:
        orphans = 0
        for kind, what in [*script, ("advance", 1_000.0)]:
            if kind != "deliver":
                _move(world, kind, what)
                _move(spared, kind, what)
                continue
            number, is_named = what
            # Whoever reads access logs knows the attempts; lost ones are another matter.
            lost = {unknown.attempt_id for unknown in world.session.unknown_submits()}
            named = [task for task in world.service.tasks.values() if task.attempt_id not in lost]
            is_sending = world.session._core.registry.sending
            query = query_of(named[0]) if named and is_named and not is_sending else ""
            told = world.deliver(world.callback(f"music{number}"), query)
            spared.run(spared.clock.run_pending())
            assert told is CallbackResult.UNKNOWN_TASK
            orphans += 1
            assert world.session.statistics().unknown_task_callbacks == orphans
        without = {"unknown_task_callbacks"}
        assert world.snapshot(without=without, unsaid=(CallbackReceived,)) == spared.snapshot(
            without=without
        )


# --- hints ----------------------------------------------------------------------------------

_BODIES = ["genuine", "file of another", "plain http", "no file", "failed", "odd code"]


def _authentic(world: World, task_id: str, body: str) -> SignedCallback:
    """Return a callback that is authentic, whatever it says."""
    if body == "failed":
        return world.callback(task_id, None, code=500, message="failed")
    if body == "odd code":
        return world.callback(task_id, code="2e2")
    urls = {
        "genuine": "",
        "file of another": "https://evil.invalid/x.wav",
        "plain http": "http://h/x",
    }
    return world.callback(task_id, urls.get(body))


_deliveries = st.tuples(
    st.just("deliver"),
    st.tuples(
        st.sampled_from([1, 1, 2, 2, 3]),
        st.sampled_from(_BODIES),
        st.sampled_from(["own", "other", "none"]),
    ),
)


def _hint_early_ones(world: World, early: dict[str, float]) -> None:
    """Have tasks that are named in *early* polled as soon as they are followed."""
    core = world.session._core
    usual = core._callbacks.use_early

    def use_early(entry: TaskEntry, now_s: float) -> None:
        usual(entry, now_s)
        came_at = early.pop(entry.task_id, -math.inf)
        if now_s - came_at < BUFFERED_S:
            core._polls.request(entry.task_id, now_s)

    core._callbacks.use_early = use_early


async def _request_poll(session: WavSession, task_id: str) -> None:
    """Have a task polled, as a callback does."""
    session._core._polls.request(task_id, session._context.clock.monotonic())
    session._loop.do([])


@given(_worlds, scripts(_deliveries))
def test_under_hint_a_delivery_is_a_poll(drawn, script):
    """Under CONFIRM an authentic callback of a task in flight does what a prompt poll does."""
    drawn = drawn | {"trust": CallbackTrust.CONFIRM, "latency_s": 0.0}
    with _world(drawn) as world, _world(drawn) as polled:
        early: dict[str, float] = {}
        _hint_early_ones(polled, early)
        for kind, what in [*script, ("advance", 1_000.0)]:
            if kind != "deliver":
                _move(world, kind, what)
                _move(polled, kind, what)
                continue
            number, body, named = what
            task = world.service.tasks.get(f"task{number:04d}")
            lost = {unknown.attempt_id for unknown in world.session.unknown_submits()}
            if task is None or (task.attempt_id in lost and named == "own"):
                continue
            query = {"own": query_of(task), "other": "attempt=" + "f" * 32, "none": ""}[named]
            told = world.deliver(_authentic(world, task.task_id, body), query)
            assert told is not CallbackResult.SETTLED
            if any(c.task_id == task.task_id for c in polled.session.conversions()):
                polled.run(_request_poll(polled.session, task.task_id))
            elif told is CallbackResult.UNKNOWN_TASK:
                now = polled.clock.monotonic()
                if now - early.get(task.task_id, -math.inf) >= BUFFERED_S:
                    early[task.task_id] = now
            polled.run(polled.clock.run_pending())
            world.run(world.clock.run_pending())
        assert world.snapshot(
            without=COUNTERS_OF_CALLBACKS, unsaid=(CallbackReceived,)
        ) == polled.snapshot(without=COUNTERS_OF_CALLBACKS)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.3, 2.0, 11.0, 30.0]),
            st.integers(1, 4),
            st.sampled_from(_BODIES),
            st.sampled_from(["own", "other", "none"]),
        ),
        min_size=2,
        max_size=10,
    ),
    st.sets(st.integers(1, 3)),
    st.sampled_from([0.0, 0.4, 3.0]),
    st.sampled_from([10.0, 300.0]),
)
def test_under_hint_the_end_is_that_of_polling_alone(deliveries, failing, latency_s, backstop_s):
    """Under CONFIRM no delivery changes how a conversion ends or ends it before the service did."""
    schedule = PollSchedule(jitter=0.0, backstop_s=backstop_s)
    made = {"service": {"latency_s": latency_s}, "poll": schedule}
    with World(callback_trust=CallbackTrust.CONFIRM, **made) as world, World(**made) as alone:
        for each in (world, alone):
            each.service.failing = {f"task{number:04d}" for number in failing}
            each.service.fates.append(LOST_CHARGED)
            for number in (1, 2, 3):
                each.start(each.session.convert(track(number)))
            each.advance(latency_s)
        # The user, who looks for the one that is lost; callbacks may have found it before.
        for after_s, number, body, named in deliveries:
            task = world.service.tasks.get(f"task{number:04d}")
            if task is not None:
                query = {"own": query_of(task), "other": "attempt=" + "f" * 32, "none": ""}[named]
                world.deliver(_authentic(world, task.task_id, body), query)
            for waiter in world.waiters:
                assert not (waiter.done() and world.clock.monotonic() < 1_040.0) or (
                    "Unknown" in repr(waiter.exception())
                )
            world.advance(after_s)
        for each in (world, alone):
            each.advance(10.0)  # What a probe may still bring.
            for unknown in each.session.unknown_submits():
                each.run(each.session.resolve_unknown(unknown.attempt_id, task_id=TASK))
            each.advance(500.0)
        # That a callback settled is never said under CONFIRM.
        assert world.figures(without={*COUNTERS_OF_CALLBACKS, "polls"}) == alone.figures(
            without={*COUNTERS_OF_CALLBACKS, "polls"}
        )
        assert world.outcomes() == alone.outcomes()
        assert world.session.conversions() == alone.session.conversions() == ()
        again = [
            each.run(each.session.submit(track(number)))
            for each in (world, alone)
            for number in (1, 2, 3)
            if f"task{number:04d}" not in each.service.failing
        ]
        ended = [repr(conversion.result()) for conversion in again]
        assert ended[: len(ended) // 2] == ended[len(ended) // 2 :]


# --- lost answers ------------------------------------------------------------------------------

_records = st.fixed_dictionaries(
    {},
    optional={
        "musicId": st.sampled_from(["e1", "e2", "", None, 7]),
        "callbackUrl": st.sampled_from(
            [
                ADDRESS + "&attempt=" + "0" * 31 + "1",
                ADDRESS + "&attempt=" + "0" * 31 + "2",
                ADDRESS + "&attempt=" + "0" * 31 + "1" + "&attempt=" + "0" * 31 + "2",
                "https://elsewhere.example/kie?attempt=" + "0" * 31 + "1",
                ADDRESS,
                "",
                None,
            ]
        ),
    },
)


@given(trusts, _records, st.sampled_from(["before", "after"]), st.sampled_from(_BODIES))
@hypothesis.example(
    trust=CallbackTrust.PAYLOAD,
    record={"musicId": "e1", "callbackUrl": ADDRESS + "&attempt=" + "0" * 31 + "1"},
    when="before",
    body="file of another",
)
@hypothesis.example(
    trust=CallbackTrust.CONFIRM,
    record={"musicId": "e1", "callbackUrl": ADDRESS + "&attempt=" + "0" * 31 + "1"},
    when="after",
    body="failed",
)
def test_a_lost_submit_is_explained_by_its_record_alone(trust, record, when, body):
    """A lost submit is adopted if the record shows its track and its attempt, else left alone."""
    with World(callback_trust=trust, service={"latency_s": 2.0}) as world:
        world.service.fates.append(LOST_CHARGED)
        world.start(world.session.convert(Track("5c79", "e1")))
        world.service.poll_replies.extend([lambda task_id: pending(task_id, **record)] * 50)
        world.advance(1.5 if when == "before" else 2.5)
        query = query_of(world.service.tasks[TASK])
        world.deliver(_authentic(world, TASK, body), query)
        world.advance(5.0)
        is_shown = (
            record.get("musicId") == "e1"
            and record.get("callbackUrl") == ADDRESS + "&attempt=" + "0" * 31 + "1"
        )
        assert [c.task_id for c in world.session.conversions()] == [TASK] * is_shown
        figures = world.session.statistics()
        assert (figures.adopted, figures.accepted) == (is_shown, is_shown)
        assert figures.unknown == (not is_shown)
        assert figures.settled_by_callback == 0
        assert world.service.charged == 1 == len(world.service.submitted_at)


def test_the_steady_schedule_takes_no_chance():
    """Two worlds without deliveries are alike, or nothing here would compare anything."""
    assert STEADY.jitter == 0.0
    seen = []
    for _ in range(2):
        with World(service={"latency_s": 0.4}) as world:
            world.service.fates.extend([ACCEPTED, LOST_CHARGED, UNSENT])
            for number in (1, 2, 3):
                world.start(world.session.convert(track(number)))
            world.advance(300.0)
            seen.append(world.snapshot())
    assert seen[0] == seen[1]
    assert len(seen[0].polled_at) > 2
