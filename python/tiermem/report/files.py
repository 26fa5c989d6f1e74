"""A plot as files: SVG and PNG, each for a light and for a dark page, and the numbers behind it as CSV."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tiermem.report.style import png_bytes, svg_text
from tiermem.results import write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["csv_text", "save_plot"]

_THEMES = {"light": ("#303030", "#ffffff"), "dark": ("#d8d8d8", "#16181d")}
"""Colours of text and page."""

Cell = str | int | float | None


def csv_text(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Rows under their heads; `None` is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()


def save_plot(
    folder: Path,
    name: str,
    draw: "Callable[[str], Figure]",
    heads: Sequence[str],
    rows: Sequence[Sequence[Cell]],
) -> list[Path]:
    """Writes NAME-light.svg, NAME-light.png, NAME-dark.svg, NAME-dark.png and NAME.csv.

    Args:
        folder: is made if it is not there.
        name: of the plot.
        draw: makes the figure; takes the colour of text and axes.
        heads: columns of the CSV file.
        rows: the numbers that the figure shows.

    Raises:
        ConfigError: if matplotlib is not installed.
        TiermemError: if a file cannot be written.
    """
    written = [folder / f"{name}.csv"]
    write_text(written[0], csv_text(heads, rows))
    for theme, (ink, page) in _THEMES.items():
        svg, png = folder / f"{name}-{theme}.svg", folder / f"{name}-{theme}.png"
        figure = draw(ink)
        write_text(svg, svg_text(figure))
        write_bytes(png, png_bytes(figure, page))
        written += [svg, png]
    return written
