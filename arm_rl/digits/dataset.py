"""Writes the digits task as parquet files with verl's columns."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PILImage

from arm_rl.core.images import Image
from arm_rl.digits import phrases, scenes

TRACK = "digits"
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


def write(path: Path, *, seed: int, split: scenes.Split, num_samples: int) -> Path:
    """Writes the first `num_samples` scenes of a split. Equal arguments give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for start in range(0, num_samples, ROW_GROUP):
            indices = range(start, min(start + ROW_GROUP, num_samples))
            rows = [row(seed, split, index) for index in indices]
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), row_group_size=ROW_GROUP)
    return path


def row(seed: int, split: scenes.Split, index: int) -> dict[str, Any]:
    """One sample as a row."""
    scene = scenes.make_scene(seed, split, index)
    image = Image.from_pil(PILImage.fromarray(scenes.draw(scene)))
    return {
        "data_source": TRACK,
        "prompt": [{"role": "user", "content": "<image>" + phrases.request(scene.question, scene.claims)}],
        "images": [{"bytes": image.data, "path": None}],
        "ability": "fine-grained perception",
        "reward_model": {"style": "rule", "ground_truth": scene.label},
        "extra_info": {
            "id": sample_id(seed, split, index),
            "split": split,
            "index": index,
            "question": scene.question,
            "texts": [str(claim) for claim in scene.claims],
            "tools": [phrases.TOOL],
            "expected_tools": [phrases.TOOL],
            "target_box": [float(edge) for edge in scene.asked.box],
        },
    }


def sample_id(seed: int, split: scenes.Split, index: int) -> str:
    """The id of a sample: it tells which scene it is."""
    return f"{TRACK}-{split}-{seed}-{index}"


def scene_of(identity: str) -> tuple[scenes.Scene, tuple[int, int]]:
    """The scene of a sample, and its seed and index.

    Raises:
        ValueError: not an id of this task.
    """
    match = re.fullmatch(rf"{TRACK}-(train|held_out|pretrain)-(\d+)-(\d+)", identity)
    if match is None:
        raise ValueError(f"{identity!r} is not the id of a sample of the digits task")
    split, seed, index = match[1], int(match[2]), int(match[3])
    return scenes.make_scene(seed, split, index), (seed, index)  # type: ignore[arg-type]
