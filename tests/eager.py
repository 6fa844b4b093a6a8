"""Eager task factories: those of the standard library, and one for Python 3.11."""

from __future__ import annotations

import asyncio
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator


def start_at_once(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **settings: Any
) -> asyncio.Task[Any]:
    """Run *coroutine* until it first waits, as `asyncio.eager_task_factory` does."""
    if not loop.is_running():
        return asyncio.Task(coroutine, loop=loop, **settings)
    try:
        waited_for = coroutine.send(None)
    except StopIteration as end:
        return asyncio.Task(_return(end.value), loop=loop, **settings)
    except BaseException as error:  # noqa: BLE001 - it is the task's
        return asyncio.Task(_raise(error), loop=loop, **settings)
    return asyncio.Task(_go_on(coroutine, waited_for), loop=loop, **settings)


async def _return(value: object) -> object:
    return value


async def _raise(error: BaseException) -> None:
    raise error


@types.coroutine
def _go_on(coroutine: Coroutine[Any, Any, Any], waited_for: object) -> Generator[Any, Any, Any]:
    while True:
        try:
            sent = yield waited_for
        except BaseException as error:  # noqa: BLE001 - it is thrown into the coroutine
            step = coroutine.throw, error
        else:
            step = coroutine.send, sent
        try:
            waited_for = step[0](step[1])
        except StopIteration as end:
            return end.value


#: By name: the standard library's where it has them, from Python 3.12 on.
FACTORIES: dict[str, Callable[..., Any]] = {"start_at_once": start_at_once}
if hasattr(asyncio, "eager_task_factory"):
    FACTORIES = {
        "eager_task_factory": asyncio.eager_task_factory,
        "create_eager_task_factory": asyncio.create_eager_task_factory(asyncio.Task),
    }
