"""What work costs on a machine that is described, not run."""

from tiermem.perf.dense import DenseCost, dense_cost, serving_costs

__all__ = ["DenseCost", "dense_cost", "serving_costs"]
