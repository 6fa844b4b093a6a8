"""Downloads from hosts that lie, break off, change their minds and lead elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import itertools
import random
import socket
import ssl
import sys

import aiohttp
import attrs
import pytest
from yarl import URL

from certificates import SERVER_PEM, TRUSTED_PEM
from hostile import (
    ATTEMPTS,
    BODY,
    CASES,
    CUT,
    FEW,
    KEY,
    MIB,
    HastyClock,
    downloading,
    link,
    moved,
    run_case,
    turns,
    verify_end,
    verify_folder,
    verify_requests,
)
from kie_wav_async import events
from kie_wav_async.downloads import file_client, transfer
from kie_wav_async.errors import DownloadError, SessionClosedError
from kie_wav_async.http.connection_settings import ConnectionSettings
from kie_wav_async.session import session
from links import ACCEPTED, REFUSED
from media import (
    HONEST,
    File,
    Manner,
    MediaServer,
    ScriptedResolver,
    part,
    redirect,
    refusal,
    wav_bytes,
)

# What no test waits for; it only ends a hang.
PATIENCE_S = 30.0

SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
async def patience():
    """End a test that hangs."""
    loop = asyncio.get_running_loop()

    def give_up():
        for task in asyncio.all_tasks(loop):
            task.cancel()

    end = loop.call_later(PATIENCE_S, give_up)
    yield
    end.cancel()


@pytest.fixture
async def media():
    """Run a host."""
    async with MediaServer() as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    """Return an empty folder."""
    return tmp_path


# The table


@pytest.mark.parametrize("name", CASES)
async def test_file_is_whole_or_not_there(media, folder, monkeypatch, name):
    """Whatever the host does: the file is whole under its name, or there is a reason and none."""
    case = CASES[name]
    if case.is_silent:
        # What is waited for is over a socket, whose time is the machine's.
        timeout = aiohttp.ClientTimeout(total=None, sock_read=0.1)
        monkeypatch.setattr(file_client, "TIMEOUT", timeout)
        monkeypatch.setattr(file_client, "HEAD_TIMEOUT_S", 0.3)
        monkeypatch.setattr(transfer, "RETRY", attrs.evolve(transfer.RETRY, attempts=FEW))
    if case.max_bytes is not None:
        monkeypatch.setattr(transfer, "MAX_BYTES", case.max_bytes)
    running, end = await run_case(case, media, folder)

    verify_end(case, running, end, folder)
    verify_folder(folder, case)
    verify_requests(media)
    assert case.requests == len(media.requests)
    if case.most is not None:
        assert max(request.sent for request in media.requests) <= case.most


# Cut anywhere


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_answer_may_end_at_every_byte(media, folder, end):
    """Wherever an answer ends, in its head too, by a reset too, the next one brings the rest."""
    head = 160  # About as long as it is.
    async with downloading() as running:
        for k in range(0, head + len(BODY), 29):
            url = media.put(f"/{k}.wav", BODY, [Manner(wire_cut=k, end=end), HONEST])
            download = await running.download(url, folder / f"{k}.wav", task_id=f"t{k}")

            assert SHA256 == download.sha256 == sha256_of(folder / f"{k}.wav")
            assert len(media.asked(f"/{k}.wav")) <= 2
    verify_requests(media)
    assert not list(folder.glob("*.part*"))


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_every_byte_that_came_counts(media, folder, end):
    """A host that ends every answer after k bytes is asked for the file once in k bytes."""
    async with downloading() as running:
        for k in range(125, len(BODY) + 1, 59):
            # What was sent has arrived before the reset, which would take it away.
            manner = Manner(cut=k, end=end, holds=((k, turns),))
            url = media.put(f"/{k}.wav", BODY, manner)
            download = await running.download(url, folder / f"{k}.wav", task_id=f"t{k}")

            starts = [request.start or 0 for request in media.asked(f"/{k}.wav")]
            assert list(range(0, len(BODY), k)) == starts
            assert (SHA256, k < len(BODY)) == (download.sha256, download.resumed)
    assert not list(folder.glob("*.part*"))


def names_in(folder):
    """Return what is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def sha256_of(path):
    """Return the digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("seed", range(20))
async def test_versions_are_never_mixed(media, folder, seed):
    """From a host that is wrong at random, what is saved is one of its versions from end to end."""
    chance = random.Random(seed)  # noqa: S311 - repeatable, guards nothing
    versions = [
        File(wav_bytes(chance.choice((900, 1_000)), seed=number), chance.choice(tags))
        for number, tags in enumerate([('"a"',), ('"b"', None), ("W/" + '"a"', '"c"'), ('"d"',)])
    ]

    def at_random(request):
        file = chance.choice(versions)
        cut = chance.choice((None, chance.randrange(len(file.body))))
        framing = chance.choice(("length", "length", "chunked", "close"))
        manner = chance.choice(
            (
                Manner(file=file, cut=cut, framing=framing),
                Manner(file=file, cut=cut, framing=framing),
                Manner(file=file, cut=cut, framing=framing, ignores_range=True),
                Manner(file=file, wire_cut=chance.randrange(1_200), end="rst"),
                # The right bytes of one version, told of wrongly.
                part(chance.choice((None, "bytes {start}-{last}/*", "bytes 0-{last}/{size}"))),
                part(shift=chance.choice((-1, 1)), headers=(("ETag", '"e"'),)),
                refusal(chance.choice((416, 429, 500))),
            )
        )
        return manner if isinstance(manner, Manner) else manner(request)

    url = media.put("/a.wav", versions[0].body, at_random, etag=versions[0].etag)
    whole = {hashlib.sha256(file.body).hexdigest() for file in versions}
    async with downloading() as running:
        for _ in range(5):  # A download that failed is asked for again.
            with contextlib.suppress(DownloadError):
                download = await running.download(url, folder / "a.wav")
                assert download.sha256 in whole
                assert download.sha256 == sha256_of(folder / "a.wav")
                assert ["a.wav"] == names_in(folder)
                return
            assert not (folder / "a.wav").exists()


# Slow


class Waiting:
    """Time that passes only while a download has nothing to do but to wait for its host."""

    def __init__(self, monkeypatch):
        self._reads = 0
        self._changed = asyncio.Event()
        self._is_reading = False
        read = file_client.FileResponse.read

        async def watched(answer):
            self._is_reading = True
            self._changed.set()
            piece = None
            try:
                piece = await read(answer)
            finally:
                self._reads += 1
                # After the end there is nobody to wait for.
                self._is_reading = piece == b""
            return piece

        monkeypatch.setattr(file_client.FileResponse, "read", watched)

    async def pass_time(self, clock, seconds):
        calm = 0
        while calm < 10:  # What was just sent is on its way for a turn or two.
            while not self._is_reading:
                self._changed.clear()
                await self._changed.wait()
            reads = self._reads
            await asyncio.sleep(0)
            calm = calm + 1 if reads == self._reads else 0
        await clock.advance(seconds)


async def test_trickle_is_left_in_the_end(media, folder, monkeypatch):
    """A host under 16 KiB/s is left after a minute, each attempt, and what it sent is kept."""
    body = wav_bytes(MIB)
    waiting = Waiting(monkeypatch)
    async with downloading() as running:
        manner = Manner(piece=10_000, tick=lambda: waiting.pass_time(running.clock, 10.0))
        url = media.put("/a.wav", body, manner)
        with pytest.raises(DownloadError) as caught:
            await running.download(url, folder / "a.wav")

    assert "too-slow" == caught.value.reason
    assert ATTEMPTS == len(media.requests)
    kept = (folder / "a.wav.part").read_bytes()
    assert body.startswith(kept)
    # Each attempt went on where the one before had stopped.
    starts = [request.start or 0 for request in media.requests]
    assert starts == sorted(set(starts))
    assert len(kept) > starts[-1]


async def test_slow_but_not_too_slow(media, folder, monkeypatch):
    """A host of 20 KiB/s has all the time that it needs, here some minutes."""
    body = wav_bytes(3 * MIB)
    waiting = Waiting(monkeypatch)
    async with downloading() as running:
        manner = Manner(piece=200 << 10, tick=lambda: waiting.pass_time(running.clock, 10.0))
        download = await running.download(media.put("/a.wav", body, manner), folder / "a.wav")

    assert hashlib.sha256(body).hexdigest() == download.sha256
    assert 1 == len(media.requests)


# Cancelled, closed


@contextlib.asynccontextmanager
async def half_way(media, folder):
    """Have a download under way of which more than a block has come; yield its file and itself."""
    body = wav_bytes(3 * MIB)
    gate = asyncio.Event()
    url = media.put("/a.wav", body, [Manner(holds=((2 * MIB, gate.wait),)), HONEST])
    async with downloading() as running:
        task = asyncio.ensure_future(running.download(url, folder / "a.wav"))
        part_path = folder / "a.wav.part"
        while not (part_path.exists() and part_path.stat().st_size):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0)
        yield body, url, task
    gate.set()


async def test_cancelled_download_is_gone_on_with(media, folder):
    """What came before a cancellation is kept, and the next session asks for the rest only."""
    async with half_way(media, folder) as (body, url, task):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        kept = (folder / "a.wav.part").read_bytes()
        assert body[: len(kept)] == kept
        assert {0o600} == {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    async with downloading() as running:
        download = await running.download(url, folder / "a.wav")

    assert (sha256_of(folder / "a.wav"), True) == (download.sha256, download.resumed)
    assert body == (folder / "a.wav").read_bytes()
    assert [None, len(kept)] == [request.start for request in media.requests]
    assert ["a.wav"] == names_in(folder)
    verify_requests(media)


async def test_closed_session_leaves_what_came(media, folder):
    """Closing ends a download with its own error, and what came is there for the next session."""
    async with half_way(media, folder) as (body, url, task):
        pass
    with pytest.raises(SessionClosedError):
        await task

    kept = (folder / "a.wav.part").read_bytes()
    assert kept
    assert body[: len(kept)] == kept
    async with downloading() as running:
        download = await running.download(url, folder / "a.wav")

    assert (sha256_of(folder / "a.wav"), True) == (download.sha256, download.resumed)
    assert [None, len(kept)] == [request.start for request in media.requests]


async def test_part_of_another_task_is_not_gone_on_with(media, folder):
    """Bytes of one task's file never become the beginning of another's, also under one ETag."""
    other = wav_bytes(1_000, seed=1)
    first = media.put("/a.wav", BODY, Manner(cut=100))
    second = media.put("/b.wav", other)
    async with downloading() as running:
        with pytest.raises(DownloadError):
            await running.download(first, folder / "a.wav")
        download = await running.download(second, folder / "a.wav", task_id="t2")

    assert hashlib.sha256(other).hexdigest() == download.sha256
    assert not download.resumed


# Two at once


async def test_two_tasks_save_one_file_once(media, folder):
    """Two callers in one session who want one file get the same one, fetched once."""
    url = media.put("/a.wav", BODY)
    async with downloading() as running:
        first, second = await asyncio.gather(
            *(running.download(url, folder / "a.wav") for _ in range(2))
        )

    assert SHA256 == first.sha256 == second.sha256
    assert 1 == len(media.requests)
    assert ["a.wav"] == names_in(folder)


@pytest.mark.parametrize("ends_first", [0, 1])
async def test_two_sessions_do_not_meet(media, folder, ends_first):
    """Two sessions that save one file at once each get all of it, whoever ends first."""
    gates = asyncio.Event(), asyncio.Event()
    url = media.put("/a.wav", BODY, [Manner(holds=((400, gate.wait),)) for gate in gates])
    async with downloading() as one, downloading() as two:
        tasks = []
        for number, running in enumerate((one, two), start=1):
            download = running.download(url, folder / "a.wav")
            tasks.append(asyncio.ensure_future(download))
            await media.until("/a.wav", sent=400, number=number)
        for number in (ends_first, 1 - ends_first):
            gates[number].set()
            assert SHA256 == (await tasks[number]).sha256
            assert BODY == (folder / "a.wav").read_bytes()

    assert ["a.wav"] == names_in(folder)
    assert [None, None] == [request.start for request in media.requests]


CHILD = """
import asyncio, sys
from kie_wav_async import Track, WavFile, WavSession
from yarl import URL

async def main():
    url, path = sys.argv[1:]
    wav = WavFile(task_id="t1", url=URL(url), track=Track("5c79", "e231"), settled_by="poll",
                  expires_at=None)
    async with WavSession("key", callback_url="", insecure_hosts=["127.0.0.1"]) as session:
        download = await session.download(wav, path)
    print(download.sha256)

asyncio.run(main())
"""


async def test_two_processes_do_not_meet(media, folder):
    """Two processes that save one file at once each get all of it."""
    body = wav_bytes(MIB)
    gates = asyncio.Event(), asyncio.Event()
    manners = [Manner(holds=((MIB // 2, gate.wait),)) for gate in gates]
    url = media.put("/a.wav", body, manners)
    children = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", CHILD, str(url), str(folder / "a.wav")),
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(2)
    ]
    await media.until("/a.wav", sent=MIB // 2, number=1)
    await media.until("/a.wav", sent=MIB // 2, number=2)
    for gate in gates:
        gate.set()
    ends = [await child.communicate() for child in children]

    digest = hashlib.sha256(body).hexdigest()
    assert [digest, digest] == [out.decode().strip() for out, _ in ends]
    assert digest == sha256_of(folder / "a.wav")
    assert ["a.wav"] == names_in(folder)


@pytest.mark.parametrize("is_late", [False, True])
async def test_answer_to_no_request_is_no_file(media, folder, is_late):
    """What a host sends behind one file does not become the next one, however late it comes."""
    gate = asyncio.Event()
    hidden = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + wav_bytes(1_000, seed=1)
    hold = gate.wait if is_late else turns
    # Silence, since an end would take the connection away.
    manner = Manner(body=[BODY, hidden], length=1_000, holds=((1_000, hold),), end="stall")
    first = media.put("/a.wav", BODY, manner)
    other = wav_bytes(1_000, seed=2)
    second = media.put("/b.wav", other)
    async with downloading() as running:
        await running.download(first, folder / "a.wav")
        gate.set()
        await turns()
        download = await running.download(second, folder / "b.wav", task_id="t2")

    assert SHA256 == sha256_of(folder / "a.wav")
    assert hashlib.sha256(other).hexdigest() == download.sha256
    assert 2 == media.connections


# Secrets


async def test_cookies_do_not_come_back(media, folder):
    """What a host sets as a cookie it does not get to see again, in one attempt or another."""
    cookie = (("Set-Cookie", "session=4711; Path=/"),)
    media.put("/a.wav", BODY, [Manner(cut=400, headers=cookie), HONEST])
    url = media.chain(2, media.url("/a.wav"), headers=cookie)
    async with downloading() as running:
        await running.download(url, folder / "a.wav")
        await running.download(url, folder / "b.wav", task_id="t2")

    assert 9 == len(media.requests)
    verify_requests(media)


async def test_key_goes_nowhere_when_asked_for(media, folder):
    """A host that asks for credentials, a netrc for it or not, gets none."""
    media.put("/a.wav", BODY)
    challenge = ("WWW-Authenticate", "Bearer")
    url = media.put("/b.wav", manner=refusal(401, challenge))
    async with downloading(link(media.url("/a.wav"))) as running:
        await running.download(url, folder / "a.wav")

    assert [str(url)] == running.renewals
    verify_requests(media)


async def test_error_holds_no_signature_of_the_link(media, folder):
    """Neither the error nor an event's shows the query of a link, which may open the file."""
    url = media.put("/a.wav", manner=redirect("/a.wav?X-Amz-Signature=hush2"))
    async with downloading() as running:
        for manner in (refusal(500), refusal(418), redirect("http://[hush2"), Manner(raw=b"hush2")):
            media.put("/a.wav", BODY, manner)
            with pytest.raises(DownloadError) as caught:
                await running.download(url.with_query(token="hush1"), folder / "a.wav")
            errors = [caught.value, *(one.error for one in running.retries)]
            assert not any(word in repr(error) for error in errors for word in ("hush", KEY))


# Names that lead elsewhere


@contextlib.contextmanager
def looking_up(monkeypatch, resolver, *, check_hostname=False, maximum_version=None, **settings):
    """Have sessions look names up with *resolver*, and trust the certificate of the tests."""
    context = ssl.create_default_context(cafile=TRUSTED_PEM)
    # It is for localhost, and the names are made up.
    context.check_hostname = check_hostname
    if maximum_version is not None:
        context.maximum_version = maximum_version

    def make(_, **given):
        return file_client.FileClient(
            ConnectionSettings(ssl=context), resolver=resolver, **given, **settings
        )

    with monkeypatch.context() as patch:
        patch.setattr(session, "FileClient", make)
        yield


@contextlib.asynccontextmanager
async def trap(port):
    """Listen where nobody may connect to."""
    hits = []
    server = await asyncio.start_server(lambda *_: hits.append(1), "127.0.0.2", port)
    async with server:
        yield hits


# For these tests the one is public and the other is not.
PUBLIC, PRIVATE = "127.0.0.1", "127.0.0.2"


def is_allowed(address):
    """Say which of the two is public."""
    return PUBLIC == address


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["10.0.0.1", "192.168.0.1"],
        ["169.254.169.254"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["0.0.0.0"],  # noqa: S104 - it is what must be refused
        ["100.64.0.1"],
        ["224.0.0.1"],
    ],
)
async def test_name_of_a_private_address_is_refused(folder, monkeypatch, addresses):
    """A name that leads to addresses none of which is public is refused before a connection."""
    async with MediaServer(host="media.example", is_tls=True) as media:
        resolver = ScriptedResolver({"media.example": [addresses]}, port=media.port)
        with looking_up(monkeypatch, resolver):
            async with downloading() as running:
                with pytest.raises(DownloadError) as caught:
                    await running.download("https://media.example/a.wav", folder / "a.wav")
        assert "url-not-allowed" == caught.value.reason
        assert 0 == media.connections
    assert {"media.example"} == set(resolver.looks)
    assert [] == names_in(folder)


async def test_name_that_leads_elsewhere_at_the_second_look_is_refused(folder, monkeypatch):
    """Each connection is checked by itself: a name that was public before is refused now."""
    async with MediaServer(is_tls=True) as media, trap(media.port) as hits:
        media.put("/a.wav", BODY, CUT)
        answers = {"media.example": [[PUBLIC], [PRIVATE]]}
        resolver = ScriptedResolver(answers, port=media.port)
        # Longer than any cache would make no other sense of the second look.
        with looking_up(monkeypatch, resolver, is_allowed=is_allowed):
            async with downloading() as running:
                forget_names(running)
                with pytest.raises(DownloadError) as caught:
                    await running.download("https://media.example/a.wav", folder / "a.wav")
        assert "url-not-allowed" == caught.value.reason
        assert 1 == len(media.requests)
        assert BODY[:400] == (folder / "a.wav.part").read_bytes()
        assert not hits
    assert len(resolver.looks) >= 2


def forget_names(running):
    """Have every connection look its name up anew, as after the time that a look holds."""
    sleep = running.clock.sleep

    async def sleep_and_forget(delay_s):
        await sleep(delay_s)
        for client in running.session._downloads._file_client._clients.values():
            client.connector.clear_dns_cache()

    running.clock.sleep = sleep_and_forget


async def test_only_public_addresses_of_a_name_are_connected_to(folder, monkeypatch):
    """Of a name with a public and a private address, the public one is used."""
    async with MediaServer(is_tls=True) as media, trap(media.port) as hits:
        media.put("/a.wav", BODY)
        resolver = ScriptedResolver({"media.example": [[PRIVATE, PUBLIC]]}, port=media.port)
        with looking_up(monkeypatch, resolver, is_allowed=is_allowed):
            async with downloading() as running:
                download = await running.download("https://media.example/a.wav", folder / "a.wav")
        assert SHA256 == download.sha256
        assert not hits


async def test_redirect_from_a_trusted_host_is_not_trusted(media, folder, monkeypatch):
    """A host that may be private does not make another one so by leading there."""
    async with MediaServer(is_tls=True) as other:
        resolver = ScriptedResolver({"media.example": [["127.0.0.1"]]}, port=other.port)
        media.put("/a.wav", manner=redirect("https://media.example/a.wav"))
        with looking_up(monkeypatch, resolver):
            async with downloading() as running:
                with pytest.raises(DownloadError) as caught:
                    await running.download(media.url("/a.wav"), folder / "a.wav")
        assert "url-not-allowed" == caught.value.reason
        assert 0 == other.connections


async def test_trusted_host_behind_tls_is_fetched_from(folder, monkeypatch):
    """A file comes over TLS from a host of one's own, by its name."""
    async with MediaServer(host="localhost", is_tls=True) as media:
        url = media.put("/a.wav", BODY, [CUT, HONEST])
        with looking_up(monkeypatch, None):
            async with downloading(insecure_hosts=["localhost"]) as running:
                download = await running.download(url, folder / "a.wav")

    assert (SHA256, True) == (download.sha256, download.resumed)
    verify_requests(media)


async def test_stranger_s_certificate_is_refused(folder):
    """A host whose certificate nobody vouches for gets no request."""
    async with MediaServer(host="localhost", is_tls=True) as media:
        url = media.put("/a.wav", BODY)
        async with downloading(insecure_hosts=["localhost"]) as running:
            with pytest.raises(DownloadError, match="CERTIFICATE") as caught:
                await running.download(url, folder / "a.wav")

    assert "unavailable" == caught.value.reason
    assert "does not pass by itself" in str(caught.value)
    assert ([], 1, []) == (media.requests, media.connections, running.clock.slept)


async def test_certificate_for_another_name_is_refused_at_once(folder, monkeypatch):
    """A certificate that is good for another host holds for nobody else."""
    async with MediaServer(is_tls=True) as media:
        resolver = ScriptedResolver({"media.example": [[PUBLIC]]}, port=media.port)
        with looking_up(monkeypatch, resolver, check_hostname=True, is_allowed=is_allowed):
            async with downloading() as running:
                with pytest.raises(DownloadError, match="CERTIFICATE_VERIFY_FAILED") as caught:
                    await running.download("https://media.example/a.wav", folder / "a.wav")
    assert "does not pass by itself" in str(caught.value)
    assert ([], 1, []) == (media.requests, media.connections, running.clock.slept)


async def test_host_without_a_common_version_of_tls_is_left_at_once(folder, monkeypatch):
    """A host that speaks another TLS than we do will not speak ours a minute later."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(SERVER_PEM)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    connections = []

    def serve(listener):  # In a thread: asyncio drops the alert that says what is wrong.
        with contextlib.suppress(OSError):
            while True:
                connections.append(listener.accept()[0])
                with contextlib.suppress(ssl.SSLError):
                    context.wrap_socket(connections[-1], server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.ensure_future(asyncio.to_thread(serve, listener))
        url = f"https://localhost:{listener.getsockname()[1]}/a.wav"
        try:
            with looking_up(monkeypatch, None, maximum_version=ssl.TLSVersion.TLSv1_2):
                async with downloading(insecure_hosts=["localhost"]) as running:
                    with pytest.raises(DownloadError, match="does not pass by itself") as caught:
                        await running.download(url, folder / "a.wav")
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            await serving
    for one in connections:
        one.close()
    assert "PROTOCOL_VERSION" in str(caught.value)
    assert ("unavailable", 1, []) == (caught.value.reason, len(connections), running.clock.slept)
    assert [] == names_in(folder)


async def test_host_that_speaks_no_tls_is_left_at_once(folder, monkeypatch):
    """A port where plain http is spoken will not speak TLS a minute later."""
    connections = []

    async def refuse(reader, writer):
        connections.append(await reader.read(1))
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with looking_up(monkeypatch, None):
            async with downloading(insecure_hosts=["localhost"]) as running:
                with pytest.raises(DownloadError, match="does not pass by itself") as caught:
                    await running.download(f"https://localhost:{port}/a.wav", folder / "a.wav")
    assert ("unavailable", 1, []) == (caught.value.reason, len(connections), running.clock.slept)


@pytest.mark.parametrize(
    "code", [socket.EAI_NONAME, socket.EAI_AGAIN, errno.ECONNREFUSED, errno.ENETUNREACH]
)
async def test_what_may_pass_is_tried_again(folder, monkeypatch, code):
    """A name that is not found, or a host that is not reached, is asked for eight times."""

    class Nowhere(ScriptedResolver):
        async def resolve(self, *_, **__):
            raise OSError(code, "no") if code > 0 else socket.gaierror(code, "no")

    with looking_up(monkeypatch, Nowhere({})):
        async with downloading() as running:
            with pytest.raises(DownloadError, match="8 of 8 attempts") as caught:
                await running.download("https://media.example/a.wav", folder / "a.wav")
    assert ("unavailable", 7) == (caught.value.reason, len(running.clock.slept))


async def test_only_named_hosts_are_fetched_from(media, folder):
    """With download_hosts, a link or a redirect to any other host is refused unasked."""
    media.put("/a.wav", BODY)
    async with downloading(download_hosts=["files.example"]) as running:
        with pytest.raises(DownloadError) as caught:
            await running.download(media.url("/a.wav"), folder / "a.wav")
    assert ("url-not-allowed", 0) == (caught.value.reason, media.connections)
    async with downloading(download_hosts=["127.0.0.1"]) as running:
        await running.download(media.url("/a.wav"), folder / "a.wav")
        moved("https://files.example/a.wav")(media)
        with pytest.raises(DownloadError) as caught:
            await running.download(media.url("/a.wav"), folder / "b.wav", task_id="t2")

    assert ("url-not-allowed", 2) == (caught.value.reason, len(media.requests))


# Links, from one end to the other


@contextlib.contextmanager
def watching(monkeypatch, port):
    """Have every name lead to *port* here; yield the names and the addresses that are asked for."""
    resolver = ScriptedResolver({}, others=["127.0.0.1"], port=port)
    addresses = []

    def watch(address):
        addresses.append(address)
        return "127.0.0.1" == address

    with looking_up(monkeypatch, resolver, is_allowed=watch):
        yield resolver.looks, addresses


async def test_no_refused_link_is_looked_up_or_connected_to(folder, monkeypatch):
    """A link that may not be followed ends a download before anything leaves this machine."""
    ends = []
    async with MediaServer(is_tls=True) as media:
        with watching(monkeypatch, media.port) as (names, addresses):
            async with downloading(insecure_hosts=[]) as running:
                for text, word in REFUSED:
                    with pytest.raises(DownloadError) as caught:
                        await running.download(text, folder / "a.wav")
                    ends.append((caught.value.reason, word in str(caught.value)))
        assert {("url-not-allowed", True)} == set(ends)
        assert ([], [], 0) == (names, addresses, media.connections)
    assert [] == names_in(folder)


async def test_no_redirect_to_a_refused_link_is_followed(folder, monkeypatch):
    """What may not be a link may not be where one leads."""
    # Those are followed: they lead to a path of the host, or are made good links.
    good = {"a.wav", "/a.wav"}
    for text, word in REFUSED:
        if word == "blanks" and not {*"\0\x7f\\"} & {*text}:
            good.add(text)
    ends = {}
    async with MediaServer(host="media.example") as media:
        with watching(monkeypatch, media.port) as (names, addresses):
            async with downloading(insecure_hosts=["media.example"]) as running:
                for text in {text for text, _ in REFUSED} - good:
                    url = media.put("/b.wav", manner=redirect(text))
                    with pytest.raises(DownloadError) as caught:
                        await running.download(url, folder / "a.wav")
                    ends[text] = caught.value.reason
        assert {"media.example"} == set(names)
        assert [] == addresses  # That of a trusted host is not looked at.
        assert {"/b.wav"} == {request.target for request in media.requests}
        verify_requests(media)
    # What makes no header is no answer.
    odd = {text: "unavailable" for text in ends if "\0" in text or len(text) > 8_190}
    assert dict.fromkeys(ends, "url-not-allowed") | odd == ends
    assert len(ends) > 100
    assert [] == names_in(folder)


async def test_accepted_links_are_asked_for_as_they_stand(folder, monkeypatch):
    """A good link to a name brings the file, one to an address gets as far as the socket."""
    async with MediaServer(is_tls=True) as media:
        with watching(monkeypatch, media.port) as (names, addresses):
            async with downloading(insecure_hosts=[]) as running:
                for number, text in enumerate(ACCEPTED):
                    url = URL(text, encoded=True)
                    if ":" in url.raw_host or url.raw_host.replace(".", "").isdigit():
                        with pytest.raises(DownloadError, match="not public"):
                            await running.download(url, folder / "a.wav")
                        assert url.raw_host == addresses[-1]
                    else:
                        media.put(url.raw_path, BODY)
                        path = folder / f"{number}.wav"
                        download = await running.download(url, path, task_id=f"t{number}")
                        assert SHA256 == download.sha256
                        assert url.raw_path_qs == media.requests[-1].target
    hosts = {URL(text, encoded=True).raw_host for text in ACCEPTED}
    assert {name.removesuffix(".") for name in names} <= {name.removesuffix(".") for name in hosts}
    verify_requests(media)


# What is told


async def test_progress_ends_where_the_file_does(media, folder):
    """The last progress told is the whole file, and each one is what was there."""
    body = wav_bytes(3 * MIB)
    async with downloading() as running:
        url = media.put("/a.wav", body, [Manner(cut=MIB), HONEST])
        await running.download(url, folder / "a.wav")

    told = [one for one in running.told if isinstance(one, events.DownloadProgress)]
    assert {len(body)} == {one.total for one in told}
    assert (0, len(body)) == (told[0].bytes, told[-1].bytes)
    assert MIB in {one.bytes for one in told}
    assert all(one.bytes <= two.bytes for one, two in itertools.pairwise(told))
    assert isinstance(running.told[-1], events.DownloadCompleted)
    assert ["truncated"] == [one.error.reason for one in running.retries]


async def test_back_off_grows_at_random(media, folder):
    """Seven waits follow eight failures, each within a limit that doubles up to a minute."""
    clock = HastyClock()
    url = media.put("/a.wav", manner=refusal(500))
    async with downloading() as running:
        with pytest.raises(DownloadError):
            await running.download(url, folder / "a.wav")
        clock = running.clock

    limits = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]
    assert len(limits) == len(clock.slept)
    assert all(0 <= s <= limit for s, limit in zip(clock.slept, limits, strict=True))
    assert len(set(clock.slept)) > 1
