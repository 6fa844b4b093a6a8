"""
What the service says, as the tests write it down.

`RECORDED` holds answers the service really gave (650 recorded calls, published
by github.com/justintanner/apicity under the MIT licence, Copyright (c) 2026
Justin Tanner); everything else is made by hand from the vendor's pages.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import zlib

import attrs

from kie_wav_async.protocol.http_messages import WireResponse

TASK_ID = "b2f1c0a94d6e4c7f8a3950e1d7c6b5a4"
MUSIC_TASK_ID = "091fbbaa1d20d47e9576ce84d5254b18"
AUDIO_ID = "e231d0f8-6a1c-4b4e-9a53-0c2a6a5d9b11"
FILE_URL = "https://tempfile.example/s/04e6a3f2e727.wav"
ATTEMPT_ID = "0123456789abcdef0123456789abcdef"
CALLBACK_URL = f"https://kie-wav-async.invalid/callback?attempt={ATTEMPT_ID}"
REQUEST_ID = "9f36107cb8b75f2f-SIN"
WEBHOOK_KEY = "webhook-key-of-the-tests"
SIGNED_AT = 1_769_670_760


@attrs.frozen(kw_only=True)
class Recorded:
    """One answer as it was seen on the wire."""

    path: str
    status: int
    body: bytes
    request_id: str

    @property
    def response(self) -> WireResponse:
        return WireResponse(status=self.status, body=self.body, request_id=self.request_id)


RECORDED = {
    "wav-bogus-ids": Recorded(
        path="/api/v1/wav/generate",
        status=200,
        body=b'{"code":422,"msg":"Record does not exist","data":null}',
        request_id="9f36107cb8b75f2f-SIN",
    ),
    "record-info-not-found": Recorded(
        path="/api/v1/generate/record-info",
        status=200,
        body=b'{"code":200,"msg":"success","data":null}',
        request_id="9f3610778bd5ed99-SIN",
    ),
    "convert": Recorded(
        path="/api/v1/common/download-url",
        status=200,
        body=b'{"code":422,"msg":"url is wrong","data":null}',
        request_id="9ed16bdeca67d4a5-SIN",
    ),
    "credit": Recorded(
        path="/api/v1/chat/credit",
        status=200,
        body=b'{"code":200,"msg":"success","data":5916.25}',
        request_id="9ed16a830fa17abd-SIN",
    ),
    "lyrics-submit": Recorded(
        path="/api/v1/lyrics",
        status=200,
        body=b'{"code":200,"msg":"success","data":{"taskId":"e5d2b14c95a93b325215f4490867d8c6"}}',
        request_id="9f36107c7b92ce5e-SIN",
    ),
    "generate-submit": Recorded(
        path="/api/v1/generate",
        status=200,
        body=b'{"code":200,"msg":"success","data":{"taskId":"091fbbaa1d20d47e9576ce84d5254b18"}}',
        request_id="9f3610781a077979-SIN",
    ),
}


def answer(
    document: object, *, status: int = 200, retry_after: str | None = None, now_unix_s: float = 0.0
) -> WireResponse:
    """Return an answer with *document* as JSON, or as it is if it is bytes."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return WireResponse(
        status=status,
        body=body,
        retry_after=retry_after,
        request_id=REQUEST_ID,
        now_unix_s=now_unix_s,
    )


def record_data(**changes: object) -> dict[str, object]:
    """Return the ``data`` of a finished task's record as documented, with *changes* made."""
    return {
        "taskId": TASK_ID,
        "musicId": AUDIO_ID,
        "callbackUrl": CALLBACK_URL,
        "musicIndex": 0,
        "completeTime": "2025-01-01 00:10:00",
        "response": {"audioWavUrl": FILE_URL},
        "successFlag": "SUCCESS",
        "createTime": "2025-01-01 00:00:00",
        "errorCode": None,
        "errorMessage": None,
    } | changes


def music_data(**changes: object) -> dict[str, object]:
    """Return the ``data`` of a finished music task's record, with *changes* made."""
    return {
        "taskId": MUSIC_TASK_ID,
        "parentMusicId": "",
        "param": "{}",
        "status": "SUCCESS",
        "type": "GENERATE",
        "operationType": "generate",
        "errorCode": None,
        "errorMessage": None,
        "response": {
            "taskId": MUSIC_TASK_ID,
            "sunoData": [
                {"id": AUDIO_ID, "title": "Morning", "duration": 181.2},
                {"id": "second", "title": "Evening", "duration": 92.0},
            ],
        },
    } | changes


def signature(
    task_id: str = TASK_ID, timestamp: object = SIGNED_AT, key: str = WEBHOOK_KEY
) -> bytes:
    """Return the documented signature, made by the standard library and by no code of ours."""
    message = timestamp if isinstance(timestamp, bytes) else str(timestamp).encode()
    message = task_id.encode() + b"." + message
    return base64.b64encode(hmac.new(key.encode(), message, hashlib.sha256).digest())


def signed_pairs(
    task_id: str = TASK_ID, timestamp: int = SIGNED_AT, key: str = WEBHOOK_KEY
) -> list[tuple[bytes, bytes]]:
    """Return the headers of a genuine callback as they stand on the wire."""
    return [
        (b"Content-Type", b"application/json"),
        (b"X-Webhook-Timestamp", str(timestamp).encode()),
        (b"X-Webhook-Signature", signature(task_id, timestamp, key)),
    ]


def callback(**changes: object) -> dict[str, object]:
    """Return the documented callback of a success, with *changes* made to its ``data``."""
    return yes({"audioWavUrl": FILE_URL, "task_id": TASK_ID} | changes)


def yes(data: object) -> dict[str, object]:
    """Return the documented envelope of a success."""
    return {"code": 200, "msg": "success", "data": data}


def short(value: object) -> str:
    """Return *value* as the id of a table's row: readable, bounded, and its own."""
    # pytest finds no test by an id with a backslash in it.
    text = ascii(value).replace("\\", "~")
    return text if len(text) <= 40 else f"{text[:30]}...{zlib.crc32(text.encode()):08x}"
