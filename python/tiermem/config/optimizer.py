"""Optimizers of embedding rows."""

from typing import Annotated, Any, Literal

from pydantic import Field

from tiermem.config.base import Config

__all__ = ["SGD", "OptimizerConfig", "RowWiseAdagrad"]


class SGD(Config):
    """`w -= lr * g`, with the gradients of a row summed first."""

    name: Literal["sgd"] = "sgd"
    """Selects this optimizer in a file."""
    lr: float = Field(gt=0)
    """Learning rate."""

    def core(self) -> dict[str, Any]:
        """The part that the extension reads; the learning rate comes with each step."""
        return {"name": self.name}


class RowWiseAdagrad(Config):
    """`m += mean(g^2)`, `w -= lr / (sqrt(m) + eps) * g`, with the gradients of a row summed first.

    One float of state per row. Rule: FBGEMM `codegen/genscript/optimizers.py`, `rowwise_adagrad`.
    """

    name: Literal["rowwise_adagrad"] = "rowwise_adagrad"
    """Selects this optimizer in a file."""
    lr: float = Field(gt=0)
    """Learning rate."""
    eps: float = Field(default=1e-8, gt=0)
    """Keeps the division defined."""

    def core(self) -> dict[str, Any]:
        """The part that the extension reads; the learning rate comes with each step."""
        return {"name": self.name, "eps": self.eps}


OptimizerConfig = Annotated[SGD | RowWiseAdagrad, Field(discriminator="name")]
"""Any of them, by `name`."""
