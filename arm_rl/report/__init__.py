"""The report of a run: one self-contained HTML file with the stages' table, learning curves and a few trajectories.

    run folder -> run_data.read -> table, curves, trajectories (each makes a piece of HTML) -> report.html

Nothing in it is fetched from anywhere: style, script and images lie inside. `python -m jobs.report RUN_FOLDER` makes it anew.
"""

from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from arm_rl.report import curves, run_data, table, trajectories


def write_report(folder: Path) -> Path:
    """Writes `report.html` into the run folder, from what is there: a run that was interrupted has a report too.

    Args:
        folder: with `summary.json`, `metrics.jsonl` and `trajectories/`; or with one such folder for each stage in it.

    Returns:
        The file.
    """
    run = run_data.read(folder)
    page = Template(_page_file("page.html")).substitute(
        name=escape(run.name),
        headline=table.headline(run),
        table=table.stages(run),
        tracks=table.tracks(run),
        seconds=table.seconds(run),
        curves=curves.draw(run),
        trajectories=trajectories.show(run),
        style=_page_file("style.css"),
        script=_page_file("script.js"),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _page_file(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
