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


def dense_cost(
    model: ModelConfig, *, dense_features: int, sparse_features: int, batch: int, training: bool
) -> DenseCost:
    """FLOPs and bytes of the dense arch, the interaction and the over arch on a batch.

    A multiply-add is two FLOPs. Bytes: parameters, and activations written and read once per pass.
    """
    vectors = sparse_features + 1
    crossed = model.dim + vectors * (vectors - 1) // 2
    layers = _layers([max(1, dense_features), *model.dense_layers, model.dim])
    layers += _layers([crossed, *model.over_layers, 1])
    parameters = sum(inputs * outputs + outputs for inputs, outputs in layers)
    per_sample = sum(2 * inputs * outputs for inputs, outputs in layers) + 2 * vectors**2 * model.dim
    activations = sum(inputs + outputs for inputs, outputs in layers) + vectors * model.dim + vectors**2
    passes = 1 + _BACKWARD_FLOPS_PER_FORWARD if training else 1
    parameter_passes = _PARAMETER_PASSES_TRAINING if training else 1
    return DenseCost(
        flops=batch * per_sample * passes,
        nbytes=_BYTES_PER_FLOAT * (parameters * parameter_passes + 2 * batch * activations * passes),
    )


def serving_costs(
    model: ModelConfig, *, dense_features: int, sparse_features: int, candidates: int
) -> tuple[DenseCost, DenseCost]:
    """The dense arch for the one user of a query, and interaction and over arch for all its candidates.

    A multiply-add is two FLOPs. Bytes: parameters, and activations written and read.
    """
    vectors = sparse_features + 1
    crossed = model.dim + vectors * (vectors - 1) // 2
    lower = _layers([max(1, dense_features), *model.dense_layers, model.dim])
    upper = _layers([crossed, *model.over_layers, 1])

    def cost(layers: list[tuple[int, int]], batch: int, flops: int, activations: int) -> DenseCost:
        parameters = sum(inputs * outputs + outputs for inputs, outputs in layers)
        flops += sum(2 * inputs * outputs for inputs, outputs in layers)
        activations += sum(inputs + outputs for inputs, outputs in layers)
        return DenseCost(
            flops=batch * flops, nbytes=_BYTES_PER_FLOAT * (parameters + 2 * batch * activations)
        )

    interaction = (2 * vectors**2 * model.dim, vectors * model.dim + vectors**2)
    return cost(lower, 1, 0, 0), cost(upper, candidates, *interaction)
