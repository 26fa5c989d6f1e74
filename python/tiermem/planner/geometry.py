"""How a store lays rows out on a device: the twin of `rust_core/src/tier/layout.rs` and `log.rs`."""

import dataclasses
import functools
import math

import numpy as np
import numpy.typing as npt

__all__ = [
    "LOG_PLAN_ROWS",
    "LogShape",
    "block_geometry",
    "distinct_units",
    "log_geometry",
    "log_shape",
    "pages_of_rows",
    "renumbering_bytes",
]

_HEADER_BYTES = 32
_BLOCK_BYTES = 4096
_BLOCK_UNITS_MAX = 64
_WASTE_SHARE_MAX = 0.1
_LOG_BYTES_PER_ROW = 8
_SMALL_ROWS = 2**32
_LOG_RESERVE = 8
_LOG_LOW_WATER = 0.1
_UTILISATION_MAX = 0.98
_BISECTIONS = 60

LOG_PLAN_ROWS = 16_384
"""A plan takes no more rows than this out of memory, or than staging memory holds."""

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@functools.lru_cache(maxsize=4096)
def _geometry(row_bytes: int) -> tuple[int, int]:
    def rows_in(units: int) -> int:
        return max(0, units * _BLOCK_BYTES - _HEADER_BYTES) // row_bytes

    for units in range(1, _BLOCK_UNITS_MAX + 1):
        waste = units * _BLOCK_BYTES - rows_in(units) * row_bytes
        if rows_in(units) > 0 and waste <= units * _BLOCK_BYTES * _WASTE_SHARE_MAX:
            return rows_in(units), units * _BLOCK_BYTES
    units = -(-(row_bytes + _HEADER_BYTES) // _BLOCK_BYTES)
    return rows_in(units), units * _BLOCK_BYTES


def block_geometry(row_bytes: int) -> tuple[int, int]:
    """Rows in a home block of rows in place, and its bytes.

    Example:
        >>> block_geometry(68)
        (59, 4096)
    """
    return _geometry(row_bytes)


def log_geometry(row_bytes: int) -> tuple[int, int]:
    """Rows in a block of a log, each with its name, and the block's bytes."""
    return _geometry(row_bytes + _LOG_BYTES_PER_ROW)


@dataclasses.dataclass(frozen=True, slots=True)
class LogShape:
    """A log: segments in all, and what fits in one."""

    segments: int
    blocks_per_segment: int
    rows_per_segment: int

    def moved_per_row(self, live_rows: float) -> float:
        """Rows that compaction moves for each row appended, in the steady state.

        It begins when few segments are free. Greedy cleaning of random overwrites: at utilisation u the
        cleaned segment has a share v of living rows with u = (v - 1) / ln v, and v / (1 - v) rows are moved
        for each one written.
        """
        free = _LOG_RESERVE + _LOG_LOW_WATER * self.segments
        utilisation = live_rows / (self.rows_per_segment * max(1.0, self.segments - free))
        if utilisation >= _UTILISATION_MAX:
            return 1 / (1 - _UTILISATION_MAX)
        low, high = 1e-12, 1 - 1e-12
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if (middle - 1) / math.log(middle) < utilisation else (low, middle)
        return low / (1 - low)


def log_shape(
    rows: int, row_bytes: int, *, spare: float, segment_bytes: int, plan_rows: int, row_tiers: int
) -> LogShape:
    """The log of so many rows.

    Args:
        rows: of all tables that share it.
        row_bytes: bytes of a row's image.
        spare: room beyond that of the rows, as a share of it.
        segment_bytes: bytes of a segment.
        plan_rows: rows that one plan may take out of memory.
        row_tiers: byte-addressable tiers of the hierarchy: each may push a row out for one that comes in.
    """
    per_block, block_bytes = log_geometry(row_bytes)
    blocks = max(1, segment_bytes // block_bytes)
    per_segment = per_block * blocks
    appended = min(plan_rows, rows) * row_tiers
    working = 2 * -(-appended // per_segment) + _LOG_RESERVE + 2
    return LogShape(math.ceil(rows * (1 + spare) / per_segment) + working, blocks, per_segment)


def distinct_units(accesses: Floats, units: Floats) -> Floats:
    """Units (blocks) that so many accesses to random ones touch, each counted once: U (1 - exp(-a / U))."""
    full = np.maximum(units, 1e-300)
    return np.where(units > 0, -full * np.expm1(-accesses / full), 0.0)


def pages_of_rows(row_bytes: int, page_bytes: int) -> float:
    """Mean pages that a row touches if rows follow one another without gaps.

    Example:
        >>> pages_of_rows(256, 64), pages_of_rows(68, 64)
        (4.0, 2.0)
    """
    step = math.gcd(row_bytes, page_bytes)
    return 1 + (row_bytes - step) / page_bytes


def renumbering_bytes(rows: Integers) -> Integers:
    """Memory of the new number of each row of a table: 4 bytes, 8 from 2^32 rows on."""
    return rows * np.where(rows < _SMALL_ROWS, 4, 8)
