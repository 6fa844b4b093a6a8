"""What a part file promises: whose it is, what is gone on with, and what a name stands for."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import syncs
from disk import Disk, Fault
from kie_wav_async import Download
from kie_wav_async.downloads import part_file, part_metadata
from kie_wav_async.downloads.part_file import (
    Found,
    PartFile,
    find_complete,
    part_path,
    remove_leftovers,
)
from kie_wav_async.downloads.wav_header import HEAD_LENGTH
from media import wav_bytes

BODY = wav_bytes(10_000, seed=1)
OTHER = wav_bytes(10_000, seed=2)
ETAG = '"v1"'
TASK = "task-1"

#: So much is written at a time, and so much is synced, in this file.
BLOCK = 1_000
SYNC_EVERY = 2_000

#: Ends what hangs.
PATIENCE_S = 20.0

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these are the promises on POSIX")


@pytest.fixture(autouse=True)
def small_syncs(monkeypatch) -> None:
    """Sync after so few bytes that a small file is synced several times."""
    monkeypatch.setattr(part_file, "SYNC_EVERY", SYNC_EVERY)


@pytest.fixture
def target(tmp_path) -> Path:
    """Return where the file is to be."""
    return tmp_path / "song.wav"


@contextlib.contextmanager
def umasked(mask):
    """Have new files come out without the bits of *mask*."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def opened(target, task_id=TASK):
    """Give a part that is open; what is there of it stays."""
    part = PartFile(target, task_id)
    try:
        part.open()
        yield part
    finally:
        part.close(keep=True)


def fill(part, body=BODY, *, etag=ETAG, stop=None):
    """Write what is missing of *body*, up to *stop*, as a download does."""
    if not (part.is_resumable and part.etag == etag):
        part.restart(etag, len(body))
    for start in range(part.length, stop or len(body), BLOCK):
        part.write([body[start : start + BLOCK // 2], body[start + BLOCK // 2 : start + BLOCK]])


def save(target, body=BODY, *, task_id=TASK, etag=ETAG):
    """Download *body*, as it were."""
    with opened(target, task_id) as part:
        fill(part, body, etag=etag)
        return part.finish()


def leave(target, *, stop=5_000, task_id=TASK, etag=ETAG, body=BODY):
    """Have a download end after *stop* bytes; return what it noted."""
    with opened(target, task_id) as part:
        fill(part, body, etag=etag, stop=stop)
    return json.loads(note_path(target).read_bytes())


def note_path(target):
    """Return where it is noted what a part is a part of."""
    return part_path(target).with_name(f"{part_path(target).name}.json")


def write_note(target, **changes):
    """Write an honest note beside a part, changed; what is `...` is left out."""
    honest = {"task_id": TASK, "etag": ETAG, "total": len(BODY), "written": 5_000}
    honest |= {"synced": 5_000, "boot_id": ""}
    said = {name: value for name, value in {**honest, **changes}.items() if value is not ...}
    note_path(target).write_text(json.dumps(said), encoding="utf-8")


def names(target):
    """Return what is in the folder."""
    return sorted(path.name for path in target.parent.iterdir())


def mode_of(path):
    """Return the permissions of a file."""
    return stat.S_IMODE(path.lstat().st_mode)


def within_patience(work):
    """Return what *work* returns, or raise what it raises; fail if it hangs."""
    ended = []

    def run():
        try:
            ended.append((work(), None))
        except BaseException as error:  # noqa: BLE001 - it is raised where it is looked for
            ended.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert ended, "it hangs"
    result, error = ended[0]
    if error is not None:
        raise error
    return result


# --- names and modes ------------------------------------------------------------------------


def test_the_bytes_are_beside_the_file_under_its_name():
    """The bytes of a file are kept in the same folder, under a name that says whose they are."""
    assert Path("a/song.wav.part") == part_path(Path("a/song.wav"))


@pytest.mark.parametrize("letter", ["x", "é", "歌"])
@pytest.mark.parametrize("length", [244, 245, 246, 250, 255])
def test_every_name_that_a_file_can_have_can_be_saved(tmp_path, letter, length):
    """A name of up to 255 bytes is long enough for nothing to go wrong."""
    target = tmp_path / (letter * (length // len(letter.encode()))).ljust(1, "x")
    target = target.with_name(target.name + "x" * (length - len(os.fsencode(target.name))))
    leave(target)
    assert {part_path(target).name, note_path(target).name} == set(names(target))
    assert all(len(os.fsencode(name)) <= 255 for name in names(target))
    assert save(target).resumed
    assert [target.name] == names(target)


def test_parts_of_long_names_differ(tmp_path):
    """Two names that are too long for a suffix do not share a part."""
    one, two = (tmp_path / ("x" * 250 + letter) for letter in "ab")
    assert part_path(one) != part_path(two)


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o027, 0o077, 0o377, 0o777], ids=oct)
def test_a_part_is_for_its_owner_only(target, mask):
    """Whatever the umask, a part and its note are readable and writable by their owner only."""
    with umasked(mask), opened(target) as part:
        fill(part, stop=5_000)
        assert {0o600} == {mode_of(target.with_name(name)) for name in names(target)}
        with opened(target) as second:
            assert {0o600} == {mode_of(target.with_name(name)) for name in names(target)}
            assert second.path != part.path


def test_a_part_found_too_open_is_closed_to_others(target):
    """A part whose mode somebody has widened is narrowed before anything more is written to it."""
    leave(target)
    part_path(target).chmod(0o666)
    note_path(target).chmod(0o666)
    with opened(target):
        assert {0o600} == {mode_of(target.with_name(name)) for name in names(target)}


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o027, 0o077], ids=oct)
def test_a_file_comes_out_as_any_other(target, mask):
    """A whole file has the mode that the umask gives to new files."""
    with umasked(mask):
        save(target)
    assert 0o666 & ~mask == mode_of(target)


def test_a_resumed_file_comes_out_as_any_other(target):
    """The mode of a whole file is that of the umask, also if an earlier process began it."""
    with umasked(0o077):
        leave(target)
    with umasked(0o022):
        save(target)
    assert 0o644 == mode_of(target)


# --- what is in the way ---------------------------------------------------------------------


def put_fifo(path):
    """Put a pipe there that nobody writes to."""
    os.mkfifo(path)


def put_folder(path):
    """Put a folder there."""
    path.mkdir()


def put_socket(path):
    """Put a socket there."""
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
        server.bind(path.name)  # The whole path would be too long for some systems.


def put_link(path):
    """Put a symbolic link there that leads to somebody's file."""
    path.with_name("precious").write_bytes(b"precious")
    path.symlink_to("precious")


def put_loop(path):
    """Put a symbolic link there that leads to itself."""
    path.symlink_to(path.name)


def put_hard_link(path):
    """Put a second name of somebody's file there."""
    path.with_name("precious").write_bytes(b"precious")
    path.hardlink_to(path.with_name("precious"))


def is_precious(target):
    """Return whether somebody's file is as it was, if there is one."""
    precious = target.with_name("precious")
    return not precious.exists() or (
        precious.read_bytes() == b"precious" and 0o600 != mode_of(precious)
    )


def put_stranger(path):
    """Put a file of somebody else there that everybody may write to."""
    path.write_bytes(b"stranger")
    path.chmod(0o666)
    give_away(path)


def put_empty_stranger(path):
    """Put an empty file of somebody else there."""
    path.touch()
    give_away(path)


def give_away(path):
    """Make a file somebody else's."""
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(path, STRANGER, STRANGER)


STRANGER = 54_321
PUTS = [put_fifo, put_folder, put_socket, put_link, put_loop, put_hard_link]
PUTS += [put_stranger, put_empty_stranger]


def fresh_path(target):
    """Return where a note is written before it takes the place of another."""
    return target.with_name(f".{note_path(target).name}")


@pytest.mark.parametrize("place", [part_path, note_path, fresh_path])
@pytest.mark.parametrize("put", PUTS, ids=lambda put: put.__name__)
@pytest.mark.parametrize("has_part", [False, True], ids=["alone", "beside a part"])
def test_what_is_not_ours_is_left_alone(target, place, put, has_part):
    """Whatever has a name that a part needs, and is not ours, stays, and the file comes."""
    if has_part:
        leave(target)
        place(target).unlink(missing_ok=True)
    put(place(target))
    before = place(target).lstat()
    content = place(target).read_bytes() if put in {put_stranger, put_hard_link} else b""
    there = {*names(target)}

    download = within_patience(lambda: save(target))

    assert (hashlib.sha256(BODY).hexdigest(), False) == (download.sha256, download.resumed)
    assert (BODY, os.geteuid()) == (target.read_bytes(), target.stat().st_uid)
    after = place(target).lstat()
    assert (before.st_ino, before.st_mode, before.st_uid, before.st_mtime_ns) == (
        *(after.st_ino, after.st_mode, after.st_uid, after.st_mtime_ns),
    )
    assert not content or content == place(target).read_bytes()
    assert is_precious(target)
    assert there | {target.name} == {*names(target)}


@pytest.mark.parametrize(
    "given",
    [(part_path,), (note_path,), (part_path, note_path)],
    ids=["the part", "the note", "both"],
)
def test_a_part_of_another_user_is_not_gone_on_with(target, given):
    """A part that somebody else prepared, with its note, is not taken up, nor becomes the file."""
    leave(target, body=OTHER)
    for place in given:
        give_away(place(target))
    with opened(target) as part:
        assert (False, 0) == (part.is_shared, part.length)
        fill(part)
        part.finish()
    assert (BODY, os.geteuid()) == (target.read_bytes(), target.stat().st_uid)
    assert OTHER[:5_000] == part_path(target).read_bytes()
    assert {STRANGER} == {place(target).stat().st_uid for place in given}


@pytest.mark.parametrize("is_part", [True, False])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.ENXIO, errno.ELOOP])
def test_what_cannot_be_opened_is_not_ours(target, monkeypatch, code, is_part):
    """A file that somebody else keeps to himself does not stand in the way."""
    leave(target)
    closed = part_path(target) if is_part else note_path(target)
    os_open = os.open

    def refuse(path, flags, *mode):
        if path == closed and not flags & os.O_CREAT:
            raise OSError(code, os.strerror(code))
        return os_open(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    assert not save(target).resumed
    assert BODY == target.read_bytes()
    assert BODY[:5_000] == part_path(target).read_bytes()


def test_what_is_not_ours_outlives_a_file_that_is_whole(target):
    """Cleaning up behind a file that is whole takes nobody's files away."""
    target.write_bytes(BODY)
    put_stranger(part_path(target))
    put_stranger(note_path(target))
    there = names(target)
    remove_leftovers(target, TASK)
    assert there == names(target)
    assert b"stranger" == part_path(target).read_bytes() == note_path(target).read_bytes()


def test_a_file_system_may_have_owners_of_its_own(target, monkeypatch):
    """Where new files come out as somebody else's, as on a share, a part is gone on with."""
    leave(target)
    fstat = os.fstat

    def squash(fd):
        found = fstat(fd)
        return os.stat_result((*found[:4], STRANGER, *found[5:]))

    monkeypatch.setattr(os, "fstat", squash)
    monkeypatch.setattr(os.path, "samestat", lambda one, other: one.st_ino == other.st_ino)
    assert save(target).resumed
    assert [target.name] == names(target)


def test_what_a_killed_process_left_of_a_note_is_replaced(target):
    """A note of ours that did not get its name is nothing that stands in the way."""
    leave(target)
    fresh_path(target).write_bytes(b"half")
    assert save(target).resumed
    assert [target.name] == names(target)


@pytest.mark.parametrize(
    "put", [put_fifo, put_folder, put_socket, put_loop], ids=lambda put: put.__name__
)
def test_what_is_no_file_in_the_way_of_the_file_is_an_error(target, put):
    """What is no file at the file's own name is seen at once, without waiting for it."""
    put(target)
    with pytest.raises(OSError, match=r".") as caught:
        within_patience(lambda: find_complete(target))
    assert caught.value.errno


def test_a_folder_that_comes_into_the_way_stays(target):
    """A folder that took the name in the meantime is not replaced, and its bytes stay apart."""
    with opened(target) as part:
        fill(part)
        target.mkdir()
        with pytest.raises(OSError, match=r"."):
            part.finish()
    assert target.is_dir()
    target.rmdir()
    assert hashlib.sha256(BODY).hexdigest() == save(target).sha256
    assert [target.name] == names(target)


def test_a_link_in_the_way_of_the_file_is_replaced(target):
    """A symbolic link at the file's name is replaced, and what it leads to is not written to."""
    put_link(target)
    assert find_complete(target) is None
    save(target)
    assert not target.is_symlink()
    assert b"precious" == target.with_name("precious").read_bytes()


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    """No folder is made."""
    target = tmp_path / "none" / "song.wav"
    assert find_complete(target) is None
    with pytest.raises(FileNotFoundError):
        save(target)
    assert [] == names(target.parent)


# --- what is gone on with -------------------------------------------------------------------


def test_an_earlier_part_is_gone_on_with(target):
    """A part that was left is taken in, with its bytes' hash and head, and said to be resumed."""
    leave(target)
    with opened(target) as part:
        assert (5_000, ETAG, len(BODY)) == (part.length, part.etag, part.total)
        assert (True, True, True) == (part.is_resumed, part.is_resumable, part.is_shared)
        assert len(BODY) == part.wav.promised
        fill(part)
        download = part.finish()
    assert Download(target, len(BODY), hashlib.sha256(BODY).hexdigest(), resumed=True) == download
    assert BODY == target.read_bytes()
    assert [target.name] == names(target)


@pytest.mark.parametrize("stop", [0, 1, HEAD_LENGTH - 1, HEAD_LENGTH, 1_999, 2_000, 9_999, 10_000])
def test_a_part_can_end_anywhere(target, stop):
    """However much came, just that is there the next time."""
    with opened(target) as part:
        part.restart(ETAG, len(BODY))
        part.write([BODY[:stop]])
    with opened(target) as part:
        assert (stop, stop > 0) == (part.length, part.is_resumed)
        assert (len(BODY) if stop >= HEAD_LENGTH else None) == part.wav.promised
        fill(part)
        assert hashlib.sha256(BODY).hexdigest() == part.finish().sha256


def test_a_part_of_another_task_is_begun_anew(target):
    """Nothing of one task's file gets into another's."""
    leave(target)
    with opened(target, "task-2") as part:
        assert (0, None, False) == (part.length, part.etag, part.is_resumed)
        fill(part, OTHER)
        assert not part.finish().resumed
    assert OTHER == target.read_bytes()


def test_bytes_after_what_was_synced_are_cut_off(target):
    """Bytes that the note does not vouch for are not believed, and cut off."""
    leave(target)
    with part_path(target).open("ab") as file:
        file.write(b"rubbish" * 1_000)
    with opened(target) as part:
        assert 5_000 == part.length == part_path(target).stat().st_size
        fill(part)
        part.finish()
    assert BODY == target.read_bytes()


def test_a_part_shorter_than_its_note_says_is_what_there_is(target):
    """Of a part that lost its end, what is left is gone on with."""
    leave(target)
    os.truncate(part_path(target), 1_234)
    with opened(target) as part:
        assert 1_234 == part.length
        assert 1_234 == json.loads(note_path(target).read_bytes())["synced"]
        fill(part)
        part.finish()
    assert BODY == target.read_bytes()


def test_a_part_that_lost_everything_is_begun_anew(target):
    """Of a part that is empty nothing is gone on with, whatever its note says."""
    leave(target)
    os.truncate(part_path(target), 0)
    with opened(target) as part:
        assert (0, False, False) == (part.length, part.is_resumed, part.is_resumable)


def test_a_note_says_no_more_than_what_is_synced(target):
    """What was written since the last sync is not noted before the next one."""
    with opened(target) as part:
        part.restart(ETAG, len(BODY))
        assert 0 == json.loads(note_path(target).read_bytes())["synced"]
        part.write([BODY[:1_999]])
        assert 0 == json.loads(note_path(target).read_bytes())["synced"]
        part.write([BODY[1_999:2_000]])
        assert 2_000 == json.loads(note_path(target).read_bytes())["synced"]
        part.write([BODY[2_000:3_999]])
        assert 2_000 == json.loads(note_path(target).read_bytes())["synced"]
    assert 3_999 == json.loads(note_path(target).read_bytes())["synced"]


def test_a_part_without_a_version_is_not_kept(target):
    """Bytes that nobody can go on with are removed at the end."""
    with opened(target) as part:
        part.restart(None, None)
        part.write([BODY[:5_000]])
        assert b"" == note_path(target).read_bytes()
        assert not part.is_resumable
    assert [] == names(target)


def test_a_part_that_is_not_to_be_kept_is_removed(target):
    """Bytes that are of no use to anybody are removed, also those of an earlier download."""
    leave(target)
    part = PartFile(target, TASK)
    part.open()
    part.close(keep=False)
    assert [] == names(target)


DEEP = b'{"task_id":' + b"[" * 16_000
NOTES = {
    "empty": b"",
    "no JSON": b"\x00\x01\x02",
    "no UTF-8": b'{"task_id": "\xff"}',
    "UTF-16": json.dumps({"task_id": TASK}).encode("utf-16"),
    "cut off": json.dumps({"task_id": TASK, "etag": ETAG}).encode()[:-3],
    "two of them": b"{}{}",
    "deep": DEEP,
    "long": b'{"task_id": "' + b"x" * 1_000_000 + b'"}',
    "long, then right": b" " * 20_000
    + json.dumps(
        {"task_id": TASK, "etag": ETAG, "total": 10_000, "written": 5_000, "synced": 5_000}
        | {"boot_id": ""}
    ).encode(),
    "a number of 5,000 digits": b'{"synced": ' + b"9" * 5_000 + b"}",
    "null": b"null",
    "list": b"[]",
    "text": b'"task-1"',
    "number": b"1e999",
}


@pytest.mark.parametrize("text", NOTES.values(), ids=NOTES)
def test_a_note_that_makes_no_sense_is_none(target, text):
    """Bytes whose note cannot be read are begun anew."""
    leave(target)
    note_path(target).write_bytes(text)
    assert not save(target).resumed
    assert BODY == target.read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"task_id": ...},
        {"task_id": "task-2"},
        {"task_id": "TASK-1"},
        {"task_id": ""},
        {"task_id": None},
        {"task_id": [TASK]},
        {"etag": ...},
        {"etag": None},
        {"etag": ""},
        {"etag": "v1"},
        {"etag": '""'},
        {"etag": 'W/"v1"'},
        {"etag": '"v1"\r\nX-Evil: 1'},
        {"etag": f'"{"x" * 300}"'},
        {"etag": 5},
        {"total": ...},
        {"total": "10000"},
        {"total": 10_000.0},
        {"total": True},
        {"total": -1},
        {"total": 0},
        {"total": 4_999},
        {"synced": ...},
        {"synced": None},
        {"synced": 0},
        {"synced": -1},
        {"synced": True},
        {"synced": "5000"},
        {"synced": 5_000.0},
        {"synced": float("nan")},
        {"synced": float("inf")},
        {"synced": 5_001},
        {"synced": [5_000]},
        {"written": ...},
        {"written": 4_999},
        {"written": 10_001},
        {"written": True},
        {"written": 5_000.0},
        {"boot_id": ...},
        {"boot_id": None},
    ],
    ids=str,
)
def test_a_note_that_is_not_ours_is_none(target, changes):
    """A note with a value missing, of another type or out of its range is not believed."""
    leave(target)
    write_note(target, **changes)
    assert not save(target).resumed
    assert BODY == target.read_bytes()


@pytest.mark.parametrize("total", [None, 10_000, 5_000, 10**18])
def test_a_note_need_not_know_the_length(target, total):
    """A note of which the file's length is unknown, or any that can be, is good."""
    leave(target)
    write_note(target, total=total, more="of a later version")
    with opened(target) as part:
        assert (5_000, total) == (part.length, part.total)


def test_a_part_without_a_note_is_somebody_elses(target):
    """A file that only has the name of a part stays what it is, and the download has another."""
    part_path(target).write_bytes(OTHER)
    with opened(target) as part:
        assert not part.is_shared
        assert OTHER == part_path(target).read_bytes()
        fill(part)
        part.finish()
    assert BODY == target.read_bytes()
    assert OTHER == part_path(target).read_bytes()


def test_an_empty_part_without_a_note_is_ours(target):
    """A process that was killed before it wrote anything leaves nothing in the way."""
    part_path(target).touch()
    with opened(target) as part:
        assert part.is_shared


def test_what_was_written_is_gone_on_with_while_the_machine_runs(target):
    """A process that is killed leaves all that it wrote, synced or not."""
    part = PartFile(target, TASK)
    part.open()
    fill(part, stop=5_000)
    note = json.loads(note_path(target).read_bytes())
    assert (5_000, 4_000) == (note["written"], note["synced"])
    os.close(part._fd)  # As death does; the lock goes with it.
    part._fd = -1
    with opened(target) as second:
        assert 5_000 == second.length
    part.close(keep=False)


@pytest.mark.parametrize("boot_id", ["", "another"])
def test_what_was_synced_is_gone_on_with_after_the_machine_stopped(target, boot_id):
    """Of what was written before the machine stopped only what was synced is believed."""
    leave(target)
    write_note(target, synced=3_000, boot_id=boot_id)
    with opened(target) as part:
        assert 3_000 == part.length == part_path(target).stat().st_size
        fill(part)
        part.finish()
    assert BODY == target.read_bytes()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_takes_nothing_away(target, disk, code):
    """What was written before the disk was full is kept and gone on with, and no more than that."""
    with opened(target) as part:
        fill(part, stop=5_000)

        def half(point):
            if point == "write part":
                disk.before = lambda point: full(point) if point == "write part" else None
                return 250
            return None

        full = Fault(1, code)
        disk.before = half
        with pytest.raises(OSError, match=os.strerror(code)):
            part.write([BODY[5_000:6_000]])
        disk.before = lambda _: None
        # Nothing takes the place of what found no room.
        with pytest.raises(OSError, match=os.strerror(code)):
            part.write([BODY[6_000:7_000]])
        with pytest.raises(OSError, match=os.strerror(code)):
            part.finish()
    assert full.point
    assert BODY[:5_000] == part_path(target).read_bytes()
    assert 5_000 == json.loads(note_path(target).read_bytes())["synced"]
    assert save(target).resumed
    assert BODY == target.read_bytes()


def test_a_restart_forgets_all(target):
    """After a restart a part is of the other version only, and of its hash."""
    leave(target)
    with opened(target) as part:
        part.restart('"v2"', 10_000)
        assert (0, 0, False, '"v2"') == (part.length, part.wav.length, part.is_resumed, part.etag)
        assert 0 == part_path(target).stat().st_size
        fill(part, OTHER, etag='"v2"')
        assert hashlib.sha256(OTHER).hexdigest() == part.finish().sha256
    assert OTHER == target.read_bytes()


def test_a_restart_is_noted_before_anything_is_written(target):
    """From the restart on, the note says nothing of the version before."""
    leave(target)
    with opened(target) as part:
        part.restart('"v2"', 10_000)
        assert ('"v2"', 0) == tuple(
            json.loads(note_path(target).read_bytes())[name] for name in ("etag", "synced")
        )
        part.restart(None, None)
        assert b"" == note_path(target).read_bytes()


# --- twice at once --------------------------------------------------------------------------


def test_a_second_one_gets_a_part_of_its_own(target):
    """Two parts of one target do not share a byte, and the one without the name keeps nothing."""
    leave(target)
    with opened(target) as first:
        with opened(target) as second:
            assert (False, 0) == (second.is_shared, second.length)
            fill(second, OTHER, stop=7_000)
            fill(first, stop=8_000)
            assert first.path.read_bytes() == BODY[:8_000]
            assert second.path.read_bytes() == OTHER[:7_000]
            assert second.is_resumable
        assert {part_path(target).name, note_path(target).name} == {*names(target)}
        fill(first)
        first.finish()
    assert BODY == target.read_bytes()


def test_the_last_of_two_has_the_name(target):
    """Two that end one after the other both end, and the name stands for one of them, whole."""
    with opened(target) as first, opened(target) as second:
        fill(first)
        fill(second, OTHER)
        first.finish()
        assert BODY == target.read_bytes()
        second.finish()
        assert OTHER == target.read_bytes()
    assert [target.name] == names(target)


def test_a_part_that_was_let_go_can_be_had(target):
    """Whoever comes after a part was closed has it, also while another one works apart."""
    with opened(target) as first:
        fill(first, stop=5_000)
        with opened(target):
            first.close(keep=True)
            with opened(target) as third:
                assert (True, 5_000) == (third.is_shared, third.length)


CHILD = """
import sys
from pathlib import Path
from kie_wav_async.downloads.part_file import PartFile

part = PartFile(Path(sys.argv[1]), "task-1")
part.open()
if part.length == 0:
    part.restart('"v1"', 10_000)
    part.write([b"x" * 3_000])
print(part.is_shared, part.length, flush=True)
sys.stdin.readline()
part.close(keep=True)
"""


@contextlib.contextmanager
def another_process(target):
    """Have another process hold a part; give that process and what it says of its part."""
    with subprocess.Popen(  # noqa: S603 - our own interpreter and our own text
        [sys.executable, "-c", CHILD, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process, process.stdout.readline().split()
        finally:
            process.communicate("\n", timeout=PATIENCE_S)


def test_another_process_is_not_met(target):
    """What another process has open is not touched, and it not by what that one does."""
    with another_process(target) as (_, said):
        assert ["True", "3000"] == said
        with another_process(target) as (_, said_too):
            assert ["False", "3000"] == said_too
        with opened(target) as part:
            assert not part.is_shared
            fill(part)
            part.finish()
        assert BODY == target.read_bytes()
        assert b"x" * 3_000 == part_path(target).read_bytes()
    assert [target.name, part_path(target).name, note_path(target).name] == names(target)


def test_the_lock_dies_with_its_owner(target):
    """The part of a process that was killed is there for the next one."""
    with another_process(target) as (process, _):
        process.kill()
        process.wait(PATIENCE_S)
        with opened(target) as part:
            assert part.is_shared


def test_a_forked_child_does_not_keep_a_part_from_others(target):
    """A part that was let go can be had while a child of the process still has it open."""
    part = PartFile(target, TASK)
    part.open()
    twin = os.dup(part._fd)  # As a child has it: the same open file.
    try:
        fill(part, stop=5_000)
        part.close(keep=True)
        with opened(target) as second:
            assert (True, 5_000) == (second.is_shared, second.length)
    finally:
        os.close(twin)


@pytest.mark.parametrize("end", ["finish", "remove", "replace"])
def test_a_part_that_went_away_before_it_was_locked_is_opened_anew(target, monkeypatch, end):
    """Who opened a part that got its name, or was removed, before he had the lock, looks again."""
    first = PartFile(target, TASK)
    first.open()
    fill(first)
    try_lock = part_file._try_lock
    tries = itertools.count(1)

    def ends_first(fd):
        if next(tries) == 1:
            if end == "finish":
                first.finish()
            else:
                first.close(keep=False)
            if end == "replace":
                part_path(target).touch()
        return try_lock(fd)

    monkeypatch.setattr(part_file, "_try_lock", ends_first)
    with opened(target) as second:
        assert (True, 0) == (second.is_shared, second.length)
        assert 3 == next(tries)
        fill(second, OTHER, stop=5_000)
        if end == "finish":
            assert BODY == target.read_bytes()
    assert OTHER[:5_000] == part_path(target).read_bytes()


def test_a_part_that_somebody_moved_gets_no_name(target):
    """A part that is not where it was is an error, and neither it nor its place is touched."""
    with opened(target) as part:
        fill(part)
        part_path(target).rename(target.with_name("elsewhere"))
        part_path(target).write_bytes(b"somebody's")
        with pytest.raises(FileNotFoundError, match="moved"):
            part.finish()
        part.close(keep=False)
    assert not target.exists()
    assert BODY == target.with_name("elsewhere").read_bytes()
    assert b"somebody's" == part_path(target).read_bytes()


def test_a_file_system_without_locks_gives_each_a_part_of_its_own(target, monkeypatch):
    """Where nobody can know who else is there, nothing is shared, nothing kept, and files come."""

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks")

    leave(target)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with opened(target) as part:
        assert (False, 0) == (part.is_shared, part.length)
        fill(part, stop=5_000)
    there = [part_path(target).name, note_path(target).name]
    assert there == names(target)
    assert not save(target).resumed
    assert BODY == target.read_bytes()
    assert [target.name, *there] == names(target)


def test_a_file_system_without_locks_has_nothing_left_over(target, monkeypatch):
    """Where there are no locks, a file leaves no empty part behind."""

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    save(target)
    assert BODY == target.read_bytes()
    assert [target.name] == names(target)


# --- a file that is there -------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        BODY,
        wav_bytes(48),
        wav_bytes(1_001),
        wav_bytes(1_000, declared=991),
        wav_bytes(1_000, kind="RF64"),
        wav_bytes(1_000, kind="BW64"),
        wav_bytes((1 << 20) + 44),
        wav_bytes((2 << 20) + 45),
    ],
    ids=["as any", "one frame", "odd", "odd, filled up", "RF64", "BW64", "1 MiB", "2 MiB"],
)
def test_a_whole_file_is_found(target, body):
    """A WAV file of the length it declares is told with its hash, and left alone."""
    target.write_bytes(body)
    before = target.stat()
    expected = Download(target, len(body), hashlib.sha256(body).hexdigest(), resumed=False)
    assert Found(expected, is_complete=True) == find_complete(target)
    after = target.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("tail", [b"\0", b"TAG" + bytes(125)], ids=["NUL", "ID3v1"])
def test_a_whole_file_may_go_on_behind_its_end(target, tail):
    """A file that has more than it declares is whole, and its note says so."""
    target.write_bytes(BODY + tail)
    found = find_complete(target)
    assert found.is_complete
    assert (f"{len(BODY + tail):,} bytes, and the header declares 10,000",) == found.download.notes


@pytest.mark.parametrize(
    "body",
    [
        BODY[:-1],
        wav_bytes(1_000, declared=1_000),
        wav_bytes(1_000, declared=0),
        wav_bytes(1_000, declared=0xFFFFFFFF),
        wav_bytes(1_000, kind="RF64")[:-2],
    ],
    ids=["a byte short", "size of the file", "streamed", "streamed, too", "short RF64"],
)
def test_a_file_that_may_be_whole_is_found_as_such(target, body):
    """Where the header does not tell, or only nearly, somebody else has to tell the length."""
    target.write_bytes(body)
    found = find_complete(target)
    assert (False, len(body)) == (found.is_complete, found.download.bytes)


@pytest.mark.parametrize(
    "body",
    [b"", b"RIFF", BODY[:12], BODY[:43], BODY[:44], BODY[:-9], b"<!DOCTYPE html>" * 10],
    ids=["empty", "4 bytes", "12 bytes", "43 bytes", "header", "short", "page"],
)
def test_a_file_that_is_not_whole_is_not_found(target, body):
    """Anything but a WAV file that may be complete is none."""
    target.write_bytes(body)
    assert find_complete(target) is None


def test_a_short_file_is_found_if_it_is_wanted(target):
    """A file that is shorter than it declares is found on request, and is never whole."""
    target.write_bytes(BODY[:-9])
    found = find_complete(target, accept_short=True)
    assert (False, ("only 9,991 of the 10,000 bytes that the header declares",)) == (
        found.is_complete,
        found.download.notes,
    )
    target.write_bytes(BODY[:44])
    assert find_complete(target, accept_short=True) is None


def test_nothing_is_not_found(target):
    """Where there is nothing there is no file."""
    assert find_complete(target) is None


def test_a_whole_file_is_found_through_a_link(target):
    """A link to a whole file is one."""
    target.with_name("real.wav").write_bytes(BODY)
    target.symlink_to("real.wav")
    assert target == find_complete(target).download.path


@pytest.mark.parametrize("body", [b"", BODY[:-1], OTHER], ids=["empty", "short", "other"])
def test_the_file_that_was_there_is_replaced_at_once(target, body):
    """What had the name keeps it until the new file is whole, and then it is gone."""
    target.write_bytes(body)
    target.chmod(0o400)
    with opened(target) as part:
        fill(part)
        assert body == target.read_bytes()
        part.finish()
    assert BODY == target.read_bytes()
    assert [target.name] == names(target)


# --- room -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "is_enough"),
    [(0, True), (18_000_000, True), (18_000_001, False), (1 << 30, False)],
)
def test_there_must_be_room_for_twice_the_rest_and_64_mib(target, monkeypatch, missing, is_enough):
    """A part asks for twice of what is missing, and 64 MiB, and says what there is."""
    free = 36_000_000 + (64 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, free))
    with opened(target) as part:
        if is_enough:
            part.verify_room(missing)
        else:
            with pytest.raises(OSError, match=r"103 MB free, and [\d,]+ MB are wanted") as caught:
                part.verify_room(missing)
            assert errno.ENOSPC == caught.value.errno


def test_a_disk_without_room_is_no_fault_of_the_part(target, monkeypatch):
    """What came before the disk was full stays, and is gone on with."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, 0))
    with opened(target) as part:
        fill(part, stop=5_000)
        with pytest.raises(OSError, match="0 MB free"):
            part.verify_room(5_000)
    assert 5_000 == json.loads(note_path(target).read_bytes())["synced"]


# --- the disk fails -------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path, monkeypatch) -> Disk:
    """Return a look at the folder, and a hand in it."""
    return Disk(tmp_path, monkeypatch.setattr)


def test_a_file_gets_its_name_in_this_order(target, disk):
    """The bytes are synced, the mode set, the name given and the folder synced, in this order."""
    with opened(target) as part:
        fill(part)
        disk.calls.clear()
        part.finish()
    order = ["fsync part", "fchmod part", "replace part", "fsync folder"]
    assert order == [call for call in disk.calls if call in {*order, "write part"}]


def test_bytes_are_synced_before_they_are_noted(target, disk):
    """A note is written after each write, and after the sync where there is one."""
    with opened(target) as part:
        part.restart(ETAG, len(BODY))
        disk.calls.clear()
        for start in range(0, 7_000, BLOCK):
            part.write([BODY[start : start + BLOCK]])
    calls = [call for call in disk.calls if call.split()[0] in {"write", "fsync"}]
    plain, synced = ["write part", "write note"], ["write part", "fsync part", "write note"]
    assert [*(plain + synced) * 3, *plain, *synced[1:]] == calls


def open_fds():
    """Return what is open."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def two_lives(target):
    """Save a file in two lives, of which the first is over half way."""
    leave(target)
    save(target)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("lasts", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EMFILE], ids=errno.errorcode.get)
def test_whatever_fails_nothing_wrong_gets_the_name(tmp_path, disk, code, lasts):
    """Any call may fail: no wrong file, nothing open, no lock, and the next download ends well."""
    two_lives(tmp_path / "sound.wav")
    count = len(disk.calls)
    assert 90 < count
    opened_before = open_fds()
    met = set()
    for number in range(1, count + 1):
        target = tmp_path / f"{number}.wav"
        disk.before = fault = Fault(number, code, lasts=lasts)
        with contextlib.suppress(OSError):
            two_lives(target)
        disk.before = lambda _: None
        met.add(fault.point)
        assert opened_before == open_fds(), fault.point
        assert find_complete(target) is not None or not target.exists(), fault.point
        assert not target.exists() or BODY == target.read_bytes(), fault.point
        assert hashlib.sha256(BODY).hexdigest() == save(target).sha256
        assert BODY == target.read_bytes(), fault.point
        assert [target.name] == sorted(p.name for p in tmp_path.glob(f"*{number}.wav*")), (
            fault.point
        )
        target.unlink()
    assert {
        *("open part", "fchmod part", "flock part", "fstat part", "stat part", "ftruncate part"),
        *("lseek part", "read part", "write part", "fsync part", "close part", "replace part"),
        *("open note", "fchmod note", "fstat note", "ftruncate note", "lseek note", "read note"),
        *("write note", "close note", "unlink note", "open folder", "fsync folder"),
        "close folder",
    } <= met


@pytest.mark.parametrize("lasts", [False, True], ids=["once", "for good"])
def test_whatever_fails_at_opening_what_was_kept_stays(tmp_path, disk, lasts):
    """A download that cannot even begin costs no byte of what an earlier one left."""
    leave(tmp_path / "sound.wav")
    disk.calls.clear()
    with opened(tmp_path / "sound.wav"):
        count = len(disk.calls)
    for number in range(1, count + 1):
        target = tmp_path / f"{number}.wav"
        leave(target)
        part = PartFile(target, TASK)
        disk.before = fault = Fault(number, errno.EMFILE, lasts=lasts)
        with contextlib.suppress(OSError):
            part.open()
        part.close(keep=True)
        disk.before = lambda _: None
        with opened(target) as part:
            assert (5_000, True) == (part.length, part.is_shared), fault.point


@pytest.mark.parametrize("written", [0, 1, 499])
def test_a_write_that_failed_half_way_is_the_last(target, disk, written):
    """Nothing is written or synced after a write that failed, since nobody knows what is there."""
    with opened(target) as part:
        fill(part, stop=5_000)
        full = Fault(2)

        def half(point):
            if point == "write part":
                full(point)
                return written
            return None

        disk.before = half
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            part.write([BODY[5_000:6_000]])
        disk.before = lambda _: None
        for _ in range(4):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                part.write([BODY[6_000:7_000]])
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            part.finish()
    assert not target.exists()
    assert 4_000 == json.loads(note_path(target).read_bytes())["synced"]
    assert save(target).resumed
    assert BODY == target.read_bytes()


@pytest.mark.parametrize("size", [1, 7, 499])
def test_a_short_write_is_gone_on_with(target, disk, size):
    """A disk that takes little at a time gets it all."""
    disk.before = lambda point: size if point.startswith("write") else None
    save(target)
    disk.before = lambda _: None
    assert BODY == target.read_bytes()


def test_a_sync_that_failed_is_not_believed_later(target, disk):
    """After a sync that failed no later one makes up for it: what it lost may be gone for good."""
    with opened(target) as part:
        fill(part, stop=4_000)
        failing = Fault(1)
        disk.before = lambda point: failing(point) if point == "fsync part" else None
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            fill(part, stop=6_000)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            part.finish()
    assert failing.point
    assert not target.exists()
    assert 4_000 == json.loads(note_path(target).read_bytes())["synced"]


def test_a_part_that_got_no_name_is_its_owners_only(target, disk):
    """A part that was to become a file and did not is closed to others all the same."""
    with umasked(0o022), opened(target) as part:
        fill(part)
        failing = Fault(1)
        disk.before = lambda point: failing(point) if point == "replace part" else None
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            part.finish()
    disk.before = lambda _: None
    assert failing.point
    assert 0o600 == mode_of(part_path(target))


@pytest.mark.parametrize("call", ["open folder", "fsync folder"])
@pytest.mark.parametrize(
    ("code", "is_error"),
    [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EACCES, False), (errno.EIO, True)],
    ids=["EINVAL", "ENOTSUP", "EACCES", "EIO"],
)
def test_a_folder_that_cannot_be_synced_is_no_fault(target, disk, call, code, is_error):
    """Where a folder cannot be synced a file is saved all the same; where it fails, it is told."""
    failing = Fault(1, code)
    disk.before = lambda point: failing(point) if point == call else None
    if is_error:
        with pytest.raises(OSError, match=os.strerror(code)):
            save(target)
    else:
        assert hashlib.sha256(BODY).hexdigest() == save(target).sha256
    disk.before = lambda _: None
    assert call == failing.point
    if is_error and call == "open folder":  # Nothing has changed: the next one ends it.
        assert not target.exists()
        assert save(target).resumed
    assert BODY == target.read_bytes()
    assert [target.name] == names(target)


def test_a_machine_without_a_name_for_its_run_has_none(monkeypatch):
    """Where nobody tells the run of the machine, it is not guessed."""

    def refuse(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert not part_metadata.this_boot.__wrapped__()


def test_closing_twice_is_closing(target):
    """A part that was closed, or never opened, is closed without a word."""
    part = PartFile(target, TASK)
    part.close(keep=True)
    part.open()
    part.close(keep=False)
    part.close(keep=True)
    assert [] == names(target)


def test_a_finished_part_has_nothing_left_to_close(target):
    """Closing after the end does not touch the file, nor what a later download left."""
    part = PartFile(target, TASK)
    part.open()
    fill(part)
    part.finish()
    leave(target)
    part.close(keep=False)
    assert BODY == target.read_bytes()
    assert 5_000 == part_path(target).stat().st_size


# --- what the system sees -------------------------------------------------------------------


SAVE = """
import sys
from pathlib import Path
from kie_wav_async.downloads import part_file

part_file.SYNC_EVERY = 2_000
part = part_file.PartFile(Path(sys.argv[1]), "task-1")
part.open()
part.restart('"v1"', 10_000)
for _ in range(10):
    part.write([b"x" * 1_000])
part.finish()
part.close(keep=True)
"""


@pytest.mark.skipif(bool(syncs.why_not()), reason="needs strace")
def test_the_system_is_asked_in_that_order(target):
    """The last write is followed by a sync, then by mode, name, and a sync of the folder."""
    trace = target.with_name("trace")
    strace = [shutil.which("strace"), "-f", "-y", "-s", "40", "-e", "signal=none", "-o", str(trace)]
    calls = "write,pwrite64,fsync,fdatasync,fchmod,rename,renameat,renameat2"
    subprocess.run(  # noqa: S603 - our own interpreter and our own text
        [*strace, "-e", f"trace={calls}", sys.executable, "-c", SAVE, str(target)], check=True
    )
    part, folder = re.escape(str(part_path(target))), re.escape(str(target.parent))
    kinds = {
        rf"p?write(64)?\(\d+<{part}>": "write",
        rf"f(data)?sync\(\d+<{part}>": "sync",
        rf"fchmod\(\d+<{part}>": "mode",
        rf'rename\w*\(.*"{part}".*"{re.escape(str(target))}"': "name",
        rf"f(data)?sync\(\d+<{folder}>": "sync folder",
        rf"p?write(64)?\(\d+<{part}\.json>": "note",
    }
    seen = [
        kind
        for line in trace.read_text(encoding="utf-8").splitlines()
        for pattern, kind in kinds.items()
        if re.search(pattern, line)
    ]
    last_write = len(seen) - 1 - seen[::-1].index("write")
    after = [kind for kind in seen[last_write + 1 :] if kind != "note"]
    assert ["sync", "sync", "mode", "name", "sync folder"] == after
    notes = [number for number, kind in enumerate(seen) if kind == "note"]
    assert {"write", "sync"} == {seen[number - 1] for number in notes[1:]}
