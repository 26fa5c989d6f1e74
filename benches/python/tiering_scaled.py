"""Tables of 16 times the DRAM budget against all rows in DRAM, with and without prefetch.

Model, batch, tables and trace are those of an experiment file. All rows are materialised first, and the
first quarter of the steps, which fills the cache, is not counted.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiering_report import Section, Spread, Target, Timed, ratios
from tiermem.config import Experiment
from tiermem.data import Dataset, load_dataset
from tiermem.train import Trainer

EXPERIMENTS = Path(__file__).resolve().parents[2] / "emulator_configs" / "experiments"
ALL_DRAM, PREFETCHED, ON_DEMAND = "all in DRAM", "tiered, prefetched", "tiered, on demand"
_ROWS_AT_ONCE = 65_536
_WARM_SHARE = 4
SMALL = (
    "data.samples_max=1280", "data.rows_per_table=8192", "train.batch_size=64", "model.dense_layers=[64]",
    "model.over_layers=[64]", "hierarchy.staging_bytes=524288", "hierarchy.memory_limit_bytes=1064960",
    "budgets.dram=393216",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Instant:
    """What clocks and counters said after a step."""

    store_ns: int
    wall_s: float
    cpu_s: float
    counters: dict[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run, after its first quarter."""

    samples_per_s: float
    step_ns: float
    """On the store's clock."""
    wait_ns: float
    """Of a step, until its rows were there."""
    missed_share: float
    """Of the unique rows of a batch."""
    device_active_ns: float
    """Per step."""
    device_reads: float
    device_writes: float
    budget_factor: float
    """Bytes of all rows over the memory of the store."""
    late_share: float
    weights_digest: str
    timed: Timed


def _instant(trainer: Trainer) -> _Instant:
    stats = trainer.store.stats()
    home = stats.tiers[-1].device
    tiered = len(stats.tiers) > 1
    counters = {
        "unique": stats.unique_rows,
        "missed": stats.unique_rows - stats.tiers[0].hit_rows - stats.initialised_rows,
        "initialised": stats.initialised_rows,
        "active_ns": home.active_ns if tiered else 0,
        "reads": home.reads if tiered else 0,
        "writes": home.writes if tiered else 0,
    }
    return _Instant(trainer.store.now_ns(), time.perf_counter(), time.process_time(), counters)


def _materialise(trainer: Trainer) -> None:
    """Every row exists before the first step; it costs no virtual time and leaves the cache empty."""
    for table, config in enumerate(trainer.store.tables):
        for start in range(0, config.rows, _ROWS_AT_ONCE):
            count = min(_ROWS_AT_ONCE, config.rows - start)
            generator = torch.Generator().manual_seed(table * 1_000_003 + start)
            values = torch.rand(count, config.dim, generator=generator) - 0.5
            trainer.store.write_rows(table, start, values * (2 * config.rows**-0.5))


def run(experiment: Experiment, dataset: Dataset) -> Outcome:
    """Trains one epoch."""
    seen: dict[str, _Instant] = {}
    steps = -(-len(dataset.samples(0)) // experiment.train.batch_size)
    skipped = steps // _WARM_SHARE

    def progress(done: int, total: int, loss: float, rate: float) -> None:  # noqa: ARG001
        if done in (skipped, total):
            seen["end" if done == total else "begin"] = _instant(trainer)

    trainer = Trainer(experiment, dataset, name="bench", progress=progress)
    _materialise(trainer)
    found = trainer.fit()
    begin, end = seen["begin"], seen["end"]
    counted = steps - skipped
    # When the last step ends, no batch is being fetched any more.
    fetched = counted - experiment.train.prefetch_distance
    moved = {key: end.counters[key] - begin.counters[key] for key in end.counters}
    assert moved["initialised"] == 0, "all rows were materialised"
    assert found.stats is not None
    memory = found.stats.memory
    budget = memory.resident_bytes + memory.cached_bytes + memory.staging_bytes + memory.metadata_bytes
    row_bytes = sum(table.rows * table.dim * 4 for table in trainer.store.tables)
    samples = counted * experiment.train.batch_size
    elapsed_ns = end.store_ns - begin.store_ns
    return Outcome(
        samples_per_s=samples * 1e9 / elapsed_ns,
        step_ns=elapsed_ns / counted,
        wait_ns=float(np.mean([step.wait for step in found.steps[skipped:]])),
        missed_share=moved["missed"] / moved["unique"],
        device_active_ns=moved["active_ns"] / counted,
        device_reads=moved["reads"] / fetched,
        device_writes=moved["writes"] / counted,
        budget_factor=row_bytes / budget,
        late_share=found.stats.lateness.late_share,
        weights_digest=found.weights_digest,
        timed=Timed(end.wall_s - begin.wall_s, end.cpu_s - begin.cpu_s, counted),
    )


def _sides(experiment: Experiment) -> dict[str, Experiment]:
    hierarchy = experiment.hierarchy
    fastest = hierarchy.tiers[0].replace(cache=None)
    return {
        ALL_DRAM: experiment.replace(
            hierarchy=hierarchy.replace(tiers=(fastest,), memory_limit_bytes=None), budgets={}
        ),
        PREFETCHED: experiment,
        ON_DEMAND: experiment.replace(train=experiment.train.replace(prefetch_distance=0)),
    }


def _targets(found: dict[str, list[Outcome]]) -> list[Target]:
    dram, ahead, demand = found[ALL_DRAM], found[PREFETCHED], found[ON_DEMAND]

    def rates(runs: list[Outcome]) -> list[float]:
        return [each.samples_per_s for each in runs]

    exposed = [run.wait_ns for run in demand]
    return [
        Target(
            what="prefetched over all in DRAM, samples/s",
            measured=ratios(rates(ahead), rates(dram)),
            bound=0.9,
        ),
        Target(
            what="on demand over all in DRAM, samples/s",
            measured=ratios(rates(demand), rates(dram)),
            bound=0.6,
            at_most=True,
        ),
        Target(
            what="unique rows of a batch that miss DRAM, prefetched, %",
            measured=Spread.of([100 * run.missed_share for run in ahead]),
            bound=20,
            digits=1,
        ),
        Target(
            what="device time, as a step on demand waits for it, over a step all in DRAM",
            measured=ratios(exposed, [run.step_ns for run in dram]),
            bound=0.5,
        ),
        Target(
            what="bytes of rows over the DRAM budget",
            measured=Spread.of([run.budget_factor for run in ahead]),
            bound=16,
        ),
    ]


def scaled_out(name: str, file: str, *, small: bool) -> Section:
    """One experiment file; each repetition has a seed of its own, from 1 on."""
    overrides = list(SMALL) if small else []
    loaded = Experiment.load(EXPERIMENTS / file, overrides)
    repetitions = 1 if small else 5
    found: dict[str, list[Outcome]] = {}
    for seed in range(1, repetitions + 1):
        experiment = loaded.replace(seed=seed)
        dataset = load_dataset(experiment.data, seed)
        for side, each in _sides(experiment).items():
            found.setdefault(side, []).append(run(each, dataset))
        digests = {runs[-1].weights_digest for runs in found.values()}
        assert len(digests) == 1, f"the three sides of seed {seed} trained different bits: {digests}"
    hierarchy = loaded.hierarchy
    home = hierarchy.tiers[-1]
    parameters: dict[str, Any] = {
        "experiment": file,
        "clock": hierarchy.clock,
        "device": home.device.name,
        "queue depth": home.effective_device().queue_depth,
        "batch": loaded.train.batch_size,
        "prefetch distance": loaded.train.prefetch_distance,
        "steps counted": found[ALL_DRAM][0].timed.batches,
        "repetitions": repetitions,
        "threads": torch.get_num_threads(),
    }
    section = Section(name=name, title=loaded.description, parameters=parameters, targets=_targets(found))
    _describe(section, found)
    return section


def _describe(section: Section, found: dict[str, list[Outcome]]) -> None:
    rows = []
    for side, runs in found.items():
        spreads = {
            field: Spread.of([getattr(run, field) for run in runs])
            for field in (
                "samples_per_s", "step_ns", "wait_ns", "missed_share", "device_active_ns", "device_reads",
                "device_writes", "late_share",
            )
        }  # fmt: skip
        section.figures[side] = {field: spread.document() for field, spread in spreads.items()}
        rows.append(
            (
                side,
                spreads["samples_per_s"].text(0),
                Spread.of([run.step_ns / 1e6 for run in runs]).text(2),
                Spread.of([run.wait_ns / 1e6 for run in runs]).text(2),
                spreads["device_reads"].text(0),
                spreads["device_writes"].text(0),
                Spread.of([100 * run.late_share for run in runs]).text(1),
            )
        )
    heads = ("side", "samples/s", "step, ms", "of it waiting, ms", "reads a step", "writes a step", "late, %")
    section.add_table(heads, rows)
    section.add_sides("on this host", {side: [run.timed for run in runs] for side, runs in found.items()})
    if any(run.late_share > 0.01 for runs in found.values() for run in runs):
        section.notes.append("More than 1 % of the requests of a run were late: it is no valid emulation.")
    section.notes.append("All three sides trained the same bits in every repetition.")
