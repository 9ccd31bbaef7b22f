"""Answers to judge, as the rows of training data: parquet with verl's columns, which `data.read_samples` reads."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from arm_rl.core.atomic_file import replace_file

ROW_GROUP = 128  # rows whose images are read together
SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        (
            "extra_info",
            pa.struct(
                [
                    ("id", pa.string()),
                    ("split", pa.string()),
                    ("index", pa.int64()),
                    ("question", pa.string()),
                    ("texts", pa.list_(pa.string())),
                    ("tools", pa.list_(pa.string())),
                    ("expected_tools", pa.list_(pa.string())),
                    ("target_box", pa.list_(pa.float64())),
                ]
            ),
        ),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference:
    """Answers to a question, and which of them is the better one; or a single one, and whether it is right."""

    id: str
    track: str
    ability: str  # what it asks of a judge
    split: str
    index: int  # in the split
    question: str
    request: str  # the user's text: the question with its answers, and `<image>` where an image stands
    label: str  # number of the better answer, or true or false
    images: Sequence[bytes | str] = ()  # encoded, or paths relative to the file's folder
    texts: Sequence[str] = ()  # the answers that the session's memory holds
    tools: Sequence[str] | None = None  # offered; None: all that there are
    expected_tools: Sequence[str] = ()  # that fit
    target_box: Sequence[float] | None = None  # where the evidence is

    def row(self) -> dict[str, Any]:
        """Plain values, for `SCHEMA`."""
        return {
            "data_source": self.track,
            "prompt": [{"role": "user", "content": self.request}],
            "images": [
                {"bytes": None, "path": image} if isinstance(image, str) else {"bytes": image, "path": None}
                for image in self.images
            ],
            "ability": self.ability,
            "reward_model": {"style": "rule", "ground_truth": self.label},
            "extra_info": {
                "id": self.id,
                "split": self.split,
                "index": self.index,
                "question": self.question,
                "texts": list(self.texts),
                "tools": None if self.tools is None else list(self.tools),
                "expected_tools": list(self.expected_tools),
                "target_box": None if self.target_box is None else [float(edge) for edge in self.target_box],
            },
        }


def write_preferences(path: Path, preferences: Iterable[Preference]) -> Path:
    """Write preferences, with one row group in memory at a time. Equal rows give equal bytes."""
    with replace_file(path) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        left = iter(preferences)
        while rows := [one.row() for one in islice(left, ROW_GROUP)]:
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), row_group_size=ROW_GROUP)
    return path
