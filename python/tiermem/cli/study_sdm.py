"""`tiermem study sdm`: what power a fleet saves with tables on storage-class memory."""

import argparse
from pathlib import Path
from typing import Any

from tiermem.cli.common import (
    Output,
    add_output_options,
    add_override_option,
    refuse_overwriting,
    refuse_unwritable,
)
from tiermem.config import ServeConfig
from tiermem.config.sdm import FleetStudyConfig
from tiermem.report import render_study
from tiermem.results import canonical, digest, host, write_text

__all__ = ["add_sdm"]


def add_sdm(actions: "argparse._SubParsersAction[Any]") -> None:
    """Adds the study."""
    parser = actions.add_parser(
        "sdm",
        help="what power a fleet saves with tables on storage-class memory",
        description="After Software Defined Memory (arXiv 2110.11489). Virtual time: one digest everywhere.",
        epilog="Example: tiermem study sdm --out sdm.html",
    )
    parser.add_argument(
        "--config", default="sdm", metavar="FILE", help="a study, or a shipped name (default: %(default)s)"
    )
    add_override_option(parser, "replace one value, e.g. small.watts=150.0")
    parser.add_argument(
        "--engine-set",
        dest="engine_overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace one value of the engine, e.g. load.sla_ms=10.0",
    )
    parser.add_argument("--out", metavar="FILE", help="write the study as one HTML page")
    add_output_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    config = FleetStudyConfig.load(options.config, options.overrides)
    engine = ServeConfig.load_file(config.engine, options.engine_overrides)
    refuse_overwriting([options.out, options.json], [options.config, config.engine])
    if options.out is not None:
        refuse_unwritable(Path(options.out))
    from tiermem.study.sdm import run_fleet_study  # noqa: PLC0415 (loads the extension)
    from tiermem.study.sdm_page import document, headline_table, sections, sensitivity_table  # noqa: PLC0415

    output = Output(options)
    study = run_fleet_study(config, engine, output.line)
    results = document(study)
    found = digest(results)
    if options.out is not None:
        lead = (
            "Virtual time, emulated and modelled: no figure is a measurement of these machines."
            f" Results digest {found}, the same on every host.",
        )
        title = "What power does a fleet save with tables on storage-class memory?"
        write_text(Path(options.out), render_study(title=title, lead=lead, sections=sections(study)))
    output.table(headline_table(study))
    output.table(sensitivity_table(study))
    output.result(f"results digest {found}")
    if options.out is not None:
        output.result(f"page: {options.out}")
    output.document({"results": canonical(results), "results_digest": found, "host": host()})
    return 0
