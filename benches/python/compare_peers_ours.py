"""tiermem in `compare_peers.py`: every name of its interface that the comparison uses is in this file."""

import dataclasses
import importlib
import inspect
from collections.abc import Collection, Sequence
from typing import Any

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

tm: Any = importlib.import_module("tiermem")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class How:
    """What of tiermem is compared."""

    optimizer: str = "rowwise_adagrad"
    """Or "adam", "lamb"."""
    rounding: str = "nearest"
    """Or "stochastic"."""
    threads: int = 1

    def rule(self) -> Any:  # noqa: ANN401
        """The optimizer."""
        if self.optimizer == "adam":
            return tm.Adam(lr=ADAM_LEARNING_RATE, eps=ADAM_EPSILON)
        if self.optimizer == "lamb":
            return tm.LAMB(lr=ADAM_LEARNING_RATE, eps=ADAM_EPSILON)
        return tm.RowWiseAdagrad(lr=LEARNING_RATE, eps=EPSILON)


def _bags_parameters() -> Collection[str]:
    parameters: Collection[str] = inspect.signature(tm.TieredEmbeddingBagCollection.__init__).parameters
    return parameters


def lacks(row_type: str, how: How) -> str | None:
    """What the installed tiermem does not have of this, or nothing."""
    of_table = {field.name for field in dataclasses.fields(tm.TableConfig)}
    of_bags = _bags_parameters()
    needed = {
        "TableConfig(row_type=...)": row_type == "fp32" or "row_type" in of_table,
        "TableConfig(rounding=...)": how.rounding == "nearest" or "rounding" in of_table,
        "TieredEmbeddingBagCollection(threads=...)": how.threads == 1 or "threads" in of_bags,
        "Adam": how.optimizer != "adam" or hasattr(tm, "Adam"),
        "LAMB": how.optimizer != "lamb" or hasattr(tm, "LAMB"),
    }
    absent = [name for name, present in needed.items() if not present]
    return f"the installed tiermem has no {', '.join(absent)}" if absent else None


class Ours(Side):
    """A collection whose rows are all resident in DRAM, on a wall clock, fused in backward."""

    def __init__(self, work: Work, how: How) -> None:
        super().__init__(work)
        shape = work.shape
        of_tables: dict[str, Any] = {}
        if shape.row_type != "fp32":
            of_tables = {"row_type": shape.row_type, "rounding": how.rounding}
        of_bags: dict[str, Any] = {"threads": how.threads} if "threads" in _bags_parameters() else {}
        self.bags = tm.TieredEmbeddingBagCollection(
            [
                tm.TableConfig(name=f"t{position}", rows=table.rows, dim=table.dim, **of_tables)
                for position, table in enumerate(shape.tables)
            ],
            hierarchy=tm.Hierarchy.load("dram", clock="wall"),
            optimizer=how.rule(),
            mode="sum",
            fused_in_backward=True,
            **of_bags,
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
            [(table, bytes_of(ids), bytes_of(offsets), None) for table, ids, offsets in self._of(number)]
            for number in range(shape.batches)
        ]
        self._dims = [table.dim for table in shape.tables]
        self._has_pool = hasattr(self.store, "pool")

    def _of(self, number: int) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
        batch = self.work.batches[number]
        return list(zip(self.work.positions(), batch.ids, batch.offsets, strict=True))

    def pooled(self, batch: int) -> Sequence[torch.Tensor]:
        """One call of the extension with views made before; outputs are allocated here, as peers do."""
        if not self._has_pool:
            return self.pooled_by_store(batch)
        outputs = [torch.empty(self.work.shape.bags, dim) for dim in self._dims]
        self.store._core.pool(
            self._views[batch], [bytes_of(output) for output in outputs], mode="sum", sample_weights=None
        )
        return outputs

    def pooled_by_store(self, batch: int) -> Sequence[torch.Tensor]:
        """`store.pool`, which checks and converts tensors."""
        if self._has_pool:
            outputs: Sequence[torch.Tensor] = self.store.pool(self._lookups[batch])
            return outputs
        ticket = self.store.prefetch(self._lookups[batch])
        self.store.wait(ticket)
        gathered = [self.store.gather(ticket, position) for position in self.work.positions()]
        self.store.release(ticket)
        return gathered

    def forward(self, batch: int) -> Sequence[torch.Tensor]:
        outputs: Sequence[torch.Tensor] = self.bags(self._lookups[batch])
        return outputs

    def train(self, batch: int) -> None:
        torch.autograd.backward(self.forward(batch), self.work.gradients)

    def train_by_store(self, batch: int) -> None:
        """The same without autograd."""
        ticket = self.store.prefetch(self._lookups[batch])
        self.store.wait(ticket)
        for position in self.work.positions():
            self.store.gather(ticket, position)
        for position, gradient in enumerate(self.work.gradients):
            self.store.backward(ticket, position, gradient, lr=LEARNING_RATE)
        self.store.release(ticket)

    def rows(self, table: int) -> torch.Tensor:
        weights: torch.Tensor = self.store.read_rows(table, 0, self.work.shape.tables[table].rows)[0]
        return weights

    def state(self, table: int) -> torch.Tensor:
        """Optimizer state, float32 [rows, S]."""
        state: torch.Tensor = self.store.read_rows(table, 0, self.work.shape.tables[table].rows)[1]
        return state

    @property
    def held_bytes(self) -> float:
        memory = self.store.stats().memory
        return float(memory.resident_bytes + memory.cached_bytes)

    def close(self) -> None:
        self.bags.close()
        super().close()
