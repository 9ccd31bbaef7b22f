"""DeepEyes (ChenShawn/DeepEyes-Datasets-47k): questions about details, which a crop answers.

Parquet as verl reads it: `prompt` (system and user), `images` (bytes), `reward_model.ground_truth`, `extra_info` (`question`, `answer`,
`index`, `split`), `data_source`. The question is freed of the instructions on how to think and to call tools.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from arm_rl.core.images import ImageError
from arm_rl.data.image_store import ImageFolder, ImageSource
from arm_rl.data.parquet_rows import BrokenRows, read_rows
from arm_rl.prepare.questions import Question
from arm_rl.prepare.sources.skipped import SkippedRow

_INSTRUCTIONS = re.compile(r"(?s)\n\s*Think\b[^\n]*(?:first|mind).*<(?:think|tool_call|answer)>.*")
_ZOOM = "image_zoom_in_tool"


def read(path: Path, images: ImageFolder, name: str) -> Iterator[Question | SkippedRow]:
    """The questions of a parquet file; their images are kept in the folder. `name` tells its ids from those of other files.

    Raises:
        DataError: the file cannot be read.
    """
    source = ImageSource(path.parent)
    for number, row in read_rows(
        str(path), ("prompt", "images", "reward_model"), ("extra_info", "data_source"), BrokenRows()
    ):
        extra, user = row.get("extra_info") or {}, [turn["content"] for turn in row["prompt"] if turn["role"] == "user"]
        asked = extra.get("question") or (user[-1] if user else "")
        question = _INSTRUCTIONS.sub("", "\n" + asked.replace("<image>", "")).strip().removeprefix("Question:").strip()
        answer = str((row["reward_model"] or {}).get("ground_truth") or extra.get("answer") or "").strip()
        if not question or not answer:
            yield SkippedRow("an empty question or answer")
            continue
        try:
            shown = tuple(images.store_image(source.read(entry)) for entry in row["images"] or ())
        except ImageError:
            yield SkippedRow("its image cannot be read")
            continue
        if not shown:
            yield SkippedRow("there is no image to look into")
            continue
        yield Question(
            id=f"deepeyes-{name}-{number}",
            track="perception",
            question=question,
            answer=answer,
            images=shown,
            tools=(_ZOOM,),
            source=f"deepeyes/{row.get('data_source') or ''}".rstrip("/"),
        )
