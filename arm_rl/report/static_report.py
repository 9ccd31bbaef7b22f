"""The report of a run as one HTML file."""

from pathlib import Path

from tokenizers import Tokenizer

from arm_rl.core.atomic_file import replace_text
from arm_rl.report import MAX_MB, page, run_data, selection, tokens
from arm_rl.report.contents import ContentReader
from arm_rl.report.index import Index
from arm_rl.report.selection import Selection


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
