"""
What does importing the package cost over importing its four dependencies?

Decides what is imported with the package and what only when it is asked for: the
database, the events and the records of a ledger are not in every program. Each
import runs in a process of its own, by turns; the figure is of their CPU time.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from typing import Final

from _figures import Figure, main

_DEPENDENCIES: Final = "import aiohttp, attrs, cattrs, yarl"
_OURS: Final = "import kie_wav_async"


def _children_s() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _spend_s(program: str) -> float:
    start_s = _children_s()
    subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603 - our own text
    return _children_s() - start_s


def measure(*, quick: bool) -> list[Figure]:
    """Return the CPU time of an import in units of that of the dependencies."""
    _spend_s(_OURS)  # Leaves the compiled modules behind.
    ratios, costs_s = [], []
    for _ in range(1 if quick else 30):
        cost_s = _spend_s(_OURS)
        ratios.append(cost_s / max(_spend_s(_DEPENDENCIES), 1e-3))
        costs_s.append(cost_s)
    return [
        Figure(
            "import kie_wav_async / its dependencies",
            statistics.median(ratios),
            "x",
            at_most=1.15,
            note=f"{statistics.median(costs_s) * 1000:.0f} ms",
        )
    ]


if __name__ == "__main__":
    main(measure)
