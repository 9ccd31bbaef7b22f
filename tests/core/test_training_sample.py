"""A trajectory as the learner sees it, against what is worked out by hand."""

import pytest

from arm_rl.core import training_sample as training_samples
from arm_rl.core.seeding import derive_seed
from arm_rl.core.types import ImageInfo, TrainingSample, Trajectory, Turn

PAD = 99


def training_sample(trajectory, advantage):
    return training_samples.training_sample(trajectory, advantage, image_pad_id=PAD)


def turn(token_ids, logprobs, observation_ids=(), **changes):
    return Turn(
        token_ids=token_ids,
        logprobs=logprobs,
        text="",
        finish_reason="stop",
        observation_ids=observation_ids,
        **changes,
    )


def trajectory(*turns, **changes):
    values = {"prompt_ids": (1, 2, 3)}
    return Trajectory(
        sample_id="s", track="t", group_id="g", index=4, turns=turns, end="answered", **{**values, **changes}
    )


def test_the_turns_are_laid_end_to_end():
    laid = training_sample(
        trajectory(turn((4, 5), (-0.5, -0.25), (6, 7, 8)), turn((9,), (-1.5,), call_forbidden=True)), advantage=0.75
    )
    assert laid == TrainingSample(
        key="g[4]",
        token_ids=(1, 2, 3, 4, 5, 6, 7, 8, 9),
        loss_mask=(False, False, False, True, True, False, False, False, True),
        logprobs=(0, 0, 0, -0.5, -0.25, 0, 0, 0, -1.5),
        advantages=(0, 0, 0, 0.75, 0.75, 0, 0, 0, 0.75),
        call_forbidden=(False,) * 8 + (True,),
        num_prompt_tokens=3,
    )
    assert laid.num_loss_tokens == 3


IMAGES = tuple(
    ImageInfo(name=name, key=key)
    for name, key in (("original_image", "a"), ("observation_1", "b"), ("observation_2", "c"))
)


def test_images_are_counted_by_their_pads():
    whole = trajectory(
        turn((4,), (-0.5,), (6, PAD, 7, PAD, PAD)), turn((9,), (-1.5,)), prompt_ids=(1, PAD, PAD, PAD, 3), images=IMAGES
    )
    laid = training_sample(whole, advantage=0.75)
    assert (laid.image_keys, laid.image_tokens) == (("a", "b", "c"), (3, 1, 2))
    assert (laid.num_prompt_tokens, laid.num_prompt_images) == (5, 1)


def test_pads_that_are_not_the_images_are_refused():
    with pytest.raises(ValueError, match=r"g\[4\]: 3 images for 1 runs of image pads"):
        training_sample(trajectory(prompt_ids=(1, PAD, 2), images=IMAGES), advantage=1.0)


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
    seeds = {derive_seed(*parts) for parts in [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1), (0, "a"), ()]}
    assert len(seeds) == 6
    assert derive_seed(0, "a", 1) == derive_seed(0, "a", 1)
    assert all(0 <= seed < 2**31 for seed in seeds)
