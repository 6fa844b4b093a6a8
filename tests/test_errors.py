from __future__ import annotations

import copy
import datetime as dt
import pickle
import re
import traceback
from functools import partial
from typing import get_args

import pytest
from yarl import URL

from kie_wav_async import errors
from kie_wav_async.errors import KieWavError
from kie_wav_async.models import TaskRecord, TaskState, Track

TRACK = Track("music-1", "audio-1", title="A title")
OTHER = Track("music-2", "audio-2")
RECORD = TaskRecord(
    task_id="task-1",
    state=TaskState.FAILED,
    status="GENERATE_WAV_FAILED",
    wav_url=URL("https://h.example/a.wav?x=%2F"),
    error_code=500,
    error_message="no",
    created_at=dt.datetime(2025, 1, 1),  # noqa: DTZ001 - the service names no zone
    raw={"taskId": "task-1", "deep": {"list": [1, 2.5, None]}},
)
SERVICE_FIELDS = {
    "code": 418,
    "message": "short and stout",
    "http_status": 200,
    "request_id": "9f36-SIN",
    "retry_after_s": 7.5,
    "task_id": "task-1",
    "track": TRACK,
}
SERVICE_ERRORS = [
    errors.ServiceError,
    errors.AuthenticationError,
    errors.InsufficientCreditsError,
    errors.NotFoundError,
    errors.AlreadyExistsError,
    errors.InvalidRequestError,
    errors.RateLimitedError,
    errors.SourceUnavailableError,
    errors.MaintenanceError,
    errors.FeatureDisabledError,
    errors.EndpointGoneError,
    errors.ServerError,
]

# For each class how to make one, the fields it must keep, and the words by which
# its text tells what to do.
SAMPLES: list[tuple[partial[KieWavError], dict[str, object], str]] = [
    (
        partial(KieWavError, "what happened", task_id="task-1", track=TRACK),
        {"task_id": "task-1", "track": TRACK},
        "what happened",
    ),
    (
        partial(
            errors.TransportError, "no answer", maybe_sent=False, task_id="task-1", track=TRACK
        ),
        {"maybe_sent": False, "task_id": "task-1", "track": TRACK},
        "no answer",
    ),
    (
        partial(errors.LedgerError, "disk full: free some space", task_id="task-1", track=TRACK),
        {"task_id": "task-1", "track": TRACK},
        "free some space",
    ),
    (
        partial(
            errors.TransportTimeoutError,
            "too slow",
            maybe_sent=False,
            task_id="task-1",
            track=TRACK,
        ),
        {"maybe_sent": False, "task_id": "task-1", "track": TRACK},
        "too slow",
    ),
    (
        partial(
            errors.WireFormatError,
            "odd",
            http_status=200,
            request_id="ray",
            excerpt="<html>",
            task_id="t",
            track=TRACK,
        ),
        {
            "http_status": 200,
            "request_id": "ray",
            "excerpt": "<html>",
            "task_id": "t",
            "track": TRACK,
        },
        "odd",
    ),
    *(
        (partial(kind, **SERVICE_FIELDS), SERVICE_FIELDS, advice)
        for kind, advice in zip(
            SERVICE_ERRORS,
            [
                "check both, else ask the service's support",
                "check the API key (KIE_API_KEY)",
                "top up credits",
                "check the id",
                "follow that task",
                "check music_task_id and audio_id",
                "wait, then ask again",
                "else generate the music again",
                "ask again in some minutes",
                "ask again another day",
                "check the address of the service",
                "ask again",
            ],
            strict=True,
        )
    ),
    (
        partial(errors.SubmitUnknownError, "the answer was lost", track=TRACK, attempt_id="ab12"),
        {"attempt_id": "ab12", "task_id": None, "track": TRACK},
        "resolve_unknown('ab12', task_id=... or not_charged=True)",
    ),
    (
        partial(errors.ChargeLimitError, max_charges=5, track=TRACK),
        {"max_charges": 5, "task_id": None, "track": TRACK},
        "raise the limit",
    ),
    (
        partial(errors.ConversionFailedError, "it failed", record=RECORD, track=TRACK),
        {"record": RECORD, "task_id": "task-1", "track": TRACK},
        "convert the track again",
    ),
    (
        partial(
            errors.ConversionTimeoutError,
            timeout_s=900.0,
            task_id="task-1",
            track=TRACK,
            answer="{}",
        ),
        {"timeout_s": 900.0, "task_id": "task-1", "track": TRACK, "answer": "{}"},
        "attach('task-1')",
    ),
    (
        partial(errors.SignatureError, reason="stale", task_id="task-1", track=TRACK),
        {"reason": "stale", "task_id": "task-1", "track": TRACK},
        "or this machine's clock is wrong",
    ),
    (
        partial(errors.CallbackFormatError, "it names no task", task_id="task-1", track=TRACK),
        {"task_id": "task-1", "track": TRACK},
        "not of the shape the service documents",
    ),
    *(
        (
            partial(
                errors.DownloadError, "it went wrong", reason=reason, task_id="task-1", track=TRACK
            ),
            {"reason": reason, "task_id": "task-1", "track": TRACK},
            f"it went wrong: {advice}",
        )
        for reason, advice in {
            "expired": "the service has deleted the file; convert the track again",
            "truncated": "download it again later",
            "not-a-wav": "look at what the link shows, then ask KIE's support",
            "too-large": "look at what the link shows, then ask KIE's support",
            "url-not-allowed": "look at where the link leads",
            "content-encoding": "is there a proxy in between?",
            "too-slow": "download it again later",
            "unavailable": "download it again later",
            "disk": "look at the disk and the folder, then download it again",
        }.items()
    ),
    (
        partial(errors.SessionClosedError, open_task_ids=("a", "b"), task_id="task-1", track=TRACK),
        {"open_task_ids": ("a", "b"), "task_id": "task-1", "track": TRACK},
        "in a new session",
    ),
]

every_sample = pytest.mark.parametrize(
    ("make", "fields", "advice"),
    SAMPLES,
    ids=[
        "-".join(filter(None, (make.func.__name__, make.keywords.get("reason"))))
        for make, _, _ in SAMPLES
    ],
)


def drawn_tree() -> list[tuple[int, str]]:
    """Return (depth, name) of each line of the tree in the module's docstring."""
    names = re.compile(r"^ {4}([ │├└─]*)(\w+Error)\b", re.MULTILINE)
    return [(len(line[1]) // 4, line[2]) for line in names.finditer(errors.__doc__ or "")]


def real_tree(kind: type[KieWavError], depth: int = 0) -> list[tuple[int, str]]:
    """Return what `drawn_tree` should, from the classes."""
    tree = [(depth, kind.__name__)]
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            tree += real_tree(child, depth + 1)
    return tree


def test_the_docstring_draws_the_tree_as_it_is():
    """The tree in the module docstring is the tree of the classes, in its order."""
    assert drawn_tree() == real_tree(KieWavError)


def test_every_error_class_is_exported():
    """``__all__`` names every error class of the module, sorted, and nothing else."""
    classes = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    ]

    assert sorted(classes) == errors.__all__


def test_the_samples_cover_every_class():
    """No error class escapes the tests of this file."""
    assert {make.func.__name__ for make, _, _ in SAMPLES} == set(errors.__all__)


def test_the_samples_cover_every_reason_of_a_download():
    """No reason for which a file is not saved escapes the tests of this file."""
    downloads = [make for make, _, _ in SAMPLES if make.func is errors.DownloadError]
    reasons = [make.keywords["reason"] for make in downloads]
    assert reasons == [*get_args(errors.DownloadReason)]


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_in_the_family(name):
    """``except KieWavError`` catches every error of the package."""
    assert issubclass(getattr(errors, name), KieWavError)


@pytest.mark.parametrize(
    ("kind", "is_timeout"),
    [
        (getattr(errors, name), name in {"TransportTimeoutError", "ConversionTimeoutError"})
        for name in errors.__all__
    ],
)
def test_timeouts_are_also_builtin_timeouts(kind, is_timeout):
    """``except TimeoutError`` catches our timeouts, and only them."""
    assert is_timeout == issubclass(kind, TimeoutError)


def test_no_error_is_a_misuse():
    """What the service does is never reported as the caller's ValueError or TypeError."""
    assert not any(
        issubclass(getattr(errors, name), ValueError | TypeError) for name in errors.__all__
    )


def _fields(error: KieWavError) -> dict[str, object]:
    """Return what an error knows, its advice apart."""
    return {
        name: value for name, value in vars(error).items() if name not in {"advice", "__notes__"}
    }


@every_sample
def test_a_traceback_shows_the_advice(make, fields, advice):  # noqa: ARG001 - as above
    """Whoever finds an error in a log reads what to do."""
    error = make()

    assert error.advice in "".join(traceback.format_exception(error))


@every_sample
def test_the_fields_are_kept(make, fields, advice):  # noqa: ARG001 - one table, many tests
    """Each argument is an attribute of the same name."""
    assert fields == _fields(make())


@every_sample
def test_the_advice_says_what_to_do(make, fields, advice):  # noqa: ARG001 - as above
    """An error says what happened, and beside it what to do."""
    error = make()
    assert advice in f"{error}: {error.advice}"


COPIERS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle-{protocol}": lambda error, protocol=protocol: pickle.loads(  # noqa: S301 - our own
            pickle.dumps(error, protocol)
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


@every_sample
@pytest.mark.parametrize("copier", list(COPIERS.values()), ids=list(COPIERS))
def test_a_copy_has_all_of_the_original(make, fields, advice, copier):  # noqa: ARG001 - as above
    """Copying and pickling keep the class, the text and every field."""
    error = make()
    twin = copier(error)

    assert twin is not error
    assert type(error) is type(twin)
    assert str(error) == str(twin)
    assert (str(error),) == twin.args
    assert fields == _fields(twin)
    assert error.advice == twin.advice


def test_a_subclass_with_other_arguments_is_copied_too():
    """A user's own subclass is copied whatever its ``__init__`` asks for."""

    class OwnError(KieWavError):
        def __init__(self, *, place: str) -> None:
            super().__init__(f"in {place}")
            self.place = place

    twin = copy.copy(OwnError(place="Rome"))

    assert (str(twin), twin.place) == ("in Rome", "Rome")


@every_sample
def test_about_fills_only_blanks(make, fields, advice):  # noqa: ARG001 - as above
    """``about`` keeps what the error knows and adds what it does not."""
    error = make()
    twin = error.about(task_id="task-2", track=OTHER)

    assert fields | {
        "task_id": fields["task_id"] or "task-2",
        "track": fields["track"] or OTHER,
    } == _fields(twin)
    assert error.advice == twin.advice


@every_sample
def test_about_returns_a_new_error(make, fields, advice):  # noqa: ARG001 - as above
    """``about`` leaves the original alone."""
    error = make()
    twin = error.about(task_id="task-2", track=OTHER)

    assert twin is not error
    assert type(error) is type(twin)
    assert str(error) == str(twin)
    assert fields == _fields(error)


def test_about_with_nothing_changes_nothing():
    """``about()`` leaves blanks blank."""
    twin = KieWavError("x").about()

    assert (None, None) == (twin.task_id, twin.track)


def test_about_fills_every_blank():
    """``about`` names the task and the track where neither is known."""
    twin = KieWavError("x").about(task_id="task-2", track=OTHER)

    assert ("task-2", OTHER) == (twin.task_id, twin.track)


def test_about_keeps_the_cause():
    """The new error is chained to the same cause."""
    cause = OSError("reset")
    error = errors.TransportError("no answer")
    error.__cause__ = cause

    assert error.about(task_id="t").__cause__ is cause


def test_about_shares_no_traceback():
    """Raising one waiter's error does not grow another's traceback."""
    error = errors.TransportError("no answer")
    with pytest.raises(errors.TransportError):
        raise error

    assert error.__traceback__ is not None
    assert error.about(task_id="t").__traceback__ is None


def test_about_hides_no_context():
    """An error without a cause still shows the context it is raised in."""
    assert not errors.TransportError("no answer").about(task_id="t").__suppress_context__


def test_about_shares_no_notes():
    """A note on one waiter's error does not show on another's."""
    error = errors.TransportError("no answer")
    error.add_note("seen by all")
    twin = error.about(task_id="t")
    twin.add_note("seen by one")

    assert [error.advice, "seen by all"] == error.__notes__
    assert [error.advice, "seen by all", "seen by one"] == twin.__notes__


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            partial(errors.ServerError, code=500),
            "the service answered 500: the fault is the service's; ask again",
        ),
        (
            partial(errors.ServerError, code=500, message="build\tfailed"),
            "the service answered 500 'build\\tfailed': the fault is the service's; ask again",
        ),
        (
            partial(errors.ServerError, code=500, request_id="ray"),
            "the service answered 500 (request ray): the fault is the service's; ask again",
        ),
        (
            partial(errors.ServerError, code=500, message="no", request_id="ray"),
            "the service answered 500 'no' (request ray): the fault is the service's; ask again",
        ),
        (
            partial(errors.NotFoundError, code=404, advice="look elsewhere"),
            "the service answered 404: look elsewhere",
        ),
        (
            partial(
                errors.SubmitUnknownError, "the answer was lost", track=TRACK, attempt_id="ab12"
            ),
            (
                "the answer was lost: it may have been charged, so it is not sent again by itself: "
                "a callback may still name its task. Else look for the track in KIE's logs: if it "
                "is there, follow its task (attach, or kie-wav status); if not, convert the track "
                "again (again=True), which is a second charge if you are wrong. To a session, say "
                "what you found: resolve_unknown('ab12', task_id=... or not_charged=True)"
            ),
        ),
        (
            partial(errors.ChargeLimitError, max_charges=5),
            (
                "max_charges=5 is reached (accepted and unknown submits): "
                "nothing was sent: raise the limit to go on"
            ),
        ),
        (
            partial(errors.ConversionFailedError, "it failed", record=RECORD),
            "it failed: convert the track again to retry, which is a new charge",
        ),
        (
            partial(errors.ConversionTimeoutError, timeout_s=900.0, task_id="task-1"),
            (
                "task task-1 is not finished 900 s after we began to wait, and may still finish: "
                "wait for the task again (attach('task-1'), or kie-wav status task-1), which costs "
                "nothing, instead of converting the track again"
            ),
        ),
        (
            partial(
                errors.ConversionTimeoutError, timeout_s=900.0, task_id="task-1", answer='{"x": 1}'
            ),
            (
                "task task-1 succeeded, but 900 s after we began to wait its answer still names "
                'no file that we can read: {"x": 1}: it is paid for, so do not convert the track '
                "again: look at the task later (attach('task-1'), or kie-wav status task-1), or "
                "fetch the file by hand"
            ),
        ),
        (
            partial(errors.SignatureError, reason="headers"),
            (
                "the callback does not carry exactly one of each header that signs it: is a "
                "webhook key generated in KIE's settings, and does the proxy pass both headers on?"
            ),
        ),
        (
            partial(errors.SignatureError, reason="timestamp"),
            "the callback's timestamp is not ten digits of Unix time: it is not KIE's: leave it",
        ),
        (
            partial(errors.SignatureError, reason="signature"),
            (
                "no key signed the callback: if it is not forged, webhook_keys "
                "(KIE_WEBHOOK_HMAC_KEY) lacks the key of KIE's settings"
            ),
        ),
        (
            partial(errors.SignatureError, reason="stale"),
            (
                "the callback is genuine but was signed too long ago, or ahead of our time: it "
                "was replayed or held up, or this machine's clock is wrong: check the clock"
            ),
        ),
        (
            partial(errors.CallbackFormatError, "it names no task"),
            (
                "cannot read the callback: it names no task: it is not of the shape the service "
                "documents: look at who sent it"
            ),
        ),
        (partial(errors.SessionClosedError), "the session is closed: open a new one"),
        (
            partial(errors.SessionClosedError, open_task_ids=("a", "b"), is_submitting=True),
            (
                "the session is closed and the submit was in progress, so it may be accepted: look "
                "into conversions() and unknown_submits() of the closed session before you convert "
                "the track again"
            ),
        ),
        (
            partial(errors.SessionClosedError, is_submitting=True, task_id="a"),
            "the session is closed; task a goes on: follow the task in a new session: attach('a')",
        ),
        (
            partial(errors.SessionClosedError, open_task_ids=("a", "b")),
            "the session is closed; 2 tasks go on: attach() them in a new session",
        ),
        (
            partial(errors.SessionClosedError, open_task_ids=("a", "b"), task_id="a"),
            "the session is closed; task a goes on: follow the task in a new session: attach('a')",
        ),
    ],
    ids=[
        "code",
        "message",
        "request-id",
        "message-and-request-id",
        "advice",
        "unknown-submit",
        "charge-limit",
        "failed",
        "timeout",
        "timeout-answer",
        "headers",
        "timestamp",
        "signature",
        "stale",
        "format",
        "closed",
        "closed-while-submitting",
        "closed-with-a-task",
        "closed-tasks",
        "closed-task",
    ],
)
def test_the_texts_read_well(make, text):
    """What happened and what to do read well, with each part only where there is one."""
    error = make()
    assert text == f"{error}: {error.advice}"


@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (partial(KieWavError, "x"), {"task_id": None, "track": None}),
        (partial(errors.TransportError, "x"), {"maybe_sent": True, "task_id": None, "track": None}),
        (
            partial(errors.WireFormatError, "x"),
            {
                "http_status": None,
                "request_id": None,
                "excerpt": "",
                "task_id": None,
                "track": None,
            },
        ),
        (
            partial(errors.ServiceError, code=1),
            {
                "code": 1,
                "message": "",
                "http_status": None,
                "request_id": None,
                "retry_after_s": None,
                "task_id": None,
                "track": None,
            },
        ),
        (partial(errors.SessionClosedError), {"open_task_ids": (), "task_id": None, "track": None}),
    ],
    ids=["root", "transport", "wire-format", "service", "closed"],
)
def test_what_is_not_said_is_not_made_up(make, fields):
    """Left out arguments mean nothing is known, and that a byte may have been sent."""
    assert fields == _fields(make())
