"""Arrays of a data set, and how batches are cut out of them.

N = samples, F = dense features, L = ids of one column over all samples together, B = batch.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tiermem.errors import ConfigError

__all__ = ["Batch", "Dataset", "SparseColumn", "Split", "batches", "random_split"]

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Split = npt.NDArray[np.uint8]
"""0 train, 1 validation, 2 test; one per sample."""


@dataclasses.dataclass(frozen=True, slots=True)
class SparseColumn:
    """One categorical feature: a bag of ids per sample."""

    name: str
    rows: int
    """Rows that its table needs; ids are below it."""
    ids: Ids
    """int64 [L]."""
    offsets: Ids
    """int64 [N + 1]: bag of sample n is `ids[offsets[n] : offsets[n + 1]]`."""

    @classmethod
    def one_hot(cls, name: str, rows: int, ids: Ids) -> "SparseColumn":
        """A column with one id per sample."""
        return cls(name, rows, ids, np.arange(len(ids) + 1, dtype=np.int64))

    def take(self, samples: Ids) -> tuple[Ids, Ids]:
        """The bags of some samples: (ids [L'], offsets [B])."""
        starts, ends = self.offsets[samples], self.offsets[samples + 1]
        lengths = ends - starts
        offsets = np.zeros(len(samples), dtype=np.int64)
        np.cumsum(lengths[:-1], out=offsets[1:])
        positions = np.arange(int(lengths.sum()), dtype=np.int64)
        return self.ids[positions + np.repeat(starts - offsets, lengths)], offsets


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Some samples."""

    dense: Floats
    """float32 [B, F]."""
    sparse: tuple[tuple[Ids, Ids], ...]
    """(ids [L'], offsets [B]) of each column."""
    labels: Floats
    """float32 [B], 0 or 1."""


@dataclasses.dataclass(frozen=True, slots=True)
class Dataset:
    """A labelled data set."""

    name: str
    dense: Floats
    """float32 [N, F]; F may be 0."""
    sparse: tuple[SparseColumn, ...]
    labels: Floats
    """float32 [N], 0 or 1."""
    split: Split
    """uint8 [N]."""

    def __len__(self) -> int:
        return len(self.labels)

    def samples(self, part: int) -> Ids:
        """Numbers of the samples of one part of the split, in file order."""
        return np.flatnonzero(self.split == part).astype(np.int64)

    def take(self, samples: Ids) -> Batch:
        """Some samples as a batch."""
        sparse = tuple(column.take(samples) for column in self.sparse)
        return Batch(self.dense[samples], sparse, self.labels[samples])


def batches(dataset: Dataset, samples: Ids, batch_size: int) -> Iterator[Batch]:
    """Batches in the order of `samples`; the last may be smaller."""
    for start in range(0, len(samples), batch_size):
        yield dataset.take(samples[start : start + batch_size])


def random_split(count: int, fractions: tuple[float, float, float], seed: int) -> Split:
    """A random split; the shares are exact up to rounding, the rest goes to the test part."""
    split = np.full(count, 2, dtype=np.uint8)
    order = np.random.default_rng(seed).permutation(count)
    train, validation = round(count * fractions[0]), round(count * fractions[1])
    split[order[:train]] = 0
    split[order[train : train + validation]] = 1
    if fractions[0] > 0 and train == 0:
        raise ConfigError(f"{count} samples are too few for a training share of {fractions[0]}")
    return split
