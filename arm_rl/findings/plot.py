"""The findings as one picture: accuracy and calls a sample over the steps of training, where the tool is needed and where it is not."""

import math
from collections.abc import Sequence
from html import escape

from arm_rl.findings.designs import DESIGNS
from arm_rl.findings.results import ACCURACY, CALLS, Results
from arm_rl.findings.setting import ENGRAVED, PLAIN
from arm_rl.findings.statistics import Estimate, estimate

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 330, 190, 46, 40, 56  # pixels of a panel, its margins, and between panels
_COLORS = ("#b5523b", "#d99a2b", "#7a5195", "#c45fa0", "#4c78a8", "#1f4e8c", "#2f8f4e")
_PANELS = (
    (f"{ACCURACY}/{ENGRAVED}", "accuracy, the tool is needed", 0.4, 1.0),
    (f"{ACCURACY}/{PLAIN}", "accuracy, it is not", 0.4, 1.0),
    (f"{CALLS}/{ENGRAVED}", "calls a sample, the tool is needed", 0.0, 2.0),
    (f"{CALLS}/{PLAIN}", "calls a sample, it is not", 0.0, 2.0),
)


def plot(results: Results) -> str:
    """An SVG: for each design the mean over seeds, its 95 % interval as a band. Values beyond a panel are drawn at its edge."""
    curves = {name: {key: _over_seeds(results, name, key) for key, *_ in _PANELS} for name in results.designs}
    steps = max((len(one) for panels in curves.values() for one in panels.values()), default=1)
    drawn = []
    for number, (key, title, low, high) in enumerate(_PANELS):
        x, y = _LEFT + (number % 2) * (_WIDTH + _GAP), _TOP + (number // 2) * (_HEIGHT + _GAP)
        lines = "".join(_line(points[key], _color(name), steps, low, high) for name, points in curves.items())
        drawn.append(f'<g transform="translate({x} {y})">{_axes(title, steps, low, high)}{lines}</g>')
    width, height = _LEFT + 2 * _WIDTH + _GAP + 20, _TOP + 2 * (_HEIGHT + _GAP)
    legend = "".join(_entry(name, number, height) for number, name in enumerate(curves))
    height += 22 * math.ceil(len(curves) / 2) + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(drawn)}{legend}</svg>\n'
    )


def _over_seeds(results: Results, name: str, key: str) -> list[Estimate | None]:
    """One estimate a step, of the seeds that got that far."""
    rows = [curves[key] for curves in results.curves.get(name, {}).values()]
    found = []
    for step in range(max(map(len, rows), default=0)):
        values = [row[step] for row in rows if step < len(row) and not math.isnan(row[step])]
        found.append(estimate(values) if values else None)
    return found


def _line(points: Sequence[Estimate | None], color: str, steps: int, low: float, high: float) -> str:
    def at(step: int, value: float) -> str:
        share = (min(max(value, low), high) - low) / (high - low)
        return f"{_WIDTH * (step + 1) / steps:.1f},{_HEIGHT * (1 - share):.1f}"

    known = [(step, one) for step, one in enumerate(points) if one is not None]
    mean = " ".join(at(step, one.mean) for step, one in known)
    band = [at(step, one.low) for step, one in known] + [at(step, one.high) for step, one in reversed(known)]
    sure = all(math.isfinite(one.low) for _, one in known)
    shade = f'<polygon points="{" ".join(band)}" fill="{color}" opacity="0.12"/>' if sure and known else ""
    return f'{shade}<polyline points="{mean}" fill="none" stroke="{color}" stroke-width="2"/>'


def _axes(title: str, steps: int, low: float, high: float) -> str:
    ticks = [low + (high - low) * share for share in (0, 1 / 3, 2 / 3, 1)] if high <= 1 else [low, high / 4, high / 2, 3 * high / 4, high]
    marks = "".join(
        f'<line x1="0" x2="{_WIDTH}" y1="{(y := _HEIGHT * (1 - (tick - low) / (high - low))):.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{tick:.2g}</text>'
        for tick in ticks
    )
    return (
        f'<text x="0" y="-10" font-weight="bold">{escape(title)}</text>{marks}'
        f'<text x="0" y="{_HEIGHT + 16}">0</text><text x="{_WIDTH}" y="{_HEIGHT + 16}" text-anchor="end">step {steps}</text>'
    )


def _entry(name: str, number: int, top: int) -> str:
    x, y = _LEFT + (number % 2) * (_WIDTH + _GAP), top + 22 * (number // 2)
    return (
        f'<rect x="{x}" y="{y - 9}" width="22" height="4" fill="{_color(name)}"/>'
        f'<text x="{x + 30}" y="{y - 3}">{escape(DESIGNS[name].title)}</text>'
    )


def _color(name: str) -> str:
    return _COLORS[list(DESIGNS).index(name) % len(_COLORS)]
