"""Skills of a base model, measured on lessons that were not taught, and the marks at which its training may end.

    calls      the fixed form of calls and answers is predicted without an error
    arguments  the arguments of the right call are predicted
    reading    the thought after the right look says what the look shows
    matching   the answer that claims what a thought says is chosen, in a text alone
    answers    the same at the end of a whole session

`reading`, `matching` and `answers` are the worst digit's, or the worst pair's: a mean hides the one pair that was never learned.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from arm_rl.demo.forward import batch_logits
from arm_rl.demo.lessons import Lesson, Part, Teacher
from arm_rl.demo.tasks import Task

LESSONS = 96  # of each track: every pair of digits in both orders, with either answer right, four times
FIRST_INDEX = 10_000_000  # of the measured tasks: training does not come this far

Claims = tuple[object, object]  # what the two answers claim, in order


@dataclass(frozen=True, kw_only=True)
class SkillMarks:
    """Values at which a skill is learned (0..1)."""

    calls: float = 0.98
    arguments: float = 0.9
    reading: float = 0.9
    matching: float = 0.95
    answers: float = 0.95


@dataclass(frozen=True, kw_only=True)
class Skills:
    """Measured skills (0..1), and how surely each pair of claims is matched."""

    values: Mapping[str, float]  # by the names of `SkillMarks`
    pairs: Mapping[
        Claims, float
    ]  # mean probability of the right choice, in matching lessons and whole sessions: the lower one

    def missed(self, marks: SkillMarks, names: Sequence[str] = (), *, slack: float = 0.0) -> list[str]:
        """Return the names of skills that are below their marks by more than the slack, of all skills or of some."""
        wanted = dataclasses.asdict(marks)
        return [name for name in names or wanted if self.values[name] < wanted[name] - slack]

    def entries(self, marks: SkillMarks) -> dict[str, dict[str, Any]]:
        """Return each skill with its mark and whether the mark is reached, for JSON."""
        return {
            name: {"value": round(self.values[name], 4), "mark": mark, "reached": self.values[name] >= mark}
            for name, mark in dataclasses.asdict(marks).items()
        }


class SkillTest:
    """Lessons that measure the skills of a model."""

    def __init__(self, teacher: Teacher, seed: int) -> None:
        rng = np.random.default_rng([seed, 13])
        drawn = [teacher.task(seed, FIRST_INDEX + number) for number in range(LESSONS * len(teacher.tracks))]
        self._tasks = [task for task, _ in drawn]
        self._sessions = [teacher.look_once(task, track, rng) for task, track in drawn]
        self._texts = [teacher.matching_lesson(task, track, rng) for task, track in drawn]

    @torch.no_grad()
    def measure(self, model: Qwen2_5_VLForConditionalGeneration) -> Skills:
        """Measure all skills of a model."""
        sessions, texts = (list(_predictions(model, lessons)) for lessons in (self._sessions, self._texts))
        in_sessions = _means(zip(map(_pair, self._tasks), (one.probability("choice") for one in sessions), strict=True))
        in_texts = _means(zip(map(_pair, self._tasks), (one.probability("choice") for one in texts), strict=True))
        evidence = (_evidence(task) for task in self._tasks)
        reading = _means(zip(evidence, (one.is_right("thought") for one in sessions), strict=True))
        return Skills(
            values={
                "calls": float(np.mean([one.is_right("form") for one in sessions])),
                "arguments": float(np.mean([one.is_right("argument") for one in sessions])),
                "reading": min(reading.values()),
                "matching": min(in_texts.values()),
                "answers": min(in_sessions.values()),
            },
            pairs={pair: min(value, in_texts[pair]) for pair, value in in_sessions.items()},
        )


@dataclass(frozen=True, slots=True)
class _Prediction:
    """What a model predicts of a lesson's M taught tokens."""

    parts: Sequence[Part]  # M
    right: Sequence[bool]  # M: whether the likeliest token is the taught one
    probabilities: Sequence[float]  # M: of the taught token

    def is_right(self, part: Part) -> bool:
        """Return whether all tokens of a part are predicted."""
        return all(right for of, right in zip(self.parts, self.right, strict=True) if of == part)

    def probability(self, part: Part) -> float:
        """Return the probability that all tokens of a part are sampled."""
        return float(np.prod([value for of, value in zip(self.parts, self.probabilities, strict=True) if of == part]))


def _predictions(model: Qwen2_5_VLForConditionalGeneration, lessons: Sequence[Lesson]) -> Iterator[_Prediction]:
    """Yield the predictions of each lesson, in order."""
    found: dict[int, _Prediction] = {}
    for group, (logits, targets, _) in batch_logits(model, lessons):
        right, taught = logits.argmax(dim=-1) == targets, _taught_probabilities(logits, targets)
        start = 0
        for number in group:
            lesson = lessons[number]
            parts = [part for part, weight in zip(lesson.parts[1:], lesson.weights[1:], strict=True) if weight > 0]
            end = start + len(parts)
            found[number] = _Prediction(parts, right[start:end].tolist(), taught[start:end].tolist())
            start = end
    return (found[number] for number in range(len(lessons)))


def _taught_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.softmax(dim=-1).gather(1, targets[:, None])[:, 0]


def _pair(task: Task) -> Claims:
    return task.claims


def _evidence(task: Task) -> object:
    """Return what the right look shows: the claim of the better answer."""
    return task.claims[int(task.label) - 1]


def _means(values: "Iterator[tuple[Any, float]] | zip[tuple[Any, float]]") -> dict[Any, float]:
    """Return the mean of the values of each key."""
    by_key: defaultdict[Hashable, list[float]] = defaultdict(list)
    for key, value in values:
        by_key[key].append(value)
    return {key: float(np.mean(found)) for key, found in by_key.items()}
