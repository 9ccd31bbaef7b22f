"""RewardBench 2: which of four answers is best, and ratings where several answers are equally right (arXiv 2506.01937). Text only.

File: the parquet file of allenai/reward-bench-2, or the same as JSON lines: `id`, `prompt`, `chosen` and `rejected` (lists of texts),
`num_correct`, `subset`, ... In the subset Ties an id reads `ref:N` (one right answer) or `tied:N` (several).

Scores, as allenai/reward-bench computes them for judges that write text. A row of the other subsets counts 1 for the chosen answer, 0 for
another one, 1/4 for a verdict that cannot be read. In Ties every answer is rated from 1 to 10 by itself (-1: not readable), and

    Ties = 0.3 * accuracy(tied) + 0.3 * accuracy(ref) + 0.2 * preferred + 0.2 * preferred_hard + 0.01 * margin

accuracy: the lowest right answer is rated above the highest wrong one. With `gap`, the difference of these two, and `spread`, the
difference of the right answers among themselves, over the prompts that have both a tied and a ref row: preferred, the share with
gap(tied) > spread(tied); preferred_hard, with min(gap(ref), gap(tied)) > spread(tied); margin, the mean of
tanh(min(gap(ref), gap(tied)) / spread(tied) - 1), where 0 / 0 counts 0. `score` is the mean of the subsets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arm_rl.benchmarks import prompts
from arm_rl.benchmarks.base import (
    Benchmark,
    Item,
    ItemVerdict,
    JudgedRow,
    ReadOptions,
    mean,
    mean_correct,
    split_by_category,
)
from arm_rl.benchmarks.files import FileRow, read_rows
from arm_rl.core.types import Sample

NAME = "reward_bench_2"
TIES = "Ties"
UNREADABLE_CHOICE, UNREADABLE_RATING = 0.25, -1.0


def read(path: Path, reading: ReadOptions) -> list[Item]:
    """One item a row; in Ties one for each answer."""
    items: list[Item] = []
    rows_seen: set[str] = set()
    for row in read_rows(path, ("parquet", "jsonl")):
        key = f"{row.text('subset')}/{row.name('id')}"
        if key in rows_seen:
            raise row.error("id", f"{row.name('id')!r} stands twice in {row.text('subset')}")
        rows_seen.add(key)
        items += _make_ratings(row, key, reading) if row.text("subset") == TIES else [_make_choice(row, key, reading)]
    return items


def _make_choice(row: FileRow, key: str, reading: ReadOptions) -> Item:
    answers = [row.texts("chosen", at_least=1)[0], *row.texts("rejected", at_least=1)[:3]]
    (order,) = reading.orders(key, len(answers), shuffle=True)[:1]
    shown = tuple(answers[index] for index in order)
    return Item(
        sample=Sample(
            id=f"{NAME}/{key}",
            track=NAME,
            messages=prompts.compare(row.text("prompt"), shown, num_images=0),
            texts=shown,
            label=str(order.index(0) + 1),
            tools=reading.usable_tools(),
        ),
        kind="choice",
        row=key,
        cluster=key,
        categories={"subset": row.text("subset")},
        order=order,
        num_options=len(answers),
    )


def _make_ratings(row: FileRow, key: str, reading: ReadOptions) -> list[Item]:
    kind, colon, prompt_id = row.name("id").partition(":")
    if kind not in ("ref", "tied") or not colon:
        raise row.error("id", f"of Ties is written ref:N or tied:N, not {row.name('id')!r}")
    answers = [*row.texts("chosen", at_least=1), *row.texts("rejected", at_least=1)]
    num_correct = row.integer("num_correct")
    if not (2 if kind == "tied" else 1) <= num_correct < len(answers):
        raise row.error("num_correct", f"{num_correct} of {len(answers)} answers cannot be right in a {kind} row")
    return [
        Item(
            sample=Sample(
                id=f"{NAME}/{key}/{index}",
                track=NAME,
                messages=prompts.rate(row.text("prompt"), answer),
                texts=(answer,),
                label="true" if index < num_correct else "false",
                tools=reading.usable_tools(),
            ),
            kind="rating",
            row=key,
            cluster=f"{TIES}:{prompt_id}",
            categories={"subset": TIES, "ties": kind},
            row_items=len(answers),
        )
        for index, answer in enumerate(answers)
    ]


@dataclass(frozen=True, slots=True)
class Spread:
    """A row of Ties in numbers."""

    gap: float  # the lowest right answer's rating above the highest wrong one's
    spread: float  # of the right answers among themselves

    @classmethod
    def from_ratings(cls, judged: Sequence[ItemVerdict]) -> "Spread":
        """Return the spread of the ratings of a whole row."""
        right, wrong = (
            [UNREADABLE_RATING if one.verdict is None else float(one.verdict) for one in judged if one.label == label]
            for label in ("true", "false")
        )
        return cls(min(right) - max(wrong), max(right) - min(right))


def row_value(judged: Sequence[ItemVerdict]) -> float:
    """Return the value of one row as defined in the module docstring."""
    if judged[0].kind == "rating":
        return float(Spread.from_ratings(judged).gap > 0)
    return UNREADABLE_CHOICE if judged[0].verdict is None else mean_correct(judged)


def ties_score(rows: Sequence[JudgedRow]) -> float:
    """The score of the subset Ties; 0 for a part of which there are no rows."""
    kinds = split_by_category(rows, "ties")
    ref, tied = kinds.get("ref", []), kinds.get("tied", [])
    refs = {row.cluster: Spread.from_ratings(row.judged) for row in ref}
    pairs = [(refs[row.cluster], Spread.from_ratings(row.judged)) for row in tied if row.cluster in refs]
    hard = [min(one.gap, many.gap) for one, many in pairs]
    spreads = [many.spread for _, many in pairs]
    return (
        0.3 * _mean([row.value for row in tied])
        + 0.3 * _mean([row.value for row in ref])
        + 0.2 * _mean([float(many.gap > many.spread) for _, many in pairs])
        + 0.2 * _mean([float(least > spread) for least, spread in zip(hard, spreads, strict=True)])
        + 0.01 * _mean([_margin(least, spread) for least, spread in zip(hard, spreads, strict=True)])
    )


def _margin(gap: float, spread: float) -> float:
    if spread == 0:
        return math.copysign(1.0, gap) if gap else 0.0
    return math.tanh(gap / spread - 1)


def _mean(values: Sequence[float]) -> float:
    return mean(values) if values else 0.0


def scores(rows: Sequence[JudgedRow]) -> dict[str, float]:
    """Each subset, and `score`, their mean."""
    found = {
        subset: ties_score(members) if subset == TIES else mean([row.value for row in members])
        for subset, members in split_by_category(rows, "subset").items()
    }
    return {**found, "score": mean(list(found.values()))} if found else {}


REWARD_BENCH_2 = Benchmark(read=read, scores=scores, main_score="score", value=row_value)
