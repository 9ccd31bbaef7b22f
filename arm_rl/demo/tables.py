"""A demo's numbers as tables for the terminal: the stages, and where there are several tracks, each track by itself."""

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from arm_rl.run.metrics import NO_TOOL, OTHER_TOOL

COLUMNS = ("accuracy", "tool_calls", "tool_rate", "box_hit", "accuracy_without_tools", "num_samples")
# begin the metrics of each track: accuracy/TRACK, first_tool/NAME/TRACK
ACCURACY, FIRST_TOOL = "accuracy/", "first_tool/"


def is_shown(key: str) -> bool:
    """Whether a metric of an evaluation belongs into the demo's summary."""
    return key in COLUMNS or key.startswith((ACCURACY, FIRST_TOOL))


def evaluation_tables(summary: Mapping[str, Mapping[str, float]], tracks: Sequence[str]) -> Iterator[Table]:
    """Yield the tables of the held-out evaluation.

    Args:
        summary: metrics by stage.
        tracks: their names.
    """
    table = Table("stage", *(column.replace("_", " ") for column in COLUMNS), title="judging held-out samples")
    for stage, metrics in summary.items():
        table.add_row(stage, *(f"{metrics[column]:.3g}" for column in COLUMNS))
    yield table
    if len(tracks) > 1:
        yield _track_table(summary, tracks)


def _track_table(summary: Mapping[str, Mapping[str, float]], tracks: Sequence[str]) -> Table:
    """A column a stage; for each track its accuracy, then the share of its samples for which each tool was called first."""
    table = Table(title="track by track: accuracy, and the tool that was called first")
    for column in ("track", "", *summary):
        table.add_column(column, overflow="fold")  # names of tools are long, and their ends tell them apart
    tools = sorted(
        {key.split("/")[1] for metrics in summary.values() for key in metrics if key.startswith(FIRST_TOOL)},
        key=_tool_sort_key,
    )
    for track in tracks:
        rows = {"accuracy": f"{ACCURACY}{track}", **{name: f"{FIRST_TOOL}{name}/{track}" for name in tools}}
        for name, key in rows.items():
            values = [metrics.get(key, 0.0) for metrics in summary.values()]
            if name == "accuracy" or any(values):
                table.add_row(track if name == "accuracy" else "", name, *(f"{value:.3f}" for value in values))
        table.add_section()
    return table


def _tool_sort_key(tool: str) -> tuple[bool, str]:
    """Sort tools by name; entries that are no tool come last."""
    return tool in (NO_TOOL, OTHER_TOOL), tool
