"""
The simulated service itself: judges requests, creates tasks, counts. No HTTP in here.

Payloads are written by hand after the pages at docs.kie.ai (suno-api/convert-to-wav,
suno-api/get-wav-details, suno-api/get-music-details, common-api/download-url,
common-api/get-account-credits) and calls recorded against the service.
"""

import hashlib
import math
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from statistics import NormalDist
from typing import Final, TypeAlias

import attrs

from kie_wav_async.simulator.faults import Fault
from kie_wav_async.simulator.state import Arrival
from kie_wav_async.simulator.wav import Tone, tone_of

Payload: TypeAlias = dict[str, object]
PickConversionFaults: TypeAlias = Callable[[str, str, str], Sequence[Fault]]

_LINK_S: Final = 20 * 60.0  # docs.kie.ai/common-api/download-url: valid for 20 minutes.
_RECORD_RETENTION_S: Final = 60 * 86_400.0  # Getting started, docs.kie.ai: logs for 2 months.
_POLLS_PER_S: Final = 3  # docs.kie.ai/suno-api/get-music-details: 3 queries per second.
_NORMAL: Final = NormalDist()


@attrs.frozen(kw_only=True)
class Settings:
    """What the service goes by; the names are those of `Simulator`, documented there."""

    seed: int
    median_s: float
    sigma: float
    time_scale: float
    window: tuple[int, float] | None
    dedupe: bool
    conflict_id: bool
    retry_failed: bool
    credits: Decimal
    price: Decimal
    wav_s: tuple[float, float]
    retention_s: float
    music: Mapping[str, Sequence[str]]
    known_only: bool
    unknown_music_task_ids: frozenset[str]
    unknown_audio_ids: frozenset[str]


@attrs.define
class Task:
    """One conversion task. `done_at` is infinite for one that never finishes."""

    task_id: str
    music_task_id: str
    audio_id: str
    callback_url: str
    music_index: int
    file_id: str
    created_at: float
    done_at: float
    ending: str
    error_code: object
    error_message: str
    polls: int = 0
    last_polls: tuple[float, ...] = ()
    seen_done: bool = False


def envelope(code: object, msg: str, data: object = None) -> Payload:
    """Return the wrapper every answer of the service comes in."""
    return {"code": code, "msg": msg, "data": data}


def demo_audio_ids(music_task_id: str) -> tuple[str, str]:
    """Return the ids of the two tracks that a music task has unless it was seeded."""
    digest = hashlib.blake2b(
        f"music\n{music_task_id}".encode(errors="surrogatepass"), digest_size=32
    ).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4)), str(
        uuid.UUID(bytes=digest[16:], version=4)
    )


def _text(body: Mapping[str, object], name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) and value else None


class Service:
    """One account at the service: its tasks, its window, its credits and what was counted."""

    def __init__(
        self, settings: Settings, *, started_at: float, started_unix_s: float, base_url: str
    ) -> None:
        self.settings = settings
        self.base_url = base_url
        self.tasks: dict[str, Task] = {}
        self.files: dict[str, Task] = {}
        self.arrivals: list[Arrival] = []
        self.charges_by_track: dict[tuple[str, str], int] = {}
        self.charges = 0
        self.credits = settings.credits
        self.polls_after_done = 0
        self.polls_too_fast = 0
        self.seen_lags_s: list[float] = []
        self._by_track: dict[tuple[str, str], Task] = {}
        self._links: dict[str, tuple[str, float]] = {}
        self._window: deque[float] = deque()
        self._started_at = started_at
        self._started_unix_s = started_unix_s
        self._known = {name: frozenset(ids) for name, ids in settings.music.items()}

    # Time: every duration of the settings is in service seconds, every moment a reading of
    # the simulator's clock; one real second holds `time_scale` service seconds.

    def _real_s(self, service_s: float) -> float:
        return service_s / self.settings.time_scale

    def unix_s(self, at: float) -> float:
        """Return the wall clock of the service at a moment."""
        return self._started_unix_s + (at - self._started_at) * self.settings.time_scale

    def _stamp(self, at: float) -> str:
        return datetime.fromtimestamp(self.unix_s(at), UTC).strftime("%Y-%m-%d %H:%M:%S")

    # Submits

    def log(
        self, at: float, verdict: str, body: Payload | None = None, task_id: str | None = None
    ) -> None:
        """Note one submit that arrived."""
        fields = body or {}
        self.arrivals.append(
            Arrival(at, verdict, _text(fields, "taskId"), _text(fields, "audioId"), task_id)
        )

    def window_is_full(self, at: float) -> bool:
        """Tell whether one more submit now would be over the limit."""
        if self.settings.window is None:
            return False
        count, per_s = self.settings.window
        while self._window and at - self._window[0] >= self._real_s(per_s):
            self._window.popleft()
        return len(self._window) >= count

    def occupy_window(self, at: float) -> None:
        """Let one submit count towards the limit."""
        if self.settings.window is not None:
            self._window.append(at)

    def submit(
        self, body: Payload | None, at: float, pick: PickConversionFaults
    ) -> tuple[Payload, str]:
        """
        Judge one authorised submit and carry it out.

        Args:
            body: The decoded body; `None` if it was not a JSON object.
            at: The moment.
            pick: Returns the conversion faults for a music task id, audio id and task id.

        Returns:
            The answer and the verdict (see `Arrival`). The charge is made, or not, at once.

        """
        payload, verdict, task_id = self._submit(body, at, pick)
        self.log(at, verdict, body, task_id)
        return payload, verdict

    def _submit(
        self, body: Payload | None, at: float, pick: PickConversionFaults
    ) -> tuple[Payload, str, str | None]:
        if self.window_is_full(at):
            msg = "Your call frequency is too high. Please try again later."
            return envelope(429, msg), "limited", None
        self.occupy_window(at)
        if body is None:
            return envelope(400, "The request body is not valid JSON"), "invalid", None
        for name in ("taskId", "audioId", "callBackUrl"):
            if _text(body, name) is None:
                return envelope(422, f"Please enter {name}."), "invalid", None
        track = (str(body["taskId"]), str(body["audioId"]))
        if not self._exists(*track):
            return envelope(422, "Record does not exist"), "unknown-track", None
        return self._accept(track, str(body["callBackUrl"]), at, pick)

    def _accept(
        self, track: tuple[str, str], callback_url: str, at: float, pick: PickConversionFaults
    ) -> tuple[Payload, str, str | None]:
        settings = self.settings
        old = self._by_track.get(track) if settings.dedupe else None
        if old is not None and not (settings.retry_failed and self._has_failed(old, at)):
            data = {"taskId": old.task_id} if settings.conflict_id else None
            return envelope(409, "The WAV record already exists", data), "repeated", old.task_id
        if self.credits < settings.price:
            return envelope(402, "The current credits are insufficient"), "no-credits", None
        task = self._create(track, callback_url, at, pick)
        return envelope(200, "success", {"taskId": task.task_id}), "created", task.task_id

    def _exists(self, music_task_id: str, audio_id: str) -> bool:
        settings = self.settings
        if (
            audio_id in settings.unknown_audio_ids
            or music_task_id in settings.unknown_music_task_ids
        ):
            return False
        return not settings.known_only or audio_id in self._known.get(music_task_id, ())

    @staticmethod
    def _has_failed(task: Task, at: float) -> bool:
        return task.ending != "SUCCESS" and at >= task.done_at

    def _create(
        self, track: tuple[str, str], callback_url: str, at: float, pick: PickConversionFaults
    ) -> Task:
        settings = self.settings
        number = self.charges_by_track.get(track, 0) + 1
        # From the seed and the track alone, so that neither the order in which concurrent
        # submits arrive nor other tracks change a track's ids and duration.
        text = f"{settings.seed}\n{track[0]}\n{track[1]}\n{number}"
        digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=40).digest()
        share = (int.from_bytes(digest[32:]) + 0.5) / 2**64
        takes_s = settings.median_s * math.exp(
            settings.sigma * _NORMAL.inv_cdf(min(share, 1 - 2**-53))
        )
        tracks = self.audio_ids(track[0])
        task = Task(
            task_id=digest[:16].hex(),
            music_task_id=track[0],
            audio_id=track[1],
            callback_url=callback_url,
            music_index=tracks.index(track[1]) if track[1] in tracks else digest[0] & 1,
            file_id=digest[16:32].hex(),
            created_at=at,
            done_at=0.0,
            ending="SUCCESS",
            error_code=None,
            error_message="",
        )
        for fault in pick(track[0], track[1], task.task_id):
            if fault.kind == "never":
                takes_s = math.inf
            elif fault.kind == "takes" and fault.delay_s is not None:
                # The lower end of a range plus the track's own share of it: no shared chance.
                low, high = (
                    fault.delay_s
                    if isinstance(fault.delay_s, tuple)
                    else (fault.delay_s, fault.delay_s)
                )
                takes_s = low + (high - low) * share
            else:
                task.ending = fault.word or "GENERATE_WAV_FAILED"
                task.error_code, task.error_message = fault.code, fault.msg
        task.done_at = at + self._real_s(takes_s)
        self.tasks[task.task_id] = self.files[task.file_id] = self._by_track[track] = task
        self.charges_by_track[track] = number
        self.charges += 1
        self.credits -= settings.price
        return task

    # Reads

    def url_of(self, task: Task) -> str:
        """Return the address of a task's file."""
        return f"{self.base_url}/s/{task.file_id}.wav"

    def poll(self, task_id: str | None, at: float) -> tuple[Payload, Task | None]:
        """Answer one poll: the record, or `null` for an id that is unknown or forgotten."""
        if not task_id:
            return envelope(422, "Please enter taskId."), None
        task = self.tasks.get(task_id)
        if task is None or at - task.created_at >= self._real_s(_RECORD_RETENTION_S):
            return envelope(200, "success"), None
        task.polls += 1
        self.polls_after_done += task.seen_done
        recent = tuple(t for t in task.last_polls if at - t < self._real_s(1.0))
        self.polls_too_fast += len(recent) >= _POLLS_PER_S
        task.last_polls = (*recent, at)[-_POLLS_PER_S:]
        return envelope(200, "success", self._record(task, at)), task

    def _record(self, task: Task, at: float) -> Payload:
        done = at >= task.done_at
        succeeded = done and task.ending == "SUCCESS"
        failed = done and not succeeded
        return {
            "taskId": task.task_id,
            "musicId": task.audio_id,
            "callbackUrl": task.callback_url,
            "musicIndex": task.music_index,
            "completeTime": self._stamp(task.done_at) if done else None,
            "response": {"audioWavUrl": self.url_of(task)} if succeeded else None,
            "successFlag": task.ending if done else "PENDING",
            "createTime": self._stamp(task.created_at),
            "errorCode": task.error_code if failed else None,
            "errorMessage": task.error_message if failed else None,
        }

    def saw_done(self, task: Task, at: float) -> None:
        """Note that a poll was answered, unharmed, with the end of a task."""
        if not task.seen_done and at >= task.done_at:
            task.seen_done = True
            self.seen_lags_s.append(at - task.done_at)

    def audio_ids(self, music_task_id: str) -> Sequence[str]:
        """Return the audio ids of a music task; none for one that does not exist."""
        seeded = self.settings.music.get(music_task_id)
        if music_task_id in self.settings.unknown_music_task_ids or (
            seeded is None and self.settings.known_only
        ):
            return ()
        return demo_audio_ids(music_task_id) if seeded is None else seeded

    def music(self, music_task_id: str | None, at: float) -> Payload:
        """Answer for the tracks of a music task."""
        if not music_task_id:
            return envelope(422, "Please enter taskId.")
        ids = self.audio_ids(music_task_id)
        if not ids and music_task_id not in self.settings.music:
            return envelope(200, "success")
        tracks = [self._music_track(music_task_id, n, one, at) for n, one in enumerate(ids)]
        return envelope(
            200,
            "success",
            {
                "taskId": music_task_id,
                "parentMusicId": "",
                "param": '{"prompt":"A calm piano","instrumental":true,"model":"V4_5"}',
                "response": {"taskId": music_task_id, "sunoData": tracks},
                "status": "SUCCESS",
                "type": "GENERATE",
                "operationType": "generate",
                "errorCode": None,
                "errorMessage": None,
            },
        )

    def _music_track(self, music_task_id: str, number: int, audio_id: str, at: float) -> Payload:
        tone = self.tone(music_task_id, audio_id)
        return {
            "id": audio_id,
            "audioUrl": f"{self.base_url}/m/{audio_id}.mp3",
            "streamAudioUrl": f"{self.base_url}/m/{audio_id}",
            "imageUrl": f"{self.base_url}/m/{audio_id}.jpeg",
            "prompt": "[Verse] A calm piano",
            "modelName": "chirp-v4-5",
            "title": f"Tone {44_100 / tone.period:.0f} Hz, take {number + 1}",
            "tags": "piano, calm",
            "createTime": self._stamp(at),
            "duration": round(tone.frames / 44_100, 2),
        }

    def credit(self) -> Payload:
        """Answer for the credits left."""
        return envelope(200, "success", float(self.credits))

    def download_url(self, body: Payload | None, at: float, link_id: str) -> Payload:
        """Answer with a link of 20 minutes to a file of ours; refuse a foreign or deleted one."""
        if body is None:
            return envelope(400, "The request body is not valid JSON")
        url = _text(body, "url") or ""
        prefix, suffix = f"{self.base_url}/s/", ".wav"
        task = None
        if url.startswith(prefix) and url.endswith(suffix):
            task = self.files.get(url[len(prefix) : -len(suffix)])
        if task is None or task.ending != "SUCCESS" or at < task.done_at:
            return envelope(422, "url is wrong")
        if at >= task.done_at + self._real_s(self.settings.retention_s):
            # Not recorded: 404 is among the codes that the page lists.
            return envelope(404, "file not found")
        self._links[link_id] = (task.file_id, at + self._real_s(_LINK_S))
        return envelope(200, "success", f"{self.base_url}/t/{link_id}.wav")

    # Files

    def tone(self, music_task_id: str, audio_id: str) -> Tone:
        """Return the sound of a track."""
        return tone_of(music_task_id, audio_id, *self.settings.wav_s)

    def file(self, folder: str, name: str, at: float) -> tuple[int, Task | None]:
        """
        Look a file up.

        Returns:
            An HTTP status and the task whose file it is: 200, 404 (never there, not yet
            there, or deleted after the retention), or 403 (a temporary link that expired).

        """
        if folder == "t":
            name, expires_at = self._links.get(name, ("", math.inf))
            if at >= expires_at:
                return 403, self.files.get(name)
        task = self.files.get(name)
        if (
            task is None
            or task.ending != "SUCCESS"
            or not task.done_at <= at < task.done_at + self._real_s(self.settings.retention_s)
        ):
            return 404, task
        return 200, task
