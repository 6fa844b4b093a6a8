"""The command line, run in this process against the simulator."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cli_runs import KEY, is_wav, names, service, submit_before
from kie_wav_async import Track, errors
from kie_wav_async.cli import main
from kie_wav_async.cli.commands import cli
from kie_wav_async.cli.common.output import failure_of
from kie_wav_async.cli.demo import demo
from kie_wav_async.simulator import Fault, Simulator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Done(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


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

    async def run(*arguments: str, kie: Simulator | None = None, key: str | None = KEY) -> Done:
        for name, value in (("KIE_BASE_URL", kie and kie.base_url), ("KIE_API_KEY", key)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        capsys.readouterr()
        code = await asyncio.to_thread(main, arguments)
        return Done(code, *capsys.readouterr())

    return run


def size_of(name: str) -> int:
    """Return the bytes of a file."""
    return Path(name).stat().st_size


# --- results --------------------------------------------------------------------------------


async def test_convert_prints_the_url_and_nothing_else(kie_wav) -> None:
    """What a script reads from stdout is the URL; what a person wants to know is on stderr."""
    async with service() as kie:
        await submit_before(kie, "a")
        done = await kie_wav("convert", "m", "a", kie=kie)

        assert 0 == done.code
        assert re.fullmatch(rf"{re.escape(kie.base_url)}/s/[0-9a-f]{{32}}\.wav\n", done.out)
        assert re.fullmatch(r"already there: task [0-9a-f]{32}\n", done.err)


async def test_convert_saves_the_wav(kie_wav, tmp_path: Path) -> None:
    """`-o` leaves one whole WAV file, fetched without the key, and names it on stdout."""
    async with service() as kie:
        await submit_before(kie, "a")
        done = await kie_wav("convert", "m", "a", "-o", "song.wav", kie=kie)
        state = kie.state()

    assert (0, "song.wav\n") == (done.code, done.out)
    assert ["song.wav"] == names(tmp_path)
    assert is_wav(tmp_path / "song.wav")
    assert (1, 0) == (state.requests["media"], state.keys_sent_to_media)


async def test_convert_as_json(kie_wav) -> None:
    """`convert --json` tells all there is to know of the file in one object."""
    async with service() as kie:
        await submit_before(kie, "a")
        (told,) = (await kie_wav("convert", "m", "a", "-o", "song.wav", "--json", kie=kie)).json()

        assert set(told) == {
            *("task_id", "music_task_id", "audio_id", "url"),
            *("settled_by", "expires_at", "file", "bytes", "sha256", "notes"),
        }
        assert ("m", "a", "poll") == (told["music_task_id"], told["audio_id"], told["settled_by"])
        assert ("song.wav", size_of("song.wav")) == (told["file"], told["bytes"])


async def test_status_follows_convert(kie_wav) -> None:
    """The task id that `convert` tells is the one that `status` takes."""
    async with service() as kie:
        await submit_before(kie, "a")
        converted = (await kie_wav("convert", "m", "a", "--json", kie=kie)).json()[0]
        text = await kie_wav("status", str(converted["task_id"]), kie=kie)
        told = (await kie_wav("status", str(converted["task_id"]), "--json", kie=kie)).json()[0]

    assert (0, converted["url"], "succeeded") == (text.code, told["url"], told["state"])
    assert f"url           {converted['url']}\n" in text.out
    assert set(told) == {
        *("task_id", "state", "status", "url", "audio_id", "created_at", "completed_at"),
        *("error_code", "error_message"),
    }


async def test_tracks_can_be_cut_and_converted(kie_wav) -> None:
    """Tracks come as id, tab, title; with `--json` as one object a line."""
    async with service() as kie:
        text = await kie_wav("tracks", "m", kie=kie)
        told = (await kie_wav("tracks", "m", "--json", kie=kie)).json()

        assert list(kie.audio_ids("m")) == [line.split("\t")[0] for line in text.out.splitlines()]
        assert [line.split("\t")[1] for line in text.out.splitlines()] == [t["title"] for t in told]
        assert [{"music_task_id", "audio_id", "title"}] * 2 == [set(track) for track in told]


async def test_credits_keep_their_fraction(kie_wav) -> None:
    """Credits are printed as the service counts them, fractions included."""
    async with service(credits="12.25") as kie:
        text = await kie_wav("credits", kie=kie)
        told = await kie_wav("credits", "--json", kie=kie)

    assert (0, "12.25\n") == (text.code, text.out)
    assert [{"credits": 12.25}] == told.json()


# --- ends that are not good ---------------------------------------------------------------------

# What a terminal might obey.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]")

SCRIPT = (
    Fault(kind="hangup", when="after", audio_id="lost"),
    Fault(kind="code", code=402, msg="no credits", audio_id="poor"),
    Fault(kind="code", code=409, msg="exists", audio_id="there"),
    Fault(kind="body", http_status=404, body='{"status":404}', audio_id="nowhere"),
    Fault(kind="fail", on="conversion", audio_id="bad"),
    Fault(kind="never", on="conversion", audio_id="never"),
    Fault(kind="expired", on="media"),
)
ENDS = [
    (("convert", "m", "bad"), 1, "failed"),
    (("convert", "m", "never", "--timeout", "0.05"), 1, "kie-wav status"),
    (("convert", "m"), 2, "Missing argument"),
    (("convert", "m", "a b"), 2, "audio_id"),
    (("convert", "m", "a", "--timeout", "nan"), 2, "timeout_s"),
    (("convert", "m", "a", "-o", "no/folder.wav"), 2, "there is no folder no"),
    (("convert", "m", "a", "-o", "no\x1b[31m\u202ewhere/x.wav"), 2, "there is no folder no"),
    (("convert", "m", "a", "-o", "."), 2, "not the name of a file"),
    (("convert", "m", "a", "-o", "-"), 2, "not the name of a file"),
    (("status", "a\x1b[31mb"), 2, "task_id"),
    (("credits", "--base-url", "http://kie.example"), 2, "--insecure-host"),
    (("credits", "--base-url", "nonsense"), 2, "base_url"),
    (("credits", "--api-key", "sk-1"), 2, "No such option"),
    (("bulk",), 2, "Missing argument"),
    (("bulk", "c.csv"), 2, "--out"),
    (("download",), 2, "No such command"),
    (("demo", "--tracks", "0"), 2, "--tracks"),
    (("simulate", "--faults", '[{"kind": "nonsense"}]'), 2, "nonsense"),
    (("simulate", "--faults", "@nowhere"), 2, "nowhere"),
    (("simulate", "--speed", "0"), 2, "time_scale"),
    (("convert", "m", "poor"), 3, "top up credits"),
    (("convert", "m", "nowhere"), 3, "(base_url, --base-url, KIE_BASE_URL)"),
    (("convert", "m", "there"), 3, "kie-wav status TASK_ID"),
    (("convert", "nobody", "a"), 3, "Record does not exist"),
    (("convert", "m", "a", "-o", "song.wav"), 3, "Do not convert it again"),
    (("status", "nothing"), 3, "knows no conversion nothing"),
    (("tracks", "nobody"), 3, "check the id"),
    (("credits", "--base-url", "http://127.0.0.1:1"), 3, "check the network"),
    (("convert", "m", "lost"), 4, "it may have been charged"),
]


@pytest.mark.parametrize("json_too", [False, True], ids=["text", "json"])
@pytest.mark.parametrize(("arguments", "code", "words"), ENDS, ids=lambda value: str(value)[:60])
async def test_a_bad_end(kie_wav, arguments, code, words, json_too) -> None:
    """A bad end has its exit code and one sentence on stderr, and shows neither key nor trace."""
    async with service(*SCRIPT, retry_failed=False, unknown_music_task_ids=["nobody"]) as kie:
        await submit_before(kie, "a", "bad")
        kie_or_none = None if "--base-url" in arguments else kie
        done = await kie_wav(*arguments, *["--json"] * json_too, kie=kie_or_none)

    assert code == done.code, done
    assert words in done.err
    assert KEY not in done.out + done.err
    assert "Traceback" not in done.err
    assert not CONTROLS.search(done.out + done.err)
    sentences = [line for line in done.err.splitlines() if line.startswith(("kie-wav:", "Error:"))]
    assert 1 == len(sentences)
    if not json_too or sentences[0].startswith("Error:"):
        assert "" == done.out
    else:
        (told,) = done.json()
        said = [told["error"][name] for name in ("message", "advice") if name in told["error"]]
        assert sentences[0] == f"kie-wav: {': '.join(said)}"
        assert code == told["error"]["exit_code"]


@pytest.mark.parametrize("audio_id", ["lost", "there"])
async def test_a_command_asks_the_same_service(kie_wav, audio_id) -> None:
    """A command in which only the task is to be filled in names the service as this one did."""
    async with service(*SCRIPT, retry_failed=False) as kie:
        done = await kie_wav("convert", "m", audio_id, "--base-url", kie.base_url)

    assert f"`kie-wav status TASK_ID --base-url {kie.base_url}`" in done.err


@pytest.mark.parametrize(
    "error",
    [
        errors.TransportError("reset"),
        errors.WireFormatError("odd"),
        errors.EndpointGoneError(code=410),
        errors.InsufficientCreditsError(code=402, message="no"),
        errors.SubmitUnknownError("x", track=Track("m", "a"), attempt_id="0f"),
        errors.LedgerError("the disk is full", advice="free some space"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_printed_as_it_is(error) -> None:
    """What happened and what to do are the library's own words, in the text and in the JSON."""
    told = failure_of(error)

    assert (str(error), error.advice) == (str(told), told.advice)
    assert str(error) == told.facts["message"]
    assert error.advice == told.facts.get("advice", "")


async def test_a_failed_task_has_a_status_and_fails(kie_wav) -> None:
    """`status` of a conversion that failed says why, and exits with 1."""
    async with service(Fault(kind="fail", on="conversion", msg="no [b]source")) as kie:
        await submit_before(kie, "bad")
        done = await kie_wav("status", kie.arrivals[0].task_id, kie=kie)

    assert 1 == done.code
    assert "state         failed\n" in done.out
    assert "error_message no [b]source\n" in done.out


@pytest.mark.parametrize("key", [None, ""])
async def test_no_key(kie_wav, key) -> None:
    """Without a key the commands say so, and that the demo needs none."""
    done = await kie_wav("credits", key=key)

    assert (2, "") == (done.code, done.out)
    assert re.fullmatch(r"kie-wav: no API key: set KIE_API_KEY .*kie-wav demo.*\n", done.err)


async def test_a_wrong_key(kie_wav) -> None:
    """A key the service refuses is not shown in the complaint about it."""
    async with service() as kie:
        done = await kie_wav("credits", kie=kie, key="sk-wrong")

    assert 3 == done.code
    assert "KIE_API_KEY" in done.err
    assert "sk-wrong" not in done.out + done.err


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_json(name: str) -> None:
    """Every command has `--json`, and none takes the key as an argument."""
    options = {option for param in cli.commands[name].params for option in param.opts}

    assert "--json" in options
    assert not [option for option in options if "key" in option]


def test_the_commands() -> None:
    """There are these commands and no placeholders for others."""
    assert {
        *("bulk", "convert", "credits", "demo", "report"),
        *("resolve", "simulate", "status", "tracks"),
    } == set(cli.commands)


# --- strangers' texts ---------------------------------------------------------------------------

HOSTILE = "[bold red]x[/] [link=https://evil.example]y\x1b[31m\x1b]0;z\x07\u202e\n\udc80"


async def test_a_hostile_title(kie_wav) -> None:
    """A title is neither markup nor obeyed by the terminal."""
    song = {"id": "a", "title": HOSTILE}
    fault = Fault(kind="fields", on="music", fields={"response": {"sunoData": [song]}})
    async with service(fault) as kie:
        text = await kie_wav("tracks", "m", kie=kie)
        told = await kie_wav("tracks", "m", "--json", kie=kie)

    assert 0 == text.code
    assert text.out.startswith("a\t[bold red]x[/] [link=https://evil.example]y")
    assert not CONTROLS.search(text.out + told.out)


def test_a_success_that_names_no_file() -> None:
    """What the service answered is shown, with the advice to ask again and not to pay."""
    error = errors.ConversionTimeoutError(timeout_s=900.0, task_id="t1", answer='{"file": "here"}')
    told = failure_of(error)

    assert 1 == told.exit_code
    assert str(told).endswith('names no file that we can read: {"file": "here"}')
    assert "do not convert the track again" in told.advice
    assert "kie-wav status t1" == told.command


async def test_a_hostile_message(kie_wav) -> None:
    """The service's words are neither markup nor obeyed by the terminal."""
    async with service(Fault(kind="code", on="credits", code=401, msg=HOSTILE)) as kie:
        done = await kie_wav("credits", kie=kie)

    assert 3 == done.code
    assert "[bold red]x[/] [link=https://evil.example]y" in done.err
    assert not CONTROLS.search(done.err)


async def test_a_hostile_record(kie_wav) -> None:
    """What a record says is printed as text, its unknown status word included."""
    async with service(Fault(kind="word", on="poll", word=HOSTILE)) as kie:
        await submit_before(kie, "a")
        done = await kie_wav("status", kie.arrivals[0].task_id, kie=kie)

    assert 0 == done.code
    assert "status        [bold red]x[/] [link=https://evil.example]y" in done.out
    assert not CONTROLS.search(done.out)


# --- the demo ---------------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the demo's minutes pass in milliseconds."""
    monkeypatch.setattr(demo, "_SPEED", 3_000.0)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `hasty`, but let no poll be faster than a callback, however busy the machine."""
    monkeypatch.setattr(demo, "_SPEED", 3_000.0)
    monkeypatch.setattr(demo, "_FIRST_POLL_S", 1_500.0)
    monkeypatch.setattr(demo, "_BACKSTOP_S", 1_500.0)


@pytest.mark.usefixtures("patient")
async def test_the_demo(kie_wav, tmp_path: Path) -> None:
    """The demo ends with a table of tracks, each a WAV file in a new folder, and the bill."""
    (tmp_path / "kie-wav-demo").mkdir()
    done = await kie_wav("demo", "--tracks", "4", key=None)

    files = sorted((tmp_path / "kie-wav-demo-2").iterdir())
    assert 0 == done.code
    assert 4 == len(files)
    assert all(is_wav(file) for file in files)
    header, _, *rows = [line.split() for line in done.out.splitlines() if line.strip()]
    assert ["Track", "Settled", "by", "Seconds", "Bytes", "File"] == header
    assert [file.name for file in files] == [row[-1] for row in rows]
    assert [f"{file.stat().st_size:,}" for file in files] == [row[-2] for row in rows]
    assert "4 of 4 tracks converted and saved in kie-wav-demo-2" in done.err
    assert "accepted 4 <= charged 4 <= accepted + unknown 4" in done.err


@pytest.mark.usefixtures("patient")
async def test_the_demo_settles_both_ways(kie_wav, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second callback of the demo gets lost, and polling finds what it would have told."""
    # The demo has an address of its own, and a key.
    monkeypatch.setenv("KIE_CALLBACK_URL", "nonsense")
    monkeypatch.setenv("KIE_WEBHOOK_HMAC_KEY", "short")
    done = await kie_wav("demo", "--tracks", "6", "--json", key=None)

    ways = [row["settled_by"] for row in sorted(done.json(), key=lambda row: str(row["file"]))]
    # The first one is confirmed by a poll, which teaches where files are.
    assert ["poll"] * 3 == ways[1::2]
    assert {"callback", "poll"} == set(ways[::2])
    called, polled = ways.count("callback"), ways.count("poll")
    assert f": {called} settled by callback, {polled} by polling.\n" in done.err


@pytest.mark.usefixtures("patient")
async def test_the_demo_of_one_track(kie_wav) -> None:
    """One track is told of in the singular."""
    done = await kie_wav("demo", "--tracks", "1", key=None)

    assert "Converting 1 track at " in done.err
    assert "1 of 1 track converted" in done.err


@pytest.mark.usefixtures("hasty")
async def test_the_demo_as_json(kie_wav, tmp_path: Path) -> None:
    """`demo --json` prints one object per track and no table."""
    done = await kie_wav("demo", "--tracks", "3", "--out", "there/is", "--json", key=None)

    told = done.json()
    assert 0 == done.code
    assert sorted((tmp_path / "there" / "is").iterdir()) == sorted(
        tmp_path / str(row["file"]) for row in told
    )
    for row in told:
        assert set(row) == {
            *("music_task_id", "audio_id", "title", "task_id", "url"),
            *("settled_by", "seconds", "bytes", "file", "error"),
        }
        assert row["bytes"] == size_of(str(row["file"]))
        assert row["seconds"] >= 0


@pytest.mark.usefixtures("hasty")
async def test_the_demo_with_a_full_disk(kie_wav, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be saved has its row with the reason, and the exit code is 3."""

    def full(_: object) -> object:
        return SimpleNamespace(free=1_000_000)

    monkeypatch.setattr("shutil.disk_usage", full)
    done = await kie_wav("demo", "--tracks", "1", key=None)

    assert 3 == done.code
    assert "not saved: " in done.out
    assert "there are 1 MB free" in done.out
    assert "make room" not in done.out
    assert [] == list(Path.cwd().iterdir())


async def test_the_demo_where_nothing_can_be_written(kie_wav, tmp_path: Path) -> None:
    """An `--out` that cannot be a folder is a usage error, before anything is converted."""
    (tmp_path / "file").touch()
    done = await kie_wav("demo", "--out", "file/folder", key=None)

    assert 2 == done.code
    assert done.err.startswith("kie-wav: cannot make the folder file/folder: ")
