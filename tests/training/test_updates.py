"""The optimizer steps of a driver's step: how its groups are split over mini-batches."""

import collections

import pytest

from arm_rl.core.compute_config import LearnerConfig, PlacementConfig
from arm_rl.core.config import DataConfig, ModelConfig, RunConfig
from arm_rl.core.stage_config import AlgorithmConfig, TrainConfig
from arm_rl.training.group import Group
from arm_rl.training.select import Selection
from arm_rl.training.updates import Updates
from tests.support.trajectories import make_sample, make_scored, make_turn


class Recorder:
    """Learners that keep the batches that they are given."""

    def __init__(self) -> None:
        self.batches = []

    def train(self, batch, images, objective) -> dict[str, float]:
        self.batches.append(batch)
        return {"learner/loss": 0.0}

    def groups(self) -> list[set[str]]:
        """The groups of each update."""
        return [
            {sample.key.partition("[")[0] for rank in batch.micro_batches for row in rank for sample in row}
            for batch in self.batches
        ]


def selection(number: int) -> Selection:
    scored = tuple(
        make_scored(make_turn("x"), group_id=f"g{number}", index=index, reward=reward)
        for index, reward in enumerate((0.0, 1.0))
    )
    group = Group(sample=make_sample(), scored=scored, images=None)
    return Selection(number=number, group=group, is_too_old=False, fates=("trained", "trained"))


async def run(num_groups: int, **algorithm) -> Recorder:
    config = TrainConfig(
        run=RunConfig(name="r"),
        model=ModelConfig(path="m"),
        data=DataConfig(train=("d",)),
        placement=PlacementConfig(use_gpu=False),
        learner=LearnerConfig(zero_stage=0),
        algorithm=AlgorithmConfig(**algorithm),
    )
    learners = Recorder()
    await Updates(config, learners, image_pad_id=99).run(0, [selection(number) for number in range(num_groups)])
    return learners


@pytest.mark.parametrize(
    ("num_groups", "mini_batch", "expected"),
    [(257, 256, [128, 129]), (256, 256, [256]), (512, 256, [256, 256]), (9, 4, [3, 3, 3]), (1, 4, [1]), (5, None, [5])],
)
async def test_the_groups_of_a_step_are_split_evenly_over_its_updates(num_groups, mini_batch, expected):
    """A remainder of one group would be an update of one group at the full learning rate."""
    learners = await run(num_groups, samples_per_step=512, mini_batch_samples=mini_batch)
    assert [len(groups) for groups in learners.groups()] == expected
    assert set.union(*learners.groups()) == {f"g{number}" for number in range(num_groups)}


async def test_each_epoch_of_a_step_has_all_groups_in_another_order():
    learners = await run(9, samples_per_step=12, mini_batch_samples=6, epochs_per_step=2)
    groups = learners.groups()
    assert [len(one) for one in groups] == [4, 5, 4, 5]
    assert collections.Counter(name for one in groups for name in one) == {f"g{number}": 2 for number in range(9)}
    assert groups[0] != groups[2]
