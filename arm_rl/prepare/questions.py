"""Questions with their right answers, one JSON object a line: what every source becomes, and what pairs are made of.

    {"id": "a-1", "track": "perception", "question": "What does the sign say?", "images": ["images/street.jpg"], "answer": "Open"}

`images` are paths, relative to the file's folder or absolute. Optional: `tools` (names of those offered; by default all that there are),
`document` (its name in an index), `constraints` (objects with `instruction`, `tool` and `arguments`) and `source` (where it came from).
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arm_rl.core import images
from arm_rl.core.atomic_file import replace_file
from arm_rl.core.errors import UserError
from arm_rl.core.images import Image, ImageError
from arm_rl.core.parsing import parse_json
from arm_rl.core.text_file import EncodingError, read_lines
from arm_rl.core.types import ImageRef

_TEXTS = ("id", "track", "question", "answer")  # needed
_KNOWN = {*_TEXTS, "images", "tools", "document", "constraints", "source"}


class QuestionError(UserError):
    """A file of questions that cannot be used; the message names the file, the line and the key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraint:
    """Something that an answer must keep to, and the checker that tells."""

    instruction: str  # as the user says it
    tool: str  # name of the checker
    arguments: dict[str, Any]  # of the checker, without the text that is checked


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question about some images, or none, and its right answer."""

    id: str
    track: str  # which kind of task: a name without blanks
    question: str
    answer: str  # the right one
    images: tuple[Path, ...] = ()  # files
    tools: tuple[str, ...] | None = None  # names of those offered; None: all that there are
    document: str | None = None  # that the question is about, by its name in an index
    constraints: tuple[Constraint, ...] = field(default_factory=tuple)
    source: str = ""  # where it came from


def read_questions(path: Path) -> Iterator[Question]:
    """The questions of a file, in order, one in memory at a time. Images are not looked at.

    Raises:
        QuestionError: the file cannot be read, a line is not a question, or an id stands twice.
    """
    seen: dict[str, int] = {}
    try:
        for number, line in enumerate(read_lines(path), 1):
            if not line.strip():
                continue
            question = _parse_question(line, path.parent, f"{path}: line {number}")
            if question.id in seen:
                raise QuestionError(
                    f"{path}: line {number}: the id {question.id!r} stands twice, first in line {seen[question.id]}"
                )
            seen[question.id] = number
            yield question
    except OSError as error:
        raise QuestionError(f"{path}: not a readable text file: {error}") from error
    except EncodingError as error:
        raise QuestionError(str(error)) from error
    if not seen:
        raise QuestionError(f"{path}: there are no questions")


def write_questions(path: Path, questions: Iterable[Question]) -> int:
    """Write a file of questions, with images in its folder or below named relative to the folder.

    Returns:
        The number of questions.
    """
    number = 0
    with replace_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for question in questions:
            file.write(json.dumps(_to_json(question, path.parent), ensure_ascii=False) + "\n")
            number += 1
    return number


def read_images(question: Question) -> list[Image]:
    """The images of a question, checked.

    Raises:
        ImageError: one is missing or broken; the message names it.
    """
    found = []
    for path in question.images:
        image = images.load(ImageRef(path=str(path)))
        try:
            images.check(image.data)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error
        found.append(image)
    return found


def _parse_question(line: str, folder: Path, where: str) -> Question:
    try:
        values = parse_json(line)
    except ValueError as error:
        raise QuestionError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise QuestionError(f"{where}: a JSON object is needed, not {values!r:.80}")
    for key in values:
        if key not in _KNOWN:
            raise QuestionError(f"{where}: {key}: unknown key; known are {', '.join(sorted(_KNOWN))}")
    for key in _TEXTS:
        if not isinstance(values.get(key), str) or not values[key].strip():
            raise QuestionError(f"{where}: {key}: a text is needed, not {values.get(key)!r:.80}")
    if len(values["track"].split()) != 1:
        raise QuestionError(
            f"{where}: track: a name without blanks is needed, not {values['track']!r:.80}: metrics are named by it"
        )
    document, tools = values.get("document"), values.get("tools")
    if document is not None and not isinstance(document, str):
        raise QuestionError(f"{where}: document: a name is needed, not {document!r:.80}")
    return Question(
        **{key: values[key] for key in _TEXTS},
        images=tuple(folder / name for name in _parse_names(values.get("images"), "images", where)),
        tools=None if tools is None else _parse_names(tools, "tools", where),
        document=document,
        constraints=_parse_constraints(values.get("constraints") or [], where),
        source=str(values.get("source") or ""),
    )


def _parse_names(value: Any, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(value or [], list) or not all(isinstance(one, str) and one for one in value or ()):
        raise QuestionError(f"{where}: {key}: a list of texts is needed, not {value!r:.80}")
    return tuple(value or ())


def _parse_constraints(value: Any, where: str) -> tuple[Constraint, ...]:
    kinds = {"instruction": str, "tool": str, "arguments": dict}
    if not isinstance(value, list):
        raise QuestionError(f"{where}: constraints: a list of objects is needed, not {value!r:.80}")
    for number, one in enumerate(value):
        if (
            not isinstance(one, dict)
            or {*one} != {*kinds}
            or not all(isinstance(one[key], kind) for key, kind in kinds.items())
        ):
            raise QuestionError(
                f"{where}: constraints[{number}]: an object with an instruction, a tool and arguments is needed, not {one!r:.80}"
            )
    return tuple(Constraint(**one) for one in value)


def _to_json(question: Question, folder: Path) -> dict[str, Any]:
    """Return the question as plain values, without those that are unknown."""
    values: dict[str, Any] = {key: getattr(question, key) for key in _TEXTS}
    values["images"] = [_relative_path(image, folder) for image in question.images]
    values["tools"] = None if question.tools is None else list(question.tools)
    values["document"] = question.document
    values["constraints"] = [
        {"instruction": one.instruction, "tool": one.tool, "arguments": one.arguments} for one in question.constraints
    ] or None
    values["source"] = question.source or None
    return {key: value for key, value in values.items() if value is not None}


def _relative_path(image: Path, folder: Path) -> str:
    absolute, root = Path(os.path.abspath(image)), Path(os.path.abspath(folder))
    return str(absolute.relative_to(root) if absolute.is_relative_to(root) else absolute)
