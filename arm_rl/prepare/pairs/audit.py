"""Whether answers can be told apart without reading them: by place, length and form. A classifier tries; at chance, they cannot.

Where it does better, what it finds easiest is left out until it does not (as AFLite does, Le Bras et al. 2020, arXiv 2002.04108, here with
nothing but surface features).
"""

import functools
import math
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from arm_rl.prepare.pairs.choices import AnsweredQuestion, Choice

MIN_ROWS = 40  # with fewer, no classifier tells anything
CUES = ("words", "characters", "lines", "characters a word", "digits", "capitals", "punctuation", "ends with a stop")
_FOLDS = 5
_STEP = 0.05  # share of the questions left out at a time
_Entry = TypeVar("_Entry", bound=AnsweredQuestion | Choice)
_SIGMAS = 2.5  # of chance's own spread, within which an accuracy counts as chance


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What a file's surface gives away."""

    num_rows: int
    chance: float
    accuracy: float | None  # of the classifier on rows that it was not fitted on; None: too few rows
    highest: float  # accuracy that may still be chance
    labels: dict[str, int]  # rows of each
    # share of the rows in which the right answer has the most words, ties shared; of single answers: None
    longest: float | None
    margins: dict[str, float]  # by question: how sure the classifier was of what is right

    @property
    def at_chance(self) -> bool:
        """The classifier tells nothing, as far as can be seen."""
        return self.accuracy is None or self.accuracy <= self.highest


def audit(choices: Sequence[Choice]) -> Audit:
    """Looks at the rows of one file; there is one at least."""
    pointwise = len(choices[0].answers) == 1
    questions = [choice.question.id for choice in choices]
    num_questions = len({*questions})
    chance = 0.5 if pointwise else float(np.mean([1 / len(choice.answers) for choice in choices]))
    accuracy, margins = None, dict[str, float]()
    if num_questions >= MIN_ROWS:
        found = _classify_single_margins(choices) if pointwise else _classify_margins(choices)
        hits = [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in found]
        accuracy = float(np.mean(hits))
        sums: defaultdict[str, float] = defaultdict(float)
        for question, margin in zip(questions, found, strict=True):
            sums[question] += margin
        margins = dict(sums)
    return Audit(
        num_rows=len(choices),
        chance=chance,
        accuracy=accuracy,
        highest=chance + _SIGMAS * math.sqrt(chance * (1 - chance) / num_questions),
        labels=dict(sorted(Counter(choice.label for choice in choices).items())),
        longest=None if pointwise else float(np.mean([_share_of_longest(choice) for choice in choices])),
        margins=margins,
    )


def balance(
    answered: Sequence[_Entry],
    arrange: Callable[[Sequence[_Entry]], list[Choice]],
    *,
    max_dropped: float,
) -> tuple[list[Choice], Audit]:
    """The rows of a file, without those that give themselves away, and what is then found.

    Args:
        answered: one at least.
        arrange: makes rows of what is left, so that labels stay balanced.
        max_dropped: share of the questions that may be left out; beyond it, the rows are given as they are then.
    """
    left = list(answered)
    step = max(1, round(_STEP * len(left)))
    choices = arrange(left)
    found = audit(choices)
    if found.at_chance:
        return choices, found
    # what just passes as chance would leave half of it in
    while found.accuracy is not None and found.accuracy > found.chance:
        if len(answered) - len(left) + step > max_dropped * len(answered):
            break
        easiest = {*sorted(found.margins, key=lambda question: -found.margins[question])[:step]}
        left = [one for one in left if one.question.id not in easiest]
        choices = arrange(left)
        found = audit(choices)
    return choices, found


def _classify_margins(choices: Sequence[Choice]) -> list[float]:
    """Return for each row the probability of the right answer, less the highest of the other answers."""
    features, right, rows = [], [], []
    for number, choice in enumerate(choices):
        own = np.array([_surface_features(answer) for answer in choice.answers])
        # by however little: differences alone would hide it
        most, least = own == own.max(axis=0), own == own.min(axis=0)
        ranks = most / most.sum(axis=0) - least / least.sum(axis=0)
        features.append(np.hstack([own - own.mean(axis=0), ranks, np.eye(len(choice.answers))]))
        right += [str(place) == choice.label for place in range(1, len(choice.answers) + 1)]
        rows += [number] * len(choice.answers)
    probabilities = _predict_held_out(np.vstack(features), right, rows)
    margins, start = [], 0
    for choice in choices:
        given = probabilities[start : start + len(choice.answers)]
        place = int(choice.label) - 1
        margins.append(float(given[place] - np.delete(given, place).max()))
        start += len(choice.answers)
    return margins


def _classify_single_margins(choices: Sequence[Choice]) -> list[float]:
    """Return for each row the probability of the right verdict, less that of the other."""
    numbers = {
        question: number for number, question in enumerate(dict.fromkeys(choice.question.id for choice in choices))
    }
    right = [choice.label == "true" for choice in choices]
    features = np.array([_surface_features(choice.answers[0]) for choice in choices])
    probabilities = _predict_held_out(features, right, [numbers[choice.question.id] for choice in choices])
    return [
        float(given - 0.5 if is_right else 0.5 - given) for given, is_right in zip(probabilities, right, strict=True)
    ]


def _predict_held_out(features: np.ndarray, right: Sequence[bool], groups: Sequence[int]) -> np.ndarray:
    """Return the probability of being right, (rows,), each from a classifier fitted without the row's question."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = GroupKFold(_FOLDS)
    return cross_val_predict(
        classifier, features, np.array(right), groups=np.array(groups), cv=folds, method="predict_proba"
    )[:, 1]


@functools.lru_cache(maxsize=1_000_000)  # each is looked at again whenever some are left out
def _surface_features(answer: str) -> tuple[float, ...]:
    """Return what can be seen of an answer without reading it, in the order of `CUES`."""
    words, size = answer.split(), max(len(answer), 1)
    return (
        math.log1p(len(words)),
        math.log1p(len(answer)),
        math.log1p(answer.count("\n")),
        len(answer) / max(len(words), 1),
        sum(character.isdigit() for character in answer) / size,
        sum(character.isupper() for character in answer) / size,
        sum(character in string.punctuation for character in answer) / size,
        float(answer.rstrip().endswith((".", "!", "?", "。"))),
    )


def _share_of_longest(choice: Choice) -> float:
    lengths = [len(answer.split()) for answer in choice.answers]
    most = max(lengths)
    return (lengths[int(choice.label) - 1] == most) / lengths.count(most)
