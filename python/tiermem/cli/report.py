"""`tiermem report`: tables and the page of runs that were recorded."""

import argparse
from pathlib import Path
from typing import Any

from tiermem.cli.common import Output, add_output_options
from tiermem.errors import ConfigError
from tiermem.report import all_tables, figures, render_html
from tiermem.results import read_record, write_text

__all__ = ["add"]


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Adds the verb."""
    parser = verbs.add_parser("report", help="tables and page of recorded runs")
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="a directory that train or demo wrote")
    parser.add_argument(
        "--figures", metavar="DIR", help="also write each plot as SVG, for light and for dark pages"
    )
    add_output_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    output = Output(options)
    if options.figures is not None and len(options.runs) > 1:
        raise ConfigError("--figures takes one run")
    written = []
    for name in options.runs:
        directory = Path(name)
        record = read_record(directory)
        for table in all_tables(record):
            output.table(table)
        page = directory / "report.html"
        write_text(page, render_html(record, title=f"tiermem: {directory.name}"))
        written.append(str(page))
        if options.figures is not None:
            for theme, ink in (("light", "#1a1c1f"), ("dark", "#e4e6ea")):
                for title, svg in figures(record, ink=ink).items():
                    slug = "-".join(title.split(" (")[0].lower().split())
                    path = Path(options.figures) / f"{slug}-{theme}.svg"
                    write_text(path, svg)
                    written.append(str(path))
        output.result(f"report: {page}")
    output.document({"written": written})
    return 0
