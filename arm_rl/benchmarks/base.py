"""What a benchmark is: its published file becomes items to ask, and their verdicts become its published scores.

    file -> Item -> (a session) -> ItemVerdict -> JudgedRow -> scores

A row of the file may need several items: both orders of a pair, or a rating of each answer. A row's value is between 0 and 1.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from arm_rl.benchmarks.files import ImageStore
from arm_rl.core.seeding import derive_seed
from arm_rl.core.types import Sample
from tools.text.checks import CHECKS

Kind = Literal["choice", "truth", "letter", "rating"]

IMAGE_TOOLS = ("image_zoom_in_tool", "extract_text", "extract_formula")
DOCUMENT_TOOLS = ("doc_page_retrieval_by_query", "doc_page_retrieval_by_index")


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One question to the judge."""

    sample: Sample  # its label is the right verdict; of a rating: whether the rated answer is right
    kind: Kind  # how a verdict is written: the better answer's number, true or false, an option's letter, 1 to 10
    row: str  # key of the file's row
    cluster: str  # rows that are about the same thing: drawn together where chance is estimated
    categories: Mapping[str, str] = field(default_factory=dict)  # by which tables are split: name -> value
    order: tuple[int, ...] = ()  # where answers are compared: the file's number of the answer shown k-th
    num_options: int = 0  # of a choice or a letter
    row_items: int = 1  # items of the row


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How a benchmark is read."""

    images: ImageStore  # for images that stand inside of the file
    tools: tuple[str, ...] = ()  # all that there are
    seed: int = 0  # of the answers' order
    both_orders: bool = False  # pairs are asked in both

    def orders(self, key: str, num_answers: int, *, shuffle: bool) -> list[tuple[int, ...]]:
        """The orders in which answers are shown: one, or both of a pair; shuffled where the file always has the better one first."""
        order = sorted(
            range(num_answers), key=lambda number: derive_seed(self.seed, "order", key, number) if shuffle else number
        )
        orders = [tuple(order)]
        return [*orders, tuple(reversed(order))] if self.both_orders and num_answers == 2 else orders

    def usable_tools(self, *, image: bool = False, document: bool = False, constraint: bool = False) -> tuple[str, ...]:
        """Return the usable tools: image tools need an image, retrieval a document, text checks a constraint."""
        left_out = [
            *(IMAGE_TOOLS if not image and not document else ()),
            *(DOCUMENT_TOOLS if not document else ()),
            *(CHECKS if not constraint else ()),
        ]
        return tuple(name for name in self.tools if name not in left_out)


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemVerdict:
    """An item with its verdict, as it is stored. Sessions that broke have none, and are asked again."""

    id: str
    row: str
    cluster: str
    kind: Kind
    categories: dict[str, str]
    order: tuple[int, ...]
    label: str
    verdict: str | None  # None: what was answered cannot be read
    num_calls: int = 0
    num_ok_calls: int = 0
    end: str = "answered"
    seconds: float = 0.0
    row_items: int = 1  # items of the row: with fewer verdicts it has no value
    digest: str = ""  # of what was asked

    @property
    def correct(self) -> bool:
        """The verdict is the label."""
        return self.verdict == self.label

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ItemVerdict":
        """What `as_dict` gave."""
        return cls(**{**values, "order": tuple(values["order"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedRow:
    """A row of the file with all of its verdicts."""

    key: str
    cluster: str
    categories: dict[str, str]
    judged: tuple[ItemVerdict, ...]
    value: float  # 0 (wrong) to 1 (right)


def mean_correct(judged: Sequence[ItemVerdict]) -> float:
    """The share of a row's verdicts that are right; one that cannot be read is wrong."""
    return sum(one.correct for one in judged) / len(judged)


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """A published benchmark."""

    read: Callable[[Path, ReadOptions], list[Item]]  # its file, or its folder
    scores: Callable[[Sequence[JudgedRow]], dict[str, float]]  # the published scores; one that has no rows is left out
    main_score: str  # the one that is quoted
    value: Callable[[Sequence[ItemVerdict]], float] = mean_correct  # of a row

    def rows(self, judged: Sequence[ItemVerdict]) -> list[JudgedRow]:
        """The rows that have all of their verdicts, in the order of their first one."""
        by_row: dict[str, list[ItemVerdict]] = defaultdict(list)
        for one in judged:
            by_row[one.row].append(one)
        return [
            JudgedRow(
                key=key,
                cluster=members[0].cluster,
                categories=dict(members[0].categories),
                judged=tuple(members),
                value=self.value(members),
            )
            for key, members in by_row.items()
            if len(members) == max(one.row_items for one in members)
        ]


def mean(values: Sequence[float]) -> float:
    """The mean of some values; there must be one."""
    return sum(values) / len(values)


def split_by_category(rows: Sequence[JudgedRow], name: str) -> dict[str, list[JudgedRow]]:
    """Return rows by a category's value, sorted, without the rows that lack the category."""
    groups: dict[str, list[JudgedRow]] = defaultdict(list)
    for row in rows:
        if name in row.categories:
            groups[row.categories[name]].append(row)
    return {value: groups[value] for value in sorted(groups)}
