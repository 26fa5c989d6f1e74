"""Ids and rows that all sides of `tiering.py` get alike."""

import dataclasses

import numpy as np
import numpy.typing as npt
from tiermem.data.hashing import hash_rows

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

ZIPF_EXPONENT = 1.05
_TILE_ROWS = 65_536


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One table and the shape of its batches. Rows are float32."""

    rows: int
    dim: int
    ids_per_batch: int
    ids_per_bag: int

    @property
    def bags(self) -> int:
        return self.ids_per_batch // self.ids_per_bag

    @property
    def image_floats(self) -> int:
        """Weights, then one float of row-wise AdaGrad."""
        return self.dim + 1


def zipf_ids(workload: Workload, batches: int, seed: int) -> Ids:
    """int64 [batches, ids]: ranks by Zipf's law; which row has which rank is a hash."""
    popularity = np.arange(1, workload.rows + 1, dtype=np.float64) ** -ZIPF_EXPONENT
    cumulative = np.cumsum(popularity)
    cumulative /= cumulative[-1]
    draws = np.random.default_rng(seed).random((batches, workload.ids_per_batch))
    ranks = np.searchsorted(cumulative, draws).astype(np.int64)
    return hash_rows(np.minimum(ranks, workload.rows - 1).ravel(), 0, workload.rows).reshape(draws.shape)


def spaced_ids(workload: Workload, batches: int, seed: int, *, spacing: int) -> Ids:
    """int64 [batches, ids]: different multiples of `spacing` in the order of chance, none of them twice."""
    wanted = batches * workload.ids_per_batch
    chosen = np.random.default_rng(seed).permutation(workload.rows // spacing)[:wanted]
    if len(chosen) < wanted:
        raise ValueError(f"{workload.rows} rows have no {wanted} multiples of {spacing}")
    return (chosen * spacing).reshape(batches, workload.ids_per_batch)


class RowSource:
    """The first values of all rows, a chunk at a time."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        generator = np.random.default_rng(7)
        shape = (min(_TILE_ROWS, workload.rows), workload.dim)
        self._tile = generator.random(shape, dtype=np.float32) - np.float32(0.5)

    def chunk(self, start: int) -> Floats:
        """float32 [n, dim] of the rows from `start`, a multiple of the chunk's length, on."""
        rows = self._tile[: self.workload.rows - start]
        return rows + np.float32(start / self.workload.rows)

    def starts(self) -> range:
        """Where the chunks begin."""
        return range(0, self.workload.rows, len(self._tile))


def gradients(workload: Workload) -> Floats:
    """float32 [bags, dim]: the gradient of every batch."""
    generator = np.random.default_rng(11)
    return generator.standard_normal((workload.bags, workload.dim), dtype=np.float32) * np.float32(0.01)
