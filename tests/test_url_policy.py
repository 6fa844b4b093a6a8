from __future__ import annotations

import ipaddress
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from kie_wav_async.downloads.public_address import is_public
from kie_wav_async.downloads.url_policy import (
    check_download_url,
    host_and_port,
    is_trusted,
    join_link,
)
from kie_wav_async.protocol.urls import parse_url
from kie_wav_async.protocol.user_settings import parse_hosts
from links import ACCEPTED, REFUSED
from samples import short


def as_it_stands(text):
    """Return the URL of *text* with not a character changed."""
    return URL(text, encoded=True)


def verify(text, *, insecure=(), only=()):
    """Ask about *text* with these hosts named by the user."""
    check_download_url(
        as_it_stands(text) if isinstance(text, str) else text,
        insecure_hosts=parse_hosts(insecure, "insecure_hosts"),
        download_hosts=parse_hosts(only, "download_hosts"),
    )


def complaint(text, **hosts):
    """Return what is said of *text*; `None` if it is followed."""
    try:
        verify(text, **hosts)
    except ValueError as error:
        return str(error)
    return None


# --- which links are followed ---------------------------------------------------------------


def test_the_tables_are_as_long_as_promised():
    """There are at least 40 links to refuse, and 10 to follow, each once."""
    assert len({text for text, _ in REFUSED}) == len(REFUSED) >= 40
    assert len(set(ACCEPTED)) == len(ACCEPTED) >= 10


@pytest.mark.parametrize(("text", "reason"), REFUSED, ids=short)
def test_a_link_that_may_lead_astray_is_refused(text, reason):
    """A link that is not plainly one to the public internet is refused with the reason."""
    assert reason in (complaint(text) or "")


@pytest.mark.parametrize("text", ACCEPTED, ids=short)
def test_a_plain_link_is_followed(text):
    """An https link to a public host is followed, however its path and query look."""
    assert complaint(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "https://\uff11\uff12\uff17.\uff10.\uff10.\uff11/a.wav",
        "https://127\u30020\u30020\u30021/a.wav",
        "https://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/a.wav",
        "https://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3/a.wav",
        "https://\uff12130706433/a.wav",
        "https://127.0.0.1\u3002/a.wav",
    ],
    ids=short,
)
def test_a_look_alike_is_what_it_looks_like(text):
    """A host in letters and dots that stand for ASCII ones is refused as those would be."""
    assert complaint(URL(text)) is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "ftp://user:secret@h.example/secret?secret",
            "the link is no absolute https URL",
        ),
        (
            "http://h.example/secret?secret#secret",
            ("no file is fetched from http://h.example: plain http could be changed on its way"),
        ),
        (
            "https://user:secret@h.example:99/secret",
            "no file is fetched from https://h.example: the link must not hold a user or password",
        ),
        (
            "https://user:secret/@h.example/",
            (
                "no file is fetched from https://user: "
                "the host is neither a name nor an IP address, or its port is none"
            ),
        ),
        (
            "https://h.example:99999/?secret",
            (
                "no file is fetched from https://h.example: "
                "the host is neither a name nor an IP address, or its port is none"
            ),
        ),
        (
            "https://[::1%25secret/]/",
            None,
        ),
        (
            "https://[fe80::1]:99/?secret",
            ("no file is fetched from https://[fe80::1]: the address is not public"),
        ),
        (
            "https://h.example:99/?secret",
            ("no file is fetched from https://h.example: port 99 is not 443"),
        ),
        (
            "https://h\x1b[31m\u202e.example/",
            None,
        ),
        (
            "https://127.1/",
            (
                "no file is fetched from https://127.1: "
                "the host is an IP address in another notation than the usual one"
            ),
        ),
        (
            f"https://{'x' * 200}/secret",
            (f"no file is fetched from https://{'x' * 80}: the host is no name of the internet"),
        ),
        (
            "https://h.example/a secret",
            (
                "no file is fetched from https://h.example: "
                "the link must not have blanks, backslashes or control characters"
            ),
        ),
        (
            f"https://h.example/{'secret' * 2_000}",
            (
                "no file is fetched from https://h.example: "
                "the link must not be longer than 8192 characters"
            ),
        ),
    ],
    ids=short,
)
def test_a_refusal_shows_no_more_than_the_host(text, expected):
    """The text of a refusal names the host, and nothing that opens a file."""
    try:
        url = as_it_stands(text)
    except ValueError:
        assert expected is None
        return
    found = complaint(url)

    assert expected in {None, found}
    assert "secret" not in found
    assert found.isprintable()


def test_a_refusal_hides_what_yarl_said():
    """Neither the text of a refusal nor what it came from shows a port or a password."""
    with pytest.raises(ValueError, match="neither") as caught:
        verify("https://h.example:99999/?secret")

    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


# --- hosts that the user names --------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080/a.wav"),
        ("127.0.0.1", "https://127.0.0.1/a.wav"),
        ("localhost", "http://localhost:8080/a.wav"),
        ("LOCALHOST", "http://LocalHost./a.wav"),
        ("localhost.", "http://localhost/a.wav"),
        ("mirror", "http://mirror/a.wav"),
        ("mirror.example", "http://mirror.example/a.wav"),
        ("mirror.example", "https://Mirror.Example.:8443/a.wav"),
        ("::1", "http://[::1]:8080/a.wav"),
        ("0:0::1", "http://[0:0:0:0:0:0:0:1]/a.wav"),
        ("FD00::1", "https://[fd00:0::1]/a.wav"),
        ("169.254.169.254", "http://169.254.169.254/a.wav"),
        ("b\u00fccher.example", "http://xn--bcher-kva.example/a.wav"),
        ("B\u00dcCHER.example", "http://XN--BCHER-KVA.example./a.wav"),
        ("xn--bcher-kva.example", "http://xn--bcher-kva.example/a.wav"),
        ("127.1", "http://127.1/a.wav"),
    ],
)
def test_an_insecure_host_is_taken_at_its_word(host, text):
    """From a host that the user named, plain http, any port and any address are taken."""
    assert complaint(text) is not None
    assert complaint(text, insecure=["other.example", host]) is None
    assert is_trusted(as_it_stands(text), parse_hosts([host], "insecure_hosts"))
    assert not is_trusted(as_it_stands(text), frozenset())
    assert not is_trusted(as_it_stands(text), frozenset({"other.example"}))


@pytest.mark.parametrize("text", ["http://b\u00fccher.example/", "http://B\u00dcCHER.example./"])
@pytest.mark.parametrize("host", ["b\u00fccher.example", "xn--bcher-kva.example."])
def test_an_insecure_host_is_known_in_its_own_script(host, text):
    """A host is found among the user's in either spelling, in its script and as DNS has it."""
    assert complaint(URL(text), insecure=[host]) is None


@pytest.mark.parametrize(
    "text",
    [
        "http://mirror.example.com/a.wav",
        "http://a.mirror.example/a.wav",
        "http://xmirror.example/a.wav",
        "http://mirror-example/a.wav",
        "http://127.0.0.2/a.wav",
        "https://127.1/a.wav",
        "https://2130706433/a.wav",
        "http://[::ffff:127.0.0.1]/a.wav",
        "http://mirror.example@other.example/a.wav",
        "http://@mirror.example/a.wav",
        "http://user:secret@mirror.example/a.wav",
        "ftp://mirror.example/a.wav",
        "//mirror.example/a.wav",
        "http://mirror.example/a b.wav",
        "http://mirror.example:99999/a.wav",
        "http://mirror.example%2f/a.wav",
        "http:///mirror.example",
    ],
)
def test_an_insecure_host_is_no_other(text):
    """What the user allows of one host is allowed of no other, and a bad link stays one."""
    assert complaint(text, insecure=["mirror.example", "127.0.0.1"]) is not None


@pytest.mark.parametrize(
    "text",
    [
        "https://other.example/a.wav",
        "https://a.cdn.example/a.wav",
        "https://cdn.example.com/a.wav",
        "https://8.8.4.4/a.wav",
        "http://mirror.example/a.wav",
        "https://mirror.example/a.wav",
    ],
)
def test_where_hosts_are_named_there_are_no_others(text):
    """If the user names hosts to download from, every other is refused, an insecure one too."""
    found = complaint(text, only=["cdn.example", "8.8.8.8"], insecure=["mirror.example"])

    assert found.endswith(": the host is none of download_hosts")


@pytest.mark.parametrize(
    "text",
    [
        "https://cdn.example/a.wav",
        "https://CDN.Example./a.wav",
        "https://cdn.example:8443/a.wav",
        "https://8.8.8.8/a.wav",
        "https://8.8.8.8:8443/a.wav",
        "https://[2606:4700:0::1]:8443/a.wav",
        "https://xn--bcher-kva.example:1/a.wav",
    ],
)
def test_a_named_host_is_downloaded_from(text):
    """A host to download from is known however it is spelled, and under every port."""
    only = ["cdn.example", "8.8.8.8", "2606:4700::1", "b\u00fccher.example"]

    assert complaint(text, only=only) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http://cdn.example/a.wav", "plain http"),
        ("https://127.0.0.1/a.wav", "not public"),
        ("https://[fd00::1]/a.wav", "not public"),
        ("https://localhost/a.wav", "internet"),
        ("https://127.1/a.wav", "notation"),
        ("https://user@cdn.example/a.wav", "user"),
    ],
)
def test_a_named_host_is_no_insecure_one(text, reason):
    """Naming a host to download from allows neither plain http nor private addresses."""
    only = ["cdn.example", "127.0.0.1", "fd00::1", "localhost", "127.1"]

    assert reason in complaint(text, only=only)
    if reason != "user":
        assert complaint(text, only=only, insecure=only) is None


# --- whatever the text ----------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *("https://", "http://", "https:", "//", "/", "\\", "@", ":", "#", "?", "%", ".", "[", "]"),
        *("127.0.0.1", "::1", "2130706433", "0x7f", "localhost", "example", "com", "xn--", "xn--a"),
        *("user", "443", "8443", "99999", "\uff11", "\u3002", "\u00fc", "\u00ad", "\ud800", " "),
        *("\n", "\x00", "%2e", "%25", "8.8.8.8", "2606:4700::1", "a", "-", "_", "..", "*"),
    ]
)
TEXTS = st.lists(PIECES, max_size=12).map("".join) | st.text()
LINKS = TEXTS | TEXTS.map("https://".__add__)
SETS = st.frozensets(st.sampled_from(["localhost", "127.0.0.1", "::1", "example.com", "a"]))


def urls_of(text):
    """Return *text* as every URL that the package or a user may make of it."""
    made = [parse_url(text)]
    for encoded in (True, False):
        try:
            made.append(URL(text, encoded=encoded))
        except ValueError:
            continue
    return [url for url in made if url is not None]


@given(LINKS)
def test_any_link_is_followed_or_refused(text):
    """Whatever the text, a link is refused by a `ValueError` or leads to a public host by https."""
    for url in urls_of(text):
        found = complaint(url)
        if found is not None:
            assert found.isprintable()
            continue
        assert url.scheme == "https"
        assert url.port == 443
        assert "@" not in url.raw_authority
        host = url.raw_host
        try:
            ipaddress.ip_address(host)
        except ValueError:
            assert "." in host
            assert set(host) <= set(string.ascii_letters + string.digits + "-_.")
            assert not host.rstrip(".").rpartition(".")[2].isdigit()
        else:
            assert is_public(host)


@given(LINKS, SETS, SETS)
def test_any_link_is_judged_whatever_hosts_are_named(text, insecure, only):
    """With any hosts named, a link is judged, and only one that is trusted goes unsecured."""
    for url in urls_of(text):
        trusted = is_trusted(url, insecure)
        if complaint(url, insecure=insecure, only=only) is None:
            assert url.scheme in {"http", "https"}
            assert trusted or url.scheme == "https"


@pytest.mark.parametrize(
    "text",
    [
        "https://" + "a" * 1_000_000,
        "https://" + "xn--" + "a" * 1_000_000 + ".example/",
        "https://" + "xn--a." * 100_000 + "example/",
        "https://" + "1" * 1_000_000 + "/",
        "https://[" + ":" * 250 + "]/",
        "https://a.example/" + "a" * 1_000_000,
        "https://" + "xn--" + "9" * 230 + ".example/",
    ],
    ids=short,
)
def test_a_monstrous_link_is_refused_like_any_other(text):
    """However long a link is, its refusal is short, and comes before yarl is asked for its host."""
    try:
        url = as_it_stands(text)
    except ValueError:
        return

    assert len(complaint(url)) < 250


# --- redirects ------------------------------------------------------------------------------

BASE = "https://h.example/a/b.wav?sig=1"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://o.example/c.wav", "https://o.example/c.wav"),
        ("http://o.example/c.wav", "http://o.example/c.wav"),
        ("HTTPS://O.Example/c.wav", "https://O.Example/c.wav"),
        ("//o.example/c.wav", "https://o.example/c.wav"),
        ("//127.0.0.1/c.wav", "https://127.0.0.1/c.wav"),
        ("/c.wav", "https://h.example/c.wav"),
        ("c.wav", "https://h.example/a/c.wav"),
        ("./c.wav", "https://h.example/a/c.wav"),
        ("../c.wav", "https://h.example/c.wav"),
        ("../../../c.wav", "https://h.example/c.wav"),
        ("?sig=2", "https://h.example/a/b.wav?sig=2"),
        ("#part", "https://h.example/a/b.wav?sig=1#part"),
        (" /c.wav\t", "https://h.example/c.wav"),
        ("https://user:secret@o.example/", "https://user:secret@o.example/"),
        ("https://@o.example/", "https://@o.example/"),
        # As sent.
        ("/c%2Fd%2fe%7E~%41?x=%2F&y=a+b%20c&z", "https://h.example/c%2Fd%2fe%7E~%41?x=%2F&y=a+b%20c&z"),
        ("/c%zz%", "https://h.example/c%zz%"),
        ("/a;b=c/d;e", "https://h.example/a;b=c/d;e"),
        ("/[]{}|^`\"'<>!$&()*,:;=@~", "https://h.example/[]{}|^`\"'<>!$&()*,:;=@~"),
        # What could not stand in a request.
        ("/c d.wav", "https://h.example/c%20d.wav"),
        ("/\u96ea.wav?\u00fc=%2f", "https://h.example/%E9%9B%AA.wav?%C3%BC=%2f"),
        ("/\udce9.wav", "https://h.example/%E9.wav"),
        ("/\u00a0\u2028\u202e", "https://h.example/%C2%A0%E2%80%A8%E2%80%AE"),
        ("X.wavX", "https://h.example/a/X.wavX"),
        ("https://o.example/" + "c" * 8_174, "https://o.example/" + "c" * 8_174),
    ],
    ids=short,
)  # fmt: skip
def test_a_redirect_leads_where_it_says(location, expected):
    """Relative or not, where an answer redirects to is kept as sent but for what must be quoted."""
    found = join_link(as_it_stands(BASE), location)

    assert expected == str(found)


@pytest.mark.parametrize(
    "location",
    [
        "", " ", "\t", "ftp://o.example/", "javascript:alert(1)", "data:,a", "file:///etc/passwd",
        "mailto:a@o.example", "o.example:443/c.wav", "https://o.example:99999/",
        "https://o.example:x/", "https://[::1", "https://[x]/", "https://", "https:", "https:c.wav",
        "https:/c.wav", "https:///c.wav", "//", "///", "///o.example/", "//:443/", "c:d",
        "https://\\o.example/", "\\\\o.example/c.wav", "/\\o.example", "/c\\d",
        "/c\nd", "/c\r\nSet-Cookie: a=b", "/c\td", "/c\x00", "/c\x7f", "\x0b/c",
        "/\ud800", "/" + "c" * 8_192,
        "https://o.example/" + "c" * 8_175, "https://" + "o" * 300 + "/",
        "https://" + "\u96ea" * 100_000,
    ],
    ids=short,
)  # fmt: skip
def test_a_redirect_that_leads_nowhere_is_refused(location):
    """A redirect to no http(s) URL is a `ValueError` that shows nothing of it."""
    with pytest.raises(ValueError, match=r"^the redirect leads to no") as caught:
        join_link(as_it_stands(BASE), location)

    assert "the redirect leads to no http(s) URL" == str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_host_in_another_script_is_no_redirect():
    """A redirect names its host as DNS does, or is refused when it is verified."""
    found = join_link(as_it_stands(BASE), "https://b\u00fccher.example/")

    assert "neither" in complaint(found)


@pytest.mark.parametrize(("text", "reason"), REFUSED, ids=short)
def test_a_redirect_is_judged_like_a_link(text, reason):
    """What is refused as a link is refused as a redirect, unless joining makes it a right one."""
    try:
        found = join_link(as_it_stands(BASE), text)
    except ValueError:
        return

    if found.raw_host != "h.example":
        assert complaint(found) is not None or reason in {"absolute", "blanks"}


@given(LINKS)
def test_any_location_leads_somewhere_or_nowhere(text):
    """Whatever a redirect says, it leads to an http(s) URL in ASCII, or is a `ValueError`."""
    try:
        found = join_link(as_it_stands(BASE), text)
    except ValueError:
        return

    assert found.scheme in {"http", "https"}
    assert str(found).isascii()
    assert str(found).isprintable()
    assert " " not in str(found)
    assert found.raw_host


# --- which host it is ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://Media.Example/x.wav", "media.example:443"),
        ("https://media.example:443/x.wav", "media.example:443"),
        ("https://media.example:8443/x.wav", "media.example:8443"),
        ("http://media.example/x.wav", "media.example:80"),
        ("https://media.example./x.wav", "media.example.:443"),
        ("https://[2001:DB8:0::1]/x.wav", "2001:db8::1:443"),
        ("https://user:pw@media.example/x.wav", None),
        ("https://media.example:99999/x.wav", None),
    ],
)
def test_a_host_goes_with_its_port(text, expected):
    """Whatever its case and notation, a host is told with its port; what is none, not at all."""
    assert expected == host_and_port(as_it_stands(text))


def test_a_host_of_any_script_is_told_in_ascii():
    """A name in another script is the same host as its form for the DNS."""
    expected = "xn--bcher-kva.example:443"
    assert expected == host_and_port(URL("https://b\u00fccher.example/"))
