"""The tracks' tasks as training data: the same rows as those of pairs that a model wrote."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from arm_rl.core.atomic_file import replace_text
from arm_rl.core.images import Image
from arm_rl.data.preferences import Preference, write_preferences
from arm_rl.demo import scenes, tasks
from arm_rl.demo.tasks import Task, Track
from arm_rl.demo.tracks import MIXED, TILES, TRACKS


def write(
    path: Path, *, seed: int, split: scenes.Split, num_samples: int, start: int = 0, tracks: Sequence[Track] = TILES
) -> Path:
    """Writes `num_samples` tasks of a split, from its task `start` on; several tracks take turns. Equal arguments give equal bytes."""
    drawn = ((tracks[number % len(tracks)], number // len(tracks)) for number in range(start, start + num_samples))
    return write_preferences(path, (make_preference(track, seed, split, index) for track, index in drawn))


def write_example(folder: Path, *, seed: int, track: Track) -> None:
    """Write the first held-out task of a track with an image for a reader's own first judgment: `scene.png` and `question.json`.

    Args:
        folder: Folder of the two files; created if it is missing.
        seed: Seed of the demo.
        track: Track of tasks with an image.
    """
    task = track.task(seed, "held_out", 0)
    assert task.image is not None
    folder.mkdir(parents=True, exist_ok=True)
    task.image.save(folder / "scene.png")
    written = {"question": task.question, "answers": list(task.texts), "better_answer": int(task.label)}
    replace_text(folder / "question.json", json.dumps(written, indent=2))


def make_preference(track: Track, seed: int, split: scenes.Split, index: int) -> Preference:
    """Return one task as answers to judge; it offers all tools of a run."""
    task = track.task(seed, split, index)
    image = task.image
    return Preference(
        id=f"{track.name}-{split}-{seed}-{index}",
        track=track.name,
        ability=track.ability,
        split=split,
        index=index,
        question=task.question,
        request=("" if image is None else "<image>") + tasks.request(task),
        label=task.label,
        images=() if image is None else (Image.from_pil(image).data,),
        texts=task.texts,
        expected_tools=(track.tool,),
        target_box=task.target_box,
    )


def parse_sample_id(identity: str) -> tuple[Task, Track]:
    """Return the task of a sample id, and its track.

    Raises:
        ValueError: not an id of these tracks.
    """
    known = TRACKS | {track.name: track for track in MIXED}
    match = re.fullmatch(rf"({'|'.join(known)})-({'|'.join(get_args(scenes.Split))})-(\d+)-(\d+)", identity)
    if match is None:
        raise ValueError(f"{identity!r} is not the id of a sample of the demos' tracks ({', '.join(known)})")
    track = known[match[1]]
    return track.task(int(match[3]), match[2], int(match[4])), track  # type: ignore[arg-type]
