"""A torch optimizer whose step updates the rows of a store."""

from collections.abc import Callable
from typing import Any, overload

import torch

from tiermem.embedding.store import EmbeddingStore
from tiermem.errors import ConfigError, InputError

__all__ = ["RowOptimizer"]


class RowOptimizer(torch.optim.Optimizer):
    """Applies the gradients that a store kept since the last step: one update a row.

    Its one parameter group holds the learning rate, so torch's schedulers work. Its one parameter
    is an empty stand-in: rows are not tensors of this process.
    """

    # `torch.amp.GradScaler` hands its scale over, which `step` refuses.
    _step_supports_amp_scaling = True

    def __init__(self, store: EmbeddingStore, anchor: torch.Tensor, lr: float, *, fused: bool) -> None:
        self._store = store
        self._fused = fused
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
        if getattr(self, "grad_scale", None) is not None:
            raise ConfigError(
                "GradScaler does not see the gradients of rows; use autocast with bfloat16,"
                " which needs no scaling"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._store.step(self.lr)
        return loss

    def clip_grad_norm_(self, max_norm: float) -> float:
        """Scales the gradients since the last step so that their Euclidean norm is at most `max_norm`.

        The gradients of a row are summed over its lookups first.

        Returns:
            The norm before. To clip together with other parameters, use `grad_norm` and `scale_grad_`.

        Raises:
            ConfigError: if gradients are applied inside backward.
        """
        if not max_norm >= 0:
            raise InputError(f"max_norm must not be negative, got {max_norm}")
        norm = self.grad_norm()
        # A norm that is not a number makes every gradient one, as torch does.
        if not norm <= max_norm:
            # Torch's rule.
            self.scale_grad_(max_norm / (norm + 1e-6))
        return norm

    def grad_norm(self) -> float:
        """The Euclidean norm of the gradients since the last step.

        Raises:
            ConfigError: if gradients are applied inside backward.
        """
        self._check_kept()
        return self._store.gradient_norm()

    def scale_grad_(self, factor: float) -> None:
        """Multiplies the gradients since the last step by a factor.

        Raises:
            ConfigError: if gradients are applied inside backward.
        """
        self._check_kept()
        self._store.scale_gradients(factor)

    def _check_kept(self) -> None:
        if self._fused:
            raise ConfigError(
                "fused_in_backward=True applies gradients at once and keeps none to clip; leave it at False"
            )

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 (torch's signature)
        """Forgets the gradients since the last step."""
        super().zero_grad(set_to_none)
        self._store.discard()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds the one group of the store; torch calls this once."""
        if self.param_groups:
            raise ValueError("a store has one group of rows; give other parameters to another optimizer")
        super().add_param_group(param_group)
