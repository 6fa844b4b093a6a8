"""
The one place where tasks are created, and what tells who was cancelled.

A task of ours always starts in the next iteration of the loop. With an eager
task factory (Python 3.12 and later) it would otherwise run inside the call that
creates it, before its creator has noted that it exists, and could end there if
the transport or ledger does not suspend.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


def start(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run *coroutine* as a task of the running loop, whatever the loop's task factory."""
    return asyncio.Task(coroutine, loop=asyncio.get_running_loop())


def is_caller_cancelled() -> bool:
    """
    Return whether the task that runs was cancelled, and not only what it waits for.

    For ``except asyncio.CancelledError``: what is awaited may have been cancelled by
    somebody else, which is no reason to end the caller.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
