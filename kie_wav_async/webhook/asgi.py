"""An ASGI application that answers callbacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from kie_wav_async.webhook.request_handler import (
    Answer,
    CallbackRequestHandler,
    GoneError,
    changes_bytes,
)

if TYPE_CHECKING:
    from kie_wav_async.session.session import WavSession

#: A connection to an ASGI server is closed after so many callbacks. Some servers (uvicorn
#: with httptools) go on reading requests while earlier ones are answered, without a limit.
_MAX_REQUESTS: Final = 8


#: As many connections to an ASGI server are counted.
_MAX_COUNTED: Final = 1_000


_Scope: TypeAlias = MutableMapping[str, Any]


_Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]


_Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def asgi_app(session: WavSession) -> _AsgiApp:
    """
    Return an ASGI application that answers callbacks, on whatever path it is given.

    For Starlette's ``Route(path, app)``, for FastAPI's ``add_route(path, app)``,
    to be mounted, or to be run alone. Mounted at ``/kie/callback`` it is reached
    at ``/kie/callback/``: the path without the slash is answered with a redirect,
    which no sender of callbacks can be expected to follow.

    A connection is closed with the eighth callback: there are servers that keep
    reading requests while earlier ones are answered, however many there are.

    Args:
        session: It has to be entered in the loop that serves.

    Raises:
        TypeError: *session* is no `WavSession`.
    """
    return _AsgiApp(session)


class _AsgiApp:
    """An instance and not a function, which Starlette would call with a request."""

    __slots__ = ("_counts", "_request_handler")

    def __init__(self, session: WavSession) -> None:
        self._request_handler = CallbackRequestHandler(session)
        self._counts: Counter[str] = Counter()

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        match scope["type"]:
            case "http":
                await self._answer(scope, receive, send)
            case "lifespan":
                await _live(receive, send)
            case "websocket":
                await receive()
                await send({"type": "websocket.close"})
            case other:
                msg = f"cannot serve the ASGI scope {other!r}"
                raise ValueError(msg)

    async def _answer(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        is_encoded, length = _read_head(headers)
        answer: bytes | Answer | None = self._request_handler.check_head(
            scope["method"], is_encoded=is_encoded, length=length
        )
        if answer is None:
            try:
                answer = await self._request_handler.read(_parts_from(receive))
            except GoneError:
                return
        if isinstance(answer, bytes):
            answer = await self._request_handler.handle(headers, answer, scope["query_string"])
        sent = [(name.lower().encode(), value.encode()) for name, value in answer.headers]
        sent.append((b"content-length", b"%d" % len(answer.body)))
        # Later versions of HTTP have no such header, and no connection to lose.
        is_last = self._is_last(scope.get("client")) or answer.is_rejection
        if is_last and scope["http_version"].startswith("1"):
            sent.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": answer.status, "headers": sent})
        await send({"type": "http.response.body", "body": answer.body})

    def _is_last(self, client: object) -> bool:
        """Count a request of *client*'s, and return whether it has had enough of them."""
        counts = self._counts
        if len(counts) >= _MAX_COUNTED:
            counts.clear()
        # A list in some servers and a tuple in others; `None` on a Unix socket.
        name = str(client)
        counts[name] += 1
        if counts[name] < _MAX_REQUESTS:
            return False
        del counts[name]
        return True


def _read_head(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bool, int | None]:
    encodings: list[str] = []
    length: int | None = None
    for name, value in headers:
        if name == b"content-encoding":
            encodings.append(value.decode("latin-1"))
        elif name == b"content-length" and value.isdigit():
            # Digits enough to be too many are not worth reading.
            length = int(value[:20])
    return changes_bytes(encodings), length


def _parts_from(receive: _Receive) -> Callable[[], Awaitable[bytes | None]]:
    is_over = False

    async def next_part() -> bytes | None:
        nonlocal is_over
        if is_over:
            return None
        message = await receive()
        if message["type"] != "http.request":
            raise GoneError
        is_over = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    return next_part


async def _live(receive: _Receive, send: _Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
