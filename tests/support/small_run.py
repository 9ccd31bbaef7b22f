"""A training that is small enough for a test."""

from pathlib import Path

from arm_rl.demo import dataset


def write_data(folder: Path, num_samples: int) -> None:
    """Write the training data of `overrides`."""
    dataset.write(folder / "train.parquet", seed=0, split="train", num_samples=num_samples)


def overrides(folder: Path, model: Path, *more: str) -> list[str]:
    """Return the keys of `configs/demo.yaml` that make a run of an untrained judge small; `more` wins over them.

    Args:
        folder: root of the run's folder, with the data of `write_data`.
        model: the judge's folder.
    """
    return [
        f"run.root={folder}",
        f"model.path={model}",
        f"data.train=[{folder / 'train.parquet'}]",
        "data.held_out=[]",
        "algorithm.samples_per_step=4",
        "algorithm.group_size=4",
        "algorithm.drop_flat_groups=false",  # an untrained judge earns nothing
        "learner.num_threads=1",
        "learner.micro_batch_tokens=512",
        "metrics.wandb=disabled",
        "metrics.trajectories_every=1",
        *more,
    ]
