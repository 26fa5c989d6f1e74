"""Models of any size as access profiles of a node, in closed form: only metadata, however large the tables.

A table's rows follow Zipf's law, draws are independent, and in each batch some ranks may pass to other rows.
Nodes hold equal shares of all tables, so that the profile of a node is that of the model, divided.
"""

import dataclasses
import functools
import itertools
import math
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiermem.config import TableSet
from tiermem.config.locality import read_locality_stats
from tiermem.config.study import LocalityConfig, StudyModelConfig
from tiermem.errors import ConfigError
from tiermem.planner.profile import AccessProfile, TableProfile

__all__ = ["Drift", "Group", "Workload", "fitted_exponent", "like_tables", "zipf_misses"]

Floats = npt.NDArray[np.float64]

STATE_BYTES = 4
"""Of a row: row-wise AdaGrad."""
_SUBSEGMENTS = 8
_EXACT_RANKS = 4096
_WINDOWS_LAST = 2**17
# A model of one kind of table is cut so, that a plan may put any share of it somewhere.
_CUTS = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 32)
_BISECTIONS = 60


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """How popularity moves on."""

    turnover: float = 0.0
    """Chance of a rank to pass to a row that was cold, in each batch."""
    batches: int = 0
    """Since the plan was made: what it took for the hottest rows are so much older."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Like tables, planned as one."""

    name: str
    tables: float
    rows: float
    """Of one table, the mean."""
    weight_bytes: int
    """Of a row, the mean."""
    pooling: float
    """Ids of a sample in one table, the mean."""

    @property
    def row_bytes(self) -> int:
        """With optimizer state."""
        return self.weight_bytes + STATE_BYTES

    @property
    def nbytes(self) -> float:
        """Of all rows."""
        return self.tables * self.rows * self.row_bytes


def like_tables(tables: TableSet, groups_max: int, scale: int = 1) -> tuple[Group, ...]:
    """The tables of a set in groups of like width and like use.

    Args:
        tables: the set.
        groups_max: no more groups than this, but for cuts of a single one.
        scale: rows of every table, times this.
    """
    octaves = 1
    while True:
        found: dict[tuple[int, int], list[int]] = {}
        for number, table in enumerate(tables.tables):
            density = math.log2(max(table.pooling, 1e-6) / table.rows)
            key = (math.floor(math.log2(table.row_bytes) / octaves), math.floor(density / (2 * octaves)))
            found.setdefault(key, []).append(number)
        if len(found) <= groups_max or octaves > 64:
            break
        octaves *= 2
    groups = [
        _merged(f"group-{position}", tables, found[key], scale) for position, key in enumerate(sorted(found))
    ]
    if len(groups) > 1:
        return tuple(groups)
    (only,) = groups
    return tuple(
        dataclasses.replace(only, name=f"{only.name}-{number}", tables=only.tables * share)
        for number, share in enumerate(_CUTS)
    )


def _merged(name: str, tables: TableSet, members: list[int], scale: int) -> Group:
    entries = [tables.tables[number] for number in members]
    rows = math.fsum(entry.rows for entry in entries)
    nbytes = math.fsum(entry.rows * entry.row_bytes for entry in entries)
    return Group(
        name=name,
        tables=len(entries),
        rows=scale * rows / len(entries),
        weight_bytes=max(4, 4 * round(nbytes / rows / 4)),
        pooling=math.fsum(entry.pooling for entry in entries) / len(entries),
    )


@functools.lru_cache(maxsize=256)
def _pieces(rows: float, exponent: float, segments: int) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Rows of thin ranges of rank, the share of draws that goes to each, and where each segment begins."""
    edges = np.unique(np.round(np.geomspace(1, rows + 1, segments + 1)))
    fine = np.unique(
        np.concatenate(
            [np.round(np.geomspace(low, high, _SUBSEGMENTS + 1)) for low, high in itertools.pairwise(edges)]
        )
    )
    # The sum of rank^-s over whole ranks: of the first ones as it is, of the others by the midpoint rule.
    exact = np.concatenate([[0.0], np.cumsum(np.arange(1, _EXACT_RANKS + 1) ** -exponent)])
    edge = np.minimum(fine, _EXACT_RANKS + 1).astype(np.int64) - 1
    weights = np.diff(exact[edge]) + np.diff(_integral(np.maximum(fine, _EXACT_RANKS + 1) - 0.5, exponent))
    return fine[1:] - fine[:-1], weights / weights.sum(), np.searchsorted(fine, edges[:-1])


def _integral(rank: Floats, exponent: float) -> Floats:
    """Of rank^-s, but for a constant."""
    if exponent == 1:
        return np.log(rank)
    power: Floats = rank ** (1 - exponent) / (1 - exponent)
    return power


def zipf_misses(
    rows: float, draws: float, exponent: float, windows: Floats, *, segments: int, turnover: float = 0.0
) -> tuple[Floats, Floats, Floats]:
    """One table in the mean batch.

    Args:
        rows: of the table.
        draws: lookups of a batch.
        exponent: of Zipf's law; 0: all rows alike.
        windows: batches, float64 [W].
        segments: ranges of rank that grow geometrically.
        turnover: chance of a rank to pass to another row, in each batch.

    Returns:
        Rows [S], lookups [S], and distinct rows that none of `windows[w]` batches before asked for, [S, W].
    """
    thin_rows, shares, begins = _pieces(rows, exponent, segments)
    rate = draws * shares / thin_rows
    used = -np.expm1(-rate)
    # Of a row that keeps its rank the share that was not asked for in a batch before.
    kept = (1 - turnover) * np.exp(-rate)
    unseen = kept[:, None] ** windows
    if turnover > 0:
        # It may have got its rank u batches ago, and not have been asked for in the u - 1 since.
        fresh = turnover * (1 - unseen) / (1 - kept)[:, None]
        unseen = np.minimum(unseen + fresh, 1.0)
    misses = (thin_rows * used)[:, None] * unseen

    def summed(values: Floats) -> Floats:
        total: Floats = np.add.reduceat(values, begins, axis=0)
        return total

    return summed(thin_rows), summed(draws * shares), summed(misses)


def fitted_exponent(locality: LocalityConfig, rows: float) -> float:
    """The exponent at which a table of so many rows reuses them as the mean published table does.

    Raises:
        ConfigError: if there is no such batch.
    """
    folder = Path(str(resources.files("tiermem"))) / "emulator_configs" / "traces"
    stats = read_locality_stats(folder / locality.stats)
    if locality.entry not in stats:
        raise ConfigError(f'{locality.stats} has no batch "{locality.entry}"; it has {", ".join(stats)}')
    batch = stats[locality.entry]
    draws, wanted = batch.indices / locality.tables, batch.rows / locality.tables
    at_once = np.zeros(1)
    low, high = 0.0, locality.exponent_max
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        _, _, misses = zipf_misses(rows, draws, middle, at_once, segments=32)
        low, high = (middle, high) if misses.sum() > wanted else (low, middle)
    return (low + high) / 2


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A model at some scale."""

    config: StudyModelConfig
    scale: int
    groups: tuple[Group, ...]
    exponent: float
    """Of all tables: that of the mean table, before it is scaled."""
    dims: int
    """Columns of all tables together."""
    segments: int

    @classmethod
    def of(
        cls,
        config: StudyModelConfig,
        locality: LocalityConfig,
        *,
        scale: int,
        groups_max: int,
        segments: int,
    ) -> "Workload":
        """The model of a study.

        Raises:
            ConfigError: if there is no such table set.
        """
        tables = TableSet.load(config.name)
        return cls(
            config=config,
            scale=scale,
            groups=like_tables(tables, groups_max, scale),
            exponent=fitted_exponent(locality, tables.rows_total / len(tables.tables)),
            dims=sum(table.dim for table in tables.tables),
            segments=segments,
        )

    @property
    def nbytes(self) -> float:
        """Of all rows."""
        return math.fsum(group.nbytes for group in self.groups)

    @property
    def lookups_per_sample(self) -> float:
        """Ids of a sample."""
        return math.fsum(group.tables * group.pooling for group in self.groups)

    def profile(self, batch: int, drift: Drift) -> AccessProfile:
        """What a step of so many samples asks for."""
        windows = np.array(_windows(), dtype=np.int64)
        return AccessProfile(
            origin=f"{self.config.name} x{self.scale}",
            bags=batch,
            batches=int(windows[-1]),
            windows=windows,
            tables=tuple(self._table(group, batch, windows, drift) for group in self.groups),
        )

    def _table(self, group: Group, batch: int, windows: npt.NDArray[np.int64], drift: Drift) -> TableProfile:
        rows, ids, misses = zipf_misses(
            group.rows,
            group.pooling * batch,
            self.exponent,
            windows.astype(np.float64),
            segments=self.segments,
            turnover=drift.turnover,
        )
        ids, misses = _aged(rows, ids, drift), _aged(rows, misses, drift)
        whole = np.maximum(1, np.round(rows * group.tables)).astype(np.int64)
        return TableProfile(
            name=group.name,
            rows=int(whole.sum()),
            row_bytes=group.row_bytes,
            weight_bytes=group.weight_bytes,
            pooling=group.pooling,
            coverage=1.0,
            segment_rows=whole,
            segment_ids=ids * group.tables,
            distinct=misses[:, 0] * group.tables,
            misses=misses * group.tables,
            hot_rows=np.zeros(0, dtype=np.int64),
        )


def _aged(rows: Floats, values: Floats, drift: Drift) -> Floats:
    """What each segment is asked for after ranks have passed to other rows: any of the table."""
    stay = (1 - drift.turnover) ** drift.batches
    moved = values.sum(axis=0) * (1 - stay)
    weights = rows / rows.sum()
    spread = weights[:, None] * moved if values.ndim == 2 else weights * moved
    aged: Floats = values * stay + spread
    return aged


def _windows() -> list[int]:
    """0, two an octave up to 16, and one an octave from there."""
    found = [0, 1, 2, 3, 4, 6, 8, 12, 16]
    while found[-1] < _WINDOWS_LAST:
        found.append(found[-1] * 2)
    return found
