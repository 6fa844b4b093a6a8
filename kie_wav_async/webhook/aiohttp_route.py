"""A route for aiohttp that takes callbacks."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.log import server_logger

from kie_wav_async._support.validation import verify_type
from kie_wav_async.webhook.bounded_log import MalformedRequestFilter
from kie_wav_async.webhook.request_handler import (
    UNREADABLE,
    Answer,
    CallbackRequestHandler,
    GoneError,
    changes_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kie_wav_async.session.session import WavSession

__all__ = ["add_callback_route"]


#: One for the process, as its logger is.
_FILTER: Final = MalformedRequestFilter()


def add_callback_route(
    app: web.Application, session: WavSession, path: str = "/kie/callback"
) -> None:
    """
    Add the route that answers callbacks to an aiohttp application.

    aiohttp decompresses before any handler runs. The refusal of
    ``Content-Encoding`` thus comes after the work, unless the application is run
    by ``web.AppRunner(app, auto_decompress=False)``, or the reverse proxy refuses
    such requests; `CallbackServer` does not decompress.

    aiohttp logs a traceback for every request that is not HTTP. Its logger
    ``aiohttp.server`` gets a filter that leaves one line of them a minute.

    Args:
        app: Not started yet.

        session: It has to be entered in the loop that serves *app*.

        path: The path of ``callback_url``.

    Raises:
        TypeError: An argument has the wrong type.

        ValueError: *path* does not begin with ``/``.

        RuntimeError: *app* has been started, or has that path.
    """
    verify_type(app, web.Application, "app")
    verify_type(path, str, "path")
    # All methods, so that the refusal of the others is ours too.
    handler = AiohttpHandler(CallbackRequestHandler(session))
    app.router.add_route("*", path, handler.handle, expect_handler=_expect_nothing)
    server_logger.addFilter(_FILTER)


async def _expect_nothing(request: web.Request) -> None:
    """Leave ``Expect`` to the handler, which may not want the body."""


class AiohttpHandler:
    __slots__ = ("_request_handler",)

    def __init__(self, request_handler: CallbackRequestHandler) -> None:
        self._request_handler = request_handler

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        request_handler, content = self._request_handler, request.content
        # The usual case: nothing to wait for. With an error the peer is gone already.
        is_there = content.is_eof() and content.exception() is None
        refusal = request_handler.check_head(
            request.method,
            is_encoded=changes_bytes(request.headers.getall(hdrs.CONTENT_ENCODING, ())),
            length=content.total_bytes if is_there else request.content_length,
        )
        if refusal is not None:
            return await _refuse(request, refusal)
        if is_there:
            body = content.read_nowait()
        else:
            try:
                await _continue(request)
                read = await request_handler.read(_parts_of(request))
            except GoneError:
                read = UNREADABLE
            if isinstance(read, Answer):
                return await _refuse(request, read)
            body = read
        # The raw target: what yarl makes of a query may be another spelling of it.
        query = request.raw_path.partition("?")[2]
        return _respond(await request_handler.handle(request.raw_headers, body, query))


def _parts_of(request: web.BaseRequest) -> Callable[[], Awaitable[bytes | None]]:
    async def next_part() -> bytes | None:
        try:
            return await request.content.readany() or None
        except Exception as error:
            # Each parser of aiohttp's raises its own.
            raise GoneError from error

    return next_part


async def _continue(request: web.BaseRequest) -> None:
    """
    Tell a client that asks first to send its body; HTTP/1.0 knows no such question.

    Raises:
        GoneError: It has left.
    """
    asks = request.headers.get(hdrs.EXPECT, "").lower() == "100-continue"
    if asks and request.version >= HttpVersion11:
        try:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        except ConnectionError as error:  # aiohttp would log a traceback of it.
            raise GoneError from error


def _respond(answer: Answer) -> web.Response:
    response = web.Response(status=answer.status, body=answer.body, headers=answer.headers)
    if answer.is_rejection:
        response.force_close()
    return response


async def _refuse(request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    """Send a refusal, and drop the connection if a body is still to come."""
    response = _respond(answer)
    if request.content.is_eof():
        return response
    # The peer may be gone; aiohttp finds that out for itself, and says nothing.
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await response.write_eof()
    # Without this aiohttp would go on reading the body for a while.
    request.protocol.force_close()
    return response
