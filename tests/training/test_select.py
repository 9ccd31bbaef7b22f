"""What a step trains on: the fate of each trajectory, and what it is decided by."""

import pytest

from arm_rl.core.stage_config import AlgorithmConfig
from arm_rl.training.group import Group
from arm_rl.training.select import select
from tests.support.trajectories import make_sample, make_scored, make_turn


def scored(end="answered", reward=1.0, version=0):
    return make_scored(make_turn("x", policy_version=version), end=end, reward=reward)


def fates(*members, version=0, **algorithm):
    group = Group(sample=make_sample(), scored=members, images=None)
    return select(7, group, version, AlgorithmConfig(**algorithm))


BROKEN, UNSCORED = scored(end="aborted", reward=None), scored(reward=None)


@pytest.mark.parametrize(
    ("first_reward", "version", "mask_overlong", "expected"),
    [
        (0.0, 0, False, ["trained", "trained", "unscored", "broken"]),
        (0.0, 0, True, ["trained", "overlong", "unscored", "broken"]),
        (1.0, 0, True, ["flat", "flat", "unscored", "broken"]),
        (0.0, 1, True, ["too_old", "too_old", "unscored", "broken"]),
    ],
)
def test_each_trajectory_has_one_fate(first_reward, version, mask_overlong, expected):
    members = (scored(reward=first_reward), scored(end="length"), UNSCORED, BROKEN)
    selection = fates(*members, version=version, mask_overlong=mask_overlong)
    assert list(selection.fates) == expected
    assert (selection.number, selection.trains) == (7, "trained" in expected)
    assert selection.is_too_old == (version == 1)


def test_age_counts_from_the_oldest_token_and_before_everything_else():
    members = scored(reward=0.0, version=4), scored(version=5)
    assert fates(*members, version=5, max_staleness=1).trains
    assert fates(*members, version=6, max_staleness=1).is_too_old
    assert fates(UNSCORED, BROKEN, version=3, max_staleness=1).is_too_old, "where no fate says so"


def test_flat_groups_are_trained_on_where_none_is_dropped():
    assert fates(scored(), scored(), drop_flat_groups=False).fates == ("trained", "trained")
    assert fates(scored(), scored()).fates == ("flat", "flat")


def test_a_group_without_a_trajectory_to_train_on_does_not_train():
    overlong = scored(end="length", reward=0.0), scored(end="length", reward=1.0)
    assert not fates(*overlong, mask_overlong=True).trains
    assert not fates(UNSCORED, BROKEN, drop_flat_groups=False).trains
