"""Which trajectories one file holds, where it cannot hold them all: those that tell most, of all stages and steps, within a budget.

Held-out samples come with their judgments by every checkpoint, and trajectories with all of their group.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from arm_rl.report.contents import ContentReader
from arm_rl.report.embedding import as_object, dump
from arm_rl.report.index import CORRECT, Index, LogFile

Unit = list[tuple[LogFile, list[int]]]  # rows that belong together

MAX_MISSES = 5  # units in a row that do not fit any more: then the file is full


@dataclass(kw_only=True, slots=True)
class Selection:
    """What was chosen, as JSON."""

    contents: ContentReader
    max_bytes: int
    num_bytes: int = 0
    rows: dict[str, str] = field(default_factory=dict)  # by `FILE/ROW`
    pictures: dict[str, str] = field(default_factory=dict)  # by key

    def add(self, unit: Unit) -> bool:
        """Takes a unit if it fits, whole."""
        rows: dict[str, str] = {}
        pictures: dict[str, str] = {}
        for file, numbers in unit:
            keys: dict[str, None] = {}
            for number, content in zip(numbers, self.contents.read(file, numbers), strict=True):
                keys |= dict.fromkeys(content.pop("keys"))
                rows[name_row(file, number)] = dump(content)
            new = [key for key in keys if key not in self.pictures and key not in pictures]
            pictures |= {key: dump(seen) for key, seen in self.contents.pictures(file, new).items()} if new else {}
        size = len(as_object((rows | pictures).items()).encode())
        fits = self.num_bytes + size <= self.max_bytes
        if fits:
            self.rows |= rows
            self.pictures |= pictures
            self.num_bytes += size
        return fits


def fill_selection(selection: Selection, index: Index) -> None:
    """Add held-out samples and groups, by turns, as long as they fit."""
    waiting: deque[Iterator[Unit]] = deque([evaluation_units(index), training_units(index)])
    misses = 0
    while waiting and misses < MAX_MISSES:
        unit = next(waiting[0], None)
        if unit is None:
            waiting.popleft()
            continue
        waiting.rotate()
        misses = 0 if selection.add(unit) else misses + 1


def name_row(file: LogFile, row: int) -> str:
    """Return the name by which the page knows a trajectory."""
    return f"{file.name}/{row}"


def newest_files(index: Index) -> list[LogFile]:
    """Return the last file of each stage, in order: of evaluations if there are any."""
    of_stages: dict[str, LogFile] = {file.model: file for file in index.files if file.is_evaluation}
    return list(of_stages.values()) or list({file.model: file for file in index.files}.values())


def choose_followed(index: Index) -> Unit:
    """Return a sample judged after each stage, preferably right in the end, after a call, and wrong before."""
    stages = [(file, _first_rows(index, file)) for file in newest_files(index)]
    stages = [(file, rows) for file, rows in stages if rows]
    if not stages:
        return []
    *earlier, (last, rows) = stages

    def sort_key(sample: int) -> tuple[int, bool, bool, int]:
        before = [file.columns["flags"][found[sample]] & CORRECT for file, found in earlier if sample in found]
        looked = any(status == "ok" for _, status in index.calls(last, rows[sample]))
        return len(before), bool(last.columns["flags"][rows[sample]] & CORRECT), looked, before.count(0)

    sample = max(rows, key=sort_key)
    return [(file, [found[sample]]) for file, found in stages if sample in found]


def evaluation_units(index: Index) -> Iterator[Unit]:
    """Yield held-out samples with all their judgments: changed ones first, then wrong ones."""
    files = [file for file in index.files if file.is_evaluation]
    if not files:
        return
    ends = {file.model: file for file in files}.values()  # the last of each stage
    right: dict[int, list[int]] = {}
    for file in ends:
        for sample, row in _first_rows(index, file).items():
            right.setdefault(sample, []).append(file.columns["flags"][row] & CORRECT)
    judged = {file.name: _rows_by_sample(file) for file in files}
    for sample in sorted(right, key=lambda sample: (len(set(right[sample])) == 1, right[sample][-1])):
        yield [(file, judged[file.name][sample]) for file in files if sample in judged[file.name]]


def training_units(index: Index) -> Iterator[Unit]:
    """Yield groups of training steps all over the run; in each step, those with the largest spread of rewards first."""
    files = [file for file in index.files if not file.is_evaluation and file.num_rows]
    groups = [sorted(file.groups().values(), key=lambda rows: _reward_spread_key(file, rows)) for file in files]
    order = spread_order(len(files))
    for place in range(max(map(len, groups), default=0)):
        for number in order:
            if place < len(groups[number]):
                yield [(files[number], groups[number][place])]


def spread_order(size: int) -> list[int]:
    """Return 0..size-1 in the order last, first, then always the middle of a gap."""
    order = [size - 1, 0][:size]
    between = deque([(0, size - 1)])
    while between:
        low, high = between.popleft()
        if high - low > 1:
            middle = (low + high) // 2
            order.append(middle)
            between += [(middle, high), (low, middle)]
    return order


def newest_files_within(index: Index, max_rows: int) -> list[LogFile]:
    """Return the files whose rows an index of `max_rows` can list: evaluations first, then the newest steps."""
    kept: set[str] = set()
    for _, file in sorted(
        enumerate(index.files), key=lambda placed: (placed[1].is_evaluation, placed[0]), reverse=True
    ):
        max_rows -= file.num_rows
        if max_rows < 0:
            break
        kept.add(file.name)
    return [file for file in index.files if file.name in kept]


def _reward_spread_key(file: LogFile, rows: Sequence[int]) -> tuple[float, float]:
    rewards = [reward for row in rows if not math.isnan(reward := file.rewards[row])]
    return (min(rewards) - max(rewards), sum(rewards) / len(rewards)) if rewards else (0.0, 0.0)


def _first_rows(index: Index, file: LogFile) -> dict[int, int]:
    """Return the first row of each sample whose session was not aborted."""
    ends = index.names["end"].names
    found: dict[int, int] = {}
    for row, sample in enumerate(file.columns["sample"]):
        if ends[file.columns["end"][row]] != "aborted":
            found.setdefault(sample, row)
    return found


def _rows_by_sample(file: LogFile) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {}
    for row, sample in enumerate(file.columns["sample"]):
        rows.setdefault(sample, []).append(row)
    return rows
