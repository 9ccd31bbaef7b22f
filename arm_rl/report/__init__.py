"""The report of a run: one self-contained HTML file with its tables and learning curves, and its trajectories to browse.

    run folder -> run_data.read -> tables, curves          \\
    trajectories/*.parquet -> index (a few numbers a row)    > page -> report.html, or a server on this machine (`server`)
                           -> contents (what is looked at)  /

Nothing in it is fetched from anywhere: style, script and images lie inside. A file holds as many trajectories as fit (`selection`); the
server shows all of them. `python -m jobs.report RUN_FOLDER` makes both.
"""

from pathlib import Path

from tokenizers import Tokenizer

from arm_rl.core.atomic_file import replace_text
from arm_rl.report import page, run_data, selection, tokens
from arm_rl.report.contents import ContentReader
from arm_rl.report.index import Index
from arm_rl.report.selection import Selection

MAX_MB = 20.0  # of a report


def write_report(folder: Path, *, max_mb: float = MAX_MB, tokenizer: Tokenizer | None = None) -> Path:
    """Writes `report.html` into the run folder, from what is there: a run that was interrupted has a report too.

    Args:
        folder: with `summary.json`, `metrics.jsonl` and `trajectories/`; or with one such folder for each stage in it.
        max_mb: about how large the file may become; it holds as many trajectories as fit.
        tokenizer: of the run's model; by default the one that the run's export or configuration leads to.

    Returns:
        The file.
    """
    run = run_data.read(folder)
    index = Index(folder=folder)
    index.refresh(run.order)
    contents = ContentReader(index=index, tokenizer=tokenizer or tokens.find_tokenizer(folder))
    listed, index_json = _fit_index(index, int(max_mb * 1e6 / 2))
    chosen = Selection(contents=contents, max_bytes=int(max_mb * 1e6) - len(index_json.encode()))
    followed = selection.choose_followed(index)
    chosen.add(followed)
    selection.fill_selection(chosen, index)
    path = folder / "report.html"
    replace_text(path, page.static_page(run, index, contents, followed, chosen, listed, index_json))
    return path


def _fit_index(index: Index, max_bytes: int) -> tuple[int, str]:
    """Return the number of trajectories that the index lists within `max_bytes`, and the index."""
    files = index.files
    as_json = index.as_json(files)
    while len(as_json) > max_bytes and files:
        num_rows = sum(file.num_rows for file in files)
        files = selection.newest_files_within(index, int(num_rows * max_bytes / len(as_json) * 0.9))
        as_json = index.as_json(files)
    return sum(file.num_rows for file in files), as_json
