"""`tiermem export`: the tables of a snapshot as read-only files that can be served."""

import argparse
import dataclasses
import re
from pathlib import Path
from typing import Any

from tiermem.cli.common import Output, add_output_options
from tiermem.report import Table
from tiermem.units import format_bytes

__all__ = ["add"]


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "export",
        help="write the tables of a snapshot as files to serve from",
        epilog="Example: tiermem export runs/mine --out tables",
    )
    parser.add_argument(
        "run_directory",
        metavar="RUN_DIR",
        help="a run directory (its last snapshot), or one of its snapshots",
    )
    parser.add_argument("--out", metavar="DIR", help="where the files go (default: RUN_DIR/export)")
    add_output_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    output = Output(options)
    from tiermem.checkpoint import (  # noqa: PLC0415 (loads torch)
        TableHeader,
        find_resume_point,
        rows_path,
        write_table,
    )
    from tiermem.cli.runs import open_store  # noqa: PLC0415 (loads torch and the extension)

    point = find_resume_point(Path(options.run_directory), "tiermem export")
    folder = Path(options.out) if options.out is not None else point.run_directory / "export"
    store = open_store(point.experiment, point.manifest.tables)
    written = []
    try:
        store.load_rows(rows_path(point.snapshot))
        for number, table in enumerate(point.manifest.tables):
            header = TableHeader(
                name=table.name,
                rows=table.rows,
                dim=table.dim,
                step=point.manifest.step,
                experiment_hash=point.manifest.experiment_hash,
            )
            path = folder / _file_name(number, table.name)
            output.line(f"{table.name}: {table.rows:,} rows of {table.dim} columns to {path}")
            write_table(path, header, (weights.numpy() for _, weights, _ in store.rows(number)))
            written.append((path, header))
    finally:
        store.close()
    rows = tuple(
        (header.name, f"{header.rows:,}", str(header.dim), format_bytes(header.file_bytes), str(path))
        for path, header in written
    )
    title = f"Tables after step {point.manifest.step} of {point.manifest.steps}"
    output.table(Table(title, ("table", "rows", "columns", "size", "file"), rows))
    tables = [{"path": str(path), **dataclasses.asdict(header)} for path, header in written]
    output.document({"snapshot": str(point.snapshot), "step": point.manifest.step, "tables": tables})
    return 0


def _file_name(number: int, table: str) -> str:
    """The number keeps names apart that differ only in what a file name cannot have."""
    return f"{number:03d}-{re.sub(r'[^A-Za-z0-9_.-]', '_', table)[:100]}.tmtable"
