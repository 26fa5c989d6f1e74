"""`tiermem train`: one experiment from a file."""

import argparse
from typing import Any

from tiermem.cli.common import (
    Output,
    add_output_options,
    add_override_option,
    run_directory,
    save_run,
    say_how_it_ran,
)
from tiermem.config import Experiment
from tiermem.report import all_tables, render_html

__all__ = ["add"]


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "train",
        help="train the model of an experiment",
        epilog="Example: tiermem train --config demo-quality --set train.epochs=1",
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="an experiment file, or a shipped name"
    )
    add_override_option(parser, "replace one value, e.g. train.epochs=2")
    parser.add_argument("--seed", type=int, help="replaces the experiment's seed")
    parser.add_argument(
        "--capture-trace", metavar="T", help="write the accesses of the training steps to a trace"
    )
    parser.add_argument("--out", metavar="DIR", help="run directory (default: runs/train-TIME)")
    add_output_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    output = Output(options)
    seed = [] if options.seed is None else [f"seed={options.seed}"]
    experiment = Experiment.load(options.config, [*options.overrides, *seed])
    from tiermem.cli.runs import capture_run, run_record, train_run  # noqa: PLC0415 (loads torch and the extension)

    with run_directory(options.out, "train") as directory:
        if options.capture_trace is None:
            dataset, run = train_run(experiment, experiment.data.name, output)
        else:
            dataset, run = capture_run(experiment, experiment.data.name, output, options.capture_trace)
        record = run_record({"experiment": experiment}, [run], seed=experiment.seed)
        save_run(directory, record, render_html(record, title=f"tiermem train: {dataset.name}"))
    for table in all_tables(record):
        output.table(table)
    say_how_it_ran(output, record)
    output.result(f"results digest {record['results_digest']}")
    output.result(f"report: {directory / 'report.html'}")
    output.document(
        {
            "run_directory": str(directory),
            **{key: record[key] for key in ("results_digest", "results", "quality", "host")},
        }
    )
    return 0
