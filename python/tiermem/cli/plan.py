"""`tiermem plan`: where tables should live, what that costs, and whether the emulator agrees."""

import argparse
import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiermem.cli.common import Output, add_output_options, add_override_option, refuse_overwriting
from tiermem.cli.plan_tables import say_plan
from tiermem.config import PlanConfig, available
from tiermem.errors import ConfigError

if TYPE_CHECKING:
    from tiermem.data.accesses import Batch
    from tiermem.data.trace_file import TraceReader
    from tiermem.planner.plan import Plan
    from tiermem.planner.profile import AccessProfile
    from tiermem.planner.solve import Candidate, Solution
    from tiermem.train.verify import Verified

__all__ = ["add"]


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "plan",
        help="which table goes where, how large each cache is, and what a step costs",
        description=f"Shipped jobs: {', '.join(available('plans'))}. docs/planning.md walks through one.",
        epilog="Example: tiermem plan --config planning --verify --out plan.toml",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a planning job, or a shipped name")
    add_override_option(parser, "replace one value, e.g. trace=mine.tmtrace, budgets.dram=0.05")
    parser.add_argument("--plan", metavar="FILE", help="take this plan instead of making one")
    parser.add_argument(
        "--profile", metavar="FILE", help="take this profile instead of making one of the trace"
    )
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

    try:
        from tiermem.planner.plan import Plan, plan_of  # noqa: PLC0415 (loads scipy)
        from tiermem.planner.problem import Problem  # noqa: PLC0415
        from tiermem.planner.solve import solve  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ConfigError("planning needs scipy: pip install 'tiermem[plan]'") from None
    inputs = [
        name for name in (config.trace, options.plan, options.profile, options.config) if name is not None
    ]
    refuse_overwriting([options.out, options.save_profile, options.json], inputs)
    output = Output(options)
    reader = TraceReader(config.trace)
    batches = sum(1 for _ in reader)
    profiled = int(batches * config.profile_share)
    if options.verify and batches - profiled - config.prefetch_distance < 1:
        raise ConfigError(
            f"{config.trace} has {batches} batches, of which {profiled} are profiled: none is left"
            f" to verify with {config.prefetch_distance} fetched ahead; lower profile_share, or use a"
            " longer trace"
        )
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
    verified = []
    if options.verify:
        verified = _verified(config, solution, chosen, list(reader), profiled)
    say_plan(output, solution, plan, chosen, verified)
    if options.out is not None:
        output.result(f"plan: {options.out}")
    output.document(_document(plan, solution, verified))
    return 0


def _profile(
    options: argparse.Namespace, config: PlanConfig, reader: "TraceReader", profiled: int
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
                f'{options.profile} is a profile for other tables: it has "{table.name}" with {table.rows}'
                f" rows of {table.row_bytes} bytes, and {config.trace} has not; profile this trace"
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
    batches: "list[Batch]",
    profiled: int,
) -> "list[Verified]":
    from tiermem.planner.arrays import Arrays  # noqa: PLC0415
    from tiermem.planner.evaluate import evaluate  # noqa: PLC0415
    from tiermem.train.verify import store_tables, verify  # noqa: PLC0415 (loads torch)

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
        batches=batches,
        warm_up_steps=profiled,
        seed=config.seed,
    )


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
