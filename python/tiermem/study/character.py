"""What tables ask for: bandwidth against size, and how much of it few rows take."""

import dataclasses

import numpy as np
import numpy.typing as npt

from tiermem.config import TableSet
from tiermem.planner.pictures import lru_curve
from tiermem.study.workload import STATE_BYTES, Drift, Workload

__all__ = ["Character", "TablePoint", "characterised"]

_ROW_SHARES = (0.0001, 0.001, 0.01, 0.1)
_BANDWIDTH_SHARE = 0.9
_MOVES = 3
"""A row is read for the forward pass, and read and written by the update."""

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TablePoint:
    """Like tables."""

    tables: int
    nbytes: float
    """Of one."""
    bytes_per_s: float
    """That one is asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Character:
    """A model as it is published."""

    name: str
    tables: int
    nbytes: float
    lookups_per_sample: float
    exponent: float
    points: tuple[TablePoint, ...]
    """By size, the largest first."""
    busy_share: float
    """Of the bytes, the share of the tables that take nine tenths of the bandwidth, the densest first."""
    hottest: tuple[tuple[float, float], ...]
    """(share of the rows, share of the lookups that goes to the hottest of them)."""
    misses: tuple[tuple[float, float], ...]
    """(share of the bytes that an lru cache holds, share of a batch's distinct rows that miss it)."""
    distinct_share: float
    """Of the lookups of a batch, the share that is left when each row is asked for once."""


def characterised(workload: Workload, samples_per_s: float) -> Character:
    """A model at some throughput."""
    tables = TableSet.load(workload.config.name)
    found: dict[tuple[int, float], list[int]] = {}
    for entry in tables.tables:
        nbytes = entry.rows * workload.scale * (entry.row_bytes + STATE_BYTES)
        moved = samples_per_s * entry.pooling * (entry.row_bytes + STATE_BYTES) * _MOVES
        found.setdefault((nbytes, moved), []).append(1)
    points = tuple(
        TablePoint(tables=len(many), nbytes=float(nbytes), bytes_per_s=moved)
        for (nbytes, moved), many in sorted(found.items(), reverse=True)
    )
    hottest, misses, distinct = _locality(workload)
    return Character(
        name=workload.config.name,
        tables=len(tables.tables),
        nbytes=workload.nbytes,
        lookups_per_sample=workload.lookups_per_sample,
        exponent=workload.exponent,
        points=points,
        busy_share=_busy_share(points),
        hottest=hottest,
        misses=misses,
        distinct_share=distinct,
    )


def _busy_share(points: tuple[TablePoint, ...]) -> float:
    by_density = sorted(points, key=lambda point: -point.bytes_per_s / point.nbytes)
    nbytes = np.array([point.tables * point.nbytes for point in by_density])
    moved = np.cumsum([point.tables * point.bytes_per_s for point in by_density])
    # Of the last table as much as is needed.
    wanted = _BANDWIDTH_SHARE * moved[-1]
    taken = np.interp(wanted, np.concatenate([[0], moved]), np.concatenate([[0], np.cumsum(nbytes)]))
    return float(taken / nbytes.sum())


def _locality(
    workload: Workload,
) -> tuple[tuple[tuple[float, float], ...], tuple[tuple[float, float], ...], float]:
    profile = workload.profile(workload.config.batch, Drift())
    rows = np.concatenate([table.segment_rows for table in profile.tables]).astype(np.float64)
    ids = np.concatenate([table.segment_ids for table in profile.tables])
    used = float(sum(table.distinct.sum() for table in profile.tables))
    order = np.argsort(-ids / rows, kind="stable")
    held_rows = np.concatenate([[0.0], np.cumsum(rows[order])]) / rows.sum()
    taken = np.concatenate([[0.0], np.cumsum(ids[order])]) / ids.sum()
    curve = lru_curve(profile)
    return (
        tuple((share, float(np.interp(share, held_rows, taken))) for share in _ROW_SHARES),
        tuple((nbytes / profile.bytes_total, missed) for nbytes, missed in curve),
        used / float(ids.sum()),
    )
