"""
Hypothesis strategies: what callers and strangers may come with.

The hostile ones write JSON text themselves, so that they can say what no
serializer would: duplicate keys, 5,000-digit numbers, lone surrogates, NaN.
"""

from __future__ import annotations

import json

from hypothesis import strategies as st

from kie_wav_async.protocol.http_messages import WireResponse
from samples import (
    ATTEMPT_ID,
    AUDIO_ID,
    CALLBACK_URL,
    FILE_URL,
    MUSIC_TASK_ID,
    SIGNED_AT,
    TASK_ID,
    callback,
    music_data,
    record_data,
    signature,
)

#: Whatever can be an id: visible characters of any script, no blanks.
ids = st.text(
    st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=256
)  # fmt: skip

seconds = st.floats(min_value=0.0, max_value=1e6, allow_nan=False, allow_subnormal=False)

samples_in_unit = st.floats(min_value=0.0, max_value=1.0, exclude_max=True)

_NUMBERS = [
    "0", "-0", "1", "2", "3", "-1", "200", "200.0", "200.5", "2e2", "404", "409", "429", "500",
    "302", "1e999", "-1e999", "1e-999", "1E99999999999999999999", "-1E-99999999999999999999",
    "9" * 18, "9" * 19, "9" * 4300, "9" * 5000, "-" + "9" * 4300, "0." + "1" * 5000,
    "1777379281542", "253402300800", "253402300800000", "-62135596801", "1e22", "1e300",
    "NaN", "Infinity", "-Infinity",
]  # fmt: skip

_STRINGS = [
    "", " ", "0", "1", "2", "3", "200", "409", "SUCCESS", "PENDING", "CALLBACK_EXCEPTION",
    "GENERATE_WAV_FAILED", "成功", "NaN", "sNaN", "Infinity", "1_000", "1e999999", "9" * 5000,
    "٢٠٠", "²", TASK_ID, MUSIC_TASK_ID, AUDIO_ID, "x" * 256, "x" * 257, "a b", "a\u0000b",
    "a\u202eb", FILE_URL, CALLBACK_URL, CALLBACK_URL + "&attempt=2", "https://h:99999/",
    "https://h:-1/", "https://h:x/", "https://[::1", "https://[", "https://", "https:///x",
    "https://a b/", "https://xn--a/", "https://ß" + "x" * 70 + "/", "https://\u2100/",
    "https://%ff/%ff?%ff=%ff", "https://u:p@h/", "javascript:alert(1)", "//h/x",
    "https://h/?attempt=%ff%fe&attempt=", "https://h/" + "x" * 9000, "2025-01-01 00:00:00",
    "2025-01-01T00:00:00+99:99", "0000-00-00 00:00:00", "9999-12-31T23:59:59.999999-23:59",
    "0001-01-01T00:00:00+23:59", "2025-13-41 99:99:99", "2025-W99-9", "20250101",
    "2025-01-01\u00e900:00:00",
]  # fmt: skip

# As a JSON string may be spelled: escapes and halves of pairs included.
_SPELLED = ['"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"2025-01-01\\ud80000:00:00"', '"\\ud83d']

_NAMES = [
    "code", "msg", "message", "data", "status", "taskId", "task_id", "successFlag", "response",
    "info", "audioWavUrl", "audio_wav_url", "wavUrl", "wav_url", "musicId", "audioId",
    "errorCode", "errorMessage", "errorMsg", "createTime", "completeTime", "callbackUrl",
    "callBackUrl", "sunoData", "id", "title",
]  # fmt: skip

_leaves = st.one_of(
    st.sampled_from(["null", "true", "false", "[]", "{}", *_NUMBERS, *_SPELLED]),
    st.sampled_from(_STRINGS).map(json.dumps),
    st.text(max_size=20).map(json.dumps),
    st.integers(1, 3000).map(lambda depth: "[" * depth + "]" * depth),
    st.integers(1, 3000).map(lambda depth: '{"data":' * depth + "1" + "}" * depth),
)


def _objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    names = st.sampled_from(_NAMES).map(json.dumps) | st.just('"\\ud800"')
    pairs = st.tuples(names, values).map(":".join)
    return st.lists(pairs, max_size=8).map(lambda found: "{" + ",".join(found) + "}")


#: JSON, or nearly, of any shape.
hostile_json = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=5).map(lambda found: "[" + ",".join(found) + "]") | _objects(inner)
    ),
    max_leaves=25,
)

_MARK = "\u2603"


@st.composite
def mutated_answers(draw: st.DrawFn) -> str:
    """Return a genuine answer with some of its values replaced by hostile ones."""
    data = draw(st.sampled_from([record_data(), music_data(), {"taskId": TASK_ID}, None, FILE_URL]))
    document: dict[str, object] = {"code": 200, "msg": "success", "data": data}
    _mark_some(draw, document)
    return _spell(draw, document)


@st.composite
def mutated_callbacks(draw: st.DrawFn) -> str:
    """Return a callback of our task with some of its other values replaced by hostile ones."""
    document = callback(response={"audioWavUrl": FILE_URL}, info={"wav_url": FILE_URL})
    _mark_some(draw, document)
    # Whatever became of the rest, the signed id stands where it may.
    data = document.get("data")
    places = [document, *([data] if isinstance(data, dict) else [])]
    for place in places:
        for name in ("task_id", "taskId"):
            place.pop(name, None)
    draw(st.sampled_from(places))[draw(st.sampled_from(["task_id", "taskId"]))] = TASK_ID
    return _spell(draw, document)


def _mark_some(draw: st.DrawFn, document: dict[str, object]) -> None:
    replaced = draw(st.integers(1, 4))
    for _ in range(replaced):
        place: object = document
        while True:
            if isinstance(place, list):
                key: object = draw(st.sampled_from(range(len(place))))
            else:
                key = draw(st.sampled_from([*place, draw(st.sampled_from(_NAMES))]))
            inner = place[key] if isinstance(place, list) else place.get(key)
            if not (isinstance(inner, dict | list) and inner) or draw(st.booleans()):
                place[key] = _MARK
                break
            place = inner


def _spell(draw: st.DrawFn, document: dict[str, object]) -> str:
    text = json.dumps(document, ensure_ascii=False)
    while f'"{_MARK}"' in text:
        text = text.replace(f'"{_MARK}"', draw(_leaves | _objects(_leaves)), 1)
    return text


_ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7", "latin-1"]

#: What an answer may hold: rubbish, JSON of any shape, and nearly genuine answers.
bodies = st.one_of(
    st.binary(max_size=200),
    st.tuples(hostile_json, st.sampled_from(_ENCODINGS)).map(
        lambda drawn: drawn[0].encode(drawn[1], "replace")
    ),
    st.tuples(mutated_answers(), st.sampled_from(_ENCODINGS[:2])).map(
        lambda drawn: drawn[0].encode(drawn[1], "replace")
    ),
    st.tuples(mutated_answers(), st.integers(1, 40)).map(
        lambda drawn: drawn[0].encode("utf-8", "replace")[: -drawn[1]]
    ),
)

statuses = st.sampled_from([200, 201, 204, 301, 304, 307, 400, 401, 404, 409, 429, 500, 502]) | (
    st.integers(-1, 1000)
)

_DAYS = ["Sun, ", "Sunday, ", "Sun ", "", ","]
_DATES = ["06 Nov 1994", "06-Nov-94", "Nov  6", "31 Feb 2025", "06 Nov 0000", "1 Jan 99999", "-"]
_TIMES = [" 08:49:37", " 25:61:99", " 08.49.37", " ::", "", " 08:49:37 1994"]
_ZONES = [" GMT", " -0000", " +9999", " -2400", " +1", "", " EST", " 99999999999999999999", " ("]

#: What a ``Retry-After`` header may hold.
retry_afters = st.one_of(
    st.none(),
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    st.tuples(
        st.sampled_from(_DAYS),
        st.sampled_from(_DATES),
        st.sampled_from(_TIMES),
        st.sampled_from(_ZONES),
    ).map("".join),
)

responses = st.builds(
    WireResponse,
    status=statuses,
    body=bodies,
    retry_after=retry_afters,
    request_id=st.none() | st.text(max_size=10),
    now_unix_s=st.floats(0, 4e9),
)

# --- callbacks ------------------------------------------------------------------------

_header_names = st.one_of(
    st.sampled_from(["X-Webhook-Timestamp", "X-Webhook-Signature"]),
    st.sampled_from(["x-webhook-timestamp", "X-WEBHOOK-SIGNATURE", "x-webhoo\u212a-signature"]),
    st.text(max_size=25),
)

_header_values = st.one_of(
    st.just(str(SIGNED_AT)),
    st.just(signature().decode()),
    st.integers().map(str),
    st.text(max_size=50),
    st.text(min_size=44, max_size=44),
    st.from_regex(r"\d{10}", fullmatch=True),
    st.sampled_from(["\ud800", "\udcff" * 44, "9" * 5000, "", " ", "\x00" * 44]),
)


def _as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


_header_texts = st.tuples(_header_names, _header_values)
_pair_lists = st.lists(_header_texts, max_size=5)

#: The headers of a request, as one framework or another has them.
headers = st.one_of(
    _pair_lists,
    _pair_lists.map(dict),
    _pair_lists.map(lambda pairs: [(_as_bytes(name), _as_bytes(value)) for name, value in pairs]),
    st.lists(st.tuples(st.binary(max_size=25), st.binary(max_size=50)), max_size=5),
    st.fixed_dictionaries(
        {"X-Webhook-Timestamp": _header_values, "X-Webhook-Signature": _header_values}
    ),
)

#: The body of a request that claims to be a callback.
callback_bodies = bodies | mutated_callbacks().map(lambda text: text.encode("utf-8", "replace"))

#: The raw query of a callback's URL.
queries = st.one_of(
    st.text(max_size=60),
    st.binary(max_size=60),
    st.lists(
        st.tuples(
            st.sampled_from(["attempt", "%61ttempt", "Attempt", "a", "", "attempt%00", "+attempt"]),
            st.sampled_from(["=", "", "=="]),
            st.sampled_from([ATTEMPT_ID, ATTEMPT_ID.upper(), ATTEMPT_ID + "0", "", "%30"]),
        ).map("".join),
        max_size=4,
    ).map("&".join),
)
