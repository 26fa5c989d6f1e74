"""`tiermem trace stats`: what a trace is like."""

import argparse
from pathlib import Path
from typing import Any

from tiermem.cli.common import Output, add_output_options, refuse_overwriting
from tiermem.report import Table, save_plot
from tiermem.report.trace_plots import access_cdf, distance_histogram
from tiermem.units import format_bytes

__all__ = ["add"]

_TABLES_SHOWN = 30
_CDF_POINTS = 200


def add(actions: "argparse._SubParsersAction[Any]") -> None:
    """Adds the action."""
    parser = actions.add_parser(
        "stats",
        help="unique rows, reuse, skew, bag lengths, stack distances, drift",
        epilog="Example: tiermem trace stats scarab.tmtrace --plots plots",
    )
    parser.add_argument("trace", metavar="T", help="a trace")
    parser.add_argument(
        "--per-table", action="store_true", help="reuse, skew and distances of each table too"
    )
    parser.add_argument(
        "--plots", metavar="DIR", help="access CDF and stack distances as SVG, PNG and CSV, light and dark"
    )
    add_output_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from tiermem.data.trace_stats import stats_document  # noqa: PLC0415 (loads the extension)

    refuse_overwriting([options.json], [options.trace])
    output = Output(options)
    document = stats_document(options.trace, per_table=options.per_table)
    output.result(f"{options.trace}: {document['origin']}")
    output.table(_bags(document["tables"]))
    streams = {"all tables": document["all"]}
    if options.per_table:
        streams |= {table["name"]: table["stream"] for table in document["tables"] if table["stream"]}
    output.table(_streams(streams))
    output.table(_reuse(document))
    if options.plots is not None:
        for path in _plots(options.trace, document, Path(options.plots)):
            output.line(f"wrote {path}")
    output.document(document)
    return 0


def _bags(tables: list[dict[str, Any]]) -> Table:
    heads = (
        "table",
        "rows",
        "row",
        "bags",
        "empty",
        "ids",
        "per bag",
        "p50",
        "p99",
        "max",
        "repeated in batch",
    )
    shown = sorted(tables, key=lambda table: -table["ids"])[:_TABLES_SHOWN]
    left_out = f", the {_TABLES_SHOWN} with most ids of {len(tables)}" if len(tables) > _TABLES_SHOWN else ""
    rows = tuple(
        (
            table["name"],
            f"{table['rows']:,}",
            format_bytes(table["row_bytes"]),
            f"{table['bags']:,}",
            f"{table['empty_bags']:,}",
            f"{table['ids']:,}",
            f"{table['pooling_mean']:.2f}",
            str(table["pooling_p50"]),
            str(table["pooling_p99"]),
            str(table["pooling_max"]),
            f"{table['duplicate_share']:.1%}",
        )
        for table in shown
    )
    return Table(f"Bags{left_out}", heads, rows)


def _streams(streams: dict[str, dict[str, Any]]) -> Table:
    heads = (
        "stream", "accesses", "distinct", "reuse", "once", "top 1 %", "top 10 %", "Zipf", "first", "retention"
    )  # fmt: skip
    rows = tuple(
        (
            name,
            f"{stream['accesses']:,}",
            f"{stream['distinct']:,}",
            f"{stream['reuse_mean']:.2f}",
            f"{stream['once_share']:.1%}",
            f"{stream['top_1_percent_share']:.1%}",
            f"{stream['top_10_percent_share']:.1%}",
            f"{stream['zipf_exponent']:.2f}",
            f"{stream['first_share']:.1%}",
            f"{stream['retention']:.2f}",
        )
        for name, stream in streams.items()
    )
    return Table("Rows, all accesses in order", heads, rows)


def _reuse(document: dict[str, Any]) -> Table:
    stream = document["all"]
    bins, octaves = document["reuse_bins"], stream["distance_shares"]
    rows = []
    for number in range(max(len(bins), len(octaves))):
        counts = ("-", "-", "-")
        if number < len(bins):
            low, high = bins[number]
            name = (
                f"{low + 1:,}" if high == low + 1 else f"{low + 1:,} - {high:,}" if high else f"over {low:,}"
            )
            counts = (name, f"{stream['reuse_rows'][number]:.1%}", f"{stream['reuse_lookups'][number]:.1%}")
        distance = str(number) if number < 2 else f"{2 ** (number - 1):,} - {2**number - 1:,}"
        share = f"{octaves[number]:.1%}" if number < len(octaves) else "-"
        rows.append((*counts, distance, share))
    heads = ("accesses of a row", "rows", "accesses", "stack distance", "accesses")
    return Table("Reuse and stack distances", heads, tuple(rows))


def _plots(trace: str, document: dict[str, Any], folder: Path) -> list[Path]:
    import numpy as np  # noqa: PLC0415

    from tiermem.data.access_stream import AccessStream  # noqa: PLC0415 (loads the extension)

    name = Path(trace).stem
    counts = np.sort(AccessStream(trace).counts().astype(np.int64))[::-1]
    taken = np.cumsum(counts) / counts.sum()
    ranks = np.unique(np.geomspace(1, len(counts), _CDF_POINTS).round().astype(np.int64))
    points = [(float(rank / len(counts)), float(taken[rank - 1])) for rank in ranks]
    stream = document["all"]
    lows = [0, *(2**n for n in range(len(stream["distance_shares"]) - 1))]
    rows = [*zip(lows, stream["distance_shares"], strict=True), (None, stream["first_share"])]
    written = save_plot(
        folder,
        f"{name}-access-cdf",
        lambda ink: access_cdf(points, title=name, ink=ink),
        ("share_of_rows", "share_of_accesses"),
        points,
    )
    return written + save_plot(
        folder,
        f"{name}-stack-distances",
        lambda ink: distance_histogram(stream["first_share"], stream["distance_shares"], title=name, ink=ink),
        ("distance_from", "share_of_accesses"),
        rows,
    )
