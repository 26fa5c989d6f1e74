"""`tiermem trace mrc`: miss-ratio curves, exact or from a sample."""

import argparse
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiermem.cli.common import Output, add_output_options, refuse_overwriting
from tiermem.errors import ConfigError
from tiermem.report import Table, csv_text, save_plot
from tiermem.report.trace_plots import miss_ratio_curves
from tiermem.results import write_text
from tiermem.units import format_bytes

if TYPE_CHECKING:
    from tiermem.data.access_stream import AccessStream, CurvePoint

__all__ = ["add"]

_ROWS = "0.1%,0.2%,0.5%,1%,2%,5%,10%,20%,50%,100%"


def add(actions: "argparse._SubParsersAction[Any]") -> None:
    """Adds the action."""
    parser = actions.add_parser(
        "mrc",
        help="hit rates of caches of many sizes under many policies",
        description="Exact unless --sample is given: lru from stack distances, every other policy by replay.",
        epilog="Example: tiermem trace mrc scarab.tmtrace --policy lru,s3fifo,min --rows 1%,10% --json -",
    )
    parser.add_argument("trace", metavar="T", help="a trace")
    parser.add_argument(
        "--policy",
        default="lru,s3fifo,min",
        metavar="P,P",
        help="of lru, lfu, clock, s3fifo, sieve, lookahead, auto, random, min (default: %(default)s)",
    )
    parser.add_argument(
        "--rows",
        default=_ROWS,
        metavar="N,N",
        help="cache sizes: rows, or N%% of the accessed rows (default: %(default)s)",
    )
    parser.add_argument("--tables", metavar="NAME,NAME", help="only these tables (default: all)")
    parser.add_argument(
        "--per-table", action="store_true", help="a curve for each table besides that of all together"
    )
    parser.add_argument("--dedupe", action="store_true", help="a row counts once per batch")
    parser.add_argument(
        "--sample",
        type=float,
        metavar="R",
        help="estimate from this share of the rows (SHARDS-adj, miniature simulation)",
    )
    parser.add_argument(
        "--window-batches", type=int, default=100, metavar="W", help="of lookahead (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of random, and of the sample (default: %(default)s)"
    )
    parser.add_argument("--csv", metavar="FILE", help="the points as CSV")
    parser.add_argument(
        "--torchrec", metavar="FILE", help="statistics of each table in TorchRec's shape, as JSON"
    )
    parser.add_argument("--plots", metavar="DIR", help="the curves as SVG, PNG and CSV, light and dark")
    add_output_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from tiermem.data.access_stream import POLICIES  # noqa: PLC0415 (loads the extension)
    from tiermem.data.trace_file import TraceReader  # noqa: PLC0415
    from tiermem.data.trace_stats import table_stats  # noqa: PLC0415

    refuse_overwriting([options.csv, options.torchrec, options.json], [options.trace])
    output = Output(options)
    policies = options.policy.split(",")
    for policy in policies:
        if policy not in POLICIES:
            raise ConfigError(f'"{policy}" is not a policy; choose of {", ".join(POLICIES)}')
    known = [table.name for table in TraceReader(options.trace).tables]
    chosen = known if options.tables is None else options.tables.split(",")
    curves: dict[str | None, tuple[AccessStream, list[CurvePoint]]] = {
        None: _curve(options, chosen, policies)
    }
    if options.per_table and len(chosen) > 1:
        used = {table.name for table in table_stats(options.trace) if table.ids}
        curves |= {name: _curve(options, [name], policies) for name in chosen if name in used}
    points = [
        {"table": name, **dataclasses.asdict(point)} for name, (_, found) in curves.items() for point in found
    ]
    for name, (stream, found) in curves.items():
        output.table(_table(name, stream, found))
    if options.csv is not None:
        write_text(Path(options.csv), csv_text(list(points[0]), [list(point.values()) for point in points]))
    if options.torchrec is not None:
        _torchrec(options, chosen)
    if options.plots is not None:
        for path in _plots(options, {name: found for name, (_, found) in curves.items()}):
            output.line(f"wrote {path}")
    stream = curves[None][0]
    output.document(
        {
            "trace": options.trace,
            "tables": chosen,
            "dedupe": options.dedupe,
            "sample_rate": options.sample,
            "accesses": stream.accesses,
            "distinct": stream.distinct,
            "points": points,
        }
    )
    return 0


def _curve(
    options: argparse.Namespace, tables: list[str], policies: list[str]
) -> "tuple[AccessStream, list[CurvePoint]]":
    from tiermem.data.access_stream import SAMPLED_ROWS_MIN, AccessStream  # noqa: PLC0415 (loads the extension)

    stream = AccessStream(
        options.trace,
        tables=tables,
        dedupe=options.dedupe,
        sample_rate=options.sample,
        sample_seed=options.seed,
    )
    if stream.accesses == 0:
        raise ConfigError(
            f"{options.trace} has no accesses to {', '.join(tables[:10])}: there is nothing to cache"
        )
    sizes = _sizes(options.rows, round(stream.distinct / stream.sample_rate))
    if options.rows == _ROWS and not stream.is_exact:
        # Sizes that nobody asked for by name, and that a sample cannot tell.
        least = math.ceil(SAMPLED_ROWS_MIN / stream.sample_rate)
        sizes = [size for size in sizes if size >= least] or [least]
    points = []
    for policy in policies:
        points += stream.curve(policy, sizes, window_batches=options.window_batches, seed=options.seed)
    return stream, points


def _sizes(text: str, distinct: int) -> list[int]:
    sizes = []
    for part in text.split(","):
        try:
            size = round(float(part[:-1]) / 100 * distinct) if part.endswith("%") else int(part)
        except (ValueError, OverflowError):
            raise ConfigError(
                f'--rows "{part}" is no cache size; write rows, or a percentage such as 5%'
            ) from None
        if part.endswith("%") and float(part[:-1]) > 0:
            size = max(1, size)
        if size < 1:
            raise ConfigError(f'--rows "{part}" is a cache of {size} rows; give it one row at the least')
        if size not in sizes:
            sizes.append(size)
    return sizes


def _table(name: str | None, stream: "AccessStream", points: "list[CurvePoint]") -> Table:
    heads = ("policy", "cache rows", "hit rate", "second half", "missed rows", "missed 4 KiB blocks")
    rows = tuple(
        (
            point.policy,
            f"{point.rows:,}",
            f"{point.hit_rate:.2%}",
            f"{point.hit_rate_second_half:.2%}",
            format_bytes(point.missed_row_bytes),
            "-" if point.missed_block_bytes is None else format_bytes(point.missed_block_bytes),
        )
        for point in points
    )
    what = "All tables" if name is None else name
    how = "" if stream.is_exact else f" (estimated from {points[0].sample_rate:.2%} of the rows)"
    return Table(f"{what}: {stream.accesses:,} accesses{how}", heads, rows)


def _file_name(table: str, tables: "list[str | None]") -> str:
    """A name of a table that is safe in a file name, and the only one of its kind."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", table)[:100]
    return safe if safe == table else f"{safe}-{tables.index(table)}"


def _torchrec(options: argparse.Namespace, tables: list[str]) -> None:
    from tiermem.data.trace_stats import table_stats, torchrec_statistics  # noqa: PLC0415 (loads the extension)

    known = table_stats(options.trace)
    statistics = {name: torchrec_statistics(options.trace, name, tables=known) for name in tables}
    write_text(Path(options.torchrec), json.dumps(statistics, indent=1) + "\n")


def _plots(options: argparse.Namespace, curves: "dict[str | None, list[CurvePoint]]") -> list[Path]:
    trace = Path(options.trace).stem
    written = []
    for table, points in curves.items():
        by_policy: dict[str, list[tuple[int, float]]] = {}
        for point in sorted(points, key=lambda point: point.rows):
            by_policy.setdefault(point.policy, []).append((point.rows, point.hit_rate))
        title = trace if table is None else f"{trace}: {table}"

        def draw(
            ink: str, by_policy: dict[str, list[tuple[int, float]]] = by_policy, title: str = title
        ) -> Any:  # noqa: ANN401 (a figure of matplotlib, an optional dependency)
            return miss_ratio_curves(by_policy, title=title, ink=ink)

        written += save_plot(
            Path(options.plots),
            f"{trace}-mrc" if table is None else f"{trace}-{_file_name(table, list(curves))}-mrc",
            draw,
            ("policy", "rows", "miss_rate"),
            [(point.policy, point.rows, 1 - point.hit_rate) for point in points],
        )
    return written
