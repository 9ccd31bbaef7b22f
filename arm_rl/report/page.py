"""The report's page: its sections put together, and what its script may do."""

import base64
import hashlib
from html import escape
from importlib import resources
from string import Template

from arm_rl.report import curves, selection, table, times
from arm_rl.report.contents import ContentReader
from arm_rl.report.embedding import as_object, dump
from arm_rl.report.index import Index
from arm_rl.report.run_data import RunData
from arm_rl.report.selection import Selection, Unit

SCRIPTS = ("charts.js", "source.js", "filters.js", "browser.js")


def static_page(
    run: RunData, index: Index, contents: ContentReader, followed: Unit, chosen: Selection, listed: int, index_json: str
) -> str:
    """Return a page that holds its trajectories itself."""
    data = {
        "about": dump({"live": False, "total": _count_rows(index), "listed": listed}),
        "index": index_json,
        "rows": as_object(chosen.rows.items()),
        "pictures": as_object(chosen.pictures.items()),
    }
    return _render_page(run, index, contents, followed, as_object(data.items()), connect="'none'")


def live_page(run: RunData, index: Index, contents: ContentReader) -> str:
    """Return a page that requests its trajectories from its server."""
    data = as_object([("about", dump({"live": True, "total": _count_rows(index), "listed": _count_rows(index)}))])
    return _render_page(run, index, contents, selection.choose_followed(index), data, connect="'self'")


def _render_page(run: RunData, index: Index, contents: ContentReader, followed: Unit, data: str, connect: str) -> str:
    script = "\n".join(_read_resource(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode()
    run_with_tools = run.with_lines(table.tool_lines(index))
    return Template(_read_resource("page.html")).substitute(
        name=escape(run.name),
        headline=table.headline(run),
        table=table.stages(run),
        tracks=table.tracks(run),
        curves=curves.draw(run_with_tools),
        tools=table.tools(index),
        seconds=table.seconds(run),
        times=times.render_times(index.folder),
        followed=_render_followed(contents, followed),
        data=data,
        style=_read_resource("style.css"),
        script=script,
        script_digest=digest,  # no other script runs, whatever comes into the page
        connect=connect,
    )


def _render_followed(contents: ContentReader, followed: Unit) -> str:
    """Return one sample's trajectories after each stage, side by side."""
    shown = [contents.read(file, rows)[0] for file, rows in followed]
    if not shown:
        return '<p class="empty">No trajectories have been written yet.</p>'
    title = "<h3>One sample, judged after each stage</h3>" if len(shown) > 1 else ""
    return f'{title}{shown[-1]["question"]}<div class="cards">{"".join(one["card"] for one in shown)}</div>'


def _count_rows(index: Index) -> int:
    return sum(file.num_rows for file in index.files)


def _read_resource(name: str) -> str:
    return resources.files("arm_rl.report").joinpath(name).read_text(encoding="utf-8")
