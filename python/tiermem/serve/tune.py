"""The search for the highest load within a bound: one setting at a time, keeping what helps."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from tiermem.config import ServeConfig, ServePlacement
from tiermem.serve.ablate import Variant, run_variant
from tiermem.serve.tables import ServedModel, ServedTable

__all__ = ["Tried", "Tuned", "tune"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """One setting that was tried."""

    setting: str
    value: str
    queries_per_s: float
    """0 if it does not keep the bound, or cannot be."""
    best_before: float
    kept: bool
    problem: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """What a search ended with."""

    config: ServeConfig
    """With the settings that were found."""
    changes: dict[str, dict[str, Any]]
    """Those alone: key and value by section."""
    first: Variant
    best: Variant
    tried: tuple[Tried, ...]

    @property
    def gain(self) -> float:
        """The highest rate over that of the beginning; infinite if that kept none, 1 if none was found."""
        if self.best.result is None:
            return 1.0
        if self.first.result is None:
            return math.inf
        return self.best.result.queries_per_s / self.first.result.queries_per_s


@dataclasses.dataclass(frozen=True, slots=True)
class _Point:
    config: ServeConfig
    model: ServedModel


@dataclasses.dataclass(frozen=True, slots=True)
class _Candidate:
    """A setting to try; `apply` gives the point with it, or `None` if the point has it already."""

    setting: str
    value: str
    apply: Callable[[_Point], _Point | None]


def _of_section(part: str, key: str, value: float) -> _Candidate:
    """A key of a section of the configuration."""

    def apply(point: _Point) -> _Point | None:
        section = getattr(point.config, part)
        if getattr(section, key) == value:
            return None
        return _Point(point.config.replace(**{part: section.replace(**{key: value})}), point.model)

    return _Candidate(f"{part}.{key}", f"{value:g}", apply)


def _other_placement(number: int, table: ServedTable) -> _Candidate:
    """A table in memory that was on the device, or the other way round."""
    placement: ServePlacement = "fixed" if table.placement != "fixed" else "cached"

    def apply(point: _Point) -> _Point:
        tables = list(point.model.tables)
        tables[number] = dataclasses.replace(table, placement=placement)
        config = point.config.replace(placement={**point.config.placement, table.name: placement})
        return _Point(config, point.model.with_tables(tables))

    return _Candidate(f"placement.{table.name}", placement, apply)


def _candidates(point: _Point) -> list[_Candidate]:
    """Everything to try in a round that begins at a point."""
    grid = point.config.tune
    found = [_of_section("memory", "pooled_share", value) for value in grid.pooled_shares]
    found += [_of_section("memory", "pooled_ids_min", value) for value in grid.pooled_ids_mins]
    found += [_of_section("device", "reads_per_table_max", value) for value in grid.reads_per_table_maxima]
    found += [_of_section("device", "reads_max", value) for value in grid.reads_maxima]
    if grid.placements:
        found += [_other_placement(number, table) for number, table in enumerate(point.model.tables)]
    return found


def tune(
    config: ServeConfig,
    model: ServedModel,
    progress: Callable[[Tried], None] | None = None,
) -> Tuned:
    """Finds a configuration in virtual time.

    Args:
        config: where to begin, the bound, and in `tune` what to try.
        model: what the engine serves.
        progress: called for each setting that was tried.
    """
    point = _Point(config, model)
    first = best = run_variant("as given", config, model)
    # Less than this is within what rates are found to.
    least_gain = 1 + config.load.rate_tolerance
    tried: list[Tried] = []
    for _ in range(config.tune.rounds):
        changed = False
        for candidate in _candidates(point):
            # Around where the search is now: settings that were kept meanwhile stay.
            found = candidate.apply(point)
            if found is None:
                continue
            variant = run_variant(f"{candidate.setting} = {candidate.value}", found.config, found.model)
            before = best.result.queries_per_s if best.result else 0.0
            rate = variant.result.queries_per_s if variant.result else 0.0
            kept = rate > before * least_gain
            tried.append(
                Tried(
                    setting=candidate.setting,
                    value=candidate.value,
                    queries_per_s=rate,
                    best_before=before,
                    kept=kept,
                    problem=variant.problem,
                )
            )
            if progress is not None:
                progress(tried[-1])
            if kept:
                point, best, changed = found, variant, True
        if not changed:
            break
    return Tuned(
        config=point.config,
        changes=_changes(config, point.config),
        first=first,
        best=best,
        tried=tuple(tried),
    )


def _changes(before: ServeConfig, after: ServeConfig) -> dict[str, dict[str, Any]]:
    """Keys whose value the search changed."""
    changes: dict[str, dict[str, Any]] = {}
    for part in ("memory", "device", "placement"):
        old, new = (config.model_dump(mode="json")[part] for config in (before, after))
        changed = {key: value for key, value in new.items() if old.get(key) != value}
        if changed:
            changes[part] = changed
    return changes
