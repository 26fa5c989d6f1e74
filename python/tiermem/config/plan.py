"""What to plan: a trace, a hierarchy with budgets, and how a step runs."""

import os
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tiermem.config.base import Config, DurationNs
from tiermem.config.hierarchy import Budget, Hierarchy, HierarchySource
from tiermem.config.names import load_named
from tiermem.config.optimizer import OptimizerConfig, RowWiseAdagrad

__all__ = ["PlanConfig", "TargetConfig"]


class TargetConfig(Config):
    """A throughput, and what the machine that reaches it should have least of."""

    samples_per_s: float = Field(gt=0)
    """Of all nodes together."""
    objective: Literal["nodes", "power", "cost"]
    """What there should be least of."""
    nodes_max: int = Field(default=1024, ge=1, le=2**16)
    """No more nodes than this; tables, lookups and dense work are divided evenly over them."""
    fastest_shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0, 0.5, 0.25)
    """Of the fastest tier's budget, what may be bought."""
    node_watts: float = Field(ge=0)
    """Of a node without its tiers."""
    node_price_dollars: float = Field(ge=0)
    """Of a node without its tiers."""
    source: str
    """Where these numbers come from, or the word assumed."""


class PlanConfig(Config):
    """A planning job, `emulator_configs/plans/NAME.toml`.

    The budget of a tier is what a plan may use of it in all, for homes, cache and new numbers of rows.
    """

    description: str = ""
    """What it is, for people."""
    trace: str
    """A trace file. The bytes of its rows are those of whole images: fp32 weights and optimizer state."""
    profile_share: float = Field(default=0.6, gt=0, lt=1)
    """Share of the batches, from the first one on, that the plan is made from. The others verify it."""
    hierarchy: HierarchySource
    """A name, a path, or a table with the contents of a hierarchy file."""
    budgets: dict[str, Budget] = Field(default_factory=dict)
    """Budgets by tier name; replace the hierarchy's."""
    optimizer: OptimizerConfig = RowWiseAdagrad(lr=0.05)
    """Whose state is part of a row."""
    training: bool = True
    """Whether rows are updated."""
    prefetch_distance: int = Field(default=1, ge=0, le=64)
    """Batches fetched ahead; 0: only when they are needed."""
    dense_ns_per_step: DurationNs
    """Dense work of a step; an integer of nanoseconds, or a string such as "2ms"."""
    source: str
    """Where that number comes from, or the word assumed."""
    life_years: int = Field(default=0, ge=0, le=100)
    """How long devices must last at the rate at which steps write to them; 0: no limit."""
    target: TargetConfig | None = None
    """Which machine to plan for, if that is the question; budgets are those of one node."""
    milp_seconds: float = Field(default=0.0, ge=0)
    """How long the integer program may look for better whole-table choices; 0: not at all."""
    seed: int = Field(default=1, ge=0)
    """Of the random baseline, and of latency draws."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hierarchy.clock != "virtual":
            raise ValueError("a plan is verified in virtual time; leave hierarchy.clock out")
        if self.target is not None and self.milp_seconds > 0:
            raise ValueError("with a target no integer program runs; leave milp_seconds out")
        return self

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Self:
        """A shipped job by name, or a file, with `path.to.key=value` overrides.

        Raises:
            ConfigError: names the file, the key, and what is wrong.
        """
        values, path = load_named("plans", name_or_path, overrides)
        return cls.from_mapping(values, where=path.name)

    def effective_hierarchy(self) -> Hierarchy:
        """The hierarchy with the job's budgets."""
        return self.hierarchy.with_budgets(self.budgets)
