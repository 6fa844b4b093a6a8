"""Files saved by the command line: whole, or not there, and never paid for twice."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import re
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

import pytest
from yarl import URL

from cli_runs import KEY, SHORT, is_wav, names, service, submit_before
from kie_wav_async import Download, WavFile, errors, events
from kie_wav_async.cli import main
from kie_wav_async.cli.common.output import CliError, failure_of
from kie_wav_async.cli.common.progress import WaitDisplay
from kie_wav_async.cli.single.output_file import save
from kie_wav_async.simulator import Fault, Simulator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CUT = Fault(kind="cut", on="media", size=500)


class Done(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> dict:
        """Return the one object on stdout."""
        (line,) = self.out.splitlines()
        return json.loads(line)


@pytest.fixture(autouse=True)
def quiet_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take the developer's terminal out of it, and every random wait."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("random.random", lambda: 0.0)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def kie_wav(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Awaitable[Done]]:
    """Run the command line in a thread, pointed at a simulator through the environment."""

    async def run(kie: Simulator, *arguments: str) -> Done:
        monkeypatch.setenv("KIE_BASE_URL", kie.base_url)
        monkeypatch.setenv("KIE_API_KEY", KEY)
        capsys.readouterr()
        code = await asyncio.to_thread(main, arguments)
        return Done(code, *capsys.readouterr())

    return run


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(name: str) -> bytes:
    """Return what is in a file."""
    return Path(name).read_bytes()


@pytest.fixture
def taken() -> None:
    """Take the names of a file and of a link to nowhere."""
    Path("there.wav").write_text("before")
    Path("dangling").symlink_to("nowhere")


def command_in(sentence: str) -> list[str]:
    """Return the words of the command that a sentence advises, without the program's name."""
    return shlex.split(re.search(r"`kie-wav (.*?)`", sentence)[1])


# --- a file that does not come ----------------------------------------------------------------

BAD_FILES = [
    (Fault(kind="expired", on="media"), "unavailable", "refuses the link (404)"),
    (CUT, "truncated", "bytes of the file are kept"),
    (Fault(kind="html", on="media", http_status=200), "not-a-wav", "what 127.0.0.1 sent"),
    (
        Fault(kind="redirect", on="media", url="http://192.0.2.1/x.wav"),
        "url-not-allowed",
        "plain http",
    ),
    (Fault(kind="redirect", on="media", url="?again"), "url-not-allowed", "redirects more than"),
    (Fault(kind="code", on="media", http_status=503), "unavailable", "answered 503 (8 of 8"),
    (Fault(kind="reset", on="media"), "unavailable", "8 of 8 attempts"),
]


@pytest.mark.parametrize(
    ("fault", "reason", "words"), BAD_FILES, ids=[f"{f.kind} {f.url}" for f, *_ in BAD_FILES]
)
async def test_a_file_that_does_not_come(
    kie_wav, tmp_path: Path, fault: Fault, reason: str, words: str
) -> None:
    """A file that does not come whole has no name, and it is said how to have it without paying."""
    async with service(fault) as kie:
        await submit_before(kie, "a")
        done = await kie_wav(kie, "convert", "m", "a", "-o", "song.wav", "--json")
        task_id = kie.arrivals[0].task_id
        (charges, state) = kie.charges, kie.state()

    told = done.json()["error"]
    assert 3 == done.code
    assert ("DownloadError", reason, task_id) == (told["type"], told["reason"], told["task_id"])
    assert told["message"].startswith("the WAV is made but not saved: ")
    assert words in told["message"]
    assert "Do not convert it again: " in told["message"]
    assert "_hosts" not in told["message"]
    assert ["status", task_id] == command_in(told["message"])[:2]
    assert done.err.endswith(f"kie-wav: {told['message']}\n")
    assert {"song.wav.part", "song.wav.part.json"} >= set(names(tmp_path))
    assert (1, 0) == (charges, state.keys_sent_to_media)


@pytest.mark.parametrize("kind", ["convert", "status"])
async def test_a_short_file_can_be_accepted(kie_wav, tmp_path: Path, kind: str) -> None:
    """A file that came completely and is short is saved if one says so, and the note is said."""
    async with service(SHORT) as kie:
        await submit_before(kie, "a")
        failed = await kie_wav(kie, "convert", "m", "a", "-o", "song.wav", "--json")
        told = failed.json()["error"]
        assert [] == names(tmp_path)
        command = [*command_in(told["message"]), "--json"]
        if kind == "convert":
            command = ["convert", "m", "a", "-o", "song.wav", "--accept-short", "--json"]
        done = await kie_wav(kie, *command)
        charges, requests = kie.charges, kie.state().requests["media"]

    note = "only 444 of the 3,948 bytes that the header declares"
    assert (3, "truncated") == (failed.code, told["reason"])
    assert (
        "444 bytes long and declares 3,948; accept_short=True (--accept-short) saves it"
        in told["message"]
    )
    assert "--accept-short" in command
    assert (0, [note], 444) == (done.code, done.json()["notes"], len(contents("song.wav")))
    assert f"song.wav: {note}\n" in done.err
    assert (1, 2) == (charges, requests)


async def test_notes_are_said_once(kie_wav) -> None:
    """What is unusual about a file is said on stderr, and is no line of `status`."""
    async with service(SHORT) as kie:
        await submit_before(kie, "a")
        task_id = kie.arrivals[0].task_id
        done = await kie_wav(kie, "status", task_id, "-o", "song.wav", "--accept-short")

    assert (0, 1, 0) == (done.code, done.err.count("only 444"), done.out.count("only 444"))


@pytest.mark.parametrize("days", [13, 15])
async def test_a_file_that_the_service_has_deleted(kie_wav, days: int) -> None:
    """Only of a file that KIE says it has deleted a new conversion is spoken, and its price."""
    made_at = time.time() - days * 86_400
    faults = [
        Fault(kind="fields", on="poll", fields={"createTime": int(made_at * 1_000)}),
        Fault(kind="html", on="media", http_status=404),
        Fault(kind="code", on="download-url", code=404, msg="no such file"),
    ]
    async with service(*faults) as kie:
        await submit_before(kie, "a")
        done = await kie_wav(kie, "convert", "m", "a", "-o", "song.wav", "--json")

    told = done.json()["error"]
    is_gone = days > 14
    assert (3, "expired" if is_gone else "unavailable") == (done.code, told["reason"])
    assert is_gone is ("A new conversion is a new charge" in told["message"])
    assert is_gone is not ("Do not convert it again" in told["message"])


async def test_what_is_retried_is_told(kie_wav, tmp_path: Path) -> None:
    """Each attempt that fails is one line, without advice, and the file comes all the same."""
    async with service(Fault(kind="cut", on="media", size=500, times=2)) as kie:
        await submit_before(kie, "a")
        done = await kie_wav(kie, "convert", "m", "a", "-o", "song.wav")

    lines = [line for line in done.err.splitlines() if line.startswith("not saved yet")]
    assert (0, "song.wav\n") == (done.code, done.out)
    assert 2 == len(lines)
    assert all(re.search(r"again in 0\.0 s: .* of 8 attempts, .* kept\)$", line) for line in lines)
    assert ["song.wav"] == names(tmp_path)
    assert is_wav(tmp_path / "song.wav")


@pytest.mark.parametrize("reason", get_args(errors.DownloadReason))
def test_an_error_is_printed_as_it_is(reason: errors.DownloadReason) -> None:
    """What went wrong is told apart from what to do, both in the library's own words."""
    error = errors.DownloadError("a: b; c", reason=reason)
    told = failure_of(error)

    assert (3, reason) == (told.exit_code, told.facts["reason"])
    assert ("a: b; c", error.advice) == (str(told), told.facts["advice"])
    assert f"a: b; c: {error.advice}" == told.words


# --- once more, and free ------------------------------------------------------------------------


async def test_the_command_that_is_advised(kie_wav, tmp_path: Path) -> None:
    """The command that a failure advises goes on with what there is, and costs nothing."""
    async with service(Fault(kind="cut", on="media", size=500, times=8)) as kie:
        await submit_before(kie, "a")
        failed = await kie_wav(kie, "convert", "m", "a", "-o", "my song.wav", "--json")
        begun = names(tmp_path)
        done = await kie_wav(kie, *command_in(failed.json()["error"]["message"]), "--json")
        charges = kie.charges

    told = done.json()
    saved = tmp_path / "my song.wav"
    assert ["my song.wav.part", "my song.wav.part.json"] == begun
    assert (0, "", "my song.wav", 1) == (done.code, done.err, told["file"], charges)
    assert (saved.stat().st_size, digest(saved)) == (told["bytes"], told["sha256"])
    assert is_wav(saved)
    assert ["my song.wav"] == names(tmp_path)


async def test_status_saves(kie_wav, tmp_path: Path) -> None:
    """`status -o` shows the task as ever, and where its file is."""
    async with service() as kie:
        await submit_before(kie, "a")
        task_id = kie.arrivals[0].task_id
        bare = await kie_wav(kie, "status", task_id)
        done = await kie_wav(kie, "status", task_id, "-o", "song.wav")

    saved = tmp_path / "song.wav"
    more = [
        "file          song.wav\n",
        f"bytes         {saved.stat().st_size}\n",
        f"sha256        {digest(saved)}\n",
    ]
    assert (0, bare.out + "".join(more), "") == done
    assert is_wav(saved)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(kind="never", on="conversion"), "is not finished; ask again later"),
        (Fault(kind="no-url", on="poll"), "nothing is saved"),
    ],
    ids=["unfinished", "no-url"],
)
async def test_nothing_to_save_yet(kie_wav, tmp_path: Path, fault: Fault, words: str) -> None:
    """What has no file yet is not waited for, and not a success."""
    async with service(fault) as kie:
        await submit_before(kie, "a")
        done = await kie_wav(kie, "status", kie.arrivals[0].task_id, "-o", "song.wav")

    assert done.code in {1, 3}
    assert "" == done.out
    assert words in done.err
    assert [] == names(tmp_path)


async def test_nothing_to_save_ever(kie_wav, tmp_path: Path) -> None:
    """A conversion that failed is shown as one, and there is no file."""
    async with service(Fault(kind="fail", on="conversion"), retry_failed=False) as kie:
        await submit_before(kie, "a")
        done = await kie_wav(kie, "status", kie.arrivals[0].task_id, "-o", "song.wav", "--json")

    told = done.json()
    assert (1, "failed", None, None) == (done.code, told["state"], told["file"], told["bytes"])
    assert [] == names(tmp_path)


# --- before anything is paid --------------------------------------------------------------------


@pytest.mark.usefixtures("taken")
@pytest.mark.parametrize("command", ["convert", "status"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("there.wav", "there.wav is there already: choose another name, or remove it"),
        ("dangling", "dangling is there already"),
        ("no/folder.wav", "there is no folder no"),
        (".", "is not the name of a file"),
        ("-", "is not the name of a file"),
        ("x" * 300, "cannot be made: File name too long"),
    ],
    ids=lambda value: value[:20],
)
async def test_where_nothing_can_be_saved(kie_wav, command, name, words) -> None:
    """What cannot be made, or would replace a file, is refused before anything is sent."""
    async with service() as kie:
        ids = ("m", "a") if command == "convert" else ("t",)
        done = await kie_wav(kie, command, *ids, "-o", name)
        requests = kie.state().requests

    assert (2, "", {}) == (done.code, done.out, {k: v for k, v in requests.items() if v})
    assert words in done.err
    assert b"before" == contents("there.wav")


@pytest.mark.parametrize("is_fetched", [True, False])
@pytest.mark.parametrize("resumed", [True, False])
async def test_a_file_that_came_meanwhile(*, is_fetched: bool, resumed: bool) -> None:
    """A file that somebody else made under the name is not taken for the WAV."""
    display = WaitDisplay("saving")
    download = Download(Path("song.wav"), 44, "0" * 64, resumed=resumed)
    wav = WavFile("t", URL("https://x.example/t.wav"), None, "poll", None)

    class Session:
        async def download(self, wav: WavFile, path: Path, *, accept_short: bool) -> Download:
            assert not accept_short
            at = dt.datetime.now(dt.UTC)
            if is_fetched:
                display.show_event(
                    events.DownloadProgress(at=at, wav=wav, path=path, bytes=1, total=2)
                )
            return download

    if is_fetched or resumed:
        assert download is await save(Session(), wav, Path("song.wav"), display)
        return
    with pytest.raises(CliError, match=r"somebody has made song\.wav meanwhile") as caught:
        await save(Session(), wav, Path("song.wav"), display)
    assert "`kie-wav status t -o FILE` saves it elsewhere" in str(caught.value)
