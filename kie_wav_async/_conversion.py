"""
The live handle of a conversion: a registry entry that can be awaited.

One slotted object is entry and handle both. A future exists only while somebody
waits, one per waiter, so that cancelling a waiter touches nobody else; it is
always given a value, the error to raise or `None`, and never an exception, so
that a waiter cancelled in the same moment leaves no "never retrieved" behind.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Protocol

from kie_wav_async._lifecycle import Entry, Phase
from kie_wav_async._models import WavFile
from kie_wav_async.errors import SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from kie_wav_async._models import Track
    from kie_wav_async.errors import KieWavError


_SUBMITTING = frozenset({Phase.QUEUED, Phase.SENDING, Phase.UNKNOWN})
_IN_DOUBT = frozenset({Phase.SENDING, Phase.UNKNOWN})
_NEVER_SUBMITTED = frozenset({Phase.REFUSED, Phase.WITHDRAWN})


class Waiter(Protocol):
    """Who is told that a wait is over: a future, or something like one."""

    def done(self) -> bool:
        """Return whether there is nobody left to tell."""
        ...

    def set_result(self, result: KieWavError | None, /) -> object:
        """Take the error that ended the wait; `None`: see the conversion's outcome."""
        ...


class Hub:
    """
    What all conversions of a session share: its loop, and whether it is open.

    Attributes:
        loop: The loop the session was entered in; `None` before.

        closed: What a wait ends with once the session closes; `None` before.

        close_listeners: Called when the session closes.

        on_wait: Called when somebody begins to wait for a task in flight.

        on_abandon: Called when the last waiter of a queued submit is gone.
    """

    __slots__ = ("close_listeners", "closed", "loop", "on_abandon", "on_wait")

    def __init__(self) -> None:
        """Start before the session is entered."""
        self.loop: asyncio.AbstractEventLoop | None = None
        self.closed: SessionClosedError | None = None
        self.close_listeners: set[Callable[[], None]] = set()
        self.on_wait: Callable[[], None] = lambda: None
        self.on_abandon: Callable[[Conversion], None] = lambda _: None

    def verify_loop(self) -> asyncio.AbstractEventLoop:
        """
        Return the session's loop if the caller runs on it.

        Raises:
            RuntimeError: The session was not entered, or in another loop.
        """
        if self.loop is None:
            msg = "the session is not open: use it inside `async with WavSession(...) as session:`"
            raise RuntimeError(msg)
        try:
            is_ours = asyncio.get_running_loop() is self.loop
        except RuntimeError:  # There is none here: another thread.
            is_ours = False
        if not is_ours:
            msg = (
                "the session belongs to another event loop: open one session per loop, "
                "with `async with WavSession(...) as session:`"
            )
            raise RuntimeError(msg)
        return self.loop

    def verify_open(self) -> asyncio.AbstractEventLoop:
        """
        Return the session's loop if it is open and the caller runs on it.

        Raises:
            RuntimeError: The session was not entered, or in another loop.

            SessionClosedError: The session was closed.
        """
        loop = self.verify_loop()
        if self.closed is not None:
            raise self.closed.about()
        return loop


class Conversion(Entry):
    """
    One conversion: await it as often as you like, from as many tasks as you like.

    ``await conversion`` returns the `WavFile` or raises how the wait ended:
    `ConversionFailedError`, `ConversionTimeoutError`, `NotFoundError`,
    `AuthenticationError` or `SessionClosedError`, each waiter an object of its
    own. Cancelling a waiter touches neither the task nor other waiters (but a
    submit that is still queued is cancelled with the last of its callers, see
    `WavSession.submit`); for a limit of your own use `asyncio.timeout`.

    Attributes:
        task_id: The service's id of the task.

        track: What is converted; `None` if attached without one.
    """

    __slots__ = (
        "_hub",
        "_submit_waiters",
        "_waiters",
        "awaits_callback",
        "due_mono_s",
        "is_patient",
        "is_unwritten",
    )

    def __init__(self, track: Track | None, hub: Hub) -> None:
        """Start without waiters."""
        super().__init__(track)
        self._hub = hub
        # Ordered sets: told in the order they came, and any may leave.
        self._waiters: dict[Waiter, None] | None = None
        self._submit_waiters: dict[Waiter, None] | None = None
        #: Whether its submit sits out a maintenance, however long.
        self.is_patient = False
        #: When it is polled next, by the schedule; infinite while that poll is on the wire.
        self.due_mono_s = math.inf
        #: Whether its first poll is at the backstop, because callbacks are healthy.
        self.awaits_callback = False
        #: Whether its end is still on its way into the ledger.
        self.is_unwritten = False

    def __repr__(self) -> str:
        """Name the task, the track and the phase."""
        if not hasattr(self, "is_unwritten"):  # Its last attribute.
            return "<Conversion not constructed>"
        named = self.task_id or "no task yet"
        return f"<Conversion {named} of {self.track} {self.phase.name.lower()}>"

    def done(self) -> bool:
        """Return whether the conversion is terminal."""
        return self.outcome is not None and not self.is_unwritten

    def result(self) -> WavFile:
        """
        Return the file.

        Raises:
            KieWavError: How the conversion ended, if it ended badly.

            asyncio.InvalidStateError: It is not terminal yet.
        """
        outcome = None if self.is_unwritten else self.outcome
        if isinstance(outcome, WavFile):
            return outcome
        if outcome is None:
            msg = "the conversion is not terminal yet: await it"
            raise asyncio.InvalidStateError(msg)
        raise self.told(outcome)

    def __await__(self) -> Generator[object, None, WavFile]:
        """Wait for the file; see the class."""
        return self.wait().__await__()

    async def wait(self) -> WavFile:
        """
        Wait for the file, as a coroutine: for ``create_task``.

        Raises:
            KieWavError: How the wait ended, if not with a file; see the class.

            RuntimeError: Called from another loop than the session's.
        """
        if not self.done():
            loop = self._hub.verify_loop()
            if self._hub.closed is not None:
                raise self.told(self._hub.closed)
            waiter: asyncio.Future[KieWavError | None] = loop.create_future()
            self.add_waiter(waiter)
            try:
                error = await waiter
            finally:
                self.drop_waiter(waiter)
                # An error keeps the frames it came through, and all that they name.
                del waiter
            if error is not None:
                raise self.told(error)
        return self.result()

    async def wait_submitted(self) -> None:
        """
        Wait until the service has taken the submit.

        Raises:
            KieWavError: How the submit ended, if not with a task.
        """
        while self.phase in _SUBMITTING:
            loop = self._hub.verify_open()
            waiter: asyncio.Future[KieWavError | None] = loop.create_future()
            if self._submit_waiters is None:
                self._submit_waiters = {}
            self._submit_waiters[waiter] = None
            try:
                error = await waiter
            finally:
                self.drop_waiter(waiter)
            if error is not None:
                raise self.told(error)
        if self.phase in _NEVER_SUBMITTED:
            self.result()

    # --- for the session's rooms, not for users -------------------------------------

    @property
    def is_awaited(self) -> bool:
        """Whether anybody waits, for the file or for the submit."""
        return bool(self._waiters or self._submit_waiters)

    def add_waiter(self, waiter: Waiter) -> None:
        """Have *waiter* told when the wait for the file is over."""
        if self._waiters is None:
            self._waiters = {}
        self._waiters[waiter] = None
        if self.phase is Phase.ACCEPTED:
            self._hub.on_wait()

    def drop_waiter(self, waiter: Waiter) -> None:
        """Forget *waiter*; a queued submit that nobody waits for is withdrawn."""
        for waiters in (self._waiters, self._submit_waiters):
            if waiters is not None and waiter in waiters:
                del waiters[waiter]
                if self.phase is Phase.QUEUED and not self.is_awaited:
                    self._hub.on_abandon(self)

    def wake(self, error: KieWavError | None = None) -> None:
        """End every wait: with *error*, or `None` if the outcome tells."""
        self.wake_submitted(error)
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(error)

    def wake_submitted(self, error: KieWavError | None = None) -> None:
        """End the waits for the submit only."""
        waiters, self._submit_waiters = self._submit_waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(error)

    def told(self, error: KieWavError) -> KieWavError:
        """Return *error* as a new object that names this conversion."""
        if isinstance(error, SessionClosedError):
            return SessionClosedError(
                open_task_ids=error.open_task_ids,
                is_submitting=self.phase in _IN_DOUBT,
                task_id=self.task_id or None,
                track=self.track,
            )
        return error.about(task_id=self.task_id or None, track=self.track)
