"""The machine that a throughput needs: how many nodes, with which of the tiers, at what power and price."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

from tiermem.config import DeviceSpec, Hierarchy
from tiermem.errors import CapacityError
from tiermem.planner.evaluate import Prediction
from tiermem.planner.problem import Problem
from tiermem.planner.solve import Solution, solve

__all__ = [
    "NODES_MAX",
    "Machine",
    "Objective",
    "Target",
    "busy_shares",
    "fewest_nodes",
    "least",
    "machines",
    "smallest_that_fits",
    "tiers_price_dollars",
    "tiers_watts",
    "with_some",
]

NODES_MAX = 2**16
"""No system has more nodes."""
Objective = Literal["nodes", "power", "cost"]
Found = TypeVar("Found")
Bought = Mapping[str, tuple[DeviceSpec, float]]
"""By tier a device, and how many of it a node has: a share of one is a part of its capacity."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What a machine is for."""

    samples_per_s: float
    objective: Objective
    nodes_max: int
    fastest_shares: tuple[float, ...]
    """Of the budget of the fastest tier, what may be bought."""
    node_watts: float
    """Of a node without its tiers."""
    node_price_dollars: float
    """Of a node without its tiers."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Machine:
    """Like nodes that reach a target."""

    nodes: int
    tiers: tuple[str, ...]
    fastest_share: float
    """Of the budget of the fastest tier."""
    samples_per_s: float
    power_watts: float
    price_dollars: float
    solution: Solution
    """The plan of one node."""


def machines(problem: Problem, target: Target) -> list[Machine]:
    """The fewest nodes for each choice of tiers and of the fastest one's budget, where the target is reached.

    Tables, lookups and dense work are divided evenly over nodes; what nodes send one another is not counted.
    """
    names = tuple(tier.name for tier in problem.hierarchy.tiers)
    found = []
    for tiers in with_some(names, always=1):
        for share in target.fastest_shares if len(tiers) > 1 else ():
            machine = _machine(problem, target, tiers, share)
            if machine is not None:
                found.append(machine)
    return found


def least(found: Sequence[Machine], objective: Objective) -> Machine:
    """The best by the objective; of equals, the one that is best by the others."""
    keys: dict[Objective, Callable[[Machine], float]] = {
        "nodes": lambda each: each.nodes,
        "power": lambda each: each.power_watts,
        "cost": lambda each: each.price_dollars,
    }
    order = [keys[objective], *(key for name, key in keys.items() if name != objective)]
    return min(found, key=lambda each: tuple(key(each) for key in order))


def _machine(problem: Problem, target: Target, tiers: tuple[str, ...], share: float) -> Machine | None:
    hierarchy = _with_tiers(problem, tiers, share)
    enough_ns = problem.profile.bags / target.samples_per_s * 1e9

    def reaches(nodes: int) -> bool:
        try:
            solution = solve(_node_problem(problem, hierarchy, nodes), enough_ns=enough_ns)
        except CapacityError:
            return False
        return _rate(solution) >= target.samples_per_s

    nodes = fewest_nodes(reaches, target.nodes_max)
    if nodes is None:
        return None
    solution = solve(_node_problem(problem, hierarchy, nodes))
    bought: dict[str, tuple[DeviceSpec, float]] = {}
    for tier, planned in zip(hierarchy.tiers, solution.arrays.tiers, strict=True):
        device = tier.effective_device()
        bought[tier.name] = (device, planned.budget_bytes / device.capacity_bytes)
    prediction = solution.chosen.prediction
    watts = tiers_watts(bought, busy_shares(prediction, float(prediction.step_ns)))
    return Machine(
        nodes=nodes,
        tiers=tiers,
        fastest_share=share,
        samples_per_s=_rate(solution),
        power_watts=nodes * (target.node_watts + watts),
        price_dollars=nodes * (target.node_price_dollars + tiers_price_dollars(bought)),
        solution=solution,
    )


def _rate(solution: Solution) -> float:
    return solution.arrays.problem.profile.bags / float(solution.chosen.prediction.step_ns) * 1e9


def _with_tiers(problem: Problem, tiers: tuple[str, ...], share: float) -> Hierarchy:
    """Some of the tiers; the slowest of them is the home of what is left, and caches nothing.

    Budgets that are shares of all row bytes are those of a node, whatever the number of nodes.
    """
    total = problem.profile.bytes_total
    kept = [tier for tier in problem.hierarchy.tiers if tier.name in tiers]
    changed = []
    for position, tier in enumerate(kept):
        budget = tier.cache
        nbytes = int(budget * total) if isinstance(budget, float) else budget
        if position == 0 and nbytes is not None:
            nbytes = max(1, int(nbytes * share))
        if position == len(kept) - 1 and nbytes is not None:
            device = tier.device.replace(capacity_bytes=min(nbytes, tier.device.capacity_bytes))
            changed.append(tier.replace(device=device, cache=None))
        else:
            changed.append(tier.replace(cache=nbytes))
    return problem.hierarchy.replace(tiers=tuple(changed))


def _node_problem(problem: Problem, hierarchy: Hierarchy, nodes: int) -> Problem:
    return dataclasses.replace(
        problem,
        hierarchy=hierarchy,
        profile=problem.profile.divided(nodes),
        dense_ns=round(problem.dense_ns / nodes),
    )


def busy_shares(prediction: Prediction, step_ns: float) -> dict[str, tuple[float, float]]:
    """By tier for which shares of a step it reads and writes."""
    found = {}
    for load in prediction.tiers:
        moved = load.read_bytes + load.write_bytes
        share = float(load.time_ns) / step_ns
        reading = load.read_bytes / moved if moved else 1.0
        found[load.name] = (share * reading, share * (1 - reading))
    return found


def tiers_watts(bought: Bought, busy: Mapping[str, tuple[float, float]]) -> float:
    """Power of the tiers of one node, by for which shares of the time each reads and writes."""
    milliwatts = 0.0
    for name, (device, count) in bought.items():
        reading, writing = busy.get(name, (0.0, 0.0))
        power = device.power
        milliwatts += count * (
            power.idle_milliwatts
            + min(1.0, reading) * (power.read_milliwatts - power.idle_milliwatts)
            + min(1.0, writing) * (power.write_milliwatts - power.idle_milliwatts)
        )
    return milliwatts / 1e3


def tiers_price_dollars(bought: Bought) -> float:
    """Price of the tiers of one node."""
    return sum(
        count * device.capacity_bytes / 1e9 * device.cost.millidollars_per_gigabyte / 1e3
        for device, count in bought.values()
    )


def with_some(tiers: tuple[str, ...], *, always: int) -> Iterator[tuple[str, ...]]:
    """The first so many tiers with any of the others, in order; fewest first."""
    more = tiers[always:]
    for count in range(len(more) + 1):
        for chosen in itertools.combinations(more, count):
            yield (*tiers[:always], *chosen)


def smallest_that_fits(measure: Callable[[int], Found | None]) -> Found:
    """The fewest nodes on which the tables fit.

    Raises:
        CapacityError: if they do not on `NODES_MAX`.
    """
    high = 1
    found = measure(high)
    while found is None:
        if high >= NODES_MAX:
            raise CapacityError(f"the tables do not fit on {NODES_MAX} nodes; use larger devices")
        high *= 2
        found = measure(high)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        point = measure(middle)
        if point is None:
            low = middle
        else:
            high, found = middle, point
    return found


def fewest_nodes(reaches: Callable[[int], bool], nodes_max: int) -> int | None:
    """The fewest nodes that were found to be enough; `None` if none were up to `nodes_max`.

    Powers of two first, then by halving between the first that is enough and the last that is not: as if
    more nodes were never slower in between.
    """
    low = 0
    for high in sorted({min(2**power, nodes_max) for power in range(nodes_max.bit_length() + 1)}):
        if reaches(high):
            break
        low = high
    else:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return int(high)
