"""Group advantages against numbers worked out by hand."""

import math

import pytest

from arm_rl.core.advantage import group_advantages, is_zero_variance


def test_mean_and_sample_deviation():
    # mean 2, squared differences 4 + 0 + 4, sample variance 8 / 2
    assert group_advantages([0.0, 2.0, 4.0]) == pytest.approx([-1.0, 0.0, 1.0], abs=1e-5)
    # mean 0.7, differences -0.4, -0.4, 0.8; sample variance 0.96 / 2
    assert group_advantages([0.3, 0.3, 1.5]) == pytest.approx([-0.57735, -0.57735, 1.15470], abs=1e-5)


def test_without_deviation_only_the_mean_is_taken():
    assert group_advantages([0.3, 0.4, 1.5, 1.0], scale_by_std=False) == pytest.approx([-0.5, -0.4, 0.7, 0.2])


def test_a_missing_reward_is_left_out_and_is_not_0():
    advantages = group_advantages([1.0, None, 3.0])
    assert advantages[1] is None
    assert [advantages[0], advantages[2]] == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)], abs=1e-5)


@pytest.mark.parametrize("rewards", [[1.5, 1.5, 1.5], [0.1 + 0.2, 0.3], [None, 0.7], [None, None], []])
def test_flat_groups_have_advantages_of_zero(rewards):
    assert is_zero_variance(rewards)
    assert group_advantages(rewards) == [None if reward is None else 0.0 for reward in rewards]


def test_a_small_spread_is_no_flat_group():
    assert not is_zero_variance([1.0, 1.0, 1.001])


def test_a_tiny_spread_is_damped():
    assert max(map(abs, group_advantages([0.0, 1e-6]))) < 0.5  # without the epsilon: 0.71


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_refused(reward):
    with pytest.raises(ValueError, match="not finite"):
        group_advantages([0.0, reward])
