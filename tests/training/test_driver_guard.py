"""A batch that must not be learned from: the run ends before the weights change, and what did it is kept."""

from pathlib import Path

import pytest

from arm_rl.core import trajectory_file
from arm_rl.core.compute_config import LearnerConfig, PlacementConfig
from arm_rl.core.config import DataConfig, ModelConfig, RunConfig
from arm_rl.core.errors import MismatchError, NonFiniteError
from arm_rl.core.stage_config import AlgorithmConfig, TrainConfig
from arm_rl.data.samples import Cursor
from arm_rl.training.driver import Driver
from arm_rl.training.group import Group, RunStopped
from arm_rl.training.select import select
from tests.support.trajectories import make_sample, make_scored, make_turn

SAMPLES = [make_sample(id=f"s{number}") for number in range(2)]


class Runner:
    """Keeps groups where it is told to."""

    rollouts = None

    async def save_groups(self, path: Path, groups, step: int) -> None:
        scored = [one for group in groups for one in group.scored]
        trajectory_file.write(path, scored, {sample.id: sample for sample in SAMPLES}, {}, stage="x", step=step)


class Learners:
    """Refuse."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def train(self, batch, images, objective) -> dict[str, float]:
        raise self.error


def make(folder, error) -> Driver:
    config = TrainConfig(
        run=RunConfig(name="x", root=str(folder)),
        model=ModelConfig(path="m"),
        data=DataConfig(train=("x",)),
        algorithm=AlgorithmConfig(samples_per_step=2, group_size=2),
        learner=LearnerConfig(),
        placement=PlacementConfig(use_gpu=False),
    )
    cursor = Cursor(SAMPLES, seed=0)
    return Driver(
        config,
        runner=Runner(),
        learners=Learners(error),
        cursor=cursor,
        held_out=[],
        image_pad_id=999,
        num_steps=9,
        log=None,
    )


@pytest.mark.parametrize(
    "error", [NonFiniteError("the gradient is not finite"), MismatchError("engine and learner differ by 3")]
)
async def test_a_refused_batch_is_kept_and_its_samples_are_named(tmp_path, error):
    groups = [
        Group(
            sample=sample,
            scored=tuple(
                make_scored(
                    make_turn("x"),
                    sample_id=sample.id,
                    group_id=f"{number}/{sample.id}",
                    index=index,
                    reward=float(index),
                )
                for index in range(2)
            ),
            images=None,
        )
        for number, sample in enumerate(SAMPLES)
    ]
    driver = make(tmp_path, error)
    driver.steps_done = 6
    with pytest.raises(
        RunStopped, match=f"step 7: {error} The batch did not change the weights and is in .*; its samples: s0, s1"
    ):
        await driver.learn([select(number, group, 0, driver.config.algorithm) for number, group in enumerate(groups)])
    kept = trajectory_file.read(tmp_path / "x" / "failed_batch" / "x-000007.parquet")
    assert kept.scored == tuple(one for group in groups for one in group.scored)


async def test_any_other_error_is_not_the_batchs(tmp_path):
    driver = make(tmp_path, ZeroDivisionError())
    scored = (make_scored(make_turn("x"), reward=1.0), make_scored(make_turn("x"), reward=0.0))
    group = Group(sample=SAMPLES[0], scored=scored, images=None)
    with pytest.raises(ZeroDivisionError):
        await driver.learn([select(0, group, 0, driver.config.algorithm)])
    assert not (tmp_path / "x").exists()
