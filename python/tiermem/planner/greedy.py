"""The greedy fill: rows by how much device time a byte of them saves, into the fastest tier that has room."""

import numpy as np

from tiermem.planner.arrays import Arrays
from tiermem.planner.costs import RowCosts
from tiermem.planner.geometry import renumbering_bytes
from tiermem.planner.problem import Assignment
from tiermem.planner.rounding import filled

__all__ = ["greedy"]


def greedy(arrays: Arrays, costs: RowCosts) -> Assignment:
    """Segments, densest first, fill the tiers from the fastest to the slowest.

    Optimal for one sum of costs that factorise (density x tier cost), since that is a transport problem of
    Monge's kind; a good start otherwise. A table keeps its fastest and its slowest home.
    """
    slowest = len(arrays.tiers) - 1
    ahead = float(arrays.problem.prefetch_distance)
    row_ns = costs.read[:, slowest].max(axis=1)
    if arrays.problem.training:
        row_ns = row_ns + costs.write[:, slowest].max(axis=1)
    missed = arrays.misses_at(ahead)
    size = arrays.segment_rows * arrays.row_bytes[:, None]
    density = np.where(size > 0, missed * row_ns[:, None] / np.maximum(size, 1.0), -1.0)
    order = np.argsort(-density, axis=None, kind="stable")
    table, segment = np.unravel_index(order, density.shape)
    tier_of = np.full(density.shape, slowest, dtype=np.int64)
    start = 0
    numbers = renumbering_bytes(arrays.rows)
    for position in range(slowest):
        room = float(arrays.tiers[position].budget_bytes)
        if position == 0:
            room -= float(arrays.class_row_bytes.sum())
        rest = slice(start, None)
        nbytes = (
            arrays.segment_rows[table[rest], segment[rest]] * arrays.home_bytes_per_row[table[rest], position]
        )
        # The first segment of a table here pays for its new numbers.
        _, first = np.unique(table[rest], return_index=True)
        if position == 0:
            nbytes[first] += numbers[table[rest]][first]
        taken = int(np.searchsorted(np.cumsum(nbytes), room, side="right"))
        tier_of[table[start : start + taken], segment[start : start + taken]] = position
        start += taken
    has_rows = arrays.segment_rows > 0
    fastest = np.where(has_rows, tier_of, slowest + 1).min(axis=1)
    last = np.where(has_rows, tier_of, -1).max(axis=1)
    # Ranks are not always in order of density: the first run of segments in the fastest tier counts.
    is_first = np.minimum.accumulate(np.where(has_rows, tier_of == fastest[:, None], False), axis=1)  # noqa: FBT003
    split = (arrays.segment_rows * is_first).sum(axis=1).astype(np.int64)
    whole = (fastest == last) | (split == 0)
    home = np.stack([np.where(whole, last, fastest), last], axis=1)
    split = np.where(whole, 0, split)
    caches = np.array([tier.has_cache for tier in arrays.tiers])
    cached = np.zeros((arrays.tables, 2, slowest + 1), dtype=np.bool_)
    cached[..., 0] = caches[0] & (home > 0)
    cache_bytes = np.zeros(slowest + 1, dtype=np.int64)
    cache_bytes[0] = int(arrays.class_row_bytes.sum())
    return filled(
        arrays,
        Assignment(
            renumbered=home[:, 0] != home[:, 1],
            split_rows=split,
            home=home,
            cached=cached,
            exclusive=np.zeros((arrays.tables, 2), dtype=np.bool_),
            cache_bytes=cache_bytes,
        ),
    )
