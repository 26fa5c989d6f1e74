"""How every plot looks: SVG in the page's text colour, so that it works in light and dark."""

import io
from typing import TYPE_CHECKING

from tiermem.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "INK", "label_axes", "new_figure", "png_bytes", "svg_text"]

# Colours that differ for readers with colour blindness (Okabe and Ito), and show on light and dark.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
# Stands for the text colour until the SVG is done; no other element has this colour.
INK = "#010203"


def new_figure(columns: int = 1, *, ink: str = INK) -> "tuple[Figure, list[Axes]]":
    """An empty figure with so many plots beside each other; text and axes in the colour `ink`.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 (an optional dependency)
        from matplotlib.figure import Figure as NewFigure  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ConfigError("plots need matplotlib: pip install 'tiermem[report]'") from None
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "tiermem"
    figure = NewFigure(figsize=(8.6, 3.4), layout="constrained")
    figure.patch.set_alpha(0)
    made = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in made:
        axes.patch.set_alpha(0)
        axes.set_prop_cycle(color=COLOURS)
        axes.tick_params(which="both", colors=ink)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(ink)
        for side in ("right", "top"):
            axes.spines[side].set_visible(False)
        axes.grid(visible=True, color=ink, alpha=0.12)
    return figure, made


def label_axes(axes: "Axes", x: str, y: str, *, outside: bool = True, ink: str = INK) -> None:
    """Names the axes, and shows a legend if anything has a label."""
    axes.set_xlabel(x, color=ink)
    axes.set_ylabel(y, color=ink)
    if axes.get_legend_handles_labels()[0]:
        place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if outside else {}
        axes.legend(frameon=False, labelcolor=ink, fontsize="small", **place)


def svg_text(figure: "Figure", ink: str = "currentColor") -> str:
    """The figure as SVG, its text and axes in the colour `ink`; the same bytes for the same figure."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(INK, ink)


def png_bytes(figure: "Figure", page: str) -> bytes:
    """The figure as PNG on a page of this colour."""
    figure.patch.set_alpha(1)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150, facecolor=page, metadata={"Software": None})
    return image.getvalue()
