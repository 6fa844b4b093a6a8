"""
Secrets: a value that no text shows, and errors without the frames that saw one.

Error trackers record the local variables of every frame that an error carries. So a
key is held by one object, whose `repr` shows nothing, and is taken out of it only
within calls that raise nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
R = TypeVar("R")


class Secret(Generic[T]):
    """Holds a value, and shows it to nobody who does not ask for it by `reveal`."""

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        """Hold *value*."""
        self._value = value

    def __repr__(self) -> str:
        """Show nothing."""
        return "<redacted>"

    def __reduce__(self) -> str | tuple[object, ...]:
        """Refuse to be pickled or copied."""
        msg = "a secret is not pickled"
        raise TypeError(msg)

    def reveal(self) -> T:
        """Return the value; keep it in no variable of a frame that can raise."""
        return self._value

    def parse(self, parse: Callable[[T], R]) -> R:
        """
        Return what *parse* makes of the value.

        Raises:
            TypeError, ValueError: As *parse* does, without the frames that saw the value.
        """
        before = sys.exception()
        try:
            return parse(self._value)
        except (TypeError, ValueError) as error:
            refusal = error
        drop_frames(refusal, before)
        raise refusal


def drop_frames(error: BaseException, before: BaseException | None) -> None:
    """
    Take the frames off *error* and off everything that led to it.

    Args:
        error: What was raised.

        before: What `sys.exception` returned before: somebody else's, and left alone.
    """
    chain = [error]
    for link in chain:
        link.__traceback__ = None
        led_here = [link.__cause__, link.__context__]
        if isinstance(link, BaseExceptionGroup):
            led_here += cast("BaseExceptionGroup[BaseException]", link).exceptions
        chain += [one for one in led_here if one is not None and one not in (*chain, before)]
