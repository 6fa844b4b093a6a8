"""Whether saved files are what was saved: `kie-wav report --verify`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kie_wav_async.cli.bulk.manifest import write_manifest
from kie_wav_async.cli.common.output import CliError
from kie_wav_async.cli.common.progress import VerifyDisplay
from kie_wav_async.cli.report import verify as report_verify
from kie_wav_async.cli.report.verify import escaped
from kie_wav_async.ledger import SqliteLedger
from ledger_runs import Done, Writer, run, track

if TYPE_CHECKING:
    from collections.abc import Callable

OUT = Path("out")
LEDGER = OUT / "kie-wav.sqlite3"
MANIFEST = OUT / "manifest.jsonl"

# What a terminal might obey.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]")


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty folder, without the developer's terminal."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    OUT.mkdir()


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run `kie-wav report --verify` on the ledger, or on something else."""

    def verify(*arguments: str, on: Path | str = LEDGER) -> Done:
        return run(capsys, "report", str(on), "--verify", *arguments)

    return verify


def content(number: int) -> bytes:
    """Return what is in the file of that number."""
    return b"RIFF" + bytes([number]) * (1_000 + number)


async def write_catalog(count: int) -> None:
    """Save *count* files, write them down, and have one more track that is not saved."""
    async with SqliteLedger(LEDGER) as ledger:
        writer = Writer(ledger)
        for number in range(count + 1):
            await writer.convert(number)
            await ledger.reserve_path(track(number), path=f"{number}.wav", key=f"{number}.wav")
        for number in range(count):
            data = content(number)
            (OUT / f"{number}.wav").write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            await ledger.mark_saved(
                track(number), path=f"{number}.wav", size=len(data), sha256=digest
            )
        assert count == await write_manifest(ledger, OUT)


@pytest.fixture
def three() -> None:
    """Save three files."""
    asyncio.run(write_catalog(3))


def write_manifest_of(*files: str, data: bytes = b"x") -> None:
    """Write a manifest by hand, of files that all have the same in them."""
    digest = hashlib.sha256(data).hexdigest()
    lines = [json.dumps({"file": f, "bytes": len(data), "sha256": digest}) for f in files]
    MANIFEST.write_text("".join(f"{line}\n" for line in lines))


SOURCES = [LEDGER, MANIFEST, OUT]
ALL_GOOD = "0.wav: OK\n1.wav: OK\n2.wav: OK\n"


# --- what is told -------------------------------------------------------------------------------


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_all_is_well(verify, source: Path) -> None:
    """Each saved file is one line, the sum of it is told on stderr, and the exit code is 0."""
    done = verify(on=source)

    assert (0, ALL_GOOD) == (done.code, done.out)
    assert "3 files in out, 3.02 kB: all as they were saved.\n" == done.err


@pytest.mark.usefixtures("three")
def test_as_sha256sum_does(verify) -> None:
    """The lines are those of `sha256sum -c`, given the same sums."""
    (OUT / "1.wav").write_bytes(content(2)[:-1])
    (OUT / "2.wav").unlink()
    lines = [json.loads(line) for line in MANIFEST.read_text().splitlines()]
    sums = "".join(f"{line['sha256']}  {line['file']}\n" for line in lines)
    program = shutil.which("sha256sum")
    if program is None:
        pytest.skip("there is no sha256sum here")
    theirs = subprocess.run(  # noqa: S603 - the program just found
        [program, "-c"], input=sums, cwd=OUT, capture_output=True, text=True, check=False
    )
    done = verify()

    assert (theirs.returncode, theirs.stdout) == (done.code, done.out)


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_what_is_wrong(verify, source: Path) -> None:
    """A changed, a cut and a missing file fail, each with the reason on stderr."""
    (OUT / "0.wav").write_bytes(content(0)[:-1] + b"!")
    (OUT / "1.wav").write_bytes(content(1)[:-1])
    (OUT / "2.wav").unlink()
    done = verify(on=source)

    assert 1 == done.code
    assert "0.wav: FAILED\n1.wav: FAILED\n2.wav: FAILED open or read\n" == done.out
    reasons = [
        "kie-wav: 0.wav: its bytes have changed",
        "kie-wav: 1.wav: it has 1,004 bytes, and had 1,005",
        "kie-wav: 2.wav: it is not there",
        "3 of 3 files in out are not as they were saved: 2 damaged, 1 missing.",
    ]
    advice = (
        "Remove what is damaged: the same `kie-wav bulk` command saves what is missing, for as "
        "long as KIE has it, which is 14 days."
    )
    assert [*reasons, *[advice] * (source is LEDGER)] == done.err.splitlines()


@pytest.mark.usefixtures("three")
def test_as_json(verify) -> None:
    """With `--json` each file is an object, with what it is of, and what is wrong with it."""
    (OUT / "1.wav").unlink()
    told = [json.loads(line) for line in verify("--json").out.splitlines()]

    assert [("ok", None), ("missing", "it is not there"), ("ok", None)] == [
        (one.pop("result"), one.pop("why")) for one in told
    ]
    assert told == [json.loads(line) for line in MANIFEST.read_text().splitlines()]


@pytest.mark.usefixtures("three")
def test_one_of_many(verify) -> None:
    """One that fails is told in the singular, and the others are not held against it."""
    (OUT / "1.wav").write_bytes(b"")
    done = verify()

    assert (1, ALL_GOOD.replace("1.wav: OK", "1.wav: FAILED")) == (done.code, done.out)
    assert "1 of 3 files in out is not as it was saved: 1 damaged.\n" in done.err


def test_nothing_is_saved(verify) -> None:
    """A ledger without saved files is well, and a manifest that has lost its lines is not."""
    asyncio.run(write_catalog(0))
    done = verify()
    MANIFEST.touch()
    lost = verify(on=MANIFEST)

    assert (0, "") == done[:2]
    assert f"{LEDGER} has no saved file: there is nothing to verify.\n" == done.err
    assert (1, "") == lost[:2]
    assert f"{MANIFEST} lists no file: there is nothing to verify.\n" == lost.err


# --- where it looks -----------------------------------------------------------------------------


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("source", [Path("elsewhere.sqlite3"), Path("manifest.jsonl")], ids=str)
def test_files_elsewhere(verify, source: Path) -> None:
    """`--out` names the folder of the files, wherever the ledger or manifest is."""
    shutil.copy(LEDGER if source.suffix == ".sqlite3" else MANIFEST, source)

    assert (0, ALL_GOOD) == verify("--out", "out", on=source)[:2]
    assert 1 == verify(on=source).code


@pytest.mark.usefixtures("three")
def test_a_folder_behind_a_link(verify) -> None:
    """A link to the folder, or in it to a file or to a folder, is the owner's way of keeping it."""
    OUT.rename("real")
    OUT.symlink_to("real")
    Path("other").mkdir()
    (OUT / "1.wav").rename("other/1.wav")
    (OUT / "1.wav").symlink_to(Path("other/1.wav").absolute())

    assert (0, ALL_GOOD) == verify()[:2]
    assert (0, ALL_GOOD) == verify(on=OUT)[:2]


async def test_while_a_run_is_under_way(verify) -> None:
    """A ledger that is open elsewhere can be gone by, and what was just stored counts."""
    await write_catalog(3)
    async with SqliteLedger(LEDGER) as ledger:
        (OUT / "3.wav").write_bytes(b"new")
        digest = hashlib.sha256(b"new").hexdigest()
        await ledger.mark_saved(track(3), path="3.wav", size=3, sha256=digest)
        done = await asyncio.to_thread(verify)

    assert (0, ALL_GOOD + "3.wav: OK\n") == done[:2]


@pytest.mark.usefixtures("three")
def test_nothing_is_changed(verify) -> None:
    """To verify changes nothing, the times of the files included."""

    def look() -> dict[str, tuple[int, bytes]]:
        return {
            path.name: (path.stat().st_mtime_ns, path.read_bytes())
            for path in OUT.iterdir()
            if path.suffix in {".wav", ".jsonl", ".sqlite3"}
        }

    before = look()
    verify()
    verify(on=MANIFEST)

    assert before == look()


@pytest.mark.parametrize("json_too", [False, True], ids=["text", "json"])
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", "there is no ledger and no manifest nowhere"),
        ("empty", "there is no manifest.jsonl in empty: name the ledger, empty/kie-wav.sqlite3"),
        ("song.wav", "song.wav is neither a ledger nor a manifest.jsonl"),
        ("pipe", "pipe is neither a ledger nor a manifest.jsonl"),
        ("/dev/zero", "/dev/zero is neither a ledger nor a manifest.jsonl"),
        ("x" * 5_000, "File name too long"),
        ("no\x1b[31m", "there is no ledger and no manifest no\N{REPLACEMENT CHARACTER}[31m"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_what_tells_of_no_files(*, verify, source: str, words: str, json_too: bool) -> None:
    """What is neither ledger nor manifest ends with 2 and one sentence, and is not waited for."""
    Path("empty").mkdir()
    Path("song.wav").write_bytes(b"RIFF\n" * 100)
    os.mkfifo("pipe")
    done = verify(*["--json"] * json_too, on=source)

    assert 2 == done.code
    assert words in done.err
    assert 1 == len(done.err.splitlines())
    assert not CONTROLS.search(done.err)
    assert json_too or "" == done.out


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--verify", "--urls"), "--urls and --verify do not go together"),
        (("--out", "out"), "--out is where --verify finds the files"),
        (("--urls", "--out", "out"), "--out is where --verify finds the files"),
        (("--verify", "--out", "nowhere"), "nowhere"),
        (("--verify", "--out", str(LEDGER)), "is a file"),
    ],
    ids=str,
)
def test_wrong_usage(capsys, options: tuple[str, ...], words: str) -> None:
    """Options that do not go together are wrong usage."""
    done = run(capsys, "report", str(LEDGER), *options)

    assert (2, "") == done[:2]
    assert words in done.err


# --- strangers' manifests -----------------------------------------------------------------------


def test_bad_lines(verify) -> None:
    """Lines that are none fail with their numbers, and the others are verified all the same."""
    (OUT / "x.wav").write_bytes(b"x")
    write_manifest_of("x.wav", "../x.wav", "/etc/passwd", "x.wav")
    with MANIFEST.open("a") as file:
        file.write("nonsense\n")
    done = verify(on=OUT)
    told = [json.loads(line) for line in verify("--json", on=OUT).out.splitlines()]

    assert (1, "x.wav: OK\nx.wav: OK\n") == done[:2]
    assert [
        "kie-wav: manifest.jsonl, line 2: its file may be outside of the folder: '../x.wav'",
        "kie-wav: manifest.jsonl, line 3: its file may be outside of the folder: '/etc/passwd'",
        "kie-wav: manifest.jsonl, line 5: it is not JSON",
    ] == done.err.splitlines()[:-1]
    assert done.err.endswith(
        "\n2 files in out, 2 bytes: all as they were saved. 3 lines of manifest.jsonl cannot be "
        "read.\n"
    )
    assert ["ok", "invalid-line", "invalid-line", "ok", "invalid-line"] == [
        one["result"] for one in told
    ]
    assert [2, 3, 5] == [one["line"] for one in told if one["result"] == "invalid-line"]


def test_nothing_but_bad_lines(verify) -> None:
    """A manifest without a good line verifies nothing."""
    MANIFEST.write_text("{}\n")
    done = verify(on=OUT)

    assert (1, "") == done[:2]
    assert done.err.endswith("\nNothing is verified. 1 line of manifest.jsonl cannot be read.\n")


def test_a_ledger_that_leads_out(verify) -> None:
    """A place outside of the folder is not looked at, though a ledger names it."""
    Path("x.wav").write_bytes(b"x")

    async def store() -> None:
        async with SqliteLedger(LEDGER) as ledger:
            await Writer(ledger).convert(0)
            digest = hashlib.sha256(b"x").hexdigest()
            await ledger.mark_saved(track(0), path="../x.wav", size=1, sha256=digest)

    asyncio.run(store())
    done = verify()

    assert (1, "../x.wav: FAILED open or read\n") == done[:2]
    assert "it may be outside of the folder" in done.err


def test_what_is_no_file(verify) -> None:
    """A folder, a pipe, a device and a link in a circle are not waited for, and are no files."""
    (OUT / "folder").mkdir()
    os.mkfifo(OUT / "pipe")
    (OUT / "zero").symlink_to("/dev/zero")
    (OUT / "circle").symlink_to("circle")
    write_manifest_of("folder", "pipe", "zero", "circle", "folder/x/y", "\ud800", "y" * 300)
    done = verify(on=OUT)
    lines = done.out.splitlines()

    assert (1, 7) == (done.code, len(lines))
    assert all(line.endswith(": FAILED open or read") for line in lines)
    assert "kie-wav: pipe: it is not a file" in done.err
    assert "7 of 7 files in out are not as they were saved: 1 missing, 6 unreadable." in (
        done.err.splitlines()
    )


def test_what_may_not_be_read(verify, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that breaks off while it is read is unreadable, with the disk's word for it."""
    for name in "ab":
        (OUT / name).write_bytes(b"x")
    write_manifest_of("a", "b")
    before = os.open

    def refuse(path: Path, flags: int, *more: int) -> int:
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied")
        return before(path, flags, *more)

    monkeypatch.setattr("os.open", refuse)
    done = verify(on=OUT)

    assert (1, "a: FAILED open or read\nb: OK\n") == done[:2]
    assert "kie-wav: a: Permission denied\n" in done.err


NAMES = [
    "a\\b.wav",
    "new\nline.wav",
    "re\rturn.wav",
    "plain.wav",
    "tab\there.wav",
    "esc\x1b[31m.wav",
]


def test_names_are_escaped(verify) -> None:
    """A name is one line, written as `sha256sum` writes it, and nothing a terminal obeys."""
    assert [
        r"\a\\b.wav",
        r"\new\nline.wav",
        r"\re\rturn.wav",
        "plain.wav",
        "tab\there.wav",
        "esc\x1b[31m.wav",
    ] == [escaped(name) for name in NAMES]

    for name in NAMES:
        (OUT / name).write_bytes(b"x")
    write_manifest_of(*NAMES)
    done = verify(on=OUT)

    assert (0, 6) == (done.code, len(done.out.splitlines()))
    assert r"\new\nline.wav: OK" in done.out.splitlines()
    assert not CONTROLS.search(done.out + done.err)


# --- many, and long -------------------------------------------------------------------------------


def test_the_order_is_that_of_the_ledger(verify) -> None:
    """However the disk answers, the lines come in the order of the ledger."""
    asyncio.run(write_catalog(100))
    done = verify()

    assert (0, [f"{n}.wav: OK" for n in range(100)]) == (done.code, done.out.splitlines())


def test_memory_is_flat() -> None:
    """Ten times as many files, and longer ones, take no more memory."""
    data = bytes(5 << 20)
    (OUT / "x.wav").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    small = hashlib.sha256(b"").hexdigest()
    (OUT / "e.wav").touch()

    def peak(count: int) -> int:
        lines = [json.dumps({"file": "e.wav", "bytes": 0, "sha256": small})] * count
        lines.append(json.dumps({"file": "x.wav", "bytes": len(data), "sha256": digest}))
        MANIFEST.write_text("\n".join(lines))
        tracemalloc.start()
        code = asyncio.run(report_verify.run_verify(MANIFEST, None, as_json=False))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert 0 == code
        return top

    def least(count: int) -> int:
        # How far the reader is ahead of the sums is chance, up to some MiB of the long file.
        return min(peak(count) for _ in range(3))

    peak(100)
    assert least(3_000) < least(300) + 1_500_000 < 5_000_000


@pytest.mark.usefixtures("three")
def test_interrupted(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends with 130 and what was found so far, and no thread goes on reading."""
    found: list[asyncio.Task] = []

    async def work() -> int:
        found.append(asyncio.current_task())
        return await report_verify.run_verify(LEDGER, None, as_json=False)

    before = VerifyDisplay.print_result

    def cancel(display: VerifyDisplay, text: str) -> None:
        before(display, text)
        found[0].cancel()

    monkeypatch.setattr(VerifyDisplay, "print_result", cancel)
    monkeypatch.setattr(report_verify, "_AHEAD", 1)
    with pytest.raises(CliError) as caught:
        asyncio.run(work())

    assert 130 == caught.value.exit_code
    assert "interrupted: 1 file in out, 1 kB: as it was saved." == str(caught.value)
    for thread in threading.enumerate():
        if thread.name.startswith("kie-wav-verify"):
            thread.join(10)
            assert not thread.is_alive()
    assert "0.wav: OK\n" == capsys.readouterr().out


@pytest.mark.usefixtures("three")
def test_nobody_reads() -> None:
    """A reader that goes away, as `head` does, is no error worth a word."""
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-m", "kie_wav_async", "report", str(LEDGER), "--verify"],
        stdout=writer,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(writer)
        _, err = process.communicate(timeout=60)

    assert (141, b"") == (process.returncode, err)
