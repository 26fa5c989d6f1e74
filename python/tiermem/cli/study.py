"""`tiermem study`: published systems, asked again in virtual time."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiermem.cli.common import Output, add_output_options, add_override_option, refuse_unwritable
from tiermem.cli.study_sdm import add_sdm
from tiermem.config import Experiment
from tiermem.config.study import NodeStudyConfig
from tiermem.errors import ConfigError
from tiermem.report import render_study, save_plot
from tiermem.results import canonical, digest, host, write_text

if TYPE_CHECKING:
    from tiermem.study.mtrains import NodeStudy
    from tiermem.study.wall import WallStudy

__all__ = ["add"]

_WALL_REPETITIONS_MAX = 100
_JOBS_MAX = 256


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Adds the verb."""
    parser = verbs.add_parser("study", help="published systems, asked again in virtual time")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_mtrains(actions)
    add_sdm(actions)


def _add_mtrains(actions: "argparse._SubParsersAction[Any]") -> None:
    parser = actions.add_parser(
        "mtrains",
        help="how many nodes storage-class memory saves in training",
        description="After MTrainS (arXiv 2305.01515). Virtual time: the digest is the same on every host.",
        epilog="Example: tiermem study mtrains --out mtrains.html --plots pictures",
    )
    parser.add_argument(
        "--config",
        default="mtrains",
        metavar="FILE",
        help="a study, or a shipped name (default: %(default)s)",
    )
    add_override_option(parser, "replace one value, e.g. target_share=0.8")
    parser.add_argument("--out", metavar="FILE", help="write the study as one HTML page")
    parser.add_argument("--plots", metavar="DIR", help="write each picture as SVG, PNG and CSV")
    parser.add_argument(
        "--wall",
        type=int,
        default=0,
        metavar="N",
        help="train so many times for real too, rows of 16 times the memory (default: not)",
    )
    parser.add_argument(
        "--wall-config",
        default="scaled-out-wall",
        metavar="FILE",
        help="the experiment for that (default: %(default)s)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="processes that share the work (default: %(default)s)",
    )
    add_output_options(parser)
    parser.set_defaults(run=_mtrains)


def _mtrains(options: argparse.Namespace) -> int:
    try:
        from tiermem.study.document import document  # noqa: PLC0415 (loads scipy and torch)
        from tiermem.study.mtrains import run_study  # noqa: PLC0415
        from tiermem.study.page import headline_table, scales_table, wall_table  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ConfigError("studies need scipy and torch: pip install 'tiermem[train,plan]'") from None

    if not 0 <= options.wall <= _WALL_REPETITIONS_MAX:
        raise ConfigError(
            f"--wall is how often to train, from 0 to {_WALL_REPETITIONS_MAX}; got {options.wall}"
        )
    if not 1 <= options.jobs <= _JOBS_MAX:
        raise ConfigError(f"--jobs is a number of processes from 1 to {_JOBS_MAX}; got {options.jobs}")
    output = Output(options)
    config = NodeStudyConfig.load(options.config, options.overrides)
    experiment = Experiment.load(options.wall_config) if options.wall else None
    if experiment is not None and experiment.hierarchy.clock != "wall":
        raise ConfigError(
            f'{options.wall_config} has a {experiment.hierarchy.clock} clock; set hierarchy.clock = "wall"'
        )
    if options.out is not None:
        refuse_unwritable(Path(options.out))
    study = run_study(config, output.line, jobs=options.jobs)
    results = document(study)
    found = digest(results)
    wall = _wall(experiment, options.wall, output) if experiment is not None else None
    if options.out is not None:
        _write_page(Path(options.out), study, wall, found)
    if options.plots is not None:
        _write_plots(Path(options.plots), study)
    output.table(headline_table(study))
    output.table(scales_table(study))
    if wall is not None:
        output.table(wall_table(wall))
    output.result(f"results digest {found}")
    if options.out is not None:
        output.result(f"page: {options.out}")
    output.document(
        {
            "results": canonical(results),
            "results_digest": found,
            "wall": None if wall is None else canonical(wall),
            "host": host(),
        }
    )
    return 0


def _wall(experiment: Experiment, repetitions: int, output: Output) -> "WallStudy":
    from tiermem.study.wall import run_wall  # noqa: PLC0415 (loads torch)

    output.line(f"in wall time, {repetitions} times: {experiment.description}")
    return run_wall(experiment, repetitions)


def _write_page(path: Path, study: "NodeStudy", wall: "WallStudy | None", found: str) -> None:
    from tiermem.study.page import sections  # noqa: PLC0415

    title = "How many nodes does storage-class memory save?"
    lead = (
        f"Virtual time, emulated and modelled: no figure is a measurement of these machines. Results digest"
        f" {found}, the same on every host.",
    )
    write_text(path, render_study(title=title, lead=lead, sections=sections(study, wall)))


def _write_plots(folder: Path, study: "NodeStudy") -> None:
    from tiermem.study.figures import pictures  # noqa: PLC0415

    for each in pictures(study):
        save_plot(folder, each.name, each.draw, each.heads, each.rows)
