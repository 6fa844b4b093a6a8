from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import re
import statistics
import wave
from decimal import Decimal

import aiohttp
import attrs
import pytest

from kie_wav_async.simulator import Simulator, SimulatorState

CALLBACK = "https://caller.invalid/kie?attempt=00ff&x=%2F"


class Moved:
    """A clock that a test moves."""

    def __init__(self):
        self.at = 5000.0

    def __call__(self):
        return self.at


class Client:
    """A plain aiohttp client that knows the five routes and nothing of our library."""

    def __init__(self, http):
        self.http = http

    async def post(self, path, **kwargs):
        async with self.http.post(path, **kwargs) as answer:
            return await answer.json(content_type=None)

    async def get(self, path, **kwargs):
        async with self.http.get(path, **kwargs) as answer:
            return await answer.json(content_type=None)

    async def submit(self, audio_id="a", music_task_id="m", **change):
        body = {"taskId": music_task_id, "audioId": audio_id, "callBackUrl": CALLBACK, **change}
        return await self.post("/api/v1/wav/generate", json=body)

    async def poll(self, task_id):
        return await self.get("/api/v1/wav/record-info", params={"taskId": task_id})

    async def record(self, audio_id="a", music_task_id="m"):
        """Submit a track and poll it once."""
        task_id = (await self.submit(audio_id, music_task_id))["data"]["taskId"]
        return (await self.poll(task_id))["data"]

    async def wav_url(self, audio_id="a", music_task_id="m"):
        return (await self.record(audio_id, music_task_id))["response"]["audioWavUrl"]


async def until(condition):
    """Let the loop turn until something is so."""
    async with asyncio.timeout(20.0):
        while not condition():  # noqa: ASYNC110 - the server offers no event for this
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running(**settings):
    """Run a simulator and a client with its key."""
    async with Simulator(**settings) as kie:
        key = {"Authorization": f"Bearer {kie.api_key}"}
        async with aiohttp.ClientSession(kie.base_url, headers=key) as http:
            yield kie, Client(http)


# Answers on the wire


async def test_submit_is_answered_with_a_32_hex_task_id():
    """An accepted submit gets a task id of 32 lower-case hex digits and nothing else."""
    async with running() as (_, client):
        answer = await client.submit()

    assert {"code": 200, "msg": "success"} == {k: answer[k] for k in ("code", "msg")}
    assert ["taskId"] == list(answer["data"])
    assert re.fullmatch("[0-9a-f]{32}", answer["data"]["taskId"])


async def test_answers_carry_the_recorded_headers():
    """An answer has the content type, encoding and framing that were recorded from KIE."""
    async with running() as (_, client), client.http.get("/api/v1/chat/credit") as answer:
        headers = answer.headers

    assert "application/json;charset=UTF-8" == headers["Content-Type"]
    assert "gzip" == headers["Content-Encoding"]
    assert "chunked" == headers["Transfer-Encoding"]
    assert "cloudflare" == headers["Server"]
    assert re.fullmatch("JSESSIONID=[0-9A-F]{32}; Path=/; HttpOnly", headers["Set-Cookie"])


async def test_cf_ray_differs_per_request():
    """Every answer carries a request id of its own."""
    rays = set()
    async with running() as (_, client):
        for _ in range(3):
            async with client.http.get("/api/v1/chat/credit") as answer:
                rays.add(answer.headers["CF-RAY"])

    assert 3 == len(rays)
    assert all(re.fullmatch("[0-9a-f]{16}-[A-Z]{3}", ray) for ray in rays)


async def test_gzip_false_sends_plain_answers():
    """With gzip off an answer has its length instead of an encoding."""
    async with (
        running(gzip=False) as (_, client),
        client.http.get("/api/v1/chat/credit") as answer,
    ):
        body = await answer.read()

    assert "Content-Encoding" not in answer.headers
    assert str(len(body)) == answer.headers["Content-Length"]


async def test_client_that_does_not_accept_gzip_gets_none():
    """The body is compressed only for a client that says it can read that."""
    async with (
        running() as (_, client),
        client.http.get("/api/v1/chat/credit", headers={"Accept-Encoding": "identity"}) as answer,
    ):
        assert "Content-Encoding" not in answer.headers


async def test_unknown_route_is_a_spring_404():
    """An unknown route is the one true 404, and its body has no code."""
    async with running() as (_, client), client.http.get("/api/v1/wav/nothing") as answer:
        assert 404 == answer.status
        assert {
            "status": 404,
            "error": "Not Found",
            "message": "No message available",
        } == await answer.json(content_type=None)


@pytest.mark.parametrize("header", [None, "Bearer wrong", "sk-kie-simulator"])
async def test_wrong_key_is_401_in_a_200_without_data(header):
    """A request without the right bearer key is refused in the body and has no data key."""
    headers = {} if header is None else {"Authorization": header}
    async with (
        running() as (kie, _),
        aiohttp.ClientSession(kie.base_url, headers=headers) as http,
        http.get("/api/v1/chat/credit") as answer,
    ):
        assert 200 == answer.status
        body = await answer.json(content_type=None)

    assert {"code": 401, "msg": "You do not have access permissions"} == body


@pytest.mark.parametrize(
    ("change", "code", "msg"),
    [
        ({"callBackUrl": None}, 422, "Please enter callBackUrl."),
        ({"callBackUrl": ""}, 422, "Please enter callBackUrl."),
        ({"taskId": None}, 422, "Please enter taskId."),
        ({"audioId": 7}, 422, "Please enter audioId."),
    ],
)
async def test_missing_field_is_422(change, code, msg):
    """A submit without one of its three fields creates nothing and is told which."""
    async with running() as (kie, client):
        answer = await client.submit(**change)

    assert {"code": code, "msg": msg, "data": None} == answer
    assert 0 == kie.charges


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
async def test_body_that_is_no_json_object_is_400(body):
    """A submit whose body is not a JSON object is answered 400."""
    async with running() as (_, client):
        answer = await client.post("/api/v1/wav/generate", data=body)

    assert 400 == answer["code"]


@pytest.mark.parametrize("path", ["/api/v1/wav/record-info", "/api/v1/generate/record-info"])
async def test_record_of_no_task_is_422(path):
    """A question for a record without an id is answered 422."""
    async with running() as (_, client):
        assert [422] * 2 == [(await client.get(path + end))["code"] for end in ("", "?taskId=")]


async def test_link_for_no_json_is_400():
    """A question for a link whose body is not a JSON object is answered 400."""
    async with running() as (_, client):
        answer = await client.post("/api/v1/common/download-url", data=b"[]")

    assert 400 == answer["code"]


async def test_any_text_can_be_an_id():
    """Ids are taken as they are, even half a surrogate pair."""
    async with running(median_s=0) as (_, client):
        record = await client.record("\ud800\u2028é")

    assert "\ud800\u2028é" == record["musicId"]


@pytest.mark.parametrize(
    "settings",
    [
        {"unknown_audio_ids": ["a"]},
        {"unknown_music_task_ids": ["m"]},
        {"music": {"m": ["other"]}, "known_only": True},
        {"music": {"other": ["a"]}, "known_only": True},
    ],
)
async def test_unknown_track_is_422(settings):
    """A track that does not exist is answered 422, as recorded, and is not charged."""
    async with running(**settings) as (kie, client):
        answer = await client.submit()

    assert {"code": 422, "msg": "Record does not exist", "data": None} == answer
    assert 0 == kie.charges


async def test_known_track_is_accepted():
    """With known_only the tracks that were named can be converted."""
    async with running(music={"m": ["a"]}, known_only=True) as (_, client):
        assert 200 == (await client.submit())["code"]


# Charges


async def test_every_task_created_is_one_charge():
    """Charges are counted for each track."""
    async with running() as (kie, client):
        for audio_id in ("a", "b", "b"):
            await client.submit(audio_id)

    assert 2 == kie.charges
    assert {("m", "a"): 1, ("m", "b"): 1} == kie.charges_by_track


async def test_repeated_track_is_409_with_the_id():
    """A second submit of a track names the task of the first."""
    async with running() as (_, client):
        first = await client.submit()
        second = await client.submit()

    assert 409 == second["code"]
    assert first["data"] == second["data"]


async def test_conflict_can_come_without_an_id_as_http_409():
    """A conflict's id and HTTP status can be set."""
    async with running(conflict_id=False, conflict_http_status=409) as (_, client):
        await client.submit()
        body = {"taskId": "m", "audioId": "a", "callBackUrl": CALLBACK}
        async with client.http.post("/api/v1/wav/generate", json=body) as answer:
            assert 409 == answer.status
            assert (await answer.json(content_type=None))["data"] is None


async def test_without_dedupe_a_repeat_is_another_charge():
    """With dedupe off a repeated track is charged again under another id."""
    async with running(dedupe=False) as (kie, client):
        ids = {(await client.submit())["data"]["taskId"] for _ in range(2)}

    assert 2 == len(ids)
    assert {("m", "a"): 2} == kie.charges_by_track


async def test_credits_are_fractional_numbers():
    """Each conversion takes 0.4 credits from the account."""
    async with running(credits="5916.25") as (_, client):
        before = await client.get("/api/v1/chat/credit")
        await client.submit()
        after = await client.get("/api/v1/chat/credit")

    assert {"code": 200, "msg": "success", "data": 5916.25} == before
    assert 5915.85 == after["data"]


async def test_without_credits_nothing_is_created():
    """A submit that the credits do not cover is answered 402."""
    async with running(credits=0.5) as (kie, client):
        codes = [(await client.submit(str(n)))["code"] for n in range(2)]

    assert [200, 402] == codes
    assert 1 == kie.charges
    assert Decimal("0.1") == kie.state().credits


# The window


async def test_window_rejects_what_is_over_it():
    """Of 25 submits at once 20 are accepted and 5 are rejected, uncreated."""
    async with running() as (kie, client):
        answers = await asyncio.gather(*(client.submit(str(n)) for n in range(25)))

    assert [200] * 20 + [429] * 5 == sorted(answer["code"] for answer in answers)
    assert 20 == kie.charges
    assert 5 == kie.state().rejected_429


async def test_rejection_has_http_status_429():
    """A submit over the limit is rejected in the status as well as in the body."""
    async with running(window=(1, 10.0)) as (_, client):
        await client.submit()
        body = {"taskId": "m", "audioId": "b", "callBackUrl": CALLBACK}
        async with client.http.post("/api/v1/wav/generate", json=body) as answer:
            assert 429 == answer.status


async def test_window_slides():
    """A place comes free exactly one window after the submit that took it."""
    now = Moved()
    async with running(now=now, window=(2, 10.0)) as (_, client):
        codes = []
        for at in (0.0, 4.0, 9.99, 10.0, 13.99, 14.0):
            now.at = 5000.0 + at
            codes.append((await client.submit(str(at)))["code"])

    assert [200, 200, 429, 200, 429, 200] == codes


async def test_rejected_submits_do_not_occupy_the_window():
    """A client that hammers at a full window gets in when the accepted ones have left it."""
    now = Moved()
    async with running(now=now, window=(1, 10.0)) as (_, client):
        codes = []
        for at in (0.0, 5.0, 9.0, 10.0):
            now.at = 5000.0 + at
            codes.append((await client.submit(str(at)))["code"])

    assert [200, 429, 429, 200] == codes


async def test_unauthorized_submit_does_not_occupy_the_window():
    """A submit without the key is nobody's, so it counts for no account."""
    async with running(window=(1, 10.0)) as (kie, client):
        async with client.http.post(
            "/api/v1/wav/generate", json={}, headers={"Authorization": "Bearer no"}
        ) as answer:
            await answer.read()
        accepted = await client.submit()

    assert 200 == accepted["code"]
    assert ["unauthorized", "created"] == [arrival.verdict for arrival in kie.arrivals]


async def test_window_none_is_no_limit():
    """Without a window any number of submits is accepted."""
    async with running(window=None) as (_, client):
        codes = {(await client.submit(str(n)))["code"] for n in range(30)}

    assert {200} == codes


async def test_time_scale_speeds_up_the_window():
    """With a time scale of 10 the window of 10 s passes in one second."""
    now = Moved()
    async with running(now=now, window=(1, 10.0), time_scale=10.0) as (_, client):
        await client.submit("a")
        now.at += 0.99
        too_early = await client.submit("b")
        now.at += 0.01
        in_time = await client.submit("b")

    assert (429, 200) == (too_early["code"], in_time["code"])


async def test_arrivals_are_logged_with_their_verdicts():
    """The log names moment, verdict, track and task of every submit."""
    now = Moved()
    async with running(now=now, window=(2, 10.0)) as (kie, client):
        task_id = (await client.submit())["data"]["taskId"]
        now.at += 1
        await client.submit()
        await client.submit("b")

    assert [
        (5000.0, "created", "m", "a", task_id),
        (5001.0, "repeated", "m", "a", task_id),
        (5001.0, "limited", "m", "b", None),
    ] == list(kie.arrivals)


@pytest.mark.parametrize(
    ("times", "most"),
    [([], 0), ([1.0], 1), ([0.0, 10.0], 1), ([0.0, 9.99, 10.0], 2), ([3.0, 1.0, 2.0, 20.0], 3)],
)
async def test_most_arrivals_counts_a_half_open_span(times, most):
    """The densest span of a length is found, its end not included."""
    async with Simulator() as kie:
        empty = kie.state()
    arrival = ("created", None, None, None)
    state = attrs.evolve(empty, arrivals=tuple((at, *arrival) for at in times))
    state = SimulatorState.from_json(json.loads(json.dumps(state.to_json())))

    assert most == state.most_arrivals_in(10.0)


# Conversions


async def test_record_is_pending_until_the_time_has_passed():
    """A task ends when its conversion time has passed, not before."""
    now = Moved()
    async with running(now=now, median_s=60.0, sigma=0.0) as (_, client):
        task_id = (await client.submit())["data"]["taskId"]
        flags = []
        for at in (0.0, 59.9, 60.1):
            now.at = 5000.0 + at
            flags.append((await client.poll(task_id))["data"]["successFlag"])

    assert ["PENDING", "PENDING", "SUCCESS"] == flags


async def test_pending_record_has_nulls_for_what_is_not_there_yet():
    """A pending record has every documented key."""
    async with running() as (_, client):
        record = await client.record()

    assert {
        "musicId": "a",
        "callbackUrl": CALLBACK,
        "completeTime": None,
        "response": None,
        "successFlag": "PENDING",
        "errorCode": None,
        "errorMessage": None,
    } == {k: v for k, v in record.items() if k not in {"taskId", "musicIndex", "createTime"}}
    assert record["musicIndex"] in {0, 1}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", record["createTime"])


async def test_finished_record_has_url_and_time():
    """A finished record has the documented URL place and a completion time."""
    async with running(median_s=0) as (kie, client):
        record = await client.record()

    assert "SUCCESS" == record["successFlag"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", record["completeTime"])
    url = re.escape(kie.base_url) + "/s/[0-9a-f]{32}[.]wav"
    assert re.fullmatch(url, record["response"]["audioWavUrl"])


async def test_unknown_task_is_data_null():
    """A poll of an id the service does not know is a success without data."""
    async with running() as (_, client):
        assert {"code": 200, "msg": "success", "data": None} == await client.poll("0" * 32)


async def test_records_are_forgotten_after_two_months():
    """A record older than 60 days is as unknown as one that never was."""
    now = Moved()
    async with running(now=now) as (_, client):
        task_id = (await client.submit())["data"]["taskId"]
        now.at += 60 * 86_400.0
        assert (await client.poll(task_id))["data"] is None


async def test_same_seed_same_ids():
    """Ids follow from seed and track, whatever the order of submits."""
    found = []
    for order in ("ab", "ba"):
        async with running(seed=7) as (_, client):
            found.append({one: (await client.submit(one))["data"]["taskId"] for one in order})

    assert found[0] == found[1]


async def test_another_seed_other_ids():
    """A different seed gives different task ids."""
    found = set()
    for seed in (1, 2):
        async with running(seed=seed) as (_, client):
            found.add((await client.submit())["data"]["taskId"])

    assert 2 == len(found)


async def done_after_s(seed=0):
    """Read 300 conversion times off the records, to 0.1 s."""
    now = Moved()
    async with running(now=now, window=None, median_s=60.0, sigma=0.4, seed=seed) as (kie, client):
        ids = [(await client.submit(str(n)))["data"]["taskId"] for n in range(300)]
        tasks = kie._handler.service.tasks
        return [tasks[one].done_at - 5000.0 for one in ids]


async def test_conversion_times_are_log_normal_around_the_median():
    """Half of the conversions take less than the median and the spread is as set."""
    times = sorted(await done_after_s())

    assert 54 < statistics.median(times) < 66
    # One standard deviation either side of a log-normal: 60 * e**±0.4.
    assert 35 < times[48] < 46
    assert 78 < times[252] < 103


async def test_conversion_times_repeat_by_seed():
    """The same seed gives every track the same conversion time."""
    assert await done_after_s(3) == await done_after_s(3)


async def test_counts_polls_after_the_end_was_told():
    """A poll is wasted if an earlier one was told the end."""
    async with running(median_s=0) as (kie, client):
        record = await client.record()
        for _ in range(2):
            await client.poll(record["taskId"])
        state = kie.state()

    assert {record["taskId"]: 3} == state.polls
    assert 2 == state.polls_after_done


async def test_measures_how_late_the_end_was_seen():
    """The lag is from the end of a task to the first poll that was told so."""
    now = Moved()
    async with running(now=now, median_s=60.0, sigma=0.0) as (kie, client):
        task_id = (await client.submit())["data"]["taskId"]
        for at in (50.0, 66.0, 80.0):
            now.at = 5000.0 + at
            await client.poll(task_id)

    assert [pytest.approx(6.0)] == list(kie.state().seen_lags_s)


async def test_counts_polls_that_were_too_fast():
    """The fourth poll of one task in a second is one too many."""
    now = Moved()
    async with running(now=now) as (kie, client):
        task_id = (await client.submit())["data"]["taskId"]
        for at in (0.0, 0.1, 0.2, 0.3, 1.25):
            now.at = 5000.0 + at
            await client.poll(task_id)

    assert 1 == kie.state().polls_too_fast


# Music tasks


async def test_any_music_task_has_two_tracks_of_its_own():
    """A music task nobody seeded has two tracks with UUID-shaped ids, the same every time."""
    async with running() as (kie, client):
        answer = await client.get("/api/v1/generate/record-info", params={"taskId": "m"})
    tracks = answer["data"]["response"]["sunoData"]

    assert "SUCCESS" == answer["data"]["status"]
    assert list(kie.audio_ids("m")) == [track["id"] for track in tracks]
    assert 2 == len({track["id"] for track in tracks})
    assert all(re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", t["id"]) for t in tracks)
    assert all({"title", "duration", "audioUrl", "tags"} <= track.keys() for track in tracks)


async def test_seeded_music_task_has_the_given_tracks():
    """A seeded music task has its audio ids in order."""
    async with running(music={"m": ["x", "y", "z"]}) as (_, client):
        answer = await client.get("/api/v1/generate/record-info", params={"taskId": "m"})

    assert ["x", "y", "z"] == [track["id"] for track in answer["data"]["response"]["sunoData"]]


@pytest.mark.parametrize("settings", [{"unknown_music_task_ids": ["m"]}, {"known_only": True}])
async def test_unknown_music_task_is_data_null(settings):
    """A music task that does not exist is a success without data, as recorded."""
    async with running(**settings) as (_, client):
        answer = await client.get("/api/v1/generate/record-info", params={"taskId": "m"})

    assert {"code": 200, "msg": "success", "data": None} == answer


async def test_record_tells_the_place_of_the_track():
    """A record's music index is the track's place in its music task."""
    async with running() as (kie, client):
        records = [await client.record(audio_id) for audio_id in kie.audio_ids("m")]

    assert [0, 1] == [record["musicIndex"] for record in records]


# Files


async def fetch(client, url, method="GET", **headers):
    """Ask for a file: status, headers, body."""
    async with client.http.request(method, url, headers=headers) as answer:
        return answer.status, answer.headers, await answer.read()


async def test_file_is_a_wav_of_cd_quality():
    """The file is read by the wave module as 16 bits, stereo, 44.1 kHz, in the set length."""
    async with running(median_s=0, wav_s=(1.0, 4.0)) as (_, client):
        _, _, body = await fetch(client, await client.wav_url())
    with wave.open(io.BytesIO(body)) as file:
        assert (2, 2, 44_100) == (file.getnchannels(), file.getsampwidth(), file.getframerate())
        frames = file.readframes(file.getnframes())

    assert 44_100 <= len(frames) / 4 <= 4 * 44_100
    assert len(body) == 44 + len(frames)
    assert 100 < max(frames)


async def test_file_is_the_same_every_time():
    """A track has the same bytes in every simulator."""
    bodies = set()
    for seed in (1, 2):
        async with running(median_s=0, seed=seed) as (_, client):
            bodies.add((await fetch(client, await client.wav_url()))[2])

    assert 1 == len(bodies)


async def test_tracks_differ_in_length():
    """Two tracks have files of different length."""
    async with running(median_s=0) as (_, client):
        sizes = {len((await fetch(client, await client.wav_url(n)))[2]) for n in "ab"}

    assert 2 == len(sizes)


async def test_head_tells_length_and_validators():
    """HEAD has the headers of GET and no body."""
    async with running(median_s=0) as (_, client):
        url = await client.wav_url()
        _, got, body = await fetch(client, url)
        status, head, nothing = await fetch(client, url, "HEAD")

    assert (200, b"") == (status, nothing)
    assert str(len(body)) == got["Content-Length"]
    for name in ("Content-Length", "ETag", "Last-Modified", "Content-Type", "Accept-Ranges"):
        assert got[name] == head[name]
    assert re.fullmatch('"[^"]+"', head["ETag"])


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=100-", 100, None),
        ("bytes=-5", -5, None),
        ("bytes=5-99999999", 5, None),
        ("bytes=-99999999", 0, None),
    ],
)
async def test_range_is_answered_in_part(asked, first, last):
    """A byte range is answered 206 with just these bytes and their place."""
    async with running(median_s=0) as (_, client):
        url = await client.wav_url()
        whole = (await fetch(client, url))[2]
        status, headers, part = await fetch(client, url, Range=asked)
    start = first % len(whole)
    end = len(whole) - 1 if last is None else last

    assert 206 == status
    assert whole[start : end + 1] == part
    assert f"bytes {start}-{end}/{len(whole)}" == headers["Content-Range"]
    assert str(len(part)) == headers["Content-Length"]


@pytest.mark.parametrize("asked", ["bytes=9-3", "bytes=-", "bytes=0-1,5-6", "items=0-1", "x"])
async def test_range_of_another_form_is_ignored(asked):
    """What is no single byte range is answered with the whole file."""
    async with running(median_s=0) as (_, client):
        status, _, _ = await fetch(client, await client.wav_url(), Range=asked)

    assert 200 == status


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=-0"])
async def test_range_beyond_the_end_is_416(asked):
    """A range without a byte in it is answered 416 with the true length."""
    async with running(median_s=0) as (_, client):
        url = await client.wav_url()
        size = (await fetch(client, url, "HEAD"))[1]["Content-Length"]
        status, headers, _ = await fetch(client, url, Range=asked)

    assert 416 == status
    assert f"bytes */{size}" == headers["Content-Range"]


async def test_if_range_of_this_file_gives_the_part():
    """A range on condition of the file's own entity tag or date is granted."""
    async with running(median_s=0) as (_, client):
        url = await client.wav_url()
        head = (await fetch(client, url, "HEAD"))[1]
        answers = [
            (await fetch(client, url, Range="bytes=1-2", **{"If-Range": head[name]}))[0]
            for name in ("ETag", "Last-Modified")
        ]

    assert [206, 206] == answers


async def test_if_range_of_another_file_gives_the_whole():
    """A range on condition of another entity tag is answered with the whole file."""
    async with running(median_s=0) as (_, client):
        condition = {"If-Range": '"another"'}
        status, _, _ = await fetch(client, await client.wav_url(), Range="bytes=1-2", **condition)

    assert 200 == status


async def test_file_is_gone_after_retention():
    """A file is deleted 14 days after the conversion, its record keeps the URL."""
    now = Moved()
    async with running(now=now, median_s=0) as (_, client):
        record = await client.record()
        now.at += 14 * 86_400.0
        again = (await client.poll(record["taskId"]))["data"]
        status, _, _ = await fetch(client, again["response"]["audioWavUrl"])

    assert record["response"] == again["response"]
    assert 404 == status


async def test_file_that_never_was_is_404():
    """An address nobody was given leads nowhere."""
    async with running() as (_, client):
        status, _, _ = await fetch(client, "/s/" + "0" * 32 + ".wav")

    assert 404 == status


async def test_file_is_not_there_before_the_conversion_is_done():
    """The address of a file is dead while its task is pending."""
    now = Moved()
    async with running(now=now, median_s=60.0, sigma=0.0) as (kie, client):
        await client.submit()
        (file_id,) = kie._handler.service.files
        statuses = []
        for at in (59.0, 61.0):
            now.at = 5000.0 + at
            statuses.append((await fetch(client, f"/s/{file_id}.wav"))[0])

    assert [404, 200] == statuses


async def test_file_needs_no_key():
    """A file is served to anybody who has its address."""
    async with running(median_s=0) as (kie, client):
        url = await client.wav_url()
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            assert 200 == answer.status
        before = kie.state().keys_sent_to_media

    assert 0 == before


async def test_key_sent_with_a_file_request_is_noticed():
    """A client that sends its key where it does not belong is counted."""
    async with running(median_s=0) as (kie, client):
        await fetch(client, await client.wav_url())
        state = kie.state()

    assert 1 == state.keys_sent_to_media


async def test_long_file_is_let_go_and_rendered_again():
    """A file beyond the cache's size is served in full, twice."""
    async with running(median_s=0, wav_s=(200.0, 200.0)) as (_, client):
        urls = [await client.wav_url(n) for n in "ab"]
        sizes = [len((await fetch(client, url))[2]) for url in (*urls, urls[0])]

    assert [44 + 200 * 44_100 * 4] * 3 == sizes


# Temporary links


async def link(client, url):
    """Ask for a temporary link."""
    return await client.post("/api/v1/common/download-url", json={"url": url})


async def test_link_serves_the_same_file():
    """A temporary link leads to the file it was made for."""
    async with running(median_s=0) as (_, client):
        url = await client.wav_url()
        answer = await link(client, url)
        bodies = [(await fetch(client, one))[2] for one in (url, answer["data"])]

    assert 200 == answer["code"]
    assert url != answer["data"]
    assert bodies[0] == bodies[1]


async def test_file_is_deleted_after_the_retention():
    """From 14 days on a file is not found, and neither is a link to it."""
    now = Moved()
    async with running(now=now, median_s=0) as (_, client):
        url = await client.wav_url()
        told = []
        for after in (14 * 86_400 - 1.0, 1.0):
            now.at += after
            told.append(((await fetch(client, url))[0], (await link(client, url))["code"]))

    assert [(200, 200), (404, 404)] == told


async def test_link_dies_after_20_minutes():
    """A temporary link is refused from its 20th minute on."""
    now = Moved()
    async with running(now=now, median_s=0) as (_, client):
        url = (await link(client, await client.wav_url()))["data"]
        statuses = []
        for after in (1199.9, 0.1):
            now.at += after
            statuses.append((await fetch(client, url))[0])

    assert [200, 403] == statuses


@pytest.mark.parametrize(
    "url", ["https://cdn.kie.ai/files/sample-test-file.mp4", "", "{base}/s/" + "0" * 32 + ".wav"]
)
async def test_link_for_a_foreign_url_is_refused(url):
    """Only files of this service get a link; the refusal is as recorded."""
    async with running() as (kie, client):
        answer = await link(client, url.replace("{base}", kie.base_url))

    assert {"code": 422, "msg": "url is wrong", "data": None} == answer


# Counting


async def test_connections_are_counted_once():
    """One connection that carries three requests is one connection."""
    async with running() as (kie, client):
        for _ in range(3):
            await client.get("/api/v1/chat/credit")
        state = kie.state()

    assert 1 == state.connections
    assert {"credits": 3} == state.requests


async def test_submit_on_a_used_connection_is_noticed():
    """A submit is counted that did not come on a connection of its own."""
    async with running() as (kie, client):
        await client.submit("a")
        await client.submit("b")
        state = kie.state()

    assert 1 == state.submits_on_used_connection


async def test_state_survives_json():
    """A state comes back from its JSON form with all it had."""
    async with running(median_s=0) as (kie, client):
        await client.record()
        state = kie.state()

    assert state == SimulatorState.from_json(json.loads(json.dumps(state.to_json())))


# Control


async def test_control_tells_the_state_without_being_counted():
    """The control endpoint tells what was counted and counts itself nowhere."""
    async with running() as (kie, client):
        await client.submit()
        told = SimulatorState.from_json(await client.get("/__sim__/state"))
        here = kie.state()

    assert 1 == told.charges
    assert attrs.evolve(here, now=0.0) == attrs.evolve(told, now=0.0)


async def test_brief_state_leaves_the_lists_out():
    """A brief state has the totals but not what grows with each track."""
    async with running() as (_, client):
        await client.submit()
        told = SimulatorState.from_json(await client.get("/__sim__/state?brief=1"))

    assert (1, {}, ()) == (told.charges, told.charges_by_track, told.arrivals)


async def test_control_resets():
    """After a reset nothing has happened yet."""
    async with running() as (kie, client):
        await client.submit()
        await client.post("/__sim__/reset")
        state = kie.state()
        again = await client.submit()

    assert (0, (), {}) == (state.charges, state.arrivals, state.requests)
    assert 200 == again["code"]


async def test_reset_within_the_process():
    """A reset forgets tasks, counts and what the window holds."""
    async with running(window=(1, 10.0)) as (kie, client):
        await client.submit()
        kie.reset()
        again = await client.submit()

    assert 200 == again["code"]
    assert 1 == kie.charges == len(kie.arrivals)


async def test_control_refuses_what_is_no_control():
    """An unknown control request is a 404 of another shape than the service's."""
    async with running() as (_, client):
        assert {"error": "no such control"} == await client.get("/__sim__/nothing")


# Life


async def test_listens_on_loopback_only():
    """The simulator is not reachable from other machines."""
    async with Simulator() as kie:
        assert [("127.0.0.1", int(kie.base_url.rpartition(":")[2]))] == kie._runner.addresses


async def test_counts_can_be_read_after_closing():
    """What was counted outlives the server."""
    async with running() as (kie, client):
        await client.submit()

    assert 1 == kie.charges
    assert 1 == kie.state().charges


async def test_closing_ends_delayed_answers():
    """A request still delayed when the simulator closes is never answered."""
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        kie = await stack.enter_async_context(Simulator(arrival_delay_s=1e6))
        asked = asyncio.create_task(http.get(kie.base_url + "/api/v1/chat/credit").__aenter__())
        await until(lambda: kie.state().requests)
        await kie.aclose()

        with pytest.raises(aiohttp.ClientConnectionError):
            await asked


async def test_entered_twice_is_a_runtime_error():
    """A simulator has one life."""
    async with Simulator() as kie:
        pass
    with pytest.raises(RuntimeError, match="once"):
        await kie.__aenter__()


def test_not_entered_is_a_runtime_error():
    """A simulator that does not run has no address."""
    with pytest.raises(RuntimeError, match="async with"):
        _ = Simulator().base_url


async def test_taken_port_is_an_os_error():
    """A port in use is told at the start, and nothing is left open."""
    async with Simulator() as kie:
        port = int(kie.base_url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            await Simulator(port=port).__aenter__()


@pytest.mark.parametrize(
    "settings",
    [
        {"median_s": -1.0},
        {"median_s": float("nan")},
        {"median_s": float("inf")},
        {"sigma": -0.1},
        {"time_scale": 0.0},
        {"window": (0, 10.0)},
        {"window": (20, 0.0)},
        {"window": (20, float("nan"))},
        {"arrival_delay_s": (2.0, 1.0)},
        {"answer_delay_s": -1.0},
        {"credits": -1},
        {"price": float("nan")},
        {"wav_s": (4.0, 1.0)},
        {"retention_s": -1.0},
    ],
)
def test_setting_out_of_range_is_a_value_error(settings):
    """A setting that makes no sense is refused where it is given."""
    with pytest.raises(ValueError, match=r".+"):
        Simulator(**settings)


async def test_malformed_requests_are_logged_once(caplog):
    """However many requests are malformed, one line of each kind is logged, without them."""
    async with Simulator() as kie:
        port = int(kie.base_url.rpartition(":")[2])
        for sent in [b"\x16\x03PLANTED\r\n\r\n", b"POST /PLANTED HTTP/9.9\r\n\r\n"] * 20:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            assert await reader.read()
            writer.close()
            await writer.wait_closed()

    text = "\n".join(logging.Formatter().format(record) for record in caplog.records)
    assert len(caplog.records) in {1, 2}
    assert ("Traceback" in text, "PLANTED" in text) == (False, False)
