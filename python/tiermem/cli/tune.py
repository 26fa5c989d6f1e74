"""`tiermem tune`: the settings of an engine with the highest load within a bound, found in virtual time."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from tiermem.cli.common import (
    Output,
    add_output_options,
    add_override_option,
    refuse_overwriting,
    refuse_unwritable,
)
from tiermem.cli.loadgen import served_model
from tiermem.config import ServeConfig, available
from tiermem.config.names import load_named
from tiermem.report import Table
from tiermem.results import canonical, digest, write_text

if TYPE_CHECKING:
    from tiermem.serve.tune import Tried, Tuned

__all__ = ["add"]


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "tune",
        help="search cache split, thresholds, limits and placement of an engine for the highest load",
        description=f"Shipped engines: {', '.join(available('serving'))}.",
        epilog="Example: tiermem tune --config users-optane --sla-ms 5 --quantile p99 --out tuned.toml",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="an engine, or a shipped name")
    parser.add_argument("--sla-ms", type=float, metavar="X", help="the bound (default: load.sla_ms)")
    parser.add_argument(
        "--quantile",
        choices=("p50", "p95", "p99", "p999"),
        help="of the latency, which keeps the bound (default: load.quantile)",
    )
    add_override_option(parser, "replace one value, e.g. tune.rounds=1")
    parser.add_argument(
        "--out", metavar="FILE", help="write the engine with the settings that were found, for --config"
    )
    add_output_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    overrides = list(options.overrides)
    if options.sla_ms is not None:
        overrides.append(f"load.sla_ms={float(options.sla_ms)}")
    if options.quantile is not None:
        overrides.append(f'load.quantile="{options.quantile}"')
    values, path = load_named("serving", options.config, overrides)
    config = ServeConfig.from_mapping(values, where=path.name)
    refuse_overwriting([options.out, options.json], [options.config])
    if options.out is not None:
        refuse_unwritable(Path(options.out))
    from tiermem.cli.serve_tables import variant_document, variants_table  # noqa: PLC0415 (loads the extension)
    from tiermem.serve.tune import tune  # noqa: PLC0415 (loads the extension)

    output = Output(options)

    def say(tried: "Tried") -> None:
        output.line(
            f"{tried.setting} = {tried.value}: {tried.queries_per_s:,.0f} queries/s"
            f" ({'kept' if tried.kept else 'left'}; best before {tried.best_before:,.0f})"
        )

    tuned = tune(config, served_model(config), say)
    output.table(_tried_table(tuned))
    title = f"Highest rate with {config.load.quantile} within {config.load.sla_ms:g} ms, in virtual time"
    output.table(variants_table(title, [tuned.first, tuned.best], "Emulated."))
    output.result(_verdict(tuned))
    if options.out is not None:
        write_text(Path(options.out), tomli_w.dumps(_with(values, tuned.changes)))
        output.result(f"engine: {options.out}")
    results = {
        "first": variant_document(tuned.first),
        "best": variant_document(tuned.best),
        "changes": tuned.changes,
        "tried": [
            {
                "setting": each.setting,
                "value": each.value,
                "queries_per_s": each.queries_per_s,
                "kept": each.kept,
                "problem": each.problem,
            }
            for each in tuned.tried
        ],
    }
    output.document(
        {
            "results": canonical(results),
            "digest": digest(results),
            "gain": tuned.gain if tuned.first.result is not None else None,
        }
    )
    return 0 if tuned.best.result is not None else 1


def _verdict(tuned: "Tuned") -> str:
    if tuned.best.result is None:
        return "no setting keeps the bound at any rate"
    if tuned.first.result is None:
        return f"{tuned.best.result.queries_per_s:,.0f} queries/s; what it began with kept no rate"
    return f"{tuned.gain:.2f} times the rate that it began with"


def _with(values: dict[str, Any], changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """An engine as it was written, with what the search changed."""
    return values | {section: {**values.get(section, {}), **changed} for section, changed in changes.items()}


def _tried_table(tuned: "Tuned") -> Table:
    rows = tuple(
        (
            each.setting,
            each.value,
            f"{each.queries_per_s:,.0f}" if each.queries_per_s else each.problem,
            f"{each.best_before:,.0f}",
            "kept" if each.kept else "",
        )
        for each in tuned.tried
    )
    return Table("Tried, in this order", ("setting", "value", "queries/s", "best before", ""), rows)
