"""The pictures of a study: each a figure, and the numbers behind it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tiermem.perf.service import DeviceService
from tiermem.planner.pictures import planned_sizes, roof
from tiermem.report import plan_plots
from tiermem.study.machine import Machine
from tiermem.study.mtrains import NodeStudy
from tiermem.study.nodes import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "pictures"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One picture."""

    name: str
    """Of its files."""
    title: str
    draw: "Callable[[str], Figure]"
    """Takes the colour of text and axes."""
    heads: tuple[str, ...]
    """Of the numbers behind it."""
    rows: tuple[tuple[str | float, ...], ...]


def pictures(study: NodeStudy) -> list[Picture]:
    """Of a study, those that have something to show."""
    found = [_nodes(study), _misses(study), _sizes(study)]
    if study.curves:
        found += [_throughput(study), _homes(study), _roofline(study)]
    if study.emulations:
        found.append(_emulations(study))
    return found


def _series(
    name: str,
    title: str,
    heads: tuple[str, ...],
    series: Mapping[str, Sequence[tuple[float, float]]],
    draw: "Callable[[str], Figure]",
) -> Picture:
    rows = tuple((key, *point) for key, points in series.items() for point in points)
    return Picture(name=name, title=title, draw=draw, heads=heads, rows=rows)


def _headline(study: NodeStudy) -> tuple[str, Point]:
    """The system with the fewest nodes, of the ablations' model."""
    each = study.at(study.config.headline.ablation_model, study.config.headline.scale)
    reached = {name: point for name, point in each.systems.items() if point is not None}
    name = min(reversed(reached), key=lambda name: reached[name].nodes)
    return name, reached[name]


def _nodes(study: NodeStudy) -> Picture:
    model = study.config.headline.ablation_model
    mine = [each for each in study.scaled if each.model == model]
    series = {
        name: [
            (float(each.scale), float(point.nodes))
            for each in mine
            if (point := each.systems[name]) is not None
        ]
        for name in study.config.systems
    }
    title = f"{model}: fewest nodes"
    return _series(
        "nodes-against-scale",
        title,
        ("system", "scale", "nodes"),
        series,
        lambda ink: plan_plots.nodes_against_scale(series, title=title, ink=ink),
    )


def _misses(study: NodeStudy) -> Picture:
    """Of every model as published, and of the headline's system, with what its tiers hold."""
    system, point = _headline(study)
    headline = f"{study.config.headline.ablation_model} x{study.config.headline.scale}"
    series = {
        each.name: [(share * each.nbytes, missed) for share, missed in each.misses if share > 0]
        for each in study.characters
    }
    planned = {
        f"{headline}, {system}: {name}": (nbytes * point.nodes, missed)
        for name, (nbytes, missed) in planned_sizes(point.tiers).items()
    }
    title = "an lru cache for all tables; rows asked for once in a batch"
    return _series(
        "miss-ratio-curves",
        title,
        ("model", "bytes held", "misses, share of distinct rows"),
        {**series, **{name: [size] for name, size in planned.items()}},
        lambda ink: plan_plots.planned_miss_ratios(series, planned, title=title, ink=ink),
    )


def _sizes(study: NodeStudy) -> Picture:
    series = {
        each.name: [(point.nbytes, point.bytes_per_s) for point in each.points if point.bytes_per_s > 0]
        for each in study.characters
    }
    title = "tables as published: size and bandwidth at the throughput of the smallest scale-out system"
    return _series(
        "size-and-bandwidth",
        title,
        ("model", "bytes", "bytes per second"),
        series,
        lambda ink: plan_plots.placement_map(series, title=title, ink=ink),
    )


def _throughput(study: NodeStudy) -> Picture:
    dram = list(study.node.tiers)[1]
    per_node = study.node.tiers[dram].spec().capacity_bytes * study.node.tiers[dram].count / 1e12
    series = {
        name: [(point.nodes * per_node, point.samples_per_s) for point in points]
        for name, points in study.curves.items()
    }
    headline = study.at(study.config.headline.ablation_model, study.config.headline.scale)
    marks = {
        name: (point.nodes * per_node, point.samples_per_s)
        for name, point in headline.systems.items()
        if point is not None
    }
    title = f"{headline.model} x{headline.scale}: throughput"
    return _series(
        "throughput-against-dram",
        title,
        ("system", "TB of DRAM in all nodes", "samples per second"),
        series,
        lambda ink: plan_plots.throughput_against_memory(
            series, marks, title=title, x="TB of DRAM in all nodes", ink=ink
        ),
    )


def _homes(study: NodeStudy) -> Picture:
    system, point = _headline(study)
    title = f"groups of tables of one node, {system}, {point.nodes} nodes: size, bandwidth and home"
    return _series(
        "placement-map",
        title,
        ("home", "bytes", "bytes per second"),
        point.homes,
        lambda ink: plan_plots.placement_map(point.homes, title=title, ink=ink),
    )


def _roofline(study: NodeStudy) -> Picture:
    system, point = _headline(study)
    machine = Machine(node=study.node, tiers=study.config.systems[system], nodes=point.nodes)
    series = {name: roof(DeviceService(device)) for name, device in machine.devices().items()}
    title = f"tiers of one node, {system}, {point.nodes} nodes: reads"
    return _series(
        "tier-roofline",
        title,
        ("tier", "bytes of a lookup", "lookups per second"),
        {**series, **{f"{name}, asked for": [load] for name, load in point.reads.items()}},
        lambda ink: plan_plots.tier_roofline(series, point.reads, title=title, ink=ink),
    )


def _emulations(study: NodeStudy) -> Picture:
    series: dict[str, list[tuple[float, float]]] = {}
    for _, run in study.emulations:
        series.setdefault(run.device, []).append((run.emulated_ns, run.predicted_ns))
    title = "a device's part of a step: closed form and emulator"
    return _series(
        "predicted-against-emulated",
        title,
        ("device", "emulated, ns", "predicted, ns"),
        series,
        lambda ink: plan_plots.predicted_and_measured(series, title=title, ink=ink),
    )
