"""Tables of 16 times the DRAM budget against all rows in DRAM, with and without prefetch.

Model, batch, tables and trace are those of an experiment file. All rows are materialised first, and the
first quarter of the steps, which fills the cache, is not counted.
"""

from pathlib import Path
from typing import Any

import torch
from tiering_report import Section, Spread, Target, Timed, ratios
from tiermem.config import Experiment
from tiermem.data import load_dataset
from tiermem.study.wall import WallRun, all_in_memory, run_scaled_out

EXPERIMENTS = Path(__file__).resolve().parents[2] / "emulator_configs" / "experiments"
ALL_DRAM, PREFETCHED, ON_DEMAND = "all in DRAM", "tiered, prefetched", "tiered, on demand"
SMALL = (
    "data.samples_max=1280", "data.rows_per_table=8192", "train.batch_size=64", "model.dense_layers=[64]",
    "model.over_layers=[64]", "hierarchy.staging_bytes=524288", "hierarchy.memory_limit_bytes=1064960",
    "budgets.dram=393216",
)  # fmt: skip


def _sides(experiment: Experiment) -> dict[str, Experiment]:
    return {
        ALL_DRAM: all_in_memory(experiment),
        PREFETCHED: experiment,
        ON_DEMAND: experiment.replace(train=experiment.train.replace(prefetch_distance=0)),
    }


def _targets(found: dict[str, list[WallRun]]) -> list[Target]:
    dram, ahead, demand = found[ALL_DRAM], found[PREFETCHED], found[ON_DEMAND]

    def rates(runs: list[WallRun]) -> list[float]:
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
    found: dict[str, list[WallRun]] = {}
    for seed in range(1, repetitions + 1):
        experiment = loaded.replace(seed=seed)
        dataset = load_dataset(experiment.data, seed)
        for side, each in _sides(experiment).items():
            found.setdefault(side, []).append(run_scaled_out(each, dataset))
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
        "steps counted": found[ALL_DRAM][0].steps,
        "repetitions": repetitions,
        "threads": torch.get_num_threads(),
    }
    section = Section(name=name, title=loaded.description, parameters=parameters, targets=_targets(found))
    _describe(section, found)
    return section


def _describe(section: Section, found: dict[str, list[WallRun]]) -> None:
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
    section.add_sides(
        "on this host",
        {side: [Timed(run.wall_s, run.cpu_s, run.steps) for run in runs] for side, runs in found.items()},
    )
    if any(run.late_share > 0.01 for runs in found.values() for run in runs):
        section.notes.append("More than 1 % of the requests of a run were late: it is no valid emulation.")
    section.notes.append("All three sides trained the same bits in every repetition.")
