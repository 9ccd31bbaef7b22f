"""Answers that are labelled already, as training data: no language model is asked, and labels are balanced as for written flaws."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from arm_rl.core.config import require
from arm_rl.core.question_template import Phrase
from arm_rl.core.seeding import derive_seed
from arm_rl.data.preferences import Preference, write_preferences
from arm_rl.prepare.pairs.audit import balance
from arm_rl.prepare.pairs.build import PairsError, choose_split, file_name
from arm_rl.prepare.pairs.choices import (
    AnsweredQuestion,
    Choice,
    ScoredAnswer,
    arrange,
    level_labels,
    make_preference,
)
from arm_rl.prepare.pairs.report import PairsFile
from arm_rl.prepare.sources.skipped import SkippedRow

_IMAGE = "<image>"
_Entry = TypeVar("_Entry", bound=AnsweredQuestion | Choice)


@dataclass(frozen=True, kw_only=True)
class LabelledConfig:
    """How labelled answers become training data."""

    # file that words a question and its answers, as template.question of a run
    question: str = "configs/prompts/question.jinja"
    right_from: float = 0.8  # a scored answer is right from this score on (0..1)
    wrong_to: float = 0.4  # a scored answer is wrong up to this score (0..1); what lies between is left out
    # questions with two answers at most, and as many with one, drawn by the seed; 0: all
    max_questions: int = 0
    # share of the questions that go to files of their own; questions about the same image go together
    held_out: float = 0.0
    max_dropped: float = 0.5  # share of a file's questions that may be left out until length and form tell nothing
    seed: int = 0  # of the draw, the splits and the answers' order

    def __post_init__(self) -> None:
        for name in ("right_from", "wrong_to", "held_out", "max_dropped"):
            require(0 <= getattr(self, name) <= 1, name, f"from 0 to 1, not {getattr(self, name)}")
        require(self.wrong_to < self.right_from, "wrong_to", f"below right_from ({self.right_from})")
        require(self.max_questions >= 0, "max_questions", f"not negative, not {self.max_questions}")


@dataclass(slots=True)
class LabelledAnswers:
    """What a data set holds: questions with two answers, single answers, and why other rows were skipped."""

    pairs: list[AnsweredQuestion] = field(default_factory=list)
    points: list[Choice] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # rows by reason


def collect(found: Iterable[AnsweredQuestion | ScoredAnswer | SkippedRow], config: LabelledConfig) -> LabelledAnswers:
    """Sort what a source yields, and decide which scored answers are right.

    Raises:
        PairsError: Two questions have the same id.
    """
    kept, ids = LabelledAnswers(), set[str]()
    for one in found:
        if isinstance(one, SkippedRow):
            kept.skipped[one.reason] += 1
            continue
        question = one.question
        if question.id in ids:
            raise PairsError(f"the id {question.id!r} is there twice: files of one name are read one at a time")
        ids.add(question.id)
        answers = (question.answer, *(one.flawed if isinstance(one, AnsweredQuestion) else ()))
        if any(_IMAGE in answer for answer in answers) or _IMAGE in question.question:
            kept.skipped["a text holds <image>"] += 1
        elif isinstance(one, AnsweredQuestion):
            kept.pairs.append(one)
        elif config.wrong_to < one.score < config.right_from:
            kept.skipped["a score between wrong_to and right_from"] += 1
        else:
            label = "true" if one.score >= config.right_from else "false"
            kept.points.append(Choice(question=question, answers=answers, label=label))
    return kept


def write_labelled(labelled: LabelledAnswers, config: LabelledConfig, phrase: Phrase, folder: Path) -> list[PairsFile]:
    """Write `pair.parquet`, `point.parquet` and their held-out parts, as far as there are rows for them.

    Args:
        folder: Images are files in this folder or below; rows name them relative to the folder.

    Raises:
        PairsError: There is nothing to write.
    """
    made: list[PairsFile] = []
    for split, answered in _split(labelled.pairs, config):

        def arrange_pairs(left: Sequence[AnsweredQuestion]) -> list[Choice]:
            return arrange("pair", left, seed=config.seed, num_answers=2)

        choices, found = balance(answered, arrange_pairs, max_dropped=config.max_dropped)
        path = write_preferences(folder / file_name("pair", split), _rows(choices, "pair", split, folder, phrase))
        made.append(PairsFile(path=path, audit=found, num_dropped=len(answered) - len(choices)))
    for split, singles in _split(labelled.points, config):
        level = level_labels(singles, seed=config.seed)
        if not level:  # all are right, or all are wrong
            labelled.skipped["a single answer without another of the opposite label"] += len(singles)
            continue
        choices, found = balance(
            level, lambda left: level_labels(left, seed=config.seed), max_dropped=config.max_dropped
        )
        path = write_preferences(folder / file_name("point", split), _rows(choices, "point", split, folder, phrase))
        made.append(PairsFile(path=path, audit=found, num_dropped=len(singles) - len(choices)))
    if not made:
        reasons = "; ".join(f"{number} rows: {reason}" for reason, number in labelled.skipped.most_common(3))
        raise PairsError(f"no row can be used: {reasons or 'there are none'}")
    return made


def _split(entries: Sequence[_Entry], config: LabelledConfig) -> list[tuple[str, list[_Entry]]]:
    """Return the entries of each split, training first, drawn where there are more than `max_questions`."""
    drawn = {one.question.id for one in entries}
    if config.max_questions:
        order = sorted(drawn, key=lambda id: derive_seed(config.seed, "draw", id))
        drawn = {*order[: config.max_questions]}
    splits: dict[str, list[_Entry]] = defaultdict(list)
    for one in entries:
        if one.question.id in drawn:
            # images are named by their content, wherever the folder is
            material = "/".join(path.name for path in one.question.images) or one.question.question
            splits[choose_split(material, seed=config.seed, held_out=config.held_out)].append(one)
    return sorted(splits.items(), reverse=True)


def _rows(choices: Sequence[Choice], kind: str, split: str, folder: Path, phrase: Phrase) -> Iterator[Preference]:
    for index, choice in enumerate(choices):
        images = [str(path.relative_to(folder)) for path in choice.question.images]
        yield make_preference(choice, kind, split, index, images, phrase)
