"""
What an attacker can send to a receiver of callbacks.

The attacker has captured one genuine delivery: headers, body and address. The signature
covers the task id and the timestamp, so the body can say anything. What an attacker could
not make is signed with the key here: deliveries of ten minutes ago, or of another product
of the same account.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import json
import random
import time
import zlib
from collections.abc import Callable
from typing import Final

import attrs

from kie_wav_async.simulator.callbacks import encode, sign, signed_headers, success_of
from kie_wav_async.simulator.loopback import Address, Answer, Headers, exchange

_ATTACKERS_URL: Final = "https://attacker.invalid/other.wav"
_GUESSED_KEY: Final = "guessed-webhook-key"
_TEN_MINUTES_S: Final = 600
_LIMIT: Final = 65_536  # Bytes of a body: what receivers commonly read.
_DEPTH: Final = 30_000
_BASE64: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_BOMB: Final = 10 * 2**20
# 8 MiB: enough to tell, and no harm to the machine.
_CHUNKS: Final = (b"1000\r\n" + b" " * 4096 + b"\r\n") * 2049


@attrs.frozen(kw_only=True)
class AttackResult:
    """
    One attack and what came of it.

    Attributes:
        tries: What it tries, in a line.
        status: The HTTP status answered; `None`: the connection was closed without an
            answer, nobody listens, or there was no answer in time.
        body: The body answered, 64 KiB of it at most; `None` where there is no status.
    """

    tries: str
    status: int | None
    body: bytes | None


@attrs.frozen
class CapturedCallback:
    """A genuine delivery, and the key it was signed with."""

    address: Address
    task_id: str
    timestamp: str
    body: bytes
    key: str = attrs.field(repr=False)

    @property
    def signature(self) -> str:
        """The signature it carried."""
        return sign(self.key, self.task_id, self.timestamp)

    @property
    def headers(self) -> Headers:
        """The two headers it carried."""
        return signed_headers(self.timestamp, self.signature)

    def signed(self, after_s: float, task_id: str | None = None) -> Headers:
        """Return headers of the same account for another moment, as seen from now."""
        timestamp = str(int(time.time() + after_s))
        return signed_headers(timestamp, sign(self.key, task_id or self.task_id, timestamp))

    def forged(self, **changes: object) -> bytes:
        """Return a body with the attacker's URL."""
        return encode(_forged(self.task_id, **changes))

    def naming(self, url: str) -> bytes:
        """Return a body with another URL."""
        return encode(success_of(self.task_id, url))


def _forged(task_id: str, **changes: object) -> dict[str, object]:
    return {**success_of(task_id, _ATTACKERS_URL), **changes}


_Make = Callable[[CapturedCallback], bytes]
_KINDS: Final[dict[str, tuple[str, _Make]]] = {}


def _attack(kind: str, tries: str) -> Callable[[_Make], _Make]:
    def note(make: _Make) -> _Make:
        _KINDS[kind] = tries, make
        return make

    return note


def _send(captured: CapturedCallback, headers: Headers, body: bytes | None = None) -> bytes:
    """Return a request with a body, the attacker's unless given, under some headers."""
    return captured.address.request(headers, captured.forged() if body is None else body)


# Forged: without the key.


@_attack("no-headers", "a body of the attacker's, without the two headers")
def _no_headers(captured: CapturedCallback) -> bytes:
    return _send(captured, [])


@_attack("wrong-key", "a body of the attacker's, signed with a guessed key")
def _wrong_key(captured: CapturedCallback) -> bytes:
    timestamp = str(int(time.time()))
    return _send(
        captured, signed_headers(timestamp, sign(_GUESSED_KEY, captured.task_id, timestamp))
    )


# Overcaptured, and used for something else.


@_attack("other-body", "the genuine headers over another body: the attacker's URL")
def _other_body(captured: CapturedCallback) -> bytes:
    return _send(captured, captured.headers)


@_attack("loopback-url", "the genuine headers over another body: a URL of the receiver's machine")
def _loopback_url(captured: CapturedCallback) -> bytes:
    return _send(captured, captured.headers, captured.naming("https://127.0.0.1/other.wav"))


@_attack("userinfo-url", "the genuine headers over another body: a user before the attacker's host")
def _userinfo_url(captured: CapturedCallback) -> bytes:
    return _send(
        captured, captured.headers, captured.naming("https://user:pw@attacker.invalid/other.wav")
    )


@_attack("failure-body", "the genuine headers over another body: the conversion failed")
def _failure_body(captured: CapturedCallback) -> bytes:
    data = {"audioWavUrl": None, "task_id": captured.task_id}
    return _send(captured, captured.headers, captured.forged(code=501, msg="failed", data=data))


@_attack("replay", "the genuine delivery once more, byte for byte")
def _replay(captured: CapturedCallback) -> bytes:
    return _send(captured, captured.headers, captured.body)


@_attack(
    "wrong-attempt", "the genuine headers and the attacker's URL, another attempt in the query"
)
def _wrong_attempt(captured: CapturedCallback) -> bytes:
    name, mark, value = captured.address.query.rpartition("=")
    address = attrs.evolve(captured.address, query=f"{name}{mark}{value[::-1]}" if mark else "?a=b")
    return _send(attrs.evolve(captured, address=address), captured.headers)


@_attack("foreign-task", "a genuine callback of another product of the account")
def _foreign_task(captured: CapturedCallback) -> bytes:
    foreign = _foreign(captured.task_id)
    data = {"callbackType": "complete", "task_id": foreign, "data": [{"audio_url": "x"}]}
    body = captured.forged(msg="All generated successfully.", data=data)
    return _send(captured, captured.signed(0.0, foreign), body)


def _foreign(task_id: str) -> str:
    return hashlib.blake2b(task_id.encode(), digest_size=16).hexdigest()


# Time


@_attack("stale", "a genuine signature of ten minutes ago")
def _stale(captured: CapturedCallback) -> bytes:
    return _send(captured, captured.signed(-_TEN_MINUTES_S))


@_attack("future", "a genuine signature for ten minutes from now")
def _future(captured: CapturedCallback) -> bytes:
    return _send(captured, captured.signed(_TEN_MINUTES_S))


@_attack("unicode-digits", "the genuine signature, its timestamp in Arabic digits")
def _unicode_digits(captured: CapturedCallback) -> bytes:
    digits = "".join(chr(0x0660 + int(digit)) for digit in captured.timestamp)
    return _send(captured, _pair(digits.encode(), captured.signature))


@_attack("padded-timestamp", "the genuine signature, a zero before its timestamp")
def _padded_timestamp(captured: CapturedCallback) -> bytes:
    return _send(captured, _pair(f"0{captured.timestamp}".encode(), captured.signature))


@_attack("blank-in-timestamp", "the genuine signature, a no-break space behind its timestamp")
def _blank_in_timestamp(captured: CapturedCallback) -> bytes:
    # Plain blanks would not do: HTTP itself takes them away.
    return _send(captured, _pair(captured.timestamp.encode() + b"\xa0", captured.signature))


def _pair(timestamp: bytes, signature: str) -> Headers:
    return [("X-Webhook-Timestamp", timestamp), ("X-Webhook-Signature", signature)]


# Signatures


@_attack("two-signatures", "a guessed signature, and the genuine one behind it")
def _two_signatures(captured: CapturedCallback) -> bytes:
    guessed = ("X-Webhook-Signature", sign(_GUESSED_KEY, captured.task_id, captured.timestamp))
    return _send(captured, [guessed, *captured.headers])


@_attack("two-signatures-swapped", "the genuine signature, and a guessed one behind it")
def _two_signatures_swapped(captured: CapturedCallback) -> bytes:
    guessed = ("x-webhook-signature", sign(_GUESSED_KEY, captured.task_id, captured.timestamp))
    return _send(captured, [*captured.headers, guessed])


@_attack("spare-bits", "the genuine signature in other base64 that decodes to the same")
def _spare_bits(captured: CapturedCallback) -> bytes:
    # 43 characters hold 258 bits, the digest has 256.
    signature = captured.signature
    other = _BASE64[_BASE64.index(signature[-2]) ^ 1]
    return _send(captured, _pair(captured.timestamp.encode(), f"{signature[:-2]}{other}="))


# Ids


@_attack("spliced-id", "a task id that contains the dot between id and timestamp")
def _spliced_id(captured: CapturedCallback) -> bytes:
    spliced = f"{captured.task_id}.{captured.timestamp}"
    return _send(captured, captured.signed(0.0, spliced), encode(_forged(spliced)))


@_attack("duplicate-keys", "the genuine headers over a body that names two tasks by one name")
def _duplicate_keys(captured: CapturedCallback) -> bytes:
    first = json.dumps(_foreign(captured.task_id)).encode()
    body = captured.forged().replace(b'"task_id":', b'"task_id":' + first + b',"task_id":')
    return _send(captured, captured.headers, body)


@_attack("two-ids", "the genuine headers over a body that names two tasks by two names")
def _two_ids(captured: CapturedCallback) -> bytes:
    return _send(captured, captured.headers, captured.forged(taskId=_foreign(captured.task_id)))


# Bodies that are a burden


@_attack("deep-json", "30,000 lists within each other, under genuine headers")
def _deep_json(captured: CapturedCallback) -> bytes:
    body = captured.forged(x=0).replace(b'"x":0', b'"x":' + b"[" * _DEPTH + b"]" * _DEPTH)
    return _send(captured, captured.headers, body)


@_attack("oversize", "65,537 bytes, under genuine headers")
def _oversize(captured: CapturedCallback) -> bytes:
    return _send(captured, captured.headers, captured.forged().ljust(_LIMIT + 1))


@_attack("gzip-bomb", "50 KiB that unpack to 10 MiB, under genuine headers")
def _gzip_bomb(captured: CapturedCallback) -> bytes:
    return _send(
        captured, [*captured.headers, ("Content-Encoding", "gzip")], _bomb(captured.task_id)
    )


@functools.lru_cache(maxsize=1)
def _bomb(task_id: str) -> bytes:
    # What does not shrink sets the ratio: 200 to 1.
    noise = base64.b64encode(random.Random(0).randbytes(40_500)).decode()  # noqa: S311 - no secret
    padding = noise + "0" * (_BOMB - len(noise))
    return zlib.compress(encode(_forged(task_id, x=padding)), level=9, wbits=31)


@_attack("endless-chunks", "a chunked body without an end, under genuine headers")
def _endless_chunks(captured: CapturedCallback) -> bytes:
    headers: Headers = [*captured.headers, ("Transfer-Encoding", "chunked")]
    return _send(captured, headers, b"").replace(b"Content-Length: 0\r\n", b"") + _CHUNKS


@_attack("slow-body", "half a body and then nothing, under genuine headers")
def _slow_body(captured: CapturedCallback) -> bytes:
    return _send(captured, captured.headers)[: -len(captured.forged()) // 2]


# Methods


@_attack("get", "the genuine headers on a GET")
def _get(captured: CapturedCallback) -> bytes:
    return _send(captured, captured.headers, b"").replace(b"POST", b"GET", 1)


#: Every kind of attack.
ATTACKS: Final = tuple(_KINDS)


async def attack(kind: str, captured: CapturedCallback, *, patience_s: float) -> AttackResult:
    """Carry out one attack, and return what was answered within *patience_s*."""
    tries, make = _KINDS[kind]
    # The bomb takes its time to build, which is not the receiver's.
    request = await asyncio.to_thread(make, captured)
    answer = Answer()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience_s):
            answer = await exchange(captured.address, request)
    return AttackResult(tries=tries, status=answer.status, body=answer.body)
