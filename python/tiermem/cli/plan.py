"""`tiermem plan`: where tables should live, what that costs, and whether the emulator agrees."""

import argparse
import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiermem.cli.common import Output, add_output_options, add_override_option, refuse_overwriting
from tiermem.config.names import available
from tiermem.config.plan import PlanConfig
from tiermem.errors import ConfigError
from tiermem.report import Table

if TYPE_CHECKING:
    from tiermem.planner.plan import Plan
    from tiermem.planner.problem import Problem
    from tiermem.planner.profile import AccessProfile
    from tiermem.planner.solve import Candidate, Solution
    from tiermem.train.verify import Verified

__all__ = ["add"]

_TABLES_SHOWN = 20


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "plan",
        help="which table goes where, how large each cache is, and what a step costs",
        description=f"Shipped jobs: {', '.join(available('plans'))}. docs/planning.md walks through one.",
        epilog="Example: tiermem plan --config eeg --verify --out plan.toml",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a planning job, or a shipped name")
    add_override_option(parser, "replace one value, e.g. trace=mine.tmtrace, budgets.dram=0.05")
    parser.add_argument("--plan", metavar="FILE", help="take this plan instead of making one")
    parser.add_argument("--profile", metavar="FILE", help="take this profile instead of making one of the trace")
    parser.add_argument("--save-profile", metavar="FILE", help="write the profile, to plan from it again")
    parser.add_argument("--out", metavar="FILE", help="write the plan")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="run the plan and the baselines in the emulator, on the batches that it was not made from",
    )
    add_output_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    config = PlanConfig.load(options.config, options.overrides)
    from tiermem.data.trace_file import TraceReader  # noqa: PLC0415 (loads the extension)
    from tiermem.planner.plan import Plan, plan_of  # noqa: PLC0415 (loads scipy)
    from tiermem.planner.problem import Problem  # noqa: PLC0415
    from tiermem.planner.solve import solve  # noqa: PLC0415

    inputs = [name for name in (config.trace, options.plan, options.profile, options.config) if name is not None]
    refuse_overwriting([options.out, options.save_profile, options.json], inputs)
    output = Output(options)
    reader = TraceReader(config.trace)
    batches = sum(1 for _ in reader)
    profiled = int(batches * config.profile_share)
    profile = _profile(options, config, reader, profiled)
    if options.save_profile is not None:
        profile.save(options.save_profile)
    problem = Problem(
        profile=profile,
        hierarchy=config.effective_hierarchy(),
        dense_ns=config.dense_ns_per_step,
        prefetch_distance=config.prefetch_distance,
        training=config.training,
    )
    if options.plan is not None:
        plan = Plan.load(options.plan)
        plan.check_input(problem)
    solution = solve(problem, milp_time_limit_s=config.milp_seconds, seed=config.seed)
    if options.plan is None:
        plan = plan_of(solution)
    if options.out is not None:
        plan.save(options.out)
    chosen = _chosen(solution, plan) if options.plan is not None else solution.chosen
    verified = _verified(config, solution, chosen, reader, profiled, batches) if options.verify else []
    _say(output, problem, solution, plan, chosen, verified)
    if options.out is not None:
        output.result(f"plan: {options.out}")
    output.document(_document(plan, solution, verified))
    return 0


def _profile(
    options: argparse.Namespace, config: PlanConfig, reader: Any, profiled: int  # noqa: ANN401 (TraceReader, lazy)
) -> "AccessProfile":
    from tiermem.planner.profile import AccessProfile  # noqa: PLC0415 (loads numpy)
    from tiermem.planner.profiling import profile_batches  # noqa: PLC0415

    if options.profile is None:
        weights = {table.name: _weight_bytes(config, table.name, table.row_bytes) for table in reader.tables}
        first = itertools.islice(reader, profiled)
        return profile_batches(reader.tables, first, origin=Path(config.trace).name, weight_bytes=weights)
    profile = AccessProfile.load(options.profile)
    there = {table.name: (table.rows, table.row_bytes) for table in reader.tables}
    for table in profile.tables:
        if there.pop(table.name, None) != (table.rows, table.row_bytes):
            raise ConfigError(
                f'{options.profile} is a profile for other tables: it has "{table.name}" with {table.rows} rows of'
                f" {table.row_bytes} bytes, and {config.trace} has not; profile this trace"
            )
    if there:
        raise ConfigError(f'{options.profile} is a profile for other tables: it lacks "{next(iter(there))}"')
    return profile


def _weight_bytes(config: PlanConfig, name: str, row_bytes: int) -> int:
    """Bytes of a row without its optimizer state."""
    for dim in range(1, row_bytes // 4 + 1):
        if 4 * (dim + config.optimizer.state_floats(dim)) == row_bytes:
            return 4 * dim
    raise ConfigError(
        f'rows of table "{name}" have {row_bytes} bytes, which are not the columns and the state of'
        f" {config.optimizer.name}; set optimizer, or the trace's row_bytes"
    )


def _chosen(solution: "Solution", plan: "Plan") -> "Candidate":
    """The plan that was given, predicted again."""
    from tiermem.planner.evaluate import evaluate  # noqa: PLC0415
    from tiermem.planner.plan import assignment_of  # noqa: PLC0415
    from tiermem.planner.solve import Candidate  # noqa: PLC0415

    assignment = assignment_of(plan, solution.arrays)
    return Candidate(
        name=plan.chosen, assignment=assignment, prediction=evaluate(solution.arrays, assignment)
    )


def _verified(
    config: PlanConfig,
    solution: "Solution",
    chosen: "Candidate",
    reader: Any,  # noqa: ANN401 (TraceReader, lazy)
    profiled: int,
    batches: int,
) -> "list[Verified]":
    from tiermem.planner.arrays import Arrays  # noqa: PLC0415
    from tiermem.planner.evaluate import evaluate  # noqa: PLC0415
    from tiermem.train.verify import store_tables, verify  # noqa: PLC0415 (loads torch)

    if batches - profiled - config.prefetch_distance < 1:
        raise ConfigError(
            f"{config.trace} has {batches} batches, of which {profiled} are profiled: none is left to verify"
            f" with {config.prefetch_distance} fetched ahead; lower profile_share, or use a longer trace"
        )
    # The caches are as the profiled batches leave them.
    arrays = Arrays(dataclasses.replace(solution.arrays.problem, steady=False))
    candidates = [
        dataclasses.replace(each, prediction=evaluate(arrays, each.assignment))
        for each in (chosen, *solution.baselines)
    ]
    return verify(
        arrays,
        candidates,
        store_tables(solution.arrays.problem.profile),
        optimizer=config.optimizer,
        batches=list(reader),
        warm_up_steps=profiled,
        seed=config.seed,
    )


def _say(
    output: Output,
    problem: "Problem",
    solution: "Solution",
    plan: "Plan",
    chosen: "Candidate",
    verified: "list[Verified]",
) -> None:
    output.table(_steps(solution, chosen, verified))
    output.table(_tiers(plan, verified))
    output.table(_homes(problem, plan), wrap_last=True)
    prediction = chosen.prediction
    output.result(
        f"predicted step {prediction.step_ns / 1e3:,.1f} us: {_breakdown(prediction.parts)};"
        f" bound by {prediction.binding}"
    )
    gap = prediction.step_ns / solution.bound.step_ns - 1
    output.result(f"no plan is shorter than {solution.bound.step_ns / 1e3:,.1f} us: this one is within {gap:.1%}")
    if solution.milp_gap is not None:
        output.result(f"the integer program stopped with its incumbent within {solution.milp_gap:.2%}")
    if verified:
        first = verified[0]
        output.result(
            f"measured in the emulator: {first.measured.step_ns / 1e3:,.1f} us over {first.measured.steps} steps;"
            f" the prediction is off by {first.error:+.1%}"
        )
    output.result(f"input hash {plan.input_hash}")


def _breakdown(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {value / 1e3:,.1f}" for name, value in parts.items())


def _steps(solution: "Solution", chosen: "Candidate", verified: "list[Verified]") -> Table:
    measured = {each.candidate.name: each for each in verified}
    own = solution.candidates[0]
    rows = []
    for label, candidate in (
        ("this plan", chosen),
        *((each.name, each) for each in solution.baselines),
        ("greedy fill", own),
    ):
        found = verified[0] if verified and label == "this plan" else measured.get(candidate.name)
        is_run = found is not None and label != "greedy fill"
        rows.append(
            (
                label,
                f"{candidate.prediction.step_ns / 1e3:,.1f}",
                f"{solution.arrays.problem.profile.bags / candidate.prediction.step_ns * 1e9:,.0f}",
                f"{found.candidate.prediction.step_ns / 1e3:,.1f}" if found is not None and is_run else "-",
                f"{found.measured.step_ns / 1e3:,.1f}" if found is not None and is_run else "-",
                f"{found.error:+.1%}" if found is not None and is_run else "-",
            )
        )
    heads = ("plan", "predicted step, us", "samples/s", "as run, us", "emulated, us", "error")
    note = (
        "predicted for a long run; as run: with the caches as the profiled batches leave them, which is what is emulated"
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


def _homes(problem: "Problem", plan: "Plan") -> Table:
    tables = sorted(
        problem.profile.tables, key=lambda table: -float(table.distinct.sum()) * table.row_bytes
    )
    rows = [
        (table.name, f"{table.rows:,}", f"{table.rows * table.row_bytes / 1e6:,.1f}", plan.why[table.name])
        for table in tables[:_TABLES_SHOWN]
    ]
    left = len(tables) - len(rows)
    note = f"and {left} tables that need less; the plan file has all" if left > 0 else ""
    return Table("Tables, those that need most first", ("table", "rows", "MB", "why it is where it is"), tuple(rows), note)


def _document(plan: "Plan", solution: "Solution", verified: "list[Verified]") -> dict[str, Any]:
    return {
        "plan": plan.model_dump(mode="json"),
        "gap": solution.gap,
        "candidates_ns": {each.name: float(each.prediction.step_ns) for each in solution.candidates},
        "verified": [
            {
                "plan": "this plan" if number == 0 else each.candidate.name,
                "predicted_ns": float(each.candidate.prediction.step_ns),
                "emulated_ns": each.measured.step_ns,
                "error": float(each.error),
            }
            for number, each in enumerate(verified)
        ],
    }
