"""A session in a loop whose tasks run at once, with parts that complete without waiting."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from yarl import URL

import kie_wav_async
from eager import FACTORIES
from fakes import HOSTS, KEY, LISTENING_AT, WEBHOOK_KEY, FakedSession, lost, track, unsent
from kie_wav_async import CallbackResult, CallbackTrust, OnUnknown, PollSchedule, WavFile
from kie_wav_async.errors import (
    ConversionFailedError,
    DownloadError,
    InsufficientCreditsError,
    KieWavError,
    LedgerError,
    ServerError,
    SubmitUnknownError,
    TransportError,
)
from kie_wav_async.testing import (
    FakeClock,
    MemoryLedger,
    ScriptedTransport,
    accepted,
    answer,
    failed,
    missing,
    pending,
    refused,
    signed_callback,
    submitted_callback_query,
    succeeded,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kie_wav_async import WavSession
    from kie_wav_async.testing import Reply

STEADY = PollSchedule(first_s=15.0, interval_s=10.0, jitter=0.0)

SUCCESS = [accepted("t1"), succeeded("t1")]


@pytest.fixture(params=[None, *FACTORIES], autouse=True)
async def factory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have the loop make its tasks in each way, the usual one included."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(FACTORIES.get(request.param))
    yield
    loop.set_task_factory(None)


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


def session_on(clock: FakeClock, script: list[Reply], **settings: object) -> WavSession:
    """Return a session whose transport answers, or raises, without waiting for anything."""
    return FakedSession(
        KEY, transport=ScriptedTransport(script), clock=clock, **{"poll": STEADY, **settings}
    )


async def outcome(clock: FakeClock, session: WavSession, number: int = 1) -> object:
    """Convert a track; return its file's task, or the kind of error."""
    try:
        return (await clock.run(session.convert(track(number)))).task_id
    except KieWavError as error:
        return type(error)


ENDS = [
    ("accepted", SUCCESS, "t1"),
    ("pending first", [accepted("t1"), pending("t1"), pending("t1"), succeeded("t1")], "t1"),
    ("submit raises", [lost()], SubmitUnknownError),
    ("submit raises something else", [RuntimeError("a bug")], SubmitUnknownError),
    ("submit gets 500", [refused(500)], SubmitUnknownError),
    ("submit is unsent", [unsent(), *SUCCESS], "t1"),
    ("submit is unsent thrice", [unsent()] * 3, TransportError),
    ("submit is limited", [refused(429), *SUCCESS], "t1"),
    ("submit meets maintenance", [refused(455), *SUCCESS], "t1"),
    ("submit is refused", [refused(402)], InsufficientCreditsError),
    ("the WAV exists", [refused(409, data={"taskId": "t1"}), pending("t1"), succeeded("t1")], "t1"),
    ("it is there at once", [refused(409, data={"taskId": "t1"}), succeeded("t1")], "t1"),
    ("it cannot be asked", [refused(409, data={"taskId": "t1"}), lost(), succeeded("t1")], "t1"),
    ("poll raises", [accepted("t1"), lost(), succeeded("t1")], "t1"),
    ("poll raises something else", [accepted("t1"), ValueError(), succeeded("t1")], "t1"),
    ("poll gets 500", [accepted("t1"), refused(500), succeeded("t1")], "t1"),
    ("no record yet", [accepted("t1"), missing(), succeeded("t1")], "t1"),
    ("failed", [accepted("t1"), failed("t1")], ConversionFailedError),
]


@pytest.mark.parametrize("has_ledger", [False, True])
@pytest.mark.parametrize(("script", "end"), [row[1:] for row in ENDS], ids=[r[0] for r in ENDS])
async def test_a_conversion_ends_the_same(clock, script, end, has_ledger) -> None:
    """Whatever completes without waiting, each conversion ends as it does with usual tasks."""
    ledger = MemoryLedger() if has_ledger else None
    async with session_on(clock, script, ledger=ledger) as session:
        assert end == await outcome(clock, session)


@pytest.mark.parametrize("reply", [lost(), RuntimeError(), refused(500)])
async def test_a_repeat_is_sent_once(clock, reply) -> None:
    """A submit of unknown outcome is repeated after its time, and not from within itself."""
    async with session_on(clock, [reply, *SUCCESS], on_unknown=OnUnknown.RESUBMIT) as session:
        start = clock.monotonic()
        assert "t1" == await outcome(clock, session)
        assert 75.0 == clock.monotonic() - start


class BrokenLedger(MemoryLedger):
    """Fails without waiting for anything."""

    async def finish_task(self, *_: object, **__: object) -> None:
        """Fail."""
        msg = "no space left on device"
        raise LedgerError(msg)


async def test_a_ledger_that_fails_at_once_ends_the_wait(clock) -> None:
    """An end that cannot be written down is told, whichever way the write is run."""
    async with session_on(clock, SUCCESS, ledger=BrokenLedger()) as session:
        assert await outcome(clock, session) is LedgerError


async def test_a_batch_ends_the_same(clock) -> None:
    """All tracks of a batch come out, those that fail without waiting included."""
    script = [lost(), refused(422), unsent(), accepted("t1"), succeeded("t1")]
    async with session_on(clock, script) as session:

        async def convert_all() -> set[object]:
            return {
                outcome.wav.task_id if outcome.ok else type(outcome.error).__name__
                async for outcome in session.convert_all([track(1), track(2), track(3)])
            }

        assert {"SubmitUnknownError", "InvalidRequestError", "t1"} == await clock.run(convert_all())


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ([answer({"code": 200, "msg": "", "data": 7})], 7),
        ([lost(), answer({"code": 200, "msg": "", "data": 7})], 7),
        ([lost()] * 3, TransportError),
        ([refused(500)] * 3, ServerError),
        ([ValueError("a bug")], ValueError),
    ],
)
async def test_a_read_ends_the_same(clock, replies, expected) -> None:
    """Reads that are answered, or fail, without waiting."""
    async with session_on(clock, replies) as session:
        try:
            assert expected == await clock.run(session.get_credits())
        except (KieWavError, ValueError) as error:
            assert type(error) is expected  # noqa: PT017 - it may be the expected value, or none


@pytest.mark.parametrize("trust", CallbackTrust)
@pytest.mark.parametrize("has_ledger", [False, True])
async def test_a_callback_ends_a_wait_the_same(clock, trust, has_ledger) -> None:
    """A callback settles, or has a poll sent that is answered without waiting."""
    settings = {"callback_url": LISTENING_AT, "webhook_keys": WEBHOOK_KEY, "callback_trust": trust}
    if has_ledger:
        settings["ledger"] = MemoryLedger()
    async with session_on(clock, SUCCESS, **settings) as session:
        session._core._hosts.restore(HOSTS)
        conversion = await clock.run(session.submit(track()))
        callback = signed_callback("t1", key=WEBHOOK_KEY, now_unix_s=clock.time())
        (sent,) = session._context.transport.submits
        query = submitted_callback_query(sent)
        start = clock.monotonic()
        verdict = await clock.run(session.handle_callback(*callback, query=query))
        assert "t1" == (await clock.run(conversion.wait())).task_id
        assert clock.monotonic() - start < 1.0
        is_believed = trust is CallbackTrust.PAYLOAD
        assert verdict is (CallbackResult.SETTLED if is_believed else CallbackResult.POLLING)


async def test_a_download_that_fails_at_once_ends(clock, tmp_path) -> None:
    """A link that is refused before anything is sent."""
    wav = WavFile(
        task_id="t1", url=URL("http://h/x.wav"), track=None, settled_by="poll", expires_at=None
    )
    async with session_on(clock, []) as session:
        with pytest.raises(DownloadError) as caught:
            await session.download(wav, tmp_path / "x.wav")
        assert "url-not-allowed" == caught.value.reason


async def test_closing_ends_waits_and_leaves_nothing(clock) -> None:
    """A session that closes with a conversion in flight leaves no task behind."""
    async with session_on(clock, [accepted("t1")]) as session:
        await clock.run(session.submit(track()))
        await asyncio.gather(clock.run(session.aclose()), session.aclose())
    assert 1 == len(asyncio.all_tasks())


def test_tasks_are_created_in_one_place() -> None:
    """No module of a session creates a task in a way that a task factory changes."""
    makers = {"create_task", "ensure_future", "gather", "TaskGroup", "wait_for"}
    package = Path(kie_wav_async.__file__).parent
    modules = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    # Test doubles and their checks run in the user's own tasks, programs in their own loop.
    exempt = ("testing.py", "ledger/conformance.py", "cli/", "simulator/")
    found = {
        (name, node.attr)
        for name, module in modules.items()
        if not name.startswith(exempt)
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in makers
    }
    assert set() == found
