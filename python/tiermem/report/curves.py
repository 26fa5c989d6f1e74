"""The loaded-latency curve of one device, as SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

from tiermem.report.style import label_axes, new_figure, svg_text

__all__ = ["loaded_latency_svg"]


def loaded_latency_svg(points: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """Latency over throughput, a line each for mean, p50, p99 and p99.9.

    Args:
        points: rows with `iops`, `mean_us`, `p50_us`, `p99_us`, `p999_us`, and `queue_depth` or `rate_iops`.
        title: what was run, on what.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    figure, (axes,) = new_figure()
    throughput = [point["iops"] / 1000 for point in points]
    for key, label, marker in (
        ("mean", "mean", "o"),
        ("p50", "p50", "x"),
        ("p99", "p99", "+"),
        ("p999", "p99.9", "s"),
    ):
        axes.plot(
            throughput,
            [point[f"{key}_us"] for point in points],
            label=label,
            marker=marker,
            markersize=4,
            linewidth=1.2,
        )
    for point, at in zip(points, throughput, strict=True):
        if point["queue_depth"] is not None:
            axes.annotate(
                str(point["queue_depth"]),
                (at, point["mean_us"]),
                textcoords="offset points",
                xytext=(4, -9),
                fontsize="x-small",
                color="#808080",
            )
    axes.set_yscale("log")
    axes.set_title(title, fontsize="medium", color="#808080")
    label_axes(axes, "throughput, thousand operations a second (emulated)", "latency, us (emulated)")
    # A picture that is opened by itself has no page to take a text colour from.
    return svg_text(figure, "#404040")
