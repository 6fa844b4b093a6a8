"""
Conversions: the handle that a user has of one, and how it is waited for.

A future exists only while somebody waits, one per waiter, so that cancelling a waiter
touches nobody else. It is always given a value, the error to raise or `None`, and never
an exception, so that a waiter cancelled in the same moment leaves no "never retrieved"
behind.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, cast

from kie_wav_async._support.validation import verify_type
from kie_wav_async.core.state_machine import TaskEntry
from kie_wav_async.models import WavFile

if TYPE_CHECKING:
    from collections.abc import Generator

    from kie_wav_async.errors import KieWavError
    from kie_wav_async.models import Track
    from kie_wav_async.session.loop import SessionLoop


def handle_of(entry: TaskEntry, loop: SessionLoop) -> Conversion:
    """Return what the user has of *entry*: the same object as long as one is kept."""
    # Weak: an entry and its handle would be freed by the garbage collector only.
    kept = cast("weakref.ref[Conversion] | None", entry.handle)
    handle = None if kept is None else kept()
    if handle is None:
        handle = Conversion(entry, loop)
        entry.handle = weakref.ref(handle)
    return handle


def result_of(entry: TaskEntry) -> WavFile:
    """
    Return the file of a conversion.

    Raises:
        KieWavError: How the conversion ended, if it ended badly.

        asyncio.InvalidStateError: It is not terminal yet.
    """
    outcome = None if entry.is_unwritten else entry.outcome
    if isinstance(outcome, WavFile):
        return outcome
    if outcome is None:
        msg = "the conversion is not terminal yet: await it"
        raise asyncio.InvalidStateError(msg)
    raise entry.error_for_waiter(outcome)


async def wait_for(entry: TaskEntry, loop: SessionLoop) -> WavFile:
    """
    Wait for the file of a conversion.

    Raises:
        KieWavError: How the wait ended, if not with a file.

        RuntimeError: Called from another loop than the session's.
    """
    if not entry.done():
        state = loop.context.state
        running = state.verify_loop()
        if state.closed is not None:
            raise entry.error_for_waiter(state.closed)
        waiter: asyncio.Future[KieWavError | None] = running.create_future()
        loop.add_waiter(entry, waiter)
        try:
            error = await waiter
        finally:
            loop.drop_waiter(entry, waiter)
            # An error keeps the frames it came through, and all that they name.
            del waiter
        if error is not None:
            raise entry.error_for_waiter(error)
    return result_of(entry)


async def wait_for_submit(entry: TaskEntry, loop: SessionLoop) -> None:
    """
    Wait until the service has taken the submit of a conversion.

    Raises:
        KieWavError: How the submit ended, if not with a task.
    """
    while entry.phase.is_submitting:
        waiter: asyncio.Future[KieWavError | None]
        waiter = loop.context.state.verify_open().create_future()
        loop.add_waiter(entry, waiter, for_submit=True)
        try:
            error = await waiter
        finally:
            loop.drop_waiter(entry, waiter)
        if error is not None:
            raise entry.error_for_waiter(error)
    if entry.phase.created_nothing:
        _ = result_of(entry)


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

    __slots__ = ("__weakref__", "_entry", "_loop")

    def __init__(self, entry: TaskEntry, loop: SessionLoop) -> None:
        """Show *entry*; sessions make these."""
        verify_type(entry, TaskEntry, "entry")
        self._entry = entry
        self._loop = loop

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
        return result_of(self._entry)

    def __await__(self) -> Generator[object, None, WavFile]:
        """Wait for the file; see the class."""
        return wait_for(self._entry, self._loop).__await__()

    async def wait(self) -> WavFile:
        """
        Wait for the file, as a coroutine: for ``create_task``.

        Raises:
            KieWavError: How the wait ended, if not with a file; see the class.

            RuntimeError: Called from another loop than the session's.
        """
        return await wait_for(self._entry, self._loop)
