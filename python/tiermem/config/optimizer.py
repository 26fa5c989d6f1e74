"""Optimizers of embedding rows, and how rows are stored; docs/design/embedding-kernels.md: the arithmetic."""

import math
import struct
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from tiermem.config.base import Config

__all__ = [
    "LAMB",
    "SGD",
    "Adagrad",
    "Adam",
    "OptimizerConfig",
    "PartialRowWiseAdam",
    "Rounding",
    "RowType",
    "RowWiseAdagrad",
]

RowType = Literal["fp32", "fp16", "bf16", "int8"]
"""How the weights of a row are stored; sums and optimizer state are fp32 always."""
Rounding = Literal["stochastic", "nearest"]
"""How updated weights go back into a row type that is narrower than fp32."""


def _in_fp32(value: float) -> float:
    """The kernels compute in fp32: a value that becomes another kind of value there is refused.

    Raises:
        ValueError: if it is 0, 1 or infinite in fp32 and was not before.
    """
    try:
        rounded = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        rounded = math.inf
    for special in (0.0, 1.0, math.inf):
        if rounded == special != value:
            raise ValueError(f"{value} is {special:g} in fp32, in which rows are updated")
    return value


Fp32 = Annotated[float, AfterValidator(_in_fp32)]
"""A number that fp32 holds."""
Beta = Annotated[Fp32, Field(ge=0, lt=1)]
"""Decay of a running mean: 0 keeps the newest value alone."""


class SGD(Config):
    """`g += weight_decay * w`, `w -= lr * g`; with momentum `m = momentum * m + g`, `w -= lr * m`.

    No state, or D floats per row with momentum. As for all optimizers here the gradients of a row are summed
    first, and a row that a step does not look up keeps its weights and its state. Rule: `torch.optim.SGD`.
    """

    name: Literal["sgd"] = "sgd"
    """Selects this optimizer in a file."""
    lr: Fp32 = Field(gt=0)
    """Learning rate."""
    momentum: Fp32 = Field(default=0.0, ge=0, lt=1)
    """How much of the last step goes into this one; 0 needs no state."""
    weight_decay: Fp32 = Field(default=0.0, ge=0)
    """Share of the weights that is added to the gradient."""

    def core(self) -> dict[str, Any]:
        """The part that the extension reads; the learning rate comes with each step."""
        return {"name": self.name, "momentum": self.momentum, "weight_decay": self.weight_decay}

    def state_floats(self, dim: int) -> int:
        """Floats of state in a row of `dim` columns."""
        return dim if self.momentum else 0


class Adagrad(Config):
    """`g += weight_decay * w`, `s += g^2`, `w -= lr * g / (sqrt(s) + eps)`, column by column.

    D floats of state per row. Rule: Duchi, Hazan and Singer, JMLR 12 (2011).
    """

    name: Literal["adagrad"] = "adagrad"
    """Selects this optimizer in a file."""
    lr: Fp32 = Field(gt=0)
    """Learning rate."""
    eps: Fp32 = Field(default=1e-10, gt=0)
    """Keeps the division defined."""
    weight_decay: Fp32 = Field(default=0.0, ge=0)
    """Share of the weights that is added to the gradient."""

    def core(self) -> dict[str, Any]:
        """The part that the extension reads; the learning rate comes with each step."""
        return {"name": self.name, "eps": self.eps, "weight_decay": self.weight_decay}

    def state_floats(self, dim: int) -> int:
        """Floats of state in a row of `dim` columns."""
        return dim


class RowWiseAdagrad(Config):
    """`g += weight_decay * w`, `s += mean(g^2)`, `w -= lr / (sqrt(s) + eps) * g`.

    One float of state per row. Rule: FBGEMM `codegen/genscript/optimizers.py`, `rowwise_adagrad`.
    """

    name: Literal["rowwise_adagrad"] = "rowwise_adagrad"
    """Selects this optimizer in a file."""
    lr: Fp32 = Field(gt=0)
    """Learning rate."""
    eps: Fp32 = Field(default=1e-8, gt=0)
    """Keeps the division defined."""
    weight_decay: Fp32 = Field(default=0.0, ge=0)
    """Share of the weights that is added to the gradient."""

    def core(self) -> dict[str, Any]:
        """The part that the extension reads; the learning rate comes with each step."""
        return {"name": self.name, "eps": self.eps, "weight_decay": self.weight_decay}

    def state_floats(self, dim: int) -> int:  # noqa: ARG002 (one signature for all)
        """Floats of state in a row of `dim` columns."""
        return 1


class _Moments(Config):
    """What Adam and its relatives share: running means of the gradient and of its square."""

    name: str
    """Selects this optimizer in a file."""
    lr: Fp32 = Field(gt=0)
    """Learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the mean gradient `m` and of the mean square `v`."""
    eps: Fp32 = Field(default=1e-8, gt=0)
    """Keeps the division defined."""
    weight_decay: Fp32 = Field(default=0.0, ge=0)
    """Share of the weights that is added to the gradient."""

    def core(self) -> dict[str, Any]:
        """The part that the extension reads; the learning rate comes with each step."""
        beta1, beta2 = self.betas
        return {
            "name": self.name,
            "beta1": beta1,
            "beta2": beta2,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }

    def state_floats(self, dim: int) -> int:
        """Floats of state in a row of `dim` columns."""
        return 2 * dim


class Adam(_Moments):
    """`m`, `v` running means of `g` and `g^2`; `w -= lr * m' / (sqrt(v') + eps)`, bias-corrected, lazy.

    2 D floats of state per row: `m`, then `v`. The correction counts all steps, not those of the row. Weight
    decay goes into the gradient. Rule: Kingma and Ba, ICLR 2015.
    """

    name: Literal["adam"] = "adam"
    """Selects this optimizer in a file."""


class PartialRowWiseAdam(_Moments):
    """Adam with one `v` for a row, the running mean of `mean(g^2)`.

    D + 1 floats of state per row: `m`, then `v`. Rule: FBGEMM `codegen/genscript/optimizers.py`,
    `partial_rowwise_adam`.
    """

    name: Literal["partial_rowwise_adam"] = "partial_rowwise_adam"
    """Selects this optimizer in a file."""

    def state_floats(self, dim: int) -> int:
        """Floats of state in a row of `dim` columns."""
        return dim + 1


class LAMB(_Moments):
    """Adam's step `r`, plus `weight_decay * w`, scaled row by row to `lr * norm(w) / norm(r)`.

    2 D floats of state per row: `m`, then `v`. Where a norm is 0 the ratio is 1. Rule: You et al., ICLR 2020,
    with a row as the layer, as FBGEMM has it.
    """

    name: Literal["lamb"] = "lamb"
    """Selects this optimizer in a file."""
    eps: Fp32 = Field(default=1e-6, gt=0)
    """Keeps the division defined."""
    weight_decay: Fp32 = Field(default=0.0, ge=0)
    """Share of the weights that is added to the step."""


OptimizerConfig = Annotated[
    SGD | Adagrad | RowWiseAdagrad | Adam | PartialRowWiseAdam | LAMB, Field(discriminator="name")
]
"""Any of them, by `name`."""
