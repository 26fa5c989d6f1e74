"""`tiermem export`: the model of a snapshot as read-only files that can be served."""

import argparse
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiermem.cli.common import Output, add_output_options
from tiermem.config import RowType
from tiermem.errors import ConfigError
from tiermem.report import Table
from tiermem.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

    from tiermem.checkpoint import ScaleType, TableHeader
    from tiermem.embedding import EmbeddingStore

__all__ = ["add"]


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "export",
        help="write the model of a snapshot as files to serve from",
        epilog="Example: tiermem export runs/mine --out tables",
    )
    parser.add_argument(
        "run_directory",
        metavar="RUN_DIR",
        help="a run directory (its last snapshot), or one of its snapshots",
    )
    parser.add_argument("--out", metavar="DIR", help="where the files go (default: RUN_DIR/export)")
    parser.add_argument(
        "--scales",
        choices=("fp16", "fp32"),
        help="scale and bias of int8 rows: fp16, 4 bytes a row (default), or fp32, 8 bytes as in training",
    )
    parser.add_argument(
        "--prune-below",
        type=float,
        metavar="X",
        help="leave out rows whose weights are all smaller than this, and write which ids still have one",
    )
    add_output_options(parser)
    parser.set_defaults(run=_run)


@dataclasses.dataclass(frozen=True, slots=True)
class _Written:
    """A table that was exported."""

    path: Path
    header: "TableHeader"
    errors: dict[str, float]
    """What narrower scales did to its weights; empty if nothing was narrowed."""
    index_map: int | None = None
    """CRC-32 of the rows of its ids, if rows were pruned."""

    def row(self) -> tuple[str, ...]:
        """Its line of the printed table, errors apart."""
        header = self.header
        return (
            header.name,
            f"{header.rows:,}",
            str(header.dim),
            header.row_type,
            format_bytes(header.file_bytes),
        )


def _run(options: argparse.Namespace) -> int:
    output = Output(options)
    from tiermem.checkpoint import (  # noqa: PLC0415 (loads torch)
        ExportedModel,
        TableHeader,
        find_resume_point,
        load_state,
        rows_path,
    )
    from tiermem.cli.runs import open_store  # noqa: PLC0415 (loads torch and the extension)

    point = find_resume_point(Path(options.run_directory), "tiermem export")
    scale_type = _scale_type(options.scales, point.experiment.model.row_type)
    if options.prune_below is not None and not options.prune_below > 0:
        raise ConfigError(f"--prune-below is more than 0, got {options.prune_below:g}")
    folder = Path(options.out) if options.out is not None else point.run_directory / "export"
    store = open_store(point.experiment, point.manifest.tables)
    written = []
    try:
        store.load_rows(rows_path(point.snapshot))
        for number, table in enumerate(point.manifest.tables):
            kept = None if options.prune_below is None else _kept(store, number, options.prune_below)
            if kept is not None:
                table = dataclasses.replace(table, rows=int(kept.sum()))  # noqa: PLW2901
            header = TableHeader(
                **dataclasses.asdict(table),
                scale_type=scale_type,
                step=point.manifest.step,
                experiment_hash=point.manifest.experiment_hash,
            )
            path = folder / _file_name(number, table.name)
            output.line(f"{table.name}: {table.rows:,} rows of {table.dim} columns to {path}")
            errors = _write(path, header, store, number, kept)
            written.append(_Written(path, header, errors, None if kept is None else _write_map(path, kept)))
    finally:
        store.close()
    model = ExportedModel(
        folder=folder,
        step=point.manifest.step,
        experiment_hash=point.manifest.experiment_hash,
        model=point.experiment.model,
        batch_size=point.experiment.train.batch_size,
        tables=tuple(each.path.name for each in written),
        index_maps={each.path.name: each.index_map for each in written if each.index_map is not None},
    )
    model.write(load_state(point.snapshot)["dense"])
    output.table(_table(written, f"Tables after step {point.manifest.step} of {point.manifest.steps}"))
    tables = [{"path": str(each.path), **dataclasses.asdict(each.header), **each.errors} for each in written]
    output.document({"snapshot": str(point.snapshot), "step": point.manifest.step, "tables": tables})
    return 0


def _scale_type(asked: "ScaleType | None", row_type: RowType) -> "ScaleType | None":
    if row_type == "int8":
        return asked or "fp16"
    if asked is not None:
        raise ConfigError(
            f"--scales goes with int8 rows; those of this run are {row_type} and have no scales"
        )
    return None


def _kept(store: "EmbeddingStore", number: int, least: float) -> "npt.NDArray[np.bool_]":
    """Which rows of a table have a weight that is not smaller; one row at least."""
    import numpy as np  # noqa: PLC0415 (loads numpy)

    parts = [(weights.abs() >= least).any(dim=1).numpy() for _, weights, _ in store.rows(number)]
    kept: npt.NDArray[np.bool_] = np.concatenate(parts)
    kept[0] |= not kept.any()
    return kept


def _write_map(path: Path, kept: "npt.NDArray[np.bool_]") -> int:
    import numpy as np  # noqa: PLC0415 (loads numpy)

    from tiermem.checkpoint import write_index_map  # noqa: PLC0415 (loads torch)

    return write_index_map(path, np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32))


def _write(
    path: Path,
    header: "TableHeader",
    store: "EmbeddingStore",
    number: int,
    kept: "npt.NDArray[np.bool_] | None",
) -> dict[str, float]:
    """Streams the rows of a table that are kept into its file; gives the errors of what was narrowed."""
    from tiermem._interop import bytes_of  # noqa: PLC0415 (loads torch)
    from tiermem.checkpoint import NarrowedScales, write_table  # noqa: PLC0415 (loads torch)

    def rows() -> "Iterator[npt.NDArray[np.uint8]]":
        first = 0
        for _, weights, _ in store.stored_rows(number):
            part = bytes_of(weights).reshape(len(weights), -1)
            yield part if kept is None else part[kept[first : first + len(part)]]
            first += len(part)

    stored = rows()
    if header.scale_type != "fp16":
        write_table(path, header, stored)
        return {}
    scales = NarrowedScales(header.name)
    write_table(path, header, (scales.narrow(rows) for rows in stored))
    return {"max_abs_error": scales.max_abs_error, "mean_abs_error": scales.mean_abs_error}


def _table(written: list[_Written], title: str) -> Table:
    names = list(dict.fromkeys(name for each in written for name in each.errors))
    head = (
        "table",
        "rows",
        "columns",
        "row type",
        "size",
        *(name.replace("_", " ") for name in names),
        "file",
    )
    rows = (
        (*each.row(), *(f"{each.errors[name]:.3g}" for name in names), str(each.path)) for each in written
    )
    return Table(title, head, tuple(rows))


def _file_name(number: int, table: str) -> str:
    """The number keeps names apart that differ only in what a file name cannot have."""
    return f"{number:03d}-{re.sub(r'[^A-Za-z0-9_.-]', '_', table)[:100]}.tmtable"
