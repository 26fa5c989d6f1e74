"""A plain, slow twin of the store in PyTorch: dense tables, `embedding_bag`, one update a row.

For tests and for readers; it adds in torch's order, so it agrees with the store within rounding.
"""

import torch
from torch.nn import functional

from tiermem.config import SGD, RowWiseAdagrad

__all__ = ["ReferenceTable"]


class ReferenceTable:
    """One table. D = columns.

    Args:
        weights: initial values, float32 [rows, D]; copied.
        optimizer: of the rows.
        mode: "sum" or "mean".
    """

    def __init__(self, weights: torch.Tensor, optimizer: SGD | RowWiseAdagrad, mode: str) -> None:
        self.weights = weights.clone().requires_grad_()
        self.accumulator = torch.zeros(len(weights))
        self.optimizer = optimizer
        self.mode = mode

    def forward(
        self, ids: torch.Tensor, offsets: torch.Tensor, sample_weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Pools bags: float32 [B, D], differentiable."""
        return functional.embedding_bag(
            ids, self.weights, offsets, mode=self.mode, per_sample_weights=sample_weights
        )

    @torch.no_grad()
    def step(self) -> None:
        """One update of every row that has a gradient."""
        gradient = self.weights.grad
        if gradient is None:
            return
        if isinstance(self.optimizer, SGD):
            self.weights -= self.optimizer.lr * gradient
        else:
            self.accumulator += gradient.square().mean(dim=1)
            step = self.optimizer.lr / (self.accumulator.sqrt() + self.optimizer.eps)
            self.weights -= torch.where(gradient.abs().sum(dim=1) > 0, step, 0.0)[:, None] * gradient
        self.weights.grad = None
