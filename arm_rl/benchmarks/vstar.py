"""V* (V-star bench): questions about small details of large images, with options (arXiv 2312.14135).

File: `test_questions.jsonl` of craigwu/vstar_bench: `question_id`, `image` (a path beside the file), `text` (the question, then lines
`(A) …`, then a request to answer with the letter), `label` (the letter), `category` (`direct_attributes` or `relative_position`).

Scores: the accuracy of each category and of all, as in the repository's `vstar_bench_eval.py`. There the option with the highest likelihood
is the answer; here the letter that the judge writes is, as is usual for models behind a server.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from arm_rl.benchmarks import prompts
from arm_rl.benchmarks.base import Benchmark, Item, JudgedRow, ReadOptions, mean, split_by_category
from arm_rl.benchmarks.files import FileRow, ImageStore, read_rows
from arm_rl.core.types import Sample

NAME = "vstar"
_OPTION = re.compile(r"^\s*\(([A-Z])\)\s*(.*?)\s*$", re.MULTILINE)


def read(path: Path, reading: ReadOptions) -> list[Item]:
    """One item a question."""
    items = [_make_item(row, reading) for row in read_rows(path, ("jsonl",))]
    seen: set[str] = set()
    for number, item in enumerate(items):
        if item.row in seen:
            raise FileRow(path, number, {}).error("question_id", f"{item.row!r} stands twice")
        seen.add(item.row)
    return items


def _make_item(row: FileRow, reading: ReadOptions) -> Item:
    text, label, category = row.text("text"), row.text("label").strip(), row.text("category")
    options = dict(_OPTION.findall(text))
    if len(options) < 2:
        raise row.error("text", f"two or more lines with options, as in '(A) …', are needed, not {text!r:.80}")
    if label not in options:
        raise row.error("label", f"one of {', '.join(options)}, not {label!r}")
    key = f"{category}/{row.name('question_id')}"
    return Item(
        sample=Sample(
            id=f"{NAME}/{key}",
            track=NAME,
            messages=prompts.choose(_OPTION.split(text, maxsplit=1)[0].strip(), options, num_images=1),
            images=(ImageStore.find_image(row, "image", row.text("image"), row.path.parent),),
            texts=tuple(options.values()),
            label=label,
            tools=reading.usable_tools(image=True),
        ),
        kind="letter",
        row=key,
        cluster=key,
        categories={"category": category},
        num_options=len(options),
    )


def scores(rows: Sequence[JudgedRow]) -> dict[str, float]:
    """Each category, and `overall`, over all rows."""
    found = {
        category: mean([row.value for row in members])
        for category, members in split_by_category(rows, "category").items()
    }
    return {**found, "overall": mean([row.value for row in rows])} if rows else {}


VSTAR = Benchmark(read=read, scores=scores, main_score="overall")
