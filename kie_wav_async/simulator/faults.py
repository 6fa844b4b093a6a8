"""
The script of faults: what may go wrong, when, and what it does to an answer.

A request passes three moments, and a fault belongs to one of them (`Fault.when`):

``arrival``
    The head of the request is there; nothing has been judged or done.
``before``
    The body is read and nothing has been done: whatever answers here, nothing was created.
``after``
    The request has been carried out (a submit has created its task, the charge is made),
    and only the answer can still go wrong.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal, NoReturn, TypeAlias, cast, get_args

import attrs

Endpoint: TypeAlias = Literal[
    "submit", "poll", "music", "credits", "download-url", "media", "conversion", "callback"
]
When: TypeAlias = Literal["arrival", "before", "after"]
Seconds: TypeAlias = float | tuple[float, float]

_API: Final = ("submit", "poll", "music", "credits", "download-url")
_HTTP: Final = (*_API, "media")
_SAID: Final = (*_API, "callback")

STYLES: Final = ("int", "digits", "chinese", "lower", "null")


@attrs.frozen
class _Kind:
    """Where a kind of fault is allowed, its moments (the first is the default), what it needs."""

    on: tuple[str, ...]
    when: tuple[When, ...]
    needs: str = ""


_KINDS: Final[dict[str, _Kind]] = {
    "code": _Kind((*_HTTP, "callback"), ("before", "after")),
    "html": _Kind(_HTTP, ("before", "after")),
    "body": _Kind((*_HTTP, "callback"), ("before", "after")),
    "redirect": _Kind(_HTTP, ("before", "after")),
    "reset": _Kind(_HTTP, ("arrival", "before", "after")),
    "hangup": _Kind(_HTTP, ("arrival", "before", "after")),
    "stall": _Kind(_HTTP, ("arrival", "before", "after")),
    "slow": _Kind(_HTTP, ("after", "arrival")),
    "cut": _Kind(_HTTP, ("after",)),
    "truncated": _Kind(_SAID, ("after",)),
    "huge": _Kind(_SAID, ("after",)),
    "string-code": _Kind(_SAID, ("after",)),
    "no-code": _Kind(_SAID, ("after",)),
    "no-data": _Kind(_SAID, ("after",)),
    "envelope": _Kind(_SAID, ("after",)),
    "fields": _Kind(_SAID, ("after",), "data"),
    "id-places": _Kind(("submit", "callback"), ("after",), "id"),
    "data-null": _Kind(("poll", "music", "callback"), ("after",)),
    "url-places": _Kind(("poll", "callback"), ("after",), "done"),
    "no-url": _Kind(("poll", "callback"), ("after",), "done"),
    "callback-exception": _Kind(("poll",), ("after",), "done"),
    "flag-style": _Kind(("poll",), ("after",), "record"),
    "flag-name": _Kind(("poll",), ("after",), "record"),
    "word": _Kind(("poll",), ("after",), "record"),
    "ms-times": _Kind(("poll",), ("after",), "record"),
    "other-task": _Kind(("poll",), ("after",), "record"),
    "lost": _Kind(("callback",), ("after",)),
    "late": _Kind(("callback",), ("after",)),
    "early": _Kind(("callback",), ("after",)),
    "doubled": _Kind(("callback",), ("after",)),
    "unsigned": _Kind(("callback",), ("after",)),
    "stale-retry": _Kind(("callback",), ("after",)),
    "no-query": _Kind(("callback",), ("after",)),
    "fail": _Kind(("conversion",), ("before",)),
    "never": _Kind(("conversion",), ("before",)),
    "takes": _Kind(("conversion",), ("before",)),
    "expired": _Kind(("media",), ("before",)),
    "no-ranges": _Kind(("media",), ("before",)),
}


def check_seconds(name: str, value: object) -> Seconds:
    """
    Return a delay as a float or as a (low, high) pair of floats.

    Raises:
        ValueError: it is neither, is negative, not finite, or low is above high.

    """
    numbers: tuple[object, ...] = (
        tuple(cast("Sequence[object]", value)) if isinstance(value, list | tuple) else (value,)
    )
    floats = [
        float(number)
        for number in numbers
        if isinstance(number, int | float) and not isinstance(number, bool)
    ]
    finite = all(0 <= number < float("inf") for number in floats)
    if len(floats) != len(numbers) or not finite or len(floats) not in {1, 2}:
        message = f"{name} must be seconds or a (low, high) pair of seconds, got {value!r}"
        raise ValueError(message)
    if len(floats) == 1:
        return floats[0]
    if floats[0] > floats[1]:
        message = f"{name}: low is above high in {value!r}"
        raise ValueError(message)
    return floats[0], floats[1]


def draw_s(seconds: Seconds, chance: random.Random) -> float:
    """Return the delay itself, or one drawn evenly from its range."""
    if isinstance(seconds, tuple):
        return chance.uniform(*seconds)
    return seconds


def _refuse(problem: str) -> NoReturn:
    message = f"Fault: {problem}"
    raise ValueError(message)


# What cannot be converted is refused once all fields are there: until then there is no repr.


def _as_tuple(value: Iterable[str]) -> tuple[str, ...]:
    given = cast("object", value)
    is_one = isinstance(given, str) or not isinstance(given, Iterable)
    return cast("tuple[str, ...]", value) if is_one else tuple(value)


def _as_seconds(value: object) -> Seconds | None:
    try:
        return None if value is None else check_seconds("delay_s", value)
    except ValueError:
        return cast("Seconds", value)


@attrs.frozen(kw_only=True)
class Fault:
    """
    Describe one thing that goes wrong, and for which requests.

    **Which requests.** Requests are counted per fault, from 1, among those to the endpoint
    `on` that pass the filters `audio_id`, `task_id` and `verdict` and that have the part the
    kind changes (``no-url`` counts only polls of a finished conversion, ``id-places`` only
    submits answered with an id). The fault strikes at the request `at`, or from the first if
    `at` is `None`; then at every following one, or with `every` at each `every`-th
    (``every=5``: the 5th, 10th, ...); `times` times at most. `times` is 1 where `at` is given
    without `every`, else without limit. `per_task` keeps the count for each task id apart:
    ``Fault(on="poll", kind="data-null", times=3, per_task=True)`` hides each task for three
    polls. Several faults may strike one request: delays add up, of those that replace the
    answer the first wins, those that change it are all applied in the order given.

    **Kinds on every HTTP endpoint** (`when` is ``before`` unless said otherwise; with
    ``after`` the answer lies about a request that was carried out):

    - ``code``: ``{"code": code, "msg": msg, "data": data}`` with HTTP `http_status` (200),
      and `retry_after` if given.
    - ``html``: an HTML page with `http_status` (403: Cloudflare's error 1010; else a gateway
      page). ``body``: the text `body` with `http_status` (200) and `content_type`.
    - ``redirect``: `http_status` (307) with ``Location: url``.
    - ``reset``: the connection is reset. ``hangup``: it is closed without an answer.
      ``stall``: no answer until the client goes away or `delay_s` has passed, then a hang-up.
      Each of these with `when` ``arrival``, ``before`` or ``after``.
    - ``slow``: `delay_s` before the request is judged (``arrival``) or before the answer
      (``after``, the default).
    - ``cut`` (``after``): the true answer's head, then only `size` bytes of its body, then a
      hang-up.

    **On the API endpoints, changing the true answer** (``after``): ``truncated`` (half of the
    JSON in a well-formed HTTP answer), ``huge`` (padded to `size` bytes, 1.5 MiB),
    ``string-code`` (``"200"``), ``no-code``, ``no-data`` (the key is missing), ``envelope``
    and ``fields`` (merge `fields` into the envelope or into its ``data`` and drop the keys
    `drop`; `http_status` if given).

    **Submit:** ``id-places`` puts the task id at each of `places`, dotted from the root of
    the JSON (``"data.task_id"``, ``"taskId"``, ``"data"``), and a different id at each of
    `other_places`; no places at all is a success without an id.

    **Poll:** ``data-null`` (also on ``music``), ``no-url`` (SUCCESS without URL; `drop` says
    what is missing: ``("response",)``, or by default the URL becomes `null`),
    ``url-places`` (as ``id-places``), ``callback-exception`` (`with_url` keeps the URL),
    ``flag-style`` (`style`: ``int``, ``digits``, ``chinese``, ``lower``, ``null``),
    ``flag-name`` (`word` in place of ``successFlag``), ``word`` (`word` as the status),
    ``ms-times``, ``other-task`` (the record carries another task id).

    **Conversion** (counted at each task created): ``fail`` (`word`:
    ``GENERATE_WAV_FAILED``, the default, or ``CREATE_TASK_FAILED``; `code` and `msg` go to
    the record), ``never`` (never finishes), ``takes`` (`delay_s` seconds).

    **Callback** (counted at each task created whose callback will be sent, and then for all
    deliveries of it; `when` is always ``after``): ``lost`` (never sent), ``late`` (`delay_s`
    after the end), ``early`` (the conversion is done at once, and the submit is answered only
    after the callback was), ``doubled`` (sent twice at the same time, or `delay_s` apart),
    ``unsigned``, ``stale-retry`` (retries carry the timestamp of the first delivery, as old
    as if no time were scaled), ``no-query`` (the query is left out of the address). What it
    says is changed by ``id-places`` and ``url-places`` (documented besides
    ``data.task_id`` and ``data.audioWavUrl`` are ``data.taskId``, ``taskId`` and
    ``data.audio_wav_url``; ``data.response.audioWavUrl`` was seen), ``no-url`` (success; the
    URL is `null`, or `drop` says what is missing), ``code`` (a failure with `code` and `msg`,
    however the conversion ended), ``fields``, ``envelope``, ``string-code``, ``no-code``,
    ``no-data``, ``data-null``, ``huge``, ``truncated`` and ``body``, as above. The signature
    is for the true task id.

    **Media:** ``expired`` (`http_status`: 404, the default, or 410), ``no-ranges`` (a range
    is answered with the whole file).

    Attributes:
        on: The endpoint: ``submit``, ``poll``, ``music``, ``credits``, ``download-url``,
            ``media``, ``conversion``, or ``callback``.
        kind: What happens, from the lists above.
        at: The first request struck, from 1.
        every: Strike each `every`-th request only.
        times: Strike this often at most.
        per_task: Count each task id for itself.
        audio_id: Only requests about this audio id. Not known at ``arrival`` of a submit.
        task_id: Only requests about this WAV task; for ``music`` and ``submit``: this music task.
        verdict: ``submit``, ``after``: only submits with this verdict (see `Arrival`).
        when: ``arrival``, ``before`` or ``after``; `None`: the default of the kind.
        chance: Strike with this probability only, 0 to 1, drawn from the simulator's seed.
        code: The body code; int, string or `None` (``code`` and ``fail``).
        msg: The message beside it.
        data: The ``data`` beside it; for a callback, `None` is that of a failure.
        http_status: The HTTP status; `None`: the default of the kind.
        retry_after: Sent as ``Retry-After`` as it stands, whatever it is.
        retry_after_date_s: As an HTTP date this many real seconds from now instead.
        body: The text of a ``body``.
        content_type: The media type of a ``body``.
        url: The target of a ``redirect``.
        delay_s: Service seconds, or a (low, high) range to draw from.
        size: Bytes, for ``cut`` and ``huge``.
        fields: Keys merged by ``envelope`` and ``fields``.
        drop: Keys dropped by ``envelope``, ``fields`` and ``no-url``.
        places: Where ``id-places`` and ``url-places`` put the true value.
        other_places: Where they put a different one.
        style: The spelling of ``flag-style``.
        word: The word of ``word``, ``flag-name`` and ``fail``.
        with_url: Whether ``callback-exception`` keeps the URL.

    Raises:
        ValueError: an unknown kind, a kind that is not for this endpoint or moment, or a
            number out of range.

    """

    kind: str
    on: Endpoint = "submit"
    at: int | None = None
    every: int | None = None
    times: int | None = None
    per_task: bool = False
    audio_id: str | None = None
    task_id: str | None = None
    verdict: str | None = None
    when: When | None = None
    chance: float = 1.0
    code: int | str | None = 500
    msg: str = "Simulated failure"
    data: object = attrs.field(default=None, hash=False)
    http_status: int | None = None
    retry_after: str | None = None
    retry_after_date_s: float | None = None
    body: str = ""
    content_type: str = "text/plain"
    url: str = ""
    delay_s: Seconds | None = attrs.field(default=None, converter=_as_seconds)
    size: int | None = None
    fields: Mapping[str, object] = attrs.field(factory=dict[str, object], hash=False)
    drop: tuple[str, ...] = attrs.field(default=(), converter=_as_tuple)
    places: tuple[str, ...] = attrs.field(default=(), converter=_as_tuple)
    other_places: tuple[str, ...] = attrs.field(default=(), converter=_as_tuple)
    style: str = "int"
    word: str | None = None
    with_url: bool = True

    def __attrs_post_init__(self) -> None:
        """Refuse what could never strike or would strike elsewhere than meant."""
        self._check_converted()
        if self.on not in get_args(Endpoint):
            _refuse(f"no endpoint {self.on!r}")
        kind = _KINDS.get(self.kind)
        if kind is None:
            _refuse(f"no kind {self.kind!r}; there are {', '.join(sorted(_KINDS))}")
        if self.on not in kind.on:
            _refuse(f"{self.kind!r} is for {', '.join(kind.on)}, not for {self.on!r}")
        moments = ("after",) if self.on == "callback" else kind.when
        if self.when is not None and self.when not in moments:
            _refuse(f"{self.kind!r} happens {' or '.join(moments)}, not {self.when!r}")
        for name in ("at", "every", "times", "size", "http_status"):
            number = getattr(self, name)
            if number is not None and type(number) is not int:
                _refuse(f"{name} is an integer, got {number!r}")
        by_ids = self.audio_id or self.task_id or self.per_task
        counts = (self.at, self.every, self.times)
        refused = {
            "a request for credits or a link names no track": (
                by_ids and self.on in {"credits", "download-url"}
            ),
            "at arrival of a submit its ids are not known yet": (
                by_ids and (self.on, self.moment) == ("submit", "arrival")
            ),
            "only a submit has a verdict, and only after it was carried out": (
                self.verdict is not None and (self.on, self.moment) != ("submit", "after")
            ),
            "at, every and times count from 1": any(n is not None and n < 1 for n in counts),
            "an HTTP status is 200 to 599": (
                self.http_status is not None and not 200 <= self.http_status <= 599  # noqa: PLR2004 - as it says
            ),
            "size counts bytes": self.size is not None and self.size < 0,
            "chance is a probability": not 0 <= self.chance <= 1,
            f"no style {self.style!r}; there are {', '.join(STYLES)}": (self.style not in STYLES),
            f"{self.kind!r} needs delay_s": (
                self.kind in {"slow", "takes", "late"} and self.delay_s is None
            ),
            f"{self.kind!r} needs word": self.kind in {"word", "flag-name"} and self.word is None,
            f"{self.kind!r} needs url": self.kind == "redirect" and not self.url,
        }
        for problem, is_so in refused.items():
            if is_so:
                _refuse(problem)

    def _check_converted(self) -> None:
        for name in ("drop", "places", "other_places"):
            if not isinstance(getattr(self, name), tuple):
                message = f"a sequence of strings is wanted, got {getattr(self, name)!r}"
                raise TypeError(message)
        if self.delay_s is not None:
            _ = check_seconds("delay_s", self.delay_s)

    @property
    def moment(self) -> When:
        """The moment at which it strikes: `when`, or the default of the kind."""
        # What is called back was carried out.
        default = "after" if self.on == "callback" else _KINDS[self.kind].when[0]
        return self.when or default

    @property
    def needs(self) -> str:
        """The part an answer must have for this kind to count it."""
        return _KINDS[self.kind].needs

    def to_json(self) -> dict[str, object]:
        """Return it as a JSON object that `from_json` reads: what differs from the defaults."""
        defaults = attrs.asdict(Fault(kind="code"), recurse=False)
        mine = attrs.asdict(self, recurse=False)
        return {
            name: list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value
            for name, value in mine.items()
            if name == "kind" or value != defaults[name]
        }

    @classmethod
    def from_json(cls, value: object) -> "Fault":
        """
        Build one from a JSON object whose keys are the attributes' names.

        Raises:
            ValueError: it is not an object, a key is unknown, or a value is out of range.

        """
        if not isinstance(value, dict):
            message = f"a fault is a JSON object, got {value!r}"
            raise ValueError(message)  # noqa: TRY004 - bad text from outside, not a wrong call
        given = cast("dict[str, object]", value)
        unknown = sorted(given.keys() - {field.name for field in attrs.fields(cls)})
        if unknown or "kind" not in given:
            message = (
                f"a fault has a kind and no {', '.join(unknown) or 'kind is given'}: {value!r}"
            )
            raise ValueError(message)
        make = cast("Callable[..., Fault]", cls)
        try:
            return make(**given)
        except TypeError as error:
            message = f"a value of the wrong type in {value!r}: {error}"
            raise ValueError(message) from error


def faults_from_json(value: object) -> tuple[Fault, ...]:
    """
    Build a script from a JSON list of objects; see `Fault.from_json`.

    Raises:
        ValueError: it is not a list, or one of them is no fault.

    """
    if not isinstance(value, list):
        message = f"a script is a JSON list of faults, got {value!r}"
        raise ValueError(message)  # noqa: TRY004 - bad text from outside, not a wrong call
    return tuple(Fault.from_json(one) for one in cast("list[object]", value))
