"""The report's table of the stages, and where the time went."""

from html import escape

from arm_rl.report.run_data import RunData

# Columns: key in summary.json, heading, format. Shares are drawn as bars too.
SHARE, MEAN, COUNT = ".3f", ".2f", ",.0f"
COLUMNS = (
    ("accuracy", "accuracy", SHARE),
    ("accuracy_without_tools", "without tools", SHARE),
    ("tool_calls", "calls a sample", MEAN),
    ("tool_rate", "tool rate", SHARE),
    ("box_hit", "box on target", SHARE),
    ("num_samples", "samples", COUNT),
)


def headline(run: RunData) -> str:
    """What the run did to the judge, in a sentence."""
    if len(run.stages) < 2:
        return "The run has not been evaluated after two stages yet."
    first, *_, last = run.stages
    before, after = run.stages[first], run.stages[last]
    return (
        f"From {escape(first)} to {escape(last)}, accuracy on held-out samples went from <strong>{before['accuracy']:.1%}</strong> to "
        f"<strong>{after['accuracy']:.1%}</strong>, with {before.get('tool_calls', 0):.2f} and {after.get('tool_calls', 0):.2f} "
        "tool calls a sample."
    )


def stages(run: RunData) -> str:
    """A row a stage."""
    if not run.stages:
        return '<p class="empty">No stage has been evaluated yet.</p>'
    head = "".join(f'<th scope="col">{heading}</th>' for _, heading, _ in COLUMNS)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(_cell(values.get(key), form) for key, _, form in COLUMNS)}</tr>'
        for name, values in run.stages.items()
    )
    return f'<div class="scroll"><table><thead><tr><th scope="col">stage</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def tracks(run: RunData) -> str:
    """Where there are several tracks: a column a stage, and for each track its accuracy and the share of its samples by the first tool."""
    keys = list(dict.fromkeys(key for values in run.stages.values() for key in values))
    names = [key.removeprefix("accuracy/") for key in keys if key.startswith("accuracy/")]
    if not names:
        return ""
    head = "".join(f'<th scope="col">{escape(stage)}</th>' for stage in run.stages)
    rows = ""
    for track in names:
        rows += f'<tr><th scope="row">{escape(track)}</th>{_row(run, f"accuracy/{track}")}</tr>'
        for key in keys:
            tool = key.removeprefix("first_tool/").removesuffix(f"/{track}")
            if key == f"first_tool/{tool}/{track}" and any(values.get(key) for values in run.stages.values()):
                rows += f'<tr><td class="first">first call: {escape(tool)}</td>{_row(run, key)}</tr>'
    title = "<h2>Track by track <small>accuracy on held-out samples, and the tool that was called first</small></h2>"
    return f'{title}<div class="scroll"><table><thead><tr><th scope="col">track</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(run: RunData, key: str) -> str:
    return "".join(_cell(values.get(key), SHARE) for values in run.stages.values())


def seconds(run: RunData) -> str:
    """A bar a phase."""
    if not run.seconds:
        return ""
    longest = max(run.seconds.values()) or 1.0
    rows = "".join(
        f'<li><span class="phase">{escape(phase)}</span><span class="bar" style="--share:{spent / longest:.4f}"></span>'
        f"<span>{_duration(spent)}</span></li>"
        for phase, spent in run.seconds.items()
    )
    total = _duration(sum(run.seconds.values()))
    return f'<h2>Where the time went <small>{total} in all</small></h2><ul class="seconds">{rows}</ul>'


def _cell(value: float | None, form: str) -> str:
    if value is None:
        return "<td>–</td>"
    bar = f' class="share" style="--share:{min(max(value, 0.0), 1.0):.4f}"' if form == SHARE else ""
    return f"<td{bar}>{value:{form}}</td>"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s" if seconds < 10 else f"{rest} s"
