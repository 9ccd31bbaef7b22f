"""Labelled answers of one's own, one JSON object a line (or a JSON array).

    {"question": "What does the sign say?", "images": ["street.jpg"], "chosen": "Open", "rejected": "Closed"}
    {"question": "What does the sign say?", "images": ["street.jpg"], "answer": "Open", "right": true}

`images` are paths in the file's folder or below. Optional: `id`, and `track` (by default `preferences`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arm_rl.core.images import ImageError
from arm_rl.data.image_store import ImageFolder, ImageSource
from arm_rl.data.parquet_rows import BrokenRows, DataError
from arm_rl.prepare.formats.text_files import read_objects
from arm_rl.prepare.pairs.choices import AnsweredQuestion, ScoredAnswer
from arm_rl.prepare.questions import Question
from arm_rl.prepare.sources.skipped import SkippedRow


def read_labelled(path: Path, images: ImageFolder, name: str) -> Iterator[AnsweredQuestion | ScoredAnswer | SkippedRow]:
    """Yield the labelled answers of a file; their images are kept in the folder. `name` tells its ids from those of other files.

    Raises:
        DataError: The file cannot be read, or an object lacks a key.
    """
    source = ImageSource(path.parent)
    for number, (row, where) in enumerate(read_objects(path, lambda value, where: (value, where), BrokenRows())):
        answer = row.get("chosen", row.get("answer"))
        texts = {"question": row.get("question"), "chosen" if "chosen" in row else "answer": answer}
        if "chosen" in row:
            texts["rejected"] = row.get("rejected")
        for key, text in texts.items():
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"{where}: {key}: a text is needed, not {text!r:.80}")
        if "chosen" not in row and not isinstance(row.get("right"), bool):
            raise DataError(f"{where}: right: true or false is needed, not {row.get('right')!r:.80}")
        if texts.get("rejected") == answer:
            yield SkippedRow("both answers are the same")
            continue
        try:
            shown = tuple(images.store_image(source.read(entry)) for entry in row.get("images") or ())
        except ImageError:
            yield SkippedRow("its image cannot be read")
            continue
        yield _make_entry(row, f"{name}-{number}", shown)


def _make_entry(row: dict[str, Any], default_id: str, images: tuple[Path, ...]) -> AnsweredQuestion | ScoredAnswer:
    question = Question(
        id=str(row.get("id") or default_id),
        track=str(row.get("track") or "preferences"),
        question=row["question"].strip(),
        answer=row["chosen" if "chosen" in row else "answer"].strip(),
        images=images,
        source=str(row.get("source") or ""),
    )
    if "chosen" in row:
        return AnsweredQuestion(question=question, flawed=(row["rejected"].strip(),))
    return ScoredAnswer(question=question, score=float(row["right"]))
