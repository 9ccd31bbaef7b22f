"""The report's learning curves: one small SVG chart for each metric, with the stages side by side."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from arm_rl.report.run_data import RunData

WIDTH, HEIGHT = 420, 190  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24  # margins around the plot
MIN_LABEL_WIDTH = 38  # a narrower stage goes without its name
MAX_PARTS = 8  # lines of one chart that can be told apart
SMOOTH_FROM = 30  # points; longer curves get a smoothed line over a faint one


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """What one chart shows."""

    title: str
    key: str = ""  # of metrics.jsonl
    held_out: str | None = None  # key of the evaluation; in summary.json without `evaluation/`
    low: float | None = None  # of the axis; by default from the data
    high: float | None = None
    parts: tuple[str, ...] = ()  # keys of its lines begin with one of these, in place of `key`: one line for each


CHARTS = (
    Chart(title="Reward", key="reward/mean"),
    Chart(title="Parts of the reward", parts=("reward/part/",)),
    Chart(title="Accuracy", key="rollout/accuracy", held_out="evaluation/accuracy", low=0, high=1),
    Chart(title="Tool calls a sample", key="tools/calls", held_out="evaluation/tool_calls", low=0),
    Chart(title="Calls by tool, a sample", parts=("calls/",), low=0),
    Chart(title="Calls by status", parts=("tools/status/",), low=0, high=1),
    Chart(title="Box on the target", key="tools/box_hit", held_out="evaluation/box_hit", low=0, high=1),
    Chart(title="Sampled tokens a session", key="rollout/response_tokens", low=0),
    Chart(title="Spread of rewards in a group", key="reward/group_std", low=0),
    Chart(title="Loss", key="learner/loss"),
    Chart(title="Gradient norm", key="learner/grad_norm", low=0),
    Chart(title="Entropy", key="learner/entropy", low=0),
    Chart(title="KL of engine and learner", key="learner/kl_engine"),
    Chart(title="Clipped tokens", key="learner/clip_share", low=0),
    Chart(title="Seconds of a step", parts=("time/",), low=0),
)


@dataclass(frozen=True, slots=True)
class Point:
    """A value at a step; `position` counts steps over the stages of the chart."""

    position: float
    value: float
    label: str


@dataclass(frozen=True, slots=True)
class StageSpan:
    """A stage's place on the axis."""

    stage: str
    start: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class Scale:
    """From positions and values to the chart's own units."""

    num_steps: int
    low: float
    high: float

    def x(self, position: float) -> float:
        """Units from the left."""
        return round(LEFT + (WIDTH - LEFT - RIGHT) * position / max(self.num_steps, 1), 2)

    def y(self, value: float) -> float:
        """Units from the top."""
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.low) / (self.high - self.low), 2)


def draw(run: RunData) -> str:
    """All charts that have data."""
    charts = "".join(
        _draw_parts(run, chart) if chart.parts else _draw_chart(run, chart) for chart in (*CHARTS, *_track_charts(run))
    )
    return f'<div class="charts">{charts}</div>' if charts else '<p class="empty">No steps have been logged yet.</p>'


def _track_charts(run: RunData) -> list[Chart]:
    """The accuracy of each track, where there are several."""
    prefix = "rollout/accuracy/"
    tracks = sorted({key.removeprefix(prefix) for line in run.lines for key in line if key.startswith(prefix)})
    return [
        Chart(
            title=f"Accuracy: {escape(track)}",
            key=f"{prefix}{track}",
            held_out=f"evaluation/accuracy/{track}",
            low=0,
            high=1,
        )
        for track in tracks
    ]


def _draw_chart(run: RunData, chart: Chart) -> str:
    spans = _spans(run, chart.key)
    trained = _points(run, chart.key, spans)
    if not trained:
        return ""
    held_out = _held_out_points(run, chart.held_out, spans) if chart.held_out else []
    ticks = axis_ticks([point.value for point in trained + held_out], chart.low, chart.high)
    scale = Scale(spans[-1].start + spans[-1].num_steps, ticks[0], ticks[-1])
    readings = [
        [scale.x(point.position), scale.y(point.value), f"{point.label}: {point.value:.4g}"]
        for point in trained + held_out
    ]
    last = (held_out or trained)[-1]
    return (
        f'<figure class="chart" data-points="{escape(json.dumps(readings))}">'
        f"<figcaption><span>{chart.title}</span><output>{last.label}: {last.value:.4g}</output></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{chart.title}, from {trained[0].value:.3g} to {trained[-1].value:.3g}">'
        f"{_axes(scale, ticks, spans)}{_curve(scale, trained, spans)}{_dots(scale, held_out)}"
        '<circle class="cursor" r="4" visibility="hidden"/></svg></figure>'
    )


def _draw_parts(run: RunData, chart: Chart) -> str:
    """A chart of several lines, each with its name."""
    values = {key: line[key] for line in run.lines for key in line if key.startswith(chart.parts) and line[key]}
    keys = sorted(values)[:MAX_PARTS]
    if not keys:
        return ""
    stages = list(dict.fromkeys(span.stage for key in keys for span in _spans(run, key)))
    spans = _spans_of(run, [stage for stage in run.stage_names if stage in stages])
    lines = {key: _points(run, key, spans) for key in keys}
    ticks = axis_ticks([point.value for points in lines.values() for point in points], chart.low, chart.high)
    scale = Scale(spans[-1].start + spans[-1].num_steps, ticks[0], ticks[-1])
    names = {key: escape(key.rpartition("/")[2].replace("_", " ")) for key in keys}
    readings = [
        [scale.x(point.position), scale.y(point.value), f"{names[key]}, {point.label}: {point.value:.4g}"]
        for key, points in lines.items()
        for point in points
    ]
    drawn = "".join(
        f'<g class="part p{number}">{_curve(scale, lines[key], spans)}</g>' for number, key in enumerate(keys)
    )
    legend = "".join(
        f'<li class="part p{number}"><span>{names[key]}</span> <b>{lines[key][-1].value:.3g}</b></li>'
        for number, key in enumerate(keys)
    )
    return (
        f'<figure class="chart" data-points="{escape(json.dumps(readings))}"><figcaption><span>{chart.title}</span><output></output>'
        f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{chart.title}; the last values stand below">'
        f'{_axes(scale, ticks, spans)}{drawn}<circle class="cursor" r="4" visibility="hidden"/></svg>'
        f'<ul class="legend">{legend}</ul></figure>'
    )


def axis_ticks(values: Sequence[float], low: float | None, high: float | None) -> list[float]:
    """Three to six round numbers that enclose the values and the given ends."""
    lowest = min(values) if low is None else min(low, *values)
    highest = max(values) if high is None else max(high, *values)
    if highest - lowest < 1e-12:
        highest, lowest = (
            highest + max(abs(highest), 1e-6) / 2,
            lowest if low is not None else lowest - max(abs(lowest), 1e-6) / 2,
        )
    rough = (highest - lowest) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(lowest / step + 1e-9), math.ceil(highest / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def smooth(values: Sequence[float]) -> list[float]:
    """Return means over about a tenth of the points around each; towards the ends over fewer points."""
    reach = max(len(values) // 20, 1)
    means = []
    for index in range(len(values)):
        near = min(reach, index, len(values) - 1 - index)
        window = values[index - near : index + near + 1]
        means.append(sum(window) / len(window))
    return means


def _spans(run: RunData, key: str) -> list[StageSpan]:
    """Stages that have the metric, end to end."""
    return _spans_of(
        run, [stage for stage in run.stage_names if any(line.get(key) is not None for line in _lines(run, stage))]
    )


def _spans_of(run: RunData, stages: Sequence[str]) -> list[StageSpan]:
    spans: list[StageSpan] = []
    for stage in stages:
        start = spans[-1].start + spans[-1].num_steps if spans else 0
        spans.append(StageSpan(stage, start, max(line["step"] for line in _lines(run, stage))))
    return spans


def _lines(run: RunData, stage: str) -> list[dict[str, Any]]:
    return [line for line in run.lines if line["stage"] == stage]


def _points(run: RunData, key: str, spans: Sequence[StageSpan], what: str = "") -> list[Point]:
    """The metric's values along the axis."""
    starts = {span.stage: span.start for span in spans}
    points = [
        Point(starts[line["stage"]] + line["step"], line[key], f"{what}{escape(line['stage'])} {line['step']}")
        for line in run.lines
        if line["stage"] in starts and line.get(key) is not None
    ]
    return sorted(points, key=lambda point: point.position)


def _held_out_points(run: RunData, key: str, spans: Sequence[StageSpan]) -> list[Point]:
    """Values of evaluations: those logged on the way, and the summary's at the end of a stage."""
    points = {point.position: point for point in _points(run, key, spans, "held-out, ")}
    for span in spans:
        value = run.stages.get(span.stage, {}).get(key.removeprefix("evaluation/"))
        if value is not None:
            position = span.start + span.num_steps
            points[position] = Point(position, value, f"held-out, after {escape(span.stage)}")
    return [points[position] for position in sorted(points)]


def _axes(scale: Scale, ticks: Sequence[float], spans: Sequence[StageSpan]) -> str:
    lines = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{scale.y(tick)}" y2="{scale.y(tick)}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{scale.y(tick) + 3.5}">{tick:.4g}</text>'
        for tick in ticks
    )
    for span in spans:
        left, right = scale.x(span.start), scale.x(span.start + span.num_steps)
        if span.start:
            lines += f'<line class="border" x1="{left}" x2="{left}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        if right - left >= MIN_LABEL_WIDTH:
            steps = f" · {span.num_steps} steps" if right - left >= 3 * MIN_LABEL_WIDTH else ""
            lines += (
                f'<text class="stage" x="{(left + right) / 2:.1f}" y="{HEIGHT - 8}">{escape(span.stage)}{steps}</text>'
            )
    return lines


def _curve(scale: Scale, points: Sequence[Point], spans: Sequence[StageSpan]) -> str:
    """One line a stage: between stages there is a gap."""
    lines = ""
    for span in spans:
        own = [point for point in points if span.start < point.position <= span.start + span.num_steps]
        if len(own) >= SMOOTH_FROM:
            lines += _line("raw", [(scale.x(point.position), scale.y(point.value)) for point in own])
            means = smooth([point.value for point in own])
            lines += _line(
                "curve", [(scale.x(point.position), scale.y(mean)) for point, mean in zip(own, means, strict=True)]
            )
        else:
            lines += _line("curve", [(scale.x(point.position), scale.y(point.value)) for point in own])
    return lines


def _line(name: str, places: Sequence[tuple[float, float]]) -> str:
    if len(places) == 1:
        return f'<circle class="{name} single" cx="{places[0][0]}" cy="{places[0][1]}" r="2"/>'
    return f'<polyline class="{name}" points="{" ".join(f"{x},{y}" for x, y in places)}"/>'


def _dots(scale: Scale, points: Sequence[Point]) -> str:
    return "".join(
        f'<circle class="held-out" r="4" cx="{scale.x(point.position)}" cy="{scale.y(point.value)}"/>'
        for point in points
    )
