"""The findings as one picture: for each design, accuracy and calls a sample over the steps of training, by whether the tool is needed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from arm_rl.experiments.figures import svg
from arm_rl.experiments.findings.designs import DESIGNS
from arm_rl.experiments.findings.results import ACCURACY, CALLS, Results
from arm_rl.experiments.findings.setting import ENGRAVED, PLAIN
from arm_rl.experiments.findings.statistics import Estimate, estimate

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3  # designs beside each other
_WIDTH, _ROW, _FOOT = 8.8, 2.85, 0.25  # inches: the figure's width, the height of a row of designs, that of the legend
_FONT = 8  # points
_KINDS = ((ENGRAVED, "the tool is needed", "#b5523b"), (PLAIN, "it is not", "#1f4e8c"))
_FAINT = "#666"


@dataclass(frozen=True, slots=True)
class _Panel:
    metric: str
    title: str
    ticks: tuple[float, ...]  # the first and the last are its edges

    def clip(self, value: float) -> float:
        """Return the value, or the edge that it is beyond."""
        return min(max(value, self.ticks[0]), self.ticks[-1])


_PANELS = (_Panel(ACCURACY, "accuracy", (0.4, 0.6, 0.8, 1.0)), _Panel(CALLS, "calls a sample", (0.0, 1.0, 2.0, 3.0)))


def plot(results: Results) -> str:
    """Return the picture as SVG."""
    return svg(draw(results))


def draw(results: Results) -> "Figure":
    """Draw each seed as a thin line, their mean as a thick one and its 95 % interval as a band.

    A value beyond a panel is drawn at the panel's edge.
    """
    from matplotlib.figure import Figure

    rows = max(1, math.ceil(len(results.designs) / _COLUMNS))
    figure = Figure(figsize=(_WIDTH, rows * _ROW + _FOOT), layout="constrained")
    grid = figure.add_gridspec(rows * len(_PANELS), _COLUMNS, wspace=0.05)
    steps = max(
        (len(row) for seeds in results.curves.values() for curves in seeds.values() for row in curves.values()),
        default=1,
    )
    for number, name in enumerate(results.designs):
        row, column = divmod(number, _COLUMNS)
        axes = [figure.add_subplot(grid[row * len(_PANELS) + place, column]) for place in range(len(_PANELS))]
        for panel, one in zip(_PANELS, axes, strict=True):
            _prepare(one, panel, steps, labelled=column == 0)
            _draw_curves(one, results, name, panel)
        axes[0].set_title(DESIGNS[name].title, loc="left", fontsize=_FONT, fontweight="bold")
        axes[-1].set_xlabel(f"{steps} steps", loc="right", fontsize=_FONT, color=_FAINT)
    figure.align_ylabels()
    _draw_legend(figure)
    return figure


def _prepare(axes: "Axes", panel: _Panel, steps: int, *, labelled: bool) -> None:
    """Set the edges of a panel and draw the lines behind its curves."""
    axes.set(xlim=(0, steps), ylim=(panel.ticks[0], panel.ticks[-1]), xticks=[])
    axes.set_yticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks])
    axes.tick_params(length=0, labelsize=_FONT, labelcolor=_FAINT, labelleft=labelled)
    axes.grid(axis="y", color="#ddd", linewidth=0.75, clip_on=False)
    axes.spines[:].set_visible(False)
    if labelled:
        axes.set_ylabel(panel.title, fontsize=_FONT)


def _draw_curves(axes: "Axes", results: Results, name: str, panel: _Panel) -> None:
    for kind, _, color in _KINDS:
        rows = [curves[f"{panel.metric}/{kind}"] for curves in results.curves.get(name, {}).values()]
        steps, estimates = zip(*_over_seeds(rows), strict=True)
        if all(math.isfinite(one.low) for one in estimates):
            low = [panel.clip(one.low) for one in estimates]
            high = [panel.clip(one.high) for one in estimates]
            axes.fill_between(steps, low, high, color=color, alpha=0.13, linewidth=0)
        for row in rows:
            known = {step: panel.clip(value) for step, value in enumerate(row, start=1) if not math.isnan(value)}
            axes.plot(list(known), list(known.values()), color=color, linewidth=0.5, alpha=0.5, clip_on=False)
        means = [panel.clip(one.mean) for one in estimates]
        axes.plot(steps, means, color=color, linewidth=1.5, clip_on=False)


def _over_seeds(rows: Sequence[Sequence[float]]) -> list[tuple[int, Estimate]]:
    """Return the steps, from 1 on, each with an estimate over the seeds that have a value there."""
    found = []
    for step in range(max(map(len, rows), default=0)):
        values = [row[step] for row in rows if step < len(row) and not math.isnan(row[step])]
        if values:
            found.append((step + 1, estimate(values)))
    return found


def _draw_legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Artist] = [
        *(Line2D([], [], color=color, linewidth=2.5, label=text) for _, text, color in _KINDS),
        Line2D([], [], color=_FAINT, linewidth=0.5, label="one seed"),
        Line2D([], [], color=_FAINT, linewidth=1.5, label="the mean over seeds"),
        Patch(color=_FAINT, alpha=0.2, linewidth=0, label="its 95 % interval"),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=_FONT, frameon=False)
