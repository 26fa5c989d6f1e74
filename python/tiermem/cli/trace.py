"""`tiermem trace`: import, generate, describe traces, and find how small a cache can be."""

import argparse
from pathlib import Path
from typing import Any

from tiermem.cli import trace_mrc, trace_stats
from tiermem.cli.common import Output, add_output_options, add_override_option, refuse_overwriting
from tiermem.config import SynthConfig, available
from tiermem.config.synth import StackDistanceLaw
from tiermem.errors import ConfigError

__all__ = ["add"]


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Adds the verb."""
    parser = verbs.add_parser("trace", help="import, generate and analyse access traces")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_import(actions)
    _add_synth(actions)
    trace_stats.add(actions)
    trace_mrc.add(actions)


def _add_import(actions: "argparse._SubParsersAction[Any]") -> None:
    from tiermem.data.importers import FORMATS  # noqa: PLC0415 (numpy only when asked)

    formats = "; ".join(f"{name}: {each.description}" for name, each in FORMATS.items())
    parser = actions.add_parser(
        "import",
        help="make a trace from the files of others",
        description=f"Formats: {formats}.",
        epilog="Example: tiermem trace import --format caffeine scarab-recs.trace.xz --out scarab.tmtrace",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="files of one trace, in order")
    parser.add_argument("--format", required=True, metavar="F", help=", ".join(FORMATS))
    parser.add_argument("--out", required=True, metavar="T", help="the trace that is made")
    parser.add_argument(
        "--rows", type=int, metavar="N", help="rows of each table (default: what the ids need)"
    )
    parser.add_argument(
        "--row-bytes",
        type=int,
        default=256,
        metavar="N",
        help="bytes of a row (default: %(default)s, assumed)",
    )
    parser.add_argument(
        "--bags-per-batch",
        type=int,
        default=1024,
        metavar="N",
        help="of streams without batches (default: %(default)s)",
    )
    parser.add_argument(
        "--ids-per-bag",
        type=int,
        default=1,
        metavar="N",
        help="of streams without bags (default: %(default)s)",
    )
    parser.add_argument(
        "--table-name", default="table_0", metavar="NAME", help="of streams (default: %(default)s)"
    )
    parser.add_argument(
        "--renumber",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="number the keys that occur from 0 on (default: where keys are hashes)",
    )
    add_output_options(parser)
    parser.set_defaults(run=_import)


def _add_synth(actions: "argparse._SubParsersAction[Any]") -> None:
    parser = actions.add_parser(
        "synth",
        help="generate a trace",
        description=f"Shipped generators: {', '.join(available('traces'))}.",
        epilog="Example: tiermem trace synth --config drift-recency --set batches=64 --out drift.tmtrace",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a generator file, or a shipped name")
    add_override_option(parser, "replace one value, e.g. law.skew.exponent=1.2")
    parser.add_argument("--seed", type=int, help="replaces the generator's seed")
    parser.add_argument(
        "--part", default="1/1", metavar="K/N", help="make part K of N: its batches are those of the whole"
    )
    parser.add_argument("--out", required=True, metavar="T", help="the trace that is made")
    add_output_options(parser)
    parser.set_defaults(run=_synth)


def _import(options: argparse.Namespace) -> int:
    from tiermem.data.importers import ImportOptions, open_source  # noqa: PLC0415
    from tiermem.data.trace_file import write_trace  # noqa: PLC0415 (loads the extension)

    refuse_overwriting([options.out, options.json], options.files)
    output = Output(options)
    how = ImportOptions(
        rows=options.rows,
        row_bytes=options.row_bytes,
        bags_per_batch=options.bags_per_batch,
        ids_per_bag=options.ids_per_bag,
        table_name=options.table_name,
        renumber=options.renumber,
    )
    source = open_source(options.format, [Path(file) for file in options.files], how)
    names = ", ".join(Path(file).name for file in options.files)
    totals = write_trace(options.out, source, origin=f"imported from {names} as {options.format}")
    rows = sum(table.rows for table in source.tables)
    _say(output, options.out, len(source.tables), rows, totals)
    return 0


def _synth(options: argparse.Namespace) -> int:
    from tiermem.data.synth import synthesize  # noqa: PLC0415 (loads the extension)
    from tiermem.data.trace_file import TraceReader  # noqa: PLC0415

    output = Output(options)
    seed = [] if options.seed is None else [f"seed={options.seed}"]
    config = SynthConfig.load(options.config, [*options.overrides, *seed])
    if isinstance(config.law, StackDistanceLaw):
        refuse_overwriting([options.out], [config.law.like])
    totals = synthesize(config, options.out, part=_part(options.part))
    tables = TraceReader(options.out).tables
    _say(output, options.out, len(tables), sum(table.rows for table in tables), totals)
    return 0


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and text.isascii()):
        raise ConfigError(f'--part "{text}" is no part; write K/N, for example 1/4')
    return int(number), int(count)


def _say(output: Output, path: str, tables: int, rows: int, totals: Any) -> None:  # noqa: ANN401 (TraceTotals, lazy)
    output.result(
        f"{path}: {tables:,} table{'s' * (tables != 1)} of {rows:,} rows, {totals.batches:,} batches,"
        f" {totals.bags:,} bags, {totals.ids:,} ids"
    )
    counts = {"batches": totals.batches, "bags": totals.bags, "ids": totals.ids}
    output.document({"trace": path, "tables": tables, "rows": rows, **counts})
