"""
The planted bugs fit the code they are planted in; whether each is found takes minutes::

    python tests/planted_bugs.py
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import planted_bugs
from planted_bugs import BUGS, TESTS, Bug, Found, RunError
from samples import short

HERE = planted_bugs.REPOSITORY / "tests"


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: short(f"{bug.module}: {bug.name}"))
def test_a_bug_can_still_be_planted(bug):
    """Each text that a bug replaces stands in its module exactly once, and code comes of it."""
    source = planted_bugs.read(bug.module)

    assert source != bug.plant(source)


def test_there_are_enough_of_them():
    """The verifier is tried with more than twenty bugs, each of its own name."""
    assert len(BUGS) == len({(bug.name, bug.module) for bug in BUGS})
    verifier = {
        "callbacks/signature",
        "callbacks/payload",
        "protocol/envelope",
        "callbacks/verify",
    }
    assert 24 <= sum(bug.module in verifier for bug in BUGS)
    assert {bug.module for bug in BUGS} == set(TESTS)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [("x = 2", "stands 0 times"), ("x = 1; x = 1", "stands 2 times")],
    ids=["gone", "twice"],
)
def test_a_bug_that_no_longer_fits_is_told(source, complaint):
    """A text that was changed, or stands twice, is an error and not a bug that was found."""
    with pytest.raises(LookupError, match=complaint):
        Bug("a name", "_module", (("x = 1", "x = 3"),)).plant(source)


def test_a_bug_is_code():
    """A planting that does not compile would be found by every test, and is an error."""
    with pytest.raises(SyntaxError):
        Bug("a name", "_module", (("x = 1", "x ="),)).plant("x = 1")


def play(monkeypatch, *, found="test_x.py::test_y", fails_without=False):
    """Have the runs end as told, and return the exit status of the script."""

    def run_all():
        if fails_without:
            raise RunError(fails_without)

    monkeypatch.setattr(planted_bugs, "run_all", run_all)
    monkeypatch.setattr(planted_bugs, "try_bug", lambda _bug: Found(found, 0.0))
    return planted_bugs.main(["--jobs", "2"])


def test_bugs_that_are_found_are_a_success(monkeypatch, capsys):
    """The table has a row for each bug and says which test found it."""
    assert 0 == play(monkeypatch)

    rows = capsys.readouterr().out.splitlines()
    assert [bug.name for bug in BUGS] == [row.partition(" | ")[0].strip() for row in rows[2:-1]]
    assert all(row.endswith("test_x.py::test_y") for row in rows[2:-1])
    assert f"{len(BUGS)} of {len(BUGS)} bugs were found" == rows[-1]


def test_a_bug_that_survives_is_a_failure(monkeypatch, capsys):
    """A bug that no test saw makes the script fail, and stands out in the table."""
    assert 1 == play(monkeypatch, found=None)

    assert len(BUGS) == capsys.readouterr().out.count("IT SURVIVED")


def test_tests_that_fail_without_a_bug_find_none(monkeypatch, capsys):
    """Where the tests fail anyway, nothing is said of the bugs."""
    assert 2 == play(monkeypatch, fails_without="test_x.py::test_y fails without a bug")

    told = capsys.readouterr()
    assert "" == told.out
    assert "fails without a bug" in told.err


@pytest.mark.campaign
def test_what_is_no_bug_survives():
    """The script does not call found what changes nothing."""
    harmless = Bug(
        "harmless",
        "core/callback_health",
        (("import annotations\n", "import annotations  # so what\n"),),
    )

    assert planted_bugs.try_bug(harmless).test is None


@pytest.mark.campaign
def test_what_breaks_every_import_is_told():
    """A planting that the tests cannot even import is an error and not a bug that was found."""
    broken = Bug(
        "broken",
        "core/callback_health",
        (("import annotations\n", "import annotations\nimport no_such_module_as_this\n"),),
    )

    with pytest.raises(RunError, match="could not be run"):
        planted_bugs.try_bug(broken)


@pytest.mark.campaign
def test_every_planted_bug_is_found(capsys):
    """Run as anybody runs it, the script finds every bug."""
    made = subprocess.run(  # noqa: S603 - a file of this repository
        [sys.executable, str(HERE / "planted_bugs.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    with capsys.disabled():
        # The table is what the campaign is run for.
        print("", made.stdout, made.stderr, sep="\n")  # noqa: T201 - as said
    assert 0 == made.returncode
    assert re.search(rf"^{len(BUGS)} of {len(BUGS)} bugs", made.stdout, re.MULTILINE)
