"""What importers and capture share about ids and bags."""

import numpy as np
import numpy.typing as npt

from tiermem.data.accesses import Bags
from tiermem.errors import InputError

__all__ = ["ROWS_MAX", "cut_as_torch", "empty_bags", "first_outside"]

Ids = npt.NDArray[np.int64]

ROWS_MAX = 2**40
"""An id that is not below it is taken for a hash, or for damage, and not for a row number."""


def first_outside(ids: Ids, rows: int) -> int | None:
    """Position of the first of ids int64 [L] that is not in [0, rows), if there is one."""
    if len(ids) == 0 or (ids.min() >= 0 and ids.max() < rows):
        return None
    return int(np.flatnonzero((ids < 0) | (ids >= rows))[0])


def empty_bags() -> Bags:
    """No bags."""
    none = np.empty(0, dtype=np.int64)
    return Bags(none, none)


def cut_as_torch(ids: Ids, offsets: Ids, *, include_last_offset: bool) -> Bags:
    """Bags as `torch.nn.functional.embedding_bag` looks them up.

    Args:
        ids: int64 [L].
        offsets: int64 [B], or [B + 1] with `include_last_offset`, and then ids after the last one are no
            accesses. Without any offset none are.
        include_last_offset: as for torch.

    Raises:
        InputError: if offsets do not start at 0, fall, or pass the end of the ids. Torch does not notice the
            second and adds up rows from elsewhere.
    """
    if len(offsets) == 0:
        return empty_bags()
    if not include_last_offset:
        return Bags.from_offsets(ids, offsets)
    last = int(offsets[-1])
    if not 0 <= last <= len(ids):
        raise InputError(f"the last offset is {last}; it must be in [0, {len(ids)}], the number of ids")
    if len(offsets) == 1:
        return empty_bags()
    return Bags.from_offsets(ids[:last], offsets[:-1])
