"""What the simulator has counted, as one value, in the process and over its control endpoint."""

from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple, cast

import attrs


class Arrival(NamedTuple):
    """
    One submit as the service saw it.

    Attributes:
        at: When it was judged, after any arrival delay: a reading of the simulator's `now`,
            by default `time.monotonic`, which processes of one machine share.
        verdict: ``created`` (charged), ``repeated`` (409), ``limited`` (429 by the window),
            ``unauthorized``, ``invalid``, ``unknown-track``, ``no-credits``, ``scripted``
            (answered by a fault, nothing created), or ``dropped`` (the connection ended by a
            fault before anything was created).
        music_task_id: The music task id it named, if its body was read.
        audio_id: The audio id it named, if its body was read.
        task_id: The WAV task id that was created or repeated.

    """

    at: float
    verdict: str
    music_task_id: str | None
    audio_id: str | None
    task_id: str | None


class Delivery(NamedTuple):
    """
    One callback sent, and what was answered.

    Attributes:
        at: When it was sent: a reading of the simulator's `now`.
        task_id: The WAV task id it was about, whatever the script made it say.
        attempt: 1 for the first delivery, and for its double; 2 and more for retries.
        status: The HTTP status answered; `None`: none, in time.

    """

    at: float
    task_id: str
    attempt: int
    status: int | None


@attrs.frozen(kw_only=True)
class SimulatorState:
    """
    A snapshot of everything counted since the start or the last reset.

    Moments are readings of the simulator's `now`, durations real seconds. Control requests
    are counted nowhere.

    Attributes:
        now: When the snapshot was taken.
        charges: Tasks created; each was charged once.
        charges_by_track: The same by (music task id, audio id).
        arrivals: Every submit whose head arrived, in the order of judgement.
        polls: Polls answered, by WAV task id, for tasks polled at least once.
        polls_after_done: Polls of tasks whose end an earlier poll had already been told.
        polls_too_fast: Polls that were more than the third of one task in a service second.
        seen_lags_s: For each task, in the order seen: from its end to the first poll that was
            told so, unharmed by a fault.
        rejected_429: Submits answered with code or status 429, by the window or by a fault.
        requests: Requests by endpoint: ``submit``, ``poll``, ``music``, ``credits``,
            ``download-url``, ``media``, ``unknown``.
        connections: Connections that carried at least one request.
        submits_on_used_connection: Submits that were not the first request of their
            connection.
        keys_sent_to_media: Requests for a file that carried an ``Authorization`` header.
        credits: Credits left.
        deliveries: Every callback sent, in the order in which they were answered or given up.
        callbacks: Tasks by what became of their callback: ``delivered`` (answered 200),
            ``given_up`` (no retry is left), ``lost`` (never sent, as scripted), ``not_sent``
            (no http address of this machine, or callbacks are off). Others are yet to come: their
            conversion is not done, or a retry is.

    """

    now: float
    charges: int
    charges_by_track: Mapping[tuple[str, str], int]
    arrivals: tuple[Arrival, ...]
    polls: Mapping[str, int]
    polls_after_done: int
    polls_too_fast: int
    seen_lags_s: tuple[float, ...]
    rejected_429: int
    requests: Mapping[str, int]
    connections: int
    submits_on_used_connection: int
    keys_sent_to_media: int
    credits: Decimal
    deliveries: tuple[Delivery, ...]
    callbacks: Mapping[str, int]

    def most_arrivals_in(self, per_s: float) -> int:
        """
        Return the greatest number of submits that arrived within any `per_s` real seconds.

        The end of the span is not part of it: two submits exactly `per_s` apart are not
        within one.
        """
        times = sorted(arrival.at for arrival in self.arrivals)
        most = first = 0
        for last, at in enumerate(times):
            while at - times[first] >= per_s:
                first += 1
            most = max(most, last - first + 1)
        return most

    def to_json(self) -> dict[str, object]:
        """Return it as a JSON object that `from_json` reads."""
        value = {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}
        value["charges_by_track"] = [[*track, n] for track, n in self.charges_by_track.items()]
        value["credits"] = str(self.credits)
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> "SimulatorState":
        """Build one from what `to_json` returned."""
        fields = dict(value)
        charges = cast("list[tuple[str, str, int]]", fields["charges_by_track"])
        arrivals = cast("list[list[object]]", fields["arrivals"])
        fields["charges_by_track"] = {(music, audio): n for music, audio, n in charges}
        sent = cast("list[tuple[float, str, int, int | None]]", fields["deliveries"])
        fields["deliveries"] = tuple(Delivery(*one) for one in sent)
        fields["arrivals"] = tuple(Arrival(*one) for one in arrivals)  # type: ignore[arg-type]  # JSON
        fields["seen_lags_s"] = tuple(cast("list[float]", fields["seen_lags_s"]))
        fields["credits"] = Decimal(cast("str", fields["credits"]))
        return cls(**fields)  # type: ignore[arg-type]  # The names and types are to_json's.
