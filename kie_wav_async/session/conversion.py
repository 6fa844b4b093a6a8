"""
Conversions: what a session has of one, and what its user has.

A future exists only while somebody
waits, one per waiter, so that cancelling a waiter touches nobody else; it is
always given a value, the error to raise or `None`, and never an exception, so
that a waiter cancelled in the same moment leaves no "never retrieved" behind.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from typing import TYPE_CHECKING, Protocol

from kie_wav_async._support.validation import verify_type
from kie_wav_async.core.state_machine import Phase, TaskEntry
from kie_wav_async.errors import SessionClosedError
from kie_wav_async.models import WavFile

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from kie_wav_async.errors import KieWavError
    from kie_wav_async.models import Track


class Waiter(Protocol):
    """What is notified when a wait is over: a future, or something like one."""

    def done(self) -> bool:
        """Return whether it needs no notification any more."""
        ...

    def set_result(self, result: KieWavError | None, /) -> object:
        """Take the error that ended the wait; `None`: see the conversion's outcome."""
        ...


class SessionState:
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
        self.on_abandon: Callable[[ConversionEntry], None] = lambda _: None

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


class ConversionEntry(TaskEntry):
    """
    One conversion of a session, with those who wait for it.

    Attributes:
        waits_for_maintenance: Whether its submit waits for the end of a maintenance,
            however long.

        next_poll_at: When it is polled next by the schedule, monotonic; infinite while
            that poll is in progress.

        awaits_callback: Whether its first poll is at the backstop, because callbacks
            are healthy.

        is_unwritten: Whether its end is not in the ledger yet.
    """

    __slots__ = (
        "_handle",
        "_session_state",
        "_waiters",
        "awaits_callback",
        "is_unwritten",
        "next_poll_at",
        "waits_for_maintenance",
    )

    def __init__(self, track: Track | None, session_state: SessionState) -> None:
        """Start without waiters."""
        super().__init__(track)
        # Weak: an entry and its handle would be freed by the garbage collector only.
        self._handle: weakref.ref[Conversion] | None = None
        self._session_state = session_state
        # In the order they came, and whether they wait for the end of the submit only.
        self._waiters: dict[Waiter, bool] | None = None
        self.waits_for_maintenance = False
        self.next_poll_at = math.inf
        self.awaits_callback = False
        self.is_unwritten = False

    def handle(self) -> Conversion:
        """Return what the user has of it: the same object as long as one is kept."""
        handle = None if self._handle is None else self._handle()
        if handle is None:
            handle = Conversion(self)
            self._handle = weakref.ref(handle)
        return handle

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
        raise self.error_for_waiter(outcome)

    async def wait(self) -> WavFile:
        """
        Wait for the file.

        Raises:
            KieWavError: How the wait ended, if not with a file.

            RuntimeError: Called from another loop than the session's.
        """
        if not self.done():
            loop = self._session_state.verify_loop()
            if self._session_state.closed is not None:
                raise self.error_for_waiter(self._session_state.closed)
            waiter: asyncio.Future[KieWavError | None] = loop.create_future()
            self.add_waiter(waiter)
            try:
                error = await waiter
            finally:
                self.drop_waiter(waiter)
                # An error keeps the frames it came through, and all that they name.
                del waiter
            if error is not None:
                raise self.error_for_waiter(error)
        return self.result()

    async def wait_submitted(self) -> None:
        """
        Wait until the service has taken the submit.

        Raises:
            KieWavError: How the submit ended, if not with a task.
        """
        while self.phase.is_submitting:
            loop = self._session_state.verify_open()
            waiter: asyncio.Future[KieWavError | None] = loop.create_future()
            self._put_waiter(waiter, for_submit=True)
            try:
                error = await waiter
            finally:
                self.drop_waiter(waiter)
            if error is not None:
                raise self.error_for_waiter(error)
        if self.phase.created_nothing:
            self.result()

    @property
    def is_awaited(self) -> bool:
        """Whether anybody waits, for the file or for the submit."""
        return bool(self._waiters)

    def add_waiter(self, waiter: Waiter) -> None:
        """Notify *waiter* when the wait for the file is over."""
        self._put_waiter(waiter, for_submit=False)
        if self.phase is Phase.ACCEPTED:
            self._session_state.on_wait()

    def _put_waiter(self, waiter: Waiter, *, for_submit: bool) -> None:
        if self._waiters is None:
            self._waiters = {}
        self._waiters[waiter] = for_submit

    def drop_waiter(self, waiter: Waiter) -> None:
        """Forget *waiter*; a queued submit that nobody waits for is cancelled."""
        if self._waiters is not None and waiter in self._waiters:
            del self._waiters[waiter]
            if self.phase is Phase.QUEUED and not self._waiters:
                self._session_state.on_abandon(self)

    def notify_waiters(self, error: KieWavError | None = None) -> None:
        """End every wait: with *error*, or with the conversion's outcome if it is `None`."""
        self.notify_submit_waiters(error)
        waiters, self._waiters = self._waiters or {}, None
        _notify(waiters, error)

    def notify_submit_waiters(self, error: KieWavError | None = None) -> None:
        """End the waits for the submit only."""
        waiters = self._waiters or {}
        of_submit = [waiter for waiter, for_submit in waiters.items() if for_submit]
        for waiter in of_submit:
            del waiters[waiter]
        self._waiters = waiters or None
        _notify(of_submit, error)

    def error_for_waiter(self, error: KieWavError) -> KieWavError:
        """Return *error* as a new object that names this conversion."""
        if isinstance(error, SessionClosedError):
            return SessionClosedError(
                open_task_ids=error.open_task_ids,
                is_submitting=self.phase.may_be_accepted,
                task_id=self.task_id or None,
                track=self.track,
            )
        return error.about(task_id=self.task_id or None, track=self.track)


def _notify(waiters: Iterable[Waiter], error: KieWavError | None) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(error)


class Conversion:
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

    __slots__ = ("__weakref__", "_entry")

    def __init__(self, entry: ConversionEntry) -> None:
        """Show *entry*."""
        verify_type(entry, ConversionEntry, "entry")
        self._entry = entry

    def __repr__(self) -> str:
        """Name the task, the track and the phase."""
        if not hasattr(self, "_entry"):
            return "<Conversion not constructed>"
        named = self.task_id or "no task yet"
        return f"<Conversion {named} of {self.track} {self._entry.phase.name.lower()}>"

    @property
    def task_id(self) -> str:
        """The service's id of the task; ``""`` until it is known."""
        return self._entry.task_id

    @property
    def track(self) -> Track | None:
        """What is converted; `None` if attached without one."""
        return self._entry.track

    def done(self) -> bool:
        """Return whether the conversion is terminal."""
        return self._entry.done()

    def result(self) -> WavFile:
        """
        Return the file.

        Raises:
            KieWavError: How the conversion ended, if it ended badly.

            asyncio.InvalidStateError: It is not terminal yet.
        """
        return self._entry.result()

    def __await__(self) -> Generator[object, None, WavFile]:
        """Wait for the file; see the class."""
        return self._entry.wait().__await__()

    async def wait(self) -> WavFile:
        """
        Wait for the file, as a coroutine: for ``create_task``.

        Raises:
            KieWavError: How the wait ended, if not with a file; see the class.

            RuntimeError: Called from another loop than the session's.
        """
        return await self._entry.wait()
