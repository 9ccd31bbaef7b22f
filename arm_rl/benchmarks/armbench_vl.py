"""ARMBench-VL: judgments that need a look, a page or a check, in three tracks (ARM-Thinker, arXiv 2512.05111).

Format as far as could be found: the data files themselves could not be seen; their keys are those that the evaluation scripts of
InternLM/ARM-Thinker read. A folder with one or more of `fine_grained_perception.jsonl`, `multimodal_long_document.jsonl` and
`multimodal_instruction_following.jsonl`, or one of these files, whose name gives the track. A row has `idx` (a number or a text),
`rm_tag`, `question`, `preds` (answers), `gt`, `images` (paths; the first one is shown), `doc_id` (a PDF's name, in the document track) and
`constraints` (a list whose first `value` is the constraint, in the track of instructions). `rm_tag` is `single_rm` (`gt` is True or False),
`pair_rm` or `2-way-pair_rm`, or `4-way-pair_rm` (`gt` is the number of the better answer, from 1). Where the images lie is a
setting of those scripts: here in the file's folder, in `images` or in a folder of the track's name.

Scores: the accuracy of each track, of each way to ask (pointwise, 2-way, 4-way) and of all rows; a verdict that cannot be read is wrong.
`average` is the mean of the tracks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arm_rl.benchmarks import prompts
from arm_rl.benchmarks.base import Benchmark, Item, JudgedRow, ReadOptions, mean, split_by_category
from arm_rl.benchmarks.files import BenchmarkError, FileRow, ImageStore, read_rows
from arm_rl.core.types import ImageRef, Sample

NAME = "armbench_vl"
PERCEPTION, DOCUMENT, INSTRUCTION = (
    "fine_grained_perception",
    "multimodal_long_document",
    "multimodal_instruction_following",
)
TRACKS = (PERCEPTION, DOCUMENT, INSTRUCTION)
WAYS = {
    "single_rm": ("pointwise", 1),
    "pair_rm": ("2-way", 2),
    "2-way-pair_rm": ("2-way", 2),
    "4-way-pair_rm": ("4-way", 4),
}


def read(path: Path, reading: ReadOptions) -> list[Item]:
    """One item a row, or one for each order of a pair."""
    files = [path]
    if path.is_dir():
        files = [file for track in TRACKS if (file := path / f"{track}.jsonl").is_file()]
    if not files or any(file.stem not in TRACKS for file in files):
        raise BenchmarkError(
            f"{path}: {PERCEPTION}.jsonl, {DOCUMENT}.jsonl or {INSTRUCTION}.jsonl is needed, or a folder with them"
        )
    items: dict[str, Item] = {}
    for file in files:
        for row in read_rows(file, ("jsonl",)):
            for item in _make_items(row, file.stem, reading):
                if item.sample.id in items:
                    raise row.error("idx", f"{row.name('idx')!r} stands twice")
                items[item.sample.id] = item
    return list(items.values())


def _make_items(row: FileRow, track: str, reading: ReadOptions) -> list[Item]:
    tag = row.text("rm_tag")
    if tag not in WAYS:
        raise row.error("rm_tag", f"one of {', '.join(WAYS)}, not {tag!r}")
    way, num_answers = WAYS[tag]
    answers = row.texts("preds", at_least=num_answers)[:num_answers]
    question = row.text("question").replace("<image>", "").strip()
    image = _find_image(row, track)
    notes, constraint = _document_notes(row), _read_constraint(row) if track == INSTRUCTION else None
    key = f"{track}/{row.name('idx')}"
    items = []
    orders = reading.orders(key, num_answers, shuffle=False)
    for number, order in enumerate(orders):
        shown = [answers[index] for index in order]
        if num_answers == 1:
            messages = prompts.verify(question, shown[0], num_images=1, constraint=constraint, notes=notes)
        else:
            messages = prompts.compare(question, shown, num_images=1, notes=notes)
        items.append(
            Item(
                sample=Sample(
                    id=f"{NAME}/{key}" + ("/swapped" if number else ""),
                    track=f"{NAME}/{track}",
                    messages=messages,
                    images=(image,),
                    texts=tuple(shown),
                    label=_read_label(row, order),
                    tools=reading.usable_tools(image=True, document=track == DOCUMENT, constraint=track == INSTRUCTION),
                ),
                kind="truth" if num_answers == 1 else "choice",
                row=key,
                cluster=key,
                categories={"track": track, "way": way},
                order=order if num_answers > 1 else (),
                num_options=num_answers,
                row_items=len(orders),
            )
        )
    return items


def _read_label(row: FileRow, order: tuple[int, ...]) -> str:
    truth = row.get("gt")
    if len(order) == 1:
        if str(truth).lower() not in ("true", "false"):
            raise row.error("gt", f"True or False, not {truth!r}")
        return str(truth).lower()
    if isinstance(truth, bool) or not str(truth).isdigit() or not 1 <= int(truth) <= len(order):
        raise row.error("gt", f"the number of the better answer, 1 to {len(order)}, not {truth!r}")
    return str(order.index(int(truth) - 1) + 1)


def _find_image(row: FileRow, track: str) -> ImageRef:
    name = row.texts("images", at_least=1)[0]
    folder = row.path.parent
    return ImageStore.find_image(row, "images", name, folder, folder / "images", folder / track)


def _document_notes(row: FileRow) -> list[str]:
    if row.values.get("doc_id") is None:
        return []
    name = row.text("doc_id").removesuffix(".pdf")
    return [
        f"The document is named {name}. The image shows its pages, numbered from 1, row by row and from left to right."
    ]


def _read_constraint(row: FileRow) -> str | None:
    constraints: Any = row.values.get("constraints")
    if not constraints:
        return None
    if (
        not isinstance(constraints, list)
        or not isinstance(constraints[0], dict)
        or not isinstance(constraints[0].get("value"), str)
    ):
        raise row.error(
            "constraints", f"a list whose first entry has a text as `value` is needed, not {constraints!r:.80}"
        )
    return str(constraints[0]["value"])


def scores(rows: Sequence[JudgedRow]) -> dict[str, float]:
    """Each track, each way to ask, `overall` over all rows and `average` over the tracks."""
    if not rows:
        return {}
    tracks = {
        track: mean([row.value for row in members]) for track, members in split_by_category(rows, "track").items()
    }
    ways = {way: mean([row.value for row in members]) for way, members in split_by_category(rows, "way").items()}
    return {**tracks, **ways, "overall": mean([row.value for row in rows]), "average": mean(list(tracks.values()))}


ARMBENCH_VL = Benchmark(read=read, scores=scores, main_score="average")
