"""How fast a system trains a model, and the fewest nodes at which it is fast enough."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping

from tiermem.config.hierarchy import Layout
from tiermem.config.node import NodeConfig
from tiermem.errors import CapacityError
from tiermem.planner.arrays import Arrays
from tiermem.planner.baselines import baseline
from tiermem.planner.evaluate import Prediction, TierLoad, evaluate
from tiermem.planner.pictures import tables_by_home, tier_points
from tiermem.planner.problem import Problem
from tiermem.planner.profile import AccessProfile
from tiermem.planner.solve import fits, solve
from tiermem.planner.target import busy_shares, fewest_nodes, with_some
from tiermem.study.machine import Machine, StepParts
from tiermem.study.workload import Drift, Workload

__all__ = ["Point", "Trainer", "Variant"]

_STAGED_BATCHES = 2
_STILL = Drift()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """How a system is run."""

    prefetch_distance: int = 1
    placement: str = ""
    """A baseline of the planner in the place of its plan."""
    deduplicated: bool = True
    cache_share: float = 1.0
    drift: Drift = _STILL
    is_worn: bool = True
    """Whether devices must last for the years of the node."""
    local_batch: int = 0
    """Samples of an accelerator, so that the batch grows with the nodes; 0: the model's batch."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A model on so many nodes."""

    nodes: int
    samples_per_s: float
    step_ns: float
    parts_ns: Mapping[str, float]
    """ "wait", "gather", "update", "compute", "all-to-all", "all-reduce", "overhead"; they add up."""
    binding: str
    """What the step would be shortened by."""
    tiers: tuple[TierLoad, ...]
    """Of one node."""
    busy: Mapping[str, tuple[float, float]]
    """By tier for which shares of the time it reads and writes."""
    homes: Mapping[str, tuple[tuple[float, float], ...]]
    """By home (bytes, bytes per second asked for) of each group of tables, of one node."""
    reads: Mapping[str, tuple[float, float]]
    """By tier that is read (mean bytes of a read, reads per second), of one node; of the fastest, lookups."""
    plan: str
    """Which of the planner's candidates it is."""
    gap: float
    """Its step over the planner's bound, less one; 0 for a baseline."""
    layout: str = ""
    """Of the block device; empty without one."""
    power_watts: float = 0.0
    """Of all nodes."""
    price_dollars: float = 0.0
    """Of all nodes."""


_AS_PLANNED = Variant()


class Trainer:
    """Trains one model on nodes of one kind, and remembers what it found.

    Args:
        workload: the model.
        node: what a node has and may have.
    """

    def __init__(self, workload: Workload, node: NodeConfig) -> None:
        self.workload = workload
        self.node = node
        self._found: dict[tuple[tuple[str, ...], Layout, int, Variant, float], Point | None] = {}

    def at(self, tiers: tuple[str, ...], nodes: int, variant: Variant = _AS_PLANNED) -> Point | None:
        """The mean step on so many nodes with these tiers, some of which may be left idle; `None`: no room.

        The best of all: with and without each tier below the first two, with both layouts of a block device.
        """
        found = []
        for used, layout in self._options(tiers):
            point = self._remembered(used, layout, nodes, variant)
            if point is not None:
                found.append((point, layout))
                if point.parts_ns["wait"] == 0:
                    # No choice of rows makes the rest of a step shorter.
                    break
        if not found:
            return None
        best, layout = max(found, key=lambda each: each[0].samples_per_s)
        machine = Machine(node=self.node, tiers=tiers, nodes=nodes)
        is_block = self.node.tiers[best.tiers[-1].name].spec().kind == "block"
        return dataclasses.replace(
            best,
            power_watts=machine.power_watts(best.busy),
            price_dollars=machine.price_dollars(),
            layout=layout if is_block else "",
        )

    def fewest(
        self,
        tiers: tuple[str, ...],
        *,
        target_samples_per_s: float,
        nodes_max: int,
        variant: Variant = _AS_PLANNED,
    ) -> Point | None:
        """The fewest nodes that were found to reach a throughput; `None` if none were up to `nodes_max`."""

        def reaches(nodes: int) -> bool:
            ceiling = self._ceiling(tiers, nodes, variant)
            if ceiling is None or ceiling < target_samples_per_s:
                return False
            points = (
                self._remembered(used, layout, nodes, variant, enough=target_samples_per_s)
                for used, layout in self._options(tiers)
            )
            return any(point is not None and point.samples_per_s >= target_samples_per_s for point in points)

        nodes = fewest_nodes(reaches, nodes_max)
        return None if nodes is None else self.at(tiers, nodes, variant)

    def _ceiling(self, tiers: tuple[str, ...], nodes: int, variant: Variant) -> float | None:
        """Samples per second if no row is ever waited for; `None`: no room."""
        try:
            arrays = Arrays(
                _problem(self.workload, self.node, tiers, "in_place", nodes=nodes, variant=variant)[0]
            )
        except CapacityError:
            return None
        return arrays.problem.profile.bags / float(arrays.host_ns) * 1e9

    def _options(self, tiers: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Layout]]:
        layouts: tuple[Layout, ...] = ("log", "in_place")
        for used in with_some(tiers, always=2):
            is_block = self.node.tiers[used[-1]].spec().kind == "block"
            yield from ((used, layout) for layout in layouts[0 if is_block else 1 :])

    def _remembered(
        self, used: tuple[str, ...], layout: Layout, nodes: int, variant: Variant, *, enough: float = 0.0
    ) -> Point | None:
        key = (used, layout, nodes, variant, enough)
        if key not in self._found:
            try:
                self._found[key] = _train(
                    self.workload, self.node, used, layout, nodes=nodes, variant=variant, enough=enough
                )
            except CapacityError:
                self._found[key] = None
        return self._found[key]


@functools.lru_cache(maxsize=64)
def _profile(workload: Workload, batch: int, drift: Drift) -> AccessProfile:
    return workload.profile(batch, drift)


def _problem(
    workload: Workload,
    node: NodeConfig,
    tiers: tuple[str, ...],
    layout: Layout,
    *,
    nodes: int,
    variant: Variant,
) -> tuple[Problem, StepParts]:
    """Of one of so many nodes, with tables, lookups and links divided evenly; and its step without rows."""
    machine = Machine(node=node, tiers=tiers, nodes=nodes)
    batch = variant.local_batch * machine.accelerators or workload.config.batch
    profile = _profile(workload, batch, variant.drift).divided(nodes)
    used_bytes = math.fsum(float(table.distinct.sum()) * table.row_bytes for table in profile.tables)
    parts = machine.step(
        workload.config, batch=batch, dims=workload.dims, lookups_per_sample=workload.lookups_per_sample
    )
    rows = sum(table.rows for table in profile.tables)
    problem = Problem(
        profile=profile,
        hierarchy=machine.hierarchy(
            staging_bytes=int((_STAGED_BATCHES + variant.prefetch_distance) * used_bytes),
            index_bytes=rows * (4 if rows < 2**32 else 8) if layout == "log" else 0,
            layout=layout,
            cache_share=variant.cache_share,
        ),
        dense_ns=round(parts.total_ns),
        prefetch_distance=variant.prefetch_distance,
        life_years=node.life_years if variant.is_worn else 0,
        deduplicated=variant.deduplicated,
    )
    return problem, parts


def _train(
    workload: Workload,
    node: NodeConfig,
    tiers: tuple[str, ...],
    layout: Layout,
    *,
    nodes: int,
    variant: Variant,
    enough: float,
) -> Point:
    """The mean step; all of these tiers may be used, and so many samples per second are enough.

    Raises:
        CapacityError: if the tables do not fit.
    """
    problem, parts = _problem(workload, node, tiers, layout, nodes=nodes, variant=variant)
    if variant.placement:
        arrays = Arrays(problem)
        name, gap = variant.placement, 0.0
        assignment = baseline(arrays, name)
        if not fits(arrays, assignment):
            raise CapacityError(f'the tables do not fit as the baseline "{name}" places them')
        prediction = evaluate(arrays, assignment)
    else:
        enough_ns = problem.profile.bags / enough * 1e9 if enough else 0.0
        solution = solve(problem, enough_ns=enough_ns)
        arrays, name, gap = solution.arrays, solution.chosen.name, float(solution.gap)
        assignment, prediction = solution.chosen.assignment, solution.chosen.prediction
    link_ns = _link_ns(node, arrays, prediction)
    step_ns = float(max(prediction.step_ns, link_ns))
    return Point(
        nodes=nodes,
        samples_per_s=problem.profile.bags / step_ns * 1e9,
        step_ns=step_ns,
        parts_ns={
            "wait": max(0.0, step_ns - float(arrays.host_ns)),
            "gather": float(arrays.gather_ns),
            "update": float(arrays.update_ns),
            "compute": parts.compute_ns,
            "all-to-all": parts.all_to_all_ns,
            "all-reduce": parts.all_reduce_ns,
            "overhead": parts.overhead_ns,
        },
        binding="host link" if link_ns > prediction.step_ns else prediction.binding,
        tiers=prediction.tiers,
        busy=busy_shares(prediction, step_ns),
        homes={name: tuple(points) for name, points in tables_by_home(arrays, assignment, step_ns).items()},
        reads=tier_points(arrays, prediction.tiers, step_ns),
        plan=name,
        gap=gap,
    )


def _link_ns(node: NodeConfig, arrays: Arrays, prediction: Prediction) -> float:
    """Rows that the fastest tier lacks come over the link to the host, and go back changed, at once."""
    fastest = prediction.tiers[0]
    rows = fastest.probed_rows - fastest.hit_rows
    used = arrays.distinct.sum(axis=1)
    row_bytes = float((used * arrays.row_bytes).sum() / used.sum())
    rate = node.host_link_bytes_per_s * node.accelerators
    return rows * row_bytes / rate * 1e9
