from __future__ import annotations

import copy
import datetime as dt
import itertools
import json
import pickle
import time
from decimal import Decimal

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

import strategies
from kie_wav_async import errors
from kie_wav_async.errors import KieWavError, WireFormatError
from kie_wav_async.models import TaskRecord, TaskState, Track
from kie_wav_async.protocol import responses
from kie_wav_async.protocol.http_messages import WireResponse
from kie_wav_async.protocol.responses import (
    SubmitResponse,
    is_answered,
    is_known_status,
    parse_credits,
    parse_download_url,
    parse_moment,
    parse_record,
    parse_state,
    parse_submit,
    parse_tracks,
)
from kie_wav_async.protocol.urls import parse_url
from samples import (
    AUDIO_ID,
    FILE_URL,
    MUSIC_TASK_ID,
    RECORDED,
    REQUEST_ID,
    TASK_ID,
    answer,
    music_data,
    record_data,
    short,
    yes,
)

PENDING, SUCCEEDED, FAILED = TaskState.PENDING, TaskState.SUCCEEDED, TaskState.FAILED
OTHER_ID = "ffffffffffffffffffffffffffffffff"
OTHER_URL = "https://other.example/b.wav"


# --- the product -----------------------------------------------------------------
#
# Four tables, each row with what it means by itself, written by hand. A document
# is made of one row of each; `expected_record` and `expected_submit` combine the
# meanings. Every combination is tried.

# How the envelope says whether all is well. The meaning for a poll, and for a
# submit with one id: "yes", or the error's class; a poll's None is "no such task".
CODES: dict[str, tuple[dict[str, object], object, object]] = {
    "200": ({"code": 200}, "yes", "created"),
    "200-string": ({"code": "200"}, "yes", "created"),
    "200-padded": ({"code": " 200 "}, "yes", "created"),
    "200-float": ({"code": 200.0}, "yes", "created"),
    "missing": ({}, "yes", "created"),
    "null": ({"code": None}, "yes", "created"),
    "empty": ({"code": ""}, WireFormatError, WireFormatError),
    "true": ({"code": True}, WireFormatError, WireFormatError),
    "list": ({"code": [200]}, WireFormatError, WireFormatError),
    "word": ({"code": "OK"}, WireFormatError, WireFormatError),
    "201": ({"code": 201}, WireFormatError, WireFormatError),
    "400": ({"code": 400}, None, errors.InvalidRequestError),
    "401-string": ({"code": "401"}, errors.AuthenticationError, errors.AuthenticationError),
    "402": ({"code": 402}, errors.InsufficientCreditsError, errors.InsufficientCreditsError),
    "404-string": ({"code": "404"}, None, errors.NotFoundError),
    "409": ({"code": 409}, errors.AlreadyExistsError, "exists"),
    "409-string": ({"code": "409"}, errors.AlreadyExistsError, "exists"),
    "422": ({"code": 422}, None, errors.InvalidRequestError),
    "429": ({"code": 429}, errors.RateLimitedError, errors.RateLimitedError),
    "455": ({"code": 455}, errors.MaintenanceError, errors.MaintenanceError),
    "500-string": ({"code": "500"}, errors.ServerError, errors.ServerError),
    "505": ({"code": 505}, errors.FeatureDisabledError, errors.FeatureDisabledError),
}

# Where the task id stands: what is in data, what is beside it, and what that is
# to us. "own": the id; "none": no id; "bad": no one id.
IDS: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "data.taskId": ({"taskId": TASK_ID}, {}, "own"),
    "data.task_id": ({"task_id": TASK_ID}, {}, "own"),
    "taskId": ({}, {"taskId": TASK_ID}, "own"),
    "task_id": ({}, {"task_id": TASK_ID}, "own"),
    "both-spellings": ({"taskId": TASK_ID, "task_id": TASK_ID}, {}, "own"),
    "both-places": ({"task_id": TASK_ID}, {"taskId": TASK_ID}, "own"),
    "all-four": (
        {"taskId": TASK_ID, "task_id": TASK_ID},
        {"taskId": TASK_ID, "task_id": TASK_ID},
        "own",
    ),
    "null-and-id": ({"taskId": None, "task_id": TASK_ID}, {}, "own"),
    "empty-and-id": ({"taskId": ""}, {"task_id": TASK_ID}, "own"),
    "missing": ({}, {}, "none"),
    "null": ({"taskId": None, "task_id": None}, {"taskId": None, "task_id": None}, "none"),
    "empty": ({"taskId": ""}, {"task_id": ""}, "none"),
    "other-name": ({"id": TASK_ID, "TaskId": TASK_ID}, {"taskid": TASK_ID}, "none"),
    "spellings-differ": ({"taskId": TASK_ID, "task_id": OTHER_ID}, {}, "bad"),
    "places-differ": ({"taskId": TASK_ID}, {"taskId": OTHER_ID}, "bad"),
    "number": ({"taskId": 5}, {}, "bad"),
    "zero": ({"taskId": 0}, {}, "bad"),
    "false": ({"taskId": False}, {}, "bad"),
    "list": ({"taskId": [TASK_ID]}, {}, "bad"),
    "blank": ({"taskId": " "}, {}, "bad"),
    "control": ({"task_id": "a\nb"}, {}, "bad"),
    "surrogate": ({"task_id": "a\ud800"}, {}, "bad"),
    "too-long": ({}, {"taskId": "x" * 257}, "bad"),
    "id-and-rubbish": ({"taskId": TASK_ID}, {"taskId": 5}, "bad"),
}

# Where the URL stands, and which it is.
URLS: dict[str, tuple[dict[str, object], dict[str, object], str | None]] = {
    "response.audioWavUrl": ({"response": {"audioWavUrl": FILE_URL}}, {}, FILE_URL),
    "response.audio_wav_url": ({"response": {"audio_wav_url": FILE_URL}}, {}, FILE_URL),
    "response.wavUrl": ({"response": {"wavUrl": FILE_URL}}, {}, FILE_URL),
    "response.wav_url": ({"response": {"wav_url": FILE_URL}}, {}, FILE_URL),
    "audioWavUrl": ({"audioWavUrl": FILE_URL}, {}, FILE_URL),
    "audio_wav_url": ({"audio_wav_url": FILE_URL}, {}, FILE_URL),
    "wavUrl": ({"wavUrl": FILE_URL, "response": None}, {}, FILE_URL),
    "wav_url": ({"wav_url": FILE_URL, "response": "{}"}, {}, FILE_URL),
    "info.audioWavUrl": ({"info": {"audioWavUrl": FILE_URL}}, {}, FILE_URL),
    "info.wav_url": ({"info": {"wav_url": FILE_URL}}, {}, FILE_URL),
    "root.audioWavUrl": ({}, {"audioWavUrl": FILE_URL}, FILE_URL),
    "root.wav_url": ({"response": {}}, {"wav_url": FILE_URL}, FILE_URL),
    "response-first": (
        {"response": {"audioWavUrl": FILE_URL}, "audioWavUrl": OTHER_URL},
        {"audioWavUrl": OTHER_URL},
        FILE_URL,
    ),
    "data-before-info": (
        {"wav_url": FILE_URL, "info": {"audioWavUrl": OTHER_URL}},
        {"audioWavUrl": OTHER_URL},
        FILE_URL,
    ),
    "info-before-root": (
        {"info": {"wav_url": FILE_URL}},
        {"audioWavUrl": OTHER_URL},
        FILE_URL,
    ),
    "null-then-url": (
        {"response": {"audioWavUrl": None, "audio_wav_url": ""}, "audioWavUrl": FILE_URL},
        {},
        FILE_URL,
    ),
    "rubbish-then-url": (
        {"response": {"audioWavUrl": "soon", "wavUrl": FILE_URL}},
        {},
        FILE_URL,
    ),
    "missing": ({}, {}, None),
    "null": ({"response": {"audioWavUrl": None}, "audioWavUrl": None}, {}, None),
    "empty": ({"response": {"audioWavUrl": ""}}, {}, None),
    "relative": ({"response": {"audioWavUrl": "/s/a.wav"}}, {}, None),
    "other-scheme": ({"response": {"audioWavUrl": "ftp://h/a.wav"}}, {}, None),
    "number": ({"response": {"audioWavUrl": 5}}, {}, None),
    "list": ({"response": [FILE_URL], "audioWavUrl": [FILE_URL]}, {}, FILE_URL),
    "nested": ({"response": {"data": {"wavUrl": FILE_URL}}}, {}, FILE_URL),
    "text": ({"response": json.dumps({"audio_wav_url": FILE_URL})}, {}, FILE_URL),
    "resultJson": ({"resultJson": json.dumps({"resultUrls": [FILE_URL]})}, {}, FILE_URL),
    "documented-first": (
        {"response": {"wavUrl": FILE_URL}, "resultUrls": [OTHER_URL]},
        {"downloadUrl": OTHER_URL},
        FILE_URL,
    ),
    "other-name": ({"audioUrl": FILE_URL, "response": {"audio_url": FILE_URL}}, {}, None),
}

# Which of these are looked for only in the record of a success.
SEARCHED = {"list", "nested", "resultJson"}

# What the status says: our state with a URL and without one, the word we keep,
# and whether we know it.
STATES: dict[str, tuple[dict[str, object], TaskState, TaskState, str, bool]] = {
    "PENDING": ({"successFlag": "PENDING"}, PENDING, PENDING, "PENDING", True),
    "pending": ({"successFlag": "pending"}, PENDING, PENDING, "pending", True),
    "0": ({"successFlag": 0}, PENDING, PENDING, "0", True),
    "'0'": ({"successFlag": "0"}, PENDING, PENDING, "0", True),
    "null": ({"successFlag": None}, PENDING, PENDING, "", True),
    "empty": ({"successFlag": ""}, PENDING, PENDING, "", True),
    "blank": ({"successFlag": "  "}, PENDING, PENDING, "", True),
    "missing": ({}, PENDING, PENDING, "", True),
    "SUCCESS": ({"successFlag": "SUCCESS"}, SUCCEEDED, SUCCEEDED, "SUCCESS", True),
    "success": ({"successFlag": "success"}, SUCCEEDED, SUCCEEDED, "success", True),
    "padded": ({"successFlag": " Success\n"}, SUCCEEDED, SUCCEEDED, "Success", True),
    "1": ({"successFlag": 1}, SUCCEEDED, SUCCEEDED, "1", True),
    "1.0": ({"successFlag": 1.0}, SUCCEEDED, SUCCEEDED, "1", True),
    "'1'": ({"successFlag": "1"}, SUCCEEDED, SUCCEEDED, "1", True),
    "chinese": ({"successFlag": "成功"}, SUCCEEDED, SUCCEEDED, "成功", True),
    "2": ({"successFlag": 2}, FAILED, FAILED, "2", True),
    "'2'": ({"successFlag": "2"}, FAILED, FAILED, "2", True),
    "3": ({"successFlag": 3}, FAILED, FAILED, "3", True),
    "'3'": ({"successFlag": "3"}, FAILED, FAILED, "3", True),
    "CREATE_TASK_FAILED": (
        {"successFlag": "CREATE_TASK_FAILED"},
        FAILED,
        FAILED,
        "CREATE_TASK_FAILED",
        True,
    ),
    "GENERATE_WAV_FAILED": (
        {"successFlag": "GENERATE_WAV_FAILED"},
        FAILED,
        FAILED,
        "GENERATE_WAV_FAILED",
        True,
    ),
    "FAILED": ({"successFlag": "Failed"}, FAILED, FAILED, "Failed", True),
    "WORD_ERROR": (
        {"successFlag": "SENSITIVE_WORD_ERROR"},
        FAILED,
        FAILED,
        "SENSITIVE_WORD_ERROR",
        True,
    ),
    "error": ({"successFlag": "some error"}, FAILED, FAILED, "some error", True),
    "CALLBACK_EXCEPTION": (
        {"successFlag": "CALLBACK_EXCEPTION"},
        SUCCEEDED,
        PENDING,
        "CALLBACK_EXCEPTION",
        True,
    ),
    "callback_exception": (
        {"successFlag": " callback_exception"},
        SUCCEEDED,
        PENDING,
        "callback_exception",
        True,
    ),
    "other-exception": (
        {"successFlag": "SOME_EXCEPTION"},
        PENDING,
        PENDING,
        "SOME_EXCEPTION",
        False,
    ),
    "unknown": ({"successFlag": "QUEUED"}, PENDING, PENDING, "QUEUED", False),
    "unknown-number": ({"successFlag": 7}, PENDING, PENDING, "7", False),
    "padded-number": ({"successFlag": "01"}, PENDING, PENDING, "01", False),
    "true": ({"successFlag": True}, PENDING, PENDING, "", True),
    "list": ({"successFlag": ["SUCCESS"]}, PENDING, PENDING, "", True),
    "harmless": ({"successFlag": "SUC\u202eCESS\x1b"}, SUCCEEDED, SUCCEEDED, "SUCCESS", True),
    "status": ({"status": "SUCCESS"}, SUCCEEDED, SUCCEEDED, "SUCCESS", True),
    "status-number": ({"status": 3}, FAILED, FAILED, "3", True),
    "successFlag-first": (
        {"successFlag": "PENDING", "status": "SUCCESS"},
        PENDING,
        PENDING,
        "PENDING",
        True,
    ),
    "null-then-status": (
        {"successFlag": None, "status": "SUCCESS"},
        SUCCEEDED,
        SUCCEEDED,
        "SUCCESS",
        True,
    ),
    "empty-then-status": (
        {"successFlag": " ", "status": "GENERATE_WAV_FAILED"},
        FAILED,
        FAILED,
        "GENERATE_WAV_FAILED",
        True,
    ),
    "long": ({"successFlag": "x" * 101}, PENDING, PENDING, "x" * 100, False),
}


def outcome(parse, *arguments: object) -> object:
    """Return what a parser returns, or the class of the error of ours it raises."""
    try:
        return parse(*arguments)
    except KieWavError as error:
        return type(error)


# Every seventh has each place and spelling with each other one, only not all three together.
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.campaign)])
@pytest.mark.parametrize(("code", "meaning", "_"), list(CODES.values()), ids=list(CODES))
def test_a_record_is_read_wherever_things_are_and_however_spelled(code, meaning, _, step):
    """For every id place, URL place and state spelling the record says the same."""
    # A refusal is not read further, so that two states will do.
    states = list(STATES.items())[: None if meaning == "yes" else 2]
    product = itertools.product(IDS.items(), URLS.items(), states)
    for id_row, url_row, state_row in itertools.islice(product, 0, None, step):
        rows = (id_row[0], url_row[0], state_row[0])
        id_data, id_root, id_meaning = id_row[1]
        url_data, url_root, url = url_row[1]
        state_data, with_url, without_url, status, known = state_row[1]
        if url_row[0] in SEARCHED and with_url is not SUCCEEDED:
            url = None
        data = id_data | url_data | state_data | {"more": 1}
        document = code | id_root | url_root | {"data": data}

        got = outcome(parse_record, answer(document), TASK_ID)

        if meaning != "yes":
            assert got is meaning, rows
        elif id_meaning == "bad":
            assert got is WireFormatError, rows
        else:
            assert isinstance(got, TaskRecord), rows
            assert got.task_id == TASK_ID, rows
            assert got.state is (with_url if url else without_url), rows
            assert got.status == status, rows
            assert got.wav_url == (None if url is None else URL(url)), rows
            assert is_known_status(got) is known, rows
            assert got.raw == data, rows


@pytest.mark.parametrize(("code", "_", "meaning"), list(CODES.values()), ids=list(CODES))
@pytest.mark.parametrize(("id_data", "id_root", "id_meaning"), list(IDS.values()), ids=list(IDS))
def test_a_submit_is_read_wherever_the_id_is(code, _, meaning, id_data, id_root, id_meaning):
    """A yes with one id is a task, a 409 with one an adoption, all else one of our errors."""
    document = code | id_root | {"data": id_data}

    expected: object
    if meaning == "created":
        expected = SubmitResponse(task_id=TASK_ID) if id_meaning == "own" else WireFormatError
    elif meaning == "exists":
        expected = (
            SubmitResponse(task_id=TASK_ID, exists=True)
            if id_meaning == "own"
            else errors.AlreadyExistsError
        )
    else:
        expected = meaning
    assert expected == outcome(parse_submit, answer(document))


# --- submits ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [None, [], "", TASK_ID, 5, [{"taskId": TASK_ID}], {"data": {"taskId": TASK_ID}}],
    ids=str,
)
def test_a_submit_without_an_id_object_is_unreadable(data):
    """A yes that names no task is an answer we cannot read: it may have been charged."""
    with pytest.raises(WireFormatError, match=r": a submit's answer without a task id; it begins "):
        parse_submit(answer(yes(data)))


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        ({"taskId": 5}, "a submit's answer with taskId is no id"),
        ({"task_id": "a b"}, "a submit's answer with task_id is no id"),
        ({"taskId": "a", "task_id": "b"}, "a submit's answer with two different task ids"),
    ],
    ids=["number", "blank", "two"],
)
def test_a_submit_with_a_bad_id_says_so(ids, why):
    """The text says what is wrong with the id."""
    with pytest.raises(WireFormatError, match=rf": {why}; it begins "):
        parse_submit(answer(yes(ids)))


@pytest.mark.parametrize(
    ("status", "document", "expected"),
    [
        (409, {"data": {"taskId": TASK_ID}}, SubmitResponse(task_id=TASK_ID, exists=True)),
        (409, {"taskId": TASK_ID}, SubmitResponse(task_id=TASK_ID, exists=True)),
        (
            409,
            {"code": 409, "data": {"task_id": TASK_ID}},
            SubmitResponse(task_id=TASK_ID, exists=True),
        ),
        (409, {"data": None}, errors.AlreadyExistsError),
        (409, b"<html>", errors.AlreadyExistsError),
        (409, {"code": 200, "data": {"taskId": TASK_ID}}, SubmitResponse(task_id=TASK_ID)),
        (500, {"code": 200, "data": {"taskId": TASK_ID}}, SubmitResponse(task_id=TASK_ID)),
        (500, {"data": {"taskId": TASK_ID}}, errors.ServerError),
        (201, {"data": {"taskId": TASK_ID}}, SubmitResponse(task_id=TASK_ID)),
        (307, {"data": {"taskId": TASK_ID}}, errors.TransportError),
        (302, b"", errors.TransportError),
        (200, {"code": 408, "data": None}, errors.ServerError),
        (403, b"<html>error 1010", errors.ServiceError),
        (429, b"<html>", errors.RateLimitedError),
        (502, b"<html>", errors.ServerError),
        (200, b"<html>", WireFormatError),
        (200, b"", WireFormatError),
    ],
    ids=short,
)
def test_a_submit_is_read_by_the_body_first(status, document, expected):
    """A body's code and id count before the HTTP status, which decides without them."""
    assert expected == outcome(parse_submit, answer(document, status=status))


# --- records ---------------------------------------------------------------------


def record(**changes: object) -> TaskRecord:
    """Return the record of the documented answer with *changes* made."""
    found = parse_record(answer(yes(record_data(**changes))), TASK_ID)
    assert found is not None
    return found


def test_the_documented_record_is_read():
    """Every field of the documented answer is found."""
    assert record() == TaskRecord(
        task_id=TASK_ID,
        state=SUCCEEDED,
        status="SUCCESS",
        wav_url=URL(FILE_URL),
        audio_id=AUDIO_ID,
        error_code=None,
        error_message=None,
        created_at=dt.datetime(2025, 1, 1),  # noqa: DTZ001 - the service names no zone
        completed_at=dt.datetime(2025, 1, 1, 0, 10),  # noqa: DTZ001 - as above
        raw=record_data(),
    )


def test_a_failed_record_says_why():
    """A failure's code and words are found."""
    failed = record(
        successFlag="GENERATE_WAV_FAILED",
        errorCode=500,
        errorMessage="wav build\nfailed",
        response=None,
        completeTime=None,
    )

    assert (FAILED, 500, "wav build failed", None, None) == (
        failed.state,
        failed.error_code,
        failed.error_message,
        failed.wav_url,
        failed.completed_at,
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (None, None)),
        ({"errorCode": None, "errorMessage": None}, (None, None)),
        ({"errorCode": 0, "errorMessage": ""}, (None, None)),
        ({"errorCode": "", "errorMessage": " \n"}, (None, None)),
        ({"errorCode": "0"}, (None, None)),
        ({"errorCode": 501, "errorMessage": "no"}, (501, "no")),
        ({"errorCode": "501", "errorMsg": "no"}, (501, "no")),
        ({"errorCode": 501.0, "errorMessage": None, "errorMsg": "no"}, (501, "no")),
        ({"errorMessage": "", "errorMsg": "no"}, (None, "no")),
        ({"errorMessage": "first", "errorMsg": "second"}, (None, "first")),
        ({"errorCode": "E5", "errorMessage": 5, "errorMsg": ["no"]}, (None, None)),
        ({"errorCode": True}, (None, None)),
        ({"errorMessage": "x" * 501}, (None, "x" * 500)),
    ],
    ids=short,
)
def test_an_error_is_read_from_either_spelling(fields, expected):
    """Zero, empty and null mean no error; words stand under either name."""
    data = {"taskId": TASK_ID, "successFlag": "PENDING"} | fields
    found = parse_record(answer(yes(data)), TASK_ID)

    assert found is not None
    assert expected == (found.error_code, found.error_message)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"musicId": AUDIO_ID}, AUDIO_ID),
        ({"audioId": AUDIO_ID}, AUDIO_ID),
        ({"musicId": None, "audioId": AUDIO_ID}, AUDIO_ID),
        ({"musicId": "", "audioId": AUDIO_ID}, AUDIO_ID),
        ({"musicId": AUDIO_ID, "audioId": "other"}, AUDIO_ID),
        ({"musicId": 5}, None),
        ({"musicId": "a b"}, None),
        ({}, None),
    ],
    ids=short,
)
def test_the_audio_id_is_read_from_either_spelling(fields, expected):
    """The track a record names is found under either name, if it can be an id."""
    found = parse_record(answer(yes({"successFlag": "PENDING"} | fields)), TASK_ID)

    assert found is not None
    assert expected == found.audio_id


@pytest.mark.parametrize("data", [[], "", "x", 0, 5, True, False, [record_data()]], ids=short)
def test_a_record_that_is_no_object_is_unreadable(data):
    """Data that is neither null nor an object is an answer we cannot read."""
    with pytest.raises(WireFormatError, match=r": a record that is no object; ") as caught:
        parse_record(answer(yes(data)), TASK_ID)

    assert caught.value.task_id == TASK_ID


@pytest.mark.parametrize("depth", [10, 48, 60, 400, 900])
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])  # noqa: S301 - our own
def test_an_error_about_a_record_survives_copying_however_deep_the_record(copier, depth):
    """No record comes through that is nested too deep to be copied with its error."""
    nested: object = 5
    for _ in range(depth):
        nested = [nested]
    found = outcome(parse_record, answer(yes(record_data(more=nested))), TASK_ID)

    if isinstance(found, TaskRecord):
        error = errors.ConversionFailedError("it failed", record=found)
        assert vars(error) == vars(copier(error))
    else:
        assert found is WireFormatError


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"taskId": OTHER_ID}, "the record of another task"),
        ({"taskId": TASK_ID.upper()}, "the record of another task"),
        ({"taskId": OTHER_ID, "task_id": TASK_ID}, "a record with two different task ids"),
        ({"taskId": 5}, "a record with taskId is no id"),
    ],
    ids=["other", "case", "two", "number"],
)
def test_the_record_of_another_task_is_unreadable(fields, why):
    """A record that names another task is never taken for ours."""
    with pytest.raises(WireFormatError, match=rf": {why}; it begins ") as caught:
        parse_record(answer(yes(record_data(**fields))), TASK_ID)

    assert caught.value.task_id == TASK_ID


@pytest.mark.parametrize(
    ("document", "status", "expected"),
    [
        (yes(None), 200, None),
        ({"code": 200, "msg": "success"}, 200, None),
        (yes(None), 404, None),
        ({"code": 404, "msg": "no"}, 404, None),
        ({"code": 400, "data": record_data()}, 200, None),
        ({"code": "422", "data": None}, 500, None),
        (
            {"status": 404, "error": "Not Found", "message": "No message available"},
            404,
            errors.EndpointGoneError,
        ),
        (b"<html>", 404, errors.EndpointGoneError),
        ({"code": 404, "status": 404, "error": "Not Found"}, 404, None),
        ({"code": "NOT_FOUND"}, 404, errors.NotFoundError),
        (b"<html>", 410, errors.EndpointGoneError),
        ({"status": 410, "error": "Gone"}, 410, errors.EndpointGoneError),
        ({"code": 410, "msg": "retired"}, 200, errors.EndpointGoneError),
        ({"code": 404, "msg": "no"}, 410, None),
        (b"<html>", 400, errors.InvalidRequestError),
        ({}, 422, errors.InvalidRequestError),
        (b"<html>", 200, WireFormatError),
        (b"<html>", 503, errors.ServerError),
        (b"", 302, errors.TransportError),
        ({"code": 401}, 200, errors.AuthenticationError),
        ({"code": 403}, 200, errors.ServiceError),
    ],
    ids=short,
)
def test_no_such_task_is_told_from_a_wrong_address(document, status, expected):
    """Data null, and 400, 404 or 422 in the body, mean no record; an HTTP status alone does not."""
    assert expected == outcome(parse_record, answer(document, status=status), TASK_ID)


FAILURES: dict[str, dict[str, object]] = {
    "successFlag": {"taskId": TASK_ID, "successFlag": "GENERATE_WAV_FAILED"},
    "task_id": {"task_id": TASK_ID, "successFlag": "CREATE_TASK_FAILED"},
    "number": {"taskId": TASK_ID, "successFlag": 3},
    "digit": {"taskId": TASK_ID, "successFlag": "2"},
    "status": {"taskId": TASK_ID, "status": "GENERATE_AUDIO_FAILED"},
    "state": {"taskId": TASK_ID, "state": "fail"},
    "word": {"taskId": TASK_ID, "successFlag": "some error"},
}


@pytest.mark.parametrize("status", [200, 404, 500])
@pytest.mark.parametrize("code", [501, "501", 500, 400, 404, 422, 451, 531], ids=repr)
@pytest.mark.parametrize("data", FAILURES.values(), ids=list(FAILURES))
@pytest.mark.parametrize("spell", [dict, json.dumps], ids=["object", "text"])
def test_a_failure_told_under_an_error_code_is_the_record(data, code, status, spell):
    """An error code whose data names our task and a failed state is no refusal to answer."""
    document = {"code": code, "msg": "it failed", "data": spell(data)}
    found = parse_record(answer(document, status=status), TASK_ID)

    assert found is not None
    assert (FAILED, int(code), "it failed") == (found.state, found.error_code, found.error_message)
    assert found.raw == data


def test_a_failure_told_under_an_error_code_says_why_itself():
    """The record's own code and words go before the answer's."""
    data = FAILURES["successFlag"] | {"errorCode": 7, "errorMessage": "no source"}
    found = parse_record(answer({"code": 501, "msg": "it failed", "data": data}), TASK_ID)

    assert found is not None
    assert (7, "no source") == (found.error_code, found.error_message)


def test_a_failure_told_by_the_http_status_alone_is_the_record():
    """Where the body has no code, the HTTP status is the error."""
    data = FAILURES["successFlag"] | {"failCode": "9", "failMsg": "no source"}
    found = parse_record(answer({"data": data}, status=500), TASK_ID)

    assert found is not None
    assert (FAILED, 9, "no source") == (found.state, found.error_code, found.error_message)


@pytest.mark.parametrize(
    "document",
    [
        {"data": {"taskId": OTHER_ID, "successFlag": "GENERATE_WAV_FAILED"}},
        {"data": {"successFlag": "GENERATE_WAV_FAILED"}},
        {"data": {"taskId": TASK_ID}},
        {"data": {"taskId": TASK_ID, "successFlag": "PENDING"}},
        {"data": {"taskId": TASK_ID, "successFlag": "CALLBACK_EXCEPTION"}},
        {"data": {"taskId": TASK_ID, "task_id": OTHER_ID, "successFlag": 3}},
        {"taskId": OTHER_ID, "data": {"taskId": TASK_ID, "successFlag": 3}},
        {"data": [TASK_ID, "GENERATE_WAV_FAILED"]},
        {"data": "GENERATE_WAV_FAILED"},
        {"data": None},
        {},
    ],
    ids=short,
)
def test_an_error_code_with_anything_else_stays_a_refusal(document):
    """Unless it is about our task and says that it failed, an error code says nothing of it."""
    assert outcome(parse_record, answer({"code": 501} | document), TASK_ID) is errors.ServerError
    assert outcome(parse_record, answer({"code": 404} | document), TASK_ID) is None


@pytest.mark.parametrize(
    ("status", "has_url", "expected"),
    [
        ("", False, PENDING),
        (" pending ", True, PENDING),
        ("SUCCESS", False, SUCCEEDED),
        ("callback_exception", True, SUCCEEDED),
        ("callback_exception", False, PENDING),
        ("CALLBACK_EXCEPTION_ERROR", True, FAILED),
        ("xFAILx", True, FAILED),
        ("xerrorx", False, FAILED),
        ("waiting", False, PENDING),
        ("queuing", False, PENDING),
        ("generating", False, PENDING),
        ("4", True, None),
        ("RUNNING", False, None),
    ],
    ids=short,
)
def test_a_status_word_is_a_state_or_unknown(status, has_url, expected):
    """A word stands for one state, and an unknown one for none."""
    assert parse_state(status, has_url=has_url) is expected


def at(*numbers: int) -> dt.datetime:
    """Return a time as the service sends it, without a zone."""
    return dt.datetime(*numbers)  # noqa: DTZ001 - the service names no zone


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2025-01-01 00:10:00", at(2025, 1, 1, 0, 10)),
        (" 2025-01-01 00:10:00 ", at(2025, 1, 1, 0, 10)),
        ("2025-01-01T00:10:00", at(2025, 1, 1, 0, 10)),
        ("2025-01-01T00:10:00Z", at(2025, 1, 1, 0, 10)),
        ("2025-01-01T00:10:00+08:00", at(2025, 1, 1, 0, 10)),
        ("2025-01-01 00:10:00.250", at(2025, 1, 1, 0, 10, 0, 250_000)),
        ("2025-01-01", at(2025, 1, 1)),
        (1777379281542, at(2026, 4, 28, 12, 28, 1, 542_000)),
        ("1777379281542", at(2026, 4, 28, 12, 28, 1, 542_000)),
        (1777379281542.9, at(2026, 4, 28, 12, 28, 1, 542_000)),
        (1777379281, at(2026, 4, 28, 12, 28, 1)),
        (1777379281.9, at(2026, 4, 28, 12, 28, 1)),
        ("1777379281", at(2026, 4, 28, 12, 28, 1)),
        (0, at(1970, 1, 1)),
        (-1, at(1969, 12, 31, 23, 59, 59)),
        (99_999_999_999, at(5138, 11, 16, 9, 46, 39)),
        (100_000_000_000, at(1973, 3, 3, 9, 46, 40)),
        (-100_000_000_000, at(1966, 10, 31, 14, 13, 20)),
        (253_402_300_799_000, at(9999, 12, 31, 23, 59, 59)),
        (253_402_300_800_000, None),
        (10**17, None),
        (10**400, None),
        (1e300, None),
        (float("nan"), None),
        (float("inf"), None),
        ("", None),
        ("soon", None),
        ("2025-13-01 00:00:00", None),
        ("2025-01-01 00:10:00 CST", None),
        ("9" * 5000, None),
        (None, None),
        (True, None),
        ([], None),
        ({}, None),
    ],
    ids=short,
)
def test_a_moment_is_read_from_any_spelling(value, expected):
    """Strings keep their wall clock, numbers are UTC, and what cannot be read is no time."""
    assert expected == parse_moment(value)


def test_a_number_is_a_time_in_utc_wherever_we_run(monkeypatch):
    """Our own time zone has no say in what the service's times are."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        moment = parse_moment(1777379281542)
    finally:
        monkeypatch.undo()
        time.tzset()

    assert at(2026, 4, 28, 12, 28, 1, 542_000) == moment


@pytest.mark.parametrize("name", ["createTime", "completeTime"])
def test_a_bad_time_spoils_no_record(name):
    """A time that cannot be read is absent, and the rest of the record stands."""
    found = record(**{name: "yesterday"})

    assert {"createTime": found.created_at, "completeTime": found.completed_at}[name] is None
    assert found.state is SUCCEEDED


GOOD_URLS = [
    FILE_URL,
    "http://h.example/a.wav",
    "https://h.example",
    "https://h.example/",
    "https://h.example:8443/a.wav",
    "https://[2001:db8::1]/a.wav",
    "https://192.0.2.1/a.wav",
    "https://h.example/a%2Fb%20c.wav",
    "https://h.example/a.wav?X-Amz-Signature=ab%2Fcd%3D&x=a+b&y=%zz&z=a;b",
    "https://h.example/a.wav?sig=AbC/d+e==&sp=r",
    "https://h.example/../a/./b.wav",
    "https://h.example/a.wav#part",
    "https://u:p@h.example/a.wav",
]


@pytest.mark.parametrize("text", GOOD_URLS)
def test_a_url_stays_as_it_was_sent(text):
    """A signed link is not rewritten, not even where it could be spelled better."""
    assert text == str(parse_url(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f" {FILE_URL} ", FILE_URL),
        ("https://h.example/a b.wav", "https://h.example/a%20b.wav"),
        ("https://h.example/ä.wav", "https://h.example/%C3%A4.wav"),
        ("https://bücher.example/a.wav", "https://xn--bcher-kva.example/a.wav"),
        ("HTTPS://h.example/a.wav", "https://h.example/a.wav"),
        ("https://h.example/" + "x" * 8174, "https://h.example/" + "x" * 8174),
    ],
    ids=["padded", "blank", "non-ascii", "idna", "upper-case", "longest"],
)
def test_a_url_that_fits_no_request_line_is_quoted(text, expected):
    """Blanks and characters beyond ASCII are percent-encoded, and nothing else is."""
    assert expected == str(parse_url(text))


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        " ",
        5,
        True,
        b"https://h.example/",
        [FILE_URL],
        URL(FILE_URL),
        "h.example/a.wav",
        "/a.wav",
        "//h.example/a.wav",
        "https:",
        "https://",
        "https:///a.wav",
        "https://[a]@",
        "https://[4:=,=]/a.wav",
        "https://[:\u4e00-!]/a.wav",
        "https://h]/a.wav",
        "https:/h.example/a.wav",
        "https:h.example",
        "https://:443/",
        "https://u:p@/",
        "ftp://h.example/a.wav",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "data:audio/wav;base64,AA",
        "https://h:99999/",
        "https://h:-1/",
        "https://h:x/",
        "https://[::1",
        "https://[x]/",
        "https://a b/",
        "https://h.example/a\nb",
        "https://h.example/a\r\nHost: x",
        "https://h.example/\x00",
        "https://h.example/\u202egpj.wav",
        "https://h.example/\ud800",
        "\thttps://h.example/",
        "https://xn--a/",
        "https://ß" + "x" * 70 + ".example/",
        "https://\u2100.example/",
        "https://h.example/" + "x" * 8175,
    ],
    ids=short,
)
def test_what_is_no_absolute_url_is_none(value):
    """Only an absolute http(s) URL with a host and a port is one."""
    assert parse_url(value) is None


@pytest.mark.parametrize(
    ("host", "is_taken"),
    [
        ("h" * 63 + ".example", True),
        (".".join(["h" * 49] * 5) + ":65535", True),
        (".".join(["h" * 51] * 5) + ".", True),
        (".".join(["h" * 51] * 5) + ".h", False),
        ("h." * 4000 + "example", False),
        ("user:" + "p" * 300 + "@h.example", False),
    ],
    ids=["label", "long", "longest", "longer", "endless", "user"],
)
@pytest.mark.parametrize("rest", ["", "/a.wav", "?x=1", "#x", "/" + "a" * 4000])
def test_a_host_is_no_longer_than_names_are(host, is_taken, rest):
    """A URL whose host is longer than DNS allows is none, and not looked at any further."""
    assert is_taken is (parse_url(f"https://{host}{rest}") is not None)


def test_a_host_in_another_script_takes_no_time_to_refuse(monkeypatch):
    """The costly ASCII form is not made of a host of thousands of letters, all different."""
    monkeypatch.setattr(responses, "URL", None)
    host = "".join(chr(0x4E00 + number) for number in range(8000))

    assert parse_url(f"https://{host}/a.wav") is None


@given(st.text())
def test_any_text_is_a_url_or_none(text):
    """Whatever the text, it is an absolute http(s) URL or none."""
    url = parse_url(text)

    assert url is None or (url.absolute and url.scheme in {"http", "https"} and url.host)


@given(
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#?"))
    | st.text("ab/%0?=&+;,:@!$'()*~[]|").map(lambda text: f"?x{text}")
)
def test_a_path_in_ascii_stays_as_it_was_sent(path):
    """Whatever visible ASCII follows the host is kept character by character."""
    text = f"https://h.example/{path}"

    assert text == str(parse_url(text))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task_id", None),
        ("task_id", 5),
        ("task_id", ["x"]),
        ("state", "pending"),
        ("status", None),
        ("wav_url", FILE_URL),
        ("audio_id", 5),
        ("error_code", "5"),
        ("error_code", True),
        ("error_message", 5),
        ("created_at", "2025-01-01"),
        ("completed_at", 0),
    ],
    ids=str,
)
def test_the_converter_coerces_nothing(name, value):
    """Our converter takes a value of the right type or refuses, where cattrs would guess."""
    fields = {field.name: getattr(record(), field.name) for field in attrs.fields(TaskRecord)}
    structure = responses._structure_record()
    assert structure(fields, TaskRecord) == record()

    with pytest.raises(TypeError, match=rf"expected \w+, got {type(value).__name__}"):
        structure(fields | {name: value}, TaskRecord)


# --- tracks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "status",
    [
        {"status": "SUCCESS"},
        {"status": "success"},
        {"status": " SUCCESS "},
        {"status": "CALLBACK_EXCEPTION"},
        {"status": None, "successFlag": "SUCCESS"},
        {"status": "SUCCESS", "successFlag": "PENDING"},
        {"status": 1},
        {"status": "成功"},
    ],
    ids=short,
)
@pytest.mark.parametrize("name", ["sunoData", "data"])
@pytest.mark.parametrize("id_name", ["id", "audioId"])
def test_the_tracks_of_a_music_task_are_read(status, name, id_name):
    """The tracks are found in order, with their titles, under every spelling."""
    listed = [
        {id_name: AUDIO_ID, "title": "Morning\n"},
        {id_name: "second", "title": None},
        {id_name: "third", "title": 5},
        {id_name: "fourth"},
    ]
    found = parse_tracks(answer(yes(music_data(response={name: listed}, **status))), MUSIC_TASK_ID)

    assert [
        (MUSIC_TASK_ID, AUDIO_ID, "Morning"),
        (MUSIC_TASK_ID, "second", None),
        (MUSIC_TASK_ID, "third", None),
        (MUSIC_TASK_ID, "fourth", None),
    ] == [attrs.astuple(track) for track in found]


def test_a_track_listed_twice_is_one():
    """Of two tracks with one id the first counts."""
    listed = [{"id": "a", "title": "One"}, {"id": "b"}, {"id": "a", "title": "Two"}]
    found = parse_tracks(answer(yes(music_data(response={"sunoData": listed}))), MUSIC_TASK_ID)

    assert [("a", "One"), ("b", None)] == [(track.audio_id, track.title) for track in found]


@pytest.mark.parametrize(
    ("document", "code", "message"),
    [
        (yes(None), 404, f"music task {MUSIC_TASK_ID} is unknown"),
        (
            yes(music_data(status="FIRST_SUCCESS")),
            200,
            f"music task {MUSIC_TASK_ID} has no complete list of tracks (status FIRST_SUCCESS)",
        ),
        (
            yes(music_data(status="SENSITIVE_WORD_ERROR")),
            200,
            (
                f"music task {MUSIC_TASK_ID} has no complete list of tracks "
                "(status SENSITIVE_WORD_ERROR)"
            ),
        ),
        (
            yes(music_data(response=None)),
            200,
            f"music task {MUSIC_TASK_ID} has no complete list of tracks (status SUCCESS)",
        ),
        (
            yes(music_data(response={"sunoData": []})),
            200,
            f"music task {MUSIC_TASK_ID} has no complete list of tracks (status SUCCESS)",
        ),
        (
            yes(music_data(status="CALLBACK_EXCEPTION", response={"sunoData": None})),
            200,
            (
                f"music task {MUSIC_TASK_ID} has no complete list of tracks "
                "(status CALLBACK_EXCEPTION)"
            ),
        ),
        (
            yes({}),
            200,
            f"music task {MUSIC_TASK_ID} has no complete list of tracks (status )",
        ),
    ],
    ids=["unknown", "first", "failed", "no-response", "no-tracks", "exception", "empty"],
)
def test_tracks_not_there_are_not_found(document, code, message):
    """An unknown music task, and one whose tracks are not complete, have no tracks."""
    with pytest.raises(errors.NotFoundError) as caught:
        parse_tracks(answer(document), MUSIC_TASK_ID)

    error = caught.value
    assert (code, message, 200, REQUEST_ID) == (
        error.code,
        error.message,
        error.http_status,
        error.request_id,
    )


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        ("PENDING", "ask again when it is finished"),
        ("FIRST_SUCCESS", "ask again when it is finished"),
        ("", "ask again when it is finished"),
        ("GENERATE_AUDIO_FAILED", "it will have none; generate the music again"),
        ("SENSITIVE_WORD_ERROR", "it will have none; generate the music again"),
    ],
    ids=short,
)
def test_a_music_task_without_tracks_says_what_to_do(status, advice):
    """A music task that is not finished is to be asked again, not its id to be checked."""
    with pytest.raises(errors.NotFoundError) as caught:
        parse_tracks(answer(yes(music_data(status=status))), MUSIC_TASK_ID)

    assert str(caught.value).endswith(f"(request {REQUEST_ID})")
    assert advice == caught.value.advice


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (5, "a music task that is no object"),
        ([], "a music task that is no object"),
        (music_data(response={"sunoData": {"id": "a"}}), "tracks that are no list"),
        (music_data(response={"sunoData": "a"}), "tracks that are no list"),
        (music_data(response={"sunoData": [{}]}), "a track without a usable id"),
        (music_data(response={"sunoData": ["a"]}), "a track without a usable id"),
        (music_data(response={"sunoData": [{"id": 5}]}), "a track without a usable id"),
        (music_data(response={"sunoData": [{"id": "a b"}]}), "a track without a usable id"),
        (music_data(response={"sunoData": [{"id": "a"}, None]}), "a track without a usable id"),
    ],
    ids=["number", "list", "object", "text", "no-id", "words", "number-id", "bad-id", "second"],
)
def test_tracks_that_make_no_sense_are_unreadable(data, why):
    """A list of tracks is taken whole or not at all."""
    with pytest.raises(WireFormatError, match=rf": {why}; it begins "):
        parse_tracks(answer(yes(data)), MUSIC_TASK_ID)


# --- credits, links --------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("5916.25", "5916.25"),
        ("5916", "5916"),
        ("0", "0"),
        ("0.1", "0.1"),
        ("-0.4", "-0.4"),
        ("123456789.123456", "123456789.123456"),
        ("1e-05", "0.00001"),
        ("5.684341886080802e-14", "5.684341886080802e-14"),
        ("1e3", "1000"),
        ("1e21", "1e21"),
        ("999999999999999999", "999999999999999999"),
        ('"5916.25"', "5916.25"),
        ('"12"', "12"),
    ],
    ids=short,
)
def test_credits_are_exact(number, expected):
    """Credits are the decimal number that was sent."""
    got = parse_credits(answer(f'{{"code":200,"msg":"success","data":{number}}}'.encode()))

    assert Decimal(expected) == got
    assert type(got) is Decimal


@pytest.mark.parametrize(
    "number",
    [
        "null",
        "true",
        "false",
        "[]",
        "{}",
        '""',
        '" "',
        '"NaN"',
        '"sNaN"',
        '"Infinity"',
        '"1_000"',
        '"1,5"',
        '"\\u0665"',
        '"1e99999"',
        '"many"',
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "1e999999999",
        "1" + "0" * 18,
        "9" * 4300,
    ],
    ids=short,
)
def test_credits_that_are_no_number_are_unreadable(number):
    """Credits are a finite number of sensible length, or an answer we cannot read."""
    with pytest.raises(WireFormatError, match=r": credits that are no number; it begins "):
        parse_credits(answer(f'{{"code":200,"data":{number}}}'.encode()))


def test_a_fresh_link_is_read():
    """The link is the data itself, spelled as sent."""
    assert str(parse_download_url(answer(yes(f"{FILE_URL}?sig=a%2Fb")))) == f"{FILE_URL}?sig=a%2Fb"


@pytest.mark.parametrize("data", [None, "", "soon", 5, {"url": FILE_URL}, [FILE_URL]], ids=short)
def test_a_link_that_is_none_is_unreadable(data):
    """A link is an absolute URL, or an answer we cannot read."""
    with pytest.raises(WireFormatError, match=r": a link that is no absolute URL; it begins "):
        parse_download_url(answer(yes(data)))


PARSERS = {
    "submit": parse_submit,
    "record": lambda response: parse_record(response, TASK_ID),
    "tracks": lambda response: parse_tracks(response, MUSIC_TASK_ID),
    "credits": parse_credits,
    "fresh-url": parse_download_url,
}
every_parser = pytest.mark.parametrize("parse", list(PARSERS.values()), ids=list(PARSERS))


@every_parser
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (401, errors.AuthenticationError),
        (402, errors.InsufficientCreditsError),
        (429, errors.RateLimitedError),
        (433, errors.InsufficientCreditsError),
        (451, errors.SourceUnavailableError),
        (455, errors.MaintenanceError),
        (500, errors.ServerError),
        (505, errors.FeatureDisabledError),
    ],
)
def test_a_refusal_is_a_refusal_to_every_request(parse, code, kind):
    """Whatever was asked, the service's no is raised as what it is."""
    assert outcome(parse, answer({"code": code, "data": record_data()})) is kind


# --- what the service really said ------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parse", "expected"),
    [
        ("wav-bogus-ids", parse_submit, errors.InvalidRequestError),
        ("record-info-not-found", PARSERS["record"], None),
        ("record-info-not-found", PARSERS["tracks"], errors.NotFoundError),
        ("convert", parse_download_url, errors.InvalidRequestError),
        ("credit", parse_credits, Decimal("5916.25")),
        (
            "lyrics-submit",
            parse_submit,
            SubmitResponse(task_id="e5d2b14c95a93b325215f4490867d8c6"),
        ),
        (
            "generate-submit",
            parse_submit,
            SubmitResponse(task_id="091fbbaa1d20d47e9576ce84d5254b18"),
        ),
    ],
    ids=["bogus", "no-record", "no-tracks", "foreign-url", "credit", "lyrics", "generate"],
)
def test_a_recorded_answer_is_read(name, parse, expected):
    """What the service really answered is understood."""
    assert expected == outcome(parse, RECORDED[name].response)


def test_a_recorded_refusal_keeps_its_words():
    """A real refusal carries the service's code, words and request id."""
    with pytest.raises(errors.InvalidRequestError) as caught:
        parse_submit(RECORDED["wav-bogus-ids"].response)

    error = caught.value
    assert (422, "Record does not exist", 200, "9f36107cb8b75f2f-SIN") == (
        error.code,
        error.message,
        error.http_status,
        error.request_id,
    )


# --- whatever comes --------------------------------------------------------------


def hold_what_comes(parse, response: WireResponse) -> None:
    """Fail unless a parser returns a sound value or raises a sound error of ours."""
    try:
        value = parse(response)
    except KieWavError as error:
        value = error
    if isinstance(value, KieWavError):
        # Each waiter gets a copy of its own, and it goes into logs.
        assert vars(copy.copy(value)) == vars(value)
        assert str(pickle.loads(pickle.dumps(value))) == str(value)  # noqa: S301 - our own
        assert len(str(value)) < 2000
        str(value).encode()
    elif isinstance(value, TaskRecord):
        assert value.task_id == TASK_ID
        assert value.status.isprintable()
        assert len(value.status) <= 100
        assert value.error_message is None or value.error_message.isprintable()
        assert value.error_code is None or 0 < abs(value.error_code) < 10**18
        assert value.wav_url is None or value.wav_url.host
        assert value.created_at is None or value.created_at.tzinfo is None
        repr(value).encode()
        is_known_status(value)
    elif isinstance(value, Decimal):
        assert value.is_finite()
        int(value)
    elif isinstance(value, list):
        assert value
        assert all(isinstance(track, Track) for track in value)
    else:
        assert value is None or isinstance(value, SubmitResponse | URL)


@every_parser
@given(response=strategies.responses)
@example(response=WireResponse(status=200, body=b'{"code":200,"data":' + b"9" * 5000 + b"}"))
@example(response=WireResponse(status=200, body=b'{"data":' * 100_000 + b"1" + b"}" * 100_000))
@example(response=WireResponse(status=200, body=b'{"code":' + b"9" * 4300 + b"}"))
@example(response=WireResponse(status=200, body=b'{"code":200,"data":1e99999999999999999999}'))
def test_every_parser_is_total(parse, response):
    """For any bytes and any status a parser returns a value or raises one of our errors."""
    hold_what_comes(parse, response)


@every_parser
@pytest.mark.parametrize("status", [200, 404, 409, 500])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", '"x"', "NaN", '{"code":NaN,"data":Infinity}', '{"code":200,"data":"é"}'],
    ids=short,
)
def test_every_encoding_is_read_or_refused(parse, status, encoding, text):
    """An answer in another encoding is one of our errors, if it cannot be read."""
    hold_what_comes(parse, WireResponse(status=status, body=text.encode(encoding)))


# --- has the service answered at all? ---------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "is_yes"),
    [
        (b'{"code":200,"data":1}', True),
        (b'{"code":"455"}', True),
        (b'{"code":401}', True),
        (b'{"code":408}', False),
        (b'{"code":500}', False),
        (b'{"code":599}', False),
        (b'{"status":404,"error":"Not Found"}', True),
        (b'{"status":400}', True),
        (b'{"status":200}', False),
        (b'{"status":399}', False),
        (b'{"status":503}', False),
        (b'{"code":"no","status":null}', False),
        (b"{}", False),
        (b"[200]", False),
        (b"<html>", False),
        (b"", False),
    ],
)
def test_only_a_code_is_an_answer(body, is_yes) -> None:
    """The service has answered if a body has a code other than 408 and 5xx, whatever the status."""
    for status in (200, 403, 502):
        assert is_yes == is_answered(WireResponse(status=status, body=body))
