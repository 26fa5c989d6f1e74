"""What a trace consists of: tables, and batches of bags of ids for each of them.

B = bags of one table in one batch, L = ids of those bags together.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from tiermem.errors import InputError

__all__ = ["ROW_BYTES_ASSUMED", "Bags", "Source", "TraceTable", "flat_bags"]

Ids = npt.NDArray[np.int64]

ROW_BYTES_ASSUMED = 256
"""64 columns of fp32: what a row is taken to be where a trace does not say (assumed)."""


@dataclasses.dataclass(frozen=True, slots=True)
class TraceTable:
    """One embedding table of a trace."""

    name: str
    rows: int
    """Ids are below it."""
    row_bytes: int = ROW_BYTES_ASSUMED
    """Bytes of one row's image."""


@dataclasses.dataclass(frozen=True, slots=True)
class Bags:
    """The bags of one table in one batch; a bag may be empty."""

    lengths: Ids
    """int64 [B]."""
    ids: Ids
    """int64 [L], bag after bag; `lengths.sum() == L`."""

    @classmethod
    def from_offsets(cls, ids: Ids, offsets: Ids) -> "Bags":
        """Bags given by their starts: offsets int64 [B], as `torch.nn.EmbeddingBag` takes them."""
        lengths = np.diff(offsets, append=len(ids))
        if len(offsets) and offsets[0] != 0:
            raise InputError(f"the first offset is {offsets[0]}; bags start at 0")
        if (lengths < 0).any():
            bag = int(np.flatnonzero(lengths < 0)[0])
            raise InputError(
                f"bag {bag} has {lengths[bag]} ids: offsets must not fall, nor pass the end of the ids"
            )
        return cls(lengths.astype(np.int64), ids.astype(np.int64, copy=False))


Batch = tuple[Bags, ...]
"""One entry per table, in the order of the tables."""


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where batches come from: `batches()` starts again from the first one each time."""

    tables: tuple[TraceTable, ...]
    batches: Callable[[], Iterator[Batch]]


def flat_bags(ids: Ids) -> Bags:
    """One id per bag."""
    return Bags(np.ones(len(ids), dtype=np.int64), ids)
