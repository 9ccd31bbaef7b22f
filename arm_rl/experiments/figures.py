"""Figures as SVG texts. Matplotlib is imported only where a figure is drawn: no job waits for its import at the start."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 0.75  # of a CSS pixel; matplotlib measures in points of 1/72 inch


def new_figure(width: float, height: float, *, gap: float = 3) -> "Figure":
    """Return an empty figure that lays its axes out by itself.

    Args:
        width: in CSS pixels.
        height: in CSS pixels.
        gap: around each of the axes and what is written beside it, in CSS pixels.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    pad = points(gap) / 72
    return Figure(
        figsize=(points(width) / 72, points(height) / 72), layout=ConstrainedLayoutEngine(w_pad=pad, h_pad=pad)
    )


def points(pixels: float) -> float:
    """Return a length in CSS pixels as matplotlib takes line widths and font sizes."""
    return pixels * _POINTS


def svg(figure: "Figure") -> str:
    """Return the figure as SVG: the same characters for the same figure, with its letters as text."""
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "arm_rl", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
