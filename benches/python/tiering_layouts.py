"""Bytes written per trained sample by both home layouts, on NAND and on Optane, in virtual time."""

import time

import torch
from tiering_report import Section, Spread, Target
from tiermem.config import Experiment, Hierarchy
from tiermem.data import Dataset, load_dataset
from tiermem.train import Run, Trainer

LEAST_BYTES_RATIO = 1.0
SIDES = (("in_place", 0.25), ("log", 0.25), ("log", 0.5))


def _experiment(*, small: bool) -> Experiment:
    """The demo's second act with a quarter of its rows, which are written over several times."""
    rows, samples, epochs = (2_048, 2_048, 1) if small else (65_536, 60_000, 3)
    return Experiment.load(
        "demo-tiering",
        [f"data.rows_per_table={rows}", f"data.samples_max={samples}", f"train.epochs={epochs}"],
    )


def _train(base: Experiment, dataset: Dataset, name: str, layout: str, spare: float) -> Run:
    hierarchy = Hierarchy.load(name, budgets={"dram": 0.1}, staging_bytes="2MiB")
    home = hierarchy.tiers[-1]
    log = home.log.replace(spare=spare)
    tiers = (*hierarchy.tiers[:-1], home.replace(layout=layout, log=log.model_dump()))
    changed = hierarchy.replace(tiers=tuple(tier.model_dump() for tier in tiers))
    trainer = Trainer(base.replace(hierarchy=changed.model_dump(), budgets={}), dataset, name=name)
    # Every row exists before the first step, so that the log is as full as it ever gets.
    for table in range(len(trainer.store.tables)):
        for start, weights, state in trainer.store.rows(table):
            trainer.store.write_rows(table, start, weights, state)
    return trainer.fit()


def layouts(*, small: bool) -> Section:
    """The whole section. Virtual time gives the same figures each time, so each side runs once."""
    torch.set_num_threads(1)
    base = _experiment(small=small)
    dataset = load_dataset(base.data, base.seed)
    section = Section(
        name="layouts",
        title="bytes written per trained sample, in place and in a log, after every row was written once",
        parameters={
            "rows": sum(column.rows for column in dataset.sparse),
            "dim": base.model.dim,
            "batch": base.train.batch_size,
            "epochs": base.train.epochs,
            "dram_cache": 0.1,
            "clock": "virtual",
        },
    )
    rows = []
    for name in ("dram-nand", "dram-optane"):
        in_place_bytes = 0.0
        for layout, spare in SIDES:
            began = time.process_time()
            run = _train(base, dataset, name, layout, spare)
            assert run.stats is not None, "a run that ended has statistics"
            device = run.stats.tiers[-1].device
            written, media = device.write_bytes / run.samples, device.media_write_bytes / run.samples
            title = layout if layout == "in_place" else f"log, {spare:.0%} spare"
            figures = {
                "samples_per_s": run.results()["samples_per_s"],
                "written_bytes_per_sample": written,
                "media_bytes_per_sample": media,
                "read_bytes_per_sample": device.read_bytes / run.samples,
                "write_amplification": device.write_amplification,
                "rows_written_back": run.stats.rows_written_back,
                "rows_compacted": run.stats.rows_compacted,
                "compaction_stalls": run.stats.compaction_stalls,
                "processor_s": time.process_time() - began,
            }
            section.figures[f"{name}, {title}"] = figures
            rows.append((
                name, title, f"{figures['samples_per_s']:,.0f}", f"{written:,.0f}", f"{media:,.0f}",
                f"{figures['read_bytes_per_sample']:,.0f}", f"{run.stats.rows_compacted:,}",
            ))  # fmt: skip
            if layout == "in_place":
                in_place_bytes = media
            elif spare == SIDES[1][1]:
                section.targets.append(
                    Target(
                        what=f"{name}: media bytes a sample, in place over log",
                        measured=Spread.of([in_place_bytes / media]),
                        bound=LEAST_BYTES_RATIO,
                    )
                )
    section.add_table(
        ("hierarchy", "home", "samples/s", "written B/sample", "on the medium", "read", "rows compacted"),
        rows,
    )
    return section
