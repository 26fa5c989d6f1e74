"""tiermem in `compare_peers.py`: every name of its interface that the comparison uses is in this file."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tiermem as tm
import torch
from compare_peers_workloads import (
    ADAM_EPSILON,
    ADAM_LEARNING_RATE,
    EPSILON,
    LEARNING_RATE,
    Side,
    Work,
    chunks,
)
from tiermem._interop import bytes_of
from tiermem.config import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class How:
    """What of tiermem is compared."""

    optimizer: str = "rowwise_adagrad"
    """Or "adam", "lamb"."""
    rounding: str = "nearest"
    """Or "stochastic"."""
    threads: int = 1

    def rule(self) -> OptimizerConfig:
        """The optimizer."""
        if self.optimizer == "adam":
            return tm.Adam(lr=ADAM_LEARNING_RATE, eps=ADAM_EPSILON)
        if self.optimizer == "lamb":
            return tm.LAMB(lr=ADAM_LEARNING_RATE, eps=ADAM_EPSILON)
        return tm.RowWiseAdagrad(lr=LEARNING_RATE, eps=EPSILON)


class Ours(Side):
    """A collection whose rows are all resident in DRAM, on a wall clock, fused in backward."""

    def __init__(self, work: Work, how: How) -> None:
        super().__init__(work)
        shape = work.shape
        of_tables: dict[str, Any] = {"row_type": shape.row_type, "rounding": how.rounding}
        self.bags = tm.TieredEmbeddingBagCollection(
            [
                tm.TableConfig(name=f"t{position}", rows=table.rows, dim=table.dim, **of_tables)
                for position, table in enumerate(shape.tables)
            ],
            hierarchy=tm.Hierarchy.load("dram", clock="wall"),
            optimizer=how.rule(),
            mode="sum",
            fused_in_backward=True,
            threads=how.threads,
        )
        self.store = self.bags.store
        for position in work.positions():
            for start, part in chunks(shape, position):
                self.store.write_rows(position, start, part)
        self._lookups = [
            [tm.Lookup(table, ids, offsets) for table, ids, offsets in self._of(number)]
            for number in range(shape.batches)
        ]
        self._views = [
            [(table, bytes_of(ids), bytes_of(offsets)) for table, ids, offsets in self._of(number)]
            for number in range(shape.batches)
        ]
        self._dims = [table.dim for table in shape.tables]

    def _of(self, number: int) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
        batch = self.work.batches[number]
        return list(zip(self.work.positions(), batch.ids, batch.offsets, strict=True))

    def pooled(self, batch: int) -> Sequence[torch.Tensor]:
        """One call of the extension with views made before; outputs are allocated here, as peers do."""
        outputs = [torch.empty(self.work.shape.bags, dim) for dim in self._dims]
        sides = [(position, bytes_of(output), None) for position, output in enumerate(outputs)]
        self.store._core.pool(self._views[batch], sides, mode="sum")
        return outputs

    def pooled_by_store(self, batch: int) -> Sequence[torch.Tensor]:
        """`store.pool`, which checks and converts tensors."""
        return self.store.pool(self._lookups[batch])

    def forward(self, batch: int) -> Sequence[torch.Tensor]:
        outputs: Sequence[torch.Tensor] = self.bags(self._lookups[batch])
        return outputs

    def train(self, batch: int) -> None:
        torch.autograd.backward(self.forward(batch), self.work.gradients)

    def train_by_store(self, batch: int) -> None:
        """The same without autograd."""
        ticket = self.store.prefetch(self._lookups[batch])
        self.store.wait(ticket)
        self.store.gather_all(ticket)
        self.store.backward_all(ticket, self.work.gradients, lr=LEARNING_RATE)
        self.store.release(ticket)

    def rows(self, table: int) -> torch.Tensor:
        return self.store.read_rows(table, 0, self.work.shape.tables[table].rows)[0]

    def state(self, table: int) -> torch.Tensor:
        """Optimizer state, float32 [rows, S]."""
        return self.store.read_rows(table, 0, self.work.shape.tables[table].rows)[1]

    @property
    def held_bytes(self) -> float:
        memory = self.store.stats().memory
        return float(memory.resident_bytes + memory.cached_bytes)

    def close(self) -> None:
        self.bags.close()
        super().close()
