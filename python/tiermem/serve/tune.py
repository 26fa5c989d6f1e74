"""The search for the highest load within a bound: one setting at a time, keeping what helps."""

import dataclasses
from collections.abc import Callable, Iterator

from tiermem.config import ServeConfig, ServePlacement
from tiermem.serve.ablate import Variant, run_variant
from tiermem.serve.tables import ServedTable

__all__ = ["Tried", "Tuned", "tune"]

_GAIN_LEAST = 1.01
"""A rate has to be higher by this to change a setting for: less is within what rates are found to."""


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
    tables: list[ServedTable]
    first: Variant
    best: Variant
    tried: tuple[Tried, ...]

    @property
    def gain(self) -> float:
        """The highest rate over that of the beginning; 0 if the beginning kept no rate."""
        if self.first.result is None or self.best.result is None:
            return 0.0
        return self.best.result.queries_per_s / self.first.result.queries_per_s


@dataclasses.dataclass(frozen=True, slots=True)
class _Point:
    config: ServeConfig
    tables: list[ServedTable]


def _settings(point: _Point) -> Iterator[tuple[str, str, _Point]]:
    """Everything to try around a point: setting, value, and where it leads."""
    config, tune_config = point.config, point.config.tune
    grids = (
        ("memory", "pooled_share", tune_config.pooled_shares),
        ("memory", "pooled_ids_min", tune_config.pooled_ids_mins),
        ("device", "reads_per_table_max", tune_config.reads_per_table_maxima),
        ("device", "reads_max", tune_config.reads_maxima),
    )
    for part, key, values in grids:
        section = getattr(config, part)
        for value in values:
            if value != getattr(section, key):
                changed = config.replace(**{part: section.replace(**{key: value})})
                yield f"{part}.{key}", f"{value:g}", _Point(changed, point.tables)
    if tune_config.placements:
        for number, table in enumerate(point.tables):
            placement: ServePlacement = "fixed" if table.placement != "fixed" else "cached"
            tables = list(point.tables)
            tables[number] = dataclasses.replace(table, placement=placement)
            yield f"placement.{table.name}", placement, _Point(config, tables)


def tune(
    config: ServeConfig,
    tables: list[ServedTable],
    progress: Callable[[Tried], None] | None = None,
) -> Tuned:
    """Finds a configuration in virtual time.

    Args:
        config: where to begin, the bound, and in `tune` what to try.
        tables: of the engine.
        progress: called for each setting that was tried.
    """
    point = _Point(config, tables)
    first = best = run_variant("as given", config, tables)
    tried: list[Tried] = []
    for _ in range(config.tune.rounds):
        changed = False
        for setting, value, _candidate in list(_settings(point)):
            # Around where the search is now: settings that were kept meanwhile stay.
            found = next((p for s, v, p in _settings(point) if (s, v) == (setting, value)), None)
            if found is None:
                continue
            variant = run_variant(f"{setting} = {value}", found.config, found.tables)
            before = best.result.queries_per_s if best.result else 0.0
            rate = variant.result.queries_per_s if variant.result else 0.0
            kept = rate > before * _GAIN_LEAST
            tried.append(
                Tried(
                    setting=setting,
                    value=value,
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
    return Tuned(config=point.config, tables=point.tables, first=first, best=best, tried=tuple(tried))
