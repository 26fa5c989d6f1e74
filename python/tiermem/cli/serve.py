"""`tiermem serve`: opens an engine on an exported model, and answers queries of its data with it."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiermem.cli.common import Output, add_output_options, add_override_option, refuse_overwriting
from tiermem.config import ServeConfig
from tiermem.config.serve import RATE_MAX
from tiermem.errors import ConfigError
from tiermem.report import Table
from tiermem.units import format_bytes

if TYPE_CHECKING:
    from tiermem.checkpoint import ResumePoint
    from tiermem.serve.drive import Driven
    from tiermem.serve.engine import Engine
    from tiermem.serve.score import Scored

__all__ = ["add"]

_SECONDS = 5.0
_QUERIES_MAX = 10_000_000


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "serve",
        help="open an engine on an exported model, and check its answers",
        description="A network service comes later; queries are of the data that the model was trained on.",
        epilog="Example: tiermem serve --config serving.toml --check runs/mine",
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="an engine with a model, or a shipped name"
    )
    add_override_option(parser, 'replace one value, e.g. model.row_type="int8_fp16", memory.budget=0.2')
    parser.add_argument(
        "--check",
        metavar="RUN_DIR",
        help="the run that the model is of: score its test samples, a query each, beside the trainer's score",
    )
    parser.add_argument(
        "--drive",
        type=float,
        metavar="N",
        help="with --check: send N of its queries a second, and compare every answer with torch's",
    )
    parser.add_argument(
        "--seconds", type=float, metavar="S", help=f"length of --drive (default: {_SECONDS:g})"
    )
    parser.add_argument(
        "--refresh",
        metavar="DIR",
        help="with --drive: meanwhile update rows, go over to this export, and roll back",
    )
    add_output_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    config = ServeConfig.load_file(options.config, options.overrides)
    _check(options, config)
    from tiermem.serve.engine import Engine  # noqa: PLC0415 (loads torch and the extension)
    from tiermem.serve.score import run_of  # noqa: PLC0415 (loads torch)

    output = Output(options)
    # Before tables are written to a device.
    point = None if options.check is None else run_of(config, Path(options.check))
    engine = Engine(config)
    output.table(_tables(engine))
    scored = None if point is None else _checked(output, engine, point)
    driven = None if point is None or options.drive is None else _driven(output, engine, point, options)
    from tiermem.cli.serve_tables import memory_table  # noqa: PLC0415 (loads the extension)

    stats = engine.stats()
    output.table(memory_table(stats.memory))
    output.result(
        f"bytes move by {stats.engine}{', past the page cache' if stats.direct else ''}"
        f"{', polled' if stats.polled else ''}; time of the device: {config.clock}"
        + (f"; {stats.hedged:,} reads asked for twice" if stats.hedged else "")
        + (f"; {stats.fallback_reason}" if stats.fallback_reason else "")
    )
    output.document(
        {
            "stats": dataclasses.asdict(stats),
            "scores": None if scored is None else dataclasses.asdict(scored),
            "driven": None if driven is None else _driven_document(driven),
        }
    )
    return 1 if driven is not None and driven.wrong else 0


def _check(options: argparse.Namespace, config: ServeConfig) -> None:
    """What does not go together, before anything is opened.

    Raises:
        ConfigError: says what.
    """
    driven, seconds = options.drive, _SECONDS if options.seconds is None else options.seconds
    is_sane = driven is None or (0 < driven <= RATE_MAX and seconds > 0 and driven * seconds <= _QUERIES_MAX)
    wrong = {
        "--drive, --seconds and --refresh are for queries of a run; name it with --check": (
            options.check is None and (driven, options.seconds, options.refresh) != (None, None, None)
        ),
        "--seconds and --refresh are for an engine under load; give --drive, too": (
            driven is None and (options.seconds, options.refresh) != (None, None)
        ),
        f"--drive and --seconds are more than 0, and make {_QUERIES_MAX:,} queries at most": not is_sane,
        "tiermem serve needs a model: set model.path to a folder of tiermem export;"
        " tables that are imagined are for tiermem loadgen": config.model is None,
        "--refresh goes over to other tables and back; set versions = 2": (
            options.refresh is not None and config.versions == 1
        ),
        "--drive compares answers with the exported rows; leave model.row_type out": (
            driven is not None and config.model is not None and config.model.row_type is not None
        ),
    }
    for problem, is_wrong in wrong.items():
        if is_wrong:
            raise ConfigError(problem)
    refuse_overwriting([options.json], [options.config])


def _tables(engine: "Engine") -> Table:
    rows = tuple(
        (
            table.name,
            "user" if table.is_user else "item",
            table.placement,
            f"{table.rows:,}",
            str(table.columns),
            table.row_type,
            format_bytes(table.nbytes),
        )
        for table in (each.loaded(engine.config) for each in engine.tables)
    )
    return Table("Tables", ("table", "side", "placement", "rows", "columns", "row type", "size"), rows)


def _checked(output: Output, engine: "Engine", point: "ResumePoint") -> "Scored":
    from tiermem.serve.score import score_run  # noqa: PLC0415 (loads torch)

    scored = score_run(engine, point)
    rows = (
        ("AUC", f"{scored.auc:.7f}", f"{scored.trainer_auc:.7f}"),
        ("logloss", f"{scored.logloss:.7f}", f"{scored.trainer_logloss:.7f}"),
    )
    note = f"{scored.queries:,} queries."
    output.table(Table("Test samples", ("score", "engine", "trainer"), rows, note))
    return scored


def _driven(output: Output, engine: "Engine", point: "ResumePoint", options: argparse.Namespace) -> "Driven":
    from tiermem.serve.score import drive_run  # noqa: PLC0415 (loads torch)

    driven = drive_run(
        engine,
        point,
        queries_per_s=options.drive,
        seconds=_SECONDS if options.seconds is None else options.seconds,
        refresh=None if options.refresh is None else Path(options.refresh),
    )
    rows = (
        ("queries", f"{driven.queries:,}"),
        ("answers of no state of the tables", str(driven.wrong)),
        ("refused", str(driven.refused)),
        ("p50", f"{driven.quantile_ms(0.5):.2f} ms"),
        ("p99", f"{driven.quantile_ms(0.99):.2f} ms"),
        *((f"{name}, took", f"{seconds * 1e3:.1f} ms") for name, seconds in driven.changes),
    )
    note = "Wall time of this host, Python threads included. Answers by state: " + ", ".join(
        f"{count:,}" for count in driven.states
    )
    output.table(Table(f"{driven.queries_per_s:,g} queries/s in wall time", ("", ""), rows, note))
    return driven


def _driven_document(driven: "Driven") -> dict[str, Any]:
    return {
        "queries_per_s": driven.queries_per_s,
        "queries": driven.queries,
        "refused": driven.refused,
        "wrong": driven.wrong,
        "states": list(driven.states),
        "elapsed_s": driven.elapsed_s,
        "p50_ms": driven.quantile_ms(0.5),
        "p99_ms": driven.quantile_ms(0.99),
        "changes_s": dict(driven.changes),
    }
