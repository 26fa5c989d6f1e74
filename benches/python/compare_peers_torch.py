"""torch.nn.EmbeddingBag in `compare_peers.py`, with torch's own optimizers for sparse gradients."""

import mmap
from collections.abc import Sequence

import torch
from compare_peers_workloads import ADAM_EPSILON, ADAM_LEARNING_RATE, EPSILON, LEARNING_RATE, Side, Work, fill
from torch import nn
from torch.nn import functional


def small_page_tensor(values: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros on pages of 4 KiB, even where torch asks for huge ones."""
    memory = mmap.mmap(-1, values * dtype.itemsize)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype)


def new_tables(work: Work, *, small_pages: bool = False) -> list[torch.Tensor]:
    """The first values of all tables, [rows, D] each."""
    shape = work.shape
    tables = []
    for position, table in enumerate(shape.tables):
        values = table.rows * table.dim
        flat = (
            small_page_tensor(values, shape.dtype) if small_pages else torch.empty(values, dtype=shape.dtype)
        )
        tables.append(flat.view(table.rows, table.dim))
        fill(shape, position, tables[-1])
    return tables


class Torch(Side):
    """One module a table, sparse gradients.

    Args:
        work: the workload.
        tables: weights, which are used where they are.
        optimizer: "adagrad", "sparse_adam", or nothing for a side that does not train.
    """

    def __init__(self, work: Work, tables: Sequence[torch.Tensor], optimizer: str | None = None) -> None:
        super().__init__(work)
        self.bags = nn.ModuleList(
            nn.EmbeddingBag.from_pretrained(table, freeze=False, mode="sum", sparse=True) for table in tables
        )
        self._tables = [table.detach() for table in tables]
        self._optimizer: torch.optim.Optimizer | None = None
        if optimizer == "adagrad":
            self._optimizer = torch.optim.Adagrad(self.bags.parameters(), lr=LEARNING_RATE, eps=EPSILON)
        elif optimizer == "sparse_adam":
            self._optimizer = torch.optim.SparseAdam(
                list(self.bags.parameters()), lr=ADAM_LEARNING_RATE, eps=ADAM_EPSILON
            )

    def pooled(self, batch: int) -> Sequence[torch.Tensor]:
        lookups = self.work.batches[batch]
        with torch.no_grad():
            return [
                functional.embedding_bag(ids, table, offsets, mode="sum")
                for ids, table, offsets in zip(lookups.ids, self._tables, lookups.offsets, strict=True)
            ]

    def forward(self, batch: int) -> Sequence[torch.Tensor]:
        lookups = self.work.batches[batch]
        return [
            bag(ids, offsets)
            for bag, ids, offsets in zip(self.bags, lookups.ids, lookups.offsets, strict=True)
        ]

    def train(self, batch: int) -> None:
        assert self._optimizer is not None, "the side was made to train"
        torch.autograd.backward(self.forward(batch), self.work.gradients)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def rows(self, table: int) -> torch.Tensor:
        return self._tables[table].float()

    @property
    def held_bytes(self) -> float:
        held = sum(table.nbytes for table in self._tables)
        if self._optimizer is not None:
            for state in self._optimizer.state.values():
                held += sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor))
        return float(held)
