"""Small files in the format of lmms-lab/llava-critic-113k: the columns, the wordings and the verdicts of the published ones."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ASK = "<image>\nGiven an image and a question, say which answer is better. Your task is provided as follows:\n"


def compared(question: str, first: str, second: str, better: str, *, source: str = "vlfeedback") -> dict[str, Any]:
    """Return a row of `pairwise` without its image; `better` is `first` or `second`."""
    human = f"{ASK}Question: [{question}]\nThe first response: [{first}]\nThe second response: [{second}]\nASSISTANT:\n"
    return _row(human, f"Both answers are about the image. The better response: [{better}].", source)


def scored(caption: str, score: int) -> dict[str, Any]:
    """Return a scored caption of `pointwise` without its image."""
    human = f"<image>\nText Caption: {caption}\nFrom 0 to 100, how would you rate this caption?\nASSISTANT:\n"
    return _row(human, f"The caption names what is shown. Final Score: {score}", "svit")


def _row(human: str, said: str, source: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": human}, {"from": "gpt", "value": said}]
    return {"source": source, "conversations": turns}


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], images: Sequence[bytes]) -> Path:
    """Write rows with their encoded images, as the data set does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = [
        {"id": f"{row['source']}_{number}", **row, "image": {"bytes": image, "path": f"{number}.jpg"}}
        for number, (row, image) in enumerate(zip(rows, images, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(table), path)
    return path


def write_json(path: Path, rows: Sequence[dict[str, Any]], images: Sequence[bytes]) -> Path:
    """Write rows as JSON, with their images as files in `images` beside it."""
    (path.parent / "images").mkdir(parents=True, exist_ok=True)
    table = []
    for number, (row, image) in enumerate(zip(rows, images, strict=True)):
        name = f"images/{number}.jpg"
        (path.parent / name).write_bytes(image)
        table.append({"id": f"{row['source']}_{number}", **row, "image": name})
    path.write_text(json.dumps(table), encoding="utf-8")
    return path
