"""HR-Bench 4K and 8K: questions about details of very large images, with options, each asked in four cycles of them (arXiv 2408.15556).

File: `hr_bench_4k.tsv` or `hr_bench_8k.tsv` of DreamMr/HR-Bench, or the parquet file of the same columns: `index`, `question`, `answer` (a
letter), `category` (`single` or `cross`), `A` to `D`, `cycle_category`, `image` (base64; in parquet also a struct of bytes).

Scores, as the repository's `image_mcq.py` computes them: the accuracy of each category and of all, as the mean over the cycles. There a
language model decides whether an answer is right; here the letter that the judge writes does.
"""

from collections.abc import Sequence
from pathlib import Path

from arm_rl.benchmarks import prompts
from arm_rl.benchmarks.base import Benchmark, Item, JudgedRow, ReadOptions, mean, split_by_category
from arm_rl.benchmarks.files import FileRow, read_rows
from arm_rl.core.types import Sample

NAME = "hrbench"
LETTERS = "ABCD"


def read(path: Path, reading: ReadOptions) -> list[Item]:
    """One item a row."""
    items: dict[str, Item] = {}
    for row in read_rows(path, ("tsv", "parquet")):
        item = _make_item(row, reading)
        if item.row in items:
            raise row.error("index", f"{item.row!r} stands twice")
        items[item.row] = item
    return list(items.values())


def _make_item(row: FileRow, reading: ReadOptions) -> Item:
    options = {letter: row.name(letter) for letter in LETTERS if row.values.get(letter) is not None}
    label = row.text("answer").strip()
    if label not in options:
        raise row.error("answer", f"one of {', '.join(options)}, not {label!r}")
    question, image, key = row.text("question"), reading.images.store_image(row, "image"), row.name("index")
    return Item(
        sample=Sample(
            id=f"{NAME}/{key}",
            track=NAME,
            messages=prompts.choose(question, options, num_images=1),
            images=(image,),
            texts=tuple(options.values()),
            label=label,
            tools=reading.usable_tools(image=True),
        ),
        kind="letter",
        row=key,
        cluster=f"{question}/{Path(image.path).name}",  # its cycles are one question
        categories={"category": row.text("category"), "cycle": row.name("cycle_category")},
        num_options=len(options),
    )


def scores(rows: Sequence[JudgedRow]) -> dict[str, float]:
    """Each category, and `overall`: means over the cycles."""
    return {
        name: value
        for name, value in (*_category_scores(rows), ("overall", _mean_over_cycles(rows)))
        if value is not None
    }


def _category_scores(rows: Sequence[JudgedRow]) -> list[tuple[str, float | None]]:
    return [(category, _mean_over_cycles(members)) for category, members in split_by_category(rows, "category").items()]


def _mean_over_cycles(rows: Sequence[JudgedRow]) -> float | None:
    cycles = split_by_category(rows, "cycle")
    return mean([mean([row.value for row in members]) for members in cycles.values()]) if cycles else None


HRBENCH = Benchmark(read=read, scores=scores, main_score="overall")
