"""The folders of the package: imports point down, in no circle, and the core is pure."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "kie_wav_async"
REPOSITORY = Path(__file__).resolve().parent.parent
ROOT = REPOSITORY / PACKAGE

# What may import what: each folder, or module of the root, what stands below it.
VALUES = {"_support", "models", "errors"}
MAY_IMPORT = {
    "_support": set(),
    "models": {"_support"},
    "errors": {"models"},
    "events": {"models", "errors"},
    "protocol": VALUES,
    "callbacks": VALUES | {"protocol"},
    "core": VALUES | {"callbacks", "events", "protocol"},
    "http": VALUES | {"protocol"},
    "ledger": VALUES | {"core", "protocol"},
    "downloads": VALUES | {"core", "events", "http", "protocol"},
    "session": VALUES | {"callbacks", "core", "downloads", "events", "http", "ledger", "protocol"},
    "__init__": VALUES | {"events"} | {"callbacks", "core", "http", "protocol", "session"},
    "webhook": VALUES | {"callbacks", "session"},
    "testing": VALUES | {"callbacks", "ledger", "protocol"},
    "file_names": {"_support", "models"},
    # The command line is a program like any other, but for what it does with files.
    "cli": {"__init__", "_support", "callbacks", "errors", "events", "protocol"}
    | {"file_names", "ledger", "webhook", "simulator"},
    "__main__": {"cli"},
    "simulator": set(),
}

# What is asked for nothing: it is given the time, chance and what was read.
PURE = ("models", "errors", "events", "file_names", "protocol", "callbacks", "core")
# Pure modules of folders that are not.
PURE_MODULES = (
    *("_support/budget", "_support/rate_meter", "_support/secret", "_support/validation"),
    *("downloads/http_range", "downloads/public_address", "downloads/throughput"),
    *("downloads/url_policy", "downloads/wav_header", "ledger/models"),
)
IMPURE = {
    *("aiohttp", "asyncio", "concurrent", "logging", "os", "random", "secrets", "socket"),
    *("sqlite3", "ssl", "subprocess", "threading", "time", "uuid"),
}
# Moving bytes is the transport's, reading them the protocol's, time the clock's.
NOT_IN_A_SESSION = {"aiohttp", "cattrs", "json", "time"}


def imports_of(source: str) -> set[str]:
    """Name every module that *source* imports, wherever the statement stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            base = node.module or ""
            # A name of the root may be a module's; elsewhere the module is named before it.
            found |= {f"{base}.{alias.name}" for alias in node.names}
            found |= {base} - {PACKAGE}
    return found


def folder_of(name: str) -> str | None:
    """Name the folder of ours that a module lies in; a name of the root is ``__init__``'s."""
    head, _, rest = name.partition(".")
    if head != PACKAGE:
        return None
    first = rest.partition(".")[0]
    return first if first in MAY_IMPORT else "__init__"


def complaints(folder: str, source: str) -> list[str]:
    """Tell which folders *source*, a module of *folder*, may not import."""
    targets = {folder_of(name) for name in imports_of(source)} - {None, folder}
    return sorted(target for target in targets if target not in MAY_IMPORT[folder])


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    return {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
        for path in ROOT.rglob("*.py")
    }


MODULES = modules()
PURE_PATHS = sorted(
    str(path.relative_to(ROOT))
    for name in (*PURE, *PURE_MODULES)
    for path in (
        [ROOT / f"{name}.py"] if not (ROOT / name).is_dir() else (ROOT / name).rglob("*.py")
    )
)


def test_every_folder_has_a_row() -> None:
    """What nobody gave a place does not enter the package, and the root has no private module."""
    found = {path.stem for path in ROOT.glob("*.py")}
    found |= {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert set(MAY_IMPORT) == found
    assert {"_support"} == {name for name in found if name[0] == "_" and name[1] != "_"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name: str) -> None:
    """A module imports only from its own folder and from those below it."""
    folder = folder_of(f"{name}.x") or ""
    assert [] == complaints(folder, MODULES[name].read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("protocol", "from kie_wav_async.core import registry"),
        ("protocol", "from kie_wav_async import Track"),
        ("core", "def f():\n    from kie_wav_async.session.poller import Poller"),
        ("core", "import kie_wav_async.ledger.models"),
        ("errors", "from kie_wav_async.events import Event"),
        ("session", "from kie_wav_async.testing import FakeClock"),
        ("session", "from kie_wav_async import simulator"),
        ("testing", "from kie_wav_async import WavSession"),
        ("cli", "from kie_wav_async.session.session import WavSession"),
        ("simulator", "import kie_wav_async"),
        ("simulator", "from kie_wav_async.models import Track"),
        ("__init__", "from kie_wav_async.testing import FakeClock"),
    ],
)
def test_a_wrong_import_is_seen(folder: str, source: str) -> None:
    """The check of this file complains of each kind of wrong import."""
    assert 1 == len(complaints(folder, source))


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("session", "from kie_wav_async import errors, events"),
        ("session", "import asyncio\nfrom kie_wav_async.session import poller"),
        ("cli", "from kie_wav_async import Track, WavSession, errors"),
        ("simulator", "from kie_wav_async.simulator.wav import Tone"),
    ],
)
def test_a_right_import_is_left_alone(folder: str, source: str) -> None:
    """The check of this file has nothing against imports of what lies below."""
    assert [] == complaints(folder, source)


def test_no_module_imports_itself() -> None:
    """Imports of modules form no circle, those for type checkers included."""
    graph = {
        name: {
            target for target in imports_of(path.read_text(encoding="utf-8")) if target in MODULES
        }
        - {name, PACKAGE}
        for name, path in MODULES.items()
    }
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", PURE_PATHS)
def test_the_core_is_pure(path: str) -> None:
    """The pure modules import nothing that asks or waits, await nothing and read no clock."""
    source = (ROOT / path).read_text(encoding="utf-8")
    imported = imports_of(source)
    assert set() == {name.partition(".")[0] for name in imported} & IMPURE
    ours = {name for name in imported if name in MODULES}
    assert set() == {str(MODULES[name].relative_to(ROOT)) for name in ours} - set(PURE_PATHS)
    assert [] == [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
        or (isinstance(node, ast.Attribute) and node.attr in {"now", "utcnow", "today"})
    ]


def asyncio_calls(source: str) -> set[str]:
    """Name what *source* takes out of asyncio, as ``timeout`` for ``asyncio.timeout``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "asyncio"
        ):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == "asyncio":
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_uses_wait_for(name: str) -> None:
    """`asyncio.wait_for` is not used, because in 3.11 it swallows cancellations."""
    assert "wait_for" not in asyncio_calls(MODULES[name].read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "session").glob("*.py")), ids=lambda path: path.stem
)
def test_the_session_waits_by_its_clock_only(path: Path) -> None:
    """A session takes no timeouts or sleeps from the loop, which a fake clock cannot move."""
    source = path.read_text(encoding="utf-8")
    assert set() == asyncio_calls(source) & {"sleep", "timeout", "timeout_at"}
    tops = {name.partition(".")[0] for name in imports_of(source)}
    assert set() == tops & NOT_IN_A_SESSION


def test_the_pure_modules_are_the_ones_gated() -> None:
    """The coverage gate and the mutation run have exactly the pure modules with code."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))

    assert [
        f"{PACKAGE}/{path}" for path in PURE_PATHS if not path.endswith("__init__.py")
    ] == sorted(settings["tool"]["mutmut"]["only_mutate"])


def test_there_are_two_extras() -> None:
    """One may ask for the command line, or for all that the tests need."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))

    assert {"cli", "dev"} == set(settings["project"]["optional-dependencies"])


def test_importing_the_package_imports_no_edge() -> None:
    """A program that only wants the client loads no server, database, terminal or simulator."""
    edges = (
        f"{PACKAGE}.{module}"
        for module in ("cli", "events", "simulator", "webhook", "ledger.models", "ledger.sqlite")
    )
    heavy = ["click", "rich", "aiohttp.web", "sqlite3", "importlib.metadata", "decimal", *edges]
    program = f"import sys, {PACKAGE}; print([m for m in {heavy!r} if m in sys.modules])"

    done = subprocess.run(  # noqa: S603 - our own interpreter and our own text
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )

    assert "[]" == done.stdout.strip()
