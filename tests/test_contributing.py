"""CONTRIBUTING.md: its commands are those of the README and of CI, and its paths are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


def test_the_commands_are_those_that_ci_runs() -> None:
    """Setting up is the README's second block, and every check is one of `.ci/run`."""
    set_up, checks = BLOCKS
    assert set_up in (ROOT / "README.md").read_text(encoding="utf-8")
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert [] == [line for line in checks.splitlines() if line not in run]


def test_every_path_is_there() -> None:
    """What the page sends a reader to exists, and has the name that it says to look for."""
    rows = re.findall(r"`(kie_wav_async/[\w/]+(?:\.py)?)`(?: \(`(\w+)`\))?", PAGE)
    assert 12 < len(rows)
    for path, name in rows:
        assert (ROOT / path).exists(), path
        assert not name or name in (ROOT / path).read_text(encoding="utf-8"), (path, name)


def test_every_folder_has_a_row() -> None:
    """The table of folders names all of them."""
    named = set(re.findall(r"^\| `(\w+)/`", PAGE, re.MULTILINE))
    folders = {path.parent.name for path in (ROOT / "kie_wav_async").glob("*/__init__.py")}
    assert folders == named
