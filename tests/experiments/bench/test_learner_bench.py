"""The learner's benchmarks at tiny sizes: both sides do the same work, and what is reported is what was measured."""

import dataclasses

import pytest
import torch

from arm_rl.core.batching import make_batch
from arm_rl.core.loss import GrpoObjective
from arm_rl.experiments.bench import learner, models
from arm_rl.experiments.bench.bare_loop import BareLoop, by_length
from arm_rl.experiments.bench.models import ModelSize, SyntheticAnswers, SyntheticTrajectories

SMALL = ModelSize(hidden=64, layers=1, intermediate=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("model")
    models.build(folder, SMALL)
    return folder


def test_a_model_has_the_size_that_was_asked_for(folder, tmp_path):
    assert models.build(tmp_path, dataclasses.replace(SMALL, layers=2)) - models.build(tmp_path, SMALL) == (
        64 * (64 + 2 * 32) + (64 + 2 * 32)  # queries, keys, values; their biases
        + 64 * 64  # output
        + 3 * 64 * 64  # the three matrices between
        + 2 * 64  # norms
    )  # fmt: skip


def test_trajectories_share_what_they_should(folder):
    samples, images = SyntheticTrajectories(num_groups=2, group_size=3).make(folder)
    assert len(samples) == 6
    assert len(images) == 2 + 6
    for sample in samples:
        assert len(sample.token_ids) == 34 + 14 + 26 + 6  # the demo's
        assert sample.num_loss_tokens == 20
        assert sample.image_tokens == (16, 16)
    assert len({sample.token_ids[: sample.num_prompt_tokens] for sample in samples}) == 2
    large, _ = SyntheticTrajectories(num_groups=1, group_size=2, prompt_pixels=512).make(folder)
    assert large[0].image_tokens == (1024, 16)


def test_answers_have_the_lengths_that_were_asked_for(folder):
    lengths = {"prompt_tokens": (10, 20), "sampled_tokens": (3, 9)}
    samples, images = SyntheticAnswers(num_groups=20, group_size=2, **lengths).make(folder)
    assert (len(samples), len({sample.prompt_key for sample in samples}), images) == (40, 20, {})
    assert {sample.num_prompt_tokens for sample in samples} <= set(range(10, 21))
    assert {sample.num_loss_tokens for sample in samples} == set(range(3, 10))
    shown, images = SyntheticAnswers(num_groups=1, group_size=2, prompt_pixels=512, **lengths).make(folder)
    assert shown[0].image_tokens == (1024,)
    assert shown[0].image_keys == tuple(images)


def test_the_bare_loop_pads_trajectories_of_like_length(folder):
    samples, _ = SyntheticAnswers(num_groups=40, group_size=1, prompt_tokens=(8, 8), sampled_tokens=(1, 92)).make(
        folder
    )
    batches = by_length(samples, 200)
    assert sorted(map(id, samples)) == sorted(id(sample) for batch in batches for sample in batch)
    assert all(len(batch) * max(len(one.token_ids) for one in batch) <= 200 for batch in batches)
    assert sum(len(batch) * len(batch[0].token_ids) for batch in batches) < 1.1 * sum(
        len(sample.token_ids) for sample in samples
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "trajectories",
    [
        SyntheticTrajectories(num_groups=1, group_size=3),
        SyntheticAnswers(num_groups=2, group_size=3, prompt_tokens=(30, 30), sampled_tokens=(5, 20)),
    ],
)
def test_the_bare_loop_computes_the_same_loss(folder, local_ray, trajectories):
    samples, images = trajectories.make(folder)
    batch = make_batch(samples, num_ranks=1, micro_batch_tokens=100)
    spec = learner.spec_of(folder, trajectories, num_threads=1, micro_batch_tokens=100)
    bare = BareLoop(spec, samples, images)
    torch.set_num_threads(1)
    with learner._ranks(spec) as ranks:
        ours = ranks.train(batch, learner._stored(images), GrpoObjective())
    assert len(batch.micro_batches[0]) > 1
    assert len(bare.batches) > 1
    assert bare.step() == pytest.approx(ours["learner/loss"], rel=1e-4)


@pytest.mark.slow
def test_both_sides_are_measured_in_turn(local_ray, tmp_path):
    trajectories = SyntheticTrajectories(num_groups=2, group_size=4)
    settings = learner.LearnerSettings(
        size=SMALL, trajectories=trajectories, repeats=2, steps=1, micro_batch_tokens=300
    )
    result = dataclasses.replace(learner.AGAINST_BARE_LOOP[1], settings=settings).run(tmp_path)
    assert len(result.ours) == len(result.other) == 2
    assert result.ratio_low <= result.ratio <= result.ratio_high
    assert result.details["seconds"].keys() >= {"train", "forward", "backward", "optimizer", "images"}
    assert result.details["seconds"]["train"] > result.details["seconds"]["forward"] > 0


@pytest.mark.slow
def test_two_ranks_are_measured_against_one(local_ray, tmp_path):
    trajectories = SyntheticTrajectories(num_groups=2, group_size=4)
    settings = learner.RankSettings(
        size=SMALL, trajectories=trajectories, repeats=1, micro_batch_tokens=300, zero_stage=2
    )
    result = dataclasses.replace(learner.TWO_RANKS_OVER_ONE[1], settings=settings).run(tmp_path)
    assert result.key == "ranks_zero_2"
    assert result.ratio == result.ours[0] / result.other[0] > 0
