"""A run folder of very many trajectories, made fast: one file's rows, written again for each step."""

import dataclasses
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from arm_rl.core import trajectory_file
from tests.support.trajectories import looked, make_sample

GROUP_SIZE = 8


def write_many(folder: Path, num_files: int, rows_in_file: int) -> None:
    """Steps 1..N of stage2, each with as many trajectories; every third one is right."""
    path = folder / "trajectories" / trajectory_file.file_name("stage2", 1)
    scored, images, samples = [], {}, {}
    for row in range(rows_in_file):
        one, kept = looked(correct=row % 3 == 0, reward=float(row % 3 == 0))
        images |= kept
        group, index = divmod(row, GROUP_SIZE)
        samples[f"s{group}"] = make_sample(f"s{group}")
        trajectory = dataclasses.replace(one.trajectory, sample_id=f"s{group}", group_id=f"g{group}", index=index)
        scored.append(dataclasses.replace(one, trajectory=trajectory))
    trajectory_file.write(path, scored, samples, images, stage="stage2", step=1)
    table = pq.read_table(path)
    for step in range(2, num_files + 1):
        name = trajectory_file.file_name("stage2", step)
        metadata = {"arm_rl.stage": "stage2", "arm_rl.step": str(step)}
        own = table.replace_schema_metadata(metadata)
        pq.write_table(own, path.parent / name, compression="zstd", row_group_size=trajectory_file.ROWS_READ_TOGETHER)
        shutil.copy(path.parent / "images" / path.name, path.parent / "images" / name)
