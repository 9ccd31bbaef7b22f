"""Groups that a checkpoint keeps: all that a learner needs comes back."""

import ray

from actors.archive import Archive
from actors.rollout.pool import RolloutPool
from arm_rl.core.config import DataConfig
from arm_rl.core.stage_config import TrainConfig
from arm_rl.training.group import Group
from arm_rl.training.group_runner import GroupRunner
from tests.support.trajectories import looked, make_sample


async def test_groups_come_back_with_their_images(local_ray, tmp_path):
    samples = {name: make_sample(id=name) for name in ("a", "b")}
    archive = ray.remote(Archive).remote()
    runner = GroupRunner(TrainConfig(data=DataConfig(train=("x",))), RolloutPool([], 600.0), [], archive=archive)
    assert await runner.load_groups(tmp_path / "nothing.parquet", samples) == {}
    groups, pixels = {}, {}
    for number, sample in ((12, samples["b"]), (5, samples["a"])):
        made = [
            looked(correct=index == 0, sample_id=sample.id, group_id=f"{number}/{sample.id}", index=index)
            for index in range(3)
        ]
        images = {key: image for _, own in made for key, image in own.items()}
        groups[number] = Group(sample=sample, scored=tuple(one for one, _ in made), images=ray.put(images))
        pixels |= images
    await runner.save_groups(tmp_path / "groups.parquet", list(groups.values()), 7)
    kept = await runner.load_groups(tmp_path / "groups.parquet", samples)
    assert sorted(kept) == [5, 12]
    for number, group in kept.items():
        assert (group.sample, group.scored) == (groups[number].sample, groups[number].scored)
        shown = {image.key for one in group.scored for image in one.trajectory.images}
        found = ray.get(group.images)
        assert {key: found[key].data for key in shown} == {key: pixels[key].data for key in shown}
