"""
What a delivery over HTTP is answered, whoever serves: the one place that decides.

It knows no server. What carries the bytes to and fro is in `webhook`.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from typing import TYPE_CHECKING, Any, Final

import attrs

from kie_wav_async._support.patient_timer import PatientTimer
from kie_wav_async._support.validation import verify_type
from kie_wav_async.callbacks.payload import MAX_BODY_LENGTH
from kie_wav_async.errors import (
    CallbackFormatError,
    LedgerError,
    SessionClosedError,
    SignatureError,
)
from kie_wav_async.session.session import WavSession
from kie_wav_async.webhook.bounded_log import BoundedLog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
    from contextlib import AbstractContextManager

#: Most bodies waited for at a time: nobody has proved anything before the end of one.
#: A body that is there takes no place, and a newcomer takes that of the oldest.
MAX_READS: Final = 64

#: How long a body may take. The service's have some hundred bytes.
READ_TIMEOUT_S = 10.0

#: How long the session may take after that. The service waits 15 s for an answer.
HANDLE_TIMEOUT_S = 2.0


@attrs.frozen
class Answer:
    """What is sent back; one that has a body says of what kind."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def is_rejection(self) -> bool:
        """Whether the connection ends with it, so that a flood pays for each."""
        return self is not _RECEIVED


# One object for all that is authentic: it must not show what became of it.
_RECEIVED: Final = Answer(200, b'{"status":"received"}', (("Content-Type", "application/json"),))
UNREADABLE: Final = Answer(400)
_UNAUTHENTIC: Final = Answer(401)
_NO_POST: Final = Answer(405, headers=(("Allow", "POST"),))
_TOO_SLOW: Final = Answer(408)
_TOO_LONG: Final = Answer(413)
_ENCODED: Final = Answer(415)
_BROKEN: Final = Answer(500)
_UNAVAILABLE: Final = Answer(503)


class GoneError(Exception):
    """The peer left, or sent what is no body, so that the rest of it cannot be read."""


class CallbackRequestHandler:
    """
    Decides on every answer to the deliveries of one route.

    `check_head` sees the head of a request, `read` its body, and `handle` the whole.
    """

    __slots__ = ("_log", "_reads", "_session")

    def __init__(self, session: WavSession) -> None:
        """
        Start with nobody reading.

        Raises:
            TypeError: *session* is no `WavSession`.
        """
        verify_type(session, WavSession, "session")
        self._session = session
        self._log = BoundedLog()
        # The time limits of the bodies that are waited for, the oldest first.
        self._reads: dict[asyncio.Timeout, None] = {}

    def check_head(self, method: str, *, is_encoded: bool, length: int | None) -> Answer | None:
        """
        Return the refusal of a request by its head; `None`: go on to its body.

        Args:
            method: As sent.

            is_encoded: Whether a ``Content-Encoding`` changes the bytes; see `changes_bytes`.

            length: ``Content-Length``, or what has come if all has; `None` if unknown.
        """
        if method != "POST":
            return _NO_POST
        if is_encoded:
            return _ENCODED
        if length is not None and length > MAX_BODY_LENGTH:
            return _TOO_LONG
        return None

    async def read(self, next_part: Callable[[], Awaitable[bytes | None]]) -> bytes | Answer:
        """
        Return a body, read part by part until `None`; or the refusal of it.

        Raises:
            GoneError: By *next_part*.
        """
        body = bytearray()

        async def collect() -> None:
            while len(body) <= MAX_BODY_LENGTH and (part := await next_part()) is not None:
                body.extend(part)

        try:
            await _with_timeout(READ_TIMEOUT_S, collect(), self._waiting)
        except TimeoutError:
            # The rest may have come in the very turn in which the time was over.
            try:
                async with asyncio.timeout(0.0):
                    await collect()
            except TimeoutError:
                return _TOO_SLOW
        return bytes(body) if len(body) <= MAX_BODY_LENGTH else _TOO_LONG

    @contextlib.contextmanager
    def _waiting(self, timeout: asyncio.Timeout) -> Generator[None]:
        """Count a body as waited for, in place of the oldest if there are too many."""
        if len(self._reads) >= MAX_READS:
            self.drop_oldest()
        self._reads[timeout] = None
        try:
            yield
        finally:
            self._reads.pop(timeout, None)

    def drop_oldest(self) -> bool:
        """End the wait for the body that is waited for longest; return whether there was one."""
        oldest = next(iter(self._reads), None)
        if oldest is None:
            return False
        del self._reads[oldest]
        if not oldest.expired():
            oldest.reschedule(0.0)
        return True

    async def handle(
        self, headers: Iterable[tuple[bytes, bytes]], body: bytes, query: str | bytes
    ) -> Answer:
        """Have the session take a delivery, and return the answer to it."""
        answer = _RECEIVED
        try:
            await _with_timeout(
                HANDLE_TIMEOUT_S, self._session.handle_callback(headers, body, query=query)
            )
        except SignatureError:
            answer = _UNAUTHENTIC
        except CallbackFormatError:
            answer = UNREADABLE
        except (LedgerError, SessionClosedError):
            answer = _UNAVAILABLE
        except TimeoutError:
            text = "the session took too long over a callback: answered 503"
            self._log.error("slow", text)
            answer = _UNAVAILABLE
        except Exception as error:  # noqa: BLE001 - a route answers whatever happens
            self._log.error(type(error).__name__, _describe(error))
            answer = _BROKEN
        return answer


def changes_bytes(encodings: Iterable[str]) -> bool:
    """
    Return whether the values of ``Content-Encoding`` name one that changes the bytes.

    ``identity`` does not, and an empty value names none.
    """
    names = ",".join(encodings).lower().split(",")
    return any(name.strip() not in {"", "identity"} for name in names)


async def _with_timeout(
    timeout_s: float,
    coroutine: Coroutine[Any, Any, object],
    waiting: Callable[[asyncio.Timeout], AbstractContextManager[object]] = contextlib.nullcontext,
) -> None:
    """
    Await *coroutine*, which mostly ends without waiting: then no timer is set.

    A timer per request would cost a tenth of what all of the request does.

    Args:
        timeout_s: Time limit in seconds.

        coroutine: Not begun yet.

        waiting: Makes the context of the wait, if there is one, from its time limit.
    """
    try:
        waited: object = coroutine.send(None)
    except StopIteration:
        return
    async with asyncio.timeout(None) as timeout:

        def end() -> None:
            if not timeout.expired():
                timeout.reschedule(0.0)

        timer = PatientTimer(timeout_s, end)
        try:
            with waiting(timeout):
                await _Rest(coroutine, waited)
        finally:
            timer.cancel()


class _Rest:
    """What is left of a coroutine that was begun and is waiting."""

    __slots__ = ("_coroutine", "_waited")

    def __init__(self, coroutine: Coroutine[Any, Any, object], waited: object) -> None:
        self._coroutine = coroutine
        self._waited = waited

    def __await__(self) -> Generator[object, None, None]:
        """Wait for what it waits for, and pass on whatever comes of that."""
        waited = self._waited
        while True:
            thrown: BaseException | None = None
            try:
                yield waited
            except BaseException as error:  # noqa: BLE001 - cancellations too are for the coroutine
                thrown = error
            try:
                if thrown is None:
                    waited = self._coroutine.send(None)
                else:
                    waited = self._coroutine.throw(thrown)
            except StopIteration:
                return


def _describe(error: Exception) -> str:
    """Say where *error* was raised, without its text, which may quote the request."""
    # A plain RuntimeError is a session not entered, or in another loop, and says so.
    text = f": {error}" if type(error) is RuntimeError else ""
    places = "".join(traceback.format_tb(error.__traceback__))
    name = type(error).__name__
    return f"a callback could not be taken and was answered 500: {name}{text}\n{places}"
