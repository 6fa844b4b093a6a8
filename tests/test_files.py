"""Files: syncing folders, digests, and paths that stay in a folder."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from typing import TYPE_CHECKING

import pytest

from kie_wav_async._support import files

if TYPE_CHECKING:
    from pathlib import Path

CODES = [errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EIO]


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_a_folder_that_has_to_be_synced(tmp_path: Path, monkeypatch, code: int) -> None:
    """What a ledger's name depends on is never passed over."""

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(code)):
        files.sync_folder(tmp_path)


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_a_folder_that_is_synced_where_possible(tmp_path: Path, monkeypatch, code: int) -> None:
    """Where the system cannot sync a folder a file is saved all the same; a fault is told."""

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    failed = False
    try:
        with files.synced_folder(tmp_path):
            (tmp_path / "x").touch()
    except OSError:
        failed = True
    assert failed is (code == errno.EIO)
    assert (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("path", "here", "anywhere"),
    [
        ("a.wav", True, True),
        ("a/b.wav", True, True),
        ("/a.wav", False, False),
        ("../a.wav", False, False),
        ("a/../b.wav", False, False),
        ("a\0.wav", False, False),
        ("C:a.wav", True, False),
        ("..\\a.wav", True, False),
        (".. /a.wav", True, False),
        (".", True, False),
    ],
)
def test_a_path_in_a_folder(path: str, here: bool, anywhere: bool) -> None:  # noqa: FBT001 - a table
    """A path of our own is judged by this system, one from elsewhere by all of them."""
    assert (here, anywhere) == (
        files.is_inside(path, on_any_system=False),
        files.is_inside(path),
    )


def test_the_digest_of_a_file() -> None:
    """All of a file counts, whatever its length, until there is no need to go on."""
    data = os.urandom(700_000)
    counts: list[int] = []

    assert hashlib.sha256(data).hexdigest() == files.sha256_of(io.BytesIO(data))

    def stop(count: int) -> bool:
        counts.append(count)
        return False

    first = files.sha256_of(io.BytesIO(data), stop)
    assert hashlib.sha256(data[: counts[0]]).hexdigest() == first
    assert 1 == len(counts)
