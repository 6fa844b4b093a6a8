from __future__ import annotations

import base64
import collections
import hashlib
import hmac
import shutil
import subprocess
import traceback

import pytest
from multidict import CIMultiDict, CIMultiDictProxy, MultiDict

from kie_wav_async._support.secret import Secret
from kie_wav_async.callbacks.signature import (
    Signed,
    parse_keys,
    read_signed,
    shape_signed,
    sign,
    verify_signed,
    verify_tolerance,
)
from kie_wav_async.errors import SignatureError
from samples import SIGNED_AT, TASK_ID, WEBHOOK_KEY, short, signature, signed_pairs

KEYS = (WEBHOOK_KEY.encode(),)
GOOD_TIME = str(SIGNED_AT)
GOOD = signature()
TIME_NAME = "X-Webhook-Timestamp"
SIGNATURE_NAME = "X-Webhook-Signature"
BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

# Made with the documented algorithm, apart from this package.
VECTORS = [
    (
        "test-webhook-hmac-key",
        "ee9c2715375b7837f8bb51d641ff5863",
        "1769670760",
        "xG6/yOyrMyJtUdc1yjmHpKLHSHF3MpzOPa6uxSj3qb4=",
    ),
    (
        "fixture-webhook-hmac-key",
        "task-abc123",
        "1752566400",
        "8oEpanPHHOCLMuUEFuoywEoNJOwxaD3lzjr/vR3duic=",
    ),
    ("shared-secret", "tid-1", "1725300000", "BAOWHzNFHSzMVTVpV2cjvgXoT0x8sGf5Gf50g2WXPA4="),
]


def verify(headers, *, task_id=TASK_ID, keys=KEYS, now_unix_s=SIGNED_AT, **settings):
    """Judge headers as a receiver does that has read the id from the body."""
    verify_signed(
        task_id, read_signed(headers), keys=Secret(keys), now_unix_s=now_unix_s, **settings
    )


def refusal_of(headers, **settings):
    """Return the reason for which headers are refused; fail if they are not."""
    with pytest.raises(SignatureError) as caught:
        verify(headers, **settings)
    return caught.value.reason


def pairs(timestamp=GOOD_TIME, signed=GOOD):
    """Return the two headers, genuine but for what is given."""
    return [(TIME_NAME, timestamp), (SIGNATURE_NAME, signed)]


@pytest.fixture
def digests(monkeypatch):
    """Note the key of each HMAC that is computed."""
    noted = []
    digest = hmac.digest

    def noting(key, message, kind):
        noted.append(key)
        return digest(key, message, kind)

    monkeypatch.setattr(hmac, "digest", noting)
    return noted


@pytest.fixture
def comparisons(monkeypatch):
    """Note what is compared in constant time."""
    noted = []
    compare = hmac.compare_digest

    def noting(one, other):
        noted.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noting)
    return noted


# --- what is signed ----------------------------------------------------------------------


@pytest.mark.parametrize(("key", "task_id", "timestamp", "expected"), VECTORS)
def test_known_answers(key, task_id, timestamp, expected):
    """What we sign is what the documented algorithm signs."""
    assert expected == sign(task_id, timestamp, key)
    assert expected == sign(task_id, int(timestamp), key)
    assert expected.encode() == signature(task_id, timestamp, key)


@pytest.mark.parametrize(("key", "task_id", "timestamp", "signed"), VECTORS)
def test_known_answers_are_verified(key, task_id, timestamp, signed):
    """What the documented algorithm signed is genuine, whatever the length of the key."""
    headers = pairs(timestamp, signed)

    verify(headers, task_id=task_id, keys=(key.encode(),), now_unix_s=float(timestamp))


def test_the_official_example_has_the_shape():
    """The headers of the service's own example are of the right shape."""
    found = read_signed(
        {
            "X-Webhook-Timestamp": "1769670760",
            "X-Webhook-Signature": "KxDlpbbq0GDOKqm0+FuJpJWTzY8baHSjhEt4kwElqQI=",
        }
    )

    assert b"1769670760" == found.timestamp
    assert b"KxDlpbbq0GDOKqm0+FuJpJWTzY8baHSjhEt4kwElqQI=" == found.signature


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
@pytest.mark.parametrize(
    ("key", "task_id"),
    [
        *((key, task_id) for key, task_id, _, _ in VECTORS),
        (WEBHOOK_KEY, TASK_ID),
        ("schlüssel-mit-ümlaut-und-雪", TASK_ID),
        ("k" * 64, TASK_ID),
        ("k" * 65, TASK_ID),
        ("k" * 200, "a" * 128),
    ],
    ids=short,
)
def test_openssl_signs_the_same(key, task_id):
    """An implementation nobody here wrote signs the same."""
    made = subprocess.run(  # noqa: S603 - found on the path, with arguments of ours
        [
            str(shutil.which("openssl")),
            *("dgst", "-sha256", "-mac", "HMAC", "-binary"),
            *("-macopt", f"hexkey:{key.encode().hex()}"),
        ],
        input=f"{task_id}.{GOOD_TIME}".encode(),
        capture_output=True,
        check=True,
        timeout=30,
    ).stdout

    assert base64.b64encode(made).decode() == sign(task_id, SIGNED_AT, key)


@pytest.mark.parametrize(
    ("timestamp", "message"),
    [
        (0, b"a.0"),
        (-5, b"a.-5"),
        (10**20, b"a.100000000000000000000"),
        ("", b"a."),
        ("007", b"a.007"),
        (" 1.5\n", b"a. 1.5\n"),
        ("٣", b"a.\xd9\xa3"),
        ("\ud800", b"a.\xed\xa0\x80"),
    ],
    ids=short,
)
def test_any_time_can_be_signed(timestamp, message):
    """What would be refused on arrival can be signed all the same, as it stands."""
    expected = base64.b64encode(hmac.new(b"k", message, hashlib.sha256).digest())

    assert expected.decode() == sign("a", timestamp, "k")


def test_any_id_and_key_can_be_signed():
    """Nothing but the types and a key is asked of who signs, lone surrogates included."""
    expected = hmac.new(b"\xed\xb3\xbf ", b"\xed\xa0\x80.\n.1", hashlib.sha256).digest()

    assert base64.b64encode(expected).decode() == sign("\ud800.\n", 1, "\udcff ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((b"a", 1, "k"), "task_id must be a str, not bytes"),
        ((None, 1, "k"), "task_id must be a str, not NoneType"),
        (("a", 1.0, "k"), "timestamp must be an int or a str, not float"),
        (("a", True, "k"), "timestamp must be an int or a str, not bool"),
        (("a", b"1", "k"), "timestamp must be an int or a str, not bytes"),
        (("a", None, "k"), "timestamp must be an int or a str, not NoneType"),
        (("a", 1, b"k"), "key must be a str, not bytes"),
        (("a", 1, None), "key must be a str, not NoneType"),
    ],
    ids=short,
)
def test_a_wrong_type_is_not_signed(arguments, complaint):
    """Nothing is signed that only looks like an id, a time or a key."""
    with pytest.raises(TypeError) as caught:
        sign(*arguments)

    assert complaint == str(caught.value)


@pytest.mark.parametrize("key", ["", " ", "\t\n", "\u3000"], ids=short)
def test_without_a_key_nothing_is_signed(key):
    """A blank key is a mistake and no key."""
    with pytest.raises(ValueError, match=r"^key must not be empty or blank$"):
        sign("a", 1, key)


# --- bytes --------------------------------------------------------------------------------


def test_every_changed_byte_is_refused():
    """Each of the 13,770 ways to change one byte of time or signature is refused, and why."""
    reasons = collections.Counter()
    for value, is_time in ((GOOD_TIME.encode(), True), (GOOD, False)):
        for place in range(len(value)):
            for byte in set(range(256)) - {value[place]}:
                changed = value[:place] + bytes([byte]) + value[place + 1 :]
                reason = refusal_of(pairs(changed, GOOD) if is_time else pairs(GOOD_TIME, changed))
                # Another time is another signature's; what is no time is not looked into.
                is_digit = byte in (b"0123456789" if place else b"123456789")
                expected = "timestamp" if is_time and not is_digit else "signature"
                assert expected == reason, (is_time, place, byte)
                reasons[reason] += 1

    assert {"timestamp": 10 * 255 - 89, "signature": 44 * 255 + 89} == reasons


def test_the_genuine_one_is_not_refused():
    """What the changes are made to is genuine, as text and as bytes."""
    verify(signed_pairs())
    verify(pairs())
    verify(pairs(GOOD_TIME, GOOD.decode()))
    verify(pairs(GOOD_TIME.encode(), GOOD.decode()))


def in_script(zero, part=slice(None)):
    """Return the genuine time with the digits of *part* in the script whose zero is given."""
    others = GOOD_TIME.translate({ord("0") + value: zero + value for value in range(10)})
    found = "".join(
        other if index in range(10)[part] else digit
        for index, (digit, other) in enumerate(zip(GOOD_TIME, others, strict=True))
    )
    assert SIGNED_AT == int(found)
    return found


BAD_TIMES = [
    # Lengths.
    "", "0", "1", "176967076", "17696707600", "01769670760", "9" * 18, "9" * 5000, "1" + "0" * 9000,
    # Zeros in front.
    "0769670760", "0000000000", "0000000001",
    # Blanks and what looks like nothing.
    " 1769670760", "1769670760 ", " 176967076", "176967076 ", "\t1769670760", "1769670760\n",
    "176967076\n", "\n1769670760", "\n769670760", "1769670760\r\n", "1769670760\r",
    "1769670760\x0b", "1769670760\x00", "\x00769670760", "1769670760\u2028",
    "1769670760\x85", "176967076\xa0",
    "\ufeff769670760", "176967076\u200b", "17696 7076", "17696\n7076",
    # What `int` and `float` take as well.
    "+1769670760", "+176967076", "-1769670760", "-176967076", "1_769_670_760", "17_9670760",
    "1769670760.0", "17696707.6", "1769670760.", ".769670760", "1.7e9", "1.76967e09", "17696707e2",
    "1E9", "nan", "inf", "Infinity", "0x697b06e8", "0o15136603", "0b11010010", "1769670760L",
    # Digits of other scripts: each of these is ten characters, and int() knows them.
    *(in_script(zero) for zero in (0x660, 0x6F0, 0x966, 0xFF10, 0x1D7CE)),
    *(in_script(0x660, part) for part in (slice(1), slice(4, 5), slice(9, 10))),
    # Digits that are no numbers, numbers that are no digits.
    "176967076²", "①769670760", "Ⅷ769670760", "一769670760",
    # Lists, quotes, other forms.
    "1769670760,1769670760", "1769670760;", "1769670760,", '"1769670760"', "t=1769670760",
    "176967076%30", "1769670760000", "2026-01-29", "null", "None", "true", "task.1769670760",
    # No text.
    "\ud800769670760", "176967076\udcff", "\udcd9\udca1769670760", "\xff769670760",
]  # fmt: skip


@pytest.mark.parametrize("timestamp", BAD_TIMES, ids=short)
@pytest.mark.parametrize("as_bytes", [False, True], ids=["str", "bytes"])
def test_only_ten_digits_are_a_time(timestamp, as_bytes):
    """A time is ten digits of ASCII, and whatever else is refused even if it is signed."""
    # As servers that read headers as latin-1, utf-8 or with surrogateescape see them.
    text = timestamp.encode("utf-8", "surrogatepass")
    value = text if as_bytes else timestamp

    assert "timestamp" == refusal_of(pairs(value, signature(timestamp=text)))


@pytest.mark.parametrize(
    "timestamp",
    [b"\xff769670760", b"176967076\xff", b"\xb2769670760", b"1769670760\xff", b"\xd9\xa1769670760"],
    ids=short,
)
def test_bytes_beyond_ascii_are_no_time(timestamp):
    """A byte that is no ASCII is refused as everything else is, and breaks nothing."""
    as_servers_have_it = [
        timestamp,
        timestamp.decode("latin-1"),
        timestamp.decode("utf-8", "surrogateescape"),
    ]

    for value in as_servers_have_it:
        assert "timestamp" == refusal_of(pairs(value, signature(timestamp=timestamp)))


@pytest.mark.parametrize("timestamp", ["1000000000", "1999999999", "9999999999", "9876543210"])
def test_every_ten_digits_are_a_time(timestamp):
    """From 2001 to 2286 every second has a time that is read."""
    verify(pairs(timestamp, signature(timestamp=timestamp)), now_unix_s=int(timestamp))


def spare_bits_changed():
    """Return the signature with its unused bits set: the same bytes to who decodes it."""
    last = BASE64.index(GOOD[42])
    changed = GOOD[:42] + BASE64[last ^ 1 : (last ^ 1) + 1] + b"="
    assert base64.b64decode(GOOD) == base64.b64decode(changed)
    return changed


BAD_SIGNATURES = {
    "empty": b"",
    "without its padding": GOOD[:43],
    "one more padding": GOOD + b"=",
    "one character short": GOOD[1:],
    "one character more": b"A" + GOOD,
    "a zero byte behind": GOOD + b"\x00",
    "data after the padding": GOOD + b"AAAA",
    "data after the padding, cut": GOOD[4:] + b"AAAA",
    "twice": GOOD + GOOD,
    "twice, with a comma": GOOD + b"," + GOOD,
    "twice, with a blank": GOOD + b" " + GOOD,
    "spare bits changed": spare_bits_changed(),
    "url-safe alphabet": GOOD.replace(b"+", b"-").replace(b"/", b"_"),
    "blank for plus": GOOD.replace(b"+", b" "),
    "lower case": GOOD.lower(),
    "upper case": GOOD.upper(),
    "cases swapped": GOOD.swapcase(),
    "blank before": b" " + GOOD,
    "blank behind": GOOD + b" ",
    "newline before": b"\n" + GOOD,
    "newline behind": GOOD + b"\n",
    "newline for padding": GOOD[:43] + b"\n",
    "newline inside": GOOD[:20] + b"\n" + GOOD[20:],
    "newline inside, cut": GOOD[:20] + b"\n" + GOOD[20:43],
    "junk inside": GOOD[:20] + b"!" + GOOD[20:],
    "junk inside, cut": GOOD[:20] + b"!" + GOOD[20:43],
    "padding inside": GOOD[:20] + b"=" + GOOD[20:43],
    "hex": base64.b64decode(GOOD).hex().encode(),
    "hex of the right length": base64.b64decode(GOOD).hex().encode()[:44],
    "digest": base64.b64decode(GOOD),
    "version before": b"v1," + GOOD,
    "algorithm before": b"sha256=" + GOOD,
    "quoted": b'"' + GOOD + b'"',
    "percent-encoded": GOOD.replace(b"=", b"%3D"),
    "reversed": GOOD[::-1],
    "all A": b"A" * 44,
    "all padding": b"=" * 44,
    "all zero": b"\x00" * 44,
    "all blank": b" " * 44,
    "not ASCII": b"\xff" * 44,
    "ends beyond ASCII": GOOD[:43] + b"\xbd",
    "9,000 characters": b"A" * 9000,
}


@pytest.mark.parametrize("signed", BAD_SIGNATURES.values(), ids=BAD_SIGNATURES)
def test_only_our_own_bytes_are_a_signature(signed):
    """A signature is the very bytes that we should have made, and nothing that decodes to them."""
    assert signed != GOOD

    assert "signature" == refusal_of(pairs(GOOD_TIME, signed))
    assert "signature" == refusal_of(pairs(GOOD_TIME, signed.decode("latin-1")))
    assert "signature" == refusal_of(pairs(GOOD_TIME, signed.decode("utf-8", "surrogateescape")))


@pytest.mark.parametrize(
    "signed",
    [
        "\ud800" * 44,
        GOOD.decode()[:43] + "\udc3d",
        "".join(chr(ord(character) + 0xFEE0) for character in GOOD.decode()),
        "\u0130" * 44,
        GOOD.decode()[:43] + "\u207c",
    ],
    ids=short,
)
def test_text_beyond_ascii_is_no_signature(signed):
    """Text that is no ASCII is refused as everything else is, however it looks."""
    assert "signature" == refusal_of(pairs(GOOD_TIME, signed))


MESSAGE = f"{TASK_ID}.{GOOD_TIME}".encode()


def otherwise(message=MESSAGE, key=KEYS[0], kind="sha256"):
    """Sign by another algorithm than the documented one."""
    return base64.b64encode(hmac.new(key, message, kind).digest())[:44].ljust(44, b"=")


@pytest.mark.parametrize(
    "signed",
    [
        otherwise(kind="sha1"),
        otherwise(kind="sha512"),
        otherwise(kind="md5"),
        otherwise(message=TASK_ID.encode()),
        otherwise(message=GOOD_TIME.encode()),
        otherwise(message=f"{GOOD_TIME}.{TASK_ID}".encode()),
        otherwise(message=f"{TASK_ID}{GOOD_TIME}".encode()),
        otherwise(message=f"{TASK_ID}.{GOOD_TIME}\n".encode()),
        otherwise(message=f"{TASK_ID}..{GOOD_TIME}".encode()),
        otherwise(message=f"{TASK_ID.upper()}.{GOOD_TIME}".encode()),
        otherwise(message=b""),
        otherwise(key=b""),
        otherwise(key=KEYS[0] + b" "),
        otherwise(key=KEYS[0].upper()),
        otherwise(key=KEYS[0][::-1]),
        otherwise(key=base64.b64encode(KEYS[0])),
        base64.b64encode(hashlib.sha256(KEYS[0] + MESSAGE).digest()),
    ],
    ids=short,
)
def test_only_the_documented_algorithm_signs(signed):
    """What is signed another way, or is another text, is forged."""
    assert 44 == len(signed)

    assert "signature" == refusal_of(pairs(GOOD_TIME, signed))


def test_what_has_not_the_length_costs_no_digest(digests):
    """A signature of another length, or no time, is refused before anything is computed."""
    for timestamp, signed in ((GOOD_TIME, GOOD[:43]), (GOOD_TIME, GOOD + b"="), ("1" * 11, GOOD)):
        with pytest.raises(SignatureError):
            read_signed(pairs(timestamp, signed))
        refusal_of(pairs(timestamp, signed))

    assert [] == digests


def test_the_time_is_looked_at_before_the_signature():
    """Where both are malformed the reason is the time."""
    assert "timestamp" == refusal_of(pairs("1", "A"))


@pytest.mark.parametrize(
    "value", [None, SIGNED_AT, float(SIGNED_AT), [GOOD_TIME], {}, bytearray(GOOD_TIME, "ascii")]
)
def test_what_is_no_text_has_no_shape(value):
    """A header that is missing, a number or whatever else is malformed, and no error of ours."""
    with pytest.raises(SignatureError) as no_time:
        shape_signed(value, GOOD)
    with pytest.raises(SignatureError) as no_signature:
        shape_signed(GOOD_TIME, value)

    assert "timestamp" == no_time.value.reason
    assert "signature" == no_signature.value.reason


# --- headers ------------------------------------------------------------------------------


class OwnMultiDict:
    """The headers of a framework that are neither a mapping nor pairs, but have items."""

    def __init__(self, held):
        self._held = held

    def items(self):
        return iter(self._held)


NOISE = [
    ("Host", "h.example"),
    ("X-Webhook-Timestamps", "1"),
    ("X_Webhook_Timestamp", "1"),
    ("X-Webhook-Timestamp ", "1"),
    (" X-Webhook-Signature", "1"),
    ("X-Webhook-Signature\n", "1"),
    ("X-Webhook", "1"),
    ("Webhook-Signature", "1"),
    ("", "1"),
    ("x-webhoo\u212a-timestamp", "1"),
    ("X-Webhoo\u212a-Signature", "1"),
    ("x-webhook-t\u0131mestamp", "1"),
    ("x-webhook-\u017fignature", "1"),
    ("\ud800", "\ud800"),
    ("cookie", "a=b"),
    ("Cookie", "c=d"),
]
RAW_NOISE = [(name.encode("utf-8", "surrogatepass"), b"\xff") for name, _ in NOISE]


SHAPES = {
    "dict": dict(pairs()),
    "dict of text": {TIME_NAME.lower(): GOOD_TIME, SIGNATURE_NAME.upper(): GOOD.decode()},
    "dict of bytes": {TIME_NAME.lower().encode(): GOOD_TIME.encode(), b"X-WEBHOOK-SIGNATURE": GOOD},
    "mixed case": {"x-wEbHoOk-tImEsTaMp": GOOD_TIME, "X-WeBhOoK-SiGnAtUrE": GOOD.decode()},
    "OrderedDict": collections.OrderedDict(pairs()),
    "ChainMap": collections.ChainMap({}, dict(pairs())),
    "list": pairs(),
    "tuple": tuple(pairs()),
    "set": set(pairs()),
    "lists": [list(pair) for pair in pairs()],
    "the other way round": pairs()[::-1],
    "raw": [(name.lower().encode(), value) for name, value in pairs(GOOD_TIME.encode())],
    "noise before": NOISE + pairs(),
    "noise behind": pairs() + NOISE,
    "all kinds of noise": [*NOISE, *RAW_NOISE, *pairs(), (5, 5), (None, None)],
    "MultiDict": MultiDict(NOISE + pairs()),
    "CIMultiDict": CIMultiDict(pairs(GOOD_TIME, GOOD.decode())),
    "CIMultiDictProxy": CIMultiDictProxy(CIMultiDict(NOISE[-2:] + pairs())),
    "items only": OwnMultiDict(pairs()),
}


@pytest.mark.parametrize("headers", SHAPES.values(), ids=SHAPES)
def test_headers_are_taken_as_frameworks_have_them(headers):
    """One of each is found in a mapping, a multidict or pairs, whatever case and company."""
    found = read_signed(headers)

    assert Signed(GOOD_TIME.encode(), GOOD) == found


def test_pairs_may_come_one_by_one():
    """Pairs that can be read only once are read once."""
    verify(pair for pair in pairs())


OTHER = signature(timestamp=SIGNED_AT + 1)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        {},
        NOISE,
        RAW_NOISE,
        pairs()[:1],
        pairs()[1:],
        [*pairs(), (TIME_NAME, GOOD_TIME)],
        [*pairs(), (TIME_NAME, "1")],
        [(TIME_NAME, "1"), *pairs()],
        [*pairs(), (TIME_NAME, "")],
        [*pairs(), (SIGNATURE_NAME, GOOD)],
        [*pairs(), (SIGNATURE_NAME, GOOD.decode())],
        [*pairs(), (SIGNATURE_NAME, OTHER)],
        [(SIGNATURE_NAME, OTHER), *pairs()],
        [*pairs(), (SIGNATURE_NAME.lower(), OTHER)],
        [(SIGNATURE_NAME.upper(), OTHER), *pairs()],
        [*pairs(), (TIME_NAME.lower(), "1")],
        [(TIME_NAME.upper(), "1"), *pairs()],
        [*pairs(), (TIME_NAME.lower().encode(), b"1")],
        [(SIGNATURE_NAME.upper().encode(), OTHER), *pairs()],
        [*pairs(), *pairs()],
        [*pairs(), *pairs(), *pairs()],
        {TIME_NAME: GOOD_TIME, TIME_NAME.lower(): GOOD_TIME, SIGNATURE_NAME: GOOD.decode()},
        {TIME_NAME: GOOD_TIME, SIGNATURE_NAME.lower(): OTHER, SIGNATURE_NAME: GOOD},
        {TIME_NAME: GOOD_TIME, TIME_NAME.encode(): b"", SIGNATURE_NAME: GOOD},
        MultiDict([*pairs(), (SIGNATURE_NAME, OTHER.decode())]),
        CIMultiDict([*pairs(), (TIME_NAME.lower(), "1")]),
        CIMultiDictProxy(CIMultiDict([(SIGNATURE_NAME.lower(), OTHER), *pairs()])),
        OwnMultiDict([*pairs(), *pairs()]),
        [("x-webhoo\u212a-timestamp", GOOD_TIME), (SIGNATURE_NAME, GOOD)],
        [(TIME_NAME, GOOD_TIME), ("x-webhoo\u212a-signature", GOOD)],
        [("X_Webhook_Timestamp", GOOD_TIME), (SIGNATURE_NAME, GOOD)],
        [(f"{TIME_NAME} ", GOOD_TIME), (SIGNATURE_NAME, GOOD)],
        [(TIME_NAME, GOOD_TIME), (f"{SIGNATURE_NAME}:", GOOD)],
    ],
)
def test_there_is_exactly_one_of_each_header(headers):
    """One header too few or too many is refused, be the others as genuine as they may."""
    assert "headers" == refusal_of(headers)


def test_the_refusal_names_the_headers_that_are_wanted():
    """Whoever reads the refusal can look for both headers in the proxy's settings."""
    with pytest.raises(SignatureError, match=f"(?m)both are {TIME_NAME} and {SIGNATURE_NAME}$"):
        verify({})


@pytest.mark.parametrize("name", [TIME_NAME, SIGNATURE_NAME])
@pytest.mark.parametrize("changed", [str, str.lower, str.upper, str.title, str.swapcase])
@pytest.mark.parametrize("first", [False, True])
def test_the_first_and_the_last_of_two_headers_are_refused(name, changed, first):
    """Of two headers neither counts, whichever comes first, in whichever case, as text or bytes."""
    for more in ((changed(name), "x"), (changed(name).encode(), b"x")):
        assert "headers" == refusal_of([more, *pairs()] if first else [*pairs(), more])


def test_headers_joined_by_a_proxy_are_refused():
    """Two headers that something joined with a comma are still two."""
    assert "timestamp" == refusal_of(pairs(f"{GOOD_TIME}, {GOOD_TIME}", GOOD))
    assert "signature" == refusal_of(pairs(GOOD_TIME, GOOD + b", " + GOOD))


def test_how_many_comes_before_of_what_shape():
    """Two headers are two, even if one of them is of no shape."""
    assert "headers" == refusal_of([*pairs("x"), (TIME_NAME, "y")])
    assert "headers" == refusal_of([(TIME_NAME, "x")])


@pytest.mark.parametrize(
    ("headers", "complaint"),
    [
        (None, "headers must be a mapping or pairs, not NoneType"),
        (5, "headers must be a mapping or pairs, not int"),
        ("X-Webhook-Timestamp: 1", "headers must be a mapping or pairs, not str"),
        (b"X-Webhook-Timestamp: 1", "headers must be a mapping or pairs, not bytes"),
        (["ab"], "headers must be pairs of a name and a value"),
        ([b"ab"], "headers must be pairs of a name and a value"),
        ([("a",)], "headers must be pairs of a name and a value"),
        ([("a", "b", "c")], "headers must be pairs of a name and a value"),
        ([*pairs(), None], "headers must be pairs of a name and a value"),
        ([{"a": 1, "b": 2}], "headers must be pairs of a name and a value"),
    ],
    ids=short,
)
def test_what_are_no_headers_is_a_mistake_of_the_caller(headers, complaint):
    """No peer can send what is neither a mapping nor pairs, so that is no refusal."""
    with pytest.raises(TypeError) as caught:
        read_signed(headers)

    assert complaint == str(caught.value)


def test_the_signature_is_not_shown():
    """The representation of the two headers tells the time only."""
    shown = repr(read_signed(pairs()))

    assert GOOD_TIME in shown
    assert GOOD.decode() not in shown


# --- time ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ahead_s", "is_fresh"),
    [
        (-1e12, False),
        (-301, False),
        (-300.001, False),
        (-300, True),
        (-299.999, True),
        (0, True),
        (0.5, True),
        (299.999, True),
        (300, True),
        (300.001, False),
        (301, False),
        (86_400, False),
        (1e300, False),
        (float("inf"), False),
        (float("-inf"), False),
        (float("nan"), False),
    ],
)
def test_five_minutes_either_way_are_fresh(ahead_s, is_fresh):
    """A callback is fresh 300 s after it was signed and 300 s before, and no further."""
    if is_fresh:
        verify(pairs(), now_unix_s=SIGNED_AT + ahead_s)
    else:
        assert "stale" == refusal_of(pairs(), now_unix_s=SIGNED_AT + ahead_s)


@pytest.mark.parametrize("tolerance_s", [1, 0.25, 900.0])
def test_the_tolerance_is_what_was_set(tolerance_s):
    """Another tolerance holds either way too, its ends included."""
    for sign_of in (1, -1):
        edge = SIGNED_AT + sign_of * tolerance_s
        verify(pairs(), now_unix_s=edge, tolerance_s=tolerance_s)
        beyond = edge + sign_of * 0.125
        assert "stale" == refusal_of(pairs(), now_unix_s=beyond, tolerance_s=tolerance_s)


def test_a_tolerance_that_is_no_number_accepts_nothing():
    """Even where nobody verified it, a NaN tolerance refuses rather than accepts."""
    assert "stale" == refusal_of(pairs(), tolerance_s=float("nan"))


@pytest.mark.parametrize("now_unix_s", [0, SIGNED_AT + 301, float("nan"), float("inf")])
def test_authenticity_is_judged_before_freshness(now_unix_s):
    """What is forged is called forged and not stale: only the genuine can be stale."""
    assert "signature" == refusal_of(pairs(GOOD_TIME, OTHER), now_unix_s=now_unix_s)
    assert "stale" == refusal_of(pairs(), now_unix_s=now_unix_s)


def test_a_refusal_names_the_task():
    """Whoever is told of a forged or stale callback is told which task it claims to be of."""
    for now_unix_s in (0, SIGNED_AT):
        with pytest.raises(SignatureError) as caught:
            verify(pairs(), task_id=TASK_ID if not now_unix_s else "other", now_unix_s=now_unix_s)
        assert caught.value.task_id == (TASK_ID if not now_unix_s else "other")


@pytest.mark.parametrize("tolerance_s", [0.001, 1, 300.0, 10**9])
def test_a_tolerance_is_above_nothing(tolerance_s):
    """Every finite number above 0 is a tolerance."""
    verify_tolerance(tolerance_s)


@pytest.mark.parametrize(
    ("tolerance_s", "kind"),
    [
        (None, TypeError),
        (True, TypeError),
        (False, TypeError),
        ("300", TypeError),
        (0, ValueError),
        (0.0, ValueError),
        (-0.0, ValueError),
        (-1, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (float("-inf"), ValueError),
        (10**400, ValueError),
    ],
    ids=short,
)
def test_freshness_cannot_be_switched_off(tolerance_s, kind):
    """Neither `None` nor 0 nor anything endless is a tolerance."""
    with pytest.raises(kind, match=r"^tolerance_s must be "):
        verify_tolerance(tolerance_s)


# --- splicing -----------------------------------------------------------------------------


def test_a_signature_serves_one_split_only():
    """What was signed as ``A.B.C`` is genuine only as the id ``A.B`` at the time ``C``."""
    first, second, third = "abc", "1769670759", GOOD_TIME
    signed = signature(f"{first}.{second}", third)

    verify(pairs(third, signed), task_id=f"{first}.{second}")
    assert "timestamp" == refusal_of(pairs(f"{second}.{third}", signed), task_id=first)
    assert "signature" == refusal_of(pairs(third, signed), task_id=first)
    assert "signature" == refusal_of(pairs(second, signed), task_id=first)
    assert "signature" == refusal_of(pairs(third, signed), task_id=second)
    assert "signature" == refusal_of(pairs(third, signed), task_id=f"{first}{second}")


@pytest.mark.parametrize("task_id", ["", ".", "a.", "\n", "\ud800", "ü", "a" * 1000], ids=short)
def test_any_id_is_verified_without_an_accident(task_id):
    """An id of whatever characters is genuine if it was signed, and else refused."""
    verify(pairs(GOOD_TIME, sign(task_id, SIGNED_AT, WEBHOOK_KEY)), task_id=task_id)
    assert "signature" == refusal_of(pairs(), task_id=task_id)


# --- keys ---------------------------------------------------------------------------------

NEW_KEY = "another-key-of-the-tests"
THIRD_KEY = "yet-another-key-of-tests"
THREE = (WEBHOOK_KEY.encode(), NEW_KEY.encode(), THIRD_KEY.encode())


@pytest.mark.parametrize("key", [WEBHOOK_KEY, NEW_KEY, THIRD_KEY])
def test_any_of_several_keys_may_have_signed(key):
    """While one key replaces another both are good, wherever they stand."""
    verify(pairs(GOOD_TIME, signature(key=key)), keys=THREE)


def test_a_key_that_was_replaced_is_good_no_more():
    """Once the old key is taken away, what it signs is forged."""
    assert "signature" == refusal_of(pairs(), keys=THREE[1:])


def test_without_keys_nothing_is_genuine():
    """No key signs nothing."""
    assert "signature" == refusal_of(pairs(), keys=())


@pytest.mark.parametrize("key", [WEBHOOK_KEY, NEW_KEY, THIRD_KEY, "a-key-that-is-not-held"])
def test_every_key_is_tried(key, digests, comparisons):
    """How much is computed and compared does not tell which key it was, if any."""
    signed = signature(key=key)
    expected = [signature(key=one.decode()) for one in THREE]
    digests.clear()
    comparisons.clear()
    if key in {WEBHOOK_KEY, NEW_KEY, THIRD_KEY}:
        verify(pairs(GOOD_TIME, signed), keys=THREE)
    else:
        assert "signature" == refusal_of(pairs(GOOD_TIME, signed), keys=THREE)

    assert list(THREE) == digests
    assert [(one, signed) for one in expected] == comparisons


def test_our_own_encoding_is_compared_with_what_came(comparisons):
    """Bytes are compared in constant time, and nothing that a peer sent is decoded."""
    refusal_of(pairs(GOOD_TIME, BAD_SIGNATURES["spare bits changed"]))

    assert [(GOOD, BAD_SIGNATURES["spare bits changed"])] == comparisons


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("k" * 16, (b"k" * 16,)),
        (["k" * 16], (b"k" * 16,)),
        (("k" * 16, "l" * 500), (b"k" * 16, b"l" * 500)),
        (["k" * 16, "k" * 16], (b"k" * 16, b"k" * 16)),
        ("seventeen letters", (b"seventeen letters",)),
        ("a,b,c,d,e,f,g,h,i", (b"a,b,c,d,e,f,g,h,i",)),
        ("ü" * 16, "ü".encode() * 16),
        ("雪" * 16, "雪".encode() * 16),
        ([], ()),
        ((), ()),
        ({"k" * 16: 1}.keys(), (b"k" * 16,)),
    ],
    ids=short,
)
def test_one_key_or_several(keys, expected):
    """Keys are text, one or several, of 16 characters or more, and taken as they stand."""
    if isinstance(expected, bytes):
        expected = (expected,)

    assert expected == parse_keys(keys, "keys")


def test_keys_may_come_one_by_one():
    """Keys that can be read only once are read once."""
    assert THREE == parse_keys((key.decode() for key in THREE), "keys")


#: Stands in every key that is refused, and must stand in no text about it.
PLANTED = "planted"


EMPTY = "webhook_keys holds an empty key: anybody could sign with it"
SHORT = "a key of webhook_keys is shorter than 16 characters: it could be guessed"
BLANK_END = "a key of webhook_keys begins or ends with a blank or a line break, which is part of it"
NO_TEXT = "a key of webhook_keys is no Unicode text"


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ("", EMPTY),
        (" ", EMPTY),
        (" " * 20, EMPTY),
        ("\t\r\n\u3000" * 5, EMPTY),
        ([""], EMPTY),
        (["k" * 16, ""], EMPTY),
        ("planted" + "k" * 8, SHORT),
        (["k" * 16, "planted"], SHORT),
        ("ü" * 15, SHORT),
        (" planted-key-of-the-tests", BLANK_END),
        ("planted-key-of-the-tests ", BLANK_END),
        ("planted-key-of-the-tests\n", BLANK_END),
        ("planted-key-of-the-tests\r\n", BLANK_END),
        ("\tplanted-key-of-the-tests", BLANK_END),
        ("planted-key-of-the-tests\u3000", BLANK_END),
        (["k" * 16, "planted-key-of-the-tests\n"], BLANK_END),
        (" planted ", BLANK_END),
        ("planted-key-of-the-\ud800-tests", NO_TEXT),
        ("planted-key-of-the-tests\udcff", NO_TEXT),
        (["k" * 16, "planted-key-of-\udcff-tests"], NO_TEXT),
    ],
    ids=short,
)
def test_a_bad_key_is_refused_and_not_shown(keys, complaint):
    """A key that could be guessed or is not meant is refused, and no text of it shows."""
    with pytest.raises(ValueError, match=r"key") as caught:
        parse_keys(keys, "webhook_keys")

    assert complaint == str(caught.value)
    error = caught.value
    while error is not None:  # Debuggers show what an error hides behind it, too.
        assert PLANTED not in repr(error)
        assert PLANTED not in "".join(traceback.format_exception_only(error))
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        (None, "webhook_keys must be a str or several, not NoneType"),
        (b"k" * 16, "webhook_keys must be a str or several, not bytes"),
        (5, "webhook_keys must be a str or several, not int"),
        ([b"k" * 16], "each of webhook_keys must be a str, not bytes"),
        (bytearray(b"k" * 16), "each of webhook_keys must be a str, not int"),
        ([None], "each of webhook_keys must be a str, not NoneType"),
        (["k" * 16, 5], "each of webhook_keys must be a str, not int"),
        ([["k" * 16]], "each of webhook_keys must be a str, not list"),
    ],
    ids=short,
)
def test_a_key_is_text(keys, complaint):
    """Bytes and everything else that is no text is no key."""
    with pytest.raises(TypeError) as caught:
        parse_keys(keys, "webhook_keys")

    assert complaint == str(caught.value)


def test_a_refusal_shows_neither_key_nor_signature():
    """What is said of a refused callback holds no key, and nothing that would have been right."""
    secrets = [WEBHOOK_KEY, GOOD.decode(), base64.b64decode(GOOD).hex(), OTHER.decode(), TASK_ID]
    refused = [
        (pairs(GOOD_TIME, OTHER), SIGNED_AT),
        (pairs(GOOD_TIME, GOOD[:43]), SIGNED_AT),
        (pairs("x", GOOD), SIGNED_AT),
        (pairs()[1:], SIGNED_AT),
        (pairs(), 0),
    ]

    for headers, now_unix_s in refused:
        with pytest.raises(SignatureError) as caught:
            verify(headers, now_unix_s=now_unix_s)
        texts = [str(caught.value), repr(caught.value), *map(str, caught.value.args)]
        assert [] == [secret for secret in secrets for text in texts if secret in text]
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
