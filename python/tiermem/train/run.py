"""What one training run did: times, tiers, quality, and the series that plots need."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tiermem.report import TimedStep
from tiermem.stats import StoreStats, TableStats

__all__ = ["STAGES", "Run", "StepTimes", "percentiles"]

STAGES = ("wait", "gather", "dense", "update", "write_back")
"""Parts of a step, in the order in which they happen."""
_STAGE_NAMES = ("wait for prefetch", "gather", "dense forward/backward", "update", "write-back")


@dataclasses.dataclass(frozen=True, slots=True)
class StepTimes:
    """Nanoseconds of one training step, by stage."""

    wait: int
    """Until the rows of the batch were in memory."""
    gather: int
    """Reading and pooling rows."""
    dense: int
    """Dense layers, forward and backward, and their optimizer."""
    update: int
    """Coalescing gradients and updating rows."""
    write_back: int
    """Giving rows back and choosing victims; their transfer is in the background."""

    @property
    def total(self) -> int:
        """The whole step."""
        return self.wait + self.gather + self.dense + self.update + self.write_back


def percentiles(values: Sequence[int]) -> dict[str, int]:
    """p50, p95, p99 of integers, each a value that occurred."""
    if not values:
        return {"p50": 0, "p95": 0, "p99": 0}
    found = np.percentile(np.asarray(values), [50, 95, 99], method="inverted_cdf")
    return {name: int(value) for name, value in zip(("p50", "p95", "p99"), found, strict=True)}


@dataclasses.dataclass(kw_only=True)
class Run:
    """One training run."""

    name: str
    clock: str
    epochs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Training loss and scores, one entry per epoch."""
    steps: list[StepTimes] = dataclasses.field(default_factory=list)
    samples: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)
    hit_rates: list[tuple[int, list[float]]] = dataclasses.field(default_factory=list)
    """(step, hit rate of each tier since the previous entry)."""
    stats: StoreStats | None = None
    table_stats: list[TableStats] = dataclasses.field(default_factory=list)
    latency_cdfs: dict[str, list[tuple[int, float]]] = dataclasses.field(default_factory=dict)
    weights_digest: str = ""
    """SHA-256 over all rows, their optimizer state, and all dense parameters."""
    resumed_from_step: int | None = None
    """The step of the snapshot from which it went on; counters of the store are of the steps after it."""
    step_starts_ns: list[int] = dataclasses.field(default_factory=list)
    """When each step began that this process made, on the store's clock; the last `steps` belong to them."""
    timeline: dict[str, Any] | None = None
    """`EmbeddingStore.timeline()`, if it was asked for; never part of the results."""
    wall_s: float = 0.0
    """Time that the run took on the host; never part of the results of a virtual-time run."""

    @property
    def best_epoch(self) -> int:
        """The epoch with the best validation AUC, counted from 0; the last one without validation."""
        aucs = [epoch["validation"]["auc"] for epoch in self.epochs if "validation" in epoch]
        return int(np.argmax(aucs)) if aucs else len(self.epochs) - 1

    @property
    def test(self) -> dict[str, float] | None:
        """Test scores at the best epoch."""
        scores: dict[str, float] | None = self.epochs[self.best_epoch].get("test") if self.epochs else None
        return scores

    def results(self) -> dict[str, Any]:
        """Integers, counters and decimals; in virtual time the same on every host."""
        if self.stats is None:
            raise ValueError("a run has results after it has ended")
        total_ns = sum(step.total for step in self.steps)
        stages = {
            stage: sum(getattr(step, stage) for step in self.steps) // max(1, len(self.steps))
            for stage in STAGES
        }
        resumed = {} if self.resumed_from_step is None else {"resumed_from_step": self.resumed_from_step}
        return {
            "clock": self.clock,
            **resumed,
            "steps": len(self.steps),
            "samples": self.samples,
            "train_ns": total_ns,
            "samples_per_s": self.samples * 1e9 / total_ns if total_ns else 0.0,
            "step_ns": percentiles([step.total for step in self.steps]),
            "stage_mean_ns": stages,
            "store": store_results(self.stats, self.table_stats),
        }

    def timed_steps(self) -> list[TimedStep]:
        """The steps that this process made, for a timeline."""
        before = len(self.steps) - len(self.step_starts_ns)
        return [
            TimedStep(number, begin_ns, tuple(zip(_STAGE_NAMES, dataclasses.astuple(times), strict=True)))
            for number, (begin_ns, times) in enumerate(
                zip(self.step_starts_ns, self.steps[before:], strict=True), before + 1
            )
        ]

    def quality(self) -> dict[str, Any]:
        """Losses and scores; the same on one host and build."""
        return {
            "epochs": self.epochs,
            "best_epoch": self.best_epoch,
            "test": self.test,
            "weights_digest": self.weights_digest,
        }

    def series(self) -> dict[str, Any]:
        """What plots need besides."""
        assert self.stats is not None, "a run has series after it has ended"  # noqa: S101
        return {
            "tiers": [tier.name for tier in self.stats.tiers],
            "losses": self.losses,
            "hit_rates": self.hit_rates,
            "latency_cdfs": self.latency_cdfs,
        }


def store_results(stats: StoreStats, tables: Sequence[TableStats]) -> dict[str, Any]:
    """The store's statistics with all tables, without what names this host: engines and their fallbacks."""
    values = dataclasses.asdict(stats)
    for tier, source in zip(values["tiers"], stats.tiers, strict=True):
        tier["hit_rate"] = source.hit_rate
        tier["unconditional_hit_rate"] = source.hit_rows / stats.unique_rows if stats.unique_rows else 0.0
        for key in ("engine", "direct", "fallback_reason"):
            tier["device"].pop(key)
    names = [tier.name for tier in stats.tiers]
    values["tables"] = [table_results(table, names) for table in tables]
    return values


def table_results(table: TableStats, tiers: Sequence[str]) -> dict[str, Any]:
    """The counters of one table, with the rates that follow from them and the names of the tiers."""
    values = dataclasses.asdict(table)
    values["deduplicated_rows"] = table.deduplicated_rows
    values["tiers"] = [
        {
            "name": name,
            **counts,
            "conditional_hit_rate": table.conditional_hit_rate(position),
            "unconditional_hit_rate": table.unconditional_hit_rate(position),
        }
        for position, (name, counts) in enumerate(zip(tiers, values["tiers"], strict=True))
    ]
    return values
