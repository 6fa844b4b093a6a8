from __future__ import annotations

import datetime as dt
import pickle
from pathlib import Path

import attrs
import pytest
from yarl import URL

from kie_wav_async import errors, events
from kie_wav_async.models import CallbackResult, Download, Track, WavFile

AT = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
TRACK = Track("music-1", "audio-1")
WAV = WavFile(
    task_id="task-1", url=URL("https://h/a.wav"), track=TRACK, settled_by="poll", expires_at=None
)
ERROR = errors.TransportError("no answer")
PATH = Path("a.wav")
SAMPLES = [
    events.Event(at=AT),
    events.SubmitAccepted(at=AT, task_id="task-1", track=TRACK, attempt_id="ab"),
    events.SubmitRetryScheduled(at=AT, track=TRACK, error=ERROR, delay_s=5.0),
    events.SubmitRejected(at=AT, track=TRACK, error=ERROR),
    events.SubmitUnknown(at=AT, track=TRACK, attempt_id="ab", error=ERROR),
    events.ConversionSucceeded(at=AT, wav=WAV),
    events.ConversionEnded(at=AT, task_id="task-1", track=None, error=ERROR),
    events.PollingPaused(at=AT, reason="authentication", delay_s=None),
    events.CallbackReceived(
        at=AT, task_id="task-1", result=CallbackResult.SETTLED, is_authentic=True
    ),
    events.CallbackRejected(at=AT, error=errors.SignatureError(reason="stale")),
    events.DownloadProgress(at=AT, wav=WAV, path=PATH, bytes=44, total=None),
    events.DownloadRetryScheduled(
        at=AT,
        wav=WAV,
        path=PATH,
        error=errors.DownloadError("it broke", reason="truncated"),
        delay_s=1.5,
    ),
    events.DownloadCompleted(
        at=AT, wav=WAV, download=Download(path=PATH, bytes=44, sha256="ab", resumed=False)
    ),
]
every_event = pytest.mark.parametrize(
    "event", SAMPLES, ids=[type(event).__name__ for event in SAMPLES]
)


def test_every_event_is_exported():
    """``__all__`` names every event class, sorted, and nothing else."""
    classes = [
        name
        for name, value in vars(events).items()
        if isinstance(value, type) and issubclass(value, events.Event)
    ]

    assert sorted(classes) == events.__all__


def test_the_samples_cover_every_event():
    """No event escapes the tests of this file."""
    assert {type(event).__name__ for event in SAMPLES} == set(events.__all__)


@every_event
def test_every_event_is_in_the_family(event):
    """A handler can rely on every event being one, and on its time."""
    assert isinstance(event, events.Event)
    assert event.at is AT


@every_event
def test_an_event_is_frozen(event):
    """What has happened does not change."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.at = None


@every_event
def test_an_event_is_given_by_name(event):
    """The fields of an event have no order to remember."""
    with pytest.raises(TypeError):
        type(event)(*attrs.astuple(event, recurse=False))


@every_event
def test_an_event_survives_pickling(event):
    """An event can be sent to another process with all its fields."""
    twin = pickle.loads(pickle.dumps(event))  # noqa: S301 - our own

    assert repr(event) == repr(twin)


def test_a_task_is_new_unless_said_otherwise():
    """A submit is not an adoption by default."""
    assert not SAMPLES[1].adopted
