"""`tiermem demo`: the whole thing on real data, in two acts, with a report at the end."""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiermem.cli.common import (
    Output,
    add_output_options,
    add_override_option,
    run_directory,
    save_run,
    say_how_it_ran,
)
from tiermem.config import Experiment, Hierarchy
from tiermem.data import fetch_ml_100k
from tiermem.report import render_html, summary_tables

if TYPE_CHECKING:
    from tiermem.train import Run

__all__ = ["add"]


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "demo",
        help="train on real data through an emulated hierarchy, and check it",
        description="Act one trains a DLRM on MovieLens-100K twice, all rows in DRAM and through an emulated"
        " NAND SSD, and checks that both agree to the last bit. Act two trains on a recorded trace of a"
        " million rows, where tiering matters.",
    )
    parser.add_argument(
        "--clock",
        choices=("virtual", "wall"),
        default="virtual",
        help="compute time, or wait for it (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, help="seed of everything (default: as the experiment files say)")
    parser.add_argument(
        "--split",
        metavar="FILE.npz",
        help="array `split`, uint8: 0 train, 1 validation, 2 test, in file order",
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="PATH",
        help="a copy of MovieLens-100K that you have (wheel or folder)",
    )
    parser.add_argument(
        "--directory",
        metavar="DIR",
        help="keep the emulated SSD in a scratch file there instead of in memory",
    )
    add_override_option(parser, "replace a value of both experiments")
    parser.add_argument("--out", metavar="DIR", help="run directory (default: runs/demo-TIME)")
    add_output_options(parser)
    parser.set_defaults(run=_run)


@dataclasses.dataclass(frozen=True)
class _Check:
    name: str
    passed: bool
    text: str


def _run(options: argparse.Namespace) -> int:
    output = Output(options)
    quality, tiering = (_experiment(name, options) for name in ("demo-quality", "demo-tiering"))
    with run_directory(options.out, "demo") as directory:
        return _both_acts(quality, tiering, directory, options, output)


def _both_acts(
    quality: Experiment, tiering: Experiment, directory: Path, options: argparse.Namespace, output: Output
) -> int:
    from tiermem.cli.runs import run_record  # noqa: PLC0415 (loads torch and the extension)

    began_s = time.monotonic()
    first, baseline = _act_one(quality, options, output)
    second = _act_two(tiering, options, output)
    baseline_auc = baseline["test"]["auc"]
    checks = [
        *_agreement(first[0], first[1:], "act one"),
        *_agreement(second[0], second[1:], "act two"),
        _beats(first[1], baseline_auc),
    ]
    record = run_record(
        {"act_one": quality, "act_two": tiering},
        [*first, *second],
        seed=quality.seed,
        quality={"baseline": baseline, "checks": [dataclasses.asdict(check) for check in checks]},
    )
    save_run(directory, record, render_html(record, title="tiermem demo"))
    for table in summary_tables(record):
        output.table(table)
    for check in checks:
        output.result(f"{'ok  ' if check.passed else 'FAIL'} {check.text}")
    say_how_it_ran(output, record)
    portable = " (virtual time: the same on every host)" if options.clock == "virtual" else ""
    output.result(f"results digest {record['results_digest']}{portable}")
    output.result(f"report: {directory / 'report.html'}")
    passed = all(check.passed for check in checks)
    scores = first[1].test or {}
    output.document(
        {
            "bit_identical": all(check.passed for check in checks if check.name == "bit_identical"),
            "test_auc": scores.get("auc"),
            "test_logloss": scores.get("logloss"),
            "test_normalized_entropy": scores.get("normalized_entropy"),
            "logistic_regression_test_auc": baseline_auc,
            "passed": passed,
            "results_digest": record["results_digest"],
            "run_directory": str(directory),
            "seconds": round(time.monotonic() - began_s, 1),
            "checks": [dataclasses.asdict(check) for check in checks],
            "results": record["results"],
            "host": record["host"],
        }
    )
    return 0 if passed else 1


def _experiment(name: str, options: argparse.Namespace) -> Experiment:
    overrides = list(options.overrides)
    if options.seed is not None:
        overrides.append(f"seed={options.seed}")
    if options.split is not None and name == "demo-quality":
        overrides.append(f"data.split.file={json.dumps(options.split)}")
    experiment = Experiment.load(name, overrides)
    hierarchy = experiment.hierarchy.replace(clock=options.clock).with_directory(options.directory)
    return experiment.replace(hierarchy=hierarchy.model_dump())


def _in_dram(experiment: Experiment) -> Experiment:
    """The same experiment with every row in DRAM."""
    hierarchy = Hierarchy.load("dram", clock=experiment.hierarchy.clock)
    return experiment.replace(hierarchy=hierarchy.model_dump(), budgets={})


def _act_one(
    experiment: Experiment, options: argparse.Namespace, output: Output
) -> "tuple[list[Run], dict[str, Any]]":
    from tiermem.cli.runs import train_run  # noqa: PLC0415
    from tiermem.train import logistic_regression  # noqa: PLC0415

    output.line("Act one: a DLRM on MovieLens-100K, all rows in DRAM, and through an emulated NAND SSD")
    if experiment.data.name == "ml-100k" and experiment.data.path is None:
        fetch_ml_100k(None if options.source is None else Path(options.source))
    dataset, in_dram = train_run(_in_dram(experiment), "ml-100k dram", output)
    _, tiered = train_run(experiment, "ml-100k nand", output, dataset)
    output.line("logistic regression on the same columns and split")
    baseline = dataclasses.asdict(logistic_regression(dataset))
    return [in_dram, tiered], baseline


def _act_two(experiment: Experiment, options: argparse.Namespace, output: Output) -> "list[Run]":
    from tiermem.cli.runs import train_run  # noqa: PLC0415

    distance = experiment.train.prefetch_distance
    output.line("Act two: a DLRM on the Scarab trace, a million rows, with and without prefetch")
    without = experiment.replace(train={**experiment.train.model_dump(), "prefetch_distance": 0})
    three = Hierarchy.load(
        "dram-optane-nand",
        clock=options.clock,
        budgets={"dram": experiment.budgets.get("dram", 0.1)},
    )
    with_optane = experiment.replace(
        hierarchy=three.with_directory(options.directory).model_dump(), budgets={}
    )
    dataset, in_dram = train_run(_in_dram(experiment), "trace dram", output)
    runs = [in_dram]
    for name, variant in (
        ("trace nand, prefetch 0", without),
        (f"trace nand, prefetch {distance}", experiment),
        (f"trace optane, prefetch {distance}", with_optane),
    ):
        runs.append(train_run(variant, name, output, dataset)[1])
    return runs


def _agreement(in_dram: "Run", tiered: "list[Run]", act: str) -> list[_Check]:
    """Every loss, score and weight equal to the last bit, and every lower tier really used."""
    checks = []
    for run in tiered:
        same = (
            run.losses == in_dram.losses
            and run.epochs == in_dram.epochs
            and run.weights_digest == in_dram.weights_digest
        )
        text = f'{act}: "{run.name}" gives the same bits as "{in_dram.name}" in every loss, score and weight'
        checks.append(_Check("bit_identical", same, text))
        assert run.stats is not None, "a run has statistics after it has ended"  # noqa: S101
        for tier in run.stats.tiers[1:]:
            used = tier.device_reads > 0 and tier.device_writes > 0
            times = f"{tier.device_reads:,} times and wrote it {tier.device_writes:,} times"
            text = f'{act}: "{run.name}" read {tier.name} {times}'
            checks.append(_Check("tier_used", used, text))
    return checks


def _beats(run: "Run", baseline_auc: float) -> _Check:
    auc = run.test["auc"] if run.test else 0.0
    text = f"act one: test AUC {auc:.4f}, logistic regression {baseline_auc:.4f}, at least 0.005 above it"
    return _Check("quality", auc >= baseline_auc + 0.005, text)
