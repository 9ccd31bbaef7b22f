"""Groups that were finished since the last checkpoint: a run that is killed does not run them again."""

from dataclasses import dataclass, field
from pathlib import Path

from arm_rl.core import trajectory_file
from arm_rl.core.config import DataConfig
from arm_rl.core.stage_config import AlgorithmConfig, TrainConfig
from arm_rl.data.samples import Cursor
from arm_rl.training.collector import Collector
from arm_rl.training.finished_groups import Journal
from arm_rl.training.group import Group, number_of
from tests.support.trajectories import make_sample, make_scored, make_turn

SAMPLES = [make_sample(id=f"s{number}") for number in range(40)]
BROKEN = 2  # the number of a group whose sessions break


@dataclass
class Runner:
    """Groups that end at once."""

    started: list[int] = field(default_factory=list)

    async def run_group(self, sample, group_id, *, size, temperature) -> Group:
        self.started.append(number_of(group_id))
        error = "it broke" if number_of(group_id) == BROKEN else None
        scored = tuple(
            make_scored(
                make_turn("<answer>", num_tokens=3, policy_version=number_of(group_id)),
                sample_id=sample.id,
                reward=float(index),
                group_id=group_id,
                index=index,
                error=error,
            )
            for index in range(size)
        )
        return Group(sample=sample, scored=scored, images=None)

    async def save_groups(self, path: Path, groups, step: int) -> None:
        trajectory_file.write(path, groups[0].scored, {groups[0].sample.id: groups[0].sample}, {}, step=step)

    async def load_groups(self, path: Path, samples) -> dict[int, Group]:
        if not path.is_file():
            return {}
        scored = trajectory_file.read(path).scored
        (sample,) = samples.values()
        return {number_of(scored[0].trajectory.group_id): Group(sample=sample, scored=scored, images=None)}


def collector(runner, folder):
    algorithm = AlgorithmConfig(samples_per_step=2, group_size=2, max_staleness=1)
    return Collector(
        TrainConfig(data=DataConfig(train=("x",)), algorithm=algorithm),
        Journal(runner, folder),
        Cursor(SAMPLES, seed=1),
    )


async def test_what_was_finished_when_the_run_was_killed_is_taken_from_disk(tmp_path):
    runner, killed = Runner(), collector(Runner(), tmp_path)
    killed_steps = []
    for step in range(3):
        killed_steps.append(await killed.collect(step))
        killed.settle(killed_steps[-1])
    await killed.idle()
    again = collector(runner, tmp_path)  # there was no checkpoint: it begins with the first sample
    for step in range(3):
        collected = await again.collect(step)
        assert [one.group.scored for one in collected.selections] == [
            one.group.scored for one in killed_steps[step].selections
        ]
        again.settle(collected)
    await again.idle()
    assert runner.started == [BROKEN]


async def test_what_a_checkpoint_knows_is_forgotten(tmp_path):
    runner = Runner()
    journal = Journal(runner, tmp_path)
    assert journal.numbers() == set()
    for number in range(4):
        await journal.run_group(SAMPLES[number], f"{number}/s{number}", size=2, temperature=1.0)
    assert journal.numbers() == {0, 1, 3}
    journal.forget([0, 3, 17])
    assert journal.numbers() == {1}
    assert [path.name for path in sorted(tmp_path.rglob("*.parquet"))] == ["1.parquet", "1.parquet"], (
        "the images are gone as well"
    )
