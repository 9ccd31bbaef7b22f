"""VL-RewardBench: which of two answers to a question about an image is better (arXiv 2411.17451).

File: the parquet file of MMInstruction/VL-RewardBench, with the columns `id`, `query`, `response` (two texts), `image`, `human_ranking`
([0, 1]: the first answer is better), `query_source`, ...; or `data.jsonl` of the repository, with `image_path` instead of `image`.

Scores, as the repository's `cal.py` computes them: a row with a verdict that cannot be read is left out; the others are right or wrong by
the majority of their verdicts; `overall` is the accuracy of all, `macro` the mean of the three groups'. There the order is drawn for each
verdict, and their number is odd; here a pair that is judged differently in its two orders counts one half, as what chance would make of it.
"""

from collections.abc import Sequence
from pathlib import Path

from arm_rl.benchmarks import prompts
from arm_rl.benchmarks.base import Benchmark, Item, JudgedRow, ReadOptions, mean, split_by_category
from arm_rl.benchmarks.files import FileRow, ImageStore, read_rows
from arm_rl.core.types import Sample

NAME = "vl_rewardbench"
SOURCES = {
    "RLAIF": "rlaif-v",
    "RLHF": "rlhf-v",
    "hallucination": "povid",
    "mathverse": "reasoning_tasks",
    "mmmu": "reasoning_tasks",
}
SOURCES |= {"wildvision": "wildvision-battle"}  # by the id's first word; all others are of vlfeedback
GROUPS = {
    "vlfeedback": "general",
    "wildvision-battle": "general",
    "povid": "hallucination",
    "rlhf-v": "hallucination",
    "rlaif-v": "hallucination",
    "reasoning_tasks": "reasoning",
}


def read(path: Path, reading: ReadOptions) -> list[Item]:
    """One item a pair, or one for each order of it. The same pair again is left out, as in the published scoring."""
    items: list[Item] = []
    seen: set[tuple[str, ...]] = set()
    keys: dict[str, int] = {}
    for row in read_rows(path, ("parquet", "jsonl")):
        name, query, answers = row.name("id"), row.text("query"), row.texts("response", at_least=2)
        if (name, query, *sorted(answers)) in seen:
            continue
        seen.add((name, query, *sorted(answers)))
        keys[name] = keys.get(name, 0) + 1  # other answers to the same question have its id too
        items += _make_items(row, name if keys[name] == 1 else f"{name}~{keys[name]}", query, answers, reading)
    return items


def _make_items(row: FileRow, key: str, query: str, answers: list[str], reading: ReadOptions) -> list[Item]:
    ranking = row.get("human_ranking")
    if len(answers) != 2 or sorted(ranking) != [0, 1]:
        raise row.error(
            "human_ranking", f"[0, 1] or [1, 0] for two answers is needed, not {ranking!r:.80} for {len(answers)}"
        )
    if "image_path" in row.values:
        image = ImageStore.find_image(row, "image_path", row.text("image_path"), row.path.parent)
    else:
        image = reading.images.store_image(row, "image")
    source = SOURCES.get(key.replace("-", "_").partition("_")[0], "vlfeedback")
    orders = reading.orders(key, 2, shuffle=True)
    question = query.replace("<image>", "").strip()
    return [
        Item(
            sample=Sample(
                id=f"{NAME}/{key}" + ("/swapped" if number else ""),
                track=NAME,
                messages=prompts.compare(question, [answers[index] for index in order], num_images=1),
                images=(image,),
                texts=tuple(answers[index] for index in order),
                label=str(order.index(ranking.index(0)) + 1),
                tools=reading.usable_tools(image=True),
            ),
            kind="choice",
            row=key,
            cluster=key,
            categories={"group": GROUPS[source], "source": source},
            order=order,
            num_options=2,
            row_items=len(orders),
        )
        for number, order in enumerate(orders)
    ]


def scores(rows: Sequence[JudgedRow]) -> dict[str, float]:
    """`general`, `hallucination`, `reasoning`, `overall`, `macro`."""
    read = [row for row in rows if all(one.verdict is not None for one in row.judged)]
    found = {
        group: mean([_majority_value(row) for row in members])
        for group, members in split_by_category(read, "group").items()
    }
    if read:
        found |= {"overall": mean([_majority_value(row) for row in read]), "macro": mean(list(found.values()))}
    return found


def _majority_value(row: JudgedRow) -> float:
    return 0.5 if row.value == 0.5 else float(row.value > 0.5)


VL_REWARDBENCH = Benchmark(read=read, scores=scores, main_score="overall")
