"""What a plan is for: an access profile, a hierarchy with budgets, and how a step runs."""

import dataclasses

import numpy as np
import numpy.typing as npt

from tiermem.config import Hierarchy
from tiermem.planner.profile import AccessProfile

__all__ = ["Assignment", "Problem"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Problem:
    """Everything that a plan depends on.

    The `cache` budget of a tier of the hierarchy is what the planner may use of it in all, for homes and
    cache; the slowest tier has its whole device.
    """

    profile: AccessProfile
    hierarchy: Hierarchy
    dense_ns: int
    """Dense work of a step."""
    prefetch_distance: int = 1
    """Batches fetched ahead; 0: only when they are needed."""
    training: bool = True
    """Whether rows are updated."""
    steady: bool = True
    """Whether caches are full; otherwise one that the profiled batches do not fill lets nothing go."""
    life_years: int = 0
    """How long devices must last at the rate at which a step writes to them; 0: no limit."""
    deduplicated: bool = True
    """Whether a batch asks for a row once, however often it looks the row up."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Assignment:
    """Homes and caches. T tables, K tiers; tier 0 is the fastest, and a home there is resident."""

    renumbered: npt.NDArray[np.bool_]
    """bool [T]: whether the rows of a table lie by rank; otherwise they lie by their number."""
    split_rows: npt.NDArray[np.int64]
    """int64 [T]: so many rows are the first part, the others the second; 0 without new numbers."""
    home: npt.NDArray[np.int64]
    """int64 [T, 2]: the tier of either part."""
    cached: npt.NDArray[np.bool_]
    """bool [T, 2, K]: which tiers cache the part, all above its home."""
    exclusive: npt.NDArray[np.bool_]
    """bool [T, 2]: whether a row of the part is in one tier of rows at a time."""
    cache_bytes: npt.NDArray[np.int64]
    """int64 [K]: budget of cached rows of each tier; 0 for none."""
