"""The findings as one picture: for each design, accuracy and calls a sample over the steps of training, by whether the tool is needed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from arm_rl.experiments.findings.designs import DESIGNS
from arm_rl.experiments.findings.results import ACCURACY, CALLS, Results
from arm_rl.experiments.findings.setting import ENGRAVED, PLAIN
from arm_rl.experiments.findings.statistics import Estimate, estimate

_COLUMNS, _WIDTH, _HEIGHT = 3, 250, 100  # designs beside each other, and pixels of a panel
_MARGIN, _GAP, _TITLE, _FOOT = 44, 18, 26, 30  # pixels left of all, between panels, above a design's, and below them
_KINDS = ((ENGRAVED, "the tool is needed", "#b5523b"), (PLAIN, "it is not", "#1f4e8c"))


@dataclass(frozen=True, slots=True)
class _Panel:
    metric: str
    title: str
    ticks: tuple[float, ...]  # the first and the last are its edges

    def share(self, value: float) -> float:
        """How high a value stands, 0..1."""
        low, high = self.ticks[0], self.ticks[-1]
        return (min(max(value, low), high) - low) / (high - low)


_PANELS = (_Panel(ACCURACY, "accuracy", (0.4, 0.6, 0.8, 1.0)), _Panel(CALLS, "calls a sample", (0.0, 1.0, 2.0, 3.0)))


def plot(results: Results) -> str:
    """An SVG: each seed as a thin line, their mean as a thick one, its 95 % interval as a band; what is beyond a panel is at its edge."""
    block = _TITLE + len(_PANELS) * _HEIGHT + _GAP + _FOOT
    width = _MARGIN + _COLUMNS * (_WIDTH + _GAP)
    height = math.ceil(len(results.designs) / _COLUMNS) * block + 24
    steps = max(
        (len(row) for seeds in results.curves.values() for curves in seeds.values() for row in curves.values()),
        default=1,
    )
    drawn = []
    for number, name in enumerate(results.designs):
        row, column = divmod(number, _COLUMNS)
        panels = "".join(
            f'<g transform="translate(0 {place * (_HEIGHT + _GAP)})">'
            f"{_axes(panel, labelled=column == 0)}{_curves(results, name, panel, steps)}</g>"
            for place, panel in enumerate(_PANELS)
        )
        drawn.append(
            f'<g transform="translate({_MARGIN + column * (_WIDTH + _GAP)} {row * block + _TITLE})">'
            f'<text y="-9" font-weight="bold">{escape(DESIGNS[name].title)}</text>{panels}'
            f'<text x="{_WIDTH}" y="{block - _TITLE - 14}" text-anchor="end" fill="#666">{steps} steps</text></g>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(drawn)}{_legend(height - 10)}</svg>\n'
    )


def _axes(panel: _Panel, *, labelled: bool) -> str:
    lines = ""
    for tick in panel.ticks:
        y = _HEIGHT * (1 - panel.share(tick))
        lines += f'<line x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        lines += f'<text x="-5" y="{y + 4:.1f}" text-anchor="end" fill="#666">{tick:g}</text>' if labelled else ""
    title = f'<text transform="translate(-30 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">{panel.title}</text>'
    return lines + (title if labelled else "")


def _curves(results: Results, name: str, panel: _Panel, steps: int) -> str:
    def line(points: Sequence[tuple[int, float]]) -> str:
        return " ".join(
            f"{_WIDTH * (step + 1) / steps:.1f},{_HEIGHT * (1 - panel.share(value)):.1f}" for step, value in points
        )

    drawn = ""
    for kind, _, color in _KINDS:
        rows = [curves[f"{panel.metric}/{kind}"] for curves in results.curves.get(name, {}).values()]
        found = _over_seeds(rows)
        if all(math.isfinite(one.low) for _, one in found):
            band = [(step, one.high) for step, one in found] + [(step, one.low) for step, one in reversed(found)]
            drawn += f'<polygon points="{line(band)}" fill="{color}" opacity="0.13"/>'
        for row in rows:
            known = [(step, value) for step, value in enumerate(row) if not math.isnan(value)]
            drawn += f'<polyline points="{line(known)}" fill="none" stroke="{color}" stroke-width="0.7" opacity="0.5"/>'
        drawn += f'<polyline points="{line([(step, one.mean) for step, one in found])}" fill="none" stroke="{color}" stroke-width="2"/>'
    return drawn


def _over_seeds(rows: Sequence[Sequence[float]]) -> list[tuple[int, Estimate]]:
    """Steps, each with an estimate over the seeds that have a value there."""
    found = []
    for step in range(max(map(len, rows), default=0)):
        values = [row[step] for row in rows if step < len(row) and not math.isnan(row[step])]
        if values:
            found.append((step, estimate(values)))
    return found


def _legend(y: int) -> str:
    entries = "".join(
        f'<rect x="{_MARGIN + 160 * number}" y="{y - 6}" width="20" height="3" fill="{color}"/>'
        f'<text x="{_MARGIN + 160 * number + 27}" y="{y}">{text}</text>'
        for number, (_, text, color) in enumerate(_KINDS)
    )
    return f'{entries}<text x="{_MARGIN + 280}" y="{y}" fill="#666">thin: one seed; thick: the mean, with its 95 % interval</text>'
