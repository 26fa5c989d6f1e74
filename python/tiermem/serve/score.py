"""Test samples of a run through an engine: their score beside the trainer's, and as a load."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import log_loss, roc_auc_score

from tiermem.checkpoint import ExportedModel, ResumePoint, find_resume_point, list_snapshots
from tiermem.config import ServeConfig
from tiermem.data import Dataset, load_dataset
from tiermem.errors import ConfigError
from tiermem.serve.drive import Change, Driven, drive
from tiermem.serve.engine import Engine, Query
from tiermem.serve.model import Model
from tiermem.serve.plain import PlainModel

__all__ = ["Scored", "drive_run", "queries_of", "run_of", "score_run"]

_TEST = 2
_AT_ONCE = 256
_DRIVEN_QUERIES = 2_000
_UPDATED_ROWS = 16


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Quality on the test part of a run's data."""

    queries: int
    auc: float
    logloss: float
    trainer_auc: float
    trainer_logloss: float


def queries_of(dataset: Dataset, samples: npt.NDArray[np.int64]) -> list[Query]:
    """A query of one candidate for each sample."""
    queries = []
    for sample in samples:
        batch = dataset.take(np.array([sample]))
        sparse = [(torch.from_numpy(ids), torch.from_numpy(offsets)) for ids, offsets in batch.sparse]
        queries.append(Query(torch.from_numpy(batch.dense), sparse))
    return queries


def run_of(config: ServeConfig, run_directory: Path) -> ResumePoint:
    """The end of the run that the model of a configuration was exported from.

    Raises:
        ConfigError: if the model is of another run or of another step.
    """
    if config.model is None:
        raise ConfigError("the configuration names no model; set model.path")
    point = find_resume_point(run_directory, "tiermem serve --check")
    exported = ExportedModel.read(Path(config.model.path))
    found = (point.manifest.experiment_hash, point.manifest.step)
    if found != (exported.experiment_hash, exported.step):
        raise ConfigError(
            f"the model in {exported.folder} is of step {exported.step} of experiment"
            f" {exported.experiment_hash[:12]}; {point.snapshot} is of step {found[1]} of experiment"
            f" {found[0][:12]}: give the run that was exported, or export it again"
        )
    if point.snapshot.name != list_snapshots(point.run_directory)[-1].name:
        raise ConfigError(f"{point.snapshot} is not the end of its run, which the trainer's score is of")
    return point


def score_run(engine: Engine, point: ResumePoint) -> Scored:
    """Scores every test sample of a run as a query of its own.

    Raises:
        ConfigError: if the run has no test samples or no scores of them.
    """
    experiment = point.experiment
    dataset = load_dataset(experiment.data, experiment.seed)
    samples = dataset.samples(_TEST)
    trainer = _trainer_scores(point.run_directory)
    if len(samples) == 0:
        raise ConfigError(f'the test part of "{dataset.name}" is empty')
    probabilities: list[float] = []
    for start in range(0, len(samples), _AT_ONCE):
        answers = engine.predict(queries_of(dataset, samples[start : start + _AT_ONCE]))
        probabilities += [float(torch.sigmoid(answer.unwrap().double())[0]) for answer in answers]
    labels = dataset.labels[samples]
    return Scored(
        queries=len(samples),
        auc=float(roc_auc_score(labels, probabilities)),
        logloss=float(log_loss(labels, probabilities, labels=[0.0, 1.0])),
        trainer_auc=trainer["auc"],
        trainer_logloss=trainer["logloss"],
    )


def drive_run(
    engine: Engine, point: ResumePoint, *, queries_per_s: float, seconds: float, refresh: Path | None
) -> Driven:
    """Sends test samples of a run as queries in real time, and checks every answer.

    With `refresh`, rows are updated meanwhile, the engine goes over to that export, and rolls back.

    Raises:
        ConfigError: if there are no test samples, or the other export is of another model.
    """
    config = engine.config
    assert config.model is not None, "an engine has a model"  # noqa: S101
    dataset = load_dataset(point.experiment.data, point.experiment.seed)
    queries = queries_of(dataset, dataset.samples(_TEST)[:_DRIVEN_QUERIES])
    before = PlainModel(Model.load(Path(config.model.path)))
    changes = [] if refresh is None else _changes(engine, before, refresh)
    return drive(
        engine,
        queries,
        before,
        queries_per_s=queries_per_s,
        seconds=seconds,
        threads=config.host.threads,
        changes=changes,
        seed=config.seed,
    )


def _changes(engine: Engine, before: PlainModel, refresh: Path) -> list[Change]:
    table = engine.tables[0]
    ids = torch.arange(min(table.ids, _UPDATED_ROWS))
    rows = torch.zeros(len(ids), engine.columns)
    updated = before.with_rows(0, ids, rows)
    return [
        Change("updating rows", lambda: engine.update_rows(table.name, ids, rows), updated),
        Change("refreshing all tables", lambda: engine.refresh(refresh), PlainModel(Model.load(refresh))),
        Change("rolling back", engine.roll_back, updated),
    ]


def _trainer_scores(run_directory: Path) -> dict[str, float]:
    """Of the last epoch, which is what was exported."""
    path = run_directory / "record.json"
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["quality"]["runs"]
        scores: dict[str, float] = next(iter(runs.values()))["epochs"][-1]["test"]
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; the run is not at its end") from None
    except (ValueError, KeyError, IndexError, StopIteration):
        raise ConfigError(f"{path} has no score of test samples; train with train.evaluate = true") from None
    return scores
