"""Pooled lookups as one differentiable operation."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from tiermem.embedding.store import EmbeddingStore
from tiermem.embedding.table import Ticket

__all__ = ["PooledUse", "pooled_lookup"]


class PooledUse:
    """One forward pass over a ticket, and what its backward pass has to do.

    Args:
        store: the store of the ticket.
        ticket: the batch; it was waited for.
        lr: gives the learning rate with which backward applies the gradients; `None` keeps them for a step.
        owned: nobody else has the ticket, so it is given back after backward.
    """

    def __init__(
        self, store: EmbeddingStore, ticket: Ticket, lr: Callable[[], float] | None, *, owned: bool
    ) -> None:
        self.store = store
        self.ticket = ticket
        self.lr = lr
        self.owned = owned
        self.done = False

    def backward(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Hands the gradients of the lookups over; `None` where there is none."""
        self.store.backward_all(self.ticket, gradients, lr=None if self.lr is None else self.lr())

    def finish(self) -> None:
        """Every gradient was handed over."""
        self.done = True
        if self.owned:
            # With gradients waiting for a step the rows go at that step.
            self.store.release(self.ticket)


class _PooledLookup(torch.autograd.Function):
    """Forward gathers; backward hands the gradients to the store. `anchor` makes autograd call it."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's context has no useful type)
        anchor: torch.Tensor,
        use: PooledUse,
        *sample_weights: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        ctx.use = use
        # A lookup whose output nobody used has no gradient, and its rows are not touched.
        ctx.set_materialize_grads(False)
        # Saved, so that torch refuses a second backward, and weights that were changed in between.
        ctx.save_for_backward(anchor, *sample_weights)
        return use.store.gather_all(use.ticket)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        *gradients: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, ...]:
        use: PooledUse = ctx.use
        ctx.saved_tensors  # noqa: B018 (raises if the graph was freed or a weight was changed)
        # Gradients of sample weights come first: they need the rows before the update.
        of_weights = [
            use.store.sample_weight_gradient(use.ticket, position, gradient)
            if ctx.needs_input_grad[position + 2] and gradient is not None
            else None
            for position, gradient in enumerate(gradients)
        ]
        use.backward(gradients)
        use.finish()
        return (None, None, *of_weights)


def pooled_lookup(anchor: torch.Tensor, use: PooledUse) -> tuple[torch.Tensor, ...]:
    """Pools every lookup of a ticket that was waited for: one float32 [B, D] each.

    Args:
        anchor: a tensor that requires a gradient, so that backward reaches the store.
        use: the ticket, and what backward does.
    """
    weights = [lookup.sample_weights for lookup in use.ticket.lookups]
    outputs: tuple[torch.Tensor, ...] = _PooledLookup.apply(anchor, use, *weights)  # type: ignore[no-untyped-call]
    return outputs
