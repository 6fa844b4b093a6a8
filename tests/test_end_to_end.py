"""The whole: a session against the simulator, over loopback, much faster than life."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections import Counter

import aiohttp
import pytest

from fastclock import FastClock
from kie_wav_async import OnUnknown, PollSchedule, RateLimit, Track, WavFile, WavSession
from kie_wav_async.errors import (
    ConversionFailedError,
    ConversionTimeoutError,
    InvalidRequestError,
    SubmitUnknownError,
    TransportError,
)
from kie_wav_async.simulator import Fault, Simulator, SimulatorProcess

SPEED = 100.0
# What no test waits for; it only ends a hang.
PATIENCE_S = 300.0


@contextlib.asynccontextmanager
async def converting(session_settings=None, *, simulator=Simulator, speed=SPEED, **settings):
    """Run a simulator and a session with it, both at the same pace."""
    given = {"median_s": 20.0, "time_scale": speed} | settings
    async with asyncio.timeout(PATIENCE_S), simulator(**given) as kie:
        own = {"clock": FastClock(speed), "base_url": kie.base_url, "timeout_s": 1e5}
        async with WavSession(kie.api_key, **own | (session_settings or {})) as session:
            yield kie, session


UNLIMITED = {"rate_limit": RateLimit(100_000, per_s=0.001), "max_in_flight": 100_000}


async def test_track_becomes_a_wav():
    """A track is submitted, polled, and is a WAV file at the URL that comes back."""
    async with converting() as (kie, session), aiohttp.ClientSession() as http:
        [track, _] = await session.list_tracks("5c79")
        before = await session.get_credits()
        wav = await session.convert(track)
        link = await session.create_download_url(wav.url)
        async with http.get(wav.url) as answer, http.get(link) as linked:
            content = await answer.read()
            assert content == await linked.read()
        record = await session.get_task(wav.task_id)
        after = await session.get_credits()
        state = kie.state()

    assert (track, "poll", record.wav_url) == (wav.track, wav.settled_by, wav.url)
    assert b"RIFF" == content[:4]
    assert b"WAVE" == content[8:12]
    assert 1 == state.charges
    assert after < before
    assert 0 == state.keys_sent_to_media


async def test_track_asked_for_by_many_is_paid_once():
    """Fifty who want the same track at once get the same file, for one charge."""
    async with converting() as (kie, session):
        track = Track("5c79", "e231")
        wavs = await asyncio.gather(*(session.convert(track) for _ in range(50)))
        assert wavs[0] == await session.convert(track)

        assert {wavs[0]} == set(wavs)
        assert 1 == kie.charges == session.statistics().submitted


def is_wav(outcome):
    """Tell whether a track became a file."""
    return isinstance(outcome.wav, WavFile)


def is_error(kind):
    """Return a judge of whether a track ended with an error of exactly that kind."""
    return lambda outcome: type(outcome.error) is kind


# What befalls a track, and how it must end. Told apart by the audio id.
FATES = {
    "plain": ([], is_wav),
    "lost-answer": ([Fault(kind="reset", when="after")], is_error(SubmitUnknownError)),
    "html": ([Fault(kind="html", http_status=502)], is_error(SubmitUnknownError)),
    "no-id": ([Fault(kind="id-places")], is_error(SubmitUnknownError)),
    "known": ([], is_wav),
    "poll-resets": ([Fault(on="poll", kind="reset", times=3)], is_wav),
    "poll-html": ([Fault(on="poll", kind="html", times=2)], is_wav),
    "no-record-yet": ([Fault(on="poll", kind="data-null", times=1)], is_wav),
    "numbers": ([Fault(on="poll", kind="flag-style", style="int")], is_wav),
    "no-callback": ([Fault(on="poll", kind="callback-exception")], is_wav),
    "url-later": ([Fault(on="poll", kind="no-url", times=2)], is_wav),
    "url-elsewhere": ([Fault(on="poll", kind="url-places", places=["data.downloadUrl"])], is_wav),
    "failed": ([Fault(on="conversion", kind="fail")], is_error(ConversionFailedError)),
    "failed-by-code": (
        [
            Fault(on="conversion", kind="fail"),
            Fault(on="poll", kind="envelope", fields={"code": 501}),
        ],
        is_error(ConversionFailedError),
    ),
    "refused": (
        [Fault(kind="code", code=422, msg="Record does not exist")],
        is_error(InvalidRequestError),
    ),
}
EACH = 20


def faults_for(audio_id, faults):
    """Return faults that strike this track only."""
    return [Fault.from_json(fault.to_json() | {"audio_id": audio_id}) for fault in faults]


async def test_catalog_with_all_kinds_of_trouble_ends_as_it_should():
    """Every track of a catalog ends by its own fate, and the books agree with the service's."""
    audio_ids = {f"{name}-{n}": name for n in range(EACH) for name in FATES}
    faults = [
        fault
        for audio_id, name in audio_ids.items()
        for fault in faults_for(audio_id, FATES[name][0])
    ]
    # Slow enough for a busy machine to poll within the minute in which a record may be missing.
    poll = PollSchedule(first_s=0.5, interval_s=3.0, max_per_s=1000.0)
    async with converting(
        UNLIMITED | {"poll": poll}, speed=10.0, median_s=5.0, faults=faults, window=None
    ) as (kie, session):
        known = [Track("5c79", audio_id) for audio_id, name in audio_ids.items() if name == "known"]
        async with WavSession(kie.api_key, base_url=kie.base_url, **UNLIMITED) as other:
            elsewhere = await asyncio.gather(*map(other.submit, known))
        outcomes = {}
        async with session.convert_all(Track("5c79", audio_id) for audio_id in audio_ids) as batch:
            async for outcome in batch:
                assert outcome.track.audio_id not in outcomes
                outcomes[outcome.track.audio_id] = outcome
        books, state = session.statistics(), kie.state()

        wrong = [o for audio_id, o in outcomes.items() if not FATES[audio_ids[audio_id]][1](o)]
        assert [] == wrong
        assert audio_ids.keys() == outcomes.keys()
        assert {c.task_id for c in elsewhere} == {
            outcomes[track.audio_id].wav.task_id for track in known
        }
        assert () == session.conversions()

    ends = Counter(type(outcome.error) for outcome in outcomes.values())
    kinds = len(FATES)
    assert kinds * EACH == books.submitted == state.requests["submit"] - EACH
    # Neither lost, in doubt nor refused, nor adopted.
    assert (kinds - 5) * EACH == books.accepted
    assert 3 * EACH == books.unknown == ends[SubmitUnknownError] == len(session.unknown_submits())
    assert EACH == books.adopted
    assert 2 * EACH == books.failed == ends[ConversionFailedError]
    assert (kinds - 6) * EACH == books.settled_by_poll == ends[type(None)]
    assert 0 == books.in_flight == books.timed_out == books.possible_double_charges
    # The other session paid for what was known; two of the three kinds in doubt were charged.
    assert books.accepted + 2 * EACH + EACH == state.charges
    assert {1} == set(state.charges_by_track.values())
    # A poll whose connection broke may have been repeated by the HTTP client itself.
    assert 0 <= state.requests["poll"] - books.polls <= 3 * EACH
    assert 0 == state.submits_on_used_connection == state.rejected_429


async def test_catalog_keeps_to_the_window():
    """With the defaults a catalog goes through the service's own limits without a refusal."""
    async with converting() as (kie, session):
        async with session.convert_all(Track("5c79", f"e{n}") for n in range(100)) as batch:
            outcomes = [outcome async for outcome in batch]
        state = kie.state()

    assert 100 == len([o for o in outcomes if o.ok]) == state.charges
    assert 0 == state.rejected_429
    assert state.most_arrivals_in(10.0 / SPEED) <= 20
    assert 0 == state.polls_after_done == state.polls_too_fast


@pytest.mark.parametrize("dedupe", [True, False])
async def test_lost_answer_is_repeated_where_that_is_wanted(dedupe):
    """With `RESUBMIT` a convert whose answer was lost ends with a file, at a risk that is told."""
    faults = [Fault(kind="reset", when="after", times=5)]
    async with converting({"on_unknown": OnUnknown.RESUBMIT}, faults=faults, dedupe=dedupe) as (
        kie,
        session,
    ):
        wavs = await asyncio.gather(*(session.convert(Track("5c79", f"e{n}")) for n in range(10)))
        books = session.statistics()

        assert 10 == len(wavs)
        assert (10 if dedupe else 15) == kie.charges
        assert (5 if dedupe else 0) == books.adopted
        assert (0 if dedupe else 5) == books.possible_double_charges == books.unknown
        assert books.accepted <= kie.charges <= books.accepted + books.unknown


async def test_service_that_dies_half_way_leaves_no_wait_open():
    """When the service is killed, waits end by their timeout, submits plainly, closing quietly."""
    settings = {"timeout_s": 100.0, "rate_limit": RateLimit(100, per_s=0.01)}
    tracks = [Track("5c79", f"e{n}") for n in range(20)]
    async with converting(settings, simulator=SimulatorProcess, median_s=1e9) as (kie, session):
        conversions = await asyncio.gather(*map(session.submit, tracks))
        kie._process.kill()
        ends = await asyncio.gather(*conversions, return_exceptions=True)
        with pytest.raises(TransportError, match="no byte") as caught:
            await session.convert(Track("5c79", "too-late"))

        assert {ConversionTimeoutError} == {type(end) for end in ends}
        assert [c.task_id for c in conversions] == [end.task_id for end in ends]
        assert not caught.value.maybe_sent
        assert () == session.conversions() == session.unknown_submits()
        assert 20 == session.statistics().timed_out


async def test_service_that_comes_back_is_found_again():
    """A task submitted before the service went away is settled after it has come back."""
    async with converting(median_s=1e9) as (first, session):
        conversion = await session.submit(Track("5c79", "e231"))
        await first.aclose()
        while session.statistics().polls < 3:  # noqa: ASYNC110 - nobody tells of a poll
            await asyncio.sleep(0)
        port = int(first.base_url.rpartition(":")[2])
        async with (
            Simulator(median_s=0, port=port) as second,
            WavSession(second.api_key, base_url=second.base_url) as other,
        ):
            # Ids follow from the track alone, so it is the same task.
            assert conversion.task_id == (await other.submit(conversion.track)).task_id
            wav = await conversion

    assert conversion.task_id == wav.task_id


@pytest.mark.campaign
async def test_ten_thousand_at_once_leave_nothing_behind():
    """10,000 conversions awaited at once through convert end, and nothing of them is left."""
    asyncio.get_running_loop().set_debug(False)
    number = 10_000
    poll = PollSchedule(first_s=1.0, max_per_s=1e6)
    settings = UNLIMITED | {"rate_limit": RateLimit(200, per_s=0.001), "poll": poll}
    async with converting(settings, window=None, gzip=False) as (kie, session):
        wavs = await asyncio.gather(
            *(session.convert(Track("5c79", f"e{n}")) for n in range(number))
        )
        books, state = session.statistics(), kie.state()
        assert () == session.conversions()

    assert number == len({wav.url for wav in wavs}) == state.charges
    assert number == books.submitted == books.accepted == books.settled_by_poll
    assert 0 == books.in_flight == books.unknown == state.submits_on_used_connection


PROGRAM = """
import asyncio
from kie_wav_async import PollSchedule, RateLimit, Track, WavSession
from kie_wav_async.simulator import Simulator

async def main():
    async with Simulator(median_s=0.05) as kie:
        poll = PollSchedule(first_s=0.05, interval_s=0.05, max_per_s=1000.0)
        async with WavSession(kie.api_key, base_url=kie.base_url, poll=poll) as session:
            tracks = [Track("5c79", f"e{n}") for n in range(12)]
            async with session.convert_all(tracks) as batch:
                print(len([outcome.unwrap() async for outcome in batch]))
            print(await session.convert(Track("5c79", "e0")) == await session.attach(
                (await session.convert(Track("5c79", "e0"))).task_id))

asyncio.run(main())
"""


def test_program_in_development_mode_says_nothing():
    """With `-X dev -W error` a program that converts prints its own output and not a word more."""
    done = subprocess.run(  # noqa: S603 - our own interpreter and our own text
        [sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert "" == done.stderr
    assert "12" == done.stdout.split()[0]
    assert 0 == done.returncode
