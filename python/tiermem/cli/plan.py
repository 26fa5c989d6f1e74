"""`tiermem plan`: where tables should live, what that costs, and whether the emulator agrees."""

import argparse
import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiermem.cli.common import Output, add_output_options, add_override_option, refuse_overwriting
from tiermem.cli.plan_pictures import save_pictures
from tiermem.cli.plan_tables import machines_document, say_machines, say_plan
from tiermem.config import PlanConfig, TargetConfig, available
from tiermem.errors import CapacityError, ConfigError

if TYPE_CHECKING:
    from tiermem.data.accesses import Batch
    from tiermem.data.trace_file import TraceReader
    from tiermem.planner.plan import Plan
    from tiermem.planner.problem import Problem
    from tiermem.planner.profile import AccessProfile
    from tiermem.planner.solve import Candidate, Solution
    from tiermem.planner.target import Machine
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
    parser.add_argument("--plots", metavar="DIR", help="write pictures of the plan as SVG, PNG and CSV")
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
    except ModuleNotFoundError:
        raise ConfigError("planning needs scipy: pip install 'tiermem[plan]'") from None
    inputs = [
        name for name in (config.trace, options.plan, options.profile, options.config) if name is not None
    ]
    refuse_overwriting([options.out, options.save_profile, options.json], inputs)
    output = Output(options)
    reader = TraceReader(config.trace)
    profiled = _profiled(options, config, reader)
    problem = _problem(options, config, reader, profiled)
    plan = None
    if options.plan is not None:
        plan = Plan.load(options.plan)
        plan.check_input(problem)
    found, solution = _solved(options, config, problem)
    chosen = solution.chosen if plan is None else _chosen(solution, plan)
    plan = plan or plan_of(solution)
    if options.out is not None:
        plan.save(options.out)
    verified = []
    if options.verify:
        verified = _verified(config, solution, chosen, list(reader), profiled)
    if options.plots is not None:
        save_pictures(Path(options.plots), solution, chosen, verified)
    if config.target is not None:
        say_machines(output, config.target, found)
    say_plan(output, solution, plan, chosen, verified)
    if options.out is not None:
        output.result(f"plan: {options.out}")
    output.document({**_document(plan, solution, verified), "machines": machines_document(found)})
    return 0


def _profiled(options: argparse.Namespace, config: PlanConfig, reader: "TraceReader") -> int:
    """How many batches make the plan."""
    batches = sum(1 for _ in reader)
    profiled = int(batches * config.profile_share)
    if options.verify and batches - profiled - config.prefetch_distance < 1:
        raise ConfigError(
            f"{config.trace} has {batches} batches, of which {profiled} are profiled: none is left"
            f" to verify with {config.prefetch_distance} fetched ahead; lower profile_share, or use a"
            " longer trace"
        )
    return profiled


def _problem(
    options: argparse.Namespace, config: PlanConfig, reader: "TraceReader", profiled: int
) -> "Problem":
    from tiermem.planner.problem import Problem  # noqa: PLC0415 (loads numpy)

    profile = _profile(options, config, reader, profiled)
    if options.save_profile is not None:
        profile.save(options.save_profile)
    return Problem(
        profile=profile,
        hierarchy=config.effective_hierarchy(),
        dense_ns=config.dense_ns_per_step,
        prefetch_distance=config.prefetch_distance,
        training=config.training,
        life_years=config.life_years,
    )


def _solved(
    options: argparse.Namespace, config: PlanConfig, problem: "Problem"
) -> "tuple[list[Machine], Solution]":
    """The machines that reach the target, if there is one, and the plan of a node of the best."""
    from tiermem.planner.solve import solve  # noqa: PLC0415 (loads scipy)
    from tiermem.planner.target import least  # noqa: PLC0415

    if config.target is None:
        return [], solve(problem, milp_time_limit_s=config.milp_seconds, seed=config.seed)
    found = _machines(options, config.target, problem)
    return found, least(found, config.target.objective).solution


def _machines(options: argparse.Namespace, target: TargetConfig, problem: "Problem") -> "list[Machine]":
    """All machines that reach the target."""
    from tiermem.planner.target import Target, least, machines  # noqa: PLC0415

    if options.plan is not None:
        raise ConfigError("a plan that is given is for one machine; leave out --plan or target")
    found = machines(problem, Target(**target.model_dump(exclude={"source"})))
    if not found:
        raise CapacityError(
            f"no machine of up to {target.nodes_max} nodes reaches {target.samples_per_s:,.0f} samples/s;"
            " raise target.nodes_max or the budgets, or lower dense_ns_per_step"
        )
    nodes = least(found, target.objective).nodes
    if options.verify and nodes > 1:
        raise ConfigError(
            f"--verify runs the plan of one node, and the machine with the least {target.objective} has"
            f" {nodes}; leave it out, or lower target.samples_per_s"
        )
    return found


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
