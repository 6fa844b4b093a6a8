"""
Asyncio client for KIE.AI's WAV conversion: a track goes in, a WAV comes out.

::

    from kie_wav_async import Track, WavSession

    async with WavSession() as session:
        wav = await session.convert(Track("5c79", "e231"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from kie_wav_async import errors
from kie_wav_async._support.clock import Clock, SystemClock
from kie_wav_async._support.version import __version__ as __version__
from kie_wav_async.callbacks.signature import sign
from kie_wav_async.core.policies import PollSchedule, RateLimit, RetryPolicy
from kie_wav_async.http.transport import AiohttpTransport, Transport
from kie_wav_async.models import (
    Callback,
    CallbackResult,
    CallbackTrust,
    Download,
    OnUnknown,
    Statistics,
    TaskRecord,
    TaskState,
    Track,
    UnknownSubmit,
    WavFile,
)
from kie_wav_async.protocol.http_messages import WireRequest, WireResponse
from kie_wav_async.session.batch import Batch
from kie_wav_async.session.conversion import Conversion
from kie_wav_async.session.outcome import Outcome
from kie_wav_async.session.session import WavSession
from kie_wav_async.session.verification import parse_callback, verify_signature

__all__ = [
    "AiohttpTransport",
    "Batch",
    "Callback",
    "CallbackResult",
    "CallbackTrust",
    "Clock",
    "Conversion",
    "Download",
    "OnUnknown",
    "Outcome",
    "PollSchedule",
    "RateLimit",
    "RetryPolicy",
    "Statistics",
    "SystemClock",
    "TaskRecord",
    "TaskState",
    "Track",
    "Transport",
    "UnknownSubmit",
    "WavFile",
    "WavSession",
    "WireRequest",
    "WireResponse",
    "errors",
    "events",
    "parse_callback",
    "sign",
    "verify_signature",
]

if TYPE_CHECKING:
    from kie_wav_async import events
else:

    def __getattr__(name: str) -> object:
        """Load the events when they are asked for: they are for programs with ``on_event``."""
        if name == "events":
            return importlib.import_module("kie_wav_async.events")
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
