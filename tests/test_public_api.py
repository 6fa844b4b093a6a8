"""What users import, by name and by signature: a change here is a change of theirs."""

from __future__ import annotations

import importlib
import inspect
from importlib import metadata
from typing import Any

import pytest

import kie_wav_async as kie
from kie_wav_async import webhook

NAMES = {
    "kie_wav_async": [
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
    ],
    "kie_wav_async.errors": [
        "AlreadyExistsError",
        "AuthenticationError",
        "CallbackFormatError",
        "ChargeLimitError",
        "ConversionFailedError",
        "ConversionTimeoutError",
        "DownloadError",
        "EndpointGoneError",
        "FeatureDisabledError",
        "InsufficientCreditsError",
        "InvalidRequestError",
        "KieWavError",
        "LedgerError",
        "MaintenanceError",
        "NotFoundError",
        "RateLimitedError",
        "ServerError",
        "ServiceError",
        "SessionClosedError",
        "SignatureError",
        "SourceUnavailableError",
        "SubmitUnknownError",
        "TransportError",
        "TransportTimeoutError",
        "WireFormatError",
    ],
    "kie_wav_async.events": [
        "CallbackReceived",
        "CallbackRejected",
        "ConversionEnded",
        "ConversionSucceeded",
        "DownloadCompleted",
        "DownloadProgress",
        "DownloadRetryScheduled",
        "Event",
        "PollingPaused",
        "SubmitAccepted",
        "SubmitRejected",
        "SubmitRetryScheduled",
        "SubmitUnknown",
    ],
    "kie_wav_async.file_names": [
        "DEFAULT_TEMPLATE",
        "collision_key",
        "file_name",
        "unique_suffix",
        "verify_template",
    ],
    "kie_wav_async.ledger": [
        "AttemptEntry",
        "AttemptOutcome",
        "Ledger",
        "LedgerEntry",
        "RecoveryState",
        "SqliteLedger",
        "TrackState",
    ],
    "kie_wav_async.simulator": [
        "Arrival",
        "Delivery",
        "Fault",
        "Simulator",
        "SimulatorProcess",
        "SimulatorState",
    ],
    "kie_wav_async.testing": [
        "FakeClock",
        "MemoryLedger",
        "Reply",
        "ScriptedTransport",
        "SignedCallback",
        "accepted",
        "answer",
        "failed",
        "missing",
        "pending",
        "polled_task_id",
        "refused",
        "signed_callback",
        "submitted_callback_query",
        "submitted_track",
        "succeeded",
    ],
    "kie_wav_async.webhook": ["CallbackServer", "add_callback_route", "asgi_app"],
}

# Parameters of the session's methods, as a call would show them.
METHODS = {
    "aclose": "async (self)",
    "attach": "(self, task_id, *, track=None)",
    "conversions": "(self)",
    "convert": "async (self, track, *, again=False)",
    "convert_all": "(self, tracks)",
    "create_download_url": "async (self, url)",
    "download": "async (self, wav, path, *, accept_short=False)",
    "get_credits": "async (self)",
    "get_task": "async (self, task_id)",
    "handle_callback": "async (self, headers, body, *, query='')",
    "list_tracks": "async (self, music_task_id)",
    "recover": "async (self)",
    "resolve_unknown": "async (self, attempt_id, *, task_id=None, not_charged=False)",
    "statistics": "(self)",
    "submit": "async (self, track, *, again=False)",
    "unknown_submits": "(self)",
}
HANDLES = {
    "Batch": ["__aenter__", "__aexit__", "__aiter__", "__anext__", "aclose"],
    "Conversion": ["__await__", "done", "result", "task_id", "track", "wait"],
    "Outcome": ["ok", "unwrap"],
}
VALUES = {
    "Callback": "task_id code message wav_url timestamp raw",
    "Download": "path bytes sha256 resumed notes",
    "Outcome": "index track wav error",
    "PollSchedule": "first_s interval_s jitter backstop_s max_per_s",
    "RateLimit": "count per_s",
    "RetryPolicy": "attempts base_s cap_s retry_after_cap_s",
    "Statistics": (
        "submitted accepted unknown adopted in_flight settled_by_callback settled_by_poll failed "
        "timed_out polls rejected_429 possible_double_charges duplicate_results "
        "unknown_task_callbacks rejected_callbacks"
    ),
    "TaskRecord": (
        "task_id state status wav_url audio_id error_code error_message created_at completed_at raw"
    ),
    "Track": "music_task_id audio_id title",
    "UnknownSubmit": "track attempt_id at",
    "WavFile": "task_id url track settled_by expires_at accepted_at",
}

FUNCTIONS = {
    "parse_callback": "(headers, body, *, keys, now_unix_s=None, tolerance_s=300.0)",
    "sign": "(task_id, timestamp, key)",
    "verify_signature": (
        "(task_id, timestamp, signature, *, keys, now_unix_s=None, tolerance_s=300.0)"
    ),
}

# The edge has the names of its module, and these parameters.
EDGES = {
    "CallbackServer": "(session, host='127.0.0.1', port=0, *, sock=None)",
    "add_callback_route": "(app, session, path='/kie/callback')",
    "asgi_app": "(session)",
}


def bare(call: Any) -> str:
    """Show the parameters of *call* without their types."""
    signature = inspect.signature(call)
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    text = str(signature.replace(parameters=parameters, return_annotation=signature.empty))
    return f"async {text}" if inspect.iscoroutinefunction(call) else text


@pytest.mark.parametrize("module", NAMES)
def test_the_names_are_pinned(module: str) -> None:
    """A module's ``__all__`` gains and loses no name unseen."""
    assert sorted(NAMES[module]) == sorted(importlib.import_module(module).__all__)


@pytest.mark.parametrize("module", NAMES)
def test_the_names_are_there(module: str) -> None:
    """Every name a module promises can be imported from it."""
    found = importlib.import_module(module)

    assert [] == [name for name in found.__all__ if not hasattr(found, name)]


@pytest.mark.parametrize("module", NAMES)
def test_the_names_are_sorted(module: str) -> None:
    """``__all__`` stands in ASCII order, so that two changes to it do not hide each other."""
    names = importlib.import_module(module).__all__

    assert sorted(names) == list(names)


def test_the_version_is_the_installed_one() -> None:
    """The package tells the version it was installed as."""
    assert metadata.version("kie-wav-async") == kie.__version__


def test_an_unknown_name_is_refused() -> None:
    """Asking the package for what it does not have is an ``AttributeError`` naming it."""
    with pytest.raises(AttributeError, match="nonsense"):
        kie.nonsense  # noqa: B018 - asking is the test


def test_the_settings_of_a_session() -> None:
    """``WavSession`` takes these settings, only the key by position, with these defaults."""
    parameters = dict(inspect.signature(kie.WavSession).parameters)
    clock = parameters.pop("clock")

    assert clock.kind is clock.KEYWORD_ONLY
    assert {
        "api_key": (inspect.Parameter.POSITIONAL_OR_KEYWORD, None),
        **{
            name: (inspect.Parameter.KEYWORD_ONLY, default)
            for name, default in {
                "base_url": None,
                "callback_url": None,
                "webhook_keys": None,
                "callback_trust": kie.CallbackTrust.PAYLOAD,
                "rate_limit": kie.RateLimit(20, per_s=10.0),
                "max_in_flight": 400,
                "poll": kie.PollSchedule(
                    first_s=15.0, interval_s=10.0, jitter=0.2, backstop_s=60.0, max_per_s=30.0
                ),
                "retry": kie.RetryPolicy(
                    attempts=3, base_s=1.0, cap_s=20.0, retry_after_cap_s=300.0
                ),
                "on_unknown": kie.OnUnknown.RAISE,
                "timeout_s": 900.0,
                "max_charges": None,
                "ledger": None,
                "on_event": None,
                "insecure_hosts": None,
                "download_hosts": (),
                "transport": None,
            }.items()
        },
    } == {name: (p.kind, p.default) for name, p in parameters.items()}


def test_the_defaults_of_the_policies() -> None:
    """A policy made without arguments is the one a session has."""
    parameters = inspect.signature(kie.WavSession).parameters

    assert (kie.PollSchedule(), kie.RetryPolicy()) == (
        parameters["poll"].default,
        parameters["retry"].default,
    )


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_of_a_session(name: str) -> None:
    """Each method of ``WavSession`` takes these arguments, and is awaited or not."""
    assert METHODS[name] == bare(getattr(kie.WavSession, name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_functions_without_a_session(name: str) -> None:
    """Each function takes these arguments, and is not awaited."""
    assert FUNCTIONS[name] == bare(getattr(kie, name))


@pytest.mark.parametrize("name", EDGES)
def test_the_edges_for_callbacks(name: str) -> None:
    """Each way to receive callbacks over HTTP takes these arguments."""
    assert EDGES[name] == bare(getattr(webhook, name))


def test_a_session_has_no_other_methods() -> None:
    """``WavSession`` offers what is listed here and nothing else."""
    public = {name for name in vars(kie.WavSession) if not name.startswith("_")}

    assert set(METHODS) == public


def test_a_session_is_a_context_manager() -> None:
    """A session is entered with ``async with``, and cannot be with a plain ``with``."""
    assert hasattr(kie.WavSession, "__aenter__")
    assert hasattr(kie.WavSession, "__aexit__")
    assert not hasattr(kie.WavSession, "__enter__")


@pytest.mark.parametrize("name", HANDLES)
def test_the_handles_have_these_members(name: str) -> None:
    """What a session hands out can be used in these ways."""
    assert [] == [member for member in HANDLES[name] if not hasattr(getattr(kie, name), member)]


@pytest.mark.parametrize("name", VALUES)
def test_the_fields_of_the_values(name: str) -> None:
    """A value has these fields, in this order."""
    assert VALUES[name].split() == list(inspect.signature(getattr(kie, name)).parameters)


def test_the_positional_fields_of_a_track() -> None:
    """A track is written ``Track(music_task_id, audio_id, title=...)``."""
    assert "(music_task_id, audio_id, *, title=None)" == bare(kie.Track)
