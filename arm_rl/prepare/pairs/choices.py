"""What is judged in one row: a question with answers in some order, and what is right about them. As many of each label, by the seed."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from arm_rl.core.placeholders import IMAGE, count_images, escape_images
from arm_rl.core.question_template import Phrase
from arm_rl.core.seeding import derive_seed
from arm_rl.data.preferences import Preference
from arm_rl.prepare.questions import Question

_ABILITIES = {"pair": "comparing two answers", "point": "checking an answer", "rank": "comparing several answers"}
_RETRIEVAL = ("doc_page_retrieval_by_query", "doc_page_retrieval_by_index")


@dataclass(frozen=True, kw_only=True, slots=True)
class AnsweredQuestion:
    """A question with flawed answers beside its right one."""

    question: Question
    flawed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredAnswer:
    """A question with one answer (`question.answer`) and the score that somebody gave it."""

    question: Question
    score: float  # 0 (wrong) to 1 (right)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Answers to judge."""

    question: Question
    answers: tuple[str, ...]
    label: str  # number of the right one; of a single answer, true or false


def arrange(kind: str, answered: Sequence[AnsweredQuestion], *, seed: int, num_answers: int) -> list[Choice]:
    """The rows of a file. Within a track the right answer has each place equally often, or once more; each single answer is there twice."""
    if kind == "point":
        return [
            Choice(question=one.question, answers=(answer,), label=label)
            for one in answered
            for answer, label in ((one.question.answer, "true"), (one.flawed[0], "false"))
        ]
    number = 2 if kind == "pair" else num_answers
    tracks: dict[str, list[str]] = defaultdict(list)
    for one in answered:
        tracks[one.question.track].append(one.question.id)
    places: dict[str, int] = {}
    for track, ids in tracks.items():
        start = derive_seed(seed, kind, track)  # what is left over goes anywhere
        places |= {
            id: (start + rank) % number
            for rank, id in enumerate(sorted(ids, key=lambda id: derive_seed(seed, kind, "place", id)))
        }
    return [_make_choice(one, kind, places[one.question.id], number, seed) for one in answered]


def level_labels(choices: Sequence[Choice], *, seed: int) -> list[Choice]:
    """Return single answers of which, within each track, as many are right as are wrong; the seed draws which ones stay."""
    sides: dict[tuple[str, str], list[str]] = defaultdict(list)
    for choice in choices:
        sides[choice.question.track, choice.label].append(choice.question.id)
    kept: set[str] = set()
    for track in {track for track, _ in sides}:
        fewest = min(len(sides[track, label]) for label in ("true", "false"))
        for label in ("true", "false"):
            kept |= {*sorted(sides[track, label], key=lambda id: derive_seed(seed, "level", id))[:fewest]}
    return [choice for choice in choices if choice.question.id in kept]


def _make_choice(one: AnsweredQuestion, kind: str, place: int, number: int, seed: int) -> Choice:
    order = sorted(range(number - 1), key=lambda index: derive_seed(seed, kind, "order", one.question.id, index))
    answers = [one.flawed[index] for index in order]
    answers.insert(place, one.question.answer)
    return Choice(question=one.question, answers=tuple(answers), label=str(place + 1))


def make_preference(
    choice: Choice, kind: str, split: str, index: int, images: Sequence[str], phrase: Phrase
) -> Preference:
    """Return a row of training data.

    Args:
        images: paths relative to the file's folder.
        phrase: words a question and its answers, as the judge will be asked as a product.
    """
    question = choice.question
    text = full_question(question)
    return Preference(
        id=f"{question.id}/{kind}" + (f"/{choice.label}" if kind == "point" else ""),
        track=question.track,
        ability=_ABILITIES[kind],
        split=split,
        index=index,
        question=text,
        request=("" if count_images(text) else IMAGE * len(images))
        + phrase(text, [*map(escape_images, choice.answers)]),
        label=choice.label,
        images=images,
        texts=choice.answers,
        tools=question.tools,
        expected_tools=_expected_tools(question),
    )


def full_question(question: Question) -> str:
    """Return the question with the constraints that it does not state itself, and its document's name."""
    text = question.question
    left = [one.instruction for one in question.constraints if one.instruction not in text]
    document = [f"The document is named {question.document}."] if question.document is not None else []
    return "\n\n".join([text, *left, *document])


def _expected_tools(question: Question) -> list[str]:
    tools = [
        *dict.fromkeys(one.tool for one in question.constraints),
        *(_RETRIEVAL if question.document is not None else ()),
    ]
    return [tool for tool in tools if question.tools is None or tool in question.tools]
