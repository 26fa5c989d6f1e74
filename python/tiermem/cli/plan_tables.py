"""What `tiermem plan` prints."""

from typing import TYPE_CHECKING, Any

from tiermem.cli.common import Output
from tiermem.config import TargetConfig
from tiermem.report import Table

if TYPE_CHECKING:
    from tiermem.planner.plan import Plan
    from tiermem.planner.solve import Candidate, Solution
    from tiermem.planner.target import Machine
    from tiermem.train.verify import Verified

__all__ = ["machines_document", "say_machines", "say_plan"]

_TABLES_SHOWN = 20


def say_plan(
    output: Output,
    solution: "Solution",
    plan: "Plan",
    chosen: "Candidate",
    verified: "list[Verified]",
) -> None:
    """Steps, tiers, tables, and how good the plan is."""
    output.table(_steps(solution, chosen, verified))
    output.table(_tiers(plan, verified))
    output.table(_homes(solution, plan), wrap_last=True)
    prediction = chosen.prediction
    output.result(
        f"predicted step {prediction.step_ns / 1e3:,.1f} us: {_breakdown(prediction.parts)};"
        f" bound by {prediction.binding}"
    )
    gap = prediction.step_ns / solution.bound.step_ns - 1
    output.result(
        f"bound of the linear program {solution.bound.step_ns / 1e3:,.1f} us:"
        f" this plan is within {gap:.1%} of it"
    )
    if solution.milp_gap is not None:
        output.result(f"the integer program stopped with its incumbent within {solution.milp_gap:.2%}")
    if verified:
        first = verified[0]
        output.result(
            f"emulated: {first.measured.step_ns / 1e3:,.1f} us over {first.measured.steps} steps;"
            f" the prediction is off by {first.error:+.1%}"
        )
    tiers = solution.arrays.problem.hierarchy.tiers
    others = sorted({tier.policy for tier in tiers if tier.cache is not None and tier.policy != "lru"})
    if others:
        output.result(f"the prediction is for lru caches, and the hierarchy has {', '.join(others)}")
    output.result(f"input hash {plan.input_hash}")


def say_machines(output: Output, target: TargetConfig, found: "list[Machine]") -> None:
    """Every choice of tiers that reaches the target, the best first."""
    from tiermem.planner.target import least  # noqa: PLC0415 (loads numpy)

    left, rows = list(found), []
    while left:
        best = least(left, target.objective)
        left.remove(best)
        rows.append(
            (
                " > ".join(best.tiers),
                f"{best.fastest_share:.0%}",
                f"{best.nodes:,}",
                f"{best.samples_per_s:,.0f}",
                f"{best.power_watts:,.0f}",
                f"{best.price_dollars:,.0f}",
                best.solution.chosen.prediction.binding,
            )
        )
    heads = ("tiers", "of the fastest", "nodes", "samples/s", "W", "$", "bound by")
    note = (
        "Tables, lookups and dense work are divided evenly over nodes; what nodes send one another is not"
        " counted. What follows is the plan of one node of the first machine."
    )
    title = f"Machines that reach {target.samples_per_s:,.0f} samples/s, least {target.objective} first"
    output.table(Table(title, heads, tuple(rows), note))


def machines_document(found: "list[Machine]") -> list[dict[str, Any]]:
    """The same for programs, in the order in which they were found."""
    return [
        {
            "tiers": list(each.tiers),
            "fastest_share": each.fastest_share,
            "nodes": each.nodes,
            "samples_per_s": each.samples_per_s,
            "power_watts": each.power_watts,
            "price_dollars": each.price_dollars,
        }
        for each in found
    ]


def _breakdown(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {value / 1e3:,.1f}" for name, value in parts.items())


def _steps(solution: "Solution", chosen: "Candidate", verified: "list[Verified]") -> Table:
    found = {
        "this plan" if number == 0 else each.candidate.name: each for number, each in enumerate(verified)
    }
    shown = {"this plan": chosen, **{each.name: each for each in solution.baselines}}
    bags = solution.arrays.problem.profile.bags
    rows = []
    for name, candidate in {**shown, "greedy fill": solution.candidates[0]}.items():
        step_ns, run = candidate.prediction.step_ns, found.get(name)
        emulated = ("-", "-", "-")
        if run is not None:
            as_run_ns = run.candidate.prediction.step_ns
            emulated = (f"{as_run_ns / 1e3:,.1f}", f"{run.measured.step_ns / 1e3:,.1f}", f"{run.error:+.1%}")
        rows.append((name, f"{step_ns / 1e3:,.1f}", f"{bags / step_ns * 1e9:,.0f}", *emulated))
    heads = ("plan", "predicted step, us", "samples/s", "as run, us", "emulated, us", "error")
    note = (
        "predicted for a long run; as run: with caches as the profiled batches leave them, as in the emulator"
        if verified
        else ""
    )
    return Table("Steps", heads, tuple(rows), note)


def _tiers(plan: "Plan", verified: "list[Verified]") -> Table:
    measured = {tier.name: tier for tier in verified[0].measured.tiers} if verified else {}
    rows = []
    for tier in plan.tiers:
        found = measured.get(tier.name)
        rows.append(
            (
                tier.name,
                f"{tier.home_bytes / 1e6:,.1f}",
                f"{tier.cache_bytes / 1e6:,.1f}",
                f"{tier.hit_rate:.1%}",
                f"{tier.reads:,.0f}" if tier.reads else "-",
                f"{found.reads:,.0f}" if found is not None and tier.reads else "-",
                f"{tier.writes:,.0f}" if tier.writes else "-",
                f"{found.writes:,.0f}" if found is not None and tier.writes else "-",
                f"{tier.time_ns / 1e3:,.1f}",
            )
        )
    heads = (
        "tier", "homes, MB", "cache, MB", "hit rate", "reads", "emulated", "writes", "emulated", "time, us",
    )  # fmt: skip
    return Table("Tiers, per step", heads, tuple(rows))


def _homes(solution: "Solution", plan: "Plan") -> Table:
    tables = sorted(
        solution.arrays.problem.profile.tables,
        key=lambda table: -float(table.distinct.sum()) * table.row_bytes,
    )
    rows = [
        (table.name, f"{table.rows:,}", f"{table.rows * table.row_bytes / 1e6:,.1f}", plan.why[table.name])
        for table in tables[:_TABLES_SHOWN]
    ]
    left = len(tables) - len(rows)
    note = f"and {left} tables that need less; the plan file has all" if left > 0 else ""
    return Table(
        "Tables, those that need most first",
        ("table", "rows", "MB", "why it is where it is"),
        tuple(rows),
        note,
    )
