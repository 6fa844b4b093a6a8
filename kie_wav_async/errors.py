"""
Everything that can go wrong, as one tree::

    KieWavError
    ├── TransportError              no usable answer
    │   └── TransportTimeoutError   ... in time; also a TimeoutError
    ├── WireFormatError             an answer we cannot read
    ├── ServiceError                the service said no
    │   ├── AuthenticationError         401
    │   ├── InsufficientCreditsError    402, 433
    │   ├── NotFoundError               404, unknown task
    │   ├── AlreadyExistsError          409
    │   ├── InvalidRequestError         400, 422
    │   ├── RateLimitedError            429
    │   ├── SourceUnavailableError      451
    │   ├── MaintenanceError            455
    │   ├── FeatureDisabledError        505
    │   ├── EndpointGoneError           404 without a code, 410
    │   └── ServerError                 408, other 5xx
    ├── SubmitUnknownError          the submit may or may not have been accepted
    ├── ChargeLimitError            max_charges reached
    ├── ConversionFailedError       the task ended badly
    ├── ConversionTimeoutError      our timeout; also a TimeoutError
    ├── SignatureError              a callback that is forged, malformed or stale
    ├── CallbackFormatError         a callback we cannot read
    ├── DownloadError               a WAV file that is not on the disk
    ├── LedgerError                 the durable journal cannot be read or written
    └── SessionClosedError          the session was closed while you waited

Misuse by the caller is a builtin `ValueError`, `TypeError` or `RuntimeError`.

``str(error)`` says what happened, and ``error.advice`` what to do about it, in words that
hold for programs and for the command line; a traceback shows both. Every error knows its
``task_id`` and ``track`` where there is one, and survives `copy.copy` and `pickle` with all
its fields. Each waiter gets an object of its own.

No error holds a secret: not in its text or fields, not in the variables of a frame
of ours that it carries, and not in its causes, which come without the frames of the
HTTP library. A `repr` of whatever is in a frame shows no key either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kie_wav_async.models import TaskRecord, Track

__all__ = [
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
]


class KieWavError(Exception):
    """
    The root of every error this package raises about the service.

    Attributes:
        advice: What to do about it; ``""`` where nothing is known to help.

        task_id: The conversion task it is about; `None` where none is known.

        track: The track it is about; `None` where none is known.
    """

    advice: str = ""

    def __init__(
        self,
        message: str,
        *,
        advice: str = "",
        task_id: str | None = None,
        track: Track | None = None,
    ) -> None:
        """Keep *message* as the text and the rest as attributes."""
        super().__init__(message)
        self.task_id = task_id
        self.track = track
        if advice := advice or type(self).advice:
            self.advice = advice
            self.add_note(advice)  # For tracebacks.

    def __reduce__(
        self,
    ) -> tuple[Callable[..., KieWavError], tuple[type[KieWavError], str, dict[str, object]]]:
        """Rebuild from class, text and fields, whatever ``__init__`` asks for."""
        return _rebuild, (type(self), str(self.args[0]), dict(self.__dict__))

    def about(self, *, task_id: str | None = None, track: Track | None = None) -> Self:
        """
        Return a new error like this one, with the blanks filled in.

        What this error already knows stays. The copy is chained to the same
        cause, and shares no traceback with the original.
        """
        # What copy.copy comes to, by the short way: a closing session tells many.
        twin = cast("Self", _rebuild(type(self), str(self.args[0]), self.__dict__))
        twin.task_id = self.task_id if self.task_id is not None else task_id
        twin.track = self.track if self.track is not None else track
        if self.__cause__ is not None:  # Setting one, even None, hides the context.
            twin.__cause__ = self.__cause__
        return twin


def _rebuild(kind: type[KieWavError], message: str, fields: dict[str, object]) -> KieWavError:
    error = kind.__new__(kind)
    error.args = (message,)  # Where TimeoutError is a base, __new__ leaves them empty.
    error.__dict__.update(fields)
    if "__notes__" in fields:
        error.__notes__ = list(error.__notes__)
    return error


def with_advice(error: BaseException) -> str:
    """Return what happened and what to do about it, for where only text goes: logs, terminals."""
    advice: str = getattr(error, "advice", "")
    return f"{error}: {advice}" if advice else str(error)


class TransportError(KieWavError):
    """
    The request got no usable answer.

    Attributes:
        maybe_sent:
            Whether a byte of the request may have reached the service. Only
            `False` proves that it did not; a transport that cannot tell says
            `True`.
    """

    advice = "check the network and ask again"

    def __init__(
        self,
        message: str,
        *,
        maybe_sent: bool = True,
        advice: str = "",
        task_id: str | None = None,
        track: Track | None = None,
    ) -> None:
        super().__init__(message, advice=advice, task_id=task_id, track=track)
        self.maybe_sent = maybe_sent


class TransportTimeoutError(TransportError, TimeoutError):
    """The request got no usable answer in time."""


class WireFormatError(KieWavError):
    """
    The service answered something we cannot read.

    Attributes:
        http_status: The HTTP status of the answer.

        request_id: The service's id of the request (``cf-ray``), or `None`.

        excerpt: The first 200 characters of the answer, made printable.
    """

    advice = (
        "check the address of the service (base_url, --base-url, KIE_BASE_URL), and that no proxy "
        "is in between"
    )

    def __init__(
        self,
        message: str,
        *,
        http_status: int | None = None,
        request_id: str | None = None,
        excerpt: str = "",
        advice: str = "",
        task_id: str | None = None,
        track: Track | None = None,
    ) -> None:
        super().__init__(message, advice=advice, task_id=task_id, track=track)
        self.http_status = http_status
        self.request_id = request_id
        self.excerpt = excerpt


class ServiceError(KieWavError):
    """
    The service said no.

    Attributes:
        code: The envelope's ``code``, or the HTTP status where there is none.

        message: The service's own words, made printable. Never match on them.

        http_status: The HTTP status; nearly always 200, failures included.

        request_id: The service's id of the request (``cf-ray``), or `None`.

        retry_after_s:
            Seconds the service asked us to wait, not capped; `None` if it did
            not ask.

    Source: docs.kie.ai, "Getting Started with KIE API" and "Convert to WAV".
    """

    advice = (
        "a proxy or an edge in between may have refused it, or this address is not on the key's "
        "list: check both, else ask the service's support"
    )

    def __init__(
        self,
        *,
        code: int,
        message: str = "",
        http_status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        task_id: str | None = None,
        track: Track | None = None,
        advice: str = "",
    ) -> None:
        """Compose the text from the service's answer; *advice*: ``""`` for the class's."""
        text = f"the service answered {code}"
        if message:
            text += f" {message!r}"
        if request_id:
            text += f" (request {request_id})"
        super().__init__(text, advice=advice, task_id=task_id, track=track)
        self.code = code
        self.message = message
        self.http_status = http_status
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class AuthenticationError(ServiceError):
    """401: the API key is missing, wrong or withdrawn."""

    advice = "check the API key (KIE_API_KEY) and the address it is allowed from"


class InsufficientCreditsError(ServiceError):
    """402: no credits left; 433: this key's own limit is reached."""

    advice = "top up credits or raise the key's limit, then submit again; nothing was charged"


class NotFoundError(ServiceError):
    """404, or a task the service does not (or no longer) know."""

    advice = "check the id; the service forgets a task after two months"


class AlreadyExistsError(ServiceError):
    """409: a WAV of this track exists under a task id we were not told, or not ours."""

    advice = (
        "look its task id up in your own records or on KIE's log page, then follow that task "
        "(attach, or kie-wav status)"
    )


class InvalidRequestError(ServiceError):
    """400 or 422: the service refused what was asked, e.g. an unknown track."""

    advice = "check music_task_id and audio_id; asking again unchanged will not help"


class RateLimitedError(ServiceError):
    """429: more than 20 submits in 10 s on this account; nothing was created."""

    advice = "wait, then ask again; nothing was charged. Is another program using the account?"


class SourceUnavailableError(ServiceError):
    """451: the service could not fetch the source file."""

    advice = (
        "the source audio may have expired on the service's side: check that it still plays, "
        "else generate the music again"
    )


class MaintenanceError(ServiceError):
    """455: the service is under maintenance; nothing was created."""

    advice = "ask again in some minutes; nothing was charged"


class FeatureDisabledError(ServiceError):
    """505: the feature is switched off."""

    advice = "WAV conversion is switched off on the service's side: ask again another day"


class EndpointGoneError(ServiceError):
    """
    The service has no such route, or has retired it: a 404 without a ``code``, or 410.

    Nothing was created. From a wait: three polls in a row were answered so. The
    tasks go on, and polling resumes when somebody waits again.
    """

    advice = (
        "there is no such route: check the address of the service (base_url, --base-url, "
        "KIE_BASE_URL), and that no proxy is in between; if both are right, the service has "
        "retired this API. Nothing was created"
    )


class ServerError(ServiceError):
    """408 or a 5xx other than 505, on a read. On a submit these are unknown."""

    advice = "the fault is the service's; ask again"


class SubmitUnknownError(KieWavError):
    """
    The submit may or may not have been accepted and charged.

    Attributes:
        attempt_id: Names the attempt for `WavSession.resolve_unknown`.
    """

    def __init__(self, message: str, *, track: Track, attempt_id: str) -> None:
        super().__init__(
            f"{message}: it may have been charged, so it is not sent again by itself",
            advice=(
                "a callback may still name its task. Else look for the track in KIE's logs: if it "
                "is there, follow its task (attach, or kie-wav status); if not, convert the track "
                "again (again=True), which is a second charge if you are wrong. To a session, say "
                f"what you found: resolve_unknown({attempt_id!r}, task_id=... or not_charged=True)"
            ),
            track=track,
        )
        self.attempt_id = attempt_id


class ChargeLimitError(KieWavError):
    """
    ``max_charges`` is reached; nothing was sent.

    Attributes:
        max_charges: The limit, in submits accepted or unknown.
    """

    def __init__(self, *, max_charges: int, track: Track | None = None) -> None:
        super().__init__(
            f"max_charges={max_charges} is reached (accepted and unknown submits): "
            "nothing was sent",
            advice="raise the limit to go on",
            track=track,
        )
        self.max_charges = max_charges


class ConversionFailedError(KieWavError):
    """
    The task ended badly on the service's side.

    Attributes:
        record: The service's last word on the task.
    """

    def __init__(self, message: str, *, record: TaskRecord, track: Track | None = None) -> None:
        super().__init__(
            message,
            advice="convert the track again to retry, which is a new charge",
            task_id=record.task_id,
            track=track,
        )
        self.record = record


class ConversionTimeoutError(KieWavError, TimeoutError):
    """
    Our timeout passed; the task may still finish on the service's side.

    The session keeps the task: asking for the track again waits for it again, and
    sends and costs nothing.

    Attributes:
        timeout_s: How long we waited, in seconds.

        answer:
            Where the service says that the task succeeded, but names no file that
            we can read: its last answer, 500 characters at most, without control
            characters and callback URLs. Empty otherwise.
    """

    def __init__(
        self, *, timeout_s: float, task_id: str, track: Track | None = None, answer: str = ""
    ) -> None:
        if answer:
            text = (
                f"task {task_id} succeeded, but {timeout_s:g} s after we began to wait its "
                f"answer still names no file that we can read: {answer}"
            )
            advice = (
                "it is paid for, so do not convert the track again: look at the task later "
                f"(attach({task_id!r}), or kie-wav status {task_id}), or fetch the file by hand"
            )
        else:
            text = (
                f"task {task_id} is not finished {timeout_s:g} s after we began to wait, and may "
                "still finish"
            )
            advice = (
                f"wait for the task again (attach({task_id!r}), or kie-wav status {task_id}), "
                "which costs nothing, instead of converting the track again"
            )
        super().__init__(text, advice=advice, task_id=task_id, track=track)
        self.timeout_s = timeout_s
        self.answer = answer


SignatureReason: TypeAlias = Literal["headers", "timestamp", "signature", "stale"]

#: Of each reason what happened, and what to do.
_REFUSALS: Final[Mapping[SignatureReason, tuple[str, str]]] = {
    "headers": (
        "the callback does not carry exactly one of each header that signs it",
        "is a webhook key generated in KIE's settings, and does the proxy pass both headers on?",
    ),
    "timestamp": (
        "the callback's timestamp is not ten digits of Unix time",
        "it is not KIE's: leave it",
    ),
    "signature": (
        "no key signed the callback",
        "if it is not forged, webhook_keys (KIE_WEBHOOK_HMAC_KEY) lacks the key of KIE's settings",
    ),
    "stale": (
        "the callback is genuine but was signed too long ago, or ahead of our time",
        "it was replayed or held up, or this machine's clock is wrong: check the clock",
    ),
}


class SignatureError(KieWavError):
    """
    A callback that is forged, malformed or stale; nothing was done on its word.

    Answer it over HTTP with 401 and no body: the reason is for the operator.

    Attributes:
        reason:
            ``"headers"``: not exactly one timestamp and one signature.
            ``"timestamp"``: not Unix time in ten digits. ``"signature"``: no key
            made it. ``"stale"``: genuine, but outside the tolerance.
    """

    def __init__(
        self,
        *,
        reason: SignatureReason,
        headers: str = "",
        task_id: str | None = None,
        track: Track | None = None,
    ) -> None:
        """Say what is wrong with it (*headers*: of these), and never what would be right."""
        named = f"; both are {headers}" if headers else ""
        text, advice = _REFUSALS[reason]
        super().__init__(text + named, advice=advice, task_id=task_id, track=track)
        self.reason: SignatureReason = reason


class CallbackFormatError(KieWavError):
    """
    A callback whose body we cannot read; nothing was done on its word.

    The task id stands in the body, so this is found out before the signature is
    looked at: anybody may have sent it.
    """

    def __init__(
        self, message: str, *, task_id: str | None = None, track: Track | None = None
    ) -> None:
        super().__init__(
            f"cannot read the callback: {message}",
            advice="it is not of the shape the service documents: look at who sent it",
            task_id=task_id,
            track=track,
        )


DownloadReason: TypeAlias = Literal[
    "expired",
    "truncated",
    "not-a-wav",
    "too-large",
    "url-not-allowed",
    "content-encoding",
    "too-slow",
    "unavailable",
    "disk",
]

_AGAIN: Final = "download it again later"
_LOOK: Final = "look at what the link shows, then ask KIE's support"
_ADVICE: Final[Mapping[DownloadReason, str]] = {
    "expired": "the service has deleted the file; convert the track again, which is a new charge",
    "truncated": _AGAIN,
    "not-a-wav": _LOOK,
    "too-large": _LOOK,
    "url-not-allowed": (
        "look at where the link leads. If you trust that host, allow it (insecure_hosts, "
        "download_hosts; --insecure-host)"
    ),
    "content-encoding": "is there a proxy in between?",
    "too-slow": _AGAIN,
    "unavailable": _AGAIN,
    "disk": "look at the disk and the folder, then download it again",
}


class DownloadError(KieWavError):
    """
    A WAV file was not saved; nothing is under its name that was not there before.

    The conversion is paid and stays as it is. What was fetched of a file that can
    be gone on with is kept beside its place.

    Attributes:
        reason:
            ``"expired"``: the host refuses the link, the service says that it has no
            other, and by its own clock the file is older than 14 days.
            ``"truncated"``: less came than was announced, or than the file's own
            header declares. ``"not-a-wav"``: it is no WAV file, or one without
            sound. ``"too-large"``: more than 1 GiB. ``"url-not-allowed"``: not https, not
            a public address, not an allowed host, or it redirects to such.
            ``"content-encoding"``: it came compressed. ``"too-slow"``: under 16 KiB a second.
            ``"unavailable"``: the host refuses the file or gave no usable answer, and
            may serve it later, or this machine has no descriptors or memory left just
            now. ``"disk"``: it cannot be written.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: DownloadReason,
        task_id: str | None = None,
        track: Track | None = None,
    ) -> None:
        """Say what is wrong; *advice*: ``""`` for that of the reason."""
        super().__init__(message, advice=_ADVICE[reason], task_id=task_id, track=track)
        self.reason: DownloadReason = reason


class LedgerError(KieWavError):
    """
    The ledger cannot be opened, read or written.

    Its text says what the disk or the other process said.
    From a submit with a ``task_id``: the service has taken the track, and the id
    could not be written down, so keep it. From a submit without one: nothing was
    sent. From a wait: the task goes on, and the ledger still has it as open.
    """


class SessionClosedError(KieWavError):
    """
    The session was closed; conversions in flight go on at the service.

    Attributes:
        open_task_ids: Tasks not finished when the session closed.
    """

    def __init__(
        self,
        *,
        open_task_ids: tuple[str, ...] = (),
        is_submitting: bool = False,
        task_id: str | None = None,
        track: Track | None = None,
    ) -> None:
        text = "the session is closed"
        if task_id is not None:
            text += f"; task {task_id} goes on"
            advice = f"follow the task in a new session: attach({task_id!r})"
        elif is_submitting:
            text += " and the submit was in progress, so it may be accepted"
            advice = (
                "look into conversions() and unknown_submits() of the closed session before you "
                "convert the track again"
            )
        elif open_task_ids:
            text += f"; {len(open_task_ids)} tasks go on"
            advice = "attach() them in a new session"
        else:
            advice = "open a new one"
        super().__init__(text, advice=advice, task_id=task_id, track=track)
        self.open_task_ids = open_task_ids
