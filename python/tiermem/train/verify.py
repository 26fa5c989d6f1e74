"""Plans in the emulator: what was predicted, and what a replay in virtual time measures."""

import dataclasses
from collections.abc import Sequence

from tiermem.config import OptimizerConfig
from tiermem.data.accesses import Batch
from tiermem.embedding import TableConfig
from tiermem.errors import ConfigError
from tiermem.planner.arrays import Arrays
from tiermem.planner.plan import new_numbers, placement_of, run_hierarchy
from tiermem.planner.profile import AccessProfile
from tiermem.planner.solve import Candidate
from tiermem.train.replay import Replayed, replay

__all__ = ["Verified", "store_tables", "verify"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """One plan."""

    candidate: Candidate
    measured: Replayed

    @property
    def error(self) -> float:
        """Predicted step over the measured one, less one."""
        return self.candidate.prediction.step_ns / self.measured.step_ns - 1


def verify(
    arrays: Arrays,
    candidates: Sequence[Candidate],
    tables: Sequence[TableConfig],
    *,
    optimizer: OptimizerConfig,
    batches: Sequence[Batch],
    warm_up_steps: int,
    seed: int = 1,
) -> list[Verified]:
    """Replays assignments of one problem on the same batches.

    Args:
        arrays: the problem.
        candidates: the assignments with their predictions.
        tables: as a store has them.
        optimizer: whose state is part of the rows.
        batches: warm-up, measured steps, and those fetched ahead of the last one.
        warm_up_steps: steps before the measured ones.
        seed: of latency draws.
    """
    problem = arrays.problem
    ahead = problem.prefetch_distance
    return [
        Verified(
            candidate=candidate,
            measured=replay(
                tables,
                hierarchy=run_hierarchy(problem.hierarchy, candidate.assignment),
                optimizer=optimizer,
                batches=batches,
                warm_up_steps=warm_up_steps,
                steps=len(batches) - warm_up_steps - ahead,
                dense_ns=problem.dense_ns,
                placement=placement_of(arrays, candidate.assignment),
                numbers=new_numbers(problem.profile, candidate.assignment.renumbered),
                prefetch_distance=ahead,
                training=problem.training,
                seed=seed,
            ),
        )
        for candidate in candidates
    ]


def store_tables(profile: AccessProfile) -> tuple[TableConfig, ...]:
    """The tables of a profile as tables of fp32 rows.

    Raises:
        ConfigError: if a row's weights are no whole number of floats.
    """
    for table in profile.tables:
        if table.weight_bytes % 4 or table.weight_bytes < 4:
            raise ConfigError(
                f'rows of table "{table.name}" have {table.weight_bytes} bytes of weights, which is no number'
                " of fp32 columns; a replay needs rows of 4, 8, 12 ... bytes besides the optimizer's state"
            )
    return tuple(
        TableConfig(name=table.name, rows=table.rows, dim=table.weight_bytes // 4) for table in profile.tables
    )
