"""The state of a trainer between two steps, apart from the rows: what a snapshot holds of it."""

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tiermem.data import Dataset
from tiermem.errors import ConfigError
from tiermem.train.run import StepTimes

if TYPE_CHECKING:
    from tiermem.train.trainer import Trainer

__all__ = ["data_checksum", "restore", "state_of"]


def state_of(trainer: "Trainer") -> dict[str, Any]:
    """Tensors, numbers and strings from which `restore` makes the same trainer again.

    The shuffler is kept as it was before the epoch: the epoch's order is drawn again, and `position`
    says how many of its batches were trained on. At the end of an epoch that is all of them, and
    its scores are still to come.
    """
    run = trainer.run
    return {
        "dense": {name: parameter.detach() for name, parameter in trainer.model.named_parameters()},
        "dense_optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state_dict(),
        "row_optimizer": trainer.bags.optimizer().state_dict(),
        "torch_generator": torch.get_rng_state(),
        "shuffler": trainer.epoch_shuffler_state,
        "position": trainer.position,
        "epoch_loss": trainer.epoch_loss,
        "data_checksum": trainer.data_checksum,
        "run": {
            "epochs": run.epochs,
            "losses": torch.tensor(run.losses, dtype=torch.float64),
            "steps": torch.tensor([_row(times) for times in run.steps], dtype=torch.int64),
            "hit_rates": [[step, list(rates)] for step, rates in run.hit_rates],
            "samples": run.samples,
            "wall_s": run.wall_s,
        },
    }


def restore(trainer: "Trainer", state: dict[str, Any]) -> None:
    """Puts a new trainer of the same experiment into a state of `state_of`.

    Raises:
        ConfigError: if the data has changed since.
    """
    if state["data_checksum"] != trainer.data_checksum:
        raise ConfigError(
            f'the data "{trainer.dataset.name}" has changed since the snapshot was taken;'
            " put it back as it was, or start the run anew"
        )
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            parameter.copy_(state["dense"][name])
    trainer.optimizer.load_state_dict(state["dense_optimizer"])
    trainer.schedule.load_state_dict(state["schedule"])
    trainer.bags.optimizer().load_state_dict(state["row_optimizer"])
    torch.set_rng_state(state["torch_generator"])
    trainer.shuffler.bit_generator.state = state["shuffler"]
    trainer.position = state["position"]
    trainer.epoch_loss = state["epoch_loss"]
    run, recorded = trainer.run, state["run"]
    run.epochs = recorded["epochs"]
    run.losses = recorded["losses"].tolist()
    run.steps = [StepTimes(*times) for times in recorded["steps"].tolist()]
    run.hit_rates = [(step, rates) for step, rates in recorded["hit_rates"]]
    run.samples = recorded["samples"]
    run.wall_s = recorded["wall_s"]


def _row(times: StepTimes) -> list[int]:
    return [times.wait, times.gather, times.dense, times.update, times.write_back]


def data_checksum(dataset: Dataset) -> int:
    """CRC-32 of everything that training and scoring read; a GB takes a fraction of a second."""
    checksum = 0
    arrays = [dataset.dense, dataset.labels, dataset.split]
    for column in dataset.sparse:
        arrays += [column.ids, column.offsets]
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return checksum
