"""Plots of a trace: miss-ratio curves, the access CDF, and the histogram of stack distances."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tiermem.report.style import label_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["access_cdf", "distance_histogram", "miss_ratio_curves"]

_MARKERS = "ox+s^vd*"


def miss_ratio_curves(curves: Mapping[str, Sequence[tuple[int, float]]], *, title: str, ink: str) -> "Figure":
    """A line for each policy; Belady's `min` is the dashed floor that no policy can pass.

    Args:
        curves: (rows of the cache, hit rate) by policy, ascending in rows.
        title: what stream it is.
        ink: colour of text and axes.
    """
    figure, (axes,) = new_figure(ink=ink)
    for position, (policy, points) in enumerate(curves.items()):
        floor = policy == "min"
        axes.plot(
            [rows for rows, _ in points],
            [100 * (1 - hit_rate) for _, hit_rate in points],
            label="min (Belady)" if floor else policy,
            color=ink if floor else None,
            linestyle="--" if floor else "-",
            marker=None if floor else _MARKERS[position % len(_MARKERS)],
            markersize=4,
            linewidth=1.2,
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 100)
    axes.set_title(title, fontsize="medium", color=ink)
    label_axes(axes, "rows that the cache holds", "misses, % of accesses", ink=ink)
    return figure


def access_cdf(points: Sequence[tuple[float, float]], *, title: str, ink: str) -> "Figure":
    """How many of the accesses the hottest rows take.

    Args:
        points: (share of the rows, share of the accesses), ascending.
        title: what stream it is.
        ink: colour of text and axes.
    """
    figure, (axes,) = new_figure(ink=ink)
    axes.plot([100 * rows for rows, _ in points], [100 * accesses for _, accesses in points], linewidth=1.4)
    axes.set_xscale("log")
    axes.set_ylim(0, 100)
    axes.set_title(title, fontsize="medium", color=ink)
    label_axes(axes, "hottest rows, % of the accessed rows", "accesses, %", ink=ink)
    return figure


def distance_histogram(first_share: float, shares: Sequence[float], *, title: str, ink: str) -> "Figure":
    """Accesses by stack distance, in octaves; beside them the first accesses, which no cache can hit.

    Args:
        first_share: share of accesses that are the first of their row.
        shares: share with a distance of 0, of 1, of 2 to 3, of 4 to 7, and so on.
        title: what stream it is.
        ink: colour of text and axes.
    """
    figure, (axes,) = new_figure(ink=ink)
    names = ["0", "1", *(f"{2**n:,}+" for n in range(1, len(shares) - 1))][: len(shares)]
    axes.bar(range(len(shares)), [100 * share for share in shares])
    axes.bar([len(shares) + 0.5], [100 * first_share], color="#808080")
    axes.set_xticks(
        [*range(len(shares)), len(shares) + 0.5], [*names, "first"], rotation=60, fontsize="x-small"
    )
    axes.set_title(title, fontsize="medium", color=ink)
    label_axes(axes, "other rows since the last access to the row", "accesses, %", ink=ink)
    return figure
