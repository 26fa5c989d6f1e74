"""Plans against the emulator, on the configurations of `tiermem.train.plan_cases`.

    python benches/python/plan_accuracy.py --markdown --out plans.json

Virtual time: the same figures on every host. `--part K/N` runs every Nth case, `--merge` puts parts together.
"""

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from markdown import markdown_table
from tiermem.planner.problem import Problem
from tiermem.planner.profiling import profile_batches
from tiermem.planner.solve import solve
from tiermem.train.plan_cases import CASES, PlanCase, calibration_cases, plan_cases
from tiermem.train.verify import verify


def run(case: PlanCase) -> dict[str, Any]:
    """One configuration: the plan and every baseline, predicted and emulated."""
    source = case.profile_source()
    weights = {table.name: table.weight_bytes for table in case.store_tables}
    profile = profile_batches(source.tables, source.batches(), origin=case.name, weight_bytes=weights)
    problem = Problem(
        profile=profile,
        hierarchy=case.hierarchy,
        dense_ns=case.dense_ns,
        prefetch_distance=case.prefetch_distance,
    )
    solution = solve(problem)
    verified = verify(
        solution.arrays,
        [solution.chosen, *solution.baselines],
        case.store_tables,
        optimizer=case.optimizer,
        batches=list(case.replay_batches()),
        warm_up_steps=case.warm_up_steps,
    )
    return {
        "name": case.name,
        "stream": case.stream,
        "prefetch_distance": case.prefetch_distance,
        "gap": solution.gap,
        "device_share": verified[0].measured.device_share,
        "plans": {
            "chosen" if number == 0 else each.candidate.name: {
                "predicted_ns": each.candidate.prediction.step_ns,
                "emulated_ns": each.measured.step_ns,
            }
            for number, each in enumerate(verified)
        },
    }


def summary(cases: list[dict[str, Any]]) -> dict[str, float]:
    """The figures that docs/planning.md quotes."""
    predicted, emulated = (
        np.array([plan[key] for case in cases for plan in case["plans"].values()])
        for key in ("predicted_ns", "emulated_ns")
    )
    errors = np.abs(predicted / emulated - 1)
    speedups = {
        stream: [_speedup(case) for case in cases if case["stream"] == stream] for stream in ("iid", "drift")
    }
    gaps = [case["gap"] for case in cases]
    return {
        "cases": len(cases),
        "plans": len(errors),
        "mean_absolute_error": float(errors.mean()),
        "p95_absolute_error": float(np.quantile(errors, 0.95)),
        "chosen_mean_absolute_error": float(np.mean([_error(case) for case in cases])),
        "rank_correlation": _rank_correlation(predicted, emulated),
        "best_picked": float(np.mean([_picked(case) for case in cases])),
        "least_device_share": min(case["device_share"] for case in cases),
        "gap_mean": float(np.mean(gaps)),
        "gap_most": max(gaps),
        "gap_within_10_percent": float(np.mean([gap <= 0.1 for gap in gaps])),
        **{
            f"{stream}_speedup_geometric_mean": math.exp(float(np.mean(np.log(values))))
            for stream, values in speedups.items()
            if values
        },
        **{f"{stream}_speedup_least": min(values) for stream, values in speedups.items() if values},
    }


def _error(case: dict[str, Any]) -> float:
    plan = case["plans"]["chosen"]
    return abs(float(plan["predicted_ns"] / plan["emulated_ns"]) - 1)


def _speedup(case: dict[str, Any]) -> float:
    """Emulated step of the best baseline over that of the chosen plan."""
    plans = case["plans"]
    return min(float(plan["emulated_ns"]) for name, plan in plans.items() if name != "chosen") / float(
        plans["chosen"]["emulated_ns"]
    )


def _picked(case: dict[str, Any]) -> bool:
    """Whether the plan that is predicted to be best is; plans that are the same step are equally good."""
    plans = case["plans"].values()
    best = min(plans, key=lambda plan: float(plan["predicted_ns"]))
    return float(best["emulated_ns"]) <= min(float(plan["emulated_ns"]) for plan in plans) * (1 + 1e-9)


def _rank_correlation(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    one_rank, other_rank = (each - each.mean() for each in ranks)
    return float((one_rank * other_rank).sum() / np.sqrt((one_rank**2).sum() * (other_rank**2).sum()))


def report(cases: list[dict[str, Any]]) -> str:
    heads = ["case", "gap to the bound", "error", "over the best baseline", "device share"]
    rows = [
        [
            f"{case['name']}, distance {case['prefetch_distance']}",
            f"{case['gap']:.1%}",
            f"{case['plans']['chosen']['predicted_ns'] / case['plans']['chosen']['emulated_ns'] - 1:+.1%}",
            f"{_speedup(case):.2f}",
            f"{case['device_share']:.2f}",
        ]
        for case in cases
    ]
    lines = [f"{key}: {value:.4g}" for key, value in summary(cases).items()]
    return "\n".join([*markdown_table(heads, rows), *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=CASES, help="the first so many cases")
    parser.add_argument("--calibration", action="store_true", help="the cases that the planner was made with")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="every Nth case")
    parser.add_argument("--steps", type=int, help="measured and warm-up steps, for a quick look")
    parser.add_argument(
        "--merge", nargs="*", default=[], metavar="FILE", help="parts that were written before"
    )
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args()
    results = [case for path in options.merge for case in json.loads(Path(path).read_text(encoding="utf-8"))]
    if not options.merge:
        number, parts = (int(text) for text in options.part.split("/"))
        make = calibration_cases if options.calibration else plan_cases
        cases = make(count=options.count)[number - 1 :: parts]
        for case in cases:
            if options.steps is not None:
                steps = options.steps
                case = dataclasses.replace(case, profile_batches=2 * steps, warm_up_steps=steps, steps=steps)  # noqa: PLW2901
            results.append(run(case))
            print(f"{case.name}: {_speedup(results[-1]):.2f} over the best baseline", flush=True)
    results.sort(key=lambda case: int(case["name"].split(":")[0].removeprefix("case ")))
    print(report(results))
    if options.out is not None:
        Path(options.out).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
