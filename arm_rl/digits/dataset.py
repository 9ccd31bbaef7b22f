"""Writes scenes as parquet with verl's columns."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PILImage

from arm_rl.core.images import Image
from arm_rl.digits import phrases, scenes

TRACK = "digits"
ROW_GROUP = 128  # rows whose images are read together

_SCHEMA = pa.schema(
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


def write(path: Path, *, seed: int, split: scenes.Split, num_scenes: int) -> None:
    """Writes the first scenes of a split; equal seeds write equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [_row(scenes.make_scene(seed, split, index), split, index) for index in range(num_scenes)]
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), path, row_group_size=ROW_GROUP)


def sample_id(split: scenes.Split, index: int) -> str:
    """The id of a scene's row."""
    return f"{split}-{index:05d}"


def scene_of(id_: str, seed: int) -> scenes.Scene:
    """The scene behind a row's id: what the teacher knows."""
    split, _, index = id_.rpartition("-")
    return scenes.make_scene(seed, "held_out" if split == "held_out" else "train", int(index))


def _row(scene: scenes.Scene, split: scenes.Split, index: int) -> dict:
    image = Image.from_pil(PILImage.fromarray(scenes.draw(scene)))
    return {
        "data_source": TRACK,
        "prompt": [{"role": "user", "content": "<image>" + phrases.request(scene.question, scene.claims)}],
        "images": [{"bytes": image.data, "path": None}],
        "ability": "perception",
        "reward_model": {"style": "rule", "ground_truth": scene.label},
        "extra_info": {
            "id": sample_id(split, index),
            "split": split,
            "index": index,
            "question": scene.question,
            "texts": [str(claim) for claim in scene.claims],
            "tools": [phrases.TOOL],
            "expected_tools": [phrases.TOOL],
            "target_box": [float(edge) for edge in scene.asked.box],
        },
    }
