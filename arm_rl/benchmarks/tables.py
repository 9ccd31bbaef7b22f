"""Summaries and comparisons as tables for the terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from arm_rl.benchmarks.summary import Summaries

POSITION = (
    ("first", "for the answer shown first"),
    ("same", "same answer in both orders"),
    ("both_right", "right in both orders"),
)


def summary_tables(summaries: Summaries) -> Iterator[Table]:
    """For each benchmark its scores and its categories, ways of asking side by side."""
    for name, ways in summaries.items():
        yield _score_table(name, ways)
        yield _category_table(name, ways)


def _score_table(name: str, ways: Mapping[str, dict[str, Any]]) -> Table:
    table = Table(title=name, title_justify="left")
    table.add_column("score")
    for way, summary in ways.items():
        missing = f", {summary['missing']} missing" if summary["missing"] else ""
        table.add_column(f"{way} ({summary['num_rows']} rows{missing})", justify="right")
    for score in dict.fromkeys(score for summary in ways.values() for score in summary["scores"]):
        style = "bold" if any(score == summary["main_score"] for summary in ways.values()) else None
        table.add_row(
            score, *(_format_interval(summary["scores"].get(score)) for summary in ways.values()), style=style
        )
    table.add_section()
    table.add_row("rows right", *(_format_interval(summary["accuracy"]) for summary in ways.values()))
    for key, label in (
        ("readable", "verdicts readable"),
        ("call_rate", "samples with a call"),
        ("ok_calls", "calls that succeeded"),
    ):
        table.add_row(label, *("" if summary[key] is None else f"{summary[key]:.1%}" for summary in ways.values()))
    table.add_row("calls a sample", *(f"{summary['calls']:.2f}" for summary in ways.values()))
    if any(summary["position"] for summary in ways.values()):
        table.add_section()
        for key, label in POSITION:
            shares = (f"{summary['position'][key]:.1%}" if summary["position"] else "" for summary in ways.values())
            table.add_row(label, *shares)
    return table


def _category_table(name: str, ways: Mapping[str, dict[str, Any]]) -> Table:
    table = Table(title=f"{name}: accuracy by category", title_justify="left")
    table.add_column("category")
    for way in ways:
        table.add_column("rows", justify="right")
        table.add_column(way, justify="right")
        table.add_column("calls", justify="right")
    names = dict.fromkeys(category for summary in ways.values() for category in summary["categories"])
    for category in names:
        values = dict.fromkeys(value for summary in ways.values() for value in summary["categories"].get(category, {}))
        for value in values:
            cells: list[str] = []
            for summary in ways.values():
                found = summary["categories"].get(category, {}).get(value)
                cells += (
                    [f"{found['num_rows']:.0f}", _format_interval(found), f"{found['calls']:.2f}"]
                    if found
                    else ["", "", ""]
                )
            table.add_row(f"{category} {value}", *cells)
        table.add_section()
    return table


def comparison_table(compared: Mapping[str, dict[str, Any]], before: str, after: str) -> Table:
    """Two runs, benchmark by benchmark."""
    table = Table("benchmark", "score", before, after, "difference (95 %)", "lost / won", "p (McNemar)")
    for column in table.columns[2:]:
        column.justify = "right"
    for name, one in compared.items():
        test = [f"{one['lost']} / {one['won']}", "" if one["p"] is None else f"{one['p']:.3g}"]
        for score, values in one["scores"].items():
            main = score == one["main_score"]
            shown = f"{100 * values['difference']:+.1f} ({100 * values['low']:+.1f} to {100 * values['high']:+.1f})"
            cells = [
                f"{100 * values['before']:.1f}",
                f"{100 * values['after']:.1f}",
                shown,
                *(test if main else ["", ""]),
            ]
            table.add_row(
                f"{name} ({one['num_rows']} rows)" if main else "", score, *cells, style="bold" if main else None
            )
        table.add_section()
    return table


def _format_interval(value: Mapping[str, float] | None) -> str:
    return (
        "" if value is None else f"{100 * value['value']:.1f} ({100 * value['low']:.1f} to {100 * value['high']:.1f})"
    )
