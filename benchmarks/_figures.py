"""What the benchmarks share: a figure, its target, and how a table of them looks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@attrs.frozen
class Figure:
    """
    One thing measured.

    Attributes:
        name: What it is; the same in every run, so that runs can be compared.

        value: The number.

        unit: Of *value*.

        at_most: The target, if less is better and there is one.

        at_least: The target, if more is better and there is one.

        note: What helps to read it.
    """

    name: str
    value: float
    unit: str
    at_most: float | None = attrs.field(default=None, kw_only=True)
    at_least: float | None = attrs.field(default=None, kw_only=True)
    note: str = attrs.field(default="", kw_only=True)

    @property
    def target(self) -> str:
        """The target as one reads it; empty if there is none."""
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"

    @property
    def is_met(self) -> bool:
        """Whether the target is met; nothing to meet is met."""
        too_much = self.at_most is not None and self.value > self.at_most
        too_little = self.at_least is not None and self.value < self.at_least
        return not (too_much or too_little)


def show(figures: Sequence[Figure], saved: dict[str, float] | None = None) -> None:
    """Print *figures* as a table, beside those of a *saved* run if there is one."""
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        verdict = "" if not figure.target else "met" if figure.is_met else "MISSED"
        line = f"{figure.name:{width}}  {figure.value:9.3f} {figure.unit:6}"
        line += f" {figure.target:8} {verdict:6}"
        if saved is not None:
            before = saved.get(figure.name)
            line += "   new   " if not before else f" {figure.value / before - 1:+8.1%}"
        print(f"{line}  {figure.note}".rstrip())


def main(*measures: Callable[..., list[Figure]]) -> None:
    """Run benchmarks from the command line: measure, print, save, compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--quick", action="store_true", help="see that it runs; the figures are noise"
    )
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the figures as JSON")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="show the change since then")
    options = parser.parse_args()
    figures = []
    for measure in measures:
        figures += measure(quick=options.quick)
    saved = json.loads(options.compare.read_text()) if options.compare else None
    show(figures, saved)
    if options.save:
        options.save.write_text(json.dumps({f.name: f.value for f in figures}, indent=1) + "\n")
