"""How long a run takes from start to export, and how many GPU hours."""

import math
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from arm_rl.core.errors import UserError
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.data.parquet_rows import expand_folders
from arm_rl.plan.fit import gpus_of
from arm_rl.plan.modelled import Setting
from arm_rl.plan.overheads import Overheads
from arm_rl.plan.steps import StepPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Duration:
    """A run from start to export; evaluations are not counted."""

    steps: int
    seconds: float  # start, steps and checkpoints
    gpu_hours: float


def duration_of(setting: Setting, step: StepPlan, overheads: Overheads, num_samples: int | None) -> Duration | None:
    """Return the length of a run; None where it depends on a number of samples that nobody knows.

    Args:
        setting: Configuration and cluster.
        step: A step of it.
        overheads: Seconds of a checkpoint and of a start.
        num_samples: Samples of the training data.
    """
    steps = steps_of(setting.config, num_samples)
    if steps is None:
        return None
    every = setting.config.checkpoint.every
    checkpoints = math.ceil(steps / every) if every else 1
    seconds = overheads.resume + steps * step.seconds + checkpoints * overheads.checkpoint
    return Duration(steps=steps, seconds=seconds, gpu_hours=seconds * gpus_of(setting.config) / 3600)


def steps_of(config: TrainConfig | SftConfig, num_samples: int | None) -> int | None:
    """Return the steps of a run; None where they depend on an unknown number of samples."""
    if isinstance(config, SftConfig):
        a_step = config.batch_size
    elif config.num_steps is not None:
        return config.num_steps
    else:
        a_step = config.algorithm.samples_per_step
    return None if num_samples is None else config.num_epochs * math.ceil(num_samples / a_step)


def count_samples(config: TrainConfig | SftConfig) -> int | None:
    """Return the rows of the training data; None where a file is not there."""
    try:
        return sum(pq.read_metadata(file).num_rows for file in expand_folders(config.data.train))
    except (OSError, pa.ArrowException, UserError):
        return None
