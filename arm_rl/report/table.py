"""The report's tables: the stages, the use of the tools, and where the time went."""

from collections import Counter
from html import escape
from typing import Any, get_args

from arm_rl.core.types import ToolStatus
from arm_rl.report.index import Index, LogFile
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


STATUSES: tuple[str, ...] = get_args(ToolStatus)
MAX_TOOLS, OTHER = 12, "other names"


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
    return _table(f'<th scope="col">stage</th>{head}', rows)


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
    return title + _table(f'<th scope="col">track</th>{head}', rows)


def _row(run: RunData, key: str) -> str:
    return "".join(_cell(values.get(key), SHARE) for values in run.stages.values())


def tool_lines(index: Index) -> list[dict[str, Any]]:
    """Calls of each tool, a trajectory, in the steps whose trajectories were written: numbers for a curve."""
    lines, shown = [], _most_called_tools(index)
    for file in index.files:
        if file.num_rows and not file.is_evaluation:
            used = index.tool_use([file])
            calls = {f"calls/{tool}": sum(used[tool, status] for status in STATUSES) / file.num_rows for tool in shown}
            lines.append({"stage": file.stage, "step": file.step, **calls})
    return lines


def tools(index: Index) -> str:
    """A row for each tool that a stage's trajectories call, with what came of it."""
    rows, seen = "", _used_statuses(index)
    for stage in dict.fromkeys(file.stage for file in index.files):
        rows += _tool_rows(index, stage, [file for file in index.files if file.stage == stage], seen)
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{status.replace("_", " ")}</th>' for status in seen)
    title = "<h2>Tool calls <small>in all trajectories that were written</small></h2>"
    left = '<th scope="col">stage</th><th scope="col" class="first">tool</th><th scope="col">calls</th><th scope="col">a trajectory</th>'
    return title + _table(f'{left}{head}<th scope="col">ms a call</th>', rows, "tools")


def _used_statuses(index: Index) -> list[str]:
    """Return the statuses that any call has."""
    found = {status for _, status in index.tool_use(index.files)}
    return [status for status in STATUSES if status in found]


def _tool_rows(index: Index, stage: str, files: list[LogFile], statuses: list[str]) -> str:
    used = index.tool_use(files)
    num_rows = sum(file.num_rows for file in files)
    rows, shown = "", _most_called_tools(index)
    for tool in [*shown, OTHER]:
        counts = {status: sum(used[name, status] for name in _names_in_row(used, tool, shown)) for status in statuses}
        calls = sum(counts.values())
        if not calls:
            continue
        seconds = sum(
            file.tool_seconds[name, status]
            for file in files
            for name in _names_in_row(used, tool, shown)
            for status in statuses
        )
        cells = "".join(_cell(count / calls, ".1%") for count in counts.values())
        title = "" if rows else escape(stage)
        rows += (
            f'<tr><th scope="row">{title}</th><td class="first">{escape(tool)}</td><td>{calls:,}</td><td>{calls / num_rows:.2f}</td>{cells}'
            f"<td>{1000 * seconds / calls:.0f}</td></tr>"
        )
    return rows


def _names_in_row(used: Counter[tuple[str, str]], tool: str, shown: list[str]) -> set[str]:
    """Return the tool's name, or for the last row the names of all tools without a row."""
    return {tool} if tool != OTHER else {name for name, _ in used} - set(shown)


def _most_called_tools(index: Index) -> list[str]:
    """Return the tools that are called most; a name that a policy makes up is rare."""
    totals: Counter[str] = Counter()
    for (tool, status), times in index.tool_use(index.files).items():
        totals[tool] += times if status != "unknown_tool" else 0
    return [tool for tool, times in totals.most_common(MAX_TOOLS) if times]


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


def _table(head: str, rows: str, kind: str = "stages") -> str:
    scrolls = 'class="scroll" tabindex="0" role="group" aria-label="table"'  # by keyboard too
    return f'<div {scrolls}><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(value: float | None, form: str) -> str:
    if value is None:
        return "<td>–</td>"
    bar = f' class="share" style="--share:{min(max(value, 0.0), 1.0):.4f}"' if form in (SHARE, ".1%") else ""
    return f"<td{bar}>{value:{form}}</td>"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s" if seconds < 10 else f"{rest} s"
