"""LLaVA-Critic (lmms-lab/llava-critic-113k): responses to questions about images, compared or scored by GPT-4o.

Parquet with `id`, `source`, `conversations` (one turn each of `human` and `gpt`) and `image` (bytes), in the folders
`pairwise` and `pointwise`; or JSON of the same keys, where `image` is the path of a file. The human's turn holds the
question and the responses, the critic's the verdict. Three shapes are compared, two are scored:

    Question: [...], and two responses in brackets       The better response: [first]
    <|User Prompt|>, Assistant A's and B's Answer        [[A>B]]
    [Question], [Assistant 1], [Assistant 2]             8 6 (two scores in the first line)
    Text Caption: ..., From 0 to 100 ...                 Final Score: 80
    Question: [...], and The LMM response: [...]         Score: 80

Ties and rows of other shapes are skipped.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from arm_rl.core.images import ImageError
from arm_rl.data.image_store import ImageFolder, ImageSource
from arm_rl.data.parquet_rows import BrokenRows, read_rows
from arm_rl.prepare.formats.text_files import read_objects
from arm_rl.prepare.pairs.choices import AnsweredQuestion, ScoredAnswer
from arm_rl.prepare.questions import Question
from arm_rl.prepare.sources.skipped import SkippedRow

_NOT_COMPARED = "not a comparison of two responses"
_UNKNOWN = "neither a comparison of two responses nor a scored one"
_DESCRIBE = "Describe the image."  # the question of a scored caption, which the data set does not repeat

_BRACKETS = re.compile(
    r"(?s)Question: \[(?P<question>.*?)\]\s*\n\s*(?:The first response|Response 1|Response A): \[(?P<first>.*?)\]\s*\n\s*"
    r"(?:The second response|Response 2|Response B): \[(?P<second>.*)\]"
)
_ARENA = re.compile(
    r"(?s)<\|User Prompt\|>(?P<question>.*?)"
    r"<\|The Start of Assistant A's Answer\|>(?P<first>.*?)<\|The End of Assistant A's Answer\|>.*?"
    r"<\|The Start of Assistant B's Answer\|>(?P<second>.*?)<\|The End of Assistant B's Answer\|>"
)
_BENCH = re.compile(
    r"(?s)\[Question\](?P<question>.*?)\[Assistant 1\](?P<first>.*?)\[End of Assistant 1\].*?"
    r"\[Assistant 2\](?P<second>.*?)\[End of Assistant 2\]"
)
_CAPTION = re.compile(r"(?s)Text Caption:(?P<answer>.*?)\n\s*From 0 to 100\b")
_SINGLE = re.compile(r"(?s)Question: \[(?P<question>.*?)\]\s*\n\s*The LMM response: \[(?P<answer>.*)\]")

_BETTER = re.compile(r"(?i)the better response: \[?(first|second|1|2|A|B)\]?")
_ARENA_VERDICT = re.compile(r"\[\[([AB])(>>?|=)[AB]\]\]")
_TWO_SCORES = re.compile(r"\s*(\d+(?:\.\d+)?)[\s,]+(\d+(?:\.\d+)?)\s*(?:\n|$)")
_SCORE = re.compile(r"(?i)score:\s*\[?(\d+(?:\.\d+)?)")


def _named_response(said: str) -> str | None:
    found = _BETTER.findall(said)
    return None if not found else "first" if found[-1].lower() in ("first", "1", "a") else "second"


def _arena_verdict(said: str) -> str | None:
    found = _ARENA_VERDICT.findall(said)
    if not found or found[-1][1] == "=":
        return None
    return "first" if found[-1][0] == "A" else "second"


def _higher_score(said: str) -> str | None:
    found = _TWO_SCORES.match(said)
    if not found or float(found[1]) == float(found[2]):
        return None
    return "first" if float(found[1]) > float(found[2]) else "second"


# shapes of a comparison: the human's turn, and which response the critic's turn names; None for a tie
_COMPARISONS: tuple[tuple[re.Pattern[str], Callable[[str], str | None]], ...] = (
    (_BRACKETS, _named_response),
    (_ARENA, _arena_verdict),
    (_BENCH, _higher_score),
)


def read(path: Path, images: ImageFolder, name: str) -> Iterator[Question | SkippedRow]:
    """Yield the questions of a file's comparisons with their better answers; their images are kept in the folder.

    `name` tells the file's ids from those of other files.

    Raises:
        DataError: The file cannot be read.
    """
    for found in _read(path, images, name, scored=False):
        yield found.question if isinstance(found, AnsweredQuestion | ScoredAnswer) else found


def read_labelled(path: Path, images: ImageFolder, name: str) -> Iterator[AnsweredQuestion | ScoredAnswer | SkippedRow]:
    """Yield the comparisons and the scored answers of a file; their images are kept in the folder.

    `name` tells the file's ids from those of other files.

    Raises:
        DataError: The file cannot be read.
    """
    return _read(path, images, name, scored=True)


def _read(
    path: Path, images: ImageFolder, name: str, *, scored: bool
) -> Iterator[AnsweredQuestion | ScoredAnswer | SkippedRow]:
    source = ImageSource(path.parent)
    for number, row in enumerate(_read_rows(path)):
        written = row.get("conversations")
        if not isinstance(written, list) or not all(isinstance(turn, Mapping) for turn in written):
            yield SkippedRow(_UNKNOWN if scored else _NOT_COMPARED)
            continue
        turns = {turn.get("from"): str(turn.get("value") or "") for turn in written}
        parsed = _parse(turns.get("human", ""), turns.get("gpt", ""), scored=scored)
        if isinstance(parsed, SkippedRow):
            yield parsed
            continue
        try:
            image = images.store_image(source.read(row.get("image")))
        except ImageError:
            yield SkippedRow("its image cannot be read")
            continue
        asked, answer, other = parsed
        question = Question(
            id=f"llava_critic-{name}-{number}",
            track="perception",
            question=asked,
            answer=answer,
            images=(image,),
            source=f"llava_critic/{row.get('source') or ''}".rstrip("/"),
        )
        if isinstance(other, str):
            yield AnsweredQuestion(question=question, flawed=(other,))
        else:
            yield ScoredAnswer(question=question, score=other)


def _read_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix in (".json", ".jsonl"):
        yield from read_objects(path, lambda value, where: value, BrokenRows())
        return
    for _, row in read_rows(str(path), ("id", "conversations", "image"), ("source",), BrokenRows()):
        yield row


def _parse(human: str, said: str, *, scored: bool) -> tuple[str, str, str | float] | SkippedRow:
    """Return the question, the better answer and the worse one, or the question, its answer and the score from 0 to 1."""
    asked = human.replace("<image>", "")
    for shape, verdict in _COMPARISONS:
        if found := shape.search(asked):
            better = verdict(said)
            if better is None:
                return SkippedRow("no response was found better")
            texts = found.groupdict()
            worse = texts["second" if better == "first" else "first"].strip()
            return _checked(texts["question"].strip(), texts[better].strip(), worse)
    found = _CAPTION.search(asked) or _SINGLE.search(asked)
    scores = _SCORE.findall(said)
    if not found or not scores or float(scores[-1]) > 100:
        return SkippedRow(_UNKNOWN if scored else _NOT_COMPARED)
    if not scored:
        return SkippedRow(_NOT_COMPARED)
    question = found.groupdict().get("question") or _DESCRIBE
    return _checked(question.strip(), found["answer"].strip(), float(scores[-1]) / 100)


def _checked(question: str, answer: str, other: str | float) -> tuple[str, str, str | float] | SkippedRow:
    if not question or not answer or other == "":
        return SkippedRow("an empty question or answer")
    if answer == other:
        return SkippedRow("both answers are the same")
    return question, answer, other
