from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies
from kie_wav_async import errors
from kie_wav_async.protocol.envelope import (
    as_object,
    parse_int,
    parse_retry_after,
    parse_text,
    quote,
    raise_for_code,
    read_envelope,
    unreadable,
)
from kie_wav_async.protocol.http_messages import WireResponse
from kie_wav_async.protocol.redaction import redact
from samples import REQUEST_ID, answer, short


def test_blotting_takes_only_the_secret() -> None:
    """What surrounds a secret stays as it is, and so does a body without it."""
    for body in (b"", b"{}", rb'{"msg":"a\/b\u0041"}', b"\xff\\", b"sk-KIE-/1"):
        assert body == redact(body, "sk-kie-/1")
    assert rb"\n [api key]\"" == redact(rb"\n sk\u002dkie-\/1\"", "sk-kie-/1")
    assert b"[api key][api key]" == redact(rb"sk-kie-/1\u0073k-kie-/1", "sk-kie-/1")


def test_blotting_takes_no_time_over_backslashes() -> None:
    """A mebibyte of backslashes costs a search no more than that many steps."""
    body = b"\\" * (1 << 20)
    assert body == redact(body, "sk-kie-/1")


def judge(response: WireResponse) -> object:
    """Return ``"yes"``, or the class of the error the answer is."""
    try:
        raise_for_code(read_envelope(response))
    except errors.KieWavError as error:
        return type(error)
    return "yes"


# What each code says, whether it stands in the body or is the HTTP status.
BY_CODE = {
    200: "yes",
    400: errors.InvalidRequestError,
    401: errors.AuthenticationError,
    402: errors.InsufficientCreditsError,
    403: errors.ServiceError,
    404: errors.NotFoundError,
    405: errors.ServiceError,
    408: errors.ServerError,
    409: errors.AlreadyExistsError,
    410: errors.EndpointGoneError,
    413: errors.ServiceError,
    422: errors.InvalidRequestError,
    429: errors.RateLimitedError,
    430: errors.ServiceError,
    433: errors.InsufficientCreditsError,
    451: errors.SourceUnavailableError,
    455: errors.MaintenanceError,
    499: errors.ServiceError,
    500: errors.ServerError,
    501: errors.ServerError,
    502: errors.ServerError,
    505: errors.FeatureDisabledError,
    520: errors.ServerError,
    531: errors.ServerError,
    599: errors.ServerError,
}

# Codes that are neither yes nor no.
NO_CODES = [-200, -1, 0, 1, 100, 199, 201, 204, 299, 300, 302, 399, 600, 999, 1000, 20000, 10**17]

# How a body may spell a code, and whether we can read it.
CODE_TYPES = {
    "int": (lambda code: code, True),
    "string": (str, True),
    "padded-string": (lambda code: f" {code}\n", True),
    "whole-float": (float, True),
    "fraction": (lambda code: code + 0.5, False),
    "true": (lambda _: True, False),
    "false": (lambda _: False, False),
    "empty-string": (lambda _: "", False),
    "word": (lambda _: "OK", False),
    "fraction-string": (lambda code: f"{code}.0", False),
    "exponent-string": (lambda code: f"{code}e0", False),
    "other-digits": (
        lambda code: str(code).translate({48 + n: 0x660 + n for n in range(10)}),
        False,
    ),
    "too-many-digits": (lambda code: str(code) + "0" * 18, False),
    "huge-int": (lambda code: code * 10**20, False),
    "list": (lambda code: [code], False),
    "object": (lambda code: {"code": code}, False),
}

# What is left to go by where the body's code is of no use.
BY_STATUS = {
    200: errors.WireFormatError,
    201: errors.WireFormatError,
    299: errors.WireFormatError,
    300: errors.TransportError,
    304: errors.TransportError,
    307: errors.TransportError,
    399: errors.TransportError,
    401: errors.AuthenticationError,
    403: errors.ServiceError,
    404: errors.NotFoundError,
    409: errors.AlreadyExistsError,
    429: errors.RateLimitedError,
    500: errors.ServerError,
    502: errors.ServerError,
    600: errors.WireFormatError,
    199: errors.WireFormatError,
    0: errors.WireFormatError,
}


@pytest.mark.parametrize("status", BY_STATUS)
@pytest.mark.parametrize(("spell", "usable"), list(CODE_TYPES.values()), ids=list(CODE_TYPES))
def test_the_body_code_beats_the_http_status(spell, usable, status):
    """A usable code in the body decides; the HTTP status does where there is none."""
    for code, by_code in BY_CODE.items():
        body = {"code": spell(code), "msg": "words", "data": {"taskId": "t"}}

        expected = by_code if usable else BY_STATUS[status]
        assert judge(answer(body, status=status)) == expected, (code, body)


@pytest.mark.parametrize("code", NO_CODES)
def test_a_code_that_says_nothing_is_unreadable(code):
    """A code that is neither yes nor no is an answer we cannot read."""
    assert judge(answer({"code": code, "data": {}})) is errors.WireFormatError


# Where there is no code at all, a 2xx with data is a yes.
MISSING_CODE = [
    ({"data": {}}, "yes"),
    ({"data": []}, "yes"),
    ({"data": 0}, "yes"),
    ({"data": ""}, "yes"),
    ({"data": False}, "yes"),
    ({"code": None, "data": {}}, "yes"),
    ({"data": None}, errors.WireFormatError),
    ({"msg": "success"}, errors.WireFormatError),
    ({"code": None}, errors.WireFormatError),
    ({}, errors.WireFormatError),
    ({"status": 404, "error": "Not Found"}, errors.WireFormatError),
]


@pytest.mark.parametrize(("body", "expected"), MISSING_CODE, ids=short)
def test_data_without_a_code_is_a_yes(body, expected):
    """Data without a code is a yes if the HTTP status is one."""
    assert expected == judge(answer(body))
    assert expected == judge(answer(body, status=204))


@pytest.mark.parametrize("body", [body for body, _ in MISSING_CODE], ids=str)
def test_data_without_a_code_is_no_excuse(body):
    """Data without a code does not make a yes of an HTTP status that is none."""
    assert judge(answer(body, status=500)) is errors.ServerError
    assert judge(answer(body, status=302)) is errors.TransportError


NO_OBJECTS = {
    "nothing": b"",
    "blank": b"  ",
    "html": b"<html><body>error 1010</body></html>",
    "text": b"error code: 1010",
    "null": b"null",
    "list": b'[{"code":200,"data":{}}]',
    "string": b'"code"',
    "number": b"200",
    "true": b"true",
    "nan": b"NaN",
    "truncated": b'{"code":200,"data":{"taskId":"t"}',
    "two": b'{"code":200}{"code":200}',
    "trailing-comma": b'{"code":200,}',
    "single-quotes": b"{'code':200}",
    "bad-utf-8": b'{"code":200,"data":"\xff"}',
    "utf-16": '{"code":200,"data":{}}'.encode("utf-16"),
    "utf-16-le": '{"code":200,"data":{}}'.encode("utf-16-le"),
    "utf-32": '{"code":200,"data":{}}'.encode("utf-32"),
    "deep": b'{"code":200,"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep-open": b"[" * 100_000,
    "long-number": b'{"code":200,"data":' + b"9" * 5000 + b"}",
    "control-character": b'{"code":200,"data":"\x01"}',
}


@pytest.mark.parametrize("status", BY_STATUS)
@pytest.mark.parametrize("body", NO_OBJECTS.values(), ids=list(NO_OBJECTS))
def test_a_body_that_is_no_object_leaves_the_status(body, status):
    """Where the body is no JSON object the HTTP status decides."""
    # A router that knows no such address names no code.
    expected = errors.EndpointGoneError if status == 404 else BY_STATUS[status]
    assert expected == judge(answer(body, status=status))


@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"a":', b"}")], ids=["list", "object"])
@pytest.mark.parametrize(
    ("depth", "expected"),
    [(48, "yes"), (49, errors.WireFormatError), (300, errors.WireFormatError)],
)
def test_an_answer_nested_too_deep_is_unreadable(pair, depth, expected):
    """An answer of more than 50 levels is none the service would send."""
    nested = pair[0] * depth + b"0" + pair[1] * depth
    body = b'{"code":200,"wide":[[],{},[1,{}]],"data":' + nested + b"}"

    assert expected == judge(answer(body))


def test_an_answer_may_be_as_wide_as_it_likes():
    """Width is no depth: the tracks of a music task are many."""
    tracks = [{"id": str(number), "tags": [{}]} for number in range(1000)]

    assert judge(answer({"code": 200, "data": tracks})) == "yes"


def test_a_byte_order_mark_is_no_obstacle():
    """UTF-8 with a mark is read."""
    assert judge(answer(b'\xef\xbb\xbf{"code":401}')) is errors.AuthenticationError


def test_the_last_of_two_codes_counts():
    """Of a name that comes twice the last one counts, as JSON parsers have it."""
    assert judge(answer(b'{"code":401,"code":200}')) == "yes"


@pytest.mark.parametrize("number", ["1e99999999999999999999", "-1E-99999999999999999999", "NaN"])
def test_an_odd_number_elsewhere_is_no_obstacle(number):
    """A number beyond all bounds, in a place nobody asked about, spoils nothing."""
    assert judge(answer(f'{{"code":422,"odd":{number}}}'.encode())) is errors.InvalidRequestError


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"msg": "words"}, "words"),
        ({"message": "words"}, "words"),
        ({"msg": "", "message": "words"}, "words"),
        ({"msg": None, "message": "words"}, "words"),
        ({"msg": 5, "message": "words"}, "words"),
        ({"msg": "words", "message": "others"}, "words"),
        ({"msg": "wo\u202erds\x1b[31m\n"}, "words[31m"),
        ({"msg": "x" * 501}, "x" * 500),
        ({"msg": ["words"]}, ""),
        ({}, ""),
    ],
    ids=short,
)
@pytest.mark.parametrize("code", [{"code": 422}, {}], ids=["code", "status"])
def test_the_message_is_found_and_made_harmless(body, expected, code):
    """The service's words are found under either name, printable and bounded."""
    assert expected == read_envelope(answer(body | code, status=422)).message


@pytest.mark.parametrize(
    ("document", "status"),
    [({"code": 429, "msg": "slow down"}, 200), ({"message": "slow down"}, 429)],
    ids=["body", "status"],
)
def test_a_refusal_keeps_what_the_answer_said(document, status):
    """A ServiceError carries code, words, HTTP status, request id and the wait asked for."""
    with pytest.raises(errors.RateLimitedError) as caught:
        raise_for_code(read_envelope(answer(document, status=status, retry_after="7")))

    told = caught.value
    assert told.advice == errors.RateLimitedError.advice
    assert {**vars(told), "advice": None, "__notes__": None} == {
        "advice": None,
        "__notes__": None,
        "code": 429,
        "message": "slow down",
        "http_status": status,
        "request_id": REQUEST_ID,
        "retry_after_s": 7.0,
        "task_id": None,
        "track": None,
    }


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"a": [1, None, "x"]}, '{"a": [1, null, "x"]}'),
        ({"a": "x\u202e\x1b[31m\ud800 y"}, r'{"a": "x\u001b[31m y"}'),
        ({"callbackUrl": "https://s/?key=0", "b": 1}, '{"callbackUrl": "[hidden]", "b": 1}'),
        ({"callBackUrl": "https://s/?key=0"}, '{"callBackUrl": "[hidden]"}'),
        ({"call_back_url": "https://s/?key=0"}, '{"call_back_url": "[hidden]"}'),
        ({"callbackUrl": None}, '{"callbackUrl": null}'),
        ({"p": '{"callBackUrl":"https://s/?key=0"}'}, r'{"p": "{\"callBackUrl\":\"[hidden]\"}"}'),
        ({"a": "x" * 900}, '{"a": "' + "x" * 493),
        ({"callbackUrl": "x" * 900, "b": 1}, '{"callbackUrl": "[hidden]", "b": 1}'),
        ({"callbackUrl": "x" * 90_000, "b": 1}, '{"callbackUrl": "[hidden]'),
    ],
    ids=short,
)
def test_a_quoted_answer_is_printable_bounded_and_without_callback_urls(data, expected):
    """An error may show it to anybody."""
    assert expected == quote(data)


def test_a_refusal_by_status_only_has_its_facts_too():
    """A ServiceError for an answer without JSON carries the HTTP status as its code."""
    with pytest.raises(errors.ServiceError) as caught:
        raise_for_code(read_envelope(answer(b"<html>", status=403)))

    error = caught.value
    assert (403, "", 403, REQUEST_ID, None) == (
        error.code,
        error.message,
        error.http_status,
        error.request_id,
        error.retry_after_s,
    )


def test_a_date_to_come_back_is_counted_from_the_answer():
    """A ``Retry-After`` date is turned into seconds by our clock when the answer came."""
    response = answer(
        {"code": 455},
        retry_after="Sun, 06 Nov 1994 08:49:37 GMT",
        now_unix_s=784111777.0 - 90,
    )
    with pytest.raises(errors.MaintenanceError) as caught:
        raise_for_code(read_envelope(response))

    assert caught.value.retry_after_s == 90.0


def test_a_redirect_says_what_to_check():
    """The text for a redirect says that nothing was created and what to check."""
    with pytest.raises(errors.TransportError) as caught:
        raise_for_code(read_envelope(answer(b"", status=307)))

    assert str(caught.value) == (
        "the service answered with a redirect (HTTP 307), which is not followed: "
        "nothing was created"
    )
    assert "base_url" in caught.value.advice


def test_a_redirect_code_in_the_body_is_no_redirect():
    """Only the HTTP status can redirect; a code of 302 in a body is unreadable."""
    assert judge(answer({"code": 302, "data": None})) is errors.WireFormatError


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (answer(b"<html>"), "it is not a JSON object"),
        (answer({"code": "x"}), "it has no usable code"),
        (answer({"code": 100}), "code 100 is neither yes nor no"),
    ],
    ids=["no-object", "no-code", "odd-code"],
)
def test_an_unreadable_answer_says_why(response, why):
    """The text of a WireFormatError says why, quotes the answer and says what to check."""
    with pytest.raises(errors.WireFormatError) as caught:
        raise_for_code(read_envelope(response))

    assert str(caught.value) == (
        f"cannot read the service's answer (HTTP 200): {why}; it begins {response.body.decode()!r}"
    )
    assert "base_url" in caught.value.advice


def test_an_unreadable_answer_is_kept_in_short():
    """A WireFormatError keeps status, request id and 200 harmless characters of the answer."""
    error = unreadable(answer(b"\x1b[31m\xff \xe2\x80\xae" + b"x" * 1000, status=502), "why")

    assert {**vars(error), "advice": None, "__notes__": None} == {
        "advice": None,
        "__notes__": None,
        "http_status": 502,
        "request_id": REQUEST_ID,
        "excerpt": "[31m\ufffd " + "x" * 194,
        "task_id": None,
        "track": None,
    }


def test_an_unreadable_answer_names_the_task_where_known():
    """A WireFormatError about a task carries its id."""
    assert unreadable(answer(b""), "why", task_id="t").task_id == "t"


def test_an_excerpt_is_looked_for_at_the_beginning():
    """What comes after 800 bytes of rubbish is not looked for."""
    assert unreadable(answer(b"\x00" * 799 + b"seen"), "why").excerpt == "s"


def test_an_excerpt_is_counted_in_characters():
    """Two hundred characters of any script are quoted, whatever their bytes."""
    assert unreadable(answer("\U0001d11e".encode() * 300), "why").excerpt == "\U0001d11e" * 200


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (-5, -5),
        (10**18 - 1, 10**18 - 1),
        (1 - 10**18, 1 - 10**18),
        (10**18, None),
        (-(10**18), None),
        ("0", 0),
        ("-5", -5),
        (" 7 ", 7),
        ("007", 7),
        ("9" * 18, 10**18 - 1),
        ("1" + "0" * 18, None),
        ("-" + "9" * 18, 1 - 10**18),
        ("", None),
        ("-", None),
        ("+5", None),
        ("--5", None),
        ("1_000", None),
        ("0x10", None),
        ("5 5", None),
        ("\u0665", None),
        ("²", None),
        (5.0, 5),
        (-5.0, -5),
        (-0.0, 0),
        (5.5, None),
        (2.0**53 - 1, 2**53 - 1),
        (2.0**53, None),
        (-(2.0**53), None),
        (float("nan"), None),
        (float("inf"), None),
        (True, None),
        (False, None),
        (None, None),
        ([5], None),
        (b"5", None),
    ],
    ids=short,
)
def test_an_int_is_read_from_any_spelling(value, expected):
    """Whole numbers of up to 18 digits are read from ints, floats and strings."""
    number = parse_int(value)

    assert expected == number
    assert type(number) is type(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("words", "words"),
        ("a\nb", "a b"),
        ("\x00" * 2000 + "unseen", ""),
        ("\x00" * 1999 + "seen", "s"),
        ("x" * 500, "x" * 500),
        ("x" * 501, "x" * 500),
        (None, ""),
        (5, ""),
        (b"words", ""),
    ],
    ids=short,
)
def test_text_is_bounded(value, expected):
    """Of a stranger's text 500 characters are kept, found in its first 2,000."""
    assert expected == parse_text(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [({"a": 1}, {"a": 1}), ({}, {}), (None, {}), ([], {}), ("{}", {}), (5, {})],
    ids=short,
)
def test_what_is_no_object_has_no_fields(value, expected):
    """Anything but a JSON object counts as an empty one."""
    assert expected == as_object(value)


DATE_UNIX_S = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110.


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        (" ", None),
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("120", 120.0),
        ("999999999", 999999999.0),
        ("9999999999", None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1e3", None),
        ("\u0667", None),
        ("7 s", None),
        ("7, 7", None),
        ("soon", None),
        ("nan", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 100.0),
        ("  Sun, 06 Nov 1994 08:49:37 GMT  ", 100.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 100.0),
        ("Sun Nov  6 08:49:37 1994", 100.0),
        ("Sun, 06 Nov 1994 08:49:37 -0000", 100.0),
        ("Sun, 06 Nov 1994 08:49:37 +0100", 0.0),
        ("Sun, 06 Nov 1994 08:47:57 GMT", 0.0),
        ("Sun, 06 Nov 1994 08:47:56 GMT", 0.0),
        ("Sun, 06 Nov 1994 08:47:58 GMT", 1.0),
        ("Sun, 06 Nov 1994 25:49:37 GMT", None),
        ("Sun, 31 Feb 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 99999 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 08:49:37 +9999999999999999999999", None),
        ("1994-11-06T08:49:37Z", None),
    ],
    ids=short,
)
def test_the_wait_asked_for_is_read(header, expected):
    """Both forms of ``Retry-After`` are read, whatever is neither asks nothing."""
    assert expected == parse_retry_after(header, DATE_UNIX_S - 100)


def test_a_date_without_a_zone_is_utc(monkeypatch):
    """The old date form names no zone and means GMT, wherever we run."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        wait_s = parse_retry_after("Sun Nov  6 08:49:37 1994", DATE_UNIX_S - 100)
    finally:
        monkeypatch.undo()
        time.tzset()

    assert wait_s == 100.0


@given(strategies.retry_afters, st.floats(0, 4e9))
def test_any_header_asks_for_a_wait_or_nothing(header, now_unix_s):
    """Whatever the header holds, the wait is finite and not negative, or there is none."""
    wait_s = parse_retry_after(header, now_unix_s)

    assert wait_s is None or 0.0 <= wait_s < 1e12


@given(strategies.responses)
def test_any_answer_has_an_envelope_or_is_unreadable(response):
    """Whatever the bytes and the status, the code is an int, or the answer is unreadable."""
    try:
        envelope = read_envelope(response)
    except errors.WireFormatError:
        return

    assert type(envelope.code) is int
    assert envelope.in_body or envelope.code == response.status
    assert len(envelope.message) <= 500
    assert envelope.message.isprintable()


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_any_data_comes_through(data):
    """The payload of an envelope is what the JSON says, unchanged."""
    response = WireResponse(status=200, body=json.dumps({"code": 200, "data": data}).encode())

    assert data == read_envelope(response).data
