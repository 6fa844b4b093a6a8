"""Which faults strike a request, and what they do to its answer."""

import random
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, cast

import attrs

from kie_wav_async.simulator.faults import Endpoint, Fault, When

_FLAGS: Final[dict[str, dict[str, object]]] = {
    "int": {"PENDING": 0, "SUCCESS": 1, "CREATE_TASK_FAILED": 2, "GENERATE_WAV_FAILED": 3},
    "digits": {
        "PENDING": "0",
        "SUCCESS": "1",
        "CREATE_TASK_FAILED": "2",
        "GENERATE_WAV_FAILED": "3",
    },
    "chinese": {"SUCCESS": "成功"},
    "lower": {
        "PENDING": "pending",
        "SUCCESS": "success",
        "CREATE_TASK_FAILED": "create_task_failed",
        "GENERATE_WAV_FAILED": "generate_wav_failed",
    },
    "null": {"PENDING": None},
}


@attrs.define
class _Counted:
    fault: Fault
    seen: int = 0
    hits: int = 0
    per_task: dict[str, tuple[int, int]] = attrs.field(factory=dict[str, tuple[int, int]])

    def strikes(self, task_id: str | None) -> bool:
        """Count one request; is it one to strike?"""
        fault = self.fault
        seen, hits = self.seen, self.hits
        if fault.per_task:
            seen, hits = self.per_task.get(task_id or "", (0, 0))
        seen += 1
        first = fault.at if fault.at is not None else fault.every or 1
        times = fault.times
        if times is None and fault.at is not None and fault.every is None:
            times = 1
        strikes = (
            seen >= first
            and (seen - first) % (fault.every or 1) == 0
            and (times is None or hits < times)
        )
        hits += strikes
        if fault.per_task:
            self.per_task[task_id or ""] = (seen, hits)
        else:
            self.seen, self.hits = seen, hits
        return strikes


class Script:
    """The faults of one simulator and how often each has counted and struck."""

    def __init__(self, faults: Iterable[Fault], chance: random.Random) -> None:
        self.faults = tuple(faults)
        self._chance = chance
        self._counted: dict[tuple[str, str], list[_Counted]] = {}
        for fault in self.faults:
            self._counted.setdefault((fault.on, fault.moment), []).append(_Counted(fault))

    def has(self, on: Endpoint, when: When) -> bool:
        """Tell whether any fault could strike there."""
        return (on, when) in self._counted

    def pick(  # noqa: D417 - the four facts are filters, documented at Fault
        self,
        on: Endpoint,
        when: When,
        *,
        audio_id: str | None = None,
        task_id: str | None = None,
        verdict: str | None = None,
        parts: frozenset[str] = frozenset(),
    ) -> Sequence[Fault]:
        """
        Count one request at one of its moments and return the faults that strike it.

        Args:
            on: The endpoint.
            when: The moment.
            parts: The parts the true answer has: ``data``, ``id``, ``record``, ``done``.

        """
        counted = self._counted.get((on, when))
        if not counted:
            return ()
        return [
            one.fault
            for one in counted
            if (one.fault.audio_id is None or one.fault.audio_id == audio_id)
            and (one.fault.task_id is None or one.fault.task_id == task_id)
            and (one.fault.verdict is None or one.fault.verdict == verdict)
            and (not one.fault.needs or one.fault.needs in parts)
            and one.strikes(task_id)
            and (one.fault.chance >= 1 or self._chance.random() < one.fault.chance)
        ]


def parts_of(payload: Mapping[str, object]) -> frozenset[str]:
    """Return which parts a true answer has; see `Script.pick`."""
    data = payload.get("data")
    if not isinstance(data, dict):
        return frozenset()
    record = cast("dict[str, object]", data)
    parts = {"data"}
    if "successFlag" in record:
        parts.add("record")
        if record["successFlag"] == "SUCCESS":
            parts.add("done")
    elif "taskId" in record:
        parts.add("id")
    return frozenset(parts)


def place(payload: dict[str, object], path: str, value: object) -> None:
    """Put a value at a place, dotted from the root; objects on the way are made."""
    *above, last = path.split(".")
    here = payload
    for name in above:
        below = here.get(name)
        if not isinstance(below, dict):
            below = here[name] = {}
        here = cast("dict[str, object]", below)
    here[last] = value


def merge(target: dict[str, object], fault: Fault) -> None:
    """Add the fields of a fault and take away the keys it drops."""
    target.update(fault.fields)
    for name in fault.drop:
        target.pop(name, None)


def _ms(text: object) -> object:
    if not isinstance(text, str):
        return text
    when = datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    return int(when.timestamp()) * 1000


def _shape_record(fault: Fault, record: dict[str, object]) -> None:
    match fault.kind:
        case "no-url":
            record["response"] = {"audioWavUrl": None}
            merge(record, fault)
        case "callback-exception":
            record["successFlag"] = "CALLBACK_EXCEPTION"
            if not fault.with_url:
                record["response"] = None
        case "flag-style":
            flag = str(record["successFlag"])
            record["successFlag"] = _FLAGS[fault.style].get(flag, flag)
        case "flag-name":
            record[str(fault.word)] = record.pop("successFlag")
        case "word":
            record["successFlag"] = fault.word
        case "ms-times":
            record["createTime"] = _ms(record["createTime"])
            record["completeTime"] = _ms(record["completeTime"])
        case "fields":
            merge(record, fault)
        case _:  # other-task
            record["taskId"] = str(record["taskId"])[::-1]


def _shape_places(fault: Fault, payload: dict[str, object], data: dict[str, object]) -> None:
    if fault.kind == "id-places":
        value = str(data["taskId"])
        other = value[::-1]
        payload["data"] = {}
    else:
        response = cast("dict[str, object]", data["response"])
        value = str(response["audioWavUrl"])
        other = value.replace("/s/", "/s/0")
        data["response"] = None
    for path in fault.places:
        place(payload, path, value)
    for path in fault.other_places:
        place(payload, path, other)


def shape(fault: Fault, payload: dict[str, object]) -> None:
    """Change a true answer, in place, as one fault of the changing kinds says."""
    data = cast("dict[str, object]", payload.get("data"))
    match fault.kind:
        case "huge":
            payload["padding"] = "x" * (fault.size or 3 * 2**19)
        case "string-code":
            payload["code"] = str(payload.get("code"))
        case "no-code":
            payload.pop("code", None)
        case "no-data":
            payload.pop("data", None)
        case "data-null":
            payload["data"] = None
        case "envelope":
            merge(payload, fault)
        case "id-places" | "url-places":
            _shape_places(fault, payload, data)
        case _:
            _shape_record(fault, data)
