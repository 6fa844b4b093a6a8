"""Where a callback's file may be: only on a host that the service itself has named."""

from __future__ import annotations

import asyncio

import pytest
from yarl import URL

from fakes import (
    LISTENING_AT,
    LOST_CHARGED,
    WEBHOOK_KEY,
    FakeService,
    track,
)
from kie_wav_async import CallbackResult, CallbackTrust, PollSchedule
from kie_wav_async.downloads.url_policy import host_and_port
from kie_wav_async.errors import LedgerError, SubmitUnknownError
from kie_wav_async.testing import FakeClock, MemoryLedger, failed, pending, succeeded

SETTLED, POLLING = CallbackResult.SETTLED, CallbackResult.POLLING

#: No poll within any test's time, unless a callback asks for it.
QUIET = PollSchedule(first_s=50_000.0, interval_s=50_000.0, backstop_s=50_000.0, jitter=0.0)

#: Where the records of the service have their files.
HOST = "media.invalid:443"
HELD_BACK = "https://media.invalid/task0001.wav"
EVIL = "https://evil.example/other.wav"


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def service(clock) -> FakeService:
    """Return a service whose conversions take a minute."""
    return FakeService(clock)


def listening(service, *, hosts=(), **settings):
    """Return a session that is called back; it knows *hosts* and no others."""
    return service.listening(hosts=hosts, **{"poll": QUIET, **settings})


async def outcome_of(service, clock, session, url, *, number=1):
    """Submit a track, have a callback name *url*, and return the verdict and what came of it."""
    conversion = await clock.run(session.submit(track(number)))
    task_id = conversion.task_id
    service.finish(task_id)
    polls = len(service.polled_at)
    verdict = await service.callback(task_id, url).to(session)
    await clock.advance(0.2)
    wav = conversion.result()
    return verdict, wav.settled_by, str(wav.url), len(service.polled_at) - polls


# --- what teaches a host ------------------------------------------------------------------------


async def test_the_first_callback_from_a_host_is_confirmed(clock, service) -> None:
    """The first callback from a new host causes one poll, which teaches it; the next settles."""
    async with listening(service) as session:
        first = await outcome_of(service, clock, session, HELD_BACK)
        assert (POLLING, "poll", HELD_BACK, 1) == first
        mine = "https://media.invalid/2.wav"
        second = await outcome_of(service, clock, session, mine, number=2)
        assert (SETTLED, "callback", mine, 0) == second


async def test_a_scheduled_poll_teaches_too(clock, service) -> None:
    """Whatever made us poll, the host that the answer names is known."""
    async with listening(service, poll=PollSchedule(jitter=0.0)) as session:
        await clock.run(session.convert(track()))
        conversion = await clock.run(session.submit(track(2)))
        assert SETTLED is await service.callback("task0002", HELD_BACK).to(session)
        assert conversion.done()


async def test_a_callback_teaches_nothing(clock, service) -> None:
    """A host that only callbacks have named is never believed, however often they do."""
    async with listening(service) as session:
        for number in range(1, 4):
            url = f"https://evil.example/{number}.wav"
            got = await outcome_of(service, clock, session, url, number=number)
            assert (POLLING, "poll", f"https://media.invalid/task000{number}.wav", 1) == got


@pytest.mark.parametrize("what", ["attached", "a 409", "a record", "found"])
async def test_only_our_own_tasks_teach(clock, service, what) -> None:
    """The record of a task that we did not submit teaches no host."""
    async with listening(service) as session:
        if what == "attached":
            service.create("task0001", track())
            service.finish("task0001")
            task = session.attach("task0001", track=track())
            await service.callback("task0001").to(session)
            await clock.run(task.wait())
        elif what == "a 409":
            service.create("task0001", track(), f"{LISTENING_AT}&attempt={'f' * 32}")
            service.finish("task0001")
            await clock.run(session.convert(track()))
        elif what == "a record":
            service.create("task0001", track())
            service.finish("task0001")
            assert HELD_BACK == str((await clock.run(session.get_task("task0001"))).wav_url)
        else:
            service.fates.append(LOST_CHARGED)
            with pytest.raises(SubmitUnknownError):
                await clock.run(session.submit(track()))
            service.finish("task0001")
            await service.callback("task0001").to(session)
            await clock.advance(5.0)
            (unknown,) = session.unknown_submits() or (None,)
            assert unknown is None
        got = await outcome_of(service, clock, session, HELD_BACK, number=2)
    assert (POLLING, 1) == (got[0], got[3])


@pytest.mark.parametrize(
    "reply",
    [
        lambda task_id: pending(task_id, response={"audioWavUrl": HELD_BACK}),
        lambda task_id: failed(task_id, response={"audioWavUrl": HELD_BACK}),
    ],
    ids=["pending", "failed"],
)
async def test_only_a_success_teaches(clock, service, reply) -> None:
    """A record that claims no success teaches no host, whatever it names."""
    service.poll_replies.append(reply)
    async with listening(service) as session:
        await clock.run(session.submit(track()))
        await service.callback("task0001", None, code=501).to(session)
        await clock.advance(0.2)
        got = await outcome_of(service, clock, session, HELD_BACK, number=2)
    assert POLLING is got[0]


# --- what is not believed -----------------------------------------------------------------------

NOT_BELIEVED = {
    "another host": EVIL,
    "another port": "https://media.invalid:8443/x.wav",
    "plain http": "http://media.invalid/x.wav",
    "plain http, that port": "http://media.invalid:443/x.wav",
    "a host that begins so": "https://media.invalid.evil.example/x.wav",
    "a host that ends so": "https://evilmedia.invalid/x.wav",
    "a host below it": "https://a.media.invalid/x.wav",
    "a final dot": "https://media.invalid./x.wav",
    "user and password": "https://user:pw@media.invalid/x.wav",
    "an empty user": "https://@media.invalid/x.wav",
    "a user that looks so": "https://media.invalid@evil.example/x.wav",
    "a user that looks so, with port": "https://media.invalid:443@evil.example/x.wav",
    "a backslash": "https://media.invalid\\@evil.example/x.wav",
    "a backslash in the path": "https://media.invalid/\\evil.example/x.wav",
    "blanks": "https://media.invalid /x.wav",
    "percent-encoded": "https://media.invali%64/x.wav",
    "a letter that looks so": "https://m\u0435dia.invalid/x.wav",
    "a full-width dot that reads so": "https://media\uff0einvalid.evil.example/x.wav",
    "this machine": "https://127.0.0.1/x",
    "this machine, in IPv6": "https://[::1]/x",
    "this machine, mapped": "https://[::ffff:127.0.0.1]/x",
    "this machine, as one number": "https://2130706433/x",
    "this machine, in hex": "https://0x7f.0.0.1/x",
    "this machine, in octal": "https://0177.0.0.1/x",
    "this machine, short": "https://127.1/x",
    "this machine, by name": "https://localhost/x",
    "a private address": "https://10.0.0.8/x",
    "where clouds keep secrets": "https://169.254.169.254/x",
    "a name of the network": "https://media/x",
    "no host": "https:///x.wav",
    "no URL": "media.invalid/x.wav",
}


@pytest.mark.parametrize("name", NOT_BELIEVED)
async def test_what_is_not_believed(clock, service, name) -> None:
    """With all else in order, a URL elsewhere is confirmed by one poll, and the record counts."""
    url = NOT_BELIEVED[name]
    # As if the service itself had named addresses that no file is fetched from.
    private = [
        *("127.0.0.1:443", "::1:443", "::ffff:7f00:1:443", "2130706433:443", "0x7f.0.0.1:443"),
        *("0177.0.0.1:443", "127.1:443", "localhost:443", "10.0.0.8:443", "169.254.169.254:443"),
        *("media:443", "media.invalid:80"),
    ]
    async with listening(service, hosts=[HOST, *private]) as session:
        got = await outcome_of(service, clock, session, url)
    assert (POLLING, "poll", HELD_BACK, 1) == got


@pytest.mark.parametrize(
    ("known", "url"),
    [
        (HOST, "https://MEDIA.Invalid/x.wav"),
        (HOST, "https://media.invalid:443/x.wav"),
        (HOST, "https://media.invalid:/x.wav"),
        ("xn--bcher-kva.example:443", "https://b\u00fccher.example/x.wav"),
        ("xn--bcher-kva.example:443", "https://XN--bcher-kva.example/x.wav"),
        ("93.184.216.34:443", "https://93.184.216.34/x.wav"),
    ],
)
async def test_one_host_however_it_is_written(clock, service, known, url) -> None:
    """Case, the usual port spelled out and the script of a name make no other host of it."""
    async with listening(service, hosts=[known]) as session:
        got = await outcome_of(service, clock, session, url)
    assert (SETTLED, "callback", 0) == (got[0], got[1], got[3])


@pytest.mark.parametrize(
    ("url", "is_believed"),
    [
        ("http://127.0.0.1:8080/x.wav", True),
        ("http://127.0.0.1:8081/x.wav", False),
        ("https://127.0.0.1/x.wav", False),
        ("http://mirror.test:8080/x.wav", False),
    ],
)
async def test_insecure_hosts_have_to_be_named_too(clock, service, url, is_believed) -> None:
    """An insecure host may be anywhere, but the service has to have named it, port included."""
    hosts = ["127.0.0.1:8080"]
    insecure = ["127.0.0.1", "mirror.test"]
    async with listening(service, hosts=hosts, insecure_hosts=insecure) as session:
        got = await outcome_of(service, clock, session, url)
    assert (SETTLED if is_believed else POLLING) is got[0]


async def test_download_hosts_bind_callbacks(clock, service) -> None:
    """A URL that would not be downloaded settles nothing, although the service named its host."""
    hosts = [HOST, "cdn.example:8443"]
    async with listening(service, hosts=hosts, download_hosts=["cdn.example"]) as session:
        first = await outcome_of(service, clock, session, HELD_BACK)
        assert (POLLING, "poll") == first[:2]
        url = "https://cdn.example:8443/x.wav"
        assert SETTLED is (await outcome_of(service, clock, session, url, number=2))[0]


async def test_a_replay_while_the_genuine_one_is_held_back(clock, service) -> None:
    """A genuine signature with another URL makes us ask, and the genuine file is what we get."""
    async with listening(service, hosts=[HOST]) as session:
        conversion = await clock.run(session.submit(track()))
        genuine = service.callback("task0001", HELD_BACK)
        replay = genuine.saying(data={"task_id": "task0001", "audioWavUrl": EVIL})
        assert POLLING is await replay.to(session)
        await clock.advance(0.2)
        assert not conversion.done()
        assert SETTLED is await genuine.to(session)
        assert HELD_BACK == str(conversion.result().url)


async def test_a_failure_replayed_as_a_success(clock, service) -> None:
    """The signature of a failure, over a success with another URL, does not undo the failure."""
    service.poll_replies += [failed, failed]
    async with listening(service, hosts=[HOST]) as session:
        conversion = await clock.run(session.submit(track()))
        genuine = service.callback("task0001", None, code=501)
        data = {"task_id": "task0001", "audioWavUrl": EVIL}
        assert POLLING is await genuine.saying(code=200, data=data).to(session)
        await clock.advance(0.2)
        assert "failed" in repr(conversion)


@pytest.mark.parametrize("word", ["GENERATE_WAV_FAILED", 3, "CREATE_TASK_FAILED"])
async def test_a_success_that_says_failed(clock, service, word) -> None:
    """A callback whose code says success and whose data says failure is confirmed."""
    data = {"task_id": "task0001", "audioWavUrl": HELD_BACK, "successFlag": word}
    async with listening(service, hosts=[HOST]) as session:
        await clock.run(session.submit(track()))
        assert POLLING is await service.callback("task0001").saying(data=data).to(session)


async def test_nothing_settles_where_every_callback_is_confirmed(clock, service) -> None:
    """Where each callback is to be confirmed, the host makes no difference."""
    trust = CallbackTrust.CONFIRM
    async with listening(service, hosts=[HOST], callback_trust=trust) as session:
        got = await outcome_of(service, clock, session, HELD_BACK)
    assert (POLLING, "poll", HELD_BACK, 1) == got


async def test_nothing_settles_without_keys(clock, service) -> None:
    """Without keys a callback of a task in flight causes one poll at most, whatever it names."""
    async with listening(service, hosts=[HOST], webhook_keys=()) as session:
        got = await outcome_of(service, clock, session, HELD_BACK)
    assert (POLLING, "poll", HELD_BACK, 1) == got


# --- early ones ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("url", "settled_by"), [(HELD_BACK, "callback"), (EVIL, "poll")])
async def test_an_early_callback_is_judged_alike(clock, url, settled_by) -> None:
    """A callback that comes before the answer keeps its query, and settles on a known host only."""
    service = FakeService(clock, latency_s=1.0)
    async with listening(service, hosts=[HOST]) as session:
        submit = asyncio.create_task(session.submit(track()))
        await clock.advance(0.7)
        service.finish("task0001")
        assert CallbackResult.UNKNOWN_TASK is await service.callback("task0001", url).to(session)
        conversion = await clock.run(submit)
        await clock.advance(5.0)
        wav = conversion.result()
    assert (settled_by, HELD_BACK) == (wav.settled_by, str(wav.url))


async def test_an_early_callback_is_judged_when_its_task_is_known(clock) -> None:
    """A host that was learnt while an early callback waited is known when it is looked at."""
    service = FakeService(clock, latency_s=1.0)
    async with listening(service) as session:
        await clock.run(session.submit(track()))
        service.finish("task0001")
        submit = asyncio.create_task(session.submit(track(2)))
        await clock.advance(0.6)
        early = "https://media.invalid/early.wav"
        assert CallbackResult.UNKNOWN_TASK is await service.callback("task0002", early).to(session)
        session._core._hosts.learn(host_and_port(URL(HELD_BACK)))
        conversion = await clock.run(submit)
        assert ("callback", early) == (
            conversion.result().settled_by,
            str(conversion.result().url),
        )


async def test_an_early_callback_without_the_query_settles_nothing(clock) -> None:
    """An early callback that named no attempt only makes us ask, as it would have later."""
    service = FakeService(clock, latency_s=1.0)
    async with listening(service, hosts=[HOST]) as session:
        submit = asyncio.create_task(session.submit(track()))
        await clock.advance(0.7)
        service.finish("task0001")
        await service.callback("task0001", HELD_BACK, query="shop=7").to(session)
        conversion = await clock.run(submit)
        await clock.advance(5.0)
        assert "poll" == conversion.result().settled_by


# --- with a ledger ------------------------------------------------------------------------------


async def test_hosts_outlive_the_process(clock, service) -> None:
    """What one run learnt, the next one knows from its ledger."""
    ledger = MemoryLedger()
    async with listening(service, ledger=ledger) as session:
        assert POLLING is (await outcome_of(service, clock, session, HELD_BACK))[0]
    async with listening(service, ledger=ledger) as session:
        assert SETTLED is (await outcome_of(service, clock, session, HELD_BACK, number=2))[0]
        assert POLLING is (await outcome_of(service, clock, session, EVIL, number=3))[0]


async def test_a_settle_does_not_wait_for_the_host(clock, service) -> None:
    """While a host is being written down, conversions end and callbacks settle."""
    ledger = MemoryLedger()
    ledger.hold = {"keep_host": asyncio.Event()}
    async with listening(service, ledger=ledger) as session:
        assert POLLING is (await outcome_of(service, clock, session, HELD_BACK))[0]
        assert SETTLED is (await outcome_of(service, clock, session, HELD_BACK, number=2))[0]
        assert [("keep_host", (HOST,))] == [call for call in ledger.calls if "host" in call[0]]
        ledger.hold["keep_host"].set()


async def test_a_host_that_cannot_be_written_is_known_all_the_same(clock, service, caplog) -> None:
    """A ledger that cannot keep a host costs the next run a poll, and this one nothing."""
    ledger = MemoryLedger()
    ledger.fail_with = {"keep_host": LedgerError("no space left on device")}
    async with listening(service, ledger=ledger) as session:
        assert POLLING is (await outcome_of(service, clock, session, HELD_BACK))[0]
        assert SETTLED is (await outcome_of(service, clock, session, HELD_BACK, number=2))[0]
    assert "no space left on device" in caplog.text


async def test_a_task_goes_by_its_own_submit_after_a_restart(clock, service) -> None:
    """Of a track submitted twice, the later submit settles nothing of the earlier one's task."""
    service.knows_repeats = False
    ledger = MemoryLedger()
    async with listening(service, hosts=[HOST], ledger=ledger) as session:
        service.fates.append(LOST_CHARGED)
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track()))
        await clock.run(session.submit(track(), again=True))
        lost, repeat = service.attempts
        await session.resolve_unknown(lost, task_id="task0001")
        left = ledger.die()
    # The repeat's task fails, so that the track is followed under the first one's.
    await left.open(clock.time())
    await left.finish_task("task0002", clock.time(), error="it failed")
    async with listening(service, hosts=[HOST], ledger=left) as session:
        (conversion,) = await session.recover()
        assert "task0001" == conversion.task_id
        replay = service.callback("task0001", HELD_BACK, attempt_id=repeat)
        assert POLLING is await replay.to(session)
        await clock.advance(3.0)
        assert SETTLED is await service.callback("task0001", HELD_BACK).to(session)
    await left.aclose()


async def test_what_a_callback_explains_is_confirmed(clock, service) -> None:
    """A callback that finds a lost submit's task does not settle it in the same step."""
    service.fates.append(LOST_CHARGED)
    async with listening(service, hosts=[HOST]) as session:
        with pytest.raises(SubmitUnknownError):
            await clock.run(session.submit(track()))
        service.finish("task0001")
        other = "https://media.invalid/another.wav"
        assert POLLING is await service.callback("task0001", other).to(session)
        await clock.advance(5.0)
        wav = await clock.run(session.convert(track()))
    assert ("poll", HELD_BACK) == (wav.settled_by, str(wav.url))


async def test_what_the_poll_names_is_the_file(clock, service) -> None:
    """A callback from a new host is not believed by half: the record's file is the file."""
    elsewhere = "https://media.invalid/genuine.wav"
    service.poll_replies.append(lambda task_id: succeeded(task_id, elsewhere))
    async with listening(service) as session:
        got = await outcome_of(service, clock, session, EVIL)
        assert (POLLING, "poll", elsewhere, 1) == got
        assert not session._core._hosts.note_use("evil.example:443")
    assert WEBHOOK_KEY not in repr(got)
