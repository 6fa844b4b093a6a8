"""Answers before and as they become bytes."""

import json
import re
import time
import zlib
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import attrs
from aiohttp import web

from kie_wav_async.simulator.faults import Fault
from kie_wav_async.simulator.script import parts_of, shape
from kie_wav_async.simulator.service import Payload, envelope
from kie_wav_async.simulator.wav import Tone

UNAUTHORIZED: Final = {"code": 401, "msg": "You do not have access permissions"}
NOT_FOUND: Final = {"status": 404, "error": "Not Found", "message": "No message available"}

ENDERS: Final = frozenset({"reset", "hangup", "stall"})
REPLACERS: Final = frozenset({"code", "html", "body", "redirect"})
_ELSEWHERE: Final = ENDERS | {"slow", "cut", "truncated"}

_CHUNK: Final = 256 * 1024
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")


@attrs.define
class Reply:
    """An answer: a payload that becomes JSON, or else a text."""

    payload: Payload | None = None
    text: str = ""
    status: int = HTTPStatus.OK
    content_type: str = "application/json;charset=UTF-8"
    headers: dict[str, str] = attrs.field(factory=dict[str, str])

    @property
    def is_429(self) -> bool:
        """Whether it says, in its status or its code, that there were too many requests."""
        code = None if self.payload is None else self.payload.get("code")
        return self.status == HTTPStatus.TOO_MANY_REQUESTS or code in {429, "429"}

    def encode(self, number: int, *, gzip: bool, truncated: bool) -> tuple[dict[str, str], bytes]:
        """
        Return headers and body, as recorded from the service.

        Args:
            number: Of this answer: makes the ids in the headers.
            gzip: Compress the body.
            truncated: Leave out the second half of it.

        """
        headers = {
            "Content-Type": self.content_type,
            "Server": "cloudflare",
            "CF-RAY": f"{number & 0xFFFFFFFFFFFFFFFF:016x}-SIN",
            **self.headers,
        }
        body = self.text.encode()
        if self.payload is not None:
            headers["Set-Cookie"] = f"JSESSIONID={number:032X}; Path=/; HttpOnly"
            text = json.dumps(self.payload, ensure_ascii=False, separators=(",", ":"))
            # Half a surrogate pair has no bytes, but a backslash escape that JSON reads.
            body = text.encode(errors="backslashreplace")
        if truncated:
            body = body[: len(body) // 2]
        if gzip:
            headers["Content-Encoding"] = "gzip"
            body = zlib.compress(body, level=1, wbits=31)
        return headers, body


def replacement(fault: Fault) -> Reply:
    """Return the answer of a fault that stands in place of the service's own."""
    reply = Reply(status=fault.http_status or HTTPStatus.OK)
    match fault.kind:
        case "code":
            reply.payload = envelope(fault.code, fault.msg, fault.data)
        case "html":
            reply.content_type = "text/html; charset=UTF-8"
            reply.status = fault.http_status or HTTPStatus.BAD_GATEWAY
            blocked = reply.status == HTTPStatus.FORBIDDEN
            title = "Error 1010: access denied" if blocked else "Bad gateway"
            reply.text = f"<!DOCTYPE html><html><head><title>{title}</title></head></html>\n"
        case "body":
            reply.content_type, reply.text = fault.content_type, fault.body
        case "redirect":
            reply.status = fault.http_status or HTTPStatus.TEMPORARY_REDIRECT
            reply.content_type = "text/html"
            reply.headers["Location"] = fault.url
        case _:  # expired
            reply.status = fault.http_status or HTTPStatus.NOT_FOUND
            reply.content_type = "text/plain"
    if fault.retry_after_date_s is not None:
        # The wall clock, because that is what the client will compare it with.
        at = time.time() + fault.retry_after_date_s
        reply.headers["Retry-After"] = formatdate(at, usegmt=True)
    elif fault.retry_after is not None:
        reply.headers["Retry-After"] = fault.retry_after
    return reply


def changed(reply: Reply, faults: Sequence[Fault]) -> Reply:
    """Return an answer after everything the script does to its content."""
    for fault in faults:
        if fault.kind in REPLACERS:
            return replacement(fault)
    for fault in faults:
        if reply.payload is None or fault.kind in _ELSEWHERE:
            continue
        # An earlier fault may have taken the part that a later one changes.
        if not fault.needs or fault.needs in parts_of(reply.payload):
            shape(fault, reply.payload)
            reply.status = fault.http_status or reply.status
    return reply


def parse_range(header: str | None, size: int) -> tuple[int, int, HTTPStatus]:
    """Return first byte, last byte and status for one range; any other form is ignored."""
    whole = (0, size - 1, HTTPStatus.OK)
    match = _RANGE.fullmatch(header or "")
    if match is None or match[1] == match[2] == "":
        return whole
    if match[1] == "":
        length = min(int(match[2]), size)
        first, last = size - length, size - 1
    else:
        first = int(match[1])
        last = min(int(match[2]), size - 1) if match[2] else size - 1
        if match[2] and int(match[2]) < first:
            return whole
    if first >= size:
        return 0, 0, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
    return first, last, HTTPStatus.PARTIAL_CONTENT


async def send_file(
    request: web.BaseRequest,
    tone: Tone,
    file: memoryview | None,
    *,
    modified: str,
    ranges: bool,
    limit: int | None,
) -> web.StreamResponse:
    """
    Send a file, or the one range of it that is asked for.

    Args:
        request: Who asks.
        tone: What the file holds.
        file: Its bytes; `None`: the headers alone are wanted.
        modified: When it was made, as an HTTP date.
        ranges: `False`: ranges are not known.
        limit: Stop after so many bytes of the body.

    """
    headers = {
        "Content-Type": "audio/wav",
        "ETag": tone.etag,
        "Last-Modified": modified,
        "Server": "cloudflare",
    }
    first, last, status = 0, tone.size - 1, HTTPStatus.OK
    if ranges:
        headers["Accept-Ranges"] = "bytes"
        if request.headers.get("If-Range", tone.etag) in {tone.etag, modified}:
            first, last, status = parse_range(request.headers.get("Range"), tone.size)
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        headers["Content-Range"] = f"bytes */{tone.size}"
        return web.Response(status=status, headers=headers)
    if status == HTTPStatus.PARTIAL_CONTENT:
        headers["Content-Range"] = f"bytes {first}-{last}/{tone.size}"
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = last - first + 1
    await response.prepare(request)
    if file is not None:
        end = last + 1 if limit is None else min(last + 1, first + limit)
        for start in range(first, end, _CHUNK):
            await response.write(file[start : min(start + _CHUNK, end)])
    return response
