"""What a plan looks like as numbers: curves with planned sizes, roofs with loads, tables with homes."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tiermem.perf.service import Demand, DeviceService
from tiermem.planner.arrays import Arrays
from tiermem.planner.evaluate import TierLoad
from tiermem.planner.problem import Assignment
from tiermem.planner.profile import AccessProfile

__all__ = ["home_names", "lru_curve", "planned_sizes", "roof", "tables_by_home", "tier_points"]

_LOOKUP_BYTES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
_MANY = 200_000
_BLOCK_BYTES = 512

Points = list[tuple[float, float]]


def lru_curve(profile: AccessProfile) -> Points:
    """(bytes held, share of a batch's distinct rows that miss) of one lru cache for all tables."""
    windows = profile.windows.astype(np.float64)
    misses = np.zeros(len(windows))
    held = np.zeros(len(windows))
    for table in profile.tables:
        mine = table.misses.sum(axis=0)
        misses += mine
        held += np.minimum(_summed(windows, mine), float(table.rows)) * table.row_bytes
    used = float(sum(table.distinct.sum() for table in profile.tables))
    return [(float(nbytes), float(missed) / used) for nbytes, missed in zip(held, misses, strict=True)]


def _summed(windows: npt.NDArray[np.float64], misses: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sums over the first 0, 1, ... batches, at the windows; straight lines between them."""
    steps = np.diff(windows)
    grown = steps * (misses[:-1] + misses[1:]) / 2 + (misses[:-1] - misses[1:]) / 2
    return np.concatenate([[0.0], np.cumsum(grown)])


def planned_sizes(loads: Sequence[TierLoad]) -> dict[str, tuple[float, float]]:
    """By tier but the slowest: (bytes that it and those above hold, share of a batch's rows that miss)."""
    found: dict[str, tuple[float, float]] = {}
    used, nbytes = loads[0].probed_rows, 0.0
    missed = used
    for load in loads[:-1]:
        nbytes += load.home_bytes + load.cache_bytes
        missed -= load.hit_rows
        if nbytes and used:
            found[load.name] = (float(nbytes), max(0.0, float(missed / used)))
    return found


def roof(service: DeviceService) -> Points:
    """(bytes of a lookup, lookups per second at most) of a device, each lookup a read of its own."""
    is_block = service.spec.kind == "block"
    found = []
    for nbytes in _LOOKUP_BYTES:
        moved = max(nbytes, _BLOCK_BYTES) if is_block else nbytes
        pages = -(-moved // service.spec.page_bytes)
        time_ns = service.sustained_ns(
            Demand(reads=_MANY, read_bytes=_MANY * moved, read_accesses=_MANY * pages)
        )
        found.append((float(nbytes), float(_MANY / time_ns * 1e9)))
    return found


def tier_points(arrays: Arrays, loads: Sequence[TierLoad], step_ns: float) -> dict[str, tuple[float, float]]:
    """By tier that is read: (mean bytes of a read, reads per second); of the fastest, lookups."""
    found = {}
    for position, load in enumerate(loads):
        if position == 0:
            ids = arrays.ids.sum(axis=1)
            count, nbytes = float(ids.sum()), float((ids * arrays.weight_bytes).sum())
        else:
            count, nbytes = load.reads, load.read_bytes
        if count > 0:
            found[load.name] = (nbytes / count, count / step_ns * 1e9)
    return found


def home_names(arrays: Arrays, assignment: Assignment) -> list[str]:
    """By table the tier of its home, or both, the faster first."""
    names = [tier.name for tier in arrays.tiers]
    return [
        names[second] if not split or first == second else f"{names[first]} and {names[second]}"
        for split, (first, second) in zip(assignment.split_rows, assignment.home, strict=True)
    ]


def tables_by_home(arrays: Arrays, assignment: Assignment, step_ns: float) -> dict[str, Points]:
    """By home (bytes, bytes per second asked for) of each table, tiers in their order."""
    nbytes = (arrays.rows * arrays.row_bytes).astype(np.float64)
    moved = arrays.ids.sum(axis=1) * arrays.weight_bytes / step_ns * 1e9
    found: dict[str, Points] = {}
    homes = home_names(arrays, assignment)
    order = {tier.name: position for position, tier in enumerate(arrays.tiers)}
    for name in sorted(set(homes), key=lambda name: (order[name.split(" ")[0]], name)):
        found[name] = [
            (float(size), float(rate))
            for home, size, rate in zip(homes, nbytes, moved, strict=True)
            if home == name and rate > 0
        ]
    return found
