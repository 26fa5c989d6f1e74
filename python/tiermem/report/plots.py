"""Plots of a record as SVG text. Lines take the page's text colour, so they work in light and dark."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tiermem.report.style import COLOURS, INK, label_axes, new_figure, svg_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figures"]


def figures(record: Mapping[str, Any], *, ink: str = "currentColor") -> dict[str, str]:
    """SVG text by title; a plot without data is left out.

    Args:
        record: a run record.
        ink: colour of text and axes.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    plots: dict[str, Callable[[Mapping[str, Any]], Figure | None]] = {
        "Loss and AUC by epoch": _quality,
        "Hit rate over time": _hit_rates,
        "Step time by stage": _stages,
        "Device read latency (model)": _latency,
    }
    found = {}
    for title, plot in plots.items():
        figure = plot(record)
        if figure is not None:
            found[title] = svg_text(figure, ink)
    return found


def _quality(record: Mapping[str, Any]) -> "Figure | None":
    runs = {name: run for name, run in record["quality"]["runs"].items() if "validation" in run["epochs"][0]}
    if not runs:
        return None
    figure, (losses, aucs) = new_figure(2)
    for position, (name, run) in enumerate(runs.items()):
        numbers = range(1, len(run["epochs"]) + 1)
        style: dict[str, Any] = {
            "marker": "ox+s"[position % 4],
            "linestyle": ("-", "--", ":", "-.")[position % 4],
        }
        losses.plot(
            numbers,
            [epoch["train_loss"] for epoch in run["epochs"]],
            label=f"{name}: train",
            **style,
        )
        validation = [epoch["validation"]["logloss"] for epoch in run["epochs"]]
        losses.plot(numbers, validation, label=f"{name}: validation", **style)
        aucs.plot(
            numbers,
            [epoch["validation"]["auc"] for epoch in run["epochs"]],
            label=f"{name}: validation",
            **style,
        )
        aucs.plot(
            numbers,
            [epoch["test"]["auc"] for epoch in run["epochs"]],
            label=f"{name}: test",
            **style,
        )
    if record["quality"].get("baseline"):
        auc = record["quality"]["baseline"]["test"]["auc"]
        aucs.axhline(auc, color=INK, linewidth=0.8, linestyle=":", label="logistic regression: test")
    for axes in (losses, aucs):
        axes.set_xticks(list(numbers))
    label_axes(losses, "epoch", "logloss", outside=False)
    label_axes(aucs, "epoch", "AUC", outside=False)
    return figure


def _hit_rates(record: Mapping[str, Any]) -> "Figure | None":
    tiered = {name: series for name, series in record["series"].items() if len(series["tiers"]) > 1}
    if not tiered:
        return None
    figure, (axes,) = new_figure()
    for name, series in tiered.items():
        steps = [step for step, _ in series["hit_rates"]]
        last = max(step for step, _ in series["hit_rates"])
        for position, tier in enumerate(series["tiers"][:-1]):
            rates = [rates[position] * 100 for _, rates in series["hit_rates"]]
            axes.plot([step / last for step in steps], rates, label=f"{name}: {tier}", linewidth=1.2)
    axes.set_ylim(0, 100)
    label_axes(axes, "share of the run's steps", "hit rate, %")
    return figure


def _stages(record: Mapping[str, Any]) -> "Figure":
    runs = record["results"]["runs"]
    figure, (axes,) = new_figure()
    names = list(runs)
    left = [0.0] * len(names)
    stages = next(iter(runs.values()))["stage_mean_ns"]
    for colour, stage in zip(COLOURS, stages, strict=False):
        widths = [runs[name]["stage_mean_ns"][stage] / 1e6 for name in names]
        axes.barh(names, widths, left=left, label=stage.replace("_", "-"), color=colour)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    label_axes(axes, "mean step time, ms", "")
    return figure


def _latency(record: Mapping[str, Any]) -> "Figure | None":
    curves = {
        f"{name}: {tier}": points
        for name, series in record["series"].items()
        for tier, points in series["latency_cdfs"].items()
        if points
    }
    if not curves:
        return None
    figure, (axes,) = new_figure()
    for name, points in curves.items():
        axes.step(
            [ns / 1000 for ns, _ in points],
            [share * 100 for _, share in points],
            where="post",
            label=name,
            linewidth=1.2,
        )
    axes.set_xscale("log")
    label_axes(axes, "latency, us (emulated)", "reads at or below, %")
    return figure
