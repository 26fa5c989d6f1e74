"""A plan file: the placement, what it is predicted to cost, the bound, and the hash of the input."""

import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import tomli_w
from pydantic import Field

from tiermem.config import Config, Hierarchy, Placement, TablePlacement
from tiermem.config.base import load_toml
from tiermem.errors import ConfigError
from tiermem.planner.arrays import Arrays
from tiermem.planner.problem import Assignment, Problem
from tiermem.planner.profile import AccessProfile
from tiermem.planner.solve import Solution
from tiermem.results import digest, write_text

__all__ = [
    "Plan",
    "PlannedTier",
    "assignment_of",
    "input_hash",
    "new_numbers",
    "placement_of",
    "plan_of",
    "run_hierarchy",
]

_DIGITS = 6


class PlannedTier(Config):
    """One tier of a plan."""

    name: str
    """Name, as in the hierarchy."""
    home_bytes: int = Field(ge=0)
    """Of the rows that live here, headers and spare room included."""
    cache_bytes: int = Field(ge=0)
    """Budget of its cache."""
    reads: float = Field(ge=0)
    """Requests of a step; accesses of one page of a memory."""
    writes: float = Field(ge=0)
    """The same for writes."""
    time_ns: float = Field(ge=0)
    """That the device needs for them."""
    hit_rate: float = Field(ge=0, le=1)
    """Of the rows looked for here, the share found here."""


class Plan(Config):
    """A plan file. `placement` can also be given to a store or an experiment by itself."""

    format: Literal[1] = 1
    """Version of the file."""
    planner: str
    """What made it: versions of tiermem and of the solver."""
    input_hash: str
    """Of the profile, the hierarchy, the step and the versions that it was made from."""
    profile: str
    """Origin of the profile, for people."""
    chosen: str
    """Which of the planner's candidates it is."""
    step_ns: float = Field(gt=0)
    """Predicted mean step."""
    parts_ns: dict[str, float]
    """Parts of it: wait, gather, dense, update."""
    samples_per_s: float = Field(gt=0)
    """Predicted throughput."""
    bound_ns: float = Field(gt=0)
    """No plan has a shorter predicted step; with rows in a log it is an estimate."""
    binding: str
    """What the step would be shortened by."""
    milp_gap: float | None = None
    """What the integer program left open when its time was up, relative."""
    baselines_ns: dict[str, float]
    """Predicted steps of the plans that need no planner."""
    tiers: tuple[PlannedTier, ...]
    """The fastest first."""
    renumbered: tuple[str, ...] = ()
    """Tables whose rows get new numbers, by rank of the profile: `new_numbers`."""
    why: dict[str, str]
    """Why each table is where it is."""
    placement: Placement
    """Where tables live."""

    @property
    def gap(self) -> float:
        """The predicted step over the bound, less one."""
        return self.step_ns / self.bound_ns - 1

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan, whole or not at all.

        Raises:
            TiermemError: if it cannot be written.
        """
        write_text(Path(path), tomli_w.dumps(_without_none(self.model_dump(mode="json"))))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a plan.

        Raises:
            ConfigError: names the file, the key, and what is wrong.
        """
        found = Path(path)
        return cls.from_mapping(load_toml(found), where=found.name)

    def check_input(self, problem: Problem) -> None:
        """Refuses another input than the one that the plan was made from.

        Raises:
            ConfigError: says what both hashes are.
        """
        tables = {table.name: table.rows for table in problem.profile.tables}
        for part in self.placement.tables:
            if part.table not in tables:
                raise ConfigError(
                    f'the profile is for other tables: it lacks "{part.table}", which the plan places;'
                    " give the one that the plan was made from"
                )
        now = input_hash(problem)
        if now != self.input_hash:
            raise ConfigError(
                f"the plan is of an input with hash {self.input_hash}, and this one has {now}: profile,"
                " hierarchy, step or versions changed since; plan again"
            )


def _versions() -> str:
    return f"tiermem {metadata.version('tiermem')}, scipy {metadata.version('scipy')}"


def input_hash(problem: Problem) -> str:
    """Of everything that a plan depends on, versions included; 16 hexadecimal digits."""
    return digest(
        {
            "profile": problem.profile.hash(),
            "hierarchy": problem.hierarchy.model_dump(mode="json"),
            "dense_ns": problem.dense_ns,
            "prefetch_distance": problem.prefetch_distance,
            "training": problem.training,
            "steady": problem.steady,
            "life_years": problem.life_years,
            "deduplicated": problem.deduplicated,
            "planner": _versions(),
        }
    )


def plan_of(solution: Solution) -> Plan:
    """The plan of a solution, rounded to six digits."""
    arrays, prediction = solution.arrays, solution.chosen.prediction
    problem, assignment = arrays.problem, solution.chosen.assignment
    return Plan(
        planner=_versions(),
        input_hash=input_hash(problem),
        profile=problem.profile.origin,
        chosen=solution.chosen.name,
        step_ns=_rounded(prediction.step_ns),
        parts_ns={name: _rounded(value) for name, value in prediction.parts.items()},
        samples_per_s=_rounded(problem.profile.bags / prediction.step_ns * 1e9),
        bound_ns=_rounded(solution.bound.step_ns),
        binding=prediction.binding,
        milp_gap=None if solution.milp_gap is None else _rounded(solution.milp_gap),
        baselines_ns={each.name: _rounded(each.prediction.step_ns) for each in solution.baselines},
        tiers=tuple(
            PlannedTier(
                name=tier.name,
                home_bytes=int(tier.home_bytes),
                cache_bytes=tier.cache_bytes,
                reads=_rounded(tier.reads),
                writes=_rounded(tier.writes),
                time_ns=_rounded(tier.time_ns),
                hit_rate=_rounded(min(1.0, tier.hit_rows / tier.probed_rows)) if tier.probed_rows else 0.0,
            )
            for tier in prediction.tiers
        ),
        renumbered=tuple(
            table.name
            for table, is_renumbered in zip(problem.profile.tables, assignment.renumbered, strict=True)
            if is_renumbered
        ),
        why={
            table.name: _why(arrays, assignment, number)
            for number, table in enumerate(problem.profile.tables)
        },
        placement=placement_of(arrays, assignment),
    )


def placement_of(arrays: Arrays, assignment: Assignment) -> Placement:
    """The placement that a store needs for an assignment."""
    parts = []
    names = [tier.name for tier in arrays.tiers]
    for number, table in enumerate(arrays.problem.profile.tables):
        split = int(assignment.split_rows[number])
        ranges = [(1, None)] if split == 0 else [(0, (0, split)), (1, (split, table.rows))]
        for part, rows in ranges:
            home = int(assignment.home[number, part])
            parts.append(
                TablePlacement(
                    table=table.name,
                    rows=rows,
                    home=names[home],
                    cached_by=tuple(
                        names[tier] for tier in range(home) if assignment.cached[number, part, tier]
                    ),
                    caching="exclusive" if assignment.exclusive[number, part] else "inclusive",
                    table_rows=table.rows,
                )
            )
    return Placement(tables=tuple(parts))


def assignment_of(plan: Plan, arrays: Arrays) -> Assignment:
    """The assignment that a plan stands for.

    Raises:
        ConfigError: if it names a tier or a table that is not there.
    """
    names = {tier.name: position for position, tier in enumerate(arrays.tiers)}
    numbers = {table.name: number for number, table in enumerate(arrays.problem.profile.tables)}
    if unknown := [tier.name for tier in plan.tiers if tier.name not in names]:
        raise ConfigError(f'the plan has a tier "{unknown[0]}"; the hierarchy has {", ".join(names)}')
    slowest = len(names) - 1
    home = np.full((arrays.tables, 2), slowest, dtype=np.int64)
    cached = np.zeros((arrays.tables, 2, len(names)), dtype=np.bool_)
    exclusive = np.zeros((arrays.tables, 2), dtype=np.bool_)
    split = np.zeros(arrays.tables, dtype=np.int64)
    for placed in plan.placement.tables:
        number = numbers[placed.table]
        is_first = placed.rows is not None and placed.rows[0] == 0 and placed.rows[1] < arrays.rows[number]
        for part in [0] if is_first else [1] if placed.rows is not None else [0, 1]:
            home[number, part] = names[placed.home]
            cached[number, part] = False
            cached[number, part, [names[tier] for tier in placed.cached_by or ()]] = True
            exclusive[number, part] = placed.caching == "exclusive"
        if is_first and placed.rows is not None:
            split[number] = placed.rows[1]
    caches = np.zeros(len(names), dtype=np.int64)
    for tier in plan.tiers:
        caches[names[tier.name]] = tier.cache_bytes
    is_renumbered = np.array([table.name in plan.renumbered for table in arrays.problem.profile.tables])
    return Assignment(
        renumbered=is_renumbered,
        split_rows=split,
        home=home,
        cached=cached,
        exclusive=exclusive,
        cache_bytes=caches,
    )


def run_hierarchy(hierarchy: Hierarchy, assignment: Assignment) -> Hierarchy:
    """The hierarchy with the cache budgets of an assignment; a tier that caches nothing is only a home."""
    tiers = []
    for position, (tier, nbytes) in enumerate(
        zip(hierarchy.tiers, assignment.cache_bytes.tolist(), strict=True)
    ):
        is_cache = position == 0 or nbytes > 0
        tiers.append(tier.replace(cache=max(1, nbytes) if is_cache else None))
    return hierarchy.replace(tiers=tuple(tiers))


def new_numbers(
    profile: AccessProfile, renumbered: npt.NDArray[np.bool_]
) -> list[npt.NDArray[np.int64] | None]:
    """New number of each row, int64 [rows], of the tables that are renumbered; `None` for the others.

    Rows that the profile ranks come first, by rank; the others follow in order of their number.
    """
    found: list[npt.NDArray[np.int64] | None] = []
    for table, is_renumbered in zip(profile.tables, renumbered, strict=True):
        if not is_renumbered:
            found.append(None)
            continue
        numbers = np.full(table.rows, -1, dtype=np.int64)
        numbers[table.hot_rows] = np.arange(len(table.hot_rows))
        rest = numbers < 0
        numbers[rest] = len(table.hot_rows) + np.arange(int(rest.sum()))
        found.append(numbers)
    return found


def _why(arrays: Arrays, assignment: Assignment, number: int) -> str:
    """One sentence: what the table needs, and what that is worth."""
    table = arrays.problem.profile.tables[number]
    names = [tier.name for tier in arrays.tiers]
    distinct = float(arrays.distinct[number].sum())
    need = distinct * table.row_bytes
    size = table.rows * table.row_bytes
    turnover = f"a step reads {need / size:.2%} of its {size / 1e6:,.1f} MB" if size else "no rows"
    split = int(assignment.split_rows[number])

    def held_by(part: int) -> str:
        home = int(assignment.home[number, part])
        if home == 0:
            return f"resident in {names[0]}"
        caches = [names[tier] for tier in range(home) if assignment.cached[number, part, tier]]
        return f"at home in {names[home]}" + (
            f", cached by {' and '.join(caches)}" if caches else ", not cached"
        )

    if split == 0:
        return f"{turnover}: {held_by(1)}"
    before = np.clip(split - arrays.edges[number, :-1], 0, arrays.segment_rows[number])
    with np.errstate(invalid="ignore"):
        share = np.nan_to_num(before / arrays.segment_rows[number])
    taken = float((arrays.distinct[number] * share).sum()) / max(distinct, 1e-300)
    return (
        f"{turnover}; its hottest {split:,} rows ({split / table.rows:.1%}) take {taken:.0%} of that:"
        f" {held_by(0)}, the others {held_by(1)}"
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _without_none(value: Any) -> Any:  # noqa: ANN401 (a JSON value)
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
