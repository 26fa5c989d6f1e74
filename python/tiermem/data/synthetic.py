"""Synthetic data with planted structure, so that there is something to learn."""

from collections.abc import Callable

import numpy as np

from tiermem.config.experiment import SyntheticData
from tiermem.data.dataset import Dataset, Floats, SparseColumn, Split
from tiermem.data.hashing import hash_rows, mix, unit_interval

__all__ = ["make_synthetic", "planted_labels"]

_LOGIT_SCALE = 3.0


def planted_labels(columns: tuple[SparseColumn, ...], samples: int, seed: int) -> Floats:
    """Labels drawn from a logistic model whose weight of a row follows from (seed, column, row).

    The logit is the mean weight of a sample's rows, scaled by the root of their number, so that it
    has the same spread for every bag length.
    """
    total = np.zeros(samples)
    count = np.zeros(samples)
    for position, column in enumerate(columns):
        keys = column.ids.astype(np.uint64) + np.uint64((seed * 1009 + position + 1) << 40)
        weights = unit_interval(mix(keys)) * 2 - 1
        bag = np.repeat(np.arange(samples), np.diff(column.offsets))
        total += np.bincount(bag, weights=weights, minlength=samples)
        count += np.diff(column.offsets)
    logits = _LOGIT_SCALE * total / np.sqrt(np.maximum(count, 1))
    draws = np.random.default_rng(seed).random(samples)
    return (draws < 1 / (1 + np.exp(-logits))).astype(np.float32)


def make_synthetic(config: SyntheticData, split_of: Callable[[int], Split], seed: int) -> Dataset:
    """Bags of Zipf-distributed rows; which row has which rank is a hash."""
    generator = np.random.default_rng(seed)
    weights = np.arange(1, config.rows_per_table + 1, dtype=np.float64) ** -config.zipf_exponent
    cumulative = np.cumsum(weights) / weights.sum()
    ids_each = config.samples * config.ids_per_bag
    offsets = np.arange(config.samples + 1, dtype=np.int64) * config.ids_per_bag
    columns = []
    for table in range(config.tables):
        ranks = np.searchsorted(cumulative, generator.random(ids_each)).astype(np.int64)
        ids = hash_rows(ranks, table, config.rows_per_table)
        columns.append(SparseColumn(f"table_{table}", config.rows_per_table, ids, offsets))
    sparse = tuple(columns)
    labels = planted_labels(sparse, config.samples, seed)
    dense = generator.standard_normal((config.samples, 1), dtype=np.float32)
    return Dataset("synthetic", dense, sparse, labels, split_of(config.samples))
