"""A torch optimizer whose step updates the rows of a store."""

from collections.abc import Callable
from typing import Any, overload

import torch

from tiermem.embedding.store import EmbeddingStore

__all__ = ["RowOptimizer"]


class RowOptimizer(torch.optim.Optimizer):
    """Applies the gradients that a store kept since the last step: one update a row.

    Its one parameter group holds the learning rate, so torch's schedulers work. Its one parameter
    is an empty stand-in: rows are not tensors of this process.
    """

    def __init__(self, store: EmbeddingStore, anchor: torch.Tensor, lr: float) -> None:
        self._store = store
        super().__init__([anchor], {"lr": lr})

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return float(self.param_groups[0]["lr"])

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Applies all gradients since the last step, coalesced by row."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._store.step(self.lr)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 (torch's signature)
        """Forgets the gradients since the last step."""
        super().zero_grad(set_to_none)
        self._store.discard()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds the one group of the store; torch calls this once."""
        if self.param_groups:
            raise ValueError("a store has one group of rows; give other parameters to another optimizer")
        super().add_param_group(param_group)
