"""Habits of this repository that no linter knows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FILES = sorted(
    path
    for folder in ("kie_wav_async", "tests", "benchmarks", "examples")
    for path in (REPOSITORY / folder).rglob("*.py")
)
TESTS = [path for path in FILES if path.name.startswith("test_")]

# What silences a checker, and the rest of the line, where the reason belongs.
SILENCER = re.compile(
    r"# *(?:noqa\b(?:: *[A-Z]+[0-9]+(?:[, ]+[A-Z]+[0-9]+)*)?"
    r"|(?:type|pyright): *ignore(?:\[[^\]]*\])?"
    r"|pragma: no (?:cover|branch|mutate))(?P<rest>.*)"
)


def name_of(path: Path) -> str:
    """Name *path* as seen from the top of the repository."""
    return path.relative_to(REPOSITORY).as_posix()


def unreasoned(source: str) -> list[int]:
    """Number the lines of *source* that silence a checker without a word on why."""
    return [
        number
        for number, line in enumerate(source.splitlines(), start=1)
        for found in SILENCER.finditer(line)
        if not re.search(r"[A-Za-z]{2,}.*[A-Za-z]{2,}", SILENCER.sub(r"\g<rest>", found["rest"]))
    ]


def unpromising(source: str) -> list[str]:
    """Name the tests in *source* whose docstring is not one sentence on one line."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not re.fullmatch(r"\S.*\.", ast.get_docstring(node) or "")
    ]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_silence_has_a_reason(path: Path) -> None:
    """Whoever silences a checker says why on the same line."""
    assert [] == unreasoned(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_every_test_states_a_promise(path: Path) -> None:
    """The docstring of a test is the one sentence it holds the code to."""
    assert [] == unpromising(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("no" + "qa", [1]),
        ("no" + "qa: S101", [1]),
        ("no" + "qa: S101, D103", [1]),
        ("no" + "qa: S101 - the only way to see it", []),
        ("type" + ": ignore", [1]),
        ("type" + ": ignore[misc]", [1]),
        ("type" + ": ignore[misc]  # facts do not change", []),
        ("pyright" + ": ignore[reportPrivateUsage]", [1]),
        ("pragma" + ": no cover", [1]),
        ("pragma" + ": no cover - only without a loop", []),
        ("type" + ": ignore[misc]  # no" + "qa: S101", [1]),
        ("type" + ": ignore[misc]  # no" + "qa: S101 - must not pass", []),
    ],
)
def test_silence_without_a_reason_is_seen(comment: str, expected: list[int]) -> None:
    """The check of this file tells a reason from none."""
    assert expected == unreasoned(f"x = 1  # {comment}")


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("pass", ["test_x"]),
        ("'''no full stop'''", ["test_x"]),
        ("'''Two.\n\n    Paragraphs.'''", ["test_x"]),
        ("'''It holds.'''", []),
    ],
)
def test_a_test_without_a_promise_is_seen(docstring: str, expected: list[str]) -> None:
    """The check of this file sees a test that says nothing, in a class as well."""
    assert expected == unpromising(f"class TestIt:\n  async def test_x(self):\n    {docstring}")
