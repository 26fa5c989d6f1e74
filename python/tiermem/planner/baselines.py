"""Plans that need no planner, to compare with: whole tables by a simple order, and everything cached."""

import numpy as np
import numpy.typing as npt

from tiermem.errors import ConfigError
from tiermem.planner.arrays import Arrays
from tiermem.planner.problem import Assignment
from tiermem.planner.rounding import usable

__all__ = ["BASELINES", "baseline"]

BASELINES = ("random", "size", "lookups", "size-lookups", "all-cached")
"""Largest first, as NeuroShard's baselines order tables: at random, by bytes, by dim x pooling, by
dim x pooling x log10 rows; and an lru cache of the whole budget in front of the slowest tier."""


def baseline(arrays: Arrays, name: str, seed: int = 0) -> Assignment:
    """One of `BASELINES`.

    The first tables in its order fill the fastest tier, the next ones the tier below; a table that does not
    fit is passed over. What is left of a budget caches the tables below.

    Raises:
        ConfigError: for another name.
    """
    if name not in BASELINES:
        raise ConfigError(f'"{name}" is no baseline; choose of {", ".join(BASELINES)}')
    tables, tiers = arrays.tables, len(arrays.tiers)
    home = np.full(tables, tiers - 1, dtype=np.int64)
    left = np.array([tier.budget_bytes for tier in arrays.tiers], dtype=np.float64)
    if name != "all-cached":
        # A row in flight needs a place to be cached in.
        left[0] -= arrays.class_row_bytes.sum()
        for table in _order(arrays, name, seed):
            for position in range(tiers - 1):
                nbytes = arrays.rows[table] * arrays.home_bytes_per_row[table, position]
                if nbytes <= left[position]:
                    left[position] -= nbytes
                    home[table] = position
                    break
        left[0] += arrays.class_row_bytes.sum()
    places = np.arange(tiers)
    caches = np.array([tier.has_cache for tier in arrays.tiers])
    cached = (places < home[:, None]) & caches
    return usable(
        arrays,
        Assignment(
            renumbered=np.zeros(tables, dtype=np.bool_),
            split_rows=np.zeros(tables, dtype=np.int64),
            home=np.stack([home, home], axis=1),
            cached=np.stack([cached, cached], axis=1),
            exclusive=np.zeros((tables, 2), dtype=np.bool_),
            cache_bytes=np.where(caches, left, 0).astype(np.int64),
        ),
    )


def _order(arrays: Arrays, name: str, seed: int) -> npt.NDArray[np.int64]:
    bags = arrays.problem.profile.bags
    lookups = arrays.ids.sum(axis=1) / bags * arrays.weight_bytes
    keys = {
        "random": np.random.default_rng(seed).permutation(arrays.tables).astype(np.float64),
        "size": (arrays.rows * arrays.row_bytes).astype(np.float64),
        "lookups": lookups,
        "size-lookups": lookups * np.log10(np.maximum(arrays.rows, 2)),
    }
    return np.argsort(-keys[name], kind="stable")
