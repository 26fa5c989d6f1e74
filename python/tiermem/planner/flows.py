"""Rows of a step: which are hit where, and which go down. Means per step, part by part."""

import dataclasses

import numpy as np
import numpy.typing as npt

from tiermem.planner.arrays import Arrays
from tiermem.planner.geometry import distinct_units
from tiermem.planner.problem import Assignment

__all__ = ["CacheLevel", "Flows", "at_window", "flows"]

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class CacheLevel:
    """One caching tier below memory; each float64 [T, 2], zero for parts that it does not cache."""

    arrive: Floats
    """Rows looked for here."""
    leave: Floats
    """Rows that were not found here."""
    pushed: Floats
    """Rows that leave the tier: as many, once it is full."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Flows:
    """Rows of all parts."""

    rows: Floats
    """Rows of each part, float64 [T, 2]."""
    used: Floats
    """Distinct rows of a step, float64 [T, 2]."""
    memory_misses: Floats
    """Rows that are not in memory, float64 [T, 2]."""
    memory_leaves: Floats
    """Rows that leave memory, float64 [T, 2]: as many, once its cache is full."""
    levels: dict[int, CacheLevel]
    """By tier; only tiers that cache."""
    home_reads: Floats
    """Rows that no cache has, float64 [T, 2]."""
    misses: Floats
    """Rows that none of so many batches before asked for, float64 [T, 2, W]."""
    segment_shares: Floats
    """Of each segment the share in either part, float64 [T, S, 2]."""
    segment_misses: Floats
    """Rows of each segment that are not in memory, float64 [T, S, 2]."""
    windows: Floats
    """How many batches a row stays in the caches after its last use, float64 [T, 2]."""


def flows(arrays: Arrays, assignment: Assignment) -> Flows:
    """Follows the rows of a step from memory down to their homes."""
    first = np.clip(assignment.split_rows[:, None] - arrays.edges[:, :-1], 0, arrays.segment_rows)
    with np.errstate(invalid="ignore"):
        share = np.nan_to_num(first / arrays.segment_rows)
    shares = np.stack([share, 1 - share], axis=2)
    misses = np.einsum("tsp,tsw->tpw", shares, arrays.misses)
    held = np.einsum("tsp,tsw->tpw", shares, arrays.held)
    rows = np.einsum("tsp,ts->tp", shares, arrays.segment_rows)
    below = assignment.home > 0
    in_flight = np.full(rows.shape, float(arrays.problem.prefetch_distance))
    cached = assignment.cached[..., 0] & below
    window, full = _windows(arrays, assignment, 0, cached, rows=rows, held=held, pinned_window=in_flight)
    window = np.maximum(window, in_flight)
    memory_misses = np.where(below, at_window(arrays, misses, window), 0.0)
    memory_window = window
    memory_leaves = np.where(full | ~cached, memory_misses, 0.0)
    arriving, levels = memory_misses, {}
    for position, tier in enumerate(arrays.tiers[1:-1], start=1):
        cached = assignment.cached[..., position] & (assignment.home > position)
        if not tier.has_cache or not cached.any():
            continue
        kept = assignment.exclusive[..., None] & cached[..., None]
        if tier.is_byte:
            held_here = _held_below(arrays, held, window, arriving, kept)
            stays, full = _windows(
                arrays,
                assignment,
                position,
                cached,
                rows=rows,
                held=held_here,
                pinned_window=np.zeros_like(window),
            )
            window = np.where(cached, np.maximum(window, stays), window)
            leaving = np.where(cached, at_window(arrays, misses, window), arriving)
        else:
            leaving = _block_misses(
                arrays,
                assignment,
                position,
                cached,
                rows=rows,
                misses=misses,
                window=window,
                arriving=arriving,
            )
            full = cached
        levels[position] = CacheLevel(
            np.where(cached, arriving, 0.0),
            np.where(cached, leaving, 0.0),
            np.where(cached & full, leaving, 0.0),
        )
        arriving = leaving
    return Flows(
        rows=rows,
        used=misses[..., 0],
        memory_misses=memory_misses,
        memory_leaves=memory_leaves,
        levels=levels,
        home_reads=arriving,
        segment_shares=shares,
        segment_misses=shares * _at_windows(arrays, memory_window),
        misses=misses,
        windows=window,
    )


def at_window(arrays: Arrays, curves: Floats, window: Floats) -> Floats:
    """Each curve of [T, 2, W] at its own window of [T, 2]."""
    upper, weight = arrays.place(window)
    before = np.take_along_axis(curves, (upper - 1)[..., None], axis=2)[..., 0]
    after = np.take_along_axis(curves, upper[..., None], axis=2)[..., 0]
    mixed: Floats = before + weight * (after - before)
    return mixed


def _at_windows(arrays: Arrays, window: Floats) -> Floats:
    """The misses of each segment at the window of either part, float64 [T, S, 2]."""
    parts = [
        at_window(arrays, arrays.misses, np.broadcast_to(window[:, part, None], arrays.misses.shape[:2]))
        for part in (0, 1)
    ]
    return np.stack(parts, axis=2)


def class_rows(arrays: Arrays, nbytes: float, cacheable: Floats) -> Floats:
    """Cached rows of each class, as a store splits a budget: one of each, and the rest by size."""
    row_bytes = arrays.class_row_bytes.astype(np.float64)
    size = cacheable * row_bytes
    left = nbytes - float(row_bytes[cacheable > 0].sum())
    if left < 0 or size.sum() == 0:
        return np.zeros(arrays.classes)
    return np.minimum(np.where(cacheable > 0, 1 + left * size / size.sum() / row_bytes, 0.0), cacheable)


def _windows(
    arrays: Arrays,
    assignment: Assignment,
    position: int,
    cached: npt.NDArray[np.bool_],
    *,
    rows: Floats,
    held: Floats,
    pinned_window: Floats,
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """How many batches a row stays after its last use, and whether its cache is full: [T, 2] each.

    What batches in flight hold does not count in a cache: `pinned_window` of them are left out.
    """
    of_class = np.zeros(arrays.classes)
    np.add.at(of_class, arrays.class_of, np.where(cached, rows, 0.0).sum(axis=1))
    budget = class_rows(arrays, float(assignment.cache_bytes[position]), of_class)
    pinned = at_window(arrays, held, pinned_window)
    window, full = np.zeros(rows.shape), np.zeros(rows.shape, dtype=np.bool_)
    for number in range(arrays.classes):
        members = cached & (arrays.class_of == number)[:, None]
        if not members.any():
            continue
        curve = held[members].sum(axis=0)
        target = budget[number] + pinned[members].sum()
        stays = np.interp(target, curve, arrays.windows) if target < curve[-1] else arrays.windows[-1]
        window[members] = stays
        full[members] = arrays.problem.steady or target < curve[-1]
    return window, full


def _held_below(
    arrays: Arrays, held: Floats, window: Floats, arriving: Floats, exclusive: npt.NDArray[np.bool_]
) -> Floats:
    """Rows that a cache below memory has after so many batches, float64 [T, 2, W].

    It sees a row when the row misses above, and again when it leaves changed, `window` batches after its last
    use. An exclusive one has it from then on only; an inclusive one has a copy of what came in lately too.
    """
    grid, above_window = arrays.windows, window[..., None]
    above = at_window(arrays, held, window)[..., None]
    later = np.maximum(held - above, 0.0)
    since = np.maximum(grid - above_window, 0.0) if arrays.problem.training else grid
    copies = arriving[..., None] * np.minimum(since, above_window)
    return np.where(exclusive, later, later + copies)


def _block_misses(
    arrays: Arrays,
    assignment: Assignment,
    position: int,
    cached: npt.NDArray[np.bool_],
    *,
    rows: Floats,
    misses: Floats,
    window: Floats,
    arriving: Floats,
) -> Floats:
    """Rows whose block an lru cache of blocks lacks: a block is used as often as its rows together."""
    grid = arrays.windows
    at_home = np.take_along_axis(arrays.rows_per_block, assignment.home, axis=1)
    block_bytes = np.take_along_axis(arrays.block_bytes, assignment.home, axis=1)
    blocks = rows / at_home
    used = distinct_units(arriving, blocks)
    # A block that nobody used for w batches: none of its rows was.
    survives = np.stack(
        [
            np.where(arriving > 0, at_window(arrays, misses, np.maximum(window, each * at_home)), 0.0)
            / np.maximum(arriving, 1e-300)
            for each in grid
        ],
        axis=2,
    )
    held = arrays.summed(used[..., None] * survives)
    held = np.minimum(held, blocks[..., None])
    slot = float(block_bytes[cached].max())
    curve = held[cached].sum(axis=0)
    target = assignment.cache_bytes[position] / slot
    stays = np.interp(target, curve, grid) if target < curve[-1] else grid[-1]
    share = at_window(arrays, survives, np.full(window.shape, stays))
    return np.where(cached, arriving * share, arriving)
