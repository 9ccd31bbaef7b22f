"""What is wrong or suspicious about training data. Each check is a function from the files' contents to findings."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from arm_rl.prepare.audit.contents import BITS, AuditRow, FileContents, in_order

_UNLIKELY = 1e-3  # chance of a bias in labels or lengths to be seen where there is none
_FEW = 30  # rows that say nothing about a bias
_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something to look at."""

    level: Literal["wrong", "suspicious"]
    what: str  # its kind, one word
    number: int  # how often
    message: str
    examples: tuple[str, ...] = ()


def check(contents: Sequence[FileContents], *, near: int = 12, max_prompt_tokens: int | None = None) -> list[Finding]:
    """All findings.

    Args:
        near: bits of 256 in which the perceptual hashes of two images that look alike may differ.
        max_prompt_tokens: longer prompts are told.
    """
    checks: list[Callable[[Sequence[FileContents]], Iterable[Finding]]] = [
        _broken,
        _contradictions,
        _duplicates,
        lambda all_of_them: _leaks(all_of_them, near),
        _labels,
        _lengths,
        lambda all_of_them: _too_long(all_of_them, max_prompt_tokens),
        _faults,
    ]
    return [finding for one in checks for finding in one(contents)]


def _broken(contents: Sequence[FileContents]) -> Iterator[Finding]:
    for one in contents:
        if one.num_broken:
            message = f"{one.path}: {one.num_broken} rows cannot be used"
            yield Finding(
                level="wrong", what="broken", number=one.num_broken, message=message, examples=tuple(one.reasons)
            )


def _same(contents: Sequence[FileContents]) -> list[list[tuple[int, AuditRow]]]:
    """Rows that ask the same about the same images."""
    groups: defaultdict[tuple, list[tuple[int, AuditRow]]] = defaultdict(list)
    for file, row in in_order(contents):
        groups[row.text, row.images].append((file, row))
    return [rows for rows in groups.values() if len(rows) > 1]


def _contradictions(contents: Sequence[FileContents]) -> Iterator[Finding]:
    judged = ([(file, row) for file, row in rows if row.label] for rows in _same(contents))
    found = [
        rows
        for rows in judged
        if len({(row.label, row.texts) for _, row in rows}) > len({row.texts for _, row in rows})
    ]
    if found:
        message = "questions, word for word and on the same images, whose labels contradict each other"
        yield Finding(
            level="wrong", what="contradiction", number=len(found), message=message, examples=_named(contents, found)
        )


def _duplicates(contents: Sequence[FileContents]) -> Iterator[Finding]:
    for file, one in enumerate(contents):
        found = [
            rows for rows in ([row for row in rows if row[0] == file] for rows in _same(contents)) if len(rows) > 1
        ]
        if found:
            number = sum(len(rows) - 1 for rows in found)
            message = f"{one.path}: {number} rows are copies of others, word for word and on the same images"
            yield Finding(
                level="suspicious", what="duplicate", number=number, message=message, examples=_named(contents, found)
            )


def _leaks(contents: Sequence[FileContents], near: int) -> Iterator[Finding]:
    """From training into what is held out: the same question on the same image or one that looks alike; and such images alone."""
    same = [rows for rows in _same(contents) if len({contents[file].held_out for file, _ in rows}) > 1]
    if same:
        message = "questions stand in training and held-out data, word for word and on the same images"
        yield Finding(level="wrong", what="leak", number=len(same), message=message, examples=_named(contents, same))
    known = {(file, row.name) for rows in same for file, row in rows if contents[file].held_out}
    for second, held_out in enumerate(contents):
        for first, training in enumerate(contents):
            if training.held_out or not held_out.held_out:
                continue
            rows = [row for row in held_out.rows if (second, row.name) not in known]
            pairs = list(_alike(rows, training.rows, near))
            for what, is_copy, told in (
                ("near leak", True, "the same question on images that look alike"),
                ("image leak", False, "images that look alike, with other questions"),
            ):
                found = [[(first, b), (second, a)] for a, b in pairs if (a.text == b.text) == is_copy]
                if found:
                    message = f"{training.path} and {held_out.path}: {told}"
                    examples = _named(contents, found)
                    yield Finding(level="suspicious", what=what, number=len(found), message=message, examples=examples)


def _alike(left: Sequence[AuditRow], right: Sequence[AuditRow], near: int) -> Iterator[tuple[AuditRow, AuditRow]]:
    """Pairs of rows with images whose hashes differ in at most `near` bits: each row of `left` once, with a row of equal text if any."""
    found = [(row, look) for row in right for look in row.looks]
    if not found:
        return
    looks = np.frombuffer(b"".join(look for _, look in found), np.uint64).reshape(len(found), -1)  # (images, words)
    for row in left:
        apart = np.full(len(found), BITS, np.int64)
        for look in row.looks:
            np.minimum(
                apart, np.bitwise_count(looks ^ np.frombuffer(look, np.uint64)).sum(1, dtype=np.int64), out=apart
            )
        near_ones = [found[place][0] for place in np.flatnonzero(apart <= near)]
        if near_ones:
            yield row, next((one for one in near_ones if one.text == row.text), near_ones[0])


def _labels(contents: Sequence[FileContents]) -> Iterator[Finding]:
    """Places or verdicts that are right more often than chance would have it."""
    groups: defaultdict[tuple, Counter[str]] = defaultdict(Counter)
    for file, row in in_order(contents):
        if row.label:
            kind: tuple[str, ...] = ("true", "false")
            if row.label not in kind:
                kind = tuple(
                    str(number)
                    for number in range(1, max(len(row.texts), 2, int(row.label) if row.label.isdecimal() else 2) + 1)
                )
            groups[file, row.track, kind][row.label] += 1
    for (file, track, kind), counts in groups.items():
        expected = counts.total() / len(kind)
        if (
            counts.total() >= _FEW
            and stats.chisquare([counts[label] for label in kind], [expected] * len(kind)).pvalue < _UNLIKELY
        ):
            shown = ", ".join(f"{label}: {counts[label]}" for label in kind)
            message = f"{contents[file].path}: {track or 'all'}: labels are not balanced ({shown}): a judge could learn the place"
            yield Finding(level="suspicious", what="label balance", number=counts.total(), message=message)


def _lengths(contents: Sequence[FileContents]) -> Iterator[Finding]:
    """Right answers that are longer, or shorter, than the others more often than chance would have it."""
    longer: defaultdict[tuple[int, str], list[bool]] = defaultdict(list)
    for file, row in in_order(contents):
        if row.label.isdecimal() and 1 <= int(row.label) <= len(row.texts) == 2:
            right, other = row.texts[int(row.label) - 1], row.texts[2 - int(row.label)]
            if len(right) != len(other):
                longer[file, row.track].append(len(right) > len(other))
    for (file, track), found in longer.items():
        if len(found) >= _FEW and stats.binomtest(sum(found), len(found)).pvalue < _UNLIKELY:
            message = f"{contents[file].path}: {track or 'all'}: the right answer is the longer one in {sum(found)} of {len(found)} pairs"
            yield Finding(level="suspicious", what="length bias", number=len(found), message=message)


def _too_long(contents: Sequence[FileContents], limit: int | None) -> Iterator[Finding]:
    for one in contents:
        found = [row for row in one.rows if limit is not None and row.num_tokens is not None and row.num_tokens > limit]
        if found:
            message = f"{one.path}: {len(found)} prompts are longer than {limit} tokens and would be left out"
            examples = tuple(f"{row.name}: {row.num_tokens} tokens" for row in found[:_EXAMPLES])
            yield Finding(level="suspicious", what="too long", number=len(found), message=message, examples=examples)


def _faults(contents: Sequence[FileContents]) -> Iterator[Finding]:
    for one in contents:
        found = [(row, fault) for row in one.rows for fault in row.faults]
        if found:
            message = f"{one.path}: {len(found)} tool calls or offers cannot be carried out"
            examples = tuple(f"{row.name}: {fault}" for row, fault in found[:_EXAMPLES])
            yield Finding(level="wrong", what="tools", number=len(found), message=message, examples=examples)


def _named(contents: Sequence[FileContents], groups: Sequence[Sequence[tuple[int, AuditRow]]]) -> tuple[str, ...]:
    return tuple(
        " = ".join(f"{contents[file].path.name}: {row.name}" for file, row in rows[:3]) for rows in groups[:_EXAMPLES]
    )
