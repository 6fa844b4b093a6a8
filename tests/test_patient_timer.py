"""A loop that was held up looks at what has arrived before it believes its timers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl

import pytest
from yarl import URL

from certificates import SERVER_PEM, TRUSTED_PEM
from fakes import FakeService
from held import Hold, Peer, until
from hostile import BODY
from kie_wav_async import AiohttpTransport, Track, WavFile, WavSession
from kie_wav_async._support.patient_timer import PatientTimer, patient_timeout
from kie_wav_async._support.secret import Secret
from kie_wav_async.downloads import transfer
from kie_wav_async.downloads.file_client import FileClient, FileError
from kie_wav_async.downloads.throughput import ThroughputMonitor
from kie_wav_async.errors import ConversionTimeoutError, TransportTimeoutError
from kie_wav_async.http.connection_settings import ConnectionSettings
from kie_wav_async.protocol.requests import RequestBuilder
from kie_wav_async.testing import FakeClock, ScriptedTransport, accepted, pending, succeeded
from kie_wav_async.webhook import CallbackServer, request_handler
from proxy import http
from receivers import Served, Wire

KEY = "sk-not-to-be-seen-4711"
TRACK = Track("5c79", "e231")
OK = http("200 OK", '{"code":200,"msg":"success","data":{"taskId":"t1"}}')
LONG = http("200 OK", json.dumps({"code": 200, "data": "x" * 200_000}))


def submit_to(base_url):
    """Return a submit as the session would send it."""
    return RequestBuilder(URL(base_url), Secret(KEY)).submit(TRACK, "https://h/?attempt=00ff")


def read_from(base_url):
    """Return a request that costs nothing."""
    return RequestBuilder(URL(base_url), Secret(KEY)).poll("t1")


REQUESTS = pytest.mark.parametrize("request_to", [submit_to, read_from])


@pytest.fixture
async def hold():
    """Return what holds the loop up."""
    with Hold() as made:
        yield made


@pytest.fixture
def tls():
    """Return the contexts of a server and of its client."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(SERVER_PEM)
    return server, ssl.create_default_context(cafile=str(TRUSTED_PEM))


@contextlib.asynccontextmanager
async def sending(request, **settings):
    """Send *request* in a task, by a transport of its own."""
    transport = AiohttpTransport(**settings)
    task = asyncio.create_task(transport.send(request))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await transport.aclose()


# --- the transport ----------------------------------------------------------------------------


@REQUESTS
@pytest.mark.parametrize("answer", [OK, LONG], ids=["short", "long"])
async def test_an_answer_in_the_socket_is_taken(hold, request_to, answer) -> None:
    """An answer that came while the loop was held up for 62 s is the answer."""
    with Peer(answer) as peer:
        async with sending(request_to(peer.base_url)) as task:
            await until(lambda: peer.is_asked)
            hold.hold(62.0, peer.go)

            assert 200 == (await task).status


@REQUESTS
async def test_an_answer_in_the_socket_of_tls_is_taken(hold, tls, request_to) -> None:
    """Over TLS too."""
    server, client = tls
    with Peer(OK, context=server) as peer:
        async with sending(request_to(peer.base_url), ssl=client) as task:
            await until(lambda: peer.is_asked)
            hold.hold(62.0, peer.go)

            assert 200 == (await task).status


async def test_an_answer_that_is_read_while_the_loop_is_held_again(hold) -> None:
    """A program that holds the loop in each of its turns gets an answer that is there."""
    with Peer(OK) as peer:
        async with sending(submit_to(peer.base_url)) as task:
            await until(lambda: peer.is_asked)
            hold.hold(62.0, peer.go)
            for _ in range(8):
                await asyncio.sleep(0)
                hold.hold(62.0)

            assert 200 == (await task).status


async def test_a_connection_that_stands_is_used(hold, tls) -> None:
    """A connection that was made while the loop was held up for 12 s goes on."""
    server, client = tls
    with Peer(OK, context=server, is_shy=True) as peer:
        async with sending(submit_to(peer.base_url), ssl=client) as task:
            await until(lambda: peer.is_connected)
            hold.hold(12.0, peer.go)
            await until(lambda: peer.is_asked or task.done())
            peer.go()

            assert 200 == (await task).status


async def test_a_submit_that_is_sent_after_the_hold_has_all_its_time(hold) -> None:
    """Time in which nothing was sent yet is not taken from the time for the answer."""
    with Peer(OK) as peer:
        async with sending(submit_to(peer.base_url)) as task:
            await asyncio.sleep(0)  # It connects.
            hold.hold(62.0)
            await until(lambda: peer.is_asked or task.done())
            # The service takes some seconds, in which the loop is not held up.
            for _ in range(100):
                await asyncio.sleep(0)
                hold.hold(0.1)
            assert not task.done()
            peer.go()

            assert 200 == (await task).status


@REQUESTS
async def test_no_answer_is_none_however_the_loop_was_held(hold, request_to) -> None:
    """A request without an answer times out, after a loop that was held up as well."""
    with Peer(OK) as peer:
        async with sending(request_to(peer.base_url)) as task:
            await until(lambda: peer.is_asked)
            hold.hold(62.0)

            with pytest.raises(TransportTimeoutError):
                await task


# --- files ------------------------------------------------------------------------------------


async def test_a_file_in_the_socket_is_taken(hold) -> None:
    """Neither the head nor the body of a file is late because the loop was held up."""
    head, body = http("200 OK", BODY).split(b"\r\n\r\n", 1)
    media = FileClient(ConnectionSettings(), insecure_hosts=frozenset({"127.0.0.1"}))

    async def read() -> bytes:
        read = b""
        async with media.open(URL(peer.base_url), {}) as answer:
            while piece := await answer.read():
                read += piece
                is_begun.set()
        return read

    is_begun = asyncio.Event()
    with Peer(head + b"\r\n\r\n" + body[:100], body[100:]) as peer:
        task = asyncio.create_task(read())
        await until(lambda: peer.is_asked)
        hold.hold(92.0, peer.go)
        await asyncio.wait(
            {task, asyncio.create_task(is_begun.wait())}, return_when="FIRST_COMPLETED"
        )
        hold.hold(62.0, peer.go)

        assert BODY == await task
    await media.aclose()


async def test_a_silent_host_is_silent(hold) -> None:
    """A host that sends nothing for a minute is given up, after a held loop as well."""
    media = FileClient(ConnectionSettings(), insecure_hosts=frozenset({"127.0.0.1"}))

    async def ask() -> None:
        async with media.open(URL(peer.base_url), {}):
            pass

    with Peer(OK) as peer:
        task = asyncio.create_task(ask())
        await until(lambda: peer.is_asked)
        hold.hold(92.0)

        with pytest.raises(FileError, match="nothing for too long"):
            await task
    await media.aclose()


async def test_a_held_loop_makes_no_slow_host(hold, tmp_path, monkeypatch) -> None:
    """The time for which the loop is held up is not counted as waiting for the host."""
    parts = [http("200 OK", BODY)[:-300], BODY[-300:-200], BODY[-200:-100], BODY[-100:]]
    came: list[int] = []
    waits_after: list[int] = []

    class Noted(ThroughputMonitor):
        @property
        def is_too_slow(self) -> bool:  # Asked before each wait.
            waits_after.append(sum(came))
            return super().is_too_slow

        def record(self, seconds: float, count: int) -> None:
            super().record(seconds, count)
            came.append(count)

    monkeypatch.setattr(transfer, "ThroughputMonitor", Noted)
    with Peer(*parts) as peer:
        settings = {"callback_url": "", "insecure_hosts": ["127.0.0.1"], "clock": hold.clock}
        async with WavSession(KEY, **settings) as session:
            wav = WavFile("t1", URL(peer.base_url), TRACK, "poll", None)
            downloading = asyncio.create_task(session.download(wav, tmp_path / "a.wav"))
            await until(lambda: peer.is_asked)
            peer.go()
            for missing in (300, 200, 100):
                await until(lambda missing=missing: len(BODY) - missing in waits_after)
                hold.hold(55.0, peer.go)
            download = await downloading

    assert len(BODY) == download.bytes
    assert not download.resumed


# --- sessions ---------------------------------------------------------------------------------


async def test_a_record_in_the_socket_ends_the_wait(hold) -> None:
    """A conversion whose record has arrived does not time out for a loop that was held up."""
    record = json.loads(succeeded("t1").body)
    with Peer(http("200 OK", json.dumps(record))) as peer:
        polls = AiohttpTransport()

        async def reply(request):
            if request.is_submit:
                return accepted("t1")
            return await polls.send(read_from(peer.base_url))

        transport = ScriptedTransport(reply)
        async with WavSession(
            KEY, transport=transport, clock=hold.clock, callback_url="", timeout_s=900.0
        ) as session:
            converting = asyncio.create_task(session.convert(TRACK))
            await until(session.conversions)
            hold.hold(16.0)
            await until(lambda: peer.is_asked)
            hold.hold(900.0, peer.go)

            assert "poll" == (await converting).settled_by
        await polls.aclose()


async def test_a_conversion_without_news_times_out(hold) -> None:
    """A conversion of which nothing is heard times out, after a held loop as well."""
    transport = ScriptedTransport(
        lambda request: accepted("t1") if request.is_submit else pending("t1")
    )
    async with WavSession(
        KEY, transport=transport, clock=hold.clock, callback_url="", timeout_s=900.0
    ) as session:
        converting = asyncio.create_task(session.convert(TRACK))
        await until(session.conversions)
        hold.hold(901.0)

        with pytest.raises(ConversionTimeoutError):
            await converting


async def test_the_answer_to_a_submit_is_taken_at_closing(hold) -> None:
    """A submit whose answer has arrived is not of unknown fate for a loop that was held up."""
    with Peer(OK) as peer:
        session = WavSession(KEY, base_url=peer.base_url, clock=hold.clock, callback_url="")
        async with session:
            submitting = asyncio.create_task(session.submit(TRACK))
            await until(lambda: peer.is_asked)
            closing = asyncio.create_task(session.aclose())
            await asyncio.gather(submitting, return_exceptions=True)
            hold.hold(26.0, peer.go)
            await closing

        assert () == session.unknown_submits()
        assert ["t1"] == [conversion.task_id for conversion in session.conversions()]


# --- callbacks --------------------------------------------------------------------------------


async def test_a_body_in_the_socket_is_read(hold, monkeypatch) -> None:
    """A callback whose body has arrived is taken, however long the loop was held up."""
    service = FakeService(FakeClock())
    genuine = service.callback("genuine")
    begun: list[float] = []
    within = request_handler._with_timeout

    async def note(timeout_s, *args) -> None:
        begun.append(timeout_s)
        await within(timeout_s, *args)

    monkeypatch.setattr(request_handler, "_with_timeout", note)
    async with (
        service.listening() as session,
        CallbackServer(session) as server,
        Wire(Served(server.port)) as wire,
    ):
        await wire.post(genuine.headers, genuine.body[:20], length=len(genuine.body))
        await until(lambda: begun)
        hold.hold(11.0, lambda: wire._socket.send(genuine.body[20:]))

        assert 200 == (await wire.answer()).status


# --- the timer --------------------------------------------------------------------------------


async def test_a_timer_that_is_on_time_gives_ten_turns(hold) -> None:
    """A timer that fires is called after ten more turns of the loop, and not before."""
    called: list[bool] = []
    PatientTimer(5.0, lambda: called.append(True))
    hold.hold(5.0)
    turns = 0
    while not called:
        await asyncio.sleep(0)
        turns += 1

    assert 10 <= turns


async def test_a_timer_that_was_called_off_is_not_called(hold) -> None:
    """A timer may be called off between its moment and its call."""
    called: list[bool] = []
    timer = PatientTimer(5.0, lambda: called.append(True))
    hold.hold(5.0)
    for _ in range(4):
        await asyncio.sleep(0)
    timer.cancel()
    for _ in range(30):
        await asyncio.sleep(0)

    assert not called


async def test_without_a_timeout_nothing_ends() -> None:
    """A timeout of `None` is none."""
    async with patient_timeout(None) as timer:
        assert timer is None
