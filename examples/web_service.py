"""
A web service that converts on request: GET /wav/{music_task_id}/{audio_id}.

Run it with KIE_API_KEY in the environment: python examples/web_service.py
With KIE_CALLBACK_URL, the address of POST /kie/callback as seen from outside,
and KIE_WEBHOOK_HMAC_KEY as well, KIE posts the results; else they are polled for.

A request waits 25 s at most. If the WAV is not there by then the answer is 202,
and the same request made again joins the conversion that is under way. If its
submit was still queued, because the rate limit was reached, nothing was sent:
it is cancelled, and the same request made again queues it anew.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from kie_wav_async import Track, WavSession, errors
from kie_wav_async.webhook import add_callback_route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WAIT_S = 25.0
SESSION = web.AppKey("SESSION", WavSession)


async def open_session(app: web.Application) -> AsyncIterator[None]:
    """Keep one session for the life of the service."""
    async with app[SESSION]:
        yield


async def get_wav(request: web.Request) -> web.Response:
    """Convert a track and answer with the address of its WAV."""
    try:
        track = Track(**request.match_info)
    except ValueError as error:
        return answer(400, error=str(error))
    try:
        async with asyncio.timeout(WAIT_S):
            wav = await request.app[SESSION].convert(track)
    except errors.KieWavError as error:
        return answer(status_of(error), error=str(error), task_id=error.task_id)
    except TimeoutError:
        # Only this wait is over, and the conversion goes on, unless it was still queued.
        return answer(202, error="not finished yet: ask again")
    return answer(200, url=str(wav.url), task_id=wav.task_id)


def status_of(error: errors.KieWavError) -> int:
    """Return the HTTP status that tells a client what to do."""
    match error:
        case errors.InvalidRequestError() | errors.NotFoundError():
            return 404
        case errors.RateLimitedError() | errors.MaintenanceError():
            return 503
        case errors.ConversionTimeoutError():
            return 504
        case _:  # SubmitUnknownError too: asking again gives the same answer, at no cost.
            return 502


def answer(status: int, **facts: str | None) -> web.Response:
    """Return a JSON answer."""
    return web.json_response(facts, status=status)


def make_app() -> web.Application:
    """Return the service."""
    app = web.Application()
    app[SESSION] = WavSession()
    app.cleanup_ctx.append(open_session)
    app.router.add_get("/wav/{music_task_id}/{audio_id}", get_wav)
    add_callback_route(app, app[SESSION], path="/kie/callback")
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=8080)
