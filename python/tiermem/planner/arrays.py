"""A problem as arrays: segments of all tables side by side, and what follows from them before any choice."""

import dataclasses
import functools

import numpy as np
import numpy.typing as npt

from tiermem.config import TierConfig
from tiermem.config.hierarchy import Budget
from tiermem.errors import CapacityError, ConfigError
from tiermem.perf.service import Demand, DeviceService
from tiermem.planner.geometry import block_geometry, log_geometry, pages_of_rows
from tiermem.planner.problem import Assignment, Problem

__all__ = ["Arrays", "Tier"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """One tier, as the planner sees it."""

    name: str
    service: DeviceService
    budget_bytes: int
    """For homes and cache in all."""
    has_cache: bool
    """Whether it may cache what lives below."""
    is_byte: bool
    is_log: bool
    spare: float
    """Of a log: room beyond its rows, as a share of it."""
    segment_bytes: int


def _budget(budget: Budget, bytes_total: int) -> int:
    return int(budget * bytes_total) if isinstance(budget, float) else budget


def _tier(tier: TierConfig, bytes_total: int) -> Tier:
    device = tier.effective_device()
    budget = device.capacity_bytes if tier.cache is None else _budget(tier.cache, bytes_total)
    return Tier(
        name=tier.name,
        service=DeviceService(device),
        budget_bytes=min(budget, device.capacity_bytes),
        has_cache=tier.cache is not None,
        is_byte=device.kind == "byte",
        is_log=tier.effective_layout() == "log",
        spare=tier.log.spare,
        segment_bytes=tier.log.segment_bytes,
    )


class Arrays:
    """T tables, S segments (padded), W windows, K tiers, C classes of rows of one shape.

    Raises:
        ConfigError: if the hierarchy has a single tier.
        CapacityError: if the tables do not fit on the hierarchy whatever the plan; says by how much.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        tables = problem.profile.tables
        if len(problem.hierarchy.tiers) < 2:
            raise ConfigError("with a single tier there is nothing to plan; give a hierarchy of two or more")
        self.tiers = tuple(_tier(tier, problem.profile.bytes_total) for tier in problem.hierarchy.tiers)
        self.tables = len(tables)
        segments = max(len(table.segment_rows) for table in tables)
        self.windows = problem.profile.windows.astype(np.float64)
        shape = (self.tables, segments)
        self.segment_rows = np.zeros(shape)
        self.ids = np.zeros(shape)
        self.distinct = np.zeros(shape)
        self.misses = np.zeros((*shape, len(self.windows)))
        for number, table in enumerate(tables):
            count = len(table.segment_rows)
            self.segment_rows[number, :count] = table.segment_rows
            self.ids[number, :count] = table.segment_ids
            self.distinct[number, :count] = table.distinct
            self.misses[number, :count] = table.misses
        self.rows = np.array([table.rows for table in tables], dtype=np.int64)
        self.row_bytes = np.array([table.row_bytes for table in tables], dtype=np.int64)
        self.weight_bytes = np.array([table.weight_bytes for table in tables], dtype=np.int64)
        if not problem.deduplicated:
            # What caches hold is the same; what is asked of them is not.
            held = self.held
            with np.errstate(invalid="ignore", divide="ignore"):
                repeats = np.where(self.distinct > 0, self.ids / self.distinct, 1.0)
            self.distinct, self.misses = self.distinct * repeats, self.misses * repeats[..., None]
            self.held = held
        shapes = sorted({(table.weight_bytes, table.row_bytes) for table in tables})
        self.classes = len(shapes)
        self.class_of = np.array([shapes.index((table.weight_bytes, table.row_bytes)) for table in tables])
        self.class_row_bytes = np.array([row_bytes for _, row_bytes in shapes], dtype=np.int64)
        self._check_capacity()

    @functools.cached_property
    def edges(self) -> Floats:
        """Rows of the first 0, 1, ... S segments, float64 [T, S + 1]."""
        return np.concatenate([np.zeros((self.tables, 1)), np.cumsum(self.segment_rows, axis=1)], axis=1)

    @functools.cached_property
    def held(self) -> Floats:
        """float64 [T, S, W]: distinct rows that `windows[w]` consecutive batches ask for."""
        bounded: Floats = np.minimum(self.summed(self.misses), self.segment_rows[..., None])
        return bounded

    def summed(self, misses: Floats) -> Floats:
        """Sums of misses [..., W] over the first 0, 1, ... batches, at the windows."""
        steps = np.diff(self.windows)
        before, after = misses[..., :-1], misses[..., 1:]
        # The sum of a straight line over whole numbers, its end left out.
        grown = steps * (before + after) / 2 + (before - after) / 2
        return np.concatenate([np.zeros((*grown.shape[:-1], 1)), np.cumsum(grown, axis=-1)], axis=-1)

    def misses_at(self, window: float) -> Floats:
        """`misses` at any number of batches, float64 [T, S]."""
        return self._between(self.misses, window)

    def held_at(self, window: float) -> Floats:
        """`held` at any number of batches, float64 [T, S]."""
        return self._between(self.held, window)

    def place(self, window: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
        """Between which windows some numbers of batches lie: the upper one, and its weight."""
        upper = np.clip(np.searchsorted(self.windows, window, side="left"), 1, len(self.windows) - 1)
        low, high = self.windows[upper - 1], self.windows[upper]
        return upper, np.clip((window - low) / (high - low), 0.0, 1.0)

    def _between(self, curves: Floats, window: float) -> Floats:
        (upper,), (weight,) = self.place(np.array([window]))
        mixed: Floats = curves[..., upper - 1] * (1 - weight) + curves[..., upper] * weight
        return mixed

    @functools.cached_property
    def rows_per_block(self) -> Floats:
        """float64 [T, K]: rows of a table in a home block of a tier; 1 where it is addressed by bytes."""
        return self._blocks[0]

    @functools.cached_property
    def block_bytes(self) -> Floats:
        """float64 [T, K]: bytes of that block; of a row where the tier is addressed by bytes."""
        return self._blocks[1]

    @functools.cached_property
    def home_bytes_per_row(self) -> Floats:
        """float64 [T, K]: bytes on the device for a row at home, spare room of a log included."""
        spare = np.array([1 + tier.spare if tier.is_log else 1.0 for tier in self.tiers])
        per_row: Floats = self.block_bytes / self.rows_per_block * spare
        return per_row

    @functools.cached_property
    def _blocks(self) -> tuple[Floats, Floats]:
        rows = np.ones((self.tables, len(self.tiers)))
        nbytes = np.repeat(self.row_bytes[:, None].astype(np.float64), len(self.tiers), axis=1)
        for position, tier in enumerate(self.tiers):
            if not tier.is_byte:
                of = [(log_geometry if tier.is_log else block_geometry)(int(each)) for each in self.row_bytes]
                rows[:, position], nbytes[:, position] = np.array(of, dtype=np.float64).T
        return rows, nbytes

    @functools.cached_property
    def pages_per_row(self) -> Floats:
        """float64 [T, K]: pages of the device that a row touches."""
        return np.array(
            [
                [pages_of_rows(int(nbytes), tier.service.spec.page_bytes) for tier in self.tiers]
                for nbytes in self.row_bytes
            ]
        )

    def staging_rows(self, assignment: Assignment) -> float:
        """Rows that staging memory holds, all widths together: none has more than it needs."""
        rows = np.stack([assignment.split_rows, self.rows - assignment.split_rows], axis=1)
        of_class = np.zeros(self.classes)
        np.add.at(of_class, self.class_of, (rows * (assignment.home > 0)).sum(axis=1))
        left, total = float(self.problem.hierarchy.staging_bytes), 0.0
        needs = sorted(
            (count * nbytes, nbytes)
            for count, nbytes in zip(of_class, self.class_row_bytes, strict=True)
            if count
        )
        for number, (need, nbytes) in enumerate(needs):
            taken = min(need, left / (len(needs) - number))
            left -= taken
            total += taken / nbytes
        return total

    @functools.cached_property
    def gather_ns(self) -> float:
        """Reading the weights of all ids of a step in the fastest tier, table after table."""
        return self._memory_ns(self.ids.sum(axis=1), self.weight_bytes, reads=True)

    @functools.cached_property
    def update_ns(self) -> float:
        """Reading and writing each distinct row of a step in the fastest tier; nothing without training."""
        if not self.problem.training:
            return 0.0
        rows = self.distinct.sum(axis=1)
        return sum(self._memory_ns(rows, self.row_bytes, reads=reads) for reads in (True, False))

    @property
    def host_ns(self) -> float:
        """What a step takes if no row is missing."""
        return self.gather_ns + self.problem.dense_ns + self.update_ns

    def _memory_ns(self, rows: Floats, row_bytes: Integers, *, reads: bool) -> float:
        service = self.tiers[0].service
        pages = np.ceil(row_bytes / service.spec.page_bytes)
        total = 0.0
        for count, each_pages, each_bytes in zip(rows, pages, row_bytes, strict=True):
            if count > 0:
                key = "read" if reads else "write"
                values = {
                    f"{key}s": count,
                    f"{key}_bytes": count * each_bytes,
                    f"{key}_accesses": count * each_pages,
                }
                total += service.burst_ns(Demand(**values))
        return total

    def _check_capacity(self) -> None:
        fastest, needed = self.tiers[0], int(self.class_row_bytes.sum())
        if fastest.budget_bytes < needed:
            raise CapacityError(
                f'tier "{fastest.name}" has a budget of {fastest.budget_bytes:,} bytes, and a cached row of'
                f" each width takes {needed:,}: {needed - fastest.budget_bytes:,} too few; raise it"
            )
        room = sum(tier.budget_bytes for tier in self.tiers)
        least = float((self.rows[:, None] * self.home_bytes_per_row).min(axis=1).sum())
        if least > room:
            slowest = self.tiers[-1].name
            raise CapacityError(
                f"the tables need {least:,.0f} bytes and all tiers together have {room:,}:"
                f' {least - room:,.0f} too few; use a larger device for tier "{slowest}", or fewer rows'
            )
