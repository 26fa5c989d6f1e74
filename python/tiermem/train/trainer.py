"""The training loop."""

import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from tiermem.checkpoint import ResumePoint, SnapshotFolder, TableShape, experiment_hash, load_state, rows_path
from tiermem.config import Experiment
from tiermem.data import Batch, Dataset, batches
from tiermem.data.accesses import Bags
from tiermem.embedding import Lookup, Ticket, TieredEmbeddingBagCollection
from tiermem.embedding.table import StageTimes
from tiermem.errors import ConfigError
from tiermem.models import DLRM
from tiermem.perf import dense_cost
from tiermem.train.metrics import Scores, score
from tiermem.train.run import Run, StepTimes
from tiermem.train.state import data_checksum, restore, state_of
from tiermem.train.tables import table_configs

__all__ = ["Progress", "Trainer"]

Progress = Callable[[int, int, float, float], None]
"""Called after each step with (steps done, steps in all, loss, samples per second of host time)."""

_HIT_RATE_POINTS = 60


class Trainer:
    """Trains the model of an experiment on a data set.

    Args:
        experiment: everything that is configured.
        dataset: the data; its columns become the tables.
        name: name of the run.
        progress: called after each step.
        capture: gets the bags of each training step before it runs, one entry per table.
        run_directory: where snapshots go, if the experiment takes any.
        resume: the snapshot to go on from; it is of the same experiment.
        timeline: remember when steps, transfers and dirty rows were; the run has them at its end.

    Raises:
        ConfigError: if the training split is empty, or snapshots have no place to go.
    """

    def __init__(
        self,
        experiment: Experiment,
        dataset: Dataset,
        *,
        name: str,
        progress: Progress | None = None,
        capture: Callable[[tuple[Bags, ...]], None] | None = None,
        run_directory: Path | None = None,
        resume: ResumePoint | None = None,
        timeline: bool = False,
    ) -> None:
        self.capture = capture
        self.resume = resume
        self.timeline = timeline
        self.experiment = experiment
        self.dataset = dataset
        self.progress = progress
        self.train = experiment.train
        hierarchy = experiment.effective_hierarchy()
        self.run = Run(name=name, clock=hierarchy.clock)
        torch.manual_seed(experiment.seed)
        self.shuffler = np.random.default_rng(experiment.seed)
        # Of the shuffler before it drew the order of this epoch, so that the order can be drawn again.
        self.epoch_shuffler_state = self.shuffler.bit_generator.state
        self.position = 0
        self.epoch_loss = 0.0
        self.bags = TieredEmbeddingBagCollection(
            table_configs(experiment.model, ((column.name, column.rows) for column in dataset.sparse)),
            hierarchy=hierarchy,
            optimizer=self.train.optimizer,
            fused_in_backward=True,
            prefetch_distance=self.train.prefetch_distance,
            announce_batches=self.train.announce_batches,
            placement=experiment.placement,
            non_finite_gradients=self.train.non_finite_gradients,
            timeline=timeline,
            seed=experiment.seed,
        )
        self.store = self.bags.store
        self.model = DLRM(experiment.model, dense_features=dataset.dense.shape[1], bags=self.bags)
        self.samples = dataset.samples(0)
        if len(self.samples) == 0:
            raise ConfigError(f'the training part of "{dataset.name}" is empty; check its split')
        self.steps_per_epoch = -(-len(self.samples) // self.train.batch_size)
        self.steps = self.steps_per_epoch * self.train.epochs
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.train.dense_lr,
            weight_decay=self.train.dense_weight_decay,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: max(0.0, 1.0 - step / max(1, self.steps))
        )
        self.snapshots = self._snapshot_folder(run_directory)
        self.began_s = 0.0
        self.step_open = False
        self.step_began_ns = 0
        self.step_dense_ns = 0
        self.hits_before = [(0, 0)] * len(hierarchy.tiers)

    def fit(self) -> Run:
        """Trains all epochs, or those that a snapshot has before it, scores each, and closes the store."""
        self.began_s = time.perf_counter()
        try:
            if self.resume is not None:
                self._go_on_from(self.resume)
            while len(self.run.epochs) < self.train.epochs:
                self._train_epoch()
                self._end_epoch()
            self._finish()
        finally:
            self.bags.close()
        return self.run

    @functools.cached_property
    def data_checksum(self) -> int:
        """Tells whether a snapshot saw the same data."""
        return data_checksum(self.dataset)

    def _go_on_from(self, point: ResumePoint) -> None:
        if point.experiment != self.experiment:
            raise ConfigError(f"{point.snapshot} is of another experiment; go on with the one that it is of")
        restore(self, load_state(point.snapshot))
        self.store.load_rows(rows_path(point.snapshot))
        self.run.resumed_from_step = len(self.run.losses)
        self.began_s -= self.run.wall_s

    def _train_epoch(self) -> None:
        """One pass, or what is left of it after `position` steps."""
        self.epoch_shuffler_state = self.shuffler.bit_generator.state
        order = self.shuffler.permutation(self.samples) if self.train.shuffle else self.samples
        self.model.train()
        source = batches(self.dataset, order[self.position * self.train.batch_size :], self.train.batch_size)
        for batch, ticket in self.bags.pipeline(source, self._lookups):
            self._between_steps()
            if self.capture is not None:
                self.capture(tuple(Bags.from_offsets(ids, offsets) for ids, offsets in batch.sparse))
            loss = self._train_step(batch, ticket)
            self.position += 1
            self.epoch_loss += loss * len(batch.labels)
            self._report(loss)
        self._between_steps()

    def _between_steps(self) -> None:
        """The rows of the last step were given back; batches ahead may be in flight."""
        if not self.step_open:
            return
        self._close_step()
        done = len(self.run.losses)
        if self.snapshots is not None and (done % self.train.snapshot_every_steps == 0 or done == self.steps):
            self.run.wall_s = time.perf_counter() - self.began_s
            self.snapshots.write(done, state_of(self), self.store.save_rows)

    def _train_step(self, batch: Batch, ticket: Ticket) -> float:
        """Wait, gather, forward, backward with the update of the rows, step of the dense part."""
        self.step_began_ns = self.store.now_ns()
        self.store.times = StageTimes()
        self.step_dense_ns = self._dense_ns(len(batch.labels), training=True)
        logits = self.model(torch.from_numpy(batch.dense), ticket)
        loss = functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(batch.labels))
        self.store.advance(self.step_dense_ns)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.step_open = True
        self.run.samples += len(batch.labels)
        value = float(loss.detach())
        self.run.losses.append(value)
        return value

    def _close_step(self) -> None:
        """A step ends when its rows were given back, which the pipeline does before it goes on."""
        self.step_open = False
        times = self.store.times
        in_store_ns = times.wait_ns + times.gather_ns + times.update_ns + times.release_ns
        elapsed_ns = self.store.now_ns() - self.step_began_ns
        dense_ns = self.step_dense_ns if self.store.is_virtual else max(0, elapsed_ns - in_store_ns)
        self.run.steps.append(
            StepTimes(times.wait_ns, times.gather_ns, dense_ns, times.update_ns, times.release_ns)
        )
        if self.timeline:
            self.run.step_starts_ns.append(self.step_began_ns)

    def _end_epoch(self) -> None:
        entry: dict[str, Any] = {"train_loss": self.epoch_loss / len(self.samples)}
        if self.train.evaluate:
            for name, part in (("validation", 1), ("test", 2)):
                scores = self.evaluate(part)
                if scores is not None:
                    entry[name] = {
                        "auc": scores.auc,
                        "logloss": scores.logloss,
                        "normalized_entropy": scores.normalized_entropy,
                    }
        self.run.epochs.append(entry)
        self.position, self.epoch_loss = 0, 0.0

    @torch.no_grad()
    def evaluate(self, part: int) -> Scores | None:
        """Scores one part of the split; `None` if it is empty."""
        samples = self.dataset.samples(part)
        if len(samples) == 0:
            return None
        self.model.eval()
        probabilities = []
        source = batches(self.dataset, samples, self.train.batch_size)
        for batch, ticket in self.bags.pipeline(source, self._lookups):
            logits = self.model(torch.from_numpy(batch.dense), ticket)
            self.store.advance(self._dense_ns(len(batch.labels), training=False))
            probabilities.append(torch.sigmoid(logits.double()).numpy())
        return score(self.dataset.labels[samples], np.concatenate(probabilities))

    def _snapshot_folder(self, run_directory: Path | None) -> SnapshotFolder | None:
        if self.train.snapshot_every_steps == 0:
            return None
        if run_directory is None:
            raise ConfigError(
                "train.snapshot_every_steps needs a run directory, which tiermem train has; set it to 0 here"
            )
        resume = self.resume
        return SnapshotFolder(
            run_directory=run_directory,
            experiment_hash=experiment_hash(self.experiment)
            if resume is None
            else resume.manifest.experiment_hash,
            tables=tuple(
                TableShape(table.name, table.rows, table.dim, table.row_type) for table in self.store.tables
            ),
            steps=self.steps,
            keep_latest=self.train.keep_latest,
        )

    def _finish(self) -> None:
        self.run.wall_s = time.perf_counter() - self.began_s
        self.run.stats = self.store.stats()
        self.run.table_stats = self.store.table_stats()
        self.run.timeline = self.store.timeline() if self.timeline else None
        for position, tier in enumerate(self.run.stats.tiers):
            if tier.device.reads and position > 0:
                self.run.latency_cdfs[tier.name] = _thin(self.store.read_latency_cdf(position))
        self.run.weights_digest = self._weights_digest()

    def _weights_digest(self) -> str:
        digest = hashlib.sha256()
        for table in range(len(self.store.tables)):
            for _, weights, state in self.store.rows(table):
                digest.update(weights.numpy().tobytes())
                digest.update(state.numpy().tobytes())
        for parameter in self.model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        return digest.hexdigest()

    def _lookups(self, batch: Batch) -> list[Lookup]:
        return [
            Lookup(table, torch.from_numpy(ids), torch.from_numpy(offsets))
            for table, (ids, offsets) in enumerate(batch.sparse)
        ]

    def _dense_ns(self, batch: int, *, training: bool) -> int:
        cost = dense_cost(
            self.experiment.model,
            dense_features=self.dataset.dense.shape[1],
            sparse_features=len(self.dataset.sparse),
            batch=batch,
            training=training,
        )
        return cost.time_ns(self.experiment.compute)

    def _report(self, loss: float) -> None:
        done = len(self.run.losses)
        if done % max(1, self.steps // _HIT_RATE_POINTS) == 0 or done == self.steps:
            self._record_hit_rates(done)
        if self.progress is not None:
            rate = self.run.samples / (time.perf_counter() - self.began_s)
            self.progress(done, self.steps, loss, rate)

    def _record_hit_rates(self, step: int) -> None:
        now = [(tier.hit_rows, tier.probed_rows) for tier in self.store.stats().tiers]
        rates = [
            (hits - hits_before) / (probed - probed_before) if probed > probed_before else 0.0
            for (hits, probed), (hits_before, probed_before) in zip(now, self.hits_before, strict=True)
        ]
        self.hits_before = now
        self.run.hit_rates.append((step, rates))


def _thin(points: list[tuple[int, float]], most: int = 400) -> list[tuple[int, float]]:
    """At most so many points, evenly by rank, with both ends."""
    chosen = np.unique(np.linspace(0, len(points) - 1, min(most, len(points))).astype(int))
    return [points[number] for number in chosen]
