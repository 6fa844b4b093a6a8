"""The session's face: its arguments, its books, its reads, and where it may be used."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import threading
import warnings
from decimal import Decimal

import pytest
from yarl import URL

from fakes import KEY, LOST_FREE, FakeService, lost, raw, track, unsent
from kie_wav_async import (
    AiohttpTransport,
    PollSchedule,
    RateLimit,
    RetryPolicy,
    Statistics,
    SystemClock,
    TaskState,
    Track,
    WavSession,
)
from kie_wav_async.errors import (
    AuthenticationError,
    InvalidRequestError,
    MaintenanceError,
    NotFoundError,
    RateLimitedError,
    ServerError,
    SessionClosedError,
    SubmitUnknownError,
    TransportError,
    WireFormatError,
)
from kie_wav_async.testing import (
    FakeClock,
    ScriptedTransport,
    answer,
    failed,
    missing,
    pending,
    refused,
    succeeded,
)


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock) -> FakeService:
    """Return a service that means well until it is told otherwise."""
    return FakeService(clock)


# --- arguments ----------------------------------------------------------------------------

WRONG_VALUES = [
    ("api_key", ""),
    ("api_key", "two words"),
    ("api_key", "line\nbreak"),
    ("api_key", "carriage\rreturn"),
    ("api_key", "nul\x00"),
    ("api_key", "schlüssel"),
    ("base_url", ""),
    ("base_url", "api.kie.ai"),
    ("base_url", "/relative"),
    ("base_url", "ftp://api.kie.ai"),
    ("base_url", "http://api.kie.ai"),
    ("base_url", URL("http://api.kie.ai")),
    ("base_url", "http://192.168.1.5:8080"),
    ("base_url", "https://user@api.kie.ai"),
    ("base_url", "https://user:secret@api.kie.ai"),
    ("base_url", "https://api.kie.ai/?x=1"),
    ("base_url", "https://api.kie.ai/?"),
    ("base_url", "https://api.kie.ai/#top"),
    ("base_url", "https://api.kie.ai:99999"),
    ("max_in_flight", 0),
    ("max_in_flight", -1),
    ("max_charges", 0),
    ("timeout_s", 0),
    ("timeout_s", -1.0),
    ("timeout_s", math.nan),
    ("timeout_s", math.inf),
    ("on_unknown", "shrug"),
]

WRONG_TYPES = [
    ("api_key", 5),
    ("api_key", b"key"),
    ("base_url", 5),
    ("base_url", b"https://api.kie.ai"),
    ("rate_limit", 20),
    ("rate_limit", (20, 10.0)),
    ("rate_limit", None),
    ("max_in_flight", "400"),
    ("max_in_flight", 400.0),
    ("max_in_flight", True),
    ("max_in_flight", None),
    ("max_charges", 1.5),
    ("max_charges", "5"),
    ("timeout_s", "900"),
    ("timeout_s", True),
    ("poll", 10.0),
    ("retry", 3),
    ("on_event", "print"),
    ("insecure_hosts", "localhost"),
    ("insecure_hosts", 5),
    ("insecure_hosts", [5]),
    ("insecure_hosts", b"localhost"),
    ("transport", object()),
    ("transport", AiohttpTransport),
    ("clock", object()),
]


def settings(name: str, value: object) -> dict[str, object]:
    """Return good settings with one changed."""
    return {"api_key": KEY, name: value}


@pytest.mark.parametrize(("name", "value"), WRONG_VALUES)
def test_wrong_value_is_refused_at_the_call(name, value) -> None:
    """A setting out of range is a ValueError of the constructor."""
    with pytest.raises(ValueError, match=r"."):
        WavSession(**settings(name, value))


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES, ids=lambda value: repr(value)[:30])
def test_wrong_type_is_refused_at_the_call(name, value) -> None:
    """A setting of the wrong type is a TypeError of the constructor that names it."""
    with pytest.raises(TypeError, match=name):
        WavSession(**settings(name, value))


@pytest.mark.parametrize(
    "make",
    [
        lambda n: PollSchedule(first_s=n),
        lambda n: PollSchedule(interval_s=n),
        lambda n: PollSchedule(max_per_s=n),
        lambda n: RetryPolicy(base_s=n),
        lambda n: RetryPolicy(retry_after_cap_s=n),
        lambda n: RateLimit(20, per_s=n),
    ],
    ids=["first_s", "interval_s", "max_per_s", "base_s", "retry_after_cap_s", "per_s"],
)
@pytest.mark.parametrize("number", [-1.0, math.nan, math.inf, -math.inf])
def test_wrong_durations_are_refused_at_the_call(make, number) -> None:
    """A negative, infinite or NaN duration is a ValueError where it is given."""
    with pytest.raises(ValueError, match=r"finite|at least|above"):
        make(number)


@pytest.mark.parametrize(
    "base_url",
    [
        "https://api.kie.ai",
        "https://api.kie.ai/",
        "https://mirror.example/kie/",
        "http://localhost:8080",
        "http://127.0.0.1:1",
        "http://[::1]:1",
        "http://Simulator.Internal",
        URL("https://api.kie.ai"),
    ],
    ids=repr,
)
def test_good_base_urls(base_url) -> None:
    """Https anywhere is fine, and plain http to loopback and the insecure hosts."""
    session = WavSession(KEY, base_url=base_url, insecure_hosts=["SIMULATOR.internal"])
    assert str(URL(base_url).host) in repr(session)


def test_insecure_hosts_are_bare_hosts() -> None:
    """A host with a port in *insecure_hosts* would match nothing, and is refused by name."""
    with pytest.raises(ValueError, match="insecure_hosts"):
        WavSession(KEY, insecure_hosts=["simulator.internal:80"])


def test_insecure_hosts_of_the_environment(monkeypatch) -> None:
    """Without insecure hosts of its own a session has those of the environment, if any."""
    base_url = "http://simulator.internal:8080"
    monkeypatch.setenv("KIE_INSECURE_HOSTS", " ::1, Simulator.internal,,")
    assert repr(WavSession(KEY, base_url=base_url)) == f"<WavSession {base_url} not entered>"
    for hosts in ([], ["other.internal"]):
        with pytest.raises(ValueError, match="must be https"):
            WavSession(KEY, base_url=base_url, insecure_hosts=hosts)
    for value in ("", " ", ","):
        monkeypatch.setenv("KIE_INSECURE_HOSTS", value)
        with pytest.raises(ValueError, match="must be https"):
            WavSession(KEY, base_url=base_url)


def test_a_wrong_insecure_host_of_the_environment(monkeypatch) -> None:
    """A host with a scheme or a port is refused by the name of the variable."""
    monkeypatch.setenv("KIE_INSECURE_HOSTS", "127.0.0.1,http://mirror:80")
    with pytest.raises(ValueError, match=r"KIE_INSECURE_HOSTS must be host names.*'http://mirror"):
        WavSession(KEY)


def test_insecure_hosts_relax_nothing_else() -> None:
    """A host listed as insecure opens no other host, and no parent or child of it."""
    for host in ("example.org", "sub.simulator.internal", "internal"):
        with pytest.raises(ValueError, match="http"):
            WavSession(KEY, base_url=f"http://{host}", insecure_hosts=["simulator.internal"])


def test_wrong_key_is_not_shown() -> None:
    """The error about a malformed key does not quote it."""
    with pytest.raises(ValueError, match="api_key") as caught:
        WavSession("sk-secret\n")
    assert "sk-secret" not in str(caught.value)


# --- the environment ----------------------------------------------------------------------


async def test_key_and_address_come_from_the_environment(clock, monkeypatch) -> None:
    """KIE_API_KEY and KIE_BASE_URL serve where nothing is passed, read at construction only."""
    monkeypatch.setenv("KIE_API_KEY", "from-environment")
    monkeypatch.setenv("KIE_BASE_URL", "https://mirror.example/kie")
    transport = ScriptedTransport([answer({"code": 200, "data": 1})])
    session = WavSession(transport=transport, clock=clock)
    monkeypatch.setenv("KIE_API_KEY", "later")
    monkeypatch.setenv("KIE_BASE_URL", "https://later.example")
    async with session:
        await session.get_credits()
    (request,) = transport.requests
    assert "Bearer from-environment" == request.headers["Authorization"]
    assert request.url.startswith("https://mirror.example/kie/api/v1/")


async def test_arguments_go_before_the_environment(clock, monkeypatch) -> None:
    """What is passed counts, whatever the environment says."""
    monkeypatch.setenv("KIE_API_KEY", "from-environment")
    monkeypatch.setenv("KIE_BASE_URL", "not an address")
    transport = ScriptedTransport([answer({"code": 200, "data": 1})])
    passed = WavSession("passed", base_url="https://h", transport=transport, clock=clock)
    async with passed as session:
        await session.get_credits()
    (request,) = transport.requests
    assert "Bearer passed" == request.headers["Authorization"]
    assert request.url.startswith("https://h/api")


def test_no_key_is_an_error(monkeypatch) -> None:
    """Without a key anywhere the constructor says where to put one."""
    monkeypatch.delenv("KIE_API_KEY", raising=False)
    with pytest.raises(ValueError, match="KIE_API_KEY"):
        WavSession()


def test_environment_is_checked_like_arguments(monkeypatch) -> None:
    """A malformed key or address of the environment is a ValueError as well."""
    monkeypatch.setenv("KIE_API_KEY", "two\nlines")
    with pytest.raises(ValueError, match="api_key"):
        WavSession()
    monkeypatch.setenv("KIE_API_KEY", "good")
    monkeypatch.setenv("KIE_BASE_URL", "http://api.kie.ai")
    with pytest.raises(ValueError, match="http"):
        WavSession()


def test_empty_address_in_the_environment_is_none(monkeypatch) -> None:
    """KIE_BASE_URL set to nothing means the service's own address."""
    monkeypatch.setenv("KIE_BASE_URL", "")
    assert "https://api.kie.ai" in repr(WavSession(KEY))


def test_environment_is_read_nowhere_else(monkeypatch) -> None:
    """Neither importing nor anything but the constructor looks at the environment."""
    looked = []

    class Watched(dict):
        def get(self, name, default=None):
            looked.append(name)
            return super().get(name, default)

    monkeypatch.setattr(os, "environ", Watched(KIE_API_KEY=KEY))

    async def use():
        clock = FakeClock()
        service = FakeService(clock)
        session = service.session()
        del looked[:]
        async with session:
            await clock.run(session.convert(track()))
        return [name for name in looked if name.startswith("KIE")]

    assert [] == asyncio.run(use())


# --- bad calls ----------------------------------------------------------------------------

BAD_IDS = ["", " ", "a b", "a\nb", "a\x00b", "a\u202eb", "x" * 257]


@pytest.mark.parametrize("bad", BAD_IDS, ids=ascii)
async def test_bad_ids_are_refused_at_the_call(service, bad) -> None:
    """An id that can be none is a ValueError of every call that takes one, nothing sent."""
    async with service.session() as session:
        with pytest.raises(ValueError, match="music_task_id"):
            Track(bad, "e1")
        with pytest.raises(ValueError, match="audio_id"):
            Track("5c79", bad)
        with pytest.raises(ValueError, match="task_id"):
            session.attach(bad)
        with pytest.raises(ValueError, match="task_id"):
            await session.get_task(bad)
        with pytest.raises(ValueError, match="music_task_id"):
            await session.list_tracks(bad)
        assert [] == service.transport.requests
        assert Statistics() == session.statistics()


@pytest.mark.parametrize("bad", [None, 5, b"t1", ["t1"]], ids=repr)
async def test_bad_types_are_refused_at_the_call(service, bad) -> None:
    """A value of the wrong type is a TypeError of every call, nothing sent."""
    async with service.session() as session:
        for call in (session.submit, session.convert, session.get_task, session.list_tracks):
            with pytest.raises(TypeError):
                await call(bad)
        with pytest.raises(TypeError):
            session.attach(bad)
        with pytest.raises(TypeError):
            session.attach("t1", track=bad or ("5c79", "e1"))
        assert [] == service.transport.requests


@pytest.mark.parametrize("bad", ["", "x.wav", "ftp://h/x", "https://", "https://a b/\n"], ids=repr)
async def test_bad_urls_are_refused_at_the_call(service, bad) -> None:
    """A link that is no absolute http(s) URL is a ValueError, nothing sent."""
    async with service.session() as session:
        with pytest.raises(ValueError, match="url"):
            await session.create_download_url(bad)
        assert [] == service.transport.requests


# --- where a session may be used ----------------------------------------------------------


def calls(session) -> list:
    """Return every call that needs an open session."""
    return [
        lambda: session.submit(track()),
        lambda: session.convert(track()),
        lambda: session.get_task("t1"),
        lambda: session.list_tracks("m1"),
        session.get_credits,
        lambda: session.create_download_url("https://h/x.wav"),
        lambda: session.resolve_unknown("x", not_charged=True),
        lambda: session.attach("t1"),
        lambda: session.convert_all([track()]),
    ]


async def attempt(call) -> None:
    """Make a call, async or not."""
    made = call()
    if asyncio.iscoroutine(made):
        await made


async def test_session_never_entered(service) -> None:
    """Every call of a session never entered is a RuntimeError that names async with."""
    session = service.session()
    for call in calls(session):
        with pytest.raises(RuntimeError, match="async with"):
            await attempt(call)
    assert [] == service.transport.requests
    assert () == session.conversions()
    assert () == session.unknown_submits()
    assert Statistics() == session.statistics()


async def test_closing_a_session_never_entered(service) -> None:
    """aclose() of a session never entered does nothing, and it may be entered afterwards."""
    session = service.session()
    await session.aclose()
    await session.aclose()
    assert not service.transport.is_closed
    async with session:
        pass


async def test_session_entered_twice(service) -> None:
    """A session entered again, open or closed, is a RuntimeError that names async with."""
    async with service.session() as session:
        with pytest.raises(RuntimeError, match="async with"):
            await session.__aenter__()
    with pytest.raises(RuntimeError, match="async with"):
        await session.__aenter__()


async def test_session_in_another_loop(service) -> None:
    """Every call from another loop is a RuntimeError that names async with, waits included."""
    async with service.session() as session:
        conversion = session.attach("t1")
        seen = []

        async def misuse():
            for call in (*calls(session), session.aclose, conversion.wait, conversion.wait):
                with pytest.raises(RuntimeError, match="async with"):
                    await attempt(call)
                seen.append(call)

        thread = threading.Thread(target=asyncio.run, args=(misuse(),))
        thread.start()
        await asyncio.to_thread(thread.join)
        assert 12 == len(seen)
        assert (conversion,) == session.conversions()


async def test_session_without_a_loop(service) -> None:
    """A call from a thread without a loop is a RuntimeError that names async with."""
    async with service.session() as session:
        seen = []

        def misuse():
            try:
                session.attach("t1")
            except RuntimeError as error:
                seen.append(str(error))

        await asyncio.to_thread(misuse)
        assert 1 == len(seen)
        assert "async with" in seen[0]


async def test_every_call_after_closing(service) -> None:
    """Every call of a closed session raises SessionClosedError, and the books stay readable."""
    async with service.session() as session:
        attached = session.attach("t1")
    for call in calls(session):
        with pytest.raises(SessionClosedError):
            await attempt(call)
    with pytest.raises(SessionClosedError) as caught:
        await attached
    assert "t1" == caught.value.task_id
    assert (attached,) == session.conversions()
    assert 1 == session.statistics().in_flight


async def test_session_never_closed() -> None:
    """A session that was entered and dropped complains with a ResourceWarning."""

    async def drop():
        session = FakeService(FakeClock()).session()
        await session.__aenter__()
        del session
        gc.collect()

    with pytest.warns(ResourceWarning, match="never closed"):
        await drop()


async def test_session_closed_or_never_entered_is_quiet() -> None:
    """A session that was closed, never entered, or never made leaves no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FakeService(FakeClock()).session()
        with pytest.raises(ValueError, match="api_key"):
            WavSession("")
        async with FakeService(FakeClock()).session():
            pass
        gc.collect()


async def test_default_parts() -> None:
    """A session makes its own transport and uses the machine's clock, and needs neither."""
    async with WavSession(KEY) as session:
        assert isinstance(session._context.transport, AiohttpTransport)
        assert isinstance(session._context.clock, SystemClock)


def test_repr_names_address_and_state() -> None:
    """The repr of a session tells where it talks to and whether it is open."""

    async def look():
        session = FakeService(FakeClock()).session()
        seen = [repr(session)]
        async with session:
            seen.append(repr(session))
        return [*seen, repr(session)]

    assert [
        "<WavSession https://api.kie.ai not entered>",
        "<WavSession https://api.kie.ai open>",
        "<WavSession https://api.kie.ai closed>",
    ] == asyncio.run(look())


# --- attach -------------------------------------------------------------------------------


async def test_attached_task_is_followed(clock, service) -> None:
    """An attached task settles by polls, with the track it was attached with or none."""
    service.create("old", track())
    async with service.session() as session:
        conversion = session.attach("old")
        assert ("old", None) == (conversion.task_id, conversion.track)
        assert (conversion,) == session.conversions()
        wav = await clock.run(conversion.wait())
        assert ("old", None, None, "poll") == (
            wav.task_id,
            wav.track,
            wav.expires_at,
            wav.settled_by,
        )
        counted = session.statistics()
        assert (0, 0, 0) == (counted.submitted, counted.accepted, counted.adopted)


async def test_task_followed_already_is_joined(clock, service) -> None:
    """Attaching a task in flight gives its conversion, attached or submitted."""
    async with service.session() as session:
        submitted = await clock.run(session.submit(track()))
        assert submitted is session.attach("task0001")
        assert submitted is session.attach("task0001", track=track())
        attached = session.attach("other")
        assert attached is session.attach("other")
        assert 2 == session.statistics().in_flight


async def test_attached_task_learns_its_track(clock, service) -> None:
    """A track given later names an attached task, and a submit of it joins."""
    service.create("old", track())
    async with service.session() as session:
        conversion = session.attach("old")
        assert conversion is session.attach("old", track=track())
        assert track() == conversion.track
        assert conversion is await session.submit(track())
        assert track() == (await clock.run(conversion.wait())).track


async def test_task_of_another_track_is_misuse(clock, service) -> None:
    """Attaching a task in flight under another track is a ValueError."""
    async with service.session() as session:
        await clock.run(session.submit(track(1)))
        with pytest.raises(ValueError, match="another track"):
            session.attach("task0001", track=track(2))


async def test_settled_task_can_be_attached_again(clock, service) -> None:
    """A task that was settled is asked about anew when it is attached."""
    async with service.session() as session:
        first = await clock.run(session.convert(track()))
        again = session.attach("task0001")
        assert not again.done()
        assert first.url == (await clock.run(again.wait())).url


# --- reads --------------------------------------------------------------------------------


def scripted(clock, replies, **settings) -> WavSession:
    """Return a session over a script."""
    return WavSession(KEY, transport=ScriptedTransport(replies), clock=clock, **settings)


async def test_record_is_one_poll(clock) -> None:
    """record() polls once and returns what the service says, settling nothing."""
    async with scripted(clock, [succeeded("t1", "https://h/x.wav", musicId="e1")]) as session:
        record = await session.get_task("t1")
        assert ("t1", TaskState.SUCCEEDED, "e1", URL("https://h/x.wav")) == (
            record.task_id,
            record.state,
            record.audio_id,
            record.wav_url,
        )
        assert Statistics(polls=1) == session.statistics()


async def test_record_of_an_unknown_task(clock) -> None:
    """record() of a task the service does not know is None."""
    async with scripted(clock, [missing()]) as session:
        assert await session.get_task("t1") is None


async def test_record_of_a_failed_task(clock) -> None:
    """record() returns the record of a failure as well, with its words."""
    async with scripted(clock, [failed("t1", "too\nloud")]) as session:
        record = await session.get_task("t1")
        assert (TaskState.FAILED, 500, "too loud") == (
            record.state,
            record.error_code,
            record.error_message,
        )


async def test_errors_of_record_name_the_task(clock) -> None:
    """What record() raises names the task it asked about."""
    replies = [refused(401), raw(b"<html>"), refused(500), lost()]
    async with scripted(clock, replies, retry=RetryPolicy(attempts=1)) as session:
        for kind in (AuthenticationError, WireFormatError, ServerError, TransportError):
            with pytest.raises(kind) as caught:
                await session.get_task("t1")
            assert "t1" == caught.value.task_id


async def test_tracks_lists_a_music_task(clock) -> None:
    """tracks() returns the distinct tracks of a music task in order, with their titles."""
    songs = [{"id": "e1", "title": "Dawn"}, {"id": "e2"}, {"id": "e1"}]
    music = {"taskId": "m1", "status": "SUCCESS", "response": {"sunoData": songs}}
    async with scripted(clock, [answer({"code": 200, "data": music})]) as session:
        found = await session.list_tracks("m1")
        assert [Track("m1", "e1"), Track("m1", "e2")] == found
        assert ["Dawn", None] == [track.title for track in found]


async def test_tracks_of_an_unknown_music_task(clock) -> None:
    """tracks() of a music task that is unknown is NotFoundError, and not asked again."""
    async with scripted(clock, [answer({"code": 200, "data": None})]) as session:
        with pytest.raises(NotFoundError):
            await session.list_tracks("m1")


async def test_credits_are_exact(clock) -> None:
    """credits() returns the service's number as a Decimal, its fraction included."""
    async with scripted(clock, [answer({"code": 200, "data": 5916.25})]) as session:
        assert Decimal("5916.25") == await session.get_credits()


async def test_fresh_url_asks_for_the_link(clock) -> None:
    """create_download_url() sends the link as it is and returns the temporary one."""
    transport = ScriptedTransport([answer({"code": 200, "data": "https://h/tmp?sig=a%2Fb"})] * 2)
    async with WavSession(KEY, transport=transport, clock=clock) as session:
        for url in ("https://h/x%2Fy.wav", URL("https://h/x%2Fy.wav", encoded=True)):
            assert "https://h/tmp?sig=a%2Fb" == str(await session.create_download_url(url))
    sent = [json.loads(request.body) for request in transport.requests]
    assert [{"url": "https://h/x%2Fy.wav"}] * 2 == sent


async def test_fresh_url_of_a_strangers_file(clock) -> None:
    """create_download_url() of a file that is not the service's is InvalidRequestError, at once."""
    async with scripted(clock, [refused(422, "url is wrong")]) as session:
        with pytest.raises(InvalidRequestError, match="url is wrong"):
            await session.create_download_url("https://h/x.wav")


TRANSIENT = {
    "reset": (lost, TransportError),
    "unsent": (unsent, TransportError),
    "html": (lambda: raw(b"<html>"), WireFormatError),
    "500": (lambda: refused(500), ServerError),
    "408": (lambda: refused(408), ServerError),
    "429": (lambda: refused(429), RateLimitedError),
    "455": (lambda: refused(455), MaintenanceError),
    "status 502": (lambda: raw(b"<html>", 502), ServerError),
}


@pytest.mark.parametrize(("make", "kind"), TRANSIENT.values(), ids=TRANSIENT)
async def test_reads_are_repeated(clock, make, kind) -> None:
    """A read that meets a fault of the line or the service is repeated, then raises it."""
    credit = answer({"code": 200, "data": 1})
    async with scripted(clock, [make(), make(), credit, *(make() for _ in range(3))]) as session:
        assert 1 == await clock.run(session.get_credits())
        with pytest.raises(kind):
            await clock.run(session.get_credits())
        assert 6 == len(session._context.transport.requests)


async def test_reads_back_off_with_full_jitter(clock) -> None:
    """Reads wait a chance share of a growing back-off, or what the service asks for."""
    times = []

    def script(_):
        times.append(clock.monotonic() - 1_000.0)
        return refused(429, retry_after="400") if len(times) == 4 else refused(500)

    policy = RetryPolicy(attempts=5, base_s=2.0, cap_s=6.0)
    async with scripted(clock, script, retry=policy) as session:
        session._context.random = iter([0.5, 0.5, 1.0, 0.5]).__next__
        with pytest.raises(ServerError):
            await clock.run(session.get_task("t1"))
        assert [0.0, 1.0, 3.0, 9.0, 309.0] == times
        counted = session.statistics()
        assert (5, 1) == (counted.polls, counted.rejected_429)


@pytest.mark.parametrize("code", [400, 401, 402, 404, 409, 422, 451, 505])
async def test_refused_reads_are_not_repeated(clock, code) -> None:
    """A read that the service refuses on its merits raises at once."""
    async with scripted(clock, [refused(code)]) as session:
        with pytest.raises(Exception, match=str(code)):
            await session.get_credits()


async def test_waiting_read_ends_with_the_session(clock) -> None:
    """A read that waits for its next try ends with SessionClosedError when the session closes."""
    async with scripted(clock, lambda _: refused(429, retry_after="300")) as session:
        reads = [asyncio.create_task(session.get_credits()) for _ in range(3)]
        await clock.run_pending()
        await session.aclose()
        await asyncio.wait(reads)
        assert all(isinstance(read.exception(), SessionClosedError) for read in reads)
        assert 3 == len({id(read.exception()) for read in reads})
        assert 3 == len(session._context.transport.requests)


async def test_read_cut_off_by_closing(clock) -> None:
    """A read on the wire ends with SessionClosedError when the session closes, not a retry."""
    gate = asyncio.get_running_loop().create_future()
    async with scripted(clock, lambda _: gate) as session:
        read = asyncio.create_task(session.get_credits())
        await clock.run_pending()
        await session.aclose()
        with pytest.raises(SessionClosedError):
            await read


async def test_cancelled_read_leaves_nothing(clock) -> None:
    """A read cancelled while it waits for its next try leaves no timer behind."""
    async with scripted(clock, lambda _: refused(500)) as session:
        session._context.random = lambda: 0.9
        read = asyncio.create_task(session.get_credits())
        await clock.run_pending()
        read.cancel()
        await clock.run_pending()
        assert read.cancelled()
        assert clock._next() is None


# --- the books ----------------------------------------------------------------------------


async def test_conversions_lists_what_is_open(clock, service) -> None:
    """conversions() holds every task not terminal, oldest first, and nothing else."""
    async with service.session() as session:
        one = await clock.run(session.submit(track(1)))
        other = session.attach("else")
        two = await clock.run(session.submit(track(2)))
        service.fates.append(LOST_FREE)
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track(3)))
        assert (one, other, two) == session.conversions()
        await clock.run(asyncio.gather(one.wait(), two.wait()))
        assert one not in session.conversions()


async def test_statistics_of_a_varied_run(clock, service) -> None:
    """The counters of a run with one of each kind are what happened."""
    service.fates.append(LOST_FREE)
    service.create("old", track(9))
    async with service.session(timeout_s=100.0) as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track(0)))
        for number in (1, 2, 3, 9):
            await clock.run(session.submit(track(number)))
        service.tasks["task0003"].ends_at = math.inf
        service.poll_replies.append(failed)
        await clock.advance(200.0)
        counted = session.statistics()
        assert (
            Statistics(
                submitted=5,
                accepted=3,
                unknown=1,
                adopted=1,
                in_flight=0,
                settled_by_poll=2,
                failed=1,
                timed_out=1,
                polls=counted.polls,
            )
            == counted
        )
        # The adoption took a poll of its own.
        assert counted.polls == len(service.polled_at)


async def test_statistics_are_a_snapshot(clock, service) -> None:
    """Statistics once taken do not change, and cannot be changed."""
    async with service.session() as session:
        before = session.statistics()
        await clock.run(session.submit(track()))
        assert Statistics() == before
        with pytest.raises(AttributeError):
            before.accepted = 5


async def test_pending_reply_is_in_flight(clock) -> None:
    """A track whose record stays pending stays in the books."""
    async with scripted(clock, lambda _: pending("t1")) as session:
        conversion = session.attach("t1")
        await clock.advance(100.0)
        assert (conversion,) == session.conversions()


async def test_coroutine_function_is_no_handler(clock) -> None:
    """An async on_event would never be awaited, so it is refused at the call."""

    async def handle(_: object) -> None: ...

    with pytest.raises(TypeError, match=r"on_event is called, not awaited"):
        WavSession("key", on_event=handle, clock=clock)
