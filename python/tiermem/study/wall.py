"""The same in the small, for real: a model whose rows are many times its DRAM, in wall time on this host."""

import dataclasses
import time

import numpy as np
import torch

from tiermem.config import Experiment
from tiermem.data import Dataset, load_dataset
from tiermem.errors import TiermemError
from tiermem.train import Trainer

__all__ = ["WallRun", "WallStudy", "all_in_memory", "run_scaled_out", "run_wall"]

_ROWS_AT_ONCE = 65_536
_WARM_SHARE = 4
_LATE_SHARE_MAX = 0.01


@dataclasses.dataclass(frozen=True)
class _Instant:
    """What clocks and counters said after a step."""

    store_ns: int
    wall_s: float
    cpu_s: float
    counters: dict[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WallRun:
    """One run, after its first quarter. Without a tier below memory what is said of it is 0."""

    samples_per_s: float
    step_ns: float
    """On the store's clock."""
    wait_ns: float
    """Of a step, until its rows were there."""
    missed_share: float
    """Of the unique rows of a batch."""
    device_active_ns: float
    """Per step, of the slowest tier."""
    device_reads: float
    """Per step."""
    device_writes: float
    """Per step."""
    device_bytes: float
    """Read and written, per step."""
    energy_joules: float
    """Of all emulated devices, per step; by the model, not measured."""
    budget_factor: float
    """Bytes of all rows over the memory of the store."""
    late_share: float
    """Of the requests, those that were delivered late: above 0.01 the emulation is not valid."""
    weights_digest: str
    wall_s: float
    cpu_s: float
    """Processor time of all threads."""
    steps: int
    """Counted ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WallStudy:
    """Both sides, in turn."""

    in_memory: tuple[WallRun, ...]
    tiered: tuple[WallRun, ...]

    @property
    def ratios(self) -> list[float]:
        """Throughput of tiered runs over those beside them."""
        return [
            tiered.samples_per_s / memory.samples_per_s
            for tiered, memory in zip(self.tiered, self.in_memory, strict=True)
        ]

    @property
    def is_valid(self) -> bool:
        """Whether the emulated devices were on time."""
        return all(run.late_share <= _LATE_SHARE_MAX for run in self.tiered)


def all_in_memory(experiment: Experiment) -> Experiment:
    """The same with all rows in the fastest tier."""
    hierarchy = experiment.hierarchy
    fastest = hierarchy.tiers[0].replace(cache=None)
    return experiment.replace(
        hierarchy=hierarchy.replace(tiers=(fastest,), memory_limit_bytes=None), budgets={}
    )


def run_wall(experiment: Experiment, repetitions: int) -> WallStudy:
    """Trains all in memory and tiered in turn, each repetition with a seed of its own.

    Raises:
        TiermemError: if the two sides of a repetition trained different bits.
    """
    memory, tiered = [], []
    for seed in range(1, repetitions + 1):
        each = experiment.replace(seed=seed)
        dataset = load_dataset(each.data, seed)
        memory.append(run_scaled_out(all_in_memory(each), dataset))
        tiered.append(run_scaled_out(each, dataset))
        if memory[-1].weights_digest != tiered[-1].weights_digest:
            raise TiermemError(f"seed {seed}: tiered training and training in memory gave different weights")
    return WallStudy(in_memory=tuple(memory), tiered=tuple(tiered))


def run_scaled_out(experiment: Experiment, dataset: Dataset) -> WallRun:
    """Trains one epoch. All rows are materialised first; the first quarter of the steps fills the cache."""
    seen: dict[str, _Instant] = {}
    steps = -(-len(dataset.samples(0)) // experiment.train.batch_size)
    skipped = steps // _WARM_SHARE

    def progress(done: int, total: int, loss: float, rate: float) -> None:  # noqa: ARG001
        if done in (skipped, total):
            seen["end" if done == total else "begin"] = _instant(trainer)

    trainer = Trainer(experiment, dataset, name="scaled-out", progress=progress)
    _materialise(trainer)
    found = trainer.fit()
    begin, end = seen["begin"], seen["end"]
    counted = steps - skipped
    # When the last step ends, no batch is being fetched any more.
    fetched = counted - experiment.train.prefetch_distance
    moved = {key: end.counters[key] - begin.counters[key] for key in end.counters}
    stats = found.stats
    if stats is None:
        raise TiermemError("the run ended without statistics of its store")
    memory = stats.memory
    budget = memory.resident_bytes + memory.cached_bytes + memory.staging_bytes + memory.metadata_bytes
    row_bytes = sum(table.rows * table.dim * 4 for table in trainer.store.tables)
    elapsed_ns = end.store_ns - begin.store_ns
    return WallRun(
        samples_per_s=counted * experiment.train.batch_size * 1e9 / elapsed_ns,
        step_ns=elapsed_ns / counted,
        wait_ns=float(np.mean([step.wait for step in found.steps[skipped:]])),
        missed_share=moved["missed"] / moved["unique"],
        device_active_ns=moved["active_ns"] / counted,
        device_reads=moved["reads"] / fetched,
        device_writes=moved["writes"] / counted,
        device_bytes=moved["bytes"] / counted,
        energy_joules=moved["nanojoules"] / 1e9 / counted,
        budget_factor=row_bytes / budget,
        late_share=stats.lateness.late_share,
        weights_digest=found.weights_digest,
        wall_s=end.wall_s - begin.wall_s,
        cpu_s=end.cpu_s - begin.cpu_s,
        steps=counted,
    )


def _instant(trainer: Trainer) -> _Instant:
    stats = trainer.store.stats()
    counters = {
        "unique": stats.unique_rows,
        "missed": stats.unique_rows - stats.tiers[0].hit_rows - stats.initialised_rows,
        "active_ns": 0,
        "reads": 0,
        "writes": 0,
        "bytes": 0,
        "nanojoules": round(sum(tier.device.energy_joules for tier in stats.tiers) * 1e9),
    }
    if len(stats.tiers) > 1:
        home = stats.tiers[-1].device
        counters.update(
            active_ns=home.active_ns,
            reads=home.reads,
            writes=home.writes,
            bytes=home.read_bytes + home.write_bytes,
        )
    return _Instant(trainer.store.now_ns(), time.perf_counter(), time.process_time(), counters)


def _materialise(trainer: Trainer) -> None:
    """Every row exists before the first step; it costs no virtual time and leaves the cache empty."""
    for table, config in enumerate(trainer.store.tables):
        for start in range(0, config.rows, _ROWS_AT_ONCE):
            count = min(_ROWS_AT_ONCE, config.rows - start)
            generator = torch.Generator().manual_seed(table * 1_000_003 + start)
            values = torch.rand(count, config.dim, generator=generator) - 0.5
            trainer.store.write_rows(table, start, values * (2 * config.rows**-0.5))
