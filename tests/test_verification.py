from __future__ import annotations

import inspect
import json
import time
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from kie_wav_async import parse_callback, sign, verify_signature
from kie_wav_async._support.clock import SystemClock
from kie_wav_async.errors import CallbackFormatError, SignatureError
from kie_wav_async.models import Callback
from kie_wav_async.session import verification
from samples import SIGNED_AT, TASK_ID, WEBHOOK_KEY, callback, short, signature, signed_pairs
from strategies import callback_bodies, headers, mutated_callbacks

GOOD = signature().decode()
GOOD_TIME = str(SIGNED_AT)
BODY = json.dumps(callback()).encode()
NEW_KEY = "another-key-of-the-tests"


def verify(task_id=TASK_ID, timestamp=GOOD_TIME, signed=GOOD, **settings):
    """Verify a signature, genuine and fresh but for what is given."""
    settings = {"keys": WEBHOOK_KEY, "now_unix_s": SIGNED_AT} | settings
    return verify_signature(task_id, timestamp, signed, **settings)


def parse(pairs=None, body=BODY, **settings):
    """Parse a callback, genuine and fresh but for what is given."""
    settings = {"keys": WEBHOOK_KEY, "now_unix_s": SIGNED_AT} | settings
    return parse_callback(signed_pairs() if pairs is None else pairs, body, **settings)


#: The same question to both, so that neither is laxer than the other.
BOTH = pytest.mark.parametrize("call", [verify, parse])


@pytest.fixture
def wall_clock(monkeypatch):
    """Set the system's clock by the value of one entry."""
    held = {"now": float(SIGNED_AT)}
    monkeypatch.setattr(SystemClock, "time", lambda _self: held["now"])
    return held


def reason_of(call, *args, **settings):
    """Return why something is refused; fail if it is not."""
    with pytest.raises(SignatureError) as caught:
        call(*args, **settings)
    return caught.value.reason


def test_a_genuine_callback_is_parsed():
    """A callback that the service signed just now is verified and read."""
    found = parse()

    assert isinstance(found, Callback)
    assert (TASK_ID, 200, SIGNED_AT) == (found.task_id, found.code, found.timestamp)
    assert verify() is None
    assert verify(timestamp=GOOD_TIME.encode(), signed=GOOD.encode()) is None


@pytest.mark.parametrize(
    "pairs",
    [
        dict(signed_pairs()),
        [(name.decode(), value.decode()) for name, value in signed_pairs()],
        [(name.lower(), value) for name, value in signed_pairs()],
        CIMultiDict((name.decode(), value.decode()) for name, value in signed_pairs()),
    ],
    ids=["dict", "text", "raw", "multidict"],
)
def test_headers_come_as_they_are(pairs):
    """The headers of whatever framework are taken without conversion."""
    assert TASK_ID == parse(pairs).task_id


def test_what_we_sign_is_verified():
    """`sign` and the two that verify agree."""
    verify("t", "1700000000", sign("t", 1_700_000_000, NEW_KEY), keys=NEW_KEY, now_unix_s=1.7e9)


def test_every_changed_byte_is_refused_in_the_whole():
    """Each of the 13,770 ways to change one byte is refused where the whole callback is parsed."""
    tried = 0
    for index in (1, 2):
        name, value = signed_pairs()[index]
        for place in range(len(value)):
            for byte in set(range(256)) - {value[place]}:
                pairs = signed_pairs()
                pairs[index] = (name, value[:place] + bytes([byte]) + value[place + 1 :])
                assert reason_of(parse, pairs) in {"signature", "timestamp"}
                tried += 1

    assert 13_770 == tried


# --- keys ---------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("key", [WEBHOOK_KEY, NEW_KEY])
def test_while_a_key_is_replaced_both_are_good(call, key):
    """Several keys are given in any form, and each of them may have signed."""
    changed = {"signed": signature(key=key)} if call is verify else {"pairs": signed_pairs(key=key)}

    call(**changed, keys=[NEW_KEY, WEBHOOK_KEY])
    call(**changed, keys=(WEBHOOK_KEY, NEW_KEY))
    call(**changed, keys={WEBHOOK_KEY, NEW_KEY})
    call(**changed, keys=iter([WEBHOOK_KEY, NEW_KEY]))
    call(**changed, keys=key)
    assert "signature" == reason_of(call, **changed, keys="a-key-that-did-not-sign")


@BOTH
@pytest.mark.parametrize("keys", [(), [], set(), iter(())], ids=["tuple", "list", "set", "iter"])
def test_without_a_key_nothing_is_verified(call, keys):
    """No key is a mistake of the caller, and no way to switch verification off."""
    with pytest.raises(ValueError, match=r"^keys is empty: without a key nothing can be verified$"):
        call(keys=keys)


@BOTH
@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ("", ValueError),
        ([""], ValueError),
        (" " * 16, ValueError),
        ("shared-secret", ValueError),
        ("k" * 15, ValueError),
        ([WEBHOOK_KEY, "k" * 15], ValueError),
        (f"{WEBHOOK_KEY}\n", ValueError),
        ("\udcff" * 16, ValueError),
        (None, TypeError),
        (WEBHOOK_KEY.encode(), TypeError),
        ([WEBHOOK_KEY.encode()], TypeError),
        ([None], TypeError),
        (5, TypeError),
    ],
    ids=short,
)
def test_a_key_that_could_be_guessed_verifies_nothing(call, keys, kind):
    """A key that is short, blank or no text is a mistake of the caller, named at the call."""
    with pytest.raises(kind, match=r"keys"):
        call(keys=keys)


# --- time ---------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("ahead_s", "is_fresh"),
    [(-301, False), (-300, True), (0, True), (300, True), (300.5, False), (301, False)],
)
def test_five_minutes_either_way_are_fresh(call, ahead_s, is_fresh):
    """Unless told otherwise, 300 s either way are fresh, the ends included."""
    if is_fresh:
        call(now_unix_s=SIGNED_AT + ahead_s)
    else:
        assert "stale" == reason_of(call, now_unix_s=SIGNED_AT + ahead_s)


@BOTH
@pytest.mark.parametrize(
    ("ahead_s", "is_fresh"),
    [(-301, False), (-300, True), (0, True), (300, True), (300.5, False), (301, False)],
)
def test_the_time_is_the_systems(call, ahead_s, is_fresh, wall_clock):
    """Unless told otherwise, now is what the machine's wall clock says."""
    wall_clock["now"] = SIGNED_AT + ahead_s
    if is_fresh:
        call(now_unix_s=None)
    else:
        assert "stale" == reason_of(call, now_unix_s=None)


@BOTH
def test_a_time_of_nothing_is_a_time(call, wall_clock):
    """Zero is the first second of Unix time, and not the system's."""
    assert SIGNED_AT == wall_clock["now"]

    assert "stale" == reason_of(call, now_unix_s=0)
    assert "stale" == reason_of(call, now_unix_s=0.0)


def test_the_wall_clock_is_the_real_one():
    """What is signed now is fresh now, without a word on the time."""
    now = int(time.time())

    verify_signature(TASK_ID, str(now), signature(timestamp=now), keys=WEBHOOK_KEY)
    assert now == parse_callback(signed_pairs(timestamp=now), BODY, keys=WEBHOOK_KEY).timestamp


@BOTH
@pytest.mark.parametrize("now_unix_s", [float("nan"), float("inf"), float("-inf")])
def test_a_clock_that_went_mad_accepts_nothing(call, now_unix_s, wall_clock):
    """Whatever the machine's clock says, it does not make old callbacks fresh."""
    wall_clock["now"] = now_unix_s

    assert "stale" == reason_of(call, now_unix_s=None)


@BOTH
def test_the_tolerance_is_settable(call):
    """A wider or narrower tolerance holds either way."""
    for sign_of in (1, -1):
        call(now_unix_s=SIGNED_AT + sign_of * 900, tolerance_s=900)
        call(now_unix_s=SIGNED_AT + sign_of * 0.5, tolerance_s=0.5)
        late = SIGNED_AT + sign_of * 0.75
        assert "stale" == reason_of(call, now_unix_s=late, tolerance_s=0.5)


@BOTH
@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"tolerance_s": None}, TypeError),
        ({"tolerance_s": 0}, ValueError),
        ({"tolerance_s": -1.0}, ValueError),
        ({"tolerance_s": float("nan")}, ValueError),
        ({"tolerance_s": float("inf")}, ValueError),
        ({"tolerance_s": 10**400}, ValueError),
        ({"tolerance_s": "300"}, TypeError),
        ({"tolerance_s": True}, TypeError),
        ({"now_unix_s": float("nan")}, ValueError),
        ({"now_unix_s": float("inf")}, ValueError),
        ({"now_unix_s": float("-inf")}, ValueError),
        ({"now_unix_s": 10**400}, ValueError),
        ({"now_unix_s": GOOD_TIME}, TypeError),
        ({"now_unix_s": True}, TypeError),
    ],
    ids=short,
)
def test_freshness_cannot_be_switched_off(call, settings, kind):
    """No setting of tolerance or clock makes everything fresh."""
    with pytest.raises(kind, match=f"^{next(iter(settings))} must be"):
        call(**settings)


# --- which mistake is named -----------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"keys": ()}, ValueError),
        ({"keys": ""}, ValueError),
        ({"keys": None}, TypeError),
        ({"tolerance_s": 0}, ValueError),
        ({"tolerance_s": None}, TypeError),
        ({"now_unix_s": float("nan")}, ValueError),
    ],
    ids=short,
)
def test_a_wrong_setting_shows_whatever_a_peer_sends(call, settings, kind):
    """A setting that verifies nothing is named at the first request, be it genuine or not."""
    sent = {"timestamp": "x", "signed": ""} if call is verify else {"pairs": [], "body": b""}
    with pytest.raises(kind):
        call(**sent, **settings)


@pytest.mark.parametrize("task_id", [None, 5, TASK_ID.encode(), [TASK_ID]])
def test_the_id_is_text(task_id):
    """An id that is no text is a mistake of the caller."""
    with pytest.raises(TypeError, match=r"^task_id must be a str, not "):
        verify(task_id)


@pytest.mark.parametrize(
    ("timestamp", "signed", "expected"),
    [
        (None, GOOD, "timestamp"),
        (GOOD_TIME, None, "signature"),
        (None, None, "timestamp"),
        (SIGNED_AT, GOOD, "timestamp"),
        ("", "", "timestamp"),
        (f"{GOOD_TIME}\n", GOOD, "timestamp"),
        (GOOD_TIME, f"{GOOD}\n", "signature"),
        (GOOD_TIME, GOOD.lower(), "signature"),
        (GOOD_TIME, "\ud800" * 44, "signature"),
    ],
    ids=short,
)
def test_a_malformed_header_is_a_refusal(timestamp, signed, expected):
    """What a framework returns for a missing header is refused as a wrong one is."""
    assert expected == reason_of(verify, timestamp=timestamp, signed=signed)


@pytest.mark.parametrize(
    "task_id", ["", "other", f"{TASK_ID}.", f"{TASK_ID}\n", "\ud800"], ids=short
)
def test_another_task_is_not_signed(task_id):
    """A signature is good for the one id it was made of."""
    assert "signature" == reason_of(verify, task_id)


@pytest.mark.parametrize(
    ("pairs", "body", "now_unix_s", "expected"),
    [
        ([], b"", 0, "headers"),
        (signed_pairs("other"), b"", 0, "format"),
        (signed_pairs("other"), BODY, 0, "signature"),
        (signed_pairs(), b"{}", SIGNED_AT, "format"),
        (signed_pairs(), BODY, 0, "stale"),
        (signed_pairs(), BODY + b" " * (65_537 - len(BODY)), SIGNED_AT, "format"),
    ],
    ids=["headers", "body", "signature", "id", "age", "length"],
)
def test_the_order_of_judgement(pairs, body, now_unix_s, expected):
    """Headers come before the body, the body before the signature, the signature before age."""
    with pytest.raises((SignatureError, CallbackFormatError)) as caught:
        parse(pairs, body, now_unix_s=now_unix_s)

    assert expected == getattr(caught.value, "reason", "format")


@pytest.mark.parametrize(
    ("pairs", "body"), [(None, BODY.decode()), (None, None), ("text", BODY), (5, BODY), ([5], BODY)]
)
def test_what_no_peer_can_send_is_a_mistake_of_the_caller(pairs, body):
    """A decoded body, or headers that are none, are a `TypeError`."""
    with pytest.raises(TypeError, match=r"^(headers|body) must be "):
        parse(pairs, body)


# --- what is said of it ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "body", "settings"),
    [
        (signed_pairs("other"), BODY, {}),
        (signed_pairs(), BODY, {"now_unix_s": 0}),
        (signed_pairs(), b"planted", {}),
        ([], BODY, {}),
        (signed_pairs(), BODY, {"keys": [WEBHOOK_KEY, "planted"]}),
        (signed_pairs(), BODY, {"keys": [WEBHOOK_KEY, f"{WEBHOOK_KEY}-\ud800"]}),
        (signed_pairs(), BODY, {"keys": [WEBHOOK_KEY, f"{WEBHOOK_KEY} "]}),
        (signed_pairs(), BODY, {"keys": [WEBHOOK_KEY, WEBHOOK_KEY.encode()]}),
    ],
    ids=["forged", "stale", "unreadable", "bare", "short", "no text", "blank", "bytes"],
)
def test_no_key_shows_in_a_traceback(pairs, body, settings):
    """Neither a key nor a signature nor the body is in what a log shows of an error."""
    with pytest.raises((SignatureError, CallbackFormatError, ValueError, TypeError)) as caught:
        parse(pairs, body, **settings)

    error = caught.value
    while error is not None:
        # The frames of this package, without those of the test, which hold the values.
        shown = "".join(traceback.format_exception_only(error)) + repr(error)
        assert WEBHOOK_KEY not in shown
        assert GOOD not in shown
        assert "planted" not in shown
        error = error.__cause__ or error.__context__


def test_a_receiver_needs_only_headers_body_and_keys():
    """Everything but headers, body and keys has a default, and keys are named."""
    named = inspect.signature(parse_callback).parameters

    assert ["headers", "body", "keys", "now_unix_s", "tolerance_s"] == list(named)
    assert named["keys"].kind is inspect.Parameter.KEYWORD_ONLY
    assert named["keys"].default is inspect.Parameter.empty
    assert 300.0 == named["tolerance_s"].default
    assert named["tolerance_s"].default == verification.TOLERANCE_S


# --- whatever comes -------------------------------------------------------------------------


@given(pairs=headers, body=callback_bodies)
def test_any_delivery_is_parsed_or_refused(pairs, body):
    """Whatever a stranger sends, there is a `SignatureError` or a `CallbackFormatError`."""
    with pytest.raises((SignatureError, CallbackFormatError)):
        parse(pairs, body, keys=NEW_KEY)


@given(body=callback_bodies | mutated_callbacks().map(lambda text: text.encode("utf-8", "replace")))
def test_any_signed_body_is_parsed_or_refused(body):
    """Whatever body comes under genuine headers, it is parsed, unreadable, or another task's."""
    try:
        found = parse(body=body)
    except (SignatureError, CallbackFormatError):
        return

    assert TASK_ID == found.task_id


@given(timestamp=st.text() | st.binary(), signed=st.text() | st.binary(), task_id=st.text())
def test_any_text_is_verified_or_refused(timestamp, signed, task_id):
    """Whatever text comes as id, time and signature, a stranger's is a `SignatureError`."""
    assert reason_of(verify, task_id, timestamp, signed) in {"timestamp", "signature"}


@pytest.mark.parametrize(
    "task_id",
    ["", ".", "abc.1699999999", "a b", "a\n", "ü", "\ud800", "a" * 129, "a" * 5000],
    ids=short,
)
def test_no_signature_is_good_for_what_is_no_id(task_id):
    """An id that could be another one with part of a timestamp is refused, though it is signed."""
    signed = sign(task_id, SIGNED_AT, WEBHOOK_KEY)

    assert "signature" == reason_of(verify, task_id=task_id, signed=signed)
