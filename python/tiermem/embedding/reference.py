"""A plain, slow twin of the store in PyTorch: dense tables, `embedding_bag`, one update a row.

For tests and for readers; it adds in torch's order, so it agrees with the store within rounding. Stochastic
rounding draws the store's numbers: `row_keys` and `random_bits` are its generator, in numpy.
docs/design/embedding-kernels.md says what each line is to be. D = columns.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from tiermem.config import (
    LAMB,
    SGD,
    Adagrad,
    Adam,
    OptimizerConfig,
    PartialRowWiseAdam,
    Rounding,
    RowType,
)

__all__ = ["ReferenceTable", "mix", "random_bits", "round_rows", "row_keys", "stream"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LOW = np.uint64(0xFFFFFFFF)
_FP16_MAX = np.float32(65504)
_NO_IDS = torch.zeros(0, dtype=torch.int64)


def mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), for arrays."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def stream(seed: npt.NDArray[np.uint64], index: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The key of stream `index` of `seed`."""
    return mix(mix(seed + _GOLDEN) + index * _GOLDEN)


def row_keys(
    seed: int, step: int, table: int, rows: npt.NDArray[np.int64] | list[int]
) -> npt.NDArray[np.uint64]:
    """The 64-bit key of each row in one step."""
    key = np.array([seed], np.uint64)
    for index in (step, table):
        key = stream(key, np.array([index], np.uint64))
    return stream(key, np.asarray(rows).astype(np.uint64))


def random_bits(keys: npt.NDArray[np.uint64], dim: int) -> npt.NDArray[np.uint32]:
    """32 random bits for each element of each row: uint32 [rows, `dim`]."""
    low, high = (keys & _LOW).astype(np.uint32), (keys >> np.uint64(32)).astype(np.uint32)
    x = low[:, None] + np.uint32(0x9E3779B9) * np.arange(dim, dtype=np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    bits: npt.NDArray[np.uint32] = x ^ (x >> np.uint32(16)) ^ high[:, None]
    return bits


def round_rows(
    values: torch.Tensor, row_type: RowType, bits: npt.NDArray[np.uint32] | None = None
) -> torch.Tensor:
    """What is read back after rows were written: encoded and decoded, float32 [rows, D].

    Args:
        values: float32 [rows, D].
        row_type: what the rows are stored as.
        bits: random bits of `random_bits` for stochastic rounding; `None` rounds to nearest.
    """
    if row_type == "int8":
        return _round_int8(values, bits)
    if row_type == "fp16":
        return values.half().float() if bits is None else _round_fp16(values, bits)
    if row_type == "bf16":
        return values.bfloat16().float() if bits is None else _round_bf16(values, bits)
    return values.clone()


def _round_int8(values: torch.Tensor, bits: npt.NDArray[np.uint32] | None) -> torch.Tensor:
    bias = values.amin(dim=1, keepdim=True)
    scale = (values.amax(dim=1, keepdim=True) - bias) / torch.tensor(255.0)
    # A row whose scale is too small for an inverse counts as constant.
    inverse = torch.where(scale * torch.finfo(torch.float32).max >= 1, 1 / scale, 0.0)
    position = (values - bias) * inverse
    if bits is None:
        codes = position.round()
    else:
        shift = (bits >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
        codes = (position + torch.from_numpy(shift)).floor()
    is_finite = values.isfinite().all(dim=1, keepdim=True)
    return codes.clamp(0, 255) * torch.where(is_finite, scale, torch.nan) + bias


def _round_fp16(values: torch.Tensor, bits: npt.NDArray[np.uint32]) -> torch.Tensor:
    x = values.numpy()
    is_finite = np.isfinite(x)
    magnitude = np.abs(np.where(is_finite, x, 0))
    # frexp gives a mantissa in [0.5, 1), so the exponent of x is one less; that of zero means nothing.
    exponent = np.where(magnitude > 0, np.frexp(magnitude)[1] - 1, -24)
    ulp = np.ldexp(np.float32(1), np.maximum(exponent - 10, -24))
    shift = (bits >> np.uint32(19)).astype(np.float32) * np.float32(2.0**-13)
    raised = np.minimum(magnitude + shift * ulp, _FP16_MAX)
    nearest = raised.astype(np.float16)
    down = np.nextafter(nearest, np.float16(0))
    cut = np.where(nearest.astype(np.float32) > raised, down, nearest).astype(np.float32)
    return torch.from_numpy(np.where(is_finite, np.copysign(cut, x), x))


def _round_bf16(values: torch.Tensor, bits: npt.NDArray[np.uint32]) -> torch.Tensor:
    x = values.numpy()
    # A sum that carries into the exponent is the next binade, and beyond the largest number infinity.
    raised = x.view(np.uint32) + (bits >> np.uint32(16))
    cut = (raised & np.uint32(0xFFFF0000)).view(np.float32)
    return torch.from_numpy(np.where(np.isfinite(x), cut, x))


class ReferenceTable:
    """One table.

    Args:
        weights: initial values float32 [rows, D], such as the row type holds; copied.
        optimizer: of the rows.
        mode: "sum", "mean" or "none".
        row_type: what updated rows are stored as.
        rounding: "nearest", or "stochastic" by the numbers of `seed`, `table` and the step.
        seed: that of the store.
        table: the table's number in the store.

    Attributes:
        weights: what is stored, decoded: float32 [rows, D], with a gradient after a backward pass.
        state: float32 [rows, S], in the store's order.
        lr: learning rate of the next step.
        steps: steps so far, those included in which only other tables of the store were looked up.
        unrounded: float32 [rows, D]; rows of the last step as they were before they were stored.
    """

    def __init__(
        self,
        weights: torch.Tensor,
        optimizer: OptimizerConfig,
        mode: str,
        row_type: RowType = "fp32",
        rounding: Rounding = "nearest",
        *,
        seed: int = 1,
        table: int = 0,
    ) -> None:
        self.weights = weights.clone().requires_grad_()
        self.state = torch.zeros(len(weights), optimizer.state_floats(weights.shape[1]))
        self.optimizer = optimizer
        self.mode = mode
        self.row_type = row_type
        self.rounding = rounding
        self.seed = seed
        self.table = table
        self.lr = optimizer.lr
        self.steps = 0
        self.unrounded = weights.clone()
        self._touched: list[torch.Tensor] = []

    @property
    def accumulator(self) -> torch.Tensor:
        """The last float of state of each row, float32 [rows]: all of it where a rule is row-wise."""
        return self.state[:, -1]

    def forward(
        self, ids: torch.Tensor, offsets: torch.Tensor, sample_weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Pools bags: float32 [B, D], differentiable; with mode "none" the L rows themselves, [L, D]."""
        ids = ids.long()
        if self.mode == "none":
            pooled = functional.embedding(ids, self.weights)
        else:
            pooled = functional.embedding_bag(
                ids, self.weights, offsets.long(), mode="sum", per_sample_weights=sample_weights
            )
        if self.mode == "mean":
            ends = torch.cat([offsets[1:].long(), torch.tensor([len(ids)])])
            pooled = pooled / (ends - offsets).clamp(min=1).unsqueeze(1)
        if pooled.requires_grad:
            # A row counts as looked up when backward comes by, whatever the gradient.
            pooled.register_hook(lambda _: self._touched.append(ids))  # type: ignore[no-untyped-call]
        return pooled

    def load(self, weights: torch.Tensor, state: torch.Tensor) -> None:
        """Goes on from rows as `EmbeddingStore.read_rows` gives them."""
        self.weights.data.copy_(weights)
        self.state.copy_(state)

    def zero_grad(self) -> None:
        """Forgets the gradients since the last step."""
        self.weights.grad = None
        self._touched.clear()

    @torch.no_grad()
    def step(self) -> None:
        """One update of every row that was looked up since the last step; no other row changes."""
        self.steps += 1
        gradient = self.weights.grad
        rows = torch.from_numpy(np.unique(torch.cat([_NO_IDS, *self._touched]).numpy()))
        if gradient is not None and len(rows):
            w, state = self.weights[rows], self.state[rows]
            updated = w - self._change(w, state, gradient[rows])
            self.state[rows] = state
            self.unrounded[rows] = updated
            self.weights[rows] = round_rows(updated, self.row_type, self._bits(rows))
        self.zero_grad()

    def _bits(self, rows: torch.Tensor) -> npt.NDArray[np.uint32] | None:
        if self.rounding == "nearest":
            return None
        return random_bits(row_keys(self.seed, self.steps, self.table, rows.numpy()), self.weights.shape[1])

    def _change(self, w: torch.Tensor, state: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """What is taken from the rows; brings their state up to date."""
        rule, lr = self.optimizer, torch.tensor(self.lr)
        if isinstance(rule, Adam | PartialRowWiseAdam | LAMB):
            return self._change_by_moments(rule, w, state, g)
        if rule.weight_decay:
            g = g + rule.weight_decay * w
        if isinstance(rule, SGD):
            if rule.momentum:
                g = state.copy_(rule.momentum * state + g)
            return lr * g
        if isinstance(rule, Adagrad):
            state += g * g
            return lr * (g / (state.sqrt() + rule.eps))
        # Row-wise AdaGrad.
        state += (g * g).mean(dim=1, keepdim=True)
        return (lr / (state.sqrt() + rule.eps)) * g

    def _change_by_moments(
        self, rule: Adam | PartialRowWiseAdam | LAMB, w: torch.Tensor, state: torch.Tensor, g: torch.Tensor
    ) -> torch.Tensor:
        if rule.weight_decay and not isinstance(rule, LAMB):
            g = g + rule.weight_decay * w
        square = g * g
        if isinstance(rule, PartialRowWiseAdam):
            square = square.mean(dim=1, keepdim=True)
        # Factors come in doubles from float32 parameters, and are rounded where they meet a tensor.
        lr, beta1, beta2 = (float(np.float32(value)) for value in (self.lr, *rule.betas))
        m, v = state[:, : w.shape[1]], state[:, w.shape[1] :]
        m.copy_(beta1 * m + (1 - beta1) * g)
        v.copy_(beta2 * v + (1 - beta2) * square)
        correction = 1 - beta1**self.steps
        root = v.sqrt() * (1 / math.sqrt(1 - beta2**self.steps)) + rule.eps
        if isinstance(rule, LAMB):
            r = (m / correction) / root + rule.weight_decay * w
            of_w, of_r = w.norm(dim=1, keepdim=True), r.norm(dim=1, keepdim=True)
            step = torch.where((of_w == 0) | (of_r == 0), lr, lr * of_w / of_r)
            return step * r
        step = torch.tensor(lr / correction)
        return (step / root) * m if isinstance(rule, PartialRowWiseAdam) else step * (m / root)
