from __future__ import annotations

import copy
import itertools
import json
import pickle
import traceback

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from kie_wav_async._support.secret import Secret
from kie_wav_async.callbacks.payload import (
    MAX_BODY_LENGTH,
    authenticate,
    build_callback,
    find_wav_url,
    read_body,
)
from kie_wav_async.callbacks.signature import Signed, sign
from kie_wav_async.errors import CallbackFormatError, SignatureError
from kie_wav_async.models import Callback
from samples import (
    FILE_URL,
    SIGNED_AT,
    TASK_ID,
    WEBHOOK_KEY,
    callback,
    short,
    signature,
    signed_pairs,
)
from strategies import callback_bodies, headers, mutated_callbacks

KEYS = Secret((WEBHOOK_KEY.encode(),))
OTHER_ID = "c" * 32
SIGNED = Signed(str(SIGNED_AT).encode(), b"0" * 44)


def encode(document):
    """Return a body: bytes as they are, anything else as JSON."""
    return document if isinstance(document, bytes) else json.dumps(document).encode()


def read(document):
    """Read a body that nobody verified."""
    task_id, root = read_body(encode(document))
    return build_callback(task_id, SIGNED, root)


def take(body, pairs=None, *, now_unix_s=SIGNED_AT, **settings):
    """Judge a delivery, genuine but for what is given."""
    pairs = signed_pairs() if pairs is None else pairs
    return build_callback(*authenticate(pairs, body, keys=KEYS, now_unix_s=now_unix_s, **settings))


def complaint_about(document):
    """Return why a body cannot be read, though its headers are genuine."""
    with pytest.raises(CallbackFormatError) as caught:
        take(encode(document))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return str(caught.value).removeprefix("cannot read the callback: ").partition(";")[0]


UNREADABLE = "the body is no JSON object in UTF-8, holds too many, or names something twice"
NO_ID = "it names no task"
TWO_IDS = "it names two different tasks"
BAD_ID = "a task id is not 1 to 128 letters, digits, _ and - of ASCII"
TOO_LONG = "the body is longer than 65536 bytes"


# --- what it says -------------------------------------------------------------------------


def test_a_documented_callback_is_read():
    """A genuine callback says which task ended, how, where the file is and when that was."""
    body = encode(callback())

    found = take(body)

    assert found == Callback(
        task_id=TASK_ID,
        code=200,
        message="success",
        wav_url=URL(FILE_URL),
        timestamp=SIGNED_AT,
        raw=json.loads(body),
    )


def test_the_official_example_is_read():
    """The service's own example, which repeats the id on top and names no file, is read."""
    task_id = "ee9c2715375b7837f8bb51d641ff5863"
    document = {
        "taskId": task_id,
        "code": 200,
        "msg": "Success",
        "data": {"task_id": task_id, "callbackType": "task_completed"},
    }

    found = take(encode(document), signed_pairs(task_id))

    assert (task_id, 200, "Success", None) == (
        found.task_id,
        found.code,
        found.message,
        found.wav_url,
    )


def test_what_is_not_verified_is_read_the_same():
    """Reading alone says the same."""
    assert take(encode(callback())) == read(callback())


@pytest.mark.parametrize("code", [200, "200"], ids=repr)
def test_a_success_names_its_file(code):
    """The file of a callback is the one it names, wherever, if its code is 200."""
    assert FILE_URL == str(find_wav_url({**callback(), "code": code}))
    nested = {"code": code, "data": {"response": {"audio_wav_url": FILE_URL}}}
    assert FILE_URL == str(find_wav_url(nested))


@pytest.mark.parametrize("code", [500, "500", 0, None, True, [200], "ok"], ids=repr)
def test_what_is_no_success_names_no_file(code):
    """A callback with another code names no file to be believed, whatever stands in it."""
    assert find_wav_url({**callback(), "code": code}) is None


def test_a_success_without_a_file_names_none():
    """A callback with code 200 need not name a file."""
    assert find_wav_url({"code": 200, "data": None}) is None


def spelled(place, name, value):
    """Return a callback whose id stands at one place only, under one name."""
    document = {"code": 200, "msg": "success", "data": {"audioWavUrl": FILE_URL}}
    (document["data"] if place == "data" else document)[name] = value
    return document


SPELLINGS = list(itertools.product(["data", "root"], ["task_id", "taskId"]))
TWO_OF_THEM = list(itertools.permutations(SPELLINGS, 2))


@pytest.mark.parametrize(("place", "name"), SPELLINGS)
def test_the_id_is_found_in_every_spelling(place, name):
    """The id counts under both its names, in the data and on top."""
    assert TASK_ID == take(encode(spelled(place, name, TASK_ID))).task_id


@pytest.mark.parametrize(("first", "second"), TWO_OF_THEM, ids=short)
def test_two_spellings_must_agree(first, second):
    """One id may stand in two places, and two ids in none, whichever is signed."""
    document = spelled(*first, TASK_ID)
    (document["data"] if second[0] == "data" else document)[second[1]] = TASK_ID
    assert TASK_ID == take(encode(document)).task_id

    (document["data"] if second[0] == "data" else document)[second[1]] = OTHER_ID
    for signed in (TASK_ID, OTHER_ID):
        with pytest.raises(CallbackFormatError, match=TWO_IDS):
            take(encode(document), signed_pairs(signed))


@pytest.mark.parametrize(("first", "second"), TWO_OF_THEM, ids=short)
def test_a_spelling_may_be_null(first, second):
    """A place that holds null names nothing."""
    document = spelled(*first, TASK_ID)
    (document["data"] if second[0] == "data" else document)[second[1]] = None

    assert TASK_ID == take(encode(document)).task_id


def test_all_spellings_may_agree():
    """One id may stand in all four places, and one other among them is refused."""
    ids = {"task_id": TASK_ID, "taskId": TASK_ID}
    assert TASK_ID == take(encode({"data": ids, **ids})).task_id

    for place, name in SPELLINGS:
        document = {"data": dict(ids), **ids}
        (document["data"] if place == "data" else document)[name] = TASK_ID.upper()
        assert TWO_IDS == complaint_about(document)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"data": {}},
        {"data": None},
        {"data": []},
        {"data": TASK_ID},
        {"data": [{"task_id": TASK_ID}]},
        {"data": {"task_id": None}},
        {"data": {"taskID": TASK_ID, "TASK_ID": TASK_ID, "id": TASK_ID, "task-id": TASK_ID}},
        {"data": {"data": {"task_id": TASK_ID}}},
        {"data": {"response": {"task_id": TASK_ID}}},
        {"id": TASK_ID, "msg": TASK_ID},
    ],
    ids=short,
)
def test_a_callback_names_its_task(document):
    """A body without an id in one of its four places is none of a callback's."""
    assert NO_ID == complaint_about(document)


@pytest.mark.parametrize(
    "task_id",
    ["a", "0", "-", "_", "A-z_09", "a" * 128, "-" * 128, "5f0c2e1a-7d3b-4c9e-8f6a-0b1d2c3e4f5a"],
    ids=short,
)
def test_an_id_is_short_and_plain(task_id):
    """An id is 1 to 128 letters, digits, dashes and underscores of ASCII."""
    for place, name in SPELLINGS:
        body = encode(spelled(place, name, task_id))
        assert task_id == take(body, signed_pairs(task_id)).task_id


BAD_IDS = [
    "", " ", "a" * 129, "a" * 60_000, "a.b", ".", "a.", ".a", f"{TASK_ID}.{SIGNED_AT}", "a b", " a",
    "a ", "a\n", "\na", "a\r", "a\t", "a\x00", "\x00", "a/b", "../a", "a\\b", "a:b", "a,b", "a;b",
    "a+b", "a=b", "a%62", "a@b", "a#b", "a?b", "a&b", "a'b", 'a"b', "<a>", "{a}", "a~b", "ü", "雪",
    "\u0430", "\u212a", "\uff41", "a\u0301", "a\u200b", "\ufeffa", "\u0661", "\u00b2", "\ud800",
    "a\udcff", "a\U0001f600",
]  # fmt: skip


@pytest.mark.parametrize("task_id", BAD_IDS, ids=short)
def test_nothing_else_is_an_id(task_id):
    """Whatever else is in an id is refused wherever it stands, even if it is signed."""
    signed = [
        (b"X-Webhook-Timestamp", str(SIGNED_AT).encode()),
        (b"X-Webhook-Signature", sign(task_id, SIGNED_AT, WEBHOOK_KEY)),
    ]

    for place, name in SPELLINGS:
        with pytest.raises(CallbackFormatError) as caught:
            take(encode(spelled(place, name, task_id)), signed)
        assert BAD_ID in str(caught.value)


@pytest.mark.parametrize(
    "value", [0, 5, -1, 1.5, True, False, [], {}, [TASK_ID], {"id": TASK_ID}, [[]], float("nan")]
)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a good one"])
def test_an_id_is_text(value, beside):
    """A number, a list or an object is no id, not even beside a good one."""
    for place, name in SPELLINGS:
        document = spelled(place, name, value)
        if beside:
            other = document if place == "data" else document["data"]
            other[name] = TASK_ID
        assert BAD_ID == complaint_about(document)


def test_a_number_is_not_the_id_it_spells():
    """Five and ``"5"`` are not the same id."""
    with pytest.raises(CallbackFormatError):
        take(encode(spelled("data", "task_id", 5)), signed_pairs("5"))


def test_one_signature_serves_one_id():
    """No body makes an id and a time of one text that was signed as another pair."""
    first, second, third = "abc", "1769670759", str(SIGNED_AT)
    spliced = signature(f"{first}.{second}", third)

    def pairs(timestamp):
        return [("X-Webhook-Timestamp", timestamp), ("X-Webhook-Signature", spliced)]

    with pytest.raises(CallbackFormatError):
        take(encode(callback(task_id=f"{first}.{second}")), pairs(third))
    with pytest.raises(SignatureError) as caught:
        take(encode(callback(task_id=first)), pairs(f"{second}.{third}"))
    assert "timestamp" == caught.value.reason
    for task_id, timestamp in itertools.product([first, second, third], [second, third]):
        with pytest.raises(SignatureError) as caught:
            take(encode(callback(task_id=task_id)), pairs(timestamp))
        assert "signature" == caught.value.reason


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (200, 200),
        (501, 501),
        (0, 0),
        (-1, -1),
        ("200", 200),
        (" 501 ", 501),
        (200.0, 200),
        (200.5, None),
        (True, None),
        (False, None),
        (None, None),
        ("", None),
        ("OK", None),
        ("2e2", None),
        ("٢٠٠", None),
        ([], None),
        ([200], None),
        ({}, None),
        (10**17, 10**17),
        (10**18, None),
        ("9" * 4000, None),
        (float("nan"), None),
        (float("inf"), None),
        (1e300, None),
    ],
    ids=short,
)
def test_the_code_is_a_number_or_none(code, expected):
    """A code that is no number in any usual way is no code, and not a success."""
    found = take(encode(callback() | {"code": code}))

    assert expected == found.code
    assert not isinstance(found.code, bool)


def test_a_code_may_be_missing():
    """A callback without a code is read, and says neither yes nor no."""
    assert take(encode({"data": {"task_id": TASK_ID}})).code is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ""),
        ({"msg": "success"}, "success"),
        ({"message": "failed"}, "failed"),
        ({"msg": "first", "message": "second"}, "first"),
        ({"msg": "", "message": "second"}, "second"),
        ({"msg": None, "message": "second"}, "second"),
        ({"msg": 5, "message": "second"}, "second"),
        ({"msg": ["x"]}, ""),
        ({"msg": "转换失败"}, "转换失败"),
        ({"msg": "x" * 501}, "x" * 500),
    ],
    ids=short,
)
def test_the_message_is_text(fields, expected):
    """The service's words are found under both their names, and bounded."""
    assert expected == take(encode({"data": {"task_id": TASK_ID}, **fields})).message


def test_the_message_is_printable():
    """Control characters, overrides of direction and halves of pairs do not reach a terminal."""
    found = take(encode(callback() | {"msg": "a\x1b[31m\n\u202eb\x00\ud800c"}))

    assert found.message.isprintable()
    assert all(letter in found.message for letter in "abc")


OTHER_URL = "https://other.example/2.wav"


@pytest.mark.parametrize("name", ["audioWavUrl", "audio_wav_url", "wavUrl", "wav_url"])
@pytest.mark.parametrize("place", ["data", "response", "info", "root"])
def test_the_url_is_found_in_every_spelling(name, place):
    """The file is found under each of its names, wherever the service was seen to put it."""
    document = {"code": 200, "data": {"task_id": TASK_ID, "response": {}, "info": {}}}
    places = {
        "data": document["data"],
        "response": document["data"]["response"],
        "info": document["data"]["info"],
        "root": document,
    }
    places[place][name] = FILE_URL

    assert FILE_URL == str(take(encode(document)).wav_url)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"audioWavUrl": None},
        {"audioWavUrl": ""},
        {"audioWavUrl": 5},
        {"audioWavUrl": "/s/1.wav"},
        {"audioWavUrl": "//h.example/1.wav"},
        {"audioWavUrl": "h.example/1.wav"},
        {"audioWavUrl": "file:///etc/passwd"},
        {"audioWavUrl": "javascript:alert(1)"},
        {"audioWavUrl": "ftp://h.example/1.wav"},
        {"audioWavUrl": "https://"},
        {"audioWavUrl": "https:///1.wav"},
        {"audioWavUrl": "https://[::1"},
        {"audioWavUrl": "https://h.example:99999/"},
        {"audioWavUrl": "https://h.example/\n"},
        {"audioWavUrl": "https://h.example/\ud800"},
        {"audioWavUrl": "https://h.example/" + "x" * 9000},
        {"audio_url": FILE_URL, "imageUrl": FILE_URL, "callBackUrl": FILE_URL},
        {"response": {"sourceAudioUrl": FILE_URL}},
        {"response": json.dumps({"callbackUrl": FILE_URL})},
    ],
    ids=short,
)
def test_without_a_url_there_is_no_file(data):
    """What is no absolute http(s) URL is no file, and no error either."""
    assert take(encode({"code": 200, "data": {"task_id": TASK_ID} | data})).wav_url is None


def test_a_signed_link_stays_as_it_was_sent():
    """A link that is signed itself is not spelled anew."""
    url = "https://H.example:443/a%2Fb/../c%7e?X-Sig=a%2bb+c&x=%41#f"

    assert (
        url.partition("/a")[2]
        == str(take(encode(callback(audioWavUrl=url))).wav_url).partition("/a")[2]
    )


def test_a_failure_is_read_as_such():
    """The documented failure has a code, the service's words and no file."""
    body = encode(
        {
            "code": 501,
            "msg": "Audio generation failed",
            "data": {"audio_wav_url": None, "task_id": TASK_ID},
        }
    )

    found = take(body)

    assert (501, "Audio generation failed", None) == (found.code, found.message, found.wav_url)


# --- what cannot be read --------------------------------------------------------------------

GOOD_TEXT = json.dumps(callback())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\x00",
        b"null",
        b"true",
        b"200",
        b'"a"',
        b"[]",
        b"NaN",
        f"[{GOOD_TEXT}]".encode(),
        json.dumps(GOOD_TEXT).encode(),
        GOOD_TEXT.encode()[:-1],
        f"{GOOD_TEXT},".encode(),
        f"{GOOD_TEXT}{GOOD_TEXT}".encode(),
        f"{GOOD_TEXT}\x00".encode(),
        GOOD_TEXT.replace('"', "'").encode(),
        f"callback({GOOD_TEXT})".encode(),
        f"/* */{GOOD_TEXT}".encode(),
        GOOD_TEXT[:-1].encode() + b",}",
        f"task_id={TASK_ID}&code=200".encode(),
        b"<html></html>",
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
        GOOD_TEXT.encode("utf-16"),
        GOOD_TEXT.encode("utf-16-le"),
        GOOD_TEXT.encode("utf-16-be"),
        GOOD_TEXT.encode("utf-32"),
        GOOD_TEXT.encode("utf-32-le"),
        GOOD_TEXT.encode("utf-32-be"),
        f"\ufeff\ufeff{GOOD_TEXT}".encode(),
        GOOD_TEXT.replace("success", "ü").encode("latin-1"),
        GOOD_TEXT.replace("success", "\ud800").encode("utf-8", "surrogatepass"),
        GOOD_TEXT.replace("success", "\udcff").encode("utf-8", "surrogateescape"),
        GOOD_TEXT.encode().replace(b"success", b"\xc0\xaf"),
        GOOD_TEXT.encode().replace(b"success", b"a\nb"),
        GOOD_TEXT.replace("200", "9" * 5000).encode(),
        GOOD_TEXT.replace("200", "-" + "9" * 60_000).encode(),
        GOOD_TEXT.replace("200", "0200").encode(),
        GOOD_TEXT.replace("200", "0x1").encode(),
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"[" * 30_000 + b"]" * 30_000,
        GOOD_TEXT.replace("200", "[" * 20_000 + "]" * 20_000).encode(),
        GOOD_TEXT.replace("200", "[" * 50 + "]" * 50).encode(),
        GOOD_TEXT.replace("200", '{"a":' * 2000 + "1" + "}" * 2000).encode(),
        GOOD_TEXT.replace("200", '{"a":' * 50 + "1" + "}" * 50).encode(),
    ],
    ids=short,
)
def test_what_is_no_json_object_is_refused(body):
    """Other types, other encodings, bombs and halves are all one kind of error."""
    assert UNREADABLE == complaint_about(body)


@pytest.mark.parametrize("item", ["[]", "{}"])
def test_a_thousand_lists_and_objects_are_enough(item):
    """A body of very many lists or objects, which take long to look through, is not read."""
    most = "[" + ",".join([item] * 997) + "]"

    assert TASK_ID == take(GOOD_TEXT.replace("200", most).encode()).task_id
    more = most.replace(item, f"{item},{item}", 1)
    assert UNREADABLE == complaint_about(GOOD_TEXT.replace("200", more).encode())


@pytest.mark.parametrize(
    "text",
    [
        f"\ufeff{GOOD_TEXT}",
        f" \r\n\t{GOOD_TEXT}\n",
        GOOD_TEXT.replace("200", "NaN"),
        GOOD_TEXT.replace("200", "-Infinity"),
        GOOD_TEXT.replace("200", "1e999"),
        GOOD_TEXT.replace("200", "9" * 4300),
        GOOD_TEXT.replace("success", "\\ud800"),
        GOOD_TEXT.replace("success", "\\udc00\\ud800"),
        GOOD_TEXT.replace("success", "\\u0000"),
        GOOD_TEXT.replace(TASK_ID, "".join(f"\\u{ord(letter):04x}" for letter in TASK_ID)),
        GOOD_TEXT.replace("200", "[" * 40 + "]" * 40),
        GOOD_TEXT.replace("200", "[[]" + ",[]" * 996 + "]"),
        GOOD_TEXT.replace('"code"', '"more": {"code": 1, "task_id": 5}, "code"'),
    ],
    ids=short,
)
def test_what_is_odd_but_clear_is_read(text):
    """A mark in front, odd numbers and escapes leave no doubt about the task."""
    found = take(text.encode())

    assert TASK_ID == found.task_id
    repr(found).encode()


@pytest.mark.parametrize(
    "text",
    [
        f'{{"data": {{"task_id": "{OTHER_ID}", "task_id": "{TASK_ID}"}}}}',
        f'{{"data": {{"task_id": "{TASK_ID}", "task_id": "{OTHER_ID}"}}}}',
        f'{{"data": {{"task_id": "{TASK_ID}", "task_id": "{TASK_ID}"}}}}',
        f'{{"data": {{"task_id": "{TASK_ID}", "task\\u005fid": "{OTHER_ID}"}}}}',
        f'{{"data": {{"task_id": "{TASK_ID}"}}, "data": {{"task_id": "{OTHER_ID}"}}}}',
        f'{{"data": {{"task_id": "{OTHER_ID}"}}, "data": {{"task_id": "{TASK_ID}"}}}}',
        f'{{"data": {{"task_id": "{TASK_ID}"}}, "code": 200, "code": 500}}',
        f'{{"data": {{"task_id": "{TASK_ID}"}}, "": 1, "": 1}}',
        f'{{"data": {{"task_id": "{TASK_ID}"}}, "more": [{{"a": {{"b": 1, "b": 1}}}}]}}',
        f'{{"data": {{"task_id": "{TASK_ID}"}}, "\\ud800": 1, "\\ud800": 1}}',
    ],
    ids=short,
)
def test_nothing_is_named_twice(text):
    """A name that stands twice in an object is refused at any depth, even with one value."""
    assert UNREADABLE == complaint_about(text.encode())


@pytest.mark.parametrize("filling", [b" ", b"\n"], ids=short)
def test_64_kib_are_read_and_no_byte_more(filling):
    """A body of 65,536 bytes is read, and one of 65,537 is not."""
    body = encode(callback())
    full = body + filling * (65_536 - len(body))

    assert 65_536 == MAX_BODY_LENGTH
    assert TASK_ID == take(full).task_id
    assert TOO_LONG == complaint_about(full + filling)
    assert TOO_LONG == complaint_about(filling + full)
    assert TOO_LONG == complaint_about(b"[" * 10_000_000)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_may_be_of_any_kind(kind):
    """Bytes, a bytearray and a view of memory are all a body, and the limit holds for each."""
    assert TASK_ID == take(kind(encode(callback()))).task_id
    with pytest.raises(CallbackFormatError):
        take(kind(b" " * 65_537))


def test_a_view_of_large_items_is_measured_in_bytes():
    """The limit counts bytes, whatever the items of a view are."""
    with pytest.raises(CallbackFormatError, match=TOO_LONG):
        take(memoryview(b" " * 80_000).cast("Q"))


@pytest.mark.parametrize("body", [GOOD_TEXT, None, callback(), [1], 5], ids=short)
def test_a_body_is_bytes(body):
    """What somebody decoded before is no body: that is a mistake of the caller."""
    with pytest.raises(TypeError) as caught:
        take(body)

    assert f"body must be bytes as they were received, not {type(body).__name__}" == str(
        caught.value
    )


# --- in which order -------------------------------------------------------------------------


FORGED = signed_pairs(OTHER_ID)
MALFORMED = [(b"X-Webhook-Timestamp", b"1"), *FORGED[2:]]


@pytest.mark.parametrize(
    ("pairs", "body", "now_unix_s", "expected"),
    [
        ([], b"", 0, "headers"),
        ([], b" " * 70_000, 0, "headers"),
        ([*FORGED, *FORGED], b"", 0, "headers"),
        (MALFORMED, b"", 0, "timestamp"),
        ([*FORGED[:2], (b"X-Webhook-Signature", b"x")], b"", 0, "signature"),
        (FORGED, b"", 0, "format"),
        (FORGED, encode({}), 0, "format"),
        (FORGED, b" " * 70_000, 0, "format"),
        (signed_pairs(), b"", 0, "format"),
        (FORGED, encode(callback()), 0, "signature"),
        (FORGED, encode(callback()), SIGNED_AT, "signature"),
        (signed_pairs(), encode(callback()), 0, "stale"),
        (signed_pairs(), encode(callback()), float("nan"), "stale"),
        (signed_pairs(), encode(callback(task_id=OTHER_ID)), SIGNED_AT, "signature"),
    ],
    ids=short,
)
def test_headers_then_body_then_signature_then_age(pairs, body, now_unix_s, expected):
    """The shape of the headers is judged first, then the body, the signature, and the age last."""
    with pytest.raises((SignatureError, CallbackFormatError)) as caught:
        take(body, pairs, now_unix_s=now_unix_s)

    assert expected == getattr(caught.value, "reason", "format")


def test_the_tolerance_is_passed_on():
    """What a receiver sets as tolerance decides what is stale."""
    body = encode(callback())

    assert TASK_ID == take(body, now_unix_s=SIGNED_AT - 300).task_id
    assert TASK_ID == take(body, now_unix_s=SIGNED_AT + 900, tolerance_s=900).task_id
    for ahead_s in (299, -299):
        with pytest.raises(SignatureError):
            take(body, now_unix_s=SIGNED_AT + ahead_s, tolerance_s=298)


def test_any_of_several_keys_may_have_signed():
    """While one key replaces another, callbacks of both are taken, and of no third."""
    keys = Secret((b"another-key-of-the-tests", *KEYS.reveal()))
    body = encode(callback())

    assert (
        build_callback(*authenticate(signed_pairs(), body, keys=keys, now_unix_s=SIGNED_AT))
    ) == take(body)
    with pytest.raises(SignatureError):
        authenticate(signed_pairs(), body, keys=Secret(keys.reveal()[:1]), now_unix_s=SIGNED_AT)


def test_the_rest_of_the_body_is_not_signed():
    """One pair of headers is genuine with any body of its task: that is all it says."""
    for document in (callback(), callback(audioWavUrl=OTHER_URL), callback() | {"code": 500}):
        assert TASK_ID == take(encode(document)).task_id


# --- what is said of it ---------------------------------------------------------------------


def planted(value):
    """Return a body that says *value* wherever it can, and is refused or forged."""
    return encode({"code": value, "msg": value, "data": {"task_id": "t-1", "audioWavUrl": value}})


@pytest.mark.parametrize(
    "body",
    [
        planted("planted"),
        planted("planted")[:-1],
        planted("planted").replace(b"t-1", b"planted."),
        b'{"planted": 1, "planted": 1}',
        b"planted",
        b"planted" * 10_000,
        b'{"data": {"task_id": ["planted"]}}',
        b'{"data": {"task_id": "planted", "taskId": "planted-too"}}',
        b'{"planted": {}}',
        b"\xffplanted",
    ],
    ids=short,
)
def test_a_refusal_repeats_nothing_of_the_body(body):
    """Whatever a stranger writes into a body, no error writes it into a log."""
    with pytest.raises((SignatureError, CallbackFormatError)) as caught:
        take(body)

    error = caught.value
    said = [str(error), repr(error), *map(str, vars(error).values())]
    said += traceback.format_exception_only(error)
    assert [] == [text for text in said if "planted" in text]
    assert error.__cause__ is None
    assert error.__context__ is None


def test_the_representation_leaves_the_body_out():
    """What a program logs of a callback holds what was read, and not all that was sent."""
    found = take(encode(callback(more="planted") | {"more": "planted"}))

    assert "planted" not in repr(found)
    assert "planted" == found.raw["more"] == found.raw["data"]["more"]


# --- whatever comes -------------------------------------------------------------------------


def hold(found, task_id=None):
    """Hold what is true of every callback that was read."""
    assert isinstance(found, Callback)
    assert task_id in {None, found.task_id}
    assert 1 <= len(found.task_id) <= 128
    assert found.task_id.isascii()
    assert found.task_id.replace("-", "a").replace("_", "a").isalnum()
    assert found.code is None or type(found.code) is int
    assert found.message.isprintable()
    assert len(found.message) <= 500
    assert found.wav_url is None or (found.wav_url.absolute and found.wav_url.host)
    repr(found).encode()
    assert repr(found) == repr(copy.deepcopy(found)) == repr(pickle.loads(pickle.dumps(found)))  # noqa: S301 - made on this line


def come_of(body, pairs=None):
    """Return what was read, or our error; let any other error through."""
    try:
        return take(body, pairs)
    except (SignatureError, CallbackFormatError) as error:
        return error


@given(pairs=headers, body=callback_bodies)
def test_any_delivery_is_read_or_refused(pairs, body):
    """Whatever headers and body come, there is a callback or one of our two errors."""
    found = come_of(body, pairs)

    if not isinstance(found, Exception):
        hold(found)


@given(body=callback_bodies)
def test_any_body_is_read_or_refused(body):
    """Whatever stands in a body whose headers are genuine, it is read or refused."""
    found = come_of(body)

    if isinstance(found, SignatureError):
        assert "signature" == found.reason
    elif not isinstance(found, CallbackFormatError):
        hold(found, TASK_ID)


@given(
    text=mutated_callbacks(),
    cut=st.sampled_from([None] * 60 + list(range(1, 40))),
    encoding=st.sampled_from(["utf-8"] * 5 + ["utf-8-sig", "utf-16", "utf-32-le", "latin-1"]),
)
def test_a_signed_body_may_be_mutated(text, cut, encoding):
    """A body with the signed id and hostile values is read as of that id, or cannot be read."""
    found = come_of(text.encode(encoding, "replace")[: cut and -cut])
    hypothesis.event(str(found) if isinstance(found, Exception) else "read")

    if not isinstance(found, CallbackFormatError):
        hold(found, TASK_ID)


@given(document=st.dictionaries(st.text(), st.integers() | st.text()), task_id=st.text())
def test_whatever_id_is_signed(document, task_id):
    """Any text can be signed as an id, and is an id only if it is short and plain."""
    body = encode(document | {"data": {"task_id": task_id}})
    pairs = [
        ("X-Webhook-Timestamp", str(SIGNED_AT)),
        ("X-Webhook-Signature", sign(task_id, SIGNED_AT, WEBHOOK_KEY)),
    ]
    found = come_of(body, pairs)

    if not isinstance(found, CallbackFormatError):
        hold(found, task_id)
