"""All benchmarks in one place: `summary.json`, a table and a plot of what each ratio is against its goal."""

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from arm_rl.core.atomic_file import replace_text
from arm_rl.experiments.bench.result import Result
from arm_rl.experiments.figures import svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _ROW = 8.3, 0.35  # inches: the plot's width, and the height of each of its rows
_FONT = 10  # points


def write(folder: Path, results: Sequence[Result]) -> Path:
    """Write `summary.json`, `table.md` and `plot.svg`, and return the summary's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(markdown(results))
    (folder / "plot.svg").write_text(plot(results))
    path = folder / "summary.json"
    path.write_text(
        json.dumps(
            {
                "machine": machine(),
                "results": {one.key: {**dataclasses.asdict(one), "met": one.met} for one in results},
            },
            indent=2,
        )
    )
    return path


def read(path: Path) -> list[Result]:
    """Return the results that `save` wrote."""
    return [Result(**one) for one in json.loads(path.read_text())]


def save(path: Path, results: Sequence[Result]) -> None:
    """Write the results of one benchmark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps([dataclasses.asdict(one) for one in results], indent=2))


def machine() -> dict[str, Any]:
    """Return what is known of this machine."""
    model = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def table(results: Sequence[Result]) -> Table:
    """Return a table for the terminal."""
    shown = Table("key", "ours", "the other", "unit", "ratio (range)", "goal", "met")
    for one in results:
        shown.add_row(*_cells(one))
    return shown


def markdown(results: Sequence[Result]) -> str:
    """Return a table for README."""
    rows = [("key", "ours", "the other", "unit", "ratio (range)", "goal", "met"), ("---",) * 7, *map(_cells, results)]
    where = machine()
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + f"\n({where['cpu']}, {where['cores']} cores)\n"


def plot(results: Sequence[Result]) -> str:
    """Return an SVG of each ratio over its goal."""
    return svg(draw(results))


def draw(results: Sequence[Result]) -> "Figure":
    """Draw each ratio over its goal as a bar, with the range over the repeats; a dashed line marks the goal.

    For a goal that is a maximum, the goal over the ratio is drawn. What is beyond twice the goal ends there.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _ROW * len(results) + 0.25), layout="constrained")
    axes = figure.add_subplot()
    for place, one in enumerate(results):
        values = [value / one.goal for value in (one.ratio_low, one.ratio, one.ratio_high)]
        ordered = sorted(1 / value for value in values) if one.less_is_better else values
        low, middle, high = (min(value, 2.0) for value in ordered)
        axes.barh(place, middle, height=0.55, color="#3a7d44" if one.met else "#b5523b")
        axes.plot([low, high], [place, place], color="#222", linewidth=1.5, solid_capstyle="butt")
        label = f" {one.ratio:.2f} (goal {one.goal:g})"
        background = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.text(max(middle, high) + 0.02, place, label, va="center", fontsize=_FONT, bbox=background)
    axes.axvline(1.0, color="#222", linewidth=0.75, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(results)), [one.key for one in results], fontsize=_FONT)
    axes.set(xlim=(0, 2.0), ylim=(len(results) - 0.5, -0.5), xticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _cells(one: Result) -> tuple[str, ...]:
    ours, other = (f"{sorted(values)[len(values) // 2]:.4g}" for values in (one.ours, one.other))
    bound = "at most " if one.less_is_better else ""
    ratio = f"{one.ratio:.2f} ({one.ratio_low:.2f} to {one.ratio_high:.2f})"
    return one.key, ours, other, one.unit, ratio, f"{bound}{one.goal:g}", "yes" if one.met else "no"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
