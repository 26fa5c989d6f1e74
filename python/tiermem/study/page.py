"""The page of a study: what was found in words, tables and pictures."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from tiermem.report import Section, Table
from tiermem.report.style import INK, svg_text
from tiermem.study.figures import pictures
from tiermem.study.mtrains import Ablation, NodeStudy, Scaled
from tiermem.study.nodes import Point
from tiermem.study.wall import WallRun, WallStudy

__all__ = ["headline_table", "scales_table", "sections", "wall_table"]


def headline_table(study: NodeStudy) -> Table:
    """All models at the stated scale."""
    scale = study.config.headline.scale
    rows = []
    for name in study.config.headline.models:
        each = study.at(name, scale)
        for system, point in each.systems.items():
            rows.append((f"{name} x{scale}, {system}", *_system_cells(each, system, point)))
    heads = (
        "model and system",
        "nodes",
        "of the first",
        "M samples/s",
        "kW",
        "power ratio",
        "M$",
        "cost ratio",
        "bound by",
    )
    note = (
        "Ratios are those of the first system over this one: nodes, power and price, at"
        f" {study.config.target_share:.0%} of its throughput or more. Power and price are modelled; most of"
        " both is assumed."
    )
    return Table(f"The fewest nodes at scale x{scale}", heads, tuple(rows), note)


def _system_cells(each: Scaled, system: str, point: Point | None) -> tuple[str, ...]:
    if point is None:
        return ("as many", "1.00", "-", "-", "-", "-", "-", "-")
    base = each.base
    return (
        f"{point.nodes:,}",
        f"{each.ratio(system):.2f}",
        f"{point.samples_per_s / 1e6:.3f}",
        f"{point.power_watts / 1e3:,.1f}",
        f"{base.power_watts / point.power_watts:.2f}",
        f"{point.price_dollars / 1e6:,.2f}",
        f"{base.price_dollars / point.price_dollars:.2f}",
        point.binding + (f" ({point.layout.replace('_', ' ')})" if point.layout else ""),
    )


def scales_table(study: NodeStudy) -> Table:
    """Nodes at every scale."""
    systems = list(study.config.systems)
    rows = []
    for each in study.scaled:
        counts = [
            "as many" if point is None else f"{point.nodes:,} ({each.ratio(name):.2f})"
            for name, point in each.systems.items()
        ]
        rows.append(
            (
                f"{each.model} x{each.scale}",
                f"{each.nbytes / 1e12:,.2f}",
                f"{each.target_samples_per_s / 1e6:.3f}",
                *counts,
            )
        )
    return Table(
        "Nodes by scale, and the ratio to the first system",
        ("model", "TB of rows", "target, M samples/s", *systems),
        tuple(rows),
    )


def _characters(study: NodeStudy) -> Table:
    rows = []
    for each in study.characters:
        moved = sum(point.tables * point.bytes_per_s for point in each.points)
        rows.append(
            (
                each.name,
                f"{each.tables:,}",
                f"{each.nbytes / 1e12:,.2f}",
                f"{each.lookups_per_sample:,.0f}",
                f"{moved / 1e12:,.2f}",
                f"{each.busy_share:.0%}",
                f"{each.exponent:.2f}",
                f"{each.distinct_share:.1%}",
                *(f"{taken:.0%}" for _, taken in each.hottest),
            )
        )
    shares = [f"hottest {share:.2%} of rows" for share, _ in study.characters[0].hottest]
    heads = (
        "model", "tables", "TB", "lookups a sample", "TB/s", "bytes of the tables with 90 % of it",
        "exponent", "distinct of a batch", *shares,
    )  # fmt: skip
    note = (
        "TB/s: rows read once forward, read and written once by the update, at the throughput of the smallest"
        " scale-out system that fits. Exponent: of Zipf's law, fitted to the published reuse."
    )
    return Table("What the models ask for", heads, tuple(rows), note)


def _parts(study: NodeStudy) -> Table:
    each = study.at(study.config.headline.ablation_model, study.config.headline.scale)
    rows = []
    for name, point in each.systems.items():
        if point is not None:
            parts = [f"{value / 1e6:.2f}" for value in point.parts_ns.values()]
            rows.append((f"{name}, {point.nodes:,} nodes", f"{point.step_ns / 1e6:.2f}", *parts))
    heads = ("system", "step, ms", *each.base.parts_ns)
    return Table(f"A step of {each.model} x{each.scale}, ms", heads, tuple(rows))


def _tiers(study: NodeStudy) -> Table:
    each = study.at(study.config.headline.ablation_model, study.config.headline.scale)
    rows = []
    for name, point in each.systems.items():
        rows += [
            (
                f"{name}: {load.name}",
                f"{load.home_bytes / 1e12:,.3f}",
                f"{load.cache_bytes / 1e12:,.3f}",
                f"{load.hit_rows / load.probed_rows:.1%}" if load.probed_rows else "-",
                f"{load.read_bytes / 1e6:,.1f}",
                f"{load.write_bytes / 1e6:,.1f}",
                f"{load.time_ns / 1e6:,.2f}",
            )
            for load in (point.tiers if point is not None else ())
        ]
    heads = ("system and tier", "homes, TB", "cache, TB", "hit rate", "read, MB", "written, MB", "busy, ms")
    return Table(f"Tiers of one node in a step of {each.model} x{each.scale}", heads, tuple(rows))


def _changes(title: str, found: Sequence[Ablation], note: str, *, rates: bool) -> Table:
    plain = found[0].samples_per_s if found else None
    rows = []
    for each in found:
        rate = "-" if each.samples_per_s is None else f"{each.samples_per_s / 1e6:.3f}"
        share = "-"
        if rates and plain and each.samples_per_s is not None:
            share = f"{each.samples_per_s / plain:.2f}"
        rows.append(
            (
                each.what,
                *((rate, share) if rates else (f"{each.base_nodes:,}",)),
                "as many" if each.nodes is None else f"{each.nodes:,}",
                f"{each.ratio:.2f}",
            )
        )
    shown = ("M samples/s", "of unchanged") if rates else ("nodes of the first",)
    return Table(title, ("change", *shown, "fewest nodes", "node ratio"), tuple(rows), note)


def _calibrations(study: NodeStudy) -> Table:
    rows = [
        (
            each.model,
            str(each.nodes),
            f"{each.modelled_samples_per_s / 1e6:.2f}",
            f"{each.published_samples_per_s / 1e6:.2f}",
            f"{each.modelled_samples_per_s / each.published_samples_per_s:.2f}",
            each.source,
        )
        for each in study.calibrations
    ]
    heads = ("model", "nodes", "modelled, M samples/s", "published", "ratio", "published by")
    return Table("The step model beside published throughput", heads, tuple(rows))


def _emulated(study: NodeStudy) -> Table:
    rows = [
        (
            f"{name}: {run.tier}",
            f"{run.capacity_bytes / 1e12:,.2f}",
            f"{run.reads:,} x {run.read_bytes:,}",
            f"{run.writes:,} x {run.write_bytes:,}",
            f"{run.predicted_ns / 1e3:,.1f}",
            f"{run.emulated_ns / 1e3:,.1f}",
            f"{run.error:+.1%}",
        )
        for name, run in study.emulations
    ]
    heads = (
        "plan and tier", "TB of the device", "reads x bytes", "writes x bytes", "predicted, us",
        "emulated, us", "error",
    )  # fmt: skip
    note = (
        "One of the tier's devices at full size, phantom bytes, virtual time; of steps with more than 20,000"
        " requests for a device a part is run and predicted."
    )
    return Table("Devices of the plans in the emulator", heads, tuple(rows), note)


def wall_table(found: WallStudy) -> Table:
    """Both sides of the run in wall time; medians."""
    rows = []
    for name, runs in (("all in memory", found.in_memory), ("tiered", found.tiered)):
        median = {
            field.name: statistics.median(getattr(run, field.name) for run in runs)
            for field in dataclasses.fields(WallRun)
            if field.name != "weights_digest"
        }
        rows.append(
            (
                name,
                f"{median['samples_per_s']:,.0f}",
                f"{median['step_ns'] / 1e6:.2f}",
                f"{median['wait_ns'] / 1e6:.2f}",
                f"{1 - median['missed_share']:.1%}",
                f"{median['device_bytes'] / 1e6:.2f}",
                f"{median['energy_joules'] * 1e3:.2f}",
                f"{median['budget_factor']:.1f}",
                f"{median['late_share']:.2%}",
            )
        )
    heads = (
        "side", "samples/s", "step, ms", "of it waiting", "hit rate", "device MB a step",
        "devices, mJ a step", "rows over memory", "late",
    )  # fmt: skip
    ratios = sorted(found.ratios)
    note = (
        f"Tiered over all in memory: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f},"
        f" {len(ratios)} repetitions); the same bits on both sides. Energy is the model's, not measured."
    )
    if not found.is_valid:
        note += " More than 1 % of the requests of a run were late: it is no valid emulation."
    return Table("The same in the small, in wall time on this host", heads, tuple(rows), note)


def sections(study: NodeStudy, wall: WallStudy | None) -> list[Section]:
    """All of the page, the answer first."""
    drawn: Mapping[str, tuple[str, str]] = {
        each.name: (each.title, svg_text(each.draw(INK))) for each in pictures(study)
    }

    def plots(*names: str) -> dict[str, str]:
        return dict(drawn[name] for name in names if name in drawn)

    config = study.config
    first = next(iter(config.systems))
    found = [
        Section(
            title="The answer",
            text=(
                f"The target is {config.target_share:.0%} of the throughput of the smallest system"
                f' "{first}" that holds the tables, fixed before any other system is looked at. The batch is'
                " the same for all systems. MTrainS reported 4 to 8 times fewer nodes for models that are not"
                " public.",
                "Where the first system is so large that its own messages slow it down, the others need far"
                " fewer nodes; where it is not, they need about as many. What a message costs is assumed:"
                " further down are ratios for other costs, and for a batch that grows with the nodes.",
            ),
            tables=(headline_table(study), scales_table(study)),
            plots=plots("nodes-against-scale", "throughput-against-dram"),
        ),
        Section(
            title="What the models ask for",
            tables=(_characters(study),),
            plots=plots("size-and-bandwidth", "miss-ratio-curves"),
        ),
        Section(
            title="What a step waits for",
            tables=(_parts(study), _tiers(study)),
            plots=plots("tier-roofline", "placement-map"),
        ),
        Section(
            title="What each part is worth",
            tables=(
                _changes(
                    f"One thing changed at a time, {config.headline.ablation_model} x{config.headline.scale}",
                    study.ablations,
                    "Throughput at the nodes of the unchanged system; fewest nodes at its target.",
                    rates=True,
                ),
                _changes(
                    "Assumptions changed for all systems alike, so that the target moves too",
                    study.sensitivities,
                    "",
                    rates=False,
                ),
            ),
        ),
        Section(
            title="How true it is",
            text=(
                "Steps come from the planner's model, whose devices are checked against the emulator below;"
                " network and dense work are rates over bytes and operations, beside published figures here.",
            ),
            tables=(_calibrations(study), _emulated(study)),
            plots=plots("predicted-against-emulated"),
        ),
        _assumptions(study),
    ]
    if wall is not None:
        found.insert(5, Section(title="In wall time", tables=(wall_table(wall),)))
    return found


def _assumptions(study: NodeStudy) -> Section:
    node = study.node
    rows = tuple(
        (key, source.kind, source.ref) for key, source in node.source.items() if source.kind == "assumed"
    )
    models = tuple((model.name, "model", model.source) for model in study.config.models)
    return Section(
        title="Assumptions",
        text=(
            "Tables, lookups, rows and links are divided evenly over nodes and accelerators. Draws are"
            " independent; like tables are planned as one.",
        ),
        tables=(
            Table(f"Of node {node.name}, and of the models", ("number", "kind", "reason"), rows + models),
        ),
    )
