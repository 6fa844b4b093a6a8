"""Downloads from honest hosts: what is told and saved, and how one is cancelled and closed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime as dt
import errno
import hashlib
import itertools
import json
import os
import ssl
import sys
import threading
from pathlib import Path

import attrs
import pytest
from yarl import URL

from certificates import TRUSTED_PEM
from disk import Disk, Fault
from hostile import BODY, KEY, MIB, TRACK, HastyClock, downloading, link
from kie_wav_async import Download, RetryPolicy, WavFile, WavSession, events
from kie_wav_async.downloads import part_file
from kie_wav_async.downloads.part_file import part_path
from kie_wav_async.errors import DownloadError, SessionClosedError, TransportError
from kie_wav_async.http.transport import AiohttpTransport
from kie_wav_async.protocol.http_messages import WireResponse
from kie_wav_async.session import download_manager
from kie_wav_async.testing import FakeClock, ScriptedTransport, answer, refused
from media import HONEST, Manner, MediaServer, refusal, wav_bytes
from proxy import Plan, Proxy, http

#: What no test waits for; it only ends a hang.
PATIENCE_S = 30.0

BIG = wav_bytes(3 * MIB + 5, seed=7)


@pytest.fixture
async def media():
    """Run a host."""
    async with MediaServer() as server:
        yield server


@pytest.fixture
def target(tmp_path) -> Path:
    """Return where the file is to be."""
    return tmp_path / "a.wav"


@pytest.fixture
def disk(tmp_path, monkeypatch) -> Disk:
    """Return a look at the folder, and a hand in it."""
    return Disk(tmp_path, monkeypatch.setattr)


def wav_of(url, task_id="t1"):
    """Return what is to be downloaded."""
    return WavFile(task_id=task_id, url=URL(url), track=TRACK, settled_by="poll", expires_at=None)


def is_saved(download, target, body=BODY, *, resumed=False):
    """Return whether *body* is under its name and nothing beside it, as *download* says."""
    sha256 = hashlib.sha256(body).hexdigest()
    return (
        Download(target, len(body), sha256, resumed=resumed) == download
        and body == target.read_bytes()
        and not part_path(target).exists()
    )


def is_kept(target, body=BODY):
    """Return how much is kept of *body*; fail if that is not what the note says."""
    part = part_path(target)
    if not part.exists():
        return 0
    note = json.loads(part.with_name(f"{part.name}.json").read_bytes())
    assert note["synced"] == part.stat().st_size
    assert body[: note["synced"]] == part.read_bytes()
    return note["synced"]


async def turns(count=50):
    """Let what is on its way arrive."""
    for _ in range(count):
        await asyncio.sleep(0)


async def has_come(target, count=500):
    """Wait until the beginning of a file is on the disk."""
    await until(lambda: part_path(target).exists() and part_path(target).stat().st_size == count)


async def until(is_so):
    """Wait until something is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 - it is the disk or the kernel, which set no event
            await asyncio.sleep(0.001)


@attrs.define
class Gate:
    """Holds the answers that come to it until it is opened."""

    waiting: int = 0
    _open: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def __call__(self) -> None:
        self.waiting += 1
        await self._open.wait()

    def open(self) -> None:
        """Let all go on."""
        self._open.set()

    def after(self, count) -> Manner:
        """Return an answer that stops here after *count* bytes."""
        return Manner(holds=((count, self),))


# --- what is saved and told -------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("body", [BODY, BIG], ids=["1 kB", "3 MiB"])
async def test_file_is_saved(media, target, body, kind) -> None:
    """A file is under its name, whole, and is told with its size and hash."""
    url = media.put("/a.wav", body)
    async with downloading() as running:
        download = await running.session.download(wav_of(url), kind(target))
    assert is_saved(download, target, body)
    assert 1 == len(media.requests)


async def test_path_is_told_as_it_was_given(media, tmp_path, monkeypatch) -> None:
    """A relative path stays one in what is told, and means the folder we are in."""
    monkeypatch.chdir(tmp_path)
    url = media.put("/a.wav", BODY)
    async with downloading() as running:
        download = await running.session.download(wav_of(url), "a.wav")
    assert Path("a.wav") == download.path
    assert BODY == (tmp_path / "a.wav").read_bytes()


async def test_progress_is_told(media, target) -> None:
    """It is told where a download begins and ends, what comes between at most 4 times a second."""
    moments = 0

    async def pass_time() -> None:
        nonlocal moments
        moments += 1
        await running.clock.advance(0.1)

    url = media.put("/a.wav", BIG, Manner(tick=pass_time))
    async with downloading() as running:
        download = await running.download(url, target)
    told = [event for event in running.told if isinstance(event, events.DownloadProgress)]
    assert {(wav_of(url), target, len(BIG))} == {(one.wav, one.path, one.total) for one in told}
    assert (0, len(BIG)) == (told[0].bytes, told[-1].bytes)
    assert [one.bytes for one in told] == sorted(one.bytes for one in told)
    assert 3 < len(told) <= 2 + moments * 0.1 / 0.25
    times = [one.at.timestamp() for one in told[:-1]]
    assert all(after - before > 0.249 for before, after in itertools.pairwise(times))
    assert (
        events.DownloadCompleted(at=running.told[-1].at, wav=wav_of(url), download=download)
        == (running.told[-1])
    )


async def test_progress_of_an_unknown_length_is_told(media, target) -> None:
    """Where the host does not tell the length, what came is told without it."""
    url = media.put("/a.wav", BODY, Manner(framing="chunked"))
    async with downloading() as running:
        await running.download(url, target)
    told = [event for event in running.told if isinstance(event, events.DownloadProgress)]
    assert [(0, None), (len(BODY), None)] == [(one.bytes, one.total) for one in told]


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_short_file_is_saved_on_request_only(media, target, framing) -> None:
    """What the host has is truncated, is asked for once, and its message names the way out."""
    body = BODY[:900]
    url = media.put("/a.wav", body, Manner(framing=framing))
    async with downloading() as running:
        with pytest.raises(DownloadError, match=r"accept_short=True") as caught:
            await running.download(url, target)
        assert ("truncated", 1) == (caught.value.reason, len(media.requests))
        assert [] == [*target.parent.iterdir()]
        download = await running.session.download(wav_of(url), target, accept_short=True)
    notes = ("only 900 of the 1,000 bytes that the header declares",)
    assert attrs.evolve(download, notes=()) == Download(
        target, 900, hashlib.sha256(body).hexdigest(), resumed=False
    )
    assert (body, notes) == (target.read_bytes(), download.notes)


@pytest.mark.parametrize("accept_short", [False, True])
async def test_short_file_that_is_there_is_judged_alike(media, target, accept_short) -> None:
    """A short file that was accepted stays, and is whole only for who accepts that."""
    target.write_bytes(BODY[:900])
    url = media.put("/a.wav", BODY[:900])
    async with downloading() as running:
        call = running.session.download(wav_of(url), target, accept_short=accept_short)
        if accept_short:
            assert (900, 1) == (
                (await call).bytes,
                len((await call_again(running, url, target)).notes),
            )
        else:
            with pytest.raises(DownloadError, match="declares 1,000"):
                await call
    assert BODY[:900] == target.read_bytes()
    assert [target] == [*target.parent.iterdir()]


async def call_again(running, url, target):
    """Download once more what may be short."""
    return await running.session.download(wav_of(url), target, accept_short=True)


@pytest.mark.parametrize("body", [BODY[:40], b"RIFF\xe0\x03\0\0WAVE", b"<html>" * 9], ids=len)
@pytest.mark.parametrize("manner", [HONEST, Manner(framing="chunked")], ids=["length", "chunked"])
async def test_what_cannot_be_played_is_never_accepted(media, target, body, manner) -> None:
    """Without sound nothing is saved, and nobody is told that it could be."""
    url = media.put("/a.wav", body, manner)
    async with downloading() as running:
        for accept_short in (False, True):
            with pytest.raises(DownloadError) as caught:
                await running.session.download(wav_of(url), target, accept_short=accept_short)
            assert "accept_short" not in str(caught.value)
    assert [] == [*target.parent.iterdir()]


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_what_the_connection_cut_is_never_accepted(media, target, framing) -> None:
    """A transfer that did not come to its end is none, whatever one accepts."""
    url = media.put("/a.wav", BODY, Manner(framing=framing, cut=900, ignores_range=True))
    async with downloading() as running:
        with pytest.raises(DownloadError) as caught:
            await running.session.download(wav_of(url), target, accept_short=True)
    assert ("truncated", 8) == (caught.value.reason, len(media.requests))
    assert "accept_short" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize("cut", [None, 44, 900])
async def test_size_from_before_the_sound_ends_nothing(media, target, cut) -> None:
    """A writer that left the sizes of no sound does not say where a transfer ends."""
    body = BODY[:4] + (36).to_bytes(4, "little") + BODY[8:40] + bytes(4) + BODY[44:]
    url = media.put("/a.wav", body, Manner(framing="close", cut=cut, ignores_range=True))
    async with downloading() as running:
        with pytest.raises(DownloadError) as caught:
            await running.download(url, target)
    assert "truncated" == caught.value.reason
    assert not target.exists()


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("tail", [b"\0", b"TAG" + bytes(125), b"LIST\4\0\0\0INFO"], ids=len)
async def test_trailing_bytes_are_saved_and_noted(media, target, framing, tail) -> None:
    """What stands behind the end that a header declares is saved with a note, and left alone."""
    body = BODY + tail
    url = media.put("/a.wav", body, Manner(framing=framing))
    async with downloading() as running:
        download = await running.download(url, target)
        assert (f"{len(body):,} bytes, and the header declares 1,000",) == download.notes
        assert download == await running.download(url, target)
    assert body == target.read_bytes()
    assert 1 == len(media.requests)


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_size_that_is_off_is_saved_and_noted(media, target, framing) -> None:
    """A header that counts itself is noted, and a file that is as long as the host's stays."""
    body = wav_bytes(declared=1_000)
    url = media.put("/a.wav", body, Manner(framing=framing))
    async with downloading() as running:
        for _ in range(2):
            download = await running.download(url, target)
            assert ("1,000 bytes, and the header declares 1,008",) == download.notes
            media.put("/a.wav", body)
    assert body == target.read_bytes()
    assert 2 == len(media.requests)


async def test_retries_are_told(media, target) -> None:
    """Each attempt that failed is told with its error, and what is kept in the meantime."""
    url = media.put("/a.wav", BODY, [Manner(cut=400), refusal(500), HONEST])
    async with downloading() as running:
        download = await running.download(url, target)
    assert is_saved(download, target, resumed=True)
    first, second = running.retries
    assert (wav_of(url), target, "truncated") == (first.wav, first.path, first.error.reason)
    assert "400 of 1,000 bytes came" in str(first.error) or "broke" in str(first.error)
    assert "(1 of 8 attempts, and 400 bytes of the file are kept)" in str(first.error)
    assert ("unavailable", "t1", TRACK) == (
        second.error.reason,
        second.error.task_id,
        second.error.track,
    )
    assert "127.0.0.1 answered 500 (2 of 8 attempts" in str(second.error)


async def test_handler_that_raises_does_not_matter(media, target, caplog) -> None:
    """What `on_event` raises costs nobody a file."""
    url = media.put("/a.wav", BODY)

    def refuse(_) -> None:
        raise ZeroDivisionError

    async with WavSession(
        KEY, transport=ScriptedTransport([]), on_event=refuse, insecure_hosts=["127.0.0.1"]
    ) as session:
        assert is_saved(await session.download(wav_of(url), target), target)
    assert 3 == len([one for one in caplog.records if "on_event" in one.message])


# --- misuse and what is in the way ------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (None, TypeError),
        (5, TypeError),
        (b"a.wav", TypeError),
        (["a.wav"], TypeError),
        ("", ValueError),
        (".", ValueError),
        ("..", ValueError),
        ("/", ValueError),
        ("{folder}/..", ValueError),
        ("{folder}/b/", ValueError),
        ("{folder}/a\0.wav", ValueError),
        ("{folder}/\ud800.wav", ValueError),
    ],
    ids=ascii,
)
async def test_path_that_names_no_file_is_misuse(media, tmp_path, path, kind) -> None:
    """A path that is none, or names no file, is an error at once, and nothing is asked for."""
    url = media.put("/a.wav", BODY)
    given = path.format(folder=tmp_path) if isinstance(path, str) else path
    async with downloading() as running:
        with pytest.raises(kind):
            await running.session.download(wav_of(url), given)
    assert [] == media.requests
    assert [] == [*tmp_path.iterdir()]


@pytest.mark.parametrize("wav", [None, "https://h.example/a.wav", URL("https://h.example/a.wav")])
async def test_what_is_no_wav_file_is_misuse(target, wav) -> None:
    """What was not converted cannot be downloaded."""
    async with downloading() as running:
        with pytest.raises(TypeError, match="wav"):
            await running.session.download(wav, target)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none/a.wav", "No such file or directory"),
        ("folder", "something else"),
        ("x" * 256, "File name too long"),
        ("file/a.wav", "Not a directory"),
    ],
)
async def test_place_that_cannot_be_written_to_is_told(media, tmp_path, name, words) -> None:
    """Where no file can be, the reason is the disk, and nothing stands there afterwards."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    url = media.put("/a.wav", BODY)
    async with downloading() as running:
        with pytest.raises(DownloadError, match=words) as caught:
            await running.download(url, tmp_path / name)
    assert ("disk", "t1", TRACK) == (caught.value.reason, caught.value.task_id, caught.value.track)
    assert isinstance(caught.value.__cause__, OSError)
    assert name in str(caught.value)
    assert [] == media.requests
    assert ["file", "folder"] == sorted(path.name for path in tmp_path.iterdir())


async def test_folder_that_is_gone_is_told(media, tmp_path, monkeypatch) -> None:
    """A relative path is nowhere when the folder we are in was removed, and the reason says so."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    async with downloading() as running:
        with pytest.raises(DownloadError, match="No such file or directory") as caught:
            await running.download(media.put("/a.wav", BODY), Path("a.wav"))
    assert ("disk", "t1", TRACK) == (caught.value.reason, caught.value.task_id, caught.value.track)
    assert [] == media.requests


async def test_whole_file_is_left_alone(media, target) -> None:
    """A whole file that is there is told and not touched, and nobody is asked for it."""
    target.write_bytes(BODY)
    before = target.stat()
    async with downloading() as running:
        download = await running.download(media.put("/a.wav", wav_bytes(2_000)), target)
        assert [events.DownloadCompleted] == [type(event) for event in running.told]
    assert is_saved(download, target)
    after = target.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert [] == media.requests


async def test_other_file_is_replaced(media, target) -> None:
    """What is under the name and no whole WAV file is replaced, once the new one is whole."""
    target.write_bytes(BODY[:-1])
    gate = Gate()
    url = media.put("/a.wav", BODY, gate.after(500))
    async with downloading() as running:
        task = asyncio.create_task(running.download(url, target))
        await until(lambda: gate.waiting)
        assert BODY[:-1] == target.read_bytes()
        gate.open()
        assert is_saved(await task, target)


async def test_link_that_is_refused_leaves_nothing(target) -> None:
    """A link from which nothing is fetched leaves no trace on the disk."""
    async with downloading() as running:
        with pytest.raises(DownloadError, match="plain http") as caught:
            await running.download("http://media.example/a.wav", target)
    assert "url-not-allowed" == caught.value.reason
    assert [] == [*target.parent.iterdir()]


# --- several at once --------------------------------------------------------------------------


async def test_eight_at_a_time(media, tmp_path) -> None:
    """Of twenty downloads eight are under way at a time, over as many connections."""
    gate = Gate()
    bodies = {f"{number}.wav": wav_bytes(1_000, seed=number) for number in range(20)}
    async with downloading() as running:
        tasks = [
            asyncio.create_task(
                running.download(
                    media.put(f"/{name}", body, gate.after(500)), tmp_path / name, task_id=name
                )
            )
            for name, body in bodies.items()
        ]
        await until(lambda: gate.waiting == 8)
        await turns(500)
        assert 8 == gate.waiting == len(media.requests)
        gate.open()
        for task, (name, body) in zip(tasks, bodies.items(), strict=True):
            assert is_saved(await task, tmp_path / name, body)
    assert (20, 20) == (len(media.requests), media.connections)


async def test_same_file_twice_is_fetched_once(media, target, monkeypatch) -> None:
    """Who wants a file that is being fetched to that place waits for it, and is told the same."""
    monkeypatch.chdir(target.parent)
    gate = Gate()
    url = media.put("/a.wav", BODY, gate.after(500))
    async with downloading() as running:
        first = asyncio.create_task(running.download(url, target))
        await until(lambda: gate.waiting)
        second = asyncio.create_task(running.download(url, Path(target.name)))
        await turns(500)
        assert 1 == len(media.requests)
        gate.open()
        assert is_saved(await first, target)
        assert attrs.evolve(await first, path=Path(target.name)) == await second
        assert 2 == len([one for one in running.told if isinstance(one, events.DownloadCompleted)])
        assert {} == running.session._downloads._paths
    assert 1 == len(media.requests)


async def test_same_place_for_another_task_is_misuse(media, target) -> None:
    """A place that a file is being saved to is not open to another task's, until it is done."""
    gate = Gate()
    url = media.put("/a.wav", BODY, gate.after(500))
    async with downloading() as running:
        first = asyncio.create_task(running.download(url, target))
        await until(lambda: gate.waiting)
        with pytest.raises(ValueError, match="another task, t1,"):
            await running.download(media.put("/b.wav", wav_bytes(2_000)), target, task_id="t2")
        gate.open()
        assert is_saved(await first, target)
        again = await running.download(media.url("/b.wav"), target, task_id="t2")
    assert is_saved(again, target)
    assert [] == media.asked("/b.wav")


async def test_who_waited_goes_on_where_the_first_was_cancelled(media, target) -> None:
    """If the one who fetches is cancelled, the one who waited goes on with what came."""
    gate = Gate()
    url = media.put("/a.wav", BODY, [gate.after(500), HONEST])
    async with downloading() as running:
        first, second = (asyncio.create_task(running.download(url, target)) for _ in range(2))
        await has_come(target)
        first.cancel()
        assert is_saved(await second, target, resumed=True)
        with pytest.raises(asyncio.CancelledError):
            await first
    assert [None, 500] == [request.start for request in media.requests]


async def test_who_waits_can_be_cancelled(media, target) -> None:
    """The one who fetches does not mind that one who waited was cancelled."""
    gate = Gate()
    url = media.put("/a.wav", BODY, gate.after(500))
    async with downloading() as running:
        first = asyncio.create_task(running.download(url, target))
        await until(lambda: gate.waiting)
        second = asyncio.create_task(running.download(url, target))
        for _ in range(100):  # Now it waits for the first.
            await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.open()
        assert is_saved(await first, target)


async def test_file_that_came_meanwhile_is_taken(media, target, monkeypatch) -> None:
    """A file that another process finished, just before its part could be had, is not fetched."""
    take_up = part_file.PartFile.open

    def late(part) -> None:
        take_up(part)
        target.write_bytes(BODY)

    monkeypatch.setattr(part_file.PartFile, "open", late)
    async with downloading() as running:
        assert is_saved(await running.download(media.put("/a.wav", BODY), target), target)
    assert [] == media.requests
    assert [target] == [*target.parent.iterdir()]


async def test_two_sessions_do_not_meet(media, target) -> None:
    """Two sessions that save to one place both end, and what has the name is whole."""
    gate = Gate()
    url = media.put("/a.wav", BODY, gate.after(500))
    async with downloading() as one, downloading() as other:
        tasks = [asyncio.create_task(running.download(url, target)) for running in (one, other)]
        await until(lambda: gate.waiting == 2)
        gate.open()
        # Either may be the first to end, and the other has its part until it does.
        for download in await asyncio.gather(*tasks):
            assert is_saved(download, target)
    assert [target] == [*target.parent.iterdir()]


# --- cancelled --------------------------------------------------------------------------------


async def test_cancelled_download_is_gone_on_with(media, target) -> None:
    """What came before a download was cancelled is kept, synced, and not fetched again."""
    gate = Gate()
    url = media.put("/a.wav", BIG, [gate.after(2 * MIB + 77), HONEST])
    async with downloading() as running:
        task = asyncio.create_task(running.download(url, target))
        await until(lambda: gate.waiting)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        kept = is_kept(target, BIG)
        assert MIB <= kept <= 2 * MIB + 77
    async with downloading() as running:
        assert is_saved(await running.download(url, target), target, BIG, resumed=True)
        first, *_ = [one for one in running.told if isinstance(one, events.DownloadProgress)]
        assert (kept, len(BIG)) == (first.bytes, first.total)
    assert [None, kept] == [request.start for request in media.requests]
    assert len(BIG) - kept == media.requests[1].sent


class InlineExecutor(concurrent.futures.Executor):
    """Does at once what it is given, so that a download takes the same steps each time."""

    def submit(self, work, /, *args):
        future = concurrent.futures.Future()
        try:
            future.set_result(work(*args))
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            future.set_exception(error)
        return future


#: What is there, and how the host answers.
SCENES = {
    "new": (0, HONEST),
    "byte by byte": (0, Manner(piece=100)),
    "resumed": (400, Manner(piece=100)),
    "cut off": (0, [Manner(cut=400), Manner(piece=100)]),
    "link refused": (0, [refusal(403), HONEST]),
    "without a tag": (0, Manner(piece=100, headers=(("ETag", None),))),
}


#: The combinations that are looked at each time; the others when asked for.
EVERYDAY = {
    ("new", "cancel twice"),
    ("byte by byte", "cancel"),
    ("resumed", "close"),
    ("cut off", "cancel"),
    ("link refused", "close"),
    ("without a tag", "cancel twice"),
}


@pytest.mark.parametrize(
    ("scene", "name"),
    [
        pytest.param(*both, marks=() if both in EVERYDAY else pytest.mark.campaign)
        for both in itertools.product(SCENES, ["cancel", "cancel twice", "close"])
    ],
)
async def test_download_may_end_at_any_step(media, tmp_path, scene, name) -> None:
    """Cancelled or closed at any step: whole or a part that is gone on with, and nothing open."""
    kept, manner = SCENES[scene]
    ends = set()
    for step in range(1_000):
        target = tmp_path / f"{step}.wav"
        url = media.put(f"/{step}.wav", BODY, manner)
        fresh = [link(url)] * 2
        if kept:
            part = part_file.PartFile(target, "t1")
            part.open()
            part.restart('"v1"', len(BODY))
            part.write([BODY[:kept]])
            part.close(keep=True)
        async with downloading(*fresh) as running:
            running.session._downloads._executor = InlineExecutor()
            task = asyncio.create_task(running.download(url, target))
            await turns(step)
            is_over = task.done()
            if name == "close":
                await running.session.aclose()
            else:
                task.cancel()
                if name == "cancel twice":
                    await asyncio.sleep(0)
                    task.cancel()
            await asyncio.wait([task])
            assert {} == running.session._downloads._paths
            assert () == running.session._downloads.in_progress
        end = "cancelled" if task.cancelled() else type(task.exception() or task.result())
        ends.add(end)
        if target.exists():
            assert BODY == target.read_bytes()
            assert not part_path(target).exists()
        else:
            assert is_kept(target) >= kept
        if end is SessionClosedError:
            error = task.exception()
            assert ("t1", TRACK) == (error.task_id, error.track)
        async with downloading() as running:
            media.put(f"/{step}.wav", BODY)
            assert BODY == (await running.download(url, target)).path.read_bytes()
        assert [target] == [*tmp_path.iterdir()]
        target.unlink()
        if is_over:
            break
    assert is_over
    assert step > 20
    assert {Download, SessionClosedError if name == "close" else "cancelled"} == ends


# --- closed -----------------------------------------------------------------------------------


def disk_threads():
    """Return the threads that wait for the disk."""
    return [one for one in threading.enumerate() if one.name.startswith("kie-wav-download")]


async def test_closing_ends_downloads(media, tmp_path) -> None:
    """Downloads under way and those that wait end when the session closes, and keep what came."""
    gate = Gate()
    async with downloading() as running:
        tasks = [
            asyncio.create_task(
                running.download(
                    media.put(f"/{n}.wav", BODY, gate.after(500)), tmp_path / f"{n}.wav", f"t{n}"
                )
            )
            for n in range(10)
        ]
        tasks.append(
            asyncio.create_task(running.download(media.url("/9.wav"), tmp_path / "9.wav", "t9"))
        )
        places = [tmp_path / f"{n}.wav" for n in range(10)]
        await until(lambda: sum(part_path(place).exists() for place in places) == 8)
        for place in places:
            if part_path(place).exists():
                await has_come(place)
        await running.session.aclose()
        await asyncio.wait(tasks)
        errors = [task.exception() for task in tasks]
        assert {SessionClosedError} == {type(error) for error in errors}
        assert [*(f"t{n}" for n in range(10)), "t9"] == [error.task_id for error in errors]
        assert 11 == len({id(error) for error in errors})
        assert [0] * 2 + [500] * 8 == sorted(map(is_kept, places))
    for thread in disk_threads():
        thread.join(PATIENCE_S)
    assert [] == disk_threads()
    assert 8 == len(media.requests)


async def test_closing_ends_a_wait_between_attempts(media, target) -> None:
    """A download that waits for its next attempt ends when the session closes."""
    url = media.put("/a.wav", BODY, refusal(500))
    clock = FakeClock()
    async with WavSession(
        KEY, transport=ScriptedTransport([]), clock=clock, insecure_hosts=["127.0.0.1"]
    ) as session:
        task = asyncio.create_task(session.download(wav_of(url), target))
        await until(lambda: clock._next() is not None)
        await session.aclose()
        with pytest.raises(SessionClosedError):
            await task
    assert 1 == len(media.requests)
    assert [] == [*target.parent.iterdir()]


async def test_closing_ends_a_renewal(media, target) -> None:
    """A download that waits for a fresh link ends when the session closes."""
    url = media.put("/a.wav", BODY, refusal(403))
    transport = ScriptedTransport(lambda _: asyncio.get_running_loop().create_future())
    async with WavSession(
        KEY, transport=transport, clock=FakeClock(), insecure_hosts=["127.0.0.1"]
    ) as session:
        task = asyncio.create_task(session.download(wav_of(url), target))
        await until(lambda: transport.requests)
        await session.aclose()
        with pytest.raises(SessionClosedError) as caught:
            await task
    assert ("t1", TRACK) == (caught.value.task_id, caught.value.track)


async def test_closed_session_downloads_nothing(media, target) -> None:
    """A session that was closed says so."""
    async with downloading() as running:
        await running.session.aclose()
        with pytest.raises(SessionClosedError):
            await running.download(media.put("/a.wav", BODY), target)
    assert [] == media.requests


async def test_session_that_was_not_entered_downloads_nothing(target) -> None:
    """A session is used inside `async with`, and says so."""
    before = disk_threads()  # Those of an earlier test may not have ended yet.
    session = WavSession(KEY, transport=ScriptedTransport([]))
    with pytest.raises(RuntimeError, match="async with"):
        await session.download(wav_of("https://h.example/a.wav"), target)
    assert set(before) >= set(disk_threads())


async def test_session_of_another_loop_downloads_nothing(target) -> None:
    """A session belongs to its loop, and says so."""
    async with downloading() as running:
        call = running.session.download(wav_of("https://h.example/a.wav"), target)
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, call)


# --- fresh links ------------------------------------------------------------------------------


async def test_service_that_is_gone_costs_an_attempt(media, target) -> None:
    """A link that cannot be renewed just now is tried again, as after any other failure."""
    url = media.put("/a.wav", BODY, refusal(403))
    fresh = [TransportError("no route"), link(media.put("/b.wav", BODY))]
    async with downloading(*fresh, retry=RetryPolicy(attempts=1)) as running:
        assert is_saved(await running.download(url, target), target)
    (retried,) = running.retries
    assert "unavailable" == retried.error.reason
    assert "refuses the link (403), and KIE gave no other" in str(retried.error)
    assert [2, 1] == [len(media.asked("/a.wav")), len(media.asked("/b.wav"))]


async def test_service_that_stays_gone_is_unavailable(media, target) -> None:
    """A link that can never be renewed is asked for eight times, and nothing says it expired."""
    url = media.put("/a.wav", BODY, [Manner(cut=400), refusal(410)])
    fresh = [TransportError("no route")] * 7
    async with downloading(*fresh, retry=RetryPolicy(attempts=1)) as running:
        with pytest.raises(DownloadError, match="410") as caught:
            await running.download(url, target)
    assert "unavailable" == caught.value.reason
    assert (8, 7) == (len(media.requests), len(running.renewals))
    assert 400 == is_kept(target)


ACCEPTED_AT = dt.datetime(2025, 1, 1, 12, tzinfo=dt.UTC)
#: As long after it as the service keeps files, and a second more or less.
PAST = "Wed, 15 Jan 2025 12:00:01 GMT"
NOT_PAST = "Wed, 15 Jan 2025 11:59:59 GMT"


def html(status):
    """Return a page in place of an answer of the service, as of something in between."""
    body = b"<html>404 Not Found</html>"
    return WireResponse(status=status, body=body, date=PAST)


@pytest.mark.parametrize("code", [404, 422])
@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_file_that_the_service_has_deleted_has_expired(media, target, status, code) -> None:
    """A link that is refused, no other at the service, 14 days by its clock: expired, at once."""
    url = media.put("/a.wav", BODY, refusal(status))
    async with downloading(refused(code, "no such file", date=PAST)) as running:
        with pytest.raises(DownloadError, match="a new charge") as caught:
            await running.session.download(
                attrs.evolve(wav_of(url), accepted_at=ACCEPTED_AT), target
            )
        assert [str(url)] == running.renewals
        assert [] == running.clock.slept
    assert ("expired", "t1", TRACK) == (
        caught.value.reason,
        caught.value.task_id,
        caught.value.track,
    )
    assert f"KIE has no other ({code} 'no such file')" in str(caught.value)
    assert [] == [*target.parent.iterdir()]


WEAK = {
    "not yet 14 days": (ACCEPTED_AT, refused(404, date=NOT_PAST)),
    "before it was accepted": (ACCEPTED_AT, refused(404, date="Wed, 01 Jan 2025 11:00:00 GMT")),
    "no Date of the link": (ACCEPTED_AT, refused(404)),
    "no Date of the submit": (None, refused(404, date=PAST)),
    "a Date that is none": (ACCEPTED_AT, refused(404, date="15.01.2030")),
    "a Date of no time": (ACCEPTED_AT, refused(404, date="Wed, 15 Jan 9999 12:00:01 GMT")),
    "in another zone": (ACCEPTED_AT, refused(404, date="Wed, 15 Jan 2025 13:00:01 +0200")),
    "an HTTP status alone": (ACCEPTED_AT, answer({"msg": "no"}, status=404, date=PAST)),
    "a page with 404": (ACCEPTED_AT, html(404)),
    "a page with 422": (ACCEPTED_AT, html(422)),
    "401": (ACCEPTED_AT, refused(401, date=PAST)),
    "402": (ACCEPTED_AT, refused(402, date=PAST)),
    "505": (ACCEPTED_AT, refused(505, date=PAST)),
}


@pytest.mark.parametrize(("accepted_at", "said"), WEAK.values(), ids=WEAK)
async def test_weak_evidence_gives_no_file_up(media, target, accepted_at, said) -> None:
    """A refusal is passing unless the service says, by its own clock, that the file is gone."""
    url = media.put("/a.wav", BODY, [refusal(403), HONEST])
    wav = attrs.evolve(wav_of(url), accepted_at=accepted_at)
    async with downloading(said) as running:
        running.clock.shift_wall_clock(10 * 365 * 86_400.0)
        with pytest.raises(DownloadError, match="download it again later") as caught:
            await running.session.download(wav, target)
        assert "unavailable" == caught.value.reason
        assert is_saved(await running.session.download(wav, target), target)


BUSY = {
    "a page with 200": html(200),
    "data: null": answer({"code": 200, "msg": "success", "data": None}, date=PAST),
    "429": refused(429, date=PAST),
    "455": refused(455, date=PAST),
    "500": refused(500, date=PAST),
    "501": refused(501, date=PAST),
}


@pytest.mark.parametrize("said", BUSY.values(), ids=BUSY)
async def test_service_that_says_nothing_of_the_file_gives_none_up(media, target, said) -> None:
    """Whatever else the service says of a link costs an attempt, and the next may save the file."""
    url = media.put("/a.wav", BODY, [refusal(403), HONEST])
    wav = attrs.evolve(wav_of(url), accepted_at=ACCEPTED_AT)
    async with downloading(said, retry=RetryPolicy(attempts=1)) as running:
        assert is_saved(await running.session.download(wav, target), target)
    assert ["unavailable"] == [told.error.reason for told in running.retries]


async def test_fresh_link_that_is_refused_too_gives_no_file_up(media, target) -> None:
    """What a host says of a link that the service has just given says nothing of the file."""
    url = media.put("/a.wav", BODY, refusal(404))
    async with downloading(link(media.put("/b.wav", BODY, refusal(404)))) as running:
        with pytest.raises(DownloadError, match="download it again later") as caught:
            await running.session.download(
                attrs.evolve(wav_of(url), accepted_at=ACCEPTED_AT), target
            )
    assert "unavailable" == caught.value.reason


@pytest.mark.parametrize("code", [401, 402])
async def test_service_that_will_not_answer_is_not_asked_again(media, target, code) -> None:
    """Where asking again would not help, a link that is refused ends the download at once."""
    url = media.put("/a.wav", BODY, [Manner(cut=400), refusal(403)])
    async with downloading(refused(code)) as running:
        with pytest.raises(DownloadError, match="KIE gave no other") as caught:
            await running.download(url, target)
        assert [str(url)] == running.renewals
    assert "unavailable" == caught.value.reason
    assert code == caught.value.__cause__.code
    assert 400 == is_kept(target)


# --- attempts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [0.0, 0.5, 1.0])
async def test_eight_attempts_with_full_jitter(media, target, sample) -> None:
    """Eight attempts are made, after waits of a share of 1, 2, 4, ... up to 60 seconds."""
    url = media.put("/a.wav", BODY, refusal(503))
    async with downloading() as running:
        running.session._context.random = lambda: sample
        with pytest.raises(DownloadError, match="8 of 8 attempts") as caught:
            await running.download(url, target)
    assert [sample * longest for longest in (1, 2, 4, 8, 16, 32, 60)] == running.clock.slept
    assert running.clock.slept == [one.delay_s for one in running.retries]
    assert (8, "unavailable") == (len(media.requests), caught.value.reason)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("0", 0.0), ("7", 7.0), ("300", 300.0), ("301", 300.0), ("9999", 300.0), ("-1", 0.5)],
)
async def test_host_may_ask_for_a_wait(media, target, asked, expected) -> None:
    """What the host asks for goes before our own wait, up to five minutes."""
    url = media.put("/a.wav", BODY, [refusal(503, ("Retry-After", asked)), HONEST])
    async with downloading() as running:
        running.session._context.random = lambda: 0.5
        assert is_saved(await running.download(url, target), target)
    assert [expected] == running.clock.slept


@pytest.mark.parametrize("count", [1, 11, 19])
async def test_beginning_that_is_none_yet_is_gone_on_with(media, target, count) -> None:
    """A few bytes of a file of unknown length are no file, and are not fetched again."""
    url = media.put("/a.wav", BODY, [Manner(framing="close", cut=count), HONEST])
    async with downloading() as running:
        assert is_saved(await running.download(url, target), target, resumed=True)
    assert [None, count] == [request.start for request in media.requests]
    assert str(running.retries[0].error).startswith(f"{count} ")


async def test_part_that_has_all_is_not_asked_for(media, target) -> None:
    """A part to which nothing is missing gets its name without a request."""
    part = part_file.PartFile(target, "t1")
    part.open()
    part.restart('"v1"', len(BODY))
    part.write([BODY])
    part.close(keep=True)
    async with downloading() as running:
        download = await running.download(media.put("/a.wav", BODY), target)
    assert is_saved(download, target, resumed=True)
    assert [] == media.requests


async def test_part_that_is_no_wav_is_not_believed(media, target) -> None:
    """A part that is said to be of the file, and is none, leads to no file and does not stay."""
    part = part_file.PartFile(target, "t1")
    part.open()
    part.restart('"v1"', None)
    part.write([b"<!DOCTYPE html>" * 20])
    part.close(keep=True)
    async with downloading() as running:
        with pytest.raises(DownloadError, match="DOCTYPE") as caught:
            await running.download(media.put("/a.wav", BODY), target)
        assert "not-a-wav" == caught.value.reason
        assert [] == [*target.parent.iterdir()]
        assert is_saved(await running.download(media.url("/a.wav"), target), target)


async def test_part_of_another_task_is_not_gone_on_with(media, target) -> None:
    """What an earlier download left of another task's file is thrown away."""
    gate = Gate()
    url = media.put("/a.wav", BODY, gate.after(500))
    other = wav_bytes(len(BODY), seed=9)
    async with downloading() as running:
        task = asyncio.create_task(running.download(url, target))
        await has_come(target)
        task.cancel()
        await asyncio.wait([task])
        assert 500 == is_kept(target)
        download = await running.download(media.put("/b.wav", other), target, task_id="t2")
    assert is_saved(download, target, other)
    assert [None, None] == [request.start for request in media.requests]


# --- the way out ------------------------------------------------------------------------------


async def test_proxy_of_the_transport_is_used(target) -> None:
    """Files are fetched through the proxy of the session's transport."""
    async with MediaServer() as media, Proxy(f"http://127.0.0.1:{media.port}") as proxy:
        link_to = "http://media.example/a.wav"
        media.put(link_to, BODY)  # A proxy is asked for the whole address.
        async with WavSession(
            KEY,
            transport=AiohttpTransport(proxy=proxy.base_url),
            clock=HastyClock(),
            insecure_hosts=["media.example"],
        ) as session:
            assert is_saved(await session.download(wav_of(link_to), target), target)
        assert 1 == len(proxy.requests) == len(media.requests)
        assert KEY.encode() not in proxy.requests[0]


@pytest.mark.parametrize("link", ["http://media.example/a.wav", "https://media.example/a.wav"])
@pytest.mark.parametrize("is_there", [True, False])
async def test_a_proxy_that_lets_nobody_through(target, link, is_there) -> None:
    """That a file does not come because of the proxy is told, and its password is not."""
    async with Proxy(plan=lambda _: Plan(answer=http("407 Who are you"))) as proxy:
        address = URL(proxy.base_url).with_user("me").with_password("hush")
        if not is_there:
            await proxy.__aexit__(None, None, None)
        async with WavSession(
            KEY,
            transport=AiohttpTransport(proxy=address),
            clock=HastyClock(),
            insecure_hosts=["media.example"],
        ) as session:
            with pytest.raises(DownloadError) as caught:
                await session.download(wav_of(link), target)

    does = "answered HTTP 407: its user" if is_there else "cannot be reached: "
    assert f"the proxy {proxy.base_url} {does}" in str(caught.value)
    assert "unavailable" == caught.value.reason
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_certificates_of_the_transport_are_used(target, is_trusted) -> None:
    """A host's certificate is checked against what the session's transport trusts."""
    transport = AiohttpTransport(
        **({"ssl": ssl.create_default_context(cafile=TRUSTED_PEM)} if is_trusted else {})
    )
    async with (
        MediaServer(host="localhost", is_tls=True) as media,
        WavSession(
            KEY, transport=transport, clock=HastyClock(), insecure_hosts=["localhost"]
        ) as session,
    ):
        call = session.download(wav_of(media.put("/a.wav", BODY)), target)
        if is_trusted:
            assert is_saved(await call, target)
        else:
            with pytest.raises(DownloadError, match="CERTIFICATE_VERIFY_FAILED") as caught:
                await call
            assert isinstance(caught.value.__cause__, ssl.SSLError)
            assert [] == media.requests


# --- the disk ---------------------------------------------------------------------------------


async def test_slow_disk_is_not_the_hosts_fault(media, target, disk) -> None:
    """A disk slower than the least rate does not end an attempt: the host is not to blame."""
    url = media.put("/a.wav", BIG)

    def take_long(point) -> None:
        if point == "write part":
            running.clock._monotonic_s += 1_000.0

    async with downloading() as running:
        running.session._downloads._executor = InlineExecutor()
        disk.before = take_long
        assert is_saved(await running.download(url, target), target, BIG)
        assert [] == running.retries
        assert 3_000 <= running.clock.monotonic() - FakeClock().monotonic()


@attrs.define
class Hang:
    """A disk whose writes into one file do not return before they are released."""

    released: threading.Event = attrs.field(factory=threading.Event)
    hanging: int = 0

    def __call__(self, point) -> None:
        if point == "write part" and not self.released.is_set():
            self.hanging += 1
            assert self.released.wait(PATIENCE_S)


async def test_hanging_disk_does_not_stop_the_loop(media, target, disk, tmp_path_factory) -> None:
    """While one disk does not answer, a download to another one goes on and ends."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "b.wav"
    disk.before = hang = Hang()
    async with downloading() as running:
        task = asyncio.create_task(running.download(media.put("/a.wav", BODY), target))
        await until(lambda: hang.hanging)
        other = await running.download(media.put("/b.wav", BODY), elsewhere, task_id="t2")
        assert is_saved(other, elsewhere)
        assert not task.done()
        hang.released.set()
        assert is_saved(await task, target)


async def test_cancelled_download_waits_for_the_disk(media, target, disk) -> None:
    """A download that is cancelled ends once the disk has taken what came."""
    disk.before = hang = Hang()
    async with downloading() as running:
        task = asyncio.create_task(running.download(media.put("/a.wav", BODY), target))
        await until(lambda: hang.hanging)
        task.cancel()
        await turns(500)
        assert not task.done()
        hang.released.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(BODY) == is_kept(target)


async def test_twice_cancelled_download_waits_for_no_disk(media, target, disk) -> None:
    """A download that is cancelled a second time ends at once; the disk is done with it later."""
    disk.before = hang = Hang()
    async with downloading() as running:
        task = asyncio.create_task(running.download(media.put("/a.wav", BODY), target))
        await until(lambda: hang.hanging)
        task.cancel()
        await turns()
        task.cancel()
        await turns()
        assert task.cancelled()
        assert {} == running.session._downloads._paths
        hang.released.set()
    for thread in disk_threads():
        await asyncio.to_thread(thread.join, PATIENCE_S)
    assert len(BODY) == is_kept(target)
    async with downloading() as running:
        assert is_saved(await running.download(media.url("/a.wav"), target), target, resumed=True)


async def test_hanging_disk_does_not_hold_up_closing(media, target, disk, caplog) -> None:
    """A session closes within 25 s though a disk does not answer, which is done with it later."""
    disk.before = hang = Hang()
    clock = FakeClock()
    session = WavSession(
        KEY, transport=ScriptedTransport([]), clock=clock, insecure_hosts=["127.0.0.1"]
    )
    async with session:
        task = asyncio.create_task(session.download(wav_of(media.put("/a.wav", BODY)), target))
        await until(lambda: hang.hanging)
        began = clock.monotonic()
        closing = asyncio.create_task(session.aclose())
        while not closing.done():
            await clock.advance(1.0)
        assert 26.0 >= clock.monotonic() - began
        assert not hang.released.is_set()
        with pytest.raises(SessionClosedError):
            await task
    assert [] == caplog.records
    hang.released.set()
    for thread in disk_threads():
        await asyncio.to_thread(thread.join, PATIENCE_S)
    assert len(BODY) == is_kept(target)


async def test_cancellation_is_not_lost_on_a_broken_disk(media, target, disk) -> None:
    """Who is cancelled while the disk fails is cancelled."""
    disk.before = hang = Hang()
    async with downloading() as running:
        task = asyncio.create_task(running.download(media.put("/a.wav", BODY), target))
        await until(lambda: hang.hanging)
        task.cancel()
        await turns()
        disk.before = Fault(1, lasts=True)
        disk.after = Fault(1, lasts=True)
        hang.released.set()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_disk_full_for_a_moment_costs_no_byte(media, target, disk, monkeypatch) -> None:
    """A disk that was full for one write, half way through, leads to no wrong byte ever."""
    monkeypatch.setattr(part_file, "SYNC_EVERY", MIB)
    url = media.put("/a.wav", BIG)
    writes = []

    def be_full(point) -> int | None:
        if point != "write part":
            return None
        writes.append(point)
        if len(writes) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return 1_000 if len(writes) == 2 else None

    disk.before = be_full
    async with downloading() as running:
        with pytest.raises(DownloadError, match="No space left") as caught:
            await running.download(url, target)
        assert "disk" == caught.value.reason
        assert not target.exists()
        assert is_saved(await running.download(url, target), target, BIG, resumed=True)


@pytest.mark.skipif(sys.platform == "win32", reason="these are the calls on POSIX")
@pytest.mark.parametrize("lasts", [False, True], ids=["once", "for good"])
async def test_disk_may_fail_at_any_call(media, tmp_path, disk, lasts) -> None:
    """Whatever call to the disk fails, the reason says so, and the next download ends well."""
    async with downloading() as running:
        for number in range(1, 1_000):
            target = tmp_path / f"{number}.wav"
            url = media.put(f"/{number}.wav", BODY, [Manner(cut=400), HONEST])
            disk.before = fault = Fault(number, lasts=lasts)
            (end,) = await asyncio.gather(running.download(url, target), return_exceptions=True)
            if isinstance(end, BaseException):
                assert isinstance(end, DownloadError)
                assert "disk" == end.reason
                assert str(target) in str(end)
            disk.before = lambda _: None
            assert not target.exists() or BODY == target.read_bytes(), fault.point
            assert BODY == (await running.download(url, target)).path.read_bytes()
            # A disk that fails for good lets nobody clean up.
            left = {path for path in tmp_path.iterdir() if not lasts or path.name[0] != "."}
            assert {target} == left, fault.point
            target.unlink()
            if fault.point is None:
                break
    assert number > 30


CODES = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS]


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
async def test_machine_may_be_short_of_something_at_any_call(media, tmp_path, disk, code) -> None:
    """A machine without descriptors for a moment costs an attempt, whatever call meets it."""
    async with downloading() as running:
        for number in range(1, 1_000):
            target = tmp_path / f"{number}.wav"
            url = media.put(f"/{number}.wav", BODY, [Manner(cut=400), HONEST])
            disk.before = fault = Fault(number, code)
            download = await running.download(url, target)
            disk.before = lambda _: None
            assert (BODY, len(BODY)) == (target.read_bytes(), download.bytes), fault.point
            await running.download(url, target)  # A note that could not be removed goes now.
            assert [target] == [*tmp_path.iterdir()], fault.point
            target.unlink()
            if fault.point is None:
                break
    assert number > 30
    errors = [one.error for one in running.retries if isinstance(one.error.__cause__, OSError)]
    assert number // 2 < len([one for one in errors if one.__cause__.errno == code])
    assert {"unavailable", "truncated"} >= {one.reason for one in errors}


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
async def test_machine_may_be_short_of_something_after_another_link(media, target, disk, code):
    """An attempt that the machine's shortage cost may ask for a fresh link once more."""
    old, new = media.put("/old.wav", BODY, [Manner(status=403)] * 2), media.put("/a.wav", BODY)
    faults = iter([OSError(code, os.strerror(code))])

    def fail_once(point: str) -> None:
        if point == "replace part" and (error := next(faults, None)) is not None:
            raise error

    disk.before = fail_once
    async with downloading(link(new), link(new)) as running:
        assert is_saved(await running.download(old, target), target)
        assert 2 == len(running.renewals)


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
async def test_machine_may_stay_short_of_something(media, target, disk, code) -> None:
    """What is asked for eight times in vain is no fault of the disk, and is told as passing."""
    url = media.put("/a.wav", BODY, [Manner(cut=400), HONEST])
    fault = Fault(1, code, lasts=True)
    disk.before = lambda point: fault(point) if point == "open part" else None
    async with downloading() as running:
        with pytest.raises(DownloadError, match=r"8 of 8 attempts") as caught:
            await running.download(url, target)
        assert ("unavailable", code) == (caught.value.reason, caught.value.__cause__.errno)
        assert (str(target) in str(caught.value), 7) == (True, len(running.retries))
        assert [] == media.requests
        disk.before = lambda _: None
        assert is_saved(await running.download(url, target), target, resumed=True)


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
async def test_folder_that_cannot_be_looked_up_just_now(media, target, monkeypatch, code) -> None:
    """A place that cannot be found out just now is told as passing, too."""

    def refuse(_) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(download_manager.os.path, "realpath", refuse)
    async with downloading() as running:
        with pytest.raises(DownloadError) as caught:
            await running.download(media.put("/a.wav", BODY), target)
    assert "unavailable" == caught.value.reason


async def test_disk_without_room_is_told_before_more_is_fetched(media, target, monkeypatch) -> None:
    """A file for which there is no room is not begun, and the error says how much is wanted."""
    monkeypatch.setattr(
        part_file.shutil, "disk_usage", lambda _: part_file.shutil._ntuple_diskusage(1, 1, 0)
    )
    gate = Gate()
    url = media.put("/a.wav", BODY, gate.after(100))
    async with downloading() as running:
        with pytest.raises(DownloadError, match="67 MB are wanted") as caught:
            await running.download(url, target)
    assert "disk" == caught.value.reason
    assert [] == [*target.parent.iterdir()]
    gate.open()


# --- what is somebody else's, and what is whole already ---------------------------------------


UNTOLD = wav_bytes(10_000, declared=0xFFFF_FFFF)


async def test_file_that_does_not_tell_its_length_is_left_alone(media, target) -> None:
    """A WAV file without a length of its own stays if it is as long as what the host has."""
    url = media.put("/a.wav", UNTOLD)
    async with downloading() as running:
        assert is_saved(await running.download(url, target), target, UNTOLD)
        before = target.stat()
        assert is_saved(await running.download(url, target), target, UNTOLD)
    assert (before.st_ino, before.st_mtime_ns) == (target.stat().st_ino, target.stat().st_mtime_ns)


async def test_file_that_does_not_tell_its_length_may_be_too_short(media, target) -> None:
    """A WAV file without a length of its own is replaced if the host has more of it."""
    target.write_bytes(UNTOLD[:5_000])
    url = media.put("/a.wav", UNTOLD)
    async with downloading() as running:
        assert is_saved(await running.download(url, target), target, UNTOLD)


async def test_finished_file_is_nobodys_part(media, target) -> None:
    """A file that was saved as ``x.wav.part`` outlives a download to ``x.wav``."""
    other = target.with_name(f"{target.name}.part")
    async with downloading() as running:
        await running.download(media.put("/b.wav", BIG), other)
        await running.download(media.put("/a.wav", BODY), target)
    assert BIG == other.read_bytes()
    assert BODY == target.read_bytes()


async def test_place_is_one_however_it_is_spelled(media, target, monkeypatch) -> None:
    """One place by several spellings is fetched once, and the answer has the spelling asked for."""
    monkeypatch.chdir(target.parent)
    (target.parent / "sub").mkdir()
    gate = Gate()
    url = media.put("/a.wav", BODY, gate.after(500))
    spelled = [target, Path(target.name), Path("sub", "..", target.name)]
    async with downloading() as running:
        tasks = [asyncio.create_task(running.download(url, path)) for path in spelled]
        await until(lambda: gate.waiting)
        gate.open()
        ends = await asyncio.gather(*tasks)
    assert spelled == [end.path for end in ends]
    assert 1 == len(media.requests)


async def test_folder_may_change_meanwhile(media, target, monkeypatch) -> None:
    """A download to a relative path ends where it began, wherever the process has gone."""
    monkeypatch.chdir(target.parent)
    gate = Gate()
    url = media.put("/a.wav", BODY, gate.after(500))
    async with downloading() as running:
        task = asyncio.create_task(running.download(url, target.name))
        await until(lambda: gate.waiting)
        monkeypatch.chdir("/")
        gate.open()
        assert Path(target.name) == (await task).path
    assert BODY == target.read_bytes()


async def test_cancelled_and_closed_at_once_leaves_no_lock(media, target) -> None:
    """A download that was cancelled when the session closed is let go of before that is closed."""
    gate = Gate()
    url = media.put("/a.wav", BODY, [gate.after(500), HONEST])
    async with downloading() as running:
        task = asyncio.create_task(running.download(url, target))
        await has_come(target)
        task.cancel()
    async with downloading() as running:
        assert is_saved(await running.download(url, target), target, resumed=True)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_a_dead_process_left_beside_a_whole_file_goes(media, target) -> None:
    """A note that outlived its part is removed when the file is asked for again."""
    target.write_bytes(BODY)
    note = target.with_name(f"{target.name}.part.json")
    note.write_text("{}")
    async with downloading() as running:
        assert is_saved(await running.download(media.put("/a.wav", BODY), target), target)
    assert not note.exists()
