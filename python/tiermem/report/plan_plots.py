"""Plots of plans and of studies: what caches miss, what tiers can do, what was predicted, what it saves."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tiermem.report.style import COLOURS, label_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "nodes_against_scale",
    "placement_map",
    "planned_miss_ratios",
    "power_ratios",
    "predicted_and_measured",
    "throughput_against_memory",
    "tier_roofline",
]

_MARKERS = "ox+s^vd*"
_BAND = 0.1

Points = Sequence[tuple[float, float]]


def planned_miss_ratios(
    curves: Mapping[str, Points], planned: Mapping[str, tuple[float, float]], *, title: str, ink: str
) -> "Figure":
    """Miss-ratio curves with the planned sizes marked.

    Args:
        curves: (bytes held, share of lookups that miss) by name, ascending.
        planned: (bytes held, share that misses) of what was planned, by name.
        title: of the plot.
        ink: colour of text and axes.
    """
    figure, (axes,) = new_figure(ink=ink)
    for position, (name, points) in enumerate(curves.items()):
        line = [(nbytes, 100 * misses) for nbytes, misses in points if nbytes > 0]
        axes.plot(*zip(*line, strict=True), label=name, color=COLOURS[position % len(COLOURS)], linewidth=1.3)
    for position, (name, (nbytes, misses)) in enumerate(planned.items()):
        axes.plot(nbytes, 100 * misses, "Ds^v"[position % 4], color=ink, label=name, linestyle="none")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize="medium", color=ink)
    label_axes(axes, "bytes of rows that are held", "misses, % of the rows looked for", ink=ink)
    return figure


def tier_roofline(
    roofs: Mapping[str, Points], loads: Mapping[str, tuple[float, float]], *, title: str, ink: str
) -> "Figure":
    """What each tier can serve, and what a plan asks of it.

    Args:
        roofs: (bytes of a lookup, lookups per second at most) by tier, ascending.
        loads: the same of what the plan asks, for tiers that are used.
        title: of the plot.
        ink: colour of text and axes.
    """
    figure, (axes,) = new_figure(ink=ink)
    for position, (name, points) in enumerate(roofs.items()):
        colour = COLOURS[position % len(COLOURS)]
        axes.plot(*zip(*points, strict=True), label=name, color=colour, linewidth=1.3)
        if name in loads:
            axes.plot(*loads[name], "D", color=colour, markersize=6)
    axes.plot([], [], "D", color=ink, label="asked for by the plan", linestyle="none")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_title(title, fontsize="medium", color=ink)
    label_axes(axes, "bytes of a lookup", "lookups per second (model)", ink=ink)
    return figure


def throughput_against_memory(
    curves: Mapping[str, Points], marks: Mapping[str, tuple[float, float]], *, title: str, x: str, ink: str
) -> "Figure":
    """Samples per second over how much memory there is.

    Args:
        curves: (memory, samples per second) by name, ascending.
        marks: the point that was chosen, for some of the names.
        title: of the plot.
        x: what memory is: the name of that axis.
        ink: colour of text and axes.
    """
    figure, (axes,) = new_figure(ink=ink)
    for position, (name, points) in enumerate(curves.items()):
        colour = COLOURS[position % len(COLOURS)]
        axes.plot(
            *zip(*points, strict=True),
            label=name,
            color=colour,
            marker=_MARKERS[position % len(_MARKERS)],
            markersize=4,
            linewidth=1.3,
        )
        if name in marks:
            axes.plot(*marks[name], "D", color=colour, markersize=7, fillstyle="none")
    if marks:
        axes.plot([], [], "D", color=ink, fillstyle="none", label="chosen", linestyle="none")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize="medium", color=ink)
    label_axes(axes, x, "samples per second (model)", ink=ink)
    return figure


def predicted_and_measured(points: Mapping[str, Points], *, title: str, ink: str) -> "Figure":
    """Predicted steps over emulated ones, with a band of +-10 %.

    Args:
        points: (emulated, predicted) in nanoseconds by kind of plan.
        title: of the plot.
        ink: colour of text and axes.
    """
    figure, (axes,) = new_figure(ink=ink)
    times = [time / 1e3 for each in points.values() for point in each for time in point]
    ends = [min(times) / 1.3, max(times) * 1.3]
    axes.plot(ends, ends, color=ink, linewidth=0.8, linestyle="--", label="equal")
    axes.fill_between(
        ends,
        [end * (1 - _BAND) for end in ends],
        [end * (1 + _BAND) for end in ends],
        color=ink,
        alpha=0.12,
        label="within 10 %",
    )
    for position, (name, each) in enumerate(points.items()):
        axes.plot(
            [emulated / 1e3 for emulated, _ in each],
            [predicted / 1e3 for _, predicted in each],
            _MARKERS[position % len(_MARKERS)],
            color=COLOURS[position % len(COLOURS)],
            label=name,
            markersize=5,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title, fontsize="medium", color=ink)
    label_axes(axes, "emulated step, us", "predicted step, us", ink=ink)
    return figure


def placement_map(tables: Mapping[str, Points], *, title: str, ink: str) -> "Figure":
    """Tables by size and bandwidth, coloured by the tier of their home.

    Args:
        tables: (bytes, bytes per second asked for) by tier.
        title: of the plot.
        ink: colour of text and axes.
    """
    figure, (axes,) = new_figure(ink=ink)
    for position, (name, points) in enumerate(tables.items()):
        if points:
            axes.plot(
                *zip(*points, strict=True),
                _MARKERS[position % len(_MARKERS)],
                color=COLOURS[position % len(COLOURS)],
                label=name,
                markersize=5,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title, fontsize="medium", color=ink)
    label_axes(axes, "bytes of the table", "bytes per second asked for", ink=ink)
    return figure


def nodes_against_scale(series: Mapping[str, Points], *, title: str, ink: str) -> "Figure":
    """Fewest nodes over the scale of a model.

    Args:
        series: (scale, nodes) by system, ascending.
        title: of the plot.
        ink: colour of text and axes.
    """
    figure, (axes,) = new_figure(ink=ink)
    for position, (name, points) in enumerate(series.items()):
        axes.plot(
            *zip(*points, strict=True),
            label=name,
            color=COLOURS[position % len(COLOURS)],
            marker=_MARKERS[position % len(_MARKERS)],
            markersize=5,
            linewidth=1.3,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title, fontsize="medium", color=ink)
    label_axes(axes, "scale of the tables", "fewest nodes at the target throughput", ink=ink)
    return figure


def power_ratios(
    ratios: Mapping[str, Mapping[str, float]], band: tuple[float, float], *, title: str, ink: str
) -> "Figure":
    """Power of a fleet over what it is compared with, by scenario and device, as bars.

    Args:
        ratios: ratio by device, by scenario; a device that cannot is left out.
        band: ratios that the original reports.
        title: of the plot.
        ink: colour of text and axes.
    """
    figure, (axes,) = new_figure(ink=ink)
    devices = list(dict.fromkeys(device for each in ratios.values() for device in each))
    width = 0.8 / max(1, len(devices))
    for number, device in enumerate(devices):
        places = [(at, each[device]) for at, each in enumerate(ratios.values()) if device in each]
        axes.bar(
            [at + (number - (len(devices) - 1) / 2) * width for at, _ in places],
            [ratio for _, ratio in places],
            width=width * 0.9,
            label=device,
            color=COLOURS[number % len(COLOURS)],
        )
    axes.axhspan(*band, color=ink, alpha=0.12, label="the original's range")
    axes.axhline(1.0, color=ink, linewidth=0.8)
    axes.set_xticks(range(len(ratios)), list(ratios))
    axes.set_title(title, fontsize="medium", color=ink)
    label_axes(axes, "", "power, with over without", ink=ink)
    return figure
