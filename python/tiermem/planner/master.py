"""The small linear program that mixes assignments; its duals are prices of bytes and of device time."""

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

from tiermem.perf.service import READ_STAGES, WRITE_STAGES
from tiermem.planner.arrays import Arrays
from tiermem.planner.costs import STAGES

__all__ = ["Column", "Limit", "Master", "Prices", "limits"]

Floats = npt.NDArray[np.float64]
_INFEASIBLE = 1e3


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """What the step time would gain."""

    bytes: Floats
    """Nanoseconds of a step for a byte of each tier, float64 [K]."""
    reads: Floats
    """Weight of the time for which reads keep each stage busy, float64 [K, G]."""
    writes: Floats
    """The same for writes."""
    constant_ns: float
    """What the weighted limits add up to by themselves."""

    def mixed(self, other: "Prices", share: float) -> "Prices":
        """So much of these, and the rest of the others."""
        keys = ("bytes", "reads", "writes", "constant_ns")
        return Prices(*(share * getattr(self, key) + (1 - share) * getattr(other, key) for key in keys))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Column:
    """What one assignment uses."""

    bytes: Floats
    """float64 [K]."""
    reads: Floats
    """Time for which reads keep each stage busy, float64 [K, G]."""
    writes: Floats
    """The same for writes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """A step lasts at least as long as reads keep one stage busy, then writes another, and a constant."""

    tier: int
    read_stage: int | None
    write_stage: int | None
    constant_ns: float


def limits(arrays: Arrays) -> list[Limit]:
    """All limits of a step but that of memory and dense work."""
    found = []
    for position, tier in enumerate(arrays.tiers):
        if position == 0:
            continue
        service = tier.service
        host_ns = arrays.host_ns
        waits = arrays.problem.prefetch_distance == 0
        if service.spec.curves:
            found.append(Limit(position, 0, 0, host_ns if waits else 0.0))
            continue
        reads = [STAGES.index(stage) for stage in READ_STAGES]
        fronts = [STAGES.index(stage) for stage in WRITE_STAGES if stage != "media units"]
        for read, write in itertools.product(reads, fronts):
            drained_ns = service.buffered_ns if STAGES[write] == "write drain" else 0.0
            constant = -service.overlap_ns - drained_ns
            found.append(Limit(position, read, write, constant))
            if waits and tier.is_byte:
                found.append(Limit(position, read, write, constant + host_ns))
        found += [Limit(position, stage, stage, 0.0) for stage in range(len(STAGES))]
        if waits:
            found += [Limit(position, read, None, host_ns) for read in reads]
    return found


class Master:
    """Mixes columns so that the step is short and the budgets hold."""

    def __init__(self, arrays: Arrays) -> None:
        self.host_ns = max(arrays.host_ns, 1.0)
        self.tiers = len(arrays.tiers)
        self.capacity = np.array([float(tier.budget_bytes) for tier in arrays.tiers])
        self.limits = limits(arrays)
        self.columns: list[Column] = []

    def add(self, column: Column) -> None:
        """One more assignment to mix."""
        self.columns.append(column)

    def start(self) -> list[Prices]:
        """Prices to begin with: the slowest tier alone counts, or memory alone."""
        zeros = np.zeros((self.tiers, len(STAGES)))
        slow = zeros.copy()
        slow[-1, 0] = 1.0
        scarce = np.zeros(self.tiers)
        scarce[:-1] = 1e6
        return [Prices(np.zeros(self.tiers), slow, slow, 0.0), Prices(scarce, zeros, zeros, 0.0)]

    def value(self, prices: Prices, answered: float) -> float:
        """The step time that prices prove no plan to be below, if the cheapest costs `answered`."""
        return answered - float(prices.bytes @ self.capacity) + prices.constant_ns

    def solve(self) -> tuple[float, Prices]:
        """The step time of the best mixture, and the prices."""
        count = len(self.columns)
        times = np.array([[_busy(limit, column) for column in self.columns] for limit in self.limits])
        constants = np.array([limit.constant_ns for limit in self.limits])
        times, constants = np.vstack([times, np.zeros(count)]), np.append(constants, self.host_ns)
        scale = max(self.host_ns, float(times.max(axis=0).min()))
        # Variables: the weights of the columns, the step time, bytes that are missing.
        top = np.hstack([times / scale, -np.ones((len(times), 1)), np.zeros((len(times), self.tiers))])
        used = np.array([column.bytes / self.capacity for column in self.columns]).T
        bottom = np.hstack([used, np.zeros((self.tiers, 1)), -np.eye(self.tiers)])
        found = linprog(
            np.concatenate([np.zeros(count), [1.0], np.full(self.tiers, _INFEASIBLE)]),
            A_ub=np.vstack([top, bottom]),
            b_ub=np.concatenate([-constants / scale, np.ones(self.tiers)]),
            A_eq=np.concatenate([np.ones(count), np.zeros(1 + self.tiers)])[None],
            b_eq=[1.0],
            method="highs",
        )
        duals = np.maximum(-np.asarray(found.ineqlin.marginals), 0.0)
        weights, nbytes = duals[: len(times)], duals[len(times) :] * scale / self.capacity
        reads, writes = np.zeros((self.tiers, len(STAGES))), np.zeros((self.tiers, len(STAGES)))
        for limit, weight in zip(self.limits, weights, strict=False):
            if limit.read_stage is not None:
                reads[limit.tier, limit.read_stage] += weight
            if limit.write_stage is not None:
                writes[limit.tier, limit.write_stage] += weight
        step_ns = float(np.asarray(found.fun)) * scale
        return step_ns, Prices(nbytes, reads, writes, float(weights @ constants))


def _busy(limit: Limit, column: Column) -> float:
    reading = 0.0 if limit.read_stage is None else float(column.reads[limit.tier, limit.read_stage])
    writing = 0.0 if limit.write_stage is None else float(column.writes[limit.tier, limit.write_stage])
    return reading + writing
