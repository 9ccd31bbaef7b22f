"""What is wrong or suspicious about training data. Each check is a function from the files' contents to findings."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from arm_rl.prepare.audit.contents import BITS, AuditRow, FileContents, iterate_rows

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
        _find_broken_rows,
        _find_contradictions,
        _find_duplicates,
        lambda all_of_them: _find_leaks(all_of_them, near),
        _find_label_bias,
        _find_length_bias,
        lambda all_of_them: _find_long_prompts(all_of_them, max_prompt_tokens),
        _find_tool_faults,
    ]
    return [finding for one in checks for finding in one(contents)]


def _find_broken_rows(contents: Sequence[FileContents]) -> Iterator[Finding]:
    for one in contents:
        if one.num_broken:
            message = f"{one.path}: {one.num_broken} rows cannot be used"
            yield Finding(
                level="wrong", what="broken", number=one.num_broken, message=message, examples=tuple(one.reasons)
            )


def _same_questions(contents: Sequence[FileContents]) -> list[list[tuple[int, AuditRow]]]:
    """Return sets of rows that ask the same about the same images."""
    groups: defaultdict[tuple, list[tuple[int, AuditRow]]] = defaultdict(list)
    for file, row in iterate_rows(contents):
        groups[row.text, row.images].append((file, row))
    return [rows for rows in groups.values() if len(rows) > 1]


def _find_contradictions(contents: Sequence[FileContents]) -> Iterator[Finding]:
    judged = ([(file, row) for file, row in rows if row.label] for rows in _same_questions(contents))
    found = [
        rows
        for rows in judged
        if len({(row.label, row.texts) for _, row in rows}) > len({row.texts for _, row in rows})
    ]
    if found:
        message = "questions, word for word and on the same images, whose labels contradict each other"
        yield Finding(
            level="wrong",
            what="contradiction",
            number=len(found),
            message=message,
            examples=_row_names(contents, found),
        )


def _find_duplicates(contents: Sequence[FileContents]) -> Iterator[Finding]:
    for file, one in enumerate(contents):
        found = [
            rows
            for rows in ([row for row in rows if row[0] == file] for rows in _same_questions(contents))
            if len(rows) > 1
        ]
        if found:
            number = sum(len(rows) - 1 for rows in found)
            message = f"{one.path}: {number} rows are copies of others, word for word and on the same images"
            yield Finding(
                level="suspicious",
                what="duplicate",
                number=number,
                message=message,
                examples=_row_names(contents, found),
            )


def _find_leaks(contents: Sequence[FileContents], near: int) -> Iterator[Finding]:
    """Yield leaks from training into held-out data: equal questions on equal or similar images, and similar images."""
    same = [rows for rows in _same_questions(contents) if len({contents[file].held_out for file, _ in rows}) > 1]
    if same:
        message = "questions stand in training and held-out data, word for word and on the same images"
        yield Finding(
            level="wrong", what="leak", number=len(same), message=message, examples=_row_names(contents, same)
        )
    known = {(file, row.name) for rows in same for file, row in rows if contents[file].held_out}
    for second, held_out in enumerate(contents):
        for first, training in enumerate(contents):
            if training.held_out or not held_out.held_out:
                continue
            rows = [row for row in held_out.rows if (second, row.name) not in known]
            pairs = list(_similar_pairs(rows, training.rows, near))
            for what, is_copy, told in (
                ("near leak", True, "the same question on images that look alike"),
                ("image leak", False, "images that look alike, with other questions"),
            ):
                found = [[(first, b), (second, a)] for a, b in pairs if (a.text == b.text) == is_copy]
                if found:
                    message = f"{training.path} and {held_out.path}: {told}"
                    examples = _row_names(contents, found)
                    yield Finding(level="suspicious", what=what, number=len(found), message=message, examples=examples)


def _similar_pairs(
    left: Sequence[AuditRow], right: Sequence[AuditRow], near: int
) -> Iterator[tuple[AuditRow, AuditRow]]:
    """Yield the rows of `left` that have an image within `near` bits of one in `right`, with such a row."""
    hashed = [(row, image_hash) for row in right for image_hash in row.image_hashes]
    if not hashed:
        return
    words = np.frombuffer(b"".join(image_hash for _, image_hash in hashed), np.uint64).reshape(len(hashed), -1)
    for row in left:
        distances = np.full(len(hashed), BITS, np.int64)
        for image_hash in row.image_hashes:
            differing = np.bitwise_count(words ^ np.frombuffer(image_hash, np.uint64)).sum(1, dtype=np.int64)
            np.minimum(distances, differing, out=distances)
        similar = [hashed[index][0] for index in np.flatnonzero(distances <= near)]
        if similar:
            yield row, next((one for one in similar if one.text == row.text), similar[0])


def _find_label_bias(contents: Sequence[FileContents]) -> Iterator[Finding]:
    """Yield labels that are more frequent than chance allows."""
    groups: defaultdict[tuple, Counter[str]] = defaultdict(Counter)
    for file, row in iterate_rows(contents):
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


def _find_length_bias(contents: Sequence[FileContents]) -> Iterator[Finding]:
    """Yield files in which right answers are longer, or shorter, than chance allows."""
    longer: defaultdict[tuple[int, str], list[bool]] = defaultdict(list)
    for file, row in iterate_rows(contents):
        if row.label.isdecimal() and 1 <= int(row.label) <= len(row.texts) == 2:
            right, other = row.texts[int(row.label) - 1], row.texts[2 - int(row.label)]
            if len(right) != len(other):
                longer[file, row.track].append(len(right) > len(other))
    for (file, track), found in longer.items():
        if len(found) >= _FEW and stats.binomtest(sum(found), len(found)).pvalue < _UNLIKELY:
            message = f"{contents[file].path}: {track or 'all'}: the right answer is the longer one in {sum(found)} of {len(found)} pairs"
            yield Finding(level="suspicious", what="length bias", number=len(found), message=message)


def _find_long_prompts(contents: Sequence[FileContents], limit: int | None) -> Iterator[Finding]:
    for one in contents:
        found = [row for row in one.rows if limit is not None and row.num_tokens is not None and row.num_tokens > limit]
        if found:
            message = f"{one.path}: {len(found)} prompts are longer than {limit} tokens and would be left out"
            examples = tuple(f"{row.name}: {row.num_tokens} tokens" for row in found[:_EXAMPLES])
            yield Finding(level="suspicious", what="too long", number=len(found), message=message, examples=examples)


def _find_tool_faults(contents: Sequence[FileContents]) -> Iterator[Finding]:
    for one in contents:
        found = [(row, fault) for row in one.rows for fault in row.faults]
        if found:
            message = f"{one.path}: {len(found)} tool calls or offers cannot be carried out"
            examples = tuple(f"{row.name}: {fault}" for row, fault in found[:_EXAMPLES])
            yield Finding(level="wrong", what="tools", number=len(found), message=message, examples=examples)


def _row_names(contents: Sequence[FileContents], groups: Sequence[Sequence[tuple[int, AuditRow]]]) -> tuple[str, ...]:
    return tuple(
        " = ".join(f"{contents[file].path.name}: {row.name}" for file, row in rows[:3]) for rows in groups[:_EXAMPLES]
    )
