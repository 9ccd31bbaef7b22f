"""All benchmarks in one place: `summary.json`, a table and a plot of what each ratio is against its goal."""

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table

from arm_rl.experiments.bench.result import Result

# pixels of the plot: a row's height, where bars begin, how long a bar of twice the goal is
_ROW, _LEFT, _WIDTH = 34, 190, 420


def write(folder: Path, results: Sequence[Result]) -> Path:
    """Writes `summary.json`, `table.md` and `plot.svg`; gives the summary's path."""
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
    """The results that one benchmark wrote, by `save`."""
    return [Result(**one) for one in json.loads(path.read_text())]


def save(path: Path, results: Sequence[Result]) -> None:
    """Writes the results of one benchmark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([dataclasses.asdict(one) for one in results], indent=2))


def machine() -> dict[str, Any]:
    """What the numbers come from."""
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
    """For the terminal."""
    shown = Table("key", "ours", "the other", "unit", "ratio (range)", "goal", "met")
    for one in results:
        shown.add_row(*_cells(one))
    return shown


def markdown(results: Sequence[Result]) -> str:
    """For README."""
    rows = [("key", "ours", "the other", "unit", "ratio (range)", "goal", "met"), ("---",) * 7, *map(_cells, results)]
    where = machine()
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + f"\n({where['cpu']}, {where['cores']} cores)\n"


def plot(results: Sequence[Result]) -> str:
    """Each ratio over its goal, with its range; the line is the goal. For a goal that is a maximum, the goal over the ratio."""
    rows = []
    for number, one in enumerate(results):
        values = [value / one.goal for value in (one.ratio_low, one.ratio, one.ratio_high)]
        low, middle, high = sorted(1 / value for value in values) if one.less_is_better else values
        left, bar, right = (_LEFT + _WIDTH / 2 * min(value, 2.0) for value in (low, middle, high))
        y = _ROW * number + 12
        color = "#3a7d44" if one.met else "#b5523b"
        rows.append(
            f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(one.key)}</text>'
            f'<rect x="{_LEFT}" y="{y}" width="{bar - _LEFT:.1f}" height="18" fill="{color}"/>'
            f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y + 9}" y2="{y + 9}" stroke="#222" stroke-width="2"/>'
            f'<text x="{max(bar, right) + 6:.1f}" y="{y + 13}">{one.ratio:.2f} (goal {one.goal:g})</text>'
        )
    height = _ROW * len(results) + 16
    goal = _LEFT + _WIDTH / 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 150}" height="{height}" font-family="sans-serif" font-size="13">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(rows)}'
        f'<line x1="{goal}" x2="{goal}" y1="4" y2="{height - 4}" stroke="#222" stroke-dasharray="4 3"/></svg>\n'
    )


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
