"""Pooled lookups as one differentiable operation."""

from typing import Any

import torch

from tiermem.embedding.store import EmbeddingStore, Ticket

__all__ = ["pooled_lookup"]


class _PooledLookup(torch.autograd.Function):
    """Forward gathers; backward hands the gradient to the store. `anchor` makes autograd call it."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's context has no useful type)
        anchor: torch.Tensor,  # noqa: ARG004
        store: EmbeddingStore,
        ticket: Ticket,
        lr: float | None,
        *sample_weights: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        ctx.store, ctx.ticket, ctx.lr = store, ticket, lr
        ctx.set_materialize_grads(False)
        ctx.weighted = [weights is not None and weights.requires_grad for weights in sample_weights]
        return tuple(store.gather(ticket, position) for position in range(len(ticket.lookups)))

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        *gradients: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, ...]:
        store, ticket = ctx.store, ctx.ticket
        # All gradients of sample weights come first: they need the rows before the update.
        of_weights = [
            store.sample_weight_gradient(ticket, position, gradient)
            if ctx.weighted[position] and gradient is not None
            else None
            for position, gradient in enumerate(gradients)
        ]
        for position, gradient in enumerate(gradients):
            if gradient is not None:
                store.backward(ticket, position, gradient, lr=ctx.lr)
        return (None, None, None, None, *of_weights)


def pooled_lookup(
    anchor: torch.Tensor, store: EmbeddingStore, ticket: Ticket, *, lr: float | None
) -> tuple[torch.Tensor, ...]:
    """Pools every lookup of a ticket that was waited for: one float32 [B, D] each.

    Args:
        anchor: a tensor that requires a gradient, so that backward reaches the store.
        store: the store of the ticket.
        ticket: the batch.
        lr: applies the gradients inside backward with this learning rate; `None` keeps them for a step.
    """
    weights = [lookup.sample_weights for lookup in ticket.lookups]
    outputs: tuple[torch.Tensor, ...] = _PooledLookup.apply(anchor, store, ticket, lr, *weights)  # type: ignore[no-untyped-call]
    return outputs
