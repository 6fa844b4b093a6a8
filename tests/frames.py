"""
A search through all that an error carries, frame by frame, for texts that must not be there.

An error tracker records the local variables of each frame, of an error and of all that
led to it. What is looked at here is more than that: the attributes and slots of what the
variables hold, the values in dictionaries and other collections, and what functions
enclose, some steps deep. Frames of the tests themselves are left out, as they hold the
secrets they look for.
"""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import Iterator, Mapping
from pathlib import Path

import aiohttp
import attrs
from yarl import URL

TESTS = str(Path(__file__).resolve().parent)

#: How far into an object is looked.
_DEPTH = 7

#: What holds all that a process does just now, and no error's business.
_OPAQUE = (
    *(types.ModuleType, type, types.CodeType, types.FrameType, types.BuiltinFunctionType),
    *(asyncio.AbstractEventLoop, asyncio.Future, asyncio.BaseTransport, asyncio.BaseProtocol),
    *(aiohttp.ClientSession, aiohttp.BaseConnector),
)


@attrs.frozen
class Leak:
    """Where a secret is: the frame, the variable and the way from there."""

    frame: str
    path: str


def leaks(error: BaseException, *secrets: str) -> list[Leak]:
    """Return every place that *error* carries one of *secrets* in."""
    found: list[Leak] = []
    for one in chain(error):
        texts = [str(one), repr(one), repr(one.args), *getattr(one, "__notes__", ())]
        if any(_is_in(text, secrets) for text in texts):
            found.append(Leak("-", f"text of {type(one).__name__}"))
        found += [Leak("-", f"{type(one).__name__}{path}") for path in _find(vars(one), secrets)]
        trace = one.__traceback__
        while trace is not None:
            frame = trace.tb_frame
            name = f"{frame.f_code.co_filename}:{frame.f_code.co_name}"
            if not frame.f_code.co_filename.startswith(TESTS):
                found += [Leak(name, path) for path in _find_in_locals(frame.f_locals, secrets)]
            trace = trace.tb_next
    return found


def chain(error: BaseException) -> list[BaseException]:
    """Return *error* and everything that led to it, also within groups."""
    found = [error]
    for one in found:
        led_here = [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            led_here += one.exceptions
        found += [other for other in led_here if other is not None and other not in found]
    return found


def frames(error: BaseException) -> Iterator[str]:
    """Yield the files of all frames that *error* carries."""
    for one in chain(error):
        trace = one.__traceback__
        while trace is not None:
            yield trace.tb_frame.f_code.co_filename
            trace = trace.tb_next


def _is_in(text: str, secrets: tuple[str, ...]) -> bool:
    return any(secret in text for secret in secrets)


def _find_in_locals(local: Mapping[str, object], secrets: tuple[str, ...]) -> Iterator[str]:
    seen: set[int] = set()
    for name, value in local.items():
        # As trackers do: what looks like a dictionary is taken for one.
        items = dict(value.items()) if isinstance(value, Mapping) else value
        for path in _find(items, secrets, seen=seen):
            yield f"{name}{path}"


def _find(
    value: object, secrets: tuple[str, ...], depth: int = 0, seen: set[int] | None = None
) -> Iterator[str]:
    """Yield the ways from *value* to a secret."""
    seen = set() if seen is None else seen
    if value is None or isinstance(value, int | float) or depth > _DEPTH:
        return
    if isinstance(value, str | bytes | bytearray | URL):
        text = value.decode("latin-1") if isinstance(value, bytes | bytearray) else str(value)
        if _is_in(text, secrets):
            yield f" = {text[:60]!r}"
        return
    if id(value) in seen or isinstance(value, _OPAQUE):
        return
    seen.add(id(value))
    try:
        shown = repr(value)
    except Exception as error:  # noqa: BLE001 - a half-made object of somebody else's
        shown = repr(type(error))
    if _is_in(shown, secrets):
        yield " (its repr)"
    if type(value).__name__ == "Secret":
        return
    for step, part in _parts(value):
        for path in _find(part, secrets, depth + 1, seen):
            yield f"{step}{path}"


def _parts(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r:.30}]", item) for key, item in list(value.items()))
        yield " keys", list(value)
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{number}]", item) for number, item in enumerate(list(value)))
    elif isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # An empty one.
                yield ".closure", cell.cell_contents
    elif isinstance(value, types.MethodType):
        yield ".self", value.__self__
    elif not isinstance(value, BaseException):  # Those in a chain have their turn.
        yield from ((f".{name}", item) for name, item in vars_of(value).items())


def vars_of(value: object) -> dict[str, object]:
    """Return the attributes of *value*, those in slots too."""
    found = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            is_private = slot.startswith("__") and not slot.endswith("__")
            name = f"_{kind.__name__.lstrip('_')}{slot}" if is_private else slot
            if name not in {"__dict__", "__weakref__"} and hasattr(value, name):
                found[name] = getattr(value, name)
    return found
