"""Dense work of one DLRM step, counted, and its time on the machine of a `[compute]` table."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from tiermem.config import ComputeConfig, ModelConfig

__all__ = ["DenseCost", "dense_cost", "serving_costs"]

_BYTES_PER_FLOAT = 4
# A backward pass computes the gradient of the inputs and that of the weights.
_BACKWARD_FLOPS_PER_FORWARD = 2
# Each parameter is read forward and backward and written once; AdamW reads and writes two moments
# and reads the gradient that was written.
_PARAMETER_PASSES_TRAINING = 9


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DenseCost:
    """Work of one step."""

    flops: int
    nbytes: int

    def time_ns(self, compute: ComputeConfig) -> int:
        """The roofline: the longer of arithmetic and memory, plus the overhead of a step.

        Ignores that layers cannot all reach either bound; a performance model per kernel is later work.
        """
        bound_s = max(self.flops / compute.flops_per_s, self.nbytes / compute.bytes_per_s)
        return math.ceil(bound_s * 1e9) + compute.overhead_ns_per_step


def _layers(widths: Sequence[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(widths))


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """Layers, and what else is computed for a sample."""

    layers: list[tuple[int, int]]
    flops: int = 0
    activations: int = 0

    def parameters(self) -> int:
        return sum(inputs * outputs + outputs for inputs, outputs in self.layers)

    def sample_flops(self) -> int:
        return self.flops + sum(2 * inputs * outputs for inputs, outputs in self.layers)

    def sample_activations(self) -> int:
        return self.activations + sum(inputs + outputs for inputs, outputs in self.layers)


def _parts(model: ModelConfig, dense_features: int, sparse_features: int) -> tuple[_Part, _Part]:
    """The dense arch; the interaction with the over arch."""
    vectors = sparse_features + 1
    crossed = model.dim + vectors * (vectors - 1) // 2
    return (
        _Part(_layers([max(1, dense_features), *model.dense_layers, model.dim])),
        _Part(
            _layers([crossed, *model.over_layers, 1]),
            flops=2 * vectors**2 * model.dim,
            activations=vectors * model.dim + vectors**2,
        ),
    )


def _cost(part: _Part, batch: int, passes: int = 1, parameter_passes: int = 1) -> DenseCost:
    floats = part.parameters() * parameter_passes + 2 * batch * part.sample_activations() * passes
    return DenseCost(flops=batch * part.sample_flops() * passes, nbytes=_BYTES_PER_FLOAT * floats)


def dense_cost(
    model: ModelConfig, *, dense_features: int, sparse_features: int, batch: int, training: bool
) -> DenseCost:
    """FLOPs and bytes of the dense arch, the interaction and the over arch on a batch.

    A multiply-add is two FLOPs. Bytes: parameters, and activations written and read once per pass.
    """
    passes = 1 + _BACKWARD_FLOPS_PER_FORWARD if training else 1
    parameter_passes = _PARAMETER_PASSES_TRAINING if training else 1
    lower, upper = (
        _cost(part, batch, passes, parameter_passes)
        for part in _parts(model, dense_features, sparse_features)
    )
    return DenseCost(flops=lower.flops + upper.flops, nbytes=lower.nbytes + upper.nbytes)


def serving_costs(
    model: ModelConfig, *, dense_features: int, sparse_features: int, candidates: int
) -> tuple[DenseCost, DenseCost]:
    """The dense arch for the one user of a query, and interaction and over arch for all its candidates."""
    lower, upper = _parts(model, dense_features, sparse_features)
    return _cost(lower, 1), _cost(upper, candidates)
