"""The layers of the package: imports point down only, and the core is pure."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = "kie_wav_async"
REPOSITORY = Path(__file__).resolve().parent.parent
ROOT = REPOSITORY / PACKAGE

# From the top down, with the number of the layer. A module may import the rows
# below its own and nothing else; modules of one row are blind to one another.
ROWS: list[tuple[int, frozenset[str]]] = [
    (5, frozenset({"__main__"})),
    (5, frozenset({"cli"})),
    (4, frozenset({"ledger_conformance", "testing", "webhook"})),
    (4, frozenset({"_gate", "_capped_server", "_memory_ledger"})),
    (4, frozenset({"_bounded_log"})),
    (3, frozenset({"__init__"})),
    (3, frozenset({"_session"})),
    (3, frozenset({"_batch", "_receiver"})),
    (3, frozenset({"_intake"})),
    (3, frozenset({"_submitter", "_reader", "_downloader"})),
    (3, frozenset({"_turns"})),
    (3, frozenset({"_poller"})),
    (3, frozenset({"_desk"})),
    (3, frozenset({"_conversion", "_journal"})),
    (2, frozenset({"_verification"})),
    (2, frozenset({"ledger"})),
    (2, frozenset({"_sqlite_ledger"})),
    (2, frozenset({"_ledger_thread"})),
    (2, frozenset({"_ledger_file"})),
    (2, frozenset({"_ledger_sql", "_owner_lock"})),
    (2, frozenset({"_ledger_schema"})),
    (2, frozenset({"_download"})),
    (2, frozenset({"_part_file", "_media"})),
    (2, frozenset({"_file_lock", "_part_note"})),
    (2, frozenset({"_transport", "_clock", "_tasks"})),
    (2, frozenset({"_network", "_patience"})),
    (1, frozenset({"_callback", "_callback_url", "_link", "_submit_pause"})),
    (
        1,
        frozenset(
            {"_wire", "_schedule", "_limiter", "_registry", "_requests"}
            | {"_signature", "_inbox", "_health", "_hint_limiter"}
            | {"_wav_header", "_ranges", "_addresses", "_budget", "_pace", "file_names"}
            | {"_known_hosts"}
        ),
    ),
    (1, frozenset({"_wav_links"})),
    (1, frozenset({"_envelope", "_lifecycle"})),
    (0, frozenset({"events"})),
    (0, frozenset({"_ledger_models"})),
    (0, frozenset({"_models", "errors"})),
    (0, frozenset({"_secret"})),
]
LAYER = {module: layer for layer, modules in ROWS for module in modules}
ROW = {module: row for row, (_, modules) in enumerate(ROWS) for module in modules}
PURE = {module for module, layer in LAYER.items() if layer <= 1}

# Exceptions to the rows, each with its reason.
ALSO = {
    "_models": {"errors"},  # An outcome holds an error ...
    "errors": {"_models"},  # ... and an error the track it is about.
    "cli": {"simulator"},  # `kie-wav demo` and `kie-wav simulate`.
}
# What a module may not import although it lies below.
NEVER = {
    # A user's test double must not know how the session works.
    "testing": {"__init__", "_session", "_batch", "_intake", "_submitter", "_poller"},
}

# The core is given the time, chance and what was read; it asks nobody.
IMPURE = {
    *("aiohttp", "asyncio", "concurrent", "logging", "os", "random", "secrets", "socket"),
    *("sqlite3", "ssl", "subprocess", "threading", "time", "uuid"),
}
# Moving bytes is the transport's, reading them the codec's, time the clock's.
NOT_IN_A_SESSION = {"aiohttp", "cattrs", "json", "time"}


def imports_of(source: str, *, package: str = PACKAGE) -> set[str]:
    """Name every module *source* imports, wherever the statement stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            if base == PACKAGE:
                found |= {f"{PACKAGE}.{alias.name}" for alias in node.names}
            else:
                found.add(base)
    return found


def ours(imported: str) -> str | None:
    """Name the module of ours that *imported* is or lies in; a root name is ``__init__``."""
    head, _, rest = imported.partition(".")
    if head != PACKAGE:
        return None
    name = rest.partition(".")[0]
    return name if name in LAYER or name == "simulator" else "__init__"


def complaints(module: str, source: str) -> list[str]:
    """Tell what is wrong with the imports of *source* as the text of *module*."""
    imported = imports_of(source)
    found = [f"{module} imports {top}" for top in _forbidden(module, imported)]
    for target in sorted({ours(name) for name in imported} - {None, module}):
        assert target is not None
        if not _allowed(module, target):
            found.append(f"{module} imports {target} of ours")
    return found


def _forbidden(module: str, imported: set[str]) -> list[str]:
    tops = {name.partition(".")[0] for name in imported}
    if module in PURE:
        return sorted(tops & IMPURE)
    if module.startswith("_") and LAYER.get(module) == 3 and module != "__init__":
        return sorted(tops & NOT_IN_A_SESSION)
    return []


def _allowed(module: str, target: str) -> bool:
    if module == "simulator":
        return False
    if target in ALSO.get(module, set()):
        return True
    if target == "simulator" or target in NEVER.get(module, set()):
        return False
    if LAYER[module] == 5 and target.startswith("_") and target != "__init__":
        return False
    return ROW[module] < ROW[target]


def sources(module: str) -> list[Path]:
    """Find the file of *module*, or the files of it if it is a package."""
    folder = ROOT / module
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [ROOT / f"{module}.py"]


MODULES = sorted(
    {path.stem for path in ROOT.glob("*.py")}
    | {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
)


def test_every_module_has_a_layer() -> None:
    """A module nobody gave a layer does not enter the package."""
    assert [] == [name for name in MODULES if name not in LAYER and name != "simulator"]


@pytest.mark.parametrize("module", [name for name in MODULES if name in {*LAYER, "simulator"}])
def test_imports_point_down(module: str) -> None:
    """A module imports only what lies below it, and the core nothing impure."""
    found = [
        complaint
        for path in sources(module)
        for complaint in complaints(module, path.read_text(encoding="utf-8"))
    ]

    assert [] == found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_wire", "import asyncio"),
        ("_wire", "import os.path"),
        ("_wire", "from time import monotonic"),
        ("_wire", "def f():\n    import random"),
        ("_wire", "from kie_wav_async import _schedule"),
        ("_wire", "from kie_wav_async._registry import Registry"),
        ("_wire", "from ._limiter import RateLimit"),
        ("_wire", "from . import _limiter"),
        ("_envelope", "from kie_wav_async import _wire"),
        ("errors", "from kie_wav_async.events import Event"),
        ("_models", "import logging"),
        ("_models", "from kie_wav_async import Track"),
        ("_transport", "import kie_wav_async._clock"),
        ("_poller", "from kie_wav_async._submitter import Submitter"),
        ("_submitter", "from kie_wav_async._batch import Batch"),
        ("_batch", "from kie_wav_async._session import WavSession"),
        ("_batch", "import aiohttp"),
        ("_session", "import kie_wav_async.testing"),
        ("_session", "from kie_wav_async import simulator"),
        ("testing", "from kie_wav_async import WavSession"),
        ("testing", "from kie_wav_async.simulator import Simulator"),
        ("cli", "from kie_wav_async._session import WavSession"),
        ("cli", "from kie_wav_async import _models"),
        ("simulator", "import kie_wav_async"),
        ("simulator", "from kie_wav_async._models import Track"),
        ("__init__", "from kie_wav_async.testing import FakeClock"),
    ],
)
def test_a_wrong_import_is_seen(module: str, source: str) -> None:
    """The check of this file complains of each kind of wrong import."""
    assert 1 == len(complaints(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_wire", "from kie_wav_async import _envelope, errors"),
        ("_wire", "import json, cattrs\nfrom yarl import URL"),
        ("_session", "import asyncio, os\nfrom kie_wav_async import _batch, _clock"),
        ("_batch", "from kie_wav_async._poller import Poller"),
        ("testing", "from kie_wav_async._clock import Clock"),
        ("cli", "from kie_wav_async import Track, WavSession, errors"),
        ("simulator", "from kie_wav_async.simulator._wav import Tone"),
    ],
)
def test_a_right_import_is_left_alone(module: str, source: str) -> None:
    """The check of this file has nothing against imports of what lies below."""
    assert [] == complaints(module, source)


@pytest.mark.parametrize("module", [name for name in MODULES if name in PURE])
def test_the_core_awaits_nothing(module: str) -> None:
    """Layers 0 and 1 have no async functions: values in, values out."""
    tree = ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))

    assert [] == [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
    ]


@pytest.mark.parametrize("module", [name for name in MODULES if name in PURE])
def test_the_core_reads_no_clock(module: str) -> None:
    """Layers 0 and 1 never ask `datetime` for the present."""
    tree = ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))

    assert [] == [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"now", "utcnow", "today"}
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


@pytest.mark.parametrize("module", MODULES)
def test_nothing_uses_wait_for(module: str) -> None:
    """`asyncio.wait_for` is not used, because in 3.11 it swallows cancellations."""
    for path in sources(module):
        assert "wait_for" not in asyncio_calls(path.read_text(encoding="utf-8")), path.name


@pytest.mark.parametrize("module", [name for name in MODULES if LAYER.get(name) == 3])
def test_the_session_waits_by_its_clock_only(module: str) -> None:
    """Layer 3 takes no timeouts or sleeps from the loop, which a fake clock cannot move."""
    used = asyncio_calls((ROOT / f"{module}.py").read_text(encoding="utf-8"))

    assert set() == used & {"sleep", "timeout", "timeout_at"}


def test_the_pure_modules_are_the_ones_gated() -> None:
    """The coverage gate and the mutation run have exactly the modules of layers 0 and 1."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))

    assert sorted(f"{PACKAGE}/{name}.py" for name in PURE) == sorted(
        settings["tool"]["mutmut"]["only_mutate"]
    )


def test_there_are_two_extras() -> None:
    """One may ask for the command line, or for all that the tests need."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))

    assert {"cli", "dev"} == set(settings["project"]["optional-dependencies"])


def test_importing_the_package_imports_no_edge() -> None:
    """Whoever only wants the client pays for no server, no terminal and no simulator."""
    edges = (f"{PACKAGE}.{module}" for module in ("cli", "simulator", "webhook"))
    heavy = ["click", "rich", "aiohttp.web", *edges]
    program = f"import sys, {PACKAGE}; print([m for m in {heavy!r} if m in sys.modules])"

    done = subprocess.run(  # noqa: S603 - our own interpreter and our own text
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )

    assert "[]" == done.stdout.strip()
