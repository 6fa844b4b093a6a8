from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from kie_wav_async.callbacks.callback_url import (
    PLACEHOLDER_CALLBACK_URL,
    build_callback_url,
    find_attempt,
    is_called_back_elsewhere,
    parse_attempt,
    parse_callback_url,
)
from kie_wav_async.models import TaskRecord, TaskState
from samples import ATTEMPT_ID, CALLBACK_URL, TASK_ID, short
from strategies import queries

PENDING = TaskState.PENDING
OTHER_ID = "ffffffffffffffffffffffffffffffff"


# --- where to be called back ----------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "https://h.example/kie/callback",
        "http://h.example/kie/callback",
        "https://h.example",
        "https://h.example/",
        "https://h.example:8443/cb",
        "https://h.example:443/cb",
        "https://192.0.2.1/cb",
        "https://[2001:db8::1]:8443/cb",
        "https://xn--bcher-kva.example/cb",
        "HTTPS://H.Example/CB",
        "https://h.example/a%7Eb/%2F/../c//d",
        "https://h.example/a@b:c",
        "https://h.example?user@host",
        "https://h.example/?",
        "https://h.example/?&",
        "https://h.example/?a=1&&b=%2F&a=2&c=a+b%20c&d;e=f&=&g==&h=%zz&i=[]{}|'\"<>",
        "https://h.example/?redirect=https://u:p@other.example/",
        "https://h.example/attempt=1/attempt",
        "https://h.example/?a=attempt",
        "https://h.example/?a=1&Attempt=1&xattempt=1&attempts=1&attempt%00=1&+attempt=1",
        "https://h.example/?%2561ttempt=1",
        "https://h.example/?a?attempt=1",
    ],
    ids=short,
)
def test_a_callback_url_stays_byte_for_byte(text):
    """What KIE is told is what the user wrote, to the last byte."""
    assert text == parse_callback_url(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://BÜCHER.example:443/cb", "https://xn--bcher-kva.example:443/cb"),
        ("HTTPS://ü.example/A%2fb", "https://xn--tda.example/A%2fb"),
        ("https://h.example/ü/%c3%bc", "https://h.example/%C3%BC/%c3%bc"),
        (
            "https://ü.example/%7Ea?a=%2F&b=a+b%20c&c=%41;d&&e=%zz",
            "https://xn--tda.example/%7Ea?a=%2F&b=a+b%20c&c=%41;d&&e=%zz",
        ),
        ("https://ü.example?a=[]{}|'\"<>", "https://xn--tda.example?a=[]{}|'\"<>"),
        ("https://h.example/?name=雪&a=%2f", "https://h.example/?name=%E9%9B%AA&a=%2f"),
        ("https://[2001:db8::1]:8443/ü", "https://[2001:db8::1]:8443/%C3%BC"),
    ],
    ids=short,
)
def test_only_what_is_not_ascii_is_quoted(text, expected):
    """A host beyond ASCII is named as DNS does, other such characters quoted, the rest kept."""
    assert expected == parse_callback_url(text)


def test_a_url_object_is_a_callback_url():
    """A yarl URL is taken as it spells itself."""
    url = URL("https://bücher.example/ü").with_query({"a": "b c"})

    assert str(url) == parse_callback_url(url)
    with pytest.raises(ValueError, match="fragment"):
        parse_callback_url(url.with_fragment("x"))
    with pytest.raises(ValueError, match="user"):
        parse_callback_url(url.with_user("x"))
    with pytest.raises(ValueError, match="absolute"):
        parse_callback_url(URL("/cb"))


NOT_ABSOLUTE = "callback_url must be an absolute http(s) URL like https://example.com/kie/callback"
HAS_FRAGMENT = "callback_url must not have a fragment"
HAS_USER = "callback_url must not hold a user or password"
HAS_ATTEMPT = "callback_url must not have 'attempt' in its query: each submit adds its own"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        *(
            (text, NOT_ABSOLUTE)
            for text in [
                "", " ", "cb", "/cb", "//h.example/cb", "h.example", "h.example/cb", "?a=b", "#a",
                "h.example:443/cb", "localhost:8080", "https:", "https:/h.example/cb",
                "https:h.example/cb", "https://", "https:///cb", "https://?a=b", "https://:443/",
                "ftp://h.example/cb", "ws://h.example/cb", "file:///cb", "javascript:alert(1)",
                "httpss://h.example/", "mailto:a@h.example", "https://h.example:99999/",
                "https://h.example:x/", "https://h.example:-1/", "https://[::1", "https://[x]/",
                # Blanks and control characters, of ASCII and beyond.
                " https://h.example/", "https://h.example/ ", "https://h.example/a b",
                "https://h .example/", "https://h.example/?a= b", "https://h.example/\t",
                "https://h.example/\n", "\nhttps://h.example/", "https://h.example/\r\nHost: x",
                "https://h.example/\x00", "https://h.example/\x7f", "https://h.example/\x85",
                "https://h.example/\xa0", "https://h.example/\u2028", "https://h.example/\u200b",
                "https://h.example/\u202e", "https://h.example/\ufeff", "https://h.example/\ud800",
                # What looks like a slash or an at sign.
                "https://h.example\uff0fcb/", "https://user\uff20h.example/", "https://h\\@other/",
                "https://h.example/" + "x" * 8200,
            ]
        ),
        ("https://h.example/#", HAS_FRAGMENT),
        ("https://h.example/cb#part", HAS_FRAGMENT),
        ("https://h.example/cb?a=b#part", HAS_FRAGMENT),
        ("https://h.example#?a=b", HAS_FRAGMENT),
        ("https://ü.example/cb#part", HAS_FRAGMENT),
        ("https://user@h.example/cb", HAS_USER),
        ("https://user:secret@h.example/cb", HAS_USER),
        ("https://:secret@h.example/cb", HAS_USER),
        ("https://user:@h.example/cb", HAS_USER),
        ("https://@h.example/cb", HAS_USER),
        ("https://:@h.example/cb", HAS_USER),
        ("https://@h.example", HAS_USER),
        ("https://@h.example?a=b", HAS_USER),
        ("https://user@h.example:443/?a=b", HAS_USER),
        ("https://a@b@h.example/", HAS_USER),
        ("https://user@ü.example/cb", HAS_USER),
        ("https://h.example/?attempt", HAS_ATTEMPT),
        ("https://h.example/?attempt=", HAS_ATTEMPT),
        ("https://h.example?attempt=1", HAS_ATTEMPT),
        ("https://h.example/?attempt==", HAS_ATTEMPT),
        (f"https://h.example/?attempt={ATTEMPT_ID}", HAS_ATTEMPT),
        ("https://h.example/?a=b&attempt=1", HAS_ATTEMPT),
        ("https://h.example/?attempt=1&a=b", HAS_ATTEMPT),
        ("https://h.example/?&&attempt&", HAS_ATTEMPT),
        ("https://h.example/?%61ttempt=1", HAS_ATTEMPT),
        ("https://h.example/?attempt=1&a=?b", HAS_ATTEMPT),
        ("https://h.example/?a&%61%74%74%65%6D%70%74", HAS_ATTEMPT),
        ("https://h.example/?attemp%74=1", HAS_ATTEMPT),
        ("https://ü.example/?%61ttempt=1", HAS_ATTEMPT),
        ("https://h.example/?ü=1&attempt=1", HAS_ATTEMPT),
    ],
    ids=short,
)  # fmt: skip
def test_what_is_no_callback_url_is_refused(text, complaint):
    """A URL that KIE could not call, that holds a secret or is ambiguous, is a `ValueError`."""
    with pytest.raises(ValueError, match=r"^callback_url must ") as caught:
        parse_callback_url(text)

    assert complaint == str(caught.value)
    assert "secret" not in repr(caught.value.__context__)


@pytest.mark.parametrize("value", [None, 5, b"https://h.example/", ["https://h.example/"]])
def test_a_callback_url_is_text(value):
    """What is neither text nor a URL is a mistake of the caller."""
    with pytest.raises(TypeError) as caught:
        parse_callback_url(value)

    assert f"callback_url must be a str, not {type(value).__name__}" == str(caught.value)


VISIBLE = string.ascii_letters + string.digits + string.punctuation.replace("#", "")
TAILS = st.text(VISIBLE) | st.text("ab/%0?=&+;,:@!$'()*~[]|ü雪")


@given(tail=TAILS, host=st.sampled_from(["h.example", "ü.example"]))
def test_a_url_is_taken_or_refused(tail, host):
    """Whatever follows the host, the URL is refused, or kept and taken again as it came out."""
    text = f"https://{host}/{tail}"
    if re.search(r"[?&](attempt|%61)", text):
        return
    found = parse_callback_url(text)

    assert found.isascii()
    assert found == parse_callback_url(found)
    if text.isascii():
        assert text == found
    if tail.isascii():
        assert found.endswith(f"/{tail}")
    built = build_callback_url(found, ATTEMPT_ID)
    assert built.startswith(found)
    assert ATTEMPT_ID == parse_attempt(built.partition("?")[2])


@given(st.text() | st.text("htps:/@?#.[]aü% \n"))
def test_any_text_is_a_callback_url_or_none(text):
    """Whatever the text, it is a callback URL or a `ValueError`."""
    try:
        found = parse_callback_url(text)
    except ValueError:
        return

    assert found.isascii()
    assert URL(found).absolute


# --- naming the attempt ---------------------------------------------------------------------


def test_the_placeholder_names_the_attempt():
    """Where nobody listens, the callback URL is under ``.invalid`` and names the attempt."""
    url = URL(build_callback_url(PLACEHOLDER_CALLBACK_URL, ATTEMPT_ID))

    assert url.host.endswith(".invalid")
    assert dict(url.query) == {"attempt": ATTEMPT_ID}


@pytest.mark.parametrize(
    ("callback_url", "expected"),
    [
        ("https://h.example/cb", f"https://h.example/cb?attempt={ATTEMPT_ID}"),
        ("https://h.example", f"https://h.example?attempt={ATTEMPT_ID}"),
        ("https://h.example/?", f"https://h.example/?attempt={ATTEMPT_ID}"),
        ("https://h.example/?a", f"https://h.example/?a&attempt={ATTEMPT_ID}"),
        ("https://h.example/?a=", f"https://h.example/?a=&attempt={ATTEMPT_ID}"),
        ("https://h.example/?a=1&", f"https://h.example/?a=1&attempt={ATTEMPT_ID}"),
        ("https://h.example/?&", f"https://h.example/?&attempt={ATTEMPT_ID}"),
        ("https://h.example/?a=1;", f"https://h.example/?a=1;&attempt={ATTEMPT_ID}"),
        ("https://h.example/?a;b", f"https://h.example/?a;b&attempt={ATTEMPT_ID}"),
        ("https://h.example/?a=?", f"https://h.example/?a=?&attempt={ATTEMPT_ID}"),
        ("https://h.example/cb&", f"https://h.example/cb&?attempt={ATTEMPT_ID}"),
        ("https://h.example/?a=%2F&b=+", f"https://h.example/?a=%2F&b=+&attempt={ATTEMPT_ID}"),
    ],
    ids=short,
)
def test_the_attempt_is_named_at_the_end(callback_url, expected):
    """The attempt is joined to whatever query there is, which stays byte for byte."""
    built = build_callback_url(callback_url, ATTEMPT_ID)

    assert expected == built
    assert ATTEMPT_ID == parse_attempt(built.partition("?")[2])


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (f"attempt={ATTEMPT_ID}", ATTEMPT_ID),
        (f"a=b&attempt={ATTEMPT_ID}&c=d", ATTEMPT_ID),
        (f"&&attempt={ATTEMPT_ID}&&", ATTEMPT_ID),
        (f"%61ttempt={ATTEMPT_ID}", ATTEMPT_ID),
        (f"%61%74%74%65%6D%70%74={ATTEMPT_ID}", ATTEMPT_ID),
        (f"a=attempt&attempt={ATTEMPT_ID}&b=&attempts=1", ATTEMPT_ID),
        (f"Attempt={OTHER_ID}&attempt={ATTEMPT_ID}&ATTEMPT=", ATTEMPT_ID),
        # None.
        ("", None),
        ("a=b", None),
        ("attempt", None),
        ("attempt=", None),
        (f"Attempt={ATTEMPT_ID}", None),
        (f"xattempt={ATTEMPT_ID}", None),
        (f"?attempt={ATTEMPT_ID}", None),
        (f"attempt[]={ATTEMPT_ID}", None),
        (f"attempt%00={ATTEMPT_ID}", None),
        (f"attempt+={ATTEMPT_ID}", None),
        (f"%2561ttempt={ATTEMPT_ID}", None),
        (f"a=1;attempt={ATTEMPT_ID}", None),
        (f"a=attempt={ATTEMPT_ID}", None),
        # Several.
        (f"attempt={ATTEMPT_ID}&attempt={ATTEMPT_ID}", None),
        (f"attempt={ATTEMPT_ID}&attempt={OTHER_ID}", None),
        (f"attempt={OTHER_ID}&attempt={ATTEMPT_ID}", None),
        (f"attempt={ATTEMPT_ID}&attempt", None),
        (f"attempt={ATTEMPT_ID}&attempt=", None),
        (f"attempt=&attempt={ATTEMPT_ID}", None),
        (f"attempt={ATTEMPT_ID}&%61ttempt={ATTEMPT_ID}", None),
        (f"attempt={ATTEMPT_ID}&attemp%74=x", None),
        # Not of our making.
        (f"attempt={ATTEMPT_ID.upper()}", None),
        (f"attempt={ATTEMPT_ID[:-1]}", None),
        (f"attempt={ATTEMPT_ID}0", None),
        (f"attempt={ATTEMPT_ID[:-1]}g", None),
        (f"attempt={ATTEMPT_ID[:-1]}%66", None),
        (f"attempt={ATTEMPT_ID}%0A", None),
        (f"attempt={ATTEMPT_ID}\n", None),
        (f"attempt=\n{ATTEMPT_ID}", None),
        (f"attempt= {ATTEMPT_ID}", None),
        (f"attempt={ATTEMPT_ID}+", None),
        (f"attempt={ATTEMPT_ID}#", None),
        (f"attempt={ATTEMPT_ID};a=b", None),
        (f"attempt={ATTEMPT_ID[:8]}-{ATTEMPT_ID[9:]}", None),
        ("attempt=" + "\u0661" * 32, None),
        ("attempt=" + "\uff10" * 32, None),
        ("attempt=" + "\ud800" * 32, None),
        ("\ud800", None),
        ("%ff%fe%00", None),
    ],
    ids=short,
)
def test_exactly_one_attempt_of_our_making_counts(query, expected):
    """A delivery names an attempt if its query has one value of the name, and one of ours."""
    assert expected == parse_attempt(query)
    assert expected == parse_attempt(query.encode("utf-8", "surrogatepass"))


def test_a_query_too_long_to_be_ours_is_not_looked_at():
    """A query longer than a request line names nothing."""
    query = f"attempt={ATTEMPT_ID}&"
    longest = query.ljust(8190, "x")

    assert ATTEMPT_ID == parse_attempt(longest)
    assert parse_attempt(longest + "x") is None
    assert parse_attempt(longest.encode() + b"x") is None
    assert parse_attempt("&" * 10_000_000) is None


@pytest.mark.parametrize("query", [None, 5, bytearray(b"a"), {"attempt": ATTEMPT_ID}, ["a"]])
def test_a_query_is_text_or_bytes(query):
    """A query that somebody parsed before is a mistake of the caller."""
    with pytest.raises(TypeError) as caught:
        parse_attempt(query)

    assert f"query must be the raw query string, not {type(query).__name__}" == str(caught.value)


@given(queries)
def test_any_query_names_an_attempt_or_none(query):
    """Whatever stands in a query, it names one attempt of our form, or none."""
    found = parse_attempt(query)

    assert found is None or re.fullmatch("[0-9a-f]{32}", found)


# --- in records -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"callbackUrl": CALLBACK_URL}, ATTEMPT_ID),
        ({"callBackUrl": CALLBACK_URL}, ATTEMPT_ID),
        ({"callbackUrl": None, "callBackUrl": CALLBACK_URL}, ATTEMPT_ID),
        ({"callbackUrl": "rubbish", "callBackUrl": CALLBACK_URL}, ATTEMPT_ID),
        ({"callbackUrl": "https://h.example/", "callBackUrl": CALLBACK_URL}, None),
        ({"callbackUrl": f"https://h.example/cb?x=1&attempt={ATTEMPT_ID}&y=2"}, ATTEMPT_ID),
        ({"callbackUrl": f"{CALLBACK_URL}&attempt={OTHER_ID}"}, None),
        ({"callbackUrl": f"{CALLBACK_URL}&attempt={ATTEMPT_ID}"}, None),
        ({"callbackUrl": "https://h.example/cb?attempt"}, ""),
        ({"callbackUrl": "https://h.example/cb?attempt="}, ""),
        ({"callbackUrl": f"https://h.example/cb?Attempt={ATTEMPT_ID}"}, None),
        ({"callbackUrl": f"https://h.example/cb?xattempt={ATTEMPT_ID}"}, None),
        ({"callbackUrl": f"https://h.example/cb#attempt={ATTEMPT_ID}"}, None),
        ({"callbackUrl": f"https://h.example/attempt={ATTEMPT_ID}"}, None),
        ({"callbackUrl": 5}, None),
        ({}, None),
    ],
    ids=short,
)
def test_an_attempt_is_named_once_or_not_at_all(fields, expected):
    """The attempt is the one value of its name in the callback URL's query."""
    found = TaskRecord(task_id=TASK_ID, state=PENDING, raw=fields)

    assert expected == find_attempt(found)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"callbackUrl": CALLBACK_URL}, False),
        ({"callBackUrl": CALLBACK_URL}, False),
        ({"callbackUrl": CALLBACK_URL.partition("?")[0]}, False),
        ({"callbackUrl": f"{CALLBACK_URL}#part"}, False),
        ({"callbackUrl": f"{CALLBACK_URL}&attempt={OTHER_ID}"}, False),
        ({"callbackUrl": "https://other.example/callback"}, True),
        ({"callBackUrl": "https://other.example/callback"}, True),
        ({"callbackUrl": None, "callBackUrl": "https://other.example/callback"}, True),
        ({"callbackUrl": CALLBACK_URL, "callBackUrl": "https://other.example/"}, False),
        ({"callbackUrl": CALLBACK_URL.replace("https", "http")}, True),
        ({"callbackUrl": CALLBACK_URL.replace("?", "/x?")}, True),
        ({"callbackUrl": "rubbish"}, False),
        ({"callbackUrl": 5}, False),
        ({}, False),
    ],
    ids=short,
)
def test_a_task_is_called_back_elsewhere_if_its_record_says_so(fields, expected):
    """A task is somebody else's if its record shows a callback URL that is not ours."""
    found = TaskRecord(task_id=TASK_ID, state=PENDING, raw=fields)

    assert is_called_back_elsewhere(found, CALLBACK_URL) is expected
    assert is_called_back_elsewhere(found, CALLBACK_URL.partition("?")[0]) is expected


@pytest.mark.parametrize(
    "callback_url",
    [
        "https://h.example",
        "https://h.example/cb?a=b",
        "HTTPS://H.Example/CB",
        "https://h.example:443/cb",
        "https://h.example/a%7Eb/%2F/../c//d?x=%7e",
        "https://h.example/a'b\"<>|",
        "https://h.example/%0a",
        "https://[2001:db8::1]/cb",
    ],
    ids=short,
)
def test_our_own_url_is_ours_however_it_is_spelled(callback_url):
    """A record that shows what we sent, byte for byte, is never somebody else's."""
    sent = build_callback_url(parse_callback_url(callback_url), ATTEMPT_ID)
    found = TaskRecord(task_id=TASK_ID, state=PENDING, raw={"callbackUrl": sent})

    assert not is_called_back_elsewhere(found, callback_url)
    assert ATTEMPT_ID == find_attempt(found)


@given(st.text(VISIBLE))
def test_our_own_url_is_ours_whatever_follows_the_host(tail):
    """Whatever path and query we sent, a record that shows it is ours."""
    url = f"https://h.example/{tail}"
    found = TaskRecord(task_id=TASK_ID, state=PENDING, raw={"callbackUrl": url})

    assert not is_called_back_elsewhere(found, url)


@pytest.mark.parametrize(
    ("ours", "shown"),
    [
        ("https://H.Example/cb", "https://h.example/cb"),
        ("https://h.example/cb", "HTTPS://H.EXAMPLE/cb"),
        ("https://h.example:443/cb", "https://h.example/cb"),
        ("https://h.example/cb", "https://h.example:443/cb"),
        ("https://h.example/a%7eb", "https://h.example/a~b"),
        ("https://h.example/%c3%bc", "https://h.example/%C3%BC"),
        ("https://h.example/a/../cb", "https://h.example/cb"),
    ],
    ids=short,
)
def test_our_url_in_another_spelling_is_ours(ours, shown):
    """Whoever stored our callback URL may have respelled it; it is still ours."""
    raw = {"callbackUrl": f"{shown}?attempt={ATTEMPT_ID}"}
    found = TaskRecord(task_id=TASK_ID, state=PENDING, raw=raw)

    assert not is_called_back_elsewhere(found, parse_callback_url(ours))


@pytest.mark.parametrize(
    "shown", ["https://h.example/c", "https://h.example:444/cb", "https://[::1]/cb?x"]
)
def test_another_url_is_another(shown):
    """Another path or port is somebody else's, however it is spelled."""
    found = TaskRecord(task_id=TASK_ID, state=PENDING, raw={"callbackUrl": shown})

    assert is_called_back_elsewhere(found, "https://h.example/cb")


def test_a_query_of_ours_is_never_too_long_to_be_read_back():
    """A callback URL whose attempt would not be found again is refused; the longest is not."""
    longest = "https://h.example/?" + "a" * 4096
    url = build_callback_url(parse_callback_url(longest), ATTEMPT_ID)

    assert ATTEMPT_ID == parse_attempt(url.partition("?")[2])
    with pytest.raises(ValueError, match="4096 characters"):
        parse_callback_url(longest + "a")
