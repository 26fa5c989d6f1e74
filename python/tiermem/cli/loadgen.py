"""`tiermem loadgen`: the highest load of an engine within a bound on its latency, in virtual time."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiermem.cli.common import Output, add_output_options, add_override_option, refuse_overwriting
from tiermem.config import ServeConfig, available
from tiermem.config.serve import RATE_MAX
from tiermem.errors import ConfigError
from tiermem.report import Table
from tiermem.results import canonical, digest
from tiermem.units import format_bytes, format_duration

if TYPE_CHECKING:
    from tiermem.serve.ablate import Variant
    from tiermem.serve.loadgen import LoadResult, Simulator, WarmUpPart
    from tiermem.serve.tables import ServedModel

__all__ = ["add", "served_model"]


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "loadgen",
        help="drive an engine with open-loop load: the highest rate within a bound on its latency",
        description=f"Shipped engines: {', '.join(available('serving'))}. docs/serving.md walks through one.",
        epilog="Example: tiermem loadgen --config users-optane --baselines",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="an engine, or a shipped name")
    add_override_option(parser, "replace one value, e.g. memory.budget=0.2, load.sla_ms=10.0")
    parser.add_argument(
        "--rate", type=float, metavar="N", help="run this many queries a second instead of the highest rate"
    )
    parser.add_argument(
        "--baselines", action="store_true", help="beside a mapped file, and beside all tables in memory"
    )
    parser.add_argument("--ablate", action="store_true", help="turn each mechanism off in turn")
    add_output_options(parser)
    parser.set_defaults(run=_run)


def served_model(config: ServeConfig) -> "ServedModel":
    """What an engine serves: its model, or what it imagines."""
    from tiermem.serve.tables import imagined_model  # noqa: PLC0415 (loads numpy)

    if config.model is None:
        return imagined_model(config)
    from tiermem.serve.model import Model  # noqa: PLC0415 (loads torch)

    return Model.load(Path(config.model.path)).served(config)


def _run(options: argparse.Namespace) -> int:
    config = ServeConfig.load_file(options.config, options.overrides)
    if options.rate is not None and not 0 < options.rate <= RATE_MAX:
        raise ConfigError(f"--rate is more than 0 and at most {RATE_MAX:,} queries/s, not {options.rate:g}")
    if options.rate is not None and (options.baselines or options.ablate):
        raise ConfigError(
            "--rate runs one rate; --baselines and --ablate look for the highest: leave one out"
        )
    refuse_overwriting([options.json], [options.config])
    from tiermem.cli.serve_tables import (  # noqa: PLC0415 (loads the extension)
        memory_table,
        variant_document,
        variants_table,
    )
    from tiermem.serve.loadgen import Simulator  # noqa: PLC0415 (loads the extension)

    output = Output(options)
    model = served_model(config)
    simulator = Simulator(config, model=model)
    warm = simulator.warm_up()
    output.table(memory_table(simulator.memory))
    output.table(_warm_up_table(warm))
    if options.rate is not None:
        return _one_rate(output, config, simulator, options.rate)
    variants = _variants(options, config, model, output)
    title = f"Highest rate with {config.load.quantile} within {config.load.sla_ms:g} ms, in virtual time"
    note = f"{config.host.threads} threads, {config.device.spec.name} x {config.device.replicas}; emulated."
    output.table(variants_table(title, variants, note))
    results = {"variants": [variant_document(variant) for variant in variants]}
    if variants[0].result is not None:
        _say_refresh(output, config, model, warm, variants[0].result.queries_per_s)
    output.result(f"results digest: {digest(results)}")
    output.document(
        {
            "config": canonical(config.model_dump(mode="json")),
            "results": canonical(results),
            "digest": digest(results),
        }
    )
    return 0 if variants[0].result is not None else 1


def _variants(
    options: argparse.Namespace, config: ServeConfig, model: "ServedModel", output: Output
) -> "list[Variant]":
    from tiermem.serve.ablate import ablation, baselines, run_variant  # noqa: PLC0415 (loads the extension)

    found = []
    for variant in ablation(config, model) if options.ablate else [run_variant("engine", config, model)]:
        output.line(f"{variant.name}: done")
        found.append(variant)
    for variant in baselines(config, model) if options.baselines else []:
        output.line(f"{variant.name}: done")
        found.append(variant)
    return found


def _say_refresh(
    output: Output,
    config: ServeConfig,
    model: "ServedModel",
    warm_up: "list[WarmUpPart]",
    queries_per_s: float,
) -> None:
    """How often the tables can be refreshed, and what that costs."""
    from tiermem.serve.refresh import LIFE_YEARS, refresh_plan  # noqa: PLC0415 (loads the extension)

    loaded = [table.loaded(config) for table in model.tables]
    nbytes = sum(table.nbytes for table in loaded if table.placement != "fixed")
    if nbytes == 0:
        return
    plan = refresh_plan(config.device.effective_spec(), nbytes, warm_up, queries_per_s)
    limit = (
        f"at the least every {format_duration(plan.least_interval_s * 1e9)} for a life of {LIFE_YEARS} years"
        if plan.least_interval_s
        else "as often as one likes: the device has no limit of writes"
    )
    text = f"refreshing the {format_bytes(nbytes)} on the device: {limit}"
    if warm_up:
        text += f"; caches are warm {format_duration(plan.warm_up_s * 1e9)} later"
    if warm_up and plan.least_interval_s:
        text += f"; staggered evenly at that, {plan.warming_share:.2%} of the hosts are warming"
    output.result(text)


def _warm_up_table(parts: "list[Any]") -> Table:
    rows = tuple(
        (f"{part.queries:,}", f"{part.caches.row_hit_rate:.1%}", f"{part.caches.list_hit_rate:.1%}")
        for part in parts
    )
    return Table("Warm-up from cold caches", ("queries", "rows cached", "lists pooled"), rows)


def _one_rate(output: Output, config: ServeConfig, simulator: "Simulator", rate: float) -> int:
    from tiermem.cli.serve_tables import load_document  # noqa: PLC0415 (loads the extension)

    result: LoadResult = simulator.run(rate)
    keeps = result.keeps(config.load.quantile, config.load.sla_ms)
    rows = tuple(
        (name, f"{result.quantile_ms(name):.3f} ms") for name in ("p50", "p90", "p95", "p99", "p999", "max")
    )
    output.table(
        Table(f"{rate:,g} queries/s", ("latency", ""), rows, "emulated" if not result.gave_up else "gave up")
    )
    verdict = "kept" if keeps else "not kept"
    output.result(f"{config.load.quantile} within {config.load.sla_ms:g} ms: {verdict}")
    document = load_document(result)
    output.document({"results": canonical(document), "digest": digest(document), "keeps": keeps})
    return 0 if keeps else 1
