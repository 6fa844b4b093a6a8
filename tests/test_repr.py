"""Everything public can be shown, in every state: error trackers show what they find."""

from __future__ import annotations

import asyncio
import enum
import gc
import importlib
import inspect

import attrs
import pytest

from kie_wav_async import Conversion, Track, WavSession
from kie_wav_async.ledger import SqliteLedger
from kie_wav_async.session import batch
from kie_wav_async.testing import ScriptedTransport
from kie_wav_async.webhook import CallbackServer

NAMES = ("", ".errors", ".events", ".ledger", ".simulator", ".testing", ".webhook")
MODULES = [importlib.import_module(f"kie_wav_async{name}") for name in NAMES]
KINDS = {
    f"{module.__name__}.{name}": kind
    for module in MODULES
    for name in module.__all__
    if inspect.isclass(kind := getattr(module, name))
    if not issubclass(kind, enum.Enum) and not getattr(kind, "_is_protocol", False)
}


class Nonsense:
    """What no parameter wants."""


def unfinished(kind: type, error: BaseException) -> list[object]:
    """Return the objects of *kind* whose making *error* ended, out of its frames."""
    found: dict[int, object] = {}
    trace = error.__traceback__
    while trace is not None:
        for value in trace.tb_frame.f_locals.values():
            if type(value) is kind:
                found[id(value)] = value
        trace = trace.tb_next
    return list(found.values())


@pytest.mark.parametrize("name", KINDS)
def test_what_could_not_be_made_can_be_shown(name) -> None:
    """An object whose constructor refused an argument has a `repr`, whichever it refused."""
    kind = KINDS[name]
    parameters = inspect.signature(kind).parameters.values()
    named = [p for p in parameters if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
    for count in range(1, len(named) + 1):
        # Those before it are left out, if they may be, so that each has its turn.
        given = {
            p.name: Nonsense()
            for number, p in enumerate(named, 1)
            if number == count or p.default is p.empty
        }
        positional = [given.pop(p.name) for p in named if p.kind is p.POSITIONAL_ONLY]
        try:
            made = kind(*positional, **given)
        except Exception as error:  # noqa: BLE001 - whatever it is, what it leaves is shown
            for left in unfinished(kind, error):
                assert kind.__name__ in repr(left) + str(left)
        else:
            assert repr(made)


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in {*KINDS.values(), batch._BatchIterator}
        if not attrs.has(kind) and not issubclass(kind, BaseException | tuple)
    ],
)
def test_what_has_nothing_yet_can_be_shown(kind) -> None:
    """An object before its constructor has a `repr`, and goes without a word."""
    empty = kind.__new__(kind)
    assert kind.__name__ in repr(empty) + str(empty)
    del empty
    gc.collect()


async def test_each_state_is_shown(tmp_path) -> None:
    """Sessions, ledgers, conversions and servers are shown in every state, closed ones too."""
    ledger = SqliteLedger(tmp_path / "l.sqlite3")
    session = WavSession("key", transport=ScriptedTransport([]), ledger=ledger)
    shown = [repr(session)]
    async with session:
        conversion = session.attach("t1", track=Track("m", "a"))
        server = CallbackServer(session)
        shown += [repr(session), repr(conversion), repr(server), repr(ledger)]
        async with server:
            shown.append(repr(server))
    shown += [repr(session), repr(conversion), repr(server), repr(ledger)]
    assert ["not entered", "open", "closed"] == [
        shown[n].rpartition("https://api.kie.ai ")[2].rstrip(">") for n in (0, 1, 6)
    ]
    assert "t1" in shown[2]
    assert all(shown)


def test_a_refused_session_says_so() -> None:
    """A session whose constructor raised says that it was never made."""
    with pytest.raises(ValueError, match="max_in_flight") as caught:
        WavSession("key", max_in_flight=0)
    (left,) = unfinished(WavSession, caught.value)
    assert "<WavSession not constructed>" == repr(left)
    asyncio.run(left_alone(left))


async def left_alone(session: WavSession) -> None:
    """Let what was never made go."""
    del session
    gc.collect()


def test_a_refused_conversion_and_ledger_say_so() -> None:
    """What has no fields yet is named, and nothing else is said of it."""
    assert "<Conversion not constructed>" == repr(Conversion.__new__(Conversion))
    assert "<SqliteLedger not constructed>" == repr(SqliteLedger.__new__(SqliteLedger))
