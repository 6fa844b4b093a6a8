from __future__ import annotations

import asyncio
import contextlib
import json
import re

import aiohttp
import pytest

from kie_wav_async.simulator import Fault, Simulator

BODY = {"taskId": "m", "audioId": "a", "callBackUrl": "https://caller.invalid/"}
SUBMIT = "/api/v1/wav/generate"
POLL = "/api/v1/wav/record-info"
CREDITS = "/api/v1/chat/credit"


class Seen:
    """One answer as a client saw it."""

    def __init__(self, answer, raw):
        self.status = answer.status
        self.headers = answer.headers
        self.raw = raw

    @property
    def json(self):
        return json.loads(self.raw)


class Client:
    """A plain aiohttp client on a fresh connection each time."""

    def __init__(self, kie):
        self.kie = kie
        self.http = aiohttp.ClientSession(
            kie.base_url,
            headers={"Authorization": f"Bearer {kie.api_key}"},
            connector=aiohttp.TCPConnector(force_close=True),
            timeout=aiohttp.ClientTimeout(total=20.0),
        )

    async def ask(self, method, path, **kwargs):
        async with self.http.request(method, path, allow_redirects=False, **kwargs) as answer:
            return Seen(answer, await answer.read())

    async def submit(self, audio_id="a", music_task_id="m"):
        body = {**BODY, "audioId": audio_id, "taskId": music_task_id}
        return await self.ask("POST", SUBMIT, json=body)

    async def poll(self, task_id):
        return (await self.ask("GET", POLL, params={"taskId": task_id})).json

    async def task_id(self, audio_id="a"):
        return (await self.submit(audio_id)).json["data"]["taskId"]

    async def record(self, audio_id="a"):
        return (await self.poll(await self.task_id(audio_id)))["data"]


async def until(condition):
    """Let the loop turn until something is so."""
    async with asyncio.timeout(20.0):
        while not condition():  # noqa: ASYNC110 - the server offers no event for this
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running(*faults, **settings):
    """Run a simulator with a script and a client with its key."""
    async with Simulator(faults=faults, window=None, **{"median_s": 0, **settings}) as kie:
        client = Client(kie)
        async with client.http:
            yield kie, client


# Which requests are struck


async def struck(*faults, count=8, chance_seed=0):
    """Tell which of `count` requests for credits the faults strike."""
    async with running(*faults, seed=chance_seed) as (_, client):
        codes = [(await client.ask("GET", CREDITS)).json["code"] for _ in range(count)]
    return [number for number, code in enumerate(codes, 1) if code != 200]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"times": 3}, [1, 2, 3]),
        ({"at": 1}, [1]),
        ({"at": 3}, [3]),
        ({"at": 3, "times": 2}, [3, 4]),
        ({"every": 3}, [3, 6]),
        ({"every": 3, "times": 1}, [3]),
        ({"at": 1, "every": 3}, [1, 4, 7]),
        ({"at": 2, "every": 3, "times": 2}, [2, 5]),
        ({"chance": 0.0}, []),
    ],
)
async def test_fault_strikes_the_requests_it_names(where, expected):
    """At, every and times select requests as described."""
    assert expected == await struck(Fault(on="credits", kind="code", **where))


async def test_chance_strikes_repeatably():
    """The same seed strikes the same requests, and not all of them."""
    fault = Fault(on="credits", kind="code", chance=0.5)
    first = await struck(fault, count=20)

    assert first == await struck(fault, count=20)
    assert 0 < len(first) < 20


async def test_fault_is_for_its_endpoint_only():
    """A fault of one endpoint leaves the others alone."""
    async with running(Fault(on="poll", kind="code")) as (_, client):
        assert 200 == (await client.submit()).json["code"]


async def test_fault_can_be_for_one_track():
    """A fault with an audio id strikes submits of this track only."""
    async with running(Fault(kind="code", audio_id="b")) as (_, client):
        codes = {n: (await client.submit(n)).json["code"] for n in "abc"}

    assert {"a": 200, "b": 500, "c": 200} == codes


async def test_fault_can_be_for_polls_of_one_track():
    """A fault with an audio id strikes polls of this track's task only."""
    async with running(Fault(on="poll", kind="code", audio_id="b")) as (_, client):
        codes = [(await client.poll(await client.task_id(n)))["code"] for n in "ab"]

    assert [200, 500] == codes


async def test_per_task_counts_each_task_alone():
    """Each task is hidden for as many polls as the fault says, however they are mixed."""
    fault = Fault(on="poll", kind="data-null", times=2, per_task=True)
    async with running(fault) as (_, client):
        ids = [await client.task_id(n) for n in "ab"]
        hidden = [[(await client.poll(one))["data"] is None for one in ids] for _ in range(3)]

    assert [[True, True], [True, True], [False, False]] == hidden


async def test_fault_can_be_for_one_verdict():
    """A fault with a verdict counts only submits that came out so."""
    fault = Fault(kind="id-places", verdict="repeated", at=1)
    async with running(fault) as (_, client):
        answers = [(await client.submit()).json["data"] for _ in range(3)]

    assert answers[0] == answers[2] != {} == answers[1]


async def test_first_replacement_wins():
    """Of two faults that replace one answer the first is sent."""
    faults = [Fault(on="credits", kind="code", code=code) for code in (501, 502)]
    async with running(*faults) as (_, client):
        assert 501 == (await client.ask("GET", CREDITS)).json["code"]


async def test_changes_add_up():
    """Two faults that change an answer are both applied."""
    faults = [Fault(on="poll", kind="string-code"), Fault(on="poll", kind="flag-style")]
    async with running(*faults) as (_, client):
        answer = await client.poll(await client.task_id())

    assert ("200", 1) == (answer["code"], answer["data"]["successFlag"])


async def test_change_of_a_part_that_is_gone_is_passed_over():
    """A fault whose part an earlier one took away does nothing."""
    faults = [Fault(on="poll", kind="data-null"), Fault(on="poll", kind="flag-style")]
    async with running(*faults) as (_, client):
        assert (await client.poll(await client.task_id()))["data"] is None


async def test_set_faults_starts_a_new_script():
    """A new script replaces the old one and counts from one again."""
    async with running(Fault(on="credits", kind="code", at=1)) as (kie, client):
        codes = [(await client.ask("GET", CREDITS)).json["code"] for _ in range(2)]
        kie.set_faults([Fault(on="credits", kind="code", code=455, at=1)])
        codes += [(await client.ask("GET", CREDITS)).json["code"] for _ in range(2)]

    assert [500, 200, 455, 200] == codes


# Answers in place of the service's own


@pytest.mark.parametrize("code", [400, 401, 402, 404, 409, 429, 433, 451, 455, 500, 501, 505, "x"])
@pytest.mark.parametrize("http_status", [None, 409, 429, 500])
async def test_any_code_with_any_status_before_creates_nothing(code, http_status):
    """A scripted refusal comes with its code and status, and no task is created."""
    async with running(Fault(kind="code", code=code, http_status=http_status)) as (kie, client):
        answer = await client.submit()

    assert (http_status or 200) == answer.status
    assert {"code": code, "msg": "Simulated failure", "data": None} == answer.json
    assert 0 == kie.charges
    assert ["scripted"] == [arrival.verdict for arrival in kie.arrivals]


async def test_code_after_lies_about_a_charge():
    """A scripted error after the work was done leaves the charge made."""
    async with running(Fault(kind="code", when="after", http_status=500)) as (kie, client):
        assert 500 == (await client.submit()).status

    assert 1 == kie.charges
    assert ["created"] == [arrival.verdict for arrival in kie.arrivals]


async def test_code_can_carry_any_data():
    """A scripted answer has the data it was given."""
    fault = Fault(kind="code", code=409, data={"taskId": "elsewhere"})
    async with running(fault) as (_, client):
        assert {"taskId": "elsewhere"} == (await client.submit()).json["data"]


@pytest.mark.parametrize(("status", "text"), [(403, "1010"), (502, "gateway"), (None, "gateway")])
async def test_html_page(status, text):
    """An HTML page comes with its status: 403 as Cloudflare's block."""
    async with running(Fault(kind="html", http_status=status)) as (_, client):
        answer = await client.submit()

    assert (status or 502) == answer.status
    assert answer.headers["Content-Type"].startswith("text/html")
    assert text in answer.raw.decode()


async def test_body_is_sent_as_it_stands():
    """A scripted body is sent with its type and status."""
    fault = Fault(kind="body", body="[]é", content_type="application/json", http_status=201)
    async with running(fault) as (_, client):
        answer = await client.submit()

    assert (201, "[]é") == (answer.status, answer.raw.decode())
    assert "application/json" == answer.headers["Content-Type"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(("when", "charges"), [("before", 0), ("after", 1)])
async def test_redirect(status, when, charges):
    """A redirect names its target and was or was not preceded by a charge."""
    fault = Fault(kind="redirect", http_status=status, url="http://127.0.0.1:1/x", when=when)
    async with running(fault) as (kie, client):
        answer = await client.submit()

    assert (status, "http://127.0.0.1:1/x") == (answer.status, answer.headers["Location"])
    assert charges == kie.charges


@pytest.mark.parametrize("value", ["3", "0.5", "-1", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"])
async def test_retry_after_is_sent_as_it_stands(value):
    """Retry-After is whatever the script says."""
    fault = Fault(kind="code", code=429, http_status=429, retry_after=value)
    async with running(fault) as (kie, client):
        assert value == (await client.submit()).headers["Retry-After"]

    assert 1 == kie.state().rejected_429


async def test_retry_after_as_a_date():
    """Retry-After can be an HTTP date."""
    fault = Fault(kind="code", code=429, retry_after_date_s=30.0)
    async with running(fault) as (_, client):
        value = (await client.submit()).headers["Retry-After"]

    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", value)


@pytest.mark.parametrize(("code", "second"), [(500, 429), (429, 200)])
async def test_only_a_scripted_429_leaves_the_window_alone(code, second):
    """A submit that a fault refused occupies the window unless it was told 429."""
    fault = Fault(kind="code", code=code, at=1)
    async with Simulator(faults=[fault], window=(1, 10.0)) as kie:
        client = Client(kie)
        async with client.http:
            await client.submit("a")
            assert second == (await client.submit("b")).json["code"]


# Connections


@pytest.mark.parametrize("kind", ["reset", "hangup"])
@pytest.mark.parametrize(
    ("when", "verdict", "charges"),
    [("arrival", "dropped", 0), ("before", "dropped", 0), ("after", "created", 1)],
)
async def test_connection_ends_before_or_after_the_charge(kind, when, verdict, charges):
    """A connection cut before the charge leaves none, one cut after it leaves one."""
    async with running(Fault(kind=kind, when=when)) as (kie, client):
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.submit()

    assert charges == kie.charges
    assert [verdict] == [arrival.verdict for arrival in kie.arrivals]


@pytest.mark.parametrize(("kind", "error"), [("reset", ConnectionResetError), ("hangup", None)])
async def test_reset_is_a_reset_and_hangup_an_end(kind, error):
    """A reset reaches the client as a reset, a hang-up as an orderly end."""
    async with running(Fault(on="credits", kind=kind)) as (kie, _):
        port = int(kie.base_url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /api/v1/chat/credit HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.nullcontext() if error is None else pytest.raises(error):
            assert b"" == await reader.read()
        writer.close()


@pytest.mark.parametrize(("when", "charges"), [("arrival", 0), ("before", 0), ("after", 1)])
async def test_stall_ends_when_the_client_goes(when, charges):
    """A stalled request is not answered, and leaves nothing behind once its client is gone."""
    async with running(Fault(kind="stall", when=when)) as (kie, client):
        asked = asyncio.create_task(client.submit())
        server = kie._handler.server
        await until(lambda: server.stalled)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await until(lambda: not server.stalled)

    assert charges == kie.charges


async def test_bounded_stall_ends_in_a_hangup():
    """A stall with a length hangs up after it."""
    async with running(Fault(kind="stall", delay_s=60.0), time_scale=6e5) as (_, client):
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.submit()


async def test_closing_ends_a_stall():
    """A simulator closes at once though a client still waits."""
    async with running(Fault(kind="stall")) as (kie, client):
        asked = asyncio.create_task(client.submit())
        await until(lambda: kie._handler.server.stalled)
        await kie.aclose()
        with pytest.raises(aiohttp.ClientConnectionError):
            await asked


async def test_body_that_never_comes_is_no_arrival():
    """A submit cut off in the middle of its body was never made."""
    async with running() as (kie, _):
        port = int(kie.base_url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /api/v1/wav/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
        )
        await until(lambda: kie.state().requests)
        writer.write_eof()
        assert b"" == await reader.read()
        writer.close()

    assert (0, ()) == (kie.charges, kie.arrivals)


@pytest.mark.parametrize("moment", ["arrival", "after"])
async def test_request_is_carried_out_though_its_client_has_left(moment):
    """A submit that came in whole is charged even if nobody waits for the answer."""
    async with running(Fault(kind="slow", when=moment, delay_s=60.0), time_scale=1e4) as (kie, _):
        port = int(kie.base_url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps(BODY).encode()
        head = f"Authorization: Bearer {kie.api_key}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(b"POST /api/v1/wav/generate HTTP/1.1\r\nHost: x\r\n" + head.encode() + body)
        await until(lambda: kie.state().requests)
        writer.close()
        await until(lambda: kie.charges)

    assert ["created"] == [arrival.verdict for arrival in kie.arrivals]


# Delays


@pytest.mark.parametrize(
    ("settings", "faults"),
    [
        ({"arrival_delay_s": 60.0}, []),
        ({"arrival_delay_s": (60.0, 61.0)}, []),
        ({}, [Fault(kind="slow", when="arrival", delay_s=60.0)]),
    ],
)
async def test_arrival_is_logged_after_its_delay(settings, faults):
    """A submit that was long under way has arrived when it was judged."""
    async with running(*faults, time_scale=6_000.0, **settings) as (kie, client):
        before = kie.state().now
        await client.submit()

    assert kie.arrivals[0].at - before >= 0.01


@pytest.mark.parametrize(
    ("settings", "faults"),
    [({"answer_delay_s": 60.0}, []), ({}, [Fault(kind="slow", delay_s=(60.0, 61.0))])],
)
async def test_answer_delay_comes_after_the_arrival(settings, faults):
    """A slow answer comes later than the moment the submit was judged."""
    async with running(*faults, time_scale=6_000.0, **settings) as (kie, client):
        await client.submit()
        after = kie.state().now

    assert after - kie.arrivals[0].at >= 0.01


@pytest.mark.parametrize("when", ["arrival", "after"])
async def test_file_can_be_slow(when):
    """A file can be late."""
    fault = Fault(on="media", kind="slow", when=when, delay_s=60.0)
    async with running(fault, time_scale=6_000.0) as (kie, client):
        url = (await client.record())["response"]["audioWavUrl"]
        before = kie.state().now
        assert 200 == (await client.ask("GET", url)).status
        after = kie.state().now

    assert after - before >= 0.01


async def test_every_arrival_delay_is_drawn_anew():
    """A range of delays gives each request its own."""
    async with running(arrival_delay_s=(0.0, 600.0), time_scale=6_000.0) as (kie, client):
        before = kie.state().now
        await asyncio.gather(*(client.submit(str(n)) for n in range(20)))
        order = [arrival.audio_id for arrival in kie.arrivals]

    assert 20 == len(set(order))
    assert order != [str(n) for n in range(20)]
    assert kie.arrivals[-1].at - before >= 0.02


# True answers, changed


async def test_truncated_json_in_a_whole_answer():
    """A truncated body ends in the middle, while the HTTP answer is complete."""
    async with running(Fault(kind="truncated")) as (kie, client):
        answer = await client.submit()

    assert 200 == answer.status
    with pytest.raises(json.JSONDecodeError):
        _ = answer.json
    assert 1 == kie.charges


async def test_cut_answer_ends_within_its_body():
    """A cut answer promises more bytes than come."""
    async with running(Fault(kind="cut", size=10), gzip=False) as (kie, client):
        with pytest.raises(aiohttp.ClientPayloadError):
            await client.submit()

    assert 1 == kie.charges


@pytest.mark.parametrize(("size", "least"), [(None, 2**20), (2**21, 2**21)])
async def test_huge_answer(size, least):
    """A huge answer is valid JSON beyond a mebibyte, or as long as it was told to be."""
    async with running(Fault(kind="huge", size=size)) as (_, client):
        answer = await client.submit()

    assert least < len(answer.raw)
    assert 200 == answer.json["code"]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(kind="string-code"), {"code": "200", "msg": "success", "data": "ID"}),
        (Fault(kind="no-code"), {"msg": "success", "data": "ID"}),
        (Fault(kind="no-data"), {"code": 200, "msg": "success"}),
        (
            Fault(kind="envelope", fields={"code": 2e2, "new": []}, drop=["msg"]),
            {"code": 200.0, "data": "ID", "new": []},
        ),
        (
            Fault(kind="envelope", fields={"data": None}),
            {"code": 200, "msg": "success", "data": None},
        ),
    ],
)
async def test_envelope_of_another_form(fault, expected):
    """The envelope comes as the script says, around what is otherwise true."""
    async with running(fault) as (_, client):
        answer = (await client.submit()).json
    if isinstance(answer.get("data"), dict):
        answer["data"] = "ID"

    assert expected == answer


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(kind="id-places"), {"data": {}}),
        (Fault(kind="id-places", places=["data.task_id"]), {"data": {"task_id": "ID"}}),
        (Fault(kind="id-places", places=["data"]), {"data": "ID"}),
        (Fault(kind="id-places", places=["task_id"]), {"data": {}, "task_id": "ID"}),
        (
            Fault(kind="id-places", places=["data.taskId"], other_places=["taskId"]),
            {"data": {"taskId": "ID"}, "taskId": "DI"},
        ),
        (
            Fault(kind="id-places", places=["data", "data.x.y"]),
            {"data": {"x": {"y": "ID"}}},
        ),
    ],
)
async def test_id_at_other_places(fault, expected):
    """The task id, or another, stands where the script puts it."""
    async with running(fault) as (kie, client):
        raw = (await client.submit()).raw.decode()
    task_id = kie.arrivals[0].task_id
    answer = json.loads(raw.replace(task_id, "ID").replace(task_id[::-1], "DI"))

    assert {"code": 200, "msg": "success", **expected} == answer


@pytest.mark.parametrize("code", [404, 409])
async def test_places_count_only_answers_with_an_id(code):
    """A refused submit does not use up a fault that moves the id."""
    faults = [Fault(kind="code", code=code, at=1), Fault(kind="id-places", at=1)]
    async with running(*faults) as (_, client):
        answers = [(await client.submit()).json["data"] for _ in range(3)]

    assert [None, {}] == answers[:2]
    assert answers[2]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"kind": "no-url"}, {"response": {"audioWavUrl": None}}),
        ({"kind": "no-url", "drop": ["response"]}, {"response": "missing"}),
        ({"kind": "callback-exception"}, {"successFlag": "CALLBACK_EXCEPTION"}),
        (
            {"kind": "callback-exception", "with_url": False},
            {"successFlag": "CALLBACK_EXCEPTION", "response": None},
        ),
        ({"kind": "flag-style"}, {"successFlag": 1}),
        ({"kind": "flag-style", "style": "digits"}, {"successFlag": "1"}),
        ({"kind": "flag-style", "style": "chinese"}, {"successFlag": "成功"}),
        ({"kind": "flag-style", "style": "lower"}, {"successFlag": "success"}),
        ({"kind": "flag-style", "style": "null"}, {}),
        ({"kind": "flag-name", "word": "status"}, {"successFlag": "missing", "status": "SUCCESS"}),
        ({"kind": "word", "word": "BREWING"}, {"successFlag": "BREWING"}),
        ({"kind": "other-task"}, {"taskId": "DI"}),
        ({"kind": "fields", "fields": {"errorCode": 0, "x": 1}}, {"errorCode": 0, "x": 1}),
        (
            {"kind": "url-places", "places": ["data.response.wav_url"]},
            {"response": {"wav_url": "URL"}},
        ),
        (
            {"kind": "url-places", "places": ["data.audioWavUrl"], "other_places": ["data.wavUrl"]},
            {"response": None, "audioWavUrl": "URL", "wavUrl": "ANOTHER"},
        ),
    ],
)
async def test_finished_record_of_another_form(change, expected):
    """A finished record differs from the documented one in just what the script says."""
    async with running(Fault(on="poll", at=2, **change)) as (_, client):
        task_id = await client.task_id()
        true = (await client.poll(task_id))["data"]
        seen = (await client.poll(task_id))["data"]
        url = true["response"]["audioWavUrl"]
    told = json.dumps(seen).replace(url, "URL").replace(task_id[::-1], "DI")
    told = json.loads(
        re.sub('http[^"]*/s/[^"]*', "ANOTHER", told.replace(true["callbackUrl"], "CB"))
    )
    true = json.loads(json.dumps(true).replace(url, "URL").replace(true["callbackUrl"], "CB"))

    names = true.keys() | seen.keys()
    changed = {n: told.get(n, "missing") for n in names if told.get(n, "missing") != true.get(n)}
    assert expected == changed


@pytest.mark.parametrize(
    ("style", "pending"),
    [("int", 0), ("digits", "0"), ("chinese", "PENDING"), ("lower", "pending"), ("null", None)],
)
async def test_pending_flag_of_another_style(style, pending):
    """A pending record is spelled in the same style."""
    async with running(Fault(on="poll", kind="flag-style", style=style), median_s=60) as (
        _,
        client,
    ):
        assert pending == (await client.record())["successFlag"]


@pytest.mark.parametrize("word", ["CREATE_TASK_FAILED", "GENERATE_WAV_FAILED"])
@pytest.mark.parametrize("style", ["int", "digits", "lower"])
async def test_failed_flag_of_another_style(word, style):
    """A failed record is spelled in the same style."""
    faults = [
        Fault(on="conversion", kind="fail", word=word),
        Fault(on="poll", kind="flag-style", style=style),
    ]
    number = {"CREATE_TASK_FAILED": 2, "GENERATE_WAV_FAILED": 3}[word]
    async with running(*faults) as (_, client):
        flag = (await client.record())["successFlag"]

    assert {"int": number, "digits": str(number), "lower": word.lower()}[style] == flag


async def test_times_in_milliseconds():
    """Times can be integers of milliseconds since 1970."""
    async with running(Fault(on="poll", kind="ms-times")) as (_, client):
        record = await client.record()

    assert all(type(record[name]) is int for name in ("createTime", "completeTime"))
    assert record["createTime"] > 1e12


async def test_times_in_milliseconds_of_a_pending_record():
    """A completion time that is not there yet stays null in milliseconds too."""
    async with running(Fault(on="poll", kind="ms-times"), median_s=60) as (_, client):
        assert (await client.record())["completeTime"] is None


async def test_url_hidden_for_n_polls_counts_finished_polls_only():
    """Polls while pending do not use up the polls for which a URL is withheld."""
    fault = Fault(on="poll", kind="no-url", times=2, per_task=True)
    now = [0.0]
    async with running(fault, median_s=60, sigma=0, now=lambda: now[0]) as (_, client):
        task_id = await client.task_id()
        await client.poll(task_id)
        now[0] = 61.0
        seen = [(await client.poll(task_id))["data"]["response"]["audioWavUrl"] for _ in range(3)]

    assert [None, None] == seen[:2]
    assert seen[2]


async def test_hidden_end_is_not_counted_as_told():
    """The lag of a task ends with the first poll whose answer was left as it was."""
    now = [0.0]
    fault = Fault(on="poll", kind="data-null", at=1)
    async with running(fault, now=lambda: now[0]) as (kie, client):
        task_id = await client.task_id()
        for now[0] in (5.0, 7.0):
            await client.poll(task_id)
        state = kie.state()

    assert (7.0,) == state.seen_lags_s
    assert 0 == state.polls_after_done


async def test_music_fields():
    """The tracks of a music task can be held back."""
    fault = Fault(on="music", kind="fields", fields={"status": "PENDING", "response": None})
    async with running(fault) as (_, client):
        path = "/api/v1/generate/record-info?taskId=m"
        data = (await client.ask("GET", path)).json["data"]

    assert ("PENDING", None) == (data["status"], data["response"])


# Conversions


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ("GENERATE_WAV_FAILED", 500, "Simulated failure", None)),
        (
            {"word": "CREATE_TASK_FAILED", "code": 200, "msg": "no"},
            ("CREATE_TASK_FAILED", 200, "no", None),
        ),
    ],
)
async def test_failed_conversion(change, expected):
    """A conversion that fails says so in its record and was charged."""
    async with running(Fault(on="conversion", kind="fail", **change)) as (kie, client):
        record = await client.record()

    names = ("successFlag", "errorCode", "errorMessage", "response")
    assert expected == tuple(record[name] for name in names)
    assert 1 == kie.charges


async def test_failing_conversion_is_pending_first():
    """A conversion that will fail is pending until its time has passed."""
    async with running(Fault(on="conversion", kind="fail"), median_s=60) as (_, client):
        record = await client.record()

    assert ("PENDING", None) == (record["successFlag"], record["errorMessage"])


@pytest.mark.parametrize(("retry_failed", "code"), [(True, 200), (False, 409)])
async def test_failed_track_can_be_submitted_again(retry_failed, code):
    """Whether a failed track may be sent again is a setting."""
    fault = Fault(on="conversion", kind="fail")
    async with running(fault, retry_failed=retry_failed) as (_, client):
        await client.submit()
        assert code == (await client.submit()).json["code"]


async def test_track_that_is_going_to_fail_is_not_converted_twice():
    """A repeat is a conflict as long as the first conversion is under way."""
    async with running(Fault(on="conversion", kind="fail"), median_s=60) as (kie, client):
        await client.submit()
        assert 409 == (await client.submit()).json["code"]

    assert 1 == kie.charges


async def test_conversion_that_never_finishes():
    """A task can be pending for ever."""
    now = [0.0]
    fault = Fault(on="conversion", kind="never", audio_id="a")
    async with running(fault, now=lambda: now[0]) as (_, client):
        task_id, other = await client.task_id("a"), await client.task_id("b")
        now[0] = 59 * 86_400.0
        flags = [(await client.poll(one))["data"]["successFlag"] for one in (task_id, other)]

    assert ["PENDING", "SUCCESS"] == flags


@pytest.mark.parametrize("delay_s", [100.0, (90.0, 110.0)])
async def test_conversion_of_a_given_length(delay_s):
    """A conversion takes as long as the script says."""
    now = [0.0]
    async with running(
        Fault(on="conversion", kind="takes", delay_s=delay_s), now=lambda: now[0]
    ) as (_, client):
        task_id = await client.task_id()
        flags = []
        for now[0] in (89.0, 111.0):
            flags.append((await client.poll(task_id))["data"]["successFlag"])

    assert ["PENDING", "SUCCESS"] == flags


# Files


@pytest.mark.parametrize("status", [None, 404, 410])
async def test_expired_file(status):
    """A file can be gone before its time."""
    async with running(Fault(on="media", kind="expired", http_status=status)) as (_, client):
        url = (await client.record())["response"]["audioWavUrl"]
        assert (status or 404) == (await client.ask("GET", url)).status


async def test_file_without_ranges():
    """A media host that knows no ranges sends the whole file."""
    async with running(Fault(on="media", kind="no-ranges")) as (_, client):
        url = (await client.record())["response"]["audioWavUrl"]
        answer = await client.ask("GET", url, headers={"Range": "bytes=0-1"})

    assert 200 == answer.status
    assert "Accept-Ranges" not in answer.headers


async def test_file_cut_off():
    """A file can end before the length that was promised."""
    async with running(Fault(on="media", kind="cut", size=300_000)) as (_, client):
        url = (await client.record())["response"]["audioWavUrl"]
        got = 0
        with pytest.raises(aiohttp.ClientPayloadError):  # noqa: PT012 - it fails on the way
            async with client.http.get(url) as answer:
                async for chunk in answer.content.iter_any():
                    got += len(chunk)

    assert 300_000 == got


@pytest.mark.parametrize(
    "fault",
    [
        Fault(on="media", kind="html", http_status=200),
        Fault(on="media", kind="code", when="after"),
        Fault(on="media", kind="redirect", url="http://127.0.0.1:1/"),
    ],
)
async def test_answer_in_place_of_a_file(fault):
    """A media host can answer with something that is no file."""
    async with running(fault) as (_, client):
        url = (await client.record())["response"]["audioWavUrl"]
        assert not (await client.ask("GET", url)).raw.startswith(b"RIFF")


@pytest.mark.parametrize(
    "fault",
    [
        Fault(on="media", kind="reset", when="arrival"),
        Fault(on="media", kind="hangup"),
        Fault(on="media", kind="reset", when="after"),
    ],
)
async def test_connection_to_the_media_host_ends(fault):
    """A connection to the media host can break."""
    async with running(fault) as (_, client):
        url = (await client.record())["response"]["audioWavUrl"]
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.ask("GET", url)


# The vocabulary


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"kind": "nonsense"}, "no kind"),
        ({"kind": "code", "on": "nowhere"}, "no endpoint"),
        ({"kind": "never", "on": "submit"}, "is for conversion"),
        ({"kind": "truncated", "when": "before"}, "happens after"),
        ({"kind": "reset", "when": "arrival", "audio_id": "a"}, "not known yet"),
        ({"kind": "code", "on": "credits", "audio_id": "a"}, "names no track"),
        ({"kind": "code", "verdict": "created"}, "verdict"),
        ({"kind": "code", "at": 0}, "count from 1"),
        ({"kind": "code", "every": 1.5}, "every is an integer"),
        ({"kind": "code", "times": True}, "times is an integer"),
        ({"kind": "code", "chance": 1.5}, "probability"),
        ({"kind": "code", "http_status": 99}, "200 to 599"),
        ({"kind": "cut", "size": -1}, "size"),
        ({"kind": "flag-style", "on": "poll", "style": "x"}, "no style"),
        ({"kind": "slow"}, "needs delay_s"),
        ({"kind": "slow", "delay_s": -1.0}, "delay_s"),
        ({"kind": "slow", "delay_s": [2.0, 1.0]}, "low is above high"),
        ({"kind": "slow", "delay_s": "1"}, "delay_s"),
        ({"kind": "word", "on": "poll"}, "needs word"),
        ({"kind": "redirect"}, "needs url"),
    ],
)
def test_fault_that_could_not_strike_is_a_value_error(wrong, text):
    """A fault that makes no sense is refused where it is made."""
    with pytest.raises(ValueError, match=text):
        Fault(**wrong)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="code"),
        Fault(kind="slow", delay_s=(1.0, 2.0), when="arrival", every=2),
        Fault(kind="id-places", places=["a.b"], other_places=["c"], verdict="created"),
        Fault(on="poll", kind="fields", fields={"x": [1, None]}, drop=["y"], per_task=True),
        Fault(on="conversion", kind="fail", word="CREATE_TASK_FAILED", code=None, times=2),
    ],
)
def test_fault_survives_json(fault):
    """A fault comes back equal from its JSON form."""
    assert fault == Fault.from_json(json.loads(json.dumps(fault.to_json())))


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"on": "poll"},
        {"kind": "code", "unknown": 1},
        {"kind": "code", "at": "1"},
        {"kind": "code", "drop": "msg"},
        {"kind": "code", "chance": "x"},
    ],
)
def test_json_that_is_no_fault_is_a_value_error(value):
    """A wrong script is refused with one kind of error, whatever is wrong with it."""
    with pytest.raises(ValueError, match=r".+"):
        Fault.from_json(value)


def test_fault_is_hashable():
    """A fault can be in a set, whatever its values are."""
    fault = Fault(kind="envelope", fields={"data": []}, data=[])

    assert {fault} == {Fault(kind="envelope", fields={"data": []}, data=[])}


async def test_script_over_the_control_endpoint():
    """Faults can be set over HTTP."""
    async with running() as (_, client):
        script = [{"on": "credits", "kind": "code", "code": 455}]
        told = await client.ask("POST", "/__sim__/faults", json=script)
        assert {"faults": 1} == told.json
        assert 455 == (await client.ask("GET", CREDITS)).json["code"]


@pytest.mark.parametrize("script", [{}, [{"kind": "x"}], None, [1]])
async def test_wrong_script_over_the_control_endpoint(script):
    """A wrong script is refused with a reason and changes nothing."""
    async with running(Fault(on="credits", kind="code", code=455)) as (_, client):
        told = await client.ask("POST", "/__sim__/faults", json=script)
        assert 400 == told.status
        assert told.json["error"]
        assert 455 == (await client.ask("GET", CREDITS)).json["code"]
