"""A multilayer perceptron."""

import itertools
from collections.abc import Sequence

from torch import nn

__all__ = ["mlp"]


def mlp(widths: Sequence[int], *, last_relu: bool) -> nn.Sequential:
    """Linear layers `widths[0] -> widths[1] -> ...` with ReLU in between, and behind the last if asked.

    Example:
        >>> len(mlp([3, 8, 1], last_relu=False))
        3
    """
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(inputs, outputs))
        if last_relu or number < len(widths) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)
