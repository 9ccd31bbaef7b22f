"""MM-IFEngine: instructions about an image, with constraints on the form of the answer.

JSON or JSON lines of two shapes: ShareGPT's (ChrisDing1105/MMIF-23k: `conversations`, `images`, and `chosen` and `rejected` where
it is preference data), and that of its pipeline and benchmark: `instruction`, `image`, `constraints` of `key`, `value` and `judge`,
whose `verify_funcs` (`func`, `params`) are the checkers that are tools here. Constraints that only a language model can judge stay
in the instruction alone.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arm_rl.core.images import ImageError
from arm_rl.data.image_store import ImageFolder, ImageSource
from arm_rl.data.parquet_rows import BrokenRows
from arm_rl.prepare.formats.text_files import read_objects
from arm_rl.prepare.pairs.choices import AnsweredQuestion
from arm_rl.prepare.questions import Constraint, Question
from arm_rl.prepare.sources.skipped import SkippedRow
from tools.text.checks import CHECKS

_ANSWERS = ("response", "answer", "prediction")


def read(path: Path, images: ImageFolder, name: str) -> Iterator[Question | SkippedRow]:
    """The questions of a file; their images are kept in the folder. `name` tells its ids from those of other files.

    Raises:
        DataError: the file cannot be read.
    """
    for found in _read(path, images, name):
        yield found if isinstance(found, SkippedRow) else found[0]


def read_labelled(path: Path, images: ImageFolder, name: str) -> Iterator[AnsweredQuestion | SkippedRow]:
    """Yield the rows with a chosen and a rejected answer; their images are kept in the folder. `name` as in `read`.

    Raises:
        DataError: The file cannot be read.
    """
    for found in _read(path, images, name):
        if isinstance(found, SkippedRow):
            yield found
        elif not found[1] or found[1] == found[0].answer:
            yield SkippedRow("no other answer was rejected")
        else:
            yield AnsweredQuestion(question=found[0], flawed=(found[1],))


def _read(path: Path, images: ImageFolder, name: str) -> Iterator[tuple[Question, str] | SkippedRow]:
    """Yield the question of each row and its rejected answer, empty where there is none."""
    source = ImageSource(path.parent)
    for number, row in enumerate(read_objects(path, lambda value, where: value, BrokenRows())):
        turns = [(turn.get("from"), turn.get("value")) for turn in row.get("conversations") or ()]
        asked = str(row.get("instruction") or next((text for said, text in turns if said == "human"), ""))
        chosen = (row.get("chosen") or {}).get("value")
        said = chosen or next((text for said, text in turns if said == "gpt"), None)
        answer = str(said or next((row[key] for key in _ANSWERS if row.get(key)), "")).strip()
        text = asked.replace("<image>", "").strip()
        if not text or not answer:
            yield SkippedRow("no instruction, or no answer to it")
            continue
        entries = row.get("images") or row.get("image") or []
        entries = entries if isinstance(entries, list) else [entries]
        try:
            shown = tuple(images.store_image(source.read(entry)) for entry in entries)
        except ImageError:
            yield SkippedRow("its image cannot be read")
            continue
        constraints = tuple(
            constraint for written in row.get("constraints") or () for constraint in _parse_constraints(written)
        )
        question = Question(
            id=f"mm_ifengine-{name}-{number}",
            track="instructions",
            question=text,
            answer=answer,
            images=shown,
            tools=tuple(dict.fromkeys(constraint.tool for constraint in constraints)) or None,
            constraints=constraints,
            source="mm_ifengine",
        )
        yield question, str((row.get("rejected") or {}).get("value") or "").strip()


def _parse_constraints(written: dict[str, Any]) -> Iterator[Constraint]:
    """Yield a constraint's checkers with named arguments; the data set gives their positions after the response."""
    for function in (written.get("judge") or {}).get("verify_funcs") or ():
        tool = str(function.get("func")).replace("_metioned_", "_mentioned_")  # as it is spelt there
        params = function.get("params") or []
        if tool not in CHECKS:
            continue
        names = [item.name for item in dataclasses.fields(CHECKS[tool].arguments) if item.name != "response"]
        if len(names) == len(params):
            yield Constraint(
                instruction=str(written.get("value") or ""), tool=tool, arguments=dict(zip(names, params, strict=True))
            )
