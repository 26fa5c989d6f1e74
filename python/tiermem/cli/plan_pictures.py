"""The pictures of `tiermem plan --plots`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from tiermem.errors import CapacityError
from tiermem.report import plan_plots, save_plot

if TYPE_CHECKING:
    from tiermem.planner.problem import Problem
    from tiermem.planner.solve import Candidate, Solution
    from tiermem.train.verify import Verified

__all__ = ["save_pictures"]

_FASTEST_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def save_pictures(
    folder: Path, solution: "Solution", chosen: "Candidate", verified: "list[Verified]"
) -> None:
    """Miss ratios with planned sizes, rooflines, throughput against memory, homes, and the verification."""
    from tiermem.planner.pictures import (  # noqa: PLC0415 (loads numpy)
        lru_curve,
        planned_sizes,
        roof,
        tables_by_home,
        tier_points,
    )

    arrays, prediction = solution.arrays, chosen.prediction
    step_ns = float(prediction.step_ns)
    curves = {
        "all tables": [(nbytes, missed) for nbytes, missed in lru_curve(arrays.problem.profile) if nbytes]
    }
    planned = planned_sizes(prediction.tiers)
    save_plot(
        folder,
        "miss-ratio-curves",
        lambda ink: plan_plots.planned_miss_ratios(
            curves, planned, title="an lru cache of rows, each asked for once in a batch", ink=ink
        ),
        ("curve or planned tier", "bytes held", "misses, share of distinct rows"),
        _rows({**curves, **{name: [size] for name, size in planned.items()}}),
    )
    roofs = {tier.name: roof(tier.service) for tier in arrays.tiers}
    asked = tier_points(arrays, prediction.tiers, step_ns)
    save_plot(
        folder,
        "tier-roofline",
        lambda ink: plan_plots.tier_roofline(roofs, asked, title="reads of each tier", ink=ink),
        ("tier", "bytes of a lookup", "lookups per second"),
        _rows({**roofs, **{f"{name}, asked for": [load] for name, load in asked.items()}}),
    )
    homes = tables_by_home(arrays, chosen.assignment, step_ns)
    save_plot(
        folder,
        "placement-map",
        lambda ink: plan_plots.placement_map(homes, title="tables by home", ink=ink),
        ("home", "bytes", "bytes per second"),
        _rows(homes),
    )
    name = arrays.tiers[0].name
    rates = {"planned anew": _throughput(solution)}
    mark = {
        "planned anew": (float(arrays.tiers[0].budget_bytes), arrays.problem.profile.bags / step_ns * 1e9)
    }
    save_plot(
        folder,
        f"throughput-against-{name}",
        lambda ink: plan_plots.throughput_against_memory(
            rates, mark, title=f"throughput over the budget of {name}", x=f"bytes of {name}", ink=ink
        ),
        ("plan", f"bytes of {name}", "samples per second"),
        _rows(rates),
    )
    if verified:
        points = {
            "this plan" if number == 0 else each.candidate.name: [
                (each.measured.step_ns, float(each.candidate.prediction.step_ns))
            ]
            for number, each in enumerate(verified)
        }
        save_plot(
            folder,
            "predicted-against-emulated",
            lambda ink: plan_plots.predicted_and_measured(points, title="steps", ink=ink),
            ("plan", "emulated, ns", "predicted, ns"),
            _rows(points),
        )


def _rows(series: dict[str, list[tuple[float, float]]]) -> list[tuple[str, float, float]]:
    return [(name, *point) for name, points in series.items() for point in points]


def _throughput(solution: "Solution") -> list[tuple[float, float]]:
    """(budget of the fastest tier, samples per second), planned anew with less and with more of it."""
    from tiermem.planner.solve import solve  # noqa: PLC0415 (loads scipy)

    arrays, found = solution.arrays, []
    problem = arrays.problem
    for factor in _FASTEST_FACTORS:
        nbytes = int(arrays.tiers[0].budget_bytes * factor)
        try:
            changed = solve(_with_fastest(problem, nbytes))
        except CapacityError:
            continue
        found.append((float(nbytes), problem.profile.bags / float(changed.chosen.prediction.step_ns) * 1e9))
    return found


def _with_fastest(problem: "Problem", nbytes: int) -> "Problem":
    hierarchy = problem.hierarchy
    device = hierarchy.tiers[0].device
    tier = hierarchy.tiers[0].replace(
        cache=nbytes, device=device.replace(capacity_bytes=max(nbytes, device.capacity_bytes))
    )
    return dataclasses.replace(problem, hierarchy=hierarchy.replace(tiers=(tier, *hierarchy.tiers[1:])))
