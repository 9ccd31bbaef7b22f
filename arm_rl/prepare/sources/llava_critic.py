"""LLaVA-Critic (lmms-lab/llava-critic-113k, `pairwise`): the question of a comparison, and the answer that was found better.

Parquet with `id`, `source`, `conversations` (one turn each of `human` and `gpt`) and `image` (bytes). The human's turn holds
`Question: [...]` and two responses in brackets; the critic's names the better one. Ties, other shapes and the pointwise rows, which have
no right answer, are skipped.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from arm_rl.core.images import ImageError
from arm_rl.data.image_store import ImageFolder, ImageSource
from arm_rl.data.parquet_rows import BrokenRows, read_rows
from arm_rl.prepare.questions import Question
from arm_rl.prepare.sources.skipped import SkippedRow

_PAIR = re.compile(
    r"(?s)Question: \[(?P<question>.*?)\]\s*\n\s*(?:The first response|Response 1|Response A): \[(?P<first>.*?)\]\s*\n\s*"
    r"(?:The second response|Response 2|Response B): \[(?P<second>.*)\]"
)
_VERDICT = re.compile(r"(?i)the better response: \[?(first|second|1|2|A|B)\]?")
_FIRST = ("first", "1", "a")


def read(path: Path, images: ImageFolder, name: str) -> Iterator[Question | SkippedRow]:
    """The questions of a parquet file; their images are kept in the folder. `name` tells its ids from those of other files.

    Raises:
        DataError: the file cannot be read.
    """
    source = ImageSource(path.parent)
    for number, row in read_rows(str(path), ("id", "conversations", "image"), ("source",), BrokenRows()):
        turns = {turn["from"]: turn["value"] for turn in row["conversations"] or ()}
        pair, verdict = _PAIR.search(turns.get("human", "")), _VERDICT.findall(turns.get("gpt", ""))
        if not pair:
            yield SkippedRow("not a comparison of two responses")
        elif not verdict:
            yield SkippedRow("no response was found better")
        else:
            try:
                image = images.store_image(source.read(row["image"]))
            except ImageError:
                yield SkippedRow("its image cannot be read")
                continue
            answer = pair["first" if verdict[-1].lower() in _FIRST else "second"].strip()
            if not (answer and pair["question"].strip()):
                yield SkippedRow("an empty question or answer")
                continue
            yield Question(
                id=f"llava_critic-{name}-{number}",
                track="perception",
                question=pair["question"].strip(),
                answer=answer,
                images=(image,),
                source=f"llava_critic/{row.get('source') or ''}".rstrip("/"),
            )
