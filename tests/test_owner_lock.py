from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import PurePosixPath

import pytest

from kie_wav_async import Track
from kie_wav_async.errors import LedgerError
from kie_wav_async.ledger import SqliteLedger, TrackState
from kie_wav_async.ledger.models import LedgerMark
from kie_wav_async.ledger.sqlite.owner_lock import OwnerLock, network_file_system

NOW = 1_700_000_000.0
TRACK = Track("5c79", "e231")

OWNER = """
import asyncio, sys
from kie_wav_async import Track
from kie_wav_async.ledger import SqliteLedger

async def main():
    async with SqliteLedger(sys.argv[1]) as ledger:
        await ledger.begin_attempt(Track("5c79", "e231"), "a1", 1_700_000_000.0)
        print("open", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path):
    """Return where the ledger is."""
    return tmp_path / "x.sqlite3"


@pytest.fixture
def owner(path):
    """Return another process that has the ledger open, with a submit under way."""
    with subprocess.Popen(  # noqa: S603 - our own interpreter and our own text
        [sys.executable, "-c", OWNER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert "open\n" == process.stdout.readline()
        yield process
        process.kill()


async def test_a_second_process_is_refused(path, owner):
    """A ledger open in another process cannot be opened, and the error says where it is."""
    with pytest.raises(LedgerError) as caught:
        await SqliteLedger(path).open(NOW)
    assert f"process {owner.pid} on {socket.gethostname()}" in str(caught.value)
    assert str(path) in str(caught.value)


async def test_a_second_process_may_look(path, owner):
    """A ledger open in another process can be read, and its owner goes on."""
    async with SqliteLedger(path, read_only=True) as ledger:
        assert TrackState.SUBMITTING is (await ledger.get(TRACK)).state
    owner.communicate("\n", timeout=60)
    assert 0 == owner.returncode


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
async def test_the_lock_dies_with_its_owner(path, owner):
    """After its owner was killed, a ledger opens, and the owner's submit is unknown."""
    owner.send_signal(signal.SIGKILL)
    owner.wait(timeout=60)
    ledger = SqliteLedger(path)
    opening = await ledger.open(NOW + 60)
    await ledger.aclose()
    assert ["a1"] == [submit.attempt_id for submit in opening.unknown]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
async def test_who_only_looks_takes_a_submit_under_way_for_unknown(path, owner):
    """What is left by a dead owner is counted as unknown before anybody opens the ledger."""
    owner.send_signal(signal.SIGKILL)
    owner.wait(timeout=60)
    ledger = SqliteLedger(path, read_only=True)
    opening = await ledger.open(NOW + 60)
    entry = await ledger.get(TRACK)
    await ledger.aclose()
    assert ["a1"] == [submit.attempt_id for submit in opening.unknown]
    assert TrackState.SUBMITTING is entry.state


async def test_a_second_ledger_in_one_process_is_refused(path):
    """Two ledgers of one process do not share a file, and the error says so."""
    async with SqliteLedger(path):
        with pytest.raises(LedgerError, match="already open in this process"):
            await SqliteLedger(path).open(NOW)


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
async def test_another_name_is_no_way_around(tmp_path, path):
    """A ledger is refused under the name of a link to it, too."""
    (tmp_path / "link").symlink_to(path)
    async with SqliteLedger(path):
        with pytest.raises(LedgerError, match="already open"):
            await SqliteLedger(tmp_path / "link").open(NOW)


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_hard_link_is_no_way_around(tmp_path, path, read_only):
    """A ledger of two names is refused under each, as each name would have a lock of its own."""
    link = tmp_path / "link"
    async with SqliteLedger(path):
        link.hardlink_to(path)
        with pytest.raises(LedgerError, match=r"link has another name \(a hard link\)"):
            await SqliteLedger(link, read_only=read_only).open(NOW)
    with pytest.raises(LedgerError, match="has another name"):
        await SqliteLedger(path, read_only=read_only).open(NOW)
    link.unlink()
    async with SqliteLedger(path, read_only=read_only):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_does_not_keep_the_lock(path):
    """Given back, a lock is free, whatever child of the process still has its file open."""
    lock = OwnerLock(path)
    lock.acquire()
    kept = os.dup(lock._fd)  # As a forked child has it.
    try:
        lock.release()
        another = OwnerLock(path)
        another.acquire()
        another.release()
    finally:
        os.close(kept)


async def test_the_lock_is_given_back(path):
    """A ledger that was closed, or could not be opened, is free at once."""
    path.write_text("no ledger, but words enough to fill the header of a database or two")
    for _ in range(2):
        with pytest.raises(LedgerError, match="is no ledger"):
            await SqliteLedger(path).open(NOW)
    path.unlink()
    for _ in range(2):
        async with SqliteLedger(path):
            pass


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed")
async def test_whose_lock_was_removed_sends_nothing(path, monkeypatch):
    """If somebody removes the lock file, its owner writes no more, as another may by now."""
    monkeypatch.setattr("kie_wav_async.ledger.sqlite.worker._PAUSES_S", ())
    async with SqliteLedger(path) as ledger:
        path.with_name("x.sqlite3.lock").unlink()
        with pytest.raises(LedgerError, match=r"lock of the ledger .* was removed"):
            await ledger.begin_attempt(TRACK, "a1", NOW)
        async with SqliteLedger(path) as another:
            with pytest.raises(LedgerError, match=r"lock of the ledger .* was removed"):
                await ledger.begin_attempt(TRACK, "a1", NOW)
            assert None is await another.begin_attempt(TRACK, "a2", NOW)


def test_the_lock_file_is_ours_alone_and_says_who(path):
    """The lock file can be read by its owner only, and names the process while it is held."""
    lock = OwnerLock(path)
    lock.acquire()
    assert lock.path.read_text().endswith(f"\n{os.getpid()} {socket.gethostname()}\n")
    assert 0o600 == stat.S_IMODE(lock.path.stat().st_mode)
    lock.release()
    assert "" == lock.path.read_text()
    lock.release()


def test_the_lock_file_keeps_which_ledger_was_there(path):
    """What was noted of a ledger is there for every later owner, given back or not."""
    first = OwnerLock(path)
    first.acquire()
    assert None is first.mark
    for submits in (0, 7, 123_456_789):
        first.write_mark(LedgerMark("ab" * 16, submits))
    first.release()
    first.write_mark(LedgerMark("cd" * 16, 1))
    for _ in range(2):
        lock = OwnerLock(path)
        lock.acquire()
        assert LedgerMark("ab" * 16, 123_456_789) == lock.mark
        assert lock.path.read_text().endswith(f"\n{os.getpid()} {socket.gethostname()}\n")
        with pytest.raises(LedgerError, match=f"already open in this process .pid {os.getpid()}"):
            OwnerLock(path).acquire()
        lock.release()
    (line,) = lock.path.read_text().splitlines()
    assert f"kie-wav-ledger {'ab' * 16} 000000000123456789" == line


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"1 host\n",
        b"kie-wav-ledger " + b"ab" * 16 + b" 5\n",
        b"kie-wav-ledger " + b"0" * 32 + b" " + b"0" * 18 + b"\n1 host\n",
        b"x" * 900,
    ],
)
def test_a_lock_file_that_says_nothing_is_no_mark(path, content):
    """A lock file of another kind is taken over, and says nothing of a ledger."""
    lock = OwnerLock(path)
    lock.path.write_bytes(content)
    lock.acquire()
    assert None is lock.mark
    lock.write_mark(LedgerMark("ab" * 16, 1))
    lock.release()
    assert 67 == lock.path.stat().st_size


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"1 \x1b[31mhost\n", b"\xff" * 300, b"12345678901 host\n"]
)
def test_a_lock_file_nobody_wrote_is_not_quoted(path, content):
    """What stands in a lock file is shown if it is a process and a host, else not."""
    first = OwnerLock(path)
    first.acquire()
    first.path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"(?s)open in another process.*let it finish"):
        OwnerLock(path).acquire()
    first.release()


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
def test_a_lock_does_not_follow_links(tmp_path, path):
    """A link where the lock file should be does not make us write to what it points at."""
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / "x.sqlite3.lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        OwnerLock(path).acquire()
    assert "precious" == target.read_text()


def test_a_lock_is_no_other_file(tmp_path, path):
    """A file that has another name is not written to."""
    lock, other = OwnerLock(path), tmp_path / "other.txt"
    other.write_text("precious")
    lock.path.hardlink_to(other)
    with pytest.raises(LedgerError, match="another name"):
        lock.acquire()
    assert "precious" == other.read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
async def test_a_pipe_is_not_waited_for(path):
    """A pipe in place of the lock file is refused at once."""
    os.mkfifo(OwnerLock(path).path)
    with pytest.raises(LedgerError, match="not a plain file"):
        await SqliteLedger(path).open(NOW)


MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:20 / /proc rw - proc proc rw
30 21 0:40 / /mnt/nfs rw,relatime shared:2 master:1 - nfs4 server:/export rw,vers=4.2
31 30 8:2 / /mnt/nfs/local rw - xfs /dev/sdb1 rw
32 21 0:41 / /mnt/with\\040blank rw - cifs //server/share rw
33 21 0:42 / /mnt/ssh rw - fuse.sshfs me@host: rw
34 21 8:3 / /mnt/over rw - ext4 /dev/sdc1 rw
35 34 0:43 / /mnt/over rw - 9p drvfs rw
36 21 0:44 / /mnt/under rw - nfs server:/export rw
37 36 8:4 / /mnt/under rw - ext4 /dev/sdd1 rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/x", None),
        ("/mnt/nfs/x", "nfs4"),
        ("/mnt/nfs", "nfs4"),
        ("/mnt/nfsx/x", None),
        ("/mnt/nfs/local/x", None),
        ("/mnt/nfs/locals/x", "nfs4"),
        ("/mnt/with blank/x", "cifs"),
        ("/mnt/ssh/a/b/c/x", "fuse.sshfs"),
        ("/mnt/over/x", "9p"),
        ("/mnt/under/x", None),
        ("/proc/x", None),
    ],
)
def test_a_network_file_system_is_recognised(path, kind):
    """The innermost, latest mount above a path says whether it is on the network."""
    assert kind == network_file_system(MOUNTS, PurePosixPath(path))


@pytest.mark.parametrize(
    "kind",
    ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs", "lustre", "afs"],
)
def test_the_usual_network_file_systems_are_known(kind):
    """Each of the common file systems of several machines is known by its name."""
    assert kind == network_file_system(f"1 0 0:1 / / rw - {kind} x rw\n", PurePosixPath("/x"))


@pytest.mark.parametrize(
    "mounts", ["", "\n", "garbage\n", "1 0 0:1 / /\n", " - nfs x rw\n", "1 0 0:1 / / rw - \n"]
)
def test_mounts_that_cannot_be_read_say_nothing(mounts):
    """Lines of another shape are passed over."""
    assert None is network_file_system(mounts, PurePosixPath("/x"))


async def test_a_network_file_system_is_warned_of(path, monkeypatch, caplog):
    """Opening a ledger on a network file system logs one warning that says what to do."""
    monkeypatch.setattr("kie_wav_async.ledger.sqlite.worker.network_file_system", lambda *_: "nfs4")
    monkeypatch.setattr(sys, "platform", "linux")
    async with SqliteLedger(path):
        pass
    [record] = caplog.records
    assert ("kie_wav_async", "WARNING") == (record.name, record.levelname)
    assert f"{path} is on a network file system (nfs4)" in record.getMessage()
    assert "local disk" in record.getMessage()


async def test_a_local_disk_is_not_warned_of(path, caplog):
    """Where the tests run, nothing is logged."""
    async with SqliteLedger(path):
        pass
    assert [] == caplog.records
