"""Questions in, training data out: the flawed answers are written, and what can be used of them becomes files and a report."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from arm_rl.core.errors import UserError
from arm_rl.core.question_template import Phrase
from arm_rl.core.seeding import derive_seed
from arm_rl.data.image_store import ImageFolder
from arm_rl.data.preferences import Preference, write_preferences
from arm_rl.prepare.pairs.audit import balance
from arm_rl.prepare.pairs.choices import AnsweredQuestion, Choice, arrange, make_preference
from arm_rl.prepare.pairs.config import PairsConfig
from arm_rl.prepare.pairs.report import PairsFile, describe_files
from arm_rl.prepare.pairs.writer import WritingOutcome, drop_reason
from arm_rl.prepare.questions import Question, read_images, read_questions

_EXAMPLES = 5  # ids for each reason in the report


class PairsError(UserError):
    """Nothing could be made; the message says why."""


def read_all(paths: Sequence[Path]) -> list[Question]:
    """The questions of several files.

    Raises:
        PairsError: an id stands in two of them.
        QuestionError: a file that cannot be used.
    """
    found: dict[str, Question] = {}
    for path in paths:
        for question in read_questions(path):
            if question.id in found:
                raise PairsError(f"{path}: the id {question.id!r} stands in another file too")
            found[question.id] = question
    return list(found.values())


def write_files(
    outcomes: Sequence[WritingOutcome], config: PairsConfig, phrase: Phrase, folder: Path
) -> list[PairsFile]:
    """Writes `KIND.parquet`, and `KIND-held_out.parquet` where some are held out; the images, each once, to `images`.

    Raises:
        PairsError: there is nothing to write.
    """
    made: list[PairsFile] = []
    for kind in config.kinds:
        wanted = config.num_answers - 1 if kind == "rank" else 1
        splits: dict[str, list[AnsweredQuestion]] = defaultdict(list)
        for outcome in outcomes:
            if len(outcome.answered.flawed) >= wanted:
                question = outcome.answered.question
                material = question.document or "/".join(map(str, question.images)) or question.question
                split = choose_split(material, seed=config.seed, held_out=config.held_out)
                splits[split].append(outcome.answered)
        for split, answered in sorted(splits.items(), reverse=True):
            choices, found = balance(answered, _make_arrange(kind, config), max_dropped=config.max_dropped)
            path = folder / file_name(kind, split)
            write_preferences(path, _make_preferences(choices, kind, split, folder, phrase))
            made.append(
                PairsFile(
                    path=path, audit=found, num_dropped=len(answered) - len({choice.question.id for choice in choices})
                )
            )
    if not made:
        told = "; ".join(
            f"{reason}: {number}" for reason, number in _count_drop_reasons(outcomes, config)[0].most_common(3)
        )
        raise PairsError(f"no answers of the {len(outcomes)} questions can be used ({told})")
    return made


def report(
    outcomes: Sequence[WritingOutcome], made: Sequence[PairsFile], config: PairsConfig, num_requests: int
) -> dict[str, Any]:
    """What was kept and why the rest was not, for JSON."""
    reasons, examples = _count_drop_reasons(outcomes, config)
    return {
        "questions": len(outcomes),
        "requests": num_requests,  # of this run
        "used": len(outcomes) - sum(reasons.values()),
        "not_used": {
            reason: {"questions": number, "such_as": examples[reason]} for reason, number in reasons.most_common()
        },
        "replies_refused": dict(Counter(reason for outcome in outcomes for reason in outcome.refusals).most_common()),
        "flaws": dict(Counter(flaw for outcome in outcomes for flaw in outcome.flaws).most_common()),
        "files": describe_files(made),
    }


def file_name(kind: str, split: str) -> str:
    """Return the name of a file of training data."""
    return f"{kind}.parquet" if split == "train" else f"{kind}-{split}.parquet"


def choose_split(material: str, *, seed: int, held_out: float) -> str:
    """Return the split of the questions about some material, given by its name."""
    return "held_out" if derive_seed(seed, "split", material) / 2**31 < held_out else "train"


def _make_arrange(kind: str, config: PairsConfig) -> Callable[[Sequence[AnsweredQuestion]], list[Choice]]:
    return lambda left: arrange(kind, left, seed=config.seed, num_answers=config.num_answers)


def _make_preferences(
    choices: Sequence[Choice], kind: str, split: str, folder: Path, phrase: Phrase
) -> Iterator[Preference]:
    for index, choice in enumerate(choices):
        yield make_preference(choice, kind, split, index, _store_images(choice.question, folder), phrase)


def _store_images(question: Question, folder: Path) -> list[str]:
    """Store a question's images by content and return their paths relative to the folder."""
    kept = ImageFolder(folder / "images")
    return [str(kept.store_image(image).relative_to(folder)) for image in read_images(question)]


def _count_drop_reasons(
    outcomes: Sequence[WritingOutcome], config: PairsConfig
) -> tuple[Counter[str], dict[str, list[str]]]:
    """Count why questions have no row in any file, with some of their ids."""
    wanted = 1 if {*config.kinds} != {"rank"} else config.num_flawed
    examples: dict[str, list[str]] = defaultdict(list)
    reasons: Counter[str] = Counter()
    for outcome in outcomes:
        reason = drop_reason(outcome, wanted)
        if reason is not None:
            reasons[reason] += 1
            if len(examples[reason]) < _EXAMPLES:
                examples[reason].append(outcome.answered.question.id)
    return reasons, examples
