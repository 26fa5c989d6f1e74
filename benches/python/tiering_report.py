"""Figures of `tiering.py`: repetitions with their spread, targets, and the pages they are shown on."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from markdown import markdown_table


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most of repetitions."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Of at least one value."""
        return cls(tuple(float(value) for value in values))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def text(self, digits: int) -> str:
        """Median (least to most)."""
        middle, least, most = self.median, min(self.values), max(self.values)
        if least == most:
            return f"{middle:,.{digits}f}"
        return f"{middle:,.{digits}f} ({least:,.{digits}f} to {most:,.{digits}f})"

    def document(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
        }


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Of each repetition by itself, both sides of which ran next to each other."""
    return Spread.of([mine / other for mine, other in zip(ours, theirs, strict=True)])


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A condition that was set beforehand, and what was measured."""

    what: str
    measured: Spread
    bound: float
    at_most: bool = False
    digits: int = 2

    @property
    def met(self) -> bool:
        """By the median."""
        middle = self.measured.median
        return middle <= self.bound if self.at_most else middle >= self.bound

    def document(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "measured": self.measured.document(),
            "bound": self.bound,
            "at_most": self.at_most,
            "met": self.met,
        }

    def cells(self) -> tuple[str, ...]:
        sign = "<=" if self.at_most else ">="
        verdict = "met" if self.met else "missed"
        return self.what, self.measured.text(self.digits), f"{sign} {self.bound:g}", verdict


@dataclasses.dataclass(frozen=True, slots=True)
class Timed:
    """What a number of batches took."""

    wall_s: float
    cpu_s: float
    """Processor time of all threads."""
    batches: int


@dataclasses.dataclass(kw_only=True)
class Section:
    """What one section found."""

    name: str
    title: str
    parameters: dict[str, Any]
    targets: list[Target] = dataclasses.field(default_factory=list)
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    tables: list[tuple[tuple[str, ...], list[tuple[str, ...]]]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    """Sides that were left out, and what else a reader has to know."""

    def add_sides(self, kind: str, runs: Mapping[str, Sequence[Timed]]) -> None:
        """A table and the figures of sides that ran the same batches."""
        rows = []
        document: dict[str, Any] = {}
        for side, timed in runs.items():
            wall = Spread.of([each.wall_s * 1e3 / each.batches for each in timed])
            cpu = Spread.of([each.cpu_s * 1e3 / each.batches for each in timed])
            rows.append((side, wall.text(2), cpu.text(2)))
            document[side] = {"wall_ms_per_batch": wall.document(), "cpu_ms_per_batch": cpu.document()}
        self.figures[kind] = document
        self.add_table((f"{kind}, ms a batch", "wall", "processor, all threads"), rows)

    def add_table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of the page."""
        self.tables.append((tuple(heads), [tuple(row) for row in rows]))

    def document(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "parameters": self.parameters,
            "targets": [target.document() for target in self.targets],
            "figures": self.figures,
            "notes": self.notes,
        }

    def lines(self) -> list[str]:
        """Markdown."""
        lines = [f"### {self.name}: {self.title}", ""]
        lines += [", ".join(f"{key} {_shown(value)}" for key, value in self.parameters.items()), ""]
        if self.targets:
            lines += markdown_table(
                ("condition", "measured: median (least to most)", "target", ""),
                [target.cells() for target in self.targets],
            )
        for heads, rows in self.tables:
            lines += markdown_table(heads, rows)
        for note in self.notes:
            lines += [note, ""]
        return lines


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def alternate(sides: Mapping[str, Callable[[int], Timed]], repetitions: int) -> dict[str, list[Timed]]:
    """Runs the sides in turns, and each repetition, whose number they get, begins with another one."""
    found: dict[str, list[Timed]] = {name: [] for name in sides}
    names = list(sides)
    for repetition in range(repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(sides[name](repetition))
    return found


def wall_ratios(runs: Mapping[str, Sequence[Timed]], ours: str, theirs: str) -> Spread:
    """How many times as fast `ours` is as `theirs`."""
    return ratios([each.wall_s for each in runs[theirs]], [each.wall_s for each in runs[ours]])
