"""Which flawed answers can be used: what is said against one, in a few words by which a report counts."""

import re
from collections.abc import Sequence

from rapidfuzz import fuzz

from arm_rl.core.errors import UserError
from arm_rl.core.parsing import replace_surrogates
from arm_rl.core.placeholders import count_images
from arm_rl.prepare.pairs.config import PairsConfig
from arm_rl.prepare.questions import Constraint, Question
from tools.base import ToolContext
from tools.text.checks import CHECKS, CheckTool

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_SLACK = 4  # words: short answers may differ by a few


class ConstraintError(UserError):
    """A constraint that no checker can tell about; the message names the question."""


def extract_answer(text: str) -> str | None:
    """Return the last answer in a reply; None if it has none."""
    found = _ANSWER.findall(text)
    return replace_surrogates(found[-1].strip()) or None if found else None


def similarity(first: str, second: str) -> float:
    """How alike two texts are, from 0 to 1: their edit distance over their length, case and blanks aside (rapidfuzz's `ratio`)."""
    return fuzz.ratio(_normalise(first), _normalise(second)) / 100


def _normalise(text: str) -> str:
    return " ".join(text.casefold().split())


def question_fault(question: Question) -> str | None:
    """Return why nothing can be made of a question; None if it can be used."""
    if count_images(question.question) not in (0, len(question.images)):
        return "the question holds another number of <image> than it has images"
    if not all(satisfies(one, question.answer, question.id) for one in question.constraints):
        return "the right answer breaks a constraint"
    return None


def answer_fault(
    flawed: str, question: Question, others: Sequence[str], broken: Constraint | None, config: PairsConfig
) -> str | None:
    """Return why a flawed answer cannot be used; None if it can.

    Args:
        others: flawed answers to the same question.
        broken: the constraint that it should break.
    """
    if broken is not None and satisfies(broken, flawed, question.id):
        return "it keeps the constraint that it should break"
    if similarity(flawed, question.answer) > config.max_similarity:
        return "too like the right answer"
    if any(similarity(flawed, other) > config.max_similarity for other in others):
        return "too like another flawed answer"
    shorter, longer = sorted(len(text.split()) + _SLACK for text in (flawed, question.answer))
    if longer > config.max_length_ratio * shorter:
        return "of another length than the right answer"
    written, right = flawed.casefold(), question.answer.casefold()
    if any(word.casefold() in written and word.casefold() not in right for word in config.giveaways):
        return "it gives itself away"
    return None


def satisfies(constraint: Constraint, text: str, question: str) -> bool:
    """Return whether a text satisfies a constraint, by its checker.

    Raises:
        ConstraintError: there is no such checker, or its arguments cannot be used.
    """
    if constraint.tool not in CHECKS:
        raise ConstraintError(
            f"question {question}: constraints: there is no checker {constraint.tool!r}; known: {', '.join(CHECKS)}"
        )
    context = ToolContext(images={}, texts={"text_0": text}, image_names=[])
    result = CheckTool(constraint.tool).call({**constraint.arguments, "response": "text_0"}, context)
    if result.status != "ok":
        raise ConstraintError(f"question {question}: constraints: {constraint.tool}: {result.text}")
    return result.text.endswith("True")
