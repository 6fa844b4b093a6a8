from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from yarl import URL

import strategies
from kie_wav_async._support.secret import Secret
from kie_wav_async._support.validation import is_id
from kie_wav_async.models import Track
from kie_wav_async.protocol.api_constants import KIE_WAV
from kie_wav_async.protocol.requests import RequestBuilder
from kie_wav_async.protocol.user_settings import (
    is_loopback,
    parse_api_key,
    parse_base_url,
    parse_hosts,
)
from samples import AUDIO_ID, FILE_URL, MUSIC_TASK_ID, TASK_ID, short

TRACK = Track(MUSIC_TASK_ID, AUDIO_ID, title="Not for the service")
HEADERS = {
    "Authorization": "Bearer key-1",
    "Content-Type": "application/json",
    "Accept": "application/json",
}


@pytest.fixture
def builder() -> RequestBuilder:
    """Return a builder of requests to the service itself."""
    return RequestBuilder(URL("https://api.kie.ai"), Secret("key-1"))


def test_a_submit_sends_the_three_documented_fields(builder):
    """A submit is a POST of exactly taskId, audioId and callBackUrl, and is marked as one."""
    request = builder.submit(TRACK, "https://h.example/cb?x=%2F&attempt=1")

    assert request.method == "POST"
    assert request.url == "https://api.kie.ai/api/v1/wav/generate"
    assert dict(request.headers) == HEADERS
    assert json.loads(request.body) == {
        "taskId": MUSIC_TASK_ID,
        "audioId": AUDIO_ID,
        "callBackUrl": "https://h.example/cb?x=%2F&attempt=1",
    }
    assert request.is_submit


def test_the_key_is_in_its_header_and_in_no_text(builder):
    """The headers are a mapping that has the key for who reads it, and shows none of it."""
    headers = builder.poll(TASK_ID).headers

    assert (3, "Bearer key-1") == (len(headers), headers["Authorization"])
    assert HEADERS == headers
    with pytest.raises(KeyError):
        headers["authorization"]
    assert "<headers Authorization, Content-Type, Accept>" == repr(headers)
    assert "key-1" not in f"{headers} {headers!r} {builder.poll(TASK_ID)!r}"


def test_a_poll_asks_for_one_task(builder):
    """A poll is a GET that names the conversion task."""
    request = builder.poll(TASK_ID)

    assert ("GET", None, False) == (request.method, request.body, request.is_submit)
    assert request.url == f"https://api.kie.ai/api/v1/wav/record-info?taskId={TASK_ID}"
    assert dict(request.headers) == HEADERS


def test_music_asks_for_one_music_task(builder):
    """The tracks are asked for by a GET that names the music task."""
    request = builder.music(MUSIC_TASK_ID)

    assert ("GET", None, False) == (request.method, request.body, request.is_submit)
    assert request.url == f"https://api.kie.ai/api/v1/generate/record-info?taskId={MUSIC_TASK_ID}"
    assert dict(request.headers) == HEADERS


def test_credits_are_asked_for(builder):
    """The credits are asked for by a plain GET."""
    request = builder.credits()

    assert ("GET", None, False) == (request.method, request.body, request.is_submit)
    assert request.url == "https://api.kie.ai/api/v1/chat/credit"
    assert dict(request.headers) == HEADERS


def test_a_fresh_link_is_asked_for_by_the_url_as_it_is(builder):
    """The file's URL goes to the service as the service spelled it, and is no submit."""
    url = f"{FILE_URL}?sig=a%2Fb+c"
    request = builder.download_url(URL(url, encoded=True))

    assert ("POST", False) == (request.method, request.is_submit)
    assert request.url == "https://api.kie.ai/api/v1/common/download-url"
    assert dict(request.headers) == HEADERS
    assert json.loads(request.body) == {"url": url}


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("https://api.kie.ai", "https://api.kie.ai"),
        ("https://api.kie.ai/", "https://api.kie.ai"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("https://h.example/mirror", "https://h.example/mirror"),
        ("https://h.example/mirror/", "https://h.example/mirror"),
        ("https://h.example/mirror/X", "https://h.example/mirror/X"),
    ],
)
def test_the_base_url_may_have_a_path(base, expected):
    """Every path is put behind the base URL's own, with one slash between."""
    builder = RequestBuilder(URL(base), Secret("k"))

    assert builder.credits().url == f"{expected}/api/v1/chat/credit"
    assert builder.submit(TRACK, "").url == f"{expected}/api/v1/wav/generate"


@given(strategies.ids.filter(is_id))
def test_an_id_is_quoted_so_that_it_comes_back(task_id):
    """Any id is one query value to the server, the one we meant."""
    builder = RequestBuilder(URL("https://h.example"), Secret("k"))

    for request in (builder.poll(task_id), builder.music(task_id)):
        request.url.encode("ascii")
        parts = urlsplit(request.url)
        assert {"taskId": [task_id]} == parse_qs(parts.query, strict_parsing=True)
        assert parts.fragment == ""


@pytest.mark.parametrize(
    ("task_id", "quoted"),
    [
        ("a-b_c.d~e9", "a-b_c.d~e9"),
        ("a+b", "a%2Bb"),
        ("a&b=c", "a%26b%3Dc"),
        ("a#b", "a%23b"),
        ("a/b", "a%2Fb"),
        ("a%2Fb", "a%252Fb"),
        ("é", "%C3%A9"),
    ],
)
def test_an_id_is_quoted_where_it_must_be(task_id, quoted):
    """What means something in a query is percent-encoded in an id."""
    builder = RequestBuilder(URL("https://h.example"), Secret("k"))

    assert builder.poll(task_id).url.endswith(f"?taskId={quoted}")
    assert builder.music(task_id).url.endswith(f"?taskId={quoted}")


@given(strategies.ids.filter(is_id), strategies.ids.filter(is_id))
def test_a_track_of_any_script_is_sent(music_task_id, audio_id):
    """Ids of any script come out of a submit's body as they went in."""
    builder = RequestBuilder(URL("https://h.example"), Secret("k"))
    body = json.loads(builder.submit(Track(music_task_id, audio_id), "https://x/").body)

    assert (music_task_id, audio_id) == (body["taskId"], body["audioId"])


def test_the_key_is_in_no_repr(builder):
    """Neither a builder nor a request shows the key."""
    assert "key-1" not in repr(builder)
    assert "key-1" not in repr(builder.submit(TRACK, "https://x/"))


@pytest.mark.parametrize("key", ["k", "sk-kie-0123", "a/b+c=", "~!@#$%^&*()"])
def test_a_key_of_visible_ascii_is_taken(key):
    """No form of key is documented, so that any that fits a header is taken."""
    assert key == parse_api_key(key)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("", ValueError),
        (" ", ValueError),
        ("secret secret", ValueError),
        ("secret\n", ValueError),
        ("secret\r\nX: y", ValueError),
        ("secret\t", ValueError),
        ("secret\x00", ValueError),
        ("secret\x7f", ValueError),
        ("secré", ValueError),
        ("secret\ud800", ValueError),
        (None, TypeError),
        (b"secret", TypeError),
        (5, TypeError),
    ],
    ids=short,
)
def test_a_key_that_fits_no_header_is_refused(key, kind):
    """A key that could not stand in a header is refused by name, and not shown."""
    with pytest.raises(kind, match=r"^api_key must be ") as caught:
        parse_api_key(key)

    assert "secr" not in str(caught.value)


def test_the_refusal_of_a_key_says_what_would_do():
    """The refusal of a key says what a key looks like."""
    with pytest.raises(ValueError, match="visible") as caught:
        parse_api_key("secret ")

    assert str(caught.value) == (
        "api_key must be visible ASCII without blanks or line breaks, and not empty"
    )


HOSTS = frozenset({"mirror.example", "kie-sim"})


@pytest.mark.parametrize(
    "base",
    [
        "https://api.kie.ai",
        "https://api.kie.ai/",
        "https://api.kie.ai/sub/path",
        "https://api.kie.ai:8443",
        "https://192.0.2.1",
        "https://[2001:db8::1]",
        "http://localhost:8080",
        "http://LOCALHOST",
        "http://127.0.0.1:1",
        "http://127.1.2.3",
        "http://[::1]:8080",
        "http://mirror.example",
        "http://Mirror.Example:81/kie",
        "http://kie-sim",
    ],
)
@pytest.mark.parametrize("kind", [str, URL], ids=["str", "URL"])
def test_a_base_url_is_taken_as_text_or_url(base, kind):
    """An https URL is a base URL, and so is a plain one to ourselves or to a named host."""
    assert URL(base) == parse_base_url(kind(base), HOSTS)


@pytest.mark.parametrize(
    ("base", "why"),
    [
        ("", "an absolute http\\(s\\) URL like https://api.kie.ai$"),
        ("api.kie.ai", "absolute"),
        ("//api.kie.ai", "absolute"),
        ("/api", "absolute"),
        ("ftp://api.kie.ai", "absolute"),
        ("https://", "absolute"),
        ("https:///path", "absolute"),
        ("https://h:99999", "absolute"),
        ("https://h:x", "absolute"),
        ("https://[::1", "absolute"),
        ("http://api.kie.ai", "be https"),
        ("http://192.0.2.1", "be https"),
        ("http://10.0.0.1", "be https"),
        ("http://localhost.example", "be https"),
        ("http://127.0.0.1.example", "be https"),
        ("http://sub.mirror.example", "be https"),
        ("https://user@api.kie.ai", "user or password"),
        ("https://@api.kie.ai", "user or password"),
        ("https://:@api.kie.ai", "user or password"),
        ("https://api.kie.ai\n", "blanks or control"),
        (" https://api.kie.ai", "blanks or control"),
        ("https://api.kie.ai/ a", "blanks or control"),
        ("https://api.\tkie.ai", "blanks or control"),
        ("https://api.kie.ai/\x7f", "blanks or control"),
        ("https://api.kie.ai\xa0", "blanks or control"),
        ("https://secret@api.kie.ai\n", "blanks or control"),
        ("https://user:secret@api.kie.ai", "user or password"),
        ("https://:secret@api.kie.ai", "user or password"),
        ("https://api.kie.ai?x=1", "query or a fragment"),
        ("https://api.kie.ai/?", "query or a fragment"),
        ("https://api.kie.ai/#top", "query or a fragment"),
        ("https://api.kie.ai/#", "query or a fragment"),
    ],
    ids=short,
)
def test_a_bad_base_url_is_refused_by_name(base, why):
    """A base URL over which the key would leak, or that is none, is refused by name."""
    with pytest.raises(ValueError, match=rf"^base_url must .*{why}") as caught:
        parse_base_url(base, HOSTS)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("base", [None, 5, b"https://api.kie.ai", ["https://h/"]], ids=short)
def test_a_base_url_of_another_type_is_refused(base):
    """A base URL is a str or a URL."""
    with pytest.raises(TypeError, match=r"^base_url must be "):
        parse_base_url(base, HOSTS)


@pytest.mark.parametrize("base", ["https://h/@x", "https://h/a@b", "https://h//@"])
def test_an_at_sign_in_the_path_is_no_user(base):
    """A path may hold what in front of the host would be a user."""
    assert URL(base) == parse_base_url(base, HOSTS)


@pytest.mark.parametrize(
    ("host", "base"),
    [
        ("Mirror.Example", "http://mirror.example"),
        ("mirror_1", "http://mirror_1:8080"),
        ("b\xfccher.example", "http://b\xfccher.example"),
        ("10.0.0.1", "http://10.0.0.1:8080"),
        ("2001:DB8:0::1", "http://[2001:db8::1]:8080"),
    ],
)
def test_an_insecure_host_is_a_name_or_an_address(host, base):
    """However it is spelled, the host of a base URL is found among the insecure ones."""
    assert URL(base) == parse_base_url(base, parse_hosts([host], "insecure_hosts"))


@pytest.mark.parametrize(
    "host",
    ["", "h:80", "http://h", "h/", "u@h", "[::1]", " h", "h\n", "*.h", ".h", "a..h", "10.0.0.0/8"],
)
@pytest.mark.parametrize("name", ["insecure_hosts", "download_hosts"])
def test_what_could_never_be_a_host_is_refused(host, name):
    """A host with scheme, port or anything else around it is refused, and the setting named."""
    with pytest.raises(ValueError, match=r" must be host names") as caught:
        parse_hosts(["mirror.example", host], name)

    assert str(caught.value) == (
        f"{name} must be host names or IP addresses, without scheme or port: {host!r}"
    )


@pytest.mark.parametrize("hosts", [None, "localhost", 5, b"h", [5], [None]], ids=short)
@pytest.mark.parametrize("name", ["insecure_hosts", "download_hosts"])
def test_hosts_are_several_texts(hosts, name):
    """One str, or no iterable of str, is refused, and the setting named."""
    with pytest.raises(TypeError, match=rf"{name} must be a? ?(several|str)"):
        parse_hosts(hosts, name)


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ((), set()),
        (
            ["Mirror.Example", "mirror.example", "a-b_c.example."],
            {"mirror.example", "a-b_c.example."},
        ),
        ({"127.0.0.1": 1, "2001:DB8:0::1": 2}, {"127.0.0.1", "2001:db8::1"}),
        ({"B\u00dcCHER.example"}, {"b\u00fccher.example"}),
    ],
    ids=short,
)
def test_hosts_are_kept_as_they_are_compared(hosts, expected):
    """Hosts are kept in lower case and addresses in their short form, each once."""
    assert expected == parse_hosts(hosts, "download_hosts")


def test_a_plain_base_url_names_the_way_out():
    """The refusal of plain http names the host and what allows it."""
    with pytest.raises(ValueError, match="must be https") as caught:
        parse_base_url("http://api.kie.ai", frozenset())

    assert str(caught.value) == (
        "base_url must be https: the API key would travel readable to api.kie.ai. "
        "Name the host in insecure_hosts if that is what you want"
    )


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("Localhost", True),
        ("127.0.0.1", True),
        ("127.255.255.255", True),
        ("::1", True),
        ("128.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104 - nothing is bound
        ("::", False),
        ("localhost.", False),
        ("xlocalhost", False),
        ("127.1", False),
        ("", False),
    ],
)
def test_loopback_is_this_machine(host, expected):
    """Only localhost and the loopback addresses are this machine."""
    assert expected == is_loopback(host)


def test_the_paths_are_the_documented_ones():
    """The paths are those of the service's pages."""
    assert [
        "/api/v1/wav/generate",
        "/api/v1/wav/record-info",
        "/api/v1/generate/record-info",
        "/api/v1/common/download-url",
        "/api/v1/chat/credit",
    ] == [
        KIE_WAV.submit_path,
        KIE_WAV.record_path,
        KIE_WAV.music_path,
        KIE_WAV.download_url_path,
        KIE_WAV.credits_path,
    ]
