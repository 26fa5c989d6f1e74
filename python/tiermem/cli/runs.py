"""Training runs and their record, for `train` and `demo`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiermem import _core
from tiermem.checkpoint import ResumePoint, TableShape
from tiermem.cli.common import Output
from tiermem.config import Config, Experiment
from tiermem.data import Dataset, load_dataset
from tiermem.data.accesses import TraceTable
from tiermem.data.trace_file import TraceWriter
from tiermem.embedding import EmbeddingStore
from tiermem.report import chrome_trace, chrome_trace_text
from tiermem.results import canonical, record, write_text
from tiermem.train import Run, Trainer, table_configs

__all__ = ["capture_run", "open_store", "run_record", "train_run", "write_timeline"]


def train_run(
    experiment: Experiment,
    name: str,
    output: Output,
    dataset: Dataset | None = None,
    *,
    run_directory: Path | None = None,
    resume: ResumePoint | None = None,
    timeline: bool = False,
) -> tuple[Dataset, Run]:
    """Reads the data, unless it is given, and trains with progress; snapshots go into the directory."""
    if dataset is None:
        dataset = load_dataset(experiment.data, experiment.seed)
    with output.progress(name) as progress:
        trainer = Trainer(
            experiment,
            dataset,
            name=name,
            progress=progress,
            run_directory=run_directory,
            resume=resume,
            timeline=timeline,
        )
        return dataset, trainer.fit()


def capture_run(
    experiment: Experiment,
    name: str,
    output: Output,
    path: str,
    *,
    run_directory: Path,
    timeline: bool = False,
) -> tuple[Dataset, Run]:
    """`train_run` that also writes the accesses of its training steps to a trace."""
    dataset = load_dataset(experiment.data, experiment.seed)
    # A row moves between tiers with its optimizer state.
    state_bytes = 4 * experiment.train.optimizer.state_floats(experiment.model.dim)
    configs = table_configs(experiment.model, ((column.name, column.rows) for column in dataset.sparse))
    tables = tuple(TraceTable(table.name, table.rows, table.weight_bytes + state_bytes) for table in configs)
    origin = f"captured from training on {dataset.name}, seed {experiment.seed}"
    with TraceWriter(path, tables, origin=origin) as writer, output.progress(name) as progress:
        trainer = Trainer(
            experiment,
            dataset,
            name=name,
            progress=progress,
            capture=writer.write,
            run_directory=run_directory,
            timeline=timeline,
        )
        return dataset, trainer.fit()


def write_timeline(path: Path, run: Run) -> None:
    """Writes what a run with `timeline` did when, for Perfetto.

    Raises:
        TiermemError: if the file cannot be written.
    """
    assert run.stats is not None, "a run has a timeline after it has ended"  # noqa: S101
    assert run.timeline is not None, "a run has a timeline if it was asked for"  # noqa: S101
    tiers = [tier.name for tier in run.stats.tiers]
    document = chrome_trace(run.timed_steps(), tiers, run.timeline, name=run.name, clock=run.clock)
    write_text(path, chrome_trace_text(document))


def open_store(experiment: Experiment, tables: Sequence[TableShape]) -> EmbeddingStore:
    """A store like the one of a training run, for copying rows: nobody waits in it."""
    return EmbeddingStore(
        table_configs(experiment.model, ((table.name, table.rows) for table in tables)),
        hierarchy=experiment.effective_hierarchy().replace(clock="virtual"),
        optimizer=experiment.train.optimizer,
        seed=experiment.seed,
    )


def run_record(
    configs: Mapping[str, Config],
    runs: Sequence[Run],
    *,
    seed: int,
    quality: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of one or several runs; series and host times stand outside the digest."""
    made = record(
        config={name: config.model_dump(mode="json") for name, config in configs.items()},
        seed=seed,
        results={"runs": {run.name: run.results() for run in runs}},
        quality={"runs": {run.name: run.quality() for run in runs}, **(quality or {})},
        build_profile=_core.BUILD_PROFILE,
    )
    made["series"] = canonical({run.name: run.series() for run in runs})
    made["wall_s"] = {run.name: round(run.wall_s, 3) for run in runs}
    engines = {
        run.name: {
            tier.name: {"engine": tier.device.engine, "fallback_reason": tier.device.fallback_reason}
            for tier in run.stats.tiers
        }
        for run in runs
        if run.stats is not None
    }
    made["engines"] = engines
    return made
