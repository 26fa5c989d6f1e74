"""`tiermem train`: one experiment from a file, or a run that ended too early."""

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiermem.cli.common import (
    Output,
    add_output_options,
    add_override_option,
    refuse_overwriting,
    refuse_unwritable,
    run_directory,
    save_run,
    say_how_it_ran,
)
from tiermem.config import Experiment
from tiermem.errors import ConfigError
from tiermem.report import render_html, summary_tables

if TYPE_CHECKING:
    from tiermem.data import Dataset
    from tiermem.train import Run

__all__ = ["add"]


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "train",
        help="train the model of an experiment, or go on with a run",
        epilog="Example: tiermem train --config demo-quality --set train.epochs=1",
    )
    parser.add_argument("--config", metavar="FILE", help="an experiment file, or a shipped name")
    parser.add_argument(
        "--resume",
        metavar="RUN_DIR",
        help="go on from the last snapshot of a run directory, or from the snapshot that is named",
    )
    add_override_option(parser, "replace one value, e.g. train.epochs=2, train.snapshot_every_steps=100")
    parser.add_argument("--seed", type=int, help="replaces the experiment's seed")
    parser.add_argument(
        "--capture-trace", metavar="T", help="write the accesses of the training steps to a trace"
    )
    parser.add_argument(
        "--timeline",
        metavar="FILE",
        help="write when steps, transfers and dirty rows were, as a trace that ui.perfetto.dev opens",
    )
    parser.add_argument("--out", metavar="DIR", help="run directory (default: runs/train-TIME)")
    add_output_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    output = Output(options)
    return _start(options, output) if options.resume is None else _go_on(options, output)


def _start(options: argparse.Namespace, output: Output) -> int:
    if options.config is None:
        raise ConfigError("give an experiment by --config FILE, or a run to go on with by --resume RUN_DIR")
    seed = [] if options.seed is None else [f"seed={options.seed}"]
    experiment = Experiment.load(options.config, [*options.overrides, *seed])
    from tiermem.checkpoint import claim, write_experiment  # noqa: PLC0415 (loads torch)
    from tiermem.cli.runs import capture_run, train_run  # noqa: PLC0415 (loads torch and the extension)

    name = experiment.data.name
    with run_directory(options.out, "train") as directory, claim(directory):
        _check_timeline(options, experiment, directory)
        write_experiment(directory, experiment)
        with _saying_how_to_go_on(directory, output):
            if options.capture_trace is None:
                dataset, run = train_run(
                    experiment,
                    name,
                    output,
                    run_directory=directory,
                    timeline=options.timeline is not None,
                )
            else:
                dataset, run = capture_run(
                    experiment,
                    name,
                    output,
                    options.capture_trace,
                    run_directory=directory,
                    timeline=options.timeline is not None,
                )
            return _finish(experiment, dataset, run, directory, output, timeline=options.timeline)


def _go_on(options: argparse.Namespace, output: Output) -> int:
    _refuse_options(options)
    from tiermem.checkpoint import claim, find_resume_point  # noqa: PLC0415 (loads torch)
    from tiermem.cli.runs import train_run  # noqa: PLC0415 (loads torch and the extension)

    asked = Path(options.resume)
    point = find_resume_point(asked, "tiermem train --resume")
    directory, step, steps = point.run_directory, point.manifest.step, point.manifest.steps
    if step == steps and point.snapshot != asked and (directory / "record.json").exists():
        raise ConfigError(
            f"{directory} has done all of its {steps} steps; to repeat some, name a snapshot of it:"
            f" --resume {point.snapshot}"
        )
    _check_timeline(options, point.experiment, directory, [str(path) for path in point.snapshot.rglob("*")])
    with claim(directory), _saying_how_to_go_on(directory, output):
        output.line(f"going on from step {step} of {steps}: {point.snapshot}")
        dataset, run = train_run(
            point.experiment,
            point.experiment.data.name,
            output,
            run_directory=directory,
            resume=point,
            timeline=options.timeline is not None,
        )
        return _finish(point.experiment, dataset, run, directory, output, timeline=options.timeline)


def _check_timeline(
    options: argparse.Namespace, experiment: Experiment, directory: Path, inputs: Sequence[str] = ()
) -> None:
    """Refuses a timeline in a place where something else is or goes, or where nothing can be written."""
    if options.timeline is None:
        return
    data = [getattr(experiment.data, "path", None), options.config]
    refuse_overwriting([options.timeline], [*inputs, *(name for name in data if name is not None)])
    own = [directory / name for name in ("config.json", "experiment.json", "record.json", "report.html")]
    others = [
        *own,
        *(Path(name) for name in (options.capture_trace, options.json) if name not in (None, "-")),
    ]
    path = Path(options.timeline)
    if path.resolve() in [other.resolve() for other in others]:
        raise ConfigError(f"--timeline {path} is where something else is written; give it another name")
    refuse_unwritable(path)


def _refuse_options(options: argparse.Namespace) -> None:
    """A run that goes on is the run that it was."""
    given = {
        "--config": options.config is not None,
        "--set": bool(options.overrides),
        "--seed": options.seed is not None,
        "--out": options.out is not None,
        "--capture-trace": options.capture_trace is not None,
    }
    refused = [name for name, is_given in given.items() if is_given]
    if refused:
        raise ConfigError(
            f"{' and '.join(refused)} cannot go with --resume: a run goes on as it was begun, in its own"
            " directory; start a new run to change it"
        )


@contextlib.contextmanager
def _saying_how_to_go_on(directory: Path, output: Output) -> Iterator[None]:
    """A run that fails leaves its snapshots and says so; without snapshots it leaves nothing of its own."""
    from tiermem.checkpoint import forget_experiment, list_snapshots  # noqa: PLC0415 (loads torch)

    try:
        yield
    except BaseException:
        if list_snapshots(directory):
            output.result(f"the snapshots stay: tiermem train --resume {directory}")
        else:
            forget_experiment(directory)
        raise


def _finish(
    experiment: Experiment,
    dataset: "Dataset",
    run: "Run",
    directory: Path,
    output: Output,
    *,
    timeline: str | None,
) -> int:
    from tiermem.cli.runs import run_record, write_timeline  # noqa: PLC0415 (loads torch and the extension)

    record = run_record({"experiment": experiment}, [run], seed=experiment.seed)
    save_run(directory, record, render_html(record, title=f"tiermem train: {dataset.name}"))
    if timeline is not None:
        write_timeline(Path(timeline), run)
    for table in summary_tables(record):
        output.table(table)
    say_how_it_ran(output, record)
    output.result(f"results digest {record['results_digest']}")
    output.result(f"report: {directory / 'report.html'}")
    if timeline is not None:
        output.result(f"timeline: {timeline}, for ui.perfetto.dev or chrome://tracing")
    output.document(
        {
            "run_directory": str(directory),
            **({} if timeline is None else {"timeline": timeline}),
            **{key: record[key] for key in ("results_digest", "results", "quality", "host")},
        }
    )
    return 0
