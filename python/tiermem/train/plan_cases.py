"""The generator of configurations on which plans are verified: tables, a stream of ids, a hierarchy.

Everything follows from a seed and the number of a case. Half of the cases have independent draws (Zipf over a
random order of the rows), half drift as `tiermem.config.synth.DriftLaw` does. Unlike in a generated trace,
each table has a law of its own.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tiermem.config import Hierarchy, RowWiseAdagrad
from tiermem.data.accesses import Bags, Batch, Source, TraceTable
from tiermem.embedding import TableConfig

__all__ = ["CASES", "CaseTable", "PlanCase", "calibration_cases", "plan_cases"]

Stream = Literal["iid", "drift"]
CASES = 40
_SEED = 8
_CALIBRATION_SEED = 1008

_DRAM = "dram-ddr5-4800"
_DRAM_SHARE = 0.1
_DENSE_NS = 20_000
"""Assumed: small beside the time that devices need, so that the placement is what decides."""
_LR = 0.05
_FLAT_SHARE = 0.15
_ROWS = (2_000, 60_000)
_ROWS_TOTAL = (150_000, 400_000)
_SLOWEST = (
    "optane-p5800x", "optane-p4800x", "nand-pm9a3", "nand-p3700", "xlflash-fl6", "pmem-100", "cxl-asic",
)  # fmt: skip
_BELOW_BYTE = ("optane-p5800x", "nand-pm9a3", "xlflash-fl6")
_HIERARCHIES: tuple[tuple[str, ...], ...] = (
    *((device,) for device in _SLOWEST),
    *itertools.product(("pmem-100", "cxl-asic"), _BELOW_BYTE),
)
"""Devices below DRAM."""

# Purposes of a random stream.
_HIERARCHY, _CASE, _ORDER, _PHASES, _DRAWS = range(5)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CaseTable:
    """One table and its law. The last three are for drifting streams, as in `DriftLaw`."""

    config: TableConfig
    pooling: float
    """Mean ids per bag; a fraction makes some bags one longer."""
    exponent: float
    """Of Zipf, over all rows or the working set; 0: all alike."""
    working_set: float
    """Share of the rows that is asked for at a time."""
    turnover: float
    """Share of the working set that is replaced in each batch."""
    once: float
    """Share of ids that go to any row of the table."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PlanCase:
    """One configuration. Profile, warm-up and measurement are parts of one stream."""

    number: int
    """From 0."""
    seed: int
    """Of the cases."""
    stream: Stream
    tables: tuple[CaseTable, ...]
    bags: int
    """Bags of each table in a batch: the batch size."""
    hierarchy: Hierarchy
    """DRAM has a tenth of all row bytes, a byte-addressable tier below it a fifth to three tenths."""
    prefetch_distance: int
    dense_ns: int = _DENSE_NS
    """Dense work of a step."""
    profile_batches: int = 120
    """From the first one on; the measured ones follow."""
    warm_up_steps: int = 60
    """On the last of the profiled batches."""
    steps: int = 60
    """Measured steps."""

    @property
    def name(self) -> str:
        """Number, stream and tiers, for people."""
        tiers = " > ".join(tier.device.name for tier in self.hierarchy.tiers)
        return f"case {self.number}: {self.stream}, {tiers}"

    @property
    def optimizer(self) -> RowWiseAdagrad:
        """One float of state per row."""
        return RowWiseAdagrad(lr=_LR)

    @property
    def store_tables(self) -> tuple[TableConfig, ...]:
        """For a store."""
        return tuple(table.config for table in self.tables)

    def profile_source(self) -> Source:
        """The batches that a planner may see."""
        tables = tuple(
            TraceTable(table.config.name, table.config.rows, _row_bytes(table.config))
            for table in self.tables
        )
        return Source(tables, functools.partial(self.batches, 0, self.profile_batches))

    def replay_batches(self) -> Iterator[Batch]:
        """Warm-up, measured steps, and what is fetched ahead of the last one: what `replay` takes."""
        first = self.profile_batches - self.warm_up_steps
        return self.batches(first, self.warm_up_steps + self.steps + self.prefetch_distance)

    def batches(self, first: int, count: int) -> Iterator[Batch]:
        """Batches `first ..` of the stream, the same whenever they are asked for."""
        streams = [
            _TableStream(table, (self.seed, self.number, position))
            for position, table in enumerate(self.tables)
        ]
        return (
            tuple(stream.bags(self.bags, number) for stream in streams)
            for number in range(first, first + count)
        )


def plan_cases(seed: int = _SEED, count: int = CASES) -> list[PlanCase]:
    """The first cases of a seed: independent and drifting streams in turn, hierarchies two by two."""
    hierarchies = _generator(seed, 0, 0, _HIERARCHY, 0).permutation(len(_HIERARCHIES))
    return [
        _case(seed, number, _HIERARCHIES[hierarchies[number // 2 % len(hierarchies)]])
        for number in range(count)
    ]


def calibration_cases(count: int = CASES) -> list[PlanCase]:
    """Cases to develop and calibrate the planner on: the same generator, another seed."""
    return plan_cases(_CALIBRATION_SEED, count)


def _case(seed: int, number: int, below: tuple[str, ...]) -> PlanCase:
    draws = _generator(seed, number, 0, _CASE, 0)
    stream: Stream = "iid" if number % 2 == 0 else "drift"
    tables = _tables(draws, stream)
    bags = int(draws.choice((128, 256, 512)))
    prefetch_distance = int(draws.integers(3))
    middle_share = float(draws.uniform(0.2, 0.3))
    tiers: list[dict[str, Any]] = [{"name": "dram", "device": _DRAM, "cache": _DRAM_SHARE}]
    tiers += [{"name": device, "device": device, "cache": middle_share} for device in below[:-1]]
    tiers += [{"name": below[-1], "device": below[-1]}]
    staging_bytes = _staging_bytes(tables, bags, prefetch_distance + 2)
    return PlanCase(
        number=number,
        seed=seed,
        stream=stream,
        tables=tables,
        bags=bags,
        hierarchy=Hierarchy.from_mapping(
            {"tiers": [{**tier, "policy": "lru"} for tier in tiers], "staging_bytes": staging_bytes}
        ),
        prefetch_distance=prefetch_distance,
    )


def _tables(draws: np.random.Generator, stream: Stream) -> tuple[CaseTable, ...]:
    count = int(draws.integers(8, 25))
    rows = _log_uniform(draws, *_ROWS, count)
    while not _ROWS_TOTAL[0] <= rows.sum() <= _ROWS_TOTAL[1]:
        rows = _log_uniform(draws, *_ROWS, count)
    pooling = _log_uniform(draws, 1.0, 20.0, count)
    exponents = np.where(draws.random(count) < _FLAT_SHARE, 0.0, draws.uniform(0.3, 1.3, count))
    dims = draws.choice((16, 32, 64), count)
    is_drift = stream == "drift"
    working_sets = _log_uniform(draws, 0.1, 0.4, count) if is_drift else np.ones(count)
    turnovers = _log_uniform(draws, 0.005, 0.05, count) if is_drift else np.zeros(count)
    once = draws.uniform(0.0, 0.2, count) if is_drift else np.zeros(count)
    return tuple(
        CaseTable(
            config=TableConfig(name=f"table-{number:02}", rows=int(rows[number]), dim=int(dims[number])),
            pooling=float(pooling[number]),
            exponent=float(exponents[number]),
            working_set=float(working_sets[number]),
            turnover=float(turnovers[number]),
            once=float(once[number]),
        )
        for number in range(count)
    )


def _row_bytes(table: TableConfig) -> int:
    return table.weight_bytes + 4 * RowWiseAdagrad(lr=_LR).state_floats(table.dim)


def _staging_bytes(tables: tuple[CaseTable, ...], bags: int, batches: int) -> int:
    """Enough for so many batches: each width of rows gets an equal part at the least."""
    of_width: dict[int, int] = {}
    for table in tables:
        rows = min(table.config.rows, batches * bags * math.ceil(table.pooling))
        nbytes = _row_bytes(table.config)
        of_width[nbytes] = of_width.get(nbytes, nbytes) + rows * nbytes
    return len(of_width) * max(of_width.values())


class _TableStream:
    """Bags of one table. A batch follows from the key and its number."""

    def __init__(self, table: CaseTable, key: tuple[int, int, int]) -> None:
        self.table = table
        self.key = key
        rows = table.config.rows
        self.working_rows = max(1, int(rows * table.working_set))
        weights = np.arange(1, self.working_rows + 1, dtype=np.float64) ** -table.exponent
        self.cumulative = np.cumsum(weights) / weights.sum()
        self.cumulative[-1] = 1.0
        self.order = _generator(*key, _ORDER, 0).permutation(rows)
        # Each place of the working set gets a new row once in 1 / turnover batches; places take turns.
        self.phases = _generator(*key, _PHASES, 0).random(self.working_rows)

    def bags(self, count: int, batch: int) -> Bags:
        table = self.table
        draws = _generator(*self.key, _DRAWS, batch)
        lengths = int(table.pooling) + (draws.random(count) < table.pooling % 1).astype(np.int64)
        ids = int(lengths.sum())
        places = np.searchsorted(self.cumulative, draws.random(ids), side="right")
        generations = (batch * table.turnover + self.phases).astype(np.int64)
        rows = self.order[
            (np.arange(self.working_rows) + self.working_rows * generations) % table.config.rows
        ]
        is_once = draws.random(ids) < table.once
        return Bags(lengths, np.where(is_once, draws.integers(table.config.rows, size=ids), rows[places]))


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def _log_uniform(draws: np.random.Generator, low: float, high: float, count: int) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = np.exp(draws.uniform(math.log(low), math.log(high), count))
    return values
