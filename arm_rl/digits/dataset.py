"""Writes the tracks' tasks as parquet files with verl's columns."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from arm_rl.core.images import Image
from arm_rl.digits import scenes, tasks
from arm_rl.digits.tasks import Task, Track
from arm_rl.digits.tracks import MIXED, TILES, TRACKS

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


def write(path: Path, *, seed: int, split: scenes.Split, num_samples: int, tracks: Sequence[Track] = TILES) -> Path:
    """Writes the first `num_samples` tasks of a split; several tracks take turns. Equal arguments give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for start in range(0, num_samples, ROW_GROUP):
            numbers = range(start, min(start + ROW_GROUP, num_samples))
            rows = [row(tracks[number % len(tracks)], seed, split, number // len(tracks)) for number in numbers]
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), row_group_size=ROW_GROUP)
    return path


def row(track: Track, seed: int, split: scenes.Split, index: int) -> dict[str, Any]:
    """One sample as a row. It offers all the tools of a run, whichever these are."""
    task = track.task(seed, split, index)
    image = task.image
    box = task.target_box
    return {
        "data_source": track.name,
        "prompt": [{"role": "user", "content": ("" if image is None else "<image>") + tasks.request(task)}],
        "images": [] if image is None else [{"bytes": Image.from_pil(image).data, "path": None}],
        "ability": track.ability,
        "reward_model": {"style": "rule", "ground_truth": task.label},
        "extra_info": {
            "id": f"{track.name}-{split}-{seed}-{index}",
            "split": split,
            "index": index,
            "question": task.question,
            "texts": list(task.texts),
            "tools": None,
            "expected_tools": [track.tool],
            "target_box": None if box is None else [float(edge) for edge in box],
        },
    }


def task_of(identity: str) -> tuple[Task, Track]:
    """The task of a sample, and its track.

    Raises:
        ValueError: not an id of these tracks.
    """
    known = TRACKS | {track.name: track for track in MIXED}
    match = re.fullmatch(rf"({'|'.join(known)})-({'|'.join(get_args(scenes.Split))})-(\d+)-(\d+)", identity)
    if match is None:
        raise ValueError(f"{identity!r} is not the id of a sample of the demos' tracks ({', '.join(known)})")
    track = known[match[1]]
    return track.task(int(match[3]), match[2], int(match[4])), track  # type: ignore[arg-type]
