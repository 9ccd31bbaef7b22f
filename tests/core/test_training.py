"""A trajectory as the learner sees it, against what is worked out by hand."""

import pytest

from arm_rl.core.seeding import derive
from arm_rl.core.training import training_sample
from arm_rl.core.types import ImageInfo, TrainingSample, Trajectory, Turn


def turn(token_ids, logprobs, observation_ids=(), **changes):
    return Turn(token_ids=token_ids, logprobs=logprobs, text="", finish_reason="stop", observation_ids=observation_ids, **changes)


def trajectory(*turns, **changes):
    values = {"prompt_ids": (1, 2, 3), "images": (ImageInfo(name="original_image", key="a"), ImageInfo(name="observation_1", key="b"))}
    return Trajectory(sample_id="s", track="t", group_id="g", index=4, turns=turns, end="answered", **{**values, **changes})


def test_the_turns_are_laid_end_to_end():
    laid = training_sample(trajectory(turn((4, 5), (-0.5, -0.25), (6, 7, 8)), turn((9,), (-1.5,), call_forbidden=True)), advantage=0.75)
    assert laid == TrainingSample(
        token_ids=(1, 2, 3, 4, 5, 6, 7, 8, 9),
        loss_mask=(False, False, False, True, True, False, False, False, True),
        logprobs=(0, 0, 0, -0.5, -0.25, 0, 0, 0, -1.5),
        advantages=(0, 0, 0, 0.75, 0.75, 0, 0, 0, 0.75),
        call_forbidden=(False,) * 8 + (True,),
        image_keys=("a", "b"),
    )
    assert laid.num_loss_tokens == 3


def test_a_teachers_turns_have_no_logprobs():
    laid = training_sample(trajectory(turn((4, 5), (), (6,)), turn((9,), ())), advantage=1.0)
    assert laid.logprobs == (0.0,) * 7
    assert laid.num_loss_tokens == 3


def test_an_observation_carries_no_loss_even_at_the_end():
    laid = training_sample(trajectory(turn((4,), (-1.0,), (5, 6))), advantage=-2.0)
    assert laid.loss_mask == (False, False, False, True, False, False)
    assert laid.advantages == (0, 0, 0, -2.0, 0, 0)


def test_a_session_without_turns_carries_no_loss():
    assert training_sample(trajectory(), advantage=1.0).num_loss_tokens == 0


@pytest.mark.parametrize("logprobs", [(-1.0,), (-1.0, -1.0, -1.0)])
def test_each_sampled_token_needs_its_logprob(logprobs):
    with pytest.raises(ValueError, match=r"g\[4\] turn 1: \d logprobs for 2 tokens"):
        training_sample(trajectory(turn((4,), (-1.0,)), turn((5, 6), logprobs)), advantage=1.0)


@pytest.mark.parametrize("name", ["loss_mask", "logprobs", "advantages", "call_forbidden"])
def test_the_sequences_of_a_training_sample_have_one_length(name):
    values = {"token_ids": (1, 2), "loss_mask": (True, True), "logprobs": (-1.0, -1.0), "advantages": (1.0, 1.0)}
    TrainingSample(**values)
    with pytest.raises(ValueError, match=f"{name} has 1 entries for 2 token_ids"):
        TrainingSample(**{**values, name: (True,)})


def test_seeds_depend_on_every_part():
    seeds = {derive(*parts) for parts in [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1), (0, "a"), ()]}
    assert len(seeds) == 6
    assert derive(0, "a", 1) == derive(0, "a", 1)
    assert all(0 <= seed < 2**31 for seed in seeds)
